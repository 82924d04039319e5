//! How a node and its neighbours are: `ClusterService`. Everything is local knowledge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tonic::{Request, Response, Status, async_trait};
use tracing::info;
use tropism_crdt::{MAX_OFFSET_MS, NodeId, Stamp};
use tropism_placement::RegionName;
use tropism_replica::limits::{FENCE_OFFSET_MS, PENDING_BYTES, WAITING_WRITES};
use tropism_replica::{BudgetStatus, LinkStatus, RebuildStatus, ScrubStatus, Work};
use tropism_storage::rows::STORE_FORMAT;
use tropism_storage::{Reads, StoreError};
use tropism_wire::error::echo;
use tropism_wire::v1::cluster_service_server::ClusterService;
use tropism_wire::{Problem, Reason, v1};

use super::{
    Api, CONCURRENT_CALLS, CONCURRENT_HISTORIES, CONCURRENT_SCANS, Call, Inner, cause, stopping, unreadable,
};
use crate::driver::{Published, wall_ms};
use crate::telemetry::{MILLION, log};
use crate::traffic::Line;

/// Scopes on their way that are named, of all.
const SHOWN_MOVES: usize = 100;
/// Version of the protocol between nodes.
const PROTOCOL_VERSION: u32 = 1;
/// A link that is up and has more changes than this to send is catching up; fewer are traffic under way.
const CURRENT_CHANGES: u64 = 1_024;
/// Commits that are counted to know what a peer lacks: some 50 ms. Of a longer backlog this much is told.
const COUNTED_COMMITS: usize = 10_000;
/// Bytes of changes after which counting ends too: what a disk reads in a fraction of a second.
const COUNTED_BYTES: u64 = 64 << 20;
/// What peers lack is counted this often at most, whoever asks.
const COUNT_EVERY: Duration = Duration::from_secs(1);

#[async_trait]
impl ClusterService for Api {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Call::of(request)?;
        Ok(Response::new(self.status().await?))
    }

    async fn list_regions(
        &self,
        request: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        Call::of(request)?;
        let nodes = self.nodes();
        let measured = self.measured();
        let mut regions = Vec::new();
        for region in self.regions.regions() {
            let others = self.regions.regions().iter().filter(|other| other.name != region.name);
            let round_trips = others.map(|other| v1::RoundTrip {
                region: other.name.as_str().to_owned(),
                configured_ms: self.regions.rtt(region.name.as_str(), other.name.as_str()).unwrap_or(0.0),
                measured_ms: match (region.name == self.region, other.name == self.region) {
                    (true, _) => measured.get(&other.name).copied().unwrap_or(0.0),
                    (_, true) => measured.get(&region.name).copied().unwrap_or(0.0),
                    _ => 0.0,
                },
            });
            let here = nodes.iter().filter(|node| node.region == region.name.as_str());
            regions.push(v1::Region {
                name: region.name.as_str().to_owned(),
                place: region.place.clone(),
                nodes: here.map(|node| node.id.clone()).collect(),
                round_trips: round_trips.collect(),
            });
        }
        let here = self.region.as_str().to_owned();
        Ok(Response::new(v1::ListRegionsResponse { regions, here }))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let (_, v1::ListNodesRequest { region }) = Call::of(request)?;
        let known = self.regions.regions().iter().any(|known| known.name.as_str() == region);
        if !region.is_empty() && !known {
            let names: Vec<&str> = self.regions.regions().iter().map(|known| known.name.as_str()).collect();
            let message =
                format!("there is no region {}; the regions are {}", echo(&region), names.join(", "));
            return Err(Problem::not_found(Reason::RegionNotFound, message).at("region").into());
        }
        let mut nodes = self.nodes();
        nodes.retain(|node| region.is_empty() || node.region == region);
        Ok(Response::new(v1::ListNodesResponse { nodes }))
    }

    async fn list_spans(
        &self,
        request: Request<v1::ListSpansRequest>,
    ) -> Result<Response<v1::ListSpansResponse>, Status> {
        let (_, v1::ListSpansRequest { trace_id }) = Call::of(request)?;
        let trace_id: [u8; 16] = trace_id.as_ref().try_into().map_err(|_| {
            let message = format!("trace_id has {} bytes; a trace id has 16", trace_id.len());
            Problem::invalid_argument(Reason::MalformedRequest, "trace_id", message)
        })?;
        let spans = self.telemetry.spans(trace_id).into_iter().map(|span| v1::Span {
            span_id: span.span.to_bytes().to_vec().into(),
            parent_span_id: span.parent.to_bytes().to_vec().into(),
            late: span.trace.to_bytes() != trace_id,
            name: span.name,
            node: self.node.as_str().to_owned(),
            region: self.region.as_str().to_owned(),
            start_us: span.start_us,
            duration_us: span.duration_us,
            attributes: span
                .attributes
                .into_iter()
                .map(|(name, value)| v1::SpanAttribute { name, value })
                .collect(),
        });
        Ok(Response::new(v1::ListSpansResponse { spans: spans.collect() }))
    }

    async fn set_telemetry(
        &self,
        request: Request<v1::SetTelemetryRequest>,
    ) -> Result<Response<v1::SetTelemetryResponse>, Status> {
        let (_, v1::SetTelemetryRequest { node, sampling_ppm, log }) = Call::of(request)?;
        self.addressed(&node)?;
        if let Some(ppm) = sampling_ppm.filter(|ppm| *ppm > MILLION) {
            let message = format!("sampling_ppm is {ppm}; of a million calls at most {MILLION} are sampled");
            return Err(Problem::invalid_argument(Reason::BadNumber, "sampling_ppm", message).into());
        }
        if let Some(filters) = &log {
            log::set_filters(filters).map_err(|error| {
                let message = format!("log {} {error}", echo(filters));
                Problem::invalid_argument(Reason::BadLogFilter, "log", message)
            })?;
            info!(filters, "the log was changed by a call");
        }
        if let Some(ppm) = sampling_ppm {
            self.telemetry.set_sampling(ppm);
            info!(ppm, "sampling was changed by a call");
        }
        let (sampling_ppm, exports) = self.telemetry.sampling();
        Ok(Response::new(v1::SetTelemetryResponse {
            node: self.node.as_str().to_owned(),
            region: self.region.as_str().to_owned(),
            sampling_ppm,
            log: log::filters().unwrap_or_default(),
            exports,
        }))
    }
}

