//! Parked keys as an operator sees them.

use std::time::Duration;

use bytes::Bytes;
use tonic::Code;
use tropism_crdt::document::{Document, Paths};
use tropism_crdt::json::{JsonLimits, parse};
use tropism_crdt::{Body, Change, ExpiryChange, Register, Stamp};
use tropism_placement::{Kind, RegionName, ScopeId, ScopeName};
use tropism_replica::{Frame, FrameBody, Hello};
use tropism_storage::rows::Row;
use tropism_storage::{
    EditKey, KeptChange, MemoryEngine, ShardKey, ShardRow, Space, Standing, Store, ValueKey, ValueRow,
};
use tropism_wire::v1::cluster_service_client::ClusterServiceClient;
use tropism_wire::v1::parked_service_client::ParkedServiceClient;
use tropism_wire::{Reason, v1};

use super::{World, foreign_origin, problem, shard};

type Client = ParkedServiceClient<tonic::transport::Channel>;

fn client(world: &World) -> Client {
    ParkedServiceClient::new(world.channel.clone())
}

/// A change by the peer.
pub(super) fn change(scope: &str, key: &str, seq: u64, body: Body) -> Change {
    Change {
        scope: scope.into(),
        scope_incarnation: 0,
        shard_index: (0..3).find(|index| of_key(scope, key) == shard(scope, *index)).unwrap_or(0),
        origin: foreign_origin(),
        seq,
        deps: Vec::new(),
        stamp: Stamp::new(crate::driver::wall_ms(), 1),
        key: key.into(),
        life: 0,
        generation: 0,
        epoch: 1,
        request_id: None,
        trace: None,
        expiry: ExpiryChange::Keep,
        body,
    }
}

fn of_key(scope: &str, key: &str) -> tropism_placement::ShardId {
    let spread = if scope.starts_with("cache") { 3 } else { 1 };
    shard(scope, tropism_placement::shard_index(key, spread))
}

pub(super) fn raw(json: &str) -> Bytes {
    let mut made = Document::empty(&foreign_origin().to_bytes());
    let json = parse(json.as_bytes(), &JsonLimits::default()).unwrap();
    made.replace(&json, None, &Paths::default(), 0).unwrap().unwrap().into()
}

/// The peer's link stands and brings these changes.
pub(super) async fn receive(world: &World, changes: &[Change]) {
    let peer = foreign_origin().node;
    let hello = Hello {
        node: peer,
        region: RegionName::new("there").unwrap(),
        origin: foreign_origin(),
        store_id: 9,
        head: Default::default(),
        saw_you: None,
        replaced: false,
    };
    let (frames, _kept) = tokio::sync::mpsc::channel(1_000);
    world.handle.link_up(hello, 1, frames);
    let body = FrameBody::Changes(changes.iter().map(Change::encode).collect());
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    world.handle.frame(peer, 1, Frame { round: 0, number: 1, body }, &places).await;
    world.handle.stamps(1).await.unwrap(); // a turn later it is applied and published
}

fn list() -> v1::ListParkedRequest {
    v1::ListParkedRequest::default()
}

/// All pages.
async fn listed(world: &World, request: v1::ListParkedRequest) -> Vec<(String, String)> {
    let (mut found, mut request) = (Vec::new(), request);
    loop {
        let page = client(world).list_parked(request.clone()).await.unwrap().into_inner();
        assert_eq!((page.node.as_str(), page.region.as_str()), ("here-1", "here"));
        assert!(page.keys.len() <= request.page_size.max(1) as usize || request.page_size == 0);
        found.extend(page.keys.into_iter().map(|key| (key.scope, key.key)));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return found;
        }
    }
}

fn retry(scope: &str, key: &str) -> v1::RetryParkedRequest {
    v1::RetryParkedRequest { scope: scope.into(), key: key.into(), ..Default::default() }
}

fn get(scope: &str, key: &str) -> v1::GetParkedRequest {
    v1::GetParkedRequest { scope: scope.into(), key: key.into(), ..Default::default() }
}

