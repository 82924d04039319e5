//! The past of keys: `HistoryService`. All of it is read from the published state, on a thread that may block: a long
//! history takes tens of milliseconds to read and tens of MiB while it is read, so few are read at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status, async_trait};
use tropism_crdt::codec::{DecodeError, Reader};
use tropism_crdt::document::{Document, Heads, Made, Order, heads_until};
use tropism_crdt::{Content, Origin};
use tropism_placement::{Kind, ShardId};
use tropism_replica::{HistoryError, StoredHistory, document_heads, document_version, version_of};
use tropism_storage::{Reads, StoreError, ValueRow};
use tropism_wire::limits::{DEFAULT_PAGE_HISTORY, MAX_PAGE_HISTORY};
use tropism_wire::v1::history_service_server::HistoryService;
use tropism_wire::{Problem, Reason, from_proto, to_proto, v1};

use super::admission::SHED_RETRY;
use super::{Api, Call, Inner, Served, conflicts, stopping, unreadable, value};
use crate::driver::{Published, wall_ms};

/// Histories that are read at once: each some 20 MiB and 200 ms of one core where it is as long as the policy's default
/// allows.
pub(super) const CONCURRENT_HISTORIES: usize = 4;

/// Answers a call here, or has it answered where its scope is served.
macro_rules! wherever {
    ($api:ident, $request:ident, $here:ident, $method:ident) => {
        $api.wherever(
            $request,
            |request| $api.$here(request),
            |route, request| async move {
                route
                    .history(request, |mut client, request| async move { client.$method(request).await })
                    .await
            },
        )
        .await
    };
}

#[async_trait]
impl HistoryService for Api {
    async fn get_history(
        &self,
        request: Request<v1::GetHistoryRequest>,
    ) -> Result<Response<v1::GetHistoryResponse>, Status> {
        wherever!(self, request, get_history_here, get_history)
    }

    async fn get_at(
        &self,
        request: Request<v1::GetAtRequest>,
    ) -> Result<Response<v1::GetAtResponse>, Status> {
        wherever!(self, request, get_at_here, get_at)
    }

    async fn list_conflicts(
        &self,
        request: Request<v1::ListConflictsRequest>,
    ) -> Result<Response<v1::ListConflictsResponse>, Status> {
        wherever!(self, request, list_conflicts_here, list_conflicts)
    }
}

