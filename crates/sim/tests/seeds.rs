//! Seeds of the simulator: fresh ones, those that once failed, and drivers that must be caught.

use std::collections::BTreeMap;

use tropism_sim::{Report, Sabotage, Size, run};

/// Seeds that found something, with what it was. They stay.
const FAILED: [(u64, &str); 3] = [
    (
        1,
        "a closed time was told while a change of the open commit was unsent; frames counted in an older session",
    ),
    (11, "a document was read back without its pieces in the open batch"),
    (107, "what was told in the open commit counted as told in the commit before: stability came too early"),
];

/// What must happen somewhere in [`FRESH`] seeds: a simulator that never gets there proves nothing about it.
const MUST_HAPPEN: [&str; 31] = [
    "a turn was gathered while the one before was synced",
    "a hidden life was collected",
    "a patch did not fit",
    "an expired key was deleted",
    "the log was trimmed",
    "a change arrived twice",
    "a change waited for what it depends on",
    "a change was relayed for a third node",
    "a fast clock fenced itself",
    "a frame was lost",
    "a link started again from its cursor",
    "a precondition failed",
    "a silent link was dropped",
    "a stamp from the future was stored",
    "a write was acknowledged",
    "a write was refused by the clock",
    "a write was refused by the fence",
    "an edit of a deleted life arrived",
    "changes became stable",
    "crash lost nothing",
    "crash lost unsynced commits",
    "fault: clock jump",
    "fault: connection reset",
    "fault: crash",
    "fault: link cut",
    "fault: link cut one way",
    "fault: pause",
    "fault: region cut off",
    "fault: slow disk",
    "missing changes were asked for",
    "other regions did not acknowledge in time",
    "vectors compared unequal",
];

const FRESH: u64 = 200;

fn must_hold(seed: u64) -> Report {
    let report = run(seed, Size::default());
    assert!(
        report.violations.is_empty(),
        "seed {seed}: {:#?}\nreplay: cargo run --release -p tropism-sim -- --seeds 1 --first-seed {seed}",
        report.violations
    );
    assert!(report.operations >= 2_000 && report.faults >= 30, "seed {seed} was too small");
    report
}

#[test]
fn two_hundred_worlds_hold_and_reach_everything_that_matters() {
    let mut coverage: BTreeMap<&str, u64> = BTreeMap::new();
    let halves: Vec<Vec<Report>> = std::thread::scope(|scope| {
        let half = |first| scope.spawn(move || (0..FRESH / 2).map(|i| must_hold(first + i)).collect());
        let halves = [half(10_000), half(20_000)];
        halves.map(|half| half.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).into()
    });
    for report in halves.into_iter().flatten() {
        for (what, count) in report.coverage {
            *coverage.entry(what).or_insert(0) += count;
        }
    }
    for what in MUST_HAPPEN {
        assert!(coverage.contains_key(what), "never happened: {what}");
    }
}

#[test]
fn every_seed_that_ever_failed_holds() {
    for (seed, _) in FAILED {
        must_hold(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 500..505 {
        assert_eq!(run(seed, Size::default()).trace, run(seed, Size::default()).trace, "seed {seed}");
    }
}

/// Some of ten seeds must notice.
fn must_be_caught(sabotage: Sabotage) {
    let size = Size { sabotage: Some(sabotage), ..Size::default() };
    let caught = (900..910).filter(|seed| !run(*seed, size).violations.is_empty()).count();
    assert!(caught > 0, "{sabotage:?} went unnoticed");
}

#[test]
fn a_driver_that_lets_replies_leave_before_the_sync_is_caught() {
    must_be_caught(Sabotage::LeavesBeforeSync);
}

#[test]
fn a_disk_that_loses_what_was_synced_is_caught() {
    must_be_caught(Sabotage::LosesSynced);
}

#[test]
fn a_clock_without_reservation_is_caught() {
    must_be_caught(Sabotage::ForgetsClock);
}
