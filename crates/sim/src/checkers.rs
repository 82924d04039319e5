//! What must hold, checked from outside the replicas with what the world saw.

use std::collections::{BTreeMap, BTreeSet};

use tropism_crdt::cell::{Cell, Content};
use tropism_crdt::{Change, NodeId, Stamp, Vector};
use tropism_placement::ShardId;
use tropism_replica::Replica;
use tropism_storage::{LogKey, Reads, Store};

/// What the checkers remember of one node's store.
#[derive(Debug, Default)]
struct Seen {
    commit: u64,
    vectors: BTreeMap<ShardId, Vector>,
    logged: Vec<(u64, LogKey)>,
    /// How many of `logged` are stable, and the vectors they add up to.
    stable: usize,
    stable_vectors: BTreeMap<ShardId, Vector>,
}

/// All checkers of a world.
#[derive(Debug, Default)]
pub struct Checkers {
    /// Of every change, all that its author had applied of the shard before it.
    made: BTreeMap<LogKey, Vector>,
    /// Per node, its own durable changes in stamp order.
    authored: BTreeMap<NodeId, Vec<(Stamp, LogKey)>>,
    not_durable: BTreeMap<NodeId, Vec<(Stamp, LogKey)>>,
    closed_checked: BTreeMap<(usize, NodeId), usize>,
    last_stamp: BTreeMap<NodeId, Stamp>,
    seen: BTreeMap<usize, Seen>,
    /// Values that clients sent, by shard and key.
    attempted: BTreeSet<(String, String, Vec<u8>)>,
    refused: BTreeSet<(String, String, Vec<u8>)>,
    acknowledged: Vec<(ShardId, LogKey)>,
    /// What was found wrong.
    pub violations: Vec<String>,
}

impl Checkers {
    /// A client sends a value.
    pub fn attempted(&mut self, scope: &str, key: &str, value: &[u8]) {
        self.attempted.insert((scope.into(), key.into(), value.into()));
    }

    /// The write was answered with an error that says "no effect".
    pub fn refused(&mut self, scope: &str, key: &str, value: &[u8]) {
        self.refused.insert((scope.into(), key.into(), value.into()));
    }

    /// A write was acknowledged.
    pub fn acknowledged(&mut self, shard: ShardId, key: LogKey) {
        self.acknowledged.push((shard, key));
    }

    /// Acknowledged writes so far.
    pub fn acknowledgements(&self) -> usize {
        self.acknowledged.len()
    }

    /// A node's store was opened (again): takes what it holds for given.
    pub fn opened(&mut self, node: usize, id: NodeId, store: &Store) {
        let mut seen = Seen { commit: store.head().commit, ..Seen::default() };
        for (row, vector) in store.shards().unwrap_or_default() {
            seen.vectors.insert(row.id(), vector);
        }
        self.seen.insert(node, seen);
        let lost = self.not_durable.remove(&id).unwrap_or_default();
        for (stamp, key) in lost {
            // A batch that was not synced may have survived all the same.
            if store.change(&key).ok().flatten().is_some() {
                self.authored.entry(id).or_default().push((stamp, key));
            }
        }
        self.closed_checked.retain(|(at, _), _| *at != node);
    }

    /// A node committed a turn; `synced` comes later.
    pub fn committed(&mut self, node: usize, id: NodeId, store: &Store, replica: &Replica) {
        let head = store.head().commit;
        let Some(mut seen) = self.seen.remove(&node) else { return };
        let rows: Vec<_> = store.commit_rows(seen.commit + 1, head + 1).collect();
        for row in rows {
            let Ok((commit, row)) = row else { continue };
            for key in row.changes {
                self.logged(id, store, &mut seen, commit, key);
            }
        }
        seen.commit = head;
        for (shard, vector) in &seen.vectors {
            if store.vector(*shard).ok().as_ref() != Some(vector) {
                self.violations
                    .push(format!("{id}: the stored vector of {shard} is not what its log adds up to"));
            }
        }
        let stable = replica.stable_commit();
        while let Some((_, key)) = seen.logged.get(seen.stable).filter(|(commit, _)| *commit <= stable) {
            seen.stable_vectors.entry(key.shard).or_default().raise(key.origin, key.seq);
            seen.stable += 1;
        }
        self.seen.insert(node, seen);
    }

    fn logged(&mut self, id: NodeId, store: &Store, seen: &mut Seen, commit: u64, key: LogKey) {
        let vector = seen.vectors.entry(key.shard).or_default();
        if vector.get(&key.origin) + 1 != key.seq {
            self.violations.push(format!("{id}: logged {key:?} behind {}", vector.get(&key.origin)));
            return;
        }
        if key.origin.node == id {
            let change = store.change(&key).ok().flatten().and_then(|bytes| Change::decode(&bytes).ok());
            let Some(change) = change else {
                self.violations.push(format!("{id}: logged {key:?} without a body"));
                return;
            };
            let last = self.last_stamp.entry(id).or_default();
            if change.stamp <= *last {
                self.violations.push(format!("{id}: stamp {} after {last}", change.stamp));
            }
            *last = change.stamp;
            self.made.insert(key, vector.clone());
            self.not_durable.entry(id).or_default().push((change.stamp, key));
        } else {
            match self.made.get(&key) {
                None => self.violations.push(format!("{id}: applied {key:?}, which nobody made")),
                Some(deps) => {
                    if !vector.dominates(deps) {
                        self.violations
                            .push(format!("{id}: applied {key:?} before what its author had seen"));
                    }
                    let stable = seen.stable_vectors.get(&key.shard);
                    if stable.is_some_and(|stable| !deps.dominates(stable)) {
                        self.violations
                            .push(format!("{id}: {key:?} arrived without having seen what was stable"));
                    }
                }
            }
        }
        vector.advance(key.origin, key.seq);
        seen.logged.push((commit, key));
    }

