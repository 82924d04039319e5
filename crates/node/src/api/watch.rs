//! A watch: first what was missed or what is there, then the changes as they come.
//!
//! What a watch has told is a vector per shard. It never tells twice what that includes, and going on after any break is
//! reading the log from there: after a resume, and after its queue ran over while it was still catching up. Where the log
//! does not reach back, the watch says `RESET` and tells the current values.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};
use tropism_crdt::{Change, Stamp, Vector};
use tropism_placement::{Access, RegionName, ScopeId, ShardId};
use tropism_storage::{LogKey, Reads, Space, StoreError, View};
use tropism_wire::error::RESUME_TOKEN;
use tropism_wire::v1::{self, WatchEventType};
use tropism_wire::{Problem, Reason, from_proto};

use super::hub::{Delivery, Next, PASS_CHANGES, Subscription, Target, changed_keys, state_of};
use super::scan::{self, MESSAGE_BYTES, MESSAGE_ENTRIES, Range, check_text};
use super::{Api, Call, stopping, unreadable};
use crate::driver::{Published, wall_ms};
use crate::token::{Seal, Token};

/// Longest resume token in bytes: 256 shards that a hundred origins wrote to.
const MAX_RESUME_TOKEN_BYTES: usize = 1 << 20;
/// A message is sent at least this often.
const IDLE: Duration = Duration::from_secs(5);
/// A reader that takes nothing for this long is ended.
const STALLED: Duration = Duration::from_secs(60);
/// Messages ready for a reader: one, and a place kept for why the watch ends.
const READY_MESSAGES: usize = 2;
/// Keys of a watch whose expiry is followed: some 100 bytes each.
const EXPIRING_KEYS: usize = 10_000;

/// Why a watch ends.
enum End {
    /// The client has gone.
    Gone,
    /// It does not read.
    Slow,
    /// The node stops.
    Stopping,
    /// The scope is served elsewhere now, or dropped.
    Elsewhere(Problem),
    /// The node cannot go on.
    Problem(Problem),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Problem(unreadable(error))
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// With what comes.
    Now,
    /// With the current values.
    Values,
    /// With what the resume token does not include.
    Resume,
}

/// A watch under way.
struct Watch {
    api: Api,
    /// The scope, by the record of this epoch.
    scope: ScopeId,
    epoch: u64,
    serving: Vec<RegionName>,
    target: Target,
    range: Range,
    subscription: Subscription,
    /// What was told.
    told: Token,
    /// The same as bytes: what goes with the next message.
    resume_token: Bytes,
    /// What went with the last one, or what the client resumed from: where it can go on.
    sent_token: Bytes,
    seal: Seal,
    /// When keys that were shown stop being visible, and the same by key.
    expiring: BTreeSet<(u64, String)>,
    expiries: HashMap<String, u64>,
    messages: mpsc::Sender<Result<v1::WatchResponse, Status>>,
    /// The region that the call arrived in.
    region: u8,
}

