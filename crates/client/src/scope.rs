//! A handle on one scope: an application's own types in and out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use tropism_crdt::Stamp;
use tropism_placement::Durability;
use tropism_wire::{Problem, Reason, v1};

use crate::cache::{Cache, Cached};
use crate::calls::Calls;
use crate::edit::Edit;
use crate::error::Error;
use crate::records::{Changes, Keys, Record, Records};
use crate::session::Session;
use crate::stream::{ScanRange, WatchTarget};
use crate::types::{Entry, Expiry, Patch, Precondition, PutItem, PutOptions, Register, Value, Written};
use crate::value;

/// How often [`Scope::update`] reads and writes again when others were faster: with a writer in every region of a large
/// cluster one of them gets through long before.
pub const UPDATE_TRIES: u32 = 16;
/// First pause before it does, at most; doubled each time up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A scope: a named group of keys that are placed, kept and merged by the same rule. Cheap to clone; clones share
/// connections and session.
///
/// Values are whatever serde reads and writes. In a scope of *documents* they are JSON objects (a struct, a map, a
/// [`serde_json::Value`]) that merge field by field. In a scope of *registers* they are any JSON, kept as
/// `application/json`, and the last writer wins; [`Scope::put_bytes`] keeps bytes as they are. In a scope of *counters* they
/// are sums, which change by [`Scope::increment`]. Which of these a scope holds is said by the rule that matches its name.
///
/// The nearest region answers reads and writes; if it does not serve the scope it passes them on to one that does. An
/// [`Error`] says what happened to the state.
#[derive(Debug, Clone)]
pub struct Scope {
    calls: Calls,
    name: Arc<str>,
    /// The kind that the scope's node said it has, 0 before anybody asked.
    kind: Arc<AtomicI32>,
    expiry: Option<Expiry>,
    cached: Option<Arc<Cached>>,
}

impl Scope {
    pub(crate) fn new(calls: Calls, name: &str) -> Self {
        Self { calls, name: name.into(), kind: Arc::default(), expiry: None, cached: None }
    }

