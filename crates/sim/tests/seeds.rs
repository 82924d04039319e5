//! Seeds of the simulator: fresh ones, those that once failed, and drivers that must be caught.

use std::collections::BTreeMap;

use tropism_sim::{FRESH_SEEDS, Promise, Report, Sabotage, Size, run};

/// Seeds that found something, with what it was. They stay.
const FAILED: [(u64, &str); 18] = [
    (
        337,
        "frames of a turn that was synced when its link had gone left on the next one, as the simulator had it",
    ),
    (
        40_035,
        "an old copy began a life under the very incarnation that peers saw of the copy before, whose clock was ahead",
    ),
    (
        30_159,
        "what waited of a lost store's changes came alive when salvage brought those before: unseen by what was stable",
    ),
    (
        2_000_373,
        "shards were asked for again every three seconds while their parts waited behind those of the questions before",
    ),
    (
        770_281,
        "a shard was asked for in one frame that came twice, and parts of two snapshots were staged as one",
    ),
    (
        770_054,
        "what was missing was asked for four times a second while the answers waited among late frames, which never ended",
    ),
    (
        10_089,
        "after a start a peer was sent changes of a scope that it does not hold, and the cursor waited for its word",
    ),
    (
        10_001,
        "a document repaired by a peer counted changes twice that had been put aside here, and did not load again",
    ),
    (
        1,
        "a closed time was told while a change of the open commit was unsent; frames counted in an older session",
    ),
    (3, "a node that lost its store never got back what it had written: peers counted it as held there"),
    (8, "the closed time of a lost store bound the next one, whose clock was behind"),
    (11, "a document was read back without its pieces in the open batch"),
    (
        20,
        "vectors that were shown counted as told without the commit that holds them: stability came too early",
    ),
    (70, "a key whose last write was stamped later than its expiry was deleted again and again"),
    (
        529,
        "a third had changes of a store that was lost which its next store's word did not cover: stable too early",
    ),
    (38, "members that do not hold a scope vouched for it: a store was served before it had what was stable"),
    (1143, "a shard in parts that overtook each other was begun anew again and again"),
    (107, "what was told in the open commit counted as told in the commit before: stability came too early"),
];

/// Likewise, in worlds where scopes move.
const FAILED_MOVING: [(u64, &str); 3] = [
    (
        10_344,
        "a lost store was served without a scope that had moved: a region vouched for it by a rule, and had left it",
    ),
    (144, "what a region had made before it left a scope was asked of it when it learnt that scope again"),
    (122, "a scope that was created anew was served by all at once: stable here, and refused there"),
];

/// What must happen somewhere in [`FRESH_SEEDS`]: a simulator that never gets there proves nothing about it.
const MUST_HAPPEN: [&str; 101] = [
    "other owners did not acknowledge in time",
    "a write was refused for its region's nodes were away",
    "a scope was dropped",
    "a dropped scope was created again",
    "a write to a dropped scope was refused",
    "a scope is to expand",
    "a scope is to shrink",
    "a scope is where it shall be",
    "a record was adopted",
    "a shard that moved away was deleted",
    "a proposal came too late",
    "a proposal hung",
    "the directory was down",
    "a verification could not compare every member",
    "a verification found members equal",
    "a verification named a key that had rotted",
    "a late frame was taken",
    "a part of a late frame was taken",
    "background work went at its floor",
    "late frames waited while background work rested",
    "what was told overtook what is late",
    "a log did not reach back to a peer",
    "a peer has what no log reached back to",
    "a shard came as a whole",
    "the keys of a shard that came as a whole were merged",
    "a reader waited until a staged state was merged",
    "fault: bit rot",
    "a row that had rotted was found",
    "keys were repaired from a peer",
    "a change of a key whose row had rotted was kept",
    "a turn was gathered while the one before was synced",
    "a change arrived twice",
    "a change waited for what it depends on",
    "a change was relayed for a third node",
    "a fast clock fenced itself",
    "a frame was lost",
    "a hidden life was collected",
    "a hostile change parked its key",
    "a hostile change was refused",
    "a link started again from its cursor",
    "a patch did not fit",
    "a precondition failed",
    "a repeated request was answered as before",
    "a request was sent again",
    "a retry left a hostile change parked",
    "a scope was asked for where it is not",
    "a session read",
    "a session was begun anew",
    "a session was told that what it has seen is elsewhere",
    "a session's call waited for what its token names",
    "a silent link was dropped",
    "a stamp from the future was stored",
    "a token left out what is stable",
    "a wanted change was trimmed",
    "a write of a session had no answer",
    "a write was acknowledged",
    "a write was refused by the clock",
    "a write was refused by the fence",
    "an edit of a deleted life arrived",
    "a new store was filled by the peers",
    "a store that was lost was filled by the peers",
    "a store that was set aside was filled by the peers",
    "a node learnt that it had another store",
    "what only a store had that was set aside came back",
    "fault: store damaged",
    "an expired key was deleted",
    "an old copy of a store was recognised",
    "changes became stable",
    "crash lost nothing",
    "crash lost unsynced commits",
    "fault: clock jump",
    "fault: connection reset",
    "fault: crash",
    "fault: crash loop",
    "fault: hostile frame",
    "fault: link cut",
    "fault: link cut one way",
    "fault: link flaps",
    "fault: old copy",
    "fault: pause",
    "fault: region cut off",
    "fault: region mute",
    "fault: slow disk",
    "fault: slow one way",
    "fault: store lost",
    "hostile: delete from the future",
    "hostile: forged origin",
    "hostile: future stamp",
    "hostile: huge seq",
    "hostile: life",
    "hostile: mutated body",
    "hostile: torn",
    "hostile: wrong kind",
    "hostile: wrong scope",
    "hostile: wrong shard",
    "missing changes were asked for",
    "other regions did not acknowledge in time",
    "the log was trimmed",
    "vectors compared unequal",
    "what was kept of a parked key was dropped",
    "an operation found its node down",
];

