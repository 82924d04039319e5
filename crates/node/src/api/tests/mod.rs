//! The API over a real replica on a memory engine, called through a real channel.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test

mod bad_input;
mod history;
mod parked;
mod scans;
mod scopes;
mod status;
mod values;
mod verify;
mod watches;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status};
use tropism_crdt::{NodeId, Origin};
use tropism_placement::{RegionName, Regions, ScopeId, ScopeName, ShardId};
use tropism_replica::{Identity, Opening, Peer};
use tropism_storage::{MemoryEngine, Space, Store};
use tropism_wire::v1::state_service_client::StateServiceClient;
use tropism_wire::{Problem, v1};

use super::admission::Deadline;
use super::{Api, ApiConfig, Away};
use crate::directory::Directory;
use crate::driver::{Driver, Handle};
use crate::placement::{Pace, Placement};
use crate::telemetry::Telemetry;
use crate::token::Seal;
use crate::traffic::Traffic;

const CLUSTER: &str = "test";
const REGIONS: &str = r#"
region = [{ name = "here", place = "Here" }, { name = "there", place = "There" }]
rtt = [{ between = ["here", "there"], ms = 10.0 }]
[[node]]
id = "there-1"
region = "there"
client = "there.example:7000"
peer = "there.example:7100"
[[rule]]
name = "shop"
pattern = "shop/**"
kind = "document"
counters = ["/items/*/n"]
[[rule]]
name = "stats"
pattern = "stats/**"
kind = "counter"
[[rule]]
name = "cache"
pattern = "cache/**"
kind = "register"
spread = 3
[[rule]]
name = "brief"
pattern = "brief/**"
kind = "register"
expiry = "1h"
[[rule]]
name = "far"
pattern = "far/**"
kind = "register"
regions = ["there"]
[[rule]]
name = "roam"
pattern = "roam/**"
kind = "register"
mode = "follow"
regions = ["here"]
allowed = ["here", "there"]
max_regions = 1
"#;

/// One node in region `here`, served; its only peer, `there-1` in region `there`, is never heard.
struct World {
    driver: Option<Driver>,
    handle: Handle,
    api: Api,
    channel: Channel,
    client: StateServiceClient<Channel>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.stop();
        }
    }
}

fn shard(scope: &str, index: u16) -> ShardId {
    ShardId::of(&ScopeId { name: ScopeName::new(scope).unwrap(), incarnation: 0 }, index)
}

fn foreign_origin() -> Origin {
    Origin { node: NodeId::new("there-1").unwrap(), incarnation: 7, random: 7 }
}

fn seal() -> Seal {
    Seal::new(CLUSTER)
}

impl World {
    async fn new() -> Self {
        Self::over(Store::open(Box::new(MemoryEngine::new())).unwrap(), 1 << 20).await
    }

