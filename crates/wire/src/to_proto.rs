//! What lies below the shell into fields of answers. None of it can fail.

use tropism_placement::{Durability, Hold, Kind, PlacementRecord, RegionName, StoredRecord};

use crate::v1;

/// A kind.
pub fn kind(kind: Kind) -> v1::Kind {
    match kind {
        Kind::Document => v1::Kind::Document,
        Kind::Register => v1::Kind::Register,
        Kind::Counter => v1::Kind::Counter,
    }
}

/// A durability.
pub fn durability(durability: Durability) -> v1::Durability {
    let (level, regions) = match durability {
        Durability::Local => (v1::DurabilityLevel::Local, 0),
        Durability::Region => (v1::DurabilityLevel::Region, 0),
        Durability::Regions(count) => (v1::DurabilityLevel::Regions, u32::from(count)),
    };
    v1::Durability { level: level.into(), regions }
}

/// Who may move a scope.
pub fn hold(hold: Hold) -> v1::ScopeHold {
    match hold {
        Hold::Free => v1::ScopeHold::Free,
        Hold::Pinned => v1::ScopeHold::Pinned,
        Hold::Frozen => v1::ScopeHold::Frozen,
    }
}

/// A scope: its record, whether that follows from its rule alone, and what this node holds of it.
pub fn scope(
    record: &PlacementRecord,
    stored: Option<&StoredRecord>,
    usage: Option<v1::ScopeUsage>,
) -> v1::Scope {
    let names = |regions: &[RegionName]| regions.iter().map(|region| region.as_str().to_owned()).collect();
    v1::Scope {
        name: record.scope.name.as_str().to_owned(),
        incarnation: record.scope.incarnation,
        epoch: record.epoch,
        kind: kind(record.kind).into(),
        spread: record.spread.into(),
        rule: record.rule.to_string(),
        implied: stored.is_none(),
        hold: hold(stored.map_or(Hold::Free, |stored| stored.hold)).into(),
        goal: stored.and_then(|stored| stored.goal.as_deref()).map(names).unwrap_or_default(),
        serving: names(&record.serving),
        learners: names(&record.learners),
        leaving: names(&record.leaving),
        durability: Some(durability(record.policy.durability)),
        usage,
    }
}
