//! The state machine: inputs, outputs, and what happens in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use thiserror::Error;
use tropism_crdt::clock::{Clock, ClockError};
use tropism_crdt::document::Paths;
use tropism_crdt::json::PathPattern;
use tropism_crdt::{Change, NodeId, Origin, Stamp};
use tropism_placement::{
    PlacementRecord, Policy, Records, RegionName, Rules, ScopeName, ShardId, StoredRecord,
};
use tropism_storage::rows::{Life, OLDEST_FORMAT, STORE_FORMAT};
use tropism_storage::{
    ClockRow, DroppedRow, Head, Header, KeyTally, LivesRow, LogFloorRow, LogKey, NodeKey, Reads,
    RebuildCause, RebuildRow, ShardRow, Space, Store, StoreError, ValueKey, ValueRow,
};

use crate::apply::Pending;
use crate::budget::{Budget, BudgetStatus, Foreground, Pace};
use crate::census::{Census, Counted, Degraded, ParkedShards};
use crate::digest::{DigestKey, Fingerprints};
use crate::documents::{Documents, LongHistory};
use crate::frame::{Frame, Hello};
use crate::inspect::Inspections;
use crate::limits::{
    CACHED_SHARD_BYTES, CACHED_SHARDS, FENCE_OFFSET_MS, NAMED_IN_STATUS, RECENT_BYTES, VALUES_CACHE_SHARE,
};
use crate::link::{Link, LinkStatus};
use crate::moves::Moves;
use crate::parked::{ParkedCall, ParkedError, ParkedStep};
use crate::rebuild::{Opening, Rebuild, RebuildStatus, Salvaged};
use crate::recent::{Logged, Recent};
use crate::scrub::ScrubStatus;
use crate::shards::{Shard, Shards};
use crate::sweep::{Sweep, scope_of};
use crate::traced::Traced;
use crate::transfer::Transfers;
use crate::verify::{Verifications, VerifiedShard, VerifyCall, VerifyError};
use crate::waiting::{Waiting, WaitingWrites};
use crate::write::{Write, WriteDone, WriteError, not_acknowledged};

/// The time of one turn, given by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic clock, us: timeouts.
    pub mono_us: u64,
    /// Wall clock, Unix ms: stamps and expiry. May step back.
    pub wall_ms: u64,
}

/// Names a client's call until its reply.
pub type Ticket = u64;

/// Everything that can happen to a replica.
#[derive(Debug)]
pub enum Input {
    /// A client writes; answered by [`Output::Reply`] with the same ticket, exactly once.
    Write {
        /// Comes back with the reply.
        ticket: Ticket,
        /// What to write.
        write: Box<Write>,
    },
    /// An operator looks after a parked key; answered by [`Output::Parked`] with the same ticket, exactly once.
    Parked {
        /// Comes back with the reply.
        ticket: Ticket,
        /// Which key, and what to do.
        call: Box<ParkedCall>,
    },
    /// Somebody wants to know whether all members of a shard hold the same; answered by [`Output::Verified`] with the same
    /// ticket, exactly once, at its deadline at the latest. Changes nothing.
    Verify {
        /// Comes back with the reply.
        ticket: Ticket,
        /// Which shard.
        call: Box<VerifyCall>,
    },
    /// A link to a peer stands: both hellos were exchanged and the peer proved that it belongs here.
    LinkUp(Hello),
    /// The link to a peer is gone.
    LinkDown(NodeId),
    /// A frame came.
    Frame {
        /// Who sent it.
        from: NodeId,
        /// What it says.
        frame: Frame,
    },
    /// A reader wants a key, or a whole shard, of which a state may be staged ([`Replica::settling`]). It looks again after
    /// the next commit.
    Settle {
        /// The shard.
        shard: ShardId,
        /// The key; `None`: as many keys as one turn may merge.
        key: Option<String>,
    },
    /// Changes of a store that was set aside, in any order, at most as many as a frame may hold; none: these were all.
    /// For a replica whose status asks for them ([`RebuildStatus::salvages`]).
    Salvage(Vec<Bytes>),
    /// What the driver measured in a window of some [`WINDOW_US`](crate::limits::WINDOW_US): the pace of background work
    /// follows it. Without such inputs it is what it is with nobody in the foreground.
    Foreground(Box<Foreground>),
    /// What the directory says of where scopes are. Once after every start `all`: what it had at some time since then is
    /// among these and those that came before.
    Records {
        /// Records, the newest of each scope at least.
        records: Vec<StoredRecord>,
        /// Whether these are all.
        all: bool,
    },
    /// Time passed: [`Replica::next_deadline`] is due.
    Tick,
}

