//! One node's replication as a state machine.
//!
//! A [`Replica`] takes one [`Input`] at a time (a client's write, a peer's frame, the passing of time) together with
//! [`Now`] and the [`Store`](tropism_storage::Store), and leaves two things behind: rows in the store's open batch and
//! [`Output`]s in a queue. It reads no clock, opens no socket, starts no thread and draws no randomness, so the
//! simulator runs the very code that production runs.
//!
//! # The driver's contract
//!
//! ```text
//! loop {
//!     wait for inputs, at most until replica.next_deadline()
//!     replica.handle(now, &mut store, input)      for each that is there: group commit without linger; late frames
//!                                                 (`Arrivals`) as far as replica.pace() goes
//!     replica.flush(now, &mut store)              once: what links have to send joins the same group
//!     store.commit(); store.sync()                one batch, one sync
//!     publish store.snapshot() to readers
//!     while let Some(output) = replica.poll_output() { carry it out }
//! }
//! ```
//!
//! Nothing leaves before the batch it depends on is durable: no reply, no frame, no event. While one batch is being
//! synced the driver may go on to `handle` the inputs of the next turn, which then reads what is not durable yet; it
//! flushes and commits that turn when the sync is done. On any error of the store
//! the node stops answering and exits; what was in flight has an unknown outcome, and the next start finds out.
//!
//! # The life of a change
//!
//! [`Replica::handle`] with [`Input::Write`] finds the scope's record by rule, checks the preconditions, stamps the
//! write, makes a [`Change`](tropism_crdt::Change) with what its origin had seen of the shard as `deps`, merges it into
//! the key's cell and logs it. `link.rs` walks the log for each peer and sends what the peer lacks; the peer applies a
//! change when its vector includes `deps`, tells its vector back, and that moves the link's cursor. `reconcile.rs`
//! compares vectors in the background and asks for what a link missed.
//!
//! # What is left out
//!
//! Moves of scopes and several owners in a region: the formats leave room for them.

mod apply;
mod arrivals;
mod budget;
mod census;
mod credit;
mod deleting;
mod digest;
mod documents;
mod frame;
mod history;
mod inspect;
pub mod limits;
mod link;
mod moves;
mod outstanding;
mod parked;
mod rebuild;
mod recent;
mod reconcile;
mod replica;
mod scrub;
mod session;
mod shards;
pub mod sketch;
mod state;
mod sweep;
mod traced;
mod transfer;
mod verify;
mod waiting;
mod write;

pub use arrivals::{Arrivals, Taken};
pub use budget::{BudgetStatus, Foreground, Latencies, Pace, Work};
pub use census::{Degraded, ParkedShards};
pub use digest::DigestKey;
pub use documents::LongHistory;
pub use frame::{
    AskHeld, Cells, Compare, Differ, Fetch, Fetched, Frame, FrameBody, Heartbeat, HeldAnswer, Hello, Inspect,
    Inspected, MoreCells, ShardState, StatePart, StatePiece, Told, Vectors, Want, Wholeness,
};
pub use history::{HistoryError, LostWrite, LostWrites, StoredHistory, lost_writes};
pub use link::{LinkCounts, LinkStatus};
pub use parked::{KeptSeen, ParkedCall, ParkedError, ParkedKey, ParkedOp, ParkedState, ParkedStep};
pub use rebuild::{Opening, RebuildStatus, Salvaged, SetAside};
pub use replica::{
    BootError, CacheStatus, Event, Identity, Input, Now, Output, Peer, Replica, ReplicaError, Status, Ticket,
    TimesFull,
};
pub use scrub::ScrubStatus;
pub use session::{SEARCHED_COMMITS, Token};
pub use traced::{Traced, TracedChange};
pub use transfer::TransferCounts;
pub use verify::{
    DigestState, KeyHeld, Lacks, MemberRows, MemberState, Rows, RowsSeen, Verified, VerifiedKey,
    VerifiedMember, VerifiedShard, Verify, VerifyAnswer, VerifyAsk, VerifyCall, VerifyError, VerifyResult,
};
pub use write::{
    Precondition, Write, WriteDone, WriteError, WriteOp, document_heads, document_version, version_of,
};
