//! One link to each peer: the walk over our log for it, what it told, and the closed times both ways.
//!
//! The sender walks its own commits from the peer's *cursor* and sends what the peer lacks: always what this node
//! authored; what others authored only when the peer does not hear them or lacks it for too long. The *position* runs
//! ahead of the cursor. Everything between is *outstanding*; the cursor passes a commit when the peer has told that it
//! applied every change of it, from whomever it came. After any outage the walk resumes at the cursor.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tropism_crdt::{NodeId, Origin, Stamp};
use tropism_placement::{RegionName, ShardId};
use tropism_storage::rows::{Life, Seen};
use tropism_storage::{LogKey, NodeKey, PeerRow, Reads, Space, Store};

use crate::credit::Credit;
use crate::frame::{Frame, FrameBody, Heartbeat, Hello, Told, Want, Wholeness};
use crate::inspect::Unmet;
use crate::limits::{
    BATCH_LINGER_US, COMPARE_US, DEAD_US, FRAME_BYTES, HEARTBEAT_US, OUTSTANDING_CHANGES, RESEND_US,
    SILENT_US, WALKED_CHANGES, WALKED_US,
};
use crate::moves::held_by;
use crate::outstanding::Outstanding;
use crate::rebuild::Rebuild;
use crate::recent::Logged;
use crate::reconcile::{Owes, Suspects};
use crate::replica::{Event, Now, Output, Peer, Replica, ReplicaError};
use crate::transfer::Giving;

/// The smallest change, about: so many are read from the log at most for the credit that is left.
const LEAST_CHANGE_BYTES: usize = 64;
/// Stability samples remembered per link; more are merged.
const SAMPLES: usize = 64;

/// A peer and what is known of it.
#[derive(Debug)]
pub(crate) struct Link {
    peer: Peer,
    row: PeerRow,
    row_dirty: bool,
    session: Option<Session>,
    /// Every change of the peer stamped up to this is applied here.
    closed: Option<Stamp>,
    /// Every change in our commits up to this is stable as far as this peer goes.
    stable: u64,
    /// Which of the other peers know the store that this peer has now, and whether everything is here that they had
    /// logged by then: an earlier store of the peer may have sent to them, and to nobody else, what had not seen changes
    /// that the present one tells.
    agreed: BTreeMap<NodeId, Agreed>,
    down_since_us: u64,
    pub(crate) counted: LinkCounts,
}

/// What happened on a link since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounts {
    /// Times the link started again from its cursor.
    pub resends: u64,
    /// Comparisons of vectors that were begun here.
    pub compared: u64,
    /// Comparisons in which the peer's sums differed.
    pub unequal: u64,
    /// Shards whose vectors the peer showed.
    pub vectors: u64,
    /// Changes that the peer was asked for.
    pub wanted: u64,
    /// Changes that the peer sent although they were here.
    pub duplicates: u64,
    /// Inspections of shards that were begun here.
    pub inspected: u64,
    /// Shards whose digests differed from the peer's.
    pub digests_differed: u64,
    /// Keys of which the peer sent another state.
    pub keys_differed: u64,
    /// Keys that its state repaired here.
    pub keys_repaired: u64,
}

/// A peer knows the store of another.
#[derive(Debug, Clone, Copy)]
enum Agreed {
    /// By this commit of its own.
    By(u64),
    /// And what it had logged by then is here.
    Held,
}

/// What lives as long as one connection.
#[derive(Debug)]
struct Session {
    /// The peer's origin: it has whatever that made.
    peer_origin: Origin,
    since_us: u64,
    // Sending.
    round: u64,
    number: u64,
    /// The peer holds everything that was logged up to this commit, but for what is owed to it.
    cursor: u64,
    /// What no log reaches back to, and the peer may lack.
    owes: Option<Owes>,
    /// Every change up to and including this commit was sent, or left to somebody else.
    position: u64,
    /// Changes of commit `position + 1` already dealt with.
    partial: usize,
    /// When changes that wait for company are sent without.
    batch_due_us: Option<u64>,
    /// When the log is read on for the peer.
    walk_due_us: Option<u64>,
    credit: Credit,
    outstanding: Outstanding,
    last_batch_us: u64,
    last_progress_us: u64,
    told: BTreeMap<(ShardId, Origin), u64>,
    tell_at_us: Option<u64>,
    next_heartbeat_us: u64,
    pub(crate) next_compare_us: u64,
    // Receiving.
    peer_round: u64,
    peer_number: u64,
    in_order: bool,
    last_heard_us: u64,
    peer_hears: Vec<NodeId>,
    last_heartbeat: (u64, u64),
    rtt_us: Option<u64>,
    offset_ms: Option<(i64, i64, u64)>,
    peer_told_commit: u64,
    samples: VecDeque<(u64, u64)>,
    pub(crate) suspects: Suspects,
    unmet: Unmet,
    giving: Vec<Giving>,
    pub(crate) give_due_us: u64,
}

