//! What is said of keys beyond the store's tally: which have expired, and which cannot be shown.
//!
//! The store counts its keys in the batches that change them ([`Tally`](tropism_storage::Tally)), so those numbers are
//! exact through every crash. But a key expires without a write, and a tally has no names. So the sweep, which comes by
//! every key anyway, takes a census: what it has passed in a round, kept right by the writes behind it, is complete when
//! the round is. From the first round on after a start it knows how many keys have expired and where parked ones are;
//! every further round counts anew and corrects what rows that rotted made wrong.

use std::collections::BTreeMap;

use tropism_placement::{ScopeName, ShardId};
use tropism_storage::{KeyTally, Standing, ValueRow};

use crate::limits::{DEGRADED_SHARDS, EXPIRY_BUCKETS, EXPIRY_WIDTH_MS};

/// One key, as it is counted.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) standing: Standing,
    /// Of a living key that expires: when, Unix ms.
    expires_at_ms: Option<u64>,
    /// Why it cannot be shown.
    problem: Option<String>,
    /// What it adds to its shard's digest; `None`: what it added cannot be known.
    pub(crate) fingerprint: Option<u128>,
}

impl Counted {
    pub(crate) fn of(row: &ValueRow, fingerprint: u128) -> Self {
        let standing = row.standing();
        let expires_at_ms = if standing == Standing::Alive { row.cell.expires_at_ms() } else { None };
        Self {
            standing,
            expires_at_ms,
            problem: row.parked.as_ref().map(|parked| parked.reason.clone()),
            fingerprint: Some(fingerprint),
        }
    }

    /// A key whose row is not what was written. It adds nothing to a digest: what it added before is not known.
    pub(crate) fn unreadable(problem: String) -> Self {
        Self { standing: Standing::Parked, expires_at_ms: None, problem: Some(problem), fingerprint: None }
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.problem.is_some()
    }
}

/// The census under way, and the last whole one.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// Of every key; `None` until the sweep has been round once.
    whole: Option<Count>,
    /// Of the keys that this round has passed.
    round: Count,
    /// Behind the last key that this round has passed.
    passed: Vec<u8>,
    /// The shard it is in, and the digest of its keys up to there.
    within: Option<(ShardId, u128)>,
}

#[derive(Debug, Default)]
struct Count {
    keys: KeyTally,
    expiries: Expiries,
    parked: BTreeMap<ShardId, ParkedKeys>,
}

#[derive(Debug, Clone)]
struct ParkedKeys {
    scope: ScopeName,
    keys: u64,
    problem: String,
}

/// A scope with keys that cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Which.
    pub scope: ScopeName,
    /// How many keys.
    pub keys: u64,
    /// Why the last one that was found cannot be shown.
    pub problem: String,
}

/// Every shard with parked keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedShards {
    /// Which.
    pub shards: Vec<ShardId>,
    /// How many keys they are: as many as the store tallies, or the tally knows of one that is not here yet.
    pub keys: u64,
}

impl Census {
    /// Whether the sweep has been round since the start.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// Where the sweep goes on.
    pub(crate) fn passed(&self) -> &[u8] {
        &self.passed
    }

    /// The sweep passes a key. `scope` is that of its shard, asked for when the key is parked. If it is the first key of
    /// another shard: the shard before, and its digest.
    pub(crate) fn pass(
        &mut self,
        shard: ShardId,
        key: &Counted,
        scope: Option<ScopeName>,
    ) -> Option<(ShardId, u128)> {
        self.round.add(shard, key, scope);
        let fingerprint = key.fingerprint.unwrap_or(0);
        match &mut self.within {
            Some((within, sum)) if *within == shard => {
                *sum = sum.wrapping_add(fingerprint);
                None
            }
            within => within.replace((shard, fingerprint)),
        }
    }

    /// The sweep has passed everything before this place; `None`: it has been round. Then the keys as this round
    /// counted them, and the last shard with its digest.
    pub(crate) fn go_on_at(&mut self, next: Option<Vec<u8>>) -> Option<(KeyTally, Option<(ShardId, u128)>)> {
        if let Some(next) = next {
            self.passed = next;
            return None;
        }
        self.passed.clear();
        let last = self.within.take();
        let whole = self.whole.insert(std::mem::take(&mut self.round));
        Some((whole.keys, last))
    }

    /// A key's row, stored under `name`, is replaced.
    pub(crate) fn changed(
        &mut self,
        name: &[u8],
        shard: ShardId,
        (was, is): (&Counted, &Counted),
        scope: Option<ScopeName>,
    ) {
        if let Some(whole) = &mut self.whole {
            whole.remove(shard, was);
            whole.add(shard, is, scope.clone());
        }
        if name < self.passed.as_slice() {
            self.round.remove(shard, was);
            self.round.add(shard, is, scope);
            if let Some((_, sum)) = self.within.as_mut().filter(|(within, _)| *within == shard) {
                let (was, is) = (was.fingerprint.unwrap_or(0), is.fingerprint.unwrap_or(0));
                *sum = sum.wrapping_add(is).wrapping_sub(was);
            }
        }
    }

    /// Living keys that have expired, as far as is known.
    pub(crate) fn expired(&self, now_ms: u64) -> u64 {
        self.whole.as_ref().unwrap_or(&self.round).expiries.before(now_ms)
    }

