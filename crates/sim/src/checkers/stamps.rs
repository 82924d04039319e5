//! Stamps of a node rise.

use std::collections::BTreeMap;

use tropism_crdt::Stamp;

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
        // A store that was set aside takes its promise with it: the origin of the next one is another.
        let last = self.0.entry((node, truth.nodes[node].store)).or_default();
        if stamp <= *last {
            found.push((vec![node], format!("{}: stamp {stamp} after {last}", truth.name(node))));
        }
        *last = stamp;
    }
}
