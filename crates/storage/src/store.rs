//! The typed store: reads for everybody, and the one open batch of the replica.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tropism_crdt::codec::{DecodeError, Reader, checked, put_checksum};
use tropism_crdt::{Origin, Vector};
use tropism_placement::{ShardId, StoredRecord};

use crate::engine::{Batch, Engine, EngineError, Footprint, Rows, Space, StoreKey, Syncer, View};
use crate::keys::{EditKey, LogKey, NodeKey, ShardKey, StagedKey, ValueKey, after_prefix, shard_prefix};
use crate::latest::{KeptValues, Latest};
use crate::rows::{
    CommitRow, Head, HeadRow, KeyTally, LogFloorRow, Row, ShardRow, Standing, Tally, TransferRow, ValueRow,
    VectorRow,
};

/// Why a read or a commit did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The engine failed: stop.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A row is not what was written. Nothing was changed; the row is not served.
    #[error("a row of space {space} is damaged: {problem}")]
    Damaged {
        /// The space.
        space: &'static str,
        /// What is wrong with it.
        problem: DecodeError,
    },
}

/// Typed reads, of a store or of a snapshot.
pub trait Reads: View {
    /// Reads a row.
    fn row<R: Row>(&self, space: Space, key: &StoreKey) -> Result<Option<R>, StoreError> {
        match self.get(space, key.as_bytes())? {
            Some(bytes) => Ok(Some(decode(space, &bytes)?)),
            None => Ok(None),
        }
    }

    /// The state of a key, if it ever had one.
    fn value(&self, shard: ShardId, key: &str) -> Result<Option<ValueRow>, StoreError> {
        self.row(Space::Values, &ValueKey { shard, key }.encode())
    }

    /// The vector of a shard; empty when the shard is not known.
    fn vector(&self, shard: ShardId) -> Result<Vector, StoreError> {
        Ok(self.vector_row(shard)?.vector)
    }

    /// The vector of a shard and what its keys add up to; empty when the shard is not known.
    fn vector_row(&self, shard: ShardId) -> Result<VectorRow, StoreError> {
        Ok(self.row(Space::Shards, &ShardKey::Vector(shard).encode())?.unwrap_or_default())
    }

