//! Keys expire when their writers said, and are deleted no earlier.

use tropism_crdt::{Body, ExpiryChange, Stamp};

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
