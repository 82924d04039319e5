//! What goes over each link: counted by the link's tasks, read by the status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message;
use tropism_crdt::NodeId;
use tropism_replica::{Frame, FrameBody};
use tropism_wire::v1;

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
