//! One replicated mutation, and its bytes.

use bytes::Bytes;

use crate::cell::Floor;
use crate::codec::{DecodeError, Reader, checked, put_bytes, put_checksum, put_varint};
use crate::origin::Origin;
use crate::stamp::Stamp;
use crate::vector::{decode_entries, encode_entries};

/// A client's id for one request, for the same effect once however often it is sent.
pub type RequestId = [u8; 16];

/// One mutation of one key, as it is logged and sent. Immutable once made: its bytes are the same at every member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The scope's name.
    pub scope: String,
    /// The scope's incarnation: a dropped and re-created scope is another one.
    pub scope_incarnation: u64,
    /// Which of the scope's shards.
    pub shard_index: u16,
    /// Who made it.
    pub origin: Origin,
    /// The how-manieth change of `origin` in this shard, from 1, without gaps.
    pub seq: u64,
    /// What rose in the origin's vector of this shard since its previous change there (its own entry left out). With
    /// the previous change applied, these are all dependencies.
    pub deps: Vec<(Origin, u64)>,
    /// When, by the origin's hybrid logical clock.
    pub stamp: Stamp,
    /// The key.
    pub key: String,
    /// The key's life it belongs to.
    pub life: u64,
    /// Reserved for history compaction; 0.
    pub generation: u64,
    /// Epoch of the placement record the origin acted under; for diagnosis only.
    pub epoch: u64,
    /// The client's request, if it named one.
    pub request_id: Option<RequestId>,
    /// The trace it belongs to, if sampled.
    pub trace: Option<TraceContext>,
    /// What it does to the key's expiry.
    pub expiry: ExpiryChange,
    /// What it does to the value.
    pub body: Body,
}

/// W3C trace context of the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace id.
    pub trace_id: [u8; 16],
    /// Span of the commit.
    pub span_id: [u8; 8],
    /// Flags byte (bit 0: sampled).
    pub flags: u8,
}

/// What a change does to its key's expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpiryChange {
    /// Leaves it.
    #[default]
    Keep,
    /// The key does not expire.
    Clear,
    /// The key is visible while `now <` this, Unix ms.
    At(u64),
}

/// What a change does to its key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing: only the expiry.
    Touch,
    /// Deletes the life as of this stamp: the change's own, or the moment a key expired.
    Delete {
        /// The life is visible again only through a write stamped later.
        deleted_at: Stamp,
    },
    /// A register's new bytes.
    Register {
        /// MIME type as the client gave it.
        content_type: String,
        /// The value.
        bytes: Bytes,
    },
    /// A counter's total.
    Counter {
        /// Everything the origin ever added in this life.
        total: i128,
        /// Totals that no longer count, when the writer found the key expired.
        floors: Vec<Floor>,
    },
    /// A document's automerge change; empty when the write made no difference.
    Document {
        /// Raw automerge change, uncompressed.
        change: Bytes,
    },
}

const FORMAT: u8 = 1;
const HAS_REQUEST_ID: u8 = 1;
const HAS_TRACE: u8 = 2;
const HAS_EXPIRY: u8 = 4;

