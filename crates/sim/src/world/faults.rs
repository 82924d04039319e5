//! The fault menu: what breaks, for how long, and how it is made whole.

use super::{What, World};

#[derive(Debug)]
/// How what a fault broke is made whole.
pub(super) enum Mend {
    Link(usize, usize),
    Start(usize),
    Resume(usize),
    Clock(usize),
    Disk(usize),
}

impl World {
    pub(super) fn fault(&mut self) {
        if self.settling || self.report.faults >= self.size.faults {
            return;
        }
        let next = self.rng.between(100_000, 2_500_000);
        self.schedule(next, What::Fault);
        self.report.faults += 1;
        let a = self.rng.index(self.nodes.len());
        let b = (a + 1 + self.rng.index(self.nodes.len() - 1)) % self.nodes.len();
        let lasts = if self.rng.chance(15) {
            self.rng.between(5_000_000, 20_000_000)
        } else {
            self.rng.between(10_000, 4_000_000)
        };
        let (kind, mend) = match self.rng.between(0, 9) {
            0 | 1 => {
                self.cut(a, b);
                self.cut(b, a);
                ("fault: link cut", Mend::Link(a, b))
            }
            2 => {
                self.cut(a, b);
                ("fault: link cut one way", Mend::Link(a, b))
            }
            3 => {
                for peer in 0..self.nodes.len() {
                    self.cut(a, peer);
                    self.cut(peer, a);
                    if peer != b && peer != a {
                        self.schedule(lasts, What::Mend(Mend::Link(a, peer)));
                    }
                }
                ("fault: region cut off", Mend::Link(a, b))
            }
            4 | 5 => {
                self.crash(a);
                ("fault: crash", Mend::Start(a))
            }
            6 => {
                self.nodes[a].paused = true;
                ("fault: pause", Mend::Resume(a))
            }
            7 => {
                let reach = if self.rng.chance(50) { 3_600_000 } else { 3_000 };
                self.nodes[a].offset_ms = self.rng.between(0, 2 * reach) as i64 - reach as i64;
                ("fault: clock jump", Mend::Clock(a))
            }
            8 => {
                self.nodes[a].sync_us = (20_000, 800_000);
                ("fault: slow disk", Mend::Disk(a))
            }
            _ => {
                if let Some(connection) = self.network.connection(a, b)
                    && self.network.disconnect(a, b)
                {
                    self.schedule(1, What::Down { at: a, peer: b, connection });
                    self.schedule(1, What::Down { at: b, peer: a, connection });
                    self.reconnect(a, b);
                }
                return self.cover("fault: connection reset");
            }
        };
        self.cover(kind);
        self.schedule(lasts, What::Mend(mend));
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        if let Some(direction) = self.network.direction(from, to) {
            direction.cut = true;
        }
    }

    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Link(a, b) => {
                let mut was_cut = false;
                for (from, to) in [(a, b), (b, a)] {
                    if let Some(direction) = self.network.direction(from, to) {
                        was_cut |= std::mem::take(&mut direction.cut);
                    }
                }
                // Bytes were swallowed: connections open during the cut are reset.
                if was_cut
                    && let Some(connection) = self.network.connection(a, b)
                    && self.network.disconnect(a, b)
                {
                    self.schedule(1, What::Down { at: a, peer: b, connection });
                    self.schedule(1, What::Down { at: b, peer: a, connection });
                    self.reconnect(a, b);
                }
            }
            Mend::Start(node) => self.start(node),
            Mend::Resume(node) => {
                self.nodes[node].paused = false;
                self.wake(node, 0);
            }
            Mend::Clock(node) => self.nodes[node].offset_ms = 0,
            Mend::Disk(node) => self.nodes[node].sync_us = self.usual_sync_us,
        }
    }
}
