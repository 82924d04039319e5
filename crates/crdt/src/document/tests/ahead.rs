//! Writes ahead of automerge are those that automerge would have made, to the byte.

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::super::diff::Writer;
use super::super::patch;
use super::{actor, any_root, copy_for, json, paths, plain, pointer, receive, showing, text};
use crate::document::{Document, DocumentError, Heads, Light, PatchError, PatchOp, Paths, PeerChange, Tried};
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
                        slow.merge(&[PeerChange { origin: &actor(letter), bytes: &change }]).unwrap();
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

/// One member three times: as it is, by automerge alone, and without automerge as long as that goes.
struct Member {
    letter: u8,
    here: Document,
    slow: Document,
    light: Light,
    /// Changes that it has, of everybody: how many of the common list by author.
    seen: [usize; 3],
}

impl Member {
    fn new(letter: u8) -> Self {
        let own = actor(letter);
        let (here, slow) = (Document::empty(&own), Document::empty(&own));
        Self { letter, here, slow, light: Light::empty(&own), seen: [0; 3] }
    }

    /// The light state may be none for a document that is too large; then it stays behind, and says so by its heads.
    fn renew(&mut self) {
        if let Some(light) = self.here.clone().into_light() {
            self.light = light;
        }
    }

    fn check(&self) -> Result<(), proptest::test_runner::TestCaseError> {
        let Self { here, slow, light, .. } = self;
        prop_assert_eq!(text(here), text(slow));
        prop_assert_eq!(here.heads(), slow.heads());
        prop_assert_eq!(here.history_changes(), slow.history_changes());
        prop_assert_eq!(light.heads(), slow.heads());
        prop_assert_eq!(&light.shown()[..], slow.to_canonical_json());
        prop_assert_eq!(light.history_changes(), slow.history_changes());
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Act {
    Patch(usize, Vec<PatchOp>),
    Put(usize, Json),
    /// What the second lacks of the first's.
    Give(usize, usize, bool),
    Reload(usize),
    /// The document stays without automerge from here on.
    Shed(usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    let member = || 0..3_usize;
    let together = any::<bool>();
    prop_oneof![
        8 => (member(), vec(any_operation(), 1..4)).prop_map(|(of, operations)| Act::Patch(of, operations)),
        2 => (member(), any_root()).prop_map(|(of, value)| Act::Put(of, value)),
        9 => (member(), member(), together).prop_map(|(from, to, together)| Act::Give(from, to, together)),
        1 => member().prop_map(Act::Reload),
        1 => member().prop_map(Act::Shed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn what_peers_send_is_what_automerge_makes_of_it(acts in vec(any_act(), 1..60), merging in any::<bool>()) {
        let paths = if merging { paths(&["/t", "/b/*"], &["/n", "/*/n"]) } else { plain() };
        let mut members = [b'a', b'b', b'c'].map(Member::new);
        // Of each author, its changes, and how many of each author each had seen.
        let mut made: [Vec<(Vec<u8>, [usize; 3])>; 3] = Default::default();
        for (time, act) in acts.iter().enumerate() {
            let time = time as i64 * 1_000_003;
            match act {
                Act::Patch(of, _) | Act::Put(of, _) => {
                    let member = &mut members[*of];
                    let heads = member.here.heads();
                    let (change, tried) = match act {
                        Act::Patch(_, operations) => {
                            let change = member.here.patch(operations, None, &paths, time);
                            let slow = patch_by_automerge(&mut member.slow, operations, &paths, time);
                            prop_assert_eq!(&change, &slow);
                            (change.ok(), member.light.patch(operations, None, &paths, time))
                        }
                        Act::Put(_, value) => {
                            let change = member.here.replace(value, None, &paths, time);
                            let slow = replace_by_automerge(&mut member.slow, value, &paths, time);
                            prop_assert_eq!(&change, &slow);
                            (change.ok(), member.light.replace(value, Some(&heads), &paths, time))
                        }
                        _ => continue,
                    };
                    match tried.unwrap() {
                        Tried::Done(light) => prop_assert_eq!(Some(light), change.clone()),
                        Tried::NeedsAutomerge => member.renew(),
                    }
                    if let Some(Some(change)) = change {
                        member.seen[*of] += 1;
                        made[*of].push((change, member.seen));
                    }
                }
                Act::Give(from, to, together) => {
                    let giver = members[*from].seen;
                    let member = &mut members[*to];
                    let mut changes: Vec<(usize, Vec<u8>, [usize; 3])> = Vec::new();
                    for (author, given) in giver.into_iter().enumerate() {
                        let had = member.seen[author];
                        let missing = made[author][had..given.max(had)].iter();
                        changes.extend(missing.map(|(bytes, seen)| (author, bytes.clone(), *seen)));
                    }
                    // In causal order: who has seen less comes first.
                    changes.sort_by_key(|(_, _, seen)| seen.iter().sum::<usize>());
                    let batch: Vec<(Vec<u8>, &[u8])> =
                        changes.iter().map(|(author, bytes, _)| (actor(b"abc"[*author]), &bytes[..])).collect();
                    let batch: Vec<PeerChange<'_>> =
                        batch.iter().map(|(origin, bytes)| PeerChange { origin, bytes }).collect();
                    let size = if *together { batch.len().max(1) } else { 1 };
                    for batch in batch.chunks(size) {
                        prop_assert_eq!(member.here.apply(batch).unwrap().applied, batch.len());
                        prop_assert_eq!(member.slow.merge(batch).unwrap().applied, batch.len());
                        if !batch.iter().all(|change| member.light.apply(*change)) {
                            member.renew();
                        }
                        member.check()?;
                    }
                    for (seen, given) in member.seen.iter_mut().zip(giver) {
                        *seen = given.max(*seen);
                    }
                }
                Act::Reload(of) => {
                    let member = &mut members[*of];
                    let stored = member.here.clone().to_stored().unwrap();
                    member.here = Document::load(&stored, &actor(member.letter)).unwrap();
                    let restored = Light::restore(Some(&stored), &[[]; 0], &actor(member.letter));
                    let light = restored.expect("a small document has a light state");
                    prop_assert_eq!(light.history_bytes(), member.here.history_bytes());
                    member.here.adopt(&light).unwrap();
                    member.light = light;
                }
                Act::Shed(of) => {
                    members[*of].here.settle().unwrap();
                    members[*of].renew();
                }
            }
            for member in &members {
                member.check()?;
            }
        }
        for member in &mut members {
            member.here.settle().unwrap();
            prop_assert_eq!(member.here.save(), member.slow.save());
            prop_assert_eq!(text(&copy_for(&member.here, b'z')), text(&member.slow));
        }
    }
}

#[test]
fn chains_of_plain_edits_need_no_automerge() {
    let paths = paths(&["/t"], &["/n"]);
    let set = |path: &str, value: &str| PatchOp::Set { path: pointer(path), value: json(value) };
    let increment = || PatchOp::Increment { path: pointer("/n"), by: 7 };
    let mut there = Light::empty(&actor(b'a'));
    let mut here = Light::empty(&actor(b'b'));
    let mut writes = 0;
    let mut write = |from: &mut Light, letter, to: &mut Light, operations: &[PatchOp]| {
        let Tried::Done(Some(change)) = from.patch(operations, None, &paths, 5).unwrap() else {
            panic!("{operations:?}")
        };
        writes += 1;
        assert!(to.apply(PeerChange { origin: &actor(letter), bytes: &change }), "{operations:?}");
        assert_eq!((from.heads(), from.shown()), (to.heads(), to.shown()));
        assert_eq!((to.history_changes(), from.history_changes()), (writes, writes));
    };
    write(&mut there, b'a', &mut here, &[set("/s", "1.5"), set("/n", "3"), set("/x", "\"x\"")]);
    write(&mut here, b'b', &mut there, &[increment(), set("/s", "null")]);
    write(&mut here, b'b', &mut there, &[PatchOp::Remove { path: pointer("/s") }]);
    write(&mut there, b'a', &mut here, &[set("/s", "18446744073709551615"), set("/n", "-4")]);
    assert_eq!(&here.shown()[..], br#"{"n":-4,"s":18446744073709551615,"x":"x"}"#);
    assert!(here.estimated_bytes() < 1_024, "{}", here.estimated_bytes());
    // It comes back from the store, and is refused where that is damaged.
    let mut whole = Document::empty(&actor(b'z'));
    whole.adopt(&Light::empty(&actor(b'z'))).unwrap();
    assert!(whole.adopt(&here).is_err(), "of another version");
    // What needs automerge is left alone.
    let before = here.clone();
    for operations in [
        vec![set("/t", "\"text\"")],
        vec![set("/m", "{}")],
        vec![set("/q/r", "1")],
        vec![PatchOp::Remove { path: pointer("/nothing") }],
    ] {
        assert_eq!(here.patch(&operations, None, &paths, 5), Ok(Tried::NeedsAutomerge));
    }
    let base = Heads::default();
    assert_eq!(here.patch(&[set("/s", "1")], Some(&base), &paths, 5), Ok(Tried::NeedsAutomerge));
    assert_eq!((here.heads(), here.shown()), (before.heads(), before.shown()));
}

#[test]
fn a_light_state_is_stored_with_its_document() {
    let paths = paths(&["/t"], &["/n"]);
    let (mut document, first) = showing(b'a', r#"{"l":[{"k":1}],"m":{"x":"y"},"n":5,"t":"text"}"#, &paths);
    let stored = document.to_stored().unwrap();
    let (mut light, _) = (Light::restore(Some(&stored), &[[]; 0], &actor(b'b')).unwrap(), first);
    // The changes behind it are applied, several in a piece.
    let mut pieces = vec![Vec::new(), Vec::new()];
    for n in 0..6 {
        let set = |path| PatchOp::Set { path: pointer(path), value: Json::Int(n) };
        let by = PatchOp::Increment { path: pointer("/n"), by: 1 };
        let operations = [set("/l/0/k"), set("/m/x"), by, set("/m/z")];
        let Tried::Done(Some(change)) = light.patch(&operations, None, &paths, 0).unwrap() else { panic!() };
        pieces[usize::from(n > 2)].extend(change);
    }
    let restored = Light::restore(Some(&stored), &pieces, &actor(b'c')).unwrap();
    assert_eq!((restored.heads(), restored.shown()), (light.heads(), light.shown()));
    assert_eq!(&light.shown()[..], br#"{"l":[{"k":5}],"m":{"x":5,"z":5},"n":11,"t":"text"}"#);
    let mut whole = Document::load(&stored, &actor(b'c')).unwrap();
    whole.restore(&pieces).unwrap();
    whole.adopt(&restored).unwrap();
    assert_eq!(whole.history_bytes(), restored.history_bytes());
    assert_eq!(text(&whole).as_bytes(), &restored.shown()[..]);
    // Damaged pieces, one that is missing, and a document without a light state need automerge.
    assert!(Light::restore(Some(&stored), &pieces[1..], &actor(b'c')).is_none());
    assert!(Light::restore(Some(&stored), &[&pieces[0][1..]], &actor(b'c')).is_none());
    assert!(Light::restore(Some(&whole.save()), &[[]; 0], &actor(b'c')).is_none());
    for cut in 0..stored.len() - whole.save().len().min(stored.len()) {
        assert!(Light::restore(Some(&stored[..cut]), &[[]; 0], &actor(b'c')).is_none(), "{cut}");
    }
}

#[test]
fn a_stored_light_state_is_not_changed_unseen() {
    let (mut document, _) = showing(b'a', r#"{"m":{"x":1}}"#, &plain());
    let stored = document.to_stored().unwrap();
    let state = [
        "01", // one head
        "@0",
        "01",
        "17056e6f64652d61@7",
        "01",
        "@0",                           // one author: actor, seq, last
        "02",                           // the last operation
        "01",                           // changes
        "0d7b226d223a7b2278223a317d7d", // shown
        "01",                           // entries of the fullest container
        "02",                           // maps
        "00",
        "0000",
        "01",
        "016d",
        "02", // the root: no path, no id, one entry, a container
        "01",
        "016d",
        "00",
        "0100",
        "01",
        "0178",
        "00",
        "01",
        "0200", // m: made by 1, x: plain, of 2
    ];
    let head = document.heads().to_string();
    let hex: String = state.concat().replace("@0", &head).replace("@7", &"07".repeat(16));
    let written: String = stored.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written[..6], *"018101", "the mark, 129 bytes");
    assert_eq!(written[6..6 + hex.len()], hex);
    assert_eq!(written[6 + hex.len()..][..8], *"856f4a83", "automerge's document");
}

#[test]
fn what_is_no_chain_of_plain_edits_is_left_to_automerge() {
    let (document, _) = showing(b'b', r#"{"x":1,"y":1}"#, &plain());
    let edit = |document: &Document, letter, path: &str| {
        let mut document = copy_for(document, letter);
        let set = [PatchOp::Set { path: pointer(path), value: Json::Int(2) }];
        (document.patch(&set, None, &plain(), 0).unwrap().unwrap(), document)
    };
    let light = document.clone().into_light().unwrap();
    let apply = |light: &Light, letter, bytes: &[u8]| {
        let mut light = light.clone();
        let before = light.clone();
        let applied = light.apply(PeerChange { origin: &actor(letter), bytes });
        assert_eq!(light.heads() != before.heads(), applied);
        applied.then_some(light)
    };
    let (first, one) = edit(&document, b'a', "/x");
    let (second, _) = edit(&one, b'a', "/y");
    let (concurrent, _) = edit(&document, b'c', "/x");
    assert!(apply(&light, b'b', &first).is_none(), "of another origin");
    assert!(apply(&light, b'a', &second).is_none(), "too early");
    let after = apply(&light, b'a', &first).unwrap();
    assert!(apply(&after, b'a', &first).is_none(), "known");
    assert!(apply(&after, b'c', &concurrent).is_none(), "concurrent");
    assert!(apply(&after, b'a', &second).is_some());
    // Two stores with one origin.
    let (fork, _) = edit(&document, b'a', "/y");
    assert!(apply(&after, b'a', &fork).is_none(), "a fork");
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
        assert_eq!(document.ahead.len(), ahead, "{operations:?}");
    }
    assert_eq!(text(&document), r#"{"a":{"b":2},"l":[{"k":true}],"n":3,"s":"y","z":1.5}"#);
    // What is there already is no change, and what is more than entries of maps settles the rest first.
    assert_eq!(document.patch(&[set("/s", "\"y\"")], None, &paths, 0), Ok(None));
    document.patch(&[set("/l/0", "{}")], None, &paths, 0).unwrap();
    assert_eq!(document.ahead.len(), 0);
    assert_eq!(text(&document), r#"{"a":{"b":2},"l":[{}],"n":3,"s":"y","z":1.5}"#);
    // A put whose difference is entries.
    let (mut document, _) = showing(b'a', r#"{"a":{"b":1},"s":"x"}"#, &plain());
    document.replace(&json(r#"{"a":{"b":2,"c":3}}"#), None, &plain(), 0).unwrap();
    assert_eq!((document.ahead.len(), &text(&document)[..]), (1, r#"{"a":{"b":2,"c":3}}"#));
}

#[test]
fn changes_ahead_are_bounded() {
    let (mut document, _) = showing(b'a', r#"{"x":0}"#, &plain());
    let mut most = 0;
    for n in 1..1_000 {
        let operation = PatchOp::Set { path: pointer("/x"), value: Json::Int(n) };
        document.patch(&[operation], None, &plain(), 0).unwrap();
        most = most.max(document.ahead.len());
    }
    assert_eq!(most, 256);
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
    assert_eq!((text(&here), here.ahead.len()), (r#"{"n":4}"#.into(), 2));
}
