//! Frames on their way, and connections that come and go.

use tropism_crdt::NodeId;
use tropism_replica::Frame;

use super::{What, World};

impl World {
    pub(super) fn number(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    pub(super) fn send(&mut self, from: usize, to: NodeId, frame: Frame) {
        let Some(to) = self.number(to) else { return };
        let Some(connection) = self.network.connection(from, to) else { return };
        let arrivals = self.network.arrivals(self.now_us, from, to, &mut self.rng);
        if arrivals.is_empty() {
            self.cover("a frame was lost");
        }
        for at in arrivals {
            let frame = Box::new(frame.clone());
            self.schedule(at - self.now_us, What::Arrive { to, from, connection, frame });
        }
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
            node.running.as_ref().map(|(store, replica)| Box::new(replica.hello(store, self.nodes[to].id)))
        };
        let (Some(from_a), Some(from_b)) = (hello(a, b), hello(b, a)) else {
            return self.reconnect(a, b);
        };
        let connection = self.network.connect(a, b);
        let (to_a, to_b) = (self.rng.between(500, 200_000), self.rng.between(500, 200_000));
        self.schedule(to_a, What::Up { at: a, connection, peer: b, hello: from_b });
        self.schedule(to_b, What::Up { at: b, connection, peer: a, hello: from_a });
    }
}
