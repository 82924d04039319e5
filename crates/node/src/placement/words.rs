//! Decisions in words and numbers that people and programs read.

use tropism_placement::{
    Alternative, Blocker, Decision, Explanation, Mode, Move, Prices, RegionName, RoundTrips, Set,
    StoredRecord, Use,
};
use tropism_wire::v1;
use tropism_wire::v1::PlacementBlockerKind as BlockerKind;
use tropism_wire::v1::PlacementEventKind as Kind;

/// Seconds of a month of 30 days, in which people pay.
const MONTH_SECONDS: f64 = 30.0 * 24.0 * 3600.0;

/// What is not part of an explanation itself.
pub(crate) struct About<'a> {
    pub(crate) scope: &'a str,
    pub(crate) unit: String,
    pub(crate) rule: &'a str,
    pub(crate) mode: Mode,
    pub(crate) steward: &'a str,
    pub(crate) pace: u32,
    pub(crate) moves: bool,
    pub(crate) regions: &'a [RegionName],
    /// By placement's clock.
    pub(crate) now: u64,
}

/// An answer about a scope that no use moves.
pub(crate) fn unmoved(about: &About<'_>) -> v1::ExplainScopeResponse {
    v1::ExplainScopeResponse {
        scope: about.scope.to_owned(),
        unit: about.unit.clone(),
        rule: about.rule.to_owned(),
        mode: mode(about.mode).into(),
        steward: about.steward.to_owned(),
        pace: about.pace,
        ..v1::ExplainScopeResponse::default()
    }
}

/// The answer about a scope that follows its use.
pub(crate) fn explained(
    about: &About<'_>,
    why: &Explanation,
    ages: &[Option<u64>],
    round_trips: &RoundTrips,
) -> v1::ExplainScopeResponse {
    let pace = u64::from(about.pace.max(1));
    let names = |set: Set| names(set, about.regions);
    let current = why.current.set;
    let nearest = |region: usize| {
        current.iter().map(|serving| round_trips.ms(region, serving)).min_by(f64::total_cmp).unwrap_or(0.0)
    };
    let uses = about.regions.iter().enumerate().map(|(place, region)| {
        let used = why.load.by_region.get(place).copied().unwrap_or_default();
        v1::RegionUse {
            region: region.as_str().to_owned(),
            reads: used.reads,
            writes: used.writes,
            counters_age_ms: ages.get(place).copied().flatten().map(|age| age / pace),
            wait_ms: nearest(place),
        }
    });
    let decision = match why.decision {
        Decision::Move { to, .. } if about.moves => names(to),
        _ => Vec::new(),
    };
    let mut blockers: Vec<v1::PlacementBlocker> =
        why.blockers.iter().map(|blocker| blocked(blocker, about)).collect();
    if !about.moves {
        let message = "this node is configured to move nothing (placement.moves = false)".to_owned();
        blockers.push(v1::PlacementBlocker { kind: BlockerKind::Off.into(), message });
    }
    let Prices { latency, network, storage } = why.prices;
    v1::ExplainScopeResponse {
        uses: uses.collect(),
        bytes: why.load.bytes as u64,
        read_bytes: why.load.read_bytes,
        write_bytes: why.load.write_bytes,
        allowed: names(why.bounds.allowed),
        pins: names(why.bounds.pins),
        min_regions: why.bounds.least as u32, // at most 64, as the next
        max_regions: why.bounds.most as u32,
        price_latency: latency as f64 / 1e6,
        price_network: network as f64 / 1e6,
        price_storage: storage as f64 / 1e6,
        horizon_ms: why.knobs.horizon,
        margin: why.knobs.margin,
        dwell_ms: why.knobs.dwell,
        current: Some(alternative(&why.current, about.regions)),
        alternatives: why.alternatives.iter().map(|other| alternative(other, about.regions)).collect(),
        decision,
        blockers,
        flapping: why.flapping,
        next_evaluation_ms: why.next_evaluation.saturating_sub(about.now) / pace,
        ..unmoved(about)
    }
}

fn names(set: Set, regions: &[RegionName]) -> Vec<String> {
    set.iter().filter_map(|place| regions.get(place)).map(|region| region.as_str().to_owned()).collect()
}

fn alternative(other: &Alternative, regions: &[RegionName]) -> v1::PlacementAlternative {
    v1::PlacementAlternative {
        regions: names(other.set, regions),
        latency: other.price.latency * MONTH_SECONDS,
        remote: other.price.remote * MONTH_SECONDS,
        replication: other.price.replication * MONTH_SECONDS,
        storage: other.price.storage * MONTH_SECONDS,
        copy: other.price.copy,
        total: other.dollars,
    }
}

fn mode(mode: Mode) -> v1::PlacementMode {
    match mode {
        Mode::Follow => v1::PlacementMode::Follow,
        Mode::Fixed => v1::PlacementMode::Fixed,
        Mode::Everywhere => v1::PlacementMode::Everywhere,
    }
}

