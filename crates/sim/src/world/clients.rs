//! Clients: what they ask for, where, with what in their token, and what the answers tell the checkers.

use bytes::Bytes;
use tropism_crdt::document::PatchOp;
use tropism_crdt::json::{Json, Pointer};
use tropism_crdt::{ExpiryChange, TraceContext};
use tropism_placement::{Durability, Kind, ScopeId, ScopeName, ShardId};
use tropism_replica::{Input, Precondition, Token, Write, WriteDone, WriteError, WriteOp};
use tropism_storage::{Reads, Space, StagedKey};

use super::{What, World};
use crate::checkers::{Asked, Fact, Shown};
use crate::report::Sabotage;

/// Calls that a session finds unanswered before its client begins a new one.
const PATIENCE: u32 = 4;

/// How many of a client's calls, in percent, send a request once more that was sent some time ago.
const REPEATS_PERCENT: u64 = 4;

/// A client with one session and at most one call under way.
pub(super) struct Client {
    /// Its session, as a number that no other one has.
    session: u64,
    token: Token,
    /// Where it went last.
    at: usize,
    call: Option<Call>,
    unanswered: u32,
    /// A write of unknown outcome, to be sent again with its request id.
    again: Option<Wish>,
    /// A write with a request id that was sent some time ago, whatever became of it.
    earlier: Option<Wish>,
}

/// A call on its way.
struct Call {
    number: u64,
    at: usize,
    wish: Wish,
    /// The scope that was meant.
    scope: ScopeId,
    shards: Vec<ShardId>,
    began_us: u64,
    give_up_us: u64,
    /// The write's ticket, once the node took it.
    ticket: Option<u64>,
}

/// What a client wants.
#[derive(Clone)]
enum Wish {
    Get(ScopeName, String),
    Scan(ScopeName),
    Write(Box<Write>),
}

impl Client {
    pub(super) fn at(node: usize, session: u64) -> Self {
        let token = Token::default();
        Self { session, token, at: node, call: None, unanswered: 0, again: None, earlier: None }
    }
}

impl World {
    pub(super) fn operate(&mut self) {
        if self.settling || self.report.operations >= self.size.operations {
            return;
        }
        let pause =
            if self.rng.chance(5) { self.rng.between(0, 300_000) } else { self.rng.between(0, 40_000) };
        self.schedule(pause, What::Operate);
        self.look_after_parked();
        self.verify_now_and_then();
        let client = self.rng.index(self.clients.len());
        if self.rng.chance(50) && self.clients[client].call.is_none() {
            return self.call(client);
        }
        // A client without a session.
        let at = self.rng.index(self.nodes.len());
        if !self.nodes[at].is_open() {
            return self.cover("an operation found its node down");
        }
        let deadline_us = self.nodes[at].mono_base_us + self.now_us + self.rng.between(100_000, 3_000_000);
        let mut write = self.write_wish(at);
        write.deadline_us = deadline_us;
        self.send_write(at, None, write);
    }

    /// A client's next call.
    fn call(&mut self, client: usize) {
        if self.rng.chance(self.config.hops) {
            self.clients[client].at = self.rng.index(self.nodes.len());
        }
        let at = self.clients[client].at;
        if !self.nodes[at].is_open() {
            self.clients[client].at = self.rng.index(self.nodes.len());
            return self.cover("an operation found its node down");
        }
        let (scope, _) = self.rng.pick(&self.config.scopes).clone();
        let mut again = self.clients[client].again.take();
        if again.is_none() && self.rng.chance(REPEATS_PERCENT) {
            again.clone_from(&self.clients[client].earlier);
        }
        let wish = match (again, self.rng.between(0, 9)) {
            (Some(again), _) => {
                self.cover("a request was sent again");
                again
            }
            (None, 0..4) => Wish::Get(scope, format!("k{}", self.rng.between(1, self.config.keys))),
            (None, 4) => Wish::Scan(scope),
            (None, _) => Wish::Write(Box::new(self.write_wish(at))),
        };
        let (Wish::Get(scope, _) | Wish::Scan(scope)) = &wish else {
            let Wish::Write(write) = &wish else { return };
            let (scope, key) = (write.scope.clone(), write.key.clone());
            // Some stay for long: a node may have got them with a whole shard by then.
            if write.request_id.is_some() && self.rng.chance(40) {
                self.clients[client].earlier = Some(wish.clone());
            }
            return self.begin(client, wish, &scope, Some(&key));
        };
        let scope = scope.clone();
        let key = if let Wish::Get(_, key) = &wish { Some(key.clone()) } else { None };
        self.begin(client, wish, &scope, key.as_deref());
    }

