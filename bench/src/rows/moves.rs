//! What writers notice while scopes move.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::task::JoinSet;
use tropism_client::Calls;

use super::Plan;
use crate::nodes::World;
use crate::report::{Report, cells, number};

/// Moves, in so many rounds; before each as much time without any.
const MOVES: u64 = 1_000;
const ROUNDS: u64 = 5;
/// Scopes that move, all at once.
const SCOPES: u64 = 64;
/// Writers and the pause of each after an answer: some 800 writes a second.
const WRITERS: u64 = 16;
const PAUSE: Duration = Duration::from_millis(18);
/// Round trip between the regions, ms.
const ROUND_TRIP_MS: f64 = 80.0;
/// How often it is looked whether a scope has arrived.
const LOOK: Duration = Duration::from_millis(250);
/// How long a move may take.
const MOVE_TIME: Duration = Duration::from_secs(60);

/// Three regions; scopes go from the second to the third and back while clients write them in the first.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let moves = plan.scaled(MOVES) / ROUNDS;
    let world = World::of(&plan.program, &plan.dir.join("moves"), 3, ROUND_TRIP_MS).await?;
    let clients = [world.client(0)?, world.client(1)?, world.client(2)?];
    for scope in 0..SCOPES {
        clients[0].put_register(&name(scope), "first", "x", "").await?;
    }
    let mut to = 1;
    move_all(&clients, to, SCOPES).await?;
    let written = Arc::new(AtomicU64::new(0));
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let load = Load::start(&clients[0], &written);
        let mut left = moves;
        while left > 0 {
            to = 3 - to;
            let now = left.min(SCOPES);
            move_all(&clients, to, now).await?;
            left -= now;
            if now < SCOPES {
                move_all(&clients, 3 - to, now).await?; // all are where the others are again
                to = 3 - to;
            }
        }
        busy.push(load.stop().await?);
        seconds.push(begun.elapsed().as_secs_f64());
        let load = Load::start(&clients[0], &written);
        tokio::time::sleep(begun.elapsed()).await; // as long again
        quiet.push(load.stop().await?);
    }
    // Nothing is lost: in the region that served all the time, and in the one that came last.
    let wanted = written.load(Ordering::Relaxed) + SCOPES;
    for region in [0, to] {
        let deadline = Instant::now() + MOVE_TIME;
        loop {
            let mut found = 0;
            for scope in 0..SCOPES {
                let mut scan = clients[region].scan(&name(scope), tropism_client::ScanRange::default());
                while scan.next().await?.is_some() {
                    found += 1;
                }
            }
            if found == wanted {
                break;
            }
            ensure!(Instant::now() < deadline, "{found} of {wanted} writes are there");
            tokio::time::sleep(LOOK).await;
        }
    }
    let mut ratios: Vec<f64> = (busy.iter().zip(&quiet))
        .map(|(busy, quiet)| {
            busy.value_at_quantile(0.99) as f64 / quiet.value_at_quantile(0.99).max(1) as f64
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    let middle = |of: &[Histogram<u64>], quantile: f64| {
        let mut values: Vec<u64> = of.iter().map(|times| times.value_at_quantile(quantile)).collect();
        values.sort_unstable();
        values[values.len() / 2] as f64 / 1000.0
    };
    report.at_most("moves: write p99, times that without", ratio, 1.5);
    let each = seconds.iter().sum::<f64>() / (moves * ROUNDS) as f64;
    report.table(
        &format!("{} moves of {SCOPES} scopes at once, written all the time", moves * ROUNDS),
        &[
            cells(["", "writes", "failed", "p50 ms", "p99 ms"]),
            vec![
                "moving".to_owned(),
                number(busy.iter().map(Histogram::len).sum::<u64>() as f64),
                "0".to_owned(),
                number(middle(&busy, 0.5)),
                number(middle(&busy, 0.99)),
            ],
            vec![
                "not".to_owned(),
                number(quiet.iter().map(Histogram::len).sum::<u64>() as f64),
                "0".to_owned(),
                number(middle(&quiet, 0.5)),
                number(middle(&quiet, 0.99)),
            ],
        ],
    );
    report.keep(
        "moves",
        json!({
            "moves": moves * ROUNDS, "writes": wanted, "failed": 0, "p99_ratio": ratio, "ratios": ratios,
            "seconds_a_move": each, "moves_a_second": 1.0 / each,
        }),
    );
    world.stop()
}

fn name(scope: u64) -> String {
    format!("registers/moving-{scope:02}")
}

/// Moves the first scopes to the first region and another one, and waits until they are there.
async fn move_all(clients: &[Calls; 3], to: usize, scopes: u64) -> Result<()> {
    let goal: Vec<String> = [0, to].map(crate::nodes::name).to_vec();
    let mut moving = JoinSet::new();
    for scope in 0..scopes {
        let (client, goal, name) = (clients[0].new_session(), goal.clone(), name(scope));
        moving.spawn(async move {
            let deadline = Instant::now() + MOVE_TIME;
            // The directory of a world that has just started takes some elections.
            while let Err(error) = client.move_scope(&name, goal.clone()).await {
                let begins = error.reason() == Some(tropism_client::Reason::DirectoryUnavailable);
                ensure!(begins && Instant::now() < deadline, "{name} is not sent on its way: {error}");
                tokio::time::sleep(LOOK).await;
            }
            loop {
                tokio::time::sleep(LOOK).await;
                let now = client.scope(&name).await?;
                let settled = now.goal.is_empty() && now.learners.is_empty() && now.leaving.is_empty();
                if settled && goal.iter().all(|region| now.serving.contains(region)) && now.serving.len() == 2
                {
                    return Ok(());
                }
                ensure!(Instant::now() < deadline, "{name} does not arrive: {now:?}");
            }
        });
    }
    while let Some(moved) = moving.join_next().await {
        moved??;
    }
    Ok(())
}

/// Writers in one region.
struct Load {
    stop: Arc<AtomicBool>,
    writers: JoinSet<Result<Histogram<u64>>>,
}

impl Load {
    fn start(client: &Calls, written: &Arc<AtomicU64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (client, written, stop) = (client.new_session(), written.clone(), stop.clone());
            writers.spawn(async move {
                let mut times = Histogram::new(3)?;
                let mut number = writer;
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("k{:08}", written.fetch_add(1, Ordering::Relaxed));
                    let start = Instant::now();
                    let put = client.put_register(&name(number % SCOPES), &key, "0123456789", "").await;
                    put.map_err(|error| anyhow!("a write failed: {error}"))?;
                    times.record(u64::try_from(start.elapsed().as_micros())?)?;
                    number += 7; // spread over all scopes
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(times)
            });
        }
        Self { stop, writers }
    }

    /// The times of all writes, us.
    async fn stop(mut self) -> Result<Histogram<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = Histogram::new(3)?;
        while let Some(writer) = self.writers.join_next().await {
            times.add(writer??)?;
        }
        Ok(times)
    }
}
