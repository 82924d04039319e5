//! Applications' types in and out of scopes, by scripted nodes.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;
use crate::{Edit, Scope, Session};

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cart {
    items: Vec<String>,
}

fn document(json: &'static str) -> v1::Value {
    v1::Value { value: Some(v1::value::Value::Json(json.into())) }
}

fn register(content: &'static str, content_type: &str) -> v1::Value {
    let register = v1::Register { content: content.into(), content_type: content_type.to_owned() };
    v1::Value { value: Some(v1::value::Value::Register(register)) }
}

fn counter(sum: i64) -> v1::Value {
    v1::Value { value: Some(v1::value::Value::Counter(sum)) }
}

async fn scope(answers: impl IntoIterator<Item = Answer>) -> (Node, Scope) {
    let (node, endpoint) = Node::start(answers).await;
    (node, Scope::new(Calls::in_order(vec![endpoint]).unwrap(), "shop/carts"))
}

fn put(node: &Node, at: usize) -> v1::PutRequest {
    node.0.lock().unwrap().puts[at].clone()
}

#[tokio::test]
async fn values_of_every_kind_are_read_as_what_the_application_asks_for() {
    let (_node, scope) = scope([
        Answer::Value(document(r#"{"items":["tea"]}"#), "v"),
        Answer::Value(document(r#"{"items":["tea"]}"#), "v"),
        Answer::Value(counter(-7), "v"),
        Answer::Value(register("[1,2]", "application/json; charset=utf-8"), "v"),
        Answer::Value(register("hello", "text/plain"), "v"),
        Answer::Value(register("x", "image/png"), "v"),
        Answer::Token(""),
        Answer::Token(""),
    ])
    .await;
    assert_eq!(scope.get::<Cart>("k").await.unwrap(), Some(Cart { items: vec!["tea".to_owned()] }));
    assert_eq!(scope.get::<serde_json::Value>("k").await.unwrap(), Some(json!({"items": ["tea"]})));
    assert_eq!(scope.count("k").await.unwrap(), -7);
    assert_eq!(scope.get::<Vec<u8>>("k").await.unwrap(), Some(vec![1, 2]));
    assert_eq!(scope.get::<String>("k").await.unwrap().as_deref(), Some("hello"));
    assert_eq!(&scope.get_bytes("k").await.unwrap().unwrap().content[..], b"x");
    assert_eq!(scope.get::<Cart>("k").await.unwrap(), None);
    assert_eq!(scope.count("k").await.unwrap(), 0);
}

#[tokio::test]
async fn a_value_of_another_type_is_an_error_that_says_which_and_changes_nothing() {
    let (_node, scope) =
        scope([Answer::Value(document("{}"), "v"), Answer::Value(register("x", "image/png"), "v")]).await;
    let error = scope.get::<Cart>("k").await.unwrap_err();
    assert_eq!(error.effect(), Effect::None);
    let text = error.to_string();
    assert!(text.contains("Cart") && text.contains("items") && text.contains("\"k\""), "{text}");
    let text = scope.get::<Cart>("k").await.unwrap_err().to_string();
    assert!(text.contains("image/png"), "{text}");
}

#[tokio::test]
async fn an_update_is_written_at_the_version_that_was_read() {
    let (node, scope) =
        scope([Answer::Value(document(r#"{"items":["tea"]}"#), "v7"), Answer::Token("")]).await;
    let cart = scope.update("alice", |cart: &mut Cart| cart.items.push("milk".to_owned())).await.unwrap();
    assert_eq!(cart.items, ["tea", "milk"]);
    let put = put(&node, 0);
    assert_eq!((&put.base_version[..], &put.precondition), (&b"v7"[..], &None));
    assert_eq!(put.value, Some(document(r#"{"items":["tea","milk"]}"#)));
}

#[tokio::test]
async fn an_update_of_what_is_not_there_demands_that_it_still_is_not() {
    let exists = Problem::failed_precondition(Reason::KeyExists, "it is there").to_status();
    let (node, scope) = scope([
        Answer::Token(""),
        Answer::Fails(exists),
        Answer::Value(document(r#"{"items":["tea"]}"#), "v8"),
        Answer::Token(""),
    ])
    .await;
    let mut calls = 0;
    let change = |cart: &mut Cart| {
        calls += 1;
        cart.items.push("milk".to_owned());
    };
    let cart = scope.update("alice", change).await.unwrap();
    assert_eq!((cart.items, calls), (vec!["tea".to_owned(), "milk".to_owned()], 2));
    assert_eq!(put(&node, 0).precondition, Some(v1::put_request::Precondition::IfAbsent(true)));
    assert_eq!(put(&node, 1).base_version, "v8");
}

#[tokio::test]
async fn an_update_reads_again_when_its_version_is_gone_and_gives_up_after_so_many_times() {
    let unknown = || Answer::Fails(Problem::failed_precondition(Reason::UnknownBase, "gone").to_status());
    let found = || Answer::Value(document(r#"{"items":[]}"#), "v");
    let tries = crate::UPDATE_TRIES as usize;
    let (node, scope) = scope((0..tries).flat_map(|_| [found(), unknown()])).await;
    let scope = scope.with_timeout(Duration::from_secs(60));
    let error = scope.update("alice", |_: &mut Cart| {}).await.unwrap_err();
    assert_eq!((error.reason(), error.effect()), (Some(Reason::UnknownBase), Effect::None));
    assert_eq!(node.0.lock().unwrap().puts.len(), tries);
    let (node, scope) = self::scope([found(), Answer::Fails(not_ready()), found()]).await;
    scope.update("alice", |_: &mut Cart| {}).await.unwrap_err();
    assert_eq!(node.0.lock().unwrap().puts.len(), 1, "what is no overtaking is the caller's");
}

#[tokio::test]
async fn a_register_is_updated_only_if_it_is_what_was_read() {
    let (node, scope) =
        scope([Answer::Value(register("[]", "application/vnd.x+json"), "v3"), Answer::Token("")]).await;
    scope.update("k", |list: &mut Vec<u8>| list.push(1)).await.unwrap();
    let put = put(&node, 0);
    assert_eq!(put.precondition, Some(v1::put_request::Precondition::IfVersion("v3".into())));
    assert_eq!(put.value, Some(register("[1]", "application/vnd.x+json")));
}

#[tokio::test]
async fn what_is_no_object_is_put_as_a_register() {
    let (node, scope) = scope([Answer::Token(""), Answer::Token("")]).await;
    scope.put("k", &["a", "b"]).await.unwrap();
    scope.put("k", &Cart::default()).await.unwrap();
    assert_eq!(put(&node, 0).value, Some(register(r#"["a","b"]"#, "application/json")));
    assert_eq!(put(&node, 1).value, Some(document(r#"{"items":[]}"#)));
}

#[tokio::test]
async fn what_is_no_json_is_not_sent() {
    let (node, scope) = scope([]).await;
    let keys = std::collections::BTreeMap::from([((1, 2), 3)]); // keys of objects are texts
    let error = scope.put("k", &keys).await.unwrap_err();
    assert!(matches!(error, Error::Encode { .. }), "{error}");
    let error = scope.edit("k", Edit::new().set("/a", &1).set("/b", &keys)).await.unwrap_err();
    assert!(matches!(error, Error::Encode { .. }), "{error}");
    assert_eq!(node.calls(), 0);
}

#[tokio::test]
async fn a_session_goes_on_elsewhere_as_text() {
    let (node, scope) = scope([Answer::Token("seen"), Answer::Token("more")]).await;
    scope.put("k", &json!({})).await.unwrap();
    let text = Session::new(scope.calls().token()).to_string();
    let session: Session = text.parse().unwrap();
    let (there, elsewhere) = self::scope([Answer::Token("")]).await;
    elsewhere.calls().set_token(session.token().clone());
    elsewhere.get::<Cart>("k").await.unwrap();
    assert_eq!(there.0.lock().unwrap().tokens, ["seen"]);
    assert_eq!(node.calls(), 1);
    for bad in ["", "s2.AAAA", "s1.%%", "s1.A"] {
        assert!(matches!(bad.parse::<Session>(), Err(Error::BadSession { .. })), "{bad}");
    }
    let long = format!("s1.{}", "A".repeat(100 << 10));
    assert!(long.parse::<Session>().unwrap_err().to_string().contains("65536"));
    assert_eq!("s1.".parse::<Session>().unwrap(), Session::default());
}

#[tokio::test]
async fn a_scan_goes_on_behind_a_record_that_is_no_t() {
    let entry = |key: &str, json| v1::Entry {
        key: key.to_owned(),
        value: Some(document(json)),
        ..v1::Entry::default()
    };
    let entries =
        vec![entry("a", r#"{"items":[]}"#), entry("b", r#"{"items":1}"#), entry("c", r#"{"items":[]}"#)];
    let page = v1::ScanResponse { entries, ..v1::ScanResponse::default() };
    let (_node, scope) = scope([Answer::Scan(vec![Ok(page)])]).await;
    let mut records = scope.scan::<Cart>(..);
    assert_eq!(records.next().await.unwrap().unwrap().key, "a");
    assert!(matches!(records.next().await, Err(Error::Decode { key, .. }) if key == "b"));
    assert_eq!(records.next().await.unwrap().unwrap().key, "c");
    assert_eq!(records.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_watch_can_go_on_behind_all_that_was_taken_from_it() {
    use v1::WatchEventType as Type;
    let event = |r#type: Type, key: &str| v1::WatchEvent {
        r#type: r#type.into(),
        entry: Some(v1::Entry {
            key: key.to_owned(),
            value: Some(document(r#"{"items":[]}"#)),
            ..v1::Entry::default()
        }),
        ..v1::WatchEvent::default()
    };
    let message = |events, token: &'static str| {
        Ok(v1::WatchResponse { events, resume_token: token.into(), staleness_ms: 0 })
    };
    let (_node, scope) = scope([Answer::Watch(vec![
        message(vec![event(Type::Value, "a"), event(Type::Put, "b")], "t1"),
        message(vec![], "t2"),
        message(vec![event(Type::Delete, "a")], "t3"),
    ])])
    .await;
    let mut changes = scope.watch::<Cart>(..);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let change = changes.next().await.unwrap();
        seen.push((change.key().unwrap().to_owned(), changes.resume_token().clone()));
    }
    assert_eq!(seen[0], ("a".to_owned(), Bytes::new()), "b would be lost");
    assert_eq!(seen[1], ("b".to_owned(), Bytes::from("t1")));
    assert_eq!(seen[2], ("a".to_owned(), Bytes::from("t3")));
}
