//! How a node follows the records of scopes, and what the steward of one does to bring it where it shall be.
//!
//! The directory decides which record is next, by compare-and-set on its epoch; it tells every node sooner or later. A
//! node *adopts* a record durably and acts by it from then on: it serves or refuses, stores or answers that it is no
//! member, and deletes what it holds of scopes it is a stranger to ([`deleting`](crate::deleting)).
//!
//! The steward of a scope that is on its way asks the owners of its slots how far they are and proposes the next record
//! ([`next_membership`]) when what that waits for is there. It asks in two steps. First every owner must have adopted the
//! present record. What those that give hold counts only when it was told *after* that: until then a learner may have
//! refused what they sent, and a leaving owner may have acknowledged for others what it is about to hand over.

use std::collections::{BTreeMap, BTreeSet};

use tropism_crdt::{NodeId, Vector};
use tropism_placement::{
    EXPAND_PATIENCE_MS, Held, Membership, Owner, PlacementRecord, Records, RegionName, Role, ScopeName,
    ShardId, StoredRecord, Told, Wait, give_up, next_membership,
};
use tropism_storage::{NodeKey, Reads, ShardRow, Space, Store};

use crate::deleting::Deleting;
use crate::frame::{AskHeld, FrameBody, HeldAnswer, ShardState, Vectors};
use crate::limits::{MOVE_ASK_US, MOVE_PROPOSE_US, MOVES_AT_ONCE, VECTORS_PER_FRAME};
use crate::replica::{Event, Now, Output, Replica, ReplicaError};

/// What this node does about records that change.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// Shards whose rows are being deleted here.
    pub(crate) deleting: Deleting,
    /// Everything that the directory had at some time after this start was adopted.
    pub(crate) informed: bool,
    /// Scopes that this node is the steward of, while they are on their way.
    stewarded: BTreeMap<ScopeName, Stewarded>,
    /// Scopes that are not where they shall be.
    on_their_way: BTreeSet<ScopeName>,
    due_us: u64,
}

/// A scope on its way, as its steward sees it.
#[derive(Debug)]
struct Stewarded {
    epoch: u64,
    /// Number of the next question; answers carry it.
    round: u64,
    /// When it is asked.
    ask_us: u64,
    /// The first question that was asked when all owners had adopted the epoch.
    since_all: Option<u64>,
    told: BTreeMap<NodeId, Heard>,
    proposed_us: Option<u64>,
    /// When what the learners hold last grew, and how much it was.
    progress: (u64, u128),
}

/// What an owner told.
#[derive(Debug)]
struct Heard {
    /// With another store it has told nothing yet.
    store_id: u128,
    /// In answer to which question.
    round: u64,
    held: HeldShards,
}

/// The vectors of a scope's shards, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HeldShards(Vec<Vector>);

impl Held for HeldShards {
    fn includes(&self, other: &Self) -> bool {
        other.0.iter().enumerate().all(|(index, vector)| {
            vector.is_empty() || self.0.get(index).is_some_and(|own| own.dominates(vector))
        })
    }
}

impl HeldShards {
    /// How many changes they count.
    fn total(&self) -> u128 {
        self.0.iter().flat_map(Vector::iter).map(|(_, seq)| u128::from(seq)).sum()
    }
}

impl Moves {
    /// When the steward acts next.
    pub(crate) fn next_deadline(&self, now: Now) -> Option<u64> {
        let steps = (!self.on_their_way.is_empty()).then_some(self.due_us.max(now.mono_us + 1));
        steps.into_iter().chain(self.deleting.next_deadline(now)).min()
    }

    /// Takes note of a record that was adopted or found in the store.
    pub(crate) fn note(&mut self, record: &StoredRecord) {
        let name = &record.scope.name;
        if record.goal.is_some() || !record.members.is_stable() {
            self.on_their_way.insert(name.clone());
        } else {
            self.on_their_way.remove(name);
            self.stewarded.remove(name);
        }
    }
}

impl Replica {
    /// The record of a shard that this node is a member for and keeps.
    pub(crate) fn held(&self, row: &ShardRow) -> Option<PlacementRecord> {
        held_by(&self.records, &self.moves.deleting, &self.identity.region, row)
    }

