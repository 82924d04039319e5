//! Bringing a stored document up to date with the changes stored behind it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::Change;

use super::gate::origin_of;
use super::{Document, DocumentError, Heads};
use crate::codec::{DecodeError, Reader};

impl Document {
    /// Applies changes of this node's own store, which passed the gate when they were stored; each piece holds one or more,
    /// one behind the other.
    ///
    /// # Errors
    /// [`DocumentError::Damaged`]; the document must not be used then.
    pub fn restore(&mut self, pieces: &[impl AsRef<[u8]>]) -> Result<(), DocumentError> {
        if pieces.is_empty() {
            return Ok(());
        }
        self.settle()?;
        let damaged = |problem| DocumentError::Damaged { problem };
        let mut changes = Vec::new();
        for piece in pieces {
            let mut rest = piece.as_ref();
            while !rest.is_empty() {
                let end = change_end(rest).map_err(|error| damaged(error.to_string()))?;
                let (change, behind) = rest.split_at(end);
                let change = Change::from_bytes(change.to_vec());
                changes.push(change.map_err(|error| damaged(error.to_string()))?);
                rest = behind;
            }
        }
        // Damaged pieces can make automerge panic; nothing outlives the call but its result.
        catch_unwind(AssertUnwindSafe(|| self.automerge.apply_changes(changes)))
            .map_err(|_| damaged("automerge panicked".to_owned()))?
            .map_err(|error| damaged(error.to_string()))?;
        self.history_bytes += pieces.iter().map(|piece| piece.as_ref().len()).sum::<usize>();
        (self.shown, self.bound) = (None, None);
        self.ahead.forget();
        Ok(())
    }
}

/// A raw change and the origin that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeChange {
    /// The origin's bytes.
    pub origin: Vec<u8>,
    /// The change.
    pub bytes: Vec<u8>,
}

impl Document {
    /// A raw change with the origin that made it; `None` where that cannot be told.
    pub fn made_by(raw: &[u8]) -> Option<MadeChange> {
        let change = catch_unwind(AssertUnwindSafe(|| Change::from_bytes(raw.to_vec()))).ok()?.ok()?;
        let origin = origin_of(change.actor_id().to_bytes())?.to_vec();
        Some(MadeChange { origin, bytes: raw.to_vec() })
    }

    /// The raw changes of `self` that `other` has not seen, in causal order.
    ///
    /// # Errors
    /// [`DocumentError::Damaged`] where an author is no origin.
    pub fn changes_beyond(&self, other: &Self) -> Result<Vec<MadeChange>, DocumentError> {
        let damaged = |problem: &str| DocumentError::Damaged { problem: problem.to_owned() };
        let ours = self.settled().ok_or_else(|| damaged("it does not settle"))?;
        let mut missing = Vec::new();
        for change in ours.get_changes(&[]) {
            if !other.has_seen(&Heads(vec![change.hash().0])) {
                let origin = origin_of(change.actor_id().to_bytes());
                let origin = origin.ok_or_else(|| damaged("a change of an actor that is no origin"))?;
                missing.push(MadeChange { origin: origin.to_vec(), bytes: change.raw_bytes().to_vec() });
            }
        }
        Ok(missing)
    }
}

/// Where the change that `bytes` begin with ends: magic, checksum, type, and a length.
fn change_end(bytes: &[u8]) -> Result<usize, DecodeError> {
    let mut r = Reader::new(bytes);
    r.take(9, "header of a change")?;
    let length = r.varint("length of a change")?;
    let length = usize::try_from(length).map_err(|_| r.invalid("length of a change"))?;
    r.take(length, "change")?;
    Ok(r.at())
}
