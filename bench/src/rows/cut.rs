//! After a cut: how long until everything is equal, and what that costs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use serde_json::json;
use tropism_client::{Calls, ScanRange, Value};

use super::Plan;
use super::news::RATE;
use crate::nodes::{World, status};
use crate::report::{Report, cells, number};

/// How long the link is cut.
const CUT: Duration = Duration::from_secs(60);
/// Round trip between the two regions, ms.
const ROUND_TRIP_MS: f64 = 80.0;
const SCOPE: &str = "registers/cut";

/// Two regions, cut apart for a minute with steady writes on both sides.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let cut = CUT.mul_f64(plan.scale.min(1.0));
    let world = World::start(&plan.program, &plan.dir.join("cut"), ROUND_TRIP_MS).await?;
    let clients = [world.client(0)?, world.client(1)?];
    clients[0].put_register(SCOPE, "first", "x", "").await?;
    equal(&clients, &["first".to_owned()]).await?;
    world.link("cut")?;
    let (one, other) =
        tokio::join!(write(clients[0].new_session(), "a", cut), write(clients[1].new_session(), "b", cut));
    let (one, other) = (one?, other?);
    let before = carried(&world).await?;
    let healed = Instant::now();
    world.link("heal")?;
    // Changes of a region arrive in their order: the last is there when all are.
    equal(&clients, &[last("a", one), last("b", other)]).await?;
    let took = healed.elapsed();
    let after = carried(&world).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mut shown = Vec::new();
    for client in &clients {
        let mut scan = client.scan(SCOPE, ScanRange::default());
        let mut all = Vec::new();
        while let Some(entry) = scan.next().await? {
            all.push((entry.key, entry.value));
        }
        shown.push(all);
    }
    ensure!(shown[0] == shown[1], "the regions differ");
    ensure!(shown[0].len() as u64 == one + other + 1, "writes are missing");
    let data = (after.1 - before.1) as f64;
    let wire = (after.0 - before.0) as f64;
    let overhead = (wire - data) / data * 100.0;
    report.at_most("after a cut: seconds until equal", took.as_secs_f64(), 2.0);
    report.at_most("after a cut: % beyond the data", overhead, 1.0);
    report.table(
        &format!(
            "A cut of {:.0} s with {RATE} writes a second on each side, then the heal",
            cut.as_secs_f64()
        ),
        &[
            cells(["writes", "equal after s", "data KiB", "on the wire KiB", "beyond the data %"]),
            vec![
                number((one + other) as f64),
                number(took.as_secs_f64()),
                number(data / 1024.0),
                number(wire / 1024.0),
                number(overhead),
            ],
        ],
    );
    report.keep(
        "cut",
        json!({
            "cut_seconds": cut.as_secs_f64(), "writes": one + other, "equal_seconds": took.as_secs_f64(),
            "data_bytes": data, "wire_bytes": wire, "overhead_percent": overhead,
        }),
    );
    world.stop()
}

fn last(side: &str, count: u64) -> String {
    format!("{side}-{:06}", count - 1)
}

/// Writes at a steady rate, each another key.
async fn write(client: Calls, side: &str, time: Duration) -> Result<u64> {
    let end = Instant::now() + time;
    let mut beat = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut number = 0;
    while Instant::now() < end {
        beat.tick().await;
        let content = Bytes::from(format!("{number:064x}"));
        client.put_register(SCOPE, &format!("{side}-{number:06}"), content, "").await?;
        number += 1;
    }
    Ok(number)
}

/// Waits until every region shows every key.
async fn equal(clients: &[Calls], keys: &[String]) -> Result<()> {
    let start = Instant::now();
    for key in keys {
        for client in clients {
            loop {
                if let Some(entry) = client.get(SCOPE, key).await?.entry
                    && matches!(entry.value, Some(Value::Register(_)))
                {
                    break;
                }
                ensure!(start.elapsed() < Duration::from_secs(120), "the regions do not become equal");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
    Ok(())
}

/// Bytes that crossed between the regions, and those of them that were changes, as packed.
async fn carried(world: &World) -> Result<(u64, u64)> {
    let mut changes = 0;
    for region in 0..2 {
        let status = status(&world.endpoint(region)?).await?;
        changes += status.links.iter().map(|link| link.sent_bytes).sum::<u64>();
    }
    Ok((world.carried_bytes()?, changes))
}