    /// The directory's records come; `all`: with those that came before they are all that it had at some time after this
    /// start. What is older than what is known changes nothing.
    pub(crate) fn adopt(
        &mut self,
        now: Now,
        store: &mut Store,
        records: Vec<StoredRecord>,
        all: bool,
    ) -> Result<(), ReplicaError> {
        for record in records {
            if record.check().is_err() || record.epoch() <= self.records.epoch(&record.scope.name) {
                continue;
            }
            let name = record.scope.name.clone();
            let before = self.records.record(&name);
            let stored = self.records.stored(&name).map(|stored| stored.scope.incarnation);
            if let Some(incarnation) = stored.filter(|old| *old != record.scope.incarnation) {
                store.remove(Space::Node, NodeKey::Scope(name.as_str(), incarnation).encode());
            }
            let key = NodeKey::Scope(name.as_str(), record.scope.incarnation).encode();
            store.put_row(Space::Node, key, &record);
            self.moves.note(&record);
            self.moves.due_us = now.mono_us;
            let epoch = record.epoch();
            self.records.adopt(record);
            let after = self.records.record(&name);
            if let Some(before) = before {
                self.follow(now, store, &before, after.as_ref())?;
            }
            self.event(Event::Adopted { scope: name, epoch });
        }
        self.moves.informed |= all;
        Ok(())
    }

    /// A record changed: what the shards of the scope are counted for, who lacks what of them, and whether they stay.
    fn follow(
        &mut self,
        now: Now,
        store: &mut Store,
        before: &PlacementRecord,
        after: Option<&PlacementRecord>,
    ) -> Result<(), ReplicaError> {
        let own = self.identity.region.clone();
        let after = after.filter(|after| after.scope == before.scope);
        let is = |record: &PlacementRecord, region: &RegionName| record.members().any(|r| r == region);
        let stays = after.filter(|after| is(after, &own));
        let joins = stays.is_some() && !is(before, &own);
        let mut new_peers: Vec<NodeId> = Vec::new();
        for (peer, link) in &self.links {
            let (was, will) = (is(before, link.region()), after.is_some_and(|a| is(a, link.region())));
            if will && (joins || !was) {
                new_peers.push(*peer);
            }
        }
        let mut rows = Vec::new();
        for index in 0..before.spread {
            let id = ShardId::of(&before.scope, index);
            let known = store.shard(id)?;
            if known.is_some() {
                match stays {
                    Some(record) => self.shards.regroup(store, id, (before, record))?,
                    None => {
                        self.shards.forget(store, id, before)?;
                        self.let_go(id);
                        self.moves.deleting.begin(now, store, id);
                        self.event(Event::Left { shard: id });
                    }
                }
            }
            for link in self.links.values_mut() {
                if stays.is_none() || after.is_none_or(|after| !is(after, link.region())) {
                    link.forget_shard(id);
                }
            }
            rows.extend(known.or_else(|| {
                joins.then(|| ShardRow { scope: before.scope.clone(), index, kind: before.kind })
            }));
        }
        if stays.is_some() {
            // Who comes shows that it has nothing, who has something shows it: comparing finds it later, too.
            for peer in new_peers {
                for page in rows.chunks(VECTORS_PER_FRAME) {
                    let mut shards = Vec::new();
                    for row in page {
                        let (vector, digest) = self.shards.state(store, row.id())?;
                        shards.push(ShardState { row: row.clone(), vector, digest });
                    }
                    let commit = store.open_commit();
                    let vectors = Vectors { shards, commit, answer: false, owed: true };
                    self.send(peer, FrameBody::Vectors(vectors));
                }
            }
        }
        Ok(())
    }

    /// Drops what is under way of a shard that goes.
    fn let_go(&mut self, id: ShardId) {
        self.pending.forget_shard(id);
        self.transfers.forget(id);
        self.documents.forget_shard(id);
    }

    /// The nodes that own a scope's slots in a region: every node of the region.
    fn owners_in<'a>(&'a self, region: &'a RegionName) -> impl Iterator<Item = NodeId> + 'a {
        let own = (self.identity.region == *region).then_some(self.identity.node);
        let peers = self.links.iter().filter(move |(_, link)| link.region() == region);
        own.into_iter().chain(peers.map(|(peer, _)| *peer))
    }

    /// Whether this node is the steward of a scope: the first owner in its first serving region, or the first behind it
    /// when those before it are silent. Two at once are harmless, since the directory compares epochs.
    fn is_steward(&self, now: Now, record: &StoredRecord) -> bool {
        for region in &record.members.serving {
            let mut owners: Vec<NodeId> = self.owners_in(region).collect();
            owners.sort_unstable();
            for owner in owners {
                if owner == self.identity.node {
                    return true;
                }
                if self.links.get(&owner).is_some_and(|link| link.hears(now)) {
                    return false;
                }
            }
        }
        false
    }

