//! Edits ahead of automerge: a document makes and takes changes of plain entries by itself (`light.rs`).
//!
//! Automerge is given them later, all at once, when something asks for more: applying ten together costs what making one
//! edit in it costs. What one edit costs then depends neither on the size of the history nor on that of the document's
//! other values.
//!
//! Invariants, while changes are ahead: they are a chain on top of everything in `automerge`; every entry they wrote is
//! known to `light`, and so is what the document shows.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::{Automerge, Change, ObjId, ObjType, Prop, ROOT, ReadDoc, Value, ValueRef};

use super::encode::OpId;
use super::gate::PeerChange;
use super::light::{Edit, Entry, Light, MAX_ENTRIES, Tried, Values};
use super::show::{Node, View};
use super::{Document, DocumentError, Paths};
use crate::json::{MAX_DEPTH, index};

/// Most changes ahead: some 2 ms of one core to give automerge at once, and 25 ms behind 10 000 increments of one counter.
pub(super) const MAX_CHANGES_AHEAD: usize = 256;
/// Most maps that are read from automerge for [`Document::into_light`].
const MAX_MAPS: usize = 64;

impl Document {
    /// Gives automerge the changes that are ahead of it.
    ///
    /// # Errors
    /// Automerge does not take them, a defect here: the document must be forgotten then.
    pub fn settle(&mut self) -> Result<(), DocumentError> {
        if self.ahead.is_empty() {
            return Ok(());
        }
        let refused = |problem: String| DocumentError::Refused { problem };
        let changes: Result<Vec<Change>, _> =
            self.ahead.drain(..).map(|(_, bytes)| Change::from_bytes(bytes)).collect();
        let changes = changes.map_err(|error| refused(error.to_string()))?;
        catch_unwind(AssertUnwindSafe(|| self.automerge.apply_changes(changes)))
            .map_err(|_| refused("automerge panicked".to_owned()))?
            .map_err(|error| refused(error.to_string()))?;
        let heads: Vec<[u8; 32]> = self.automerge.get_heads().into_iter().map(|hash| hash.0).collect();
        if heads != self.light.heads().hashes() {
            return Err(refused("a change ahead of automerge did not become its head".to_owned()));
        }
        Ok(())
    }

