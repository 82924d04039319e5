//! The witness: a small file beside the store that says how far the store once was.
//!
//! Two slots on different pages, each `format u8, sequence u64, origin (varint length and bytes, empty before the first
//! life), reserved ms u64, commit u64, hash u64`, zeros, and a checksum over all of it; integers big endian. A record
//! goes to the older slot, so a write that is torn leaves the record before it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tropism_crdt::Origin;
use tropism_crdt::codec::{DecodeError, Reader, checked, put_bytes, put_checksum};
use tropism_storage::Head;

/// The format of a slot.
pub const WITNESS_FORMAT: u8 = 1;
/// Bytes of a slot: the longest record has 90, and 128 stay inside one disk sector.
const SLOT_LEN: usize = 128;
/// Bytes from slot to slot: no disk writes in larger units than 4 KiB, so a torn write reaches one slot only.
const SLOT_SPACING: u64 = 4096;
const SLOTS: u64 = 2;

/// What a witness says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Counts records; the slot with the higher one is the newer.
    pub sequence: u64,
    /// The origin of the node's life then; `None` before the first.
    pub origin: Option<Origin>,
    /// No stamp at or beyond this was issued, Unix ms.
    pub reserved_ms: u64,
    /// The store's head.
    pub head: Head,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SLOT_LEN);
        out.push(WITNESS_FORMAT);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        put_bytes(&mut out, &self.origin.map(|origin| origin.to_bytes()).unwrap_or_default());
        out.extend_from_slice(&self.reserved_ms.to_be_bytes());
        out.extend_from_slice(&self.head.commit.to_be_bytes());
        out.extend_from_slice(&self.head.hash.to_be_bytes());
        out.resize(SLOT_LEN - size_of::<u64>(), 0);
        put_checksum(&mut out, 0);
        out
    }

    /// The record in a slot, `None` when there is none; an error when another program's format is there.
    fn decode(slot: &[u8]) -> io::Result<Option<Self>> {
        let Ok(fields) = checked(slot) else { return Ok(None) };
        let mut r = Reader::new(fields);
        match r.u8("format") {
            Ok(WITNESS_FORMAT) => Ok(Self::decode_fields(&mut r).ok()),
            Ok(format) => Err(io::Error::new(
                ErrorKind::Unsupported,
                format!("the witness has format {format}, this program knows {WITNESS_FORMAT}"),
            )),
            Err(_) => Ok(None),
        }
    }

    fn decode_fields(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let sequence = r.u64("sequence")?;
        let origin = match r.bytes("origin")? {
            [] => None,
            bytes => Some(Origin::decode(&mut Reader::new(bytes))?),
        };
        let reserved_ms = r.u64("reservation")?;
        let head = Head { commit: r.u64("commit")?, hash: r.u64("hash")? };
        Ok(Self { sequence, origin, reserved_ms, head })
    }
}

/// An open witness. Invariant: the slot that is written next is not the one that holds [`Self::last`].
#[derive(Debug)]
pub struct Witness {
    file: File,
    last: Record,
}

impl Witness {
    /// Makes a witness of a store without commits, durable but for its name in the directory. One that holds no record,
    /// left by a crash here, is replaced.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(SLOTS * SLOT_SPACING)?;
        let last = Record { sequence: 0, origin: None, reserved_ms: 0, head: Head::default() };
        let witness = Self { file, last };
        witness.write()?;
        witness.file.sync_all()?;
        Ok(witness)
    }

    /// Opens a witness at its newest whole record; `None` when it has none.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut last: Option<Record> = None;
        for slot in 0..SLOTS {
            let mut bytes = [0; SLOT_LEN];
            match file.read_exact_at(&mut bytes, slot * SLOT_SPACING) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => continue,
                other => other?,
            }
            // A record in the wrong slot was not written there by a witness.
            let found = Record::decode(&bytes)?.filter(|record| record.sequence % SLOTS == slot);
            if found.as_ref().map(|record| record.sequence) > last.as_ref().map(|record| record.sequence) {
                last = found;
            }
        }
        Ok(last.map(|last| Self { file, last }))
    }

    /// The newest record.
    pub fn last(&self) -> &Record {
        &self.last
    }

    /// Writes a record over the older slot: it survives the process at once, a power cut after [`Self::sync`]. After
    /// an error the newest record is the one before.
    pub fn record(&mut self, origin: Origin, reserved_ms: u64, head: Head) -> io::Result<()> {
        let before = self.last.clone();
        self.last = Record { sequence: before.sequence + 1, origin: Some(origin), reserved_ms, head };
        self.write().inspect_err(|_| self.last = before)
    }

    /// Makes every record so far durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self) -> io::Result<()> {
        self.file.write_all_at(&self.last.encode(), self.last.sequence % SLOTS * SLOT_SPACING)
    }
}
