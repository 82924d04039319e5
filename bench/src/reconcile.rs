//! What it takes two members to find which of a million fingerprints differ: three ways, in one thread, without network
//! and disk.
//!
//! The ranges are negentropy's (16 buckets, a list below 32 items) and the trie has 16 children a node and 2^16 leaves;
//! both in compact form, over the same 16-byte fingerprints, keyed sums in place of hashes of sums. The sketch is the
//! replica's. Each exchange begins where digests have differed, and ends when one member knows both lists, which is
//! checked; handing over states is the same afterwards, whichever way it was.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use tropism_crdt::codec::{Reader, put_varint};
use tropism_replica::limits::SKETCH_FIRST_CELLS;
use tropism_replica::sketch::{Decoded, Difference, Sketch, Unpeeled};

/// How two members' sets differ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// What it is.
    pub(crate) name: &'static str,
    /// Fingerprints that only the first has.
    ours: usize,
    /// Fingerprints that only the second has.
    theirs: usize,
}

/// The cases of the table.
pub(crate) const CASES: [Case; 5] = [
    Case { name: "equal", ours: 0, theirs: 0 },
    Case { name: "1 missing", ours: 1, theirs: 0 },
    Case { name: "100 missing", ours: 100, theirs: 0 },
    Case { name: "100 in two states", ours: 100, theirs: 100 },
    Case { name: "10 000 missing", ours: 10_000, theirs: 0 },
];

/// A way to find what differs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// What it is.
    pub(crate) name: &'static str,
    find: fn(&[u128], &[u128]) -> Result<Found>,
}

/// The ways of the table.
pub(crate) const WAYS: [Way; 4] = [
    Way { name: "ranges, 16 buckets, lists below 32", find: ranges },
    Way { name: "trie, 16-way, 2^16 leaves", find: trie },
    Way {
        name: "sketch, 256 cells, then as estimated",
        find: |a, b| sketch(a, b, 1, |estimated, _| estimated),
    },
    Way { name: "sketch, 256 cells, then four times", find: |a, b| sketch(a, b, 1, |_, had| 4 * had) },
];

/// What one exchange took.
#[derive(Debug, Default)]
pub(crate) struct Found {
    decoded: Decoded,
    /// Bytes both ways.
    pub(crate) bytes: usize,
    /// Messages until one member knows both lists; two are a round trip.
    pub(crate) messages: usize,
    /// Processor time of the first and the second member, ms.
    pub(crate) cpu_ms: [f64; 2],
    /// Times each member walks over all its fingerprints, when it keeps nothing between exchanges.
    pub(crate) scans: usize,
    /// Memory that a member needs beside the fingerprints it is walking over, bytes.
    pub(crate) memory: usize,
}

impl Found {
    fn send(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.messages += 1;
    }

    /// Runs the work of a member and counts its time.
    fn work<T>(&mut self, member: usize, work: impl FnOnce() -> T) -> T {
        let start = thread_ms();
        let done = work();
        self.cpu_ms[member] += thread_ms() - start;
        done
    }
}

/// One row: a case found one way among `size` fingerprints, in the middle of `rounds`.
pub(crate) fn measure(size: usize, case: Case, way: Way, rounds: usize) -> Result<Found> {
    let mut done = Vec::new();
    for round in 0..rounds.max(1) {
        let (ours, theirs, expected) = sets(round as u64, size, case.ours, case.theirs);
        let found = (way.find)(&ours, &theirs)?;
        ensure!(found.decoded == expected, "{}: {} told another difference", way.name, case.name);
        done.push(found);
    }
    done.sort_by(|a, b| (a.cpu_ms[0] + a.cpu_ms[1]).total_cmp(&(b.cpu_ms[0] + b.cpu_ms[1])));
    let middle = done.len() / 2;
    Ok(done.swap_remove(middle))
}

