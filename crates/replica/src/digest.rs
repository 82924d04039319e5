//! Fingerprints of keys' states: what members with equal vectors must agree on, in 128 bits.
//!
//! The *digest* of a shard is the sum of its keys' fingerprints, moved with every write in the batch that writes the
//! key, so that it costs two hashes and no row of its own. Members that applied the same changes have the same digest,
//! in whatever order they came; another digest at the same vector says that something was lost, rotted or miscomputed.
//! A sum of hashes is only as good as their secrecy where clients choose keys and values, so they are keyed by what only
//! members know (Bellare and Micciancio, "A new paradigm for collision-free hashing", 1997, on sums of hashes).

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};
use tropism_crdt::cell::{Cell, Content};
use tropism_storage::{Digest, ValueRow};

/// What the fingerprints of a cluster are keyed by, the same at all its nodes and known to nobody else.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct DigestKey(pub [u8; 16]);

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey(...)")
    }
}

/// Makes fingerprints under one key.
#[derive(Debug, Clone)]
pub(crate) struct Fingerprints {
    hasher: SipHasher13,
    key_id: u32,
}

impl Fingerprints {
    pub(crate) fn new(key: &DigestKey) -> Self {
        let hasher = SipHasher13::new_with_key(&key.0);
        let mut id = hasher;
        id.write(b"tropism digest key");
        Self { hasher, key_id: id.finish() as u32 }
    }

    /// Which key this is.
    pub(crate) fn key_id(&self) -> u32 {
        self.key_id
    }

    /// A stored digest's sum, if it is under this key.
    pub(crate) fn sum(&self, digest: Option<Digest>) -> Option<u128> {
        digest.filter(|digest| digest.key_id == self.key_id).map(|digest| digest.sum)
    }

    /// The fingerprint of a key's state; 0 of a key that was never written or deleted.
    ///
    /// Of a hidden life only that it is hidden: members forget its content at different times. Of a key with changes put
    /// aside everything but the content, which depends on the order they came in. Never anything of the time of day.
    pub(crate) fn of(&self, key: &str, row: &ValueRow) -> u128 {
        let cell = &row.cell;
        if *cell == Cell::default() {
            return 0;
        }
        let mut state = Vec::with_capacity(160 + key.len());
        state.extend_from_slice(&(key.len() as u64).to_be_bytes());
        state.extend_from_slice(key.as_bytes());
        state.extend_from_slice(&cell.life.to_be_bytes());
        state.extend_from_slice(&cell.deleted_at.map_or(0, |at| at.as_u64()).to_be_bytes());
        match cell.written.filter(|_| cell.alive()) {
            None => state.push(0),
            Some((stamp, origin)) => {
                state.push(1 + u8::from(row.parked.is_some()));
                state.extend_from_slice(&stamp.as_u64().to_be_bytes());
                origin.encode(&mut state);
                if let Some(expiry) = &cell.expiry {
                    state.extend_from_slice(&expiry.at_ms.map_or(u64::MAX, |at| at).to_be_bytes());
                    state.extend_from_slice(&expiry.set.0.as_u64().to_be_bytes());
                }
                match &cell.content {
                    _ if row.parked.is_some() => {}
                    Content::Empty | Content::Register(_) => {} // what its last writer wrote
                    Content::Counter(counter) => counter.encode(&mut state),
                    Content::Document { heads, .. } => state.extend_from_slice(heads.as_flattened()),
                }
            }
        }
        let mut hasher = self.hasher;
        hasher.write(&state);
        hasher.finish128().as_u128()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use bytes::Bytes;
    use tropism_crdt::cell::{Counter, Expiry, Register};
    use tropism_crdt::{NodeId, Origin, Stamp};
    use tropism_storage::rows::Parked;

    use super::*;

    fn origin(random: u64) -> Origin {
        Origin { node: NodeId::new("n").unwrap(), incarnation: 1, random }
    }

    fn row(cell: Cell) -> ValueRow {
        ValueRow { commit: 1, last: vec![(origin(0), 1)], parked: None, cell }
    }

    fn alive() -> Cell {
        Cell { written: Some((Stamp::new(5, 0), origin(0))), ..Cell::default() }
    }

    #[test]
    fn everything_members_must_agree_on_moves_the_fingerprint_and_nothing_else_does() {
        let prints = Fingerprints::new(&DigestKey([1; 16]));
        let of = |cell: Cell| prints.of("k", &row(cell));
        let counter = |total| {
            let mut counter = Counter::default();
            counter.merge(origin(0), 1, total, &[]);
            Cell { content: Content::Counter(counter), ..alive() }
        };
        let document = |head: u8| Cell {
            content: Content::Document { heads: vec![[head; 32]], json: Bytes::from_static(b"{}") },
            ..alive()
        };
        let expiry = |at_ms, ms| Expiry { at_ms, set: (Stamp::new(ms, 0), origin(0)) };
        let hidden = Cell { deleted_at: Some(Stamp::new(9, 0)), ..alive() };
        let different = [
            of(alive()),
            prints.of("j", &row(alive())),
            of(Cell { life: 1, ..alive() }),
            of(Cell { written: Some((Stamp::new(5, 1), origin(0))), ..alive() }),
            of(Cell { written: Some((Stamp::new(5, 0), origin(1))), ..alive() }),
            of(Cell { deleted_at: Some(Stamp::new(4, 0)), ..alive() }),
            of(Cell { expiry: Some(expiry(Some(7), 5)), ..alive() }),
            of(Cell { expiry: Some(expiry(Some(8), 5)), ..alive() }),
            of(Cell { expiry: Some(expiry(None, 5)), ..alive() }),
            of(Cell { expiry: Some(expiry(None, 6)), ..alive() }),
            of(counter(1)),
            of(counter(2)),
            of(document(1)),
            of(document(2)),
            of(hidden.clone()),
            of(Cell { life: 1, ..hidden.clone() }),
            0,
        ];
        for (at, one) in different.iter().enumerate() {
            assert!(!different[at + 1..].contains(one), "{at} is like another");
        }
        let stub = Cell { deleted_at: hidden.deleted_at, ..Cell::default() };
        assert_eq!(of(hidden), of(stub), "whether its content was collected");
        let register = Register { content_type: "a".into(), bytes: Bytes::from_static(b"b") };
        let register = Cell { content: Content::Register(register), ..alive() };
        assert_eq!(of(register), of(alive()), "stamp and origin name the bytes");
        let other_node = ValueRow { commit: 2, last: vec![], ..row(alive()) };
        assert_eq!(prints.of("k", &other_node), of(alive()), "what is said of this node's store");
        assert_ne!(Fingerprints::new(&DigestKey([2; 16])).of("k", &row(alive())), of(alive()));
        let parked = Some(Parked { changes: 1, reason: "r".into() });
        let parked = |content: u8| ValueRow { parked: parked.clone(), ..row(document(content)) };
        assert_eq!(prints.of("k", &parked(1)), prints.of("k", &parked(2)), "in which order they came");
        assert_ne!(prints.of("k", &parked(1)), of(document(1)));
    }
}
