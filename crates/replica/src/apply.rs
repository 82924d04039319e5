//! Peers' changes: the gate, causal order, and the merge.

use std::collections::BTreeMap;

use bytes::Bytes;
use tropism_crdt::cell::{Admission, Content};
use tropism_crdt::document::PeerChange;
use tropism_crdt::{Body, Change, NodeId, Origin};
use tropism_placement::{Kind, RULE_EPOCH, ScopeId, ScopeName, ShardId, check_key};
use tropism_storage::rows::{Parked, RequestRow};
use tropism_storage::{EditKey, KeptChange, Reads, RequestKey, ShardRow, Space, Store, StoreError, ValueRow};

use crate::arrivals::late;
use crate::documents::LoadError;
use crate::frame::{FrameBody, Want};
use crate::limits::{
    CHANGE_OVERHEAD_BYTES, FRAME_CHANGES, MAX_LIFE, PENDING_BYTES, TELL_LATE_US, TELL_LAZILY_US,
    WANT_DOUBLINGS, WANT_US,
};
use crate::replica::{Event, Now, Output, Replica, ReplicaError, log_key, record_of};

/// Changes that came before what they depend on. In memory only: a change is told to have arrived when it is applied,
/// so one that is lost here is sent again.
///
/// Invariants: bounded in bytes; never holds what the shard's vector already counts for longer than one turn.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    changes: BTreeMap<(ShardId, Origin, u64), Waits>,
    bytes: usize,
    /// When it is looked next for what is overdue.
    next_want_us: Option<u64>,
    /// What was asked for, of whom: only of what is waited for.
    asked: BTreeMap<(NodeId, ShardId, Origin), Asked>,
}

/// Changes of an author that were asked for.
#[derive(Debug)]
struct Asked {
    /// The first that was missing.
    from: u64,
    /// The last that was asked for.
    to: u64,
    /// When they are asked for again.
    due_us: u64,
    /// How often in a row nothing of it had come by then.
    tries: u32,
}

#[derive(Debug)]
struct Waits {
    change: Change,
    bytes: Bytes,
    from: NodeId,
    row: ShardRow,
    since_us: u64,
}

impl Pending {
    /// Number of changes and bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.changes.len(), self.bytes)
    }

    pub(crate) fn next_want(&self) -> Option<u64> {
        self.next_want_us
    }

    /// Whether a change of `node` that came from it still waits: then its closed time must wait as well.
    pub(crate) fn any_of(&self, node: NodeId) -> bool {
        self.changes.keys().any(|(_, origin, _)| origin.node == node)
    }

    fn insert(&mut self, id: ShardId, waits: Waits) -> Event {
        let cost = waits.bytes.len() + CHANGE_OVERHEAD_BYTES;
        if self.bytes + cost > PENDING_BYTES {
            return Event::PendingFull;
        }
        let due = waits.since_us + WANT_US;
        let key = (id, waits.change.origin, waits.change.seq);
        if self.changes.contains_key(&key) {
            return Event::Duplicate;
        }
        self.changes.insert(key, waits);
        self.bytes += cost;
        self.next_want_us = Some(self.next_want_us.map_or(due, |next| next.min(due)));
        Event::Pended
    }

    fn remove(&mut self, key: &(ShardId, Origin, u64)) -> Option<Waits> {
        let waits = self.changes.remove(key)?;
        self.bytes -= waits.bytes.len() + CHANGE_OVERHEAD_BYTES;
        if self.changes.is_empty() {
            self.next_want_us = None;
            self.asked.clear();
        }
        Some(waits)
    }

    /// What a node was asked for on a connection that is gone is asked for again.
    pub(crate) fn forget_asked(&mut self, of: NodeId) {
        self.asked.retain(|(peer, ..), _| *peer != of);
    }

    /// Forgets what waits of the changes that a node made.
    pub(crate) fn forget_made_by(&mut self, node: NodeId) {
        let keys: Vec<_> =
            self.changes.keys().filter(|(_, origin, _)| origin.node == node).copied().collect();
        keys.iter().for_each(|key| drop(self.remove(key)));
    }

    /// Forgets what waits of a shard.
    pub(crate) fn forget_shard(&mut self, shard: ShardId) {
        let keys: Vec<_> = self.of_shard(shard).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| drop(self.remove(key)));
        self.asked.retain(|(_, of, _), _| *of != shard);
    }

    /// Forgets what came from a node and waits; says how many changes that were.
    pub(crate) fn forget_of(&mut self, from: NodeId) -> u64 {
        let of = self.changes.iter().filter(|(_, waits)| waits.from == from);
        let keys: Vec<_> = of.map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.remove(key)).count() as u64
    }

    /// The waiting changes of a shard, by origin and seq.
    fn of_shard(&self, id: ShardId) -> impl Iterator<Item = (&(ShardId, Origin, u64), &Waits)> {
        self.changes.range((id, Origin::FIRST, 0)..).take_while(move |(key, _)| key.0 == id)
    }
}