    fn begin(&mut self, client: usize, wish: Wish, scope: &ScopeName, key: Option<&str>) {
        let at = self.clients[client].at;
        let record = self.checkers.truth.record(scope.as_str());
        let Some(record) = record else { return self.cover("a scope was asked for that is dropped") };
        let published = self.nodes[at].published.as_ref();
        if !published.is_some_and(|published| published.serving.contains(&record.scope)) {
            return self.cover("a scope was asked for where it is not");
        }
        let shards = match key {
            Some(key) => vec![record.shard(key).1],
            None => (0..record.spread).map(|index| ShardId::of(&record.scope, index)).collect(),
        };
        let patience = self.rng.between(100_000, 3_000_000);
        self.next_call += 1;
        let number = self.next_call;
        let (began_us, give_up_us) = (self.now_us, self.now_us + patience);
        self.clients[client].call =
            Some(Call { number, at, wish, scope: record.scope, shards, began_us, give_up_us, ticket: None });
        // A write may be answered at its deadline; after that only a node that is gone leaves it open.
        self.schedule(patience + 1_000_000, What::GiveUp { client, call: number });
        self.serve(client, true);
    }

    /// Calls that waited for what their token names, after a sync.
    pub(super) fn serve_waiting(&mut self, at: usize) {
        for client in 0..self.clients.len() {
            let waits = self.clients[client].call.as_ref();
            if waits.is_some_and(|call| call.at == at && call.ticket.is_none()) {
                self.serve(client, false);
            }
        }
    }

    /// Answers a client's call, or takes its write, if the node has what the token names.
    fn serve(&mut self, client: usize, first: bool) {
        let Some(call) = &mut self.clients[client].call else { return };
        let (at, give_up_us) = (call.at, call.give_up_us);
        let Some(published) = &self.nodes[at].published else { return };
        let left = match &call.wish {
            Wish::Get(..) | Wish::Scan(_) => !published.serving.contains(&call.scope),
            Wish::Write(_) => false, // the node says so
        };
        if left {
            self.clients[client].call = None;
            return self.cover("a reader found that its scope had left");
        }
        let view = published.snapshot.as_ref();
        let token = &self.clients[client].token;
        let Some(call) = &self.clients[client].call else { return };
        if token.missing(view, &call.shards).is_ok_and(|missing| !missing.is_empty()) {
            if first {
                self.cover("a session's call waited for what its token names");
            }
            return;
        }
        let shards = call.shards.clone();
        let mut token = token.clone();
        let wanted = match &call.wish {
            Wish::Write(_) => Vec::new(),
            Wish::Get(_, key) => vec![(shards[0], Some(key.clone()))],
            Wish::Scan(_) => shards.iter().map(|shard| (*shard, None)).collect(),
        };
        let staged: Vec<(ShardId, Option<String>)> = wanted
            .into_iter()
            .filter(|(shard, key)| {
                let staged = |key: &String| {
                    let piece = StagedKey { shard: *shard, key, piece: 0 }.encode();
                    view.get(Space::Staged, piece.as_bytes()).is_ok_and(|piece| piece.is_some())
                };
                published.settling.contains(shard) && key.as_ref().is_none_or(staged)
            })
            .collect();
        if !staged.is_empty() {
            self.cover("a reader waited until a staged state was merged");
            for (shard, key) in staged {
                self.input(at, Input::Settle { shard, key });
            }
            return;
        }
        let Some(call) = &self.clients[client].call else { return };
        match call.wish.clone() {
            Wish::Write(mut write) => {
                write.deadline_us = self.nodes[at].mono_base_us + give_up_us;
                let ticket = self.send_write(at, Some(client), *write);
                if let Some(call) = &mut self.clients[client].call {
                    call.ticket = Some(ticket);
                }
            }
            Wish::Get(scope, key) => {
                let row = view.value(shards[0], &key);
                let got = row.as_ref().ok().map(Option::as_ref);
                self.past.got(
                    (self.clients[client].session, call.began_us),
                    self.now_us,
                    at,
                    (&scope, &key),
                    got,
                );
                let row = row.ok().flatten();
                if let Some(row) = &row {
                    token.saw(shards[0], row, published.stable_commit);
                }
                let what = Shown::Key(&key, row.as_ref());
                self.checkers.see(Fact::Shown { client, node: at, shards: &shards, what });
                self.answered(client, at, token);
            }
            Wish::Scan(_) => {
                for shard in &shards {
                    token.set(*shard, view.vector(*shard).unwrap_or_default());
                }
                self.checkers.see(Fact::Shown { client, node: at, shards: &shards, what: Shown::Shards });
                self.answered(client, at, token);
            }
        }
    }

