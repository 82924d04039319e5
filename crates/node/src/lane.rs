//! Answers on their way back to the thread that asked.
//!
//! A turn answers many writes at once. Waking a task on another thread costs a lock and a system call each; so answers
//! for one thread travel together, and a task there hands them out, which costs neither.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, oneshot};
use tropism_replica::{WriteDone, WriteError};

type Outcome = Result<WriteDone, WriteError>;

thread_local! {
    static LANE: RefCell<Option<Arc<Lane>>> = const { RefCell::new(None) };
}

/// Answers for the tasks of one thread. Holds no more than the inputs of a turn, which are bounded.
#[derive(Default)]
struct Lane {
    answers: Mutex<Vec<(oneshot::Sender<Outcome>, Outcome)>>,
    arrived: Notify,
}

/// Makes the calling thread's answers travel together: to be called once on a current-thread runtime.
pub(crate) fn enter() {
    let lane = Arc::new(Lane::default());
    LANE.set(Some(lane.clone()));
    tokio::spawn(async move {
        loop {
            lane.arrived.notified().await;
            let answers = std::mem::take(&mut *lane.answers.lock().unwrap_or_else(PoisonError::into_inner));
            for (reply, outcome) in answers {
                reply.send(outcome).ok(); // whoever asked may have gone
            }
        }
    });
}

/// Where the answer to one write goes.
pub(crate) struct Replier {
    reply: oneshot::Sender<Outcome>,
    lane: Option<Arc<Lane>>,
}

impl Replier {
    /// For a write of the calling thread.
    pub(crate) fn new() -> (Self, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        (Self { reply, lane: LANE.with_borrow(Clone::clone) }, outcome)
    }

    /// Whether whoever asked has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Answers of one turn.
#[derive(Default)]
pub(crate) struct Answers {
    lanes: Vec<Arc<Lane>>,
}

impl Answers {
    /// Answers one write, at the latest when this is dropped.
    pub(crate) fn send(&mut self, Replier { reply, lane }: Replier, outcome: Outcome) {
        let Some(lane) = lane else {
            reply.send(outcome).ok(); // whoever asked may have gone
            return;
        };
        lane.answers.lock().unwrap_or_else(PoisonError::into_inner).push((reply, outcome));
        if !self.lanes.iter().any(|other| Arc::ptr_eq(other, &lane)) {
            self.lanes.push(lane);
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.arrived.notify_one();
        }
    }
}
