//! The hybrid logical clock's stamp.

use std::fmt;

/// 64 bits: 48 of Unix milliseconds, 16 of a count within the millisecond. Big endian on disk and on the wire, so it
/// sorts as bytes. The total order of changes is `(stamp, origin)`.
///
/// Source: Kulkarni et al., "Logical Physical Clocks", 2014.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(u64);

impl Stamp {
    /// Before every stamp a clock issues.
    pub const ZERO: Self = Self(0);
    /// Bits of the count.
    pub const COUNT_BITS: u32 = 16;
    /// The last millisecond a stamp can name (year 10 889).
    pub const MAX_MS: u64 = (1 << 48) - 1;

    /// The stamp of a millisecond (clamped to [`Self::MAX_MS`]) and a count within it.
    pub fn new(unix_ms: u64, count: u16) -> Self {
        Self(unix_ms.min(Self::MAX_MS) << Self::COUNT_BITS | u64::from(count))
    }

    /// From the 64-bit form.
    pub const fn from_u64(bits: u64) -> Self {
        Self(bits)
    }

    /// The 64-bit form.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Unix milliseconds.
    pub const fn unix_ms(self) -> u64 {
        self.0 >> Self::COUNT_BITS
    }

    /// Count within the millisecond.
    pub const fn count(self) -> u16 {
        self.0 as u16
    }

    /// The next stamp: the count overflows into the time.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.unix_ms(), self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_have_golden_bytes_and_sort_as_bytes() {
        let stamp = Stamp::new(1_764_000_000_123, 7);
        assert_eq!(stamp.as_u64().to_be_bytes(), [0x01, 0x9a, 0xb6, 0x97, 0xe8, 0x7b, 0x00, 0x07]);
        assert_eq!((stamp.unix_ms(), stamp.count()), (1_764_000_000_123, 7));
        assert!(Stamp::new(5, u16::MAX) < Stamp::new(6, 0));
        assert_eq!(Stamp::new(5, u16::MAX).next(), Stamp::new(6, 0));
    }
}
