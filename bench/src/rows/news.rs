//! When another region sees a write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::task::JoinSet;
use tropism_client::{Calls, Value, WatchTarget, v1};

use super::Plan;
use super::calls::stub;
use crate::load::connect;
use crate::machine::{Usage, Used, quiet};
use crate::nodes::{Cluster, World};
use crate::report::{Report, cells, number};

/// Writes a second, evenly spread.
pub(crate) const RATE: u64 = 500;
/// For so long.
const TIME: Duration = Duration::from_secs(10);
/// Round trip of the far region, ms.
const ROUND_TRIP_MS: f64 = 80.0;
const SCOPE: &str = "registers/news";
/// Keys that are written in turn.
const KEYS: u64 = 1_000;

/// Writes in one region at a steady rate, watched in another: first without delay, then over a long link.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut rows = vec![cells([
        "round trip ms",
        "writes",
        "acknowledged p50 ms",
        "p99",
        "seen elsewhere p50 ms",
        "p99",
        "max",
        "beyond half p50",
        "p99",
        "other cores",
    ])];
    let mut figures = Vec::new();
    for round_trip in [0.0, ROUND_TRIP_MS] {
        let dir = plan.dir.join(format!("news-{round_trip:.0}"));
        let (acknowledged, seen, used) = if round_trip == 0.0 {
            let cluster = Cluster::new(&plan.program, &dir, 2)?;
            let (one, _) = cluster.start(0).await?;
            let (other, _) = cluster.start(1).await?;
            let measured =
                measure(&cluster.endpoint(0), &cluster.endpoint(1), &[one.pid(), other.pid()]).await?;
            one.stop()?;
            other.stop()?;
            measured
        } else {
            let world = World::start(&plan.program, &dir, round_trip).await?;
            let measured = measure(&world.endpoint(0)?, &world.endpoint(1)?, &world.pids()).await?;
            world.stop()?;
            measured
        };
        let ms = |times: &Histogram<u64>, quantile| times.value_at_quantile(quantile) as f64 / 1e6;
        let half = round_trip / 2.0;
        let (p50, p99) = (ms(&seen, 0.5), ms(&seen, 0.99));
        rows.push(vec![
            format!("{round_trip:.0}"),
            number(seen.len() as f64),
            number(ms(&acknowledged, 0.5)),
            number(ms(&acknowledged, 0.99)),
            number(p50),
            number(p99),
            number(ms(&seen, 1.0)),
            number(p50 - half),
            number(p99 - half),
            format!("{:.2}", used.foreign),
        ]);
        let (bar50, bar99) = if round_trip == 0.0 { (3.0, 10.0) } else { (5.0, 20.0) };
        report.at_most(
            format!("seen elsewhere, {round_trip:.0} ms round trip: p50 ms beyond half"),
            p50 - half,
            bar50,
        );
        report.at_most(
            format!("seen elsewhere, {round_trip:.0} ms round trip: p99 ms beyond half"),
            p99 - half,
            bar99,
        );
        figures.push(json!({
            "round_trip_ms": round_trip, "writes": seen.len(), "seen_p50_ms": p50, "seen_p99_ms": p99,
            "acknowledged_p50_ms": ms(&acknowledged, 0.5), "acknowledged_p99_ms": ms(&acknowledged, 0.99),
            "foreign_cores": used.foreign, "nodes_cpu_seconds": used.servers,
        }));
    }
    report.table(&format!("News: {RATE} writes a second in one region, watched in another"), &rows);
    report.keep("news", figures.into());
    Ok(())
}

async fn measure(from: &str, to: &str, pids: &[u32]) -> Result<(Histogram<u64>, Histogram<u64>, Used)> {
    let total = RATE * TIME.as_secs();
    let watcher = Calls::in_order(vec![to.to_owned()])?;
    let writers = connect(from, 4).await?;
    // The link and the shard are there before anything counts.
    let warm = Calls::in_order(vec![from.to_owned()])?;
    let start = Instant::now();
    warm.put_register(SCOPE, "warm", "up", "").await?;
    while watcher.get(SCOPE, "warm").await?.entry.is_none() {
        ensure!(start.elapsed() < Duration::from_secs(30), "the regions do not hear each other");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    quiet().await;
    let origin = Instant::now();
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..total).map(|_| AtomicU64::new(0)).collect());
    let seen = tokio::spawn(watch(watcher, origin, sent.clone(), total));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let usage = Usage::of(pids);
    let mut beat = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut calls: JoinSet<Result<u64>> = JoinSet::new();
    for number in 0..total {
        beat.tick().await;
        let channel = writers[usize::try_from(number)? % writers.len()].clone();
        let sent = sent.clone();
        calls.spawn(async move {
            let content = Bytes::from(format!("{number:08}{}", "x".repeat(192)));
            let register = v1::Register { content, content_type: String::new() };
            let value = Some(v1::Value { value: Some(v1::value::Value::Register(register)) });
            let key = format!("key-{}", number % KEYS);
            let start = Instant::now();
            let slot = usize::try_from(number)?;
            sent[slot].store(u64::try_from(start.duration_since(origin).as_nanos())?, Ordering::Relaxed);
            let request = v1::PutRequest { scope: SCOPE.to_owned(), key, value, ..Default::default() };
            stub(channel).put(request).await?;
            Ok(u64::try_from(start.elapsed().as_nanos())?)
        });
    }
    let mut acknowledged = Histogram::<u64>::new(3)?;
    while let Some(call) = calls.join_next().await {
        acknowledged.record(call??)?;
    }
    let seen = tokio::time::timeout(Duration::from_secs(30), seen).await???;
    Ok((acknowledged, seen, usage.used()))
}

/// Follows the scope until the last write was seen. Of two writes of one key that arrive together only the later shows.
async fn watch(
    client: Calls,
    origin: Instant,
    sent: Arc<Vec<AtomicU64>>,
    total: u64,
) -> Result<Histogram<u64>> {
    let mut times = Histogram::<u64>::new(3)?;
    let mut watch = client.watch(SCOPE, WatchTarget::Scope, false, None);
    loop {
        let message = watch.next().await?;
        let now = u64::try_from(origin.elapsed().as_nanos())?;
        for event in message.events {
            let Some(Value::Register(register)) = event.entry.and_then(|entry| entry.value) else { continue };
            let Some(number) =
                register.content.get(..8).and_then(|n| std::str::from_utf8(n).ok()?.parse::<u64>().ok())
            else {
                continue;
            };
            let slot =
                sent.get(usize::try_from(number)?).ok_or_else(|| anyhow!("a write that nobody made"))?;
            times.record(now.saturating_sub(slot.load(Ordering::Relaxed)))?;
            if number + 1 == total {
                return Ok(times);
            }
        }
    }
}