/// What the driver carries out once the turn is durable, in order.
#[derive(Debug)]
pub enum Output {
    /// Answers a client.
    Reply {
        /// Whose call.
        ticket: Ticket,
        /// What became of it.
        outcome: Result<WriteDone, WriteError>,
    },
    /// Answers an operator.
    Parked {
        /// Whose call.
        ticket: Ticket,
        /// What was done.
        outcome: Result<ParkedStep, ParkedError>,
    },
    /// Answers who wanted a shard verified.
    Verified {
        /// Whose call.
        ticket: Ticket,
        /// What was found.
        outcome: Result<VerifiedShard, VerifyError>,
    },
    /// Sends a frame on a peer's link.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        frame: Frame,
    },
    /// Proposes the next record of a scope to the directory, which takes it if its epoch is the next one.
    Propose(Box<StoredRecord>),
    /// Drops the link to a peer; the shell dials again.
    Disconnect {
        /// Whose.
        peer: NodeId,
        /// Why, for the log.
        reason: &'static str,
    },
    /// Something worth counting or logging.
    Event(Event),
}

/// What happened, for metrics, logs and the simulator's coverage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Changes of peers were applied.
    Applied {
        /// How many in this frame, released pending ones included.
        changes: usize,
    },
    /// Changes of peers were applied in this turn. At most one of these a turn.
    Traced(Traced),
    /// A change waits for what it depends on.
    Pended,
    /// Pending changes found no room and were dropped; they are sent again.
    PendingFull,
    /// A change arrived a second time.
    Duplicate,
    /// A peer's change was refused: not sound, or of a scope that is not held here.
    Refused {
        /// Who sent it.
        from: NodeId,
        /// Why.
        reason: String,
    },
    /// A link started again from its cursor.
    Resent(NodeId),
    /// A change of a third node was relayed.
    Relayed(NodeId),
    /// Changes were asked for that a link had missed.
    Wanted(NodeId),
    /// Vectors compared unequal in some range.
    Unequal(NodeId),
    /// A peer asked for changes that are no longer in the log.
    BelowFloor(NodeId),
    /// A stamp from too far in the future was stored without moving the clock.
    FutureStamp(NodeId),
    /// An edit of a life that was deleted before the edit arrived.
    Outlived,
    /// A hidden life lost its content.
    Collected,
    /// An expired key was deleted.
    Expired,
    /// The sweep's count of the keys differed from what the store had tallied: a row had rotted.
    Recounted {
        /// What was tallied.
        was: KeyTally,
        /// What there is.
        is: KeyTally,
    },
    /// A digest that was summed up anew differed from the one that writes had moved: rows had rotted.
    Rotted {
        /// Of which scope.
        scope: ScopeName,
        /// Which shard.
        shard: ShardId,
    },
    /// A peer shows another digest of a shard at the same vector: something was lost, rotted or miscomputed.
    DigestsDiffer {
        /// Who.
        peer: NodeId,
        /// Which shard.
        shard: ShardId,
    },
    /// A shard came from a peer as a whole and is served.
    Landed {
        /// Which shard.
        shard: ShardId,
        /// How many keys came.
        keys: u64,
    },
    /// All keys of such a shard are merged.
    Settled {
        /// Which shard.
        shard: ShardId,
    },
    /// A peer may lack what no log reaches back to: it is shown every shard.
    Owes(NodeId),
    /// It has all of them.
    Quit(NodeId),
    /// The keys of a shard were found to be those of a peer, though their vectors never met.
    Inspected {
        /// Whose.
        peer: NodeId,
        /// Which shard.
        shard: ShardId,
    },
    /// Keys were repaired by a peer's state of them.
    Repaired {
        /// Whose.
        peer: NodeId,
        /// In which shard.
        shard: ShardId,
        /// How many.
        keys: u64,
    },
    /// Changes that every member holds left the log.
    Trimmed {
        /// How many.
        changes: usize,
    },
    /// A change could not be applied: its key is not served until that is repaired.
    Parked {
        /// Why.
        reason: String,
    },
    /// Changes that were put aside were tried again.
    Retried {
        /// How many of them were applied.
        applied: usize,
        /// Whether their key is served again.
        served: bool,
    },
    /// An operator gave up changes that were put aside.
    Dropped {
        /// Of which scope.
        scope: ScopeName,
        /// How many.
        changes: u64,
        /// Whether a row that could not be read went with them.
        row: bool,
    },
    /// A record of the directory is followed from now on.
    Adopted {
        /// Of which scope.
        scope: ScopeName,
        /// Its epoch.
        epoch: u64,
    },
    /// A move is given up: who was to come did not come nearer for long.
    MoveGivenUp {
        /// Of which scope.
        scope: ScopeName,
        /// Epoch of the record that is given up.
        epoch: u64,
    },
    /// A shard is not held any more: its rows are being deleted.
    Left {
        /// Which.
        shard: ShardId,
    },
    /// All its rows are.
    Deleted {
        /// Which.
        shard: ShardId,
    },
    /// A new store takes the place of an earlier one: a peer has seen that.
    Rebuilding {
        /// Who.
        seen_by: NodeId,
    },
    /// The store has everything that its peers could give, and is served.
    Rebuilt {
        /// Why it had to be filled.
        cause: RebuildCause,
        /// Since when it was, Unix ms.
        since_ms: u64,
        /// What came from a store that was set aside.
        salvaged: Salvaged,
    },
    /// This node's store is behind what a peer saw of it: it must not serve.
    Short {
        /// Who says so.
        by: NodeId,
        /// What is missing.
        reason: String,
    },
}

