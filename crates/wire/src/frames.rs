//! Frames of a link to and from their messages.
//!
//! What a peer sends is bounded before it is believed: ids have their length, sums and vectors theirs, and a packed
//! batch says its size before it is unpacked.

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tropism_crdt::codec::{Reader, put_varint};
use tropism_crdt::{NodeId, Origin, Stamp, Vector};
use tropism_placement::{MAX_SPREAD, PolicyHash, RegionName, ScopeId, ScopeName, ShardId};
use tropism_replica::{
    AskHeld, Cells, Compare, Differ, Fetch, Fetched, Frame, FrameBody, Heartbeat, HeldAnswer, Hello, Inspect,
    Inspected, MoreCells, ShardState, StatePart, StatePiece, Told, Vectors, Want, Wholeness,
};
use tropism_storage::rows::Seen;
use tropism_storage::{Head, ShardRow};

use crate::from_proto::kind;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::{to_proto, v1, verify_frames};

/// Version of the link's protocol.
pub const PROTOCOL_VERSION: u32 = 1;
/// Batches above this many bytes are packed: below it zstd saves less than its own frame costs.
const PACK_ABOVE_BYTES: usize = 4 * 1024;
/// zstd's level for batches: the fastest; a link between regions is slower than it by far.
const PACK_LEVEL: i32 = 1;

/// A frame that is not what the protocol says. The link is dropped; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("malformed frame: {0}")]
pub struct FrameError(String);

pub(crate) fn malformed(what: impl Into<String>) -> FrameError {
    FrameError(what.into())
}

