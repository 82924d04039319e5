//! The node that was asked: takes a snapshot, compares it with each member, and puts together what that says.

use std::collections::BTreeMap;

use tropism_crdt::{NodeId, Origin, Vector};
use tropism_placement::{RegionName, ShardId, check_key};
use tropism_storage::{ShardRow, Store};

use super::messages::{MemberRows, Verified, Verify, VerifyAnswer, VerifyAsk};
use super::report::{KeyHeld, MemberState, Rows, VerifyCall, VerifyError};
use super::scan::{Goal, RowsSeen, Scan, changed_between, common, held, sum_without};
use crate::frame::FrameBody;
use crate::limits::{
    SETTLE_US, SKETCH_FIRST_CELLS, VERIFICATIONS, VERIFIED_KEYS, VERIFY_AGAIN, VERIFY_CELLS, VERIFY_CHANGES,
    VERIFY_RESEND_US,
};
use crate::replica::{Now, Output, Replica, ReplicaError, Ticket};
use crate::sketch::{Difference, Sketch, Unpeeled};
use crate::transfer::Snapshot;

/// Cells for each fingerprint that is thought to differ.
const CELLS_PER_DIFFERENCE: u64 = 2;

/// A shard that somebody wants verified.
#[derive(Debug)]
pub(super) struct Verification {
    pub(super) ticket: Ticket,
    pub(super) row: ShardRow,
    pub(super) shard: ShardId,
    pub(super) begun_us: u64,
    pub(super) deadline_us: u64,
    pub(super) own: Option<Own>,
    pub(super) sides: Vec<Side>,
}

/// What this node has of it.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) view: Snapshot,
    pub(super) vector: Vector,
    pub(super) digest: Option<u128>,
    pub(super) scan: Scan,
}

impl Own {
    /// What its rows are, once all were looked at.
    pub(super) fn seen(&self) -> Option<&RowsSeen> {
        match &self.scan.goal {
            Goal::Rows(seen) if self.scan.is_done() => Some(seen),
            _ => None,
        }
    }
}

/// Another member, and how far the comparison with it is.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) node: NodeId,
    pub(super) region: RegionName,
    pub(super) state: MemberState,
    /// Names the comparison; another one when it began again.
    pub(super) id: u64,
    pub(super) begun_again: u32,
    pub(super) stage: Stage,
    /// The question that is not answered yet, and when it was sent.
    pub(super) question: Option<Verify>,
    pub(super) sent_us: u64,
    /// The answer that was not looked at yet.
    pub(super) answer: Option<VerifyAnswer>,
    pub(super) step: u32,
    pub(super) theirs: Option<MemberRows>,
    pub(super) answered_us: u64,
    /// Keys of changes that we had and it had not, each with its last such change.
    pub(super) short_of: BTreeMap<String, (Origin, u64)>,
    pub(super) rows: Rows,
    /// Keys that differ: ours, and its own.
    pub(super) differ: BTreeMap<String, (KeyHeld, KeyHeld)>,
    pub(super) more: u64,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Both look at every row.
    Rows,
    /// Both make sketches.
    Cells {
        cells: u32,
        one_in: u32,
        tries: u32,
        salt: u64,
        scan: Scan,
    },
    /// We look for the keys that only we have so, and then ask for those that only it has so.
    Find {
        theirs: Vec<u128>,
        one_in: u32,
        scan: Scan,
    },
    Keys {
        ours: Vec<(String, KeyHeld)>,
        count: u64,
        one_in: u32,
    },
    /// Compared. What it had beyond us may be on its way here.
    Settle,
    Done,
}

