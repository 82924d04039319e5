//! The state of one key as members send it to each other: its row, and a document's history.
//!
//! A state is merged, never put in place of another: what only the receiver has stays.

use bytes::Bytes;
use tropism_crdt::Change;
use tropism_crdt::cell::{Admission, Content};
use tropism_crdt::codec::{DecodeError, Reader, put_bytes, put_varint};
use tropism_crdt::document::{Document, DocumentError, PeerChange};
use tropism_placement::{Kind, ShardId};
use tropism_storage::rows::{Parked, Row};
use tropism_storage::{EditKey, Reads, Space, Store, StoreError, ValueRow, View};

use crate::apply::park;
use crate::census::Counted;
use crate::documents::LoadError;
use crate::limits::MAX_LIFE;
use crate::replica::{Event, Replica, ReplicaError};

/// A key's state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct KeyState {
    /// Its row; `None`: the sender cannot read its own.
    row: Option<Bytes>,
    /// The saved document, if it was saved.
    saved: Option<Bytes>,
    /// Raw changes behind it.
    changes: Vec<Bytes>,
    /// Raw changes that did not apply at the sender.
    parked: Vec<Bytes>,
}

impl KeyState {
    /// Reads a key's state from a view, given its row as stored.
    pub(crate) fn read<V: View + ?Sized>(
        view: &V,
        shard: ShardId,
        key: &str,
        row: &Bytes,
    ) -> Result<Self, StoreError> {
        let Ok(value) = ValueRow::decode(row) else { return Ok(Self::default()) };
        let mut state = Self { row: Some(row.clone()), ..Self::default() };
        if !matches!(value.cell.content, Content::Document { .. }) && value.parked.is_none() {
            return Ok(state);
        }
        for (part, piece) in view.committed_edits(shard, key, value.cell.life)? {
            match part {
                0 => state.saved = Some(piece),
                EditKey::PARKED.. => state.parked.push(piece),
                _ => state.changes.push(piece),
            }
        }
        Ok(state)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.row.as_ref().map_or(0, Bytes::len));
        put_bytes(&mut out, self.row.as_deref().unwrap_or_default());
        put_bytes(&mut out, self.saved.as_deref().unwrap_or_default());
        for pieces in [&self.changes, &self.parked] {
            put_varint(&mut out, pieces.len() as u64);
            pieces.iter().for_each(|piece| put_bytes(&mut out, piece));
        }
        out
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let mut some = |what| -> Result<Option<Bytes>, DecodeError> {
            let part = r.bytes(what)?;
            Ok((!part.is_empty()).then(|| bytes.slice_ref(part)))
        };
        let (row, saved) = (some("row")?, some("saved document")?);
        let mut pieces = || -> Result<Vec<Bytes>, DecodeError> {
            let count = r.varint("pieces")?;
            (0..count).map(|_| Ok(bytes.slice_ref(r.bytes("piece")?))).collect()
        };
        let state = Self { row, saved, changes: pieces()?, parked: pieces()? };
        r.finish()?;
        Ok(state)
    }

    /// The document that the pieces make up.
    fn document(&self, actor: &[u8]) -> Result<Document, DocumentError> {
        let mut document = match &self.saved {
            Some(saved) => Document::load(saved, actor)?,
            None => Document::empty(actor),
        };
        document.restore(&self.changes)?;
        Ok(document)
    }
}

impl Replica {
    /// Merges the state that a peer has of a key into ours. Says whether that changed anything that members must agree on.
    pub(crate) fn take_state(
        &mut self,
        store: &mut Store,
        id: ShardId,
        key: &str,
        state: &KeyState,
    ) -> Result<bool, ReplicaError> {
        let theirs = state.row.as_ref().map(ValueRow::decode);
        let Some(Ok(theirs)) = theirs else {
            // What they had they do not have any more: another member will.
            return Ok(false);
        };
        let mut kept = Vec::new();
        let (was, mut row) = match store.value(id, key) {
            Err(StoreError::Damaged { problem, .. }) => {
                kept = self.kept_changes(store, id, key)?;
                (Counted::unreadable(problem.to_string()), ValueRow::default())
            }
            row => {
                let row = row?.unwrap_or_default();
                (self.counted(key, &row), row)
            }
        };
        let kind = self.shards.cached(id).map(|shard| shard.record.kind);
        let fits = match &theirs.cell.content {
            Content::Empty => true,
            Content::Register(_) => kind == Some(Kind::Register),
            Content::Counter(_) => kind == Some(Kind::Counter),
            Content::Document { .. } => kind == Some(Kind::Document),
        };
        if !fits || theirs.cell.life > MAX_LIFE {
            return Ok(false); // no member has such a state
        }
        self.clock.observe(theirs.cell.last_stamp());
        let ours = row.clone();
        let admission = row.cell.merge_state(&theirs.cell);
        for (origin, seq) in &theirs.last {
            match row.last.iter_mut().find(|(known, _)| known == origin) {
                Some((_, known)) => *known = (*known).max(*seq),
                None => row.last.push((*origin, *seq)),
            }
        }
        match admission {
            Admission::Outlived => return Ok(false),
            Admission::NewLife => {
                self.documents.clear(store, id, key, row.cell.life)?;
                row.parked = None;
                self.take_document(store, (id, key), (state, &theirs), &mut row, None)?;
            }
            // What cannot be shown here is better there; and what was never here is taken as it is.
            Admission::SameLife if ours.parked.is_some() && theirs.parked.is_none() => {
                row.parked = None;
                self.take_document(store, (id, key), (state, &theirs), &mut row, None)?;
            }
            Admission::SameLife => {
                let ours = Some(&ours.cell.content);
                self.take_document(store, (id, key), (state, &theirs), &mut row, ours)?;
            }
        }
        row.commit = store.open_commit();
        let is = self.counted(key, &row);
        self.put_value(store, id, key, &was, &row);
        if !kept.is_empty() {
            self.merge(store, id, key, &kept)?; // the peer may not have had the last of them
        }
        Ok(was.fingerprint != is.fingerprint)
    }