/// A node of another or the same region that holds scopes with us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub region: RegionName,
}

/// Who a replica is and what it knows of the world.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The cluster's name: a store of another cluster is not opened.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
    /// Its region.
    pub region: RegionName,
    /// 64 random bits, new at every boot.
    pub boot_random: u64,
    /// Used when the store is new.
    pub new_store_id: u128,
    /// How the store came to be.
    pub opening: Opening,
    /// All other nodes.
    pub peers: Vec<Peer>,
    /// What the digests of this cluster are keyed by.
    pub digest_key: DigestKey,
    /// Which scopes exist and where they are held.
    pub rules: Rules,
    /// Whether a directory says where scopes are that do not follow their rule: see [`Input::Records`].
    pub directory: bool,
    /// Memory for documents and values that were used lately, bytes.
    pub cache_bytes: usize,
    /// How long the log keeps what every member holds, ms; see [`LOG_KEEP_MS`](crate::limits::LOG_KEEP_MS).
    pub log_keep_ms: u64,
    /// Bytes of the log beyond which it does not keep what every member holds; see
    /// [`LOG_KEEP_BYTES`](crate::limits::LOG_KEEP_BYTES).
    pub log_keep_bytes: u64,
    /// Bytes of one part of a shard that is given as a whole; see [`FRAME_BYTES`](crate::limits::FRAME_BYTES).
    pub part_bytes: usize,
    /// Keys of such a shard that are merged in one step; see [`SETTLE_KEYS`](crate::limits::SETTLE_KEYS).
    pub settle_keys: usize,
    /// How long the log keeps what a member lacks, ms; beyond it that member gets shards as a whole.
    pub log_cap_ms: u64,
    /// Bytes of the log beyond which it does not keep what a member lacks either.
    pub log_cap_bytes: u64,
}

/// Why a replica did not start. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BootError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is somebody else's.
    #[error(
        "the store belongs to node {found_node} of cluster {found_cluster:?}, not to {node} of {cluster:?}"
    )]
    OtherNode {
        /// This node.
        node: NodeId,
        /// This cluster.
        cluster: String,
        /// Whose it is.
        found_node: NodeId,
        /// Of which cluster.
        found_cluster: String,
    },
    /// The store was written by another version.
    #[error("the store has format {found}; this program reads formats {OLDEST_FORMAT} to {STORE_FORMAT}")]
    Format {
        /// What it says.
        found: u64,
    },
}

/// Why a replica must stop.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReplicaError {
    /// The store failed or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One node's replication state. Reads no clock, opens no socket, draws no randomness; see the crate's contract.
#[derive(Debug)]
pub struct Replica {
    pub(crate) identity: Identity,
    pub(crate) origin: Origin,
    pub(crate) store_id: u128,
    pub(crate) clock: Clock,
    pub(crate) fenced: bool,
    pub(crate) shards: Shards,
    pub(crate) links: BTreeMap<NodeId, Link>,
    pub(crate) recent: Recent,
    pub(crate) pending: Pending,
    pub(crate) documents: Documents,
    /// Where scopes are.
    pub(crate) records: Records,
    pub(crate) moves: Moves,
    /// Text and counter paths by rule.
    pub(crate) paths: BTreeMap<String, Paths>,
    pub(crate) waiting: WaitingWrites,
    pub(crate) outputs: VecDeque<Output>,
    /// The last commit of the lives before this one.
    pub(crate) found: Head,
    /// Where the lives of the store began, this one included.
    pub(crate) lives: LivesRow,
    pub(crate) log_floor: u64,
    pub(crate) sweep: Sweep,
    pub(crate) census: Census,
    pub(crate) transfers: Transfers,
    pub(crate) inspections: Inspections,
    /// The store is being filled by its peers.
    pub(crate) rebuild: Option<Rebuild>,
    /// It stands in the place of one that was lost.
    pub(crate) lost: Option<RebuildRow>,
    pub(crate) verifications: Verifications,
    pub(crate) budget: Budget,
    /// Of the open turn, told when it ends.
    pub(crate) traced: Traced,
    pub(crate) times_full: TimesFull,
    /// What operators gave up in this store.
    pub(crate) dropped: Option<DroppedRow>,
    /// Keys whose row was dropped after this origin may have written them. It no longer knows what it said of them: the
    /// total of a counter, the number of its last edit. Said anew, peers would take the smaller total for the later one,
    /// and the edit for a fork. So they take no writes here while this origin lives.
    pub(crate) barred: BTreeSet<(ShardId, String)>,
    next_peer_rows_us: u64,
}

