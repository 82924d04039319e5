//! Placement on a node: what it counts, what it hears as the steward of scopes, and what happened to where they are.
//!
//! [`Steward`] decides; here are its clock, its lock and its words. The node's directory thread carries counts to stewards
//! and decisions to the directory ([`Node::place`](crate::directory)); the API counts and explains.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;
use tropism_crdt::NodeId;
use tropism_placement::{
    Access, AccessCounts, COUNTED_SCOPES, Counted, Explanation, Knobs, MAX_STORED_RECORDS, Mode, Move,
    Records, RegionName, Regions, RoundTrips, Rules, ScopeName, Steward, StoredRecord, Unit,
};
use tropism_wire::v1::PlacementEventKind as Kind;
use tropism_wire::{REGION_METADATA, from_proto, v1};

use crate::driver::{Published, wall_ms};

mod words;

use words::summary;
pub(crate) use words::{About, explained, unmoved};

/// How often counts are told, by placement's clock: often enough for a scope to be followed within minutes.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// The same by the clock of the wall at least.
const REPORT_AT_MOST_EVERY: Duration = Duration::from_millis(500);
/// Events that a node remembers: some 300 kB.
const EVENTS: usize = 1_000;
/// Sizes of scopes that are remembered, and for how long by placement's clock, milliseconds.
const SIZES: usize = 100_000;
const SIZE_HOLDS_MS: u64 = 60 * 60_000;

/// How placement runs on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// How many times as fast as others placement's clock is.
    pub(crate) times: u32,
    /// Whether scopes move by themselves.
    pub(crate) moves: bool,
}

/// What one node does about placement. Cheap to clone.
#[derive(Clone)]
pub struct Placement(Arc<Inner>);

struct Inner {
    node: NodeId,
    /// Its region's place in the regions file.
    region: usize,
    rules: Rules,
    regions: Vec<RegionName>,
    /// All nodes, ascending, with the places of their regions.
    nodes: Vec<(NodeId, usize)>,
    pace: Pace,
    started: (Instant, u64),
    counts: Mutex<AccessCounts>,
    steward: Mutex<Steward>,
    sizes: Mutex<BTreeMap<ScopeName, (u64, u64)>>,
    events: Mutex<Events>,
}

/// What happened, oldest first, and when each scope on its way took its last step.
#[derive(Debug)]
struct Events {
    next: u64,
    kept: VecDeque<v1::PlacementEvent>,
    steps: BTreeMap<ScopeName, Instant>,
}

impl Placement {
    /// Of a node among others. `key` is random.
    pub(crate) fn new(
        node: NodeId,
        homes: &BTreeMap<NodeId, RegionName>,
        regions: &Regions,
        pace: Pace,
        key: (u64, u64),
    ) -> Self {
        let names: Vec<RegionName> = regions.regions().iter().map(|region| region.name.clone()).collect();
        let place = |name: &RegionName| names.iter().position(|region| region == name).unwrap_or_default();
        let nodes: Vec<(NodeId, usize)> = homes.iter().map(|(node, home)| (*node, place(home))).collect();
        let places = nodes.iter().map(|(_, home)| *home).collect();
        let round_trips = RoundTrips::of(regions);
        let steward = Steward::new(names.clone(), places, round_trips, Knobs::default(), 0);
        Self(Arc::new(Inner {
            region: homes.get(&node).map(place).unwrap_or_default(),
            node,
            rules: regions.rules().clone(),
            regions: names,
            nodes,
            pace,
            started: (Instant::now(), wall_ms()),
            counts: Mutex::new(AccessCounts::new(COUNTED_SCOPES, key)),
            steward: Mutex::new(steward),
            sizes: Mutex::default(),
            events: Mutex::new(Events {
                next: wall_ms().saturating_mul(1000), // above all of an earlier start
                kept: VecDeque::new(),
                steps: BTreeMap::new(),
            }),
        }))
    }

    fn steward(&self) -> MutexGuard<'_, Steward> {
        self.0.steward.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds of placement's clock since the start.
    pub(crate) fn now(&self) -> u64 {
        let passed = u64::try_from(self.0.started.0.elapsed().as_millis()).unwrap_or(u64::MAX);
        passed.saturating_mul(self.0.pace.times.into())
    }

    /// Whether scopes move by themselves.
    pub(crate) fn moves(&self) -> bool {
        self.0.pace.moves
    }

    /// How many times as fast as others placement's clock is.
    pub(crate) fn pace(&self) -> u32 {
        self.0.pace.times
    }

