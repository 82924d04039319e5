//! The order in which frames are taken.
#![allow(clippy::unwrap_used, reason = "tests")]
use tropism_crdt::{Body, ExpiryChange, Origin, Stamp, Vector};
use tropism_placement::ShardId;

use super::*;
use crate::frame::{Heartbeat, StatePart, Told};
use tropism_storage::rows::Seen;

const NOW: Now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// Changes `from..to` of an author, so old.
fn changes(numbers: std::ops::Range<u64>, age_ms: u64) -> FrameBody {
    let origin = Origin { node: node("a"), incarnation: 1, random: 1 };
    let change = |seq| Change {
        scope: "s".into(),
        scope_incarnation: 0,
        shard_index: 0,
        origin,
        seq,
        deps: vec![(origin, 1)],
        stamp: Stamp::new(NOW.wall_ms - age_ms, 0),
        key: "k".into(),
        life: 0,
        generation: 0,
        epoch: 1,
        request_id: None,
        trace: None,
        expiry: ExpiryChange::Keep,
        body: Body::Touch,
    };
    FrameBody::Changes(numbers.map(|seq| change(seq).encode()).collect())
}

fn told() -> FrameBody {
    FrameBody::Told(Told { commit: 1, directory_revision: 0, shards: Vec::new() })
}

fn heartbeat() -> FrameBody {
    FrameBody::Heartbeat(Heartbeat {
        sent_us: 0,
        wall_ms: 0,
        echo: (0, 0),
        closed: Stamp::ZERO,
        seen: Seen::default(),
        your_cursor: 0,
        linked: Vec::new(),
        stores: Vec::new(),
        wholeness: crate::frame::Wholeness::Whole,
        keys: 0,
    })
}

fn state() -> FrameBody {
    FrameBody::State(StatePart {
        shard: ShardId([1; 16]),
        id: 1,
        number: 0,
        begins_anew: true,
        vector: Vector::EMPTY,
        pieces: Vec::new(),
        requests: Vec::new(),
        last: true,
    })
}

/// Frames of one round from each peer, numbered as they come.
fn arrived(frames: Vec<(&str, FrameBody)>) -> Arrivals<usize> {
    let mut arrivals = Arrivals::default();
    let mut numbers = BTreeMap::new();
    for (tag, (from, body)) in frames.into_iter().enumerate() {
        let number = numbers.entry(from).or_insert(0);
        arrivals.push(NOW, node(from), Frame { round: 7, number: *number, body }, tag);
        *number += 1;
    }
    arrivals
}

/// What is taken next, in words: sender, round and number, what it is, and the tag.
fn word(taken: Option<Taken<usize>>) -> String {
    let Some(Taken { from, frame, tag }) = taken else { return "nothing".into() };
    let body = match frame.body {
        FrameBody::Changes(changes) => format!("{} changes", changes.len()),
        FrameBody::Told(_) => "told".into(),
        FrameBody::Heartbeat(_) => "heartbeat".into(),
        FrameBody::State(_) => "state".into(),
        other => format!("{other:?}"),
    };
    format!("{from} {}.{} {body} {tag:?}", frame.round, frame.number)
}

#[test]
fn late_changes_are_taken_a_few_at_a_time_and_what_follows_them_waits() {
    let mut arrivals =
        arrived(vec![("p", changes(1..8, 10_000)), ("p", heartbeat()), ("p", changes(8..10, 100))]);
    assert!(!arrivals.has_live() && arrivals.has_late());
    assert_eq!(word(arrivals.take_live()), "nothing");
    assert_eq!(word(arrivals.take_late(3)), "p 7.0 3 changes None");
    assert_eq!(word(arrivals.take_late(3)), "p 7.0 3 changes None");
    assert!(!arrivals.has_live());
    assert_eq!(word(arrivals.take_late(3)), "p 7.0 1 changes Some(0)");
    assert_eq!(word(arrivals.take_late(3)), "nothing");
    assert_eq!(word(arrivals.take_live()), "p 7.1 heartbeat Some(1)");
    assert_eq!(word(arrivals.take_live()), "p 7.2 2 changes Some(2)", "whole: they are not late");
    assert_eq!(word(arrivals.take_live()), "nothing");
}

