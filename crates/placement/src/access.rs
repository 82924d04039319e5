//! Who uses what from where: counts at the node that a request arrives at, and rates at the steward.
//!
//! A node counts the requests that it answers, per scope and region of arrival, in [`AccessCounts`] and takes what was
//! counted out of it, as [`Counted`], for the scope's steward. The region of arrival is where the client is: the region of
//! the node that it asked first, or the one that it names. The steward adds reports up in [`Demand`], where they decay.
//!
//! Both are bounded. A table names so many scopes exactly; the long tail goes into a count sketch, and a scope whose
//! estimate there outgrows a named one takes its place. Losing counts loses time, nothing else.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::cost::Use;
use crate::name::ScopeName;
use crate::placing::Unit;
use crate::regions::{MAX_NODES, MAX_REGIONS};

/// Pairs of a scope and a region that a table counts by name. 56 bytes each: 3.7 MB.
pub const COUNTED_SCOPES: usize = 1 << 16;
/// Places at which a name may stand in the table: two cache lines apart from the next name's.
const PROBES: usize = 8;
/// Columns of each row of the count sketch: an estimate is off by at most 1/1500 of the tail's requests.
const SKETCH_COLUMNS: usize = 1 << 12;
/// Rows of the count sketch: wrong by more in one of fifty cases.
const SKETCH_ROWS: usize = 4;
/// Reports without a request after which a name is forgotten: an hour of them, ten seconds apart.
const FORGOTTEN_AFTER: u16 = 360;
/// Units whose access a steward keeps: some 200 bytes each.
pub const DEMAND_UNITS: usize = 1 << 20;
/// Half-lives without a report after which a unit is forgotten: a thousandth of a request is left of a thousand.
const FORGOTTEN_HALF_LIVES: u64 = 20;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Looks.
    Read,
    /// Changes.
    Write,
}

/// What was counted of a scope and a region of arrival since the last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The scope.
    pub scope: ScopeName,
    /// The region of arrival, in file order.
    pub region: u8,
    /// Reads.
    pub reads: u32,
    /// Writes.
    pub writes: u32,
    /// Bytes of what was read.
    pub read_bytes: u64,
    /// Bytes of what was written.
    pub write_bytes: u64,
}

/// A node's counts, since they were last taken.
#[derive(Debug)]
pub struct AccessCounts {
    key: (u64, u64),
    entries: Vec<Option<Entry>>,
    sketch: Vec<u32>,
    /// Requests of scopes that have no entry, since counts were last taken.
    tail: u64,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    counted: Counted,
    /// Reports without a request.
    idle: u16,
}

impl AccessCounts {
    /// An empty one for `scopes` names (rounded up to a power of two, at most [`COUNTED_SCOPES`]). Clients choose names, so
    /// `key` is random.
    pub fn new(scopes: usize, key: (u64, u64)) -> Self {
        let size = scopes.clamp(PROBES, COUNTED_SCOPES).next_power_of_two();
        let entries = std::iter::repeat_with(|| None).take(size).collect();
        Self { key, entries, sketch: vec![0; SKETCH_ROWS * SKETCH_COLUMNS], tail: 0 }
    }

    /// Counts a request of `bytes` that arrived in `region`.
    pub fn count(&mut self, scope: &ScopeName, region: u8, access: Access, bytes: u64) {
        let hash = self.hash(scope, region);
        let mask = self.entries.len() - 1;
        let start = hash as usize & mask & !(PROBES - 1);
        let places = &mut self.entries[start..start + PROBES];
        let mut free = None;
        for (i, place) in places.iter_mut().enumerate() {
            match place {
                Some(entry) if entry.is(hash, scope, region) => return entry.add(access, bytes),
                None if free.is_none() => free = Some(i),
                _ => {}
            }
        }
        if let Some(place) = free.and_then(|free| places.get_mut(free)) {
            let mut entry = Entry::new(hash, scope, region);
            entry.add(access, bytes);
            *place = Some(entry);
            return;
        }
        if self.is_worth_a_place(hash, start) {
            let mut entry = Entry::new(hash, scope, region);
            entry.add(access, bytes);
            self.replace_least(start, entry);
        }
    }

