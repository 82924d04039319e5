//! The voters: Raft behind our own words. Nothing of openraft shows outside.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    CheckIsLeaderError, ClientWriteError, InitializeError, InstallSnapshotError, NetworkError, RPCError,
    RaftError, RemoteError, Unreachable as NotReached,
};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{ChangeMembers, Config, Raft, SnapshotPolicy};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tropism_placement::StoredRecord;

use crate::store::{Disk, Log, Machine, StoreProblem};
use crate::types::{Answer, Command, Encoded, Types, Voter};

/// How often a leader says that it is there: twice the longest round trip between regions.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long a voter waits for a leader before it stands itself: some heartbeats, and long enough that the far ends of the
/// world do not stand against each other.
const ELECTION: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(4));
/// A snapshot is made after so many entries, and as many are kept behind it for who is a little late.
const SNAPSHOT_ENTRIES: u64 = 1_000;
/// Bytes of a snapshot in one message: four times that as JSON, below the 4 MiB of a message.
const SNAPSHOT_CHUNK_BYTES: u64 = 512 << 10;
/// Records restored by one entry: some 300 kB.
const RESTORE_RECORDS: usize = 1_000;

/// Another voter could not be asked; why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// What one voter asks another on behalf of Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rpc {
    /// To take entries, or that there is a leader.
    Append,
    /// For its vote.
    Vote,
    /// To take a part of a snapshot.
    Snapshot,
}

/// A question under way.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, Unreachable>> + Send + 'a>>;

/// How voters reach each other.
pub trait Network: Send + Sync + 'static {
    /// Asks the voter with this id on another node, and returns its answer within this time. The bytes are JSON.
    fn ask(&self, node: &str, voter: u64, rpc: Rpc, body: Vec<u8>, patience: Duration) -> Asking<'_>;
}

/// Why a change is not decided.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Undecided {
    /// Another voter decides. Nothing was changed.
    #[error("another voter leads")]
    Elsewhere {
        /// The node that leads, if this voter knows.
        leader: Option<String>,
    },
    /// The directory has not begun: not all of its nodes have met. Nothing was changed.
    #[error("the directory has not begun")]
    NotFounded,
    /// Another change of the scope came first. Nothing was changed.
    #[error("another change came first: the record has epoch {epoch}")]
    Late {
        /// The epoch of the newest record.
        epoch: u64,
    },
    /// The record can never come next; why. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// No majority answered in time: it may be decided yet, or never.
    #[error("outcome unknown: no majority of the directory's voters answered in time")]
    Unknown,
    /// The group has stopped; why. Whether anything was changed is unknown.
    #[error("outcome unknown: the directory stopped here: {0}")]
    Stopped(String),
}

/// Where a voter stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its id: that of this life of its store.
    pub id: u64,
    /// It knows of no group: nothing was ever agreed on with it.
    pub fresh: bool,
    /// The voters of the group it knows, each with its node.
    pub voters: BTreeMap<u64, String>,
    /// The node that leads, if it knows.
    pub leader: Option<String>,
    /// It leads.
    pub leads: bool,
    /// The directory has begun.
    pub founded: bool,
    /// It takes part no more, and why: its store failed, or it was stopped.
    pub stopped: Option<String>,
}

/// What came after a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// The directory's name: another name is another directory, to be followed from revision 0.
    pub directory: u64,
    /// Everything up to this revision is known with these records.
    pub revision: u64,
    /// The records, oldest change first.
    pub records: Vec<StoredRecord>,
}

/// A voter of the directory. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    id: u64,
    raft: Raft<Types>,
    machine: Machine,
}