    /// The scope's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same scope with another durability of writes, instead of what its policy says: `Local` (on the disk of the node
    /// that answers), `Region`, or `Regions(k)` (in k regions, the one that answers included). A write that cannot reach as
    /// many is refused, or its outcome is unknown when it was begun; it is never acknowledged with less.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.calls = self.calls.with_durability(Some(durability));
        self
    }

    /// The same scope with another time for each call, its retries included. Nodes shorten it to 60 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.calls = self.calls.with_timeout(timeout);
        self
    }

    /// The same scope whose writes also set when the key expires, instead of what its policy says. Each write sets it anew,
    /// so `Expiry::After` is how long a key outlives its last write.
    #[must_use]
    pub fn with_expiry(mut self, expiry: Expiry) -> Self {
        self.expiry = Some(expiry);
        self
    }

    /// The same scope in a session of its own: for tasks that run at once, since of calls made at once a session keeps what
    /// the last answer said.
    #[must_use]
    pub fn with_new_session(mut self) -> Self {
        self.calls = self.calls.new_session();
        self
    }

    /// The same scope with a memory of at most so many bytes, keys and some 256 bytes a key included, that this handle and
    /// its clones share: `get`, `read`, `count` and `get_bytes` need not ask a node for what is in it. What was not read for
    /// the longest time goes first. Writes by these handles are read at once; those of others are read when
    /// [`Cache`] says so, and a read that asked a node may be followed by one that shows a little less. `update`, scans and
    /// `get_many` always ask.
    ///
    /// [`Cache::Watched`] needs a runtime of tokio, and one of the node's watches (`TOO_MANY_WATCHES`: every read asks).
    #[must_use]
    pub fn with_cache(mut self, cache: Cache, most_bytes: usize) -> Self {
        self.cached = Cached::new(cache, &self.calls, &self.name, most_bytes);
        self
    }

    /// The value of a key; none when there is none, or it was deleted or has expired.
    ///
    /// Errors: [`Error::Decode`] when it is no `T`.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        Ok(self.read(key).await?.map(|record| record.value))
    }

    /// The value of a key with its version, time and expiry.
    pub async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Record<T>>, Error> {
        self.entry(key).await?.map(Record::from_entry).transpose()
    }

    /// The values of many keys, at most 1000, all from one state of the node that answers. Keys without a value are left
    /// out.
    pub async fn get_many<T: DeserializeOwned>(&self, keys: &[&str]) -> Result<BTreeMap<String, T>, Error> {
        let mut left: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let mut values = BTreeMap::new();
        while !left.is_empty() {
            let before = left.len();
            let answer = self.calls.batch_get(&self.name, left).await?;
            for entry in answer.entries {
                let record = Record::from_entry(entry)?;
                values.insert(record.key, record.value);
            }
            left = answer.left;
            if left.len() >= before {
                break; // a node that answers nothing would be asked for ever
            }
        }
        Ok(values)
    }

    /// The value of a counter; 0 when nobody added to it, and after a delete or expiry.
    pub async fn count(&self, key: &str) -> Result<i64, Error> {
        Ok(self.get(key).await?.unwrap_or(0))
    }

    /// The bytes of a register and their content type.
    pub async fn get_bytes(&self, key: &str) -> Result<Option<Register>, Error> {
        let Some(entry) = self.entry(key).await? else { return Ok(None) };
        match entry.value {
            Some(Value::Register(register)) => Ok(Some(register)),
            _ => Err(Error::Decode {
                key: key.to_owned(),
                into: "bytes",
                reason: "it is no register; read it by `get`".to_owned(),
            }),
        }
    }

    /// Writes the value of a key, whatever is there. Of a document only what differs from what the answering region shows
    /// is written; use [`Scope::update`] to change what you read.
    pub async fn put<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<Written, Error> {
        self.write(key, value::json(value)?, Precondition::None).await
    }

    /// Writes the value of a key that has none; false when it has one, and then nothing is changed. Another region may do
    /// the same at the same time: then documents merge, and of registers the last stays.
    pub async fn create<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<bool, Error> {
        match self.write(key, value::json(value)?, Precondition::Absent).await {
            Ok(_) => Ok(true),
            Err(error) if error.reason() == Some(Reason::KeyExists) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes bytes with their MIME type, at most 1 MiB, to a key of a scope of registers.
    pub async fn put_bytes(
        &self,
        key: &str,
        content: impl Into<Bytes>,
        content_type: &str,
    ) -> Result<Written, Error> {
        let register = Register { content: content.into(), content_type: content_type.to_owned() };
        let options = PutOptions { expiry: self.expiry, ..PutOptions::default() };
        self.put_value(key, Value::Register(register), options).await
    }

    /// Writes the values of many keys, at most 1000 in at most 4 MiB. There are no transactions: each key has its own
    /// result, in their order.
    pub async fn put_many<T: Serialize>(
        &self,
        values: impl IntoIterator<Item = (impl Into<String>, T)>,
    ) -> Result<Vec<Result<Written, Problem>>, Error> {
        let kind = self.learn_kind().await?;
        let options = PutOptions { expiry: self.expiry, ..PutOptions::default() };
        let mut items = Vec::new();
        for (key, value) in values {
            let json = value::json(&value)?;
            let value =
                if kind == v1::Kind::Register { value::register(json) } else { Value::Document(json) };
            items.push(PutItem { key: key.into(), value, options: options.clone() });
        }
        let Some(cached) = &self.cached else { return self.calls.batch_put(&self.name, items).await };
        let keys: Vec<String> = items.iter().map(|item| item.key.clone()).collect();
        let forgets: Vec<Forgets<'_>> = keys.iter().map(|key| Forgets::new(cached, key)).collect();
        let written = self.calls.batch_put(&self.name, items).await;
        for (key, result) in keys.iter().zip(written.iter().flatten()) {
            cached.writes(key, result.as_ref().ok().map(|written| written.stamp));
        }
        drop(forgets);
        written
    }

    /// Reads the value of a key, changes it, and writes what has changed: a document merges with what others write
    /// meanwhile, also in other regions, so neither is lost; a register is written only if it is what was read. A key without
    /// a value begins as `T::default()`. Where others were faster it reads again and `change` is called again, at most
    /// [`UPDATE_TRIES`] times within the time of a call. Returns the value as it was written.
    ///
    /// What merges is each field: two regions that set the same one at the same time leave one of both values. Use
    /// [`Scope::edit`] for counters, lists and texts inside documents.
    ///
    /// Errors: the last refusal (no effect) when it did not get through.
    pub async fn update<T, F>(&self, key: &str, mut change: F) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned + Default,
        F: FnMut(&mut T),
    {
        let deadline = Instant::now() + self.calls.timeout;
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let one = Self { calls: self.calls.clone().with_timeout(left), ..self.clone() };
            let (mut value, is) = match one.calls.get(&self.name, key).await?.entry {
                None => (T::default(), None),
                Some(entry) => (value::decode(&entry)?, Some(entry)),
            };
            change(&mut value);
            let json = value::json(&value)?;
            let written = match is {
                None => one.write(key, json, Precondition::Absent).await,
                Some(entry) => {
                    let mut options = PutOptions { expiry: self.expiry, ..PutOptions::default() };
                    let value = match entry.value {
                        Some(Value::Register(register)) => {
                            options.precondition = Precondition::Version(entry.version);
                            Value::Register(Register { content: json, ..register })
                        }
                        _ => {
                            options.base_version = entry.version;
                            Value::Document(json)
                        }
                    };
                    // A put without an expiry takes away the one that is there.
                    options.expiry = options.expiry.or(entry.expires_at_ms.map(Expiry::At));
                    one.put_value(key, value, options).await
                }
            };
            tries += 1;
            match written {
                Ok(_) => return Ok(value),
                Err(error) if overtaken(&error) && tries < UPDATE_TRIES => {
                    let wait = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                    if Instant::now() + wait >= deadline {
                        return Err(error);
                    }
                    sleep(wait).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Edits a document by what is meant: see [`Edit`]. A key without a value begins as an empty object.
    pub async fn edit(&self, key: &str, edit: Edit) -> Result<Written, Error> {
        let options = PutOptions { expiry: self.expiry, ..PutOptions::default() };
        self.patch(key, edit, options).await
    }

    /// Edits a document that was read at `version`, where it may have gone on since: paths and positions are those of that
    /// version, and what others did meanwhile is merged. Errors: `UNKNOWN_BASE`, `EARLIER_LIFE`: read again.
    pub async fn edit_at(&self, key: &str, version: &Bytes, edit: Edit) -> Result<Written, Error> {
        let options =
            PutOptions { base_version: version.clone(), expiry: self.expiry, ..PutOptions::default() };
        self.patch(key, edit, options).await
    }

    /// Adds to a counter; negative numbers subtract. Returns the sum as the answering region shows it. Whatever is added
    /// where, also while regions are cut off from each other, is in the sum of all of them in the end.
    pub async fn increment(&self, key: &str, by: i64) -> Result<i64, Error> {
        let call = self.calls.increment(&self.name, key, by, self.expiry);
        Ok(self.writes(key, call, |done| done.written.stamp).await?.value)
    }

    /// Deletes a key; false when there was no value. It does not come back, except by a write that had not seen the delete
    /// and was made later.
    pub async fn delete(&self, key: &str) -> Result<bool, Error> {
        let call = self.calls.delete(&self.name, key, None);
        Ok(self.writes(key, call, |done| done.written.stamp).await?.was_visible)
    }

    /// Sets or clears when a key expires; its value stays. Returns when it does, Unix milliseconds; none: never.
    ///
    /// Errors: `KEY_NOT_FOUND`, `ALREADY_EXPIRED`.
    pub async fn expire(&self, key: &str, expiry: Expiry) -> Result<Option<u64>, Error> {
        let call = self.calls.expire_at(&self.name, key, expiry);
        Ok(self.writes(key, call, |(written, _)| written.stamp).await?.1)
    }

    /// The keys of a range and their values, in byte order: `..` for all, a text for those that begin with it, or a
    /// [`ScanRange`].
    pub fn scan<T: DeserializeOwned>(&self, range: impl Into<ScanRange>) -> Records<T> {
        Records::new(self.calls.scan(&self.name, range.into()))
    }

    /// The keys of a range, without values.
    pub fn keys(&self, range: impl Into<ScanRange>) -> Keys {
        Keys::new(self.calls.scan(&self.name, ScanRange { keys_only: true, ..range.into() }))
    }

    /// The changes of the scope (`..`), of one key ([`WatchTarget::Key`]) or of keys that begin alike
    /// ([`WatchTarget::Prefix`]): first what is there, then what happens, from whichever region, until it is dropped.
    pub fn watch<T: DeserializeOwned>(&self, target: impl Into<WatchTarget>) -> Changes<T> {
        Changes::new(self.calls.watch(&self.name, target.into(), true, None))
    }

    /// A watch of the same target that goes on behind a resume token ([`Changes::resume_token`]), without a gap. Also in
    /// another process or region.
    pub fn watch_after<T: DeserializeOwned>(
        &self,
        target: impl Into<WatchTarget>,
        resume_token: Bytes,
    ) -> Changes<T> {
        Changes::new(self.calls.watch(&self.name, target.into(), false, Some(resume_token)))
    }

    /// Where the scope is: its placement record, and what the answering node holds of it.
    pub async fn placement(&self) -> Result<v1::Scope, Error> {
        self.calls.scope(&self.name).await
    }

    /// The session so far: what was written and read through this handle, its clones, and the client it is of.
    pub fn session(&self) -> Session {
        Session::new(self.calls.token())
    }

    /// The calls of the protocol, in the session and with the options of this handle.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// What is remembered of a counter, without asking.
    #[cfg(test)]
    pub(crate) fn cached_count(&self, key: &str) -> Option<i64> {
        let entry = self.cached.as_ref()?.remembered(key)??;
        value::decode(&entry).ok()
    }

    /// Whether a watch has told of a key.
    #[cfg(test)]
    pub(crate) fn was_told(&self, key: &str) -> bool {
        self.cached.as_ref().is_some_and(|cached| cached.was_told(key))
    }

    async fn entry(&self, key: &str) -> Result<Option<Entry>, Error> {
        match &self.cached {
            Some(cached) => cached.get(&self.calls, &self.name, key).await,
            None => Ok(self.calls.get(&self.name, key).await?.entry),
        }
    }

    /// Writes a key by `call`, and forgets it before and after: whatever becomes of the write, also when it is dropped.
    async fn writes<A>(
        &self,
        key: &str,
        call: impl Future<Output = Result<A, Error>>,
        stamp: impl FnOnce(&A) -> Stamp,
    ) -> Result<A, Error> {
        let Some(cached) = &self.cached else { return call.await };
        let forgets = Forgets::new(cached, key);
        let done = call.await;
        if let Ok(done) = &done {
            cached.writes(key, Some(stamp(done)));
        }
        drop(forgets);
        done
    }

    async fn put_value(&self, key: &str, value: Value, options: PutOptions) -> Result<Written, Error> {
        self.writes(key, self.calls.put(&self.name, key, value, options), |written| written.stamp).await
    }

    async fn patch(&self, key: &str, edit: Edit, options: PutOptions) -> Result<Written, Error> {
        let patch = Patch::Operations(edit.operations()?);
        self.writes(key, self.calls.patch(&self.name, key, patch, options), |written| written.stamp).await
    }

    /// Puts JSON as what the scope holds. What that is, is guessed from the JSON until a node has said otherwise.
    async fn write(&self, key: &str, json: Bytes, precondition: Precondition) -> Result<Written, Error> {
        let options = PutOptions { precondition, expiry: self.expiry, ..PutOptions::default() };
        let put = |register: bool| {
            let value = if register { value::register(json.clone()) } else { Value::Document(json.clone()) };
            self.put_value(key, value, options.clone())
        };
        let register = match self.known_kind() {
            v1::Kind::Unspecified => !value::is_object(&json),
            known => known == v1::Kind::Register,
        };
        match put(register).await {
            Err(error) if error.reason() == Some(Reason::KindMismatch) => {
                let kind = self.ask_kind().await?;
                if kind == v1::Kind::Counter || (kind == v1::Kind::Register) == register {
                    return Err(error);
                }
                put(!register).await
            }
            done => done,
        }
    }

    fn known_kind(&self) -> v1::Kind {
        v1::Kind::try_from(self.kind.load(Ordering::Relaxed)).unwrap_or_default()
    }

    async fn learn_kind(&self) -> Result<v1::Kind, Error> {
        match self.known_kind() {
            v1::Kind::Unspecified => self.ask_kind().await,
            known => Ok(known),
        }
    }

    async fn ask_kind(&self) -> Result<v1::Kind, Error> {
        let kind = self.calls.scope(&self.name).await?.kind();
        self.kind.store(kind.into(), Ordering::Relaxed);
        Ok(kind)
    }
}

/// Forgets a key, now and when it is dropped.
struct Forgets<'a> {
    cached: &'a Cached,
    key: &'a str,
}

impl<'a> Forgets<'a> {
    fn new(cached: &'a Cached, key: &'a str) -> Self {
        cached.writes(key, None);
        Self { cached, key }
    }
}

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.cached.writes(self.key, None);
    }
}

/// Whether an update was refused because of what others wrote, so that reading again helps.
fn overtaken(error: &Error) -> bool {
    matches!(
        error.reason(),
        Some(
            Reason::UnknownBase
                | Reason::EarlierLife
                | Reason::VersionMismatch
                | Reason::TooManyBranches
                | Reason::KeyExists
                | Reason::AlreadyExpired
        )
    )
}