    /// Takes out what was counted since the last time. Of scopes beyond the table's size nothing is told; see
    /// [`AccessCounts::unnamed`].
    pub fn take(&mut self) -> Vec<Counted> {
        let mut counted = Vec::new();
        for place in &mut self.entries {
            let Some(entry) = place else { continue };
            if entry.weight() == 0 {
                entry.idle += 1;
                if entry.idle >= FORGOTTEN_AFTER {
                    *place = None;
                }
                continue;
            }
            entry.idle = 0;
            let empty = Counted::none(&entry.counted.scope, entry.counted.region);
            counted.push(std::mem::replace(&mut entry.counted, empty));
        }
        self.sketch.iter_mut().for_each(|count| *count /= 2);
        self.tail = 0;
        counted
    }

    /// Requests since counts were last taken that were counted under no name.
    pub fn unnamed(&self) -> u64 {
        self.tail
    }

    fn hash(&self, scope: &ScopeName, region: u8) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        hasher.write(scope.as_str().as_bytes());
        hasher.write_u8(region);
        hasher.finish()
    }

    /// Counts a name for which there is no place in the sketch; says whether it is used more than the least used that has one.
    fn is_worth_a_place(&mut self, hash: u64, start: usize) -> bool {
        self.tail += 1;
        let mut estimate = u32::MAX;
        for row in 0..SKETCH_ROWS {
            let column = (hash.rotate_right(row as u32 * 16) >> 4) as usize % SKETCH_COLUMNS;
            let count = &mut self.sketch[row * SKETCH_COLUMNS + column];
            *count = count.saturating_add(1);
            estimate = estimate.min(*count);
        }
        let places = self.entries[start..start + PROBES].iter();
        places
            .map(|place| place.as_ref().map_or(0, Entry::weight))
            .min()
            .is_some_and(|least| least < estimate)
    }

    /// Gives the place of the least used name to another.
    fn replace_least(&mut self, start: usize, entry: Entry) {
        let places = self.entries[start..start + PROBES].iter_mut();
        let Some(least) = places.min_by_key(|place| place.as_ref().map_or(0, Entry::weight)) else { return };
        let lost = least.replace(entry);
        self.tail += lost.map_or(0, |lost| u64::from(lost.weight()));
        self.tail -= 1; // this one is counted by name
    }
}

impl Counted {
    fn none(scope: &ScopeName, region: u8) -> Self {
        Self { scope: scope.clone(), region, reads: 0, writes: 0, read_bytes: 0, write_bytes: 0 }
    }
}

impl Entry {
    fn new(hash: u64, scope: &ScopeName, region: u8) -> Self {
        Self { hash, counted: Counted::none(scope, region), idle: 0 }
    }

    fn is(&self, hash: u64, scope: &ScopeName, region: u8) -> bool {
        self.hash == hash && self.counted.region == region && self.counted.scope == *scope
    }

    fn add(&mut self, access: Access, bytes: u64) {
        let counted = &mut self.counted;
        let (count, size) = match access {
            Access::Read => (&mut counted.reads, &mut counted.read_bytes),
            Access::Write => (&mut counted.writes, &mut counted.write_bytes),
        };
        *count = count.saturating_add(1);
        *size = size.saturating_add(bytes);
    }

    fn weight(&self) -> u32 {
        self.counted.reads.saturating_add(self.counted.writes)
    }
}

/// Half-lives that are kept side by side, as a part of the policy's: a busy scope is followed within minutes, and of one that
/// is rarely used a longer time tells more than chance.
const HALF_LIVES: [f64; 3] = [1.0 / 6.0, 1.0, 8.0];
/// Requests that must be left of a half-life for its rates to be taken, of those but the longest: 500 tell a share of a
/// third to 6 %.
const ENOUGH: [f64; 2] = [500.0, 60.0];

/// A count that halves with time, for each half-life, computed when it is touched. 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Decayed {
    counts: [f32; HALF_LIVES.len()],
    /// Seconds at which they were right.
    at: u32,
}

impl Decayed {
    fn at(self, now: u32, half_life: f64) -> [f64; HALF_LIVES.len()] {
        let age = f64::from(now.saturating_sub(self.at));
        std::array::from_fn(|i| f64::from(self.counts[i]) * (-age / (half_life * HALF_LIVES[i])).exp2())
    }

