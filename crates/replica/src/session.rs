//! What a session has seen, and the rules by which any member shows at least that.
//!
//! A [`Token`] names per shard the changes that a client's session has seen: a write adds its own, a read those of the
//! key's last changes, a scan the shard's vector. A member answers a call when its vectors include what the token names,
//! and leaves out what is stable there: every member has that. How a token travels is the shell's affair.

use std::collections::{BTreeMap, BTreeSet};

use tropism_crdt::{NodeId, Origin, Vector};
use tropism_placement::ShardId;
use tropism_storage::{Reads, StoreError, ValueRow, View};

use crate::write::WriteDone;

/// Commits that are searched for what is stable at most; while more are unstable (a region is cut off), tokens stay as
/// they are.
pub const SEARCHED_COMMITS: u64 = 256;

/// Per shard a small vector: what was seen of it. Shards of which nothing was seen have no entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token {
    shards: BTreeMap<ShardId, Vector>,
}

impl Token {
    /// What was seen of a shard.
    pub fn get(&self, shard: &ShardId) -> Option<&Vector> {
        self.shards.get(shard)
    }

    /// The shards with what was seen of each, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ShardId, &Vector)> {
        self.shards.iter()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// Adds one change, and thereby every earlier one of its origin.
    pub fn add(&mut self, shard: ShardId, origin: Origin, seq: u64) {
        self.shards.entry(shard).or_default().raise(origin, seq);
    }

    /// Says of a shard what this vector says, in place of what was said before.
    pub fn set(&mut self, shard: ShardId, vector: Vector) {
        if vector.is_empty() {
            self.shards.remove(&shard);
        } else {
            self.shards.insert(shard, vector);
        }
    }

    /// Adds everything that another token says.
    pub fn merge(&mut self, other: &Self) {
        for (shard, vector) in other.iter() {
            for (origin, seq) in vector.iter() {
                self.add(*shard, *origin, seq);
            }
        }
    }

    /// Leaves out the entries for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&ShardId, &Origin, u64) -> bool) {
        self.shards.retain(|shard, vector| {
            *vector = vector
                .iter()
                .filter(|(origin, seq)| keep(shard, origin, *seq))
                .map(|(o, s)| (*o, s))
                .collect();
            !vector.is_empty()
        });
    }

    /// The nodes whose changes the token names of these shards and the view lacks. None: the view may answer.
    pub fn missing<V: View + ?Sized>(
        &self,
        view: &V,
        shards: &[ShardId],
    ) -> Result<BTreeSet<NodeId>, StoreError> {
        let mut missing = BTreeSet::new();
        for shard in shards {
            let Some(wanted) = self.get(shard) else { continue };
            let vector = view.vector(*shard)?;
            missing.extend(wanted.risen_since(&vector).into_iter().map(|(origin, _)| origin.node));
        }
        Ok(missing)
    }

    /// Adds what reading a key shows, unless it is stable: whoever has its last changes has what they depend on.
    pub fn saw(&mut self, shard: ShardId, row: &ValueRow, stable_commit: u64) {
        if row.commit > stable_commit {
            for (origin, seq) in &row.last {
                self.add(shard, *origin, *seq);
            }
        }
    }

    /// Adds what the writes of a call stand for. A write depends on everything its origin had of the shard, so it takes
    /// the place of all that the token said there.
    pub fn wrote<'a>(&mut self, writes: impl Iterator<Item = &'a WriteDone>, stable_commit: u64) {
        let mut written = Self::default();
        for done in writes.filter(|done| done.commit > stable_commit) {
            if let Some((origin, seq)) = done.change {
                // An earlier sending may have come before what the token says.
                let seen = if done.replayed { &mut *self } else { &mut written };
                seen.add(done.shard, origin, seq);
            }
        }
        for (shard, vector) in written.shards {
            self.set(shard, vector);
        }
    }

    /// Leaves out what every member has, as far as the view's log says so in [`SEARCHED_COMMITS`]: what is applied and
    /// was not logged behind the stable commit. `head` is the view's last commit.
    pub fn forget_stable<V: View + ?Sized>(
        &mut self,
        view: &V,
        stable_commit: u64,
        head: u64,
    ) -> Result<(), StoreError> {
        let unstable = stable_commit.saturating_add(1)..head.saturating_add(1);
        if unstable.end.saturating_sub(unstable.start) > SEARCHED_COMMITS {
            return Ok(());
        }
        if view.log_floor()? > unstable.start {
            return Ok(()); // changes that are not stable may have left the log, which was too long
        }
        let mut first_unstable: BTreeMap<(ShardId, Origin), u64> = BTreeMap::new();
        for row in view.commit_rows(unstable.start, unstable.end) {
            for key in row?.1.changes {
                first_unstable.entry((key.shard, key.origin)).or_insert(key.seq);
            }
        }
        let mut vectors: BTreeMap<ShardId, Vector> = BTreeMap::new();
        for shard in self.shards.keys() {
            vectors.insert(*shard, view.vector(*shard)?);
        }
        self.retain(|shard, origin, seq| {
            let applied = vectors.get(shard).is_some_and(|vector| vector.includes(origin, seq));
            !applied || first_unstable.get(&(*shard, *origin)).is_some_and(|first| *first <= seq)
        });
        Ok(())
    }
}

impl FromIterator<(ShardId, Vector)> for Token {
    fn from_iter<T: IntoIterator<Item = (ShardId, Vector)>>(shards: T) -> Self {
        let mut token = Self::default();
        for (shard, vector) in shards {
            token.set(shard, vector);
        }
        token
    }
}
