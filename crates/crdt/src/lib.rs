//! Stamps, vectors, changes and the values that merge.
//!
//! Everything replicas exchange is a [`Change`]: one mutation of one key, made by one [`Origin`], numbered without
//! gaps per shard, stamped by a hybrid logical clock ([`Clock`]) and carrying what its author had seen (`deps`). A
//! replica that applied the changes its [`Vector`] counts shows the same values as any other with an equal vector,
//! whatever the order of arrival: registers keep the last writer, counters the highest total per origin, documents
//! whatever automerge makes of the set of edits. [`Cell`] is that state for one key.
//!
//! This crate is below the pure line: no clock, no randomness, no files. Formats that leave a process are written with
//! [`codec`] and pinned by golden bytes.

pub mod cell;
pub mod change;
pub mod clock;
pub mod codec;
pub mod document;
pub mod json;
pub mod origin;
pub mod stamp;
pub mod vector;

pub use cell::{Cell, Content, Counter, Expiry, Register};
pub use change::{Body, Change, ExpiryChange, RequestId, TraceContext};
pub use clock::{Clock, ClockError, MAX_OFFSET_MS};
pub use origin::{NodeId, NodeIdError, Origin};
pub use stamp::Stamp;
pub use vector::Vector;
