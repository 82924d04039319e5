//! Writes ahead of automerge are those that automerge would have made, to the byte.

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::super::diff::Writer;
use super::super::patch;
use super::{actor, any_root, copy_for, json, paths, plain, pointer, receive, showing, text};
use crate::document::{Document, DocumentError, PatchError, PatchOp, Paths, PeerChange};
use crate::json::tests::any_json;
use crate::json::{Json, Pointer};

/// [`Document::patch`] by automerge, whatever the operations are.
fn patch_by_automerge(
    document: &mut Document,
    operations: &[PatchOp],
    paths: &Paths,
    time: i64,
) -> Result<Option<Vec<u8>>, PatchError> {
    document.write(None, time, |transaction| {
        let mut writer = Writer::new(transaction, paths);
        patch::run(&mut writer, operations)?;
        Ok::<_, PatchError>(writer.growth())
    })
}

/// [`Document::replace`] by automerge, whatever the difference is.
fn replace_by_automerge(
    document: &mut Document,
    value: &Json,
    paths: &Paths,
    time: i64,
) -> Result<Option<Vec<u8>>, DocumentError> {
    let Json::Object(entries) = value else { panic!("an object") };
    document.write(None, time, |transaction| {
        let mut writer = Writer::new(transaction, paths);
        let shown = writer.root()?;
        writer.replace_root(&shown, entries)?;
        Ok::<_, DocumentError>(writer.growth())
    })
}

#[derive(Debug, Clone)]
enum Step {
    Patch(Vec<PatchOp>),
    Put(Json),
    /// Another member does it, and sends it at some time.
    Theirs(Vec<PatchOp>),
    Receive,
    Send,
    /// The document leaves memory and comes back.
    Reload,
    Settle,
}

fn any_path() -> impl Strategy<Value = Pointer> {
    vec(prop_oneof![4 => "[a-d]", 2 => Just("n".to_owned()), 1 => "[01]", 1 => any_odd()], 1..4)
        .prop_map(|segments| segments.iter().fold(Pointer::root(), |path, segment| path.child(segment)))
}

/// Keys that need escapes, in JSON or in pointers.
fn any_odd() -> impl Strategy<Value = String> {
    prop_oneof!["[\"\\\\\n/~é😀]{1,2}", Just(String::new())]
}