fn must_hold(seed: u64, size: Size) -> Report {
    let report = run(seed, size);
    let found: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(
        found.is_empty(),
        "seed {seed}: {found:#?}\nreplay: cargo run --release --bin tropism-sim -- --seeds 1 --first-seed {seed} --log 200",
    );
    assert!(report.operations >= 2_000 && report.faults >= 30, "seed {seed} was too small");
    report
}

/// Runs these two halves at once.
fn halves<T: Send>(halves: [Vec<T>; 2], each: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        let each = &each;
        for half in halves.map(|half| scope.spawn(move || half.into_iter().for_each(each))) {
            half.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

#[test]
fn two_hundred_worlds_hold_and_reach_everything_that_matters() {
    let coverage = std::sync::Mutex::new(BTreeMap::<&str, u64>::new());
    halves(FRESH_SEEDS.map(Iterator::collect), |seed| {
        let report = must_hold(seed, Size::default());
        if let Ok(mut coverage) = coverage.lock() {
            for (what, count) in report.coverage {
                *coverage.entry(what).or_insert(0) += count;
            }
        }
    });
    let coverage = coverage.into_inner().unwrap_or_default();
    let never: Vec<&str> = MUST_HAPPEN.into_iter().filter(|what| !coverage.contains_key(what)).collect();
    assert!(never.is_empty(), "never happened: {never:?}");
}

#[test]
fn every_seed_that_ever_failed_holds() {
    for (seed, _) in FAILED {
        // They failed before scopes could move, and regions had several nodes.
        must_hold(seed, Size { moves: false, neighbours: false, ..Size::default() });
    }
    for (seed, _) in FAILED_MOVING {
        must_hold(seed, Size { neighbours: false, ..Size::default() });
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 500..505 {
        assert_eq!(run(seed, Size::default()).trace, run(seed, Size::default()).trace, "seed {seed}");
    }
}

/// Some seed notices what a driver does wrong, and nobody notices once the one checker looks away.
fn must_be_caught_by_one(sabotage: Sabotage, promise: Promise) {
    let size = Size { sabotage: Some(sabotage), ..Size::default() };
    let mut others = Vec::new();
    for seed in 900..960 {
        let caught = run(seed, size).violations;
        if caught.first().is_some_and(|violation| violation.promise == promise) {
            let blind = run(seed, Size { blind: Some(promise), ..size });
            if blind.violations.is_empty() {
                return;
            }
            others.extend(blind.violations.first().map(ToString::to_string));
        } else {
            others.extend(caught.first().map(ToString::to_string));
        }
    }
    panic!("{sabotage:?} was not caught by {promise:?} alone; the others saw {others:#?}");
}

#[test]
fn every_checker_catches_a_sabotage_that_no_other_one_does() {
    let (odd, even): (Vec<_>, Vec<_>) = (0..).zip(Sabotage::ALL).partition(|(index, _)| index % 2 == 1);
    let pairs = |half: Vec<(u64, _)>| half.into_iter().map(|(_, pair)| pair).collect();
    halves([pairs(odd), pairs(even)], |(sabotage, promise)| must_be_caught_by_one(sabotage, promise));
}
