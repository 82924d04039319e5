//! State transfer: a shard's keys as a whole, at a vector, where no log reaches back any more.
//!
//! The *taker* asks one member for a shard. The *giver* reads a snapshot and sends every key's state in the order of the
//! keys, in parts; the taker stages them durably, where nobody reads them, and says so. When all are there it *lands*:
//! one batch raises the shard's vector to the snapshot's. From then on each key is merged before its next read, write or
//! apply, and the rest one after the other. So no reader ever sees some keys at the new vector and others before it.
//!
//! A transfer that was interrupted goes on behind the last key that is staged. Its giver may have come further since, so
//! it first sends again what changed of the keys before, or begins anew when its log no longer tells.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tropism_crdt::{Change, NodeId, RequestId, Vector};
use tropism_placement::{ShardId, check_key};
use tropism_storage::keys::{after_prefix, shard_prefix};
use tropism_storage::rows::{RequestRow, Row};
use tropism_storage::{
    LogKey, Reads, RequestKey, ShardKey, ShardRow, Space, StagedKey, Store, StoreError, StoreKey,
    TransferRow, ValueKey, View,
};

use crate::apply::Ready;
use crate::frame::{Fetch, Fetched, FrameBody, StatePart, StatePiece};
use crate::limits::{
    EARLY_PARTS, FRAME_BYTES, GIVEN_AT_ONCE, GIVEN_ROWS, GIVING_TURN_BYTES, GIVING_TURN_US, LEAST_PART_BYTES,
    RESUME_CHANGES, SETTLE_STEP_US, TAKEN_AT_ONCE, TRANSFER_CREDIT_BYTES, TRANSFER_PATIENCE_US,
};
use crate::recent::Logged;
use crate::replica::{Event, Now, Replica, ReplicaError, record_of};
use crate::state::KeyState;

/// A store as it was at one moment.
#[derive(Clone)]
pub(crate) struct Snapshot(pub(crate) Arc<dyn View + Send + Sync>);

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot")
    }
}

/// A shard on its way to a peer.
#[derive(Debug)]
pub(crate) struct Giving {
    id: u64,
    shard: ShardId,
    view: Snapshot,
    /// The snapshot's.
    vector: Vector,
    /// Keys that are sent again first, and the vector under which the others of them are staged.
    again: (VecDeque<String>, Vector),
    /// Rows that were read, and where the snapshot is read on; `None`: behind the last.
    rows: VecDeque<(Bytes, Bytes)>,
    next: Option<Vec<u8>>,
    /// Where its request ids are read on, behind its keys; `None`: behind the last.
    next_request: Option<Vec<u8>>,
    rest: Option<Rest>,
    begins_anew: bool,
    finished: bool,
    number: u64,
    /// Sizes of the parts that are not staged yet, the first of them `number - len`.
    unstaged: VecDeque<usize>,
    in_flight: usize,
    touched_us: u64,
}

/// What is left of a state that did not fit into a part.
#[derive(Debug)]
struct Rest {
    key: String,
    bytes: Bytes,
    /// The number of the next piece.
    number: u32,
    /// Whether the key is sent again.
    again: bool,
}

/// A shard on its way here.
#[derive(Debug)]
pub(crate) struct Taking {
    from: NodeId,
    id: u64,
    row: ShardRow,
    /// The part that comes next.
    next: u64,
    /// Parts that came before it, and their bytes.
    early: BTreeMap<u64, StatePart>,
    early_bytes: usize,
    touched_us: u64,
}

/// Everything about transfers that is not of one link.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    taking: BTreeMap<ShardId, Taking>,
    /// Shards that landed and whose keys are not all merged, and where that goes on.
    settling: BTreeMap<ShardId, Vec<u8>>,
    due_us: u64,
    next_id: u64,
    pub(crate) counted: TransferCounts,
}

