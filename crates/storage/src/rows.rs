//! Rows: what the values of each space say. Every row ends with a checksum.

use bytes::Bytes;
use tropism_crdt::cell::{Cell, Content};
use tropism_crdt::codec::{DecodeError, Reader, checked, put_bytes, put_checksum, put_varint};
use tropism_crdt::vector::{decode_entries, encode_entries};
use tropism_crdt::{NodeId, Origin, Stamp, Vector};
use tropism_placement::{Kind, ScopeId, ScopeName, ShardId};

use crate::keys::LogKey;

/// Version of every format in a store: a store that says a higher number, or one below [`OLDEST_FORMAT`], is not opened.
/// 2 since the head row counts; 3 since vectors have a digest beside them, shards come as a whole, and a saved document may
/// begin with its light state; 4 since scopes have records of their own, and shards go.
pub const STORE_FORMAT: u64 = 4;
/// The oldest format that is read: what it lacks is computed again.
pub const OLDEST_FORMAT: u64 = 2;

/// A row that can be encoded and read back.
pub trait Row: Sized {
    /// Appends the fields.
    fn encode_fields(&self, out: &mut Vec<u8>);

    /// Reads the fields; `whole` is the row, for values that are slices of it.
    fn decode_fields(r: &mut Reader<'_>, whole: &Bytes) -> Result<Self, DecodeError>;

    /// Fields and checksum.
    fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(128);
        self.encode_fields(&mut out);
        put_checksum(&mut out, 0);
        out.into()
    }

    /// Verifies the checksum and reads the fields.
    fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(checked(bytes)?);
        let row = Self::decode_fields(&mut r, bytes)?;
        r.finish()?;
        Ok(row)
    }
}

/// Space `values`: one key at this member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ValueRow {
    /// Number of this node's commit that wrote the row: what is stable below a commit is stable here.
    pub commit: u64,
    /// The key's last changes, one entry per origin: what a reader's token must say.
    pub last: Vec<(Origin, u64)>,
    /// A change that could not be applied, if there is one: the key is not served.
    pub parked: Option<Parked>,
    /// State and value.
    pub cell: Cell,
}

/// Why a key is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The place of the next change that is put aside: so many were since the key was parked. At least 1.
    pub changes: u64,
    /// What is wrong with the first that is left.
    pub reason: String,
}

impl ValueRow {
    /// As what the key is counted.
    pub fn standing(&self) -> Standing {
        let cell = &self.cell;
        match (cell.written, cell.deleted_at) {
            _ if self.parked.is_some() => Standing::Parked,
            _ if cell.alive() => Standing::Alive,
            (None, None) => Standing::Absent,
            (None, Some(_)) if cell.content == Content::Empty && cell.expiry.is_none() => Standing::Stub,
            _ => Standing::Deleted,
        }
    }
}

/// As what a key is counted: exactly one of these, whatever the time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not at all: nothing was ever written or deleted.
    Absent,
    /// Written later than deleted; it may have expired.
    Alive,
    /// Deleted, and not yet a stub.
    Deleted,
    /// Deleted; only key, life and time are kept.
    Stub,
    /// Not to be shown.
    Parked,
}

impl Row for ValueRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.commit);
        encode_entries(out, self.last.len(), self.last.iter().map(|(o, s)| (o, *s)));
        put_varint(out, self.parked.as_ref().map_or(0, |parked| parked.changes));
        if let Some(parked) = &self.parked {
            put_bytes(out, parked.reason.as_bytes());
        }
        self.cell.encode(out);
    }

    fn decode_fields(r: &mut Reader<'_>, whole: &Bytes) -> Result<Self, DecodeError> {
        let commit = r.varint("commit")?;
        let last = decode_entries(r)?;
        let parked = match r.varint("parked changes")? {
            0 => None,
            changes => Some(Parked { changes, reason: r.str("reason")?.to_owned() }),
        };
        Ok(Self { commit, last, parked, cell: Cell::decode(r, whole)? })
    }
}

/// Space `shards`: what a shard is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRow {
    /// Its scope.
    pub scope: ScopeId,
    /// Which of the scope's shards.
    pub index: u16,
    /// What its values are.
    pub kind: Kind,
}

