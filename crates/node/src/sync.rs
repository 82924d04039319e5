//! The end of a turn: sync, publish, witness, and only then what leaves.
//!
//! While one turn is being synced on the thread here, the replica's thread gathers the next one, and commits it when this
//! one is done: one sync at a time, and each covers everything that came during the one before.

use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tropism_crdt::{ClockError, NodeId, Origin, Stamp};
use tropism_replica::{
    Frame, Hello, Latencies, ParkedError, ParkedStep, VerifiedShard, VerifyError, WriteDone, WriteError,
};
use tropism_storage::{Head, Syncer};

use crate::driver::{Failure, Message, Published, Queued, wall_ms};
use crate::lane::{Answers, Replier};
use crate::telemetry::Open;
use crate::telemetry::metrics::Metrics;

/// Where a sync leaves its mark outside the store.
pub trait Witnessed: Send {
    /// A sync is done.
    fn synced(&mut self, origin: Origin, reserved_ms: u64, head: Head) -> io::Result<()>;
}

/// What leaves a node when its turn is durable.
pub(crate) enum Leaving {
    Reply(Replier, Result<WriteDone, WriteError>),
    Parked(oneshot::Sender<Result<ParkedStep, ParkedError>>, Result<ParkedStep, ParkedError>),
    Verified(oneshot::Sender<Result<VerifiedShard, VerifyError>>, Box<Result<VerifiedShard, VerifyError>>),
    Stamps(oneshot::Sender<Result<Vec<Stamp>, ClockError>>, Result<Vec<Stamp>, ClockError>),
    Hello(oneshot::Sender<Hello>, Hello),
    /// A frame with its place in the queue of the peer's connection.
    Frame(mpsc::OwnedPermit<Frame>, Frame),
}

/// A committed turn.
pub(crate) struct Turn {
    /// Whether there is anything to sync.
    pub(crate) committed: bool,
    pub(crate) origin: Origin,
    pub(crate) reserved_ms: u64,
    /// What readers see from then on, when that is news.
    pub(crate) published: Option<Published>,
    pub(crate) leaving: Vec<Leaving>,
    /// When the writes in it had come.
    pub(crate) came: Vec<Instant>,
    /// What ends with it.
    pub(crate) spans: Vec<Open>,
    /// Changes of peers in it: who made them, and when.
    pub(crate) applied: Vec<(NodeId, Stamp)>,
}

