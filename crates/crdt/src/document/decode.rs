//! The operations of a change that edits entries of maps, read from its bytes.
//!
//! The reader is lenient where that costs nothing: what it read is written again (`encode.rs`) and compared with the
//! bytes, so a form that automerge would not write is found there.

use super::encode::{Action, Scalar};
use super::gate::signed;
use crate::codec::{DecodeError, Reader};

/// A change of plain entries of maps. Its operations name others by their number and the number of their actor: 0 is
/// the change's own, the others follow.
#[derive(Debug)]
pub(super) struct Decoded<'a> {
    pub(super) actor: &'a [u8],
    pub(super) seq: u64,
    pub(super) first_op: u64,
    pub(super) time: i64,
    pub(super) dependencies: Vec<[u8; 32]>,
    pub(super) others: Vec<&'a [u8]>,
    pub(super) operations: Vec<DecodedOp<'a>>,
}

/// One operation of it.
#[derive(Debug)]
pub(super) struct DecodedOp<'a> {
    /// `None`: the root.
    pub(super) map: Option<Named>,
    pub(super) key: &'a str,
    pub(super) action: Action<'a>,
    pub(super) seen: Vec<Named>,
}

/// An operation as the change names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named {
    pub(super) counter: u64,
    pub(super) actor: u64,
}

/// Reads a change whose headers are sound; `None` when it has more than `limit` operations, or any that is more than a
/// plain value of an entry.
pub(super) fn decode(bytes: &[u8], limit: usize) -> Option<Decoded<'_>> {
    read(bytes, limit).ok().flatten()
}

/// Whose change this is.
pub(super) fn actor_of(bytes: &[u8]) -> Option<&[u8]> {
    let mut r = Reader::new(bytes);
    r.take(9, "magic, checksum and type").ok()?;
    r.varint("length").ok()?;
    let dependencies = usize::try_from(r.varint("dependencies").ok()?).ok()?;
    r.take(dependencies.checked_mul(32)?, "dependencies").ok()?;
    r.bytes("actor").ok()
}

/// The columns that such a change has.
#[derive(Default)]
struct Columns<'a> {
    map_actor: &'a [u8],
    map_counter: &'a [u8],
    key: &'a [u8],
    insert: &'a [u8],
    action: &'a [u8],
    value_meta: &'a [u8],
    values: &'a [u8],
    seen_count: &'a [u8],
    seen_actor: &'a [u8],
    seen_counter: &'a [u8],
}

fn read(bytes: &[u8], limit: usize) -> Result<Option<Decoded<'_>>, DecodeError> {
    let mut r = Reader::new(bytes);
    r.take(9, "magic, checksum and type")?;
    r.varint("length")?;
    let mut dependencies = Vec::new();
    for _ in 0..r.varint("dependencies")? {
        dependencies.push(r.array("dependency")?);
    }
    let actor = r.bytes("actor")?;
    let (seq, first_op) = (r.varint("seq")?, r.varint("first operation")?);
    let Ok(time) = signed(&mut r) else { return Ok(None) };
    r.bytes("message")?;
    let mut others = Vec::new();
    for _ in 0..r.varint("other actors")? {
        others.push(r.bytes("other actor")?);
    }
    let mut lengths = Vec::new();
    for _ in 0..r.varint("columns")? {
        lengths.push((r.varint("column")?, r.varint("column length")?));
    }
    let mut columns = Columns::default();
    for (specification, length) in lengths {
        let column = match specification {
            0x01 => &mut columns.map_actor,
            0x02 => &mut columns.map_counter,
            0x15 => &mut columns.key,
            0x34 => &mut columns.insert,
            0x42 => &mut columns.action,
            0x56 => &mut columns.value_meta,
            0x57 => &mut columns.values,
            0x70 => &mut columns.seen_count,
            0x71 => &mut columns.seen_actor,
            0x73 => &mut columns.seen_counter,
            _ => return Ok(None),
        };
        *column = r.take(usize::try_from(length).map_err(|_| r.invalid("column length"))?, "column data")?;
    }
    r.finish()?;
    let operations = operations(&columns, limit);
    Ok(operations.map(|operations| Decoded { actor, seq, first_op, time, dependencies, others, operations }))
}