/// A change that the gate let through.
struct Sound {
    change: Change,
    bytes: Bytes,
    row: ShardRow,
    id: ShardId,
}

impl Replica {
    /// Applies what can be applied of a peer's changes, in its order; the rest waits. Says how many were applied.
    pub(crate) fn changes(
        &mut self,
        now: Now,
        store: &mut Store,
        from: NodeId,
        changes: Vec<Bytes>,
    ) -> Result<usize, ReplicaError> {
        if changes.len() > FRAME_CHANGES {
            self.refuse(
                from,
                format!("{} changes in one frame, the limit is {FRAME_CHANGES}", changes.len()),
            );
            return Ok(0);
        }
        let mut ready = Ready::default();
        for bytes in changes {
            let sound = match self.gate(&bytes) {
                Ok(sound) => sound,
                Err(Refusal::Unsound(reason)) => {
                    self.refuse(from, reason);
                    continue;
                }
                Err(Refusal::NotMember(shard, epoch)) => {
                    self.send(from, FrameBody::NotMember { shard, epoch });
                    continue;
                }
            };
            let (id, origin, seq) = (sound.id, sound.change.origin, sound.change.seq);
            let record = record_of(&self.records, &sound.row);
            let Some(record) = record else { unreachable!("the gate found it") };
            let vector = &self.shards.get(store, &sound.row, id, || record)?.vector;
            if vector.includes(&origin, seq) {
                let told = vector.get(&origin);
                self.tell(now, from, 0, id, origin, told); // the sender does not know yet
                if let Some(link) = self.links.get_mut(&from) {
                    link.counted.duplicates += 1;
                }
                self.event(Event::Duplicate);
            } else if vector.get(&origin) + 1 == seq
                && sound.change.deps.iter().all(|(o, s)| vector.includes(o, *s))
            {
                self.apply(now, store, from, sound, &mut ready)?;
                self.release(now, store, id, &mut ready)?;
            } else {
                let waits = Waits {
                    change: sound.change,
                    bytes: sound.bytes,
                    from,
                    row: sound.row,
                    since_us: now.mono_us,
                };
                let event = self.pending.insert(id, waits);
                self.times_full.pending += u64::from(event == Event::PendingFull);
                if event == Event::PendingFull
                    && let Some(link) = self.links.get_mut(&from)
                {
                    link.dropped();
                }
                self.event(event);
            }
        }
        let applied = ready.values().map(Vec::len).sum();
        for ((id, key), changes) in ready {
            self.merge(store, id, &key, &changes)?;
        }
        if applied > 0 {
            self.event(Event::Applied { changes: applied });
        }
        Ok(applied)
    }

    /// Applies the waiting changes of a shard that wait no longer.
    pub(crate) fn release(
        &mut self,
        now: Now,
        store: &mut Store,
        id: ShardId,
        ready: &mut Ready,
    ) -> Result<(), ReplicaError> {
        loop {
            let Some(shard) = self.shards.cached(id) else { return Ok(()) };
            let vector = &shard.vector;
            let next = self.pending.of_shard(id).find_map(|(key, waits)| {
                let applied = vector.includes(&key.1, key.2);
                let next = vector.get(&key.1) + 1 == key.2;
                let seen = next && waits.change.deps.iter().all(|(o, s)| vector.includes(o, *s));
                (applied || seen).then_some((*key, applied))
            });
            let Some((key, applied)) = next else { return Ok(()) };
            let Some(waits) = self.pending.remove(&key) else { return Ok(()) };
            if !applied {
                let sound = Sound { change: waits.change, bytes: waits.bytes, row: waits.row, id };
                self.apply(now, store, waits.from, sound, ready)?;
            }
        }
    }

