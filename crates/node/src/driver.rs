//! The only loop around the replica: one thread that owns replica and store, and the handle the rest of the node uses.
//!
//! The thread drains the inputs that are there into a turn (`inbox.rs` says in which order), flushes and commits it.
//! Another thread syncs it, publishes a snapshot and only then lets replies and frames leave (`sync.rs`), while this one
//! gathers the next turn: group commit without linger. Readers never queue here: they take the last published snapshot.
//! How long writes take is measured, and told to the replica, whose background work follows it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::{Span, debug, error, info, warn};
use tropism_crdt::{ClockError, NodeId, Stamp};
use tropism_placement::{Records, ShardId, StoredRecord};
use tropism_replica::limits::WINDOW_US;
use tropism_replica::{
    BootError, Event, Foreground, Frame, Hello, Identity, Input, Latencies, Now, Output, ParkedCall,
    ParkedError, ParkedStep, RebuildStatus, Replica, ReplicaError, Salvaged, Status, Ticket, VerifiedShard,
    VerifyCall, VerifyError, Write, WriteDone, WriteError,
};
use tropism_storage::{Footprint, Head, KeptValues, RebuildRow, Store, StoreError, Tally, View};

use crate::inbox::{Inbox, Next, Waited, carries_changes};
use crate::lane::Replier;
pub use crate::sync::Witnessed;
use crate::sync::{Finisher, Leaving, SyncThread, Turn};
use crate::telemetry::{Open, Telemetry};

/// Calls that wait for the replica; beyond it they are shed. At 30 000 writes a second this is a tenth of a second.
pub const INPUT_QUEUE: usize = 4_096;
/// Proposals of a steward that wait to be carried to the directory; those beyond are made again.
const PROPOSALS: usize = 64;
/// Inputs of one turn: bounds the batch and how long the first of them waits for the last.
const TURN_INPUTS: usize = 1_024;
/// A turn that has lasted so long takes no more inputs: what a peer sends at once while this node catches up would keep
/// answers and heartbeats for seconds.
const TURN_TIME: Duration = Duration::from_millis(10);
/// What has come of a turn's time or inputs belongs to clients first, percent; the rest to peers first.
const CLIENTS_PERCENT: u32 = 75;
/// Frames that wait for a peer's socket; credit bounds their bytes to a few MiB. Beyond it the link is dropped.
pub const FRAME_QUEUE: usize = 1_024;
/// A turn of so few inputs is synced by the replica's own thread.
const SYNCED_IN_PLACE: usize = 4;
/// How often it is looked whether a sync that takes long is still under way.
const SYNC_CHECK: Duration = Duration::from_secs(1);
/// Status for readers is renewed this often at most.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// The store is asked how much room it takes this often at most: it goes through the list of its files.
const FOOTPRINT_EVERY: Duration = Duration::from_secs(1);

/// What the driver's time comes from: a monotonic clock that begins with the process, and the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    start: Instant,
}

impl Default for Time {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Time {
    /// Both clocks now.
    pub fn now(&self) -> Now {
        Now { mono_us: self.mono_us(Instant::now()), wall_ms: wall_ms() }
    }

