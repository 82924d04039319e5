//! Comparison of vectors: what the links missed is found, exactly, and asked for.
//!
//! Per set of members each node keeps, per slot, the sum of the hashes of its shards' `(id, vector, digest)`. Two nodes
//! compare all slots at once, then ranges of 64, then slots, then show each other the vectors of the shards there. A
//! difference that stays is not traffic under way, and its ranges are pulled. Where vectors are equal and digests are not,
//! something is wrong with the keys.

use std::collections::BTreeMap;

use tropism_crdt::{NodeId, Origin, Vector};
use tropism_placement::{RegionName, SLOTS, ShardId};
use tropism_storage::{Reads, ShardKey, ShardRow, Space, Store, StoreError, View};

use crate::frame::{Compare, FrameBody, ShardState, Vectors, Want};
use crate::limits::{OWED_US, SETTLE_US, SUSPECTS, VECTORS_PER_FRAME, WANTED_CHANGES};
use crate::replica::{Event, Now, Replica, ReplicaError};
use crate::shards::range_len;

/// Changes that a peer counts and we do not, while that may still settle by itself.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    due: BTreeMap<(ShardId, Origin), Suspect>,
}

#[derive(Debug)]
struct Suspect {
    due_us: u64,
    /// The last change that is missing.
    seq: u64,
    row: ShardRow,
}

/// What a peer may lack that no log reaches back to: it is shown every shard it holds with us, a page at a time, and each
/// page again until it has all that was shown first.
#[derive(Debug, Default)]
pub(crate) struct Owes {
    /// The shards of the page that it still lacks something of, as they were.
    page: BTreeMap<ShardId, Vector>,
    /// Where the next page begins; `None`: this is the last.
    next: Option<Vec<u8>>,
    begun: bool,
    pub(crate) due_us: u64,
}

impl Owes {
    /// Nothing of a shard is owed any more.
    pub(crate) fn forget(&mut self, shard: ShardId) {
        if self.page.remove(&shard).is_some() && self.page.is_empty() {
            self.due_us = 0; // the next page at once
        }
    }
}

