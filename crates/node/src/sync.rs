//! The end of a turn: sync, publish, witness, and only then what leaves.
//!
//! While one turn is being synced on the thread here, the replica's thread gathers the next one, and commits it when this
//! one is done: one sync at a time, and each covers everything that came during the one before.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tropism_crdt::{ClockError, Origin, Stamp};
use tropism_replica::{Frame, Hello, WriteDone, WriteError};
use tropism_storage::{Head, Syncer};

use crate::driver::{Failure, Message, Published};
use crate::lane::{Answers, Replier};

/// Where a sync leaves its mark outside the store.
pub trait Witnessed: Send {
    /// A sync is done.
    fn synced(&mut self, origin: Origin, reserved_ms: u64, head: Head) -> io::Result<()>;
}

/// What leaves a node when its turn is durable.
pub(crate) enum Leaving {
    Reply(Replier, Result<WriteDone, WriteError>),
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
}

/// Finishes turns, one after the other.
pub(crate) struct Finisher {
    pub(crate) syncer: Box<dyn Syncer>,
    pub(crate) witness: Option<Box<dyn Witnessed>>,
    pub(crate) published: Arc<ArcSwap<Published>>,
    pub(crate) commits: watch::Sender<u64>,
}

impl Finisher {
    /// Nothing of the turn leaves when this fails.
    fn finish(&mut self, turn: Turn) -> Result<(), Failure> {
        let Turn { committed, origin, reserved_ms, published, leaving } = turn;
        if committed {
            self.syncer.sync().map_err(|error| Failure::Store(error.into()))?;
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
        let mut answers = Answers::default();
        for leaving in leaving {
            // Whoever waited may have gone.
            match leaving {
                Leaving::Reply(reply, outcome) => answers.send(reply, outcome),
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
    pub(crate) fn start(finisher: Finisher, messages: SyncSender<Message>) -> io::Result<Self> {
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
                // When the queue is full, the replica's thread is not asleep and looks by itself.
                messages.try_send(Message::Synced).ok();
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