    fn add(&mut self, now: u32, half_life: f64, count: f64) {
        let now = now.max(self.at);
        *self = Self { counts: self.at(now, half_life).map(|left| (left + count) as f32), at: now };
    }
}

/// How a unit is used now.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// By region of arrival.
    pub by_region: Vec<Use>,
    /// The seconds that they are made of: a rate times these are the requests behind it.
    pub seconds: f64,
}

/// What a region has told of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct FromRegion {
    reads: Decayed,
    writes: Decayed,
}

/// The use of one unit, by region of arrival.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitAccess {
    /// Since when it is counted, seconds.
    since: u32,
    /// The last report with a request.
    last: u32,
    half_life: f64,
    regions: Vec<FromRegion>,
    /// Bytes of what was read and written, from all regions.
    bytes: (Decayed, Decayed),
}

/// Bytes of a read and of a write where none was counted yet: a small value, a small change.
const USUAL_BYTES: (f64, f64) = (300.0, 150.0);

impl UnitAccess {
    /// Nothing counted yet. `now` in seconds.
    pub fn new(now: u32, half_life: Duration) -> Self {
        let half_life = half_life.as_secs_f64().max(1.0);
        Self { since: now, last: now, half_life, regions: Vec::new(), bytes: Default::default() }
    }

    /// Adds what a region tells. A region beyond [`MAX_REGIONS`] is not known to anybody and ignored.
    pub fn add(&mut self, now: u32, region: usize, reads: f64, writes: f64) {
        if region >= MAX_REGIONS {
            return;
        }
        if self.regions.len() <= region {
            self.regions.resize(region + 1, FromRegion::default());
        }
        let from = &mut self.regions[region];
        from.reads.add(now, self.half_life, reads);
        from.writes.add(now, self.half_life, writes);
        self.last = self.last.max(now);
    }

    /// Adds the bytes of what was read and written.
    pub fn add_bytes(&mut self, now: u32, read: f64, written: f64) {
        self.bytes.0.add(now, self.half_life, read);
        self.bytes.1.add(now, self.half_life, written);
    }

    /// Bytes of a read and of a write, on average.
    pub fn mean_bytes(&self, now: u32) -> (f64, f64) {
        let longest = HALF_LIVES.len() - 1;
        let left = |counts: Decayed| counts.at(now, self.half_life)[longest];
        let total = |of: fn(&FromRegion) -> Decayed| self.regions.iter().map(|r| left(of(r))).sum::<f64>();
        let mean = |bytes: Decayed, count: f64, usual: f64| {
            if count > 0.0 && left(bytes) > 0.0 { left(bytes) / count } else { usual }
        };
        let (reads, writes) = (total(|region| region.reads), total(|region| region.writes));
        (mean(self.bytes.0, reads, USUAL_BYTES.0), mean(self.bytes.1, writes, USUAL_BYTES.1))
    }

    /// Requests a second by region, as if counted for ever: what was counted weighs by the time it was counted in. Of the
    /// half-lives the shortest that leaves enough requests.
    pub fn rates(&self, now: u32, regions: usize) -> Rates {
        let left: Vec<[[f64; 2]; HALF_LIVES.len()]> = (0..regions)
            .map(|region| {
                let from = self.regions.get(region).copied().unwrap_or_default();
                let (reads, writes) =
                    (from.reads.at(now, self.half_life), from.writes.at(now, self.half_life));
                std::array::from_fn(|i| [reads[i], writes[i]])
            })
            .collect();
        let total = |i: usize| left.iter().map(|left| left[i][0] + left[i][1]).sum::<f64>();
        let level = (0..ENOUGH.len()).find(|i| total(*i) >= ENOUGH[*i]).unwrap_or(ENOUGH.len());
        let half_life = self.half_life * HALF_LIVES[level];
        let age = f64::from(now.saturating_sub(self.since)).max(1.0);
        let seconds = half_life / std::f64::consts::LN_2 * (1.0 - (-age / half_life).exp2());
        let rate = |left: &[[f64; 2]; HALF_LIVES.len()]| {
            let [reads, writes] = left[level];
            Use { reads: reads / seconds, writes: writes / seconds }
        };
        Rates { by_region: left.iter().map(rate).collect(), seconds }
    }
}

