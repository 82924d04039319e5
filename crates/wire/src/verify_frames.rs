//! Frames of a verification to and from their messages. What a peer says is bounded here where the replica would have to
//! hold it.

use bytes::Bytes;
use tropism_crdt::{Origin, Stamp, Vector};
use tropism_replica::limits::{VERIFIED_KEYS, VERIFY_CELLS, VERIFY_CHANGES};
use tropism_replica::{KeyHeld, MemberRows, RowsSeen, ShardState, Verified, Verify, VerifyAnswer, VerifyAsk};

use crate::frames::{FrameError, digest, malformed, origin, shard, shard_state, shard_vector, vector};
use crate::v1;

fn sum(sum: u128) -> Bytes {
    Bytes::copy_from_slice(&sum.to_be_bytes())
}

/// The message of a question.
pub(crate) fn question(verify: &Verify) -> v1::Verify {
    use v1::verify::Ask;
    let Verify { row, id, step, ask } = verify;
    let (vector, ask) = match ask {
        VerifyAsk::Rows { vector } => (vector, Ask::Rows(v1::VerifyRows {})),
        VerifyAsk::Cells { salt, cells, one_in, without } => {
            let without = without.clone();
            let ask = v1::VerifyCells { salt: *salt, cells: *cells, one_in: *one_in, without };
            (&Vector::EMPTY, Ask::Cells(ask))
        }
        VerifyAsk::Keys { fingerprints, keys } => {
            let fingerprints = fingerprints.iter().flat_map(|print| print.to_be_bytes()).collect();
            (&Vector::EMPTY, Ask::Keys(v1::VerifyKeys { fingerprints, keys: keys.clone() }))
        }
        VerifyAsk::End => (&Vector::EMPTY, Ask::End(v1::VerifyEnd {})),
    };
    v1::Verify { shard: Some(shard_vector(row, vector, None)), id: *id, step: *step, ask: Some(ask) }
}

/// The question of a message.
pub(crate) fn asked(message: v1::Verify) -> Result<Verify, FrameError> {
    use v1::verify::Ask;
    let v1::Verify { shard, id, step, ask } = message;
    let ShardState { row, vector, .. } = shard_state(&shard.unwrap_or_default())?;
    let ask = match ask.ok_or_else(|| malformed("a verification that asks nothing"))? {
        Ask::Rows(v1::VerifyRows {}) => VerifyAsk::Rows { vector },
        Ask::Cells(v1::VerifyCells { salt, cells, one_in, without }) => {
            at_most("cells", cells as usize, VERIFY_CELLS)?;
            at_most("keys left out", without.len(), VERIFY_CHANGES)?;
            if one_in == 0 {
                return Err(malformed("one key in 0"));
            }
            VerifyAsk::Cells { salt, cells, one_in, without }
        }
        Ask::Keys(v1::VerifyKeys { fingerprints, keys }) => {
            let (whole, rest) = fingerprints.as_chunks::<16>();
            if !rest.is_empty() {
                return Err(malformed("a fingerprint has 16 bytes"));
            }
            at_most("fingerprints", whole.len(), VERIFY_CELLS)?;
            at_most("keys", keys.len(), VERIFIED_KEYS)?;
            VerifyAsk::Keys {
                fingerprints: whole.iter().map(|print| u128::from_be_bytes(*print)).collect(),
                keys,
            }
        }
        Ask::End(v1::VerifyEnd {}) => VerifyAsk::End,
    };
    Ok(Verify { row, id, step, ask })
}

/// The message of an answer.
pub(crate) fn answer(verified: &Verified) -> v1::Verified {
    use v1::verified::Answer;
    let Verified { shard, id, step, answer } = verified;
    let answer = match answer {
        VerifyAnswer::Rows(rows) => Answer::Rows(v1::RowsVerified {
            vector: rows.vector.to_bytes().into(),
            digest: rows.digest.map(sum).unwrap_or_default(),
            sum: sum(rows.seen.sum),
            keys: rows.seen.keys,
            unreadable: rows.seen.unreadable,
            parked: rows.seen.parked,
            not_served: rows.seen.not_served.iter().map(key_message).collect(),
            beyond: rows.beyond.iter().flatten().map(changed_message).collect(),
            beyond_known: rows.beyond.is_some(),
            sum_without: sum(rows.sum_without),
        }),
        VerifyAnswer::Cells { sum: of, cells } => {
            Answer::Cells(v1::CellsVerified { sum: sum(*of), cells: cells.clone() })
        }
        VerifyAnswer::Keys { found, count, asked } => Answer::Keys(v1::KeysVerified {
            found: found.iter().map(key_message).collect(),
            count: *count,
            asked: asked.iter().map(key_message).collect(),
        }),
        VerifyAnswer::Settling => Answer::Not(v1::NotVerified::Settling.into()),
        VerifyAnswer::NotHeld => Answer::Not(v1::NotVerified::NotHeld.into()),
        VerifyAnswer::Gone => Answer::Not(v1::NotVerified::Gone.into()),
    };
    v1::Verified { shard: Bytes::copy_from_slice(&shard.0), id: *id, step: *step, answer: Some(answer) }
}

