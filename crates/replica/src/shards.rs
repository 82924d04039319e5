//! The shards this node knows: a bounded cache in front of the store, and the sums that compare them.
//!
//! Vectors and digests rise in memory and are written once a turn ([`Shards::write`]), with what raised them.

use std::collections::{BTreeMap, BTreeSet};

use tropism_crdt::Vector;
use tropism_placement::{PlacementRecord, RegionName, SLOTS, ShardId};
use tropism_storage::{Digest, Reads, ShardKey, ShardRow, Space, Store, StoreError, VectorRow};

use crate::digest::Fingerprints;
use crate::limits::CACHED_SHARDS;

/// What memory holds of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Shard {
    pub(crate) record: PlacementRecord,
    /// Which set of members it has.
    group: u64,
    pub(crate) vector: Vector,
    /// The sum of the fingerprints of its keys, at that vector; `None` while that is not known.
    pub(crate) digest: Option<u128>,
    /// As what it is counted in the sums.
    counted: u128,
    /// The vector when our origin last made a change here: what the next change's `deps` leave out. Empty when
    /// forgotten: then they say everything.
    pub(crate) said: Vector,
    used: u64,
}

/// The cache and the sums.
#[derive(Debug)]
pub(crate) struct Shards {
    cached: BTreeMap<ShardId, Shard>,
    /// Those whose row is older than what memory holds; they stay in memory.
    dirty: BTreeSet<ShardId>,
    fingerprints: Fingerprints,
    uses: u64,
    misses: u64,
    sums: BTreeMap<u64, Sums>,
}

/// Per slot the sum of the hashes of `(shard, vector, digest)` over the shards with one set of members.
#[derive(Debug, Clone)]
pub(crate) struct Sums {
    pub(crate) members: Vec<RegionName>,
    slots: Box<[u128]>,
}

impl Sums {
    /// Sum over a range of slots: all (level 0), 64 (1) or one (2).
    pub(crate) fn sum(&self, level: u8, range: u16) -> u128 {
        let slots = usize::from(range_len(level));
        let start = usize::from(range) * slots;
        self.slots.get(start..start + slots).unwrap_or_default().iter().fold(0, |sum, s| sum.wrapping_add(*s))
    }
}

/// Slots in one range of a level.
pub(crate) fn range_len(level: u8) -> u16 {
    match level {
        0 => SLOTS,
        1 => 64,
        _ => 1,
    }
}

/// Which set of member regions: names sorted, hashed.
pub(crate) fn group_of(record: &PlacementRecord) -> (u64, Vec<RegionName>) {
    let mut members: Vec<RegionName> = record.members().cloned().collect();
    members.sort();
    members.dedup();
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for member in &members {
        hasher.update(member.as_str().as_bytes());
        hasher.update(&[0]);
    }
    (hasher.digest(), members)
}

fn fingerprint(shard: ShardId, vector: &Vector, digest: Option<u128>) -> u128 {
    if vector.is_empty() {
        return 0; // a shard without changes compares equal to one that is not known
    }
    let mut bytes = shard.0.to_vec();
    vector.encode(&mut bytes);
    bytes.extend_from_slice(&digest.unwrap_or_default().to_be_bytes());
    xxhash_rust::xxh3::xxh3_128(&bytes)
}

impl Shards {
    /// Sums over everything the store knows; `record_of` says where a shard is held.
    pub(crate) fn open(
        store: &Store,
        fingerprints: Fingerprints,
        record_of: impl Fn(&ShardRow) -> Option<PlacementRecord>,
    ) -> Result<Self, StoreError> {
        let mut shards = Self {
            cached: BTreeMap::new(),
            dirty: BTreeSet::new(),
            fingerprints,
            uses: 0,
            misses: 0,
            sums: BTreeMap::new(),
        };
        for (row, VectorRow { vector, digest }) in store.shards()? {
            if let Some(record) = record_of(&row) {
                let id = row.id();
                let group = shards.group_for(&record);
                let digest = shards.fingerprints.sum(digest);
                shards.add(group, id, fingerprint(id, &vector, digest));
            }
        }
        Ok(shards)
    }

    /// The shard, from memory or the store, or new with its description written.
    pub(crate) fn get(
        &mut self,
        store: &mut Store,
        row: &ShardRow,
        id: ShardId,
        record: impl FnOnce() -> PlacementRecord,
    ) -> Result<&mut Shard, StoreError> {
        self.uses += 1;
        let uses = self.uses;
        if !self.cached.contains_key(&id) {
            self.misses += 1;
            if self.cached.len() >= CACHED_SHARDS {
                self.evict();
            }
            let known = store.shard(id)?.is_some();
            let (vector, digest) = if known {
                let VectorRow { vector, digest } = store.vector_row(id)?;
                (vector, self.fingerprints.sum(digest))
            } else {
                store.put_row(Space::Shards, ShardKey::Description(id).encode(), row);
                (Vector::EMPTY, Some(0))
            };
            let record = record();
            let group = self.group_for(&record);
            let counted = fingerprint(id, &vector, digest);
            let shard = Shard { record, group, vector, digest, counted, said: Vector::EMPTY, used: uses };
            self.cached.insert(id, shard);
        }
        let Some(shard) = self.cached.get_mut(&id) else { unreachable!("inserted above") };
        shard.used = uses;
        Ok(shard)
    }

