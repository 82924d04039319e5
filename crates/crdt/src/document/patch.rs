//! Typed operations on a document, and the two JSON patch formats read into them.

use std::collections::BTreeMap;

use automerge::transaction::Transaction;
use automerge::{ObjId, ObjType, Prop, ROOT, ReadDoc};
use thiserror::Error;

use super::DocumentError;
use super::diff::{Placing, Step, Writer};
use super::show::{Node, View};
use crate::json::{Json, Pointer, PointerError, index, shown};

/// Most operations of one patch: what a client may ask for in one request without a hand on the others' latency.
pub const MAX_PATCH_OPS: usize = 1_000;

/// One operation. Places are JSON Pointers into the document as the operations before it left it.
#[derive(Debug, Clone, PartialEq)]
pub enum PatchOp {
    /// Makes the place show `value`: a key, new or not, or an item that exists.
    Set {
        /// Where.
        path: Pointer,
        /// What.
        value: Json,
    },
    /// As [`PatchOp::Set`] where something is already.
    Replace {
        /// Where.
        path: Pointer,
        /// What.
        value: Json,
    },
    /// Puts `value` before the item with that index (`-`: behind the last), or at a key, as [`PatchOp::Set`].
    Insert {
        /// Where.
        path: Pointer,
        /// What.
        value: Json,
    },
    /// Removes a key or an item that exists.
    Remove {
        /// Where.
        path: Pointer,
    },
    /// Adds to a counter. A plain number is refused, never converted.
    Increment {
        /// Where.
        path: Pointer,
        /// How much, either sign.
        by: i64,
    },
    /// Replaces `delete` characters of a text from `index` on; both count Unicode code points. A plain string is refused.
    SpliceText {
        /// Where the text is.
        path: Pointer,
        /// First character.
        index: usize,
        /// How many go.
        delete: usize,
        /// What comes.
        insert: String,
    },
    /// Fails unless the place shows `value`; numbers compare as numbers.
    Test {
        /// Where.
        path: Pointer,
        /// What.
        value: Json,
    },
    /// Removes the value at `from` and inserts it at `path`.
    Move {
        /// Whence.
        from: Pointer,
        /// Whither, in the document without it.
        path: Pointer,
    },
    /// Inserts the value at `from` at `path` too.
    Copy {
        /// Whence.
        from: Pointer,
        /// Whither.
        path: Pointer,
    },
    /// Merges by RFC 7396: objects by key, `null` removes, anything else replaces.
    Merge {
        /// Where.
        path: Pointer,
        /// The merge patch.
        value: Json,
    },
}

