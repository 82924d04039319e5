//! Frames that arrived and were not taken yet: what a driver takes of them in a turn, and in which order.
//!
//! Peers take turns. Of one peer, frames are taken in their order, but for two kinds. States of whole shards mean the
//! same whenever they arrive, so they step aside: live traffic does not wait for them. And what a peer *told* is taken at
//! once: clients may wait for it. An empty frame takes the place of either, so that no number is missing.
//!
//! A frame is *late* when it is background work to take it: changes that are older than their way here takes, and states.
//! Late frames are taken when the [budget](crate::budget) has room, and changes a few at a time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tropism_crdt::{Change, NodeId, Stamp};

use crate::frame::{Frame, FrameBody};
use crate::limits::{LATE_MS, OVERTAKEN_PLACES};
use crate::replica::Now;

/// What arrived from every peer, each frame with a tag of the driver's. Bounded by whoever lets frames in, for as long as
/// their tags are here; what is left of frames that overtook others by [`OVERTAKEN_PLACES`].
#[derive(Debug)]
pub struct Arrivals<T> {
    peers: BTreeMap<NodeId, Queue<T>>,
    /// Who was served last, of live and of late frames.
    last: [Option<NodeId>; 2],
}

#[derive(Debug)]
struct Queue<T> {
    /// In the order of arrival.
    frames: VecDeque<Arrived<T>>,
    /// States that stepped aside.
    aside: VecDeque<Arrived<T>>,
    /// How many of `frames` are late.
    late: usize,
    /// How many of them are only the places of frames that overtook others.
    places: usize,
    /// Whether a frame of the connection was taken.
    begun: bool,
}

#[derive(Debug)]
struct Arrived<T> {
    frame: Frame,
    tag: Option<T>,
    late: bool,
}

/// A frame, or a part of one, whose turn has come. The tag comes with the last part, and not with what takes the place of
/// a frame.
#[derive(Debug)]
pub struct Taken<T> {
    /// Who sent it.
    pub from: NodeId,
    /// What came.
    pub frame: Frame,
    /// The driver's.
    pub tag: Option<T>,
}

impl<T> Taken<T> {
    /// How many changes it carries; any other frame counts as one.
    pub fn changes(&self) -> usize {
        match &self.frame.body {
            FrameBody::Changes(changes) => changes.len(),
            _ => 1,
        }
    }
}

impl<T> Default for Arrivals<T> {
    fn default() -> Self {
        Self { peers: BTreeMap::new(), last: [None, None] }
    }
}

impl<T> Arrivals<T> {
    /// A frame arrives.
    pub fn push(&mut self, now: Now, from: NodeId, frame: Frame, tag: T) {
        let queue = self.peers.entry(from).or_insert_with(|| Queue {
            frames: VecDeque::new(),
            aside: VecDeque::new(),
            late: 0,
            places: 0,
            begun: false,
        });
        let late = is_late(now, &frame.body);
        let overtakes = match &frame.body {
            FrameBody::State(_) | FrameBody::Differ(_) => true,
            // A frame that was taken already, as its number says, changes nothing of what follows.
            FrameBody::Told(_) => queue.begun && queue.late > 0 && queue.places < OVERTAKEN_PLACES,
            _ => false,
        };
        if !overtakes {
            queue.late += usize::from(late);
            return queue.frames.push_back(Arrived { frame, tag: Some(tag), late });
        }
        let place = Frame { body: FrameBody::Changes(Vec::new()), ..frame };
        queue.frames.push_back(Arrived { frame: place, tag: None, late: false });
        queue.places += 1;
        if late {
            queue.aside.push_back(Arrived { frame, tag: Some(tag), late });
        } else {
            let frame = Frame { round: 0, number: 0, ..frame };
            queue.frames.push_front(Arrived { frame, tag: Some(tag), late });
        }
    }

    /// Forgets what came on a peer's connection, which is gone.
    pub fn forget(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.peers.clear();
    }

    /// Whether there is a frame that is not late.
    pub fn has_live(&self) -> bool {
        self.peers.values().any(Queue::has_live)
    }

    /// Whether there is a late frame.
    pub fn has_late(&self) -> bool {
        self.peers.values().any(Queue::has_late)
    }

    /// The next frame that is not late.
    pub fn take_live(&mut self) -> Option<Taken<T>> {
        let from = self.next(0, Queue::has_live)?;
        let queue = self.peers.get_mut(&from)?;
        let Arrived { frame, tag, .. } = queue.frames.pop_front()?;
        queue.places -= usize::from(tag.is_none());
        queue.begun = true;
        Some(Taken { from, frame, tag })
    }

    /// The next late frame, or as many of its changes.
    pub fn take_late(&mut self, changes: usize) -> Option<Taken<T>> {
        let from = self.next(1, Queue::has_late)?;
        let queue = self.peers.get_mut(&from)?;
        if queue.frames.front().is_none_or(|first| !first.late) {
            let Arrived { frame, tag, .. } = queue.aside.pop_front()?;
            // Its place says that it has come.
            return Some(Taken { from, frame: Frame { round: 0, number: 0, ..frame }, tag });
        }
        queue.begun = true;
        let first = queue.frames.front_mut()?;
        if let FrameBody::Changes(all) = &mut first.frame.body
            && all.len() > changes.max(1)
        {
            let part: Vec<Bytes> = all.drain(..changes.max(1)).collect();
            let frame = Frame { body: FrameBody::Changes(part), ..first.frame };
            return Some(Taken { from, frame, tag: None });
        }
        let Arrived { frame, tag, .. } = queue.frames.pop_front()?;
        queue.late -= 1;
        Some(Taken { from, frame, tag })
    }

    /// The peer behind the one that was served last of those that have something.
    fn next(&mut self, class: usize, has: impl Fn(&Queue<T>) -> bool) -> Option<NodeId> {
        let having = || self.peers.iter().filter(|(_, queue)| has(queue)).map(|(peer, _)| *peer);
        let behind = having().find(|peer| self.last[class].is_none_or(|last| *peer > last));
        let next = behind.or_else(|| having().next())?;
        self.last[class] = Some(next);
        Some(next)
    }
}

impl<T> Queue<T> {
    fn has_live(&self) -> bool {
        self.frames.front().is_some_and(|first| !first.late)
    }

    fn has_late(&self) -> bool {
        self.frames.front().is_some_and(|first| first.late) || !self.aside.is_empty() && self.begun
    }
}

/// Whether a change did not come with its time.
pub(crate) fn late(now: Now, stamp: Stamp) -> bool {
    stamp.unix_ms().saturating_add(LATE_MS) < now.wall_ms
}

/// Whether to take a frame is background work.
fn is_late(now: Now, body: &FrameBody) -> bool {
    match body {
        FrameBody::State(_) | FrameBody::Differ(_) => true,
        // The last one is the youngest of its author.
        FrameBody::Changes(changes) => {
            changes.last().and_then(Change::peek_stamp).is_some_and(|stamp| late(now, stamp))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