/// What was transferred since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransferCounts {
    /// Shards that landed here.
    pub shards: u64,
    /// Keys staged here.
    pub keys: u64,
    /// Bytes of their states.
    pub bytes: u64,
    /// Bytes of states given to peers.
    pub given_bytes: u64,
}

impl Transfers {
    /// What a store was left with; ids of a life are unlike those of others.
    pub(crate) fn open(store: &Store, first_id: u64) -> Result<Self, StoreError> {
        let settling = store.transfers()?.into_iter().filter(|(_, row)| row.whole);
        let settling = settling.map(|(shard, _)| (shard, shard_prefix(&shard))).collect();
        Ok(Self { settling, next_id: first_id, ..Self::default() })
    }

    /// Whether a shard comes as a whole.
    pub(crate) fn is_taking(&self, shard: ShardId) -> bool {
        self.taking.contains_key(&shard)
    }

    /// Nothing of a shard is taken any more.
    pub(crate) fn forget(&mut self, shard: ShardId) {
        self.taking.remove(&shard);
        self.settling.remove(&shard);
    }

    /// Shards of which keys may still be staged.
    pub(crate) fn settling(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.settling.keys().copied()
    }

    /// Whether keys of a shard may still be staged.
    pub(crate) fn is_settling(&self, shard: ShardId) -> bool {
        self.settling.contains_key(&shard)
    }

    pub(crate) fn next_deadline(&self, now: Now) -> Option<u64> {
        let settling = (!self.settling.is_empty()).then_some(self.due_us.max(now.mono_us + 1));
        let taking = self.taking.values().map(|taking| taking.touched_us + TRANSFER_PATIENCE_US).min();
        settling.into_iter().chain(taking).min()
    }
}

impl Giving {
    /// Whether it is of this shard.
    pub(crate) fn is_of(&self, shard: ShardId) -> bool {
        self.shard == shard
    }
}

impl Replica {
    /// A peer says that what was wanted of a shard is in no log of its own.
    pub(crate) fn below_floor(
        &mut self,
        now: Now,
        store: &Store,
        from: NodeId,
        row: ShardRow,
    ) -> Result<(), ReplicaError> {
        let id = row.id();
        if !self.shares(&row, from)
            || self.transfers.taking.len() >= TAKEN_AT_ONCE
            || self.transfers.taking.contains_key(&id)
            || self.transfers.settling.contains_key(&id)
        {
            return Ok(());
        }
        self.take(now, store, from, row)
    }

    /// Asks a peer for a shard, or for the rest of it.
    fn take(&mut self, now: Now, store: &Store, from: NodeId, row: ShardRow) -> Result<(), ReplicaError> {
        let id = row.id();
        let staged = transfer_row(store, id)?.filter(|staged| !staged.last.is_empty());
        let resume = staged.map(|staged| (staged.vector, staged.last));
        self.transfers.next_id += 1;
        let fetch = Fetch { row: row.clone(), id: self.transfers.next_id, resume };
        let taking = Taking {
            from,
            id: fetch.id,
            row,
            next: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            touched_us: now.mono_us,
        };
        self.transfers.taking.insert(id, taking);
        self.send(from, FrameBody::Fetch(fetch));
        Ok(())
    }

    /// Asks again where nothing came for long, and lets go where the peer is gone.
    pub(crate) fn transfers_due(&mut self, now: Now, store: &Store) -> Result<(), ReplicaError> {
        let overdue = |taking: &Taking| taking.touched_us + TRANSFER_PATIENCE_US <= now.mono_us;
        let due: Vec<ShardId> =
            self.transfers.taking.iter().filter(|(_, t)| overdue(t)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(Taking { from, row, .. }) = self.transfers.taking.remove(&id) else { continue };
            if self.links.get(&from).is_some_and(|link| link.is_up()) {
                self.take(now, store, from, row)?;
            }
        }
        Ok(())
    }

