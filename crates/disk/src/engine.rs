//! The engine on fjall: one key space per [`Space`], a commit is one batch over all of them.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use tropism_storage::engine::Rows;
use tropism_storage::{Batch, Engine, EngineError, Footprint, Space, Syncer, View};

/// Memory and disk that an engine may use beside its tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// Cache of table blocks, bytes. Default 128 MiB: some 500 000 small rows stay warm on a node of 600 MB.
    pub block_cache_bytes: u64,
    /// Sealed journals beyond which the spaces that pin them are flushed, bytes; at least 64 MiB, one journal. Bounds
    /// what an open replays. Default 128 MiB.
    pub max_journal_bytes: u64,
    /// Rows a space gathers in memory before they become a table, bytes; fixed when a store is made. Default 16 MiB:
    /// six spaces, each with a few sealed ones waiting, stay small beside the cache, and a table is still one long write.
    pub memtable_bytes: u64,
    /// Threads that flush and compact, at least 1. Default 2: one may compact while the other flushes.
    pub worker_threads: usize,
}

impl DiskOptions {
    /// fjall preallocates journals of this many bytes and panics below.
    const MIN_JOURNAL_BYTES: u64 = 64 << 20;
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 128 << 20,
            max_journal_bytes: 128 << 20,
            memtable_bytes: 16 << 20,
            worker_threads: 2,
        }
    }
}

/// Bytes written to find out whether anything can be: more than a disk keeps back for small files.
const TRIED_BYTES: usize = 1 << 20;

/// The key spaces and what must outlive them: fields are dropped in this order.
struct Spaces {
    keyspaces: [Keyspace; Space::ALL.len()],
    database: Database,
    /// Made when something may be damaged; see [`Spaces::failed`].
    suspect: PathBuf,
    _lock: File,
}

/// The engine on disk. A commit reaches the disk with the next sync; readers on other threads take snapshots.
///
/// Dropping the last of an engine and its snapshots waits for the workers and releases the directory.
pub struct DiskEngine {
    spaces: Arc<Spaces>,
    cut_bytes: u64,
}

/// The store at one moment.
struct DiskSnapshot {
    snapshot: Snapshot,
    spaces: Arc<Spaces>,
}

/// Why fjall does not open a directory.
#[derive(Debug)]
pub(crate) enum Refusal {
    Locked,
    Damaged(String),
    Io(io::Error),
}

impl From<fjall::Error> for Refusal {
    fn from(error: fjall::Error) -> Self {
        let source = match error {
            fjall::Error::Locked => return Self::Locked,
            fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => source,
            other => return Self::Damaged(other.to_string()),
        };
        if is_damage(source.kind()) { Self::Damaged(source.to_string()) } else { Self::Io(source) }
    }
}

/// Commits reach the operating system at once, as fjall does by default: holding them back until the sync (its
/// `manual_journal_persist`) saved nothing measurable and leaves more torn tails after a kill.
fn open_spaces(
    path: &Path,
    options: &DiskOptions,
) -> Result<(Database, [Keyspace; Space::ALL.len()]), fjall::Error> {
    let database = Database::builder(path)
        .cache_size(options.block_cache_bytes)
        .max_journaling_size(options.max_journal_bytes.max(DiskOptions::MIN_JOURNAL_BYTES))
        .worker_threads(options.worker_threads.max(1))
        .open()?;
    let keyspace = |space: Space| {
        database.keyspace(space.name(), || {
            KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes)
        })
    };
    let [values, edits, log, shards, node, requests, staged] = Space::ALL;
    let keyspaces = [
        keyspace(values)?,
        keyspace(edits)?,
        keyspace(log)?,
        keyspace(shards)?,
        keyspace(node)?,
        keyspace(requests)?,
        keyspace(staged)?,
    ];
    Ok((database, keyspaces))
}

/// Makes an empty store and closes it.
pub(crate) fn make(path: &Path, options: &DiskOptions) -> io::Result<()> {
    let (database, _) = open_spaces(path, options).map_err(io::Error::other)?;
    database.persist(PersistMode::SyncAll).map_err(io::Error::other)
}

impl DiskEngine {
    /// Opens a store that was verified. `lock` is held as long as anything reads the store; the file `suspect` is made
    /// when the next open must verify all of it.
    pub(crate) fn open(
        path: &Path,
        options: &DiskOptions,
        lock: File,
        suspect: &Path,
        cut_bytes: u64,
    ) -> Result<Self, Refusal> {
        // fjall panics on some damaged files. What it was building is dropped with the panic, nothing of it is kept.
        let opened = catch_unwind(AssertUnwindSafe(|| open_spaces(path, options)));
        let (database, keyspaces) = opened.map_err(|panic| {
            let said =
                panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Refusal::Damaged(format!("fjall panicked: {}", said.unwrap_or("without a word")))
        })??;
        let spaces = Spaces { keyspaces, database, suspect: suspect.to_owned(), _lock: lock };
        Ok(Self { spaces: Arc::new(spaces), cut_bytes })
    }