/// Why a patch was not applied. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("patch{}: {kind}", op_index.map_or_else(String::new, |index| format!(" operation {index}")))]
pub struct PatchError {
    /// The operation that failed, from 0; `None` when it is the patch as a whole.
    pub op_index: Option<usize>,
    /// What is wrong with it.
    pub kind: PatchErrorKind,
}

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatchErrorKind {
    /// It cannot be right in any document.
    #[error("{problem}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
    },
    /// A pointer that is none, or that does not fit what it leads through.
    #[error(transparent)]
    Path(#[from] PointerError),
    /// Too many operations.
    #[error("{count} operations; at most {MAX_PATCH_OPS} are accepted: send several patches")]
    TooManyOperations {
        /// How many.
        count: usize,
    },
    /// There is nothing at that place.
    #[error("nothing at {path}")]
    NotFound {
        /// The place.
        path: String,
    },
    /// What is there is not what the operation works on.
    #[error("{path} is {found}, not {expected}")]
    WrongType {
        /// The place.
        path: String,
        /// What is there.
        found: &'static str,
        /// What it takes.
        expected: &'static str,
    },
    /// An index or a range beyond the end.
    #[error("{path} ends at {length}, before {index}")]
    OutOfRange {
        /// The array or text.
        path: String,
        /// Where the operation reaches.
        index: usize,
        /// Items or characters there are.
        length: usize,
    },
    /// The place does not show what the test says.
    #[error("{path} does not show the value tested for")]
    TestFailed {
        /// The place.
        path: String,
    },
    /// What the document does not take.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

impl From<DocumentError> for PatchError {
    fn from(error: DocumentError) -> Self {
        Self { op_index: None, kind: error.into() }
    }
}

/// Reads an RFC 6902 patch: an array of `add`, `remove`, `replace`, `move`, `copy` and `test`.
///
/// # Errors
/// Anything that is no such patch, with the operation.
pub fn from_json_patch(patch: &Json) -> Result<Vec<PatchOp>, PatchError> {
    let Json::Array(operations) = patch else {
        return malformed("a JSON patch is an array of operations")
            .map_err(|kind| PatchError { op_index: None, kind });
    };
    check_count(operations.len())?;
    let read = |(op_index, operation): (usize, &Json)| {
        let refuse = |kind| PatchError { op_index: Some(op_index), kind };
        let Json::Object(members) = operation else {
            return malformed("an operation is an object").map_err(refuse);
        };
        json_patch_operation(members).map_err(refuse)
    };
    operations.iter().enumerate().map(read).collect()
}

/// Reads an RFC 7396 patch of a whole document.
///
/// # Errors
/// Anything but an object, `null` among it: a document's root stays an object.
pub fn from_merge_patch(patch: &Json) -> Result<Vec<PatchOp>, PatchError> {
    match patch {
        Json::Object(_) => Ok(vec![PatchOp::Merge { path: Pointer::root(), value: patch.clone() }]),
        other => Err(DocumentError::RootNotObject { found: other.type_name() }.into()),
    }
}

fn json_patch_operation(members: &BTreeMap<String, Json>) -> Ran<PatchOp> {
    let pointer = |name: &str| match members.get(name) {
        Some(Json::String(text)) => Ok(Pointer::parse(text)?),
        Some(_) => malformed("path and from are strings"),
        None => malformed("path or from is missing"),
    };
    let value = || match members.get("value") {
        Some(value) => Ok(value.clone()),
        None => malformed("value is missing"),
    };
    let Some(Json::String(name)) = members.get("op") else {
        return malformed("op is missing or no string");
    };
    let path = pointer("path")?;
    Ok(match name.as_str() {
        "add" => PatchOp::Insert { path, value: value()? },
        "remove" => PatchOp::Remove { path },
        "replace" => PatchOp::Replace { path, value: value()? },
        "move" => PatchOp::Move { from: pointer("from")?, path },
        "copy" => PatchOp::Copy { from: pointer("from")?, path },
        "test" => PatchOp::Test { path, value: value()? },
        _ => return malformed("op is none of add, remove, replace, move, copy, test"),
    })
}

pub(super) fn check_count(count: usize) -> Result<(), PatchError> {
    if count <= MAX_PATCH_OPS {
        return Ok(());
    }
    Err(PatchError { op_index: None, kind: PatchErrorKind::TooManyOperations { count } })
}

/// Runs the operations in order; the first that fails ends it.
pub(super) fn run(writer: &mut Writer<'_, '_>, operations: &[PatchOp]) -> Result<(), PatchError> {
    for (op_index, operation) in operations.iter().enumerate() {
        let result = run_one(writer, operation);
        result.map_err(|kind| PatchError { op_index: Some(op_index), kind })?;
    }
    Ok(())
}

type Ran<T = ()> = Result<T, PatchErrorKind>;

fn malformed<T>(problem: &'static str) -> Ran<T> {
    Err(PatchErrorKind::Malformed { problem })
}

fn run_one(writer: &mut Writer<'_, '_>, operation: &PatchOp) -> Ran {
    match operation {
        PatchOp::Set { path, value } => put(writer, path, value, Demand::Nothing),
        PatchOp::Replace { path, value } => put(writer, path, value, Demand::Exists),
        PatchOp::Insert { path, value } => insert(writer, path, value),
        PatchOp::Remove { path } => remove(writer, path),
        PatchOp::Increment { path, by } => increment(writer, path, *by),
        PatchOp::SpliceText { path, index, delete, insert } => splice(writer, path, *index, *delete, insert),
        PatchOp::Test { path, value } => {
            if same_value(&read(writer, path)?, value) {
                return Ok(());
            }
            Err(PatchErrorKind::TestFailed { path: show(path) })
        }
        PatchOp::Move { from, path } => {
            let value = read(writer, from)?;
            if from == path {
                return Ok(());
            }
            if from.contains(path) {
                return malformed("a value cannot be moved into itself");
            }
            remove(writer, from)?;
            insert(writer, path, &value)
        }
        PatchOp::Copy { from, path } => {
            let value = read(writer, from)?;
            insert(writer, path, &value)
        }
        PatchOp::Merge { path, value } => {
            let target = match read(writer, path) {
                Ok(target) => Some(target),
                Err(PatchErrorKind::NotFound { .. }) => None,
                Err(error) => return Err(error),
            };
            put(writer, path, &merged(target, value), Demand::Nothing)
        }
    }
}

/// What must be at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    Nothing,
    Exists,
}

