//! The store on disk: the engine on fjall, and the witness that notices when a store came back short.
//!
//! A data directory holds `store/` (fjall's files), `witness` (see [`witness`]), `lock`, after a repair `torn-tail`, and
//! `suspect` when the next open has to read all of it.
//! [`open`] answers one question before anything is served: is this store everything that was ever acknowledged from
//! it? fjall alone does not know. It drops damaged batches in the middle of its journal without a word, deletes key
//! spaces it cannot name, starts empty where a file is missing, and refuses stores whose last batch a power cut tore,
//! which is no damage at all. So the layout, what lists the tables (`tables.rs`) and every batch of the journal (`journal.rs`)
//! are verified first, without changing anything; then fjall opens; then the store's head is compared with the witness. A store
//! that is not everything is [set aside](set_aside) by who can have it filled again; [`open`] itself never does.
//!
//! fjall blocks: an engine belongs to a driver thread. Snapshots may be read from anywhere, a get takes microseconds.

mod aside;
mod engine;
mod journal;
mod tables;
pub mod witness;

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tropism_storage::{Head, HeadRow, NodeKey, Reads, Space};

pub use crate::aside::{ASIDE_KEPT, Aside, last_aside, set_aside};
pub use crate::engine::{DiskEngine, DiskOptions};
use crate::journal::{Fault, Tear};
pub use crate::witness::Witness;

/// fjall's directory.
const STORE: &str = "store";
/// Where a store is made before it gets its name: a crash while making it leaves nothing that looks like a store.
const STORE_IN_THE_MAKING: &str = "store.new";
/// The witness file.
const WITNESS: &str = "witness";
/// Locked as long as an engine or one of its snapshots lives.
const LOCK: &str = "lock";
/// How long to wait for the lock: a process that was just killed, or is just starting another, holds it for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Is there when reading, flushing or compacting found damage, or may have: the next open verifies every table.
const SUSPECT: &str = "suspect";
/// The bytes that the last repair cut off the journal; gone after the next open that has nothing to repair.
const TORN_TAIL: &str = "torn-tail";

/// What to do with a store that is not served.
const SET_ASIDE: &str =
    "move the directory aside and start with an empty one so that peers fill it, or restore a newer copy";

/// Why a directory was not opened. Nothing was made in place of what is there.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Wait, or stop the other process.
    #[error(
        "{dir:?} is open in another process; nothing was changed; stop that process or use another directory"
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
    },
    /// The store is not what was written: set it aside.
    #[error("the store in {dir:?} is damaged: {reason}; no row was changed and none is served; {SET_ASIDE}")]
    Damaged {
        /// The data directory.
        dir: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The store is whole but older than what was acknowledged from it (an old copy, or writes were lost): set it aside.
    #[error(
        "the store in {dir:?} is short: it ends at commit {store}, but commit {witness} was reached; no row was changed \
         and none is served; {SET_ASIDE}"
    )]
    Short {
        /// The data directory.
        dir: PathBuf,
        /// Last commit in the store.
        store: u64,
        /// Last commit the witness saw.
        witness: u64,
    },
    /// Nothing says how far the store once was: set it aside.
    #[error(
        "the witness of the store in {dir:?} is missing or unreadable, so nothing says whether the store, at commit \
         {store}, is whole; nothing was changed; restore the file `witness`, or {SET_ASIDE}"
    )]
    WitnessLost {
        /// The data directory.
        dir: PathBuf,
        /// Last commit in the store.
        store: u64,
    },
    /// The system refused: mend that and open again.
    #[error("cannot {doing} {path:?}: {source}; the store was not opened; mend the cause and start again")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Opens the store of a data directory, or makes one where there is neither store nor witness.
