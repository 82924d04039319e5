//! Changes that were put aside: as they are stored among a key's edits, and how they are found again.

use bytes::Bytes;
use tropism_crdt::Change;
use tropism_crdt::codec::{DecodeError, Reader, checked, put_varint};
use tropism_placement::ShardId;

use crate::engine::{Space, View};
use crate::keys::{EditKey, after_prefix};
use crate::store::{Store, StoreError};

/// First byte of a change put aside, where a bare change has its format, 1.
const FORMAT: u8 = 2;

/// Where a piece of a key's history stands: its life and part.
pub type Place = (u64, u64);

/// A change that was put aside, with when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptChange {
    /// When, by this node's wall clock, Unix ms; `None` where builds before this one kept a bare change.
    pub since_ms: Option<u64>,
    /// What was put aside.
    pub change: Change,
}

impl KeptChange {
    /// The piece that [`Self::decode`] reads: `2`, the time, the change.
    pub fn encode(since_ms: u64, change: &Change) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_varint(&mut out, since_ms);
        out.extend_from_slice(&change.encode());
        out
    }

    /// Reads a piece.
    pub fn decode(piece: &Bytes) -> Result<Self, DecodeError> {
        if piece.first() != Some(&FORMAT) {
            return Ok(Self { since_ms: None, change: Change::decode(piece)? });
        }
        let mut r = Reader::new(&piece[1..]);
        let since_ms = r.varint("time")?;
        Ok(Self { since_ms: Some(since_ms), change: Change::decode(&piece.slice(1 + r.at()..))? })
    }
}

/// What is stored of one change that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where.
    pub place: Place,
    /// Bytes it takes.
    pub bytes: usize,
    /// The change, or why it cannot be read.
    pub change: Result<KeptChange, DecodeError>,
}

impl Kept {
    /// `None` where the piece is history.
    fn of(prefix: &[u8], name: &[u8], piece: &Bytes) -> Option<Self> {
        let place = place_of(prefix, name)?;
        let change = checked(piece).and_then(|whole| KeptChange::decode(&piece.slice_ref(whole)));
        is_kept(place).then_some(Self { place, bytes: piece.len(), change })
    }
}

/// Where a piece of the key with this prefix stands.
fn place_of(prefix: &[u8], name: &[u8]) -> Option<Place> {
    let (life, part) = name.strip_prefix(prefix)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*life), u64::from_be_bytes(*part.first_chunk::<8>()?)))
}

/// Whether what stands there was put aside, and is not history.
fn is_kept((life, part): Place) -> bool {
    life == EditKey::ROW_LOST || part >= EditKey::PARKED
}

impl Store {
    /// What was put aside among the next `rows` pieces of a key's history from a place on, at least, the open batch's
    /// included; and where to go on, `None` behind the last piece.
    pub fn kept(
        &self,
        shard: ShardId,
        key: &str,
        (life, part): Place,
        rows: usize,
    ) -> Result<(Vec<Kept>, Option<Place>), StoreError> {
        let prefix = EditKey { shard, key, life, part }.prefix();
        let from = EditKey { shard, key, life, part }.encode();
        let (page, next) = self.page(Space::Edits, from.as_bytes(), rows)?;
        let kept = page.iter().filter_map(|(name, piece)| Kept::of(&prefix, name, piece)).collect();
        let last = next.as_deref().and_then(|next| place_of(&prefix, next));
        Ok((kept, last.map(|(life, part)| if part == u64::MAX { (life + 1, 0) } else { (life, part + 1) })))
    }
}

/// How much was put aside of one life of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeptCount {
    /// Changes.
    pub changes: u64,
    /// The bytes they take.
    pub bytes: u64,
    /// When the first of them was put aside, Unix ms, if that is known.
    pub since_ms: Option<u64>,
}

