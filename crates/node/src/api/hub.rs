//! The one reader of the log for all watches of a node.
//!
//! After each synced commit the hub reads what it logged, once: of shards that nobody watches nothing but the index. It
//! makes one event per changed key, showing the newest state, and puts it into the queue of every watch that it is for. A
//! queue is bounded in bytes; one that is full is emptied and marked, and its watch goes back to the log or is ended.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem::take;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use tokio::sync::{Notify, watch};
use tracing::warn;
use tropism_crdt::{Change, NodeId, Origin};
use tropism_placement::{RegionName, ShardId};
use tropism_storage::{LogKey, Reads, Space, StoreError, ValueRow, View};
use tropism_wire::v1::{self, WatchEventType};
use tropism_wire::{Problem, Reason};

use super::value;
use crate::driver::{Handle, Published, wall_ms};

/// Changes of one pass: what is read before anything of it is given out.
pub(super) const PASS_CHANGES: usize = 1_024;
/// Bytes of values of one pass; the value that goes beyond is the last.
pub(super) const PASS_BYTES: usize = 1 << 20;
/// Bytes in all queues together: 10 000 watches cannot each be slow at once.
const ALL_QUEUES_BYTES: usize = 256 << 20;
/// What an event costs in a queue beside its message, in bytes.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// Which keys a watch is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// This one.
    Key(String),
    /// All that begin with this.
    Prefix(String),
}

impl Target {
    pub(super) fn matches(&self, key: &str) -> bool {
        match self {
            Self::Key(wanted) => key == wanted,
            Self::Prefix(prefix) => key.starts_with(prefix),
        }
    }
}

/// A key changed.
#[derive(Debug)]
pub(super) struct KeyChanged {
    pub(super) shard: ShardId,
    /// The last of the changes that this event shows.
    pub(super) origin: Origin,
    pub(super) seq: u64,
    pub(super) event: v1::WatchEvent,
    bytes: usize,
}

impl KeyChanged {
    fn key(&self) -> &str {
        self.event.entry.as_ref().map_or("", |entry| entry.key.as_str())
    }
}

/// What a pass has for one watch: its events, and how far the vectors of their shards rose.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) events: Vec<Arc<KeyChanged>>,
    pub(super) risen: Arc<BTreeMap<ShardId, Vec<(Origin, u64)>>>,
    bytes: usize,
}

/// What a queue holds for its watch.
#[derive(Debug)]
pub(super) enum Next {
    /// The next events, in the order of the commits.
    Delivery(Delivery),
    /// Events are missing: the queue was full.
    Full,
    /// Events are missing: the log was trimmed before the hub had read it.
    Lost,
    /// The node stops.
    Stopping,
}

/// The hub of a node.
pub(super) struct Hub {
    handle: Handle,
    homes: BTreeMap<NodeId, RegionName>,
    most: usize,
    queue_bytes: usize,
    started: AtomicBool,
    stopped: watch::Sender<bool>,
    queued: AtomicUsize,
    refused: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Changes of commits before this one were dealt with, and the first `done` of this one.
    commit: u64,
    done: usize,
    /// The published state, when everything of it was dealt with.
    caught_up: Option<Arc<Published>>,
    next_id: u64,
    queues: HashMap<u64, Arc<Queue>>,
    shards: HashMap<ShardId, Watchers>,
}

/// The watches of a shard.
#[derive(Default)]
struct Watchers {
    keys: HashMap<String, Vec<u64>>,
    prefixes: Vec<(String, u64)>,
}

impl Watchers {
    fn of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = u64> + 'a {
        let exact = self.keys.get(key).into_iter().flatten().copied();
        exact.chain(self.prefixes.iter().filter(|(prefix, _)| key.starts_with(prefix)).map(|(_, id)| *id))
    }

    fn all(&self) -> impl Iterator<Item = u64> + '_ {
        self.keys.values().flatten().copied().chain(self.prefixes.iter().map(|(_, id)| *id))
    }
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
    full: bool,
    lost: bool,
}

/// A lock whose holders do not panic half-way: what they leave is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A watch's place in the hub, given up when dropped.
pub(super) struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    target: Target,
    shards: Vec<ShardId>,
    queue: Arc<Queue>,
}

