//! What a node knows and decides as the steward of scopes: how they are used, when they last moved, and where they go next.
//!
//! Every node keeps one [`Steward`] and tells it what the directory decided, so that whoever becomes a scope's steward knows
//! when the scope last moved. Counts go to the steward alone. Which units a node is the steward of is not decided here: two
//! at once are harmless, since the directory compares epochs.
//!
//! A *unit* is what is placed as one: a scope, or all scopes of the rules with the same `with`.

use std::collections::{BTreeMap, BTreeSet};

use crate::access::{Counted, DEMAND_UNITS, Demand, Rates, UnitAccess};
use crate::cost::{Bounds, Load, RoundTrips, Set, Use};
use crate::decision::{Budgets, Decision, Explanation, History, Knobs, Situation, decide, evaluate};
use crate::name::{RegionName, ScopeName};
use crate::placing::{Mode, Placing, Unit};
use crate::records::{Hold, Records, StoredRecord};
use crate::rules::Rules;

/// Bytes a second that a link between two regions carries, as far as copies are held back by it: of 25 MB/s a fifth, 5 MB/s,
/// goes to copies, which is what a link without a shared line between clouds sustains.
const LINK_BYTES_PER_SECOND: f64 = 25e6;
/// Scopes of one group that are remembered: those beyond stay where they are until they are used again.
pub const GROUP_SCOPES: usize = 10_000;
/// How long a move counts against the budgets at most, milliseconds: one that takes longer is given up by its steward.
const MOVE_TIME_MS: u64 = 60 * 60_000;

/// What is known of one unit beside its use.
#[derive(Debug, Default)]
struct Known {
    /// Its scopes.
    scopes: BTreeSet<ScopeName>,
    history: History,
    /// When it is looked at next, milliseconds.
    due: u64,
    /// A move that was decided here: from, to, when.
    begun: Option<(Set, Set, u64)>,
}

/// What a move needs: where each scope of the unit shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    /// What moves.
    pub unit: Unit,
    /// The scopes with the regions that shall serve them, the steward's first.
    pub goals: Vec<(ScopeName, Vec<RegionName>)>,
    /// Why.
    pub why: Explanation,
}

/// See the module's text. Times are in milliseconds since any moment, the same for all calls.
#[derive(Debug)]
pub struct Steward {
    regions: Vec<RegionName>,
    /// The region of each node.
    homes: Vec<usize>,
    knobs: Knobs,
    round_trips: RoundTrips,
    demand: Demand,
    budgets: Budgets,
    refilled: u64,
    /// Room in each region, bytes; more than there is where nobody told.
    free: Vec<f64>,
    units: BTreeMap<Unit, Known>,
    /// The same by when they are due.
    due: BTreeSet<(u64, Unit)>,
    /// Where each scope with a record of its own was when nothing of it moved.
    settled: BTreeMap<ScopeName, Set>,
}

impl Steward {
    /// Knows nothing yet. `homes` has the region of each node, as an index of `regions`.
    pub fn new(
        regions: Vec<RegionName>,
        homes: Vec<usize>,
        round_trips: RoundTrips,
        knobs: Knobs,
        now: u64,
    ) -> Self {
        let count = regions.len();
        Self {
            regions,
            homes,
            knobs,
            round_trips,
            demand: Demand::new(),
            budgets: Budgets::new(count, LINK_BYTES_PER_SECOND),
            refilled: now,
            free: vec![f64::INFINITY; count],
            units: BTreeMap::new(),
            due: BTreeSet::new(),
            settled: BTreeMap::new(),
        }
    }

    /// How eagerly scopes move.
    pub fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    /// Round trips as they are computed with.
    pub fn round_trips(&self) -> &RoundTrips {
        &self.round_trips
    }

    /// Units that are known here.
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// A region's index.
    pub fn region(&self, name: &RegionName) -> Option<usize> {
        self.regions.iter().position(|region| region == name)
    }

