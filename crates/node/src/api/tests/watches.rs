//! Watches.

use std::time::Duration;

use bytes::Bytes;
use tonic::{Code, Streaming};
use tropism_crdt::cell::{Content, Register};
use tropism_crdt::{Cell, Stamp};
use tropism_placement::{Kind, ScopeId, ScopeName};
use tropism_storage::{
    MemoryEngine, ShardKey, ShardRow, Space, Standing, Store, ValueKey, ValueRow, VectorRow,
};
use tropism_wire::Reason;
use tropism_wire::error::RESUME_TOKEN;
use tropism_wire::v1::{self, WatchEventType as Type, expiry::When, watch_request::Target};

use super::{World, content, expiry, foreign_origin, problem, put_request, register, seal, shard};

async fn watch(world: &World, request: v1::WatchRequest) -> Streaming<v1::WatchResponse> {
    let scope = if request.scope.is_empty() { "cache/pages".into() } else { request.scope };
    world.client.clone().watch(v1::WatchRequest { scope, ..request }).await.unwrap().into_inner()
}

/// The next message with events.
async fn next(stream: &mut Streaming<v1::WatchResponse>) -> v1::WatchResponse {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), stream.message());
        let message = message.await.expect("an event comes").unwrap().expect("the watch goes on");
        if !message.events.is_empty() {
            return message;
        }
    }
}