    /// What comes from a peer that is gone is asked of whoever has it next.
    pub(crate) fn giver_gone(&mut self, peer: NodeId) {
        self.transfers.taking.retain(|_, taking| taking.from != peer);
    }

    /// A peer asks for a shard.
    pub(crate) fn fetch(
        &mut self,
        now: Now,
        store: &Store,
        from: NodeId,
        fetch: Fetch,
    ) -> Result<(), ReplicaError> {
        let Fetch { row, id, resume } = fetch;
        let shard = row.id();
        let theirs = self.shares(&row, from);
        let Some(link) = self.links.get_mut(&from) else { return Ok(()) };
        let view = store.snapshot();
        let settling = view
            .row::<TransferRow>(Space::Shards, &ShardKey::Transfer(shard).encode())?
            .is_some_and(|transfer| transfer.whole);
        let vector = view.vector(shard)?;
        let Some(giving) = link.giving() else { return Ok(()) };
        // It asks again: until then there may be room, or the shard whole.
        if !theirs || settling || vector.is_empty() {
            return Ok(());
        }
        // The question came twice: parts of another snapshot, cut elsewhere, must not join those under way.
        if giving.iter().any(|giving| (giving.shard, giving.id) == (shard, id)) {
            return Ok(());
        }
        giving.retain(|giving| giving.shard != shard);
        if giving.len() >= GIVEN_AT_ONCE {
            return Ok(());
        }
        let resumed = match resume {
            Some((staged, last)) => {
                changed_keys(&*view, shard, &staged, &vector, Some(&last))?.map(|keys| (keys, staged, last))
            }
            None => None,
        };
        let begins_anew = resumed.is_none();
        let (again, next) = match resumed {
            Some((keys, staged, last)) => {
                let mut next = ValueKey { shard, key: &last }.encode().as_bytes().to_vec();
                next.push(0);
                ((keys.into_iter().collect(), staged), next)
            }
            None => ((VecDeque::new(), Vector::EMPTY), shard_prefix(&shard)),
        };
        giving.push(Giving {
            id,
            shard,
            view: Snapshot(view),
            vector,
            again,
            rows: VecDeque::new(),
            next: Some(next),
            next_request: Some(shard_prefix(&shard)),
            rest: None,
            begins_anew,
            finished: false,
            number: 0,
            unstaged: VecDeque::new(),
            in_flight: 0,
            touched_us: now.mono_us,
        });
        Ok(())
    }

    /// A peer has staged parts.
    pub(crate) fn fetched(&mut self, now: Now, from: NodeId, fetched: Fetched) {
        let Some(giving) = self.links.get_mut(&from).and_then(|link| link.giving()) else { return };
        // It takes what came before: the rest waits there.
        giving.iter_mut().for_each(|given| given.touched_us = now.mono_us);
        let Some(at) = giving.iter().position(|g| g.shard == fetched.shard && g.id == fetched.id) else {
            return;
        };
        let given = &mut giving[at];
        let first = given.number - given.unstaged.len() as u64;
        for _ in first..=fetched.number.min(given.number.saturating_sub(1)) {
            given.in_flight -= given.unstaged.pop_front().unwrap_or(0);
        }
        if given.finished && given.unstaged.is_empty() {
            giving.remove(at);
        }
    }

