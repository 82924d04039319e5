//! Client writes: from a validated operation to a change.

use bytes::Bytes;
use thiserror::Error;
use tropism_crdt::cell::{Cell, Content, Counter};
use tropism_crdt::clock::ClockError;
use tropism_crdt::codec::Reader;
use tropism_crdt::document::{
    Document, DocumentError, Heads, Light, MAX_HEADS, PatchError, PatchErrorKind, PatchOp, Paths, Tried,
};
use tropism_crdt::json::{Json, Pointer};
use tropism_crdt::{Body, Change, ExpiryChange, Origin, RequestId, Stamp, TraceContext};
use tropism_placement::{Durability, Kind, PlacementRecord, RegionName, ScopeId, ScopeName, ShardId};
use tropism_storage::rows::RequestRow;
use tropism_storage::{Reads, RequestKey, ShardRow, Space, Store, StoreError, ValueRow};

use crate::documents::LoadError;
use crate::limits::{MAX_LIFE, WAITING_WRITES};
use crate::link::Link;
use crate::replica::{Now, Output, Replica, ReplicaError, Ticket, log_key};
use crate::waiting::{Needs, OnDisks, Waiting};

/// One write of one key. Names, sizes and values are validated; scope, kind and state are not.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// The scope; created by rule when it is new.
    pub scope: ScopeName,
    /// The key.
    pub key: String,
    /// What to do.
    pub op: WriteOp,
    /// Only if this holds here and now.
    pub precondition: Option<Precondition>,
    /// When the key is to expire. `Keep`: for a put as the policy says, else never; for an edit as before.
    pub expiry: ExpiryChange,
    /// When to answer. `None`: as the policy says.
    pub durability: Option<Durability>,
    /// When the caller stops waiting for other regions, in `mono_us`.
    pub deadline_us: u64,
    /// The client's id for the request.
    pub request_id: Option<RequestId>,
    /// The trace it belongs to, if sampled.
    pub trace: Option<TraceContext>,
}

/// What a write does.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteOp {
    /// Sets a register.
    PutRegister {
        /// MIME type.
        content_type: String,
        /// The value.
        bytes: Bytes,
    },
    /// Replaces a document.
    PutDocument {
        /// The whole document.
        value: Json,
        /// The version it was made from, as [`version_of`] gave it: what changed in between is kept.
        base: Option<Bytes>,
    },
    /// Edits a document; all operations or none.
    Patch {
        /// In order.
        operations: Vec<PatchOp>,
        /// The version they were made from.
        base: Option<Bytes>,
    },
    /// Adds to a counter.
    Increment {
        /// May be negative.
        by: i64,
    },
    /// Deletes what is visible.
    Delete,
    /// Sets or clears ([`Write::expiry`]) the expiry of what is visible.
    Expire,
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// The key is not visible.
    Absent,
    /// The key is visible with this version.
    Version(Bytes),
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteDone {
    /// The shard, for the client's token.
    pub shard: ShardId,
    /// The change, for the client's token; `None`: there was nothing to do.
    pub change: Option<(Origin, u64)>,
    /// This node's commit that holds it; of the key's last change when there was nothing to do.
    pub commit: u64,
    /// The write's stamp; of the last write when there was nothing to do.
    pub stamp: Stamp,
    /// The key's version now.
    pub version: Bytes,
    /// Whether the key was visible before.
    pub existed: bool,
    /// A counter's value now.
    pub counter: Option<i64>,
    /// When the key expires, Unix ms.
    pub expires_at_ms: Option<u64>,
    /// Whether this is the outcome of an earlier sending of the same request.
    pub replayed: bool,
}

