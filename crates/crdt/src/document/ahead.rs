//! Writes ahead of automerge: edits of plain entries of maps, which are most writes, become changes without automerge.
//!
//! Such an edit needs little: where the origin stands in the document, which values it replaces, and what the document
//! shows. From that follow the change (`encode.rs`) and the new canonical JSON. Automerge is given the changes later,
//! all at once, when something asks for more: applying ten together costs what making one edit in it costs. What one
//! edit costs then depends neither on the size of the history nor on that of the document's other values.
//!
//! Invariants, while changes are ahead: they are a chain on top of everything in `automerge`; every entry they wrote is
//! in `entries`; what the document shows is known and within the limits of a write.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::{ActorId, Automerge, Change, ChangeHash, ObjId, ObjType, Prop, ROOT, ReadDoc, Value};
use bytes::Bytes;

use super::diff::{Kind, kind_at};
use super::encode::{Action, Head, MapOp, OpId, encode};
use super::gate::check_made;
use super::show::{Node, Shape, View};
use super::{Document, DocumentError, MAX_COUNTER, PatchOp, Paths};
use crate::json::{Json, JsonLimits, Pointer, Segment, index, parse, spliced, write_canonical};

/// Most changes ahead: some 0.5 ms of one core to give automerge at once, and 6 ms behind 10 000 increments of one counter.
const MAX_CHANGES_AHEAD: usize = 64;
/// Most edits of one write ahead of automerge: each looks at the others ...
const MAX_EDITS_AHEAD: usize = 16;
/// ... and copies what the document shows: bytes copied, some 1 ms.
const MAX_COPIED_AHEAD: usize = 2 << 20;
/// Most entries remembered, each some 200 bytes ...
const MAX_ENTRIES: usize = 64;
/// ... and its text, of which longer ones are left to automerge.
const MAX_TEXT_AHEAD: usize = 1024;

/// What is remembered of a document beside automerge.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead {
    /// Changes that automerge has not seen, with their hashes, each on top of the one before.
    changes: Vec<([u8; 32], Vec<u8>)>,
    /// Where the next change of the document's actor goes; `None`: not known.
    place: Option<Place>,
    /// Entries of maps as the changes left them, and others that were read since automerge last changed.
    entries: BTreeMap<Pointer, Entry>,
}

#[derive(Debug, Clone)]
struct Place {
    /// Number and hash of the actor's last change.
    seq: u64,
    last: [u8; 32],
    /// The highest number of an operation in the document.
    last_op: u64,
}

/// One entry of a map.
#[derive(Debug, Clone)]
struct Entry {
    /// The operation that made the map; `None`: the root.
    map: Option<OpId>,
    /// Which segments of its path are indices.
    indices: Vec<bool>,
    /// The values there, ascending: more than one after concurrent writes. Of counters all are counters.
    values: Vec<OpId>,
    shown: Shown,
}

#[derive(Debug, Clone)]
enum Shown {
    Nothing,
    Plain(Json),
    Counter(i64),
}

/// An edit of one entry of a map.
#[derive(Debug)]
pub(super) struct Edit<'a> {
    path: Cow<'a, Pointer>,
    what: What<'a>,
}

#[derive(Debug, Clone, Copy)]
enum What<'a> {
    Set(&'a Json),
    Remove,
    Increment(i64),
}

/// What became of a write that was tried ahead of automerge.
pub(super) enum Tried {
    /// The change, or `None` when there is no difference.
    Done(Option<Vec<u8>>),
    /// Nothing: it needs automerge.
    NeedsAutomerge,
}

impl Ahead {
    /// Changes ahead.
    pub(super) fn count(&self) -> usize {
        self.changes.len()
    }

    /// Their raw bytes, in order.
    pub(super) fn raw(&self) -> impl Iterator<Item = &[u8]> {
        self.changes.iter().map(|(_, bytes)| &bytes[..])
    }

