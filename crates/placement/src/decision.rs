//! Whether a scope moves: when a cheaper set of regions is worth going to, what holds it back, and why.
//!
//! [`evaluate`] is asked every [`Knobs::period`] and answers with an [`Explanation`], which is all there is to know: what it
//! was computed from, what other sets cost, what was decided and what blocks it. Executing the decision is another's work.

use std::collections::VecDeque;

use crate::cost::{Bounds, Goal, Load, Price, Pricing, RoundTrips, Set, Use, solve};
use crate::placing::Prices;

/// Alternatives that an explanation keeps: what a person reads.
pub const EXPLAINED_ALTERNATIVES: usize = 8;
/// Changes of one scope within a day beyond which it is flapping. Six, as first simulated, held back busy scopes that are used
/// from everywhere, and cost a third more than the optimum.
pub const CHANGES_PER_DAY: usize = 12;
/// Regions that one region learns scopes from others at once: each takes memory and a share of its disk.
pub const INBOUND_LEARNERS: u32 = 32;
/// Share of a link between regions that copies may take.
pub const COPY_SHARE: f64 = 0.2;
/// Seconds of unused copy budget that are kept.
const BUDGET_SECONDS: f64 = 3600.0;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// How eagerly scopes move. The values were found by simulation (`docs/decisions/0016-where-scopes-are.md`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Knobs {
    /// Within what time a move pays back, milliseconds.
    pub horizon: u64,
    /// What is added to the price of copies, and half of it asked of the gain, as a share.
    pub margin: f64,
    /// How long a scope stays after a change, milliseconds.
    pub dwell: u64,
    /// Requests that a move has to be based on.
    pub evidence: f64,
    /// From one evaluation to the next, milliseconds.
    pub period: u64,
    /// Oldest counters that count, milliseconds.
    pub fresh: u64,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            horizon: 4 * 60 * MINUTE_MS,
            margin: 0.2,
            dwell: 60 * MINUTE_MS,
            evidence: 10.0,
            period: 5 * MINUTE_MS,
            fresh: 10 * MINUTE_MS,
        }
    }
}

/// When one scope's regions changed, and how long it now stays after a change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Milliseconds, ascending; the last [`CHANGES_PER_DAY`].
    changes: VecDeque<u64>,
    /// How often the dwell was doubled.
    doubled: u32,
}

impl History {
    /// The regions changed.
    pub fn changed(&mut self, now: u64) {
        if self.changes.back().is_some_and(|last| now.saturating_sub(*last) >= DAY_MS) {
            self.doubled = 0;
        }
        if self.changes.len() == CHANGES_PER_DAY {
            self.changes.pop_front();
        }
        self.changes.push_back(now);
        if self.flapping(now) {
            self.doubled = (self.doubled + 1).min(16); // a day is reached long before
        }
    }

    /// The last change, milliseconds.
    pub fn last(&self) -> Option<u64> {
        self.changes.back().copied()
    }

    /// Whether there were as many changes within a day as are allowed.
    pub fn flapping(&self, now: u64) -> bool {
        self.changes.len() == CHANGES_PER_DAY
            && self.changes.front().is_some_and(|first| now.saturating_sub(*first) < DAY_MS)
    }

    /// Until when it stays, milliseconds; None: it may move.
    fn stays(&self, now: u64, dwell: u64) -> Option<u64> {
        let dwell = dwell.saturating_mul(1 << self.doubled).min(DAY_MS);
        self.last().map(|last| last.saturating_add(dwell)).filter(|until| now < *until)
    }
}

/// What moves may take, shared by all scopes.
#[derive(Debug, Clone, PartialEq)]
pub struct Budgets {
    /// Nothing moves: set by an operator.
    pub frozen: bool,
    regions: usize,
    /// Learners in each region.
    inbound: Vec<u32>,
    /// Bytes that may be copied, from each region to each.
    bytes: Vec<f64>,
    /// Bytes a second that each link carries.
    links: f64,
}