impl Group {
    /// Opens the store at `path`, or makes it, and takes part. Its tasks run on the runtime of the caller, which blocks for
    /// the syncs of small writes.
    pub async fn open(path: &Path, network: Arc<dyn Network>) -> Result<Self, StoreProblem> {
        let disk = Disk::open(path)?;
        let id = disk.id()?;
        let machine = Machine::open(disk.clone())?;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "tropism".into(),
            heartbeat_interval: ms(HEARTBEAT),
            election_timeout_min: ms(ELECTION.0),
            election_timeout_max: ms(ELECTION.1),
            install_snapshot_timeout: ms(ELECTION.1),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
            max_in_snapshot_log_to_keep: SNAPSHOT_ENTRIES,
            snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
            ..Config::default()
        };
        let raft = Raft::new(id, Arc::new(config), Dialler(network), Log(disk), machine.clone()).await;
        let damaged = |problem: String| StoreProblem::Damaged { what: "the log", problem };
        Ok(Self { id, raft: raft.map_err(|error| damaged(error.to_string()))?, machine })
    }

    /// Where this voter stands.
    pub fn standing(&self) -> Standing {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let node = |id: u64| membership.get_node(&id).map(|voter| voter.node.clone());
        Standing {
            id: self.id,
            fresh: metrics.last_log_index.is_none() && metrics.last_applied.is_none(),
            voters: membership.voter_ids().filter_map(|id| Some((id, node(id)?))).collect(),
            leader: metrics.current_leader.and_then(node),
            leads: metrics.current_leader == Some(self.id),
            founded: self.machine.read(|state| state.name()).is_some(),
            stopped: metrics.running_state.err().map(|error| error.to_string()),
        }
    }

    /// Begins a group of these voters, by id, each with its node. All of them must be fresh, and no other group may exist;
    /// doing it twice with the same voters is harmless.
    pub async fn initialize(&self, voters: BTreeMap<u64, String>) -> Result<(), Undecided> {
        let voters: BTreeMap<u64, Voter> =
            voters.into_iter().map(|(id, node)| (id, Voter { node })).collect();
        match self.raft.initialize(voters).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error)) => Err(Undecided::Refused(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(Undecided::Stopped(error.to_string())),
        }
    }

    /// Begins the directory, as the leader: from the newest of the copies that nodes have of a directory before it, none
    /// where there was none. Once it has begun this changes nothing.
    pub async fn found(
        &self,
        name: u64,
        copies: Vec<StoredRecord>,
        patience: Duration,
    ) -> Result<(), Undecided> {
        let mut newest: BTreeMap<_, StoredRecord> = BTreeMap::new();
        for record in copies {
            let known = newest.get(&record.scope.name).map(StoredRecord::epoch);
            if known.is_none_or(|known| known < record.epoch()) {
                newest.insert(record.scope.name.clone(), record);
            }
        }
        let records: Vec<Encoded> = newest.into_values().map(Encoded).collect();
        for part in records.chunks(RESTORE_RECORDS) {
            self.write(Command::Restore(part.to_vec()), patience).await?;
        }
        self.write(Command::Found { directory: name.max(1) }, patience).await?;
        Ok(())
    }

    /// Makes a record the newest of its scope, and returns its revision when a majority has it on disk.
    pub async fn decide(&self, record: StoredRecord, patience: Duration) -> Result<u64, Undecided> {
        match self.write(Command::Decide(Encoded(record)), patience).await? {
            Answer::Decided(revision) => Ok(revision),
            Answer::Late(epoch) => Err(Undecided::Late { epoch }),
            Answer::Refused(problem) => Err(Undecided::Refused(problem)),
            Answer::NotFounded | Answer::Nothing => Err(Undecided::NotFounded),
        }
    }

    /// A leader that is cut off never hears back, so it must not be waited for without an end.
    async fn write(&self, command: Command, patience: Duration) -> Result<Answer, Undecided> {
        match timeout(patience, self.raft.client_write(command)).await {
            Err(_) => Err(Undecided::Unknown),
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(RaftError::APIError(error))) => Err(elsewhere(error)),
            Ok(Err(RaftError::Fatal(error))) => Err(Undecided::Stopped(error.to_string())),
        }
    }

    /// Lets a voter in, as the leader: in the place of another life of the same node, where there was one. A majority of
    /// the voters that there are must agree, so nothing that was agreed on is forgotten.
    pub async fn admit(&self, id: u64, node: &str, patience: Duration) -> Result<(), Undecided> {
        let standing = self.standing();
        if standing.voters.contains_key(&id) {
            return Ok(());
        }
        let change = async {
            let voter = Voter { node: node.to_owned() };
            self.raft.add_learner(id, voter, true).await?;
            let others = standing.voters.iter().filter(|(_, other)| *other != node).map(|(id, _)| *id);
            let voters: BTreeSet<u64> = others.chain([id]).collect();
            self.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), false).await
        };
        match timeout(patience, change).await {
            Err(_) => Err(Undecided::Unknown),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(error))) => Err(elsewhere(error)),
            Ok(Err(RaftError::Fatal(error))) => Err(Undecided::Stopped(error.to_string())),
        }
    }

    /// Makes sure that this voter leads now and has applied everything that was decided before this call.
    pub async fn confirm(&self, patience: Duration) -> Result<(), Undecided> {
        match timeout(patience, self.raft.ensure_linearizable()).await {
            Err(_) => Err(Undecided::Unknown),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(Undecided::Elsewhere { leader: forward.leader_node.map(|voter| voter.node) })
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) => Err(Undecided::Unknown),
            Ok(Err(RaftError::Fatal(error))) => Err(Undecided::Stopped(error.to_string())),
        }
    }

    /// What came after a revision of the directory of this name, at most so many records; of another directory, from the
    /// beginning. `None`: it has not begun.
    pub fn since(&self, directory: u64, revision: u64, most: usize) -> Option<Feed> {
        self.machine.read(|state| {
            let name = state.name()?;
            let after = if name == directory { revision.min(state.directory.revision()) } else { 0 };
            let mut records = Vec::new();
            let mut reached = state.directory.revision();
            for (revision, record) in state.directory.since(after) {
                if records.len() >= most.max(1) {
                    break;
                }
                records.push(record.clone());
                reached = revision;
            }
            if records.len() < most.max(1) {
                reached = state.directory.revision();
            }
            Some(Feed { directory: name, revision: reached, records })
        })
    }

    /// Changes whenever something was applied.
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.machine.turns.subscribe()
    }

    /// Answers what another voter asks the voter with this id on behalf of Raft. Another life of its store is another
    /// voter: what that promised is not known here, and its vote is not this one's to give.
    pub async fn answer(&self, voter: u64, rpc: Rpc, body: &[u8]) -> Result<Vec<u8>, Unreachable> {
        if voter != self.id {
            return Err(Unreachable("the voter that is asked is gone with its store".into()));
        }
        match rpc {
            Rpc::Append => reply(&self.raft.append_entries(parse(body)?).await),
            Rpc::Vote => reply(&self.raft.vote(parse(body)?).await),
            Rpc::Snapshot => reply(&self.raft.install_snapshot(parse(body)?).await),
        }
    }

    /// Takes part no more. What was answered stays true.
    pub async fn stop(&self) {
        self.raft.shutdown().await.ok(); // a task that had panicked is over, too
    }
}

