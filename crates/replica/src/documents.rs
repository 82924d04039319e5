//! The documents' histories: a cache bounded in bytes in front of their pieces in the store.
//!
//! A history is stored as a saved document (part 0) and the changes since, in order, several in one part (parts 1, 2,
//! ...). The last part is written again with each write until it is full; when the parts have grown to the size of the
//! saved document, it is saved again.

use std::collections::BTreeMap;

use thiserror::Error;
use tropism_crdt::Origin;
use tropism_crdt::document::{Document, DocumentError, GateError, PeerChange};
use tropism_placement::{Policy, ScopeName, ShardId};
use tropism_storage::{EditKey, Space, Store, StoreError};

use crate::limits::{LONG_HISTORY_PERCENT, NAMED_IN_STATUS};

/// Changes behind a small saved document, in bytes, before it is saved again: some nine edits. Fewer saves cost writes
/// less, and loading the document more.
const MIN_PARTS_BYTES: usize = 1024;
/// Changes in one part, in bytes: what each write writes again, against rows to write once and remove once.
const PART_BYTES: usize = 512;

/// A document in memory, and what the store holds of it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) document: Document,
    life: u64,
    /// Size of part 0.
    saved_bytes: usize,
    /// Parts behind it, and the content of the last.
    parts: u64,
    parts_bytes: usize,
    last_part: Vec<u8>,
    /// As counted in the cache.
    cost: usize,
    used: u64,
}

