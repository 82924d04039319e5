//! What really happened, as the world saw it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tropism_crdt::{Change, ExpiryChange, NodeId, Origin, Stamp, Vector};
use tropism_placement::{
    Membership, PlacementRecord, Records, RegionName, Role, Rules, ScopeId, ScopeName, ShardId, StoredRecord,
};
use tropism_replica::{WriteDone, WriteError, WriteOp};
use tropism_storage::LogKey;

/// Everything the checkers share.
pub(crate) struct Truth {
    pub(crate) nodes: Vec<NodeView>,
    /// Where each node is.
    regions: Vec<RegionName>,
    /// What the directory has, and what each node follows.
    records: Records,
    follows: Vec<BTreeMap<ScopeName, StoredRecord>>,
    /// Every change that a node made.
    pub(crate) made: BTreeMap<LogKey, Made>,
    /// The changes of a key, in the order in which they were made.
    pub(crate) of_key: BTreeMap<(ShardId, String), Vec<LogKey>>,
    /// What became of a client's write.
    pub(crate) of_ticket: BTreeMap<u64, LogKey>,
    /// What clients asked for.
    pub(crate) asked: BTreeMap<u64, Asked>,
    /// Changes that a hostile version took the place of, and those versions.
    pub(crate) forged: BTreeSet<LogKey>,
    /// Keys that such changes touch: nothing is promised for them.
    pub(crate) spoiled: BTreeSet<(ShardId, String)>,
    /// Keys whose row has rotted somewhere and was not repaired yet.
    pub(crate) rotten: BTreeSet<(ShardId, String)>,
    /// Shards with keys that ever did.
    pub(crate) once_rotten: BTreeSet<ShardId>,
    /// Shards in which a node lied: it may lack what it said.
    pub(crate) liars: BTreeSet<(usize, ShardId)>,
    /// Changes that may be gone with a store that was lost.
    pub(crate) lost: BTreeSet<LogKey>,
    /// `(node, peer)`: the node knows the store that the peer has now.
    met: BTreeSet<(usize, usize)>,
    /// The nodes that serve a shard, as the directory has it.
    members: BTreeMap<ShardId, Vec<usize>>,
    /// Shards that a node left since its last commit.
    pub(super) left: BTreeSet<(usize, ShardId)>,
    /// Which scope a shard is of.
    scopes: BTreeMap<ShardId, ScopeId>,
    /// Shards of scopes that were dropped.
    gone: BTreeSet<ShardId>,
}

/// A change and what its author had applied of the shard before it.
pub(crate) struct Made {
    pub(crate) change: Change,
    pub(crate) saw: Vector,
    /// The client's write; none: the node made it by itself.
    pub(crate) ticket: Option<u64>,
    /// The node that made it.
    pub(crate) author: usize,
}

/// A write as its client sent it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) client: Option<usize>,
    pub(crate) scope: ScopeName,
    pub(crate) key: String,
    pub(crate) op: WriteOp,
    pub(crate) expiry: ExpiryChange,
    /// The regions whose disks the answer stands for.
    pub(crate) regions: usize,
    /// The owners in the region of the asked node whose disks it stands for.
    pub(crate) owners: usize,
    /// The node that was asked.
    pub(crate) at: usize,
    pub(crate) request_id: Option<u128>,
}

/// One node's store, as its log adds up.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeView {
    pub(crate) id: Option<NodeId>,
    /// Who it is in this life.
    pub(crate) origin: Option<Origin>,
    pub(crate) commit: u64,
    pub(crate) vectors: BTreeMap<ShardId, Vector>,
    /// The same as of the last sync: what a crash leaves at least.
    pub(crate) durable: BTreeMap<ShardId, Vector>,
    /// What was ever durable here, in this store or one that was lost.
    ever: BTreeMap<ShardId, Vector>,
    /// After each commit since the last sync.
    unsynced: Vec<(u64, BTreeMap<ShardId, Vector>)>,
    logged: Vec<(u64, LogKey)>,
    /// How many of `logged` were held for stable, and the vectors they add up to.
    stable: usize,
    pub(crate) stable_vectors: BTreeMap<ShardId, Vector>,
    /// Its own changes in the order in which they became durable, and those that are not yet.
    pub(crate) authored: Vec<(Stamp, LogKey)>,
    not_durable: Vec<(Stamp, LogKey)>,
    /// Counts stores: what was checked of an earlier one is void.
    pub(crate) store: u64,
    /// Counts starts.
    pub(crate) starts: u64,
    /// The latest that its wall clock ever was, Unix ms.
    pub(crate) wall_ms: u64,
}