    /// Every shard with parked keys; `None` while that is not known: before the first round is over, and when there are
    /// too many of them.
    pub(crate) fn parked_shards(&self) -> Option<ParkedShards> {
        let whole = self.whole.as_ref()?;
        let keys = whole.parked.values().map(|parked| parked.keys).sum();
        let shards = || whole.parked.keys().copied().collect();
        (keys >= whole.keys.parked).then(|| ParkedShards { shards: shards(), keys })
    }

    /// Scopes with parked keys, those with the most first, as far as is known.
    pub(crate) fn degraded(&self) -> Vec<Degraded> {
        let mut scopes: BTreeMap<&ScopeName, Degraded> = BTreeMap::new();
        for ParkedKeys { scope, keys, problem } in self.whole.as_ref().unwrap_or(&self.round).parked.values()
        {
            let degraded = scopes.entry(scope).or_insert_with(|| Degraded {
                scope: scope.clone(),
                keys: 0,
                problem: problem.clone(),
            });
            degraded.keys += keys;
        }
        let mut degraded: Vec<Degraded> = scopes.into_values().collect();
        degraded.sort_by_key(|scope| std::cmp::Reverse(scope.keys));
        degraded
    }
}

impl Count {
    fn add(&mut self, shard: ShardId, key: &Counted, scope: Option<ScopeName>) {
        self.keys.add(key.standing);
        if let Some(at_ms) = key.expires_at_ms {
            self.expiries.add(at_ms, 1);
        }
        let Some(problem) = &key.problem else { return };
        if let Some(parked) = self.parked.get_mut(&shard) {
            parked.keys += 1;
            parked.problem.clone_from(problem);
        } else if let Some(scope) = scope.filter(|_| self.parked.len() < DEGRADED_SHARDS) {
            self.parked.insert(shard, ParkedKeys { scope, keys: 1, problem: problem.clone() });
        }
    }

    fn remove(&mut self, shard: ShardId, key: &Counted) {
        self.keys.remove(key.standing);
        if let Some(at_ms) = key.expires_at_ms {
            self.expiries.remove(at_ms);
        }
        if key.is_parked()
            && let Some(parked) = self.parked.get_mut(&shard)
        {
            parked.keys -= 1;
            if parked.keys == 0 {
                self.parked.remove(&shard);
            }
        }
    }
}

/// How many keys expire when, in buckets of time of one width; twice as wide each time there are too many.
#[derive(Debug)]
struct Expiries {
    width_ms: u64,
    /// Keys by `expires_at / width`.
    buckets: BTreeMap<u64, u64>,
}

impl Default for Expiries {
    fn default() -> Self {
        Self { width_ms: EXPIRY_WIDTH_MS, buckets: BTreeMap::new() }
    }
}

impl Expiries {
    fn add(&mut self, at_ms: u64, keys: u64) {
        *self.buckets.entry(at_ms / self.width_ms).or_insert(0) += keys;
        while self.buckets.len() > EXPIRY_BUCKETS {
            let narrow = std::mem::take(&mut self.buckets);
            self.width_ms *= 2;
            for (bucket, keys) in narrow {
                *self.buckets.entry(bucket / 2).or_insert(0) += keys;
            }
        }
    }

    fn remove(&mut self, at_ms: u64) {
        let bucket = at_ms / self.width_ms;
        if let Some(keys) = self.buckets.get_mut(&bucket) {
            *keys -= 1;
            if *keys == 0 {
                self.buckets.remove(&bucket);
            }
        }
    }

    /// Keys whose whole bucket is past.
    fn before(&self, now_ms: u64) -> u64 {
        self.buckets.range(..now_ms / self.width_ms).map(|(_, keys)| keys).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn expiries_stay_bounded_and_lose_nothing_when_their_buckets_widen() {
        let mut expiries = Expiries::default();
        let most = EXPIRY_BUCKETS as u64 * 5;
        for second in 0..most {
            expiries.add(second * 1000, 1);
        }
        assert!(expiries.buckets.len() <= EXPIRY_BUCKETS);
        assert_eq!(expiries.width_ms, 8_000);
        assert_eq!(expiries.before(80_000), 80, "those of ten whole buckets");
        assert_eq!(expiries.before(87_999), 80);
        assert_eq!(expiries.before(u64::MAX), most);
        for second in 0..most {
            expiries.remove(second * 1000);
        }
        assert!(expiries.buckets.is_empty());
    }

    #[test]
    fn parked_keys_are_named_by_scope_and_forgotten_when_they_are_whole_again() {
        let (parked, alive) = (Counted::unreadable("rotten".into()), Counted::of(&ValueRow::default(), 0));
        let scope = |name| Some(ScopeName::new(name).unwrap());
        let mut census = Census::default();
        for (shard, name) in [(1, "a"), (2, "a"), (3, "b")] {
            census.pass(ShardId([shard; 16]), &parked, scope(name));
        }
        let shown = |census: &Census| -> Vec<(String, u64)> {
            census.degraded().into_iter().map(|d| (d.scope.to_string(), d.keys)).collect()
        };
        assert_eq!(
            shown(&census),
            [("a".to_owned(), 2), ("b".to_owned(), 1)],
            "before the round is over, too"
        );
        assert_eq!(census.go_on_at(None).unwrap().0.parked, 3);
        census.changed(b"k", ShardId([1; 16]), (&parked, &alive), None);
        census.changed(b"k", ShardId([3; 16]), (&parked, &alive), None);
        assert_eq!(shown(&census), [("a".to_owned(), 1)]);
    }
}
