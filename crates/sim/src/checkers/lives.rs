//! Deletes hide what they saw, and nothing comes back.

use tropism_crdt::{Body, Change};
use tropism_replica::WriteOp;

use super::model::Model;
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
                if asked.is_some() && truth.is_sound(key.shard, &made.change.key) {
                    let had = Model::of(truth, node, key.shard, &made.change.key);
                    if let Some(why) = hidden(&had, &made.change) {
                        let text = format!("{key:?} is acknowledged and hidden: {why}: {}", had.spell());
                        found.push((vec![node], text));
                    }
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

/// Why a write would not show, or not as a new life, over what its author had of the key.
fn hidden(had: &Model<'_>, change: &Change) -> Option<String> {
    if change.life > had.life {
        return None;
    }
    if change.life < had.life {
        return Some(format!("it is of life {}, the key in life {}", change.life, had.life));
    }
    // The delete of what has expired is made later than it deletes.
    let stamps = had.changes.iter().map(|(_, had)| match had.body {
        Body::Delete { deleted_at } => deleted_at,
        _ => had.stamp,
    });
    if let Some(last) = stamps.max().filter(|last| *last >= change.stamp) {
        return Some(format!("it is stamped {}, the last one {last}", change.stamp));
    }
    let merges = matches!(change.body, Body::Counter { .. } | Body::Document { .. });
    let over = had.deleted_at().is_some() && !had.alive();
    (merges && over).then(|| format!("it goes on in life {}, which was deleted", change.life))
}
