//! The rebuild: a store that may lack what its peers hold is filled by them before it is served.
//!
//! A new store never says of itself that it is all there is: the node may have lost its disk, or its store was set aside,
//! or it joins a world that has data. So it takes everything first. Each peer's link brings what that peer had logged, and
//! shows it the shards that no log reaches back to; the peer's heartbeat says how far that has come. The store is whole
//! when every peer that answers has given all it had when it was first met, and for every rule there is one among them
//! that holds its scopes and is whole itself. Peers that are away do not keep it waiting beyond that: what only they have
//! comes when they come.
//!
//! Then what can still be read of a store that was set aside comes in, as if a peer sent it: changes that nobody else has
//! live on under the name they always had.
//!
//! Until the end the node takes no calls of clients, promises no closed time, and peers hold nothing for stable: a change
//! that comes back may not have seen what everybody else has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tropism_crdt::NodeId;
use tropism_placement::{RegionName, SLOTS};
use tropism_storage::{NodeKey, Reads, RebuildCause, RebuildRow, Space, Store, StoreError, View};

use crate::frame::{Hello, Wholeness};
use crate::limits::{FRAME_BYTES, FRAME_CHANGES, REBUILD_ANSWERS_US};
use crate::link::Link;
use crate::replica::{Event, Identity, Now, Replica, ReplicaError};

/// How the store came to be that a replica boots on, as far as its shell knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opening {
    /// What was wrong with the store that was set aside for it.
    pub set_aside: Option<String>,
    /// Whether changes of that one can be read: once peers have given what they have, the status asks for them
    /// ([`RebuildStatus::salvages`]), and they come as [`Input::Salvage`](crate::Input::Salvage).
    pub salvage: bool,
    /// Serve what is there, whatever may be missing: the operator knows that nobody has it.
    pub accept_loss: bool,
}

/// A store on its way to being whole.
#[derive(Debug)]
pub(crate) struct Rebuild {
    row: RebuildRow,
    salvage: bool,
    salvaged: Salvaged,
    givers: BTreeMap<NodeId, Giver>,
    first_met_us: Option<u64>,
    /// Keys here, a turn ago.
    keys: u64,
}

/// What a peer gives.
#[derive(Debug, Clone, Copy)]
struct Giver {
    /// Its last commit when it was first met: it has given what it had logged by then, or not yet.
    head: u64,
    done: bool,
    wholeness: Wholeness,
    keys: u64,
}

/// What came of a store that was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Salvaged {
    /// Changes that could be read.
    pub read: u64,
    /// Of these, those that no peer had given.
    pub taken: u64,
    /// Those that could not be applied, for nobody has what they depend on.
    pub left: u64,
}

/// How far a rebuild is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuildStatus {
    /// Since when, Unix ms.
    pub since_ms: u64,
    /// Why.
    pub cause: RebuildCause,
    /// Keys here, staged ones included, of those that the peer with the most has, in percent; at most 99. A peer may hold
    /// other scopes, too: then it ends below.
    pub percent: u8,
    /// Peers that have given everything.
    pub given_by: Vec<NodeId>,
    /// Peers that are giving.
    pub waits_for: Vec<NodeId>,
    /// Peers that were not met yet.
    pub away: Vec<NodeId>,
    /// Rules, and scopes that do not follow theirs, for which a member is waited for that is whole itself.
    pub unvouched: Vec<String>,
    /// Whether peers have given everything, and the changes of the store that was set aside are to come.
    pub salvages: bool,
    /// What came of them so far.
    pub salvaged: Salvaged,
}

/// What can be read of a store that was set aside: the changes in its log, a slot at a time. What cannot be read is left
/// out; what is read may be anything, and passes the same gate as what a peer sends.
pub struct SetAside {
    view: Arc<dyn View + Send + Sync>,
    slot: u16,
    /// Where the slot is read on.
    next: Vec<u8>,
}

impl SetAside {
    /// Reads it from the beginning.
    pub fn new(view: Arc<dyn View + Send + Sync>) -> Self {
        Self { view, slot: 0, next: vec![0, 0] }
    }

    /// The next changes, as many as one [`Input::Salvage`](crate::Input::Salvage) takes; none: these were all.
    pub fn next_batch(&mut self) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while self.slot < SLOTS {
            let end = (self.slot + 1).to_be_bytes();
            for (name, change) in self.view.scan(Space::Log, &self.next, &end).map_while(Result::ok) {
                if bytes >= FRAME_BYTES || batch.len() >= FRAME_CHANGES {
                    self.next = name.to_vec();
                    return batch;
                }
                bytes += change.len();
                batch.push(change);
            }
            self.slot += 1;
            self.next = end.to_vec();
        }
        batch
    }
}

