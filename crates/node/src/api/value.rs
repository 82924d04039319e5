//! From what is stored to what is shown.

use std::time::Duration;

use tropism_crdt::Content;
use tropism_replica::version_of;
use tropism_storage::ValueRow;
use tropism_storage::rows::Parked;
use tropism_wire::limits::MAX_MESSAGE_BYTES;
use tropism_wire::{Problem, Reason, v1};

/// What a message holds beside one value, in bytes: names, a token of 64 KiB.
const BESIDE_A_VALUE_BYTES: usize = 128 << 10;

/// When a key expires as clients see it: 0 is never.
pub(super) fn expires_at_ms(at: Option<u64>) -> u64 {
    at.unwrap_or(0)
}

/// A row whose key is visible, as an entry. The value's bytes are those of the row, not a copy.
///
/// # Errors
/// The key is parked, its counter is beyond 64 bits, or merging made it larger than a message.
pub(super) fn entry(key: String, row: ValueRow, keys_only: bool) -> Result<v1::Entry, Problem> {
    if let Some(parked) = row.parked {
        return Err(self::parked(&parked));
    }
    let version = version_of(&row.cell);
    let stamp = row.cell.written.map_or(0, |(stamp, _)| stamp.as_u64());
    let expires_at_ms = expires_at_ms(row.cell.expires_at_ms());
    let value = if keys_only { None } else { Some(v1::Value { value: Some(value(row.cell.content)?) }) };
    Ok(v1::Entry { key, value, version, stamp, expires_at_ms, failure: None })
}

/// Why a parked key is not shown.
pub(super) fn parked(parked: &Parked) -> Problem {
    let message = format!("the key cannot be shown: a change to it could not be applied: {}", parked.reason);
    Problem::data_loss(Reason::KeyParked, message)
}

/// An entry that says why the key cannot be shown.
pub(super) fn failed(key: String, problem: &Problem) -> v1::Entry {
    v1::Entry { key, failure: Some(problem.to_failure()), ..v1::Entry::default() }
}

/// A value as it is sent.
///
/// # Errors
/// Its counter is beyond 64 bits, or merging made it larger than a message.
pub(super) fn value(content: Content) -> Result<v1::value::Value, Problem> {
    let size = match &content {
        Content::Register(register) => register.bytes.len(),
        Content::Document { json, .. } => json.len(),
        Content::Counter(_) | Content::Empty => 0,
    };
    const MOST: usize = MAX_MESSAGE_BYTES - BESIDE_A_VALUE_BYTES;
    if size > MOST {
        let message = format!("merging made the value {size} bytes long; an answer holds {MOST}; shrink it");
        return Err(Problem::resource_exhausted(Reason::ValueTooLarge, "value_bytes", MOST as u64, message));
    }
    Ok(match content {
        Content::Register(register) => v1::value::Value::Register(v1::Register {
            content: register.bytes,
            content_type: register.content_type,
        }),
        Content::Document { json, .. } => v1::value::Value::Json(json),
        Content::Counter(counter) => v1::value::Value::Counter(counter.value().ok_or_else(|| {
            let message = "the counter's sum is beyond 64 bits; it is kept exactly and cannot be shown";
            Problem::failed_precondition(Reason::CounterOverflow, message)
        })?),
        Content::Empty => {
            let message = "the key is visible without a value";
            return Err(Problem::data_loss(Reason::KeyParked, message).retry_after(Duration::from_secs(1)));
        }
    })
}