    /// The members of a shard changed.
    pub(crate) fn regroup(
        &mut self,
        store: &Store,
        id: ShardId,
        (before, record): (&PlacementRecord, &PlacementRecord),
    ) -> Result<(), StoreError> {
        let counted = self.leave_group(store, id, before)?;
        let group = self.group_for(record);
        self.add(group, id, counted);
        if let Some(shard) = self.cached.get_mut(&id) {
            (shard.group, shard.record) = (group, record.clone());
        }
        Ok(())
    }

    /// A shard is not held any more; what memory holds of it goes.
    pub(crate) fn forget(
        &mut self,
        store: &Store,
        id: ShardId,
        before: &PlacementRecord,
    ) -> Result<(), StoreError> {
        self.leave_group(store, id, before)?;
        self.cached.remove(&id);
        self.dirty.remove(&id);
        Ok(())
    }

    /// Takes a shard out of the sums of its group; says as what it was counted there.
    fn leave_group(
        &mut self,
        store: &Store,
        id: ShardId,
        before: &PlacementRecord,
    ) -> Result<u128, StoreError> {
        let (group, counted) = match self.cached.get(&id) {
            Some(shard) => (shard.group, shard.counted),
            None => {
                let (vector, digest) = self.state(store, id)?;
                (group_of(before).0, fingerprint(id, &vector, digest))
            }
        };
        self.add(group, id, 0_u128.wrapping_sub(counted));
        // A set of members that nothing has: sets would add up over the years.
        if self.sums.get(&group).is_some_and(|sums| sums.slots.iter().all(|sum| *sum == 0)) {
            self.sums.remove(&group);
        }
        Ok(counted)
    }

    /// Shards in memory.
    pub(crate) fn len(&self) -> usize {
        self.cached.len()
    }

    /// Look-ups that found a shard in memory, and that did not.
    pub(crate) fn looked_up(&self) -> (u64, u64) {
        (self.uses - self.misses, self.misses)
    }

    /// The shard if it is in memory.
    pub(crate) fn cached(&self, id: ShardId) -> Option<&Shard> {
        self.cached.get(&id)
    }

    /// The shard if it is in memory, to change; it is written with the turn.
    pub(crate) fn cached_mut(&mut self, id: ShardId) -> Option<&mut Shard> {
        let shard = self.cached.get_mut(&id)?;
        self.dirty.insert(id);
        Some(shard)
    }

    /// Makes fingerprints of keys.
    pub(crate) fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
    }

    /// The vector and digest of a shard, from memory or the store; empty when the shard is not known.
    pub(crate) fn state(&self, store: &Store, id: ShardId) -> Result<(Vector, Option<u128>), StoreError> {
        if let Some(shard) = self.cached.get(&id) {
            return Ok((shard.vector.clone(), shard.digest));
        }
        let VectorRow { vector, digest } = store.vector_row(id)?;
        let digest = if vector.is_empty() { Some(0) } else { self.fingerprints.sum(digest) };
        Ok((vector, digest))
    }

    /// Writes what rose in this turn, and moves the sums with it. The turn is committed next.
    pub(crate) fn write(&mut self, store: &mut Store) {
        for id in std::mem::take(&mut self.dirty) {
            let Some(shard) = self.cached.get_mut(&id) else { unreachable!("dirty shards stay in memory") };
            let key_id = self.fingerprints.key_id();
            let row = VectorRow {
                vector: shard.vector.clone(),
                digest: shard.digest.map(|sum| Digest { key_id, sum }),
            };
            store.put_row(Space::Shards, ShardKey::Vector(id).encode(), &row);
            let counted = fingerprint(id, &shard.vector, shard.digest);
            let difference = counted.wrapping_sub(shard.counted);
            shard.counted = counted;
            let group = shard.group;
            self.add(group, id, difference);
        }
    }

    /// The groups compared with a peer of `region`, with their sums.
    pub(crate) fn groups<'a>(&'a self, region: &'a RegionName) -> impl Iterator<Item = (u64, &'a Sums)> {
        self.sums.iter().filter(|(_, sums)| sums.members.contains(region)).map(|(group, sums)| (*group, sums))
    }

    /// One group.
    pub(crate) fn group(&self, group: u64) -> Option<&Sums> {
        self.sums.get(&group)
    }

    /// The group of a record's members, made when it is new.
    fn group_for(&mut self, record: &PlacementRecord) -> u64 {
        let (group, members) = group_of(record);
        self.sums.entry(group).or_insert_with(|| Sums { members, slots: vec![0; usize::from(SLOTS)].into() });
        group
    }

    fn add(&mut self, group: u64, id: ShardId, fingerprint: u128) {
        if let Some(sums) = self.sums.get_mut(&group) {
            let slot = &mut sums.slots[usize::from(id.slot().get())];
            *slot = slot.wrapping_add(fingerprint);
        }
    }

    /// Forgets the half that was not used for longest.
    fn evict(&mut self) {
        let mut uses: Vec<u64> = self.cached.values().map(|shard| shard.used).collect();
        let middle = uses.len() / 2;
        let (_, median, _) = uses.select_nth_unstable(middle);
        let median = *median;
        self.cached.retain(|id, shard| shard.used > median || self.dirty.contains(id));
    }
}
