//! `top`: how the nodes are, again and again, and what they did in between.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use tokio::signal::ctrl_c;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tropism_client::v1::{GetStatusResponse, LinkState, LinkStatus, NodeState};
use tropism_client::{Calls, Error};
use tropism_crdt::Stamp;

use crate::args::Top;
use crate::commands::status::{link_state, node_state};
use crate::output::{Failure, Output, moment_to_second, now_ms, size, table, time};
use crate::target::{Target, targets};

/// How often the nodes are asked, and the longest that one answer is waited for: a frame is never older than this.
const EVERY: Duration = Duration::from_secs(1);
/// What a single frame is computed over.
const ONCE_OVER: Duration = Duration::from_millis(500);
/// Remarks of a frame: what does not fit a screen is better asked of `status`.
const REMARKS: usize = 12;
/// Another screen, without a cursor, whose lines are cut instead of wrapped; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// A node that is asked.
struct Asked {
    target: Target,
    client: Calls,
}

/// What one node answered, and when.
struct Seen {
    at: Instant,
    status: Result<GetStatusResponse, Error>,
}

/// `top`: frames until Ctrl-C, or one.
pub(super) async fn top(args: &Top, out: &mut Output) -> Result<(), Failure> {
    let asked = targets(&args.connection)?.into_iter().map(|target| {
        let client =
            Calls::in_order(vec![target.endpoint.clone()])?.with_timeout(EVERY.min(args.connection.timeout));
        Ok(Asked { target, client })
    });
    let asked: Vec<Asked> = asked.collect::<Result<_, Error>>()?;
    let mut before = look(&asked).await;
    if args.once || !out.terminal {
        sleep(ONCE_OVER).await;
        let now = look(&asked).await;
        out.bytes(frame(&asked, &before, &now, now_ms()).as_bytes())?;
        out.flush()?;
        return if now.iter().any(|seen| seen.status.is_ok()) {
            Ok(())
        } else {
            Err(Failure::Failed("no node answers".to_owned()))
        };
    }
    let _screen = Screen::enter()?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await; // the first comes at once
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = ctrl_c() => return Ok(()),
        }
        let now = look(&asked).await;
        let text = frame(&asked, &before, &now, now_ms());
        // From the top; each line and then the rest of the screen is cleared behind what is written.
        let shown = text.replace('\n', "\x1b[K\r\n");
        out.bytes(format!("\x1b[H{shown}\x1b[J").as_bytes())?;
        out.flush()?;
        before = now;
    }
}

/// The other screen, until this is dropped.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, Failure> {
        io::stdout().write_all(ENTER.as_bytes())?;
        io::stdout().flush()?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no order.
        let _ = io::stdout().write_all(LEAVE.as_bytes());
        let _ = io::stdout().flush();
    }
}

/// Asks all nodes at once.
async fn look(asked: &[Asked]) -> Vec<Seen> {
    let mut answers = JoinSet::new();
    for (index, node) in asked.iter().enumerate() {
        let client = node.client.clone();
        answers.spawn(async move { (index, Seen { status: client.status().await, at: Instant::now() }) });
    }
    let mut answers = answers.join_all().await;
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, seen)| seen).collect()
}

/// How many in a second between two answers of one process; `None` when there are no two.
fn rate(before: &Seen, now: &Seen, count: impl Fn(&GetStatusResponse) -> u64) -> Option<f64> {
    let (Ok(earlier), Ok(later)) = (&before.status, &now.status) else { return None };
    let started = |status: &GetStatusResponse| status.node.as_ref().map(|node| node.incarnation);
    let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
    let same = started(earlier) == started(later) && seconds > 0.0;
    same.then(|| count(later).saturating_sub(count(earlier)) as f64 / seconds)
}

fn per_second(rate: Option<f64>) -> String {
    rate.map_or_else(|| "?".to_owned(), |rate| format!("{rate:.0}"))
}

