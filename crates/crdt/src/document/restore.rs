//! A stored document, and bringing it up to date with the changes stored behind it.
//!
//! A document is stored as what is known of it without automerge, where that is all that plain edits ask for, and
//! behind it as automerge saves it:
//!
//! ```text
//! 1  length  light state  automerge's document
//! ```
//!
//! Automerge's own begins with another byte, and stands alone where there is no light state.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::Change;

use super::decode::actor_of;
use super::gate::origin_of;
use super::{Document, DocumentError, Heads, Light, PeerChange};
use crate::codec::{DecodeError, Reader, put_bytes};

/// What a stored document begins with when its light state comes first.
const LIGHT_MARK: u8 = 1;

/// A stored document in two: the light state, if there is one, and what automerge saved.
pub(super) fn split_stored(stored: &[u8]) -> Result<(Option<&[u8]>, &[u8]), DecodeError> {
    let mut r = Reader::new(stored);
    if r.rest().first() != Some(&LIGHT_MARK) {
        return Ok((None, stored));
    }
    r.u8("mark")?;
    let light = r.bytes("light state")?;
    Ok((Some(light), r.rest()))
}

impl Document {
    /// The whole document as it is to be stored, for [`Self::load`] and [`Light::restore`]. Its history is as large as that
    /// then.
    ///
    /// # Errors
    /// Automerge does not take what is ahead of it, a defect here: the document must be forgotten then.
    pub fn to_stored(&mut self) -> Result<Vec<u8>, DocumentError> {
        self.settle()?;
        let mut stored = Vec::new();
        if let Some(light) = self.known() {
            stored.push(LIGHT_MARK);
            put_bytes(&mut stored, &light.encode());
        }
        let saved = self.save();
        self.light.stored(saved.len());
        stored.extend(saved);
        Ok(stored)
    }

    /// Takes over what a light state of this document knows, which spares reading it from automerge.
    ///
    /// # Errors
    /// [`DocumentError::Damaged`]: it is of another version, so the stored history is not all of it.
    pub fn adopt(&mut self, light: &Light) -> Result<(), DocumentError> {
        if (light.heads(), light.history_changes()) != (self.heads(), self.history_changes()) {
            let heads = |heads: Heads| heads.to_string();
            let problem = format!("it is at {}, not at {}", heads(self.heads()), heads(light.heads()));
            return Err(DocumentError::Damaged { problem });
        }
        let same = light.shown() == self.shown();
        debug_assert!(same, "an edit without automerge shows what automerge shows");
        if same {
            self.light = light.clone();
        }
        Ok(())
    }

    /// Applies changes of this node's own store, which passed the gate when they were stored; each piece holds one or more,
    /// one behind the other.
    ///
    /// # Errors
    /// [`DocumentError::Damaged`]; the document must not be used then.
    pub fn restore(&mut self, pieces: &[impl AsRef<[u8]>]) -> Result<(), DocumentError> {
        if pieces.is_empty() {
            return Ok(());
        }
        self.settle()?;
        let damaged = |problem| DocumentError::Damaged { problem };
        let mut changes = Vec::new();
        for piece in pieces {
            let mut rest = piece.as_ref();
            while !rest.is_empty() {
                let (change, behind) = split_change(rest).map_err(|error| damaged(error.to_string()))?;
                let change = Change::from_bytes(change.to_vec());
                changes.push(change.map_err(|error| damaged(error.to_string()))?);
                rest = behind;
            }
        }
        // What was put aside while a row could not be read may be in the document that a peer repaired it with: its
        // history counts it once.
        let mut known = BTreeSet::new();
        changes.retain(|change| {
            let hash = change.hash();
            known.insert(hash.0) && self.automerge.get_change_meta_by_hash(&hash).is_none()
        });
        // Damaged pieces can make automerge panic; nothing outlives the call but its result.
        catch_unwind(AssertUnwindSafe(|| self.automerge.apply_changes(changes.iter().cloned())))
            .map_err(|_| damaged("automerge panicked".to_owned()))?
            .map_err(|error| damaged(error.to_string()))?;
        self.light.merged(self.automerge.get_heads(), changes);
        (self.light.shown, self.light.bound) = (None, None);
        Ok(())
    }
}

