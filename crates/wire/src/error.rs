//! Errors as clients see them: a closed list of reasons, and a status whose `google.rpc` details carry them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{BadRequest, ErrorDetails, FieldViolation, QuotaFailure, QuotaViolation, StatusExt};

use crate::v1;

/// The domain of every [`Reason`] in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "tropism.dev";

/// Most bytes of input that an error repeats: enough to recognise it, too few to flood a log.
pub const MAX_ECHO_BYTES: usize = 64;
/// Longest message in bytes: it travels in the trailers, whose 8 KiB the details share.
pub const MAX_PROBLEM_BYTES: usize = 1024;
/// Longest binary fact, in bytes: it travels there too, in hexadecimal inside base64.
pub const MAX_FACT_BYTES: usize = 2 << 10;

/// Name of the fact that a [`Reason::SlowReader`] brings: where the watch goes on, in hexadecimal.
pub const RESUME_TOKEN: &str = "resume_token";
/// Name of the fact that a [`Reason::VersionMismatch`] brings: the key's current version, in hexadecimal.
pub const VERSION: &str = "version";
/// Name of the fact that every error brings: what happened to the state.
const EFFECT: &str = "effect";

/// What happened to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The write is wholly there or not at all. Repeating it with the same request id settles it.
    Unknown,
}

impl Effect {
    /// The value of metadata `effect`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Effect::None => "none",
            Effect::Unknown => "unknown",
        }
    }

    /// What a message ends with.
    const fn ending(self) -> &'static str {
        match self {
            Effect::None => "; no effect",
            Effect::Unknown => "; outcome unknown",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $sentence:literal])+ $reason:ident = $code:ident $name:literal,)+) => {
        /// Why a request was not carried out: one variant per thing that a client can do about it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $sentence])+ $reason,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Reason] = &[$(Reason::$reason),+];

            /// Its name in `google.rpc.ErrorInfo`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$reason => $name,)+
                }
            }

            /// The code of the status, which says how to go on: `INVALID_ARGUMENT` never retry; `RESOURCE_EXHAUSTED`
            /// smaller or later; `FAILED_PRECONDITION` change the state first; `ABORTED` read again, then retry;
            /// `UNAVAILABLE` retry later or elsewhere; `INTERNAL` our bug.
            pub const fn code(self) -> Code {
                match self {
                    $(Reason::$reason => Code::$code,)+
                }
            }
        }
    };
}

