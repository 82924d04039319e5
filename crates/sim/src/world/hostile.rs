//! Frames that a hostile peer could send: torn, mutated, forged.
//!
//! Nothing is promised for the keys that such a change touches. Everything else goes on: no panic, no hang, and every
//! other key is what it should be.

use bytes::Bytes;
use tropism_crdt::{Body, Change, ExpiryChange, NodeId, Origin, Stamp};
use tropism_placement::ShardId;
use tropism_replica::{Frame, FrameBody};
use tropism_storage::LogKey;

use super::World;

impl World {
    /// Forges one change of a frame.
    pub(super) fn forge(&mut self, from: usize, to: usize, frame: &mut Frame) {
        let FrameBody::Changes(changes) = &mut frame.body else { return };
        if changes.is_empty() {
            return;
        }
        let at = self.rng.index(changes.len());
        let original = changes[at].clone();
        let Ok(mut change) = Change::decode(&original) else { return };
        self.spoil(&change);
        let key = LogKey { shard: shard_of(&change), origin: change.origin, seq: change.seq };
        self.checkers.truth.forged.insert(key);
        let what = match self.rng.between(0, 11) {
            0 => {
                changes[at] = original.slice(..self.rng.index(original.len()));
                return self.forged(from, to, "hostile: torn", None);
            }
            1 => {
                let mut bytes = original.to_vec();
                let bit = self.rng.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                changes[at] = Bytes::from(bytes);
                return self.forged(from, to, "hostile: torn", None);
            }
            2 => {
                change.seq = *self.rng.pick(&[u64::MAX, u64::MAX - 1, 1 << 40]);
                "hostile: huge seq"
            }
            3 => {
                change.stamp = *self.rng.pick(&[
                    Stamp::from_u64(u64::MAX),
                    Stamp::new(Stamp::MAX_MS, 0),
                    Stamp::new(change.stamp.unix_ms() + 3_600_000, 7),
                ]);
                "hostile: future stamp"
            }
            4 => {
                let scopes = ["stats/visits", "shop/carts", "pages", "pair/of-two", "elsewhere/new", "-", ""];
                change.scope = (*self.rng.pick(&scopes)).to_owned();
                "hostile: wrong scope"
            }
            5 => {
                change.shard_index = *self.rng.pick(&[change.shard_index ^ 1, 2, 255, u16::MAX]);
                "hostile: wrong shard"
            }
            6 => {
                change.body = match change.body {
                    Body::Counter { .. } => {
                        Body::Register { content_type: String::new(), bytes: Bytes::new() }
                    }
                    _ => Body::Counter { total: i128::MAX, floors: Vec::new() },
                };
                "hostile: wrong kind"
            }
            7 => {
                change.life = *self.rng.pick(&[u64::MAX, 1 << 48, change.life + 1]);
                "hostile: life"
            }
            8 => {
                change.body = Body::Delete { deleted_at: Stamp::from_u64(u64::MAX) };
                change.expiry = ExpiryChange::At(u64::MAX);
                "hostile: delete from the future"
            }
            9 => {
                let ghost = NodeId::new("ghost").unwrap_or_else(|error| panic!("{error}"));
                change.origin = Origin { node: ghost, incarnation: u64::MAX, random: self.rng.word() };
                change.seq = 1;
                "hostile: forged origin"
            }
            _ => {
                match &mut change.body {
                    Body::Document { change: raw } if !raw.is_empty() => {
                        let mut bytes = raw.to_vec();
                        for _ in 0..self.rng.between(1, 4) {
                            let byte = self.rng.index(bytes.len());
                            bytes[byte] ^= self.rng.between(1, 255) as u8;
                        }
                        *raw = Bytes::from(bytes);
                    }
                    Body::Counter { total, .. } => *total = i128::MIN,
                    body => *body = Body::Touch,
                }
                "hostile: mutated body"
            }
        };
        changes[at] = change.encode();
        self.forged(from, to, what, Some(&change));
    }

    fn forged(&mut self, from: usize, to: usize, what: &'static str, change: Option<&Change>) {
        if let Some(change) = change {
            self.spoil(change);
            let key = LogKey { shard: shard_of(change), origin: change.origin, seq: change.seq };
            self.checkers.truth.forged.insert(key);
            self.checkers.truth.liars.insert((from, key.shard));
        }
        self.journal.note(self.now_us, from, || format!("{what} to n{to}: {change:?}"));
        self.cover(what);
    }

    /// Nothing is promised any more for a change's key.
    fn spoil(&mut self, change: &Change) {
        self.checkers.truth.spoiled.insert((shard_of(change), change.key.clone()));
    }
}

fn shard_of(change: &Change) -> ShardId {
    use tropism_placement::{ScopeId, ScopeName};
    let name = ScopeName::new(&change.scope).or_else(|_| ScopeName::new("none"));
    let name = name.unwrap_or_else(|error| panic!("{error}"));
    ShardId::of(&ScopeId { name, incarnation: change.scope_incarnation }, change.shard_index)
}
