//! The budget: how much background work may take of a node's thread, by how the foreground fares.
//!
//! Background work is what nobody waits for: catching up, whole shards, inspection, recounting, the scrub. The driver
//! measures how long each client's write takes here, from its arrival until it is durable, and tells it a window at a
//! time. The budget compares the 99th percentile while background work ran with that while it rested: what a window is
//! like without it is measured, not guessed, so now and then all background work rests for two windows. Where the
//! percentile is beyond 1.5 times the other, the *pace* is halved, down to a floor at which everything still comes to an
//! end; otherwise it rises by a small step, and fast while no client writes at all.
//!
//! A pace of p percent means both: background work takes p percent of the time, and its stretches are short, by the
//! square of p, since a stretch is what a write may have to wait for.

use crate::limits::{
    FLOOR_PERCENT, IDLE_WINDOWS, JUDGED_CALLS, JUDGED_WINDOWS, PACE_STEP_PERCENT, QUIET_WINDOWS,
    REST_EVERY_WINDOWS, SLOWED_PERCENT, START_PERCENT, STRETCH_US, WINDOW_US,
};
use crate::replica::Now;

/// Buckets of a histogram: eight for each doubling from 8 us on, up to half a minute.
const BUCKETS: usize = 8 * 22;
/// What one call weighs where histograms fade, so that rounding does not lose the few slow ones.
const WEIGHT: u32 = 16;
/// Background work of less than one part in so many of a window counts as rest.
const REST_PART: u64 = 50;

/// How long calls took, as a histogram: what it says is at most an eighth too large.
#[derive(Clone, PartialEq, Eq)]
pub struct Latencies {
    counts: [u32; BUCKETS],
}

impl std::fmt::Debug for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Latencies").field("calls", &self.calls()).field("p99_us", &self.p99_us()).finish()
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [0; BUCKETS] }
    }
}

impl Latencies {
    /// Adds a call that took so long, us.
    pub fn record(&mut self, us: u64) {
        let count = &mut self.counts[bucket(us)];
        *count = count.saturating_add(1);
    }

    /// How many calls.
    pub fn calls(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// What 99 of 100 calls did not exceed, us; of fewer calls the slowest. `None` without calls.
    pub fn p99_us(&self) -> Option<u64> {
        let calls = self.calls();
        let rank = (calls * 99).div_ceil(100);
        let mut passed = 0;
        let at = self.counts.iter().position(|count| {
            passed += u64::from(*count);
            passed >= rank
        });
        at.filter(|_| calls > 0).map(most_of)
    }

    /// Adds other calls, each with a weight, to what is left of these.
    fn fade_and_add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = (*count / 4 * 3).saturating_add(more.saturating_mul(WEIGHT));
        }
    }

    fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }
}

/// The bucket of a time.
fn bucket(us: u64) -> usize {
    let us = us.max(8);
    let doublings = us.ilog2() - 3;
    // Three bits behind the first.
    let part = (us >> doublings) & 7;
    (doublings as usize * 8 + part as usize).min(BUCKETS - 1)
}

/// The longest time in a bucket, us.
fn most_of(bucket: usize) -> u64 {
    let (doublings, part) = (bucket / 8, bucket as u64 % 8);
    ((9 + part) << doublings) - 1
}

/// What a driver measured in one window.
#[derive(Debug, Clone, Default)]
pub struct Foreground {
    /// How long clients' writes took, from their arrival until they were durable here.
    pub latencies: Latencies,
    /// Late changes of peers that were taken ([`Arrivals`](crate::Arrivals)).
    pub late_changes: u64,
    /// How long the node's thread was busy with late frames, us.
    pub late_us: u64,
}

/// What background work did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Late changes of peers that were taken.
    pub late_changes: u64,
    /// Changes that were read from the log for peers that are behind.
    pub walked_changes: u64,
    /// Bytes of states that were read for peers that take shards as a whole.
    pub given_bytes: u64,
    /// Keys of shards that came as a whole that were merged.
    pub settled_keys: u64,
    /// Rows that were read to compare or to sum up shards.
    pub compared_rows: u64,
    /// Rows that the scrub read.
    pub scrubbed_rows: u64,
    /// About how long all that took, us.
    pub us: u64,
}