    /// Automerge with the changes that are ahead of it; `None` when it does not take them.
    pub(super) fn settled(&self) -> Option<Cow<'_, Automerge>> {
        if self.ahead.is_empty() {
            return Some(Cow::Borrowed(&self.automerge));
        }
        let mut copy = self.clone();
        copy.settle().ok()?;
        Some(Cow::Owned(copy.automerge))
    }

    /// What is known of this document without automerge, which is given up; `None` when that is not all that edits
    /// without it ask for. The history must be stored.
    pub fn into_light(mut self) -> Option<Light> {
        self.known().is_some().then_some(self.light)
    }

    /// The light state, if it can stand alone.
    pub(super) fn known(&mut self) -> Option<&Light> {
        self.shown();
        self.know_all();
        (self.light.is_complete() && self.light.is_ready()).then_some(&self.light)
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
        self.make_room(edits.len())?;
        self.shown();
        for edit in edits {
            if self.look_up(edit.path.segments()).is_none() {
                return Ok(Tried::NeedsAutomerge);
            }
        }
        let tried = self.light.write(edits, paths, time_seconds)?;
        if let Tried::Done(Some(bytes)) = &tried {
            self.push(bytes);
        }
        Ok(tried)
    }

    /// Tries to take a peer's change; `false`: nothing was done.
    ///
    /// # Errors
    /// Automerge does not take what is ahead of it.
    pub(super) fn apply_ahead(&mut self, peer: PeerChange<'_>) -> Result<bool, DocumentError> {
        self.shown();
        let Some(chained) = self.light.chained(peer) else { return Ok(false) };
        self.make_room(chained.entries().count())?;
        for (map, key) in chained.entries() {
            let path: Vec<String> = self.light.path_of(map).iter().cloned().chain([key.to_owned()]).collect();
            if self.light.entry(map, key).is_none() && self.look_up(&path).is_none() {
                return Ok(false);
            }
        }
        let taken = self.light.take(&chained);
        if taken {
            self.push(peer.bytes);
        }
        Ok(taken)
    }

    fn push(&mut self, bytes: &[u8]) {
        if let [head] = self.light.heads().hashes() {
            self.ahead.push((*head, bytes.to_vec()));
        }
    }

    /// Makes room for one more change ahead and for so many entries.
    fn make_room(&mut self, entries: usize) -> Result<(), DocumentError> {
        let crowded = self.light.known() + entries > MAX_ENTRIES;
        if crowded || self.ahead.len() >= MAX_CHANGES_AHEAD {
            self.settle()?;
        }
        if crowded {
            self.light.forget_entries();
        }
        Ok(())
    }

    /// Reads an entry from automerge if it is not known yet; `None` when there is no map to hold it.
    fn look_up(&mut self, path: &[String]) -> Option<()> {
        let (key, containers) = path.split_last()?;
        if let Some(map) = self.light.map_at(containers)
            && self.light.entry(map, key).is_some()
        {
            return Some(());
        }
        let (mut object, mut kind) = (ROOT, ObjType::Map);
        let mut indices = Vec::with_capacity(containers.len());
        for segment in containers {
            let entry = match kind {
                ObjType::Map => Prop::Map(segment.clone()),
                ObjType::List => Prop::Seq(index(segment).ok()?),
                _ => return None,
            };
            indices.push(kind == ObjType::List);
            (object, kind) = View::now(&self.automerge).object_at(&object, entry)?;
        }
        if kind != ObjType::Map {
            return None;
        }
        let entry = self.read_entry(&object, key)?;
        let map = self.light.learn_map(containers, &indices, self.id_of(&object)?);
        self.light.learn(map, key, entry);
        Some(())
    }

    /// The name of the operation that made an object, `Some(None)` for the root; `None`: its author is not known.
    fn id_of(&self, id: &ObjId) -> Option<Option<OpId>> {
        match id {
            ObjId::Root => Some(None),
            ObjId::Id(counter, actor, _) => Some(Some(self.light.id_of(*counter, actor)?)),
        }
    }

    /// An entry of a map as automerge has it.
    fn read_entry(&self, object: &ObjId, key: &str) -> Option<Entry> {
        let mut ids = Vec::new();
        let mut counters = 0;
        for (value, id) in self.automerge.get_all(object, key).ok()? {
            let Value::Scalar(scalar) = value else { return Some(Entry::Other) };
            let node = View::<Automerge>::scalar(&scalar.into_owned().into());
            counters += usize::from(matches!(node, Node::Counter(_)));
            ids.push(self.id_of(&id)??);
        }
        let count = ids.len();
        Some(match Values::new(&ids) {
            None => Entry::Nothing,
            Some(values) if counters == 0 => Entry::Plain(values),
            Some(values) if counters == count => Entry::Counter(values),
            Some(_) => Entry::Other, // an increment takes plain values out of a conflict with counters
        })
    }

    /// Reads every entry that is not known yet, if there are not too many.
    fn know_all(&mut self) {
        let mut places = vec![(ROOT, ObjType::Map, Vec::<String>::new(), Vec::<bool>::new())];
        if self.light.is_complete() {
            return;
        }
        let (mut entries, mut maps) = (0, 0);
        while let Some((object, kind, path, indices)) = places.pop() {
            if path.len() >= MAX_DEPTH {
                return; // shows as null
            }
            let mut inside = Vec::new();
            if kind == ObjType::List {
                for (at, item) in self.automerge.list_range(&object, ..).enumerate() {
                    if let ValueRef::Object(kind) = item.value {
                        inside.push((item.id(), kind, at.to_string(), true));
                    }
                    entries += 1;
                }
            } else if kind == ObjType::Map {
                let Some(id) = self.id_of(&object) else { return };
                let map = self.light.learn_map(&path, &indices, id);
                let mut read = Vec::new();
                for item in self.automerge.map_range(&object, ..) {
                    entries += 1;
                    if entries > MAX_ENTRIES {
                        return;
                    }
                    if let ValueRef::Object(kind) = item.value {
                        inside.push((item.id(), kind, item.key.clone().into_owned(), false));
                    }
                    if self.light.entry(map, &item.key).is_none() {
                        let Some(entry) = self.read_entry(&object, &item.key) else { return };
                        read.push((item.key.into_owned(), entry));
                    }
                }
                for (key, entry) in read {
                    self.light.learn(map, &key, entry);
                }
                maps += 1;
            }
            if entries > MAX_ENTRIES || maps > MAX_MAPS {
                return;
            }
            for (object, kind, segment, is_index) in inside {
                let path = path.iter().cloned().chain([segment]).collect();
                let indices = indices.iter().copied().chain([is_index]).collect();
                places.push((object, kind, path, indices));
            }
        }
        self.light.completed();
    }
}
