//! What it costs to have a scope in a set of regions, and which set costs least.
//!
//! One currency, dollars a second, for what clients wait, what crosses regions and what is stored. A set of regions is a
//! [`Set`], a mask over the regions in file order. Everything is a pure function of its arguments; of equally cheap sets the
//! one with fewer regions wins, then the one with the smaller mask, so that every node finds the same.

use crate::placing::Prices;
use crate::regions::{MAX_REGIONS, Regions};

/// Most allowed regions for which every set is looked at: 2.4 ms and 6 885 sets of up to 5.
pub const EXACT_REGIONS: usize = 16;
/// Largest sets for which every set is looked at.
pub const EXACT_REPLICAS: usize = 5;
/// Most steps of a local search: each makes the set cheaper, and more than this was never seen.
const MOST_STEPS: usize = 256;
/// Sets that a local search starts from, beside the present one: so none of 100 000 random instances was 2 % off.
const LOCAL_STARTS: usize = 16;
/// Step of round trips, in milliseconds: noise below it moves nothing.
pub const ROUND_TRIP_STEP_MS: f64 = 2.0;
/// Weight of a new measurement of a round trip in the smoothed one.
const ROUND_TRIP_WEIGHT: f64 = 0.1;
/// Seconds of the month that storage is paid for: 30 days.
const MONTH_SECONDS: f64 = 30.0 * 24.0 * 3600.0;

/// A set of regions: bit `i` is the region `i` of the regions file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Set(pub u64);

impl Set {
    /// The set of one region.
    pub fn one(region: usize) -> Self {
        debug_assert!(region < MAX_REGIONS, "a set has {MAX_REGIONS} regions");
        Self(1 << (region % MAX_REGIONS))
    }

    /// The first `count` regions.
    pub fn first(count: usize) -> Self {
        (0..count.min(MAX_REGIONS)).map(Self::one).fold(Self::default(), Self::with)
    }

    /// Whether the region is in it.
    pub fn has(self, region: usize) -> bool {
        region < MAX_REGIONS && self.0 >> region & 1 == 1
    }

    /// How many regions are in it.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether none is.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// With the regions of another set.
    #[must_use]
    pub fn with(self, other: Set) -> Self {
        Self(self.0 | other.0)
    }

    /// Without the regions of another set.
    #[must_use]
    pub fn without(self, other: Set) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all regions of another set are in it.
    pub fn includes(self, other: Set) -> bool {
        other.without(self).is_empty()
    }

    /// Its regions, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let next = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(next)
        })
    }
}

impl FromIterator<usize> for Set {
    fn from_iter<T: IntoIterator<Item = usize>>(regions: T) -> Self {
        regions.into_iter().map(Self::one).fold(Self::default(), Self::with)
    }
}

/// Round trips between regions as placement sees them: smoothed, and in steps of [`ROUND_TRIP_STEP_MS`] that change only
/// when the smoothed time is more than one step away.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundTrips {
    count: usize,
    /// Row by row: what is computed with, in milliseconds.
    stepped: Vec<f32>,
    /// Likewise, smoothed.
    smooth: Vec<f64>,
}

impl RoundTrips {
    /// Those of a regions file.
    pub fn of(regions: &Regions) -> Self {
        let times: Vec<Vec<f64>> = regions
            .places()
            .iter()
            .take(regions.regions().len())
            .map(|place| place.round_trips.clone())
            .collect();
        Self::new(&times)
    }

    /// A square table in milliseconds; what is missing or no time counts as 0.
    pub fn new(times: &[Vec<f64>]) -> Self {
        let count = times.len().min(MAX_REGIONS);
        let at = |a: usize, b: usize| times[a].get(b).copied().filter(|ms| ms.is_finite() && *ms >= 0.0);
        let smooth: Vec<f64> =
            (0..count * count).map(|i| at(i / count, i % count).unwrap_or_default()).collect();
        let stepped = smooth.iter().map(|ms| step(*ms)).collect();
        Self { count, stepped, smooth }
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.count
    }