#[test]
fn peers_take_turns_and_a_late_one_delays_no_other() {
    let late = || changes(1..101, 10_000);
    let mut arrivals = arrived(vec![
        ("p", late()),
        ("q", heartbeat()),
        ("q", heartbeat()),
        ("r", heartbeat()),
        ("r", late()),
        ("r", told()),
    ]);
    let live: Vec<String> = (0..4).map(|_| word(arrivals.take_live())).collect();
    assert_eq!(
        live,
        ["q 7.0 heartbeat Some(1)", "r 7.0 heartbeat Some(3)", "q 7.1 heartbeat Some(2)", "nothing"]
    );
    let late: Vec<String> = (0..3).map(|_| word(arrivals.take_late(60))).collect();
    assert_eq!(late, ["p 7.0 60 changes None", "r 7.1 60 changes None", "p 7.0 40 changes Some(0)"]);
    arrivals.forget(node("r"));
    assert_eq!(word(arrivals.take_late(60)), "nothing");
}

#[test]
fn what_a_peer_told_does_not_wait_for_late_changes_and_no_number_is_missing() {
    let mut arrivals = arrived(vec![("p", heartbeat())]);
    assert_eq!(word(arrivals.take_live()), "p 7.0 heartbeat Some(0)");
    let frame = |number, body| Frame { round: 7, number, body };
    arrivals.push(NOW, node("p"), frame(1, changes(1..3, 10_000)), 1);
    arrivals.push(NOW, node("p"), frame(2, told()), 2);
    arrivals.push(NOW, node("p"), frame(3, heartbeat()), 3);
    assert_eq!(word(arrivals.take_live()), "p 0.0 told Some(2)", "as a frame that came before");
    assert_eq!(word(arrivals.take_live()), "nothing");
    assert_eq!(word(arrivals.take_late(100)), "p 7.1 2 changes Some(1)");
    assert_eq!(word(arrivals.take_live()), "p 7.2 0 changes None", "in its place");
    assert_eq!(word(arrivals.take_live()), "p 7.3 heartbeat Some(3)");
    arrivals.push(NOW, node("p"), frame(4, told()), 4);
    assert_eq!(word(arrivals.take_live()), "p 7.4 told Some(4)", "nothing is late: it keeps its place");
}

#[test]
fn a_peer_that_tells_without_end_is_not_remembered_without_end() {
    let mut arrivals = arrived(vec![("p", heartbeat())]);
    assert_eq!(word(arrivals.take_live()), "p 7.0 heartbeat Some(0)");
    let frame = |number, body| Frame { round: 7, number, body };
    arrivals.push(NOW, node("p"), frame(1, changes(1..3, 10_000)), 1);
    for number in 0..OVERTAKEN_PLACES {
        arrivals.push(NOW, node("p"), frame(2 + number as u64, told()), 2);
        assert_eq!(word(arrivals.take_live()), "p 0.0 told Some(2)");
    }
    let last = OVERTAKEN_PLACES as u64 + 2;
    arrivals.push(NOW, node("p"), frame(last, told()), 3);
    assert_eq!(word(arrivals.take_live()), "nothing", "it waits, and its tag with it");
    assert_eq!(word(arrivals.take_late(100)), "p 7.1 2 changes Some(1)");
    for number in 2..last {
        assert_eq!(word(arrivals.take_live()), format!("p 7.{number} 0 changes None"));
    }
    assert_eq!(word(arrivals.take_live()), format!("p 7.{last} told Some(3)"));
}

#[test]
fn states_step_aside_for_live_traffic() {
    let mut arrivals = arrived(vec![("p", state()), ("p", changes(1..2, 0)), ("p", state())]);
    assert_eq!(word(arrivals.take_live()), "p 7.0 0 changes None");
    assert_eq!(word(arrivals.take_late(5)), "p 0.0 state Some(0)");
    assert_eq!(word(arrivals.take_live()), "p 7.1 1 changes Some(1)");
    assert_eq!(word(arrivals.take_live()), "p 7.2 0 changes None");
    assert!(!arrivals.has_live() && arrivals.has_late());
    assert_eq!(word(arrivals.take_late(5)), "p 0.0 state Some(2)");
    assert!(!arrivals.has_late());
}

#[test]
fn bytes_that_are_no_change_are_not_late() {
    let nonsense = FrameBody::Changes(vec![Bytes::from_static(b"\x01\xff\xff\xff\xff nonsense")]);
    let mut arrivals = arrived(vec![("p", nonsense), ("p", FrameBody::Changes(Vec::new()))]);
    assert_eq!(word(arrivals.take_live()), "p 7.0 1 changes Some(0)");
    assert_eq!(word(arrivals.take_live()), "p 7.1 0 changes Some(1)");
}
