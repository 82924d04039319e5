//! Who uses what from where: counts at the node that a request arrives at, and rates at the steward.
//!
//! A node counts requests per scope in a [`Tally`] and takes what was counted out of it, as [`Counted`], for the scope's
//! steward. Since a request counts in the region of the node that it arrives at, the reporter's region is the region of
//! arrival. The steward adds reports up in [`Demand`], where they decay.
//!
//! Both are bounded. A tally names so many scopes exactly; the long tail goes into a sketch of counts, and a scope whose
//! estimate there outgrows a named one takes its place. Losing counts loses time, nothing else.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::cost::Use;
use crate::name::ScopeName;
use crate::placing::Unit;
use crate::regions::MAX_REGIONS;

/// Scopes that a tally counts by name. 40 bytes each: 2.6 MB.
pub const TALLY_SCOPES: usize = 1 << 16;
/// Places at which a name may stand in the tally: two cache lines apart from the next name's.
const PROBES: usize = 8;
/// Columns of each row of the sketch: an estimate is off by at most 1/1500 of the tail's requests.
const SKETCH_COLUMNS: usize = 1 << 12;
/// Rows of the sketch: wrong by more in one of fifty cases.
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

/// What was counted of a scope since the last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The scope.
    pub scope: ScopeName,
    /// Reads.
    pub reads: u32,
    /// Writes.
    pub writes: u32,
}

/// A node's counts, since they were last taken.
#[derive(Debug)]
pub struct Tally {
    key: (u64, u64),
    entries: Vec<Option<Entry>>,
    sketch: Vec<u32>,
    /// Requests of scopes that have no entry, since counts were last taken.
    tail: u64,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    scope: ScopeName,
    reads: u32,
    writes: u32,
    /// Reports without a request.
    idle: u16,
}

impl Tally {
    /// An empty one for `scopes` names (rounded up to a power of two, at most [`TALLY_SCOPES`]). Clients choose names, so
    /// `key` is random.
    pub fn new(scopes: usize, key: (u64, u64)) -> Self {
        let size = scopes.clamp(PROBES, TALLY_SCOPES).next_power_of_two();
        let entries = std::iter::repeat_with(|| None).take(size).collect();
        Self { key, entries, sketch: vec![0; SKETCH_ROWS * SKETCH_COLUMNS], tail: 0 }
    }

    /// Counts a request.
    pub fn count(&mut self, scope: &ScopeName, access: Access) {
        let hash = self.hash(scope);
        let mask = self.entries.len() - 1;
        let start = hash as usize & mask & !(PROBES - 1);
        let places = &mut self.entries[start..start + PROBES];
        let mut free = None;
        for (i, place) in places.iter_mut().enumerate() {
            match place {
                Some(entry) if entry.hash == hash && entry.scope == *scope => return entry.add(access),
                None if free.is_none() => free = Some(i),
                _ => {}
            }
        }
        if let Some(place) = free.and_then(|free| places.get_mut(free)) {
            let mut entry = Entry { hash, scope: scope.clone(), reads: 0, writes: 0, idle: 0 };
            entry.add(access);
            *place = Some(entry);
            return;
        }
        self.count_in_sketch(scope, hash, access, start);
    }

    /// Takes out what was counted since the last time. Of scopes beyond the tally's size nothing is told; see
    /// [`Tally::unnamed`].
    pub fn take(&mut self) -> Vec<Counted> {
        let mut counted = Vec::new();
        for place in &mut self.entries {
            let Some(entry) = place else { continue };
            if entry.reads + entry.writes == 0 {
                entry.idle += 1;
                if entry.idle >= FORGOTTEN_AFTER {
                    *place = None;
                }
                continue;
            }
            let (reads, writes) = (std::mem::take(&mut entry.reads), std::mem::take(&mut entry.writes));
            entry.idle = 0;
            counted.push(Counted { scope: entry.scope.clone(), reads, writes });
        }
        self.sketch.iter_mut().for_each(|count| *count /= 2);
        self.tail = 0;
        counted
    }

    /// Requests since counts were last taken that were counted under no name.
    pub fn unnamed(&self) -> u64 {
        self.tail
    }

