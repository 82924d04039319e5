//! The past of keys as a snapshot has it, for whoever asks: documents with their history, and of registers what lost against
//! what is shown. Nothing here changes anything, and nothing of it is kept in memory.

use bytes::Bytes;
use thiserror::Error;
use tropism_crdt::document::{Document, DocumentError, Light};
use tropism_crdt::{Body, Change, Origin, Stamp};
use tropism_placement::ShardId;
use tropism_storage::{EditKey, LogKey, Reads, StoreError, ValueRow};

/// Logged changes of one author that are looked at for whether it had seen a write: some 5 us each. So many are made in
/// seconds of steady writing; beyond them it is not known.
const WALKED_CHANGES: u64 = 10_000;

/// Why a history cannot be read.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The store cannot be read, or a piece of the history is not what was written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pieces are no document.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// The pieces of a document's history, as far as they are committed.
#[derive(Debug)]
pub struct StoredHistory {
    saved: Option<Bytes>,
    changes: Vec<Bytes>,
}

impl StoredHistory {
    /// Reads those of a life of a key.
    ///
    /// # Errors
    /// The store cannot be read, or a piece is not what was written.
    pub fn read<V: Reads + ?Sized>(
        view: &V,
        shard: ShardId,
        key: &str,
        life: u64,
    ) -> Result<Self, StoreError> {
        let mut stored = Self { saved: None, changes: Vec::new() };
        for (part, piece) in view.committed_edits(shard, key, life)? {
            match part {
                0 => stored.saved = Some(piece),
                EditKey::PARKED.. => {}
                _ => stored.changes.push(piece),
            }
        }
        Ok(stored)
    }

    /// Bytes of the pieces.
    pub fn bytes(&self) -> usize {
        self.saved.as_ref().map_or(0, Bytes::len) + self.changes.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether it is known without automerge that every value is the only one of its place: some 2 us a change behind the
    /// saved document, a tenth of [`Self::open`].
    pub fn is_undisputed(&self) -> bool {
        let saved = self.saved.as_deref();
        if Light::has_one_author(saved, &self.changes) {
            return true;
        }
        // Nobody writes to it, so nobody has to be its actor.
        Light::restore(saved, &self.changes, &[]).is_some_and(|light| light.is_undisputed())
    }

    /// The document. Costs as much as the history is long: some 2 us for each edit in the saved document, 7 us for each
    /// change behind it.
    ///
    /// # Errors
    /// [`DocumentError::Damaged`].
    pub fn open(&self) -> Result<Document, DocumentError> {
        let mut document = match &self.saved {
            Some(saved) => Document::load(saved, &[])?,
            None => Document::empty(&[]),
        };
        document.restore(&self.changes)?;
        Ok(document)
    }
}

/// A register's value that lost against another, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostWrite {
    /// Who wrote it.
    pub origin: Origin,
    /// When.
    pub stamp: Stamp,
    /// MIME type.
    pub content_type: String,
    /// The value.
    pub bytes: Bytes,
}

/// What [`lost_writes`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LostWrites {
    /// The latest first.
    pub lost: Vec<LostWrite>,
    /// Whether there may be others, which the log does not tell any more.
    pub forgotten: bool,
    /// Logged changes that were read.
    pub walked: u64,
}

/// The last writes of a register that nobody had seen who wrote it later: those that lost to the one shown by stamp alone.
///
/// A row names the last change of each author that no other is known to have seen. What such an author wrote is in the log,
/// and whether a later one had seen it is said there, too: a change names what rose in its author's vector since the
/// change before. So nothing is kept for this, and a log that was trimmed has forgotten it.
///
/// # Errors
/// The store cannot be read.
pub fn lost_writes<V: Reads + ?Sized>(
    view: &V,
    shard: ShardId,
    row: &ValueRow,
) -> Result<LostWrites, StoreError> {
    let mut found = LostWrites::default();
    let Some(written) = row.cell.written.filter(|_| row.cell.alive() && row.last.len() > 1) else {
        return Ok(found);
    };
    let logged = |found: &mut LostWrites, origin: Origin, seq: u64| -> Result<Option<Change>, StoreError> {
        found.walked += 1;
        let bytes = view.change(&LogKey { shard, origin, seq })?;
        Ok(bytes.and_then(|bytes| Change::decode(&bytes).ok()))
    };
    let mut last = Vec::with_capacity(row.last.len());
    for (origin, seq) in &row.last {
        match logged(&mut found, *origin, *seq)? {
            Some(change) => last.push(change),
            None => found.forgotten |= *origin != written.1,
        }
    }
    for change in &last {
        let Body::Register { content_type, bytes } = &change.body else { continue };
        let deleted = row.cell.deleted_at.is_some_and(|deleted| change.stamp <= deleted);
        if (change.stamp, change.origin) == written || change.life != row.cell.life || deleted {
            continue;
        }
        // Whoever had seen it was stamped later: before that, nobody has to be asked.
        let mut seen = Some(false);
        'others: for (origin, newest) in row.last.iter().filter(|(origin, _)| *origin != change.origin) {
            for seq in (1..=*newest).rev() {
                if newest - seq >= WALKED_CHANGES {
                    seen = None;
                    break;
                }
                let Some(other) = logged(&mut found, *origin, seq)? else {
                    seen = None;
                    break;
                };
                if other.stamp < change.stamp {
                    break;
                }
                if other.deps.iter().any(|(of, upto)| *of == change.origin && *upto >= change.seq) {
                    seen = Some(true);
                    break 'others;
                }
            }
        }
        match seen {
            Some(true) => {}
            None => found.forgotten = true,
            Some(false) => found.lost.push(LostWrite {
                origin: change.origin,
                stamp: change.stamp,
                content_type: content_type.clone(),
                bytes: bytes.clone(),
            }),
        }
    }
    found.lost.sort_by_key(|lost| std::cmp::Reverse((lost.stamp, lost.origin)));
    Ok(found)
}