    /// A set of regions by their names, ascending.
    pub fn names(&self, set: Set) -> Vec<RegionName> {
        set.iter().filter_map(|region| self.regions.get(region).cloned()).collect()
    }

    fn set<'a>(&self, names: impl IntoIterator<Item = &'a RegionName>) -> Set {
        names.into_iter().filter_map(|name| self.region(name)).collect()
    }

    /// A node measured the round trip from its region to another.
    pub fn measured(&mut self, a: usize, b: usize, ms: f64) {
        self.round_trips.measured(a, b, ms);
    }

    /// A node told how much room it has, bytes; of several in a region the least counts, by the last that each told.
    pub fn room(&mut self, region: usize, bytes: f64) {
        if let Some(free) = self.free.get_mut(region) {
            *free = bytes;
        }
    }

    /// A node told what it counted since it told last, perhaps nothing.
    pub fn counted(&mut self, now: u64, rules: &Rules, node: usize, counts: &[Counted]) {
        let seconds = seconds(now);
        self.demand.told(seconds, node);
        for counted in counts {
            let Some(rule) = rules.find(&counted.scope) else { continue };
            if rule.placing.mode != Mode::Follow || usize::from(counted.region) >= self.regions.len() {
                continue; // whatever its use, it stays
            }
            let unit = rule.placing.unit(&counted.scope);
            if self.demand.add(seconds, &unit, rule.placing.half_life, counted) {
                self.know(now, unit, &counted.scope);
            }
        }
    }

    /// A record was decided and adopted.
    pub fn adopted(&mut self, now: u64, rules: &Rules, record: &StoredRecord) {
        let name = &record.scope.name;
        let Some(rule) = rules.find(name) else { return };
        let unit = rule.placing.unit(name);
        if record.dropped {
            self.settled.remove(name);
            self.left(&unit, name);
            return;
        }
        if rule.placing.mode != Mode::Follow {
            return;
        }
        self.know(now, unit.clone(), name);
        if record.goal.is_some() || !record.members.is_stable() {
            return;
        }
        let serving = self.set(&record.members.serving);
        let before = self.settled.insert(name.clone(), serving);
        let Some(known) = self.units.get_mut(&unit) else { return };
        // Of a scope whose past is not known its last move is taken to be now: it stays too long rather than too short.
        if before != Some(serving) && known.history.last() != Some(now) {
            known.history.changed(now);
        }
        if let Some((from, to, _)) = known.begun.take() {
            self.budgets.end(from, to);
        }
    }

    fn know(&mut self, now: u64, unit: Unit, scope: &ScopeName) {
        if let Some(known) = self.units.get_mut(&unit) {
            if known.scopes.len() < GROUP_SCOPES && !known.scopes.contains(scope) {
                known.scopes.insert(scope.clone());
            }
            return;
        }
        if self.units.len() >= DEMAND_UNITS {
            return; // it stays where it is until another is forgotten
        }
        let scopes = BTreeSet::from([scope.clone()]);
        // Not all at once after a start: what comes first is looked at first, one period later.
        let due = now + self.knobs.period;
        self.due.insert((due, unit.clone()));
        self.units.insert(unit, Known { scopes, due, ..Known::default() });
    }

    fn left(&mut self, unit: &Unit, scope: &ScopeName) {
        let Some(known) = self.units.get_mut(unit) else { return };
        known.scopes.remove(scope);
        if known.scopes.is_empty() {
            self.forget_unit(unit);
        }
    }

    fn forget_unit(&mut self, unit: &Unit) {
        if let Some(known) = self.units.remove(unit) {
            self.due.remove(&(known.due, unit.clone()));
            if let Some((from, to, _)) = known.begun {
                self.budgets.end(from, to);
            }
        }
    }

    /// The next unit that is due, at most one for each call, and its scopes; it is due again a period later.
    pub fn next_due(&mut self, now: u64) -> Option<(Unit, Vec<ScopeName>)> {
        let (due, unit) = self.due.first().filter(|(due, _)| *due <= now)?.clone();
        self.due.remove(&(due, unit.clone()));
        let known = self.units.get_mut(&unit)?;
        known.due = now + self.knobs.period;
        let scopes = known.scopes.iter().cloned().collect();
        let again = (known.due, unit.clone());
        self.due.insert(again);
        if let Some((from, to, _)) = known.begun.take_if(|(_, _, begun)| now - *begun > MOVE_TIME_MS) {
            self.budgets.end(from, to);
        }
        Some((unit, scopes))
    }

    /// Time goes by: budgets fill up, and what nobody uses any more is forgotten.
    pub fn tick(&mut self, now: u64) {
        let passed = now.saturating_sub(self.refilled);
        if passed < self.knobs.period {
            return;
        }
        self.refilled = now;
        self.budgets.refill(passed as f64 / 1000.0);
        self.demand.forget(seconds(now));
        let gone = |(unit, known): (&Unit, &Known)| {
            let used = self.demand.get(unit).is_some();
            let placed = known.scopes.iter().any(|scope| self.settled.contains_key(scope));
            (!used && !placed && known.begun.is_none()).then(|| unit.clone())
        };
        let gone: Vec<Unit> = self.units.iter().filter_map(gone).collect();
        gone.iter().for_each(|unit| self.forget_unit(unit));
    }

    /// Decides about a unit that this node is the steward of. `bytes` is what its scopes take in one region.
    pub fn decide(&mut self, now: u64, unit: &Unit, records: &Records, bytes: f64) -> Option<Move> {
        let facts = self.facts(now, unit, records, bytes)?;
        let situation = facts.situation(now);
        let to = match decide(&situation, &self.round_trips, &self.budgets, &self.knobs) {
            Decision::Move { to, .. } => to,
            // Scopes of a group that are elsewhere come to where the group is.
            Decision::Stay if facts.may_move && facts.scattered => facts.current,
            Decision::Stay => return None,
        };
        let why = evaluate(&situation, &self.round_trips, &self.budgets, &self.knobs);
        let goals: Vec<(ScopeName, Vec<RegionName>)> = facts
            .scopes
            .iter()
            .filter(|(_, serving)| self.set(serving) != to)
            .map(|(scope, serving)| (scope.clone(), self.goal(serving, to, &facts.load)))
            .collect();
        self.budgets.begin(&self.round_trips, facts.current, to, bytes);
        if let Some(known) = self.units.get_mut(unit) {
            known.begun = Some((facts.current, to, now));
        }
        Some(Move { unit: unit.clone(), goals, why })
    }

    /// What would be decided about a unit now, and why. Changes nothing.
    pub fn explain(&self, now: u64, unit: &Unit, records: &Records, bytes: f64) -> Option<Explanation> {
        let facts = self.facts(now, unit, records, bytes)?;
        let mut why = evaluate(&facts.situation(now), &self.round_trips, &self.budgets, &self.knobs);
        why.next_evaluation = self.units.get(unit).map_or(now + self.knobs.period, |known| known.due);
        Some(why)
    }

    /// A move that was decided here does not come about; it is decided anew when the unit is due.
    pub fn failed(&mut self, unit: &Unit) {
        let begun = self.units.get_mut(unit).and_then(|known| known.begun.take());
        if let Some((from, to, _)) = begun {
            self.budgets.end(from, to);
        }
    }

    /// How old each region's counters are, milliseconds.
    pub fn ages(&self, now: u64) -> Vec<Option<u64>> {
        let ages = self.demand.ages(seconds(now), &self.homes, self.regions.len());
        ages.into_iter().map(|age| age.map(|seconds| u64::from(seconds) * 1000)).collect()
    }

    /// The regions of a goal in order: those that stay first, as they were, then those with more requests.
    fn goal(&self, serving: &[RegionName], to: Set, load: &Load) -> Vec<RegionName> {
        let stays = |region: &&RegionName| self.region(region).is_some_and(|region| to.has(region));
        let mut goal: Vec<RegionName> = serving.iter().filter(stays).cloned().collect();
        let mut new: Vec<usize> = to.without(self.set(&goal)).iter().collect();
        let requests =
            |region: &usize| load.by_region.get(*region).map_or(0.0, |used: &Use| used.reads + used.writes);
        new.sort_by(|a, b| requests(b).total_cmp(&requests(a)));
        goal.extend(new.into_iter().filter_map(|region| self.regions.get(region).cloned()));
        goal
    }

    fn facts(&self, now: u64, unit: &Unit, records: &Records, bytes: f64) -> Option<Facts> {
        let known = self.units.get(unit);
        let mut scopes: Vec<(ScopeName, Vec<RegionName>)> = Vec::new();
        let (mut frozen, mut under_way) = (false, known.is_some_and(|known| known.begun.is_some()));
        let one = match unit {
            Unit::Scope(name) if known.is_none() => Some(name),
            _ => None,
        };
        for name in known.iter().flat_map(|known| &known.scopes).chain(one) {
            let Some(record) = records.record(name) else { continue };
            if let Some(stored) = records.stored(name) {
                frozen |= stored.hold != Hold::Free;
                under_way |= stored.goal.is_some() || !stored.members.is_stable();
            }
            scopes.push((name.clone(), record.serving));
        }
        let placing = records.rules().find(&scopes.first()?.0)?.placing.clone();
        if placing.mode != Mode::Follow {
            return None;
        }
        // Where most of them are.
        let mut places: BTreeMap<Set, usize> = BTreeMap::new();
        for (_, serving) in &scopes {
            *places.entry(self.set(serving)).or_default() += 1;
        }
        let current = places.iter().max_by_key(|(_, count)| **count).map(|(set, _)| *set)?;
        let (rates, (read_bytes, write_bytes)) = self.used(now, unit, &placing);
        let load = Load { by_region: rates.by_region, bytes, read_bytes, write_bytes };
        let bounds = Bounds {
            allowed: self.set(&placing.allowed),
            pins: self.set(&placing.pins),
            least: placing.min_regions,
            most: placing.max_regions,
        };
        Some(Facts {
            current,
            bounds: bounds.with_room(current, &self.free, bytes),
            ages: self.ages(now),
            seconds_seen: rates.seconds,
            history: known.map(|known| known.history.clone()).unwrap_or_default(),
            scattered: places.len() > 1,
            may_move: !frozen && !under_way,
            load,
            scopes,
            placing: std::sync::Arc::clone(&placing),
            frozen,
            under_way,
        })
    }

    fn used(&self, now: u64, unit: &Unit, placing: &Placing) -> (Rates, (f64, f64)) {
        let (seconds, regions) = (seconds(now), self.regions.len());
        match self.demand.get(unit) {
            Some(access) => (access.rates(seconds, regions), access.mean_bytes(seconds)),
            None => {
                let none = UnitAccess::new(seconds, placing.half_life);
                (none.rates(seconds, regions), none.mean_bytes(seconds))
            }
        }
    }
}