/// Why a write did not happen (or, for one of them, may have).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WriteError {
    /// No rule creates such a scope.
    #[error("no rule matches scope {0}; no effect")]
    NoRule(ScopeName),
    /// The scope was dropped.
    #[error("scope {0} was dropped; no effect, it has to be created again")]
    Dropped(ScopeName),
    /// The scope is not held in this region.
    #[error("scope {scope} is not held in region {region}; no effect")]
    NotHere {
        /// The scope.
        scope: ScopeName,
        /// This region.
        region: RegionName,
        /// Where it is.
        serving: Vec<RegionName>,
    },
    /// The operation is for another kind.
    #[error("scope {scope} holds values of kind {kind}, which has no {operation}; no effect")]
    Kind {
        /// The scope.
        scope: ScopeName,
        /// Its kind.
        kind: Kind,
        /// What was tried.
        operation: &'static str,
    },
    /// The clock cannot stamp writes now.
    #[error("{0}; no effect, try another region or later")]
    Clock(#[from] ClockError),
    /// The clock is ahead of most peers.
    #[error(
        "this node's clock is ahead of most of its peers: it takes no writes; no effect, try another node"
    )]
    Fenced,
    /// The store is being filled by its peers.
    #[error(
        "this node's store is being rebuilt from its peers: it takes no writes yet; no effect, try another node"
    )]
    Rebuilding,
    /// The key is visible, and the write wanted it absent.
    #[error("the key exists; no effect")]
    Exists {
        /// Its version.
        version: Bytes,
    },
    /// The key has another version than the write wanted.
    #[error("the key has another version; no effect")]
    Version {
        /// Its version; `None`: it is not visible.
        version: Option<Bytes>,
    },
    /// The key is not visible.
    #[error("the key does not exist; no effect")]
    NotFound,
    /// A version that this service never gave out.
    #[error("the version is malformed: {0}; no effect")]
    MalformedVersion(&'static str),
    /// The base version is not known here, or not yet.
    #[error("the base version is not known here (yet); no effect")]
    UnknownVersion,
    /// The base version is of an earlier life of the key.
    #[error("the base version is of another life of the key: it was deleted since; no effect")]
    EarlierLife,
    /// The document cannot become what was asked for.
    #[error("{0}; no effect")]
    Document(DocumentError),
    /// An operation of a patch cannot be done.
    #[error("{0}; no effect")]
    Patch(PatchError),
    /// The document's history is as long as the policy allows.
    #[error("the document's history has {what}, the policy allows {limit}; no effect")]
    HistoryFull {
        /// How much of what it has.
        what: String,
        /// How much is allowed.
        limit: u64,
    },
    /// The key cannot be read: a change of it could not be applied.
    #[error("the key is damaged: {0}; no effect")]
    Damaged(String),
    /// The request id was used for another request.
    #[error("the request id was used for another request; no effect")]
    RequestIdReused,
    /// The counter would leave the range of 64-bit integers.
    #[error("the counter would leave the range of 64-bit integers; no effect")]
    CounterOverflow,
    /// The level asks for more regions than hold the scope.
    #[error("durability of {asked} regions was asked for, {held} hold the scope; no effect")]
    Durability {
        /// Asked for.
        asked: usize,
        /// There are.
        held: usize,
    },
    /// Too many writes wait for other disks.
    #[error("{WAITING_WRITES} writes wait for other nodes' disks already; no effect")]
    Overloaded,
    /// Too few nodes of the region are heard for the write to be on as many disks as it has to.
    #[error(
        "{heard} of the region's nodes are heard and {needed} have to have the write on their disks; no effect"
    )]
    OwnersAway {
        /// Owners that are heard, this one among them.
        heard: usize,
        /// Owners that are needed.
        needed: usize,
    },
    /// Not enough acknowledged in time. The write is durable here and reaches the others.
    #[error(
        "outcome unknown: {} of {} regions and {} of {} nodes of this region acknowledged in time; it is durable here",
        regions.len(), needed.0, owners, needed.1
    )]
    NotAcknowledged {
        /// How many regions, and how many owners in this one, were asked for.
        needed: (usize, usize),
        /// Regions that did, this one among them.
        regions: Vec<RegionName>,
        /// How many owners in this region did.
        owners: usize,
    },
}

