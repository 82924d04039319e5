//! Deleting what is held of scopes that this node is no member of any more, a few rows at a time.
//!
//! A mark begins it, in the batch that adopts the record, and goes with the last row: after a crash it goes on. The
//! vector goes first, so that what is left is never taken for a shard. Until it is over the shard is not held here again.

use std::collections::BTreeMap;

use tropism_placement::ShardId;
use tropism_storage::keys::{after_prefix, shard_prefix};
use tropism_storage::rows::Row;
use tropism_storage::{Reads, ShardKey, ShardRow, Space, Store, StoreError, StoreKey, ValueRow};

use crate::census::Counted;
use crate::limits::{DELETED_ROW_US, DELETED_ROWS};
use crate::replica::{Event, Now, Replica, ReplicaError};

/// What a shard has rows in, in the order in which they go.
const SPACES: [Space; 5] = [Space::Values, Space::Edits, Space::Log, Space::Requests, Space::Staged];

/// The shards that go.
#[derive(Debug, Default)]
pub(crate) struct Deleting {
    /// And in which space they are.
    shards: BTreeMap<ShardId, usize>,
    due_us: u64,
}

impl Deleting {
    /// Goes on with what a crash or a stop interrupted.
    pub(crate) fn found(&mut self, shards: impl IntoIterator<Item = ShardId>) {
        self.shards.extend(shards.into_iter().map(|shard| (shard, 0)));
    }

    pub(crate) fn next_deadline(&self, now: Now) -> Option<u64> {
        (!self.shards.is_empty()).then_some(self.due_us.max(now.mono_us + 1))
    }

    pub(crate) fn contains(&self, shard: &ShardId) -> bool {
        self.shards.contains_key(shard)
    }

    /// Whether a shard goes.
    pub(crate) fn is_under_way(&self, row: &ShardRow) -> bool {
        !self.shards.is_empty() && self.shards.contains_key(&row.id())
    }

    /// Shards that are left.
    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Begins with a shard.
    pub(crate) fn begin(&mut self, now: Now, store: &mut Store, shard: ShardId) {
        store.put(Space::Shards, ShardKey::Deleting(shard).encode(), Vec::new().into());
        store.remove(Space::Shards, ShardKey::Vector(shard).encode());
        store.remove(Space::Shards, ShardKey::Transfer(shard).encode());
        self.shards.insert(shard, 0);
        self.due_us = now.mono_us;
    }
}

impl Replica {
    /// Shards that go: their rows are not to be read.
    pub fn deleting(&self) -> usize {
        self.moves.deleting.len()
    }

    /// Deletes some rows when it is time.
    pub(crate) fn delete_due(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        let deleting = &mut self.moves.deleting;
        if deleting.shards.is_empty() || deleting.due_us > now.mono_us {
            return Ok(());
        }
        let share = self.budget.share(now, DELETED_ROWS, DELETED_ROWS as u64 * DELETED_ROW_US);
        deleting.due_us = now.mono_us + share.step_us;
        let mut left = share.items;
        while left > 0
            && let Some((&shard, &at)) = self.moves.deleting.shards.first_key_value()
        {
            let Some(space) = SPACES.get(at) else {
                let keys = [ShardKey::Description(shard), ShardKey::Deleting(shard)];
                keys.iter().for_each(|key| store.remove(Space::Shards, key.encode()));
                self.moves.deleting.shards.remove(&shard);
                self.event(Event::Deleted { shard });
                continue;
            };
            let deleted = self.delete_some(store, *space, shard, left)?;
            left = left.saturating_sub(deleted); // a page may bring more, of the open batch
            if left > 0 {
                self.moves.deleting.shards.insert(shard, at + 1);
            }
        }
        Ok(())
    }

    /// Deletes at most so many rows of a shard in a space; says how many.
    fn delete_some(
        &mut self,
        store: &mut Store,
        space: Space,
        shard: ShardId,
        most: usize,
    ) -> Result<usize, ReplicaError> {
        let prefix = shard_prefix(&shard);
        let end = after_prefix(&prefix);
        let mut from = prefix.clone();
        let mut deleted = 0;
        // Rows that the open batch has removed already are not in a page, but it is cut where they were.
        while deleted < most {
            let (rows, next) = store.page(space, &from, most - deleted)?;
            for (name, row) in rows.into_iter().filter(|(name, _)| name[..] < end[..]) {
                deleted += 1;
                match space {
                    Space::Values => self.delete_value(store, shard, &name, &prefix, &row),
                    Space::Log => store.remove_logged(StoreKey::existing(name), row.len()),
                    _ => store.remove(space, StoreKey::existing(name)),
                }
            }
            match next.filter(|next| *next < end) {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(deleted)
    }

    fn delete_value(
        &mut self,
        store: &mut Store,
        shard: ShardId,
        name: &bytes::Bytes,
        prefix: &[u8],
        row: &bytes::Bytes,
    ) {
        let key = std::str::from_utf8(&name[prefix.len()..]).unwrap_or_default();
        let was = match ValueRow::decode(row) {
            Ok(row) => self.counted(key, &row),
            Err(problem) => {
                let problem = StoreError::Damaged { space: Space::Values.name(), problem };
                Counted::unreadable(problem.to_string())
            }
        };
        let gone = self.counted(key, &ValueRow::default());
        self.census.changed(name, shard, (&was, &gone), None);
        self.documents.forget(shard, key);
        store.remove_value(StoreKey::existing(name.clone()), was.standing);
    }

    /// What an earlier start left to be deleted, and what should have been and was not marked.
    pub(crate) fn find_deleting(&mut self, now: Now, store: &mut Store) -> Result<(), StoreError> {
        if self.records.all_stored().next().is_none() {
            return Ok(()); // rules alone never let a shard go
        }
        let marked = store.deleting()?;
        self.moves.deleting.found(marked);
        let own = self.identity.region.clone();
        let strange: Vec<ShardId> = store
            .shards()?
            .into_iter()
            .filter(|(row, _)| self.records.is_strange(&row.scope, &own))
            .map(|(row, _)| row.id())
            .filter(|id| !self.moves.deleting.contains(id))
            .collect();
        for shard in strange {
            self.moves.deleting.begin(now, store, shard);
        }
        Ok(())
    }
}
