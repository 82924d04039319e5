//! What a node knows of where scopes are held: the rules, and the records that the directory stores because they differ
//! from what the rules imply.

use std::sync::Arc;

use imbl::OrdMap;
use thiserror::Error;

use crate::name::{RegionName, ScopeName};
use crate::record::PlacementRecord;
use crate::regions::MAX_REGIONS;
use crate::rules::Rules;
use crate::scope::{Kind, MAX_SPREAD, ScopeId};
use crate::transition::{Membership, Role};

/// The epoch of every record that a rule implies; a stored one is above it.
pub const RULE_EPOCH: u64 = 1;

/// What may move a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Hold {
    /// Its policy, and operators.
    #[default]
    Free,
    /// Operators only.
    Pinned,
    /// Nobody.
    Frozen,
}

/// A scope's placement record as the directory stores it: moved, pinned, dropped, or created anew. Each change of it has
/// the next epoch, also across the lives of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// The scope.
    pub scope: ScopeId,
    /// Name of the rule that it was created by: its policy.
    pub rule: Arc<str>,
    /// What the values are.
    pub kind: Kind,
    /// Number of shards, 1 to [`MAX_SPREAD`].
    pub spread: u16,
    /// Its members, and the epoch of the record. Nobody serves a dropped scope.
    pub members: Membership<RegionName>,
    /// Where it shall be, if it is on its way; the steward's region first.
    pub goal: Option<Vec<RegionName>>,
    /// What may move it.
    pub hold: Hold,
    /// It is gone: members delete it, and its name is created again only through the directory.
    pub dropped: bool,
}

/// Why a record is none. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the record of scope {scope} at epoch {epoch}: {problem}")]
pub struct RecordError {
    /// Of which scope.
    pub scope: ScopeId,
    /// Its epoch.
    pub epoch: u64,
    /// What is wrong.
    pub problem: String,
}

impl StoredRecord {
    /// A record that nothing was changed of yet: what a change begins with.
    pub fn of(record: &PlacementRecord) -> Self {
        Self {
            scope: record.scope.clone(),
            rule: record.rule.clone(),
            kind: record.kind,
            spread: record.spread,
            members: record.membership(),
            goal: None,
            hold: Hold::Free,
            dropped: false,
        }
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.members.epoch
    }

    fn next(&self) -> Self {
        let mut next = self.clone();
        next.members.epoch += 1;
        next
    }

    /// On its way to these regions; `None`: it stays as it is, what is under way is ended where it can be.
    #[must_use]
    pub fn bound_for(&self, goal: Option<Vec<RegionName>>) -> Self {
        Self { goal, ..self.next() }
    }

    /// Held.
    #[must_use]
    pub fn held(&self, hold: Hold) -> Self {
        Self { hold, ..self.next() }
    }

    /// The next step of its way: `members` has the next epoch. The goal is forgotten where it is reached.
    #[must_use]
    pub fn stepped(&self, members: Membership<RegionName>) -> Self {
        let mut next = Self { members, ..self.clone() };
        let reached = |goal: &Vec<RegionName>| {
            next.members.is_stable()
                && goal.len() == next.members.serving.len()
                && goal.iter().all(|region| next.members.serving.contains(region))
        };
        if let Some(goal) = next.goal.take_if(|goal| reached(goal)) {
            next.members.serving = goal; // in this order: the first is the steward's
        }
        next
    }

    /// Gone.
    #[must_use]
    pub fn dropped(&self) -> Self {
        let mut next = self.next();
        (next.members.serving, next.members.learners, next.members.leaving) = Default::default();
        Self { goal: None, dropped: true, ..next }
    }

    /// Created again, as its rule says now: another scope of the same name. It begins in one region of the rule and is on
    /// its way to the others. Of all at once one could serve it, and hold for stable what another refuses because it has
    /// not heard of the new life (found by the simulator).
    #[must_use]
    pub fn created_again(&self, implied: &PlacementRecord, first: &RegionName) -> Self {
        let mut next = Self::of(implied);
        next.scope.incarnation = self.scope.incarnation + 1;
        next.members.epoch = self.epoch() + 1;
        if implied.serving.len() > 1
            && let Some(first) =
                implied.serving.iter().find(|region| *region == first).or(implied.serving.first())
        {
            next.goal = Some(implied.serving.clone());
            next.members.serving = vec![first.clone()];
        }
        next
    }

