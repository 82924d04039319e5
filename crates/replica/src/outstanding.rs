//! What a link has under way: changes sent to the peer, or left to others, that it has not told back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tropism_crdt::Origin;
use tropism_placement::ShardId;
use tropism_storage::LogKey;

/// Changes sent to the peer, or left to others, that it has not told back.
///
/// Invariant: `commits` counts exactly the entries of `changes`; `bytes` sums exactly those that were sent.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    changes: BTreeMap<(ShardId, Origin), VecDeque<Sent>>,
    /// How many changes of each of our commits.
    pub(crate) commits: BTreeMap<u64, usize>,
    /// Left to others: `(due, key)`; sent by us when due.
    pub(crate) left: BTreeSet<(u64, LogKey)>,
    /// How many changes, and bytes of those that were sent.
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
struct Sent {
    seq: u64,
    commit: u64,
    /// 0: left to others.
    bytes: usize,
    due_us: u64,
}

impl Outstanding {
    /// A change of a commit was sent, or with 0 bytes left to others until `due_us`.
    pub(crate) fn add(&mut self, key: LogKey, commit: u64, bytes: usize, due_us: u64) {
        self.changes.entry((key.shard, key.origin)).or_default().push_back(Sent {
            seq: key.seq,
            commit,
            bytes,
            due_us,
        });
        *self.commits.entry(commit).or_insert(0) += 1;
        self.count += 1;
        self.bytes += bytes;
        if bytes == 0 {
            self.left.insert((due_us, key));
        }
    }

    /// The peer has everything of `origin` in `shard` up to `seq`; says whether that was news.
    pub(crate) fn told(&mut self, shard: ShardId, origin: Origin, seq: u64) -> bool {
        let Some(sent) = self.changes.get_mut(&(shard, origin)) else { return false };
        let before = self.count;
        sent.retain(|sent| {
            if sent.seq > seq {
                return true;
            }
            self.count -= 1;
            self.bytes -= sent.bytes;
            if sent.bytes == 0 {
                self.left.remove(&(sent.due_us, LogKey { shard, origin, seq: sent.seq }));
            }
            if let Some(count) = self.commits.get_mut(&sent.commit) {
                *count -= 1;
                if *count == 0 {
                    self.commits.remove(&sent.commit);
                }
            }
            false
        });
        if sent.is_empty() {
            self.changes.remove(&(shard, origin));
        }
        before != self.count
    }

    /// The peer gets nothing more of a shard.
    pub(crate) fn forget(&mut self, shard: ShardId) {
        let of: Vec<Origin> = self
            .changes
            .range((shard, Origin::FIRST)..)
            .take_while(|((of, _), _)| *of == shard)
            .map(|((_, origin), _)| *origin)
            .collect();
        for origin in of {
            self.told(shard, origin, u64::MAX);
        }
    }

    /// What was left to others cannot be sent: it is looked at again later.
    pub(crate) fn postpone(&mut self, key: LogKey, due_us: u64, later_us: u64) {
        self.left.remove(&(due_us, key));
        let entry = self.changes.get_mut(&(key.shard, key.origin));
        if let Some(sent) = entry.and_then(|sent| sent.iter_mut().find(|sent| sent.seq == key.seq)) {
            sent.due_us = later_us;
            self.left.insert((later_us, key));
        }
    }

    /// What was left to others and is now sent by us.
    pub(crate) fn sent(&mut self, key: LogKey, due_us: u64, bytes: usize) {
        self.left.remove(&(due_us, key));
        let entry = self.changes.get_mut(&(key.shard, key.origin));
        if let Some(sent) = entry.and_then(|sent| sent.iter_mut().find(|sent| sent.seq == key.seq)) {
            sent.bytes = bytes;
            self.bytes += bytes;
        }
    }
}