/// How a link is.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// To whom.
    pub peer: Peer,
    /// Whether a connection stands and the peer was heard lately.
    pub up: bool,
    /// Since when (`mono_us`) the connection stands, or the peer is silent.
    pub since_us: u64,
    /// When it was last heard, `mono_us`.
    pub last_heard_us: Option<u64>,
    /// Round trip, us.
    pub rtt_us: Option<u64>,
    /// The peer's wall clock less ours, ms, and how far off that may be.
    pub offset_ms: Option<(i64, i64)>,
    /// It holds everything we logged up to this commit.
    pub cursor: u64,
    /// Changes that it has not told back, and their bytes.
    pub outstanding: (usize, usize),
    /// Every change of its own stamped up to this is applied here.
    pub closed: Option<Stamp>,
    /// Whether it is being shown every shard, because our log does not reach back to what it has.
    pub owes: bool,
    /// What happened since the start.
    pub counted: LinkCounts,
}

impl Link {
    /// A link to a peer of which `row` is known.
    pub(crate) fn new(peer: Peer, row: PeerRow) -> Self {
        Self {
            peer,
            row,
            row_dirty: false,
            session: None,
            closed: None,
            stable: 0,
            agreed: BTreeMap::new(),
            down_since_us: 0,
            counted: LinkCounts::default(),
        }
    }

    pub(crate) fn row(&self) -> &PeerRow {
        &self.row
    }

    pub(crate) fn region(&self) -> &RegionName {
        &self.peer.region
    }

    pub(crate) fn closed(&self) -> Option<Stamp> {
        self.closed
    }

    pub(crate) fn stable(&self) -> u64 {
        self.stable
    }

    pub(crate) fn is_up(&self) -> bool {
        self.session.is_some()
    }

    /// Whether the peer was heard of lately: a connection stands, or went only just now.
    pub(crate) fn answers(&self, now: Now) -> bool {
        self.is_up() || self.down_since_us + DEAD_US > now.mono_us
    }

    /// Whether a connection stands and the peer is not silent.
    pub(crate) fn hears(&self, now: Now) -> bool {
        self.session.as_ref().is_some_and(|session| session.last_heard_us + SILENT_US > now.mono_us)
    }

    /// Nothing of a shard goes to the peer or is wanted of it any more.
    pub(crate) fn forget_shard(&mut self, shard: ShardId) {
        if let Some(session) = &mut self.session {
            session.outstanding.forget(shard);
            session.told.retain(|(of, _), _| *of != shard);
            session.suspects.forget(shard);
            session.giving.retain(|giving| !giving.is_of(shard));
            if let Some(owes) = &mut session.owes {
                owes.forget(shard);
            }
        }
    }

    /// Shards on their way to the peer.
    pub(crate) fn giving(&mut self) -> Option<&mut Vec<Giving>> {
        self.session.as_mut().map(|session| &mut session.giving)
    }

    /// Whether it is time to send states.
    pub(crate) fn give_due(&self, now: Now) -> bool {
        let ready = |session: &Session| session.give_due_us <= now.mono_us && !session.giving.is_empty();
        self.session.as_ref().is_some_and(ready)
    }

    /// States were sent: the next ones when others had their turn.
    pub(crate) fn gave(&mut self, next_us: u64) {
        if let Some(session) = &mut self.session {
            session.give_due_us = next_us;
        }
    }

    /// What is owed to the peer, if anything is.
    pub(crate) fn owes(&mut self) -> Option<&mut Owes> {
        self.session.as_mut()?.owes.as_mut()
    }

    /// Nothing is owed any more.
    pub(crate) fn quit(&mut self) {
        if let Some(session) = &mut self.session {
            session.owes = None;
        }
        self.settle_cursor();
    }

    /// The log begins behind what the peer is known to have: from `head` on it gets what is logged, and it is shown every
    /// shard for what came before. Says whether that is new.
    pub(crate) fn fall_behind(&mut self, now: Now, log_floor: u64, head: u64) -> bool {
        let Some(session) = &mut self.session else { return false };
        if session.cursor + 1 >= log_floor {
            return false;
        }
        session.owes = Some(Owes::default());
        (session.cursor, session.position, session.partial) = (head, head, 0);
        session.outstanding = Outstanding::default();
        session.round += 1;
        session.number = 0;
        session.last_progress_us = now.mono_us;
        true
    }

    /// The peer shows, with what it had logged up to a commit, that it has everything of an origin up to a number.
    pub(crate) fn showed(&mut self, commit: u64, shard: ShardId, origin: Origin, seq: u64) {
        if let Some(session) = &mut self.session {
            session.peer_told_commit = session.peer_told_commit.max(commit);
            session.outstanding.told(shard, origin, seq);
        }
    }

