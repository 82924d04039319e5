//! The closed list of what a span or a metric may be called and carry.
//!
//! Whoever makes one takes its names from here, and docs/operations/telemetry.md lists the same: a test compares them.
//! Keys, values, tokens and what clients wrote are in none of them.

/// Name of the service, the same for all nodes.
pub const SERVICE: &str = "tropism";
/// A span: a write's way through its own node, until the turn it is in is durable.
pub const COMMIT: &str = "commit";
/// A span: a peer's change is applied, until the turn it is in is durable.
pub const APPLY: &str = "apply";
/// A span: a call of a method that there is not.
pub const OTHER: &str = "_OTHER";

/// Resource: always `tropism`.
pub const SERVICE_NAME: &str = "service.name";
/// Resource: id of the node.
pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";
/// Resource: version of the program.
pub const SERVICE_VERSION: &str = "service.version";
/// Resource: id of the node.
pub const NODE: &str = "tropism.node";
/// Resource: region of the node.
pub const REGION: &str = "tropism.region";
/// Resource: name of the cluster.
pub const CLUSTER: &str = "tropism.cluster";

/// Call: always `grpc`.
pub const RPC_SYSTEM: &str = "rpc.system";
/// Call: full name of the service.
pub const RPC_SERVICE: &str = "rpc.service";
/// Call: name of the method.
pub const RPC_METHOD: &str = "rpc.method";
/// Call: the gRPC status as a number.
pub const RPC_STATUS: &str = "rpc.grpc.status_code";
/// Commit, apply: name of the scope.
pub const SCOPE: &str = "tropism.scope";
/// Apply: id of the node that made the change.
pub const ORIGIN: &str = "tropism.origin.node";
/// Apply: milliseconds from the change's stamp until it was applied, by the clocks of two nodes.
pub const LAG: &str = "tropism.lag_ms";

/// Spans beside those of calls, which are called `SERVICE/METHOD` by [`METHODS`].
pub const SPANS: &[&str] = &[COMMIT, APPLY, OTHER];

/// Every attribute of a span or of the resource.
pub const ATTRIBUTES: &[&str] = &[
    SERVICE_NAME,
    SERVICE_INSTANCE_ID,
    SERVICE_VERSION,
    NODE,
    REGION,
    CLUSTER,
    RPC_SYSTEM,
    RPC_SERVICE,
    RPC_METHOD,
    RPC_STATUS,
    SCOPE,
    ORIGIN,
    LAG,
];

/// Every method that clients call: service and method.
pub const METHODS: &[(&str, &str)] = &[
    ("tropism.v1.StateService", "Get"),
    ("tropism.v1.StateService", "BatchGet"),
    ("tropism.v1.StateService", "Put"),
    ("tropism.v1.StateService", "BatchPut"),
    ("tropism.v1.StateService", "Patch"),
    ("tropism.v1.StateService", "Increment"),
    ("tropism.v1.StateService", "BatchIncrement"),
    ("tropism.v1.StateService", "Delete"),
    ("tropism.v1.StateService", "Expire"),
    ("tropism.v1.StateService", "Scan"),
    ("tropism.v1.StateService", "Watch"),
    ("tropism.v1.StateService", "Stamp"),
    ("tropism.v1.ScopeService", "GetScope"),
    ("tropism.v1.ScopeService", "ListScopes"),
    ("tropism.v1.ScopeService", "VerifyScope"),
    ("tropism.v1.ScopeService", "DropScope"),
    ("tropism.v1.ScopeService", "CreateScope"),
    ("tropism.v1.ScopeService", "MoveScope"),
    ("tropism.v1.ScopeService", "HoldScope"),
    ("tropism.v1.PlacementService", "ExplainScope"),
    ("tropism.v1.PlacementService", "ListPlacementEvents"),
    ("tropism.v1.HistoryService", "GetHistory"),
    ("tropism.v1.HistoryService", "GetAt"),
    ("tropism.v1.HistoryService", "ListConflicts"),
    ("tropism.v1.ParkedService", "ListParked"),
    ("tropism.v1.ParkedService", "GetParked"),
    ("tropism.v1.ParkedService", "RetryParked"),
    ("tropism.v1.ParkedService", "DropParked"),
    ("tropism.v1.ClusterService", "GetStatus"),
    ("tropism.v1.ClusterService", "ListRegions"),
    ("tropism.v1.ClusterService", "ListNodes"),
    ("tropism.v1.ClusterService", "ListSpans"),
    ("tropism.v1.ClusterService", "SetTelemetry"),
];

