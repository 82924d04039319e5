//! What a driver does beside turns: which frames a turn takes, and what the replica is told of the foreground.
//!
//! The frames are ordered by the code that nodes use; how long taking one lasts, and how clients' writes fare, is made up.

use tropism_replica::limits::WINDOW_US;
use tropism_replica::{Arrivals, Foreground, Input, Now, Replica};
use tropism_storage::Store;

use super::World;
use crate::rng::Rng;

/// How a world's clients fare while background work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pressure {
    /// Nothing is told of them.
    None,
    /// Now well, now badly.
    Random,
    /// Always badly: background work stays at its floor.
    Always,
}

/// What is made up, from randomness of its own: the world is the same without it.
#[derive(Debug)]
pub(super) struct Background {
    rng: Rng,
    pressure: Pressure,
    /// How long a late change takes, us.
    change_us: u64,
}

/// What one node's driver keeps for it.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pub(super) arrivals: Arrivals<()>,
    /// When late ones are taken next, on the node's monotonic clock.
    late_due_us: u64,
    window_due_us: u64,
    late_changes: u64,
    /// Whether background work rests in the window under way.
    rests: bool,
}

impl Background {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x6275_6467_6574);
        let pressure = *rng.pick(&[Pressure::None, Pressure::Random, Pressure::Random, Pressure::Always]);
        let change_us = *rng.pick(&[8, 50, 1_000]);
        Self { rng, pressure, change_us }
    }

    /// A window of clients' writes.
    fn foreground(&mut self, resting: bool) -> Foreground {
        let mut seen = Foreground::default();
        let (calls, slow) = match self.pressure {
            Pressure::None => (0, false),
            Pressure::Random => (self.rng.between(0, 40), self.rng.chance(30)),
            Pressure::Always => (30, !resting),
        };
        for _ in 0..calls {
            seen.latencies.record(self.rng.between(500, 1_000) * if slow { 4 } else { 1 });
        }
        seen
    }
}

impl Frames {
    /// How long until late frames are to be taken, us.
    pub(super) fn late_in(&self, now: Now) -> Option<u64> {
        self.arrivals.has_late().then(|| self.late_due_us.saturating_sub(now.mono_us))
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl World {
    /// Gives a replica what a turn takes of the frames, and its window when that is over. Says whether there was a frame.
    pub(super) fn take_frames(
        &mut self,
        at: usize,
        now: Now,
        (store, replica): &mut (Store, Replica),
    ) -> Result<bool, String> {
        let mut took = false;
        let frames = &mut self.nodes[at].frames;
        let failed = |error: tropism_replica::ReplicaError| error.to_string();
        if frames.window_due_us <= now.mono_us && self.background.pressure != Pressure::None {
            frames.window_due_us = now.mono_us + WINDOW_US;
            let mut seen = self.background.foreground(frames.rests);
            seen.late_changes = std::mem::take(&mut frames.late_changes);
            // As if there were always something to hold back.
            seen.late_us = if frames.rests { 0 } else { WINDOW_US / 20 };
            replica.handle(now, store, Input::Foreground(Box::new(seen))).map_err(failed)?;
            frames.rests = replica.pace(now).stretch_us() == 0;
        }
        while let Some(taken) = frames.arrivals.take_live() {
            took = true;
            if taken.frame.number == 0 && taken.frame.round == 0 && frames.arrivals.has_late() {
                *self.report.coverage.entry("what was told overtook what is late").or_insert(0) += 1;
            }
            let input = Input::Frame { from: taken.from, frame: taken.frame };
            replica.handle(now, store, input).map_err(failed)?;
        }
        if frames.late_in(now) != Some(0) {
            return Ok(took);
        }
        let pace = replica.pace(now);
        let mut left = (pace.stretch_us() / self.background.change_us).max(u64::from(pace.stretch_us() > 0));
        let mut us = 0;
        while left > 0
            && let Some(taken) = frames.arrivals.take_late(usize::try_from(left).unwrap_or(usize::MAX))
        {
            took = true;
            let changes = taken.changes() as u64;
            left = left.saturating_sub(changes.max(1));
            us += changes.max(1) * self.background.change_us;
            frames.late_changes += changes;
            let what = match taken.tag {
                Some(()) => "a late frame was taken",
                None => "a part of a late frame was taken",
            };
            *self.report.coverage.entry(what).or_insert(0) += 1;
            let input = Input::Frame { from: taken.from, frame: taken.frame };
            replica.handle(now, store, input).map_err(failed)?;
        }
        frames.late_due_us = now.mono_us + us + pace.pause_us(us);
        if pace.stretch_us() == 0 {
            *self.report.coverage.entry("late frames waited while background work rested").or_insert(0) += 1;
        }
        if pace.percent() == tropism_replica::limits::FLOOR_PERCENT {
            *self.report.coverage.entry("background work went at its floor").or_insert(0) += 1;
        }
        Ok(took)
    }
}
