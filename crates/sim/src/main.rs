//! `tropism-sim`: runs seeds and says what they found.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use tropism_sim::{Size, history, run};

const USAGE: &str = "usage: tropism-sim [--seeds N] [--first-seed S] [--operations N] [--faults N] [--log N]
                   [--alone] [--json] [--history FILE]

Runs N simulated worlds (default 20), seeds S, S+1, ... (default 1), each with at least 2000 writes and 30 faults, and
fails on the first violation with the seed and the command that replays it. With --log, a violation also shows the last
N events of the nodes involved.

With --alone, every region has one node: seeds that failed before there were more are worlds of this kind.

With --history, what clients did and saw of registers and counters is written to FILE as lines of JSON (of the last
world, when there are several), and checked as well. Worlds are other ones then: clients only put, add and get, and what
no promise of a client covers (disks that rot or are lost, clocks that jump, hostile frames) is left out.

example: tropism-sim --seeds 200 --first-seed 1000 --json";

/// The command that runs one seed again and shows what led to its violation.
fn replay(seed: u64, size: Size) -> String {
    let mut command =
        format!("cargo run --release --bin tropism-sim -- --seeds 1 --first-seed {seed} --log 200");
    if size.operations != Size::default().operations {
        command.push_str(&format!(" --operations {}", size.operations));
    }
    if size.faults != Size::default().faults {
        command.push_str(&format!(" --faults {}", size.faults));
    }
    command
}

/// The closing line of `--json`.
#[derive(Serialize)]
struct Summary {
    seeds: u64,
    ops: u64,
    reads: u64,
    acknowledged: u64,
    faults: u64,
    violations: usize,
    coverage: BTreeMap<&'static str, u64>,
    trace: String,
    virtual_seconds: u64,
    seconds: f64,
}

struct Arguments {
    seeds: u64,
    first_seed: u64,
    size: Size,
    json: bool,
    history: Option<PathBuf>,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(arguments) => simulate(&arguments),
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments =
        Arguments { seeds: 20, first_seed: 1, size: Size::default(), json: false, history: None };
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            text.parse::<u64>().map_err(|error| format!("{word} {text:?}: {error}"))
        };
        match word.as_str() {
            "--seeds" => arguments.seeds = number()?,
            "--first-seed" => arguments.first_seed = number()?,
            "--operations" => arguments.size.operations = number()?,
            "--faults" => arguments.size.faults = number()?,
            "--alone" => arguments.size.neighbours = false,
            "--log" => arguments.size.log = number()? as usize,
            "--json" => arguments.json = true,
            "--history" => {
                arguments.history = Some(words.next().ok_or("--history needs a file")?.into());
                arguments.size.history = true;
            }
            "--help" | "-h" => return Err(String::new()),
            _ => return Err(format!("unknown argument {word:?}")),
        }
    }
    Ok(arguments)
}

fn simulate(arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let mut summary = Summary {
        seeds: 0,
        ops: 0,
        reads: 0,
        acknowledged: 0,
        faults: 0,
        violations: 0,
        coverage: BTreeMap::new(),
        trace: String::new(),
        virtual_seconds: 0,
        seconds: 0.0,
    };
    let mut trace = 0_u64;
    for seed in arguments.first_seed..arguments.first_seed.saturating_add(arguments.seeds) {
        let report = run(seed, arguments.size);
        summary.seeds += 1;
        summary.ops += report.operations;
        summary.reads += report.reads;
        summary.acknowledged += report.acknowledged;
        summary.faults += report.faults;
        summary.virtual_seconds += report.virtual_us / 1_000_000;
        trace = trace.rotate_left(1) ^ report.trace;
        for (what, count) in report.coverage {
            *summary.coverage.entry(what).or_insert(0) += count;
        }
        if let Some(path) = &arguments.history {
            if let Err(error) = std::fs::write(path, history::lines(&report.history)) {
                eprintln!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
            let (_, wrong) = history::check(&report.history);
            if let Some(first) = wrong.first() {
                eprintln!("seed {seed}: {} things wrong in {}, first: {first}", wrong.len(), path.display());
                return ExitCode::FAILURE;
            }
        }
        if !report.violations.is_empty() {
            summary.violations += report.violations.len();
            for violation in report.violations.iter().take(10) {
                eprintln!("seed {seed}: {violation}");
            }
            for line in &report.log {
                eprintln!("{line}");
            }
            eprintln!("replay: {}", replay(seed, arguments.size));
            break;
        }
        if !arguments.json {
            println!(
                "seed {seed}: {} operations, {} faults, trace {:016x}",
                report.operations, report.faults, report.trace
            );
        }
    }
    summary.trace = format!("{trace:016x}");
    summary.seconds = started.elapsed().as_secs_f64();
    match serde_json::to_string(&summary) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("the summary cannot be written: {error}"),
    }
    if summary.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
