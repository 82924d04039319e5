//! The driver of one node: turns, syncs, starts and crashes, as the replica's contract says.

use std::collections::BTreeMap;
use std::sync::Arc;

use tropism_crdt::NodeId;
use tropism_placement::{Kind, RegionName, ScopeId, ScopeName, ShardId};
use tropism_replica::{
    DigestKey, Event, Hello, Identity, Input, Opening, Output, Peer, Replica, SetAside, Status,
};
use tropism_storage::{Engine, NodeKey, PeerRow, Reads, RebuildCause, Space, Store, View};

use super::background::Frames;
use super::{Mend, What, World};
use crate::checkers::{Fact, NodeView, Promise};
use crate::disk::{SimDisk, key_of};
use crate::report::Sabotage;
use crate::rng::Rng;

/// A copy is old when the node went on for this long after it was made, us: by then peers have written down that they
/// saw more.
const OLD_COPY_US: u64 = 3_000_000;

/// One node and its driver.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) region: RegionName,
    pub(super) disk: SimDisk,
    pub(super) running: Option<(Store, Replica)>,
    /// What clients are shown: the state of the last sync.
    pub(super) published: Option<Published>,
    /// Counts starts: outputs of an earlier life do not leave.
    pub(super) life: u64,
    pub(super) inbox: Vec<Input>,
    pub(super) frames: Frames,
    /// The connections whose beginning it has seen.
    pub(super) up: BTreeMap<usize, u64>,
    /// The links whose beginning its replica takes with the next turn, and those it took: frames leave on these.
    pub(super) meeting: Vec<(usize, u64)>,
    pub(super) linked: BTreeMap<usize, u64>,
    /// The connections that it knew when the turn ended whose outputs leave.
    pub(super) leaves_on: BTreeMap<usize, u64>,
    /// Whom it met since the end of the last turn.
    met: Vec<usize>,
    pub(super) syncing: bool,
    /// Whether the open turn holds inputs that came while the one before was being synced.
    pub(super) gathered: bool,
    /// As it was when the turn ended that is being synced: what it says may be looked at when that is durable.
    pub(super) status: Option<Status>,
    settling: Vec<ShardId>,
    open: bool,
    /// The scopes that it serves, as of the turn that is being synced.
    serving: Vec<ScopeId>,
    pub(super) turn_at: Option<u64>,
    pub(super) paused: bool,
    pub(super) sync_us: (u64, u64),
    pub(super) offset_ms: i64,
    pub(super) drift_ppm: i64,
    pub(super) mono_base_us: u64,
    /// A copy of its store, made earlier.
    backup: Option<Backup>,
    /// It runs on an old copy: what its peers know of it.
    old_copy: Option<OldCopy>,
    /// How its store came to be, and the one that was set aside.
    opening: Opening,
    aside: Option<SimDisk>,
}

/// What clients are shown.
pub(super) struct Published {
    pub(super) snapshot: Arc<dyn View + Send + Sync>,
    pub(super) head: u64,
    pub(super) stable_commit: u64,
    pub(super) settling: Vec<ShardId>,
    /// Whether clients are served.
    pub(super) open: bool,
    /// And with which scopes.
    pub(super) serving: Vec<ScopeId>,
}

struct Backup {
    made_us: u64,
    commit: u64,
    disk: SimDisk,
    view: NodeView,
}

struct OldCopy {
    /// A peer on whose disk it stands that there was more.
    known_by: usize,
    /// That peer lost its store since, and with it what it knew.
    peer_lost: bool,
}

impl Node {
    pub(super) fn new(id: NodeId, region: RegionName, sync_us: (u64, u64), rng: &mut Rng) -> Self {
        Self {
            id,
            region,
            disk: SimDisk::new(),
            running: None,
            published: None,
            life: 0,
            inbox: Vec::new(),
            frames: Frames::default(),
            up: BTreeMap::new(),
            meeting: Vec::new(),
            linked: BTreeMap::new(),
            leaves_on: BTreeMap::new(),
            met: Vec::new(),
            settling: Vec::new(),
            open: false,
            serving: Vec::new(),
            syncing: false,
            gathered: false,
            status: None,
            turn_at: None,
            paused: false,
            sync_us,
            offset_ms: rng.between(0, 200) as i64 - 100,
            drift_ppm: rng.between(0, 400) as i64 - 200,
            mono_base_us: rng.between(1, 1_000_000_000),
            backup: None,
            old_copy: None,
            opening: Opening::default(),
            aside: None,
        }
    }