/// Everything about a unit that a decision needs.
struct Facts {
    current: Set,
    load: Load,
    seconds_seen: f64,
    ages: Vec<Option<u64>>,
    bounds: Bounds,
    placing: std::sync::Arc<Placing>,
    history: History,
    frozen: bool,
    under_way: bool,
    /// Its scopes and the regions that serve them.
    scopes: Vec<(ScopeName, Vec<RegionName>)>,
    /// Not all are where most are.
    scattered: bool,
    may_move: bool,
}

impl Facts {
    fn situation(&self, now: u64) -> Situation<'_> {
        Situation {
            now,
            current: self.current,
            load: &self.load,
            seconds_seen: self.seconds_seen,
            ages: &self.ages,
            bounds: self.bounds,
            prices: &self.placing.prices,
            history: &self.history,
            frozen: self.frozen,
            under_way: self.under_way,
        }
    }
}

fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "a failed assumption of a test is a failed test"
    )]
    use super::*;
    use crate::decision::Blocker;
    use crate::regions::Regions;

    const MINUTE: u64 = 60_000;

    const FILE: &str = r#"
[[region]]
name = "dallas"
place = "Dallas"
[[region]]
name = "frankfurt"
place = "Frankfurt"
[[region]]
name = "tokyo"
place = "Tokyo"
[[rtt]]
between = ["dallas", "frankfurt"]
ms = 120
[[rtt]]
between = ["dallas", "tokyo"]
ms = 140
[[rtt]]
between = ["frankfurt", "tokyo"]
ms = 230
[[rule]]
name = "still"
pattern = "still/**"
kind = "register"
regions = ["dallas"]
[[rule]]
name = "together"
pattern = "group/**"
kind = "register"
mode = "follow"
min_regions = 1
max_regions = 1
regions = ["frankfurt"]
with = "g"
[[rule]]
name = "follow"
pattern = "**"
kind = "register"
mode = "follow"
min_regions = 1
max_regions = 1
regions = ["frankfurt"]
"#;

    struct World {
        steward: Steward,
        records: Records,
        now: u64,
    }

    impl World {
        fn new() -> Self {
            let regions = Regions::parse("test", FILE).unwrap();
            let names = regions.regions().iter().map(|region| region.name.clone()).collect();
            let steward = Steward::new(names, vec![0, 1, 2], RoundTrips::of(&regions), Knobs::default(), 0);
            Self { steward, records: Records::new(regions.rules().clone()), now: 0 }
        }

        /// A minute in which a scope is read 60 times from a region, and every node tells what it counted.
        fn minute(&mut self, scope: &str, region: u8) {
            self.now += MINUTE;
            let rules = self.records.rules().clone();
            for node in 0..3 {
                let counted = (node == 1).then(|| Counted {
                    scope: name(scope),
                    region,
                    reads: 60,
                    writes: 6,
                    read_bytes: 12_000,
                    write_bytes: 600,
                });
                self.steward.counted(self.now, &rules, node, counted.as_slice());
            }
            self.steward.tick(self.now);
        }

        fn decide(&mut self) -> Vec<Move> {
            let mut moves = Vec::new();
            while let Some((unit, _)) = self.steward.next_due(self.now) {
                moves.extend(self.steward.decide(self.now, &unit, &self.records, 1e4));
            }
            moves
        }

        /// The directory and the nodes carry a move out.
        fn arrive(&mut self, moves: &Move) {
            for (scope, goal) in &moves.goals {
                let implied = self.records.record(scope).unwrap();
                let mut record = StoredRecord::of(&implied).bound_for(Some(goal.clone()));
                for step in [true, false] {
                    if !step {
                        record.members.epoch += 1;
                        record.members.serving.clone_from(goal);
                        record.goal = None;
                    }
                    self.records.adopt(record.clone());
                    self.steward.adopted(self.now, self.records.rules(), &record);
                }
            }
        }
    }

    fn name(name: &str) -> ScopeName {
        ScopeName::new(name).unwrap()
    }

    fn region(name: &str) -> RegionName {
        RegionName::new(name).unwrap()
    }

    #[test]
    fn a_scope_goes_where_it_is_used_and_stays_for_its_dwell() {
        let mut world = World::new();
        let mut moves = Vec::new();
        for _ in 0..6 {
            world.minute("a/b", 2);
            world.minute("still/x", 2);
            moves.extend(world.decide());
        }
        assert_eq!(moves.len(), 1, "it is not decided again while it is carried out");
        assert_eq!(moves[0].goals, [(name("a/b"), vec![region("tokyo")])]);
        assert!((moves[0].why.load.read_bytes - 200.0).abs() < 0.1 && moves[0].why.blockers.is_empty());
        world.arrive(&moves[0]);
        let arrived = world.now;
        // Now it is used from Dallas only; an hour it stays.
        let mut next = Vec::new();
        while next.is_empty() && world.now < arrived + 300 * MINUTE {
            world.minute("a/b", 0);
            next = world.decide();
        }
        assert!(next[0].goals == [(name("a/b"), vec![region("dallas")])], "{next:?}");
        assert!((60 * MINUTE..70 * MINUTE).contains(&(world.now - arrived)), "{}", world.now - arrived);
    }

    #[test]
    fn a_move_under_way_or_a_hold_is_named_and_a_failed_move_is_decided_again() {
        let mut world = World::new();
        let mut moves = Vec::new();
        while moves.is_empty() {
            world.minute("a/b", 2);
            moves = world.decide();
        }
        world.steward.failed(&moves[0].unit);
        assert_eq!(world.decide(), [], "not before it is due");
        (0..6).for_each(|_| world.minute("a/b", 2));
        assert_eq!(world.decide().len(), 1);

        let implied = world.records.record(&name("a/b")).unwrap();
        let bound = StoredRecord::of(&implied).bound_for(Some(vec![region("tokyo")])).held(Hold::Pinned);
        world.records.adopt(bound.clone());
        world.steward.adopted(world.now, &world.records.rules().clone(), &bound);
        let unit = Unit::Scope(name("a/b"));
        let why = world.steward.explain(world.now, &unit, &world.records, 1e4).unwrap();
        assert!(why.blockers.contains(&Blocker::UnderWay) && why.blockers.contains(&Blocker::Frozen));
    }

    #[test]
    fn a_silent_region_that_serves_holds_the_scope() {
        let mut world = World::new();
        let rules = world.records.rules().clone();
        for _ in 0..20 {
            world.now += MINUTE;
            let counted = Counted {
                scope: name("a/b"),
                region: 2,
                reads: 60,
                writes: 0,
                read_bytes: 0,
                write_bytes: 0,
            };
            world.steward.counted(world.now, &rules, 2, &[counted]); // Frankfurt serves, and tells nothing
            assert_eq!(world.decide(), []);
        }
        let unit = Unit::Scope(name("a/b"));
        let why = world.steward.explain(world.now, &unit, &world.records, 1e4).unwrap();
        assert_eq!(why.blockers, [Blocker::Counters { region: 1, age: None }]);
    }

    #[test]
    fn a_group_is_placed_by_its_use_together_and_moves_as_one() {
        let mut world = World::new();
        let mut moves = Vec::new();
        for _ in 0..4 {
            world.minute("group/a", 2);
            world.minute("group/b", 2);
            moves.extend(world.decide());
        }
        assert_eq!(moves.len(), 1);
        let tokyo = vec![region("tokyo")];
        assert_eq!(moves[0].goals, [(name("group/a"), tokyo.clone()), (name("group/b"), tokyo.clone())]);
        world.arrive(&moves[0]);
        // A scope of the group that was not used before comes after, whatever the dwell says of the others.
        for _ in 0..6 {
            world.minute("group/c", 2);
        }
        let moves = world.decide();
        assert_eq!(moves[0].goals, [(name("group/c"), tokyo)]);
    }

    #[test]
    fn what_is_used_no_more_is_forgotten_and_what_was_dropped_at_once() {
        let mut world = World::new();
        (0..3).for_each(|_| world.minute("a/b", 2));
        let (unit, rules) = (Unit::Scope(name("a/b")), world.records.rules().clone());
        assert_eq!(world.steward.units(), 1);
        world.now += 20 * 30 * MINUTE;
        world.steward.tick(world.now);
        assert_eq!((world.steward.units(), world.steward.next_due(u64::MAX / 2)), (0, None));
        world.minute("a/b", 2);
        let implied = world.records.record(&name("a/b")).unwrap();
        world.steward.adopted(world.now, &rules, &StoredRecord::of(&implied).dropped());
        assert_eq!((world.steward.units(), world.steward.next_due(u64::MAX / 2)), (0, None));
        assert!(world.steward.explain(world.now, &unit, &world.records, 0.0).is_some(), "as its rule says");
    }
}
