//! What an operator does about parked keys.

use tropism_placement::{ScopeName, StoredRecord};

use super::*;
use tropism_replica::{ParkedCall, ParkedError, ParkedKey, ParkedOp, ParkedState, ParkedStep};

impl Pair {
    /// One step, durable.
    fn step(&mut self, at: usize, scope: &str, key: &str, op: ParkedOp) -> Result<ParkedStep, ParkedError> {
        self.ticket += 1;
        let call = ParkedCall { scope: ScopeName::new(scope).unwrap(), key: key.into(), op };
        self.turn(at, Input::Parked { ticket: self.ticket, call: Box::new(call) });
        let mut outcome = None;
        self.nodes[at].outputs.retain_mut(|output| match output {
            Output::Parked { ticket, outcome: answer } if *ticket == self.ticket => {
                outcome = Some(answer.clone());
                false
            }
            _ => true,
        });
        outcome.expect("answered once durable")
    }

    /// All steps: the changes seen, with what each met.
    fn steps(
        &mut self,
        at: usize,
        (scope, key): (&str, &str),
        op: impl Fn(Option<(u64, u64)>) -> ParkedOp,
    ) -> Vec<Option<String>> {
        let (mut seen, mut next) = (Vec::new(), None);
        loop {
            let step = self.step(at, scope, key, op(next)).unwrap();
            seen.extend(step.changes.into_iter().map(|change| change.problem));
            match step.next {
                Some(place) => next = Some(place),
                None => return seen,
            }
        }
    }

    fn retry(&mut self, at: usize, scope: &str, key: &str) -> Vec<Option<String>> {
        self.steps(at, (scope, key), ParkedOp::Retry)
    }

    fn drop_parked(&mut self, at: usize, scope: &str, key: &str) -> usize {
        self.steps(at, (scope, key), ParkedOp::Drop).len()
    }

    fn show(&mut self, at: usize, scope: &str, key: &str) -> ParkedStep {
        self.step(at, scope, key, ParkedOp::Show).unwrap()
    }

    fn glance(&self, at: usize, scope: &str, key: &str) -> Option<ParkedKey> {
        let store = &self.nodes[at].store;
        ParkedKey::of(store, shard(scope), key, &store.value(shard(scope), key)).unwrap()
    }

    /// A write at `from` whose automerge part is damaged on its way to the other node.
    fn write_damaged(&mut self, from: usize, key: &str, json: &str) {
        self.send(from, write("docs", key, document(json)));
        self.reply(from).unwrap().unwrap();
        for output in std::mem::take(&mut self.nodes[from].outputs) {
            let Output::Send { mut frame, .. } = output else { continue };
            if let FrameBody::Changes(changes) = &mut frame.body {
                for bytes in changes {
                    let mut change = Change::decode(bytes).unwrap();
                    if let Body::Document { change: raw } = &mut change.body {
                        *raw = Bytes::from_static(b"not automerge");
                        *bytes = change.encode();
                    }
                }
            }
            self.turn(1 - from, Input::Frame { from: id(from), frame });
        }
        self.settle();
    }
}

fn history_part(key: &str) -> StoreKey {
    EditKey { shard: shard("docs"), key, life: 0, part: 1 }.encode()
}

