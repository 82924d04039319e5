//! Two members exchange cells; and what a peer may send instead.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

/// What a member that counts right would send: all of it in one sketch.
fn sketch(salt: u64, cells: Range<usize>, fingerprints: &[u128]) -> Sketch {
    let mut sketch = Sketch::new(salt, cells);
    fingerprints.iter().for_each(|fingerprint| sketch.add(*fingerprint));
    sketch
}

fn difference(salt: u64, cells: usize, ours: &[u128], theirs: &[u128]) -> Difference {
    let mut difference = Difference::new(salt);
    difference.extend(&sketch(salt, 0..cells, ours), &sketch(salt, 0..cells, theirs)).unwrap();
    difference
}

/// As two members do: from the first cells to as many as it takes. Tells how many, and in how many steps.
fn exchange(salt: u64, ours: &[u128], theirs: &[u128]) -> (Result<Decoded, Unpeeled>, usize, usize) {
    let mut difference = Difference::new(salt);
    let (mut cells, mut to, mut steps) = (0, SKETCH_FIRST_CELLS, 0);
    loop {
        steps += 1;
        let own = sketch(salt, cells..to, ours);
        for part in sketch(salt, cells..to, theirs).encode() {
            difference.extend(&own, &Sketch::decode(salt, &part).unwrap()).unwrap();
        }
        cells = to;
        match difference.peel() {
            Err(Unpeeled::More { cells: more }) => to = more,
            done => return (done, cells, steps),
        }
    }
}

/// Fingerprints, as random as real ones.
struct Random(u64);

impl Random {
    fn u64(&mut self) -> u64 {
        self.0 += 1;
        xxh3_64_with_seed(&self.0.to_be_bytes(), 11)
    }

    fn u128(&mut self) -> u128 {
        u128::from(self.u64()) << 64 | u128::from(self.u64())
    }

    fn set(&mut self, count: usize) -> Vec<u128> {
        (0..count).map(|_| self.u128()).collect()
    }
}

/// Two sets that share `same`, and what only one of them has.
fn sets(seed: u64, same: usize, ours: usize, theirs: usize) -> (Vec<u128>, Vec<u128>, Decoded) {
    let mut random = Random(seed << 32);
    let same = random.set(same);
    let (mut ours, mut theirs) = (random.set(ours), random.set(theirs));
    let all = |own: &[u128]| same.iter().chain(own).copied().collect();
    let (a, b) = (all(&ours), all(&theirs));
    ours.sort_unstable();
    theirs.sort_unstable();
    (a, b, Decoded { ours, theirs })
}

#[test]
fn members_find_exactly_what_differs_on_either_side() {
    let mut seed = 0;
    for same in [0, 1, 300, 5_000] {
        for (ours, theirs) in
            [(0, 0), (1, 0), (0, 1), (1, 1), (3, 40), (100, 0), (0, 100), (100, 100), (900, 0), (20, 2_000)]
        {
            for _ in 0..5 {
                seed += 1;
                let (a, b, expected) = sets(seed, same, ours, theirs);
                let (decoded, _, steps) = exchange(seed, &a, &b);
                assert_eq!(decoded, Ok(expected), "{same} {ours} {theirs}, seed {seed}");
                assert!(steps <= 4, "{steps} steps for {ours} and {theirs}, seed {seed}");
            }
        }
    }
}

#[test]
fn the_first_cells_tell_a_hundred_differences_and_the_estimate_the_rest() {
    let (mut first, mut second) = (0, 0);
    for seed in 0..200 {
        let (a, b, expected) = sets(seed, 50, 100, 0);
        let (decoded, _, steps) = exchange(seed, &a, &b);
        assert_eq!(decoded, Ok(expected), "seed {seed}");
        first += usize::from(steps == 1);
        let (a, b, expected) = sets(seed + 1_000, 0, 700, 300);
        let (decoded, cells, steps) = exchange(seed, &a, &b);
        assert_eq!(decoded, Ok(expected), "seed {seed}");
        assert!(cells < 4_000, "{cells} cells for 1 000, seed {seed}");
        second += usize::from(steps == 2);
    }
    assert!(first >= 195, "the first cells sufficed in {first} of 200");
    assert!(second >= 190, "the second step sufficed in {second} of 200");
}