reasons! {
    /// The bytes are not the message that the method takes.
    MalformedRequest = InvalidArgument "MALFORMED_REQUEST",
    /// A required field is not set.
    MissingField = InvalidArgument "MISSING_FIELD",
    /// A field has a number that means nothing here, such as an unknown enum value or more than may be asked for.
    BadNumber = InvalidArgument "BAD_NUMBER",
    /// A scope name breaks the grammar or is too long.
    BadScope = InvalidArgument "BAD_SCOPE",
    /// A key is empty, too long, has control characters, or comes twice.
    BadKey = InvalidArgument "BAD_KEY",
    /// A JSON Pointer breaks the grammar.
    BadPath = InvalidArgument "BAD_PATH",
    /// A text is no JSON, or JSON that a document cannot hold; the message gives line and column.
    BadJson = InvalidArgument "BAD_JSON",
    /// A patch is not what its format demands.
    BadPatch = InvalidArgument "BAD_PATCH",
    /// A content type is too long or not printable ASCII.
    BadContentType = InvalidArgument "BAD_CONTENT_TYPE",
    /// Bytes that never were a version of this key.
    BadVersion = InvalidArgument "BAD_VERSION",
    /// Bytes that are no session token of this cluster.
    BadToken = InvalidArgument "BAD_TOKEN",
    /// Bytes that are no resume token of this scope and target.
    BadResumeToken = InvalidArgument "BAD_RESUME_TOKEN",
    /// Bytes that are no page token of this range.
    BadPageToken = InvalidArgument "BAD_PAGE_TOKEN",
    /// A request id does not have 16 bytes.
    BadRequestId = InvalidArgument "BAD_REQUEST_ID",
    /// A time to live or an expiry is outside its bounds.
    BadExpiry = InvalidArgument "BAD_EXPIRY",
    /// A range ends before it starts.
    BadRange = InvalidArgument "BAD_RANGE",
    /// The regions of a move are none, too many, or one twice.
    BadRegions = InvalidArgument "BAD_REGIONS",
    /// A durability names a number of regions that makes no sense.
    BadDurability = InvalidArgument "BAD_DURABILITY",
    /// A text is no filter of a log, or too long.
    BadLogFilter = InvalidArgument "BAD_LOG_FILTER",
    /// A deadline in the metadata cannot be read.
    BadDeadline = InvalidArgument "BAD_DEADLINE",

    /// The message is larger than the limit; split it.
    MessageTooLarge = ResourceExhausted "MESSAGE_TOO_LARGE",
    /// The metadata is larger than the limit; put the token into the body.
    MetadataTooLarge = ResourceExhausted "METADATA_TOO_LARGE",
    /// A token is larger than the limit; begin a new session.
    TokenTooLarge = ResourceExhausted "TOKEN_TOO_LARGE",
    /// A value, or a container or depth in it, is over its limit; spread it over several keys.
    ValueTooLarge = ResourceExhausted "VALUE_TOO_LARGE",
    /// A bulk call has more items than the limit; split it.
    TooManyItems = ResourceExhausted "TOO_MANY_ITEMS",
    /// A patch has more operations, or makes more copies, than the limit; split it.
    TooManyOperations = ResourceExhausted "TOO_MANY_OPERATIONS",
    /// The document's history fills the budget of its policy; go on under a new key.
    HistoryFull = ResourceExhausted "HISTORY_FULL",
    /// A queue of the node is full; retry after the time given.
    Overloaded = ResourceExhausted "OVERLOADED",
    /// The node has as many watches as it takes; end some or use another node.
    TooManyWatches = ResourceExhausted "TOO_MANY_WATCHES",
    /// The client read its watch too slowly; go on from the resume token.
    SlowReader = ResourceExhausted "SLOW_READER",

    /// The scope holds values of another kind.
    KindMismatch = FailedPrecondition "KIND_MISMATCH",
    /// No policy rule matches the scope's name, so it cannot be created.
    NoRule = FailedPrecondition "NO_RULE",
    /// The scope was dropped; only the directory can create it again.
    ScopeDropped = FailedPrecondition "SCOPE_DROPPED",
    /// The scope's rule, or what holds it where it is, does not let its record change so.
    PlacementRefused = FailedPrecondition "PLACEMENT_REFUSED",
    /// The key is visible and should not be.
    KeyExists = FailedPrecondition "KEY_EXISTS",
    /// The base version has not arrived here, or no longer exists; read again.
    UnknownBase = FailedPrecondition "UNKNOWN_BASE",
    /// The base version belongs to a life of the key that was deleted; read again.
    EarlierLife = FailedPrecondition "EARLIER_LIFE",
    /// Keys of this kind keep only what they show now; documents keep their history.
    NoHistory = FailedPrecondition "NO_HISTORY",
    /// A patch's test found something else.
    TestFailed = FailedPrecondition "TEST_FAILED",
    /// A patch's operation has nothing to work on, or something of another type.
    PatchDoesNotFit = FailedPrecondition "PATCH_DOES_NOT_FIT",
    /// An increment found something that is no counter; counters are set up by the policy.
    NotACounter = FailedPrecondition "NOT_A_COUNTER",
    /// A counter's sum is beyond 64 bits.
    CounterOverflow = FailedPrecondition "COUNTER_OVERFLOW",
    /// The expiry has passed already.
    AlreadyExpired = FailedPrecondition "ALREADY_EXPIRED",
    /// The durability asks for more regions than serve the scope.
    TooFewRegions = FailedPrecondition "TOO_FEW_REGIONS",
    /// The key is served like any other: nothing is kept of it.
    NotParked = FailedPrecondition "NOT_PARKED",
    /// The key's row cannot be read, so nothing can be applied to it.
    RowDamaged = FailedPrecondition "ROW_DAMAGED",
    /// Another node was meant than the one that was asked.
    WrongNode = FailedPrecondition "WRONG_NODE",
    /// The peer is of another cluster, protocol or policy, or its store is behind what was seen of it.
    PeerRefused = FailedPrecondition "PEER_REFUSED",

    /// The key has another version than the precondition names; read again.
    VersionMismatch = Aborted "VERSION_MISMATCH",
    /// The base version has too many branches beside it; read again, then retry on the current version.
    TooManyBranches = Aborted "TOO_MANY_BRANCHES",

    /// The request id was used for another request.
    RequestIdReused = AlreadyExists "REQUEST_ID_REUSED",

    /// The key is not visible.
    KeyNotFound = NotFound "KEY_NOT_FOUND",
    /// There is no such scope, or no rule for its name.
    ScopeNotFound = NotFound "SCOPE_NOT_FOUND",
    /// There is no such region.
    RegionNotFound = NotFound "REGION_NOT_FOUND",

    /// The token names writes that have not arrived here; the message names who has them.
    TokenAhead = Unavailable "TOKEN_AHEAD",
    /// The region does not serve the scope, and no region that does can be reached.
    NotServedHere = Unavailable "NOT_SERVED_HERE",
    /// The node is starting, stopping, or waits for its clock.
    NotReady = Unavailable "NOT_READY",
    /// The node's clock is ahead of most of its peers; write elsewhere.
    ClockFenced = Unavailable "CLOCK_FENCED",
    /// The regions or owners that the durability needs cannot be reached; nothing was written.
    DurabilityUnreachable = Unavailable "DURABILITY_UNREACHABLE",
    /// The directory cannot decide now; nothing was changed.
    DirectoryUnavailable = Unavailable "DIRECTORY_UNAVAILABLE",
    /// The write may be there or not; repeat it with the same request id.
    OutcomeUnknown = Unavailable "OUTCOME_UNKNOWN",

    /// The time was over before anything was done.
    DeadlineExceeded = DeadlineExceeded "DEADLINE_EXCEEDED",

    /// The peer did not prove that it knows the cluster's secret.
    BadProof = Unauthenticated "BAD_PROOF",

    /// A change to the key could not be applied, so the key cannot be shown; the bytes are kept.
    KeyParked = DataLoss "KEY_PARKED",
    /// The scope was held by this region alone, whose store is gone.
    StoreLost = DataLoss "STORE_LOST",

    /// The node does not know the method, or the encoding of the message.
    NotImplemented = Unimplemented "NOT_IMPLEMENTED",

    /// A bug in Tropism; whether a write took effect is not known.
    Internal = Internal "INTERNAL",
}

