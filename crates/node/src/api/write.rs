//! Writes: from a request to a validated operation, and from the replica's refusal to an error that says what to do.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tracing::Span;
use tropism_crdt::codec::Reader;
use tropism_crdt::document::{
    DocumentError, MAX_HEADS, MAX_PATCH_OPS, PatchError, PatchErrorKind, PatchOp, from_json_patch,
    from_merge_patch,
};
use tropism_crdt::json::{Json, JsonError, JsonErrorKind, JsonLimits, Pointer, PointerError, parse};
use tropism_crdt::{ClockError, ExpiryChange, Origin, RequestId, TraceContext};
use tropism_placement::{Durability, Kind};
use tropism_replica::{Precondition, Write, WriteDone, WriteError, WriteOp};
use tropism_wire::error::VERSION;
use tropism_wire::limits::MAX_BULK_ITEMS;
use tropism_wire::{Problem, Reason, from_proto, v1};

use super::admission::{Deadline, SHED_RETRY};
use super::{Call, Inner, Served, not_served, stopping};
use crate::driver::{CallError, INPUT_QUEUE};
use crate::token::Token;

/// Largest register in bytes: one value stays a fraction of a 4 MiB message.
pub(super) const MAX_REGISTER_BYTES: usize = 1 << 20;
/// How often a write whose base version has not arrived is tried again, at most.
const BASE_RETRY: Duration = Duration::from_millis(20);
/// When to come back when nothing better is known.
const LATER: Duration = Duration::from_secs(1);

/// What all writes of a call have in common, checked.
pub(super) struct Options {
    pub(super) token: Token,
    durability: Option<Durability>,
    pub(super) request_id: Option<RequestId>,
    /// Of the call, when that has no span here.
    trace: Option<TraceContext>,
    span: Option<Span>,
    pub(super) deadline: Deadline,
}

/// One write, checked as far as that needs no state.
pub(super) struct Draft {
    pub(super) key: String,
    op: WriteOp,
    precondition: Option<Precondition>,
    expiry: ExpiryChange,
    /// The request's field that the operations of a patch came in.
    patch: &'static str,
}

impl Inner {
    /// The options of a call that writes.
    pub(super) fn options(&self, options: Option<v1::WriteOptions>, call: &Call) -> Result<Options, Problem> {
        let options = options.unwrap_or_default();
        Ok(Options {
            token: self.token("options.token", &options.token, call)?,
            durability: from_proto::durability(options.durability.as_ref())?,
            request_id: from_proto::request_id(&options.request_id)?,
            trace: self.telemetry.passed_on(call.metadata.as_ref()),
            span: call.span.clone(),
            deadline: call.deadline,
        })
    }

    /// Writes, and waits as long as the call may take.
    pub(super) async fn write(
        &self,
        scope: &Served<'_>,
        draft: Draft,
        options: &Options,
        request_id: Option<RequestId>,
    ) -> Result<WriteDone, Problem> {
        let Draft { key, op, precondition, expiry, patch } = draft;
        let has_base =
            matches!(&op, WriteOp::PutDocument { base: Some(_), .. } | WriteOp::Patch { base: Some(_), .. });
        let give_up = options.deadline.give_up.into_std();
        let write = Write {
            scope: scope.id.name.clone(),
            key,
            expiry,
            op,
            precondition,
            durability: options.durability,
            deadline_us: self.handle.time().mono_us(give_up),
            request_id,
            trace: options.trace,
        };
        if has_base {
            return self.write_at_base(write, options, patch).await;
        }
        self.submit(write, options).await?.map_err(|error| refused(error, patch))
    }

