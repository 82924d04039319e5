//! The documents' histories: a cache bounded in bytes in front of their pieces in the store.
//!
//! A history is stored as a saved document (part 0) and the changes since (parts 1, 2, ...). A small document is saved
//! anew with each write; a long one gets a piece per write and is saved again when the pieces have grown to its size.

use std::collections::BTreeMap;

use thiserror::Error;
use tropism_crdt::Origin;
use tropism_crdt::document::{Document, DocumentError};
use tropism_placement::{Policy, ScopeName, ShardId};
use tropism_storage::{EditKey, Space, Store, StoreError};

use crate::limits::{LONG_HISTORY_PERCENT, NAMED_IN_STATUS};

/// Saved documents up to this many bytes are written whole with each write: one row of the store costs as much.
const SAVE_WHOLE_BYTES: usize = 4 * 1024;

/// A document in memory, and what the store holds of it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) document: Document,
    life: u64,
    /// Size of part 0.
    saved_bytes: usize,
    /// Parts behind it.
    parts: u64,
    parts_bytes: usize,
    /// As counted in the cache.
    cost: usize,
    used: u64,
}

/// The cache. What was written in the open batch stays in it until the batch is committed.
#[derive(Debug)]
pub(crate) struct Documents {
    loaded: BTreeMap<(ShardId, String), Loaded>,
    actor: Vec<u8>,
    bytes: usize,
    limit: usize,
    uses: u64,
    misses: u64,
    long: BTreeMap<(ShardId, String), LongHistory>,
}

/// A document that is filling its history budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongHistory {
    /// Its scope.
    pub scope: ScopeName,
    /// Its key.
    pub key: String,
    /// Bytes of its history, and what the policy allows.
    pub bytes: (u64, u64),
    /// Changes in its history, and what the policy allows.
    pub changes: (u64, u64),
}

impl LongHistory {
    /// How much of the budget is used, in percent of the one that is fuller.
    fn percent(&self) -> u64 {
        let of = |(used, allowed): (u64, u64)| used.saturating_mul(100) / allowed.max(1);
        of(self.bytes).max(of(self.changes))
    }
}

/// Why a document could not be had.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Document(DocumentError),
}

impl Documents {
    pub(crate) fn new(origin: Origin, limit: usize) -> Self {
        Self {
            loaded: BTreeMap::new(),
            actor: origin.to_bytes(),
            bytes: 0,
            limit,
            uses: 0,
            misses: 0,
            long: BTreeMap::new(),
        }
    }

