//! `scope explain` and `placement log`: why scopes are where they are, and what happened to that.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use tropism_client::Calls;
use tropism_client::v1::{
    ExplainScopeResponse, PlacementAlternative, PlacementBlockerKind, PlacementEvent, PlacementEventKind,
    PlacementMode,
};

use crate::args::{Connection, Placement, PlacementAction, PlacementLog};
use crate::output::{Failure, Output, moment, size, table};
use crate::target::{connect, targets};

/// How often a log is looked at that is followed.
const LOOK: Duration = Duration::from_millis(500);

/// `placement`.
pub(super) async fn placement(args: Placement, out: &mut Output) -> Result<(), Failure> {
    match args.action {
        PlacementAction::Log(args) => log(&args, out).await,
    }
}

/// `scope explain`: inputs, prices, and what stands against the cheapest.
pub(super) async fn explain(scope: &str, connection: &Connection, out: &mut Output) -> Result<(), Failure> {
    let why = connect(connection).await?.explain_scope(scope).await?;
    if out.json {
        return out.object(&explanation_json(&why));
    }
    let Some(current) = &why.current else {
        return out.line(format!(
            "{} stays in the regions of rule {}, whatever its use: the rule's mode is {}",
            why.scope,
            why.rule,
            mode(why.mode())
        ));
    };
    let mut text = format!("{} is in {}", why.scope, current.regions.join(", "));
    if why.unit != why.scope {
        text += &format!(", placed with {}", why.unit);
    }
    text += &match (&*why.decision, &*why.blockers) {
        ([], []) => ", and no other regions would cost less\n".to_owned(),
        ([], _) => ", and stays\n".to_owned(),
        (to, _) => format!(", and goes to {}\n", to.join(", ")),
    };
    for blocker in &why.blockers {
        text += &format!("  {}\n", blocker.message);
    }
    text += &format!(
        "looked at next in {} s by {}{}\n\n",
        why.next_evaluation_ms / 1000,
        why.steward,
        if why.pace > 1 {
            format!("; placement's clock is {} times as fast as others", why.pace)
        } else {
            String::new()
        }
    );
    let mut rows = vec![["used from", "reads/s", "writes/s", "waits", "told"].map(str::to_owned).to_vec()];
    for used in &why.uses {
        rows.push(vec![
            used.region.clone(),
            format!("{:.2}", used.reads),
            format!("{:.2}", used.writes),
            format!("{:.0} ms", used.wait_ms),
            used.counters_age_ms.map_or_else(|| "never".to_owned(), |age| format!("{} s ago", age / 1000)),
        ]);
    }
    text += &table(&rows);
    let mut rows = vec![
        ["regions", "waiting", "remote", "copies' writes", "storage", "a month", "moving", "total"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (here, other) in std::iter::once((true, current)).chain(why.alternatives.iter().map(|a| (false, a))) {
        let regions = other.regions.join(" ");
        rows.push(vec![
            if here { format!("{regions} (now)") } else { regions },
            dollars(other.latency),
            dollars(other.remote),
            dollars(other.replication),
            dollars(other.storage),
            dollars(month(other)),
            dollars(other.copy),
            dollars(other.total),
        ]);
    }
    text += &format!("\n{}", table(&rows));
    text += &format!(
        "\ndollars a month, but for moving (once) and total (over {}, what is moved paid and {:.0} % more)\n\
         rule {}: {} to {} of {}{}; {} stored, {:.0} B a read, {:.0} B a write\n\
         prices: {} for a million requests and ms, {} a GB between regions, {} a GB and month",
        hours(why.horizon_ms),
        why.margin * 100.0,
        why.rule,
        why.min_regions,
        why.max_regions,
        why.allowed.join(", "),
        if why.pins.is_empty() { String::new() } else { format!(", always {}", why.pins.join(", ")) },
        size(why.bytes),
        why.read_bytes,
        why.write_bytes,
        dollars(why.price_latency),
        dollars(why.price_network),
        dollars(why.price_storage),
    );
    out.line(text)
}

fn month(price: &PlacementAlternative) -> f64 {
    price.latency + price.remote + price.replication + price.storage
}

fn hours(ms: u64) -> String {
    format!("{} h", ms / 3_600_000)
}

/// An amount with as many digits as it needs.
fn dollars(amount: f64) -> String {
    match amount.abs() {
        0.0 => "$0".to_owned(),
        large if large >= 0.01 => format!("${amount:.2}"),
        _ => format!("${amount:.1e}"),
    }
}

fn mode(mode: PlacementMode) -> &'static str {
    match mode {
        PlacementMode::Follow => "follow",
        PlacementMode::Fixed => "fixed",
        PlacementMode::Everywhere => "everywhere",
        PlacementMode::Unspecified => "unknown",
    }
}

fn explanation_json(why: &ExplainScopeResponse) -> Value {
    let alternative = |other: &PlacementAlternative| {
        json!({
            "members": other.regions,
            "price": {
                "latency": other.latency, "remote": other.remote, "replication": other.replication,
                "storage": other.storage, "month": month(other), "copy": other.copy, "total": other.total,
            },
        })
    };
    let uses: Vec<Value> = (why.uses.iter())
        .map(|used| {
            json!({
                "region": used.region, "reads": used.reads, "writes": used.writes, "wait_ms": used.wait_ms,
                "counters_age_ms": used.counters_age_ms,
            })
        })
        .collect();
    let blockers: Vec<Value> = (why.blockers.iter())
        .map(|blocker| json!({ "kind": blocker_kind(blocker.kind()), "message": blocker.message }))
        .collect();
    json!({
        "scope": why.scope, "unit": why.unit, "rule": why.rule, "mode": mode(why.mode()), "steward": why.steward,
        "pace": why.pace,
        "inputs": {
            "uses": uses, "bytes": why.bytes, "read_bytes": why.read_bytes, "write_bytes": why.write_bytes,
            "allowed": why.allowed, "pins": why.pins, "min_regions": why.min_regions,
            "max_regions": why.max_regions, "horizon_ms": why.horizon_ms, "margin": why.margin,
            "dwell_ms": why.dwell_ms,
            "prices": {
                "latency": why.price_latency, "network": why.price_network, "storage": why.price_storage,
            },
        },
        "current": why.current.as_ref().map(alternative),
        "alternatives": why.alternatives.iter().map(alternative).collect::<Vec<_>>(),
        "decision": if why.decision.is_empty() { json!("stay") } else { json!({ "move_to": why.decision }) },
        "blockers": blockers, "flapping": why.flapping, "next_evaluation_ms": why.next_evaluation_ms,
    })
}

fn blocker_kind(kind: PlacementBlockerKind) -> &'static str {
    match kind {
        PlacementBlockerKind::Unspecified => "unknown",
        PlacementBlockerKind::Counters => "counters",
        PlacementBlockerKind::Dwell => "dwell",
        PlacementBlockerKind::Flapping => "flapping",
        PlacementBlockerKind::Evidence => "evidence",
        PlacementBlockerKind::Margin => "margin",
        PlacementBlockerKind::UnderWay => "under_way",
        PlacementBlockerKind::Frozen => "frozen",
        PlacementBlockerKind::Learners => "learners",
        PlacementBlockerKind::Bytes => "bytes",
        PlacementBlockerKind::NoSet => "no_set",
        PlacementBlockerKind::Off => "off",
    }
}