    /// Whether it can be one.
    pub fn check(&self) -> Result<(), RecordError> {
        let refuse = |problem: &str| {
            let (scope, epoch) = (self.scope.clone(), self.epoch());
            Err(RecordError { scope, epoch, problem: problem.to_owned() })
        };
        let Membership { epoch, serving, learners, leaving } = &self.members;
        let mut all: Vec<&RegionName> = serving.iter().chain(learners).chain(leaving).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        if *epoch <= RULE_EPOCH {
            refuse("the epoch is not above that of its rule")
        } else if !(1..=MAX_SPREAD).contains(&self.spread) {
            refuse("the number of shards is out of bounds")
        } else if count > MAX_REGIONS || self.goal.as_ref().is_some_and(|goal| goal.len() > MAX_REGIONS) {
            refuse("it names more regions than there can be")
        } else if all.len() != count {
            refuse("a region is named twice")
        } else if self.dropped != serving.is_empty() || self.dropped && count > 0 {
            refuse("a scope is served by somebody, or dropped and nobody's")
        } else if self.goal.as_ref().is_some_and(|goal| goal.is_empty() || self.dropped) {
            refuse("its goal is nowhere")
        } else {
            Ok(())
        }
    }
}

/// What a node knows of where scopes are held. Invariant: of each name the newest record that was adopted. Cheap to clone: whoever reads has the records of one moment.
#[derive(Debug, Clone, Default)]
pub struct Records {
    rules: Arc<Rules>,
    stored: OrdMap<ScopeName, StoredRecord>,
    version: u64,
}

