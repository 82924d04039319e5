//! The sweep: what time and stability allow to go, a few rows at a time.
//!
//! The steward of a scope turns expired keys into deleted ones once every member's closed time has passed the expiry and
//! the last write. A hidden life whose delete is stable loses its content and history: a stub stays. Changes that every
//! member holds leave the log when watchers had their time. Request ids are forgotten after a day.

use std::collections::BTreeMap;

use bytes::Bytes;
use tropism_crdt::cell::Cell;
use tropism_crdt::clock::MAX_OFFSET_MS;
use tropism_crdt::{Body, ExpiryChange, NodeId, Stamp};
use tropism_placement::{ScopeName, ShardId};
use tropism_storage::keys::{after_prefix, shard_prefix};
use tropism_storage::rows::{RequestRow, Row};
use tropism_storage::{CommitRow, LogFloorRow, NodeKey, Reads, Space, Store, StoreError, StoreKey, ValueRow};

use crate::budget::Share;
use crate::census::Counted;
use crate::limits::{
    RECOUNT_ROWS, RECOUNT_US, REQUEST_KEEP_MS, SCRUB_STEP_BYTES, SCRUB_STEP_US, SWEEP_ROWS, SWEEP_US,
    TRIM_CHANGE_US, TRIM_CHANGES,
};
use crate::replica::{Event, Identity, Now, Replica, ReplicaError};
use crate::scrub::{Scrub, ScrubStatus};

/// Rows of one page of the scrub: with the largest values a page is as much as the thread may hold at once.
const PAGE_ROWS: usize = 32;

/// Where the sweep is.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// When requests and the log are looked at next.
    due_us: u64,
    /// When the next values are read.
    values_due_us: u64,
    scrub: Scrub,
    /// Keys when values were read last.
    keys: u64,
    /// The next row of requests; that of values stands in the census.
    requests: Vec<u8>,
    /// Shards that are summed up out of turn: where that goes on, and the sum up to there.
    recounts: BTreeMap<ShardId, (Vec<u8>, u128)>,
    recount_due_us: u64,
}

impl Sweep {
    /// When the next step of summing up is due, if there is one.
    pub(crate) fn next_recount(&self, now: Now) -> Option<u64> {
        (!self.recounts.is_empty()).then_some(self.recount_due_us.max(now.mono_us + 1))
    }

    /// When the next step is due.
    pub(crate) fn next_step(&self, now: Now) -> u64 {
        self.values_due_us.min(self.due_us).max(now.mono_us + 1)
    }

    pub(crate) fn scrub_status(&self, now: Now) -> ScrubStatus {
        self.scrub.status(now, self.keys)
    }

    /// A shard's rows were found not to be what had been written.
    pub(crate) fn found_damage(&mut self) {
        self.scrub.found_damage();
    }

    /// A key's row, stored under `name`, is replaced.
    pub(crate) fn changed(&mut self, shard: ShardId, name: &[u8], (was, is): (Option<u128>, Option<u128>)) {
        if let Some((_, sum)) = self.recounts.get_mut(&shard).filter(|(next, _)| name < next.as_slice()) {
            *sum = sum.wrapping_sub(was.unwrap_or(0)).wrapping_add(is.unwrap_or(0));
        }
    }
}

impl Replica {
    /// Sums up a shard's digest before the sweep comes by.
    pub(crate) fn recount_soon(&mut self, shard: ShardId) {
        self.sweep.recounts.insert(shard, (shard_prefix(&shard), 0));
    }

    /// Takes the next step of summing up.
    pub(crate) fn recount_due(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        if self.sweep.recount_due_us > now.mono_us {
            return Ok(());
        }
        let Some((shard, (next, sum))) = self.sweep.recounts.pop_first() else { return Ok(()) };
        let share = self.budget.share(now, RECOUNT_ROWS, RECOUNT_US);
        self.sweep.recount_due_us = now.mono_us + share.step_us;
        if share.items == 0 {
            self.sweep.recounts.insert(shard, (next, sum));
            return Ok(());
        }
        let prefix = shard_prefix(&shard);
        let end = after_prefix(&prefix);
        let (rows, next) = store.page(Space::Values, &next, share.items)?;
        self.budget.did(share.us_of(rows.len()), |work| work.compared_rows += rows.len() as u64);
        let prints = self.shards.fingerprints();
        let sum = rows.iter().filter(|(name, _)| name[..] < end[..]).fold(sum, |sum, (name, bytes)| {
            let key = std::str::from_utf8(&name[prefix.len()..]);
            let row = ValueRow::decode(bytes);
            let print = key.ok().zip(row.ok()).map_or(0, |(key, row)| prints.of(key, &row));
            sum.wrapping_add(print)
        });
        match next.filter(|next| *next < end) {
            Some(next) => {
                self.sweep.recounts.insert(shard, (next, sum));
                Ok(())
            }
            None => self.recounted_digest(store, (shard, sum)),
        }
    }

