//! Which values of a document stand beside others that it does not show.
//!
//! Two writes of one entry that had not seen each other both stay in the history, until a write that has seen them
//! replaces them. What the document shows of them is automerge's choice: the operation with the highest number, of equal
//! ones the author with the greatest bytes. The others are what is told here. All of it follows from the version alone, so
//! members that show the same tell the same.

use automerge::{Automerge, ObjId, ObjType, Prop, ROOT, ReadDoc, ScalarValueRef, Value, ValueRef};

use super::history::author;
use super::show::View;
use super::{Document, DocumentError, Heads};
use crate::Origin;
use crate::json::{MAX_DEPTH, Pointer};

/// One of several values of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// The number of the operation that wrote it, and the automerge actor: together its name in this document.
    pub operation: (u64, Vec<u8>),
    /// The version that its author left.
    pub version: Heads,
    /// Who wrote it; `None` where the author is no origin.
    pub origin: Option<Origin>,
    /// When, by its stamp, in whole seconds of Unix time.
    pub time_seconds: i64,
    /// The value as canonical JSON.
    pub json: Vec<u8>,
    /// Whether it is a counter: what is added goes to the one that is shown.
    pub is_counter: bool,
}

/// A value that is not shown, and the one that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Where both are.
    pub path: Pointer,
    /// Whether the place is an item of a list, and not an entry of an object.
    pub in_list: bool,
    /// What the document shows.
    pub shown: Rival,
    /// What it does not show.
    pub hidden: Rival,
}

/// What [`Document::conflicts`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conflicts {
    /// In the order of their places, of one place in that of the operations.
    pub found: Vec<Conflict>,
    /// Whether there are more than were asked for.
    pub more: bool,
}

impl Document {
    /// The values that stand beside those shown, at most `most`. Equal ones are none, but for counters, which go on to
    /// differ. Inside a value that is not shown nothing is looked for.
    ///
    /// # Errors
    /// Automerge does not take what is ahead of it, a defect here: the document must be forgotten then.
    pub fn conflicts(&mut self, most: usize) -> Result<Conflicts, DocumentError> {
        self.settle()?;
        let mut walk = Walk { automerge: &self.automerge, most, conflicts: Conflicts::default() };
        walk.object(&ROOT, ObjType::Map, &Pointer::root());
        Ok(walk.conflicts)
    }
}

/// Places that have several values. Walks over the document without reading values: a fraction of what it takes to show it.
pub(super) fn disputed_places(automerge: &Automerge) -> usize {
    let (mut places, mut objects) = (0, vec![(ROOT, ObjType::Map, 1)]);
    while let Some((object, kind, depth)) = objects.pop() {
        if depth > MAX_DEPTH {
            continue; // shows as null
        }
        let mut see = |conflict: bool, value: &ValueRef<'_>, id: &dyn Fn() -> ObjId| {
            places += usize::from(conflict);
            if let ValueRef::Object(kind) = value {
                objects.push((id(), *kind, depth + 1));
            }
        };
        match kind {
            ObjType::Map | ObjType::Table => {
                automerge
                    .map_range(&object, ..)
                    .for_each(|item| see(item.conflict, &item.value, &|| item.id()));
            }
            ObjType::List => {
                automerge
                    .list_range(&object, ..)
                    .for_each(|item| see(item.conflict, &item.value, &|| item.id()));
            }
            ObjType::Text => {}
        }
    }
    places
}

struct Walk<'a> {
    automerge: &'a Automerge,
    most: usize,
    conflicts: Conflicts,
}

impl Walk<'_> {
    fn object(&mut self, object: &ObjId, kind: ObjType, at: &Pointer) {
        if at.segments().len() >= MAX_DEPTH {
            return; // shows as null
        }
        let mut inside = Vec::new();
        match kind {
            ObjType::Map | ObjType::Table => {
                for item in self.automerge.map_range(object, ..) {
                    let place = at.child(&item.key);
                    if item.conflict {
                        self.entry(object, Prop::Map(item.key.to_string()), &place, false);
                    }
                    if let ValueRef::Object(kind) = item.value {
                        inside.push((item.id(), kind, place));
                    }
                }
            }
            ObjType::List => {
                for (index, item) in self.automerge.list_range(object, ..).enumerate() {
                    let place = at.child(&index.to_string());
                    if item.conflict {
                        self.entry(object, Prop::Seq(index), &place, true);
                    }
                    if let ValueRef::Object(kind) = item.value {
                        inside.push((item.id(), kind, place));
                    }
                }
            }
            ObjType::Text => {}
        }
        for (object, kind, place) in inside {
            if self.conflicts.more {
                return;
            }
            self.object(&object, kind, &place);
        }
    }

    fn entry(&mut self, object: &ObjId, entry: Prop, place: &Pointer, in_list: bool) {
        let depth = place.segments().len();
        let Ok(values) = self.automerge.get_all(object, entry.clone()) else { return };
        let Ok(Some((_, shown))) = self.automerge.get(object, entry) else { return };
        let mut rivals: Vec<(bool, Rival)> = values
            .into_iter()
            .filter_map(|(value, id)| Some((id == shown, self.rival(value, id, depth)?)))
            .collect();
        let Some(at) = rivals.iter().position(|(is_shown, _)| *is_shown) else { return };
        let (_, shown) = rivals.remove(at);
        rivals.retain(|(_, rival)| rival.json != shown.json || rival.is_counter);
        rivals.sort_by(|(_, one), (_, other)| one.operation.cmp(&other.operation));
        for (_, hidden) in rivals {
            if self.conflicts.found.len() >= self.most {
                self.conflicts.more = true;
                return;
            }
            let (path, shown) = (place.clone(), shown.clone());
            self.conflicts.found.push(Conflict { path, in_list, shown, hidden });
        }
    }

    fn rival(&self, value: Value<'_>, id: ObjId, depth: usize) -> Option<Rival> {
        let ObjId::Id(counter, actor, _) = &id else { return None };
        let operation = (*counter, actor.to_bytes().to_vec());
        let hash = self.automerge.hash_for_opid(&id)?;
        let meta = self.automerge.get_change_meta_by_hash(&hash)?;
        let (origin, time_seconds) = (author(meta.actor.to_bytes()), meta.timestamp);
        let value = match value {
            Value::Object(kind) => ValueRef::Object(kind),
            Value::Scalar(scalar) => ValueRef::Scalar(scalar.into_owned().into()),
        };
        let is_counter = matches!(value, ValueRef::Scalar(ScalarValueRef::Counter(_)));
        let json = View::now(self.automerge).canonical_value(&value, id, depth);
        let version = Heads::from_hashes(vec![hash.0]);
        Some(Rival { operation, version, origin, time_seconds, json, is_counter })
    }
}
