//! The bytes of a change that edits entries of maps, as automerge writes them.
//!
//! Automerge gives out the bytes of a change only by making them again from everything it holds, which costs as much as
//! the edit, and with a long history of a counter a hundred times as much. The changes written here are those that
//! automerge would have written, to the byte: tests compare them, and the gate of every other member would refuse what
//! is not.

use automerge::ActorId;
use hexane::{DeltaEncoder, Encoder, EncoderApi};
use sha2::{Digest, Sha256};

use super::gate::{CHANGE_CHUNK, MAGIC};
use crate::codec::{put_bytes, put_varint};
use crate::json::{Json, write_bool, write_float, write_int, write_string, write_uint};

/// The name of an operation. Automerge counts operations in 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpId {
    pub(super) counter: u32,
    /// Which of the document's authors.
    pub(super) author: u16,
}

/// An operation on one entry of a map.
#[derive(Debug)]
pub(super) struct MapOp<'a> {
    /// The operation that made the map; `None` for the root.
    pub(super) map: Option<OpId>,
    pub(super) key: &'a str,
    pub(super) action: Action<'a>,
    /// The values there that it has seen, ascending.
    pub(super) seen: &'a [OpId],
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Action<'a> {
    Put(Scalar<'a>),
    /// Sets a new counter.
    PutCounter(i64),
    Delete,
    Increment(i64),
}

/// A value that is neither array nor object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Above i64's range.
    Uint(u64),
    Float(f64),
    String(&'a str),
}

impl<'a> Scalar<'a> {
    pub(super) fn of(value: &'a Json) -> Option<Self> {
        Some(match value {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Int(value) => Self::Int(*value),
            Json::Uint(value) => Self::Uint(*value),
            Json::Float(value) => Self::Float(*value),
            Json::String(text) => Self::String(text),
            Json::Array(_) | Json::Object(_) => return None,
        })
    }

    /// Appends it as canonical JSON.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(value) => write_bool(value, out),
            Self::Int(value) => write_int(value, out),
            Self::Uint(value) => write_uint(value, out),
            Self::Float(value) => write_float(value, out),
            Self::String(text) => write_string(text, out),
        }
    }
}

/// Everything a change says besides its operations.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) actor: &'a ActorId,
    pub(super) seq: u64,
    pub(super) first_op: u64,
    pub(super) time: i64,
    /// Strictly ascending.
    pub(super) dependencies: &'a [[u8; 32]],
}

