//! The only loop around the replica: one thread that owns replica and store, and the handle the rest of the node uses.
//!
//! The thread drains the inputs that are there, flushes, commits, syncs, publishes a snapshot and only then lets
//! replies and frames leave: group commit without linger. Readers never queue here: they take the last published
//! snapshot.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};
use tropism_crdt::{ClockError, NodeId, Origin, Stamp};
use tropism_replica::{
    BootError, Event, Frame, Hello, Identity, Input, Now, Output, Replica, ReplicaError, Status, Ticket,
    Write, WriteDone, WriteError,
};
use tropism_storage::{Footprint, Head, Store, StoreError, Tally, View};

/// Inputs that wait for the replica; beyond it client calls are shed and peers are slowed down. At 30 000 writes a
/// second this is a tenth of a second.
pub const INPUT_QUEUE: usize = 4_096;
/// Inputs of one turn: bounds the batch and how long the first of them waits for the last.
const TURN_INPUTS: usize = 1_024;
/// Frames that wait for a peer's socket; credit bounds their bytes to a few MiB. Beyond it the link is dropped.
pub const FRAME_QUEUE: usize = 1_024;
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

enum Message {
    Write { write: Box<Write>, reply: oneshot::Sender<Result<WriteDone, WriteError>> },
    Stamps { count: u16, reply: oneshot::Sender<Result<Vec<Stamp>, ClockError>> },
    Hello { peer: NodeId, reply: oneshot::Sender<Hello> },
    LinkUp { hello: Hello, connection: u64, frames: mpsc::Sender<Frame> },
    LinkDown { peer: NodeId, connection: u64 },
    Frame { peer: NodeId, connection: u64, frame: Frame },
    Stop,
}

/// Where a sync leaves its mark outside the store.
pub trait Witnessed: Send {
    /// A sync is done.
    fn synced(&mut self, origin: Origin, reserved_ms: u64, head: Head) -> std::io::Result<()>;
}

/// The way to the replica. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    messages: SyncSender<Message>,
    published: Arc<ArcSwap<Published>>,
    commits: watch::Receiver<u64>,
    failed: watch::Receiver<Option<Failure>>,
    time: Time,
}

impl Handle {
    /// Writes, and waits for the durability the write asks for.
    pub async fn write(&self, write: Write) -> Result<WriteDone, CallError> {
        let (reply, outcome) = oneshot::channel();
        self.try_send(Message::Write { write: Box::new(write), reply })?;
        Ok(outcome.await.map_err(|_| CallError::Stopped)??)
    }