/// An entry of an object or array, there or not.
struct Place {
    object: ObjId,
    entry: Prop,
    /// Items of the array, when it is one.
    length: Option<usize>,
}

/// Finds the container of a place below the root, and stands the writer there.
fn locate(writer: &mut Writer<'_, '_>, path: &Pointer) -> Ran<Place> {
    let (mut object, mut kind) = (ROOT, ObjType::Map);
    let mut steps = Vec::with_capacity(path.segments().len());
    let last = path.segments().len().saturating_sub(1);
    for (at, segment) in path.segments().iter().enumerate() {
        let is_last = at == last;
        let length = (kind == ObjType::List).then(|| writer.transaction.length(&object));
        let (entry, step) = match length {
            None => (Prop::Map(segment.clone()), Step::Key(segment.clone())),
            Some(length) => {
                let index = match index(segment) {
                    Err(_) if is_last && segment == "-" => length,
                    Err(problem) => return Err(path.error_at(at, problem).into()),
                    Ok(index) => index,
                };
                (Prop::Seq(index), Step::Index(index))
            }
        };
        steps.push(step);
        if is_last {
            writer.go_to(steps);
            return Ok(Place { object, entry, length });
        }
        (object, kind) = match enter(writer.transaction, &object, entry) {
            Some(container) => container,
            None => return Err(PatchErrorKind::NotFound { path: show(path) }),
        };
    }
    malformed("the root is no entry of anything")
}

/// The object or array at an entry; nothing lies inside texts and plain values.
fn enter(transaction: &Transaction<'_>, object: &ObjId, entry: Prop) -> Option<(ObjId, ObjType)> {
    View::now(transaction).object_at(object, entry).filter(|(_, kind)| *kind != ObjType::Text)
}

/// What is at a place that must exist.
fn find(writer: &mut Writer<'_, '_>, path: &Pointer) -> Ran<(Place, Node)> {
    let place = locate(writer, path)?;
    match writer.entry(&place.object, place.entry.clone())? {
        Some(node) => Ok((place, node)),
        None => Err(PatchErrorKind::NotFound { path: show(path) }),
    }
}

fn read(writer: &mut Writer<'_, '_>, path: &Pointer) -> Ran<Json> {
    if path.is_root() {
        return Ok(writer.root()?.to_json());
    }
    Ok(find(writer, path)?.1.to_json())
}

fn put(writer: &mut Writer<'_, '_>, path: &Pointer, value: &Json, demand: Demand) -> Ran {
    if path.is_root() {
        let Json::Object(entries) = value else {
            return Err(DocumentError::RootNotObject { found: value.type_name() }.into());
        };
        let shown = writer.root()?;
        writer.go_to(Vec::new());
        return Ok(writer.replace_root(&shown, entries)?);
    }
    let place = locate(writer, path)?;
    match writer.entry(&place.object, place.entry.clone())? {
        Some(shown) => Ok(writer.replace(&place.object, place.entry, &shown, value)?),
        None if demand == Demand::Exists => Err(PatchErrorKind::NotFound { path: show(path) }),
        None => match (place.length, &place.entry) {
            (Some(length), Prop::Seq(index)) => {
                Err(PatchErrorKind::OutOfRange { path: show(path), index: *index, length })
            }
            _ => Ok(writer.put(&place.object, place.entry, value, Placing::Over)?),
        },
    }
}

