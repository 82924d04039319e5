#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use bytes::Bytes;
use tempfile::{TempDir, tempdir};
use tropism_crdt::{NodeId, Origin};
use tropism_placement::ShardId;
use tropism_storage::{Batch, Engine, LogKey, MemoryEngine, Store, StoreKey, ValueKey, View};

use super::*;

const SHARD: ShardId = ShardId([7; 16]);

/// Set in the child that is killed: the directory it writes to.
const CHILD_DIR: &str = "TROPISM_DISK_TEST_CHILD_DIR";

/// Small memtables, so that a test flushes and compacts.
fn options() -> DiskOptions {
    DiskOptions { block_cache_bytes: 8 << 20, memtable_bytes: 64 << 10, ..DiskOptions::default() }
}

/// Memtables that no test fills: everything is in the journal.
fn journal_only() -> DiskOptions {
    DiskOptions { memtable_bytes: 64 << 20, ..options() }
}

fn origin() -> Origin {
    Origin { node: NodeId::new("n1").unwrap(), incarnation: 1, random: 2 }
}

/// splitmix64: every test names its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Bytes that do not compress.
    fn bytes(&mut self, len: usize) -> Bytes {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn value_key(number: usize) -> StoreKey {
    ValueKey { shard: SHARD, key: &format!("key-{number}") }.encode()
}

/// Writes the commit that follows: what it holds depends on its number alone.
fn commit_next(store: &mut Store) -> u64 {
    let number = store.open_commit();
    let mut random = Random(number);
    for _ in 0..=random.below(4) {
        let len = [20, 200, 700, 9_000][random.below(4)];
        store.put(Space::Values, value_key(random.below(60)), random.bytes(len));
    }
    store.remove(Space::Values, value_key(random.below(60)));
    store.put(Space::Edits, value_key(random.below(9)), random.bytes(300));
    store.log(LogKey { shard: SHARD, origin: origin(), seq: number }, random.bytes(60));
    let trimmed = LogKey { shard: SHARD, origin: origin(), seq: number.saturating_sub(100) };
    store.remove(Space::Log, trimmed.encode());
    store.remove(Space::Node, NodeKey::Commit(number.saturating_sub(100)).encode());
    store.commit(number).unwrap().unwrap()
}

/// The same commits in memory, up to `number`.
fn model(number: u64) -> Store {
    let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
    advance(&mut store, number);
    store
}

fn advance(store: &mut Store, number: u64) {
    while store.head().commit < number {
        commit_next(store);
    }
}

type AllRows = Vec<(Space, Bytes, Bytes)>;

fn all_rows(view: &(impl View + ?Sized)) -> Result<AllRows, tropism_storage::EngineError> {
    let mut all = Vec::new();
    for space in Space::ALL {
        for row in view.scan(space, b"", &[0xff; 64]) {
            let (key, value) = row?;
            all.push((space, key, value));
        }
    }
    Ok(all)
}

/// A directory with `synced` commits that were synced and witnessed, and `unsynced` more; closed.
fn directory(options: &DiskOptions, synced: u64, unsynced: u64) -> TempDir {
    let dir = tempdir().unwrap();
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

/// Copies a directory; journals keep their size without their zeros being written.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &target);
        } else {
            let bytes = fs::read(&path).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            fs::write(&target, &bytes[..used]).unwrap();
            File::options().write(true).open(&target).unwrap().set_len(bytes.len() as u64).unwrap();
        }
    }
}

fn copy_of(dir: &TempDir) -> TempDir {
    let copied = tempdir().unwrap();
    copy(dir.path(), copied.path());
    copied
}

fn journals(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir.join(STORE)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    found.sort();
    found
}

/// Bytes of a file before the zeros at its end.
fn used(path: &Path) -> usize {
    fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn flip(path: &Path, bit: usize) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, (bit / 8) as u64).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], (bit / 8) as u64).unwrap();
}

fn zero(path: &Path, from: usize, to: usize) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; to - from], from as u64).unwrap();
}

fn head_of(engine: &DiskEngine) -> Head {
    let row: Option<HeadRow> = engine.row(Space::Node, &NodeKey::Head.encode()).unwrap();
    row.unwrap_or_default().head
}

