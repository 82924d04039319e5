//! What is known of a document without automerge, and the edits that takes: of plain entries of maps, which are most.
//!
//! Such an edit needs little: where its author stands in the document, which values it replaces, and what the document
//! shows. From that follow the change (`encode.rs`) and the new canonical JSON, for a write of this node as for a change
//! of a peer that has seen everything known here: a chain. Everything else needs automerge.
//!
//! A [`Light`] lives inside a [`Document`](super::Document), or alone, at a tenth of its size, while the history is in
//! the store only.
//!
//! Invariants:
//! * `heads`, `authors`, `last_op`, `changes` are those of everything applied. So a change whose dependencies are the
//!   heads, and whose author's last one is known, forks nothing and is concurrent with nothing.
//! * What `maps` says of an entry is what automerge says. If `complete`, what it does not say is not there. No edit made
//!   here makes, moves or removes a container: the places of the maps stay.
//! * `shown`, when known, is the canonical JSON of that state, within `bound`. Alone, both are known.

use std::borrow::Cow;

use automerge::{ActorId, Change, ChangeHash};
use bytes::Bytes;

use super::decode::{Decoded, Named, decode};
use super::diff::{Kind, kind_at};
use super::encode::{Action, Head, MapOp, OpId, Scalar, encode};
use super::gate::{MAX_OPERATION_NUMBER, PeerChange, check_headers, check_made};
use super::show::Shape;
use super::{DocumentError, Heads, MAX_COUNTER, PatchOp, Paths};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::json::{self, Json, JsonLimits, Pointer, Segment, index, parse, spliced, write_int};

/// Most edits of one change: each looks at the others ...
pub(super) const MAX_EDITS: usize = 32;
/// ... and copies what the document shows: bytes copied, some 1 ms.
const MAX_COPIED: usize = 2 << 20;
/// Longest text of such an edit; longer ones are automerge's.
const MAX_TEXT: usize = 16 << 10;
/// Largest change of a peer that is looked at: as many edits with such texts.
const MAX_BYTES: usize = 64 << 10;
/// Most entries known of one document, each some 80 bytes and 2 us to read from automerge.
pub(super) const MAX_ENTRIES: usize = 256;

/// See the module.
#[derive(Debug, Clone)]
pub struct Light {
    /// Whose the writes made here are.
    actor: ActorId,
    /// Everybody who wrote, in the order in which that was learned.
    authors: Vec<Author>,
    /// Whether there are more authors than are known: then nothing is done here.
    crowded: bool,
    heads: Vec<[u8; 32]>,
    /// The highest number of an operation.
    last_op: u64,
    changes: u64,
    bytes: usize,
    pub(super) shown: Option<Bytes>,
    /// What the document shows is at most as large as this: most writes need no measuring.
    pub(super) bound: Option<Shape>,
    maps: Vec<Map>,
    complete: bool,
}

/// Who wrote, and the last change.
#[derive(Debug, Clone)]
struct Author {
    actor: ActorId,
    seq: u64,
    last: [u8; 32],
}

/// A visible map.
#[derive(Debug, Clone)]
struct Map {
    path: Vec<String>,
    /// Which segments of the path are indices.
    indices: Vec<bool>,
    /// The operation that made it; `None`: the root.
    id: Option<OpId>,
    /// By key.
    entries: Vec<(Box<str>, Entry)>,
}

/// One entry of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// There is no value.
    Nothing,
    /// Plain values.
    Plain(Values),
    /// Counters.
    Counter(Values),
    /// A container, or plain values beside counters or containers: automerge's.
    Other,
}

/// The operations that made the values of an entry, ascending: more than one after concurrent writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Values {
    One([OpId; 1]),
    Several(Box<[OpId]>),
}

impl Values {
    /// `None`: there are none.
    pub(super) fn new(ids: &[OpId]) -> Option<Self> {
        match ids {
            [] => None,
            [id] => Some(Self::One([*id])),
            ids => Some(Self::Several(ids.into())),
        }
    }

    fn ids(&self) -> &[OpId] {
        match self {
            Self::One(id) => id,
            Self::Several(ids) => ids,
        }
    }
}