/// `placement log`: of every node that can be asked what it decided, and what each heard first.
async fn log(args: &PlacementLog, out: &mut Output) -> Result<(), Failure> {
    let mut clients: Vec<(Calls, u64)> = Vec::new();
    for target in targets(&args.connection)? {
        clients.push((Calls::in_order(vec![target.endpoint])?.with_timeout(args.connection.timeout), 0));
    }
    let mut silent = 0;
    // Every node hears of every record; only what a node decided itself is its own.
    let mut heard: BTreeMap<(String, u64, i32), ()> = BTreeMap::new();
    loop {
        let mut events = Vec::new();
        for (client, after) in &mut clients {
            // A node that is down tells later what it heard then.
            let new = match client.placement_events(*after).await {
                Ok(new) => new,
                Err(_) if args.follow => continue,
                Err(error) => {
                    silent += 1;
                    eprintln!("{error}");
                    continue;
                }
            };
            *after = new.last().map_or(*after, |event| event.number);
            events.extend(new);
        }
        events.sort_by_key(|event: &PlacementEvent| event.at_ms);
        for event in events {
            if args.scope.as_ref().is_some_and(|scope| *scope != event.scope) {
                continue;
            }
            let own = matches!(
                event.kind(),
                PlacementEventKind::Decided | PlacementEventKind::NotTaken | PlacementEventKind::Asked
            );
            if own || heard.insert((event.scope.clone(), event.epoch, event.kind), ()).is_none() {
                show(&event, out)?;
            }
        }
        out.flush()?;
        if !args.follow && silent == clients.len() {
            return Err(Failure::Failed("no node tells what happened".to_owned()));
        }
        if !args.follow {
            return Ok(());
        }
        // Events are at most a thousand a node: so much is worth remembering.
        while heard.len() > 100_000 {
            heard.pop_first();
        }
        sleep(LOOK).await;
    }
}

fn show(event: &PlacementEvent, out: &mut Output) -> Result<(), Failure> {
    let kind = event_kind(event.kind());
    if out.json {
        return out.object(&json!({
            "at_ms": event.at_ms, "node": event.node, "scope": event.scope, "epoch": event.epoch, "kind": kind,
            "message": event.message, "took_ms": event.took_ms,
        }));
    }
    let took = if event.took_ms > 0 {
        format!(" after {:.1} s", event.took_ms as f64 / 1000.0)
    } else {
        String::new()
    };
    let who = match event.kind() {
        PlacementEventKind::Decided | PlacementEventKind::NotTaken | PlacementEventKind::Asked => {
            format!(" [{}]", event.node)
        }
        _ => String::new(),
    };
    let epoch = if event.epoch > 0 { format!(" epoch {}", event.epoch) } else { String::new() };
    out.line(format!("{} {} {kind}{epoch}: {}{took}{who}", moment(event.at_ms), event.scope, event.message))
}

fn event_kind(kind: PlacementEventKind) -> &'static str {
    match kind {
        PlacementEventKind::Unspecified => "unknown",
        PlacementEventKind::Decided => "decided",
        PlacementEventKind::NotTaken => "not taken",
        PlacementEventKind::Asked => "asked",
        PlacementEventKind::Bound => "bound",
        PlacementEventKind::Expand => "expand",
        PlacementEventKind::Joint => "joint",
        PlacementEventKind::Shrink => "shrink",
        PlacementEventKind::Settled => "settled",
        PlacementEventKind::Dropped => "dropped",
    }
}
