//! What the log of the voters carries, and in which form.

use std::io::Cursor;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use openraft::TokioRuntime;
use openraft::impls::OneshotResponder;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tropism_placement::StoredRecord;
use tropism_storage::rows::Row;

openraft::declare_raft_types!(
    /// The types of our Raft.
    pub(crate) Types:
        D = Command,
        R = Answer,
        NodeId = u64,
        Node = Voter,
        SnapshotData = Cursor<Vec<u8>>,
        Responder = OneshotResponder<Types>,
        AsyncRuntime = TokioRuntime,
);

/// A voter: one life of a node's directory store. A node that lost it votes again under another id, since it does not know
/// what it promised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voter {
    /// Id of the node, where it can be asked.
    pub(crate) node: String,
}

/// What is decided, in the order of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Make this the newest record of its scope.
    Decide(Encoded),
    /// Take over records that nodes have copies of, before anything is decided.
    Restore(Vec<Encoded>),
    /// Begin: nothing is decided or told before. The first one counts.
    Found {
        /// Names this directory and no other.
        directory: u64,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It was none of a client's.
    Nothing,
    /// The record is the newest since this revision.
    Decided(u64),
    /// Another change came first; the newest epoch.
    Late(u64),
    /// It can never be; why.
    Refused(String),
    /// The directory has not begun.
    NotFounded,
}

/// A record in its row form, as Base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoded(pub(crate) StoredRecord);

impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(self.0.encode()))
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text).map_err(de::Error::custom)?;
        StoredRecord::decode(&bytes.into()).map(Self).map_err(de::Error::custom)
    }
}