    /// A read was answered.
    fn answered(&mut self, client: usize, at: usize, token: Token) {
        self.report.reads += 1;
        self.cover("a session read");
        self.clients[client].call = None;
        self.keep_token(client, at, token);
    }

    /// The token that goes back to a client, without what is stable where it was answered.
    fn keep_token(&mut self, client: usize, at: usize, mut token: Token) {
        let entries = |token: &Token| token.iter().map(|(_, vector)| vector.len()).sum::<usize>();
        let before = entries(&token);
        if let Some(published) = &self.nodes[at].published {
            let forgets = self.size.sabotage == Some(Sabotage::ForgetsToken);
            let stable = if forgets { published.head } else { published.stable_commit };
            // A node that cannot read its log leaves the token as it is.
            token.forget_stable(published.snapshot.as_ref(), stable, published.head).ok();
        }
        if entries(&token) < before {
            self.cover("a token left out what is stable");
        }
        let session = &mut self.clients[client];
        (session.token, session.unanswered) = (token, 0);
    }

    /// A call took too long: the client goes elsewhere, and in the end begins a new session.
    pub(super) fn give_up(&mut self, client: usize, number: u64) {
        let session = &mut self.clients[client];
        let Some(call) = session.call.take_if(|call| call.number == number) else { return };
        let mut what = "a session was told that what it has seen is elsewhere";
        if let Some(ticket) = call.ticket {
            self.past.gave_up(ticket);
            what = "a write of a session had no answer";
            session.again = with_request_id(call.wish);
        }
        session.unanswered += 1;
        session.at = self.rng.index(self.nodes.len());
        self.cover(what);
        if self.clients[client].unanswered >= PATIENCE {
            self.next_call += 1;
            self.clients[client] = Client::at(self.rng.index(self.nodes.len()), self.next_call);
            self.checkers.see(Fact::NewSession { client });
            self.cover("a session was begun anew");
        }
    }

