//! Parked keys: `ParkedService`. What is listed is read from the published state; what is tried or dropped is done by the
//! replica, step by step.

use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::{Request, Response, Status, async_trait};
use tropism_crdt::codec::DecodeError;
use tropism_placement::{ScopeName, ShardId};
use tropism_replica::limits::DROPPED_ROWS;
use tropism_replica::{KeptSeen, ParkedCall, ParkedError, ParkedKey, ParkedOp, ParkedState, ParkedStep};
use tropism_storage::keys::{after_prefix, shard_prefix};
use tropism_storage::rows::{Row, ShardRow, ValueRow};
use tropism_storage::{Place, Reads, ShardKey, Space, StoreError, View};
use tropism_wire::error::echo;
use tropism_wire::limits::{DEFAULT_PAGE_PARKED, MAX_PAGE_PARKED};
use tropism_wire::v1::parked_service_server::ParkedService;
use tropism_wire::{Problem, Reason, from_proto, v1};

use super::{Api, Call, Inner, stopping, unreadable, write};
use crate::driver::CallError;

/// Rows looked at for one page, kept changes included: some 70 ms where every key is asked for what is kept of it, less
/// where only its row is read.
const PAGE_ROWS: u64 = 10_000;
/// Shards that one page goes through at most, where every shard has to be looked at: those before are forgotten meanwhile.
const PAGE_SHARDS: usize = 1_000;
/// Dropped changes that an answer describes: some 100 KiB.
const DESCRIBED_DROPS: usize = 1_000;

#[async_trait]
impl ParkedService for Api {
    async fn list_parked(
        &self,
        request: Request<v1::ListParkedRequest>,
    ) -> Result<Response<v1::ListParkedResponse>, Status> {
        let (_, request) = Call::of(request)?;
        let v1::ListParkedRequest { node, scope, every_key, page_size, page_token } = request;
        self.addressed(&node)?;
        let most = match page_size {
            0 => DEFAULT_PAGE_PARKED,
            1..=MAX_PAGE_PARKED => page_size,
            _ => {
                let message = format!("page_size is {page_size}; the limit is {MAX_PAGE_PARKED}");
                return Err(Problem::invalid_argument(Reason::BadNumber, "page_size", message).into());
            }
        };
        let of_scope = match scope.as_str() {
            "" => None,
            name => {
                let served = self.served("scope", name)?;
                let shards = (0..).zip(served.shards());
                Some(shards.map(|(index, id)| (served.id.name.clone(), index, id)).collect::<Vec<_>>())
            }
        };
        let pages = self.seal.of(&["parked", &scope]);
        let from = match page_token.as_ref() {
            [] => None,
            token => {
                let position = pages.open(token).and_then(Position::decode).map_err(|error| {
                    let message =
                        format!("page_token is none of this list: {error}; send the same scope as before");
                    Problem::invalid_argument(Reason::BadPageToken, "page_token", message)
                })?;
                Some(position)
            }
        };
        let published = self.handle.published();
        // The status may be a little older than the store: a key may just have been parked.
        let known = published.status.parked_shards.as_ref();
        let known = known.filter(|known| !every_key && known.keys == published.tally.keys.parked);
        let known = known.map(|known| known.shards.clone());
        let known_shards_only = known.is_some();
        let page = tokio::task::spawn_blocking(move || {
            let view = published.snapshot.as_ref();
            let (shards, more) = shards(view, of_scope, known, from.as_ref())?;
            page(view, &shards, more, from, (most as usize, every_key))
        });
        let (keys, next) = page.await.map_err(|_| stopping())?.map_err(unreadable)?;
        Ok(Response::new(v1::ListParkedResponse {
            keys,
            next_page_token: next.map_or_else(Bytes::new, |next| pages.close(&next.encode())),
            known_shards_only,
            node: self.node.as_str().to_owned(),
            region: self.region.as_str().to_owned(),
        }))
    }

    async fn get_parked(
        &self,
        request: Request<v1::GetParkedRequest>,
    ) -> Result<Response<v1::GetParkedResponse>, Status> {
        let (_, v1::GetParkedRequest { node, scope, key }) = Call::of(request)?;
        let call = self.parked_call(&node, &scope, key, ParkedOp::Show)?;
        let step = self.parked_step(call.clone()).await?.map_err(|error| refused(&error, self))?;
        let parked = self.what_is_kept(&call).await?;
        Ok(Response::new(v1::GetParkedResponse {
            parked,
            changes: step.changes.iter().map(change).collect(),
            history_problem: step.history.unwrap_or_default(),
            node: self.node.as_str().to_owned(),
            region: self.region.as_str().to_owned(),
        }))
    }