    /// Takes the next steps when they are due.
    pub(crate) fn sweep(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        if self.sweep.values_due_us <= now.mono_us {
            self.sweep.keys = store.tally().keys.total();
            let (expired, first) = (self.census.expired(now.wall_ms), !self.census.is_whole());
            let pace = self.budget.pace(now);
            let share = self.sweep.scrub.step(now, pace, self.sweep.keys, expired, first);
            self.sweep.values_due_us = now.mono_us + share.step_us;
            if share.items > 0 {
                self.sweep_values(now, store, share)?;
            }
        }
        if self.sweep.due_us > now.mono_us {
            return Ok(());
        }
        self.sweep.due_us = now.mono_us + SWEEP_US;
        self.sweep_requests(now, store)?;
        self.trim_log(now, store)
    }

    /// The next values, as many as a step may read, and where to go on.
    #[allow(clippy::type_complexity, reason = "rows, and the place behind them")]
    fn next_values(
        &self,
        now: Now,
        store: &Store,
        most: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, Option<Vec<u8>>, usize), ReplicaError> {
        let most_bytes = self.budget.share(now, SCRUB_STEP_BYTES, SCRUB_STEP_US).items;
        let (mut rows, mut bytes, mut next) = (Vec::new(), 0, Some(self.census.passed().to_vec()));
        while rows.len() < most
            && bytes < most_bytes
            && let Some(from) = next
        {
            // Large rows are read a few at a time.
            let some;
            (some, next) = store.page(Space::Values, &from, (most - rows.len()).min(PAGE_ROWS))?;
            bytes += some.iter().map(|(_, row)| row.len()).sum::<usize>();
            rows.extend(some);
        }
        Ok((rows, next, bytes))
    }

    fn sweep_values(&mut self, now: Now, store: &mut Store, share: Share) -> Result<(), ReplicaError> {
        let stable = self.stable_commit();
        let (rows, next, bytes) = self.next_values(now, store, share.items)?;
        let mut damaged = 0;
        if rows.len() < share.items && next.is_some() {
            // Large ones: the step was over sooner.
            self.sweep.values_due_us = now.mono_us + share.step_after(rows.len());
        }
        self.budget.did(share.us_of(rows.len()), |work| work.scrubbed_rows += rows.len() as u64);
        let (mut due, mut digests) = (Vec::new(), Vec::new());
        for (name, bytes) in &rows {
            let Some((shard, key)) = name.get(2..18).zip(name.get(18..)) else { continue };
            let (Ok(shard), Ok(key)) = (shard.try_into().map(ShardId), std::str::from_utf8(key)) else {
                continue;
            };
            let row = match ValueRow::decode(bytes) {
                Ok(row) => row,
                Err(problem) => {
                    damaged += 1;
                    let problem = StoreError::Damaged { space: Space::Values.name(), problem }.to_string();
                    let scope = scope_of(store, shard);
                    let passed = self.census.pass(shard, &Counted::unreadable(problem), scope);
                    digests.extend(passed);
                    continue; // reads say so; the sweep goes on
                }
            };
            let counted = self.counted(key, &row);
            let scope = counted.is_parked().then(|| scope_of(store, shard)).flatten();
            digests.extend(self.census.pass(shard, &counted, scope));
            let alive = row.cell.alive();
            // What this turn wrote, and what is not merged with what came of it, is looked at in the next round.
            let settled = row.commit < store.open_commit() && !self.transfers.is_settling(shard);
            if settled && (alive && row.cell.expired(now.wall_ms) || !alive && row.commit <= stable) {
                due.push((shard, key, row));
            }
        }
        self.sweep.scrub.passed(now, rows.len() as u64, bytes as u64, damaged);
        let over = next.is_none();
        if let Some((keys, last)) = self.census.go_on_at(next) {
            digests.extend(last);
            if keys != store.tally().keys {
                self.event(Event::Recounted { was: store.tally().keys, is: keys });
                store.recount_keys(keys);
            }
        }
        for digest in digests {
            self.recounted_digest(store, digest)?;
        }
        for (shard, key, row) in due {
            if row.cell.alive() {
                self.delete_expired(now, store, shard, key, row)?;
            } else if row.cell != stub(&row.cell) && self.serves(store, shard)? {
                self.documents.clear(store, shard, key, row.cell.life + 1)?;
                let was = self.counted(key, &row);
                let row = ValueRow { parked: None, cell: stub(&row.cell), ..row };
                self.put_value(store, shard, key, &was, &row);
                self.event(Event::Collected);
            }
        }
        if over {
            self.sweep.scrub.round_over(now, self.census.expired(now.wall_ms));
        }
        Ok(())
    }

