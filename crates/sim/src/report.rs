//! What is asked of a run, and what it found.

use std::collections::BTreeMap;

/// How large a world is, and whether its driver keeps the contract.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Client operations.
    pub operations: u64,
    /// Faults.
    pub faults: u64,
    /// What the driver does wrong, to see that the checkers notice.
    pub sabotage: Option<Sabotage>,
}

/// Ways in which a driver breaks the replica's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Replies and frames leave before the sync.
    LeavesBeforeSync,
    /// A crash loses a commit that was synced.
    LosesSynced,
    /// The wall clock's reservation is forgotten: a restart begins from the wall clock alone.
    ForgetsClock,
}

impl Default for Size {
    fn default() -> Self {
        Self { operations: 2_200, faults: 36, sabotage: None }
    }
}

/// What a run of one seed found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Client operations sent.
    pub operations: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Faults injected.
    pub faults: u64,
    /// What was wrong.
    pub violations: Vec<String>,
    /// How often interesting things happened.
    pub coverage: BTreeMap<&'static str, u64>,
    /// Hash over everything that happened, in order.
    pub trace: u64,
    /// Virtual time, us.
    pub virtual_us: u64,
}