    async fn retry_parked(
        &self,
        request: Request<v1::RetryParkedRequest>,
    ) -> Result<Response<v1::RetryParkedResponse>, Status> {
        let (Call { deadline, .. }, v1::RetryParkedRequest { node, scope, key }) = Call::of(request)?;
        let call = self.parked_call(&node, &scope, key, ParkedOp::Retry(None))?;
        let mut response = v1::RetryParkedResponse {
            node: self.node.as_str().to_owned(),
            region: self.region.as_str().to_owned(),
            ..Default::default()
        };
        response.complete = self
            .parked_steps(&call, deadline.give_up, ParkedOp::Retry, |step| {
                for change in &step.changes {
                    match change.problem {
                        None => response.applied_changes += 1,
                        Some(_) => response.failed_changes += 1,
                    }
                }
            })
            .await?;
        response.left = self.what_is_kept(&call).await?;
        let left = response.left.as_ref().map(v1::ParkedKey::state);
        response.served = left.is_none_or(|state| state == v1::ParkedState::LeftOver);
        Ok(Response::new(response))
    }

    async fn drop_parked(
        &self,
        request: Request<v1::DropParkedRequest>,
    ) -> Result<Response<v1::DropParkedResponse>, Status> {
        let (Call { deadline, .. }, v1::DropParkedRequest { node, scope, key, confirm }) = Call::of(request)?;
        let missing =
            |field: &str, message: &str| Problem::invalid_argument(Reason::MissingField, field, message);
        if node.is_empty() {
            let message = "node is not set; set it to the node whose changes are to be dropped";
            return Err(missing("node", message).into());
        }
        let call = self.parked_call(&node, &scope, key, ParkedOp::Drop(None))?;
        if !confirm {
            let message = "confirm is not set; what is dropped cannot be had back: look at it with GetParked, try \
                           RetryParked, and set confirm if it is to go";
            return Err(missing("confirm", message).into());
        }
        let mut response = v1::DropParkedResponse {
            node,
            region: self.region.as_str().to_owned(),
            ..v1::DropParkedResponse::default()
        };
        response.complete = self
            .parked_steps(&call, deadline.give_up, ParkedOp::Drop, |step| {
                response.row_removed |= step.row_removed;
                for seen in &step.changes {
                    response.dropped_changes += 1;
                    response.dropped_bytes += seen.bytes;
                    if response.changes.len() < DESCRIBED_DROPS {
                        response.changes.push(change(seen));
                    }
                }
            })
            .await?;
        Ok(Response::new(response))
    }
}

impl Inner {
    /// Refuses a call that means another node.
    pub(super) fn addressed(&self, node: &str) -> Result<(), Problem> {
        if node.is_empty() || node == self.node.as_str() {
            return Ok(());
        }
        let message = format!("node {} is meant, and this is {}; ask that one", echo(node), self.node);
        Err(Problem::failed_precondition(Reason::WrongNode, message)
            .at("node")
            .with("node", self.node.as_str()))
    }

    /// A call to the replica, checked.
    fn parked_call(&self, node: &str, scope: &str, key: String, op: ParkedOp) -> Result<ParkedCall, Problem> {
        self.addressed(node)?;
        let scope = self.served("scope", scope)?.id.name;
        from_proto::key("key", &key)?;
        Ok(ParkedCall { scope, key, op })
    }

    /// One step of the replica.
    async fn parked_step(&self, call: ParkedCall) -> Result<Result<ParkedStep, ParkedError>, Problem> {
        let outcome = self.handle.parked(call).await;
        outcome.map_err(|error: CallError| write::call_refused(&error).unwrap_or_else(stopping))
    }