/// How often a sketch suffices for so many differences.
#[derive(Debug)]
pub(crate) struct Luck {
    /// Exchanges, each of other sets.
    pub(crate) sets: usize,
    /// Those which took more than the first cells.
    pub(crate) second: usize,
    /// Those which took more than the cells estimated from the first.
    pub(crate) third: usize,
    /// Cells for one difference until it peeled, if cells were asked for one by one: median, 99 of 100, most.
    pub(crate) needed: [f64; 3],
    /// Cells for one difference as they were asked for: median, most.
    pub(crate) taken: [f64; 2],
}

/// Tries `sets` random sets with so many differences, half of them on either side when `both`. What both members have
/// cancels in every cell, so they have nothing else.
pub(crate) fn luck(differences: usize, both: bool, sets: usize) -> Result<Luck> {
    let mut luck = Luck { sets, second: 0, third: 0, needed: [0.0; 3], taken: [0.0; 2] };
    let (mut needed, mut taken) = (Vec::new(), Vec::new());
    for seed in 0..sets as u64 {
        let there = if both { differences / 2 } else { 0 };
        let (ours, theirs, expected) = self::sets(1_000 + seed, 0, differences - there, there);
        let found = sketch(&ours, &theirs, seed, |estimated, _| estimated)?;
        ensure!(found.decoded == expected, "another difference");
        let cells = found.memory / CELL_BYTES;
        luck.second += usize::from(found.scans > 1);
        luck.third += usize::from(found.scans > 2);
        taken.push(cells as f64 / differences as f64);
        let whole = |cells| -> Result<bool> {
            let mut difference = Difference::new(seed);
            difference.extend(&filled(seed, 0..cells, &ours), &filled(seed, 0..cells, &theirs))?;
            Ok(difference.peel().is_ok())
        };
        let (mut few, mut enough) = (0, cells);
        while few + 1 < enough {
            let middle = few.midpoint(enough);
            if whole(middle)? { enough = middle } else { few = middle }
        }
        needed.push(enough as f64 / differences as f64);
    }
    needed.sort_by(f64::total_cmp);
    taken.sort_by(f64::total_cmp);
    let at = |values: &[f64], part: f64| {
        values.get(((values.len() - 1) as f64 * part) as usize).copied().unwrap_or(f64::NAN)
    };
    luck.needed = [at(&needed, 0.5), at(&needed, 0.99), at(&needed, 1.0)];
    luck.taken = [at(&taken, 0.5), at(&taken, 1.0)];
    Ok(luck)
}

/// Two members' fingerprints, in the order of their keys, and what differs.
fn sets(seed: u64, same: usize, ours: usize, theirs: usize) -> (Vec<u128>, Vec<u128>, Decoded) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut set = |count: usize| -> Vec<u128> { (0..count).map(|_| random.random()).collect() };
    let same = set(same.saturating_sub(ours));
    let (mut ours, mut theirs) = (set(ours), set(theirs));
    let all = |own: &[u128]| -> Vec<u128> { same.iter().chain(own).copied().collect() };
    let (a, b) = (all(&ours), all(&theirs));
    ours.sort_unstable();
    theirs.sort_unstable();
    (a, b, Decoded { ours, theirs })
}

fn thread_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

// The sketch.

/// Memory of a cell.
const CELL_BYTES: usize = 32;

fn filled(salt: u64, cells: Range<usize>, fingerprints: &[u128]) -> Sketch {
    let mut sketch = Sketch::new(salt, cells);
    for fingerprint in fingerprints {
        sketch.add(*fingerprint);
    }
    sketch
}

