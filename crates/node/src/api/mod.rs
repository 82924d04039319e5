//! The API of a node: what clients call.
//!
//! [`Api`] answers from the last synced state that the driver published ([`Handle::published`]): a read takes no lock,
//! asks nobody and copies no value. A write is checked here as far as that needs no state (`write`) and goes to the
//! replica. Streams read in portions (`scan`) or follow the log (`watch`, fed by the one reader of `hub`). What
//! every call has in common is here: the scope and its rule, waiting for what a token names, and who answered.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Extensions, Request};
use tracing::Span;
use tropism_crdt::NodeId;
use tropism_placement::{
    Kind, RULE_EPOCH, RegionName, Regions, Rules, ScopeId, ScopeName, ShardId, shard_index,
};
use tropism_replica::{Now, Peer, RebuildStatus};
use tropism_storage::{RebuildCause, RebuildRow, Space, StagedKey, StoreError};
use tropism_wire::limits::MAX_MESSAGE_BYTES;
use tropism_wire::v1::cluster_service_server::ClusterServiceServer;
use tropism_wire::v1::history_service_server::HistoryServiceServer;
use tropism_wire::v1::parked_service_server::ParkedServiceServer;
use tropism_wire::v1::placement_service_server::PlacementServiceServer;
use tropism_wire::v1::scope_service_server::ScopeServiceServer;
use tropism_wire::v1::state_service_server::StateServiceServer;
use tropism_wire::{Problem, Reason, from_proto, v1};

use crate::directory::Directory;
use crate::driver::{Handle, Published, wall_ms};
use crate::placement::Placement;
use crate::telemetry::Telemetry;
use crate::telemetry::calls::{CallSpan, Followed};
use crate::token::{Seal, Token};
use crate::traffic::Traffic;

mod admission;
mod away;
mod cluster;
mod conflicts;
mod history;
mod hub;
mod metrics;
mod parked;
mod placement;
mod scan;
mod scope;
mod state;
#[cfg(test)]
mod tests;
mod value;
mod verify;
mod watch;
mod write;

pub use admission::CONCURRENT_CALLS;
pub(crate) use away::Away;
pub(crate) use scope::scope_bytes;

use admission::{Admitted, Deadline, Gate};
use cluster::Backlog;
use history::CONCURRENT_HISTORIES;
use hub::Hub;

/// Session tokens longer than this, in bytes, are searched for entries that are stable by now: a short one is not worth
/// the look into the log.
const LONG_TOKEN_BYTES: usize = 1 << 10;
/// Scans that run at once: each holds up to three messages of 256 KiB.
const CONCURRENT_SCANS: usize = 256;

/// What an [`Api`] is made of.
pub struct ApiConfig {
    /// The way to the replica and its published state.
    pub handle: Handle,
    /// Which scopes exist and where they are held.
    pub rules: Arc<Rules>,
    /// The regions, their nodes and round trips.
    pub regions: Arc<Regions>,
    /// Name of the cluster: tokens of another one are refused.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
    /// Its region.
    pub region: RegionName,
    /// URL at which clients reach this node; may be empty.
    pub endpoint: String,
    /// URL at which metrics are scraped; empty when they are not.
    pub metrics: String,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// What goes over the links to them.
    pub traffic: Arc<Traffic>,
    /// Name of the engine: `disk` or `memory`.
    pub engine: &'static str,
    /// Whether anything survives the process.
    pub durable: bool,
    /// Whether the node listens beyond loopback without TLS.
    pub insecure: bool,
    /// Version of the program, with the commit it was built from.
    pub version: String,
    /// Most watches at once.
    pub watches: usize,
    /// What may wait for one watcher, in bytes.
    pub watch_buffer_bytes: usize,
    /// Where traces go.
    pub telemetry: Telemetry,
    /// Where changes of placement records are decided.
    pub directory: Directory,
    /// What is counted, and why scopes are where they are.
    pub placement: Placement,
    /// The ways to nodes that serve what this one does not.
    pub(crate) away: Away,
}

/// The services of a node. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