impl NodeView {
    /// Whether a change is counted in the vectors.
    pub(crate) fn counts(&self, key: &LogKey) -> bool {
        includes(&self.vectors, key)
    }

    /// Whether a change was ever on this node's disk.
    pub(crate) fn ever_had(&self, key: &LogKey) -> bool {
        includes(&self.ever, key)
    }

    pub(super) fn committed(&mut self, head: u64) {
        self.commit = head;
        self.unsynced.push((head, self.vectors.clone()));
    }

    /// Whether it holds everything for stable that it logged.
    pub(crate) fn all_stable(&self) -> bool {
        self.stable == self.logged.len()
    }

    /// Whether it made a change in the store it has, and has it on its disk.
    pub(crate) fn keeps_own(&self, key: &LogKey) -> bool {
        self.authored.iter().any(|(_, own)| own == key)
    }

    pub(super) fn next_stable(&self, stable_commit: u64) -> Option<LogKey> {
        self.logged.get(self.stable).filter(|(commit, _)| *commit <= stable_commit).map(|(_, key)| *key)
    }

    /// The node's disk has everything up to its last commit.
    pub(crate) fn synced(&mut self) {
        if let Some((_, vectors)) = self.unsynced.pop() {
            self.durable = vectors;
        }
        self.unsynced.clear();
        for (shard, vector) in &self.durable {
            let ever = self.ever.entry(*shard).or_default();
            for (origin, seq) in vector.iter() {
                ever.raise(*origin, seq);
            }
        }
        self.authored.append(&mut self.not_durable);
    }
}

fn includes(vectors: &BTreeMap<ShardId, Vector>, key: &LogKey) -> bool {
    vectors.get(&key.shard).is_some_and(|vector| vector.includes(&key.origin, key.seq))
}

