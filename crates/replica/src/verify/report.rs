//! What a verification found: members, keys that differ, and why.

use std::collections::BTreeMap;

use thiserror::Error;
use tropism_crdt::cell::{Cell, Content};
use tropism_crdt::{NodeId, Origin, Stamp, Vector};
use tropism_placement::{RegionName, ScopeName, ShardId};
use tropism_storage::{StoreError, ValueRow};

use crate::limits::{VERIFICATIONS, VERIFIED_ORIGINS, VERIFY_TEXT_BYTES};

/// Asks whether all members of a shard hold the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyCall {
    /// The scope.
    pub scope: ScopeName,
    /// Which of its shards.
    pub index: u16,
    /// When to answer with what is known by then, `mono_us`.
    pub deadline_us: u64,
}

/// Why nothing was compared.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// No rule matches the scope's name.
    #[error("no policy rule matches scope \"{0}\"")]
    NoRule(ScopeName),
    /// The scope has no such shard.
    #[error("scope \"{scope}\" has {spread} shards, and shard {index} was asked for")]
    NoShard {
        /// Which scope.
        scope: ScopeName,
        /// What was asked for.
        index: u16,
        /// How many it has.
        spread: u16,
    },
    /// The scope is not held here.
    #[error("scope \"{0}\" is not held in this region")]
    NotHeld(ScopeName),
    /// Too many verifications run.
    #[error("{VERIFICATIONS} shards are being verified already")]
    Busy,
}

/// What was found in a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedShard {
    /// The shard.
    pub shard: ShardId,
    /// Which of the scope's.
    pub index: u16,
    /// Its members: first the node that was asked, which the others are compared with.
    pub members: Vec<VerifiedMember>,
    /// Keys that differ or cannot be served somewhere, in order; behind them those that differ because a member is behind.
    pub keys: Vec<VerifiedKey>,
    /// At least so many further keys.
    pub more_keys: u64,
}

/// How it all adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerifyResult {
    /// All members hold the same.
    Equal,
    /// Some lack changes that others have, and hold the same otherwise.
    Behind,
    /// Not every member could be compared; nothing that was compared differs.
    Incomplete,
    /// Keys differ, or cannot be served somewhere, and no change under way is the reason.
    Differs,
}

/// A member, compared with the node that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedMember {
    /// Which node.
    pub node: NodeId,
    /// Where.
    pub region: RegionName,
    /// Whether it was compared.
    pub state: MemberState,
    /// What its rows add up to beside those of the node that was asked, keys left out that changes under way touch.
    pub rows: Rows,
    /// The digest that its writes have moved, beside what its rows add up to.
    pub digest: DigestState,
    /// Rows that were looked at, deleted keys included.
    pub keys: u64,
    /// Rows that cannot be read.
    pub unreadable: u64,
    /// Keys that cannot be served because changes could not be applied.
    pub parked: u64,
    /// What it lacks: of a peer, what the node that was asked had; of that node, what any peer had. Also after it was
    /// waited for.
    pub lacks: Lacks,
    /// Keys that were left out of its comparison because changes touch them that only one of both had at that moment.
    pub left_out: u64,
}

/// Whether a member was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// It was, or is the one that was asked.
    Compared,
    /// There is no link to it, or it is silent.
    Unreachable {
        /// For how long, us.
        for_us: u64,
    },
    /// It did not answer in time, or the one that was asked did not come round.
    NoAnswer,
    /// The shard came to it as a whole, and its keys are still being merged.
    Settling,
    /// It says that it does not hold the shard: it has other rules.
    NotHeld,
    /// Its vector is too far from that of the node that was asked, or a log does not tell by which keys: only vectors were
    /// compared.
    TooFarApart,
}

/// What rows add up to, beside those of the node that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// They were not compared.
    NotCompared,
    /// The same.
    Equal,
    /// Something else.
    Differ,
}

/// What the stored digest is beside the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestState {
    /// It was not looked at.
    NotAsked,
    /// The node does not know it yet: it is being summed up.
    NotKnown,
    /// The rows add up to it.
    Sound,
    /// The rows add up to another one: they are not what was written.
    Rotted,
}

/// Changes that a member lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lacks {
    /// How many.
    pub changes: u64,
    /// Of whom, and which: from one number to another. The first origins.
    pub origins: Vec<(Origin, u64, u64)>,
    /// Origins that are not named.
    pub more_origins: u64,
}

