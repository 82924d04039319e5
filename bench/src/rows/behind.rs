//! What clients of a node notice while it catches up, and clients of the node that it catches up from.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;
use tropism_client::v1;

use super::Plan;
use super::calls::stub;
use super::catch_up::{load, version};
use crate::load::connect;
use crate::nodes::{Cluster, status};
use crate::report::{Report, cells, number};

/// Changes that one node is behind, over 10 000 keys.
const CHANGES: u64 = 200_000;
/// Reads and as many writes a second at each node.
const RATE: u64 = 250;
/// Workers at each node; each waits for its answer before its next call.
const WORKERS: u64 = 10;
/// Keys that they read and write.
const FRONT_KEYS: u64 = 1_000;
const FRONT: &str = "registers/front";
const BACK: &str = "registers/all";
/// How long it is measured without catching up.
const WITHOUT: Duration = Duration::from_secs(12);
/// Longest that catching up may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// What clients may notice: the 99th percentile while it catches up, of that without.
const BAR: f64 = 1.5;

/// While nothing counts, while it catches up, and after.
const PHASES: usize = 3;

/// Times of calls by phase, us.
type Times = [Histogram<u64>; PHASES];

/// One node is 200 000 changes behind and is started; clients read and write at a steady rate at both.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let changes = plan.scaled(CHANGES).max(20_000);
    let cluster = Cluster::new(&plan.program, &plan.dir.join("behind"), 2)?;
    let (giver, _) = cluster.start(0).await?;
    let channels = connect(&cluster.endpoint(0), 4).await?;
    load(&channels, BACK, changes).await?;
    let wanted = version(channels[0].clone(), BACK, "key-09999").await?;

    let phase = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    clients(&mut workers, 0, &cluster.endpoint(0), &phase).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (taker, _) = cluster.start(1).await?;
    let began = Instant::now();
    phase.store(1, Ordering::Relaxed);
    clients(&mut workers, 1, &cluster.endpoint(1), &phase).await?;
    let channel = connect(&cluster.endpoint(1), 1).await?.remove(0);
    let mut paces = Vec::new();
    while version(channel.clone(), BACK, "key-09999").await? != wanted {
        ensure!(began.elapsed() < PATIENCE, "catching up does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
        if let Some(budget) = status(&cluster.endpoint(1)).await?.node.and_then(|node| node.budget) {
            paces.push(budget.pace_percent);
        }
    }
    let took = began.elapsed().as_secs_f64();
    phase.store(0, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    phase.store(2, Ordering::Relaxed);
    tokio::time::sleep(WITHOUT.mul_f64(plan.scale.max(0.2))).await;
    phase.store(PHASES, Ordering::Relaxed);

    let mut times: [[Option<Times>; 2]; 2] = Default::default();
    while let Some(done) = workers.join_next().await {
        let (node, write, seen) = done??;
        match &mut times[node][usize::from(write)] {
            Some(all) => all.iter_mut().zip(&seen).try_for_each(|(all, seen)| all.add(seen))?,
            none => *none = Some(seen),
        }
    }
    let mut rows =
        vec![cells(["", "calls", "p50 us", "p99 us", "calls without", "p50 us", "p99 us", "p99 of it"])];
    let mut figures = Vec::new();
    for (node, name) in [(1, "behind"), (0, "ahead")] {
        for (write, kind) in ["reads", "writes"].into_iter().enumerate() {
            let [_, with, without] =
                times[node][write].as_ref().ok_or_else(|| anyhow!("no {kind} at the node {name}"))?;
            let at = |times: &Histogram<u64>, quantile| times.value_at_quantile(quantile) as f64;
            let ratio = at(with, 0.99) / at(without, 0.99);
            rows.push(vec![
                format!("{kind} at the node {name}"),
                number(with.len() as f64),
                number(at(with, 0.5)),
                number(at(with, 0.99)),
                number(without.len() as f64),
                number(at(without, 0.5)),
                number(at(without, 0.99)),
                format!("{ratio:.2}"),
            ]);
            report.at_most(
                format!("while one catches up, {kind} at the node {name}: p99 of that without"),
                ratio,
                BAR,
            );
            figures.push(json!({
                "node": name, "kind": kind, "calls": with.len(), "p50_us": at(with, 0.5), "p99_us": at(with, 0.99),
                "without": { "calls": without.len(), "p50_us": at(without, 0.5), "p99_us": at(without, 0.99) },
            }));
        }
    }
    let mean = paces.iter().sum::<u32>() as f64 / paces.len().max(1) as f64;
    report.table(
        &format!(
            "A node that is {changes} changes behind, with {RATE} reads and {RATE} writes a second at each node: caught \
             up in {took:.1} s, at a pace of {mean:.0} %"
        ),
        &rows,
    );
    report
        .keep("behind", json!({ "changes": changes, "seconds": took, "mean_pace": mean, "calls": figures }));
    taker.stop()?;
    giver.stop()
}

/// Starts clients of a node. A call's time counts from when it was due, so that a node that stalls is seen to stall.
async fn clients(
    workers: &mut JoinSet<Result<(usize, bool, Times)>>,
    node: usize,
    endpoint: &str,
    phase: &Arc<AtomicUsize>,
) -> Result<()> {
    let channels = connect(endpoint, 2).await?;
    for worker in 0..2 * WORKERS {
        let (channel, phase) = (channels[usize::try_from(worker % 2)?].clone(), phase.clone());
        let write = worker >= WORKERS;
        workers.spawn(async move {
            let histogram = || Histogram::<u64>::new(3);
            let mut times = [histogram()?, histogram()?, histogram()?];
            let period = Duration::from_micros(1_000_000 * WORKERS / RATE);
            // Spread over the period, and over the two nodes.
            let offset = period.mul_f64((2 * worker + node as u64) as f64 / (4 * WORKERS) as f64);
            let mut beat = tokio::time::interval_at((Instant::now() + offset).into(), period);
            beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0.. {
                let due = beat.tick().await.into_std();
                let (begun, late) = (phase.load(Ordering::Relaxed), due.elapsed());
                if begun >= PHASES {
                    break;
                }
                let key = format!("key-{:04}", (number * 2 * WORKERS + worker) * 7 % FRONT_KEYS);
                // A timer of this process is up to a millisecond late; a call that waited for the one before is later.
                let due = if late < Duration::from_millis(2) { Instant::now() } else { due };
                match write {
                    true => put(channel.clone(), key, number).await?,
                    false => drop(version(channel.clone(), FRONT, &key).await?),
                }
                let ended = phase.load(Ordering::Relaxed);
                if begun == ended {
                    times[begun].record(u64::try_from(due.elapsed().as_micros())?.max(1))?;
                }
            }
            Ok((node, write, times))
        });
    }
    Ok(())
}

async fn put(channel: Channel, key: String, number: u64) -> Result<()> {
    let content = Bytes::from(format!("{number:0200}"));
    let register = v1::Register { content, content_type: String::new() };
    let request = v1::PutRequest {
        scope: FRONT.to_owned(),
        key,
        value: Some(v1::Value { value: Some(v1::value::Value::Register(register)) }),
        ..Default::default()
    };
    stub(channel).put(request).await?;
    Ok(())
}