/// The answer of a message.
pub(crate) fn answered(message: v1::Verified) -> Result<Verified, FrameError> {
    use v1::verified::Answer;
    let answer = match message.answer.ok_or_else(|| malformed("a verification that answers nothing"))? {
        Answer::Rows(rows) => {
            at_most("keys that cannot be served", rows.not_served.len(), VERIFIED_KEYS)?;
            at_most("keys beyond", rows.beyond.len(), VERIFY_CHANGES)?;
            let beyond = rows.beyond.into_iter().map(changed).collect::<Result<Vec<_>, _>>()?;
            VerifyAnswer::Rows(Box::new(MemberRows {
                vector: vector(&rows.vector)?,
                digest: if rows.digest.is_empty() { None } else { Some(digest(&rows.digest)?) },
                seen: RowsSeen {
                    sum: digest(&rows.sum)?,
                    keys: rows.keys,
                    unreadable: rows.unreadable,
                    parked: rows.parked,
                    not_served: rows.not_served.into_iter().map(key).collect::<Result<_, _>>()?,
                },
                beyond: rows.beyond_known.then_some(beyond),
                sum_without: digest(&rows.sum_without)?,
            }))
        }
        Answer::Cells(v1::CellsVerified { sum, cells }) => VerifyAnswer::Cells { sum: digest(&sum)?, cells },
        Answer::Keys(v1::KeysVerified { found, count, asked }) => {
            at_most("keys found", found.len().max(asked.len()), VERIFIED_KEYS)?;
            VerifyAnswer::Keys {
                found: found.into_iter().map(key).collect::<Result<_, _>>()?,
                count,
                asked: asked.into_iter().map(key).collect::<Result<_, _>>()?,
            }
        }
        Answer::Not(not) => match v1::NotVerified::try_from(not) {
            Ok(v1::NotVerified::Settling) => VerifyAnswer::Settling,
            Ok(v1::NotVerified::NotHeld) => VerifyAnswer::NotHeld,
            Ok(v1::NotVerified::Gone) => VerifyAnswer::Gone,
            Ok(v1::NotVerified::Unspecified) | Err(_) => {
                return Err(malformed(format!("a verification was not made for reason {not}")));
            }
        },
    };
    Ok(Verified { shard: shard(&message.shard)?, id: message.id, step: message.step, answer })
}

fn at_most(what: &str, count: usize, most: usize) -> Result<(), FrameError> {
    if count > most { Err(malformed(format!("{count} {what}, the limit is {most}"))) } else { Ok(()) }
}

fn changed_message((key, (origin, seq)): &(String, (Origin, u64))) -> v1::KeyChanged {
    v1::KeyChanged { key: key.clone(), origin: origin.to_bytes().into(), seq: *seq }
}

fn changed(message: v1::KeyChanged) -> Result<(String, (Origin, u64)), FrameError> {
    Ok((message.key, (origin(&message.origin)?, message.seq)))
}

fn key_message((key, held): &(String, KeyHeld)) -> v1::KeyAtMember {
    let message = v1::KeyAtMember { key: key.clone(), ..v1::KeyAtMember::default() };
    match held {
        KeyHeld::Nothing => message,
        KeyHeld::Unreadable { reason } => v1::KeyAtMember { unreadable: reason.clone(), ..message },
        KeyHeld::State { life, written, deleted_at, alive, parked, content } => {
            let state = v1::StateAtMember {
                life: *life,
                written_stamp: written.map_or(0, |(stamp, _)| stamp.as_u64()),
                written_by: written.map(|(_, by)| by.to_bytes().into()).unwrap_or_default(),
                deleted_stamp: deleted_at.map_or(0, Stamp::as_u64),
                alive: *alive,
                parked: parked.clone(),
                content: content.clone(),
            };
            v1::KeyAtMember { state: Some(state), ..message }
        }
    }
}

fn key(message: v1::KeyAtMember) -> Result<(String, KeyHeld), FrameError> {
    let v1::KeyAtMember { key, unreadable, state } = message;
    let Some(state) = state else {
        let nothing = unreadable.is_empty();
        let held = if nothing { KeyHeld::Nothing } else { KeyHeld::Unreadable { reason: unreadable } };
        return Ok((key, held));
    };
    let written = match state.written_by.as_ref() {
        [] => None,
        by => Some((Stamp::from_u64(state.written_stamp), origin(by)?)),
    };
    let held = KeyHeld::State {
        life: state.life,
        written,
        deleted_at: (state.deleted_stamp > 0).then(|| Stamp::from_u64(state.deleted_stamp)),
        alive: state.alive,
        parked: state.parked,
        content: state.content,
    };
    Ok((key, held))
}

#[cfg(test)]
use tests::some_bodies;