    /// The peer shows a shard; says whether its keys are to be looked at although vectors never meet.
    pub(crate) fn unmet(&mut self, now: Now, shard: ShardId, equal: bool) -> bool {
        self.session.as_mut().is_some_and(|session| session.unmet.shown(now, shard, equal))
    }

    pub(crate) fn suspects(&mut self) -> Option<&mut Suspects> {
        self.session.as_mut().map(|session| &mut session.suspects)
    }

    /// Whether it is time to compare vectors with this peer; moves the time on.
    pub(crate) fn compare_due(&mut self, now: Now) -> bool {
        let Some(session) = &mut self.session else { return false };
        let due = session.next_compare_us <= now.mono_us;
        if due {
            session.next_compare_us = now.mono_us + COMPARE_US;
        }
        due
    }

    /// Something that came in order was dropped: as if its frame were missing.
    pub(crate) fn dropped(&mut self) {
        if let Some(session) = &mut self.session {
            session.in_order = false;
        }
    }

    /// Numbers a frame, if the link stands.
    pub(crate) fn frame(&mut self, body: FrameBody) -> Option<Frame> {
        let session = self.session.as_mut()?;
        let frame = Frame { round: session.round, number: session.number, body };
        session.number += 1;
        Some(frame)
    }

    pub(crate) fn save(&mut self, store: &mut Store) {
        if self.row_dirty {
            self.row_dirty = false;
            store.put_row(Space::Node, NodeKey::Peer(self.peer.node).encode(), &self.row);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let session = self.session.as_ref()?;
        // What waits for credit goes on when the peer tells.
        let left = session.outstanding.left.first().map(|(due, _)| *due);
        let left = left.filter(|_| session.outstanding.bytes < session.credit.bytes());
        let giving = session.giving.iter().any(Giving::is_ready).then_some(session.give_due_us);
        let owed = session.owes.as_ref().map(|owes| owes.due_us);
        let suspects = session.suspects.next_due();
        let times =
            [session.tell_at_us, session.batch_due_us, session.walk_due_us, left, suspects, giving, owed];
        Some(times.into_iter().flatten().fold(session.next_heartbeat_us, u64::min))
    }

    /// The peer's clock less ours as far as it is certain: the end of the interval that is nearer to zero.
    pub(crate) fn certain_offset_ms(&self, now: Now) -> Option<i64> {
        let (offset, error, at_us) = self.session.as_ref()?.offset_ms?;
        (at_us + DEAD_US > now.mono_us)
            .then(|| if offset < 0 { (offset + error).min(0) } else { (offset - error).max(0) })
    }

    pub(crate) fn status(&self, now: Now) -> LinkStatus {
        let session = self.session.as_ref();
        LinkStatus {
            peer: self.peer.clone(),
            up: session.is_some_and(|s| s.last_heard_us + SILENT_US > now.mono_us),
            since_us: match session {
                Some(session) if session.last_heard_us + SILENT_US > now.mono_us => session.since_us,
                Some(silent) => silent.last_heard_us,
                None => self.down_since_us,
            },
            last_heard_us: session.map(|s| s.last_heard_us),
            rtt_us: session.and_then(|s| s.rtt_us),
            offset_ms: session.and_then(|s| s.offset_ms).map(|(offset, error, _)| (offset, error)),
            cursor: self.row.cursor,
            outstanding: session.map_or((0, 0), |s| (s.outstanding.count, s.outstanding.bytes)),
            closed: self.closed,
            owes: session.is_some_and(|s| s.owes.is_some()),
            counted: self.counted,
        }
    }

    /// Moves the cursor to just before the first commit that the peer lacks something of.
    pub(crate) fn settle_cursor(&mut self) {
        let Some(session) = &mut self.session else { return };
        let first = session.outstanding.commits.first_key_value().map(|(commit, _)| commit - 1);
        session.cursor = session.cursor.max(first.unwrap_or(session.position));
        if session.cursor > self.row.cursor && session.owes.is_none() {
            self.row.cursor = session.cursor;
            self.row_dirty = true;
        }
    }

    /// Starts the walk again from the cursor: what was in flight counts as lost.
    fn rewind(&mut self, now: Now) {
        if let Some(session) = &mut self.session {
            session.round += 1;
            session.number = 0;
            session.position = session.cursor;
            session.partial = 0;
            session.outstanding = Outstanding::default();
            session.last_progress_us = now.mono_us;
            self.counted.resends += 1;
        }
    }
}

impl Replica {
    /// A connection stands.
    pub(crate) fn link_up(&mut self, now: Now, store: &mut Store, hello: Hello) {
        let head = store.head();
        let own_store = self.store_id;
        let (own, found) = (self.origin, self.found);
        let log_floor = self.log_floor;
        let Some(link) = self.links.get_mut(&hello.node) else { return };
        // What was seen of another life must be among what the next one found, however far the store has come since. A
        // life is told by its random bits too: after a clock that was ahead an old copy can begin one under the very
        // incarnation that peers saw.
        let own_life =
            |saw: &Seen| saw.incarnation == own.incarnation && (saw.random == own.random || saw.random == 0);
        let after = |saw: &Seen, life: &Life| {
            let another = saw.random != 0 && life.random != 0 && life.random != saw.random;
            life.incarnation > saw.incarnation || life.incarnation == saw.incarnation && another
        };
        let ended = hello.saw_you.and_then(|(_, saw)| self.lives.lives.iter().find(|life| after(&saw, life)));
        let ended = ended.map_or(found.commit, |life| life.found);
        if let Some((store_id, saw)) = hello.saw_you
            && store_id == own_store
            && (saw.commit > ended || saw.commit == found.commit && saw.hash != found.hash)
            && !own_life(&saw)
        {
            let reason = format!(
                "commit {} of this store was seen in incarnation {}, which ended here with commit {ended}",
                saw.commit, saw.incarnation
            );
            let event = Event::Short { by: hello.node, reason };
            self.event(event);
            return;
        }
        let another = link.row.store_id != hello.store_id;
        if another {
            let replaced = link.row.store_id != 0 || link.row.replaced;
            link.row = PeerRow { store_id: hello.store_id, cursor: 0, seen: Seen::default(), replaced };
            link.row_dirty = true;
            link.stable = 0;
            link.agreed.clear();
            link.closed = None;
            for other in self.links.values_mut() {
                other.agreed.remove(&hello.node); // what the store knew that is gone
            }
        }
        self.rebuild_met(now, store, &hello);
        if another {
            // What it waits for may come back out of the store that is gone, long after others hold for stable what it has
            // not seen. Of what nobody applied nobody may be the one who has it.
            self.pending.forget_made_by(hello.node);
        }
        self.pending.forget_asked(hello.node);
        let Some(link) = self.links.get_mut(&hello.node) else { return };
        link.row.cursor = link.row.cursor.min(head.commit);
        link.session = Some(Session {
            peer_origin: hello.origin,
            since_us: now.mono_us,
            round: 0,
            number: 0,
            cursor: link.row.cursor,
            owes: None,
            position: link.row.cursor,
            partial: 0,
            batch_due_us: None,
            walk_due_us: None,
            credit: Credit::new(now.mono_us),
            outstanding: Outstanding::default(),
            last_batch_us: 0,
            last_progress_us: now.mono_us,
            told: BTreeMap::new(),
            tell_at_us: None,
            next_heartbeat_us: now.mono_us,
            next_compare_us: now.mono_us + SILENT_US,
            peer_round: 0,
            peer_number: 0,
            in_order: true,
            last_heard_us: now.mono_us,
            peer_hears: vec![self.identity.node],
            last_heartbeat: (0, 0),
            rtt_us: None,
            offset_ms: None,
            peer_told_commit: 0,
            samples: VecDeque::new(),
            suspects: Suspects::default(),
            unmet: Unmet::default(),
            giving: Vec::new(),
            give_due_us: 0,
        });
        if link.fall_behind(now, log_floor, head.commit) {
            self.event(Event::Owes(hello.node));
        }
    }