/// Use of units as their steward knows it, and when each node told last.
#[derive(Debug, Default)]
pub struct Demand {
    units: BTreeMap<Unit, UnitAccess>,
    /// When each node told last, seconds.
    told: Vec<Option<u32>>,
}

impl Demand {
    /// Nothing counted.
    pub fn new() -> Self {
        Self::default()
    }

    /// A node told what it counted, or that it counted nothing: silence is not zero.
    pub fn told(&mut self, now: u32, node: usize) {
        if node >= MAX_NODES {
            return;
        }
        if self.told.len() <= node {
            self.told.resize(node + 1, None);
        }
        self.told[node] = self.told[node].max(Some(now));
    }

    /// Adds what was counted of a unit. False: there are [`DEMAND_UNITS`] already, and this one is not counted.
    pub fn add(&mut self, now: u32, unit: &Unit, half_life: Duration, counted: &Counted) -> bool {
        if !self.units.contains_key(unit) {
            if self.units.len() >= DEMAND_UNITS {
                return false;
            }
            self.units.insert(unit.clone(), UnitAccess::new(now, half_life));
        }
        if let Some(access) = self.units.get_mut(unit) {
            access.add(now, counted.region.into(), counted.reads.into(), counted.writes.into());
            access.add_bytes(now, counted.read_bytes as f64, counted.write_bytes as f64);
        }
        true
    }

    /// Forgets units that nobody used for twenty half-lives.
    pub fn forget(&mut self, now: u32) {
        self.units.retain(|_, access| {
            f64::from(now.saturating_sub(access.last)) < access.half_life * FORGOTTEN_HALF_LIVES as f64
        });
    }

    /// A unit's use; None if nobody told of it.
    pub fn get(&self, unit: &Unit) -> Option<&UnitAccess> {
        self.units.get(unit)
    }