    /// An instant on the replica's monotonic clock.
    pub fn mono_us(&self, instant: Instant) -> u64 {
        // One second in, so that nothing is ever due before the beginning.
        u64::try_from(instant.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
            + 1_000_000
    }
}

/// The wall clock, Unix ms; 0 before 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// What readers see: the state of the last synced commit.
pub struct Published {
    /// The store at that commit.
    pub snapshot: Arc<dyn View + Send + Sync>,
    /// Its number and running hash.
    pub head: Head,
    /// Every change in a commit up to this is stable.
    pub stable_commit: u64,
    /// The replica's status, at most a tenth of a second older.
    pub status: Arc<Status>,
    /// When `status` was taken.
    pub status_at: Now,
    /// How much the store holds at that commit.
    pub tally: Tally,
    /// How much room it takes, a second ago at most.
    pub footprint: Footprint,
    /// Values in memory.
    pub values: KeptValues,
    /// Shards of which a key's state may be staged: it is merged before the key is read.
    pub settling: Vec<ShardId>,
    /// How far the store is filled by its peers: until that is over clients are not served.
    pub rebuild: Option<RebuildStatus>,
    /// The store stands in the place of one that was lost: what only this region holds is not served.
    pub lost: Option<RebuildRow>,
    /// Where scopes are held.
    pub records: Arc<Records>,
}

/// Why a call got no answer from the replica. No effect, unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CallError {
    /// The replica refused, or could not say.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The clock cannot stamp now.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Too much waits already.
    #[error("the node is busy: {INPUT_QUEUE} calls wait already; no effect")]
    Busy,
    /// The node stopped before it could answer: the write is wholly there or not at all.
    #[error("outcome unknown: the node stopped before it could answer")]
    Stopped,
}

/// Why a node stops by itself.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// The store failed or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Peers saw more of this store than there is.
    #[error("the store is short: {0}; it is not served")]
    Short(String),
    /// The witness could not be written.
    #[error("the witness could not be written: {0}")]
    Witness(String),
    /// A thread ended that never does: a defect.
    #[error("internal: the thread that syncs panicked; what was in flight has an unknown outcome")]
    Panicked,
}

impl From<ReplicaError> for Failure {
    fn from(error: ReplicaError) -> Self {
        match error {
            ReplicaError::Store(error) => Self::Store(error),
        }
    }
}

/// A link's socket side, as the driver knows it.
struct Outgoing {
    frames: mpsc::Sender<Frame>,
    connection: u64,
}

pub(crate) enum Message {
    Write {
        write: Box<Write>,
        reply: Replier,
        came: Instant,
        /// Of its commit, if it is traced.
        span: Option<Box<Open>>,
    },
    Parked {
        call: Box<ParkedCall>,
        reply: oneshot::Sender<Result<ParkedStep, ParkedError>>,
    },
    Verify {
        call: Box<VerifyCall>,
        reply: oneshot::Sender<Result<VerifiedShard, VerifyError>>,
    },
    Stamps {
        count: u16,
        reply: oneshot::Sender<Result<Vec<Stamp>, ClockError>>,
    },
    Hello {
        peer: NodeId,
        reply: oneshot::Sender<Hello>,
    },
    LinkUp {
        hello: Hello,
        connection: u64,
        frames: mpsc::Sender<Frame>,
    },
    LinkDown {
        peer: NodeId,
        connection: u64,
    },
    Frame {
        peer: NodeId,
        connection: u64,
        frame: Frame,
    },
    Settle {
        shard: ShardId,
        key: Option<String>,
    },
    Salvage(Vec<Bytes>),
    Records {
        records: Vec<StoredRecord>,
        all: bool,
    },
    /// The turn before is durable: the open one can end.
    Synced,
    Stop,
}

/// What waits for the replica's thread, with its place in a bounded queue. The place is free when it is taken.
pub(crate) struct Queued {
    pub(crate) message: Message,
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

impl From<Message> for Queued {
    /// What comes seldom and waits in no queue.
    fn from(message: Message) -> Self {
        Self { message, place: None }
    }
}

/// The way to the replica. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    messages: Sender<Queued>,
    /// Places for calls.
    calls: Arc<Semaphore>,
    /// Calls for which there was none.
    shed: Arc<AtomicU64>,
    published: Arc<ArcSwap<Published>>,
    commits: watch::Receiver<u64>,
    failed: watch::Receiver<Option<Failure>>,
    time: Time,
    proposals: Arc<Mutex<Option<mpsc::Receiver<StoredRecord>>>>,
}

impl Handle {
    /// Writes, and waits for the durability the write asks for.
    pub async fn write(&self, write: Write) -> Result<WriteDone, CallError> {
        self.write_within(write, None).await
    }

    /// The same; the span ends when the turn that the write is in is durable.
    pub(crate) async fn write_within(
        &self,
        write: Write,
        span: Option<Span>,
    ) -> Result<WriteDone, CallError> {
        let (reply, outcome) = Replier::new();
        let span = span.map(|span| Box::new(Open::Commit(span)));
        self.try_send(Message::Write { write: Box::new(write), reply, came: Instant::now(), span })?;
        Ok(outcome.await.map_err(|_| CallError::Stopped)??)
    }

