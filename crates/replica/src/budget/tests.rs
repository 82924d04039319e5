//! What the budget promises, whatever the foreground does.
#![allow(clippy::unwrap_used, reason = "tests")]
use proptest::prelude::*;

use super::*;

/// A node's time, and the windows that its driver tells.
struct Driver {
    budget: Budget,
    now: Now,
    random: u64,
}

impl Driver {
    fn new() -> Self {
        let now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };
        Self { budget: Budget::default(), now, random: 1 }
    }

    /// A window with so many calls, of which one in fifty takes `slowest_us` and the others up to a third of it, while
    /// background work takes what its pace allows.
    fn window(&mut self, calls: u64, slowest_us: u64) {
        let mut seen = Foreground::default();
        for call in 0..calls {
            self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let part = self.random >> 33 & 1023;
            seen.latencies.record(if call % 50 == 0 { slowest_us } else { slowest_us * part / 3072 });
        }
        let percent = if self.rests() { 0 } else { self.budget.percent };
        seen.late_us = WINDOW_US * percent / 100;
        seen.late_changes = seen.late_us / 8;
        self.now.mono_us += WINDOW_US;
        self.budget.window(self.now, &seen);
    }

    fn rests(&self) -> bool {
        self.budget.status(self.now).resting
    }

    fn percent(&self) -> u64 {
        self.budget.percent
    }
}

#[test]
fn a_percentile_is_at_most_an_eighth_too_large() {
    for us in [0, 1, 8, 9, 100, 999, 1_000, 123_456, 9_999_999] {
        let mut latencies = Latencies::default();
        latencies.record(us);
        let said = latencies.p99_us().unwrap();
        assert!(said >= us && said <= us.max(8) * 9 / 8, "{us} is said to be {said}");
    }
    let mut latencies = Latencies::default();
    (0..99).for_each(|_| latencies.record(100));
    latencies.record(50_000);
    assert!(latencies.p99_us().unwrap() < 120, "one of a hundred");
    latencies.record(50_000);
    assert!(latencies.p99_us().unwrap() >= 50_000, "two of a hundred and one");
    assert_eq!((Latencies::default().p99_us(), latencies.calls()), (None, 101));
}

#[test]
fn nobody_in_the_foreground_leaves_everything_to_background_work() {
    let mut driver = Driver::new();
    assert_eq!(driver.percent(), 100, "as after a start");
    (0..40).for_each(|_| driver.window(100, 5_000));
    driver.budget.percent = FLOOR_PERCENT;
    (0..IDLE_WINDOWS + 4).for_each(|_| driver.window(0, 0));
    assert_eq!((driver.percent(), driver.rests()), (100, false));
    driver.window(1, 500);
    assert_eq!(driver.percent(), START_PERCENT, "and the first client is not met by all of it");
}

#[test]
fn a_pause_of_the_clients_is_used_and_they_are_met_by_the_pace_they_left() {
    let mut driver = Driver::new();
    driver.window(100, 1_000);
    while driver.percent() < 40 || driver.rests() || driver.budget.phase == Phase::Rests {
        driver.window(100, 1_000);
    }
    let left = driver.percent();
    (0..QUIET_WINDOWS + 1).for_each(|_| driver.window(0, 0));
    assert_eq!(driver.percent(), 100);
    driver.window(1, 500);
    assert!((left..=left + PACE_STEP_PERCENT).contains(&driver.percent()), "{left}, {}", driver.percent());
}

#[test]
fn what_the_foreground_is_like_without_background_work_is_measured_and_not_guessed() {
    let mut driver = Driver::new();
    driver.window(100, 1_000);
    assert!(driver.rests(), "nothing is known: it rests at once");
    assert_eq!(driver.budget.pace(driver.now).stretch_us(), 0);
    driver.window(100, 9_000); // calls that waited for what ran before
    driver.window(100, 1_000);
    let status = driver.budget.status(driver.now);
    assert!(!status.resting && status.baseline_us.unwrap() < 1_150, "{status:?}");
    let rests = (0..300).filter(|_| {
        driver.window(100, 1_000);
        driver.rests()
    });
    let rests = rests.count();
    assert!((15..=30).contains(&rests), "{rests} of 300 windows: again and again, and not often");
}

#[test]
fn it_falls_within_a_second_when_the_foreground_is_slowed_and_rises_again() {
    for calls in [1, 7, 50, 1_000] {
        let mut driver = Driver::new();
        while driver.budget.status(driver.now).baseline_us.is_none() || driver.percent() < 80 {
            driver.window(calls, 1_000);
        }
        let before = driver.percent();
        // A rest may lie between.
        (0..JUDGED_WINDOWS + 3).for_each(|_| driver.window(calls, 2_000));
        assert!(driver.percent() <= before / 2, "{calls} calls a window: {}", driver.percent());
        let low = driver.percent();
        (0..60).for_each(|_| driver.window(calls, 1_000));
        assert!(driver.percent() > low, "{calls} calls a window");
    }
}

