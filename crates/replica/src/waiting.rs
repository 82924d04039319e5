//! Writes that wait for other disks: of other owners in their region, and of other regions.

use std::collections::{BTreeMap, BTreeSet};

use tropism_crdt::{NodeId, Origin};
use tropism_placement::{RegionName, ScopeName, ShardId};
use tropism_storage::LogKey;

use crate::limits::WAITING_WRITES;
use crate::replica::Ticket;
use crate::write::WriteDone;

/// Whose disks a write has to be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Regions, this one among them.
    pub(crate) regions: usize,
    /// Owners in this region, this node among them.
    pub(crate) owners: usize,
}

impl Needs {
    /// This node's disk is enough.
    pub(crate) const OWN: Self = Self { regions: 1, owners: 1 };
}

/// Whose disks a write is on, as far as they have told.
#[derive(Debug, Clone)]
pub(crate) struct OnDisks {
    /// Regions, this one among them.
    pub(crate) regions: Vec<RegionName>,
    /// Owners in this region, this node among them.
    pub(crate) owners: BTreeSet<NodeId>,
}

impl OnDisks {
    /// This node's.
    pub(crate) fn own(node: NodeId, region: &RegionName) -> Self {
        Self { regions: vec![region.clone()], owners: BTreeSet::from([node]) }
    }

    /// Another node's.
    pub(crate) fn add(&mut self, node: NodeId, region: &RegionName) {
        if self.regions.first() == Some(region) {
            self.owners.insert(node);
        } else if !self.regions.contains(region) {
            self.regions.push(region.clone());
        }
    }

    pub(crate) fn suffice(&self, needs: Needs) -> bool {
        self.regions.len() >= needs.regions && self.owners.len() >= needs.owners
    }
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) ticket: Ticket,
    pub(crate) scope: ScopeName,
    pub(crate) done: WriteDone,
    pub(crate) needs: Needs,
    pub(crate) on: OnDisks,
    pub(crate) deadline_us: u64,
}

/// All of them.
///
/// Invariants: at most [`WAITING_WRITES`]; `deadlines` holds exactly the deadline of each.
#[derive(Debug, Default)]
pub(crate) struct WaitingWrites {
    writes: BTreeMap<LogKey, Waiting>,
    deadlines: BTreeSet<(u64, LogKey)>,
}

impl WaitingWrites {
    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }

    pub(crate) fn insert(&mut self, key: LogKey, waiting: Waiting) {
        assert!(self.len() < WAITING_WRITES, "the bound is checked before the write has an effect");
        self.deadlines.insert((waiting.deadline_us, key));
        self.writes.insert(key, waiting);
    }

    /// When the next gives up.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline_us, _)| *deadline_us)
    }

    /// One whose time is over, taken out.
    pub(crate) fn give_up(&mut self, now_us: u64) -> Option<Waiting> {
        let (deadline_us, key) = self.deadlines.first().copied()?;
        if deadline_us > now_us { None } else { self.remove(&key) }
    }

    /// A node has everything of `origin` in `shard` up to `seq` on its disk: those that need no more, taken out.
    pub(crate) fn acknowledged(
        &mut self,
        shard: ShardId,
        origin: Origin,
        seq: u64,
        (node, region): (NodeId, &RegionName),
        serves: impl Fn(&ScopeName) -> bool,
    ) -> Vec<Waiting> {
        let (from, to) = (LogKey { shard, origin, seq: 0 }, LogKey { shard, origin, seq });
        let mut whole = Vec::new();
        for (key, waiting) in self.writes.range_mut(from..=to) {
            if !serves(&waiting.scope) {
                continue;
            }
            waiting.on.add(node, region);
            if waiting.on.suffice(waiting.needs) {
                whole.push(*key);
            }
        }
        whole.iter().filter_map(|key| self.remove(key)).collect()
    }

    fn remove(&mut self, key: &LogKey) -> Option<Waiting> {
        let waiting = self.writes.remove(key)?;
        self.deadlines.remove(&(waiting.deadline_us, *key));
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use bytes::Bytes;
    use tropism_crdt::{NodeId, Stamp};

    use super::*;

    #[test]
    fn writes_give_up_in_the_order_of_their_deadlines_and_an_acknowledged_one_has_none() {
        let node = NodeId::new("n").unwrap();
        let origin = Origin { node, incarnation: 1, random: 2 };
        let region = RegionName::new("r").unwrap();
        let shard = ShardId([1; 16]);
        let mut waiting = WaitingWrites::default();
        for (seq, deadline_us) in [(1, 30), (2, 10), (3, 20), (4, 10)] {
            let done = WriteDone {
                commit: 0,
                shard,
                change: Some((origin, seq)),
                stamp: Stamp::ZERO,
                version: Bytes::new(),
                existed: false,
                counter: None,
                expires_at_ms: None,
                replayed: false,
            };
            let scope = ScopeName::new("s").unwrap();
            let on = OnDisks::own(node, &region);
            let write = Waiting { ticket: seq, scope, done, needs: Needs::OWN, on, deadline_us };
            waiting.insert(LogKey { shard, origin, seq }, write);
        }
        assert_eq!(waiting.next_deadline(), Some(10));
        let acknowledged = waiting.acknowledged(shard, origin, 2, (node, &region), |_| true);
        assert_eq!(acknowledged.iter().map(|write| write.ticket).collect::<Vec<_>>(), [1, 2]);
        assert!(waiting.give_up(9).is_none());
        let given_up: Vec<Ticket> =
            std::iter::from_fn(|| waiting.give_up(20)).map(|write| write.ticket).collect();
        assert_eq!(given_up, [4, 3]);
        assert_eq!((waiting.len(), waiting.next_deadline()), (0, None));
    }

    #[test]
    fn owners_of_the_own_region_and_other_regions_are_counted_apart() {
        let [own, near, far] = ["own", "near", "far"].map(|name| NodeId::new(name).unwrap());
        let [here, there] = ["here", "there"].map(|name| RegionName::new(name).unwrap());
        let needs = |regions, owners| Needs { regions, owners };
        let mut on = OnDisks::own(own, &here);
        assert!(on.suffice(Needs::OWN) && !on.suffice(needs(1, 2)) && !on.suffice(needs(2, 1)));
        on.add(far, &there);
        assert!(
            on.suffice(needs(2, 1)) && !on.suffice(needs(1, 2)),
            "another region is no owner of this one"
        );
        on.add(near, &here);
        on.add(near, &here);
        assert!(on.suffice(needs(2, 2)) && !on.suffice(needs(1, 3)), "nobody counts twice");
    }
}
