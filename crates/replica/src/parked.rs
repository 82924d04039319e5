//! What an operator does about parked keys: looks, tries again, gives up.
//!
//! A key is parked when a change of it cannot be applied or its row cannot be read; what came is kept beside it. Here it is
//! applied again through the same gate, each change on its own, or given up. Work is done in steps of bounded size: an
//! answer says where the next one goes on, and everything in between happens as always.

use bytes::Bytes;
use thiserror::Error;
use tropism_crdt::cell::Content;
use tropism_crdt::document::PeerChange;
use tropism_crdt::{Body, Change, Origin, Stamp};
use tropism_placement::{Kind, ScopeName, ShardId};
use tropism_storage::{
    DroppedRow, EditKey, Kept, KeptCount, NodeKey, Place, Reads, Space, Store, StoreError, ValueKey,
    ValueRow, View,
};

use crate::census::Counted;
use crate::documents::LoadError;
use crate::limits::{
    COUNTED_KEPT, DROPPED_ROWS, PARKED_STEP_CHANGES, SHOWN_KEPT, SHOWN_KEPT_BYTES, SPOILED_TRIES,
};
use crate::replica::{Event, Now, Output, Replica, ReplicaError, Ticket};

/// What to do about a key's parked changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkedOp {
    /// Say what is kept, and what each change meets when it is applied now. Changes nothing.
    Show,
    /// Apply them again, from the first or from where the last step says.
    Retry(Option<Place>),
    /// Give them up, from the first or from where the last step says; a row that cannot be read goes with them.
    Drop(Option<Place>),
}

/// A key, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedCall {
    /// Its scope.
    pub scope: ScopeName,
    /// The key.
    pub key: String,
    /// What to do.
    pub op: ParkedOp,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedStep {
    /// The changes it looked at: shown, tried or dropped.
    pub changes: Vec<KeptSeen>,
    /// Why the document's history cannot be read, where it cannot: then no change can be applied.
    pub history: Option<String>,
    /// Whether a row that could not be read was removed.
    pub row_removed: bool,
    /// Where the next step goes on; `None`: this was the last.
    pub next: Option<Place>,
}

/// A change that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSeen {
    /// Who made it, its number and its stamp; `None` where its bytes rotted.
    pub made: Option<(Origin, u64, Stamp)>,
    /// The life it belongs to; `None` where its bytes rotted.
    pub life: Option<u64>,
    /// When it was put aside, Unix ms, if that is known.
    pub since_ms: Option<u64>,
    /// Bytes it takes.
    pub bytes: u64,
    /// What it meets when it is applied; `None`: it applies, or was dropped unread.
    pub problem: Option<String>,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParkedError {
    /// No rule matches the scope's name.
    #[error("no policy rule matches scope \"{0}\"")]
    NoRule(ScopeName),
    /// The key was never written here.
    #[error("nothing is stored of the key here")]
    NotFound,
    /// It is served like any other.
    #[error("the key is not parked")]
    NotParked,
    /// There is no row to apply anything to.
    #[error(
        "the key's row cannot be read ({damage}), so there is nothing that changes can be applied to ({kept} kept): a \
         retry can only succeed when the row can be read again"
    )]
    RowDamaged {
        /// What is wrong with the row.
        damage: String,
        /// How many changes wait.
        kept: u64,
    },
    /// No more rows can be dropped that this node may have written since its start.
    #[error("{DROPPED_ROWS} rows were dropped since the node started; start it again before you drop more")]
    TooManyDropped,
}

/// How a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkedState {
    /// Its row can be read; changes could not be applied to it.
    Refused,
    /// Its row cannot be read.
    RowDamaged,
    /// It is served; changes that came while its row could not be read are still kept.
    LeftOver,
}

/// A parked key, as far as that is seen without trying anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedKey {
    /// How it is.
    pub state: ParkedState,
    /// Its life; `None` where the row cannot be read.
    pub life: Option<u64>,
    /// Why it is not served; empty when it is.
    pub reason: String,
    /// What is kept of it; of very many changes the first hundred thousand.
    pub kept: KeptCount,
}