    /// Takes a measured round trip, both ways. Returns whether what placement computes with has changed.
    pub fn measured(&mut self, a: usize, b: usize, ms: f64) -> bool {
        if a == b || a >= self.count || b >= self.count || !ms.is_finite() || ms < 0.0 {
            return false;
        }
        let mut changed = false;
        for at in [a * self.count + b, b * self.count + a] {
            self.smooth[at] += ROUND_TRIP_WEIGHT * (ms - self.smooth[at]);
            if (self.smooth[at] - f64::from(self.stepped[at])).abs() > ROUND_TRIP_STEP_MS {
                self.stepped[at] = step(self.smooth[at]);
                changed = true;
            }
        }
        changed
    }

    /// The round trip in milliseconds; 0 within a region.
    pub fn ms(&self, a: usize, b: usize) -> f64 {
        self.stepped.get(a * self.count + b).copied().unwrap_or_default().into()
    }
}

fn step(ms: f64) -> f32 {
    ((ms / ROUND_TRIP_STEP_MS).round() * ROUND_TRIP_STEP_MS) as f32
}

/// How a scope is used from one region.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Use {
    /// Reads a second that arrive there.
    pub reads: f64,
    /// Writes a second that arrive there.
    pub writes: f64,
}

/// What a scope costs by.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// By region of arrival, in file order.
    pub by_region: Vec<Use>,
    /// Its size in one region, in bytes.
    pub bytes: f64,
    /// Bytes of an answer.
    pub read_bytes: f64,
    /// Bytes of a change.
    pub write_bytes: f64,
}

/// What sets of regions are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Regions that may hold the scope and have room for it, those that hold it included.
    pub allowed: Set,
    /// Regions that must.
    pub pins: Set,
    /// Fewest, at least 1.
    pub least: usize,
    /// Most.
    pub most: usize,
}

impl Bounds {
    /// Whether a set keeps within them.
    pub fn admit(&self, set: Set) -> bool {
        self.allowed.includes(set)
            && set.includes(self.pins)
            && (self.least.max(1)..=self.most).contains(&set.len())
    }

    /// Without the regions that have no room for `bytes` more; those in `held` have it already.
    #[must_use]
    pub fn with_room(mut self, held: Set, free_bytes: &[f64], bytes: f64) -> Self {
        let full = |region: &usize| free_bytes.get(*region).is_some_and(|free| *free < bytes);
        let full: Set = self.allowed.without(held).iter().filter(full).collect();
        self.allowed = self.allowed.without(full);
        self
    }
}

/// A price, by what it is paid for. Dollars a second, but for `copy`, which is paid once.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Price {
    /// Clients that wait for another region.
    pub latency: f64,
    /// Answers and writes between regions, for want of a copy at the client's.
    pub remote: f64,
    /// Changes to the other copies.
    pub replication: f64,
    /// Copies kept.
    pub storage: f64,
    /// New copies to be made, in dollars.
    pub copy: f64,
}

impl Price {
    /// Dollars a second.
    pub fn rate(&self) -> f64 {
        self.latency + self.remote + self.replication + self.storage
    }
}

/// One scope's prices, made ready for many sets.
pub struct Pricing<'a> {
    load: &'a Load,
    round_trips: &'a RoundTrips,
    /// Dollars a millisecond and request.
    latency: f64,
    /// Dollars a byte.
    network: f64,
    /// Dollars a second for a copy.
    copy_rate: f64,
    /// Dollars for making a copy.
    copy: f64,
    /// Dollars a second for changes to each further copy.
    replication: f64,
    /// Regions that use the scope at all: requests a second, in dollars a millisecond; dollars a second when remote.
    users: Vec<(usize, f64, f64)>,
}

impl<'a> Pricing<'a> {
    /// Makes ready.
    pub fn new(load: &'a Load, round_trips: &'a RoundTrips, prices: &Prices) -> Self {
        let latency = prices.latency as f64 * 1e-12;
        let network = prices.network as f64 * 1e-6 / 1e9;
        let storage = prices.storage as f64 * 1e-6 / 1e9 / MONTH_SECONDS;
        let writes: f64 = load.by_region.iter().map(|used| used.writes).sum();
        let users = load.by_region.iter().enumerate().filter(|(_, used)| used.reads + used.writes > 0.0);
        let users = users.map(|(region, used)| {
            let bytes = used.reads * load.read_bytes + used.writes * load.write_bytes;
            (region, (used.reads + used.writes) * latency, bytes * network)
        });
        Self {
            load,
            round_trips,
            latency,
            network,
            copy_rate: load.bytes * storage,
            copy: load.bytes * network,
            replication: writes * load.write_bytes * network,
            users: users.collect(),
        }
    }

