//! What a document's history tells: who changed it when, and what it showed at a time.
//!
//! Automerge keeps every change with its author, a time to the second that its author noted, and what it had seen. So
//! each change names a version: the document as its author left it.

use automerge::{Change, ChangeHash, ReadDoc};

use super::gate::origin_of;
use super::show::View;
use super::{Document, DocumentError, Heads};
use crate::Origin;
use crate::codec::Reader;

/// A change of a document's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its hash: alone, the version that its author left.
    pub hash: [u8; 32],
    /// Who made it; `None` where the author is no origin, which no change that passed the gate has.
    pub origin: Option<Origin>,
    /// When, by its stamp, in whole seconds of Unix time.
    pub time_seconds: i64,
    /// The number of its first operation: above those of everything that it had seen.
    pub first_op: u64,
    /// How many operations it has: one for each value, key and character of text written or removed.
    pub operations: u64,
    /// What it was made on: the version that its author saw.
    pub on: Heads,
}

impl Made {
    /// What the newest change has the most of, the same at every member: a change comes behind all that it had seen.
    pub fn order(&self) -> Order {
        Order { time_seconds: self.time_seconds, first_op: self.first_op, hash: self.hash }
    }
}

/// Where a change stands in a document's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    /// When it was made.
    pub time_seconds: i64,
    /// The number of its first operation.
    pub first_op: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// The origin that an automerge actor is of.
pub(super) fn author(actor: &[u8]) -> Option<Origin> {
    Origin::decode(&mut Reader::new(origin_of(actor)?)).ok()
}

impl Document {
    /// Every change, the newest first.
    ///
    /// # Errors
    /// Automerge does not take what is ahead of it, a defect here: the document must be forgotten then.
    pub fn made_changes(&mut self) -> Result<Vec<Made>, DocumentError> {
        self.settle()?;
        let mut made: Vec<Made> = self
            .automerge
            .get_changes_meta(&[])
            .into_iter()
            .map(|meta| Made {
                hash: meta.hash.0,
                origin: author(meta.actor.to_bytes()),
                time_seconds: meta.timestamp,
                first_op: meta.start_op,
                operations: (meta.max_op + 1).saturating_sub(meta.start_op),
                on: Heads::from_hashes(meta.deps.iter().map(|hash| hash.0).collect()),
            })
            .collect();
        made.sort_by_key(|made| std::cmp::Reverse(made.order()));
        Ok(made)
    }

    /// Bytes of a change as it was sent; `None` when it is not known. Makes the change again: some 10 us and more.
    pub fn change_bytes(&self, hash: [u8; 32]) -> Option<usize> {
        let change: Option<Change> = self.automerge.get_change_by_hash(&ChangeHash(hash));
        change.map(|change| change.raw_bytes().len())
    }

    /// What the document showed at a version, as canonical JSON; `None` when the version is unknown.
    pub fn canonical_at(&self, heads: &Heads) -> Option<Vec<u8>> {
        if !self.has_seen(heads) {
            return None;
        }
        let automerge = self.settled()?;
        Some(View::at(&*automerge, heads.to_automerge()).canonical().0)
    }
}

/// The version that everything made up to a time adds up to, of what [`Document::made_changes`] gave. A change is never
/// stamped before what it had seen, so nothing of it is missing.
pub fn heads_until(made: &[Made], time_seconds: i64) -> Heads {
    let until = || made.iter().filter(|made| made.time_seconds <= time_seconds);
    let seen: std::collections::BTreeSet<&[u8; 32]> = until().flat_map(|made| made.on.hashes()).collect();
    Heads::from_hashes(until().map(|made| made.hash).filter(|hash| !seen.contains(hash)).collect())
}