impl ParkedKey {
    /// How a key with this row is; `None` when it is not parked and nothing is kept of it.
    ///
    /// # Errors
    /// The engine's.
    pub fn of(
        view: &dyn View,
        shard: ShardId,
        key: &str,
        row: &Result<Option<ValueRow>, StoreError>,
    ) -> Result<Option<Self>, StoreError> {
        let lost = KeptCount::of(view, shard, key, EditKey::ROW_LOST, COUNTED_KEPT)?;
        Ok(match row {
            Err(error @ StoreError::Engine(_)) => return Err(error.clone()),
            Err(error) => Some(Self {
                state: ParkedState::RowDamaged,
                life: None,
                reason: error.to_string(),
                kept: lost,
            }),
            Ok(row) => {
                let life = row.as_ref().map_or(0, |row| row.cell.life);
                match row.as_ref().and_then(|row| row.parked.as_ref()) {
                    None if lost.changes == 0 => None,
                    None => Some(Self {
                        state: ParkedState::LeftOver,
                        life: Some(life),
                        reason: String::new(),
                        kept: lost,
                    }),
                    Some(parked) => {
                        let kept = KeptCount::of(view, shard, key, life, COUNTED_KEPT)?;
                        let kept = KeptCount {
                            changes: kept.changes + lost.changes,
                            bytes: kept.bytes + lost.bytes,
                            since_ms: kept.since_ms.or(lost.since_ms),
                        };
                        let reason = parked.reason.clone();
                        Some(Self { state: ParkedState::Refused, life: Some(life), reason, kept })
                    }
                }
            }
        })
    }
}

/// A try to apply changes to a document.
#[derive(Default)]
struct Tried {
    /// What became of each, as far as they were tried.
    problems: Vec<Option<String>>,
    /// What the document shows then, if anything of it changed.
    content: Option<Content>,
    /// Why the document cannot be had.
    history: Option<String>,
}

impl Replica {
    /// Takes a step and answers.
    pub(crate) fn parked(
        &mut self,
        now: Now,
        store: &mut Store,
        ticket: Ticket,
        call: &ParkedCall,
    ) -> Result<(), ReplicaError> {
        let outcome = self.try_parked(now, store, call)?;
        self.outputs.push_back(Output::Parked { ticket, outcome });
        Ok(())
    }

    fn try_parked(
        &mut self,
        now: Now,
        store: &mut Store,
        call: &ParkedCall,
    ) -> Result<Result<ParkedStep, ParkedError>, ReplicaError> {
        let ParkedCall { scope, key, op } = call;
        let Some(record) = self.record(scope) else { return Ok(Err(ParkedError::NoRule(scope.clone()))) };
        let (_, id) = record.shard(key);
        self.settle(store, id, key)?;
        // In memory, for its digest. Rows may be left of a shard that is not held any more: they are nobody's to look after.
        if store.shard(id)?.is_some() && self.shard(store, id)?.is_none() {
            return Ok(Err(ParkedError::NotFound));
        }
        let row = match store.value(id, key) {
            Ok(row) => row,
            Err(error @ StoreError::Engine(_)) => return Err(error.into()),
            Err(damaged) => return self.parked_without_row(now, store, (id, call), &damaged.to_string()),
        };
        let lost_from = (EditKey::ROW_LOST, 0);
        let (lost, _) = store.kept(id, key, lost_from, 1)?;
        let known = row.is_some();
        let row = row.unwrap_or_default();
        let first = match &row.parked {
            Some(_) => (row.cell.life, EditKey::PARKED),
            None if !lost.is_empty() => lost_from,
            None if known => return Ok(Err(ParkedError::NotParked)),
            None => return Ok(Err(ParkedError::NotFound)),
        };
        match *op {
            ParkedOp::Show => self.show_parked(store, id, key, &row, first).map(Ok),
            ParkedOp::Retry(from) => self.retry_parked(store, (id, call), row, from.unwrap_or(first)).map(Ok),
            ParkedOp::Drop(from) => {
                let from = from.unwrap_or(first);
                let (kept, next) = store.kept(id, key, from, PARKED_STEP_CHANGES)?;
                for Kept { place: (life, part), .. } in &kept {
                    store.remove(Space::Edits, EditKey { shard: id, key, life: *life, part: *part }.encode());
                }
                if next.is_none() && row.parked.is_some() {
                    let was = self.counted(key, &row);
                    let row = ValueRow { parked: None, commit: store.open_commit(), ..row };
                    self.put_value(store, id, key, &was, &row);
                }
                self.note_dropped(now, store, call, (kept.len() as u64, false), next.is_none())?;
                let changes = kept.into_iter().map(|kept| seen(&kept, None)).collect();
                Ok(Ok(ParkedStep { changes, history: None, row_removed: false, next }))
            }
        }
    }