    /// How often counts are told.
    pub(crate) fn report_every(&self) -> Duration {
        (REPORT_EVERY / self.0.pace.times.max(1)).max(REPORT_AT_MOST_EVERY)
    }

    /// The region that a call arrived in: the one that it names, or this node's.
    pub(crate) fn arrived(&self, metadata: &MetadataMap) -> u8 {
        let named = metadata.get(REGION_METADATA).and_then(|name| name.to_str().ok());
        let place = named.and_then(|name| self.0.regions.iter().position(|region| region.as_str() == name));
        place.unwrap_or(self.0.region) as u8 // there are at most 64
    }

    /// Counts a call that this node answered and that arrived in `region`.
    pub(crate) fn count(&self, scope: &ScopeName, region: u8, access: Access, bytes: usize) {
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.count(scope, region, access, bytes as u64);
    }

    /// What was counted since the last time, by the node that it is told to.
    pub(crate) fn take(&self, published: &Published) -> BTreeMap<NodeId, Vec<Counted>> {
        let counted = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut by_steward: BTreeMap<NodeId, Vec<Counted>> = BTreeMap::new();
        for counted in counted {
            let Some(rule) = self.0.rules.find(&counted.scope) else { continue };
            if rule.placing.mode != Mode::Follow {
                continue;
            }
            let unit = rule.placing.unit(&counted.scope);
            if let Some(steward) = self.steward_of(&unit, published) {
                by_steward.entry(steward).or_default().push(counted);
            }
        }
        by_steward
    }

    /// The steward of a unit as this node sees it: the first node that is heard, in the first serving region with one; of a
    /// group the regions are those that its first rule names. None: nobody is heard.
    pub(crate) fn steward_of(&self, unit: &Unit, published: &Published) -> Option<NodeId> {
        let record;
        let regions: &[RegionName] = match unit {
            Unit::Scope(name) => {
                record = published.records.record(name)?;
                &record.serving
            }
            Unit::Group(group) => {
                let named = |with: &Option<Arc<str>>| with.as_deref() == Some(&**group);
                &self.0.rules.iter().find(|rule| named(&rule.placing.with))?.regions
            }
        };
        let heard = |node: &NodeId| {
            let up = || published.status.links.iter().any(|link| link.up && link.peer.node == *node);
            *node == self.0.node || up()
        };
        regions.iter().find_map(|region| {
            let home = self.0.regions.iter().position(|name| name == region)?;
            let mut nodes = self.0.nodes.iter().filter(|(_, place)| *place == home).map(|(node, _)| *node);
            nodes.find(heard)
        })
    }

    /// What a scope is placed with, and whether anything but its rule decides where it is.
    pub(crate) fn unit(&self, name: &ScopeName) -> Option<(Unit, Mode)> {
        let rule = self.0.rules.find(name)?;
        Some((rule.placing.unit(name), rule.placing.mode))
    }

    /// A node told what it counted; this one may be it.
    pub(crate) fn told(&self, from: &NodeId, counts: &[Counted]) {
        let Some(node) = self.0.nodes.iter().position(|(node, _)| node == from) else { return };
        let now = self.now();
        self.steward().counted(now, &self.0.rules, node, counts);
    }

    /// The same, with what the node measures, from another node's message. What names no scope or region of ours is left out.
    pub(crate) fn told_by(&self, from: &NodeId, question: &v1::CountsQuestion) {
        let place = |name: &str| self.0.regions.iter().position(|region| region.as_str() == name);
        let counted = |count: &v1::AccessCount| {
            Some(Counted {
                scope: from_proto::scope_name("scope", &count.scope).ok()?,
                region: place(&count.region)? as u8, // there are at most 64
                reads: count.reads,
                writes: count.writes,
                read_bytes: count.read_bytes,
                write_bytes: count.write_bytes,
            })
        };
        let counts: Vec<Counted> = question.counts.iter().filter_map(counted).collect();
        self.told(from, &counts);
        let Some((_, home)) = self.0.nodes.iter().find(|(node, _)| node == from) else { return };
        let mut steward = self.steward();
        for measured in &question.round_trips {
            if let Some(other) = place(&measured.region) {
                steward.measured(*home, other, measured.ms);
            }
        }
        if question.free_bytes > 0 {
            steward.room(*home, question.free_bytes as f64);
        }
    }

