//! Many keys: memory, and how soon a node serves again.

use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;
use tropism_client::v1;

use super::Plan;
use super::calls::put_many;
use crate::load::connect;
use crate::machine::resident_bytes;
use crate::nodes::Cluster;
use crate::report::{Report, cells, number};

/// Small documents, and how many there are when memory is looked at first.
const KEYS: u64 = 1_000_000;
const FIRST: u64 = 200_000;
/// Items of a bulk call, and calls at once.
const BULK: u64 = 500;
const AT_ONCE: usize = 4;

/// A node with a million small documents.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let (first, keys) = (plan.scaled(FIRST), plan.scaled(KEYS));
    let cluster = Cluster::new(&plan.program, &plan.dir.join("keys"), 1)?;
    let (node, _) = cluster.start(0).await?;
    let start = Instant::now();
    let mib = |pid| resident_bytes(pid) as f64 / f64::from(1 << 20);
    load(&cluster, 0, first).await?;
    let early = mib(node.pid());
    load(&cluster, first, keys).await?;
    let rate = keys as f64 / start.elapsed().as_secs_f64();
    let late = mib(node.pid());
    node.stop()?;
    let (node, after_stop) = cluster.start(0).await?;
    let opened = mib(node.pid());
    drop(node); // killed
    let (node, after_kill) = cluster.start(0).await?;
    node.stop()?;
    report.at_most("a million keys: seconds to open after a stop", after_stop.as_secs_f64(), 1.5);
    report.at_most("a million keys: seconds to open after a kill", after_kill.as_secs_f64(), 1.5);
    report.at_most("a million keys: memory, of that at 200 000", late / early, 1.15);
    report.at_most("a million keys: memory, MiB", late, 600.0);
    report.table(
        "Many small documents in one node",
        &[
            cells([
                "keys",
                "loaded per second",
                "MiB at a fifth",
                "MiB",
                "MiB opened",
                "open s",
                "after a kill s",
            ]),
            vec![
                number(keys as f64),
                number(rate),
                number(early),
                number(late),
                number(opened),
                number(after_stop.as_secs_f64()),
                number(after_kill.as_secs_f64()),
            ],
        ],
    );
    report.keep(
        "keys",
        json!({
            "keys": keys, "loaded_per_second": rate, "mib_at_a_fifth": early, "mib": late, "mib_opened": opened,
            "open_seconds": after_stop.as_secs_f64(), "open_after_kill_seconds": after_kill.as_secs_f64(),
        }),
    );
    Ok(())
}

async fn load(cluster: &Cluster, from: u64, to: u64) -> Result<()> {
    let channels = connect(&cluster.endpoint(0), AT_ONCE).await?;
    let mut calls = JoinSet::new();
    for (at, first) in (from..to).step_by(usize::try_from(BULK)?).enumerate() {
        if calls.len() >= AT_ONCE
            && let Some(done) = calls.join_next().await
        {
            let _: u64 = done??;
        }
        let channel = channels[at % AT_ONCE].clone();
        calls.spawn(async move {
            let values = (first..to.min(first + BULK)).map(|number| {
                let text = format!(
                    "{{\"name\":\"user {number}\",\"points\":{number},\"note\":\"{}\"}}",
                    "n".repeat(60)
                );
                (
                    format!("key-{number:07}"),
                    v1::Value { value: Some(v1::value::Value::Json(Bytes::from(text))) },
                )
            });
            put_many(channel, "documents", values).await
        });
    }
    while let Some(done) = calls.join_next().await {
        let _: u64 = done??;
    }
    Ok(())
}