    /// The row cannot be read: nothing can be applied to it, but it can go.
    fn parked_without_row(
        &mut self,
        now: Now,
        store: &mut Store,
        (id, call): (ShardId, &ParkedCall),
        damage: &str,
    ) -> Result<Result<ParkedStep, ParkedError>, ReplicaError> {
        let key = &call.key;
        self.count_unreadable(store, id, key, damage); // it may just have been found
        let from = match call.op {
            ParkedOp::Show => None,
            ParkedOp::Drop(from) => from,
            ParkedOp::Retry(_) => {
                let kept = KeptCount::of(&*store, id, key, EditKey::ROW_LOST, COUNTED_KEPT)?;
                let damage = damage.to_owned();
                return Ok(Err(ParkedError::RowDamaged { damage, kept: kept.changes }));
            }
        };
        if call.op == ParkedOp::Show {
            let (kept, next) = some_kept(store, id, key, (0, 0))?;
            let changes = kept.iter().map(|kept| seen(kept, Some(NO_ROW.to_owned()))).collect();
            return Ok(Ok(ParkedStep { changes, history: None, row_removed: false, next }));
        }
        let kind = self.record(&call.scope).map(|record| record.kind);
        let bars = kind != Some(Kind::Register) && store.vector(id)?.get(&self.origin) > 0;
        if bars && self.barred.len() >= DROPPED_ROWS {
            return Ok(Err(ParkedError::TooManyDropped));
        }
        let (kept, next) = store.kept(id, key, from.unwrap_or((0, 0)), PARKED_STEP_CHANGES)?;
        for Kept { place: (life, part), .. } in &kept {
            store.remove(Space::Edits, EditKey { shard: id, key, life: *life, part: *part }.encode());
        }
        if next.is_none() {
            self.documents.clear(store, id, key, EditKey::ROW_LOST)?;
            let (was, is) = (Counted::unreadable(damage.to_owned()), Counted::of(&ValueRow::default(), 0));
            let name = ValueKey { shard: id, key }.encode();
            self.census.changed(name.as_bytes(), id, (&was, &is), None);
            store.remove_value(name, was.standing);
            if let Some(shard) = self.shard(store, id)? {
                shard.digest = None; // what the row had added is not known
            }
            self.recount_soon(id);
            if bars {
                self.barred.insert((id, key.clone()));
            }
        }
        self.note_dropped(now, store, call, (kept.len() as u64, next.is_none()), next.is_none())?;
        let changes = kept.iter().map(|kept| seen(kept, None)).collect();
        Ok(Ok(ParkedStep { changes, history: None, row_removed: next.is_none(), next }))
    }

    /// What is kept, and what a try would find; the try is forgotten.
    fn show_parked(
        &mut self,
        store: &mut Store,
        id: ShardId,
        key: &str,
        row: &ValueRow,
        first: Place,
    ) -> Result<ParkedStep, ReplicaError> {
        let (kept, next) = some_kept(store, id, key, first)?;
        let of_life: Vec<&Change> = changes_of(&kept, row.cell.life);
        let tried = self.apply_kept(store, (id, key, row.cell.life), &of_life, false)?;
        self.documents.forget(id, key); // the store has it as it was
        let mut problems = tried.problems.into_iter();
        let changes = kept.iter().map(|kept| match (&kept.change, kept.place.0) {
            (Err(error), _) => seen(kept, Some(format!("what was kept rotted: {error}"))),
            (Ok(_), EditKey::ROW_LOST) => {
                seen(kept, Some("it came while the row could not be read and was not tried since".to_owned()))
            }
            (Ok(_), _) => {
                let untried = || if tried.history.is_some() { NO_HISTORY } else { NOT_TRIED };
                seen(kept, problems.next().unwrap_or_else(|| Some(untried().to_owned())))
            }
        });
        let changes = changes.collect();
        Ok(ParkedStep { changes, history: tried.history, row_removed: false, next })
    }