impl Side {
    fn new(node: NodeId, region: RegionName) -> Self {
        Self {
            node,
            region,
            state: MemberState::NoAnswer,
            id: 0,
            begun_again: 0,
            stage: Stage::Rows,
            question: None,
            sent_us: 0,
            answer: None,
            step: 0,
            theirs: None,
            answered_us: 0,
            short_of: BTreeMap::new(),
            rows: Rows::NotCompared,
            differ: BTreeMap::new(),
            more: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    fn scan(&mut self) -> Option<&mut Scan> {
        match &mut self.stage {
            Stage::Cells { scan, .. } | Stage::Find { scan, .. } if !scan.is_done() => Some(scan),
            _ => None,
        }
    }

    fn end(&mut self, state: MemberState) {
        self.state = state;
        self.stage = Stage::Done;
    }

    /// Keys that are not compared: changes touch them that only one of both had.
    pub(super) fn left_out(&self) -> impl Iterator<Item = &String> {
        let theirs = self.theirs.iter().filter_map(|theirs| theirs.beyond.as_ref()).flatten();
        let theirs = theirs.map(|(key, _)| key).filter(|key| !self.short_of.contains_key(*key));
        self.short_of.keys().chain(theirs)
    }
}

impl Verification {
    /// The scan that is to go on, what it goes over, and of which shard.
    pub(super) fn scanning(&mut self) -> Option<(&mut Scan, &Snapshot, ShardId)> {
        let Own { view, scan, .. } = self.own.as_mut()?;
        if !scan.is_done() {
            return Some((scan, view, self.shard));
        }
        let scan = self.sides.iter_mut().find_map(Side::scan)?;
        Some((scan, view, self.shard))
    }

    /// Whether rows have to be looked at.
    pub(super) fn is_scanning(&self) -> bool {
        let of_side = |side: &Side| match &side.stage {
            Stage::Cells { scan, .. } | Stage::Find { scan, .. } => !scan.is_done(),
            _ => false,
        };
        self.own.as_ref().is_some_and(|own| !own.scan.is_done()) || self.sides.iter().any(of_side)
    }

    /// When it has to be looked at again, beside scans.
    pub(super) fn deadline(&self) -> u64 {
        let own = self.own.is_none().then_some(self.begun_us + SETTLE_US);
        let sides = self.sides.iter().filter_map(|side| match side.stage {
            Stage::Settle => Some(side.answered_us + SETTLE_US),
            _ => side.question.as_ref().map(|_| side.sent_us + VERIFY_RESEND_US),
        });
        sides.chain(own).fold(self.deadline_us, u64::min)
    }

    /// The link to a node is gone.
    pub(super) fn lost(&mut self, node: NodeId) {
        for side in &mut self.sides {
            if side.node == node && !matches!(side.stage, Stage::Settle | Stage::Done) {
                side.end(MemberState::Unreachable { for_us: 0 });
            }
        }
    }
}

impl Replica {
    /// Somebody wants a shard verified.
    pub(crate) fn verify(&mut self, now: Now, ticket: Ticket, call: &VerifyCall) {
        match self.try_verify(now, ticket, call) {
            Ok(verification) => self.verifications.running.push(verification),
            Err(error) => self.outputs.push_back(Output::Verified { ticket, outcome: Err(error) }),
        }
    }

    fn try_verify(
        &mut self,
        now: Now,
        ticket: Ticket,
        call: &VerifyCall,
    ) -> Result<Verification, VerifyError> {
        let VerifyCall { scope, index, deadline_us } = call.clone();
        let record = self.record(&scope).ok_or_else(|| VerifyError::NoRule(scope.clone()))?;
        if !record.members().any(|region| *region == self.identity.region) {
            return Err(VerifyError::NotHeld(scope));
        }
        if index >= record.spread {
            return Err(VerifyError::NoShard { scope, index, spread: record.spread });
        }
        if self.verifications.running.len() >= VERIFICATIONS {
            return Err(VerifyError::Busy);
        }
        let row = ShardRow { scope: record.scope.clone(), index, kind: record.kind };
        let mut sides = Vec::new();
        for peer in &self.identity.peers {
            if record.members().any(|region| *region == peer.region) {
                let mut side = Side::new(peer.node, peer.region.clone());
                let up = self.links.get(&peer.node).is_some_and(|link| link.status(now).up);
                if !up {
                    side.end(MemberState::Unreachable { for_us: 0 });
                }
                sides.push(side);
            }
        }
        let shard = row.id();
        Ok(Verification { ticket, row, shard, begun_us: now.mono_us, deadline_us, own: None, sides })
    }

    /// A peer answers.
    pub(crate) fn verified(&mut self, from: NodeId, verified: Verified) {
        let Verified { shard, id, step, answer } = verified;
        let sides = self.verifications.running.iter_mut().filter(|v| v.shard == shard);
        let side = sides.flat_map(|v| &mut v.sides).find(|side| side.node == from && side.id == id);
        if let Some(side) = side.filter(|side| side.step == step && side.question.is_some()) {
            side.answer = Some(answer);
            side.question = None;
        }
    }

    /// Goes on with every verification as far as that is possible now.
    pub(super) fn running_due(&mut self, now: Now, store: &Store) -> Result<(), ReplicaError> {
        for mut verification in std::mem::take(&mut self.verifications.running) {
            if verification.own.is_none()
                && let Some((view, vector, digest)) = self.verifiable(store, verification.shard)?
            {
                let scan = Scan::new(verification.shard, Goal::Rows(RowsSeen::default()));
                verification.own = Some(Own { view, vector, digest, scan });
            }
            let waited = verification.begun_us + SETTLE_US <= now.mono_us;
            let over = verification.deadline_us <= now.mono_us || verification.own.is_none() && waited;
            let mut done = true;
            if let Some(own) = &verification.own {
                let (vector, _) = self.shards.state(store, verification.shard)?;
                for side in &mut verification.sides {
                    while self.advance(now, &verification.row, own, &vector, side)? {}
                    done &= side.is_done();
                }
                done &= own.seen().is_some();
            }
            if over || done && verification.own.is_some() {
                self.finish(now, store, verification)?;
            } else {
                self.verifications.running.push(verification);
            }
        }
        Ok(())
    }

    /// Asks a member.
    fn ask(&mut self, now: Now, row: &ShardRow, side: &mut Side, ask: VerifyAsk) {
        side.step = match (&ask, &mut side.id) {
            (VerifyAsk::Rows { .. }, id) => {
                self.verifications.next_id += 1;
                *id = self.verifications.next_id;
                0
            }
            _ => side.step + 1,
        };
        let question = Verify { row: row.clone(), id: side.id, step: side.step, ask };
        self.send(side.node, FrameBody::Verify(question.clone()));
        (side.question, side.answer, side.sent_us) = (Some(question), None, now.mono_us);
    }

    /// Does what comes next with a member; says whether more may be done at once.
    fn advance(
        &mut self,
        now: Now,
        row: &ShardRow,
        own: &Own,
        vector: &Vector,
        side: &mut Side,
    ) -> Result<bool, ReplicaError> {
        if let Some(question) =
            side.question.clone().filter(|_| side.sent_us + VERIFY_RESEND_US <= now.mono_us)
        {
            side.sent_us = now.mono_us;
            self.send(side.node, FrameBody::Verify(question)); // it, or its answer, may have been lost
        }
        match &side.answer {
            Some(VerifyAnswer::Settling) => {
                side.end(MemberState::Settling);
                return Ok(false);
            }
            Some(VerifyAnswer::NotHeld) => {
                side.end(MemberState::NotHeld);
                return Ok(false);
            }
            Some(VerifyAnswer::Gone) if side.begun_again < VERIFY_AGAIN => {
                let begun_again = side.begun_again + 1;
                *side = Side { begun_again, ..Side::new(side.node, side.region.clone()) };
            }
            Some(VerifyAnswer::Gone) => {
                side.end(MemberState::NoAnswer);
                return Ok(false);
            }
            _ => {}
        }
        let view = &*own.view.0;
        let shard = row.id();
        match std::mem::replace(&mut side.stage, Stage::Done) {
            Stage::Rows if side.id == 0 => {
                side.stage = Stage::Rows;
                self.ask(now, row, side, VerifyAsk::Rows { vector: own.vector.clone() });
            }
            Stage::Rows => match (side.answer.take(), own.seen()) {
                (Some(VerifyAnswer::Rows(theirs)), Some(seen)) => {
                    self.compare_rows(now, row, (own, seen), side, *theirs)?;
                    return Ok(true);
                }
                (answer, _) => (side.answer, side.stage) = (answer, Stage::Rows),
            },
            Stage::Cells { cells, one_in, tries, salt, scan } => match side.answer.take() {
                Some(VerifyAnswer::Cells { sum, cells: bytes }) if scan.is_done() => {
                    let theirs = Sketch::decode(salt, &bytes).ok();
                    let theirs = theirs.filter(|theirs| theirs.cells() == (0..cells as usize));
                    let (Goal::Cells { sketch, sum: own_sum, .. }, Some(theirs)) = (scan.goal, theirs) else {
                        side.end(MemberState::NoAnswer);
                        return Ok(false);
                    };
                    if one_in == 1 && sum == own_sum {
                        side.rows = Rows::Equal;
                        side.stage = Stage::Settle;
                        return Ok(true);
                    }
                    side.rows = Rows::Differ;
                    let mut difference = Difference::new(salt);
                    let peeled = match difference.extend(&sketch, &theirs) {
                        Ok(()) => difference.peel(),
                        Err(_) => Ok(Default::default()), // the same cells of both, by what was looked at
                    };
                    match peeled {
                        Ok(decoded) => {
                            let wanted = decoded.ours.into_iter().collect();
                            let goal = Goal::Keys { wanted, found: Vec::new(), count: 0 };
                            let scan = Scan::new(shard, goal);
                            side.stage = Stage::Find { theirs: decoded.theirs, one_in, scan };
                        }
                        Err(unpeeled) => {
                            let needed = match unpeeled {
                                Unpeeled::More { cells } => cells as u64,
                                Unpeeled::Beyond { estimate } => {
                                    estimate.saturating_mul(CELLS_PER_DIFFERENCE)
                                }
                            };
                            if tries >= VERIFY_AGAIN {
                                side.more = needed / CELLS_PER_DIFFERENCE * u64::from(one_in);
                                side.stage = Stage::Settle;
                                return Ok(true);
                            }
                            // Of too many a part, so that it fits: its keys are named, the others estimated.
                            let most = VERIFY_CELLS as u64;
                            let fewer = u32::try_from(needed.div_ceil(most)).unwrap_or(u32::MAX);
                            let cells = needed.min(most) as u32; // at most some thousand
                            let one_in = one_in.saturating_mul(fewer.max(1));
                            self.ask_cells(now, row, side, (cells, one_in, tries + 1));
                        }
                    }
                    return Ok(true);
                }
                answer => {
                    side.answer = answer;
                    side.stage = Stage::Cells { cells, one_in, tries, salt, scan };
                }
            },
            Stage::Find { theirs, one_in, scan } if scan.is_done() => {
                let Goal::Keys { found, count, .. } = scan.goal else { return Ok(false) };
                let keys = found.iter().map(|(key, _)| key.clone()).collect();
                side.stage = Stage::Keys { ours: found, count, one_in };
                self.ask(now, row, side, VerifyAsk::Keys { fingerprints: theirs, keys });
            }
            Stage::Keys { ours, count, one_in } => match side.answer.take() {
                Some(VerifyAnswer::Keys { found, count: their_count, asked }) => {
                    let theirs = found.into_iter().chain(asked).take(2 * VERIFIED_KEYS);
                    let theirs: BTreeMap<String, KeyHeld> = self.sound(row, theirs).collect();
                    let ours: BTreeMap<String, KeyHeld> = ours.into_iter().collect();
                    let unknown = theirs.keys().filter(|key| !ours.contains_key(*key));
                    let mut ours: BTreeMap<String, KeyHeld> =
                        held(view, shard, unknown)?.into_iter().chain(ours).collect();
                    for (key, theirs) in theirs {
                        if let Some(ours) = ours.remove(&key) {
                            side.differ.insert(key, (ours, theirs));
                        }
                    }
                    let named = side.differ.len() as u64;
                    let cut = count.max(their_count) > VERIFIED_KEYS as u64;
                    if cut || one_in > 1 {
                        let all = count.max(their_count).saturating_mul(u64::from(one_in));
                        side.more = all.saturating_sub(named);
                    }
                    side.stage = Stage::Settle;
                    return Ok(true);
                }
                answer => {
                    side.answer = answer;
                    side.stage = Stage::Keys { ours, count, one_in };
                }
            },
            Stage::Settle => {
                let theirs = side.theirs.as_ref().map(|theirs| &theirs.vector);
                let here = theirs.is_none_or(|theirs| vector.dominates(theirs));
                let waited = side.answered_us + SETTLE_US <= now.mono_us;
                if !here && !waited {
                    side.stage = Stage::Settle;
                } else if side.state != MemberState::TooFarApart {
                    side.end(MemberState::Compared);
                }
                if side.is_done() {
                    self.end(row, side);
                }
            }
            stage => side.stage = stage,
        }
        Ok(false)
    }

    /// Both have looked at all their rows.
    fn compare_rows(
        &mut self,
        now: Now,
        row: &ShardRow,
        (own, seen): (&Own, &RowsSeen),
        side: &mut Side,
        mut theirs: MemberRows,
    ) -> Result<(), ReplicaError> {
        let (view, shard) = (&*own.view.0, row.id());
        let common = common(&own.vector, &theirs.vector);
        let short_of = changed_between(view, shard, &common, &own.vector)?;
        theirs.seen.not_served.truncate(VERIFIED_KEYS);
        let not_served = std::mem::take(&mut theirs.seen.not_served);
        theirs.seen.not_served = self.sound(row, not_served.into_iter()).collect();
        let bounded = |beyond: &Vec<(String, _)>| {
            beyond.len() <= VERIFY_CHANGES && beyond.iter().all(|(key, _)| check_key(key).is_ok())
        };
        theirs.beyond = theirs.beyond.filter(bounded);
        side.answered_us = now.mono_us;
        side.stage = Stage::Settle;
        let Some(short_of) = short_of.filter(|_| theirs.beyond.is_some()) else {
            side.state = MemberState::TooFarApart;
            side.theirs = Some(theirs);
            return Ok(());
        };
        let beyond = theirs.beyond.iter().flatten().map(|(key, _)| key);
        let sum = sum_without(view, shard, self.shards.fingerprints(), seen.sum, beyond)?;
        let equal = short_of.is_empty() && sum == theirs.sum_without;
        (side.theirs, side.short_of) = (Some(theirs), short_of);
        if equal {
            side.rows = Rows::Equal;
        } else {
            self.ask_cells(now, row, side, (SKETCH_FIRST_CELLS as u32, 1, 0));
        }
        Ok(())
    }

    /// What a peer says of keys, as far as they can be keys of the shard, in words of bounded length.
    fn sound(
        &self,
        row: &ShardRow,
        told: impl Iterator<Item = (String, KeyHeld)>,
    ) -> impl Iterator<Item = (String, KeyHeld)> {
        let (record, shard) = (self.record(&row.scope.name), row.id());
        told.filter(move |(key, _)| {
            check_key(key).is_ok() && record.as_ref().is_some_and(|record| record.shard(key).1 == shard)
        })
        .map(|(key, held)| (key, held.bounded()))
    }

    /// Begins a sketch here and there.
    fn ask_cells(
        &mut self,
        now: Now,
        row: &ShardRow,
        side: &mut Side,
        (cells, one_in, tries): (u32, u32, u32),
    ) {
        let shard = row.id();
        let salt = xxhash_rust::xxh3::xxh3_64_with_seed(&shard.0, side.id ^ u64::from(tries) << 56);
        let without = side.left_out().cloned().collect();
        let sketch = Sketch::new(salt, 0..cells as usize);
        let goal = Goal::Cells { without, one_in, salt, sketch, sum: 0 };
        side.stage = Stage::Cells { cells, one_in, tries, salt, scan: Scan::new(shard, goal) };
        let without = side.short_of.keys().cloned().collect();
        self.ask(now, row, side, VerifyAsk::Cells { salt, cells, one_in, without });
    }
}