fn refusal(dir: &Path) -> OpenError {
    match open(dir, &options()) {
        Ok((engine, _)) => panic!("opened at {:?}", head_of(&engine)),
        Err(error) => error,
    }
}

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
fn whatever_was_acknowledged_before_a_kill_is_there_after_it() {
    const ROUNDS: usize = 15;
    let dir = tempdir().unwrap();
    let mut expected = model(0);
    let mut random = Random(11);
    for round in 0..ROUNDS {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "tests::the_child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut number_of =
            |line: String| line.strip_prefix("acknowledged ").map(|number| number.parse::<u64>().unwrap());
        let mut acknowledged = lines.by_ref().find_map(&mut number_of).expect("the child commits");
        std::thread::sleep(Duration::from_micros(random.below(120_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = lines.filter_map(number_of).last().unwrap_or(acknowledged);

        let (engine, witness) = open(dir.path(), &options()).unwrap();
        let head = head_of(&engine);
        assert!(head.commit >= acknowledged, "round {round}: {head:?} is behind {acknowledged}");
        assert!(
            witness.last().head.commit >= acknowledged,
            "round {round}: the witness is behind {acknowledged}"
        );
        advance(&mut expected, head.commit);
        assert_eq!(head, expected.head(), "round {round}: the running hash");
        assert_eq!(all_rows(&engine), all_rows(expected.snapshot().as_ref()), "round {round}");
    }
}

/// Not a test by itself: commits until it is killed, and says after each sync how far it is.
#[test]
fn the_child_that_is_killed() {
    let Some(dir) = env::var_os(CHILD_DIR) else { return };
    let (engine, mut witness) = open(Path::new(&dir), &options()).unwrap();
    let mut store = Store::open(Box::new(engine)).unwrap();
    let mut out = std::io::stdout().lock();
    loop {
        for _ in 0..=store.head().commit % 4 {
            commit_next(&mut store);
        }
        store.sync().unwrap();
        witness.record(origin(), 0, store.head()).unwrap();
        writeln!(out, "\nacknowledged {}", store.head().commit).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_damaged_journal_is_never_served_short() {
    let whole = directory(&journal_only(), 120, 0);
    let expected = all_rows(model(120).snapshot().as_ref()).unwrap();
    let mut random = Random(12);
    let (mut refused, mut complete) = (0, 0);
    for state in 0..90 {
        let dir = copy_of(&whole);
        let journal = journals(dir.path()).pop().unwrap();
        let used = used(&journal);
        let what = match state % 3 {
            0 => {
                let bit = random.below(used * 8);
                flip(&journal, bit);
                format!("bit {bit} flipped")
            }
            1 => {
                let page = random.below(used / 4096 + 1) * 4096;
                zero(&journal, page, page + 4096);
                format!("page at {page} zeroed")
            }
            _ => {
                let len = random.below(used);
                File::options().write(true).open(&journal).unwrap().set_len(len as u64).unwrap();
                format!("cut to {len} bytes")
            }
        };
        match open(dir.path(), &journal_only()) {
            Ok((engine, _)) => {
                assert_eq!(all_rows(&engine).unwrap(), expected, "state {state}, {what}");
                complete += 1;
            }
            Err(OpenError::Damaged { .. } | OpenError::Short { witness: 120, .. }) => {
                assert!(!dir.path().join(TORN_TAIL).exists(), "state {state}, {what}: nothing is cut");
                refused += 1;
            }
            Err(other) => panic!("state {state}, {what}: {other}"),
        }
    }
    println!("{refused} refused, {complete} complete");
    assert!(refused > 80);
}

#[test]
fn rot_behind_the_witness_is_no_torn_write() {
    // A flipped bit in the key of a batch that others follow: nothing is missing, so nothing was torn.
    let whole = directory(&journal_only(), 20, 40);
    let journal = journals(whole.path()).pop().unwrap();
    let bytes = fs::read(&journal).unwrap();
    let key = LogKey { shard: SHARD, origin: origin(), seq: 30 }.encode();
    let at = bytes.windows(key.as_bytes().len()).position(|window| window == key.as_bytes()).unwrap();
    flip(&journal, at * 8);
    assert!(
        matches!(refusal(whole.path()), OpenError::Damaged { reason, .. } if reason.contains("wrong checksum"))
    );
}

#[test]
fn a_torn_write_that_nobody_was_told_of_is_cut_off_and_the_rest_is_served() {
    const SYNCED: u64 = 40;
    const ALL: u64 = 60;
    let whole = directory(&journal_only(), SYNCED, ALL - SYNCED);
    let journal_name = journals(whole.path()).pop().unwrap();
    let synced_bytes = used(&journals(directory(&journal_only(), SYNCED, 0).path()).pop().unwrap());
    let mut random = Random(13);
    let mut cut_states = 0;
    for state in 0..60 {
        let dir = copy_of(&whole);
        let journal = dir.path().join(STORE).join(journal_name.file_name().unwrap());
        let used = used(&journal);
        if state % 2 == 0 {
            // The file, or what was written of it, ends anywhere behind the last sync.
            let len = synced_bytes + random.below(used - synced_bytes);
            match state % 4 {
                0 => File::options().write(true).open(&journal).unwrap().set_len(len as u64).unwrap(),
                _ => zero(&journal, len, used),
            }
        } else {
            // Any pages behind the last sync never reached the disk.
            for page in synced_bytes / 4096..=used / 4096 {
                if random.below(4) == 0 {
                    zero(&journal, (page * 4096).max(synced_bytes), page * 4096 + 4096);
                }
            }
        }
        let (engine, witness) =
            open(dir.path(), &journal_only()).unwrap_or_else(|error| panic!("state {state}: {error}"));
        let cut_bytes = engine.cut_bytes();
        let kept = fs::metadata(dir.path().join(TORN_TAIL)).map_or(0, |kept| kept.len());
        assert_eq!(kept, cut_bytes, "state {state}: what was cut is kept");
        cut_states += usize::from(cut_bytes > 0);
        let mut store = Store::open(Box::new(engine)).unwrap();
        let head = store.head().commit;
        assert!((SYNCED..=ALL).contains(&head), "state {state}: {head}");
        assert_eq!(witness.last().head.commit, SYNCED);
        let mut expected = model(head);
        assert_eq!(
            all_rows(store.snapshot().as_ref()),
            all_rows(expected.snapshot().as_ref()),
            "state {state}"
        );

        // It goes on from there, and a whole journal forgets the tail.
        advance(&mut store, head + 5);
        advance(&mut expected, head + 5);
        drop(store);
        let (engine, _) = open(dir.path(), &journal_only()).unwrap();
        assert_eq!(all_rows(&engine), all_rows(expected.snapshot().as_ref()), "state {state}");
        assert_eq!((engine.cut_bytes(), dir.path().join(TORN_TAIL).exists()), (0, false), "state {state}");
    }
    println!("{cut_states} of 60 were cut");
    assert!(cut_states > 40);
}

#[test]
fn damaged_tables_are_refused_or_reported_and_never_give_another_value() {
    let whole = directory(&options(), 1_500, 0);
    let expected = all_rows(model(1_500).snapshot().as_ref()).unwrap();
    let mut tables = Vec::new();
    for number in 1..=Space::ALL.len() {
        let folder = Path::new(STORE).join("keyspaces").join(number.to_string()).join("tables");
        let found = fs::read_dir(whole.path().join(&folder)).unwrap();
        tables.extend(found.map(|entry| folder.join(entry.unwrap().file_name())));
    }
    tables.sort();
    assert!(tables.len() > 3, "the test flushes");
    let mut random = Random(14);
    for state in 0..40 {
        let dir = copy_of(&whole);
        let table = dir.path().join(&tables[random.below(tables.len())]);
        let bit = random.below(fs::metadata(&table).unwrap().len() as usize * 8);
        flip(&table, bit);
        match open(dir.path(), &options()) {
            Ok((engine, _)) => {
                for (space, key, value) in &expected {
                    if let Ok(found) = engine.get(*space, key) {
                        assert_eq!(found.as_ref(), Some(value), "state {state}: bit {bit} of {table:?}");
                    }
                }
                if let Ok(found) = all_rows(&engine) {
                    assert_eq!(found, expected, "state {state}: bit {bit} of {table:?}");
                }
            }
            Err(OpenError::Damaged { .. } | OpenError::Short { .. }) => {}
            Err(other) => panic!("state {state}: {other}"),
        }
    }
}

#[test]
fn an_old_copy_beside_a_newer_witness_is_short() {
    let old = directory(&options(), 300, 0);
    let new = directory(&options(), 400, 0);
    fs::copy(new.path().join(WITNESS), old.path().join(WITNESS)).unwrap();
    assert!(matches!(refusal(old.path()), OpenError::Short { store: 300, witness: 400, .. }));
    fs::remove_dir_all(new.path().join(STORE)).unwrap();
    assert!(matches!(refusal(new.path()), OpenError::Short { store: 0, witness: 400, .. }));
    assert!(!new.path().join(STORE).exists(), "no empty store takes its place");

    let fresh = directory(&options(), 0, 0);
    fs::remove_dir_all(fresh.path().join(STORE)).unwrap();
    assert!(matches!(refusal(fresh.path()), OpenError::Damaged { .. }));
}

#[test]
fn a_first_write_that_was_torn_leaves_an_empty_store() {
    let dir = directory(&journal_only(), 0, 1);
    let journal = journals(dir.path()).pop().unwrap();
    let used = used(&journal);
    zero(&journal, used / 2, used);
    let (engine, _) = open(dir.path(), &journal_only()).unwrap();
    assert_eq!((head_of(&engine), all_rows(&engine).unwrap().len()), (Head::default(), 0));
    assert!(engine.cut_bytes() > 0);
}

#[test]
fn several_journals_are_one_chain() {
    let whole = tempdir().unwrap();
    let (engine, mut witness) = open(whole.path(), &DiskOptions::default()).unwrap();
    let mut store = Store::open(Box::new(engine)).unwrap();
    // A row that no flush is due for keeps every journal.
    store.put(Space::Shards, value_key(0), Bytes::from_static(b"idle"));
    let mega = Random(15).bytes(1 << 20);
    let mut commits = 0;
    while journals(whole.path()).len() < 2 {
        store.put(Space::Values, value_key(commits), mega.clone());
        store.commit(0).unwrap();
        commits += 1;
    }
    store.put(Space::Values, value_key(commits), mega.clone());
    store.commit(0).unwrap();
    store.sync().unwrap();
    witness.record(origin(), 0, store.head()).unwrap();
    drop((store, witness));

    let dir = copy_of(&whole);
    zero(&journals(dir.path())[0], 1 << 20, (1 << 20) + 4096);
    assert!(matches!(refusal(dir.path()), OpenError::Damaged { .. }), "a sealed journal is never torn");
    let dir = copy_of(&whole);
    let mut journals = journals(dir.path());
    fs::rename(journals.pop().unwrap(), dir.path().join(STORE).join("9.jnl")).unwrap();
    assert!(
        matches!(refusal(dir.path()), OpenError::Damaged { reason, .. } if reason.contains("is missing"))
    );

    let (engine, _) = open(whole.path(), &DiskOptions::default()).unwrap();
    assert_eq!(head_of(&engine).commit, commits as u64 + 1);
    for number in 0..=commits {
        assert_eq!(engine.get(Space::Values, value_key(number).as_bytes()).unwrap().as_ref(), Some(&mega));
    }
}

#[test]
fn another_history_of_the_same_length_is_damaged() {
    let dir = directory(&options(), 30, 0);
    let (engine, mut witness) = open(dir.path(), &options()).unwrap();
    witness.record(origin(), 0, Head { commit: 30, hash: 1 }).unwrap();
    drop(engine);
    assert!(matches!(refusal(dir.path()), OpenError::Damaged { .. }));
}

#[test]
fn a_store_with_commits_but_no_witness_is_refused_and_one_without_commits_gets_one() {
    let dir = directory(&options(), 30, 0);
    let witness = dir.path().join(WITNESS);
    zero(&witness, 0, 8192);
    assert!(matches!(refusal(dir.path()), OpenError::WitnessLost { store: 30, .. }));
    fs::remove_file(&witness).unwrap();
    assert!(matches!(refusal(dir.path()), OpenError::WitnessLost { store: 30, .. }));
    assert!(!witness.exists(), "no new witness takes its place");
    let journal = journals(dir.path()).pop().unwrap();
    zero(&journal, used(&journal) - 20, used(&journal));
    assert!(matches!(refusal(dir.path()), OpenError::WitnessLost { store: 29, .. }));
    assert!(!dir.path().join(TORN_TAIL).exists(), "nothing is cut without a witness");

    let empty = directory(&options(), 0, 0);
    fs::remove_file(empty.path().join(WITNESS)).unwrap();
    let (engine, witness) = open(empty.path(), &options()).unwrap();
    assert_eq!((head_of(&engine).commit, witness.last().sequence), (0, 0));
}

#[test]
fn a_store_that_lacks_a_file_or_has_a_foreign_one_is_damaged_and_left_alone() {
    let whole = directory(&options(), 400, 0);
    for gone in ["version", "keyspaces", "keyspaces/0", "keyspaces/3", "keyspaces/5/current", "lock"] {
        let dir = copy_of(&whole);
        let path = dir.path().join(STORE).join(gone);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        assert!(matches!(refusal(dir.path()), OpenError::Damaged { .. }), "{gone}");
        assert!(!path.exists(), "{gone} is not made again");
    }
    for foreign in ["keyspaces/nonsense", "keyspaces/17"] {
        let dir = copy_of(&whole);
        fs::create_dir(dir.path().join(STORE).join(foreign)).unwrap();
        assert!(matches!(refusal(dir.path()), OpenError::Damaged { .. }), "{foreign}");
    }
    let dir = copy_of(&whole);
    for journal in journals(dir.path()) {
        fs::remove_file(journal).unwrap();
    }
    assert!(matches!(refusal(dir.path()), OpenError::Damaged { .. }));
}

#[test]
fn a_crash_while_a_store_is_made_leaves_nothing_in_the_way() {
    let dir = tempdir().unwrap();
    fs::create_dir_all(dir.path().join(STORE_IN_THE_MAKING).join("keyspaces/1")).unwrap();
    let (engine, _) = open(dir.path(), &options()).unwrap();
    assert!(!dir.path().join(STORE_IN_THE_MAKING).exists());
    assert_eq!(head_of(&engine), Head::default());
}

#[test]
fn a_second_opener_is_told_that_the_directory_is_in_use() {
    let dir = tempdir().unwrap();
    let (engine, _witness) = open(&dir.path().join("new/deep"), &options()).unwrap();
    assert!(matches!(refusal(&dir.path().join("new/deep")), OpenError::Locked { .. }));
    drop(engine);
    assert!(open(&dir.path().join("new/deep"), &options()).is_ok());
}

#[test]
fn a_path_that_is_no_directory_is_a_system_error() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    assert!(matches!(refusal(&dir.path().join("file")), OpenError::Io { .. }));
}

#[test]
fn every_refusal_says_what_happened_what_was_changed_and_what_to_do() {
    let dir = PathBuf::from("/data\n/n1");
    let refusals = [
        OpenError::Locked { dir: dir.clone() },
        OpenError::Damaged { dir: dir.clone(), reason: "why".into() },
        OpenError::Short { dir: dir.clone(), store: 3, witness: 4 },
        OpenError::WitnessLost { dir: dir.clone(), store: 3 },
    ];
    for text in refusals.map(|refusal| refusal.to_string()) {
        assert!(text.contains(r"/data\n/n1") && text.contains(" was changed"), "{text}");
        assert!(text.contains("move the directory aside") || text.contains("stop that process"), "{text}");
    }
}

#[test]
fn a_witness_has_golden_bytes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(WITNESS);
    let mut witness = Witness::create(&path).unwrap();
    witness.record(origin(), 0x0102, Head { commit: 0x0304, hash: 0x0506 }).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 8192);
    let fields = b"\x01\0\0\0\0\0\0\0\x01\x13\x02n1\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\
        \0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x03\x04\0\0\0\0\0\0\x05\x06";
    let slot = &bytes[4096..4096 + 128];
    assert_eq!(slot[..fields.len()], *fields);
    assert!(slot[fields.len()..120].iter().all(|byte| *byte == 0));
    assert_eq!(slot[120..], [0x2c, 0xec, 0x61, 0x02, 0x47, 0x7c, 0xb4, 0xca], "the checksum");
    let first = b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert_eq!(bytes[..first.len()], *first);
}

#[test]
fn a_torn_slot_of_the_witness_leaves_the_record_before() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(WITNESS);
    let head = |commit| Head { commit, hash: commit * 7 };
    for records in 1..=4 {
        let mut witness = Witness::create(&path).unwrap();
        for commit in 1..=records {
            witness.record(origin(), commit + 100, head(commit)).unwrap();
        }
        witness.sync().unwrap();
        let newest = Witness::open(&path).unwrap().unwrap();
        assert_eq!((newest.last().head, newest.last().reserved_ms), (head(records), records + 100));
        let slot = (records % 2 * 4096) as usize;
        let whole = fs::read(&path).unwrap();
        for torn_at in 0..128 {
            fs::write(&path, &whole).unwrap();
            flip(&path, (slot + torn_at) * 8 + 3);
            let mut fallen_back = Witness::open(&path).unwrap().unwrap();
            assert_eq!(fallen_back.last().sequence, records - 1);
            fallen_back.record(origin(), 0, head(9)).unwrap();
            assert_eq!(Witness::open(&path).unwrap().unwrap().last().head, head(9));
        }
        zero(&path, 0, 8192);
        assert!(Witness::open(&path).unwrap().is_none());
        for len in [0, 100, 4096, 4150] {
            fs::write(&path, &whole[..len]).unwrap();
            let found = Witness::open(&path).unwrap().map(|witness| witness.last().sequence % 2);
            assert_eq!(found, (len >= 128).then_some(0), "{len} bytes");
        }
    }
}

#[test]
fn a_witness_of_a_newer_format_is_not_read() {
    let dir = directory(&options(), 3, 0);
    let path = dir.path().join(WITNESS);
    let mut slot = fs::read(&path).unwrap()[..120].to_vec();
    slot[0] = 2;
    tropism_crdt::codec::put_checksum(&mut slot, 0);
    File::options().write(true).open(&path).unwrap().write_all_at(&slot, 0).unwrap();
    assert!(refusal(dir.path()).to_string().contains("format 2, this program knows 1"));
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
