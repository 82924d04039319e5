//! What the directory is: for each scope that is not where its rule says, the newest record, and in which order they came.
//!
//! A change of a record is a compare-and-set on its epoch. [`Directory::decide`] is the whole decision, the same wherever
//! it runs: as the state machine behind the consensus of the voters, and as the model in the simulator. It needs no rules,
//! since voters whose regions files differ would decide differently; who proposes a scope's first record makes it from
//! the record that the rules imply.
//!
//! Whoever follows the directory asks for what came after the revision that it has ([`Directory::since`]). Of each scope
//! there is only the newest record, under the revision that brought it: from revision 0 on it is the whole directory, and
//! no follower is ever too late.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::name::ScopeName;
use crate::records::{Hold, RULE_EPOCH, RecordError, StoredRecord};

/// Most scopes with a record of their own. Every node keeps them all in memory and a new voter gets them in one piece:
/// at some 300 B each that is 30 MB. Scopes that are where their rule says need none.
pub const MAX_STORED_RECORDS: usize = 100_000;

/// Why a record does not become the next one. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It is no record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Another change came first: look at the record again, and propose what follows from it.
    #[error("scope {scope} has a record of epoch {epoch}; one of epoch {proposed} does not come next")]
    Late {
        /// The scope.
        scope: ScopeName,
        /// The epoch of its newest record, [`RULE_EPOCH`] if it has none of its own.
        epoch: u64,
        /// The epoch that was proposed.
        proposed: u64,
    },
    /// The record cannot come after the present one, whatever its epoch.
    #[error("the record of scope {scope} cannot change so: {problem}")]
    NotNext {
        /// The scope.
        scope: ScopeName,
        /// What is wrong.
        problem: &'static str,
    },
    /// Nobody may move the scope.
    #[error("scope {0} is frozen: nobody moves it")]
    Frozen(ScopeName),
    /// There are as many records as there can be.
    #[error("{MAX_STORED_RECORDS} scopes have records of their own already")]
    Full,
}

#[derive(Debug, Clone)]
struct Entry {
    revision: u64,
    record: StoredRecord,
}

/// The directory's state. Invariants: `revision` counts the records that were decided, each scope's newest has the
/// revision that brought it, no two have the same.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    revision: u64,
    entries: BTreeMap<ScopeName, Entry>,
    by_revision: BTreeMap<u64, ScopeName>,
}

impl Directory {
    /// How many records were decided.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A scope's newest record, if it has one of its own.
    pub fn get(&self, scope: &ScopeName) -> Option<&StoredRecord> {
        self.entries.get(scope).map(|entry| &entry.record)
    }

    /// Makes a record the newest of its scope and returns the revision that it came with. The record that is the newest
    /// already is no conflict: who proposed it and heard no answer may propose it again.
    pub fn decide(&mut self, record: StoredRecord) -> Result<u64, Refusal> {
        record.check()?;
        let scope = record.scope.name.clone();
        match self.entries.get(&scope) {
            Some(entry) if entry.record == record => return Ok(entry.revision),
            Some(entry) => {
                late(&record, entry.record.epoch())?;
                follows(&entry.record, &record)?;
            }
            None => {
                late(&record, RULE_EPOCH)?;
                first(&record)?;
                if self.entries.len() >= MAX_STORED_RECORDS {
                    return Err(Refusal::Full);
                }
            }
        }
        self.revision += 1;
        self.put(self.revision, record);
        Ok(self.revision)
    }

    /// Takes over what a directory had at a revision, from its own copy or another's; a record that is not newer than the
    /// one that is here changes nothing. Records of one copy may come in any order.
    pub fn restore(&mut self, revision: u64, record: StoredRecord) -> Result<(), RecordError> {
        record.check()?;
        self.revision = self.revision.max(revision);
        if self.get(&record.scope.name).is_none_or(|known| known.epoch() < record.epoch()) {
            self.put(revision, record);
        }
        Ok(())
    }

    fn put(&mut self, revision: u64, record: StoredRecord) {
        let scope = record.scope.name.clone();
        if let Some(old) = self.entries.insert(scope.clone(), Entry { revision, record }) {
            self.by_revision.remove(&old.revision);
        }
        let shared = self.by_revision.insert(revision, scope);
        debug_assert!(shared.is_none(), "a revision brings one record");
    }