    /// The hash of the last: the document's only head.
    pub(super) fn head(&self) -> Option<[u8; 32]> {
        self.changes.last().map(|(hash, _)| *hash)
    }

    pub(super) fn contains(&self, hash: &[u8; 32]) -> bool {
        self.changes.iter().any(|(known, _)| known == hash)
    }

    /// Automerge made a change of the document's actor.
    pub(super) fn made(&mut self, automerge: &Automerge, hash: ChangeHash) {
        self.entries.clear();
        self.place = automerge
            .get_change_meta_by_hash(&hash)
            .filter(|made| *made.actor == *automerge.get_actor())
            .map(|made| Place { seq: made.seq, last: hash.0, last_op: made.max_op });
    }

    /// Automerge took changes of peers.
    pub(super) fn merged<'c>(&mut self, actor: &ActorId, changes: impl Iterator<Item = &'c Change>) {
        self.entries.clear();
        for change in changes {
            if change.actor_id() == actor {
                self.place = None;
            } else if let Some(place) = &mut self.place {
                place.last_op = place.last_op.max(change.max_op());
            }
        }
    }

    /// Automerge changed in some other way.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A patch as edits of entries, if it is nothing else.
pub(super) fn edits_of<'a>(operations: &'a [PatchOp]) -> Option<Vec<Edit<'a>>> {
    if operations.len() > MAX_EDITS_AHEAD {
        return None;
    }
    let edit = |operation: &'a PatchOp| {
        let (path, what) = match operation {
            PatchOp::Set { path, value } if is_plain(value) => (path, What::Set(value)),
            PatchOp::Remove { path } => (path, What::Remove),
            PatchOp::Increment { path, by } => (path, What::Increment(*by)),
            _ => return None,
        };
        Some(Edit { path: Cow::Borrowed(path), what })
    };
    operations.iter().map(edit).collect()
}

/// A value that is no container, and not too long to remember.
fn is_plain(value: &Json) -> bool {
    match value {
        Json::Array(_) | Json::Object(_) => false,
        Json::String(text) => text.len() <= MAX_TEXT_AHEAD,
        _ => true,
    }
}

/// The edits of entries that lead from `before` to `after`; `None` when it takes others, or more.
fn between<'a>(before: &Json, after: &'a Json, at: &Pointer, edits: &mut Vec<Edit<'a>>) -> Option<()> {
    let (Json::Object(before), Json::Object(after)) = (before, after) else { return None };
    for (key, old) in before {
        if !after.contains_key(key) {
            if !is_plain(old) {
                return None;
            }
            edits.push(Edit { path: Cow::Owned(at.child(key)), what: What::Remove });
        }
    }
    for (key, new) in after {
        match before.get(key) {
            Some(old) if old == new => {}
            Some(old @ Json::Object(_)) => between(old, new, &at.child(key), edits)?,
            Some(Json::Array(_)) => return None,
            _ if !is_plain(new) => return None,
            _ => edits.push(Edit { path: Cow::Owned(at.child(key)), what: What::Set(new) }),
        }
        if edits.len() > MAX_EDITS_AHEAD {
            return None;
        }
    }
    Some(())
}

impl Document {
    /// Gives automerge the changes that are ahead of it.
    ///
    /// # Errors
    /// Automerge does not take them, a defect here: the document must be forgotten then.
    pub fn settle(&mut self) -> Result<(), DocumentError> {
        let Some(head) = self.ahead.head() else { return Ok(()) };
        let refused = |problem: String| DocumentError::Refused { problem };
        let changes: Result<Vec<Change>, _> =
            self.ahead.changes.drain(..).map(|(_, bytes)| Change::from_bytes(bytes)).collect();
        let changes = changes.map_err(|error| refused(error.to_string()))?;
        catch_unwind(AssertUnwindSafe(|| self.automerge.apply_changes(changes)))
            .map_err(|_| refused("automerge panicked".to_owned()))?
            .map_err(|error| refused(error.to_string()))?;
        if self.automerge.get_heads() != [ChangeHash(head)] {
            return Err(refused("a change ahead of automerge did not become its head".to_owned()));
        }
        Ok(())
    }

