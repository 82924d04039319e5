//! Prints what it takes to find which of a million keys differ, three ways.

#[path = "../reconcile.rs"]
mod reconcile;

use anyhow::Result;
use clap::Parser;
use serde_json::{Value, json};

/// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sets of which the luck of a sketch is told: differences, and whether they are on both sides.
const LUCK: [(usize, bool); 5] = [(100, false), (200, true), (1_000, true), (1_000, false), (10_000, true)];

/// Compares ways for two members to find which of their fingerprints differ.
#[derive(Debug, Parser)]
#[command(name = "reconcile")]
struct Args {
    /// Fingerprints of a member.
    #[arg(long, default_value_t = 1_000_000)]
    size: usize,
    /// Runs of each row; the middle one counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Random sets on which the luck of a sketch is tried; a tenth of them at ten thousand differences.
    #[arg(long, default_value_t = 1_000)]
    sets: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let say = |line: String| {
        if !args.json {
            println!("{line}");
        }
    };
    let mut ways = Vec::new();
    say(format!(
        "{:<21} {:<36} {:>9} {:>8}  {:>14}  {:>5} {:>9}",
        "", "", "bytes", "messages", "CPU ms", "scans", "memory"
    ));
    for case in reconcile::CASES {
        for way in reconcile::WAYS {
            let found = reconcile::measure(args.size, case, way, args.rounds)?;
            let [first, second] = found.cpu_ms;
            say(format!(
                "{:<21} {:<36} {:>9} {:>8}  {first:>6.0} {second:>7.0}  {:>5} {:>9}",
                case.name, way.name, found.bytes, found.messages, found.scans, found.memory
            ));
            ways.push(json!({
                "case": case.name, "way": way.name, "bytes": found.bytes, "messages": found.messages,
                "cpu_ms": found.cpu_ms, "scans": found.scans, "memory": found.memory,
            }));
        }
    }
    say(format!(
        "\n{:<21} {:>6} {:>13} {:>12}  {:>23} {:>15}",
        "", "sets", "second step", "third step", "cells a difference", "as asked for"
    ));
    let mut lucks = Vec::new();
    for (differences, both) in LUCK {
        let sets = if differences < 10_000 { args.sets } else { args.sets.div_ceil(10) };
        let luck = reconcile::luck(differences, both, sets)?;
        let share = |count: usize| format!("{:.1} %", count as f64 * 100.0 / luck.sets as f64);
        let name = format!("{differences}{}", if both { ", half each side" } else { "" });
        let three = |[a, b, c]: [f64; 3]| format!("{a:.2} {b:.2} {c:.2}");
        let two = |[a, b]: [f64; 2]| format!("{a:.2} {b:.2}");
        say(format!(
            "{name:<21} {:>6} {:>13} {:>12}  {:>23} {:>15}",
            luck.sets,
            share(luck.second),
            share(luck.third),
            three(luck.needed),
            two(luck.taken)
        ));
        lucks.push(json!({
            "differences": differences, "both_sides": both, "sets": luck.sets, "second_step": luck.second,
            "third_step": luck.third, "needed": luck.needed, "taken": luck.taken,
        }));
    }
    if args.json {
        let figures =
            Value::from_iter([("size", json!(args.size)), ("ways", ways.into()), ("luck", lucks.into())]);
        println!("{figures}");
    }
    Ok(())
}
