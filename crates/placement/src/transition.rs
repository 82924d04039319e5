//! How a scope's regions change: EXPAND, CATCH-UP, JOINT, SHRINK, DRAIN, RETIRE, one record after the other.
//!
//! A change of the record is a compare-and-set on its epoch in the directory, so there is one record for an epoch. What the
//! next record is follows from the present one, the goal, and what the owners told ([`next_membership`]); it is the same for whoever
//! computes it, and stewards that fail over go on where the record is. What a node may do follows from the newest record that it
//! knows ([`Membership::role`]). Adopting is durable before it is told.
//!
//! What holds, in the words of the design: writes are never refused for a move (some region serves at all times); what was
//! acknowledged is held by a serving region before a leaving one deletes, even what a region took under an old record, since
//! it tells what it holds after it adopted the fence; nobody who is not a member stores anything. The model check in
//! `tests/tests/moves.rs` runs this very code.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use crate::name::RegionName;
use crate::record::PlacementRecord;

/// How long EXPAND may go on without progress before it is given up, milliseconds. SHRINK is never given up.
pub const EXPAND_PATIENCE_MS: u64 = 15 * 60_000;

/// Which regions are members of a scope, and how: the part of a placement record that moves. `R` names a region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Membership<R> {
    /// Grows by one with every change.
    pub epoch: u64,
    /// Regions that serve, the steward's first.
    pub serving: Vec<R>,
    /// Regions that receive and do not serve yet.
    pub learners: Vec<R>,
    /// Regions that no longer serve and hand over.
    pub leaving: Vec<R>,
}

/// What a region is to a scope, by one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads, writes, acknowledges.
    Serving,
    /// Stores what it is sent.
    Learner,
    /// Stores what it is sent and hands over what it has; refuses reads and client writes, and its copy counts for no
    /// acknowledgement: it may already have told what it holds.
    Leaving,
    /// Stores nothing, and deletes what it has.
    Stranger,
}

impl Role {
    /// Whether reads and client writes are answered.
    pub fn serves(self) -> bool {
        self == Self::Serving
    }

    /// Whether changes of others are stored.
    pub fn stores(self) -> bool {
        self != Self::Stranger
    }

    /// Whether a copy here counts for the durability of a write.
    pub fn acknowledges(self) -> bool {
        self == Self::Serving
    }

    /// Whether what is held is deleted.
    pub fn deletes(self) -> bool {
        self == Self::Stranger
    }
}

impl<R: Clone + Ord> Membership<R> {
    /// What a region is.
    pub fn role(&self, region: &R) -> Role {
        if self.serving.contains(region) {
            Role::Serving
        } else if self.learners.contains(region) {
            Role::Learner
        } else if self.leaving.contains(region) {
            Role::Leaving
        } else {
            Role::Stranger
        }
    }

    /// Whether nobody comes or goes.
    pub fn is_stable(&self) -> bool {
        self.learners.is_empty() && self.leaving.is_empty()
    }

    /// Takes a newer record; an older one, or another of the same epoch, changes nothing. Returns whether it was taken.
    pub fn adopt(&mut self, other: &Self) -> bool {
        let newer = other.epoch > self.epoch;
        if newer {
            self.clone_from(other);
        }
        newer
    }

    /// Whether the same regions are the same; who is the steward's may differ.
    pub fn same_members(&self, other: &Self) -> bool {
        Self::sorted(&self.serving) == Self::sorted(&other.serving)
            && Self::sorted(&self.learners) == Self::sorted(&other.learners)
            && Self::sorted(&self.leaving) == Self::sorted(&other.leaving)
    }