/// One frame: regions with their nodes, then what is not as it should be.
fn frame(asked: &[Asked], before: &[Seen], now: &[Seen], wall_ms: u64) -> String {
    let head = [
        "region",
        "node",
        "state",
        "writes/s",
        "reads/s",
        "failed/s",
        "lag",
        "peers lack",
        "keys",
        "stored",
        "warnings",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut remarks: Vec<String> = Vec::new();
    let (mut moving, mut cluster) = (BTreeSet::new(), String::new());
    let mut sums = (0.0, 0.0, 0_usize);
    let mut regions: BTreeMap<String, usize> = BTreeMap::new();
    for ((node, before), now) in asked.iter().zip(before).zip(now) {
        let status = match &now.status {
            Ok(status) => status,
            Err(error) => {
                let name = node.target.name.clone();
                let (region, id) = name.unwrap_or_else(|| ("?".to_owned(), node.target.endpoint.clone()));
                rows.push(vec![region, id.clone(), "no answer".to_owned()]);
                remarks.push(format!("{id}: {error}"));
                continue;
            }
        };
        let who = status.node.clone().unwrap_or_default();
        let store = status.store.clone().unwrap_or_default();
        let at_ms = status.clock.map_or(0, |clock| clock.wall_ms);
        let calls = |status: &GetStatusResponse| status.calls.unwrap_or_default();
        let writes = rate(before, now, |status| calls(status).writes);
        let reads = rate(before, now, |status| calls(status).reads);
        let failed = rate(before, now, |status| calls(status).failed);
        sums = (sums.0 + writes.unwrap_or(0.0), sums.1 + reads.unwrap_or(0.0), sums.2 + 1);
        *regions.entry(who.region.clone()).or_default() += 1;
        cluster.clone_from(&who.cluster);
        let unheard = status.links.iter().any(|link| link.closed_stamp == 0);
        let oldest = status.links.iter().map(|link| Stamp::from_u64(link.closed_stamp).unix_ms()).min();
        let lag = match oldest {
            None => "-".to_owned(), // nobody to be behind of
            Some(_) if unheard => "?".to_owned(),
            Some(closed) => time(at_ms.saturating_sub(closed)),
        };
        let lack = status.links.iter().map(|link| (link.backlog_changes, link.backlog_bytes));
        let (changes, bytes) = lack.fold((0, 0), |sum, link| (sum.0 + link.0, sum.1 + link.1));
        rows.push(vec![
            who.region.clone(),
            who.id.clone(),
            match &who.rebuild {
                Some(rebuild) if who.state() == NodeState::Rebuilding => {
                    format!("rebuilding {} %", rebuild.percent)
                }
                _ => node_state(who.state()).to_owned(),
            },
            per_second(writes),
            per_second(reads),
            per_second(failed),
            lag,
            if changes == 0 { "-".to_owned() } else { format!("{changes}, {}", size(bytes)) },
            store.visible_keys.to_string(),
            size(store.bytes),
            status.warnings.len().to_string(),
        ]);
        let warned = |peer: &str| status.warnings.iter().any(|warning| warning.message.contains(peer));
        let late = |link: &&LinkStatus| link.state() != LinkState::Current && !warned(&link.peer);
        for link in status.links.iter().filter(late) {
            let since = time(at_ms.saturating_sub(link.state_since_ms));
            let problem = if link.problem.is_empty() { String::new() } else { format!(": {}", link.problem) };
            remarks.push(format!(
                "{} to {}: {} for {since}{problem}",
                who.id,
                link.peer,
                link_state(link.state())
            ));
        }
        remarks.extend(status.warnings.iter().map(|warning| format!("{}: {}", who.id, warning.message)));
        if let Some(directory) = &status.directory {
            moving.extend(directory.moving.iter().cloned());
            if !directory.waiting.is_empty() {
                remarks.push(format!("{}: placement cannot change: {}", who.id, directory.waiting));
            }
        }
    }
    let (writes, reads, nodes) = sums;
    let mut text = format!(
        "tropism {cluster}  {}  {} regions, {nodes} of {} nodes  {writes:.0} writes/s  {reads:.0} reads/s\n\n",
        moment_to_second(wall_ms),
        regions.len(),
        asked.len(),
    );
    text.push_str(&table(&rows));
    let moving: Vec<String> = moving.into_iter().collect();
    let moving = if moving.is_empty() { "none".to_owned() } else { moving.join(", ") };
    text.push_str(&format!("\nscopes on their way: {moving}\n"));
    if !remarks.is_empty() {
        let more = remarks.len().saturating_sub(REMARKS);
        text.push_str("\nwhat to look at:\n");
        for remark in remarks.iter().take(REMARKS) {
            text.push_str(&format!("  {remark}\n"));
        }
        if more > 0 {
            text.push_str(&format!("  and {more} more; `tropism status` has all\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use tropism_client::v1::{CallCounts, ClockStatus, DirectoryStatus, NodeStatus, Warning};

    use super::*;

    fn asked(id: &str) -> Asked {
        let endpoint = "http://127.0.0.1:1".to_owned();
        let name = Some(("tokyo".to_owned(), id.to_owned()));
        let client = Calls::in_order(vec![endpoint.clone()]).unwrap();
        Asked { target: Target { endpoint, name }, client }
    }

    fn seen(at: Instant, incarnation: u64, writes: u64, reads: u64) -> Seen {
        let link = LinkStatus {
            peer: "dallas-1".into(),
            state: LinkState::Down.into(),
            state_since_ms: 95_000,
            closed_stamp: Stamp::new(90_000, 0).as_u64(),
            backlog_changes: 7,
            backlog_bytes: 2_048,
            problem: "no connection".into(),
            ..LinkStatus::default()
        };
        let status = GetStatusResponse {
            node: Some(NodeStatus {
                id: "tokyo-1".into(),
                region: "tokyo".into(),
                cluster: "dev".into(),
                state: NodeState::Serving.into(),
                incarnation,
                ..NodeStatus::default()
            }),
            clock: Some(ClockStatus { wall_ms: 100_000, ..ClockStatus::default() }),
            links: vec![link],
            warnings: vec![Warning { name: "x".into(), message: "a warning".into(), since_ms: 0 }],
            directory: Some(DirectoryStatus {
                moving: vec!["shop/carts".into()],
                ..DirectoryStatus::default()
            }),
            calls: Some(CallCounts { writes, reads, failed: 0 }),
            ..GetStatusResponse::default()
        };
        Seen { at, status: Ok(status) }
    }

    #[tokio::test]
    async fn a_frame_shows_rates_lag_backlog_moves_and_alarms() {
        let (then, nodes) = (Instant::now(), [asked("tokyo-1")]);
        let now = then + Duration::from_secs(2);
        let text = frame(&nodes, &[seen(then, 1, 10, 100)], &[seen(now, 1, 30, 300)], 0);
        let line = text.lines().find(|line| line.starts_with("tokyo ")).unwrap();
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            cells,
            ["tokyo", "tokyo-1", "serving", "10", "100", "0", "10s", "7, 2.0 KiB", "0", "0 B", "1"]
        );
        for part in [
            "tropism dev  1970-01-01T00:00:00Z  1 regions, 1 of 1 nodes  10 writes/s  100 reads/s",
            "scopes on their way: shop/carts",
            "tokyo-1 to dallas-1: down for 5s: no connection",
            "tokyo-1: a warning",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[tokio::test]
    async fn a_node_that_began_anew_has_no_rate_and_one_that_is_gone_is_named() {
        let (then, nodes) = (Instant::now(), [asked("tokyo-1")]);
        let now = then + Duration::from_secs(1);
        assert_eq!(rate(&seen(then, 1, 50, 0), &seen(now, 2, 3, 0), |_| 1), None);
        let gone = || Seen { at: now, status: Err(Error::Unreachable(vec!["refused".to_owned()])) };
        let text = frame(&nodes, &[gone()], &[gone()], 0);
        assert!(text.contains("tokyo   tokyo-1  no answer"), "{text}");
        assert!(text.contains("0 of 1 nodes"), "{text}");
    }
}