/// A raw change and the origin that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeChange {
    /// The origin's bytes.
    pub origin: Vec<u8>,
    /// The change.
    pub bytes: Vec<u8>,
}

impl Document {
    /// A raw change with the origin that made it; `None` where that cannot be told.
    pub fn made_by(raw: &[u8]) -> Option<MadeChange> {
        let change = catch_unwind(AssertUnwindSafe(|| Change::from_bytes(raw.to_vec()))).ok()?.ok()?;
        let origin = origin_of(change.actor_id().to_bytes())?.to_vec();
        Some(MadeChange { origin, bytes: raw.to_vec() })
    }

    /// The raw changes of `self` that `other` has not seen, in causal order.
    ///
    /// # Errors
    /// [`DocumentError::Damaged`] where an author is no origin.
    pub fn changes_beyond(&self, other: &Self) -> Result<Vec<MadeChange>, DocumentError> {
        let damaged = |problem: &str| DocumentError::Damaged { problem: problem.to_owned() };
        let ours = self.settled().ok_or_else(|| damaged("it does not settle"))?;
        let mut missing = Vec::new();
        for change in ours.get_changes(&[]) {
            if !other.has_seen(&Heads(vec![change.hash().0])) {
                let origin = origin_of(change.actor_id().to_bytes());
                let origin = origin.ok_or_else(|| damaged("a change of an actor that is no origin"))?;
                missing.push(MadeChange { origin: origin.to_vec(), bytes: change.raw_bytes().to_vec() });
            }
        }
        Ok(missing)
    }
}

impl Light {
    /// Whether all of a stored document and of the changes behind it is certainly one author's. Reads their heads only.
    pub fn has_one_author(stored: Option<&[u8]>, changes: &[impl AsRef<[u8]>]) -> bool {
        let of_one = || {
            let mut author: Option<Vec<u8>> = None;
            let mut is_first = |actor: &[u8]| author.get_or_insert_with(|| actor.to_vec()) == actor;
            if let Some(stored) = stored {
                let (known, saved) = split_stored(stored).ok()?;
                if !is_first(Self::decode(known?, saved.len(), &[])?.only_author()?) {
                    return None;
                }
            }
            for piece in changes {
                let mut rest = piece.as_ref();
                while !rest.is_empty() {
                    let (change, behind) = split_change(rest).ok()?;
                    if !is_first(actor_of(change)?) {
                        return None;
                    }
                    rest = behind;
                }
            }
            Some(())
        };
        of_one().is_some()
    }

    /// The light state in front of a document that [`Document::to_stored`] gave, brought up to date with the changes
    /// stored behind it; without such a document, from nothing. `None` when that needs automerge, also where the pieces
    /// are damaged.
    pub fn restore(stored: Option<&[u8]>, changes: &[impl AsRef<[u8]>], actor: &[u8]) -> Option<Self> {
        let mut light = match stored {
            Some(stored) => {
                let (known, saved) = split_stored(stored).ok()?;
                Self::decode(known?, saved.len(), actor)?
            }
            None => Self::empty(actor),
        };
        for piece in changes {
            let mut rest = piece.as_ref();
            while !rest.is_empty() {
                let (bytes, behind) = split_change(rest).ok()?;
                if !light.apply(PeerChange { origin: actor_of(bytes)?, bytes }) {
                    return None;
                }
                rest = behind;
            }
        }
        Some(light)
    }
}

/// The change that `bytes` begin with, and what follows it: magic, checksum, type, and a length.
fn split_change(bytes: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let mut r = Reader::new(bytes);
    r.take(9, "header of a change")?;
    let length = r.varint("length of a change")?;
    let length = usize::try_from(length).map_err(|_| r.invalid("length of a change"))?;
    r.take(length, "change")?;
    Ok(bytes.split_at(r.at()))
}