/// How a node's budget is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BudgetStatus {
    /// What background work may take of the thread's time, percent.
    pub pace_percent: u8,
    /// Whether it rests at the moment, so that its effect can be told.
    pub resting: bool,
    /// The foreground's 99th percentile while background work runs, us; `None` while nobody writes.
    pub p99_us: Option<u64>,
    /// That without background work, us; `None` while it is not known.
    pub baseline_us: Option<u64>,
    /// What background work did in the last window.
    pub last: Work,
    /// How often the pace was lowered since the start.
    pub lowered: u64,
}

/// What one step of background work may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Items; 0: nothing now.
    pub(crate) items: usize,
    /// When the next step is due, from now on, us. At least 1.
    pub(crate) step_us: u64,
    /// About how long so many items take, us.
    pub(crate) us: u64,
}

impl Share {
    /// About how long so many of the items took, us.
    pub(crate) fn us_of(&self, items: usize) -> u64 {
        self.us * items as u64 / self.items.max(1) as u64
    }

    /// When the next step is due after one of so many of the items, from now on, us. At least 1.
    pub(crate) fn step_after(&self, items: usize) -> u64 {
        match self.items {
            0 => self.step_us,
            most => (self.step_us.saturating_mul(items as u64) / most as u64).max(1),
        }
    }
}

/// How fast background work goes at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    percent: u64,
    rests_us: u64,
}

impl Pace {
    #[cfg(test)]
    pub(crate) fn of(percent: u64) -> Self {
        Self { percent, rests_us: 0 }
    }

    /// What background work may take of the time, percent.
    pub fn percent(&self) -> u64 {
        self.percent
    }

    /// The longest stretch of background work between two looks at what clients want, us; 0 while it rests.
    pub fn stretch_us(&self) -> u64 {
        if self.rests_us > 0 { 0 } else { STRETCH_US * self.percent * self.percent / 10_000 }
    }

    /// How long to leave the thread alone after background work that took `us`; while it rests, until that is over.
    pub fn pause_us(&self, us: u64) -> u64 {
        if self.rests_us > 0 { self.rests_us } else { us * (100 - self.percent) / self.percent }
    }

    /// What a step may do of work of which `most` items take `most_us`, which is as much as one step may do in any case.
    pub(crate) fn share(&self, most: usize, most_us: u64) -> Share {
        if self.rests_us > 0 {
            return Share { items: 0, step_us: self.rests_us, us: 0 };
        }
        let us = self.stretch_us().min(most_us).max(1);
        let items = usize::try_from(most as u64 * us / most_us.max(1)).unwrap_or(most).max(1);
        Share { items, step_us: (us * 100 / self.percent).max(1), us }
    }
}

/// The controller. Pure: what it says follows from the windows it was told and the time it is asked at.
#[derive(Debug)]
pub(crate) struct Budget {
    percent: u64,
    /// What it was when clients were last there.
    busy_percent: u64,
    /// Windows in a row without a call.
    idle: u32,
    /// While background work rests: until when.
    rests_until_us: u64,
    /// Of the window under way.
    phase: Phase,
    resting: Latencies,
    /// Since the pace was last judged, and how many windows that is.
    working: (Latencies, u32),
    /// The percentile of the last judgement.
    p99_us: Option<u64>,
    work: Work,
    last: Work,
    lowered: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Background work runs, and rests after so many windows more.
    Runs(u32),
    /// It just stopped: calls may have waited for it still.
    Stops,
    /// It rests.
    Rests,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            percent: 100,
            busy_percent: START_PERCENT,
            // Whoever starts has no clients yet.
            idle: IDLE_WINDOWS,
            rests_until_us: 0,
            phase: Phase::Runs(REST_EVERY_WINDOWS),
            resting: Latencies::default(),
            working: (Latencies::default(), 0),
            p99_us: None,
            work: Work::default(),
            last: Work::default(),
            lowered: 0,
        }
    }
}

