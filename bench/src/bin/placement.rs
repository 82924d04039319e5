//! Where scopes are, by policy, over a made-up week around the world, in compressed time; and what deciding it costs.
//!
//! The accounting, prices and decisions are the product's; requests and time are made up.

#[path = "../placing/plot.rs"]
mod plot;
#[path = "../placing/policies.rs"]
mod policies;
#[path = "../placing/workload.rs"]
mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};
use tropism_placement::{
    Access, AccessCounts, Bounds, Budgets, DEFAULT_HALF_LIFE, History, Knobs, Load, Prices, Regions,
    RoundTrips, ScopeName, Set, Situation, Use, decide,
};

use policies::{Outcome, Policy, World, returns, sets};
use workload::{DAY_STEPS, Pattern, Random, Trace};

/// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compares where policies would have scopes, and times the decision and the accounting.
#[derive(Debug, Parser)]
#[command(name = "placement")]
struct Args {
    /// Scopes of the week.
    #[arg(long, default_value_t = 500)]
    scopes: usize,
    /// Days.
    #[arg(long, default_value_t = 7)]
    days: usize,
    /// What all numbers are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Fewest and most regions of a scope.
    #[arg(long, num_args = 2, default_values_t = [2, 3])]
    regions: Vec<usize>,
    /// Half-life of access in minutes, margin in percent, horizon in hours, dwell in minutes: what the product uses by default.
    #[arg(long, num_args = 4)]
    knobs: Option<Vec<u64>>,
    /// Scopes that are decided once at eight regions, for the time it takes; requests that are counted: ten times as many.
    #[arg(long, default_value_t = 100_000)]
    decide: usize,
    /// Where the plot goes, as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let text = Regions::shipped("ten-cities").context("the file of ten cities comes with the program")?;
    let regions = Regions::parse("ten-cities", text)?;
    let count = regions.regions().len();
    let mut knobs = Knobs::default();
    let mut half_life = DEFAULT_HALF_LIFE;
    if let Some(given) = &args.knobs {
        half_life = Duration::from_secs(given[0] * 60);
        knobs.margin = given[1] as f64 / 100.0;
        knobs.horizon = given[2] * 3_600_000;
        knobs.dwell = given[3] * 60_000;
    }
    let world = World {
        round_trips: RoundTrips::of(&regions),
        bounds: Bounds {
            allowed: Set::first(count),
            pins: Set::default(),
            least: args.regions[0].clamp(1, count),
            most: args.regions[1].clamp(1, count),
        },
        // Washington and Frankfurt: where the rule lets scopes begin.
        start: [2, 3].into_iter().collect(),
        prices: Prices::default(),
        knobs,
        half_life,
    };
    let hours_east: Vec<f64> = regions
        .regions()
        .iter()
        .map(|region| region.location.map_or(0.0, |location| (location.longitude / 15.0).round()))
        .collect();

    let policies: Vec<Policy> = [
        Policy::Optimum,
        Policy::Ours,
        Policy::Pinned,
        Policy::BestStatic,
        Policy::Greedy,
        Policy::Everywhere,
    ]
    .into_iter()
    .chain((0..count).map(Policy::OneRegion))
    .collect();
    let started = Instant::now();
    let results = run(&args, &world, &policies, &hours_east);
    let week_seconds = started.elapsed().as_secs_f64();

    // Of ten possible single regions the best for mean reads is what we are compared with.
    let total = |policy: Policy| results.total(policy);
    let single = (0..count)
        .map(Policy::OneRegion)
        .min_by(|a, b| total(*a).waited_ms.total_cmp(&total(*b).waited_ms))
        .unwrap_or(Policy::OneRegion(0));
    let shown: Vec<Policy> = policies
        .iter()
        .copied()
        .filter(|policy| !matches!(policy, Policy::OneRegion(_)))
        .chain([single])
        .collect();
    let optimum = total(Policy::Optimum);
    let scope_days = (args.scopes * args.days) as f64;
    let rows: Vec<Row> =
        shown.iter().map(|policy| Row::of(*policy, &total(*policy), &optimum, scope_days)).collect();
    let (decided, counted) = costs(&regions, args.decide)?;
    if let Some(path) = &args.plot {
        let title = format!(
            "{} scopes, {} days, ten cities, {} to {} regions a scope",
            args.scopes, args.days, args.regions[0], args.regions[1]
        );
        fs::write(path, plot::svg(&title, &rows))
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }

