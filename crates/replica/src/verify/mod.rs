//! Verification: whether the members of a shard hold the same, and if not, which keys differ and why.
//!
//! Somebody asks a node. It takes a snapshot of the shard, asks every other member to do the same once it has everything of
//! that vector, and both look at all their rows, some at a time: what the rows add up to is compared, not what writes have
//! moved, so a row that rotted a moment ago is found. Keys of changes that only one of both had at its moment are left out,
//! by their logs: a shard that is written all the time does not look as if it differed. Where the rest adds up to something
//! else, a [sketch](crate::sketch) of it tells which fingerprints differ (of very many, those of one key in so many), and a
//! last look at the rows which keys these are, and what both hold of them.
//!
//! ```text
//! asked node                      member
//! Rows { vector }  ------------>  waits for it, takes a snapshot, looks at every row
//!                  <------------  its vector, digest, sum, keys beyond, keys that it cannot serve
//! Cells            ------------>  where that is not the same: a sketch, without the keys of changes that one lacks
//!                  <------------
//! Keys             ------------>  what the keys of these fingerprints are
//!                  <------------
//! End              ------------>  the snapshot can go
//! ```
//!
//! Nothing is written, here or there, and nothing repaired: members find and repair what differs by themselves
//! (`inspect.rs`). Nothing of it is durable. A frame that is lost is sent again; what did not come round by the caller's
//! deadline is told as such.

mod answer;
mod asked;
mod asker;
mod messages;
mod report;
mod scan;

use tropism_crdt::{NodeId, Vector};
use tropism_placement::ShardId;
use tropism_storage::{Reads, ShardKey, Space, Store, StoreError, TransferRow};

use self::asked::Asked;
use self::asker::Verification;
pub use self::messages::{MemberRows, Verified, Verify, VerifyAnswer, VerifyAsk};
pub use self::report::{
    DigestState, KeyHeld, Lacks, MemberState, Rows, VerifiedKey, VerifiedMember, VerifiedShard, VerifyCall,
    VerifyError, VerifyResult,
};
pub use self::scan::RowsSeen;
use crate::limits::{VERIFY_ROWS, VERIFY_STEP_US};
use crate::replica::{Now, Replica, ReplicaError};
use crate::transfer::Snapshot;

/// Verifications under way, of this node and of peers that ask it.
///
/// Invariants: at most [`VERIFICATIONS`](crate::limits::VERIFICATIONS) of its own, and of each peer.
#[derive(Debug, Default)]
pub(crate) struct Verifications {
    running: Vec<Verification>,
    asked: Vec<Asked>,
    due_us: u64,
    next_id: u64,
    turns: usize,
}

impl Verifications {
    /// `first_id` differs from life to life, so that a peer does not take one for another.
    pub(crate) fn open(first_id: u64) -> Self {
        Self { next_id: first_id, ..Self::default() }
    }

    pub(crate) fn next_deadline(&self, now: Now) -> Option<u64> {
        let waits = self.running.iter().map(Verification::deadline);
        let waits = waits.chain(self.asked.iter().map(Asked::deadline)).map(|at| at.max(now.mono_us + 1));
        let scans =
            self.asked.iter().any(Asked::is_scanning) || self.running.iter().any(Verification::is_scanning);
        waits.chain(scans.then_some(self.due_us.max(now.mono_us + 1))).min()
    }

    /// The link to a node is gone.
    pub(crate) fn forget(&mut self, peer: NodeId) {
        self.asked.retain(|asked| asked.peer != peer);
        self.running.iter_mut().for_each(|verification| verification.lost(peer));
    }
}

impl Replica {
    /// Goes on with what is asked of this node, and with what it asks.
    pub(crate) fn verify_due(&mut self, now: Now, store: &Store) -> Result<(), ReplicaError> {
        let Verifications { running, asked, .. } = &self.verifications;
        if running.is_empty() && asked.is_empty() {
            return Ok(());
        }
        if self.verifications.due_us <= now.mono_us {
            self.scan_some(now)?;
        }
        self.asked_due(now, store)?;
        self.running_due(now, store)
    }

    /// Looks at some rows for each scan, in turn.
    fn scan_some(&mut self, now: Now) -> Result<(), ReplicaError> {
        let prints = self.shards.fingerprints();
        let Verifications { running, asked, due_us, turns, .. } = &mut self.verifications;
        let mut scans: Vec<_> = asked
            .iter_mut()
            .filter_map(Asked::scanning)
            .chain(running.iter_mut().filter_map(Verification::scanning))
            .collect();
        if scans.is_empty() {
            return Ok(());
        }
        *turns = turns.wrapping_add(1);
        *due_us = now.mono_us + VERIFY_STEP_US;
        let first = *turns % scans.len();
        scans.rotate_left(first);
        let mut budget = VERIFY_ROWS;
        for (scan, view, shard) in scans {
            if budget == 0 {
                break;
            }
            scan.step(&*view.0, shard, prints, &mut budget)?;
        }
        Ok(())
    }

    /// A snapshot of a shard with its vector and digest, unless keys of it are staged that its vector counts.
    fn verifiable(
        &self,
        store: &Store,
        shard: ShardId,
    ) -> Result<Option<(Snapshot, Vector, Option<u128>)>, StoreError> {
        let view = store.snapshot();
        let transfer = view.row::<TransferRow>(Space::Shards, &ShardKey::Transfer(shard).encode())?;
        if transfer.is_some_and(|transfer| transfer.whole) {
            return Ok(None);
        }
        let state = view.vector_row(shard)?;
        let digest = match state.vector.is_empty() {
            true => Some(0),
            false => self.shards.fingerprints().sum(state.digest),
        };
        Ok(Some((Snapshot(view), state.vector, digest)))
    }
}
