//! What a verification says: equal, behind, differing keys and why, and who could not be asked.

use tropism_replica::{
    DigestState, KeyHeld, MemberState, Rows, Verified, VerifiedKey, VerifiedShard, VerifyAnswer, VerifyCall,
    VerifyError, VerifyResult,
};
use tropism_storage::rows::{Parked, Row};

use super::*;

const PATIENCE_MS: u64 = 30_000;

fn ask(cluster: &mut Cluster, at: usize, scope: &str, index: u16) -> u64 {
    cluster.ticket += 1;
    let deadline_us = cluster.now.mono_us + PATIENCE_MS * 1_000;
    let call = VerifyCall { scope: scope_name(scope), index, deadline_us };
    cluster.turn(at, Input::Verify { ticket: cluster.ticket, call: Box::new(call) });
    cluster.ticket
}

fn scope_name(scope: &str) -> tropism_placement::ScopeName {
    tropism_placement::ScopeName::new(scope).unwrap()
}

fn answer(
    cluster: &mut Cluster,
    at: usize,
    ticket: u64,
    lost: impl Fn(&Frame) -> bool,
) -> Result<VerifiedShard, VerifyError> {
    for _ in 0..PATIENCE_MS / 50 + 20 {
        let outputs = &mut cluster.nodes[at].outputs;
        let is_it = |output: &Output| matches!(output, Output::Verified { ticket: of, .. } if *of == ticket);
        if let Some(found) = outputs.iter().position(is_it)
            && let Output::Verified { outcome, .. } = outputs.remove(found)
        {
            return outcome;
        }
        cluster.wait_ms_without(50, &lost);
    }
    panic!("no answer");
}

fn verify(cluster: &mut Cluster, at: usize, scope: &str) -> VerifiedShard {
    let ticket = ask(cluster, at, scope, 0);
    answer(cluster, at, ticket, |_| false).unwrap()
}

/// Digests are left out: what they say of rows that are tampered with has a test of its own.
fn key<'v>(verified: &'v VerifiedShard, key: &str) -> &'v VerifiedKey {
    verified.keys.iter().find(|named| named.key == key).unwrap_or_else(|| panic!("{key}: {verified:#?}"))
}

