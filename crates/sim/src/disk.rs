//! A disk that outlives its node: the memory engine behind a handle that the world keeps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tropism_storage::engine::Rows;
use tropism_storage::{Batch, Engine, EngineError, Footprint, MemoryEngine, NodeKey, Space, Syncer, View};

/// One node's disk. Cloned into every store that is opened on it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    engine: MemoryEngine,
    /// An earlier synced state, for a disk that breaks its promise.
    earlier: Option<MemoryEngine>,
    syncs: u64,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Platter { engine: MemoryEngine::crashable(), ..Platter::default() })))
    }

    /// Commits that a power cut could lose.
    pub fn unsynced(&self) -> usize {
        self.platter().engine.unsynced()
    }

    /// A power cut that keeps the first `keep` unsynced commits.
    pub fn crash(&self, keep: usize) {
        self.platter().engine.crash(keep);
    }

    /// What no disk may do: it goes back to an earlier synced state.
    pub(crate) fn lose_synced(&self) {
        let mut platter = self.platter();
        if let Some(earlier) = platter.earlier.take() {
            platter.engine = earlier;
        }
    }

    /// Removes the clock's row, as a driver would that never wrote it.
    pub(crate) fn forget_clock(&self) {
        let mut platter = self.platter();
        let writes = vec![(Space::Node, NodeKey::Clock.encode(), None)];
        if platter.engine.commit(Batch { writes }).is_ok() {
            platter.engine.crash(1);
        }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let mut platter = self.platter();
        platter.syncs += 1;
        if platter.syncs.is_multiple_of(20) {
            platter.earlier = Some(platter.engine.clone());
        }
        platter.engine.sync()
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
