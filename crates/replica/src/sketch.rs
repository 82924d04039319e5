//! Finds which fingerprints differ between two members' sets, in bytes that grow with the differences alone.
//!
//! When two members of a shard have equal vectors and unequal digests, some keys' states differ: of a million, perhaps
//! one. Each member adds the fingerprints of all its keys' states to the cells of a [`Sketch`]; one sends its cells, the
//! other subtracts them from its own, which leaves the fingerprints that only one of them has, and peels these out:
//!
//! ```text
//! A                                             B
//! Sketch::new(salt, 0..256), add each key
//! encode  ----------- 256 cells, 7 KB --------> Sketch::new(salt, 0..256), add each key
//!                                               Difference::extend, peel: Err(More { cells: 1_750 })
//!         <---------- up to 1 750 please ------
//! Sketch::new(salt, 256..1_750), add each key
//! encode  ---------- the further cells -------> the same further cells, extend, peel: Ok { ours, theirs }
//! ```
//!
//! Every fingerprint lies in cell 0, and in later ones ever more rarely: in cell `i` with probability `1 / (1 + i / 2)`,
//! in places that follow from it and the salt. A cell holds the sum of its fingerprints, the sum of their checks and
//! their number. Where, of ours less theirs, one is left and the check fits, the sum *is* a fingerprint that only one
//! side has; it is taken out of its other cells, which leaves more such cells. When all are empty the difference is
//! complete: some 1.4 to 1.7 cells a difference suffice. Their number need not be known beforehand: the first cells are
//! the same whatever follows, so a second scan makes the further ones only (Yang, Gilad, Alizadeh: Practical Rateless Set
//! Reconciliation, SIGCOMM 2024). What differs from the paper: sums instead of exclusive or, so that nothing cancels by
//! being there twice; a salt in places and checks; and the number of cells asked for, which is estimated from the counts
//! of cells that did not suffice ([`Unpeeled::More`]).
//!
//! Clients do not see fingerprints, and those are keyed, so nobody can choose them to collide. A peer's cells may be
//! anything: what follows is bounded by their number, and whoever looks up what was decoded must bear with fingerprints
//! that nobody has.

use std::ops::Range;

use thiserror::Error;
use tropism_crdt::codec::{DecodeError, Reader, put_varint};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::limits::{SKETCH_CELLS, SKETCH_FIRST_CELLS, SKETCH_PART_CELLS};

/// Bytes of a cell as sent while fewer than two million fingerprints are in it.
const SENT_CELL_BYTES: usize = 16 + 8 + 3;
/// The first cells stay out of the estimate: their shares are not quite what the formula says (4 % less in cell 1, a
/// quarter of a percent in cell 9), and where one side has thousands more, that would look like differences.
const UNEVEN_CELLS: usize = 10;
/// Cells asked for per estimated difference: 1.4 peel one, and of a hundred estimates one is a fifth too low.
const CELLS_PER_DIFFERENCE: f64 = 1.75;

/// Some consecutive cells over one member's fingerprints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sketch {
    salt: u64,
    from: usize,
    cells: Vec<Cell>,
}

/// Cells of one member less those of another, from cell 0 on.
#[derive(Debug, Clone)]
pub struct Difference {
    salt: u64,
    cells: Vec<Cell>,
}

/// The fingerprints that only one of two members has, each ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Those of whoever decodes.
    pub ours: Vec<u128>,
    /// Those of the peer.
    pub theirs: Vec<u128>,
}

/// Why a difference could not be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unpeeled {
    /// Too few cells, or cells that a peer made up. Extend to so many and try again: more than there are, and at most
    /// [`SKETCH_CELLS`].
    #[error("cells do not suffice; {cells} in all may")]
    More {
        /// How many cells to have in all.
        cells: usize,
    },
    /// So many differ that a sketch is not the way: compare part of the keys, or transfer the shard.
    #[error("some {estimate} keys differ, more than cells can tell")]
    Beyond {
        /// About how many fingerprints differ.
        estimate: u64,
    },
}

/// Cells that do not continue a difference: of another salt, not the next ones, or not ours as well. Nothing was
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("cells {from}..{to} do not follow the {have} that were compared")]
pub struct NotNext {
    from: usize,
    to: usize,
    have: usize,
}

impl Sketch {
    /// Empty cells of this range, of those below [`SKETCH_CELLS`]. Both members of an exchange use one salt, another in
    /// each exchange: it decides what meets in which cell, so what does not peel once will the next time.
    pub fn new(salt: u64, cells: Range<usize>) -> Self {
        let (from, to) = (cells.start.min(SKETCH_CELLS), cells.end.min(SKETCH_CELLS));
        Self { salt, from, cells: vec![Cell::default(); to.saturating_sub(from)] }
    }