impl Hub {
    pub(super) fn new(
        handle: Handle,
        homes: BTreeMap<NodeId, RegionName>,
        most: usize,
        queue_bytes: usize,
    ) -> Self {
        Self {
            handle,
            homes,
            most,
            queue_bytes,
            started: AtomicBool::new(false),
            stopped: watch::Sender::new(false),
            queued: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Watches that were refused because there were too many.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Watches now, and the most there may be.
    pub(super) fn watches(&self) -> (usize, usize) {
        (lock(&self.state).queues.len(), self.most)
    }

    /// What may wait for one watch, in bytes.
    pub(super) fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// Takes a watch in. Every change that is not in the state published after this call comes into its queue.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        target: Target,
        shards: Vec<ShardId>,
    ) -> Result<Subscription, Problem> {
        let mut state = lock(&self.state);
        if state.queues.len() >= self.most {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let message =
                format!("the node has {} watches already, the most it takes; use another node", self.most);
            let most = self.most as u64;
            return Err(Problem::resource_exhausted(Reason::TooManyWatches, "watches", most, message));
        }
        if state.queues.is_empty() {
            state.go_on_behind(self.handle.published());
        }
        let id = state.next_id;
        state.next_id += 1;
        let queue = Arc::new(Queue::default());
        state.queues.insert(id, queue.clone());
        for shard in &shards {
            let watchers = state.shards.entry(*shard).or_default();
            match &target {
                Target::Key(key) => watchers.keys.entry(key.clone()).or_default().push(id),
                Target::Prefix(prefix) => watchers.prefixes.push((prefix.clone(), id)),
            }
        }
        drop(state);
        if !self.started.swap(true, Ordering::Relaxed) {
            tokio::spawn(run(self.clone()));
        }
        Ok(Subscription { hub: self.clone(), id, target, shards, queue })
    }

    /// Reads on and gives out; says whether there is more to read.
    fn pass(&self, published: &Arc<Published>) -> Result<bool, StoreError> {
        let snapshot = published.snapshot.as_ref();
        let (commit, done) = {
            let mut state = lock(&self.state);
            if state.queues.is_empty() {
                state.go_on_behind(published.clone());
                return Ok(false);
            }
            (state.commit, state.done)
        };
        let mut logged: Vec<(u64, usize, LogKey)> = Vec::new();
        for row in snapshot.commit_rows(commit, published.head.commit + 1) {
            let (number, row) = row?;
            let skip = if number == commit { done } else { 0 };
            logged.extend(row.changes.into_iter().enumerate().skip(skip).map(|(at, key)| (number, at, key)));
            if logged.len() >= PASS_CHANGES {
                logged.truncate(PASS_CHANGES);
                break;
            }
        }
        let mut watched: Vec<(u64, usize, LogKey)> = Vec::new();
        {
            let state = lock(&self.state);
            watched.extend(logged.iter().filter(|(_, _, key)| state.shards.contains_key(&key.shard)));
        }
        let keys = watched.iter().map(|(_, _, key)| *key);
        let changed = changed_keys(snapshot, &self.homes, keys, |_| true)?;
        let whole = changed.read == watched.len();
        let ended = if whole { logged.last() } else { watched.get(changed.read - 1) };
        let mut state = lock(&self.state);
        match ended {
            Some((number, at, _)) => (state.commit, state.done) = (*number, at + 1),
            None => state.go_on_behind(published.clone()), // nothing was logged
        }
        let more = !whole || logged.len() >= PASS_CHANGES;
        state.caught_up = (!more).then(|| published.clone());
        self.give_out(&state, changed);
        Ok(more)
    }

    fn give_out(&self, state: &State, changed: Changed) {
        let risen = Arc::new(changed.risen);
        let mut events: BTreeMap<u64, Vec<Arc<KeyChanged>>> = BTreeMap::new();
        for event in changed.events {
            let event = Arc::new(event);
            let Some(watchers) = state.shards.get(&event.shard) else { continue };
            for id in watchers.of(event.key()) {
                events.entry(id).or_default().push(event.clone());
            }
        }
        for (id, events) in events {
            if let Some(queue) = state.queues.get(&id) {
                self.put(queue, events, risen.clone());
            }
        }
        for watchers in changed.lost.iter().filter_map(|shard| state.shards.get(shard)) {
            for queue in watchers.all().filter_map(|id| state.queues.get(&id)) {
                lock(&queue.waiting).lost = true;
                queue.changed.notify_one();
            }
        }
    }

    fn put(
        &self,
        queue: &Queue,
        events: Vec<Arc<KeyChanged>>,
        risen: Arc<BTreeMap<ShardId, Vec<(Origin, u64)>>>,
    ) {
        let bytes: usize = events.iter().map(|event| event.bytes).sum();
        let mut waiting = lock(&queue.waiting);
        // A single delivery is taken whatever its size: it is bounded by the pass.
        let fits = waiting.deliveries.is_empty() || waiting.bytes + bytes <= self.queue_bytes;
        if waiting.full {
            return;
        }
        if fits && self.queued.load(Ordering::Relaxed) + bytes <= ALL_QUEUES_BYTES {
            waiting.bytes += bytes;
            self.queued.fetch_add(bytes, Ordering::Relaxed);
            waiting.deliveries.push_back(Delivery { events, risen, bytes });
        } else {
            self.queued.fetch_sub(waiting.bytes, Ordering::Relaxed);
            *waiting = Waiting { full: true, lost: waiting.lost, ..Waiting::default() };
        }
        drop(waiting);
        queue.changed.notify_one();
    }

    /// Ends all watches, those to come too.
    pub(super) fn stop(&self) {
        self.stopped.send_replace(true);
        let state = lock(&self.state);
        for queue in state.queues.values() {
            queue.changed.notify_one();
        }
    }
}

impl State {
    /// Everything of this state counts as dealt with.
    fn go_on_behind(&mut self, published: Arc<Published>) {
        (self.commit, self.done) = (published.head.commit + 1, 0);
        self.caught_up = Some(published);
    }
}

/// Follows the commits until the node stops.
async fn run(hub: Arc<Hub>) {
    let mut commits = hub.handle.commits();
    loop {
        commits.borrow_and_update(); // before looking: what comes after is not missed
        let published = hub.handle.published();
        let reader = hub.clone();
        match tokio::task::spawn_blocking(move || reader.pass(&published)).await {
            Ok(Ok(true)) => continue,
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                warn!(%error, "watches end: the log cannot be read");
                break;
            }
            Err(_) => break, // the runtime is being shut down
        }
        if commits.changed().await.is_err() {
            break;
        }
    }
    hub.stop();
}