    /// A write that some client wants at a node.
    fn write_wish(&mut self, at: usize) -> Write {
        let (scope, kind) = self.rng.pick(&self.config.scopes).clone();
        let key = format!("k{}", self.rng.between(1, self.config.keys));
        let unique = self.rng.word();
        let now = self.now_of(&self.nodes[at]);
        let op = match self.rng.between(0, 99) {
            0..8 => WriteOp::Delete,
            8..12 => WriteOp::Expire,
            _ if kind == Kind::Counter => WriteOp::Increment { by: self.rng.between(0, 20) as i64 - 8 },
            _ if kind == Kind::Document => self.document_op(unique >> 1),
            _ => {
                let bytes = Bytes::from(unique.to_be_bytes().to_vec());
                WriteOp::PutRegister { content_type: String::new(), bytes }
            }
        };
        let expiry = if self.rng.chance(8) {
            ExpiryChange::At(now.wall_ms + self.rng.between(0, 5_000))
        } else {
            ExpiryChange::Keep
        };
        let durability = match self.rng.between(0, 9) {
            0 => Some(Durability::Regions(self.rng.between(1, self.config.regions.len() as u64) as u16)),
            1 => Some(Durability::Local),
            _ => None,
        };
        let (op, expiry) = if self.size.history { plain(op, expiry, kind, unique) } else { (op, expiry) };
        Write {
            scope,
            key,
            op,
            precondition: self.rng.chance(6).then_some(Precondition::Absent),
            expiry,
            durability,
            deadline_us: 0,
            request_id: (self.rng.chance(25) && !self.size.history).then(|| u128::from(unique).to_be_bytes()),
            trace: None,
        }
    }

    /// A put, or a patch of a field, a counter, a list or a text.
    fn document_op(&mut self, unique: u64) -> WriteOp {
        let path = |text: &str| Pointer::parse(text).unwrap_or_else(|error| panic!("{error}"));
        let field = format!("/f{}", self.rng.between(0, 3));
        let value = Json::Int(unique as i64);
        let operation = match self.rng.between(0, 9) {
            0..3 => {
                let fields = [
                    ("n", Json::Int(0)),
                    ("text", Json::String("abc".into())),
                    ("list", Json::Array(vec![value])),
                ];
                let value =
                    Json::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
                return WriteOp::PutDocument { value, base: None };
            }
            3 => PatchOp::Increment { path: path("/n"), by: 3 },
            4 => PatchOp::Insert { path: path("/list/0"), value },
            5 => PatchOp::Remove { path: path(&field) },
            6 => PatchOp::SpliceText {
                path: path("/text"),
                index: 1,
                delete: 1,
                insert: format!("<{unique}>"),
            },
            _ => PatchOp::Set { path: path(&field), value },
        };
        WriteOp::Patch { operations: vec![operation], base: None }
    }

    /// Hands a write to a node's replica.
    fn send_write(&mut self, at: usize, client: Option<usize>, mut write: Write) -> u64 {
        self.report.operations += 1;
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        // The trace names the write in the change that it becomes.
        let trace_id = u128::from(ticket).to_be_bytes();
        write.trace = Some(TraceContext { trace_id, span_id: [0; 8], flags: 1 });
        let asked = Asked {
            client,
            scope: write.scope.clone(),
            key: write.key.clone(),
            op: write.op.clone(),
            expiry: write.expiry,
            regions: match write.durability {
                Some(Durability::Regions(regions)) => usize::from(regions),
                _ => 1,
            },
            owners: match write.durability {
                Some(Durability::Local) => 1,
                _ => self.checkers.truth.neighbours(at) / 2 + 1,
            },
            at,
            request_id: write.request_id.map(u128::from_be_bytes),
        };
        self.journal.note(self.now_us, at, || format!("is asked for write {ticket}: {asked:?}"));
        let session = client.map(|client| self.clients[client].session);
        self.past.wrote(session, self.now_us, at, ticket, &asked);
        self.checkers.truth.asked.insert(ticket, asked);
        match (self.size.sabotage, &mut write.op, &mut write.expiry) {
            (Some(Sabotage::AsksForOneDisk), _, _) if write.durability.is_none() => {
                write.durability = Some(Durability::Local);
            }
            (Some(Sabotage::StripsRequestId), _, _) => write.request_id = None,
            (Some(Sabotage::SwallowsDelete), op @ WriteOp::Delete, _) => *op = WriteOp::Expire,
            (Some(Sabotage::MovesExpiry), _, ExpiryChange::At(ms)) => *ms += 1_000,
            (Some(Sabotage::Miscounts), WriteOp::Increment { by }, _) => *by += 1,
            (Some(Sabotage::AltersValue), WriteOp::PutRegister { bytes, .. }, _) => {
                *bytes = Bytes::from_static(b"another");
            }
            _ => {}
        }
        self.input(at, Input::Write { ticket, write: Box::new(write) });
        ticket
    }

