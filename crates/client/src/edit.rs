//! Edits of a document whose meaning survives merging.

use bytes::Bytes;
use serde::Serialize;
use tropism_wire::v1::{PatchOperation, TextSplice, patch_operation::Action};

use crate::error::Error;
use crate::value;

/// Edits of one document, carried out in order, all or none. Paths are JSON Pointers (`/items/0/n`). At most 1000.
///
/// Unlike a put they say what was meant, so edits made in two regions at once both hold: increments add up, appended items
/// are all there, texts are spliced into each other.
///
/// ```
/// use tropism_client::Edit;
/// let edit = Edit::new().increment("/items/0/n", 1).append("/log", &"one more").set("/note", &"hello");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Edit {
    operations: Vec<PatchOperation>,
    /// The first value that is no JSON.
    failed: Option<Error>,
}

impl Edit {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key of an object, or replaces an item of a list.
    #[must_use]
    pub fn set<T: Serialize + ?Sized>(self, path: &str, value: &T) -> Self {
        self.with_json(path, value, Action::Set)
    }

    /// Removes a key or item.
    #[must_use]
    pub fn remove(self, path: &str) -> Self {
        self.with(path, Action::Remove(true))
    }

    /// Adds to a counter. Counters are where the policy says so; a plain number is refused (`NOT_A_COUNTER`).
    #[must_use]
    pub fn increment(self, path: &str, by: i64) -> Self {
        self.with(path, Action::Increment(by))
    }

    /// Inserts before the list item that the path names; a last segment `-` is the end.
    #[must_use]
    pub fn insert<T: Serialize + ?Sized>(self, path: &str, value: &T) -> Self {
        self.with_json(path, value, Action::Insert)
    }

    /// Appends to the list that the path names.
    #[must_use]
    pub fn append<T: Serialize + ?Sized>(self, path: &str, value: &T) -> Self {
        self.with_json(path, value, Action::Append)
    }

    /// Edits a text: at `index`, `delete` characters go, then `insert` comes. Counted in Unicode scalar values from 0. Texts
    /// are where the policy says so; other strings are refused.
    #[must_use]
    pub fn splice(self, path: &str, index: u64, delete: u64, insert: &str) -> Self {
        self.with(path, Action::SpliceText(TextSplice { index, delete, insert: insert.to_owned() }))
    }

    /// Refuses everything (`TEST_FAILED`) unless this value is there.
    #[must_use]
    pub fn test<T: Serialize + ?Sized>(self, path: &str, value: &T) -> Self {
        self.with_json(path, value, Action::Test)
    }

    fn with(mut self, path: &str, action: Action) -> Self {
        self.operations.push(PatchOperation { path: path.to_owned(), action: Some(action) });
        self
    }

    fn with_json<T: Serialize + ?Sized>(
        mut self,
        path: &str,
        value: &T,
        action: impl FnOnce(Bytes) -> Action,
    ) -> Self {
        match value::json(value) {
            Ok(json) => self.with(path, action(json)),
            Err(error) => {
                self.failed.get_or_insert(error);
                self
            }
        }
    }

    pub(crate) fn operations(self) -> Result<Vec<PatchOperation>, Error> {
        self.failed.map_or(Ok(self.operations), Err)
    }
}
