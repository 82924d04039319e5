//! The conflict ledger: the values of a scope that a merge hid. Nothing is kept for it: it is read out of the documents'
//! histories and out of the log, so it lives where the scope lives and goes when that goes
//! (docs/decisions/0018-conflicts.md).

use bytes::Bytes;
use tonic::Request;
use tropism_crdt::codec::{DecodeError, Reader};
use tropism_crdt::document::{Conflict, Rival};
use tropism_crdt::{Content, Origin, Stamp};
use tropism_placement::{Kind, ScopeId, ShardId};
use tropism_replica::{HistoryError, LostWrite, StoredHistory, document_version, lost_writes, version_of};
use tropism_storage::keys::{after_prefix, shard_prefix};
use tropism_storage::rows::{Row, ValueRow};
use tropism_storage::{Reads, Space, StoreError};
use tropism_wire::limits::{DEFAULT_PAGE_CONFLICTS, MAX_PAGE_CONFLICTS};
use tropism_wire::{Problem, Reason, from_proto, v1};
use xxhash_rust::xxh3::Xxh3;

use super::history::page_size_of;
use super::{Api, Call, Inner, stopping, unreadable};
use crate::driver::{Published, wall_ms};

/// Rows looked at for one page: some 20 ms where they are light.
const PAGE_ROWS: u64 = 5_000;
/// Bytes of histories opened for one page: some 100 ms of one core, and a history at its limit is a page of its own.
const PAGE_HISTORY_BYTES: usize = 1 << 20;
/// Logged changes read for one page of registers: some 100 ms.
const PAGE_WALKED: u64 = 20_000;
/// Bytes of values that a page carries, both of a pair counted; what finds no room is told without its value.
const PAGE_VALUE_BYTES: usize = 3 << 20;
/// Bytes of one value in a list of many keys: a page has room for hundreds.
const LISTED_VALUE_BYTES: usize = 4 << 10;
/// Most conflicts told of one key, whatever the page asked for.
const KEY_CONFLICTS: usize = MAX_PAGE_CONFLICTS as usize;

/// Where a page begins: the scope's shard, and the first key there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    index: u16,
    key: Vec<u8>,
}

impl Position {
    fn encode(&self) -> Vec<u8> {
        [&self.index.to_be_bytes()[..], &self.key].concat()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        Ok(Self { index: u16::from_be_bytes(r.array("shard")?), key: r.rest().to_vec() })
    }
}

/// Lists the conflicts of a scope, or of a key of it.
pub(super) async fn list(
    api: &Api,
    request: Request<v1::ListConflictsRequest>,
) -> Result<v1::ListConflictsResponse, Problem> {
    let (call, request) = Call::of(request)?;
    let v1::ListConflictsRequest { scope, key, token, page_size, page_token } = request;
    let scope = api.served("scope", &scope)?;
    if !key.is_empty() {
        from_proto::key("key", &key)?;
    }
    let most = page_size_of(page_size, DEFAULT_PAGE_CONFLICTS, MAX_PAGE_CONFLICTS)?;
    let pages = api.seal.of(&["conflicts", scope.id.name.as_str(), &key]);
    let from = match page_token.as_ref() {
        [] => Position { index: 0, key: key.clone().into_bytes() },
        token => pages.open(token).and_then(Position::decode).map_err(|error| {
            let message =
                format!("page_token is none of this list: {error}; send the same scope and key as before");
            Problem::invalid_argument(Reason::BadPageToken, "page_token", message)
        })?,
    };
    let mut token = api.token("token", &token, &call)?;
    let shards = if key.is_empty() { scope.shards() } else { vec![scope.shard(&key)] };
    let only = (!key.is_empty()).then(|| vec![(shards[0], key.clone())]);
    let published = api.readable(&scope, &token, &shards, only.as_deref(), call.deadline).await?;
    for shard in &shards {
        token.set(*shard, published.snapshot.vector(*shard).map_err(unreadable)?);
    }
    let answer = api.answer(&scope.serving, &published, api.seen(token, &published));
    let permit = api.history_permit()?;
    let (id, kind, api) = (scope.id.clone(), scope.kind, api.clone());
    let page = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let page = Page {
            api: &api,
            published: &published,
            scope: &id,
            value_bytes: if key.is_empty() { LISTED_VALUE_BYTES } else { PAGE_VALUE_BYTES },
            room: PAGE_VALUE_BYTES,
            history_bytes: 0,
            walked: 0,
            response: v1::ListConflictsResponse::default(),
        };
        page.read(&shards, kind, from, (!key.is_empty()).then_some(key.as_str()), most)
    });
    let (mut response, next) = page.await.map_err(|_| stopping())??;
    response.next_page_token = next.map_or_else(Bytes::new, |next| pages.close(&next.encode()));
    response.answer = Some(answer);
    Ok(response)
}