/// How often queues of the replica were full, since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimesFull {
    /// Writes that wait for other regions.
    pub waiting: u64,
    /// Pending changes.
    pub pending: u64,
}

/// How a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStatus {
    /// What it holds.
    pub name: &'static str,
    /// Bytes held, estimated.
    pub bytes: usize,
    /// Most bytes it may hold.
    pub limit: usize,
    /// Entries held.
    pub entries: usize,
    /// Look-ups that found something and that did not, since the start.
    pub looked_up: (u64, u64),
}

/// What a replica says of itself.
#[derive(Debug, Clone)]
pub struct Status {
    /// The origin of this life.
    pub origin: Origin,
    /// The store.
    pub store_id: u128,
    /// Whether the clock runs ahead of most peers, so that client writes are refused.
    pub fenced: bool,
    /// Why writes wait, if they do.
    pub clock: Result<(), ClockError>,
    /// The last stamp.
    pub stamp: Stamp,
    /// Pending changes and their bytes.
    pub pending: (usize, usize),
    /// Documents in memory and their bytes.
    pub documents: (usize, usize),
    /// Writes that wait for other regions.
    pub waiting: usize,
    /// How often these two were full.
    pub times_full: TimesFull,
    /// Caches.
    pub caches: Vec<CacheStatus>,
    /// No stamp at or beyond this is issued before a new reservation is durable, Unix ms.
    pub reserved_ms: u64,
    /// Living keys that have expired; until [`Self::counted`] those that the sweep has passed.
    pub expired_keys: u64,
    /// Scopes with keys that cannot be shown, those with the most first; until [`Self::counted`] those passed.
    pub degraded: Vec<Degraded>,
    /// Every shard with parked keys; `None` while the sweep has not been round since the start, and when there are too
    /// many.
    pub parked_shards: Option<ParkedShards>,
    /// Places in documents at which a merge of changes left several values, since the start.
    pub disputed_places: u64,
    /// What operators gave up in this store.
    pub dropped: Option<DroppedRow>,
    /// Whether the sweep has been round since the start.
    pub counted: bool,
    /// Documents near their history budget that were written, or asked to be, since the start; the fullest first.
    pub long_histories: Vec<LongHistory>,
    /// The first commit whose changes are still in the log.
    pub log_floor: u64,
    /// Every change in a commit up to this is stable.
    pub stable_commit: u64,
    /// How far the store is filled by its peers, if it has to be: it takes no calls of clients.
    pub rebuild: Option<RebuildStatus>,
    /// The links.
    pub links: Vec<LinkStatus>,
    /// How background work goes.
    pub budget: BudgetStatus,
    /// How far the scrub is.
    pub scrub: ScrubStatus,
}