impl Rebuild {
    /// What stands in the store, or begins with it when it is `new`.
    pub(crate) fn open(
        now: Now,
        store: &mut Store,
        identity: &Identity,
        new: bool,
    ) -> Result<Option<Self>, StoreError> {
        let found: Option<RebuildRow> = store.row(Space::Node, &NodeKey::Rebuild.encode())?;
        let Opening { set_aside, salvage, accept_loss } = identity.opening.clone();
        if accept_loss || identity.peers.is_empty() {
            store.remove(Space::Node, NodeKey::Rebuild.encode());
            store.remove(Space::Node, NodeKey::Lost.encode());
            return Ok(None);
        }
        let cause = set_aside.map_or(RebuildCause::New, |reason| RebuildCause::SetAside { reason });
        let row = match found {
            Some(row) => row,
            None if new => {
                let row = RebuildRow { since_ms: now.wall_ms, cause };
                store.put_row(Space::Node, NodeKey::Rebuild.encode(), &row);
                row
            }
            None => return Ok(None),
        };
        let salvaged = Salvaged::default();
        Ok(Some(Self { row, salvage, salvaged, givers: BTreeMap::new(), first_met_us: None, keys: 0 }))
    }

    /// How much of its peers' this store has, to tell them.
    pub(crate) fn wholeness(rebuild: Option<&Self>) -> Wholeness {
        match rebuild.map(|rebuild| &rebuild.row.cause) {
            None => Wholeness::Whole,
            Some(RebuildCause::New) => Wholeness::New,
            Some(RebuildCause::Replaces { .. } | RebuildCause::SetAside { .. }) => Wholeness::Rebuilding,
        }
    }

    /// Whether a peer that has given everything can be believed to know what there is: it is whole itself, or the world
    /// begins with all of them.
    fn vouches(&self, giver: &Giver) -> bool {
        let begins = self.row.cause == RebuildCause::New && giver.wholeness == Wholeness::New;
        giver.done && (giver.wholeness == Wholeness::Whole || begins)
    }
}

impl Replica {
    /// A peer is met: it will give what it has logged up to now.
    pub(crate) fn rebuild_met(&mut self, now: Now, store: &mut Store, hello: &Hello) {
        let own_store = self.store_id;
        let Some(rebuild) = &mut self.rebuild else { return };
        rebuild.first_met_us.get_or_insert(now.mono_us);
        let saw_another = hello.saw_you.is_some_and(|(id, _)| id != 0 && id != own_store);
        if rebuild.row.cause == RebuildCause::New && (hello.replaced || saw_another) {
            rebuild.row.cause = RebuildCause::Replaces { seen_by: hello.node };
            store.put_row(Space::Node, NodeKey::Rebuild.encode(), &rebuild.row);
            self.event(Event::Rebuilding { seen_by: hello.node });
        }
        let Some(rebuild) = &mut self.rebuild else { return };
        let giver = Giver { head: hello.head.commit, done: false, wholeness: Wholeness::Rebuilding, keys: 0 };
        rebuild.givers.entry(hello.node).or_insert(giver);
    }

    /// A peer says how far it is with what it gives.
    pub(crate) fn rebuild_heard(
        &mut self,
        from: NodeId,
        your_cursor: u64,
        (wholeness, keys): (Wholeness, u64),
    ) {
        let Some(giver) = self.rebuild.as_mut().and_then(|rebuild| rebuild.givers.get_mut(&from)) else {
            return;
        };
        giver.done |= your_cursor >= giver.head;
        (giver.wholeness, giver.keys) = (wholeness, keys);
    }

    /// Ends the rebuild when everything is here.
    pub(crate) fn rebuild_due(&mut self, now: Now, store: &mut Store) {
        if let Some(rebuild) = &mut self.rebuild {
            rebuild.keys = store.tally().keys.total();
        }
        if self.is_filled(now)
            && let Some(rebuild) = self.rebuild.take_if(|rebuild| !rebuild.salvage)
        {
            let left = self.pending.forget_of(self.identity.node);
            store.remove(Space::Node, NodeKey::Rebuild.encode());
            // Of a memory engine nobody expects more.
            if rebuild.row.cause != RebuildCause::New && store.durable() {
                store.put_row(Space::Node, NodeKey::Lost.encode(), &rebuild.row);
                self.lost = Some(rebuild.row.clone());
            }
            let RebuildRow { since_ms, cause } = rebuild.row;
            self.event(Event::Rebuilt { cause, since_ms, salvaged: Salvaged { left, ..rebuild.salvaged } });
        }
    }

    /// Whether peers have given what they had.
    fn is_filled(&self, now: Now) -> bool {
        let Some(rebuild) = &self.rebuild else { return false };
        let Some(first_met_us) = rebuild.first_met_us else { return false };
        let givers = &rebuild.givers;
        let gives = |peer: &NodeId| givers.get(peer).is_some_and(|giver| !giver.done);
        // Scopes may have moved here that no rule would tell of.
        self.moves.informed
            && self.unvouched(rebuild).next().is_none()
            && self.links.iter().all(|(peer, link)| !(link.answers(now) && gives(peer)))
            && (givers.len() == self.links.len() || first_met_us + REBUILD_ANSWERS_US <= now.mono_us)
    }

