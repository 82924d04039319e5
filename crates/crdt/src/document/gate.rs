//! The gate: what peers send passes here before automerge sees it.
//!
//! A peer's change is bytes of automerge's own format, and a damaged or hostile one can make automerge panic, take all
//! memory, or accept what it can never load again. So a change is refused unless it is exactly what this module would
//! have written: small by its headers, canonical to the byte, by the origin that the envelope names, next in that
//! origin's sequence, and with everything it builds on already here. What passes is applied, and must then come back as
//! it went in, or it is refused after all and the document must be loaded again: a copy to apply it to would cost a fifth
//! of the whole, and half a millisecond for a long history.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::legacy::{ElementId, Key, ObjectId, Op, OpType};
use automerge::{Automerge, Change, ChangeHash, ObjType, ScalarValue};
use thiserror::Error;

use super::conflicts::disputed_places;
use super::show::{Shape, View};
use super::{
    Document, DocumentError, MAX_BRANCHES, MAX_CHANGE_BYTES, MAX_CHANGE_OPS, MAX_COUNTER, MAX_HEADS,
};
use crate::Origin;
use crate::codec::{DecodeError, Reader};
use crate::json::MAX_DEPTH;

/// First bytes of everything automerge writes.
pub(super) const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
/// The chunk type of a change that is not deflated, the only one that travels.
pub(super) const CHANGE_CHUNK: u8 = 1;
/// What automerge puts before an actor, with the branch's number, when it writes at an old version.
const BRANCH_MARK: [u8; 4] = [0x13, 0xb2, 0x23, 0x09];
/// Most values one change says it overwrites: each of its operations ten concurrent ones.
const MAX_CHANGE_PREDECESSORS: usize = 10 * MAX_CHANGE_OPS;
/// Most operations in the history of one document: automerge counts them in 32 bits.
pub(super) const MAX_OPERATION_NUMBER: u64 = 1 << 31;

/// A change of a peer.
#[derive(Debug, Clone, Copy)]
pub struct PeerChange<'a> {
    /// The actor it must be by, or a branch of it: the bytes of the origin in its envelope.
    pub origin: &'a [u8],
    /// The raw change, as a write returned it there.
    pub bytes: &'a [u8],
}

/// What [`Document::apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Changes applied.
    pub applied: usize,
    /// Changes that were there already.
    pub known: usize,
    /// Places at which values stand beside each other since: one is shown, the others are hidden.
    pub disputed: usize,
}

/// Why a batch was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("document change{}: {kind}", change.map_or_else(String::new, |index| format!(" {index}")))]
pub struct GateError {
    /// The change that was refused, from 0; `None` when only the batch as a whole is known to be at fault.
    pub change: Option<usize>,
    /// Why.
    pub kind: GateErrorKind,
    /// Whether automerge had begun to apply it: then the document must be forgotten and loaded again. Else nothing was
    /// changed.
    pub spoiled: bool,
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GateErrorKind {
    /// It is not a change as members write them: the sender is damaged or hostile.
    #[error("malformed: {problem}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
    },
    /// It says it is more than a member writes.
    #[error("{what}: {size}, at most {limit} are accepted")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// How much, as far as it was counted.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Its actor is not the origin in its envelope.
    #[error("its actor is not its origin")]
    NotTheOrigins,
    /// The origin's change with that number is here and is another one: two lives of a store with one origin.
    #[error("another change {seq} of its actor is known")]
    Fork {
        /// The number.
        seq: u64,
    },
    /// It builds on something that is not here: it came too early.
    #[error("it builds on a change that is not here")]
    MissingDependency,
    /// Automerge refused or did not survive it.
    #[error("automerge {problem}")]
    Refused {
        /// What happened.
        problem: String,
    },
}

impl From<DecodeError> for GateErrorKind {
    fn from(_: DecodeError) -> Self {
        malformed("not the format of a change")
    }
}

fn malformed(problem: &'static str) -> GateErrorKind {
    GateErrorKind::Malformed { problem }
}

type Passed<T = ()> = Result<T, GateErrorKind>;

fn within(what: &'static str, size: usize, limit: usize) -> Passed {
    if size <= limit { Ok(()) } else { Err(GateErrorKind::TooLarge { what, size, limit }) }
}

