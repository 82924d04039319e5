//! What a node says of itself.

use std::time::Duration;

use tropism_crdt::NodeId;
use tropism_storage::{MemoryEngine, Store};
use tropism_wire::Reason;
use tropism_wire::v1::cluster_service_client::ClusterServiceClient;
use tropism_wire::v1::{self, expiry::When};

use super::{World, document, expiry, problem, put_request, register};

async fn status(world: &World) -> v1::GetStatusResponse {
    let mut client = ClusterServiceClient::new(world.channel.clone());
    client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner()
}

/// The status when something holds of it.
pub(super) async fn status_when(
    world: &World,
    holds: impl Fn(&v1::GetStatusResponse) -> bool,
) -> v1::GetStatusResponse {
    for _ in 0..400 {
        let status = status(world).await;
        if holds(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {:?}", status(world).await)
}

#[tokio::test]
async fn keys_log_bytes_caches_and_backlogs_are_what_they_are() {
    let world = World::new().await;
    for key in ["a", "b", "c"] {
        world.put("cache/pages", key, "0123456789").await;
    }
    let mut brief = put_request("brief/notes", "gone", register("v"));
    brief.expiry = expiry(When::AtMs(crate::driver::wall_ms() + 100));
    let mut client = world.client.clone();
    client.put(brief).await.unwrap();
    client.put(put_request("shop/carts", "d", document("{}"))).await.unwrap();
    let request = v1::DeleteRequest { scope: "cache/pages".into(), key: "c".into(), ..Default::default() };
    client.delete(request).await.unwrap();
    let status = status_when(&world, |status| {
        status.store.as_ref().is_some_and(|store| store.expired_keys == 1 && store.bytes > 1_000)
            && status.links[0].backlog_changes == 6
    })
    .await;
    let store = status.store.unwrap();
    assert_eq!((store.visible_keys, store.expired_keys, store.deleted_keys), (3, 1, 1));
    assert_eq!((store.stubs, store.parked_keys, store.swept), (0, 0, true));
    assert_eq!(store.log_changes, 6, "nothing is trimmed while the peer was never heard");
    let link = &status.links[0];
    assert_eq!(link.backlog_bytes, store.log_bytes, "all of it");
    assert!(store.log_bytes > 6 * 50, "{store:?}");
    let names: Vec<&str> = status.caches.iter().map(|cache| cache.name.as_str()).collect();
    assert_eq!(
        names,
        ["documents", "vectors", "recent changes", "values"],
        "the memory engine has no blocks"
    );
    let documents = &status.caches[0];
    assert_eq!((documents.entries, documents.misses, documents.limit_bytes), (1, 1, 56 << 20));
    assert!(documents.bytes > 0 && status.caches[1].entries >= 3 && status.caches[2].bytes > store.log_bytes);
    assert!(status.clock.is_some_and(|clock| clock.reserved_until > clock.stamp));
    assert!(status.degraded_scopes.is_empty() && status.long_histories.is_empty());
}

#[tokio::test]
async fn a_full_queue_is_counted() {
    let world = World::over(Store::open(Box::new(MemoryEngine::new())).unwrap(), 1 << 20).await;
    let watch = || async {
        let request = v1::WatchRequest { scope: "cache/pages".into(), ..Default::default() };
        world.client.clone().watch(request).await
    };
    let mut watches = Vec::new();
    for _ in 0..5 {
        watches.push(watch().await.unwrap());
    }
    assert!(watch().await.is_err());
    let status = status(&world).await;
    let queue = status.queues.iter().find(|queue| queue.name == "watches").unwrap();
    assert_eq!((queue.length, queue.limit, queue.times_full), (5, 5, 1));
}

#[tokio::test]
async fn a_refused_link_is_shown_with_its_reason() {
    let world = World::new().await;
    let before = status(&world).await;
    assert_eq!(before.links[0].state(), v1::LinkState::Down);
    let line = world.api.traffic.line(&NodeId::new("there-1").unwrap()).unwrap();
    assert!(line.refuse("other rules", 5) && !line.refuse("other rules", 6), "only the first is news");
    let after = status(&world).await;
    let link = &after.links[0];
    assert_eq!((link.state(), link.state_since_ms), (v1::LinkState::Refused, 5));
    assert_eq!(link.problem, "other rules");
    let warnings: Vec<&str> = after.warnings.iter().map(|warning| warning.name.as_str()).collect();
    assert_eq!(warnings, ["link_refused", "not_durable"]);
    assert!(line.refuse("something else", 7));
}

#[tokio::test]
async fn what_clients_did_is_counted() {
    let world = World::new().await;
    world.put("cache/pages", "a", "1").await;
    world.put("cache/pages", "b", "2").await;
    world.get("cache/pages", "a").await;
    let refused = put_request("far/away", "a", register("1"));
    world.client.clone().put(refused).await.unwrap_err();
    let calls = status_when(&world, |status| status.calls.is_some_and(|calls| calls.failed > 0)).await.calls;
    assert_eq!(calls, Some(v1::CallCounts { writes: 2, reads: 1, failed: 1 }));
}

#[tokio::test]
async fn what_cannot_be_logged_or_sampled_is_refused_and_an_empty_request_asks() {
    let world = World::new().await;
    let set = |request| {
        let mut client = ClusterServiceClient::new(world.channel.clone());
        async move { client.set_telemetry(request).await.map(tonic::Response::into_inner) }
    };
    let ask = v1::SetTelemetryRequest::default();
    let told = set(ask.clone()).await.unwrap();
    assert_eq!((&*told.node, &*told.region, told.exports, told.sampling_ppm), ("here-1", "here", false, 0));
    for (request, reason, field) in [
        (
            v1::SetTelemetryRequest { sampling_ppm: Some(1_000_001), ..ask.clone() },
            Reason::BadNumber,
            "sampling_ppm",
        ),
        (
            v1::SetTelemetryRequest { log: Some("no=such=filter".into()), ..ask.clone() },
            Reason::BadLogFilter,
            "log",
        ),
        (v1::SetTelemetryRequest { log: Some(String::new()), ..ask.clone() }, Reason::BadLogFilter, "log"),
        (v1::SetTelemetryRequest { log: Some("a,".repeat(600)), ..ask.clone() }, Reason::BadLogFilter, "log"),
        // The tests' log is not the node's.
        (v1::SetTelemetryRequest { log: Some("debug".into()), ..ask.clone() }, Reason::BadLogFilter, "log"),
        (v1::SetTelemetryRequest { node: "there-1".into(), ..ask.clone() }, Reason::WrongNode, "node"),
    ] {
        let refused = problem(&set(request.clone()).await.unwrap_err());
        assert_eq!((refused.reason(), refused.field()), (reason, Some(field)), "{request:?}");
        assert!(refused.message().len() <= 400, "{}", refused.message());
    }
    let sampled = v1::SetTelemetryRequest { sampling_ppm: Some(1_000_000), ..ask };
    assert_eq!(set(sampled).await.unwrap().sampling_ppm, 0, "without a collector nothing is sampled");
}