/// Changes that a peer is not known to have.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backlog {
    changes: u64,
    bytes: u64,
}

impl Backlog {
    /// Those in the log behind the peer's cursor which it did not make.
    fn count(link: &LinkStatus, published: &Published) -> Result<Self, StoreError> {
        let snapshot = published.snapshot.as_ref();
        let rows = snapshot.commit_rows(link.cursor + 1, published.head.commit + 1);
        let mut backlog = Self::default();
        for row in rows.take(COUNTED_COMMITS) {
            for key in row?.1.changes.iter().filter(|key| key.origin.node != link.peer.node) {
                backlog.changes += 1;
                backlog.bytes += snapshot.change(key)?.map_or(0, |change| change.len() as u64);
            }
            if backlog.bytes > COUNTED_BYTES {
                break;
            }
        }
        Ok(backlog)
    }
}

fn rebuild(rebuild: &RebuildStatus) -> v1::RebuildStatus {
    let names = |nodes: &[NodeId]| nodes.iter().map(|node| node.as_str().to_owned()).collect();
    v1::RebuildStatus {
        reason: cause(&rebuild.cause),
        since_ms: rebuild.since_ms,
        percent: rebuild.percent.into(),
        given_by: names(&rebuild.given_by),
        waits_for: names(&rebuild.waits_for),
        away: names(&rebuild.away),
        unvouched: rebuild.unvouched.clone(),
        salvaged_read: rebuild.salvaged.read,
        salvaged_taken: rebuild.salvaged.taken,
    }
}

/// The replica's caches and the store's.
fn caches(published: &Published) -> Vec<v1::CacheStatus> {
    let caches = published.status.caches.iter().map(|cache| v1::CacheStatus {
        name: cache.name.to_owned(),
        bytes: cache.bytes as u64,
        limit_bytes: cache.limit as u64,
        entries: cache.entries as u64,
        hits: cache.looked_up.0,
        misses: cache.looked_up.1,
    });
    let values = v1::CacheStatus {
        name: "values".to_owned(),
        bytes: published.values.bytes as u64,
        limit_bytes: published.values.limit as u64,
        entries: published.values.rows as u64,
        ..v1::CacheStatus::default()
    };
    let blocks = published.footprint.block_cache.map(|(bytes, limit_bytes)| v1::CacheStatus {
        name: "blocks of the store".to_owned(),
        bytes,
        limit_bytes,
        ..v1::CacheStatus::default()
    });
    caches.chain([values]).chain(blocks).collect()
}

