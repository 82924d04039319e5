#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod ahead;
mod gate;
mod history;
mod merging;
mod patching;
mod trace;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, proptest};

use super::{Document, DocumentError, Heads, MAX_BRANCHES, MAX_COUNTER, PatchOp, Paths, PeerChange};
use crate::json::tests::any_json;
use crate::json::{Json, JsonLimits, MAX_ITEMS, PathPattern, Pointer, parse};

pub(super) fn json(text: &str) -> Json {
    parse(text.as_bytes(), &JsonLimits::default()).unwrap()
}

/// An origin's bytes: as long as real ones, and ordered by the letter.
pub(super) fn actor(letter: u8) -> Vec<u8> {
    let mut bytes = b"\x05node-".to_vec();
    bytes.push(letter);
    bytes.extend([7; 16]);
    bytes
}

pub(super) fn paths(text: &[&str], counters: &[&str]) -> Paths {
    let patterns = |texts: &[&str]| texts.iter().map(|text| PathPattern::parse(text).unwrap()).collect();
    Paths { text: patterns(text), counters: patterns(counters) }
}

pub(super) fn plain() -> Paths {
    Paths::default()
}

pub(super) fn pointer(text: &str) -> Pointer {
    Pointer::parse(text).unwrap()
}

pub(super) fn text(document: &Document) -> String {
    String::from_utf8(document.to_canonical_json()).unwrap()
}

/// A document of `letter` that shows `value`.
pub(super) fn showing(letter: u8, value: &str, paths: &Paths) -> (Document, Vec<u8>) {
    let mut document = Document::empty(&actor(letter));
    let change = document.replace(&json(value), None, paths, 0).unwrap().unwrap_or_default();
    (document, change)
}

/// Another member's copy of a document, writing as `letter`.
pub(super) fn copy_for(document: &Document, letter: u8) -> Document {
    Document::load(&document.save(), &actor(letter)).unwrap()
}

/// A document as it is saved when automerge has everything.
pub(super) fn saved(document: &Document) -> Vec<u8> {
    let mut document = document.clone();
    document.settle().unwrap();
    document.save()
}

pub(super) fn receive(document: &mut Document, from: u8, change: &[u8]) {
    let applied = document.apply(&[PeerChange { origin: &actor(from), bytes: change }]).unwrap();
    assert_eq!(applied.applied, 1);
}

/// Objects for documents, a few keys each, so that edits meet.
pub(super) fn any_root() -> impl Strategy<Value = Json> {
    proptest::collection::btree_map("[a-d]", any_json(3), 0..4).prop_map(Json::Object)
}

#[test]
fn an_empty_document_shows_nothing_and_has_no_version() {
    let document = Document::empty(&actor(b'a'));
    assert_eq!(text(&document), "{}");
    assert_eq!(document.heads(), Heads::default());
    assert_eq!((document.history_changes(), document.history_bytes()), (0, 0));
    assert_eq!(text(&copy_for(&document, b'b')), "{}");
}

#[test]
fn a_write_without_difference_makes_no_change() {
    let value = r#"{"a":[1,{"b":null}],"n":5,"t":"text","f":0.0}"#;
    let paths = paths(&["/t"], &["/n"]);
    let (mut document, _) = showing(b'a', value, &paths);
    let heads = document.heads();
    assert_eq!(document.replace(&json(value), None, &paths, 9), Ok(None));
    assert_eq!(document.replace(&json(value), Some(&heads), &paths, 9), Ok(None));
    assert_eq!(document.heads(), heads);
    let empty = Heads::default();
    assert_eq!(Document::empty(&actor(b'a')).replace(&json("{}"), Some(&empty), &paths, 9), Ok(None));
}

#[test]
fn only_an_object_can_be_a_document() {
    let mut document = Document::empty(&actor(b'a'));
    for value in ["null", "1", "[]", "\"x\""] {
        let error = document.replace(&json(value), None, &plain(), 0).unwrap_err();
        assert!(matches!(error, DocumentError::RootNotObject { .. }), "{error}");
    }
    assert_eq!(document.history_changes(), 0);
}

#[test]
fn every_kind_of_value_is_shown_as_it_was_written() {
    let value = r#"{"":{"deep":[[],{},[[1]]]},"big":18446744073709551615,"f":1.0,"max":9223372036854775807,"min":-9223372036854775808,"nul":"\u0000","t":true,"text":"é😀\"","z":0.0}"#;
    let (document, _) = showing(b'a', value, &paths(&["/text"], &[]));
    assert_eq!(text(&document), value);
    assert_eq!(document.to_json(), json(value));
    assert_eq!(text(&copy_for(&document, b'b')), value);
}