/// Not enough acknowledged a write in time.
pub(crate) fn not_acknowledged(needs: Needs, on: OnDisks) -> WriteError {
    let (needed, owners) = ((needs.regions, needs.owners), on.owners.len());
    WriteError::NotAcknowledged { needed, regions: on.regions, owners }
}

impl WriteError {
    /// Whether the document in memory is to be forgotten, because it may not be what the store says any more.
    fn spoils_document(&self) -> bool {
        match self {
            Self::Document(error) => error.spoils(),
            Self::Patch(error) => matches!(&error.kind, PatchErrorKind::Document(error) if error.spoils()),
            _ => false,
        }
    }
}

impl From<DocumentError> for WriteError {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::UnknownBase => Self::UnknownVersion,
            error => Self::Document(error),
        }
    }
}

impl From<PatchError> for WriteError {
    fn from(error: PatchError) -> Self {
        match error.kind {
            PatchErrorKind::Document(DocumentError::UnknownBase) => DocumentError::UnknownBase.into(),
            _ => Self::Patch(error),
        }
    }
}

/// A key's version: changes with every write that is seen. Opaque to clients.
pub fn version_of(cell: &Cell) -> Bytes {
    let mut out = Vec::with_capacity(48);
    tropism_crdt::codec::put_varint(&mut out, cell.life);
    match &cell.content {
        Content::Document { heads, .. } => {
            out.push(1);
            out.extend_from_slice(heads.as_flattened());
        }
        Content::Counter(counter) => {
            out.push(3);
            let mut bytes = Vec::new();
            Cell { content: Content::Counter(counter.clone()), ..Cell::default() }.encode(&mut bytes);
            out.extend_from_slice(&xxhash_rust::xxh3::xxh3_128(&bytes).to_be_bytes());
        }
        Content::Register(_) | Content::Empty => {
            out.push(2);
            if let Some((stamp, origin)) = &cell.written {
                out.extend_from_slice(&stamp.as_u64().to_be_bytes());
                origin.encode(&mut out);
            }
        }
    }
    out.into()
}

/// The version of a document's life at these heads.
pub fn document_version(life: u64, heads: &Heads) -> Bytes {
    let mut out = Vec::with_capacity(48);
    tropism_crdt::codec::put_varint(&mut out, life);
    out.push(1);
    out.extend_from_slice(heads.hashes().as_flattened());
    out.into()
}

/// The life and the heads that a document's version names.
///
/// # Errors
/// [`WriteError::MalformedVersion`].
pub fn document_heads(version: &[u8]) -> Result<(u64, Heads), WriteError> {
    let mut reader = Reader::new(version);
    let life = reader.varint("life").map_err(|_| WriteError::MalformedVersion("it has no life"))?;
    if reader.u8("kind") != Ok(1) {
        return Err(WriteError::MalformedVersion("it is not of a document"));
    }
    let (hashes, rest) = reader.rest().as_chunks::<32>();
    if !rest.is_empty() || hashes.len() > MAX_HEADS {
        return Err(WriteError::MalformedVersion("its hashes are cut off or too many"));
    }
    Ok((life, Heads::from_hashes(hashes.to_vec())))
}

/// The heads of a version that a client was given, if it is of the life that is shown.
fn base_heads(version: &[u8], cell: &Cell, shown: bool) -> Result<Heads, WriteError> {
    let (life, heads) = document_heads(version)?;
    if life != cell.life || !shown {
        return Err(WriteError::EarlierLife);
    }
    Ok(heads)
}

/// What a write will do to the key's life, value and expiry.
struct Plan {
    life: u64,
    body: Body,
    expiry: ExpiryChange,
}

impl Replica {
    pub(crate) fn write(
        &mut self,
        now: Now,
        store: &mut Store,
        ticket: Ticket,
        write: Write,
    ) -> Result<(), ReplicaError> {
        let outcome = match self.try_write(now, store, ticket, write)? {
            Ok(Some(done)) => Ok(done),
            Ok(None) => return Ok(()), // answered when enough regions have it
            Err(error) => Err(error),
        };
        self.outputs.push_back(Output::Reply { ticket, outcome });
        Ok(())
    }

