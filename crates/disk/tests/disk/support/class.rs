//! The classes of damage: each makes as many states as it is asked for, from one seed, and judges them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::tempdir;

use super::child::{Running, Work};
use super::content::{Histories, Random, directory, go_on, journal_only, options};
use super::harm::{
    PAGE, STORE, WITNESS, copy, copy_of, cut, files, journals, newest_journal, rot, tear, used,
};
use super::judge::{Judge, Outcome};

/// A class of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A process that writes is killed.
    Killed,
    /// A power cut tears what was not synced.
    Torn,
    /// A journal rots.
    Journal,
    /// Tables, or what lists them, rot or are lost.
    Tables,
    /// Parts of a directory, or all of it, are replaced by those of an old copy.
    OldCopy,
    /// The disk is full.
    Full,
    /// Writes and syncs fail.
    Failing,
}

impl Class {
    pub(crate) const ALL: [Self; 7] =
        [Self::Killed, Self::Torn, Self::Journal, Self::Tables, Self::OldCopy, Self::Full, Self::Failing];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Torn => "torn",
            Self::Journal => "journal",
            Self::Tables => "tables",
            Self::OldCopy => "old-copy",
            Self::Full => "full",
            Self::Failing => "failing",
        }
    }
}

/// What became of the states of a class.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) class: Class,
    pub(crate) seed: u64,
    pub(crate) states: u64,
    /// States that show exactly what was written.
    pub(crate) harmless: u64,
    /// How many of those lost a torn write that nobody was told of.
    pub(crate) cut: u64,
    /// States that say that something is wrong, by how.
    pub(crate) detected: BTreeMap<&'static str, u64>,
    /// What is wrong, with the seed that makes the state again.
    pub(crate) wrong: Vec<String>,
    /// Why states were not made, if they were not.
    pub(crate) skipped: Option<String>,
    pub(crate) time: Duration,
}

impl Report {
    pub(crate) fn detected(&self) -> u64 {
        self.detected.values().sum()
    }

    pub(crate) fn count(&mut self, seed: u64, what: &str, outcome: Outcome) {
        self.states += 1;
        match outcome {
            Outcome::Harmless => self.harmless += 1,
            Outcome::Cut => {
                self.harmless += 1;
                self.cut += 1;
            }
            Outcome::Detected(kind) => *self.detected.entry(kind).or_default() += 1,
            Outcome::Wrong(problem) => self.wrong.push(format!("seed {seed}: {what}: {problem}")),
        }
    }
}

/// States made from one base, before another one is made.
const STATES_OF_A_BASE: u64 = 100;

/// Makes `count` states of a class from seeds `seed`, `seed + 1` and so on.
pub(crate) fn run(class: Class, count: u64, seed: u64) -> Report {
    let begun = Instant::now();
    let mut report = Report {
        class,
        seed,
        states: 0,
        harmless: 0,
        cut: 0,
        detected: BTreeMap::new(),
        wrong: Vec::new(),
        skipped: None,
        time: Duration::ZERO,
    };
    match class {
        Class::Killed => killed(&mut report, count),
        Class::Torn => torn(&mut report, count),
        Class::Journal => journal(&mut report, count),
        Class::Tables => tables(&mut report, count),
        Class::OldCopy => old_copy(&mut report, count),
        Class::Full => super::full::full(&mut report, count),
        Class::Failing => super::full::failing(&mut report, count),
    }
    report.time = begun.elapsed();
    report
}

/// What the states of a class have in common, made anew for every hundred seeds.
struct Bases<T> {
    number: Option<u64>,
    base: Option<T>,
}

impl<T> Bases<T> {
    fn new() -> Self {
        Self { number: None, base: None }
    }

    /// The base of a state, made by `make` from a random source that is the same for all its states.
    fn of(&mut self, seed: u64, make: impl FnOnce(&mut Random) -> T) -> &mut T {
        let number = seed / STATES_OF_A_BASE;
        if self.number != Some(number) {
            self.base = None; // its directories go before others come
            self.number = Some(number);
        }
        self.base.get_or_insert_with(|| make(&mut Random(number << 32)))
    }
}