impl KeptCount {
    /// Counts the committed ones in a life, or in [`EditKey::ROW_LOST`], at most `most`.
    pub fn of(
        view: &dyn View,
        shard: ShardId,
        key: &str,
        life: u64,
        most: usize,
    ) -> Result<Self, StoreError> {
        let part = if life == EditKey::ROW_LOST { 0 } else { EditKey::PARKED };
        let piece = EditKey { shard, key, life, part };
        let (prefix, start) = (piece.prefix(), piece.encode());
        let end = after_prefix(&[prefix.as_slice(), &life.to_be_bytes()].concat());
        let mut count = Self::default();
        for row in view.scan(Space::Edits, start.as_bytes(), &end).take(most) {
            let (name, piece) = row?;
            let Some(kept) = Kept::of(&prefix, &name, &piece) else { continue };
            count.changes += 1;
            count.bytes += kept.bytes as u64;
            count.since_ms = count.since_ms.or_else(|| kept.change.ok()?.since_ms);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tropism_crdt::{Body, ExpiryChange, NodeId, Origin, Stamp};

    use super::*;
    use crate::memory::MemoryEngine;

    fn change(seq: u64) -> Change {
        Change {
            scope: "a".into(),
            scope_incarnation: 0,
            shard_index: 0,
            origin: Origin { node: NodeId::new("n").unwrap(), incarnation: 1, random: 2 },
            seq,
            deps: Vec::new(),
            stamp: Stamp::new(1, 1),
            key: "k".into(),
            life: 0,
            generation: 0,
            epoch: 1,
            request_id: None,
            trace: None,
            expiry: ExpiryChange::Keep,
            body: Body::Touch,
        }
    }

    #[test]
    fn a_kept_change_comes_back_with_its_time_and_a_bare_one_without() {
        let piece = KeptChange::encode(300, &change(5));
        assert_eq!(piece[..4], [2, 0xac, 0x02, 1], "format, time, the change's format");
        let kept = KeptChange { since_ms: Some(300), change: change(5) };
        assert_eq!(KeptChange::decode(&piece.into()), Ok(kept));
        let bare = KeptChange { since_ms: None, change: change(5) };
        assert_eq!(KeptChange::decode(&change(5).encode()), Ok(bare));
        for bad in [&b""[..], b"\x02", b"\x02\x01", b"\x85oJ\x83"] {
            assert!(KeptChange::decode(&Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_was_put_aside_is_found_by_pages_and_counted_without_history_and_other_keys() {
        let mut store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        let shard = ShardId([7; 16]);
        for key in ["j", "k", "k2"] {
            for part in 0..40 {
                store.put_edit(&EditKey { shard, key, life: 1, part }, b"history");
            }
            for seq in 0..5 {
                let piece = KeptChange::encode(100 + seq, &change(seq + 1));
                store.put_edit(&EditKey { shard, key, life: 1, part: EditKey::PARKED + seq }, &piece);
                store.put_edit(&EditKey { shard, key, life: EditKey::ROW_LOST, part: seq }, &piece);
            }
        }
        store.commit(0).unwrap();
        let lost = EditKey { shard, key: "k", life: EditKey::ROW_LOST, part: 2 };
        store.put(Space::Edits, lost.encode(), Bytes::from_static(b"rotten piece"));
        store.remove(Space::Edits, EditKey { shard, key: "k", life: 1, part: EditKey::PARKED }.encode());
        for rows in [1, 3, 7, 1_000] {
            let (mut seen, mut from) = (Vec::new(), Some((0, 0)));
            while let Some(place) = from {
                let (kept, next) = store.kept(shard, "k", place, rows).unwrap();
                seen.extend(kept);
                from = next;
            }
            let places: Vec<Place> = seen.iter().map(|kept| kept.place).collect();
            let parked = (1..5).map(|part| (1, EditKey::PARKED + part));
            let lost = (0..5).map(|part| (EditKey::ROW_LOST, part));
            assert_eq!(places, parked.chain(lost).collect::<Vec<_>>(), "{rows} rows a page");
            assert_eq!(seen.iter().filter(|kept| kept.change.is_err()).count(), 1, "the rotten one");
        }
        store.commit(0).unwrap();
        let count = KeptCount::of(&store, shard, "k", 1, 100).unwrap();
        assert_eq!((count.changes, count.since_ms), (4, Some(101)));
        let count = KeptCount::of(&store, shard, "k", EditKey::ROW_LOST, 100).unwrap();
        assert_eq!((count.changes, count.since_ms), (5, Some(100)));
        assert_eq!(KeptCount::of(&store, shard, "k", EditKey::ROW_LOST, 2).unwrap().changes, 2);
        assert_eq!(KeptCount::of(&store, shard, "k", 2, 100).unwrap(), KeptCount::default());
    }
}