impl Budgets {
    /// For so many regions, with links of so many bytes a second; full.
    pub fn new(regions: usize, link_bytes_per_second: f64) -> Self {
        let full = link_bytes_per_second * COPY_SHARE * BUDGET_SECONDS;
        let bytes = vec![full; regions * regions];
        Self { frozen: false, regions, inbound: vec![0; regions], bytes, links: link_bytes_per_second }
    }

    /// Time went by.
    pub fn refill(&mut self, seconds: f64) {
        let full = self.links * COPY_SHARE * BUDGET_SECONDS;
        self.bytes
            .iter_mut()
            .for_each(|bytes| *bytes = (*bytes + self.links * COPY_SHARE * seconds).min(full));
    }

    /// What stands against copying to each of `to`, from the nearest of `from`. A copy larger than a full budget may begin
    /// when it is full: it would never fit.
    pub fn blocker(&self, round_trips: &RoundTrips, from: Set, to: Set, bytes: f64) -> Option<Blocker> {
        if self.frozen {
            return Some(Blocker::Frozen);
        }
        let full = self.links * COPY_SHARE * BUDGET_SECONDS;
        for region in to.without(from).iter() {
            if self.inbound.get(region).is_none_or(|learners| *learners >= INBOUND_LEARNERS) {
                return Some(Blocker::Learners { region });
            }
            let Some(source) = nearest(round_trips, region, from) else { continue };
            if self.bytes.get(source * self.regions + region).is_none_or(|left| *left < bytes.min(full)) {
                return Some(Blocker::Bytes { from: source, to: region });
            }
        }
        None
    }

    /// A move begins.
    pub fn begin(&mut self, round_trips: &RoundTrips, from: Set, to: Set, bytes: f64) {
        for region in to.without(from).iter() {
            if let Some(learners) = self.inbound.get_mut(region) {
                *learners += 1;
            }
            if let Some(source) = nearest(round_trips, region, from)
                && let Some(left) = self.bytes.get_mut(source * self.regions + region)
            {
                *left -= bytes;
            }
        }
    }

    /// Its copies are made, or given up.
    pub fn end(&mut self, from: Set, to: Set) {
        for region in to.without(from).iter() {
            if let Some(learners) = self.inbound.get_mut(region) {
                *learners = learners.saturating_sub(1);
            }
        }
    }
}

fn nearest(round_trips: &RoundTrips, region: usize, of: Set) -> Option<usize> {
    of.iter().min_by(|a, b| round_trips.ms(region, *a).total_cmp(&round_trips.ms(region, *b)))
}

/// Why a scope does not move although another set is cheaper, or why nothing was computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Blocker {
    /// A region that serves the scope has not told what it counted, or too long ago: silence is not zero.
    Counters {
        /// The region.
        region: usize,
        /// How old they are, milliseconds; None: it never told.
        age: Option<u64>,
    },
    /// It changed a short while ago.
    Dwell {
        /// Until when it stays, milliseconds.
        until: u64,
    },
    /// It changed too often within a day.
    Flapping {
        /// Until when it stays, milliseconds.
        until: u64,
    },
    /// Too few requests are nearer at the other set to tell that it is not chance.
    Evidence {
        /// How many there are.
        requests: f64,
        /// How many there must be.
        needed: f64,
    },
    /// The other set costs less, and not enough.
    Margin {
        /// What would be saved of the present price within the horizon, as a share, copies paid.
        gain: f64,
        /// What must be.
        needed: f64,
    },
    /// A move is under way.
    UnderWay,
    /// An operator holds all moves, or this scope.
    Frozen,
    /// A region takes in as many scopes as it may.
    Learners {
        /// The region.
        region: usize,
    },
    /// What may be copied between two regions is used up for now.
    Bytes {
        /// From there.
        from: usize,
        /// To there.
        to: usize,
    },
    /// No set of regions keeps all rules: pins, bounds and room contradict each other.
    NoSet,
}

/// Why a move was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The other set is cheaper by enough.
    Cheaper,
    /// The present one breaks the rule: pins, allowed regions or bounds changed.
    Rule,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Stay,
    /// Go there.
    Move {
        /// The regions that shall serve.
        to: Set,
        /// Why.
        reason: Reason,
    },
}

