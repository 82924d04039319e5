//! An operator who looks after parked keys: shows, tries again, gives up.
//!
//! Only hostile changes park keys here, and nothing is promised for those. What must hold: a show changes nothing and says
//! what the retry then finds, the keys are counted right, and everything else goes on.

use tropism_replica::{Input, ParkedCall, ParkedError, ParkedOp, ParkedStep};
use tropism_storage::Reads;

use super::World;
use crate::checkers::Promise;

/// Of how many operations, in percent, an operator does one beside it where something is parked.
const OPERATIONS_PERCENT: u64 = 10;

/// A step that was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    at: usize,
    call: ParkedCall,
    /// What the show just before it says, once it is answered: whether each change applies.
    shown: Option<Vec<bool>>,
}

impl World {
    /// Looks for a parked key at some node, and does something about it.
    pub(super) fn look_after_parked(&mut self) {
        if self.checkers.truth.spoiled.is_empty() || !self.rng.chance(OPERATIONS_PERCENT) {
            return;
        }
        let at = self.rng.index(self.nodes.len());
        let Some((store, _)) = self.nodes[at].running.as_ref().filter(|_| self.nodes[at].is_open()) else {
            return;
        };
        let mut parked = Vec::new();
        for (shard, key) in &self.checkers.truth.spoiled {
            let row = store.value(*shard, key);
            let is_parked = row.is_ok_and(|row| row.is_some_and(|row| row.parked.is_some()));
            if is_parked && let Ok(Some(row)) = store.shard(*shard) {
                parked.push((row.scope.name, key.clone()));
            }
        }
        if parked.is_empty() {
            return;
        }
        let (scope, key) = parked.swap_remove(self.rng.index(parked.len()));
        let op = if self.rng.chance(80) { ParkedOp::Retry(None) } else { ParkedOp::Drop(None) };
        self.ask(at, ParkedCall { scope: scope.clone(), key: key.clone(), op: ParkedOp::Show });
        self.ask(at, ParkedCall { scope, key, op });
    }

    fn ask(&mut self, at: usize, call: ParkedCall) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.journal.note(self.now_us, at, || format!("is asked by an operator: {call:?}"));
        self.asked_parked.insert(ticket, Asked { at, call: call.clone(), shown: None });
        self.input(at, Input::Parked { ticket, call: Box::new(call) });
    }

    /// An operator has an answer.
    pub(super) fn looked_after(&mut self, at: usize, ticket: u64, outcome: Result<ParkedStep, ParkedError>) {
        self.journal.note(self.now_us, at, || format!("answers the operator's {ticket}: {outcome:?}"));
        let Some(asked) = self.asked_parked.remove(&ticket).filter(|asked| asked.at == at) else { return };
        let step = match outcome {
            Ok(step) => step,
            // It was tried or written meanwhile.
            Err(ParkedError::NotParked) => return,
            Err(error) => {
                let text = format!("n{at} cannot look after a key that it holds: {error}");
                return self.checkers.violated(Promise::Service, vec![at], text);
            }
        };
        let applies: Vec<bool> = step.changes.iter().map(|change| change.problem.is_none()).collect();
        match asked.call.op {
            ParkedOp::Show => {
                if let Some(next) = self.asked_parked.get_mut(&(ticket + 1)) {
                    next.shown = Some(applies);
                }
                return;
            }
            ParkedOp::Retry(_) => {
                if let Some(shown) = &asked.shown
                    && !shown.starts_with(&applies)
                {
                    let text = format!("n{at} showed {shown:?} of a parked key, and a retry met {applies:?}");
                    return self.checkers.violated(Promise::Service, vec![at], text);
                }
                if applies.contains(&false) {
                    self.cover("a retry left a hostile change parked");
                }
                if applies.contains(&true) {
                    self.cover("a retry applied what waited behind one");
                }
            }
            ParkedOp::Drop(_) => self.cover("what was kept of a parked key was dropped"),
        }
        let Some(place) = step.next.filter(|_| self.nodes[at].running.is_some()) else { return };
        let op = match asked.call.op {
            ParkedOp::Drop(_) => ParkedOp::Drop(Some(place)),
            _ => ParkedOp::Retry(Some(place)),
        };
        self.ask(at, ParkedCall { op, ..asked.call });
    }
}
