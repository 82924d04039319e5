//! Scans and watches whose values are an application's own types.

use std::collections::VecDeque;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tropism_crdt::Stamp;

use crate::error::Error;
use crate::stream::{Happening, Scan, Watch, WatchEvent};
use crate::types::Entry;
use crate::value;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<T> {
    /// The key.
    pub key: String,
    /// The value.
    pub value: T,
    /// Names this state of the value: equal versions of a key are equal values. Opaque.
    pub version: Bytes,
    /// When it was last written, and by that who wins: Unix milliseconds and a count.
    pub stamp: Stamp,
    /// When it stops being visible, Unix milliseconds; none: never.
    pub expires_at_ms: Option<u64>,
}

impl<T: DeserializeOwned> Record<T> {
    pub(crate) fn from_entry(entry: Entry) -> Result<Self, Error> {
        let value = value::decode(&entry)?;
        let Entry { key, version, stamp, expires_at_ms, .. } = entry;
        Ok(Self { key, value, version, stamp, expires_at_ms })
    }
}

/// The records of a range, in byte order of their keys. Goes on at another node when its own fails; what it shows is then of
/// a later state.
#[derive(Debug)]
pub struct Records<T> {
    scan: Scan,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Records<T> {
    pub(crate) fn new(scan: Scan) -> Self {
        Self { scan, value: PhantomData }
    }

    /// The next record; none at the end. After [`Error::Decode`], and after a key that its node cannot show
    /// ([`Error::Refused`] with `KEY_PARKED`), it goes on with the next key.
    pub async fn next(&mut self) -> Result<Option<Record<T>>, Error> {
        self.scan.next().await?.map(Record::from_entry).transpose()
    }

    /// All records that are left; the first error ends it. Holds all of them in memory: a range's `limit` bounds them.
    pub async fn all(mut self) -> Result<Vec<Record<T>>, Error> {
        let mut records = Vec::new();
        while let Some(record) = self.next().await? {
            records.push(record);
        }
        Ok(records)
    }
}

/// The keys of a range, in byte order.
#[derive(Debug)]
pub struct Keys {
    scan: Scan,
}

impl Keys {
    pub(crate) fn new(scan: Scan) -> Self {
        Self { scan }
    }

    /// The next key; none at the end.
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        Ok(self.scan.next().await?.map(|entry| entry.key))
    }

    /// All keys that are left. Holds all of them in memory: a range's `limit` bounds them.
    pub async fn all(mut self) -> Result<Vec<String>, Error> {
        let mut keys = Vec::new();
        while let Some(key) = self.next().await? {
            keys.push(key);
        }
        Ok(keys)
    }
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// What is there, before anything happens: when a watch begins, and after [`Change::Reset`].
    Value(Record<T>),
    /// Everything that is there has been told; from here on things happen.
    Current,
    /// A key was written, or its expiry changed. Of several writes in a row only the newest may be told.
    Put {
        /// The key and its value now.
        record: Record<T>,
        /// The region in which it was written.
        region: String,
    },
    /// A key was deleted.
    Delete {
        /// The key.
        key: String,
        /// The region in which it was deleted.
        region: String,
    },
    /// A key's expiry passed.
    Expire {
        /// The key.
        key: String,
    },
    /// Too much happened while nobody listened: forget everything, what is there now follows.
    Reset,
}

impl<T> Change<T> {
    /// The key that it is about; none for [`Change::Current`] and [`Change::Reset`].
    pub fn key(&self) -> Option<&str> {
        match self {
            Change::Value(record) | Change::Put { record, .. } => Some(&record.key),
            Change::Delete { key, .. } | Change::Expire { key } => Some(key),
            Change::Current | Change::Reset => None,
        }
    }
}

/// The changes of a scope, a prefix or a key, in the order in which the answering region applied them, each after what it
/// depends on. Goes on at another node when its own fails, without a gap.
#[derive(Debug)]
pub struct Changes<T> {
    watch: Watch,
    /// Events of the last message; a message has at most 4 MiB.
    waiting: VecDeque<WatchEvent>,
    /// Where the watch goes on after all that was taken from here.
    taken: Bytes,
    staleness_ms: u64,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Changes<T> {
    pub(crate) fn new(watch: Watch) -> Self {
        let taken = watch.resume_token().clone();
        Self { watch, waiting: VecDeque::new(), taken, staleness_ms: u64::MAX, value: PhantomData }
    }

    /// Waits for the next change. Safe to drop while it waits. After [`Error::Decode`], and after a key that its node cannot
    /// show, it goes on with the next change; any other error is where no node went on.
    pub async fn next(&mut self) -> Result<Change<T>, Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                if self.waiting.is_empty() {
                    self.taken = self.watch.resume_token().clone();
                }
                if let Some(change) = change(event)? {
                    return Ok(change);
                }
                continue;
            }
            let message = self.watch.next().await?;
            self.staleness_ms = message.staleness_ms;
            if message.events.is_empty() {
                self.taken = message.resume_token;
            }
            self.waiting = message.events.into();
        }
    }

    /// Where [`Scope::watch_after`](crate::Scope::watch_after) goes on: behind everything that [`Self::next`] returned, or,
    /// in the middle of what arrived at once, a little before. Empty until what is there has been told.
    pub fn resume_token(&self) -> &Bytes {
        &self.taken
    }

    /// Everything acknowledged in other regions longer ago than this has arrived, milliseconds; the greatest number before
    /// the first change and while a region was never heard.
    pub fn staleness_ms(&self) -> u64 {
        self.staleness_ms
    }
}

/// An event as a change; none when it lacks what its kind has.
fn change<T: DeserializeOwned>(event: WatchEvent) -> Result<Option<Change<T>>, Error> {
    let WatchEvent { happening, entry, region, .. } = event;
    Ok(Some(match (happening, entry) {
        (Happening::Reset, _) => Change::Reset,
        (Happening::Current, _) => Change::Current,
        (Happening::Value, Some(entry)) => Change::Value(Record::from_entry(entry)?),
        (Happening::Put, Some(entry)) => Change::Put { record: Record::from_entry(entry)?, region },
        (Happening::Delete, Some(entry)) => Change::Delete { key: entry.key, region },
        (Happening::Expire, Some(entry)) => Change::Expire { key: entry.key },
        (_, None) => return Ok(None),
    }))
}
