//! The driver of one node: turns, syncs, starts and crashes, as the replica's contract says.

use std::collections::BTreeMap;

use tropism_crdt::NodeId;
use tropism_placement::RegionName;
use tropism_replica::{Event, Identity, Input, Output, Peer, Replica, Status};
use tropism_storage::Store;

use super::{What, World};
use crate::disk::SimDisk;
use crate::report::Sabotage;

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) region: RegionName,
    pub(super) disk: SimDisk,
    pub(super) running: Option<(Store, Replica)>,
    /// Counts starts: outputs of an earlier life do not leave.
    pub(super) life: u64,
    pub(super) inbox: Vec<Input>,
    /// The connections whose beginning it has seen.
    pub(super) up: BTreeMap<usize, u64>,
    pub(super) syncing: bool,
    /// Whether the open turn holds inputs that came while the one before was being synced.
    pub(super) gathered: bool,
    /// As it was when the turn ended that is being synced: what it says may be looked at when that is durable.
    pub(super) status: Option<Status>,
    pub(super) turn_at: Option<u64>,
    pub(super) paused: bool,
    pub(super) sync_us: (u64, u64),
    pub(super) offset_ms: i64,
    pub(super) drift_ppm: i64,
    pub(super) mono_base_us: u64,
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
            rules: self.rules.clone(),
            cache_bytes: self.cache_bytes,
            log_keep_ms: self.log_keep_ms,
            log_keep_bytes: tropism_replica::limits::LOG_KEEP_BYTES,
        };
        let now = self.now_of(&self.nodes[at]);
        let node = &mut self.nodes[at];
        if node.running.is_some() {
            return;
        }
        let mut store = match Store::open(Box::new(node.disk.clone())) {
            Ok(store) => store,
            Err(error) => return self.checkers.violations.push(format!("{}: {error}", node.id)),
        };
        let replica = match Replica::boot(now, &mut store, identity) {
            Ok(replica) => replica,
            Err(error) => return self.checkers.violations.push(format!("{}: {error}", node.id)),
        };
        // What boot wrote is durable before anything leaves.
        if store.commit(now.wall_ms).and_then(|_| store.sync()).is_err() {
            return self.checkers.violations.push(format!("{}: the disk failed at boot", node.id));
        }
        self.checkers.opened(at, node.id, &store);
        node.running = Some((store, replica));
        node.life += 1;
        node.syncing = false;
        node.gathered = false;
        node.status = None;
        node.inbox.clear();
        node.up.clear();
        node.turn_at = None;
        self.wake(at, 0);
    }

    pub(super) fn crash(&mut self, at: usize) {
        let unsynced = self.nodes[at].disk.unsynced();
        let keep = if unsynced == 0 { 0 } else { self.rng.index(unsynced + 1) };
        if self.nodes[at].running.take().is_none() {
            return;
        }
        self.cover(if unsynced > keep { "crash lost unsynced commits" } else { "crash lost nothing" });
        self.nodes[at].disk.crash(keep);
        match self.size.sabotage {
            Some(Sabotage::LosesSynced) => self.nodes[at].disk.lose_synced(),
            Some(Sabotage::ForgetsClock) => self.nodes[at].disk.forget_clock(),
            _ => {}
        }
        self.nodes[at].inbox.clear();
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

    pub(super) fn input(&mut self, at: usize, input: Input) {
        if self.nodes[at].running.is_some() {
            self.nodes[at].inbox.push(input);
            self.wake(at, 0);
        }
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
        let node = &mut self.nodes[at];
        if node.paused {
            return; // goes on when that is over
        }
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
        if let Some(error) = failed {
            return self.checkers.violations.push(format!("{}: {error}", node.id));
        }
        let mut outputs = Vec::new();
        while let Some(output) = replica.poll_output() {
            outputs.push(output);
        }
        self.checkers.committed(at, node.id, store, replica);
        self.trace.add(store.head().hash);
        self.trace.add(outputs.len() as u64);
        node.syncing = true;
        let (least, most) = node.sync_us;
        let life = node.life;
        let sync_us = self.rng.between(least, most);
        if self.size.sabotage == Some(Sabotage::LeavesBeforeSync) {
            for output in std::mem::take(&mut outputs) {
                self.carry_out(at, output);
            }
        }
        self.schedule(sync_us, What::Synced { node: at, life, outputs });
        self.check_equal(at);
    }

    /// Where the vectors of two nodes meet, their states must.
    pub(super) fn check_equal(&mut self, at: usize) {
        if !self.order.is_multiple_of(7) {
            return; // a sample: the whole state is compared
        }
        let other = self.rng.index(self.nodes.len());
        let (Some((a, _)), Some((b, _))) = (&self.nodes[at].running, &self.nodes[other].running) else {
            return;
        };
        // A vector in an open turn is read before the rows that belong to it can be scanned.
        if at != other && !a.is_dirty() && !b.is_dirty() {
            self.checkers.equal((self.nodes[at].id, a), (self.nodes[other].id, b));
        }
    }

    pub(super) fn synced(&mut self, at: usize, life: u64, outputs: Vec<Output>) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        let now = self.now_of(&self.nodes[at]);
        let node = &mut self.nodes[at];
        let id = node.id;
        let Some((store, replica)) = &mut node.running else { return };
        if store.sync().is_err() {
            return self.checkers.violations.push(format!("{id}: the disk failed"));
        }
        self.checkers.synced(id);
        node.syncing = false;
        let Some(status) = node.status.take() else { return };
        let deadline = replica.next_deadline(now).saturating_sub(now.mono_us).max(200);
        for link in &status.links {
            if let Some(closed) = link.closed {
                self.checkers.closed(at, id, link.peer.node, closed);
            }
        }
        let busy = node.gathered || !node.inbox.is_empty();
        if status.fenced {
            self.cover("a fast clock fenced itself");
        }
        if status.stable_commit > 0 && status.stable_commit < u64::MAX {
            self.cover("changes became stable");
        }
        for output in outputs {
            self.carry_out(at, output);
        }
        self.wake(at, if busy { 0 } else { deadline });
    }

    pub(super) fn carry_out(&mut self, at: usize, output: Output) {
        match output {
            Output::Reply { ticket, outcome } => self.replied(ticket, outcome),
            Output::Send { to, frame } => self.send(at, to, frame),
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

    pub(super) fn observe(&mut self, at: usize, event: Event) {
        let what = match event {
            Event::Applied { .. } => "changes applied",
            Event::Pended => "a change waited for what it depends on",
            Event::PendingFull => "pending changes were dropped",
            Event::Duplicate => "a change arrived twice",
            Event::Resent(_) => "a link started again from its cursor",
            Event::Relayed(_) => "a change was relayed for a third node",
            Event::Wanted(_) => "missing changes were asked for",
            Event::Unequal(_) => "vectors compared unequal",
            Event::BelowFloor(_) => "a wanted change was trimmed",
            Event::FutureStamp(_) => "a stamp from the future was stored",
            Event::Parked { reason } => {
                let id = self.nodes[at].id;
                return self.checkers.violations.push(format!("{id} parked a key: {reason}"));
            }
            Event::Recounted { was, is } => {
                let id = self.nodes[at].id;
                return self.checkers.violations.push(format!("{id} tallied {was:?} and holds {is:?}"));
            }
            Event::Collected => "a hidden life was collected",
            Event::Expired => "an expired key was deleted",
            Event::Trimmed { .. } => "the log was trimmed",
            Event::Outlived => "an edit of a deleted life arrived",
            Event::Refused { from, reason } => {
                let id = self.nodes[at].id;
                return self.checkers.violations.push(format!("{id} refused a change of {from}: {reason}"));
            }
            Event::Short { by, reason } => {
                let id = self.nodes[at].id;
                return self.checkers.violations.push(format!("{id} is short, says {by}: {reason}"));
            }
        };
        self.cover(what);
    }
}
