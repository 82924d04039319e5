//! A client for applications: connect, take a scope, read and write your own types.
//!
//! ```no_run
//! use tropism_client::Client;
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize)]
//! struct Cart {
//!     items: Vec<String>,
//! }
//!
//! # async fn example() -> Result<(), tropism_client::Error> {
//! let tropism = Client::connect(["http://127.0.0.1:7000"]).await?;
//! let carts = tropism.scope("shop/carts")?;
//! carts.update("alice", |cart: &mut Cart| cart.items.push("tea".to_owned())).await?;
//! let cart: Option<Cart> = carts.get("alice").await?;
//! tropism.scope("stats/visits")?.increment("home", 1).await?;
//!
//! let mut changes = carts.watch::<Cart>(..);
//! loop {
//!     println!("{:?}", changes.next().await?.key());
//! }
//! # }
//! ```
//!
//! - A [`Client`] is a cluster in a session: what was written and read through it is seen by its later calls, in any region.
//!   [`Client::session`] takes the session elsewhere.
//! - A [`Scope`] reads and writes values by serde. What merges how is decided by the rule that matches its name.
//! - [`Records`] and [`Changes`] are streams that resume by themselves.
//! - An [`Error`] always says what happened to the state ([`Error::effect`]). Writes carry a request id, so that a lost
//!   answer is settled by asking the same node again and never by writing twice.
//! - [`Calls`] are the calls of the protocol with all that they answer, for tools.

mod cache;
mod calls;
mod client;
mod connection;
mod edit;
mod error;
mod history;
mod records;
mod retry;
mod route;
mod scope;
mod session;
mod stream;
mod types;
mod value;

#[cfg(test)]
mod tests;

pub use cache::Cache;
pub use calls::Calls;
pub use client::Client;
pub use connection::{DEFAULT_TIMEOUT, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_ENDPOINTS};
pub use edit::Edit;
pub use error::Error;
pub use records::{Change, Changes, Keys, Record, Records};
pub use route::NodeView;
pub use scope::{Scope, UPDATE_TRIES};
pub use session::Session;
pub use stream::{Happening, Scan, ScanRange, Watch, WatchEvent, WatchMessage, WatchTarget};
pub use types::{
    Answered, Deleted, Entry, Expiry, Found, FoundMany, Incremented, Patch, Precondition, PutItem,
    PutOptions, Register, Stamps, Value, Written,
};

/// How much a write survives, and how two writes are ordered.
pub use tropism_crdt::Stamp;
pub use tropism_placement::Durability;
/// What answers about nodes, regions and scopes are made of, and the operations of a patch.
pub use tropism_wire::v1;
pub use tropism_wire::{Effect, Problem, Reason};