///
/// The caller records each synced head in the witness before it answers anybody, and syncs the witness at least once a
/// second; then a store that opens here ends at most that second of power loss before what was acknowledged, and peers
/// remember that second.
pub fn open(dir: &Path, options: &DiskOptions) -> Result<(DiskEngine, Witness), OpenError> {
    let io_error = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { doing, path, source }
    };
    let damaged = |reason| OpenError::Damaged { dir: dir.to_owned(), reason };
    fs::create_dir_all(dir).map_err(io_error("make", dir))?;
    let lock = lock(dir)?;
    let (store, witness_path) = (dir.join(STORE), dir.join(WITNESS));

    let has_store = store.try_exists().map_err(io_error("find", &store))?;
    let witness = match witness_path.try_exists().map_err(io_error("find", &witness_path))? {
        true => Witness::open(&witness_path).map_err(io_error("read", &witness_path))?,
        false if has_store => None,
        false => {
            make_store(dir, options)?;
            None
        }
    };
    let seen = witness.as_ref().map(|witness| witness.last().head);
    let short = |store: u64| OpenError::Short {
        dir: dir.to_owned(),
        store,
        witness: seen.map_or(0, |head| head.commit),
    };
    if !store.try_exists().map_err(io_error("find", &store))? {
        return Err(match seen {
            Some(head) if head.commit > 0 => short(0),
            _ => damaged(format!("the directory {STORE:?} is missing beside a witness")),
        });
    }

    let faulty = |fault| match fault {
        Fault::Io { path, source } => OpenError::Io { doing: "read", path, source },
        Fault::Damaged(reason) => damaged(reason),
    };
    let suspect = dir.join(SUSPECT);
    let whole = suspect.try_exists().map_err(io_error("find", &suspect))?;
    check_layout(&store, whole).map_err(faulty)?;
    let checked = journal::check(&store, seen).map_err(faulty)?;
    let witness_lost = |store| OpenError::WitnessLost { dir: dir.to_owned(), store };
    if seen.is_none() && commit_of(checked.head) > 0 {
        return Err(witness_lost(commit_of(checked.head)));
    }
    let torn_tail = dir.join(TORN_TAIL);
    let cut_bytes = match &checked.tear {
        // Only what lies beyond the witness was never acknowledged and may be cut.
        Some(_) if commit_of(checked.head) < commit_of(seen) => {
            return Err(match checked.head {
                Some(head) => short(head.commit),
                None => damaged("its journal holds no whole commit".into()),
            });
        }
        Some(tear) => cut(tear, dir, &torn_tail).map_err(io_error("repair", &tear.path))?,
        None => 0,
    };

    let engine = match DiskEngine::open(&store, options, lock, &suspect, cut_bytes) {
        Ok(engine) => engine,
        Err(engine::Refusal::Locked) => return Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(engine::Refusal::Io(source)) => return Err(OpenError::Io { doing: "open", path: store, source }),
        Err(engine::Refusal::Damaged(reason)) => return Err(damaged(reason)),
    };
    let row: Option<HeadRow> = engine
        .row(Space::Node, &NodeKey::Head.encode())
        .map_err(|problem| damaged(format!("its head cannot be read: {problem}")))?;
    let head = row.unwrap_or_default().head;
    match checked.head {
        Some(journal) if journal != head => Err(damaged(format!(
            "its journal ends at commit {} but it shows commit {}",
            journal.commit, head.commit
        ))),
        _ if head.commit < commit_of(seen) => Err(short(head.commit)),
        _ if seen.is_some_and(|seen| seen.commit == head.commit && seen.hash != head.hash) => {
            Err(damaged(format!("commit {} is not the one that its witness saw", head.commit)))
        }
        _ if seen.is_none() && head.commit > 0 => Err(witness_lost(head.commit)),
        _ => {
            if checked.tear.is_none() {
                remove_if_there(&torn_tail).map_err(io_error("remove", &torn_tail))?;
            }
            remove_if_there(&suspect).map_err(io_error("remove", &suspect))?;
            let witness = match witness {
                Some(witness) => witness,
                None => Witness::create(&witness_path).map_err(io_error("make", &witness_path))?,
            };
            sync_dir(dir).map_err(io_error("sync", dir))?;
            Ok((engine, witness))
        }
    }
}

/// Whether something of the store could not be read, so that the next [`open`] reads every table.
pub fn is_suspect(dir: &Path) -> bool {
    dir.join(SUSPECT).exists()
}

fn commit_of(head: Option<Head>) -> u64 {
    head.map_or(0, |head| head.commit)
}

/// Takes the directory for this process, until the file is closed.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|source| OpenError::Io { doing: "open", path: path.clone(), source })?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if waited < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_PAUSE);
                waited += LOCK_PAUSE;
            }
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { doing: "lock", path, source }),
        }
    }
}

/// Makes an empty store under another name and renames it: a store is there with all its spaces or not at all.
fn make_store(dir: &Path, options: &DiskOptions) -> Result<(), OpenError> {
    let (making, store) = (dir.join(STORE_IN_THE_MAKING), dir.join(STORE));
    let made = || -> io::Result<()> {
        if making.try_exists()? {
            fs::remove_dir_all(&making)?; // never held a commit
        }
        engine::make(&making, options)?;
        fs::rename(&making, &store)?;
        sync_dir(dir)?;
        match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
            _ => sync_dir(Path::new(".")),
        }
    };
    made().map_err(|source| OpenError::Io { doing: "make a store in", path: dir.to_owned(), source })
}

/// fjall starts empty where its version file is missing, deletes key spaces that lack a file or a name, and believes what
/// lists its tables: none of it may happen to a store that is damaged. With `whole`, every table is read.
fn check_layout(store: &Path, whole: bool) -> Result<(), Fault> {
    let version = store.join("version");
    fs::metadata(&version).map_err(Fault::reading(&version))?;
    let keyspaces = store.join("keyspaces");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&keyspaces).map_err(Fault::reading(&keyspaces))? {
        found.insert(entry.map_err(Fault::reading(&keyspaces))?.file_name());
    }
    // A store of format 2 has all but the last space, which is added when it is opened.
    let first_new = (Space::ALL.len()).to_string();
    let complete = found.contains(std::ffi::OsStr::new(&first_new));
    let spaces = Space::ALL.len() - usize::from(!complete);
    let expected: BTreeSet<_> = (0..=spaces).map(|number| number.to_string().into()).collect();
    if let Some(name) = found.symmetric_difference(&expected).next() {
        let problem = if expected.contains(name) { "is missing" } else { "does not belong there" };
        let name = name.to_string_lossy();
        return Err(Fault::Damaged(format!("{STORE}/keyspaces/{} {problem}", name.escape_debug())));
    }
    expected.iter().try_for_each(|name| tables::check(&keyspaces.join(name), whole))
}

/// Cuts a torn tail off the journal, after keeping its bytes beside the store, and says how many there were.
fn cut(tear: &Tear, dir: &Path, kept: &Path) -> io::Result<u64> {
    fs::write(kept, &tear.tail)?;
    File::open(kept)?.sync_all()?;
    sync_dir(dir)?;
    let journal = File::options().write(true).open(&tear.path)?;
    journal.set_len(tear.at)?;
    journal.sync_all()?;
    Ok(tear.tail.len() as u64)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes names in a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
