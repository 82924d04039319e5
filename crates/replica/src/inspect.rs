//! Inspection: which keys differ between two members whose digests of a shard differ, and their repair.
//!
//! The *asker* shows the vector and digest of a snapshot of the shard. The *asked* waits until it has everything that
//! vector counts and takes a snapshot too. What it has beyond touches some keys, which it names; without those the digests
//! must be equal, so a shard that is written all the time is checked without pausing anything. Where they are not, both
//! scan their snapshots, a slice at a time, for a [sketch](crate::sketch) of their fingerprints; the asked finds the
//! difference, sends its states of the keys and says which of the asker's it wants. Each merges what comes once it has
//! what the sender's vector counts, so that no key is ever ahead of the shard.
//!
//! Nothing of an inspection is durable, and any frame of it may be lost: it is given up after a while, and begun again
//! while digests differ.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use tropism_crdt::{NodeId, Vector};
use tropism_placement::ShardId;
use tropism_storage::keys::{after_prefix, shard_prefix};
use tropism_storage::rows::Row;
use tropism_storage::{
    Reads, ShardKey, ShardRow, Space, Store, StoreError, TransferRow, ValueKey, ValueRow, View,
};

use crate::frame::{Cells, Differ, FrameBody, Inspect, Inspected, MoreCells};
use crate::limits::{
    DIFFER_BYTES, INSPECT_PATIENCE_US, INSPECT_ROWS, INSPECT_STEP_US, INSPECTIONS, SKETCH_CELLS,
    SKETCH_FIRST_CELLS, UNMET_US,
};
use crate::replica::{Event, Now, Replica, ReplicaError};
use crate::sketch::{Difference, Sketch, Unpeeled};
use crate::state::KeyState;
use crate::transfer::{Snapshot, changed_keys};

/// Inspections under way, and states that wait for the vector they stand under.
#[derive(Debug, Default)]
pub(crate) struct Inspections {
    running: Vec<Inspection>,
    /// Asked for, and this node has not yet everything of the vector.
    asked: Vec<(NodeId, Inspect, u64)>,
    held: Vec<Held>,
    due_us: u64,
    next_id: u64,
}

#[derive(Debug)]
struct Inspection {
    peer: NodeId,
    id: u64,
    row: ShardRow,
    shard: ShardId,
    asker: bool,
    view: Snapshot,
    /// The snapshot's.
    vector: Vector,
    digest: u128,
    salt: u64,
    task: Task,
    /// Of the asked: our cells less the asker's.
    difference: Difference,
    /// The asker's cells that are not in it yet.
    theirs: Vec<Sketch>,
    touched_us: u64,
}

#[derive(Debug)]
enum Task {
    /// The peer's turn.
    Wait,
    /// Scans for cells, and sums up the digest.
    Sketch { sketch: Sketch, sum: u128, next: Vec<u8> },
    /// Scans for the keys of fingerprints; `theirs` are those that only the peer has.
    Find { ours: BTreeSet<u128>, theirs: Vec<u128>, found: Vec<(String, Bytes)>, bytes: usize, next: Vec<u8> },
}

#[derive(Debug)]
struct Held {
    peer: NodeId,
    shard: ShardId,
    vector: Vector,
    states: Vec<(String, Bytes)>,
    until_us: u64,
}

/// What came of a slice of a scan.
enum Scanned {
    Cells(Sketch, u128),
    Found(Vec<u128>, Vec<(String, Bytes)>),
    TooLarge,
}

impl Inspections {
    pub(crate) fn open(first_id: u64) -> Self {
        Self { next_id: first_id, ..Self::default() }
    }

    pub(crate) fn next_deadline(&self, now: Now) -> Option<u64> {
        let scans = self.running.iter().any(|i| !matches!(i.task, Task::Wait));
        let next = scans.then_some(self.due_us.max(now.mono_us + 1));
        let given_up = self.running.iter().map(|i| i.touched_us + INSPECT_PATIENCE_US);
        next.into_iter().chain(given_up).min()
    }

