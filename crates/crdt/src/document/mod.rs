//! JSON documents through automerge.
//!
//! A [`Document`] is one life of one key: a JSON object that several origins edit at once, kept as an automerge document.
//! Clients never send automerge bytes. They send JSON ([`Document::replace`]) or typed operations ([`Document::patch`]);
//! this module turns either into the smallest edit that makes the document show what was asked for, so that what two
//! regions changed apart merges. Each write is one automerge change, whose bytes travel to the other members, where
//! [`Document::apply`] is the gate they pass before automerge sees them. Edits of plain entries of objects are made and
//! taken without automerge, which gets them later, several together (`ahead.rs`), or not before something else asks for
//! the history: a [`Light`] is a document whose history is in the store only.
//!
//! Everything is a pure function of its arguments: the actor and the time come from the caller. Automerge draws a random
//! actor in its constructors; it is replaced before it can author anything.

mod ahead;
mod conflicts;
mod decode;
mod diff;
mod encode;
mod gate;
mod history;
mod light;
mod patch;
mod restore;
mod show;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::transaction::{CommitOptions, Transactable, Transaction};
use automerge::{
    ActorId, Automerge, AutomergeError, ChangeHash, LoadOptions, OnPartialLoad, PatchLog, ReadDoc,
    TextEncoding, VerificationMode,
};
use bytes::Bytes;
use thiserror::Error;

use crate::json::{Json, JsonLimits, MAX_ITEMS, MAX_JSON_BYTES, PathPattern, parse};

pub use conflicts::{Conflict, Conflicts, Rival};
pub use gate::{Applied, GateError, GateErrorKind, PeerChange};
pub use history::{Made, Order, heads_until};
pub use light::{Light, Tried};
pub use patch::{MAX_PATCH_OPS, PatchError, PatchErrorKind, PatchOp, from_json_patch, from_merge_patch};
pub use restore::MadeChange;

use diff::Writer;
use gate::check_made;
use show::{Shape, View};

/// Most automerge operations in one change, one for each value, key and character of text written or removed: some
/// 0.2 s of one core, and what the gate of every other member accepts.
pub const MAX_CHANGE_OPS: usize = 20_000;
/// Largest raw change in bytes: the texts of a full document (1 MiB) and 50 bytes for each operation.
pub const MAX_CHANGE_BYTES: usize = 2 << 20;
/// Most strings and keys one write carries, in bytes: what [`MAX_CHANGE_BYTES`] leaves for them.
const MAX_CHANGE_TEXT_BYTES: usize = MAX_JSON_BYTES;
/// Greatest amount of a counter inside a document and of one increment, either sign: a JSON number that every client
/// reads exactly, and far enough from i64's end that concurrent increments of 500 regions do not wrap.
pub const MAX_COUNTER: i64 = 1 << 53;
/// Most branches of one origin that are being written at the same time at old versions. Each is an automerge actor.
pub const MAX_BRANCHES: u64 = 16;
/// Most heads of a version: one for each writer that had not seen the others, so the members of a shard and their
/// branches.
pub const MAX_HEADS: usize = 1024;
/// Heap of an empty automerge document in bytes, measured.
const DOCUMENT_HEAP_BYTES: usize = 15 << 10;
/// Heap of one operation in a document's history in bytes, measured.
const OPERATION_HEAP_BYTES: usize = 208;
/// Above this many bytes a saved document is deflated: below, deflate costs ten times the save and gains less than a
/// block of the store.
const DEFLATE_ABOVE_BYTES: usize = 64 << 10;

/// The version of a document: the hashes of the newest changes it shows, strictly ascending. Empty: nothing written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Heads(Vec<[u8; 32]>);

/// Bytes or a text that are no version of a document.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("version {problem}; a version is up to 1024 hashes of 32 bytes, strictly ascending")]
pub struct HeadsError {
    problem: &'static str,
}

impl Heads {
    /// The hashes, strictly ascending.
    pub fn hashes(&self) -> &[[u8; 32]] {
        &self.0
    }

    /// Takes hashes in any order; a hash given twice counts once.
    pub fn from_hashes(mut hashes: Vec<[u8; 32]>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        Self(hashes)
    }

