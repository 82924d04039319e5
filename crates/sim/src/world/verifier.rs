//! An operator who has scopes verified: now and then while things break, and every scope at every node in the end.
//!
//! What must hold: a verification names a key that was rotten from when it began to when it ended; it finds nothing to
//! differ where nothing ever was wrong, whatever was written, cut or restarted meanwhile; and in the end it says equal.

use std::collections::BTreeMap;

use tropism_placement::{RegionName, ScopeName, ShardId};
use tropism_replica::{Input, MemberState, VerifiedShard, VerifyCall, VerifyError, VerifyResult};
use tropism_storage::Reads;

use super::World;
use crate::checkers::Promise;
use crate::rng::Rng;

/// Of how many worlds, in percent, an operator has scopes verified while things break.
const WORLDS_PERCENT: u64 = 50;
/// Of how many operations there, in percent, one is begun beside it; and while a row is rotten.
const OPERATIONS_PERCENT: (u64, u64) = (2, 20);
/// How long it may take, us.
const PATIENCE_US: (u64, u64) = (1_000_000, 20_000_000);

/// The operator. What it does is drawn beside the world's other luck, so that worlds without it stay as they are.
#[derive(Debug)]
pub(super) struct Verifier {
    rng: Rng,
    /// Whether it does anything before the end.
    early: bool,
    /// What was asked for and has no answer, by ticket.
    asked: BTreeMap<u64, Asked>,
    /// In the end: what is still to be found equal.
    left: Option<Vec<(usize, ScopeName, u16)>>,
}

#[derive(Debug)]
struct Asked {
    at: usize,
    scope: ScopeName,
    index: u16,
    shard: ShardId,
    /// Keys that were rotten when it was asked: where, in which life of the node, and whether the row was gone.
    rotten: Vec<(usize, u64, String, bool)>,
}

impl Verifier {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x7665_7269_6679);
        let early = rng.chance(WORLDS_PERCENT);
        Self { rng, early, asked: BTreeMap::new(), left: None }
    }
}

impl World {
    /// Has some shard verified at some node.
    pub(super) fn verify_now_and_then(&mut self) {
        let rotten = self.checkers.truth.rotten.iter().next().map(|(shard, _)| *shard);
        let verifier = &mut self.verifier;
        let percent = if rotten.is_some() { OPERATIONS_PERCENT.1 } else { OPERATIONS_PERCENT.0 };
        if !verifier.early || !verifier.rng.chance(percent) {
            return;
        }
        let at = verifier.rng.index(self.nodes.len());
        let scope = verifier.rng.pick(&self.config.scopes).0.clone();
        let patience_us = verifier.rng.between(PATIENCE_US.0, PATIENCE_US.1);
        let draw = verifier.rng.word();
        let shards = |scope: &ScopeName| {
            let record = self.checkers.truth.record(scope.as_str())?;
            let members: Vec<RegionName> = record.members().cloned().collect();
            let ids = (0..record.spread).map(|index| (index, ShardId::of(&record.scope, index)));
            Some((members, ids.collect::<Vec<_>>()))
        };
        // Where a row is rotten it looks there.
        let all = self.config.scopes.iter().filter_map(|(scope, _)| Some((scope.clone(), shards(scope)?.1)));
        let there = rotten.and_then(|rotten| {
            let mut all = all.flat_map(|(scope, ids)| ids.into_iter().map(move |id| (scope.clone(), id)));
            all.find(|(_, (_, id))| *id == rotten).map(|(scope, (index, _))| (scope, index))
        });
        let (scope, index) = match there {
            Some(there) => there,
            None => {
                let Some((_, ids)) = shards(&scope) else { return };
                (scope, ids[draw as usize % ids.len()].0)
            }
        };
        let held = shards(&scope).is_some_and(|(members, _)| members.contains(&self.nodes[at].region));
        if held && self.nodes[at].is_open() {
            self.ask_verify(at, scope, index, patience_us);
        }
    }

    /// In the end, when the world is equal: whether every scope was found so, at every node.
    pub(super) fn all_verified(&mut self) -> bool {
        if self.verifier.left.is_none() {
            let mut all = Vec::new();
            for (scope, _) in &self.config.scopes {
                let Some(record) = self.checkers.truth.record(scope.as_str()) else { continue };
                for (at, node) in self.nodes.iter().enumerate() {
                    if record.members().any(|region| *region == node.region) {
                        all.extend((0..record.spread).map(|index| (at, scope.clone(), index)));
                    }
                }
            }
            self.verifier.left = Some(all);
        }
        let asked = &self.verifier.asked;
        let is_asked = |(at, scope, index): &&(usize, ScopeName, u16)| {
            asked.values().any(|asked| (asked.at, &asked.scope, asked.index) == (*at, scope, *index))
        };
        let left = self.verifier.left.as_deref().unwrap_or_default();
        let next = left.iter().find(|one| !is_asked(one)).cloned();
        let done = left.is_empty();
        if let Some((at, scope, index)) = next {
            self.ask_verify(at, scope, index, PATIENCE_US.1);
        }
        done
    }

