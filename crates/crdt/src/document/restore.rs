//! Bringing a stored document up to date with the changes stored behind it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::Change;

use super::{Document, DocumentError};

impl Document {
    /// Applies changes of this node's own store, which passed the gate when they were stored.
    ///
    /// # Errors
    /// [`DocumentError::Damaged`]; the document must not be used then.
    pub fn restore(&mut self, changes: &[impl AsRef<[u8]>]) -> Result<(), DocumentError> {
        if changes.is_empty() {
            return Ok(());
        }
        let damaged = |problem| DocumentError::Damaged { problem };
        let parsed: Result<Vec<Change>, _> =
            changes.iter().map(|change| Change::from_bytes(change.as_ref().to_vec())).collect();
        let parsed = parsed.map_err(|error| damaged(error.to_string()))?;
        // Damaged pieces can make automerge panic; nothing outlives the call but its result.
        catch_unwind(AssertUnwindSafe(|| self.automerge.apply_changes(parsed)))
            .map_err(|_| damaged("automerge panicked".to_owned()))?
            .map_err(|error| damaged(error.to_string()))?;
        self.history_bytes += changes.iter().map(|change| change.as_ref().len()).sum::<usize>();
        (self.shown, self.bound) = (None, None);
        Ok(())
    }
}