    /// Dollars a second of a set that is not empty.
    pub fn rate(&self, set: Set) -> f64 {
        let copies = set.len() as f64;
        let mut rate = copies * self.copy_rate + (copies - 1.0) * self.replication;
        for (region, latency, remote) in &self.users {
            if !set.has(*region) {
                rate += latency * self.nearest(*region, set) + remote;
            }
        }
        rate
    }

    /// What new copies cost once, in dollars.
    pub fn copies(&self, from: Set, to: Set) -> f64 {
        to.without(from).len() as f64 * self.copy
    }

    /// The price of a set, coming from another one, in its parts.
    pub fn price(&self, from: Set, set: Set) -> Price {
        let mut price = Price {
            storage: set.len() as f64 * self.copy_rate,
            replication: set.len().saturating_sub(1) as f64 * self.replication,
            copy: self.copies(from, set),
            ..Price::default()
        };
        for (region, used) in self.load.by_region.iter().enumerate().filter(|(region, _)| !set.has(*region)) {
            price.latency += (used.reads + used.writes) * self.nearest(region, set) * self.latency;
            price.remote +=
                (used.reads * self.load.read_bytes + used.writes * self.load.write_bytes) * self.network;
        }
        price
    }

    /// The round trip to the nearest region of a set, in milliseconds; 0 for none.
    pub fn nearest(&self, region: usize, set: Set) -> f64 {
        let nearest = set.iter().map(|held| self.round_trips.ms(region, held)).min_by(f64::total_cmp);
        nearest.unwrap_or_default()
    }
}

/// What a solver looks for: cheapest over a time, coming from a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// Where the scope is; empty: nowhere yet, then copies are free.
    pub from: Set,
    /// Over how long, in seconds.
    pub seconds: f64,
    /// What is added to the price of copies, as a share.
    pub margin: f64,
}

impl Goal {
    /// Dollars of a set: its rate over the time, and what it costs to get there. A region that is dropped and not exchanged
    /// for another one counts as much as one that is added: it may have to be taken back. So an unused copy is kept until
    /// dropping it saves as much as a copy costs, the break-even rule of online replication.
    pub fn dollars(&self, pricing: &Pricing<'_>, set: Set) -> f64 {
        pricing.rate(set) * self.seconds + self.changes(set) as f64 * pricing.copy * (1.0 + self.margin)
    }

    /// Regions added or dropped, whichever are more. A distance: from here to there and on is no nearer than straight on, so
    /// what is cheapest stays so under the same load.
    pub fn changes(&self, set: Set) -> usize {
        if self.from.is_empty() {
            return 0;
        }
        set.without(self.from).len().max(self.from.without(set).len())
    }
}

/// The cheapest admitted set and its dollars; None: no set is admitted. Exact up to [`EXACT_REGIONS`] allowed regions and sets
/// of [`EXACT_REPLICAS`], by local search beyond.
pub fn solve(pricing: &Pricing<'_>, bounds: &Bounds, goal: &Goal) -> Option<(Set, f64)> {
    let most = bounds.most.min(bounds.allowed.len());
    if bounds.allowed.len() <= EXACT_REGIONS && most <= EXACT_REPLICAS {
        return solve_exactly(pricing, bounds, goal);
    }
    solve_locally(pricing, bounds, goal)
}

/// Looks at every admitted set.
pub fn solve_exactly(pricing: &Pricing<'_>, bounds: &Bounds, goal: &Goal) -> Option<(Set, f64)> {
    let free: Vec<usize> = bounds.allowed.without(bounds.pins).iter().collect();
    if !bounds.allowed.includes(bounds.pins) || free.len() >= 32 {
        return None; // a search of that size is not begun
    }
    let mut best: Option<(Set, f64)> = None;
    for choice in 0..1_u64 << free.len() {
        let size = choice.count_ones() as usize + bounds.pins.len();
        if !(bounds.least.max(1)..=bounds.most).contains(&size) {
            continue;
        }
        let chosen: Set = Set(choice).iter().map(|i| free[i]).collect();
        let set = chosen.with(bounds.pins);
        consider(&mut best, set, goal.dollars(pricing, set));
    }
    best
}

