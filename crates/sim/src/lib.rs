//! The same replicas in virtual time, with seeded faults and checkers.
//!
//! [`run`] makes a world from a seed: two to four regions with links of their own delay, loss and order, nodes with
//! drifting clocks and disks that lose what was not synced, clients whose sessions hop between regions, and a plan of
//! faults. The nodes run the very [`Replica`](tropism_replica::Replica) of production behind a driver that crashes between
//! commit and sync. After the last fault everything is mended and the world must become equal. [`checkers`] look on from
//! outside. Nothing here reads a clock or the system's randomness: the same seed gives the same trace, to the bit.

pub mod checkers;
mod config;
pub mod disk;
pub mod history;
pub mod network;
pub mod report;
pub mod rng;
mod world;

pub use checkers::{Promise, Violation};
pub use report::{Report, Sabotage, Size};
pub use world::run;

/// The seeds that every run of the tests tries, in two halves that run at once.
pub const FRESH_SEEDS: [std::ops::Range<u64>; 2] = [10_000..10_100, 20_000..20_100];

/// The same, one after the other.
pub fn fresh_seeds() -> impl Iterator<Item = u64> {
    FRESH_SEEDS.into_iter().flatten()
}
