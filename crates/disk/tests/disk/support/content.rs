//! What a test's store holds: every commit follows from its number alone, so that a model can be asked what a store at
//! any commit must show.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::{TempDir, tempdir};
use tropism_crdt::{NodeId, Origin};
use tropism_disk::{DiskEngine, DiskOptions, Witness, open};
use tropism_placement::ShardId;
use tropism_storage::{
    EngineError, Head, HeadRow, LogKey, MemoryEngine, NodeKey, Reads, Space, Store, StoreKey, ValueKey, View,
};

const SHARD: ShardId = ShardId([7; 16]);
/// Keys that commits write and remove.
pub(crate) const KEYS: usize = 60;

/// Small memtables, so that a test flushes and compacts.
pub(crate) fn options() -> DiskOptions {
    DiskOptions { block_cache_bytes: 8 << 20, memtable_bytes: 64 << 10, ..DiskOptions::default() }
}

/// Memtables that no test fills: everything is in the journal.
pub(crate) fn journal_only() -> DiskOptions {
    DiskOptions { memtable_bytes: 64 << 20, ..options() }
}

pub(crate) fn origin() -> Origin {
    Origin { node: NodeId::new("n1").unwrap(), incarnation: 1, random: 2 }
}

/// splitmix64: every test names its seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, 0 when that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Bytes that do not compress.
    pub(crate) fn bytes(&mut self, len: usize) -> Bytes {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

pub(crate) fn value_key(number: usize) -> StoreKey {
    ValueKey { shard: SHARD, key: &format!("key-{number}") }.encode()
}

pub(crate) fn log_key(seq: u64) -> LogKey {
    LogKey { shard: SHARD, origin: origin(), seq }
}

/// Writes the commit that follows: what it holds depends on its number alone.
pub(crate) fn commit_next(store: &mut Store) -> Result<u64, tropism_storage::StoreError> {
    let number = store.open_commit();
    let mut random = Random(number);
    for _ in 0..=random.below(4) {
        let len = [20, 200, 700, 9_000][random.below(4)];
        store.put(Space::Values, value_key(random.below(KEYS)), random.bytes(len));
    }
    store.remove(Space::Values, value_key(random.below(KEYS)));
    store.put(Space::Edits, value_key(random.below(9)), random.bytes(300));
    store.log(log_key(number), random.bytes(60));
    store.remove(Space::Log, log_key(number.saturating_sub(100)).encode());
    store.remove(Space::Node, NodeKey::Commit(number.saturating_sub(100)).encode());
    Ok(store.commit(number)?.unwrap())
}

pub(crate) fn advance(store: &mut Store, number: u64) {
    while store.head().commit < number {
        commit_next(store).unwrap();
    }
}

/// The same commits in memory, up to `number`.
pub(crate) fn model(number: u64) -> Store {
    let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
    advance(&mut store, number);
    store
}

/// The model after every commit: what a store at any of them must show.
pub(crate) struct Histories {
    store: Store,
    after: Vec<Arc<dyn View + Send + Sync>>,
}

impl Histories {
    pub(crate) fn new() -> Self {
        let store = model(0);
        Self { after: vec![store.snapshot()], store }
    }

    /// Every row after a commit.
    pub(crate) fn rows(&mut self, commit: u64) -> AllRows {
        while self.after.len() as u64 <= commit {
            commit_next(&mut self.store).unwrap();
            self.after.push(self.store.snapshot());
        }
        all_rows(self.after[commit as usize].as_ref()).unwrap()
    }
}

pub(crate) type AllRows = Vec<(Space, Bytes, Bytes)>;

pub(crate) fn all_rows(view: &(impl View + ?Sized)) -> Result<AllRows, EngineError> {
    let mut all = Vec::new();
    for space in Space::ALL {
        for row in view.scan(space, b"", &[0xff; 64]) {
            let (key, value) = row?;
            all.push((space, key, value));
        }
    }
    Ok(all)
}

/// A directory that goes away. In memory where there is such a place: what is damaged there is not what a power cut does,
/// so nothing depends on the disk, and syncs take no time.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempdir()).unwrap()
}

/// A directory with `synced` commits that were synced and witnessed, and `unsynced` more; closed.
pub(crate) fn directory(options: &DiskOptions, synced: u64, unsynced: u64) -> TempDir {
    let dir = scratch();
    let (engine, mut witness) = open(dir.path(), options).unwrap();
    let mut store = Store::open(Box::new(engine)).unwrap();
    advance(&mut store, synced);
    store.sync().unwrap();
    if synced > 0 {
        witness.record(origin(), 77, store.head()).unwrap();
    }
    advance(&mut store, synced + unsynced);
    dir
}

/// Goes on with a closed directory up to a commit, which is synced and witnessed.
pub(crate) fn go_on(dir: &Path, options: &DiskOptions, commit: u64) {
    let (engine, witness) = open(dir, options).unwrap();
    let mut store = Store::open(Box::new(engine)).unwrap();
    advance(&mut store, commit);
    acknowledge(&mut store, witness);
}

/// Syncs and witnesses.
pub(crate) fn acknowledge(store: &mut Store, mut witness: Witness) {
    store.sync().unwrap();
    witness.record(origin(), 77, store.head()).unwrap();
}

pub(crate) fn head_of(engine: &DiskEngine) -> Result<Head, tropism_storage::StoreError> {
    let row: Option<HeadRow> = engine.row(Space::Node, &NodeKey::Head.encode())?;
    Ok(row.unwrap_or_default().head)
}
