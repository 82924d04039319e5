//! A cluster in virtual time: nodes with their drivers, disks, clocks and links, driven by one queue of events.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use tropism_crdt::document::PatchOp;
use tropism_crdt::json::{Json, Pointer};
use tropism_crdt::{ExpiryChange, NodeId};
use tropism_placement::{Durability, Kind, RegionName, Regions, Rules, ScopeName};
use tropism_replica::{
    Event, Frame, Hello, Identity, Input, Now, Output, Peer, Precondition, Replica, Write, WriteDone,
    WriteError, WriteOp,
};
use tropism_storage::{LogKey, Store};

use crate::checkers::{Checkers, CounterBounds};
use crate::disk::SimDisk;
use crate::network::Network;
use crate::rng::Rng;

/// The wall clock at the beginning of every world, Unix ms.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// How long a world may take to become quiet and equal after the last fault, us.
const SETTLE_LIMIT_US: u64 = 180_000_000;

/// How large a world is, and whether its driver keeps the contract.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Client operations.
    pub operations: u64,
    /// Faults.
    pub faults: u64,
    /// What the driver does wrong, to see that the checkers notice.
    pub sabotage: Option<Sabotage>,
}

/// Ways in which a driver breaks the replica's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Replies and frames leave before the sync.
    LeavesBeforeSync,
    /// A crash loses a commit that was synced.
    LosesSynced,
    /// The wall clock's reservation is forgotten: a restart begins from the wall clock alone.
    ForgetsClock,
}

impl Default for Size {
    fn default() -> Self {
        Self { operations: 2_200, faults: 36, sabotage: None }
    }
}

/// What a run of one seed found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Client operations sent.
    pub operations: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Faults injected.
    pub faults: u64,
    /// What was wrong.
    pub violations: Vec<String>,
    /// How often interesting things happened.
    pub coverage: BTreeMap<&'static str, u64>,
    /// Hash over everything that happened, in order.
    pub trace: u64,
    /// Virtual time, us.
    pub virtual_us: u64,
}

/// Runs one seed.
pub fn run(seed: u64, size: Size) -> Report {
    let mut world = World::new(seed, size);
    world.run();
    world.report
}

#[derive(Debug)]
enum What {
    /// A node takes its inputs.
    Turn(usize),
    /// A node's batch is durable: its outputs leave.
    Synced { node: usize, life: u64, outputs: Vec<Output> },
    /// A frame arrives.
    Arrive { to: usize, from: usize, connection: u64, frame: Box<Frame> },
    /// A connection stands, as one side sees it.
    Up { at: usize, connection: u64, peer: usize, hello: Box<Hello> },
    /// A connection is gone, as one side sees it.
    Down { at: usize, peer: usize, connection: u64 },
    /// A pair tries to connect.
    Connect(usize, usize),
    /// A client acts.
    Operate,
    /// Something breaks.
    Fault,
    /// What a fault broke is whole again.
    Mend(Mend),
}

#[derive(Debug)]
enum Mend {
    Link(usize, usize),
    Start(usize),
    Resume(usize),
    Clock(usize),
    Disk(usize),
}

struct Node {
    id: NodeId,
    region: RegionName,
    disk: SimDisk,
    running: Option<(Store, Replica)>,
    /// Counts starts: outputs of an earlier life do not leave.
    life: u64,
    inbox: Vec<Input>,
    /// The connections whose beginning it has seen.
    up: BTreeMap<usize, u64>,
    syncing: bool,
    turn_at: Option<u64>,
    paused: bool,
    sync_us: (u64, u64),
    offset_ms: i64,
    drift_ppm: i64,
    mono_base_us: u64,
}

struct Operation {
    scope: String,
    key: String,
    value: Vec<u8>,
    by: i64,
}

struct World {
    rng: Rng,
    now_us: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<(u64, u64), What>,
    nodes: Vec<Node>,
    network: Network,
    rules: Rules,
    checkers: Checkers,
    report: Report,
    size: Size,
    scopes: Vec<(ScopeName, Kind)>,
    cache_bytes: usize,
    log_keep_ms: u64,
    keys: u64,
    operations: BTreeMap<u64, Operation>,
    counters: BTreeMap<(String, String), CounterBounds>,
    next_ticket: u64,
    usual_sync_us: (u64, u64),
    settling: bool,
    trace: Trace,
}