    fn try_write(
        &mut self,
        now: Now,
        store: &mut Store,
        ticket: Ticket,
        write: Write,
    ) -> Result<Result<Option<WriteDone>, WriteError>, ReplicaError> {
        let (record, needs) = match self.admit(now, &write) {
            Ok(admitted) => admitted,
            Err(error) => return Ok(Err(error)),
        };
        let (index, id) = record.shard(&write.key);
        if let Some(outcome) = self.replayed(store, id, &write, &record, needs)? {
            return Ok(outcome.map(Some));
        }
        self.settle(store, id, &write.key)?;
        let row = match store.value(id, &write.key) {
            Err(error @ StoreError::Damaged { .. }) => {
                return Ok(Err(WriteError::Damaged(error.to_string())));
            }
            row => row?.unwrap_or_default(),
        };
        let existed = row.cell.visible(now.wall_ms);
        if let Some(parked) = &row.parked {
            return Ok(Err(WriteError::Damaged(parked.reason.clone())));
        }
        if !self.barred.is_empty() && self.barred.contains(&(id, write.key.clone())) {
            return Ok(Err(WriteError::Damaged(
                "its row was dropped here by hand; write it in another region, or start this node again"
                    .to_owned(),
            )));
        }
        if let Err(error) = check(&row.cell, existed, write.precondition.as_ref()) {
            return Ok(Err(error));
        }
        let mut plan = match self.plan(now, &row.cell, existed, &write, &record) {
            Ok(Some(plan)) => plan,
            Ok(None) => return Ok(Ok(Some(done(id, None, &row, existed)))),
            Err(error) => return Ok(Err(error)),
        };
        let stamp = match self.clock.tick() {
            Ok(stamp) => stamp,
            Err(error) => return Ok(Err(error.into())),
        };
        if let Body::Delete { deleted_at } = &mut plan.body {
            *deleted_at = stamp;
        }
        assert!(
            plan.life > row.cell.life || stamp > row.cell.last_stamp() || row == ValueRow::default(),
            "a write is stamped above what it replaces: nothing is acknowledged and hidden"
        );
        let edited = if matches!(plan.body, Body::Document { .. }) {
            match self.edit(store, id, &row.cell, existed, &write, &record, (stamp, plan.life))? {
                Ok((change, content)) => {
                    plan.body = Body::Document { change };
                    Some(content)
                }
                Err(error) => {
                    if matches!(error, WriteError::HistoryFull { .. }) {
                        self.documents.note_history(id, &write.key, &record.scope.name, &record.policy);
                    }
                    return Ok(Err(error));
                }
            }
        } else {
            None
        };
        let (deadline_us, digest) = (write.deadline_us, write.request_id.map(|_| digest(&write)));
        let planned = (plan.life, plan.body, plan.expiry);
        let mut change = self.change_of(store, &record, index, stamp, &write.key, planned)?;
        (change.request_id, change.trace) = (write.request_id, write.trace);
        let key = log_key(id, &change);
        let row = self.commit_own(store, id, row, change, edited)?;
        let done = done(id, Some((key.origin, key.seq)), &row, existed);
        if let (Some(request), Some(digest)) = (write.request_id, digest) {
            let row = RequestRow {
                wall_ms: now.wall_ms,
                commit: store.open_commit(),
                change: (key.origin, key.seq),
                stamp,
                digest,
                reply: Some((done.version.clone(), existed, done.counter)),
            };
            store.put_row(Space::Requests, RequestKey { shard: id, id: request }.encode(), &row);
        }
        let on = OnDisks::own(self.identity.node, &self.identity.region);
        if on.suffice(needs) {
            return Ok(Ok(Some(done)));
        }
        let scope = record.scope.name;
        self.waiting.insert(key, Waiting { ticket, scope, done, needs, on, deadline_us });
        Ok(Ok(None))
    }

