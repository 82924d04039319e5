//! That a store is not served yet, and why.

use bytes::Bytes;
use tropism_crdt::NodeId;
use tropism_crdt::codec::{DecodeError, Reader, put_bytes, put_varint};

use crate::rows::Row;

/// A store that may lack what its peers hold: it takes no calls of clients before they have filled it. When they have, the
/// row moves from [`NodeKey::Rebuild`](crate::NodeKey::Rebuild) to [`NodeKey::Lost`](crate::NodeKey::Lost), unless the
/// store is the first of its node: what only this region held no peer could give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuildRow {
    /// Since when, by this node's wall clock, Unix ms.
    pub since_ms: u64,
    /// Why.
    pub cause: RebuildCause,
}

/// Why a store may lack what its peers hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebuildCause {
    /// It is new, and no peer is known to have seen an earlier one of this node.
    New,
    /// It is new, and a peer has seen an earlier one: the node lost its disk, or was given another directory.
    Replaces {
        /// The first that said so.
        seen_by: NodeId,
    },
    /// It stands in the place of one that must not be served.
    SetAside {
        /// What was wrong with that one.
        reason: String,
    },
}

impl Row for RebuildRow {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_varint(out, self.since_ms);
        match &self.cause {
            RebuildCause::New => out.push(0),
            RebuildCause::Replaces { seen_by } => {
                out.push(1);
                seen_by.encode(out);
            }
            RebuildCause::SetAside { reason } => {
                out.push(2);
                put_bytes(out, reason.as_bytes());
            }
        }
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let since_ms = r.varint("since")?;
        let cause = match r.u8("cause")? {
            0 => RebuildCause::New,
            1 => RebuildCause::Replaces { seen_by: NodeId::decode(r)? },
            2 => RebuildCause::SetAside { reason: r.str("reason")?.to_owned() },
            _ => return Err(r.invalid("cause")),
        };
        Ok(Self { since_ms, cause })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_rebuild_row_has_golden_bytes_and_comes_back() {
        let causes = [
            (RebuildCause::New, &b"\x07\x00"[..]),
            (RebuildCause::Replaces { seen_by: NodeId::new("n").unwrap() }, b"\x07\x01\x01n"),
            (RebuildCause::SetAside { reason: "short".into() }, b"\x07\x02\x05short"),
        ];
        for (cause, fields) in causes {
            let row = RebuildRow { since_ms: 7, cause };
            let bytes = row.encode();
            assert_eq!(bytes[..bytes.len() - 8], *fields);
            assert_eq!(RebuildRow::decode(&bytes), Ok(row));
        }
    }
}
