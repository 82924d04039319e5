//! Metrics from what the node knows anyway: the numbers of `GetStatus`, so that both say the same.

use tropism_crdt::Stamp;
use tropism_wire::v1;

use super::Api;
use crate::driver::wall_ms;
use crate::telemetry::names;
use crate::telemetry::sheet::Sheet;

/// Peers that have series of their own: with 27 each they are a quarter of what a node may have.
const PEERS_SHOWN: usize = 50;
/// Scopes with parked keys that are named, those with the most.
const SCOPES_SHOWN: usize = 20;

const NODE_STATES: [v1::NodeState; 5] = [
    v1::NodeState::WaitingForClock,
    v1::NodeState::Serving,
    v1::NodeState::Fenced,
    v1::NodeState::Stopping,
    v1::NodeState::Rebuilding,
];
const LINK_STATES: [v1::LinkState; 4] =
    [v1::LinkState::CatchingUp, v1::LinkState::Current, v1::LinkState::Down, v1::LinkState::Refused];

impl Api {
    /// All metrics of now. What the store would have to tell is missing while it cannot be read.
    pub(crate) async fn sheet(&self) -> Sheet {
        let mut sheet = Sheet::default();
        self.telemetry.write(&mut sheet);
        if let Ok(status) = self.status().await {
            of_status(&status, wall_ms(), &mut sheet);
        }
        debug_assert!(sheet.series() <= crate::telemetry::sheet::MAX_SERIES);
        sheet
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3 // exact below 2^53 ms
}

fn one(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// A state as a label: `NODE_STATE_SERVING` as `serving`.
fn state(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

fn of_status(status: &v1::GetStatusResponse, now_ms: u64, sheet: &mut Sheet) {
    if let (Some(node), Some(store)) = (&status.node, &status.store) {
        of_node(node, store, now_ms, sheet);
        of_store(store, sheet);
        of_links(&status.links, &node.region, now_ms, sheet);
    }
    if let Some(clock) = &status.clock {
        let stamp_ms = Stamp::from_u64(clock.stamp).unix_ms();
        let ahead =
            seconds(stamp_ms.saturating_sub(clock.wall_ms)) - seconds(clock.wall_ms.saturating_sub(stamp_ms));
        sheet.gauge(&names::CLOCK_AHEAD, &[], ahead);
        sheet.gauge(&names::CLOCK_PEERS_BEHIND, &[], clock.peers_far_behind.into());
        sheet.gauge(&names::CLOCK_MAX_OFFSET, &[], seconds(clock.max_offset_ms));
    }
    let mut warnings: Vec<(&str, f64)> = Vec::new();
    for warning in &status.warnings {
        match warnings.iter_mut().find(|(name, _)| *name == warning.name) {
            Some((_, count)) => *count += 1.0,
            None => warnings.push((&warning.name, 1.0)),
        }
    }
    for (name, count) in warnings {
        sheet.gauge(&names::WARNING, &[name], count);
    }
    sheet.counter(&names::DISPUTED, &[], status.disputed_places);
    for scope in status.degraded_scopes.iter().take(SCOPES_SHOWN) {
        sheet.gauge(&names::DEGRADED, &[&scope.scope], scope.keys as f64);
    }
    if let Some(directory) = &status.directory {
        sheet.gauge(&names::DIRECTORY_REVISION, &[], directory.revision as f64);
        sheet.gauge(&names::DIRECTORY_INFORMED, &[], one(directory.informed));
        sheet.gauge(&names::DIRECTORY_LEADER, &[], one(!directory.leader.is_empty()));
        sheet.gauge(&names::DIRECTORY_VOTERS, &[], directory.voters.len() as f64);
        sheet.gauge(&names::DIRECTORY_WAITING, &[], one(!directory.waiting.is_empty()));
        sheet.gauge(&names::PLACEMENT_STORED, &[], directory.stored_records as f64);
        sheet.gauge(&names::PLACEMENT_MOVING, &[], directory.moving.len() as f64);
    }
    for cache in &status.caches {
        sheet.gauge(&names::CACHE_BYTES, &[&cache.name], cache.bytes as f64);
        sheet.gauge(&names::CACHE_LIMIT, &[&cache.name], cache.limit_bytes as f64);
        if cache.hits + cache.misses > 0 {
            sheet.counter(&names::CACHE_HITS, &[&cache.name], cache.hits);
            sheet.counter(&names::CACHE_MISSES, &[&cache.name], cache.misses);
        }
    }
    for queue in &status.queues {
        sheet.gauge(&names::QUEUE_LENGTH, &[&queue.name, &queue.unit], queue.length as f64);
        sheet.gauge(&names::QUEUE_LIMIT, &[&queue.name, &queue.unit], queue.limit as f64);
        sheet.counter(&names::QUEUE_FULL, &[&queue.name], queue.times_full);
    }
}

fn of_node(node: &v1::NodeStatus, store: &v1::StoreStatus, now_ms: u64, sheet: &mut Sheet) {
    // As the program says it: `0.1.0 (0123456789ab)`.
    let (version, commit) = node.version.split_once(" (").unwrap_or((&node.version, ""));
    sheet.gauge(&names::BUILD, &[version, commit.trim_end_matches(')')], 1.0);
    sheet.gauge(&names::NODE_INFO, &[&node.cluster, &node.region, &node.id, &store.engine], 1.0);
    sheet.gauge(&names::STARTED, &[], seconds(now_ms.saturating_sub(node.uptime_ms)));
    for known in NODE_STATES {
        let name = state(known.as_str_name(), "NODE_STATE_");
        sheet.gauge(&names::STATE, &[&name], one(node.state() == known));
    }
    if let Some(rebuild) = &node.rebuild {
        sheet.gauge(&names::REBUILD, &[], f64::from(rebuild.percent) / 100.0);
    }
    if let Some(budget) = &node.budget {
        sheet.gauge(&names::PACE, &[], f64::from(budget.pace_percent) / 100.0);
        sheet.counter(&names::PACE_LOWERED, &[], budget.lowered);
    }
    if let Some(scrub) = &node.scrub {
        sheet.gauge(&names::SCRUB_PASSED, &[], f64::from(scrub.percent) / 100.0);
        sheet.gauge(&names::SCRUB_DAMAGED, &[], scrub.damaged_found as f64);
        sheet.gauge(&names::SCRUB_IN_TIME, &[], one(scrub.in_time));
    }
}

fn of_store(store: &v1::StoreStatus, sheet: &mut Sheet) {
    sheet.gauge(&names::STORE_BYTES, &[], store.bytes as f64);
    sheet.gauge(&names::LOG_CHANGES, &[], store.log_changes as f64);
    sheet.gauge(&names::LOG_BYTES, &[], store.log_bytes as f64);
    for (standing, keys) in [
        ("visible", store.visible_keys),
        ("expired", store.expired_keys),
        ("deleted", store.deleted_keys),
        ("stub", store.stubs),
        ("parked", store.parked_keys),
    ] {
        sheet.gauge(&names::KEYS, &[standing], keys as f64);
    }
}

/// How long ago everything is that may be missing of what a peer made; `None` while that is not known.
fn closed_age_ms(link: &v1::LinkStatus, now_ms: u64) -> Option<u64> {
    (link.closed_stamp > 0).then(|| now_ms.saturating_sub(Stamp::from_u64(link.closed_stamp).unix_ms()))
}

fn of_links(links: &[v1::LinkStatus], region: &str, now_ms: u64, sheet: &mut Sheet) {
    // The slowest of a region's nodes tells how far it is behind; unknown while one of them is.
    let mut regions: Vec<(&str, Option<u64>)> = Vec::new();
    for link in links {
        let age = closed_age_ms(link, now_ms);
        match regions.iter_mut().find(|(known, _)| *known == link.region) {
            Some((_, oldest)) => *oldest = oldest.zip(age).map(|(oldest, age)| oldest.max(age)),
            None => regions.push((&link.region, age)),
        }
    }
    for (from, age) in regions {
        if let Some(age) = age {
            sheet.gauge(&names::STALENESS, &[from, region], seconds(age));
        }
    }
    sheet.gauge(&names::LINKS_OMITTED, &[], links.len().saturating_sub(PEERS_SHOWN) as f64);
    for link in links.iter().take(PEERS_SHOWN) {
        of_link(link, now_ms, sheet);
    }
}

fn of_link(link: &v1::LinkStatus, now_ms: u64, sheet: &mut Sheet) {
    let peer = &[link.peer.as_str(), link.region.as_str()];
    let up = matches!(link.state(), v1::LinkState::CatchingUp | v1::LinkState::Current);
    sheet.gauge(&names::LINK_UP, peer, one(up));
    for known in LINK_STATES {
        let name = state(known.as_str_name(), "LINK_STATE_");
        sheet.gauge(&names::LINK_STATE, &[&link.peer, &link.region, &name], one(link.state() == known));
    }
    if let Some(silence) = link.last_heard_ms {
        sheet.gauge(&names::LINK_SILENCE, peer, seconds(silence));
    }
    if link.round_trip_us > 0 {
        sheet.gauge(&names::LINK_RTT, peer, link.round_trip_us as f64 / 1e6);
        sheet.gauge(&names::LINK_OFFSET, peer, link.clock_offset_us as f64 / 1e6);
        sheet.gauge(&names::LINK_OFFSET_ERROR, peer, link.clock_offset_error_us as f64 / 1e6);
    }
    sheet.gauge(&names::LINK_BACKLOG_CHANGES, peer, link.backlog_changes as f64);
    sheet.gauge(&names::LINK_BACKLOG_BYTES, peer, link.backlog_bytes as f64);
    if let Some(age) = closed_age_ms(link, now_ms) {
        sheet.gauge(&names::LINK_CLOSED_AGE, peer, seconds(age));
    }
    let done = link.reconciliation.unwrap_or_default();
    for (metric, count) in [
        (&names::LINK_SENT_CHANGES, link.sent_changes),
        (&names::LINK_SENT_BYTES, link.sent_bytes),
        (&names::LINK_RECEIVED_CHANGES, link.received_changes),
        (&names::LINK_RECEIVED_BYTES, link.received_bytes),
        (&names::LINK_DUPLICATES, link.duplicate_changes),
        (&names::LINK_OVERHEAD, done.overhead_bytes),
        (&names::RESUMES, done.resumes),
        (&names::COMPARISONS, done.comparisons),
        (&names::MISMATCHES, done.mismatches),
        (&names::VECTORS, done.vectors_exchanged),
        (&names::WANTED, done.changes_wanted),
        (&names::INSPECTIONS, done.inspections),
        (&names::DIGESTS_DIFFERED, done.digests_differed),
        (&names::KEYS_DIFFERED, done.keys_differed),
        (&names::KEYS_REPAIRED, done.keys_repaired),
    ] {
        sheet.counter(metric, peer, count);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use super::{PEERS_SHOWN, Sheet, Stamp, of_status, v1};
    use crate::telemetry::sheet::MAX_SERIES;

    fn link(peer: &str, region: &str, closed_ms: u64) -> v1::LinkStatus {
        v1::LinkStatus {
            peer: peer.into(),
            region: region.into(),
            state: v1::LinkState::Current.into(),
            last_heard_ms: Some(5),
            round_trip_us: 1_500,
            clock_offset_us: -2_000,
            closed_stamp: Stamp::new(closed_ms, 0).as_u64(),
            ..v1::LinkStatus::default()
        }
    }

    fn text(links: Vec<v1::LinkStatus>) -> String {
        let node = v1::NodeStatus {
            id: "a-1".into(),
            region: "a".into(),
            state: v1::NodeState::Serving.into(),
            version: "1.2.3 (abc)".into(),
            cluster: "c\"\n".into(),
            uptime_ms: 3_000,
            ..v1::NodeStatus::default()
        };
        let status = v1::GetStatusResponse {
            node: Some(node),
            store: Some(v1::StoreStatus { engine: "disk".into(), ..v1::StoreStatus::default() }),
            links,
            ..v1::GetStatusResponse::default()
        };
        let mut sheet = Sheet::default();
        of_status(&status, 10_000, &mut sheet);
        sheet.text(true).0
    }

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|found| found == line)
    }

    #[test]
    fn the_directory_is_told_as_the_node_follows_it() {
        let directory = v1::DirectoryStatus {
            voters: vec!["a-1".into(), "b-1".into(), "c-1".into()],
            leader: String::new(),
            revision: 7,
            informed: true,
            waiting: "no majority".into(),
            stored_records: 4,
            moving: vec!["shop/carts".into()],
        };
        let status = v1::GetStatusResponse { directory: Some(directory), ..v1::GetStatusResponse::default() };
        let mut sheet = Sheet::default();
        of_status(&status, 10_000, &mut sheet);
        let told = sheet.text(true).0;
        for line in [
            "tropism_directory_revision 7.0",
            "tropism_directory_informed 1.0",
            "tropism_directory_leader_known 0.0",
            "tropism_directory_voters 3.0",
            "tropism_directory_waiting 1.0",
            "tropism_placement_stored_records 4.0",
            "tropism_placement_moving_scopes 1.0",
        ] {
            assert!(has(&told, line), "{line}\n{told}");
        }
        assert!(
            !told.contains("shop/carts") && !told.contains("majority"),
            "names and texts are in `status`"
        );
    }

    #[test]
    fn a_region_is_as_far_behind_as_the_slowest_of_its_nodes_and_unknown_while_one_was_not_heard() {
        let told = text(vec![link("b-1", "b", 9_900), link("b-2", "b", 8_000), link("c-1", "c", 9_990)]);
        let staleness = "tropism_replication_staleness_seconds";
        assert!(has(&told, &format!("{staleness}{{from_region=\"b\",to_region=\"a\"}} 2.0")), "{told}");
        assert!(has(&told, &format!("{staleness}{{from_region=\"c\",to_region=\"a\"}} 0.01")), "{told}");
        let unheard = v1::LinkStatus { closed_stamp: 0, ..link("b-2", "b", 0) };
        let told = text(vec![link("b-1", "b", 9_900), unheard]);
        assert!(!told.contains(&format!("{staleness}{{")), "{told}");
        assert!(has(&told, "tropism_link_closed_age_seconds{peer=\"b-1\",peer_region=\"b\"} 0.1"), "{told}");
        assert!(
            has(&told, "tropism_link_clock_offset_seconds{peer=\"b-1\",peer_region=\"b\"} -0.002"),
            "{told}"
        );
    }

    #[test]
    fn the_program_and_the_node_are_named_and_labels_escaped() {
        let told = text(Vec::new());
        assert!(has(&told, "tropism_build_info{version=\"1.2.3\",commit=\"abc\"} 1.0"), "{told}");
        assert!(has(&told, "tropism_node_state{state=\"serving\"} 1.0"), "{told}");
        assert!(has(&told, "tropism_node_state{state=\"fenced\"} 0.0"), "{told}");
        assert!(has(&told, "process_start_time_seconds 7.0"), "{told}");
        assert!(told.contains("cluster=\"c\\\"\\n\""), "{told}");
        assert!(told.ends_with("# EOF\n"));
    }

    #[test]
    fn the_largest_cluster_stays_within_the_series_of_a_node() {
        let links: Vec<_> =
            (0..4_095).map(|n| link(&format!("n-{n}"), &format!("r-{}", n % 64), 9_000)).collect();
        let mut sheet = Sheet::default();
        crate::telemetry::metrics::tests::everything(64).write(&mut sheet);
        let degraded = |n| v1::DegradedScope { scope: format!("s{n}"), keys: 1, problem: String::new() };
        let queue = |n| v1::QueueStatus { name: format!("q{n}"), ..v1::QueueStatus::default() };
        let cache = |n| v1::CacheStatus { name: format!("c{n}"), hits: 1, ..v1::CacheStatus::default() };
        let warning = |n| v1::Warning { name: format!("w{}", n % 20), ..v1::Warning::default() };
        let status = v1::GetStatusResponse {
            node: Some(v1::NodeStatus { region: "a".into(), ..v1::NodeStatus::default() }),
            store: Some(v1::StoreStatus::default()),
            clock: Some(v1::ClockStatus::default()),
            links,
            caches: (0..10).map(cache).collect(),
            queues: (0..20).map(queue).collect(),
            degraded_scopes: (0..100).map(degraded).collect(),
            warnings: (0..4_095).map(warning).collect(),
            ..v1::GetStatusResponse::default()
        };
        of_status(&status, 10_000, &mut sheet);
        assert!(sheet.series() <= MAX_SERIES, "{}", sheet.series());
        let told = sheet.text(false).0;
        let omitted = format!("tropism_links_omitted {}.0", 4_095 - PEERS_SHOWN);
        assert!(has(&told, &omitted), "what is left out is told");
    }
}