impl Replica {
    /// Starts a life of the store: checks whose it is, draws the next incarnation, reserves time. What it writes is
    /// durable after the driver's first turn, before which nothing leaves.
    pub fn boot(now: Now, store: &mut Store, identity: Identity) -> Result<Self, BootError> {
        let found_header: Option<Header> = store.row(Space::Node, &NodeKey::Header.encode())?;
        let is_new = found_header.is_none();
        let header = match found_header {
            Some(header) if !(OLDEST_FORMAT..=STORE_FORMAT).contains(&header.format) => {
                return Err(BootError::Format { found: header.format });
            }
            Some(header) if header.node != identity.node || header.cluster != identity.cluster => {
                return Err(BootError::OtherNode {
                    node: identity.node,
                    cluster: identity.cluster,
                    found_node: header.node,
                    found_cluster: header.cluster,
                });
            }
            Some(header) if header.format < STORE_FORMAT => {
                let (format, header) = (header.format, Header { format: STORE_FORMAT, ..header });
                store.put_row(Space::Node, NodeKey::Header.encode(), &header);
                if format < 3 {
                    // These formats did not say where the log begins.
                    let first = store.commit_rows(0, u64::MAX).next().transpose()?.map(|(commit, _)| commit);
                    let floor = LogFloorRow { commit: first.unwrap_or(store.head().commit + 1) };
                    store.put_row(Space::Node, NodeKey::LogFloor.encode(), &floor);
                }
                header
            }
            Some(header) => header,
            None => {
                let header = Header {
                    format: STORE_FORMAT,
                    cluster: identity.cluster.clone(),
                    node: identity.node,
                    store_id: identity.new_store_id,
                };
                store.put_row(Space::Node, NodeKey::Header.encode(), &header);
                header
            }
        };
        let stored: Option<Origin> = store.row(Space::Node, &NodeKey::Boot.encode())?;
        let incarnation = now.wall_ms.max(stored.map_or(0, |origin| origin.incarnation + 1));
        let origin = Origin { node: identity.node, incarnation, random: identity.boot_random };
        store.put_row(Space::Node, NodeKey::Boot.encode(), &origin);
        let mut lives: LivesRow = store.row(Space::Node, &NodeKey::Lives.encode())?.unwrap_or_default();
        lives.lives.push(Life { incarnation, random: origin.random, found: store.head().commit });
        let surplus = lives.lives.len().saturating_sub(LivesRow::MOST);
        lives.lives.drain(..surplus);
        store.put_row(Space::Node, NodeKey::Lives.encode(), &lives);
        let clock: ClockRow = store.row(Space::Node, &NodeKey::Clock.encode())?.unwrap_or_default();
        let clock = Clock::new(now.wall_ms, clock.last, clock.reserved_ms);
        let fingerprints = Fingerprints::new(&identity.digest_key);
        let mut records = Records::new(identity.rules.clone());
        let mut moves = Moves::default();
        moves.informed = !identity.directory;
        for record in store.records()? {
            moves.note(&record);
            records.adopt(record);
        }
        let shards = Shards::open(store, fingerprints, |row| {
            record_of(&records, row).filter(|record| record.members().any(|r| *r == identity.region))
        })?;
        let found = store.head();
        let head = found.commit;
        let mut links = BTreeMap::new();
        for peer in &identity.peers {
            let row = store.row(Space::Node, &NodeKey::Peer(peer.node).encode())?.unwrap_or_default();
            links.insert(peer.node, Link::new(peer.clone(), row));
        }
        let log_floor = store.log_floor()?;
        let dropped = store.row(Space::Node, &NodeKey::Dropped.encode())?;
        let values = identity.cache_bytes / VALUES_CACHE_SHARE;
        store.keep_values(values);
        let documents = Documents::new(origin, identity.cache_bytes - values);
        let paths =
            identity.rules.iter().map(|rule| (rule.name.to_string(), paths_of(&rule.policy))).collect();
        let transfers = Transfers::open(store, origin.random)?;
        let rebuild = Rebuild::open(now, store, &identity, is_new)?;
        let lost = store.row(Space::Node, &NodeKey::Lost.encode())?;
        let mut replica = Self {
            identity,
            origin,
            store_id: header.store_id,
            clock,
            fenced: false,
            shards,
            links,
            recent: Recent::after(head),
            pending: Pending::default(),
            documents,
            records,
            moves,
            paths,
            waiting: WaitingWrites::default(),
            outputs: VecDeque::new(),
            found,
            lives,
            log_floor,
            sweep: Sweep::default(),
            census: Census::default(),
            transfers,
            inspections: Inspections::open(origin.random),
            rebuild,
            lost,
            verifications: Verifications::open(origin.random),
            budget: Budget::default(),
            traced: Traced::default(),
            times_full: TimesFull::default(),
            dropped,
            barred: BTreeSet::new(),
            next_peer_rows_us: now.mono_us,
        };
        replica.find_deleting(now, store)?;
        replica.reserve(now, store);
        Ok(replica)
    }

    /// Takes one input. See the crate's contract for what must follow.
    pub fn handle(&mut self, now: Now, store: &mut Store, input: Input) -> Result<(), ReplicaError> {
        self.reserve(now, store);
        if !store.is_dirty() {
            self.documents.trim(); // everything in the cache is committed
        }
        match input {
            Input::Write { ticket, write } => self.write(now, store, ticket, *write)?,
            Input::Parked { ticket, call } => self.parked(now, store, ticket, &call)?,
            Input::Verify { ticket, call } => self.verify(now, ticket, &call),
            Input::LinkUp(hello) => self.link_up(now, store, hello),
            Input::LinkDown(peer) => self.link_down(peer),
            Input::Frame { from, frame } => self.frame(now, store, from, frame)?,
            Input::Settle { shard, key: Some(key) } => self.settle(store, shard, &key)?,
            Input::Salvage(changes) => self.salvage(now, store, changes)?,
            Input::Settle { shard, key: None } => {
                self.settle_some(store, shard, self.identity.settle_keys)?
            }
            Input::Foreground(seen) => self.budget.window(now, &seen),
            Input::Records { records, all } => self.adopt(now, store, records, all)?,
            Input::Tick => {}
        }
        Ok(())
    }

