//! What nodes say to each other.
//!
//! A link carries frames both ways. It is a TCP stream in production, but nothing here relies on that: every frame may
//! be lost, doubled or late, and changes, told vectors and comparisons mean the same whenever they arrive. Only the
//! *closed time* needs the frames of one round in order, so frames are numbered.

use bytes::Bytes;
use tropism_crdt::{NodeId, Origin, RequestId, Stamp, Vector};
use tropism_placement::{RegionName, ScopeName, ShardId};
use tropism_storage::rows::Seen;
use tropism_storage::{Head, ShardRow};

use crate::verify::{Verified, Verify};

/// What both sides show before any frame. The shell exchanges it, with the proof of the cluster secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Who speaks.
    pub node: NodeId,
    /// Its region.
    pub region: RegionName,
    /// The origin of its current life.
    pub origin: Origin,
    /// Its store: a cursor into another one is void.
    pub store_id: u128,
    /// Its last commit.
    pub head: Head,
    /// The highest state of *your* store it ever saw, if it is of the store you say you have. A node behind it is short.
    pub saw_you: Option<(u128, Seen)>,
    /// Whether the speaker knows that you had another store before that one.
    pub replaced: bool,
}

/// One frame of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Grows when the sender starts again from its cursor.
    pub round: u64,
    /// Counts the frames of a round from 0.
    pub number: u64,
    /// What it says.
    pub body: FrameBody,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameBody {
    /// Encoded changes, in an order in which the sender applied them.
    Changes(Vec<Bytes>),
    /// What the sender has applied and made durable.
    Told(Told),
    /// Asks for changes of an origin in a shard, from the log.
    Want(Want),
    /// Compares sums over the vectors of the shards both hold.
    Compare(Compare),
    /// Vectors of shards that compared unequal.
    Vectors(Vectors),
    /// What was wanted of a shard is not in the sender's log any more: it is to be had only as a whole.
    BelowFloor(ShardRow),
    /// Asks for a shard as a whole.
    Fetch(Fetch),
    /// A part of a shard.
    State(StatePart),
    /// Parts of a shard are staged.
    Fetched(Fetched),
    /// Asks whether the keys of a shard are those of the sender.
    Inspect(Inspect),
    /// Answers where vectors may differ.
    Inspected(Inspected),
    /// Asks for more of a sketch.
    MoreCells(MoreCells),
    /// More of a sketch.
    Cells(Cells),
    /// Keys that differ.
    Differ(Differ),
    /// Asks what the receiver has of a shard, for somebody who wants to know.
    Verify(Verify),
    /// Answers that.
    Verified(Verified),
    /// That the sender lives, and what follows from it.
    Heartbeat(Heartbeat),
    /// The steward of a scope asks an owner what it holds.
    AskHeld(AskHeld),
    /// Answers that.
    Held(HeldAnswer),
    /// The receiver sent changes of a shard that the sender does not hold under this epoch.
    NotMember {
        /// The shard.
        shard: ShardId,
        /// Epoch of the placement record that says so.
        epoch: u64,
    },
}

/// Asks an owner of a scope's slots what it holds, as soon as it has adopted an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskHeld {
    /// The scope.
    pub scope: ScopeName,
    /// The epoch; an owner of an earlier one does not answer.
    pub epoch: u64,
    /// Counts the questions; the answer repeats it.
    pub round: u64,
}

/// What an owner holds of a scope, durably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldAnswer {
    /// The scope.
    pub scope: ScopeName,
    /// The epoch that was adopted.
    pub epoch: u64,
    /// The question.
    pub round: u64,
    /// The vectors of its shards, by index.
    pub vectors: Vec<Vector>,
}

/// Vectors of shards: where sums differ, and where no log reaches back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vectors {
    /// The shards, and how far the sender has come in them.
    pub shards: Vec<ShardState>,
    /// The sender's commit that holds it: what it made before is at or below it. So they are as good as told.
    pub commit: u64,
    /// Whether this answers such a frame; if not, the receiver shows its own vectors of the same shards.
    pub answer: bool,
    /// Whether the receiver may lack what they count because no log reaches back to it.
    pub owed: bool,
}

/// How far a member has come in a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardState {
    /// What the shard is.
    pub row: ShardRow,
    /// What is applied.
    pub vector: Vector,
    /// The digest of its keys at that vector; `None` while it is not known.
    pub digest: Option<u128>,
}

/// What a member has applied: of each shard, entries of its vector that rose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The sender's commit that holds them: what it made before is at or below it.
    pub commit: u64,
    /// Revision of the directory under which it is told.
    pub directory_revision: u64,
    /// Per shard, `(origin, seq)`: every change of `origin` up to `seq` is applied.
    pub shards: Vec<(ShardId, Vec<(Origin, u64)>)>,
}

/// Asks for `from..=to` of `origin` in `shard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The shard.
    pub shard: ShardId,
    /// The author.
    pub origin: Origin,
    /// First seq.
    pub from: u64,
    /// Last seq.
    pub to: u64,
}