    /// The pieces of the history of one life of a key with their part, in order, of what is committed.
    fn committed_edits(&self, shard: ShardId, key: &str, life: u64) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let prefix = EditKey { shard, key, life, part: 0 }.prefix();
        let mut edits = Vec::new();
        for row in self.scan(Space::Edits, &prefix, &after_prefix(&prefix)) {
            let (name, piece) = row?;
            let (of, part) = edit_of(&name, prefix.len())?;
            if of == life {
                edits.push((part, checked_piece(&piece)?));
            }
        }
        Ok(edits)
    }

    /// Shards on their way from a peer, or not yet merged with what came.
    fn transfers(&self) -> Result<Vec<(ShardId, TransferRow)>, StoreError> {
        let mut transfers = Vec::new();
        for row in self.scan(Space::Shards, &[0], &[0xff; 3]) {
            let (key, value) = row?;
            if let Ok(ShardKey::Transfer(shard)) = ShardKey::decode(&key) {
                transfers.push((shard, decode(Space::Shards, &value)?));
            }
        }
        Ok(transfers)
    }

    /// The shards whose rows are being deleted.
    fn deleting(&self) -> Result<Vec<ShardId>, StoreError> {
        let mut shards = Vec::new();
        for row in self.scan(Space::Shards, &[0], &[0xff; 3]) {
            if let Ok(ShardKey::Deleting(shard)) = ShardKey::decode(&row?.0) {
                shards.push(shard);
            }
        }
        Ok(shards)
    }

    /// The records of their own that scopes have.
    fn records(&self) -> Result<Vec<StoredRecord>, StoreError> {
        let (from, to) = NodeKey::scopes();
        self.scan(Space::Node, &from, &to).map(|row| decode(Space::Node, &row?.1)).collect()
    }

    /// What a shard is, if it is known here.
    fn shard(&self, shard: ShardId) -> Result<Option<ShardRow>, StoreError> {
        self.row(Space::Shards, &ShardKey::Description(shard).encode())
    }

    /// The bytes of a logged change.
    fn change(&self, key: &LogKey) -> Result<Option<Bytes>, StoreError> {
        Ok(self.get(Space::Log, key.encode().as_bytes())?)
    }

    /// The first commit that is whole in the log.
    fn log_floor(&self) -> Result<u64, StoreError> {
        let row = self.row::<LogFloorRow>(Space::Node, &NodeKey::LogFloor.encode())?;
        Ok(row.map_or(1, |row| row.commit)) // nothing was ever taken out
    }

    /// Index rows of the commits `from..to`, in order; of the open batch nothing.
    fn commit_rows<'a>(
        &'a self,
        from: u64,
        to: u64,
    ) -> Box<dyn Iterator<Item = Result<(u64, CommitRow), StoreError>> + 'a> {
        let (start, end) = (NodeKey::Commit(from).encode(), NodeKey::Commit(to.max(from)).encode());
        Box::new(self.scan(Space::Node, start.as_bytes(), end.as_bytes()).map(|row| {
            let (key, value) = row?;
            let number = key.last_chunk::<8>().map_or(0, |number| u64::from_be_bytes(*number));
            Ok((number, decode(Space::Node, &value)?))
        }))
    }

    /// Keys of a shard in order, from `from` on (before `to`, when given), as `(key, row)`.
    fn values<'a>(
        &'a self,
        shard: ShardId,
        from: &str,
        to: Option<&str>,
    ) -> Box<dyn Iterator<Item = Result<(String, ValueRow), StoreError>> + 'a> {
        let prefix = shard_prefix(&shard);
        let start = [&prefix, from.as_bytes()].concat();
        let end = match to {
            Some(to) => [&prefix, to.as_bytes()].concat(),
            None => after_prefix(&prefix),
        };
        let prefix_len = prefix.len();
        Box::new(self.scan(Space::Values, &start, &end).map(move |row| {
            let (key, value) = row?;
            let key = String::from_utf8_lossy(&key[prefix_len..]).into_owned();
            Ok((key, decode(Space::Values, &value)?))
        }))
    }
}

impl<V: View + ?Sized> Reads for V {}

/// Life and part of a stored edit, behind the prefix of its key.
fn edit_of(name: &[u8], prefix: usize) -> Result<(u64, u64), StoreError> {
    let damaged = |problem| StoreError::Damaged { space: Space::Edits.name(), problem };
    let mut r = Reader::new(name.get(prefix..).unwrap_or_default());
    Ok((r.u64("life").map_err(damaged)?, r.u64("part").map_err(damaged)?))
}

/// A stored piece without its checksum, if that fits.
fn checked_piece(piece: &Bytes) -> Result<Bytes, StoreError> {
    let damaged = |problem| StoreError::Damaged { space: Space::Edits.name(), problem };
    Ok(piece.slice_ref(checked(piece).map_err(damaged)?))
}

fn decode<R: Row>(space: Space, bytes: &Bytes) -> Result<R, StoreError> {
    R::decode(bytes).map_err(|problem| StoreError::Damaged { space: space.name(), problem })
}

/// An engine with the batch that is being written. Reads see the open batch; scans see what is committed.
///
/// Invariants: every commit has the next number, and its running hash covers every commit before it; the tally written
/// with a commit counts what is there behind it.
pub struct Store {
    engine: Box<dyn Engine>,
    open: [BTreeMap<StoreKey, Option<Bytes>>; Space::ALL.len()],
    logged: Vec<LogKey>,
    head: Head,
    tally: Tally,
    /// Values committed lately: most writes are of keys that were written before.
    values: Latest,
}

