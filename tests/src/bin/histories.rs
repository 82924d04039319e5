//! `histories`: holds what clients did and saw against what they were promised, by two checkers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, Subcommand};
use tropism_sim::history::{Operation, check, lines, parse};
use tropism_tests::{elle, world};

/// Holds what clients did and saw against what they were promised
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks histories: of `tropism-sim --history`, or of a real world
    Check {
        /// Histories, as lines of JSON
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Runs a real world of three regions under faults, and checks what its clients saw
    Dev {
        /// How long clients call
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Sessions
        #[arg(long, default_value_t = 16)]
        sessions: usize,
        /// Keys of each kind
        #[arg(long, default_value_t = 8)]
        keys: usize,
        /// Where the history is written
        #[arg(long)]
        out: Option<PathBuf>,
        /// The program; the one beside this one when it is not given
        #[arg(long)]
        program: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Check { files } => {
            for file in files {
                let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                let history = parse(&text).map_err(|error| anyhow!("{}: {error}", file.display()))?;
                report(&file.display().to_string(), &history)?;
            }
            Ok(())
        }
        Command::Dev { seconds, sessions, keys, out, program } => {
            let dir = tempfile::tempdir()?;
            let program = program.map_or_else(world::program, Ok)?;
            let time = Duration::from_secs(seconds);
            let plan = world::Plan { program, dir: dir.path().to_owned(), time, sessions, keys };
            let history = world::run(&plan).await?;
            if let Some(out) = out {
                std::fs::write(&out, lines(&history)).with_context(|| out.display().to_string())?;
            }
            report("the world", &history)
        }
    }
}

fn report(name: &str, history: &[Operation]) -> Result<()> {
    let (counts, ours) = check(history);
    let (keys, theirs) = elle::check(history).map_err(|error| anyhow!(error))?;
    println!(
        "{name}: {} processes, {} keys, {} gets, {} writes acknowledged, {} of unknown outcome, {} gets in the end; \
         {keys} keys by the other checker",
        counts.processes, counts.keys, counts.gets, counts.acknowledged, counts.unknown, counts.finals
    );
    for (checker, wrong) in [("ours", &ours), ("the other one", &theirs)] {
        for one in wrong.iter().take(5) {
            eprintln!("{checker}: {one}");
        }
    }
    if !ours.is_empty() || !theirs.is_empty() {
        bail!("{name}: {} wrong by ours, {} keys by the other one", ours.len(), theirs.len());
    }
    Ok(())
}