/// The message of a frame.
pub fn to_message(frame: &Frame) -> v1::LinkFrame {
    use v1::link_frame::Frame as Message;
    let message = match &frame.body {
        FrameBody::Changes(changes) => Message::Changes(pack(changes)),
        FrameBody::Told(told) => Message::Told(v1::Told {
            commit_number: told.commit,
            directory_revision: told.directory_revision,
            shards: told
                .shards
                .iter()
                .map(|(shard, entries)| v1::ShardTold {
                    shard: Bytes::copy_from_slice(&shard.0),
                    entries: entries.iter().map(|(origin, seq)| entry(origin, *seq)).collect(),
                })
                .collect(),
        }),
        FrameBody::Want(want) => Message::Want(v1::Want {
            shard: Bytes::copy_from_slice(&want.shard.0),
            origin: want.origin.to_bytes().into(),
            from: want.from,
            to: want.to,
        }),
        FrameBody::Compare(compare) => Message::Compare(v1::Compare {
            group: compare.group,
            level: compare.level.into(),
            sums: compare
                .sums
                .iter()
                .map(|(range, sum)| v1::RangeSum {
                    range: u32::from(*range),
                    sum: Bytes::copy_from_slice(&sum.to_be_bytes()),
                })
                .collect(),
        }),
        FrameBody::Vectors(Vectors { shards, commit, answer, owed }) => Message::Vectors(v1::Vectors {
            shards: shards
                .iter()
                .map(|ShardState { row, vector, digest }| shard_vector(row, vector, *digest))
                .collect(),
            answer: *answer,
            owed: *owed,
            commit_number: *commit,
        }),
        FrameBody::BelowFloor(row) => {
            Message::BelowFloor(v1::BelowFloor { shard: Some(shard_vector(row, &Vector::EMPTY, None)) })
        }
        FrameBody::Fetch(Fetch { row, id, resume }) => {
            let (vector, last_key) = resume.clone().unwrap_or_default();
            Message::Fetch(v1::Fetch { shard: Some(shard_vector(row, &vector, None)), id: *id, last_key })
        }
        FrameBody::State(part) => {
            let states: Vec<Bytes> = part.pieces.iter().map(|piece| piece.bytes.clone()).collect();
            Message::State(v1::StatePart {
                shard: Bytes::copy_from_slice(&part.shard.0),
                id: part.id,
                number: part.number,
                begins_anew: part.begins_anew,
                vector: part.vector.to_bytes().into(),
                names: part
                    .pieces
                    .iter()
                    .map(|piece| v1::StateName {
                        key: piece.key.clone(),
                        piece: piece.number,
                        last: piece.last,
                    })
                    .collect(),
                states: Some(pack(&states)),
                last: part.last,
                requests: Some(pack(
                    &part
                        .requests
                        .iter()
                        .map(|(id, row)| Bytes::from([&id[..], row].concat()))
                        .collect::<Vec<_>>(),
                )),
            })
        }
        FrameBody::Fetched(Fetched { shard, id, number }) => Message::Fetched(v1::Fetched {
            shard: Bytes::copy_from_slice(&shard.0),
            id: *id,
            number: *number,
        }),
        FrameBody::Inspect(Inspect { row, id, vector, digest, salt, cells }) => {
            Message::Inspect(v1::Inspect {
                shard: Some(shard_vector(row, vector, Some(*digest))),
                id: *id,
                salt: *salt,
                cells: cells.clone(),
            })
        }
        FrameBody::Inspected(Inspected { shard, id, digest, keys }) => Message::Inspected(v1::Inspected {
            shard: Bytes::copy_from_slice(&shard.0),
            id: *id,
            digest: Bytes::copy_from_slice(&digest.to_be_bytes()),
            keys: keys.clone(),
        }),
        FrameBody::MoreCells(MoreCells { shard, id, from, to }) => Message::MoreCells(v1::MoreCells {
            shard: Bytes::copy_from_slice(&shard.0),
            id: *id,
            from: *from,
            to: *to,
        }),
        FrameBody::Cells(Cells { shard, id, to, bytes }) => Message::Cells(v1::Cells {
            shard: Bytes::copy_from_slice(&shard.0),
            id: *id,
            to: *to,
            cells: bytes.clone(),
        }),
        FrameBody::Differ(Differ { shard, id, vector, wanted, states }) => Message::Differ(v1::Differ {
            shard: Bytes::copy_from_slice(&shard.0),
            id: *id,
            vector: vector.to_bytes().into(),
            wanted: wanted.iter().flat_map(|fingerprint| fingerprint.to_be_bytes()).collect(),
            keys: states.iter().map(|(key, _)| key.clone()).collect(),
            states: Some(pack(&states.iter().map(|(_, state)| state.clone()).collect::<Vec<_>>())),
        }),
        FrameBody::Verify(verify) => Message::Verify(verify_frames::question(verify)),
        FrameBody::Verified(verified) => Message::Verified(verify_frames::answer(verified)),
        FrameBody::Heartbeat(beat) => Message::Heartbeat(v1::Heartbeat {
            sent_us: beat.sent_us,
            wall_ms: beat.wall_ms,
            echo_us: beat.echo.0,
            echo_held_us: beat.echo.1,
            closed_stamp: beat.closed.as_u64(),
            linked: beat.linked.iter().map(ToString::to_string).collect(),
            position: Some(v1::StorePosition {
                store_id: Bytes::new(),
                incarnation: beat.seen.incarnation,
                commit_number: beat.seen.commit,
                running_hash: beat.seen.hash,
                random: 0, // the hello has told
            }),
            your_cursor: beat.your_cursor,
            log_floor: 0,
            stores: beat
                .stores
                .iter()
                .map(|(node, store)| v1::KnownStore { node: node.to_string(), store: *store })
                .collect(),
            wholeness: match beat.wholeness {
                Wholeness::Whole => v1::Wholeness::Unspecified,
                Wholeness::New => v1::Wholeness::New,
                Wholeness::Rebuilding => v1::Wholeness::Rebuilding,
            }
            .into(),
            keys: beat.keys,
        }),
        FrameBody::AskHeld(AskHeld { scope, epoch, round }) => {
            Message::AskHeld(v1::AskHeld { scope: scope.as_str().to_owned(), epoch: *epoch, round: *round })
        }
        FrameBody::Held(HeldAnswer { scope, epoch, round, vectors }) => Message::Held(v1::HeldAnswer {
            scope: scope.as_str().to_owned(),
            epoch: *epoch,
            round: *round,
            vectors: vectors.iter().map(|vector| vector.to_bytes().into()).collect(),
        }),
        FrameBody::NotMember { shard, epoch } => {
            Message::NotMember(v1::NotMember { shard: Bytes::copy_from_slice(&shard.0), epoch: *epoch })
        }
    };
    v1::LinkFrame { round: frame.round, number: frame.number, frame: Some(message) }
}

