//! The engine: ordered bytes.

use std::borrow::Borrow;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

/// The ordered maps of an engine. Few and fixed: an engine pays per map, so scopes are prefixes, not maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Space {
    /// One row per key: its state and the value as served.
    Values = 0,
    /// Per key of kind document: its automerge history.
    Edits = 1,
    /// The bodies of changes, by shard, origin and seq.
    Log = 2,
    /// Per shard: what it is, and its vector.
    Shards = 3,
    /// About this node: header, commit index, peers, scopes.
    Node = 4,
    /// Per shard the request ids of the last day and what became of them.
    Requests = 5,
    /// Per shard that comes from a peer as a whole: the states of its keys, until they are merged into their rows.
    Staged = 6,
}

impl Space {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Values, Self::Edits, Self::Log, Self::Shards, Self::Node, Self::Requests, Self::Staged];

    /// The name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Edits => "edits",
            Self::Log => "log",
            Self::Shards => "shards",
            Self::Node => "node",
            Self::Requests => "requests",
            Self::Staged => "staged",
        }
    }
}

/// A key an engine accepts: never empty (fjall would never open again), never above [`StoreKey::MAX_LEN`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreKey(Bytes);

impl StoreKey {
    /// Longest key in bytes: 2 slot + 16 shard + 512 key + 17 suffix, rounded up; far below fjall's 65 535.
    pub const MAX_LEN: usize = 1024;

    /// Only the key enums build keys, and none of theirs is empty or too long.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        assert!(!bytes.is_empty() && bytes.len() <= Self::MAX_LEN, "store keys are 1 to 1024 bytes");
        Self(bytes.into())
    }

    /// A key that an engine returned.
    pub fn existing(bytes: Bytes) -> Self {
        assert!(!bytes.is_empty() && bytes.len() <= Self::MAX_LEN, "store keys are 1 to 1024 bytes");
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl Borrow<[u8]> for StoreKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// Puts and removals that take effect together or not at all.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order; `None` removes.
    pub writes: Vec<(Space, StoreKey, Option<Bytes>)>,
}

/// The engine failed. What was not synced may or may not be there; the node stops and finds out at its next start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the store failed while {doing}: {problem}; the outcome of what was in flight is unknown until the next start"
)]
pub struct EngineError {
    /// What was being done.
    pub doing: &'static str,
    /// What the engine said, and what is to be done about it.
    pub problem: String,
}

/// Rows in key order, as `(key, value)`.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), EngineError>> + 'a>;

/// Something to read from: an engine, or its state at one moment.
pub trait View {
    /// The value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Rows with `from <= key < to`, in key order.
    fn scan<'a>(&'a self, space: Space, from: &[u8], to: &[u8]) -> Rows<'a>;
}

/// An ordered, durable map of bytes.
pub trait Engine: View + Send {
    /// Applies a batch atomically. Visible at once through this engine, durable after the next [`Self::sync`].
    fn commit(&mut self, batch: Batch) -> Result<(), EngineError>;

    /// Makes every commit so far durable.
    fn sync(&mut self) -> Result<(), EngineError>;

    /// What makes commits durable from another thread, while this one goes on to commit.
    fn syncer(&self) -> Box<dyn Syncer>;

    /// The state of this moment, for readers on other threads.
    fn snapshot(&self) -> Arc<dyn View + Send + Sync>;

    /// Whether anything survives the process.
    fn durable(&self) -> bool;

    /// How much room it takes. Looks at what it knows of its files, not at rows; still, not for every request.
    fn footprint(&self) -> Footprint;
}

/// How much room an engine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Bytes on disk, or of keys and values in memory for an engine without a disk.
    pub bytes: u64,
    /// Bytes of its cache of blocks, and the most it may hold; `None`: it has none.
    pub block_cache: Option<(u64, u64)>,
}

/// Makes commits durable, on whatever thread.
pub trait Syncer: Send {
    /// Makes every commit that was done when this began durable.
    fn sync(&mut self) -> Result<(), EngineError>;
}