    /// Which shards were not found equal yet, and where.
    pub(super) fn unverified(&self) -> String {
        format!("not verified yet: {:?}; asked {:?}", self.verifier.left, self.verifier.asked)
    }

    fn ask_verify(&mut self, at: usize, scope: ScopeName, index: u16, patience_us: u64) {
        let Some(record) = self.checkers.truth.record(scope.as_str()) else { return };
        let shard = ShardId::of(&record.scope, index);
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let rotten = self.rotten_rows(shard);
        let deadline_us = self.nodes[at].mono_base_us + self.now_us + patience_us;
        self.journal.note(self.now_us, at, || format!("is asked to verify {scope} {index} ({ticket})"));
        let call = VerifyCall { scope: scope.clone(), index, deadline_us };
        self.verifier.asked.insert(ticket, Asked { at, scope, index, shard, rotten });
        self.input(at, Input::Verify { ticket, call: Box::new(call) });
    }

    /// Where rows of a shard cannot be read, or are gone that another member has.
    fn rotten_rows(&self, shard: ShardId) -> Vec<(usize, u64, String, bool)> {
        let mut rotten = Vec::new();
        for (_, key) in self.checkers.truth.rotten.iter().filter(|(of, _)| *of == shard) {
            let rows: Vec<_> = self
                .nodes
                .iter()
                .map(|node| node.running.as_ref().map(|(store, _)| store.value(shard, key)))
                .collect();
            let elsewhere = rows.iter().any(|row| matches!(row, Some(Ok(Some(_)))));
            for (at, row) in rows.into_iter().enumerate() {
                let gone = match row {
                    Some(Err(_)) => false,
                    Some(Ok(None)) if elsewhere => true,
                    _ => continue,
                };
                rotten.push((at, self.nodes[at].life, key.clone(), gone));
            }
        }
        rotten
    }

    /// An operator has an answer.
    pub(super) fn was_verified(
        &mut self,
        at: usize,
        ticket: u64,
        outcome: Result<VerifiedShard, VerifyError>,
    ) {
        self.journal.note(self.now_us, at, || format!("verified {ticket}: {outcome:?}"));
        let Some(asked) = self.verifier.asked.remove(&ticket).filter(|asked| asked.at == at) else { return };
        let verified = match outcome {
            Ok(verified) => verified,
            Err(VerifyError::Busy) => return self.cover("a node had no room for a verification"),
            Err(VerifyError::NotHeld(_)) if self.config.moves => {
                return self.cover("a verification met a move");
            }
            Err(VerifyError::NoRule(_)) if self.config.moves => {
                return self.cover("a verification met a drop");
            }
            Err(error) => {
                let text = format!("n{at} does not verify a shard that it holds: {error}");
                return self.checkers.violated(Promise::Service, vec![at], text);
            }
        };
        let truth = &self.checkers.truth;
        let promised = truth.is_promised(asked.shard);
        let never_rotten = !truth.once_rotten.contains(&asked.shard);
        let result = verified.result();
        if result == VerifyResult::Differs && promised && never_rotten {
            let text = format!("n{at} found {} {} to differ: {verified:?}", asked.scope, asked.index);
            return self.checkers.violated(Promise::Convergence, vec![at], text);
        }
        // What was rotten when it began and is so still, in one life of that node.
        let still = self.rotten_rows(asked.shard);
        for rotten in asked.rotten.iter().filter(|rotten| still.contains(rotten)) {
            let (node, _, key, gone) = rotten;
            let member = verified.members.iter().find(|member| self.number(member.node) == Some(*node));
            let compared = member.is_some_and(|member| {
                // A row that is gone is missed only beside one that compares it.
                let all = verified.members.iter().skip(1);
                let beside = all.filter(|other| other.state == MemberState::Compared && other.left_out == 0);
                let here = verified.members.first().is_some_and(|asked| asked.node == member.node);
                member.state == MemberState::Compared
                    && (!*gone || if here { beside.count() > 0 } else { member.left_out == 0 })
            });
            let named = verified.keys.iter().any(|named| named.key == *key && !named.only_behind());
            if compared && !named && verified.more_keys == 0 {
                let text =
                    format!("n{at} verified, and did not name {key} that is rotten at n{node}: {verified:?}");
                return self.checkers.violated(Promise::Service, vec![at, *node], text);
            }
            if named {
                self.cover("a verification named a key that had rotted");
            }
        }
        if verified.members.iter().any(|member| member.lacks.changes > 0) {
            self.cover("a verification found a member behind");
        }
        match result {
            VerifyResult::Equal => self.cover("a verification found members equal"),
            VerifyResult::Incomplete => self.cover("a verification could not compare every member"),
            VerifyResult::Behind | VerifyResult::Differs => {}
        }
        if let Some(left) = &mut self.verifier.left
            && (result == VerifyResult::Equal || !promised)
        {
            left.retain(|(node, scope, index)| (*node, scope, *index) != (at, &asked.scope, asked.index));
        }
    }

    /// What was asked of a node is not answered any more.
    pub(super) fn verifier_lost(&mut self, at: usize) {
        self.verifier.asked.retain(|_, asked| asked.at != at);
    }
}