    pub(super) fn replied(&mut self, at: usize, ticket: u64, mut outcome: Result<WriteDone, WriteError>) {
        if self.size.sabotage == Some(Sabotage::DeniesEffect) && outcome.is_ok() && self.rng.chance(1) {
            outcome = Err(WriteError::Overloaded);
        }
        self.checkers.answered(ticket, &outcome);
        self.past.replied(self.now_us, ticket, &outcome);
        if let Ok(done) = &outcome
            && done.change.is_some()
        {
            self.report.acknowledged += 1;
        }
        self.cover(match &outcome {
            Ok(done) if done.replayed => "a repeated request was answered as before",
            Ok(_) => "a write was acknowledged",
            Err(WriteError::NotAcknowledged { needed: (1, _), .. }) => {
                "other owners did not acknowledge in time"
            }
            Err(WriteError::NotAcknowledged { .. }) => "other regions did not acknowledge in time",
            Err(WriteError::OwnersAway { .. }) => "a write was refused for its region's nodes were away",
            Err(WriteError::Clock(_)) => "a write was refused by the clock",
            Err(WriteError::Fenced) => "a write was refused by the fence",
            Err(WriteError::Exists { .. }) => "a precondition failed",
            Err(WriteError::Patch(_)) => "a patch did not fit",
            Err(WriteError::NotHere { .. }) => "a scope was asked for where it is not",
            Err(WriteError::Dropped(_)) => "a write to a dropped scope was refused",
            Err(_) => "a write was refused",
        });
        let asked = self.checkers.truth.asked.get(&ticket);
        let Some(client) = asked.and_then(|asked| asked.client) else { return };
        let session = &mut self.clients[client];
        let Some(call) = session.call.take_if(|call| call.ticket == Some(ticket)) else { return };
        match outcome {
            Ok(done) => {
                self.checkers.see(Fact::Wrote { client, done: &done });
                let mut token = self.clients[client].token.clone();
                let stable = self.nodes[at].published.as_ref().map_or(0, |published| published.stable_commit);
                token.wrote(std::iter::once(&done), stable);
                self.keep_token(client, at, token);
            }
            Err(WriteError::NotAcknowledged { .. }) => session.again = with_request_id(call.wish),
            Err(_) => {}
        }
    }
}

/// What stands in a history: what ends a key would take the order of its values along.
fn plain(op: WriteOp, expiry: ExpiryChange, kind: Kind, unique: u64) -> (WriteOp, ExpiryChange) {
    let op = match (op, kind) {
        (WriteOp::Increment { by }, _) => WriteOp::Increment { by: by.abs() },
        (_, Kind::Counter) => WriteOp::Increment { by: 1 },
        (WriteOp::Delete | WriteOp::Expire, Kind::Register) => WriteOp::PutRegister {
            content_type: String::new(),
            bytes: Bytes::from(unique.to_be_bytes().to_vec()),
        },
        (op, Kind::Document) => return (op, expiry),
        (op, Kind::Register) => op,
    };
    (op, ExpiryChange::Keep)
}

/// What may be sent again without fear of doing it twice.
fn with_request_id(wish: Wish) -> Option<Wish> {
    match &wish {
        Wish::Write(write) if write.request_id.is_some() => Some(wish),
        _ => None,
    }
}