    /// Whether it runs on a copy that nobody recognised yet.
    pub(super) fn is_old_copy(&self) -> bool {
        self.old_copy.is_some()
    }

    /// Whether it serves clients, and its operator lets them come.
    pub(super) fn is_open(&self) -> bool {
        self.old_copy.is_none() && self.published.as_ref().is_some_and(|published| published.open)
    }

    /// Whether its store is being filled by its peers, or it is away.
    pub(super) fn is_filling(&self) -> bool {
        !self.published.as_ref().is_some_and(|published| published.open)
    }

    /// In the end an old copy was recognised, unless who knew lost its own store.
    pub(super) fn old_copy_served(&self) -> Option<String> {
        let copy = self.old_copy.as_ref().filter(|copy| !copy.peer_lost)?;
        let peer = copy.known_by;
        Some(format!("{} was served from an old copy; n{peer} knew, and nobody said so", self.id))
    }
}

/// The scopes that a node serves.
fn served(replica: &Replica, scopes: &[(ScopeName, Kind)], region: &RegionName) -> Vec<ScopeId> {
    let serves = |(name, _): &(ScopeName, Kind)| {
        replica.record(name).filter(|record| record.serving.contains(region)).map(|record| record.scope)
    };
    scopes.iter().filter_map(serves).collect()
}

impl World {
    pub(super) fn start(&mut self, at: usize) {
        let identity = Identity {
            cluster: "simulated".into(),
            node: self.nodes[at].id,
            region: self.nodes[at].region.clone(),
            boot_random: self.rng.word(),
            new_store_id: u128::from(self.rng.word()),
            peers: self
                .nodes
                .iter()
                .filter(|node| node.id != self.nodes[at].id)
                .map(|node| Peer { node: node.id, region: node.region.clone() })
                .collect(),
            rules: self.config.rules.clone(),
            directory: self.config.moves,
            opening: self.nodes[at].opening.clone(),
            digest_key: DigestKey(*b"of the simulator"),
            cache_bytes: self.config.cache_bytes,
            log_keep_ms: self.config.log_keep_ms,
            part_bytes: self.config.part_bytes,
            settle_keys: self.config.settle_keys,
            log_cap_ms: self.config.log_cap_ms,
            log_cap_bytes: u64::MAX,
            log_keep_bytes: tropism_replica::limits::LOG_KEEP_BYTES,
        };
        let now = self.now_of(&self.nodes[at]);
        let node = &mut self.nodes[at];
        if node.running.is_some() {
            return;
        }
        let id = node.id;
        let opened = Store::open(Box::new(node.disk.clone())).map_err(|error| error.to_string());
        let booted = opened.and_then(|mut store| {
            let found = store.head().commit;
            let replica = Replica::boot(now, &mut store, identity).map_err(|error| error.to_string())?;
            // What boot wrote is durable before anything leaves.
            store.commit(now.wall_ms).and_then(|_| store.sync()).map_err(|error| error.to_string())?;
            Ok((store, replica, found))
        });
        let (store, replica, found) = match booted {
            Ok(booted) => booted,
            Err(error) => {
                return self.checkers.violated(
                    Promise::Service,
                    vec![at],
                    format!("{id} does not start: {error}"),
                );
            }
        };
        self.checkers.truth.follows(at, replica.records());
        self.checkers.opened(at, found, &store, replica.origin());
        self.journal.note(self.now_us, at, || format!("starts as {} from commit {found}", replica.origin()));
        let (head, stable_commit) = (store.head().commit, replica.stable_commit());
        let (snapshot, settling) = (store.snapshot(), replica.settling());
        let open = replica.rebuild_status(now).is_none();
        let serving = served(&replica, &self.config.scopes, &node.region);
        node.published = Some(Published { snapshot, head, stable_commit, settling, open, serving });
        node.running = Some((store, replica));
        node.life += 1;
        node.syncing = false;
        node.gathered = false;
        node.status = None;
        node.inbox.clear();
        node.frames.clear();
        node.up.clear();
        node.meeting.clear();
        node.met.clear();
        node.linked.clear();
        node.leaves_on.clear();
        node.turn_at = None;
        self.will_hear(at);
        self.wake(at, 0);
    }