/// Checks a request and starts sending what it asks for.
pub(super) async fn start(
    api: &Api,
    request: Request<v1::WatchRequest>,
) -> Result<ReceiverStream<Result<v1::WatchResponse, Status>>, Problem> {
    use v1::watch_request::Target as Sent;

    let (call, request) = Call::of(request)?;
    let scope = api.served("scope", &request.scope)?;
    let name = scope.id.name.as_str();
    let (target, range, seal) = match request.target {
        Some(Sent::Key(key)) => {
            from_proto::key("key", &key)?;
            let range = Range::key(scope.shard(&key), &key);
            let seal = api.seal.of(&["watch", name, "key", &key]);
            (Target::Key(key), range, seal)
        }
        other => {
            let prefix = match other {
                Some(Sent::Prefix(prefix)) => prefix,
                _ => String::new(),
            };
            check_text("prefix", &prefix)?;
            let seal = api.seal.of(&["watch", name, "prefix", &prefix]);
            (Target::Prefix(prefix.clone()), Range::prefix(scope.shards(), &prefix), seal)
        }
    };
    let resume_token = request.resume_token;
    let resumed = resume(seal, &resume_token, &range.shards)?;
    let token = api.token("token", &request.token, &call)?;
    let subscription = api.hub.subscribe(target.clone(), range.shards.clone())?;
    api.reached(&token, &range.shards, call.deadline).await?;
    // Going on needs everything the token includes: a state without it would show older values as news.
    let published = api.reached(&resumed, &range.shards, call.deadline).await?;
    let begin = match (resume_token.is_empty(), request.initial_values) {
        (false, _) => Begin::Resume,
        (true, true) => Begin::Values,
        (true, false) => Begin::Now,
    };
    let (messages, receiver) = mpsc::channel(READY_MESSAGES);
    let mut watch = Watch {
        api: api.clone(),
        scope: scope.id.clone(),
        epoch: scope.epoch,
        serving: scope.serving.to_vec(),
        target,
        range,
        subscription,
        told: resumed,
        sent_token: resume_token.clone(),
        resume_token,
        seal,
        expiring: BTreeSet::new(),
        expiries: HashMap::new(),
        messages,
        region: api.placement.arrived(&call.metadata),
    };
    if begin == Begin::Now {
        watch.told = watch.vectors(&published).map_err(unreadable)?;
    }
    tokio::spawn(watch.run(begin));
    Ok(ReceiverStream::new(receiver))
}

/// Reads a resume token; empty bytes are none.
fn resume(seal: Seal, bytes: &[u8], shards: &[ShardId]) -> Result<Token, Problem> {
    const FIELD: &str = "resume_token";
    if bytes.len() > MAX_RESUME_TOKEN_BYTES {
        let message = format!("{FIELD} has {} bytes; the limit is {MAX_RESUME_TOKEN_BYTES}", bytes.len());
        let most = MAX_RESUME_TOKEN_BYTES as u64;
        return Err(
            Problem::resource_exhausted(Reason::TokenTooLarge, "resume_token_bytes", most, message).at(FIELD)
        );
    }
    let mut token = seal.read(bytes).map_err(|error| {
        let message =
            format!("{FIELD} is none of this scope and target: {error}; watch with initial values instead");
        Problem::invalid_argument(Reason::BadResumeToken, FIELD, message)
    })?;
    token.retain(|shard, _, _| shards.contains(shard));
    Ok(token)
}

impl Watch {
    async fn run(mut self, begin: Begin) {
        let Ok(last) = self.messages.clone().reserve_owned().await else { return };
        let end = match self.follow(begin).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let problem = match end {
            End::Gone => return,
            End::Problem(problem) => problem,
            End::Elsewhere(problem) if self.sent_token.is_empty() => problem, // nothing was told
            End::Elsewhere(problem) => problem.with_bytes(RESUME_TOKEN, &self.sent_token),
            End::Slow => {
                let message = "the watch was not read fast enough; go on from the resume token";
                let most = self.api.hub.queue_bytes() as u64;
                Problem::resource_exhausted(Reason::SlowReader, "watch_buffer_bytes", most, message)
                    .with_bytes(RESUME_TOKEN, &self.sent_token)
            }
            End::Stopping if self.sent_token.is_empty() => stopping(), // nothing was told
            End::Stopping => stopping().with_bytes(RESUME_TOKEN, &self.sent_token),
        };
        last.send(Err(problem.into()));
    }

    async fn follow(&mut self, mut begin: Begin) -> Result<std::convert::Infallible, End> {
        loop {
            match begin {
                Begin::Now => {
                    self.resume_token = self.seal.token_always(&self.told);
                    self.send(Vec::new()).await?;
                }
                Begin::Values => self.values().await?,
                Begin::Resume => {}
            }
            self.catch_up().await?;
            if begin != Begin::Now {
                self.resume_token = self.seal.token_always(&self.told);
                self.send(vec![marker(WatchEventType::Current)]).await?;
            }
            self.live().await?;
            begin = Begin::Resume; // the log was trimmed behind the hub's back
        }
    }

