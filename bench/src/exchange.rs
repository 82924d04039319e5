//! What two members say to each other beside the changes themselves: replicas on memory engines, in one thread and in virtual
//! time, with a link of 100 ms round trip. Bytes are those of the encoded frames.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message as _;
use tropism_crdt::{ExpiryChange, NodeId, Origin};
use tropism_placement::{Kind, RegionName, Regions, ScopeId, ScopeName, ShardId};
use tropism_replica::{
    Event, Frame, FrameBody, Identity, Input, Now, Opening, Output, Peer, Replica, Write, WriteOp,
};
use tropism_storage::{MemoryEngine, Reads, ShardKey, ShardRow, Space, Store, ValueKey, VectorRow};
use tropism_wire::frames;

const RULES: &str = r#"
region = [{ name = "a", place = "A" }, { name = "b", place = "B" }]
rtt = [{ between = ["a", "b"], ms = 100 }]
[[rule]]
name = "all"
pattern = "**"
kind = "register"
"#;
/// One way, us.
const DELAY_US: u64 = 50_000;
/// Values of keys, bytes.
const VALUE_BYTES: usize = 200;
/// No exchange takes longer, virtual us: a digest is summed up anew by the sweep before it can differ.
const PATIENCE_US: u64 = 3_600_000_000;

/// Frames of a kind that were sent, and their bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Said {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

struct Node {
    replica: Replica,
    store: Store,
    inbox: Vec<Input>,
}

struct Pair {
    nodes: Vec<Node>,
    now: Now,
    under_way: BTreeMap<(u64, u64), (usize, Frame)>,
    order: u64,
    linked: bool,
    said: BTreeMap<&'static str, Said>,
    events: Vec<Event>,
    value: Bytes,
}

impl Pair {
    fn new(stores: [Store; 2]) -> Result<Self> {
        let now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };
        let nodes = stores.into_iter().enumerate().map(|(at, store)| boot(now, at, store));
        Ok(Self {
            nodes: nodes.collect::<Result<_>>()?,
            now,
            under_way: BTreeMap::new(),
            order: 0,
            linked: false,
            said: BTreeMap::new(),
            events: Vec::new(),
            value: vec![b'v'; VALUE_BYTES].into(),
        })
    }

    fn empty() -> Result<Self> {
        Self::new([Store::open(Box::new(MemoryEngine::new()))?, Store::open(Box::new(MemoryEngine::new()))?])
    }

    fn link(&mut self) -> Result<()> {
        let hello = |from: usize, to: usize| {
            let node = &self.nodes[from];
            Ok::<_, anyhow::Error>(node.replica.hello(&node.store, id(to)?))
        };
        let hellos = [hello(1, 0)?, hello(0, 1)?];
        self.linked = true;
        for (at, hello) in hellos.into_iter().enumerate() {
            self.nodes[at].inbox.push(Input::LinkUp(hello));
            self.turn(at)?;
        }
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        self.linked = false;
        self.under_way.clear();
        for at in 0..2 {
            self.nodes[at].inbox.push(Input::LinkDown(id(1 - at)?));
            self.turn(at)?;
        }
        Ok(())
    }

    fn write(&mut self, at: usize, scope: &ScopeName, key: String) {
        let op = WriteOp::PutRegister { content_type: String::new(), bytes: self.value.clone() };
        let write = Write {
            scope: scope.clone(),
            key,
            op,
            precondition: None,
            expiry: ExpiryChange::Keep,
            durability: None,
            deadline_us: u64::MAX,
            request_id: None,
            trace: None,
        };
        self.nodes[at].inbox.push(Input::Write { ticket: 0, write: Box::new(write) });
    }

    fn turn(&mut self, at: usize) -> Result<()> {
        let Node { replica, store, inbox } = &mut self.nodes[at];
        inbox.push(Input::Tick);
        for input in inbox.drain(..) {
            replica.handle(self.now, store, input)?;
        }
        replica.flush(self.now, store)?;
        store.commit(self.now.wall_ms)?;
        store.sync()?;
        while let Some(output) = replica.poll_output() {
            match output {
                Output::Reply { outcome, .. } => {
                    outcome?;
                }
                Output::Send { frame, .. } if self.linked => {
                    let said = self.said.entry(name(&frame.body)).or_default();
                    said.frames += 1;
                    said.bytes += frames::to_message(&frame).encoded_len();
                    self.order += 1;
                    self.under_way.insert((self.now.mono_us + DELAY_US, self.order), (1 - at, frame));
                }
                Output::Event(event) => self.events.push(event),
                _ => {}
            }
        }
        Ok(())
    }

    /// Time passes until something is due, for so long at most.
    fn step(&mut self, most_us: u64) -> Result<()> {
        let deadlines = self.nodes.iter().map(|node| node.replica.next_deadline(self.now));
        let arrives = self.under_way.first_key_value().map(|((due, _), _)| *due);
        let due = deadlines.chain(arrives).min().unwrap_or(u64::MAX);
        self.pass(due.clamp(self.now.mono_us + 1, self.now.mono_us + most_us.max(1)));
        while let Some(entry) = self.under_way.first_entry().filter(|e| e.key().0 <= self.now.mono_us) {
            let (to, frame) = entry.remove();
            self.nodes[to].inbox.push(Input::Frame { from: id(1 - to)?, frame });
        }
        for at in 0..2 {
            let node = &self.nodes[at];
            if !node.inbox.is_empty() || node.replica.next_deadline(self.now) <= self.now.mono_us {
                self.turn(at)?;
            }
        }
        Ok(())
    }

    fn pass(&mut self, mono_us: u64) {
        self.now.wall_ms += mono_us / 1_000 - self.now.mono_us / 1_000;
        self.now.mono_us = mono_us;
    }

    fn run_until(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let until = self.now.mono_us + PATIENCE_US;
        while !done(self) {
            ensure!(self.now.mono_us < until, "not done after {PATIENCE_US} us of virtual time");
            self.step(u64::MAX / 2)?;
        }
        Ok(())
    }

    fn equal(&self, shard: ShardId) -> bool {
        let of = |at: usize| self.nodes[at].store.vector_row(shard).ok();
        of(0).is_some_and(|row| row.digest.is_some()) && of(0) == of(1)
    }

    fn take_said(&mut self) -> BTreeMap<&'static str, Said> {
        std::mem::take(&mut self.said)
    }
}