/// The frame of a message; `None` for a kind of frame that this version does not know, which is skipped.
pub fn from_message(message: v1::LinkFrame) -> Result<Option<Frame>, FrameError> {
    use v1::link_frame::Frame as Message;
    let Some(body) = message.frame else { return Ok(None) };
    let body = match body {
        Message::Hello(_) | Message::Proof(_) => {
            return Err(malformed("a handshake in the middle of a link"));
        }
        Message::Changes(changes) => FrameBody::Changes(unpack(changes)?),
        Message::Told(told) => FrameBody::Told(Told {
            commit: told.commit_number,
            directory_revision: told.directory_revision,
            shards: told.shards.iter().map(shard_told).collect::<Result<_, _>>()?,
        }),
        Message::Want(want) => FrameBody::Want(Want {
            shard: shard(&want.shard)?,
            origin: origin(&want.origin)?,
            from: want.from,
            to: want.to,
        }),
        Message::Compare(compare) => FrameBody::Compare(Compare {
            group: compare.group,
            level: u8::try_from(compare.level)
                .ok()
                .filter(|level| *level <= 2)
                .ok_or_else(|| malformed("a comparison has levels 0 to 2"))?,
            sums: compare.sums.iter().map(range_sum).collect::<Result<_, _>>()?,
        }),
        Message::Vectors(vectors) => FrameBody::Vectors(Vectors {
            commit: vectors.commit_number,
            shards: vectors.shards.iter().map(shard_state).collect::<Result<_, _>>()?,
            answer: vectors.answer,
            owed: vectors.owed,
        }),
        Message::BelowFloor(below) => {
            FrameBody::BelowFloor(shard_state(&below.shard.unwrap_or_default())?.row)
        }
        Message::Fetch(fetch) => {
            let ShardState { row, vector, .. } = shard_state(&fetch.shard.unwrap_or_default())?;
            let resume = (!fetch.last_key.is_empty()).then_some((vector, fetch.last_key));
            FrameBody::Fetch(Fetch { row, id: fetch.id, resume })
        }
        Message::State(part) => {
            let states = unpack(part.states.unwrap_or_default())?;
            if states.len() != part.names.len() {
                return Err(malformed("as many names as states"));
            }
            let pieces = part.names.into_iter().zip(states).map(|(name, bytes)| StatePiece {
                key: name.key,
                number: name.piece,
                last: name.last,
                bytes,
            });
            FrameBody::State(StatePart {
                shard: shard(&part.shard)?,
                id: part.id,
                number: part.number,
                begins_anew: part.begins_anew,
                vector: vector(&part.vector)?,
                pieces: pieces.collect(),
                requests: unpack(part.requests.unwrap_or_default())?
                    .into_iter()
                    .map(|request| match request.split_first_chunk() {
                        Some((id, row)) => Ok((*id, request.slice_ref(row))),
                        None => Err(malformed("a request id has 16 bytes")),
                    })
                    .collect::<Result<_, _>>()?,
                last: part.last,
            })
        }
        Message::Fetched(fetched) => FrameBody::Fetched(Fetched {
            shard: shard(&fetched.shard)?,
            id: fetched.id,
            number: fetched.number,
        }),
        Message::Inspect(inspect) => {
            let ShardState { row, vector, digest } = shard_state(&inspect.shard.unwrap_or_default())?;
            let digest = digest.ok_or_else(|| malformed("an inspection without a digest"))?;
            let (id, salt, cells) = (inspect.id, inspect.salt, inspect.cells);
            FrameBody::Inspect(Inspect { row, id, vector, digest, salt, cells })
        }
        Message::Inspected(answer) => FrameBody::Inspected(Inspected {
            shard: shard(&answer.shard)?,
            id: answer.id,
            digest: digest(&answer.digest)?,
            keys: answer.keys,
        }),
        Message::MoreCells(more) => FrameBody::MoreCells(MoreCells {
            shard: shard(&more.shard)?,
            id: more.id,
            from: more.from,
            to: more.to,
        }),
        Message::Cells(cells) => FrameBody::Cells(Cells {
            shard: shard(&cells.shard)?,
            id: cells.id,
            to: cells.to,
            bytes: cells.cells,
        }),
        Message::Differ(differ) => {
            let states = unpack(differ.states.unwrap_or_default())?;
            let (wanted, rest) = differ.wanted.as_chunks::<16>();
            if states.len() != differ.keys.len() || !rest.is_empty() {
                return Err(malformed("as many keys as states, and whole fingerprints"));
            }
            FrameBody::Differ(Differ {
                shard: shard(&differ.shard)?,
                id: differ.id,
                vector: vector(&differ.vector)?,
                wanted: wanted.iter().map(|bytes| u128::from_be_bytes(*bytes)).collect(),
                states: differ.keys.into_iter().zip(states).collect(),
            })
        }
        Message::Verify(verify) => FrameBody::Verify(verify_frames::asked(verify)?),
        Message::Verified(verified) => FrameBody::Verified(verify_frames::answered(verified)?),
        Message::Heartbeat(beat) => {
            let position = beat.position.unwrap_or_default();
            FrameBody::Heartbeat(Heartbeat {
                sent_us: beat.sent_us,
                wall_ms: beat.wall_ms,
                echo: (beat.echo_us, beat.echo_held_us),
                closed: Stamp::from_u64(beat.closed_stamp),
                seen: Seen {
                    incarnation: position.incarnation,
                    commit: position.commit_number,
                    hash: position.running_hash,
                    random: 0,
                },
                your_cursor: beat.your_cursor,
                linked: beat.linked.iter().map(|node| node_id(node)).collect::<Result<_, _>>()?,
                stores: beat
                    .stores
                    .iter()
                    .map(|known| Ok((node_id(&known.node)?, known.store)))
                    .collect::<Result<_, FrameError>>()?,
                wholeness: match v1::Wholeness::try_from(beat.wholeness) {
                    Ok(v1::Wholeness::Unspecified) => Wholeness::Whole,
                    Ok(v1::Wholeness::New) => Wholeness::New,
                    // What a later version says beside these is not whole.
                    Ok(v1::Wholeness::Rebuilding) | Err(_) => Wholeness::Rebuilding,
                },
                keys: beat.keys,
            })
        }
        Message::AskHeld(ask) => {
            FrameBody::AskHeld(AskHeld { scope: scope(&ask.scope)?, epoch: ask.epoch, round: ask.round })
        }
        Message::Held(held) => {
            if held.vectors.len() > usize::from(MAX_SPREAD) {
                return Err(malformed("more vectors than a scope can have shards"));
            }
            FrameBody::Held(HeldAnswer {
                scope: scope(&held.scope)?,
                epoch: held.epoch,
                round: held.round,
                vectors: held.vectors.iter().map(|bytes| vector(bytes)).collect::<Result<_, _>>()?,
            })
        }
        Message::NotMember(not) => FrameBody::NotMember { shard: shard(&not.shard)?, epoch: not.epoch },
    };
    Ok(Some(Frame { round: message.round, number: message.number, body }))
}

