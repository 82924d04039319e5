//! `campaign`: fresh seeds on every core for so many minutes, and a running total of what held.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tropism_sim::{Size, run};

const USAGE: &str = "usage: campaign [--minutes M] [--jobs N] [--first-seed S] [--table FILE] [--dry-run]

Runs worlds that no run before had, on N threads (default: all cores) for M minutes (default 45), and stops at the first
violation. Then a row is added to the table in FILE (default: docs/testing.md), which is where the next run goes on.
With --dry-run nothing is written.

Ends with 1 on a violation, with the command that replays it.

example: cargo run --release -p tropism-sim --bin campaign -- --minutes 45";

/// The heading of the table, by which it is found.
const HEADING: &str =
    "| commit | first seed | seeds | writes | faults | virtual hours | minutes of a core | violations |";
/// Seeds of the first campaign: beyond those of the tests and of runs by hand.
const FIRST_SEED: u64 = 2_000_000;

struct Arguments {
    minutes: f64,
    jobs: usize,
    first_seed: Option<u64>,
    table: PathBuf,
    dry_run: bool,
}

/// What one campaign was: a row of the table.
#[derive(Debug, Clone, Default, PartialEq)]
struct Row {
    commit: String,
    first_seed: u64,
    seeds: u64,
    writes: u64,
    faults: u64,
    virtual_hours: f64,
    core_minutes: f64,
    violations: u64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commit, first_seed, seeds, writes, faults, virtual_hours, core_minutes, violations } =
            self;
        write!(
            f,
            "| {commit} | {first_seed} | {seeds} | {writes} | {faults} | {virtual_hours:.1} | {core_minutes:.1} | \
             {violations} |"
        )
    }
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
        let [commit, first_seed, seeds, writes, faults, virtual_hours, core_minutes, violations] = cells[..]
        else {
            return None;
        };
        Some(Self {
            commit: commit.to_owned(),
            first_seed: first_seed.parse().ok()?,
            seeds: seeds.parse().ok()?,
            writes: writes.parse().ok()?,
            faults: faults.parse().ok()?,
            virtual_hours: virtual_hours.parse().ok()?,
            core_minutes: core_minutes.parse().ok()?,
            violations: violations.parse().ok()?,
        })
    }
}

/// The rows under the heading, and where the next one goes, in lines.
fn rows(text: &str) -> Option<(Vec<Row>, usize)> {
    let heading = text.lines().position(|line| line == HEADING)?;
    let rows: Vec<Row> = text.lines().skip(heading + 2).map_while(Row::parse).collect();
    let next = heading + 2 + rows.len();
    Some((rows, next))
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(arguments) => match campaign(&arguments) {
            Ok(held) => ExitCode::from(u8::from(!held)),
            Err(problem) => {
                eprintln!("{problem}");
                ExitCode::from(2)
            }
        },
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."));
    let mut arguments = Arguments {
        minutes: 45.0,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        first_seed: None,
        table: root.join("docs/testing.md"),
        dry_run: false,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--minutes" => arguments.minutes = number(&word, &value()?, 0.0, 10_000.0)?,
            "--jobs" => arguments.jobs = number(&word, &value()?, 1, 1_024)?,
            "--first-seed" => arguments.first_seed = Some(number(&word, &value()?, 0, u64::MAX / 2)?),
            "--table" => arguments.table = value()?.into(),
            "--dry-run" => arguments.dry_run = true,
            "--help" | "-h" => return Err(String::new()),
            _ => return Err(format!("unknown argument {word:?}")),
        }
    }
    Ok(arguments)
}

fn number<T: std::str::FromStr<Err: fmt::Display> + PartialOrd + fmt::Display>(
    word: &str,
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    let number: T = text.parse().map_err(|error| format!("{word} {text:?}: {error}"))?;
    if number >= least && number <= most {
        Ok(number)
    } else {
        Err(format!("{word} {text:?}: from {least} to {most}"))
    }
}