    /// The connection is gone.
    pub(crate) fn link_down(&mut self, peer: NodeId) {
        if let Some(link) = self.links.get_mut(&peer)
            && let Some(session) = link.session.take()
        {
            link.down_since_us = session.last_heard_us;
        }
        self.giver_gone(peer);
        self.inspections.forget(peer);
        self.verifications.forget(peer);
    }

    /// A frame came from a peer.
    pub(crate) fn frame(
        &mut self,
        now: Now,
        store: &mut Store,
        from: NodeId,
        frame: Frame,
    ) -> Result<(), ReplicaError> {
        let Some(session) = self.links.get_mut(&from).and_then(|link| link.session.as_mut()) else {
            return Ok(()); // of a connection that is gone
        };
        session.last_heard_us = now.mono_us;
        if frame.round > session.peer_round {
            session.peer_round = frame.round;
            session.peer_number = 0;
            session.in_order = true;
        }
        let next = frame.round == session.peer_round && frame.number == session.peer_number;
        if next {
            session.peer_number += 1;
        } else if frame.round == session.peer_round && frame.number > session.peer_number {
            session.in_order = false; // one is missing: no closed time until the peer starts again
        }
        let in_order = session.in_order && next;
        match frame.body {
            FrameBody::Changes(changes) => {
                self.changes(now, store, from, changes)?;
            }
            FrameBody::Told(told) => self.told(now, from, &told),
            FrameBody::Want(want) => self.wanted(store, from, want)?,
            FrameBody::Compare(compare) => self.compare(store, from, compare)?,
            FrameBody::Vectors(vectors) => self.vectors(now, store, from, vectors)?,
            FrameBody::BelowFloor(row) => self.below_floor(now, store, from, row)?,
            FrameBody::Fetch(fetch) => self.fetch(now, store, from, fetch)?,
            FrameBody::State(part) => self.state_part(now, store, from, part)?,
            FrameBody::Fetched(fetched) => self.fetched(now, from, fetched),
            FrameBody::Inspect(inspect) => self.inspect_asked(now, from, inspect),
            FrameBody::Inspected(answer) => self.inspected(now, from, answer)?,
            FrameBody::MoreCells(more) => self.more_cells(now, from, more),
            FrameBody::Cells(cells) => self.cells(now, from, cells),
            FrameBody::Differ(differ) => self.differ(now, store, from, differ)?,
            FrameBody::Verify(verify) => self.verify_asked(now, from, verify),
            FrameBody::Verified(verified) => self.verified(from, verified),
            FrameBody::Heartbeat(heartbeat) => self.heartbeat(now, from, &heartbeat, in_order),
            FrameBody::NotMember { shard, .. } => self.not_member(from, shard),
            FrameBody::AskHeld(ask) => self.ask_held(store, from, ask)?,
            FrameBody::Held(held) => self.held_told(from, held),
        }
        Ok(())
    }