impl Entry {
    fn seen(&self) -> &[OpId] {
        match self {
            Self::Plain(values) | Self::Counter(values) => values.ids(),
            Self::Nothing | Self::Other => &[],
        }
    }
}

/// What became of an edit that was tried without automerge.
#[derive(Debug, PartialEq, Eq)]
pub enum Tried {
    /// The change, or `None` when there is no difference.
    Done(Option<Vec<u8>>),
    /// Nothing: it needs automerge.
    NeedsAutomerge,
}

/// An edit of one entry of a map.
#[derive(Debug)]
pub(super) struct Edit<'a> {
    pub(super) path: Cow<'a, Pointer>,
    what: What<'a>,
}

#[derive(Debug, Clone, Copy)]
enum What<'a> {
    Set(&'a Json),
    Remove,
    Increment(i64),
}

/// A patch as edits of entries, if it is nothing else.
pub(super) fn edits_of<'a>(operations: &'a [PatchOp]) -> Option<Vec<Edit<'a>>> {
    if operations.len() > MAX_EDITS {
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

/// A value that is no container, and not too long.
fn is_plain(value: &Json) -> bool {
    match value {
        Json::Array(_) | Json::Object(_) => false,
        Json::String(text) => text.len() <= MAX_TEXT,
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
        if edits.len() > MAX_EDITS {
            return None;
        }
    }
    Some(())
}

/// An operation on an entry that is known.
struct Step<'a> {
    map: usize,
    key: &'a str,
    action: Action<'a>,
}

/// A peer's change that has seen everything known here.
pub(super) struct Chained<'a> {
    change: Decoded<'a>,
    bytes: &'a [u8],
    /// Its author, if it has written before.
    author: Option<u16>,
    /// For each operation its map and the values that it has seen.
    places: Vec<(usize, Vec<OpId>)>,
}

impl Chained<'_> {
    /// The entries that must be known for it to be taken: paths of maps and keys.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, &str)> {
        self.places.iter().zip(&self.change.operations).map(|((map, _), operation)| (*map, operation.key))
    }
}

impl Light {
    /// A document that nobody has written. Its writes will be `actor`'s: the bytes of the origin.
    pub fn empty(actor: &[u8]) -> Self {
        Self {
            actor: ActorId::from(actor),
            authors: Vec::new(),
            crowded: false,
            heads: Vec::new(),
            last_op: 0,
            changes: 0,
            bytes: 0,
            shown: Some(Bytes::from_static(b"{}")),
            bound: Some(Shape { bytes: 2, items: 0 }),
            maps: vec![Map::root()],
            complete: true,
        }
    }

    /// A document's whose history has these changes (actor, number, hash, highest operation) and bytes.
    pub(super) fn of_history<'c>(
        actor: ActorId,
        heads: Vec<ChangeHash>,
        changes: impl Iterator<Item = (&'c ActorId, u64, [u8; 32], u64)>,
        bytes: usize,
    ) -> Self {
        let mut light = Self { actor, bytes, shown: None, bound: None, complete: false, ..Self::empty(&[]) };
        for (author, seq, hash, last_op) in changes {
            light.wrote(author, seq, hash, last_op);
        }
        light.heads = heads.into_iter().map(|hash| hash.0).collect();
        light
    }

    /// The version.
    pub fn heads(&self) -> Heads {
        Heads::from_hashes(self.heads.clone())
    }

    /// Changes in the history.
    pub fn history_changes(&self) -> u64 {
        self.changes
    }

    /// Bytes of the history: as last stored or loaded, and the raw changes since.
    pub fn history_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it is certain that no value stands beside another that is not shown: there is one author, or there are
    /// plain values alone, each by itself.
    pub fn is_undisputed(&self) -> bool {
        let alone = |(_, entry): &(Box<str>, Entry)| match entry {
            Entry::Nothing => true,
            Entry::Plain(values) | Entry::Counter(values) => values.ids().len() == 1,
            Entry::Other => false,
        };
        let known = self.complete && self.maps.iter().all(|map| map.entries.iter().all(alone));
        !self.crowded && (self.authors.len() <= 1 || known)
    }

