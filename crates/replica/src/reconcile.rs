//! Comparison of vectors: what the links missed is found, exactly, and asked for.
//!
//! Per set of members each node keeps, per slot, the sum of the hashes of its shards' `(id, vector, digest)`. Two nodes
//! compare all slots at once, then ranges of 64, then slots, then show each other the vectors of the shards there. A
//! difference that stays is not traffic under way, and its ranges are pulled. Where vectors are equal and digests are not,
//! something is wrong with the keys.

use std::collections::BTreeMap;

use tropism_crdt::{NodeId, Origin};
use tropism_placement::{SLOTS, ShardId};
use tropism_storage::{ShardKey, ShardRow, Space, Store, StoreError, View};

use crate::frame::{Compare, FrameBody, ShardState, Want};
use crate::limits::{SETTLE_US, SUSPECTS, VECTORS_PER_FRAME};
use crate::replica::{Event, Now, Replica, ReplicaError, record_of};
use crate::shards::range_len;

/// Changes that a peer counts and we do not, while that may still settle by itself.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    due: BTreeMap<(ShardId, Origin), (u64, u64)>,
}

impl Suspects {
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.values().map(|(due, _)| *due).min()
    }

    fn add(&mut self, now: Now, shard: ShardId, origin: Origin, seq: u64) {
        if self.due.len() < SUSPECTS {
            let entry = self.due.entry((shard, origin)).or_insert((now.mono_us + SETTLE_US, seq));
            entry.1 = entry.1.max(seq);
        }
    }
}

impl Replica {
    /// Begins a comparison with a peer when it is time. The node with the smaller id begins.
    pub(crate) fn compare_due(&mut self, now: Now, peer: NodeId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if peer < self.identity.node || !link.compare_due(now) {
            return;
        }
        link.counted.compared += 1;
        let region = link.region().clone();
        let compares: Vec<Compare> = self
            .shards
            .groups(&region)
            .map(|(group, sums)| Compare { group, level: 0, sums: vec![(0, sums.sum(0, 0))] })
            .collect();
        for compare in compares {
            self.send(peer, FrameBody::Compare(compare));
        }
    }

    /// A peer shows sums: answers with the next level of the ranges that differ.
    pub(crate) fn compare(
        &mut self,
        store: &Store,
        from: NodeId,
        compare: Compare,
    ) -> Result<(), ReplicaError> {
        let Compare { group, level, sums } = compare;
        let known = self.shards.group(group);
        let mut differ: Vec<u16> = sums
            .into_iter()
            .filter(|(range, sum)| {
                u32::from(*range) < u32::from(SLOTS) / u32::from(range_len(level))
                    && known.map_or(0, |sums| sums.sum(level, *range)) != *sum
            })
            .map(|(range, _)| range)
            .collect();
        // Each range once, whatever the peer repeats: the answer is 64 times as long.
        differ.sort_unstable();
        differ.dedup();
        if differ.is_empty() {
            return Ok(());
        }
        if level == 0 {
            self.event(Event::Unequal(from));
            if let Some(link) = self.links.get_mut(&from) {
                link.counted.unequal += 1;
            }
        }
        if level >= 2 {
            let shards = self.vectors_of(store, group, &differ)?;
            self.send(from, FrameBody::Vectors { shards, answer: false });
            return Ok(());
        }
        let children = range_len(level) / range_len(level + 1);
        let sums = differ
            .iter()
            .flat_map(|range| range * children..(range + 1) * children)
            .map(|range| (range, self.shards.group(group).map_or(0, |sums| sums.sum(level + 1, range))))
            .collect();
        self.send(from, FrameBody::Compare(Compare { group, level: level + 1, sums }));
        Ok(())
    }

    /// Our shards of a group in some slots, with their vectors.
    fn vectors_of(&self, store: &Store, group: u64, slots: &[u16]) -> Result<Vec<ShardState>, ReplicaError> {
        let mut shards = Vec::new();
        for slot in slots {
            for row in store.scan(Space::Shards, &slot.to_be_bytes(), &(slot + 1).to_be_bytes()) {
                let (key, value) = row.map_err(StoreError::from)?;
                let Ok(ShardKey::Description(id)) = ShardKey::decode(&key) else { continue };
                let Ok(row) = <ShardRow as tropism_storage::rows::Row>::decode(&value) else { continue };
                let record = record_of(&self.identity.rules, &row);
                if record.is_some_and(|record| crate::shards::group_of(&record).0 == group) {
                    let (vector, digest) = self.shards.state(store, id)?;
                    shards.push(ShardState { row, vector, digest });
                }
                if shards.len() >= VECTORS_PER_FRAME {
                    return Ok(shards);
                }
            }
        }
        Ok(shards)
    }

    /// A peer shows vectors: notes what it has and we lack, and shows ours if it wants.
    pub(crate) fn vectors(
        &mut self,
        now: Now,
        store: &Store,
        from: NodeId,
        shards: Vec<ShardState>,
        answer: bool,
    ) -> Result<(), ReplicaError> {
        let mut ours = Vec::new();
        for ShardState { row, vector: theirs, digest: their_digest } in
            shards.into_iter().take(VECTORS_PER_FRAME)
        {
            if record_of(&self.identity.rules, &row).is_none() {
                continue;
            }
            let id = row.id();
            let (own, digest) = self.shards.state(store, id)?;
            if own == theirs && digest.zip(their_digest).is_some_and(|(ours, theirs)| ours != theirs) {
                self.event(Event::DigestsDiffer { peer: from, shard: id });
            }
            if let Some(suspects) = self.links.get_mut(&from).and_then(|link| link.suspects()) {
                for (origin, seq) in theirs.risen_since(&own) {
                    suspects.add(now, id, origin, seq);
                }
            }
            ours.push(ShardState { row, vector: own, digest });
        }
        if let Some(link) = self.links.get_mut(&from) {
            link.counted.vectors += ours.len() as u64;
        }
        if !answer {
            self.send(from, FrameBody::Vectors { shards: ours, answer: true });
        }
        Ok(())
    }

    /// Asks a peer for what it showed to have and what did not come by itself.
    pub(crate) fn want_suspects(
        &mut self,
        now: Now,
        store: &Store,
        peer: NodeId,
    ) -> Result<(), ReplicaError> {
        let Some(suspects) = self.links.get_mut(&peer).and_then(|link| link.suspects()) else {
            return Ok(());
        };
        let due: Vec<_> =
            suspects.due.iter().filter(|(_, (due, _))| *due <= now.mono_us).map(|(k, v)| (*k, v.1)).collect();
        for ((shard, origin), to) in due {
            let from = self.shards.state(store, shard)?.0.get(&origin) + 1;
            if let Some(suspects) = self.links.get_mut(&peer).and_then(|link| link.suspects()) {
                suspects.due.remove(&(shard, origin));
            }
            if from <= to {
                self.want(peer, Want { shard, origin, from, to });
            }
        }
        Ok(())
    }
}