/// The cache. What was written in the open batch stays in it until the batch is committed.
#[derive(Debug)]
pub(crate) struct Documents {
    /// Boxed: a document without its history is 4 KB, and the maps move their values about.
    shards: BTreeMap<ShardId, BTreeMap<String, Box<Loaded>>>,
    count: usize,
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
            shards: BTreeMap::new(),
            count: 0,
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
        (self.count, self.bytes)
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
        if self.loaded(shard, key).is_none_or(|loaded| loaded.life != life) {
            self.misses += 1;
            let loaded = self.load(store, shard, key, life)?;
            self.forget(shard, key);
            self.bytes += loaded.cost;
            self.count += 1;
            self.shards.entry(shard).or_default().insert(key.to_owned(), Box::new(loaded));
        }
        let uses = self.uses;
        let Some(loaded) = self.loaded(shard, key) else { unreachable!("inserted above") };
        loaded.used = uses;
        Ok(loaded)
    }

    fn loaded(&mut self, shard: ShardId, key: &str) -> Option<&mut Loaded> {
        Some(self.shards.get_mut(&shard)?.get_mut(key)?)
    }

    fn load(&self, store: &Store, shard: ShardId, key: &str, life: u64) -> Result<Loaded, LoadError> {
        let mut document = None;
        let (mut saved_bytes, mut parts, mut parts_bytes) = (0, 0, 0);
        let mut changes = Vec::new();
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
                changes.push(piece);
            }
        }
        let mut document = document.unwrap_or_else(|| Document::empty(&self.actor));
        document.restore(&changes).map_err(LoadError::Document)?;
        let cost = document.estimated_bytes();
        let last_part = changes.last().map_or_else(Vec::new, |last| last.to_vec());
        Ok(Loaded { document, life, saved_bytes, parts, parts_bytes, last_part, cost, used: 0 })
    }

    /// Applies peers' changes up to the first that does not pass: the document then, how many, and why not the next.
    pub(crate) fn apply(
        &mut self,
        store: &Store,
        (shard, key, life): (ShardId, &str, u64),
        changes: &[PeerChange<'_>],
    ) -> Result<(&mut Document, usize, Option<GateError>), LoadError> {
        let (mut good, mut refused) = (changes.len(), None);
        while let Err(error) = self.get(store, shard, key, life)?.document.apply(&changes[..good]) {
            if error.spoiled {
                self.forget(shard, key); // the store has it as it was
            }
            let mut first = error.change;
            if first.is_none() && good > 1 {
                // Which one is at fault shows when each goes alone.
                for (at, change) in changes[..good].iter().enumerate() {
                    let outcome = self.get(store, shard, key, life)?.document.apply(&[*change]);
                    if let Err(error) = outcome {
                        if error.spoiled {
                            self.forget(shard, key);
                        }
                        first = Some(at);
                        refused = Some(error);
                        break;
                    }
                }
            } else {
                refused = Some(error);
            }
            // What was refused together and passes one by one stands.
            let Some(first) = first.or((good == 1).then_some(0)) else { break };
            good = first;
        }
        Ok((&mut self.get(store, shard, key, life)?.document, good, refused))
    }

    /// Stores what a document became by the raw changes given.
    pub(crate) fn save(&mut self, store: &mut Store, shard: ShardId, key: &str, changes: &[&[u8]]) {
        let loaded = self.shards.get_mut(&shard).and_then(|documents| documents.get_mut(key));
        let Some(loaded) = loaded else { return };
        let life = loaded.life;
        let grown: usize = changes.iter().map(|change| change.len()).sum();
        let full = loaded.parts_bytes + grown > loaded.saved_bytes.max(MIN_PARTS_BYTES);
        // A document that does not settle, a defect, is not lost: its changes are in its parts.
        let settled = !full || loaded.document.settle().is_ok();
        if full && settled {
            let saved = loaded.document.save();
            store.put_edit(&EditKey { shard, key, life, part: 0 }, &saved);
            for part in 1..=loaded.parts {
                store.remove(Space::Edits, EditKey { shard, key, life, part }.encode());
            }
            (loaded.saved_bytes, loaded.parts, loaded.parts_bytes) = (saved.len(), 0, 0);
            loaded.last_part.clear();
        } else {
            for change in changes {
                if loaded.parts == 0 || loaded.last_part.len() + change.len() > PART_BYTES {
                    loaded.parts += 1;
                    loaded.last_part.clear();
                }
                loaded.last_part.extend_from_slice(change);
                let part = loaded.parts;
                store.put_edit(&EditKey { shard, key, life, part }, &loaded.last_part);
            }
            loaded.parts_bytes += grown;
        }
        let cost = loaded.document.estimated_bytes();
        self.bytes = self.bytes + cost - loaded.cost;
        loaded.cost = cost;
        if !settled {
            self.forget(shard, key);
        }
    }

    /// Stores a document as its pieces, in place of what there was of that life.
    pub(crate) fn put(
        &mut self,
        store: &mut Store,
        (shard, key, life): (ShardId, &str, u64),
        saved: Option<&[u8]>,
        changes: &[impl AsRef<[u8]>],
    ) -> Result<(), StoreError> {
        self.forget(shard, key);
        for (of, part) in store.edit_names(shard, key)? {
            if of == life {
                store.remove(Space::Edits, EditKey { shard, key, life, part }.encode());
            }
        }
        if let Some(saved) = saved {
            store.put_edit(&EditKey { shard, key, life, part: 0 }, saved);
        }
        for (part, piece) in (1..).zip(changes) {
            store.put_edit(&EditKey { shard, key, life, part }, piece.as_ref());
        }
        Ok(())
    }

    /// Look-ups that found a document in memory, and that did not.
    pub(crate) fn looked_up(&self) -> (u64, u64) {
        (self.uses - self.misses, self.misses)
    }

    /// Remembers a document in memory if its history is long, in place of one that is less so when there are many.
    pub(crate) fn note_history(&mut self, shard: ShardId, key: &str, scope: &ScopeName, policy: &Policy) {
        let Some(Loaded { document, .. }) = self.loaded(shard, key) else { return };
        let history = LongHistory {
            scope: scope.clone(),
            key: key.to_owned(),
            bytes: (document.history_bytes() as u64, policy.history_bytes),
            changes: (document.history_changes(), policy.history_changes),
        };
        if history.percent() < LONG_HISTORY_PERCENT {
            return;
        }
        self.long.insert((shard, key.to_owned()), history);
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
        let Some(documents) = self.shards.get_mut(&shard) else { return };
        if let Some(old) = documents.remove(key) {
            self.bytes -= old.cost;
            self.count -= 1;
        }
        if documents.is_empty() {
            self.shards.remove(&shard);
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
        if self.loaded(shard, key).is_some_and(|loaded| loaded.life < below) {
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
        let mut uses: Vec<u64> =
            self.shards.values().flat_map(|shard| shard.values().map(|loaded| loaded.used)).collect();
        let middle = uses.len() / 2;
        let median = *uses.select_nth_unstable(middle).1;
        let (bytes, count) = (&mut self.bytes, &mut self.count);
        self.shards.retain(|_, documents| {
            documents.retain(|_, loaded| {
                let keep = loaded.used > median;
                if !keep {
                    *bytes -= loaded.cost;
                    *count -= 1;
                }
                keep
            });
            !documents.is_empty()
        });
    }
}