    /// Stamps that nobody else gets.
    pub async fn stamps(&self, count: u16) -> Result<Vec<Stamp>, CallError> {
        let (reply, stamps) = oneshot::channel();
        self.try_send(Message::Stamps { count, reply })?;
        Ok(stamps.await.map_err(|_| CallError::Stopped)??)
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

    /// The node's clocks.
    pub fn time(&self) -> Time {
        self.time
    }

    /// What to show a peer.
    pub(crate) async fn hello(&self, peer: NodeId) -> Option<Hello> {
        let (reply, hello) = oneshot::channel();
        self.send(Message::Hello { peer, reply }).await;
        hello.await.ok()
    }

    pub(crate) async fn link_up(&self, hello: Hello, connection: u64, frames: mpsc::Sender<Frame>) {
        self.send(Message::LinkUp { hello, connection, frames }).await;
    }

    pub(crate) async fn link_down(&self, peer: NodeId, connection: u64) {
        self.send(Message::LinkDown { peer, connection }).await;
    }

    pub(crate) async fn frame(&self, peer: NodeId, connection: u64, frame: Frame) {
        self.send(Message::Frame { peer, connection, frame }).await;
    }

    /// For clients: sheds when the queue is full.
    fn try_send(&self, message: Message) -> Result<(), CallError> {
        self.messages.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => CallError::Busy,
            TrySendError::Disconnected(_) => CallError::Stopped,
        })
    }

    /// For peers: waits, so that a full queue slows the link down.
    async fn send(&self, mut message: Message) {
        while let Err(TrySendError::Full(back)) = self.messages.try_send(message) {
            message = back;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The running driver.
pub struct Driver {
    messages: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Boots a replica on a store and starts its thread. When this returns, what boot wrote is durable.
    pub fn start(
        mut store: Store,
        identity: Identity,
        witness: Option<Box<dyn Witnessed>>,
    ) -> Result<(Self, Handle), BootError> {
        let time = Time::default();
        let now = time.now();
        // The replica is made here to report errors at once; it is not Sync but moves.
        let replica = Replica::boot(now, &mut store, identity)?;
        store.commit(now.wall_ms)?;
        store.sync()?;
        let status_at = now;
        let published = Published {
            snapshot: store.snapshot(),
            head: store.head(),
            stable_commit: replica.stable_commit(),
            status: Arc::new(replica.status(now)),
            status_at,
            tally: store.tally(),
            footprint: store.footprint(),
        };
        let (messages, inbox) = sync_channel(INPUT_QUEUE);
        let (commits_sender, commits) = watch::channel(store.head().commit);
        let (failed_sender, failed) = watch::channel(None);
        let published = Arc::new(ArcSwap::from_pointee(published));
        let handle =
            Handle { messages: messages.clone(), published: published.clone(), commits, failed, time };
        let mut turns = Turns {
            replica,
            store,
            witness,
            time,
            published,
            commits: commits_sender,
            replies: HashMap::new(),
            links: HashMap::new(),
            next_ticket: 0,
            status_due: Instant::now(),
            footprint_due: Instant::now(),
        };
        turns.witness().ok(); // written again with the first turn; its failure is reported there
        let thread = std::thread::Builder::new().name("replica".into()).spawn(move || {
            if let Err(failure) = turns.run(&inbox) {
                error!(%failure, "the node stops");
                failed_sender.send_replace(Some(failure));
            }
        });
        let thread = thread.map_err(|error| {
            StoreError::Engine(tropism_storage::EngineError {
                doing: "starting its thread",
                problem: error.to_string(),
            })
        })?;
        Ok((Self { messages, thread: Some(thread) }, handle))
    }

    /// Stops after the turn under way, leaving what a clean stop leaves.
    pub fn stop(mut self) {
        if self.messages.send(Message::Stop).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the replica's thread panicked");
        }
    }
}

/// What the thread owns.
struct Turns {
    replica: Replica,
    store: Store,
    witness: Option<Box<dyn Witnessed>>,
    time: Time,
    published: Arc<ArcSwap<Published>>,
    commits: watch::Sender<u64>,
    replies: HashMap<Ticket, oneshot::Sender<Result<WriteDone, WriteError>>>,
    links: HashMap<NodeId, Outgoing>,
    next_ticket: Ticket,
    status_due: Instant,
    footprint_due: Instant,
}

impl Turns {
    fn run(&mut self, inbox: &Receiver<Message>) -> Result<(), Failure> {
        let mut stamps = Vec::new();
        loop {
            let now = self.time.now();
            let patience = Duration::from_micros(self.replica.next_deadline(now).saturating_sub(now.mono_us));
            let first = match inbox.recv_timeout(patience) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.stop(),
            };
            let now = self.time.now();
            let mut stopping = false;
            if let Some(first) = first {
                for message in std::iter::once(first).chain(inbox.try_iter()).take(TURN_INPUTS) {
                    stopping |= matches!(message, Message::Stop);
                    self.take(now, message, &mut stamps)?;
                }
            } else {
                self.replica.handle(now, &mut self.store, Input::Tick)?;
            }
            self.replica.flush(now, &mut self.store)?;
            if self.store.commit(now.wall_ms)?.is_some() {
                let snapshot = self.store.snapshot();
                self.store.sync()?;
                self.publish(now, snapshot);
                self.witness()?;
            } else if self.status_due <= Instant::now() {
                self.publish(now, self.store.snapshot());
            }
            for (reply, outcome) in stamps.drain(..) {
                let reply: oneshot::Sender<_> = reply;
                reply.send(outcome).ok(); // the caller may have gone
            }
            while let Some(output) = self.replica.poll_output() {
                self.carry_out(output)?;
            }
            if stopping {
                return self.stop();
            }
        }
    }

    fn stop(&mut self) -> Result<(), Failure> {
        self.replica.stop(&mut self.store);
        self.store.commit(wall_ms())?;
        self.store.sync()?;
        self.witness()?;
        info!("stopped cleanly");
        Ok(())
    }

    #[allow(clippy::type_complexity, reason = "replies that wait for the sync, in one place")]
    fn take(
        &mut self,
        now: Now,
        message: Message,
        stamps: &mut Vec<(oneshot::Sender<Result<Vec<Stamp>, ClockError>>, Result<Vec<Stamp>, ClockError>)>,
    ) -> Result<(), Failure> {
        let input = match message {
            Message::Write { write, reply } => {
                if reply.is_closed() {
                    return Ok(()); // the caller has gone before anything happened
                }
                self.next_ticket += 1;
                self.replies.insert(self.next_ticket, reply);
                Input::Write { ticket: self.next_ticket, write }
            }
            Message::Stamps { count, reply } => {
                let outcome = self.replica.stamps(now, &mut self.store, count);
                stamps.push((reply, outcome));
                return Ok(());
            }
            Message::Hello { peer, reply } => {
                reply.send(self.replica.hello(&self.store, peer)).ok();
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
            Message::Frame { peer, connection, frame } => {
                if self.links.get(&peer).is_none_or(|link| link.connection != connection) {
                    return Ok(());
                }
                Input::Frame { from: peer, frame }
            }
            Message::Stop => Input::Tick,
        };
        Ok(self.replica.handle(now, &mut self.store, input)?)
    }

    fn publish(&mut self, now: Now, snapshot: Arc<dyn View + Send + Sync>) {
        let last = self.published.load();
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
        drop(last);
        let head = self.store.head();
        let stable_commit = self.replica.stable_commit();
        let tally = self.store.tally();
        self.published.store(Arc::new(Published {
            snapshot,
            head,
            stable_commit,
            status,
            status_at,
            tally,
            footprint,
        }));
        self.commits.send_replace(head.commit);
    }

    fn witness(&mut self) -> Result<(), Failure> {
        let Some(witness) = &mut self.witness else { return Ok(()) };
        witness
            .synced(self.replica.origin(), self.replica.reserved_ms(), self.store.head())
            .map_err(|error| Failure::Witness(error.to_string()))
    }

    fn carry_out(&mut self, output: Output) -> Result<(), Failure> {
        match output {
            Output::Reply { ticket, outcome } => {
                if let Some(reply) = self.replies.remove(&ticket) {
                    reply.send(outcome).ok(); // the caller may have gone
                }
            }
            Output::Send { to, frame } => {
                if self.links.get(&to).is_some_and(|link| link.frames.try_send(frame).is_err()) {
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
            Output::Event(Event::Recounted { was, is }) => {
                warn!(?was, ?is, "the keys were counted anew: a row was not what had been written");
            }
            Output::Event(event) => debug!(?event, "replica"),
        }
        Ok(())
    }
}