    /// A step of looking after a parked key. It has taken effect, durably, when this returns.
    pub async fn parked(&self, call: ParkedCall) -> Result<Result<ParkedStep, ParkedError>, CallError> {
        let (reply, outcome) = oneshot::channel();
        self.try_send(Message::Parked { call: Box::new(call), reply })?;
        outcome.await.map_err(|_| CallError::Stopped)
    }

    /// Compares all members of a shard; answered at the call's deadline at the latest.
    pub async fn verify(&self, call: VerifyCall) -> Result<Result<VerifiedShard, VerifyError>, CallError> {
        let (reply, outcome) = oneshot::channel();
        self.try_send(Message::Verify { call: Box::new(call), reply })?;
        outcome.await.map_err(|_| CallError::Stopped)
    }

    /// Stamps that nobody else gets.
    pub async fn stamps(&self, count: u16) -> Result<Vec<Stamp>, CallError> {
        let (reply, stamps) = oneshot::channel();
        self.try_send(Message::Stamps { count, reply })?;
        Ok(stamps.await.map_err(|_| CallError::Stopped)??)
    }

    /// Has staged states merged that a reader found: those of a key, or some of a shard. With the commit after this they are.
    pub(crate) async fn settle(&self, shard: ShardId, key: Option<String>) {
        let Ok(place) = self.calls.clone().acquire_owned().await else { return }; // never closed
        self.send(Queued { message: Message::Settle { shard, key }, place: Some(place) });
    }

    /// Changes of the store that was set aside; none: these were all.
    pub(crate) async fn salvage(&self, changes: Vec<Bytes>) {
        let Ok(place) = self.calls.clone().acquire_owned().await else { return }; // never closed
        self.send(Queued { message: Message::Salvage(changes), place: Some(place) });
    }

    /// Records that the directory decided; `all`: with those before they are all that it had at some time after this start.
    pub(crate) async fn records(&self, records: Vec<StoredRecord>, all: bool) {
        let Ok(place) = self.calls.clone().acquire_owned().await else { return }; // never closed
        self.send(Queued { message: Message::Records { records, all }, place: Some(place) });
    }

    /// What the replica proposes as the steward of scopes that are on their way, for whoever takes it first.
    pub(crate) fn take_proposals(&self) -> Option<mpsc::Receiver<StoredRecord>> {
        self.proposals.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The last synced state.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Follows the number of the last synced commit.
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.commits.clone()
    }

    /// Follows whether the node failed.
    pub fn failed(&self) -> watch::Receiver<Option<Failure>> {
        self.failed.clone()
    }

    /// Calls that wait for the replica, and how many may.
    pub(crate) fn calls_waiting(&self) -> (usize, usize) {
        (INPUT_QUEUE - self.calls.available_permits(), INPUT_QUEUE)
    }

    /// Calls that were shed because too many waited.
    pub(crate) fn calls_shed(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }

    /// The node's clocks.
    pub fn time(&self) -> Time {
        self.time
    }

    /// What to show a peer.
    pub(crate) async fn hello(&self, peer: NodeId) -> Option<Hello> {
        let (reply, hello) = oneshot::channel();
        let place = self.calls.clone().acquire_owned().await.ok()?; // never closed
        self.send(Queued { message: Message::Hello { peer, reply }, place: Some(place) });
        hello.await.ok()
    }

    pub(crate) fn link_up(&self, hello: Hello, connection: u64, frames: mpsc::Sender<Frame>) {
        self.send(Message::LinkUp { hello, connection, frames }.into());
    }

    pub(crate) fn link_down(&self, peer: NodeId, connection: u64) {
        self.send(Message::LinkDown { peer, connection }.into());
    }

    /// Hands over a frame as soon as there is a place for it among those of its connection.
    pub(crate) async fn frame(&self, peer: NodeId, connection: u64, frame: Frame, places: &Arc<Semaphore>) {
        let Ok(place) = places.clone().acquire_owned().await else { return }; // never closed
        self.send(Queued { message: Message::Frame { peer, connection, frame }, place: Some(place) });
    }

