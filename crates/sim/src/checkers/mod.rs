//! What must hold, checked from outside the replicas: one object for each promise.
//!
//! The world states `Fact`s; `Truth` keeps what they add up to; every checker looks at both and knows one promise.
//! None of them asks a replica what it believes, except to hold it to it.

mod answers;
mod causality;
mod closed;
mod convergence;
mod counters;
mod durability;
mod expiry;
mod lives;
mod model;
mod requests;
mod sessions;
mod stability;
mod stamps;
mod truth;
mod values;
mod vectors;

use std::fmt;

use tropism_crdt::{NodeId, Origin, Stamp};
use tropism_placement::ShardId;
use tropism_replica::{WriteDone, WriteError};
use tropism_storage::{LogKey, Reads, ShardRow, Store, ValueRow, VectorRow};

pub(crate) use self::truth::{Asked, NodeView, Truth};
use crate::config::Config;

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Stamps of a node rise, through crashes.
    Stamps,
    /// No change is applied before what its author had seen, and none that nobody made.
    Causality,
    /// The stored vector is what the log adds up to, and a crash leaves a prefix of the commits.
    Vectors,
    /// What is held for stable is on every member's disk, and nothing arrives that had not seen it.
    Stability,
    /// What is held for closed is there.
    ClosedTimes,
    /// Members with equal vectors show equal state.
    Convergence,
    /// An acknowledged write is on the disks that its level names, and is not lost with fewer than those.
    Durability,
    /// An error that says "no effect" had none, a success is a change that the client asked for.
    Answers,
    /// A request that is sent again does not take effect again where its first effect is known.
    Requests,
    /// Deletes and lives are what the changes say.
    Lives,
    /// A key expires when its writers said, and its delete comes no earlier.
    Expiry,
    /// Counters are exact sums.
    Counters,
    /// Registers hold what their last writer sent; rows are sound, and keys served.
    Values,
    /// A session sees its writes, never less than before, and its writes follow what it read.
    Sessions,
    /// An old copy of a store is recognised.
    OldCopies,
    /// Nodes start, go on, refuse nothing that is sound, and become equal in time.
    Service,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// The nodes involved, by number.
    pub nodes: Vec<usize>,
    /// How.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.text)
    }
}

