//! Registers hold what their last writer sent, rows are sound, and keys are served.

use tropism_crdt::Body;
use tropism_crdt::cell::Content;
use tropism_replica::WriteOp;
use tropism_storage::Reads;

use super::{Checker, Fact, Found, Promise, Truth, merged_shards, model};

pub(super) struct Values;

impl Checker for Values {
    fn promise(&self) -> Promise {
        Promise::Values
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::Logged { node, key, own: true } => {
                let Some(made) = truth.made.get(&key) else { return };
                let Body::Register { bytes, .. } = &made.change.body else { return };
                let asked = made.ticket.and_then(|ticket| truth.asked.get(&ticket));
                let sent = match asked.map(|asked| &asked.op) {
                    Some(WriteOp::PutRegister { bytes, .. }) => Some(bytes),
                    _ => None,
                };
                if sent != Some(bytes) {
                    found.push((vec![node], format!("{key:?} holds {bytes:?}, its client sent {sent:?}")));
                }
            }
            Fact::State { node, store } => {
                for (row, _) in merged_shards(store) {
                    for value in store.values(row.id(), "", None) {
                        let (name, scope) = (truth.name(node), &row.scope);
                        match value {
                            Err(_) if truth.is_rotten(row.id()) => {}
                            Err(error) => {
                                found.push((vec![node], format!("{name}: a row of {scope}: {error}")))
                            }
                            Ok((key, value)) => {
                                if let Some(parked) = value.parked.filter(|_| truth.is_sound(row.id(), &key))
                                {
                                    let text = format!("{name}: {scope}/{key} is parked: {}", parked.reason);
                                    found.push((vec![node], text));
                                }
                            }
                        }
                    }
                }
                model::each(truth, node, store, found, |_, cell, model| {
                    let is = match &cell.content {
                        Content::Register(register) => Some(&register.bytes),
                        _ => None,
                    };
                    let should = match model.written().map(|(_, _, change)| &change.body) {
                        Some(Body::Register { bytes, .. }) if model.alive() => Some(bytes),
                        _ => None,
                    };
                    if is == should {
                        Ok(())
                    } else {
                        Err(format!("holds {is:?}, its changes say {should:?}"))
                    }
                });
            }
            _ => {}
        }
    }
}