    pub(super) fn crash(&mut self, at: usize) {
        let unsynced = self.nodes[at].disk.unsynced();
        let keep = if unsynced == 0 { 0 } else { self.rng.index(unsynced + 1) };
        if self.nodes[at].running.take().is_none() {
            return;
        }
        self.cover(if unsynced > keep { "crash lost unsynced commits" } else { "crash lost nothing" });
        self.journal.note(self.now_us, at, || format!("crashes, {keep} of {unsynced} unsynced commits stay"));
        self.nodes[at].disk.crash(keep);
        self.nodes[at].published = None;
        self.verifier_lost(at);
        match self.size.sabotage {
            Some(Sabotage::ForgetsClock) => self.nodes[at].disk.forget_clock(),
            Some(Sabotage::ForgetsVector) => self.nodes[at].disk.forget_a_vector_entry(),
            Some(Sabotage::BendsDocument) => self.nodes[at].disk.bend_a_document(),
            _ => {}
        }
        self.nodes[at].inbox.clear();
        self.nodes[at].frames.clear();
        for peer in 0..self.nodes.len() {
            let connection = self.network.connection(at, peer);
            if peer != at
                && let Some(connection) = connection
                && self.network.disconnect(at, peer)
            {
                if self.rng.chance(60) {
                    self.schedule(1_000, What::Down { at: peer, peer: at, connection });
                }
                self.reconnect(at, peer);
            }
        }
    }

    /// A node ends, and a row of a key on its disk is gone or not what was written. Says whether there was one.
    pub(super) fn rot(&mut self, at: usize) -> bool {
        // One at a time: what rots everywhere at once nobody can repair.
        let sound = self.checkers.truth.rotten.is_empty() && self.nodes.iter().all(Node::is_open);
        let pick = self.rng.word() as usize;
        let gone = self.rng.chance(50);
        if !sound || self.nodes[at].running.is_none() {
            return false;
        }
        let truth = &self.checkers.truth;
        let shared = |shard: &ShardId| truth.members(shard).count() > 1 && truth.is_shard_sound(*shard);
        let Some(found) = self.nodes[at].disk.row_of_a_key(pick, shared) else { return false };
        let Some((shard, key)) = key_of(&found) else { return false };
        if !self.checkers.truth.is_elsewhere(at, shard, &key) {
            return false; // what rots must be on another disk
        }
        self.crash(at);
        let Some((shard, key)) = self.nodes[at].disk.rot(&found, gone) else { return true };
        self.journal
            .note(self.now_us, at, || format!("{key} of {shard} {}", if gone { "is gone" } else { "rots" }));
        self.checkers.truth.rotten.insert((shard, key));
        self.checkers.truth.once_rotten.insert(shard);
        true
    }

    /// A node loses its store, and begins with an empty one; where that has a reason, it was set aside, and can be read.
    pub(super) fn lose_store(&mut self, at: usize, set_aside: Option<&str>) {
        self.crash(at);
        self.checkers.truth.replace(at, None);
        for copy in self.nodes.iter_mut().filter_map(|node| node.old_copy.as_mut()) {
            copy.peer_lost |= copy.known_by == at;
        }
        let node = &mut self.nodes[at];
        let aside = std::mem::replace(&mut node.disk, SimDisk::new());
        (node.backup, node.old_copy) = (None, None);
        node.opening = Opening {
            set_aside: set_aside.map(str::to_owned),
            salvage: set_aside.is_some(),
            accept_loss: false,
        };
        node.aside = set_aside.map(|_| aside);
        for other in &mut self.nodes {
            other.meeting.retain(|(peer, _)| *peer != at); // that was the store before
            other.met.retain(|peer| *peer != at);
        }
        self.journal.note(self.now_us, at, || format!("its store is gone: {set_aside:?}"));
    }

