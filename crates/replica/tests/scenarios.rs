//! Replicas and the wire between them: one behaviour a test. Those that are best told as a script are in `scenarios/`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "scenarios/driver.rs"]
mod driver;
#[path = "scenarios/parked.rs"]
mod parked;
#[path = "scenarios/repair.rs"]
mod repair;
#[path = "scenarios/script.rs"]
mod script;
#[path = "scenarios/scrub.rs"]
mod scrub;
#[path = "scenarios/verify.rs"]
mod verify;

use std::cell::Cell;

use bytes::Bytes;
use tropism_crdt::cell::Content;
use tropism_crdt::document::{Document, DocumentError, MAX_HEADS, PatchOp, Paths};
use tropism_crdt::json::{Json, JsonLimits, Pointer, parse};
use tropism_crdt::{Body, Change, ExpiryChange, NodeId, Origin};
use tropism_replica::{
    Compare, Event, Frame, FrameBody, Identity, Input, Now, Output, Precondition, Replica, Write, WriteError,
    WriteOp,
};
use tropism_storage::{
    ClockRow, EditKey, KeptChange, MemoryEngine, NodeKey, Reads, Space, Store, StoreKey, ValueKey, ValueRow,
    View,
};

use self::driver::{
    Cluster, KEEP_BYTES, Node, Settings, bytes, document, id, identity, increment, shard, write,
};

/// Two members; most scenarios need no more.
type Pair = Cluster;