fn budget(budget: &BudgetStatus) -> v1::BudgetStatus {
    let Work { late_changes, walked_changes, given_bytes, settled_keys, compared_rows, scrubbed_rows, us } =
        budget.last;
    v1::BudgetStatus {
        pace_percent: budget.pace_percent.into(),
        resting: budget.resting,
        foreground_p99_us: budget.p99_us,
        baseline_p99_us: budget.baseline_us,
        lowered: budget.lowered,
        last_window: Some(v1::BackgroundWork {
            late_changes,
            walked_changes,
            given_bytes,
            settled_keys,
            compared_rows,
            scrubbed_rows,
            time_us: us,
        }),
    }
}

fn scrub(scrub: &ScrubStatus) -> v1::ScrubStatus {
    let percent = u128::from(scrub.passed) * 100 / u128::from(scrub.keys.max(1));
    v1::ScrubStatus {
        round_started_ms: scrub.round_started_ms,
        percent: u32::try_from(percent.min(100)).unwrap_or(100),
        passed_keys: scrub.passed,
        keys: scrub.keys,
        last_round_ms: scrub.last_round_ms,
        damaged_found: scrub.damaged_found,
        needed_keys_per_second: scrub.needed_per_second,
        most_keys_per_second: scrub.most_per_second,
        in_time: scrub.in_time,
    }
}

fn degraded_scopes(published: &Published) -> Vec<v1::DegradedScope> {
    let degraded = published.status.degraded.iter().map(|degraded| v1::DegradedScope {
        scope: degraded.scope.as_str().to_owned(),
        keys: degraded.keys,
        problem: degraded.problem.clone(),
    });
    degraded.collect()
}

fn long_histories(published: &Published) -> Vec<v1::LongHistory> {
    let long = published.status.long_histories.iter().map(|long| v1::LongHistory {
        scope: long.scope.as_str().to_owned(),
        key: long.key.clone(),
        history_bytes: long.bytes.0,
        limit_bytes: long.bytes.1,
        history_changes: long.changes.0,
        limit_changes: long.changes.1,
    });
    long.collect()
}

impl Inner {
    /// How the node is.
    pub(super) async fn status(&self) -> Result<v1::GetStatusResponse, Problem> {
        let published = self.handle.published();
        let status = &published.status;
        let tally = &published.tally;
        let backlogs = self.backlogs(&published).await?;
        let mut links: Vec<v1::LinkStatus> =
            status.links.iter().zip(backlogs).map(|(link, backlog)| self.link(link, backlog)).collect();
        links.sort_by(|a, b| a.peer.cmp(&b.peer));
        Ok(v1::GetStatusResponse {
            calls: Some(self.calls()),
            disputed_places: status.disputed_places,
            node: Some(self.node_status(&published)),
            store: Some(v1::StoreStatus {
                engine: self.engine.to_owned(),
                durable: self.durable,
                store_id: status.store_id.to_be_bytes().to_vec().into(),
                format_version: u32::try_from(STORE_FORMAT).unwrap_or(u32::MAX),
                commit_number: published.head.commit,
                log_floor: status.log_floor,
                log_changes: tally.log_changes,
                log_bytes: tally.log_bytes,
                visible_keys: tally.keys.alive.saturating_sub(status.expired_keys),
                expired_keys: status.expired_keys.min(tally.keys.alive),
                deleted_keys: tally.keys.deleted,
                stubs: tally.keys.stubs,
                parked_keys: tally.keys.parked,
                bytes: published.footprint.bytes,
                swept: status.counted,
            }),
            clock: Some(v1::ClockStatus {
                wall_ms: wall_ms(),
                stamp: status.stamp.as_u64(),
                reserved_until: Stamp::new(status.reserved_ms, 0).as_u64(),
                max_offset_ms: MAX_OFFSET_MS,
                peers_far_behind: self.peers_far_behind(&published),
            }),
            warnings: self.warnings(&published, &links),
            links,
            caches: caches(&published),
            queues: self.queues(&published),
            degraded_scopes: degraded_scopes(&published),
            long_histories: long_histories(&published),
            directory: Some(self.directory_status(&published)),
        })
    }