    /// Ends a turn: lets every link send what it can of what is logged so far, and does what time asks for.
    pub fn flush(&mut self, now: Now, store: &mut Store) -> Result<(), ReplicaError> {
        self.reserve(now, store);
        self.give_up_waiting(now);
        self.sweep(now, store)?;
        self.settle_due(now, store)?;
        self.recount_due(now, store)?;
        self.transfers_due(now, store)?;
        self.inspect_due(now, store)?;
        self.verify_due(now, store)?;
        self.moves_due(now, store)?;
        self.delete_due(now, store)?;
        self.want_missing(now);
        self.pump_links(now, store)?;
        self.rebuild_due(now, store);
        if now.mono_us >= self.next_peer_rows_us {
            self.next_peer_rows_us = now.mono_us + crate::limits::PEER_ROWS_US;
            for link in self.links.values_mut() {
                link.save(store);
            }
        }
        self.shards.write(store);
        if !self.traced.stamps.is_empty() {
            let traced = std::mem::take(&mut self.traced);
            self.event(Event::Traced(traced));
        }
        Ok(())
    }

    /// The next output, in order. Empty the queue after every durable turn.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call again with [`Input::Tick`] if nothing else happens, in `mono_us`.
    pub fn next_deadline(&self, now: Now) -> u64 {
        let links = self.links.values().filter_map(Link::next_deadline).min();
        let waiting = self.waiting.next_deadline();
        // The reservation is renewed twice a second, also when nothing happens.
        let idle = now.mono_us + crate::limits::HEARTBEAT_US;
        let transfers = self.transfers.next_deadline(now);
        let recount = self.sweep.next_recount(now);
        let sweep = self.sweep.next_step(now);
        links
            .into_iter()
            .chain(waiting)
            .chain(self.pending.next_want())
            .chain(transfers)
            .chain(self.inspections.next_deadline(now))
            .chain(self.verifications.next_deadline(now))
            .chain(recount)
            .chain(self.moves.next_deadline(now))
            .chain([sweep])
            .fold(idle, u64::min)
            .max(now.mono_us)
    }

    /// Writes what a clean stop leaves behind: the next start need not wait for the reservation to pass.
    pub fn stop(&mut self, store: &mut Store) {
        for link in self.links.values_mut() {
            link.save(store);
        }
        self.shards.write(store);
        let row = ClockRow { reserved_ms: 0, last: self.clock.last() };
        store.put_row(Space::Node, NodeKey::Clock.encode(), &row);
    }

    /// What to show a peer when a link begins.
    pub fn hello(&self, store: &Store, peer: NodeId) -> Hello {
        Hello {
            node: self.identity.node,
            region: self.identity.region.clone(),
            origin: self.origin,
            store_id: self.store_id,
            head: store.head(),
            saw_you: self.links.get(&peer).map(|link| (link.row().store_id, link.row().seen)),
            replaced: self.links.get(&peer).is_some_and(|link| link.row().replaced),
        }
    }

    /// Issues `count` stamps that nobody else issues, rising through restarts.
    pub fn stamps(&mut self, now: Now, store: &mut Store, count: u16) -> Result<Vec<Stamp>, ClockError> {
        self.reserve(now, store);
        (0..count).map(|_| self.clock.tick()).collect()
    }

    /// Shards that came as a whole and of which keys may not be merged yet: whoever reads a key that is staged sees what
    /// was here before. See [`Input::Settle`].
    pub fn settling(&self) -> Vec<ShardId> {
        self.transfers.settling().collect()
    }

    /// How fast background work goes: what the driver may take of late frames.
    pub fn pace(&self, now: Now) -> Pace {
        self.budget.pace(now)
    }

    /// No stamp at or beyond this is issued, Unix ms.
    pub fn reserved_ms(&self) -> u64 {
        self.clock.reserved_ms()
    }

    /// The origin of this life.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The record of a scope, as far as this node knows; `None`: no rule has such a name, or it was dropped.
    pub fn record(&self, scope: &ScopeName) -> Option<PlacementRecord> {
        self.records.record(scope)
    }

    /// Where scopes are, as far as this node knows.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Whether a shard is held here and by the region of a peer.
    pub(crate) fn shares(&self, row: &ShardRow, peer: NodeId) -> bool {
        let Some(link) = self.links.get(&peer) else { return false };
        self.held(row).is_some_and(|record| record.members().any(|region| region == link.region()))
    }

