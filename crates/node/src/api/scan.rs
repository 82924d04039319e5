//! Ranges of keys, in portions: the shards of a scope merged into one order.
//!
//! Each portion opens the range anew where the last one ended, on a thread that may block, and becomes one message. So a
//! reader who takes its time holds a few hundred KiB and no thread, and nothing is read that nobody waits for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};
use tropism_placement::{Access, MAX_KEY_BYTES, RegionName, ScopeName, ShardId};
use tropism_storage::keys::{after_prefix, shard_prefix};
use tropism_storage::rows::{Row, ValueRow};
use tropism_storage::{Reads, Space, StoreError, View};
use tropism_wire::error::echo;
use tropism_wire::{Problem, Reason, v1};

use super::admission::SHED_RETRY;
use super::{Api, CONCURRENT_SCANS, Call, Served, forget_stable, stopping, unreadable, value};
use crate::driver::{Published, wall_ms};
use crate::token::Seal;

/// Most entries of a message.
pub(super) const MESSAGE_ENTRIES: usize = 500;
/// Most bytes of a message, unless its only entry has more: what a slow link carries in a moment.
pub(super) const MESSAGE_BYTES: usize = 256 << 10;
/// Rows looked at for one portion, most of which may be invisible: some milliseconds.
const PORTION_ROWS: usize = 5_000;
/// How long a scan reads from one state, so that the store may forget what was overwritten since: the client goes on
/// from the page token with a newer one.
const ONE_STATE: Duration = Duration::from_secs(30);
/// Messages ready for a reader beside the one being made.
const READY_MESSAGES: usize = 1;

/// Keys from `start` on and before `end`, of some shards.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) shards: Vec<ShardId>,
    start: Vec<u8>,
    /// `None`: to the last.
    end: Option<Vec<u8>>,
}

impl Range {
    /// Keys that begin with `prefix`; all when it is empty.
    pub(super) fn prefix(shards: Vec<ShardId>, prefix: &str) -> Self {
        let end = (!prefix.is_empty()).then(|| after_prefix(prefix.as_bytes()));
        Self { shards, start: prefix.as_bytes().to_vec(), end }
    }

    /// One key.
    pub(super) fn key(shard: ShardId, key: &str) -> Self {
        Self { shards: vec![shard], start: key.as_bytes().to_vec(), end: Some(after(key.as_bytes())) }
    }

    /// Where it begins.
    pub(super) fn start(&self) -> Vec<u8> {
        self.start.clone()
    }

    /// The range of a request, checked.
    fn of(scope: &Served<'_>, request: &v1::ScanRequest) -> Result<Self, Problem> {
        let v1::ScanRequest { prefix, start, end, .. } = request;
        for (field, text) in [("prefix", prefix), ("start", start), ("end", end)] {
            check_text(field, text)?;
        }
        if !end.is_empty() && start > end {
            let message = format!("end {} is below start {}", echo(end), echo(start));
            return Err(Problem::invalid_argument(Reason::BadRange, "end", message));
        }
        let mut range = Self::prefix(scope.shards(), prefix);
        range.start = range.start.max(start.as_bytes().to_vec());
        if !end.is_empty() {
            let end = end.as_bytes().to_vec();
            range.end = Some(range.end.map_or(end.clone(), |of_prefix| of_prefix.min(end)));
        }
        Ok(range)
    }
}

/// Checks a part of a key.
pub(super) fn check_text(field: &str, text: &str) -> Result<(), Problem> {
    if text.len() <= MAX_KEY_BYTES {
        return Ok(());
    }
    let message =
        format!("{field} {} has {} bytes; a key has at most {MAX_KEY_BYTES}", echo(text), text.len());
    Err(Problem::invalid_argument(Reason::BadKey, field, message))
}

/// The first possible key behind a key: no key has a zero byte.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Some of a range.
pub(super) struct Portion {
    pub(super) entries: Vec<v1::Entry>,
    /// Where to go on; `None` at the end of the range.
    pub(super) next: Option<Vec<u8>>,
}

/// Reads at most `most` entries of a range from `from` on.
pub(super) fn read(
    snapshot: &dyn View,
    range: &Range,
    from: &[u8],
    most: usize,
    keys_only: bool,
) -> Result<Portion, StoreError> {
    let now_ms = wall_ms();
    let mut shards = Vec::with_capacity(range.shards.len());
    let mut heads = BinaryHeap::with_capacity(range.shards.len());
    for (index, shard) in range.shards.iter().enumerate() {
        let prefix = shard_prefix(shard);
        let start = [&prefix, from].concat();
        let end = match &range.end {
            Some(end) => [&prefix, end.as_slice()].concat(),
            None => after_prefix(&prefix),
        };
        let mut rows = snapshot
            .scan(Space::Values, &start, &end)
            .map(move |row| row.map(|(key, row)| (key.slice(prefix.len()..), row)));
        if let Some(row) = rows.next() {
            let (key, row) = row?;
            heads.push(Reverse((key, index, row)));
        }
        shards.push(rows);
    }
    let mut portion = Portion { entries: Vec::new(), next: None };
    let (mut bytes, mut looked_at) = (0, 0);
    while let Some(Reverse((key, index, row))) = heads.pop() {
        if portion.entries.len() >= most || looked_at >= PORTION_ROWS {
            portion.next = Some(key.to_vec());
            break;
        }
        looked_at += 1;
        if let Some(entry) = visible(&key, &row, now_ms, keys_only) {
            bytes += entry.encoded_len();
            if bytes > MESSAGE_BYTES && !portion.entries.is_empty() {
                portion.next = Some(key.to_vec());
                break;
            }
            portion.entries.push(entry);
        }
        if let Some(row) = shards[index].next() {
            let (key, row) = row?;
            heads.push(Reverse((key, index, row)));
        }
    }
    Ok(portion)
}

