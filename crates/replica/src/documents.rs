//! The documents' histories: a cache bounded in bytes in front of their pieces in the store.
//!
//! A history is stored as a saved document (part 0) and the changes since, in order, several in one part (parts 1, 2,
//! ...). The last part is written again with each write until it is full; when the parts have grown to several times the
//! size of the saved document, it is saved again.
//!
//! In memory a document is *light* (what plain edits ask for, some 1 KiB) as long as nothing else is asked, and *whole*
//! (with automerge's history, 15 KiB and more) from then on, until the memory is needed. Invariant: what is in memory
//! is what the store holds, the open batch included, except between an edit or a merge and its [`Documents::save`].

use std::collections::BTreeMap;

use bytes::Bytes;
use thiserror::Error;
use tropism_crdt::Origin;
use tropism_crdt::document::{Document, DocumentError, GateError, Heads, Light, PeerChange, Tried};
use tropism_placement::{Policy, ScopeName, ShardId};
use tropism_storage::{EditKey, Space, Store, StoreError};

use crate::limits::{LONG_HISTORY_PERCENT, NAMED_IN_STATUS};

/// Changes behind a small saved document, in bytes, before it is saved again: some fifty edits. More would cost less to
/// write (a save of a light document loads it, some 2 us an edit of its history and 7 us a change behind), and more to
/// read from the store (2 us a change, or 7 us where automerge is needed).
const MIN_PARTS_BYTES: usize = 8 << 10;
/// The same behind a larger one, as a multiple of it: a saved edit takes some 10 B, a change some 150 B.
const PARTS_OF_SAVED: usize = 4;
/// Changes in one part, in bytes: what each write writes again, against rows to write once and remove once.
const PART_BYTES: usize = 512;
/// A whole document becomes light again when automerge was not asked for anything for so many changes. More would cost
/// more at once when it is; fewer, more loads.
const AHEAD_CHANGES: usize = 64;
/// A document with so many changes stays whole once it is: loading it would take 2 ms of one core and more.
const LONG_CHANGES: u64 = 1_000;
/// The part of the memory that whole documents keep while light ones are forgotten.
const WHOLE_SHARE: usize = 4;
/// Memory of an entry of the cache beside the document and its key.
const ENTRY_BYTES: usize = 256;

/// A document in memory, and what the store holds of it.
#[derive(Debug)]
pub(crate) struct Held {
    state: State,
    life: u64,
    /// Size of part 0.
    saved_bytes: usize,
    /// Parts behind it, and the content of the last.
    parts: u64,
    parts_bytes: usize,
    last_part: Vec<u8>,
    /// As counted in the cache.
    cost: usize,
    used: u64,
}

#[derive(Debug)]
enum State {
    Light(Light),
    Whole(Box<Document>),
}

impl Held {
    /// Changes in the history.
    pub(crate) fn history_changes(&self) -> u64 {
        match &self.state {
            State::Light(light) => light.history_changes(),
            State::Whole(document) => document.history_changes(),
        }
    }

    /// Bytes of the history.
    pub(crate) fn history_bytes(&self) -> usize {
        match &self.state {
            State::Light(light) => light.history_bytes(),
            State::Whole(document) => document.history_bytes(),
        }
    }

    /// The version, and what the document shows.
    pub(crate) fn shown(&mut self) -> (Heads, Bytes) {
        match &mut self.state {
            State::Light(light) => (light.heads(), light.shown()),
            State::Whole(document) => (document.heads(), document.shown()),
        }
    }

    fn is_whole(&self) -> bool {
        matches!(self.state, State::Whole(_))
    }

    fn estimated_bytes(&self, key: &str) -> usize {
        let state = match &self.state {
            State::Light(light) => light.estimated_bytes(),
            State::Whole(document) => document.estimated_bytes(),
        };
        ENTRY_BYTES + 2 * key.len() + self.last_part.capacity() + state
    }

    /// Stores changes behind the saved document.
    fn append(&mut self, store: &mut Store, shard: ShardId, key: &str, changes: &[&[u8]]) {
        for change in changes {
            if self.parts == 0 || self.last_part.len() + change.len() > PART_BYTES {
                self.parts += 1;
                self.last_part.clear();
            }
            self.last_part.extend_from_slice(change);
            self.parts_bytes += change.len();
            store.put_edit(&EditKey { shard, key, life: self.life, part: self.parts }, &self.last_part);
        }
    }