    /// Whether these members can come next, whatever they waited for: one of the steps of [`next_membership`], or
    /// [`give_up`].
    pub fn is_step(&self, next: &Self) -> bool {
        let (serving, learners) = (Self::sorted(&self.serving), Self::sorted(&self.learners));
        let (will_serve, will_learn) = (Self::sorted(&next.serving), Self::sorted(&next.learners));
        let stay = will_serve == serving;
        match (self.learners.is_empty(), self.leaving.is_empty()) {
            // EXPAND, or SHRINK.
            (true, true) if next.leaving.is_empty() => stay && will_learn.is_disjoint(&serving),
            (true, true) => {
                let left: BTreeSet<&R> = serving.difference(&will_serve).copied().collect();
                will_learn.is_empty() && will_serve.is_subset(&serving) && Self::sorted(&next.leaving) == left
            }
            // JOINT, or learners are given up.
            (false, true) => {
                let joined = will_serve == serving.union(&learners).copied().collect();
                next.leaving.is_empty() && will_learn.is_empty() && (stay || joined)
            }
            // RETIRE.
            (_, false) => stay && will_learn == learners && next.leaving.is_empty(),
        }
    }

    fn sorted(list: &[R]) -> BTreeSet<&R> {
        list.iter().collect()
    }

    /// The record after this one.
    fn after(&self, serving: Vec<R>, learners: Vec<R>, leaving: Vec<R>) -> Self {
        let next = Self { epoch: self.epoch + 1, serving, learners, leaving };
        debug_assert!(!next.serving.is_empty(), "somebody serves");
        debug_assert!(
            next.serving.iter().chain(&next.learners).chain(&next.leaving).collect::<BTreeSet<_>>().len()
                == next.serving.len() + next.learners.len() + next.leaving.len(),
            "a region is one thing"
        );
        next
    }
}

/// What a node holds of a scope: its shards' vectors.
pub trait Held {
    /// Whether everything that `other` includes is included.
    fn includes(&self, other: &Self) -> bool;
}

/// What an owner told, durable there before it was told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Told<V> {
    /// The newest epoch that it adopted.
    pub epoch: u64,
    /// What it held when it had adopted that.
    pub held: V,
}

/// A node that owns one of the scope's slots in its region, in its present incarnation: with another store it has told
/// nothing yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner<R, V> {
    /// Its region.
    pub region: R,
    /// Ended by the directory: it counts no more.
    pub ended: bool,
    /// The last that it told.
    pub told: Option<Told<V>>,
}

/// Why the record does not change now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Wait<R: fmt::Display> {
    /// The scope is where it shall be.
    #[error("the scope is where it shall be")]
    Done,
    /// A region has an owner that has not adopted the epoch; or none that is not ended, and nobody can say for it.
    #[error("region {region} has not adopted epoch {epoch}")]
    Adoption {
        /// The region.
        region: R,
        /// The epoch.
        epoch: u64,
    },
    /// A region's owner lacks something that a serving region holds.
    #[error("region {region} is catching up")]
    CatchUp {
        /// The region that comes.
        region: R,
    },
    /// A serving region's owner lacks something that a leaving one holds.
    #[error("region {region} lacks what a leaving region holds")]
    Drain {
        /// The region that stays.
        region: R,
    },
    /// The goal has fewer regions than a scope must have.
    #[error("the goal has {regions} regions; at least {least} are needed")]
    TooFew {
        /// Regions of the goal.
        regions: usize,
        /// Fewest.
        least: usize,
    },
}

/// The record that comes after `now` on the way to `goal`, or what is waited for. Each step:
///
/// * EXPAND: what is missing becomes a learner;
/// * JOINT: learners serve, when each of their owners includes what every owner of a serving region held after it adopted EXPAND;
/// * SHRINK: what is not in the goal leaves, when the goal's regions have adopted JOINT;
/// * RETIRE: leaving regions are gone, when each owner of a serving region includes what every owner of a leaving one held
///   after it adopted SHRINK.
///
/// A new goal in the midst changes where it goes on from: learners that it has not are given up, leaving regions first leave.
pub fn next_membership<R: Clone + Ord + fmt::Display, V: Held>(
    now: &Membership<R>,
    goal: &[R],
    least: usize,
    owners: &[Owner<R, V>],
) -> Result<Membership<R>, Wait<R>> {
    let least = least.max(1);
    let wanted = Membership::sorted(goal);
    if wanted.len() < least {
        return Err(Wait::TooFew { regions: wanted.len(), least });
    }
    if !now.leaving.is_empty() {
        drained(now, owners)?;
        return Ok(now.after(now.serving.clone(), now.learners.clone(), Vec::new()));
    }
    if now.learners.iter().any(|learner| !wanted.contains(learner)) {
        return Ok(give_up(now));
    }
    if !now.learners.is_empty() {
        caught_up(now, owners)?;
        let serving = now.serving.iter().chain(&now.learners).cloned().collect();
        return Ok(now.after(serving, Vec::new(), Vec::new()));
    }
    let serving = Membership::sorted(&now.serving);
    let missing: Vec<R> = wanted.difference(&serving).map(|region| (*region).clone()).collect();
    if !missing.is_empty() {
        return Ok(now.after(now.serving.clone(), missing, Vec::new()));
    }
    let (stay, leave): (Vec<R>, Vec<R>) =
        now.serving.iter().cloned().partition(|region| wanted.contains(region));
    if leave.is_empty() {
        return Err(Wait::Done);
    }
    for region in &stay {
        adopted(now, region, owners)?;
    }
    Ok(now.after(stay, Vec::new(), leave))
}

