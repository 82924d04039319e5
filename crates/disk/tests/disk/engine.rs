//! The engine: what any engine promises, on files.

use bytes::Bytes;
use tempfile::tempdir;
use tropism_disk::{OpenError, open};
use tropism_storage::{Batch, Engine, MemoryEngine, NodeKey, Space, Store, View};

use crate::support::content::{Random, advance, all_rows, model, options, value_key};

#[test]
fn a_batch_is_there_in_every_space_and_stays_after_reopening() {
    let dir = tempdir().unwrap();
    let writes = |value: Option<&'static [u8]>| {
        let at = |space| (space, value_key(1), value.map(Bytes::from_static));
        Batch { writes: Space::ALL.map(at).to_vec() }
    };
    let spaces = Space::ALL.len();
    for (value, expected) in [(Some(&b"one"[..]), spaces), (None, 0), (Some(&b""[..]), spaces)] {
        let (mut engine, _) = open(dir.path(), &options()).unwrap();
        assert!(engine.durable());
        engine.commit(writes(value)).unwrap();
        assert_eq!(all_rows(&engine).unwrap().len(), expected);
        engine.sync().unwrap();
        drop(engine);
        let (engine, _) = open(dir.path(), &options()).unwrap();
        assert_eq!(all_rows(&engine).unwrap().len(), expected);
        assert_eq!(engine.get(Space::Log, value_key(1).as_bytes()).unwrap().as_deref(), value);
    }
}

#[test]
fn scans_are_half_open_and_an_inverted_range_is_empty() {
    let dir = tempdir().unwrap();
    let (mut engine, _) = open(dir.path(), &options()).unwrap();
    for number in 1..=3 {
        let writes = vec![(Space::Node, NodeKey::Commit(number).encode(), Some(Bytes::from_static(b"v")))];
        engine.commit(Batch { writes }).unwrap();
    }
    let (first, last) = (NodeKey::Commit(1).encode(), NodeKey::Commit(3).encode());
    let snapshot = engine.snapshot();
    for view in [&engine as &dyn View, snapshot.as_ref()] {
        assert_eq!(view.scan(Space::Node, first.as_bytes(), last.as_bytes()).count(), 2);
        assert_eq!(view.scan(Space::Node, last.as_bytes(), first.as_bytes()).count(), 0);
        assert_eq!(view.scan(Space::Node, b"", &[0xff; 2_000]).count(), 3);
        assert_eq!(view.scan(Space::Values, b"", &[0xff; 2_000]).count(), 0);
    }
}

#[test]
fn a_snapshot_stays_as_it_was_while_the_store_is_rewritten_and_compacted() {
    let dir = tempdir().unwrap();
    let (engine, _witness) = open(dir.path(), &options()).unwrap();
    let mut store = Store::open(Box::new(engine)).unwrap();
    advance(&mut store, 50);
    let snapshot = store.snapshot();
    let before = all_rows(model(50).snapshot().as_ref()).unwrap();
    advance(&mut store, 1_500);
    drop(store);
    assert!(
        matches!(open(dir.path(), &options()), Err(OpenError::Locked { .. })),
        "a snapshot keeps the store"
    );
    assert_eq!(all_rows(snapshot.as_ref()).unwrap(), before);
    drop(snapshot);
    let (engine, _) = open(dir.path(), &options()).unwrap();
    assert_eq!(all_rows(&engine).unwrap(), all_rows(model(1_500).snapshot().as_ref()).unwrap());
}

#[test]
fn random_histories_read_like_the_memory_engine() {
    for seed in 1..=4 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let dir = tempdir().unwrap();
        let mut disk = open(dir.path(), &options()).unwrap().0;
        let mut memory = MemoryEngine::new();
        let mut snapshots = Vec::new();
        for step in 0..1_500 {
            match random.below(100) {
                0 => {
                    snapshots.clear(); // they hold the directory
                    drop(disk);
                    disk = open(dir.path(), &options()).unwrap().0;
                }
                1..5 => disk.sync().unwrap(),
                5..8 => snapshots.push((disk.snapshot(), memory.snapshot())),
                8 if !snapshots.is_empty() => {
                    let (of_disk, of_memory) = snapshots.swap_remove(random.below(snapshots.len()));
                    assert_eq!(
                        all_rows(of_disk.as_ref()),
                        all_rows(of_memory.as_ref()),
                        "seed {seed}, step {step}"
                    );
                }
                9 => assert_eq!(all_rows(&disk), all_rows(&memory), "seed {seed}, step {step}"),
                10..25 => {
                    let (space, key) = (Space::ALL[random.below(5)], value_key(random.below(150)));
                    let (found, expected) =
                        (disk.get(space, key.as_bytes()), memory.get(space, key.as_bytes()));
                    assert_eq!(found, expected, "seed {seed}, step {step}");
                }
                _ => {
                    let mut batch = Batch::default();
                    for _ in 0..=random.below(8) {
                        let (space, key) = (Space::ALL[random.below(5)], value_key(random.below(150)));
                        let len = [0, 30, 300, 6_000][random.below(4)];
                        batch.writes.push((space, key, (random.below(4) > 0).then(|| random.bytes(len))));
                    }
                    disk.commit(batch.clone()).unwrap();
                    memory.commit(batch).unwrap();
                }
            }
        }
        assert_eq!(all_rows(&disk), all_rows(&memory), "seed {seed}");
    }
}

#[test]
fn the_footprint_is_that_of_the_files() {
    let dir = tempdir().unwrap();
    let (mut engine, _witness) = open(dir.path(), &options()).unwrap();
    let before = engine.footprint();
    let mut random = Random(7);
    for number in 0..200 {
        let writes = vec![(Space::Values, value_key(number), Some(random.bytes(10_000)))];
        engine.commit(Batch { writes }).unwrap();
    }
    engine.sync().unwrap();
    let after = engine.footprint();
    assert!(after.bytes >= before.bytes + 1_500_000, "{before:?} {after:?}");
    assert_eq!(after.block_cache.map(|(_, limit)| limit), Some(8 << 20));
}