impl Records {
    /// What the rules imply.
    pub fn new(rules: Rules) -> Self {
        Self { rules: Arc::new(rules), stored: OrdMap::new(), version: 0 }
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The record of a scope if it has one of its own.
    pub fn stored(&self, name: &ScopeName) -> Option<&StoredRecord> {
        self.stored.get(name)
    }

    /// All records that are not implied, by name.
    pub fn all_stored(&self) -> impl Iterator<Item = &StoredRecord> {
        self.stored.values()
    }

    /// The record of a scope, its own or the one that its rule implies; `None`: no rule has such a name, or it was dropped.
    pub fn record(&self, name: &ScopeName) -> Option<PlacementRecord> {
        match self.stored.get(name) {
            None => Some(PlacementRecord::implied(RULE_EPOCH, self.rules.find(name)?, name)),
            Some(stored) if stored.dropped => None,
            Some(stored) => Some(self.filled(stored)),
        }
    }

    /// The regions that serve a scope, without its record being made; `None`: no rule has such a name, or it was dropped.
    pub fn serving(&self, name: &ScopeName) -> Option<&[RegionName]> {
        match self.stored.get(name) {
            None => Some(&self.rules.find(name)?.regions),
            Some(stored) => Some(&*stored.members.serving).filter(|_| !stored.dropped),
        }
    }

    /// The record that a shard belongs to, of this scope and no other life of its name.
    pub fn record_of(&self, scope: &ScopeId, kind: Kind, index: u16) -> Option<PlacementRecord> {
        let record = self.record(&scope.name)?;
        (record.scope == *scope && record.kind == kind && index < record.spread).then_some(record)
    }

    /// The epoch of a scope's record, dropped ones included.
    pub fn epoch(&self, name: &ScopeName) -> u64 {
        self.stored.get(name).map_or(RULE_EPOCH, StoredRecord::epoch)
    }

    /// Whether a region has no business with a scope that it may hold rows of: its record, or that of a later life of its
    /// name, says so. What only a rule says is no reason to delete anything.
    pub fn is_strange(&self, scope: &ScopeId, region: &RegionName) -> bool {
        self.stored.get(&scope.name).is_some_and(|stored| {
            let gone = stored.dropped || stored.members.role(region) == Role::Stranger;
            stored.scope.incarnation > scope.incarnation
                || stored.scope.incarnation == scope.incarnation && gone
        })
    }

    /// Grows with every record that was taken.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Takes a newer record; says whether it was one.
    pub fn adopt(&mut self, record: StoredRecord) -> bool {
        let newer = record.epoch() > self.epoch(&record.scope.name);
        if newer {
            self.stored.insert(record.scope.name.clone(), record);
            self.version += 1;
        }
        newer
    }

    fn filled(&self, stored: &StoredRecord) -> PlacementRecord {
        let rule = self.rules.get(&stored.rule).or_else(|| self.rules.find(&stored.scope.name));
        PlacementRecord {
            scope: stored.scope.clone(),
            epoch: stored.epoch(),
            serving: stored.members.serving.clone(),
            learners: stored.members.learners.clone(),
            leaving: stored.members.leaving.clone(),
            kind: stored.kind,
            spread: stored.spread,
            rule: stored.rule.clone(),
            policy: rule.map(|rule| rule.policy.clone()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::Regions;

    const FILE: &str = r#"
[[region]]
name = "a"
place = "A"
[[region]]
name = "b"
place = "B"
[[rtt]]
between = ["a", "b"]
ms = 10
[[rule]]
name = "all"
pattern = "**"
kind = "register"
regions = ["a"]
"#;

    fn region(name: &str) -> RegionName {
        RegionName::new(name).unwrap()
    }

    fn records() -> Records {
        let Ok(regions) = Regions::parse("test", FILE) else { panic!("{:?}", Regions::parse("test", FILE)) };
        Records::new(regions.rules().clone())
    }

    #[test]
    fn a_stored_record_stands_before_the_rule_and_an_older_one_changes_nothing() {
        let mut records = records();
        let name = ScopeName::new("x/y").unwrap();
        let implied = records.record(&name).unwrap();
        assert_eq!((implied.epoch, implied.scope.incarnation), (RULE_EPOCH, 0));
        let goal = vec![region("b"), region("a")];
        let bound = StoredRecord::of(&implied).bound_for(Some(goal.clone()));
        bound.check().unwrap();
        assert!(records.adopt(bound.clone()) && !records.adopt(bound.clone()));
        let members = |serving: &[&str], learners: &[&str], epoch| Membership {
            epoch,
            serving: serving.iter().map(|name| region(name)).collect(),
            learners: learners.iter().map(|name| region(name)).collect(),
            leaving: Vec::new(),
        };
        let expand = bound.stepped(members(&["a"], &["b"], 3));
        assert_eq!(expand.goal.as_ref(), Some(&goal), "it is not there yet");
        let joint = expand.stepped(members(&["a", "b"], &[], 4));
        assert_eq!((joint.goal.clone(), &joint.members.serving), (None, &goal), "in the order of the goal");
        assert!(records.adopt(joint.clone()) && !records.adopt(expand));
        let dropped = joint.dropped();
        dropped.check().unwrap();
        assert!(records.adopt(dropped.clone()));
        assert_eq!((records.record(&name), records.epoch(&name)), (None, 5));
        let again = dropped.created_again(&implied, &region("b"));
        again.check().unwrap();
        assert!(records.adopt(again));
        let record = records.record(&name).unwrap();
        assert_eq!((record.scope.incarnation, record.epoch), (1, 6));
        assert_eq!(records.record_of(&implied.scope, Kind::Register, 0), None, "that one was dropped");
        assert_eq!(records.record_of(&record.scope, Kind::Register, 0), Some(record));
    }

    #[test]
    fn what_cannot_be_a_record_is_refused_with_the_reason() {
        let name = ScopeName::new("x").unwrap();
        let good = StoredRecord::of(&records().record(&name).unwrap()).held(Hold::Pinned);
        assert_eq!(good.check(), Ok(()));
        type Spoil = fn(&mut StoredRecord);
        let spoil: [(&str, Spoil); 6] = [
            ("epoch", |r| r.members.epoch = 1),
            ("shards", |r| r.spread = 0),
            ("twice", |r| r.members.leaving = r.members.serving.clone()),
            ("nobody", |r| r.dropped = true),
            ("served", |r| r.members.serving.clear()),
            ("nowhere", |r| r.goal = Some(Vec::new())),
        ];
        for (word, spoil) in spoil {
            let mut bad = good.clone();
            spoil(&mut bad);
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