/// A set of regions and what it costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alternative {
    /// The regions.
    pub set: Set,
    /// By part.
    pub price: Price,
    /// Dollars over the horizon, regions that are added or dropped at the price of a copy and its margin.
    pub dollars: f64,
}

/// Everything that a decision was made from, and the decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// When, milliseconds.
    pub at: u64,
    /// What it was computed from: how the scope is used.
    pub load: Load,
    /// Likewise, what sets are allowed.
    pub bounds: Bounds,
    /// Likewise, prices.
    pub prices: Prices,
    /// Likewise, knobs.
    pub knobs: Knobs,
    /// Where the scope is, and what that costs.
    pub current: Alternative,
    /// The cheapest other sets, cheapest first, at most [`EXPLAINED_ALTERNATIVES`].
    pub alternatives: Vec<Alternative>,
    /// What was decided.
    pub decision: Decision,
    /// What stands against the cheapest set; several may.
    pub blockers: Vec<Blocker>,
    /// Whether the scope changed as often within a day as it may: an alarm.
    pub flapping: bool,
    /// When it is looked at next, milliseconds.
    pub next_evaluation: u64,
}

/// One scope, or scopes placed as one, as they are now.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// Milliseconds.
    pub now: u64,
    /// The regions that serve.
    pub current: Set,
    /// How it is used.
    pub load: &'a Load,
    /// Seconds that the rates of the load are made of.
    pub seconds_seen: f64,
    /// How old each region's counters are, milliseconds; None: it never told.
    pub ages: &'a [Option<u64>],
    /// What sets are allowed.
    pub bounds: Bounds,
    /// What is weighed against what.
    pub prices: &'a Prices,
    /// Its changes so far.
    pub history: &'a History,
    /// An operator holds it.
    pub frozen: bool,
    /// Its record is in the midst of a change.
    pub under_way: bool,
}

/// Decides whether the scope moves, without keeping why. The same as [`evaluate`], for very many scopes.
pub fn decide(
    situation: &Situation<'_>,
    round_trips: &RoundTrips,
    budgets: &Budgets,
    knobs: &Knobs,
) -> Decision {
    weigh(situation, round_trips, budgets, knobs, &mut Vec::new())
}

/// Decides whether the scope moves, and says why.
pub fn evaluate(
    situation: &Situation<'_>,
    round_trips: &RoundTrips,
    budgets: &Budgets,
    knobs: &Knobs,
) -> Explanation {
    let mut blockers = Vec::new();
    let decision = weigh(situation, round_trips, budgets, knobs, &mut blockers);
    let pricing = Pricing::new(situation.load, round_trips, situation.prices);
    let goal = goal(situation, knobs);
    let alternative = |set: Set| Alternative {
        set,
        price: pricing.price(if goal.from.is_empty() { set } else { goal.from }, set),
        dollars: goal.dollars(&pricing, set),
    };
    Explanation {
        at: situation.now,
        load: situation.load.clone(),
        bounds: situation.bounds,
        prices: *situation.prices,
        knobs: *knobs,
        current: alternative(situation.current),
        alternatives: nearby(&pricing, situation, &goal).into_iter().map(alternative).collect(),
        decision,
        blockers,
        flapping: situation.history.flapping(situation.now),
        next_evaluation: situation.now.saturating_add(knobs.period),
    }
}

fn goal(situation: &Situation<'_>, knobs: &Knobs) -> Goal {
    Goal { from: situation.current, seconds: knobs.horizon as f64 / 1000.0, margin: knobs.margin }
}

