//! `status`: how nodes are.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tropism_client::v1::{
    BudgetStatus, GetStatusResponse, LinkState, LinkStatus, NodeState, NodeStatus, RebuildStatus,
};
use tropism_client::{Calls, Error};
use tropism_crdt::Stamp;

use crate::args::Status;
use crate::output::{Failure, Output, hex, size, stamp, table, time};
use crate::target::{Target, targets};

/// `status`: every node that the arguments name is asked, at once; fails when none answers.
pub(super) async fn status(args: &Status, out: &mut Output) -> Result<(), Failure> {
    let mut asked = JoinSet::new();
    for (index, target) in targets(&args.connection)?.into_iter().enumerate() {
        let client = Calls::in_order(vec![target.endpoint.clone()])?.with_timeout(args.connection.timeout);
        asked.spawn(async move { (index, target, client.status().await) });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(index, ..)| *index);
    if out.json {
        let nodes: Vec<Value> =
            answers.iter().map(|(_, target, answer)| node_json(&target.endpoint, answer)).collect();
        out.object(&json!({ "nodes": nodes }))?;
    } else {
        out.bytes(screen(&answers).as_bytes())?;
    }
    out.flush()?; // before the words on stderr
    if answers.iter().any(|(.., answer)| answer.is_ok()) {
        return Ok(());
    }
    match answers.into_iter().find_map(|(.., answer)| answer.err()) {
        Some(error) => Err(error.into()),
        None => Err(Failure::Failed("the world has no nodes".to_owned())),
    }
}

type Answer = (usize, Target, Result<GetStatusResponse, Error>);

/// Everything that a person wants to see first: nodes, links, then what is not as it should be.
fn screen(answers: &[Answer]) -> String {
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<String>>();
    let mut nodes = vec![row(&["region", "node", "state", "since", "engine", "keys", "stored", "endpoint"])];
    let mut links = vec![row(&["node", "peer", "link", "since", "round trip", "lag", "peer lacks"])];
    let mut remarks = Vec::new();
    let mut moving = BTreeSet::new();
    for (_, Target { endpoint, name }, answer) in answers {
        let status = match answer {
            Ok(status) => status,
            Err(error) => {
                let (region, id) = name.as_ref().map_or(("?", "?"), |(region, id)| (region, id));
                nodes.push(row(&[region, id, "no answer", "", "", "", "", endpoint]));
                remarks.push(error.to_string());
                continue;
            }
        };
        let node = status.node.clone().unwrap_or_default();
        let store = status.store.clone().unwrap_or_default();
        let now_ms = status.clock.map_or(0, |clock| clock.wall_ms);
        let since = |ms: u64| time(now_ms.saturating_sub(ms));
        let engine =
            if store.durable { store.engine.clone() } else { format!("{}, nothing survives", store.engine) };
        nodes.push(vec![
            node.region.clone(),
            node.id.clone(),
            match &node.rebuild {
                Some(rebuild) if node.state() == NodeState::Rebuilding => {
                    format!("rebuilding {} %", rebuild.percent)
                }
                _ => node_state(node.state()).to_owned(),
            },
            since(node.state_since_ms),
            engine,
            store.visible_keys.to_string(),
            size(store.bytes),
            endpoint.clone(),
        ]);
        if let Some(rebuild) = &node.rebuild {
            remarks.push(format!("{}: {}", node.id, rebuilding(rebuild, now_ms)));
        }
        remarks.extend(held_back(&node));
        for link in &status.links {
            links.push(vec![
                node.id.clone(),
                link.peer.clone(),
                link_state(link.state()).to_owned(),
                since(link.state_since_ms),
                if link.round_trip_us == 0 { "?".to_owned() } else { milliseconds(link.round_trip_us) },
                lag(link, now_ms),
                format!("{} changes, {}", link.backlog_changes, size(link.backlog_bytes)),
            ]);
            if !link.problem.is_empty() {
                remarks.push(format!("{} to {}: {}", node.id, link.peer, link.problem));
            }
        }
        if let Some(directory) = &status.directory {
            if !directory.waiting.is_empty() {
                remarks.push(format!("{}: placement cannot change: {}", node.id, directory.waiting));
            }
            for scope in &directory.moving {
                moving.insert(scope.clone());
            }
        }
        for scope in &status.degraded_scopes {
            remarks.push(format!(
                "{}: {} keys of {} cannot be shown: {}",
                node.id, scope.keys, scope.scope, scope.problem
            ));
        }
        for long in &status.long_histories {
            let (used, most) = (size(long.history_bytes), size(long.limit_bytes));
            remarks.push(format!(
                "{}: the history of {} in {} has {used} of {most}, {} of {} changes",
                node.id, long.key, long.scope, long.history_changes, long.limit_changes
            ));
        }
        for warning in &status.warnings {
            remarks.push(format!(
                "{}: {} ({}, for {})",
                node.id,
                warning.message,
                warning.name,
                since(warning.since_ms)
            ));
        }
    }
    if !moving.is_empty() {
        let names: Vec<String> = moving.into_iter().collect();
        remarks.push(format!("on their way to other regions: {}", names.join(", ")));
    }
    let mut screen = table(&nodes);
    if links.len() > 1 {
        screen.push('\n');
        screen.push_str(&table(&links));
    }
    if !remarks.is_empty() {
        screen.push_str("\nwhat to look at:\n");
        for remark in remarks {
            screen.push_str(&format!("  {remark}\n"));
        }
    }
    screen
}