    /// Counts for another node's message.
    pub(crate) fn message(&self, counts: &[Counted]) -> Vec<v1::AccessCount> {
        let message = |counted: &Counted| v1::AccessCount {
            scope: counted.scope.as_str().to_owned(),
            region: self.region_name(counted.region.into()).to_owned(),
            reads: counted.reads,
            writes: counted.writes,
            read_bytes: counted.read_bytes,
            write_bytes: counted.write_bytes,
        };
        counts.iter().map(message).collect()
    }

    pub(crate) fn region_name(&self, place: usize) -> &str {
        self.0.regions.get(place).map_or("?", RegionName::as_str)
    }

    /// Records that this node has from before, or that were decided.
    pub(crate) fn adopted<'a>(&self, records: impl IntoIterator<Item = &'a StoredRecord>) {
        let now = self.now();
        let mut steward = self.steward();
        for record in records {
            steward.adopted(now, &self.0.rules, record);
        }
    }

    /// The next unit to be looked at now.
    pub(crate) fn next_due(&self) -> Option<(Unit, Vec<ScopeName>)> {
        let now = self.now();
        self.steward().next_due(now)
    }

    /// Time goes by.
    pub(crate) fn tick(&self) {
        let now = self.now();
        self.steward().tick(now);
    }

    /// Decides about a unit.
    pub(crate) fn decide(&self, unit: &Unit, records: &Records, bytes: u64) -> Option<Move> {
        let now = self.now();
        let decided = self.steward().decide(now, unit, records, bytes as f64)?;
        self.event(&unit.to_string(), 0, Kind::Decided, summary(&decided, &self.0.regions));
        Some(decided)
    }

    /// What would be decided.
    pub(crate) fn explain(
        &self,
        unit: &Unit,
        records: &Records,
        bytes: u64,
    ) -> Option<(Explanation, Vec<Option<u64>>, RoundTrips)> {
        let now = self.now();
        let steward = self.steward();
        let why = steward.explain(now, unit, records, bytes as f64)?;
        Some((why, steward.ages(now), steward.round_trips().clone()))
    }

    /// What was decided does not come about.
    pub(crate) fn failed(&self, unit: &Unit, why: &str) {
        self.steward().failed(unit);
        self.event(&unit.to_string(), 0, Kind::NotTaken, why.to_owned());
    }

    /// A scope's size, if it is known, bytes.
    pub(crate) fn size(&self, name: &ScopeName) -> Option<u64> {
        let now = self.now();
        let sizes = self.0.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.get(name).filter(|(at, _)| now.saturating_sub(*at) < SIZE_HOLDS_MS).map(|(_, bytes)| *bytes)
    }

    /// A scope's size was looked up.
    pub(crate) fn sized(&self, name: &ScopeName, bytes: u64) {
        let now = self.now();
        let mut sizes = self.0.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if sizes.len() >= SIZES {
            sizes.retain(|_, (at, _)| now.saturating_sub(*at) < SIZE_HOLDS_MS);
        }
        if sizes.len() < SIZES {
            sizes.insert(name.clone(), (now, bytes));
        }
    }

    /// Takes note of what happened.
    pub(crate) fn event(&self, scope: &str, epoch: u64, kind: Kind, message: String) {
        let mut events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(&self.0.node, scope, epoch, kind, message, Duration::ZERO);
    }

    /// Takes note of a record that was decided.
    pub(crate) fn step(&self, record: &StoredRecord) {
        let (kind, message) = words::step(record);
        let (now, name) = (Instant::now(), &record.scope.name);
        let mut events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        let on_its_way = !matches!(kind, Kind::Settled | Kind::Dropped);
        let before = match on_its_way {
            true if events.steps.len() < MAX_STORED_RECORDS => events.steps.insert(name.clone(), now),
            _ => events.steps.remove(name),
        };
        let took = before.map(|before| now.duration_since(before)).unwrap_or_default();
        events.push(&self.0.node, name.as_str(), record.epoch(), kind, message, took);
    }

    /// Events behind a number.
    pub(crate) fn events(&self, after: u64) -> Vec<v1::PlacementEvent> {
        let events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.kept.iter().filter(|event| event.number > after).cloned().collect()
    }
}

impl Events {
    fn push(&mut self, node: &NodeId, scope: &str, epoch: u64, kind: Kind, message: String, took: Duration) {
        if self.kept.len() == EVENTS {
            self.kept.pop_front();
        }
        self.next += 1;
        self.kept.push_back(v1::PlacementEvent {
            number: self.next,
            at_ms: wall_ms(),
            node: node.as_str().to_owned(),
            scope: scope.to_owned(),
            epoch,
            kind: kind.into(),
            message,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        });
    }
}