    fn hash(&self, scope: &ScopeName) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        hasher.write(scope.as_str().as_bytes());
        hasher.finish()
    }

    /// Counts a scope for which there is no place, and gives it that of the least used one when it is used more.
    fn count_in_sketch(&mut self, scope: &ScopeName, hash: u64, access: Access, start: usize) {
        self.tail += 1;
        let mut estimate = u32::MAX;
        for row in 0..SKETCH_ROWS {
            let column = (hash.rotate_right(row as u32 * 16) >> 4) as usize % SKETCH_COLUMNS;
            let count = &mut self.sketch[row * SKETCH_COLUMNS + column];
            *count = count.saturating_add(1);
            estimate = estimate.min(*count);
        }
        let places = &mut self.entries[start..start + PROBES];
        let least = places.iter_mut().min_by_key(|place| place.as_ref().map_or(0, Entry::weight));
        if let Some(place) = least
            && place.as_ref().map_or(0, Entry::weight) < estimate
        {
            let mut entry = Entry { hash, scope: scope.clone(), reads: 0, writes: 0, idle: 0 };
            entry.add(access);
            let lost = place.replace(entry);
            self.tail += lost.map_or(0, |lost| u64::from(lost.reads) + u64::from(lost.writes));
            self.tail -= 1; // this one is counted by name
        }
    }
}

impl Entry {
    fn add(&mut self, access: Access) {
        let count = match access {
            Access::Read => &mut self.reads,
            Access::Write => &mut self.writes,
        };
        *count = count.saturating_add(1);
    }

    fn weight(&self) -> u32 {
        self.reads.saturating_add(self.writes)
    }
}

/// A count that halves with time, computed when it is touched. 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Decayed {
    count: f32,
    /// Seconds at which `count` was right.
    at: u32,
}

impl Decayed {
    fn at(self, now: u32, half_life: f64) -> f64 {
        let age = f64::from(now.saturating_sub(self.at));
        f64::from(self.count) * (-age / half_life).exp2()
    }

    fn add(&mut self, now: u32, half_life: f64, count: f64) {
        let now = now.max(self.at);
        *self = Self { count: (self.at(now, half_life) + count) as f32, at: now };
    }
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
}

impl UnitAccess {
    /// Nothing counted yet. `now` in seconds.
    pub fn new(now: u32, half_life: Duration) -> Self {
        Self { since: now, last: now, half_life: half_life.as_secs_f64().max(1.0), regions: Vec::new() }
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

    /// Requests a second by region, as if counted for ever: what was counted weighs by the time it was counted in.
    pub fn rates(&self, now: u32, regions: usize) -> Vec<Use> {
        let seen = self.seconds_seen(now);
        let rate = |count: Decayed| count.at(now, self.half_life) / seen;
        let of = |region: usize| self.regions.get(region).copied().unwrap_or_default();
        (0..regions)
            .map(|region| Use { reads: rate(of(region).reads), writes: rate(of(region).writes) })
            .collect()
    }

    /// The seconds that rates are made of: at most the half-life over ln 2.
    pub fn seconds_seen(&self, now: u32) -> f64 {
        let age = f64::from(now.saturating_sub(self.since)).max(1.0);
        self.half_life / std::f64::consts::LN_2 * (1.0 - (-age / self.half_life).exp2())
    }
}

/// Use of units as their steward knows it, and when each region told last.
#[derive(Debug, Default)]
pub struct Demand {
    units: BTreeMap<Unit, UnitAccess>,
    /// When each region told last, seconds.
    told: Vec<Option<u32>>,
}

impl Demand {
    /// Nothing counted.
    pub fn new() -> Self {
        Self::default()
    }

    /// A region told what it counted, or that it counted nothing: silence is not zero.
    pub fn told(&mut self, now: u32, region: usize) {
        if region >= MAX_REGIONS {
            return;
        }
        if self.told.len() <= region {
            self.told.resize(region + 1, None);
        }
        self.told[region] = self.told[region].max(Some(now));
    }

