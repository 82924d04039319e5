//! What is asked of a run, and what it found.

use std::collections::BTreeMap;

use crate::checkers::{Promise, Violation};
use crate::history::Operation;

/// How large a world is, whether its driver keeps the contract, and what is shown.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Writes of clients.
    pub operations: u64,
    /// Faults.
    pub faults: u64,
    /// What the driver does wrong, to see that the checkers notice.
    pub sabotage: Option<Sabotage>,
    /// A promise that nobody checks, to see that no other checker stands in for it.
    pub blind: Option<Promise>,
    /// How many events to remember, for [`Report::log`].
    pub log: usize,
    /// Keep what clients did, for [`Report::history`]: they then only put, add and get, send nothing twice, and no disk rots
    /// or is lost, no clock jumps and no peer lies.
    pub history: bool,
    /// Whether scopes may move; without, a world is what it was before they could.
    pub moves: bool,
    /// Whether regions may have several nodes.
    pub neighbours: bool,
}

/// Ways in which a driver breaks the replica's contract, each against one promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The wall clock's reservation is forgotten: a restart begins from the wall clock alone.
    ForgetsClock,
    /// Peers' changes arrive without what they depend on.
    DropsDeps,
    /// A restart finds a vector without one of its entries.
    ForgetsVector,
    /// Peers seem to hold that we have everything of theirs.
    ClaimsCursor,
    /// Peers' closed times arrive ten seconds early.
    ClosesEarly,
    /// A restart finds another text in a document than was written.
    BendsDocument,
    /// Replies leave before the sync.
    RepliesBeforeSync,
    /// Writes ask for this node's disk only.
    AsksForOneDisk,
    /// A write that took effect is answered with an error that says "no effect".
    DeniesEffect,
    /// Request ids do not reach the replica.
    StripsRequestId,
    /// Deletes only touch.
    SwallowsDelete,
    /// Keys expire a second later than was asked for.
    MovesExpiry,
    /// Increments add one more.
    Miscounts,
    /// Registers get another value.
    AltersValue,
    /// A token leaves out whatever is applied where it was answered.
    ForgetsToken,
    /// What peers saw of a node's store is not told to it.
    HidesOldCopy,
}

impl Sabotage {
    /// Every one, with the promise that it breaks.
    pub const ALL: [(Self, Promise); 16] = [
        (Self::ForgetsClock, Promise::Stamps),
        (Self::DropsDeps, Promise::Causality),
        (Self::ForgetsVector, Promise::Vectors),
        (Self::ClaimsCursor, Promise::Stability),
        (Self::ClosesEarly, Promise::ClosedTimes),
        (Self::BendsDocument, Promise::Convergence),
        (Self::RepliesBeforeSync, Promise::Durability),
        (Self::AsksForOneDisk, Promise::Durability),
        (Self::DeniesEffect, Promise::Answers),
        (Self::StripsRequestId, Promise::Requests),
        (Self::SwallowsDelete, Promise::Lives),
        (Self::MovesExpiry, Promise::Expiry),
        (Self::Miscounts, Promise::Counters),
        (Self::AltersValue, Promise::Values),
        (Self::ForgetsToken, Promise::Sessions),
        (Self::HidesOldCopy, Promise::OldCopies),
    ];
}

impl Default for Size {
    fn default() -> Self {
        Self {
            operations: 2_200,
            faults: 36,
            sabotage: None,
            blind: None,
            log: 0,
            history: false,
            moves: true,
            neighbours: true,
        }
    }
}

/// What a run of one seed found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Writes sent.
    pub operations: u64,
    /// Reads answered.
    pub reads: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Faults injected.
    pub faults: u64,
    /// What was wrong.
    pub violations: Vec<Violation>,
    /// How often interesting things happened.
    pub coverage: BTreeMap<&'static str, u64>,
    /// Hash over everything that happened, in order.
    pub trace: u64,
    /// Virtual time, us.
    pub virtual_us: u64,
    /// The last events of the nodes that a violation names, or of all.
    pub log: Vec<String>,
    /// What clients did and saw of registers and counters, when that was asked for.
    pub history: Vec<Operation>,
}
