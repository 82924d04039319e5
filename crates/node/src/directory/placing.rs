//! Placement's traffic: counts to stewards, and what this node decides as one to the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, info};
use tropism_crdt::NodeId;
use tropism_placement::{Counted, Move, PlacementRecord, RULE_EPOCH, RegionName, ScopeName, StoredRecord};
use tropism_wire::v1;
use tropism_wire::v1::directory_question::Question;

use super::{ASK_TIME, DECIDE_TIME, Node};
use crate::api::scope_bytes;
use crate::driver::Published;

/// How often it is looked what is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Counts in one question: 1.8 MB at most.
const COUNTS_PER_QUESTION: usize = 10_000;
/// Units that are looked at before others get their turn on the thread: some milliseconds.
const UNITS_AT_ONCE: usize = 64;

/// Nodes that are being told.
type Telling = Arc<Mutex<BTreeSet<NodeId>>>;

impl Node {
    /// Tells stewards what was counted, and decides about what this node is the steward of.
    pub(super) async fn place(self: &Arc<Self>) {
        let placement = &self.config.placement;
        placement.adopted(self.handle.published().records.all_stored());
        let mut told = Instant::now();
        let telling = Telling::default();
        loop {
            sleep(LOOK_EVERY).await;
            let published = self.handle.published();
            if published.rebuild.is_some() {
                continue;
            }
            if told.elapsed() >= placement.report_every() {
                told = Instant::now();
                self.tell(&published, &telling);
            }
            drop(published);
            placement.tick();
            if placement.moves() {
                self.decide_due().await;
            }
        }
    }

    /// Tells every node what was counted of the scopes that it is the steward of, or that it was nothing. A node that is still
    /// being told from last time misses this.
    fn tell(self: &Arc<Self>, published: &Published, telling: &Telling) {
        let mut counts = self.config.placement.take(published);
        let own = counts.remove(&self.config.node).unwrap_or_default();
        self.config.placement.told(&self.config.node, &own);
        let about = v1::CountsQuestion {
            counts: Vec::new(),
            round_trips: measured(published),
            free_bytes: self.free_bytes().unwrap_or_default(),
        };
        self.config.placement.told_by(&self.config.node, &about);
        for peer in self.asker.peers.keys().copied() {
            if !telling.lock().unwrap_or_else(PoisonError::into_inner).insert(peer) {
                continue;
            }
            let counts = counts.remove(&peer).unwrap_or_default();
            let (node, telling, about) = (self.clone(), telling.clone(), about.clone());
            tokio::spawn(async move {
                node.tell_peer(&peer, &counts, &about).await;
                telling.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
            });
        }
    }

    async fn tell_peer(&self, peer: &NodeId, counts: &[Counted], about: &v1::CountsQuestion) {
        let mut pages = counts.chunks(COUNTS_PER_QUESTION);
        let mut page = pages.next().unwrap_or_default();
        loop {
            let question =
                v1::CountsQuestion { counts: self.config.placement.message(page), ..about.clone() };
            if let Err(unreachable) = self.asker.ask(peer, Question::Counts(question), ASK_TIME).await {
                debug!(%peer, %unreachable, "what was counted is not told");
                return;
            }
            match pages.next() {
                Some(next) => page = next,
                None => return,
            }
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(self.config.path.as_deref()?.parent()?).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Decides about what is due.
    async fn decide_due(self: &Arc<Self>) {
        let placement = &self.config.placement;
        let mut looked_at = 0;
        while let Some((unit, scopes)) = placement.next_due() {
            let published = self.handle.published();
            if placement.steward_of(&unit, &published) != Some(self.config.node) {
                continue;
            }
            looked_at += 1;
            if looked_at % UNITS_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            let bytes = self.bytes(&published, &scopes).await;
            if let Some(decided) = placement.decide(&unit, &published.records, bytes) {
                tokio::spawn(self.clone().carry_out(decided));
            }
        }
    }

    /// What scopes take in one region, as far as this node can tell.
    async fn bytes(&self, published: &Arc<Published>, scopes: &[ScopeName]) -> u64 {
        let placement = &self.config.placement;
        let mut bytes = 0_u64;
        for scope in scopes {
            let known = placement.size(scope);
            let size = match (known, published.records.record(scope)) {
                (Some(known), _) => known,
                (None, Some(record)) => {
                    let reader = published.clone();
                    let counted = tokio::task::spawn_blocking(move || scope_bytes(&reader, &record)).await;
                    let counted = counted.ok().and_then(Result::ok).unwrap_or_default();
                    placement.sized(scope, counted);
                    counted
                }
                (None, None) => 0,
            };
            bytes = bytes.saturating_add(size);
        }
        bytes
    }

    /// Has the directory send scopes on their way.
    async fn carry_out(self: Arc<Self>, decided: Move) {
        let placement = &self.config.placement;
        for (scope, goal) in decided.goals {
            let published = self.handle.published();
            let Some(record) = current(&published, &scope) else { continue };
            let to: Vec<&str> = goal.iter().map(RegionName::as_str).collect();
            info!(%scope, to = to.join(","), "the scope moves to its users");
            if let Err(undecided) = self.propose(record.bound_for(Some(goal)), DECIDE_TIME).await {
                placement.failed(&decided.unit, &format!("the directory did not take it up: {undecided}"));
                return;
            }
        }
    }
}

/// A scope's record as it is stored, or would be.
fn current(published: &Published, scope: &ScopeName) -> Option<StoredRecord> {
    match published.records.stored(scope) {
        Some(record) => Some(record.clone()).filter(|record| !record.dropped),
        None => {
            let rule = published.records.rules().find(scope)?;
            Some(StoredRecord::of(&PlacementRecord::implied(RULE_EPOCH, rule, scope)))
        }
    }
}

/// Round trips that this node's links measure; of several nodes in a region the shortest.
fn measured(published: &Published) -> Vec<v1::MeasuredRoundTrip> {
    let mut shortest: BTreeMap<&str, f64> = BTreeMap::new();
    for link in &published.status.links {
        let Some(us) = link.rtt_us else { continue };
        let ms = us as f64 / 1000.0; // exact below 2^53 us
        let known = shortest.entry(link.peer.region.as_str()).or_insert(ms);
        *known = known.min(ms);
    }
    let message = |(region, ms): (&str, f64)| v1::MeasuredRoundTrip { region: region.to_owned(), ms };
    shortest.into_iter().map(message).collect()
}
