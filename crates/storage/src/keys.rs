//! Keys on disk: one enum or struct per space, encoded so that bytes sort as meant.
//!
//! Rows of a shard begin with its slot (2 bytes, big endian) and its id, so that a slot, a shard, a range of keys is one
//! range of the space. The node's own rows and the commit index have no slot: they never move.

use tropism_crdt::codec::{DecodeError, Reader};
use tropism_crdt::{NodeId, Origin, RequestId};
use tropism_placement::ShardId;

use crate::engine::StoreKey;

/// Slot and shard, with which every row of the shard begins.
pub fn shard_prefix(shard: &ShardId) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&shard.slot().get().to_be_bytes());
    out.extend_from_slice(&shard.0);
    out
}

/// The first key behind every key that begins with `prefix`.
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0xff; StoreKey::MAX_LEN + 1]
}

/// Space `values`: a key of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueKey<'a> {
    /// The shard.
    pub shard: ShardId,
    /// The key.
    pub key: &'a str,
}

impl ValueKey<'_> {
    /// Slot, shard, key.
    pub fn encode(&self) -> StoreKey {
        let mut out = shard_prefix(&self.shard);
        out.extend_from_slice(self.key.as_bytes());
        StoreKey::new(out)
    }
}

/// Space `edits`: a piece of a document's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EditKey<'a> {
    /// The shard.
    pub shard: ShardId,
    /// The key.
    pub key: &'a str,
    /// The life it belongs to.
    pub life: u64,
    /// 0: the saved document; from 1: changes since, in order; from [`EditKey::PARKED`]: changes that did not apply, each
    /// a [`KeptChange`](crate::KeptChange).
    pub part: u64,
}

impl EditKey<'_> {
    /// The first part of changes that did not apply.
    pub const PARKED: u64 = 1 << 63;
    /// In place of a life: whole changes that came while the key's row could not be read, in order, from part 0.
    pub const ROW_LOST: u64 = u64::MAX;

    /// Slot, shard, key, a zero byte (which no key contains), life, part.
    pub fn encode(&self) -> StoreKey {
        let mut out = self.prefix();
        out.extend_from_slice(&self.life.to_be_bytes());
        out.extend_from_slice(&self.part.to_be_bytes());
        StoreKey::new(out)
    }

    /// With what every piece of the key, of any life, begins.
    pub fn prefix(&self) -> Vec<u8> {
        let mut out = shard_prefix(&self.shard);
        out.extend_from_slice(self.key.as_bytes());
        out.push(0);
        out
    }
}

/// Space `log`: a change of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogKey {
    /// The shard.
    pub shard: ShardId,
    /// The author.
    pub origin: Origin,
    /// Its number.
    pub seq: u64,
}

impl LogKey {
    /// Slot, shard, origin, seq.
    pub fn encode(&self) -> StoreKey {
        let mut out = shard_prefix(&self.shard);
        self.origin.encode(&mut out);
        out.extend_from_slice(&self.seq.to_be_bytes());
        StoreKey::new(out)
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        r.take(2, "slot")?;
        let shard = ShardId(r.array("shard")?);
        let key = Self { shard, origin: Origin::decode(&mut r)?, seq: r.u64("seq")? };
        r.finish()?;
        Ok(key)
    }
}

/// Space `requests`: a client's request id in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestKey {
    /// The shard.
    pub shard: ShardId,
    /// The client's id.
    pub id: RequestId,
}

impl RequestKey {
    /// Slot, shard, id.
    pub fn encode(&self) -> StoreKey {
        let mut out = shard_prefix(&self.shard);
        out.extend_from_slice(&self.id);
        StoreKey::new(out)
    }
}

/// Space `staged`: a piece of a key's state as a peer sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagedKey<'a> {
    /// The shard.
    pub shard: ShardId,
    /// The key.
    pub key: &'a str,
    /// Which piece, from 0.
    pub piece: u32,
}

impl<'a> StagedKey<'a> {
    /// Slot, shard, key, a zero byte (which no key contains), piece.
    pub fn encode(&self) -> StoreKey {
        let mut out = Self::prefix(&self.shard, self.key);
        out.extend_from_slice(&self.piece.to_be_bytes());
        StoreKey::new(out)
    }

    /// With what every piece of the key begins.
    pub fn prefix(shard: &ShardId, key: &str) -> Vec<u8> {
        let mut out = shard_prefix(shard);
        out.extend_from_slice(key.as_bytes());
        out.push(0);
        out
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        r.take(2, "slot")?;
        let shard = ShardId(r.array("shard")?);
        let (key, piece) = r
            .rest()
            .split_last_chunk::<4>()
            .and_then(|(key, piece)| Some((key.strip_suffix(&[0])?, u32::from_be_bytes(*piece))))
            .ok_or_else(|| r.invalid("staged key"))?;
        let key = std::str::from_utf8(key).map_err(|_| r.invalid("staged key"))?;
        Ok(Self { shard, key, piece })
    }
}