    async fn over(store: Store, watch_buffer_bytes: usize) -> Self {
        let regions = Regions::parse("regions.toml", REGIONS).unwrap();
        let region = |name| RegionName::new(name).unwrap();
        let node = |name| NodeId::new(name).unwrap();
        let peers = vec![Peer { node: node("there-1"), region: region("there") }];
        let identity = Identity {
            cluster: CLUSTER.into(),
            node: node("here-1"),
            region: region("here"),
            boot_random: 1,
            new_store_id: 2,
            opening: Opening { accept_loss: true, ..Opening::default() },
            peers: peers.clone(),
            rules: regions.rules().clone(),
            directory: false,
            cache_bytes: 64 << 20,
            log_keep_ms: 600_000,
            digest_key: tropism_replica::DigestKey::default(),
            part_bytes: tropism_replica::limits::FRAME_BYTES,
            settle_keys: tropism_replica::limits::SETTLE_KEYS,
            log_cap_ms: u64::MAX,
            log_cap_bytes: u64::MAX,
            log_keep_bytes: 256 << 20,
        };
        let telemetry = Telemetry::default();
        let (driver, handle) = Driver::start(store, identity, None, telemetry.clone()).unwrap();
        let homes = BTreeMap::from([(node("here-1"), region("here")), (node("there-1"), region("there"))]);
        let pace = Pace { times: 1, moves: true };
        let placement = Placement::new(node("here-1"), &homes, &regions, pace, (1, 2));
        let api = Api::new(ApiConfig {
            handle: handle.clone(),
            rules: Arc::new(regions.rules().clone()),
            regions: Arc::new(regions),
            cluster: CLUSTER.into(),
            node: node("here-1"),
            region: region("here"),
            endpoint: "http://here.example:7000".into(),
            metrics: String::new(),
            traffic: Arc::new(Traffic::new(peers.iter().map(|peer| peer.node))),
            peers,
            engine: "memory",
            durable: false,
            insecure: false,
            version: "0.1.0".into(),
            watches: 5,
            watch_buffer_bytes,
            telemetry,
            directory: Directory::alone(handle.clone()),
            placement,
            away: Away::new(node("here-1"), CLUSTER, b"secret", &[]),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = api.routes();
        tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            Server::builder()
                .http2_max_header_list_size(64 << 10)
                .add_routes(routes)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let client = StateServiceClient::new(channel.clone()).max_decoding_message_size(8 << 20);
        Self { driver: Some(driver), handle, api, channel, client }
    }

    async fn put(&self, scope: &str, key: &str, content: &str) -> v1::PutResponse {
        let request = put_request(scope, key, register(content));
        self.client.clone().put(request).await.unwrap().into_inner()
    }

    async fn put_json(&self, key: &str, json: &str) -> v1::PutResponse {
        let request = put_request("shop/carts", key, document(json));
        self.client.clone().put(request).await.unwrap().into_inner()
    }

    async fn get(&self, scope: &str, key: &str) -> v1::GetResponse {
        let request = v1::GetRequest { scope: scope.into(), key: key.into(), token: Bytes::new() };
        self.client.clone().get(request).await.unwrap().into_inner()
    }

    async fn json(&self, key: &str) -> String {
        match value(self.get("shop/carts", key).await) {
            v1::value::Value::Json(json) => String::from_utf8(json.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Everything stored of keys and changes.
    fn state(&self) -> Vec<(Bytes, Bytes)> {
        let snapshot = self.handle.published().snapshot.clone();
        let rows = [Space::Values, Space::Edits, Space::Log, Space::Shards]
            .into_iter()
            .flat_map(|space| snapshot.scan(space, &[], &[0xff; 600]).collect::<Vec<_>>());
        rows.map(|row| row.unwrap()).collect()
    }
}

fn register(content: &str) -> v1::value::Value {
    let content = Bytes::copy_from_slice(content.as_bytes());
    v1::value::Value::Register(v1::Register { content, content_type: "text/plain".into() })
}

fn document(json: &str) -> v1::value::Value {
    v1::value::Value::Json(Bytes::copy_from_slice(json.as_bytes()))
}

fn put_request(scope: &str, key: &str, value: v1::value::Value) -> v1::PutRequest {
    v1::PutRequest {
        scope: scope.into(),
        key: key.into(),
        value: Some(v1::Value { value: Some(value) }),
        ..v1::PutRequest::default()
    }
}

fn value(response: v1::GetResponse) -> v1::value::Value {
    response.entry.unwrap().value.unwrap().value.unwrap()
}

fn content(entry: &v1::Entry) -> String {
    match entry.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(v1::value::Value::Register(register)) => String::from_utf8(register.content.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn expiry(when: v1::expiry::When) -> Option<v1::Expiry> {
    Some(v1::Expiry { when: Some(when) })
}

/// A call that ends by itself after this many milliseconds, whoever calls.
fn within<T>(ms: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Deadline::after(Duration::from_millis(ms)));
    request
}

fn problem(status: &Status) -> Problem {
    Problem::from_status(status).unwrap_or_else(|| panic!("no details: {status:?}"))
}