fn blocked(blocker: &Blocker, about: &About<'_>) -> v1::PlacementBlocker {
    let region = |place: usize| about.regions.get(place).map_or("?", RegionName::as_str);
    let pace = u64::from(about.pace.max(1));
    let seconds = |until: u64| until.saturating_sub(about.now) / pace / 1000;
    let (kind, message) = match blocker {
        Blocker::Counters { region: place, age: None } => (
            BlockerKind::Counters,
            format!("region {} serves the scope and has not told yet how it is used there", region(*place)),
        ),
        Blocker::Counters { region: place, age: Some(age) } => (
            BlockerKind::Counters,
            format!(
                "region {} serves the scope and told last {} s ago how it is used there",
                region(*place),
                age / pace / 1000
            ),
        ),
        Blocker::Dwell { until } => (
            BlockerKind::Dwell,
            format!("it changed a short while ago and stays for {} s more", seconds(*until)),
        ),
        Blocker::Flapping { until } => (
            BlockerKind::Flapping,
            format!("it changed too often within a day and stays for {} s more", seconds(*until)),
        ),
        Blocker::Evidence { requests, needed } => (
            BlockerKind::Evidence,
            format!("{requests:.1} requests would come nearer; {needed:.0} are asked for"),
        ),
        Blocker::Margin { gain, needed } => (
            BlockerKind::Margin,
            format!(
                "the cheapest other set saves {:.1} % within the horizon, copies paid; more than {:.0} % is asked for",
                gain * 100.0,
                needed * 100.0
            ),
        ),
        Blocker::UnderWay => (BlockerKind::UnderWay, "a move is under way".to_owned()),
        Blocker::Frozen => (
            BlockerKind::Frozen,
            "an operator holds it (`tropism scope unpin` lets its use decide again)".to_owned(),
        ),
        Blocker::Learners { region: place } => (
            BlockerKind::Learners,
            format!("region {} takes in as many scopes at once as it may", region(*place)),
        ),
        Blocker::Bytes { from, to } => (
            BlockerKind::Bytes,
            format!("what may be copied from {} to {} is used up for now", region(*from), region(*to)),
        ),
        Blocker::NoSet => (
            BlockerKind::NoSet,
            "no set of regions keeps the rule: pins, bounds and room contradict each other".to_owned(),
        ),
    };
    v1::PlacementBlocker { kind: kind.into(), message }
}

/// A decision in one line.
pub(crate) fn summary(decided: &Move, regions: &[RegionName]) -> String {
    let why = &decided.why;
    let to = decided.goals.first().map(|(_, goal)| list(goal)).unwrap_or_default();
    let from = names(why.current.set, regions).join(", ");
    let uses = why.load.by_region.iter().enumerate();
    let mut users: Vec<(f64, usize)> =
        uses.map(|(place, used): (usize, &Use)| (used.reads + used.writes, place)).collect();
    users.sort_by(|a, b| b.0.total_cmp(&a.0));
    let users =
        users.iter().filter(|(rate, _)| *rate > 0.0).take(3).map(|(rate, place)| {
            format!("{} {rate:.2}/s", regions.get(*place).map_or("?", RegionName::as_str))
        });
    let users: Vec<String> = users.collect();
    let scopes = match decided.goals.len() {
        1 => String::new(),
        count => format!("{count} scopes "),
    };
    let cost = match why.alternatives.first() {
        Some(best) => {
            format!("; ${:.2e} instead of ${:.2e} within the horizon", best.dollars, why.current.dollars)
        }
        None => String::new(),
    };
    let reason = match why.decision {
        Decision::Move { reason: tropism_placement::Reason::Rule, .. } => " because the rule says so",
        Decision::Move { .. } => "",
        Decision::Stay => " to the others of its group",
    };
    format!("{scopes}from {from} to {to}{reason}; used from {}{cost}", users.join(", "))
}

fn list(regions: &[RegionName]) -> String {
    let names: Vec<&str> = regions.iter().map(RegionName::as_str).collect();
    names.join(", ")
}

/// What a record that was decided means.
pub(super) fn step(record: &StoredRecord) -> (Kind, String) {
    let members = &record.members;
    let serving = list(&members.serving);
    let to = record.goal.as_deref().map(|goal| format!(", on its way to {}", list(goal))).unwrap_or_default();
    if record.dropped {
        (Kind::Dropped, "was dropped".to_owned())
    } else if !members.learners.is_empty() {
        (Kind::Expand, format!("copied to {}; served by {serving}{to}", list(&members.learners)))
    } else if !members.leaving.is_empty() {
        (Kind::Shrink, format!("{} hands over; served by {serving}", list(&members.leaving)))
    } else if let Some(goal) = &record.goal {
        let all = goal.iter().all(|region| members.serving.contains(region));
        if all {
            (Kind::Joint, format!("served by {serving}{to}"))
        } else {
            (Kind::Bound, format!("in {serving}{to}"))
        }
    } else {
        let held = match record.hold {
            tropism_placement::Hold::Free => "",
            tropism_placement::Hold::Pinned => ", pinned",
            tropism_placement::Hold::Frozen => ", frozen",
        };
        (Kind::Settled, format!("in {serving}{held}"))
    }
}