/// What becomes an answer.
struct Page<'a> {
    api: &'a Inner,
    published: &'a Published,
    scope: &'a ScopeId,
    /// Most bytes of one value.
    value_bytes: usize,
    /// What is left for values, in bytes.
    room: usize,
    history_bytes: usize,
    walked: u64,
    response: v1::ListConflictsResponse,
}

type Told = Result<(v1::ListConflictsResponse, Option<Position>), Problem>;

impl Page<'_> {
    /// Goes through the shards from a position on; where the next page begins, `None` at the end.
    fn read(
        mut self,
        shards: &[ShardId],
        kind: Kind,
        from: Position,
        only: Option<&str>,
        most: usize,
    ) -> Told {
        let view = self.published.snapshot.as_ref();
        if kind == Kind::Counter {
            return Ok((self.response, None)); // every increment counts
        }
        for (index, shard) in (0_u16..).zip(shards).skip(from.index.into()) {
            let prefix = shard_prefix(shard);
            let start = if index == from.index { [&prefix, &from.key[..]].concat() } else { prefix.clone() };
            for row in view.scan(Space::Values, &start, &after_prefix(&prefix)) {
                let (name, row) = row.map_err(|error| unreadable(StoreError::Engine(error)))?;
                let key = &name[prefix.len()..];
                if only.is_some_and(|only| only.as_bytes() != key) {
                    break;
                }
                let full = self.response.conflicts.len() >= most
                    || self.response.keys >= PAGE_ROWS
                    || self.history_bytes >= PAGE_HISTORY_BYTES
                    || self.walked >= PAGE_WALKED
                    || self.room == 0;
                if full && self.response.keys > 0 {
                    return Ok((self.response, Some(Position { index, key: key.to_vec() })));
                }
                self.response.keys += 1;
                let (Ok(key), Ok(row)) = (std::str::from_utf8(key), ValueRow::decode(&row)) else {
                    self.response.unreadable_keys += 1;
                    continue;
                };
                if row.parked.is_some() {
                    self.response.unreadable_keys += 1;
                } else if row.cell.visible(wall_ms()) {
                    self.key(*shard, key, &row)?;
                }
            }
        }
        Ok((self.response, None))
    }

    /// The conflicts of one key.
    fn key(&mut self, shard: ShardId, key: &str, row: &ValueRow) -> Result<(), Problem> {
        match &row.cell.content {
            Content::Document { .. } => match self.document(shard, key, row) {
                Err(HistoryError::Store(StoreError::Engine(error))) => {
                    Err(unreadable(StoreError::Engine(error)))
                }
                Err(_) => {
                    self.response.unreadable_keys += 1;
                    Ok(())
                }
                Ok(()) => Ok(()),
            },
            Content::Register(register) => {
                let shown = match row.cell.written {
                    Some((stamp, origin)) => LostWrite {
                        origin,
                        stamp,
                        content_type: register.content_type.clone(),
                        bytes: register.bytes.clone(),
                    },
                    None => return Ok(()),
                };
                let lost = lost_writes(self.published.snapshot.as_ref(), shard, row).map_err(unreadable)?;
                self.walked += lost.walked;
                self.response.forgotten_keys += u64::from(lost.forgotten);
                for hidden in lost.lost {
                    let same = (&hidden.bytes, &hidden.content_type) == (&shown.bytes, &shown.content_type);
                    if same {
                        continue;
                    }
                    let mark = [&hidden.stamp.as_u64().to_be_bytes()[..], &hidden.origin.to_bytes()].concat();
                    let conflict = v1::Conflict {
                        id: self.id(key, row.cell.life, &mark),
                        key: key.to_owned(),
                        path: String::new(),
                        in_list: false,
                        rule: v1::ConflictRule::Stamp.into(),
                        shown: Some(self.written(&shown)),
                        hidden: Some(self.written(&hidden)),
                        version: version_of(&row.cell),
                    };
                    self.response.conflicts.push(conflict);
                }
                Ok(())
            }
            Content::Counter(_) | Content::Empty => Ok(()),
        }
    }

    fn document(&mut self, shard: ShardId, key: &str, row: &ValueRow) -> Result<(), HistoryError> {
        let life = row.cell.life;
        let stored = StoredHistory::read(self.published.snapshot.as_ref(), shard, key, life)?;
        if stored.is_undisputed() {
            return Ok(());
        }
        self.history_bytes += stored.bytes();
        let found = stored.open()?.conflicts(KEY_CONFLICTS)?;
        self.response.crowded_keys += u64::from(found.more);
        for Conflict { path, in_list, shown, hidden } in found.found {
            let (operation, actor) = &hidden.operation;
            let mark = [&operation.to_be_bytes()[..], actor].concat();
            let conflict = v1::Conflict {
                id: self.id(key, life, &mark),
                key: key.to_owned(),
                path: path.to_string(),
                in_list,
                rule: v1::ConflictRule::Operation.into(),
                shown: Some(self.rival(shown, life)),
                hidden: Some(self.rival(hidden, life)),
                version: version_of(&row.cell),
            };
            self.response.conflicts.push(conflict);
        }
        Ok(())
    }

    /// The name of a hidden value: what it is made of is the same at every member.
    fn id(&self, key: &str, life: u64, mark: &[u8]) -> String {
        let mut hash = Xxh3::new();
        hash.update(self.scope.name.as_str().as_bytes());
        hash.update(&[0]);
        hash.update(&self.scope.incarnation.to_be_bytes());
        hash.update(key.as_bytes());
        hash.update(&[0]);
        hash.update(&life.to_be_bytes());
        hash.update(mark);
        format!("{:016x}", hash.digest())
    }

    /// Whether there is room for a value of so many bytes, which is taken then.
    fn takes(&mut self, bytes: usize) -> bool {
        if bytes > self.value_bytes {
            return false;
        }
        let fits = bytes <= self.room;
        self.room = self.room.saturating_sub(bytes); // where one finds none, the page ends behind its key
        fits
    }

    fn rival(&mut self, rival: Rival, life: u64) -> v1::ConflictValue {
        let bytes = rival.json.len();
        let value = self.takes(bytes).then(|| v1::conflict_value::Value::Json(rival.json.into()));
        let time_ms = u64::try_from(rival.time_seconds).unwrap_or(0).saturating_mul(1_000);
        let version = document_version(life, &rival.version);
        v1::ConflictValue { value, bytes: bytes as u64, version, ..self.by(rival.origin, time_ms, None) }
    }

    fn written(&mut self, write: &LostWrite) -> v1::ConflictValue {
        let bytes = write.bytes.len();
        let value = self.takes(bytes).then(|| {
            let (content, content_type) = (write.bytes.clone(), write.content_type.clone());
            v1::conflict_value::Value::Register(v1::Register { content, content_type })
        });
        let by = self.by(Some(write.origin), write.stamp.unix_ms(), Some(write.stamp));
        v1::ConflictValue { value, bytes: bytes as u64, ..by }
    }

    fn by(&self, origin: Option<Origin>, time_ms: u64, stamp: Option<Stamp>) -> v1::ConflictValue {
        v1::ConflictValue {
            origin: origin.map(|origin| origin.to_string()).unwrap_or_default(),
            node: origin.map(|origin| origin.node.to_string()).unwrap_or_default(),
            region: origin.map(|origin| self.api.region_of(&origin)).unwrap_or_default(),
            time_ms,
            stamp: stamp.map_or(0, |stamp| stamp.as_u64()),
            ..v1::ConflictValue::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use super::*;

    #[test]
    fn a_position_comes_back_and_short_bytes_do_not() {
        for key in ["", "k", "\u{e9}"] {
            let position = Position { index: 255, key: key.into() };
            assert_eq!(Position::decode(&position.encode()), Ok(position));
        }
        assert!(Position::decode(b"\0").is_err());
    }
}