fn insert(writer: &mut Writer<'_, '_>, path: &Pointer, value: &Json) -> Ran {
    if path.is_root() {
        return put(writer, path, value, Demand::Nothing);
    }
    let place = locate(writer, path)?;
    match (place.length, &place.entry) {
        (Some(length), Prop::Seq(index)) if *index > length => {
            Err(PatchErrorKind::OutOfRange { path: show(path), index: *index, length })
        }
        (Some(_), _) => Ok(writer.put(&place.object, place.entry, value, Placing::Before)?),
        (None, _) => put(writer, path, value, Demand::Nothing),
    }
}

fn remove(writer: &mut Writer<'_, '_>, path: &Pointer) -> Ran {
    if path.is_root() {
        return malformed("the root cannot be removed; delete the key instead");
    }
    let (place, _) = find(writer, path)?;
    Ok(writer.remove(&place.object, place.entry)?)
}

fn increment(writer: &mut Writer<'_, '_>, path: &Pointer, by: i64) -> Ran {
    let (place, node) = find(writer, path)?;
    let Node::Counter(before) = node else {
        let (path, found) = (show(path), node.to_json().type_name());
        return Err(PatchErrorKind::WrongType { path, found, expected: "a counter" });
    };
    if by == 0 {
        return Ok(());
    }
    Ok(writer.increment(&place.object, place.entry, before, i128::from(by))?)
}

fn splice(writer: &mut Writer<'_, '_>, path: &Pointer, index: usize, delete: usize, insert: &str) -> Ran {
    let place = locate(writer, path)?;
    let text = match View::now(&*writer.transaction).object_at(&place.object, place.entry.clone()) {
        Some((text, ObjType::Text)) => text,
        _ => {
            let (_, node) = find(writer, path)?;
            let (path, found) = (show(path), node.to_json().type_name());
            return Err(PatchErrorKind::WrongType { path, found, expected: "a text of a text path" });
        }
    };
    let length = writer.transaction.length(&text);
    let end = index.saturating_add(delete);
    if end > length {
        return Err(PatchErrorKind::OutOfRange { path: show(path), index: end, length });
    }
    Ok(writer.splice_text(&text, index, delete, insert)?)
}

fn show(path: &Pointer) -> String {
    shown(&path.to_string())
}

/// RFC 7396.
fn merged(target: Option<Json>, patch: &Json) -> Json {
    let Json::Object(patch) = patch else {
        return patch.clone();
    };
    let mut entries = if let Some(Json::Object(entries)) = target { entries } else { BTreeMap::new() };
    for (key, value) in patch {
        let before = entries.remove(key);
        if *value != Json::Null {
            entries.insert(key.clone(), merged(before, value));
        }
    }
    Json::Object(entries)
}

/// Equality as RFC 6902 defines it: numbers by what they are worth.
fn same_value(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Array(a), Json::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b))
        }
        (Json::Object(a), Json::Object(b)) => {
            let same = |((key, a), (other, b)): ((&String, &Json), (&String, &Json))| {
                key == other && same_value(a, b)
            };
            a.len() == b.len() && a.iter().zip(b).all(same)
        }
        (Json::Float(float), integer) | (integer, Json::Float(float)) => match integer {
            Json::Float(other) => float == other,
            Json::Int(integer) => *float == *integer as f64 && *float as i128 == i128::from(*integer),
            Json::Uint(integer) => *float == *integer as f64 && *float as i128 == i128::from(*integer),
            _ => false,
        },
        _ => a == b,
    }
}
