//! A client for applications: connect, call, follow.
//!
//! A [`Calls`] knows one or more endpoints, talks to one of them and goes on at the next when that one cannot serve.
//! It keeps a session: what it wrote and read is seen by its later calls, in any region. Writes carry a request id, so
//! that a lost answer is settled by asking the same node again and never by writing twice; an [`Error`] always says
//! what happened to the state ([`Error::effect`]). [`Scan`] and [`Watch`] are streams that resume by themselves.
//!
//! ```no_run
//! # async fn example() -> Result<(), tropism_client::Error> {
//! let client = tropism_client::Calls::connect(vec!["http://127.0.0.1:7000".to_owned()]).await?;
//! client.put_json("shop/carts", "alice", r#"{"items":[]}"#).await?;
//! let cart = client.get("shop/carts", "alice").await?.entry;
//! # Ok(())
//! # }
//! ```

mod calls;
mod connection;
mod error;
mod history;
mod retry;
mod route;
mod stream;
mod types;

#[cfg(test)]
mod tests;

pub use calls::Calls;
pub use connection::{DEFAULT_TIMEOUT, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_ENDPOINTS};
pub use error::Error;
pub use route::NodeView;
pub use stream::{Happening, Scan, ScanRange, Watch, WatchEvent, WatchMessage, WatchTarget};
pub use types::{
    Answered, Deleted, Entry, Expiry, Found, FoundMany, Incremented, Patch, Precondition, PutItem,
    PutOptions, Register, Stamps, Value, Written,
};

/// What answers about nodes, regions and scopes are made of, and the operations of a patch.
pub use tropism_wire::v1;
pub use tropism_wire::{Effect, Problem, Reason};