/// What all calls share; nothing of it is public.
#[doc(hidden)]
pub struct Inner {
    handle: Handle,
    rules: Arc<Rules>,
    regions: Arc<Regions>,
    cluster: String,
    node: NodeId,
    region: RegionName,
    endpoint: String,
    metrics: String,
    peers: Vec<Peer>,
    traffic: Arc<Traffic>,
    engine: &'static str,
    durable: bool,
    insecure: bool,
    version: String,
    started: Now,
    /// Where each node is.
    homes: BTreeMap<NodeId, RegionName>,
    seal: Seal,
    gate: Gate,
    scans: Arc<Semaphore>,
    scans_refused: AtomicU64,
    histories: Arc<Semaphore>,
    histories_refused: AtomicU64,
    /// What peers lack, and when that was counted.
    backlogs: tokio::sync::Mutex<Option<(Instant, Vec<Backlog>)>>,
    hub: Arc<Hub>,
    telemetry: Telemetry,
    directory: Directory,
    placement: Placement,
    away: Away,
}

impl Deref for Api {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Api {
    /// The services over a running replica.
    pub fn new(config: ApiConfig) -> Self {
        let mut homes: BTreeMap<NodeId, RegionName> =
            config.peers.iter().map(|peer| (peer.node, peer.region.clone())).collect();
        homes.insert(config.node, config.region.clone());
        let handle = config.handle.clone();
        let unready = move || handle.published().rebuild.as_ref().map(rebuilding);
        let hub = Hub::new(config.handle.clone(), homes.clone(), config.watches, config.watch_buffer_bytes);
        Self(Arc::new(Inner {
            started: config.handle.time().now(),
            handle: config.handle,
            rules: config.rules,
            regions: config.regions,
            seal: Seal::new(&config.cluster),
            cluster: config.cluster,
            node: config.node,
            region: config.region,
            endpoint: config.endpoint,
            metrics: config.metrics,
            peers: config.peers,
            traffic: config.traffic,
            engine: config.engine,
            durable: config.durable,
            insecure: config.insecure,
            version: config.version,
            homes,
            gate: Gate::new(unready),
            scans: Arc::new(Semaphore::new(CONCURRENT_SCANS)),
            scans_refused: AtomicU64::new(0),
            histories: Arc::new(Semaphore::new(CONCURRENT_HISTORIES)),
            histories_refused: AtomicU64::new(0),
            backlogs: tokio::sync::Mutex::default(),
            hub: Arc::new(hub),
            telemetry: config.telemetry,
            directory: config.directory,
            placement: config.placement,
            away: config.away,
        }))
    }

    /// The six services with their limits, for a server to add to what else it offers. The server lets at least 16 KiB
    /// of headers through, so that too much metadata is refused in words.
    pub fn routes(&self) -> Routes {
        let state = StateServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let scope = ScopeServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let cluster = ClusterServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let parked = ParkedServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let placement =
            PlacementServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let history = HistoryServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (gate, telemetry) = (&self.gate, &self.telemetry);
        Routes::new(Followed::new(Admitted::new(state, gate.clone(), telemetry), telemetry))
            .add_service(Followed::new(Admitted::new(scope, gate.clone(), telemetry), telemetry))
            .add_service(Followed::new(Admitted::new(placement, gate.clone(), telemetry), telemetry))
            .add_service(Followed::new(Admitted::new(history, gate.clone(), telemetry), telemetry))
            .add_service(Followed::new(Admitted::new(parked, gate.clone(), telemetry), telemetry))
            .add_service(Followed::new(Admitted::new(cluster, gate.clone(), telemetry).always(), telemetry))
    }

    /// What other nodes forward, for the server of the links: the services about scopes, for nodes of the cluster only.
    pub(crate) fn forwarded(&self) -> Routes {
        let check = |api: &Self| {
            let api = api.clone();
            move |request: Request<()>| api.away.check(request.metadata()).map(|()| request)
        };
        let state = StateServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let placement =
            PlacementServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let history = HistoryServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (gate, telemetry) = (&self.gate, &self.telemetry);
        let history = Followed::new(Admitted::new(history, gate.clone(), telemetry), telemetry);
        let state = Followed::new(Admitted::new(state, gate.clone(), telemetry), telemetry);
        let placement = Followed::new(Admitted::new(placement, gate.clone(), telemetry), telemetry);
        Routes::new(InterceptedService::new(state, check(self)))
            .add_service(InterceptedService::new(placement, check(self)))
            .add_service(InterceptedService::new(history, check(self)))
    }

    /// The way to the replica.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The node stops: new calls are refused, but for those about the cluster, and watches end with their resume tokens.
    pub fn stop(&self) {
        self.gate.close();
        self.hub.stop();
    }

