//! What a handle on a scope remembers, so that a read need not ask: for a time, or until a watch tells of a change.
//!
//! [`Kept`] is the memory, which is told the time; [`Cached`] is the memory that handles share, and the watch that feeds it.
//!
//! Two things must not happen: that a value is kept which is older than one that was told or written here, and that one stays
//! which changed and of which nothing will be told. So a read that was under way while its key changed is not kept; after a
//! write of one's own nothing older is; and what a watch tells is believed only as long as the watch is heard. What a read
//! brought is not kept beside a watch: it may come from a region that is behind the one of the watch, which would never tell.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tropism_crdt::Stamp;

use crate::calls::Calls;
use crate::route::Moment;
use crate::stream::{Happening, Watch, WatchEvent, WatchTarget};
use crate::types::{Entry, Value};

/// What an entry costs besides the bytes of its key, version and value: so that tiny ones are bounded too.
const ENTRY_BYTES: usize = 256;
/// A watch that was not heard for this long is not believed: a node says something every 5 s.
const HEARD_TIME: Duration = Duration::from_secs(10);
/// Pause before a watch that no node goes on with is begun again.
const BEGIN_AGAIN: Duration = Duration::from_secs(5);
/// Groups of keys by hash, each of which knows what was last written here: a read is kept unless its group changed meanwhile.
const GROUPS: usize = 256;

/// What a handle on a scope remembers of what it read. See [`crate::Scope::with_cache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// Nothing: every read asks a node.
    #[default]
    Off,
    /// What was read, for so long.
    For(Duration),
    /// What is there, kept fresh by a watch of the scope: as old as the watch is late, which inside a region is nothing to
    /// speak of, and at most 10 s.
    Watched,
}

/// Entries, bounded in bytes; what was not used for the longest time goes first.
#[derive(Debug)]
struct Kept {
    most_bytes: usize,
    bytes: usize,
    entries: HashMap<String, Item>,
    /// Keys by when they were last used.
    by_use: BTreeMap<u64, String>,
    uses: u64,
    groups: Vec<Group>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Item {
    /// None: the key is not visible.
    entry: Option<Entry>,
    until: Moment,
    used: u64,
    bytes: usize,
}

#[derive(Debug, Clone, Default)]
struct Group {
    changes: u64,
    /// Stamp of the last write of one's own: nothing older is kept.
    written: Stamp,
}

/// That a read has begun.
#[derive(Debug, Clone, Copy)]
struct Reading(u64);

impl Kept {
    fn new(most_bytes: usize) -> Self {
        Self {
            most_bytes,
            bytes: 0,
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            groups: vec![Group::default(); GROUPS],
            hasher: RandomState::new(),
        }
    }

    fn group(&mut self, key: &str) -> &mut Group {
        let at = self.hasher.hash_one(key) as usize % GROUPS; // any bits do
        &mut self.groups[at]
    }

    /// What is known of a key; none: nothing. `wall_ms` decides about expiry.
    fn look(&mut self, key: &str, now: Moment, wall_ms: u64) -> Option<Option<Entry>> {
        let item = self.entries.get_mut(key)?;
        let gone = |entry: &Entry| entry.expires_at_ms.is_some_and(|expires| expires <= wall_ms);
        if item.until <= now || item.entry.as_ref().is_some_and(gone) {
            self.remove(key);
            return None;
        }
        self.uses += 1;
        self.by_use.remove(&item.used);
        item.used = self.uses;
        self.by_use.insert(item.used, key.to_owned());
        Some(item.entry.clone())
    }

    fn reading(&mut self, key: &str) -> Reading {
        Reading(self.group(key).changes)
    }

    /// Keeps what a read brought, unless something happened meanwhile.
    fn read(&mut self, key: &str, reading: Reading, entry: Option<Entry>, until: Moment) {
        if self.group(key).changes == reading.0 {
            self.keep(key, entry, until);
        }
    }

    /// Keeps what a watch told, unless it is older than what is known.
    fn told(&mut self, entry: Entry, until: Moment) {
        let key = entry.key.clone();
        let group = self.group(&key);
        group.changes += 1;
        let known = self.entries.get(&key).and_then(|item| item.entry.as_ref()).map(|entry| entry.stamp);
        if entry.stamp < self.group(&key).written {
            self.remove(&key);
        } else if known.is_none_or(|known| known <= entry.stamp) {
            self.keep(&key, Some(entry), until);
        }
    }

    /// Forgets a key: it changed, or may have. `written`: the stamp of a write of one's own.
    fn forget(&mut self, key: &str, written: Option<Stamp>) {
        let group = self.group(key);
        group.changes += 1;
        group.written = group.written.max(written.unwrap_or(Stamp::ZERO));
        self.remove(key);
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.by_use.clear();
        self.bytes = 0;
        for group in &mut self.groups {
            group.changes += 1;
        }
    }