/// Space `shards`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardKey {
    /// What the shard is.
    Description(ShardId),
    /// Its vector here.
    Vector(ShardId),
    /// How far its state has come from a peer.
    Transfer(ShardId),
    /// That its rows are being deleted here.
    Deleting(ShardId),
}

impl ShardKey {
    /// Slot, shard, which row.
    pub fn encode(&self) -> StoreKey {
        let (shard, tag) = match self {
            Self::Description(shard) => (shard, 0),
            Self::Vector(shard) => (shard, 1),
            Self::Transfer(shard) => (shard, 2),
            Self::Deleting(shard) => (shard, 3),
        };
        let mut out = shard_prefix(shard);
        out.push(tag);
        StoreKey::new(out)
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        r.take(2, "slot")?;
        let shard = ShardId(r.array("shard")?);
        let key = match r.u8("shard row")? {
            0 => Self::Description(shard),
            1 => Self::Vector(shard),
            2 => Self::Transfer(shard),
            3 => Self::Deleting(shard),
            _ => return Err(r.invalid("shard row")),
        };
        r.finish()?;
        Ok(key)
    }
}

/// Space `node`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKey<'a> {
    /// Which store this is.
    Header,
    /// Commit number and running hash; in every batch.
    Head,
    /// Reservation and last stamp.
    Clock,
    /// The origin of the current life.
    Boot,
    /// The commit index: what a commit logged.
    Commit(u64),
    /// What is remembered of a peer.
    Peer(NodeId),
    /// What was dropped here by hand.
    Dropped,
    /// A scope by name and incarnation: the record of its own that was adopted.
    Scope(&'a str, u64),
    /// Where the log begins.
    LogFloor,
    /// Where lives of the store began.
    Lives,
    /// That the store is not served before peers have filled it.
    Rebuild,
    /// That it stands in the place of one that was lost.
    Lost,
}

impl NodeKey<'_> {
    /// From where and up to where the scopes are.
    pub fn scopes() -> (Vec<u8>, Vec<u8>) {
        (vec![6], vec![7])
    }

    /// Tag, then the parts.
    pub fn encode(&self) -> StoreKey {
        let mut out = Vec::with_capacity(16);
        match self {
            Self::Header => out.push(0),
            Self::Head => out.push(1),
            Self::Clock => out.push(2),
            Self::Boot => out.push(3),
            Self::Commit(number) => {
                out.push(4);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Peer(node) => {
                out.push(5);
                node.encode(&mut out);
            }
            Self::Dropped => out.push(9),
            Self::Scope(name, incarnation) => {
                out.push(6);
                out.extend_from_slice(name.as_bytes());
                out.push(0);
                out.extend_from_slice(&incarnation.to_be_bytes());
            }
            Self::LogFloor => out.push(7),
            Self::Lives => out.push(8),
            Self::Rebuild => out.push(10),
            Self::Lost => out.push(11),
        }
        StoreKey::new(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn keys_have_golden_bytes_and_sort_by_slot_shard_and_seq() {
        let shard = ShardId([0xaa; 16]);
        let origin = Origin { node: NodeId::new("n").unwrap(), incarnation: 1, random: 2 };
        let at = |seq| LogKey { shard, origin, seq };
        assert!(at(255).encode() < at(256).encode());
        let bytes = at(3).encode();
        assert_eq!(bytes.as_bytes()[..2], shard.slot().get().to_be_bytes());
        assert_eq!(bytes.as_bytes()[18..], *b"\x01n\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03");
        assert_eq!(LogKey::decode(bytes.as_bytes()), Ok(at(3)));
        assert_eq!(NodeKey::Commit(1).encode().as_bytes()[..], *b"\x04\0\0\0\0\0\0\0\x01");
        assert_eq!(NodeKey::Scope("a", 1).encode().as_bytes()[..], *b"\x06a\0\0\0\0\0\0\0\0\x01");
        let staged = StagedKey { shard, key: "k", piece: 7 };
        assert_eq!(staged.encode().as_bytes()[18..], *b"k\0\0\0\0\x07");
        assert_eq!(StagedKey::decode(staged.encode().as_bytes()), Ok(staged));
        assert_eq!(NodeKey::Dropped.encode().as_bytes()[..], *b"\x09");
        assert_eq!(NodeKey::Rebuild.encode().as_bytes()[..], *b"\x0a");
        assert_eq!(NodeKey::Lost.encode().as_bytes()[..], *b"\x0b");
        let long = "k".repeat(512);
        assert_eq!(ValueKey { shard, key: &long }.encode().as_bytes().len(), 530);
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys_and_before_the_next() {
        assert_eq!(after_prefix(b"ab"), b"ac");
        assert_eq!(after_prefix(b"a\xff"), b"b");
        assert!(after_prefix(b"\xff\xff") > b"\xff\xff\xff".to_vec());
    }
}
