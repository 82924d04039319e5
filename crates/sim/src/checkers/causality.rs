//! Changes are applied in causal order, and only those that somebody made.

use super::{Checker, Fact, Found, Promise, Truth};

pub(super) struct Causality;

impl Checker for Causality {
    fn promise(&self) -> Promise {
        Promise::Causality
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        let (node, key) = match *fact {
            Fact::Logged { node, key, own: false } | Fact::Raised { node, key } => (node, key),
            _ => return,
        };
        if truth.forged.contains(&key) {
            return;
        }
        let name = truth.name(node);
        let Some(made) = truth.made.get(&key) else {
            return found.push((vec![node], format!("{name}: applied {key:?}, which nobody made")));
        };
        let vector = truth.nodes[node].vectors.get(&key.shard).cloned().unwrap_or_default();
        if !vector.dominates(&made.saw) {
            let text = format!("{name}: applied {key:?} before what its author had seen");
            found.push((vec![node, made.author], text));
        }
    }
}