    /// Merges a change of our own into its key, stores what it made of a document, and logs it.
    pub(crate) fn commit_own(
        &mut self,
        store: &mut Store,
        id: ShardId,
        mut row: ValueRow,
        change: Change,
        edited: Option<Content>,
    ) -> Result<ValueRow, ReplicaError> {
        let was = self.counted(&change.key, &row);
        if change.life > row.cell.life {
            self.documents.clear(store, id, &change.key, change.life)?;
        }
        row.cell.merge(&change);
        if let (Some(content), Body::Document { change: raw }) = (edited, &change.body) {
            row.cell.content = content;
            if !raw.is_empty() {
                self.documents.save(store, id, &change.key, &[raw])?;
                self.note_history(id, &change.key);
            }
        }
        row.last = vec![(change.origin, change.seq)];
        row.commit = store.open_commit();
        self.put_value(store, id, &change.key, &was, &row);
        self.record_change(store, id, log_key(id, &change), (change.encode(), None))?;
        if let Some(shard) = self.shards.cached_mut(id) {
            shard.said = shard.vector.clone();
        }
        Ok(row)
    }

    /// What became of a request that was sent before, if it was.
    fn replayed(
        &self,
        store: &Store,
        id: ShardId,
        write: &Write,
        record: &PlacementRecord,
        needs: Needs,
    ) -> Result<Option<Result<WriteDone, WriteError>>, ReplicaError> {
        let Some(request) = write.request_id else { return Ok(None) };
        let key = RequestKey { shard: id, id: request }.encode();
        let Some(row) = store.row::<RequestRow>(Space::Requests, &key)? else { return Ok(None) };
        if row.digest != 0 && row.digest != digest(write) {
            return Ok(Some(Err(WriteError::RequestIdReused)));
        }
        let on = self.disks_of(row.commit, record);
        if !on.suffice(needs) && row.commit > self.stable_commit() {
            return Ok(Some(Err(not_acknowledged(needs, on))));
        }
        let now = match store.value(id, &write.key) {
            Err(StoreError::Damaged { .. }) => ValueRow::default(), // it was written all the same
            row => row?.unwrap_or_default(),
        };
        let (version, existed, counter) =
            row.reply.unwrap_or_else(|| (version_of(&now.cell), false, counter_of(&now.cell)));
        Ok(Some(Ok(WriteDone {
            shard: id,
            change: Some(row.change),
            commit: row.commit,
            stamp: row.stamp,
            version,
            existed,
            counter,
            expires_at_ms: now.cell.expires_at_ms(),
            replayed: true,
        })))
    }

    /// Whose disks a commit of a scope with this record is on: a cursor passes only what its peer has told to have.
    fn disks_of(&self, commit: u64, record: &PlacementRecord) -> OnDisks {
        let mut on = OnDisks::own(self.identity.node, &self.identity.region);
        let has = |link: &Link| link.row().cursor >= commit && record.serving.contains(link.region());
        for (peer, link) in self.links.iter().filter(|(_, link)| has(link)) {
            on.add(*peer, link.region());
        }
        on
    }

    /// How many of a region's owners are a majority, and how many of them are heard; of the own region with this node.
    fn majority(&self, now: Now) -> (usize, usize) {
        let own = |link: &&Link| *link.region() == self.identity.region;
        let owners = 1 + self.links.values().filter(own).count();
        let heard = 1 + self.links.values().filter(own).filter(|link| link.hears(now)).count();
        (owners / 2 + 1, heard)
    }