    /// What concerned a connection that is gone.
    pub(crate) fn forget(&mut self, peer: NodeId) {
        self.running.retain(|inspection| inspection.peer != peer);
        self.asked.retain(|(from, ..)| *from != peer);
    }

    fn of(&mut self, peer: NodeId, shard: ShardId, id: u64) -> Option<&mut Inspection> {
        self.running.iter_mut().find(|i| i.peer == peer && i.shard == shard && i.id == id)
    }
}

impl Replica {
    /// A peer's digest differs from ours at the same vector, or the two never met for long: looks at the keys.
    pub(crate) fn inspect(
        &mut self,
        now: Now,
        store: &Store,
        peer: NodeId,
        row: &ShardRow,
        known_to_differ: bool,
    ) -> Result<(), ReplicaError> {
        let shard = row.id();
        let busy = self.inspections.running.len() >= INSPECTIONS
            || self.inspections.running.iter().any(|i| i.peer == peer && i.shard == shard);
        let Some((view, vector, digest)) = self.inspectable(store, shard)?.filter(|_| !busy) else {
            return Ok(());
        };
        self.inspections.next_id += 1;
        let id = self.inspections.next_id;
        let salt = xxhash_rust::xxh3::xxh3_64_with_seed(&shard.0, id);
        let task = match known_to_differ {
            true => first_cells(salt, shard),
            false => Task::Wait,
        };
        self.inspections.running.push(Inspection {
            peer,
            id,
            row: row.clone(),
            shard,
            asker: true,
            view,
            vector: vector.clone(),
            digest,
            salt,
            task,
            difference: Difference::new(salt),
            theirs: Vec::new(),
            touched_us: now.mono_us,
        });
        if let Some(link) = self.links.get_mut(&peer) {
            link.counted.inspected += 1;
        }
        if !known_to_differ {
            let inspect = Inspect { row: row.clone(), id, vector, digest, salt, cells: Bytes::new() };
            self.send(peer, FrameBody::Inspect(inspect));
        }
        Ok(())
    }

    /// A snapshot of a shard with its vector and digest, if nothing of it is staged and its digest is known.
    fn inspectable(
        &self,
        store: &Store,
        shard: ShardId,
    ) -> Result<Option<(Snapshot, Vector, u128)>, StoreError> {
        let view = store.snapshot();
        let settling = view
            .row::<TransferRow>(Space::Shards, &ShardKey::Transfer(shard).encode())?
            .is_some_and(|transfer| transfer.whole);
        let state = view.vector_row(shard)?;
        let digest = self.shards.fingerprints().sum(state.digest);
        Ok(digest.filter(|_| !settling).map(|digest| (Snapshot(view), state.vector, digest)))
    }

    /// A peer asks about a shard.
    pub(crate) fn inspect_asked(&mut self, now: Now, from: NodeId, inspect: Inspect) {
        if self.shares(&inspect.row, from) && self.inspections.asked.len() < INSPECTIONS {
            self.inspections.asked.push((from, inspect, now.mono_us + INSPECT_PATIENCE_US));
        }
    }

