//! What waits for the replica's thread, and in which order it is taken: what clients want, then what peers send in its
//! time, then what is late, as far as the budget goes.
//!
//! Neither starves: the last part of a turn belongs to the peers, and late frames have the floor of the budget.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tropism_crdt::NodeId;
use tropism_replica::limits::LATE_CHANGE_US;
use tropism_replica::{Arrivals, Frame, FrameBody, Now, Pace, Taken};

use crate::driver::{Message, TURN_INPUTS};

/// Frames of one connection that wait for the replica; beyond it the peer is slowed down. Its credits bound their bytes:
/// 64 MiB of states in parts of 64 KiB, and as much again in frames that say little.
pub(crate) const PEER_FRAMES: usize = 2_048;
/// The shortest and the longest time that one late change is believed to take, ns.
const CHANGE_NS: (u64, u64) = (1_000, 1_000_000);

/// The queues of the replica's thread.
pub(crate) struct Inbox {
    messages: Receiver<Message>,
    /// What is done at once: links that come and go, the end of a sync, the stop.
    control: VecDeque<Message>,
    clients: VecDeque<Message>,
    /// Frames, each with its place among [`PEER_FRAMES`].
    peers: Arrivals<OwnedSemaphorePermit>,
    /// The connection of each peer of which frames are taken.
    connections: HashMap<NodeId, u64>,
    /// When late frames are taken next.
    late_due: Instant,
    /// How long a late change takes, as measured, ns.
    change_ns: u64,
}

/// What is taken next.
pub(crate) enum Next {
    Message(Message),
    Frame(NodeId, u64, Frame),
}

/// How waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    Came,
    InVain,
    Over,
}

impl Inbox {
    pub(crate) fn new(messages: Receiver<Message>) -> Self {
        Self {
            messages,
            control: VecDeque::new(),
            clients: VecDeque::new(),
            peers: Arrivals::default(),
            connections: HashMap::new(),
            late_due: Instant::now(),
            change_ns: LATE_CHANGE_US * 1_000,
        }
    }

    /// Sorts what has come. What does not fit here stays in the queue, which is bounded.
    pub(crate) fn receive(&mut self, now: Now) {
        while self.clients.len() < TURN_INPUTS
            && let Ok(message) = self.messages.try_recv()
        {
            self.sort(now, message);
        }
    }

    /// Waits until something comes.
    pub(crate) fn wait(&mut self, now: Now, patience: Duration) -> Waited {
        match self.messages.recv_timeout(patience) {
            Ok(message) => {
                self.sort(now, message);
                Waited::Came
            }
            Err(RecvTimeoutError::Timeout) => Waited::InVain,
            Err(RecvTimeoutError::Disconnected) => Waited::Over,
        }
    }

    fn sort(&mut self, now: Now, message: Message) {
        match message {
            Message::Frame { peer, connection, frame, place } => {
                // Of a connection that is gone nothing is taken: its frames are numbered by themselves.
                if self.connections.get(&peer) == Some(&connection) {
                    self.peers.push(now, peer, frame, place);
                }
            }
            Message::LinkUp { ref hello, connection, .. } => {
                self.connections.insert(hello.node, connection);
                self.peers.forget(hello.node);
                self.control.push_back(message);
            }
            Message::LinkDown { peer, connection } => {
                if self.connections.get(&peer) == Some(&connection) {
                    self.connections.remove(&peer);
                    self.peers.forget(peer);
                }
                self.control.push_back(message);
            }
            Message::Synced | Message::Stop => self.control.push_back(message),
            _ => self.clients.push_back(message),
        }
    }

    /// Whether something waits that is not late.
    pub(crate) fn has_prompt(&self) -> bool {
        !self.control.is_empty() || !self.clients.is_empty() || self.peers.has_live()
    }

    /// The next thing that is not late: a client's, or first a peer's.
    pub(crate) fn next(&mut self, peers_first: bool) -> Option<Next> {
        if let Some(message) = self.control.pop_front() {
            return Some(Next::Message(message));
        }
        if peers_first && let Some(taken) = self.peers.take_live() {
            return Some(self.frame(taken));
        }
        match self.clients.pop_front() {
            Some(message) => Some(Next::Message(message)),
            None => self.peers.take_live().map(|taken| self.frame(taken)),
        }
    }

    /// How long until late frames are to be taken; `None` when there are none.
    pub(crate) fn late_in(&self) -> Option<Duration> {
        self.peers.has_late().then(|| self.late_due.saturating_duration_since(Instant::now()))
    }

    /// The next late frame, or as much of it as takes `us`; and how many changes it carries.
    pub(crate) fn next_late(&mut self, us: u64) -> Option<(Next, usize)> {
        let changes = usize::try_from(us.saturating_mul(1_000) / self.change_ns).unwrap_or(usize::MAX);
        let taken = self.peers.take_late(changes)?;
        let changes = taken.changes();
        Some((self.frame(taken), changes))
    }

    /// Learns how long so many late changes took.
    pub(crate) fn took(&mut self, changes: usize, time: Duration) {
        let each = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / changes.max(1) as u64;
        self.change_ns = (self.change_ns * 7 + each.clamp(CHANGE_NS.0, CHANGE_NS.1)) / 8;
    }

    /// Leaves late frames alone after they took `us`, as the pace says.
    pub(crate) fn pause_late(&mut self, pace: Pace, us: u64) {
        let pause = Duration::from_micros(pace.pause_us(us));
        let now = Instant::now();
        self.late_due = if pace.stretch_us() == 0 { now + pause } else { self.late_due.max(now) + pause };
    }

    fn frame(&self, taken: Taken<OwnedSemaphorePermit>) -> Next {
        // The place becomes free for the next frame of the connection.
        let Taken { from, frame, tag: _ } = taken;
        Next::Frame(from, self.connections.get(&from).copied().unwrap_or(0), frame)
    }
}

/// Whether what a frame carries is measured by its changes.
pub(crate) fn carries_changes(frame: &Frame) -> bool {
    matches!(frame.body, FrameBody::Changes(_))
}