    /// Takes the changes that were kept while the key's row could not be read.
    fn kept_changes(
        &mut self,
        store: &mut Store,
        id: ShardId,
        key: &str,
    ) -> Result<Vec<Change>, ReplicaError> {
        let life = EditKey::ROW_LOST;
        let mut kept = Vec::new();
        for (part, change) in store.edits(id, key, life)? {
            kept.extend(Change::decode(&change).ok());
            store.remove(Space::Edits, EditKey { shard: id, key, life, part }.encode());
        }
        Ok(kept)
    }

    /// The part of a state that is a document: put in place where ours is nothing, else merged change by change.
    fn take_document(
        &mut self,
        store: &mut Store,
        (id, key): (ShardId, &str),
        (state, theirs): (&KeyState, &ValueRow),
        row: &mut ValueRow,
        ours: Option<&Content>,
    ) -> Result<(), ReplicaError> {
        let Content::Document { heads, .. } = &theirs.cell.content else { return Ok(()) };
        let life = row.cell.life;
        let actor = self.origin.to_bytes();
        let refused = |problem: String| format!("a peer's state of it was refused: {problem}");
        let mut document = match state.document(&actor) {
            Ok(document) => document,
            Err(error) => {
                self.park_state(row, refused(error.to_string()));
                return Ok(());
            }
        };
        if document.heads().hashes() != heads.as_slice() && theirs.parked.is_none() {
            self.park_state(row, refused("its history is not that of its version".into()));
            return Ok(());
        }
        match ours {
            Some(Content::Document { heads: own, .. }) if own == heads => {}
            Some(Content::Document { .. }) => {
                let missing = match self.documents.get(store, id, key, life) {
                    Ok(loaded) => document.changes_beyond(&loaded.document),
                    Err(LoadError::Store(error @ StoreError::Engine(_))) => {
                        return Err(error.into());
                    }
                    Err(error) => {
                        self.park_state(row, error.to_string());
                        return Ok(());
                    }
                };
                let missing = match missing {
                    Ok(missing) => missing,
                    Err(error) => {
                        self.park_state(row, refused(error.to_string()));
                        return Ok(());
                    }
                };
                let batch: Vec<PeerChange<'_>> = missing
                    .iter()
                    .map(|made| PeerChange { origin: &made.origin, bytes: &made.bytes })
                    .collect();
                if !batch.is_empty() {
                    self.merge_raw(store, (id, key), row, &batch)?;
                }
            }
            _ => {
                self.documents.put(store, (id, key, life), state.saved.as_deref(), &state.changes)?;
                let heads = document.heads().hashes().to_vec();
                row.cell.content = Content::Document { heads, json: document.shown() };
            }
        }
        // What did not apply there may have applied here, or may now.
        for raw in &state.parked {
            match Document::made_by(raw) {
                Some(made) => {
                    let change = PeerChange { origin: &made.origin, bytes: &made.bytes };
                    self.merge_raw(store, (id, key), row, &[change])?;
                }
                None => {
                    let reason =
                        theirs.parked.as_ref().map_or_else(String::new, |parked| parked.reason.clone());
                    park(store, id, key, row, &[raw], reason);
                }
            }
        }
        Ok(())
    }

    fn park_state(&mut self, row: &mut ValueRow, reason: String) {
        self.event(Event::Parked { reason: reason.clone() });
        // Nothing of it is kept: what it was the sender still has.
        let parked = row.parked.get_or_insert(Parked { changes: 0, reason });
        parked.changes += 1;
    }
}
