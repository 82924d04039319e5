//! The scrub: how fast the sweep reads every value again, so that a row that rotted is found though nobody reads it.
//!
//! However many keys there are, a round is to be over within 24 hours. It aims at six while the foreground leaves room,
//! and at twenty while it does not; a small store is read faster than either. Where keys have expired that this node has
//! to delete, the round hurries. A step is as short as the [budget](crate::budget) says, so a large store is read in
//! more steps, not in longer ones.

use crate::budget::{Pace, Share};
use crate::limits::{
    FIRST_SWEEP_ROWS, FLOOR_PERCENT, SCRUB_AIM_US, SCRUB_BYTES_PER_SECOND, SCRUB_PRESSED_US,
    SCRUB_ROWS_PER_SECOND, SCRUB_STEP_ROWS, SCRUB_STEP_US, SCRUB_WITHIN_US, START_PERCENT, SWEEP_ROWS,
    SWEEP_US,
};
use crate::replica::Now;

/// The round under way, and the last one.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    round: Option<Round>,
    /// How long the last whole round took, us, and what it found.
    last: Option<(u64, u64)>,
    /// Keys that had expired when the last round was over, and whether it deleted any.
    expired: (u64, bool),
}

#[derive(Debug, Clone, Copy)]
struct Round {
    began: Now,
    passed: u64,
    bytes: u64,
    damaged: u64,
    deleted: bool,
}

/// How the scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubStatus {
    /// When the round under way began, Unix ms; `None` before the first.
    pub round_started_ms: Option<u64>,
    /// Keys that it has passed.
    pub passed: u64,
    /// Keys that there are, as far as is known.
    pub keys: u64,
    /// How long the last whole round took, ms.
    pub last_round_ms: Option<u64>,
    /// Rows that could not be read and shards whose rows were not what had been written, found by the round under way or
    /// by the one before, whichever found more.
    pub damaged_found: u64,
    /// Keys a second with which the round is over within a day.
    pub needed_per_second: u64,
    /// Most keys a second that may be read, by their number and size.
    pub most_per_second: u64,
    /// Whether the round will be over within a day.
    pub in_time: bool,
}

impl Scrub {
    /// What the next step reads of a store with so many keys, `expired` of them. `first` is the round after a start, on
    /// which it depends what is known of the keys.
    pub(crate) fn step(&self, now: Now, pace: Pace, keys: u64, expired: u64, first: bool) -> Share {
        let round = self.round_at(now);
        let aim_us = SCRUB_PRESSED_US
            - (SCRUB_PRESSED_US - SCRUB_AIM_US) * pace.percent().saturating_sub(FLOOR_PERCENT)
                / (100 - FLOOR_PERCENT);
        let hurries = first
            || expired > self.expired.0
                && (self.expired.1 || round.deleted)
                && pace.percent() >= START_PERCENT;
        let least = if hurries { FIRST_SWEEP_ROWS } else { SWEEP_ROWS } as u64 * 1_000_000 / SWEEP_US;
        let per_second = needed(round, now, keys, aim_us).max(least).min(most(round)).max(1);
        let share = pace.share(SCRUB_STEP_ROWS, SCRUB_STEP_US);
        if share.items == 0 {
            return share;
        }
        let items = (share.items as u64).min(per_second * SWEEP_US / 1_000_000).max(1);
        Share {
            items: usize::try_from(items).unwrap_or(share.items),
            step_us: (items * 1_000_000 / per_second).max(1),
            us: items * SCRUB_STEP_US / SCRUB_STEP_ROWS as u64,
        }
    }

    /// A step passed so many rows of so many bytes, and found so many damaged.
    pub(crate) fn passed(&mut self, now: Now, rows: u64, bytes: u64, damaged: u64) {
        let mut round = self.round_at(now);
        round.passed += rows;
        round.bytes += bytes;
        round.damaged += damaged;
        self.round = Some(round);
    }

    /// A shard's rows were not what had been written.
    pub(crate) fn found_damage(&mut self) {
        if let Some(round) = &mut self.round {
            round.damaged += 1;
        }
    }

    /// An expired key was deleted.
    pub(crate) fn deleted(&mut self) {
        if let Some(round) = &mut self.round {
            round.deleted = true;
        }
    }

    /// The round is over; so many keys have expired and are not deleted.
    pub(crate) fn round_over(&mut self, now: Now, expired: u64) {
        let round = self.round_at(now);
        self.last = Some((now.mono_us.saturating_sub(round.began.mono_us), round.damaged));
        self.expired = (expired, round.deleted);
        self.round = Some(Round::beginning(now));
    }

    pub(crate) fn status(&self, now: Now, keys: u64) -> ScrubStatus {
        let round = self.round_at(now);
        let (needed_per_second, most_per_second) = (needed(round, now, keys, SCRUB_WITHIN_US), most(round));
        ScrubStatus {
            round_started_ms: self.round.map(|round| round.began.wall_ms),
            passed: round.passed,
            keys,
            last_round_ms: self.last.map(|(us, _)| us / 1_000),
            damaged_found: round.damaged.max(self.last.map_or(0, |(_, damaged)| damaged)),
            needed_per_second,
            most_per_second,
            in_time: needed_per_second <= most_per_second && elapsed_us(round, now) < SCRUB_WITHIN_US,
        }
    }

    fn round_at(&self, now: Now) -> Round {
        self.round.unwrap_or_else(|| Round::beginning(now))
    }
}

impl Round {
    fn beginning(now: Now) -> Self {
        Self { began: now, passed: 0, bytes: 0, damaged: 0, deleted: false }
    }
}

fn elapsed_us(round: Round, now: Now) -> u64 {
    now.mono_us.saturating_sub(round.began.mono_us)
}

/// Rows a second with which the round is over `aim_us` after it began; when that is past, within a day; then all at once.
fn needed(round: Round, now: Now, keys: u64, aim_us: u64) -> u64 {
    let elapsed_us = elapsed_us(round, now);
    let end_us = if elapsed_us < aim_us { aim_us } else { SCRUB_WITHIN_US };
    let left_us = u128::from(end_us.saturating_sub(elapsed_us).max(1));
    let left = u128::from(keys.saturating_sub(round.passed));
    u64::try_from((left * 1_000_000).div_ceil(left_us)).unwrap_or(u64::MAX)
}

/// Most rows a second, by number and by size.
fn most(round: Round) -> u64 {
    let size = round.bytes.checked_div(round.passed).unwrap_or(0).max(1);
    SCRUB_ROWS_PER_SECOND.min(SCRUB_BYTES_PER_SECOND / size).max(1)
}

#[cfg(test)]
mod tests;