fn any_operation() -> impl Strategy<Value = PatchOp> {
    let value = || prop_oneof![4 => any_json(0), 1 => any_json(2)];
    prop_oneof![
        6 => (any_path(), value()).prop_map(|(path, value)| PatchOp::Set { path, value }),
        1 => (any_path(), value()).prop_map(|(path, value)| PatchOp::Replace { path, value }),
        2 => any_path().prop_map(|path| PatchOp::Remove { path }),
        3 => (any_path(), -9_i64..9).prop_map(|(path, by)| PatchOp::Increment { path, by }),
        3 => (-9_i64..9).prop_map(|by| PatchOp::Increment { path: pointer("/n"), by }),
        2 => (-9_i64..9).prop_map(|by| PatchOp::Set { path: pointer("/n"), value: Json::Int(by) }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => vec(any_operation(), 1..2).prop_map(Step::Patch),
        3 => vec(any_operation(), 2..5).prop_map(Step::Patch),
        3 => any_root().prop_map(Step::Put),
        4 => vec(any_operation(), 1..3).prop_map(Step::Theirs),
        2 => Just(Step::Receive),
        2 => Just(Step::Send),
        1 => Just(Step::Reload),
        1 => Just(Step::Settle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn they_are_what_automerge_makes(
        first in any_root(),
        steps in vec(any_step(), 1..30),
        merging in any::<bool>(),
    ) {
        let paths = if merging { paths(&["/t", "/b/*"], &["/n", "/*/n"]) } else { plain() };
        let mut here = Document::empty(&actor(b'b'));
        let mut slow = Document::empty(&actor(b'b'));
        // One member writes below and one above us in the order of actors.
        let mut theirs = [Document::empty(&actor(b'a')), Document::empty(&actor(b'c'))];
        let with_counter = {
            let Json::Object(mut entries) = first else { panic!("an object") };
            entries.insert("n".into(), Json::Int(3));
            Json::Object(entries)
        };
        let mut ours = Vec::new();
        let mut sent = 0;
        let mut inbox: Vec<(u8, Vec<u8>)> = Vec::new();
        for (time, step) in [Step::Put(with_counter)].iter().chain(&steps).enumerate() {
            let time = time as i64 * 1_000_003;
            match step {
                Step::Patch(operations) => {
                    let change = here.patch(operations, None, &paths, time);
                    prop_assert_eq!(&change, &patch_by_automerge(&mut slow, operations, &paths, time));
                    ours.extend(change.into_iter().flatten());
                }
                Step::Put(value) => {
                    let change = here.replace(value, None, &paths, time);
                    prop_assert_eq!(&change, &replace_by_automerge(&mut slow, value, &paths, time));
                    ours.extend(change.into_iter().flatten());
                }
                Step::Theirs(operations) => {
                    // One of them knows nothing of the paths: plain values beside counters.
                    let policies = [&paths, &plain()];
                    for ((their, letter), policy) in theirs.iter_mut().zip([b'a', b'c']).zip(policies) {
                        let change = their.patch(operations, None, policy, time).ok().flatten();
                        inbox.extend(change.map(|change| (letter, change)));
                    }
                }
                Step::Receive => {
                    for (letter, change) in inbox.drain(..) {
                        receive(&mut here, letter, &change);
                        receive(&mut slow, letter, &change);
                    }
                }
                Step::Send => {
                    for change in &ours[sent..] {
                        for their in &mut theirs {
                            // Each takes ours in order, once it has what we had seen of the other.
                            let _ = their.apply(&[PeerChange { origin: &actor(b'b'), bytes: change }]);
                        }
                    }
                    sent = ours.len();
                }
                Step::Reload => here = copy_for(&here, b'b'),
                Step::Settle => here.settle().unwrap(),
            }
            prop_assert_eq!(text(&here), text(&slow));
            prop_assert_eq!(here.heads(), slow.heads());
            prop_assert_eq!(here.history_changes(), slow.history_changes());
            prop_assert_eq!(here.to_json().to_canonical(), slow.to_canonical_json());
        }
        let before = here.to_canonical_json();
        prop_assert_eq!(text(&copy_for(&here, b'z')), text(&slow));
        here.settle().unwrap();
        prop_assert_eq!(here.save(), slow.save());
        prop_assert_eq!(copy_for(&here, b'z').to_canonical_json(), before);
    }
}

#[test]
fn most_small_writes_are_ahead() {
    let paths = paths(&[], &["/n"]);
    let (mut document, _) = showing(b'a', r#"{"a":{"b":1},"l":[{"k":1}],"n":0,"s":"x"}"#, &paths);
    let set = |path: &str, value: &str| PatchOp::Set { path: pointer(path), value: json(value) };
    let mut ahead = 0;
    for operations in [
        vec![set("/s", "\"y\"")],
        vec![set("/a/b", "2"), set("/a/c", "null"), set("/z", "1.5")],
        vec![set("/l/0/k", "true")],
        vec![PatchOp::Remove { path: pointer("/a/c") }],
        vec![PatchOp::Increment { path: pointer("/n"), by: 7 }],
        vec![set("/n", "3")],
    ] {
        assert!(document.patch(&operations, None, &paths, 0).unwrap().is_some());
        ahead += 1;
        assert_eq!(document.ahead.count(), ahead, "{operations:?}");
    }
    assert_eq!(text(&document), r#"{"a":{"b":2},"l":[{"k":true}],"n":3,"s":"y","z":1.5}"#);
    // What is there already is no change, and what is more than entries of maps settles the rest first.
    assert_eq!(document.patch(&[set("/s", "\"y\"")], None, &paths, 0), Ok(None));
    document.patch(&[set("/l/0", "{}")], None, &paths, 0).unwrap();
    assert_eq!(document.ahead.count(), 0);
    assert_eq!(text(&document), r#"{"a":{"b":2},"l":[{}],"n":3,"s":"y","z":1.5}"#);
    // A put whose difference is entries.
    let (mut document, _) = showing(b'a', r#"{"a":{"b":1},"s":"x"}"#, &plain());
    document.replace(&json(r#"{"a":{"b":2,"c":3}}"#), None, &plain(), 0).unwrap();
    assert_eq!((document.ahead.count(), &text(&document)[..]), (1, r#"{"a":{"b":2,"c":3}}"#));
}

#[test]
fn changes_ahead_are_bounded() {
    let (mut document, _) = showing(b'a', r#"{"x":0}"#, &plain());
    let mut most = 0;
    for n in 1..1_000 {
        let operation = PatchOp::Set { path: pointer("/x"), value: Json::Int(n) };
        document.patch(&[operation], None, &plain(), 0).unwrap();
        most = most.max(document.ahead.count());
    }
    assert_eq!(most, 64);
    assert_eq!((document.history_changes(), text(&document)), (1_000, r#"{"x":999}"#.into()));
    for n in 0..1_000 {
        let operation = PatchOp::Set { path: pointer(&format!("/k{n}")), value: Json::Int(n) };
        document.patch(&[operation], None, &plain(), 0).unwrap();
    }
    assert_eq!(document.history_changes(), 2_000);
    assert_eq!(copy_for(&document, b'b').to_canonical_json(), document.to_canonical_json());
}

#[test]
fn increments_beside_a_concurrent_plain_value_are_automerge_s() {
    let counters = paths(&[], &["/n"]);
    // The counter wins: its writer is the higher actor.
    let (mut here, ours) = showing(b'b', r#"{"n":1}"#, &counters);
    let mut slow = Document::empty(&actor(b'b'));
    let value = json(r#"{"n":1}"#);
    assert_eq!(replace_by_automerge(&mut slow, &value, &counters, 0), Ok(Some(ours)));
    let (_, theirs) = showing(b'a', r#"{"n":7}"#, &plain());
    receive(&mut here, b'a', &theirs);
    receive(&mut slow, b'a', &theirs);
    for _ in 0..3 {
        let increment = [PatchOp::Increment { path: pointer("/n"), by: 1 }];
        let change = here.patch(&increment, None, &counters, 0);
        assert_eq!(change, patch_by_automerge(&mut slow, &increment, &counters, 0));
    }
    assert_eq!((text(&here), here.ahead.count()), (r#"{"n":4}"#.into(), 2));
}
