//! What a scope is made of, and the three hashes that spread its keys: key -> shard index, shard -> id, shard -> slot.
//!
//! The hashes decide where bytes lie on disk and which node owns them: they are formats, fixed for ever and pinned by
//! golden tests. SHA-256, because clients choose the names: nobody can craft names that collide or crowd one slot.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::name::{ScopeName, echo};
use crate::rules::RuleError;

/// Hash partitions of shards: enough for even shares among hundreds of nodes, few enough for a table in the directory.
pub const SLOTS: u16 = 4096;
/// Most shards of a scope: each costs every member a vector row.
pub const MAX_SPREAD: u16 = 256;

/// A scope: its name and which life of that name. A dropped and re-created scope is another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId {
    /// The name.
    pub name: ScopeName,
    /// The scope incarnation: 0 for scopes created by rule, larger for re-created ones.
    pub incarnation: u64,
}

impl fmt::Display for ScopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.incarnation)
    }
}

/// What a scope's values are. Fixed when the scope is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// JSON documents that merge.
    Document,
    /// Opaque bytes, the last writer wins.
    Register,
    /// Exact sums.
    Counter,
}

impl Kind {
    /// Every kind, in the order of the codes.
    pub const ALL: [Kind; 3] = [Kind::Document, Kind::Register, Kind::Counter];

    /// The code in stores and on the wire. 0 is never used.
    pub fn code(self) -> u8 {
        match self {
            Kind::Document => 1,
            Kind::Register => 2,
            Kind::Counter => 3,
        }
    }

    /// The kind of a code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The word for it in rules, answers and documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Document => "document",
            Kind::Register => "register",
            Kind::Counter => "counter",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = RuleError;
    fn from_str(text: &str) -> Result<Self, RuleError> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            RuleError(format!("\"{}\" is no kind; allowed are document, register, counter", echo(text)))
        })
    }
}

/// Slots that a thread remembers: of the shards it is busy with, in 2 KiB.
const KNOWN_SLOTS: usize = 64;

/// The id of a shard: the first 16 bytes of SHA-256 of
/// `"tropism shard v1" 0x00 name 0x00 incarnation(u64 BE) index(u16 BE)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub [u8; 16]);

impl ShardId {
    /// The id of the shard of `scope` with this index.
    pub fn of(scope: &ScopeId, index: u16) -> Self {
        Self(first_bytes(
            Sha256::new_with_prefix(b"tropism shard v1\0")
                .chain_update(scope.name.as_str())
                .chain_update([0])
                .chain_update(scope.incarnation.to_be_bytes())
                .chain_update(index.to_be_bytes()),
        ))
    }