impl Change {
    /// The bytes that are logged and sent: docs/decisions/0001-formats.md.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(192 + self.key.len() + self.body.len_hint());
        out.push(FORMAT);
        put_bytes(&mut out, self.scope.as_bytes());
        put_varint(&mut out, self.scope_incarnation);
        put_varint(&mut out, u64::from(self.shard_index));
        self.origin.encode(&mut out);
        put_varint(&mut out, self.seq);
        encode_entries(&mut out, self.deps.len(), self.deps.iter().map(|(o, s)| (o, *s)));
        out.extend_from_slice(&self.stamp.as_u64().to_be_bytes());
        put_bytes(&mut out, self.key.as_bytes());
        put_varint(&mut out, self.life);
        put_varint(&mut out, self.generation);
        put_varint(&mut out, self.epoch);
        let flags = if self.request_id.is_some() { HAS_REQUEST_ID } else { 0 }
            | if self.trace.is_some() { HAS_TRACE } else { 0 }
            | if self.expiry == ExpiryChange::Keep { 0 } else { HAS_EXPIRY };
        out.push(flags);
        if let Some(id) = &self.request_id {
            out.extend_from_slice(id);
        }
        if let Some(trace) = &self.trace {
            out.extend_from_slice(&trace.trace_id);
            out.extend_from_slice(&trace.span_id);
            out.push(trace.flags);
        }
        match self.expiry {
            ExpiryChange::Keep => {}
            ExpiryChange::Clear => out.push(0),
            ExpiryChange::At(ms) => {
                out.push(1);
                put_varint(&mut out, ms);
            }
        }
        self.body.encode(&mut out);
        put_checksum(&mut out, 0);
        out.into()
    }

    /// The stamp in the bytes of a change, without a look at the rest or at the checksum; `None` where there is none.
    pub fn peek_stamp(bytes: &Bytes) -> Option<Stamp> {
        let mut r = Reader::new(bytes);
        r.u8("format").ok().filter(|format| *format == FORMAT)?;
        r.bytes("scope").ok()?;
        r.varint("scope incarnation").ok()?;
        r.varint("shard index").ok()?;
        Origin::decode(&mut r).ok()?;
        r.varint("seq").ok()?;
        decode_entries(&mut r).ok()?;
        r.u64("stamp").ok().map(Stamp::from_u64)
    }

    /// Reads what [`Self::encode`] wrote, checksum first. Values are slices of `bytes`, not copies.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(checked(bytes)?);
        if r.u8("format")? != FORMAT {
            return Err(r.invalid("change format"));
        }
        let scope = r.str("scope")?.to_owned();
        let scope_incarnation = r.varint("scope incarnation")?;
        let shard_index = u16::try_from(r.varint("shard index")?).map_err(|_| r.invalid("shard index"))?;
        let origin = Origin::decode(&mut r)?;
        let seq = r.varint("seq")?;
        if seq == 0 {
            return Err(r.invalid("seq"));
        }
        let deps = decode_entries(&mut r)?;
        let stamp = Stamp::from_u64(r.u64("stamp")?);
        let key = r.str("key")?.to_owned();
        let life = r.varint("life")?;
        let generation = r.varint("generation")?;
        let epoch = r.varint("epoch")?;
        let flags = r.u8("flags")?;
        if flags & !(HAS_REQUEST_ID | HAS_TRACE | HAS_EXPIRY) != 0 {
            return Err(r.invalid("flags"));
        }
        let request_id = (flags & HAS_REQUEST_ID != 0).then(|| r.array("request id")).transpose()?;
        let trace = (flags & HAS_TRACE != 0)
            .then(|| {
                Ok(TraceContext {
                    trace_id: r.array("trace id")?,
                    span_id: r.array("span id")?,
                    flags: r.u8("trace flags")?,
                })
            })
            .transpose()?;
        let expiry = if flags & HAS_EXPIRY == 0 {
            ExpiryChange::Keep
        } else {
            match r.u8("expiry")? {
                0 => ExpiryChange::Clear,
                1 => ExpiryChange::At(r.varint("expiry")?),
                _ => return Err(r.invalid("expiry")),
            }
        };
        let body = Body::decode(&mut r, bytes)?;
        r.finish()?;
        Ok(Self {
            scope,
            scope_incarnation,
            shard_index,
            origin,
            seq,
            deps,
            stamp,
            key,
            life,
            generation,
            epoch,
            request_id,
            trace,
            expiry,
            body,
        })
    }
}

impl Body {
    fn len_hint(&self) -> usize {
        match self {
            Self::Touch | Self::Delete { .. } => 8,
            Self::Register { content_type, bytes } => content_type.len() + bytes.len() + 8,
            Self::Counter { floors, .. } => 24 + floors.len() * 64,
            Self::Document { change } => change.len() + 8,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Touch => out.push(0),
            Self::Delete { deleted_at } => {
                out.push(1);
                out.extend_from_slice(&deleted_at.as_u64().to_be_bytes());
            }
            Self::Register { content_type, bytes } => {
                out.push(2);
                put_bytes(out, content_type.as_bytes());
                put_bytes(out, bytes);
            }
            Self::Counter { total, floors } => {
                out.push(3);
                out.extend_from_slice(&total.to_be_bytes());
                put_varint(out, floors.len() as u64);
                for floor in floors {
                    floor.encode(out);
                }
            }
            Self::Document { change } => {
                out.push(4);
                put_bytes(out, change);
            }
        }
    }

