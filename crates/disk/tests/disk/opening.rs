//! What is opened, what is refused, and what is left alone.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::{TempDir, tempdir};
use tropism_disk::{DiskOptions, OpenError, open};
use tropism_storage::{Head, Space, Store, View};

use crate::support::content::{
    Random, all_rows, directory, go_on, head_of, journal_only, log_key, model, options, origin, value_key,
};
use crate::support::harm::{
    STORE, TORN_TAIL, WITNESS, copy_of, files, flip, journals, newest_journal, used, zero,
};

/// Where a store is made before it gets its name.
const STORE_IN_THE_MAKING: &str = "store.new";

pub(crate) fn refusal(dir: &Path) -> OpenError {
    match open(dir, &options()) {
        Ok((engine, _)) => panic!("opened at {:?}", head_of(&engine)),
        Err(error) => error,
    }
}

#[test]
fn a_journal_for_which_there_was_no_room_leaves_the_one_before_the_newest() {
    let whole = directory(&journal_only(), 20, 5);
    let journal = newest_journal(whole.path());
    let used = used(&journal);
    for next_len in [0, 64 << 20] {
        let dir = copy_of(&whole);
        let journal = newest_journal(dir.path());
        zero(&journal, used - 10, used);
        let next = journal.with_file_name("1.jnl");
        fs::File::create_new(&next).unwrap().set_len(next_len).unwrap();
        let (engine, _) = open(dir.path(), &journal_only()).unwrap();
        assert_eq!(head_of(&engine).unwrap().commit, 24);
        assert!(engine.cut_bytes() > 0);
        drop(engine);
        go_on(dir.path(), &journal_only(), 30);
        let (engine, _) = open(dir.path(), &journal_only()).unwrap();
        assert_eq!(all_rows(&engine), all_rows(model(30).snapshot().as_ref()));
        assert_eq!(engine.cut_bytes(), 0);
    }
}

#[test]
fn rot_behind_the_witness_is_no_torn_write() {
    // A flipped bit in the key of a batch that others follow: nothing is missing, so nothing was torn.
    let whole = directory(&journal_only(), 20, 40);
    let journal = newest_journal(whole.path());
    let bytes = fs::read(&journal).unwrap();
    let key = log_key(30).encode();
    let at = bytes.windows(key.as_bytes().len()).position(|window| window == key.as_bytes()).unwrap();
    flip(&journal, at * 8);
    assert!(
        matches!(refusal(whole.path()), OpenError::Damaged { reason, .. } if reason.contains("wrong checksum"))
    );
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
    let journal = newest_journal(dir.path());
    let used = used(&journal);
    zero(&journal, used / 2, used);
    let (engine, _) = open(dir.path(), &journal_only()).unwrap();
    assert_eq!((head_of(&engine).unwrap(), all_rows(&engine).unwrap().len()), (Head::default(), 0));
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
    assert_eq!(head_of(&engine).unwrap().commit, commits as u64 + 1);
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
    let journal = newest_journal(dir.path());
    zero(&journal, used(&journal) - 20, used(&journal));
    assert!(matches!(refusal(dir.path()), OpenError::WitnessLost { store: 29, .. }));
    assert!(!dir.path().join(TORN_TAIL).exists(), "nothing is cut without a witness");

    let empty = directory(&options(), 0, 0);
    fs::remove_file(empty.path().join(WITNESS)).unwrap();
    let (engine, witness) = open(empty.path(), &options()).unwrap();
    assert_eq!((head_of(&engine).unwrap().commit, witness.last().sequence), (0, 0));
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

/// One bit of every byte in turn; says for which bytes a directory is not refused with a reason that names the file.
fn unnoticed(dir: &Path, path: &Path, from: usize) -> Vec<usize> {
    let mut random = Random(16);
    let named = format!("{}", path.file_name().unwrap().display());
    let refused = |bit| {
        flip(path, bit);
        let refusal = refusal(dir);
        flip(path, bit);
        matches!(refusal, OpenError::Damaged { reason, .. } if reason.contains(&named) || named == "current")
    };
    let len = fs::metadata(path).unwrap().len() as usize;
    (from..len).filter(|byte| !refused(byte * 8 + random.below(8))).collect()
}

/// A closed directory in which each of these spaces has a table. When tables are made is up to fjall's threads: where they
/// did not come to it, another one is made.
fn with_tables(spaces: &[u8]) -> TempDir {
    let has_tables = |dir: &Path| {
        let tables = |space| fs::read_dir(dir.join(format!("{STORE}/keyspaces/{space}/tables"))).unwrap();
        spaces.iter().all(|space| tables(space).next().is_some())
    };
    let mut made = (0..100).map(|_| directory(&options(), 400, 0));
    made.find(|dir| has_tables(dir.path())).unwrap()
}

#[test]
fn no_bit_of_what_lists_tables_can_change() {
    let dir = with_tables(&[0, 1, 5]);
    for number in [0, 1, 5] {
        let space = dir.path().join(format!("{STORE}/keyspaces/{number}"));
        let current = fs::read(space.join("current")).unwrap();
        let version = u64::from_le_bytes(*current.first_chunk().unwrap());
        for path in [space.join("current"), space.join(format!("v{version}"))] {
            assert_eq!(unnoticed(dir.path(), &path, 0), [], "{path:?}");
        }
        // The end of a table says where its blocks are.
        let table = fs::read_dir(space.join("tables")).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(&table).unwrap();
        let contents = bytes.windows(4).rposition(|four| four == b"TOC!").unwrap();
        assert_eq!(unnoticed(dir.path(), &table, contents), [], "{table:?}");
    }
    assert!(open(dir.path(), &options()).is_ok(), "every bit was put back");
}

#[test]
fn a_row_that_cannot_be_read_makes_the_next_open_read_every_table() {
    let whole = with_tables(&[1]);
    let tables = |dir: &Path| -> Vec<PathBuf> {
        let all = files(&dir.join(STORE).join("keyspaces/1/tables"));
        assert!(!all.is_empty());
        all
    };
    // Unread damage in a block is not seen.
    let dir = copy_of(&whole);
    for table in tables(dir.path()) {
        flip(&table, 8_000);
    }
    let (engine, _) = open(dir.path(), &options()).unwrap();
    assert!(!dir.path().join("suspect").exists());
    // All of them, also rows whose later versions are still in the journal.
    assert!(engine.scan(Space::Values, &[0], &[0xff; 3]).any(|row| row.is_err()));
    drop(engine);
    assert!(dir.path().join("suspect").exists());
    for _ in 0..2 {
        let refusal = refusal(dir.path());
        assert!(
            matches!(&refusal, OpenError::Damaged { reason, .. } if reason.contains("keyspaces/1/tables/")),
            "{refusal}"
        );
    }
    // A whole store that is suspect is read, and suspect no more.
    fs::write(whole.path().join("suspect"), b"").unwrap();
    let (engine, _) = open(whole.path(), &options()).unwrap();
    assert_eq!(head_of(&engine).unwrap().commit, 400);
    assert!(!whole.path().join("suspect").exists());
}

#[test]
fn a_crash_while_a_store_is_made_leaves_nothing_in_the_way() {
    let dir = tempdir().unwrap();
    fs::create_dir_all(dir.path().join(STORE_IN_THE_MAKING).join("keyspaces/1")).unwrap();
    let (engine, _) = open(dir.path(), &options()).unwrap();
    assert!(!dir.path().join(STORE_IN_THE_MAKING).exists());
    assert_eq!(head_of(&engine).unwrap(), Head::default());
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