    /// What each peer lacks, in the order of the links; counted at most once a second.
    async fn backlogs(&self, published: &Arc<Published>) -> Result<Vec<Backlog>, Problem> {
        let mut counted = self.backlogs.lock().await;
        if let Some((at, backlogs)) = counted.as_ref()
            && at.elapsed() < COUNT_EVERY
        {
            return Ok(backlogs.clone());
        }
        let reader = published.clone();
        let backlogs = tokio::task::spawn_blocking(move || {
            reader.status.links.iter().map(|link| Backlog::count(link, &reader)).collect()
        });
        let backlogs: Result<Vec<Backlog>, StoreError> = backlogs.await.map_err(|_| stopping())?;
        let backlogs = backlogs.map_err(unreadable)?;
        *counted = Some((Instant::now(), backlogs.clone()));
        Ok(backlogs)
    }

    fn node_status(&self, published: &Published) -> v1::NodeStatus {
        let status = &published.status;
        let state = match &status.clock {
            _ if self.gate.is_closed() => v1::NodeState::Stopping,
            _ if published.rebuild.is_some() => v1::NodeState::Rebuilding,
            _ if status.fenced => v1::NodeState::Fenced,
            Err(_) => v1::NodeState::WaitingForClock,
            Ok(()) => v1::NodeState::Serving,
        };
        let now = self.handle.time().now();
        v1::NodeStatus {
            id: self.node.as_str().to_owned(),
            region: self.region.as_str().to_owned(),
            state: state.into(),
            state_since_ms: self.started.wall_ms,
            version: self.version.clone(),
            protocol_version: PROTOCOL_VERSION,
            uptime_ms: now.mono_us.saturating_sub(self.started.mono_us) / 1000,
            cluster: self.cluster.clone(),
            incarnation: status.origin.incarnation,
            origin: status.origin.to_string(),
            insecure: self.insecure,
            metrics: self.metrics.clone(),
            rebuild: published.rebuild.as_ref().map(rebuild),
            budget: Some(budget(&status.budget)),
            scrub: Some(scrub(&status.scrub)),
        }
    }

    fn link(&self, link: &LinkStatus, backlog: Backlog) -> v1::LinkStatus {
        let now = self.handle.time().now();
        let age_ms = |us: u64| now.mono_us.saturating_sub(us) / 1000;
        let line = self.traffic.line(&link.peer.node);
        let traffic = line.map(Line::counts).unwrap_or_default();
        let refusal = line.and_then(Line::refusal).filter(|_| !link.up);
        let state = match link.up {
            false if refusal.is_some() => v1::LinkState::Refused,
            false => v1::LinkState::Down,
            true if link.owes || backlog.changes > CURRENT_CHANGES => v1::LinkState::CatchingUp,
            true => v1::LinkState::Current,
        };
        let (offset, error) = link.offset_ms.unwrap_or((0, 0));
        v1::LinkStatus {
            peer: link.peer.node.as_str().to_owned(),
            region: link.peer.region.as_str().to_owned(),
            state: state.into(),
            state_since_ms: match &refusal {
                Some(refusal) => refusal.since_ms,
                None => now.wall_ms.saturating_sub(age_ms(link.since_us)),
            },
            last_heard_ms: link.last_heard_us.map(age_ms),
            round_trip_us: link.rtt_us.unwrap_or(0),
            clock_offset_us: offset.saturating_mul(1000),
            clock_offset_error_us: error.unsigned_abs().saturating_mul(1000),
            backlog_changes: backlog.changes,
            backlog_bytes: backlog.bytes,
            sent_changes: traffic.sent.0,
            sent_bytes: traffic.sent.1,
            received_changes: traffic.received.0,
            received_bytes: traffic.received.1,
            duplicate_changes: link.counted.duplicates,
            closed_stamp: link.closed.map_or(0, Stamp::as_u64),
            reconciliation: Some(v1::ReconciliationStatus {
                resumes: link.counted.resends,
                comparisons: link.counted.compared,
                mismatches: link.counted.unequal,
                vectors_exchanged: link.counted.vectors,
                changes_wanted: link.counted.wanted,
                overhead_bytes: traffic.overhead_bytes,
                owes: link.owes,
                inspections: link.counted.inspected,
                digests_differed: link.counted.digests_differed,
                keys_differed: link.counted.keys_differed,
                keys_repaired: link.counted.keys_repaired,
            }),
            problem: match refusal {
                _ if link.up => String::new(),
                Some(refusal) => refusal.reason,
                None => "no connection".to_owned(),
            },
        }
    }