    /// A node finds its store damaged and sets it aside: some of its log cannot be read.
    pub(super) fn damage_store(&mut self, at: usize) {
        self.crash(at);
        let lost = self.rng.between(0, 20);
        let rng = &mut self.rng;
        self.nodes[at].disk.lose_log_rows(|| rng.chance(lost));
        self.lose_store(at, Some("damaged"));
    }

    /// A node gets an old copy of its store; says whether there is one that a peer can recognise.
    pub(super) fn put_back_old_copy(&mut self, at: usize) -> bool {
        let id = self.nodes[at].id;
        let Some(backup) = &self.nodes[at].backup else { return false };
        if backup.made_us + OLD_COPY_US > self.now_us || self.nodes[at].is_old_copy() {
            return false;
        }
        let name = NodeKey::Peer(id).encode();
        let known_by = (0..self.nodes.len()).filter(|peer| *peer != at).find(|peer| {
            let node = &self.nodes[*peer];
            let row = node.disk.row::<PeerRow>(Space::Node, &name).ok().flatten();
            let durable = node.running.is_some() && node.disk.unsynced() == 0;
            durable
                && row.is_some_and(|r| r.seen.commit > backup.commit)
                && self.checkers.truth.has_met(*peer, at)
        });
        let Some(known_by) = known_by else { return false };
        self.crash(at);
        let Some(backup) = self.nodes[at].backup.take() else { return false };
        self.journal.note(self.now_us, at, || format!("gets back its store of commit {}", backup.commit));
        self.checkers.truth.replace(at, Some(&backup.view));
        let node = &mut self.nodes[at];
        node.disk = backup.disk;
        node.old_copy = Some(OldCopy { known_by, peer_lost: false });
        true
    }

    pub(super) fn input(&mut self, at: usize, input: Input) {
        let now = self.now_of(&self.nodes[at]);
        let node = &mut self.nodes[at];
        if node.running.is_none() {
            return;
        }
        match input {
            Input::Frame { from, frame } => node.frames.arrivals.push(now, from, frame, ()),
            Input::LinkDown(peer) | Input::LinkUp(Hello { node: peer, .. }) => {
                node.frames.arrivals.forget(peer); // of a connection that is gone
                node.inbox.push(input);
            }
            input => node.inbox.push(input),
        }
        self.wake(at, 0);
    }

    /// Lets a node take a turn in at most this time.
    pub(super) fn wake(&mut self, at: usize, in_us: u64) {
        let due = self.now_us + in_us;
        if self.nodes[at].turn_at.is_none_or(|at| at > due) {
            self.nodes[at].turn_at = Some(due);
            self.schedule(in_us, What::Turn(at));
        }
    }