    /// Automerge with the changes that are ahead of it; `None` when it does not take them.
    pub(super) fn settled(&self) -> Option<Cow<'_, Automerge>> {
        if self.ahead.changes.is_empty() {
            return Some(Cow::Borrowed(&self.automerge));
        }
        let mut copy = self.clone();
        copy.settle().ok()?;
        Some(Cow::Owned(copy.automerge))
    }

    /// Tries to make the document show `value` by edits of entries.
    pub(super) fn replace_ahead(
        &mut self,
        value: &Json,
        paths: &Paths,
        time_seconds: i64,
    ) -> Result<Tried, DocumentError> {
        // Where strings and integers have two forms, equal values may differ.
        if !paths.text.is_empty() || !paths.counters.is_empty() || !self.is_known() {
            return Ok(Tried::NeedsAutomerge);
        }
        let shown = self.shown.as_deref().and_then(|shown| parse(shown, &JsonLimits::default()).ok());
        let mut edits = Vec::new();
        match shown.and_then(|shown| between(&shown, value, &Pointer::root(), &mut edits)) {
            Some(()) => self.write_ahead(&edits, paths, time_seconds),
            None => Ok(Tried::NeedsAutomerge),
        }
    }

    /// Tries to make the edits.
    ///
    /// # Errors
    /// Automerge does not take what is ahead of it, or the change does not pass the gate.
    pub(super) fn write_ahead(
        &mut self,
        edits: &[Edit<'_>],
        paths: &Paths,
        time_seconds: i64,
    ) -> Result<Tried, DocumentError> {
        let crowded = self.ahead.entries.len() + edits.len() > MAX_ENTRIES;
        if crowded || self.ahead.count() >= MAX_CHANGES_AHEAD {
            self.settle()?;
        }
        if crowded {
            self.ahead.entries.clear();
        }
        if !self.is_known() || !self.look_up(edits) {
            return Ok(Tried::NeedsAutomerge);
        }
        let Some(planned) = self.plan(edits, paths) else { return Ok(Tried::NeedsAutomerge) };
        let Planned { operations, after, shown, bound } = planned;
        if operations.is_empty() {
            return Ok(Tried::Done(None));
        }
        let Some(place) = &self.ahead.place else { return Ok(Tried::NeedsAutomerge) };
        let dependencies = match self.ahead.head() {
            Some(head) => vec![head],
            None => {
                // As automerge: its heads, and the actor's own last change in any case.
                let heads = self.automerge.get_heads().into_iter().map(|hash| hash.0);
                let mut hashes: Vec<[u8; 32]> = heads.chain([place.last]).collect();
                hashes.sort_unstable();
                hashes.dedup();
                hashes
            }
        };
        let actor = self.automerge.get_actor();
        let (seq, first_op) = (place.seq + 1, place.last_op + 1);
        let head = Head { actor, seq, first_op, time: time_seconds, dependencies: &dependencies };
        let (bytes, hash) = encode(&head, &operations);
        check_made(actor.to_bytes(), &bytes)?;

        let last_op = place.last_op + operations.len() as u64;
        (self.shown, self.bound) = (Some(shown), Some(bound));
        for (operation, (edit, shown)) in (first_op..).zip(after) {
            if let Some(entry) = self.ahead.entries.get_mut(&*edits[edit].path) {
                match shown {
                    Shown::Nothing => entry.values.clear(),
                    Shown::Plain(_) => entry.values = vec![OpId { counter: operation, actor: None }],
                    Shown::Counter(_) => {} // an increment is no value of its own
                }
                entry.shown = shown;
            }
        }
        self.ahead.place = Some(Place { seq, last: hash, last_op });
        self.ahead.changes.push((hash, bytes.clone()));
        self.history_bytes += bytes.len();
        Ok(Tried::Done(Some(bytes)))
    }

    /// Finds out what the document shows and where its actor stands; `false` when that is not cheap, or when the
    /// document is beyond the limits, where writes must be compared.
    fn is_known(&mut self) -> bool {
        if self.ahead.place.is_none() {
            self.ahead.place = place_of(&self.automerge);
        }
        if self.ahead.place.is_none() {
            return false;
        }
        if self.shown.is_none() || self.bound.is_none() {
            let (shown, shape) = View::now(&self.automerge).canonical();
            (self.shown, self.bound) = (Some(shown.into()), Some(shape));
        }
        self.bound.is_some_and(|bound| bound.is_within_limits())
    }

    /// Reads the entries that are to be edited and not known yet; `false` when one of them is no plain entry of a map.
    fn look_up(&mut self, edits: &[Edit<'_>]) -> bool {
        for edit in edits {
            if !self.ahead.entries.contains_key(&*edit.path) {
                let Some(entry) = entry_of(&self.automerge, &edit.path) else { return false };
                self.ahead.entries.insert(edit.path.clone().into_owned(), entry);
            }
        }
        true
    }

    /// What the edits mean as operations, and what the document shows then; `None` when that needs automerge, errors
    /// included.
    fn plan<'a>(&'a self, edits: &'a [Edit<'a>], paths: &Paths) -> Option<Planned<'a>> {
        let mut shown = Cow::Borrowed(self.shown.as_ref()?);
        let mut bound = self.bound?;
        if edits.len().saturating_mul(shown.len()) > MAX_COPIED_AHEAD {
            return None;
        }
        let (mut operations, mut after) = (Vec::with_capacity(edits.len()), Vec::with_capacity(edits.len()));
        let mut text = Vec::new();
        for (at, edit) in edits.iter().enumerate() {
            if edits[..at].iter().any(|earlier| earlier.path == edit.path) {
                return None;
            }
            let entry = self.ahead.entries.get(&*edit.path)?;
            let (key, _) = edit.path.split_last()?;
            let (action, shows) = entry.edited(&edit.path, edit.what, paths)?;
            let Some(action) = action else { continue };
            text.clear();
            let value = match &shows {
                Shown::Nothing => None,
                Shown::Plain(value) => {
                    write_canonical(value, &mut text);
                    Some(&text[..])
                }
                Shown::Counter(value) => {
                    write_canonical(&Json::Int(*value), &mut text);
                    Some(&text[..])
                }
            };
            shown = Cow::Owned(spliced(&shown, edit.path.segments(), value)?.into());
            bound.items += usize::from(matches!(entry.shown, Shown::Nothing));
            bound.bytes = shown.len();
            operations.push(MapOp { map: entry.map.clone(), key, action, seen: entry.values.clone() });
            after.push((at, shows));
        }
        bound.is_within_limits().then(|| Planned { operations, after, shown: shown.into_owned(), bound })
    }
}