impl Budget {
    pub(crate) fn pace(&self, now: Now) -> Pace {
        Pace { percent: self.percent, rests_us: self.rests_until_us.saturating_sub(now.mono_us) }
    }

    /// What a step may do of work of which `most` items take `most_us`.
    pub(crate) fn share(&self, now: Now, most: usize, most_us: u64) -> Share {
        self.pace(now).share(most, most_us)
    }

    /// Notes what was done, and how long that took about.
    pub(crate) fn did(&mut self, us: u64, note: impl FnOnce(&mut Work)) {
        self.work.us += us;
        note(&mut self.work);
    }

    pub(crate) fn status(&self, now: Now) -> BudgetStatus {
        BudgetStatus {
            pace_percent: u8::try_from(self.percent).unwrap_or(100),
            resting: self.rests_until_us > now.mono_us,
            p99_us: self.p99_us,
            baseline_us: self.resting.p99_us(),
            last: self.last,
            lowered: self.lowered,
        }
    }

    /// A window is over.
    pub(crate) fn window(&mut self, now: Now, seen: &Foreground) {
        self.did(seen.late_us, |work| work.late_changes += seen.late_changes);
        self.last = std::mem::take(&mut self.work);
        let worked = self.last.us > WINDOW_US / REST_PART;
        let calls = &seen.latencies;
        if calls.calls() == 0 {
            self.idle = self.idle.saturating_add(1);
            if self.idle == QUIET_WINDOWS {
                self.busy_percent = self.percent;
            }
            if self.idle >= QUIET_WINDOWS {
                self.percent = (self.percent * 2).min(100);
            }
            if self.idle >= IDLE_WINDOWS {
                self.begin_judging();
                self.p99_us = None;
            }
            if self.rests_until_us <= now.mono_us && !matches!(self.phase, Phase::Runs(_)) {
                self.phase = Phase::Runs(REST_EVERY_WINDOWS); // it rested in vain
            }
            return;
        }
        if (QUIET_WINDOWS..IDLE_WINDOWS).contains(&self.idle) {
            self.percent = self.busy_percent;
        }
        if self.idle >= IDLE_WINDOWS {
            self.percent = self.percent.min(START_PERCENT);
            self.begin_judging();
            if self.resting.calls() == 0 {
                self.phase = Phase::Runs(0);
            }
        }
        self.idle = 0;
        match self.phase {
            Phase::Stops => self.phase = Phase::Rests,
            Phase::Rests => self.rested(calls),
            Phase::Runs(_) if !worked => self.rested(calls),
            Phase::Runs(left) => {
                self.working.0.add(calls);
                self.working.1 += 1;
                let enough = self.working.0.calls() >= JUDGED_CALLS || self.working.1 >= JUDGED_WINDOWS;
                if let Some(baseline) = self.resting.p99_us().filter(|_| enough) {
                    self.judge(baseline);
                }
                self.phase = match left {
                    0 => {
                        self.rests_until_us = now.mono_us + 2 * WINDOW_US;
                        Phase::Stops
                    }
                    left => Phase::Runs(left - 1),
                };
            }
        }
    }

    /// What the calls of a window without background work took.
    fn rested(&mut self, calls: &Latencies) {
        self.resting.fade_and_add(calls);
        self.phase = Phase::Runs(REST_EVERY_WINDOWS);
        self.rests_until_us = 0;
    }

    fn judge(&mut self, baseline_us: u64) {
        self.p99_us = self.working.0.p99_us();
        if self.p99_us.is_some_and(|p99| p99 * 100 > baseline_us * SLOWED_PERCENT) {
            self.lowered += u64::from(self.percent > FLOOR_PERCENT);
            self.percent = (self.percent / 2).max(FLOOR_PERCENT);
        } else {
            self.percent = (self.percent + PACE_STEP_PERCENT).min(100);
        }
        self.begin_judging();
    }

    fn begin_judging(&mut self) {
        self.working = (Latencies::default(), 0);
    }
}

#[cfg(test)]
mod tests;