/// The record after EXPAND is given up: learners are strangers again. A record without learners keeps its members.
pub fn give_up<R: Clone + Ord>(now: &Membership<R>) -> Membership<R> {
    now.after(now.serving.clone(), Vec::new(), now.leaving.clone())
}

/// What each owner of a region told under the present epoch. A region without an owner that is left cannot say anything, and
/// nothing is concluded from that.
fn adopted<'a, R: Clone + Ord + fmt::Display, V>(
    now: &Membership<R>,
    region: &R,
    owners: &'a [Owner<R, V>],
) -> Result<Vec<&'a V>, Wait<R>> {
    let refuse = || Wait::Adoption { region: region.clone(), epoch: now.epoch };
    let left: Vec<&Owner<R, V>> =
        owners.iter().filter(|owner| owner.region == *region && !owner.ended).collect();
    if left.is_empty() {
        return Err(refuse());
    }
    let told = |owner: &&'a Owner<R, V>| {
        owner.told.as_ref().filter(|told| told.epoch >= now.epoch).map(|told| &told.held)
    };
    left.iter().map(|owner| told(owner).ok_or_else(refuse)).collect()
}

fn caught_up<R: Clone + Ord + fmt::Display, V: Held>(
    now: &Membership<R>,
    owners: &[Owner<R, V>],
) -> Result<(), Wait<R>> {
    for source in &now.serving {
        let held = adopted(now, source, owners)?;
        for region in &now.learners {
            if !all_include(&adopted(now, region, owners)?, &held) {
                return Err(Wait::CatchUp { region: region.clone() });
            }
        }
    }
    Ok(())
}

fn drained<R: Clone + Ord + fmt::Display, V: Held>(
    now: &Membership<R>,
    owners: &[Owner<R, V>],
) -> Result<(), Wait<R>> {
    for source in &now.leaving {
        let held = adopted(now, source, owners)?;
        for region in &now.serving {
            if !all_include(&adopted(now, region, owners)?, &held) {
                return Err(Wait::Drain { region: region.clone() });
            }
        }
    }
    Ok(())
}

fn all_include<V: Held>(these: &[&V], those: &[&V]) -> bool {
    these.iter().all(|this| those.iter().all(|that| this.includes(that)))
}

impl PlacementRecord {
    /// Its members and their epoch.
    pub fn membership(&self) -> Membership<RegionName> {
        Membership {
            epoch: self.epoch,
            serving: self.serving.clone(),
            learners: self.learners.clone(),
            leaving: self.leaving.clone(),
        }
    }

