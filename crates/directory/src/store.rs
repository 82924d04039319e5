//! The voters' log and state on disk: a small fjall database of its own, beside the node's store.
//!
//! Every write is one batch, synced before it is told: a vote, an entry and an applied command may each be what a majority
//! counts on. The store has no witness; that it lost something is not found by itself, but a voter whose directory is
//! gone has another id and is let in again as a new one ([`Group::admit`](crate::Group::admit)).

use std::fmt::Debug;
use std::io::{self, Cursor};
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    Entry, EntryPayload, LogId, LogState, OptionalSend, RaftLogReader, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;
use tropism_placement::{Directory, Refusal};
use tropism_storage::rows::Row;

use crate::types::{Answer, Command, Encoded, Types, Voter};

/// The least journal that fjall takes, bytes.
const JOURNAL_BYTES: u64 = 64 << 20;
/// Memory for blocks, bytes: everything is in memory anyway.
const CACHE_BYTES: u64 = 1 << 20;
/// Memory for what is not in a file yet, bytes.
const MEMTABLE_BYTES: u64 = 1 << 20;

const ID: &[u8] = b"id";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";
const APPLIED: &[u8] = b"applied";
const SNAPSHOT: &[u8] = b"snapshot";
const SNAPSHOT_DATA: &[u8] = b"snapshot_data";

/// Why the directory's store does not open, or stopped working. The node's own store is not touched by it.
#[derive(Debug, Error)]
pub enum StoreProblem {
    /// The system, or fjall.
    #[error("the directory's store: {0}")]
    Engine(#[from] fjall::Error),
    /// What was read is not what was written.
    #[error("the directory's store: {what} cannot be read: {problem}")]
    Damaged {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// The database.
#[derive(Clone)]
pub(crate) struct Disk {
    database: Database,
    /// Entries by index.
    log: Keyspace,
    /// Records by scope, each behind its revision.
    records: Keyspace,
    /// Everything else.
    meta: Keyspace,
}

impl Disk {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreProblem> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(1)
            .open()?;
        let keyspace = |name| {
            database.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES))
        };
        let (log, records, meta) = (keyspace("log")?, keyspace("records")?, keyspace("meta")?);
        Ok(Self { database, log, records, meta })
    }

    /// The id of this life of the store; made up at its first use.
    pub(crate) fn id(&self) -> Result<u64, StoreProblem> {
        if let Some(id) = self.read(ID, "the voter's id")? {
            return Ok(id);
        }
        let id: u64 = rand::random_range(1..=u64::MAX);
        self.write(|batch| batch.insert(&self.meta, ID, json(&id)))?;
        Ok(id)
    }

    fn read<T: DeserializeOwned>(&self, key: &[u8], what: &'static str) -> Result<Option<T>, StoreProblem> {
        self.meta.get(key)?.map(|bytes| parse(&bytes, what)).transpose()
    }

    fn write(&self, fill: impl FnOnce(&mut OwnedWriteBatch)) -> Result<(), StoreProblem> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        fill(&mut batch);
        Ok(batch.commit()?)
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Maps with keys that are no text would fail; these have none.
    serde_json::to_vec(value).unwrap_or_default()
}

fn parse<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, StoreProblem> {
    serde_json::from_slice(bytes)
        .map_err(|problem| StoreProblem::Damaged { what, problem: problem.to_string() })
}

type Failed = StorageError<u64>;

fn log_read(problem: StoreProblem) -> Failed {
    StorageIOError::read_logs(&problem).into()
}

fn log_written(problem: StoreProblem) -> Failed {
    StorageIOError::write_logs(&problem).into()
}

fn state_written(problem: StoreProblem) -> Failed {
    StorageIOError::write_state_machine(&problem).into()
}

