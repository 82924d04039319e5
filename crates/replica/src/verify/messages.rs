//! What members say to each other about a verification.

use bytes::Bytes;
use tropism_crdt::{Origin, Vector};
use tropism_placement::ShardId;
use tropism_storage::ShardRow;

use super::report::KeyHeld;
use super::scan::RowsSeen;

/// Asks what a member has of a shard. It changes nothing there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// The shard.
    pub row: ShardRow,
    /// Names the comparison: the member keeps one snapshot for it.
    pub id: u64,
    /// Counts the questions of a comparison from 0: one that comes twice is answered twice, and one that comes late not at
    /// all.
    pub step: u32,
    /// What is asked.
    pub ask: VerifyAsk,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyAsk {
    /// The first: take a snapshot, if possible one that has everything of this vector, and look at every row.
    Rows {
        /// The asker's.
        vector: Vector,
    },
    /// A sketch of the rows.
    Cells {
        /// Of the sketch, and of the draw.
        salt: u64,
        /// How many cells.
        cells: u32,
        /// Only of one key in so many.
        one_in: u32,
        /// Keys to leave out, beside those that the member named itself.
        without: Vec<String>,
    },
    /// What keys are.
    Keys {
        /// Those whose states have these fingerprints.
        fingerprints: Vec<u128>,
        /// And these.
        keys: Vec<String>,
    },
    /// The last: let go of the snapshot. It is not answered.
    End,
}

/// Answers a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The shard.
    pub shard: ShardId,
    /// The comparison.
    pub id: u64,
    /// The question.
    pub step: u32,
    /// The answer.
    pub answer: VerifyAnswer,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyAnswer {
    /// To the first question.
    Rows(Box<MemberRows>),
    /// A sketch.
    Cells {
        /// What the rows in it add up to.
        sum: u128,
        /// Its cells, encoded.
        cells: Bytes,
    },
    /// Keys.
    Keys {
        /// Those of the fingerprints, the first of them.
        found: Vec<(String, KeyHeld)>,
        /// How many have one.
        count: u64,
        /// Those that were asked for by name.
        asked: Vec<(String, KeyHeld)>,
    },
    /// The shard came here as a whole, and its keys are being merged.
    Settling,
    /// The shard is not held here.
    NotHeld,
    /// The snapshot is gone: begin again.
    Gone,
}

/// What a member's snapshot has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRows {
    /// Its vector.
    pub vector: Vector,
    /// Its stored digest, as far as that is known.
    pub digest: Option<u128>,
    /// What its rows are.
    pub seen: RowsSeen,
    /// The keys of changes that it has beyond the asker's vector, each with its last such change; `None` when they are too
    /// many, or its log does not tell.
    pub beyond: Option<Vec<(String, (Origin, u64))>>,
    /// What its rows add up to without those keys.
    pub sum_without: u128,
}
