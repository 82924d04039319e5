//! Where each policy has a scope in each step, and what that comes to.

use std::time::Duration;

use tropism_placement::{
    Bounds, Budgets, Decision, Goal, History, Knobs, Load, Prices, Pricing, RoundTrips, Set, Situation,
    UnitAccess, decide, solve,
};

use crate::workload::{READ_BYTES, STEP_MS, STEP_SECONDS, Trace, WRITE_BYTES};

/// Milliseconds of a column of read times.
const COLUMN_MS: f64 = 2.0;
/// Columns: up to 1 s.
const COLUMNS: usize = 500;

/// What is the same for all scopes.
pub(crate) struct World {
    pub(crate) round_trips: RoundTrips,
    pub(crate) bounds: Bounds,
    pub(crate) start: Set,
    pub(crate) prices: Prices,
    pub(crate) knobs: Knobs,
    pub(crate) half_life: Duration,
}

/// How regions are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Knowing the future: the cheapest path of sets.
    Optimum,
    /// What is built.
    Ours,
    /// The best for the first hour, for ever.
    Pinned,
    /// The best set for the whole time, known in advance.
    BestStatic,
    /// The best for the last five minutes, every five minutes.
    Greedy,
    /// One region for all scopes.
    OneRegion(usize),
    /// Every region.
    Everywhere,
}

impl Policy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Optimum => "offline optimum",
            Self::Ours => "follow (ours)",
            Self::Pinned => "pinned after an hour",
            Self::BestStatic => "best static",
            Self::Greedy => "greedy",
            Self::OneRegion(_) => "one region for all",
            Self::Everywhere => "everywhere",
        }
    }
}

/// What came of a policy.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) reads: f64,
    pub(crate) local: f64,
    pub(crate) waited_ms: f64,
    columns: Vec<f64>,
    pub(crate) dollars: f64,
    pub(crate) copies: f64,
    /// Bytes between regions.
    pub(crate) wan: f64,
    /// Bytes kept, times steps.
    pub(crate) stored: f64,
    /// Moves back to a set that was left within a day.
    pub(crate) returns: f64,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            reads: 0.0,
            local: 0.0,
            waited_ms: 0.0,
            columns: vec![0.0; COLUMNS],
            dollars: 0.0,
            copies: 0.0,
            wan: 0.0,
            stored: 0.0,
            returns: 0.0,
        }
    }
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.local += other.local;
        self.waited_ms += other.waited_ms;
        self.dollars += other.dollars;
        self.copies += other.copies;
        self.wan += other.wan;
        self.stored += other.stored;
        self.returns += other.returns;
        self.columns.iter_mut().zip(&other.columns).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// Milliseconds that 99 of 100 reads took at most.
    pub(crate) fn p99(&self) -> f64 {
        let mut left = self.reads * 0.01;
        for (column, reads) in self.columns.iter().enumerate().rev() {
            left -= reads;
            if left < 0.0 {
                return column as f64 * COLUMN_MS;
            }
        }
        0.0
    }

    /// A scope's sets by step, as they were paid for.
    pub(crate) fn of(world: &World, trace: &Trace, sets: &[Set]) -> Self {
        let mut outcome = Self::default();
        let mut before = sets[0];
        for (step, set) in sets.iter().enumerate() {
            let load = load(world, trace, step..step + 1);
            let pricing = Pricing::new(&load, &world.round_trips, &world.prices);
            let made = set.without(before).len() as f64;
            outcome.copies += made;
            outcome.dollars += pricing.rate(*set) * STEP_SECONDS + pricing.copies(before, *set);
            outcome.wan += made * trace.bytes;
            outcome.stored += set.len() as f64 * trace.bytes;
            for requests in &trace.steps[step] {
                let (reads, writes) = (f64::from(requests.reads), f64::from(requests.writes));
                let here = set.has(requests.region);
                let ms = if here { 0.0 } else { pricing.nearest(requests.region, *set) };
                outcome.reads += reads;
                outcome.local += if here { reads } else { 0.0 };
                outcome.waited_ms += reads * ms;
                outcome.columns[((ms / COLUMN_MS) as usize).min(COLUMNS - 1)] += reads;
                outcome.wan += writes * WRITE_BYTES * (set.len() as f64 - 1.0);
                outcome.wan += if here { 0.0 } else { reads * READ_BYTES + writes * WRITE_BYTES };
            }
            before = *set;
        }
        outcome
    }
}

fn load(world: &World, trace: &Trace, steps: std::ops::Range<usize>) -> Load {
    Load {
        by_region: trace.rates(steps, world.round_trips.regions()),
        bytes: trace.bytes,
        read_bytes: READ_BYTES,
        write_bytes: WRITE_BYTES,
    }
}

/// The sets of a scope by step. The first is where it began; what is decided in a step holds from the next.
pub(crate) fn sets(world: &World, trace: &Trace, policy: Policy) -> Vec<Set> {
    let steps = trace.steps.len();
    match policy {
        Policy::Optimum => optimum(world, trace),
        Policy::Ours => ours(world, trace),
        Policy::OneRegion(region) => vec![Set::one(region); steps],
        Policy::Everywhere => vec![world.bounds.allowed; steps],
        Policy::BestStatic => vec![cheapest(world, trace, 0..steps); steps],
        Policy::Pinned => {
            let hour = steps.min(12);
            let pinned = cheapest(world, trace, 0..hour);
            (0..steps).map(|step| if step < hour { world.start } else { pinned }).collect()
        }
        Policy::Greedy => {
            let chosen =
                |step: usize| if step == 0 { world.start } else { cheapest(world, trace, step - 1..step) };
            (0..steps).map(chosen).collect()
        }
    }
}