    /// Logs a change whose turn has come and stages it for its key.
    fn apply(
        &mut self,
        now: Now,
        store: &mut Store,
        from: NodeId,
        sound: Sound,
        ready: &mut Ready,
    ) -> Result<(), ReplicaError> {
        let Sound { change, bytes, id, .. } = sound;
        if !self.clock.observe(change.stamp) {
            self.event(Event::FutureStamp(change.origin.node));
        }
        let (origin, seq) = (change.origin, change.seq);
        if let Some(request) = change.request_id {
            let row = RequestRow {
                wall_ms: now.wall_ms,
                commit: store.open_commit(),
                change: (origin, seq),
                stamp: change.stamp,
                digest: 0,
                reply: None,
            };
            store.put_row(Space::Requests, RequestKey { shard: id, id: request }.encode(), &row);
        }
        self.traced.note(now, &change);
        self.record_change(store, id, log_key(id, &change), (bytes, Some(from)))?;
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        for peer in peers {
            // Soon to whom it came from, unless that one is long since late with it, and lazily to others.
            let within_us = match (peer == from, late(now, change.stamp)) {
                (true, false) => 0,
                (true, true) => TELL_LATE_US,
                (false, _) => TELL_LAZILY_US,
            };
            self.tell(now, peer, within_us, id, origin, seq);
        }
        ready.entry((id, change.key.clone())).or_default().push(change);
        Ok(())
    }

    /// Merges changes of one key, in order: one read, one merge of the document's content, one row.
    pub(crate) fn merge(
        &mut self,
        store: &mut Store,
        id: ShardId,
        key: &str,
        changes: &[Change],
    ) -> Result<(), ReplicaError> {
        self.settle(store, id, key)?;
        let mut row = match store.value(id, key) {
            Err(StoreError::Damaged { .. }) => return self.put_aside(store, id, key, changes),
            row => row?.unwrap_or_default(),
        };
        let was = self.counted(key, &row);
        let mut edits: Vec<&Change> = Vec::new();
        let life = row.cell.life;
        for change in changes {
            match row.cell.merge(change) {
                Admission::Outlived => self.event(Event::Outlived),
                Admission::SameLife => edits.push(change),
                Admission::NewLife => {
                    edits.clear();
                    edits.push(change);
                    row.parked = None; // what could not be applied went with its life
                }
            }
            // One that was put aside and is merged late is not the last of its origin.
            let late = row.last.iter().any(|(origin, seq)| *origin == change.origin && *seq > change.seq);
            row.last.retain(|(origin, seq)| {
                (late || *origin != change.origin)
                    && !change.deps.iter().any(|(o, s)| o == origin && s >= seq)
            });
            if !late {
                row.last.push((change.origin, change.seq));
            }
        }
        if row.cell.life > life {
            self.documents.clear(store, id, key, row.cell.life)?;
        }
        edits.retain(|change| matches!(change.body, Body::Document { .. }));
        if !edits.is_empty() {
            if row.cell.content == Content::Empty {
                row.cell.content = Content::Document { heads: Vec::new(), json: Bytes::from_static(b"{}") };
            }
            edits.retain(|change| !raw_edit(change).is_empty());
            self.merge_document(store, id, key, &mut row, &edits)?;
        }
        row.commit = store.open_commit();
        self.put_value(store, id, key, &was, &row);
        Ok(())
    }

    /// Keeps changes of a key whose row is not what was written: there is nothing to merge them into. The row stays as it
    /// is, so nothing of the key is shown or written; they are counted in the vector like any others.
    fn put_aside(
        &mut self,
        store: &mut Store,
        shard: ShardId,
        key: &str,
        changes: &[Change],
    ) -> Result<(), ReplicaError> {
        let life = EditKey::ROW_LOST;
        let names = store.edit_names(shard, key)?;
        let kept = names.iter().filter(|(of, _)| *of == life).map(|(_, part)| part + 1).max().unwrap_or(0);
        for (part, change) in (kept..).zip(changes) {
            let piece = KeptChange::encode(self.clock.wall_ms(), change);
            store.put_edit(&EditKey { shard, key, life, part }, &piece);
        }
        let Err(error) = store.value(shard, key) else { return Ok(()) }; // it was just found damaged
        let reason = error.to_string();
        self.count_unreadable(store, shard, key, &reason);
        self.event(Event::Parked { reason });
        Ok(())
    }