    /// A node's turn is durable.
    pub fn synced(&mut self, id: NodeId) {
        let durable = self.not_durable.remove(&id).unwrap_or_default();
        self.authored.entry(id).or_default().extend(durable);
    }

    /// What a node holds for closed really is: every durable change of the peer stamped up to it is applied.
    pub fn closed(&mut self, node: usize, id: NodeId, peer: NodeId, closed: Stamp) {
        let Some(authored) = self.authored.get(&peer) else { return };
        let checked = self.closed_checked.entry((node, peer)).or_insert(0);
        let Some(seen) = self.seen.get(&node) else { return };
        while let Some((stamp, key)) = authored.get(*checked).filter(|(stamp, _)| *stamp <= closed) {
            if !seen.vectors.get(&key.shard).is_some_and(|vector| vector.includes(&key.origin, key.seq)) {
                self.violations
                    .push(format!("{id}: holds {peer} for closed at {closed}, lacks {key:?} of {stamp}"));
            }
            *checked += 1;
        }
    }

    /// Members with equal vectors show equal state; every value was written by somebody and not refused.
    pub fn equal(&mut self, a: (NodeId, &Store), b: (NodeId, &Store)) -> bool {
        let mut all_equal = true;
        for (row, vector) in a.1.shards().unwrap_or_default() {
            let shard = row.id();
            if b.1.vector(shard).ok().as_ref() != Some(&vector) {
                all_equal = false;
                continue;
            }
            let cells = |store: &Store| -> Vec<_> {
                store
                    .values(shard, "", None)
                    .map(|row| row.map(|(key, row)| (key, shown(row.cell))))
                    .collect()
            };
            let (ours, theirs) = (cells(a.1), cells(b.1));
            if ours != theirs {
                let difference = ours.iter().zip(&theirs).find(|(x, y)| x != y);
                self.violations.push(format!(
                    "{} and {}: equal vectors, unequal state of {}: {difference:?}",
                    a.0, b.0, row.scope
                ));
            }
        }
        all_equal
    }

    /// No value that nobody wrote, none that was refused.
    pub fn values(&mut self, id: NodeId, store: &Store) {
        for (row, _) in store.shards().unwrap_or_default() {
            for value in store.values(row.id(), "", None) {
                let Ok((key, value)) = value else {
                    self.violations.push(format!("{id}: a row of {} is damaged", row.scope));
                    continue;
                };
                let Content::Register(register) = value.cell.content else { continue };
                let entry = (row.scope.name.as_str().to_owned(), key, register.bytes.to_vec());
                if !self.attempted.contains(&entry) {
                    self.violations.push(format!("{id}: {entry:?} was never written"));
                }
                if self.refused.contains(&entry) {
                    self.violations.push(format!("{id}: {entry:?} was refused and is there"));
                }
            }
        }
    }

    /// Every acknowledged write is counted by a node's vectors.
    pub fn nothing_lost(&mut self, id: NodeId, store: &Store) {
        for (shard, key) in &self.acknowledged {
            let vector = store.vector(*shard).unwrap_or_default();
            if !vector.includes(&key.origin, key.seq) {
                self.violations.push(format!("{id}: acknowledged {key:?} is lost"));
            }
        }
    }

    /// Every counter shows the exact sum of what its changes added: recomputed from the log.
    pub fn counters(&mut self, id: NodeId, store: &Store, added: &BTreeMap<(String, String), CounterBounds>) {
        for (row, _) in store.shards().unwrap_or_default() {
            for value in store.values(row.id(), "", None).flatten() {
                let (key, value) = value;
                let Content::Counter(counter) = &value.cell.content else { continue };
                let Some(bounds) = added.get(&(row.scope.name.as_str().to_owned(), key.clone())) else {
                    continue;
                };
                let Some(sum) = counter.value() else { continue };
                if bounds.simple && !(bounds.least..=bounds.most).contains(&sum) {
                    self.violations.push(format!(
                        "{id}: counter {}/{key} shows {sum}, acknowledged and unknown increments allow {} to {}",
                        row.scope.name, bounds.least, bounds.most
                    ));
                }
            }
        }
    }
}

/// What members with equal vectors must agree on: of a hidden life only that it is hidden.
fn shown(cell: Cell) -> Cell {
    if cell.alive() {
        return cell;
    }
    Cell { life: cell.life, deleted_at: cell.deleted_at, ..Cell::default() }
}

/// Between which sums a counter must end.
#[derive(Debug, Clone, Copy)]
pub struct CounterBounds {
    /// With every unknown decrement and no unknown increment.
    pub least: i64,
    /// With every unknown increment and no unknown decrement.
    pub most: i64,
    /// Nothing but increments happened to it.
    pub simple: bool,
}

impl Default for CounterBounds {
    fn default() -> Self {
        Self { least: 0, most: 0, simple: true }
    }
}