    /// Notes that a vector rose, to be told to `to` within so many us.
    pub(crate) fn tell(
        &mut self,
        now: Now,
        to: NodeId,
        within_us: u64,
        shard: ShardId,
        origin: Origin,
        seq: u64,
    ) {
        let Some(session) = self.links.get_mut(&to).and_then(|link| link.session.as_mut()) else { return };
        let entry = session.told.entry((shard, origin)).or_insert(0);
        *entry = seq.max(*entry);
        let at = now.mono_us + within_us;
        session.tell_at_us = Some(session.tell_at_us.map_or(at, |due| due.min(at)));
    }

    /// A peer told what it applied.
    fn told(&mut self, now: Now, from: NodeId, told: &Told) {
        let own = self.origin;
        let Some(link) = self.links.get_mut(&from) else { return };
        let region = link.region().clone();
        let Some(session) = &mut link.session else { return };
        session.peer_told_commit = session.peer_told_commit.max(told.commit);
        let mut acknowledged = Vec::new();
        let before = session.outstanding.bytes;
        for (shard, entries) in &told.shards {
            for (origin, seq) in entries {
                if session.outstanding.told(*shard, *origin, *seq) {
                    session.last_progress_us = now.mono_us;
                }
                if *origin == own {
                    acknowledged.push((*shard, *seq));
                }
            }
        }
        session.credit.told(now.mono_us, before - session.outstanding.bytes);
        link.settle_cursor();
        for (shard, seq) in acknowledged {
            self.acknowledged(shard, seq, from, &region);
        }
    }

    /// A peer lacks changes that our log may hold.
    fn wanted(&mut self, store: &Store, from: NodeId, want: Want) -> Result<(), ReplicaError> {
        let Some(row) = store.shard(want.shard)? else { return Ok(()) };
        if !self.shares(&row, from) {
            return Ok(());
        }
        let first = LogKey { shard: want.shard, origin: want.origin, seq: want.from };
        if store.change(&first)?.is_none() {
            let (vector, _) = self.shards.state(store, want.shard)?;
            if vector.includes(&want.origin, want.from) {
                self.event(Event::BelowFloor(from));
                self.send(from, FrameBody::BelowFloor(row));
            }
            return Ok(());
        }
        let mut changes = Vec::new();
        let mut bytes = 0;
        for change in store.changes(want.shard, want.origin, want.from, want.to) {
            let change = change?;
            bytes += change.len();
            if bytes > FRAME_BYTES && !changes.is_empty() {
                break; // the rest is wanted again
            }
            changes.push(change);
        }
        self.send(from, FrameBody::Changes(changes));
        Ok(())
    }

