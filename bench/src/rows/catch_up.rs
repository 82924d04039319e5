//! A node that has nothing against one with a long log.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tropism_client::v1;

use super::Plan;
use super::calls::{put_many, stub};
use crate::load::connect;
use crate::machine::{Usage, resident_bytes};
use crate::nodes::Cluster;
use crate::report::{Report, cells, number};

/// Logged changes, and the keys they are spread over.
const CHANGES: u64 = 1_000_000;
const KEYS: u64 = 10_000;
/// Items of a bulk call while loading.
const BULK: u64 = 500;
/// Bulk calls at once while loading; of one key never two.
const AT_ONCE: u64 = 4;
/// Longest that catching up may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// One node logs a million changes alone, then another that has nothing is started beside it.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let changes = plan.scaled(CHANGES).max(2 * KEYS);
    let mut rows = vec![cells([
        "",
        "changes",
        "loaded per second",
        "caught up s",
        "changes per second",
        "giver cpu us",
        "taker cpu us",
        "taker MiB",
        "other cores",
    ])];
    let mut figures = Vec::new();
    for (kind, scope, bar) in
        [("documents", "documents", 30_000.0), ("registers", "registers/all", 100_000.0)]
    {
        let cluster = Cluster::new(&plan.program, &plan.dir.join(format!("catch-up-{kind}")), 2)?;
        let (giver, _) = cluster.start(0).await?;
        let channels = connect(&cluster.endpoint(0), 4).await?;
        let start = Instant::now();
        load(&channels, scope, changes).await?;
        let loaded = changes as f64 / start.elapsed().as_secs_f64();
        let last = format!("key-{:05}", KEYS - 1);
        let wanted = version(channels[0].clone(), scope, &last).await?;

        let (taker, _) = cluster.start(1).await?;
        let usage = [Usage::of(&[giver.pid()]), Usage::of(&[taker.pid()])];
        let channel = connect(&cluster.endpoint(1), 1).await?.remove(0);
        // Changes come in the order in which they were made: from the first that shows to the last.
        let first = loop {
            ensure!(start.elapsed() < PATIENCE, "nothing arrives");
            if version(channel.clone(), scope, "key-00000").await?.is_some() {
                break Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        while version(channel.clone(), scope, &last).await? != wanted {
            ensure!(first.elapsed() < PATIENCE, "catching up does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = first.elapsed().as_secs_f64();
        let used = usage.map(|usage| usage.used());
        let each = |seconds: f64| seconds * 1e6 / changes as f64;
        let memory = resident_bytes(taker.pid()) as f64 / f64::from(1 << 20);
        let rate = changes as f64 / took;
        let foreign = (used[0].foreign - used[1].servers / used[1].seconds).max(0.0);
        rows.push(vec![
            kind.to_owned(),
            number(changes as f64),
            number(loaded),
            number(took),
            number(rate),
            number(each(used[0].servers)),
            number(each(used[1].servers)),
            number(memory),
            format!("{foreign:.2}"),
        ]);
        report.at_least(format!("catch-up, {kind}: changes per second"), rate, bar);
        figures.push(json!({
            "kind": kind, "changes": changes, "loaded_per_second": loaded, "seconds": took, "per_second": rate,
            "giver_us": each(used[0].servers), "taker_us": each(used[1].servers), "taker_mib": memory,
        }));
        taker.stop()?;
        giver.stop()?;
    }
    report.table("Catching up: a node that has nothing against one with a long log over 10 000 keys", &rows);
    report.keep("catch_up", figures.into());
    Ok(())
}

/// Changes every key in turn, many keys at once, the last key last.
pub(crate) async fn load(channels: &[Channel], scope: &'static str, changes: u64) -> Result<()> {
    for round in 0..changes / KEYS {
        let mut calls = JoinSet::new();
        for first in (0..KEYS - BULK).step_by(usize::try_from(BULK)?) {
            if calls.len() as u64 >= AT_ONCE
                && let Some(done) = calls.join_next().await
            {
                done??;
            }
            let channel = channels[usize::try_from(first / BULK)? % channels.len()].clone();
            calls.spawn(put_range(channel, scope, first, round));
        }
        while let Some(done) = calls.join_next().await {
            done??;
        }
        put_range(channels[0].clone(), scope, KEYS - BULK, round).await?;
    }
    Ok(())
}

async fn put_range(channel: Channel, scope: &'static str, first: u64, round: u64) -> Result<u64> {
    let values =
        (first..first + BULK).map(|number| (format!("key-{number:05}"), value(scope, number, round)));
    put_many(channel, scope, values).await
}

/// About 200 bytes, of which a small part changes with each round.
fn value(scope: &str, number: u64, round: u64) -> v1::Value {
    let status =
        format!("{:016x}", number.wrapping_mul(round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | round);
    let (a, b) = ("a".repeat(60), "b".repeat(60));
    let value = if scope == "documents" {
        let text = format!("{{\"count\":{round},\"name\":\"{a}\",\"note\":\"{b}\",\"status\":\"{status}\"}}");
        v1::value::Value::Json(Bytes::from(text))
    } else {
        let content = Bytes::from(format!("{status}{a}{b}{a}"));
        v1::value::Value::Register(v1::Register { content, content_type: String::new() })
    };
    v1::Value { value: Some(value) }
}

/// The version of a key, if it shows.
pub(crate) async fn version(channel: Channel, scope: &str, key: &str) -> Result<Option<Bytes>> {
    let request = v1::GetRequest { scope: scope.to_owned(), key: key.to_owned(), ..Default::default() };
    Ok(stub(channel).get(request).await?.into_inner().entry.map(|entry| entry.version))
}