    /// Applies some of what is kept; what passes goes into the document.
    fn retry_parked(
        &mut self,
        store: &mut Store,
        (id, call): (ShardId, &ParkedCall),
        mut row: ValueRow,
        from: Place,
    ) -> Result<ParkedStep, ReplicaError> {
        let key = call.key.as_str();
        let (kept, mut next) = store.kept(id, key, from, PARKED_STEP_CHANGES)?;
        if from.0 == EditKey::ROW_LOST {
            return self.retry_lost(store, id, key, &kept, next);
        }
        // Those that came while the row could not be read have a step of their own.
        let kept: Vec<Kept> = kept.into_iter().filter(|kept| kept.place.0 != EditKey::ROW_LOST).collect();
        if next.is_none_or(|(life, _)| life > row.cell.life) {
            next = None;
            let (lost, _) = store.kept(id, key, (EditKey::ROW_LOST, 0), 1)?;
            next = next.or((!lost.is_empty()).then_some((EditKey::ROW_LOST, 0)));
        }
        let was = self.counted(key, &row);
        let life = row.cell.life;
        let tried = self.apply_kept(store, (id, key, life), &changes_of(&kept, life), true)?;
        if let Some(content) = tried.content {
            row.cell.content = content;
        }
        let mut problems = tried.problems.into_iter();
        let (mut changes, mut applied) = (Vec::new(), 0);
        for kept in &kept {
            let (life, part) = kept.place;
            let problem = match (&kept.change, &tried.history) {
                (Err(error), _) => Some(format!("what was kept rotted: {error}")),
                (Ok(_), Some(_)) => Some(NO_HISTORY.to_owned()),
                (Ok(_), None) => match problems.next() {
                    Some(problem) => problem,
                    None => {
                        next = Some(kept.place); // it was not tried: the next step begins there
                        break;
                    }
                },
            };
            if problem.is_none() {
                store.remove(Space::Edits, EditKey { shard: id, key, life, part }.encode());
                applied += 1;
            }
            changes.push(seen(kept, problem));
        }
        let left = store.kept(id, key, (life, EditKey::PARKED), 1)?;
        let first_left = self.first_kept(store, id, key, life, left)?;
        match (&mut row.parked, first_left) {
            (parked, None) => *parked = None,
            (Some(parked), Some(place)) => {
                // The reason is what the first that is left meets, if this step met it.
                let met = kept.iter().zip(&changes).find(|(kept, _)| kept.place == place);
                let met = met.and_then(|(_, seen)| tried.history.clone().or_else(|| seen.problem.clone()));
                if let Some(problem) = met {
                    parked.reason = problem;
                }
            }
            (None, Some(_)) => {}
        }
        let served = row.parked.is_none();
        row.commit = store.open_commit();
        self.put_value(store, id, key, &was, &row);
        if applied > 0 {
            self.note_history(id, key);
        }
        self.event(Event::Retried { applied, served });
        Ok(ParkedStep { changes, history: tried.history, row_removed: false, next })
    }

    /// The row can be read again: what came meanwhile is merged as if it came now. What does not apply is parked.
    fn retry_lost(
        &mut self,
        store: &mut Store,
        id: ShardId,
        key: &str,
        kept: &[Kept],
        next: Option<Place>,
    ) -> Result<ParkedStep, ReplicaError> {
        let mut changes = Vec::with_capacity(kept.len());
        let mut applied = 0;
        for kept in kept {
            let problem = match &kept.change {
                Err(error) => Some(format!("what was kept rotted: {error}")),
                Ok(kept_change) => {
                    let parked = |row: &ValueRow| row.parked.as_ref().map_or(0, |parked| parked.changes);
                    let before = store.value(id, key)?.as_ref().map_or(0, parked);
                    self.merge(store, id, key, std::slice::from_ref(&kept_change.change))?;
                    let (life, part) = kept.place;
                    store.remove(Space::Edits, EditKey { shard: id, key, life, part }.encode());
                    let row = store.value(id, key)?.unwrap_or_default();
                    row.parked.as_ref().filter(|now| now.changes > before).map(|now| now.reason.clone())
                }
            };
            applied += usize::from(problem.is_none());
            changes.push(seen(kept, problem));
        }
        let served = store.value(id, key)?.is_none_or(|row| row.parked.is_none());
        self.event(Event::Retried { applied, served });
        Ok(ParkedStep { changes, history: None, row_removed: false, next })
    }

    /// The place of the first change that is kept of a life.
    fn first_kept(
        &self,
        store: &Store,
        id: ShardId,
        key: &str,
        life: u64,
        found: (Vec<Kept>, Option<Place>),
    ) -> Result<Option<Place>, ReplicaError> {
        let (mut kept, mut next) = found;
        loop {
            if let Some(first) = kept.first() {
                return Ok(Some(first.place).filter(|place| place.0 == life));
            }
            let Some(place) = next.filter(|place| place.0 == life) else { return Ok(None) };
            (kept, next) = store.kept(id, key, place, PARKED_STEP_CHANGES)?;
        }
    }

