//! What lists fjall's tables, verified before fjall reads it.
//!
//! A key space is a folder with `current`, a file of its version (`v` and a number) and its tables (`tables/` and a
//! number). `current` is `version u64, xxh3-128 of the version's file u128, 0`. A version's file and a table are archives:
//! sections, a table of contents `"TOC!", entries u32`, each `position u64, length u64, name length u16, name`, and a
//! trailer `"SFA!", 1, 0, xxh3-128 of the contents u128, their position u64, their length u64`. The section `tables` of a
//! version is `levels u8`, each `runs u8`, each `tables u32`, each `number u64, 0, xxh3-128 of the table's file u128,
//! sequence number u64`. Integers are little endian.
//!
//! fjall writes these checksums and does not look at them: a flipped bit in a version's file can hide tables, which fjall
//! then deletes, and one in a count can make it ask for more memory than there is, which ends the process. The blocks of
//! a table have checksums of their own, which fjall verifies whenever it reads one; a table as a whole is read here only
//! when a store is suspect.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tropism_crdt::codec::{DecodeError, Reader};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::journal::Fault;

const TRAILER_LEN: usize = 38;
const TRAILER: &[u8] = b"SFA!\x01\x00";
const CONTENTS: &[u8] = b"TOC!";
/// Table of contents of a table or a version: some ten sections with short names. What says more is not read.
const MAX_CONTENTS_LEN: u64 = 64 << 10;
/// Bytes of a table that are read at once.
const STEP: usize = 1 << 20;

/// Verifies a key space's folder; with `whole` also every byte of its tables. Changes nothing.
pub(crate) fn check(keyspace: &Path, whole: bool) -> Result<(), Fault> {
    let damaged = |name: &str, problem: &dyn Display| {
        let folder = keyspace.file_name().unwrap_or_default().to_string_lossy();
        Fault::Damaged(format!("keyspaces/{folder}/{name}: {problem}"))
    };
    let current = keyspace.join("current");
    let bytes = fs::read(&current).map_err(Fault::reading(&current))?;
    let (version, sum) = current_of(&bytes).map_err(|problem| damaged("current", &problem))?;
    let name = format!("v{version}");
    let path = keyspace.join(&name);
    let bytes = fs::read(&path).map_err(Fault::reading(&path))?;
    if xxh3_128(&bytes) != sum {
        return Err(damaged(&name, &"the checksum is wrong"));
    }
    for (number, sum) in tables_of(&bytes).map_err(|problem| damaged(&name, &problem))? {
        let name = format!("tables/{number}");
        let path = keyspace.join(&name);
        let file = File::open(&path).map_err(Fault::reading(&path))?;
        if !has_contents(&file).map_err(Fault::reading(&path))? {
            return Err(damaged(&name, &"its table of contents is not what was written"));
        }
        if whole && sum_of(file).map_err(Fault::reading(&path))? != sum {
            return Err(damaged(&name, &"the checksum is wrong"));
        }
    }
    Ok(())
}

/// The version and its checksum.
fn current_of(bytes: &[u8]) -> Result<(u64, u128), DecodeError> {
    let mut r = Reader::new(bytes);
    let version = u64::from_le_bytes(r.array("version")?);
    let sum = u128::from_le_bytes(r.array("checksum")?);
    if r.u8("kind of checksum")? != 0 {
        return Err(r.invalid("kind of checksum"));
    }
    r.finish()?;
    Ok((version, sum))
}

/// Numbers and checksums of the tables of a version whose own checksum fits.
fn tables_of(bytes: &[u8]) -> Result<Vec<(u64, u128)>, String> {
    let trailer_at = bytes.len().checked_sub(TRAILER_LEN).ok_or("it has no trailer")?;
    let (sum, at, len) = trailer_of(&bytes[trailer_at..]).map_err(|problem| problem.to_string())?;
    let contents =
        usize::try_from(at).ok().and_then(|at| bytes.get(at..at.checked_add(usize::try_from(len).ok()?)?));
    let contents =
        contents.filter(|contents| xxh3_128(contents) == sum).ok_or("its contents are not where it says")?;
    let section = section_of(contents, b"tables").map_err(|problem| problem.to_string())?;
    let section =
        section.and_then(|(at, len)| bytes.get(at..at.checked_add(len)?)).ok_or("it lists no tables")?;
    list_of(section).map_err(|problem| problem.to_string())
}

fn trailer_of(bytes: &[u8]) -> Result<(u128, u64, u64), DecodeError> {
    let mut r = Reader::new(bytes);
    if r.take(TRAILER.len(), "trailer")? != TRAILER {
        return Err(r.invalid("trailer"));
    }
    let sum = u128::from_le_bytes(r.array("checksum of the contents")?);
    Ok((
        sum,
        u64::from_le_bytes(r.array("contents")?),
        u64::from_le_bytes(r.array("length of the contents")?),
    ))
}

/// Position and length of a section.
fn section_of(contents: &[u8], wanted: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut r = Reader::new(contents);
    if r.take(CONTENTS.len(), "contents")? != CONTENTS {
        return Err(r.invalid("contents"));
    }
    for _ in 0..u32::from_le_bytes(r.array("entries")?) {
        let (at, len) = (u64::from_le_bytes(r.array("position")?), u64::from_le_bytes(r.array("length")?));
        let name_len = u16::from_le_bytes(r.array("length of the name")?);
        if r.take(usize::from(name_len), "name")? == wanted {
            return match (usize::try_from(at), usize::try_from(len)) {
                (Ok(at), Ok(len)) => Ok(Some((at, len))),
                _ => Err(r.invalid("position")),
            };
        }
    }
    Ok(None)
}

fn list_of(section: &[u8]) -> Result<Vec<(u64, u128)>, DecodeError> {
    let mut r = Reader::new(section);
    let mut tables = Vec::new();
    for _ in 0..r.u8("levels")? {
        for _ in 0..r.u8("runs")? {
            for _ in 0..u32::from_le_bytes(r.array("tables")?) {
                let number = u64::from_le_bytes(r.array("table")?);
                if r.u8("kind of checksum")? != 0 {
                    return Err(r.invalid("kind of checksum"));
                }
                tables.push((number, u128::from_le_bytes(r.array("checksum")?)));
                r.take(size_of::<u64>(), "sequence number")?;
            }
        }
    }
    r.finish()?;
    Ok(tables)
}

/// Whether the table of contents of a table is whole: fjall reserves memory for what it counts before it verifies it.
fn has_contents(file: &File) -> io::Result<bool> {
    let end = file.metadata()?.len();
    let mut trailer = [0; TRAILER_LEN];
    let Some(at) = end.checked_sub(TRAILER_LEN as u64) else { return Ok(false) };
    file.read_exact_at(&mut trailer, at)?;
    let Ok((sum, from, len)) = trailer_of(&trailer) else { return Ok(false) };
    if len > MAX_CONTENTS_LEN || from.checked_add(len) != Some(at) {
        return Ok(false);
    }
    let mut contents = vec![0; len as usize];
    file.read_exact_at(&mut contents, from)?;
    Ok(xxh3_128(&contents) == sum)
}

fn sum_of(mut file: File) -> io::Result<u128> {
    let (mut hasher, mut bytes) = (Xxh3::new(), vec![0; STEP]);
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hasher.digest128()),
            read => hasher.update(&bytes[..read]),
        }
    }
}