    /// The actor of all changes; `None` where there are several, or none.
    pub(super) fn only_author(&self) -> Option<&[u8]> {
        match &self.authors[..] {
            [author] if !self.crowded => Some(author.actor.to_bytes()),
            _ => None,
        }
    }

    /// What the document shows, as canonical JSON.
    pub fn shown(&self) -> Bytes {
        self.shown.clone().unwrap_or_default() // alone it is known
    }

    /// Memory in bytes, estimated for the accounting of a cache.
    pub fn estimated_bytes(&self) -> usize {
        /// What an allocation takes beside its content.
        const EACH: usize = 16;
        let author = |author: &Author| size_of::<Author>() + author.actor.to_bytes().len() + EACH;
        let map = |map: &Map| {
            let path: usize = map.path.iter().map(|segment| size_of::<String>() + segment.len() + EACH).sum();
            let entry = |(key, entry): &(Box<str>, Entry)| {
                let several = if entry.seen().len() > 1 { size_of_val(entry.seen()) + EACH } else { 0 };
                size_of::<(Box<str>, Entry)>() + key.len() + EACH + several
            };
            size_of::<Map>() + path + map.indices.len() + map.entries.iter().map(entry).sum::<usize>()
        };
        size_of::<Self>()
            + self.heads.len() * 32
            + self.authors.iter().map(author).sum::<usize>()
            + self.maps.iter().map(map).sum::<usize>()
            + self.shown.as_ref().map_or(0, |shown| shown.len() + 2 * EACH)
    }