    /// What clients did.
    fn calls(&self) -> v1::CallCounts {
        let (writes, reads, failed) = self.telemetry.metrics().of_clients();
        v1::CallCounts { writes, reads, failed }
    }

    fn peers_far_behind(&self, published: &Published) -> u32 {
        let far = |link: &&LinkStatus| {
            link.offset_ms.is_some_and(|(offset, error)| offset.saturating_add(error) < -FENCE_OFFSET_MS)
        };
        published.status.links.iter().filter(far).count() as u32 // a cluster has at most 4096 nodes
    }

    fn queues(&self, published: &Published) -> Vec<v1::QueueStatus> {
        let queue = |name: &str, (length, limit): (usize, usize), unit: &str, times_full, when_full: &str| {
            v1::QueueStatus {
                name: name.to_owned(),
                length: length as u64,
                limit: limit as u64,
                unit: unit.to_owned(),
                when_full: when_full.to_owned(),
                times_full,
            }
        };
        let status = &published.status;
        let scans = CONCURRENT_SCANS - self.scans.available_permits();
        let mut queues = vec![
            queue(
                "calls",
                (self.gate.running(), CONCURRENT_CALLS),
                "items",
                self.gate.shed(),
                "a call is refused (OVERLOADED)",
            ),
            queue(
                "calls waiting for the replica",
                self.handle.calls_waiting(),
                "items",
                self.handle.calls_shed(),
                "a call is refused (OVERLOADED)",
            ),
            queue(
                "scans",
                (scans, CONCURRENT_SCANS),
                "items",
                self.scans_refused.load(Ordering::Relaxed),
                "a scan is refused (OVERLOADED)",
            ),
            queue(
                "histories",
                (CONCURRENT_HISTORIES - self.histories.available_permits(), CONCURRENT_HISTORIES),
                "items",
                self.histories_refused.load(Ordering::Relaxed),
                "a call about the past is refused (OVERLOADED)",
            ),
            queue(
                "writes waiting for other regions",
                (status.waiting, WAITING_WRITES),
                "items",
                status.times_full.waiting,
                "a write that has to wait is refused (OVERLOADED)",
            ),
            queue(
                "changes waiting for others",
                (status.pending.1, PENDING_BYTES),
                "bytes",
                status.times_full.pending,
                "a change is dropped and sent again later",
            ),
            queue(
                "watches",
                self.hub.watches(),
                "items",
                self.hub.refused(),
                "a watch is refused (TOO_MANY_WATCHES)",
            ),
        ];
        if let Some((length, limit, dropped)) = self.telemetry.queue() {
            queues.push(queue("spans to export", (length, limit), "items", dropped, "a span is dropped"));
        }
        queues
    }

    /// How this node follows the directory.
    fn directory_status(&self, published: &Published) -> v1::DirectoryStatus {
        let view = self.directory.view();
        let stored = || published.records.all_stored();
        let moving = stored().filter(|record| record.goal.is_some() || !record.members.is_stable());
        v1::DirectoryStatus {
            voters: view.voters.iter().map(|voter| voter.as_str().to_owned()).collect(),
            leader: view.leader.map(|leader| leader.as_str().to_owned()).unwrap_or_default(),
            revision: view.revision,
            informed: view.informed,
            waiting: view.waiting().unwrap_or_default().to_owned(),
            stored_records: stored().count() as u64,
            moving: moving.take(SHOWN_MOVES).map(|record| record.scope.name.as_str().to_owned()).collect(),
        }
    }

