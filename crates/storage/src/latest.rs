//! The rows written lately, in memory: what is written is soon read and written again.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::engine::StoreKey;

/// Memory that a row costs besides its bytes.
const ROW_OVERHEAD_BYTES: usize = 160;

/// Rows of one space by the hash of their key, in two generations: when the younger is full, the older is forgotten.
///
/// Invariant: what is found is what was committed last for that key.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    young: BTreeMap<u64, (StoreKey, Bytes)>,
    old: BTreeMap<u64, (StoreKey, Bytes)>,
    young_bytes: usize,
    old_bytes: usize,
    limit: usize,
}

/// How much is kept in memory of the values written lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeptValues {
    /// Rows.
    pub rows: usize,
    /// Their bytes, with what a row costs besides.
    pub bytes: usize,
    /// Most bytes.
    pub limit: usize,
}

impl Latest {
    /// Keeps at most so many bytes.
    pub(crate) fn limited_to(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        let hash = hash(key);
        // Another key with the same hash hides what is older: it may be of either.
        let (found, row) = self.young.get(&hash).or_else(|| self.old.get(&hash))?;
        (found.as_bytes() == key).then_some(row)
    }

    /// A row was committed.
    pub(crate) fn put(&mut self, key: StoreKey, row: Bytes) {
        let row = (key, row);
        let bytes = cost(&row);
        if bytes > self.limit / 2 {
            return self.remove(row.0.as_bytes());
        }
        if self.young_bytes + bytes > self.limit / 2 {
            self.old = std::mem::take(&mut self.young);
            self.old_bytes = std::mem::take(&mut self.young_bytes);
        }
        let hash = hash(row.0.as_bytes());
        if let Some(row) = self.young.insert(hash, row) {
            self.young_bytes -= cost(&row);
        }
        self.young_bytes += bytes;
    }

    pub(crate) fn kept(&self) -> KeptValues {
        KeptValues {
            rows: self.young.len() + self.old.len(),
            bytes: self.young_bytes + self.old_bytes,
            limit: self.limit,
        }
    }

    /// A row was removed, or is too large to keep.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        let hash = hash(key);
        self.young_bytes -= self.young.remove(&hash).map_or(0, |row| cost(&row));
        self.old_bytes -= self.old.remove(&hash).map_or(0, |row| cost(&row));
    }
}

fn cost((key, row): &(StoreKey, Bytes)) -> usize {
    key.as_bytes().len() + row.len() + ROW_OVERHEAD_BYTES
}

fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> StoreKey {
        StoreKey::new(number.to_be_bytes().to_vec())
    }

    #[test]
    fn the_last_row_of_a_key_is_found_or_none_and_memory_is_bounded() {
        let limit = 100 * (ROW_OVERHEAD_BYTES + 8);
        let mut latest = Latest::limited_to(limit);
        for round in 0..50_u32 {
            for number in 0..40 {
                latest.put(key(number * (round % 3 + 1)), Bytes::copy_from_slice(&round.to_be_bytes()));
            }
            latest.put(key(999), Bytes::from_static(b"gone"));
            latest.remove(key(999).as_bytes());
            assert_eq!(latest.get(key(999).as_bytes()), None, "removed rows are not found");
            let last = Bytes::copy_from_slice(&round.to_be_bytes());
            assert_eq!(latest.get(key(39 * (round % 3 + 1)).as_bytes()), Some(&last));
            assert!(latest.kept().bytes <= limit && latest.kept().rows <= 100);
            for number in 0..40 {
                let found = latest.get(key(number * (round % 3 + 1)).as_bytes());
                assert!(found.is_none_or(|row| *row == last), "an older row shines through");
            }
        }
        latest.put(key(1), Bytes::from(vec![0; limit]));
        assert_eq!(latest.get(key(1).as_bytes()), None, "too large to keep, and what was there is void");
    }
}