#[test]
fn too_few_cells_tell_nothing_and_further_ones_made_by_a_second_scan_everything() {
    let (a, b, expected) = sets(1, 2_000, 150, 150);
    let salt = 7;
    let mut both = difference(salt, 200, &a, &b);
    assert!(matches!(both.peel(), Err(Unpeeled::More { cells: 300.. })), "{:?}", both.peel());
    both.extend(&sketch(salt, 200..1_000, &a), &sketch(salt, 200..600, &b)).unwrap();
    assert_eq!(both.peel(), Ok(expected));
    // What the second scan made is what one scan would have made.
    let mut whole = sketch(salt, 0..600, &a);
    assert_eq!(whole.cells.split_off(200), sketch(salt, 200..600, &a).cells);
}

#[test]
fn equal_sets_differ_in_nothing_and_no_cells_say_nothing() {
    let (a, b, expected) = sets(2, 1_000, 0, 0);
    assert_eq!(difference(1, 1, &a, &b).peel(), Ok(expected));
    assert_eq!(Difference::new(1).peel(), Err(Unpeeled::More { cells: SKETCH_FIRST_CELLS }));
}

#[test]
fn what_is_removed_was_never_there() {
    let (a, _, _) = sets(3, 0, 500, 0);
    let mut changed = sketch(1, 3..90, &a);
    changed.add(4);
    changed.remove(a[100]);
    changed.remove(4);
    changed.add(a[100]);
    assert_eq!(changed, sketch(1, 3..90, &a));
}

#[test]
fn what_does_not_peel_under_one_salt_does_under_another() {
    let (a, b, expected) = sets(4, 100, 6, 6);
    let peeled = (0..100).filter(|salt| difference(*salt, 24, &a, &b).peel() == Ok(expected.clone())).count();
    assert!((10..=99).contains(&peeled), "{peeled} of 100 salts");
}

#[test]
fn far_too_many_differences_are_counted_not_told() {
    let (a, b, _) = sets(5, 0, 150_000, 50_000);
    let (decoded, cells, _) = exchange(1, &a, &b);
    let Err(Unpeeled::Beyond { estimate }) = decoded else { unreachable!("{cells} cells tell 200 000") };
    assert!((140_000..260_000).contains(&estimate), "200 000 estimated as {estimate}");
    assert_eq!(cells, SKETCH_FIRST_CELLS);
    assert_eq!(Sketch::new(0, 5..usize::MAX).cells(), 5..SKETCH_CELLS);
    assert!(Sketch::new(0, usize::MAX - 1..usize::MAX).cells().is_empty());
}

#[test]
fn only_the_next_cells_of_this_exchange_extend_a_difference() {
    let mut both = difference(1, 10, &[1], &[2]);
    let cells = |salt, cells| Sketch::new(salt, cells);
    for (ours, theirs) in [
        (cells(1, 0..30), cells(1, 0..10)),
        (cells(1, 0..30), cells(1, 11..20)),
        (cells(1, 10..19), cells(1, 10..20)),
        (cells(1, 11..20), cells(1, 10..20)),
        (cells(2, 10..20), cells(1, 10..20)),
        (cells(1, 10..20), cells(2, 10..20)),
    ] {
        assert!(both.extend(&ours, &theirs).is_err(), "{:?} {:?}", ours.cells(), theirs.cells());
        assert_eq!(both.cells.len(), 10);
    }
    both.extend(&cells(1, 0..30), &cells(1, 10..20)).unwrap();
    assert_eq!(both.cells.len(), 20);
}

#[test]
fn a_flipped_bit_is_never_told_as_a_difference() {
    let (a, b, expected) = sets(6, 3, 4, 4);
    let (salt, cells) = (9, 24);
    let own = sketch(salt, 0..cells, &a);
    let bytes = sketch(salt, 0..cells, &b).encode().next().unwrap();
    let peel = |bytes: &[u8]| {
        let theirs = Sketch::decode(salt, bytes).ok().filter(|theirs| theirs.cells.len() == cells)?;
        let mut both = Difference::new(salt);
        both.extend(&own, &theirs).ok()?;
        Some(both.peel())
    };
    assert_eq!(peel(&bytes), Some(Ok(expected)));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!matches!(peel(&bad), Some(Ok(_))), "bit {bit}");
    }
}

