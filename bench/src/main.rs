//! Measures Tropism: the program as its users run it, in processes and on a disk of its own, beside an echo in the same
//! run. Absolute figures are this machine's of this minute; ratios travel.
//!
//! ```text
//! cargo run --release -p tropism-bench                       # everything; takes some minutes
//! cargo run --release -p tropism-bench -- calls --runs 5     # one section, the middle of five runs
//! ```

mod echo;
mod load;
mod machine;
mod nodes;
mod report;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use report::Report;
use rows::Plan;

/// Measures Tropism beside an echo of the same gRPC library.
#[derive(Debug, Parser)]
#[command(name = "tropism-bench")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// What to measure; everything when nothing is named.
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Runs of each row of calls; the middle one counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds of a run of calls.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only rows of calls whose name contains this.
    #[arg(long, default_value = "")]
    row: String,
    /// A part of the size of what is large, for a quick look; the bars are for 1.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Where stores are made, on the disk to be measured; a new directory there is used and deleted.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Measure this program instead of building one.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Leave stores and logs where they are.
    #[arg(long)]
    keep: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// Serve the echo; used by the program itself.
    #[command(hide = true)]
    Echo {
        /// TCP and UDP port.
        port: u16,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Gets, puts and bulk calls of one node against an echo.
    Calls,
    /// A node that has nothing catches up with a million changes.
    CatchUp,
    /// What clients notice while a node catches up.
    Behind,
    /// When another region sees a write.
    News,
    /// After a cut of a minute.
    Cut,
    /// What writers notice while a thousand scopes move.
    Moves,
    /// A million keys: opening and memory.
    Keys,
    /// Unary calls, streams and datagrams.
    Transport,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match args.role {
            Some(Role::Echo { port }) => echo::serve(port).await,
            None => measure(args).await,
        }
    })
}

async fn measure(args: Args) -> Result<()> {
    std::fs::create_dir_all(&args.dir)?;
    let mut dir = tempfile::Builder::new().prefix("bench-").tempdir_in(&args.dir)?;
    dir.disable_cleanup(args.keep);
    let plan = Plan {
        program: args.program.map_or_else(nodes::program, Ok)?,
        dir: dir.path().canonicalize()?,
        time: Duration::from_secs_f64(args.seconds),
        runs: args.runs.max(1),
        row: args.row.clone(),
        scale: args.scale.clamp(0.001, 1.0),
    };
    let mut report = Report::new(args.json);
    for section in Section::value_variants() {
        if !args.sections.is_empty() && !args.sections.contains(section) {
            continue;
        }
        let done = match section {
            Section::Calls => rows::calls::run(&plan, &mut report).await,
            Section::CatchUp => rows::catch_up::run(&plan, &mut report).await,
            Section::Behind => rows::behind::run(&plan, &mut report).await,
            Section::News => rows::news::run(&plan, &mut report).await,
            Section::Cut => rows::cut::run(&plan, &mut report).await,
            Section::Moves => rows::moves::run(&plan, &mut report).await,
            Section::Keys => rows::keys::run(&plan, &mut report).await,
            Section::Transport => rows::transport::run(&plan, &mut report).await,
        };
        done.with_context(|| format!("{section:?}"))?;
    }
    report.finish();
    Ok(())
}
