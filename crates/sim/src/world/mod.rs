//! A cluster in virtual time: nodes with their drivers, disks, clocks and links, driven by one queue of events.

mod background;
mod clients;
mod faults;
mod hostile;
mod journal;
mod links;
mod node;
mod operator;
mod verifier;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use tropism_crdt::NodeId;
use tropism_placement::ShardId;
use tropism_replica::{Frame, Hello, Input, Now, Output};
use tropism_storage::VectorRow;

use self::background::Background;
use self::clients::Client;
pub(crate) use self::faults::FaultKind;
use self::faults::Mend;
use self::journal::Journal;
use self::node::Node;
use self::verifier::Verifier;
use crate::checkers::{Checkers, Fact, NodeView, Promise};
use crate::config::Config;
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
    /// A client's call has taken too long.
    GiveUp { client: usize, call: u64 },
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
    config: Config,
    nodes: Vec<Node>,
    network: Network,
    clients: Vec<Client>,
    checkers: Checkers,
    report: Report,
    journal: Journal,
    size: Size,
    next_ticket: u64,
    next_call: u64,
    /// Links whose next frame of changes is forged on its way.
    forging: Vec<(usize, usize)>,
    /// What an operator asked for and has no answer to, by ticket.
    asked_parked: BTreeMap<u64, operator::Asked>,
    verifier: Verifier,
    background: Background,
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
        let config = Config::draw(&mut rng);
        let count = config.regions.len();
        let mut network = Network::default();
        for a in 0..count {
            for b in a + 1..count {
                let delay_us = rng.between(500, 150_000);
                network.join(a, b, delay_us, &mut rng);
            }
        }
        let ids: Vec<NodeId> = (0..count)
            .map(|i| NodeId::new(&format!("n{i}")).unwrap_or_else(|error| panic!("{error}")))
            .collect();
        let nodes = ids
            .iter()
            .zip(&config.regions)
            .map(|(id, region)| Node::new(*id, region.clone(), config.sync_us, &mut rng))
            .collect();
        let clients = (0..config.clients).map(|i| Client::at(i % count)).collect();
        let mut world = Self {
            rng,
            now_us: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes,
            network,
            clients,
            checkers: Checkers::new(ids, &config, size.blind),
            config,
            report: Report::default(),
            journal: Journal::keeping(size.log),
            size,
            next_ticket: 0,
            next_call: 0,
            forging: Vec::new(),
            asked_parked: BTreeMap::new(),
            verifier: Verifier::new(seed),
            background: Background::new(seed),
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
        let mut equal = false;
        while self.checkers.violations.is_empty() && !equal {
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
            equal = self.settling && self.order.is_multiple_of(64) && self.all_equal() && self.all_verified();
            if self.settling && self.now_us > self.report.virtual_us + SETTLE_LIMIT_US {
                let status: Vec<_> = self
                    .nodes
                    .iter()
                    .filter_map(|n| n.running.as_ref().map(|(_, r)| (n.id, r.status(self.now_of(n)))))
                    .collect();
                let text = format!("not equal {SETTLE_LIMIT_US} us after the last fault: {status:#?}");
                let all = (0..self.nodes.len()).collect();
                self.checkers.violated(Promise::Service, all, text);
                break;
            }
        }
        self.finish(equal);
    }

    fn finish(&mut self, equal: bool) {
        if equal && self.checkers.violations.is_empty() {
            for node in 0..self.nodes.len() {
                let Some((store, _)) = &self.nodes[node].running else { continue };
                self.checkers.see(Fact::State { node, store });
                self.checkers.see(Fact::Ended { node });
                if let Some(problem) = self.nodes[node].old_copy_served() {
                    self.checkers.violated(Promise::OldCopies, vec![node], problem);
                }
            }
        }
        self.report.virtual_us = self.now_us;
        self.report.trace = self.trace.0;
        self.report.violations = std::mem::take(&mut self.checkers.violations);
        let involved = self.report.violations.first().map(|violation| violation.nodes.clone());
        self.report.log = self.journal.lines(&involved.unwrap_or_default());
    }

    /// No more faults: everything is mended, and the world must become equal.
    fn settle(&mut self) {
        self.settling = true;
        self.report.virtual_us = self.now_us;
        self.forging.clear();
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                self.mend(Mend::Link(a, b));
                self.mend(Mend::Speed(a, b));
            }
            self.mend(Mend::Clock(a));
            self.mend(Mend::Disk(a));
            self.mend(Mend::Resume(a));
            self.mend(Mend::Start(a));
        }
    }

    fn all_equal(&mut self) -> bool {
        for node in &self.nodes {
            let merging = node.running.as_ref().is_none_or(|(_, replica)| !replica.settling().is_empty());
            if node.syncing || merging || node.is_filling() {
                return false;
            }
        }
        // What had rotted is whole again when everybody has looked at every row and all digests agree.
        if !self.checkers.truth.rotten.is_empty() {
            if !self.digests_agree() {
                return false;
            }
            self.checkers.truth.rotten.clear();
        }
        // Nothing is under way: stability comes in time as well, unless somebody lied about what it has.
        let truth = &self.checkers.truth;
        let mut equal = !truth.forged.is_empty() || truth.nodes.iter().all(NodeView::all_stable);
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                let (Some((store_a, _)), Some((store_b, _))) =
                    (&self.nodes[a].running, &self.nodes[b].running)
                else {
                    return false;
                };
                if a == b {
                    continue;
                }
                let (truth, view) = (&self.checkers.truth, &self.checkers.truth.nodes[b]);
                equal &= self.checkers.truth.nodes[a].vectors.iter().all(|(shard, vector)| {
                    !truth.members(shard).any(|member| member == b)
                        || view.vectors.get(shard) == Some(vector)
                        || [a, b].iter().any(|node| truth.liars.contains(&(*node, *shard)))
                });
                if equal {
                    self.checkers.see(Fact::Pair { a: (a, store_a), b: (b, store_b) });
                }
            }
        }
        equal
    }

    fn digests_agree(&self) -> bool {
        let mut digests: BTreeMap<ShardId, VectorRow> = BTreeMap::new();
        self.nodes.iter().all(|node| {
            let Some((store, replica)) = &node.running else { return false };
            let agree = store.shards().unwrap_or_default().into_iter().all(|(row, state)| {
                !self.checkers.truth.is_promised(row.id())
                    || state.digest.is_some() && *digests.entry(row.id()).or_insert(state.clone()) == state
            });
            agree && replica.status(self.now_of(node)).counted
        })
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
                    self.arrived(to, from, *frame);
                }
            }
            What::Up { at, connection, peer, hello } => {
                if self.network.connection(at, peer) == Some(connection) {
                    self.nodes[at].up.insert(peer, connection);
                    self.journal.note(self.now_us, at, || format!("link to n{peer} stands: {hello:?}"));
                    self.nodes[at].meeting.push((peer, connection));
                    self.input(at, Input::LinkUp(*hello));
                }
            }
            What::Down { at, peer, connection } => {
                if self.network.connection(at, peer).is_none_or(|current| current == connection) {
                    self.journal.note(self.now_us, at, || format!("link to n{peer} is gone"));
                    let peer = self.nodes[peer].id;
                    self.input(at, Input::LinkDown(peer));
                }
            }
            What::Connect(a, b) => self.connect(a, b),
            What::Operate => self.operate(),
            What::GiveUp { client, call } => self.give_up(client, call),
            What::Fault => self.fault(),
            What::Mend(mend) => self.mend(mend),
        }
    }
}