impl Store {
    /// Opens what the engine holds.
    pub fn open(engine: Box<dyn Engine>) -> Result<Self, StoreError> {
        let row: Option<HeadRow> = engine.row(Space::Node, &NodeKey::Head.encode())?;
        let HeadRow { head, tally } = row.unwrap_or_default();
        Ok(Self {
            engine,
            open: Default::default(),
            logged: Vec::new(),
            head,
            tally,
            values: Latest::default(),
        })
    }

    /// Keeps values that were committed lately in memory, in at most so many bytes. At first none are.
    pub fn keep_values(&mut self, bytes: usize) {
        self.values = Latest::limited_to(bytes);
    }

    /// How much of them there is.
    pub fn kept_values(&self) -> KeptValues {
        self.values.kept()
    }

    /// The last commit.
    pub fn head(&self) -> Head {
        self.head
    }

    /// How much is held, the open batch included.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// How much room the engine takes; see [`Engine::footprint`].
    pub fn footprint(&self) -> Footprint {
        self.engine.footprint()
    }

    /// The number the open batch will have.
    pub fn open_commit(&self) -> u64 {
        self.head.commit + 1
    }

    /// Whether the open batch holds anything.
    pub fn is_dirty(&self) -> bool {
        self.open.iter().any(|space| !space.is_empty())
    }

    /// Whether anything survives the process.
    pub fn durable(&self) -> bool {
        self.engine.durable()
    }

    /// Writes a row into the open batch.
    pub fn put(&mut self, space: Space, key: StoreKey, value: Bytes) {
        self.open[space as usize].insert(key, Some(value));
    }

    /// Removes a row with the open batch.
    pub fn remove(&mut self, space: Space, key: StoreKey) {
        self.open[space as usize].insert(key, None);
    }

    /// Writes a typed row.
    pub fn put_row<R: Row>(&mut self, space: Space, key: StoreKey, row: &R) {
        self.put(space, key, row.encode());
    }

    /// Writes a key's state and counts it; `was` is as what it was counted before.
    pub fn put_value(&mut self, name: StoreKey, was: Standing, row: &ValueRow) {
        self.tally.keys.remove(was);
        self.tally.keys.add(row.standing());
        self.put_row(Space::Values, name, row);
    }

    /// Removes a key's row and counts it no longer; `was` is as what it was counted.
    pub fn remove_value(&mut self, name: StoreKey, was: Standing) {
        self.tally.keys.remove(was);
        self.remove(Space::Values, name);
    }

    /// Replaces what is counted of keys by what counting them anew gave.
    pub fn recount_keys(&mut self, keys: KeyTally) {
        self.tally.keys = keys;
    }

    /// Logs a change: its body, and its place in the commit index.
    pub fn log(&mut self, key: LogKey, change: Bytes) {
        self.tally.log_changes += 1;
        self.tally.log_bytes += change.len() as u64;
        self.put(Space::Log, key.encode(), change);
        self.logged.push(key);
    }

    /// Takes the body of a change out of the log; its place in the index stays until its commit is over.
    pub fn remove_logged(&mut self, key: StoreKey, bytes: usize) {
        self.tally.log_changes = self.tally.log_changes.saturating_sub(1);
        self.tally.log_bytes = self.tally.log_bytes.saturating_sub(bytes as u64);
        self.remove(Space::Log, key);
    }

    /// Takes a commit that is over out of the log: the bodies that are still there, and its place in the index.
    pub fn unlog(&mut self, commit: u64, keys: &[LogKey]) -> Result<(), StoreError> {
        for key in keys {
            if let Some(change) = self.change(key)? {
                self.tally.log_changes = self.tally.log_changes.saturating_sub(1);
                self.tally.log_bytes = self.tally.log_bytes.saturating_sub(change.len() as u64);
                self.remove(Space::Log, key.encode());
            }
        }
        self.remove(Space::Node, NodeKey::Commit(commit).encode());
        Ok(())
    }