    fn heartbeat(&mut self, now: Now, from: NodeId, beat: &Heartbeat, in_order: bool) {
        self.agree(from, beat);
        self.rebuild_heard(from, beat.your_cursor, (beat.wholeness, beat.keys));
        let waits = self.pending.any_of(from);
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        let mut others = peers.iter().filter(|peer| **peer != from);
        let Some(link) = self.links.get_mut(&from) else { return };
        let cursor = link.row.cursor;
        let Some(session) = &mut link.session else { return };
        session.peer_hears.clone_from(&beat.linked);
        session.last_heartbeat = (beat.sent_us, now.mono_us);
        let (echo, held) = beat.echo;
        if echo > 0
            && let Some(rtt) = now.mono_us.checked_sub(echo.saturating_add(held))
        {
            session.credit.measured(rtt);
            session.rtt_us = Some(session.rtt_us.map_or(rtt, |old| (old * 7 + rtt) / 8));
            let half_ms = i64::try_from(rtt / 2_000).unwrap_or(i64::MAX);
            let theirs = i64::try_from(beat.wall_ms).unwrap_or(i64::MAX).saturating_add(half_ms);
            let offset = theirs.saturating_sub(i64::try_from(now.wall_ms).unwrap_or(i64::MAX));
            session.offset_ms = Some((offset, half_ms + 1, now.mono_us));
        }
        if in_order && !waits {
            link.closed = link.closed.max(Some(beat.closed));
        }
        let seen = Seen { random: session.peer_origin.random, ..beat.seen };
        if seen > link.row.seen {
            link.row.seen = seen;
            link.row_dirty = true;
        }
        // Nothing is stable while a store is rebuilt: what may come back into it has not seen what is told meanwhile.
        if self.rebuild.is_some() || beat.wholeness != Wholeness::Whole {
            self.judge_clock(now);
            return;
        }
        // Stability: by its commit `peer_told_commit` the peer had told everything up to our `cursor`; once we hold what it
        // had logged by then, nothing of it that had not seen those changes is still to come.
        let sample = (cursor, session.peer_told_commit.max(beat.seen.commit));
        if session.samples.back().is_none_or(|last| last.0 < cursor) {
            if session.samples.len() >= SAMPLES {
                session.samples.pop_back();
            }
            session.samples.push_back(sample);
        }
        let agreed = others.all(|peer| matches!(link.agreed.get(peer), Some(Agreed::Held)));
        while let Some((stable, at)) = session.samples.front().copied()
            && agreed
            && beat.your_cursor >= at
        {
            link.stable = link.stable.max(stable);
            session.samples.pop_front();
        }
        self.judge_clock(now);
    }

    /// Notes which stores of the others a peer knows.
    fn agree(&mut self, from: NodeId, beat: &Heartbeat) {
        for (node, store) in &beat.stores {
            let Some(link) = self.links.get_mut(node).filter(|_| *node != from) else { continue };
            if link.row.store_id as u64 != *store {
                link.agreed.remove(&from);
                continue;
            }
            // What it took from an earlier store is in the commit that was open then, at the latest.
            let agreed = link.agreed.entry(from).or_insert(Agreed::By(beat.seen.commit + 1));
            if matches!(*agreed, Agreed::By(commit) if beat.your_cursor >= commit) {
                *agreed = Agreed::Held;
            }
        }
    }

    /// Lets every link send what it can.
    pub(crate) fn pump_links(&mut self, now: Now, store: &Store) -> Result<(), ReplicaError> {
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        let hears: Vec<NodeId> =
            self.links.values().filter(|link| link.hears(now)).map(|link| link.peer.node).collect();
        for peer in peers {
            let Some(session) = self.links.get(&peer).and_then(|link| link.session.as_ref()) else {
                continue;
            };
            if session.last_heard_us + DEAD_US <= now.mono_us {
                self.outputs.push_back(Output::Disconnect { peer, reason: "nothing heard" });
                self.link_down(peer);
                continue;
            }
            self.pump(now, store, peer)?;
            self.tell_due(now, store, peer);
            self.compare_due(now, peer);
            self.owed_due(now, store, peer)?;
            self.give(now, peer)?;
            self.want_suspects(now, store, peer)?;
            self.beat(now, store, peer, &hears);
        }
        Ok(())
    }