/// Asks for a shard as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The shard.
    pub row: ShardRow,
    /// Names the transfer.
    pub id: u64,
    /// What is staged already: every key up to the one named, under the vector.
    pub resume: Option<(Vector, String)>,
}

/// A part of a shard: states of some keys, in the order of the keys but for those that are sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePart {
    /// The shard.
    pub shard: ShardId,
    /// The transfer.
    pub id: u64,
    /// Counts parts from 0.
    pub number: u64,
    /// In the first: whether what was staged before does not count.
    pub begins_anew: bool,
    /// The vector under which everything staged up to and with this part stands.
    pub vector: Vector,
    /// States, or pieces of them.
    pub pieces: Vec<StatePiece>,
    /// Behind all states: request ids of clients with their rows, so that a request is known again.
    pub requests: Vec<(RequestId, Bytes)>,
    /// Whether this is all.
    pub last: bool,
}

impl StatePart {
    /// Bytes of the states in it.
    pub(crate) fn size(&self) -> usize {
        let requests: usize = self.requests.iter().map(|(_, row)| row.len()).sum();
        self.pieces.iter().map(|piece| piece.key.len() + piece.bytes.len()).sum::<usize>() + requests
    }
}

/// A piece of a key's encoded state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePiece {
    /// The key.
    pub key: String,
    /// Counts the pieces of the key from 0.
    pub number: u32,
    /// Whether it is the key's last.
    pub last: bool,
    /// The bytes.
    pub bytes: Bytes,
}

/// Asks whether the keys of a shard are those of the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspect {
    /// The shard.
    pub row: ShardRow,
    /// Names the inspection.
    pub id: u64,
    /// The vector of the sender's snapshot.
    pub vector: Vector,
    /// Its digest.
    pub digest: u128,
    /// Of the sketches of this inspection.
    pub salt: u64,
    /// The first cells, where the digests are known to differ; else empty.
    pub cells: Bytes,
}

/// Answers an inspection that showed no cells, or one of keys that are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The shard.
    pub shard: ShardId,
    /// The inspection.
    pub id: u64,
    /// The digest of the sender's snapshot without the keys named.
    pub digest: u128,
    /// Keys changed by what the sender has beyond the asker's vector.
    pub keys: Vec<String>,
}

/// Asks for the cells `from..to` of a sketch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoreCells {
    /// The shard.
    pub shard: ShardId,
    /// The inspection.
    pub id: u64,
    /// The first cell.
    pub from: u64,
    /// Behind the last.
    pub to: u64,
}

/// Some cells of a sketch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cells {
    /// The shard.
    pub shard: ShardId,
    /// The inspection.
    pub id: u64,
    /// Behind the last cell of those that were asked for.
    pub to: u64,
    /// The cells, encoded.
    pub bytes: Bytes,
}

/// Keys that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differ {
    /// The shard.
    pub shard: ShardId,
    /// The inspection.
    pub id: u64,
    /// The vector of the sender's snapshot.
    pub vector: Vector,
    /// Fingerprints of states that only the receiver has, which the sender wants.
    pub wanted: Vec<u128>,
    /// Keys with the sender's states of them.
    pub states: Vec<(String, Bytes)>,
}

/// Every part of a transfer up to `number` is staged durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// The shard.
    pub shard: ShardId,
    /// The transfer.
    pub id: u64,
    /// The last part.
    pub number: u64,
}

/// Sums of `(shard, vector, digest)` hashes over ranges of slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which shards: those with this set of member regions.
    pub group: u64,
    /// 0: all slots at once; 1: 64 ranges of 64 slots; 2: single slots.
    pub level: u8,
    /// `(range, sum)` of the ranges compared.
    pub sums: Vec<(u16, u128)>,
}

/// Sent every 200 ms and whenever there is something to say in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The sender's monotonic clock, us; comes back as `echo`.
    pub sent_us: u64,
    /// The sender's wall clock, Unix ms.
    pub wall_ms: u64,
    /// `sent_us` of the last heartbeat it received (0: none yet), and how long ago, us.
    pub echo: (u64, u64),
    /// Every change of the sender stamped up to this precedes the frame on this link.
    pub closed: Stamp,
    /// The sender's incarnation, commit number and running hash.
    pub seen: Seen,
    /// The receiver has told that it holds everything the sender logged up to this commit of the sender.
    pub your_cursor: u64,
    /// Nodes the sender hears.
    pub linked: Vec<NodeId>,
    /// Which store the sender knows of each other node, by the low half of its id: it takes nothing from an earlier one.
    pub stores: Vec<(NodeId, u64)>,
    /// How much of its peers' the sender's store has.
    pub wholeness: Wholeness,
    /// Keys in it.
    pub keys: u64,
}

/// How much of its peers' a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wholeness {
    /// Everything that was there when it began, and what came since.
    #[default]
    Whole,
    /// It is new, and may be the first of its node.
    New,
    /// It is new, and its node had another one.
    Rebuilding,
}