    /// Applies changes of one life to its document, each on its own, and stores it if `keep`; stops after a few that
    /// spoiled the document, since each of them makes it be loaded again.
    fn apply_kept(
        &mut self,
        store: &mut Store,
        (id, key, life): (ShardId, &str, u64),
        changes: &[&Change],
        keep: bool,
    ) -> Result<Tried, ReplicaError> {
        let origins: Vec<Vec<u8>> = changes.iter().map(|change| change.origin.to_bytes()).collect();
        let batch: Vec<PeerChange<'_>> = changes
            .iter()
            .zip(&origins)
            .map(|(change, origin)| PeerChange { origin, bytes: raw_of(change) })
            .collect();
        let mut tried = Tried::default();
        let (mut spoiled, mut good_ones) = (0, Vec::new());
        while tried.problems.len() < batch.len() && spoiled < SPOILED_TRIES {
            let at = tried.problems.len();
            let (held, good, refused) = match self.documents.apply(store, (id, key, life), &batch[at..]) {
                Ok(outcome) => outcome,
                Err(LoadError::Store(error @ StoreError::Engine(_))) => return Err(error.into()),
                Err(error) => {
                    tried.history = Some(error.to_string());
                    return Ok(tried);
                }
            };
            if good > 0 {
                let (heads, json) = held.shown();
                tried.content = Some(Content::Document { heads: heads.hashes().to_vec(), json });
                if keep {
                    let raw: Vec<&[u8]> = batch[at..at + good].iter().map(|change| change.bytes).collect();
                    self.documents.save(store, id, key, &raw)?;
                }
                good_ones.extend_from_slice(&batch[at..at + good]);
            }
            tried.problems.extend(std::iter::repeat_n(None, good));
            if let Some(error) = refused {
                spoiled += usize::from(error.spoiled);
                tried.problems.push(Some(error.kind.to_string()));
                if error.spoiled && !keep && !good_ones.is_empty() {
                    // What was applied for the show went with it.
                    self.documents.apply(store, (id, key, life), &good_ones).ok();
                }
            }
        }
        Ok(tried)
    }

    /// Remembers that something was given up: it must be visible for as long as the store lives.
    fn note_dropped(
        &mut self,
        now: Now,
        store: &mut Store,
        call: &ParkedCall,
        (changes, row): (u64, bool),
        last: bool,
    ) -> Result<(), ReplicaError> {
        let before = self.dropped.as_ref().map_or((0, 0), |dropped| (dropped.keys, dropped.changes));
        let dropped = DroppedRow {
            keys: before.0 + u64::from(last),
            changes: before.1 + changes,
            last_ms: now.wall_ms,
            scope: call.scope.to_string(),
        };
        store.put_row(Space::Node, NodeKey::Dropped.encode(), &dropped);
        self.dropped = Some(dropped);
        self.event(Event::Dropped { scope: call.scope.clone(), changes, row });
        Ok(())
    }
}

const NO_ROW: &str = "the row cannot be read";
const NO_HISTORY: &str = "the document's history cannot be read";
const NOT_TRIED: &str =
    "not tried: too many before it spoiled the document, which had to be loaded again for each";

/// The first of what is kept from a place on, as much as one answer shows.
fn some_kept(
    store: &Store,
    id: ShardId,
    key: &str,
    first: Place,
) -> Result<(Vec<Kept>, Option<Place>), StoreError> {
    let (mut kept, mut next) = (Vec::new(), Some(first));
    while let Some(from) = next {
        let bytes: usize = kept.iter().map(|kept: &Kept| kept.bytes).sum();
        if kept.len() >= SHOWN_KEPT || bytes >= SHOWN_KEPT_BYTES {
            break;
        }
        let (some, behind) = store.kept(id, key, from, PARKED_STEP_CHANGES)?;
        kept.extend(some);
        next = behind;
    }
    Ok((kept, next))
}

/// The changes among what is kept that belong to the document of a life.
fn changes_of(kept: &[Kept], life: u64) -> Vec<&Change> {
    let of_life = kept.iter().filter(|kept| kept.place.0 == life);
    of_life.filter_map(|kept| Some(&kept.change.as_ref().ok()?.change)).collect()
}

fn raw_of(change: &Change) -> &Bytes {
    static NONE: Bytes = Bytes::new();
    match &change.body {
        Body::Document { change } => change,
        _ => &NONE,
    }
}

fn seen(kept: &Kept, problem: Option<String>) -> KeptSeen {
    let change = kept.change.as_ref().ok();
    KeptSeen {
        made: change.map(|kept| (kept.change.origin, kept.change.seq, kept.change.stamp)),
        life: change.map(|kept| kept.change.life),
        since_ms: change.and_then(|kept| kept.since_ms),
        bytes: kept.bytes as u64,
        problem,
    }
}
