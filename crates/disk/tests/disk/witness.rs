//! The witness.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use tempfile::tempdir;
use tropism_disk::Witness;
use tropism_storage::Head;

use crate::opening::refusal;
use crate::support::content::{directory, options, origin};
use crate::support::harm::{WITNESS, flip, zero};

#[test]
fn a_witness_has_golden_bytes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(WITNESS);
    let mut witness = Witness::create(&path).unwrap();
    witness.record(origin(), 0x0102, Head { commit: 0x0304, hash: 0x0506 }).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 8192);
    let fields = b"\x01\0\0\0\0\0\0\0\x01\x13\x02n1\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\
        \0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x03\x04\0\0\0\0\0\0\x05\x06";
    let slot = &bytes[4096..4096 + 128];
    assert_eq!(slot[..fields.len()], *fields);
    assert!(slot[fields.len()..120].iter().all(|byte| *byte == 0));
    assert_eq!(slot[120..], [0x2c, 0xec, 0x61, 0x02, 0x47, 0x7c, 0xb4, 0xca], "the checksum");
    let first = b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert_eq!(bytes[..first.len()], *first);
}

#[test]
fn a_torn_slot_of_the_witness_leaves_the_record_before() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(WITNESS);
    let head = |commit| Head { commit, hash: commit * 7 };
    for records in 1..=4 {
        let mut witness = Witness::create(&path).unwrap();
        for commit in 1..=records {
            witness.record(origin(), commit + 100, head(commit)).unwrap();
        }
        witness.sync().unwrap();
        let newest = Witness::open(&path).unwrap().unwrap();
        assert_eq!((newest.last().head, newest.last().reserved_ms), (head(records), records + 100));
        let slot = (records % 2 * 4096) as usize;
        let whole = fs::read(&path).unwrap();
        for torn_at in 0..128 {
            fs::write(&path, &whole).unwrap();
            flip(&path, (slot + torn_at) * 8 + 3);
            let mut fallen_back = Witness::open(&path).unwrap().unwrap();
            assert_eq!(fallen_back.last().sequence, records - 1);
            fallen_back.record(origin(), 0, head(9)).unwrap();
            assert_eq!(Witness::open(&path).unwrap().unwrap().last().head, head(9));
        }
        zero(&path, 0, 8192);
        assert!(Witness::open(&path).unwrap().is_none());
        for len in [0, 100, 4096, 4150] {
            fs::write(&path, &whole[..len]).unwrap();
            let found = Witness::open(&path).unwrap().map(|witness| witness.last().sequence % 2);
            assert_eq!(found, (len >= 128).then_some(0), "{len} bytes");
        }
    }
}

#[test]
fn a_witness_of_a_newer_format_is_not_read() {
    let dir = directory(&options(), 3, 0);
    let path = dir.path().join(WITNESS);
    let mut slot = fs::read(&path).unwrap()[..120].to_vec();
    slot[0] = 2;
    tropism_crdt::codec::put_checksum(&mut slot, 0);
    File::options().write(true).open(&path).unwrap().write_all_at(&slot, 0).unwrap();
    assert!(refusal(dir.path()).to_string().contains("format 2, this program knows 1"));
}
