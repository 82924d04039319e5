//! Versions and rivals: what the history tells.

use super::super::{Conflict, Light, Order, Rival, heads_until};
use super::*;

/// The bytes of a real origin, ordered by the letter: only of such can be told who they are.
fn actor(letter: u8) -> Vec<u8> {
    let node = crate::NodeId::new(&format!("node-{}", char::from(letter))).unwrap();
    crate::Origin { node, incarnation: 7, random: 7 }.to_bytes()
}

fn showing(letter: u8, value: &str, paths: &Paths) -> (Document, Vec<u8>) {
    let mut document = Document::empty(&actor(letter));
    let change = document.replace(&json(value), None, paths, 0).unwrap().unwrap_or_default();
    (document, change)
}

fn copy_for(document: &Document, letter: u8) -> Document {
    Document::load(&document.save(), &actor(letter)).unwrap()
}

/// Everything two documents have, in both.
fn meet(one: &mut Document, other: &mut Document) {
    let (from_one, from_other) = (one.clone(), other.clone());
    for (to, from) in [(one, from_other), (other, from_one)] {
        for change in from.changes_since(&Heads::default()).unwrap() {
            let origin = Document::made_by(&change).unwrap().origin;
            to.apply(&[PeerChange { origin: &origin, bytes: &change }]).unwrap();
        }
    }
}

fn set(document: &mut Document, path: &str, value: &str, seconds: i64) {
    let operation = PatchOp::Set { path: pointer(path), value: json(value) };
    document.patch(&[operation], None, &plain(), seconds).unwrap();
}

fn told(conflict: &Conflict) -> (String, String, String) {
    let json = |rival: &Rival| String::from_utf8(rival.json.clone()).unwrap();
    (conflict.path.to_string(), json(&conflict.shown), json(&conflict.hidden))
}

#[test]
fn the_history_is_newest_first_and_each_change_is_a_version() {
    let mut document = Document::empty(&actor(b'a'));
    let mut shown = Vec::new();
    for n in 0..5_i64 {
        set(&mut document, "/n", &n.to_string(), 100 + n / 2);
        shown.push(text(&document));
    }
    let made = document.made_changes().unwrap();
    let times: Vec<i64> = made.iter().map(|made| made.time_seconds).collect();
    assert_eq!(times, [102, 101, 101, 100, 100]);
    for (made, shown) in made.iter().zip(shown.iter().rev()) {
        let version = Heads::from_hashes(vec![made.hash]);
        assert_eq!(String::from_utf8(document.canonical_at(&version).unwrap()).unwrap(), *shown);
        assert_eq!(made.origin.unwrap().to_bytes(), actor(b'a'));
        assert_eq!((made.operations, document.change_bytes(made.hash).is_some()), (1, true));
    }
    assert_eq!(made[0].on, Heads::from_hashes(vec![made[1].hash]));
    let unknown = Heads::from_hashes(vec![[9; 32]]);
    assert_eq!((document.canonical_at(&unknown), document.change_bytes([9; 32])), (None, None));
}

