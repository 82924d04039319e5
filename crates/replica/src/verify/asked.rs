//! The member that is asked: one snapshot for each comparison, looked at a few rows at a time.

use std::collections::BTreeSet;

use tropism_crdt::{NodeId, Origin, Vector};
use tropism_placement::ShardId;
use tropism_storage::Store;

use super::messages::{MemberRows, Verified, Verify, VerifyAnswer, VerifyAsk};
use super::scan::{Goal, RowsSeen, Scan, changed_between, held, sum_without};
use crate::frame::FrameBody;
use crate::limits::{
    SETTLE_US, VERIFICATIONS, VERIFIED_KEYS, VERIFY_CELLS, VERIFY_CHANGES, VERIFY_PATIENCE_US,
};
use crate::replica::{Now, Replica, ReplicaError};
use crate::sketch::Sketch;
use crate::transfer::Snapshot;

/// A comparison that a peer asks about.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) peer: NodeId,
    id: u64,
    shard: ShardId,
    step: u32,
    /// The asker's vector; what its snapshot has.
    vector: Vector,
    /// The vector is waited for until then.
    until_us: u64,
    taken: Option<Taken>,
    scan: Option<Scan>,
    /// Keys that are asked for by name.
    names: Vec<String>,
    /// The answer to `step`, once there is one.
    answer: Option<VerifyAnswer>,
    touched_us: u64,
}

/// What stays the same for all questions.
#[derive(Debug)]
struct Taken {
    view: Snapshot,
    vector: Vector,
    digest: Option<u128>,
    /// See [`MemberRows::beyond`].
    beyond: Option<Vec<(String, (Origin, u64))>>,
}

impl Asked {
    pub(super) fn is_scanning(&self) -> bool {
        self.scan.is_some()
    }

    /// When it has to be looked at again, beside scans.
    pub(super) fn deadline(&self) -> u64 {
        let waits = self.taken.is_none() && self.answer.is_none();
        if waits { self.until_us } else { self.touched_us + VERIFY_PATIENCE_US }
    }
}

impl Replica {
    /// A peer asks about a shard.
    pub(crate) fn verify_asked(&mut self, now: Now, from: NodeId, verify: Verify) {
        let Verify { row, id, step, ask } = verify;
        let shard = row.id();
        let known = self.verifications.asked.iter().position(|asked| asked.peer == from && asked.id == id);
        let answer = match (known, ask) {
            (_, VerifyAsk::End) => {
                self.verifications.asked.retain(|asked| asked.peer != from || asked.id != id);
                return;
            }
            (Some(at), ask) => {
                let asked = &mut self.verifications.asked[at];
                if step < asked.step || asked.shard != shard {
                    return; // it comes late
                }
                asked.touched_us = now.mono_us;
                if step > asked.step {
                    asked.step = step;
                    asked.ask(ask);
                }
                // A question that comes twice: the answer may have been lost.
                match &asked.answer {
                    Some(answer) => answer.clone(),
                    None => return,
                }
            }
            (None, VerifyAsk::Rows { vector }) => {
                if self.shares(&row, from) {
                    self.let_go_of_one(from);
                    self.verifications.asked.push(Asked {
                        peer: from,
                        id,
                        shard,
                        step,
                        vector,
                        until_us: now.mono_us + SETTLE_US,
                        taken: None,
                        scan: None,
                        names: Vec::new(),
                        answer: None,
                        touched_us: now.mono_us,
                    });
                    return;
                }
                VerifyAnswer::NotHeld
            }
            (None, _) => VerifyAnswer::Gone,
        };
        self.send(from, FrameBody::Verified(Verified { shard, id, step, answer }));
    }

    /// Makes room for one more of a peer: that which it asked about least lately goes.
    fn let_go_of_one(&mut self, peer: NodeId) {
        let asked = &mut self.verifications.asked;
        if asked.iter().filter(|asked| asked.peer == peer).count() < VERIFICATIONS {
            return;
        }
        let all = asked.iter().enumerate().filter(|(_, asked)| asked.peer == peer);
        if let Some((at, _)) = all.min_by_key(|(_, asked)| asked.touched_us) {
            asked.remove(at);
        }
    }