impl Truth {
    pub(super) fn new(ids: Vec<NodeId>, regions: Vec<RegionName>, rules: Rules) -> Self {
        let count = ids.len();
        let nodes = ids.into_iter().map(|id| NodeView { id: Some(id), ..NodeView::default() }).collect();
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).collect();
        Self {
            nodes,
            regions,
            records: Records::new(rules),
            follows: vec![BTreeMap::new(); count],
            made: BTreeMap::new(),
            of_key: BTreeMap::new(),
            of_ticket: BTreeMap::new(),
            asked: BTreeMap::new(),
            forged: BTreeSet::new(),
            spoiled: BTreeSet::new(),
            rotten: BTreeSet::new(),
            once_rotten: BTreeSet::new(),
            liars: BTreeSet::new(),
            lost: BTreeSet::new(),
            met: pairs,
            members: BTreeMap::new(),
            left: BTreeSet::new(),
            scopes: BTreeMap::new(),
            gone: BTreeSet::new(),
        }
    }

    /// How many nodes are in a node's region, with that.
    pub(crate) fn neighbours(&self, node: usize) -> usize {
        self.regions.iter().filter(|region| **region == self.regions[node]).count()
    }

    /// The region of a node.
    pub(crate) fn region(&self, node: usize) -> &RegionName {
        &self.regions[node]
    }

    /// A node's name.
    pub(crate) fn name(&self, node: usize) -> String {
        self.nodes[node].id.map_or_else(|| node.to_string(), |id| id.to_string())
    }

    /// The nodes that hold a shard; all, while nothing was made there.
    pub(crate) fn members(&self, shard: &ShardId) -> impl Iterator<Item = usize> + '_ {
        let members = self.members.get(shard);
        let all = if members.is_none() { 0..self.nodes.len() } else { 0..0 };
        members.into_iter().flatten().copied().chain(all)
    }

    /// The directory decided on a scope.
    pub(crate) fn decided(&mut self, records: &Records, name: &ScopeName) {
        if let Some(record) = records.stored(name) {
            if record.dropped {
                self.gone.extend((0..record.spread).map(|index| ShardId::of(&record.scope, index)));
            }
            self.records.adopt(record.clone());
        }
        let record = self.records.record(name); // none: it is dropped, and nobody's
        let of: Vec<(ShardId, u64)> = self
            .scopes
            .iter()
            .filter(|(_, scope)| scope.name == *name)
            .map(|(shard, scope)| (*shard, scope.incarnation))
            .collect();
        for (shard, incarnation) in of {
            let record = record.as_ref().filter(|record| record.scope.incarnation == incarnation);
            let members = record.map_or_else(Vec::new, |record| self.nodes_in(&record.serving));
            self.members.insert(shard, members);
        }
    }

    fn nodes_in(&self, regions: &[RegionName]) -> Vec<usize> {
        (0..self.regions.len()).filter(|node| regions.contains(&self.regions[*node])).collect()
    }

    /// A node follows these records from its next commit on, or since it started.
    pub(crate) fn follows(&mut self, node: usize, records: &Records) {
        let region = self.regions[node].clone();
        self.follows[node].retain(|name, _| records.stored(name).is_some());
        for stored in records.all_stored() {
            let name = &stored.scope.name;
            let before = self.follows[node].insert(name.clone(), stored.clone());
            if before.is_some_and(|before| before.members == stored.members) {
                continue;
            }
            if stored.members.role(&region) != Role::Serving {
                continue;
            }
            // From now on it goes by what is stable.
            let view = &mut self.nodes[node];
            for (shard, _) in self.scopes.iter().filter(|(_, scope)| **scope == stored.scope) {
                let vectors = view.vectors.get(shard).cloned().unwrap_or_default();
                let stable = view.stable_vectors.entry(*shard).or_default();
                let passed = view.logged[..view.stable].iter().filter(|(_, key)| key.shard == *shard);
                for (_, key) in passed.filter(|(_, key)| vectors.includes(&key.origin, key.seq)) {
                    stable.raise(key.origin, key.seq);
                }
            }
        }
    }

    /// A node does not hold a shard any more: what it had of it counts for nothing from its next commit on.
    pub(crate) fn left(&mut self, node: usize, shard: ShardId) {
        self.left.insert((node, shard));
        let view = &mut self.nodes[node];
        view.vectors.remove(&shard);
        view.stable_vectors.remove(&shard);
        let passed = view.logged[..view.stable].iter().filter(|(_, key)| key.shard == shard);
        view.stable -= passed.count();
        view.logged.retain(|(_, key)| key.shard != shard);
    }

    /// The members of a shard, by the record that a node follows; none of another life of the scope's name. `None`: those
    /// that the rule implies.
    fn members_for(&self, node: usize, shard: &ShardId) -> Option<Membership<RegionName>> {
        let scope = self.scopes.get(shard)?;
        let nobody =
            |epoch| Membership { epoch, serving: Vec::new(), learners: Vec::new(), leaving: Vec::new() };
        match self.follows[node].get(&scope.name) {
            Some(record) if record.scope == *scope => Some(record.members.clone()),
            Some(record) => Some(nobody(record.epoch())),
            None => (scope.incarnation > 0).then(|| nobody(0)),
        }
    }

    /// Whether a shard is of a scope that was dropped: nothing is promised for it any more, also where that is not known.
    pub(crate) fn is_gone(&self, shard: &ShardId) -> bool {
        self.gone.contains(shard)
    }

    /// Whether a node deletes what it has of a shard, by the record that it follows.
    pub(crate) fn is_stranger(&self, node: usize, shard: &ShardId) -> bool {
        let members = self.members_for(node, shard);
        members.is_some_and(|members| members.role(&self.regions[node]) == Role::Stranger)
    }

    /// Whether a node serves a shard, by the record that it follows.
    pub(crate) fn serves(&self, node: usize, shard: &ShardId) -> bool {
        match self.members_for(node, shard) {
            Some(members) => members.role(&self.regions[node]) == Role::Serving,
            None => self.implied_members(shard).contains(&node),
        }
    }

    /// The nodes that serve a shard, by the record that a node follows.
    pub(crate) fn served_for(&self, node: usize, shard: &ShardId) -> Vec<usize> {
        match self.members_for(node, shard) {
            Some(members) => self.nodes_in(&members.serving),
            None => self.implied_members(shard),
        }
    }

    /// The nodes that only learn a shard, by the record that a node follows.
    pub(crate) fn learners_for(&self, node: usize, shard: &ShardId) -> Vec<usize> {
        self.members_for(node, shard).map_or_else(Vec::new, |members| self.nodes_in(&members.learners))
    }

    fn implied_members(&self, shard: &ShardId) -> Vec<usize> {
        let scope = self.scopes.get(shard);
        let rule = scope.and_then(|scope| self.records.rules().find(&scope.name));
        rule.map_or_else(|| (0..self.nodes.len()).collect(), |rule| self.nodes_in(&rule.regions))
    }

    /// Whether a node learnt what store its peer has now.
    pub(crate) fn has_met(&self, node: usize, peer: usize) -> bool {
        self.met.contains(&(node, peer))
    }

    /// A node learns what store its peer has now.
    pub(crate) fn meet(&mut self, node: usize, peer: usize) {
        self.met.insert((node, peer));
    }

    /// Whether a key's state is promised: no hostile change touches it.
    pub(crate) fn is_sound(&self, shard: ShardId, key: &str) -> bool {
        [&self.spoiled, &self.rotten]
            .into_iter()
            .all(|keys| keys.is_empty() || !keys.contains(&(shard, key.to_owned())))
    }

    /// Whether everything that a node counts of a key is on some other disk as well.
    pub(crate) fn is_elsewhere(&self, node: usize, shard: ShardId, key: &str) -> bool {
        let keys = self.of_key.get(&(shard, key.to_owned())).into_iter().flatten();
        keys.filter(|key| self.nodes[node].counts(key))
            .all(|key| (0..self.nodes.len()).any(|n| n != node && includes(&self.nodes[n].durable, key)))
    }

    /// Whether a key of a shard has rotted somewhere and was not repaired yet.
    pub(crate) fn is_rotten(&self, shard: ShardId) -> bool {
        self.rotten.iter().any(|(rotten, _)| *rotten == shard)
    }

    /// Whether nobody hostile ever touched a shard.
    pub(crate) fn is_promised(&self, shard: ShardId) -> bool {
        let touched = self.spoiled.iter().any(|(spoiled, _)| *spoiled == shard);
        !touched && !self.liars.iter().any(|(_, lied)| *lied == shard)
    }

    /// Whether the state of all keys of a shard is promised.
    pub(crate) fn is_shard_sound(&self, shard: ShardId) -> bool {
        [&self.spoiled, &self.rotten].into_iter().all(|keys| {
            keys.range((shard, String::new())..).next().is_none_or(|(spoiled, _)| *spoiled != shard)
        })
    }

    /// A node gets another store: an old copy, or an empty one. What only the store it loses had may be lost.
    pub(crate) fn replace(&mut self, node: usize, by: Option<&NodeView>) {
        let only_here: Vec<LogKey> = self
            .made
            .keys()
            .filter(|key| self.nodes[node].counts(key) || self.nodes[node].ever_had(key))
            .filter(|key| !by.is_some_and(|view| includes(&view.durable, key)))
            .filter(|key| (0..self.nodes.len()).all(|n| n == node || !includes(&self.nodes[n].durable, key)))
            .copied()
            .collect();
        self.lost.extend(only_here);
        let old = &self.nodes[node];
        let fresh = NodeView { id: old.id, ..NodeView::default() };
        let (ever, store, starts, wall_ms) = (old.ever.clone(), old.store + 1, old.starts, old.wall_ms);
        self.nodes[node] = NodeView { ever, store, starts, wall_ms, ..by.cloned().unwrap_or(fresh) };
        self.met.retain(|(_, peer)| *peer != node);
    }

    pub(super) fn opened(&mut self, node: usize, found: u64, origin: Origin) {
        let view = &mut self.nodes[node];
        view.origin = Some(origin);
        // Commits that were not synced may have survived all the same, in order.
        view.unsynced.retain(|(commit, _)| *commit <= found);
        view.vectors = view.unsynced.pop().map_or_else(|| view.durable.clone(), |(_, vectors)| vectors);
        view.durable.clone_from(&view.vectors);
        view.unsynced.clear();
        view.commit = found;
        view.starts += 1;
        view.logged.retain(|(commit, _)| *commit <= found);
        view.stable = view.stable.min(view.logged.len());
        let vectors = &view.vectors;
        view.authored.append(&mut view.not_durable);
        view.authored.retain(|(_, key)| includes(vectors, key));
    }

    /// Reads a change that entered a node's log; says whether the node made it.
    pub(super) fn learn(&mut self, node: usize, key: LogKey, bytes: Option<&Bytes>) -> bool {
        if Some(key.origin) != self.nodes[node].origin || self.made.contains_key(&key) {
            return false; // its own may come back to it
        }
        let Some(change) = bytes.and_then(|bytes| Change::decode(bytes).ok()) else { return true };
        let ticket = change.trace.map(|trace| u128::from_be_bytes(trace.trace_id) as u64);
        let saw = self.nodes[node].vectors.get(&key.shard).cloned().unwrap_or_default();
        let name = ScopeName::new(&change.scope).ok();
        if let Some(name) = name.filter(|name| self.records.rules().find(name).is_some()) {
            let scope = ScopeId { name, incarnation: change.scope_incarnation };
            // Made where it was not known yet that the scope is dropped, it is nobody's.
            let record = self.records.record(&scope.name).filter(|record| record.scope == scope);
            let members = record.map_or_else(Vec::new, |record| self.nodes_in(&record.serving));
            self.members.entry(key.shard).or_insert(members);
            self.scopes.insert(key.shard, scope);
        }
        if self.forged.contains(&key) {
            self.spoiled.insert((key.shard, change.key.clone()));
        }
        self.of_key.entry((key.shard, change.key.clone())).or_default().push(key);
        if let Some(ticket) = ticket {
            self.of_ticket.insert(ticket, key);
        }
        self.nodes[node].not_durable.push((change.stamp, key));
        self.made.insert(key, Made { change, saw, ticket, author: node });
        true
    }

    /// Counts a change in a node's vectors.
    pub(super) fn count(&mut self, node: usize, commit: u64, key: LogKey) {
        let view = &mut self.nodes[node];
        view.vectors.entry(key.shard).or_default().raise(key.origin, key.seq);
        view.logged.push((commit, key));
        self.lost.remove(&key); // it came back
    }

    /// Counts everything of an origin up to a change in a node's vectors; says what that was.
    pub(super) fn raise(&mut self, node: usize, commit: u64, last: LogKey) -> Vec<LogKey> {
        let LogKey { shard, origin, seq } = last;
        let counted = self.nodes[node].vectors.get(&shard).map_or(0, |vector| vector.get(&origin));
        let raised: Vec<LogKey> = (counted + 1..=seq).map(|seq| LogKey { shard, origin, seq }).collect();
        raised.iter().for_each(|key| self.count(node, commit, *key));
        raised
    }

    /// A node holds the next change for stable. What a hostile peer made up nobody else has to see.
    pub(super) fn hold_stable(&mut self, node: usize, key: LogKey) {
        let serves = self.serves(node, &key.shard);
        let view = &mut self.nodes[node];
        view.stable += 1;
        let promised = !self.forged.contains(&key);
        if promised && serves {
            view.stable_vectors.entry(key.shard).or_default().raise(key.origin, key.seq);
        }
    }

    /// The record of a scope.
    pub(crate) fn record(&self, scope: &str) -> Option<PlacementRecord> {
        let name = ScopeName::new(scope).ok()?;
        self.records.record(&name)
    }

    pub(super) fn answered(&mut self, ticket: u64, outcome: &Result<WriteDone, WriteError>) {
        if let Ok(WriteDone { change: Some((origin, seq)), shard, replayed: false, .. }) = outcome {
            let key = LogKey { shard: *shard, origin: *origin, seq: *seq };
            self.of_ticket.insert(ticket, key);
        }
    }

    /// The node that made a change of a write, if one did.
    pub(crate) fn author(&self, ticket: u64) -> Vec<usize> {
        let made = self.of_ticket.get(&ticket).and_then(|key| self.made.get(key));
        made.map(|made| made.author).into_iter().collect()
    }

    /// What a key shows that a node has on its disk: the changes of its life, and all that their authors had seen. `None`
    /// where nothing is promised.
    pub(crate) fn shown(&self, node: usize, shard: ShardId, key: &str) -> Option<Vector> {
        if !self.is_sound(shard, key) {
            return None;
        }
        let (mut life, mut shown) = (0, Vector::EMPTY);
        let durable = self.nodes[node].durable.get(&shard)?;
        // The last ones had seen most of the others.
        for key in self.of_key.get(&(shard, key.to_owned())).into_iter().flatten().rev() {
            if !durable.includes(&key.origin, key.seq) || shown.includes(&key.origin, key.seq) {
                continue;
            }
            let Some(made) = self.made.get(key).filter(|made| made.change.life >= life) else { continue };
            if made.change.life > life {
                (life, shown) = (made.change.life, Vector::EMPTY);
            }
            made.saw.iter().for_each(|(origin, seq)| shown.raise(*origin, seq));
            shown.raise(key.origin, key.seq);
        }
        Some(shown)
    }

    /// What whoever has a change has seen of its shard.
    pub(crate) fn closure(&self, shard: ShardId, origin: Origin, seq: u64) -> Vector {
        let key = LogKey { shard, origin, seq };
        let mut vector = self.made.get(&key).map(|made| made.saw.clone()).unwrap_or_default();
        vector.raise(origin, seq);
        vector
    }
}
