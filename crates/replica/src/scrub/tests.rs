//! However many keys there are, and however pressed the node is.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::limits::SCRUB_WITHIN_US;

const HOUR_US: u64 = 3_600_000_000;

fn now(us: u64) -> Now {
    Now { mono_us: 1_000_000 + us, wall_ms: 1_700_000_000_000 + us / 1_000 }
}

/// How long a round over so many keys of so many bytes takes at a pace, us. Each step is late by a part of its time.
fn round_takes(scrub: &mut Scrub, from_us: u64, keys: u64, bytes: u64, percent: u64, late: u64) -> u64 {
    let pace = Pace::of(percent);
    let (mut us, mut left) = (from_us, keys);
    while left > 0 {
        let share = scrub.step(now(us), pace, keys, 0, false);
        let items = (share.items as u64).min(left);
        assert!(items > 0 && share.us <= pace.stretch_us(), "a step is as short as the budget says");
        scrub.passed(now(us), items, items * bytes, 0);
        left -= items;
        us += share.step_us + share.step_us / 100 * late;
    }
    scrub.round_over(now(us), 0);
    us - from_us
}

#[test]
fn any_number_of_keys_is_read_again_within_a_day_at_any_pace() {
    for keys in [1, 1_000, 50_000, 1_000_000, 30_000_000] {
        for (percent, aim) in [(100, 6), (60, 13), (FLOOR_PERCENT, 20)] {
            let took = round_takes(&mut Scrub::default(), 0, keys, 300, percent, 3);
            assert!(took <= SCRUB_WITHIN_US, "{keys} keys at {percent} % took {took} us");
            assert!(
                took <= (aim + 1) * HOUR_US,
                "{keys} keys at {percent} % took {took} us, aimed at {aim} h"
            );
        }
    }
}

#[test]
fn a_small_store_is_read_at_an_hour_for_a_million_keys_and_after_a_start_in_minutes() {
    let took = round_takes(&mut Scrub::default(), 0, 100_000, 300, 100, 0);
    assert!(took <= HOUR_US / 10, "{took}");
    let share = Scrub::default().step(now(0), Pace::of(100), 100_000, 0, true);
    assert_eq!((share.items, share.step_us), (FIRST_SWEEP_ROWS, SWEEP_US));
    let pressed = Scrub::default().step(now(0), Pace::of(FLOOR_PERCENT), 100_000, 0, true);
    assert!(pressed.items < 60 && pressed.items as u64 * SWEEP_US / pressed.step_us > 1_000, "{pressed:?}");
}

#[test]
fn a_round_that_fell_behind_goes_faster_up_to_its_bound_and_says_when_that_is_not_enough() {
    let mut scrub = Scrub::default();
    let keys = 10_000_000;
    scrub.passed(now(0), 1, 300, 0);
    let calm = scrub.step(now(HOUR_US), Pace::of(100), keys, 0, false);
    let late = scrub.step(now(23 * HOUR_US), Pace::of(100), keys, 0, false);
    let rate = |share: Share| share.items as u64 * 1_000_000 / share.step_us;
    assert!(rate(late) > 3 * rate(calm), "{} and {}", rate(calm), rate(late));
    assert!(scrub.status(now(23 * HOUR_US), keys).in_time);
    let beyond = now(24 * HOUR_US - 60_000_000);
    let status = scrub.status(beyond, keys);
    assert!(!status.in_time && status.needed_per_second > status.most_per_second, "{status:?}");
    assert!(rate(scrub.step(beyond, Pace::of(100), keys, 0, false)) <= SCRUB_ROWS_PER_SECOND);
    assert!(!scrub.status(now(25 * HOUR_US), 1).in_time, "a day is over");
    // A store of which a day is not enough says so from the beginning.
    let status = Scrub::default().status(now(0), SCRUB_ROWS_PER_SECOND * 86_400 + 86_400);
    assert!(!status.in_time);
    let mut large = Scrub::default();
    large.passed(now(0), 1_000, 1_000 << 20, 0);
    assert_eq!(large.status(now(0), 1).most_per_second, SCRUB_BYTES_PER_SECOND >> 20, "by size, too");
}

#[test]
fn expired_keys_make_a_round_hurry_where_they_are_deleted_and_the_budget_allows_it() {
    let mut scrub = Scrub::default();
    scrub.passed(now(0), 10, 3_000, 0);
    scrub.round_over(now(1_000_000), 0);
    let items = |scrub: &Scrub, percent, expired| {
        let share = scrub.step(now(2_000_000), Pace::of(percent), 1_000, expired, false);
        share.items as u64 * SWEEP_US / share.step_us
    };
    assert_eq!(items(&scrub, 100, 5), SWEEP_ROWS as u64, "it never had to delete one");
    scrub.deleted();
    assert_eq!(items(&scrub, 100, 5), FIRST_SWEEP_ROWS as u64);
    assert!(items(&scrub, FLOOR_PERCENT, 5) <= SWEEP_ROWS as u64);
    assert_eq!(items(&scrub, 100, 0), SWEEP_ROWS as u64);
    scrub.round_over(now(2_000_000), 5);
    assert_eq!(items(&scrub, 100, 5), SWEEP_ROWS as u64, "those cannot be deleted yet");
    assert_eq!(items(&scrub, 100, 6), FIRST_SWEEP_ROWS as u64);
}

#[test]
fn a_status_tells_rounds_and_what_they_found() {
    let mut scrub = Scrub::default();
    assert_eq!(scrub.status(now(0), 100).round_started_ms, None);
    scrub.passed(now(0), 60, 600, 2);
    scrub.found_damage();
    let status = scrub.status(now(7_000), 100);
    assert_eq!((status.passed, status.damaged_found, status.last_round_ms), (60, 3, None));
    scrub.round_over(now(9_000_000), 0);
    let status = scrub.status(now(9_500_000), 100);
    assert_eq!((status.passed, status.damaged_found, status.last_round_ms), (0, 3, Some(9_000)));
    assert_eq!(status.round_started_ms, Some(now(9_000_000).wall_ms));
    scrub.round_over(now(12_000_000), 0);
    assert_eq!(scrub.status(now(12_000_000), 100).damaged_found, 0, "two rounds later");
}