    /// For calls: sheds when too many wait.
    fn try_send(&self, message: Message) -> Result<(), CallError> {
        let place = self.calls.clone().try_acquire_owned().map_err(|_| {
            self.shed.fetch_add(1, Ordering::Relaxed);
            CallError::Busy
        })?;
        let queued = Queued { message, place: Some(place) };
        self.messages.send(queued).map_err(|_| CallError::Stopped)
    }

    fn send(&self, queued: Queued) {
        self.messages.send(queued).ok(); // the thread has ended, and with it whoever would care
    }
}

/// The running driver. Dropped without [`Driver::stop`] it stops all the same, but nobody waits for it.
pub struct Driver {
    messages: Sender<Queued>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Boots a replica on a store and starts its threads; spans of what it applies go to `telemetry`. When this returns,
    /// what boot wrote is durable.
    pub fn start(
        mut store: Store,
        identity: Identity,
        mut witness: Option<Box<dyn Witnessed>>,
        telemetry: Telemetry,
    ) -> Result<(Self, Handle), BootError> {
        let time = Time::default();
        let now = time.now();
        // The replica is made here to report errors at once; it is not Sync but moves.
        let replica = Replica::boot(now, &mut store, identity)?;
        store.commit(now.wall_ms)?;
        store.sync()?;
        let published = Arc::new(ArcSwap::from_pointee(Published {
            snapshot: store.snapshot(),
            head: store.head(),
            stable_commit: replica.stable_commit(),
            status: Arc::new(replica.status(now)),
            status_at: now,
            tally: store.tally(),
            footprint: store.footprint(),
            values: store.kept_values(),
            settling: replica.settling(),
            rebuild: replica.rebuild_status(now),
            lost: replica.lost().cloned(),
            records: Arc::new(replica.records().clone()),
        }));
        let (messages, inbox) = channel();
        let mut inbox = Inbox::new(inbox);
        let latencies = Arc::new(Mutex::new(Latencies::default()));
        let (commits_sender, commits) = watch::channel(store.head().commit);
        let (failed_sender, failed) = watch::channel(None);
        let (proposed, proposals) = mpsc::channel(PROPOSALS);
        let handle = Handle {
            proposals: Arc::new(Mutex::new(Some(proposals))),
            messages: messages.clone(),
            calls: Arc::new(Semaphore::new(INPUT_QUEUE)),
            shed: Arc::default(),
            published: published.clone(),
            commits,
            failed,
            time,
        };
        if let Some(witness) = &mut witness {
            // Written again with the first turn; its failure is reported there.
            witness.synced(replica.origin(), replica.reserved_ms(), store.head()).ok();
        }
        let finisher = Finisher {
            syncer: store.syncer(),
            witness,
            published: published.clone(),
            commits: commits_sender,
            latencies: latencies.clone(),
            metrics: telemetry.metrics().clone(),
        };
        let started = |error: std::io::Error| {
            let problem = error.to_string();
            StoreError::Engine(tropism_storage::EngineError { doing: "starting a thread", problem })
        };
        let sync = SyncThread::start(finisher, messages.clone()).map_err(started)?;
        let mut turns = Turns {
            replica,
            store,
            sync,
            time,
            published,
            replies: HashMap::new(),
            parked: HashMap::new(),
            verified: HashMap::new(),
            links: HashMap::new(),
            next_ticket: 0,
            status_due: Instant::now(),
            inputs: 0,
            late_inputs: 0,
            began: None,
            leaving: Vec::new(),
            came: Vec::new(),
            footprint_due: Instant::now(),
            latencies,
            window: Foreground::default(),
            window_began: Instant::now(),
            late_us: 0,
            telemetry,
            spans: Vec::new(),
            proposed,
            applied: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("replica".into()).spawn(move || {
            if let Err(failure) = turns.run(&mut inbox) {
                error!(%failure, "the node stops");
                failed_sender.send_replace(Some(failure));
            }
        });
        Ok((Self { messages, thread: Some(thread.map_err(started)?) }, handle))
    }

    /// Stops after the turn under way, leaving what a clean stop leaves.
    pub fn stop(mut self) {
        if self.messages.send(Message::Stop.into()).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the replica's thread panicked");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.messages.send(Message::Stop.into()).ok(); // it may have failed before
        }
    }
}