    /// Whether this region serves a shard, by the record that it adopted.
    pub(crate) fn serves(&self, store: &Store, shard: ShardId) -> Result<bool, ReplicaError> {
        let Some(row) = store.shard(shard)? else { return Ok(false) };
        Ok(self.held(&row).is_some_and(|record| record.serving.contains(&self.identity.region)))
    }

    /// How this node and its links are.
    pub fn status(&self, now: Now) -> Status {
        Status {
            budget: self.budget.status(now),
            scrub: self.sweep.scrub_status(now),
            origin: self.origin,
            store_id: self.store_id,
            fenced: self.fenced,
            clock: self.clock.ready(),
            stamp: self.clock.last(),
            pending: self.pending.size(),
            documents: self.documents.size(),
            waiting: self.waiting.len(),
            times_full: self.times_full,
            caches: self.caches(),
            reserved_ms: self.clock.reserved_ms(),
            expired_keys: self.census.expired(now.wall_ms),
            degraded: self.census.degraded().into_iter().take(NAMED_IN_STATUS).collect(),
            parked_shards: self.census.parked_shards(),
            disputed_places: self.documents.disputed(),
            dropped: self.dropped.clone(),
            counted: self.census.is_whole(),
            long_histories: self.documents.long_histories(),
            log_floor: self.log_floor,
            stable_commit: self.stable_commit(),
            rebuild: self.rebuild_status(now),
            links: self.links.values().map(|link| link.status(now)).collect(),
        }
    }

    fn caches(&self) -> Vec<CacheStatus> {
        let (entries, bytes) = self.documents.size();
        let documents = CacheStatus {
            name: "documents",
            bytes,
            limit: self.identity.cache_bytes - self.identity.cache_bytes / VALUES_CACHE_SHARE,
            entries,
            looked_up: self.documents.looked_up(),
        };
        let entries = self.shards.len();
        let vectors = CacheStatus {
            name: "vectors",
            bytes: entries * CACHED_SHARD_BYTES,
            limit: CACHED_SHARDS * CACHED_SHARD_BYTES,
            entries,
            looked_up: self.shards.looked_up(),
        };
        let (entries, bytes) = self.recent.size();
        let recent = CacheStatus {
            name: "recent changes",
            bytes,
            limit: RECENT_BYTES,
            entries,
            looked_up: self.recent.looked_up(),
        };
        vec![documents, vectors, recent]
    }

    /// Every change in a commit up to this is stable: every member has told that it has it, and whatever it made before
    /// it told so is applied here.
    pub fn stable_commit(&self) -> u64 {
        self.links.values().map(Link::stable).min().unwrap_or(u64::MAX)
    }

    /// How long ago, at most, a write in another region can be without being visible here, in ms; `None` while a link
    /// has said nothing.
    pub fn staleness_ms(&self) -> Option<u64> {
        let wall = self.clock.wall_ms();
        self.links
            .values()
            .map(|link| link.closed().map(|closed| wall.saturating_sub(closed.unix_ms())))
            .try_fold(0, |most, staleness| Some(most.max(staleness?)))
    }

    /// Renews the reservation when it runs low. It is durable with the turn in which a stamp beyond the old one is used.
    fn reserve(&mut self, now: Now, store: &mut Store) {
        self.clock.set_wall(now.wall_ms);
        if let Some(reserved_ms) = self.clock.reservation_due() {
            let row = ClockRow { reserved_ms, last: self.clock.last() };
            store.put_row(Space::Node, NodeKey::Clock.encode(), &row);
            self.clock.reserved(reserved_ms);
        }
    }

    /// Logs a change that was just merged, whoever made it: body, vector, sums, and the place where links see it.
    pub(crate) fn record_change(
        &mut self,
        store: &mut Store,
        id: ShardId,
        key: LogKey,
        logged: (Bytes, Option<NodeId>),
    ) -> Result<(), ReplicaError> {
        let Some(shard) = self.shards.cached_mut(id) else { unreachable!("the caller just used the shard") };
        shard.vector.advance(key.origin, key.seq);
        let (bytes, from) = logged;
        store.log(key, bytes.clone());
        self.recent.push(store.open_commit(), Logged { key, bytes, from });
        Ok(())
    }

    /// As what a key's row counts.
    pub(crate) fn counted(&self, key: &str, row: &ValueRow) -> Counted {
        Counted::of(row, self.shards.fingerprints().of(key, row))
    }

