//! The state of one key: its life, whether that is visible, and the content.
//!
//! A key's *life* grows when the key is re-created. A delete stamps the life with `deleted_at`; the life is visible
//! while its last write is stamped later and it is not expired. The higher life wins whole; inside a life everything
//! merges: deletes and writes by the greatest stamp, expiry as a register, content by its kind. So the order in which
//! concurrent changes arrive does not matter.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::change::{Body, Change, ExpiryChange};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::origin::Origin;
use crate::stamp::Stamp;

/// One key's state at one member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    /// The life shown (or hidden).
    pub life: u64,
    /// Reserved for history compaction; 0.
    pub generation: u64,
    /// The greatest delete of this life.
    pub deleted_at: Option<Stamp>,
    /// The greatest write of this life.
    pub written: Option<(Stamp, Origin)>,
    /// When the key stops being visible.
    pub expiry: Option<Expiry>,
    /// The value; kept of a hidden life only as far as a late write could show it again.
    pub content: Content,
}

/// The key's expiry, a register of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Visible while `now <` this, Unix ms; `None`: cleared.
    pub at_ms: Option<u64>,
    /// Who set it, when.
    pub set: (Stamp, Origin),
}

/// A value by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Content {
    /// Nothing yet, or nothing any more.
    #[default]
    Empty,
    /// Opaque bytes.
    Register(Register),
    /// An exact sum.
    Counter(Counter),
    /// A JSON document as served; its edits are kept beside it.
    Document {
        /// Its version: the hashes of the newest automerge changes, sorted.
        heads: Vec<[u8; 32]>,
        /// Canonical JSON.
        json: Bytes,
    },
}

/// A register's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// MIME type as the client gave it.
    pub content_type: String,
    /// The value.
    pub bytes: Bytes,
}

/// Per origin the total with the highest seq, and the totals that no longer count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counter {
    totals: BTreeMap<Origin, (u64, i128)>,
    floors: BTreeMap<Origin, (u64, i128)>,
}

/// A total of `origin` as of its change `seq` that no longer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Whose total.
    pub origin: Origin,
    /// Which of its changes carried it.
    pub seq: u64,
    /// The total.
    pub total: i128,
}

impl Floor {
    /// Appends origin, seq, total.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.origin.encode(out);
        put_varint(out, self.seq);
        out.extend_from_slice(&self.total.to_be_bytes());
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { origin: Origin::decode(r)?, seq: r.varint("seq")?, total: r.i128("total")? })
    }
}

impl Counter {
    /// The value: what every origin added, less the floors. `None` beyond i64, which no write of ours reaches.
    pub fn value(&self) -> Option<i64> {
        i64::try_from(self.sum()?).ok()
    }

    /// The exact sum; `None` beyond i128.
    pub fn sum(&self) -> Option<i128> {
        let add = |sum: Option<i128>, total: &(u64, i128)| sum?.checked_add(total.1);
        let totals = self.totals.values().fold(Some(0), add)?;
        let floors = self.floors.values().fold(Some(0), add)?;
        totals.checked_sub(floors)
    }

    /// What `origin` added so far.
    pub fn total(&self, origin: &Origin) -> i128 {
        self.totals.get(origin).map_or(0, |(_, total)| *total)
    }

    /// What each origin added, less what no longer counts, in the order of the origins; `None` beyond i128.
    pub fn shares(&self) -> impl Iterator<Item = (Origin, Option<i128>)> {
        self.totals.iter().map(|(origin, (_, total))| {
            let floor = self.floors.get(origin).map_or(0, |(_, floor)| *floor);
            (*origin, total.checked_sub(floor))
        })
    }

    /// Every total as a floor: what a writer that found the key expired takes out of the sum.
    pub fn as_floors(&self) -> Vec<Floor> {
        self.totals
            .iter()
            .map(|(origin, (seq, total))| Floor { origin: *origin, seq: *seq, total: *total })
            .collect()
    }

    /// Appends totals and floors, in the order of their origins.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for entries in [&self.totals, &self.floors] {
            put_varint(out, entries.len() as u64);
            for (origin, (seq, total)) in entries {
                Floor { origin: *origin, seq: *seq, total: *total }.encode(out);
            }
        }
    }

    /// Merges the totals and floors that another member has of the same life.
    pub fn merge_state(&mut self, other: &Self) {
        for (ours, theirs) in [(&mut self.totals, &other.totals), (&mut self.floors, &other.floors)] {
            for (origin, (seq, total)) in theirs {
                raise(ours, *origin, *seq, *total);
            }
        }
    }

    /// Merges one origin's total and the floors it carried.
    pub fn merge(&mut self, origin: Origin, seq: u64, total: i128, floors: &[Floor]) {
        raise(&mut self.totals, origin, seq, total);
        for floor in floors {
            raise(&mut self.floors, floor.origin, floor.seq, floor.total);
        }
    }
}