/// The calls, of scopes that are served here.
impl Api {
    async fn get_history_here(
        &self,
        request: Request<v1::GetHistoryRequest>,
    ) -> Result<Response<v1::GetHistoryResponse>, Status> {
        let (call, v1::GetHistoryRequest { scope, key, token, page_size, page_token }) = Call::of(request)?;
        let scope = self.served("scope", &scope)?;
        from_proto::key("key", &key)?;
        let most = page_size_of(page_size, DEFAULT_PAGE_HISTORY, MAX_PAGE_HISTORY)?;
        let pages = self.seal.of(&["history", scope.id.name.as_str(), &key]);
        let from = match page_token.as_ref() {
            [] => None,
            token => Some(pages.open(token).and_then(place_of).map_err(|error| {
                let message =
                    format!("page_token is none of this key's history: {error}; send the same scope and key");
                Problem::invalid_argument(Reason::BadPageToken, "page_token", message)
            })?),
        };
        let (published, row, seen) = self.row_of(&call, &scope, &key, &token).await?;
        let Some(row) = row else {
            let message = format!("nothing is known of the key in scope \"{}\"", scope.id.name);
            return Err(Problem::not_found(Reason::KeyNotFound, message).at("key").into());
        };
        let mut response = v1::GetHistoryResponse {
            kind: to_proto::kind(scope.kind).into(),
            life: row.cell.life,
            version: version_of(&row.cell),
            visible: row.cell.visible(wall_ms()),
            deleted_stamp: row.cell.deleted_at.map_or(0, |stamp| stamp.as_u64()),
            last_stamp: row.cell.written.map_or(0, |(stamp, _)| stamp.as_u64()),
            last_origin: row.cell.written.map(|(_, origin)| origin.to_string()).unwrap_or_default(),
            answer: Some(self.answer(&scope.serving, &published, seen)),
            ..v1::GetHistoryResponse::default()
        };
        match scope.kind {
            Kind::Document => {
                let permit = self.history_permit()?;
                let (shard, api) = (scope.shard(&key), self.clone());
                let page = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    api.document_page(&published, shard, &key, &row, (from, most))
                });
                let page = page.await.map_err(|_| stopping())??;
                let Page { changes, next, total, bytes } = page;
                (response.changes, response.total_changes, response.history_bytes) = (changes, total, bytes);
                response.next_page_token =
                    next.map_or_else(Bytes::new, |order| pages.close(&place_bytes(&order)));
            }
            Kind::Register => {
                response.changes = self.last_write(&row).into_iter().collect();
                response.total_changes = response.changes.len() as u64;
            }
            Kind::Counter => {
                if let Content::Counter(counter) = &row.cell.content {
                    let share = |(origin, added): (Origin, Option<i128>)| v1::CounterShare {
                        origin: origin.to_string(),
                        node: origin.node.to_string(),
                        region: self.region_of(&origin),
                        added: added.map_or_else(|| "beyond 128 bits".to_owned(), |added| added.to_string()),
                    };
                    response.shares = counter.shares().map(share).collect();
                }
            }
        }
        Ok(Response::new(response))
    }

    async fn get_at_here(
        &self,
        request: Request<v1::GetAtRequest>,
    ) -> Result<Response<v1::GetAtResponse>, Status> {
        let (call, v1::GetAtRequest { scope, key, token, at }) = Call::of(request)?;
        let scope = self.served("scope", &scope)?;
        from_proto::key("key", &key)?;
        let at = When::of(at)?;
        let (published, row, seen) = self.row_of(&call, &scope, &key, &token).await?;
        let answer = Some(self.answer(&scope.serving, &published, seen));
        let Some(row) = row else {
            if let When::Version(_) = at {
                return Err(unknown_version().into());
            }
            return Ok(Response::new(v1::GetAtResponse { entry: None, answer }));
        };
        let entry = if scope.kind == Kind::Document {
            let permit = self.history_permit()?;
            let shard = scope.shard(&key);
            let entry = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                document_at(&published, shard, &key, &row, &at)
            });
            entry.await.map_err(|_| stopping())??
        } else {
            last_at(scope.kind, row, &at)?
        };
        Ok(Response::new(v1::GetAtResponse { entry, answer }))
    }

    async fn list_conflicts_here(
        &self,
        request: Request<v1::ListConflictsRequest>,
    ) -> Result<Response<v1::ListConflictsResponse>, Status> {
        Ok(Response::new(conflicts::list(self, request).await?))
    }
}

/// Which state of a key is asked for.
#[derive(Debug)]
enum When {
    Version(Bytes),
    Until(u64),
}

impl When {
    fn of(at: Option<v1::get_at_request::At>) -> Result<Self, Problem> {
        use v1::get_at_request::At;
        match at {
            None => {
                let message = "at is not set; set version, or time_ms";
                Err(Problem::invalid_argument(Reason::MissingField, "at", message))
            }
            Some(At::Version(version)) if version.is_empty() => {
                let message = "version is empty; a version is what GetHistory and Get answer";
                Err(Problem::invalid_argument(Reason::BadVersion, "version", message))
            }
            Some(At::Version(version)) => Ok(Self::Version(version)),
            Some(At::TimeMs(time_ms)) => {
                let now = wall_ms();
                if time_ms > now {
                    let message = format!(
                        "time_ms is {time_ms}, which is yet to come: it is {now} (Unix milliseconds)"
                    );
                    return Err(Problem::invalid_argument(Reason::BadNumber, "time_ms", message));
                }
                Ok(Self::Until(time_ms))
            }
        }
    }
}

/// A page of a document's history.
struct Page {
    changes: Vec<v1::KeyChange>,
    next: Option<Order>,
    total: u64,
    bytes: u64,
}

impl Inner {
    /// A key's row as a session may see it, with what was read and the session's token after it.
    async fn row_of(
        &self,
        call: &Call,
        scope: &Served<'_>,
        key: &str,
        token: &Bytes,
    ) -> Result<(Arc<Published>, Option<ValueRow>, Bytes), Problem> {
        let mut token = self.token("token", token, call)?;
        let shard = scope.shard(key);
        let wanted = [(shard, key.to_owned())];
        let published = self.readable(scope, &token, &[shard], Some(&wanted), call.deadline).await?;
        let row = published.snapshot.value(shard, key).map_err(unreadable)?;
        if let Some(row) = &row {
            token.saw(shard, row, published.stable_commit);
            if let Some(parked) = &row.parked {
                return Err(value::parked(parked));
            }
        }
        let seen = self.seen(token, &published);
        Ok((published, row, seen))
    }

