//! What must not be accepted: each gets its code, reason and field, and nothing is changed.

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};
use tropism_wire::v1::scope_service_client::ScopeServiceClient;
use tropism_wire::v1::{self, expiry::When, patch_operation::Action, patch_request::Patch};
use tropism_wire::{Effect, Reason};

use super::{World, document, expiry, problem, put_request, register, seal};
use crate::token::Seal;

/// A refused call: what it was, what came back, and what should have.
struct Row(String, Result<(), Status>, Code, Reason, &'static str);

fn check(rows: Vec<Row>) {
    for Row(title, outcome, code, reason, field) in rows {
        let status = outcome.expect_err(&title);
        let refused = problem(&status);
        assert_eq!((status.code(), refused.reason()), (code, reason), "{title}: {status:?}");
        assert_eq!(refused.field().unwrap_or(""), field, "{title}: {status:?}");
        assert_eq!(refused.effect(), Effect::None, "{title}");
        assert!(refused.message().len() <= 700, "{title}: {}", refused.message());
        assert!(!status.message().chars().any(char::is_control), "{title}");
    }
}

fn get(scope: &str, key: &str) -> v1::GetRequest {
    v1::GetRequest { scope: scope.into(), key: key.into(), token: Bytes::new() }
}

fn json(text: impl Into<Bytes>) -> v1::PutRequest {
    put_request("shop/carts", "k", v1::value::Value::Json(text.into()))
}

fn page() -> v1::PutRequest {
    put_request("cache/pages", "k", register("x"))
}

fn patch(patch: Patch) -> v1::PatchRequest {
    v1::PatchRequest {
        scope: "shop/carts".into(),
        key: "alice".into(),
        patch: Some(patch),
        ..Default::default()
    }
}

fn operations(operations: Vec<v1::PatchOperation>) -> v1::PatchRequest {
    patch(Patch::Operations(v1::PatchOperations { operations }))
}

fn operation(path: &str, action: Option<Action>) -> v1::PatchOperation {
    v1::PatchOperation { path: path.into(), action }
}

fn one(path: &str, action: Action) -> v1::PatchRequest {
    operations(vec![operation(path, Some(action))])
}

fn text(json: &'static str) -> Bytes {
    Bytes::from_static(json.as_bytes())
}

#[tokio::test]
async fn names_ranges_and_tokens_that_are_none_are_refused() {
    let world = World::new().await;
    let mut client = world.client.clone();
    let before = world.state();
    let mut rows = Vec::new();
    use Code::{FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable};

    for scope in [
        "",
        ".",
        "..",
        "a//b",
        "/a",
        "a/",
        "a/../b",
        "%2e%2e",
        "Shop/carts",
        "_sys/x",
        "caf\u{e9}",
        "a b",
        "a\0",
    ] {
        let outcome = client.get(get(scope, "k")).await.map(drop);
        rows.push(Row(format!("scope {scope:?}"), outcome, InvalidArgument, Reason::BadScope, "scope"));
    }
    let outcome = client.get(get(&"a".repeat(129), "k")).await.map(drop);
    rows.push(Row("long scope".into(), outcome, InvalidArgument, Reason::BadScope, "scope"));
    for (scope, code, reason, field) in [
        ("none/such", FailedPrecondition, Reason::NoRule, "scope"),
        ("shop", FailedPrecondition, Reason::NoRule, "scope"),
        ("far/away", Unavailable, Reason::NotServedHere, ""),
    ] {
        rows.push(Row(
            format!("get {scope}"),
            client.get(get(scope, "k")).await.map(drop),
            code,
            reason,
            field,
        ));
        let put = put_request(scope, "k", register("x"));
        rows.push(Row(format!("put {scope}"), client.put(put).await.map(drop), code, reason, field));
    }
    for key in ["", "\0", "a\nb", "\u{1b}[2J", "\u{7f}"]
        .map(str::to_owned)
        .into_iter()
        .chain([513, 65_536, 1 << 20].map(|n| "k".repeat(n)))
    {
        let title = format!("key of {} bytes", key.len());
        let outcome = client.get(get("cache/pages", &key)).await.map(drop);
        rows.push(Row(title.clone(), outcome, InvalidArgument, Reason::BadKey, "key"));
        let outcome = client.put(put_request("cache/pages", &key, register("x"))).await.map(drop);
        rows.push(Row(title, outcome, InvalidArgument, Reason::BadKey, "key"));
    }
    let keys =
        |keys: Vec<String>| v1::BatchGetRequest { scope: "cache/pages".into(), keys, token: Bytes::new() };
    let outcome = client.batch_get(keys(vec![])).await.map(drop);
    rows.push(Row("no keys".into(), outcome, InvalidArgument, Reason::MissingField, "keys"));
    let outcome = client.batch_get(keys((0..1001).map(|n| n.to_string()).collect())).await.map(drop);
    rows.push(Row("1001 keys".into(), outcome, ResourceExhausted, Reason::TooManyItems, "keys"));
    let outcome = client.batch_get(keys(vec!["a".into(), "b".into(), "a".into()])).await.map(drop);
    rows.push(Row("a key twice".into(), outcome, InvalidArgument, Reason::BadKey, "keys[2]"));
    let outcome = client.batch_get(keys(vec!["a".into(), "".into()])).await.map(drop);
    rows.push(Row("an empty key".into(), outcome, InvalidArgument, Reason::BadKey, "keys[1]"));

    let scan = |request: v1::ScanRequest| v1::ScanRequest { scope: "cache/pages".into(), ..request };
    let range = scan(v1::ScanRequest { start: "b".into(), end: "a".into(), ..Default::default() });
    rows.push(Row(
        "range".into(),
        client.scan(range).await.map(drop),
        InvalidArgument,
        Reason::BadRange,
        "end",
    ));
    let long = scan(v1::ScanRequest { prefix: "k".repeat(513), ..Default::default() });
    rows.push(Row(
        "prefix".into(),
        client.scan(long).await.map(drop),
        InvalidArgument,
        Reason::BadKey,
        "prefix",
    ));
    for page_token in [text("x"), seal().of(&["page", "cache/pages", "p", "", ""]).close(b"k")] {
        let request = scan(v1::ScanRequest { page_token, ..Default::default() });
        let outcome = client.scan(request).await.map(drop);
        rows.push(Row("page token".into(), outcome, InvalidArgument, Reason::BadPageToken, "page_token"));
    }
    let good = world.put("cache/other", "k", "x").await.answer.unwrap().token;
    let before = if before.is_empty() { world.state() } else { before };
    let mut flipped = good.to_vec();
    flipped[9] ^= 4;
    let elsewhere = Seal::new("other-cluster").token(&seal().read(&good).unwrap());
    for (title, token) in [
        ("flipped", Bytes::from(flipped)),
        ("truncated", good.slice(..good.len() - 1)),
        ("of another cluster", elsewhere),
        ("garbage", text("garbage")),
    ] {
        let request = v1::GetRequest { token: token.clone(), ..get("cache/pages", "k") };
        rows.push(Row(
            title.into(),
            client.get(request).await.map(drop),
            InvalidArgument,
            Reason::BadToken,
            "token",
        ));
        let options = Some(v1::WriteOptions { token: token.clone(), ..Default::default() });
        let outcome = client.put(v1::PutRequest { options, ..page() }).await.map(drop);
        rows.push(Row(title.into(), outcome, InvalidArgument, Reason::BadToken, "options.token"));
        let watch =
            v1::WatchRequest { scope: "cache/pages".into(), resume_token: token, ..Default::default() };
        let outcome = client.watch(watch).await.map(drop);
        rows.push(Row(title.into(), outcome, InvalidArgument, Reason::BadResumeToken, "resume_token"));
    }
    let large = v1::GetRequest { token: vec![0; (64 << 10) + 1].into(), ..get("cache/pages", "k") };
    rows.push(Row(
        "token".into(),
        client.get(large).await.map(drop),
        ResourceExhausted,
        Reason::TokenTooLarge,
        "token",
    ));
    let resume = Seal::new(super::CLUSTER).of(&["watch", "cache/pages", "key", "b"]);
    let watch = v1::WatchRequest {
        scope: "cache/pages".into(),
        target: Some(v1::watch_request::Target::Key("a".into())),
        resume_token: resume.token_always(&crate::token::Token::default()),
        ..Default::default()
    };
    let outcome = client.watch(watch).await.map(drop);
    rows.push(Row("of another key".into(), outcome, InvalidArgument, Reason::BadResumeToken, "resume_token"));
    let stamp = v1::StampRequest { scope: "cache/pages".into(), count: 1001, token: Bytes::new() };
    rows.push(Row(
        "stamps".into(),
        client.stamp(stamp).await.map(drop),
        InvalidArgument,
        Reason::BadNumber,
        "count",
    ));

    let mut scopes = ScopeServiceClient::new(world.channel.clone());
    let outcome = scopes.get_scope(v1::GetScopeRequest { name: "A".into() }).await.map(drop);
    rows.push(Row("scope".into(), outcome, InvalidArgument, Reason::BadScope, "name"));
    let list = |prefix: &str, page_size, page_token| v1::ListScopesRequest {
        prefix: prefix.into(),
        page_size,
        page_token,
    };
    let outcome = scopes.list_scopes(list("a/", 0, Bytes::new())).await.map(drop);
    rows.push(Row("prefix".into(), outcome, InvalidArgument, Reason::BadScope, "prefix"));
    let outcome = scopes.list_scopes(list("", 1001, Bytes::new())).await.map(drop);
    rows.push(Row("page size".into(), outcome, InvalidArgument, Reason::BadNumber, "page_size"));
    let outcome = scopes.list_scopes(list("", 0, text("x"))).await.map(drop);
    rows.push(Row("page token".into(), outcome, InvalidArgument, Reason::BadPageToken, "page_token"));

    assert!(rows.len() >= 60, "{}", rows.len());
    check(rows);
    assert_eq!(world.state(), before);
}

#[tokio::test]
async fn values_and_options_of_writes_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let mut client = world.client.clone();
    world.put_json("k", "{}").await;
    let version = world.put("cache/pages", "k", "x").await.result.unwrap().version;
    let before = world.state();
    let mut rows = Vec::new();
    use Code::{Aborted, FailedPrecondition, InvalidArgument, ResourceExhausted};

    let deep = "{\"a\":".to_owned() + &"[".repeat(10_000);
    for (title, text) in [
        ("truncated", r#"{"a":"#),
        ("trailing", "{} x"),
        ("comment", "{/**/}"),
        ("single quotes", "{'a':1}"),
        ("byte order mark", "\u{feff}{}"),
        ("duplicate keys", r#"{"a":1,"a":2}"#),
        ("deep", &deep),
        ("NaN", r#"{"a":NaN}"#),
        ("infinite", r#"{"a":1e400}"#),
        ("too large an integer", r#"{"a":18446744073709551616}"#),
        ("lone surrogate", r#"{"a":"\ud800"}"#),
        ("control character", "{\"a\":\"\n\"}"),
        ("empty", ""),
        ("a list", "[]"),
        ("a number", "1"),
    ] {
        let outcome = client.put(json(text.to_owned())).await.map(drop);
        rows.push(Row(title.into(), outcome, InvalidArgument, Reason::BadJson, "value.json"));
    }
    for (title, bytes) in [("UTF-16", b"{\0}\0".as_slice()), ("not UTF-8", b"{\"\xff\":1}")] {
        let outcome = client.put(json(bytes.to_vec())).await.map(drop);
        rows.push(Row(title.into(), outcome, InvalidArgument, Reason::BadJson, "value.json"));
    }
    let many = |open: &str, item: &dyn Fn(usize) -> String, close: &str| {
        let items: Vec<String> = (0..10_001).map(item).collect();
        format!("{{\"a\":{open}{}{close}}}", items.join(","))
    };
    for (title, text) in [
        ("1 MiB", format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20))),
        ("10001 items", many("[", &|_| "1".into(), "]")),
        ("10001 keys", many("{", &|n| format!("\"{n}\":1"), "}")),
    ] {
        let outcome = client.put(json(text)).await.map(drop);
        rows.push(Row(title.into(), outcome, ResourceExhausted, Reason::ValueTooLarge, "value.json"));
    }
    let large = put_request("cache/pages", "k", register(&"x".repeat((1 << 20) + 1)));
    let outcome = client.put(large).await.map(drop);
    rows.push(Row(
        "register".into(),
        outcome,
        ResourceExhausted,
        Reason::ValueTooLarge,
        "value.register.content",
    ));
    for content_type in ["a\nb".to_owned(), "caf\u{e9}".to_owned(), "x".repeat(256)] {
        let value = v1::value::Value::Register(v1::Register { content: Bytes::new(), content_type });
        let outcome = client.put(put_request("cache/pages", "k", value)).await.map(drop);
        rows.push(Row(
            "type".into(),
            outcome,
            InvalidArgument,
            Reason::BadContentType,
            "value.register.content_type",
        ));
    }
    let none = v1::PutRequest { value: None, ..page() };
    rows.push(Row(
        "no value".into(),
        client.put(none).await.map(drop),
        InvalidArgument,
        Reason::MissingField,
        "value",
    ));
    for (scope, value, field) in [
        ("shop/carts", register("x"), "value.register"),
        ("cache/pages", document("{}"), "value.json"),
        ("stats/visits", v1::value::Value::Counter(1), "value.counter"),
        ("cache/pages", v1::value::Value::Counter(1), "value.counter"),
    ] {
        let outcome = client.put(put_request(scope, "k", value)).await.map(drop);
        rows.push(Row(scope.into(), outcome, FailedPrecondition, Reason::KindMismatch, field));
    }
    let increment = |scope: &str, key: &str, by| v1::IncrementRequest {
        scope: scope.into(),
        key: key.into(),
        by,
        ..Default::default()
    };
    let outcome = client.increment(increment("cache/pages", "k", 1)).await.map(drop);
    rows.push(Row("increment".into(), outcome, FailedPrecondition, Reason::KindMismatch, ""));

    for (title, when, code, reason, field) in [
        ("ttl 0", Some(When::TtlMs(0)), InvalidArgument, Reason::BadExpiry, "expiry.ttl_ms"),
        ("ttl 10000 years", Some(When::TtlMs(u64::MAX)), InvalidArgument, Reason::BadExpiry, "expiry.ttl_ms"),
        ("at 0", Some(When::AtMs(0)), FailedPrecondition, Reason::AlreadyExpired, "expiry.at_ms"),
        ("at the end", Some(When::AtMs(u64::MAX)), InvalidArgument, Reason::BadExpiry, "expiry.at_ms"),
        ("not never", Some(When::Never(false)), InvalidArgument, Reason::BadExpiry, "expiry.never"),
        ("empty", None, InvalidArgument, Reason::MissingField, "expiry"),
    ] {
        let wrong = Some(v1::Expiry { when });
        let outcome = client.put(v1::PutRequest { expiry: wrong, ..page() }).await.map(drop);
        rows.push(Row(title.into(), outcome, code, reason, field));
        let expire =
            v1::ExpireRequest { scope: "cache/pages".into(), key: "k".into(), expiry: wrong, options: None };
        rows.push(Row(title.into(), client.expire(expire).await.map(drop), code, reason, field));
    }
    let expire = |key: &str, expiry| v1::ExpireRequest {
        scope: "cache/pages".into(),
        key: key.into(),
        expiry,
        options: None,
    };
    let outcome = client.expire(expire("k", None)).await.map(drop);
    rows.push(Row("no expiry".into(), outcome, InvalidArgument, Reason::MissingField, "expiry"));
    let outcome = client.expire(expire("none", expiry(When::TtlMs(1)))).await.map(drop);
    rows.push(Row("no key".into(), outcome, Code::NotFound, Reason::KeyNotFound, "key"));

    let options = |options| v1::PutRequest { options: Some(options), ..page() };
    for length in [1, 15, 17, 1024] {
        let request_id = vec![7; length].into();
        let outcome =
            client.put(options(v1::WriteOptions { request_id, ..Default::default() })).await.map(drop);
        rows.push(Row(
            "request id".into(),
            outcome,
            InvalidArgument,
            Reason::BadRequestId,
            "options.request_id",
        ));
    }
    for (level, regions, code, reason, field) in [
        (3, 5, FailedPrecondition, Reason::TooFewRegions, "options.durability.regions"),
        (3, 0, InvalidArgument, Reason::BadDurability, "options.durability.regions"),
        (1, 2, InvalidArgument, Reason::BadDurability, "options.durability.regions"),
        (9, 0, InvalidArgument, Reason::BadDurability, "options.durability.level"),
    ] {
        let durability = Some(v1::Durability { level, regions });
        let outcome =
            client.put(options(v1::WriteOptions { durability, ..Default::default() })).await.map(drop);
        rows.push(Row(format!("durability {level}"), outcome, code, reason, field));
    }
    let cut = version.slice(..version.len() - 1);
    for bad in [Bytes::from(vec![7; 31]), text("x"), cut] {
        let precondition = Some(v1::put_request::Precondition::IfVersion(bad.clone()));
        let outcome = client.put(v1::PutRequest { precondition, ..page() }).await.map(drop);
        rows.push(Row("if version".into(), outcome, InvalidArgument, Reason::BadVersion, "if_version"));
        let delete = v1::DeleteRequest {
            scope: "cache/pages".into(),
            key: "k".into(),
            if_version: bad.clone(),
            options: None,
        };
        let outcome = client.delete(delete).await.map(drop);
        rows.push(Row("if version".into(), outcome, InvalidArgument, Reason::BadVersion, "if_version"));
        let outcome = client.put(v1::PutRequest { base_version: bad, ..json("{}") }).await.map(drop);
        rows.push(Row("base version".into(), outcome, InvalidArgument, Reason::BadVersion, "base_version"));
    }
    let outcome = client.put(v1::PutRequest { base_version: version.clone(), ..page() }).await.map(drop);
    rows.push(Row("base of a register".into(), outcome, InvalidArgument, Reason::BadVersion, "base_version"));
    let mut stale = version.to_vec();
    stale[9] ^= 1;
    let delete = v1::DeleteRequest {
        scope: "cache/pages".into(),
        key: "k".into(),
        if_version: stale.into(),
        options: None,
    };
    rows.push(Row(
        "stale".into(),
        client.delete(delete).await.map(drop),
        Aborted,
        Reason::VersionMismatch,
        "if_version",
    ));

    let item = v1::BatchPutItem { key: "a".into(), ..Default::default() };
    let batch = |items| v1::BatchPutRequest { scope: "cache/pages".into(), items, options: None };
    for (items, code, reason, field) in [
        (vec![], InvalidArgument, Reason::MissingField, "items"),
        (vec![item.clone(); 1001], ResourceExhausted, Reason::TooManyItems, "items"),
        (vec![item; 2], InvalidArgument, Reason::BadKey, "items[1].key"),
    ] {
        let title = format!("{} items", items.len());
        rows.push(Row(title, client.batch_put(batch(items)).await.map(drop), code, reason, field));
    }
    assert!(rows.len() >= 60, "{}", rows.len());
    check(rows);
    assert_eq!(world.state(), before);
}

#[tokio::test]
async fn patches_that_are_none_or_do_not_fit_change_nothing_and_name_the_operation() {
    let world = World::new().await;
    let mut client = world.client.clone();
    world.put_json("alice", r#"{"items":[{"sku":"tea","n":2}],"note":"hi","list":[1,2]}"#).await;
    let before = world.state();
    let mut rows = Vec::new();
    use Code::{FailedPrecondition, InvalidArgument, ResourceExhausted};
    const AT: &str = "operations.operations[0]";

    let no_patch = v1::PatchRequest { patch: None, ..operations(vec![]) };
    rows.push(Row(
        "none".into(),
        client.patch(no_patch).await.map(drop),
        InvalidArgument,
        Reason::MissingField,
        "patch",
    ));
    let outcome = client.patch(operations(vec![])).await.map(drop);
    rows.push(Row("empty".into(), outcome, InvalidArgument, Reason::BadPatch, "operations.operations"));
    let many = vec![operation("/a", Some(Action::Set(text("1")))); 1001];
    let outcome = client.patch(operations(many)).await.map(drop);
    rows.push(Row(
        "1001".into(),
        outcome,
        ResourceExhausted,
        Reason::TooManyOperations,
        "operations.operations",
    ));
    for path in ["a/b", "/~2", "/a~"] {
        let outcome = client.patch(one(path, Action::Remove(true))).await.map(drop);
        rows.push(Row(
            path.into(),
            outcome,
            InvalidArgument,
            Reason::BadPath,
            "operations.operations[0].path",
        ));
    }
    let outcome = client.patch(one("/a", Action::MoveFrom("b".into()))).await.map(drop);
    rows.push(Row(
        "from".into(),
        outcome,
        InvalidArgument,
        Reason::BadPath,
        "operations.operations[0].move_from",
    ));
    for path in ["/list/01", "/list/-1", "/list/18446744073709551616"] {
        let outcome = client.patch(one(path, Action::Remove(true))).await.map(drop);
        rows.push(Row(path.into(), outcome, InvalidArgument, Reason::BadPath, AT));
    }
    let outcome = client.patch(operations(vec![operation("/a", None)])).await.map(drop);
    rows.push(Row(
        "no action".into(),
        outcome,
        InvalidArgument,
        Reason::MissingField,
        "operations.operations[0].action",
    ));
    let outcome = client.patch(one("/a", Action::Remove(false))).await.map(drop);
    rows.push(Row(
        "not".into(),
        outcome,
        InvalidArgument,
        Reason::BadPatch,
        "operations.operations[0].remove",
    ));
    let outcome = client.patch(one("/a", Action::Set(text("{")))).await.map(drop);
    rows.push(Row("json".into(), outcome, InvalidArgument, Reason::BadJson, "operations.operations[0].set"));
    for (title, path, action, code, reason) in [
        ("test", "/note", Action::Test(text("\"ho\"")), FailedPrecondition, Reason::TestFailed),
        ("nothing", "/none", Action::Remove(true), FailedPrecondition, Reason::PatchDoesNotFit),
        (
            "behind the end",
            "/list/999999",
            Action::Insert(text("1")),
            FailedPrecondition,
            Reason::PatchDoesNotFit,
        ),
        ("plain number", "/list/0", Action::Increment(1), FailedPrecondition, Reason::NotACounter),
        ("a string", "/note", Action::Increment(1), FailedPrecondition, Reason::NotACounter),
        ("into itself", "/items/0/x", Action::MoveFrom("/items".into()), InvalidArgument, Reason::BadPatch),
        ("the root", "", Action::Remove(true), InvalidArgument, Reason::BadPatch),
    ] {
        rows.push(Row(title.into(), client.patch(one(path, action)).await.map(drop), code, reason, AT));
    }
    let mut seventh = vec![operation("/a", Some(Action::Set(text("1")))); 9];
    seventh[6] = operation("/none", Some(Action::Remove(true)));
    let outcome = client.patch(operations(seventh)).await.map(drop);
    rows.push(Row(
        "seventh".into(),
        outcome,
        FailedPrecondition,
        Reason::PatchDoesNotFit,
        "operations.operations[6]",
    ));
    for (title, patch_text, reason, field) in [
        ("no list", "{}", Reason::BadPatch, "json_patch"),
        ("unknown op", r#"[{"op":"up","path":""}]"#, Reason::BadPatch, "json_patch[0]"),
        ("no value", r#"[{"op":"add","path":"/a"}]"#, Reason::BadPatch, "json_patch[0]"),
        ("no json", "[", Reason::BadJson, "json_patch"),
    ] {
        let outcome = client.patch(patch(Patch::JsonPatch(text(patch_text)))).await.map(drop);
        rows.push(Row(title.into(), outcome, InvalidArgument, reason, field));
    }
    let outcome = client.patch(patch(Patch::MergePatch(text("null")))).await.map(drop);
    rows.push(Row("null".into(), outcome, InvalidArgument, Reason::BadPatch, "merge_patch"));
    let of_a_register = v1::PatchRequest { scope: "cache/pages".into(), ..one("/a", Action::Remove(true)) };
    let outcome = client.patch(of_a_register).await.map(drop);
    rows.push(Row("kind".into(), outcome, FailedPrecondition, Reason::KindMismatch, ""));
    check(rows);
    assert_eq!(world.state(), before);

    // A bomb of copies is bounded by the operations of one change.
    let mut bomb = vec![operation("/b", Some(Action::Set(text("[0]"))))];
    bomb.extend(vec![operation("/b/-", Some(Action::CopyFrom("/b".into()))); 20]);
    let status = client.patch(operations(bomb)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(world.state(), before);
}

#[tokio::test]
async fn a_counter_stays_within_64_bits() {
    let world = World::new().await;
    let mut client = world.client.clone();
    let add =
        |by| v1::IncrementRequest { scope: "stats/visits".into(), key: "k".into(), by, ..Default::default() };
    client.increment(add(i64::MAX)).await.unwrap();
    let before = world.state();
    let outcome = client.increment(add(i64::MAX)).await.map(drop);
    check(vec![Row("twice".into(), outcome, Code::FailedPrecondition, Reason::CounterOverflow, "by")]);
    assert_eq!(world.state(), before);
}

/// Sends bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

async fn raw(
    world: &World,
    method: &'static str,
    body: Vec<u8>,
    metadata: MetadataMap,
) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(world.channel.clone());
    grpc.ready().await.unwrap();
    let request = Request::from_parts(metadata, tonic::Extensions::default(), Bytes::from(body));
    grpc.unary(request, http::uri::PathAndQuery::from_static(method), Raw).await.map(drop)
}

#[tokio::test]
async fn messages_methods_and_metadata_that_are_none_are_refused_in_our_words() {
    const GET: &str = "/tropism.v1.StateService/Get";
    let world = World::new().await;
    let before = world.state();
    let mut rows = Vec::new();
    let none = MetadataMap::new;
    for (title, body) in [
        ("garbage", vec![0xff; 40]),
        ("truncated", vec![0x0a, 9, b'a']),
        ("a text that is not UTF-8", vec![0x0a, 1, 0xff]),
        ("nested beyond all bounds", [0x3b; 200].to_vec()),
    ] {
        let outcome = raw(&world, GET, body, none()).await;
        rows.push(Row(title.into(), outcome, Code::InvalidArgument, Reason::MalformedRequest, "request"));
    }
    let large = raw(&world, GET, vec![0; (4 << 20) + 1], none()).await;
    rows.push(Row("4 MiB and 1".into(), large, Code::ResourceExhausted, Reason::MessageTooLarge, ""));
    let unknown = raw(&world, "/tropism.v1.StateService/Got", vec![], none()).await;
    rows.push(Row("method".into(), unknown, Code::Unimplemented, Reason::NotImplemented, ""));

    let with = |name: &'static str, value: &str| {
        let mut metadata = MetadataMap::new();
        metadata.insert(name, MetadataValue::try_from(value).unwrap());
        metadata
    };
    let outcome = raw(&world, GET, vec![], with("x", &"x".repeat(9 << 10))).await;
    rows.push(Row("metadata".into(), outcome, Code::ResourceExhausted, Reason::MetadataTooLarge, ""));
    let good = [0x0a, 7, b'c', b'a', b'c', b'h', b'e', b'/', b'a', 0x12, 1, b'k'].to_vec();
    let outcome = raw(&world, GET, good.clone(), with("grpc-encoding", "snappy")).await;
    assert_eq!(outcome.unwrap_err().code(), Code::Unimplemented);
    for text in ["-1S", "abc", "1"] {
        let outcome = raw(&world, GET, good.clone(), with("grpc-timeout", text)).await;
        rows.push(Row(text.into(), outcome, Code::InvalidArgument, Reason::BadDeadline, "grpc-timeout"));
    }
    assert!(raw(&world, GET, good.clone(), with("grpc-timeout", "99999999H")).await.is_ok());
    assert!(raw(&world, GET, good.clone(), with("traceparent", "00-xyz")).await.is_ok(), "ignored");

    let mut metadata = MetadataMap::new();
    metadata.insert_bin("tropism-token-bin", MetadataValue::from_bytes(&[7; (4 << 10) + 1]));
    let outcome = raw(&world, GET, good.clone(), metadata).await;
    rows.push(Row(
        "token".into(),
        outcome,
        Code::ResourceExhausted,
        Reason::TokenTooLarge,
        "tropism-token-bin",
    ));
    let mut metadata = MetadataMap::new();
    metadata.insert_bin("tropism-token-bin", MetadataValue::from_bytes(b"none"));
    let outcome = raw(&world, GET, good, metadata).await;
    rows.push(Row("token".into(), outcome, Code::InvalidArgument, Reason::BadToken, "token"));
    check(rows);
    assert_eq!(world.state(), before);
}
