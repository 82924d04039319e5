//! Streams that resume by themselves: scans by their page token, watches by their resume token.

use std::collections::VecDeque;
use std::ops::{Range, RangeFull};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tonic::{Status, Streaming};
use tropism_wire::{Effect, Problem, Reason, error::RESUME_TOKEN, v1};

use crate::calls::{Calls, state};
use crate::connection::Node;
use crate::error::{Error, is_loss};
use crate::retry::Nature;
use crate::route::NodeNumber;
use crate::types::Entry;

/// How often in a row a stream may break without having brought anything.
const MAX_BREAKS: u32 = 5;
/// Pause before a broken stream is opened again, times the breaks in a row.
const PAUSE: Duration = Duration::from_millis(200);
/// A watch that is silent for this long is taken for lost: nodes tell something at least every 5 s.
const WATCH_SILENCE: Duration = Duration::from_secs(15);

/// What a scan reads. The default: everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanRange {
    /// Only keys that start with this.
    pub prefix: String,
    /// First key, inclusive; empty: from the first.
    pub start: String,
    /// Last key, exclusive; empty: to the last.
    pub end: String,
    /// Most entries; 0: all.
    pub limit: u64,
    /// Leaves values out.
    pub keys_only: bool,
}

/// Everything.
impl From<RangeFull> for ScanRange {
    fn from(_: RangeFull) -> Self {
        Self::default()
    }
}

/// Keys that start with this.
impl From<&str> for ScanRange {
    fn from(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..Self::default() }
    }
}

/// Keys from the first, inclusive, to the last, exclusive.
impl From<Range<&str>> for ScanRange {
    fn from(range: Range<&str>) -> Self {
        Self { start: range.start.to_owned(), end: range.end.to_owned(), ..Self::default() }
    }
}

/// The entries of a range, in byte order of their keys. Goes on at another node when its own fails; what it shows is then
/// of a later state.
#[derive(Debug)]
pub struct Scan {
    client: Calls,
    request: v1::ScanRequest,
    stream: Option<(Arc<Node>, Streaming<v1::ScanResponse>)>,
    entries: VecDeque<v1::Entry>,
    /// The last answer, whose token covers what was read.
    answer: Option<v1::Answer>,
    breaks: u32,
    done: bool,
}

impl Scan {
    pub(crate) fn new(client: Calls, scope: &str, range: ScanRange) -> Self {
        let request = v1::ScanRequest {
            scope: scope.to_owned(),
            prefix: range.prefix,
            start: range.start,
            end: range.end,
            limit: range.limit,
            keys_only: range.keys_only,
            page_token: Bytes::new(),
            token: client.token(),
        };
        Self { client, request, stream: None, entries: VecDeque::new(), answer: None, breaks: 0, done: false }
    }

    /// The next entry; none at the end.
    pub async fn next(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            if let Some(entry) = self.entries.pop_front() {
                return Ok(Some(Entry::from_proto(entry, "")));
            }
            if self.done {
                return Ok(None);
            }
            self.read().await?;
        }
    }

    /// Reads one message, or opens the stream, again if it broke.
    async fn read(&mut self) -> Result<(), Error> {
        let Some((node, stream)) = &mut self.stream else {
            let about = self.client.about(Nature::Stream, Some(&self.request.scope));
            let opened = self.client.nodes.call_at(about, &self.request, |channel, request| async move {
                state(channel).scan(request).await
            });
            self.stream = Some(opened.await?);
            return Ok(());
        };
        match timeout(self.client.timeout, stream.message()).await {
            Ok(Ok(Some(message))) => {
                self.breaks = 0;
                let count = message.entries.len() as u64;
                // What is left of the limit, should the stream break here; 0 would mean no limit.
                let limited = self.request.limit > 0;
                self.request.limit = self.request.limit.saturating_sub(count);
                self.done = limited && self.request.limit == 0;
                self.request.page_token = message.page_token;
                self.entries = message.entries.into();
                self.answer = message.answer.or(self.answer.take());
            }
            Ok(Ok(None)) => {
                // A node ends a long scan early; the page token says so.
                self.stream = None;
                self.done = self.request.page_token.is_empty();
            }
            Ok(Err(status)) => {
                self.client.nodes.broken(node, &status);
                pause(&mut self.breaks, &node.endpoint, &status).await?;
                self.stream = None;
            }
            Err(_) => {
                let (endpoint, timeout) = (node.endpoint.clone(), self.client.timeout);
                return Err(Error::TimedOut { endpoint, timeout, effect: Effect::None });
            }
        }
        if self.done {
            self.stream = None;
            self.client.keep(self.answer.take());
        }
        Ok(())
    }
}

/// What a watch looks at in its scope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum WatchTarget {
    /// All of it.
    #[default]
    Scope,
    /// One key.
    Key(String),
    /// Keys that start with this.
    Prefix(String),
}

/// All of the scope.
impl From<RangeFull> for WatchTarget {
    fn from(_: RangeFull) -> Self {
        Self::Scope
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// A key was written; the entry shows it after the change.
    Put,
    /// A key was deleted.
    Delete,
    /// A key's expiry passed.
    Expire,
    /// The log does not reach back: forget what you know, the current values follow.
    Reset,
    /// A current value, after a reset or because they were asked for.
    Value,
    /// The current values, or what was missed, have all been sent.
    Current,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// What happened.
    pub happening: Happening,
    /// The key and its state; none for [`Happening::Reset`] and [`Happening::Current`].
    pub entry: Option<Entry>,
    /// Region of the node that made the change; empty for values and markers.
    pub region: String,
    /// Node that made the change; empty for values and markers.
    pub node: String,
}

/// Some events, and where a watch goes on after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchMessage {
    /// Events in order; may be empty.
    pub events: Vec<WatchEvent>,
    /// Stands after them, good at every member.
    pub resume_token: Bytes,
    /// Everything acknowledged in other serving regions longer ago than this was sent, milliseconds.
    pub staleness_ms: u64,
}

