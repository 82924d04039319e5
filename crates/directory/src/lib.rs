//! The directory: which scopes are not where their rule says, agreed on by a few voters in different regions.
//!
//! What is decided is [`placement::Directory`](tropism_placement::Directory); this crate makes several nodes decide it
//! alike, by Raft (openraft), with log and state in a small store of their own. Client writes never wait for it: every
//! node acts by the records that it has adopted, for as long as the voters cannot agree.
//!
//! # Life of a group
//!
//! Each voter's store has an id of its own, made up when the store is made. A group begins once, with voters that all said
//! that they are fresh ([`Group::initialize`]); then its leader begins the directory ([`Group::found`]) from the copies
//! that nodes have of an earlier one. A voter that lost its store comes back under a new id, and is let in by a majority
//! of the others in the place of the old one ([`Group::admit`]): it never votes on what it has forgotten. A group whose
//! majority is lost for ever has no way back but a new one, when all its voters are fresh.

mod group;
mod store;
#[cfg(test)]
mod tests;
mod types;

pub use group::{Asking, Feed, Group, Network, Rpc, Standing, Undecided, Unreachable};
pub use store::StoreProblem;