fn elsewhere(error: ClientWriteError<u64, Voter>) -> Undecided {
    match error {
        ClientWriteError::ForwardToLeader(forward) => {
            Undecided::Elsewhere { leader: forward.leader_node.map(|voter| voter.node) }
        }
        ClientWriteError::ChangeMembershipError(error) => Undecided::Refused(error.to_string()),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreachable> {
    serde_json::from_slice(bytes)
        .map_err(|error| Unreachable(format!("a voter's message cannot be read: {error}")))
}

fn reply(answer: &impl Serialize) -> Result<Vec<u8>, Unreachable> {
    serde_json::to_vec(answer).map_err(|error| Unreachable(error.to_string()))
}

struct Dialler(Arc<dyn Network>);

impl RaftNetworkFactory<Types> for Dialler {
    type Network = Dialled;

    async fn new_client(&mut self, id: u64, voter: &Voter) -> Dialled {
        Dialled { network: self.0.clone(), id, node: voter.node.clone() }
    }
}

/// Another voter.
struct Dialled {
    network: Arc<dyn Network>,
    id: u64,
    node: String,
}

type Asked<T, E> = Result<T, RPCError<u64, Voter, RaftError<u64, E>>>;

impl Dialled {
    async fn ask<T, E>(&self, rpc: Rpc, body: &impl Serialize, option: &RPCOption) -> Asked<T, E>
    where
        T: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let broken = |error: Unreachable| RPCError::Network(NetworkError::new(&error));
        let body = reply(body).map_err(broken)?;
        let asked = self.network.ask(&self.node, self.id, rpc, body, option.hard_ttl()).await;
        let answer = asked.map_err(|error| RPCError::Unreachable(NotReached::new(&error)))?;
        let answer: Result<T, RaftError<u64, E>> = parse(&answer).map_err(broken)?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.id, error)))
    }
}

impl RaftNetwork<Types> for Dialled {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, Voter, RaftError<u64>>> {
        self.ask(Rpc::Append, &rpc, &option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RPCError<u64, Voter, RaftError<u64, InstallSnapshotError>>>
    {
        self.ask(Rpc::Snapshot, &rpc, &option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, Voter, RaftError<u64>>> {
        self.ask(Rpc::Vote, &rpc, &option).await
    }
}