/// The best single addition, removal or exchange until none is cheaper, from several sets: the present one, none, and the
/// regions that would be cheapest alone. One start alone was up to 8 % off.
pub fn solve_locally(pricing: &Pricing<'_>, bounds: &Bounds, goal: &Goal) -> Option<(Set, f64)> {
    let mut single: Vec<(f64, Set)> = bounds
        .allowed
        .iter()
        .map(|region| Set::one(region).with(bounds.pins))
        .map(|set| (goal.dollars(pricing, set), set))
        .collect();
    single.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let starts = single.into_iter().map(|(_, set)| set).take(LOCAL_STARTS);
    let mut best = None;
    for start in [goal.from, bounds.pins, goal.from.with(bounds.pins)].into_iter().chain(starts) {
        let Some(start) = greedy(pricing, bounds, goal, start) else { continue };
        let (set, dollars) = descend(pricing, bounds, goal, start);
        consider(&mut best, set, dollars);
    }
    best
}

/// An admitted set near `start`: too large or not allowed, it is cut; too small, what helps most is added.
fn greedy(pricing: &Pricing<'_>, bounds: &Bounds, goal: &Goal, start: Set) -> Option<Set> {
    let mut set = Set(start.0 & bounds.allowed.0).with(bounds.pins);
    while set.len() > bounds.most {
        let smaller = set.without(bounds.pins).iter().map(|region| set.without(Set::one(region)));
        set = cheapest(pricing, goal, smaller)?;
    }
    while set.len() < bounds.least.max(1) {
        let larger = bounds.allowed.without(set).iter().map(|region| set.with(Set::one(region)));
        set = cheapest(pricing, goal, larger)?;
    }
    bounds.admit(set).then_some(set)
}

fn cheapest(pricing: &Pricing<'_>, goal: &Goal, sets: impl Iterator<Item = Set>) -> Option<Set> {
    let mut best = None;
    sets.for_each(|set| consider(&mut best, set, goal.dollars(pricing, set)));
    best.map(|(set, _)| set)
}

fn descend(pricing: &Pricing<'_>, bounds: &Bounds, goal: &Goal, start: Set) -> (Set, f64) {
    let mut now = (start, goal.dollars(pricing, start));
    for _ in 0..MOST_STEPS {
        let mut best = Some(now);
        let (set, outside) = (now.0, bounds.allowed.without(now.0));
        let mut look = |next: Set| {
            if bounds.admit(next) {
                consider(&mut best, next, goal.dollars(pricing, next));
            }
        };
        for add in outside.iter() {
            look(set.with(Set::one(add)));
        }
        for drop in set.without(bounds.pins).iter() {
            let rest = set.without(Set::one(drop));
            look(rest);
            for add in outside.iter() {
                look(rest.with(Set::one(add)));
            }
        }
        match best {
            Some(better) if better.0 != set => now = better,
            _ => break,
        }
    }
    now
}