/// What it takes to find and repair `missing` of `keys` registers that one of two members lost without a word: what was
/// said from the first sums that differed on, without heartbeats.
pub(crate) fn repair(keys: usize, missing: usize) -> Result<BTreeMap<&'static str, Said>> {
    let mut pair = Pair::empty()?;
    pair.link()?;
    let scope = ScopeName::new("bench/keys")?;
    let shard = shard_of(&scope);
    for first in (0..keys).step_by(1_000) {
        for key in first..keys.min(first + 1_000) {
            pair.write(0, &scope, format!("key-{key:07}"));
        }
        pair.turn(0)?;
        pair.step(1_000)?;
    }
    pair.run_until(|pair| pair.equal(shard))?;
    pair.cut()?;
    for number in 0..missing {
        let key = format!("key-{:07}", number * (keys / missing.max(1)));
        pair.nodes[1].store.remove(Space::Values, ValueKey { shard, key: &key }.encode());
    }
    pair.nodes[1].store.commit(pair.now.wall_ms)?;
    // A new process: its first sweep comes by every key soon.
    let Node { store, .. } = pair.nodes.pop().context("two nodes")?;
    pair.nodes.push(boot(pair.now, 1, store)?);
    pair.events.clear();
    pair.link()?;
    pair.run_until(|pair| pair.events.iter().any(|event| matches!(event, Event::Rotted { .. })))?;
    pair.take_said();
    pair.events.clear();
    let repaired = |pair: &Pair| -> u64 {
        let keys = pair.events.iter().map(|event| match event {
            Event::Repaired { keys, .. } => *keys,
            _ => 0,
        });
        keys.sum()
    };
    pair.run_until(|pair| repaired(pair) >= missing as u64)?;
    pair.run_until(|pair| pair.equal(shard))?;
    let mut said = pair.take_said();
    said.retain(|name, _| !matches!(*name, "heartbeat" | "told"));
    Ok(said)
}