/// Type and key of events until one of this type, and the token behind it.
async fn until(stream: &mut Streaming<v1::WatchResponse>, last: Type) -> (Vec<(Type, String)>, Bytes) {
    let mut seen = Vec::new();
    loop {
        let message = next(stream).await;
        seen.extend(message.events.iter().map(|event| (event.r#type(), key(event))));
        if seen.iter().any(|(kind, _)| *kind == last) {
            return (seen, message.resume_token);
        }
    }
}

fn key(event: &v1::WatchEvent) -> String {
    event.entry.as_ref().map_or(String::new(), |entry| entry.key.clone())
}

fn event(kind: Type, key: &str) -> (Type, String) {
    (kind, key.to_owned())
}

/// The first message of a watch from now on: from there nothing is missed.
async fn begun(stream: &mut Streaming<v1::WatchResponse>) -> Bytes {
    let message = stream.message().await.unwrap().unwrap();
    assert!(message.events.is_empty() && !message.resume_token.is_empty());
    message.resume_token
}

async fn delete(world: &World, key: &str) {
    let request = v1::DeleteRequest { scope: "cache/pages".into(), key: key.into(), ..Default::default() };
    world.client.clone().delete(request).await.unwrap();
}

#[tokio::test]
async fn changes_come_as_they_are_made_with_who_made_them() {
    let world = World::new().await;
    let mut stream = watch(&world, v1::WatchRequest::default()).await;
    begun(&mut stream).await;
    world.put("cache/pages", "a", "1").await;
    let message = next(&mut stream).await;
    let put = &message.events[0];
    assert_eq!((put.r#type(), key(put).as_str()), (Type::Put, "a"));
    assert_eq!(content(put.entry.as_ref().unwrap()), "1");
    assert_eq!((put.region.as_str(), put.node.as_str()), ("here", "here-1"));
    delete(&world, "a").await;
    let message = next(&mut stream).await;
    assert_eq!(message.events[0].r#type(), Type::Delete);
    assert!(message.events[0].entry.as_ref().unwrap().value.is_none());
}

#[tokio::test]
async fn a_watch_of_a_key_or_a_prefix_is_told_of_no_other_key() {
    let world = World::new().await;
    let target = |target| v1::WatchRequest { target: Some(target), ..Default::default() };
    let mut key = watch(&world, target(Target::Key("ab".into()))).await;
    let mut prefix = watch(&world, target(Target::Prefix("ab".into()))).await;
    begun(&mut key).await;
    begun(&mut prefix).await;
    for name in ["a", "abc", "b", "ab"] {
        world.put("cache/pages", name, "x").await;
    }
    assert_eq!(until(&mut key, Type::Put).await.0, [event(Type::Put, "ab")]);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(until(&mut prefix, Type::Put).await.0);
    }
    assert_eq!(seen, [event(Type::Put, "abc"), event(Type::Put, "ab")]);
}

#[tokio::test]
async fn initial_values_come_first_then_current_then_changes() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.put("cache/pages", name, "x").await;
    }
    delete(&world, "b").await;
    let mut stream = watch(&world, v1::WatchRequest { initial_values: true, ..Default::default() }).await;
    let (seen, _) = until(&mut stream, Type::Current).await;
    assert_eq!(seen, [event(Type::Value, "a"), event(Type::Value, "c"), event(Type::Current, "")]);
    world.put("cache/pages", "d", "x").await;
    assert_eq!(until(&mut stream, Type::Put).await.0, [event(Type::Put, "d")]);
}

#[tokio::test]
async fn a_resumed_watch_tells_exactly_what_was_missed() {
    let world = World::new().await;
    let mut stream = watch(&world, v1::WatchRequest::default()).await;
    begun(&mut stream).await;
    world.put("cache/pages", "a", "1").await;
    let (_, resume_token) = until(&mut stream, Type::Put).await;
    drop(stream);
    for (name, text) in [("b", "1"), ("c", "1"), ("b", "2")] {
        world.put("cache/pages", name, text).await;
    }
    delete(&world, "a").await;
    let resumed = v1::WatchRequest { resume_token: resume_token.clone(), ..Default::default() };
    let mut stream = watch(&world, resumed).await;
    let (seen, after) = until(&mut stream, Type::Current).await;
    let expected =
        [event(Type::Put, "c"), event(Type::Put, "b"), event(Type::Delete, "a"), event(Type::Current, "")];
    assert_eq!(seen, expected, "by stamp, one event per key");
    let mut stream = watch(&world, v1::WatchRequest { resume_token: after, ..Default::default() }).await;
    assert_eq!(until(&mut stream, Type::Current).await.0, [event(Type::Current, "")]);
}

#[tokio::test]
async fn a_watch_that_began_on_nothing_resumes_without_a_gap() {
    let world = World::new().await;
    let mut stream = watch(&world, v1::WatchRequest::default()).await;
    let resume_token = begun(&mut stream).await;
    drop(stream);
    world.put("cache/pages", "a", "1").await;
    let mut stream = watch(&world, v1::WatchRequest { resume_token, ..Default::default() }).await;
    assert_eq!(until(&mut stream, Type::Current).await.0, [event(Type::Put, "a"), event(Type::Current, "")]);
}

#[tokio::test]
async fn thousands_of_missed_changes_come_in_bounded_messages_and_the_tokens_between_are_good() {
    let world = World::new().await;
    let mut stream = watch(&world, v1::WatchRequest::default()).await;
    let resume_token = begun(&mut stream).await;
    for start in [0, 1000, 2000] {
        let items = (start..start + 1000).map(|n| v1::BatchPutItem {
            key: format!("k{n:05}"),
            value: Some(v1::Value { value: Some(register("x")) }),
            ..Default::default()
        });
        let items = items.collect();
        let request = v1::BatchPutRequest { scope: "cache/pages".into(), items, options: None };
        world.client.clone().batch_put(request).await.unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut token = resume_token;
    // Every second message the watch breaks.
    'again: loop {
        let mut stream =
            watch(&world, v1::WatchRequest { resume_token: token.clone(), ..Default::default() }).await;
        for _ in 0..3 {
            let message = next(&mut stream).await;
            assert!(message.events.len() <= 500);
            token = message.resume_token;
            if message.events.iter().any(|event| event.r#type() == Type::Current) {
                break 'again;
            }
            seen.extend(message.events.iter().map(key));
        }
    }
    assert_eq!(seen.len(), 3000);
}

/// A store with one key of a foreign origin that made five changes, of which the log has none any more.
fn trimmed() -> Store {
    let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
    let scope = ScopeId { name: ScopeName::new("brief/notes").unwrap(), incarnation: 0 };
    let row = ShardRow { scope, index: 0, kind: Kind::Register };
    let id = row.id();
    store.put_row(Space::Shards, ShardKey::Description(id).encode(), &row);
    let vector: tropism_crdt::Vector = [(foreign_origin(), 5)].into_iter().collect();
    let vector = VectorRow { vector, digest: None };
    store.put_row(Space::Shards, ShardKey::Vector(id).encode(), &vector);
    let content =
        Content::Register(Register { content_type: String::new(), bytes: Bytes::from_static(b"v") });
    let cell = Cell { written: Some((Stamp::new(5, 0), foreign_origin())), content, ..Cell::default() };
    let name = ValueKey { shard: id, key: "k" }.encode();
    let row = ValueRow { commit: 1, last: vec![(foreign_origin(), 5)], cell, ..Default::default() };
    store.put_value(name, Standing::Absent, &row);
    store.commit(0).unwrap();
    store
}

#[tokio::test]
async fn where_the_log_does_not_reach_back_the_watch_resets_and_sends_the_values() {
    let world = World::over(trimmed(), 1 << 20).await;
    let mut old = tropism_replica::Token::default();
    old.add(shard("brief/notes", 0), foreign_origin(), 2);
    let resume_token = seal().of(&["watch", "brief/notes", "prefix", ""]).token(&old);
    let request =
        |resume_token| v1::WatchRequest { scope: "brief/notes".into(), resume_token, ..Default::default() };
    let mut stream = watch(&world, request(resume_token.clone())).await;
    let (seen, after) = until(&mut stream, Type::Current).await;
    assert_eq!(seen, [event(Type::Reset, ""), event(Type::Value, "k"), event(Type::Current, "")]);
    let mut stream = watch(&world, request(after)).await;
    assert_eq!(until(&mut stream, Type::Current).await.0, [event(Type::Current, "")]);
    world.put("brief/notes", "k", "w").await;
    let put = next(&mut stream).await;
    assert_eq!((put.events[0].r#type(), put.events[0].node.as_str()), (Type::Put, "here-1"));
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_and_told_where_to_go_on() {
    let world = World::over(Store::open(Box::new(MemoryEngine::new())).unwrap(), 1 << 20).await;
    let mut stream = watch(&world, v1::WatchRequest::default()).await;
    begun(&mut stream).await;
    // More than the connection's windows, the message under way and the queue hold.
    for n in 0..40 {
        world.put("cache/pages", &n.to_string(), &"x".repeat(512 << 10)).await;
    }
    let mut seen = 0;
    let status = loop {
        match stream.message().await {
            Ok(message) => seen += message.expect("the end is an error").events.len(),
            Err(status) => break status,
        }
    };
    let cut = problem(&status);
    assert_eq!((status.code(), cut.reason()), (Code::ResourceExhausted, Reason::SlowReader));
    let resume_token = Bytes::from(cut.fact_bytes(RESUME_TOKEN).unwrap());
    let mut stream = watch(&world, v1::WatchRequest { resume_token, ..Default::default() }).await;
    let (rest, _) = until(&mut stream, Type::Current).await;
    assert_eq!(seen + rest.len() - 1, 40, "nothing is missed and nothing comes twice");
}

#[tokio::test]
async fn a_key_that_was_shown_is_told_when_it_expires() {
    let world = World::new().await;
    let mut stream = watch(&world, v1::WatchRequest::default()).await;
    begun(&mut stream).await;
    let put = put_request("cache/pages", "a", register("1"));
    world.client.clone().put(v1::PutRequest { expiry: expiry(When::TtlMs(50)), ..put }).await.unwrap();
    let (seen, _) = until(&mut stream, Type::Expire).await;
    assert_eq!(seen.last(), Some(&event(Type::Expire, "a")));
}

#[tokio::test]
async fn watches_are_bounded_and_one_that_ends_makes_room() {
    let world = World::new().await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(watch(&world, v1::WatchRequest::default()).await);
    }
    let request = || v1::WatchRequest { scope: "cache/pages".into(), ..Default::default() };
    let status = world.client.clone().watch(request()).await.unwrap_err();
    assert_eq!((status.code(), problem(&status).reason()), (Code::ResourceExhausted, Reason::TooManyWatches));
    streams.clear();
    while world.client.clone().watch(request()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_watch_that_ends_with_the_node_names_the_last_message_that_was_sent() {
    let world = World::over(Store::open(Box::new(MemoryEngine::new())).unwrap(), 64 << 20).await;
    let mut stream = watch(&world, v1::WatchRequest::default()).await;
    begun(&mut stream).await;
    // More than the connection's windows and the messages under way hold: the rest waits in the queue.
    for n in 0..20 {
        world.put("cache/pages", &n.to_string(), &"x".repeat(512 << 10)).await;
    }
    world.api.stop();
    let mut seen = 0;
    let status = loop {
        match stream.message().await {
            Ok(message) => seen += message.expect("the end is an error").events.len(),
            Err(status) => break status,
        }
    };
    let ended = problem(&status);
    assert_eq!((status.code(), ended.reason()), (Code::Unavailable, Reason::NotReady));
    let seal = seal().of(&["watch", "cache/pages", "prefix", ""]);
    let token = seal.read(&ended.fact_bytes(RESUME_TOKEN).unwrap()).unwrap();
    let vectors = token.iter().flat_map(|(_, vector)| vector.risen_since(&tropism_crdt::Vector::EMPTY));
    let told: u64 = vectors.map(|(_, seq)| seq).sum();
    assert!(seen < 20, "the node does not wait for a reader that does not read");
    assert_eq!(told, seen as u64, "what was seen and nothing else");
}
