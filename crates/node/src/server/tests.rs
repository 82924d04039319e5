//! A whole node in this process, stopped while it is at work.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tropism_wire::error::RESUME_TOKEN;
use tropism_wire::v1::cluster_service_client::ClusterServiceClient;
use tropism_wire::v1::state_service_client::StateServiceClient;
use tropism_wire::{Problem, Reason};

use super::*;
use crate::config::NodeConfig;

mod directory;
mod metrics;
mod rebuild;
mod traces;

const REGIONS: &str = r#"
region = [{ name = "here", place = "Here" }, { name = "there", place = "There" }]
rtt = [{ between = ["here", "there"], ms = 10 }]
[[rule]]
name = "everything"
pattern = "**"
kind = "register"
"#;

/// A node whose only peer does not exist.
struct Served {
    channel: Channel,
    stop: watch::Sender<bool>,
    node: tokio::task::JoinHandle<Result<(), ServeError>>,
    _directory: tempfile::TempDir,
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Served {
    async fn new(stop_time: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        fs::write(path("regions.toml"), REGIONS).unwrap();
        fs::write(path("secret"), "0123456789abcdef").unwrap();
        fs::set_permissions(path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        let address = free_address();
        let config = format!(
            r#"
            node = {{ id = "here-1", region = "here", data_dir = "data" }}
            listen = {{ client = "{address}", peer = "{}" }}
            cluster = {{ id = "test", secret_file = "secret", regions_file = "regions.toml" }}
            peer = [{{ id = "there-1", region = "there", address = "127.0.0.1:1" }}]
            limits = {{ stop_time = "{stop_time}" }}
            "#,
            free_address()
        );
        fs::write(path("node.toml"), config).unwrap();
        let checked = NodeConfig::check(&path("node.toml")).unwrap();
        let (stop, stopped) = watch::channel(false);
        let node = tokio::task::spawn_blocking(move || {
            run(checked, Start { accept_loss: true, ..Start::default() }, stopped)
        });
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let served = Self { channel, stop, node, _directory: directory };
        while served.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        served
    }

    async fn health(&self) -> Result<ServingStatus, Status> {
        let asked = HealthClient::new(self.channel.clone()).check(HealthCheckRequest::default()).await?;
        let HealthCheckResponse { status } = asked.into_inner();
        Ok(ServingStatus::try_from(status).unwrap())
    }

    async fn status(&self) -> v1::GetStatusResponse {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner()
    }

    /// Puts a key with the durability of so many regions; the call may take so long.
    async fn put(&self, key: &str, regions: u32, time: Duration) -> Result<(), Status> {
        let register = v1::Register { content: Bytes::from_static(b"v"), content_type: String::new() };
        let durability = v1::Durability { level: v1::DurabilityLevel::Regions.into(), regions };
        let mut request = Request::new(v1::PutRequest {
            scope: "cache".into(),
            key: key.into(),
            value: Some(v1::Value { value: Some(v1::value::Value::Register(register)) }),
            options: Some(v1::WriteOptions { durability: Some(durability), ..Default::default() }),
            ..Default::default()
        });
        request.set_timeout(time);
        StateServiceClient::new(self.channel.clone()).put(request).await.map(|_| ())
    }

    /// Waits until a write waits for the other region.
    async fn until_one_waits(&self) {
        loop {
            let status = self.status().await;
            if status.queues.iter().any(|queue| queue.name.starts_with("writes waiting") && queue.length == 1)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn reason(status: &Status) -> Reason {
    Problem::from_status(status).unwrap_or_else(|| panic!("no details: {status:?}")).reason()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_running_calls_end_refuses_new_ones_and_ends_watches_with_their_tokens() {
    // The node answers 10 ms before its client's own timer ends the call, which a machine that is busy may not keep.
    for _ in 0..5 {
        if stopped_at_work().await {
            return;
        }
    }
    panic!("the running call was never answered before its client gave up");
}

/// Stops a node at work; says whether the call that ran had its answer before its client's own timer.
async fn stopped_at_work() -> bool {
    let served = Arc::new(Served::new("60s").await);
    let request = v1::WatchRequest { scope: "cache".into(), ..Default::default() };
    let mut watch =
        StateServiceClient::new(served.channel.clone()).watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    served.put("seen", 1, Duration::from_secs(10)).await.unwrap();
    let seen = watch.message().await.unwrap().unwrap();
    assert_eq!(seen.events.len(), 1);

    let caller = served.clone();
    let running = tokio::spawn(async move { caller.put("waits", 2, Duration::from_secs(3)).await });
    served.until_one_waits().await;
    served.stop.send(true).unwrap();
    // What the running write told is on its way or not; the token says which.
    let mut token = seen.resume_token;
    let ended = loop {
        match watch.message().await {
            Ok(message) => token = message.unwrap().resume_token,
            Err(status) => break status,
        }
    };
    let ended = (ended.code(), Problem::from_status(&ended).unwrap());
    assert_eq!((ended.0, ended.1.reason()), (Code::Unavailable, Reason::NotReady));
    assert_eq!(ended.1.fact_bytes(RESUME_TOKEN).unwrap(), token, "that of the last message");

    let refused = served.put("new", 1, Duration::from_secs(10)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, Reason::NotReady));
    while served.health().await.unwrap() != ServingStatus::NotServing {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(served.status().await.node.unwrap().state(), v1::NodeState::Stopping);

    let outcome = running.await.unwrap().unwrap_err();
    let answered = outcome.message() != "Timeout expired";
    if answered {
        assert_eq!(reason(&outcome), Reason::OutcomeUnknown, "it was answered, not cut off: {outcome:?}");
    }
    let Ok(served) = Arc::try_unwrap(served) else { panic!("nobody else holds it") };
    served.node.await.unwrap().unwrap();
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_longer_than_the_stop_is_cut_off() {
    let served = Arc::new(Served::new("0s").await);
    let caller = served.clone();
    let running = tokio::spawn(async move { caller.put("waits", 2, Duration::from_secs(60)).await });
    served.until_one_waits().await;
    served.stop.send(true).unwrap();
    let outcome = running.await.unwrap().unwrap_err();
    assert!(Problem::from_status(&outcome).is_none(), "the connection went: {outcome:?}");
    let Ok(served) = Arc::try_unwrap(served) else { panic!("nobody else holds it") };
    served.node.await.unwrap().unwrap();
}
