//! The placement record: where one scope is held and under which policy.

use std::sync::Arc;

use crate::name::{RegionName, ScopeName};
use crate::rules::{Policy, Rule};
use crate::scope::{Kind, ScopeId, ShardId, shard_index};

/// Where a scope is held, and how. Stored in the directory only when it differs from what its rule implies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRecord {
    /// The scope.
    pub scope: ScopeId,
    /// Grows with every change of the record; requests carry it, an older one is answered with the newer record.
    pub epoch: u64,
    /// Regions that serve reads and writes, the steward's first.
    pub serving: Vec<RegionName>,
    /// Regions that receive the scope and do not serve it yet.
    pub learners: Vec<RegionName>,
    /// Regions that no longer serve it and still hand over what they have.
    pub leaving: Vec<RegionName>,
    /// What the values are.
    pub kind: Kind,
    /// Number of shards, 1 to [`MAX_SPREAD`](crate::MAX_SPREAD).
    pub spread: u16,
    /// Name of the rule that the scope was created by.
    pub rule: Arc<str>,
    /// How its values are kept.
    pub policy: Arc<Policy>,
}

impl PlacementRecord {
    /// The record of a scope that has none of its own: a pure function of its rule's record and its name, so that every
    /// node creates the same scope without asking. `rule` is the one that [`Rules::find`](crate::Rules::find) gives for
    /// `name`, `rule_record_epoch` the epoch of that rule's record in the directory.
    pub fn implied(rule_record_epoch: u64, rule: &Rule, name: &ScopeName) -> Self {
        Self {
            scope: ScopeId { name: name.clone(), incarnation: 0 },
            epoch: rule_record_epoch,
            serving: rule.regions.clone(),
            learners: Vec::new(),
            leaving: Vec::new(),
            kind: rule.kind,
            spread: rule.spread,
            rule: rule.name.clone(),
            policy: rule.policy.clone(),
        }
    }

    /// Every region that holds the scope: serving, then learners, then leaving.
    pub fn members(&self) -> impl Iterator<Item = &RegionName> {
        self.serving.iter().chain(&self.learners).chain(&self.leaving)
    }

    /// The index and id of the shard that holds `key`.
    pub fn shard(&self, key: &str) -> (u16, ShardId) {
        let index = shard_index(key, self.spread);
        (index, ShardId::of(&self.scope, index))
    }
}
