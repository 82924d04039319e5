//! A disk that outlives its node: the memory engine behind a handle that the world keeps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tropism_crdt::cell::Content;
use tropism_placement::ShardId;
use tropism_storage::engine::Rows;
use tropism_storage::rows::Row;
use tropism_storage::{
    Batch, Engine, EngineError, Footprint, MemoryEngine, NodeKey, ShardKey, Space, StoreKey, Syncer,
    ValueRow, VectorRow, View,
};

/// One node's disk. Cloned into every store that is opened on it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    engine: MemoryEngine,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Platter { engine: MemoryEngine::crashable() })))
    }

    /// Commits that a power cut could lose.
    pub fn unsynced(&self) -> usize {
        self.platter().engine.unsynced()
    }

    /// A power cut that keeps the first `keep` unsynced commits.
    pub fn crash(&self, keep: usize) {
        self.platter().engine.crash(keep);
    }

    /// Another disk with what this one holds durably.
    pub(crate) fn copy(&self) -> Self {
        let mut engine = self.platter().engine.clone();
        engine.crash(0);
        Self(Arc::new(Mutex::new(Platter { engine })))
    }

    /// Removes the clock's row, as a driver would that never wrote it.
    pub(crate) fn forget_clock(&self) {
        self.tamper(vec![(Space::Node, NodeKey::Clock.encode(), None)]);
    }

    /// What no disk may do: a vector loses an entry.
    pub(crate) fn forget_a_vector_entry(&self) {
        let Some((key, bytes)) = self.find(Space::Shards, |key, bytes| {
            let vector = matches!(ShardKey::decode(key), Ok(ShardKey::Vector(_)));
            vector && VectorRow::decode(bytes).is_ok_and(|row| row.vector.len() > 1)
        }) else {
            return;
        };
        let mut row = VectorRow::decode(&bytes).unwrap_or_default();
        row.vector = row.vector.iter().skip(1).map(|(origin, seq)| (*origin, seq)).collect();
        self.tamper(vec![(Space::Shards, StoreKey::existing(key), Some(row.encode()))]);
    }

    /// What no disk may do: a document shows something else.
    pub(crate) fn bend_a_document(&self) {
        let Some((key, bytes)) = self.find(Space::Values, |_, bytes| {
            ValueRow::decode(bytes)
                .is_ok_and(|row| row.cell.alive() && matches!(row.cell.content, Content::Document { .. }))
        }) else {
            return;
        };
        let Ok(mut row) = ValueRow::decode(&bytes) else { return };
        if let Content::Document { json, .. } = &mut row.cell.content {
            *json = Bytes::from_static(b"{\"bent\":true}");
        }
        self.tamper(vec![(Space::Values, StoreKey::existing(key), Some(row.encode()))]);
    }

    /// The name of some row of a key in a shard that is wanted.
    pub(crate) fn row_of_a_key(&self, pick: usize, wanted: impl Fn(&ShardId) -> bool) -> Option<Bytes> {
        let platter = self.platter();
        let rows = platter.engine.scan(Space::Values, &[0], &[0xff; 3]).flatten().map(|(name, _)| name);
        let rows: Vec<Bytes> =
            rows.filter(|name| shard_of(name).is_some_and(|shard| wanted(&shard))).collect();
        (!rows.is_empty()).then(|| rows[pick % rows.len()].clone())
    }

    /// What no disk may do: a row of a key is gone, or another one. Says whose; `None` if a power cut took it before.
    pub(crate) fn rot(&self, name: &Bytes, gone: bool) -> Option<(ShardId, String)> {
        let row = self.platter().engine.get(Space::Values, name).ok()??;
        let mut rotten = row.to_vec();
        let middle = rotten.len() / 2;
        rotten[middle] ^= 0x20;
        let row = (!gone).then(|| rotten.into());
        self.tamper(vec![(Space::Values, StoreKey::existing(name.clone()), row)]);
        key_of(name)
    }

    /// What no disk may do: rows of the log are gone.
    pub(crate) fn lose_log_rows(&self, mut gone: impl FnMut() -> bool) {
        let rows: Vec<Bytes> = {
            let platter = self.platter();
            platter.engine.scan(Space::Log, &[0], &[0xff; 3]).flatten().map(|(name, _)| name).collect()
        };
        let rows = rows.into_iter().filter(|_| gone());
        self.tamper(rows.map(|name| (Space::Log, StoreKey::existing(name), None)).collect());
    }

    fn find(&self, space: Space, wanted: impl Fn(&[u8], &Bytes) -> bool) -> Option<(Bytes, Bytes)> {
        let platter = self.platter();
        let mut rows = platter.engine.scan(space, &[0], &[0xff; 3]).flatten();
        rows.find(|(key, bytes)| wanted(key, bytes))
    }

    fn tamper(&self, writes: Vec<(Space, StoreKey, Option<Bytes>)>) {
        let mut platter = self.platter();
        if platter.engine.commit(Batch { writes }).is_ok() {
            platter.engine.crash(1);
        }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a row's name.
pub(crate) fn key_of(name: &[u8]) -> Option<(ShardId, String)> {
    Some((shard_of(name)?, String::from_utf8(name.get(18..)?.to_vec()).ok()?))
}

fn shard_of(name: &[u8]) -> Option<ShardId> {
    Some(ShardId(name.get(2..18)?.try_into().ok()?))
}

impl View for SimDisk {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.platter().engine.get(space, key)
    }

    fn scan<'a>(&'a self, space: Space, from: &[u8], to: &[u8]) -> Rows<'a> {
        let rows: Vec<_> = self.platter().engine.scan(space, from, to).collect();
        Box::new(rows.into_iter())
    }
}

impl Syncer for SimDisk {
    fn sync(&mut self) -> Result<(), EngineError> {
        Engine::sync(self)
    }
}

impl Engine for SimDisk {
    fn commit(&mut self, batch: Batch) -> Result<(), EngineError> {
        self.platter().engine.commit(batch)
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.platter().engine.sync()
    }

    fn syncer(&self) -> Box<dyn Syncer> {
        Box::new(self.clone())
    }

    fn snapshot(&self) -> Arc<dyn View + Send + Sync> {
        self.platter().engine.snapshot()
    }

    fn durable(&self) -> bool {
        true
    }

    fn footprint(&self) -> Footprint {
        self.platter().engine.footprint()
    }
}