    /// Waits for the base version as for what a token names: until the call's time is over.
    async fn write_at_base(
        &self,
        write: Write,
        options: &Options,
        patch: &str,
    ) -> Result<WriteDone, Problem> {
        let deadline = options.deadline;
        let mut commits = self.handle.commits();
        loop {
            commits.borrow_and_update(); // before trying: what comes after is not missed
            let error = match self.submit(write.clone(), options).await? {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let problem = refused(error, patch);
            if problem.reason() != Reason::UnknownBase {
                return Err(problem);
            }
            let pause = (Instant::now() + BASE_RETRY).min(deadline.give_up);
            tokio::time::sleep_until(pause).await;
            match timeout_at(deadline.give_up, commits.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(stopping()),
                Err(_) => return Err(problem),
            }
        }
    }

    async fn submit(
        &self,
        mut write: Write,
        options: &Options,
    ) -> Result<Result<WriteDone, CallError>, Problem> {
        options.deadline.check()?;
        let span = self.telemetry.commit(options.span.as_ref(), write.scope.as_str()).map(|(span, trace)| {
            write.trace.get_or_insert(trace); // what is passed on goes first
            span
        });
        timeout_at(options.deadline.answer, self.handle.write_within(write, span)).await.map_err(|_| {
            Problem::outcome_unknown("the call's time was over before the node knew what became of the write")
        })
    }
}

/// Checks the fields of a put. `now_ms` is the wall clock.
pub(super) fn put(scope: &Served<'_>, item: v1::BatchPutItem, now_ms: u64) -> Result<Draft, Problem> {
    use v1::batch_put_item::Precondition as Sent;

    from_proto::key("key", &item.key)?;
    let kind = scope.kind;
    let precondition = match item.precondition {
        None | Some(Sent::IfAbsent(false)) => None,
        Some(Sent::IfAbsent(true)) => Some(Precondition::Absent),
        Some(Sent::IfVersion(version)) => {
            check_version("if_version", &version)?;
            Some(Precondition::Version(version))
        }
    };
    let expiry = from_proto::expiry(item.expiry.as_ref(), now_ms)?;
    let Some(v1::Value { value: Some(value) }) = item.value else {
        let message = "value is not set; set json, register or counter";
        return Err(Problem::invalid_argument(Reason::MissingField, "value", message));
    };
    let op = match (value, kind) {
        (v1::value::Value::Json(json), Kind::Document) => {
            let base = base_version(item.base_version)?;
            WriteOp::PutDocument { value: document(&json)?, base }
        }
        (v1::value::Value::Register(register), Kind::Register) => {
            if !item.base_version.is_empty() {
                let message =
                    "base_version is set, but only documents are put at a base version; use if_version";
                return Err(Problem::invalid_argument(Reason::BadVersion, "base_version", message));
            }
            from_proto::content_type(&register.content_type)?;
            let size = register.content.len();
            if size > MAX_REGISTER_BYTES {
                let message = format!(
                    "value.register.content has {size} bytes; the limit is {MAX_REGISTER_BYTES}: split it over \
                     several keys"
                );
                return Err(Problem::resource_exhausted(
                    Reason::ValueTooLarge,
                    "register_bytes",
                    MAX_REGISTER_BYTES as u64,
                    message,
                )
                .at("value.register.content"));
            }
            WriteOp::PutRegister { content_type: register.content_type, bytes: register.content }
        }
        (v1::value::Value::Counter(_), Kind::Counter) => {
            let message = "value.counter cannot be put: counters change by Increment";
            return Err(Problem::failed_precondition(Reason::KindMismatch, message).at("value.counter"));
        }
        (sent, kind) => {
            let (field, sent) = match sent {
                v1::value::Value::Json(_) => ("value.json", "a document"),
                v1::value::Value::Register(_) => ("value.register", "a register"),
                v1::value::Value::Counter(_) => ("value.counter", "a counter"),
            };
            return Err(wrong_kind(scope, kind, &format!("{field} is {sent}")).at(field));
        }
    };
    Ok(Draft { key: item.key, op, precondition, expiry, patch: "" })
}

/// Checks the fields of an increment.
pub(super) fn increment(
    scope: &Served<'_>,
    item: v1::BatchIncrementItem,
    now_ms: u64,
) -> Result<Draft, Problem> {
    from_proto::key("key", &item.key)?;
    expect_kind(scope, Kind::Counter, "Increment is for counters")?;
    let expiry = from_proto::expiry(item.expiry.as_ref(), now_ms)?;
    let op = WriteOp::Increment { by: item.by };
    Ok(Draft { key: item.key, op, precondition: None, expiry, patch: "" })
}

/// Checks the fields of a patch.
pub(super) fn patch(scope: &Served<'_>, request: v1::PatchRequest, now_ms: u64) -> Result<Draft, Problem> {
    use v1::patch_request::Patch;
    const TYPED: &str = "operations.operations";

    from_proto::key("key", &request.key)?;
    expect_kind(scope, Kind::Document, "Patch is for documents")?;
    let expiry = from_proto::expiry(request.expiry.as_ref(), now_ms)?;
    let (patch, operations) = match request.patch {
        None => {
            let message = "patch is not set; set operations, json_patch or merge_patch";
            return Err(Problem::invalid_argument(Reason::MissingField, "patch", message));
        }
        Some(Patch::Operations(sent)) => {
            let count = sent.operations.len();
            if count == 0 {
                let message = format!("{TYPED} is empty; a patch has 1 to {MAX_PATCH_OPS} operations");
                return Err(Problem::invalid_argument(Reason::BadPatch, TYPED, message));
            }
            if count > MAX_PATCH_OPS {
                return Err(too_many_operations(TYPED, count));
            }
            let read = |(index, sent)| operation(sent).map_err(|p| p.within(&format!("{TYPED}[{index}]")));
            (TYPED, sent.operations.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?)
        }
        Some(Patch::JsonPatch(text)) => {
            let patch = json("json_patch", &text)?;
            ("json_patch", from_json_patch(&patch).map_err(|error| patch_refused(error, "json_patch"))?)
        }
        Some(Patch::MergePatch(text)) => {
            let patch = json("merge_patch", &text)?;
            let operations = from_merge_patch(&patch).map_err(|error| {
                let message = format!("merge_patch: {}", error.kind);
                Problem::invalid_argument(Reason::BadPatch, "merge_patch", message)
            })?;
            ("merge_patch", operations)
        }
    };
    let op = WriteOp::Patch { operations, base: base_version(request.base_version)? };
    let precondition = if_version(request.if_version)?;
    Ok(Draft { key: request.key, op, precondition, expiry, patch })
}

/// Checks the fields of a delete.
pub(super) fn delete(key: String, version: Bytes) -> Result<Draft, Problem> {
    from_proto::key("key", &key)?;
    let precondition = if_version(version)?;
    Ok(Draft { key, op: WriteOp::Delete, precondition, expiry: ExpiryChange::Keep, patch: "" })
}

/// Checks the fields of an expire.
pub(super) fn expire(key: String, expiry: Option<&v1::Expiry>, now_ms: u64) -> Result<Draft, Problem> {
    from_proto::key("key", &key)?;
    if expiry.is_none() {
        let message = "expiry is not set; set ttl_ms, at_ms or never";
        return Err(Problem::invalid_argument(Reason::MissingField, "expiry", message));
    }
    let expiry = from_proto::expiry(expiry, now_ms)?;
    Ok(Draft { key, op: WriteOp::Expire, precondition: None, expiry, patch: "" })
}

/// Checks the number of items of a bulk call.
pub(super) fn count(field: &str, count: usize) -> Result<(), Problem> {
    if count == 0 {
        let message = format!("{field} is empty; a bulk call has 1 to {MAX_BULK_ITEMS} items");
        return Err(Problem::invalid_argument(Reason::MissingField, field, message));
    }
    if count > MAX_BULK_ITEMS {
        let message = format!("{field} has {count} items; the limit is {MAX_BULK_ITEMS}: split it");
        let most = MAX_BULK_ITEMS as u64;
        return Err(Problem::resource_exhausted(Reason::TooManyItems, "bulk_items", most, message).at(field));
    }
    Ok(())
}

fn operation(sent: v1::PatchOperation) -> Result<PatchOp, Problem> {
    use v1::patch_operation::Action;

    let path = pointer("path", &sent.path)?;
    let Some(action) = sent.action else {
        let message = "action is not set; set one of set, remove, increment, insert, append, splice_text, test, \
                       move_from, copy_from";
        return Err(Problem::invalid_argument(Reason::MissingField, "action", message));
    };
    Ok(match action {
        Action::Set(text) => PatchOp::Set { path, value: json("set", &text)? },
        Action::Remove(true) => PatchOp::Remove { path },
        Action::Remove(false) => {
            let message = "remove is false; set it to true or choose another action";
            return Err(Problem::invalid_argument(Reason::BadPatch, "remove", message));
        }
        Action::Increment(by) => PatchOp::Increment { path, by },
        Action::Insert(text) => PatchOp::Insert { path, value: json("insert", &text)? },
        Action::Append(text) => PatchOp::Insert { path: path.child("-"), value: json("append", &text)? },
        Action::SpliceText(splice) => {
            let number = |field: &'static str, number: u64| {
                usize::try_from(number).map_err(|_| {
                    let message = format!("{field} is {number}, more characters than memory could hold");
                    Problem::invalid_argument(Reason::BadNumber, field, message)
                })
            };
            PatchOp::SpliceText {
                path,
                index: number("splice_text.index", splice.index)?,
                delete: number("splice_text.delete", splice.delete)?,
                insert: splice.insert,
            }
        }
        Action::Test(text) => PatchOp::Test { path, value: json("test", &text)? },
        Action::MoveFrom(from) => PatchOp::Move { from: pointer("move_from", &from)?, path },
        Action::CopyFrom(from) => PatchOp::Copy { from: pointer("copy_from", &from)?, path },
    })
}

