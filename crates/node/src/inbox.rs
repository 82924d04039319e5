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

use crate::driver::{Message, Queued};

/// Frames of one connection that wait for the replica; beyond it the peer is slowed down. Its credits bound their bytes:
/// 64 MiB of states in parts of 64 KiB, and as much again in frames that say little.
pub(crate) const PEER_FRAMES: usize = 2_048;
/// The shortest and the longest time that one late change is believed to take, ns.
const CHANGE_NS: (u64, u64) = (1_000, 1_000_000);

/// The queues of the replica's thread. Bounded by the places that calls and frames have in them.
pub(crate) struct Inbox {
    messages: Receiver<Queued>,
    /// What is done at once: links that come and go, the end of a sync, the stop.
    control: VecDeque<Message>,
    clients: VecDeque<Queued>,
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

impl Waited {
    /// What it means when waiting in vain means something.
    pub(crate) fn or(self, in_vain: Self) -> Self {
        if self == Self::InVain { in_vain } else { self }
    }
}

impl Inbox {
    pub(crate) fn new(messages: Receiver<Queued>) -> Self {
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

    /// Sorts what has come.
    pub(crate) fn receive(&mut self, now: Now) {
        while let Ok(queued) = self.messages.try_recv() {
            self.sort(now, queued);
        }
    }

    /// Waits until something comes.
    pub(crate) fn wait(&mut self, now: Now, patience: Duration) -> Waited {
        match self.messages.recv_timeout(patience) {
            Ok(queued) => {
                self.sort(now, queued);
                Waited::Came
            }
            Err(RecvTimeoutError::Timeout) => Waited::InVain,
            Err(RecvTimeoutError::Disconnected) => Waited::Over,
        }
    }

    fn sort(&mut self, now: Now, queued: Queued) {
        let Queued { message, place } = queued;
        match message {
            Message::Frame { peer, connection, frame } => {
                // Of a connection that is gone nothing is taken: its frames are numbered by themselves.
                if self.connections.get(&peer) == Some(&connection)
                    && let Some(place) = place
                {
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
            _ => self.clients.push_back(Queued { message, place }),
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
            Some(Queued { message, .. }) => Some(Next::Message(message)),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};

    use bytes::Bytes;
    use tokio::sync::{Semaphore, mpsc, oneshot};
    use tropism_crdt::{Body, Change, ExpiryChange, Origin, Stamp};
    use tropism_placement::RegionName;
    use tropism_replica::Hello;
    use tropism_storage::Head;

    use super::*;

    const NOW: Now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };

    struct Peers {
        messages: Sender<Queued>,
        places: Arc<Semaphore>,
    }

    impl Peers {
        fn new() -> (Self, Inbox) {
            let (messages, received) = channel();
            (Self { messages, places: Arc::new(Semaphore::new(PEER_FRAMES)) }, Inbox::new(received))
        }

        fn link_up(&self, connection: u64) {
            let hello = Hello {
                node: peer(),
                region: RegionName::new("p").unwrap(),
                origin: origin(),
                store_id: 1,
                head: Head::default(),
                saw_you: None,
                replaced: false,
            };
            let (frames, _) = mpsc::channel(1);
            self.messages.send(Message::LinkUp { hello, connection, frames }.into()).unwrap();
        }

        /// A frame of so many changes, so old.
        fn changes(&self, connection: u64, count: u64, age_ms: u64) {
            let body = FrameBody::Changes((1..=count).map(|seq| change(seq, age_ms)).collect());
            let message =
                Message::Frame { peer: peer(), connection, frame: Frame { round: 0, number: 0, body } };
            let place = Some(self.places.clone().try_acquire_owned().unwrap());
            self.messages.send(Queued { message, place }).unwrap();
        }

        fn call(&self) {
            self.messages.send(Message::Stamps { count: 1, reply: oneshot::channel().0 }.into()).unwrap();
        }
    }

    fn peer() -> NodeId {
        NodeId::new("p-1").unwrap()
    }

    fn origin() -> Origin {
        Origin { node: peer(), incarnation: 1, random: 1 }
    }

    fn change(seq: u64, age_ms: u64) -> Bytes {
        let change = Change {
            scope: "s".into(),
            scope_incarnation: 0,
            shard_index: 0,
            origin: origin(),
            seq,
            deps: Vec::new(),
            stamp: Stamp::new(NOW.wall_ms - age_ms, 0),
            key: "k".into(),
            life: 0,
            generation: 0,
            epoch: 1,
            request_id: None,
            trace: None,
            expiry: ExpiryChange::Keep,
            body: Body::Touch,
        };
        change.encode()
    }

    fn word(next: Option<Next>) -> &'static str {
        match next {
            None => "nothing",
            Some(Next::Frame(..)) => "frame",
            Some(Next::Message(Message::Stamps { .. })) => "call",
            Some(Next::Message(_)) => "control",
        }
    }

    #[test]
    fn links_come_first_then_calls_then_frames_and_in_the_last_part_of_a_turn_frames_before_calls() {
        let (peers, mut inbox) = Peers::new();
        peers.call();
        peers.link_up(1);
        for _ in 0..2 {
            peers.changes(1, 3, 0);
            peers.call();
        }
        inbox.receive(NOW);
        let taken: Vec<&str> =
            [false, false, true, true, true, false].map(|first| word(inbox.next(first))).into();
        assert_eq!(taken, ["control", "call", "frame", "frame", "call", "call"]);
        assert_eq!(word(inbox.next(false)), "nothing");
        assert_eq!(peers.places.available_permits(), PEER_FRAMES, "every place is free again");
    }

    #[test]
    fn late_frames_are_no_prompt_work_and_are_taken_as_far_as_the_time_goes() {
        let (peers, mut inbox) = Peers::new();
        peers.link_up(1);
        peers.changes(1, 100, 60_000);
        inbox.receive(NOW);
        assert_eq!(word(inbox.next(true)), "control");
        assert!(!inbox.has_prompt() && inbox.late_in().is_some());
        let (_, most) = inbox.next_late(LATE_CHANGE_US * 40).unwrap();
        assert_eq!(most, 40, "as long as one takes by default");
        (0..100).for_each(|_| inbox.took(10, Duration::from_micros(10 * 2 * LATE_CHANGE_US)));
        let (_, most) = inbox.next_late(LATE_CHANGE_US * 40).unwrap();
        assert!((20..=22).contains(&most), "and as long as they took: {most}");
        assert_eq!(peers.places.available_permits(), PEER_FRAMES - 1, "the frame is not done with");
        assert!(inbox.next_late(u64::MAX).is_some());
        assert_eq!(peers.places.available_permits(), PEER_FRAMES);
        assert_eq!(inbox.late_in(), None);
    }

    #[test]
    fn frames_of_a_connection_that_is_gone_are_not_taken_and_leave_their_places() {
        let (peers, mut inbox) = Peers::new();
        peers.link_up(1);
        peers.changes(1, 1, 60_000);
        peers.changes(1, 1, 0);
        peers.link_up(2);
        peers.changes(1, 1, 0);
        peers.changes(2, 1, 0);
        peers.messages.send(Message::LinkDown { peer: peer(), connection: 1 }.into()).unwrap();
        inbox.receive(NOW);
        assert_eq!(peers.places.available_permits(), PEER_FRAMES - 1);
        let taken = [word(inbox.next(true)), word(inbox.next(true)), word(inbox.next(true))];
        assert_eq!(taken, ["control"; 3]);
        assert!(matches!(inbox.next(true), Some(Next::Frame(_, 2, _))));
        assert_eq!(word(inbox.next(true)), "nothing");
    }
}