/// What the replica's thread owns.
struct Turns {
    replica: Replica,
    /// Where steps of moves are proposed.
    proposed: mpsc::Sender<StoredRecord>,
    store: Store,
    sync: SyncThread,
    time: Time,
    published: Arc<ArcSwap<Published>>,
    replies: HashMap<Ticket, Replier>,
    /// Operators' calls.
    parked: HashMap<Ticket, oneshot::Sender<Result<ParkedStep, ParkedError>>>,
    /// Verifications under way.
    verified: HashMap<Ticket, oneshot::Sender<Result<VerifiedShard, VerifyError>>>,
    links: HashMap<NodeId, Outgoing>,
    next_ticket: Ticket,
    status_due: Instant,
    /// Inputs of the open turn.
    inputs: usize,
    /// Those of them that are late.
    late_inputs: usize,
    /// When the first of them was taken.
    began: Option<Instant>,
    /// What leaves with the open turn beside the replica's outputs.
    leaving: Vec<Leaving>,
    /// When the writes of the open turn had come.
    came: Vec<Instant>,
    footprint_due: Instant,
    /// How long writes took that are durable, since the window began.
    latencies: Arc<Mutex<Latencies>>,
    /// What the window is told of beside that.
    window: Foreground,
    window_began: Instant,
    /// How long late frames took of the open turn, us.
    late_us: u64,
    telemetry: Telemetry,
    /// Spans that end when the open turn is durable.
    spans: Vec<Open>,
    /// Changes of peers in the open turn: who made them, and when.
    applied: Vec<(NodeId, Stamp)>,
}

impl Turns {
    /// Gathers inputs into the open turn, and ends it as soon as the turn before is durable.
    fn run(&mut self, inbox: &mut Inbox) -> Result<(), Failure> {
        loop {
            let waited = self.wait(inbox)?;
            let now = self.time.now();
            if waited == Waited::InVain {
                self.replica.handle(now, &mut self.store, Input::Tick)?;
            }
            if self.gather(now, inbox)? || waited == Waited::Over {
                self.sync.wait()?;
                self.end_turn(now, inbox)?;
                self.sync.wait()?;
                return self.stop();
            }
            let lingers = waited == Waited::Came && self.lingers(inbox);
            if !lingers && !self.sync.busy()? {
                self.end_turn(now, inbox)?;
            }
        }
    }

    /// Whether the open turn takes no more.
    fn is_full(&self) -> bool {
        self.inputs >= TURN_INPUTS || self.began.is_some_and(|began| began.elapsed() >= TURN_TIME)
    }

    /// Whether the open turn holds nothing that somebody waits for, and more such can join it: a sync for each stretch of
    /// late work would take longer than the stretch, and what clients want would wait for it.
    fn lingers(&self, inbox: &Inbox) -> bool {
        self.only_late() && !self.is_full() && inbox.late_in().is_some() && !inbox.has_prompt()
    }

    /// Whether all that is in the open turn is late.
    fn only_late(&self) -> bool {
        self.inputs > 0 && self.inputs == self.late_inputs
    }

    /// Waits until there is something to take, the open turn can end, or time asks for something.
    fn wait(&mut self, inbox: &mut Inbox) -> Result<Waited, Failure> {
        let now = self.time.now();
        inbox.receive(now);
        let late = inbox.late_in();
        let ready = inbox.has_prompt() || late.is_some_and(|late| late.is_zero());
        if self.sync.busy()? {
            if self.is_full() {
                self.sync.wait()?;
                return Ok(Waited::InVain);
            }
            if ready {
                return Ok(Waited::Came);
            }
            // The end of the sync is a message too; that its thread ended is not.
            return Ok(inbox.wait(now, late.map_or(SYNC_CHECK, |late| late.min(SYNC_CHECK))));
        }
        if ready || (self.inputs > 0 && !self.lingers(inbox)) {
            return Ok(Waited::Came);
        }
        let patience = Duration::from_micros(self.replica.next_deadline(now).saturating_sub(now.mono_us));
        let full_in = self.began.map_or(patience, |began| TURN_TIME.saturating_sub(began.elapsed()));
        let patience = patience.min(full_in);
        Ok(match late {
            // What is late is waited for as anything else is: it does not end the turn.
            Some(late) if late < patience => inbox.wait(now, late).or(Waited::Came),
            _ => inbox.wait(now, patience),
        })
    }