#[test]
fn what_is_written_after_an_expiry_starts_from_nothing() {
    let mut pair = Pair::linked();
    let mut first = write("stats/s", "k", increment(5));
    first.expiry = ExpiryChange::At(pair.now.wall_ms + 100);
    pair.write(0, first).unwrap();
    let mut doc = write("docs", "d", document(r#"{"n":4,"old":true}"#));
    doc.expiry = ExpiryChange::At(pair.now.wall_ms + 100);
    pair.write(0, doc).unwrap();
    pair.settle();
    pair.now.wall_ms += 200;
    assert_eq!(pair.write(1, write("stats/s", "k", increment(2))).unwrap().counter, Some(2));
    let set = PatchOp::Set { path: Pointer::parse("/new").unwrap(), value: Json::Bool(true) };
    pair.write(1, write("docs", "d", WriteOp::Patch { operations: vec![set], base: None })).unwrap();
    pair.wait_ms(100);
    assert_eq!((pair.counter(0, "k"), pair.counter(1, "k")), (2, 2));
    assert_eq!((pair.json(0, "d"), pair.json(1, "d")), (r#"{"new":true}"#.into(), r#"{"new":true}"#.into()));
    assert!(pair.value(0, "stats/s", "k").cell.visible(pair.now.wall_ms + 1_000_000));
}

#[test]
fn a_stable_delete_leaves_a_stub_and_the_next_write_begins_a_new_life() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "d", document(r#"{"a":1}"#))).unwrap();
    pair.wait_ms(100);
    pair.write(1, write("docs", "d", WriteOp::Delete)).unwrap();
    pair.wait_ms(3_000);
    for node in 0..2 {
        let row = pair.value(node, "docs", "d");
        assert_eq!((row.cell.content, row.cell.written), (Content::Empty, None));
        assert!(row.cell.deleted_at.is_some());
        assert!(pair.nodes[node].store.edit_names(shard("docs"), "d").unwrap().is_empty(), "history is gone");
    }
    pair.write(0, write("docs", "d", document(r#"{"b":2}"#))).unwrap();
    pair.wait_ms(100);
    assert_eq!((pair.value(1, "docs", "d").cell.life, pair.json(1, "d")), (1, r#"{"b":2}"#.into()));
}

#[test]
fn a_base_version_of_an_earlier_life_is_refused_and_changes_nothing() {
    let mut pair = Pair::linked();
    let version = pair.write(0, write("docs", "d", document(r#"{"a":1}"#))).unwrap().version;
    pair.write(0, write("docs", "d", WriteOp::Delete)).unwrap();
    pair.write(0, write("docs", "d", document(r#"{"b":2}"#))).unwrap();
    let late = WriteOp::PutDocument { value: Json::Object(Default::default()), base: Some(version) };
    assert!(pair.write(0, write("docs", "d", late)).is_err());
    let nonsense = WriteOp::PutDocument { value: Json::Null, base: Some(Bytes::from_static(b"\x00\x01xyz")) };
    assert!(matches!(pair.write(0, write("docs", "d", nonsense)), Err(WriteError::MalformedVersion(_))));
    assert_eq!(pair.json(0, "d"), r#"{"b":2}"#);
}

#[test]
fn a_key_with_a_stamp_from_the_far_future_goes_on_in_its_next_life() {
    let mut pair = Pair::apart();
    // Region b's clock is an hour ahead; it is heard only afterwards.
    let wall = pair.now.wall_ms;
    pair.now.wall_ms += 3_600_000;
    pair.write(1, write("cache/c", "k", bytes("from the future"))).unwrap();
    pair.now.wall_ms = wall;
    pair.link();
    pair.wait_ms(300);
    assert_eq!(pair.value(0, "cache/c", "k").cell.life, 0);
    let done = pair.write(0, write("cache/c", "k", bytes("now"))).unwrap();
    assert!(done.stamp.unix_ms() < wall + 60_000, "our clock did not follow");
    pair.wait_ms(300);
    for node in 0..2 {
        let row = pair.value(node, "cache/c", "k");
        assert!(
            matches!(row.cell.content, Content::Register(ref r) if r.bytes == "now"),
            "acknowledged, so shown"
        );
        assert_eq!(row.cell.life, 1);
    }
}

#[test]
fn a_frame_that_is_lost_is_sent_again_or_asked_for() {
    let mut pair = Pair::linked();
    pair.send(0, write("cache/c", "k", bytes("lost once")));
    pair.reply(0).unwrap().unwrap();
    pair.settle_without(|frame| matches!(frame.body, FrameBody::Changes(_)));
    assert_eq!(pair.value(1, "cache/c", "k"), ValueRow::default());
    pair.wait_ms(5_000);
    assert!(matches!(pair.value(1, "cache/c", "k").cell.content, Content::Register(_)));
}

#[test]
fn what_does_not_come_is_asked_for_ever_more_seldom_and_on_a_new_connection_at_once() {
    let mut pair = Cluster::linked();
    pair.write(0, write("cache/x", "k", bytes("1"))).unwrap();
    pair.settle_without(|frame| matches!(frame.body, FrameBody::Changes(_))); // the first is lost
    pair.write(0, write("cache/x", "k", bytes("2"))).unwrap();
    pair.wait_ms(50);
    let asked = |pair: &mut Cluster, ms| {
        let asked = Cell::new(0);
        // Changes wait somewhere, resent or asked for; whoever asks is heard.
        pair.wait_ms_without(ms, |frame| {
            asked.set(asked.get() + u32::from(matches!(frame.body, FrameBody::Want(_))));
            matches!(frame.body, FrameBody::Changes(_))
        });
        asked.get()
    };
    let (first, next) = (asked(&mut pair, 4_000), asked(&mut pair, 4_000));
    assert!((3..=8).contains(&first) && next <= 2, "{first}, {next}"); // at a steady rate: 16, 16
    pair.cut(0, 1);
    pair.connect(0, 1);
    pair.settle_without(|frame| matches!(frame.body, FrameBody::Changes(_)));
    assert!(asked(&mut pair, 500) >= 1);
    pair.wait_ms(1_000);
    assert_eq!(pair.value(1, "cache/x", "k").cell, pair.value(0, "cache/x", "k").cell);
}

#[test]
fn a_document_change_that_does_not_apply_parks_its_key_and_nothing_else() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "good", document(r#"{"a":1}"#))).unwrap();
    pair.wait_ms(100);
    pair.send(0, write("docs", "bad", document(r#"{"a":1}"#)));
    pair.reply(0).unwrap().unwrap();
    // The body of the second change is damaged on its way; its envelope is sound.
    let outputs = std::mem::take(&mut pair.nodes[0].outputs);
    for output in outputs {
        let Output::Send { mut frame, .. } = output else { continue };
        if let FrameBody::Changes(changes) = &mut frame.body {
            for bytes in changes {
                let mut change = Change::decode(bytes).unwrap();
                if change.key == "bad"
                    && let Body::Document { change: raw } = &mut change.body
                {
                    *raw = Bytes::from_static(b"not automerge");
                    *bytes = change.encode();
                }
            }
        }
        pair.turn(1, Input::Frame { from: id(0), frame });
    }
    pair.wait_ms(100);
    assert!(pair.events(1).iter().any(|event| matches!(event, Event::Parked { .. })));
    assert!(pair.value(1, "docs", "bad").parked.is_some());
    assert!(matches!(pair.write(1, write("docs", "bad", document("{}"))), Err(WriteError::Damaged(_))));
    assert_eq!(pair.json(1, "good"), r#"{"a":1}"#);
    pair.write(0, write("docs", "good", document(r#"{"a":2}"#))).unwrap();
    pair.wait_ms(100);
    assert_eq!(pair.json(1, "good"), r#"{"a":2}"#, "the shard goes on");
}

#[test]
fn unsound_changes_are_refused_one_by_one() {
    let mut pair = Pair::linked();
    pair.write(0, write("cache/c", "k", bytes("v"))).unwrap();
    let mut sound = None;
    for output in std::mem::take(&mut pair.nodes[0].outputs) {
        if let Output::Send { frame: Frame { body: FrameBody::Changes(changes), .. }, .. } = output {
            sound = changes.first().cloned();
        }
    }
    let sound = sound.unwrap();
    let with = |edit: fn(&mut Change)| {
        let mut change = Change::decode(&sound).unwrap();
        edit(&mut change);
        change.encode()
    };
    let changes = vec![
        Bytes::from_static(b"garbage"),
        sound.slice(..sound.len() - 1),
        with(|change| change.scope = "UPPER".into()),
        with(|change| change.key = String::new()),
        with(|change| change.shard_index = 7),
        with(|change| change.scope_incarnation = 3), // of a life that is not known here yet: no fault of the sender
        with(|change| change.body = Body::Counter { total: 1, floors: vec![] }),
        sound.clone(),
    ];
    let frame = Frame { round: 0, number: 99, body: FrameBody::Changes(changes) };
    pair.turn(1, Input::Frame { from: id(0), frame });
    let refused = pair.events(1).iter().filter(|event| matches!(event, Event::Refused { .. })).count();
    assert_eq!(refused, 6);
    let no_member = |output: &Output| {
        matches!(output, Output::Send { frame: Frame { body: FrameBody::NotMember { .. }, .. }, .. })
    };
    assert_eq!(pair.nodes[1].outputs.iter().filter(|output| no_member(output)).count(), 1);
    assert!(
        matches!(pair.value(1, "cache/c", "k").cell.content, Content::Register(_)),
        "the sound one is applied"
    );
}

#[test]
fn a_store_behind_what_a_peer_saw_of_it_is_short() {
    let mut pair = Pair::apart();
    let mut hello = pair.hello(1);
    let own = pair.hello(0);
    let mut seen = tropism_storage::rows::Seen::default();
    (seen.incarnation, seen.commit) = (own.origin.incarnation - 1, own.head.commit + 1);
    hello.saw_you = Some((own.store_id, seen));
    pair.turn(0, Input::LinkUp(hello));
    assert!(pair.events(0).iter().any(|event| matches!(event, Event::Short { .. })));
}

#[test]
fn an_old_copy_is_short_however_far_it_has_come_since() {
    let mut pair = Pair::apart();
    pair.wait_ms(2_000);
    // What the peer saw of a life before lies behind what the copy was found with, not behind where it is now.
    let own = pair.hello(0);
    let mut seen = tropism_storage::rows::Seen::default();
    (seen.incarnation, seen.commit) = (own.origin.incarnation + 1, 2);
    assert!(seen.commit < own.head.commit, "it has passed that number by itself");
    let mut hello = pair.hello(1);
    hello.saw_you = Some((own.store_id, seen));
    pair.turn(0, Input::LinkUp(hello));
    assert!(pair.events(0).iter().any(|event| matches!(event, Event::Short { .. })));
}

#[test]
fn an_old_copy_is_short_under_the_incarnation_that_was_seen_of_another_copy() {
    let seen_of = |pair: &mut Pair, random: u64| {
        let own = pair.hello(0);
        let mut seen = tropism_storage::rows::Seen::default();
        (seen.incarnation, seen.commit) = (own.origin.incarnation, 2);
        seen.random = if random == 0 { own.origin.random } else { random };
        let mut hello = pair.hello(1);
        hello.saw_you = Some((own.store_id, seen));
        pair.turn(0, Input::LinkUp(hello));
        pair.events(0).iter().any(|event| matches!(event, Event::Short { .. }))
    };
    let mut pair = Pair::apart();
    pair.wait_ms(2_000);
    assert!(!seen_of(&mut pair, 0), "what was seen of the life it lives");
    assert!(seen_of(&mut pair, 77), "another life had its clock, and got further than what this one found");
}

#[test]
fn a_node_with_an_empty_store_gets_back_what_it_wrote_and_nothing_is_stable_before() {
    let mut pair = Pair::linked();
    for key in ["k1", "k2"] {
        pair.write(0, write("cache/c", key, bytes("mine"))).unwrap();
        pair.write(1, write("cache/c", key, bytes("yours"))).unwrap();
    }
    pair.wait_ms(1_000);
    let before = pair.nodes[1].replica.stable_commit();
    assert!(before > 0);
    pair.replace(0, Some(Store::open(Box::new(MemoryEngine::new())).unwrap()));
    // The first connection is lost before anything was told, the second one is of a store that is known by now.
    for lossy in [true, false] {
        let (a, b) = (pair.hello(0), pair.hello(1));
        pair.turn(0, Input::LinkUp(b));
        pair.turn(1, Input::LinkUp(a));
        pair.settle_without(|_| lossy);
        if lossy {
            pair.wait_ms_without(500, |_| true);
            assert_eq!(pair.nodes[1].replica.stable_commit(), 0, "the empty store has nothing");
            pair.turn(0, Input::LinkDown(id(1)));
            pair.turn(1, Input::LinkDown(id(0)));
        }
    }
    pair.wait_ms(500);
    let vectors = [0, 1].map(|node| pair.nodes[node].store.vector(shard("cache/c")).unwrap());
    assert_eq!(vectors[0], vectors[1]);
    assert_eq!(pair.value(0, "cache/c", "k1").cell, pair.value(1, "cache/c", "k1").cell);
}

#[test]
fn a_closed_time_does_not_pass_what_is_reserved() {
    let mut pair = Pair::linked();
    pair.wait_ms(600);
    // The node is back within its reservation, and hears a stamp from beyond it: a crash now would forget that.
    pair.replace(0, None);
    let clock: ClockRow = pair.nodes[0].store.row(Space::Node, &NodeKey::Clock.encode()).unwrap().unwrap();
    let reserved_ms = clock.reserved_ms;
    pair.now.wall_ms = reserved_ms - 10;
    pair.link();
    let own = pair.now;
    pair.now.wall_ms = reserved_ms + 300;
    pair.write(1, write("cache/c", "k", bytes("from a fast clock"))).unwrap();
    pair.now = own;
    pair.settle();
    assert!(pair.value(0, "cache/c", "k").cell.last_stamp().unix_ms() > reserved_ms);
    let mut told = Vec::new();
    for _ in 0..8 {
        pair.now.mono_us += 200_000;
        pair.turn(0, Input::Tick);
        told.extend(pair.nodes[0].outputs.drain(..).filter_map(|output| match output {
            Output::Send { frame: Frame { body: FrameBody::Heartbeat(beat), .. }, .. } => Some(beat.closed),
            _ => None,
        }));
    }
    assert!(told.iter().all(|closed| closed.unix_ms() <= reserved_ms), "{told:?} {reserved_ms}");
    assert!(!told.is_empty());
}

#[test]
fn a_stub_keeps_an_expiry_that_is_stamped_above_its_delete() {
    let mut pair = Pair::linked();
    pair.write(0, write("cache/c", "k", bytes("old"))).unwrap();
    pair.wait_ms(300);
    // A clock that is an hour ahead says when the key expires; it is deleted as of then, and the delete becomes stable.
    let own = pair.now;
    pair.now.wall_ms += 3_600_000;
    let expire = write("cache/c", "k", WriteOp::Expire);
    pair.write(1, Write { expiry: ExpiryChange::At(own.wall_ms + 200), ..expire }).unwrap();
    pair.now = own;
    pair.settle();
    pair.wait_ms(4_000);
    assert_eq!(pair.value(0, "cache/c", "k").cell.written, None, "what stays is a stub");
    pair.write(0, write("cache/c", "k", bytes("new"))).unwrap();
    pair.wait_ms(300);
    for node in 0..2 {
        let cell = pair.value(node, "cache/c", "k").cell;
        assert!(cell.visible(pair.now.wall_ms), "acknowledged, so shown");
        assert_eq!(cell.life, 1, "above what a member shows that has the expiry still");
    }
}

#[test]
fn a_key_written_after_its_expiry_is_deleted_once() {
    let mut pair = Pair::linked();
    let put = write("cache/c", "k", bytes("v"));
    pair.write(0, Write { expiry: ExpiryChange::At(pair.now.wall_ms - 100), ..put }).unwrap();
    pair.wait_ms(5_000);
    for node in 0..2 {
        let row = pair.value(node, "cache/c", "k");
        assert!(!row.cell.alive() && row.cell.deleted_at.is_some());
        let vector = pair.nodes[node].store.vector(shard("cache/c")).unwrap();
        assert_eq!(vector.iter().map(|(_, seq)| seq).sum::<u64>(), 2, "a put and a delete");
    }
}

#[test]
fn a_life_near_the_last_number_is_refused() {
    let mut pair = Pair::linked();
    pair.write(0, write("cache/c", "k", bytes("sound"))).unwrap();
    let sent = pair.nodes[0].store.changes(shard("cache/c"), pair.hello(0).origin, 1, 1).next().unwrap();
    let lie = Change { life: u64::MAX, key: "l".into(), ..Change::decode(&sent.unwrap()).unwrap() };
    let frame = Frame { round: 0, number: 9_999, body: FrameBody::Changes(vec![lie.encode()]) };
    pair.turn(1, Input::Frame { from: id(0), frame });
    assert!(pair.events(1).iter().any(|event| matches!(event, Event::Refused { .. })));
    pair.settle();
    assert!(pair.write(1, write("cache/c", "l", bytes("mine"))).is_ok());
}

#[test]
fn a_range_that_a_peer_names_often_is_answered_once() {
    let mut pair = Pair::linked();
    let compare = Compare { group: 7, level: 0, sums: vec![(0, 1); 10_000] };
    let frame = Frame { round: 0, number: 9_999, body: FrameBody::Compare(compare) };
    pair.turn(1, Input::Frame { from: id(0), frame });
    let answers = pair.nodes[1].outputs.iter().filter_map(|output| match output {
        Output::Send { frame: Frame { body: FrameBody::Compare(answer), .. }, .. } => Some(answer.sums.len()),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), [64]);
}

#[test]
fn a_node_whose_change_found_no_room_is_not_closed() {
    let mut pair = Pair::linked();
    pair.wait_ms(500);
    let ghost = Origin { node: NodeId::new("ghost").unwrap(), incarnation: 1, random: 1 };
    let done = pair.write(0, write("cache/c", "k", bytes("v"))).unwrap();
    let late = |frame: &Frame| matches!(frame.body, FrameBody::Changes(_));
    let mut held = Vec::new();
    for output in std::mem::take(&mut pair.nodes[0].outputs) {
        match output {
            Output::Send { frame, .. } if late(&frame) => held.push(frame),
            Output::Send { frame, .. } => pair.turn(1, Input::Frame { from: id(0), frame }),
            _ => {}
        }
    }
    let FrameBody::Changes(changes) = &held[0].body else { panic!("{held:?}") };
    let real = Change::decode(&changes[0]).unwrap();
    // Eight changes of somebody else wait already, and fill the room.
    let body = Body::Register { content_type: String::new(), bytes: Bytes::from(vec![0; 1 << 20]) };
    let waiting = (2..10).map(|seq| Change { origin: ghost, seq, body: body.clone(), ..real.clone() });
    for change in waiting {
        // An old number disturbs no order.
        let frame = Frame { round: 0, number: 0, body: FrameBody::Changes(vec![change.encode()]) };
        pair.turn(1, Input::Frame { from: id(0), frame });
    }
    let fills = Change { deps: vec![(ghost, 9)], body, ..real };
    let frame = Frame { body: FrameBody::Changes(vec![fills.encode()]), ..held[0].clone() };
    pair.turn(1, Input::Frame { from: id(0), frame });
    assert!(pair.events(1).iter().any(|event| matches!(event, Event::PendingFull)));
    for _ in 0..5 {
        pair.now.mono_us += 200_000;
        pair.now.wall_ms += 200;
        pair.turn(0, Input::Tick);
        pair.settle_without(late);
    }
    let closed = pair.nodes[1].replica.status(pair.now).links[0].closed.unwrap();
    assert!(closed < done.stamp, "{closed} is told closed, and {} is not there", done.stamp);
}

#[test]
fn preconditions_hold_here_and_now() {
    let mut pair = Pair::linked();
    let absent = Write { precondition: Some(Precondition::Absent), ..write("cache/c", "k", bytes("1")) };
    let version = pair.write(0, absent.clone()).unwrap().version;
    assert_eq!(pair.write(0, absent), Err(WriteError::Exists { version: version.clone() }));
    let at = |version| Write {
        precondition: Some(Precondition::Version(version)),
        ..write("cache/c", "k", bytes("2"))
    };
    pair.write(0, at(version.clone())).unwrap();
    assert!(matches!(pair.write(0, at(version)), Err(WriteError::Version { version: Some(_) })));
    let gone = pair.write(0, write("cache/c", "nothing", WriteOp::Delete)).unwrap();
    assert!(!gone.existed && gone.change.is_none());
    assert_eq!(pair.write(0, write("cache/c", "nothing", WriteOp::Expire)), Err(WriteError::NotFound));
    assert!(matches!(pair.write(0, write("cache/c", "k", increment(1))), Err(WriteError::Kind { .. })));
    let end = write("stats/s", "k", increment(i64::MAX));
    pair.write(0, end.clone()).unwrap();
    assert_eq!(pair.write(0, end), Err(WriteError::CounterOverflow));
}

#[test]
fn nothing_is_written_while_the_reservation_of_an_earlier_life_has_not_passed() {
    let pair = Pair::linked();
    let now = pair.now;
    let Some(Node { mut store, .. }) = pair.nodes.into_iter().next() else { unreachable!() };
    let identity = Identity { boot_random: 2, peers: Vec::new(), ..identity(now, 0, 2, Settings::default()) };
    let mut other = identity.clone();
    other.node = id(1);
    assert!(Replica::boot(now, &mut store, other).is_err(), "the store is another node's");
    let mut replica = Replica::boot(now, &mut store, identity).unwrap();
    let refused = replica.stamps(now, &mut store, 1);
    assert!(refused.is_err(), "{refused:?}");
    let later = Now { mono_us: now.mono_us + 2_000_000, wall_ms: now.wall_ms + 2_000 };
    assert!(replica.stamps(later, &mut store, 1).is_ok());
}

/// Flips a byte of a stored row.
fn rot(node: &mut Node, space: Space, name: StoreKey) {
    let mut row = node.store.get(space, name.as_bytes()).unwrap().unwrap().to_vec();
    row[2] ^= 0x10;
    node.store.put(space, name, row.into());
}

#[test]
fn changes_of_a_key_whose_row_rotted_are_kept_and_the_node_goes_on() {
    let mut pair = Pair::linked();
    let repair = |frame: &Frame| matches!(frame.body, FrameBody::Inspect(_));
    for scope in ["cache/c", "docs"] {
        let op = |n| if scope == "docs" { document(&format!("{{\"n\":{n}}}")) } else { bytes("v") };
        pair.write(0, write(scope, "rotten", op(1))).unwrap();
        pair.wait_ms_without(1_000, repair);
        rot(&mut pair.nodes[1], Space::Values, ValueKey { shard: shard(scope), key: "rotten" }.encode());
        pair.write(0, write(scope, "rotten", op(2))).unwrap();
        pair.write(0, write(scope, "rotten", op(3))).unwrap();
        pair.write(0, write(scope, "sound", op(4))).unwrap();
        pair.settle();
        let degraded = pair.status(1).degraded;
        assert!(degraded.iter().any(|d| d.scope.as_str() == scope && d.keys == 1), "at once: {degraded:?}");
        pair.wait_ms_without(1_000, repair);
        let degraded = pair.status(1).degraded;
        assert!(
            degraded.iter().any(|d| d.scope.as_str() == scope && d.keys == 1),
            "and as counted: {degraded:?}"
        );
        pair.restart(1);
        pair.link();
        pair.wait_ms_without(2_000, repair);
        pair.write(0, write(scope, "rotten", WriteOp::Delete)).unwrap();
        pair.write(1, write(scope, "sound", op(5))).unwrap();
        pair.wait_ms_without(500, repair);
        let store = &pair.nodes[1].store;
        assert!(store.value(shard(scope), "rotten").is_err(), "nothing is shown");
        let kept = store.edits(shard(scope), "rotten", EditKey::ROW_LOST).unwrap();
        let kept: Vec<u64> =
            kept.iter().map(|(_, kept)| KeptChange::decode(kept).unwrap().change.seq).collect();
        assert_eq!(kept, [2, 3, 5], "every change since, before and after the restart");
        assert_eq!(pair.nodes[0].store.vector(shard(scope)), store.vector(shard(scope)), "and counted");
        assert_eq!(pair.value(0, scope, "sound").last, pair.value(1, scope, "sound").last);
    }
    assert_eq!(pair.keys(1), [2, 0, 0, 2]);
    pair.wait_ms(40_000);
    assert_eq!(pair.keys(1), pair.keys(0), "repaired from the peer, once that is let");
    for scope in ["cache/c", "docs"] {
        let kept = pair.nodes[1].store.edits(shard(scope), "rotten", EditKey::ROW_LOST).unwrap();
        assert!(kept.is_empty(), "what was kept came with the repair");
    }
}

#[test]
fn a_rotten_piece_of_history_parks_its_key_and_refuses_its_writes() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "d", document(r#"{"a":1}"#))).unwrap();
    pair.wait_ms(1_000);
    for node in 0..2 {
        pair.restart(node); // it is not in memory
        let name = EditKey { shard: shard("docs"), key: "d", life: 0, part: 1 }.encode();
        rot(&mut pair.nodes[node], Space::Edits, name);
    }
    pair.wait_ms(2_000);
    let refused = pair.write(1, write("docs", "d", document(r#"{"a":2}"#)));
    assert!(matches!(refused, Err(WriteError::Damaged(_))), "{refused:?}");
    pair.write(1, write("docs", "sound", document("{}"))).unwrap();
    pair.restart(0);
    pair.link();
    pair.wait_ms(2_000);
    pair.write(0, write("docs", "other", document("{}"))).unwrap();
    pair.wait_ms(100);
    assert_eq!(pair.json(0, "sound"), "{}", "nobody stopped");
    // A delete asks for no history, and the next life begins without it.
    pair.write(1, write("docs", "d", WriteOp::Delete)).unwrap();
    pair.write(1, write("docs", "d", document(r#"{"b":1}"#))).unwrap();
    pair.wait_ms(100);
    assert_eq!((pair.json(0, "d"), pair.json(1, "d")), (r#"{"b":1}"#.into(), r#"{"b":1}"#.into()));
}

#[test]
fn a_peers_change_of_a_document_whose_history_rotted_parks_it() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "d", document(r#"{"a":1}"#))).unwrap();
    pair.wait_ms(1_000);
    pair.restart(1);
    rot(
        &mut pair.nodes[1],
        Space::Edits,
        EditKey { shard: shard("docs"), key: "d", life: 0, part: 1 }.encode(),
    );
    pair.link();
    pair.write(0, write("docs", "d", document(r#"{"a":2}"#))).unwrap();
    pair.wait_ms(500);
    assert_eq!(pair.value(1, "docs", "d").parked.map(|parked| parked.changes), Some(1));
    assert_eq!((pair.status(1).degraded.len(), pair.keys(1)), (1, [0, 0, 0, 1]));
    assert_eq!(pair.nodes[0].store.vector(shard("docs")), pair.nodes[1].store.vector(shard("docs")));
    pair.write(0, write("docs", "d", WriteOp::Delete)).unwrap();
    pair.write(0, write("docs", "d", document(r#"{"b":1}"#))).unwrap();
    pair.wait_ms(100);
    assert_eq!(pair.json(1, "d"), r#"{"b":1}"#, "another life is whole");
    assert_eq!((pair.status(1).degraded.len(), pair.keys(1)), (0, [1, 0, 0, 0]));
}

#[test]
fn a_damaged_row_refuses_writes_of_its_key_and_the_node_goes_on() {
    let mut pair = Pair::linked();
    pair.write(0, write("cache/c", "rotten", bytes("v"))).unwrap();
    let key = ValueKey { shard: shard("cache/c"), key: "rotten" }.encode();
    pair.nodes[0].store.put(Space::Values, key, Bytes::from_static(b"not a row, nor its checksum"));
    pair.wait_ms(50);
    assert!(matches!(pair.write(0, write("cache/c", "rotten", bytes("w"))), Err(WriteError::Damaged(_))));
    pair.write(0, write("cache/c", "sound", bytes("v"))).unwrap();
}

#[test]
fn keys_are_counted_as_they_are_written_deleted_and_collected_at_every_member() {
    let mut pair = Pair::linked();
    for key in ["a", "b", "c"] {
        pair.write(0, write("cache/c", key, bytes("v"))).unwrap();
        pair.write(0, write("cache/c", key, bytes("w"))).unwrap();
    }
    pair.write(0, write("docs", "d", document("{}"))).unwrap();
    pair.wait_ms(100);
    assert_eq!((pair.keys(0), pair.keys(1)), ([4, 0, 0, 0], [4, 0, 0, 0]));
    pair.turn(0, Input::LinkDown(id(1)));
    pair.turn(1, Input::LinkDown(id(0)));
    pair.write(1, write("cache/c", "a", WriteOp::Delete)).unwrap();
    pair.write(1, write("docs", "d", WriteOp::Delete)).unwrap();
    pair.write(0, write("docs", "d", document("{\"late\":1}"))).unwrap();
    pair.write(0, write("docs", "new", document("{}"))).unwrap();
    assert_eq!((pair.keys(0), pair.keys(1)), ([5, 0, 0, 0], [2, 2, 0, 0]));
    pair.link();
    pair.wait_ms(3_000);
    assert_eq!(
        (pair.keys(0), pair.keys(1)),
        ([3, 0, 2, 0], [3, 0, 2, 0]),
        "the delete was stamped later, and is stable"
    );
    pair.write(1, write("docs", "d", document("{}"))).unwrap();
    pair.wait_ms(1_000);
    assert_eq!((pair.keys(0), pair.keys(1)), ([4, 0, 1, 0], [4, 0, 1, 0]), "its next life");
    let tally = pair.nodes[0].store.tally();
    pair.restart(0);
    assert_eq!(pair.nodes[0].store.tally(), tally);
    pair.link();
    pair.wait_ms(1_000);
    assert!(pair.status(0).counted && pair.status(1).counted);
    for node in 0..2 {
        let recounted = pair.events(node).into_iter().find(|event| matches!(event, Event::Recounted { .. }));
        assert_eq!(recounted, None, "the sweep counts the same");
    }
}

#[test]
fn an_expired_key_is_known_as_such_before_it_is_deleted_and_through_a_restart() {
    let mut pair = Pair::linked();
    for key in ["soon", "later", "never"] {
        let mut put = write("cache/c", key, bytes("v"));
        put.expiry = match key {
            "soon" => ExpiryChange::At(pair.now.wall_ms + 1_500),
            "later" => ExpiryChange::At(pair.now.wall_ms + 60_000),
            _ => ExpiryChange::Keep,
        };
        pair.write(0, put).unwrap();
    }
    pair.settle();
    assert_eq!(pair.status(0).expired_keys, 0);
    pair.turn(0, Input::LinkDown(id(1)));
    pair.turn(1, Input::LinkDown(id(0))); // nobody knows that everybody's time has come: it stays expired
    pair.wait_ms(4_000);
    assert_eq!((pair.status(0).expired_keys, pair.keys(0)), (1, [3, 0, 0, 0]));
    pair.restart(0);
    assert_eq!((pair.status(0).expired_keys, pair.status(0).counted), (0, false), "not looked at yet");
    pair.wait_ms(1_200);
    assert_eq!((pair.status(0).expired_keys, pair.status(0).counted), (1, true));
    let mut again = write("cache/c", "soon", bytes("w"));
    again.expiry = ExpiryChange::At(pair.now.wall_ms + 1_500);
    pair.write(0, again).unwrap();
    assert_eq!(pair.status(0).expired_keys, 0, "written anew");
    pair.link();
    pair.wait_ms(10_000);
    assert_eq!((pair.status(0).expired_keys, pair.keys(0), pair.keys(1)), (0, [2, 0, 1, 0], [2, 0, 1, 0]));
}

#[test]
fn the_log_is_counted_until_it_is_trimmed() {
    let mut pair = Pair::linked();
    for _ in 0..3 {
        pair.write(0, write("stats/s", "k", increment(1))).unwrap();
    }
    pair.wait_ms(100);
    let log = |pair: &Pair, at: usize| {
        let tally = pair.nodes[at].store.tally();
        let rows = pair.nodes[at].store.scan(Space::Log, &[], &[0xff; 1_100]).map(|row| row.unwrap().1.len());
        let rows: Vec<usize> = rows.collect();
        assert_eq!(
            (tally.log_changes, tally.log_bytes),
            (rows.len() as u64, rows.iter().sum::<usize>() as u64)
        );
        rows.len()
    };
    assert_eq!((log(&pair, 0), log(&pair, 1)), (3, 3));
    pair.now.wall_ms += 600_000;
    pair.wait_ms(1_000);
    assert_eq!((log(&pair, 0), log(&pair, 1)), (0, 0));
}

#[test]
fn a_row_that_rotted_is_found_counted_and_named_by_the_sweep() {
    let mut pair = Pair::linked();
    for key in ["rotten", "sound"] {
        pair.write(0, write("cache/c", key, bytes("v"))).unwrap();
    }
    pair.wait_ms(1_000);
    let key = ValueKey { shard: shard("cache/c"), key: "rotten" }.encode();
    pair.nodes[0].store.put(Space::Values, key, Bytes::from_static(b"not a row, nor its checksum"));
    for round in ["while the node runs", "after a restart"] {
        pair.wait_ms(1_000);
        assert_eq!(pair.keys(0), [1, 0, 0, 1], "{round}");
        let status = pair.status(0);
        let degraded: Vec<_> =
            status.degraded.iter().map(|degraded| (degraded.scope.as_str(), degraded.keys)).collect();
        assert_eq!(degraded, [("cache/c", 1)], "{round}");
        assert!(status.degraded[0].problem.contains("damaged"), "{status:?}");
        pair.restart(0);
    }
}

#[test]
fn a_long_history_is_named_when_it_is_written_and_when_a_write_is_refused_for_it() {
    let mut pair = Pair::linked();
    let named = |pair: &Pair, at: usize| -> Vec<(String, (u64, u64))> {
        pair.status(at).long_histories.into_iter().map(|long| (long.key, long.changes)).collect()
    };
    for count in 1..=5 {
        let value = format!("{{\"count\":{count}}}");
        pair.write(0, write("brief/b", "d", document(&value))).unwrap();
        pair.wait_ms(50);
        let expected = if count < 4 { vec![] } else { vec![("d".to_owned(), (count, 5))] };
        assert_eq!((named(&pair, 0), named(&pair, 1)), (expected.clone(), expected));
    }
    pair.restart(0);
    pair.wait_ms(2_000);
    assert!(matches!(
        pair.write(0, write("brief/b", "d", document("{}"))),
        Err(WriteError::HistoryFull { .. })
    ));
    assert_eq!(named(&pair, 0), [("d".to_owned(), (5, 5))]);
    pair.write(0, write("brief/b", "d", WriteOp::Delete)).unwrap();
    pair.write(0, write("brief/b", "d", document("{}"))).unwrap();
    assert_eq!(named(&pair, 0), [], "another life");
}

#[test]
fn a_round_of_the_sweep_counts_what_is_written_behind_it_and_before_it() {
    let mut pair = Pair::apart();
    let key = |number: u64| format!("k{number:04}");
    for number in 0..1_500 {
        let op = if number % 3 == 0 { WriteOp::Delete } else { bytes("v") };
        pair.write(0, write("cache/c", &key(number), bytes("v"))).unwrap();
        pair.write(0, write("cache/c", &key(number), op)).unwrap();
    }
    pair.restart(0); // the first round takes a thousand keys a step
    pair.now.wall_ms += 2_000;
    pair.turn(0, Input::Tick);
    assert!(!pair.status(0).counted, "under way");
    for number in [0, 1, 2, 1_400, 1_401] {
        let mut put = write("cache/c", &key(number), bytes("w"));
        put.expiry = ExpiryChange::At(pair.now.wall_ms + 1_000);
        pair.write(0, put).unwrap();
    }
    for number in [4, 1_402, 1_403] {
        pair.write(0, write("cache/c", &key(number), WriteOp::Delete)).unwrap();
    }
    pair.write(0, write("cache/c", "before all", bytes("v"))).unwrap();
    pair.write(0, write("cache/c", "z behind all", bytes("v"))).unwrap();
    let tallied = pair.keys(0);
    pair.wait_ms(3_000);
    assert_eq!((pair.status(0).counted, pair.status(0).expired_keys, pair.keys(0)), (true, 5, tallied));
    assert!(!pair.events(0).iter().any(|event| matches!(event, Event::Recounted { .. })));
}

#[test]
fn a_write_that_peers_would_refuse_has_no_effect() {
    let mut pair = Pair::linked();
    pair.write(1, write("docs", "other", document("{}"))).unwrap();
    pair.settle();
    // More origins than a change may name wrote the key apart from each other.
    let template = pair.value(1, "docs", "other");
    let (stamp, author) = template.cell.written.unwrap();
    let mut changes = Vec::new();
    for random in 100..=100 + MAX_HEADS as u64 {
        let origin = Origin { random, ..author };
        let value = parse(b"{\"k\":1}", &JsonLimits::default()).unwrap();
        let raw = Document::empty(&origin.to_bytes()).replace(&value, None, &Paths::default(), 0).unwrap();
        changes.push(
            Change {
                scope: "docs".into(),
                scope_incarnation: 0,
                shard_index: 0,
                origin,
                seq: 1,
                deps: Vec::new(),
                stamp,
                key: "wide".into(),
                life: 0,
                generation: 0,
                epoch: 1,
                request_id: None,
                trace: None,
                expiry: ExpiryChange::Keep,
                body: Body::Document { change: raw.unwrap().into() },
            }
            .encode(),
        );
    }
    let frame = Frame { round: 0, number: 99, body: FrameBody::Changes(changes) };
    pair.turn(0, Input::Frame { from: id(1), frame });
    assert_eq!(pair.json(0, "wide"), r#"{"k":1}"#);
    let before = (
        pair.value(0, "docs", "wide"),
        pair.nodes[0].store.edits(shard("docs"), "wide", 0).unwrap(),
        pair.nodes[0].store.head(),
    );
    // The second try meets the document of the store, not the one that the first left in memory.
    for _ in 0..2 {
        let refused = pair.write(0, write("docs", "wide", document(r#"{"k":2}"#)));
        assert!(matches!(refused, Err(WriteError::Document(DocumentError::NotPassed { .. }))), "{refused:?}");
    }
    let after = (
        pair.value(0, "docs", "wide"),
        pair.nodes[0].store.edits(shard("docs"), "wide", 0).unwrap(),
        pair.nodes[0].store.head(),
    );
    assert_eq!(after, before);
    pair.write(0, write("docs", "other", document(r#"{"k":2}"#))).unwrap();
}

#[test]
fn a_log_that_is_larger_than_allowed_loses_what_every_member_holds_and_nothing_else() {
    let mut pair = Pair::linked();
    let put = |key: u64| {
        let bytes = Bytes::from(vec![b'x'; 4_000]);
        write("cache/c", &key.to_string(), WriteOp::PutRegister { content_type: String::new(), bytes })
    };
    let log = |pair: &Pair, at: usize| pair.nodes[at].store.tally();
    for key in 0..10 {
        pair.write(0, put(key)).unwrap();
    }
    pair.wait_ms(1_000);
    assert_eq!(log(&pair, 0).log_changes, 10, "there is room");
    pair.turn(0, Input::LinkDown(id(1)));
    pair.turn(1, Input::LinkDown(id(0)));
    for key in 10..40 {
        pair.write(0, put(key)).unwrap();
    }
    pair.wait_ms(1_000);
    let kept = log(&pair, 0);
    assert_eq!(kept.log_changes, 30, "what the other lacks, however large");
    assert!(kept.log_bytes > KEEP_BYTES);
    pair.restart(0); // as large as before
    pair.link();
    pair.wait_ms(3_000);
    let kept = log(&pair, 0);
    assert!(kept.log_bytes <= KEEP_BYTES && kept.log_changes >= 10, "no more than was needed: {kept:?}");
    assert!(log(&pair, 1).log_bytes <= KEEP_BYTES, "where they came in one commit, they go as one");
    assert_eq!(pair.keys(1), [40, 0, 0, 0]);
}

/// What is stored of a document, read by automerge.
fn stored(node: &Node, key: &str) -> Document {
    let mut document = Document::empty(b"reader");
    let mut changes = Vec::new();
    for (part, piece) in node.store.edits(shard("docs"), key, 0).unwrap() {
        match part {
            0 => document = Document::load(&piece, b"reader").unwrap(),
            _ => changes.push(piece),
        }
    }
    document.restore(&changes).unwrap();
    document
}

fn patch(operations: Vec<PatchOp>) -> WriteOp {
    WriteOp::Patch { operations, base: None }
}

fn set(path: &str, value: &str) -> PatchOp {
    let value = parse(value.as_bytes(), &JsonLimits::default()).unwrap();
    PatchOp::Set { path: Pointer::parse(path).unwrap(), value }
}

impl Pair {
    /// Both members show what automerge makes of what each has stored.
    fn check_stored(&self, key: &str) {
        for (at, node) in self.nodes.iter().enumerate() {
            let mut document = stored(node, key);
            assert_eq!(self.json(at, key).as_bytes(), &document.shown()[..], "{key} at {at}");
            let Content::Document { heads, .. } = self.value(at, "docs", key).cell.content else { panic!() };
            assert_eq!(heads, document.heads().hashes(), "{key} at {at}");
        }
        assert_eq!(self.json(0, key), self.json(1, key));
    }
}

#[test]
fn more_documents_than_fit_in_memory_are_edited_with_and_without_their_histories() {
    let mut pair = Pair::linked();
    let keys: Vec<String> = (0..120).map(|n| format!("d{n:03}")).collect();
    for key in &keys {
        // The list needs automerge, at both members.
        pair.write(0, write("docs", key, document(r#"{"l":[{"k":0}],"n":1,"s":"x"}"#))).unwrap();
    }
    pair.settle();
    for round in 0..6 {
        for (at, key) in keys.iter().enumerate() {
            let writer = (at + round) % 2;
            let plain = vec![set("/s", &format!("\"{round}\"")), set("/l/0/k", &round.to_string())];
            pair.write(writer, write("docs", key, patch(plain))).unwrap();
            if at % 7 == round {
                // Nobody has seen the other's.
                let by = PatchOp::Increment { path: Pointer::parse("/n").unwrap(), by: 2 };
                pair.write(1 - writer, write("docs", key, patch(vec![set("/s", "null"), by]))).unwrap();
            }
            if at % 11 == round {
                pair.write(writer, write("docs", key, patch(vec![set("/l", "[{\"k\":7}]")]))).unwrap();
            }
            pair.settle();
        }
        for key in keys.iter().step_by(5) {
            pair.check_stored(key);
        }
        pair.wait_ms(50);
        for at in 0..2 {
            let status = pair.status(at);
            let cache = status.caches.iter().find(|cache| cache.name == "documents").unwrap();
            assert!(cache.bytes <= cache.limit, "{} of {} bytes", cache.bytes, cache.limit);
            assert_eq!(cache.entries, keys.len(), "without their histories there is room for all");
        }
        if round == 3 {
            pair.restart(1);
            pair.turn(0, Input::LinkDown(id(1)));
            pair.link();
            pair.wait_ms(1_100);
        }
    }
    for key in &keys {
        pair.check_stored(key);
    }
}

#[test]
fn a_history_of_plain_edits_is_saved_again_as_it_grows() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "d", document(r#"{"n":0,"s":"x"}"#))).unwrap();
    pair.settle();
    let (mut saves, mut saved) = (0, None);
    for n in 0..1_400 {
        let by = PatchOp::Increment { path: Pointer::parse("/n").unwrap(), by: 1 };
        let plain = vec![set("/s", &format!("\"{n}\"")), by];
        pair.write(n / 3 % 2, write("docs", "d", patch(plain))).unwrap();
        pair.settle();
        let pieces = pair.nodes[0].store.edits(shard("docs"), "d", 0).unwrap();
        let first = pieces.iter().find(|(part, _)| *part == 0).map(|(_, piece)| piece.clone());
        let behind: usize = pieces.iter().filter(|(part, _)| *part > 0).map(|(_, piece)| piece.len()).sum();
        let most = first.as_ref().map_or(0, Bytes::len).saturating_mul(4).max(8 << 10);
        assert!(behind <= most, "{behind} bytes behind {most}");
        if first != saved {
            (saves, saved) = (saves + 1, first);
            pair.check_stored("d");
        }
        if n % 500 == 250 {
            pair.restart(0);
            pair.turn(1, Input::LinkDown(id(0)));
            pair.link();
            pair.wait_ms(1_100);
        }
    }
    assert!((8..40).contains(&saves), "{saves} saves");
    pair.check_stored("d");
    assert_eq!(pair.json(1, "d"), r#"{"n":1400,"s":"1399"}"#);
}