#[test]
fn a_hostile_change_stays_parked_and_what_waits_behind_it_applies_when_it_is_tried() {
    let mut pair = Pair::linked();
    pair.write(1, write("docs", "d", document(r#"{"a":1}"#))).unwrap();
    pair.wait_ms(100);
    pair.write_damaged(0, "d", r#"{"a":1,"bad":1}"#);
    // Another node's change arrives behind it: made by one that had not seen the damaged one.
    let sound = foreign_change("d", r#"{"good":1}"#);
    let frame = Frame { round: 0, number: 99, body: FrameBody::Changes(vec![sound.encode()]) };
    pair.turn(1, Input::Frame { from: id(0), frame });
    assert_eq!(pair.value(1, "docs", "d").parked.map(|parked| parked.changes), Some(2));
    let shown = pair.show(1, "docs", "d");
    let met: Vec<bool> = shown.changes.iter().map(|change| change.problem.is_none()).collect();
    assert_eq!(met, [false, true], "{shown:?}");
    assert!(shown.changes[0].problem.as_ref().unwrap().contains("malformed"), "{shown:?}");
    let (origin, seq, stamp) = shown.changes[1].made.unwrap();
    assert_eq!((origin, seq, stamp), (sound.origin, 1, sound.stamp));
    assert_eq!(shown.changes[1].since_ms, Some(pair.now.wall_ms), "when it was put aside");
    assert!(pair.value(1, "docs", "d").parked.is_some(), "showing changes nothing");
    assert_eq!(pair.glance(1, "docs", "d").unwrap().kept.changes, 2);

    let tried = pair.retry(1, "docs", "d");
    assert_eq!(tried.iter().map(Option::is_none).collect::<Vec<_>>(), [false, true]);
    let row = pair.value(1, "docs", "d");
    assert!(row.parked.as_ref().is_some_and(|parked| parked.reason.contains("malformed")), "{row:?}");
    assert_eq!(pair.glance(1, "docs", "d").unwrap().kept.changes, 1, "the hostile one");
    let Content::Document { json, .. } = &row.cell.content else { panic!("{row:?}") };
    assert_eq!(json[..], *br#"{"a":1,"good":1}"#, "the other is in the document");
    assert_eq!((pair.keys(1), pair.status(1).degraded.len()), ([0, 0, 0, 1], 1));
    assert_eq!(pair.retry(1, "docs", "d").len(), 1, "again, and nothing happens twice");
    // What is put aside later stands behind what is left.
    pair.write_damaged(0, "d", r#"{"a":2}"#);
    assert_eq!(pair.glance(1, "docs", "d").unwrap().kept.changes, 2);
}

#[test]
fn what_was_only_shown_is_not_built_on() {
    let mut pair = Pair::linked();
    pair.write(1, write("docs", "d", document(r#"{"a":1}"#))).unwrap();
    pair.wait_ms(100);
    pair.write_damaged(0, "d", r#"{"bad":1}"#);
    let sound = foreign_change("d", r#"{"good":1}"#);
    let frame = Frame { round: 0, number: 99, body: FrameBody::Changes(vec![sound.encode()]) };
    pair.turn(1, Input::Frame { from: id(0), frame });
    assert!(pair.show(1, "docs", "d").changes[1].problem.is_none(), "it would apply");
    assert_eq!(pair.drop_parked(1, "docs", "d"), 2);
    pair.write(1, write("docs", "d", document(r#"{"a":2}"#))).unwrap();
    assert_eq!(pair.json(1, "d"), r#"{"a":2}"#);
    let pieces = pair.nodes[1].store.edits(shard("docs"), "d", 0).unwrap();
    let pieces: Vec<Bytes> = pieces.into_iter().map(|(_, piece)| piece).collect();
    let mut stored = Document::empty(b"reader");
    stored.restore(&pieces).unwrap();
    assert_eq!(stored.shown()[..], *br#"{"a":2}"#, "its history is whole");
}

#[test]
fn what_was_put_aside_while_the_history_rotted_applies_when_it_is_whole_again() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "d", document(r#"{"a":1}"#))).unwrap();
    pair.wait_ms(1_000);
    pair.restart(1);
    let name = history_part("d");
    let whole = pair.nodes[1].store.get(Space::Edits, name.as_bytes()).unwrap().unwrap();
    rot(&mut pair.nodes[1], Space::Edits, name.clone());
    pair.link();
    let repair = |frame: &Frame| matches!(frame.body, FrameBody::Inspect(_));
    for n in 2..80 {
        pair.write(0, write("docs", "d", document(&format!("{{\"a\":{n}}}")))).unwrap();
        pair.wait_ms_without(50, repair);
    }
    let shown = pair.show(1, "docs", "d");
    assert!(shown.history.as_ref().is_some_and(|history| history.contains("damaged")), "{shown:?}");
    assert_eq!(shown.changes.len(), 78);
    let tried = pair.retry(1, "docs", "d");
    assert!(tried.iter().all(Option::is_some), "nothing can be applied to it: {tried:?}");
    assert_eq!((tried.len(), pair.keys(1)), (78, [0, 0, 0, 1]));

    pair.nodes[1].store.put(Space::Edits, name, whole); // as an update of the program could make it readable
    let tried = pair.retry(1, "docs", "d");
    assert!(tried.len() == 78 && tried.iter().all(Option::is_none), "{tried:?}");
    assert_eq!(pair.json(1, "d"), r#"{"a":79}"#);
    assert_eq!(
        pair.value(0, "docs", "d").cell,
        pair.value(1, "docs", "d").cell,
        "and it is what the peer has"
    );
    assert_eq!((pair.keys(1), pair.status(1).degraded.len()), ([1, 0, 0, 0], 0));
    assert_eq!(pair.step(1, "docs", "d", ParkedOp::Show), Err(ParkedError::NotParked));
    pair.restart(1); // what was applied is in the stored history, too
    pair.link();
    pair.wait_ms(2_000);
    pair.write(1, write("docs", "d", document(r#"{"b":1}"#))).unwrap();
    pair.wait_ms(100);
    assert_eq!((pair.json(0, "d"), pair.json(1, "d")), (r#"{"b":1}"#.into(), r#"{"b":1}"#.into()));
}

#[test]
fn changes_kept_for_a_row_that_rotted_apply_once_it_can_be_read_again() {
    for scope in ["cache/c", "docs", "stats/s"] {
        let op = |n: i64| match scope {
            "cache/c" => bytes(["", "one", "two", "three"][n as usize]),
            "docs" => document(&format!("{{\"n\":{n}}}")),
            _ => WriteOp::Increment { by: n },
        };
        let mut pair = Pair::linked();
        pair.write(0, write(scope, "k", op(1))).unwrap();
        pair.wait_ms(1_000);
        let name = ValueKey { shard: shard(scope), key: "k" }.encode();
        let whole = pair.nodes[1].store.get(Space::Values, name.as_bytes()).unwrap().unwrap();
        rot(&mut pair.nodes[1], Space::Values, name.clone());
        pair.write(0, write(scope, "k", op(2))).unwrap();
        pair.write(0, write(scope, "k", op(3))).unwrap();
        pair.wait_ms(100);
        let refused = pair.step(1, scope, "k", ParkedOp::Retry(None)).unwrap_err();
        assert!(matches!(refused, ParkedError::RowDamaged { .. }), "{refused:?}");
        let said = refused.to_string();
        assert!(said.contains("(2 kept)") && said.contains("when the row can be read again"), "{said}");
        let shown = pair.show(1, scope, "k");
        assert_eq!(shown.changes.iter().map(|change| change.made.unwrap().1).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(pair.glance(1, scope, "k").unwrap().state, ParkedState::RowDamaged);

        // The row as it was; or as the peer has it, so that what is kept is in it already, and one that did not arrive.
        pair.send(0, write(scope, "k", op(1)));
        pair.reply(0).unwrap().unwrap();
        let theirs = pair.nodes[0].store.get(Space::Values, name.as_bytes()).unwrap().unwrap();
        pair.nodes[1].store.put(Space::Values, name, if scope == "docs" { whole } else { theirs });
        pair.turn(1, Input::Tick);
        assert_eq!(pair.glance(1, scope, "k").unwrap().state, ParkedState::LeftOver);
        assert_eq!(pair.retry(1, scope, "k"), [None, None]);
        let (there, here) = (pair.value(0, scope, "k"), pair.value(1, scope, "k"));
        if scope != "docs" {
            // A late change is not the last of its origin: a session that saw a newer one is not taken back.
            assert_eq!((here.cell, here.last), (there.cell, there.last), "{scope}");
        }
        assert_eq!(pair.glance(1, scope, "k"), None);
        pair.wait_ms(100);
        let (there, here) = (pair.value(0, scope, "k"), pair.value(1, scope, "k"));
        assert_eq!((here.cell, here.last), (there.cell, there.last), "{scope}");
    }
}

#[test]
fn dropped_changes_are_gone_the_key_shows_what_it_had_and_the_store_remembers() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "d", document(r#"{"a":1}"#))).unwrap();
    pair.wait_ms(100);
    for n in 0..70 {
        pair.write_damaged(0, "d", &format!("{{\"bad\":{n}}}"));
    }
    assert_eq!((pair.status(1).dropped, pair.keys(1)), (None, [0, 0, 0, 1]));
    let first = pair.step(1, "docs", "d", ParkedOp::Drop(None)).unwrap();
    assert!(first.next.is_some() && first.changes.len() < 70, "bounded");
    assert!(pair.value(1, "docs", "d").parked.is_some(), "not served in between");
    assert_eq!(pair.drop_parked(1, "docs", "d"), 70 - first.changes.len());
    assert_eq!((pair.json(1, "d"), pair.keys(1)), (r#"{"a":1}"#.into(), [1, 0, 0, 0]));
    assert_eq!(pair.status(1).degraded.len(), 0);
    assert_eq!(pair.step(1, "docs", "d", ParkedOp::Drop(None)), Err(ParkedError::NotParked));
    let vectors = |pair: &Pair| [0, 1].map(|node| pair.nodes[node].store.vector(shard("docs")).unwrap());
    let [there, here] = vectors(&pair);
    assert_eq!(there, here, "what was dropped counts as arrived");
    pair.restart(1);
    let dropped = pair.status(1).dropped.expect("remembered for as long as the store lives");
    assert_eq!((dropped.keys, dropped.changes), (1, 70));
    assert_eq!(dropped.scope, "docs");
    // The peer builds on what is not here any more: its next change is parked. Another life is whole.
    pair.link();
    pair.write(0, write("docs", "d", document(r#"{"c":1}"#))).unwrap();
    pair.wait_ms_without(2_000, |frame| matches!(frame.body, FrameBody::Inspect(_)));
    let parked = pair.value(1, "docs", "d").parked.expect("it cannot be applied");
    assert!(parked.reason.contains("not here"), "{}", parked.reason);
    pair.wait_ms(30_000);
    assert_eq!(
        (pair.json(1, "d"), pair.keys(1)),
        (r#"{"c":1}"#.into(), [1, 0, 0, 0]),
        "cured by the peer's state"
    );
    pair.write(0, write("docs", "d", WriteOp::Delete)).unwrap();
    pair.write(0, write("docs", "d", document(r#"{"new":1}"#))).unwrap();
    pair.wait_ms(100);
    assert_eq!((pair.json(1, "d"), pair.glance(1, "docs", "d")), (r#"{"new":1}"#.into(), None));
}

#[test]
fn a_dropped_row_that_could_not_be_read_is_removed_with_all_that_was_kept() {
    let mut pair = Pair::linked();
    for (scope, op) in [("cache/c", bytes("v")), ("docs", document(r#"{"a":1}"#))] {
        pair.write(0, write(scope, "k", op.clone())).unwrap();
        pair.wait_ms(1_000);
        rot(&mut pair.nodes[1], Space::Values, ValueKey { shard: shard(scope), key: "k" }.encode());
        pair.write(0, write(scope, "k", op)).unwrap();
        pair.wait_ms(1_000);
        assert_eq!(pair.keys(1)[3], 1);
        let step = pair.step(1, scope, "k", ParkedOp::Drop(None)).unwrap();
        assert!(step.row_removed && step.next.is_none() && step.changes.len() == 1, "{step:?}");
        assert_eq!((pair.value(1, scope, "k"), pair.keys(1)[3]), (ValueRow::default(), 0));
        assert_eq!(pair.nodes[1].store.edit_names(shard(scope), "k").unwrap(), []);
        assert_eq!(pair.step(1, scope, "k", ParkedOp::Show), Err(ParkedError::NotFound));
        pair.wait_ms(1_000);
        assert_eq!((pair.keys(1)[3], pair.status(1).degraded.len()), (0, 0), "also as counted");
    }
    // A register is whole with its next write.
    pair.write(0, write("cache/c", "k", bytes("w"))).unwrap();
    pair.wait_ms(100);
    assert_eq!(pair.value(1, "cache/c", "k").cell.content, pair.value(0, "cache/c", "k").cell.content);
    assert_eq!(pair.status(1).dropped.map(|dropped| (dropped.keys, dropped.changes)), Some((2, 2)));
}

#[test]
fn a_node_does_not_write_again_what_it_forgot_to_have_written() {
    let mut pair = Pair::linked();
    let ops: [(&str, WriteOp); 3] = [
        ("stats/s", WriteOp::Increment { by: 5 }),
        ("docs", document(r#"{"a":1}"#)),
        ("cache/c", bytes("v")),
    ];
    for (scope, op) in &ops {
        pair.write(1, write(scope, "k", op.clone())).unwrap();
        pair.wait_ms(1_000);
        rot(&mut pair.nodes[1], Space::Values, ValueKey { shard: shard(scope), key: "k" }.encode());
        pair.wait_ms(1_000);
        assert!(pair.step(1, scope, "k", ParkedOp::Drop(None)).unwrap().row_removed);
        let again = pair.write(1, write(scope, "k", op.clone()));
        assert_eq!(again.is_ok(), *scope == "cache/c", "{scope}: a register says all of itself: {again:?}");
        assert!(pair.write(1, write(scope, "other", op.clone())).is_ok());
    }
    pair.wait_ms(100);
    assert_eq!(pair.counter(0, "k"), 5, "what was acknowledged");
    pair.restart(1); // another origin, which has said nothing of these keys
    pair.link();
    pair.wait_ms(2_000);
    for (scope, op) in &ops {
        pair.write(1, write(scope, "k", op.clone())).unwrap();
    }
    pair.wait_ms(100);
    assert_eq!(pair.counter(0, "k"), 10);
    assert!(pair.value(0, "docs", "k").parked.is_none());
    assert_eq!(pair.keys(0)[3], 0);
}

#[test]
fn shards_with_parked_keys_are_known_once_the_sweep_has_been_round() {
    let mut pair = Pair::apart();
    let known = |pair: &Pair| pair.status(1).parked_shards.map(|known| (known.shards, known.keys));
    assert_eq!(known(&pair), None, "not yet");
    pair.link();
    pair.wait_ms(1_000);
    assert_eq!(known(&pair), Some((Vec::new(), 0)));
    pair.write_damaged(0, "d", r#"{"a":1}"#);
    assert_eq!(known(&pair), Some((vec![shard("docs")], 1)));
    assert_eq!(pair.drop_parked(1, "docs", "d"), 1);
    assert_eq!(known(&pair), Some((Vec::new(), 0)));
}

#[test]
fn keys_that_are_not_parked_are_refused_in_words() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "d", document("{}"))).unwrap();
    for op in [ParkedOp::Show, ParkedOp::Retry(None), ParkedOp::Drop(None)] {
        assert_eq!(pair.step(0, "docs", "d", op), Err(ParkedError::NotParked));
        assert_eq!(pair.step(0, "docs", "none", op), Err(ParkedError::NotFound));
    }
    assert_eq!(pair.status(0).dropped, None);
}

/// A first document of a node that nobody has met: its change builds on nothing.
fn foreign_change(key: &str, json: &str) -> Change {
    let origin = Origin { node: NodeId::new("c-1").unwrap(), incarnation: 1, random: 1 };
    let mut made = Document::empty(&origin.to_bytes());
    let json = parse(json.as_bytes(), &JsonLimits::default()).unwrap();
    let raw = made.replace(&json, None, &Paths::default(), 0).unwrap().unwrap();
    Change {
        scope: "docs".into(),
        scope_incarnation: 0,
        shard_index: 0,
        origin,
        seq: 1,
        deps: Vec::new(),
        stamp: tropism_crdt::Stamp::new(1_700_000_000_100, 1),
        key: key.into(),
        life: 0,
        generation: 0,
        epoch: 1,
        request_id: None,
        trace: None,
        expiry: ExpiryChange::Keep,
        body: Body::Document { change: raw.into() },
    }
}

#[test]
fn a_parked_key_of_a_scope_that_left_is_not_found_while_its_rows_go() {
    let mut pair = Pair::linked();
    pair.write(0, write("docs", "d", document("{}"))).unwrap();
    pair.wait_ms(100);
    pair.write_damaged(0, "d", r#"{"a":1}"#);
    pair.wait_ms(100);
    assert!(pair.glance(1, "docs", "d").is_some());
    let scope = ScopeName::new("docs").unwrap();
    let now = pair.now_of(1);
    let Node { replica, store, outputs, .. } = &mut pair.nodes[1];
    let record = replica.record(&scope).unwrap();
    let mut moved = StoredRecord::of(&record).bound_for(None);
    moved.members.serving.truncate(1); // the other node's region
    replica.handle(now, store, Input::Records { records: vec![moved], all: true }).unwrap();
    for op in [ParkedOp::Show, ParkedOp::Retry(None), ParkedOp::Drop(None)] {
        let call = ParkedCall { scope: scope.clone(), key: "d".into(), op };
        replica.handle(now, store, Input::Parked { ticket: 99, call: Box::new(call) }).unwrap();
    }
    outputs.extend(std::iter::from_fn(|| replica.poll_output()));
    let answers = outputs.iter().filter_map(|output| match output {
        Output::Parked { outcome, .. } => Some(outcome.clone()),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), vec![Err(ParkedError::NotFound); 3]);
}