    /// Takes what is there; says whether to stop. What comes while another thing is taken has its turn, too.
    fn gather(&mut self, now: Now, inbox: &mut Inbox) -> Result<bool, Failure> {
        let mut stopping = false;
        while !self.is_full() {
            inbox.receive(now);
            let of_time =
                self.began.is_some_and(|began| began.elapsed() * 100 >= TURN_TIME * CLIENTS_PERCENT);
            let of_inputs = self.inputs * 100 >= TURN_INPUTS * CLIENTS_PERCENT as usize;
            let Some(next) = inbox.next(of_time || of_inputs) else { break };
            stopping |= matches!(next, Next::Message(Message::Stop));
            self.take(now, next)?;
        }
        if !self.is_full() && inbox.late_in().is_some_and(|late| late.is_zero()) {
            self.take_late(now, inbox)?;
        }
        Ok(stopping)
    }

    /// Takes late frames for a stretch, or until there is something else.
    fn take_late(&mut self, now: Now, inbox: &mut Inbox) -> Result<(), Failure> {
        let pace = self.replica.pace(self.time.now());
        let stretch = Duration::from_micros(pace.stretch_us());
        let begun = Instant::now();
        loop {
            let left = stretch.saturating_sub(begun.elapsed());
            if left.is_zero() || self.is_full() {
                break;
            }
            let Some((next, changes)) = inbox.next_late(micros(left)) else { break };
            let is_measured = matches!(&next, Next::Frame(.., frame) if carries_changes(frame));
            let at = Instant::now();
            self.late_inputs += 1;
            self.take(now, next)?;
            if is_measured {
                inbox.took(changes, at.elapsed());
                self.window.late_changes += changes as u64;
            }
            inbox.receive(now);
            if inbox.has_prompt() {
                break;
            }
        }
        let us = micros(begun.elapsed());
        self.late_us += us;
        self.window.late_us += us;
        inbox.pause_late(pace, us);
        Ok(())
    }

    /// Ends the open turn: what links have to send joins it, it is committed, and leaves when it is durable.
    fn end_turn(&mut self, now: Now, inbox: &mut Inbox) -> Result<(), Failure> {
        let (ends, gathered) = (Instant::now(), self.began.map_or(Duration::ZERO, |began| began.elapsed()));
        self.end_window(now)?;
        self.replica.flush(now, &mut self.store)?;
        let committed = self.store.commit(now.wall_ms)?.is_some();
        let mut leaving = std::mem::take(&mut self.leaving);
        while let Some(output) = self.replica.poll_output() {
            self.leave(output, &mut leaving)?;
        }
        let inputs = std::mem::take(&mut self.inputs);
        self.late_inputs = 0;
        self.began = None;
        let turn = Turn {
            committed,
            origin: self.replica.origin(),
            reserved_ms: self.replica.reserved_ms(),
            published: (committed || self.status_due <= Instant::now()).then(|| self.publish(now, committed)),
            leaving,
            came: std::mem::take(&mut self.came),
            spans: std::mem::take(&mut self.spans),
            applied: std::mem::take(&mut self.applied),
        };
        // A short turn is synced here: waking another thread would take as long as what could be done meanwhile.
        if committed && inputs > SYNCED_IN_PLACE {
            self.sync.begin(turn);
        } else {
            self.sync.in_place(turn)?;
        }
        let late_us = std::mem::take(&mut self.late_us);
        if late_us > 0 {
            // Their part of what ending the turn took, too.
            let us = micros(ends.elapsed()).saturating_mul(late_us) / micros(gathered).max(late_us);
            self.window.late_us += us;
            inbox.pause_late(self.replica.pace(now), us);
        }
        Ok(())
    }