/// Runs it; says whether everything held.
fn campaign(arguments: &Arguments) -> Result<bool, String> {
    let path = &arguments.table;
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (before, _) =
        rows(&text).ok_or_else(|| format!("{}: there is no table {HEADING:?}", path.display()))?;
    let next = before.iter().map(|row| row.first_seed + row.seeds).max().unwrap_or(FIRST_SEED);
    let first_seed = arguments.first_seed.unwrap_or(next);
    println!("seeds from {first_seed} on, {} at once, {} minutes", arguments.jobs, arguments.minutes);

    let started = Instant::now();
    let time = Duration::from_secs_f64(arguments.minutes * 60.0);
    let seeds = AtomicU64::new(first_seed);
    let failed = AtomicBool::new(false);
    let total = Mutex::new(Row { commit: commit(), first_seed, ..Row::default() });
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while started.elapsed() < time && !failed.load(Ordering::Relaxed) {
                    let seed = seeds.fetch_add(1, Ordering::Relaxed);
                    let begun = Instant::now();
                    // A panic is a violation as well.
                    let report = std::panic::catch_unwind(|| run(seed, Size::default()));
                    let Ok(mut total) = total.lock() else { return };
                    total.seeds += 1;
                    total.core_minutes += begun.elapsed().as_secs_f64() / 60.0;
                    let broken = match report {
                        Ok(report) => {
                            total.writes += report.operations;
                            total.faults += report.faults;
                            total.virtual_hours += report.virtual_us as f64 / 3.6e9;
                            for violation in report.violations.iter().take(3) {
                                eprintln!("seed {seed}: {violation}");
                            }
                            !report.violations.is_empty()
                        }
                        Err(_) => true,
                    };
                    if broken {
                        total.violations += 1;
                        failed.store(true, Ordering::Relaxed);
                        eprintln!(
                            "replay: cargo run --release --bin tropism-sim -- --seeds 1 --first-seed {seed} --log 200"
                        );
                    }
                }
            });
        }
    });
    let row = total.into_inner().map_err(|_| "a thread of the campaign panicked".to_owned())?;
    println!("{HEADING}\n{row}");
    let all = before.iter().chain([&row]);
    let (seeds, writes, faults) = all.fold((0, 0, 0), |(seeds, writes, faults), row| {
        (seeds + row.seeds, writes + row.writes, faults + row.faults)
    });
    println!("with those before: {seeds} seeds, {writes} writes, {faults} faults");
    if !arguments.dry_run {
        // Others may have written it meanwhile.
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let (_, next) = rows(&text).ok_or_else(|| format!("{}: the table is gone", path.display()))?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.insert(next, row.to_string());
        fs::write(path, lines.join("\n") + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(row.violations == 0)
}

/// What is checked out, with a `+` when it was changed since.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short=8", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--", "crates"]).is_none_or(|changed| !changed.is_empty());
    format!("{head}{}", if changed { "+" } else { "" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use super::*;

    #[test]
    fn a_row_is_read_as_it_is_written_and_found_under_its_heading() {
        let row = Row {
            commit: "0123abcd+".into(),
            first_seed: 7,
            seeds: 3,
            writes: 6_600,
            faults: 108,
            virtual_hours: 0.5,
            core_minutes: 1.5,
            violations: 0,
        };
        assert_eq!(Row::parse(&row.to_string()).unwrap(), row);
        let text =
            format!("words\n\n{HEADING}\n|---|---|---|---|---|---|---|---|\n{row}\n\nmore | words |\n");
        assert_eq!(rows(&text), Some((vec![row], 5)));
        assert_eq!(rows("no table"), None);
    }

    #[test]
    fn the_table_is_there() {
        let arguments = parse(std::iter::empty()).unwrap();
        assert!(rows(&fs::read_to_string(arguments.table).unwrap()).is_some());
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        for words in [&["--minutes", "x"][..], &["--minutes", "-1"], &["--jobs", "0"], &["--jobs"], &["more"]]
        {
            assert!(parse(words.iter().map(|word| (*word).to_owned())).is_err(), "{words:?}");
        }
    }
}
