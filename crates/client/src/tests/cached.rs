//! Handles that remember, between scripted nodes.

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use v1::WatchEventType as Type;

use super::*;
use crate::{Cache, Scope};

const BYTES: usize = 1 << 20;

fn counter(sum: i64) -> v1::Value {
    v1::Value { value: Some(v1::value::Value::Counter(sum)) }
}

fn event(r#type: Type, key: &str, sum: i64, stamp: u64) -> v1::WatchEvent {
    let value = Some(counter(sum));
    let entry = v1::Entry { key: key.to_owned(), value, stamp, ..v1::Entry::default() };
    v1::WatchEvent { r#type: r#type.into(), entry: Some(entry), ..v1::WatchEvent::default() }
}

fn current() -> v1::WatchEvent {
    v1::WatchEvent { r#type: Type::Current.into(), ..v1::WatchEvent::default() }
}

fn message(events: Vec<v1::WatchEvent>) -> Result<v1::WatchResponse, Status> {
    Ok(v1::WatchResponse { events, resume_token: "t".into(), staleness_ms: 0 })
}

/// A scope that remembers what a watch tells, which the test sends.
async fn watched(
    answers: impl IntoIterator<Item = Answer>,
) -> (Node, Scope, mpsc::Sender<Result<v1::WatchResponse, Status>>) {
    let (tell, told) = mpsc::channel(8);
    let watch = Answer::Open(Box::pin(ReceiverStream::new(told).map(|message| message)));
    let (node, endpoint) = Node::start([watch].into_iter().chain(answers)).await;
    let scope = Scope::new(Calls::in_order(vec![endpoint]).unwrap(), "stats/visits");
    let scope = scope.with_cache(Cache::Watched, BYTES);
    while node.0.lock().unwrap().continued.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await; // the script is in order
    }
    (node, scope, tell)
}

/// Waits until what was told is taken in: reads of a key that the script never answers.
async fn until_known(scope: &Scope, key: &str, sum: i64) {
    for _ in 0..2_000 {
        if scope.cached_count(key) == Some(sum) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{key} is {:?}, not {sum}", scope.cached_count(key));
}

#[tokio::test]
async fn what_was_read_is_not_asked_for_again_until_it_is_written_here() {
    let (node, endpoint) =
        Node::start([Answer::Value(counter(1), "v"), Answer::Token(""), Answer::Value(counter(2), "v")])
            .await;
    let scope = Scope::new(Calls::in_order(vec![endpoint]).unwrap(), "stats/visits")
        .with_cache(Cache::For(Duration::from_secs(3600)), BYTES);
    for _ in 0..3 {
        assert_eq!(scope.count("k").await.unwrap(), 1);
    }
    scope.clone().put("k", &serde_json::json!({})).await.unwrap();
    assert_eq!(scope.count("k").await.unwrap(), 2);
    assert_eq!(node.0.lock().unwrap().answers.len(), 0);
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_what_changes_and_nothing_is_asked() {
    let (node, scope, tell) = watched([]).await;
    tell.send(message(vec![event(Type::Value, "k", 7, 1), current()])).await.unwrap();
    until_known(&scope, "k", 7).await;
    assert_eq!(scope.count("k").await.unwrap(), 7);
    tell.send(message(vec![event(Type::Put, "k", 8, 2)])).await.unwrap();
    until_known(&scope, "k", 8).await;
    assert_eq!(scope.count("k").await.unwrap(), 8);
    assert_eq!(node.calls(), 0);
}

#[tokio::test]
async fn a_key_that_was_written_or_deleted_is_asked_for() {
    let answers = [Answer::Token(""), Answer::Value(counter(9), "v"), Answer::Token("")];
    let (node, scope, tell) = watched(answers).await;
    let told = vec![event(Type::Value, "k", 7, 1), event(Type::Value, "l", 1, 1), current()];
    tell.send(message(told)).await.unwrap();
    until_known(&scope, "k", 7).await;
    scope.put("k", &serde_json::json!({})).await.unwrap();
    assert_eq!(scope.count("k").await.unwrap(), 9, "asked");
    tell.send(message(vec![event(Type::Delete, "l", 0, 2), event(Type::Put, "m", 5, 3)])).await.unwrap();
    until_known(&scope, "m", 5).await;
    assert_eq!(scope.count("l").await.unwrap(), 0, "asked");
    assert_eq!(node.0.lock().unwrap().answers.len(), 0);
}

#[tokio::test]
async fn nothing_is_believed_before_the_watch_has_told_everything_and_after_it_ended() {
    let (node, scope, tell) = watched([Answer::Value(counter(3), "v"), Answer::Value(counter(4), "v")]).await;
    tell.send(message(vec![event(Type::Value, "k", 7, 1)])).await.unwrap();
    while !scope.was_told("k") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(scope.count("k").await.unwrap(), 3);
    tell.send(message(vec![current()])).await.unwrap();
    until_known(&scope, "k", 7).await;
    let refused = Problem::invalid_argument(Reason::BadScope, "scope", "no").to_status();
    tell.send(Err(refused)).await.unwrap();
    for _ in 0..2_000 {
        if scope.cached_count("k").is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(scope.count("k").await.unwrap(), 4);
    assert_eq!(node.0.lock().unwrap().answers.len(), 0);
}