impl Reason {
    /// The reason of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }

    /// The reason that a status of Tropism carries; none in one of gRPC itself or of another service.
    pub fn of(status: &Status) -> Option<Self> {
        let info = status.get_details_error_info()?;
        if info.domain == DOMAIN { Self::from_name(&info.reason) } else { None }
    }

    /// What happened to the state.
    pub const fn effect(self) -> Effect {
        match self {
            Reason::OutcomeUnknown | Reason::Internal => Effect::Unknown,
            _ => Effect::None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A limit that a request ran into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// What is limited, with its unit: `key_bytes`.
    pub name: Cow<'static, str>,
    /// The most allowed.
    pub most: u64,
}

/// A request that was not carried out: why, what happened to the state, and what helps the client to go on. The code of
/// its status follows from the reason alone; the constructors ask for what a client needs in each class.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}{}", .0.message, .0.reason.effect().ending())]
pub struct Problem(Box<Parts>); // boxed: the good way does not pay for its size

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    reason: Reason,
    message: String,
    field: Option<String>,
    limit: Option<Limit>,
    retry_after: Option<Duration>,
    facts: BTreeMap<String, String>,
}

impl Problem {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(beginning(&message, MAX_PROBLEM_BYTES).len());
        let (field, limit, retry_after, facts) = (None, None, None, BTreeMap::new());
        Self(Box::new(Parts { reason, message, field, limit, retry_after, facts }))
    }

    /// What was sent is wrong whatever the state. `field` is the path of the field at fault: `items[3].key`.
    pub fn invalid_argument(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(reason, message).at(field)
    }

    /// Something is over a limit: `limit` with its unit (`key_bytes`), of which `most` are allowed.
    pub fn resource_exhausted(
        reason: Reason,
        limit: impl Into<Cow<'static, str>>,
        most: u64,
        message: impl Into<String>,
    ) -> Self {
        let mut problem = Self::new(reason, message);
        problem.0.limit = Some(Limit { name: limit.into(), most });
        problem
    }

