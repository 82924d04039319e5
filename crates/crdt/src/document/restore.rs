//! Bringing a stored document up to date with the changes stored behind it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::Change;

use super::{Document, DocumentError};
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

/// Where the change that `bytes` begin with ends: magic, checksum, type, and a length.
fn change_end(bytes: &[u8]) -> Result<usize, DecodeError> {
    let mut r = Reader::new(bytes);
    r.take(9, "header of a change")?;
    let length = r.varint("length of a change")?;
    let length = usize::try_from(length).map_err(|_| r.invalid("length of a change"))?;
    r.take(length, "change")?;
    Ok(r.at())
}