/// The first member sends cells; the second adds the same cells, peels, and asks for more. `more` says how many in all,
/// from how many are estimated to be needed and how many there were.
fn sketch(ours: &[u128], theirs: &[u128], salt: u64, more: impl Fn(usize, usize) -> usize) -> Result<Found> {
    let mut found = Found::default();
    let mut difference = Difference::new(salt);
    let mut cells = 0..SKETCH_FIRST_CELLS;
    loop {
        found.scans += 1;
        let sent = found.work(0, || filled(salt, cells.clone(), ours).encode().collect::<Vec<_>>());
        found.messages += 1;
        found.bytes += sent.iter().map(Vec::len).sum::<usize>();
        let peeled = found.work(1, || -> Result<_> {
            let own = filled(salt, cells.clone(), theirs);
            for part in &sent {
                difference.extend(&own, &Sketch::decode(salt, part)?)?;
            }
            Ok(difference.peel())
        })?;
        found.memory = cells.end * CELL_BYTES;
        match peeled {
            Ok(decoded) => {
                // The second member decoded.
                found.decoded = Decoded { ours: decoded.theirs, theirs: decoded.ours };
                return Ok(found);
            }
            Err(Unpeeled::More { cells: estimated }) => {
                cells = cells.end..more(estimated, cells.end);
                let mut ask = Vec::new();
                put_varint(&mut ask, cells.start as u64);
                put_varint(&mut ask, cells.end as u64);
                found.send(&ask);
            }
            Err(beyond) => return Err(beyond.into()),
        }
    }
}

// Ranges.

/// Children of a range, and what a list is shorter than: two items a child.
const BUCKETS: usize = 16;
const LIST: usize = 2 * BUCKETS;
/// What follows a range's upper bound.
const SKIP: u64 = 0;
const SUM: u64 = 1;
const ITEMS: u64 = 2;

/// Sorted fingerprints and the sums before each.
struct Sorted {
    items: Vec<u128>,
    sums: Vec<u128>,
}

impl Sorted {
    fn new(fingerprints: &[u128]) -> Self {
        let mut items = fingerprints.to_vec();
        items.sort_unstable();
        let mut sums = Vec::with_capacity(items.len() + 1);
        sums.push(0_u128);
        for item in &items {
            sums.push(sums[sums.len() - 1].wrapping_add(*item));
        }
        Self { items, sums }
    }

    fn sum(&self, range: Range<usize>) -> u128 {
        self.sums[range.end].wrapping_sub(self.sums[range.start])
    }

    /// Items from `from` on that lie below a bound.
    fn below(&self, from: usize, bound: Option<u128>) -> usize {
        let items = &self.items[from..];
        from + bound.map_or(items.len(), |bound| items.partition_point(|item| *item < bound))
    }
}

/// The ranges of one message. What is skipped is joined, and left out at the end.
#[derive(Default)]
struct Ranges {
    bytes: Vec<u8>,
    skip: Option<Option<u128>>,
}

impl Ranges {
    fn skip(&mut self, bound: Option<u128>) {
        self.skip = Some(bound);
    }

    /// Appends a range up to `bound` (without one: up to the end).
    fn range(&mut self, bound: Option<u128>, mode: u64) {
        if let Some(skipped) = self.skip.take() {
            put_bound(&mut self.bytes, skipped);
            put_varint(&mut self.bytes, SKIP);
        }
        put_bound(&mut self.bytes, bound);
        put_varint(&mut self.bytes, mode);
    }

    fn items(&mut self, bound: Option<u128>, items: &[u128]) {
        self.range(bound, ITEMS);
        put_varint(&mut self.bytes, items.len() as u64);
        for item in items {
            self.bytes.extend_from_slice(&item.to_be_bytes());
        }
    }

    /// Appends the parts of a range that differs: its items when they are few, else the sums of its buckets.
    fn split(&mut self, set: &Sorted, range: Range<usize>, bound: Option<u128>) {
        if range.len() < LIST {
            return self.items(bound, &set.items[range]);
        }
        let mut from = range.start;
        for bucket in 0..BUCKETS {
            let to = from + range.len() / BUCKETS + usize::from(bucket < range.len() % BUCKETS);
            let upper = if to == range.end { bound } else { Some(between(set.items[to - 1], set.items[to])) };
            self.range(upper, SUM);
            self.bytes.extend_from_slice(&set.sum(from..to).to_be_bytes());
            from = to;
        }
    }
}