    /// Whether no call runs, no scan and no watch.
    pub fn is_idle(&self) -> bool {
        let scans = CONCURRENT_SCANS - self.scans.available_permits();
        (self.gate.running(), self.hub.watches().0, scans) == (0, 0, 0)
    }
}

/// A scope that this node serves.
pub(crate) struct Served<'a> {
    id: ScopeId,
    kind: Kind,
    spread: u16,
    serving: Cow<'a, [RegionName]>,
    /// Of the record that says so.
    epoch: u64,
}

impl Served<'_> {
    /// The shard of a key.
    fn shard(&self, key: &str) -> ShardId {
        ShardId::of(&self.id, shard_index(key, self.spread))
    }

    /// All shards.
    fn shards(&self) -> Vec<ShardId> {
        (0..self.spread).map(|index| ShardId::of(&self.id, index)).collect()
    }
}

/// What came with a call beside its message.
pub(crate) struct Call {
    metadata: tonic::metadata::MetadataMap,
    deadline: Deadline,
    /// The call's span, if it is sampled.
    span: Option<Span>,
    /// Bytes of the message, of a call that writes.
    bytes: usize,
}

impl Call {
    /// Splits a request into what came with it and its message.
    fn of<T>(request: Request<T>) -> Result<(Self, T), Problem> {
        let (metadata, extensions, message) = request.into_parts();
        let deadline = Self::deadline(&extensions);
        deadline.check()?;
        let span = extensions.get::<CallSpan>().map(|CallSpan(span)| span.clone());
        Ok((Self { metadata, deadline, span, bytes: 0 }, message))
    }

    /// The same of a call that writes.
    fn sized<T: Message>(request: Request<T>) -> Result<(Self, T), Problem> {
        let (call, message) = Self::of(request)?;
        Ok((Self { bytes: message.encoded_len(), ..call }, message))
    }

    fn deadline(extensions: &Extensions) -> Deadline {
        let named = extensions.get::<Deadline>().copied();
        named.unwrap_or_else(|| Deadline::after(from_proto::deadline(None))) // called without a server around
    }
}