    /// The hashes one behind the other.
    pub fn encode(&self) -> Vec<u8> {
        self.0.concat()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Not whole hashes, not strictly ascending, more than [`MAX_HEADS`].
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadsError> {
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(HeadsError { problem: "does not consist of whole hashes" });
        }
        if hashes.len() > MAX_HEADS {
            return Err(HeadsError { problem: "has too many hashes" });
        }
        if !hashes.is_sorted_by(|a, b| a < b) {
            return Err(HeadsError { problem: "is not strictly ascending" });
        }
        Ok(Self(hashes.to_vec()))
    }

    /// Reads the text that [`fmt::Display`] writes: [`Self::encode`] in lower-case hexadecimal.
    ///
    /// # Errors
    /// As [`Self::decode`], and any other character.
    pub fn from_hex(text: &str) -> Result<Self, HeadsError> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if !rest.is_empty() || pairs.len() > MAX_HEADS * 32 {
            return Err(HeadsError { problem: "does not consist of whole hashes" });
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(HeadsError { problem: "has a character that is not 0-9 or a-f" }),
        };
        let mut bytes = Vec::with_capacity(pairs.len());
        for [high, low] in pairs {
            bytes.push(digit(*high)? << 4 | digit(*low)?);
        }
        Self::decode(&bytes)
    }

    fn to_automerge(&self) -> Vec<ChangeHash> {
        self.0.iter().copied().map(ChangeHash).collect()
    }
}

impl fmt::Display for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().flatten().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where a scope's documents hold more than plain values. Elsewhere a string is replaced whole and the later integer
/// wins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths {
    /// Places whose strings merge by character.
    pub text: Vec<PathPattern>,
    /// Places whose integers merge by adding up.
    pub counters: Vec<PathPattern>,
}

/// Why a document does not take a write or cannot be read. Nothing was changed, unless [`Self::spoils`] says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DocumentError {
    /// The value cannot be a document.
    #[error("a document is an object at its root, not {found}")]
    RootNotObject {
        /// What was given.
        found: &'static str,
    },
    /// The value at a counter path cannot be a counter.
    #[error("{path} is a counter path: it takes an integer, not {found}")]
    NotACounterValue {
        /// The place.
        path: String,
        /// What was given.
        found: &'static str,
    },
    /// The counter would leave its range.
    #[error("counter {path} would leave -{limit}..{limit}")]
    CounterOverflow {
        /// The place.
        path: String,
        /// [`MAX_COUNTER`].
        limit: i64,
    },
    /// The document or the write is too large. A document that merging made larger takes only writes that shrink it.
    #[error(
        "{what} would be {size}, at most {limit} are accepted: split the value over several keys or writes"
    )]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// How much.
        size: usize,
        /// How much is accepted.
        limit: usize,
    },
    /// The base version is not one this document has seen (yet).
    #[error("the base version is not known here")]
    UnknownBase,
    /// Too many writes at old versions are under way.
    #[error(
        "more than {limit} branches of this node are open: read the document again and write at its version"
    )]
    TooManyBranches {
        /// [`MAX_BRANCHES`].
        limit: u64,
    },
    /// Stored bytes that are no document.
    #[error("stored document does not load: {problem}")]
    Damaged {
        /// What automerge says.
        problem: String,
    },
    /// Automerge refused what this module asked of it: a defect here. The document must be forgotten and loaded again.
    #[error("internal: automerge refused an edit: {problem}")]
    Refused {
        /// What automerge says.
        problem: String,
    },
    /// The change that was made is one that peers would refuse: a defect here, or a document that hostile changes brought
    /// to its limits. The document must be forgotten and loaded again.
    #[error("internal: the change does not pass the gate: {problem}")]
    NotPassed {
        /// What the gate says.
        problem: String,
    },
}

impl DocumentError {
    /// Whether the document in memory may be another one now: it must be forgotten and loaded again.
    pub fn spoils(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Refused { .. } | Self::NotPassed { .. })
    }
}