    /// Begins what was asked for as soon as everything of its vector is here.
    fn begin_asked(&mut self, now: Now, store: &Store) -> Result<(), ReplicaError> {
        for (from, inspect, until_us) in std::mem::take(&mut self.inspections.asked) {
            if until_us <= now.mono_us {
                continue;
            }
            let shard = inspect.row.id();
            let ready = self.inspectable(store, shard)?.filter(|(_, v, _)| v.dominates(&inspect.vector));
            let Some((view, vector, digest)) = ready else {
                self.inspections.asked.push((from, inspect, until_us));
                continue;
            };
            let keys = changed_keys(&*view.0, shard, &inspect.vector, &vector, None)?;
            let Some(keys) = keys else { continue }; // too much was written since, or the log does not tell
            let digest_without = self.without(&*view.0, shard, digest, &keys)?;
            if keys.is_empty() && digest == inspect.digest || inspect.cells.is_empty() {
                let keys = keys.into_iter().collect();
                let answer = Inspected { shard, id: inspect.id, digest: digest_without, keys };
                self.send(from, FrameBody::Inspected(answer));
                if inspect.cells.is_empty() && self.inspections.running.len() < INSPECTIONS {
                    self.inspections.running.push(asked(
                        now,
                        from,
                        inspect,
                        view,
                        vector,
                        digest,
                        Task::Wait,
                    ));
                }
                continue;
            }
            self.inspections.running.retain(|i| !(i.peer == from && i.shard == shard && i.id == inspect.id));
            let Ok(theirs) = Sketch::decode(inspect.salt, &inspect.cells) else {
                self.refuse(from, "a sketch that does not decode".to_owned());
                continue;
            };
            let cells = Sketch::new(inspect.salt, theirs.cells());
            let task = Task::Sketch { sketch: cells, sum: 0, next: shard_prefix(&shard) };
            if self.inspections.running.len() < INSPECTIONS {
                let mut inspection = asked(now, from, inspect, view, vector, digest, task);
                inspection.theirs.push(theirs);
                self.inspections.running.push(inspection);
            }
        }
        Ok(())
    }

    /// A digest less the fingerprints of some keys.
    fn without<V: View + ?Sized>(
        &self,
        view: &V,
        shard: ShardId,
        digest: u128,
        keys: &BTreeSet<String>,
    ) -> Result<u128, StoreError> {
        let mut sum = digest;
        for key in keys {
            let name = ValueKey { shard, key }.encode();
            if let Some(row) = view.get(Space::Values, name.as_bytes())?
                && let Ok(row) = ValueRow::decode(&row)
            {
                sum = sum.wrapping_sub(self.shards.fingerprints().of(key, &row));
            }
        }
        Ok(sum)
    }

    /// The asked names what it has beyond, and its digest without.
    pub(crate) fn inspected(
        &mut self,
        now: Now,
        from: NodeId,
        answer: Inspected,
    ) -> Result<(), ReplicaError> {
        let Inspected { shard, id, digest, keys } = answer;
        let keys: BTreeSet<String> = keys.into_iter().collect();
        let Some(inspection) = self.inspections.of(from, shard, id) else { return Ok(()) };
        if !inspection.asker {
            return Ok(());
        }
        let (view, own) = (inspection.view.clone(), inspection.digest);
        let equal = self.without(&*view.0, shard, own, &keys)? == digest;
        if equal {
            self.inspections.running.retain(|i| !(i.peer == from && i.shard == shard && i.id == id));
            self.event(Event::Inspected { peer: from, shard });
            return Ok(());
        }
        self.digests_differ(from, shard);
        if let Some(inspection) = self.inspections.of(from, shard, id) {
            inspection.task = first_cells(inspection.salt, shard);
            inspection.touched_us = now.mono_us;
        }
        Ok(())
    }