    fn decode(r: &mut Reader<'_>, whole: &Bytes) -> Result<Self, DecodeError> {
        Ok(match r.u8("body")? {
            0 => Self::Touch,
            1 => Self::Delete { deleted_at: Stamp::from_u64(r.u64("deleted at")?) },
            2 => Self::Register {
                content_type: r.str("content type")?.to_owned(),
                bytes: whole.slice_ref(r.bytes("register")?),
            },
            3 => {
                let total = r.i128("total")?;
                let mut floors = Vec::new();
                for _ in 0..r.varint("floors")? {
                    floors.push(Floor::decode(r)?);
                }
                Self::Counter { total, floors }
            }
            4 => Self::Document { change: whole.slice_ref(r.bytes("document change")?) },
            _ => return Err(r.invalid("body")),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::origin::NodeId;

    fn sample(body: Body) -> Change {
        let origin = |name| Origin { node: NodeId::new(name).unwrap(), incarnation: 9, random: 5 };
        Change {
            scope: "shop/carts".into(),
            scope_incarnation: 0,
            shard_index: 1,
            origin: origin("tokyo-1"),
            seq: 3,
            deps: vec![(origin("dallas-1"), 2)],
            stamp: Stamp::new(1_764_000_000_123, 1),
            key: "alice".into(),
            life: 1,
            generation: 0,
            epoch: 1,
            request_id: Some([7; 16]),
            trace: Some(TraceContext { trace_id: [1; 16], span_id: [2; 8], flags: 1 }),
            expiry: ExpiryChange::At(1_764_000_060_000),
            body,
        }
    }

    fn bodies() -> Vec<Body> {
        let origin = Origin { node: NodeId::new("a").unwrap(), incarnation: 1, random: 1 };
        vec![
            Body::Touch,
            Body::Delete { deleted_at: Stamp::new(5, 5) },
            Body::Register { content_type: "text/html".into(), bytes: Bytes::from_static(b"<p>") },
            Body::Counter { total: -5, floors: vec![Floor { origin, seq: 2, total: 7 }] },
            Body::Document { change: Bytes::from_static(b"raw") },
        ]
    }

    #[test]
    fn a_stamp_can_be_read_without_the_rest() {
        for body in bodies() {
            let change = sample(body);
            let bytes = change.encode();
            assert_eq!(Change::peek_stamp(&bytes), Some(change.stamp));
            assert_eq!((0..60).find_map(|len| Change::peek_stamp(&bytes.slice(..len))), None);
        }
    }

    #[test]
    fn a_change_has_golden_bytes() {
        let change = sample(Body::Register { content_type: "t".into(), bytes: Bytes::from_static(b"v") });
        let hex: String = change.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "01", // format
                "0a73686f702f6361727473",
                "00",
                "01", // scope, incarnation, shard index
                "07746f6b796f2d31",
                "0000000000000009",
                "0000000000000005",
                "03", // origin, seq
                "01",
                "0864616c6c61732d31",
                "0000000000000009",
                "0000000000000005",
                "02",               // deps
                "019ab697e87b0001", // stamp
                "05616c696365",
                "01",
                "00",
                "01",                               // key, life, generation, epoch
                "07",                               // flags
                "07070707070707070707070707070707", // request id
                "01010101010101010101010101010101",
                "0202020202020202",
                "01", // trace
                "01",
                "e0a4e3b4ab33", // expiry
                "02",
                "0174",
                "0176", // body
            )
            .to_owned()
                + &hex[hex.len() - 16..]
        );
    }

    #[test]
    fn every_body_round_trips() {
        for body in bodies() {
            let change = sample(body);
            assert_eq!(Change::decode(&change.encode()), Ok(change));
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_an_error() {
        for body in bodies() {
            let bytes = sample(body).encode();
            for len in 0..bytes.len() {
                assert!(Change::decode(&bytes.slice(..len)).is_err());
            }
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Change::decode(&bad.into()).is_err());
            }
        }
    }

    #[test]
    fn no_mutation_behind_a_repaired_checksum_panics() {
        for body in bodies() {
            let bytes = sample(body).encode();
            let len = bytes.len() - 8;
            for at in 0..len {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut bad = bytes[..len].to_vec();
                    bad[at] = value;
                    put_checksum(&mut bad, 0);
                    let bad = Bytes::from(bad);
                    if let Ok(change) = Change::decode(&bad) {
                        assert_eq!(change.encode(), bad, "what decodes has one encoding");
                    }
                }
            }
        }
    }
}