/// The shortest prefix of `after` that is above `before`, filled up with zeros.
fn between(before: u128, after: u128) -> u128 {
    let same = (before ^ after).leading_zeros() / 8;
    after & (u128::MAX << (8 * (15 - same)))
}

/// A bound is the length of its prefix and that; the end is length 255.
fn put_bound(out: &mut Vec<u8>, bound: Option<u128>) {
    let Some(bound) = bound else { return out.push(255) };
    let len = 16 - bound.trailing_zeros() as usize / 8;
    out.push(len as u8);
    out.extend_from_slice(&bound.to_be_bytes()[..len]);
}

fn bound(r: &mut Reader<'_>) -> Result<Option<u128>> {
    let len = usize::from(r.u8("length of a bound")?);
    if len == 255 {
        return Ok(None);
    }
    let mut bytes = [0; 16];
    bytes.get_mut(..len).context("a bound")?.copy_from_slice(r.take(len, "bound")?);
    Ok(Some(u128::from_be_bytes(bytes)))
}

fn u128_of(r: &mut Reader<'_>) -> Result<u128> {
    Ok(u128::from_be_bytes(r.array("16 bytes")?))
}

/// Answers a message; the member that began also notes what its lists show.
fn answer(set: &Sorted, message: &[u8], mut began: Option<&mut Decoded>) -> Result<Vec<u8>> {
    let (mut r, mut out, mut from) = (Reader::new(message), Ranges::default(), 0);
    while !r.rest().is_empty() {
        let upper = bound(&mut r)?;
        let to = set.below(from, upper);
        match r.varint("mode")? {
            SKIP => out.skip(upper),
            SUM if u128_of(&mut r)? == set.sum(from..to) => out.skip(upper),
            SUM => out.split(set, from..to, upper),
            _ => {
                let count = r.varint("items")?;
                let theirs = (0..count).map(|_| u128_of(&mut r)).collect::<Result<Vec<_>>>()?;
                if let Some(decoded) = began.as_deref_mut() {
                    compare(&set.items[from..to], &theirs, decoded);
                    out.skip(upper);
                } else {
                    out.items(upper, &set.items[from..to]);
                }
            }
        }
        from = to;
    }
    Ok(out.bytes)
}

/// Notes what only one of two short sorted lists has.
fn compare(ours: &[u128], theirs: &[u128], decoded: &mut Decoded) {
    decoded.ours.extend(ours.iter().filter(|item| theirs.binary_search(item).is_err()));
    decoded.theirs.extend(theirs.iter().filter(|item| ours.binary_search(item).is_err()));
}

fn ranges(ours: &[u128], theirs: &[u128]) -> Result<Found> {
    let mut found = Found { scans: 1, ..Found::default() };
    let a = found.work(0, || Sorted::new(ours));
    let b = found.work(1, || Sorted::new(theirs));
    found.memory = 32 * ours.len();
    let mut decoded = Decoded::default();
    let mut message = found.work(0, || {
        let mut out = Ranges::default();
        out.split(&a, 0..a.items.len(), None);
        out.bytes
    });
    let mut to = 1;
    loop {
        found.send(&message);
        let set = [&a, &b][to];
        let began = if to == 0 { Some(&mut decoded) } else { None };
        message = found.work(to, || answer(set, &message, began))?;
        if message.is_empty() {
            found.decoded = decoded;
            return Ok(found);
        }
        to = 1 - to;
    }
}

// The trie.

const CHILDREN: usize = 16;
/// Levels below the root; the last one is the leaves.
const DEPTH: usize = 4;
const LEAVES: usize = CHILDREN.pow(DEPTH as u32);

/// The sums of all nodes by level, as a member keeps or builds them.
fn sums(fingerprints: &[u128]) -> Vec<Vec<u128>> {
    let mut level = vec![0_u128; LEAVES];
    for fingerprint in fingerprints {
        let leaf = &mut level[leaf_of(*fingerprint)];
        *leaf = leaf.wrapping_add(*fingerprint);
    }
    let mut levels = vec![level];
    for _ in 0..DEPTH {
        let below = &levels[levels.len() - 1];
        let level =
            below.chunks(CHILDREN).map(|sums| sums.iter().fold(0, |sum: u128, s| sum.wrapping_add(*s)));
        levels.push(level.collect());
    }
    levels.reverse();
    levels
}