fn pointer(field: &str, text: &str) -> Result<Pointer, Problem> {
    Pointer::parse(text).map_err(|error| bad_path(field, &error))
}

fn bad_path(field: &str, error: &PointerError) -> Problem {
    Problem::invalid_argument(Reason::BadPath, field, format!("{field}: {error}"))
}

/// A JSON text that is to become a document.
fn document(text: &[u8]) -> Result<Json, Problem> {
    let value = json("value.json", text)?;
    match value {
        Json::Object(_) => Ok(value),
        other => {
            let message = format!("value.json is {}; a document is an object at its root", other.type_name());
            Err(Problem::invalid_argument(Reason::BadJson, "value.json", message))
        }
    }
}

fn json(field: &str, text: &[u8]) -> Result<Json, Problem> {
    parse(text, &JsonLimits::default()).map_err(|error| bad_json(field, &error))
}

fn bad_json(field: &str, error: &JsonError) -> Problem {
    let message = format!("{field}: {error}");
    let problem = match &error.kind {
        JsonErrorKind::TooLarge { limit, .. } => {
            Problem::resource_exhausted(Reason::ValueTooLarge, "json_bytes", *limit as u64, message).at(field)
        }
        JsonErrorKind::TooManyItems { limit } => {
            Problem::resource_exhausted(Reason::ValueTooLarge, "json_items", *limit as u64, message).at(field)
        }
        _ => Problem::invalid_argument(Reason::BadJson, field, message),
    };
    problem
        .with("code", error.kind.code())
        .with("line", error.line.to_string())
        .with("column", error.column.to_string())
}

