//! Frames on their way, and connections that come and go.

use tropism_crdt::{Change, NodeId, Stamp};
use tropism_replica::{Frame, FrameBody, Input};

use super::{What, World};
use crate::report::Sabotage;

impl World {
    pub(super) fn number(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    pub(super) fn send(&mut self, from: usize, to: NodeId, mut frame: Frame) {
        let Some(to) = self.number(to) else { return };
        let Some(connection) = self.network.connection(from, to) else { return };
        if self.nodes[from].leaves_on.get(&to) != Some(&connection) {
            return; // it was meant for an earlier connection
        }
        if let Some(at) = self.forging.iter().position(|link| *link == (from, to))
            && matches!(frame.body, FrameBody::Changes(_))
        {
            self.forging.swap_remove(at);
            self.forge(from, to, &mut frame);
        }
        let arrivals = self.network.arrivals(self.now_us, from, to, &mut self.rng);
        if arrivals.is_empty() {
            self.cover("a frame was lost");
        }
        self.journal.note(self.now_us, from, || format!("sends to n{to}: {}", spell(&frame)));
        for at in arrivals {
            let frame = Box::new(frame.clone());
            self.schedule(at - self.now_us, What::Arrive { to, from, connection, frame });
        }
    }

    pub(super) fn arrived(&mut self, to: usize, from: usize, mut frame: Frame) {
        match (self.size.sabotage, &mut frame.body) {
            (Some(Sabotage::DropsDeps), FrameBody::Changes(changes)) => {
                for bytes in changes {
                    let Ok(change) = Change::decode(bytes) else { continue };
                    *bytes = Change { deps: Vec::new(), ..change }.encode();
                }
            }
            (Some(Sabotage::ClaimsCursor), FrameBody::Heartbeat(beat)) => beat.your_cursor = u64::MAX,
            (Some(Sabotage::ClosesEarly), FrameBody::Heartbeat(beat)) if beat.closed > Stamp::ZERO => {
                beat.closed = Stamp::new(beat.closed.unix_ms() + 10_000, 0);
            }
            _ => {}
        }
        self.journal.note(self.now_us, to, || format!("gets from n{from}: {}", spell(&frame)));
        let from = self.nodes[from].id;
        self.input(to, Input::Frame { from, frame });
    }

    pub(super) fn reconnect(&mut self, a: usize, b: usize) {
        let backoff = self.rng.between(50_000, 1_000_000);
        self.schedule(backoff, What::Connect(a, b));
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) {
        if self.network.connection(a, b).is_some() {
            return;
        }
        if !self.network.passes(a, b) || self.nodes[a].paused || self.nodes[b].paused {
            return self.reconnect(a, b);
        }
        let hello = |from: usize, to: usize| {
            let node = &self.nodes[from];
            let (store, replica) = node.running.as_ref()?;
            let mut hello = replica.hello(store, self.nodes[to].id);
            if self.size.sabotage == Some(Sabotage::HidesOldCopy) {
                hello.saw_you = None;
            }
            Some(Box::new(hello))
        };
        let (Some(from_a), Some(from_b)) = (hello(a, b), hello(b, a)) else {
            return self.reconnect(a, b);
        };
        let connection = self.network.connect(a, b);
        let (to_a, to_b) = (self.rng.between(500, 200_000), self.rng.between(500, 200_000));
        self.schedule(to_a, What::Up { at: a, connection, peer: b, hello: from_b });
        self.schedule(to_b, What::Up { at: b, connection, peer: a, hello: from_a });
    }

    /// Breaks the connection of a pair, if there is one: both sides notice, and dial again.
    pub(super) fn reset(&mut self, a: usize, b: usize) {
        if let Some(connection) = self.network.connection(a, b)
            && self.network.disconnect(a, b)
        {
            self.schedule(1, What::Down { at: a, peer: b, connection });
            self.schedule(1, What::Down { at: b, peer: a, connection });
            self.reconnect(a, b);
        }
    }
}

/// A frame in words.
fn spell(frame: &Frame) -> String {
    let body = match &frame.body {
        FrameBody::Changes(changes) => {
            let each: Vec<String> = changes
                .iter()
                .map(|bytes| match Change::decode(bytes) {
                    Ok(c) => format!("{}/{} {}#{} at {}", c.scope, c.key, c.origin, c.seq, c.stamp),
                    Err(error) => error.to_string(),
                })
                .collect();
            format!("changes [{}]", each.join(", "))
        }
        body => format!("{body:?}"),
    };
    format!("{}.{} {body}", frame.round, frame.number)
}
