//! Keys expire when their writers said, and are deleted no earlier.

use tropism_crdt::{Body, ExpiryChange, Stamp};
use tropism_replica::WriteOp;

use super::{Checker, Fact, Found, Promise, Truth, model};

pub(super) struct Expiry;

impl Checker for Expiry {
    fn promise(&self) -> Promise {
        Promise::Expiry
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::Logged { node, key, own: true } => {
                let Some(made) = truth.made.get(&key) else { return };
                let change = &made.change;
                if let Some(asked) = made.ticket.and_then(|ticket| truth.asked.get(&ticket))
                    && asked.expiry != ExpiryChange::Keep
                    && !matches!(change.body, Body::Delete { .. })
                    && asked.expiry != change.expiry
                {
                    let text = format!("{key:?}: asked for {:?}, made {:?}", asked.expiry, change.expiry);
                    found.push((vec![node], text));
                }
                if let Some(asked) = made.ticket.and_then(|ticket| truth.asked.get(&ticket))
                    && asked.expiry == ExpiryChange::Keep
                    && matches!(asked.op, WriteOp::PutRegister { .. } | WriteOp::PutDocument { .. })
                    && change.expiry != ExpiryChange::Clear
                {
                    let text = format!("{key:?} is a put without an expiry, and says {:?}", change.expiry);
                    found.push((vec![node], text));
                }
                // The node's own delete: of what has expired, as of that moment.
                if let (None, Body::Delete { deleted_at }) = (made.ticket, &change.body)
                    && truth.is_sound(key.shard, &change.key)
                {
                    let model = model::Model::of(truth, node, key.shard, &change.key);
                    let written = model.written().map_or(Stamp::ZERO, |(stamp, ..)| stamp);
                    let expired = model.expires_at_ms().map(|ms| written.max(Stamp::new(ms, 0)));
                    if expired != Some(*deleted_at) || change.stamp <= *deleted_at {
                        let text =
                            format!("{key:?} deletes as of {deleted_at}, it should be as of {expired:?}");
                        found.push((vec![node], text));
                    }
                    // Nothing older is still to come of a member that keeps what it told.
                    let of_key = truth.of_key.get(&(key.shard, change.key.clone())).into_iter().flatten();
                    let missed = of_key.filter(|other| !truth.nodes[node].counts(other)).find(|other| {
                        truth.made.get(other).is_some_and(|older| {
                            older.change.life == change.life
                                && older.change.stamp <= *deleted_at
                                && truth.has_met(node, older.author)
                                && truth.nodes[older.author].keeps_own(other)
                        })
                    });
                    if let Some(missed) = missed.filter(|missed| **missed != key) {
                        let text = format!(
                            "{key:?} deletes as of {deleted_at}, {missed:?} is older and was not here"
                        );
                        found.push((vec![node], text));
                    }
                }
            }
            // A write that says nothing of the expiry is not hidden by one that has passed.
            Fact::Answered { ticket, outcome: Ok(done) } if !done.replayed && !done.existed => {
                let Some(asked) = truth.asked.get(&ticket) else { return };
                let shows = !matches!(asked.op, WriteOp::Delete | WriteOp::Expire);
                if shows && asked.expiry == ExpiryChange::Keep && done.expires_at_ms.is_some() {
                    let text =
                        format!("write {ticket} of a key that had expired leaves {:?}", done.expires_at_ms);
                    found.push((truth.author(ticket), text));
                }
            }
            Fact::State { node, store } => model::each(truth, node, store, found, |_, cell, model| {
                let (is, should) = (cell.expires_at_ms(), model.expires_at_ms());
                if is == should || !cell.alive() {
                    return Ok(());
                }
                Err(format!("expires at {is:?}, its changes say {should:?}"))
            }),
            _ => {}
        }
    }
}
