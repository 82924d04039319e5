//! Writes that wait for other regions' disks.

use std::collections::{BTreeMap, BTreeSet};

use tropism_crdt::Origin;
use tropism_placement::{RegionName, ScopeName, ShardId};
use tropism_storage::LogKey;

use crate::limits::WAITING_WRITES;
use crate::replica::Ticket;
use crate::write::WriteDone;

/// One of them.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) ticket: Ticket,
    pub(crate) scope: ScopeName,
    pub(crate) done: WriteDone,
    pub(crate) needed: usize,
    pub(crate) regions: Vec<RegionName>,
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

    /// A region has everything of `origin` in `shard` up to `seq` on its disk: those that need no more, taken out.
    pub(crate) fn acknowledged(
        &mut self,
        shard: ShardId,
        origin: Origin,
        seq: u64,
        region: &RegionName,
        serves: impl Fn(&ScopeName) -> bool,
    ) -> Vec<Waiting> {
        let (from, to) = (LogKey { shard, origin, seq: 0 }, LogKey { shard, origin, seq });
        let mut whole = Vec::new();
        for (key, waiting) in self.writes.range_mut(from..=to) {
            if !serves(&waiting.scope) {
                continue;
            }
            if !waiting.regions.contains(region) {
                waiting.regions.push(region.clone());
            }
            if waiting.regions.len() >= waiting.needed {
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
        let origin = Origin { node: NodeId::new("n").unwrap(), incarnation: 1, random: 2 };
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
            let write = Waiting { ticket: seq, scope, done, needed: 1, regions: Vec::new(), deadline_us };
            waiting.insert(LogKey { shard, origin, seq }, write);
        }
        assert_eq!(waiting.next_deadline(), Some(10));
        let region = RegionName::new("r").unwrap();
        let acknowledged = waiting.acknowledged(shard, origin, 2, &region, |_| true);
        assert_eq!(acknowledged.iter().map(|write| write.ticket).collect::<Vec<_>>(), [1, 2]);
        assert!(waiting.give_up(9).is_none());
        let given_up: Vec<Ticket> =
            std::iter::from_fn(|| waiting.give_up(20)).map(|write| write.ticket).collect();
        assert_eq!(given_up, [4, 3]);
        assert_eq!((waiting.len(), waiting.next_deadline()), (0, None));
    }
}