fn raise(entries: &mut BTreeMap<Origin, (u64, i128)>, origin: Origin, seq: u64, total: i128) {
    let entry = entries.entry(origin).or_insert((seq, total));
    if entry.0 < seq {
        *entry = (seq, total);
    }
}

/// What became of a change's envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It belongs to a lower life: an edit that had not seen the delete. Nothing changed.
    Outlived,
    /// It belongs to the life shown.
    SameLife,
    /// It begins a higher life: the content starts from empty.
    NewLife,
}

impl Cell {
    /// Whether a reader sees the key at `now_ms` (Unix).
    pub fn visible(&self, now_ms: u64) -> bool {
        self.alive() && !self.expired(now_ms)
    }

    /// Whether the life has a write later than its delete; it may still be expired.
    pub fn alive(&self) -> bool {
        self.written.is_some_and(|(stamp, _)| self.deleted_at.is_none_or(|deleted| stamp > deleted))
    }

    /// Whether the expiry has passed.
    pub fn expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms().is_some_and(|at| now_ms >= at)
    }

    /// When the key expires, Unix ms.
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.expiry.and_then(|expiry| expiry.at_ms)
    }

    /// The greatest stamp a write must be above to be seen.
    pub fn last_stamp(&self) -> Stamp {
        let written = self.written.map_or(Stamp::ZERO, |(stamp, _)| stamp);
        let expiry = self.expiry.map_or(Stamp::ZERO, |expiry| expiry.set.0);
        written.max(self.deleted_at.unwrap_or_default()).max(expiry)
    }

    /// Merges everything of a change but a document's content, which [`Admission`] tells the caller to merge.
    pub fn merge(&mut self, change: &Change) -> Admission {
        if change.life < self.life {
            return Admission::Outlived;
        }
        let admission = if change.life > self.life {
            *self = Self { life: change.life, generation: change.generation, ..Self::default() };
            Admission::NewLife
        } else {
            Admission::SameLife
        };
        let by = (change.stamp, change.origin);
        match change.expiry {
            ExpiryChange::Keep => {}
            ExpiryChange::Clear => self.set_expiry(Expiry { at_ms: None, set: by }),
            ExpiryChange::At(ms) => self.set_expiry(Expiry { at_ms: Some(ms), set: by }),
        }
        let last_writer = self.written.is_none_or(|written| by > written);
        match &change.body {
            Body::Touch => {}
            Body::Delete { deleted_at } => self.deleted_at = self.deleted_at.max(Some(*deleted_at)),
            Body::Register { content_type, bytes } => {
                if last_writer {
                    self.content = Content::Register(Register {
                        content_type: content_type.clone(),
                        bytes: bytes.clone(),
                    });
                }
            }
            Body::Counter { total, floors } => {
                if !matches!(self.content, Content::Counter(_)) {
                    self.content = Content::Counter(Counter::default());
                }
                if let Content::Counter(counter) = &mut self.content {
                    counter.merge(change.origin, change.seq, *total, floors);
                }
            }
            Body::Document { .. } => {}
        }
        if last_writer && !matches!(change.body, Body::Touch | Body::Delete { .. }) {
            self.written = Some(by);
        }
        if matches!(self.content, Content::Register(_)) && !self.alive() {
            self.content = Content::Empty; // only a later write shows the key again, and it brings its own bytes
        }
        admission
    }

    /// Merges what another member has of the key, all but a document's content: [`Admission`] tells whose to take. What
    /// both had applied and what only one had is then applied here; merging it again changes nothing.
    pub fn merge_state(&mut self, other: &Self) -> Admission {
        if other.life < self.life {
            return Admission::Outlived;
        }
        if other.life > self.life {
            *self = other.clone();
            return Admission::NewLife;
        }
        self.deleted_at = self.deleted_at.max(other.deleted_at);
        if let Some(expiry) = other.expiry {
            self.set_expiry(expiry);
        }
        let theirs_is_later = other.written > self.written;
        match (&mut self.content, &other.content) {
            (Content::Counter(ours), Content::Counter(theirs)) => ours.merge_state(theirs),
            (ours @ Content::Empty, theirs @ Content::Counter(_)) => *ours = theirs.clone(),
            (ours, theirs @ Content::Register(_)) if theirs_is_later => *ours = theirs.clone(),
            _ => {}
        }
        self.written = self.written.max(other.written);
        if matches!(self.content, Content::Register(_)) && !self.alive() {
            self.content = Content::Empty;
        }
        Admission::SameLife
    }

    fn set_expiry(&mut self, expiry: Expiry) {
        if self.expiry.is_none_or(|current| expiry.set > current.set) {
            self.expiry = Some(expiry);
        }
    }

    /// Appends the cell; the content comes last.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.life);
        put_varint(out, self.generation);
        let flags = u8::from(self.deleted_at.is_some())
            | u8::from(self.written.is_some()) << 1
            | u8::from(self.expiry.is_some()) << 2
            | u8::from(self.expires_at_ms().is_some()) << 3;
        out.push(flags);
        if let Some(stamp) = self.deleted_at {
            out.extend_from_slice(&stamp.as_u64().to_be_bytes());
        }
        if let Some(by) = &self.written {
            encode_by(out, by);
        }
        if let Some(expiry) = &self.expiry {
            if let Some(ms) = expiry.at_ms {
                put_varint(out, ms);
            }
            encode_by(out, &expiry.set);
        }
        match &self.content {
            Content::Empty => out.push(0),
            Content::Register(register) => {
                out.push(1);
                put_bytes(out, register.content_type.as_bytes());
                out.extend_from_slice(&register.bytes);
            }
            Content::Counter(counter) => {
                out.push(2);
                counter.encode(out);
            }
            Content::Document { heads, json } => {
                out.push(3);
                put_varint(out, heads.len() as u64);
                out.extend_from_slice(heads.as_flattened());
                out.extend_from_slice(json);
            }
        }
    }

    /// Reads what [`Self::encode`] wrote at the end of `whole`; values are slices of it.
    pub fn decode(r: &mut Reader<'_>, whole: &Bytes) -> Result<Self, DecodeError> {
        let life = r.varint("life")?;
        let generation = r.varint("generation")?;
        let flags = r.u8("cell flags")?;
        if flags > 15 || flags & 12 == 8 {
            return Err(r.invalid("cell flags"));
        }
        let deleted_at = (flags & 1 != 0).then(|| r.u64("deleted at")).transpose()?.map(Stamp::from_u64);
        let written = (flags & 2 != 0).then(|| decode_by(r)).transpose()?;
        let expiry = if flags & 4 == 0 {
            None
        } else {
            let at_ms = (flags & 8 != 0).then(|| r.varint("expires at")).transpose()?;
            Some(Expiry { at_ms, set: decode_by(r)? })
        };
        let content = match r.u8("content")? {
            0 => Content::Empty,
            1 => Content::Register(Register {
                content_type: r.str("content type")?.to_owned(),
                bytes: rest(r, whole)?,
            }),
            2 => {
                let mut counter = Counter::default();
                for entries in [&mut counter.totals, &mut counter.floors] {
                    for _ in 0..r.varint("totals")? {
                        let entry = Floor::decode(r)?;
                        entries.insert(entry.origin, (entry.seq, entry.total));
                    }
                }
                Content::Counter(counter)
            }
            3 => {
                let mut heads = Vec::new();
                for _ in 0..r.varint("heads")? {
                    heads.push(r.array("head")?);
                }
                Content::Document { heads, json: rest(r, whole)? }
            }
            _ => return Err(r.invalid("content")),
        };
        Ok(Self { life, generation, deleted_at, written, expiry, content })
    }
}

