//! Clients: what they ask for, and what the answers tell the checkers.

use bytes::Bytes;
use tropism_crdt::ExpiryChange;
use tropism_crdt::document::PatchOp;
use tropism_crdt::json::{Json, Pointer};
use tropism_placement::{Durability, Kind};
use tropism_replica::{Input, Precondition, Write, WriteDone, WriteError, WriteOp};
use tropism_storage::LogKey;

use super::{What, World};

/// A write under way.
pub(super) struct Operation {
    scope: String,
    key: String,
    value: Vec<u8>,
    by: i64,
}

impl World {
    pub(super) fn operate(&mut self) {
        if self.settling || self.report.operations >= self.size.operations {
            return;
        }
        let pause =
            if self.rng.chance(5) { self.rng.between(0, 300_000) } else { self.rng.between(0, 40_000) };
        self.schedule(pause, What::Operate);
        let at = self.rng.index(self.nodes.len());
        if self.nodes[at].running.is_none() {
            return self.cover("an operation found its node down");
        }
        self.report.operations += 1;
        let (scope, kind) = self.rng.pick(&self.scopes).clone();
        let counts = kind == Kind::Counter;
        let key = format!("k{}", self.rng.between(1, self.keys));
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let value = ticket.to_be_bytes().to_vec();
        let now = self.now_of(&self.nodes[at]);
        let by = self.rng.between(0, 20) as i64 - 8;
        let op = match self.rng.between(0, 99) {
            0..8 => WriteOp::Delete,
            8..12 => WriteOp::Expire,
            _ if counts => WriteOp::Increment { by },
            _ if kind == Kind::Document => self.document_op(ticket),
            _ => WriteOp::PutRegister { content_type: String::new(), bytes: Bytes::from(value.clone()) },
        };
        let expiry = if self.rng.chance(8) {
            ExpiryChange::At(now.wall_ms + self.rng.between(0, 5_000))
        } else {
            ExpiryChange::Keep
        };
        let durability = match self.rng.between(0, 9) {
            0 => Some(Durability::Regions(self.rng.between(1, self.nodes.len() as u64) as u16)),
            1 => Some(Durability::Local),
            _ => None,
        };
        let precondition = self.rng.chance(6).then_some(Precondition::Absent);
        let (scope_name, by) = (scope.as_str().to_owned(), if counts { by } else { 0 });
        self.checkers.attempted(&scope_name, &key, &value);
        if counts {
            let bounds = self.counters.entry((scope_name.clone(), key.clone())).or_default();
            match &op {
                WriteOp::Increment { by } if expiry == ExpiryChange::Keep => {
                    // Unknown until the reply.
                    if *by >= 0 { bounds.most += by } else { bounds.least += by }
                }
                _ => bounds.simple = false,
            }
        }
        let by = if matches!(op, WriteOp::Increment { .. }) { by } else { 0 };
        self.operations.insert(ticket, Operation { scope: scope_name, key: key.clone(), value, by });
        let write = Write {
            scope,
            key,
            op,
            precondition,
            expiry,
            durability,
            deadline_us: now.mono_us + self.rng.between(100_000, 3_000_000),
            request_id: self.rng.chance(10).then(|| u128::from(ticket).to_be_bytes()),
            trace: None,
        };
        self.input(at, Input::Write { ticket, write: Box::new(write) });
    }

    /// A put, or a patch of a field, a counter, a list or a text.
    pub(super) fn document_op(&mut self, ticket: u64) -> WriteOp {
        let path = |text: &str| Pointer::parse(text).unwrap_or_else(|error| panic!("{error}"));
        let field = format!("/f{}", self.rng.between(0, 3));
        let value = Json::Int(ticket as i64);
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
                insert: format!("<{ticket}>"),
            },
            _ => PatchOp::Set { path: path(&field), value },
        };
        WriteOp::Patch { operations: vec![operation], base: None }
    }

    pub(super) fn replied(&mut self, ticket: u64, outcome: Result<WriteDone, WriteError>) {
        let Some(operation) = self.operations.remove(&ticket) else {
            return self.checkers.violations.push(format!("ticket {ticket} was answered twice"));
        };
        let bounds = self.counters.entry((operation.scope.clone(), operation.key.clone())).or_default();
        match outcome {
            Ok(done) => {
                if operation.by >= 0 {
                    bounds.least += operation.by
                } else {
                    bounds.most += operation.by
                }
                if let Some((origin, seq)) = done.change {
                    self.checkers.acknowledged(done.shard, LogKey { shard: done.shard, origin, seq });
                    self.cover("a write was acknowledged");
                }
            }
            Err(WriteError::NotAcknowledged { .. }) => {
                self.cover("other regions did not acknowledge in time")
            }
            Err(error) => {
                if operation.by >= 0 {
                    bounds.most -= operation.by
                } else {
                    bounds.least -= operation.by
                }
                self.checkers.refused(&operation.scope, &operation.key, &operation.value);
                self.cover(match error {
                    WriteError::Clock(_) => "a write was refused by the clock",
                    WriteError::Fenced => "a write was refused by the fence",
                    WriteError::Exists { .. } => "a precondition failed",
                    WriteError::Patch(_) => "a patch did not fit",
                    _ => "a write was refused",
                });
            }
        }
    }
}
