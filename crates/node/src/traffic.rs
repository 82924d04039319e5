//! What goes over each link, and why one is refused: noted by the link's tasks, read by the status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use tropism_crdt::NodeId;
use tropism_replica::{Frame, FrameBody};
use tropism_wire::v1;

/// A refusal counts for this long: five times the longest wait before a peer dials again, and is refused again.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// The links of a node, by peer.
#[derive(Debug, Default)]
pub struct Traffic(BTreeMap<NodeId, Line>);

/// One link, since the process started.
#[derive(Debug, Default)]
pub(crate) struct Line {
    sent: Direction,
    received: Direction,
    /// Bytes of frames, both ways, that are neither changes nor heartbeats.
    overhead_bytes: AtomicU64,
    refusal: Mutex<Option<Refusal>>,
}

/// Why two nodes that could speak do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What is wrong and what to do.
    pub(crate) reason: String,
    /// Since when, Unix ms.
    pub(crate) since_ms: u64,
    last: Instant,
}

/// Changes one way.
#[derive(Debug, Default)]
struct Direction {
    changes: AtomicU64,
    bytes: AtomicU64,
}

/// A link's counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Changes sent, and the bytes of their frames as sent.
    pub(crate) sent: (u64, u64),
    /// Changes received, and the bytes of their frames as received.
    pub(crate) received: (u64, u64),
    /// Bytes of frames, both ways, that are neither changes nor heartbeats.
    pub(crate) overhead_bytes: u64,
}

impl Traffic {
    /// For links to these peers.
    pub fn new(peers: impl Iterator<Item = NodeId>) -> Self {
        Self(peers.map(|peer| (peer, Line::default())).collect())
    }

    /// The link to a peer.
    pub(crate) fn line(&self, peer: &NodeId) -> Option<&Line> {
        self.0.get(peer)
    }
}

impl Line {
    /// A frame is sent as this message.
    pub(crate) fn sent(&self, frame: &Frame, message: &v1::LinkFrame) {
        self.count(&self.sent, frame, message.encoded_len());
    }

    /// A frame was received in a message of so many bytes.
    pub(crate) fn received(&self, frame: &Frame, bytes: usize) {
        self.count(&self.received, frame, bytes);
    }

    fn count(&self, direction: &Direction, frame: &Frame, bytes: usize) {
        let bytes = bytes as u64;
        match &frame.body {
            FrameBody::Changes(changes) => {
                direction.changes.fetch_add(changes.len() as u64, Ordering::Relaxed);
                direction.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            FrameBody::Heartbeat(_) => {}
            _ => {
                self.overhead_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Notes that the link is refused; says whether that is news.
    pub(crate) fn refuse(&self, reason: &str, now_ms: u64) -> bool {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let since_ms = refusal
            .as_ref()
            .filter(|known| known.reason == reason && known.last.elapsed() < REFUSED_FOR)
            .map(|known| known.since_ms);
        *refusal = Some(Refusal {
            reason: reason.to_owned(),
            since_ms: since_ms.unwrap_or(now_ms),
            last: Instant::now(),
        });
        since_ms.is_none()
    }

    /// Why the link is refused, if it was lately.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.clone().filter(|refusal| refusal.last.elapsed() < REFUSED_FOR)
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> Counts {
        let of = |direction: &Direction| {
            (direction.changes.load(Ordering::Relaxed), direction.bytes.load(Ordering::Relaxed))
        };
        Counts {
            sent: of(&self.sent),
            received: of(&self.received),
            overhead_bytes: self.overhead_bytes.load(Ordering::Relaxed),
        }
    }
}