    let ours = &rows[1];
    let single_row = &rows[rows.len() - 1];
    let everywhere = rows.iter().find(|row| row.name == Policy::Everywhere.name()).unwrap_or(ours);
    let bars = [
        ("share of the optimum's local reads, %", ours.local / rows[0].local * 100.0, 97.0, false),
        ("cost, of the optimum's", ours.cost, 1.20, true),
        ("copies a scope and day", ours.copies, 2.5, true),
        (
            "mean read less than from one region, %",
            (1.0 - ours.mean_ms / single_row.mean_ms) * 100.0,
            50.0,
            false,
        ),
        (
            "traffic less than from one region, %",
            (1.0 - ours.wan_gb / single_row.wan_gb) * 100.0,
            50.0,
            false,
        ),
        (
            "storage less than everywhere, %",
            (1.0 - ours.stored_gb / everywhere.stored_gb) * 100.0,
            40.0,
            false,
        ),
        ("seconds for a million decisions", decided, 5.0, true),
        ("microseconds to count a request", counted, 0.12, true),
    ];
    if args.json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let bars: Vec<Value> = bars
            .iter()
            .map(|(what, value, bar, most)| json!({ "what": what, "value": value, "bar": bar, "at_most": most }))
            .collect();
        println!(
            "{:#}",
            json!({ "scopes": args.scopes, "days": args.days, "seed": args.seed, "policies": rows, "bars": bars })
        );
        return Ok(());
    }
    println!("{} scopes, {} days, seed {} ({week_seconds:.0} s)\n", args.scopes, args.days, args.seed);
    println!("{}", Row::HEADER);
    rows.iter().for_each(|row| println!("{}", row.line()));
    println!(
        "\nby pattern: local reads of ours and of the optimum, cost of the optimum's, share of the optimum's cost"
    );
    for pattern in Pattern::ALL {
        let (ours, best) = (results.of(Policy::Ours, pattern), results.of(Policy::Optimum, pattern));
        println!(
            "  {:<16} {:>5.1} % {:>5.1} % {:>6.2} {:>5.1} %",
            pattern.name(),
            ours.local / ours.reads.max(1.0) * 100.0,
            best.local / best.reads.max(1.0) * 100.0,
            ours.dollars / best.dollars,
            best.dollars / optimum.dollars * 100.0
        );
    }
    println!("  back within a day: {:.3} a scope and day", total(Policy::Ours).returns / scope_days);
    println!();
    for (what, value, bar, most) in bars {
        let met = if most { value <= bar } else { value >= bar };
        let word = if most { "at most" } else { "at least" };
        println!("{what:<42} {value:>8.3}  {word} {bar}: {}", if met { "met" } else { "MISSED" });
    }
    Ok(())
}

/// Outcomes by policy and pattern.
#[derive(Default)]
struct Results(BTreeMap<(usize, Pattern), Outcome>, Vec<Policy>);

impl Results {
    fn of(&self, policy: Policy, pattern: Pattern) -> Outcome {
        let index = self.1.iter().position(|known| *known == policy).unwrap_or_default();
        self.0.get(&(index, pattern)).cloned().unwrap_or_default()
    }

    fn total(&self, policy: Policy) -> Outcome {
        let mut total = Outcome::default();
        Pattern::ALL.into_iter().for_each(|pattern| total.add(&self.of(policy, pattern)));
        total
    }
}

fn run(args: &Args, world: &World, policies: &[Policy], hours_east: &[f64]) -> Results {
    let threads = args.threads.max(1);
    let part = |first: usize| {
        let mut found: BTreeMap<(usize, Pattern), Outcome> = BTreeMap::new();
        for number in (first..args.scopes).step_by(threads) {
            let trace = Trace::new(args.seed, number, args.days * DAY_STEPS, hours_east);
            for (index, policy) in policies.iter().enumerate() {
                let sets = sets(world, &trace, *policy);
                let mut outcome = Outcome::of(world, &trace, &sets);
                outcome.returns = returns(&sets, DAY_STEPS);
                found.entry((index, trace.pattern)).or_default().add(&outcome);
            }
        }
        found
    };
    let mut results = Results(BTreeMap::new(), policies.to_vec());
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|first| scope.spawn(move || part(first))).collect();
        for part in running {
            let found = part.join().unwrap_or_default(); // a thread that panicked has said so
            for (key, outcome) in found {
                results.0.entry(key).or_default().add(&outcome);
            }
        }
    });
    results
}