    /// Step after step; whether the last was reached in time.
    async fn parked_steps(
        &self,
        call: &ParkedCall,
        give_up: Instant,
        op: impl Fn(Option<Place>) -> ParkedOp,
        mut took: impl FnMut(&ParkedStep),
    ) -> Result<bool, Problem> {
        let mut from = None;
        loop {
            let step = match self.parked_step(ParkedCall { op: op(from), ..call.clone() }).await {
                Ok(Ok(step)) => step,
                // Between two steps the key began another life: what was kept went with the old one.
                Ok(Err(ParkedError::NotParked | ParkedError::NotFound)) if from.is_some() => return Ok(true),
                Ok(Err(error)) => return Err(refused(&error, self)),
                Err(_) if from.is_some() => {
                    return Err(Problem::outcome_unknown(
                        "the node stopped, or was too busy to go on, before it was done; repeat the call",
                    ));
                }
                Err(problem) => return Err(problem),
            };
            took(&step);
            match step.next {
                None => return Ok(true),
                Some(_) if Instant::now() >= give_up => return Ok(false),
                next => from = next,
            }
        }
    }

    /// What is kept of a key, as published after the last step.
    async fn what_is_kept(&self, call: &ParkedCall) -> Result<Option<v1::ParkedKey>, Problem> {
        let shard = self.served("scope", call.scope.as_str())?.shard(&call.key);
        let (published, call) = (self.handle.published(), call.clone());
        let kept = tokio::task::spawn_blocking(move || {
            let view = published.snapshot.as_ref();
            let row = view.value(shard, &call.key);
            let parked = ParkedKey::of(view, shard, &call.key, &row)?;
            Ok(parked.map(|parked| shown(&call.scope, &call.key, parked)))
        });
        kept.await.map_err(|_| stopping())?.map_err(unreadable)
    }
}

/// Why the replica did nothing, as an error.
fn refused(error: &ParkedError, node: &Inner) -> Problem {
    let message = format!("{error} (on node {})", node.node);
    match error {
        ParkedError::NoRule(_) => Problem::failed_precondition(Reason::NoRule, message).at("scope"),
        ParkedError::NotFound => Problem::not_found(Reason::KeyNotFound, message).at("key"),
        ParkedError::NotParked => Problem::failed_precondition(Reason::NotParked, message).at("key"),
        ParkedError::TooManyDropped => {
            Problem::resource_exhausted(Reason::Overloaded, "dropped_rows", DROPPED_ROWS as u64, message)
        }
        ParkedError::RowDamaged { .. } => Problem::failed_precondition(Reason::RowDamaged, message).at("key"),
    }
}

fn change(seen: &KeptSeen) -> v1::KeptChange {
    v1::KeptChange {
        origin: seen.made.map(|(origin, ..)| origin.to_string()).unwrap_or_default(),
        seq: seen.made.map_or(0, |(_, seq, _)| seq),
        stamp: seen.made.map_or(0, |(.., stamp)| stamp.as_u64()),
        life: seen.life,
        bytes: seen.bytes,
        since_ms: seen.since_ms.unwrap_or(0),
        problem: seen.problem.clone().unwrap_or_default(),
    }
}

fn shown(scope: &ScopeName, key: &str, parked: ParkedKey) -> v1::ParkedKey {
    let state = match parked.state {
        ParkedState::Refused => v1::ParkedState::ChangesRefused,
        ParkedState::RowDamaged => v1::ParkedState::RowDamaged,
        ParkedState::LeftOver => v1::ParkedState::LeftOver,
    };
    v1::ParkedKey {
        scope: scope.as_str().to_owned(),
        key: key.to_owned(),
        state: state.into(),
        life: parked.life,
        reason: parked.reason,
        kept_changes: parked.kept.changes,
        kept_bytes: parked.kept.bytes,
        since_ms: parked.kept.since_ms.unwrap_or(0),
    }
}

/// A shard in the order of the list.
type Listed = (ScopeName, u16, ShardId);

/// Where a page begins: the scope, its shard, and the first key there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    scope: ScopeName,
    index: u16,
    key: Vec<u8>,
}

impl Position {
    /// Scope, zero byte, index, key.
    fn encode(&self) -> Vec<u8> {
        let (scope, index) = (self.scope.as_str().as_bytes(), self.index.to_be_bytes());
        [scope, &[0], &index, &self.key].concat()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let read = || {
            let (scope, rest) = bytes.split_at_checked(bytes.iter().position(|byte| *byte == 0)?)?;
            let (index, key) = rest[1..].split_first_chunk::<2>()?;
            let scope = ScopeName::new(std::str::from_utf8(scope).ok()?).ok()?;
            Some(Self { scope, index: u16::from_be_bytes(*index), key: key.to_vec() })
        };
        read().ok_or(DecodeError::Invalid { what: "position", at: 0 })
    }
}

