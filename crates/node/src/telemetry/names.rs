//! The closed list of what a span may be called and carry.
//!
//! Whoever makes a span takes its names from here, and docs/operations/telemetry.md lists the same: a test compares
//! them. Keys, values, tokens and what clients wrote are in none of them.

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
    ("tropism.v1.ParkedService", "ListParked"),
    ("tropism.v1.ParkedService", "GetParked"),
    ("tropism.v1.ParkedService", "RetryParked"),
    ("tropism.v1.ParkedService", "DropParked"),
    ("tropism.v1.ClusterService", "GetStatus"),
    ("tropism.v1.ClusterService", "ListRegions"),
    ("tropism.v1.ClusterService", "ListNodes"),
];

/// Service and method of a path; [`OTHER`] for what is not in the list, so that no caller makes up names.
pub fn method(path: &str) -> (&'static str, &'static str) {
    let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
    let (service, method) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    METHODS.iter().find(|(s, m)| (*s, *m) == (service, method)).copied().unwrap_or((OTHER, OTHER))
}
