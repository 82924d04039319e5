//! What is held for closed is there.

use std::collections::BTreeMap;

use super::{Checker, Fact, Found, Promise, Truth};

/// By node and peer, how far its changes were looked at.
#[derive(Default)]
pub(super) struct ClosedTimes(BTreeMap<(usize, usize), Looked>);

#[derive(Default)]
struct Looked {
    /// The node's start, the peer's store and start: with others it begins again.
    lives: (u64, u64, u64),
    changes: usize,
}

impl Checker for ClosedTimes {
    fn promise(&self) -> Promise {
        Promise::ClosedTimes
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        let Fact::Closed { node, peer, closed } = *fact else { return };
        if !truth.has_met(node, peer) {
            return; // of a store that is gone
        }
        let (view, author) = (&truth.nodes[node], &truth.nodes[peer]);
        let lives = (view.starts, author.store, author.starts);
        let looked = self.0.entry((node, peer)).or_default();
        if looked.lives != lives {
            *looked = Looked { lives, changes: 0 };
        }
        while let Some((stamp, key)) =
            author.authored.get(looked.changes).filter(|(stamp, _)| *stamp <= closed)
        {
            // What the author held of a scope that it left came with others, before that; also where it comes back.
            let left =
                truth.is_stranger(peer, &key.shard) || truth.learners_for(peer, &key.shard).contains(&peer);
            let shared = truth.serves(node, &key.shard) && !left && !truth.is_gone(&key.shard);
            if shared && !view.counts(key) && !truth.forged.contains(key) {
                let (name, peer_name) = (truth.name(node), truth.name(peer));
                let text =
                    format!("{name}: holds {peer_name} for closed at {closed}, lacks {key:?} of {stamp}");
                found.push((vec![node, peer], text));
            }
            looked.changes += 1;
        }
    }
}