    /// Writes a key's row and counts it. `was` is how it was counted before.
    pub(crate) fn put_value(
        &mut self,
        store: &mut Store,
        id: ShardId,
        key: &str,
        was: &Counted,
        row: &ValueRow,
    ) {
        let name = ValueKey { shard: id, key }.encode();
        let is = self.counted(key, row);
        let scope = is.is_parked().then(|| scope_of(store, id)).flatten();
        self.census.changed(name.as_bytes(), id, (was, &is), scope);
        if was.fingerprint != is.fingerprint {
            let Some(shard) = self.shards.cached_mut(id) else { unreachable!("the caller used the shard") };
            let known = shard.digest.zip(was.fingerprint).zip(is.fingerprint);
            shard.digest = known.map(|((sum, was), is)| sum.wrapping_sub(was).wrapping_add(is));
            self.sweep.changed(id, name.as_bytes(), (was.fingerprint, is.fingerprint));
        }
        store.put_value(name, was.standing, row);
    }

    /// Counts a key as parked whose row was found to be damaged; the sweep may have found that before.
    pub(crate) fn count_unreadable(&mut self, store: &mut Store, shard: ShardId, key: &str, problem: &str) {
        let name = ValueKey { shard, key }.encode();
        let unreadable = Counted::unreadable(problem.to_owned());
        let scope = scope_of(store, shard);
        self.census.changed(name.as_bytes(), shard, (&unreadable, &unreadable), scope);
        let mut keys = store.tally().keys;
        keys.remove(unreadable.standing);
        keys.add(unreadable.standing);
        store.recount_keys(keys);
    }

    /// The digest of a shard was summed up anew.
    pub(crate) fn recounted_digest(
        &mut self,
        store: &mut Store,
        (id, sum): (ShardId, u128),
    ) -> Result<(), ReplicaError> {
        let (_, digest) = self.shards.state(store, id)?;
        if digest == Some(sum) || self.transfers.is_settling(id) {
            return Ok(());
        }
        let Some(shard) = self.shard(store, id)? else { return Ok(()) };
        shard.digest = Some(sum);
        if digest.is_some() {
            let scope = shard.record.scope.name.clone();
            self.sweep.found_damage();
            self.event(Event::Rotted { scope, shard: id });
        }
        Ok(())
    }

    /// A shard that is known here and held by rule, to change.
    pub(crate) fn shard(
        &mut self,
        store: &mut Store,
        id: ShardId,
    ) -> Result<Option<&mut Shard>, ReplicaError> {
        let Some(row) = store.shard(id)? else { return Ok(None) };
        let Some(record) = self.held(&row) else { return Ok(None) };
        self.shards.get(store, &row, id, || record)?;
        Ok(self.shards.cached_mut(id))
    }

    /// Remembers a document that was just used if its history is long.
    pub(crate) fn note_history(&mut self, shard: ShardId, key: &str) {
        if let Some(Shard { record, .. }) = self.shards.cached(shard) {
            self.documents.note_history(shard, key, &record.scope.name, &record.policy);
        }
    }

    /// Whether this node's clock is ahead of most of those it hears.
    pub(crate) fn judge_clock(&mut self, now: Now) {
        let offsets: Vec<i64> = self.links.values().filter_map(|link| link.certain_offset_ms(now)).collect();
        let ahead = offsets.iter().filter(|offset| **offset < -FENCE_OFFSET_MS).count();
        self.fenced = ahead * 2 > self.links.len() && ahead > 0;
    }

    /// A write that waits is on a peer's disk.
    pub(crate) fn acknowledged(&mut self, shard: ShardId, seq: u64, node: NodeId, region: &RegionName) {
        let serves =
            |scope: &ScopeName| self.records.record(scope).is_some_and(|r| r.serving.contains(region));
        for waiting in self.waiting.acknowledged(shard, self.origin, seq, (node, region), serves) {
            self.outputs.push_back(Output::Reply { ticket: waiting.ticket, outcome: Ok(waiting.done) });
        }
    }

    fn give_up_waiting(&mut self, now: Now) {
        while let Some(Waiting { ticket, needs, on, .. }) = self.waiting.give_up(now.mono_us) {
            let outcome = Err(not_acknowledged(needs, on));
            self.outputs.push_back(Output::Reply { ticket, outcome });
        }
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}

/// The record of a shard's scope, if it has that shard and kind.
pub(crate) fn record_of(records: &Records, row: &ShardRow) -> Option<PlacementRecord> {
    records.record_of(&row.scope, row.kind, row.index)
}

/// A policy's paths. They were validated with the policy; one that is not a path would match nothing.
fn paths_of(policy: &Policy) -> Paths {
    let parse = |texts: &[String]| texts.iter().filter_map(|text| PathPattern::parse(text).ok()).collect();
    Paths { text: parse(&policy.text), counters: parse(&policy.counters) }
}

/// The log key of a change.
pub(crate) fn log_key(shard: ShardId, change: &Change) -> LogKey {
    LogKey { shard, origin: change.origin, seq: change.seq }
}