/// The message of a hello. `expected` is whom the dialler believes to reach, `policy` the hash of the rules in force.
pub fn hello_message(
    hello: &Hello,
    cluster: &str,
    expected: &str,
    nonce: &[u8; 32],
    policy: &PolicyHash,
) -> v1::Hello {
    v1::Hello {
        protocol_version: PROTOCOL_VERSION,
        cluster_id: cluster.to_owned(),
        node: hello.node.to_string(),
        region: hello.region.as_str().to_owned(),
        incarnation: hello.origin.incarnation,
        random: hello.origin.random,
        expected_node: expected.to_owned(),
        position: Some(v1::StorePosition {
            store_id: Bytes::copy_from_slice(&hello.store_id.to_be_bytes()),
            incarnation: hello.origin.incarnation,
            commit_number: hello.head.commit,
            running_hash: hello.head.hash,
            random: hello.origin.random,
        }),
        seen: hello.saw_you.map(|(store_id, seen)| v1::StorePosition {
            store_id: Bytes::copy_from_slice(&store_id.to_be_bytes()),
            incarnation: seen.incarnation,
            commit_number: seen.commit,
            running_hash: seen.hash,
            random: seen.random,
        }),
        features: Vec::new(),
        nonce: Bytes::copy_from_slice(nonce),
        policy_hash: Bytes::copy_from_slice(&policy.0),
        replaced: hello.replaced,
    }
}

