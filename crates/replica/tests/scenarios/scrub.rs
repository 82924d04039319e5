//! What rots is found though nobody reads it, however pressed the node is.

use tropism_replica::limits::{FLOOR_PERCENT, SCRUB_WITHIN_US, WINDOW_US};
use tropism_replica::{Foreground, Work};

use super::*;

const KEYS: usize = 2_000;

/// A node without peers that holds so many keys and has been round once.
fn alone() -> Cluster {
    let mut alone = Cluster::of(1, Settings::default());
    for number in 0..KEYS {
        alone.write(0, write("cache/c", &format!("k{number:04}"), bytes("value"))).unwrap();
    }
    while !alone.status(0).counted {
        tick(&mut alone);
    }
    alone
}

/// Time goes on to when the node asks for it.
fn tick(alone: &mut Cluster) {
    let us = alone.nodes[0].replica.next_deadline(alone.now) - alone.now.mono_us;
    assert!(us > 0, "there is no next turn at once");
    alone.now.mono_us += us;
    alone.now.wall_ms = 1_700_000_000_000 + (alone.now.mono_us - 1_000_000) / 1_000;
    alone.turn(0, Input::Tick);
}

/// Clients' writes of a window take so long.
fn window(alone: &mut Cluster, us: u64) {
    let mut seen = Foreground { late_us: WINDOW_US / 10, ..Foreground::default() };
    (0..200).for_each(|_| seen.latencies.record(us));
    alone.turn(0, Input::Foreground(Box::new(seen)));
}

/// Rots a row behind the replica's back.
fn rot(alone: &mut Cluster, key: &str) {
    let name = ValueKey { shard: shard("cache/c"), key }.encode();
    let store = &mut alone.nodes[0].store;
    let mut row = store.get(Space::Values, name.as_bytes()).unwrap().unwrap().to_vec();
    row[5] ^= 1;
    store.put(Space::Values, name, row.into());
    store.commit(0).unwrap();
}

#[test]
fn a_row_that_rots_is_found_within_a_day_though_nobody_reads_it() {
    for pressed in [false, true] {
        let mut alone = alone();
        rot(&mut alone, "k1234");
        assert_eq!(alone.keys(0)[3], 0, "nobody has seen it");
        let began = alone.now.mono_us;
        let (mut window_due, mut rests) = (began, false);
        while alone.keys(0)[3] == 0 {
            assert!(alone.now.mono_us < began + SCRUB_WITHIN_US, "a day is over");
            if pressed && window_due <= alone.now.mono_us {
                window_due += WINDOW_US;
                window(&mut alone, if rests { 500 } else { 5_000 });
                rests = alone.status(0).budget.resting;
            }
            tick(&mut alone);
        }
        let status = alone.status(0);
        let pace = u64::from(status.budget.pace_percent);
        assert_eq!(pace, if pressed { FLOOR_PERCENT } else { 100 });
        assert!(status.scrub.damaged_found >= 1 && status.scrub.in_time, "{:?}", status.scrub);
        assert!(status.scrub.round_started_ms.is_some() && status.scrub.last_round_ms.is_some());
    }
}

#[test]
fn rounds_follow_each_other_and_each_reads_every_row() {
    let mut alone = alone();
    let mut scrubbed = 0;
    let mut rounds = 0;
    let mut started = alone.status(0).scrub.round_started_ms;
    for _ in 0..100_000 {
        window(&mut alone, 500); // a window tells what was done since the one before
        let Work { scrubbed_rows, .. } = alone.status(0).budget.last;
        scrubbed += scrubbed_rows;
        tick(&mut alone);
        let scrub = alone.status(0).scrub;
        if scrub.round_started_ms != started {
            started = scrub.round_started_ms;
            rounds += 1;
            if rounds == 1 {
                scrubbed = 0; // it had begun before
            }
        }
        if rounds == 4 {
            break;
        }
    }
    assert_eq!(rounds, 4);
    let least = 3 * KEYS as u64 - 200;
    assert!(scrubbed >= least && scrubbed <= 3 * KEYS as u64 + 200, "{scrubbed} rows in three rounds");
}

#[test]
fn a_pressed_node_still_merges_whole_shards_and_gives_them() {
    let mut pair = Pair::apart();
    for number in 0..400 {
        pair.write(0, write("stats/s", &format!("k{number:04}"), increment(number + 1))).unwrap();
    }
    let all: Vec<_> = pair.nodes[0].store.commit_rows(0, u64::MAX).map(|row| row.unwrap()).collect();
    for (commit, row) in all {
        pair.nodes[0].store.unlog(commit, &row.changes).unwrap();
    }
    let floor = tropism_storage::LogFloorRow { commit: pair.nodes[0].store.head().commit + 1 };
    pair.nodes[0].store.put_row(Space::Node, NodeKey::LogFloor.encode(), &floor);
    pair.nodes[0].store.commit(0).unwrap();
    pair.settings.part_bytes = 2_000;
    for at in [0, 1] {
        pair.restart(at);
    }
    pair.now.wall_ms += 2_000;
    // Both are pressed all the time.
    let mut rests = [false; 2];
    let mut press = |pair: &mut Pair| {
        for at in [0, 1] {
            let resting = rests[at];
            let mut seen = Foreground { late_us: WINDOW_US / 10, ..Foreground::default() };
            (0..200).for_each(|_| seen.latencies.record(if resting { 500 } else { 5_000 }));
            pair.turn(at, Input::Foreground(Box::new(seen)));
            rests[at] = pair.status(at).budget.resting;
        }
    };
    for _ in 0..40 {
        press(&mut pair);
        pair.now.mono_us += WINDOW_US;
        pair.now.wall_ms += WINDOW_US / 1_000;
    }
    assert_eq!([0, 1].map(|at| u64::from(pair.status(at).budget.pace_percent)), [FLOOR_PERCENT; 2]);
    let (a, b) = (pair.hello(0), pair.hello(1));
    pair.turn(0, Input::LinkUp(b));
    pair.turn(1, Input::LinkUp(a));
    let mut settled_most = 0;
    for _ in 0..600 {
        press(&mut pair);
        pair.wait_ms(200);
        settled_most = settled_most.max(pair.status(1).budget.last.settled_keys);
    }
    assert_eq!(pair.counter(1, "k0399"), 400);
    assert!(pair.nodes[1].store.transfers().unwrap().is_empty(), "every key is merged");
    assert!(settled_most > 0 && settled_most < 64, "a few keys at a time: {settled_most}");
}
