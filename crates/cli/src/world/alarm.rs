//! Waking tasks at a precise moment.
//!
//! The runtime's timers count whole milliseconds and round up, which would add a millisecond to each direction of every
//! link. One thread that sleeps until the earliest moment asked for is exact to some 0.1 ms and costs nothing while
//! nothing is due.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

/// The clock of a world's links. Its thread ends when the alarm is dropped.
pub(crate) struct Alarm {
    shared: Arc<Shared>,
}

struct Shared {
    calls: Mutex<Calls>,
    changed: Condvar,
}

/// What is asked for. Every connection waits for at most one moment per direction, so connections bound it.
#[derive(Default)]
struct Calls {
    waiting: BinaryHeap<Call>,
    closed: bool,
}

struct Call {
    due: Instant,
    wake: oneshot::Sender<()>,
}

impl Alarm {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared { calls: Mutex::default(), changed: Condvar::new() });
        let ringing = shared.clone();
        thread::Builder::new().name("links".to_owned()).spawn(move || ringing.ring())?;
        Ok(Self { shared })
    }

    /// Returns at `due`, never before.
    pub(crate) async fn at(&self, due: Instant) {
        if due <= Instant::now() {
            return;
        }
        let (wake, woken) = oneshot::channel();
        {
            let mut calls = self.shared.calls();
            let earliest = calls.waiting.peek().is_none_or(|call| due < call.due);
            calls.waiting.push(Call { due, wake });
            if earliest {
                self.shared.changed.notify_one();
            }
        }
        // The thread lives as long as the alarm, which is borrowed here: nobody drops `wake` unsent.
        let _ = woken.await;
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.calls().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn ring(&self) {
        let mut calls = self.calls();
        while !calls.closed {
            let now = Instant::now();
            while calls.waiting.peek().is_some_and(|call| call.due <= now) {
                if let Some(call) = calls.waiting.pop() {
                    let _ = call.wake.send(()); // who asked may be gone
                }
            }
            calls = match calls.waiting.peek().map(|call| call.due - now) {
                Some(rest) => {
                    self.changed.wait_timeout(calls, rest).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(calls).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The earliest call is the greatest: the heap gives out the greatest first.
impl Ord for Call {
    fn cmp(&self, other: &Self) -> Ordering {
        other.due.cmp(&self.due)
    }
}

impl PartialOrd for Call {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Call {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Call {}
