//! Answers are honest: "no effect" had none, a success is what was asked for, and there is one answer.

use std::collections::BTreeSet;

use tropism_replica::WriteError;
use tropism_storage::LogKey;

use super::{Checker, Fact, Found, Promise, Truth};

#[derive(Default)]
pub(super) struct Answers {
    answered: BTreeSet<u64>,
    /// Answered with an error that says "no effect".
    refused: BTreeSet<u64>,
}

impl Checker for Answers {
    fn promise(&self) -> Promise {
        Promise::Answers
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::Logged { node, key, own: true } => {
                let Some(made) = truth.made.get(&key) else { return };
                let Some(ticket) = made.ticket else { return };
                if self.refused.contains(&ticket) {
                    found
                        .push((vec![node], format!("{key:?} was made of write {ticket}, which was refused")));
                }
                let asked = truth.asked.get(&ticket);
                if asked.is_none_or(|a| a.key != made.change.key || a.scope.as_str() != made.change.scope) {
                    found.push((
                        vec![node],
                        format!("{key:?} was made of write {ticket}: nobody asked for that"),
                    ));
                }
            }
            Fact::Answered { ticket, outcome } => {
                let made = truth.of_ticket.get(&ticket).copied();
                let nodes = truth.author(ticket);
                if !self.answered.insert(ticket) {
                    found.push((nodes.clone(), format!("write {ticket} was answered twice")));
                }
                match outcome {
                    Ok(done) => {
                        let change =
                            done.change.map(|(origin, seq)| LogKey { shard: done.shard, origin, seq });
                        // With a drop that is adopted in the same turn its rows are never seen.
                        let seen = !truth.is_gone(&done.shard);
                        if !done.replayed && change != made && seen {
                            found.push((
                                nodes,
                                format!("write {ticket} is {made:?}, its answer says {change:?}"),
                            ));
                        }
                    }
                    Err(WriteError::NotAcknowledged { .. }) => {}
                    Err(error) => {
                        self.refused.insert(ticket);
                        if let Some(key) = made {
                            found.push((
                                nodes,
                                format!("write {ticket} was refused ({error}) and is {key:?}"),
                            ));
                        }
                    }
                }
            }
            _ => {}
        }
    }
}