#[test]
fn made_up_cells_end_and_tell_nothing() {
    let mut random = Random(1);
    let salt = 3;
    for cells in [1_usize, 2, 7, 256, 3_000] {
        let empty = Sketch::new(salt, 0..cells);
        let mut lies: Vec<Sketch> = Vec::new();
        // Noise.
        let noise =
            |random: &mut Random| Cell { sum: random.u128(), check: random.u64(), count: random.u64() % 3 };
        let noise = (0..cells).map(|_| noise(&mut random)).collect();
        lies.push(Sketch { salt, from: 0, cells: noise });
        // A fingerprint in one of its places only: taking it out puts its opposite in all others, and so on.
        let mut one = empty.clone();
        one.cells[0] = Cell::of(salt, random.u128());
        lies.push(one);
        // A fingerprint of its own in every cell, wherever it belongs.
        let own = (0..cells).map(|_| Cell::of(salt, random.u128())).collect();
        lies.push(Sketch { salt, from: 0, cells: own });
        // One that belongs to its cell, in every cell.
        let belongs = (0..cells).map(|at| {
            let mut item = Cell::of(salt, random.u128());
            while at < 300 && !Places::of(&item).take_while(|place| *place <= at).any(|place| place == at) {
                item = Cell::of(salt, random.u128());
            }
            item
        });
        lies.push(Sketch { salt, from: 0, cells: belongs.collect() });
        // The largest numbers there are.
        let huge = Cell { sum: u128::MAX, check: u64::MAX, count: 1 << 63 };
        lies.push(Sketch { salt, from: 0, cells: vec![huge; cells] });
        for (lie, theirs) in lies.iter().enumerate() {
            let mut both = Difference::new(salt);
            both.extend(&empty, theirs).unwrap();
            match both.peel() {
                Err(Unpeeled::More { cells: more }) => assert!(more > cells && more <= SKETCH_CELLS),
                Err(Unpeeled::Beyond { .. }) => {}
                // One cell can hold one fingerprint, and does.
                Ok(decoded) => assert!(cells == 1 && decoded.theirs.len() == 1, "{lie} of {cells}"),
            }
        }
    }
}

#[test]
fn cells_have_golden_bytes() {
    let mut three = Sketch::new(0x5a17, 0..4);
    for fingerprint in [1, 2, u128::MAX] {
        three.add(fingerprint);
    }
    let bytes = three.encode().next().unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = concat!(
        "00 04 ",
        "00000000000000000000000000000002 9f6331341a979296 03 ",
        "00000000000000000000000000000002 9f6331341a979296 03 ",
        "00000000000000000000000000000001 9b23e41fe15bc2ec 02 ",
        "00000000000000000000000000000002 9f6331341a979296 03",
    );
    assert_eq!(hex, golden.replace(' ', ""));
    assert_eq!(Sketch::decode(0x5a17, &bytes), Ok(three));
    let places: Vec<usize> = Places::of(&Cell::of(0x5a17, 22)).take(12).collect();
    assert_eq!(places, [0, 1, 2, 3, 68, 85, 559, 1_373, 1_385, 1_744, 2_560, 9_288]);
}

#[test]
fn large_sketches_are_sent_in_parts_and_what_is_not_cells_is_refused() {
    let (a, _, _) = sets(7, 0, 100, 0);
    let whole = sketch(1, 100..100 + 2 * SKETCH_PART_CELLS + 5, &a);
    let parts: Vec<Sketch> = whole.encode().map(|part| Sketch::decode(1, &part).unwrap()).collect();
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[1].cells(), 100 + SKETCH_PART_CELLS..100 + 2 * SKETCH_PART_CELLS);
    assert_eq!(parts.into_iter().flat_map(|part| part.cells).collect::<Vec<_>>(), whole.cells);

    let bytes = sketch(1, 0..9, &a).encode().next().unwrap();
    for len in 0..bytes.len() {
        assert!(Sketch::decode(1, &bytes[..len]).is_err(), "{len} bytes");
    }
    let claims = |from: usize, count: usize| {
        let mut out = Vec::new();
        put_varint(&mut out, from as u64);
        put_varint(&mut out, count as u64);
        out.resize(out.len() + count.min(SKETCH_CELLS) * (16 + 8 + 1), 0);
        Sketch::decode(1, &out)
    };
    assert!(claims(SKETCH_CELLS - SKETCH_PART_CELLS, SKETCH_PART_CELLS).is_ok());
    assert!(claims(0, SKETCH_PART_CELLS + 1).is_err(), "more than a part");
    assert!(claims(SKETCH_CELLS - 1, 2).is_err(), "beyond the last");
    assert!(claims(SKETCH_CELLS + 1, 0).is_err(), "beyond the last");
    assert!(claims(0, usize::MAX).is_err(), "more than memory");
}