fn drop_it(scope: &str, key: &str) -> v1::DropParkedRequest {
    v1::DropParkedRequest { node: "here-1".into(), scope: scope.into(), key: key.into(), confirm: true }
}

#[tokio::test]
async fn a_parked_key_is_listed_shown_tried_again_and_given_up() {
    let world = World::new().await;
    world.put_json("k", r#"{"a":1}"#).await;
    let damaged = Body::Document { change: Bytes::from_static(b"not automerge") };
    let sound = Body::Document { change: raw(r#"{"good":1}"#) };
    receive(&world, &[change("shop/carts", "k", 1, damaged), change("shop/carts", "k", 2, sound)]).await;

    let read = v1::GetRequest { scope: "shop/carts".into(), key: "k".into(), token: Bytes::new() };
    let refused = world.client.clone().get(read.clone()).await.unwrap_err();
    assert_eq!((refused.code(), problem(&refused).reason()), (Code::DataLoss, Reason::KeyParked));
    assert_eq!(listed(&world, list()).await, [("shop/carts".to_owned(), "k".to_owned())]);
    let shown = client(&world).get_parked(get("shop/carts", "k")).await.unwrap().into_inner();
    let parked = shown.parked.unwrap();
    assert_eq!((parked.state(), parked.life), (v1::ParkedState::ChangesRefused, Some(0)));
    assert!(parked.reason.contains("malformed") && parked.kept_bytes > 100, "{parked:?}");
    assert!(crate::driver::wall_ms() - parked.since_ms < 60_000, "{parked:?}");
    assert_eq!((parked.kept_changes, shown.changes.len(), shown.node.as_str()), (2, 2, "here-1"));
    assert_eq!(shown.changes[0].origin, foreign_origin().to_string());
    assert_eq!(shown.changes.iter().map(|change| change.seq).collect::<Vec<_>>(), [1, 2]);
    assert!(shown.changes[0].problem.contains("malformed") && shown.changes[1].problem.is_empty());

    let tried = client(&world).retry_parked(retry("shop/carts", "k")).await.unwrap().into_inner();
    assert_eq!((tried.applied_changes, tried.failed_changes), (1, 1));
    assert!(tried.complete && !tried.served && tried.node == "here-1", "{tried:?}");
    assert_eq!(tried.left.unwrap().kept_changes, 1);

    for (request, reason, field) in [
        (
            v1::DropParkedRequest { confirm: false, ..drop_it("shop/carts", "k") },
            Reason::MissingField,
            "confirm",
        ),
        (
            v1::DropParkedRequest { node: String::new(), ..drop_it("shop/carts", "k") },
            Reason::MissingField,
            "node",
        ),
        (
            v1::DropParkedRequest { node: "there-1".into(), ..drop_it("shop/carts", "k") },
            Reason::WrongNode,
            "node",
        ),
    ] {
        let refused = client(&world).drop_parked(request).await.unwrap_err();
        let problem = problem(&refused);
        assert_eq!((problem.reason(), problem.field()), (reason, Some(field)), "{refused:?}");
    }
    assert!(world.client.clone().get(read).await.is_err(), "nothing was dropped");
    let gone = client(&world).drop_parked(drop_it("shop/carts", "k")).await.unwrap().into_inner();
    assert_eq!((gone.dropped_changes, gone.changes.len(), gone.changes[0].seq), (1, 1, 1));
    assert!(gone.complete && !gone.row_removed && gone.dropped_bytes == gone.changes[0].bytes);
    assert_eq!(world.json("k").await, r#"{"a":1,"good":1}"#);
    assert_eq!(listed(&world, v1::ListParkedRequest { every_key: true, ..list() }).await, []);

    for _ in 0..400 {
        let mut cluster = ClusterServiceClient::new(world.channel.clone());
        let status = cluster.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
        let dropped = status.warnings.iter().find(|warning| warning.name == "changes_dropped");
        if let Some(warning) = dropped {
            assert!(warning.message.contains("1 changes, 1 times") && warning.message.contains("shop/carts"));
            assert!(!status.warnings.iter().any(|warning| warning.name == "keys_parked"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("status never says that something was dropped");
}

#[tokio::test]
async fn keys_that_are_not_parked_and_calls_that_make_no_sense_are_refused() {
    let world = World::new().await;
    world.put_json("k", "{}").await;
    let mut client = client(&world);
    let mut outcomes = Vec::new();
    for (scope, key, code, reason, field) in [
        ("shop/carts", "k", Code::FailedPrecondition, Reason::NotParked, "key"),
        ("shop/carts", "none", Code::NotFound, Reason::KeyNotFound, "key"),
        ("shop/carts", "", Code::InvalidArgument, Reason::BadKey, "key"),
        ("A", "k", Code::InvalidArgument, Reason::BadScope, "scope"),
        ("nowhere", "k", Code::FailedPrecondition, Reason::NoRule, "scope"),
    ] {
        for outcome in [
            client.get_parked(get(scope, key)).await.map(drop),
            client.retry_parked(retry(scope, key)).await.map(drop),
            client.drop_parked(drop_it(scope, key)).await.map(drop),
        ] {
            outcomes.push((outcome.unwrap_err(), code, reason, field));
        }
    }
    for (request, reason, field) in [
        (v1::ListParkedRequest { page_size: 1001, ..list() }, Reason::BadNumber, "page_size"),
        (v1::ListParkedRequest { page_token: "x".into(), ..list() }, Reason::BadPageToken, "page_token"),
        (v1::ListParkedRequest { scope: "A".into(), ..list() }, Reason::BadScope, "scope"),
    ] {
        outcomes.push((client.list_parked(request).await.unwrap_err(), Code::InvalidArgument, reason, field));
    }
    let other = v1::ListParkedRequest { node: "there-1".into(), ..list() };
    let refused = client.list_parked(other).await.unwrap_err();
    outcomes.push((refused, Code::FailedPrecondition, Reason::WrongNode, "node"));
    for (status, code, reason, field) in outcomes {
        let problem = problem(&status);
        assert_eq!(
            (status.code(), problem.reason(), problem.field()),
            (code, reason, Some(field)),
            "{status:?}"
        );
    }
}

/// A store with a sound key in scope stats/s, and these keys whose rows rotted.
fn rotten(keys: &[(&str, &str)]) -> Store {
    let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
    for (scope, key) in keys.iter().copied().chain([("stats/s", "sound")]) {
        let id = of_key(scope, key);
        let index = (0..3).find(|index| shard(scope, *index) == id).unwrap();
        let kind = if scope.starts_with("cache") { Kind::Register } else { Kind::Counter };
        let scope_id = ScopeId { name: ScopeName::new(scope).unwrap(), incarnation: 0 };
        let row = ShardRow { scope: scope_id, index, kind };
        store.put_row(Space::Shards, ShardKey::Description(id).encode(), &row);
        let mut value = ValueRow::default();
        value.cell.written = Some((Stamp::new(1, 1), foreign_origin()));
        store.put_value(ValueKey { shard: id, key }.encode(), Standing::Absent, &value);
        if scope != "stats/s" {
            let mut bytes = value.encode().to_vec();
            bytes[2] ^= 0x10;
            store.put(Space::Values, ValueKey { shard: id, key }.encode(), bytes.into());
        }
    }
    store.commit(0).unwrap();
    store
}

#[tokio::test]
async fn pages_name_every_parked_key_once_by_scope_whether_shards_are_known_or_not() {
    let names: Vec<String> = (0..25).map(|n| format!("k{n:02}")).collect();
    let keys: Vec<(&str, &str)> = names
        .iter()
        .map(|key| ("cache/pages", key.as_str()))
        .chain([("cache/a", "x"), ("cache/z", "y")])
        .collect();
    let world = World::over(rotten(&keys), 1 << 20).await;
    let mut sorted: Vec<(String, String)> = keys.iter().map(|(s, k)| ((*s).into(), (*k).into())).collect();
    sorted.sort();
    for every_key in [true, false] {
        for _ in 0..400 {
            let request = v1::ListParkedRequest { every_key, ..list() };
            if client(&world).list_parked(request).await.unwrap().into_inner().known_shards_only != every_key
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await; // the sweep has yet to come round
        }
        for page_size in [0, 1, 4, 1000] {
            let found = listed(&world, v1::ListParkedRequest { every_key, page_size, ..list() }).await;
            let scopes: Vec<&String> = found.iter().map(|(scope, _)| scope).collect();
            assert!(scopes.is_sorted(), "{scopes:?}");
            let mut found = found;
            found.sort();
            assert_eq!(found, sorted, "pages of {page_size}, every key: {every_key}");
        }
        let one = v1::ListParkedRequest { scope: "cache/z".into(), every_key, ..list() };
        assert_eq!(listed(&world, one).await, [("cache/z".to_owned(), "y".to_owned())]);
        let none = v1::ListParkedRequest { scope: "stats/s".into(), every_key, ..list() };
        assert_eq!(listed(&world, none).await, []);
    }
    let refused = client(&world).retry_parked(retry("cache/a", "x")).await.unwrap_err();
    assert_eq!((refused.code(), problem(&refused).reason()), (Code::FailedPrecondition, Reason::RowDamaged));
    assert!(refused.message().contains("here-1") && refused.message().contains("can be read again"));
    let gone = client(&world).drop_parked(drop_it("cache/a", "x")).await.unwrap().into_inner();
    assert!(gone.row_removed && gone.complete && gone.dropped_changes == 0, "{gone:?}");
    world.put("cache/a", "x", "anew").await;
    assert_eq!(listed(&world, list()).await.len(), 26);
}

#[tokio::test]
async fn a_key_that_is_served_without_changes_that_are_kept_is_found_and_mended() {
    let mut store = rotten(&[]);
    let (scope, key) = ("cache/pages", "k");
    let id = of_key(scope, key);
    let body = Body::Register { content_type: "text/plain".into(), bytes: Bytes::from_static(b"kept") };
    let kept = change(scope, key, 1, body);
    let scope_id = ScopeId { name: ScopeName::new(scope).unwrap(), incarnation: 0 };
    let row = ShardRow { scope: scope_id, index: kept.shard_index, kind: Kind::Register };
    store.put_row(Space::Shards, ShardKey::Description(id).encode(), &row);
    let mut value = ValueRow::default();
    value.cell.written = Some((Stamp::new(1, 1), foreign_origin()));
    value.cell.content = tropism_crdt::Content::Register(Register {
        content_type: "text/plain".into(),
        bytes: Bytes::from_static(b"old"),
    });
    store.put_value(ValueKey { shard: id, key }.encode(), Standing::Absent, &value);
    store.put_edit(
        &EditKey { shard: id, key, life: EditKey::ROW_LOST, part: 0 },
        &KeptChange::encode(5, &kept),
    );
    store.commit(0).unwrap();
    let world = World::over(store, 1 << 20).await;
    let every = v1::ListParkedRequest { every_key: true, ..list() };
    let page = client(&world).list_parked(every).await.unwrap().into_inner();
    let states: Vec<v1::ParkedState> = page.keys.iter().map(v1::ParkedKey::state).collect();
    assert_eq!(states, [v1::ParkedState::LeftOver]);
    assert_eq!((page.keys[0].since_ms, page.keys[0].reason.as_str()), (5, ""));
    let tried = client(&world).retry_parked(retry(scope, key)).await.unwrap().into_inner();
    assert!(tried.served && tried.left.is_none() && tried.applied_changes == 1, "{tried:?}");
    assert_eq!(super::content(&world.get(scope, key).await.entry.unwrap()), "kept");
}
