//! What nodes say to each other.
//!
//! A link carries frames both ways. It is a TCP stream in production, but nothing here relies on that: every frame may
//! be lost, doubled or late, and changes, told vectors and comparisons mean the same whenever they arrive. Only the
//! *closed time* needs the frames of one round in order, so frames are numbered.

use bytes::Bytes;
use tropism_crdt::{NodeId, Origin, Stamp, Vector};
use tropism_placement::{RegionName, ShardId};
use tropism_storage::rows::Seen;
use tropism_storage::{Head, ShardRow};

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
    Vectors {
        /// The shards, and how far the sender has come in them.
        shards: Vec<ShardState>,
        /// Whether this answers such a frame; if not, the receiver shows its own vectors of the same shards.
        answer: bool,
    },
    /// That the sender lives, and what follows from it.
    Heartbeat(Heartbeat),
    /// The receiver sent changes of a shard that the sender does not hold under this epoch.
    NotMember {
        /// The shard.
        shard: ShardId,
        /// Epoch of the placement record that says so.
        epoch: u64,
    },
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
}
