//! The engine in memory.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::engine::{Batch, Engine, EngineError, Footprint, Rows, Space, Syncer, View};

type Maps = [OrdMap<Bytes, Bytes>; Space::ALL.len()];

/// Ordered maps whose snapshots share structure. Nothing survives the process; within it, [`Self::crash`] gives back a
/// state that a power cut could have left.
#[derive(Debug, Clone, Default)]
pub struct MemoryEngine {
    now: Snapshot,
    synced: Snapshot,
    /// The states after each commit since the last sync, oldest first.
    unsynced: Vec<Snapshot>,
    keep_unsynced: bool,
}

/// The maps at one moment, and the bytes of their keys and values.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    maps: Arc<Maps>,
    bytes: u64,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty engine that remembers what a crash may lose.
    pub fn crashable() -> Self {
        Self { keep_unsynced: true, ..Self::default() }
    }

    /// Commits since the last sync.
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// What a power cut leaves: everything synced, and the first `keep` commits after it.
    pub fn crash(&mut self, keep: usize) {
        self.now = match keep.min(self.unsynced.len()) {
            0 => self.synced.clone(),
            kept => self.unsynced[kept - 1].clone(),
        };
        self.synced = self.now.clone();
        self.unsynced.clear();
    }
}

/// Memory has no disk to wait for. An engine that can crash is synced by its owner, who knows when.
struct NothingToSync;

impl Syncer for NothingToSync {
    fn sync(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

impl View for Snapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.maps[space as usize].get(key).cloned())
    }

    fn scan<'a>(&'a self, space: Space, from: &[u8], to: &[u8]) -> Rows<'a> {
        if from >= to {
            return Box::new(std::iter::empty()); // an inverted range would panic
        }
        let range = Bytes::copy_from_slice(from)..Bytes::copy_from_slice(to);
        Box::new(self.maps[space as usize].range(range).map(|(k, v)| Ok((k.clone(), v.clone()))))
    }
}

impl View for MemoryEngine {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.now.get(space, key)
    }

    fn scan<'a>(&'a self, space: Space, from: &[u8], to: &[u8]) -> Rows<'a> {
        self.now.scan(space, from, to)
    }
}

impl Engine for MemoryEngine {
    fn commit(&mut self, batch: Batch) -> Result<(), EngineError> {
        let maps = Arc::make_mut(&mut self.now.maps);
        let mut bytes = self.now.bytes;
        for (space, key, value) in batch.writes {
            let map = &mut maps[space as usize];
            let key = key.as_bytes();
            bytes += value.as_ref().map_or(0, |value| key.len() + value.len()) as u64;
            let old = match value {
                Some(value) => map.insert(key.clone(), value),
                None => map.remove(key),
            };
            bytes -= old.map_or(0, |old| key.len() + old.len()) as u64;
        }
        self.now.bytes = bytes;
        if self.keep_unsynced {
            self.unsynced.push(self.now.clone());
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        if self.keep_unsynced {
            self.synced = self.now.clone();
            self.unsynced.clear();
        }
        Ok(())
    }

    fn syncer(&self) -> Box<dyn Syncer> {
        Box::new(NothingToSync)
    }

    fn snapshot(&self) -> Arc<dyn View + Send + Sync> {
        Arc::new(self.now.clone())
    }

    fn durable(&self) -> bool {
        false
    }

    fn footprint(&self) -> Footprint {
        Footprint { bytes: self.now.bytes, block_cache: None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::engine::StoreKey;

    fn put(key: &str) -> Batch {
        Batch {
            writes: vec![(
                Space::Node,
                StoreKey::new(key.as_bytes().to_vec()),
                Some(Bytes::from_static(b"v")),
            )],
        }
    }

    fn keys(view: &dyn View) -> Vec<Bytes> {
        view.scan(Space::Node, b"", b"\xff").map(|row| row.unwrap().0).collect()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_what_was_not() {
        for keep in 0..4 {
            let mut engine = MemoryEngine::crashable();
            engine.commit(put("a")).unwrap();
            engine.sync().unwrap();
            engine.commit(put("b")).unwrap();
            engine.commit(put("c")).unwrap();
            engine.crash(keep);
            assert_eq!(keys(&engine), [&b"a"[..], b"b", b"c"][..(1 + keep).min(3)]);
        }
    }

    #[test]
    fn bytes_are_those_of_the_rows_that_are_there() {
        let mut engine = MemoryEngine::crashable();
        engine.commit(put("a")).unwrap();
        engine.commit(put("a")).unwrap();
        assert_eq!(engine.footprint().bytes, 2);
        engine.sync().unwrap();
        engine.commit(put("bcd")).unwrap();
        assert_eq!(engine.footprint().bytes, 6);
        engine.crash(0);
        assert_eq!(engine.footprint().bytes, 2);
        let writes = vec![(Space::Node, StoreKey::new(b"a".to_vec()), None)];
        engine.commit(Batch { writes }).unwrap();
        assert_eq!(engine.footprint(), Footprint::default());
    }

    #[test]
    fn a_snapshot_does_not_see_later_commits() {
        let mut engine = MemoryEngine::new();
        engine.commit(put("a")).unwrap();
        let snapshot = engine.snapshot();
        engine.commit(put("b")).unwrap();
        assert_eq!(keys(snapshot.as_ref()).len(), 1);
        assert_eq!(keys(&engine).len(), 2);
    }
}