fn encode_by(out: &mut Vec<u8>, by: &(Stamp, Origin)) {
    out.extend_from_slice(&by.0.as_u64().to_be_bytes());
    by.1.encode(out);
}

fn decode_by(r: &mut Reader<'_>) -> Result<(Stamp, Origin), DecodeError> {
    Ok((Stamp::from_u64(r.u64("stamp")?), Origin::decode(r)?))
}

fn rest(r: &mut Reader<'_>, whole: &Bytes) -> Result<Bytes, DecodeError> {
    let len = r.rest().len();
    Ok(whole.slice_ref(r.take(len, "value")?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::origin::NodeId;

    fn origin(node: u8) -> Origin {
        Origin {
            node: NodeId::new(["a", "b", "c"][usize::from(node % 3)]).unwrap(),
            incarnation: 1,
            random: 0,
        }
    }

    fn change(node: u8, seq: u64, ms: u64, life: u64, expiry: ExpiryChange, body: Body) -> Change {
        Change {
            scope: "s".into(),
            scope_incarnation: 0,
            shard_index: 0,
            origin: origin(node),
            seq,
            deps: Vec::new(),
            stamp: Stamp::new(ms, 0),
            key: "k".into(),
            life,
            generation: 0,
            epoch: 0,
            request_id: None,
            trace: None,
            expiry,
            body,
        }
    }

    fn put(value: &'static str) -> Body {
        Body::Register { content_type: String::new(), bytes: Bytes::from_static(value.as_bytes()) }
    }

    fn body() -> impl Strategy<Value = Body> {
        prop_oneof![
            Just(put("x")),
            Just(put("y")),
            (1..40_u64).prop_map(|ms| Body::Delete { deleted_at: Stamp::new(ms, 0) }),
            Just(Body::Touch),
        ]
    }

    fn counter_body() -> impl Strategy<Value = Body> {
        prop_oneof![
            (-9..9_i128, any::<bool>()).prop_map(|(total, floored)| Body::Counter {
                total,
                floors: if floored { vec![Floor { origin: origin(0), seq: 1, total: 3 }] } else { vec![] },
            }),
            (1..40_u64).prop_map(|ms| Body::Delete { deleted_at: Stamp::new(ms, 0) }),
        ]
    }

    fn expiry() -> impl Strategy<Value = ExpiryChange> {
        prop_oneof![
            Just(ExpiryChange::Keep),
            Just(ExpiryChange::Clear),
            (1..99_u64).prop_map(ExpiryChange::At)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// One change of each origin, all concurrent: every order of delivery ends alike.
        #[test]
        fn concurrent_changes_merge_alike_in_every_order(
            made in (prop::collection::vec((1..40_u64, 0..3_u64, expiry(), body()), 3),
                     prop::collection::vec((1..40_u64, 0..3_u64, expiry(), counter_body()), 3), any::<bool>())
                .prop_map(|(registers, counters, which)| if which { registers } else { counters })
        ) {
            let changes: Vec<Change> = made.into_iter().enumerate()
                .map(|(i, (ms, life, expiry, body))| change(i as u8, 1, ms, life, expiry, body)).collect();
            let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
            let ends: Vec<Cell> = orders.iter().map(|order| {
                let mut cell = Cell::default();
                for at in order { cell.merge(&changes[*at]); }
                cell
            }).collect();
            for end in &ends {
                prop_assert_eq!(end, &ends[0]);
                let mut bytes = Vec::new();
                end.encode(&mut bytes);
                let bytes = Bytes::from(bytes);
                let mut r = Reader::new(&bytes);
                prop_assert_eq!(&Cell::decode(&mut r, &bytes).unwrap(), end);
            }
            // Two members that each have some of them, or all: merging their states is merging the changes.
            for (some, others) in (0..8_u8).flat_map(|some| (0..8).map(move |others| (some, others))) {
                let of = |mask: u8| {
                    let mut cell = Cell::default();
                    for (at, change) in changes.iter().enumerate() {
                        if mask & 1 << at != 0 { cell.merge(change); }
                    }
                    cell
                };
                let (mut merged, other) = (of(some), of(others));
                merged.merge_state(&other);
                prop_assert_eq!(&merged, &of(some | others));
                let before = merged.clone();
                merged.merge_state(&other);
                prop_assert_eq!(&merged, &before, "again changes nothing");
            }
        }
    }

    #[test]
    fn a_delete_hides_what_was_written_before_it_and_a_later_write_shows_the_key_again() {
        let mut cell = Cell::default();
        cell.merge(&change(0, 1, 5, 0, ExpiryChange::Keep, put("v")));
        assert!(cell.visible(100));
        cell.merge(&change(1, 1, 7, 0, ExpiryChange::Keep, Body::Delete { deleted_at: Stamp::new(7, 0) }));
        assert!(!cell.visible(100) && cell.content == Content::Empty);
        cell.merge(&change(2, 1, 6, 0, ExpiryChange::Keep, put("late")));
        assert!(!cell.visible(100) && cell.content == Content::Empty, "stamped before the delete");
        cell.merge(&change(2, 2, 8, 0, ExpiryChange::Keep, put("new")));
        assert!(cell.visible(100));
    }

    #[test]
    fn an_edit_of_a_lower_life_changes_nothing() {
        let mut cell = Cell::default();
        cell.merge(&change(0, 1, 5, 1, ExpiryChange::Keep, put("second life")));
        let before = cell.clone();
        let late = change(1, 1, 9, 0, ExpiryChange::At(1), put("first life"));
        assert_eq!(cell.merge(&late), Admission::Outlived);
        assert_eq!(cell, before);
    }

    #[test]
    fn a_counter_counts_each_origin_once_however_often_a_total_arrives() {
        let mut counter = Counter::default();
        counter.merge(origin(0), 2, 7, &[]);
        counter.merge(origin(0), 1, 5, &[]);
        counter.merge(origin(0), 2, 7, &[]);
        counter.merge(origin(1), 1, -3, &[]);
        assert_eq!(counter.value(), Some(4));
        let floors = counter.as_floors();
        counter.merge(origin(2), 1, 10, &floors);
        assert_eq!(counter.value(), Some(10), "the floors take out what the writer saw");
        counter.merge(origin(0), 3, 8, &[]);
        assert_eq!(counter.value(), Some(11), "and nothing that it had not seen");
    }

    #[test]
    fn sums_beyond_the_range_are_none_not_a_wrong_number() {
        let mut counter = Counter::default();
        counter.merge(origin(0), 1, i128::MAX, &[]);
        counter.merge(origin(1), 1, 1, &[]);
        assert_eq!((counter.sum(), counter.value()), (None, None));
    }
}
