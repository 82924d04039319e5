//! A naive model of a key: what a set of changes adds up to, in no particular order.

use tropism_crdt::cell::Cell;
use tropism_crdt::{Body, Change, ExpiryChange, Origin, Stamp};
use tropism_placement::ShardId;
use tropism_storage::{LogKey, Reads, Store};

use super::{Found, Truth, merged_shards};

/// Calls back with every sound key of a store: its row, the changes that the store counts of it, and the model.
pub(super) fn each(
    truth: &Truth,
    node: usize,
    store: &Store,
    found: &mut Found,
    mut check: impl FnMut(&str, &Cell, &Model<'_>) -> Result<(), String>,
) {
    for (row, _) in merged_shards(store) {
        let shard = row.id();
        for (key, value) in store.values(shard, "", None).flatten() {
            if !truth.is_sound(shard, &key) || value.parked.is_some() {
                continue;
            }
            let model = Model::of(truth, node, shard, &key);
            if let Err(problem) = check(&key, &value.cell, &model) {
                let changes = model.spell();
                let text = format!("{}: {}/{key} {problem}: {changes}", truth.name(node), row.scope);
                found.push((vec![node], text));
            }
        }
    }
}

/// The changes of the highest life that a node counts of a key.
pub(super) struct Model<'a> {
    pub(super) life: u64,
    /// The changes of that life.
    pub(super) changes: Vec<(LogKey, &'a Change)>,
}

impl<'a> Model<'a> {
    pub(super) fn of(truth: &'a Truth, node: usize, shard: ShardId, key: &str) -> Self {
        let keys = truth.of_key.get(&(shard, key.to_owned())).into_iter().flatten();
        let counted = keys.filter(|key| truth.nodes[node].counts(key));
        let changes: Vec<_> =
            counted.filter_map(|key| truth.made.get(key).map(|made| (*key, &made.change))).collect();
        let life = changes.iter().map(|(_, change)| change.life).max().unwrap_or(0);
        Self { life, changes: changes.into_iter().filter(|(_, change)| change.life == life).collect() }
    }

    /// The changes in words, by stamp.
    pub(super) fn spell(&self) -> String {
        let mut changes: Vec<_> = self.changes.iter().map(|(_, change)| *change).collect();
        changes.sort_by_key(|change| (change.stamp, change.origin));
        let each =
            changes.iter().map(|c| format!("{} {}#{} {:?} {:?}", c.stamp, c.origin, c.seq, c.expiry, c.body));
        each.collect::<Vec<_>>().join("; ")
    }

    pub(super) fn deleted_at(&self) -> Option<Stamp> {
        let deletes = self.changes.iter().filter_map(|(_, change)| match change.body {
            Body::Delete { deleted_at } => Some(deleted_at),
            _ => None,
        });
        deletes.max()
    }

    /// The last write.
    pub(super) fn written(&self) -> Option<(Stamp, Origin, &'a Change)> {
        let writes =
            self.changes.iter().filter(|(_, c)| !matches!(c.body, Body::Touch | Body::Delete { .. }));
        writes.map(|(_, c)| (c.stamp, c.origin, *c)).max_by_key(|(stamp, origin, _)| (*stamp, *origin))
    }

    /// The last word on the expiry.
    pub(super) fn expires_at_ms(&self) -> Option<u64> {
        let said = self.changes.iter().filter(|(_, change)| change.expiry != ExpiryChange::Keep);
        match said.max_by_key(|(_, change)| (change.stamp, change.origin))?.1.expiry {
            ExpiryChange::At(ms) => Some(ms),
            _ => None,
        }
    }

    pub(super) fn alive(&self) -> bool {
        self.written().is_some_and(|(stamp, ..)| self.deleted_at().is_none_or(|deleted| stamp > deleted))
    }
}
