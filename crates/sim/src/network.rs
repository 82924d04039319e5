//! Links between nodes: delay, loss, doubling, reordering, cuts and connections that break.

use std::collections::BTreeMap;

use crate::rng::Rng;

/// How one direction of a link treats frames.
#[derive(Debug, Clone, Copy)]
pub struct Direction {
    /// Least delay, us.
    pub delay_us: u64,
    /// More delay, at random up to this, us.
    pub jitter_us: u64,
    /// Frames lost, percent.
    pub loss: u64,
    /// Frames doubled, percent.
    pub doubled: u64,
    /// Whether frames overtake each other.
    pub reorders: bool,
    /// Nothing passes.
    pub cut: bool,
    /// More delay for a while, us.
    pub slow_us: u64,
    last_arrival_us: u64,
}

/// Connections and directions between numbered nodes.
#[derive(Debug, Default)]
pub struct Network {
    directions: BTreeMap<(usize, usize), Direction>,
    connections: BTreeMap<(usize, usize), u64>,
    next_connection: u64,
}

impl Network {
    /// Joins two nodes with the same delay both ways.
    pub fn join(&mut self, a: usize, b: usize, delay_us: u64, rng: &mut Rng) {
        let rough = rng.chance(60);
        let direction = Direction {
            delay_us,
            jitter_us: delay_us / 10 + rng.between(0, 2_000),
            loss: if rough { rng.between(0, 8) } else { 0 },
            doubled: if rough { rng.between(0, 10) } else { 0 },
            reorders: rough && rng.chance(50),
            cut: false,
            slow_us: 0,
            last_arrival_us: 0,
        };
        self.directions.insert((a, b), direction);
        self.directions.insert((b, a), direction);
    }

    /// A direction, to change it.
    pub fn direction(&mut self, from: usize, to: usize) -> Option<&mut Direction> {
        self.directions.get_mut(&(from, to))
    }

    /// Whether both directions pass.
    pub fn passes(&self, a: usize, b: usize) -> bool {
        [(a, b), (b, a)].iter().all(|d| self.directions.get(d).is_some_and(|d| !d.cut))
    }

    /// Connects a pair; frames of earlier connections no longer arrive.
    pub fn connect(&mut self, a: usize, b: usize) -> u64 {
        self.next_connection += 1;
        self.connections.insert((a.min(b), a.max(b)), self.next_connection);
        self.next_connection
    }

    /// The pair's connection.
    pub fn connection(&self, a: usize, b: usize) -> Option<u64> {
        self.connections.get(&(a.min(b), a.max(b))).copied()
    }

    /// Breaks the pair's connection; says whether there was one.
    pub fn disconnect(&mut self, a: usize, b: usize) -> bool {
        self.connections.remove(&(a.min(b), a.max(b))).is_some()
    }

    /// When the copies of a frame sent now arrive.
    pub fn arrivals(&mut self, now_us: u64, from: usize, to: usize, rng: &mut Rng) -> Vec<u64> {
        let Some(direction) = self.directions.get_mut(&(from, to)) else { return Vec::new() };
        if direction.cut || rng.chance(direction.loss) {
            return Vec::new();
        }
        let copies = if rng.chance(direction.doubled) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let at =
                    now_us + direction.delay_us + direction.slow_us + rng.between(0, direction.jitter_us);
                if direction.reorders {
                    return at;
                }
                direction.last_arrival_us = at.max(direction.last_arrival_us + 1);
                direction.last_arrival_us
            })
            .collect()
    }
}