/// A watch that goes on at another node when its own fails, and at a nearer one when there is one, without a gap.
#[derive(Debug)]
pub struct Watch {
    client: Calls,
    request: v1::WatchRequest,
    stream: Option<(Arc<Node>, Streaming<v1::WatchResponse>)>,
    /// What is there has been told, so that the resume token is all that another node has to know.
    current: bool,
    breaks: u32,
}

impl Watch {
    pub(crate) fn new(
        client: Calls,
        scope: &str,
        target: WatchTarget,
        initial_values: bool,
        resume_token: Bytes,
    ) -> Self {
        use v1::watch_request::Target;
        let request = v1::WatchRequest {
            scope: scope.to_owned(),
            target: match target {
                WatchTarget::Scope => None,
                WatchTarget::Key(key) => Some(Target::Key(key)),
                WatchTarget::Prefix(prefix) => Some(Target::Prefix(prefix)),
            },
            initial_values: initial_values && resume_token.is_empty(),
            resume_token,
            token: client.token(),
        };
        Self { client, request, stream: None, current: false, breaks: 0 }
    }

    /// Where the watch stands; empty before its first message.
    pub fn resume_token(&self) -> &Bytes {
        &self.request.resume_token
    }

    /// The node that the last message came from, as long as the watch stays there.
    pub(crate) fn told_by(&self) -> Option<NodeNumber> {
        self.stream.as_ref().map(|(node, _)| node.number)
    }

    /// Waits for the next message. Safe to drop while it waits.
    pub async fn next(&mut self) -> Result<WatchMessage, Error> {
        loop {
            let Some((node, stream)) = &mut self.stream else {
                self.open().await?;
                continue;
            };
            let node = node.clone();
            let status = match timeout(WATCH_SILENCE, stream.message()).await {
                Ok(Ok(Some(message))) => {
                    self.breaks = 0;
                    self.request.resume_token = message.resume_token.clone();
                    let message = WatchMessage::from(message);
                    self.follow(&message, &node);
                    return Ok(message);
                }
                Ok(Ok(None)) => Status::unavailable("the node ended the watch"),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable("the node fell silent"),
            };
            self.client.nodes.broken(&node, &status);
            self.stream = None;
            // A watch that read too slowly goes on from the token it is told.
            let told = Problem::from_status(&status).and_then(|problem| problem.fact_bytes(RESUME_TOKEN));
            if let Some(token) = told {
                self.request.resume_token = token.into();
            }
            pause(&mut self.breaks, &node.endpoint, &status).await?;
        }
    }

    /// Leaves for another node if that is where a new watch would go. A node says something at least every 5 s, so this is
    /// asked as often.
    fn follow(&mut self, message: &WatchMessage, node: &Node) {
        for event in &message.events {
            match event.happening {
                Happening::Current => self.current = true,
                Happening::Reset => self.current = false,
                _ => {}
            }
        }
        let about = self.client.about(Nature::Stream, Some(&self.request.scope));
        if self.current && !self.request.resume_token.is_empty() && self.client.nodes.nearer(about, node) {
            self.stream = None;
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let about = self.client.about(Nature::Stream, Some(&self.request.scope));
        let opened = self.client.nodes.call_at(about, &self.request, |channel, request| async move {
            state(channel).watch(request).await
        });
        self.stream = Some(opened.await?);
        Ok(())
    }
}

impl From<v1::WatchResponse> for WatchMessage {
    fn from(message: v1::WatchResponse) -> Self {
        let v1::WatchResponse { events, resume_token, staleness_ms } = message;
        Self { events: events.into_iter().filter_map(event).collect(), resume_token, staleness_ms }
    }
}

/// An event; none when its type is of a later version of the node.
fn event(event: v1::WatchEvent) -> Option<WatchEvent> {
    use v1::WatchEventType as Type;
    let happening = match event.r#type() {
        Type::Put => Happening::Put,
        Type::Delete => Happening::Delete,
        Type::Expire => Happening::Expire,
        Type::Reset => Happening::Reset,
        Type::Value => Happening::Value,
        Type::Current => Happening::Current,
        Type::Unspecified => return None,
    };
    let entry = event.entry.map(|entry| Entry::from_proto(entry, ""));
    Some(WatchEvent { happening, entry, region: event.region, node: event.node })
}

/// Waits a little after a break that opening the stream again may mend; any other is the error.
async fn pause(breaks: &mut u32, endpoint: &str, status: &Status) -> Result<(), Error> {
    *breaks += 1;
    let mendable = match Reason::of(status) {
        Some(reason) => reason == Reason::SlowReader || reason.code() == tonic::Code::Unavailable,
        None => is_loss(status.code()),
    };
    if !mendable || *breaks > MAX_BREAKS {
        return Err(Error::from_status(endpoint, status, Effect::None));
    }
    sleep(PAUSE * (*breaks - 1)).await;
    Ok(())
}
