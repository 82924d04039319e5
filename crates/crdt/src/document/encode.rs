//! The bytes of a change that edits entries of maps, as automerge writes them.
//!
//! Automerge gives out the bytes of a change only by making them again from everything it holds, which costs as much as
//! the edit, and with a long history of a counter a hundred times as much. The changes written here are those that
//! automerge would have written, to the byte: tests compare them, and the gate of every other member would refuse what
//! is not.

use std::collections::BTreeSet;

use automerge::ActorId;
use hexane::{DeltaEncoder, Encoder, EncoderApi};
use sha2::{Digest, Sha256};

use super::gate::{CHANGE_CHUNK, MAGIC};
use crate::codec::{put_bytes, put_varint};
use crate::json::Json;

/// The name of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OpId {
    pub(super) counter: u64,
    /// `None`: the change's own actor.
    pub(super) actor: Option<ActorId>,
}

/// An operation on one entry of a map.
#[derive(Debug)]
pub(super) struct MapOp<'a> {
    /// The operation that made the map; `None` for the root.
    pub(super) map: Option<OpId>,
    pub(super) key: &'a str,
    pub(super) action: Action<'a>,
    /// The values there that it has seen, ascending.
    pub(super) seen: Vec<OpId>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Action<'a> {
    /// Sets a value that is neither array nor object.
    Put(&'a Json),
    Delete,
    Increment(i64),
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

/// The change and its hash.
pub(super) fn encode(head: &Head<'_>, operations: &[MapOp<'_>]) -> (Vec<u8>, [u8; 32]) {
    // Actors are numbered: the change's own, then the others it names, ascending.
    let named = |operation: &'_ MapOp<'_>| {
        let ids = operation.map.iter().chain(&operation.seen);
        ids.filter_map(|id| id.actor.clone()).collect::<Vec<_>>()
    };
    let others: Vec<ActorId> =
        operations.iter().flat_map(named).collect::<BTreeSet<_>>().into_iter().collect();
    let number = |id: &OpId| match &id.actor {
        None => 0,
        Some(actor) => 1 + others.partition_point(|other| other < actor) as u64,
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
    let counters = maps().map(|map| map.map(|id| id.counter));
    column(0x02, Encoder::<Option<u64>>::encode_to_unless(&mut data, counters, None));
    let keys = operations.iter().map(|operation| Some(operation.key));
    column(0x15, Encoder::<Option<String>>::encode_to_unless(&mut data, keys, None));
    column(0x34, Encoder::<bool>::encode_to(&mut data, operations.iter().map(|_| false)));
    let actions = operations.iter().map(|operation| match operation.action {
        Action::Put(_) => 1,
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
    let seen = || operations.iter().flat_map(|operation| &operation.seen);
    column(0x71, Encoder::<u64>::encode_to(&mut data, seen().map(number)));
    // Automerge counts operations in 32 bits.
    column(0x73, DeltaEncoder::<i64>::encode_to(&mut data, seen().map(|id| id.counter as i64)));

    let mut body = Vec::with_capacity(96 + 32 * head.dependencies.len() + data.len());
    put_varint(&mut body, head.dependencies.len() as u64);
    body.extend_from_slice(head.dependencies.as_flattened());
    put_bytes(&mut body, head.actor.to_bytes());
    put_varint(&mut body, head.seq);
    put_varint(&mut body, head.first_op);
    put_signed(&mut body, head.time);
    put_bytes(&mut body, b""); // no message
    put_varint(&mut body, others.len() as u64);
    for other in &others {
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
        Action::Delete | Action::Put(Json::Null | Json::Array(_) | Json::Object(_)) => 0,
        Action::Put(Json::Bool(false)) => 1,
        Action::Put(Json::Bool(true)) => 2,
        Action::Put(Json::Uint(value)) => {
            put_varint(out, *value);
            3
        }
        Action::Put(Json::Int(value)) => {
            put_signed(out, *value);
            4
        }
        Action::Increment(by) => {
            put_signed(out, by);
            4
        }
        Action::Put(Json::Float(value)) => {
            out.extend_from_slice(&value.to_le_bytes());
            5
        }
        Action::Put(Json::String(text)) => {
            out.extend_from_slice(text.as_bytes());
            6
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