/// A write as it will be.
struct Planned<'a> {
    operations: Vec<MapOp<'a>>,
    /// For each operation its edit and what its entry shows then.
    after: Vec<(usize, Shown)>,
    shown: Bytes,
    bound: Shape,
}

impl Entry {
    /// The operation an edit takes, if any, and what the entry shows then. `None`: it needs automerge, or is refused.
    fn edited<'a>(
        &self,
        path: &Pointer,
        what: What<'a>,
        paths: &Paths,
    ) -> Option<(Option<Action<'a>>, Shown)> {
        match (what, &self.shown) {
            (What::Remove, Shown::Nothing) => None,
            (What::Remove, _) => Some((Some(Action::Delete), Shown::Nothing)),
            (What::Increment(by), Shown::Counter(before)) => self.incremented(*before, i128::from(by)),
            (What::Increment(_), _) => None,
            (What::Set(value), shown) => match (self.kind(path, paths), shown, value) {
                (Kind::Counter, Shown::Counter(before), Json::Int(value)) => {
                    self.incremented(*before, i128::from(*value) - i128::from(*before))
                }
                (Kind::Counter, ..) | (Kind::Text, _, Json::String(_)) => None,
                (_, Shown::Plain(before), _) if before == value => Some((None, Shown::Plain(before.clone()))),
                _ => Some((Some(Action::Put(value)), Shown::Plain(value.clone()))),
            },
        }
    }

    fn incremented<'a>(&self, before: i64, by: i128) -> Option<(Option<Action<'a>>, Shown)> {
        let after = i64::try_from(i128::from(before) + by).ok()?;
        if !(-MAX_COUNTER..=MAX_COUNTER).contains(&after) {
            return None;
        }
        let by = i64::try_from(by).ok()?;
        Some(((by != 0).then_some(Action::Increment(by)), Shown::Counter(after)))
    }

    fn kind(&self, path: &Pointer, paths: &Paths) -> Kind {
        if paths.text.is_empty() && paths.counters.is_empty() {
            return Kind::Plain;
        }
        let segments: Vec<Segment<'_>> = path
            .segments()
            .iter()
            .zip(&self.indices)
            .map(|(segment, is_index)| match index(segment) {
                Ok(at) if *is_index => Segment::Index(at),
                _ => Segment::Key(segment),
            })
            .collect();
        kind_at(paths, &segments)
    }
}