impl From<AutomergeError> for DocumentError {
    fn from(error: AutomergeError) -> Self {
        Self::Refused { problem: error.to_string() }
    }
}

/// One life of one key. See the module.
#[derive(Debug, Clone)]
pub struct Document {
    automerge: Automerge,
    /// Changes that automerge does not have yet, with their hashes, each on top of the one before.
    ahead: Vec<([u8; 32], Vec<u8>)>,
    /// What is known without automerge, the changes ahead of it included.
    light: Light,
}

impl Document {
    /// A document that nobody has written, showing `{}`. Its writes will be `actor`'s: the bytes of the origin.
    pub fn empty(actor: &[u8]) -> Self {
        let automerge =
            Automerge::new_with_encoding(TextEncoding::UnicodeCodePoint).with_actor(ActorId::from(actor));
        Self { automerge, ahead: Vec::new(), light: Light::empty(actor) }
    }

    /// Reads what [`Self::save`] or [`Self::to_stored`] wrote; writes will be `actor`'s. The bytes must come from this node's own store: a
    /// hostile document could inflate without bound.
    ///
    /// # Errors
    /// [`DocumentError::Damaged`].
    pub fn load(bytes: &[u8], actor: &[u8]) -> Result<Self, DocumentError> {
        let options = LoadOptions::new()
            .on_partial_load(OnPartialLoad::Error)
            .verification_mode(VerificationMode::Check)
            .text_encoding(TextEncoding::UnicodeCodePoint);
        let damaged = |problem| DocumentError::Damaged { problem };
        let (known, bytes) = restore::split_stored(bytes).map_err(|error| damaged(error.to_string()))?;
        // A damaged document can make automerge panic; nothing outlives the call but its result.
        let automerge = catch_unwind(AssertUnwindSafe(|| Automerge::load_with_options(bytes, options)))
            .map_err(|_| damaged("automerge panicked".to_owned()))?
            .map_err(|error| damaged(error.to_string()))?
            .with_actor(ActorId::from(actor));
        let known = known.and_then(|known| Light::decode(known, bytes.len(), actor));
        let heads = automerge.get_heads();
        let light = match known.filter(|light| light.heads().to_automerge() == heads) {
            Some(light) => light,
            None => {
                let metas = automerge.get_changes_meta(&[]);
                let changes = metas.iter().map(|meta| (&*meta.actor, meta.seq, meta.hash.0, meta.max_op));
                Light::of_history(ActorId::from(actor), heads, changes, bytes.len())
            }
        };
        Ok(Self { automerge, ahead: Vec::new(), light })
    }