    /// The same scope with these members.
    #[must_use]
    pub fn with_membership(&self, membership: Membership<RegionName>) -> Self {
        let Membership { epoch, serving, learners, leaving } = membership;
        Self { epoch, serving, learners, leaving, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use super::{Held, Membership, Owner, Role, Told, Wait, give_up, next_membership};

    impl Held for u8 {
        fn includes(&self, other: &Self) -> bool {
            self & other == *other
        }
    }

    fn stable(serving: &[char]) -> Membership<char> {
        Membership { epoch: 1, serving: serving.to_vec(), learners: vec![], leaving: vec![] }
    }

    fn owner(region: char, epoch: u64, held: u8) -> Owner<char, u8> {
        Owner { region, ended: false, told: Some(Told { epoch, held }) }
    }

    #[test]
    fn a_move_takes_four_records_each_after_what_it_waits_for() {
        let first = stable(&['a', 'b']);
        let goal = ['b', 'c'];
        let expand = next_membership::<_, u8>(&first, &goal, 1, &[]).unwrap();
        assert_eq!((expand.epoch, &*expand.learners), (2, &['c'][..]));
        assert_eq!(['a', 'c', 'x'].map(|r| expand.role(&r)), [Role::Serving, Role::Learner, Role::Stranger]);

        let late = [owner('a', 1, 3), owner('b', 2, 1), owner('c', 2, 3)];
        assert_eq!(next_membership(&expand, &goal, 1, &late), Err(Wait::Adoption { region: 'a', epoch: 2 }));
        let behind = [owner('a', 2, 3), owner('b', 2, 1), owner('c', 2, 1)];
        assert_eq!(next_membership(&expand, &goal, 1, &behind), Err(Wait::CatchUp { region: 'c' }));
        let joint =
            next_membership(&expand, &goal, 1, &[owner('a', 2, 3), owner('b', 2, 1), owner('c', 2, 3)])
                .unwrap();
        assert_eq!((joint.epoch, &*joint.serving), (3, &['a', 'b', 'c'][..]));

        let told = |epoch, held| [owner('a', epoch, 7), owner('b', epoch, held), owner('c', epoch, held)];
        assert_eq!(
            next_membership(&joint, &goal, 1, &told(2, 7)),
            Err(Wait::Adoption { region: 'b', epoch: 3 })
        );
        let shrink = next_membership(&joint, &goal, 1, &told(3, 1)).unwrap();
        assert_eq!((&*shrink.serving, shrink.role(&'a')), (&['b', 'c'][..], Role::Leaving));
        assert!(
            !shrink.role(&'a').serves() && shrink.role(&'a').stores() && !shrink.role(&'a').acknowledges()
        );

        assert_eq!(next_membership(&shrink, &goal, 1, &told(4, 3)), Err(Wait::Drain { region: 'b' }));
        let retired = next_membership(&shrink, &goal, 1, &told(4, 7)).unwrap();
        assert!(retired.is_stable() && retired.role(&'a').deletes());
        assert_eq!(next_membership(&retired, &goal, 1, &told(4, 7)), Err(Wait::Done));
    }

    #[test]
    fn an_ended_owner_is_not_waited_for_and_a_region_of_only_such_says_nothing() {
        let shrink = Membership { leaving: vec!['a'], ..stable(&['b']) };
        let ended = Owner { region: 'a', ended: true, told: None };
        let (living, kept) = (owner('a', 1, 1), owner('b', 1, 1));
        assert!(next_membership(&shrink, &['b'], 1, &[ended.clone(), living, kept.clone()]).is_ok());
        let nobody = next_membership(&shrink, &['b'], 1, &[ended, kept]);
        assert_eq!(nobody, Err(Wait::Adoption { region: 'a', epoch: 1 }));
    }

    #[test]
    fn a_goal_with_too_few_regions_changes_nothing_and_another_goal_gives_learners_up() {
        let first = stable(&['a']);
        assert_eq!(next_membership::<_, u8>(&first, &[], 0, &[]), Err(Wait::TooFew { regions: 0, least: 1 }));
        assert_eq!(
            next_membership::<_, u8>(&first, &['b', 'b'], 2, &[]),
            Err(Wait::TooFew { regions: 1, least: 2 })
        );
        let expand = next_membership::<_, u8>(&first, &['b'], 1, &[]).unwrap();
        let given_up = next_membership::<_, u8>(&expand, &['a'], 1, &[]).unwrap();
        assert_eq!((given_up.epoch, given_up.is_stable(), &given_up), (3, true, &give_up(&expand)));
    }

    #[test]
    fn only_a_higher_epoch_is_adopted() {
        let mut view = stable(&['a']);
        let rival = stable(&['b']);
        assert!(!view.adopt(&rival) && view == stable(&['a']));
        let newer = Membership { epoch: 2, ..rival };
        assert!(view.adopt(&newer) && view == newer);
        assert!(!view.adopt(&stable(&['a'])));
    }
}
