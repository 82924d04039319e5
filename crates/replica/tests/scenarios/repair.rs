//! What is lost, rotten or beyond the log on one side comes from the other.

use std::collections::BTreeSet;

use tropism_storage::TransferRow;

use super::*;

const KINDS: [(&str, &str); 3] = [("cache/c", "register"), ("stats/s", "counter"), ("docs", "document")];

/// Writes so many keys of every kind on both sides in turn.
fn fill(pair: &mut Pair, keys: usize) {
    for number in 0..keys {
        let key = format!("k{number:04}");
        pair.write(number % 2, write("cache/c", &key, bytes("value"))).unwrap();
        pair.write(number % 2, write("stats/s", &key, increment(number as i64 + 1))).unwrap();
        pair.write(number % 2, write("docs", &key, document(r#"{"n":1,"text":"some text"}"#))).unwrap();
        pair.settle();
    }
}

/// What both sides show of every key must be the same, and their digests known and equal.
fn assert_equal(pair: &Pair) {
    for (scope, _) in KINDS {
        let of = |at: usize| {
            let values = pair.nodes[at].store.values(shard(scope), "", None);
            values.map(|row| row.map(|(key, row)| (key, row.cell)).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of(0), of(1), "{scope}");
        let state = |at: usize| pair.nodes[at].store.vector_row(shard(scope)).unwrap();
        assert_eq!(state(0), state(1), "{scope}");
        assert!(state(0).digest.is_some() || state(0).vector.is_empty(), "{scope}");
    }
}

/// Removes a row behind the replica's back, or replaces it.
fn tamper(pair: &mut Pair, at: usize, scope: &str, key: &str, row: Option<Bytes>) {
    let name = ValueKey { shard: shard(scope), key }.encode();
    let store = &mut pair.nodes[at].store;
    match row {
        Some(row) => store.put(Space::Values, name, row),
        None => store.remove(Space::Values, name),
    }
    store.commit(0).unwrap();
}

fn count(pair: &Pair, at: usize, wanted: impl Fn(&Event) -> bool) -> usize {
    pair.events(at).into_iter().filter(|event| wanted(event)).count()
}

#[test]
fn keys_that_one_side_lost_without_a_word_come_back_from_the_other() {
    let mut pair = Pair::linked();
    fill(&mut pair, 40);
    pair.wait_ms(20_000);
    assert_equal(&pair);
    for (scope, _) in KINDS {
        tamper(&mut pair, 1, scope, "k0007", None);
        tamper(&mut pair, 0, scope, "k0031", None);
    }
    let edits = [7, 31].map(|number| format!("k{number:04}"));
    for (at, key) in [(1, &edits[0]), (0, &edits[1])] {
        let parts = pair.nodes[at].store.edit_names(shard("docs"), key).unwrap();
        for (life, part) in parts {
            let name = EditKey { shard: shard("docs"), key, life, part }.encode();
            pair.nodes[at].store.remove(Space::Edits, name);
        }
        pair.nodes[at].store.commit(0).unwrap();
    }
    pair.wait_ms(60_000);
    assert_equal(&pair);
    assert_eq!(pair.counter(1, "k0007"), 8);
    assert_eq!(pair.json(0, "k0031"), r#"{"n":1,"text":"some text"}"#);
    let rotted = |event: &Event| matches!(event, Event::Rotted { .. });
    let repaired = |event: &Event| matches!(event, Event::Repaired { keys: 1, .. });
    assert_eq!([count(&pair, 0, rotted), count(&pair, 1, rotted)], [3, 3], "each side found its own");
    assert_eq!([count(&pair, 0, repaired), count(&pair, 1, repaired)], [3, 3]);
    // And they are written on as if nothing had been.
    pair.write(1, write("stats/s", "k0007", increment(1))).unwrap();
    let set = PatchOp::Set { path: Pointer::parse("/more").unwrap(), value: Json::Bool(true) };
    pair.write(0, write("docs", "k0031", WriteOp::Patch { operations: vec![set], base: None })).unwrap();
    pair.wait_ms(100);
    assert_equal(&pair);
    assert_eq!(pair.counter(0, "k0007"), 9);
}

#[test]
fn a_row_that_cannot_be_read_is_replaced_by_the_peers() {
    let mut pair = Pair::linked();
    fill(&mut pair, 5);
    pair.wait_ms(20_000);
    for (scope, _) in KINDS {
        let name = ValueKey { shard: shard(scope), key: "k0002" }.encode();
        let mut row = pair.nodes[1].store.get(Space::Values, name.as_bytes()).unwrap().unwrap().to_vec();
        row[4] ^= 0x40;
        tamper(&mut pair, 1, scope, "k0002", Some(row.into()));
    }
    assert!(pair.nodes[1].store.value(shard("docs"), "k0002").is_err());
    pair.wait_ms(60_000);
    assert_equal(&pair);
    assert_eq!(pair.keys(1), pair.keys(0), "counted as before");
}

#[test]
fn one_state_too_old_is_brought_up_to_date_and_nothing_newer_is_lost() {
    let mut pair = Pair::linked();
    fill(&mut pair, 3);
    pair.wait_ms(20_000);
    let old: Vec<Bytes> = KINDS
        .iter()
        .map(|(scope, _)| {
            let name = ValueKey { shard: shard(scope), key: "k0001" }.encode();
            pair.nodes[1].store.get(Space::Values, name.as_bytes()).unwrap().unwrap()
        })
        .collect();
    pair.write(0, write("cache/c", "k0001", bytes("newer"))).unwrap();
    pair.write(0, write("stats/s", "k0001", increment(10))).unwrap();
    pair.wait_ms(1_000);
    for ((scope, _), row) in KINDS.iter().zip(old).take(2) {
        tamper(&mut pair, 1, scope, "k0001", Some(row));
    }
    pair.wait_ms(60_000);
    assert_equal(&pair);
    assert_eq!(pair.counter(1, "k0001"), 12);
}

#[test]
fn a_thousand_lost_keys_are_found_with_a_few_frames() {
    let mut pair = Pair::linked();
    for number in 0..3_000 {
        pair.write(0, write("cache/c", &format!("k{number:04}"), bytes("value"))).unwrap();
        if number % 100 == 0 {
            pair.settle();
        }
    }
    pair.wait_ms(20_000);
    for number in (0..3_000).step_by(3) {
        tamper(&mut pair, 1, "cache/c", &format!("k{number:04}"), None);
    }
    let (counted, bytes) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    pair.wait_ms_without(60_000, |frame| {
        match &frame.body {
            FrameBody::Inspect(inspect) => bytes.set(bytes.get() + inspect.cells.len()),
            FrameBody::Cells(cells) => bytes.set(bytes.get() + cells.bytes.len()),
            FrameBody::Differ(differ) => bytes.set(bytes.get() + differ.wanted.len() * 16),
            FrameBody::MoreCells(_) => {}
            _ => return false,
        }
        counted.set(counted.get() + 1);
        false
    });
    let (frames, sizes) = (counted.get(), bytes.get());
    assert_equal(&pair);
    assert!(frames <= 5, "{frames} frames: cells, more, the further cells, states, states");
    assert!(sizes < 70_000, "{sizes} bytes beside the states");
}

#[test]
fn a_member_beyond_the_log_gets_whole_shards_and_keeps_what_only_it_has() {
    let mut pair = Pair::linked();
    fill(&mut pair, 10);
    pair.wait_ms(1_000);
    pair.turn(0, Input::LinkDown(id(1)));
    pair.turn(1, Input::LinkDown(id(0)));
    for at in [0, 1] {
        let number = at as i64;
        pair.write(at, write("stats/s", "k0003", increment(100 + number))).unwrap();
        pair.write(at, write("docs", &format!("only-{at}"), document(r#"{"n":7}"#))).unwrap();
        pair.write(at, write("cache/c", "k0005", bytes(["from a", "from b"][at]))).unwrap();
    }
    pair.write(0, write("docs", "k0004", WriteOp::Delete)).unwrap();
    let mut once = write("stats/s", "once", increment(1));
    once.request_id = Some([3; 16]);
    pair.write(0, once.clone()).unwrap();
    for node in &mut pair.nodes {
        // As if the log had been capped while the link was down.
        let all: Vec<_> = node.store.commit_rows(0, u64::MAX).map(|row| row.unwrap()).collect();
        for (commit, row) in all {
            node.store.unlog(commit, &row.changes).unwrap();
        }
        let floor = tropism_storage::LogFloorRow { commit: node.store.head().commit + 1 };
        node.store.put_row(Space::Node, NodeKey::LogFloor.encode(), &floor);
        node.store.commit(0).unwrap();
    }
    for at in [0, 1] {
        pair.restart(at);
    }
    pair.now.wall_ms += 2_000; // the reservation passes
    pair.link();
    pair.wait_ms(30_000);
    assert_equal(&pair);
    assert_eq!(pair.counter(1, "k0003"), 4 + 201, "both increments");
    assert_eq!(pair.json(0, "only-1"), r#"{"n":7}"#);
    assert_eq!(pair.json(1, "only-0"), r#"{"n":7}"#);
    assert!(!pair.value(1, "docs", "k0004").cell.alive(), "the delete came along");
    assert!(pair.write(1, once).unwrap().replayed, "and the request");
    for at in [0, 1] {
        assert_eq!(count(&pair, at, |event| matches!(event, Event::Landed { .. })), 3, "of each shard");
        assert_eq!(count(&pair, at, |event| matches!(event, Event::Quit(_))), 1, "and then nothing is owed");
        assert!(pair.nodes[at].store.transfers().unwrap().is_empty());
        let staged = pair.nodes[at].store.scan(Space::Staged, &[0], &[0xff; 3]).count();
        assert_eq!(staged, 0);
    }
    let stable = |pair: &Pair| [0, 1].map(|at| pair.nodes[at].replica.stable_commit());
    let heads = [0, 1].map(|at| pair.nodes[at].store.head().commit);
    pair.wait_ms(5_000);
    let stable = stable(&pair);
    assert!(stable[0] >= heads[0] && stable[1] >= heads[1], "{stable:?} {heads:?}");
}

#[test]
fn a_transfer_that_stops_half_way_goes_on_where_it_stopped() {
    let mut pair = Pair::apart();
    for number in 0..200 {
        pair.write(0, write("docs", &format!("k{number:04}"), document(r#"{"n":1}"#))).unwrap();
    }
    let all: Vec<_> = pair.nodes[0].store.commit_rows(0, u64::MAX).map(|row| row.unwrap()).collect();
    for (commit, row) in all {
        pair.nodes[0].store.unlog(commit, &row.changes).unwrap();
    }
    let floor = tropism_storage::LogFloorRow { commit: pair.nodes[0].store.head().commit + 1 };
    pair.nodes[0].store.put_row(Space::Node, NodeKey::LogFloor.encode(), &floor);
    pair.nodes[0].store.commit(0).unwrap();
    pair.restart(0);
    pair.now.wall_ms += 2_000;
    let sent = std::cell::RefCell::new(BTreeSet::new());
    // Parts of 256 KiB would hold everything: the first link carries only the first part of small ones.
    pair.settings.part_bytes = 2_000;
    pair.restart(0);
    pair.now.wall_ms += 2_000;
    let lost = |frame: &Frame| match &frame.body {
        FrameBody::State(part) => {
            sent.borrow_mut().extend(part.pieces.iter().map(|piece| piece.key.clone()));
            part.number > 2
        }
        _ => false,
    };
    let (a, b) = (pair.hello(0), pair.hello(1));
    pair.turn(0, Input::LinkUp(b));
    pair.turn(1, Input::LinkUp(a));
    pair.wait_ms_without(2_000, lost);
    let row = |pair: &Pair| -> Option<TransferRow> {
        let name = tropism_storage::ShardKey::Transfer(shard("docs")).encode();
        pair.nodes[1].store.row(Space::Shards, &name).unwrap()
    };
    let staged = row(&pair).unwrap();
    assert!(staged.keys > 0 && staged.keys < 100 && !staged.whole, "{staged:?}");
    assert!(
        pair.nodes[1].store.value(shard("docs"), "k0000").unwrap().is_none(),
        "nobody reads what is staged"
    );
    assert!(pair.nodes[1].store.vector(shard("docs")).unwrap().is_empty());
    // Meanwhile one of the keys that are staged is written again, and both processes end.
    pair.write(0, write("docs", "k0000", document(r#"{"n":2}"#))).unwrap();
    for at in [0, 1] {
        pair.turn(at, Input::LinkDown(id(1 - at)));
        pair.restart(at);
    }
    pair.now.wall_ms += 2_000;
    sent.borrow_mut().clear();
    let (a, b) = (pair.hello(0), pair.hello(1));
    pair.turn(0, Input::LinkUp(b));
    pair.turn(1, Input::LinkUp(a));
    pair.wait_ms_without(20_000, |frame| {
        if let FrameBody::State(part) = &frame.body {
            sent.borrow_mut().extend(part.pieces.iter().map(|piece| piece.key.clone()));
        }
        false
    });
    assert_eq!(pair.json(1, "k0000"), r#"{"n":2}"#);
    assert_eq!(pair.json(1, "k0199"), r#"{"n":1}"#);
    let sent = sent.into_inner();
    assert!(sent.contains("k0000") && !sent.contains("k0001") && sent.contains("k0199"), "{sent:?}");
    assert_eq!(row(&pair), None);
}
