//! A request that is sent again takes effect once.

use std::collections::BTreeMap;

use tropism_storage::LogKey;

use super::{Checker, Fact, Found, Promise, Truth};

/// The effects of each request.
#[derive(Default)]
pub(super) struct Requests(BTreeMap<u128, Vec<LogKey>>);

impl Checker for Requests {
    fn promise(&self) -> Promise {
        Promise::Requests
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        let Fact::Logged { node, key, own: true } = *fact else { return };
        let asked = truth.made.get(&key).and_then(|made| truth.asked.get(&made.ticket?));
        let Some(request) = asked.and_then(|asked| asked.request_id) else { return };
        let effects = self.0.entry(request).or_default();
        // What a region has not heard of it cannot know: there the same request may take effect once more.
        for earlier in effects.iter().filter(|earlier| truth.nodes[node].counts(earlier)) {
            found.push((
                vec![node],
                format!("{}: {key:?} repeats {earlier:?}, which was there", truth.name(node)),
            ));
        }
        effects.push(key);
    }
}