/// What one comparison of so many shards in step takes: frames of either side, without heartbeats.
pub(crate) fn compare(shards: usize) -> Result<BTreeMap<&'static str, Said>> {
    let origin = Origin { node: NodeId::new("a-1")?, incarnation: 1, random: 2 };
    let store = || {
        let mut store = Store::open(Box::new(MemoryEngine::new()))?;
        for number in 0..shards {
            let name = ScopeName::new(&format!("bench/s{number:07}"))?;
            let row = ShardRow { scope: ScopeId { name, incarnation: 0 }, index: 0, kind: Kind::Register };
            let vector = [(origin, number as u64 + 1)].into_iter().collect();
            store.put_row(Space::Shards, ShardKey::Description(row.id()).encode(), &row);
            let state = VectorRow { vector, digest: None };
            store.put_row(Space::Shards, ShardKey::Vector(row.id()).encode(), &state);
        }
        store.commit(0)?;
        Ok::<_, anyhow::Error>(store)
    };
    let mut pair = Pair::new([store()?, store()?])?;
    pair.link()?;
    pair.run_until(|pair| pair.said.contains_key("compare"))?;
    let until = pair.now.mono_us + 1_000_000;
    pair.run_until(|pair| pair.now.mono_us >= until)?;
    let mut said = pair.take_said();
    said.retain(|name, _| !matches!(*name, "heartbeat" | "told"));
    Ok(said)
}

/// What follows a cut of so many seconds with 500 writes a second on each side, until both are equal.
pub(crate) fn heal(seconds: usize) -> Result<BTreeMap<&'static str, Said>> {
    let mut pair = Pair::empty()?;
    let scope = ScopeName::new("bench/keys")?;
    pair.link()?;
    for at in 0..2 {
        pair.write(at, &scope, format!("first-{at}"));
    }
    pair.run_until(|pair| pair.equal(shard_of(&scope)))?;
    pair.cut()?;
    for number in 0..seconds * 50 {
        pair.pass(pair.now.mono_us + 20_000);
        for at in 0..2 {
            for write in 0..10 {
                let key = (number * 10 + write) * 7_919 % 10_000;
                pair.write(at, &scope, format!("key-{key:05}"));
            }
            pair.turn(at)?;
        }
    }
    pair.take_said();
    pair.link()?;
    pair.run_until(|pair| pair.equal(shard_of(&scope)))?;
    Ok(pair.take_said())
}

fn boot(now: Now, at: usize, mut store: Store) -> Result<Node> {
    let regions = Regions::parse("bench", RULES)?;
    let region = |at: usize| -> Result<RegionName> {
        Ok(regions.regions().get(at).context("two regions")?.name.clone())
    };
    let identity = Identity {
        cluster: "bench".into(),
        node: id(at)?,
        region: region(at)?,
        boot_random: now.mono_us + at as u64,
        new_store_id: 1 + at as u128,
        opening: Opening { accept_loss: true, ..Opening::default() },
        peers: vec![Peer { node: id(1 - at)?, region: region(1 - at)? }],
        rules: regions.rules().clone(),
        directory: false,
        cache_bytes: 256 << 20,
        log_keep_ms: 600_000,
        digest_key: tropism_replica::DigestKey::default(),
        part_bytes: tropism_replica::limits::FRAME_BYTES,
        settle_keys: tropism_replica::limits::SETTLE_KEYS,
        log_cap_ms: u64::MAX,
        log_cap_bytes: u64::MAX,
        log_keep_bytes: tropism_replica::limits::LOG_KEEP_BYTES,
    };
    let replica = Replica::boot(now, &mut store, identity)?;
    store.commit(now.wall_ms)?;
    store.sync()?;
    Ok(Node { replica, store, inbox: Vec::new() })
}

fn id(at: usize) -> Result<NodeId> {
    Ok(NodeId::new(["a-1", "b-1"][at])?)
}

fn shard_of(scope: &ScopeName) -> ShardId {
    ShardId::of(&ScopeId { name: scope.clone(), incarnation: 0 }, 0)
}

fn name(body: &FrameBody) -> &'static str {
    match body {
        FrameBody::Changes(_) => "changes",
        FrameBody::Told(_) => "told",
        FrameBody::Want(_) => "want",
        FrameBody::Compare(_) => "compare",
        FrameBody::Vectors(_) => "vectors",
        FrameBody::Heartbeat(_) => "heartbeat",
        FrameBody::Inspect(_) => "inspect",
        FrameBody::Inspected(_) => "inspected",
        FrameBody::MoreCells(_) => "more cells",
        FrameBody::Cells(_) => "cells",
        FrameBody::Differ(_) => "differ",
        _ => "other",
    }
}