    /// Says that digests differ: something was lost, rotted or miscomputed.
    pub(crate) fn digests_differ(&mut self, peer: NodeId, shard: ShardId) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.counted.digests_differed += 1;
        }
        self.event(Event::DigestsDiffer { peer, shard });
    }

    /// The asked needs further cells.
    pub(crate) fn more_cells(&mut self, now: Now, from: NodeId, more: MoreCells) {
        let MoreCells { shard, id, from: first, to } = more;
        let Some(inspection) = self.inspections.of(from, shard, id).filter(|i| i.asker) else { return };
        let cells = Sketch::new(inspection.salt, first as usize..to as usize);
        inspection.task = Task::Sketch { sketch: cells, sum: 0, next: shard_prefix(&shard) };
        inspection.touched_us = now.mono_us;
    }

    /// Further cells of the asker.
    pub(crate) fn cells(&mut self, now: Now, from: NodeId, cells: Cells) {
        let Cells { shard, id, to, bytes } = cells;
        let Some(inspection) = self.inspections.of(from, shard, id).filter(|i| !i.asker) else { return };
        let Ok(part) = Sketch::decode(inspection.salt, &bytes) else {
            return self.refuse(from, "a sketch that does not decode".to_owned());
        };
        let have = inspection.difference.cells();
        inspection.touched_us = now.mono_us;
        if inspection.theirs.iter().any(|other| other.cells() == part.cells()) {
            return;
        }
        inspection.theirs.push(part);
        inspection.theirs.sort_by_key(|part| part.cells().start);
        let mut end = have;
        for part in &inspection.theirs {
            let Range { start, end: behind } = part.cells();
            if start != end {
                return; // parts are missing still
            }
            end = behind;
        }
        let to = (to as usize).min(SKETCH_CELLS);
        if end >= to && matches!(inspection.task, Task::Wait) {
            let cells = Sketch::new(inspection.salt, have..end);
            inspection.task = Task::Sketch { sketch: cells, sum: 0, next: shard_prefix(&shard) };
        }
    }

    /// The peer's states of keys that differ, and which of ours it wants.
    pub(crate) fn differ(
        &mut self,
        now: Now,
        store: &mut Store,
        from: NodeId,
        differ: Differ,
    ) -> Result<(), ReplicaError> {
        let Differ { shard, id, vector, wanted, states } = differ;
        let Some(inspection) = self.inspections.of(from, shard, id) else { return Ok(()) };
        inspection.touched_us = now.mono_us;
        if inspection.asker {
            let ours = wanted.into_iter().collect();
            let next = shard_prefix(&shard);
            inspection.task = Task::Find { ours, theirs: Vec::new(), found: Vec::new(), bytes: 0, next };
        } else {
            self.inspections.running.retain(|i| !(i.peer == from && i.shard == shard && i.id == id));
        }
        if let Some(link) = self.links.get_mut(&from) {
            link.counted.keys_differed += states.len() as u64;
        }
        let until_us = now.mono_us + INSPECT_PATIENCE_US;
        if self.inspections.held.len() < INSPECTIONS {
            self.inspections.held.push(Held { peer: from, shard, vector, states, until_us });
        }
        self.take_held(now, store)
    }

    /// Merges states whose vector has been reached.
    fn take_held(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        for held in std::mem::take(&mut self.inspections.held) {
            let (own, _) = self.shards.state(store, held.shard)?;
            if self.transfers.is_settling(held.shard) || !own.dominates(&held.vector) {
                if held.until_us > now.mono_us {
                    self.inspections.held.push(held);
                }
                continue;
            }
            let Some(record) = self.shard(store, held.shard)?.map(|shard| shard.record.clone()) else {
                continue;
            };
            let mut repaired = 0;
            for (key, bytes) in held.states {
                let ours = tropism_placement::check_key(&key).is_ok() && record.shard(&key).1 == held.shard;
                if let (true, Ok(state)) = (ours, KeyState::decode(&bytes)) {
                    repaired += u64::from(self.take_state(store, held.shard, &key, &state)?);
                }
            }
            if let Some(link) = self.links.get_mut(&held.peer) {
                link.counted.keys_repaired += repaired;
            }
            if repaired > 0 {
                self.event(Event::Repaired { peer: held.peer, shard: held.shard, keys: repaired });
            }
            if self.shards.state(store, held.shard)?.1.is_none() {
                self.recount_soon(held.shard); // a row was replaced that could not be read
            }
        }
        Ok(())
    }

    /// Takes the next slice of every scan, and lets go of what nobody answers.
    pub(crate) fn inspect_due(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        if !self.inspections.asked.is_empty() {
            self.begin_asked(now, store)?;
        }
        if !self.inspections.held.is_empty() {
            self.take_held(now, store)?;
        }
        self.inspections.running.retain(|i| i.touched_us + INSPECT_PATIENCE_US > now.mono_us);
        if self.inspections.due_us > now.mono_us {
            return Ok(());
        }
        let at = self.inspections.running.iter().position(|i| !matches!(i.task, Task::Wait));
        let Some(at) = at else { return Ok(()) };
        let share = self.budget.share(now, INSPECT_ROWS, INSPECT_STEP_US);
        self.inspections.due_us = now.mono_us + share.step_us;
        if share.items == 0 {
            return Ok(());
        }
        self.budget.did(share.us, |work| work.compared_rows += share.items as u64);
        let mut inspection = self.inspections.running.swap_remove(at);
        inspection.touched_us = now.mono_us;
        let fingerprint = |key: &str, row: &ValueRow| self.shards.fingerprints().of(key, row);
        let Some(scanned) = inspection.scan(share.items, fingerprint)? else {
            self.inspections.running.push(inspection);
            return Ok(());
        };
        match scanned {
            Scanned::Cells(sketch, sum) => self.made_cells(store, inspection, sketch, sum)?,
            Scanned::TooLarge => self.exchange_whole(now, store, &inspection)?,
            Scanned::Found(wanted, states) => {
                let Inspection { peer, id, shard, ref vector, asker, .. } = inspection;
                self.send(
                    peer,
                    FrameBody::Differ(Differ { shard, id, vector: vector.clone(), wanted, states }),
                );
                if !asker {
                    self.inspections.running.push(inspection);
                }
            }
        }
        Ok(())
    }

    /// All of a snapshot is in the cells.
    fn made_cells(
        &mut self,
        store: &mut Store,
        mut inspection: Inspection,
        sketch: Sketch,
        sum: u128,
    ) -> Result<(), ReplicaError> {
        let Inspection { peer, id, shard, salt, .. } = inspection;
        if sum != inspection.digest {
            self.recount_soon(shard); // rows had rotted: the digest must say so
        }
        inspection.task = Task::Wait;
        if inspection.asker {
            let Range { start, end: to } = sketch.cells();
            for bytes in sketch.encode() {
                let bytes = Bytes::from(bytes);
                let frame = match start {
                    0 => FrameBody::Inspect(Inspect {
                        row: inspection.row.clone(),
                        id,
                        vector: inspection.vector.clone(),
                        digest: inspection.digest,
                        salt,
                        cells: bytes,
                    }),
                    _ => FrameBody::Cells(Cells { shard, id, to: to as u64, bytes }),
                };
                self.send(peer, frame);
            }
            self.inspections.running.push(inspection);
            return Ok(());
        }
        for theirs in std::mem::take(&mut inspection.theirs) {
            if inspection.difference.extend(&sketch, &theirs).is_err() {
                return Ok(()); // cells that do not belong together: begun again
            }
        }
        let now = Now { mono_us: inspection.touched_us, wall_ms: self.clock.wall_ms() };
        match inspection.difference.peel() {
            Ok(decoded) => {
                let (ours, theirs) = (decoded.ours.into_iter().collect(), decoded.theirs);
                let next = shard_prefix(&shard);
                inspection.task = Task::Find { ours, theirs, found: Vec::new(), bytes: 0, next };
                self.inspections.running.push(inspection);
            }
            Err(Unpeeled::More { cells }) => {
                let from = inspection.difference.cells() as u64;
                self.send(peer, FrameBody::MoreCells(MoreCells { shard, id, from, to: cells as u64 }));
                self.inspections.running.push(inspection);
            }
            Err(Unpeeled::Beyond { .. }) => self.exchange_whole(now, store, &inspection)?,
        }
        Ok(())
    }

    /// Too much differs: each takes the other's shard as a whole.
    fn exchange_whole(
        &mut self,
        now: Now,
        store: &Store,
        inspection: &Inspection,
    ) -> Result<(), ReplicaError> {
        self.send(inspection.peer, FrameBody::BelowFloor(inspection.row.clone()));
        self.below_floor(now, store, inspection.peer, inspection.row.clone())
    }
}

