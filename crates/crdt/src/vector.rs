//! Version vectors.

use std::collections::BTreeMap;

use crate::codec::{DecodeError, Reader, put_varint};
use crate::origin::Origin;

/// Of one shard at one member: per origin, how many of its changes are applied, without gaps. An origin without
/// changes has no entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vector {
    entries: BTreeMap<Origin, u64>,
}

impl Vector {
    /// The vector that counts nothing.
    pub const EMPTY: Self = Self { entries: BTreeMap::new() };

    /// How many changes of `origin` are counted.
    pub fn get(&self, origin: &Origin) -> u64 {
        self.entries.get(origin).copied().unwrap_or(0)
    }

    /// Whether change `seq` of `origin` is counted.
    pub fn includes(&self, origin: &Origin, seq: u64) -> bool {
        self.get(origin) >= seq
    }

    /// Whether everything `other` counts is counted here.
    pub fn dominates(&self, other: &Self) -> bool {
        other.iter().all(|(origin, seq)| self.includes(origin, seq))
    }

    /// Counts the next change of `origin`. Panics unless `seq` is exactly the next one: a gap in a vector is a bug that
    /// would hide a lost change.
    pub fn advance(&mut self, origin: Origin, seq: u64) {
        let entry = self.entries.entry(origin).or_insert(0);
        assert_eq!(seq, *entry + 1, "a vector counts without gaps ({origin})");
        *entry = seq;
    }

    /// Raises `origin` to at least `seq` (merging what others told, never what was applied here).
    pub fn raise(&mut self, origin: Origin, seq: u64) {
        if seq > 0 {
            let entry = self.entries.entry(origin).or_insert(0);
            *entry = seq.max(*entry);
        }
    }

    /// Entries in origin order.
    pub fn iter(&self) -> impl Iterator<Item = (&Origin, u64)> {
        self.entries.iter().map(|(origin, seq)| (origin, *seq))
    }

    /// Number of origins.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries that rose since `before`.
    pub fn risen_since(&self, before: &Self) -> Vec<(Origin, u64)> {
        self.iter().filter(|(origin, seq)| before.get(origin) < *seq).map(|(o, s)| (*o, s)).collect()
    }

    /// Appends count and entries in origin order.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_entries(out, self.entries.len(), self.iter());
    }

    /// The encoding alone.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + self.len() * 32);
        self.encode(&mut out);
        out
    }

    /// Reads what [`Self::encode`] wrote; entries out of order or zero are refused.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let entries = decode_entries(reader)?;
        if !entries.is_sorted_by(|a, b| a.0 < b.0) || entries.iter().any(|(_, seq)| *seq == 0) {
            return Err(reader.invalid("vector"));
        }
        Ok(Self { entries: entries.into_iter().collect() })
    }
}

impl FromIterator<(Origin, u64)> for Vector {
    fn from_iter<T: IntoIterator<Item = (Origin, u64)>>(entries: T) -> Self {
        let mut vector = Self::default();
        for (origin, seq) in entries {
            vector.raise(origin, seq);
        }
        vector
    }
}

/// Appends `(origin, seq)` entries: count, then each.
pub fn encode_entries<'a>(out: &mut Vec<u8>, len: usize, entries: impl Iterator<Item = (&'a Origin, u64)>) {
    put_varint(out, len as u64);
    for (origin, seq) in entries {
        origin.encode(out);
        put_varint(out, seq);
    }
}

/// Reads what [`encode_entries`] wrote.
pub fn decode_entries(reader: &mut Reader<'_>) -> Result<Vec<(Origin, u64)>, DecodeError> {
    let len = reader.varint("entries")?;
    let mut entries = Vec::new(); // grows with what is really there, not with what is claimed
    for _ in 0..len {
        entries.push((Origin::decode(reader)?, reader.varint("seq")?));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::origin::NodeId;

    fn origin(name: &str) -> Origin {
        Origin { node: NodeId::new(name).unwrap(), incarnation: 1, random: 0 }
    }

    #[test]
    fn vectors_have_golden_bytes() {
        let vector: Vector = [(origin("b"), 300), (origin("a"), 1)].into_iter().collect();
        let bytes = vector.to_bytes();
        assert_eq!(
            bytes,
            b"\x02\x01a\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x01\x01b\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\xac\x02"
        );
        assert_eq!(Vector::decode(&mut Reader::new(&bytes)), Ok(vector));
    }

    #[test]
    #[should_panic(expected = "without gaps")]
    fn a_gap_in_a_vector_is_caught() {
        let mut vector = Vector::default();
        vector.advance(origin("a"), 1);
        vector.advance(origin("a"), 3);
    }

    #[test]
    fn dominance_is_by_every_entry() {
        let low: Vector = [(origin("a"), 1)].into_iter().collect();
        let high: Vector = [(origin("a"), 2), (origin("b"), 1)].into_iter().collect();
        assert!(high.dominates(&low) && !low.dominates(&high) && low.dominates(&Vector::EMPTY));
        assert_eq!(high.risen_since(&low), vec![(origin("a"), 2), (origin("b"), 1)]);
    }
}