    /// Goes on with what this node is the steward of.
    pub(crate) fn moves_due(&mut self, now: Now, store: &Store) -> Result<(), ReplicaError> {
        if self.moves.due_us > now.mono_us || self.moves.on_their_way.is_empty() {
            return Ok(());
        }
        self.moves.due_us = now.mono_us + MOVE_ASK_US;
        if self.rebuild.is_some() {
            return Ok(());
        }
        let names: Vec<ScopeName> = self.moves.on_their_way.iter().cloned().collect();
        let mut at_once = 0;
        for name in names {
            let Some(record) = self.records.stored(&name).cloned() else { continue };
            if at_once >= MOVES_AT_ONCE || !self.is_steward(now, &record) {
                self.moves.stewarded.remove(&name);
                continue;
            }
            at_once += 1;
            self.steward(now, store, record)?;
        }
        Ok(())
    }

    /// Asks the owners of a scope, and proposes the next record when what it waits for is there.
    fn steward(&mut self, now: Now, store: &Store, record: StoredRecord) -> Result<(), ReplicaError> {
        let name = record.scope.name.clone();
        let epoch = record.epoch();
        let fresh = || Stewarded {
            epoch,
            round: 0,
            ask_us: now.mono_us,
            since_all: None,
            told: BTreeMap::new(),
            proposed_us: None,
            progress: (now.mono_us, 0),
        };
        let mut state = self.moves.stewarded.remove(&name).unwrap_or_else(fresh);
        if state.epoch != epoch {
            state = fresh();
        }
        let round = state.round;
        state.round += 1;
        let members: Vec<RegionName> = {
            let Membership { serving, learners, leaving, .. } = &record.members;
            serving.iter().chain(learners).chain(leaving).cloned().collect()
        };
        let owners: Vec<(NodeId, RegionName)> = members
            .iter()
            .flat_map(|region| self.owners_in(region).map(|owner| (owner, region.clone())))
            .collect();
        // Another store of an owner has told nothing.
        state.told.retain(|owner, heard| match self.links.get(owner) {
            Some(link) => link.row().store_id == heard.store_id,
            None => *owner == self.identity.node,
        });
        let own = self.own_held(store, &name, epoch)?;
        if let Some(held) = own.clone() {
            let heard = Heard { store_id: self.store_id, round, held };
            hear(&mut state, &record, &self.identity.region, self.identity.node, heard);
        }
        let adopted = |state: &Stewarded| owners.iter().all(|(owner, _)| state.told.contains_key(owner));
        if state.since_all.is_none() && adopted(&state) {
            state.since_all = Some(state.round);
            state.told.clear();
            if let Some(held) = own {
                let heard = Heard { store_id: self.store_id, round: state.round, held };
                state.told.insert(self.identity.node, heard);
            }
            state.round += 1;
            state.ask_us = now.mono_us;
        }
        if state.ask_us <= now.mono_us {
            state.ask_us = now.mono_us + MOVE_ASK_US;
            let round = state.round - 1;
            for (owner, _) in &owners {
                if *owner != self.identity.node {
                    let ask = AskHeld { scope: name.clone(), epoch, round };
                    self.send(*owner, FrameBody::AskHeld(ask));
                }
            }
        }
        let told: Vec<Owner<RegionName, HeldShards>> = owners
            .iter()
            .map(|(owner, region)| {
                let heard = state.told.get(owner).filter(|_| state.since_all.is_some());
                let told = heard.map(|heard| Told { epoch, held: heard.held.clone() });
                Owner { region: region.clone(), ended: false, told }
            })
            .collect();
        let growth = owners.iter().filter(|(_, region)| record.members.role(region) == Role::Learner);
        let growth: u128 =
            growth.filter_map(|(owner, _)| state.told.get(owner)).map(|heard| heard.held.total()).sum();
        if growth > state.progress.1 {
            state.progress = (now.mono_us, growth);
        }
        let idle_ms = now.mono_us.saturating_sub(state.progress.0) / 1_000;
        let goal = record.goal.clone().unwrap_or_else(|| record.members.serving.clone());
        let next = match next_membership(&record.members, &goal, 1, &told) {
            Ok(members) => Some(record.stepped(members)),
            Err(Wait::Done) if record.goal.is_some() => {
                let members = Membership { epoch: epoch + 1, ..record.members.clone() };
                Some(record.stepped(members))
            }
            Err(_) if !record.members.learners.is_empty() && idle_ms >= EXPAND_PATIENCE_MS => {
                self.event(Event::MoveGivenUp { scope: name.clone(), epoch });
                Some(StoredRecord { members: give_up(&record.members), goal: None, ..record })
            }
            Err(_) => None,
        };
        if let Some(next) = next
            && state.proposed_us.is_none_or(|at| at + MOVE_PROPOSE_US <= now.mono_us)
        {
            state.proposed_us = Some(now.mono_us);
            self.outputs.push_back(Output::Propose(Box::new(next)));
        }
        self.moves.stewarded.insert(name, state);
        Ok(())
    }

