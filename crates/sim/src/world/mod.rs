//! A cluster in virtual time: nodes with their drivers, disks, clocks and links, driven by one queue of events.

mod clients;
mod faults;
mod links;
mod node;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use tropism_crdt::NodeId;
use tropism_placement::{Kind, Rules, ScopeName};
use tropism_replica::{Frame, Hello, Input, Now, Output};

use self::clients::Operation;
use self::faults::Mend;
use self::node::Node;
use crate::checkers::{Checkers, CounterBounds};
use crate::config::rules_for;
use crate::disk::SimDisk;
use crate::network::Network;
use crate::report::{Report, Size};
use crate::rng::Rng;

/// The wall clock at the beginning of every world, Unix ms.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// How long a world may take to become quiet and equal after the last fault, us.
const SETTLE_LIMIT_US: u64 = 180_000_000;

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
                gathered: false,
                status: None,
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
}
