//! The typed store: reads for everybody, and the one open batch of the replica.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tropism_crdt::codec::{DecodeError, Reader, checked, put_checksum};
use tropism_crdt::{Origin, Vector};
use tropism_placement::ShardId;

use crate::engine::{Batch, Engine, EngineError, Rows, Space, StoreKey, View};
use crate::keys::{EditKey, LogKey, NodeKey, ShardKey, ValueKey, after_prefix, shard_prefix};
use crate::rows::{CommitRow, Head, Row, ShardRow, ValueRow};

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
        Ok(self.row(Space::Shards, &ShardKey::Vector(shard).encode())?.unwrap_or_default())
    }

    /// What a shard is, if it is known here.
    fn shard(&self, shard: ShardId) -> Result<Option<ShardRow>, StoreError> {
        self.row(Space::Shards, &ShardKey::Description(shard).encode())
    }

    /// The bytes of a logged change.
    fn change(&self, key: &LogKey) -> Result<Option<Bytes>, StoreError> {
        Ok(self.get(Space::Log, key.encode().as_bytes())?)
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

fn decode<R: Row>(space: Space, bytes: &Bytes) -> Result<R, StoreError> {
    R::decode(bytes).map_err(|problem| StoreError::Damaged { space: space.name(), problem })
}

impl Row for Vector {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        Self::encode(self, out);
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        Self::decode(r)
    }
}

/// An engine with the batch that is being written. Reads see the open batch; scans see what is committed.
///
/// Invariant: every commit has the next number, and its running hash covers every commit before it.
pub struct Store {
    engine: Box<dyn Engine>,
    open: [BTreeMap<StoreKey, Option<Bytes>>; Space::ALL.len()],
    logged: Vec<LogKey>,
    head: Head,
}

impl Store {
    /// Opens what the engine holds.
    pub fn open(engine: Box<dyn Engine>) -> Result<Self, StoreError> {
        let head = engine.row(Space::Node, &NodeKey::Head.encode())?.unwrap_or_default();
        Ok(Self { engine, open: Default::default(), logged: Vec::new(), head })
    }

    /// The last commit.
    pub fn head(&self) -> Head {
        self.head
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

    /// Writes a key's state.
    pub fn put_value(&mut self, shard: ShardId, key: &str, row: &ValueRow) {
        self.put_row(Space::Values, ValueKey { shard, key }.encode(), row);
    }

    /// Logs a change: its body, and its place in the commit index.
    pub fn log(&mut self, key: LogKey, change: Bytes) {
        self.put(Space::Log, key.encode(), change);
        self.logged.push(key);
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
                writes.push((space, key, value));
            }
        }
        self.head = Head { commit: number, hash: hasher.digest() };
        writes.push((Space::Node, NodeKey::Head.encode(), Some(self.head.encode())));
        self.engine.commit(Batch { writes })?;
        Ok(Some(number))
    }

    /// Makes every commit so far durable.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        Ok(self.engine.sync()?)
    }

    /// The state of the last commit, for readers. Publish it only after the sync that follows.
    pub fn snapshot(&self) -> Arc<dyn View + Send + Sync> {
        self.engine.snapshot()
    }

    /// The index row of a commit; `None` where nothing was logged or the log was trimmed.
    pub fn commit_row(&self, number: u64) -> Result<Option<CommitRow>, StoreError> {
        self.engine.row(Space::Node, &NodeKey::Commit(number).encode())
    }

    /// Every shard that is known, with its vector.
    pub fn shards(&self) -> Result<Vec<(ShardRow, Vector)>, StoreError> {
        let mut shards: Vec<(ShardRow, Vector)> = Vec::new();
        for row in self.engine.scan(Space::Shards, &[0], &[0xff; 3]) {
            let (key, value) = row?;
            let key = ShardKey::decode(&key)
                .map_err(|problem| StoreError::Damaged { space: Space::Shards.name(), problem })?;
            match key {
                ShardKey::Description(_) => shards.push((decode(Space::Shards, &value)?, Vector::EMPTY)),
                ShardKey::Vector(_) => {
                    if let Some(last) = shards.last_mut() {
                        last.1 = decode(Space::Shards, &value)?;
                    }
                }
            }
        }
        Ok(shards)
    }

    /// The pieces of a key's history with their life and part, in order; the open batch's too.
    pub fn edits(&self, shard: ShardId, key: &str) -> Result<Vec<(u64, u64, Bytes)>, StoreError> {
        let prefix = EditKey { shard, key, life: 0, part: 0 }.prefix();
        let end = after_prefix(&prefix);
        let committed = self.engine.scan(Space::Edits, &prefix, &end);
        let mut pieces: BTreeMap<Bytes, Bytes> = committed.collect::<Result<_, _>>()?;
        let open =
            self.open[Space::Edits as usize].range::<[u8], _>((Included(&prefix[..]), Excluded(&end[..])));
        for (name, piece) in open {
            let name = name.as_bytes();
            match piece {
                Some(piece) => pieces.insert(name.clone(), piece.clone()),
                None => pieces.remove(name),
            };
        }
        let damaged = |problem| StoreError::Damaged { space: Space::Edits.name(), problem };
        let mut edits = Vec::with_capacity(pieces.len());
        for (name, piece) in pieces {
            let mut r = Reader::new(&name[prefix.len()..]);
            let life = r.u64("life").map_err(damaged)?;
            let part = r.u64("part").map_err(damaged)?;
            let piece = piece.slice_ref(checked(&piece).map_err(damaged)?);
            edits.push((life, part, piece));
        }
        Ok(edits)
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

    #[test]
    fn reads_see_the_open_batch_and_a_snapshot_only_what_is_committed() {
        let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        let shard = shard_row().id();
        store.put_value(shard, "k", &value("v"));
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
                store.put_value(shard_row().id(), "k", &value(text));
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
        store.put_row(Space::Shards, ShardKey::Vector(shard).encode(), &vector);
        for key in ["b", "a", "c"] {
            store.put_value(shard, key, &value("v"));
        }
        store.commit(0).unwrap();
        assert_eq!(store.shards().unwrap(), vec![(shard_row(), vector)]);
        let keys: Vec<String> = store.values(shard, "", None).map(|row| row.unwrap().0).collect();
        assert_eq!(keys, ["a", "b", "c"]);
        let keys: Vec<String> = store.values(shard, "b", Some("c")).map(|row| row.unwrap().0).collect();
        assert_eq!(keys, ["b"]);
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