    /// Adds what a region told of a unit. False: there are [`DEMAND_UNITS`] already, and this one is not counted.
    pub fn add(
        &mut self,
        now: u32,
        region: usize,
        unit: Unit,
        half_life: Duration,
        reads: u32,
        writes: u32,
    ) -> bool {
        if self.units.len() >= DEMAND_UNITS && !self.units.contains_key(&unit) {
            return false;
        }
        let access = self.units.entry(unit).or_insert_with(|| UnitAccess::new(now, half_life));
        access.add(now, region, reads.into(), writes.into());
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

    /// Seconds since each region told anything; None: never.
    pub fn ages(&self, now: u32, regions: usize) -> Vec<Option<u32>> {
        (0..regions)
            .map(|region| self.told.get(region).copied().flatten().map(|told| now.saturating_sub(told)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use std::time::Duration;

    use proptest::prelude::{prop_assert, proptest};

    use super::{Access, Demand, FORGOTTEN_AFTER, Tally, UnitAccess};
    use crate::{ScopeName, Unit};

    const HALF_HOUR: Duration = Duration::from_secs(1800);

    fn name(i: usize) -> ScopeName {
        ScopeName::new(&format!("shop/{i}")).unwrap()
    }

    #[test]
    fn what_is_counted_is_taken_once() {
        let mut tally = Tally::new(64, (1, 2));
        for _ in 0..3 {
            tally.count(&name(1), Access::Read);
        }
        tally.count(&name(1), Access::Write);
        tally.count(&name(2), Access::Write);
        let mut counted = tally.take();
        counted.sort_by(|a, b| a.scope.cmp(&b.scope));
        let counted: Vec<_> = counted.iter().map(|counted| (counted.reads, counted.writes)).collect();
        assert_eq!(counted, [(3, 1), (0, 1)]);
        assert!(tally.take().is_empty());
    }

    #[test]
    fn a_name_that_nobody_uses_makes_room() {
        let mut tally = Tally::new(8, (1, 2));
        (0..8).for_each(|i| tally.count(&name(i), Access::Read));
        for _ in 0..=FORGOTTEN_AFTER {
            tally.take();
        }
        (8..16).for_each(|i| tally.count(&name(i), Access::Read));
        assert_eq!((tally.take().len(), tally.unnamed()), (8, 0));
    }

    #[test]
    fn a_busy_scope_of_the_tail_takes_the_place_of_an_idle_one_and_the_rest_is_told_as_unnamed() {
        let mut tally = Tally::new(8, (1, 2));
        (0..8).for_each(|i| tally.count(&name(i), Access::Read));
        for i in 100..1100 {
            tally.count(&name(if i % 2 == 0 { 99 } else { i }), Access::Read);
        }
        let unnamed = tally.unnamed();
        let counted = tally.take();
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
        let rates = access.rates(600, 3);
        assert!((rates[1].reads - 2.0).abs() < 0.02 && (rates[1].writes - 1.0).abs() < 0.01, "{rates:?}");
        assert_eq!((rates[0].reads, rates[2].reads), (0.0, 0.0));
        for now in (610..=36_000).step_by(10) {
            access.add(now, 2, 20.0, 0.0);
        }
        let before = access.rates(36_000, 3);
        let after = access.rates(37_800, 3);
        assert!(before[1].reads < 1e-3 && (before[2].reads - 2.0).abs() < 0.02, "{before:?}");
        assert!((after[2].reads - before[2].reads / 2.0).abs() < 0.01, "{after:?}");
    }

    #[test]
    fn a_region_that_says_nothing_has_an_age_and_none_that_never_spoke() {
        let mut demand = Demand::new();
        demand.told(100, 0);
        demand.told(700, 2);
        demand.told(650, 2); // a report that was overtaken
        assert_eq!(demand.ages(1000, 3), [Some(900), None, Some(300)]);
        let unit = Unit::Scope(name(1));
        assert!(demand.add(1000, 2, unit.clone(), HALF_HOUR, 1, 0));
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
            for used in access.rates(now, 64) {
                prop_assert!(used.reads.is_finite() && used.reads >= 0.0 && used.writes.is_finite() && used.writes >= 0.0);
            }
        }
    }
}