fn base_version(version: Bytes) -> Result<Option<Bytes>, Problem> {
    if version.is_empty() {
        return Ok(None);
    }
    check_version("base_version", &version)?;
    Ok(Some(version))
}

fn if_version(version: Bytes) -> Result<Option<Precondition>, Problem> {
    if version.is_empty() {
        return Ok(None);
    }
    check_version("if_version", &version)?;
    Ok(Some(Precondition::Version(version)))
}

/// Refuses bytes that never were a version of anything: those of [`tropism_replica::version_of`] say the life, the kind,
/// and what names the state of such a value.
fn check_version(field: &str, version: &[u8]) -> Result<(), Problem> {
    let mut r = Reader::new(version);
    let sound = r.varint("life").is_ok()
        && match r.u8("kind") {
            Ok(1) => {
                let (heads, rest) = r.rest().as_chunks::<32>();
                rest.is_empty() && heads.len() <= MAX_HEADS && heads.is_sorted_by(|a, b| a < b)
            }
            Ok(2) => {
                r.rest().is_empty()
                    || r.u64("stamp").is_ok() && Origin::decode(&mut r).is_ok() && r.finish().is_ok()
            }
            Ok(3) => r.rest().len() == 16,
            _ => false,
        };
    if sound {
        return Ok(());
    }
    let message = format!(
        "{field} has {} bytes that no version has; send what an answer of this key had in `version`",
        version.len()
    );
    Err(Problem::invalid_argument(Reason::BadVersion, field, message))
}

