//! The past of keys as clients see it, and what merges hid.

use bytes::Bytes;
use tonic::{Code, Status};
use tropism_crdt::{Body, Change, Origin, Stamp};
use tropism_wire::v1::get_at_request::At;
use tropism_wire::v1::history_service_client::HistoryServiceClient;
use tropism_wire::v1::{conflict_value::Value, patch_operation::Action, patch_request::Patch};
use tropism_wire::{Reason, v1};

use super::parked::{change, raw, receive};
use super::{World, document, problem, put_request, register};
use crate::driver::wall_ms;

fn client(world: &World) -> HistoryServiceClient<tonic::transport::Channel> {
    HistoryServiceClient::new(world.channel.clone())
}

fn ask(scope: &str, key: &str) -> v1::GetHistoryRequest {
    v1::GetHistoryRequest { scope: scope.into(), key: key.into(), ..Default::default() }
}

async fn history(world: &World, request: v1::GetHistoryRequest) -> Result<v1::GetHistoryResponse, Status> {
    client(world).get_history(request).await.map(tonic::Response::into_inner)
}

async fn get_at(world: &World, scope: &str, key: &str, at: Option<At>) -> Result<v1::GetAtResponse, Status> {
    let request = v1::GetAtRequest { scope: scope.into(), key: key.into(), token: Bytes::new(), at };
    client(world).get_at(request).await.map(tonic::Response::into_inner)
}

async fn json_at(world: &World, version: &Bytes) -> String {
    let found = get_at(world, "shop/carts", "k", Some(At::Version(version.clone()))).await.unwrap();
    shown(&found.entry.unwrap())
}

