//! Damages stores in thousands of ways, and tells what became of them.
//!
//! ```text
//! cargo run --release -p tropism-disk --example damage
//! cargo run --release -p tropism-disk --example damage -- --class tables --count 1 --seed 4711
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what cannot go on should stop")]

#[path = "../tests/disk/support/mod.rs"]
mod support;

use std::env;
use std::process::ExitCode;

use support::class::{Class, Report, run};

/// States of each class that a release has to survive.
fn release_count(class: Class) -> u64 {
    match class {
        Class::Killed | Class::Torn | Class::Journal => 1_000,
        Class::Tables => 2_000,
        Class::OldCopy => 200,
        Class::Full => 50,
        Class::Failing => 200,
    }
}

/// States that turned out wrong and are told, of each class.
const SHOWN: usize = 20;

const USAGE: &str = "damage [--class NAME] [--count STATES] [--seed FIRST]\n\
    classes: killed, torn, journal, tables, old-copy, full, failing; without one, all of them";

fn main() -> ExitCode {
    if support::child::run_if_child() {
        return ExitCode::SUCCESS;
    }
    let Some((classes, count, seed)) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    // What fjall says when it panics is told as an outcome.
    std::panic::set_hook(Box::new(|_| {}));
    println!(
        "{:<9} {:>6} {:>8} {:>8} {:>5} {:>7} {:>6}  detected",
        "class", "states", "harmless", "detected", "wrong", "seconds", "seed"
    );
    let mut wrong = 0;
    for class in classes {
        let report = run(class, count.unwrap_or_else(|| release_count(class)), seed);
        print(&report);
        wrong += report.wrong.len();
    }
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments() -> Option<(Vec<Class>, Option<u64>, u64)> {
    let (mut classes, mut count, mut seed) = (Class::ALL.to_vec(), None, 1);
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--class" => classes = vec![Class::ALL.into_iter().find(|class| class.name() == value)?],
            "--count" => count = Some(value.parse().ok()?),
            "--seed" => seed = value.parse().ok()?,
            _ => return None,
        }
    }
    Some((classes, count, seed))
}

fn print(report: &Report) {
    let mut kinds: Vec<String> =
        report.detected.iter().map(|(kind, states)| format!("{kind} {states}")).collect();
    if report.cut > 0 {
        kinds.push(format!("(of the harmless, cut {})", report.cut));
    }
    if let Some(why) = &report.skipped {
        kinds.push(format!("skipped: {why}"));
    }
    println!(
        "{:<9} {:>6} {:>8} {:>8} {:>5} {:>7.1} {:>6}  {}",
        report.class.name(),
        report.states,
        report.harmless,
        report.detected(),
        report.wrong.len(),
        report.time.as_secs_f64(),
        report.seed,
        kinds.join(", ")
    );
    for problem in report.wrong.iter().take(SHOWN) {
        println!("  wrong: {problem}");
    }
}