    /// A place among the histories that are read at once.
    pub(super) fn history_permit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.histories.clone().try_acquire_owned().map_err(|_| {
            self.histories_refused.fetch_add(1, Ordering::Relaxed);
            let most = CONCURRENT_HISTORIES as u64;
            let message =
                format!("the node is busy: {CONCURRENT_HISTORIES} histories are being read already");
            Problem::resource_exhausted(Reason::Overloaded, "concurrent_histories", most, message)
                .retry_after(SHED_RETRY)
        })
    }

    /// The region of an author; empty when its node is not known here.
    pub(super) fn region_of(&self, origin: &Origin) -> String {
        self.homes.get(&origin.node).map(|region| region.as_str().to_owned()).unwrap_or_default()
    }

    fn document_page(
        &self,
        published: &Published,
        shard: ShardId,
        key: &str,
        row: &ValueRow,
        (from, most): (Option<Order>, usize),
    ) -> Result<Page, Problem> {
        let life = row.cell.life;
        let (mut document, bytes) = open(published, shard, key, row)?;
        let made = document.made_changes().map_err(|error| damaged(&error.into()))?;
        let heads = document.heads();
        let shown: Vec<&Made> =
            made.iter().filter(|made| from.is_none_or(|from| made.order() < from)).take(most + 1).collect();
        let next = shown.get(most).map(|_| shown[most - 1].order());
        let version = |hash| document_version(life, &Heads::from_hashes(vec![hash]));
        let change = |made: &&Made| v1::KeyChange {
            version: version(made.hash),
            origin: made.origin.map(|origin| origin.to_string()).unwrap_or_default(),
            node: made.origin.map(|origin| origin.node.to_string()).unwrap_or_default(),
            region: made.origin.map(|origin| self.region_of(&origin)).unwrap_or_default(),
            time_ms: u64::try_from(made.time_seconds).unwrap_or(0).saturating_mul(1_000),
            stamp: 0,
            operations: made.operations,
            bytes: document.change_bytes(made.hash).unwrap_or(0) as u64,
            on: made.on.hashes().iter().map(|hash| version(*hash)).collect(),
            newest: heads.hashes().contains(&made.hash),
        };
        let changes = shown.iter().take(most).map(change).collect();
        Ok(Page { changes, next, total: made.len() as u64, bytes: bytes as u64 })
    }

    /// The write that a register shows.
    fn last_write(&self, row: &ValueRow) -> Option<v1::KeyChange> {
        let (stamp, origin) = row.cell.written?;
        let Content::Register(register) = &row.cell.content else { return None };
        Some(v1::KeyChange {
            version: version_of(&row.cell),
            origin: origin.to_string(),
            node: origin.node.to_string(),
            region: self.region_of(&origin),
            time_ms: stamp.unix_ms(),
            stamp: stamp.as_u64(),
            operations: 1,
            bytes: register.bytes.len() as u64,
            on: Vec::new(),
            newest: true,
        })
    }
}

/// A document with its history, and the bytes of that. It must be what the row says.
pub(super) fn open(
    published: &Published,
    shard: ShardId,
    key: &str,
    row: &ValueRow,
) -> Result<(Document, usize), Problem> {
    let stored = StoredHistory::read(published.snapshot.as_ref(), shard, key, row.cell.life);
    let stored = stored.map_err(unreadable)?;
    let document = stored.open().map_err(|error| damaged(&error.into()))?;
    if let Content::Document { heads, .. } = &row.cell.content
        && document.heads().hashes() != heads.as_slice()
    {
        let message =
            "the history that is stored of the key is not that of its value; another member may have it";
        return Err(Problem::data_loss(Reason::KeyParked, message).at("key"));
    }
    Ok((document, stored.bytes()))
}

