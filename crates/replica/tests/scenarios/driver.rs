//! A few replicas and the wire between them, driven by hand.

use bytes::Bytes;
use tropism_crdt::cell::Content;
use tropism_crdt::json::{JsonLimits, parse};
use tropism_crdt::{ExpiryChange, NodeId};
use tropism_placement::{RegionName, Regions, ScopeId, ScopeName, ShardId};
use tropism_replica::{
    Event, Frame, FrameBody, Hello, Identity, Input, Now, Opening, Output, Peer, Replica, SetAside, Status,
    Write, WriteDone, WriteError, WriteOp,
};
use tropism_storage::{Batch, Engine, MemoryEngine, Reads, Space, Store, StoreKey, ValueRow};

/// In every region.
const RULES: &str = r#"
[[rule]]
name = "stats"
pattern = "stats/**"
kind = "counter"
[[rule]]
name = "cache"
pattern = "cache/**"
kind = "register"
[[rule]]
name = "brief"
pattern = "brief/**"
kind = "document"
history_changes = 5
[[rule]]
name = "documents"
pattern = "**"
kind = "document"
counters = ["/n"]
"#;

/// What the log keeps for watchers: a few hundred changes.
pub(crate) const KEEP_BYTES: u64 = 64 << 10;

/// What a scenario may set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) log_keep_ms: u64,
    pub(crate) log_cap_ms: u64,
    pub(crate) part_bytes: usize,
    pub(crate) settle_keys: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_keep_ms: 600_000,
            log_cap_ms: u64::MAX,
            part_bytes: tropism_replica::limits::FRAME_BYTES,
            settle_keys: tropism_replica::limits::SETTLE_KEYS,
        }
    }
}

/// Nodes, one in each region.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) now: Now,
    /// Keys whose states arrived anywhere, with shards that came as a whole.
    pub(crate) states: Vec<String>,
    parts: usize,
    /// How the next store came to be, and what can be read of the one before.
    opening: Opening,
    aside: Option<Store>,
    pub(crate) settings: Settings,
    pub(crate) ticket: u64,
}

pub(crate) struct Node {
    pub(crate) replica: Replica,
    pub(crate) store: Store,
    /// Outputs of durable turns that nobody took yet.
    pub(crate) outputs: Vec<Output>,
    /// How far its wall clock is off.
    pub(crate) offset_ms: i64,
    /// Its process is gone.
    pub(crate) down: bool,
}

pub(crate) fn id(node: usize) -> NodeId {
    NodeId::new(["a-1", "b-1", "c-1"][node]).unwrap()
}

impl Cluster {
    /// Two, booted and linked.
    pub(crate) fn linked() -> Self {
        let mut pair = Self::apart();
        pair.link();
        pair
    }

    /// Two that are not linked.
    pub(crate) fn apart() -> Self {
        Self::of(2, Settings::default())
    }