/// One directory is written to and killed again and again.
fn killed(report: &mut Report, count: u64) {
    const LONGEST: Duration = Duration::from_millis(120);
    let mut bases = Bases::new();
    for seed in report.seed..report.seed + count {
        let mut random = Random(seed);
        let (dir, histories, reached) = bases.of(seed, |_| (tempdir().unwrap(), Histories::new(), 0));
        let mut child = Running::start(dir.path(), Work::ENDLESS, &[]);
        // One in four is killed while it starts, or opens, or repairs what the last kill left.
        let starting = random.below(4) == 0;
        if !starting {
            child.wait_for_work();
        }
        let told = child.kill_after(LONGEST.mul_f64(random.below(1_000) as f64 / 1_000.0));
        *reached = told.acknowledged.max(*reached);
        let what = format!("killed at {} acknowledged", told.acknowledged);
        let outcome = match (told.hung, told.refused) {
            (true, _) => Outcome::Wrong("hung".into()),
            (_, Some(refused)) => Outcome::Wrong(format!("refused: {refused}")),
            _ if !starting && told.acknowledged == 0 => Outcome::Wrong("never began".into()),
            _ => Judge {
                histories,
                options: &options(),
                acknowledged: *reached,
                made: u64::MAX,
                further: 0,
                must_open: true,
            }
            .judge(dir.path()),
        };
        report.count(seed, &what, outcome);
    }
}

/// The end of the journal, behind what was synced, is torn in all ways of a power cut: the store must open, with less
/// only of what nobody was told of, and go on.
fn torn(report: &mut Report, count: u64) {
    let mut bases = Bases::new();
    for seed in report.seed..report.seed + count {
        let mut random = Random(seed);
        let (whole, histories, synced, unsynced, synced_bytes) = bases.of(seed, |random| {
            let synced = random.below(100) as u64;
            // Every other time only the last batch was under way.
            let unsynced = [1, 2 + random.below(30) as u64][random.below(2)];
            let alone = directory(&journal_only(), synced, 0);
            let synced_bytes = used(&newest_journal(alone.path()));
            (directory(&journal_only(), synced, unsynced), Histories::new(), synced, unsynced, synced_bytes)
        });
        let dir = copy_of(whole);
        let what = tear(&newest_journal(dir.path()), *synced_bytes, &mut random);
        let judge = &mut Judge {
            histories,
            options: &journal_only(),
            acknowledged: *synced,
            made: *synced + *unsynced,
            further: 5,
            must_open: true,
        };
        report.count(seed, &what, judge.judge(dir.path()));
    }
}

/// The journal rots anywhere: whole files, files whose rows are in tables already, files with a tail that was never
/// synced.
fn journal(report: &mut Report, count: u64) {
    let mut bases = Bases::new();
    for seed in report.seed..report.seed + count {
        let mut random = Random(seed);
        let (whole, histories, options, synced, made) = bases.of(seed, |random| {
            let number = 60 + random.below(120) as u64;
            let (options, synced, made) = match random.below(4) {
                0 => (journal_only(), number, number),
                1 => (journal_only(), number, number + 40),
                _ => (options(), number, number),
            };
            let whole = directory(&options, synced, made - synced);
            if random.below(2) == 0 && synced == made {
                // Opened again it ends where its last batch does.
                go_on(whole.path(), &options, synced);
            }
            (whole, Histories::new(), options, synced, made)
        });
        let dir = copy_of(whole);
        let path = newest_journal(dir.path());
        let what = rot(&path, used(&path), &mut random);
        let further = if seed % 8 == 0 { 20 } else { 0 };
        let judge =
            &mut Judge { histories, options, acknowledged: *synced, made: *made, further, must_open: false };
        report.count(seed, &what, judge.judge(dir.path()));
    }
}

/// A file of a space rots, is lost, or is another one's.
fn tables(report: &mut Report, count: u64) {
    const COMMITS: u64 = 700;
    let mut bases = Bases::new();
    for seed in report.seed..report.seed + count {
        let mut random = Random(seed);
        let (whole, histories) = bases.of(seed, |_| {
            let whole = directory(&options(), COMMITS, 0);
            go_on(whole.path(), &options(), COMMITS); // its journal is no larger than it has to be
            (whole, Histories::new())
        });
        let dir = copy_of(whole);
        let (path, what) = harm_a_file(dir.path(), &mut random);
        let name = path.strip_prefix(dir.path()).unwrap().display().to_string();
        // Every fourth goes on until what is damaged is compacted.
        let further = if seed % 4 == 0 { 150 } else { 0 };
        let judge = &mut Judge {
            histories,
            options: &options(),
            acknowledged: COMMITS,
            made: COMMITS,
            further,
            must_open: false,
        };
        report.count(seed, &format!("{name}: {what}"), judge.judge(dir.path()));
    }
}