    /// Commits the open batch, if it holds anything, and says its number. Durable only after [`Self::sync`].
    pub fn commit(&mut self, wall_ms: u64) -> Result<Option<u64>, StoreError> {
        if !self.is_dirty() {
            return Ok(None);
        }
        let number = self.open_commit();
        if !self.logged.is_empty() {
            let changes = std::mem::take(&mut self.logged);
            self.put_row(Space::Node, NodeKey::Commit(number).encode(), &CommitRow { wall_ms, changes });
        }
        let mut writes = Vec::new();
        let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(self.head.hash);
        for space in Space::ALL {
            for (key, value) in std::mem::take(&mut self.open[space as usize]) {
                hasher.update(&[space as u8, u8::from(value.is_some())]);
                hasher.update(&(key.as_bytes().len() as u64).to_be_bytes());
                hasher.update(key.as_bytes());
                if let Some(value) = &value {
                    hasher.update(&(value.len() as u64).to_be_bytes());
                    hasher.update(value);
                }
                if space == Space::Values {
                    match &value {
                        Some(value) => self.values.put(key.clone(), value.clone()),
                        None => self.values.remove(key.as_bytes()),
                    }
                }
                writes.push((space, key, value));
            }
        }
        self.head = Head { commit: number, hash: hasher.digest() };
        let row = HeadRow { head: self.head, tally: self.tally };
        writes.push((Space::Node, NodeKey::Head.encode(), Some(row.encode())));
        self.engine.commit(Batch { writes })?;
        Ok(Some(number))
    }