    /// The slot this shard falls into.
    pub fn slot(self) -> Slot {
        Slot::of(self)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of the [`SLOTS`] hash partitions of shards: the first two bytes (BE) of SHA-256 of
/// `"tropism slot v1" 0x00 shard id`, modulo [`SLOTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot with this number, if it is below [`SLOTS`].
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// The slot of a shard.
    pub fn of(shard: ShardId) -> Self {
        // Every key that is encoded begins with it, and a write encodes a dozen of one shard.
        thread_local! {
            static KNOWN: [Cell<Option<(ShardId, Slot)>>; KNOWN_SLOTS] = const { [const { Cell::new(None) }; KNOWN_SLOTS] };
        }
        KNOWN.with(|known| {
            let place = &known[usize::from(shard.0[0]) % KNOWN_SLOTS];
            match place.get() {
                Some((of, slot)) if of == shard => slot,
                _ => {
                    let slot = Self::hashed(shard);
                    place.set(Some((shard, slot)));
                    slot
                }
            }
        })
    }

    fn hashed(shard: ShardId) -> Self {
        let hash = Sha256::new_with_prefix(b"tropism slot v1\0").chain_update(shard.0);
        Self(u16::from_be_bytes(first_bytes(hash)) % SLOTS)
    }

    /// Its number, below [`SLOTS`].
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The index of the shard that holds `key` in a scope with `spread` shards: the first 8 bytes (BE) of SHA-256 of
/// `"tropism key v1" 0x00 key`, modulo `spread`; 0 without hashing when there is at most one shard.
pub fn shard_index(key: &str, spread: u16) -> u16 {
    if spread <= 1 {
        return 0;
    }
    let hash =
        u64::from_be_bytes(first_bytes(Sha256::new_with_prefix(b"tropism key v1\0").chain_update(key)));
    (hash % u64::from(spread)) as u16 // below spread, which is a u16
}

/// The first `N` (at most 32) bytes of a hash.
pub(crate) fn first_bytes<const N: usize>(hash: Sha256) -> [u8; N] {
    const { assert!(N <= 32) };
    let digest = hash.finalize();
    std::array::from_fn(|i| digest[i])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use super::{Kind, MAX_SPREAD, SLOTS, ScopeId, ShardId, Slot, shard_index};
    use crate::name::ScopeName;

    // The golden values below were computed by another implementation of SHA-256. If one changes, stores written so
    // far are lost: change the code back, not the test.

    #[test]
    fn shard_ids_and_slots_keep_their_golden_values() {
        for (name, incarnation, index, id, slot) in [
            ("shop/carts", 0, 0, "4efe4cb9b5af685051d69d9363e06658", 1371),
            ("shop/carts", 0, 1, "e9c5ca3ff7e247b192c1e6d392c74d28", 2546),
            ("shop/carts", 1, 0, "c5309101a2320529aa089c438357a77c", 694),
            ("a", u64::MAX, 255, "99603401c4c44a476410ebc4ab18ef5a", 4028),
        ] {
            let shard = ShardId::of(&ScopeId { name: ScopeName::new(name).unwrap(), incarnation }, index);
            assert_eq!((shard.to_string().as_str(), shard.slot().get()), (id, slot));
        }
    }

    #[test]
    fn shard_indexes_keep_their_golden_values() {
        for (key, of_2, of_7, of_256) in
            [("alice", 0, 4, 194), ("bob", 1, 1, 9), ("ключ", 0, 5, 140), ("a", 1, 0, 149)]
        {
            let indexes = [2, 7, MAX_SPREAD].map(|spread| shard_index(key, spread));
            assert_eq!(indexes, [of_2, of_7, of_256], "{key}");
        }
    }

    #[test]
    fn a_scope_of_one_shard_has_index_zero_and_no_spread_panics() {
        assert_eq!((shard_index("bob", 1), shard_index("bob", 0)), (0, 0));
        assert!(shard_index("bob", u16::MAX) < u16::MAX);
    }

    #[test]
    fn slots_spread_evenly_and_end_at_their_number() {
        let scope = ScopeId { name: ScopeName::new("a").unwrap(), incarnation: 0 };
        let mut filled = [0_u32; 16];
        for index in 0..8000 {
            filled[usize::from(ShardId::of(&scope, index).slot().get() / (SLOTS / 16))] += 1;
        }
        assert!(filled.iter().all(|count| (400..600).contains(count)), "{filled:?}");
        // Remembered or not, in whatever order they are asked for.
        for index in (0..200).chain(0..50).rev() {
            let shard = ShardId::of(&scope, index);
            assert_eq!([shard.slot(), shard.slot()], [Slot::hashed(shard); 2]);
        }
        assert_eq!((Slot::new(SLOTS - 1).map(Slot::get), Slot::new(SLOTS)), (Some(4095), None));
    }

    #[test]
    fn kinds_have_fixed_codes_and_words() {
        assert_eq!(Kind::ALL.map(Kind::code), [1, 2, 3]);
        assert_eq!(
            [0, 1, 2, 3, 4].map(Kind::from_code),
            [None, Some(Kind::Document), Some(Kind::Register), Some(Kind::Counter), None]
        );
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("Document".parse::<Kind>().is_err());
    }
}