/// The shards to look at from a position on, in the order of the list, and whether there are more behind them.
fn shards(
    view: &dyn View,
    of_scope: Option<Vec<Listed>>,
    known: Option<Vec<ShardId>>,
    from: Option<&Position>,
) -> Result<(Vec<Listed>, bool), StoreError> {
    let behind =
        |scope: &ScopeName, index: u16| from.is_none_or(|from| (scope, index) >= (&from.scope, from.index));
    let mut listed: BTreeSet<Listed> = BTreeSet::new();
    let mut more = false;
    match (of_scope, known) {
        (Some(shards), known) => {
            let known: Option<BTreeSet<ShardId>> = known.map(|known| known.into_iter().collect());
            listed.extend(
                shards
                    .into_iter()
                    .filter(|(.., id)| known.as_ref().is_none_or(|known| known.contains(id)))
                    .filter(|(scope, index, _)| behind(scope, *index)),
            );
        }
        (None, Some(known)) => {
            for id in known {
                if let Some(ShardRow { scope, index, .. }) = view.shard(id)?
                    && behind(&scope.name, index)
                {
                    listed.insert((scope.name, index, id));
                }
            }
        }
        (None, None) => {
            for row in view.scan(Space::Shards, &[0], &[0xff; 3]) {
                let (name, row) = row?;
                if !matches!(ShardKey::decode(&name), Ok(ShardKey::Description(_))) {
                    continue;
                }
                let row = ShardRow::decode(&row)
                    .map_err(|problem| StoreError::Damaged { space: Space::Shards.name(), problem })?;
                if behind(&row.scope.name, row.index) {
                    let id = row.id();
                    listed.insert((row.scope.name, row.index, id));
                }
                if listed.len() > PAGE_SHARDS {
                    listed.pop_last();
                    more = true;
                }
            }
        }
    }
    Ok((listed.into_iter().collect(), more))
}

/// The parked keys of shards, and where the next page begins.
fn page(
    view: &dyn View,
    shards: &[Listed],
    more: bool,
    from: Option<Position>,
    (most, every_key): (usize, bool),
) -> Result<(Vec<v1::ParkedKey>, Option<Position>), StoreError> {
    let (mut keys, mut looked_at) = (Vec::new(), 0);
    for (scope, index, id) in shards {
        let at = |key: Vec<u8>| Position { scope: scope.clone(), index: *index, key };
        let prefix = shard_prefix(id);
        let start = match &from {
            Some(from) if from.scope == *scope && from.index == *index => [&prefix, &from.key[..]].concat(),
            _ => prefix.clone(),
        };
        for row in view.scan(Space::Values, &start, &after_prefix(&prefix)) {
            let (name, row) = row?;
            let key = &name[prefix.len()..];
            if keys.len() >= most || looked_at >= PAGE_ROWS {
                return Ok((keys, Some(at(key.to_vec()))));
            }
            looked_at += 1;
            let Ok(key) = std::str::from_utf8(key) else { continue }; // only checked texts are written
            let row = ValueRow::decode(&row)
                .map(Some)
                .map_err(|problem| StoreError::Damaged { space: Space::Values.name(), problem });
            let healthy = matches!(&row, Ok(Some(row)) if row.parked.is_none());
            if healthy && !every_key {
                continue;
            }
            if let Some(parked) = ParkedKey::of(view, *id, key, &row)? {
                looked_at += parked.kept.changes;
                keys.push(shown(scope, key, parked));
            }
        }
        // No key begins with this byte: behind the last shard, where more of them come.
        if more && shards.last().is_some_and(|last| last.2 == *id) {
            return Ok((keys, Some(at(vec![0xff]))));
        }
    }
    Ok((keys, None))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use super::*;

    #[test]
    fn a_position_comes_back_and_other_bytes_do_not() {
        let scope = ScopeName::new("shop/carts").unwrap();
        for key in ["", "k", "\u{e9}"] {
            let position = Position { scope: scope.clone(), index: 255, key: key.into() };
            assert_eq!(Position::decode(&position.encode()), Ok(position));
        }
        for bad in [&b""[..], b"shop", b"shop\0", b"shop\0\0", b"UPPER\0\0\0k", b"\0\0\0k"] {
            assert!(Position::decode(bad).is_err(), "{bad:?}");
        }
    }
}