impl Suspects {
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.values().map(|suspect| suspect.due_us).min()
    }

    pub(crate) fn forget(&mut self, shard: ShardId) {
        self.due.retain(|(of, _), _| *of != shard);
    }

    fn add(&mut self, due_us: u64, row: &ShardRow, origin: Origin, seq: u64) {
        if self.due.len() < SUSPECTS {
            let new = || Suspect { due_us, seq, row: row.clone() };
            let suspect = self.due.entry((row.id(), origin)).or_insert_with(new);
            suspect.seq = suspect.seq.max(seq);
            suspect.due_us = suspect.due_us.min(due_us);
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
            let commit = store.open_commit();
            self.send(from, FrameBody::Vectors(Vectors { shards, commit, answer: false, owed: false }));
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
                let record = self.held(&row);
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
        vectors: Vectors,
    ) -> Result<(), ReplicaError> {
        let Vectors { shards, commit, answer, owed } = vectors;
        let mut ours = Vec::new();
        // A link that owes us will not bring what is missing by itself.
        let due_us = if owed { now.mono_us } else { now.mono_us + SETTLE_US };
        for ShardState { row, vector: theirs, digest: their_digest } in
            shards.into_iter().take(VECTORS_PER_FRAME)
        {
            if !self.shares(&row, from) {
                continue;
            }
            let id = row.id();
            let (own, digest) = self.shards.state(store, id)?;
            let differ = digest.zip(their_digest).is_some_and(|(ours, theirs)| ours != theirs);
            let equal = own == theirs;
            if equal && differ {
                self.digests_differ(from, id);
            }
            // One of the two begins.
            let unmet = self.links.get_mut(&from).is_some_and(|link| link.unmet(now, id, equal));
            if self.identity.node < from && (equal && differ || unmet) {
                self.inspect(now, store, from, &row, equal)?;
            }
            if let Some(suspects) = self.links.get_mut(&from).and_then(|link| link.suspects()) {
                for (origin, seq) in theirs.risen_since(&own) {
                    suspects.add(due_us, &row, origin, seq);
                }
            }
            self.showed(from, commit, id, &theirs);
            ours.push(ShardState { row, vector: own, digest });
        }
        if let Some(link) = self.links.get_mut(&from) {
            link.counted.vectors += ours.len() as u64;
        }
        if let Some(link) = self.links.get_mut(&from) {
            link.settle_cursor();
        }
        if !answer {
            let commit = store.open_commit();
            self.send(from, FrameBody::Vectors(Vectors { shards: ours, commit, answer: true, owed: false }));
        }
        Ok(())
    }

    /// A peer shows what it has of a shard: as good as told.
    fn showed(&mut self, from: NodeId, commit: u64, id: ShardId, theirs: &Vector) {
        let own = self.origin;
        let Some(link) = self.links.get_mut(&from) else { return };
        for (origin, seq) in theirs.iter() {
            link.showed(commit, id, *origin, seq);
        }
        if let Some(owes) = link.owes()
            && owes.page.get(&id).is_some_and(|shown| theirs.dominates(shown))
        {
            owes.page.remove(&id);
            if owes.page.is_empty() {
                owes.due_us = 0; // the next page at once
            }
        }
        let region = link.region().clone();
        if theirs.get(&own) > 0 {
            self.acknowledged(id, theirs.get(&own), from, &region);
        }
    }

    /// Shows a peer some shards.
    pub(crate) fn show(
        &mut self,
        store: &Store,
        peer: NodeId,
        ids: &[ShardId],
        owed: bool,
    ) -> Result<(), ReplicaError> {
        let mut shards = Vec::new();
        for id in ids.iter().take(VECTORS_PER_FRAME) {
            let Some(row) = store.shard(*id)? else { continue };
            let (vector, digest) = self.shards.state(store, *id)?;
            shards.push(ShardState { row, vector, digest });
        }
        let commit = store.open_commit();
        self.send(peer, FrameBody::Vectors(Vectors { shards, commit, answer: false, owed }));
        Ok(())
    }

    /// Shows a peer the page of shards that is owed to it, or the next one.
    pub(crate) fn owed_due(&mut self, now: Now, store: &Store, peer: NodeId) -> Result<(), ReplicaError> {
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        let region = link.region().clone();
        let Some(owes) = link.owes().filter(|owes| owes.due_us <= now.mono_us) else { return Ok(()) };
        owes.due_us = now.mono_us + OWED_US;
        if owes.page.is_empty() {
            let from = if owes.begun { owes.next.take() } else { Some(Vec::new()) };
            let page = match from {
                Some(from) => self.page_of_shards(store, &region, &from)?,
                None => (BTreeMap::new(), None),
            };
            let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
            let Some(owes) = link.owes() else { return Ok(()) };
            owes.begun = true;
            (owes.page, owes.next) = page;
            if owes.page.is_empty() {
                link.quit();
                self.event(Event::Quit(peer));
                return Ok(());
            }
        }
        let Some(owes) = self.links.get_mut(&peer).and_then(|link| link.owes()) else { return Ok(()) };
        let ids: Vec<ShardId> = owes.page.keys().copied().collect();
        self.show(store, peer, &ids, true)
    }

    /// Some shards that are held with a region, with their vectors, and where the next ones are.
    #[allow(clippy::type_complexity, reason = "shards, and the place behind them")]
    fn page_of_shards(
        &self,
        store: &Store,
        region: &RegionName,
        from: &[u8],
    ) -> Result<(BTreeMap<ShardId, Vector>, Option<Vec<u8>>), ReplicaError> {
        let mut page = BTreeMap::new();
        let mut from = from.to_vec();
        loop {
            let (rows, next) = store.page(Space::Shards, &from, VECTORS_PER_FRAME)?;
            for (name, row) in rows {
                let Ok(ShardKey::Description(id)) = ShardKey::decode(&name) else { continue };
                let Ok(row) = <ShardRow as tropism_storage::rows::Row>::decode(&row) else { continue };
                let record = self.held(&row);
                if record.is_some_and(|record| record.members().any(|member| member == region)) {
                    let (vector, _) = self.shards.state(store, id)?;
                    if !vector.is_empty() {
                        page.insert(id, vector);
                    }
                }
            }
            match next {
                Some(next) if page.is_empty() => from = next,
                next => return Ok((page, next)),
            }
        }
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
        let (due, waiting): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut suspects.due)
            .into_iter()
            .partition(|(_, suspect)| suspect.due_us <= now.mono_us);
        suspects.due = waiting;
        for ((shard, origin), Suspect { seq: to, row, .. }) in due {
            if self.transfers.is_taking(shard) {
                continue; // it will be compared again
            }
            let from = self.shards.state(store, shard)?.0.get(&origin) + 1;
            if to >= from.saturating_add(WANTED_CHANGES) {
                self.below_floor(now, store, peer, row)?;
            } else if from <= to {
                self.want(peer, Want { shard, origin, from, to });
            }
        }
        Ok(())
    }
}