    /// What can be refused before the key is looked at; says whose disks must have the write.
    fn admit(&mut self, now: Now, write: &Write) -> Result<(PlacementRecord, Needs), WriteError> {
        let none = || match self.records.stored(&write.scope) {
            Some(_) => WriteError::Dropped(write.scope.clone()),
            None => WriteError::NoRule(write.scope.clone()),
        };
        let record = self.record(&write.scope).ok_or_else(none)?;
        if !record.serving.contains(&self.identity.region) {
            return Err(WriteError::NotHere {
                scope: write.scope.clone(),
                region: self.identity.region.clone(),
                serving: record.serving,
            });
        }
        let (fits, operation) = match &write.op {
            WriteOp::PutRegister { .. } => (record.kind == Kind::Register, "put of bytes"),
            WriteOp::PutDocument { .. } => (record.kind == Kind::Document, "put of a document"),
            WriteOp::Patch { .. } => (record.kind == Kind::Document, "patch"),
            WriteOp::Increment { .. } => (record.kind == Kind::Counter, "increment"),
            WriteOp::Delete | WriteOp::Expire => (true, ""),
        };
        if !fits {
            return Err(WriteError::Kind { scope: write.scope.clone(), kind: record.kind, operation });
        }
        let (owners, heard) = self.majority(now);
        let needs = match write.durability.unwrap_or(record.policy.durability) {
            Durability::Local => Needs::OWN,
            Durability::Region => Needs { regions: 1, owners },
            Durability::Regions(regions) => Needs { regions: regions.into(), owners },
        };
        if needs.regions > record.serving.len() {
            return Err(WriteError::Durability { asked: needs.regions, held: record.serving.len() });
        }
        if needs != Needs::OWN && self.waiting.len() >= WAITING_WRITES {
            self.times_full.waiting += 1;
            return Err(WriteError::Overloaded);
        }
        if heard < needs.owners {
            return Err(WriteError::OwnersAway { heard, needed: needs.owners });
        }
        if self.rebuild.is_some() {
            return Err(WriteError::Rebuilding);
        }
        if self.fenced {
            return Err(WriteError::Fenced);
        }
        self.clock.ready()?;
        Ok((record, needs))
    }

    /// Decides the life and what the change says; `None`: there is nothing to do.
    fn plan(
        &mut self,
        now: Now,
        cell: &Cell,
        existed: bool,
        write: &Write,
        record: &PlacementRecord,
    ) -> Result<Option<Plan>, WriteError> {
        // A stamp from beyond the offset cannot be exceeded: the key goes on in its next life.
        let beyond = !self.clock.observe(cell.last_stamp());
        let known = *cell != Cell::default();
        let reborn = known && !cell.alive() && record.kind != Kind::Register;
        let next_life = cell.life + u64::from(beyond || reborn);
        if next_life > MAX_LIFE {
            return Err(WriteError::Damaged(format!("it has had {MAX_LIFE} lives, there is no next one")));
        }
        let put_expiry = match (write.expiry, record.policy.expiry) {
            (ExpiryChange::Keep, Some(after)) => ExpiryChange::At(
                now.wall_ms.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            ),
            (ExpiryChange::Keep, None) => ExpiryChange::Clear,
            (said, _) => said,
        };
        let keep_expiry = if existed { write.expiry } else { put_expiry };
        let plan = match &write.op {
            WriteOp::PutRegister { content_type, bytes } => Plan {
                life: next_life,
                body: Body::Register { content_type: content_type.clone(), bytes: bytes.clone() },
                expiry: put_expiry,
            },
            WriteOp::PutDocument { .. } => Plan {
                life: next_life,
                body: Body::Document { change: Bytes::new() }, // `edit` makes it
                expiry: put_expiry,
            },
            WriteOp::Patch { .. } => {
                Plan { life: next_life, body: Body::Document { change: Bytes::new() }, expiry: keep_expiry }
            }
            WriteOp::Increment { by } => {
                let counter = match &cell.content {
                    Content::Counter(counter) if next_life == cell.life => counter.clone(),
                    _ => Counter::default(),
                };
                let floors = if existed { Vec::new() } else { counter.as_floors() };
                let value = if existed { counter.sum() } else { Some(0) };
                let total = counter.total(&self.origin).checked_add(i128::from(*by));
                let fits = value
                    .and_then(|v| v.checked_add(i128::from(*by)))
                    .is_some_and(|v| i64::try_from(v).is_ok());
                let (true, Some(total)) = (fits, total) else { return Err(WriteError::CounterOverflow) };
                Plan { life: next_life, body: Body::Counter { total, floors }, expiry: keep_expiry }
            }
            WriteOp::Delete if !existed => return Ok(None),
            WriteOp::Delete => {
                // As of the change's own stamp, which comes next.
                Plan {
                    life: next_life,
                    body: Body::Delete { deleted_at: Stamp::ZERO },
                    expiry: ExpiryChange::Keep,
                }
            }
            WriteOp::Expire if !existed => return Err(WriteError::NotFound),
            WriteOp::Expire if beyond => return Err(WriteError::Fenced),
            WriteOp::Expire => Plan { life: cell.life, body: Body::Touch, expiry: put_expiry },
        };
        Ok(Some(plan))
    }

