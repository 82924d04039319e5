//! What crosses the network: messages and services generated from `proto/tropism/v1`, and their conversions.
//!
//! Only the shell (node, client, command line) names these types. Below the pure line everything has its own: frames
//! become the replica's inputs and requests become validated operations in [`from_proto`], answers and frames are built
//! in [`to_proto`]. Errors leave as a [`Problem`], which says in `google.rpc` details what went wrong, what happened to
//! the state and what to do next, and which clients read back from the status. What a request may cost is in
//! [`limits`].

pub mod error;
pub mod frames;
pub mod from_proto;
pub mod limits;
pub mod to_proto;
mod verify_frames;

pub use error::{Effect, Problem, Reason};

/// Messages, clients and servers of package `tropism.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; a test demands comments in proto/")]
pub mod v1 {
    tonic::include_proto!("tropism.v1");
}

/// The encoded `google.protobuf.FileDescriptorSet` of `tropism.v1`, with comments: for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Metadata key of a session token that is not in the request's body.
pub const TOKEN_METADATA: &str = "tropism-token-bin";
/// Metadata key of the region that a client is in: its requests count as coming from there, whichever node it asks.
pub const REGION_METADATA: &str = "tropism-region";
/// Metadata key of the node that forwarded a call: it is forwarded no further.
pub const FORWARDED_METADATA: &str = "tropism-forwarded-by";
/// Metadata key of what shows that a forwarded call comes from a node of the cluster.
pub const PROOF_METADATA: &str = "tropism-proof";

#[cfg(test)]
mod tests;