impl ShardRow {
    /// The shard's id.
    pub fn id(&self) -> ShardId {
        ShardId::of(&self.scope, self.index)
    }
}

impl Row for ShardRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.scope.name.as_str().as_bytes());
        put_varint(out, self.scope.incarnation);
        put_varint(out, u64::from(self.index));
        out.push(self.kind.code());
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let name = ScopeName::new(r.str("scope")?).map_err(|_| r.invalid("scope"))?;
        let incarnation = r.varint("scope incarnation")?;
        let index = u16::try_from(r.varint("shard index")?).map_err(|_| r.invalid("shard index"))?;
        let kind = Kind::from_code(r.u8("kind")?).ok_or_else(|| r.invalid("kind"))?;
        Ok(Self { scope: ScopeId { name, incarnation }, index, kind })
    }
}

/// Space `shards`: how far a shard has come here, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VectorRow {
    /// What is applied.
    pub vector: Vector,
    /// Sum of the fingerprints of its keys' states at that vector; `None` while that is not known.
    pub digest: Option<Digest>,
}

/// A sum of keyed fingerprints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// Under which key: sums under another one say nothing.
    pub key_id: u32,
    /// The sum, modulo 2^128.
    pub sum: u128,
}

impl Row for VectorRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        self.vector.encode(out);
        if let Some(Digest { key_id, sum }) = self.digest {
            out.extend_from_slice(&key_id.to_be_bytes());
            out.extend_from_slice(&sum.to_be_bytes());
        }
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let vector = Vector::decode(r)?;
        let digest = if r.rest().is_empty() {
            None
        } else {
            let key_id = u32::from_be_bytes(r.array("digest key")?);
            Some(Digest { key_id, sum: u128::from_be_bytes(r.array("digest")?) })
        };
        Ok(Self { vector, digest })
    }
}

/// Space `shards`: the state of a shard on its way from a peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TransferRow {
    /// The vector under which the states were read: once all are staged, everything it counts is here.
    pub vector: Vector,
    /// Whether all are staged and the shard's vector was raised: then what is staged is merged key by key.
    pub whole: bool,
    /// The last key of which everything is staged; empty: none.
    pub last: String,
    /// Keys staged so far.
    pub keys: u64,
}

impl Row for TransferRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        self.vector.encode(out);
        out.push(u8::from(self.whole));
        put_bytes(out, self.last.as_bytes());
        put_varint(out, self.keys);
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let vector = Vector::decode(r)?;
        let whole = match r.u8("whole")? {
            0 => false,
            1 => true,
            _ => return Err(r.invalid("whole")),
        };
        Ok(Self { vector, whole, last: r.str("last key")?.to_owned(), keys: r.varint("staged keys")? })
    }
}

/// Which store this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// [`STORE_FORMAT`] when written.
    pub format: u64,
    /// The cluster's name.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
    /// Drawn when the store was made: cursors into another store are void.
    pub store_id: u128,
}

impl Row for Header {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.format);
        put_bytes(out, self.cluster.as_bytes());
        self.node.encode(out);
        out.extend_from_slice(&self.store_id.to_be_bytes());
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        Ok(Self {
            format: r.varint("store format")?,
            cluster: r.str("cluster")?.to_owned(),
            node: NodeId::decode(r)?,
            store_id: u128::from_be_bytes(r.array("store id")?),
        })
    }
}

/// How far the store has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Number of the last commit.
    pub commit: u64,
    /// Hash over everything every commit wrote, in order.
    pub hash: u64,
}

/// How much the store holds, counted in the batch that changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Keys by [`Standing`].
    pub keys: KeyTally,
    /// Changes in the log.
    pub log_changes: u64,
    /// Their bytes.
    pub log_bytes: u64,
}

/// Keys by [`Standing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyTally {
    /// [`Standing::Alive`].
    pub alive: u64,
    /// [`Standing::Deleted`].
    pub deleted: u64,
    /// [`Standing::Stub`].
    pub stubs: u64,
    /// [`Standing::Parked`].
    pub parked: u64,
}