    /// Sends what may be under way of the shards that a peer asked for.
    pub(crate) fn give(&mut self, now: Now, peer: NodeId) -> Result<(), ReplicaError> {
        let share = self.budget.share(now, GIVING_TURN_BYTES, GIVING_TURN_US);
        let part_bytes =
            self.identity.part_bytes.clamp(1, FRAME_BYTES).min(share.items.max(LEAST_PART_BYTES));
        let Some(link) = self.links.get_mut(&peer).filter(|link| link.give_due(now)) else { return Ok(()) };
        let Some(giving) = link.giving() else { return Ok(()) };
        giving.retain(|given| given.touched_us + 2 * TRANSFER_PATIENCE_US > now.mono_us);
        let mut frames = Vec::new();
        let mut bytes = 0;
        for given in giving {
            while !given.finished && given.in_flight < TRANSFER_CREDIT_BYTES && bytes < share.items {
                let (part, size) = given.part(part_bytes)?;
                given.in_flight += size;
                given.unstaged.push_back(size);
                bytes += size;
                frames.push(part);
            }
        }
        link.gave(now.mono_us + share.step_after(bytes));
        if bytes > 0 {
            self.budget.did(share.us_of(bytes), |work| work.given_bytes += bytes as u64);
        }
        self.transfers.counted.given_bytes += bytes as u64;
        for part in frames {
            self.send(peer, FrameBody::State(part));
        }
        Ok(())
    }

    /// A part of a shard comes: it is staged, and those behind it that came early.
    pub(crate) fn state_part(
        &mut self,
        now: Now,
        store: &mut Store,
        from: NodeId,
        part: StatePart,
    ) -> Result<(), ReplicaError> {
        let id = part.shard;
        // While parts of anything come from a giver, those of a shard may be behind them: asked for again, they would only
        // make the queue longer.
        for taking in self.transfers.taking.values_mut().filter(|taking| taking.from == from) {
            taking.touched_us = now.mono_us;
        }
        let Some(taking) = self.transfers.taking.get_mut(&id) else { return Ok(()) };
        if taking.from != from || taking.id != part.id {
            return Ok(()); // of a transfer that was given up
        }
        if part.number < taking.next {
            let fetched = Fetched { shard: id, id: part.id, number: taking.next - 1 };
            self.send(from, FrameBody::Fetched(fetched));
            return Ok(());
        }
        if part.number > taking.next {
            // The giver sends no more than its credit ahead of what was staged; another one does not get to more memory. If
            // what is between does not come, it is asked for again.
            let size = part.size();
            if taking.early_bytes + size <= 2 * TRANSFER_CREDIT_BYTES
                && taking.early.len() < EARLY_PARTS
                && taking.early.insert(part.number, part).is_none()
            {
                taking.early_bytes += size;
            }
            return Ok(());
        }
        let mut next = Some(part);
        while let Some(part) = next {
            let Some(taking) = self.transfers.taking.get_mut(&id) else { break }; // it landed
            taking.next += 1;
            next = taking.early.remove(&taking.next);
            taking.early_bytes -= next.as_ref().map_or(0, StatePart::size);
            let row = taking.row.clone();
            self.stage(now, store, from, &row, part)?;
        }
        Ok(())
    }

    /// Stages the part that is next.
    fn stage(
        &mut self,
        now: Now,
        store: &mut Store,
        from: NodeId,
        row: &ShardRow,
        part: StatePart,
    ) -> Result<(), ReplicaError> {
        let id = part.shard;
        let mut staged = transfer_row(store, id)?.unwrap_or_default();
        if part.begins_anew {
            // What is staged may be more than this giver has, also a part of the first key.
            if !part.vector.dominates(&staged.vector) {
                self.unstage(store, id)?;
            }
            staged = TransferRow::default();
        }
        let resumed_behind = staged.last.clone();
        for StatePiece { key, number, last, bytes } in part.pieces {
            let ours = check_key(&key).is_ok()
                && record_of(&self.records, row).is_some_and(|record| record.shard(&key).1 == id);
            if !ours {
                self.refuse(from, format!("a state of a key that is not in shard {id}"));
                continue;
            }
            if number == 0 {
                // Of a key that is sent again the last state may have had more pieces.
                store.unstage(id, &key)?;
            }
            store.stage(&StagedKey { shard: id, key: &key, piece: number }, &bytes);
            self.transfers.counted.bytes += bytes.len() as u64;
            if last {
                self.transfers.counted.keys += 1;
                staged.keys += u64::from(key > resumed_behind);
                staged.last = key.max(staged.last);
            }
        }
        for (request, row) in part.requests {
            // What was asked for was done, wherever: so it counts at once.
            let name = RequestKey { shard: id, id: request }.encode();
            if let Ok(row) = RequestRow::decode(&row)
                && store.row::<RequestRow>(Space::Requests, &name)?.is_none()
            {
                let wall_ms = row.wall_ms.min(now.wall_ms);
                let row = RequestRow { wall_ms, commit: store.open_commit(), ..row };
                store.put_row(Space::Requests, name, &row);
            }
        }
        staged.vector = part.vector;
        if part.last {
            staged.whole = true;
            self.transfers.taking.remove(&id);
            self.land(now, store, row, &staged)?;
        }
        if !part.last || self.transfers.is_settling(id) {
            store.put_row(Space::Shards, ShardKey::Transfer(id).encode(), &staged);
        }
        self.send(from, FrameBody::Fetched(Fetched { shard: id, id: part.id, number: part.number }));
        Ok(())
    }