    /// Stores the saved document in place of the one before and of the changes behind it.
    fn replace(&mut self, store: &mut Store, shard: ShardId, key: &str, saved: &[u8]) {
        let life = self.life;
        store.put_edit(&EditKey { shard, key, life, part: 0 }, saved);
        for part in 1..=self.parts {
            store.remove(Space::Edits, EditKey { shard, key, life, part }.encode());
        }
        (self.saved_bytes, self.parts, self.parts_bytes) = (saved.len(), 0, 0);
        self.last_part.clear();
    }
}

/// The cache. What was written in the open batch stays in it until the batch is committed.
///
/// Invariants: every document is in the tier of its state, under its last use; a tier's bytes are the sum of its
/// documents' costs.
#[derive(Debug)]
pub(crate) struct Documents {
    /// Boxed: the maps move their values about.
    shards: BTreeMap<ShardId, BTreeMap<String, Box<Held>>>,
    light: Tier,
    whole: Tier,
    actor: Vec<u8>,
    limit: usize,
    uses: u64,
    /// Look-ups that found a document in memory, and that did not.
    looked_up: (u64, u64),
    long: BTreeMap<(ShardId, String), LongHistory>,
    /// Places at which a merge left several values.
    disputed: u64,
}

/// The documents of one state, in the order of their last use.
#[derive(Debug, Default)]
struct Tier {
    used: BTreeMap<u64, (ShardId, String)>,
    bytes: usize,
}

/// A document that is filling its history budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongHistory {
    /// Its scope.
    pub scope: ScopeName,
    /// Its key.
    pub key: String,
    /// Bytes of its history, and what the policy allows.
    pub bytes: (u64, u64),
    /// Changes in its history, and what the policy allows.
    pub changes: (u64, u64),
}

impl LongHistory {
    /// How much of the budget is used, in percent of the one that is fuller.
    fn percent(&self) -> u64 {
        let of = |(used, allowed): (u64, u64)| used.saturating_mul(100) / allowed.max(1);
        of(self.bytes).max(of(self.changes))
    }
}

/// Why a document could not be had.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Document(DocumentError),
}

/// A life of a key.
pub(crate) type Place<'a> = (ShardId, &'a str, u64);

/// The raw change, if there is a difference, and the document then.
type Edited<'a> = (Option<Vec<u8>>, &'a mut Held);

impl Documents {
    pub(crate) fn new(origin: Origin, limit: usize) -> Self {
        Self {
            shards: BTreeMap::new(),
            light: Tier::default(),
            whole: Tier::default(),
            actor: origin.to_bytes(),
            limit,
            uses: 0,
            looked_up: (0, 0),
            long: BTreeMap::new(),
            disputed: 0,
        }
    }

    /// Places at which changes that were applied one by one left several values, since the start.
    pub(crate) fn disputed(&self) -> u64 {
        self.disputed
    }

