//! The hybrid logical clock behind a guard.
//!
//! `hybrid-clocks` carries the algorithm; it is unmaintained and trusts what it is told, so nothing foreign reaches it
//! unchecked: a foreign stamp is 64 bits of ours (no epoch, a bounded count), only its *future* side is bounded, a count
//! that overflows is carried into the time, and no stamp is issued beyond the durable reservation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hybrid_clocks::{ClockSource, OffsetLimiter, Timestamp};
use thiserror::Error;

use crate::stamp::Stamp;

/// How far ahead of the wall clock a foreign stamp may be and still move ours, in ms: what well-kept machines stay
/// within by two orders of magnitude.
pub const MAX_OFFSET_MS: u64 = 500;
/// How far ahead of the wall clock stamps are reserved, in ms: a crash costs at most this long without writes.
pub const RESERVATION_MS: u64 = 1_000;
/// A reservation is renewed when less than this is left of it, in ms.
pub const RESERVATION_RENEW_MS: u64 = 500;

/// Why no stamp could be issued. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClockError {
    /// The wall clock has not passed what was reserved before the last stop.
    #[error(
        "the wall clock ({wall_ms} ms) has not passed the last reservation ({reserved_ms} ms): writes wait"
    )]
    BehindReservation {
        /// Wall clock now, Unix ms.
        wall_ms: u64,
        /// What it must pass, Unix ms.
        reserved_ms: u64,
    },
    /// The clock ran ahead of what is reserved durably; the reservation must be renewed first.
    #[error("stamps beyond the reservation ({reserved_ms} ms) are not issued")]
    ReservationUsedUp {
        /// Durable limit, Unix ms.
        reserved_ms: u64,
    },
}

/// Issues stamps that rise strictly, through restarts and against a wall clock that steps back.
///
/// Invariants: every stamp issued is above every stamp issued or observed before; no stamp issued lies beyond the
/// reservation; a foreign stamp more than [`MAX_OFFSET_MS`] ahead of the wall clock changes nothing.
#[derive(Debug)]
pub struct Clock {
    inner: OffsetLimiter<Wall>,
    wall: Wall,
    last: Stamp,
    /// Stamps at or beyond this are not issued: what the store promises.
    reserved_ms: u64,
    /// Writes wait until the wall clock has passed this (0 after a clean stop).
    not_before_ms: u64,
}

/// The wall clock as the caller last gave it; shared because the crate owns its source and shows no way back to it.
#[derive(Debug, Clone)]
struct Wall(Arc<AtomicU64>);

impl ClockSource for Wall {
    type Time = u64;
    type Delta = u64;

    fn now(&mut self) -> hybrid_clocks::Result<u64> {
        Ok(self.0.load(Ordering::Relaxed))
    }
}

impl Clock {
    /// A clock for a store whose last life ended with `last` issued (clean stop) or `reserved_ms` reserved (crash).
    pub fn new(wall_ms: u64, last: Stamp, reserved_ms: u64) -> Self {
        let wall = Wall(Arc::new(AtomicU64::new(wall_ms.min(Stamp::MAX_MS))));
        let clock = hybrid_clocks::Clock::new(wall.clone());
        // Our source cannot fail, and `new` fails only with its source.
        let Ok(clock) = clock else { unreachable!("the given wall clock is always readable") };
        let mut clock = Self {
            inner: OffsetLimiter::new(clock, MAX_OFFSET_MS),
            wall,
            last: Stamp::ZERO,
            reserved_ms: 0,
            not_before_ms: reserved_ms,
        };
        clock.adopt(last);
        clock
    }

    /// Tells the wall clock's time. It may step back; stamps will not.
    pub fn set_wall(&mut self, wall_ms: u64) {
        self.wall.0.store(wall_ms.min(Stamp::MAX_MS), Ordering::Relaxed);
    }

    /// The wall clock as last told, Unix ms.
    pub fn wall_ms(&self) -> u64 {
        self.wall.0.load(Ordering::Relaxed)
    }

    /// The last stamp issued or observed.
    pub fn last(&self) -> Stamp {
        self.last
    }

    /// Whether a write could be stamped now, and if not, why.
    pub fn ready(&self) -> Result<(), ClockError> {
        let wall_ms = self.wall_ms();
        if wall_ms <= self.not_before_ms {
            return Err(ClockError::BehindReservation { wall_ms, reserved_ms: self.not_before_ms });
        }
        if wall_ms.max(self.last.unix_ms()).saturating_add(1) >= self.reserved_ms {
            return Err(ClockError::ReservationUsedUp { reserved_ms: self.reserved_ms });
        }
        Ok(())
    }

    /// Issues the next stamp.
    pub fn tick(&mut self) -> Result<Stamp, ClockError> {
        self.ready()?;
        // Our source cannot fail.
        let Ok(now) = self.inner.now() else { unreachable!("the given wall clock is always readable") };
        let stamp = self.settle(now);
        assert!(stamp.unix_ms() < self.reserved_ms, "a stamp was issued beyond the reservation");
        Ok(stamp)
    }