    /// Merges the automerge part of changes of the life a key is in; what does not apply parks the key.
    pub(crate) fn merge_document(
        &mut self,
        store: &mut Store,
        id: ShardId,
        key: &str,
        row: &mut ValueRow,
        edits: &[&Change],
    ) -> Result<(), ReplicaError> {
        if edits.is_empty() {
            return Ok(()); // writes that made no difference
        }
        let (life, now_ms) = (row.cell.life, self.clock.wall_ms());
        let raw: Vec<&[u8]> = edits.iter().map(|change| raw_edit(change)).collect();
        if row.parked.is_none() {
            let origins: Vec<Vec<u8>> = edits.iter().map(|change| change.origin.to_bytes()).collect();
            let batch: Vec<PeerChange<'_>> =
                raw.iter().zip(&origins).map(|(bytes, origin)| PeerChange { origin, bytes }).collect();
            let outcome = self.documents.apply(store, (id, key, life), &batch);
            let (held, applied, refused) = match outcome {
                Ok(outcome) => outcome,
                Err(LoadError::Store(error @ StoreError::Engine(_))) => return Err(error.into()),
                Err(error) => {
                    let reason = error.to_string();
                    self.event(Event::Parked { reason: reason.clone() });
                    park(store, id, key, row, (now_ms, edits), reason);
                    return Ok(());
                }
            };
            let (heads, json) = held.shown();
            row.cell.content = Content::Document { heads: heads.hashes().to_vec(), json };
            self.documents.save(store, id, key, &raw[..applied])?;
            self.note_history(id, key);
            if let Some(reason) = refused {
                let reason = reason.to_string();
                self.event(Event::Parked { reason: reason.clone() });
                park(store, id, key, row, (now_ms, &edits[applied..]), reason);
            }
        } else {
            park(store, id, key, row, (now_ms, edits), String::new());
        }
        Ok(())
    }

    /// Whether a change is what a member of its shard would make, and is for us.
    fn gate(&self, bytes: &Bytes) -> Result<Sound, Refusal> {
        let unsound = |reason: String| Refusal::Unsound(reason);
        let change = Change::decode(bytes).map_err(|error| unsound(format!("change {error}")))?;
        if change.life > MAX_LIFE {
            return Err(unsound(format!("life {} of a key, the highest is {MAX_LIFE}", change.life)));
        }
        let name = ScopeName::new(&change.scope).map_err(|error| unsound(format!("scope: {error}")))?;
        check_key(&change.key).map_err(|error| unsound(format!("key: {error}")))?;
        let record = self.records.record(&name);
        let epoch = self.records.epoch(&name);
        let scope = ScopeId { name, incarnation: change.scope_incarnation };
        let Some(record) = record.filter(|record| record.scope == scope) else {
            if epoch == RULE_EPOCH && change.scope_incarnation == 0 {
                return Err(unsound(format!("no rule matches scope {}", scope.name)));
            }
            // One of us has not heard of its drop, or of its new life.
            return Err(Refusal::NotMember(ShardId::of(&scope, change.shard_index), epoch));
        };
        let kind = record.kind;
        let row = ShardRow { scope, index: change.shard_index, kind };
        let id = row.id();
        if row.index >= record.spread {
            return Err(unsound(format!("scope {} has no shard {}", row.scope, row.index)));
        }
        if record.shard(&change.key).1 != id {
            return Err(unsound(format!("a key that belongs to another shard of {}", row.scope)));
        }
        let member = record.members().any(|region| *region == self.identity.region);
        if !member || self.moves.deleting.contains(&id) {
            return Err(Refusal::NotMember(id, record.epoch));
        }
        let fits = match &change.body {
            Body::Touch | Body::Delete { .. } => true,
            Body::Register { .. } => kind == Kind::Register,
            Body::Counter { .. } => kind == Kind::Counter,
            Body::Document { .. } => kind == Kind::Document,
        };
        if !fits {
            return Err(unsound(format!("a change of another kind than {kind} in scope {}", row.scope)));
        }
        Ok(Sound { change, bytes: bytes.clone(), row, id })
    }