/// The change and its hash. `actor_of` says who an author is; every author that is named is one of them.
pub(super) fn encode<'a>(
    head: &Head<'_>,
    operations: &[MapOp<'_>],
    actor_of: impl Fn(u16) -> &'a ActorId,
) -> (Vec<u8>, [u8; 32]) {
    // Actors are numbered: the change's own, then the others it names, ascending.
    let mut others: Vec<(&ActorId, u16)> = Vec::new();
    for id in operations.iter().flat_map(|operation| operation.map.iter().chain(operation.seen)) {
        if !others.iter().any(|(_, author)| *author == id.author) {
            others.push((actor_of(id.author), id.author));
        }
    }
    others.retain(|(actor, _)| *actor != head.actor);
    others.sort_unstable();
    let number = |id: &OpId| {
        let other = others.iter().position(|(_, author)| *author == id.author);
        other.map_or(0, |at| 1 + at as u64)
    };

    let mut data = Vec::with_capacity(64);
    let mut columns = Vec::with_capacity(12);
    let mut column = |specification: u64, range: std::ops::Range<usize>| {
        if !range.is_empty() {
            columns.push((specification, range.len() as u64));
        }
    };
    let maps = || operations.iter().map(|operation| operation.map.as_ref());
    column(0x01, Encoder::<Option<u64>>::encode_to_unless(&mut data, maps().map(|m| m.map(number)), None));
    let counters = maps().map(|map| map.map(|id| u64::from(id.counter)));
    column(0x02, Encoder::<Option<u64>>::encode_to_unless(&mut data, counters, None));
    let keys = operations.iter().map(|operation| Some(operation.key));
    column(0x15, Encoder::<Option<String>>::encode_to_unless(&mut data, keys, None));
    column(0x34, Encoder::<bool>::encode_to(&mut data, operations.iter().map(|_| false)));
    let actions = operations.iter().map(|operation| match operation.action {
        Action::Put(_) | Action::PutCounter(_) => 1,
        Action::Delete => 3,
        Action::Increment(_) => 5,
    });
    column(0x42, Encoder::<u64>::encode_to(&mut data, actions));
    let mut values = Vec::new();
    let metas: Vec<u64> = operations.iter().map(|operation| value(operation.action, &mut values)).collect();
    column(0x56, Encoder::<u64>::encode_to(&mut data, metas));
    column(0x57, data.len()..data.len() + values.len());
    data.extend_from_slice(&values);
    let counts = operations.iter().map(|operation| operation.seen.len() as u64);
    column(0x70, Encoder::<u64>::encode_to(&mut data, counts));
    let seen = || operations.iter().flat_map(|operation| operation.seen);
    column(0x71, Encoder::<u64>::encode_to(&mut data, seen().map(number)));
    column(0x73, DeltaEncoder::<i64>::encode_to(&mut data, seen().map(|id| i64::from(id.counter))));

    let mut body = Vec::with_capacity(96 + 32 * head.dependencies.len() + data.len());
    put_varint(&mut body, head.dependencies.len() as u64);
    body.extend_from_slice(head.dependencies.as_flattened());
    put_bytes(&mut body, head.actor.to_bytes());
    put_varint(&mut body, head.seq);
    put_varint(&mut body, head.first_op);
    put_signed(&mut body, head.time);
    put_bytes(&mut body, b""); // no message
    put_varint(&mut body, others.len() as u64);
    for (other, _) in &others {
        put_bytes(&mut body, other.to_bytes());
    }
    put_varint(&mut body, columns.len() as u64);
    for (specification, length) in columns {
        put_varint(&mut body, specification);
        put_varint(&mut body, length);
    }
    body.extend_from_slice(&data);

    let mut bytes = Vec::with_capacity(body.len() + 16);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.push(CHANGE_CHUNK);
    put_bytes(&mut bytes, &body);
    let hash: [u8; 32] = Sha256::digest(&bytes[8..]).into();
    bytes[4..8].copy_from_slice(&hash[..4]);
    (bytes, hash)
}

/// Appends a value's bytes and says its length and type in automerge's terms.
fn value(action: Action<'_>, out: &mut Vec<u8>) -> u64 {
    let start = out.len();
    let kind = match action {
        Action::Delete | Action::Put(Scalar::Null) => 0,
        Action::Put(Scalar::Bool(false)) => 1,
        Action::Put(Scalar::Bool(true)) => 2,
        Action::Put(Scalar::Uint(value)) => {
            put_varint(out, value);
            3
        }
        Action::Put(Scalar::Int(value)) => {
            put_signed(out, value);
            4
        }
        Action::Increment(by) => {
            put_signed(out, by);
            4
        }
        Action::Put(Scalar::Float(value)) => {
            out.extend_from_slice(&value.to_le_bytes());
            5
        }
        Action::Put(Scalar::String(text)) => {
            out.extend_from_slice(text.as_bytes());
            6
        }
        Action::PutCounter(value) => {
            put_signed(out, value);
            8
        }
    };
    ((out.len() - start) as u64) << 4 | kind
}

/// Appends a signed LEB128 number.
fn put_signed(out: &mut Vec<u8>, mut value: i64) {
    loop {
        let byte = value as u8 & 0x7f;
        value >>= 7;
        if value == -i64::from(byte & 0x40 != 0) {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}