    fn warnings(&self, published: &Published, links: &[v1::LinkStatus]) -> Vec<v1::Warning> {
        let warning =
            |name: &str, message: String, since_ms| v1::Warning { name: name.to_owned(), message, since_ms };
        let mut warnings = Vec::new();
        let started = self.started.wall_ms;
        if !self.durable {
            let message = "this node keeps everything in memory: nothing survives its stop";
            warnings.push(warning("not_durable", message.to_owned(), started));
        }
        if self.insecure {
            let message = "this node listens beyond loopback without TLS: put it behind a network you trust";
            warnings.push(warning("insecure", message.to_owned(), started));
        }
        let malformed = self.telemetry.malformed();
        if malformed > 0 {
            let message = format!("{malformed} calls came with a malformed traceparent, which was ignored");
            warnings.push(warning("traceparent_malformed", message, started));
        }
        let parked = published.tally.keys.parked;
        if parked > 0 {
            let message = format!(
                "{parked} keys cannot be shown: reads of them answer KEY_PARKED; other regions may show them; `tropism \
                 parked list` names them"
            );
            warnings.push(warning("keys_parked", message, started));
        }
        if let Some(dropped) = &published.status.dropped {
            let message = format!(
                "what was kept of parked keys was dropped here by hand: {} changes, {} times, the last in scope {}; the \
                 values of such keys may differ from those of other regions, which this node takes for equal",
                dropped.changes, dropped.keys, dropped.scope
            );
            warnings.push(warning("changes_dropped", message, dropped.last_ms));
        }
        let scrub = &published.status.scrub;
        if !scrub.in_time {
            let message = format!(
                "not every value is read again within a day: {} keys a second would be needed, {} are the most; what \
                 rots may stay unseen for longer",
                scrub.needed_per_second, scrub.most_per_second
            );
            warnings.push(warning("scrub_late", message, scrub.round_started_ms.unwrap_or(started)));
        }
        for link in links.iter().filter(|link| link.state() == v1::LinkState::Down) {
            let message = format!(
                "there is no link to {} in region {}: what is written there is not seen here; look at that node and \
                 the network",
                link.peer, link.region
            );
            warnings.push(warning("link_down", message, link.state_since_ms));
        }
        for link in links.iter().filter(|link| link.state() == v1::LinkState::Refused) {
            warnings.push(warning("link_refused", link.problem.clone(), link.state_since_ms));
        }
        warnings.sort_by_key(|warning| warning.since_ms);
        warnings
    }

    /// Round trips in ms as this node's links measure them; of several nodes in a region the shortest.
    fn measured(&self) -> BTreeMap<RegionName, f64> {
        let mut measured = BTreeMap::new();
        for link in &self.handle.published().status.links {
            let Some(us) = link.rtt_us else { continue };
            let ms = us as f64 / 1000.0; // exact below 2^53 us
            let shortest = measured.entry(link.peer.region.clone()).or_insert(ms);
            *shortest = shortest.min(ms);
        }
        measured
    }

    /// All nodes, by region and id.
    fn nodes(&self) -> Vec<v1::Node> {
        let mut nodes: BTreeMap<(String, String), v1::Node> = BTreeMap::new();
        let mut add = |id: &str, region: &str| {
            let node = v1::Node { id: id.to_owned(), region: region.to_owned(), ..v1::Node::default() };
            nodes.entry((region.to_owned(), id.to_owned())).or_insert(node);
        };
        add(self.node.as_str(), self.region.as_str());
        for peer in &self.peers {
            add(peer.node.as_str(), peer.region.as_str());
        }
        for node in self.regions.nodes() {
            add(&node.id, node.region.as_str());
        }
        let published = self.handle.published();
        let mut nodes: Vec<v1::Node> = nodes.into_values().collect();
        for node in &mut nodes {
            let configured = self.regions.nodes().iter().find(|configured| configured.id == node.id);
            node.this_node = node.id == self.node.as_str();
            node.endpoint = match configured {
                _ if node.this_node => self.endpoint.clone(),
                Some(configured) => format!("http://{}", configured.client),
                None => String::new(),
            };
            node.linked = published.status.links.iter().any(|l| l.up && l.peer.node.as_str() == node.id);
            if node.this_node {
                node.incarnation = published.status.origin.incarnation;
            }
        }
        nodes
    }
}
