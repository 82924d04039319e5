//! What clients did and saw of registers and counters, as a history that says nothing of the world behind it.

use std::collections::BTreeMap;

use tropism_crdt::cell::Content;
use tropism_placement::{Kind, RegionName, ScopeName};
use tropism_replica::{WriteDone, WriteError, WriteOp, version_of};
use tropism_storage::{Reads, Store, ValueRow};

use crate::checkers::{Asked, Truth};
use crate::config::Config;
use crate::history::{Op, Operation, Outcome, Value, order_of};

/// The history so far, when it is kept.
#[derive(Debug, Default)]
pub(super) struct Past {
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    operations: Vec<Operation>,
    /// Writes without an answer, by ticket.
    open: BTreeMap<u64, usize>,
    regions: Vec<RegionName>,
    scopes: Vec<(ScopeName, Kind)>,
    keys: u64,
}

impl Past {
    pub(super) fn keeping(keep: bool, config: &Config) -> Self {
        let kept = keep.then(|| Kept {
            operations: Vec::new(),
            open: BTreeMap::new(),
            regions: config.homes.clone(),
            scopes: config.scopes.clone(),
            keys: config.keys,
        });
        Self { kept }
    }

    pub(super) fn into_operations(self) -> Vec<Operation> {
        self.kept.map(|kept| kept.operations).unwrap_or_default()
    }

    /// A session read a key: what it was shown, nothing, or an error.
    pub(super) fn got(
        &mut self,
        (session, from_us): (u64, u64),
        to_us: u64,
        node: usize,
        (scope, key): (&ScopeName, &str),
        row: Option<Option<&ValueRow>>,
    ) {
        let Some(kept) = &mut self.kept else { return };
        let Some(row) = row.filter(|row| row.is_none_or(|row| row.parked.is_none())) else { return };
        if let Some(operation) = kept.get(format!("session-{session}"), node, scope.as_str(), key, row) {
            kept.operations.push(Operation { from_us, to_us: Some(to_us), ..operation });
        }
    }

    /// A client asked for a write.
    pub(super) fn wrote(
        &mut self,
        session: Option<u64>,
        now_us: u64,
        node: usize,
        ticket: u64,
        asked: &Asked,
    ) {
        let Some(kept) = &mut self.kept else { return };
        let (op, value) = match &asked.op {
            WriteOp::PutRegister { bytes, .. } => (Op::Put, Value::Text(text(bytes))),
            WriteOp::Increment { by } => (Op::Increment, Value::Sum(by.unsigned_abs())),
            _ => return,
        };
        let process = match session {
            Some(session) => format!("session-{session}"),
            None => format!("write-{ticket}"),
        };
        kept.open.insert(ticket, kept.operations.len());
        kept.operations.push(Operation {
            process,
            region: kept.regions[node].to_string(),
            from_us: now_us,
            to_us: None,
            op,
            scope: asked.scope.to_string(),
            key: asked.key.clone(),
            value: Some(value),
            outcome: Outcome::Unknown,
            order: None,
            last: false,
        });
    }

    /// A write was answered.
    pub(super) fn replied(&mut self, now_us: u64, ticket: u64, outcome: &Result<WriteDone, WriteError>) {
        let Some(kept) = &mut self.kept else { return };
        let Some(at) = kept.open.remove(&ticket) else { return };
        let operation = &mut kept.operations[at];
        operation.to_us = Some(now_us);
        operation.outcome = match outcome {
            Ok(_) => Outcome::Ok,
            Err(WriteError::NotAcknowledged { .. }) => Outcome::Unknown,
            Err(_) => Outcome::Failed,
        };
        if let (Op::Put, Ok(done)) = (operation.op, outcome) {
            operation.order = order_of(&done.version);
        }
    }

    /// A client waits no longer for a write: it never knows.
    pub(super) fn gave_up(&mut self, ticket: u64) {
        if let Some(kept) = &mut self.kept {
            kept.open.remove(&ticket);
        }
    }

    /// Everything was mended: what a node has of every key.
    pub(super) fn ended(&mut self, now_us: u64, node: usize, store: &Store, truth: &Truth) {
        let Some(kept) = &mut self.kept else { return };
        for (scope, _) in kept.scopes.clone() {
            let Some(record) = truth.record(scope.as_str()) else { continue };
            if !record.serving.contains(&kept.regions[node]) {
                continue;
            }
            for key in (1..=kept.keys).map(|number| format!("k{number}")) {
                let Ok(row) = store.value(record.shard(&key).1, &key) else { continue };
                if row.as_ref().is_some_and(|row| row.parked.is_some()) {
                    continue;
                }
                let process = format!("end-{node}");
                if let Some(operation) = kept.get(process, node, scope.as_str(), &key, row.as_ref()) {
                    kept.operations.push(Operation {
                        from_us: now_us,
                        to_us: Some(now_us),
                        last: true,
                        ..operation
                    });
                }
            }
        }
    }
}

impl Kept {
    /// A get of a register or counter.
    fn get(
        &self,
        process: String,
        node: usize,
        scope: &str,
        key: &str,
        row: Option<&ValueRow>,
    ) -> Option<Operation> {
        let kind = self.scopes.iter().find(|(name, _)| name.as_str() == scope)?.1;
        if kind == Kind::Document {
            return None;
        }
        let cell = row.map(|row| &row.cell);
        let value = cell.and_then(|cell| match &cell.content {
            Content::Register(register) => Some(Value::Text(text(&register.bytes))),
            Content::Counter(counter) => {
                Some(Value::Sum(counter.value().and_then(|sum| u64::try_from(sum).ok()).unwrap_or(u64::MAX)))
            }
            _ => None,
        });
        Some(Operation {
            process,
            region: self.regions[node].to_string(),
            from_us: 0,
            to_us: None,
            op: Op::Get,
            scope: scope.to_owned(),
            key: key.to_owned(),
            value,
            outcome: Outcome::Ok,
            order: cell.and_then(|cell| order_of(&version_of(cell))),
            last: false,
        })
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
