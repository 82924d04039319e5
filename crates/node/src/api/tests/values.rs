//! Single keys and bulk calls.

use bytes::Bytes;
use tonic::Code;
use tropism_wire::Reason;
use tropism_wire::error::VERSION;
use tropism_wire::v1::cluster_service_server::ClusterService;
use tropism_wire::v1::scope_service_server::ScopeService;
use tropism_wire::v1::state_service_server::StateService;
use tropism_wire::v1::{self, expiry::When, put_request::Precondition};

use super::{
    World, content, document, expiry, foreign_origin, problem, put_request, register, seal, shard, value,
    within,
};

#[tokio::test]
async fn a_register_is_read_back_with_its_type_version_stamp_and_who_answered() {
    let world = World::new().await;
    let put = world.put("cache/pages", "home", "hello").await;
    let result = put.result.unwrap();
    let response = world.get("cache/pages", "home").await;
    let (entry, answer) = (response.entry.unwrap(), response.answer.unwrap());
    assert_eq!((content(&entry).as_str(), entry.key.as_str()), ("hello", ""));
    assert_eq!((entry.version, entry.stamp), (result.version, result.stamp));
    assert_eq!((answer.region.as_str(), answer.node.as_str()), ("here", "here-1"));
    assert_eq!(answer.staleness_ms, u64::MAX, "the other region was never heard");
    assert_eq!(answer.token, put.answer.unwrap().token, "both have seen the same change");
    assert!(world.get("cache/pages", "other").await.entry.is_none());
}

#[tokio::test]
async fn a_deleted_key_is_gone_and_deleting_it_again_is_no_error() {
    let world = World::new().await;
    world.put("cache/pages", "home", "hello").await;
    let delete = v1::DeleteRequest { scope: "cache/pages".into(), key: "home".into(), ..Default::default() };
    let mut client = world.client.clone();
    assert!(client.delete(delete.clone()).await.unwrap().into_inner().was_visible);
    assert!(world.get("cache/pages", "home").await.entry.is_none());
    assert!(!client.delete(delete).await.unwrap().into_inner().was_visible);
}

#[tokio::test]
async fn counters_add_up_also_many_times_in_one_call() {
    let world = World::new().await;
    let mut client = world.client.clone();
    let increment = v1::IncrementRequest {
        scope: "stats/visits".into(),
        key: "home".into(),
        by: 5,
        ..Default::default()
    };
    assert_eq!(client.increment(increment).await.unwrap().into_inner().value, 5);
    let item = |key: &str, by| v1::BatchIncrementItem { key: key.into(), by, expiry: None };
    let items = vec![item("home", -2), item("", 1), item("other", 0), item("home", 10)];
    let request = v1::BatchIncrementRequest { scope: "stats/visits".into(), items, options: None };
    let response = client.batch_increment(request).await.unwrap().into_inner();
    assert_eq!(response.values, [3, 0, 0, 13]);
    let failure = response.results[1].failure.clone().unwrap();
    assert_eq!((failure.reason.as_str(), failure.field.as_str()), ("BAD_KEY", "key"));
    assert_eq!(value(world.get("stats/visits", "home").await), v1::value::Value::Counter(13));
}