/// Something that happened, as every checker sees it.
#[derive(Clone, Copy)]
pub(crate) enum Fact<'a> {
    /// A store was opened; the truth already is what it should hold.
    Opened { node: usize, store: &'a Store },
    /// A change entered a node's log. The node's vectors in the truth do not count it yet.
    Logged { node: usize, key: LogKey, own: bool },
    /// A change came to a node with its shard as a whole. The node's vectors count everything that came with it.
    Raised { node: usize, key: LogKey },
    /// A node committed a turn.
    Committed { node: usize, store: &'a Store },
    /// A node holds a change for stable.
    Stable { node: usize, key: LogKey },
    /// A node holds a peer for closed up to a stamp.
    Closed { node: usize, peer: usize, closed: Stamp },
    /// A write was answered.
    Answered { ticket: u64, outcome: &'a Result<WriteDone, WriteError> },
    /// A client's session was shown a key, or some shards as a whole.
    Shown { client: usize, node: usize, shards: &'a [ShardId], what: Shown<'a> },
    /// A session's write was acknowledged while its client still waited.
    Wrote { client: usize, done: &'a WriteDone },
    /// A client begins a new session.
    NewSession { client: usize },
    /// Two stores at a moment without open batches.
    Pair { a: (usize, &'a Store), b: (usize, &'a Store) },
    /// The state of one store at such a moment.
    State { node: usize, store: &'a Store },
    /// The end: everything was mended and is equal.
    Ended { node: usize },
}

/// What an answer shows.
#[derive(Clone, Copy)]
pub(crate) enum Shown<'a> {
    /// A key, or that there is none of that name.
    Key(&'a str, Option<&'a ValueRow>),
    /// Shards as a whole.
    Shards,
}

/// What a checker found wrong: the nodes involved, and how.
type Found = Vec<(Vec<usize>, String)>;

/// The shards of a store with their vectors, but for those of which states are staged, which readers see merged, and those
/// that are being deleted.
fn merged_shards(store: &Store) -> Vec<(ShardRow, VectorRow)> {
    let staged = store.transfers().unwrap_or_default();
    let deleting = store.deleting().unwrap_or_default();
    let is_staged = |shard| staged.iter().any(|(id, transfer)| *id == shard && transfer.whole);
    let is_shown = |shard| !is_staged(shard) && !deleting.contains(&shard);
    store.shards().unwrap_or_default().into_iter().filter(|(row, _)| is_shown(row.id())).collect()
}

/// One promise.
trait Checker {
    /// Which.
    fn promise(&self) -> Promise;
    /// Looks at a fact.
    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found);
}

/// All checkers of a world, and the truth they share.
pub(crate) struct Checkers {
    pub(crate) truth: Truth,
    checkers: Vec<Box<dyn Checker>>,
    blind: Option<Promise>,
    pub(crate) violations: Vec<Violation>,
}

impl Checkers {
    /// Checkers of a world's nodes, one in each region; `blind` to one promise, if wanted.
    pub(crate) fn new(ids: Vec<NodeId>, config: &Config, blind: Option<Promise>) -> Self {
        let checkers: Vec<Box<dyn Checker>> = vec![
            Box::new(stamps::Stamps::default()),
            Box::new(causality::Causality),
            Box::new(vectors::Vectors),
            Box::new(stability::Stability),
            Box::new(closed::ClosedTimes::default()),
            Box::new(convergence::Convergence),
            Box::new(durability::Durability::default()),
            Box::new(answers::Answers::default()),
            Box::new(requests::Requests::default()),
            Box::new(lives::Lives),
            Box::new(expiry::Expiry),
            Box::new(counters::Counters::default()),
            Box::new(values::Values),
            Box::new(sessions::Sessions::default()),
        ];
        Self {
            truth: Truth::new(ids, config.homes.clone(), config.rules.clone()),
            checkers,
            blind,
            violations: Vec::new(),
        }
    }

    /// Shows a fact to every checker.
    pub(crate) fn see(&mut self, fact: Fact<'_>) {
        for checker in &mut self.checkers {
            if Some(checker.promise()) == self.blind {
                continue;
            }
            let mut found = Vec::new();
            checker.see(&self.truth, &fact, &mut found);
            let promise = checker.promise();
            self.violations.extend(found.into_iter().map(|(nodes, text)| Violation { promise, nodes, text }));
        }
    }

    /// Something is wrong that no checker has to find.
    pub(crate) fn violated(&mut self, promise: Promise, nodes: Vec<usize>, text: String) {
        if Some(promise) != self.blind {
            self.violations.push(Violation { promise, nodes, text });
        }
    }

    /// A node's store was opened (again): `found` was its last commit before it booted.
    pub(crate) fn opened(&mut self, node: usize, found: u64, store: &Store, origin: Origin) {
        self.truth.opened(node, found, origin);
        self.see(Fact::Opened { node, store });
    }

    /// A node committed a turn, and holds everything up to a commit for stable; the sync comes later.
    pub(crate) fn committed(&mut self, node: usize, store: &Store, stable_commit: u64) {
        let head = store.head().commit;
        let rows: Vec<_> = store.commit_rows(self.truth.nodes[node].commit + 1, head + 1).collect();
        for row in rows {
            let Ok((commit, row)) = row else { continue };
            let mut raised = Vec::new();
            for key in row.changes {
                let bytes = store.change(&key).ok().flatten();
                let left = self.truth.left.contains(&(node, key.shard));
                if left && !store.vector(key.shard).is_ok_and(|v| v.includes(&key.origin, key.seq)) {
                    continue; // it went in the turn in which it came
                }
                let own = Some(key.origin) == self.truth.nodes[node].origin;
                if bytes.is_none() && (!own || self.truth.made.contains_key(&key)) {
                    raised.extend(self.truth.raise(node, commit, key));
                    continue; // together with what comes with it
                }
                self.see_raised(node, &mut raised);
                let own = self.truth.learn(node, key, bytes.as_ref());
                self.see(Fact::Logged { node, key, own });
                self.truth.count(node, commit, key);
            }
            self.see_raised(node, &mut raised);
        }
        self.truth.left.retain(|(of, _)| *of != node);
        self.truth.nodes[node].committed(head);
        self.see(Fact::Committed { node, store });
        while let Some(key) = self.truth.nodes[node].next_stable(stable_commit) {
            self.see(Fact::Stable { node, key });
            self.truth.hold_stable(node, key);
        }
    }

    fn see_raised(&mut self, node: usize, raised: &mut Vec<LogKey>) {
        for key in raised.drain(..) {
            self.see(Fact::Raised { node, key });
        }
    }

    /// A write was answered.
    pub(crate) fn answered(&mut self, ticket: u64, outcome: &Result<WriteDone, WriteError>) {
        self.see(Fact::Answered { ticket, outcome });
        self.truth.answered(ticket, outcome);
    }
}