fn harm_a_file(dir: &Path, random: &mut Random) -> (PathBuf, String) {
    let all = files(&dir.join(STORE));
    let of = |kind: &str| -> Vec<PathBuf> {
        let of_kind = |path: &&PathBuf| match kind {
            "table" => path.parent().unwrap().ends_with("tables"),
            "version" => path.file_name().unwrap().to_string_lossy().starts_with('v'),
            "current" => path.ends_with("current"),
            _ => path.extension().is_none_or(|extension| extension != "jnl"),
        };
        all.iter().filter(of_kind).cloned().collect()
    };
    let kind = ["table", "table", "table", "table", "version", "version", "current", "any"][random.below(8)];
    let candidates = of(kind);
    let path = candidates[random.below(candidates.len())].clone();
    let what = match random.below(10) {
        0 => {
            fs::remove_file(&path).unwrap();
            "lost".into()
        }
        1 => {
            cut(&path, 0);
            "empty".into()
        }
        2 if kind != "table" && kind != "any" => {
            let other = &candidates[random.below(candidates.len())];
            let bytes = fs::read(other).unwrap();
            fs::write(&path, bytes).unwrap();
            format!("what {} is", other.strip_prefix(dir).unwrap().display())
        }
        _ => {
            let len = fs::metadata(&path).unwrap().len() as usize;
            // The end of a table says what is where; it would be hit too seldom.
            if len > PAGE && random.below(3) == 0 {
                let from = len - PAGE;
                let bit = from * 8 + random.below(PAGE * 8);
                super::harm::flip(&path, bit);
                format!("bit {bit} of {} flipped", len * 8)
            } else {
                rot(&path, len, random)
            }
        }
    };
    (path, what)
}

/// Parts of a directory, or all of it, are those of an earlier commit.
fn old_copy(report: &mut Report, count: u64) {
    let mut bases = Bases::new();
    for seed in report.seed..report.seed + count {
        let mut random = Random(seed);
        let (old, new, histories, then, now) = bases.of(seed, |random| {
            let then = 1 + random.below(400) as u64;
            let now = then + 1 + random.below(300) as u64;
            let new = directory(&options(), then, 0);
            let old = copy_of(&new);
            go_on(new.path(), &options(), now);
            (old, new, Histories::new(), then, now)
        });
        let dir = copy_of(new);
        let mut acknowledged = *now;
        let store = dir.path().join(STORE);
        let what = match random.below(6) {
            0 => {
                fs::remove_dir_all(&store).unwrap();
                copy(&old.path().join(STORE), &store);
                "an old store".to_owned()
            }
            1 => {
                fs::copy(old.path().join(WITNESS), dir.path().join(WITNESS)).unwrap();
                "an old witness".to_owned()
            }
            2 => {
                fs::remove_dir_all(dir.path()).unwrap();
                copy(old.path(), dir.path());
                acknowledged = *then; // nothing in it can know better: its peers do
                "an old directory".to_owned()
            }
            3 => {
                journals(dir.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
                for path in journals(old.path()) {
                    fs::copy(&path, store.join(path.file_name().unwrap())).unwrap();
                }
                "old journals".to_owned()
            }
            4 => {
                fs::remove_dir_all(store.join("keyspaces")).unwrap();
                copy(&old.path().join(STORE).join("keyspaces"), &store.join("keyspaces"));
                "old key spaces".to_owned()
            }
            _ => {
                let space = format!("keyspaces/{}", random.below(8));
                fs::remove_dir_all(store.join(&space)).unwrap();
                copy(&old.path().join(STORE).join(&space), &store.join(&space));
                format!("an old {space}")
            }
        };
        let judge = &mut Judge {
            histories,
            options: &options(),
            acknowledged,
            made: *now,
            further: if seed % 4 == 0 { 50 } else { 0 },
            must_open: what == "an old witness" || what == "an old directory",
        };
        report.count(seed, &format!("{what} of {then} in one of {now}"), judge.judge(dir.path()));
    }
}