/// Those of them that answer with a stream.
pub const STREAMS: &[&str] = &["Scan", "Watch"];

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from the start of the process on.
    Counter,
    /// What is now.
    Gauge,
    /// How often something was how large, from the start of the process on.
    Histogram,
}

impl Kind {
    /// As the exposition formats call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric as it is exposed.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, with unit; that of a counter ends with `_total`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means, one sentence.
    pub help: &'static str,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, labels, help }
}

/// Declares the metrics, and the list of all of them in the same order.
macro_rules! metrics {
    ($($name:ident = $metric:expr;)*) => {
        $(#[allow(missing_docs, reason = "its help says what it is")] pub static $name: Metric = $metric;)*

        /// Every metric, in the order in which they are exposed.
        pub static METRICS: &[&Metric] = &[$(&$name),*];
    };
}

/// Labels of what is told of each peer.
const PEER: &[&str] = &["peer", "peer_region"];
/// Labels of what is told of the way between two regions: here is where it goes to.
const BETWEEN: &[&str] = &["from_region", "to_region"];

metrics! {
    BUILD = gauge("tropism_build_info", &["version", "commit"], "Always 1; the program that runs.");
    NODE_INFO = gauge(
        "tropism_node_info",
        &["cluster", "region", "node", "engine"],
        "Always 1; which node this is.",
    );
    STARTED = gauge("process_start_time_seconds", &[], "When the process started, Unix time.");
    CPU = counter("process_cpu_seconds_total", &[], "CPU time that the process has used.");
    RESIDENT = gauge("process_resident_memory_bytes", &[], "Memory of the process.");
    OPEN_FDS = gauge("process_open_fds", &[], "File descriptors that are open.");
    MAX_FDS = gauge("process_max_fds", &[], "Most that may be.");
    STATE = gauge("tropism_node_state", &["state"], "1 for the state that the node is in, 0 for the others.");
    WARNING = gauge(
        "tropism_warnings",
        &["warning"],
        "How many warnings of this name `status` shows; absent: none.",
    );

    CALLS = counter(
        "rpc_server_calls_total",
        &["rpc_method", "rpc_response_status_code"],
        "Calls that ended, also those that were refused at the door.",
    );
    CALL_DURATION = histogram(
        "rpc_server_call_duration_seconds",
        &["rpc_method", "outcome"],
        "From a call's headers until its answer is ready, of streams until their end; `outcome` is `ok` or `error`.",
    );
    MALFORMED = counter(
        "tropism_traceparent_malformed_total",
        &[],
        "Calls whose `traceparent` was none and was ignored.",
    );

    REPLICATION_LAG = histogram(
        "tropism_replication_lag_seconds",
        BETWEEN,
        "Of each change that a peer made: from its stamp until it is durable and readable here, by the clocks of \
         two nodes; without changes that come within a whole shard.",
    );
    STALENESS = gauge(
        "tropism_replication_staleness_seconds",
        BETWEEN,
        "Everything that the region's nodes acknowledged longer ago than this is readable here; stays small while \
         nothing is written, absent until each of them was heard.",
    );

    LINK_UP = gauge(
        "tropism_link_up",
        PEER,
        "1 while a connection to the peer stands and it was heard lately.",
    );
    LINK_STATE = gauge(
        "tropism_link_state",
        &["peer", "peer_region", "state"],
        "1 for the state that the link is in, 0 for the others.",
    );
    LINK_SILENCE = gauge(
        "tropism_link_silence_seconds",
        PEER,
        "Time since anything was heard from the peer; absent when nothing ever was.",
    );
    LINK_RTT = gauge("tropism_link_round_trip_seconds", PEER, "Smoothed round trip; absent when unknown.");
    LINK_OFFSET = gauge(
        "tropism_link_clock_offset_seconds",
        PEER,
        "The peer's wall clock minus this node's; absent when unknown.",
    );
    LINK_OFFSET_ERROR = gauge(
        "tropism_link_clock_offset_error_seconds",
        PEER,
        "The offset is known within plus or minus this.",
    );
    LINK_BACKLOG_CHANGES = gauge(
        "tropism_link_backlog_changes",
        PEER,
        "Changes that the peer is not known to have, counted over 10 000 commits or 64 MiB.",
    );
    LINK_BACKLOG_BYTES = gauge("tropism_link_backlog_bytes", PEER, "Bytes of those changes.");
    LINK_CLOSED_AGE = gauge(
        "tropism_link_closed_age_seconds",
        PEER,
        "Everything that the peer made longer ago than this has been applied here; absent while that is not known.",
    );
    LINK_SENT_CHANGES = counter("tropism_link_sent_changes_total", PEER, "Changes sent.");
    LINK_SENT_BYTES = counter(
        "tropism_link_sent_bytes_total",
        PEER,
        "Bytes of the frames they were sent in, compressed.",
    );
    LINK_RECEIVED_CHANGES = counter("tropism_link_received_changes_total", PEER, "Changes received.");
    LINK_RECEIVED_BYTES = counter(
        "tropism_link_received_bytes_total",
        PEER,
        "Bytes of the frames they were received in, compressed.",
    );
    LINK_DUPLICATES = counter(
        "tropism_link_duplicate_changes_total",
        PEER,
        "Changes received that were here already.",
    );
    LINK_OVERHEAD = counter(
        "tropism_link_overhead_bytes_total",
        PEER,
        "Bytes of frames, both ways, that are neither changes nor heartbeats.",
    );
    LINKS_OMITTED = gauge(
        "tropism_links_omitted",
        &[],
        "Peers beyond the first 50 by id, of which no metric with the label `peer` tells.",
    );

    RESUMES = counter("tropism_reconcile_resumes_total", PEER, "Times the link resumed from a cursor.");
    COMPARISONS = counter("tropism_reconcile_comparisons_total", PEER, "Rounds of comparing vector hashes.");
    MISMATCHES = counter("tropism_reconcile_mismatches_total", PEER, "Rounds that found a difference.");
    VECTORS = counter("tropism_reconcile_vectors_total", PEER, "Shards whose vectors were exchanged.");
    WANTED = counter("tropism_reconcile_wanted_changes_total", PEER, "Changes asked for by range.");
    INSPECTIONS = counter(
        "tropism_reconcile_inspections_total",
        PEER,
        "Inspections of the keys of a shard that this node began.",
    );
    DIGESTS_DIFFERED = counter(
        "tropism_reconcile_digest_mismatches_total",
        PEER,
        "Shards whose digests differed although their vectors were equal: something had been lost, rotted or \
         miscomputed.",
    );
    KEYS_DIFFERED = counter(
        "tropism_reconcile_keys_differed_total",
        PEER,
        "Keys of which the peer sent another state.",
    );
    KEYS_REPAIRED = counter(
        "tropism_reconcile_keys_repaired_total",
        PEER,
        "Keys that such a state repaired here.",
    );

    COMMITS = counter("tropism_store_commits_total", &[], "Commits made durable.");
    COMMIT_WRITES = histogram(
        "tropism_store_commit_writes",
        &[],
        "Clients' writes that shared a commit, of commits with any.",
    );
    SYNC_DURATION = histogram(
        "tropism_store_sync_duration_seconds",
        &[],
        "How long it took to make a commit durable.",
    );
    STORE_BYTES = gauge(
        "tropism_store_bytes",
        &[],
        "Bytes of the store on disk, or in memory for the memory engine.",
    );
    LOG_CHANGES = gauge("tropism_store_log_changes", &[], "Changes in the log.");
    LOG_BYTES = gauge("tropism_store_log_bytes", &[], "Bytes of these changes.");
    KEYS = gauge(
        "tropism_keys",
        &["standing"],
        "Keys that are `visible`, `expired`, `deleted`, `stub` or `parked`: cannot be shown.",
    );
    DISPUTED = counter(
        "tropism_disputed_places_total",
        &[],
        "Places in documents at which a merge of changes left several values, equal ones too, of which one is shown; `tropism conflicts` lists those that still stand.",
    );
    DEGRADED = gauge(
        "tropism_degraded_scope_keys",
        &["scope"],
        "Parked keys of a scope, of the 20 scopes with the most.",
    );

    CLOCK_AHEAD = gauge(
        "tropism_clock_stamp_ahead_seconds",
        &[],
        "The last stamp minus the wall clock; below 0 while nothing is written.",
    );
    CLOCK_PEERS_BEHIND = gauge(
        "tropism_clock_peers_far_behind",
        &[],
        "Peers that this node's clock is ahead of by more than 80 % of the largest offset tolerated.",
    );
    CLOCK_MAX_OFFSET = gauge(
        "tropism_clock_max_offset_seconds",
        &[],
        "The largest offset tolerated between two nodes.",
    );

    CACHE_BYTES = gauge("tropism_cache_bytes", &["cache"], "Bytes held, estimated.");
    CACHE_LIMIT = gauge("tropism_cache_limit_bytes", &["cache"], "Most bytes it may hold.");
    CACHE_HITS = counter(
        "tropism_cache_hits_total",
        &["cache"],
        "Look-ups that found something; absent where the cache does not tell.",
    );
    CACHE_MISSES = counter(
        "tropism_cache_misses_total",
        &["cache"],
        "Look-ups that did not; absent where the cache does not tell.",
    );

    QUEUE_LENGTH = gauge("tropism_queue_length", &["queue", "unit"], "Items or bytes that wait.");
    QUEUE_LIMIT = gauge("tropism_queue_limit", &["queue", "unit"], "Most that may wait.");
    QUEUE_FULL = counter(
        "tropism_queue_full_total",
        &["queue"],
        "Times it was full and what `status` names was refused, shed or dropped.",
    );

    PACE = gauge(
        "tropism_background_pace_ratio",
        &[],
        "What background work may take of the time: 1 while nobody writes.",
    );
    PACE_LOWERED = counter(
        "tropism_background_lowered_total",
        &[],
        "Times the pace was lowered because clients' writes fared worse.",
    );
    SCRUB_PASSED = gauge(
        "tropism_scrub_passed_ratio",
        &[],
        "How much of the keys the round under way has read.",
    );
    SCRUB_DAMAGED = gauge(
        "tropism_scrub_damaged",
        &[],
        "Rows and shards found damaged by the round under way or the one before, whichever found more.",
    );
    SCRUB_IN_TIME = gauge("tropism_scrub_in_time", &[], "1 while every value is read again within a day.");
    REBUILD = gauge(
        "tropism_rebuild_ratio",
        &[],
        "How far the store is filled by its peers; absent when it need not be.",
    );
    DIRECTORY_REVISION = gauge("tropism_directory_revision", &[], "The revision of the directory that the node follows.");
    DIRECTORY_INFORMED = gauge("tropism_directory_informed", &[], "1 once the node has heard, since its start, of everything that the directory had at some time.");
    DIRECTORY_LEADER = gauge("tropism_directory_leader_known", &[], "1 while the node knows who leads the voters.");
    DIRECTORY_VOTERS = gauge("tropism_directory_voters", &[], "Nodes that vote, as far as the node knows.");
    DIRECTORY_WAITING = gauge("tropism_directory_waiting", &[], "1 while placement cannot change, as far as the node knows; `status` says why.");
    PLACEMENT_STORED = gauge("tropism_placement_stored_records", &[], "Scopes with a record of their own: that are not where their rule says, or were.");
    PLACEMENT_MOVING = gauge("tropism_placement_moving_scopes", &[], "Scopes on their way to other regions, counted up to 100.");
}

/// Service and method of a path; [`OTHER`] for what is not in the list, so that no caller makes up names.
pub fn method(path: &str) -> (&'static str, &'static str) {
    let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
    let (service, method) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    METHODS.iter().find(|(s, m)| (*s, *m) == (service, method)).copied().unwrap_or((OTHER, OTHER))
}