    /// Moves the clock past a foreign stamp unless it is too far in the future; says whether it did.
    pub fn observe(&mut self, stamp: Stamp) -> bool {
        if stamp <= self.last {
            return true;
        }
        if stamp.unix_ms() > self.wall_ms().saturating_add(MAX_OFFSET_MS) {
            return false;
        }
        self.adopt(stamp);
        true
    }

    /// The reservation that should be made durable now, if it is time: see [`Self::reserved`].
    pub fn reservation_due(&self) -> Option<u64> {
        let base = self.wall_ms().max(self.last.unix_ms());
        (base + RESERVATION_RENEW_MS >= self.reserved_ms && self.wall_ms() > self.not_before_ms)
            .then(|| base + RESERVATION_MS)
    }

    /// A reservation is durable (or goes into the same commit as what it allows): stamps up to it may be issued.
    pub fn reserved(&mut self, until_ms: u64) {
        self.reserved_ms = self.reserved_ms.max(until_ms);
    }

    /// Stamps at or beyond this are not issued, Unix ms.
    pub fn reserved_ms(&self) -> u64 {
        self.reserved_ms
    }

    /// Also after a crash no stamp at or below this is issued any more that was not issued yet: what is issued then lies
    /// beyond the reservation that is durable now. What was only observed may lie higher, and be forgotten.
    pub fn passed(&self) -> Stamp {
        self.last.min(Stamp::new(self.reserved_ms.max(self.not_before_ms), 0))
    }

    fn adopt(&mut self, stamp: Stamp) {
        let foreign = Timestamp { epoch: 0, time: stamp.unix_ms(), count: u32::from(stamp.count()) };
        self.inner.inner_mut().observe(&foreign);
        self.last = self.last.max(stamp);
    }

    /// Turns the crate's timestamp into a stamp above the last one, carrying the count into the time.
    fn settle(&mut self, now: Timestamp<u64>) -> Stamp {
        let mut stamp = Stamp::new(now.time, u16::try_from(now.count).unwrap_or(u16::MAX));
        if stamp <= self.last {
            stamp = self.last.next();
        }
        if now.count >= u32::from(u16::MAX) {
            // Carry: the crate's count is u32 and would go on beyond ours.
            stamp = stamp.max(Stamp::new(now.time + 1, 0));
            self.inner.inner_mut().observe(&Timestamp { epoch: 0, time: now.time + 1, count: 0 });
        }
        self.last = stamp;
        stamp
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn clock(wall_ms: u64) -> Clock {
        let mut clock = Clock::new(wall_ms, Stamp::ZERO, 0);
        clock.reserved(wall_ms + 1_000_000);
        clock
    }

    #[test]
    fn stamps_rise_when_the_wall_clock_steps_back_or_stands_still() {
        let mut clock = clock(10_000);
        let mut last = clock.tick().unwrap();
        for wall in [10_000, 10_000, 9_000, 0, 10_001, 10_001, 12_000, 11_000] {
            clock.set_wall(wall.max(1));
            let stamp = clock.tick().unwrap();
            assert!(stamp > last, "{stamp} after {last}");
            last = stamp;
        }
    }

    #[test]
    fn the_count_carries_into_the_time_and_never_wraps() {
        let mut clock = clock(10_000);
        let mut last = Stamp::ZERO;
        for step in 0..200_000_u32 {
            if step == 150_000 {
                clock.set_wall(10_001); // a millisecond already used by the carry
            }
            let stamp = clock.tick().unwrap();
            assert!(stamp > last);
            last = stamp;
        }
        assert_eq!(last.unix_ms(), 10_003);
    }

    #[test]
    fn a_stamp_from_the_far_future_moves_nothing_and_a_near_one_does() {
        let mut clock = clock(10_000);
        assert!(!clock.observe(Stamp::new(10_501, 0)));
        assert!(!clock.observe(Stamp::from_u64(u64::MAX)));
        assert_eq!(clock.tick().unwrap().unix_ms(), 10_000);
        assert!(clock.observe(Stamp::new(10_500, u16::MAX)));
        assert!(clock.tick().unwrap() > Stamp::new(10_500, u16::MAX));
        assert!(clock.observe(Stamp::new(3, 3)), "an old stamp is never refused");
    }

    #[test]
    fn nothing_is_issued_beyond_the_reservation_and_nothing_below_the_last_one() {
        let mut clock = Clock::new(10_000, Stamp::ZERO, 10_900);
        assert_eq!(clock.tick(), Err(ClockError::BehindReservation { wall_ms: 10_000, reserved_ms: 10_900 }));
        assert_eq!(clock.reservation_due(), None);
        clock.set_wall(10_901);
        assert_eq!(clock.tick(), Err(ClockError::ReservationUsedUp { reserved_ms: 0 }));
        clock.reserved(clock.reservation_due().unwrap());
        assert!(clock.tick().unwrap().unix_ms() > 10_900);
        clock.set_wall(20_000);
        assert_eq!(clock.tick(), Err(ClockError::ReservationUsedUp { reserved_ms: 11_901 }));
    }

    #[test]
    fn after_a_clean_stop_stamps_go_on_above_the_last_one() {
        let mut clock = Clock::new(10_000, Stamp::new(10_400, 9), 0);
        clock.reserved(clock.reservation_due().unwrap());
        assert!(clock.tick().unwrap() > Stamp::new(10_400, 9));
    }
}