/// One policy's figures.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Percent.
    pub(crate) local: f64,
    pub(crate) mean_ms: f64,
    pub(crate) p99_ms: f64,
    /// Of the optimum's.
    pub(crate) cost: f64,
    pub(crate) copies: f64,
    pub(crate) wan_gb: f64,
    pub(crate) stored_gb: f64,
}

impl Row {
    const HEADER: &'static str = "policy                  local %   mean ms    p99 ms  cost/optimum  copies/scope/day    WAN GB  stored GB";

    fn of(policy: Policy, outcome: &Outcome, optimum: &Outcome, scope_days: f64) -> Self {
        Self {
            name: policy.name(),
            local: outcome.local / outcome.reads.max(1.0) * 100.0,
            mean_ms: outcome.waited_ms / outcome.reads.max(1.0),
            p99_ms: outcome.p99(),
            cost: outcome.dollars / optimum.dollars,
            copies: outcome.copies / scope_days,
            wan_gb: outcome.wan / 1e9,
            stored_gb: outcome.stored / (scope_days * DAY_STEPS as f64) / 1e9,
        }
    }

    fn line(&self) -> String {
        format!(
            "{:<22} {:>8.1} {:>9.2} {:>9.0} {:>13.2} {:>17.2} {:>9.2} {:>10.5}",
            self.name,
            self.local,
            self.mean_ms,
            self.p99_ms,
            self.cost,
            self.copies,
            self.wan_gb,
            self.stored_gb
        )
    }

    fn json(&self) -> Value {
        json!({
            "policy": self.name, "local_percent": self.local, "mean_ms": self.mean_ms, "p99_ms": self.p99_ms,
            "cost_of_optimum": self.cost, "copies_per_scope_day": self.copies, "wan_gb": self.wan_gb,
            "stored_gb_per_scope": self.stored_gb,
        })
    }
}

/// Seconds for a million decisions at eight regions, and microseconds to count a request.
fn costs(regions: &Regions, scopes: usize) -> Result<(f64, f64)> {
    const REGIONS: usize = 8;
    let round_trips = RoundTrips::of(regions);
    let mut random = Random(7);
    let loads: Vec<Load> = (0..1024)
        .map(|_| Load {
            by_region: (0..REGIONS)
                .map(|_| Use { reads: random.share() * 0.1, writes: random.share() * 0.02 })
                .collect(),
            bytes: random.share() * 1e6,
            read_bytes: workload::READ_BYTES,
            write_bytes: workload::WRITE_BYTES,
        })
        .collect();
    let (budgets, knobs, prices) = (Budgets::new(REGIONS, 1e9), Knobs::default(), Prices::default());
    let (history, ages) = (History::default(), [Some(0); REGIONS]);
    let bounds = Bounds { allowed: Set::first(REGIONS), pins: Set::default(), least: 2, most: 3 };
    let started = Instant::now();
    for i in 0..scopes {
        let situation = Situation {
            now: 1_000_000_000,
            current: Set::one(i % REGIONS).with(Set::one((i + 1) % REGIONS)),
            load: &loads[i % loads.len()],
            seconds_seen: 2000.0,
            ages: &ages,
            bounds,
            prices: &prices,
            history: &history,
            frozen: false,
            under_way: false,
        };
        black_box(decide(&situation, &round_trips, &budgets, &knobs));
    }
    let decided = started.elapsed().as_secs_f64() / scopes.max(1) as f64 * 1e6;

    let names: Result<Vec<ScopeName>, _> =
        (0..10_000).map(|i| ScopeName::new(&format!("shop/carts/{i}"))).collect();
    let names = names?;
    let mut counts = AccessCounts::new(1 << 16, (1, 2));
    let order: Vec<usize> = (0..1 << 16).map(|_| random.below(names.len())).collect();
    let requests = scopes.max(1) * 10;
    let started = Instant::now();
    for i in 0..requests {
        let access = if i % 5 == 0 { Access::Write } else { Access::Read };
        counts.count(black_box(&names[order[i % order.len()]]), (i % 8) as u8, access, 100);
    }
    let counted = started.elapsed().as_secs_f64() / requests as f64 * 1e6;
    black_box(counts.take());
    Ok((decided, counted))
}