    /// The state has to change before a retry can help.
    pub fn failed_precondition(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, message)
    }

    /// Somebody else was faster: read again, then retry.
    pub fn aborted(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, message)
    }

    /// The request id was used before, for something else.
    pub fn request_id_reused(message: impl Into<String>) -> Self {
        Self::new(Reason::RequestIdReused, message).at("options.request_id")
    }

    /// What was asked for is not there.
    pub fn not_found(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, message)
    }

    /// Cannot be done here and now; `retry_after` is when it may be.
    pub fn unavailable(reason: Reason, retry_after: Duration, message: impl Into<String>) -> Self {
        Self::new(reason, message).retry_after(retry_after)
    }

    /// A write was begun and its end is not known: a failed sync, a lost answer, a durability not confirmed in time.
    pub fn outcome_unknown(message: impl Into<String>) -> Self {
        Self::new(Reason::OutcomeUnknown, message)
    }

    /// The time was over before anything was done.
    pub fn deadline_exceeded(message: impl Into<String>) -> Self {
        Self::new(Reason::DeadlineExceeded, message)
    }

    /// A peer did not prove that it belongs to the cluster.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(Reason::BadProof, message)
    }

    /// What was stored cannot be shown.
    pub fn data_loss(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, message)
    }

    /// There is no such method or encoding.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Reason::NotImplemented, message)
    }

    /// A bug: something that cannot be has happened.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Reason::Internal, message)
    }

    /// Names the field at fault.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// Says where in the request the message with the field at fault stands: `items[3]` makes `items[3].key` of `key`.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        self.0.field = Some(match self.0.field {
            Some(field) => format!("{parent}.{field}"),
            None => parent.to_owned(),
        });
        self
    }

    /// Says when to retry.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Adds a fact for programs, such as the current version of a key. Keys are lower case with underscores.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.facts.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a binary fact, unless it is longer than [`MAX_FACT_BYTES`]: then the client has to do without.
    #[must_use]
    pub fn with_bytes(self, name: &str, value: &[u8]) -> Self {
        if value.len() <= MAX_FACT_BYTES { self.with(name, to_hex(value)) } else { self }
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// What happened to the state.
    pub fn effect(&self) -> Effect {
        self.0.reason.effect()
    }

    /// What happened, for people, without what happened to the state.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Path of the field at fault.
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The limit run into.
    pub fn limit(&self) -> Option<&Limit> {
        self.0.limit.as_ref()
    }

    /// When to retry, if anybody knows.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// A fact added by [`Self::with`].
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.0.facts.get(name).map(String::as_str)
    }

    /// A fact added by [`Self::with_bytes`].
    pub fn fact_bytes(&self, name: &str) -> Option<Vec<u8>> {
        from_hex(self.fact(name)?)
    }

    /// The status that leaves the node.
    pub fn to_status(&self) -> Status {
        let message = self.to_string();
        let mut metadata: HashMap<String, String> =
            self.0.facts.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        metadata.insert(EFFECT.to_owned(), self.effect().as_str().to_owned());

        let mut details = ErrorDetails::with_error_info(self.0.reason.as_str(), DOMAIN, metadata);
        if let Some(field) = &self.0.field {
            let mut violation = FieldViolation::new(field, &self.0.message);
            violation.reason = self.0.reason.as_str().to_owned();
            details.set_bad_request(vec![violation]);
        }
        if let Some(limit) = &self.0.limit {
            let mut violation = QuotaViolation::new(limit.name.as_ref(), &self.0.message);
            violation.quota_value = i64::try_from(limit.most).unwrap_or(i64::MAX);
            details.set_quota_failure(vec![violation]);
        }
        if let Some(delay) = self.0.retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(self.0.reason.code(), message, details)
    }

    /// What a status of Tropism says; none for one of gRPC itself (a lost connection), or of another service.
    pub fn from_status(status: &Status) -> Option<Self> {
        let reason = Reason::of(status)?;
        let details = status.get_error_details();
        let facts = details.error_info().map(|info| info.metadata.clone()).unwrap_or_default();
        let field =
            details.bad_request().and_then(|BadRequest { field_violations }| field_violations.first());
        let limit = details.quota_failure().and_then(|QuotaFailure { violations }| violations.first());
        let mut problem = Self::new(reason, without_ending(reason, status.message()));
        problem.0.field = field.map(|violation| violation.field.clone());
        problem.0.limit = limit.map(|violation| Limit {
            name: violation.subject.clone().into(),
            most: u64::try_from(violation.quota_value).unwrap_or(0),
        });
        problem.0.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        problem.0.facts = facts.into_iter().filter(|(name, _)| name != EFFECT).collect();
        Some(problem)
    }

    /// The same as one item's failure in a bulk answer; limit and facts are in the message only.
    pub fn to_failure(&self) -> v1::Failure {
        v1::Failure {
            code: self.0.reason.code() as i32,
            reason: self.0.reason.as_str().to_owned(),
            field: self.0.field.clone().unwrap_or_default(),
            message: self.to_string(),
            retry_after_ms: self
                .0
                .retry_after
                .map_or(0, |delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// What one item's failure says; none when its reason is of a later version.
    pub fn from_failure(failure: &v1::Failure) -> Option<Self> {
        let reason = Reason::from_name(&failure.reason)?;
        let mut problem = Self::new(reason, without_ending(reason, &failure.message));
        problem.0.field = Some(failure.field.clone()).filter(|field| !field.is_empty());
        problem.0.retry_after = Some(failure.retry_after_ms).filter(|ms| *ms > 0).map(Duration::from_millis);
        Some(problem)
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        problem.to_status()
    }
}

/// The beginning of what a client sent, in quotes and escaped: it may break terminals, and logs are read in them.
pub fn echo(input: &str) -> String {
    let shown = beginning(input, MAX_ECHO_BYTES);
    let more = if shown.len() < input.len() { "..." } else { "" };
    format!("\"{}\"{more}", shown.escape_debug())
}

fn without_ending(reason: Reason, message: &str) -> &str {
    message.strip_suffix(reason.effect().ending()).unwrap_or(message)
}

/// At most the first `most` bytes, cut between characters.
fn beginning(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1; // ends at 0, which is always a boundary
    }
    &text[..end]
}

fn to_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?; // below 16
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