fn asked(
    now: Now,
    peer: NodeId,
    inspect: Inspect,
    view: Snapshot,
    vector: Vector,
    digest: u128,
    task: Task,
) -> Inspection {
    let Inspect { row, id, salt, .. } = inspect;
    let shard = row.id();
    Inspection {
        peer,
        id,
        row,
        shard,
        asker: false,
        view,
        vector,
        digest,
        salt,
        task,
        difference: Difference::new(salt),
        theirs: Vec::new(),
        touched_us: now.mono_us,
    }
}

fn first_cells(salt: u64, shard: ShardId) -> Task {
    Task::Sketch { sketch: Sketch::new(salt, 0..SKETCH_FIRST_CELLS), sum: 0, next: shard_prefix(&shard) }
}

impl Inspection {
    /// Looks at the next rows of the snapshot, at most so many; says what came of the scan when it is over.
    fn scan(
        &mut self,
        most: usize,
        fingerprint: impl Fn(&str, &ValueRow) -> u128,
    ) -> Result<Option<Scanned>, StoreError> {
        let prefix = shard_prefix(&self.shard);
        let end = after_prefix(&prefix);
        let next = match &self.task {
            Task::Wait => return Ok(None),
            Task::Sketch { next, .. } | Task::Find { next, .. } => next.clone(),
        };
        let view = &self.view.0;
        let rows = view.scan(Space::Values, &next, &end).take(most).collect::<Result<Vec<_>, _>>()?;
        let behind = rows.last().filter(|_| rows.len() == most);
        let behind = behind.map(|(name, _)| [name, &[0][..]].concat());
        for (name, bytes) in rows {
            let Ok(key) = std::str::from_utf8(&name[prefix.len()..]) else { continue };
            let Ok(row) = ValueRow::decode(&bytes) else { continue }; // as if it were not there
            let print = fingerprint(key, &row);
            match &mut self.task {
                Task::Sketch { sketch, sum, .. } => {
                    *sum = sum.wrapping_add(print);
                    if print != 0 {
                        sketch.add(print);
                    }
                }
                Task::Find { ours, found, bytes: size, .. } if ours.contains(&print) => {
                    let state = KeyState::read(&**view, self.shard, key, &bytes)?.encode();
                    *size += key.len() + state.len();
                    if *size > DIFFER_BYTES {
                        return Ok(match found.is_empty() {
                            true => Some(Scanned::TooLarge),
                            false => self.found(), // the rest differs still, and is found next time
                        });
                    }
                    found.push((key.to_owned(), state.into()));
                }
                Task::Find { .. } | Task::Wait => {}
            }
        }
        match (&mut self.task, behind) {
            (Task::Sketch { next, .. } | Task::Find { next, .. }, Some(behind)) => {
                *next = behind;
                Ok(None)
            }
            (Task::Sketch { sketch, sum, .. }, None) => {
                let sketch = std::mem::replace(sketch, Sketch::new(self.salt, 0..0));
                Ok(Some(Scanned::Cells(sketch, *sum)))
            }
            _ => Ok(self.found()),
        }
    }

    fn found(&mut self) -> Option<Scanned> {
        match std::mem::replace(&mut self.task, Task::Wait) {
            Task::Find { theirs, found, .. } => Some(Scanned::Found(theirs, found)),
            _ => None,
        }
    }
}

/// Shards whose vectors a peer never shows equal to ours, because they are written all the time.
#[derive(Debug, Default)]
pub(crate) struct Unmet {
    since_us: BTreeMap<ShardId, u64>,
}

impl Unmet {
    /// Shards remembered.
    const MOST: usize = 256;

    /// The peer shows a shard; says whether it is time to look at it all the same.
    pub(crate) fn shown(&mut self, now: Now, shard: ShardId, equal: bool) -> bool {
        if equal {
            self.since_us.remove(&shard);
            return false;
        }
        if self.since_us.len() >= Self::MOST && !self.since_us.contains_key(&shard) {
            return false;
        }
        let since = self.since_us.entry(shard).or_insert(now.mono_us);
        let due = *since + UNMET_US <= now.mono_us;
        if due {
            *since = now.mono_us;
        }
        due
    }
}