/// The hello of a message, and its nonce.
pub fn hello_from_message(message: &v1::Hello) -> Result<(Hello, [u8; 32]), FrameError> {
    let node = node_id(&message.node)?;
    let region = RegionName::new(&message.region).map_err(|error| malformed(error.to_string()))?;
    let position = message.position.as_ref().ok_or_else(|| malformed("a hello without a position"))?;
    let saw_you = message
        .seen
        .as_ref()
        .map(|seen| {
            let state = Seen {
                incarnation: seen.incarnation,
                commit: seen.commit_number,
                hash: seen.running_hash,
                random: seen.random,
            };
            Ok::<_, FrameError>((store_id(&seen.store_id)?, state))
        })
        .transpose()?;
    let hello = Hello {
        node,
        region,
        origin: Origin { node, incarnation: message.incarnation, random: message.random },
        store_id: store_id(&position.store_id)?,
        head: Head { commit: position.commit_number, hash: position.running_hash },
        saw_you,
        replaced: message.replaced,
    };
    let nonce = message.nonce.as_ref().try_into().map_err(|_| malformed("a nonce has 32 bytes"))?;
    Ok((hello, nonce))
}

pub(crate) fn shard_vector(row: &ShardRow, vector: &Vector, digest: Option<u128>) -> v1::ShardVector {
    v1::ShardVector {
        scope: row.scope.name.as_str().to_owned(),
        scope_incarnation: row.scope.incarnation,
        shard_index: row.index.into(),
        kind: to_proto::kind(row.kind).into(),
        vector: vector.to_bytes().into(),
        digest: digest.map(|sum| Bytes::copy_from_slice(&sum.to_be_bytes())).unwrap_or_default(),
    }
}

fn entry(origin: &Origin, seq: u64) -> v1::VectorEntry {
    v1::VectorEntry { origin: origin.to_bytes().into(), seq }
}

fn pack(changes: &[Bytes]) -> v1::Changes {
    let size: usize = changes.iter().map(Bytes::len).sum();
    if size > PACK_ABOVE_BYTES {
        let mut plain = Vec::with_capacity(size + changes.len() * 3);
        for change in changes {
            put_varint(&mut plain, change.len() as u64);
            plain.extend_from_slice(change);
        }
        if let Ok(packed) = zstd::bulk::compress(&plain, PACK_LEVEL)
            && packed.len() < size
        {
            let uncompressed_size = plain.len() as u32; // a frame is far below 4 GiB
            return v1::Changes { changes: Vec::new(), packed: packed.into(), uncompressed_size };
        }
    }
    v1::Changes { changes: changes.to_vec(), packed: Bytes::new(), uncompressed_size: 0 }
}

fn unpack(message: v1::Changes) -> Result<Vec<Bytes>, FrameError> {
    if message.packed.is_empty() {
        return Ok(message.changes);
    }
    let size = message.uncompressed_size as usize;
    if size > MAX_MESSAGE_BYTES {
        return Err(malformed(format!("a packed batch of {size} bytes, the limit is {MAX_MESSAGE_BYTES}")));
    }
    let plain =
        zstd::bulk::decompress(&message.packed, size).map_err(|error| malformed(error.to_string()))?;
    let plain = BytesMut::from(plain.as_slice()).freeze();
    let mut reader = Reader::new(&plain);
    let mut changes = Vec::new();
    while !reader.rest().is_empty() {
        let change = reader.bytes("packed change").map_err(|error| malformed(error.to_string()))?;
        changes.push(plain.slice_ref(change));
    }
    Ok(changes)
}

fn shard_told(told: &v1::ShardTold) -> Result<(ShardId, Vec<(Origin, u64)>), FrameError> {
    let entries = told.entries.iter().map(|entry| Ok((origin(&entry.origin)?, entry.seq)));
    Ok((shard(&told.shard)?, entries.collect::<Result<_, FrameError>>()?))
}

pub(crate) fn shard_state(message: &v1::ShardVector) -> Result<ShardState, FrameError> {
    let name = ScopeName::new(&message.scope).map_err(|error| malformed(error.to_string()))?;
    let index = u16::try_from(message.shard_index).map_err(|_| malformed("a shard index above 65535"))?;
    let kind = kind("kind", message.kind).map_err(|problem| malformed(problem.message()))?;
    let vector = vector(&message.vector)?;
    let digest = match message.digest.as_ref() {
        [] => None,
        sum => Some(digest(sum)?),
    };
    let row = ShardRow { scope: ScopeId { name, incarnation: message.scope_incarnation }, index, kind };
    Ok(ShardState { row, vector, digest })
}