/// A document as it was.
fn document_at(
    published: &Published,
    shard: ShardId,
    key: &str,
    row: &ValueRow,
    at: &When,
) -> Result<Option<v1::Entry>, Problem> {
    let life = row.cell.life;
    let (mut document, _) = open(published, shard, key, row)?;
    let heads = match at {
        When::Version(version) => {
            let (of, heads) = document_heads(version).map_err(|error| {
                let message = format!("version is none of this key: {error}");
                Problem::invalid_argument(Reason::BadVersion, "version", message)
            })?;
            if of < life {
                return Err(earlier_life("version", life));
            }
            if of > life {
                return Err(unknown_version());
            }
            heads
        }
        When::Until(time_ms) => {
            let made = document.made_changes().map_err(|error| damaged(&error.into()))?;
            let seconds = i64::try_from(time_ms / 1_000).unwrap_or(i64::MAX);
            let heads = heads_until(&made, seconds);
            if heads.hashes().is_empty() && life > 0 {
                return Err(earlier_life("time_ms", life));
            }
            if heads.hashes().is_empty() || was_deleted(row, &made, *time_ms) {
                return Ok(None); // not written yet, or deleted and not written since
            }
            heads
        }
    };
    let json = document.canonical_at(&heads).ok_or_else(unknown_version)?;
    let content = Content::Document { heads: heads.hashes().to_vec(), json: json.into() };
    Ok(Some(v1::Entry {
        value: Some(v1::Value { value: Some(value::value(content)?) }),
        version: document_version(life, &heads),
        ..v1::Entry::default()
    }))
}

/// Whether the last delete of the life was before a time, and no write between. Of writes only the second is known, but
/// for the last one: of those in the second of the delete it alone counts as later.
fn was_deleted(row: &ValueRow, made: &[Made], time_ms: u64) -> bool {
    let Some(deleted) = row.cell.deleted_at.filter(|deleted| deleted.unix_ms() <= time_ms) else {
        return false;
    };
    let seconds = |ms: u64| i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    let between = seconds(deleted.unix_ms()) + 1..=seconds(time_ms);
    let last = row.cell.written.is_some_and(|(stamp, _)| stamp > deleted && stamp.unix_ms() <= time_ms);
    !last && !made.iter().any(|made| between.contains(&made.time_seconds))
}

/// A register or counter as it was, if it still is.
fn last_at(kind: Kind, row: ValueRow, at: &When) -> Result<Option<v1::Entry>, Problem> {
    let visible = row.cell.visible(wall_ms());
    let same = match at {
        When::Version(version) => visible && *version == version_of(&row.cell),
        When::Until(time_ms) => row.cell.last_stamp().unix_ms() <= *time_ms,
    };
    if !same {
        let message = format!(
            "a {kind} keeps only what it shows now, last changed at {} (Unix milliseconds); documents keep their history",
            row.cell.last_stamp().unix_ms()
        );
        return Err(Problem::failed_precondition(Reason::NoHistory, message).at("at"));
    }
    if !visible {
        return Ok(None);
    }
    value::entry(String::new(), row, false).map(Some)
}

/// A number of items of a page, checked.
pub(super) fn page_size_of(page_size: u32, default: u32, most: u32) -> Result<usize, Problem> {
    match page_size {
        0 => Ok(default as usize),
        size if size <= most => Ok(size as usize),
        _ => {
            let message = format!("page_size is {page_size}; the limit is {most}");
            Err(Problem::invalid_argument(Reason::BadNumber, "page_size", message))
        }
    }
}

fn unknown_version() -> Problem {
    let message = "the version is not known here: it has not arrived yet, or is none of this key";
    Problem::failed_precondition(Reason::UnknownBase, message).at("version")
}

fn earlier_life(field: &str, life: u64) -> Problem {
    let message = format!(
        "{field} is before the key was created anew (for the {life}. time); what a key was before it was deleted is not kept"
    );
    Problem::failed_precondition(Reason::EarlierLife, message).at(field)
}

/// A history cannot be read.
pub(super) fn damaged(error: &HistoryError) -> Problem {
    match error {
        HistoryError::Store(StoreError::Engine(error)) => unreadable(StoreError::Engine(error.clone())),
        error => {
            let message = format!("the history that is stored of the key cannot be read: {error}");
            Problem::data_loss(Reason::KeyParked, message).at("key")
        }
    }
}

fn place_bytes(order: &Order) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    out.extend_from_slice(&order.time_seconds.to_be_bytes());
    out.extend_from_slice(&order.first_op.to_be_bytes());
    out.extend_from_slice(&order.hash);
    out
}

fn place_of(bytes: &[u8]) -> Result<Order, DecodeError> {
    let mut r = Reader::new(bytes);
    let order = Order {
        time_seconds: i64::from_be_bytes(r.array("time")?),
        first_op: r.u64("operation")?,
        hash: r.array("hash")?,
    };
    r.finish()?;
    Ok(order)
}