    /// Which cells these are.
    pub fn cells(&self) -> Range<usize> {
        self.from..self.from + self.cells.len()
    }

    /// Adds the fingerprint of a key's state. Scans come in slices: of a key that changes behind the scan, remove the old
    /// fingerprint and add the new.
    pub fn add(&mut self, fingerprint: u128) {
        self.put(fingerprint, Cell::add);
    }

    /// Takes out what was added.
    pub fn remove(&mut self, fingerprint: u128) {
        self.put(fingerprint, Cell::subtract);
    }

    fn put(&mut self, fingerprint: u128, put: fn(&mut Cell, &Cell)) {
        let item = Cell::of(self.salt, fingerprint);
        for place in Places::of(&item) {
            if place >= self.from + self.cells.len() {
                return;
            }
            if let Some(cell) = place.checked_sub(self.from).and_then(|at| self.cells.get_mut(at)) {
                put(cell, &item);
            }
        }
    }

    /// The bytes to send, in parts of at most [`SKETCH_PART_CELLS`] cells, each of which [`Sketch::decode`] reads.
    pub fn encode(&self) -> impl Iterator<Item = Vec<u8>> {
        self.cells.chunks(SKETCH_PART_CELLS).enumerate().map(|(part, cells)| {
            let mut out = Vec::with_capacity(8 + cells.len() * SENT_CELL_BYTES);
            put_varint(&mut out, (self.from + part * SKETCH_PART_CELLS) as u64);
            put_varint(&mut out, cells.len() as u64);
            for cell in cells {
                out.extend_from_slice(&cell.sum.to_be_bytes());
                out.extend_from_slice(&cell.check.to_be_bytes());
                put_varint(&mut out, cell.count);
            }
            out
        })
    }

    /// Reads a part of a peer's cells, made with this salt.
    pub fn decode(salt: u64, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let from = usize::try_from(r.varint("first cell")?).map_err(|_| r.invalid("first cell"))?;
        if from > SKETCH_CELLS {
            return Err(r.invalid("first cell"));
        }
        let count = usize::try_from(r.varint("cells")?).map_err(|_| r.invalid("cells"))?;
        if count > SKETCH_PART_CELLS.min(SKETCH_CELLS - from) {
            return Err(r.invalid("cells"));
        }
        let mut cells = Vec::with_capacity(count);
        for _ in 0..count {
            let sum = u128::from_be_bytes(r.array("sum")?);
            cells.push(Cell { sum, check: r.u64("check")?, count: r.varint("count")? });
        }
        r.finish()?;
        Ok(Self { salt, from, cells })
    }
}

impl Difference {
    /// Nothing compared yet.
    pub fn new(salt: u64) -> Self {
        Self { salt, cells: Vec::new() }
    }

    /// How many cells are compared.
    pub fn cells(&self) -> usize {
        self.cells.len()
    }

    /// Adds our cells less the peer's, for all cells of `theirs`: the next ones, and among `ours`.
    pub fn extend(&mut self, ours: &Sketch, theirs: &Sketch) -> Result<(), NotNext> {
        let (Range { start: from, end: to }, have) = (theirs.cells(), self.cells.len());
        let own = from.checked_sub(ours.from).and_then(|at| ours.cells.get(at..at + theirs.cells.len()));
        match own {
            Some(own) if from == have && ours.salt == self.salt && theirs.salt == self.salt => {
                self.cells.extend(own.iter().zip(&theirs.cells).map(|(ours, theirs)| {
                    let mut cell = *ours;
                    cell.subtract(theirs);
                    cell
                }));
                Ok(())
            }
            _ => Err(NotNext { from, to, have }),
        }
    }

    /// Tells what differs. `Ok` accounts for every cell to the last bit; anything less is an error.
    ///
    /// Takes time and memory in proportion to the number of cells, whatever they hold.
    pub fn peel(&self) -> Result<Decoded, Unpeeled> {
        let mut cells = self.cells.clone();
        let mut decoded = Decoded::default();
        let mut look: Vec<usize> = (0..cells.len()).rev().collect();
        let mut waits = vec![true; cells.len()];
        // An honest cell is empty for good once its last fingerprint is out, so there are no more of them than cells.
        // Made up ones may give and take one without end.
        let mut left = cells.len();
        while let Some(at) = look.pop() {
            waits[at] = false;
            let Some((side, item)) = cells[at].only(self.salt) else { continue };
            let Some(less) = left.checked_sub(1) else { break };
            left = less;
            for place in Places::of(&item) {
                let Some(cell) = cells.get_mut(place) else { break };
                match side {
                    Side::Ours => cell.subtract(&item),
                    Side::Theirs => cell.add(&item),
                }
                if !waits[place] {
                    waits[place] = true;
                    look.push(place);
                }
            }
            match side {
                Side::Ours => decoded.ours.push(item.sum),
                Side::Theirs => decoded.theirs.push(item.sum),
            }
        }
        if cells.is_empty() || cells.iter().any(|cell| *cell != Cell::default()) {
            return Err(self.more());
        }
        decoded.ours.sort_unstable();
        decoded.theirs.sort_unstable();
        Ok(decoded)
    }

