//! Vectors add up.

use tropism_storage::Reads;

use super::{Checker, Fact, Found, Promise, Truth};

pub(super) struct Vectors;

impl Checker for Vectors {
    fn promise(&self) -> Promise {
        Promise::Vectors
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::Logged { node, key, own } => {
                let name = truth.name(node);
                let counted = truth.nodes[node].vectors.get(&key.shard).map_or(0, |v| v.get(&key.origin));
                if counted + 1 != key.seq {
                    found.push((vec![node], format!("{name}: logged {key:?} behind {counted}")));
                }
                if own && !truth.made.contains_key(&key) {
                    found.push((vec![node], format!("{name}: logged {key:?} without a body")));
                }
            }
            Fact::Opened { node, store } | Fact::Committed { node, store } => {
                for (shard, vector) in &truth.nodes[node].vectors {
                    if store.vector(*shard).ok().as_ref() != Some(vector) {
                        let name = truth.name(node);
                        let text =
                            format!("{name}: the stored vector of {shard} is not what its log adds up to");
                        found.push((vec![node], text));
                    }
                }
            }
            _ => {}
        }
    }
}
