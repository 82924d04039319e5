//! Scope names, regions, rules and the placement record.
//!
//! What a scope is called and where it lives: [`ScopeName`] and the hashes that spread its keys over shards and slots,
//! [`Regions`] (the file that says which regions exist and how far apart they are), [`Rules`] (which scopes are held
//! where, and how) and the [`PlacementRecord`] that a rule implies for a name. Everything here is a pure function of
//! its arguments: no clock, no files, no randomness, so that every node answers alike.

mod access;
mod config;
mod cost;
mod decision;
mod directory;
mod name;
mod placing;
mod record;
mod records;
mod regions;
mod rules;
mod scope;
mod steward;
#[cfg(test)]
mod tests;
mod transition;

pub use access::{Access, AccessCounts, COUNTED_SCOPES, Counted, DEMAND_UNITS, Demand, Rates, UnitAccess};
pub use config::{ConfigError, ConfigErrors, MAX_CONFIG_BYTES, MAX_CONFIG_ERRORS};
pub use cost::{
    Bounds, EXACT_REGIONS, EXACT_REPLICAS, Goal, Load, Price, Pricing, ROUND_TRIP_STEP_MS, RoundTrips, Set,
    Use, solve, solve_exactly, solve_locally,
};
pub use decision::{
    Alternative, Blocker, Budgets, CHANGES_PER_DAY, COPY_SHARE, Decision, EXPLAINED_ALTERNATIVES,
    Explanation, History, INBOUND_LEARNERS, Knobs, Reason, Situation, decide, evaluate,
};
pub use directory::{Directory, MAX_STORED_RECORDS, Refusal};
pub use name::{
    MAX_KEY_BYTES, MAX_REGION_NAME_BYTES, MAX_SCOPE_NAME_BYTES, NameError, RegionName, ScopeName, check_key,
};
pub use placing::{DEFAULT_HALF_LIFE, MAX_HALF_LIFE, MAX_PRICE, MIN_HALF_LIFE, Mode, Placing, Prices, Unit};
pub use record::PlacementRecord;
pub use records::{Hold, RULE_EPOCH, RecordError, Records, StoredRecord};
pub use regions::{
    Location, MAX_NODE_ID_BYTES, MAX_NODES, MAX_PLACES, MAX_REGIONS, MAX_ROUND_TRIP_MS, Node, Place, Region,
    Regions,
};
pub use rules::{
    DEFAULT_HISTORY_BYTES, DEFAULT_HISTORY_CHANGES, Durability, MAX_EXPIRY, MAX_RULES, Pattern, Policy,
    PolicyHash, Rule, RuleError, Rules, Share, parse_expiry,
};
pub use scope::{Kind, MAX_SPREAD, SLOTS, ScopeId, ShardId, Slot, shard_index};
pub use steward::{GROUP_SCOPES, Move, Steward};
pub use transition::{
    EXPAND_PATIENCE_MS, Held, Membership, Owner, Role, Told, Wait, give_up, next_membership,
};