impl KeyTally {
    /// Counts a key.
    pub fn add(&mut self, standing: Standing) {
        if let Some(count) = self.of(standing) {
            *count += 1;
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.alive + self.deleted + self.stubs + self.parked
    }

    /// Counts a key no longer. Stays at 0: a row that rotted was counted as what it was before.
    pub fn remove(&mut self, standing: Standing) {
        if let Some(count) = self.of(standing) {
            *count = count.saturating_sub(1);
        }
    }

    fn of(&mut self, standing: Standing) -> Option<&mut u64> {
        match standing {
            Standing::Absent => None,
            Standing::Alive => Some(&mut self.alive),
            Standing::Deleted => Some(&mut self.deleted),
            Standing::Stub => Some(&mut self.stubs),
            Standing::Parked => Some(&mut self.parked),
        }
    }
}

/// The row in every batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeadRow {
    /// How far the store has come.
    pub head: Head,
    /// What it holds there.
    pub tally: Tally,
}

impl Row for HeadRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.head.commit);
        out.extend_from_slice(&self.head.hash.to_be_bytes());
        let Tally { keys, log_changes, log_bytes } = self.tally;
        for count in [keys.alive, keys.deleted, keys.stubs, keys.parked, log_changes, log_bytes] {
            put_varint(out, count);
        }
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let head = Head { commit: r.varint("commit")?, hash: r.u64("hash")? };
        if r.rest().is_empty() {
            return Ok(Self { head, tally: Tally::default() }); // of format 1: its header is refused in the right words
        }
        let keys = KeyTally {
            alive: r.varint("keys alive")?,
            deleted: r.varint("keys deleted")?,
            stubs: r.varint("stubs")?,
            parked: r.varint("keys parked")?,
        };
        let tally =
            Tally { keys, log_changes: r.varint("changes in the log")?, log_bytes: r.varint("their bytes")? };
        Ok(Self { head, tally })
    }
}

/// What the clock promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockRow {
    /// No stamp at or beyond this was issued, Unix ms; 0 after a clean stop.
    pub reserved_ms: u64,
    /// The last stamp known when the row was written; the last at all after a clean stop.
    pub last: Stamp,
}

impl Row for ClockRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.reserved_ms);
        out.extend_from_slice(&self.last.as_u64().to_be_bytes());
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        Ok(Self { reserved_ms: r.varint("reservation")?, last: Stamp::from_u64(r.u64("last stamp")?) })
    }
}

impl Row for Origin {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        self.encode(out);
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        Self::decode(r)
    }
}

/// The commit index: what one commit logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRow {
    /// When, by the wall clock, Unix ms: decides when the log may be trimmed.
    pub wall_ms: u64,
    /// The log keys, in the order the changes were applied.
    pub changes: Vec<LogKey>,
}

impl Row for CommitRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.wall_ms);
        put_varint(out, self.changes.len() as u64);
        for key in &self.changes {
            out.extend_from_slice(&key.shard.0);
            key.origin.encode(out);
            put_varint(out, key.seq);
        }
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let wall_ms = r.varint("wall clock")?;
        let mut changes = Vec::new();
        for _ in 0..r.varint("changes")? {
            changes.push(LogKey {
                shard: ShardId(r.array("shard")?),
                origin: Origin::decode(r)?,
                seq: r.varint("seq")?,
            });
        }
        Ok(Self { wall_ms, changes })
    }
}

/// Where the log begins: what was logged in earlier commits was taken out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogFloorRow {
    /// The first commit that is whole in the log.
    pub commit: u64,
}

impl Row for LogFloorRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.commit);
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        Ok(Self { commit: r.varint("log floor")? })
    }
}

/// Where lives of the store began: a peer that saw more of one than there is before the next saw another copy of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LivesRow {
    /// Incarnations, ascending.
    pub lives: Vec<Life>,
}

/// A life of a store: from one start of its node to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Life {
    /// Its incarnation.
    pub incarnation: u64,
    /// The random bits of its origin; 0 in rows of builds that did not keep them. Two lives of two copies of a store can
    /// have one incarnation, after a clock that was ahead.
    pub random: u64,
    /// The last commit that it found.
    pub found: u64,
}

impl LivesRow {
    /// Lives remembered.
    pub const MOST: usize = 256;
}