fn weigh(
    situation: &Situation<'_>,
    round_trips: &RoundTrips,
    budgets: &Budgets,
    knobs: &Knobs,
    blockers: &mut Vec<Blocker>,
) -> Decision {
    let pricing = Pricing::new(situation.load, round_trips, situation.prices);
    let goal = goal(situation, knobs);
    let current = situation.current;
    if situation.under_way {
        blockers.push(Blocker::UnderWay);
    }
    if situation.frozen {
        blockers.push(Blocker::Frozen);
    }
    let Some((best, dollars)) = solve(&pricing, &situation.bounds, &goal) else {
        blockers.push(Blocker::NoSet);
        return Decision::Stay;
    };
    if best == current {
        return Decision::Stay;
    }
    blockers.extend(budgets.blocker(round_trips, current, best, situation.load.bytes));
    if !situation.bounds.admit(current) {
        // The rule is above all that use says: no dwell, no evidence, and no counters are needed.
        let to = Decision::Move { to: best, reason: Reason::Rule };
        return if blockers.is_empty() { to } else { Decision::Stay };
    }

    for region in current.iter() {
        let age = situation.ages.get(region).copied().flatten();
        if age.is_none_or(|age| age > knobs.fresh) {
            blockers.push(Blocker::Counters { region, age });
        }
    }
    if let Some(until) = situation.history.stays(situation.now, knobs.dwell) {
        blockers.push(Blocker::Dwell { until });
    }
    if situation.history.flapping(situation.now) {
        let first = situation.history.changes.front().copied().unwrap_or_default();
        blockers.push(Blocker::Flapping { until: first.saturating_add(DAY_MS) });
    }
    let now = goal.dollars(&pricing, current);
    let (gain, needed) = ((now - dollars) / now, knobs.margin / 2.0);
    if !gain.is_finite() || gain <= needed {
        blockers.push(Blocker::Margin { gain: if gain.is_finite() { gain } else { 0.0 }, needed });
    }
    // What nobody comes nearer to is dropped for its price alone: there the requests that are not made are the evidence.
    let nearer = |region: &usize| pricing.nearest(*region, best) < pricing.nearest(*region, current);
    let rate = |region: usize| {
        situation.load.by_region.get(region).map_or(0.0, |used: &Use| used.reads + used.writes)
    };
    let gaining = (0..situation.load.by_region.len()).filter(nearer).map(rate);
    let requests = gaining.sum::<f64>() * situation.seconds_seen;
    if requests < knobs.evidence && !best.without(current).is_empty() {
        blockers.push(Blocker::Evidence { requests, needed: knobs.evidence });
    }
    if blockers.is_empty() { Decision::Move { to: best, reason: Reason::Cheaper } } else { Decision::Stay }
}