    /// Walks the log for one peer as far as credit allows.
    fn pump(&mut self, now: Now, store: &Store, peer: NodeId) -> Result<(), ReplicaError> {
        let own = self.identity.node;
        let open = store.open_commit();
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        let mut relayed = false;
        if let Some(session) = &link.session {
            let patience = RESEND_US + session.rtt_us.unwrap_or(0) * 2;
            if session.outstanding.bytes > 0 && session.last_progress_us + patience <= now.mono_us {
                link.rewind(now);
                self.outputs.push_back(Output::Event(Event::Resent(peer)));
            }
        }
        let region = link.peer.region.clone();
        let mut shown: Vec<ShardId> = Vec::new();
        let Some(session) = &mut link.session else { return Ok(()) };
        let peer_origin = Some(session.peer_origin);
        let linger = session.outstanding.bytes > 0 && session.last_batch_us + BATCH_LINGER_US > now.mono_us;
        let mut frames: Vec<Vec<Bytes>> = Vec::new();
        let mut batch = Batch::default();
        let mut walked = (0, 0);
        // What others should have sent and the peer still lacks.
        while let Some((due, key)) = session.outstanding.left.first().copied()
            && due <= now.mono_us
            && session.outstanding.bytes < session.credit.bytes()
        {
            match store.change(&key)? {
                Some(bytes) => {
                    session.outstanding.sent(key, due, bytes.len());
                    session.last_progress_us = now.mono_us;
                    batch.push(bytes, &mut frames);
                    relayed = true;
                }
                None => {
                    // It came with its shard as a whole: the peer says whether it has it, and if not asks for the shard.
                    session.outstanding.postpone(key, due, now.mono_us + SILENT_US);
                    shown.push(key.shard);
                }
            }
        }
        // What is not in memory any more is read at the pace of background work.
        let share = self.budget.share(now, WALKED_CHANGES, WALKED_US);
        let rests = session.walk_due_us.is_some_and(|due| due > now.mono_us);
        let mut read = 0;
        let mut known: Option<(ShardId, bool)> = None;
        while !linger
            && session.position < open
            && session.outstanding.bytes < session.credit.bytes()
            && session.outstanding.count < OUTSTANDING_CHANGES
        {
            let late = !self.recent.covers(session.position + 1);
            if late && (rests || read >= share.items) {
                break;
            }
            *if late { &mut walked.1 } else { &mut walked.0 } += 1;
            let room = (session.credit.bytes() - session.outstanding.bytes) / LEAST_CHANGE_BYTES + 1;
            let most = if late { room.min(share.items - read) } else { usize::MAX };
            let from = (session.position + 1, session.partial);
            let Some((commit, changes, whole)) = next_commit(&self.recent, store, from, open, most)? else {
                if session.position < open - 1 {
                    session.position = open - 1; // the open commit may still grow
                    session.partial = 0;
                }
                break;
            };
            if commit > session.position + 1 {
                session.position = commit - 1;
                session.partial = 0;
            }
            let mut stopped = false;
            read += if late { changes.len().max(1) } else { 0 };
            for logged in &changes {
                if session.outstanding.bytes >= session.credit.bytes() {
                    stopped = true;
                    break;
                }
                session.partial += 1;
                let author = logged.key.origin.node;
                // What another life of the peer made may have gone with its store.
                let has_it = Some(logged.key.origin) == peer_origin;
                let shard = logged.key.shard;
                let shared = match (self.shards.cached(shard), known) {
                    (Some(cached), _) => cached.record.members().any(|member| *member == region),
                    (None, Some((known, shared))) if known == shard => shared,
                    (None, _) => {
                        // After a start nothing is in memory: who holds it follows from what it is.
                        let row = store.shard(shard)?;
                        let held = row.and_then(|row| {
                            held_by(&self.records, &self.moves.deleting, &self.identity.region, &row)
                        });
                        let shared = held.is_some_and(|r| r.members().any(|member| *member == region));
                        known = Some((shard, shared));
                        shared
                    }
                };
                if has_it || !shared {
                    continue;
                }
                if logged.bytes.is_empty() {
                    session.outstanding.add(logged.key, commit, 0, now.mono_us + SILENT_US);
                    continue;
                }
                let comes_anyway = logged.from == Some(peer) || session.peer_hears.contains(&author);
                if author != own && author != peer && comes_anyway {
                    session.outstanding.add(logged.key, commit, 0, now.mono_us + SILENT_US);
                    continue;
                }
                relayed |= author != own;
                if session.outstanding.bytes == 0 {
                    session.last_progress_us = now.mono_us;
                }
                session.outstanding.add(logged.key, commit, logged.bytes.len().max(1), 0);
                batch.push(logged.bytes.clone(), &mut frames);
            }
            if stopped || commit == open {
                break; // the open commit may still grow
            }
            if whole {
                session.position = commit;
                session.partial = 0;
            }
        }
        let unsent = session.position + 1 < open || session.partial < self.recent.len(open);
        session.batch_due_us = (linger && unsent).then_some(session.last_batch_us + BATCH_LINGER_US);
        if session.outstanding.bytes >= session.credit.bytes() {
            session.credit.waits();
        }
        if !rests {
            let more = !self.recent.covers(session.position + 1) && session.position + 1 < open;
            let room = session.outstanding.bytes < session.credit.bytes()
                && session.outstanding.count < OUTSTANDING_CHANGES;
            let more = more && room && !linger;
            session.walk_due_us = (more || read > 0).then_some(now.mono_us + share.step_after(read));
        }
        if read > 0 {
            self.budget.did(share.us_of(read), |work| work.walked_changes += read as u64);
        }
        self.recent.count(walked);
        batch.finish(&mut frames);
        if !frames.is_empty() {
            session.last_batch_us = now.mono_us;
        }
        link.settle_cursor();
        for changes in frames {
            self.send(peer, FrameBody::Changes(changes));
        }
        shown.dedup();
        if !shown.is_empty() {
            self.show(store, peer, &shown, false)?;
        }
        if relayed {
            self.event(Event::Relayed(peer));
        }
        Ok(())
    }

