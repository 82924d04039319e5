//! Members with equal vectors show equal state, and count equal digests.

use std::collections::BTreeMap;

use tropism_crdt::cell::Cell;
use tropism_placement::ShardId;
use tropism_storage::{Reads, Store, VectorRow};

use super::{Checker, Fact, Found, Promise, Truth, merged_shards};

pub(super) struct Convergence;

impl Checker for Convergence {
    fn promise(&self) -> Promise {
        Promise::Convergence
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        let Fact::Pair { a: (a, store_a), b: (b, store_b) } = *fact else { return };
        let others: BTreeMap<ShardId, VectorRow> =
            merged_shards(store_b).into_iter().map(|(row, state)| (row.id(), state)).collect();
        for (row, VectorRow { vector, digest }) in merged_shards(store_a) {
            let shard = row.id();
            let Some(other) = others.get(&shard).filter(|other| other.vector == vector) else { continue };
            let known = digest.zip(other.digest);
            if known.is_some_and(|(ours, theirs)| ours != theirs) && truth.is_shard_sound(shard) {
                let (name_a, name_b) = (truth.name(a), truth.name(b));
                let text = format!("{name_a} and {name_b}: equal vectors, unequal digests of {}", row.scope);
                found.push((vec![a, b], text));
            }
            let (ours, theirs) = (cells(truth, store_a, shard), cells(truth, store_b, shard));
            if ours != theirs {
                let difference = ours.iter().zip(&theirs).find(|(x, y)| x != y);
                let (name_a, name_b) = (truth.name(a), truth.name(b));
                let text = format!(
                    "{name_a} and {name_b}: equal vectors, unequal state of {}: {difference:?}",
                    row.scope
                );
                found.push((vec![a, b], text));
            }
        }
    }
}

/// The keys of a shard as its members must agree on them: of a hidden life only that it is hidden.
fn cells(truth: &Truth, store: &Store, shard: ShardId) -> Vec<Option<(String, Cell)>> {
    let rows = store.values(shard, "", None);
    rows.filter_map(|row| match row {
        Err(_) if truth.is_rotten(shard) => None,
        Err(_) => Some(None),
        Ok((key, _)) if !truth.is_sound(shard, &key) => None,
        Ok((key, row)) if row.cell.alive() => Some(Some((key, row.cell))),
        Ok((key, row)) => {
            let Cell { life, deleted_at, .. } = row.cell;
            Some(Some((key, Cell { life, deleted_at, ..Cell::default() })))
        }
    })
    .collect()
}