    /// Makes the ordinary delete of an expired key, if that is this node's to do and everybody's time has come.
    fn delete_expired(
        &mut self,
        now: Now,
        store: &mut Store,
        shard: ShardId,
        key: &str,
        row: ValueRow,
    ) -> Result<(), ReplicaError> {
        let Some(expired_ms) = row.cell.expires_at_ms() else { return Ok(()) };
        let Some(description) = store.shard(shard)? else { return Ok(()) };
        let Some(record) = self.held(&description) else { return Ok(()) };
        let steward = record.serving.first() == Some(&self.identity.region);
        // As of the expiry; of a write that is stamped later still and did not change it, as of that write.
        let written = row.cell.written.map_or(Stamp::ZERO, |(stamp, _)| stamp);
        let deleted_at = written.max(Stamp::new(expired_ms, 0));
        let passed = deleted_at.max(Stamp::new(expired_ms.saturating_add(MAX_OFFSET_MS), 0));
        let closed = self.links.values().all(|link| link.closed().is_some_and(|closed| closed > passed));
        if !steward || !closed || now.wall_ms <= passed.unix_ms() || self.fenced || self.rebuild.is_some() {
            return Ok(());
        }
        let Ok(stamp) = self.clock.tick() else { return Ok(()) };
        let body = Body::Delete { deleted_at };
        let change = self.change_of(
            store,
            &record,
            description.index,
            stamp,
            key,
            (row.cell.life, body, ExpiryChange::Keep),
        )?;
        self.commit_own(store, shard, row, change, None)?;
        self.sweep.scrub.deleted();
        self.event(Event::Expired);
        Ok(())
    }

    fn sweep_requests(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        let (rows, next) = store.page(Space::Requests, &self.sweep.requests, SWEEP_ROWS)?;
        self.sweep.requests = next.unwrap_or_default();
        for (name, bytes) in rows {
            let old = RequestRow::decode(&bytes).is_ok_and(|row| row.wall_ms + REQUEST_KEEP_MS < now.wall_ms);
            if old {
                store.remove(Space::Requests, StoreKey::existing(name));
            }
        }
        Ok(())
    }

    /// Takes out of the log what every peer holds and watchers had time for, and what it is too long or too large for.
    fn trim_log(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        let held = self.links.values().map(|link| link.row().cursor).min().unwrap_or(store.head().commit);
        let Identity { log_keep_ms, log_keep_bytes, log_cap_ms, log_cap_bytes, .. } = self.identity;
        let goes = |store: &Store, commit: u64, row: &CommitRow| {
            let (ms, bytes) = match commit <= held {
                true => (log_keep_ms.min(log_cap_ms), log_keep_bytes.min(log_cap_bytes)),
                false => (log_cap_ms, log_cap_bytes),
            };
            now.wall_ms >= row.wall_ms.saturating_add(ms) || store.tally().log_bytes > bytes
        };
        // At any pace as much as a busy node logs.
        let share = self.budget.share(now, TRIM_CHANGES, TRIM_CHANGES as u64 * TRIM_CHANGE_US);
        if share.items == 0 {
            return Ok(());
        }
        let mut trimmed = 0;
        let rows: Vec<_> = store
            .commit_rows(self.log_floor, store.open_commit())
            .take_while(|row| {
                let Ok((commit, row)) = row else { return true };
                let go = trimmed < share.items && goes(store, *commit, row);
                trimmed += if go { row.changes.len().max(1) } else { 0 };
                go
            })
            .collect::<Result<_, StoreError>>()?;
        for (commit, row) in rows {
            if !goes(store, commit, &row) {
                break; // those before it made room
            }
            store.unlog(commit, &row.changes)?;
            self.log_floor = commit + 1;
            self.event(Event::Trimmed { changes: row.changes.len() });
        }
        let (log_floor, head) = (self.log_floor, store.head().commit);
        if trimmed >= share.items {
            // There may be more: sooner than the next step.
            self.sweep.due_us = now.mono_us + share.step_us.min(SWEEP_US);
        }
        if trimmed > 0 {
            store.put_row(Space::Node, NodeKey::LogFloor.encode(), &LogFloorRow { commit: log_floor });
        }
        let links = self.links.iter_mut();
        let behind: Vec<NodeId> = links
            .filter_map(|(peer, link)| link.fall_behind(now, log_floor, head).then_some(*peer))
            .collect();
        for peer in behind {
            self.event(Event::Owes(peer));
        }
        Ok(())
    }
}

/// The scope of a shard, as far as its description can be read.
pub(crate) fn scope_of(store: &Store, shard: ShardId) -> Option<ScopeName> {
    Some(store.shard(shard).ok()??.scope.name)
}

/// What stays of a hidden life: what the next write must be stamped above.
fn stub(cell: &Cell) -> Cell {
    // A later word on the expiry binds writes that go on in this life.
    let expiry = cell.expiry.filter(|expiry| Some(expiry.set.0) > cell.deleted_at);
    Cell { life: cell.life, deleted_at: cell.deleted_at, expiry, ..Cell::default() }
}