    /// Everything is staged: raises the vector. Readers see it with the keys merged, or merge them first.
    fn land(
        &mut self,
        now: Now,
        store: &mut Store,
        row: &ShardRow,
        staged: &TransferRow,
    ) -> Result<(), ReplicaError> {
        let id = row.id();
        let Some(record) = self.held(row) else { return Ok(()) };
        self.shards.get(store, row, id, || record)?;
        let Some(shard) = self.shards.cached_mut(id) else { unreachable!("the shard was just used") };
        let raised = staged.vector.risen_since(&shard.vector);
        let mut marks = Vec::new();
        for (origin, seq) in &raised {
            let first = shard.vector.get(origin) + 1;
            shard.vector.raise(*origin, *seq);
            // The index names the first and the last of what came: from where on it is not stable, and up to where.
            marks.extend(BTreeSet::from([first, *seq]).into_iter().map(|seq| LogKey {
                shard: id,
                origin: *origin,
                seq,
            }));
        }
        shard.digest = None;
        for key in marks {
            store.mark(key);
            self.recent.push(store.open_commit(), Logged { key, bytes: Bytes::new(), from: None });
        }
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        for (origin, seq) in raised {
            for peer in &peers {
                self.tell(now, *peer, 0, id, origin, seq);
            }
        }
        self.transfers.counted.shards += 1;
        self.transfers.settling.insert(id, shard_prefix(&id));
        self.event(Event::Landed { shard: id, keys: staged.keys });
        if staged.keys <= self.identity.settle_keys as u64 {
            while self.transfers.is_settling(id) {
                self.settle_some(store, id, self.identity.settle_keys)?; // at once: nobody ever waits for them
            }
        }
        let mut ready = Ready::default();
        self.release(now, store, id, &mut ready)?;
        for ((id, key), changes) in ready {
            self.merge(store, id, &key, &changes)?;
        }
        Ok(())
    }

    /// Merges what is staged of one key, before it is read, written or applied to.
    pub(crate) fn settle(&mut self, store: &mut Store, id: ShardId, key: &str) -> Result<(), ReplicaError> {
        if !self.transfers.is_settling(id) {
            return Ok(());
        }
        let damaged = |problem: String| Event::Parked { reason: format!("a staged state: {problem}") };
        let pieces = match store.staged(id, key) {
            Err(error @ StoreError::Damaged { .. }) => {
                // Its shard counts it as come: the digest will tell, and the peer gives it again.
                self.event(damaged(error.to_string()));
                return Ok(store.unstage(id, key)?);
            }
            pieces => pieces?,
        };
        if pieces.is_empty() {
            return Ok(());
        }
        let bytes: Bytes = match pieces.as_slice() {
            [(_, only)] => only.clone(),
            several => several.iter().flat_map(|(_, piece)| piece.iter().copied()).collect(),
        };
        if self.shard(store, id)?.is_some() {
            match KeyState::decode(&bytes) {
                Ok(state) => {
                    self.take_state(store, id, key, &state)?;
                }
                Err(error) => self.event(damaged(error.to_string())),
            }
        }
        Ok(store.unstage(id, key)?)
    }