    /// Tells the replica how the foreground fared, when a window is over.
    fn end_window(&mut self, now: Now) -> Result<(), Failure> {
        if self.window_began.elapsed() < Duration::from_micros(WINDOW_US) {
            return Ok(());
        }
        self.window_began = Instant::now();
        let mut seen = std::mem::take(&mut self.window);
        seen.latencies = std::mem::take(&mut *self.latencies.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(self.replica.handle(now, &mut self.store, Input::Foreground(Box::new(seen)))?)
    }

    fn stop(&mut self) -> Result<(), Failure> {
        self.replica.stop(&mut self.store);
        let committed = self.store.commit(wall_ms())?.is_some();
        let (origin, reserved_ms) = (self.replica.origin(), self.replica.reserved_ms());
        let published = Some(self.publish(self.time.now(), committed));
        self.sync.in_place(Turn {
            committed,
            origin,
            reserved_ms,
            published,
            leaving: Vec::new(),
            came: Vec::new(),
            spans: Vec::new(),
            applied: Vec::new(),
        })?;
        info!("stopped cleanly");
        Ok(())
    }

    /// What readers are to see once the turn is durable.
    fn publish(&mut self, now: Now, committed: bool) -> Published {
        let last = self.published.load_full();
        let (status, status_at) = if self.status_due <= Instant::now() {
            self.status_due = Instant::now() + STATUS_EVERY;
            (Arc::new(self.replica.status(now)), now)
        } else {
            (last.status.clone(), last.status_at)
        };
        let footprint = if self.footprint_due <= Instant::now() {
            self.footprint_due = Instant::now() + FOOTPRINT_EVERY;
            self.store.footprint()
        } else {
            last.footprint
        };
        Published {
            snapshot: if committed { self.store.snapshot() } else { last.snapshot.clone() },
            head: self.store.head(),
            stable_commit: self.replica.stable_commit(),
            status,
            status_at,
            tally: self.store.tally(),
            footprint,
            values: self.store.kept_values(),
            settling: self.replica.settling(),
            rebuild: self.replica.rebuild_status(now),
            lost: self.replica.lost().cloned(),
            records: if last.records.version() == self.replica.records().version() {
                last.records.clone()
            } else {
                Arc::new(self.replica.records().clone())
            },
        }
    }

    fn take(&mut self, now: Now, next: Next) -> Result<(), Failure> {
        self.inputs += 1;
        self.began.get_or_insert_with(Instant::now);
        let message = match next {
            Next::Message(message) => message,
            Next::Frame(peer, connection, frame) => {
                if self.links.get(&peer).is_none_or(|link| link.connection != connection) {
                    return Ok(());
                }
                let input = Input::Frame { from: peer, frame };
                return Ok(self.replica.handle(now, &mut self.store, input)?);
            }
        };
        let input = match message {
            Message::Write { write, reply, came, span } => {
                if reply.is_closed() {
                    return Ok(()); // the caller has gone before anything happened
                }
                self.came.push(came);
                self.spans.extend(span.map(|span| *span));
                self.next_ticket += 1;
                self.replies.insert(self.next_ticket, reply);
                Input::Write { ticket: self.next_ticket, write }
            }
            Message::Parked { call, reply } => {
                self.next_ticket += 1;
                self.parked.insert(self.next_ticket, reply);
                Input::Parked { ticket: self.next_ticket, call }
            }
            Message::Verify { call, reply } => {
                self.next_ticket += 1;
                self.verified.insert(self.next_ticket, reply);
                Input::Verify { ticket: self.next_ticket, call }
            }
            Message::Stamps { count, reply } => {
                let outcome = self.replica.stamps(now, &mut self.store, count);
                self.leaving.push(Leaving::Stamps(reply, outcome));
                return Ok(());
            }
            Message::Hello { peer, reply } => {
                // It shows the last commit, which a crash must not take back once a peer has seen it.
                let hello = self.replica.hello(&self.store, peer);
                self.leaving.push(Leaving::Hello(reply, hello));
                return Ok(());
            }
            Message::LinkUp { hello, connection, frames } => {
                self.links.insert(hello.node, Outgoing { frames, connection });
                Input::LinkUp(hello)
            }
            Message::LinkDown { peer, connection } => {
                if self.links.get(&peer).is_none_or(|link| link.connection != connection) {
                    return Ok(()); // another connection has taken its place
                }
                self.links.remove(&peer);
                Input::LinkDown(peer)
            }
            Message::Frame { .. } => return Ok(()), // sorted elsewhere
            Message::Settle { shard, key } => Input::Settle { shard, key },
            Message::Salvage(changes) => Input::Salvage(changes),
            Message::Records { records, all } => Input::Records { records, all },
            Message::Synced => {
                self.inputs -= 1;
                return Ok(());
            }
            Message::Stop => Input::Tick,
        };
        Ok(self.replica.handle(now, &mut self.store, input)?)
    }

    /// Prepares an output to be carried out when the turn is durable.
    fn leave(&mut self, output: Output, leaving: &mut Vec<Leaving>) -> Result<(), Failure> {
        match output {
            Output::Reply { ticket, outcome } => {
                if let Some(reply) = self.replies.remove(&ticket) {
                    leaving.push(Leaving::Reply(reply, outcome));
                }
            }
            Output::Propose(record) => {
                if self.proposed.try_send(*record).is_err() {
                    debug!("a step of a move is not proposed now: too many are"); // the steward proposes it again
                }
            }
            Output::Parked { ticket, outcome } => {
                if let Some(reply) = self.parked.remove(&ticket) {
                    leaving.push(Leaving::Parked(reply, outcome));
                }
            }
            Output::Verified { ticket, outcome } => {
                if let Some(reply) = self.verified.remove(&ticket) {
                    leaving.push(Leaving::Verified(reply, Box::new(outcome)));
                }
            }
            Output::Send { to, frame } => {
                let Some(link) = self.links.get(&to) else { return Ok(()) };
                if let Ok(place) = link.frames.clone().try_reserve_owned() {
                    leaving.push(Leaving::Frame(place, frame));
                } else {
                    warn!(peer = %to, "a link does not keep up with its frames and is dropped");
                    self.links.remove(&to);
                    let now = self.time.now();
                    self.replica.handle(now, &mut self.store, Input::LinkDown(to))?;
                }
            }
            Output::Disconnect { peer, reason } => {
                info!(%peer, reason, "link dropped");
                self.links.remove(&peer);
            }
            Output::Event(Event::Short { by, reason }) => {
                return Err(Failure::Short(format!("{by} says: {reason}")));
            }
            Output::Event(Event::Refused { from, reason }) => warn!(%from, reason, "change refused"),
            Output::Event(Event::Parked { reason }) => {
                warn!(reason, "a change could not be applied: its key is parked")
            }
            Output::Event(Event::Retried { applied, served }) => {
                info!(applied, served, "changes that were put aside were tried again")
            }
            Output::Event(Event::Dropped { scope, changes, row }) => {
                warn!(%scope, changes, row, "an operator dropped what was kept of a parked key")
            }
            Output::Event(Event::Recounted { was, is }) => {
                warn!(?was, ?is, "the keys were counted anew: a row was not what had been written");
            }
            Output::Event(Event::Rotted { scope, shard }) => {
                warn!(%scope, %shard, "a digest summed up anew is another one: rows were not what had been written");
            }
            Output::Event(Event::DigestsDiffer { peer, shard }) => {
                warn!(%peer, %shard, "a peer has another digest at the same vector");
            }
            Output::Event(Event::Repaired { peer, shard, keys }) => {
                warn!(%peer, %shard, keys, "keys that were not what they should be were repaired from a peer");
            }
            Output::Event(Event::Rebuilding { seen_by }) => {
                warn!(peer = %seen_by, "a peer has seen another store of this node: it was lost, and is rebuilt");
            }
            Output::Event(Event::Rebuilt { cause, salvaged, .. }) => {
                let Salvaged { read, taken, left } = salvaged;
                info!(?cause, read, taken, left, "the store has what its peers could give, and is served");
            }
            Output::Event(Event::Owes(peer)) => {
                info!(%peer, "the log does not reach back to what a peer has: it is shown every shard");
            }
            Output::Event(Event::Landed { shard, keys }) => info!(%shard, keys, "a shard came as a whole"),
            Output::Event(Event::Traced(mut traced)) => {
                self.applied.append(&mut traced.stamps);
                self.telemetry.applied(self.time.now(), traced, &mut self.spans);
            }
            Output::Event(event) => debug!(?event, "replica"),
        }
        Ok(())
    }
}

/// A time in us.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