    /// The newest records that came after a revision, in order, each with its own.
    pub fn since(&self, revision: u64) -> impl Iterator<Item = (u64, &StoredRecord)> {
        let later = (std::ops::Bound::Excluded(revision), std::ops::Bound::Unbounded);
        self.by_revision
            .range(later)
            .filter_map(|(revision, scope)| Some((*revision, &self.entries.get(scope)?.record)))
    }
}

fn late(record: &StoredRecord, epoch: u64) -> Result<(), Refusal> {
    if record.epoch() == epoch + 1 {
        return Ok(());
    }
    Err(Refusal::Late { scope: record.scope.name.clone(), epoch, proposed: record.epoch() })
}

/// Whether a record can be a scope's first of its own.
fn first(record: &StoredRecord) -> Result<(), Refusal> {
    let refuse = |problem| Err(Refusal::NotNext { scope: record.scope.name.clone(), problem });
    if record.scope.incarnation != 0 {
        refuse("its name was never dropped")
    } else if !record.members.is_stable() {
        refuse("nobody comes or goes before it has a goal")
    } else {
        Ok(())
    }
}

/// Whether a record can come after another.
fn follows(now: &StoredRecord, next: &StoredRecord) -> Result<(), Refusal> {
    let refuse = |problem| Err(Refusal::NotNext { scope: now.scope.name.clone(), problem });
    if now.dropped {
        let anew = next.scope.incarnation == now.scope.incarnation + 1
            && !next.dropped
            && next.members.is_stable()
            && next.members.serving.len() == 1;
        return if anew {
            Ok(())
        } else {
            refuse("it is dropped, and can only be created again, in one region first")
        };
    }
    if next.scope.incarnation != now.scope.incarnation {
        return refuse("it is not dropped");
    }
    if (next.kind, next.spread, &next.rule) != (now.kind, now.spread, &now.rule) {
        return refuse("kind, number of shards and rule stay as they were when it was created");
    }
    if next.dropped {
        return Ok(());
    }
    if now.members.same_members(&next.members) {
        if now.hold == Hold::Frozen && next.goal.is_some() && next.goal != now.goal {
            return Err(Refusal::Frozen(now.scope.name.clone()));
        }
        return Ok(());
    }
    if !now.members.is_step(&next.members) {
        return refuse("its regions change by one step at a time");
    }
    if next.hold != now.hold || next.goal.is_some() && next.goal != now.goal {
        return refuse("a step changes nothing else");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::name::RegionName;
    use crate::scope::{Kind, ScopeId};
    use crate::transition::Membership;

    fn regions(names: &[&str]) -> Vec<RegionName> {
        names.iter().map(|name| RegionName::new(name).unwrap()).collect()
    }

    fn name(name: &str) -> ScopeName {
        ScopeName::new(name).unwrap()
    }

    fn members(epoch: u64, serving: &[&str], learners: &[&str], leaving: &[&str]) -> Membership<RegionName> {
        let (serving, learners, leaving) = (regions(serving), regions(learners), regions(leaving));
        Membership { epoch, serving, learners, leaving }
    }

    /// As the rule implies it.
    fn implied(scope: &str) -> StoredRecord {
        StoredRecord {
            scope: ScopeId { name: name(scope), incarnation: 0 },
            rule: "all".into(),
            kind: Kind::Register,
            spread: 1,
            members: members(RULE_EPOCH, &["a", "b"], &[], &[]),
            goal: None,
            hold: Hold::Free,
            dropped: false,
        }
    }

    fn problem(outcome: Result<u64, Refusal>) -> &'static str {
        match outcome {
            Err(Refusal::NotNext { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_scope_goes_its_way_one_record_after_the_other() {
        let mut directory = Directory::default();
        let bound = implied("x").bound_for(Some(regions(&["b", "c"])));
        let expand = bound.stepped(members(3, &["a", "b"], &["c"], &[]));
        let joint = expand.stepped(members(4, &["a", "b", "c"], &[], &[]));
        let shrink = joint.stepped(members(5, &["b", "c"], &[], &["a"]));
        let retired = shrink.stepped(members(6, &["b", "c"], &[], &[]));
        assert_eq!(retired.goal, None, "it is there");
        for (at, record) in [&bound, &expand, &joint, &shrink, &retired].into_iter().enumerate() {
            let revision = at as u64 + 1;
            assert_eq!(directory.decide(record.clone()), Ok(revision));
            assert_eq!(directory.decide(record.clone()), Ok(revision), "once more is no conflict");
        }
        let late = Refusal::Late { scope: name("x"), epoch: 6, proposed: 5 };
        assert_eq!(directory.decide(shrink), Err(late), "somebody else was first");
        assert_eq!(directory.get(&name("x")), Some(&retired));
        let since: Vec<_> = directory.since(0).map(|(revision, record)| (revision, record.epoch())).collect();
        assert_eq!(since, [(5, 6)], "only the newest is kept, with its revision");
        assert_eq!(directory.since(5).count(), 0);
    }

    #[test]
    fn what_does_not_follow_is_refused_and_changes_nothing() {
        let mut directory = Directory::default();
        let bound = implied("x").bound_for(Some(regions(&["b", "c"])));
        let too_far = StoredRecord { members: members(RULE_EPOCH + 2, &["a"], &[], &[]), ..bound.clone() };
        assert!(matches!(directory.decide(too_far), Err(Refusal::Late { .. })));
        let moved = StoredRecord { members: members(RULE_EPOCH + 1, &["a"], &["b"], &[]), ..bound.clone() };
        assert_eq!(problem(directory.decide(moved)), "nobody comes or goes before it has a goal");
        let mut later_life = bound.clone();
        later_life.scope.incarnation = 1;
        assert_eq!(problem(directory.decide(later_life)), "its name was never dropped");
        assert_eq!((directory.revision(), directory.since(0).count()), (0, 0));

        directory.decide(bound.clone()).unwrap();
        let jump = bound.stepped(members(3, &["b", "c"], &[], &[]));
        assert_eq!(problem(directory.decide(jump)), "its regions change by one step at a time");
        let mut other = bound.stepped(members(3, &["a", "b"], &["c"], &[]));
        other.goal = Some(regions(&["d"]));
        assert_eq!(problem(directory.decide(other)), "a step changes nothing else");
        let mut wider = bound.bound_for(None);
        wider.spread = 2;
        assert!(problem(directory.decide(wider)).starts_with("kind, number of shards"));
        let mut nobody = bound.bound_for(None);
        nobody.members.serving.clear();
        assert!(matches!(directory.decide(nobody), Err(Refusal::Record(_))));
        assert_eq!((directory.revision(), directory.get(&name("x"))), (1, Some(&bound)));
    }

    #[test]
    fn a_dropped_scope_is_only_created_again_and_is_another_one_then() {
        let mut directory = Directory::default();
        let dropped = implied("x").dropped();
        directory.decide(dropped.clone()).unwrap();
        let mut back = implied("x");
        back.members = members(dropped.epoch() + 1, &["b"], &[], &[]);
        back.goal = Some(regions(&["a", "b"]));
        assert!(problem(directory.decide(back.clone())).starts_with("it is dropped"), "the same life");
        back.scope.incarnation = 1;
        let everywhere =
            StoredRecord { members: members(back.epoch(), &["a", "b"], &[], &[]), ..back.clone() };
        assert!(problem(directory.decide(everywhere)).ends_with("in one region first"));
        directory.decide(back.clone()).unwrap();
        let mut next = back.held(Hold::Pinned);
        next.scope.incarnation = 2;
        assert_eq!(problem(directory.decide(next)), "it is not dropped");
    }

    #[test]
    fn a_frozen_scope_ends_its_way_and_begins_no_other() {
        let mut directory = Directory::default();
        let bound = implied("x").bound_for(Some(regions(&["b", "c"])));
        let frozen = bound.held(Hold::Frozen);
        directory.decide(bound).unwrap();
        directory.decide(frozen.clone()).unwrap();
        let elsewhere = frozen.bound_for(Some(regions(&["d"])));
        assert_eq!(directory.decide(elsewhere), Err(Refusal::Frozen(name("x"))));
        let expand = frozen.stepped(members(4, &["a", "b"], &["c"], &[]));
        directory.decide(expand.clone()).unwrap();
        directory.decide(expand.bound_for(None).held(Hold::Free)).unwrap_err(); // two changes are two epochs
        directory.decide(expand.bound_for(None)).unwrap();
    }

    #[test]
    fn a_copy_is_taken_over_in_any_order_and_nothing_older_undoes_what_is_newer() {
        let mut directory = Directory::default();
        let (x, y) = (implied("x").bound_for(Some(regions(&["c"]))), implied("y").dropped());
        let newer = x.held(Hold::Pinned);
        directory.restore(7, newer.clone()).unwrap();
        directory.restore(3, y.clone()).unwrap();
        directory.restore(2, x).unwrap();
        assert_eq!(directory.revision(), 7);
        let since: Vec<_> = directory.since(0).map(|(revision, record)| (revision, record.clone())).collect();
        assert_eq!(since, [(3, y), (7, newer)]);
    }
}