    /// Number of documents and bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.loaded.len(), self.bytes)
    }

    /// The document of a life of a key: from memory, from the store, or empty.
    pub(crate) fn get(
        &mut self,
        store: &Store,
        shard: ShardId,
        key: &str,
        life: u64,
    ) -> Result<&mut Loaded, LoadError> {
        self.uses += 1;
        let name = (shard, key.to_owned());
        if self.loaded.get(&name).is_none_or(|loaded| loaded.life != life) {
            self.misses += 1;
            let loaded = self.load(store, shard, key, life)?;
            self.bytes += loaded.cost;
            if let Some(old) = self.loaded.insert(name.clone(), loaded) {
                self.bytes -= old.cost;
            }
        }
        let Some(loaded) = self.loaded.get_mut(&name) else { unreachable!("inserted above") };
        loaded.used = self.uses;
        Ok(loaded)
    }

    fn load(&self, store: &Store, shard: ShardId, key: &str, life: u64) -> Result<Loaded, LoadError> {
        let mut document = None;
        let (mut saved_bytes, mut parts, mut parts_bytes) = (0, 0, 0);
        let mut tail = Vec::new();
        for (part, piece) in store.edits(shard, key, life)? {
            if part >= EditKey::PARKED {
                continue;
            }
            if part == 0 {
                saved_bytes = piece.len();
                document = Some(Document::load(&piece, &self.actor).map_err(LoadError::Document)?);
            } else {
                parts = part;
                parts_bytes += piece.len();
                tail.push(piece);
            }
        }
        let mut document = document.unwrap_or_else(|| Document::empty(&self.actor));
        document.restore(&tail).map_err(LoadError::Document)?;
        let cost = document.estimated_bytes();
        Ok(Loaded { document, life, saved_bytes, parts, parts_bytes, cost, used: 0 })
    }

    /// Stores what a document became by the raw changes given.
    pub(crate) fn save(&mut self, store: &mut Store, shard: ShardId, key: &str, changes: &[&[u8]]) {
        let Some(loaded) = self.loaded.get_mut(&(shard, key.to_owned())) else { return };
        let life = loaded.life;
        let grown: usize = changes.iter().map(|change| change.len()).sum();
        if loaded.saved_bytes <= SAVE_WHOLE_BYTES || loaded.parts_bytes + grown > loaded.saved_bytes {
            let saved = loaded.document.save();
            store.put_edit(&EditKey { shard, key, life, part: 0 }, &saved);
            for part in 1..=loaded.parts {
                store.remove(Space::Edits, EditKey { shard, key, life, part }.encode());
            }
            (loaded.saved_bytes, loaded.parts, loaded.parts_bytes) = (saved.len(), 0, 0);
        } else {
            for change in changes {
                loaded.parts += 1;
                loaded.parts_bytes += change.len();
                store.put_edit(&EditKey { shard, key, life, part: loaded.parts }, change);
            }
        }
        let cost = loaded.document.estimated_bytes();
        self.bytes = self.bytes + cost - loaded.cost;
        loaded.cost = cost;
    }

    /// Look-ups that found a document in memory, and that did not.
    pub(crate) fn looked_up(&self) -> (u64, u64) {
        (self.uses - self.misses, self.misses)
    }

    /// Remembers a document in memory if its history is long, in place of one that is less so when there are many.
    pub(crate) fn note_history(&mut self, shard: ShardId, key: &str, scope: &ScopeName, policy: &Policy) {
        let name = (shard, key.to_owned());
        let Some(Loaded { document, .. }) = self.loaded.get(&name) else { return };
        let history = LongHistory {
            scope: scope.clone(),
            key: key.to_owned(),
            bytes: (document.history_bytes() as u64, policy.history_bytes),
            changes: (document.history_changes(), policy.history_changes),
        };
        if history.percent() < LONG_HISTORY_PERCENT {
            return;
        }
        self.long.insert(name, history);
        if self.long.len() > NAMED_IN_STATUS
            && let Some(least) = self.long.iter().min_by_key(|(_, history)| history.percent())
        {
            let least = least.0.clone();
            self.long.remove(&least);
        }
    }

    /// The long histories that were met, the fullest first.
    pub(crate) fn long_histories(&self) -> Vec<LongHistory> {
        let mut long: Vec<LongHistory> = self.long.values().cloned().collect();
        long.sort_by_key(|history| std::cmp::Reverse(history.percent()));
        long
    }

    /// Forgets a document whose state in memory may not be what the store says.
    pub(crate) fn forget(&mut self, shard: ShardId, key: &str) {
        if let Some(old) = self.loaded.remove(&(shard, key.to_owned())) {
            self.bytes -= old.cost;
        }
    }

    /// Removes the stored history of every life of a key below `life`, damaged or not.
    pub(crate) fn clear(
        &mut self,
        store: &mut Store,
        shard: ShardId,
        key: &str,
        below: u64,
    ) -> Result<(), StoreError> {
        if self.loaded.get(&(shard, key.to_owned())).is_some_and(|loaded| loaded.life < below) {
            self.forget(shard, key);
        }
        self.long.remove(&(shard, key.to_owned()));
        for (life, part) in store.edit_names(shard, key)? {
            if life < below {
                store.remove(Space::Edits, EditKey { shard, key, life, part }.encode());
            }
        }
        Ok(())
    }

    /// Brings the cache back under its limit. Only when everything it holds is committed.
    pub(crate) fn trim(&mut self) {
        if self.bytes <= self.limit {
            return;
        }
        let mut uses: Vec<u64> = self.loaded.values().map(|loaded| loaded.used).collect();
        let middle = uses.len() / 2;
        let median = *uses.select_nth_unstable(middle).1;
        let bytes = &mut self.bytes;
        self.loaded.retain(|_, loaded| {
            let keep = loaded.used > median;
            *bytes -= if keep { 0 } else { loaded.cost };
            keep
        });
    }
}