    pub(super) fn turn(&mut self, at: usize) {
        if self.nodes[at].turn_at == Some(self.now_us) {
            self.nodes[at].turn_at = None;
        }
        let now = self.now_of(&self.nodes[at]);
        let wall_ms = &mut self.checkers.truth.nodes[at].wall_ms;
        *wall_ms = now.wall_ms.max(*wall_ms);
        let node = &mut self.nodes[at];
        if node.paused {
            return; // goes on when that is over
        }
        let meeting = std::mem::take(&mut node.meeting);
        node.linked.extend(meeting.iter().copied());
        node.met.extend(meeting.into_iter().map(|(peer, _)| peer));
        let Some((store, replica)) = &mut node.running else { return };
        let mut inputs = std::mem::take(&mut node.inbox);
        node.gathered |= node.syncing && !inputs.is_empty();
        if !node.syncing {
            node.gathered = false;
            inputs.push(Input::Tick);
        }
        let mut failed = None;
        for input in inputs {
            if let Err(error) = replica.handle(now, store, input) {
                failed = Some(error.to_string());
            }
        }
        let Some(mut running) = node.running.take() else { return };
        let took = self.take_frames(at, now, &mut running);
        let node = &mut self.nodes[at];
        let (store, replica) = node.running.insert(running);
        match took {
            Ok(took) => node.gathered |= node.syncing && took,
            Err(error) => failed = Some(error),
        }
        if node.syncing && failed.is_none() {
            return self.cover("a turn was gathered while the one before was synced");
        }
        if let Err(error) = replica.flush(now, store) {
            failed = Some(error.to_string());
        }
        if let Err(error) = store.commit(now.wall_ms) {
            failed = Some(error.to_string());
        }
        node.status = Some(replica.status(now));
        node.settling = replica.settling();
        node.open = replica.rebuild_status(now).is_none();
        node.serving = served(replica, &self.config.scopes, &node.region);
        self.checkers.truth.follows(at, replica.records());
        // What this turn's status says is said in the knowledge of whom it met.
        let met = std::mem::take(&mut node.met);
        for peer in met {
            if !self.nodes[peer].is_old_copy() {
                self.checkers.truth.meet(at, peer);
            }
        }
        let node = &mut self.nodes[at];
        let Some((store, replica)) = &mut node.running else { return };
        if replica.next_deadline(now) <= now.mono_us {
            let text =
                format!("{} asks for another turn at once, after everything that is due was done", node.id);
            return self.checkers.violated(Promise::Service, vec![at], text);
        }
        if let Some(error) = failed {
            let text = format!("{} stops: {error}", node.id);
            return self.checkers.violated(Promise::Service, vec![at], text);
        }
        let mut outputs = Vec::new();
        while let Some(output) = replica.poll_output() {
            if let Output::Event(Event::Left { shard }) = output {
                self.checkers.truth.left(at, shard);
            }
            outputs.push(output);
        }
        self.checkers.committed(at, store, replica.stable_commit());
        let head = store.head();
        self.trace.add(head.hash);
        self.trace.add(outputs.len() as u64);
        node.syncing = true;
        let (least, most) = node.sync_us;
        let life = node.life;
        let sync_us = self.rng.between(least, most);
        if self.size.sabotage == Some(Sabotage::RepliesBeforeSync) {
            let is_reply = |output: &Output| matches!(output, Output::Reply { .. });
            let (replies, rest) = std::mem::take(&mut outputs).into_iter().partition(is_reply);
            outputs = rest;
            for reply in replies {
                self.carry_out(at, reply);
            }
        }
        let linked = self.nodes[at].linked.clone();
        self.schedule(sync_us, What::Synced { node: at, life, outputs, linked });
        self.look(at);
    }

    /// Where the vectors of two nodes meet, their states must; and a state is what its changes say.
    fn look(&mut self, at: usize) {
        if !self.order.is_multiple_of(7) {
            return; // a sample: the whole state is compared
        }
        let other = self.rng.index(self.nodes.len());
        let (Some((a, _)), Some((b, _))) = (&self.nodes[at].running, &self.nodes[other].running) else {
            return;
        };
        // A vector in an open turn is read before the rows that belong to it can be scanned.
        if a.is_dirty() || b.is_dirty() {
            return;
        }
        if at != other {
            self.checkers.see(Fact::Pair { a: (at, a), b: (other, b) });
        } else if self.order.is_multiple_of(5) {
            self.checkers.see(Fact::State { node: at, store: a });
        }
    }