/// Three that hold some keys of every kind.
fn three() -> Cluster {
    let mut three = Cluster::of(3, Settings::default());
    three.link();
    for number in 0..9 {
        let key = format!("k{number}");
        three.write(number % 3, write("cache/c", &key, bytes("value"))).unwrap();
        three.write(number % 3, write("stats/s", &key, increment(number as i64))).unwrap();
        three.write(number % 3, write("docs", &key, document(r#"{"n":1,"text":"some text"}"#))).unwrap();
        three.settle();
    }
    three.write(0, write("docs", "gone", document("{}"))).unwrap();
    three.wait_ms(1_000);
    three.write(1, write("docs", "gone", WriteOp::Delete)).unwrap();
    three.wait_ms(1_000);
    three
}

fn tamper(cluster: &mut Cluster, at: usize, scope: &str, key: &str, row: Option<Bytes>) {
    let name = ValueKey { shard: shard(scope), key }.encode();
    let store = &mut cluster.nodes[at].store;
    match row {
        Some(row) => store.put(Space::Values, name, row),
        None => store.remove(Space::Values, name),
    }
    store.commit(0).unwrap();
}

fn row_of(cluster: &Cluster, at: usize, scope: &str, key: &str) -> Bytes {
    let name = ValueKey { shard: shard(scope), key }.encode();
    cluster.nodes[at].store.get(Space::Values, name.as_bytes()).unwrap().unwrap()
}

fn rot(cluster: &mut Cluster, at: usize, scope: &str, key: &str) {
    let mut row = row_of(cluster, at, scope, key).to_vec();
    row[4] ^= 0x40;
    tamper(cluster, at, scope, key, Some(row.into()));
}

#[test]
fn members_that_hold_the_same_are_equal_and_nothing_is_changed() {
    let mut three = three();
    for scope in ["cache/c", "stats/s", "docs", "docs/never-written"] {
        for at in 0..3 {
            let before = three.nodes[at].store.head();
            let verified = verify(&mut three, at, scope);
            assert_eq!(verified.result(), VerifyResult::Equal, "{verified:#?}");
            assert_eq!((verified.members.len(), verified.keys.len(), verified.more_keys), (3, 0, 0));
            assert_eq!(verified.members[0].node, id(at), "the one that was asked comes first");
            for member in &verified.members {
                let rows = if scope.contains("never") { 0 } else { 9 + u64::from(scope == "docs") };
                assert_eq!((member.state, member.keys), (MemberState::Compared, rows), "{member:?}");
                assert_eq!((member.rows, member.digest), (Rows::Equal, DigestState::Sound));
            }
            let logged = three.nodes[at].store.commit_rows(before.commit + 1, u64::MAX).count();
            assert_eq!(logged, 0, "nothing was written because of it");
        }
    }
}

#[test]
fn rows_that_are_gone_rotten_parked_or_of_another_time_are_named_with_what_each_member_holds() {
    let mut three = three();
    let old = row_of(&three, 2, "cache/c", "k4");
    three.write(0, write("cache/c", "k4", bytes("newer"))).unwrap();
    three.wait_ms(500);
    tamper(&mut three, 0, "cache/c", "k1", None);
    tamper(&mut three, 1, "cache/c", "k2", None);
    rot(&mut three, 1, "cache/c", "k3");
    tamper(&mut three, 2, "cache/c", "k4", Some(old));
    let mut parked = three.value(2, "cache/c", "k5");
    parked.parked = Some(Parked { changes: 1, reason: "it does not fit".into() });
    tamper(&mut three, 2, "cache/c", "k5", Some(parked.encode()));

    let verified = verify(&mut three, 0, "cache/c");
    assert_eq!(verified.result(), VerifyResult::Differs);
    let named: Vec<&str> = verified.keys.iter().map(|key| key.key.as_str()).collect();
    assert_eq!((named, verified.more_keys), (vec!["k1", "k2", "k3", "k4", "k5"], 0), "{verified:#?}");
    let state = |held: &KeyHeld| match held {
        KeyHeld::State { parked, content, written, .. } => {
            (parked.clone(), content.clone(), written.unwrap().0)
        }
        held => panic!("{held:?}"),
    };
    let k1 = key(&verified, "k1");
    assert_eq!(k1.held[&id(0)], KeyHeld::Nothing);
    assert_eq!(state(&k1.held[&id(1)]).1, "5 bytes");
    assert_eq!(k1.held[&id(1)], k1.held[&id(2)]);
    let k2 = key(&verified, "k2");
    assert_eq!(
        (&k2.held[&id(1)], k2.held.len()),
        (&KeyHeld::Nothing, 2),
        "the third holds what was asked holds"
    );
    let k3 = key(&verified, "k3");
    assert!(
        matches!(&k3.held[&id(1)], KeyHeld::Unreadable { reason } if reason.contains("checksum")),
        "{k3:?}"
    );
    let k4 = key(&verified, "k4");
    assert!(state(&k4.held[&id(0)]).2 > state(&k4.held[&id(2)]).2, "another value, with both stamps");
    assert_eq!(state(&key(&verified, "k5").held[&id(2)]).0, "it does not fit");
    let of = |at: usize| verified.members.iter().find(|member| member.node == id(at)).unwrap();
    assert_eq!([0, 1, 2].map(|at| of(at).digest), [DigestState::Rotted; 3], "rows are not what was written");
    assert_eq!([0, 1, 2].map(|at| of(at).unreadable), [0, 1, 0]);
    assert_eq!([0, 1, 2].map(|at| of(at).parked), [0, 0, 1]);
    assert_eq!(
        three.nodes[1].store.value(shard("cache/c"), "k2"),
        Ok(None),
        "a verification repairs nothing"
    );
    assert_eq!(
        verify(&mut three, 0, "docs").result(),
        VerifyResult::Equal,
        "of other shards it says nothing"
    );
}

#[test]
fn a_member_that_lacks_changes_is_behind_and_its_other_keys_are_compared() {
    let mut three = three();
    let no_changes = |frame: &Frame| matches!(frame.body, FrameBody::Changes(_));
    three.write(0, write("cache/c", "k7", bytes("not yet there"))).unwrap();
    three.write(0, write("cache/c", "k7", bytes("nor this"))).unwrap();
    three.write(0, write("cache/c", "new", bytes("nor this"))).unwrap();
    let (from, to) =
        (&three.nodes[0].store.vector(shard("cache/c")).unwrap(), three.nodes[0].replica.origin());
    let last = from.get(&to);
    for asked in [0, 1] {
        let ticket = ask(&mut three, asked, "cache/c", 0);
        let verified = answer(&mut three, asked, ticket, no_changes).unwrap();
        if asked == 1 {
            // Two members are behind the same node, and alike.
            assert_eq!(verified.result(), VerifyResult::Behind, "{verified:#?}");
            assert_eq!(verified.members[0].lacks.changes, 3);
            continue;
        }
        assert_eq!(verified.result(), VerifyResult::Behind, "{verified:#?}");
        for member in &verified.members[1..] {
            assert_eq!(member.lacks.origins, [(to, last - 2, last)]);
            assert_eq!((member.rows, member.left_out), (Rows::Equal, 2));
        }
        let named: Vec<&str> = verified.keys.iter().map(|key| key.key.as_str()).collect();
        assert_eq!(named, ["k7", "new"]);
        assert_eq!(key(&verified, "k7").behind, [(id(1), to, last - 1), (id(2), to, last - 1)]);
    }
    // A key that differs is found beside them.
    tamper(&mut three, 1, "cache/c", "k2", None);
    let ticket = ask(&mut three, 0, "cache/c", 0);
    let verified = answer(&mut three, 0, ticket, no_changes).unwrap();
    assert_eq!(verified.result(), VerifyResult::Differs);
    assert_eq!((verified.keys[0].key.as_str(), verified.keys.len()), ("k2", 3), "{verified:#?}");
}

#[test]
fn what_is_written_meanwhile_does_not_look_as_if_it_differed() {
    let mut three = three();
    let mut found = Vec::new();
    for round in 0..20 {
        let ticket = ask(&mut three, 0, "stats/s", 0);
        for number in 0..3 {
            three.write(number, write("stats/s", &format!("k{round}"), increment(1))).unwrap();
        }
        let verified = answer(&mut three, 0, ticket, |_| false).unwrap();
        assert_eq!(verified.result(), VerifyResult::Equal, "{verified:#?}");
        found.extend(verified.members.iter().map(|member| member.left_out));
    }
    assert!(found.iter().any(|left_out| *left_out > 0), "some were left out, and that is said");
}

#[test]
fn a_member_that_cannot_be_reached_makes_it_incomplete_and_the_others_are_compared() {
    let mut three = three();
    three.cut(0, 2);
    three.wait_ms(4_000);
    let verified = verify(&mut three, 0, "docs");
    assert_eq!(verified.result(), VerifyResult::Incomplete);
    assert_eq!(verified.members[1].state, MemberState::Compared);
    let MemberState::Unreachable { for_us } = verified.members[2].state else { panic!("{verified:#?}") };
    assert!((4_000_000..4_200_000).contains(&for_us), "{for_us}");

    // One that is lost in the middle, and one that answers nothing.
    let mut three = self::three();
    let ticket = ask(&mut three, 0, "docs", 0);
    three.cut(0, 1);
    let verified =
        answer(&mut three, 0, ticket, |frame| matches!(frame.body, FrameBody::Verified(_))).unwrap();
    assert!(matches!(verified.members[1].state, MemberState::Unreachable { .. }));
    assert_eq!(verified.members[2].state, MemberState::NoAnswer);
    assert_eq!(verified.result(), VerifyResult::Incomplete);
}

#[test]
fn a_frame_that_is_lost_is_sent_again_and_a_member_that_starts_anew_is_asked_anew() {
    let mut three = three();
    tamper(&mut three, 1, "docs", "k2", None);
    let ticket = ask(&mut three, 0, "docs", 0);
    let seen = std::cell::Cell::new(0);
    let verified = answer(&mut three, 0, ticket, |frame| match &frame.body {
        FrameBody::Verify(_) | FrameBody::Verified(_) => {
            seen.set(seen.get() + 1);
            seen.get() % 2 == 1
        }
        _ => false,
    });
    let verified = verified.unwrap();
    assert_eq!((verified.result(), verified.keys.len()), (VerifyResult::Differs, 1), "{verified:#?}");

    tamper(&mut three, 1, "docs", "k2", None);
    let ticket = ask(&mut three, 0, "docs", 0);
    let gone = std::cell::RefCell::new(None);
    for _ in 0..5 {
        three.wait_ms_without(50, |frame| match &frame.body {
            FrameBody::Verified(verified) if matches!(verified.answer, VerifyAnswer::Cells { .. }) => {
                gone.replace(Some(verified.clone()));
                true
            }
            _ => false,
        });
    }
    // In place of its sketch the member says that it knows nothing of the comparison.
    let verified = Verified { answer: VerifyAnswer::Gone, ..gone.take().unwrap() };
    let frame = Frame { round: 0, number: 9_999, body: FrameBody::Verified(verified) };
    three.turn(0, Input::Frame { from: id(1), frame });
    let verified = answer(&mut three, 0, ticket, |_| false).unwrap();
    assert_eq!((verified.result(), verified.keys.len()), (VerifyResult::Differs, 1), "{verified:#?}");
}

#[test]
fn of_thousands_of_keys_that_differ_some_are_named_and_the_others_estimated() {
    let mut pair = Cluster::linked();
    for number in 0..6_000 {
        pair.write(0, write("cache/c", &format!("k{number:04}"), bytes("value"))).unwrap();
        if number % 100 == 0 {
            pair.settle();
        }
    }
    pair.wait_ms(2_000);
    for number in 0..150 {
        tamper(&mut pair, 1, "cache/c", &format!("k{number:04}"), None);
    }
    let verified = verify(&mut pair, 0, "cache/c");
    assert_eq!((verified.keys.len(), verified.more_keys), (100, 50), "exact while a sketch tells all");
    for number in 150..4_000 {
        tamper(&mut pair, 1, "cache/c", &format!("k{number:04}"), None);
    }
    let largest = std::cell::Cell::new(0);
    let ticket = ask(&mut pair, 0, "cache/c", 0);
    let verified = answer(&mut pair, 0, ticket, |frame| {
        if let FrameBody::Verified(verified) = &frame.body
            && let VerifyAnswer::Cells { cells, .. } = &verified.answer
        {
            largest.set(largest.get().max(cells.len()));
        }
        false
    });
    let verified = verified.unwrap();
    assert_eq!((verified.result(), verified.keys.len()), (VerifyResult::Differs, 100));
    assert!((3_000..5_000).contains(&verified.more_keys), "{}", verified.more_keys);
    assert!(verified.keys.iter().all(|key| key.held[&id(1)] == KeyHeld::Nothing));
    assert!((40_000..70_000).contains(&largest.get()), "{}", largest.get());
}

#[test]
fn a_log_that_does_not_tell_leaves_only_vectors_to_compare() {
    let mut pair = Cluster::linked();
    pair.write(0, write("cache/c", "k", bytes("value"))).unwrap();
    pair.wait_ms(1_000);
    pair.cut(0, 1);
    pair.write(0, write("cache/c", "k", bytes("other"))).unwrap();
    let rows: Vec<_> = pair.nodes[0].store.commit_rows(0, u64::MAX).map(|row| row.unwrap()).collect();
    for (commit, row) in rows {
        pair.nodes[0].store.unlog(commit, &row.changes).unwrap();
    }
    pair.nodes[0].store.commit(0).unwrap();
    pair.connect(0, 1);
    let ticket = ask(&mut pair, 0, "cache/c", 0);
    let only = |frame: &Frame| {
        !matches!(frame.body, FrameBody::Verify(_) | FrameBody::Verified(_) | FrameBody::Heartbeat(_))
    };
    let verified = answer(&mut pair, 0, ticket, only).unwrap();
    assert_eq!(verified.members[1].state, MemberState::TooFarApart, "{verified:#?}");
    assert_eq!((verified.members[1].lacks.changes, verified.result()), (1, VerifyResult::Incomplete));
}

#[test]
fn calls_that_make_no_sense_are_refused_and_so_are_too_many() {
    let mut pair = Cluster::linked();
    let ticket = ask(&mut pair, 0, "cache/c", 1);
    let refused = answer(&mut pair, 0, ticket, |_| false).unwrap_err();
    assert_eq!(refused, VerifyError::NoShard { scope: scope_name("cache/c"), index: 1, spread: 1 });
    let nothing = |_: &Frame| true;
    let tickets: Vec<u64> = (0..9).map(|_| ask(&mut pair, 0, "cache/c", 0)).collect();
    assert_eq!(answer(&mut pair, 0, tickets[8], nothing), Err(VerifyError::Busy));
    for ticket in &tickets[..8] {
        assert_eq!(answer(&mut pair, 0, *ticket, nothing).unwrap().result(), VerifyResult::Incomplete);
    }
    assert!(ask(&mut pair, 0, "cache/c", 0) > 0);
}