#[test]
fn versions_are_written_as_bytes_and_as_text() {
    let heads = Heads::from_hashes(vec![[2; 32], [1; 32], [2; 32]]);
    assert_eq!(heads.hashes(), [[1; 32], [2; 32]]);
    assert_eq!(Heads::decode(&heads.encode()), Ok(heads.clone()));
    assert_eq!(Heads::from_hex(&heads.to_string()), Ok(heads.clone()));
    assert_eq!(heads.to_string(), "01".repeat(32) + &"02".repeat(32));
    assert_eq!(Heads::from_hex(""), Ok(Heads::default()));
    for bad in [vec![1; 31], [[2; 32], [1; 32]].concat(), [[1; 32], [1; 32]].concat()] {
        assert!(Heads::decode(&bad).is_err());
    }
    for bad in ["0", "zz", "AA", &"01".repeat(33), &"é".repeat(32)] {
        assert!(Heads::from_hex(bad).is_err(), "{bad}");
    }
    let many: Vec<u8> = (0..=1024_u32).flat_map(|n| [&n.to_be_bytes()[..], &[0; 28]].concat()).collect();
    assert!(Heads::decode(&many).is_err() && Heads::decode(&many[..1024 * 32]).is_ok());
}

#[test]
fn a_put_at_its_version_merges_with_what_came_since() {
    let (mut document, _) = showing(b'a', r#"{"x":1,"y":1,"z":1}"#, &plain());
    let base = document.heads();
    document.replace(&json(r#"{"x":2,"y":1,"z":1}"#), Some(&base), &plain(), 0).unwrap();
    document.replace(&json(r#"{"x":1,"y":3,"z":1}"#), Some(&base), &plain(), 0).unwrap();
    assert_eq!(text(&document), r#"{"x":2,"y":3,"z":1}"#);
    document.replace(&json(r#"{"x":1,"y":1}"#), Some(&base), &plain(), 0).unwrap();
    assert_eq!(text(&document), r#"{"x":2,"y":3}"#);
    assert_eq!(document.heads().hashes().len(), 3);
    assert_eq!(document.json_at(&base), Some(json(r#"{"x":1,"y":1,"z":1}"#)));
    assert_eq!(text(&copy_for(&document, b'b')), r#"{"x":2,"y":3}"#);
}

#[test]
fn a_put_at_an_unknown_version_has_no_effect() {
    let (mut document, _) = showing(b'a', r#"{"x":1}"#, &plain());
    let unknown = Heads::from_hashes(vec![document.heads().hashes()[0], [9; 32]]);
    let before = saved(&document);
    let error = document.replace(&json("{}"), Some(&unknown), &plain(), 0).unwrap_err();
    assert_eq!(error, DocumentError::UnknownBase);
    assert_eq!(saved(&document), before);
    assert_eq!(document.json_at(&unknown), None);
    assert_eq!(document.changes_since(&unknown), None);
}

#[test]
fn branches_of_one_origin_are_bounded_and_pass_the_gate() {
    let (mut document, first) = showing(b'a', r#"{"k":0}"#, &plain());
    let base = document.heads();
    let mut peer = Document::empty(&actor(b'b'));
    receive(&mut peer, b'a', &first);
    for branch in 0..=MAX_BRANCHES {
        let value = json(&format!(r#"{{"k":0,"k{branch}":{branch}}}"#));
        let change = document.replace(&value, Some(&base), &plain(), 0).unwrap().unwrap();
        receive(&mut peer, b'a', &change);
    }
    let before = (saved(&document), document.to_canonical_json());
    let error = document.replace(&json("{}"), Some(&base), &plain(), 0).unwrap_err();
    assert_eq!(error, DocumentError::TooManyBranches { limit: MAX_BRANCHES });
    assert_eq!((saved(&document), document.to_canonical_json()), before);
    assert_eq!(peer.to_canonical_json(), document.to_canonical_json());
    // Writing at the present version joins the branches, and the next old version has room again.
    let joined = document.replace(&json(r#"{"k":1}"#), None, &plain(), 0).unwrap().unwrap();
    receive(&mut peer, b'a', &joined);
    let base = document.heads();
    for value in [r#"{"k":2}"#, r#"{"k":1,"j":1}"#, r#"{"k":1,"i":1}"#] {
        let change = document.replace(&json(value), Some(&base), &plain(), 0).unwrap().unwrap();
        receive(&mut peer, b'a', &change);
    }
    assert_eq!(text(&peer), r#"{"i":1,"j":1,"k":2}"#);
    assert_eq!(peer.heads(), document.heads());
}

#[test]
fn counters_in_documents_add_up() {
    let paths = paths(&[], &["/items/*/n"]);
    let (mut here, first) = showing(b'a', r#"{"items":[{"sku":"tea","n":2}]}"#, &paths);
    let mut there = Document::empty(&actor(b'b'));
    receive(&mut there, b'a', &first);
    let base = here.heads();
    let a = here.replace(&json(r#"{"items":[{"sku":"tea","n":5}]}"#), None, &paths, 0).unwrap().unwrap();
    let increment = [PatchOp::Increment { path: pointer("/items/0/n"), by: -1 }];
    let b = there.patch(&increment, Some(&base), &paths, 0).unwrap().unwrap();
    receive(&mut here, b'b', &b);
    receive(&mut there, b'a', &a);
    assert_eq!(text(&here), r#"{"items":[{"n":4,"sku":"tea"}]}"#);
    assert_eq!(text(&there), text(&here));
    // At an old version the difference to that version counts, not to what is shown.
    here.replace(&json(r#"{"items":[{"sku":"tea","n":12}]}"#), Some(&base), &paths, 0).unwrap();
    assert_eq!(text(&here), r#"{"items":[{"n":14,"sku":"tea"}]}"#);
    here.patch(&increment, Some(&base), &paths, 0).unwrap();
    assert_eq!(text(&here), r#"{"items":[{"n":13,"sku":"tea"}]}"#);
}

#[test]
fn counter_paths_take_integers_of_their_range_only() {
    let paths = paths(&[], &["/n", "/list/*"]);
    let mut document = Document::empty(&actor(b'a'));
    for (value, overflow) in [
        ("1.0", false),
        ("null", false),
        ("\"1\"", false),
        ("{}", false),
        ("9007199254740993", true),
        ("-9007199254740993", true),
        ("18446744073709551615", true),
    ] {
        for whole in [format!(r#"{{"n":{value}}}"#), format!(r#"{{"list":[1,{value}]}}"#)] {
            let error = document.replace(&json(&whole), None, &paths, 0).unwrap_err();
            assert_eq!(matches!(error, DocumentError::CounterOverflow { .. }), overflow, "{error}");
            assert_eq!(matches!(error, DocumentError::NotACounterValue { .. }), !overflow, "{error}");
        }
    }
    assert_eq!(text(&document), "{}");
    document.replace(&json(r#"{"n":9007199254740992}"#), None, &paths, 0).unwrap();
    document.replace(&json(r#"{"n":-9007199254740992}"#), None, &paths, 0).unwrap();
    assert_eq!(document.to_json(), json(&format!(r#"{{"n":{}}}"#, -MAX_COUNTER)));
}

#[test]
fn text_paths_merge_by_character_and_other_strings_do_not() {
    let paths = paths(&["/t"], &[]);
    let (mut here, first) = showing(b'a', r#"{"s":"one two","t":"one two"}"#, &paths);
    let mut there = Document::empty(&actor(b'b'));
    receive(&mut there, b'a', &first);
    let a = here.replace(&json(r#"{"s":"1 two","t":"1 two"}"#), None, &paths, 0).unwrap().unwrap();
    let b = there.replace(&json(r#"{"s":"one 2é","t":"one 2é"}"#), None, &paths, 0).unwrap().unwrap();
    receive(&mut here, b'b', &b);
    receive(&mut there, b'a', &a);
    assert_eq!(text(&here), r#"{"s":"one 2é","t":"1 2é"}"#);
    assert_eq!(text(&there), text(&here));
}

#[test]
fn items_keep_their_identity_when_others_move_around_them() {
    let paths = paths(&[], &["/l/*/n"]);
    let (mut here, first) =
        showing(b'a', r#"{"l":[{"k":"a","n":1},{"k":"b","n":1},{"k":"c","n":1}]}"#, &paths);
    let mut there = Document::empty(&actor(b'b'));
    receive(&mut there, b'a', &first);
    let a =
        here.replace(&json(r#"{"l":[{"k":"0","n":0},{"k":"a","n":1},{"k":"c","n":1}]}"#), None, &paths, 0);
    let b = there.patch(&[PatchOp::Increment { path: pointer("/l/2/n"), by: 10 }], None, &paths, 0);
    receive(&mut here, b'b', &b.unwrap().unwrap());
    receive(&mut there, b'a', &a.unwrap().unwrap());
    assert_eq!(text(&here), r#"{"l":[{"k":"0","n":0},{"k":"a","n":1},{"k":"c","n":11}]}"#);
    assert_eq!(text(&there), text(&here));
}

#[test]
fn a_long_list_is_edited_where_it_differs() {
    let list = |skip: i64, extra: usize| {
        let mut items: Vec<Json> = (0..9_000).filter(|n| *n != skip).map(Json::Int).collect();
        items.insert(extra, Json::String("new".into()));
        Json::Object([("l".to_owned(), Json::Array(items))].into())
    };
    let mut document = Document::empty(&actor(b'a'));
    document.replace(&list(0, 0), None, &plain(), 0).unwrap();
    let change = document.replace(&list(8_500, 40), None, &plain(), 0).unwrap().unwrap();
    assert_eq!(document.to_json(), list(8_500, 40));
    assert!(change.len() < 300, "{} bytes", change.len());
}

#[test]
fn writes_beyond_a_limit_are_refused_before_they_cost() {
    let mut document = Document::empty(&actor(b'a'));
    let object = |value: Json| Json::Object([("k".to_owned(), value)].into());
    let too_large = |document: &mut Document, value: Json, paths: &Paths| {
        let error = document.replace(&object(value), None, paths, 0).unwrap_err();
        let DocumentError::TooLarge { what, .. } = error else { panic!("{error}") };
        what
    };
    let mut deep = Json::Null;
    for _ in 0..64 {
        deep = Json::Array(vec![deep]);
    }
    assert_eq!(too_large(&mut document, deep.clone(), &plain()), "levels of nesting");
    let Json::Array(mut inner) = deep else { panic!("an array") };
    document.replace(&object(inner.remove(0)), None, &plain(), 0).unwrap();
    let items = |count: usize| Json::Array(vec![Json::Int(1); count]);
    assert_eq!(too_large(&mut document, items(MAX_ITEMS + 1), &plain()), "keys or items of one container");
    document.replace(&object(items(MAX_ITEMS)), None, &plain(), 0).unwrap();
    let nested = Json::Array(vec![items(9_000), items(9_000), items(9_000)]);
    assert_eq!(too_large(&mut document, nested, &plain()), "values and characters in one write");
    let long = |length: usize| Json::String("x".repeat(length));
    assert_eq!(too_large(&mut document, long(1 << 20), &plain()), "bytes of strings and keys in one write");
    assert_eq!(too_large(&mut document, long((1 << 20) - 2), &plain()), "bytes of JSON");
    document.replace(&object(long((1 << 20) - 8)), None, &plain(), 0).unwrap();
    let words = paths(&["/k"], &[]);
    assert_eq!(too_large(&mut document, long(20_000), &words), "values and characters in one write");
    document.replace(&object(long(19_990)), None, &words, 0).unwrap();
}

#[test]
fn a_document_that_merging_made_too_large_takes_only_shrinking_writes() {
    let half = "x".repeat(600_000);
    let (mut here, _) = showing(b'a', &format!(r#"{{"a":"{half}"}}"#), &plain());
    let (_, change) = showing(b'b', &format!(r#"{{"b":"{half}"}}"#), &plain());
    receive(&mut here, b'b', &change);
    assert!(here.to_canonical_json().len() > 1 << 20);
    let set = |path: &str, value: &str| [PatchOp::Set { path: pointer(path), value: json(value) }];
    for larger in [set("/c", "1"), set("/a", &format!("\"{half}y\""))] {
        let error = here.patch(&larger, None, &plain(), 0).unwrap_err();
        assert!(error.to_string().contains("bytes of JSON"), "{error}");
    }
    here.patch(&set("/a", &format!("\"{}\"", &half[1..])), None, &plain(), 0).unwrap();
    here.patch(&set("/a", "\"\""), None, &plain(), 0).unwrap();
    here.patch(&set("/c", "1"), None, &plain(), 0).unwrap();
}

#[test]
fn a_damaged_document_does_not_load_and_does_not_panic() {
    let (document, _) = showing(b'a', r#"{"a":[1,2,3],"t":"text"}"#, &paths(&["/t"], &[]));
    let saved = document.save();
    for at in 0..saved.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bad = saved.clone();
            bad[at] = value;
            if bad != saved {
                assert!(Document::load(&bad, &actor(b'a')).is_err(), "byte {at}");
            }
        }
        assert!(Document::load(&saved[..at], &actor(b'a')).is_err() || at == 0);
    }
}

#[test]
fn changes_stored_one_behind_the_other_are_restored() {
    let (mut document, first) = showing(b'a', r#"{"n":0,"t":"x"}"#, &plain());
    let saved = document.save();
    let mut changes = vec![first];
    for n in 1..6 {
        let value = json(&format!(r#"{{"n":{n},"t":"{n}"}}"#));
        changes.push(document.replace(&value, None, &plain(), n).unwrap().unwrap());
    }
    let pieces = [changes[1].clone(), changes[2..5].concat(), changes[5].clone()];
    let mut restored = Document::load(&saved, &actor(b'a')).unwrap();
    restored.restore(&pieces).unwrap();
    assert_eq!((restored.heads(), text(&restored)), (document.heads(), text(&document)));
    // Without anything saved, too.
    let mut restored = Document::empty(&actor(b'a'));
    restored.restore(&[changes.concat()]).unwrap();
    assert_eq!((restored.heads(), text(&restored)), (document.heads(), text(&document)));
    let whole = changes.concat();
    let ends: Vec<usize> = changes
        .iter()
        .scan(0, |end, change| {
            *end += change.len();
            Some(*end)
        })
        .collect();
    for end in (1..whole.len()).filter(|end| !ends.contains(end)) {
        assert!(Document::empty(&actor(b'a')).restore(&[&whole[..end]]).is_err(), "cut at byte {end}");
    }
}

#[test]
fn memory_estimates_grow_with_the_history() {
    let (mut document, _) = showing(b'a', r#"{"n":0}"#, &plain());
    let before = document.estimated_bytes();
    assert!((15_000..17_000).contains(&before), "{before}");
    for n in 1..=100 {
        document.replace(&json(&format!(r#"{{"n":{n}}}"#)), None, &plain(), 0).unwrap();
    }
    assert!(document.estimated_bytes() > before + 20_000);
    assert_eq!(document.history_changes(), 101);
    assert!(document.history_bytes() > 100 * 80);
    document.settle().unwrap();
    assert!(copy_for(&document, b'a').history_bytes() < document.history_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_document_shows_what_was_put(values in vec(any_root(), 1..5), merging in any::<bool>()) {
        // Numbers and strings at these paths take the merging forms wherever they can.
        let text = if merging { paths(&["/*", "/*/*"], &[]) } else { plain() };
        let mut document = Document::empty(&actor(b'a'));
        for value in values {
            let change = document.replace(&value, None, &text, 1).unwrap();
            prop_assert_eq!(document.to_json().to_canonical(), value.to_canonical());
            prop_assert_eq!(document.to_canonical_json(), value.to_canonical());
            prop_assert!(document.replace(&value, None, &text, 1).unwrap().is_none());
            let loaded = copy_for(&document, b'b');
            prop_assert_eq!(loaded.to_canonical_json(), value.to_canonical());
            prop_assert_eq!(loaded.heads(), document.heads());
            if let Some(change) = change {
                prop_assert_eq!(document.json_at(&document.heads()).map(|json| json.to_canonical()), Some(value.to_canonical()));
                prop_assert_eq!(document.changes_since(&Heads::default()).unwrap().pop(), Some(change));
            }
        }
    }

    #[test]
    fn puts_at_one_version_that_touch_different_keys_all_show(
        before in any_root(),
        edits in vec(any_json(2), 3),
    ) {
        let Json::Object(before) = before else { panic!("an object") };
        let with = |edits: &[(usize, &Json)]| {
            let mut after = before.clone();
            after.extend(edits.iter().map(|(key, value)| (format!("k{key}"), (*value).clone())));
            Json::Object(after)
        };
        let mut document = Document::empty(&actor(b'a'));
        document.replace(&Json::Object(before.clone()), None, &plain(), 0).unwrap();
        let base = document.heads();
        for edit in edits.iter().enumerate() {
            document.replace(&with(&[edit]), Some(&base), &plain(), 0).unwrap();
        }
        let all: Vec<(usize, &Json)> = edits.iter().enumerate().collect();
        prop_assert_eq!(document.to_canonical_json(), with(&all).to_canonical());
        prop_assert_eq!(document.json_at(&base).map(|json| json.to_canonical()), Some(Json::Object(before).to_canonical()));
    }
}
