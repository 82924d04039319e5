//! Stamps of a node rise, and do not follow a clock that runs ahead.

use std::collections::BTreeMap;

use tropism_crdt::Stamp;
use tropism_crdt::clock::MAX_OFFSET_MS;

use super::{Checker, Fact, Found, Promise, Truth};

/// The last stamp of each node's store.
#[derive(Default)]
pub(super) struct Stamps(BTreeMap<(usize, u64), Stamp>);

impl Checker for Stamps {
    fn promise(&self) -> Promise {
        Promise::Stamps
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        let Fact::Logged { node, key, own: true } = *fact else { return };
        let Some(made) = truth.made.get(&key) else { return };
        let stamp = made.change.stamp;
        let wall_ms = truth.nodes[node].wall_ms;
        if stamp.unix_ms() > wall_ms + MAX_OFFSET_MS && !truth.forged.contains(&key) {
            let text = format!("{}: stamp {stamp}, its clock never was beyond {wall_ms}", truth.name(node));
            found.push((vec![node], text));
        }
        // A store that was set aside takes its promise with it: the origin of the next one is another.
        let last = self.0.entry((node, truth.nodes[node].store)).or_default();
        if stamp <= *last {
            found.push((vec![node], format!("{}: stamp {stamp} after {last}", truth.name(node))));
        }
        *last = stamp;
    }
}
