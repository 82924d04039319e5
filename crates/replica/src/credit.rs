//! How much a link may have under way: what the peer takes in a quarter of a second, and what the way there holds.
//!
//! A peer that is pressed by its own clients takes what is late at its own pace. What is sent beyond that only waits
//! there, in front of everything that is sent behind it. So the sender measures what the peer tells to have and keeps no
//! more than that under way, between a frame and [`CREDIT_BYTES`].

use crate::limits::{CREDIT_BYTES, CREDIT_DELAY_US, CREDIT_FIRST_BYTES, FRAME_BYTES};

/// The credit of one connection.
#[derive(Debug)]
pub(crate) struct Credit {
    bytes: usize,
    /// Told since then.
    told: usize,
    since_us: u64,
    /// Whether the walk had to wait for credit since then: if not, what was told says how much there was.
    waited: bool,
    /// The shortest round trip: longer ones waited behind what was sent.
    rtt_us: u64,
}

impl Credit {
    pub(crate) fn new(now_us: u64) -> Self {
        Self { bytes: CREDIT_FIRST_BYTES, told: 0, since_us: now_us, waited: false, rtt_us: u64::MAX }
    }

    /// Most bytes under way.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The walk waits for credit.
    pub(crate) fn waits(&mut self) {
        self.waited = true;
    }

    /// A round trip was measured.
    pub(crate) fn measured(&mut self, rtt_us: u64) {
        self.rtt_us = self.rtt_us.min(rtt_us);
    }

    /// The peer told to have so many bytes.
    pub(crate) fn told(&mut self, now_us: u64, bytes: usize) {
        self.told += bytes;
        let elapsed_us = now_us.saturating_sub(self.since_us);
        if elapsed_us < CREDIT_DELAY_US {
            return;
        }
        if self.waited {
            let rtt_us = if self.rtt_us == u64::MAX { 0 } else { self.rtt_us };
            let bytes = self.told as u64 * (CREDIT_DELAY_US + rtt_us) / elapsed_us;
            self.bytes = usize::try_from(bytes).unwrap_or(CREDIT_BYTES).clamp(FRAME_BYTES, CREDIT_BYTES);
        }
        (self.told, self.since_us, self.waited) = (0, now_us, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a peer take `per_second` bytes over a way of `rtt_us` for so many seconds; says the credit at the end.
    fn credit_of(per_second: u64, rtt_us: u64, seconds: u64) -> usize {
        let mut credit = Credit::new(0);
        credit.measured(rtt_us);
        credit.measured(rtt_us + 400_000); // one that waited
        let step_us = 10_000;
        for step in 1..=seconds * 1_000_000 / step_us {
            // What is told is bound by the peer, and by what a round trip lets through.
            let way = credit.bytes() as u64 * step_us / rtt_us.max(1);
            credit.waits();
            credit.told(
                step * step_us,
                usize::try_from(way.min(per_second * step_us / 1_000_000)).unwrap_or(0),
            );
        }
        credit.bytes()
    }

    #[test]
    fn a_slow_peer_gets_what_it_takes_in_a_quarter_of_a_second_and_a_fast_one_all() {
        let slow = credit_of(2_400_000, 1_000, 10);
        assert!((550_000..650_000).contains(&slow), "{slow}");
        assert_eq!(credit_of(100_000, 1_000, 10), FRAME_BYTES, "a frame at least");
        assert_eq!(credit_of(200_000_000, 1_000, 10), CREDIT_BYTES);
        assert_eq!(credit_of(200_000_000, 150_000, 10), CREDIT_BYTES, "over a long way, too");
    }

    #[test]
    fn a_link_with_little_to_send_keeps_its_credit() {
        let mut credit = Credit::new(0);
        for step in 1..100 {
            credit.told(step * 100_000, 10);
        }
        assert_eq!(credit.bytes(), CREDIT_FIRST_BYTES);
    }
}
