//! What goes into calls and comes out of them, in Rust's types.

use std::time::Duration;

use bytes::Bytes;
use tropism_crdt::Stamp;
use tropism_wire::{Problem, v1};

/// A value of one of the three kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A JSON object. Answers are canonical: equal in every region that has the same version.
    Document(Bytes),
    /// Bytes with a content type.
    Register(Register),
    /// A sum. Only in answers: counters change by [`crate::Calls::increment`].
    Counter(i64),
}

/// Opaque bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Register {
    /// The bytes, at most 1 MiB.
    pub content: Bytes,
    /// MIME type, at most 255 bytes of printable ASCII; may be empty.
    pub content_type: String,
}

/// A key as the answering node shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value; none when only keys were asked for, after a delete or expiry, and beside a failure.
    pub value: Option<Value>,
    /// Names this state of the value; opaque.
    pub version: Bytes,
    /// Stamp of the last write.
    pub stamp: Stamp,
    /// When it stops being visible, Unix milliseconds; none: never.
    pub expires_at_ms: Option<u64>,
    /// Why this key cannot be shown.
    pub failure: Option<Problem>,
}

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answered {
    /// The region.
    pub region: String,
    /// The node.
    pub node: String,
    /// Everything acknowledged in other serving regions longer ago than this is included, milliseconds.
    pub staleness_ms: u64,
}

/// The answer of a get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The entry; none when the key is not visible.
    pub entry: Option<Entry>,
    /// Who answered.
    pub answered: Answered,
}

/// The answer of a get of many keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundMany {
    /// The entries of those keys that are visible, in the order of the request.
    pub entries: Vec<Entry>,
    /// Keys that were not read because the answer was full; ask again for them.
    pub left: Vec<String>,
    /// Who answered.
    pub answered: Answered,
}

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The version written; of an expire, that of the value, which stays.
    pub version: Bytes,
    /// The write's stamp.
    pub stamp: Stamp,
    /// It had been done already, by an earlier attempt of this call.
    pub replayed: bool,
    /// Who answered.
    pub answered: Answered,
}

/// What an increment did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incremented {
    /// The write.
    pub written: Written,
    /// The sum as the answering node shows it after the write.
    pub value: i64,
}

/// What a delete did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The write.
    pub written: Written,
    /// Whether the key was visible before.
    pub was_visible: bool,
}

/// Stamps drawn from a node's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamps {
    /// Rising stamps.
    pub stamps: Vec<Stamp>,
    /// Who drew them; unique in the cluster together with a stamp.
    pub origin: String,
}

/// When a key stops being visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// This long after the write, 1 ms to 10 years.
    After(Duration),
    /// At this time, Unix milliseconds.
    At(u64),
    /// Never.
    Never,
}

/// What a put demands of the key it finds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// It is not visible.
    Absent,
    /// It has this version.
    Version(Bytes),
}

/// How a put is done. The default: unconditionally, and the policy decides about expiry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// Documents only: the version that was edited; the put merges what changed since. Empty: none.
    pub base_version: Bytes,
    /// What the key must be.
    pub precondition: Precondition,
    /// When the key expires; none: the policy decides.
    pub expiry: Option<Expiry>,
}

/// One put of a bulk call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutItem {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Value,
    /// How it is put.
    pub options: PutOptions,
}

/// An edit of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// Typed operations: what they mean survives merging. 1 to 1000.
    Operations(Vec<v1::PatchOperation>),
    /// A JSON Patch, RFC 6902.
    Json(Bytes),
    /// A JSON Merge Patch, RFC 7396.
    Merge(Bytes),
}

impl From<Value> for v1::Value {
    fn from(value: Value) -> Self {
        use v1::value::Value as Kind;
        let value = match value {
            Value::Document(json) => Kind::Json(json),
            Value::Register(Register { content, content_type }) => {
                Kind::Register(v1::Register { content, content_type })
            }
            Value::Counter(sum) => Kind::Counter(sum),
        };
        v1::Value { value: Some(value) }
    }
}

impl Value {
    fn from_proto(value: v1::Value) -> Option<Self> {
        use v1::value::Value as Kind;
        Some(match value.value? {
            Kind::Json(json) => Value::Document(json),
            Kind::Register(v1::Register { content, content_type }) => {
                Value::Register(Register { content, content_type })
            }
            Kind::Counter(sum) => Value::Counter(sum),
        })
    }
}

impl From<Expiry> for v1::Expiry {
    fn from(expiry: Expiry) -> Self {
        use v1::expiry::When;
        let when = match expiry {
            Expiry::After(time) => When::TtlMs(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            Expiry::At(ms) => When::AtMs(ms),
            Expiry::Never => When::Never(true),
        };
        v1::Expiry { when: Some(when) }
    }
}

impl From<PutItem> for v1::BatchPutItem {
    fn from(PutItem { key, value, options }: PutItem) -> Self {
        use v1::batch_put_item::Precondition as Is;
        let precondition = match options.precondition {
            Precondition::None => None,
            Precondition::Absent => Some(Is::IfAbsent(true)),
            Precondition::Version(version) => Some(Is::IfVersion(version)),
        };
        let expiry = options.expiry.map(Into::into);
        let base_version = options.base_version;
        Self { key, value: Some(value.into()), base_version, precondition, expiry }
    }
}

impl From<&v1::Answer> for Answered {
    fn from(answer: &v1::Answer) -> Self {
        Self { region: answer.region.clone(), node: answer.node.clone(), staleness_ms: answer.staleness_ms }
    }
}

impl Entry {
    /// An entry of an answer; `key` names it where the answer leaves that out.
    pub(crate) fn from_proto(entry: v1::Entry, key: &str) -> Self {
        Self {
            key: if entry.key.is_empty() { key.to_owned() } else { entry.key },
            value: entry.value.and_then(Value::from_proto),
            version: entry.version,
            stamp: Stamp::from_u64(entry.stamp),
            expires_at_ms: Some(entry.expires_at_ms).filter(|ms| *ms > 0),
            failure: entry.failure.as_ref().map(problem),
        }
    }
}

impl Written {
    pub(crate) fn from_proto(result: v1::WriteResult, answered: Answered) -> Self {
        Self {
            version: result.version,
            stamp: Stamp::from_u64(result.stamp),
            replayed: result.replayed,
            answered,
        }
    }
}

/// What an item's failure says. A reason of a later version of the node is told as an internal one, with its name.
pub(crate) fn problem(failure: &v1::Failure) -> Problem {
    Problem::from_failure(failure)
        .unwrap_or_else(|| Problem::internal(format!("{}: {}", failure.reason, failure.message)))
}