    /// Tells what the log has that was not told, until the queue has the rest.
    async fn catch_up(&mut self) -> Result<(), End> {
        loop {
            if self.subscription.is_broken() {
                self.subscription.restart();
            }
            let published = self.api.handle.published();
            match self.missed(published).await? {
                Some((events, told, whole)) => {
                    self.told = told;
                    if !events.is_empty() {
                        self.tell(events).await?;
                    }
                    if whole && !self.subscription.is_broken() {
                        return Ok(());
                    }
                }
                None => {
                    self.expiring.clear();
                    self.expiries.clear();
                    self.send(vec![marker(WatchEventType::Reset)]).await?;
                    self.values().await?;
                }
            }
        }
    }

    /// The next events of what was missed, what was told with them, and whether that is all; `None` when the log does
    /// not reach back.
    #[allow(clippy::type_complexity, reason = "the three together are the next step")]
    async fn missed(
        &self,
        published: Arc<Published>,
    ) -> Result<Option<(Vec<v1::WatchEvent>, Token, bool)>, End> {
        let (api, target) = (self.api.clone(), self.target.clone());
        let (shards, mut told) = (self.range.shards.clone(), self.told.clone());
        let read = tokio::task::spawn_blocking(move || {
            let snapshot = published.snapshot.as_ref();
            let Some((keys, all)) = missed_changes(snapshot, &shards, &told)? else { return Ok(None) };
            let changed =
                changed_keys(snapshot, &api.homes, keys.iter().copied(), |key| target.matches(key))?;
            let whole = all && changed.read == keys.len();
            for (shard, risen) in changed.risen {
                for (origin, seq) in risen {
                    told.add(shard, origin, seq);
                }
            }
            Ok(Some((changed.events.into_iter().map(|changed| changed.event).collect(), told, whole)))
        });
        read.await.map_err(|_| End::Problem(stopping()))?.map_err(|error: StoreError| error.into())
    }

    /// Tells the current values. What is told counts from before them: what changes meanwhile is told again.
    async fn values(&mut self) -> Result<(), End> {
        let published = self.whole().await?;
        let told = self.vectors(&published)?;
        let mut from = self.range.start();
        loop {
            let (published, range) = (self.whole().await?, self.range.clone());
            let read = tokio::task::spawn_blocking(move || {
                scan::read(published.snapshot.as_ref(), &range, &from, MESSAGE_ENTRIES, false)
            });
            let portion = read.await.map_err(|_| End::Problem(stopping()))??;
            let events = portion.entries.into_iter().map(|entry| v1::WatchEvent {
                r#type: WatchEventType::Value.into(),
                entry: Some(entry),
                ..v1::WatchEvent::default()
            });
            let events: Vec<v1::WatchEvent> = events.collect();
            if !events.is_empty() {
                self.send(events).await?;
            }
            match portion.next {
                Some(next) => from = next,
                None => break,
            }
        }
        self.told = told;
        Ok(())
    }

    /// The published state, once nothing of the watched shards is staged any more.
    async fn whole(&self) -> Result<Arc<Published>, End> {
        let mut commits = self.api.handle.commits();
        loop {
            commits.borrow_and_update();
            let published = self.api.handle.published();
            let staged = super::staged(&published, &self.range.shards, None)?;
            if staged.is_empty() {
                return Ok(published);
            }
            for (shard, key) in staged {
                self.api.handle.settle(shard, key).await;
            }
            tokio::select! {
                changed = commits.changed() => changed.map_err(|_| End::Stopping)?,
                () = self.messages.closed() => return Err(End::Gone),
            }
        }
    }