impl Inner {
    /// The scope with this name, if it is served here.
    fn served(&self, field: &str, name: &str) -> Result<Served<'_>, Problem> {
        let name = from_proto::scope_name(field, name)?;
        let published = self.handle.published();
        let served = match published.records.stored(&name) {
            None => {
                let Some(rule) = self.rules.find(&name) else {
                    let message = format!("no policy rule matches scope \"{name}\", so it cannot be created");
                    return Err(Problem::failed_precondition(Reason::NoRule, message).at(field));
                };
                Served {
                    id: ScopeId { name, incarnation: 0 },
                    kind: rule.kind,
                    spread: rule.spread,
                    serving: Cow::Borrowed(&rule.regions),
                    epoch: RULE_EPOCH,
                }
            }
            Some(stored) if stored.dropped => return Err(dropped(&name).at(field)),
            Some(stored) => Served {
                id: stored.scope.clone(),
                kind: stored.kind,
                spread: stored.spread,
                serving: Cow::Owned(stored.members.serving.clone()),
                epoch: stored.epoch(),
            },
        };
        if !served.serving.contains(&self.region) {
            return Err(not_served(&served.id.name, &self.region, &served.serving));
        }
        // Neighbours in the region hold what it holds, and have filled the store.
        if served.serving.len() == 1
            && !self.peers.iter().any(|peer| peer.region == self.region)
            && let Some(lost) = &published.lost
        {
            return Err(store_lost(&served.id.name, &self.region, lost));
        }
        Ok(served)
    }

    /// Whether a scope that was served under the record of this epoch is served in a later state, too: what is read there
    /// may be what is left of it.
    fn still_served(&self, id: &ScopeId, epoch: u64, published: &Published) -> Result<(), Problem> {
        if published.records.epoch(&id.name) == epoch {
            return Ok(()); // nearly always
        }
        match published.records.stored(&id.name) {
            Some(record) if record.dropped || record.scope != *id => Err(dropped(&id.name).at("scope")),
            Some(record) if !record.members.serving.contains(&self.region) => {
                Err(not_served(&id.name, &self.region, &record.members.serving))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The session token of a call.
    fn token(&self, field: &str, body: &Bytes, call: &Call) -> Result<Token, Problem> {
        let bytes = from_proto::token(field, body, &call.metadata)?;
        self.seal.read(&bytes).map_err(|error| {
            let message =
                format!("{field} is no session token of this cluster: {error}; begin a new session");
            Problem::invalid_argument(Reason::BadToken, field, message)
        })
    }

    /// The published state, once it includes what the token says of these shards.
    async fn reached(
        &self,
        token: &Token,
        shards: &[ShardId],
        deadline: Deadline,
    ) -> Result<Arc<Published>, Problem> {
        if !shards.iter().any(|shard| token.get(shard).is_some()) {
            return Ok(self.handle.published());
        }
        let mut commits = self.handle.commits();
        loop {
            commits.borrow_and_update(); // before looking: what comes after is not missed
            let published = self.handle.published();
            let missing = token.missing(published.snapshot.as_ref(), shards).map_err(unreadable)?;
            if missing.is_empty() {
                return Ok(published);
            }
            match timeout_at(deadline.give_up, commits.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(stopping()),
                Err(_) => return Err(self.token_ahead(&missing)),
            }
        }
    }

    /// The published state, once it includes what the token says, with nothing staged of what is to be read: these keys, or
    /// the shards as a whole.
    async fn readable(
        &self,
        scope: &Served<'_>,
        token: &Token,
        shards: &[ShardId],
        keys: Option<&[(ShardId, String)]>,
        deadline: Deadline,
    ) -> Result<Arc<Published>, Problem> {
        let mut commits = self.handle.commits();
        loop {
            let published = self.reached(token, shards, deadline).await?;
            self.still_served(&scope.id, scope.epoch, &published)?;
            if published.settling.is_empty() {
                return Ok(published); // nearly always
            }
            commits.borrow_and_update(); // before looking: what comes after is not missed
            let published = self.handle.published();
            let staged = staged(&published, shards, keys).map_err(unreadable)?;
            if staged.is_empty() {
                self.still_served(&scope.id, scope.epoch, &published)?;
                return Ok(published);
            }
            for (shard, key) in staged {
                self.handle.settle(shard, key).await;
            }
            match timeout_at(deadline.give_up, commits.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(stopping()),
                Err(_) => {
                    let message = "the scope came from another node as a whole and its keys are still being merged; try \
                                   again, or another region";
                    return Err(Problem::unavailable(Reason::Overloaded, Duration::from_secs(1), message));
                }
            }
        }
    }

    /// Names who made what is missing, and where they are.
    fn token_ahead(&self, missing: &BTreeSet<NodeId>) -> Problem {
        let names: Vec<String> = missing
            .iter()
            .map(|node| match self.homes.get(node) {
                Some(region) => format!("{node} in region {region}"),
                None => format!("{node}, which this node does not know"),
            })
            .collect();
        let nodes: Vec<&str> = missing.iter().map(NodeId::as_str).collect();
        let regions: BTreeSet<&str> =
            missing.iter().filter_map(|node| self.homes.get(node)).map(RegionName::as_str).collect();
        let regions: Vec<&str> = regions.into_iter().collect();
        let message = format!(
            "the token names writes of {} that have not arrived at {} in region {} in time; they are there",
            names.join(", "),
            self.node,
            self.region
        );
        Problem::unavailable(Reason::TokenAhead, Duration::from_secs(1), message)
            .with("nodes", nodes.join(","))
            .with("regions", regions.join(","))
    }

    /// Who answers, for a scope that these regions serve.
    fn answer(&self, serving: &[RegionName], published: &Published, token: Bytes) -> v1::Answer {
        v1::Answer {
            region: self.region.as_str().to_owned(),
            node: self.node.as_str().to_owned(),
            token,
            staleness_ms: staleness_ms(serving, published),
        }
    }

    /// The bytes of what a session has seen. Entries that are stable are left out where that is known cheaply; a long
    /// token is searched for them.
    fn seen(&self, mut token: Token, published: &Published) -> Bytes {
        if token.is_empty() {
            return Bytes::new();
        }
        let bytes = self.seal.token(&token);
        let everything = published.stable_commit >= published.head.commit;
        if bytes.len() <= LONG_TOKEN_BYTES && !everything {
            return bytes;
        }
        match forget_stable(&mut token, published) {
            Ok(()) => self.seal.token(&token),
            Err(_) => bytes, // a node that cannot read its log has other worries, and the token is right
        }
    }
}

/// The store is being filled: clients go elsewhere.
fn rebuilding(rebuild: &RebuildStatus) -> Problem {
    let why = cause(&rebuild.cause);
    let message = format!(
        "this node's store is being filled by its peers ({} %): {why}; it serves nobody before that is over; use another \
         region meanwhile",
        rebuild.percent
    );
    Problem::unavailable(Reason::NotReady, Duration::from_secs(1), message)
        .with("percent", rebuild.percent.to_string())
}

/// Nobody could give back what this region alone held.
fn store_lost(scope: &ScopeName, region: &RegionName, lost: &RebuildRow) -> Problem {
    let message = format!(
        "scope \"{scope}\" was held by region {region} alone, and its store is gone ({}), so nobody could fill it again; \
         put the store back, or start the node once with --accept-loss to go on without what was there",
        cause(&lost.cause)
    );
    Problem::data_loss(Reason::StoreLost, message).at("scope")
}

/// Why a store has to be filled, in words.
pub(crate) fn cause(cause: &RebuildCause) -> String {
    match cause {
        RebuildCause::New => "it is new".to_owned(),
        RebuildCause::Replaces { seen_by } => {
            format!("it is new, and {seen_by} has seen an earlier one of this node")
        }
        RebuildCause::SetAside { reason } => format!("the one before was set aside: {reason}"),
    }
}

/// What has to be merged before these keys, or all of the shards, can be read.
fn staged(
    published: &Published,
    shards: &[ShardId],
    keys: Option<&[(ShardId, String)]>,
) -> Result<Vec<(ShardId, Option<String>)>, StoreError> {
    let settling = |shard: &ShardId| published.settling.contains(shard);
    let Some(keys) = keys else {
        return Ok(shards.iter().filter(|shard| settling(shard)).map(|shard| (*shard, None)).collect());
    };
    let mut staged = Vec::new();
    for (shard, key) in keys.iter().filter(|(shard, _)| settling(shard)) {
        let piece = StagedKey { shard: *shard, key, piece: 0 }.encode();
        if published.snapshot.get(Space::Staged, piece.as_bytes())?.is_some() {
            staged.push((*shard, Some(key.clone())));
        }
    }
    Ok(staged)
}

/// Leaves out of a token what every member has.
fn forget_stable(token: &mut Token, published: &Published) -> Result<(), StoreError> {
    token.forget_stable(published.snapshot.as_ref(), published.stable_commit, published.head.commit)
}

/// Everything acknowledged in these regions longer ago than this is included, in ms; the greatest number while one of
/// them has not been heard since this node started.
fn staleness_ms(serving: &[RegionName], published: &Published) -> u64 {
    let now = wall_ms();
    let links = published.status.links.iter().filter(|link| serving.contains(&link.peer.region));
    links
        .map(|link| link.closed.map_or(u64::MAX, |closed| now.saturating_sub(closed.unix_ms())))
        .max()
        .unwrap_or(0)
}

/// The scope is elsewhere.
fn not_served(scope: &ScopeName, region: &RegionName, serving: &[RegionName]) -> Problem {
    let names: Vec<&str> = serving.iter().map(RegionName::as_str).collect();
    let names = names.join(",");
    let message = format!("region {region} does not serve scope \"{scope}\"; ask one of: {names}");
    Problem::unavailable(Reason::NotServedHere, Duration::from_secs(1), message).with("regions", names)
}

/// The scope is gone, or the one that was meant is.
fn dropped(scope: &ScopeName) -> Problem {
    let message = format!("scope \"{scope}\" was dropped with all its keys; CreateScope creates it anew");
    Problem::failed_precondition(Reason::ScopeDropped, message)
}

/// The node is on its way out.
fn stopping() -> Problem {
    Problem::unavailable(Reason::NotReady, Duration::from_secs(1), "the node is stopping; ask another one")
}

/// A read failed.
fn unreadable(error: StoreError) -> Problem {
    match error {
        StoreError::Damaged { .. } => {
            Problem::data_loss(Reason::KeyParked, format!("what is stored cannot be shown: {error}"))
        }
        StoreError::Engine(error) => Problem::unavailable(
            Reason::NotReady,
            Duration::from_secs(1),
            format!("the store cannot be read; ask another node: {}: {}", error.doing, error.problem),
        ),
    }
}