    /// Up to three that are not linked.
    pub(crate) fn of(count: usize, settings: Settings) -> Self {
        let now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };
        let boot = |node| {
            let store = Store::open(Box::new(MemoryEngine::new())).unwrap();
            boot(now, identity(now, node, count, settings), store)
        };
        Self {
            nodes: (0..count).map(boot).collect(),
            now,
            states: Vec::new(),
            parts: 0,
            opening: served_at_once(),
            aside: None,
            settings,
            ticket: 0,
        }
    }

    /// The time at a node.
    pub(crate) fn now_of(&self, at: usize) -> Now {
        Now { wall_ms: self.now.wall_ms.saturating_add_signed(self.nodes[at].offset_ms), ..self.now }
    }

    /// What is durable at a node, as another store.
    pub(crate) fn copy_of(&self, at: usize) -> Store {
        let mut engine = MemoryEngine::new();
        let snapshot = self.nodes[at].store.snapshot();
        for space in Space::ALL {
            let rows = snapshot.scan(space, &[], &[0xff; 1_100]).map(|row| row.unwrap());
            let writes = rows.map(|(key, row)| (space, StoreKey::existing(key), Some(row))).collect();
            engine.commit(Batch { writes }).unwrap();
        }
        Store::open(Box::new(engine)).unwrap()
    }

    /// The node's process ends without a word, and a new one opens what was durable.
    pub(crate) fn restart(&mut self, at: usize) {
        let store = self.copy_of(at);
        self.start(at, store);
    }

    /// The node is gone, its peers notice, and it starts again: on this store, or else on its own.
    pub(crate) fn replace(&mut self, at: usize, store: Option<Store>) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != at) {
            self.turn(peer, Input::LinkDown(id(at)));
        }
        let store = store.unwrap_or_else(|| self.copy_of(at));
        self.start(at, store);
    }

    /// The node begins with an empty store, to be filled by its peers: its disk is gone, or its store is set aside for a
    /// reason.
    pub(crate) fn lose_store(&mut self, at: usize, set_aside: Option<&str>) {
        self.aside = set_aside.map(|_| self.copy_of(at));
        let set_aside = set_aside.map(str::to_owned);
        self.opening = Opening { salvage: set_aside.is_some(), set_aside, accept_loss: false };
        self.replace(at, Some(Store::open(Box::new(MemoryEngine::new())).unwrap()));
    }

    /// Gives a node that asks for it what can be read of the store that was set aside.
    fn salvage(&mut self, at: usize) {
        let status = self.nodes[at].replica.rebuild_status(self.now_of(at));
        if !status.is_some_and(|status| status.salvages) {
            return;
        }
        let Some(aside) = self.aside.take() else { return };
        let mut rows = SetAside::new(aside.snapshot());
        loop {
            let batch = rows.next_batch();
            let all = batch.is_empty();
            self.turn(at, Input::Salvage(batch));
            if all {
                return;
            }
        }
    }

    fn start(&mut self, at: usize, store: Store) {
        let now = self.now_of(at);
        let opening = std::mem::replace(&mut self.opening, served_at_once());
        let identity = Identity { opening, ..identity(now, at, self.nodes.len(), self.settings) };
        let offset_ms = self.nodes[at].offset_ms;
        self.nodes[at] = Node { offset_ms, ..boot(now, identity, store) };
    }

    pub(crate) fn status(&self, at: usize) -> Status {
        self.nodes[at].replica.status(self.now_of(at))
    }

    /// Keys alive, deleted, stubs and parked, as the store tallies them.
    pub(crate) fn keys(&self, at: usize) -> [u64; 4] {
        let keys = self.nodes[at].store.tally().keys;
        [keys.alive, keys.deleted, keys.stubs, keys.parked]
    }

    /// What a node shows the next one.
    pub(crate) fn hello(&self, of: usize) -> Hello {
        self.hello_to(of, (of + 1) % self.nodes.len())
    }

    fn hello_to(&self, of: usize, to: usize) -> Hello {
        self.nodes[of].replica.hello(&self.nodes[of].store, id(to))
    }

    /// Links everybody.
    pub(crate) fn link(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                self.connect(a, b);
            }
        }
        self.settle();
    }

    /// A connection stands.
    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        let (from_a, from_b) = (self.hello_to(a, b), self.hello_to(b, a));
        self.turn(a, Input::LinkUp(from_b));
        self.turn(b, Input::LinkUp(from_a));
    }

    /// A connection is gone, with what was under way on it.
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        for (at, peer) in [(a, b), (b, a)] {
            if !self.nodes[at].down {
                self.turn(at, Input::LinkDown(id(peer)));
            }
            let outputs = &mut self.nodes[at].outputs;
            outputs.retain(|output| !matches!(output, Output::Send { to, .. } if *to == id(peer)));
        }
    }

    /// One turn of one node, as the driver's contract says.
    pub(crate) fn turn(&mut self, at: usize, input: Input) {
        let now = self.now_of(at);
        let node = &mut self.nodes[at];
        node.replica.handle(now, &mut node.store, input).unwrap();
        node.replica.flush(now, &mut node.store).unwrap();
        node.store.commit(now.wall_ms).unwrap();
        node.store.sync().unwrap();
        while let Some(output) = node.replica.poll_output() {
            node.outputs.push(output);
        }
    }

    /// Time passes.
    pub(crate) fn wait_ms(&mut self, ms: u64) {
        self.wait_ms_without(ms, |_| false);
    }

    pub(crate) fn wait_ms_without(&mut self, ms: u64, lost: impl Fn(&Frame) -> bool) {
        for _ in 0..ms.div_ceil(50) {
            self.now.mono_us += 50_000;
            self.now.wall_ms += 50;
            for at in 0..self.nodes.len() {
                if !self.nodes[at].down {
                    self.turn(at, Input::Tick);
                    self.salvage(at);
                }
            }
            self.settle_without(&lost);
        }
    }

    /// Carries frames every way until there are none.
    pub(crate) fn settle(&mut self) {
        self.settle_without(|_| false);
    }

    pub(crate) fn settle_without(&mut self, lost: impl Fn(&Frame) -> bool) {
        loop {
            let mut quiet = true;
            for from in 0..self.nodes.len() {
                let outputs = std::mem::take(&mut self.nodes[from].outputs);
                for output in outputs {
                    match output {
                        Output::Send { to, frame } if !lost(&frame) => {
                            quiet = false;
                            self.arrive(from, to, frame);
                        }
                        Output::Send { .. } => {}
                        kept => self.nodes[from].outputs.push(kept),
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn arrive(&mut self, from: usize, to: NodeId, frame: Frame) {
        let to = (0..self.nodes.len()).find(|at| id(*at) == to && !self.nodes[*at].down);
        if let Some(to) = to {
            if let FrameBody::State(part) = &frame.body {
                self.parts += 1;
                let begun = part.pieces.iter().filter(|piece| piece.number == 0);
                self.states.extend(begun.map(|piece| piece.key.clone()));
            }
            self.turn(to, Input::Frame { from: id(from), frame });
        }
    }

    /// Carries frames until so many parts of shards have arrived; says whether they have.
    pub(crate) fn carry_parts(&mut self, count: usize) -> bool {
        let parts = self.parts + count;
        let mut quiet = false;
        while self.parts < parts && !quiet {
            quiet = true;
            for from in 0..self.nodes.len() {
                quiet &= self.parts >= parts || !self.carry_one(from);
            }
        }
        self.parts >= parts
    }

    /// Carries the next frame of a node, if there is one.
    fn carry_one(&mut self, from: usize) -> bool {
        let outputs = &mut self.nodes[from].outputs;
        let Some(next) = outputs.iter().position(|output| matches!(output, Output::Send { .. })) else {
            return false;
        };
        if let Output::Send { to, frame } = outputs.remove(next) {
            self.arrive(from, to, frame);
        }
        true
    }

    pub(crate) fn send(&mut self, at: usize, write: Write) {
        self.ticket += 1;
        let input = Input::Write { ticket: self.ticket, write: Box::new(write) };
        self.turn(at, input);
    }

    pub(crate) fn reply(&mut self, at: usize) -> Option<Result<WriteDone, WriteError>> {
        let outputs = &mut self.nodes[at].outputs;
        let found = outputs.iter().position(|output| matches!(output, Output::Reply { .. }))?;
        match outputs.remove(found) {
            Output::Reply { outcome, .. } => Some(outcome),
            _ => None,
        }
    }

    pub(crate) fn write(&mut self, at: usize, write: Write) -> Result<WriteDone, WriteError> {
        self.send(at, write);
        self.reply(at).expect("a reply")
    }

    pub(crate) fn value(&self, at: usize, scope: &str, key: &str) -> ValueRow {
        self.nodes[at].store.value(shard(scope), key).unwrap().unwrap_or_default()
    }

    pub(crate) fn counter(&self, at: usize, key: &str) -> i64 {
        match self.value(at, "stats/s", key).cell.content {
            Content::Counter(counter) => counter.value().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn json(&self, at: usize, key: &str) -> String {
        match self.value(at, "docs", key).cell.content {
            Content::Document { json, .. } => String::from_utf8(json.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn events(&self, at: usize) -> Vec<&Event> {
        let events = self.nodes[at].outputs.iter().filter_map(|output| match output {
            Output::Event(event) => Some(event),
            _ => None,
        });
        events.collect()
    }
}

/// A node's identity in a cluster of so many regions.
pub(crate) fn identity(now: Now, node: usize, count: usize, settings: Settings) -> Identity {
    let regions = regions(count);
    let names: Vec<RegionName> = regions.regions().iter().map(|region| region.name.clone()).collect();
    let peers = (0..count).filter(|peer| *peer != node);
    Identity {
        cluster: "test".into(),
        node: id(node),
        region: names[node].clone(),
        boot_random: now.mono_us,
        new_store_id: u128::from(now.mono_us) * 4 + node as u128,
        opening: served_at_once(),
        peers: peers.map(|peer| Peer { node: id(peer), region: names[peer].clone() }).collect(),
        rules: regions.rules().clone(),
        directory: false,
        cache_bytes: 1 << 20,
        log_keep_ms: settings.log_keep_ms,
        digest_key: tropism_replica::DigestKey::default(),
        part_bytes: settings.part_bytes,
        settle_keys: settings.settle_keys,
        log_cap_ms: settings.log_cap_ms,
        log_cap_bytes: u64::MAX,
        log_keep_bytes: KEEP_BYTES,
    }
}

/// Scenarios that are not about an empty store do not wait for it to be filled.
fn served_at_once() -> Opening {
    Opening { accept_loss: true, ..Opening::default() }
}

fn regions(count: usize) -> Regions {
    let names = &["a", "b", "c"][..count];
    let mut text: String =
        names.iter().map(|name| format!("[[region]]\nname = \"{name}\"\nplace = \"{name}\"\n")).collect();
    for (at, a) in names.iter().enumerate() {
        for b in &names[at + 1..] {
            text.push_str(&format!("[[rtt]]\nbetween = [\"{a}\", \"{b}\"]\nms = 10\n"));
        }
    }
    Regions::parse("test", &(text + RULES)).unwrap()
}

fn boot(now: Now, identity: Identity, mut store: Store) -> Node {
    let replica = Replica::boot(now, &mut store, identity).unwrap();
    store.commit(now.wall_ms).unwrap();
    store.sync().unwrap();
    Node { replica, store, outputs: Vec::new(), offset_ms: 0, down: false }
}

pub(crate) fn shard(scope: &str) -> ShardId {
    ShardId::of(&ScopeId { name: ScopeName::new(scope).unwrap(), incarnation: 0 }, 0)
}

pub(crate) fn write(scope: &str, key: &str, op: WriteOp) -> Write {
    Write {
        scope: ScopeName::new(scope).unwrap(),
        key: key.into(),
        op,
        precondition: None,
        expiry: ExpiryChange::Keep,
        durability: None,
        deadline_us: u64::MAX,
        request_id: None,
        trace: None,
    }
}

pub(crate) fn bytes(value: &str) -> WriteOp {
    WriteOp::PutRegister { content_type: String::new(), bytes: Bytes::copy_from_slice(value.as_bytes()) }
}

pub(crate) fn document(text: &str) -> WriteOp {
    WriteOp::PutDocument { value: parse(text.as_bytes(), &JsonLimits::default()).unwrap(), base: None }
}

pub(crate) fn increment(by: i64) -> WriteOp {
    WriteOp::Increment { by }
}