fn expect_kind(scope: &Served<'_>, kind: Kind, what: &str) -> Result<(), Problem> {
    if scope.kind == kind { Ok(()) } else { Err(wrong_kind(scope, scope.kind, what)) }
}

fn wrong_kind(scope: &Served<'_>, kind: Kind, what: &str) -> Problem {
    let message = format!("{what}; scope \"{}\" holds values of kind {kind}", scope.id.name);
    Problem::failed_precondition(Reason::KindMismatch, message).with("kind", kind.as_str())
}

fn too_many_operations(field: &str, count: usize) -> Problem {
    let message =
        format!("{field} has {count} operations; the limit is {MAX_PATCH_OPS}: send several patches");
    Problem::resource_exhausted(Reason::TooManyOperations, "patch_operations", MAX_PATCH_OPS as u64, message)
        .at(field)
}

/// What an error below says, without what it says about the effect: a [`Problem`] says that itself.
fn said(error: &impl ToString) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("outcome unknown: ").unwrap_or(&text);
    text.rsplit_once("; no effect").map_or(text, |(said, _)| said).to_owned()
}

/// Why the clock cannot stamp, and when it may.
pub(super) fn clock_refused(error: &ClockError) -> Problem {
    let wait = match error {
        ClockError::BehindReservation { wall_ms, reserved_ms } => reserved_ms.saturating_sub(*wall_ms) + 1,
        ClockError::ReservationUsedUp { .. } => 1,
    };
    Problem::unavailable(Reason::NotReady, Duration::from_millis(wait).min(LATER), said(error))
}

/// The node's clock must not be trusted.
pub(super) fn fenced() -> Problem {
    Problem::unavailable(
        Reason::ClockFenced,
        LATER,
        "this node's clock is ahead of most of its peers, so it takes no writes; write to another node",
    )
}

/// Nobody took the call, or nobody answered.
pub(super) fn call_refused(error: &CallError) -> Option<Problem> {
    Some(match error {
        CallError::Busy => {
            let message = format!("the node is busy: {INPUT_QUEUE} calls wait already");
            Problem::resource_exhausted(Reason::Overloaded, "waiting_calls", INPUT_QUEUE as u64, message)
                .retry_after(SHED_RETRY)
        }
        CallError::Stopped => Problem::outcome_unknown("the node stopped before it could answer"),
        CallError::Clock(error) => clock_refused(error),
        CallError::Write(_) => return None,
    })
}

/// A refused write as an error; `patch` is the field that a patch's operations came in.
fn refused(error: CallError, patch: &str) -> Problem {
    if let Some(problem) = call_refused(&error) {
        return problem;
    }
    let CallError::Write(error) = error else { return stopping() };
    let message = said(&error);
    match error {
        WriteError::NoRule(_) => Problem::failed_precondition(Reason::NoRule, message).at("scope"),
        WriteError::Dropped(_) => Problem::not_found(Reason::ScopeNotFound, message).at("scope"),
        WriteError::NotHere { scope, region, serving } => not_served(&scope, &region, &serving),
        WriteError::Kind { kind, .. } => {
            Problem::failed_precondition(Reason::KindMismatch, message).with("kind", kind.as_str())
        }
        WriteError::Clock(error) => clock_refused(&error),
        WriteError::Fenced => fenced(),
        WriteError::Rebuilding => Problem::unavailable(Reason::NotReady, LATER, message),
        WriteError::Exists { version } => Problem::failed_precondition(Reason::KeyExists, message)
            .at("if_absent")
            .with_bytes(VERSION, &version),
        WriteError::Version { version } => {
            let (message, version) = match &version {
                Some(version) => (Cow::from(message), version.as_ref()),
                None => (Cow::from("the key is not visible, so it has no version"), [].as_slice()),
            };
            Problem::aborted(Reason::VersionMismatch, message).at("if_version").with_bytes(VERSION, version)
        }
        WriteError::NotFound => Problem::not_found(Reason::KeyNotFound, "the key is not visible").at("key"),
        WriteError::MalformedVersion(_) => {
            Problem::invalid_argument(Reason::BadVersion, "base_version", format!("base_version: {message}"))
        }
        WriteError::UnknownVersion => {
            Problem::failed_precondition(Reason::UnknownBase, message).at("base_version")
        }
        WriteError::EarlierLife => {
            Problem::failed_precondition(Reason::EarlierLife, message).at("base_version")
        }
        WriteError::Document(error) => document_refused(&error, "value.json"),
        WriteError::Patch(error) => patch_refused(error, patch),
        WriteError::HistoryFull { limit, .. } => {
            Problem::resource_exhausted(Reason::HistoryFull, "history", limit, message)
        }
        WriteError::Damaged(_) => Problem::data_loss(Reason::KeyParked, message),
        WriteError::RequestIdReused => Problem::request_id_reused(message),
        WriteError::CounterOverflow => {
            Problem::failed_precondition(Reason::CounterOverflow, message).at("by")
        }
        WriteError::Durability { .. } => {
            Problem::failed_precondition(Reason::TooFewRegions, message).at("options.durability.regions")
        }
        WriteError::Overloaded => Problem::resource_exhausted(
            Reason::Overloaded,
            "waiting_writes",
            tropism_replica::limits::WAITING_WRITES as u64,
            message,
        )
        .retry_after(SHED_RETRY),
        WriteError::OwnersAway { .. } => Problem::unavailable(Reason::DurabilityUnreachable, LATER, message),
        WriteError::NotAcknowledged { regions, .. } => {
            let names: Vec<&str> = regions.iter().map(|region| region.as_str()).collect();
            Problem::outcome_unknown(message).with("acknowledged", names.join(","))
        }
    }
}

