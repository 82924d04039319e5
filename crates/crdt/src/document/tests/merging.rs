//! The laws of merging: whatever the order of arrival, the same set of changes is the same document.

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::Index;

use super::{actor, any_root, json, paths, plain, pointer, receive, showing, text};
use crate::document::{Document, Heads, PatchOp, Paths, PeerChange};
use crate::json::Json;

/// What one of three members does.
#[derive(Debug, Clone)]
enum Step {
    Put(Json),
    /// At a version seen before.
    PutAt(Index, Json),
    Increment(i64),
    Splice(usize, String),
    /// Takes what another member has.
    Pull(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any_root().prop_map(Step::Put),
        2 => (any::<Index>(), any_root()).prop_map(|(at, value)| Step::PutAt(at, value)),
        2 => (-5_i64..5).prop_map(Step::Increment),
        2 => (0_usize..9, "[a-zé]{0,3}").prop_map(|(at, text)| Step::Splice(at, text)),
        3 => (0_usize..3).prop_map(Step::Pull),
    ]
}

struct Member {
    document: Document,
    letter: u8,
    versions: Vec<Heads>,
}

fn with_places(value: &Json) -> Json {
    let Json::Object(mut entries) = value.clone() else { panic!("an object") };
    entries.insert("n".into(), Json::Int(1));
    entries.insert("t".into(), Json::String("some text".into()));
    Json::Object(entries)
}

/// Runs the steps; returns the members and every change with its author, in an order that respects causality.
fn run(steps: &[(usize, Step)], paths: &Paths) -> (Vec<Member>, Vec<(u8, Vec<u8>)>) {
    let member = |letter| Member {
        document: Document::empty(&actor(letter)),
        letter,
        versions: vec![Heads::default()],
    };
    let mut members: Vec<Member> = [b'a', b'b', b'c'].map(member).into();
    let mut changes: Vec<(u8, Vec<u8>)> = Vec::new();
    for (who, step) in steps {
        if let Step::Pull(from) = step {
            let news = members[*from].document.changes_since(&Heads::default()).unwrap();
            let all: Vec<(Vec<u8>, &[u8])> = news
                .iter()
                .map(|bytes| (actor(changes.iter().find(|(_, known)| known == bytes).unwrap().0), &bytes[..]))
                .collect();
            let batch: Vec<PeerChange<'_>> =
                all.iter().map(|(origin, bytes)| PeerChange { origin, bytes }).collect();
            members[*who].document.apply(&batch).unwrap();
        } else {
            let Member { document, letter, versions } = &mut members[*who];
            let made = match step {
                Step::Put(value) => document.replace(&with_places(value), None, paths, 0).unwrap(),
                Step::PutAt(at, value) => {
                    document.replace(&with_places(value), Some(at.get(versions)), paths, 0).unwrap()
                }
                Step::Increment(by) => {
                    let increment = PatchOp::Increment { path: pointer("/n"), by: *by };
                    document.patch(&[increment], None, paths, 0).unwrap_or_default()
                }
                Step::Splice(at, insert) => {
                    let (path, insert) = (pointer("/t"), insert.clone());
                    let splice = PatchOp::SpliceText { path, index: *at, delete: *at % 3, insert };
                    document.patch(&[splice], None, paths, 0).unwrap_or_default()
                }
                Step::Pull(_) => None,
            };
            changes.extend(made.map(|change| (*letter, change)));
        }
        let heads = members[*who].document.heads();
        members[*who].versions.push(heads);
    }
    (members, changes)
}

/// Delivers the changes to a new member: each time one of those whose turn it may be, as `choices` say.
fn deliver(changes: &[(u8, Vec<u8>)], choices: &[Index], batch: usize) -> Document {
    let mut document = Document::empty(&actor(b'z'));
    let mut waiting: Vec<(Vec<u8>, &[u8])> =
        changes.iter().map(|(who, bytes)| (actor(*who), &bytes[..])).collect();
    let mut turn = 0;
    while !waiting.is_empty() {
        if let Some(choice) = choices.get(turn % choices.len().max(1)) {
            let start = choice.index(waiting.len());
            waiting.rotate_left(start);
        }
        turn += 1;
        let ready = waiting.iter().position(|(origin, bytes)| {
            // A change that came too early is refused and changes nothing.
            document.apply(&[PeerChange { origin, bytes }]).is_ok()
        });
        waiting.remove(ready.expect("something is always next"));
        if batch > 1 {
            // The rest in as large batches as happen to be in order.
            let ordered: Vec<PeerChange<'_>> =
                waiting.iter().take(batch).map(|(origin, bytes)| PeerChange { origin, bytes }).collect();
            let taken = ordered.len();
            if document.apply(&ordered).is_ok() {
                waiting.drain(..taken);
            }
        }
    }
    document
}

#[test]
fn what_is_written_into_an_item_that_was_removed_is_taken_in_every_order() {
    let (mut theirs, first) = showing(b'b', r#"{"c":[1,1,1,{}]}"#, &plain());
    let base = theirs.heads();
    let inside = theirs.replace(&json(r#"{"c":[1,1,1,{"k":[]}]}"#), None, &plain(), 0).unwrap().unwrap();
    let removed = theirs.replace(&json(r#"{"c":[]}"#), Some(&base), &plain(), 0).unwrap().unwrap();
    for [second, third] in [[&inside, &removed], [&removed, &inside]] {
        let mut document = Document::empty(&actor(b'a'));
        for change in [&first, second, third] {
            receive(&mut document, b'b', change);
        }
        assert_eq!(text(&document), r#"{"c":[]}"#);
        assert_eq!(document.heads(), theirs.heads());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_causal_order_of_delivery_ends_in_the_same_document(
        steps in vec((0_usize..3, any_step()), 1..25),
        choices in vec(any::<Index>(), 1..8),
        batch in 1_usize..6,
    ) {
        let paths = paths(&["/t"], &["/n"]);
        let (members, changes) = run(&steps, &paths);
        let one = deliver(&changes, &[], 1);
        let other = deliver(&changes, &choices, batch);
        prop_assert_eq!(one.heads(), other.heads());
        prop_assert_eq!(text(&one), text(&other));
        prop_assert_eq!(one.history_changes(), changes.len() as u64);
        let loaded = Document::load(&other.save(), &actor(b'y')).unwrap();
        prop_assert_eq!(loaded.heads(), one.heads());
        prop_assert_eq!(text(&loaded), text(&one));
        for mut member in members {
            let all: Vec<(Vec<u8>, &[u8])> = changes.iter().map(|(who, bytes)| (actor(*who), &bytes[..])).collect();
            let batch: Vec<PeerChange<'_>> =
                all.iter().map(|(origin, bytes)| PeerChange { origin, bytes }).collect();
            let applied = member.document.apply(&batch).unwrap();
            prop_assert_eq!(applied.applied + applied.known, changes.len());
            prop_assert_eq!(text(&member.document), text(&one), "member {}", char::from(member.letter));
            prop_assert_eq!(member.document.heads(), one.heads());
        }
    }
}
