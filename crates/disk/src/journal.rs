//! fjall's journal, read before fjall reads it.
//!
//! A journal file is a row of batches, then zeros (fjall preallocates) or the end of the file. A batch is
//! `1, items u32, seqno u64`, the items `2, type u8, compression u8, keyspace u64, key length u16, value length u32,
//! stored length u32, key, stored value`, and `3, xxh3 of the items u64, "FJL" 3`; integers little endian. The format is
//! stable within fjall 3, and the tests that damage real journals would notice a change.
//!
//! What is verified beyond fjall's own checksums: batches have rising seqnos, their commit numbers follow one another
//! without a gap, the journal passes through what the witness saw, and what lies behind the last whole batch is either
//! nothing or a torn write.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tropism_crdt::codec::{DecodeError, Reader};
use tropism_storage::rows::Row;
use tropism_storage::{Head, HeadRow, NodeKey, Space};
use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: [u8; 4] = *b"FJL\x03";
/// fjall numbers key spaces from 1 in the order they are made.
const NODE_KEYSPACE: u64 = Space::Node as u64 + 1;
/// The smallest unit a disk writes whole, in bytes: what never reached the disk is zeros from such a boundary on.
const SECTOR: usize = 512;

/// Why a store's files cannot be trusted.
#[derive(Debug)]
pub(crate) enum Fault {
    /// One could not be read.
    Io { path: PathBuf, source: io::Error },
    /// One is not what was written, or missing.
    Damaged(String),
}

impl Fault {
    /// What it means that a file cannot be read: one that is missing or too short is damage.
    pub(crate) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Self::Damaged(format!("{path:?} is missing"))
            }
            io::ErrorKind::UnexpectedEof => Self::Damaged(format!("{path:?} is too short")),
            _ => Self::Io { path, source },
        }
    }
}

/// A journal that may be opened, once its tear is cut.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Head of the last batch that carries one.
    pub(crate) head: Option<Head>,
    /// What a power cut or a kill left of writes that were not synced.
    pub(crate) tear: Option<Tear>,
}

/// The torn end of the newest journal file that is in use.
#[derive(Debug)]
pub(crate) struct Tear {
    /// The file.
    pub(crate) path: PathBuf,
    /// Offset behind the last whole batch.
    pub(crate) at: u64,
    /// What is there instead of a batch, without the zeros at the end.
    pub(crate) tail: Vec<u8>,
}

/// Reads all journal files of a store, changing nothing. Holds one file in memory at a time: about 64 MiB, at which
/// fjall begins the next, and at most the memtables more.
pub(crate) fn check(store: &Path, witness: Option<Head>) -> Result<Checked, Fault> {
    let mut files = Vec::new();
    for entry in fs::read_dir(store).map_err(Fault::reading(store))? {
        let path = entry.map_err(Fault::reading(store))?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            files.push((number.ok_or_else(|| Fault::Damaged(format!("{path:?} is no journal")))?, path));
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Fault::Damaged("its journal is missing".into()));
    }
    // fjall removes the oldest first and makes the next number.
    if let Some(pair) = files.windows(2).find(|pair| pair[0].0 + 1 != pair[1].0) {
        return Err(Fault::Damaged(format!("its journal {} is missing", pair[0].0 + 1)));
    }

    let mut chain = Chain { seqno: None, head: None, witness };
    for (number, path) in &files {
        let (number, path) = (*number, path.clone());
        let bytes = fs::read(&path).map_err(Fault::reading(&path))?;
        let Some(stop) = walk(&bytes, &mut chain).map_err(|reason| damaged(number, &reason, chain.head))?
        else {
            continue;
        };
        let later = files.iter().filter(|(other, _)| *other > number);
        if !stop.torn || !are_unused(later.map(|(_, path)| path))? {
            let reason = format!("{} at byte {}", stop.reason, stop.at);
            return Err(damaged(number, &reason, chain.head));
        }
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(stop.at, |last| last + 1);
        let tail = bytes[stop.at..end].to_vec();
        return Ok(Checked { head: chain.head, tear: Some(Tear { path, at: stop.at as u64, tail }) });
    }
    Ok(Checked { head: chain.head, tear: None })
}

fn damaged(number: u64, reason: &str, head: Option<Head>) -> Fault {
    let behind = head.map_or_else(String::new, |head| format!(", behind commit {}", head.commit));
    Fault::Damaged(format!("journal {number}: {reason}{behind}"))
}

/// Whether files hold nothing. A disk without room for the journal that comes next leaves a file without a batch, and the
/// journal before may be torn then.
fn are_unused<'a>(mut files: impl Iterator<Item = &'a PathBuf>) -> Result<bool, Fault> {
    files.try_fold(true, |unused, path| Ok(unused && is_zero(&fs::read(path).map_err(Fault::reading(path))?)))
}