/// What a store is filled for, by whom, and who is waited for.
fn rebuilding(rebuild: &RebuildStatus, now_ms: u64) -> String {
    let mut text = format!(
        "its store is filled by its peers since {}: {}",
        time(now_ms.saturating_sub(rebuild.since_ms)),
        rebuild.reason
    );
    for (what, names) in [
        ("have given everything", &rebuild.given_by),
        ("are giving", &rebuild.waits_for),
        ("were not met yet", &rebuild.away),
    ] {
        if !names.is_empty() {
            text.push_str(&format!("; {} {what}", names.join(", ")));
        }
    }
    if rebuild.waits_for.is_empty() && !rebuild.unvouched.is_empty() {
        text.push_str(&format!(
            "; of those that are whole nobody was met who holds the scopes of {}",
            rebuild.unvouched.join(", ")
        ));
    }
    if rebuild.salvaged_read > 0 {
        text.push_str(&format!(
            "; {} changes were read of the store before, {} of them nobody else had",
            rebuild.salvaged_read, rebuild.salvaged_taken
        ));
    }
    text
}

/// What to say of background work, when clients hold it back.
fn held_back(node: &NodeStatus) -> Option<String> {
    let budget = node.budget.as_ref().filter(|budget| budget.pace_percent < 100)?;
    let did = budget.last_window.unwrap_or_default();
    if did.late_changes + did.walked_changes + did.given_bytes + did.settled_keys + did.compared_rows == 0 {
        return None; // there is nothing to hold back
    }
    let measured = |us: Option<u64>| us.map_or_else(|| "?".to_owned(), milliseconds);
    Some(format!(
        "{}: background work goes at {} % of its pace: writes take {} (99 of 100), {} without it",
        node.id,
        budget.pace_percent,
        measured(budget.foreground_p99_us),
        measured(budget.baseline_p99_us),
    ))
}

/// How far the node is behind the peer: the age of the time up to which it has everything that the peer made.
fn lag(link: &LinkStatus, now_ms: u64) -> String {
    match link.closed_stamp {
        0 => "?".to_owned(),
        closed => time(now_ms.saturating_sub(Stamp::from_u64(closed).unix_ms())),
    }
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{} ms", microseconds / 1000, microseconds / 100 % 10)
}