/// A running hash (FNV-1a) of everything that happens.
#[derive(Debug)]
struct Trace(u64);

impl Trace {
    fn add(&mut self, word: u64) {
        for byte in word.to_be_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Regions, rules and node names of a world with `count` regions.
fn rules_for(count: usize) -> (Rules, Vec<RegionName>) {
    let names: Vec<String> = (0..count).map(|i| format!("r{i}")).collect();
    let mut text = String::new();
    for name in &names {
        text.push_str(&format!("[[region]]\nname = \"{name}\"\nplace = \"{name}\"\n"));
    }
    for (i, a) in names.iter().enumerate() {
        for b in &names[i + 1..] {
            text.push_str(&format!("[[rtt]]\nbetween = [\"{a}\", \"{b}\"]\nms = 100\n"));
        }
    }
    for (name, pattern, kind, more) in [
        ("counts", "stats/**", "counter", ""),
        ("spread", "wide/**", "register", "spread = 3\n"),
        ("shop", "shop/**", "document", "counters = [\"/n\"]\ntext = [\"/text\"]\nspread = 2\n"),
        ("cache", "**", "register", ""),
    ] {
        text.push_str(&format!(
            "[[rule]]\nname = \"{name}\"\npattern = \"{pattern}\"\nkind = \"{kind}\"\n{more}"
        ));
    }
    let regions = Regions::parse("simulated", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let names = regions.regions().iter().map(|region| region.name.clone()).collect();
    (regions.rules().clone(), names)
}

impl World {
    fn new(seed: u64, size: Size) -> Self {
        let mut rng = Rng::new(seed);
        let count = rng.between(2, 4) as usize;
        let (rules, names) = rules_for(count);
        let mut network = Network::default();
        for a in 0..count {
            for b in a + 1..count {
                let delay_us = rng.between(500, 150_000);
                network.join(a, b, delay_us, &mut rng);
            }
        }
        let usual_sync_us = (50, *rng.pick(&[300, 3_000, 40_000]));
        let nodes = names
            .into_iter()
            .enumerate()
            .map(|(i, region)| Node {
                id: NodeId::new(&format!("n{i}")).unwrap_or_else(|error| panic!("{error}")),
                region,
                disk: SimDisk::new(),
                running: None,
                life: 0,
                inbox: Vec::new(),
                up: BTreeMap::new(),
                syncing: false,
                turn_at: None,
                paused: false,
                sync_us: usual_sync_us,
                offset_ms: rng.between(0, 200) as i64 - 100,
                drift_ppm: rng.between(0, 400) as i64 - 200,
                mono_base_us: rng.between(1, 1_000_000_000),
            })
            .collect();
        let mut scopes = vec![
            ("stats/visits", Kind::Counter),
            ("wide/things", Kind::Register),
            ("shop/carts", Kind::Document),
            ("shop/notes", Kind::Document),
            ("pages", Kind::Register),
        ];
        while scopes.len() > 1 && rng.chance(60) {
            scopes.swap_remove(rng.index(scopes.len()));
        }
        let scopes = scopes
            .into_iter()
            .map(|(name, kind)| (ScopeName::new(name).unwrap_or_else(|e| panic!("{e}")), kind))
            .collect();
        // Now and then so small that documents are read back all the time.
        let log_keep_ms = *rng.pick(&[500, 600_000]);
        let cache_bytes = *rng.pick(&[60_000, 100_000_000]);
        let keys = rng.between(1, 12);
        let mut world = Self {
            rng,
            now_us: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes,
            network,
            rules,
            checkers: Checkers::default(),
            report: Report::default(),
            size,
            scopes,
            cache_bytes,
            log_keep_ms,
            keys,
            operations: BTreeMap::new(),
            counters: BTreeMap::new(),
            next_ticket: 0,
            usual_sync_us,
            settling: false,
            trace: Trace(0xcbf2_9ce4_8422_2325),
        };
        for node in 0..count {
            world.start(node);
        }
        for a in 0..count {
            for b in a + 1..count {
                world.schedule(10_000, What::Connect(a, b));
            }
        }
        world.schedule(20_000, What::Operate);
        world.schedule(1_000_000, What::Fault);
        world
    }

    fn run(&mut self) {
        while self.checkers.violations.is_empty() {
            if !self.settling
                && self.report.operations >= self.size.operations
                && self.report.faults >= self.size.faults
            {
                self.settle();
            }
            let Some(Reverse(at)) = self.queue.pop() else { break };
            let Some(what) = self.events.remove(&at) else { continue };
            self.now_us = at.0;
            self.happen(what);
            if self.settling && self.order.is_multiple_of(64) && self.all_equal() {
                break;
            }
            if self.settling && self.now_us > self.report.virtual_us + SETTLE_LIMIT_US {
                let status: Vec<_> = self
                    .nodes
                    .iter()
                    .filter_map(|n| n.running.as_ref().map(|(_, r)| (n.id, r.status(self.now_of(n)))))
                    .collect();
                self.checkers
                    .violations
                    .push(format!("not equal {SETTLE_LIMIT_US} us after the last fault: {status:#?}"));
            }
        }
        self.finish();
    }

    fn finish(&mut self) {
        for node in 0..self.nodes.len() {
            let id = self.nodes[node].id;
            let Some((store, _)) = &self.nodes[node].running else { continue };
            self.checkers.values(id, store);
            if self.settling {
                self.checkers.nothing_lost(id, store);
                self.checkers.counters(id, store, &self.counters);
            }
        }
        self.report.virtual_us = self.now_us;
        self.report.trace = self.trace.0;
        self.report.acknowledged = self.checkers.acknowledgements() as u64;
        self.report.violations = std::mem::take(&mut self.checkers.violations);
    }

    /// No more faults: everything is mended, and the world must become equal.
    fn settle(&mut self) {
        self.settling = true;
        self.report.virtual_us = self.now_us;
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                self.mend(Mend::Link(a, b));
            }
            self.mend(Mend::Clock(a));
            self.mend(Mend::Disk(a));
            self.mend(Mend::Resume(a));
            self.mend(Mend::Start(a));
        }
    }

    fn all_equal(&mut self) -> bool {
        let mut equal = true;
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                let (left, right) = self.nodes.split_at(b);
                let (Some((store_a, _)), Some((store_b, _))) = (&left[a].running, &right[0].running) else {
                    return false;
                };
                equal &= self.checkers.equal((left[a].id, store_a), (right[0].id, store_b));
                equal &= self.checkers.equal((right[0].id, store_b), (left[a].id, store_a));
            }
        }
        equal
    }

    fn schedule(&mut self, in_us: u64, what: What) {
        self.order += 1;
        let at = (self.now_us + in_us, self.order);
        self.queue.push(Reverse(at));
        self.events.insert(at, what);
    }

    fn cover(&mut self, what: &'static str) {
        *self.report.coverage.entry(what).or_insert(0) += 1;
    }

    fn now_of(&self, node: &Node) -> Now {
        let elapsed_ms = (self.now_us / 1_000) as i64;
        let wall = EPOCH_MS as i64 + elapsed_ms + elapsed_ms * node.drift_ppm / 1_000_000 + node.offset_ms;
        Now { mono_us: node.mono_base_us + self.now_us, wall_ms: wall.max(1) as u64 }
    }

    fn happen(&mut self, what: What) {
        self.trace.add(self.now_us);
        match what {
            What::Turn(node) => self.turn(node),
            What::Synced { node, life, outputs } => self.synced(node, life, outputs),
            What::Arrive { to, from, connection, frame } => {
                let current = self.network.connection(to, from) == Some(connection);
                if current && self.nodes[to].up.get(&from) == Some(&connection) {
                    let from = self.nodes[from].id;
                    self.input(to, Input::Frame { from, frame: *frame });
                }
            }
            What::Up { at, connection, peer, hello } => {
                if self.network.connection(at, peer) == Some(connection) {
                    self.nodes[at].up.insert(peer, connection);
                    self.input(at, Input::LinkUp(*hello));
                }
            }
            What::Down { at, peer, connection } => {
                if self.network.connection(at, peer).is_none_or(|current| current == connection) {
                    let peer = self.nodes[peer].id;
                    self.input(at, Input::LinkDown(peer));
                }
            }
            What::Connect(a, b) => self.connect(a, b),
            What::Operate => self.operate(),
            What::Fault => self.fault(),
            What::Mend(mend) => self.mend(mend),
        }
    }

    // Nodes.

    fn start(&mut self, at: usize) {
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
        node.inbox.clear();
        node.up.clear();
        node.turn_at = None;
        self.wake(at, 0);
    }

    fn crash(&mut self, at: usize) {
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

    fn input(&mut self, at: usize, input: Input) {
        if self.nodes[at].running.is_some() {
            self.nodes[at].inbox.push(input);
            self.wake(at, 0);
        }
    }

    /// Lets a node take a turn in at most this time.
    fn wake(&mut self, at: usize, in_us: u64) {
        let due = self.now_us + in_us;
        if self.nodes[at].turn_at.is_none_or(|at| at > due) {
            self.nodes[at].turn_at = Some(due);
            self.schedule(in_us, What::Turn(at));
        }
    }

    fn turn(&mut self, at: usize) {
        if self.nodes[at].turn_at == Some(self.now_us) {
            self.nodes[at].turn_at = None;
        }
        let now = self.now_of(&self.nodes[at]);
        let node = &mut self.nodes[at];
        if node.syncing || node.paused {
            return; // goes on when that is over
        }
        let Some((store, replica)) = &mut node.running else { return };
        let mut inputs = std::mem::take(&mut node.inbox);
        inputs.push(Input::Tick);
        let mut failed = None;
        for input in inputs {
            if let Err(error) = replica.handle(now, store, input) {
                failed = Some(error.to_string());
            }
        }
        if let Err(error) = replica.flush(now, store) {
            failed = Some(error.to_string());
        }
        if let Err(error) = store.commit(now.wall_ms) {
            failed = Some(error.to_string());
        }
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
    fn check_equal(&mut self, at: usize) {
        if !self.order.is_multiple_of(7) {
            return; // a sample: the whole state is compared
        }
        let other = self.rng.index(self.nodes.len());
        let (Some((a, _)), Some((b, _))) = (&self.nodes[at].running, &self.nodes[other].running) else {
            return;
        };
        if at != other {
            self.checkers.equal((self.nodes[at].id, a), (self.nodes[other].id, b));
        }
    }

    fn synced(&mut self, at: usize, life: u64, outputs: Vec<Output>) {
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
        let status = replica.status(now);
        let deadline = replica.next_deadline(now).saturating_sub(now.mono_us).max(200);
        for link in &status.links {
            if let Some(closed) = link.closed {
                self.checkers.closed(at, id, link.peer.node, closed);
            }
        }
        let busy = !node.inbox.is_empty();
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

    fn carry_out(&mut self, at: usize, output: Output) {
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

    fn observe(&mut self, at: usize, event: Event) {
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

    // Network.

    fn number(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    fn send(&mut self, from: usize, to: NodeId, frame: Frame) {
        let Some(to) = self.number(to) else { return };
        let Some(connection) = self.network.connection(from, to) else { return };
        let arrivals = self.network.arrivals(self.now_us, from, to, &mut self.rng);
        if arrivals.is_empty() {
            self.cover("a frame was lost");
        }
        for at in arrivals {
            let frame = Box::new(frame.clone());
            self.schedule(at - self.now_us, What::Arrive { to, from, connection, frame });
        }
    }

    fn reconnect(&mut self, a: usize, b: usize) {
        let backoff = self.rng.between(50_000, 1_000_000);
        self.schedule(backoff, What::Connect(a, b));
    }

    fn connect(&mut self, a: usize, b: usize) {
        if self.network.connection(a, b).is_some() {
            return;
        }
        if !self.network.passes(a, b) || self.nodes[a].paused || self.nodes[b].paused {
            return self.reconnect(a, b);
        }
        let hello = |from: usize, to: usize| {
            let node = &self.nodes[from];
            node.running.as_ref().map(|(store, replica)| Box::new(replica.hello(store, self.nodes[to].id)))
        };
        let (Some(from_a), Some(from_b)) = (hello(a, b), hello(b, a)) else {
            return self.reconnect(a, b);
        };
        let connection = self.network.connect(a, b);
        let (to_a, to_b) = (self.rng.between(500, 200_000), self.rng.between(500, 200_000));
        self.schedule(to_a, What::Up { at: a, connection, peer: b, hello: from_b });
        self.schedule(to_b, What::Up { at: b, connection, peer: a, hello: from_a });
    }

    // Clients.

    fn operate(&mut self) {
        if self.settling || self.report.operations >= self.size.operations {
            return;
        }
        let pause =
            if self.rng.chance(5) { self.rng.between(0, 300_000) } else { self.rng.between(0, 40_000) };
        self.schedule(pause, What::Operate);
        let at = self.rng.index(self.nodes.len());
        if self.nodes[at].running.is_none() {
            return self.cover("an operation found its node down");
        }
        self.report.operations += 1;
        let (scope, kind) = self.rng.pick(&self.scopes).clone();
        let counts = kind == Kind::Counter;
        let key = format!("k{}", self.rng.between(1, self.keys));
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let value = ticket.to_be_bytes().to_vec();
        let now = self.now_of(&self.nodes[at]);
        let by = self.rng.between(0, 20) as i64 - 8;
        let op = match self.rng.between(0, 99) {
            0..8 => WriteOp::Delete,
            8..12 => WriteOp::Expire,
            _ if counts => WriteOp::Increment { by },
            _ if kind == Kind::Document => self.document_op(ticket),
            _ => WriteOp::PutRegister { content_type: String::new(), bytes: Bytes::from(value.clone()) },
        };
        let expiry = if self.rng.chance(8) {
            ExpiryChange::At(now.wall_ms + self.rng.between(0, 5_000))
        } else {
            ExpiryChange::Keep
        };
        let durability = match self.rng.between(0, 9) {
            0 => Some(Durability::Regions(self.rng.between(1, self.nodes.len() as u64) as u16)),
            1 => Some(Durability::Local),
            _ => None,
        };
        let precondition = self.rng.chance(6).then_some(Precondition::Absent);
        let (scope_name, by) = (scope.as_str().to_owned(), if counts { by } else { 0 });
        self.checkers.attempted(&scope_name, &key, &value);
        if counts {
            let bounds = self.counters.entry((scope_name.clone(), key.clone())).or_default();
            match &op {
                WriteOp::Increment { by } if expiry == ExpiryChange::Keep => {
                    // Unknown until the reply.
                    if *by >= 0 { bounds.most += by } else { bounds.least += by }
                }
                _ => bounds.simple = false,
            }
        }
        let by = if matches!(op, WriteOp::Increment { .. }) { by } else { 0 };
        self.operations.insert(ticket, Operation { scope: scope_name, key: key.clone(), value, by });
        let write = Write {
            scope,
            key,
            op,
            precondition,
            expiry,
            durability,
            deadline_us: now.mono_us + self.rng.between(100_000, 3_000_000),
            request_id: self.rng.chance(10).then(|| u128::from(ticket).to_be_bytes()),
            trace: None,
        };
        self.input(at, Input::Write { ticket, write: Box::new(write) });
    }

    /// A put, or a patch of a field, a counter, a list or a text.
    fn document_op(&mut self, ticket: u64) -> WriteOp {
        let path = |text: &str| Pointer::parse(text).unwrap_or_else(|error| panic!("{error}"));
        let field = format!("/f{}", self.rng.between(0, 3));
        let value = Json::Int(ticket as i64);
        let operation = match self.rng.between(0, 9) {
            0..3 => {
                let fields = [
                    ("n", Json::Int(0)),
                    ("text", Json::String("abc".into())),
                    ("list", Json::Array(vec![value])),
                ];
                let value =
                    Json::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
                return WriteOp::PutDocument { value, base: None };
            }
            3 => PatchOp::Increment { path: path("/n"), by: 3 },
            4 => PatchOp::Insert { path: path("/list/0"), value },
            5 => PatchOp::Remove { path: path(&field) },
            6 => PatchOp::SpliceText {
                path: path("/text"),
                index: 1,
                delete: 1,
                insert: format!("<{ticket}>"),
            },
            _ => PatchOp::Set { path: path(&field), value },
        };
        WriteOp::Patch { operations: vec![operation], base: None }
    }

    fn replied(&mut self, ticket: u64, outcome: Result<WriteDone, WriteError>) {
        let Some(operation) = self.operations.remove(&ticket) else {
            return self.checkers.violations.push(format!("ticket {ticket} was answered twice"));
        };
        let bounds = self.counters.entry((operation.scope.clone(), operation.key.clone())).or_default();
        match outcome {
            Ok(done) => {
                if operation.by >= 0 {
                    bounds.least += operation.by
                } else {
                    bounds.most += operation.by
                }
                if let Some((origin, seq)) = done.change {
                    self.checkers.acknowledged(done.shard, LogKey { shard: done.shard, origin, seq });
                    self.cover("a write was acknowledged");
                }
            }
            Err(WriteError::NotAcknowledged { .. }) => {
                self.cover("other regions did not acknowledge in time")
            }
            Err(error) => {
                if operation.by >= 0 {
                    bounds.most -= operation.by
                } else {
                    bounds.least -= operation.by
                }
                self.checkers.refused(&operation.scope, &operation.key, &operation.value);
                self.cover(match error {
                    WriteError::Clock(_) => "a write was refused by the clock",
                    WriteError::Fenced => "a write was refused by the fence",
                    WriteError::Exists { .. } => "a precondition failed",
                    WriteError::Patch(_) => "a patch did not fit",
                    _ => "a write was refused",
                });
            }
        }
    }

    // Faults.

    fn fault(&mut self) {
        if self.settling || self.report.faults >= self.size.faults {
            return;
        }
        let next = self.rng.between(100_000, 2_500_000);
        self.schedule(next, What::Fault);
        self.report.faults += 1;
        let a = self.rng.index(self.nodes.len());
        let b = (a + 1 + self.rng.index(self.nodes.len() - 1)) % self.nodes.len();
        let lasts = if self.rng.chance(15) {
            self.rng.between(5_000_000, 20_000_000)
        } else {
            self.rng.between(10_000, 4_000_000)
        };
        let (kind, mend) = match self.rng.between(0, 9) {
            0 | 1 => {
                self.cut(a, b);
                self.cut(b, a);
                ("fault: link cut", Mend::Link(a, b))
            }
            2 => {
                self.cut(a, b);
                ("fault: link cut one way", Mend::Link(a, b))
            }
            3 => {
                for peer in 0..self.nodes.len() {
                    self.cut(a, peer);
                    self.cut(peer, a);
                    if peer != b && peer != a {
                        self.schedule(lasts, What::Mend(Mend::Link(a, peer)));
                    }
                }
                ("fault: region cut off", Mend::Link(a, b))
            }
            4 | 5 => {
                self.crash(a);
                ("fault: crash", Mend::Start(a))
            }
            6 => {
                self.nodes[a].paused = true;
                ("fault: pause", Mend::Resume(a))
            }
            7 => {
                let reach = if self.rng.chance(50) { 3_600_000 } else { 3_000 };
                self.nodes[a].offset_ms = self.rng.between(0, 2 * reach) as i64 - reach as i64;
                ("fault: clock jump", Mend::Clock(a))
            }
            8 => {
                self.nodes[a].sync_us = (20_000, 800_000);
                ("fault: slow disk", Mend::Disk(a))
            }
            _ => {
                if let Some(connection) = self.network.connection(a, b)
                    && self.network.disconnect(a, b)
                {
                    self.schedule(1, What::Down { at: a, peer: b, connection });
                    self.schedule(1, What::Down { at: b, peer: a, connection });
                    self.reconnect(a, b);
                }
                return self.cover("fault: connection reset");
            }
        };
        self.cover(kind);
        self.schedule(lasts, What::Mend(mend));
    }

    fn cut(&mut self, from: usize, to: usize) {
        if let Some(direction) = self.network.direction(from, to) {
            direction.cut = true;
        }
    }

    fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Link(a, b) => {
                let mut was_cut = false;
                for (from, to) in [(a, b), (b, a)] {
                    if let Some(direction) = self.network.direction(from, to) {
                        was_cut |= std::mem::take(&mut direction.cut);
                    }
                }
                // Bytes were swallowed: connections open during the cut are reset.
                if was_cut
                    && let Some(connection) = self.network.connection(a, b)
                    && self.network.disconnect(a, b)
                {
                    self.schedule(1, What::Down { at: a, peer: b, connection });
                    self.schedule(1, What::Down { at: b, peer: a, connection });
                    self.reconnect(a, b);
                }
            }
            Mend::Start(node) => self.start(node),
            Mend::Resume(node) => {
                self.nodes[node].paused = false;
                self.wake(node, 0);
            }
            Mend::Clock(node) => self.nodes[node].offset_ms = 0,
            Mend::Disk(node) => self.nodes[node].sync_us = self.usual_sync_us,
        }
    }
}
