//! Who authors changes: nodes and the lives of their stores.

use std::fmt;

use thiserror::Error;

use crate::codec::{DecodeError, Reader};

/// A node's name: `[a-z0-9][a-z0-9-]*`, at most [`NodeId::MAX_LEN`] bytes, unique in the cluster and never reused for
/// another machine. Kept inline so that origins are plain values.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    bytes: [u8; NodeId::MAX_LEN], // zero-padded: orders as the name does
    len: u8,
}

/// A text that is no node id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("node id {shown:?} {problem}; a node id is [a-z0-9][a-z0-9-]*, 1 to 31 bytes")]
pub struct NodeIdError {
    shown: String,
    problem: &'static str,
}

impl NodeId {
    /// Longest name in bytes: room for region and number, and 32 bytes in memory.
    pub const MAX_LEN: usize = 31;

    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<Self, NodeIdError> {
        let refuse =
            |problem| Err(NodeIdError { shown: name.chars().take(Self::MAX_LEN + 1).collect(), problem });
        if name.is_empty() {
            return refuse("is empty");
        }
        if name.len() > Self::MAX_LEN {
            return refuse("is too long");
        }
        if name.starts_with('-') {
            return refuse("starts with a hyphen");
        }
        if !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return refuse("has a character that is not allowed");
        }
        let mut bytes = [0; Self::MAX_LEN];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self { bytes, len: name.len() as u8 })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        // Only `new` builds one, from ASCII.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }

    /// Appends length and name.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.len);
        out.extend_from_slice(self.as_str().as_bytes());
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = reader.u8("node id")?;
        let name = reader.take(usize::from(len), "node id")?;
        let name = std::str::from_utf8(name).map_err(|_| reader.invalid("node id"))?;
        Self::new(name).map_err(|_| reader.invalid("node id"))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The author of changes: one life of one node's store. New at every boot, so a lost tail or a copied directory can
/// never number two different changes alike. Its bytes are the automerge actor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The node.
    pub node: NodeId,
    /// `max(stored + 1, Unix ms at boot)`, durable before first use.
    pub incarnation: u64,
    /// 64 random bits drawn by the shell at boot: even two boots of two copies in one millisecond differ.
    pub random: u64,
}

impl Origin {
    /// Orders before every origin; authors nothing.
    pub const FIRST: Self =
        Self { node: NodeId { bytes: [0; NodeId::MAX_LEN], len: 0 }, incarnation: 0, random: 0 };

    /// Appends node, incarnation, random.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.node.encode(out);
        out.extend_from_slice(&self.incarnation.to_be_bytes());
        out.extend_from_slice(&self.random.to_be_bytes());
    }

    /// The encoding alone: key part and automerge actor.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + NodeId::MAX_LEN + 16);
        self.encode(&mut out);
        out
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            node: NodeId::decode(reader)?,
            incarnation: reader.u64("incarnation")?,
            random: reader.u64("origin random")?,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}-{:016x}", self.node, self.incarnation, self.random)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn node_ids_order_as_their_names_and_bad_ones_are_refused() {
        let ids: Vec<NodeId> = ["a", "a-1", "a1", "b"].iter().map(|n| NodeId::new(n).unwrap()).collect();
        assert!(ids.is_sorted());
        for bad in ["", "-a", "A", "a_b", "a/b", "ä", &"x".repeat(32)] {
            assert!(NodeId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_have_golden_bytes() {
        let origin = Origin { node: NodeId::new("tokyo-1").unwrap(), incarnation: 2, random: 3 };
        let bytes = origin.to_bytes();
        assert_eq!(bytes, b"\x07tokyo-1\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03");
        assert_eq!(Origin::decode(&mut Reader::new(&bytes)), Ok(origin));
    }
}
