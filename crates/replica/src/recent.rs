//! The last commits' changes, kept in memory so that links that keep up never read the log.

use std::collections::VecDeque;

use bytes::Bytes;
use tropism_crdt::NodeId;
use tropism_storage::LogKey;

use crate::limits::{CHANGE_OVERHEAD_BYTES, RECENT_BYTES};

/// A logged change as the walk sees it.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub(crate) key: LogKey,
    pub(crate) bytes: Bytes,
    /// The peer that sent it here, who therefore has it.
    pub(crate) from: Option<NodeId>,
}

/// Changes by commit, oldest first, bounded in bytes.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    commits: VecDeque<(u64, Vec<Logged>)>,
    bytes: usize,
    /// Commits from this one on are complete here.
    since: u64,
    /// Steps of walks that were served from here, and that went to the log.
    looked_up: (u64, u64),
}

impl Recent {
    /// Starts behind `commit`: nothing before it is here.
    pub(crate) fn after(commit: u64) -> Self {
        Self { since: commit + 1, ..Self::default() }
    }

    pub(crate) fn push(&mut self, commit: u64, logged: Logged) {
        self.bytes += logged.bytes.len() + CHANGE_OVERHEAD_BYTES;
        match self.commits.back_mut() {
            Some((number, changes)) if *number == commit => changes.push(logged),
            _ => self.commits.push_back((commit, vec![logged])),
        }
        while self.bytes > RECENT_BYTES && self.commits.len() > 1 {
            if let Some((number, changes)) = self.commits.pop_front() {
                self.bytes -= changes.iter().map(|c| c.bytes.len() + CHANGE_OVERHEAD_BYTES).sum::<usize>();
                self.since = number + 1;
            }
        }
    }

    /// Commits and bytes held.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.commits.len(), self.bytes)
    }

    /// Counts steps of a walk: served from here, and not.
    pub(crate) fn count(&mut self, (here, log): (u64, u64)) {
        self.looked_up.0 += here;
        self.looked_up.1 += log;
    }

    /// Steps of walks that were served from here, and that went to the log.
    pub(crate) fn looked_up(&self) -> (u64, u64) {
        self.looked_up
    }

    /// Whether every change of `commit` and later ones is here.
    pub(crate) fn covers(&self, commit: u64) -> bool {
        commit >= self.since
    }

    /// Changes of one commit.
    pub(crate) fn len(&self, commit: u64) -> usize {
        self.next(commit).filter(|(number, _)| *number == commit).map_or(0, |(_, changes)| changes.len())
    }

    /// The first commit at or behind `from` that logged something, with its changes.
    pub(crate) fn next(&self, from: u64) -> Option<(u64, &[Logged])> {
        let at = self.commits.partition_point(|(number, _)| *number < from);
        self.commits.get(at).map(|(number, changes)| (*number, changes.as_slice()))
    }
}