/// Which branch of `origin` an actor is: 0 for the origin itself; `None` when it is another's.
pub(super) fn branch_of(actor: &[u8], origin: &[u8]) -> Option<u64> {
    if actor == origin {
        return Some(0);
    }
    let (branch, of) = actor.strip_prefix(&BRANCH_MARK)?.split_first()?; // the number is a varint, one byte below 128
    (of == origin && (1..=MAX_BRANCHES).contains(&u64::from(*branch))).then_some(u64::from(*branch))
}

/// The origin of which an actor is, as a branch or itself.
pub(super) fn origin_of(actor: &[u8]) -> Option<&[u8]> {
    let whole = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        Origin::decode(&mut reader).is_ok() && reader.finish().is_ok()
    };
    if whole(actor) {
        return Some(actor);
    }
    let (_, origin) = actor.strip_prefix(&BRANCH_MARK)?.split_first()?;
    whole(origin).then_some(origin)
}

/// The origin's side of the gate: whether a change that was just made is one that peers let through, as far as its bytes
/// tell.
pub(super) fn check_made(origin: &[u8], bytes: &[u8]) -> Result<(), DocumentError> {
    let passed = within("bytes of a change", bytes.len(), MAX_CHANGE_BYTES)
        .and_then(|()| check_headers(PeerChange { origin, bytes }));
    passed.map_err(|kind| DocumentError::NotPassed { problem: kind.to_string() })
}

impl Document {
    /// Applies changes of peers, all or none. A change may build on earlier ones of the batch. Applying a batch costs
    /// little more than applying one change, so changes of one document belong together.
    ///
    /// # Errors
    /// See [`GateErrorKind`]; the document is as it was, or spoiled: see [`GateError::spoiled`]. A change that makes
    /// automerge panic is refused too (the panic hook sees it).
    pub fn apply(&mut self, changes: &[PeerChange<'_>]) -> Result<Applied, GateError> {
        // What is a chain of plain edits needs no automerge.
        let mut ahead = 0;
        while let Some(change) = changes.get(ahead) {
            if !self.apply_ahead(*change).map_err(unsettled)? {
                break;
            }
            ahead += 1;
        }
        if ahead == changes.len() {
            return Ok(Applied { applied: ahead, known: 0, disputed: 0 });
        }
        let Applied { applied, known, disputed } =
            self.merge(&changes[ahead..]).map_err(|error| GateError {
                change: error.change.map(|index| ahead + index),
                spoiled: error.spoiled || ahead > 0, // what went ahead is there already
                kind: error.kind,
            })?;
        Ok(Applied { applied: ahead + applied, known, disputed })
    }

    /// [`Self::apply`] by automerge.
    pub(super) fn merge(&mut self, changes: &[PeerChange<'_>]) -> Result<Applied, GateError> {
        self.settle().map_err(unsettled)?;
        let panicked = || GateErrorKind::Refused { problem: "panicked".to_owned() };
        let mut batch = Batch::default();
        for (index, change) in changes.iter().enumerate() {
            let result = catch_unwind(AssertUnwindSafe(|| batch.examine(&self.automerge, *change)));
            let refused = |kind| GateError { change: Some(index), kind, spoiled: false };
            result.unwrap_or_else(|_| Err(panicked())).map_err(refused)?;
        }
        let (applied, mut disputed) = (batch.changes.len(), 0);
        if applied > 0 {
            let taken = batch.changes.clone();
            let result = catch_unwind(AssertUnwindSafe(|| batch.apply(&mut self.automerge)));
            let refused = |kind| GateError { change: None, kind, spoiled: true };
            let (shown, shape, places) = result.unwrap_or_else(|_| Err(panicked())).map_err(refused)?;
            disputed = places;
            self.light.merged(self.automerge.get_heads(), taken);
            (self.light.shown, self.light.bound) = (Some(shown.into()), Some(shape));
        }
        Ok(Applied { applied, known: changes.len() - applied, disputed })
    }
}

/// Automerge does not take what is ahead of it.
fn unsettled(error: DocumentError) -> GateError {
    GateError { change: None, kind: GateErrorKind::Refused { problem: error.to_string() }, spoiled: true }
}

/// The changes that passed so far.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    places: BTreeMap<[u8; 32], usize>,
}

impl Batch {
    /// Checks everything that can be checked without applying.
    fn examine(&mut self, document: &Automerge, peer: PeerChange<'_>) -> Passed {
        within("bytes of a change", peer.bytes.len(), MAX_CHANGE_BYTES)?;
        check_headers(peer)?;
        let change =
            Change::from_bytes(peer.bytes.to_vec()).map_err(|_| malformed("its columns do not decode"))?;
        let hash = change.hash();
        if hash.0[..4] != peer.bytes[MAGIC.len()..MAGIC.len() + 4] {
            return Err(malformed("its checksum does not fit"));
        }
        if self.places.contains_key(&hash.0) || document.get_change_meta_by_hash(&hash).is_some() {
            return Ok(());
        }
        if change.start_op().get() + change.len() as u64 > MAX_OPERATION_NUMBER {
            return Err(malformed("its operations are numbered beyond 31 bits"));
        }
        self.check_place(document, &change)?;
        let decoded = change.decode();
        let mut levels = BTreeMap::new(); // of the objects this change makes, by the number of the operation
        for (number, operation) in (change.start_op().get()..).zip(&decoded.operations) {
            check_operation(operation, number)?;
            if let OpType::Make(ObjType::Map | ObjType::List) = operation.action {
                let level = match &operation.obj {
                    ObjectId::Id(id) if id.actor() == change.actor_id() => {
                        levels.get(&id.counter()).unwrap_or(&1) + 1
                    }
                    _ => 2, // in the root, which is level 1, or deeper
                };
                within("levels of nesting", level, MAX_DEPTH)?;
                levels.insert(number, level);
            }
        }
        self.places.insert(hash.0, self.changes.len());
        self.changes.push(change);
        Ok(())
    }

