//! What was acknowledged is on the disks that its level names, and stays.

use std::collections::BTreeSet;

use tropism_storage::LogKey;

use super::{Checker, Fact, Found, Promise, Truth};

/// The changes that were acknowledged.
#[derive(Default)]
pub(super) struct Durability(Vec<LogKey>);

impl Checker for Durability {
    fn promise(&self) -> Promise {
        Promise::Durability
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::Answered { ticket, outcome: Ok(done) } => {
                let (Some((origin, seq)), Some(asked)) = (done.change, truth.asked.get(&ticket)) else {
                    return;
                };
                let key = LogKey { shard: done.shard, origin, seq };
                let author = truth.made.get(&key).map_or(0, |made| made.author);
                // Who left since it acknowledged had to hand over first; who only comes, as far as the node that answers knows,
                // counts for nothing.
                let learners = truth.learners_for(asked.at, &done.shard);
                let has = |node: &usize| truth.nodes[*node].ever_had(&key);
                let on: Vec<usize> =
                    (0..truth.nodes.len()).filter(|n| !learners.contains(n)).filter(has).collect();
                let regions: BTreeSet<_> = on.iter().map(|node| truth.region(*node)).collect();
                let here = truth.region(asked.at);
                let owners = on.iter().filter(|node| truth.region(**node) == here).count();
                let too_few = regions.len() < asked.regions || owners < asked.owners;
                if too_few && !truth.is_gone(&key.shard) {
                    let text = format!(
                        "{key:?} was acknowledged for {} regions and {} owners in {here}, {} and {owners} have it",
                        asked.regions,
                        asked.owners,
                        regions.len()
                    );
                    found.push((vec![author], text));
                }
                self.0.push(key);
            }
            Fact::Ended { node } => {
                for key in self.0.iter().filter(|key| !truth.lost.contains(key)) {
                    if truth.members(&key.shard).any(|member| member == node)
                        && !truth.liars.iter().any(|(_, shard)| *shard == key.shard)
                        && !truth.nodes[node].counts(key)
                    {
                        found.push((
                            vec![node],
                            format!("{}: acknowledged {key:?} is lost", truth.name(node)),
                        ));
                    }
                }
            }
            _ => {}
        }
    }
}