/// Keeps the cheaper; of equal ones the smaller.
fn consider(best: &mut Option<(Set, f64)>, set: Set, dollars: f64) {
    let order =
        |a: (Set, f64), b: (Set, f64)| a.1.total_cmp(&b.1).then((a.0.len(), a.0).cmp(&(b.0.len(), b.0)));
    if best.is_none_or(|kept| order((set, dollars), kept).is_lt()) {
        *best = Some((set, dollars));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    use super::{Bounds, Goal, Load, Pricing, RoundTrips, Set, Use, solve, solve_exactly, solve_locally};
    use crate::{Prices, Regions};

    fn cities() -> RoundTrips {
        RoundTrips::of(&Regions::parse("ten", Regions::shipped("ten-cities").unwrap()).unwrap())
    }

    fn load(reads: &[f64], writes: f64, bytes: f64) -> Load {
        let by_region = reads.iter().map(|reads| Use { reads: *reads, writes: *reads * writes }).collect();
        Load { by_region, bytes, read_bytes: 300.0, write_bytes: 150.0 }
    }

    /// Points on a sphere, as regions are: round trips obey the triangle inequality.
    fn instance(regions: std::ops::Range<usize>) -> impl Strategy<Value = (RoundTrips, Load, u64, f64, u64)> {
        let region = (0.0_f64..std::f64::consts::TAU, -1.2_f64..1.2, 0_u8..4, 0.0001_f64..5.0);
        (
            proptest::collection::vec(region, regions),
            0.0_f64..0.6,
            12.0_f64..24.0,
            0_u64..u64::MAX,
            0.0_f64..0.5,
            0_u64..3,
        )
            .prop_map(|(places, writes, log_bytes, from, margin, pins)| {
                let at = |(longitude, latitude): (f64, f64)| {
                    [latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()]
                };
                let points: Vec<[f64; 3]> = places.iter().map(|place| at((place.0, place.1))).collect();
                let ms = |a: &[f64; 3], b: &[f64; 3]| {
                    let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    dot.clamp(-1.0, 1.0).acos() * 90.0
                };
                let times: Vec<Vec<f64>> =
                    points.iter().map(|a| points.iter().map(|b| ms(a, b)).collect()).collect();
                let reads: Vec<f64> =
                    places.iter().map(|place| if place.2 == 0 { 0.0 } else { place.3 }).collect();
                (RoundTrips::new(&times), load(&reads, writes, log_bytes.exp2()), from, margin, pins)
            })
    }

    #[test]
    fn a_price_is_the_sum_of_its_parts_as_worked_out_by_hand() {
        let round_trips = RoundTrips::new(&[vec![0.0, 100.0], vec![100.0, 0.0]]);
        let load = load(&[1.0, 2.0], 0.5, 1e9);
        let pricing = Pricing::new(&load, &round_trips, &Prices::default());
        let price = pricing.price(Set::one(1), Set::one(0));
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12 * b.abs().max(1e-9);
        assert!(close(price.latency, 3.0 * 100.0 * 1e-8), "{price:?}"); // 2 reads and 1 write a second
        assert!(close(price.remote, (2.0 * 300.0 + 150.0) * 0.02 / 1e9), "{price:?}");
        assert!(close(price.storage, 0.10 / (30.0 * 86_400.0)), "{price:?}");
        assert!(close(price.copy, 0.02), "{price:?}");
        assert_eq!(price.replication, 0.0);
        let both = pricing.price(Set::one(1), Set::first(2));
        assert!(close(both.replication, 1.5 * 150.0 * 0.02 / 1e9), "{both:?}");
        assert_eq!((both.latency, both.remote), (0.0, 0.0));
        assert!(
            close(pricing.rate(Set::one(0)), price.rate()) && close(pricing.rate(Set::first(2)), both.rate())
        );
    }

    #[test]
    fn noise_of_round_trips_changes_nothing_and_a_new_route_does() {
        let mut round_trips = cities();
        let before = round_trips.ms(0, 1);
        for i in 0..1000 {
            assert!(!round_trips.measured(0, 1, 34.0 + if i % 2 == 0 { 8.0 } else { -8.0 }));
        }
        assert_eq!(round_trips.ms(0, 1), before);
        assert!((0..100).any(|_| round_trips.measured(0, 1, 60.0)));
        (0..100).for_each(|_| _ = round_trips.measured(0, 1, 60.0));
        assert!((round_trips.ms(0, 1) - 60.0).abs() <= 2.0 && round_trips.ms(0, 1) == round_trips.ms(1, 0));
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(!round_trips.measured(0, 1, bad));
        }
        assert!(!round_trips.measured(3, 3, 9.0) && !round_trips.measured(0, 99, 9.0));
    }

    #[test]
    fn a_region_without_room_gets_no_copy_and_keeps_the_one_it_has() {
        let bounds = Bounds { allowed: Set::first(4), pins: Set::default(), least: 1, most: 2 };
        let free = [0.0, 1e9, 10.0, 0.0];
        let bounds = bounds.with_room(Set::one(0), &free, 100.0);
        assert_eq!(bounds.allowed, Set::first(2));
        let load = load(&[0.0, 0.0, 5.0, 9.0], 0.1, 100.0);
        let round_trips = cities();
        let pricing = Pricing::new(&load, &round_trips, &Prices::default());
        let goal = Goal { from: Set::one(0), seconds: 14_400.0, margin: 0.2 };
        let (set, _) = solve(&pricing, &bounds, &goal).unwrap();
        assert!(bounds.allowed.includes(set), "{set:?}");
        let nowhere = Bounds { pins: Set::one(3), ..bounds };
        assert_eq!(solve(&pricing, &nowhere, &goal), None);
    }

    #[test]
    fn an_unused_copy_is_kept_until_dropping_it_saves_what_a_copy_costs() {
        let round_trips = cities();
        let bounds = Bounds { allowed: Set::first(10), pins: Set::default(), least: 1, most: 3 };
        let from: Set = [0, 8].into_iter().collect();
        let goal = Goal { from, seconds: 14_400.0, margin: 0.2 };
        let solved = |writes: f64| {
            let load = load(&[1.0], writes, 1e6);
            solve(&Pricing::new(&load, &round_trips, &Prices::default()), &bounds, &goal).unwrap().0
        };
        assert_eq!(solved(0.0), from, "four hours of storage are cheaper than a copy");
        assert_eq!(solved(0.5), from, "and so are 1.08 MB of changes to it");
        assert_eq!(solved(0.6), Set::one(0), "but not 1.3 MB: the copy of 1 MB, and a fifth");
    }

    #[test]
    fn a_set_counts_and_walks_its_regions() {
        let set: Set = [3, 0, 63, 3].into_iter().collect();
        assert_eq!((set.len(), set.iter().collect::<Vec<_>>()), (3, vec![0, 3, 63]));
        assert!(set.has(63) && !set.has(64) && !set.has(1) && !set.is_empty());
        assert_eq!((Set::first(64).len(), Set::first(99)), (64, Set(u64::MAX)));
        assert!(set.includes(Set::one(3)) && !set.includes(Set::one(1)) && set.without(set).is_empty());
    }

    proptest! {
        #[test]
        fn local_search_costs_at_most_2_percent_more_than_the_best(
            (round_trips, load, from, margin, pins) in instance(3..11),
            least in 1_usize..3, more in 0_usize..4,
        ) {
            let regions = round_trips.regions();
            let allowed = Set::first(regions);
            let least = least.min(regions);
            let most = (least + more).min(regions);
            let pins = if pins == 0 { Set::one(regions - 1) } else { Set::default() };
            let bounds = Bounds { allowed, pins, least, most };
            let from = Set(from & allowed.0);
            let pricing = Pricing::new(&load, &round_trips, &Prices::default());
            let goal = Goal { from, seconds: 14_400.0, margin };
            let (best, dollars) = solve_exactly(&pricing, &bounds, &goal).unwrap();
            let (found, near) = solve_locally(&pricing, &bounds, &goal).unwrap();
            prop_assert!(bounds.admit(best) && bounds.admit(found));
            prop_assert!(near >= dollars && near <= dollars * 1.02 + 1e-15, "{near} {dollars}");
            prop_assert_eq!(goal.dollars(&pricing, found), near);
            // The parts add up to what the solver compares.
            let price = pricing.price(from, best);
            let changes = goal.changes(best) as f64 * load.bytes * 0.02e-9 * (1.0 + margin);
            prop_assert!((price.rate() * 14_400.0 + changes - dollars).abs() <= dollars * 1e-9);
        }

        #[test]
        fn more_reads_in_a_region_never_take_its_copy_away(
            (round_trips, load, _, _, _) in instance(3..9), region: proptest::sample::Index, times in 1.0_f64..50.0,
        ) {
            let regions = round_trips.regions();
            let bounds = Bounds { allowed: Set::first(regions), pins: Set::default(), least: 1, most: 3 };
            let goal = Goal { from: Set::default(), seconds: 3600.0, margin: 0.0 };
            let solved = |load: &Load| {
                solve_exactly(&Pricing::new(load, &round_trips, &Prices::default()), &bounds, &goal).unwrap().0
            };
            let before = solved(&load);
            let region = before.iter().nth(region.index(before.len())).unwrap();
            let mut busier = load.clone();
            busier.by_region[region].reads *= times;
            prop_assert!(solved(&busier).has(region));
        }
    }
}