    fn keep(&mut self, key: &str, entry: Option<Entry>, until: Moment) {
        self.remove(key);
        let bytes = ENTRY_BYTES + 2 * key.len() + entry.as_ref().map_or(0, size);
        if bytes > self.most_bytes {
            return;
        }
        while self.bytes + bytes > self.most_bytes {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some(item) = self.entries.remove(&oldest) {
                self.bytes -= item.bytes;
            }
        }
        self.uses += 1;
        self.bytes += bytes;
        self.by_use.insert(self.uses, key.to_owned());
        self.entries.insert(key.to_owned(), Item { entry, until, used: self.uses, bytes });
    }

    fn remove(&mut self, key: &str) {
        if let Some(item) = self.entries.remove(key) {
            self.by_use.remove(&item.used);
            self.bytes -= item.bytes;
        }
    }
}

fn size(entry: &Entry) -> usize {
    let value = match &entry.value {
        Some(Value::Document(json)) => json.len(),
        Some(Value::Register(register)) => register.content.len() + register.content_type.len(),
        Some(Value::Counter(_)) | None => 0,
    };
    entry.key.len() + entry.version.len() + value
}

/// What the clones of a handle remember together.
#[derive(Debug)]
pub(crate) struct Cached {
    cache: Cache,
    began: Instant,
    state: Mutex<State>,
    watch: Option<AbortHandle>,
}

#[derive(Debug)]
struct State {
    kept: Kept,
    /// When a watch that has told what is there was last heard.
    heard: Option<Moment>,
}

impl Drop for Cached {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

impl Cached {
    /// Remembers the scope's values in at most so many bytes; none when nothing is to be remembered. Needs a runtime of
    /// tokio where it watches.
    pub(crate) fn new(cache: Cache, calls: &Calls, scope: &str, most_bytes: usize) -> Option<Arc<Self>> {
        if cache == Cache::Off {
            return None;
        }
        Some(Arc::new_cyclic(|this: &Weak<Self>| {
            let watch = (cache == Cache::Watched)
                .then(|| tokio::spawn(follow(this.clone(), calls.clone(), scope.to_owned())).abort_handle());
            let state = Mutex::new(State { kept: Kept::new(most_bytes), heard: None });
            Self { cache, began: Instant::now(), state, watch }
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of a key, if that can be believed.
    fn look(&self, state: &mut State, key: &str) -> Option<Option<Entry>> {
        let now = self.began.elapsed();
        let believed = state.heard.is_some_and(|at| now.saturating_sub(at) < HEARD_TIME);
        if self.cache == Cache::Watched && !believed {
            return None;
        }
        state.kept.look(key, now, wall_ms())
    }

    /// The same, for tests.
    #[cfg(test)]
    pub(crate) fn remembered(&self, key: &str) -> Option<Option<Entry>> {
        self.look(&mut self.state(), key)
    }

    /// Whether a watch has told of a key.
    #[cfg(test)]
    pub(crate) fn was_told(&self, key: &str) -> bool {
        self.state().kept.entries.contains_key(key)
    }

    /// The entry of a key: what is remembered, or what `calls` answer.
    pub(crate) async fn get(
        &self,
        calls: &Calls,
        scope: &str,
        key: &str,
    ) -> Result<Option<Entry>, crate::Error> {
        let reading = {
            let mut state = self.state();
            if let Some(entry) = self.look(&mut state, key) {
                return Ok(entry);
            }
            state.kept.reading(key)
        };
        let entry = calls.get(scope, key).await?.entry;
        if let Cache::For(time) = self.cache {
            let until = self.began.elapsed() + time;
            self.state().kept.read(key, reading, entry.clone(), until);
        }
        Ok(entry)
    }

    /// A key is about to be written here, or was, with this stamp.
    pub(crate) fn writes(&self, key: &str, written: Option<Stamp>) {
        self.state().kept.forget(key, written);
    }

    /// Takes in what a watch told.
    fn take(&self, events: Vec<WatchEvent>, current: &mut bool) {
        let now = self.began.elapsed();
        let State { kept, heard } = &mut *self.state();
        for WatchEvent { happening, entry, .. } in events {
            match (happening, entry) {
                (Happening::Put | Happening::Value, Some(entry)) if entry.failure.is_none() => {
                    kept.told(entry, Moment::MAX);
                }
                (Happening::Reset, _) => {
                    kept.clear();
                    *current = false;
                }
                (Happening::Current, _) => *current = true,
                (_, Some(entry)) => kept.forget(&entry.key, None),
                (_, None) => {}
            }
        }
        *heard = current.then_some(now);
    }

    /// No watch tells of changes any more.
    fn lose(&self) {
        let mut state = self.state();
        state.kept.clear();
        state.heard = None;
    }
}

/// Follows a scope for what remembers it, for as long as anybody uses that. Where the watch goes on at another node all is
/// forgotten: that one may be behind with what the first had told, and will not tell it again.
async fn follow(cached: Weak<Cached>, calls: Calls, scope: String) {
    loop {
        let mut watch: Watch = calls.watch(&scope, WatchTarget::Scope, true, None);
        let (mut current, mut node) = (false, None);
        let moved = loop {
            let Ok(message) = watch.next().await else { break false };
            let Some(cached) = cached.upgrade() else { return };
            let by = watch.told_by();
            if node.is_some() && by != node {
                break true;
            }
            node = by;
            cached.take(message.events, &mut current);
        };
        let Some(strong) = cached.upgrade() else { return };
        strong.lose();
        drop(strong);
        if !moved {
            sleep(BEGIN_AGAIN).await;
        }
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn entry(key: &str, stamp: u64, length: usize) -> Entry {
        Entry {
            key: key.to_owned(),
            value: Some(Value::Document(vec![b'x'; length].into())),
            version: bytes::Bytes::new(),
            stamp: Stamp::from_u64(stamp),
            expires_at_ms: None,
            failure: None,
        }
    }

    fn stamp(kept: &mut Kept, key: &str) -> Option<u64> {
        kept.look(key, S, 1_000).map(|found| found.map_or(0, |entry| entry.stamp.as_u64()))
    }

    #[test]
    fn what_was_read_is_kept_for_its_time() {
        let mut kept = Kept::new(1 << 20);
        let reading = kept.reading("a");
        kept.read("a", reading, Some(entry("a", 1, 10)), 5 * S);
        kept.read("none", reading, None, 5 * S);
        assert_eq!((stamp(&mut kept, "a"), stamp(&mut kept, "none")), (Some(1), Some(0)));
        assert_eq!(kept.look("a", 5 * S, 0), None);
        let mut expires = entry("b", 1, 10);
        expires.expires_at_ms = Some(1_000);
        kept.told(expires, Moment::MAX);
        assert!(kept.look("b", S, 999).is_some());
        assert!(kept.look("b", S, 1_000).is_none());
        assert_eq!(kept.by_use.len(), kept.entries.len());
    }

    #[test]
    fn a_read_that_was_under_way_while_its_key_changed_is_not_kept() {
        let mut kept = Kept::new(1 << 20);
        let reading = kept.reading("a");
        kept.forget("a", None);
        kept.read("a", reading, Some(entry("a", 1, 10)), 5 * S);
        assert_eq!(stamp(&mut kept, "a"), None);
        let reading = kept.reading("a");
        kept.told(entry("a", 3, 10), Moment::MAX);
        kept.read("a", reading, Some(entry("a", 2, 10)), Moment::MAX);
        assert_eq!(stamp(&mut kept, "a"), Some(3));
        let reading = kept.reading("a");
        kept.clear();
        kept.read("a", reading, Some(entry("a", 2, 10)), Moment::MAX);
        assert_eq!(stamp(&mut kept, "a"), None);
    }

    #[test]
    fn after_a_write_of_ones_own_nothing_older_is_kept() {
        let mut kept = Kept::new(1 << 20);
        kept.told(entry("a", 1, 10), Moment::MAX);
        kept.forget("a", Some(Stamp::from_u64(5)));
        kept.told(entry("a", 4, 10), Moment::MAX);
        assert_eq!(stamp(&mut kept, "a"), None, "told late");
        kept.told(entry("a", 5, 10), Moment::MAX);
        assert_eq!(stamp(&mut kept, "a"), Some(5));
        kept.told(entry("a", 3, 10), Moment::MAX);
        kept.told(entry("b", 9, 10), Moment::MAX);
        kept.told(entry("b", 8, 10), Moment::MAX);
        assert_eq!(stamp(&mut kept, "b"), Some(9), "a read was ahead of the watch");
    }

    #[test]
    fn bytes_are_bounded_and_what_was_not_used_goes_first() {
        let mut kept = Kept::new(10 * (ENTRY_BYTES + 103));
        for number in 0..10 {
            kept.told(entry(&number.to_string(), 1, 100), Moment::MAX);
        }
        assert_eq!((kept.entries.len(), kept.bytes), (10, kept.most_bytes));
        assert_eq!(stamp(&mut kept, "0"), Some(1));
        kept.told(entry("x", 1, 100), Moment::MAX);
        assert_eq!((stamp(&mut kept, "0"), stamp(&mut kept, "1")), (Some(1), None));
        kept.told(entry("y", 1, 1_000), Moment::MAX);
        assert!(kept.bytes <= kept.most_bytes && kept.entries.len() < 10);
        kept.told(entry("huge", 1, 1 << 20), Moment::MAX);
        assert!(kept.entries.len() > 1 && stamp(&mut kept, "huge").is_none());
        assert_eq!(kept.by_use.len(), kept.entries.len());
        let bytes: usize = kept.entries.values().map(|item| item.bytes).sum();
        assert_eq!(bytes, kept.bytes);
        kept.clear();
        assert_eq!((kept.bytes, kept.entries.len(), kept.by_use.len()), (0, 0, 0));
    }
}