    /// Begins what waits for a vector, answers what is scanned, lets go of what nobody asks about any more.
    pub(super) fn asked_due(&mut self, now: Now, store: &Store) -> Result<(), ReplicaError> {
        self.verifications.asked.retain(|asked| asked.touched_us + VERIFY_PATIENCE_US > now.mono_us);
        for mut asked in std::mem::take(&mut self.verifications.asked) {
            let waits = asked.taken.is_none() && asked.answer.is_none();
            if waits {
                self.take_snapshot(now, store, &mut asked)?;
            }
            let mut says = waits && asked.answer.is_some();
            if let (Some(scan), Some(taken)) = (asked.scan.take_if(|scan| scan.is_done()), &asked.taken) {
                asked.answer = Some(self.told_of(&asked, taken, scan)?);
                says = true;
            }
            if let Some(answer) = asked.answer.clone().filter(|_| says) {
                asked.touched_us = now.mono_us;
                let Asked { peer, id, shard, step, .. } = asked;
                self.send(peer, FrameBody::Verified(Verified { shard, id, step, answer }));
            }
            self.verifications.asked.push(asked);
        }
        Ok(())
    }

    /// Takes the snapshot once everything of the asker's vector is in it, or that was waited for.
    fn take_snapshot(&self, now: Now, store: &Store, asked: &mut Asked) -> Result<(), ReplicaError> {
        let (shard, over) = (asked.shard, asked.until_us <= now.mono_us);
        let (vector, _) = self.shards.state(store, shard)?;
        if !over && !vector.dominates(&asked.vector) {
            return Ok(());
        }
        let Some((view, vector, digest)) = self.verifiable(store, shard)? else {
            asked.answer = over.then_some(VerifyAnswer::Settling);
            return Ok(());
        };
        if !over && !vector.dominates(&asked.vector) {
            return Ok(()); // with the next commit
        }
        let beyond = changed_between(&*view.0, shard, &asked.vector, &vector)?;
        let beyond = beyond.map(|keys| keys.into_iter().collect());
        asked.taken = Some(Taken { view, vector, digest, beyond });
        asked.scan = Some(Scan::new(shard, Goal::Rows(RowsSeen::default())));
        Ok(())
    }

    /// What a scan that is over says.
    fn told_of(&self, asked: &Asked, taken: &Taken, scan: Scan) -> Result<VerifyAnswer, ReplicaError> {
        let view = &*taken.view.0;
        Ok(match scan.goal {
            Goal::Rows(seen) => {
                let beyond = taken.beyond.iter().flatten().map(|(key, _)| key);
                let prints = self.shards.fingerprints();
                let sum_without = sum_without(view, asked.shard, prints, seen.sum, beyond)?;
                VerifyAnswer::Rows(Box::new(MemberRows {
                    vector: taken.vector.clone(),
                    digest: taken.digest,
                    seen,
                    beyond: taken.beyond.clone(),
                    sum_without,
                }))
            }
            Goal::Cells { sketch, sum, .. } => {
                VerifyAnswer::Cells { sum, cells: sketch.encode().next().unwrap_or_default().into() }
            }
            Goal::Keys { found, count, .. } => {
                VerifyAnswer::Keys { found, count, asked: held(view, asked.shard, asked.names.iter())? }
            }
        })
    }
}

impl Asked {
    /// Takes the next question. Until the snapshot is taken there is nothing to ask about.
    fn ask(&mut self, ask: VerifyAsk) {
        (self.answer, self.scan) = (None, None);
        let Some(taken) = &self.taken else {
            self.answer = Some(VerifyAnswer::Gone);
            return;
        };
        let goal = match ask {
            VerifyAsk::Rows { .. } | VerifyAsk::End => Goal::Rows(RowsSeen::default()),
            VerifyAsk::Cells { salt, cells, one_in, without } => {
                let named = taken.beyond.iter().flatten().map(|(key, _)| key.clone());
                let without: BTreeSet<String> =
                    without.into_iter().take(VERIFY_CHANGES).chain(named).collect();
                let sketch = Sketch::new(salt, 0..(cells as usize).min(VERIFY_CELLS));
                Goal::Cells { without, one_in: one_in.max(1), salt, sketch, sum: 0 }
            }
            VerifyAsk::Keys { fingerprints, keys } => {
                self.names = keys.into_iter().take(VERIFIED_KEYS).collect();
                let wanted = fingerprints.into_iter().take(VERIFY_CELLS).collect();
                Goal::Keys { wanted, found: Vec::new(), count: 0 }
            }
        };
        self.scan = Some(Scan::new(self.shard, goal));
    }

    /// The scan, and what it goes over.
    pub(super) fn scanning(&mut self) -> Option<(&mut Scan, &Snapshot, ShardId)> {
        let scan = self.scan.as_mut().filter(|scan| !scan.is_done())?;
        Some((scan, &self.taken.as_ref()?.view, self.shard))
    }
}