fn node_json(endpoint: &str, answer: &Result<GetStatusResponse, Error>) -> Value {
    let status = match answer {
        Ok(status) => status,
        Err(error) => return json!({ "endpoint": endpoint, "error": error.to_string() }),
    };
    let node = status.node.clone().unwrap_or_default();
    let store = status.store.clone().unwrap_or_default();
    let clock = status.clock.unwrap_or_default();
    let links: Vec<Value> = status
        .links
        .iter()
        .map(|link| {
            json!({
                "peer": link.peer, "region": link.region, "state": link_state(link.state()),
                "state_since_ms": link.state_since_ms, "last_heard_ms": link.last_heard_ms,
                "round_trip_us": link.round_trip_us, "clock_offset_us": link.clock_offset_us,
                "clock_offset_error_us": link.clock_offset_error_us,
                "backlog_changes": link.backlog_changes, "backlog_bytes": link.backlog_bytes,
                "sent_changes": link.sent_changes, "sent_bytes": link.sent_bytes,
                "received_changes": link.received_changes, "received_bytes": link.received_bytes,
                "duplicate_changes": link.duplicate_changes,
                "closed_ms": Stamp::from_u64(link.closed_stamp).unix_ms(),
                "reconciliation": link.reconciliation.as_ref().map(|done| json!({
                    "resumes": done.resumes, "comparisons": done.comparisons, "mismatches": done.mismatches,
                    "vectors_exchanged": done.vectors_exchanged, "changes_wanted": done.changes_wanted,
                    "overhead_bytes": done.overhead_bytes, "owes": done.owes, "inspections": done.inspections,
                    "digests_differed": done.digests_differed, "keys_differed": done.keys_differed,
                    "keys_repaired": done.keys_repaired,
                })),
                "problem": link.problem,
            })
        })
        .collect();
    let budget = node.budget.as_ref().map(budget_json);
    let scrub = node.scrub.as_ref().map(|scrub| {
        json!({
            "round_started_ms": scrub.round_started_ms, "percent": scrub.percent, "passed_keys": scrub.passed_keys,
            "keys": scrub.keys, "last_round_ms": scrub.last_round_ms, "damaged_found": scrub.damaged_found,
            "needed_keys_per_second": scrub.needed_keys_per_second,
            "most_keys_per_second": scrub.most_keys_per_second, "in_time": scrub.in_time,
        })
    });
    let named = |name: &str, message: &str| json!({ "name": name, "message": message });
    json!({
        "endpoint": endpoint, "id": node.id, "region": node.region, "state": node_state(node.state()),
        "state_since_ms": node.state_since_ms, "version": node.version, "uptime_ms": node.uptime_ms,
        "rebuild": node.rebuild.as_ref().map(|rebuild| json!({
            "reason": rebuild.reason, "since_ms": rebuild.since_ms, "percent": rebuild.percent,
            "given_by": rebuild.given_by, "waits_for": rebuild.waits_for, "away": rebuild.away,
            "unvouched": rebuild.unvouched, "salvaged_read": rebuild.salvaged_read,
            "salvaged_taken": rebuild.salvaged_taken,
        })),
        "cluster": node.cluster, "incarnation": node.incarnation, "origin": node.origin, "insecure": node.insecure,
        "metrics": node.metrics,
        "store": {
            "engine": store.engine, "durable": store.durable, "store_id": hex(&store.store_id),
            "commit_number": store.commit_number, "log_floor": store.log_floor, "log_changes": store.log_changes,
            "log_bytes": store.log_bytes, "visible_keys": store.visible_keys, "stubs": store.stubs,
            "parked_keys": store.parked_keys, "expired_keys": store.expired_keys, "deleted_keys": store.deleted_keys,
            "swept": store.swept, "bytes": store.bytes,
        },
        "clock": {
            "wall_ms": clock.wall_ms, "stamp": stamp(Stamp::from_u64(clock.stamp)),
            "reserved_until": stamp(Stamp::from_u64(clock.reserved_until)),
            "max_offset_ms": clock.max_offset_ms, "peers_far_behind": clock.peers_far_behind,
        },
        "budget": budget, "scrub": scrub,
        "links": links,
        "queues": status.queues.iter().map(|queue| json!({
            "name": queue.name, "length": queue.length, "limit": queue.limit, "unit": queue.unit,
            "times_full": queue.times_full,
        })).collect::<Vec<_>>(),
        "caches": status.caches.iter().map(|cache| json!({
            "name": cache.name, "bytes": cache.bytes, "limit_bytes": cache.limit_bytes, "entries": cache.entries,
            "hits": cache.hits, "misses": cache.misses,
        })).collect::<Vec<_>>(),
        "degraded_scopes":
            status.degraded_scopes.iter().map(|scope| json!({
                "scope": scope.scope, "keys": scope.keys, "problem": scope.problem,
            })).collect::<Vec<_>>(),
        "long_histories": status.long_histories.iter().map(|long| json!({
            "scope": long.scope, "key": long.key, "history_bytes": long.history_bytes,
            "limit_bytes": long.limit_bytes, "history_changes": long.history_changes,
            "limit_changes": long.limit_changes,
        })).collect::<Vec<_>>(),
        "directory": status.directory.as_ref().map(|directory| json!({
            "voters": directory.voters, "leader": directory.leader, "revision": directory.revision,
            "informed": directory.informed, "waiting": directory.waiting,
            "stored_records": directory.stored_records, "moving": directory.moving,
        })),
        "warnings": status.warnings.iter().map(|warning| named(&warning.name, &warning.message)).collect::<Vec<_>>(),
    })
}