/// Finishes turns, one after the other.
pub(crate) struct Finisher {
    pub(crate) syncer: Box<dyn Syncer>,
    pub(crate) witness: Option<Box<dyn Witnessed>>,
    pub(crate) published: Arc<ArcSwap<Published>>,
    pub(crate) commits: watch::Sender<u64>,
    /// How long writes took, from when they came until they are durable.
    pub(crate) latencies: Arc<Mutex<Latencies>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Finisher {
    /// Nothing of the turn leaves when this fails.
    fn finish(&mut self, turn: Turn) -> Result<(), Failure> {
        let Turn { committed, origin, reserved_ms, published, leaving, came, spans, applied } = turn;
        if committed {
            let began = Instant::now();
            self.syncer.sync().map_err(|error| Failure::Store(error.into()))?;
            self.metrics.committed(came.len(), began.elapsed());
        }
        if !came.is_empty() {
            let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
            for came in came {
                latencies.record(u64::try_from(came.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
        }
        if let Some(published) = published {
            let head = published.head;
            self.published.store(Arc::new(published));
            if committed {
                self.commits.send_replace(head.commit);
                if let Some(witness) = &mut self.witness {
                    let witnessed = witness.synced(origin, reserved_ms, head);
                    witnessed.map_err(|error| Failure::Witness(error.to_string()))?;
                }
            }
        }
        drop(spans);
        if !applied.is_empty() {
            self.metrics.applied(&applied, wall_ms());
        }
        let mut answers = Answers::default();
        for leaving in leaving {
            // Whoever waited may have gone.
            match leaving {
                Leaving::Reply(reply, outcome) => answers.send(reply, outcome),
                Leaving::Parked(reply, outcome) => drop(reply.send(outcome)),
                Leaving::Verified(reply, outcome) => drop(reply.send(*outcome)),
                Leaving::Stamps(reply, outcome) => drop(reply.send(outcome)),
                Leaving::Hello(reply, hello) => drop(reply.send(hello)),
                Leaving::Frame(place, frame) => drop(place.send(frame)),
            }
        }
        Ok(())
    }
}

/// The thread, as the replica's thread sees it. Invariant: at most one turn is with it.
pub(crate) struct SyncThread {
    finisher: Arc<Mutex<Finisher>>,
    turns: Sender<Turn>,
    done: Receiver<Result<(), Failure>>,
    busy: bool,
}

impl SyncThread {
    /// Starts it. It tells `messages` when a turn is done, and ends with this.
    pub(crate) fn start(finisher: Finisher, messages: Sender<Queued>) -> io::Result<Self> {
        let finisher = Arc::new(Mutex::new(finisher));
        let (turns, received) = channel::<Turn>();
        let (tell, done) = channel();
        let shared = finisher.clone();
        thread::Builder::new().name("sync".into()).spawn(move || {
            while let Ok(turn) = received.recv() {
                let outcome = locked(&shared).finish(turn);
                if tell.send(outcome).is_err() {
                    return;
                }
                messages.send(Message::Synced.into()).ok(); // it may have ended
            }
        })?;
        Ok(Self { finisher, turns, done, busy: false })
    }

    /// Whether a turn is being finished.
    pub(crate) fn busy(&mut self) -> Result<bool, Failure> {
        if self.busy {
            match self.done.try_recv() {
                Ok(outcome) => {
                    self.busy = false;
                    outcome?;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(Failure::Panicked),
            }
        }
        Ok(self.busy)
    }

    /// Waits until no turn is being finished.
    pub(crate) fn wait(&mut self) -> Result<(), Failure> {
        if self.busy {
            self.busy = false;
            self.done.recv().map_err(|_| Failure::Panicked)??;
        }
        Ok(())
    }

    /// Hands a turn over. Only when none is being finished.
    pub(crate) fn begin(&mut self, turn: Turn) {
        assert!(!self.busy, "turns are finished one after the other");
        self.busy = true;
        self.turns.send(turn).ok(); // a thread that is gone is noticed when its outcome is asked for
    }

    /// Finishes a turn on this thread. Only when none is being finished.
    pub(crate) fn in_place(&mut self, turn: Turn) -> Result<(), Failure> {
        assert!(!self.busy, "turns are finished one after the other");
        locked(&self.finisher).finish(turn)
    }
}

fn locked(finisher: &Mutex<Finisher>) -> MutexGuard<'_, Finisher> {
    finisher.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use bytes::Bytes;
    use tropism_crdt::{ExpiryChange, NodeId};
    use tropism_placement::{RegionName, Regions, ScopeName};
    use tropism_replica::{Identity, Opening, Write, WriteOp};
    use tropism_storage::engine::Rows;
    use tropism_storage::{Batch, Engine, EngineError, Footprint, MemoryEngine, Space, Store, Syncer, View};

    use super::Arc;
    use crate::driver::{CallError, Driver, Handle};
    use crate::telemetry::Telemetry;

    /// A memory engine on a disk that syncs when it is told to, or fails, and is full when it is told to be.
    struct Slow(MemoryEngine, Arc<AtomicBool>);

    impl View for Slow {
        fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
            self.0.get(space, key)
        }

        fn scan<'a>(&'a self, space: Space, from: &[u8], to: &[u8]) -> Rows<'a> {
            self.0.scan(space, from, to)
        }
    }

    impl Engine for Slow {
        fn commit(&mut self, batch: Batch) -> Result<(), EngineError> {
            if self.1.load(Ordering::SeqCst) {
                return Err(EngineError { doing: "committing", problem: "make room".into() });
            }
            self.0.commit(batch)
        }

        fn sync(&mut self) -> Result<(), EngineError> {
            self.0.sync()
        }

        fn syncer(&self) -> Box<dyn Syncer> {
            Box::new(Gate(GATE.take().unwrap()))
        }

        fn snapshot(&self) -> Arc<dyn View + Send + Sync> {
            self.0.snapshot()
        }

        fn durable(&self) -> bool {
            false
        }

        fn footprint(&self) -> Footprint {
            self.0.footprint()
        }
    }

    thread_local! {
        static GATE: std::cell::Cell<Option<Receiver<bool>>> = const { std::cell::Cell::new(None) };
    }

    struct Gate(Receiver<bool>);

    impl Syncer for Gate {
        fn sync(&mut self) -> Result<(), EngineError> {
            match self.0.recv() {
                Ok(false) => Err(EngineError { doing: "syncing", problem: "no".into() }),
                _ => Ok(()), // a test that is over lets everything go
            }
        }
    }

    const REGIONS: &str = "region = [{ name = \"a\", place = \"A\" }]\n[[rule]]\nname = \"all\"\npattern = \"**\"\n\
                           kind = \"register\"\n";

    fn driver() -> (Driver, Handle, Sender<bool>) {
        let (driver, handle, open, _) = driver_on_a_disk();
        (driver, handle, open)
    }

    /// With what fills the disk.
    fn driver_on_a_disk() -> (Driver, Handle, Sender<bool>, Arc<AtomicBool>) {
        let (open, gate) = channel();
        GATE.set(Some(gate));
        let regions = Regions::parse("test", REGIONS).unwrap();
        let identity = Identity {
            cluster: "test".into(),
            node: NodeId::new("a-1").unwrap(),
            region: RegionName::new("a").unwrap(),
            boot_random: 1,
            new_store_id: 1,
            opening: Opening { accept_loss: true, ..Opening::default() },
            peers: vec![],
            rules: regions.rules().clone(),
            directory: false,
            cache_bytes: 1 << 20,
            log_keep_ms: 600_000,
            digest_key: tropism_replica::DigestKey::default(),
            part_bytes: tropism_replica::limits::FRAME_BYTES,
            settle_keys: tropism_replica::limits::SETTLE_KEYS,
            log_cap_ms: u64::MAX,
            log_cap_bytes: u64::MAX,
            log_keep_bytes: 1 << 20,
        };
        let full = Arc::new(AtomicBool::new(false));
        let store = Store::open(Box::new(Slow(MemoryEngine::new(), full.clone()))).unwrap();
        let (driver, handle) = Driver::start(store, identity, None, Telemetry::default()).unwrap();
        (driver, handle, open, full)
    }

    /// Writes; says in which commit.
    fn put(handle: &Handle, key: u32) -> tokio::task::JoinHandle<Result<u64, CallError>> {
        let write = Write {
            scope: ScopeName::new("s").unwrap(),
            key: key.to_string(),
            op: WriteOp::PutRegister { content_type: String::new(), bytes: Bytes::from_static(b"v") },
            precondition: None,
            expiry: ExpiryChange::Keep,
            durability: None,
            deadline_us: u64::MAX,
            request_id: None,
            trace: None,
        };
        let handle = handle.clone();
        tokio::spawn(async move { handle.write(write).await.map(|done| done.commit) })
    }

    /// Long enough that what can happen does.
    async fn a_while() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    #[tokio::test]
    async fn nothing_leaves_or_shows_before_its_sync_and_the_next_turn_is_gathered_meanwhile() {
        let (driver, handle, open) = driver();
        let first: Vec<_> = (0..20).map(|key| put(&handle, key)).collect();
        a_while().await;
        let second: Vec<_> = (20..40).map(|key| put(&handle, key)).collect();
        a_while().await;
        let head = handle.published().head;
        assert!(first.iter().chain(&second).all(|write| !write.is_finished()), "nothing is durable yet");
        // As many turns as it takes: each is let through, and what it holds is answered and shown.
        for write in first.into_iter().chain(second) {
            while !write.is_finished() {
                open.send(true).unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let commit = write.await.unwrap().unwrap();
            assert!(commit > head.commit && handle.published().head.commit >= commit);
        }
        // The order to stop joins a turn of many writes that waits for the sync of the one before.
        let begun: Vec<_> = (40..60).map(|key| put(&handle, key)).collect();
        a_while().await;
        let last: Vec<_> = (60..80).map(|key| put(&handle, key)).collect();
        a_while().await;
        let failed = handle.failed();
        let stopped = tokio::task::spawn_blocking(|| driver.stop());
        a_while().await;
        drop(open);
        stopped.await.unwrap();
        let mut head = 0;
        for write in begun.into_iter().chain(last) {
            head = head.max(write.await.unwrap().unwrap());
        }
        assert!(
            handle.published().head.commit > head,
            "what a clean stop leaves is written behind the writes"
        );
        assert_eq!(*failed.borrow(), None);
    }

    #[tokio::test]
    async fn a_sync_that_fails_answers_nobody_and_stops_the_node() {
        let (_driver, handle, open) = driver();
        let writes: Vec<_> = (0..20).map(|key| put(&handle, key)).collect();
        let mut failed = handle.failed();
        open.send(false).unwrap();
        failed.wait_for(Option::is_some).await.unwrap();
        for write in writes {
            assert!(matches!(write.await.unwrap(), Err(CallError::Stopped)));
        }
        assert!(matches!(*failed.borrow(), Some(super::Failure::Store(_))));
    }

    #[tokio::test]
    async fn after_a_write_that_failed_nothing_is_acknowledged_or_shown_and_the_reason_says_what_to_do() {
        for disk_is_full in [false, true] {
            let (_driver, handle, open, full) = driver_on_a_disk();
            let before = put(&handle, 0);
            open.send(true).unwrap();
            let commit = before.await.unwrap().unwrap();
            // One write alone is synced by the thread that commits it.
            full.store(disk_is_full, Ordering::SeqCst);
            open.send(false).unwrap();
            let write = put(&handle, 1).await.unwrap();
            assert!(matches!(write, Err(CallError::Stopped)), "its outcome is unknown: {write:?}");
            let mut failed = handle.failed();
            let failure = failed.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            assert!(matches!(&failure, super::Failure::Store(_)));
            let text = failure.to_string();
            assert!(text.contains("outcome of what was in flight is unknown"), "{text}");
            assert!(!disk_is_full || text.contains("while committing: make room"), "{text}");
            // The disk may work again: a node that failed says nothing more.
            full.store(false, Ordering::SeqCst);
            open.send(true).ok(); // nobody may be there to sync
            assert!(matches!(put(&handle, 2).await.unwrap(), Err(CallError::Stopped)));
            assert_eq!(handle.published().head.commit, commit);
        }
    }
}