    /// Makes every commit so far durable.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        Ok(self.engine.sync()?)
    }

    /// Makes commits durable from another thread. Commits that are done when its sync begins are included.
    pub fn syncer(&self) -> Box<dyn Syncer> {
        self.engine.syncer()
    }

    /// The state of the last commit, for readers. Publish it only after the sync that follows.
    pub fn snapshot(&self) -> Arc<dyn View + Send + Sync> {
        self.engine.snapshot()
    }

    /// The index row of a commit; `None` where nothing was logged or the log was trimmed.
    pub fn commit_row(&self, number: u64) -> Result<Option<CommitRow>, StoreError> {
        self.engine.row(Space::Node, &NodeKey::Commit(number).encode())
    }

    /// At least the next `rows` rows of a space from `from` on, the open batch's included; and where to go on, `None`
    /// behind the last row.
    #[allow(clippy::type_complexity, reason = "rows, and the place behind them")]
    pub fn page(
        &self,
        space: Space,
        from: &[u8],
        rows: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, Option<Vec<u8>>), StoreError> {
        let end = vec![0xff; StoreKey::MAX_LEN + 1]; // behind every key
        let committed = self.engine.scan(space, from, &end).take(rows).collect::<Result<Vec<_>, _>>()?;
        let next = committed.last().filter(|_| committed.len() == rows).map(|(last, _)| {
            let mut next = last.to_vec();
            next.push(0);
            next
        });
        let mut page: BTreeMap<Bytes, Bytes> = committed.into_iter().collect();
        let to = next.as_ref().unwrap_or(&end);
        for (name, row) in self.open[space as usize].range::<[u8], _>((Included(from), Excluded(&to[..]))) {
            match row {
                Some(row) => page.insert(name.as_bytes().clone(), row.clone()),
                None => page.remove(name.as_bytes()),
            };
        }
        Ok((page.into_iter().collect(), next))
    }

    /// Every shard that is known, with its vector and digest.
    pub fn shards(&self) -> Result<Vec<(ShardRow, VectorRow)>, StoreError> {
        let mut shards: Vec<(ShardRow, VectorRow)> = Vec::new();
        for row in self.engine.scan(Space::Shards, &[0], &[0xff; 3]) {
            let (key, value) = row?;
            let key = ShardKey::decode(&key)
                .map_err(|problem| StoreError::Damaged { space: Space::Shards.name(), problem })?;
            match key {
                ShardKey::Description(_) => {
                    shards.push((decode(Space::Shards, &value)?, VectorRow::default()));
                }
                ShardKey::Vector(_) => {
                    if let Some(last) = shards.last_mut() {
                        last.1 = decode(Space::Shards, &value)?;
                    }
                }
                ShardKey::Transfer(_) | ShardKey::Deleting(_) => {}
            }
        }
        Ok(shards)
    }

    /// The pieces of the history of one life of a key with their part, in order; the open batch's too.
    pub fn edits(&self, shard: ShardId, key: &str, life: u64) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let mut edits = Vec::new();
        for (of, part, piece) in self.stored_edits(shard, key)? {
            if of == life {
                edits.push((part, checked_piece(&piece)?));
            }
        }
        Ok(edits)
    }

    /// Life and part of the pieces of a key's history, whole or damaged, in order; the open batch's too.
    pub fn edit_names(&self, shard: ShardId, key: &str) -> Result<Vec<(u64, u64)>, StoreError> {
        Ok(self.stored_edits(shard, key)?.into_iter().map(|(life, part, _)| (life, part)).collect())
    }

    /// Rows with `from <= key < to`, the open batch's included.
    fn rows(&self, space: Space, from: &[u8], to: &[u8]) -> Result<BTreeMap<Bytes, Bytes>, StoreError> {
        let mut rows: BTreeMap<Bytes, Bytes> = self.engine.scan(space, from, to).collect::<Result<_, _>>()?;
        for (name, row) in self.open[space as usize].range::<[u8], _>((Included(from), Excluded(to))) {
            let name = name.as_bytes();
            match row {
                Some(row) => rows.insert(name.clone(), row.clone()),
                None => rows.remove(name),
            };
        }
        Ok(rows)
    }

    /// The pieces as they are stored.
    fn stored_edits(&self, shard: ShardId, key: &str) -> Result<Vec<(u64, u64, Bytes)>, StoreError> {
        let prefix = EditKey { shard, key, life: 0, part: 0 }.prefix();
        let end = after_prefix(&prefix);
        let pieces = self.rows(Space::Edits, &prefix, &end)?;
        let mut edits = Vec::with_capacity(pieces.len());
        for (name, piece) in pieces {
            let (life, part) = edit_of(&name, prefix.len())?;
            edits.push((life, part, piece));
        }
        Ok(edits)
    }

    /// The pieces of a key's state as a peer sent it, in order; the open batch's too.
    pub fn staged(&self, shard: ShardId, key: &str) -> Result<Vec<(u32, Bytes)>, StoreError> {
        let prefix = StagedKey::prefix(&shard, key);
        let mut pieces = Vec::new();
        for (name, piece) in self.rows(Space::Staged, &prefix, &after_prefix(&prefix))? {
            let damaged = |problem| StoreError::Damaged { space: Space::Staged.name(), problem };
            let number = StagedKey::decode(&name).map_err(damaged)?.piece;
            pieces.push((number, piece.slice_ref(checked(&piece).map_err(damaged)?)));
        }
        Ok(pieces)
    }

    /// Removes what is staged of a key, damaged or not.
    pub fn unstage(&mut self, shard: ShardId, key: &str) -> Result<(), StoreError> {
        let prefix = StagedKey::prefix(&shard, key);
        for (name, _) in self.rows(Space::Staged, &prefix, &after_prefix(&prefix))? {
            self.remove(Space::Staged, StoreKey::existing(name));
        }
        Ok(())
    }

    /// Writes a piece of a key's state as a peer sent it.
    pub fn stage(&mut self, key: &StagedKey<'_>, piece: &[u8]) {
        let mut row = Vec::with_capacity(piece.len() + 8);
        row.extend_from_slice(piece);
        put_checksum(&mut row, 0);
        self.put(Space::Staged, key.encode(), row.into());
    }

    /// Says in the commit index that changes of `origin` up to `seq` came with the open batch, though not one by one.
    pub fn mark(&mut self, key: LogKey) {
        self.logged.push(key);
    }

    /// Writes a piece of a key's history.
    pub fn put_edit(&mut self, key: &EditKey<'_>, piece: &[u8]) {
        let mut row = Vec::with_capacity(piece.len() + 8);
        row.extend_from_slice(piece);
        put_checksum(&mut row, 0);
        self.put(Space::Edits, key.encode(), row.into());
    }

    /// The changes of `origin` in a shard with `from <= seq <= to` that the log still holds, in order.
    pub fn changes(
        &self,
        shard: ShardId,
        origin: Origin,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = Result<Bytes, StoreError>> + '_ {
        let start = LogKey { shard, origin, seq: from }.encode();
        let end = LogKey { shard, origin, seq: to.saturating_add(1) }.encode();
        self.engine
            .scan(Space::Log, start.as_bytes(), end.as_bytes())
            .map(|row| row.map(|(_, change)| change).map_err(StoreError::from))
    }
}