/// The cheapest set for some steps, copies for nothing.
fn cheapest(world: &World, trace: &Trace, steps: std::ops::Range<usize>) -> Set {
    let load = load(world, trace, steps);
    let pricing = Pricing::new(&load, &world.round_trips, &world.prices);
    let goal = Goal { from: Set::default(), seconds: 1.0, margin: 0.0 };
    solve(&pricing, &world.bounds, &goal).map_or(world.start, |(set, _)| set)
}

/// The product's own accounting and decisions.
fn ours(world: &World, trace: &Trace) -> Vec<Set> {
    let regions = world.round_trips.regions();
    let mut access = UnitAccess::new(0, world.half_life);
    let mut history = History::default();
    let budgets = Budgets::new(regions, 1e12); // what one scope may do; many at once are not looked at here
    let ages = vec![Some(0); regions];
    let mut current = world.start;
    let mut sets = Vec::with_capacity(trace.steps.len());
    for (step, requests) in trace.steps.iter().enumerate() {
        sets.push(current);
        let now = (step as u32 + 1) * STEP_SECONDS as u32;
        for requests in requests {
            access.add(now, requests.region, requests.reads.into(), requests.writes.into());
        }
        let rates = access.rates(now, regions);
        let load = Load {
            by_region: rates.by_region,
            bytes: trace.bytes,
            read_bytes: READ_BYTES,
            write_bytes: WRITE_BYTES,
        };
        let situation = Situation {
            now: (step as u64 + 1) * STEP_MS,
            current,
            load: &load,
            seconds_seen: rates.seconds,
            ages: &ages,
            bounds: world.bounds,
            prices: &world.prices,
            history: &history,
            frozen: false,
            under_way: false,
        };
        if let Decision::Move { to, .. } = decide(&situation, &world.round_trips, &budgets, &world.knobs) {
            history.changed(situation.now);
            current = to;
        }
    }
    sets
}

/// The cheapest path through all sets, by dynamic program. To drop a region is free and to add one costs a copy, so the
/// cheapest way from any set to any other goes down to what both have and up again, a region at a time.
fn optimum(world: &World, trace: &Trace) -> Vec<Set> {
    let Bounds { allowed, least, most, .. } = world.bounds;
    let mut all: Vec<Set> = (0..1_u64 << world.round_trips.regions())
        .map(Set)
        .filter(|set| allowed.includes(*set) && set.len() <= most)
        .collect();
    all.sort_by_key(|set| (set.len(), *set));
    let mut index = vec![usize::MAX; 1 << world.round_trips.regions()];
    all.iter().enumerate().for_each(|(i, set)| index[set.0 as usize] = i);
    // For each set, those with one region more.
    let larger: Vec<Vec<usize>> = all
        .iter()
        .map(|set| allowed.without(*set).iter().map(|r| index[set.with(Set::one(r)).0 as usize]).collect())
        .collect();

    let empty = load(world, trace, 0..1);
    let copy = Pricing::new(&empty, &world.round_trips, &world.prices).copies(Set::default(), Set::one(0));
    let mut paid = vec![f64::INFINITY; all.len()];
    paid[index[world.start.0 as usize]] = 0.0;
    let mut came_from: Vec<Vec<u16>> = Vec::with_capacity(trace.steps.len());
    for step in 0..trace.steps.len() {
        let mut from: Vec<u16> = (0..all.len() as u16).collect();
        if step > 0 {
            for i in (0..all.len()).rev() {
                for more in larger[i].iter().copied().filter(|more| *more != usize::MAX) {
                    if paid[more] < paid[i] {
                        (paid[i], from[i]) = (paid[more], from[more]);
                    }
                }
            }
            for i in 0..all.len() {
                for more in larger[i].iter().copied().filter(|more| *more != usize::MAX) {
                    if paid[i] + copy < paid[more] {
                        (paid[more], from[more]) = (paid[i] + copy, from[i]);
                    }
                }
            }
        }
        let load = load(world, trace, step..step + 1);
        let pricing = Pricing::new(&load, &world.round_trips, &world.prices);
        for (i, set) in all.iter().enumerate() {
            // A set that is too small is passed through on the way, and nobody stays there.
            if set.len() >= least {
                paid[i] += pricing.rate(*set) * STEP_SECONDS;
            }
        }
        came_from.push(from);
        let small = all.iter().take_while(|set| set.len() < least).count();
        paid[..small].fill(f64::INFINITY);
    }
    let cheapest = paid.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
    let mut at = cheapest;
    let mut path: Vec<Set> = Vec::with_capacity(trace.steps.len());
    for from in came_from.iter().rev() {
        path.push(all[at]);
        at = from[at].into();
    }
    path.reverse();
    path
}

/// Moves back to a set that was left within a day: by the sun they are right, under constant load there are none.
pub(crate) fn returns(sets: &[Set], day: usize) -> f64 {
    let mut left: Vec<(usize, Set)> = Vec::new();
    let mut returns = 0.0;
    for (step, pair) in sets.windows(2).enumerate() {
        if pair[0] != pair[1] {
            left.push((step, pair[0]));
            let back = left.iter().any(|(at, set)| *set == pair[1] && step - at < day);
            returns += f64::from(u8::from(back));
        }
    }
    returns
}
