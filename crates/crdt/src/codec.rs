//! The byte encoding every format of ours is written in: big-endian integers, LEB128 varints, length-prefixed bytes.
//!
//! Writers append to a `Vec<u8>`; [`Reader`] walks a slice and fails with the offset, never panics and never allocates
//! what a length merely claims.

use thiserror::Error;

/// Bytes that are not what the format says. Nothing was changed by reading them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The input ended inside a field.
    #[error("ends at byte {at} inside {what}")]
    Truncated {
        /// The field.
        what: &'static str,
        /// Offset at which more was needed.
        at: usize,
    },
    /// A field holds a value that the format does not have.
    #[error("{what} at byte {at} is not valid")]
    Invalid {
        /// The field.
        what: &'static str,
        /// Offset behind the field.
        at: usize,
    },
    /// The checksum does not fit the bytes.
    #[error("checksum mismatch: stored {stored:016x}, computed {computed:016x}")]
    Checksum {
        /// What the bytes say.
        stored: u64,
        /// What they should say.
        computed: u64,
    },
    /// Bytes are left over behind the last field.
    #[error("{count} bytes left over")]
    Trailing {
        /// How many.
        count: usize,
    },
}

/// Appends `value` as LEB128 (7 bits a byte, low group first).
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a varint length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends the checksum (xxh3, 64 bit, big endian) of everything in `out` from `start` on.
pub fn put_checksum(out: &mut Vec<u8>, start: usize) {
    let sum = xxhash_rust::xxh3::xxh3_64(&out[start..]);
    out.extend_from_slice(&sum.to_be_bytes());
}

/// Splits the trailing checksum off and verifies it.
pub fn checked(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let Some((body, tail)) = bytes.split_last_chunk::<8>() else {
        return Err(DecodeError::Truncated { what: "checksum", at: bytes.len() });
    };
    let (stored, computed) = (u64::from_be_bytes(*tail), xxhash_rust::xxh3::xxh3_64(body));
    if stored == computed { Ok(body) } else { Err(DecodeError::Checksum { stored, computed }) }
}

/// Reads fields off the front of a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// What is not read yet.
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Offset of the next byte.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Fails unless everything was read.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest().len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { count }),
        }
    }

    /// The error for a field just read whose value does not exist in the format.
    pub fn invalid(&self, what: &'static str) -> DecodeError {
        DecodeError::Invalid { what, at: self.at }
    }

    /// `len` raw bytes.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let Some(taken) = self.rest().get(..len) else {
            return Err(DecodeError::Truncated { what, at: self.bytes.len() });
        };
        self.at += len;
        Ok(taken)
    }

    /// A fixed number of raw bytes.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// Eight bytes, big endian.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    /// Sixteen bytes, big endian, two's complement.
    pub fn i128(&mut self, what: &'static str) -> Result<i128, DecodeError> {
        Ok(i128::from_be_bytes(self.array(what)?))
    }

    /// A LEB128 varint in its shortest form.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let group = u64::from(byte & 0x7f);
            if shift == 63 && group > 1 || shift > 0 && byte == 0 {
                return Err(self.invalid(what));
            }
            value |= group << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.invalid(what))
    }

    /// A varint length and that many bytes.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.varint(what)?;
        self.take(usize::try_from(len).map_err(|_| self.invalid(what))?, what)
    }

    /// A varint length and that many bytes of UTF-8.
    pub fn str(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let bytes = self.bytes(what)?;
        std::str::from_utf8(bytes).map_err(|_| self.invalid(what))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn varints_round_trip_and_only_the_shortest_form_is_read() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(Reader::new(&out).varint("v"), Ok(value));
        }
        for bad in [&[0x80, 0x00][..], &[0xff; 10], &[0xff; 11], &[0x80]] {
            assert!(Reader::new(bad).varint("v").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_claimed_length_beyond_the_input_is_truncation_not_allocation() {
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX);
        assert_eq!(Reader::new(&out).bytes("b"), Err(DecodeError::Truncated { what: "b", at: 10 }));
    }

    #[test]
    fn every_flipped_bit_fails_the_checksum() {
        let mut out = b"some row".to_vec();
        put_checksum(&mut out, 0);
        assert_eq!(checked(&out).unwrap(), b"some row");
        for bit in 0..out.len() * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(checked(&bad), Err(DecodeError::Checksum { .. })));
        }
    }
}