/// The entry of a row, if its key is visible.
fn visible(key: &Bytes, row: &Bytes, now_ms: u64, keys_only: bool) -> Option<v1::Entry> {
    let key = String::from_utf8_lossy(key).into_owned(); // only checked texts are written
    let row = match ValueRow::decode(row) {
        Ok(row) => row,
        Err(problem) => {
            let error = StoreError::Damaged { space: Space::Values.name(), problem };
            return Some(value::failed(key, &unreadable(error)));
        }
    };
    if row.parked.is_none() && !row.cell.visible(now_ms) {
        return None;
    }
    let name = key.clone();
    Some(value::entry(key, row, keys_only).unwrap_or_else(|problem| value::failed(name, &problem)))
}

/// A scan under way.
struct Scan {
    api: Api,
    serving: Vec<RegionName>,
    published: Arc<Published>,
    range: Range,
    /// Entries that may still be sent.
    left: u64,
    keys_only: bool,
    token: Bytes,
    pages: Seal,
    messages: mpsc::Sender<Result<v1::ScanResponse, Status>>,
    /// What each message counts for: the scope, and the region that the call arrived in.
    counted: (ScopeName, u8),
    _permit: OwnedSemaphorePermit,
}

/// Checks a request and starts sending what it asks for.
pub(super) async fn start(
    api: &Api,
    request: Request<v1::ScanRequest>,
) -> Result<ReceiverStream<Result<v1::ScanResponse, Status>>, Problem> {
    let (call, request) = Call::of(request)?;
    let scope = api.served("scope", &request.scope)?;
    let range = Range::of(&scope, &request)?;
    let name = scope.id.name.as_str();
    let pages = api.seal.of(&["page", name, &request.prefix, &request.start, &request.end]);
    let from = match request.page_token.as_ref() {
        [] => range.start(),
        token => position(pages, token)?.max(range.start()),
    };
    let mut token = api.token("token", &request.token, &call)?;
    let published = api.readable(&scope, &token, &range.shards, None, call.deadline).await?;
    for shard in &range.shards {
        token.set(*shard, published.snapshot.vector(*shard).map_err(unreadable)?);
    }
    forget_stable(&mut token, &published).map_err(unreadable)?;
    let permit = api.scans.clone().try_acquire_owned().map_err(|_| {
        api.scans_refused.fetch_add(1, Ordering::Relaxed);
        let message = format!("the node is busy: {CONCURRENT_SCANS} scans run already");
        Problem::resource_exhausted(Reason::Overloaded, "concurrent_scans", CONCURRENT_SCANS as u64, message)
            .retry_after(SHED_RETRY)
    })?;
    let (messages, receiver) = mpsc::channel(READY_MESSAGES);
    let scan = Scan {
        api: api.clone(),
        serving: scope.serving.to_vec(),
        published,
        range,
        left: if request.limit == 0 { u64::MAX } else { request.limit },
        keys_only: request.keys_only,
        token: api.seal.token(&token),
        pages,
        messages,
        counted: (scope.id.name.clone(), api.placement.arrived(&call.metadata)),
        _permit: permit,
    };
    tokio::spawn(scan.run(from));
    Ok(ReceiverStream::new(receiver))
}

/// Where a page token goes on.
fn position(pages: Seal, token: &[u8]) -> Result<Vec<u8>, Problem> {
    pages.open(token).map(<[u8]>::to_vec).map_err(|error| {
        let message =
            format!("page_token is none of this range: {error}; send the same scope, prefix, start and end");
        Problem::invalid_argument(Reason::BadPageToken, "page_token", message)
    })
}

impl Scan {
    async fn run(mut self, mut from: Vec<u8>) {
        let end = Instant::now() + ONE_STATE;
        loop {
            let (published, range, keys_only) = (self.published.clone(), self.range.clone(), self.keys_only);
            let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(MESSAGE_ENTRIES);
            let portion = tokio::task::spawn_blocking(move || {
                read(published.snapshot.as_ref(), &range, &from, most, keys_only)
            });
            let portion = match portion.await {
                Ok(portion) => portion.map_err(unreadable),
                Err(_) => Err(stopping()),
            };
            let portion = match portion {
                Ok(portion) => portion,
                Err(problem) => {
                    self.messages.send(Err(problem.into())).await.ok(); // the client may have gone
                    return;
                }
            };
            self.left -= portion.entries.len() as u64; // at most `left` were asked for
            let last = portion.next.is_none() || self.left == 0 || Instant::now() >= end;
            if !portion.entries.is_empty() || last {
                let message = self.message(portion.entries, portion.next.as_deref());
                let (scope, region) = &self.counted;
                self.api.placement.count(scope, *region, Access::Read, message.encoded_len());
                let sent = timeout_at(end.max(Instant::now() + SHED_RETRY), self.messages.send(Ok(message)));
                match sent.await {
                    Ok(Ok(())) if !last => {}
                    _ => return, // the end, or nobody reads: the last message that was read says where to go on
                }
            }
            match portion.next {
                Some(next) => from = next,
                None => return,
            }
        }
    }

    fn message(&self, entries: Vec<v1::Entry>, next: Option<&[u8]>) -> v1::ScanResponse {
        v1::ScanResponse {
            entries,
            page_token: next.map_or_else(Bytes::new, |next| self.pages.close(next)),
            answer: Some(self.api.answer(&self.serving, &self.published, self.token.clone())),
        }
    }
}