/// How far the batches have come.
struct Chain {
    seqno: Option<u64>,
    head: Option<Head>,
    witness: Option<Head>,
}

impl Chain {
    /// Takes the next batch, if it is the next. Batches without a head are not ours to number.
    fn follow(&mut self, batch: &Batch) -> Result<(), String> {
        let Some(head) = batch.head else { return Ok(()) };
        if self.seqno.is_some_and(|last| batch.seqno <= last) || batch.seqno >> 63 != 0 {
            return Err(format!("commit {} has the wrong seqno {}", head.commit, batch.seqno));
        }
        if let Some(last) = self.head.filter(|last| head.commit != last.commit + 1) {
            return Err(format!("commit {} follows commit {}", head.commit, last.commit));
        }
        if self.witness.is_some_and(|seen| seen.commit == head.commit && seen.hash != head.hash) {
            return Err(format!("commit {} is not the one that the witness saw", head.commit));
        }
        (self.seqno, self.head) = (Some(batch.seqno), Some(head));
        Ok(())
    }
}

/// Where the batches of a file stop although something follows.
struct Stop {
    at: usize,
    reason: &'static str,
    torn: bool,
}

/// Walks over the batches of a file; `None` when nothing follows the last.
fn walk(bytes: &[u8], chain: &mut Chain) -> Result<Option<Stop>, String> {
    let mut at = 0;
    while !is_zero(&bytes[at..]) {
        match Batch::read(&bytes[at..]) {
            Ok(batch) => {
                chain.follow(&batch)?;
                at += batch.len;
            }
            Err(broken) => {
                let torn = is_torn(bytes, at, at + broken.extent);
                return Ok(Some(Stop { at, reason: broken.reason, torn }));
            }
        }
    }
    Ok(None)
}

/// Whether `bytes[from..to]` lacks something that was never written: the file ends there, or a sector is zeros from
/// where the batch began or the sector did. Anything else was whole once and has changed since.
fn is_torn(bytes: &[u8], from: usize, to: usize) -> bool {
    let mut start = from;
    while start < to {
        let end = (start / SECTOR + 1) * SECTOR;
        match bytes.get(start..end.min(to)) {
            None => return true,
            Some(sector) if is_zero(sector) => return true,
            Some(_) => start = end,
        }
    }
    false
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// What matters of a batch.
struct Batch {
    len: usize,
    seqno: u64,
    head: Option<Head>,
}

/// A batch that is not whole: how many bytes may be to blame.
struct Broken {
    extent: usize,
    reason: &'static str,
}

impl Batch {
    fn read(bytes: &[u8]) -> Result<Self, Broken> {
        let mut r = Reader::new(bytes);
        let (batch, sums_match) = Self::fields(&mut r).map_err(|problem| match problem {
            DecodeError::Truncated { .. } => {
                Broken { extent: bytes.len() + 1, reason: "a batch does not end" }
            }
            // The lengths that led here may be zeros or torn themselves, so the sector behind is in question too.
            _ => Broken { extent: (r.at() / SECTOR + 2) * SECTOR, reason: "a batch is malformed" },
        })?;
        if sums_match {
            Ok(batch)
        } else {
            Err(Broken { extent: batch.len, reason: "a batch has the wrong checksum" })
        }
    }

    fn fields(r: &mut Reader<'_>) -> Result<(Self, bool), DecodeError> {
        let whole = r.rest();
        expect(r, START, "batch start")?;
        let items = u32::from_le_bytes(r.array("item count")?);
        let seqno = u64::from_le_bytes(r.array("seqno")?);
        let first_item = r.at();
        let head_key = NodeKey::Head.encode();
        let mut head = None;
        for _ in 0..items {
            expect(r, ITEM, "item")?;
            r.take(2, "type and compression")?; // the head is far too small to be compressed
            let keyspace = u64::from_le_bytes(r.array("keyspace")?);
            let key_len = u16::from_le_bytes(r.array("key length")?);
            r.take(4, "value length")?;
            let stored_len = u32::from_le_bytes(r.array("stored length")?);
            let key = r.take(usize::from(key_len), "key")?;
            let value = r.take(stored_len as usize, "value")?;
            if keyspace == NODE_KEYSPACE && key == head_key.as_bytes() {
                head = HeadRow::decode(&Bytes::copy_from_slice(value)).ok().map(|row| row.head);
            }
        }
        let sum = xxh3_64(&whole[first_item..r.at()]);
        expect(r, END, "batch end")?;
        let stored_sum = u64::from_le_bytes(r.array("checksum")?);
        if r.array("trailer")? != TRAILER {
            return Err(r.invalid("trailer"));
        }
        Ok((Self { len: r.at(), seqno, head }, sum == stored_sum))
    }
}

fn expect(r: &mut Reader<'_>, tag: u8, what: &'static str) -> Result<(), DecodeError> {
    if r.u8(what)? == tag { Ok(()) } else { Err(r.invalid(what)) }
}