    /// Whether everything that the change builds on is here, its actor's previous change among it.
    fn check_place(&self, document: &Automerge, change: &Change) -> Passed {
        let mut follows = change.seq() == 1;
        for hash in change.deps() {
            let (actor, seq, last) = if let Some(&at) = self.places.get(&hash.0) {
                let known = &self.changes[at];
                (known.actor_id().clone(), known.seq(), known.max_op())
            } else if let Some(known) = document.get_change_meta_by_hash(hash) {
                (known.actor.into_owned(), known.seq, known.max_op)
            } else {
                return Err(GateErrorKind::MissingDependency);
            };
            if change.start_op().get() <= last {
                return Err(malformed("its operations are numbered below those it builds on"));
            }
            follows |= actor == *change.actor_id() && seq + 1 == change.seq();
        }
        if follows || self.has(document, change.actor_id(), change.seq() - 1) {
            return Ok(());
        }
        Err(GateErrorKind::MissingDependency)
    }

    /// Whether an actor's change is here. Walks the history: only a branch's change, which names the version it was
    /// written at and not its predecessor, asks for it.
    fn has(&self, document: &Automerge, actor: &automerge::ActorId, seq: u64) -> bool {
        let batch = self.changes.iter().any(|known| known.actor_id() == actor && known.seq() == seq);
        batch || document.get_changes_meta(&[]).iter().any(|known| *known.actor == *actor && known.seq == seq)
    }

    /// Whether one of the changes has not seen all that there is before it.
    fn is_concurrent(&self, mut heads: Vec<ChangeHash>) -> bool {
        self.changes.iter().any(|change| {
            let seen = heads.iter().all(|head| change.deps().contains(head));
            heads = vec![change.hash()];
            !seen
        })
    }