fn budget_json(budget: &BudgetStatus) -> Value {
    let milliseconds = |us: u64| us as f64 / 1000.0;
    let did = budget.last_window.unwrap_or_default();
    json!({
        "pace_percent": budget.pace_percent, "resting": budget.resting, "lowered": budget.lowered,
        "foreground_p99_ms": budget.foreground_p99_us.map(milliseconds),
        "baseline_p99_ms": budget.baseline_p99_us.map(milliseconds),
        "last_window": {
            "late_changes": did.late_changes, "walked_changes": did.walked_changes, "given_bytes": did.given_bytes,
            "settled_keys": did.settled_keys, "compared_rows": did.compared_rows,
            "scrubbed_rows": did.scrubbed_rows, "time_ms": milliseconds(did.time_us),
        },
    })
}

pub(super) fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Starting => "starting",
        NodeState::WaitingForClock => "waits for its clock",
        NodeState::Serving => "serving",
        NodeState::Fenced => "fenced",
        NodeState::Stopping => "stopping",
        NodeState::Rebuilding => "rebuilding",
        NodeState::Unspecified => "unknown",
    }
}

pub(super) fn link_state(state: LinkState) -> &'static str {
    match state {
        LinkState::Connecting => "connecting",
        LinkState::CatchingUp => "catching up",
        LinkState::Current => "current",
        LinkState::Down => "down",
        LinkState::Refused => "refused",
        LinkState::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use tropism_client::Error;
    use tropism_client::v1::{
        BackgroundWork, BudgetStatus, ClockStatus, GetStatusResponse, LinkState, LinkStatus, NodeState,
        NodeStatus, StoreStatus, Warning,
    };
    use tropism_crdt::Stamp;

    use super::{Target, screen};

    #[test]
    fn the_screen_shows_nodes_links_and_what_is_wrong() {
        let node = NodeStatus {
            id: "tokyo-1".to_owned(),
            region: "tokyo".to_owned(),
            state: NodeState::Serving.into(),
            state_since_ms: 1_000,
            budget: Some(BudgetStatus {
                pace_percent: 12,
                foreground_p99_us: Some(1_400),
                baseline_p99_us: Some(950),
                last_window: Some(BackgroundWork { late_changes: 900, ..BackgroundWork::default() }),
                ..BudgetStatus::default()
            }),
            ..NodeStatus::default()
        };
        let link = LinkStatus {
            peer: "dallas-1".to_owned(),
            state: LinkState::Down.into(),
            state_since_ms: 64_000,
            round_trip_us: 143_250,
            backlog_changes: 7,
            backlog_bytes: 2048,
            closed_stamp: Stamp::new(63_500, 0).as_u64(),
            problem: "nothing heard for 10 s".to_owned(),
            ..LinkStatus::default()
        };
        let status = GetStatusResponse {
            node: Some(node),
            store: Some(StoreStatus {
                engine: "memory".to_owned(),
                visible_keys: 12,
                ..StoreStatus::default()
            }),
            clock: Some(ClockStatus { wall_ms: 66_000, ..ClockStatus::default() }),
            links: vec![link],
            warnings: vec![Warning {
                name: "insecure".to_owned(),
                message: "No TLS.".to_owned(),
                since_ms: 1_000,
            }],
            ..GetStatusResponse::default()
        };
        let away = Error::Unreachable(vec!["http://d: Connection refused".to_owned()]);
        let target = |endpoint: &str, name| Target { endpoint: endpoint.to_owned(), name };
        let dallas = Some(("dallas".to_owned(), "dallas-1".to_owned()));
        let screen =
            screen(&[(0, target("http://t", None), Ok(status)), (1, target("http://d", dallas), Err(away))]);
        assert_eq!(
            screen,
            "region  node      state      since  engine                    keys  stored  endpoint\n\
             tokyo   tokyo-1   serving    1m05s  memory, nothing survives  12    0 B     http://t\n\
             dallas  dallas-1  no answer                                                 http://d\n\
             \n\
             node     peer      link  since  round trip  lag  peer lacks\n\
             tokyo-1  dallas-1  down  2s     143.2 ms    2s   7 changes, 2.0 KiB\n\
             \n\
             what to look at:\n  \
             tokyo-1: background work goes at 12 % of its pace: writes take 1.4 ms (99 of 100), 0.9 ms without it\n  \
             tokyo-1 to dallas-1: nothing heard for 10 s\n  \
             tokyo-1: No TLS. (insecure, for 1m05s)\n  \
             no node answered: http://d: Connection refused; no effect\n"
        );
    }
}
