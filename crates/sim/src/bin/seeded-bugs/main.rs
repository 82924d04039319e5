//! `seeded-bugs`: makes the code wrong, one bug at a time, and says which seed notices.

mod bug;
mod scratch;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use tropism_sim::fresh_seeds;

use self::bug::Bug;
use self::scratch::{Scratch, World};

const USAGE: &str = "usage: seeded-bugs [NAME...] [--seeds N] [--scratch FOLDER] [--json] [--list]

Seeds each bug of crates/sim/bugs (or those named) into a copy of the workspace, builds the simulator there, and runs
worlds until one notices: the seeds of the tests (200), in their order, or N. The checkout is only read. The copy and
what is built of it stay in FOLDER (default: seeded-bugs in cargo's target folder), so that a later run builds less.

Ends with 1 when a bug is not caught, but for the one that says why it escapes.

example: cargo run -p tropism-sim --bin seeded-bugs -- cursor-passes-what-was-sent --seeds 20";

struct Arguments {
    names: Vec<String>,
    seeds: usize,
    scratch: Option<PathBuf>,
    json: bool,
    list: bool,
}

/// What became of one bug; a line of `--json`.
#[derive(Serialize)]
struct Outcome<'a> {
    bug: &'a str,
    title: &'a str,
    breaks: &'a str,
    /// The promise that was seen broken; `None`: it escaped.
    caught_by: Option<String>,
    how: Option<String>,
    seed: Option<u64>,
    seeds_tried: usize,
    build_seconds: f64,
    seconds: f64,
    escapes: Option<&'a str>,
}

/// The workspace that this program was built from.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_path_buf()
}

fn bugs_folder() -> PathBuf {
    root().join("crates/sim/bugs")
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let seeds = fresh_seeds().count();
    let mut arguments = Arguments { names: Vec::new(), seeds, scratch: None, json: false, list: false };
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seeds" => {
                let text = next()?;
                arguments.seeds = text.parse().map_err(|error| format!("--seeds {text:?}: {error}"))?;
                if !(1..=seeds).contains(&arguments.seeds) {
                    return Err(format!("--seeds {text}: the tests have {seeds} seeds, take 1 to {seeds}"));
                }
            }
            "--scratch" => arguments.scratch = Some(next()?.into()),
            "--json" => arguments.json = true,
            "--list" => arguments.list = true,
            "--help" | "-h" => return Err(String::new()),
            _ if word.starts_with('-') => return Err(format!("unknown argument {word:?}")),
            _ => arguments.names.push(word),
        }
    }
    Ok(arguments)
}

/// The bugs that were asked for.
fn chosen(names: &[String]) -> Result<Vec<Bug>, String> {
    let mut bugs = bug::read_all(&bugs_folder())?;
    if let Some(unknown) = names.iter().find(|name| bugs.iter().all(|bug| bug.name != **name)) {
        return Err(format!("there is no bug {unknown:?}; --list shows them"));
    }
    bugs.retain(|bug| names.is_empty() || names.contains(&bug.name));
    Ok(bugs)
}

/// Where the copy is kept: beside what this program was built into.
fn default_scratch() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
    // target/debug/seeded-bugs
    program
        .ancestors()
        .nth(2)
        .map(|target| target.join("seeded-bugs"))
        .ok_or_else(|| "there is no folder above this program; name one with --scratch".to_owned())
}

/// Tries the bugs that were asked for; says whether all were caught that must be.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let bugs = chosen(&arguments.names)?;
    let wide = bugs.iter().map(|bug| bug.name.len()).max().unwrap_or(0);
    if arguments.list {
        bugs.iter().for_each(|bug| println!("{:wide$}  {}", bug.name, bug.title));
        return Ok(true);
    }
    // What does not fit is said before anything is built.
    for bug in &bugs {
        let path = root().join(&bug.file);
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        bug.patch(&text)?;
    }
    let folder = match &arguments.scratch {
        Some(folder) => folder.clone(),
        None => default_scratch()?,
    };
    let mut scratch = Scratch::new(&root(), &folder)?;
    if !arguments.json {
        println!(
            "{:wide$}  {:<12}  {:>6}  {:>5}  {:>7}  how",
            "bug", "caught by", "seed", "seeds", "seconds"
        );
    }
    let (mut escaped, mut excused) = (Vec::new(), Vec::new());
    for bug in &bugs {
        let outcome =
            hunt(&mut scratch, bug, arguments.seeds).map_err(|error| match error.contains(&bug.name) {
                true => error,
                false => format!("bug {}: {error}", bug.name),
            })?;
        if outcome.caught_by.is_none() {
            if bug.escapes.is_some() { &mut excused } else { &mut escaped }.push(&bug.name[..]);
        }
        show(&outcome, wide, arguments.json)?;
    }
    let caught = bugs.len() - escaped.len() - excused.len();
    if !arguments.json {
        println!("{caught} of {} caught", bugs.len());
    }
    for name in &excused {
        eprintln!("{name} escaped, as it says");
    }
    for name in &escaped {
        eprintln!("{name} ESCAPED");
    }
    Ok(escaped.is_empty() && excused.len() <= 1)
}

/// Builds the simulator with one bug and runs worlds until one notices.
fn hunt<'a>(scratch: &mut Scratch, bug: &'a Bug, seeds: usize) -> Result<Outcome<'a>, String> {
    if std::io::stderr().is_terminal() {
        eprint!("{} ...\r", bug.name);
    }
    let begun = Instant::now();
    scratch.seed(bug)?;
    scratch.build()?;
    let build_seconds = begun.elapsed().as_secs_f64();
    let mut outcome = Outcome {
        bug: &bug.name,
        title: &bug.title,
        breaks: &bug.breaks,
        caught_by: None,
        how: None,
        seed: None,
        seeds_tried: 0,
        build_seconds,
        seconds: 0.0,
        escapes: bug.escapes.as_deref(),
    };
    for seed in fresh_seeds().take(seeds) {
        outcome.seeds_tried += 1;
        if let World::Caught(promise, how) = scratch.world(seed)? {
            outcome.caught_by = Some(promise);
            outcome.how = Some(how);
            outcome.seed = Some(seed);
            break;
        }
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    Ok(outcome)
}

fn show(outcome: &Outcome<'_>, wide: usize, json: bool) -> Result<(), String> {
    /// Characters of what was found that the table shows.
    const SHOWN: usize = 110;
    let line = match json {
        true => serde_json::to_string(outcome)
            .map_err(|error| format!("an outcome cannot be written: {error}"))?,
        false => {
            let seed = outcome.seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string());
            let how = outcome.how.as_deref().or(outcome.escapes).unwrap_or_default();
            format!(
                "{:wide$}  {:<12}  {seed:>6}  {:>5}  {:>7.1}  {}",
                outcome.bug,
                outcome.caught_by.as_deref().unwrap_or("ESCAPED"),
                outcome.seeds_tried,
                outcome.seconds,
                how.chars().take(SHOWN).collect::<String>()
            )
        }
    };
    println!("{line}");
    std::io::stdout().flush().map_err(|error| error.to_string())
}