    /// Applies the changes and reads the document: what cannot be read is not accepted. Says at how many places values
    /// stand beside each other since.
    fn apply(self, document: &mut Automerge) -> Passed<(Vec<u8>, Shape, usize)> {
        let applied = self.changes.len();
        let before = document.get_heads();
        // Only what was written apart can dispute a place: others need no count.
        let disputed_before = self.is_concurrent(before.clone()).then(|| disputed_places(document));
        document.apply_changes(self.changes).map_err(|error| match error {
            automerge::AutomergeError::DuplicateSeqNumber(seq, _) => GateErrorKind::Fork { seq },
            other => GateErrorKind::Refused { problem: format!("refused it: {other}") },
        })?;
        // A saved document has no changes, only what they did; loading makes them again and compares the hashes. A change
        // in another form than ours, or one whose operations contradict each other, would not come back: the document
        // could never be loaded again.
        let rebuilt = document.get_changes(&before);
        let same = |change: &Change| self.places.contains_key(&change.hash().0);
        if rebuilt.len() != applied || !rebuilt.iter().all(same) {
            return Err(malformed(
                "it could not be loaded again: not in canonical form, or contradicting itself",
            ));
        }
        let disputed = disputed_before.map_or(0, |before| disputed_places(document).saturating_sub(before));
        let (shown, shape) = View::now(&*document).canonical();
        Ok((shown, shape, disputed))
    }
}

/// What no member writes: values that are no JSON, amounts beyond a counter's range, references to the future.
fn check_operation(operation: &Op, number: u64) -> Passed {
    let range = -MAX_COUNTER..=MAX_COUNTER;
    match &operation.action {
        OpType::Put(ScalarValue::F64(value)) if !value.is_finite() => {
            return Err(malformed("a float is not finite"));
        }
        OpType::Put(ScalarValue::Counter(counter)) if !range.contains(&i64::from(counter)) => {
            return Err(malformed("a counter starts beyond its range"));
        }
        // From one end of the range to the other.
        OpType::Increment(by) if !range.contains(&(by / 2)) => {
            return Err(malformed("an increment is beyond a counter's range"));
        }
        _ => {}
    }
    let holder = if let ObjectId::Id(id) = &operation.obj { id.counter() } else { 0 };
    let element = if let Key::Seq(ElementId::Id(id)) = &operation.key { id.counter() } else { 0 };
    let predecessor = operation.pred.iter().map(|id| id.counter()).max().unwrap_or(0);
    if holder.max(element).max(predecessor) >= number {
        return Err(malformed("an operation names a later one"));
    }
    Ok(())
}

/// Reads the headers and the run lengths of the columns, so that nothing is expanded that claims too much.
pub(super) fn check_headers(peer: PeerChange<'_>) -> Passed {
    let mut r = Reader::new(peer.bytes);
    if r.array("magic")? != MAGIC {
        return Err(malformed("not automerge's format"));
    }
    r.array::<4>("checksum")?;
    if r.u8("chunk type")? != CHANGE_CHUNK {
        return Err(malformed("not a plain change"));
    }
    if r.varint("length")? != r.rest().len() as u64 {
        return Err(malformed("its length does not fit"));
    }
    let mut dependencies: Vec<[u8; 32]> = Vec::new();
    for _ in 0..r.varint("dependencies")? {
        dependencies.push(r.array("dependency")?);
        within("dependencies", dependencies.len(), MAX_HEADS)?;
    }
    if !dependencies.is_sorted_by(|a, b| a < b) {
        return Err(malformed("its dependencies are not strictly ascending"));
    }
    if branch_of(r.bytes("actor")?, peer.origin).is_none() {
        return Err(GateErrorKind::NotTheOrigins);
    }
    if r.varint("seq")? == 0 {
        return Err(malformed("its number is 0"));
    }
    r.varint("first operation")?;
    signed(&mut r)?; // time: a note
    if !r.bytes("message")?.is_empty() {
        return Err(malformed("it has a message"));
    }
    for _ in 0..r.varint("other actors")? {
        r.bytes("other actor")?;
    }
    let mut columns = Vec::new();
    for _ in 0..r.varint("columns")? {
        columns.push((r.varint("column")?, r.varint("column length")?));
        within("columns", columns.len(), Column::COUNT)?;
    }
    let mut totals = Totals::default();
    for (specification, length) in columns {
        let length = usize::try_from(length).map_err(|_| malformed("a column is longer than memory"))?;
        totals.add(Column::new(specification)?, r.take(length, "column data")?)?;
    }
    if !r.rest().is_empty() {
        return Err(malformed("bytes follow its columns"));
    }
    totals.check()
}

/// The columns that members write; marks and deflated columns are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    /// Unsigned numbers, one for each operation.
    Numbers,
    /// Differences, one for each operation.
    Differences,
    Keys,
    Insert,
    Action,
    ValueMeta,
    Values,
    PredecessorCount,
    PredecessorActor,
    PredecessorCounter,
}

impl Column {
    const COUNT: usize = 12;

    /// By automerge's column specification: number << 4 | deflated << 3 | type.
    fn new(specification: u64) -> Passed<Self> {
        Ok(match specification {
            0x01 | 0x02 | 0x11 => Self::Numbers, // actor and counter of the object, actor of the list element
            0x13 => Self::Differences,           // counter of the list element
            0x15 => Self::Keys,
            0x34 => Self::Insert,
            0x42 => Self::Action,
            0x56 => Self::ValueMeta,
            0x57 => Self::Values,
            0x70 => Self::PredecessorCount,
            0x71 => Self::PredecessorActor,
            0x73 => Self::PredecessorCounter,
            _ => return Err(malformed("a column that members do not write")),
        })
    }
}

/// What the columns say they expand to.
#[derive(Default)]
struct Totals {
    operations: usize,
    value_bytes: usize,
    declared_value_bytes: usize,
    predecessors: usize,
}