fn scope(name: &str) -> Result<ScopeName, FrameError> {
    ScopeName::new(name).map_err(|error| malformed(error.to_string()))
}

pub(crate) fn vector(bytes: &[u8]) -> Result<Vector, FrameError> {
    let mut reader = Reader::new(bytes);
    let vector = Vector::decode(&mut reader).and_then(|vector| reader.finish().map(|()| vector));
    vector.map_err(|error| malformed(error.to_string()))
}

pub(crate) fn digest(bytes: &[u8]) -> Result<u128, FrameError> {
    Ok(u128::from_be_bytes(bytes.try_into().map_err(|_| malformed("a digest has 16 bytes"))?))
}

fn range_sum(message: &v1::RangeSum) -> Result<(u16, u128), FrameError> {
    let range = u16::try_from(message.range).map_err(|_| malformed("a range above 65535"))?;
    let sum = message.sum.as_ref().try_into().map_err(|_| malformed("a sum has 16 bytes"))?;
    Ok((range, u128::from_be_bytes(sum)))
}

pub(crate) fn shard(bytes: &[u8]) -> Result<ShardId, FrameError> {
    Ok(ShardId(bytes.try_into().map_err(|_| malformed("a shard id has 16 bytes"))?))
}

fn store_id(bytes: &[u8]) -> Result<u128, FrameError> {
    Ok(u128::from_be_bytes(bytes.try_into().map_err(|_| malformed("a store id has 16 bytes"))?))
}

pub(crate) fn origin(bytes: &[u8]) -> Result<Origin, FrameError> {
    let mut reader = Reader::new(bytes);
    let origin = Origin::decode(&mut reader).and_then(|origin| reader.finish().map(|()| origin));
    origin.map_err(|error| malformed(format!("origin {error}")))
}