/// Frames of every shape, for the test of all frames.
#[cfg(test)]
pub(crate) fn bodies(row: &tropism_storage::ShardRow, by: Origin) -> Vec<tropism_replica::FrameBody> {
    some_bodies(row, by)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tropism_replica::FrameBody;
    use tropism_storage::ShardRow;

    use super::*;

    pub(super) fn some_bodies(row: &ShardRow, by: Origin) -> Vec<FrameBody> {
        let vector: Vector = [(by, 4)].into_iter().collect();
        let held = vec![
            ("a".to_owned(), KeyHeld::Nothing),
            ("b".to_owned(), KeyHeld::Unreadable { reason: "checksum".into() }),
            (
                "c".to_owned(),
                KeyHeld::State {
                    life: 2,
                    written: Some((Stamp::new(5, 6), by)),
                    deleted_at: Some(Stamp::new(4, 0)),
                    alive: true,
                    parked: "it does not fit".into(),
                    content: "5 bytes".into(),
                },
            ),
            (
                "d".to_owned(),
                KeyHeld::State {
                    life: 0,
                    written: None,
                    deleted_at: Some(Stamp::new(4, 0)),
                    alive: false,
                    parked: String::new(),
                    content: String::new(),
                },
            ),
        ];
        let rows = |digest, beyond| {
            let seen = RowsSeen { sum: 1, keys: 9, unreadable: 1, parked: 1, not_served: held.clone() };
            VerifyAnswer::Rows(Box::new(MemberRows {
                vector: vector.clone(),
                digest,
                seen,
                beyond,
                sum_without: 3,
            }))
        };
        let asks = vec![
            VerifyAsk::Rows { vector: vector.clone() },
            VerifyAsk::Cells { salt: 1, cells: 2, one_in: 3, without: vec!["k".into()] },
            VerifyAsk::Keys { fingerprints: vec![2, u128::MAX], keys: vec!["k".into()] },
            VerifyAsk::End,
        ];
        let answers = vec![
            rows(None, None),
            rows(Some(7), Some(vec![("k".to_owned(), (by, 4))])),
            VerifyAnswer::Cells { sum: 2, cells: Bytes::from_static(b"cells") },
            VerifyAnswer::Keys { found: held.clone(), count: 7, asked: held.clone() },
            VerifyAnswer::Settling,
            VerifyAnswer::NotHeld,
            VerifyAnswer::Gone,
        ];
        let asks = asks.into_iter().map(|ask| Verify { row: row.clone(), id: 1, step: 2, ask });
        let shard = row.id();
        let answers = answers.into_iter().map(|answer| Verified { shard, id: 1, step: 2, answer });
        asks.map(FrameBody::Verify).chain(answers.map(FrameBody::Verified)).collect()
    }

    #[test]
    fn what_a_peer_asks_and_answers_is_bounded_before_it_is_believed() {
        use v1::verified::Answer;
        use v1::verify::Ask;
        let shard =
            v1::ShardVector { scope: "a".into(), kind: 1, vector: vec![0].into(), ..Default::default() };
        let ask = |ask| {
            let message = v1::Verify { shard: Some(shard.clone()), ask: Some(ask), ..Default::default() };
            asked(message).unwrap_err().to_string()
        };
        let key = v1::KeyAtMember::default();
        let answer = |answer| {
            let message =
                v1::Verified { shard: vec![0; 16].into(), answer: Some(answer), ..Default::default() };
            answered(message).unwrap_err().to_string()
        };
        let cells = |cells, one_in, without: usize| {
            ask(Ask::Cells(v1::VerifyCells { salt: 0, cells, one_in, without: vec!["k".into(); without] }))
        };
        let keys = |bytes: usize, keys: usize| {
            let fingerprints = vec![0; bytes].into();
            ask(Ask::Keys(v1::VerifyKeys { fingerprints, keys: vec!["k".into(); keys] }))
        };
        let many = vec![key; VERIFIED_KEYS + 1];
        let found = v1::KeysVerified { found: many.clone(), ..Default::default() };
        let not_served = v1::RowsVerified { not_served: many, ..Default::default() };
        let beyond = vec![v1::KeyChanged::default(); VERIFY_CHANGES + 1];
        let beyond = v1::RowsVerified { beyond, ..Default::default() };
        for (error, says) in [
            (cells(2_049, 1, 0), "2049 cells, the limit is 2048"),
            (cells(1, 0, 0), "one key in 0"),
            (cells(1, 1, 4_097), "4097 keys left out, the limit is 4096"),
            (keys(17, 0), "16 bytes"),
            (keys(2_049 * 16, 0), "2049 fingerprints, the limit is 2048"),
            (keys(0, 101), "101 keys, the limit is 100"),
            (answer(Answer::Keys(found)), "101 keys found, the limit is 100"),
            (answer(Answer::Rows(not_served)), "101 keys that cannot be served, the limit is 100"),
            (answer(Answer::Rows(beyond)), "4097 keys beyond, the limit is 4096"),
            (answer(Answer::Not(9)), "reason 9"),
            (
                asked(v1::Verify { shard: Some(shard.clone()), ..Default::default() })
                    .unwrap_err()
                    .to_string(),
                "asks nothing",
            ),
        ] {
            assert!(error.contains(says), "{error}");
        }
    }
}