/// The cheapest other sets: the best of all, and what is one or two steps from it and from the present one.
fn nearby(pricing: &Pricing<'_>, situation: &Situation<'_>, goal: &Goal) -> Vec<Set> {
    let bounds = &situation.bounds;
    let mut sets: Vec<Set> = Vec::new();
    let best = solve(pricing, bounds, goal).map(|(best, _)| best);
    for start in [best, Some(situation.current)].into_iter().flatten() {
        sets.push(start);
        for add in bounds.allowed.without(start).iter() {
            sets.push(start.with(Set::one(add)));
            sets.extend(start.iter().map(|drop| start.with(Set::one(add)).without(Set::one(drop))));
        }
        sets.extend(start.iter().map(|drop| start.without(Set::one(drop))));
    }
    sets.sort_unstable();
    sets.dedup();
    sets.retain(|set| *set != situation.current && bounds.admit(*set));
    sets.sort_by(|a, b| goal.dollars(pricing, *a).total_cmp(&goal.dollars(pricing, *b)));
    sets.truncate(EXPLAINED_ALTERNATIVES);
    sets
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use std::time::Duration;

    use proptest::prelude::{prop_assert, proptest};

    use super::{
        Blocker, Budgets, CHANGES_PER_DAY, Decision, History, INBOUND_LEARNERS, Knobs, MINUTE_MS, Reason,
        Situation, decide, evaluate,
    };
    use crate::cost::{Bounds, Load, RoundTrips, Set, Use};
    use crate::{Prices, Regions, UnitAccess};

    const HOUR: u64 = 60 * MINUTE_MS;

    struct World {
        round_trips: RoundTrips,
        load: Load,
        prices: Prices,
        history: History,
        ages: Vec<Option<u64>>,
        budgets: Budgets,
        knobs: Knobs,
        bounds: Bounds,
    }

    /// Ten cities; everything is used from Tokyo (8).
    fn world() -> World {
        let regions = Regions::parse("ten", Regions::shipped("ten-cities").unwrap()).unwrap();
        let mut by_region = vec![Use::default(); 10];
        by_region[8] = Use { reads: 2.0, writes: 0.2 };
        World {
            round_trips: RoundTrips::of(&regions),
            load: Load { by_region, bytes: 1e6, read_bytes: 300.0, write_bytes: 150.0 },
            prices: Prices::default(),
            history: History::default(),
            ages: vec![Some(0); 10],
            budgets: Budgets::new(10, 1e8),
            knobs: Knobs::default(),
            bounds: Bounds { allowed: Set::first(10), pins: Set::default(), least: 2, most: 3 },
        }
    }

    /// In Frankfurt and London.
    fn situation(world: &World, now: u64) -> Situation<'_> {
        Situation {
            now,
            current: [3, 4].into_iter().collect(),
            load: &world.load,
            seconds_seen: 2000.0,
            ages: &world.ages,
            bounds: world.bounds,
            prices: &world.prices,
            history: &world.history,
            frozen: false,
            under_way: false,
        }
    }

    fn explain(world: &World, situation: &Situation<'_>) -> super::Explanation {
        let explained = evaluate(situation, &world.round_trips, &world.budgets, &world.knobs);
        assert_eq!(explained.decision, decide(situation, &world.round_trips, &world.budgets, &world.knobs));
        explained
    }

    #[test]
    fn a_scope_goes_to_who_uses_it_and_the_explanation_says_what_for() {
        let world = world();
        let explained = explain(&world, &situation(&world, 100 * HOUR));
        let Decision::Move { to, reason: Reason::Cheaper } = explained.decision else {
            panic!("{explained:?}")
        };
        assert!(to.has(8) && explained.blockers.is_empty() && !explained.flapping);
        assert_eq!(explained.alternatives[0].set, to);
        assert!(explained.alternatives.windows(2).all(|pair| pair[0].dollars <= pair[1].dollars));
        assert!(explained.current.price.latency > 0.0 && explained.current.price.copy == 0.0);
        assert!(explained.alternatives[0].price.latency == 0.0 && explained.alternatives[0].price.copy > 0.0);
        assert_eq!(explained.next_evaluation, 100 * HOUR + 5 * MINUTE_MS);
    }

    #[test]
    fn each_blocker_holds_a_scope_that_would_move() {
        let now = 100 * HOUR;
        type Break = fn(&mut Situation<'_>);
        type Holds = fn(&Blocker) -> bool;
        let cases: [(&str, Break, Holds); 6] = [
            ("under way", |s| s.under_way = true, |b| *b == Blocker::UnderWay),
            ("frozen", |s| s.frozen = true, |b| *b == Blocker::Frozen),
            ("evidence", |s| s.seconds_seen = 4.0, |b| matches!(b, Blocker::Evidence { .. })),
            ("silent", |s| s.ages = &[None; 10], |b| matches!(b, Blocker::Counters { region: 3, age: None })),
            ("stale", |s| s.ages = &[Some(11 * MINUTE_MS); 10], |b| matches!(b, Blocker::Counters { .. })),
            ("no set", |s| s.bounds.least = 11, |b| *b == Blocker::NoSet),
        ];
        for (what, spoil, holds) in cases {
            let world = world();
            let mut situation = situation(&world, now);
            spoil(&mut situation);
            let explained = explain(&world, &situation);
            assert_eq!(explained.decision, Decision::Stay, "{what}");
            assert!(explained.blockers.iter().any(holds), "{what}: {:?}", explained.blockers);
        }

        let mut dwelling = world();
        dwelling.history.changed(now - 59 * MINUTE_MS);
        let blockers = explain(&dwelling, &situation(&dwelling, now)).blockers;
        assert_eq!(blockers, [Blocker::Dwell { until: now + MINUTE_MS }]);
        let later = explain(&dwelling, &situation(&dwelling, now + MINUTE_MS));
        assert!(matches!(later.decision, Decision::Move { .. }));

        let mut held = world();
        held.budgets.frozen = true;
        assert_eq!(explain(&held, &situation(&held, now)).blockers, [Blocker::Frozen]);

        let mut poor = world();
        poor.load.by_region[8] = Use { reads: 0.02, writes: 0.0 };
        poor.load.bytes = 1e9;
        assert!(explain(&poor, &situation(&poor, now)).decision == Decision::Stay, "the copy costs more");
    }

    #[test]
    fn budgets_end_and_come_back() {
        let mut world = world();
        let (from, to) = (Set::one(3), Set::one(8));
        for _ in 0..INBOUND_LEARNERS {
            assert_eq!(world.budgets.blocker(&world.round_trips, from, to, 1.0), None);
            world.budgets.begin(&world.round_trips, from, to, 1.0);
        }
        let full = world.budgets.blocker(&world.round_trips, from, to, 1.0);
        assert_eq!(full, Some(Blocker::Learners { region: 8 }));
        world.budgets.end(from, to);
        assert_eq!(world.budgets.blocker(&world.round_trips, from, to, 1.0), None);
        world.budgets.begin(&world.round_trips, from, to, 1e12);
        world.budgets.end(from, to);
        let empty = world.budgets.blocker(&world.round_trips, from, to, 1.0);
        assert_eq!(empty, Some(Blocker::Bytes { from: 3, to: 8 }));
        world.budgets.refill(1e9);
        assert_eq!(
            world.budgets.blocker(&world.round_trips, from, to, 1e15),
            None,
            "a full budget begins any copy"
        );
    }

    #[test]
    fn a_scope_that_breaks_its_rule_moves_at_once() {
        let mut world = world();
        world.history.changed(100 * HOUR);
        let mut situation = situation(&world, 100 * HOUR);
        situation.bounds.pins = Set::one(0);
        situation.ages = &[None; 10];
        let explained = explain(&world, &situation);
        let Decision::Move { to, reason: Reason::Rule } = explained.decision else { panic!("{explained:?}") };
        assert!(to.has(0));
    }

    #[test]
    fn too_many_changes_in_a_day_wait_and_each_alarm_doubles_the_dwell() {
        let mut history = History::default();
        (0..CHANGES_PER_DAY as u64).for_each(|i| history.changed(i * HOUR));
        assert!(history.flapping(12 * HOUR) && !history.flapping(24 * HOUR));
        assert_eq!(history.stays(12 * HOUR, HOUR), Some(13 * HOUR), "two hours after the last at 11");
        let mut world = world();
        world.history = history.clone();
        let explained = explain(&world, &situation(&world, 14 * HOUR));
        assert!(explained.flapping);
        assert_eq!(explained.blockers, [Blocker::Flapping { until: 24 * HOUR }]);
        history.changed(200 * HOUR);
        assert_eq!(history.stays(200 * HOUR, HOUR), Some(201 * HOUR), "after a quiet day all is forgotten");
    }

    proptest! {
        #[test]
        fn constant_load_moves_a_scope_at_most_once(
            reads in proptest::collection::vec(0.0_f64..3.0, 10), writes in 0.0_f64..1.0,
            bytes in 10.0_f64..30.0, current in 1_u64..1024,
        ) {
            let mut world = world();
            world.load.bytes = bytes.exp2();
            let mut current: Set = Set(current).iter().take(5).collect();
            world.bounds = Bounds { least: 1, most: 5, ..world.bounds };
            let mut access = UnitAccess::new(0, Duration::from_secs(1800));
            let mut moves = 0;
            for step in 1..=144_u32 {
                let now = step * 300;
                for (region, reads) in reads.iter().enumerate() {
                    access.add(now, region, reads * 300.0, reads * writes * 300.0);
                }
                let mut load = world.load.clone();
                let rates = access.rates(now, 10);
                load.by_region = rates.by_region;
                let mut situation = situation(&world, u64::from(now) * 1000);
                situation.load = &load;
                situation.current = current;
                situation.seconds_seen = rates.seconds;
                if let Decision::Move { to, .. } =
                    decide(&situation, &world.round_trips, &world.budgets, &world.knobs)
                {
                    prop_assert!(world.bounds.admit(to));
                    current = to;
                    moves += 1;
                    world.history.changed(u64::from(now) * 1000);
                }
            }
            prop_assert!(moves <= 1, "{moves} moves");
        }
    }
}