impl Subscription {
    /// The next thing in the queue, when there is one. Dropping the future loses nothing.
    pub(super) async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.queue.changed.notified().await;
        }
    }

    fn take(&self) -> Option<Next> {
        if self.is_stopped() {
            return Some(Next::Stopping);
        }
        let mut waiting = lock(&self.queue.waiting);
        if waiting.lost {
            return Some(Next::Lost);
        }
        if waiting.full {
            return Some(Next::Full);
        }
        let delivery = waiting.deliveries.pop_front()?;
        waiting.bytes -= delivery.bytes;
        self.hub.queued.fetch_sub(delivery.bytes, Ordering::Relaxed);
        Some(Next::Delivery(delivery))
    }

    /// Whether the node stops.
    pub(super) fn is_stopped(&self) -> bool {
        *self.hub.stopped.borrow()
    }

    /// Waits until the node stops.
    pub(super) async fn stopped(&self) {
        // The sender lives as long as the hub, which this holds.
        self.hub.stopped.subscribe().wait_for(|stopped| *stopped).await.ok();
    }

    /// Empties the queue and takes its marks away: the watch goes back to the log, in a state published after this.
    pub(super) fn restart(&self) {
        let old = take(&mut *lock(&self.queue.waiting));
        self.hub.queued.fetch_sub(old.bytes, Ordering::Relaxed);
    }

    /// Whether events are missing in the queue.
    pub(super) fn is_broken(&self) -> bool {
        let waiting = lock(&self.queue.waiting);
        waiting.full || waiting.lost
    }

    /// The state of which everything was given out, if the queue is empty: it may serve as the place to go on from.
    pub(super) fn settled(&self) -> Option<Arc<Published>> {
        let state = lock(&self.hub.state);
        let waiting = lock(&self.queue.waiting);
        let empty = waiting.deliveries.is_empty() && !waiting.full && !waiting.lost;
        if empty { state.caught_up.clone() } else { None }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.hub.state);
            state.queues.remove(&self.id);
            for shard in &self.shards {
                let Some(watchers) = state.shards.get_mut(shard) else { continue };
                watchers.prefixes.retain(|(_, id)| *id != self.id);
                if let Target::Key(key) = &self.target
                    && let Some(ids) = watchers.keys.get_mut(key)
                {
                    ids.retain(|id| *id != self.id);
                    if ids.is_empty() {
                        watchers.keys.remove(key);
                    }
                }
                if watchers.keys.is_empty() && watchers.prefixes.is_empty() {
                    state.shards.remove(shard);
                }
            }
        }
        self.restart();
    }
}