impl Row for LivesRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.lives.len() as u64);
        for life in &self.lives {
            put_varint(out, life.incarnation);
            put_varint(out, life.found);
        }
        for life in &self.lives {
            out.extend_from_slice(&life.random.to_be_bytes());
        }
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let mut lives = Vec::new();
        for _ in 0..r.varint("lives")? {
            lives.push(Life { incarnation: r.varint("incarnation")?, random: 0, found: r.varint("commit")? });
        }
        if !r.rest().is_empty() {
            for life in &mut lives {
                life.random = r.u64("random")?;
            }
        }
        Ok(Self { lives })
    }
}

/// What became of a client's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    /// When it was seen here, by the wall clock, Unix ms.
    pub wall_ms: u64,
    /// This node's commit that holds the change.
    pub commit: u64,
    /// The change.
    pub change: (Origin, u64),
    /// Its stamp.
    pub stamp: Stamp,
    /// Hash of what was asked for; 0 where the change came from a peer.
    pub digest: u64,
    /// What the reply said: the version, whether the key was visible before, a counter's value.
    pub reply: Option<(Bytes, bool, Option<i64>)>,
}

impl Row for RequestRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.wall_ms);
        put_varint(out, self.commit);
        self.change.0.encode(out);
        put_varint(out, self.change.1);
        out.extend_from_slice(&self.stamp.as_u64().to_be_bytes());
        out.extend_from_slice(&self.digest.to_be_bytes());
        let Some((version, existed, counter)) = &self.reply else {
            out.push(0);
            return;
        };
        out.push(1 | u8::from(*existed) << 1 | u8::from(counter.is_some()) << 2);
        put_bytes(out, version);
        if let Some(value) = counter {
            out.extend_from_slice(&i128::from(*value).to_be_bytes());
        }
    }

    fn decode_fields(r: &mut Reader<'_>, whole: &Bytes) -> Result<Self, DecodeError> {
        let (wall_ms, commit) = (r.varint("wall clock")?, r.varint("commit")?);
        let change = (Origin::decode(r)?, r.varint("seq")?);
        let (stamp, digest) = (Stamp::from_u64(r.u64("stamp")?), r.u64("digest")?);
        let flags = r.u8("reply")?;
        if flags > 7 || flags != 0 && flags & 1 == 0 {
            return Err(r.invalid("reply"));
        }
        let reply = if flags == 0 {
            None
        } else {
            let version = whole.slice_ref(r.bytes("version")?);
            let counter = (flags & 4 != 0).then(|| r.i128("counter")).transpose()?;
            let counter = counter.map(i64::try_from).transpose().map_err(|_| r.invalid("counter"))?;
            Some((version, flags & 2 != 0, counter))
        };
        Ok(Self { wall_ms, commit, change, stamp, digest, reply })
    }
}

/// What an operator gave up in this store, since it was made: parked changes that were dropped. Without names of keys:
/// those must go from here when their scope moves away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedRow {
    /// Times that a key was given up.
    pub keys: u64,
    /// Changes that went.
    pub changes: u64,
    /// When the last was given up, by the wall clock, Unix ms.
    pub last_ms: u64,
    /// The scope of that key.
    pub scope: String,
}

impl Row for DroppedRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        for number in [self.keys, self.changes, self.last_ms] {
            put_varint(out, number);
        }
        put_bytes(out, self.scope.as_bytes());
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        Ok(Self {
            keys: r.varint("keys")?,
            changes: r.varint("changes")?,
            last_ms: r.varint("wall clock")?,
            scope: r.str("scope")?.to_owned(),
        })
    }
}

/// What is remembered of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerRow {
    /// The peer's store when the cursor was told; the cursor is void for another one.
    pub store_id: u128,
    /// The peer holds everything this store logged up to this commit.
    pub cursor: u64,
    /// The highest state of the peer's store that it ever showed us: a peer that comes back behind it is short.
    pub seen: Seen,
    /// Whether the peer had another store before this one.
    pub replaced: bool,
}

/// A state of a peer's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Seen {
    /// Its incarnation.
    pub incarnation: u64,
    /// Its commit number.
    pub commit: u64,
    /// Its running hash there.
    pub hash: u64,
    /// The random bits of its origin then; 0 when they are not known.
    pub random: u64,
}