impl View for Store {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match self.open[space as usize].get(key) {
            Some(value) => Ok(value.clone()),
            None if space == Space::Values => match self.values.get(key) {
                Some(value) => Ok(Some(value.clone())),
                None => self.engine.get(space, key),
            },
            None => self.engine.get(space, key),
        }
    }

    fn scan<'a>(&'a self, space: Space, from: &[u8], to: &[u8]) -> Rows<'a> {
        self.engine.scan(space, from, to)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tropism_crdt::cell::{Cell, Content, Register};
    use tropism_crdt::{NodeId, Stamp};
    use tropism_placement::{Kind, ScopeId, ScopeName};

    use super::*;
    use crate::memory::MemoryEngine;

    fn origin() -> Origin {
        Origin { node: NodeId::new("n").unwrap(), incarnation: 1, random: 2 }
    }

    fn shard_row() -> ShardRow {
        let scope = ScopeId { name: ScopeName::new("a/b").unwrap(), incarnation: 0 };
        ShardRow { scope, index: 0, kind: Kind::Register }
    }

    fn value(text: &'static str) -> ValueRow {
        let content = Content::Register(Register {
            content_type: "t".into(),
            bytes: Bytes::from_static(text.as_bytes()),
        });
        let cell = Cell { written: Some((Stamp::new(1, 1), origin())), content, ..Cell::default() };
        ValueRow { commit: 1, last: vec![(origin(), 1)], parked: None, cell }
    }

    /// Writes a key that was not there.
    fn put(store: &mut Store, key: &str, text: &'static str) {
        let name = ValueKey { shard: shard_row().id(), key }.encode();
        store.put_value(name, Standing::Absent, &value(text));
    }

    #[test]
    fn reads_see_the_open_batch_and_a_snapshot_only_what_is_committed() {
        let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        let shard = shard_row().id();
        put(&mut store, "k", "v");
        assert_eq!(store.value(shard, "k").unwrap(), Some(value("v")));
        assert_eq!(store.snapshot().value(shard, "k").unwrap(), None);
        assert_eq!(store.commit(5).unwrap(), Some(1));
        assert_eq!(store.commit(5).unwrap(), None, "nothing open");
        assert_eq!(store.snapshot().value(shard, "k").unwrap(), Some(value("v")));
    }

    #[test]
    fn the_running_hash_depends_on_every_commit_before() {
        let run = |texts: &[&'static str]| {
            let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
            for text in texts {
                put(&mut store, "k", text);
                store.commit(0).unwrap();
            }
            store.head()
        };
        assert_eq!(run(&["a", "b"]), run(&["a", "b"]));
        assert_ne!(run(&["x", "b"]).hash, run(&["a", "b"]).hash);
    }

    #[test]
    fn logged_changes_are_found_by_commit_and_by_seq() {
        let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        let shard = shard_row().id();
        for seq in 1..=4 {
            store.log(LogKey { shard, origin: origin(), seq }, Bytes::from(vec![seq as u8]));
            if seq % 2 == 0 {
                store.commit(seq).unwrap();
            }
        }
        let rows: Vec<_> = store.commit_rows(2, 9).map(|row| row.unwrap()).collect();
        assert_eq!((rows.len(), rows[0].0, rows[0].1.changes.len()), (1, 2, 2));
        let found: Vec<Bytes> = store.changes(shard, origin(), 2, 3).map(|c| c.unwrap()).collect();
        assert_eq!(found, [Bytes::from_static(&[2]), Bytes::from_static(&[3])]);
    }

    #[test]
    fn shards_are_listed_with_their_vectors_and_scans_are_in_key_order() {
        let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        let shard = shard_row().id();
        store.put_row(Space::Shards, ShardKey::Description(shard).encode(), &shard_row());
        let vector: Vector = [(origin(), 3)].into_iter().collect();
        let vector = VectorRow { vector, digest: None };
        store.put_row(Space::Shards, ShardKey::Vector(shard).encode(), &vector);
        for key in ["b", "a", "c"] {
            put(&mut store, key, "v");
        }
        store.commit(0).unwrap();
        assert_eq!(store.shards().unwrap(), vec![(shard_row(), vector)]);
        let keys: Vec<String> = store.values(shard, "", None).map(|row| row.unwrap().0).collect();
        assert_eq!(keys, ["a", "b", "c"]);
        let keys: Vec<String> = store.values(shard, "b", Some("c")).map(|row| row.unwrap().0).collect();
        assert_eq!(keys, ["b"]);
    }

    #[test]
    fn a_page_shows_the_open_batch_and_pages_show_every_row_once() {
        let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        for key in ["a", "c", "e", "g"] {
            put(&mut store, key, "v");
        }
        store.commit(0).unwrap();
        put(&mut store, "b", "v");
        put(&mut store, "z", "v");
        store.remove(Space::Values, ValueKey { shard: shard_row().id(), key: "c" }.encode());
        let (mut seen, mut from) = (Vec::new(), Vec::new());
        loop {
            let (rows, next) = store.page(Space::Values, &from, 2).unwrap();
            seen.extend(rows.iter().map(|(name, _)| name[18..].to_vec()));
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        assert_eq!(seen, [b"a", b"b", b"e", b"g", b"z"]);
    }

    #[test]
    fn the_tally_is_that_of_the_last_commit() {
        let mut engine = MemoryEngine::crashable();
        let log = |seq| LogKey { shard: shard_row().id(), origin: origin(), seq };
        let mut store = Store::open(Box::new(engine.clone())).unwrap();
        put(&mut store, "a", "v");
        store.log(log(1), Bytes::from_static(b"123"));
        store.log(log(2), Bytes::from_static(b"4567"));
        let rows = [Space::Values, Space::Log, Space::Node];
        store.commit(0).unwrap();
        for space in rows {
            let writes = store.scan(space, &[], &[0xff; 99]).map(|row| row.unwrap());
            let writes = writes.map(|(key, row)| (space, StoreKey::existing(key), Some(row))).collect();
            engine.commit(Batch { writes }).unwrap();
        }
        let mut store = Store::open(Box::new(engine)).unwrap();
        assert_eq!((store.tally().keys.alive, store.tally().log_changes, store.tally().log_bytes), (1, 2, 7));
        let name = ValueKey { shard: shard_row().id(), key: "a" }.encode();
        let deleted = ValueRow {
            cell: Cell { deleted_at: Some(Stamp::new(9, 9)), ..Cell::default() },
            ..ValueRow::default()
        };
        store.put_value(name, Standing::Alive, &deleted);
        store.unlog(1, &[log(1), log(2), log(3)]).unwrap();
        assert_eq!(
            store.tally(),
            Tally { keys: KeyTally { stubs: 1, ..Default::default() }, ..Default::default() }
        );
        assert_eq!(store.commit_row(1).unwrap().map(|row| row.changes.len()), Some(2), "not committed yet");
    }

    #[test]
    fn a_damaged_row_is_an_error_and_never_a_value() {
        let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        let shard = shard_row().id();
        let key = ValueKey { shard, key: "k" }.encode();
        let mut bytes = value("v").encode().to_vec();
        bytes[3] ^= 1;
        store.put(Space::Values, key, bytes.into());
        assert!(matches!(store.value(shard, "k"), Err(StoreError::Damaged { space: "values", .. })));
    }
}