    /// Seconds since each region told; None: never. `homes` has the region of each node: of several in a region the one that
    /// told longest ago counts.
    pub fn ages(&self, now: u32, homes: &[usize], regions: usize) -> Vec<Option<u32>> {
        let age = |node: usize| self.told.get(node).copied().flatten().map(|told| now.saturating_sub(told));
        let mut ages = vec![Some(0); regions];
        let mut seen = vec![false; regions];
        for (node, home) in homes.iter().enumerate().filter(|(_, home)| **home < regions) {
            seen[*home] = true;
            ages[*home] = age(node).zip(ages[*home]).map(|(a, b)| a.max(b));
        }
        ages.into_iter().zip(seen).map(|(age, seen)| age.filter(|_| seen)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use std::time::Duration;

    use proptest::prelude::{prop_assert, proptest};

    use super::{Access, AccessCounts, Counted, Demand, FORGOTTEN_AFTER, UnitAccess};
    use crate::{ScopeName, Unit};

    const HALF_HOUR: Duration = Duration::from_secs(1800);

    fn name(i: usize) -> ScopeName {
        ScopeName::new(&format!("shop/{i}")).unwrap()
    }

    #[test]
    fn what_is_counted_is_taken_once() {
        let mut table = AccessCounts::new(64, (1, 2));
        for _ in 0..3 {
            table.count(&name(1), 0, Access::Read, 100);
        }
        table.count(&name(1), 0, Access::Write, 40);
        table.count(&name(1), 2, Access::Write, 50);
        table.count(&name(2), 0, Access::Write, 60);
        let mut counted = table.take();
        counted.sort_by(|a, b| (&a.scope, a.region).cmp(&(&b.scope, b.region)));
        let of = |scope: usize, region, reads, writes, read_bytes, write_bytes| {
            let scope = name(scope);
            Counted { scope, region, reads, writes, read_bytes, write_bytes }
        };
        assert_eq!(counted, [of(1, 0, 3, 1, 300, 40), of(1, 2, 0, 1, 0, 50), of(2, 0, 0, 1, 0, 60)]);
        assert!(table.take().is_empty());
    }

    #[test]
    fn a_name_that_nobody_uses_makes_room() {
        let mut table = AccessCounts::new(8, (1, 2));
        (0..8).for_each(|i| table.count(&name(i), 0, Access::Read, 1));
        for _ in 0..=FORGOTTEN_AFTER {
            table.take();
        }
        (8..16).for_each(|i| table.count(&name(i), 0, Access::Read, 1));
        assert_eq!((table.take().len(), table.unnamed()), (8, 0));
    }

    #[test]
    fn a_busy_scope_of_the_tail_takes_the_place_of_an_idle_one_and_the_rest_is_told_as_unnamed() {
        let mut table = AccessCounts::new(8, (1, 2));
        (0..8).for_each(|i| table.count(&name(i), 0, Access::Read, 1));
        for i in 100..1100 {
            table.count(&name(if i % 2 == 0 { 99 } else { i }), 0, Access::Read, 1);
        }
        let unnamed = table.unnamed();
        let counted = table.take();
        let busy = counted.iter().find(|counted| counted.scope == name(99)).unwrap();
        assert!(busy.reads > 480, "{busy:?}");
        let named: u64 = counted.iter().map(|counted| u64::from(counted.reads)).sum();
        assert_eq!(named + unnamed, 1008, "every request is counted once");
    }

    #[test]
    fn a_rate_is_right_from_the_first_minute_and_follows_with_the_half_life() {
        let mut access = UnitAccess::new(0, HALF_HOUR);
        for now in (10..=600).step_by(10) {
            access.add(now, 1, 20.0, 10.0);
        }
        let rates = access.rates(600, 3).by_region;
        assert!((rates[1].reads - 2.0).abs() < 0.05 && (rates[1].writes - 1.0).abs() < 0.03, "{rates:?}");
        assert_eq!((rates[0].reads, rates[2].reads), (0.0, 0.0));
        for now in (610..=36_000).step_by(10) {
            access.add(now, 2, 20.0, 0.0);
        }
        let before = access.rates(36_000, 3).by_region;
        // 150 s later 2^-0.5 is left of the shortest, which is still enough.
        let after = access.rates(36_150, 3).by_region;
        assert!((after[2].reads - before[2].reads * 0.5_f64.sqrt()).abs() < 0.02, "{after:?}");
        // Where little is left, the longer memory counts: an hour of nothing is no reason to forget.
        let late = access.rates(36_000 + 36_000, 3);
        assert!(late.seconds > 10_000.0 && late.by_region[2].reads > 0.1, "{late:?}");
    }

    #[test]
    fn a_region_is_as_silent_as_the_most_silent_of_its_nodes() {
        let mut demand = Demand::new();
        demand.told(100, 0);
        demand.told(700, 2);
        demand.told(650, 2); // a report that was overtaken
        assert_eq!(demand.ages(1000, &[0, 1, 2], 3), [Some(900), None, Some(300)]);
        assert_eq!(demand.ages(1000, &[0, 2, 0], 3), [Some(900), None, None], "nobody is in the second");
        let unit = Unit::Scope(name(1));
        let counted =
            Counted { scope: name(1), region: 2, reads: 1, writes: 0, read_bytes: 500, write_bytes: 0 };
        assert!(demand.add(1000, &unit, HALF_HOUR, &counted));
        let (read, write) = demand.get(&unit).unwrap().mean_bytes(2000);
        assert!((read - 500.0).abs() < 0.1 && write == 150.0, "{read} {write}");
        demand.forget(1000 + 19 * 1800);
        assert!(demand.get(&unit).is_some());
        demand.forget(1000 + 20 * 1800);
        assert!(demand.get(&unit).is_none());
    }

    proptest! {
        #[test]
        fn reports_in_any_order_and_size_give_finite_rates(
            reports in proptest::collection::vec((0_u32..u32::MAX, 0_usize..70, 0_f64..1e9, 0_f64..1e9), 0..40),
            now: u32,
        ) {
            let mut access = UnitAccess::new(0, HALF_HOUR);
            for (at, region, reads, writes) in reports {
                access.add(at, region, reads, writes);
            }
            for used in access.rates(now, 64).by_region {
                prop_assert!(used.reads.is_finite() && used.reads >= 0.0 && used.writes.is_finite() && used.writes >= 0.0);
            }
        }
    }
}
