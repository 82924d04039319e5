//! A cluster in virtual time: nodes with their drivers, disks, clocks and links, driven by one queue of events.

mod background;
mod clients;
mod directory;
mod faults;
mod hostile;
mod journal;
mod links;
mod node;
mod operator;
mod past;
mod verifier;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use tropism_crdt::NodeId;
use tropism_placement::{Records, ShardId, StoredRecord};
use tropism_replica::{Frame, Hello, Input, Now, Output};
use tropism_storage::VectorRow;

use self::background::Background;
use self::clients::Client;
use self::directory::Directory;
pub(crate) use self::faults::FaultKind;
use self::faults::Mend;
use self::journal::Journal;
use self::node::Node;
use self::past::Past;
use self::verifier::Verifier;
use crate::checkers::{Checkers, Fact, Promise};
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
    /// A node's batch is durable: its outputs leave, on the connections that it knew when it made them.
    Synced { node: usize, life: u64, outputs: Vec<Output>, linked: BTreeMap<usize, u64> },
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
    /// A node hears of the directory, in the life in which it was told.
    Feed { at: usize, life: u64 },
    /// The directory decides on a record.
    Decide(Box<StoredRecord>),
    /// Somebody wants a scope elsewhere.
    WishMove,
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
    directory: Directory,
    background: Background,
    /// What clients did and saw.
    past: Past,
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
        let mut config = Config::draw(&mut rng);
        if size.neighbours {
            config.draw_neighbours(&mut Rng::new(seed ^ 0x6e65_6172));
        }
        if size.moves && !size.history {
            config.draw_moves(&mut Rng::new(seed ^ 0x7769_7368));
        }
        if size.history {
            // Left out is what no promise covers that a client could hold somebody to: what one disk alone had that is lost,
            // rows that cannot be read, what nobody wrote, and lives that end.
            let breaks = |kind: &FaultKind| {
                use FaultKind::{BitRot, ClockJump, Hostile, LostStore, OldCopy};
                matches!(kind, BitRot | ClockJump | Hostile | LostStore | OldCopy)
            };
            config.menu.retain(|kind| !breaks(kind));
        }
        let count = config.homes.len();
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
            .zip(&config.homes)
            .map(|(id, region)| Node::new(*id, region.clone(), config.sync_us, &mut rng))
            .collect();
        let (next_call, past) = (config.clients as u64, Past::keeping(size.history, &config));
        let clients = (0..config.clients).map(|i| Client::at(i % count, i as u64)).collect();
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
            report: Report::default(),
            journal: Journal::keeping(size.log),
            size,
            next_ticket: 0,
            next_call,
            forging: Vec::new(),
            asked_parked: BTreeMap::new(),
            verifier: Verifier::new(seed),
            directory: Directory::new(
                seed,
                Records::new(config.rules.clone()),
                config.moves && !size.history,
            ),
            background: Background::new(seed),
            past,
            settling: false,
            trace: Trace(0xcbf2_9ce4_8422_2325),
            config,
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
        if world.config.moves {
            world.schedule(1_500_000, What::WishMove);
        }
        world
    }

    fn run(&mut self) {
        let mut equal = false;
        let mut happened = 0_u64;
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
            happened += 1;
            let looks = self.settling && happened.is_multiple_of(16);
            equal = looks
                && self.unequal().is_none()
                && self.all_verified()
                && self.nodes.iter().all(|node| !node.syncing);
            if self.settling && self.now_us > self.report.virtual_us + SETTLE_LIMIT_US {
                let why = self.unequal().unwrap_or_else(|| self.unverified());
                let status: Vec<_> = self
                    .nodes
                    .iter()
                    .filter_map(|n| n.running.as_ref().map(|(_, r)| (n.id, r.status(self.now_of(n)))))
                    .collect();
                let text = format!("{SETTLE_LIMIT_US} us after the last fault: {why}; {status:#?}");
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
                self.past.ended(self.now_us, node, store, &self.checkers.truth);
                self.checkers.see(Fact::Ended { node });
                if let Some(problem) = self.nodes[node].old_copy_served() {
                    self.checkers.violated(Promise::OldCopies, vec![node], problem);
                }
            }
        }
        self.report.virtual_us = self.now_us;
        self.report.history = std::mem::take(&mut self.past).into_operations();
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
                // A connection loses nothing by itself; a shard in thousands of small parts would never come whole.
                if let Some(direction) = self.network.direction(a, b) {
                    direction.loss = 0;
                }
            }
            self.mend(Mend::Clock(a));
            self.mend(Mend::Disk(a));
            self.mend(Mend::Resume(a));
            self.mend(Mend::Start(a));
        }
    }

    /// What is not yet as it must be in the end, if anything.
    fn unequal(&mut self) -> Option<String> {
        for (n, node) in self.nodes.iter().enumerate() {
            match &node.running {
                None => return Some(format!("n{n} does not run")),
                Some((_, replica)) if !replica.settling().is_empty() => {
                    return Some(format!("n{n} merges {:?}", replica.settling()));
                }
                Some(_) if node.is_filling() => return Some(format!("n{n} is filled")),
                Some(_) => {}
            }
        }
        if let Some(why) = self.not_followed() {
            return Some(why);
        }
        // What had rotted is whole again when everybody has looked at every row and all digests agree.
        if !self.checkers.truth.rotten.is_empty() {
            if let Some(why) = self.digests_disagree() {
                return Some(why);
            }
            self.checkers.truth.rotten.clear();
        }
        let truth = &self.checkers.truth;
        for (a, view) in truth.nodes.iter().enumerate() {
            for (b, other) in truth.nodes.iter().enumerate() {
                let differs = view.vectors.iter().find(|(shard, vector)| {
                    truth.members(shard).any(|member| member == b)
                        && other.vectors.get(*shard) != Some(*vector)
                        && ![a, b].iter().any(|node| truth.liars.contains(&(*node, **shard)))
                });
                if let Some((shard, vector)) = differs {
                    let other = other.vectors.get(shard);
                    return Some(format!("{shard}: n{a} has {vector:?}, n{b} {other:?}"));
                }
            }
        }
        // Nothing is under way: stability comes in time as well, unless somebody lied about what it has.
        if truth.forged.is_empty()
            && let Some(n) = truth.nodes.iter().position(|view| !view.all_stable())
        {
            return Some(format!("not everything is stable at n{n}"));
        }
        for a in 0..self.nodes.len() {
            for b in (0..self.nodes.len()).filter(|b| *b != a) {
                if let (Some((one, _)), Some((other, _))) = (&self.nodes[a].running, &self.nodes[b].running) {
                    self.checkers.see(Fact::Pair { a: (a, one), b: (b, other) });
                }
            }
        }
        None
    }

    /// A digest that is not known, or not the same at every member.
    fn digests_disagree(&self) -> Option<String> {
        let mut digests: BTreeMap<ShardId, (usize, VectorRow)> = BTreeMap::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let (store, replica) = node.running.as_ref()?;
            for (row, state) in store.shards().unwrap_or_default() {
                let shard = row.id();
                if !self.checkers.truth.is_promised(shard) {
                    continue;
                }
                let (first, is) = digests.entry(shard).or_insert_with(|| (n, state.clone()));
                if state.digest.is_none() || *is != state {
                    return Some(format!("{shard}: n{first} has {is:?}, n{n} {state:?}"));
                }
            }
            if !replica.status(self.now_of(node)).counted {
                return Some(format!("n{n} has not counted its keys"));
            }
        }
        None
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
            What::Synced { node, life, outputs, linked } => self.synced(node, life, outputs, linked),
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
            What::Feed { at, life } => self.feed(at, life),
            What::Decide(record) => self.decide(*record),
            What::WishMove => self.wish_a_move(),
            What::Fault => self.fault(),
            What::Mend(mend) => self.mend(mend),
        }
    }
}
