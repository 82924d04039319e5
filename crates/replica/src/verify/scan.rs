//! The scans of a verification: over a snapshot of a shard, some rows at a time.

use std::collections::{BTreeMap, BTreeSet};

use tropism_crdt::{Change, Origin, Vector};
use tropism_placement::ShardId;
use tropism_storage::keys::{after_prefix, shard_prefix};
use tropism_storage::rows::Row;
use tropism_storage::{LogKey, Reads, Space, StoreError, ValueRow, View};

use super::report::KeyHeld;
use crate::digest::Fingerprints;
use crate::limits::{VERIFIED_KEYS, VERIFY_CHANGES};
use crate::sketch::Sketch;

/// What all rows add up to, and which of them cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowsSeen {
    /// Sum of the fingerprints of the rows that can be read.
    pub sum: u128,
    /// Rows.
    pub keys: u64,
    /// Of these, rows that cannot be read.
    pub unreadable: u64,
    /// Of these, keys that are parked.
    pub parked: u64,
    /// The first of those that cannot be served.
    pub not_served: Vec<(String, KeyHeld)>,
}

/// Keys, each with a change of it.
pub(super) type Changed = BTreeMap<String, (Origin, u64)>;

/// What a scan is for.
#[derive(Debug)]
pub(super) enum Goal {
    /// Every row.
    Rows(RowsSeen),
    /// A sketch of the rows, without some keys, of one in so many others.
    Cells { without: BTreeSet<String>, one_in: u32, salt: u64, sketch: Sketch, sum: u128 },
    /// The keys of fingerprints, and how many there are.
    Keys { wanted: BTreeSet<u128>, found: Vec<(String, KeyHeld)>, count: u64 },
}

/// A scan under way.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) goal: Goal,
    next: Option<Vec<u8>>,
}

impl Scan {
    pub(super) fn new(shard: ShardId, goal: Goal) -> Self {
        Self { goal, next: Some(shard_prefix(&shard)) }
    }

    pub(super) fn is_done(&self) -> bool {
        self.next.is_none()
    }

    /// Looks at the next rows, at most `budget`, and takes them off it.
    pub(super) fn step(
        &mut self,
        view: &dyn View,
        shard: ShardId,
        prints: &Fingerprints,
        budget: &mut usize,
    ) -> Result<(), StoreError> {
        let Some(next) = self.next.take() else { return Ok(()) };
        let prefix = shard_prefix(&shard);
        let most = *budget;
        let rows = view.scan(Space::Values, &next, &after_prefix(&prefix)).take(most);
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        *budget = budget.saturating_sub(rows.len().max(1));
        if rows.len() == most {
            self.next = rows.last().map(|(name, _)| [name, &[0][..]].concat());
        }
        for (name, bytes) in rows {
            let Ok(key) = std::str::from_utf8(&name[prefix.len()..]) else { continue }; // only checked texts are written
            let row = ValueRow::decode(&bytes);
            if let Goal::Rows(seen) = &mut self.goal {
                seen.keys += 1;
                let held = match &row {
                    Ok(row) if row.parked.is_some() => {
                        seen.parked += 1;
                        Some(KeyHeld::of_row(row))
                    }
                    Ok(_) => None,
                    Err(problem) => {
                        seen.unreadable += 1;
                        let problem = problem.clone();
                        let damaged = StoreError::Damaged { space: Space::Values.name(), problem };
                        Some(KeyHeld::of(&Err(damaged))?)
                    }
                };
                if let Some(held) = held.filter(|_| seen.not_served.len() < VERIFIED_KEYS) {
                    seen.not_served.push((key.to_owned(), held));
                }
            }
            let Ok(row) = row else { continue }; // as if it were not there
            let print = prints.of(key, &row);
            match &mut self.goal {
                Goal::Rows(seen) => seen.sum = seen.sum.wrapping_add(print),
                Goal::Cells { without, one_in, salt, sketch, sum } => {
                    let left_out = without.contains(key) || *one_in > 1 && !is_drawn(*salt, key, *one_in);
                    if print != 0 && !left_out {
                        *sum = sum.wrapping_add(print);
                        sketch.add(print);
                    }
                }
                Goal::Keys { wanted, found, count } if wanted.contains(&print) => {
                    *count += 1;
                    if found.len() < VERIFIED_KEYS {
                        found.push((key.to_owned(), KeyHeld::of_row(&row)));
                    }
                }
                Goal::Keys { .. } => {}
            }
        }
        Ok(())
    }
}

/// Whether a key is among the one in so many that both members look at.
fn is_drawn(salt: u64, key: &str, one_in: u32) -> bool {
    xxhash_rust::xxh3::xxh3_64_with_seed(key.as_bytes(), salt).is_multiple_of(u64::from(one_in))
}

/// A sum less the fingerprints of some keys.
pub(super) fn sum_without<'a>(
    view: &dyn View,
    shard: ShardId,
    prints: &Fingerprints,
    sum: u128,
    keys: impl Iterator<Item = &'a String>,
) -> Result<u128, StoreError> {
    let mut sum = sum;
    for key in keys {
        match view.value(shard, key) {
            Ok(Some(row)) => sum = sum.wrapping_sub(prints.of(key, &row)),
            Ok(None) => {}
            Err(error @ StoreError::Engine(_)) => return Err(error),
            Err(_) => {} // it was not in the sum
        }
    }
    Ok(sum)
}

/// What a member holds of keys.
pub(super) fn held<'a>(
    view: &dyn View,
    shard: ShardId,
    keys: impl Iterator<Item = &'a String>,
) -> Result<Vec<(String, KeyHeld)>, StoreError> {
    keys.map(|key| Ok((key.clone(), KeyHeld::of(&view.value(shard, key))?))).collect()
}

/// What both vectors count.
pub(super) fn common(one: &Vector, other: &Vector) -> Vector {
    one.iter().map(|(origin, seq)| (*origin, seq.min(other.get(origin)))).collect()
}

/// The keys of the changes that `to` counts and `from` does not, each with its last such change; `None` when they are too
/// many, or the log does not tell.
pub(super) fn changed_between(
    view: &dyn View,
    shard: ShardId,
    from: &Vector,
    to: &Vector,
) -> Result<Option<Changed>, StoreError> {
    let mut keys = BTreeMap::new();
    let mut left = VERIFY_CHANGES;
    for (origin, upto) in to.risen_since(from) {
        for seq in from.get(&origin) + 1..=upto {
            let Some(less) = left.checked_sub(1) else { return Ok(None) };
            left = less;
            let change = view.change(&LogKey { shard, origin, seq })?;
            let Some(Ok(change)) = change.map(|bytes| Change::decode(&bytes)) else { return Ok(None) };
            keys.insert(change.key, (origin, seq));
        }
    }
    Ok(Some(keys))
}