    /// How many cells to try next: what the estimate needs, and at least half as many again.
    fn more(&self) -> Unpeeled {
        let estimate = self.estimate();
        let cells = (estimate * CELLS_PER_DIFFERENCE) as usize;
        let cells = cells.max(self.cells.len() + self.cells.len() / 2 + 1).max(SKETCH_FIRST_CELLS);
        if cells > SKETCH_CELLS {
            Unpeeled::Beyond { estimate: estimate as u64 }
        } else {
            Unpeeled::More { cells }
        }
    }

    /// About how many fingerprints differ.
    ///
    /// Cell 0 counts ours less theirs exactly. In a later cell, which has each of `d` with probability `p`, that
    /// difference spreads around its share with variance `d p (1 - p)`: every cell is a measurement of `d`, and 246 of
    /// them together are off by 9 %.
    fn estimate(&self) -> f64 {
        let Some(first) = self.cells.first() else { return 0.0 };
        let excess = first.balance();
        let cells = self.cells.iter().enumerate().skip(UNEVEN_CELLS);
        let count = cells.len().max(1) as f64;
        let measured = cells.map(|(at, cell)| {
            let p = 1.0 / (1.0 + at as f64 / 2.0);
            (cell.balance() - p * excess).powi(2) / (p * (1.0 - p))
        });
        let mean = measured.sum::<f64>() / count;
        mean.max(excess.abs())
    }
}

/// Sums over the fingerprints in a cell, each modulo its size: cells are added and subtracted like numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cell {
    sum: u128,
    check: u64,
    count: u64,
}

/// Who has a fingerprint.
#[derive(Debug, Clone, Copy)]
enum Side {
    Ours,
    Theirs,
}

impl Cell {
    /// A cell with this fingerprint alone.
    fn of(salt: u64, fingerprint: u128) -> Self {
        Self { sum: fingerprint, check: xxh3_64_with_seed(&fingerprint.to_be_bytes(), salt), count: 1 }
    }

    fn add(&mut self, other: &Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.check = self.check.wrapping_add(other.check);
        self.count = self.count.wrapping_add(other.count);
    }

    fn subtract(&mut self, other: &Self) {
        self.sum = self.sum.wrapping_sub(other.sum);
        self.check = self.check.wrapping_sub(other.check);
        self.count = self.count.wrapping_sub(other.count);
    }

    /// Ours less theirs in a cell of a difference.
    fn balance(&self) -> f64 {
        self.count.cast_signed() as f64
    }

    /// The one fingerprint that a cell of a difference holds, if that is what its check says.
    fn only(&self, salt: u64) -> Option<(Side, Self)> {
        let (side, fingerprint) = match self.count.cast_signed() {
            1 => (Side::Ours, self.sum),
            -1 => (Side::Theirs, self.sum.wrapping_neg()),
            _ => return None,
        };
        let item = Self::of(salt, fingerprint);
        let check = match side {
            Side::Ours => self.check,
            Side::Theirs => self.check.wrapping_neg(),
        };
        (item.check == check).then_some((side, item))
    }
}

/// The cells that hold a fingerprint, ascending from 0, without end.
///
/// Members must agree on them to the last one. Of floating point they need only what IEEE 754 defines to the last bit.
struct Places {
    /// Of the random numbers.
    state: u64,
    next: usize,
}

impl Places {
    /// The check is keyed by the salt and as good as random: it also seeds the places.
    fn of(item: &Cell) -> Self {
        Self { state: item.check, next: 0 }
    }
}

impl Iterator for Places {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let place = self.next;
        // splitmix64
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut random = self.state;
        random = (random ^ random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        random = (random ^ random >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        random ^= random >> 31;
        let random = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64; // in (0, 1]
        // None of the cells behind this one, i, up to j holds it with probability (i + 1)(i + 2) / ((j + 1)(j + 2)), the
        // product of all k / (k + 2), which is ((i + 1.5) / (j + 1.5))^2 but for the first few: the next is the first j
        // that makes this smaller than the random number. In this form the slow square root waits for no place.
        let next = (f64::from(place as u32) + 1.5) * (1.0 / random.sqrt()) - 1.5;
        self.next = (next as u32 as usize).max(place).saturating_add(1);
        Some(place)
    }
}

#[cfg(test)]
mod tests;