    /// The whole history as bytes. Shorter after [`Self::settle`].
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = self.automerge.save_nocompress();
        if bytes.len() > DEFLATE_ABOVE_BYTES {
            bytes = self.automerge.save();
        }
        bytes.extend(self.ahead.iter().flat_map(|(_, change)| change));
        bytes
    }

    /// The version.
    pub fn heads(&self) -> Heads {
        self.light.heads()
    }

    /// Whether this document has seen that version.
    pub fn has_seen(&self, heads: &Heads) -> bool {
        let known = |hash: &[u8; 32]| {
            self.automerge.get_change_meta_by_hash(&ChangeHash(*hash)).is_some()
                || self.ahead.iter().any(|(ahead, _)| ahead == hash)
        };
        heads.0.iter().all(known)
    }

    /// The raw changes that the version `since` has not seen, in causal order; `None` when that version is unknown.
    pub fn changes_since(&self, since: &Heads) -> Option<Vec<Vec<u8>>> {
        let automerge = self.settled()?;
        let changes = self.has_seen(since).then(|| automerge.get_changes(&since.to_automerge()))?;
        Some(changes.iter().map(|change| change.raw_bytes().to_vec()).collect())
    }

    /// Heap in bytes, estimated for the accounting of a cache.
    pub fn estimated_bytes(&self) -> usize {
        // Beside the operations live the texts and keys; the history holds each at most once.
        let operations = self.automerge.stats().num_ops as usize;
        let ahead: usize = self.ahead.iter().map(|(_, bytes)| bytes.len() + 72).sum();
        DOCUMENT_HEAP_BYTES
            + operations * OPERATION_HEAP_BYTES
            + self.light.history_bytes()
            + ahead
            + self.light.estimated_bytes()
    }

    /// Changes that automerge does not have yet: it is given them, 10 us each and more, when it is asked for something.
    pub fn changes_ahead(&self) -> usize {
        self.ahead.len()
    }

    /// Changes in the history.
    pub fn history_changes(&self) -> u64 {
        self.light.history_changes()
    }

    /// Bytes of the history: as last stored or loaded, and the raw changes since.
    pub fn history_bytes(&self) -> usize {
        self.light.history_bytes()
    }

    /// What the document shows, as canonical JSON. Where concurrent writes conflict this is automerge's winner, the
    /// same at every member with the same heads.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        match &self.light.shown {
            Some(shown) => shown.to_vec(),
            None => View::now(&self.automerge).canonical().0,
        }
    }

    /// [`Self::to_canonical_json`], kept for the next write.
    pub fn shown(&mut self) -> Bytes {
        match &self.light.shown {
            Some(shown) => shown.clone(),
            None => {
                let (shown, shape) = View::now(&self.automerge).canonical();
                self.light.bound = Some(shape);
                self.light.shown.insert(shown.into()).clone()
            }
        }
    }

    /// What the document shows.
    pub fn to_json(&self) -> Json {
        // What is ahead is within the limits and parses.
        let ahead = self.light.shown.as_deref().filter(|_| !self.ahead.is_empty());
        match ahead.and_then(|shown| parse(shown, &JsonLimits::default()).ok()) {
            Some(json) => json,
            None => View::now(&self.automerge).root().to_json(),
        }
    }

    /// What the document showed at a version; `None` when the version is unknown.
    pub fn json_at(&self, heads: &Heads) -> Option<Json> {
        let automerge = self.settled()?;
        let view = View::at(&*automerge, heads.to_automerge());
        self.has_seen(heads).then(|| view.root().to_json())
    }

    /// Makes the document show `value`, by the smallest edit. Without `base` that is the difference to what it shows
    /// now; with `base` the difference between that version and `value`, merged with everything written since. Text and
    /// counter paths keep their merging: a new counter starts at the value given, an existing one is incremented by
    /// the difference. `time_seconds` (Unix) is a note for readers of the history.
    ///
    /// Returns the bytes of the change for the other members, or `None` when there is no difference.
    ///
    /// # Errors
    /// See [`DocumentError`]; nothing is changed then.
    pub fn replace(
        &mut self,
        value: &Json,
        base: Option<&Heads>,
        paths: &Paths,
        time_seconds: i64,
    ) -> Result<Option<Vec<u8>>, DocumentError> {
        let Json::Object(entries) = value else {
            return Err(DocumentError::RootNotObject { found: value.type_name() });
        };
        self.shown();
        if self.light.is_at(base)
            && let Some(edits) = self.light.edits_to(value, paths)
            && let Tried::Done(change) = self.write_ahead(&edits, paths, time_seconds)?
        {
            return Ok(change);
        }
        self.write(base, time_seconds, |transaction| {
            let mut writer = Writer::new(transaction, paths);
            let shown = writer.root()?;
            writer.replace_root(&shown, entries)?;
            Ok(writer.growth())
        })
    }

    /// Applies the operations one after the other, all or none. With `base` they apply to that version and merge with
    /// everything written since.
    ///
    /// Returns the bytes of the change for the other members, or `None` when there is no difference.
    ///
    /// # Errors
    /// The first operation that fails, or [`DocumentError`] of the whole; nothing is changed then.
    pub fn patch(
        &mut self,
        operations: &[PatchOp],
        base: Option<&Heads>,
        paths: &Paths,
        time_seconds: i64,
    ) -> Result<Option<Vec<u8>>, PatchError> {
        patch::check_count(operations.len())?;
        if self.light.is_at(base)
            && let Some(edits) = light::edits_of(operations)
            && let Tried::Done(change) = self.write_ahead(&edits, paths, time_seconds)?
        {
            return Ok(change);
        }
        self.write(base, time_seconds, |transaction| {
            let mut writer = Writer::new(transaction, paths);
            patch::run(&mut writer, operations)?;
            Ok(writer.growth())
        })
    }

    /// Runs `edit`, which returns by how much the document can have grown, as one change at `base`.
    fn write<E: From<DocumentError>>(
        &mut self,
        base: Option<&Heads>,
        time_seconds: i64,
        edit: impl FnOnce(&mut Transaction<'_>) -> Result<Shape, E>,
    ) -> Result<Option<Vec<u8>>, E> {
        let options = CommitOptions::default().with_time(time_seconds);
        self.settle()?;
        let Some(base) = base.filter(|base| !self.light.is_at(Some(base))) else {
            let before = self.automerge.get_heads();
            let mut transaction = self.automerge.transaction();
            let growth = edit(&mut transaction)?; // a transaction that is dropped rolls back
            if transaction.pending_ops() == 0 {
                transaction.rollback();
                return Ok(None);
            }
            let bound = self.light.bound.map(|bound| bound.plus(growth)).filter(Shape::is_within_limits);
            let (shown, bound) = match bound {
                Some(bound) => (None, bound),
                None => {
                    let (shown, shape) = measure(&transaction, before)?;
                    (Some(shown.into()), shape)
                }
            };
            let (hash, _) = transaction.commit_with(options);
            (self.light.shown, self.light.bound) = (shown, Some(bound));
            return Ok(hash.map(|hash| self.made(hash)).transpose()?);
        };
        if !self.has_seen(base) {
            return Err(DocumentError::UnknownBase.into());
        }
        // Automerge picks the actor of a write at an old version, and only the change tells which: on a copy.
        let mut branched = self.clone();
        let heads = base.to_automerge();
        let mut transaction = branched
            .automerge
            .transaction_at(PatchLog::inactive(), &heads)
            .map_err(|error| DocumentError::Refused { problem: error.to_string() })?;
        edit(&mut transaction)?;
        if transaction.pending_ops() == 0 {
            return Ok(None);
        }
        measure(&transaction, heads)?;
        let (hash, _) = transaction.commit_with(options);
        (branched.light.shown, branched.light.bound) = (None, None);
        let Some(hash) = hash else { return Ok(None) };
        let actor = self.automerge.get_actor().to_bytes();
        let made = branched.automerge.get_change_meta_by_hash(&hash);
        if made.is_none_or(|made| gate::branch_of(made.actor.to_bytes(), actor).is_none()) {
            return Err(DocumentError::TooManyBranches { limit: MAX_BRANCHES }.into());
        }
        let bytes = branched.made(hash)?;
        *self = branched;
        Ok(Some(bytes))
    }

    /// The bytes of the change just committed, counted. They must be those that peers let through.
    fn made(&mut self, hash: ChangeHash) -> Result<Vec<u8>, DocumentError> {
        let change = self.automerge.get_change_by_hash(&hash);
        let bytes = change.as_ref().map_or_else(Vec::new, |change| change.raw_bytes().to_vec());
        check_made(self.automerge.get_actor().to_bytes(), &bytes)?;
        self.light.merged(self.automerge.get_heads(), change);
        Ok(bytes)
    }
}

/// What the transaction shows and how large that is, refused when too large and not smaller than the version `before`.
fn measure(
    transaction: &Transaction<'_>,
    before: Vec<ChangeHash>,
) -> Result<(Vec<u8>, Shape), DocumentError> {
    let (shown, shape) = View::now(transaction).canonical();
    if shape.is_within_limits() {
        return Ok((shown, shape));
    }
    let (_, before) = View::at(transaction, before).canonical();
    let too_large = |what, size, limit| Err(DocumentError::TooLarge { what, size, limit });
    if shape.bytes > MAX_JSON_BYTES && shape.bytes >= before.bytes {
        return too_large("bytes of JSON", shape.bytes, MAX_JSON_BYTES);
    }
    if shape.items > MAX_ITEMS.max(before.items) {
        return too_large("keys or items of one container", shape.items, MAX_ITEMS);
    }
    Ok((shown, shape))
}