    /// Bytes of a torn, never acknowledged write that opening cut off the journal; they are in the file `torn-tail`
    /// until the next open without a repair. 0 when the journal was whole.
    pub fn cut_bytes(&self) -> u64 {
        self.cut_bytes
    }
}

impl Spaces {
    fn keyspace(&self, space: Space) -> &Keyspace {
        &self.keyspaces[space as usize]
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.database.persist(PersistMode::SyncData).map_err(|error| self.failed("syncing", &error))
    }

    fn get(&self, found: fjall::Result<Option<fjall::UserValue>>) -> Result<Option<Bytes>, EngineError> {
        Ok(found.map_err(|error| self.failed("reading", &error))?.map(Bytes::from))
    }

    /// Rows of an iterator, for which `from < to`.
    fn rows(&self, iter: fjall::Iter) -> Rows<'_> {
        Box::new(iter.map(|row| {
            let (key, value) = row.into_inner().map_err(|error| self.failed("scanning", &error))?;
            Ok((key.into(), value.into()))
        }))
    }

    /// Tells what failed and what to do about it. Where that is not the system's word but what was read, the store is
    /// marked, so that the next open reads all of it and says what is damaged.
    fn failed(&self, doing: &'static str, error: &fjall::Error) -> EngineError {
        let problem = match error {
            fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source))
                if !is_damage(source.kind()) =>
            {
                advice(source)
            }
            // A thread that flushes or compacts has failed, and kept the reason for the log.
            fjall::Error::Poisoned => match self.try_to_write() {
                Err(source) => format!("a flush or a compaction failed: {}", advice(&source)),
                Ok(()) => {
                    let marked = self.mark();
                    format!("a flush or a compaction failed, though not for want of room; {marked}")
                }
            },
            other => format!("{other}; {}", self.mark()),
        };
        EngineError { doing, problem }
    }

    fn mark(&self) -> &'static str {
        match File::create(&self.suspect) {
            Ok(_) => "the next start reads every table and says what is damaged",
            Err(_) => "what is damaged is found when it is read",
        }
    }

    /// Whether a file can be written now.
    fn try_to_write(&self) -> io::Result<()> {
        let path = self.suspect.with_extension("tried");
        let written = fs::write(&path, [1; TRIED_BYTES]);
        fs::remove_file(&path).ok(); // it may not even have been made
        written
    }
}

/// Whether a system's error is about what a file holds: missing and short files and offsets that cannot be are damage; a
/// full disk or a denied permission is not.
fn is_damage(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, Other, UnexpectedEof};
    matches!(kind, InvalidData | InvalidInput | NotFound | Other | UnexpectedEof)
}

/// A system's error, and what to do.
fn advice(source: &io::Error) -> String {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => format!("{source}: make room on its disk"),
        _ => format!("{source}: mend that"),
    }
}

impl View for DiskEngine {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.spaces.get(self.spaces.keyspace(space).get(key))
    }

    fn scan<'a>(&'a self, space: Space, from: &[u8], to: &[u8]) -> Rows<'a> {
        if from >= to {
            return Box::new(std::iter::empty()); // an inverted range would panic
        }
        self.spaces.rows(self.spaces.keyspace(space).range(from..to))
    }
}

impl Engine for DiskEngine {
    fn commit(&mut self, batch: Batch) -> Result<(), EngineError> {
        let mut writes = self.spaces.database.batch();
        for (space, key, value) in batch.writes {
            let keyspace = self.spaces.keyspace(space);
            match value {
                Some(value) => writes.insert(keyspace, key.as_bytes().clone(), value),
                None => writes.remove(keyspace, key.as_bytes().clone()),
            }
        }
        writes.commit().map_err(|error| self.spaces.failed("committing", &error))
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.spaces.sync()
    }

    fn syncer(&self) -> Box<dyn Syncer> {
        Box::new(DiskSyncer(self.spaces.clone()))
    }

    fn snapshot(&self) -> Arc<dyn View + Send + Sync> {
        Arc::new(DiskSnapshot { snapshot: self.spaces.database.snapshot(), spaces: self.spaces.clone() })
    }

    fn durable(&self) -> bool {
        true
    }

    fn footprint(&self) -> Footprint {
        let database = &self.spaces.database;
        Footprint {
            bytes: database.disk_space().unwrap_or(0), // fails only when a lock is poisoned: the engine has failed
            block_cache: Some((database.cache_size(), database.cache_capacity())),
        }
    }
}

/// The same database, to sync it from another thread.
struct DiskSyncer(Arc<Spaces>);

impl Syncer for DiskSyncer {
    fn sync(&mut self) -> Result<(), EngineError> {
        self.0.sync()
    }
}

impl View for DiskSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.spaces.get(self.snapshot.get(self.spaces.keyspace(space), key))
    }

    fn scan<'a>(&'a self, space: Space, from: &[u8], to: &[u8]) -> Rows<'a> {
        if from >= to {
            return Box::new(std::iter::empty()); // an inverted range would panic
        }
        self.spaces.rows(self.snapshot.range(self.spaces.keyspace(space), from..to))
    }
}