impl Totals {
    fn add(&mut self, column: Column, data: &[u8]) -> Passed {
        const OPERATIONS: (&str, usize) = ("operations of a change", MAX_CHANGE_OPS);
        const PREDECESSORS: (&str, usize) = ("values a change overwrites", MAX_CHANGE_PREDECESSORS);
        match column {
            Column::Numbers => runs(data, OPERATIONS, skip_unsigned)?,
            Column::Differences => runs(data, OPERATIONS, skip_signed)?,
            Column::Keys => {
                let mut bytes = 0_usize;
                runs(data, OPERATIONS, |r, copies| {
                    bytes = bytes.saturating_add(r.bytes("key")?.len().saturating_mul(copies));
                    within("bytes of a change's keys", bytes, MAX_CHANGE_BYTES)
                })?
            }
            Column::Insert => {
                let (mut r, mut count) = (Reader::new(data), 0_usize);
                while !r.rest().is_empty() {
                    count = count.saturating_add(as_count(r.varint("run")?));
                    within(OPERATIONS.0, count, OPERATIONS.1)?;
                }
                count
            }
            Column::Action => {
                self.operations = runs(data, OPERATIONS, |r, _| match r.varint("action")? {
                    0..=5 => Ok(()), // map, put, list, delete, text, increment
                    _ => Err(malformed("an operation that members do not write")),
                })?;
                self.operations
            }
            Column::ValueMeta => runs(data, OPERATIONS, |r, copies| {
                let meta = r.varint("value")?;
                if !matches!(meta & 0xf, 0..=6 | 8) {
                    return Err(malformed("a value that is no JSON")); // bytes, timestamps, the future
                }
                let bytes = as_count(meta >> 4).saturating_mul(copies);
                self.declared_value_bytes = self.declared_value_bytes.saturating_add(bytes);
                Ok(())
            })?,
            Column::Values => {
                self.value_bytes = data.len();
                0
            }
            Column::PredecessorCount => runs(data, OPERATIONS, |r, copies| {
                let count = as_count(r.varint("overwritten values")?).saturating_mul(copies);
                self.predecessors = self.predecessors.saturating_add(count);
                within(PREDECESSORS.0, self.predecessors, PREDECESSORS.1)
            })?,
            Column::PredecessorActor => runs(data, PREDECESSORS, skip_unsigned)?,
            Column::PredecessorCounter => runs(data, PREDECESSORS, skip_signed)?,
        };
        Ok(())
    }

    fn check(&self) -> Passed {
        if self.operations == 0 {
            return Err(malformed("it has no operations"));
        }
        if self.declared_value_bytes != self.value_bytes {
            return Err(malformed("its values do not fit their lengths"));
        }
        Ok(())
    }
}

/// Walks a run-length encoded column: a positive number and a value repeated, a negative number and as many values, or
/// 0 and a number of nulls. `value` reads one value that stands for so many copies. Returns the rows, which are bounded
/// before anything is expanded.
fn runs(
    data: &[u8],
    (what, limit): (&'static str, usize),
    mut value: impl FnMut(&mut Reader<'_>, usize) -> Passed,
) -> Passed<usize> {
    let (mut r, mut rows) = (Reader::new(data), 0_usize);
    while !r.rest().is_empty() {
        let run = signed(&mut r)?;
        let length = as_count(if run == 0 { r.varint("nulls")? } else { run.unsigned_abs() });
        rows = rows.saturating_add(length);
        within(what, rows, limit)?;
        match run {
            0 => {}
            1.. => value(&mut r, length)?,
            _ => {
                for _ in 0..length {
                    value(&mut r, 1)?;
                }
            }
        }
    }
    Ok(rows)
}

fn skip_unsigned(r: &mut Reader<'_>, _copies: usize) -> Passed {
    r.varint("number")?;
    Ok(())
}

fn skip_signed(r: &mut Reader<'_>, _copies: usize) -> Passed {
    signed(r)?;
    Ok(())
}

/// A number as a count; what does not fit is beyond every limit.
fn as_count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A signed LEB128 number.
pub(super) fn signed(r: &mut Reader<'_>) -> Passed<i64> {
    let (mut value, mut shift) = (0_i64, 0);
    loop {
        let byte = r.u8("signed number")?;
        if shift > 63 {
            return Err(malformed("a number beyond 64 bits"));
        }
        value |= i64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            let negative = byte & 0x40 != 0 && shift < 64;
            return Ok(if negative { value | (-1 << shift) } else { value });
        }
    }
}
