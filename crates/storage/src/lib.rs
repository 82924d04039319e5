//! What a node keeps: the engine trait, the key spaces, the rows and the typed store.
//!
//! An [`Engine`] is six ordered maps of bytes with atomic batches, an explicit sync and snapshots. There are two: the
//! one on fjall (crate `disk`) and [`MemoryEngine`], which serves cache nodes and the simulator and can lose what was
//! not synced. [`Store`] puts types on top and collects everything one turn of the replica writes into one batch, with
//! the node's commit number and running hash, so that a store that lost a batch in its middle shows it.
//!
//! Keys ([`keys`]) are enums with order-preserving encodings, never formatted strings; a key the engine would refuse
//! cannot be built. Rows ([`rows`]) carry a checksum.

pub mod engine;
mod kept;
pub mod keys;
mod latest;
pub mod memory;
mod rebuild;
mod record;
pub mod rows;
pub mod store;

pub use engine::{Batch, Engine, EngineError, Footprint, Space, StoreKey, Syncer, View};
pub use kept::{Kept, KeptChange, KeptCount, Place};
pub use keys::{EditKey, LogKey, NodeKey, RequestKey, ShardKey, StagedKey, ValueKey};
pub use latest::KeptValues;
pub use memory::MemoryEngine;
pub use rebuild::{RebuildCause, RebuildRow};
pub use rows::{
    ClockRow, CommitRow, Digest, DroppedRow, Head, HeadRow, Header, KeyTally, LivesRow, LogFloorRow, PeerRow,
    RequestRow, ShardRow, Standing, Tally, TransferRow, ValueRow, VectorRow,
};
pub use store::{Reads, Store, StoreError};