    /// Tells what comes; returns when the log has to be asked again.
    async fn live(&mut self) -> Result<(), End> {
        loop {
            self.expire().await?;
            let idle = Instant::now() + IDLE;
            let wake = self.expiring.first().map_or(idle, |(at_ms, _)| {
                idle.min(Instant::now() + Duration::from_millis(at_ms.saturating_sub(wall_ms())))
            });
            tokio::select! {
                next = self.subscription.next() => match next {
                    Next::Delivery(delivery) => self.deliver(delivery).await?,
                    Next::Full => return Err(End::Slow),
                    Next::Lost => return Ok(()),
                    Next::Stopping => return Err(End::Stopping),
                },
                () = sleep_until(wake) => {
                    if wake == idle {
                        if let Some(settled) = self.subscription.settled() {
                            let settled = self.vectors(&settled)?;
                            self.told.merge(&settled);
                            self.resume_token = self.seal.token_always(&self.told);
                        }
                        self.send(Vec::new()).await?;
                    }
                }
                () = self.messages.closed() => return Err(End::Gone),
            }
        }
    }

    /// Tells the events of a pass, of those what was not told already.
    async fn deliver(&mut self, delivery: Delivery) -> Result<(), End> {
        let told = &self.told;
        let news = |shard, origin, seq| !told.get(&shard).is_some_and(|vector| vector.includes(&origin, seq));
        let events: Vec<v1::WatchEvent> = delivery
            .events
            .iter()
            .filter(|changed| news(changed.shard, changed.origin, changed.seq))
            .map(|changed| changed.event.clone())
            .collect();
        for shard in &self.range.shards {
            for (origin, seq) in delivery.risen.get(shard).into_iter().flatten() {
                self.told.add(*shard, *origin, *seq);
            }
        }
        if events.is_empty() { Ok(()) } else { self.tell(events).await }
    }

    /// Sends events in messages of bounded size; the resume token stands behind them with the last.
    async fn tell(&mut self, events: Vec<v1::WatchEvent>) -> Result<(), End> {
        let mut message = Vec::new();
        let mut bytes = 0;
        for event in events {
            let size = event.encoded_len();
            if !message.is_empty() && (bytes + size > MESSAGE_BYTES || message.len() >= MESSAGE_ENTRIES) {
                self.send(std::mem::take(&mut message)).await?;
                bytes = 0;
            }
            bytes += size;
            message.push(event);
        }
        self.resume_token = self.seal.token_always(&self.told);
        self.send(message).await
    }

    /// Sends a message, unless the scope has left: what was read then is what is left of it.
    async fn send(&mut self, events: Vec<v1::WatchEvent>) -> Result<(), End> {
        let published = self.api.handle.published();
        self.api.still_served(&self.scope, self.epoch, &published).map_err(End::Elsewhere)?;
        for event in &events {
            if let Some(entry) = &event.entry {
                self.follow_expiry(&entry.key, entry.expires_at_ms);
            }
        }
        let message = v1::WatchResponse {
            events,
            resume_token: self.resume_token.clone(),
            staleness_ms: super::staleness_ms(&self.serving, &published),
        };
        if self.subscription.is_stopped() {
            return Err(End::Stopping);
        }
        let placement = &self.api.placement;
        placement.count(&self.scope.name, self.region, Access::Read, message.encoded_len());
        let sent = tokio::select! {
            sent = timeout(STALLED, self.messages.send(Ok(message))) => sent,
            () = self.subscription.stopped() => return Err(End::Stopping),
        };
        match sent {
            Ok(Ok(())) => {
                self.sent_token.clone_from(&self.resume_token);
                Ok(())
            }
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(End::Slow),
        }
    }

    /// Notes when a key that was shown expires: 0 is never. What has expired is told already.
    fn follow_expiry(&mut self, key: &str, at_ms: u64) {
        if let Some(old) = self.expiries.remove(key) {
            self.expiring.remove(&(old, key.to_owned()));
        }
        if at_ms > wall_ms() && self.expiries.len() < EXPIRING_KEYS {
            self.expiries.insert(key.to_owned(), at_ms);
            self.expiring.insert((at_ms, key.to_owned()));
        }
    }