fn node_id(name: &str) -> Result<NodeId, FrameError> {
    NodeId::new(name).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tropism_placement::Kind;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn some_origin() -> Origin {
        Origin { node: node("tokyo-1"), incarnation: 7, random: 9 }
    }

    fn bodies() -> Vec<FrameBody> {
        let id = ShardId([3; 16]);
        let scope = ScopeId { name: ScopeName::new("shop/carts").unwrap(), incarnation: 0 };
        let vector: Vector = [(some_origin(), 4)].into_iter().collect();
        let row = ShardRow { scope: scope.clone(), index: 2, kind: Kind::Counter };
        vec![
            FrameBody::Changes(vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]),
            FrameBody::Changes(vec![Bytes::from(vec![7; 5_000]), Bytes::from_static(b"x"), Bytes::new()]),
            FrameBody::Told(Told {
                commit: 5,
                directory_revision: 0,
                shards: vec![(id, vec![(some_origin(), 8)])],
            }),
            FrameBody::Want(Want { shard: id, origin: some_origin(), from: 1, to: 2 }),
            FrameBody::Compare(Compare { group: 1, level: 2, sums: vec![(4095, u128::MAX)] }),
            FrameBody::Vectors(Vectors {
                commit: 3,
                shards: [None, Some(7)]
                    .map(|digest| ShardState { row: row.clone(), vector: vector.clone(), digest })
                    .to_vec(),
                answer: true,
                owed: true,
            }),
            FrameBody::BelowFloor(row.clone()),
            FrameBody::Fetch(Fetch { row: row.clone(), id: 6, resume: None }),
            FrameBody::Fetch(Fetch { row: row.clone(), id: 6, resume: Some((vector.clone(), "k".into())) }),
            FrameBody::State(StatePart {
                shard: id,
                id: 6,
                number: 1,
                begins_anew: true,
                vector: vector.clone(),
                pieces: vec![
                    StatePiece {
                        key: "k".into(),
                        number: 3,
                        last: true,
                        bytes: Bytes::from_static(b"state"),
                    },
                    StatePiece {
                        key: "l".into(),
                        number: 0,
                        last: false,
                        bytes: Bytes::from(vec![7; 9_000]),
                    },
                ],
                requests: vec![([9; 16], Bytes::from_static(b"row"))],
                last: true,
            }),
            FrameBody::Fetched(Fetched { shard: id, id: 6, number: 8 }),
            FrameBody::Inspect(Inspect {
                row: row.clone(),
                id: 1,
                vector: vector.clone(),
                digest: 2,
                salt: 3,
                cells: Bytes::from_static(b"cells"),
            }),
            FrameBody::Inspected(Inspected { shard: id, id: 1, digest: 2, keys: vec!["k".into()] }),
            FrameBody::MoreCells(MoreCells { shard: id, id: 1, from: 2, to: 3 }),
            FrameBody::Cells(Cells { shard: id, id: 1, to: 2, bytes: Bytes::from_static(b"cells") }),
            FrameBody::Differ(Differ {
                shard: id,
                id: 1,
                vector: vector.clone(),
                wanted: vec![2, u128::MAX],
                states: vec![("k".into(), Bytes::from_static(b"state"))],
            }),
            FrameBody::Heartbeat(Heartbeat {
                sent_us: 1,
                wall_ms: 2,
                echo: (3, 4),
                closed: Stamp::new(5, 6),
                seen: Seen { incarnation: 7, commit: 8, hash: 9, random: 0 },
                your_cursor: 10,
                linked: vec![node("dallas-1")],
                stores: vec![(node("dallas-1"), 11)],
                wholeness: Wholeness::Rebuilding,
                keys: 12,
            }),
            FrameBody::NotMember { shard: id, epoch: 3 },
            FrameBody::AskHeld(AskHeld { scope: row.scope.name.clone(), epoch: 4, round: 5 }),
            FrameBody::Held(HeldAnswer {
                scope: row.scope.name.clone(),
                epoch: 4,
                round: 5,
                vectors: vec![Vector::EMPTY, vector.clone()],
            }),
        ]
    }

    #[test]
    fn every_frame_survives_its_message() {
        let scope = ScopeId { name: ScopeName::new("shop/carts").unwrap(), incarnation: 0 };
        let row = ShardRow { scope, index: 2, kind: Kind::Counter };
        for body in bodies().into_iter().chain(verify_frames::bodies(&row, some_origin())) {
            let frame = Frame { round: 2, number: 3, body };
            assert_eq!(from_message(to_message(&frame)), Ok(Some(frame)));
        }
    }

    #[test]
    fn a_packed_batch_is_not_unpacked_beyond_what_it_says_or_may_say() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        for (size, problem) in [(u32::MAX, "the limit"), (4_096, "small")] {
            let changes =
                v1::Changes { changes: vec![], packed: bomb.clone().into(), uncompressed_size: size };
            let error = unpack(changes).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn malformed_frames_are_errors_that_say_what() {
        use v1::link_frame::Frame as Message;
        let short = Bytes::from_static(b"short");
        let cases = [
            (Message::Want(v1::Want { shard: short.clone(), ..Default::default() }), "16 bytes"),
            (Message::Want(v1::Want { shard: Bytes::from(vec![0; 16]), ..Default::default() }), "origin"),
            (Message::Compare(v1::Compare { level: 3, ..Default::default() }), "levels 0 to 2"),
            (Message::Heartbeat(v1::Heartbeat { linked: vec!["Ä".into()], ..Default::default() }), "node id"),
            (Message::Hello(v1::Hello::default()), "handshake"),
            (
                Message::Vectors(v1::Vectors {
                    shards: vec![v1::ShardVector::default()],
                    ..Default::default()
                }),
                "scope",
            ),
        ];
        for (message, says) in cases {
            let frame = v1::LinkFrame { round: 0, number: 0, frame: Some(message) };
            let error = from_message(frame).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_hello_survives_its_message() {
        let hello = Hello {
            node: node("tokyo-1"),
            region: RegionName::new("tokyo").unwrap(),
            origin: some_origin(),
            store_id: 77,
            head: Head { commit: 3, hash: 4 },
            saw_you: Some((78, Seen { incarnation: 1, commit: 2, hash: 3, random: 4 })),
            replaced: true,
        };
        let message = hello_message(&hello, "world", "dallas-1", &[5; 32], &PolicyHash([6; 32]));
        assert_eq!(message.policy_hash, Bytes::from(vec![6; 32]));
        assert_eq!(hello_from_message(&message), Ok((hello, [5; 32])));
    }
}
