//! A session sees its own writes, never less than before, and its writes follow what it read.

use std::collections::BTreeMap;

use tropism_crdt::Vector;
use tropism_placement::ShardId;

use super::{Checker, Fact, Found, Promise, Shown, Truth};

/// What each client's session has seen, all of it: unlike a token, this forgets nothing.
#[derive(Default)]
pub(super) struct Sessions(BTreeMap<usize, BTreeMap<ShardId, Vector>>);

impl Sessions {
    fn saw(&mut self, client: usize, shard: ShardId, vector: &Vector) {
        let seen = self.0.entry(client).or_default().entry(shard).or_default();
        for (origin, seq) in vector.iter() {
            seen.raise(*origin, seq);
        }
    }

    fn lacks(&self, client: usize, shard: &ShardId, shown: &Vector) -> Option<String> {
        let seen = self.0.get(&client)?.get(shard)?;
        (!shown.dominates(seen)).then(|| format!("{:?} of {shard}", seen.risen_since(shown)))
    }
}

impl Checker for Sessions {
    fn promise(&self) -> Promise {
        Promise::Sessions
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::NewSession { client } => {
                self.0.remove(&client);
            }
            Fact::Shown { client, node, shards, what } => {
                let view = &truth.nodes[node];
                for shard in shards {
                    let shown = view.durable.get(shard).cloned().unwrap_or_default();
                    if let Some(lacks) = self.lacks(client, shard, &shown) {
                        let text = format!("{} answered session {client} without {lacks}", truth.name(node));
                        found.push((vec![node], text));
                    }
                    match what {
                        // What it stands for, not all that the member had: another member shows the key as well.
                        Shown::Key(key, row) => {
                            for (origin, seq) in row.into_iter().flat_map(|row| &row.last) {
                                self.saw(client, *shard, &truth.closure(*shard, *origin, *seq));
                            }
                            // Whatever the row says of that.
                            if let Some(shown) = truth.shown(node, *shard, key) {
                                self.saw(client, *shard, &shown);
                            }
                        }
                        Shown::Shards => self.saw(client, *shard, &shown),
                    }
                }
            }
            Fact::Wrote { client, done } => {
                let Some((origin, seq)) = done.change else { return };
                let closure = truth.closure(done.shard, origin, seq);
                // With a drop that is adopted in the same turn it is never seen.
                if !done.replayed
                    && !truth.is_gone(&done.shard)
                    && let Some(lacks) = self.lacks(client, &done.shard, &closure)
                {
                    let text = format!("a write of session {client} does not follow {lacks}");
                    found.push((Vec::new(), text));
                }
                self.saw(client, done.shard, &closure);
            }
            _ => {}
        }
    }
}