    /// Merges some keys of shards that landed, when it is time.
    pub(crate) fn settle_due(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        if self.transfers.due_us > now.mono_us {
            return Ok(());
        }
        let Some(id) = self.transfers.settling.keys().next().copied() else { return Ok(()) };
        let share = self.budget.share(now, self.identity.settle_keys, SETTLE_STEP_US);
        self.transfers.due_us = now.mono_us + share.step_us;
        if share.items == 0 {
            return Ok(());
        }
        self.budget.did(share.us, |work| work.settled_keys += share.items as u64);
        self.settle_some(store, id, share.items)
    }

    /// Merges the next keys of a shard that landed, at most so many.
    pub(crate) fn settle_some(
        &mut self,
        store: &mut Store,
        id: ShardId,
        keys: usize,
    ) -> Result<(), ReplicaError> {
        let Some(from) = self.transfers.settling.get(&id).cloned() else { return Ok(()) };
        let end = after_prefix(&shard_prefix(&id));
        let (rows, next) = store.page(Space::Staged, &from, keys.max(1))?;
        let mut keys: Vec<String> = rows
            .iter()
            .filter(|(name, _)| name[..] < end[..])
            .filter_map(|(name, _)| StagedKey::decode(name).ok().map(|staged| staged.key.to_owned()))
            .collect();
        keys.dedup();
        for key in keys {
            self.settle(store, id, &key)?;
        }
        match next.filter(|next| *next < end) {
            Some(next) => {
                self.transfers.settling.insert(id, next);
            }
            None => {
                self.transfers.settling.remove(&id);
                store.remove(Space::Shards, ShardKey::Transfer(id).encode());
                self.recount_soon(id);
                self.event(Event::Settled { shard: id });
            }
        }
        Ok(())
    }

    /// Drops everything staged of a shard.
    fn unstage(&mut self, store: &mut Store, id: ShardId) -> Result<(), ReplicaError> {
        let prefix = shard_prefix(&id);
        let staged = store.scan(Space::Staged, &prefix, &after_prefix(&prefix));
        let names = staged.map(|row| row.map(|(name, _)| name)).collect::<Result<Vec<_>, _>>();
        for name in names.map_err(StoreError::from)? {
            store.remove(Space::Staged, StoreKey::existing(name));
        }
        Ok(())
    }
}

impl Giving {
    /// Whether it could send more now.
    pub(crate) fn is_ready(&self) -> bool {
        !self.finished && self.in_flight < TRANSFER_CREDIT_BYTES
    }

    /// The next part and its size. It ends where the vector changes under which its keys are staged.
    fn part(&mut self, part_bytes: usize) -> Result<(StatePart, usize), StoreError> {
        let again = !self.again.0.is_empty() || self.rest.as_ref().is_some_and(|rest| rest.again);
        let mut pieces = Vec::new();
        let mut size = 0;
        while size < part_bytes {
            let Some(Rest { key, mut bytes, number, again }) = self.rest_or_next(again)? else { break };
            let piece = bytes.split_to(bytes.len().min(part_bytes));
            size += piece.len() + key.len();
            let last = bytes.is_empty();
            pieces.push(StatePiece { key: key.clone(), number, last, bytes: piece });
            if !last {
                self.rest = Some(Rest { key, bytes, number: number + 1, again });
            }
        }
        let mut requests = Vec::new();
        if !again && self.rest.is_none() && self.next.is_none() && self.rows.is_empty() {
            while size < part_bytes && !self.finished {
                let some = self.requests()?;
                size += some.iter().map(|(_, row)| row.len() + size_of::<RequestId>()).sum::<usize>();
                requests.extend(some);
                self.finished = self.next_request.is_none();
            }
        }
        let part = StatePart {
            shard: self.shard,
            id: self.id,
            number: self.number,
            begins_anew: self.begins_anew && self.number == 0,
            vector: if again { self.again.1.clone() } else { self.vector.clone() },
            pieces,
            requests,
            last: self.finished,
        };
        self.number += 1;
        Ok((part, size.max(1)))
    }