#[test]
fn the_version_of_a_time_is_everything_made_up_to_then() {
    let (mut a, _) = showing(b'a', r#"{"x":0}"#, &plain());
    let mut b = copy_for(&a, b'b');
    set(&mut a, "/x", "1", 10);
    set(&mut b, "/y", "2", 11);
    meet(&mut a, &mut b);
    set(&mut b, "/x", "3", 12);
    let made = b.made_changes().unwrap();
    let at = |seconds| String::from_utf8(b.canonical_at(&heads_until(&made, seconds)).unwrap()).unwrap();
    assert_eq!(at(-1), "{}");
    assert_eq!(at(0), r#"{"x":0}"#);
    assert_eq!(at(10), r#"{"x":1}"#);
    assert_eq!(at(11), r#"{"x":1,"y":2}"#);
    assert_eq!(at(99), r#"{"x":3,"y":2}"#);
    assert_eq!(heads_until(&made, 11).hashes().len(), 2, "two writers that had not seen each other");
}

#[test]
fn members_tell_the_same_history_and_the_same_conflicts() {
    let (mut a, _) = showing(b'a', r#"{"l":[1,2],"m":{},"x":0}"#, &plain());
    let mut b = copy_for(&a, b'b');
    for (document, n) in [(&mut a, "1"), (&mut b, "2")] {
        set(document, "/x", n, 5);
        set(document, "/l/1", &format!("{n}0"), 5);
        set(document, "/m/new", &format!(r#"{{"of":{n}}}"#), 5);
        set(document, "/same", "true", 5);
    }
    meet(&mut a, &mut b);
    assert_eq!(text(&a), text(&b));
    let conflicts = a.conflicts(10).unwrap();
    assert_eq!(conflicts, b.conflicts(10).unwrap());
    let orders = |document: &mut Document| -> Vec<Order> {
        document.made_changes().unwrap().iter().map(|made| made.order()).collect()
    };
    assert_eq!(orders(&mut a), orders(&mut b));

    let told: Vec<_> = conflicts.found.iter().map(told).collect();
    let of = |path: &str, shown: &str, hidden: &str| (path.to_owned(), shown.to_owned(), hidden.to_owned());
    // The greater author's, since both numbered their operations alike; equal values are no conflict.
    assert_eq!(
        told,
        [of("/x", "2", "1"), of("/l/1", "20", "10"), of("/m/new", r#"{"of":2}"#, r#"{"of":1}"#)]
    );
    let [x, item, _] = &conflicts.found[..] else { panic!("three") };
    assert_eq!((x.in_list, item.in_list), (false, true));
    assert_eq!(x.hidden.origin.unwrap().to_bytes(), actor(b'a'));
    assert_eq!(x.hidden.time_seconds, 5);
    let there = a.canonical_at(&x.hidden.version).unwrap();
    assert_eq!(String::from_utf8(there).unwrap(), r#"{"l":[1,2],"m":{},"x":1}"#, "as its author left it");
    let few = a.conflicts(2).unwrap();
    assert_eq!((few.found.len(), few.more), (2, true));
}

#[test]
fn a_conflict_stands_until_a_write_that_has_seen_both_replaces_them() {
    let (mut a, _) = showing(b'a', r#"{"x":0,"l":[0]}"#, &plain());
    let mut b = copy_for(&a, b'b');
    for (document, n) in [(&mut a, r#"{"v":"1"}"#), (&mut b, r#"{"v":"2"}"#)] {
        set(document, "/x", n, 5);
        set(document, "/l/0", n, 5);
    }
    meet(&mut a, &mut b);
    set(&mut a, "/other", "1", 6);
    assert_eq!(a.conflicts(10).unwrap().found.len(), 2, "a write elsewhere decides nothing");
    // As `tropism conflicts --take` does: what is set over an object would be written into the object.
    let remove = |path| PatchOp::Remove { path: pointer(path) };
    let set = PatchOp::Set { path: pointer("/x"), value: json(r#"{"v":"1"}"#) };
    a.patch(&[remove("/x"), set], None, &plain(), 7).unwrap();
    let insert = PatchOp::Insert { path: pointer("/l/0"), value: json(r#"{"v":"1"}"#) };
    a.patch(&[remove("/l/0"), insert], None, &plain(), 7).unwrap();
    assert_eq!(a.conflicts(10).unwrap().found, []);
    assert_eq!(text(&a), r#"{"l":[{"v":"1"}],"other":1,"x":{"v":"1"}}"#);
}

#[test]
fn counters_that_began_apart_are_rivals_even_while_they_show_the_same() {
    let counters = paths(&[], &["/n"]);
    let (mut a, _) = showing(b'a', "{}", &counters);
    let mut b = copy_for(&a, b'b');
    for document in [&mut a, &mut b] {
        document.replace(&json(r#"{"n":1}"#), None, &counters, 1).unwrap();
    }
    meet(&mut a, &mut b);
    assert_eq!(a.conflicts(10).unwrap().found.len(), 1);
}

#[test]
fn what_is_undisputed_without_automerge_has_no_conflicts_with_it() {
    let (mut one, first) = showing(b'a', r#"{"l":[1],"m":{"x":1}}"#, &plain());
    let nothing: [Vec<u8>; 0] = [];
    assert!(Light::has_one_author(None, std::slice::from_ref(&first)));
    let stored = one.to_stored().unwrap();
    assert!(Light::has_one_author(Some(&stored), &nothing));
    let mut other = copy_for(&one, b'b');
    let set = PatchOp::Set { path: pointer("/m/x"), value: json("2") };
    let change = other.patch(&[set], None, &plain(), 0).unwrap().unwrap();
    assert!(!Light::has_one_author(Some(&stored), std::slice::from_ref(&change)));
    assert!(!Light::has_one_author(None, &[[first, change].concat()]), "two in one piece");
    let both = other.to_stored().unwrap();
    assert!(!Light::has_one_author(Some(&both), &nothing));
    assert!(
        !Light::has_one_author(Some(b"\x01\x05torn"), &nothing) && !Light::has_one_author(None, &[b"torn"])
    );

    // Plain entries of several authors: undisputed until two write one of them apart.
    let (mut a, _) = showing(b'a', r#"{"x":0}"#, &plain());
    let mut b = copy_for(&a, b'b');
    set_and_meet(&mut a, &mut b, "/y", "/z");
    let light = |document: &mut Document| document.clone().into_light().unwrap();
    assert!(light(&mut a).is_undisputed() && a.conflicts(10).unwrap().found.is_empty());
    set_and_meet(&mut a, &mut b, "/x", "/x");
    assert!(!light(&mut a).is_undisputed() && a.conflicts(10).unwrap().found.len() == 1);
}

/// Each sets a place to a value of its own, then they meet.
fn set_and_meet(a: &mut Document, b: &mut Document, by_a: &str, by_b: &str) {
    set(a, by_a, "1", 1);
    set(b, by_b, "2", 1);
    meet(a, b);
}

#[test]
fn a_merge_says_at_how_many_places_values_stand_beside_each_other_since() {
    let (mut a, _) = showing(b'a', r#"{"l":[0,0],"x":0,"y":0}"#, &plain());
    let apply = |to: &mut Document, of: &Document, since: &Heads| {
        let made: Vec<_> =
            of.changes_since(since).unwrap().iter().map(|c| Document::made_by(c).unwrap()).collect();
        let changes: Vec<_> =
            made.iter().map(|m| PeerChange { origin: &m.origin, bytes: &m.bytes }).collect();
        to.apply(&changes).unwrap().disputed
    };
    let mut b = copy_for(&a, b'b');
    let start = a.heads();
    for (document, n) in [(&mut a, "1"), (&mut b, "2")] {
        set(document, "/x", n, 5);
        set(document, "/l/1", n, 5);
    }
    set(&mut b, "/y", "3", 5);
    let (mine, theirs) = (a.clone(), b.clone());
    assert_eq!(apply(&mut a, &theirs, &start), 2, "the greater author's win");
    assert_eq!(apply(&mut b, &mine, &start), 2, "the smaller author's lose");
    assert_eq!(a.conflicts(10).unwrap(), b.conflicts(10).unwrap());
    let met = a.heads();
    set(&mut a, "/x", "9", 6);
    set(&mut a, "/l", "[7]", 6);
    assert_eq!(apply(&mut b, &a, &met), 0, "who has seen everything disputes nothing");
    assert_eq!(apply(&mut b, &a, &met), 0, "and what is known is not applied again");
}