fn operations<'a>(columns: &Columns<'a>, limit: usize) -> Option<Vec<DecodedOp<'a>>> {
    let number = |r: &mut Reader<'a>| r.varint("number").ok();
    let actions = rows(columns.action, limit, number)?;
    let count = actions.len();
    let keys = rows(columns.key, count, |r| r.str("key").ok())?;
    let metas = rows(columns.value_meta, count, number)?;
    let seen_counts = rows(columns.seen_count, count, number)?;
    let map_actors = rows(columns.map_actor, count, number)?;
    let map_counters = rows(columns.map_counter, count, number)?;
    // All of one run: no operation inserts into a list.
    let mut inserts = Reader::new(columns.insert);
    let run = inserts.varint("run").ok()?;
    if run != count as u64 || !inserts.rest().is_empty() {
        return None;
    }
    let seen_total = seen_counts.iter().try_fold(0_u64, |total, count| total.checked_add((*count)?))?;
    let seen_total = usize::try_from(seen_total).ok().filter(|total| *total <= limit)?;
    let seen_actors = rows(columns.seen_actor, seen_total, number)?;
    let steps = rows(columns.seen_counter, seen_total, |r| signed(r).ok())?;
    if seen_actors.len() != seen_total || steps.len() != seen_total {
        return None;
    }
    let mut counter = 0_i64;
    let mut seen = Vec::with_capacity(seen_total);
    for (actor, step) in seen_actors.into_iter().zip(steps) {
        counter = counter.checked_add(step?)?;
        seen.push(Named { counter: u64::try_from(counter).ok()?, actor: actor? });
    }
    let mut seen = seen.into_iter();
    let mut values = Reader::new(columns.values);
    let mut operations = Vec::with_capacity(count);
    for (at, action) in actions.into_iter().enumerate() {
        let row = |column: &[Option<u64>]| column.get(at).copied().flatten();
        let map = match (row(&map_counters), row(&map_actors)) {
            (None, None) => None,
            (Some(counter), Some(actor)) => Some(Named { counter, actor }),
            _ => return None,
        };
        let meta = row(&metas)?;
        let value = values.take(usize::try_from(meta >> 4).ok()?, "value").ok()?;
        operations.push(DecodedOp {
            map,
            key: (*keys.get(at)?)?,
            action: action_of(action?, meta & 0xf, value)?,
            seen: seen.by_ref().take(usize::try_from(row(&seen_counts)?).ok()?).collect(),
        });
    }
    Some(operations)
}

/// What an operation does, from its action, its value's type and its value.
fn action_of(action: u64, kind: u64, value: &[u8]) -> Option<Action<'_>> {
    let mut r = Reader::new(value);
    let action = match (action, kind) {
        (1, 0) => Action::Put(Scalar::Null),
        (1, 1) => Action::Put(Scalar::Bool(false)),
        (1, 2) => Action::Put(Scalar::Bool(true)),
        (1, 3) => Action::Put(Scalar::Uint(r.varint("value").ok()?)),
        (1, 4) => Action::Put(Scalar::Int(signed(&mut r).ok()?)),
        (1, 5) => Action::Put(Scalar::Float(f64::from_le_bytes(r.array("value").ok()?))),
        (1, 6) => Action::Put(Scalar::String(std::str::from_utf8(r.take(value.len(), "value").ok()?).ok()?)),
        (1, 8) => Action::PutCounter(signed(&mut r).ok()?),
        (3, 0) => Action::Delete,
        (5, 4) => Action::Increment(signed(&mut r).ok()?),
        _ => return None,
    };
    r.rest().is_empty().then_some(action)
}

/// Expands a run-length encoded column of at most `limit` rows.
fn rows<'a, T: Copy>(
    data: &'a [u8],
    limit: usize,
    mut value: impl FnMut(&mut Reader<'a>) -> Option<T>,
) -> Option<Vec<Option<T>>> {
    let mut r = Reader::new(data);
    let mut rows = Vec::new();
    while !r.rest().is_empty() {
        let run = signed(&mut r).ok()?;
        let length = if run == 0 { r.varint("nulls").ok()? } else { run.unsigned_abs() };
        let length = usize::try_from(length).ok().filter(|length| *length <= limit - rows.len())?;
        match run {
            0 => rows.extend(std::iter::repeat_n(None, length)),
            1.. => {
                let value = value(&mut r)?;
                rows.extend(std::iter::repeat_n(Some(value), length));
            }
            _ => {
                for _ in 0..length {
                    rows.push(Some(value(&mut r)?));
                }
            }
        }
    }
    Some(rows)
}