    /// Number of documents and bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.light.used.len() + self.whole.used.len(), self.bytes())
    }

    fn bytes(&self) -> usize {
        self.light.bytes + self.whole.bytes
    }

    /// The document of a life of a key: from memory, from the store, or empty.
    pub(crate) fn get(&mut self, store: &Store, place: Place<'_>) -> Result<&mut Held, LoadError> {
        let (shard, key, life) = place;
        self.uses += 1;
        let uses = self.uses;
        let found = self.held(shard, key).filter(|held| held.life == life);
        let Some(held) = found else {
            self.looked_up.1 += 1;
            return self.open(store, place);
        };
        let (before, is_whole) = (std::mem::replace(&mut held.used, uses), held.is_whole());
        self.looked_up.0 += 1;
        let tier = self.tier(is_whole);
        if let Some(name) = tier.used.remove(&before) {
            tier.used.insert(uses, name);
        }
        self.open(store, place)
    }

    /// [`Self::get`], not counted as a use.
    fn open(&mut self, store: &Store, place: Place<'_>) -> Result<&mut Held, LoadError> {
        let (shard, key, life) = place;
        if self.held(shard, key).is_none_or(|held| held.life != life) {
            let held = self.load(store, place, None)?;
            self.forget(shard, key);
            self.uses += 1;
            self.insert(shard, key.to_owned(), Box::new(held));
        }
        let Some(held) = self.held(shard, key) else { unreachable!("inserted above") };
        Ok(held)
    }

    /// The document with its history.
    pub(crate) fn whole(&mut self, store: &Store, place: Place<'_>) -> Result<&mut Document, LoadError> {
        let (shard, key, _) = place;
        if let Held { state: State::Light(light), used, .. } = self.open(store, place)? {
            let (light, used) = (light.clone(), *used);
            let mut held = self.load(store, place, Some(&light))?;
            held.used = used;
            self.forget(shard, key);
            self.insert(shard, key.to_owned(), Box::new(held));
        }
        match self.held(shard, key).map(|held| &mut held.state) {
            Some(State::Whole(document)) => Ok(document),
            _ => unreachable!("inserted above"),
        }
    }

    fn held(&mut self, shard: ShardId, key: &str) -> Option<&mut Held> {
        Some(self.shards.get_mut(&shard)?.get_mut(key)?)
    }

    fn tier(&mut self, is_whole: bool) -> &mut Tier {
        if is_whole { &mut self.whole } else { &mut self.light }
    }

    fn insert(&mut self, shard: ShardId, key: String, mut held: Box<Held>) {
        if held.used == 0 {
            held.used = self.uses;
        }
        held.cost = held.estimated_bytes(&key);
        let tier = self.tier(held.is_whole());
        tier.bytes += held.cost;
        tier.used.insert(held.used, (shard, key.clone()));
        self.shards.entry(shard).or_default().insert(key, held);
    }

    /// Reads a document from the store: with its history if it is known to be at `light`, else light if that is possible.
    fn load(&self, store: &Store, place: Place<'_>, light: Option<&Light>) -> Result<Held, LoadError> {
        let (shard, key, life) = place;
        let mut saved = None;
        let mut changes = Vec::new();
        let (mut parts, mut parts_bytes) = (0, 0);
        for (part, piece) in store.edits(shard, key, life)? {
            match part {
                EditKey::PARKED.. => {}
                0 => saved = Some(piece),
                _ => {
                    parts = part;
                    parts_bytes += piece.len();
                    changes.push(piece);
                }
            }
        }
        let restored = match light {
            None => Light::restore(saved.as_deref(), &changes, &self.actor),
            Some(_) => None,
        };
        let state = match restored {
            Some(restored) => State::Light(restored),
            None => {
                let whole = self.load_whole(saved.as_deref(), &changes, light);
                State::Whole(Box::new(whole.map_err(LoadError::Document)?))
            }
        };
        let last_part = changes.last().map_or_else(Vec::new, |last| last.to_vec());
        let saved_bytes = saved.map_or(0, |saved| saved.len());
        Ok(Held { state, life, saved_bytes, parts, parts_bytes, last_part, cost: 0, used: 0 })
    }

    fn load_whole(
        &self,
        saved: Option<&[u8]>,
        changes: &[Bytes],
        light: Option<&Light>,
    ) -> Result<Document, DocumentError> {
        let mut document = match saved {
            Some(saved) => Document::load(saved, &self.actor)?,
            None => Document::empty(&self.actor),
        };
        document.restore(changes)?;
        if let Some(light) = light {
            document.adopt(light)?;
        }
        Ok(document)
    }

    /// Edits a document: `light`, where that goes, else `whole`.
    pub(crate) fn edit<E>(
        &mut self,
        store: &Store,
        place: Place<'_>,
        light: impl FnOnce(&mut Light) -> Result<Tried, E>,
        whole: impl FnOnce(&mut Document) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Result<Edited<'_>, E>, LoadError> {
        let mut tried = Tried::NeedsAutomerge;
        if let State::Light(held) = &mut self.open(store, place)?.state {
            match light(held) {
                Ok(outcome) => tried = outcome,
                Err(error) => return Ok(Err(error)),
            }
        }
        let change = match tried {
            Tried::Done(change) => change,
            Tried::NeedsAutomerge => match whole(self.whole(store, place)?) {
                Ok(change) => change,
                Err(error) => return Ok(Err(error)),
            },
        };
        Ok(Ok((change, self.open(store, place)?)))
    }

    /// Applies peers' changes up to the first that does not pass: the document then, how many, and why not the next.
    pub(crate) fn apply(
        &mut self,
        store: &Store,
        place: Place<'_>,
        changes: &[PeerChange<'_>],
    ) -> Result<(&mut Held, usize, Option<GateError>), LoadError> {
        let (shard, key, _) = place;
        let (mut good, mut refused) = (changes.len(), None);
        self.get(store, place)?;
        if !self.apply_light(store, place, changes)? {
            loop {
                let error = match self.whole(store, place)?.apply(&changes[..good]) {
                    Ok(applied) => {
                        self.disputed += applied.disputed as u64;
                        break;
                    }
                    Err(error) => error,
                };
                if error.spoiled {
                    self.forget(shard, key); // the store has it as it was
                }
                let mut first = error.change;
                if first.is_none() && good > 1 {
                    // Which one is at fault shows when each goes alone.
                    for (at, change) in changes[..good].iter().enumerate() {
                        let outcome = self.whole(store, place)?.apply(&[*change]);
                        if let Err(error) = outcome {
                            if error.spoiled {
                                self.forget(shard, key);
                            }
                            first = Some(at);
                            refused = Some(error);
                            break;
                        }
                    }
                } else {
                    refused = Some(error);
                }
                // What was refused together and passes one by one stands.
                let Some(first) = first.or((good == 1).then_some(0)) else { break };
                good = first;
            }
        }
        Ok((self.open(store, place)?, good, refused))
    }

    /// Applies peers' changes to a light document, all or none.
    fn apply_light(
        &mut self,
        store: &Store,
        place: Place<'_>,
        changes: &[PeerChange<'_>],
    ) -> Result<bool, LoadError> {
        let State::Light(light) = &mut self.open(store, place)?.state else { return Ok(false) };
        let applied = changes.iter().take_while(|change| light.apply(**change)).count();
        if applied < changes.len() && applied > 0 {
            self.forget(place.0, place.1); // the store has it as it was
        }
        Ok(applied == changes.len())
    }

    /// Stores what a document became by the raw changes given.
    pub(crate) fn save(
        &mut self,
        store: &mut Store,
        shard: ShardId,
        key: &str,
        changes: &[&[u8]],
    ) -> Result<(), StoreError> {
        let Some(held) = self.held(shard, key) else { return Ok(()) };
        let grown: usize = changes.iter().map(|change| change.len()).sum();
        let full = held.parts_bytes + grown > MIN_PARTS_BYTES.max(PARTS_OF_SAVED * held.saved_bytes);
        match &mut held.state {
            State::Whole(document) if full => match document.to_stored() {
                Ok(saved) => held.replace(store, shard, key, &saved),
                Err(_) => {
                    // A document that does not settle, a defect, is not lost: its changes are in its parts.
                    held.append(store, shard, key, changes);
                    self.forget(shard, key);
                    return Ok(());
                }
            },
            State::Whole(document) => {
                let unused = document.changes_ahead() >= AHEAD_CHANGES;
                let is_long = document.history_changes() >= LONG_CHANGES;
                held.append(store, shard, key, changes);
                if unused && !is_long {
                    self.lighten(shard, key);
                }
            }
            State::Light(_) => {
                held.append(store, shard, key, changes);
                if full {
                    self.save_light(store, shard, key)?;
                }
            }
        }
        self.recount(shard, key);
        Ok(())
    }

    /// Saves a light document again, from its pieces. It stays light, unless it is long.
    fn save_light(&mut self, store: &mut Store, shard: ShardId, key: &str) -> Result<(), StoreError> {
        let Some(Held { state: State::Light(light), life, used, .. }) = self.held(shard, key) else {
            return Ok(());
        };
        let (light, life, used) = (light.clone(), *life, *used);
        let mut loaded = match self.load(store, (shard, key, life), Some(&light)) {
            Ok(loaded) => loaded,
            Err(LoadError::Store(error @ StoreError::Engine(_))) => return Err(error),
            Err(_) => {
                self.leave_pieces(shard, key);
                return Ok(());
            }
        };
        let State::Whole(document) = &mut loaded.state else { return Ok(()) };
        let Ok(saved) = document.to_stored() else {
            self.leave_pieces(shard, key);
            return Ok(());
        };
        loaded.replace(store, shard, key, &saved);
        loaded.used = used;
        let is_long = loaded.history_changes() >= LONG_CHANGES;
        self.forget(shard, key);
        self.insert(shard, key.to_owned(), Box::new(loaded));
        if !is_long {
            self.lighten(shard, key);
        }
        Ok(())
    }

    /// Leaves damaged pieces as they are, for whoever needs them; they are tried again when they have grown as much.
    fn leave_pieces(&mut self, shard: ShardId, key: &str) {
        if let Some(held) = self.held(shard, key) {
            held.saved_bytes = held.parts_bytes;
        }
    }

    /// Counts a document's memory again.
    fn recount(&mut self, shard: ShardId, key: &str) {
        let Some(held) = self.held(shard, key) else { return };
        let cost = held.estimated_bytes(key);
        let (before, is_whole) = (std::mem::replace(&mut held.cost, cost), held.is_whole());
        let tier = self.tier(is_whole);
        tier.bytes = tier.bytes + cost - before;
    }

    /// Stores a document in place of what there was of that life.
    pub(crate) fn put(
        &mut self,
        store: &mut Store,
        (shard, key, life): Place<'_>,
        saved: &[u8],
    ) -> Result<(), StoreError> {
        self.forget(shard, key);
        for (of, part) in store.edit_names(shard, key)? {
            if of == life {
                store.remove(Space::Edits, EditKey { shard, key, life, part }.encode());
            }
        }
        store.put_edit(&EditKey { shard, key, life, part: 0 }, saved);
        Ok(())
    }

    /// Look-ups that found a document in memory, and that did not.
    pub(crate) fn looked_up(&self) -> (u64, u64) {
        self.looked_up
    }

    /// Remembers a document in memory if its history is long, in place of one that is less so when there are many.
    pub(crate) fn note_history(&mut self, shard: ShardId, key: &str, scope: &ScopeName, policy: &Policy) {
        let Some(held) = self.held(shard, key) else { return };
        let history = LongHistory {
            scope: scope.clone(),
            key: key.to_owned(),
            bytes: (held.history_bytes() as u64, policy.history_bytes),
            changes: (held.history_changes(), policy.history_changes),
        };
        if history.percent() < LONG_HISTORY_PERCENT {
            return;
        }
        self.long.insert((shard, key.to_owned()), history);
        if self.long.len() > NAMED_IN_STATUS
            && let Some(least) = self.long.iter().min_by_key(|(_, history)| history.percent())
        {
            let least = least.0.clone();
            self.long.remove(&least);
        }
    }

    /// The long histories that were met, the fullest first.
    pub(crate) fn long_histories(&self) -> Vec<LongHistory> {
        let mut long: Vec<LongHistory> = self.long.values().cloned().collect();
        long.sort_by_key(|history| std::cmp::Reverse(history.percent()));
        long
    }

    /// Forgets a document whose state in memory may not be what the store says.
    pub(crate) fn forget(&mut self, shard: ShardId, key: &str) {
        self.remove(shard, key);
    }

    /// Forgets all documents of a shard.
    pub(crate) fn forget_shard(&mut self, shard: ShardId) {
        let keys: Vec<_> =
            self.shards.get(&shard).into_iter().flat_map(|keys| keys.keys().cloned()).collect();
        keys.iter().for_each(|key| self.forget(shard, key));
        self.long.retain(|(of, _), _| *of != shard);
    }

    fn remove(&mut self, shard: ShardId, key: &str) -> Option<Box<Held>> {
        let documents = self.shards.get_mut(&shard)?;
        let held = documents.remove(key);
        if documents.is_empty() {
            self.shards.remove(&shard);
        }
        let held = held?;
        let tier = self.tier(held.is_whole());
        tier.bytes -= held.cost;
        tier.used.remove(&held.used);
        Some(held)
    }

    /// Removes the stored history of every life of a key below `life`, damaged or not.
    pub(crate) fn clear(
        &mut self,
        store: &mut Store,
        shard: ShardId,
        key: &str,
        below: u64,
    ) -> Result<(), StoreError> {
        if self.held(shard, key).is_some_and(|held| held.life < below) {
            self.forget(shard, key);
        }
        self.long.remove(&(shard, key.to_owned()));
        for (life, part) in store.edit_names(shard, key)? {
            if life < below {
                store.remove(Space::Edits, EditKey { shard, key, life, part }.encode());
            }
        }
        Ok(())
    }

    /// Brings the cache back under its limit: whole documents become light, then those that were not used for longest
    /// are forgotten. Only when everything it holds is committed.
    pub(crate) fn trim(&mut self) {
        while self.bytes() > self.limit {
            let whole = self.whole.bytes > self.limit / WHOLE_SHARE || self.light.used.is_empty();
            let Some((shard, key)) = self.tier(whole).used.first_key_value().map(|(_, name)| name.clone())
            else {
                return;
            };
            if whole {
                self.lighten(shard, &key);
            } else {
                self.forget(shard, &key);
            }
        }
    }

    /// Gives up the history of a document, which is stored; all of it, where its light state cannot stand alone.
    fn lighten(&mut self, shard: ShardId, key: &str) {
        let Some(mut held) = self.remove(shard, key) else { return };
        if let State::Whole(document) = held.state
            && let Some(light) = document.into_light()
        {
            held.state = State::Light(light);
            self.insert(shard, key.to_owned(), held);
        }
    }
}