#[tokio::test]
async fn documents_are_put_patched_and_merged_at_a_base_version() {
    let world = World::new().await;
    let first = world.put_json("alice", r#"{ "note": "hi", "items": [{"sku":"tea","n":2}] }"#).await;
    assert_eq!(world.json("alice").await, r#"{"items":[{"n":2,"sku":"tea"}],"note":"hi"}"#);
    let operation = |path: &str, action| v1::PatchOperation { path: path.into(), action: Some(action) };
    use v1::patch_operation::Action;
    let operations = vec![
        operation("/items/0/n", Action::Increment(1)),
        operation("/note", Action::Set(Bytes::from_static(b"\"hello\""))),
        operation("/items", Action::Append(Bytes::from_static(b"{\"sku\":\"jam\"}"))),
    ];
    let patch = |patch| v1::PatchRequest {
        scope: "shop/carts".into(),
        key: "alice".into(),
        patch: Some(patch),
        ..Default::default()
    };
    use v1::patch_request::Patch;
    let mut client = world.client.clone();
    client.patch(patch(Patch::Operations(v1::PatchOperations { operations }))).await.unwrap();
    assert_eq!(world.json("alice").await, r#"{"items":[{"n":3,"sku":"tea"},{"sku":"jam"}],"note":"hello"}"#);
    client.patch(patch(Patch::MergePatch(Bytes::from_static(b"{\"note\":null,\"a\":1}")))).await.unwrap();
    let json_patch = Bytes::from_static(br#"[{"op":"remove","path":"/items/1"}]"#);
    client.patch(patch(Patch::JsonPatch(json_patch))).await.unwrap();
    assert_eq!(world.json("alice").await, r#"{"a":1,"items":[{"n":3,"sku":"tea"}]}"#);
    let old =
        put_request("shop/carts", "alice", document(r#"{"b":2,"items":[{"n":2,"sku":"tea"}],"note":"hi"}"#));
    client.put(v1::PutRequest { base_version: first.result.unwrap().version, ..old }).await.unwrap();
    assert_eq!(world.json("alice").await, r#"{"a":1,"b":2,"items":[{"n":3,"sku":"tea"}]}"#);
}

#[tokio::test]
async fn preconditions_hold_or_name_the_current_version() {
    let world = World::new().await;
    let mut client = world.client.clone();
    let put = |precondition| v1::PutRequest {
        precondition: Some(precondition),
        ..put_request("cache/pages", "home", register("x"))
    };
    let version =
        client.put(put(Precondition::IfAbsent(true))).await.unwrap().into_inner().result.unwrap().version;
    let status = client.put(put(Precondition::IfAbsent(true))).await.unwrap_err();
    assert_eq!((status.code(), problem(&status).reason()), (Code::FailedPrecondition, Reason::KeyExists));
    client.put(put(Precondition::IfAbsent(false))).await.unwrap();
    let status = client.put(put(Precondition::IfVersion(version.clone()))).await.unwrap_err();
    assert_eq!((status.code(), problem(&status).reason()), (Code::Aborted, Reason::VersionMismatch));
    let current = problem(&status).fact_bytes(VERSION).unwrap();
    assert_ne!(current, version);
    client.put(put(Precondition::IfVersion(current.into()))).await.unwrap();
}

#[tokio::test]
async fn a_token_of_what_is_there_is_read_after_and_what_it_names_elsewhere_is_waited_for_and_named() {
    let world = World::new().await;
    let token = world.put("cache/pages", "home", "hello").await.answer.unwrap().token;
    let get = |token: &Bytes| v1::GetRequest {
        scope: "cache/pages".into(),
        key: "home".into(),
        token: token.clone(),
    };
    let response = world.client.clone().get(get(&token)).await.unwrap().into_inner();
    assert_eq!(response.answer.unwrap().token, token);

    let mut ahead = seal().read(&token).unwrap();
    let home = *ahead.iter().next().unwrap().0;
    ahead.add(home, foreign_origin(), 3);
    let before = world.state();
    let status = world.api.get(within(30, get(&seal().token(&ahead)))).await.unwrap_err();
    let refused = problem(&status);
    assert_eq!((status.code(), refused.reason()), (Code::Unavailable, Reason::TokenAhead));
    assert_eq!((refused.fact("nodes"), refused.fact("regions")), (Some("there-1"), Some("there")));
    assert!(refused.retry_delay().is_some());
    let options = Some(v1::WriteOptions { token: seal().token(&ahead), ..Default::default() });
    let put = v1::PutRequest { options, ..put_request("cache/pages", "home", register("new")) };
    let status = world.api.put(within(30, put)).await.unwrap_err();
    assert_eq!(problem(&status).reason(), Reason::TokenAhead);
    assert_eq!(world.state(), before);
}

#[tokio::test]
async fn an_answer_covers_the_token_that_was_sent_and_a_write_stands_for_all_of_its_shard() {
    let world = World::new().await;
    let one = world.put("cache/pages", "home", "1").await.answer.unwrap().token;
    let options = Some(v1::WriteOptions { token: one.clone(), ..Default::default() });
    let put = v1::PutRequest { options, ..put_request("brief/notes", "a", register("2")) };
    let both = world.client.clone().put(put).await.unwrap().into_inner().answer.unwrap().token;
    let (one, both) = (seal().read(&one).unwrap(), seal().read(&both).unwrap());
    assert_eq!((one.iter().count(), both.iter().count()), (1, 2));
    assert!(one.iter().all(|(shard, vector)| both.get(shard) == Some(vector)));
    assert_eq!(both.get(&shard("brief/notes", 0)).unwrap().iter().next().unwrap().1, 1);
}

#[tokio::test]
async fn an_expiry_is_set_kept_cleared_and_taken_from_the_policy() {
    let world = World::new().await;
    let mut client = world.client.clone();
    let put = |scope: &str, when: Option<When>| v1::PutRequest {
        expiry: when.and_then(expiry),
        ..put_request(scope, "k", register("x"))
    };
    let expires = async |scope: &str| world.get(scope, "k").await.entry.map(|entry| entry.expires_at_ms);
    client.put(put("cache/pages", Some(When::TtlMs(60_000)))).await.unwrap();
    assert!(expires("cache/pages").await.unwrap() > 0);
    client.put(put("cache/pages", None)).await.unwrap();
    assert_eq!(expires("cache/pages").await, Some(0), "a put without expiry clears it");
    client.put(put("brief/notes", None)).await.unwrap();
    assert!(expires("brief/notes").await.unwrap() > 0, "the policy's");
    client.put(put("brief/notes", Some(When::Never(true)))).await.unwrap();
    assert_eq!(expires("brief/notes").await, Some(0));

    let expire = |when| v1::ExpireRequest {
        scope: "cache/pages".into(),
        key: "k".into(),
        expiry: expiry(when),
        ..Default::default()
    };
    let response = client.expire(expire(When::TtlMs(60_000))).await.unwrap().into_inner();
    assert_eq!(Some(response.expires_at_ms), expires("cache/pages").await);
    assert_eq!(client.expire(expire(When::Never(true))).await.unwrap().into_inner().expires_at_ms, 0);
    client.expire(expire(When::TtlMs(1))).await.unwrap();
    while expires("cache/pages").await.is_some() {}
    let status = client.expire(expire(When::TtlMs(1))).await.unwrap_err();
    assert_eq!((status.code(), problem(&status).reason()), (Code::NotFound, Reason::KeyNotFound));

    let increment = |when: Option<When>| v1::IncrementRequest {
        scope: "stats/visits".into(),
        key: "k".into(),
        by: 1,
        expiry: when.and_then(expiry),
        options: None,
    };
    client.increment(increment(Some(When::TtlMs(60_000)))).await.unwrap();
    client.increment(increment(None)).await.unwrap();
    assert!(expires("stats/visits").await.unwrap() > 0, "an edit keeps what there is");
    client.increment(increment(Some(When::Never(true)))).await.unwrap();
    assert_eq!(expires("stats/visits").await, Some(0));
}

#[tokio::test]
async fn bulk_items_succeed_and_fail_alone_and_are_read_in_the_order_asked_for() {
    let world = World::new().await;
    let item = |key: &str, value| v1::BatchPutItem {
        key: key.into(),
        value: Some(v1::Value { value: Some(value) }),
        ..Default::default()
    };
    let mut items: Vec<_> = (0..100).map(|n| item(&format!("k{n:03}"), register(&n.to_string()))).collect();
    items[7] = item("k007", document("{}"));
    let request = v1::BatchPutRequest { scope: "cache/pages".into(), items, options: None };
    let response = world.client.clone().batch_put(request).await.unwrap().into_inner();
    let failed: Vec<_> = response.results.iter().map(|result| result.failure.as_ref()).collect();
    assert_eq!(failed.iter().flatten().count(), 1);
    assert_eq!(failed[7].unwrap().reason, "KIND_MISMATCH");
    assert!(response.results.iter().zip(&failed).all(|(r, f)| f.is_some() || !r.version.is_empty()));

    let keys: Vec<String> = (0..100).rev().map(|n| format!("k{n:03}")).collect();
    let token = response.answer.unwrap().token;
    let request = v1::BatchGetRequest { scope: "cache/pages".into(), keys, token };
    let response = world.client.clone().batch_get(request).await.unwrap().into_inner();
    let found: Vec<&str> = response.entries.iter().map(|entry| entry.key.as_str()).collect();
    let expected: Vec<String> = (0..100).rev().filter(|n| *n != 7).map(|n| format!("k{n:03}")).collect();
    assert_eq!(found, expected);
    assert!(response.left.is_empty());
}

#[tokio::test]
async fn a_bulk_read_that_is_full_names_the_keys_left() {
    let world = World::new().await;
    let large = "x".repeat(1 << 20);
    let keys: Vec<String> = (0..6).map(|n| n.to_string()).collect();
    for key in &keys {
        world.put("cache/pages", key, &large).await;
    }
    let request = v1::BatchGetRequest { scope: "cache/pages".into(), keys, token: Bytes::new() };
    let response = world.client.clone().batch_get(request).await.unwrap().into_inner();
    assert_eq!(response.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["0", "1", "2"]);
    assert_eq!(response.left, ["3", "4", "5"]);
}

#[tokio::test]
async fn a_write_that_other_regions_do_not_confirm_in_time_has_an_unknown_outcome_and_says_who_has_it() {
    let world = World::new().await;
    let durability = Some(v1::Durability { level: v1::DurabilityLevel::Regions.into(), regions: 2 });
    let options = Some(v1::WriteOptions { durability, ..Default::default() });
    let put = v1::PutRequest { options, ..put_request("cache/pages", "home", register("x")) };
    let status = world.api.put(within(60, put)).await.unwrap_err();
    assert_eq!(problem(&status).reason(), Reason::OutcomeUnknown);
    assert!(status.message().ends_with("; outcome unknown"), "{}", status.message());
    assert!(world.get("cache/pages", "home").await.entry.is_some());
}

#[tokio::test]
async fn a_base_version_that_has_not_arrived_is_waited_for_and_then_refused() {
    let world = World::new().await;
    let version = world.put_json("alice", r#"{"a":1}"#).await.result.unwrap().version;
    let mut unknown = version.to_vec();
    *unknown.last_mut().unwrap() ^= 1;
    let before = world.state();
    let put =
        v1::PutRequest { base_version: unknown.into(), ..put_request("shop/carts", "alice", document("{}")) };
    let status = world.api.put(within(60, put)).await.unwrap_err();
    assert_eq!((status.code(), problem(&status).reason()), (Code::FailedPrecondition, Reason::UnknownBase));
    assert_eq!(world.state(), before);
}

#[tokio::test]
async fn stamps_rise_and_are_the_nodes_own() {
    let world = World::new().await;
    let draw = |count| v1::StampRequest { scope: "shop/carts".into(), count, token: Bytes::new() };
    let first = world.client.clone().stamp(draw(0)).await.unwrap().into_inner();
    let more = world.client.clone().stamp(draw(1000)).await.unwrap().into_inner();
    assert_eq!((first.stamps.len(), more.stamps.len()), (1, 1000));
    assert!(first.stamps.iter().chain(&more.stamps).is_sorted_by(|a, b| a < b));
    assert!(first.origin.contains("here-1"));
}

#[tokio::test]
async fn a_node_tells_how_it_is_and_where_the_others_are() {
    let world = World::new().await;
    world.put("cache/pages", "home", "x").await;
    let status =
        world.api.get_status(tonic::Request::new(v1::GetStatusRequest {})).await.unwrap().into_inner();
    let (node, store) = (status.node.unwrap(), status.store.unwrap());
    assert_eq!((node.id.as_str(), node.state()), ("here-1", v1::NodeState::Serving));
    assert_eq!((store.engine.as_str(), store.durable), ("memory", false));
    let link = &status.links[0];
    assert_eq!((link.peer.as_str(), link.state(), link.backlog_changes), ("there-1", v1::LinkState::Down, 1));
    let warnings: Vec<&str> = status.warnings.iter().map(|warning| warning.name.as_str()).collect();
    assert!(warnings.contains(&"not_durable") && warnings.contains(&"link_down"), "{warnings:?}");
    assert!(status.queues.iter().all(|queue| queue.length <= queue.limit && !queue.when_full.is_empty()));

    let regions =
        world.api.list_regions(tonic::Request::new(v1::ListRegionsRequest {})).await.unwrap().into_inner();
    assert_eq!(regions.here, "here");
    assert_eq!(regions.regions[0].nodes, ["here-1"]);
    assert_eq!(regions.regions[1].round_trips[0].configured_ms, 10.0);
    let nodes = async |region: &str| {
        let request = tonic::Request::new(v1::ListNodesRequest { region: region.into() });
        world.api.list_nodes(request).await.map(|response| response.into_inner().nodes)
    };
    let all = nodes("").await.unwrap();
    assert_eq!(all.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["here-1", "there-1"]);
    assert!(all[0].this_node && !all[1].linked);
    assert_eq!(all[1].endpoint, "http://there.example:7000");
    assert_eq!(nodes("there").await.unwrap().len(), 1);
    assert_eq!(problem(&nodes("nowhere").await.unwrap_err()).reason(), Reason::RegionNotFound);
}

#[tokio::test]
async fn scopes_are_shown_by_rule_counted_and_listed_in_pages() {
    let world = World::new().await;
    let get = async |name: &str| {
        let request = tonic::Request::new(v1::GetScopeRequest { name: name.into() });
        world.api.get_scope(request).await.map(|response| response.into_inner().scope.unwrap())
    };
    let scope = get("cache/pages").await.unwrap();
    assert_eq!((scope.kind(), scope.spread, scope.rule.as_str()), (v1::Kind::Register, 3, "cache"));
    assert!(scope.implied && scope.usage.is_none());
    for name in ["cache/pages", "cache/pages/deep", "cache/pages-2", "brief/notes", "cache/a"] {
        world.put(name, "k", "x").await;
    }
    world.put("cache/pages", "other", "x").await;
    let delete = v1::DeleteRequest { scope: "cache/pages".into(), key: "k".into(), ..Default::default() };
    world.client.clone().delete(delete).await.unwrap();
    let usage = get("cache/pages").await.unwrap().usage.unwrap();
    assert_eq!((usage.visible_keys, usage.stubs, usage.parked_keys), (1, 1, 0));
    assert_eq!(problem(&get("none/such").await.unwrap_err()).reason(), Reason::ScopeNotFound);

    let list = async |prefix: &str, page_token| {
        let request = v1::ListScopesRequest { prefix: prefix.into(), page_size: 2, page_token };
        world.api.list_scopes(tonic::Request::new(request)).await.unwrap().into_inner()
    };
    let names = |page: &v1::ListScopesResponse| -> Vec<String> {
        page.scopes.iter().map(|scope| scope.name.clone()).collect()
    };
    let first = list("cache", Bytes::new()).await;
    assert_eq!(names(&first), ["cache/a", "cache/pages"]);
    let second = list("cache", first.next_page_token).await;
    assert_eq!(names(&second), ["cache/pages/deep", "cache/pages-2"]);
    assert!(second.next_page_token.is_empty());
    assert_eq!(names(&list("cache/pages", Bytes::new()).await), ["cache/pages", "cache/pages/deep"]);
}