    /// Rules whose scopes are held here and elsewhere, and scopes with a record of their own that are, of which no member
    /// vouches for what there is.
    fn unvouched(&self, rebuild: &Rebuild) -> impl Iterator<Item = &str> {
        let own = &self.identity.region;
        let vouch = rebuild.givers.iter().filter(|(_, giver)| rebuild.vouches(giver));
        let regions: BTreeSet<&RegionName> =
            vouch.filter_map(|(peer, _)| Some(self.links.get(peer)?.region())).collect();
        let others: BTreeSet<&RegionName> = self.links.values().map(Link::region).collect();
        let rules = self.identity.rules.iter().map(|rule| (&*rule.name, &rule.regions, &[][..]));
        let scopes = self.records.all_stored().map(|record| {
            let members = &record.members;
            (record.scope.name.as_str(), &members.serving, &members.leaving[..])
        });
        rules.chain(scopes).filter_map(move |(name, serving, leaving)| {
            let all = || serving.iter().chain(leaving);
            let shared = all().any(|region| region != own && others.contains(region));
            let held = shared && all().any(|region| region == own);
            let vouched = all().any(|region| regions.contains(region));
            (held && !vouched).then_some(name)
        })
    }

    /// Changes of the store that was set aside come; none: these were all.
    pub(crate) fn salvage(
        &mut self,
        now: Now,
        store: &mut Store,
        changes: Vec<Bytes>,
    ) -> Result<(), ReplicaError> {
        let Some(rebuild) = self.rebuild.as_mut().filter(|rebuild| rebuild.salvage) else { return Ok(()) };
        if changes.is_empty() {
            rebuild.salvage = false;
            return Ok(());
        }
        rebuild.salvaged.read += changes.len() as u64;
        let own = self.identity.node;
        let taken = self.changes(now, store, own, changes)?;
        if let Some(rebuild) = &mut self.rebuild {
            rebuild.salvaged.taken += taken as u64;
        }
        Ok(())
    }

    /// Why an earlier store of this node is gone, if one is: what only this region held is not known to be here.
    pub fn lost(&self) -> Option<&RebuildRow> {
        self.lost.as_ref()
    }

    /// How far the rebuild is, if there is one.
    pub fn rebuild_status(&self, now: Now) -> Option<RebuildStatus> {
        let rebuild = self.rebuild.as_ref()?;
        let most = rebuild.givers.values().map(|giver| giver.keys).max().unwrap_or(0);
        let has = rebuild.keys.max(self.transfers.counted.keys);
        let percent =
            if most == 0 { 0 } else { has.saturating_mul(100).checked_div(most).unwrap_or(0).min(99) };
        let of = |done: bool| {
            let givers = rebuild.givers.iter().filter(move |(_, giver)| giver.done == done);
            givers.map(|(peer, _)| *peer)
        };
        Some(RebuildStatus {
            since_ms: rebuild.row.since_ms,
            cause: rebuild.row.cause.clone(),
            percent: u8::try_from(percent).unwrap_or(99),
            given_by: of(true).collect(),
            waits_for: of(false).collect(),
            away: self.links.keys().filter(|peer| !rebuild.givers.contains_key(peer)).copied().collect(),
            unvouched: self.unvouched(rebuild).map(str::to_owned).collect(),
            salvages: rebuild.salvage && self.is_filled(now),
            salvaged: rebuild.salvaged,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tropism_crdt::Origin;
    use tropism_placement::ShardId;
    use tropism_storage::{LogKey, MemoryEngine};

    use super::*;

    #[test]
    fn a_store_that_was_set_aside_is_read_a_frame_at_a_time_and_every_change_once() {
        let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        let origin = Origin { node: NodeId::new("n").unwrap(), incarnation: 1, random: 2 };
        let change = |seq: u64| Bytes::from(seq.to_be_bytes().repeat(FRAME_BYTES / 8 / 10));
        for (shard, from) in [([0; 16], 0), ([7; 16], 100), ([0xff; 16], 200)] {
            for seq in from..from + 25 {
                store.log(LogKey { shard: ShardId(shard), origin, seq }, change(seq));
            }
        }
        store.commit(1).unwrap();
        let mut aside = SetAside::new(store.snapshot());
        let mut read = Vec::new();
        loop {
            let batch = aside.next_batch();
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() <= 11, "a frame, and what was begun before it was full");
            read.extend(batch);
        }
        let all = [0..25, 100..125, 200..225].into_iter().flatten().map(change);
        let mut all: Vec<Bytes> = all.collect();
        read.sort();
        all.sort();
        assert_eq!(read, all);
    }
}
