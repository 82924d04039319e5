//! The directory as a model: a register that compares and sets, and tells every node late, early, twice, or not for long.

use tropism_placement::{Directory as Decided, Records, Refusal, RegionName, ScopeName, StoredRecord};
use tropism_replica::Input;

use super::{What, World};
use crate::checkers::Promise;
use crate::rng::Rng;

/// The fewest regions that a scope is sent to: what one disk alone has is lost with it.
const LEAST_REGIONS: usize = 2;

/// What was decided, and how it reaches the nodes.
pub(super) struct Directory {
    decided: Decided,
    /// The same, beside the rules.
    pub(super) records: Records,
    /// In which life and up to which revision each node heard of it.
    heard: Vec<(u64, u64)>,
    rng: Rng,
    /// Scopes are dropped now and then. Drawn apart, so that worlds where none is are what they were.
    drops: Option<Rng>,
    /// Until when nobody can decide anything, us.
    down_until_us: u64,
}

impl Directory {
    pub(super) fn new(seed: u64, records: Records, may_drop: bool) -> Self {
        // A draw of its own, so that worlds without moves are what they were.
        let rng = Rng::new(seed ^ 0x006d_6f76_6573);
        let mut drops = Rng::new(seed ^ 0x6472_6f70_7300);
        let drops = (drops.chance(40) && may_drop).then_some(drops);
        Self { decided: Decided::default(), records, heard: Vec::new(), rng, drops, down_until_us: 0 }
    }
}

impl World {
    /// A node started: some time later it hears what the directory has.
    pub(super) fn will_hear(&mut self, at: usize) {
        if !self.config.moves {
            return;
        }
        let in_us = self.directory.rng.between(0, 400_000);
        let life = self.nodes[at].life;
        self.schedule(in_us, What::Feed { at, life });
    }

    /// A node hears everything that the directory has and it has not heard in this life.
    pub(super) fn feed(&mut self, at: usize, life: u64) {
        if self.nodes[at].life != life {
            return; // it hears it when it starts
        }
        let heard = &mut self.directory.heard;
        heard.resize(self.nodes.len().max(heard.len()), (0, 0));
        let after = if heard[at].0 == life { heard[at].1 } else { 0 };
        heard[at] = (life, self.directory.decided.revision());
        let records = self.directory.decided.since(after).map(|(_, record)| record.clone()).collect();
        self.input(at, Input::Records { records, all: true });
    }

    /// A steward proposes: it takes a while to be decided, and may never be.
    pub(super) fn propose(&mut self, record: StoredRecord) {
        let rng = &mut self.directory.rng;
        if rng.chance(5) && !self.settling {
            return self.cover("a proposal hung");
        }
        let most = if rng.chance(10) { 5_000_000 } else { 200_000 };
        let in_us = rng.between(1_000, most);
        self.schedule(in_us, What::Decide(Box::new(record)));
    }

    pub(super) fn decide(&mut self, record: StoredRecord) {
        let name = record.scope.name.clone();
        if self.directory.down_until_us > self.now_us && !self.settling {
            return self.cover("the directory was down");
        }
        match self.directory.decided.decide(record.clone()) {
            Ok(_) if self.directory.records.epoch(&name) == record.epoch() => return, // it was proposed before
            Ok(_) => {}
            Err(Refusal::Late { .. }) => return self.cover("a proposal came too late"),
            Err(refusal) => {
                let text = format!("a record was proposed that cannot be: {refusal}");
                return self.checkers.violated(Promise::Service, Vec::new(), text);
            }
        }
        let members = &record.members;
        let what = match (members.learners.is_empty(), members.leaving.is_empty()) {
            _ if record.dropped => "a scope was dropped",
            _ if self.directory.records.stored(&name).is_some_and(|stored| stored.dropped) => {
                "a dropped scope was created again"
            }
            _ if record.goal.is_none() && members.is_stable() => "a scope is where it shall be",
            (false, _) => "a scope is to expand",
            (_, false) => "a scope is to shrink",
            (true, true) => "a scope is on its way",
        };
        self.journal.note(self.now_us, 0, || format!("the directory decides {record:?}"));
        self.directory.records.adopt(record);
        self.checkers.truth.decided(&self.directory.records, &name);
        self.cover(what);
        for at in 0..self.nodes.len() {
            let rng = &mut self.directory.rng;
            let late = rng.chance(5) && !self.settling;
            let in_us = rng.between(1_000, if late { 20_000_000 } else { 600_000 });
            let life = self.nodes[at].life;
            self.schedule(in_us, What::Feed { at, life });
        }
    }

    /// Somebody wants a scope elsewhere.
    pub(super) fn wish_a_move(&mut self) {
        if self.settling || !self.config.moves {
            return;
        }
        let rng = &mut self.directory.rng;
        let pause = rng.between(300_000, 6_000_000);
        let down = rng.chance(5).then(|| rng.between(100_000, 10_000_000));
        if let Some(down) = down {
            self.directory.down_until_us = self.now_us + down;
        }
        self.schedule(pause, What::WishMove);
        let scope: ScopeName = self.directory.rng.pick(&self.config.scopes).0.clone();
        if self.drop_or_create(&scope) {
            return;
        }
        let Some(record) = self.directory.records.record(&scope) else { return };
        let stored =
            self.directory.records.stored(&scope).cloned().unwrap_or_else(|| StoredRecord::of(&record));
        let rng = &mut self.directory.rng;
        let mut goal: Vec<RegionName> = self.config.regions.clone();
        let least = LEAST_REGIONS.min(goal.len());
        while goal.len() > least && rng.chance(65) {
            goal.swap_remove(rng.index(goal.len()));
        }
        // Now and then what is under way is called off.
        let goal = if rng.chance(10) { None } else { Some(goal) };
        self.decide(stored.bound_for(goal));
    }

    /// Somebody wants a scope gone, or back; says whether it was that.
    fn drop_or_create(&mut self, scope: &ScopeName) -> bool {
        let Directory { drops, records, .. } = &mut self.directory;
        let Some(rng) = drops else { return false };
        let dropped = records.stored(scope).is_some_and(|stored| stored.dropped);
        if !rng.chance(if dropped { 60 } else { 15 }) {
            return dropped; // nothing else can be done with it
        }
        let implied = Records::new(self.config.rules.clone()).record(scope);
        let Some(implied) = implied else { return false };
        let next = match records.stored(scope) {
            Some(stored) if dropped => stored.created_again(&implied, rng.pick(&implied.serving)),
            Some(stored) => stored.dropped(),
            None => StoredRecord::of(&implied).dropped(),
        };
        self.decide(next);
        true
    }

    /// What of the directory's records is not followed yet, if anything.
    pub(super) fn not_followed(&self) -> Option<String> {
        for record in self.directory.records.all_stored() {
            let name = &record.scope.name;
            if record.goal.is_some() || !record.members.is_stable() {
                return Some(format!("{name} is on its way: {record:?}"));
            }
            for (n, node) in self.nodes.iter().enumerate() {
                let Some((_, replica)) = &node.running else { continue };
                if replica.records().epoch(name) != record.epoch() {
                    return Some(format!("n{n} has not heard of epoch {} of {name}", record.epoch()));
                }
            }
        }
        let deletes =
            |node: &super::Node| node.running.as_ref().is_some_and(|(_, replica)| replica.deleting() > 0);
        self.nodes.iter().position(deletes).map(|n| format!("n{n} deletes what it does not hold any more"))
    }
}
