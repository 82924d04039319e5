//! What clients carry from one call to the next, as bytes that only nodes read.
//!
//! A [`Token`] says per shard what a session has seen; the rules are [the replica's](tropism_replica::Token). The same form
//! continues a watch. A [`Seal`] closes tokens with a checksum seeded by the cluster's name and by what the token is
//! for, so that one of another cluster, scope or range is recognised instead of obeyed. It guards against mistakes: a
//! forged token can make its own bearer wait until the deadline, nothing more.
//!
//! Format, version 1: `1`, count of shards, per shard in ascending order its id (16 bytes) and vector (not empty), and
//! 8 bytes of xxh3, big endian. A token without entries is no bytes at all.

use std::collections::BTreeMap;

use bytes::Bytes;
use tropism_crdt::Vector;
use tropism_crdt::codec::{DecodeError, Reader, put_varint};
use tropism_placement::ShardId;
pub use tropism_replica::Token;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// The first byte of every token: another format has another number.
const FORMAT: u8 = 1;
/// Bytes of the checksum.
const CHECKSUM_BYTES: usize = 8;

/// Closes and opens what one cluster gives out for one purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal(u64);

impl Seal {
    /// The seal of a cluster's session tokens.
    pub fn new(cluster: &str) -> Self {
        Self(0).of(&["session", cluster])
    }

    /// The seal of what is good only for these parts, of which the first names the purpose.
    #[must_use]
    pub fn of(self, parts: &[&str]) -> Self {
        let mut hasher = Xxh3::with_seed(self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        Self(hasher.digest())
    }

    /// Closes a body.
    pub fn close(self, body: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(1 + body.len() + CHECKSUM_BYTES);
        out.push(FORMAT);
        out.extend_from_slice(body);
        let sum = xxh3_64_with_seed(&out, self.0);
        out.extend_from_slice(&sum.to_be_bytes());
        out.into()
    }

    /// The body, if it was closed with this seal.
    ///
    /// # Errors
    /// Anything else: damaged, of another purpose or cluster, of another format.
    pub fn open(self, bytes: &[u8]) -> Result<&[u8], DecodeError> {
        let Some((sealed, tail)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(DecodeError::Truncated { what: "checksum", at: bytes.len() });
        };
        let (stored, computed) = (u64::from_be_bytes(*tail), xxh3_64_with_seed(sealed, self.0));
        if stored != computed {
            return Err(DecodeError::Checksum { stored, computed });
        }
        match sealed.split_first() {
            Some((&FORMAT, body)) => Ok(body),
            _ => Err(DecodeError::Invalid { what: "format", at: 0 }),
        }
    }
}

impl Seal {
    /// The bytes of a token; none when nothing was seen.
    pub fn token(self, token: &Token) -> Bytes {
        if token.is_empty() { Bytes::new() } else { self.token_always(token) }
    }

    /// The bytes of a token, some also when nothing was seen: to go on from there is not to begin anew.
    pub fn token_always(self, token: &Token) -> Bytes {
        let mut body = Vec::with_capacity(64 * token.iter().len());
        put_varint(&mut body, token.iter().len() as u64);
        for (shard, vector) in token.iter() {
            body.extend_from_slice(&shard.0);
            vector.encode(&mut body);
        }
        self.close(&body)
    }

    /// Reads what [`Self::token`] wrote with the same seal.
    ///
    /// # Errors
    /// Bytes that are no such token.
    pub fn read(self, bytes: &[u8]) -> Result<Token, DecodeError> {
        if bytes.is_empty() {
            return Ok(Token::default());
        }
        let mut r = Reader::new(self.open(bytes)?);
        let mut shards = BTreeMap::new();
        for _ in 0..r.varint("shards")? {
            let shard = ShardId(r.array("shard")?);
            let vector = Vector::decode(&mut r)?;
            let ascending = shards.last_key_value().is_none_or(|(last, _)| *last < shard);
            if !ascending || vector.is_empty() {
                return Err(r.invalid("shard"));
            }
            shards.insert(shard, vector);
        }
        r.finish()?;
        Ok(shards.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use tropism_crdt::{NodeId, Origin};
    use tropism_placement::ShardId;

    use super::{Seal, Token};

    fn token() -> Token {
        let origin = |name: &str| Origin { node: NodeId::new(name).unwrap(), incarnation: 7, random: 9 };
        let mut token = Token::default();
        token.add(ShardId([2; 16]), origin("a"), 5);
        token.add(ShardId([1; 16]), origin("b"), 300);
        token.add(ShardId([1; 16]), origin("a"), 1);
        token.add(ShardId([1; 16]), origin("b"), 2);
        token
    }

    #[test]
    fn a_token_has_golden_bytes() {
        let mut one = Token::default();
        let origin = Origin { node: NodeId::new("n").unwrap(), incarnation: 1, random: 2 };
        one.add(ShardId([0xaa; 16]), origin, 3);
        let mut golden = vec![1, 1];
        golden.extend([0xaa; 16]);
        golden.extend(b"\x01\x01n\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x03");
        let bytes = Seal::new("c").token(&one);
        assert_eq!(bytes[..golden.len()], golden);
        assert_eq!(bytes[golden.len()..], 0x7796_368c_784d_b853_u64.to_be_bytes());
    }

    #[test]
    fn what_is_encoded_is_read_back_and_nothing_is_no_bytes() {
        let seal = Seal::new("c");
        assert_eq!(seal.read(&seal.token(&token())), Ok(token()));
        assert!(seal.token(&Token::default()).is_empty());
        assert_eq!(seal.read(&[]), Ok(Token::default()));
        assert_eq!(token().get(&ShardId([1; 16])).unwrap().len(), 2);
    }

    #[test]
    fn a_token_of_another_cluster_or_purpose_or_with_any_flipped_bit_is_refused() {
        let seal = Seal::new("c");
        let bytes = seal.token(&token());
        for other in [Seal::new("d"), seal.of(&["watch"]), seal.of(&["watch", "a"])] {
            assert!(other.read(&bytes).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(seal.read(&bad).is_err());
        }
        for length in 1..bytes.len() {
            assert!(seal.read(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn sealed_bytes_that_are_no_token_are_refused() {
        let seal = Seal::new("c");
        let entry = [[3; 16].as_slice(), b"\x01\x01n\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x03"].concat();
        let twice = [&[2], entry.as_slice(), &entry].concat();
        let empty_vector = [&[1], [3; 16].as_slice(), &[0]].concat();
        let claims_much = [0xff, 0xff, 0xff, 0x7f];
        let trailing = [&[1], entry.as_slice(), &[0]].concat();
        for body in [twice.as_slice(), &empty_vector, &claims_much, &trailing] {
            assert!(seal.read(&seal.close(body)).is_err(), "{body:?}");
        }
        assert!(seal.read(&seal.close(&[&[1], entry.as_slice()].concat())).is_ok());
    }
}
