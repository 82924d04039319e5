//! The shards this node knows: a bounded cache in front of the store, and the sums that compare them.

use std::collections::BTreeMap;

use tropism_crdt::Vector;
use tropism_placement::{PlacementRecord, RegionName, SLOTS, ShardId};
use tropism_storage::{Reads, ShardKey, ShardRow, Space, Store, StoreError};

use crate::limits::CACHED_SHARDS;

/// What memory holds of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Shard {
    pub(crate) record: PlacementRecord,
    /// Which set of members it has.
    group: u64,
    pub(crate) vector: Vector,
    /// The vector when our origin last made a change here: what the next change's `deps` leave out. Empty when
    /// forgotten: then they say everything.
    pub(crate) said: Vector,
    used: u64,
}

/// The cache and the sums.
#[derive(Debug)]
pub(crate) struct Shards {
    cached: BTreeMap<ShardId, Shard>,
    uses: u64,
    misses: u64,
    sums: BTreeMap<u64, Sums>,
}

/// Per slot the sum of the hashes of `(shard, vector)` over the shards with one set of members.
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

fn fingerprint(shard: ShardId, vector: &Vector) -> u128 {
    if vector.is_empty() {
        return 0; // a shard without changes compares equal to one that is not known
    }
    let mut bytes = shard.0.to_vec();
    vector.encode(&mut bytes);
    xxhash_rust::xxh3::xxh3_128(&bytes)
}

impl Shards {
    /// Sums over everything the store knows; `record_of` says where a shard is held.
    pub(crate) fn open(
        store: &Store,
        record_of: impl Fn(&ShardRow) -> Option<PlacementRecord>,
    ) -> Result<Self, StoreError> {
        let mut shards = Self { cached: BTreeMap::new(), uses: 0, misses: 0, sums: BTreeMap::new() };
        for (row, vector) in store.shards()? {
            if let Some(record) = record_of(&row) {
                let id = row.id();
                let group = shards.group_for(&record);
                shards.add(group, id, fingerprint(id, &vector));
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
            let vector = if known { store.vector(id)? } else { Vector::EMPTY };
            if !known {
                store.put_row(Space::Shards, ShardKey::Description(id).encode(), row);
            }
            let record = record();
            let group = self.group_for(&record);
            let shard = Shard { record, group, vector, said: Vector::EMPTY, used: uses };
            self.cached.insert(id, shard);
        }
        let Some(shard) = self.cached.get_mut(&id) else { unreachable!("inserted above") };
        shard.used = uses;
        Ok(shard)
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

    /// The shard if it is in memory, to change.
    pub(crate) fn cached_mut(&mut self, id: ShardId) -> Option<&mut Shard> {
        self.cached.get_mut(&id)
    }

    /// Writes a shard's risen vector and moves the sums with it, in the same batch as the change.
    pub(crate) fn wrote(&mut self, store: &mut Store, id: ShardId, before: &Vector) {
        let Some(shard) = self.cached.get(&id) else { return };
        store.put_row(Space::Shards, ShardKey::Vector(id).encode(), &shard.vector);
        let difference = fingerprint(id, &shard.vector).wrapping_sub(fingerprint(id, before));
        self.add(shard.group, id, difference);
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
        self.cached.retain(|_, shard| shard.used > median);
    }
}