fn leaf_of(fingerprint: u128) -> usize {
    (fingerprint >> 112) as usize
}

/// Shows the sums of the children of these nodes, which are on the next level.
fn children(sums: &[u128], nodes: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    for node in nodes {
        out.extend_from_slice(&(*node as u16).to_be_bytes());
        for sum in &sums[node * CHILDREN..(node + 1) * CHILDREN] {
            out.extend_from_slice(&sum.to_be_bytes());
        }
    }
    out
}

/// Which of the children shown have another sum here.
fn differing(sums: &[u128], message: &[u8]) -> Result<Vec<usize>> {
    let (mut r, mut differ) = (Reader::new(message), Vec::new());
    while !r.rest().is_empty() {
        let parent = usize::from(u16::from_be_bytes(r.array("node")?));
        for node in parent * CHILDREN..(parent + 1) * CHILDREN {
            if u128_of(&mut r)? != *sums.get(node).context("a node")? {
                differ.push(node);
            }
        }
    }
    Ok(differ)
}

/// The members in turn show the sums of the children of what differs, and at last one lists the leaves.
fn trie(ours: &[u128], theirs: &[u128]) -> Result<Found> {
    let mut found = Found { scans: 1, ..Found::default() };
    let sums = [found.work(0, || sums(ours)), found.work(1, || sums(theirs))];
    found.memory = sums[0].iter().map(Vec::len).sum::<usize>() * 16;
    let of = |member: usize, level: usize| sums[member][level].as_slice();
    let (mut nodes, mut member) = (vec![0], 0);
    for level in 1..=DEPTH {
        let message = found.work(member, || children(of(member, level), &nodes));
        found.send(&message);
        member = 1 - member;
        nodes = found.work(member, || differing(of(member, level), &message))?;
        if nodes.is_empty() {
            return Ok(found);
        }
    }
    // A second walk finds what lies in these leaves.
    found.scans += 1;
    let listed = |fingerprints: &[u128]| {
        let mut leaves: BTreeMap<usize, Vec<u128>> = nodes.iter().map(|leaf| (*leaf, Vec::new())).collect();
        let mut wanted = vec![false; LEAVES];
        nodes.iter().for_each(|leaf| wanted[*leaf] = true);
        for fingerprint in fingerprints {
            let leaf = leaf_of(*fingerprint);
            if wanted[leaf]
                && let Some(items) = leaves.get_mut(&leaf)
            {
                items.push(*fingerprint);
            }
        }
        leaves.values_mut().for_each(|items| items.sort_unstable());
        leaves
    };
    let (lister, reader) = (member, 1 - member);
    let all = [ours, theirs];
    let message = found.work(lister, || {
        let mut out = Vec::new();
        for (leaf, items) in listed(all[lister]) {
            out.extend_from_slice(&(leaf as u16).to_be_bytes());
            put_varint(&mut out, items.len() as u64);
            items.iter().for_each(|item| out.extend_from_slice(&item.to_be_bytes()));
        }
        out
    });
    found.send(&message);
    let decoded = found.work(reader, || -> Result<Decoded> {
        let (own, mut r, mut decoded) = (listed(all[reader]), Reader::new(&message), Decoded::default());
        while !r.rest().is_empty() {
            let leaf = usize::from(u16::from_be_bytes(r.array("leaf")?));
            let count = r.varint("items")?;
            let listed = (0..count).map(|_| u128_of(&mut r)).collect::<Result<Vec<_>>>()?;
            compare(own.get(&leaf).context("a leaf")?, &listed, &mut decoded);
        }
        Ok(decoded)
    })?;
    found.decoded = match reader {
        0 => decoded,
        _ => Decoded { ours: decoded.theirs, theirs: decoded.ours },
    };
    Ok(found)
}
