//! Typed operations, RFC 6902 against a model that edits plain JSON, and RFC 7396.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{any_root, json, paths, plain, pointer, saved, showing, text};
use crate::document::{
    Document, DocumentError, MAX_PATCH_OPS, PatchError, PatchErrorKind, PatchOp, Paths, from_json_patch,
    from_merge_patch,
};
use crate::json::tests::any_json;
use crate::json::{Json, Pointer};

fn apply(document: &mut Document, patch: &str, paths: &Paths) -> Result<(), PatchError> {
    document.patch(&from_json_patch(&json(patch))?, None, paths, 0).map(|_| ())
}

/// Applies a JSON patch that must fail and leave no trace.
fn refuse(value: &str, patch: &str) -> PatchError {
    let (mut document, _) = showing(b'a', value, &plain());
    let before = (saved(&document), document.heads(), text(&document));
    let error = apply(&mut document, patch, &plain()).unwrap_err();
    assert_eq!((saved(&document), document.heads(), text(&document)), before, "{patch}");
    error
}

#[test]
fn the_examples_of_rfc_6902_hold() {
    for (before, patch, after) in [
        (r#"{"foo":"bar"}"#, r#"[{"op":"add","path":"/baz","value":"qux"}]"#, r#"{"baz":"qux","foo":"bar"}"#),
        (
            r#"{"foo":["bar","baz"]}"#,
            r#"[{"op":"add","path":"/foo/1","value":"qux"}]"#,
            r#"{"foo":["bar","qux","baz"]}"#,
        ),
        (r#"{"baz":"qux","foo":"bar"}"#, r#"[{"op":"remove","path":"/baz"}]"#, r#"{"foo":"bar"}"#),
        (
            r#"{"foo":["bar","qux","baz"]}"#,
            r#"[{"op":"remove","path":"/foo/1"}]"#,
            r#"{"foo":["bar","baz"]}"#,
        ),
        (
            r#"{"foo":{"bar":"baz","waldo":"fred"},"qux":{"corge":"grault"}}"#,
            r#"[{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]"#,
            r#"{"foo":{"bar":"baz"},"qux":{"corge":"grault","thud":"fred"}}"#,
        ),
        (
            r#"{"foo":["all","grass","cows","eat"]}"#,
            r#"[{"op":"move","from":"/foo/1","path":"/foo/3"}]"#,
            r#"{"foo":["all","cows","eat","grass"]}"#,
        ),
        (
            r#"{"foo":["bar"]}"#,
            r#"[{"op":"add","path":"/foo/-","value":["abc","def"]}]"#,
            r#"{"foo":["bar",["abc","def"]]}"#,
        ),
        (r#"{"/":9,"~1":10}"#, r#"[{"op":"test","path":"/~01","value":10}]"#, r#"{"/":9,"~1":10}"#),
        (
            r#"{"a":1}"#,
            r#"[{"op":"test","path":"/a","value":1.0},{"op":"copy","from":"/a","path":"/b"}]"#,
            r#"{"a":1,"b":1}"#,
        ),
        (r#"{"a":1}"#, r#"[{"op":"add","path":"","value":{"b":2}}]"#, r#"{"b":2}"#),
        (r#"{"a":{"b":2}}"#, r#"[{"op":"move","from":"/a","path":""}]"#, r#"{"b":2}"#),
        (r#"{"a":1}"#, r#"[{"op":"add","path":"/-","value":2,"ignored":true}]"#, r#"{"-":2,"a":1}"#),
    ] {
        let (mut document, _) = showing(b'a', before, &plain());
        apply(&mut document, patch, &plain()).unwrap_or_else(|error| panic!("{patch}: {error}"));
        assert_eq!(text(&document), after, "{patch}");
    }
}

#[test]
fn bad_patches_name_the_operation_and_change_nothing() {
    let value = r#"{"a":[1,{"b":"text"}],"o":{}}"#;
    for (operation, error) in [
        (r#"{"op":"test","path":"/a/0","value":2}"#, "/a/0\" does not show the value tested for"),
        (r#"{"op":"add","path":"/x/y","value":1}"#, "nothing at \"/x/y\""),
        (r#"{"op":"remove","path":"/x"}"#, "nothing at \"/x\""),
        (r#"{"op":"replace","path":"/o/x","value":1}"#, "nothing at \"/o/x\""),
        (r#"{"op":"replace","path":"/a/2","value":1}"#, "nothing at \"/a/2\""),
        (r#"{"op":"add","path":"/a/999999","value":1}"#, "\"/a/999999\" ends at 2, before 999999"),
        (r#"{"op":"add","path":"/a/01","value":1}"#, "at byte 2: an index with a leading zero"),
        (r#"{"op":"add","path":"/a/-1","value":1}"#, "at byte 2: not an index"),
        (r#"{"op":"add","path":"/a/18446744073709551616","value":1}"#, "at byte 2: an index beyond 64 bits"),
        (r#"{"op":"remove","path":"/a/-"}"#, "nothing at \"/a/-\""),
        (r#"{"op":"add","path":"/a/-/b","value":1}"#, "at byte 2: not an index"),
        (r#"{"op":"add","path":"a","value":1}"#, "at byte 0: a pointer is empty or starts with a slash"),
        (r#"{"op":"add","path":"/~2","value":1}"#, "at byte 1: ~ is escaped"),
        (r#"{"op":"add","path":"/a/1/b/0","value":1}"#, "nothing at"),
        (r#"{"op":"remove","path":""}"#, "the root cannot be removed"),
        (r#"{"op":"add","path":"","value":[]}"#, "a document is an object at its root, not an array"),
        (r#"{"op":"move","from":"/a","path":"/a/0"}"#, "a value cannot be moved into itself"),
        (r#"{"op":"move","from":"","path":"/x"}"#, "a value cannot be moved into itself"),
        (r#"{"op":"copy","from":"/x","path":"/y"}"#, "nothing at \"/x\""),
        (r#"{"op":"inc","path":"/a"}"#, "op is none of"),
        (r#"{"op":"add","path":"/b"}"#, "value is missing"),
        (r#"{"op":"move","path":"/b"}"#, "path or from is missing"),
        (r#"{"path":"/b"}"#, "op is missing"),
        (r#"{"op":"add","path":1,"value":1}"#, "path and from are strings"),
        ("7", "an operation is an object"),
    ] {
        let good = r#"{"op":"add","path":"/new","value":{"deep":[1,2]}},{"op":"remove","path":"/o"},{"op":"add","path":"/o","value":{}}"#;
        let refused = refuse(value, &format!("[{good},{operation},{good}]"));
        assert_eq!(refused.op_index, Some(3), "{operation}");
        assert!(refused.to_string().contains(error), "{operation}: {refused}");
    }
    assert!(refuse(value, "{}").to_string().contains("an array of operations"));
}

#[test]
fn the_number_of_operations_is_bounded() {
    let (mut document, _) = showing(b'a', "{}", &plain());
    let operations = vec![PatchOp::Set { path: pointer("/a"), value: Json::Int(1) }; MAX_PATCH_OPS];
    assert!(document.patch(&operations, None, &plain(), 0).is_ok());
    let more = [operations, vec![PatchOp::Remove { path: pointer("/a") }]].concat();
    let error = document.patch(&more, None, &plain(), 0).unwrap_err();
    assert_eq!(error.kind, PatchErrorKind::TooManyOperations { count: MAX_PATCH_OPS + 1 });
    assert!(error.to_string().contains("at most 1000"), "{error}");
    let array = format!("[{}]", vec!["{}"; MAX_PATCH_OPS + 1].join(","));
    assert_eq!(from_json_patch(&json(&array)).unwrap_err().kind, error.kind);
}

#[test]
fn a_copy_that_doubles_is_refused_before_it_is_made() {
    let doubling = vec![r#"{"op":"copy","from":"/a","path":"/a/-"}"#; 20].join(",");
    let error = refuse(r#"{"a":[0]}"#, &format!("[{doubling}]"));
    assert!(matches!(error.kind, PatchErrorKind::Document(DocumentError::TooLarge { .. })), "{error}");
    let copies: Vec<String> =
        (0..20).map(|n| format!(r#"{{"op":"copy","from":"/a","path":"/a{n}"}}"#)).collect();
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(500_000));
    let error = refuse(&long, &format!("[{}]", copies.join(",")));
    assert!(error.to_string().contains("bytes of strings and keys in one write"), "{error}");
    let tests = vec![format!(r#"{{"op":"test","path":"","value":{long}}}"#); 30];
    let (mut document, _) = showing(b'a', &long, &plain());
    let operations = tests.iter().flat_map(|test| from_json_patch(&json(&format!("[{test}]"))).unwrap());
    let operations: Vec<PatchOp> = operations.collect();
    let error = document.patch(&[operations.clone(), operations].concat(), None, &plain(), 0).unwrap_err();
    assert!(error.to_string().contains("values read by one write"), "{error}");
}

#[test]
fn only_counters_are_incremented() {
    let paths = paths(&[], &["/n"]);
    let (mut document, _) = showing(b'a', r#"{"n":1,"plain":1,"s":"x"}"#, &paths);
    let mut increment = |path: &str, by: i64| {
        let before = (document.heads(), text(&document));
        let result = document.patch(&[PatchOp::Increment { path: pointer(path), by }], None, &paths, 0);
        if result.is_err() {
            assert_eq!((document.heads(), text(&document)), before);
        }
        result.map(|change| (change.is_some(), text(&document)))
    };
    let shows = |n: i64| Ok((true, format!(r#"{{"n":{n},"plain":1,"s":"x"}}"#)));
    assert_eq!(increment("/n", 41), shows(42));
    assert_eq!(increment("/n", -50), shows(-8));
    assert_eq!(increment("/n", 0), Ok((false, r#"{"n":-8,"plain":1,"s":"x"}"#.into())));
    for path in ["/plain", "/s"] {
        assert!(increment(path, 1).unwrap_err().to_string().ends_with("not a counter"), "{path}");
    }
    assert!(matches!(increment("/x", 1).unwrap_err().kind, PatchErrorKind::NotFound { .. }));
    for by in [i64::MAX, i64::MIN, (1 << 53) + 9] {
        let error = increment("/n", by).unwrap_err();
        assert!(
            matches!(error.kind, PatchErrorKind::Document(DocumentError::CounterOverflow { .. })),
            "{error}"
        );
    }
    assert_eq!(increment("/n", (1 << 53) + 8), shows(1 << 53));
}

#[test]
fn text_is_spliced_by_code_points() {
    let paths = paths(&["/t"], &[]);
    let (mut document, _) = showing(b'a', r#"{"s":"plain","t":"aé😀d"}"#, &paths);
    let mut splice = |path: &str, index, delete, insert: &str| {
        let operation = PatchOp::SpliceText { path: pointer(path), index, delete, insert: insert.into() };
        document.patch(&[operation], None, &paths, 0).map(|_| text(&document))
    };
    assert_eq!(splice("/t", 1, 2, "ü").unwrap(), r#"{"s":"plain","t":"aüd"}"#);
    assert_eq!(splice("/t", 3, 0, "!").unwrap(), r#"{"s":"plain","t":"aüd!"}"#);
    assert_eq!(splice("/t", 0, 4, "").unwrap(), r#"{"s":"plain","t":""}"#);
    for (path, index, delete) in [("/t", 1, 0), ("/t", 0, 1), ("/t", usize::MAX, usize::MAX)] {
        let error = splice(path, index, delete, "x").unwrap_err();
        assert!(matches!(error.kind, PatchErrorKind::OutOfRange { length: 0, .. }), "{error}");
    }
    assert!(matches!(splice("/s", 0, 0, "x").unwrap_err().kind, PatchErrorKind::WrongType { .. }));
    assert!(matches!(splice("/x", 0, 0, "x").unwrap_err().kind, PatchErrorKind::NotFound { .. }));
    assert!(splice("/t", 0, 0, &"x".repeat(20_001)).is_err());
}

#[test]
fn the_examples_of_rfc_7396_hold() {
    for (before, patch, after) in [
        (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
        (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
        (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
        (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
        (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
        (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
        ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
    ] {
        let (mut document, _) = showing(b'a', before, &plain());
        let operations = from_merge_patch(&json(patch)).unwrap();
        document.patch(&operations, None, &plain(), 0).unwrap();
        assert_eq!(text(&document), after, "{before} {patch}");
    }
    for root in ["null", "[1]", "\"x\""] {
        let error = from_merge_patch(&json(root)).unwrap_err();
        assert!(
            matches!(error.kind, PatchErrorKind::Document(DocumentError::RootNotObject { .. })),
            "{error}"
        );
    }
}

/// RFC 6902 on plain JSON; `None` when an operation fails.
fn model(document: &Json, operations: &[PatchOp]) -> Option<Json> {
    let mut root = document.clone();
    for operation in operations {
        match operation {
            PatchOp::Insert { path, value } => add(&mut root, path, value.clone())?,
            PatchOp::Remove { path } => drop(take(&mut root, path)?),
            PatchOp::Replace { path, value } => *at(&mut root, path.segments())? = value.clone(),
            PatchOp::Test { path, value } => (at(&mut root, path.segments())? == value).then_some(())?,
            PatchOp::Copy { from, path } => {
                let value = at(&mut root, from.segments())?.clone();
                add(&mut root, path, value)?;
            }
            PatchOp::Move { from, path } => {
                if from == path {
                    at(&mut root, from.segments())?;
                    continue;
                }
                let value = (!from.contains(path)).then(|| take(&mut root, from))??;
                add(&mut root, path, value)?;
            }
            _ => panic!("not of RFC 6902"),
        }
        matches!(root, Json::Object(_)).then_some(())?;
    }
    Some(root)
}

fn at<'j>(root: &'j mut Json, segments: &[String]) -> Option<&'j mut Json> {
    segments.iter().try_fold(root, |value, segment| match value {
        Json::Object(entries) => entries.get_mut(segment),
        Json::Array(items) => items.get_mut(segment.parse::<usize>().ok()?),
        _ => None,
    })
}

fn add(root: &mut Json, path: &Pointer, value: Json) -> Option<()> {
    let Some((last, parent)) = path.split_last() else {
        *root = value;
        return Some(());
    };
    match at(root, parent)? {
        Json::Object(entries) => drop(entries.insert(last.to_owned(), value)),
        Json::Array(items) => {
            let index = if last == "-" { items.len() } else { last.parse().ok()? };
            (index <= items.len()).then(|| items.insert(index, value))?;
        }
        _ => return None,
    }
    Some(())
}

fn take(root: &mut Json, path: &Pointer) -> Option<Json> {
    let (last, parent) = path.split_last()?;
    match at(root, parent)? {
        Json::Object(entries) => entries.remove(last),
        Json::Array(items) => {
            let index: usize = last.parse().ok()?;
            (index < items.len()).then(|| items.remove(index))
        }
        _ => None,
    }
}

/// A place that is likely there: keys and indices of small documents.
fn any_place() -> impl Strategy<Value = Pointer> {
    let segment = prop_oneof![3 => "[a-d]", 2 => "[0-3]", 1 => Just("-".to_owned())];
    vec(segment, 0..4)
        .prop_map(|segments| segments.iter().fold(Pointer::root(), |path, segment| path.child(segment)))
}

fn any_operation() -> impl Strategy<Value = PatchOp> {
    prop_oneof![
        4 => (any_place(), any_json(2)).prop_map(|(path, value)| PatchOp::Insert { path, value }),
        2 => any_place().prop_map(|path| PatchOp::Remove { path }),
        2 => (any_place(), any_json(2)).prop_map(|(path, value)| PatchOp::Replace { path, value }),
        1 => (any_place(), any_json(1)).prop_map(|(path, value)| PatchOp::Test { path, value }),
        2 => (any_place(), any_place()).prop_map(|(from, path)| PatchOp::Move { from, path }),
        2 => (any_place(), any_place()).prop_map(|(from, path)| PatchOp::Copy { from, path }),
    ]
}

#[test]
fn zero_and_minus_zero_show_alike() {
    let list =
        |last| Json::Object([("b".to_owned(), Json::Array(vec![Json::Null, Json::Float(last)]))].into());
    let mut document = Document::empty(&super::actor(b'a'));
    for last in [0.0, -0.0, 0.0] {
        document.replace(&list(last), None, &plain(), 0).unwrap();
        assert_eq!(document.to_canonical_json(), list(last).to_canonical());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn patches_do_what_they_do_to_plain_json(
        before in any_root(),
        operations in vec(any_operation(), 1..12),
        in_texts in proptest::prelude::any::<bool>(),
    ) {
        let paths = if in_texts { paths(&["/*", "/*/*"], &[]) } else { plain() };
        let mut document = Document::empty(&super::actor(b'a'));
        document.replace(&before, None, &paths, 0).unwrap();
        // One by one, so that a failing one does not hide the others; then the first ones at once.
        let mut expected = before.clone();
        for operation in &operations {
            let operation = std::slice::from_ref(operation);
            let version = document.heads();
            match (model(&expected, operation), document.patch(operation, None, &paths, 0)) {
                (Some(after), Ok(_)) => expected = after,
                (None, Err(_)) => prop_assert_eq!(document.heads(), version),
                (model, result) => panic!("model {model:?}, document {result:?}"),
            }
            prop_assert_eq!(document.to_canonical_json(), expected.to_canonical());
        }
        let mut whole = Document::empty(&super::actor(b'b'));
        whole.replace(&before, None, &paths, 0).unwrap();
        let untouched = saved(&whole);
        let done = whole.patch(&operations, None, &paths, 0);
        match model(&before, &operations) {
            Some(after) => prop_assert_eq!(whole.to_canonical_json(), after.to_canonical()),
            None => {
                prop_assert!(done.is_err());
                prop_assert_eq!(saved(&whole), untouched);
            }
        }
        let loaded = super::copy_for(&whole, b'c');
        prop_assert_eq!(loaded.to_canonical_json(), whole.to_canonical_json());
    }

    #[test]
    fn a_patch_at_an_old_version_keeps_what_came_since(before in any_root(), value in any_json(2)) {
        let mut document = Document::empty(&super::actor(b'a'));
        document.replace(&before, None, &plain(), 0).unwrap();
        let base = document.heads();
        let set = |key: &str, value: &Json| [PatchOp::Set { path: Pointer::root().child(key), value: value.clone() }];
        document.patch(&set("since", &Json::Int(1)), None, &plain(), 0).unwrap();
        document.patch(&set("old", &value), Some(&base), &plain(), 0).unwrap();
        let Json::Object(mut entries) = before else { panic!("an object") };
        let new: BTreeMap<String, Json> = [("since".to_owned(), Json::Int(1)), ("old".to_owned(), value)].into();
        entries.extend(new);
        prop_assert_eq!(document.to_canonical_json(), Json::Object(entries).to_canonical());
    }
}