    /// Edits the document in memory: the raw change, empty when there is no difference, and what it shows then.
    #[allow(clippy::too_many_arguments, reason = "one write, seen from all sides")]
    fn edit(
        &mut self,
        store: &Store,
        id: ShardId,
        cell: &Cell,
        existed: bool,
        write: &Write,
        record: &PlacementRecord,
        (stamp, life): (Stamp, u64),
    ) -> Result<Result<(Bytes, Content), WriteError>, ReplicaError> {
        let base = match &write.op {
            WriteOp::PutDocument { base, .. } | WriteOp::Patch { base, .. } => base.as_ref(),
            _ => None,
        };
        let base =
            match base.map(|version| base_heads(version, cell, existed && life == cell.life)).transpose() {
                Ok(base) => base,
                Err(error) => return Ok(Err(error)),
            };
        let none = Paths::default();
        let paths = self.paths.get(record.rule.as_ref()).unwrap_or(&none);
        let place = (id, &write.key[..], life);
        let held = match self.documents.get(store, place) {
            Ok(held) => held,
            Err(error) => return damaged(error),
        };
        let policy = &record.policy;
        if held.history_changes() >= policy.history_changes {
            let what = format!("{} changes", held.history_changes());
            return Ok(Err(WriteError::HistoryFull { what, limit: policy.history_changes }));
        }
        if held.history_bytes() as u64 >= policy.history_bytes {
            let what = format!("{} bytes", held.history_bytes());
            return Ok(Err(WriteError::HistoryFull { what, limit: policy.history_bytes }));
        }
        let base = base.as_ref();
        let seconds = i64::try_from(stamp.unix_ms() / 1_000).unwrap_or(i64::MAX);
        let light = |document: &mut Light| match &write.op {
            // What is left of an expired life is removed first, see below.
            WriteOp::Patch { operations, .. } if existed || document.history_changes() == 0 => {
                document.patch(operations, base, paths, seconds).map_err(WriteError::from)
            }
            WriteOp::PutDocument { value, .. } => {
                document.replace(value, base, paths, seconds).map_err(WriteError::from)
            }
            _ => Ok(Tried::NeedsAutomerge),
        };
        let whole = |document: &mut Document| match &write.op {
            WriteOp::Patch { operations, .. } if !existed => {
                let empty = PatchOp::Set { path: Pointer::root(), value: Json::Object(Default::default()) };
                let all: Vec<PatchOp> = std::iter::once(empty).chain(operations.iter().cloned()).collect();
                document.patch(&all, base, paths, seconds).map_err(|mut error| {
                    error.op_index = error.op_index.and_then(|index| index.checked_sub(1));
                    WriteError::from(error)
                })
            }
            WriteOp::Patch { operations, .. } => {
                document.patch(operations, base, paths, seconds).map_err(WriteError::from)
            }
            WriteOp::PutDocument { value, .. } => {
                document.replace(value, base, paths, seconds).map_err(WriteError::from)
            }
            _ => Ok(None),
        };
        match self.documents.edit(store, place, light, whole) {
            Ok(Ok((change, held))) => {
                let (heads, json) = held.shown();
                let content = Content::Document { heads: heads.hashes().to_vec(), json };
                Ok(Ok((change.unwrap_or_default().into(), content)))
            }
            Ok(Err(error)) => {
                if error.spoils_document() {
                    self.documents.forget(id, &write.key); // the store has it as it was
                }
                Ok(Err(error))
            }
            Err(error) => damaged(error),
        }
    }