    pub(crate) fn refuse(&mut self, from: NodeId, reason: String) {
        self.event(Event::Refused { from, reason });
    }

    /// Asks for what waiting changes depend on, when it is overdue; again after twice the time each time that nothing came.
    /// An answer may wait long among what else is late: asked for at a steady rate, answers would come faster than they
    /// can be taken, and the queue would never end.
    pub(crate) fn want_missing(&mut self, now: Now) {
        if self.pending.next_want_us.is_none_or(|due| due > now.mono_us) {
            return;
        }
        let mut wants: BTreeMap<(NodeId, ShardId, Origin), (u64, u64)> = BTreeMap::new();
        for ((id, origin, seq), waits) in &self.pending.changes {
            if waits.since_us + WANT_US > now.mono_us || self.transfers.is_taking(*id) {
                continue;
            }
            let Some(shard) = self.shards.cached(*id) else { continue };
            let previous = [(*origin, *seq - 1)];
            for (author, needed) in waits.change.deps.iter().chain(&previous) {
                let have = shard.vector.get(author);
                if have < *needed {
                    let range = wants.entry((waits.from, *id, *author)).or_insert((have + 1, *needed));
                    range.1 = range.1.max(*needed);
                }
            }
        }
        self.pending.asked.retain(|key, _| wants.contains_key(key));
        for ((to, shard, origin), (from, last)) in wants {
            let asked = self.pending.asked.entry((to, shard, origin)).or_insert(Asked {
                from,
                to: from - 1,
                due_us: 0,
                tries: 0,
            });
            let mut first = from;
            if asked.due_us > now.mono_us {
                if last <= asked.to {
                    continue;
                }
                first = from.max(asked.to.saturating_add(1));
            } else {
                asked.tries = if from > asked.from || asked.to < from { 0 } else { asked.tries + 1 };
                asked.from = from;
                asked.due_us = now.mono_us + (WANT_US << asked.tries.min(WANT_DOUBLINGS));
            }
            asked.to = last.max(asked.to);
            self.want(to, Want { shard, origin, from: first, to: last });
        }
        self.pending.next_want_us = (!self.pending.changes.is_empty()).then_some(now.mono_us + WANT_US);
    }

    /// Asks a peer for changes.
    pub(crate) fn want(&mut self, peer: NodeId, want: Want) {
        if let Some(link) = self.links.get_mut(&peer) {
            // A hostile change may name any number.
            let changes = want.to.saturating_sub(want.from).saturating_add(1);
            link.counted.wanted = link.counted.wanted.saturating_add(changes);
        }
        self.event(Event::Wanted(peer));
        self.send(peer, FrameBody::Want(want));
    }

    /// Sends a frame if the link stands.
    pub(crate) fn send(&mut self, to: NodeId, body: FrameBody) {
        if let Some(frame) = self.links.get_mut(&to).and_then(|link| link.frame(body)) {
            self.outputs.push_back(Output::Send { to, frame });
        }
    }
}

/// Changes whose turn has come, by key, to be merged together.
pub(crate) type Ready = BTreeMap<(ShardId, String), Vec<Change>>;

fn raw_edit(change: &Change) -> &[u8] {
    match &change.body {
        Body::Document { change } => change,
        _ => &[],
    }
}

/// Puts changes of a key aside: they are counted in the vector like any other, and the key is not served.
pub(crate) fn park(
    store: &mut Store,
    shard: ShardId,
    key: &str,
    row: &mut ValueRow,
    (now_ms, changes): (u64, &[&Change]),
    reason: String,
) {
    let parked = row.parked.get_or_insert(Parked { changes: 0, reason });
    for change in changes {
        let part = EditKey::PARKED + parked.changes;
        let piece = KeptChange::encode(now_ms, change);
        store.put_edit(&EditKey { shard, key, life: row.cell.life, part }, &piece);
        parked.changes += 1;
    }
}

enum Refusal {
    Unsound(String),
    NotMember(ShardId, u64),
}