    /// What this node holds of a scope, if it has adopted the epoch and holds what it says.
    fn own_held(
        &self,
        store: &Store,
        name: &ScopeName,
        epoch: u64,
    ) -> Result<Option<HeldShards>, ReplicaError> {
        let Some(record) = self.records.record(name) else { return Ok(None) };
        let clear = |id: &ShardId| !self.moves.deleting.contains(id);
        let ids: Vec<ShardId> = (0..record.spread).map(|index| ShardId::of(&record.scope, index)).collect();
        if record.epoch < epoch || self.rebuild.is_some() || !ids.iter().all(clear) {
            return Ok(None);
        }
        let vectors = ids.iter().map(|id| Ok(self.shards.state(store, *id)?.0));
        Ok(Some(HeldShards(vectors.collect::<Result<_, ReplicaError>>()?)))
    }

    /// The steward of a scope asks how far this node is.
    pub(crate) fn ask_held(&mut self, store: &Store, from: NodeId, ask: AskHeld) -> Result<(), ReplicaError> {
        let AskHeld { scope, epoch, round } = ask;
        if let Some(HeldShards(vectors)) = self.own_held(store, &scope, epoch)? {
            let epoch = self.records.epoch(&scope);
            self.send(from, FrameBody::Held(HeldAnswer { scope, epoch, round, vectors }));
        }
        Ok(())
    }

    /// An owner tells how far it is.
    pub(crate) fn held_told(&mut self, from: NodeId, answer: HeldAnswer) {
        let HeldAnswer { scope, epoch, round, vectors } = answer;
        let Some(link) = self.links.get(&from) else { return };
        let (store_id, region) = (link.row().store_id, link.region().clone());
        let Some(record) = self.records.stored(&scope).cloned() else { return };
        let Some(state) = self.moves.stewarded.get_mut(&scope) else { return };
        if state.epoch != epoch || vectors.len() != usize::from(record.spread) {
            return;
        }
        let heard = Heard { store_id, round, held: HeldShards(vectors) };
        hear(state, &record, &region, from, heard);
        self.moves.due_us = 0; // perhaps it was all that was waited for
    }

    /// A peer answers that it holds nothing of a shard under its record: it gets no more of it, until records agree.
    pub(crate) fn not_member(&mut self, from: NodeId, shard: ShardId) {
        if let Some(link) = self.links.get_mut(&from) {
            link.forget_shard(shard);
            link.settle_cursor();
        }
    }
}

/// The record of a shard, if the region is a member and its rows are not being deleted.
pub(crate) fn held_by(
    records: &Records,
    deleting: &Deleting,
    region: &RegionName,
    row: &ShardRow,
) -> Option<PlacementRecord> {
    let record = records.record_of(&row.scope, row.kind, row.index)?;
    let member = record.members().any(|member| member == region);
    (member && !deleting.is_under_way(row)).then_some(record)
}

/// Keeps what an owner told. Of one that gives, the first since all have adopted the record stays: it is enough when the
/// others include that, and under a stream of writes they would never include the last. Of the others the newest.
fn hear(state: &mut Stewarded, record: &StoredRecord, region: &RegionName, owner: NodeId, heard: Heard) {
    if state.since_all.is_some_and(|since| heard.round < since) {
        return;
    }
    let gives = match record.members.role(region) {
        Role::Leaving => true,
        Role::Serving => !record.members.learners.is_empty(),
        Role::Learner | Role::Stranger => false,
    };
    match state.told.get(&owner) {
        Some(_) if gives && state.since_all.is_some() => {}
        Some(last) if last.round > heard.round => {}
        _ => {
            state.told.insert(owner, heard);
        }
    }
}