    /// The state as bytes, without the writes' actor and the size of the history.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.shown.as_ref().map_or(0, Bytes::len));
        put_varint(&mut out, self.heads.len() as u64);
        out.extend_from_slice(self.heads.as_flattened());
        put_varint(&mut out, self.authors.len() as u64);
        for Author { actor, seq, last } in &self.authors {
            put_bytes(&mut out, actor.to_bytes());
            put_varint(&mut out, *seq);
            out.extend_from_slice(last);
        }
        put_varint(&mut out, self.last_op);
        put_varint(&mut out, self.changes);
        put_bytes(&mut out, self.shown.as_ref().map_or(&[], |shown| shown));
        put_varint(&mut out, self.bound.map_or(0, |bound| bound.items) as u64);
        let put_id = |out: &mut Vec<u8>, id: &OpId| {
            put_varint(out, id.counter.into());
            put_varint(out, id.author.into());
        };
        put_varint(&mut out, self.maps.len() as u64);
        for Map { path, indices, id, entries } in &self.maps {
            put_varint(&mut out, path.len() as u64);
            for (segment, is_index) in path.iter().zip(indices) {
                put_bytes(&mut out, segment.as_bytes());
                out.push((*is_index).into());
            }
            put_id(&mut out, &id.unwrap_or(OpId { counter: 0, author: 0 }));
            put_varint(&mut out, entries.len() as u64);
            for (key, entry) in entries {
                put_bytes(&mut out, key.as_bytes());
                let kind = match entry {
                    Entry::Plain(_) => 0,
                    Entry::Counter(_) => 1,
                    Entry::Other | Entry::Nothing => 2, // complete, it has no entries of nothing
                };
                out.push(kind);
                if kind != 2 {
                    put_varint(&mut out, entry.seen().len() as u64);
                    entry.seen().iter().for_each(|id| put_id(&mut out, id));
                }
            }
        }
        out
    }

    /// The history was stored anew, in so many bytes.
    pub(super) fn stored(&mut self, history_bytes: usize) {
        self.bytes = history_bytes;
    }

    /// Reads what [`Self::encode`] wrote of a history of so many bytes; `None` when it is damaged.
    pub(super) fn decode(known: &[u8], history_bytes: usize, actor: &[u8]) -> Option<Self> {
        let mut light = Self::read(&mut Reader::new(known), actor).ok()?;
        light.bytes = history_bytes;
        light.is_ready().then_some(light)
    }

    fn read(r: &mut Reader<'_>, actor: &[u8]) -> Result<Self, DecodeError> {
        let mut light = Self { maps: Vec::new(), ..Self::empty(actor) };
        for _ in 0..r.varint("heads")? {
            light.heads.push(r.array("head")?);
        }
        for _ in 0..r.varint("authors")? {
            let actor = ActorId::from(r.bytes("author")?);
            light.authors.push(Author {
                actor,
                seq: r.varint("author's seq")?,
                last: r.array("author's last")?,
            });
        }
        light.last_op = r.varint("last operation")?;
        light.changes = r.varint("changes")?;
        let shown = Bytes::copy_from_slice(r.bytes("JSON")?);
        let items = usize::try_from(r.varint("items")?).map_err(|_| r.invalid("items"))?;
        light.bound = Some(Shape { bytes: shown.len(), items });
        light.shown = Some(shown);
        let authors = light.authors.len();
        let read_id = |r: &mut Reader<'_>| {
            let (counter, author) = (r.varint("operation")?, r.varint("author")?);
            match (u32::try_from(counter), u16::try_from(author)) {
                (Ok(0), Ok(0)) => Ok(None),
                (Ok(counter), Ok(author)) if usize::from(author) < authors => {
                    Ok(Some(OpId { counter, author }))
                }
                _ => Err(r.invalid("operation")),
            }
        };
        for _ in 0..r.varint("maps")? {
            let mut map = Map::root();
            for _ in 0..r.varint("segments")? {
                map.path.push(r.str("segment")?.to_owned());
                map.indices.push(r.u8("is index")? != 0);
            }
            map.id = read_id(r)?;
            for _ in 0..r.varint("entries")? {
                let key = r.str("key")?.into();
                let kind = r.u8("entry")?;
                let mut ids = Vec::new();
                if kind != 2 {
                    for _ in 0..r.varint("values")? {
                        ids.push(read_id(r)?.ok_or_else(|| r.invalid("value"))?);
                    }
                }
                let entry = match (kind, Values::new(&ids)) {
                    (0, Some(values)) => Entry::Plain(values),
                    (1, Some(values)) => Entry::Counter(values),
                    (2, None) => Entry::Other,
                    _ => return Err(r.invalid("entry")),
                };
                map.entries.push((key, entry));
            }
            if !map.entries.is_sorted_by(|(a, _), (b, _)| a < b) {
                return Err(r.invalid("entries"));
            }
            light.maps.push(map);
        }
        r.clone().finish()?;
        Ok(light)
    }

    /// [`Document::patch`](super::Document::patch), if it can be done without automerge.
    ///
    /// # Errors
    /// The change does not pass the gate; nothing is changed.
    pub fn patch(
        &mut self,
        operations: &[PatchOp],
        base: Option<&Heads>,
        paths: &Paths,
        time_seconds: i64,
    ) -> Result<Tried, DocumentError> {
        match edits_of(operations) {
            Some(edits) if self.is_at(base) => self.write(&edits, paths, time_seconds),
            _ => Ok(Tried::NeedsAutomerge),
        }
    }

    /// [`Document::replace`](super::Document::replace), if it can be done without automerge.
    ///
    /// # Errors
    /// The change does not pass the gate; nothing is changed.
    pub fn replace(
        &mut self,
        value: &Json,
        base: Option<&Heads>,
        paths: &Paths,
        time_seconds: i64,
    ) -> Result<Tried, DocumentError> {
        match self.edits_to(value, paths) {
            Some(edits) if self.is_at(base) => self.write(&edits, paths, time_seconds),
            _ => Ok(Tried::NeedsAutomerge),
        }
    }

    /// Applies a change of a peer, if that can be done without automerge: `true` when it is applied, after the same
    /// checks as in [`Document::apply`](super::Document::apply). A change that is refused there is not applied here.
    pub fn apply(&mut self, peer: PeerChange<'_>) -> bool {
        self.chained(peer).is_some_and(|chained| self.take(&chained))
    }

    /// Whether a write at `base` is one at the present version.
    pub(super) fn is_at(&self, base: Option<&Heads>) -> bool {
        base.is_none_or(|base| base.hashes() == self.heads)
    }

    /// The edits of entries that make the document show `value`.
    pub(super) fn edits_to<'a>(&self, value: &'a Json, paths: &Paths) -> Option<Vec<Edit<'a>>> {
        let shown = self.shown.as_deref()?;
        // Where strings and integers have two forms, equal values may differ.
        if shown != b"{}" && !(paths.text.is_empty() && paths.counters.is_empty()) {
            return None;
        }
        let shown = parse(shown, &JsonLimits::default()).ok()?;
        let mut edits = Vec::new();
        between(&shown, value, &Pointer::root(), &mut edits)?;
        Some(edits)
    }

    /// Makes the edits as one change, if every entry is known.
    ///
    /// # Errors
    /// The change does not pass the gate; nothing is changed.
    pub(super) fn write(
        &mut self,
        edits: &[Edit<'_>],
        paths: &Paths,
        time: i64,
    ) -> Result<Tried, DocumentError> {
        let Some(steps) = self.steps(edits, paths) else { return Ok(Tried::NeedsAutomerge) };
        if steps.is_empty() {
            return Ok(Tried::Done(None));
        }
        let last_op = self.last_op + steps.len() as u64;
        let after = self.after(&steps).filter(|_| last_op < MAX_OPERATION_NUMBER);
        let Some((shown, bound)) = after else { return Ok(Tried::NeedsAutomerge) };
        let (author, seq) = match self.author(self.actor.to_bytes()) {
            Some(author) => (Some(author), self.authors[usize::from(author)].seq + 1),
            None => (None, 1),
        };
        let dependencies = self.dependencies(author);
        let first_op = self.last_op + 1;
        let head = Head { actor: &self.actor, seq, first_op, time, dependencies: &dependencies };
        let operations: Vec<MapOp<'_>> = steps.iter().map(|step| self.operation(step)).collect();
        let (bytes, hash) = encode(&head, &operations, |author| &self.authors[usize::from(author)].actor);
        check_made(self.actor.to_bytes(), &bytes)?;
        let actor = self.actor.clone();
        self.advance(&actor, seq, hash, &steps, bytes.len());
        (self.shown, self.bound) = (Some(shown), Some(bound));
        Ok(Tried::Done(Some(bytes)))
    }

    /// Whether the document is within the limits of a write, and what it shows known.
    pub(super) fn is_ready(&self) -> bool {
        !self.crowded && self.shown.is_some() && self.bound.is_some_and(|bound| bound.is_within_limits())
    }

    /// What a change at this version depends on. As automerge: the heads, and the author's own last change in any case.
    fn dependencies(&self, author: Option<u16>) -> Vec<[u8; 32]> {
        let own = author.map(|author| self.authors[usize::from(author)].last);
        Heads::from_hashes(self.heads.iter().copied().chain(own).collect()).0
    }

    fn author(&self, actor: &[u8]) -> Option<u16> {
        let at = self.authors.iter().position(|author| author.actor.to_bytes() == actor);
        at.and_then(|at| u16::try_from(at).ok())
    }

    /// What the edits are as operations; `None` when that needs automerge, errors included.
    fn steps<'a>(&self, edits: &'a [Edit<'a>], paths: &Paths) -> Option<Vec<Step<'a>>> {
        if !self.is_ready() {
            return None;
        }
        let mut steps = Vec::with_capacity(edits.len());
        for (at, edit) in edits.iter().enumerate() {
            if edits[..at].iter().any(|earlier| earlier.path == edit.path) {
                return None;
            }
            let (key, containers) = edit.path.split_last()?;
            let map = self.map_at(containers)?;
            if let Some(action) = self.action(map, key, edit.what, paths)? {
                steps.push(Step { map, key, action });
            }
        }
        Some(steps)
    }

    /// The operation that an edit of an entry takes, if any. `None`: it needs automerge, or is refused.
    fn action<'a>(&self, map: usize, key: &str, what: What<'a>, paths: &Paths) -> Option<Option<Action<'a>>> {
        let known = self.entry(map, key)?;
        let text = || json::entry(self.shown.as_ref()?, &self.maps[map].path, key);
        let incremented = |by: &dyn Fn(i64) -> Option<i64>| {
            let by = by(std::str::from_utf8(text()?).ok()?.parse().ok()?)?;
            Some((by != 0).then_some(Action::Increment(by)))
        };
        match (what, known) {
            (_, Entry::Other) | (What::Remove, Entry::Nothing) => None,
            (What::Remove, _) => Some(Some(Action::Delete)),
            (What::Increment(by), Entry::Counter(_)) => incremented(&|_| Some(by)),
            (What::Increment(_), _) => None,
            (What::Set(value), known) => match (self.kind(map, key, paths), known, value) {
                (Kind::Counter, Entry::Counter(_), Json::Int(value)) => {
                    incremented(&|before| value.checked_sub(before))
                }
                (Kind::Counter, Entry::Nothing, Json::Int(value)) => Some(Some(Action::PutCounter(*value))),
                (Kind::Counter, ..) | (Kind::Text, _, Json::String(_)) => None,
                (_, known, value) => {
                    let same = matches!(known, Entry::Plain(_)) && text()? == value.to_canonical();
                    Some((!same).then_some(Action::Put(Scalar::of(value)?)))
                }
            },
        }
    }

    fn kind(&self, map: usize, key: &str, paths: &Paths) -> Kind {
        if paths.text.is_empty() && paths.counters.is_empty() {
            return Kind::Plain;
        }
        let Map { path, indices, .. } = &self.maps[map];
        let mut segments: Vec<Segment<'_>> = path
            .iter()
            .zip(indices)
            .map(|(segment, is_index)| match index(segment) {
                Ok(at) if *is_index => Segment::Index(at),
                _ => Segment::Key(segment),
            })
            .collect();
        segments.push(Segment::Key(key));
        kind_at(paths, &segments)
    }

    /// A step in the terms of a change.
    fn operation<'a>(&'a self, step: &Step<'a>) -> MapOp<'a> {
        let map = &self.maps[step.map];
        let seen = map.entries.binary_search_by(|(key, _)| (**key).cmp(step.key));
        let seen = seen.map_or(&[][..], |at| map.entries[at].1.seen());
        MapOp { map: map.id, key: step.key, action: step.action, seen }
    }

    /// What the document shows after operations on entries that are known; `None` when an operation does not fit its
    /// entry, or the document would be beyond the limits of a write.
    fn after(&self, steps: &[Step<'_>]) -> Option<(Bytes, Shape)> {
        let mut shown = Cow::Borrowed(&self.shown.as_ref()?[..]);
        let mut bound = self.bound?;
        if steps.len().saturating_mul(shown.len()) > MAX_COPIED {
            return None;
        }
        let mut new = 0;
        let mut text = Vec::new();
        for step in steps {
            let path = &self.maps[step.map].path;
            let entry = self.entry(step.map, step.key)?;
            text.clear();
            match (step.action, entry) {
                (_, Entry::Other) => return None,
                (Action::Put(Scalar::String(value)), _) if value.len() > MAX_TEXT => return None,
                (Action::Put(Scalar::Float(value)), _) if !value.is_finite() => return None,
                // Members write only larger values as unsigned.
                (Action::Put(Scalar::Uint(value)), _) if i64::try_from(value).is_ok() => return None,
                (Action::Put(value), _) => value.write(&mut text),
                (Action::PutCounter(value), _) => write_int(in_range(value)?, &mut text),
                (Action::Delete, Entry::Nothing)
                | (Action::Increment(_), Entry::Nothing | Entry::Plain(_)) => {
                    return None;
                }
                (Action::Delete, _) => {}
                (Action::Increment(by), Entry::Counter(_)) => {
                    in_range(by / 2)?; // from one end of the range to the other
                    let before = std::str::from_utf8(json::entry(&shown, path, step.key)?).ok()?;
                    write_int(in_range(before.parse::<i64>().ok()?.checked_add(by)?)?, &mut text);
                }
            }
            let value = (!matches!(step.action, Action::Delete)).then_some(&text[..]);
            shown = Cow::Owned(spliced(&shown, path, step.key, value)?);
            if *entry == Entry::Nothing {
                bound.items += 1;
                new += 1;
            }
        }
        bound.bytes = shown.len();
        let known: usize = self.maps.iter().map(|map| map.entries.len()).sum();
        let fits = bound.is_within_limits() && (known + new <= MAX_ENTRIES || !self.complete);
        fits.then(|| (Bytes::from(shown.into_owned()), bound))
    }

    /// A change that has seen everything known here was made or came: its operations, and where its author stands now.
    fn advance(&mut self, author: &ActorId, seq: u64, hash: [u8; 32], steps: &[Step<'_>], bytes: usize) {
        let first_op = self.last_op + 1;
        self.wrote(author, seq, hash, self.last_op + steps.len() as u64);
        self.heads = vec![hash];
        self.bytes += bytes;
        let Some(author) = self.author(author.to_bytes()) else { return }; // crowded: nothing more is done here
        for (counter, step) in (first_op..).zip(steps) {
            let value = Values::One([OpId { counter: counter as u32, author }]); // below MAX_OPERATION_NUMBER
            match step.action {
                Action::Put(_) => self.set(step.map, step.key, Entry::Plain(value)),
                Action::PutCounter(_) => self.set(step.map, step.key, Entry::Counter(value)),
                Action::Delete => self.set(step.map, step.key, Entry::Nothing),
                Action::Increment(_) => {} // no value of its own
            }
        }
    }

    /// A change is in the history now.
    fn wrote(&mut self, actor: &ActorId, seq: u64, hash: [u8; 32], last_op: u64) {
        self.changes += 1;
        self.last_op = self.last_op.max(last_op);
        match self.author(actor.to_bytes()) {
            Some(at) => {
                let author = &mut self.authors[usize::from(at)];
                if seq > author.seq {
                    (author.seq, author.last) = (seq, hash);
                }
            }
            None if self.authors.len() < usize::from(u16::MAX) => {
                self.authors.push(Author { actor: actor.clone(), seq, last: hash });
            }
            None => self.crowded = true,
        }
    }

    /// Automerge took changes.
    pub(super) fn merged(&mut self, heads: Vec<ChangeHash>, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.bytes += change.raw_bytes().len();
            self.wrote(change.actor_id(), change.seq(), change.hash().0, change.max_op());
        }
        self.heads = heads.into_iter().map(|hash| hash.0).collect();
        self.forget_entries();
    }

    pub(super) fn forget_entries(&mut self) {
        self.maps = vec![Map::root()];
        self.complete = false;
    }

    /// Remembers an entry of a map that automerge was asked for.
    pub(super) fn learn(&mut self, map: usize, key: &str, entry: Entry) {
        self.set(map, key, entry);
    }

    /// Remembers a visible map.
    pub(super) fn learn_map(&mut self, path: &[String], indices: &[bool], id: Option<OpId>) -> usize {
        self.map_at(path).unwrap_or_else(|| {
            let (path, indices) = (path.to_vec(), indices.to_vec());
            self.maps.push(Map { path, indices, id, entries: Vec::new() });
            self.maps.len() - 1
        })
    }

    /// Every entry is known now.
    pub(super) fn completed(&mut self) {
        for map in &mut self.maps {
            map.entries.retain(|(_, entry)| *entry != Entry::Nothing);
        }
        self.complete = true;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The name of an operation by its number and actor.
    pub(super) fn id_of(&self, counter: u64, actor: &ActorId) -> Option<OpId> {
        Some(OpId { counter: u32::try_from(counter).ok()?, author: self.author(actor.to_bytes())? })
    }

    /// A peer's change, if it passes the gate and has seen everything known here.
    pub(super) fn chained<'a>(&self, peer: PeerChange<'a>) -> Option<Chained<'a>> {
        if !self.is_ready() || peer.bytes.len() > MAX_BYTES || check_headers(peer).is_err() {
            return None;
        }
        let change = decode(peer.bytes, MAX_EDITS)?;
        let author = self.author(change.actor);
        let seq = author.map_or(0, |author| self.authors[usize::from(author)].seq);
        let last_op = self.last_op + change.operations.len() as u64;
        let follows = change.actor == peer.origin
            && change.seq == seq + 1
            && change.first_op == self.last_op + 1
            && last_op < MAX_OPERATION_NUMBER
            && change.dependencies == self.dependencies(author);
        if !follows {
            return None;
        }
        let actors: Vec<&[u8]> = std::iter::once(change.actor).chain(change.others.iter().copied()).collect();
        let id = |named: &Named| {
            let actor = actors.get(usize::try_from(named.actor).ok()?)?;
            Some(OpId { counter: u32::try_from(named.counter).ok()?, author: self.author(actor)? })
        };
        let mut places = Vec::with_capacity(change.operations.len());
        for operation in &change.operations {
            let map = match &operation.map {
                None => None,
                Some(named) => Some(id(named)?),
            };
            let map = self.maps.iter().position(|known| known.id == map)?;
            places.push((map, operation.seen.iter().map(id).collect::<Option<_>>()?));
        }
        Some(Chained { change, bytes: peer.bytes, author, places })
    }

    /// Applies such a change, if everything it touches is known and is what it has seen.
    pub(super) fn take(&mut self, chained: &Chained<'_>) -> bool {
        let Chained { change, bytes, author, places } = chained;
        let mut steps: Vec<Step<'_>> = Vec::with_capacity(places.len());
        for (operation, (map, seen)) in change.operations.iter().zip(places) {
            let known = self.entry(*map, operation.key).is_some_and(|entry| entry.seen() == &seen[..]);
            if !known || steps.iter().any(|step| (step.map, step.key) == (*map, operation.key)) {
                return false;
            }
            steps.push(Step { map: *map, key: operation.key, action: operation.action });
        }
        let Some((shown, bound)) = self.after(&steps) else { return false };
        // As the origin wrote it, or another form of the same, which would not come back from a saved document.
        let actor = match author {
            Some(author) => self.authors[usize::from(*author)].actor.clone(),
            None => ActorId::from(change.actor),
        };
        let head = Head {
            actor: &actor,
            seq: change.seq,
            first_op: change.first_op,
            time: change.time,
            dependencies: &change.dependencies,
        };
        let operations: Vec<MapOp<'_>> = steps.iter().map(|step| self.operation(step)).collect();
        let (again, hash) = encode(&head, &operations, |author| &self.authors[usize::from(author)].actor);
        if again != *bytes {
            return false;
        }
        self.advance(&actor, change.seq, hash, &steps, bytes.len());
        (self.shown, self.bound) = (Some(shown), Some(bound));
        true
    }

    /// The map at a place, if it is known.
    pub(super) fn map_at(&self, path: &[String]) -> Option<usize> {
        self.maps.iter().position(|map| map.path == path)
    }

    /// The place of a map that is known.
    pub(super) fn path_of(&self, map: usize) -> &[String] {
        &self.maps[map].path
    }

    /// What is known of an entry.
    pub(super) fn entry(&self, map: usize, key: &str) -> Option<&Entry> {
        let entries = &self.maps[map].entries;
        match entries.binary_search_by(|(known, _)| (**known).cmp(key)) {
            Ok(at) => Some(&entries[at].1),
            Err(_) => self.complete.then_some(&Entry::Nothing),
        }
    }

    /// How many entries are known.
    pub(super) fn known(&self) -> usize {
        self.maps.iter().map(|map| map.entries.len()).sum()
    }

    fn set(&mut self, map: usize, key: &str, entry: Entry) {
        let complete = self.complete;
        let entries = &mut self.maps[map].entries;
        match entries.binary_search_by(|(known, _)| (**known).cmp(key)) {
            Ok(at) if complete && entry == Entry::Nothing => drop(entries.remove(at)),
            Ok(at) => entries[at].1 = entry,
            Err(at) => entries.insert(at, (key.into(), entry)),
        }
    }
}

impl Map {
    fn root() -> Self {
        Self { path: Vec::new(), indices: Vec::new(), id: None, entries: Vec::new() }
    }
}

fn in_range(counter: i64) -> Option<i64> {
    (-MAX_COUNTER..=MAX_COUNTER).contains(&counter).then_some(counter)
}