    /// What is sent next: the rest of a state, a key that is sent again, or the next key of the snapshot.
    fn rest_or_next(&mut self, again: bool) -> Result<Option<Rest>, StoreError> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        let (key, row) = if again {
            let Some(key) = self.again.0.pop_front() else { return Ok(None) };
            let name = ValueKey { shard: self.shard, key: &key }.encode();
            let row = self.view.0.get(Space::Values, name.as_bytes())?;
            (key, row.unwrap_or_default()) // it was changed, so there is a row, or it is damaged
        } else {
            let Some((name, row)) = self.read()? else { return Ok(None) };
            (String::from_utf8_lossy(&name[shard_prefix(&self.shard).len()..]).into_owned(), row)
        };
        let state = KeyState::read(&*self.view.0, self.shard, &key, &row)?;
        Ok(Some(Rest { key, bytes: state.encode().into(), number: 0, again }))
    }

    /// The next request ids of the snapshot.
    fn requests(&mut self) -> Result<Vec<(RequestId, Bytes)>, StoreError> {
        let Some(next) = self.next_request.take() else { return Ok(Vec::new()) };
        let end = after_prefix(&shard_prefix(&self.shard));
        let rows = self.view.0.scan(Space::Requests, &next, &end).take(GIVEN_ROWS);
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        if rows.len() == GIVEN_ROWS
            && let Some((last, _)) = rows.last()
        {
            self.next_request = Some([last, &[0][..]].concat());
        }
        let named = rows.into_iter().filter_map(|(name, row)| Some((*name.last_chunk()?, row)));
        Ok(named.collect())
    }

    /// The next row of the snapshot; `None` behind the last.
    fn read(&mut self) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        if self.rows.is_empty()
            && let Some(next) = self.next.take()
        {
            let end = after_prefix(&shard_prefix(&self.shard));
            let rows = self.view.0.scan(Space::Values, &next, &end).take(GIVEN_ROWS);
            self.rows = rows.collect::<Result<_, _>>()?;
            if self.rows.len() == GIVEN_ROWS
                && let Some((last, _)) = self.rows.back()
            {
                self.next = Some([last, &[0][..]].concat());
            }
        }
        Ok(self.rows.pop_front())
    }
}

/// The keys that changed between two vectors, of those up to `last` when that is given, as the log tells; `None` when it
/// does not.
pub(crate) fn changed_keys<V: View + ?Sized>(
    view: &V,
    shard: ShardId,
    from: &Vector,
    to: &Vector,
    last: Option<&str>,
) -> Result<Option<BTreeSet<String>>, StoreError> {
    if !to.dominates(from) {
        return Ok(None);
    }
    let mut keys = BTreeSet::new();
    let mut changes = 0;
    for (origin, upto) in to.risen_since(from) {
        for seq in from.get(&origin) + 1..=upto {
            changes += 1;
            let change = view.change(&LogKey { shard, origin, seq })?;
            let Some(Ok(change)) =
                change.filter(|_| changes <= RESUME_CHANGES).map(|bytes| Change::decode(&bytes))
            else {
                return Ok(None);
            };
            if last.is_none_or(|last| *change.key <= *last) {
                keys.insert(change.key);
            }
        }
    }
    Ok(Some(keys))
}

fn transfer_row(store: &Store, shard: ShardId) -> Result<Option<TransferRow>, StoreError> {
    store.row(Space::Shards, &ShardKey::Transfer(shard).encode())
}
