//! Deletes hide what they saw, and nothing comes back.

use tropism_crdt::Body;
use tropism_replica::WriteOp;

use super::{Checker, Fact, Found, Promise, Truth, model};

pub(super) struct Lives;

impl Checker for Lives {
    fn promise(&self) -> Promise {
        Promise::Lives
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::Logged { node, key, own: true } => {
                let Some(made) = truth.made.get(&key) else { return };
                let asked = made.ticket.and_then(|ticket| truth.asked.get(&ticket));
                let wanted = asked.map(|asked| asked.op == WriteOp::Delete);
                let is = matches!(made.change.body, Body::Delete { .. });
                if wanted.is_some_and(|wanted| wanted != is) {
                    let text = format!("{key:?}: asked for {asked:?}, made {:?}", made.change.body);
                    found.push((vec![node], text));
                }
                if let (Some(true), Body::Delete { deleted_at }) = (wanted, &made.change.body)
                    && *deleted_at != made.change.stamp
                {
                    found.push((
                        vec![node],
                        format!("{key:?} deletes as of {deleted_at}, not when it was made"),
                    ));
                }
            }
            Fact::State { node, store } => model::each(truth, node, store, found, |_, cell, model| {
                let (is, should) = (
                    (cell.life, cell.deleted_at, cell.alive()),
                    (model.life, model.deleted_at(), model.alive()),
                );
                if is == should {
                    return Ok(());
                }
                Err(format!("has (life, deleted at, alive) {is:?}, its changes say {should:?}"))
            }),
            _ => {}
        }
    }
}