impl Row for PeerRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.store_id.to_be_bytes());
        put_varint(out, self.cursor);
        put_varint(out, self.seen.incarnation);
        put_varint(out, self.seen.commit);
        out.extend_from_slice(&self.seen.hash.to_be_bytes());
        // Left out by builds before these; the bits after that.
        if self.replaced || self.seen.random != 0 {
            out.push(u8::from(self.replaced));
        }
        if self.seen.random != 0 {
            out.extend_from_slice(&self.seen.random.to_be_bytes());
        }
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let mut row = Self {
            store_id: u128::from_be_bytes(r.array("store id")?),
            cursor: r.varint("cursor")?,
            seen: Seen {
                incarnation: r.varint("incarnation")?,
                commit: r.varint("commit")?,
                hash: r.u64("hash")?,
                random: 0,
            },
            replaced: false,
        };
        if !r.rest().is_empty() {
            row.replaced = r.u8("replaced")? == 1;
        }
        if !r.rest().is_empty() {
            row.seen.random = r.u64("random")?;
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn rows_of_lives_and_peers_of_builds_without_random_bits_are_read() {
        let lives = LivesRow { lives: vec![Life { incarnation: 1, random: 2, found: 3 }] };
        let bytes = lives.encode();
        assert_eq!(bytes[..bytes.len() - 8], *b"\x01\x01\x03\0\0\0\0\0\0\0\x02");
        assert_eq!(LivesRow::decode(&bytes), Ok(lives));
        let mut old = b"\x01\x01\x03".to_vec();
        put_checksum(&mut old, 0);
        let found = LivesRow { lives: vec![Life { incarnation: 1, random: 0, found: 3 }] };
        assert_eq!(LivesRow::decode(&old.into()), Ok(found));
        for (random, replaced) in [(0, false), (0, true), (9, false), (9, true)] {
            let seen = Seen { incarnation: 1, commit: 2, hash: 3, random };
            let row = PeerRow { store_id: 4, cursor: 5, seen, replaced };
            assert_eq!(PeerRow::decode(&row.encode()), Ok(row));
            let more = usize::from(replaced || random != 0) + if random == 0 { 0 } else { 8 };
            assert_eq!(row.encode().len(), 16 + 1 + 1 + 1 + 8 + more + 8, "as older builds wrote it");
        }
    }

    #[test]
    fn a_vector_row_has_golden_bytes_with_a_digest_and_without() {
        let origin = Origin { node: NodeId::new("n").unwrap(), incarnation: 1, random: 2 };
        let vector: Vector = [(origin, 3)].into_iter().collect();
        let row = VectorRow { vector, digest: Some(Digest { key_id: 4, sum: 5 }) };
        let fields = *b"\x01\x01n\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x03";
        let bytes = row.encode();
        assert_eq!(bytes[..fields.len()], fields);
        assert_eq!(bytes[fields.len()..][..20], *b"\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05");
        assert_eq!(VectorRow::decode(&bytes), Ok(row.clone()));
        let without = VectorRow { digest: None, ..row };
        assert_eq!(without.encode().len(), fields.len() + 8, "as stores of format 2 have it");
        assert_eq!(VectorRow::decode(&without.encode()), Ok(without));
    }

    #[test]
    fn a_head_row_has_golden_bytes_and_one_without_a_tally_is_read() {
        let head = Head { commit: 1, hash: 2 };
        let keys = KeyTally { alive: 3, deleted: 4, stubs: 5, parked: 6 };
        let row = HeadRow { head, tally: Tally { keys, log_changes: 7, log_bytes: 300 } };
        let bytes = row.encode();
        assert_eq!(
            bytes[..],
            *b"\x01\0\0\0\0\0\0\0\x02\x03\x04\x05\x06\x07\xac\x02\x2d\xb7\xce\xd7\x41\x96\x3a\x19"
        );
        assert_eq!(HeadRow::decode(&bytes), Ok(row));
        let dropped = DroppedRow { keys: 1, changes: 300, last_ms: 2, scope: "s".to_owned() };
        assert_eq!(dropped.encode()[..6], *b"\x01\xac\x02\x02\x01s");
        assert_eq!(DroppedRow::decode(&dropped.encode()), Ok(dropped));
        let first = Bytes::from_static(b"\x01\0\0\0\0\0\0\0\x02\xf7\x6d\xf0\x2b\xee\x07\x23\x25");
        assert_eq!(HeadRow::decode(&first), Ok(HeadRow { head, tally: Tally::default() }));
    }
}
