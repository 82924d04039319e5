//! Stability never comes early.

use super::{Checker, Fact, Found, Promise, Truth};

pub(super) struct Stability;

impl Checker for Stability {
    fn promise(&self) -> Promise {
        Promise::Stability
    }

    fn see(&mut self, truth: &Truth, fact: &Fact<'_>, found: &mut Found) {
        match *fact {
            Fact::Logged { node, key, own: false } | Fact::Raised { node, key }
                if !truth.forged.contains(&key) =>
            {
                let Some(made) = truth.made.get(&key) else { return };
                let stable = truth.nodes[node].stable_vectors.get(&key.shard);
                if let Some(stable) = stable.filter(|stable| !made.saw.dominates(stable)) {
                    let unseen = stable.risen_since(&made.saw);
                    let name = truth.name(node);
                    let text =
                        format!("{name}: {key:?} arrived without having seen what was stable: {unseen:?}");
                    found.push((vec![node, made.author], text));
                }
            }
            Fact::Stable { node, key } if !truth.forged.contains(&key) => {
                if !truth.serves(node, &key.shard) || truth.is_gone(&key.shard) {
                    return; // it does nothing on the strength of that, or who knew of the drop has deleted it
                }
                for member in truth.served_for(node, &key.shard) {
                    let view = &truth.nodes[member];
                    // Of a store that was lost it is known no sooner than the next meeting.
                    let has = match truth.has_met(node, member) {
                        true => {
                            view.durable.get(&key.shard).is_some_and(|v| v.includes(&key.origin, key.seq))
                        }
                        false => view.ever_had(&key),
                    };
                    // Its own disk gets it with the sync that comes before anything leaves.
                    if !has && member != node {
                        let (name, member_name) = (truth.name(node), truth.name(member));
                        let text = format!("{name}: holds {key:?} for stable, which {member_name} lacks");
                        found.push((vec![node, member], text));
                    }
                }
            }
            _ => {}
        }
    }
}
