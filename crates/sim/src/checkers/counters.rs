//! Counters are exact sums of what clients added.

use std::collections::BTreeMap;

use tropism_crdt::cell::Content;
use tropism_crdt::{Body, Origin};
use tropism_placement::ShardId;
use tropism_replica::WriteOp;

use super::{Checker, Fact, Found, Promise, Truth, model};

/// What each origin added to a life of a key.
#[derive(Default)]
pub(super) struct Counters(BTreeMap<(ShardId, String, u64, Origin), i128>);

impl Checker for Counters {
    fn promise(&self) -> Promise {
        Promise::Counters
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::Logged { node, key, own: true } => {
                let Some(made) = truth.made.get(&key) else { return };
                let Body::Counter { total, .. } = made.change.body else { return };
                let asked = made.ticket.and_then(|ticket| truth.asked.get(&ticket));
                let Some(WriteOp::Increment { by }) = asked.map(|asked| &asked.op) else { return };
                let life = (key.shard, made.change.key.clone(), made.change.life, key.origin);
                let sum = self.0.entry(life).or_insert(0);
                *sum += i128::from(*by);
                if *sum != total && truth.is_sound(key.shard, &made.change.key) {
                    found.push((vec![node], format!("{key:?} says that {total} was added, it was {sum}")));
                }
            }
            // What a key showed no more is not in its next sum.
            Fact::Answered { ticket, outcome: Ok(done) } if !done.replayed && !done.existed => {
                let Some(asked) = truth.asked.get(&ticket) else { return };
                let WriteOp::Increment { by } = asked.op else { return };
                if done.counter != Some(by) && truth.is_sound(done.shard, &asked.key) {
                    let text = format!("write {ticket} adds {by} to nothing, and is told {:?}", done.counter);
                    found.push((truth.author(ticket), text));
                }
            }
            Fact::State { node, store } => model::each(truth, node, store, found, |_, cell, model| {
                let Content::Counter(counter) = &cell.content else { return Ok(()) };
                let (mut totals, mut floors) = (BTreeMap::new(), BTreeMap::new());
                for (_, change) in &model.changes {
                    let Body::Counter { total, floors: taken } = &change.body else { continue };
                    raise(&mut totals, change.origin, change.seq, *total);
                    for floor in taken {
                        raise(&mut floors, floor.origin, floor.seq, floor.total);
                    }
                }
                let sum = |of: &BTreeMap<Origin, (u64, i128)>| of.values().map(|(_, t)| t).sum::<i128>();
                let should = sum(&totals) - sum(&floors);
                if !cell.alive() || counter.sum() == Some(should) {
                    return Ok(());
                }
                Err(format!("shows {:?}, its changes say {should}", counter.sum()))
            }),
            _ => {}
        }
    }
}

fn raise(entries: &mut BTreeMap<Origin, (u64, i128)>, origin: Origin, seq: u64, total: i128) {
    let entry = entries.entry(origin).or_insert((seq, total));
    if seq > entry.0 {
        *entry = (seq, total);
    }
}