    pub(super) fn synced(
        &mut self,
        at: usize,
        life: u64,
        outputs: Vec<Output>,
        linked: BTreeMap<usize, u64>,
    ) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        node.leaves_on = linked;
        let now = self.now_of(&self.nodes[at]);
        let node = &mut self.nodes[at];
        let id = node.id;
        let Some((store, replica)) = &mut node.running else { return };
        if store.sync().is_err() {
            return self.checkers.violated(Promise::Service, vec![at], format!("{id}: the disk failed"));
        }
        self.checkers.truth.nodes[at].synced();
        node.syncing = false;
        let Some(status) = node.status.take() else { return };
        let (head, stable_commit) = (store.head().commit, status.stable_commit);
        let (snapshot, settling) = (store.snapshot(), std::mem::take(&mut node.settling));
        let (open, serving) = (node.open, std::mem::take(&mut node.serving));
        node.published = Some(Published { snapshot, head, stable_commit, settling, open, serving });
        let view = &self.checkers.truth.nodes[at];
        if node.backup.is_none() && node.old_copy.is_none() && self.rng.chance(2) {
            let (disk, view) = (node.disk.copy(), view.clone());
            node.backup = Some(Backup { made_us: self.now_us, commit: head, disk, view });
        }
        let deadline = replica.next_deadline(now).saturating_sub(now.mono_us);
        let deadline = node.frames.late_in(now).map_or(deadline, |late| late.min(deadline)).max(200);
        let busy = node.gathered || !node.inbox.is_empty() || node.frames.arrivals.has_live();
        if status.rebuild.is_some_and(|rebuild| rebuild.salvages) {
            self.salvage(at);
        }
        for link in &status.links {
            if let (Some(closed), Some(peer)) = (link.closed, self.number(link.peer.node)) {
                self.checkers.see(Fact::Closed { node: at, peer, closed });
            }
        }
        if status.fenced {
            self.cover("a fast clock fenced itself");
        }
        if status.stable_commit > 0 && status.stable_commit < u64::MAX {
            self.cover("changes became stable");
        }
        for output in outputs {
            if self.nodes[at].running.is_none() {
                return; // one of them set its store aside
            }
            self.carry_out(at, output);
        }
        self.serve_waiting(at);
        self.wake(at, if busy { 0 } else { deadline });
    }

    pub(super) fn carry_out(&mut self, at: usize, output: Output) {
        match output {
            Output::Reply { ticket, outcome } => {
                self.journal.note(self.now_us, at, || format!("answers write {ticket}: {outcome:?}"));
                self.replied(at, ticket, outcome);
            }
            Output::Parked { ticket, outcome } => self.looked_after(at, ticket, outcome),
            Output::Verified { ticket, outcome } => self.was_verified(at, ticket, outcome),
            Output::Send { to, frame } => self.send(at, to, frame),
            Output::Propose(record) => self.propose(*record),
            Output::Disconnect { peer, .. } => {
                let Some(peer) = self.number(peer) else { return };
                self.cover("a silent link was dropped");
                let connection = self.network.connection(at, peer);
                if let Some(connection) = connection
                    && self.network.disconnect(at, peer)
                {
                    self.schedule(1_000, What::Down { at: peer, peer: at, connection });
                    self.reconnect(at, peer);
                }
            }
            Output::Event(event) => self.observe(at, event),
        }
    }

    fn observe(&mut self, at: usize, event: Event) {
        self.journal.note(self.now_us, at, || format!("{event:?}"));
        // What a hostile frame may cause; which keys, the checkers know.
        let attacked =
            !self.checkers.truth.forged.is_empty() || self.report.coverage.contains_key("hostile: torn");
        let what = match event {
            Event::Applied { .. } => "changes applied",
            Event::Traced(_) => return, // every write here has one
            Event::Pended => "a change waited for what it depends on",
            Event::PendingFull => "pending changes were dropped",
            Event::Duplicate => "a change arrived twice",
            Event::Resent(_) => "a link started again from its cursor",
            Event::Relayed(_) => "a change was relayed for a third node",
            Event::Wanted(_) => "missing changes were asked for",
            Event::Unequal(_) => "vectors compared unequal",
            Event::BelowFloor(_) => "a wanted change was trimmed",
            Event::FutureStamp(_) => "a stamp from the future was stored",
            Event::Inspected { .. } => "keys that are written all the time were found equal",
            Event::Repaired { .. } => "keys were repaired from a peer",
            Event::Rotted { shard, .. } | Event::DigestsDiffer { shard, .. }
                if self.checkers.truth.once_rotten.contains(&shard) =>
            {
                "a row that had rotted was found"
            }
            Event::Landed { .. } => "a shard came as a whole",
            Event::Settled { .. } => "the keys of a shard that came as a whole were merged",
            Event::Owes(_) => "a log did not reach back to a peer",
            Event::Quit(_) => "a peer has what no log reached back to",
            Event::Collected => "a hidden life was collected",
            Event::Expired => "an expired key was deleted",
            Event::Trimmed { .. } => "the log was trimmed",
            Event::Outlived => "an edit of a deleted life arrived",
            Event::Parked { .. } if !self.checkers.truth.rotten.is_empty() => {
                "a change of a key whose row had rotted was kept"
            }
            Event::Retried { served: true, .. } => "a parked key was served again",
            Event::Retried { .. } | Event::Dropped { .. } => return, // the answer tells
            Event::Parked { .. } if attacked => "a hostile change parked its key",
            Event::Refused { .. } if attacked => "a hostile change was refused",
            Event::Parked { reason } => {
                let text = format!("n{at} parked a key: {reason}");
                return self.checkers.violated(Promise::Service, vec![at], text);
            }
            Event::Refused { from, reason } => {
                let text = format!("n{at} refused a change of {from}: {reason}");
                return self.checkers.violated(Promise::Service, vec![at], text);
            }
            Event::Recounted { .. } if !self.checkers.truth.once_rotten.is_empty() => {
                "keys were counted anew after a row had rotted"
            }
            Event::Recounted { was, is } => {
                let text = format!("n{at} tallied {was:?} and holds {is:?}");
                return self.checkers.violated(Promise::Service, vec![at], text);
            }
            Event::Rotted { scope, shard } if self.checkers.truth.is_shard_sound(shard) => {
                let text = format!("n{at} summed up another digest of {scope} than its writes moved");
                return self.checkers.violated(Promise::Convergence, vec![at], text);
            }
            Event::DigestsDiffer { peer, shard } if self.checkers.truth.is_shard_sound(shard) => {
                let text = format!("n{at} found its digest of {shard} unlike that of {peer}");
                return self.checkers.violated(Promise::Convergence, vec![at], text);
            }
            Event::Rotted { .. } | Event::DigestsDiffer { .. } => "a hostile change made digests differ",
            Event::Rebuilding { .. } => "a node learnt that it had another store",
            Event::Rebuilt { cause, salvaged, .. } => {
                self.nodes[at].opening = Opening::default();
                self.nodes[at].aside = None;
                if salvaged.taken > 0 {
                    self.cover("what only a store had that was set aside came back");
                }
                if salvaged.left > 0 {
                    self.cover("what could not be applied of a store that was set aside was left");
                }
                match cause {
                    RebuildCause::New => "a new store was filled by the peers",
                    RebuildCause::Replaces { .. } => "a store that was lost was filled by the peers",
                    RebuildCause::SetAside { .. } => "a store that was set aside was filled by the peers",
                }
            }
            Event::Adopted { .. } => "a record was adopted",
            Event::MoveGivenUp { .. } => "a move was given up",
            Event::Left { .. } => "a shard was left",
            Event::Deleted { .. } => "a shard that moved away was deleted",
            Event::Short { by, reason } => return self.short(at, by, &reason),
        };
        self.cover(what);
    }

    /// Gives a node what can be read of the store that was set aside.
    fn salvage(&mut self, at: usize) {
        let Some(aside) = self.nodes[at].aside.clone() else { return };
        let mut rows = SetAside::new(aside.snapshot());
        loop {
            let batch = rows.next_batch();
            let all = batch.is_empty();
            self.input(at, Input::Salvage(batch));
            if all {
                return;
            }
        }
    }

    /// A peer says that a node's store is an old copy. The node sets it aside.
    fn short(&mut self, at: usize, by: NodeId, reason: &str) {
        if self.nodes[at].old_copy.is_none() {
            let text = format!("n{at} is short, says {by}: {reason}");
            return self.checkers.violated(Promise::Service, vec![at], text);
        }
        self.cover("an old copy of a store was recognised");
        self.lose_store(at, Some(reason));
        let pause = self.rng.between(10_000, 2_000_000);
        self.schedule(pause, What::Mend(Mend::Start(at)));
    }
}