#[test]
fn a_foreground_that_is_slow_by_itself_does_not_hold_background_work_back() {
    let mut driver = Driver::new();
    (0..100).for_each(|_| driver.window(200, 1_000));
    // Everything takes ten times as long, whether background work runs or not.
    (0..200).for_each(|_| driver.window(200, 10_000));
    assert!(driver.percent() > 30, "{}", driver.percent());
}

#[test]
fn a_rest_ends_also_when_no_further_window_is_told() {
    let mut driver = Driver::new();
    driver.window(100, 1_000);
    assert!(driver.rests());
    driver.now.mono_us += 2 * WINDOW_US;
    assert!(!driver.rests() && driver.budget.pace(driver.now).stretch_us() > 0);
}

#[test]
fn clients_that_call_now_and_then_do_not_keep_background_work_at_rest() {
    let mut driver = Driver::new();
    let rests = (0..500).filter(|window| {
        driver.window(u64::from(window % 7 == 0), 1_000);
        driver.rests()
    });
    let rests = rests.count();
    assert!(rests < 60, "{rests} of 500 windows");
    assert!(driver.percent() >= START_PERCENT);
}

#[test]
fn a_pace_of_p_percent_takes_p_percent_of_the_time_in_short_stretches() {
    for percent in FLOOR_PERCENT..=100 {
        let pace = Pace { percent, rests_us: 0 };
        for most_us in [1_000, 2_000, 10_000] {
            let Share { items, step_us, us } = pace.share(1_000, most_us);
            assert!((1..=1_000).contains(&items) && us <= most_us && us <= pace.stretch_us());
            assert_eq!(us * 100 / percent, step_us);
        }
        assert_eq!(pace.pause_us(1_000), 1_000 * (100 - percent) / percent);
    }
    let floor = Pace { percent: FLOOR_PERCENT, rests_us: 0 };
    assert_eq!((floor.stretch_us(), floor.share(1, 2_000).items), (100, 1));
    let rests = Pace { percent: 50, rests_us: 70 };
    assert_eq!((rests.stretch_us(), rests.pause_us(5), rests.share(9, 9).items), (0, 70, 0));
}

proptest! {
    /// Never below the floor, never beyond all, never at rest for long; the same windows say the same.
    #[test]
    fn every_foreground_leaves_background_work_its_floor(
        windows in prop::collection::vec((0u64..400, 1u64..1_000_000, 0u64..5), 1..300)
    ) {
        let (mut driver, mut again) = (Driver::new(), Driver::new());
        let mut resting = 0;
        for (calls, slowest_us, pause) in windows {
            let calls = if pause == 0 { 0 } else { calls };
            driver.window(calls, slowest_us);
            again.window(calls, slowest_us);
            prop_assert!((FLOOR_PERCENT..=100).contains(&driver.percent()));
            prop_assert_eq!(driver.budget.status(driver.now), again.budget.status(again.now));
            resting = if driver.rests() { resting + 1 } else { 0 };
            prop_assert!(resting <= 2, "{} windows of rest", resting);
            prop_assert!(driver.rests() || driver.budget.pace(driver.now).stretch_us() >= STRETCH_US / 100);
        }
    }

    /// A foreground that is slowed in proportion to what background work takes is brought near the bound and kept there:
    /// neither down at the floor nor beyond.
    #[test]
    fn where_background_work_slows_the_foreground_in_proportion_it_finds_its_place(
        base_us in 200u64..5_000, calls in 20u64..500, weight in 1u64..6
    ) {
        let mut driver = Driver::new();
        let mut paces = Vec::new();
        for window in 0..600 {
            let percent = if driver.rests() { 0 } else { driver.percent() };
            driver.window(calls, base_us + base_us * percent * weight / 100);
            if window >= 200 {
                paces.push(driver.percent());
            }
        }
        // Where the percentile is 1.5 times the other: half of the base.
        let place = (50 / weight).clamp(FLOOR_PERCENT, 100);
        let most = paces.iter().max().unwrap();
        let mean = paces.iter().sum::<u64>() / paces.len() as u64;
        prop_assert!(*most <= (place * 14 / 10).max(FLOOR_PERCENT) + 2 * PACE_STEP_PERCENT, "{most} beyond {place}");
        prop_assert!(mean >= (place * 4 / 10).max(FLOOR_PERCENT), "{mean} of {place}");
    }
}