fn shown(entry: &v1::Entry) -> String {
    match entry.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(v1::value::Value::Json(json)) => String::from_utf8(json.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// All pages.
async fn conflicts(world: &World, scope: &str, page_size: u32) -> Vec<v1::Conflict> {
    let mut request = v1::ListConflictsRequest { scope: scope.into(), page_size, ..Default::default() };
    let mut found = Vec::new();
    loop {
        let page = client(world).list_conflicts(request.clone()).await.unwrap().into_inner();
        assert_eq!((page.unreadable_keys, page.forgotten_keys, page.crowded_keys), (0, 0, 0));
        found.extend(page.conflicts);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return found;
        }
    }
}

fn refused(outcome: Result<impl std::fmt::Debug, Status>) -> (Code, Reason, String) {
    let status = outcome.unwrap_err();
    let problem = problem(&status);
    (status.code(), problem.reason(), problem.field().unwrap_or_default().to_owned())
}

/// A register's change by the peer, stamped `ahead_ms` later than now.
fn written(key: &str, seq: u64, text: &'static str, ahead_ms: i64, deps: &[(Origin, u64)]) -> Change {
    let body =
        Body::Register { content_type: "text/plain".into(), bytes: Bytes::from_static(text.as_bytes()) };
    let stamp = Stamp::new(wall_ms().saturating_add_signed(ahead_ms), 1);
    Change { stamp, deps: deps.to_vec(), ..change("brief/notes", key, seq, body) }
}

fn register_of(value: &Option<v1::ConflictValue>) -> String {
    match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::Register(register)) => String::from_utf8(register.content.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_history_of_a_document_comes_in_pages_and_each_change_is_a_version() {
    let world = World::new().await;
    for n in 0..5 {
        world.put_json("k", &format!("{{\"n\":{n}}}")).await;
    }
    let (mut changes, mut request) =
        (Vec::new(), v1::GetHistoryRequest { page_size: 2, ..ask("shop/carts", "k") });
    loop {
        let page = history(&world, request.clone()).await.unwrap();
        assert_eq!((page.total_changes, page.visible, page.life), (5, true, 0));
        assert!(page.changes.len() <= 2 && page.history_bytes > 0 && page.last_stamp > 0);
        changes.extend(page.changes);
        if page.next_page_token.is_empty() {
            break;
        }
        // What is written meanwhile does not shift the pages.
        request.page_token = page.next_page_token;
    }
    let versions: Vec<Bytes> = changes.iter().map(|change| change.version.clone()).collect();
    for (n, change) in (0..5).rev().zip(&changes) {
        assert_eq!((&*change.node, &*change.region), ("here-1", "here"));
        assert_eq!(change.newest, n == 4);
        assert!(change.bytes > 0 && change.operations == 1 && change.time_ms <= wall_ms());
        assert_eq!(json_at(&world, &change.version).await, format!("{{\"n\":{n}}}"));
        let before: Vec<Bytes> = versions.get(5 - n).cloned().into_iter().collect();
        assert_eq!(change.on, before);
    }
    // A version of the history is good as a base: the put merges with what came since.
    let base = v1::PutRequest {
        base_version: changes[4].version.clone(),
        ..put_request("shop/carts", "k", document(r#"{"n":0,"late":true}"#))
    };
    world.client.clone().put(base).await.unwrap();
    assert_eq!(world.json("k").await, r#"{"late":true,"n":4}"#);
}

#[tokio::test]
async fn a_document_is_told_as_it_was_at_a_time_and_no_further_back_than_its_life() {
    let world = World::new().await;
    world.put_json("k", r#"{"n":0}"#).await;
    let at = |ms| Some(At::TimeMs(ms));
    let now = get_at(&world, "shop/carts", "k", at(wall_ms())).await.unwrap();
    assert_eq!(shown(&now.entry.unwrap()), r#"{"n":0}"#);
    assert_eq!(get_at(&world, "shop/carts", "k", at(1_000)).await.unwrap().entry, None, "not yet");
    assert_eq!(get_at(&world, "shop/carts", "none", at(1_000)).await.unwrap().entry, None);

    let version = history(&world, ask("shop/carts", "k")).await.unwrap().changes[0].version.clone();
    let delete = v1::DeleteRequest { scope: "shop/carts".into(), key: "k".into(), ..Default::default() };
    world.client.clone().delete(delete).await.unwrap();
    let gone = history(&world, ask("shop/carts", "k")).await.unwrap();
    assert!(!gone.visible && gone.deleted_stamp > 0 && gone.changes.len() == 1, "{gone:?}");
    assert_eq!(json_at(&world, &version).await, r#"{"n":0}"#, "kept until all regions have seen the delete");

    assert_eq!(get_at(&world, "shop/carts", "k", at(wall_ms())).await.unwrap().entry, None, "deleted");

    // A write apart, stamped after the delete it had not seen: the key is there again, in the same life.
    let late = Body::Document { change: raw(r#"{"late":1}"#) };
    receive(&world, &[Change { stamp: Stamp::new(wall_ms() + 50, 0), ..change("shop/carts", "k", 1, late) }])
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    let again = get_at(&world, "shop/carts", "k", at(wall_ms())).await.unwrap();
    assert_eq!(shown(&again.entry.unwrap()), r#"{"late":1,"n":0}"#);
    let delete = v1::DeleteRequest { scope: "shop/carts".into(), key: "k".into(), ..Default::default() };
    world.client.clone().delete(delete).await.unwrap();

    world.put_json("k", r#"{"n":1}"#).await;
    let anew = history(&world, ask("shop/carts", "k")).await.unwrap();
    assert_eq!((anew.life, anew.changes.len()), (1, 1));
    let earlier = |field: &str| (Code::FailedPrecondition, Reason::EarlierLife, field.to_owned());
    let outcome = get_at(&world, "shop/carts", "k", Some(At::Version(version))).await;
    assert_eq!(refused(outcome), earlier("version"));
    assert_eq!(refused(get_at(&world, "shop/carts", "k", at(1_000)).await), earlier("time_ms"));
}

#[tokio::test]
async fn what_cannot_be_told_is_refused_in_words() {
    let world = World::new().await;
    world.put_json("k", r#"{"n":0}"#).await;
    world.put("brief/notes", "k", "text").await;
    let invalid = |reason, field: &str| (Code::InvalidArgument, reason, field.to_owned());
    let unmet = |reason, field: &str| (Code::FailedPrecondition, reason, field.to_owned());
    let version = |bytes: &[u8]| Some(At::Version(Bytes::copy_from_slice(bytes)));
    let unknown = [&[0, 1][..], &[9; 32]].concat();
    let later = [&[1, 1][..], &[9; 32]].concat();
    for (at, expected) in [
        (None, invalid(Reason::MissingField, "at")),
        (version(b""), invalid(Reason::BadVersion, "version")),
        (version(b"\0"), invalid(Reason::BadVersion, "version")),
        (version(b"\0\x01cut off"), invalid(Reason::BadVersion, "version")),
        (version(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), invalid(Reason::BadVersion, "version")),
        (version(&unknown), unmet(Reason::UnknownBase, "version")),
        (version(&later), unmet(Reason::UnknownBase, "version")),
        (Some(At::TimeMs(u64::MAX)), invalid(Reason::BadNumber, "time_ms")),
    ] {
        assert_eq!(refused(get_at(&world, "shop/carts", "k", at.clone()).await), expected, "{at:?}");
    }
    assert_eq!(
        refused(get_at(&world, "shop/carts", "none", version(&unknown)).await),
        unmet(Reason::UnknownBase, "version")
    );
    assert_eq!(
        refused(get_at(&world, "brief/notes", "k", Some(At::TimeMs(1))).await),
        unmet(Reason::NoHistory, "at")
    );
    assert_eq!(
        refused(history(&world, ask("shop/carts", "none")).await),
        (Code::NotFound, Reason::KeyNotFound, "key".to_owned())
    );
    let many = v1::GetHistoryRequest { page_size: 1_001, ..ask("shop/carts", "k") };
    assert_eq!(refused(history(&world, many).await), invalid(Reason::BadNumber, "page_size"));
    let page = v1::GetHistoryRequest { page_size: 1, ..ask("shop/carts", "k") };
    world.put_json("k", r#"{"n":1}"#).await;
    let page_token = history(&world, page).await.unwrap().next_page_token;
    assert!(!page_token.is_empty());
    let other = v1::GetHistoryRequest { page_token: page_token.clone(), ..ask("shop/carts", "other") };
    assert_eq!(refused(history(&world, other).await), invalid(Reason::BadPageToken, "page_token"));
    let list = v1::ListConflictsRequest { scope: "shop/carts".into(), page_token, ..Default::default() };
    let outcome = client(&world).list_conflicts(list).await;
    assert_eq!(refused(outcome), invalid(Reason::BadPageToken, "page_token"));
    let list = v1::ListConflictsRequest { scope: "far/away".into(), ..Default::default() };
    let outcome = client(&world).list_conflicts(list).await;
    assert_eq!(refused(outcome).1, Reason::NotServedHere, "nothing is told of a scope that lives elsewhere");
}

#[tokio::test]
async fn registers_and_counters_tell_their_last_write_and_who_added_what() {
    let world = World::new().await;
    let done = world.put("brief/notes", "k", "text").await.result.unwrap();
    let told = history(&world, ask("brief/notes", "k")).await.unwrap();
    let [last] = &told.changes[..] else { panic!("{told:?}") };
    assert_eq!((last.stamp, last.bytes, &*last.region), (done.stamp, 4, "here"));
    let same = get_at(&world, "brief/notes", "k", Some(At::Version(last.version.clone()))).await.unwrap();
    assert_eq!(super::content(&same.entry.unwrap()), "text");

    for by in [3, 4] {
        let request =
            v1::IncrementRequest { scope: "stats/visits".into(), key: "k".into(), by, ..Default::default() };
        world.client.clone().increment(request).await.unwrap();
    }
    receive(&world, &[change("stats/visits", "k", 1, Body::Counter { total: 10, floors: Vec::new() })]).await;
    let told = history(&world, ask("stats/visits", "k")).await.unwrap();
    let shares: Vec<(&str, &str)> = told.shares.iter().map(|share| (&*share.region, &*share.added)).collect();
    assert_eq!(shares, [("here", "7"), ("there", "10")]);
}

#[tokio::test]
async fn a_value_that_a_merge_hid_is_listed_and_taken_by_one_write() {
    let world = World::new().await;
    for key in ["a", "k", "z"] {
        world.put_json(key, r#"{"note":"ours","same":1}"#).await;
    }
    let theirs = Body::Document { change: raw(r#"{"note":"theirs","same":1}"#) };
    receive(&world, &[change("shop/carts", "k", 1, theirs.clone()), change("shop/carts", "z", 2, theirs)])
        .await;

    let counted = super::status::status_when(&world, |status| status.disputed_places > 0).await;
    assert_eq!(counted.disputed_places, 4, "counted where they arose, those with equal values too");

    let found = conflicts(&world, "shop/carts", 1).await;
    assert_eq!(found, conflicts(&world, "shop/carts", 0).await, "by pages as at once");
    let [conflict, other] = &found[..] else { panic!("{found:?}") };
    assert_ne!(conflict.id, other.id);
    assert_eq!(
        (&*conflict.key, &*conflict.path, conflict.rule()),
        ("k", "/note", v1::ConflictRule::Operation)
    );
    let (shown, hidden) = (conflict.shown.clone().unwrap(), conflict.hidden.clone().unwrap());
    // Both numbered their operations alike, so the greater author's is shown.
    let values = [(&shown, "there"), (&hidden, "here")].map(|(value, region)| {
        assert_eq!((&*value.region, value.bytes > 0), (region, true), "{value:?}");
        value.value.clone()
    });
    let json = |text: &'static str| Some(Value::Json(Bytes::from_static(text.as_bytes())));
    assert_eq!(values, [json("\"theirs\""), json("\"ours\"")]);

    // Only as long as nothing else was written is it what was listed.
    let place = |action| v1::PatchOperation { path: conflict.path.clone(), action: Some(action) };
    let set = Action::Set(Bytes::from_static(b"\"ours\""));
    let take = v1::PatchRequest {
        scope: "shop/carts".into(),
        key: "k".into(),
        patch: Some(Patch::Operations(v1::PatchOperations {
            operations: vec![place(Action::Remove(true)), place(set)],
        })),
        if_version: conflict.version.clone(),
        ..Default::default()
    };
    world.client.clone().patch(take.clone()).await.unwrap();
    assert_eq!(world.json("k").await, r#"{"note":"ours","same":1}"#);
    let left = conflicts(&world, "shop/carts", 0).await;
    assert_eq!(left.iter().map(|conflict| &*conflict.key).collect::<Vec<_>>(), ["z"]);
    assert_eq!(refused(world.client.clone().patch(take).await).1, Reason::VersionMismatch);
    let one = v1::ListConflictsRequest { scope: "shop/carts".into(), key: "z".into(), ..Default::default() };
    let one = client(&world).list_conflicts(one).await.unwrap().into_inner();
    assert_eq!((one.keys, one.conflicts), (1, left));
}

#[tokio::test]
async fn a_register_that_lost_without_having_been_seen_is_listed_whoever_lost() {
    let world = World::new().await;
    let ours = world.put("brief/notes", "later", "ours").await.result.unwrap();
    world.put("brief/notes", "earlier", "ours").await;
    world.put("brief/notes", "seen", "ours").await;
    world.put("brief/notes", "before", "ours").await;
    let here = world.handle.published().status.origin;
    receive(
        &world,
        &[
            written("later", 1, "theirs", 400, &[]),
            written("earlier", 2, "theirs", -60_000, &[]),
            written("other", 3, "theirs", 399, &[(here, 3)]), // as any change that has seen one: stamped after it
            written("seen", 4, "theirs", 401, &[]),           // seen before its author wrote the key before
            written("before", 5, "theirs", 402, &[(here, 4)]),
        ],
    )
    .await;
    let found = conflicts(&world, "brief/notes", 0).await;
    let told: Vec<(&str, String, String)> = found
        .iter()
        .map(|found| (&*found.key, register_of(&found.shown), register_of(&found.hidden)))
        .collect();
    let of = |key, shown: &str, hidden: &str| (key, shown.to_owned(), hidden.to_owned());
    assert_eq!(told, [of("earlier", "ours", "theirs"), of("later", "theirs", "ours")]);
    assert_eq!(found[1].hidden.as_ref().unwrap().stamp, ours.stamp, "exact");
    assert!(found.iter().all(|found| found.rule() == v1::ConflictRule::Stamp && found.path.is_empty()));

    let take = v1::PutRequest {
        precondition: Some(v1::put_request::Precondition::IfVersion(found[1].version.clone())),
        ..put_request("brief/notes", "later", register("ours"))
    };
    world.client.clone().put(take).await.unwrap();
    assert_eq!(super::content(&world.get("brief/notes", "later").await.entry.unwrap()), "ours");
    assert_eq!(conflicts(&world, "brief/notes", 0).await.len(), 1, "the write had seen both");
}

#[tokio::test]
async fn a_node_reads_few_histories_at_once_and_says_so() {
    let world = World::new().await;
    world.put_json("k", r#"{"n":0}"#).await;
    let permits: Vec<_> = (0..super::super::history::CONCURRENT_HISTORIES)
        .map(|_| world.api.history_permit().unwrap())
        .collect();
    let busy = (Code::ResourceExhausted, Reason::Overloaded, String::new());
    assert_eq!(refused(history(&world, ask("shop/carts", "k")).await), busy);
    let list = v1::ListConflictsRequest { scope: "shop/carts".into(), ..Default::default() };
    assert_eq!(refused(client(&world).list_conflicts(list).await), busy);
    drop(permits);
    assert_eq!(history(&world, ask("shop/carts", "k")).await.unwrap().changes.len(), 1);
}