/// Where the document's actor stands, if its last change is a head or is told by nothing else.
fn place_of(automerge: &Automerge) -> Option<Place> {
    let (mut own, mut last_op) = (None, 0);
    for head in automerge.get_heads() {
        let meta = automerge.get_change_meta_by_hash(&head)?;
        last_op = last_op.max(meta.max_op); // no operation is numbered above those that build on it
        if *meta.actor == *automerge.get_actor() {
            own = Some((meta.seq, head.0));
        }
    }
    own.map(|(seq, last)| Place { seq, last, last_op })
}

/// An entry of a map as automerge has it; `None` when there is no such map, or no plain values in it.
fn entry_of(automerge: &Automerge, path: &Pointer) -> Option<Entry> {
    let (key, containers) = path.split_last()?;
    let (mut object, mut kind) = (ROOT, ObjType::Map);
    let mut indices = Vec::with_capacity(path.segments().len());
    for segment in containers {
        let entry = match kind {
            ObjType::Map => Prop::Map(segment.clone()),
            ObjType::List => Prop::Seq(index(segment).ok()?),
            _ => return None,
        };
        indices.push(kind == ObjType::List);
        (object, kind) = View::now(automerge).object_at(&object, entry)?;
    }
    if kind != ObjType::Map {
        return None;
    }
    indices.push(false);
    let id_of = |id: &ObjId| match id {
        ObjId::Root => None,
        ObjId::Id(counter, actor, _) => {
            Some(OpId { counter: *counter, actor: (actor != automerge.get_actor()).then(|| actor.clone()) })
        }
    };
    let mut values = Vec::new();
    let (mut shown, mut counters) = (Shown::Nothing, 0);
    for (value, id) in automerge.get_all(&object, key).ok()? {
        let Value::Scalar(scalar) = value else { return None };
        shown = match View::<Automerge>::scalar(&scalar.into_owned().into()) {
            Node::Counter(value) => {
                counters += 1;
                Shown::Counter(value)
            }
            node => Shown::Plain(node.to_json()),
        };
        if matches!(&shown, Shown::Plain(value) if !is_plain(value)) {
            return None;
        }
        values.push(id_of(&id)?);
    }
    // An increment takes plain values out of a conflict with counters.
    if counters != 0 && counters != values.len() {
        return None;
    }
    Some(Entry { map: id_of(&object), indices, values, shown })
}