impl Lacks {
    /// What `all` counts and `have` does not.
    pub(super) fn between(have: &Vector, all: &Vector) -> Self {
        let mut lacks = Self::default();
        for (origin, last) in all.risen_since(have) {
            let first = have.get(&origin) + 1;
            lacks.changes = lacks.changes.saturating_add(last - first + 1);
            match lacks.origins.len() < VERIFIED_ORIGINS {
                true => lacks.origins.push((origin, first, last)),
                false => lacks.more_origins += 1,
            }
        }
        lacks
    }
}

/// A key that members do not hold alike, or not all can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedKey {
    /// The key.
    pub key: String,
    /// What members hold, as far as it was told. A member that was compared and is not named holds what the node that was
    /// asked holds.
    pub held: BTreeMap<NodeId, KeyHeld>,
    /// Which member has not applied which change of the key.
    pub behind: Vec<(NodeId, Origin, u64)>,
}

impl VerifiedKey {
    pub(super) fn new(key: String) -> Self {
        Self { key, held: BTreeMap::new(), behind: Vec::new() }
    }

    /// Whether it differs for no other reason than that a member is behind.
    pub fn only_behind(&self) -> bool {
        self.held.is_empty()
    }
}

/// What a member holds of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyHeld {
    /// Nothing: no row.
    Nothing,
    /// A row that cannot be read.
    Unreadable {
        /// What is wrong with it.
        reason: String,
    },
    /// A state.
    State {
        /// Its life.
        life: u64,
        /// Its last write of this life, and by whom.
        written: Option<(Stamp, Origin)>,
        /// The delete of this life.
        deleted_at: Option<Stamp>,
        /// Whether it is alive: written later than deleted.
        alive: bool,
        /// Why it is not served: the first change that could not be applied. Empty when it is.
        parked: String,
        /// What it holds, in a few words.
        content: String,
    },
}

impl KeyHeld {
    /// What a row says.
    pub(super) fn of(row: &Result<Option<ValueRow>, StoreError>) -> Result<Self, StoreError> {
        match row {
            Err(error @ StoreError::Engine(_)) => Err(error.clone()),
            Err(error) => Ok(Self::Unreadable { reason: shortened(&error.to_string()) }),
            Ok(None) => Ok(Self::Nothing),
            Ok(Some(row)) => Ok(Self::of_row(row)),
        }
    }

    /// What a row that can be read says.
    pub(super) fn of_row(row: &ValueRow) -> Self {
        let cell = &row.cell;
        if *cell == Cell::default() {
            return Self::Nothing;
        }
        Self::State {
            life: cell.life,
            written: cell.written,
            deleted_at: cell.deleted_at,
            alive: cell.alive(),
            parked: row.parked.as_ref().map_or_else(String::new, |parked| shortened(&parked.reason)),
            content: if cell.alive() { in_words(&cell.content) } else { String::new() },
        }
    }

    /// Bounds what a peer says.
    pub(super) fn bounded(self) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Unreadable { reason } => Self::Unreadable { reason: shortened(&reason) },
            Self::State { life, written, deleted_at, alive, parked, content } => {
                let (parked, content) = (shortened(&parked), shortened(&content));
                Self::State { life, written, deleted_at, alive, parked, content }
            }
        }
    }
}

/// What tells two values apart at a glance; never the value itself, which may be private and is long.
fn in_words(content: &Content) -> String {
    match content {
        Content::Empty => String::new(),
        Content::Register(register) => format!("{} bytes", register.bytes.len()),
        Content::Counter(counter) => match counter.sum() {
            Some(sum) => format!("sum {sum}"),
            None => "a sum beyond 128 bits".to_owned(),
        },
        Content::Document { heads, json } => {
            let head = heads.first().map_or(&[][..], |head| &head[..4]);
            let head: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
            let more =
                if heads.len() > 1 { format!(" and {} heads more", heads.len() - 1) } else { String::new() };
            format!("version {head}{more}, {} bytes", json.len())
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).take_while(|at| *at <= VERIFY_TEXT_BYTES).last() {
        Some(end) if text.len() > VERIFY_TEXT_BYTES => format!("{}...", &text[..end]),
        _ => text.to_owned(),
    }
}

impl VerifiedShard {
    /// How it adds up.
    pub fn result(&self) -> VerifyResult {
        let differs = self.members.iter().any(|member| {
            member.rows == Rows::Differ
                || member.digest == DigestState::Rotted
                || member.unreadable > 0
                || member.parked > 0
        });
        let whole = self.members.iter().all(|member| member.state == MemberState::Compared);
        let behind = self.members.iter().any(|member| member.lacks.changes > 0);
        match () {
            () if differs || self.keys.iter().any(|key| !key.only_behind()) => VerifyResult::Differs,
            () if !whole => VerifyResult::Incomplete,
            () if behind => VerifyResult::Behind,
            () => VerifyResult::Equal,
        }
    }
}