fn document_refused(error: &DocumentError, field: &str) -> Problem {
    let message = format!("{field}: {error}");
    match error {
        DocumentError::RootNotObject { .. } | DocumentError::NotACounterValue { .. } => {
            Problem::invalid_argument(Reason::BadJson, field, message)
        }
        DocumentError::CounterOverflow { .. } => {
            Problem::failed_precondition(Reason::CounterOverflow, message).at(field)
        }
        DocumentError::TooLarge { limit, .. } => {
            Problem::resource_exhausted(Reason::ValueTooLarge, "document", *limit as u64, message).at(field)
        }
        DocumentError::UnknownBase => {
            Problem::failed_precondition(Reason::UnknownBase, error.to_string()).at("base_version")
        }
        DocumentError::TooManyBranches { .. } => {
            Problem::aborted(Reason::TooManyBranches, error.to_string()).at("base_version")
        }
        DocumentError::Damaged { .. } => Problem::data_loss(Reason::KeyParked, error.to_string()),
        DocumentError::Refused { .. } | DocumentError::NotPassed { .. } => {
            Problem::internal(error.to_string())
        }
    }
}

fn patch_refused(error: PatchError, field: &str) -> Problem {
    let field = match error.op_index {
        Some(index) => format!("{field}[{index}]"),
        None => field.to_owned(),
    };
    let message = format!("{field}: {}", error.kind);
    match error.kind {
        PatchErrorKind::Malformed { .. } => Problem::invalid_argument(Reason::BadPatch, field, message),
        PatchErrorKind::Path(error) => bad_path(&field, &error),
        PatchErrorKind::TooManyOperations { count, .. } => too_many_operations(&field, count),
        PatchErrorKind::WrongType { expected: "a counter", .. } => {
            Problem::failed_precondition(Reason::NotACounter, message).at(field)
        }
        PatchErrorKind::NotFound { .. }
        | PatchErrorKind::WrongType { .. }
        | PatchErrorKind::OutOfRange { .. } => {
            Problem::failed_precondition(Reason::PatchDoesNotFit, message).at(field)
        }
        PatchErrorKind::TestFailed { .. } => {
            Problem::failed_precondition(Reason::TestFailed, message).at(field)
        }
        PatchErrorKind::Document(error) => document_refused(&error, &field),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use super::said;

    #[test]
    fn what_an_error_says_of_the_effect_is_not_said_twice() {
        assert_eq!(said(&"the key exists; no effect"), "the key exists");
        assert_eq!(said(&"behind; no effect, try another region or later"), "behind");
        assert_eq!(said(&"outcome unknown: 1 of 2 regions"), "1 of 2 regions");
    }
}
