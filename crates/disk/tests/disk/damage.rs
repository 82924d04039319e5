//! Some states of every class of damage. The example `damage` makes thousands.

use crate::support::child;
use crate::support::child::Limit;
use crate::support::class::{Class, Report, run};
use crate::support::content::Histories;
use crate::support::full::{limited, next_journal};
use crate::support::judge::Outcome;

/// A class whose states all turned out well.
fn hold(class: Class, count: u64) -> Report {
    let report = run(class, count, 1_000);
    println!("{report:?}");
    assert!(report.wrong.is_empty(), "{}", report.wrong.join("\n"));
    assert_eq!(report.states, count);
    report
}

/// Not a test by itself: what a child process of the tests does.
#[test]
fn the_child_process() {
    child::run_if_child();
}

#[test]
fn whatever_was_acknowledged_before_a_kill_is_there_after_it() {
    hold(Class::Killed, 40);
}

#[test]
fn a_torn_write_that_nobody_was_told_of_is_cut_off_and_the_rest_is_served() {
    let report = hold(Class::Torn, 80);
    assert_eq!(report.harmless, 80);
    assert!(report.cut > 40, "most states have something to cut");
}

#[test]
fn a_damaged_journal_is_never_served_short() {
    let report = hold(Class::Journal, 120);
    assert!(report.detected["Damaged"] > 30 && report.detected["Short"] > 10);
}

#[test]
fn damaged_tables_are_refused_or_reported_and_never_give_another_value() {
    let report = hold(Class::Tables, 100);
    assert!(report.detected["Damaged"] > 30 && report.detected["reading"] > 10);
}

#[test]
fn an_old_copy_of_anything_beside_a_newer_witness_is_not_served() {
    let report = hold(Class::OldCopy, 30);
    assert!(report.detected["Short"] >= 3);
}

#[test]
fn a_process_without_room_stops_and_its_store_opens_when_there_is_room() {
    let mut histories = Histories::new();
    // Writes fail in the middle of a commit, at once, and where a table is to be written.
    let limits =
        [Limit::FileBytes(400_000), Limit::FileBytes(4_096), Limit::MoreFiles(0), Limit::MoreFiles(2)];
    for limit in limits {
        let outcome = limited(&mut histories, 50, limit, 1_500);
        println!("{limit:?}: {outcome:?}");
        assert!(matches!(outcome, Outcome::Detected(_)), "{limit:?}: {outcome:?}");
    }
    let outcome = next_journal(&mut histories);
    assert!(matches!(outcome, Outcome::Detected(_)), "the journal that comes next: {outcome:?}");
}