    /// Numbers a change of our own and says what it depends on.
    pub(crate) fn change_of(
        &mut self,
        store: &mut Store,
        record: &PlacementRecord,
        index: u16,
        stamp: Stamp,
        key: &str,
        (life, body, expiry): (u64, Body, ExpiryChange),
    ) -> Result<Change, ReplicaError> {
        let origin = self.origin;
        let row = ShardRow { scope: record.scope.clone(), index, kind: record.kind };
        let shard = self.shards.get(store, &row, row.id(), || record.clone())?;
        let mut deps = shard.vector.risen_since(&shard.said);
        deps.retain(|(author, _)| *author != origin);
        let ScopeId { name, incarnation } = &record.scope;
        Ok(Change {
            scope: name.as_str().to_owned(),
            scope_incarnation: *incarnation,
            shard_index: index,
            origin,
            seq: shard.vector.get(&origin) + 1,
            deps,
            stamp,
            key: key.to_owned(),
            life,
            generation: 0,
            epoch: record.epoch,
            request_id: None,
            trace: None,
            expiry,
            body,
        })
    }
}

/// A write of a document that could not be had.
fn damaged<T>(error: LoadError) -> Result<Result<T, WriteError>, ReplicaError> {
    match error {
        LoadError::Store(error @ StoreError::Engine(_)) => Err(error.into()),
        error => Ok(Err(WriteError::Damaged(error.to_string()))),
    }
}

/// What a request asks for, to tell a repetition from another request with the same id. The expiry is left out: it is
/// counted from the moment of sending.
fn digest(write: &Write) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(write.key.as_bytes());
    match &write.op {
        WriteOp::PutRegister { content_type, bytes } => {
            hasher.update(content_type.as_bytes());
            hasher.update(bytes);
        }
        WriteOp::PutDocument { value, .. } => hasher.update(&value.to_canonical()),
        WriteOp::Patch { operations, .. } => hasher.update(format!("{operations:?}").as_bytes()),
        WriteOp::Increment { by } => hasher.update(&by.to_be_bytes()),
        WriteOp::Delete => hasher.update(b"delete"),
        WriteOp::Expire => hasher.update(b"expire"),
    }
    hasher.digest().max(1)
}

fn counter_of(cell: &Cell) -> Option<i64> {
    match &cell.content {
        Content::Counter(counter) => counter.value(),
        _ => None,
    }
}

fn check(cell: &Cell, visible: bool, precondition: Option<&Precondition>) -> Result<(), WriteError> {
    match precondition {
        None => Ok(()),
        Some(Precondition::Absent) if visible => Err(WriteError::Exists { version: version_of(cell) }),
        Some(Precondition::Absent) => Ok(()),
        Some(Precondition::Version(wanted)) => {
            let version = visible.then(|| version_of(cell));
            if version.as_ref() == Some(wanted) { Ok(()) } else { Err(WriteError::Version { version }) }
        }
    }
}

fn done(shard: ShardId, change: Option<(Origin, u64)>, row: &ValueRow, existed: bool) -> WriteDone {
    let counter = counter_of(&row.cell);
    WriteDone {
        shard,
        change,
        commit: row.commit,
        stamp: row.cell.last_stamp(),
        version: version_of(&row.cell),
        existed,
        counter,
        expires_at_ms: row.cell.expires_at_ms(),
        replayed: false,
    }
}