/// What some changes made of their keys.
#[derive(Default)]
pub(super) struct Changed {
    /// One per key, in the order of its last change.
    pub(super) events: Vec<KeyChanged>,
    /// Per shard and origin the last change among them.
    pub(super) risen: BTreeMap<ShardId, Vec<(Origin, u64)>>,
    /// Shards of which a change is no longer in the log.
    lost: BTreeSet<ShardId>,
    /// How many of the changes were read before the values became too many.
    pub(super) read: usize,
}

/// Reads changes and the state of their keys, of those for which `wanted` says so.
pub(super) fn changed_keys(
    snapshot: &dyn View,
    homes: &BTreeMap<NodeId, RegionName>,
    changes: impl Iterator<Item = LogKey>,
    wanted: impl Fn(&str) -> bool,
) -> Result<Changed, StoreError> {
    let now_ms = wall_ms();
    let mut changed = Changed::default();
    let mut risen: BTreeMap<(ShardId, Origin), u64> = BTreeMap::new();
    // Per key where its last change stands; rows are read once.
    let mut places: HashMap<(ShardId, String), usize> = HashMap::new();
    let mut events: Vec<Option<KeyChanged>> = Vec::new();
    let mut bytes = 0;
    for LogKey { shard, origin, seq } in changes {
        if bytes > PASS_BYTES {
            break;
        }
        changed.read += 1;
        let Some(body) = snapshot.change(&LogKey { shard, origin, seq })? else {
            changed.lost.insert(shard);
            continue;
        };
        let change = Change::decode(&body)
            .map_err(|problem| StoreError::Damaged { space: Space::Log.name(), problem })?;
        risen.insert((shard, origin), seq);
        if !wanted(&change.key) {
            continue;
        }
        let place = events.len();
        if let Some(earlier) = places.insert((shard, change.key.clone()), place)
            && let Some(event) = events[earlier].take()
        {
            let (region, node) = maker(homes, origin);
            let event = v1::WatchEvent { region, node, ..event.event };
            events.push(Some(KeyChanged { shard, origin, seq, bytes: size(&event), event }));
            continue;
        }
        let row = snapshot.value(shard, &change.key);
        let event = shown(homes, change.key, row, origin, now_ms)?;
        let size = size(&event);
        bytes += size;
        events.push(Some(KeyChanged { shard, origin, seq, event, bytes: size }));
    }
    changed.events = events.into_iter().flatten().collect();
    for ((shard, origin), seq) in risen {
        changed.risen.entry(shard).or_default().push((origin, seq));
    }
    Ok(changed)
}

fn size(event: &v1::WatchEvent) -> usize {
    event.encoded_len() + EVENT_OVERHEAD_BYTES
}

/// Region and node of a change's author.
fn maker(homes: &BTreeMap<NodeId, RegionName>, origin: Origin) -> (String, String) {
    let region = homes.get(&origin.node).map_or("", RegionName::as_str);
    (region.to_owned(), origin.node.as_str().to_owned())
}

/// The event that shows a key's row after a change.
fn shown(
    homes: &BTreeMap<NodeId, RegionName>,
    key: String,
    row: Result<Option<ValueRow>, StoreError>,
    origin: Origin,
    now_ms: u64,
) -> Result<v1::WatchEvent, StoreError> {
    let (kind, entry) = match row {
        Err(error @ StoreError::Engine(_)) => return Err(error),
        Err(error @ StoreError::Damaged { .. }) => {
            (WatchEventType::Put, value::failed(key, &super::unreadable(error)))
        }
        Ok(row) => state_of(key, row.unwrap_or_default(), now_ms),
    };
    let (region, node) = maker(homes, origin);
    Ok(v1::WatchEvent { r#type: kind.into(), entry: Some(entry), region, node })
}

/// What a row shows at `now_ms`, and the kind of event that tells it.
pub(super) fn state_of(key: String, row: ValueRow, now_ms: u64) -> (WatchEventType, v1::Entry) {
    if row.parked.is_some() || row.cell.visible(now_ms) {
        let name = key.clone();
        let entry = value::entry(key, row, false).unwrap_or_else(|problem| value::failed(name, &problem));
        return (WatchEventType::Put, entry);
    }
    let kind = if row.cell.alive() { WatchEventType::Expire } else { WatchEventType::Delete };
    let entry = v1::Entry {
        key,
        stamp: row.cell.last_stamp().as_u64(),
        expires_at_ms: value::expires_at_ms(row.cell.expires_at_ms()),
        ..v1::Entry::default()
    };
    (kind, entry)
}
