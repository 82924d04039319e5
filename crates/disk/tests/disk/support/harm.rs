//! Damage to files: what disks, power cuts and people do to a directory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::content::{Random, scratch};

pub(crate) const STORE: &str = "store";
pub(crate) const WITNESS: &str = "witness";
pub(crate) const TORN_TAIL: &str = "torn-tail";
/// What is lost or rots at once, mostly, in bytes.
pub(crate) const PAGE: usize = 4096;
/// The smallest unit a disk writes whole, in bytes.
pub(crate) const SECTOR: usize = 512;

/// Copies a directory; journals keep their size without their zeros being written.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &target);
        } else if path.extension().is_some_and(|extension| extension == "jnl") {
            let len = fs::metadata(&path).unwrap().len();
            fs::write(&target, used_bytes(&path)).unwrap();
            File::options().write(true).open(&target).unwrap().set_len(len).unwrap();
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

pub(crate) fn copy_of(dir: &TempDir) -> TempDir {
    let copied = scratch();
    copy(dir.path(), copied.path());
    copied
}

/// The journal's files, oldest first.
pub(crate) fn journals(dir: &Path) -> Vec<PathBuf> {
    let number = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().parse::<u64>().unwrap();
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir.join(STORE)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    found.sort_by_key(number);
    found
}

pub(crate) fn newest_journal(dir: &Path) -> PathBuf {
    journals(dir).pop().unwrap()
}

/// Every file below a folder, in order.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// A file before the zeros at its end. Reads a journal that was made longer than it is only as far as it goes.
pub(crate) fn used_bytes(path: &Path) -> Vec<u8> {
    const STEP: usize = 1 << 20;
    let file = File::open(path).unwrap();
    let (mut bytes, mut zeros) = (Vec::new(), 0);
    // A journal has no gap of so many zeros.
    while zeros < 2 * STEP {
        let from = bytes.len();
        bytes.resize(from + STEP, 0);
        let read = file.read_at(&mut bytes[from..], from as u64).unwrap();
        bytes.truncate(from + read);
        if read == 0 {
            break;
        }
        zeros = if bytes[from..].iter().all(|byte| *byte == 0) { zeros + read } else { 0 };
    }
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(used);
    bytes
}

pub(crate) fn used(path: &Path) -> usize {
    used_bytes(path).len()
}

pub(crate) fn flip(path: &Path, bit: usize) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, (bit / 8) as u64).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], (bit / 8) as u64).unwrap();
}

pub(crate) fn zero(path: &Path, from: usize, to: usize) {
    overwrite(path, from, &vec![0; to - from]);
}

pub(crate) fn cut(path: &Path, len: usize) {
    File::options().write(true).open(path).unwrap().set_len(len as u64).unwrap();
}

fn overwrite(path: &Path, from: usize, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, from as u64).unwrap();
}

/// Rot at a random place among the first `len` bytes of a file: bits, zeros, other bytes, an end. Says what it did.
pub(crate) fn rot(path: &Path, len: usize, random: &mut Random) -> String {
    if len == 0 {
        fs::write(path, [random.next() as u8]).unwrap();
        return "one byte where there was none".into();
    }
    let end = fs::metadata(path).unwrap().len() as usize;
    match random.below(8) {
        0..3 => {
            let bits: Vec<usize> = (0..=random.below(2)).map(|_| random.below(len * 8)).collect();
            bits.iter().for_each(|bit| flip(path, *bit));
            format!("bits {bits:?} flipped")
        }
        3 | 4 => {
            let unit = [SECTOR, PAGE][random.below(2)];
            let from = random.below(len) / unit * unit;
            let to = (from + unit * (1 + random.below(3))).min(end);
            zero(path, from, to);
            format!("{from}..{to} zeroed")
        }
        5 => {
            let from = random.below(len);
            let len = (1 + random.below(64)).min(end - from);
            let bytes = random.bytes(len);
            overwrite(path, from, &bytes);
            format!("{} other bytes at {from}", bytes.len())
        }
        6 => {
            // A write that went to the wrong place, or one of long ago that shows again.
            let (from, to) = (random.below(len) / SECTOR * SECTOR, random.below(len) / SECTOR * SECTOR);
            let mut sector = vec![0; SECTOR.min(end - from.max(to))];
            File::open(path).unwrap().read_exact_at(&mut sector, from as u64).unwrap();
            overwrite(path, to, &sector);
            format!("the sector at {from} shows at {to}, too")
        }
        _ => {
            let at = random.below(len);
            cut(path, at);
            format!("cut to {at} bytes")
        }
    }
}

/// What a power cut leaves of a file whose bytes from `synced` on were never synced: an end, zeros from some place on, or
/// any of its pages or sectors missing. Says what it did.
pub(crate) fn tear(path: &Path, synced: usize, random: &mut Random) -> String {
    let used = used(path);
    let at = synced + random.below(used - synced);
    match random.below(5) {
        0 => {
            cut(path, at);
            format!("ends at {at} of {used}")
        }
        1 => {
            zero(path, at, used);
            format!("zeros from {at} of {used} on")
        }
        2 => {
            let from = (at / PAGE * PAGE).max(synced);
            zero(path, from, at / PAGE * PAGE + PAGE);
            format!("the page at {from} missing")
        }
        kind => {
            let unit = if kind == 3 { PAGE } else { SECTOR };
            let one_in = [2, 4, 16][random.below(3)];
            let mut missing = 0;
            for number in synced / unit..=used / unit {
                if random.below(one_in) == 0 {
                    zero(path, (number * unit).max(synced), number * unit + unit);
                    missing += 1;
                }
            }
            format!("{missing} units of {unit} missing from {synced}..{used}")
        }
    }
}