    fn tell_due(&mut self, now: Now, store: &Store, peer: NodeId) {
        let Some(session) = self.links.get_mut(&peer).and_then(|link| link.session.as_mut()) else { return };
        if session.tell_at_us.is_none_or(|due| due > now.mono_us) {
            return;
        }
        session.tell_at_us = None;
        let mut shards: Vec<(ShardId, Vec<(Origin, u64)>)> = Vec::new();
        for ((shard, origin), seq) in std::mem::take(&mut session.told) {
            match shards.last_mut() {
                Some((last, entries)) if *last == shard => entries.push((origin, seq)),
                _ => shards.push((shard, vec![(origin, seq)])),
            }
        }
        // Told with the turn that applied it, so at the latest in the commit that is open now.
        let told = Told { commit: store.open_commit(), directory_revision: 0, shards };
        self.send(peer, FrameBody::Told(told));
    }

    fn beat(&mut self, now: Now, store: &Store, peer: NodeId, hears: &[NodeId]) {
        let open = store.open_commit();
        let head = store.head();
        let incarnation = self.origin.incarnation;
        let others = self.links.iter().filter(|(other, link)| **other != peer && link.row.store_id != 0);
        let stores = others.map(|(other, link)| (*other, link.row.store_id as u64)).collect();
        let wholeness = Rebuild::wholeness(self.rebuild.as_ref());
        let keys = store.tally().keys.total();
        let Some(link) = self.links.get_mut(&peer) else { return };
        let your_cursor = link.row.cursor;
        let Some(session) = &mut link.session else { return };
        if session.next_heartbeat_us > now.mono_us {
            return;
        }
        session.next_heartbeat_us = now.mono_us + HEARTBEAT_US;
        // Closed only up to what precedes this frame: nothing while the walk is behind.
        let walked = session.position >= open - 1 && session.partial == self.recent.len(open);
        let closed = if walked && session.owes.is_none() && wholeness == Wholeness::Whole {
            // No stamp of ours at or below the wall clock is issued from here on.
            self.clock.observe(Stamp::new(now.wall_ms, 0));
            self.clock.passed()
        } else {
            Stamp::ZERO
        };
        let (sent_us, heard_us) = session.last_heartbeat;
        let echo = (sent_us, if sent_us == 0 { 0 } else { now.mono_us - heard_us });
        let beat = Heartbeat {
            sent_us: now.mono_us,
            wall_ms: now.wall_ms,
            echo,
            closed,
            seen: Seen { incarnation, commit: head.commit, hash: head.hash, random: 0 },
            your_cursor,
            linked: hears.to_vec(),
            stores,
            wholeness,
            keys,
        };
        self.send(peer, FrameBody::Heartbeat(beat));
    }
}

/// The first commit at or behind `from`, up to the open one, that logged something; of it at most so many changes, if it
/// is that commit without the first ones, which were dealt with; and whether these are all. Only bodies that are wanted
/// are read: a large commit may go to a peer a few changes at a time.
#[allow(clippy::type_complexity, reason = "a commit, its changes, and whether they are all")]
fn next_commit(
    recent: &crate::recent::Recent,
    store: &Store,
    (from, partial): (u64, usize),
    open: u64,
    most: usize,
) -> Result<Option<(u64, Vec<Logged>, bool)>, ReplicaError> {
    let skipped = |commit: u64| if commit == from { partial } else { 0 };
    let kept = || {
        recent
            .next(from)
            .map(|(commit, changes)| (commit, changes[skipped(commit).min(changes.len())..].to_vec(), true))
    };
    if recent.covers(from) {
        return Ok(kept());
    }
    let Some(row) = store.commit_rows(from, open).next() else { return Ok(kept()) };
    let (commit, row) = row?;
    let left = &row.changes[skipped(commit).min(row.changes.len())..];
    let mut changes = Vec::with_capacity(left.len().min(most));
    for key in left.iter().take(most) {
        // Without a body: it came with its shard as a whole.
        let bytes = store.change(key)?.unwrap_or_default();
        changes.push(Logged { key: *key, bytes, from: None });
    }
    Ok(Some((commit, changes, left.len() <= most)))
}

/// Changes on their way into frames.
#[derive(Default)]
struct Batch {
    changes: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, change: Bytes, frames: &mut Vec<Vec<Bytes>>) {
        if self.bytes + change.len() > FRAME_BYTES && !self.changes.is_empty() {
            self.finish(frames);
        }
        self.bytes += change.len();
        self.changes.push(change);
    }

    fn finish(&mut self, frames: &mut Vec<Vec<Bytes>>) {
        if !self.changes.is_empty() {
            frames.push(std::mem::take(&mut self.changes));
        }
        self.bytes = 0;
    }
}