/// The log.
#[derive(Clone)]
pub(crate) struct Log(pub(crate) Disk);

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, Failed> {
        let key = |bound: Bound<&u64>| bound.map(|index| index.to_be_bytes());
        let bounds = (key(range.start_bound()), key(range.end_bound()));
        let entries = self.0.log.range::<[u8; 8], _>(bounds).map(|row| {
            let bytes = row.value()?;
            parse(&bytes, "an entry of the log")
        });
        entries.collect::<Result<Vec<_>, StoreProblem>>().map_err(log_read)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failed> {
        let last = || -> Result<_, StoreProblem> {
            let purged: Option<LogId<u64>> = self.0.read(PURGED, "the start of the log")?;
            let last = match self.0.log.last_key_value() {
                Some(row) => Some(parse::<Entry<Types>>(&row.value()?, "the end of the log")?.log_id),
                None => purged,
            };
            Ok(LogState { last_purged_log_id: purged, last_log_id: last })
        };
        last().map_err(log_read)
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failed> {
        let saved = self.0.write(|batch| batch.insert(&self.0.meta, VOTE, json(vote)));
        saved.map_err(|problem| StorageIOError::write_vote(&problem).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failed> {
        self.0.read(VOTE, "the vote").map_err(|problem| StorageIOError::read_vote(&problem).into())
    }

    async fn save_committed(&mut self, committed: Option<LogId<u64>>) -> Result<(), Failed> {
        // Known again from the leader if it is lost: it needs no sync of its own.
        let saved = self.0.meta.insert(COMMITTED, json(&committed)).map_err(StoreProblem::from);
        saved.map_err(log_written)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, Failed> {
        Ok(self.0.read::<Option<_>>(COMMITTED, "what is committed").map_err(log_read)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), Failed>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let written = self.0.write(|batch| {
            for entry in entries {
                batch.insert(&self.0.log, entry.log_id.index.to_be_bytes(), json(&entry));
            }
        });
        let told = written.as_ref().map_err(|problem| io::Error::other(problem.to_string()));
        callback.log_io_completed(told.copied());
        written.map_err(log_written)
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), Failed> {
        self.remove((Bound::Included(log_id.index), Bound::Unbounded), |_| {}).map_err(log_written)
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), Failed> {
        let upto = (Bound::Unbounded, Bound::Included(log_id.index));
        self.remove(upto, |batch| batch.insert(&self.0.meta, PURGED, json(&log_id))).map_err(log_written)
    }
}

impl Log {
    fn remove(
        &self,
        range: (Bound<u64>, Bound<u64>),
        also: impl FnOnce(&mut OwnedWriteBatch),
    ) -> Result<(), StoreProblem> {
        let key = |bound: Bound<u64>| bound.map(u64::to_be_bytes);
        let rows = self.0.log.range::<[u8; 8], _>((key(range.0), key(range.1)));
        let keys = rows.map(fjall::Guard::key).collect::<Result<Vec<_>, _>>()?;
        self.0.write(|batch| {
            keys.into_iter().for_each(|key| batch.remove(&self.0.log, key));
            also(batch);
        })
    }
}

/// What was applied, but for the records.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Applied {
    log_id: Option<LogId<u64>>,
    membership: StoredMembership<u64, Voter>,
    /// The directory's name; 0: it has not begun.
    directory: u64,
}

/// A whole state, as a new voter gets it.
#[derive(Serialize, Deserialize)]
struct Whole {
    directory: u64,
    revision: u64,
    records: Vec<(u64, Encoded)>,
}

#[derive(Default)]
pub(crate) struct State {
    applied: Applied,
    pub(crate) directory: Directory,
}

impl State {
    /// The directory's name, once it has begun.
    pub(crate) fn name(&self) -> Option<u64> {
        (self.applied.directory != 0).then_some(self.applied.directory)
    }

    /// What a command does. Records that changed are those behind the revision before.
    fn apply(&mut self, command: Command) -> Answer {
        match command {
            Command::Decide(_) if self.name().is_none() => Answer::NotFounded,
            Command::Decide(Encoded(record)) => match self.directory.decide(record) {
                Ok(revision) => Answer::Decided(revision),
                Err(Refusal::Late { epoch, .. }) => Answer::Late(epoch),
                Err(refusal) => Answer::Refused(refusal.to_string()),
            },
            Command::Restore(records) if self.name().is_none() => {
                for Encoded(record) in records {
                    let known = self.directory.get(&record.scope.name).map(|known| known.epoch());
                    if known.is_none_or(|known| known < record.epoch()) {
                        let revision = self.directory.revision() + 1;
                        self.directory.restore(revision, record).ok(); // it was decoded, so it is one
                    }
                }
                Answer::Nothing
            }
            Command::Found { directory } if self.name().is_none() => {
                self.applied.directory = directory;
                Answer::Nothing
            }
            Command::Restore(_) | Command::Found { .. } => Answer::Nothing,
        }
    }

    fn whole(&self) -> Whole {
        let records = self.directory.since(0).map(|(revision, record)| (revision, Encoded(record.clone())));
        Whole {
            directory: self.applied.directory,
            revision: self.directory.revision(),
            records: records.collect(),
        }
    }
}

/// The state machine.
#[derive(Clone)]
pub(crate) struct Machine {
    disk: Disk,
    pub(crate) state: Arc<RwLock<State>>,
    /// Counts what was applied.
    pub(crate) turns: Arc<watch::Sender<u64>>,
}

impl Machine {
    pub(crate) fn open(disk: Disk) -> Result<Self, StoreProblem> {
        let applied: Applied = disk.read(APPLIED, "what was applied")?.unwrap_or_default();
        let mut directory = Directory::default();
        for row in disk.records.iter() {
            let bytes = row.value()?;
            let damaged = |problem: String| StoreProblem::Damaged { what: "a record", problem };
            let (revision, row) =
                bytes.split_first_chunk::<8>().ok_or_else(|| damaged("it is too short".into()))?;
            let record =
                Row::decode(&bytes::Bytes::copy_from_slice(row)).map_err(|e| damaged(e.to_string()))?;
            let revision = u64::from_be_bytes(*revision);
            directory.restore(revision, record).map_err(|error| damaged(error.to_string()))?;
        }
        let state = Arc::new(RwLock::new(State { applied, directory }));
        Ok(Self { disk, state, turns: Arc::new(watch::Sender::new(0)) })
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state, in memory and then on disk: what a failed write leaves in memory is told to nobody, since the
    /// group ends with it.
    fn change<T>(&self, how: impl FnOnce(&mut State) -> T) -> Result<T, StoreProblem> {
        let (told, applied, rows) = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let before = state.directory.revision();
            let told = how(&mut state);
            let rows: Vec<_> =
                state.directory.since(before).map(|(revision, record)| (revision, record.clone())).collect();
            (told, json(&state.applied), rows)
        };
        self.disk.write(|batch| {
            batch.insert(&self.disk.meta, APPLIED, applied);
            for (revision, record) in rows {
                let row = [&revision.to_be_bytes()[..], &record.encode()].concat();
                batch.insert(&self.disk.records, record.scope.name.as_str().as_bytes(), row);
            }
        })?;
        self.turns.send_modify(|turns| *turns += 1);
        Ok(told)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, StoredMembership<u64, Voter>), Failed> {
        Ok(self.read(|state| (state.applied.log_id, state.applied.membership.clone())))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, Failed>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let applied = self.change(|state| {
            let apply = |entry: Entry<Types>| {
                state.applied.log_id = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => Answer::Nothing,
                    EntryPayload::Normal(command) => state.apply(command),
                    EntryPayload::Membership(membership) => {
                        state.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Answer::Nothing
                    }
                }
            };
            entries.into_iter().map(apply).collect()
        });
        applied.map_err(state_written)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failed> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, Voter>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failed> {
        let data = snapshot.into_inner();
        let install = || -> Result<(), StoreProblem> {
            let whole: Whole = parse(&data, "a snapshot")?;
            let mut directory = Directory::default();
            for (revision, Encoded(record)) in &whole.records {
                let damaged = |problem: tropism_placement::RecordError| StoreProblem::Damaged {
                    what: "a snapshot",
                    problem: problem.to_string(),
                };
                directory.restore(*revision, record.clone()).map_err(damaged)?;
            }
            let applied = Applied {
                log_id: meta.last_log_id,
                membership: meta.last_membership.clone(),
                directory: whole.directory,
            };
            // Records only ever get newer, and none goes: what is here is overwritten.
            self.disk.write(|batch| {
                batch.insert(&self.disk.meta, APPLIED, json(&applied));
                batch.insert(&self.disk.meta, SNAPSHOT, json(meta));
                batch.insert(&self.disk.meta, SNAPSHOT_DATA, &*data);
                for (revision, Encoded(record)) in whole.records {
                    let row = [&revision.to_be_bytes()[..], &record.encode()].concat();
                    batch.insert(&self.disk.records, record.scope.name.as_str().as_bytes(), row);
                }
            })?;
            *self.state.write().unwrap_or_else(PoisonError::into_inner) = State { applied, directory };
            self.turns.send_modify(|turns| *turns += 1);
            Ok(())
        };
        install().map_err(|problem| StorageIOError::write_snapshot(Some(meta.signature()), &problem).into())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failed> {
        let read = || -> Result<_, StoreProblem> {
            let Some(meta) = self.disk.read(SNAPSHOT, "a snapshot")? else { return Ok(None) };
            let data = self.disk.meta.get(SNAPSHOT_DATA)?.map(|data| data.to_vec()).unwrap_or_default();
            Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
        };
        read().map_err(|problem| StorageIOError::read_snapshot(None, &problem).into())
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failed> {
        let (applied, whole) = self.read(|state| (state.applied.clone(), state.whole()));
        let index = applied.log_id.map_or(0, |id| id.index);
        let meta = SnapshotMeta {
            last_log_id: applied.log_id,
            last_membership: applied.membership,
            snapshot_id: format!("{index}-{}", whole.revision),
        };
        let data = json(&whole);
        let written = self.disk.write(|batch| {
            batch.insert(&self.disk.meta, SNAPSHOT, json(&meta));
            batch.insert(&self.disk.meta, SNAPSHOT_DATA, &*data);
        });
        written
            .map_err(|problem| StorageIOError::write_snapshot(Some(meta.signature()), &problem))
            .map_err(Failed::from)?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openraft::testing::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::*;

    struct Builder;

    impl StoreBuilder<Types, Log, Machine, TempDir> for Builder {
        async fn build(&self) -> Result<(TempDir, Log, Machine), Failed> {
            let dir = tempfile::tempdir().unwrap();
            let disk = Disk::open(&dir.path().join("directory")).unwrap();
            Ok((dir, Log(disk.clone()), Machine::open(disk).unwrap()))
        }
    }

    #[test]
    fn log_and_state_machine_pass_the_suite_of_openraft() {
        Suite::test_all(Builder).unwrap();
    }
}