    /// Tells the keys that were shown and have expired since.
    async fn expire(&mut self) -> Result<(), End> {
        let now_ms = wall_ms();
        let mut events = Vec::new();
        while self.expiring.first().is_some_and(|(at_ms, _)| *at_ms <= now_ms)
            && let Some((_, key)) = self.expiring.pop_first()
        {
            self.expiries.remove(&key);
            let shard = match self.range.shards.as_slice() {
                [shard] => *shard,
                shards => shards[usize::from(tropism_placement::shard_index(&key, shards.len() as u16))],
            };
            let row = self.api.handle.published().snapshot.value(shard, &key)?.unwrap_or_default();
            // Where it was written since, that change is told instead.
            if let (WatchEventType::Expire, entry) = state_of(key, row, now_ms) {
                let kind = WatchEventType::Expire.into();
                events.push(v1::WatchEvent { r#type: kind, entry: Some(entry), ..v1::WatchEvent::default() });
            }
        }
        if events.is_empty() { Ok(()) } else { self.send(events).await }
    }

    /// The vectors of the watched shards in a state.
    fn vectors(&self, published: &Published) -> Result<Token, StoreError> {
        let mut token = Token::default();
        for shard in &self.range.shards {
            token.set(*shard, published.snapshot.vector(*shard)?);
        }
        Ok(token)
    }
}

fn marker(kind: WatchEventType) -> v1::WatchEvent {
    v1::WatchEvent { r#type: kind.into(), ..v1::WatchEvent::default() }
}

/// The next changes of the shards that the token does not include, by stamp: a change comes after all it depends on.
/// Says also whether they are all; `None` when one of them is no longer in the log.
fn missed_changes(
    snapshot: &dyn View,
    shards: &[ShardId],
    told: &Token,
) -> Result<Option<(Vec<LogKey>, bool)>, StoreError> {
    const NOTHING: &Vector = &Vector::EMPTY;
    let mut logs = Vec::new();
    for shard in shards {
        let seen = told.get(shard).unwrap_or(NOTHING);
        for (origin, last) in snapshot.vector(*shard)?.risen_since(seen) {
            let first = seen.get(&origin) + 1;
            let start = LogKey { shard: *shard, origin, seq: first }.encode();
            let end = LogKey { shard: *shard, origin, seq: last.saturating_add(1) }.encode();
            let rows = snapshot.scan(Space::Log, start.as_bytes(), end.as_bytes());
            logs.push((LogKey { shard: *shard, origin, seq: first }, last, rows));
        }
    }
    // The next change of each log, by stamp; `None` where the log has a gap.
    let mut heads: BinaryHeap<Reverse<(Stamp, LogKey, usize)>> = BinaryHeap::new();
    for (index, (key, _, rows)) in logs.iter_mut().enumerate() {
        match next_stamp(*key, rows.next())? {
            Some(stamp) => heads.push(Reverse((stamp, *key, index))),
            None => return Ok(None),
        }
    }
    let mut keys = Vec::new();
    while let Some(Reverse((_, key, index))) = heads.pop() {
        if keys.len() >= PASS_CHANGES {
            return Ok(Some((keys, false)));
        }
        keys.push(key);
        let (_, last, rows) = &mut logs[index];
        if key.seq < *last {
            let next = LogKey { seq: key.seq + 1, ..key };
            match next_stamp(next, rows.next())? {
                Some(stamp) => heads.push(Reverse((stamp, next, index))),
                None => return Ok(None),
            }
        }
    }
    Ok(Some((keys, true)))
}

/// The stamp of the change that comes next in a log, if it is the one that has to come.
fn next_stamp(
    expected: LogKey,
    row: Option<Result<(Bytes, Bytes), tropism_storage::EngineError>>,
) -> Result<Option<Stamp>, StoreError> {
    let Some(row) = row else { return Ok(None) };
    let (key, body) = row?;
    if key != *expected.encode().as_bytes() {
        return Ok(None);
    }
    let change =
        Change::decode(&body).map_err(|problem| StoreError::Damaged { space: Space::Log.name(), problem })?;
    Ok(Some(change.stamp))
}
