//! What clients asked for and were answered, as plain lines of JSON, and whether that is what they were promised.
//!
//! A history comes from a simulated world or from a real one: it says nothing of nodes, logs or vectors, only what a client
//! can know. [`check`] looks at sessions, at what was acknowledged, and at the end; [`elle_histories`] turns registers into
//! the format of Elle (Kingsbury and Alvaro, VLDB 2020), so that somebody else's checker can look as well.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tropism_crdt::Origin;
use tropism_crdt::codec::Reader;

/// One call of a client; a line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Whose call it was: a session, whose calls follow each other. A client without a session is a process for each call.
    pub process: String,
    /// The region that was asked.
    pub region: String,
    /// When it was asked, us since the history began.
    pub from_us: u64,
    /// When it was answered; none: it never was.
    pub to_us: Option<u64>,
    /// What was asked for.
    pub op: Op,
    /// The scope.
    pub scope: String,
    /// The key.
    pub key: String,
    /// What was put or added, or what a get showed; none: nothing was there.
    pub value: Option<Value>,
    /// What became of it.
    pub outcome: Outcome,
    /// Of a register's version: the greater of two is the later one ([`order_of`]).
    pub order: Option<String>,
    /// A get after everything was mended, when all regions must show the same.
    #[serde(default, rename = "final")]
    pub last: bool,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// What is there.
    Get,
    /// A register's new value, which no other put of the history has.
    Put,
    /// That a counter grows.
    Increment,
}

/// A value: of a register its text, of a counter its sum or what is added, 0 or more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Of a counter.
    Sum(u64),
    /// Of a register.
    Text(String),
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was answered.
    Ok,
    /// It was refused, and had no effect.
    Failed,
    /// Nobody knows: it is wholly there or not at all.
    Unknown,
}

/// How much a history holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Processes.
    pub processes: usize,
    /// Keys.
    pub keys: usize,
    /// Gets that were answered.
    pub gets: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Writes of which nobody knows.
    pub unknown: usize,
    /// Gets in the end.
    pub finals: usize,
}

/// The order of a register's version among those of its key: the life, then the stamp, then who made it. None: it is no
/// register's.
pub fn order_of(version: &[u8]) -> Option<String> {
    let mut reader = Reader::new(version);
    let life = reader.varint("life").ok()?;
    if reader.u8("kind") != Ok(2) {
        return None;
    }
    let stamp = reader.u64("stamp").ok()?;
    let Origin { node, incarnation, random } = Origin::decode(&mut reader).ok()?;
    // A space comes before everything that a name may hold: names order as they are, whatever their lengths.
    Some(format!("{life:x} {stamp:016x} {node} {incarnation:016x} {random:016x}"))
}

/// The order as it is compared: lives are numbers.
fn rank(order: &str) -> (u64, &str) {
    let (life, rest) = order.split_once(' ').unwrap_or((order, ""));
    (u64::from_str_radix(life, 16).unwrap_or(u64::MAX), rest)
}

/// Reads the lines of a history.
pub fn parse(text: &str) -> Result<Vec<Operation>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| serde_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1)))
        .collect()
}

/// The lines of a history.
pub fn lines(history: &[Operation]) -> String {
    // Strings and numbers: there is nothing in it that cannot be written.
    history.iter().filter_map(|one| serde_json::to_string(one).ok()).map(|line| line + "\n").collect()
}

/// What is wrong with a history, in words; nothing: every promise was kept.
///
/// - A get shows what some write wrote that did not fail, or nothing before there was anything.
/// - In a session: reads follow its writes, never go back, and its writes come behind what it read.
/// - A counter's sum holds what its session added, and no more than was asked for by then.
/// - In the end all regions show the same, no acknowledged write is lost, and sums are exact but for unknown outcomes.
pub fn check(history: &[Operation]) -> (Counts, Vec<String>) {
    let mut keys: BTreeMap<(&str, &str), Vec<&Operation>> = BTreeMap::new();
    for one in history {
        keys.entry((&one.scope, &one.key)).or_default().push(one);
    }
    let mut wrong = Vec::new();
    for operations in keys.values_mut() {
        operations.sort_by_key(|one| one.from_us);
        let counter =
            operations.iter().any(|one| one.op == Op::Increment || matches!(one.value, Some(Value::Sum(_))));
        wrong.extend(if counter { check_counter(operations) } else { check_register(operations) });
    }
    let of = |what: &dyn Fn(&&Operation) -> bool| history.iter().filter(what).count();
    let mut processes: Vec<&str> = history.iter().map(|one| one.process.as_str()).collect();
    processes.sort_unstable();
    processes.dedup();
    let counts = Counts {
        processes: processes.len(),
        keys: keys.len(),
        gets: of(&|one| one.op == Op::Get && one.outcome == Outcome::Ok),
        acknowledged: of(&|one| one.op != Op::Get && one.outcome == Outcome::Ok),
        unknown: of(&|one| one.op != Op::Get && one.outcome == Outcome::Unknown),
        finals: of(&|one| one.last && one.outcome == Outcome::Ok),
    };
    (counts, wrong)
}

fn check_register(operations: &[&Operation]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut puts: BTreeMap<&Value, &Operation> = BTreeMap::new();
    for put in operations.iter().filter(|one| one.op == Op::Put) {
        let Some(value) = &put.value else {
            wrong.push(format!("a put of nothing: {put}"));
            continue;
        };
        if let Some(other) = puts.insert(value, put) {
            wrong.push(format!("two puts of one value: {other} and {put}"));
        }
    }
    // What each session has seen.
    let mut seen: BTreeMap<&str, &Operation> = BTreeMap::new();
    for one in operations.iter().filter(|one| one.outcome == Outcome::Ok) {
        let before = seen.get(one.process.as_str()).copied();
        let behind = before.and_then(|before| before.order.as_deref().map(rank));
        let order = one.order.as_deref().map(rank);
        match (one.op, &one.value) {
            (Op::Get, None) => {
                if let Some(before) = before {
                    wrong.push(format!("a session went back to nothing: {one}, after {before}"));
                }
                continue;
            }
            (Op::Get, Some(value)) => match puts.get(value) {
                None => wrong.push(format!("nobody put that: {one}")),
                Some(put) if put.outcome == Outcome::Failed => {
                    wrong.push(format!("what was refused shows: {one}, of {put}"));
                }
                Some(put) if put.order.is_some() && put.order != one.order => {
                    wrong.push(format!("another version of the same put: {one}, of {put}"));
                }
                Some(put) if one.to_us.is_some_and(|shown| shown < put.from_us) => {
                    wrong.push(format!("it shows before it was put: {one}, of {put}"));
                }
                Some(_) => {}
            },
            (Op::Put | Op::Increment, _) => {}
        }
        if order.is_none() {
            wrong.push(format!("a register's value without an order: {one}"));
        }
        if let Some(before) = before
            && (order < behind || one.op == Op::Put && order == behind)
        {
            let what = if one.op == Op::Put {
                "a write comes before what its session saw"
            } else {
                "a session went back"
            };
            wrong.push(format!("{what}: {one}, after {before}"));
        }
        seen.insert(&one.process, one);
    }
    let finals: Vec<&&Operation> =
        operations.iter().filter(|one| one.last && one.outcome == Outcome::Ok).collect();
    for pair in finals.windows(2) {
        if (&pair[0].value, &pair[0].order) != (&pair[1].value, &pair[1].order) {
            wrong.push(format!("regions differ in the end: {} and {}", pair[0], pair[1]));
        }
    }
    if let Some(last) = finals.first() {
        let acknowledged = operations.iter().filter(|one| one.op == Op::Put && one.outcome == Outcome::Ok);
        for put in acknowledged {
            if last.order.as_deref().map(rank) < put.order.as_deref().map(rank) {
                wrong.push(format!("an acknowledged write is lost: {put}, in the end {last}"));
            }
        }
    }
    wrong
}

fn check_counter(operations: &[&Operation]) -> Vec<String> {
    let mut wrong = Vec::new();
    let sum = |one: &Operation| match one.value {
        Some(Value::Sum(sum)) => sum,
        _ => 0,
    };
    let added = |until_us: u64, outcomes: &[Outcome]| -> u64 {
        operations
            .iter()
            .filter(|one| {
                one.op == Op::Increment && outcomes.contains(&one.outcome) && one.from_us <= until_us
            })
            .map(|one| sum(one))
            .sum()
    };
    // What each session added, and the sum it saw last.
    let mut sessions: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for one in operations.iter().filter(|one| one.outcome == Outcome::Ok) {
        let (own, seen) = sessions.entry(&one.process).or_default();
        if one.op == Op::Increment {
            *own += sum(one);
            *seen += sum(one);
            continue;
        }
        let shown = sum(one);
        let most = added(one.to_us.unwrap_or(u64::MAX), &[Outcome::Ok, Outcome::Unknown]);
        if shown < *own || shown < *seen {
            wrong.push(format!("a session went back: {one}, which had added {own} and seen {seen}"));
        }
        if shown > most {
            wrong.push(format!("more than was added, which is {most}: {one}"));
        }
        *seen = shown;
        if one.last {
            let least = added(u64::MAX, &[Outcome::Ok]);
            if shown < least {
                wrong.push(format!("acknowledged additions are lost, of {least}: {one}"));
            }
        }
    }
    let finals: Vec<&&Operation> =
        operations.iter().filter(|one| one.last && one.outcome == Outcome::Ok).collect();
    for pair in finals.windows(2) {
        if sum(pair[0]) != sum(pair[1]) {
            wrong.push(format!("regions differ in the end: {} and {}", pair[0], pair[1]));
        }
    }
    wrong
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

/// Registers in the format of Elle, each key a history of its own, one operation a transaction.
///
/// Keys are apart because that is what is promised: causal order within a shard, sessions across, and no order between
/// the writes of different keys that nobody saw. Of one key a session sees a single order of writes, its own behind what
/// it saw: each such history must be sequentially consistent (`strong-session-serializable`, versions ordered by
/// `sequential-keys`). A call without an answer is a process of its own, as the format wants it.
pub fn elle_histories(history: &[Operation]) -> BTreeMap<(String, String), String> {
    let mut keys: BTreeMap<(String, String), Vec<&Operation>> = BTreeMap::new();
    let registers = history
        .iter()
        .filter(|one| one.op == Op::Put || one.op == Op::Get && !matches!(one.value, Some(Value::Sum(_))));
    for one in registers {
        keys.entry((one.scope.clone(), one.key.clone())).or_default().push(one);
    }
    keys.retain(|_, operations| operations.iter().any(|one| one.op == Op::Put));
    keys.into_iter().map(|(key, operations)| (key, elle_history(&operations))).collect()
}

fn elle_history(operations: &[&Operation]) -> String {
    let mut processes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut values: BTreeMap<&Value, usize> = BTreeMap::new();
    for one in operations {
        let next = processes.len();
        processes.entry(&one.process).or_insert(next);
        if let Some(value) = &one.value {
            let next = values.len() + 1;
            values.entry(value).or_insert(next);
        }
    }
    // (when, answers before questions, the line but for its number)
    let mut events: Vec<(u64, bool, usize, String)> = Vec::new();
    for (at, one) in operations.iter().enumerate() {
        let value = one.value.as_ref().map_or("null".to_owned(), |value| values[value].to_string());
        let (word, asked) = if one.op == Op::Put { ("w", value.as_str()) } else { ("r", "null") };
        let known = one.outcome != Outcome::Unknown;
        let process = if known { processes[one.process.as_str()] } else { processes.len() + at };
        let line = |kind: &str, value: &str| {
            format!("\"type\":\"{kind}\",\"process\":{process},\"value\":[[\"{word}\",\"k\",{value}]]}}")
        };
        let kind = match one.outcome {
            Outcome::Ok => "ok",
            Outcome::Failed => "fail",
            Outcome::Unknown => "info",
        };
        let until = one.to_us.filter(|_| known).unwrap_or(u64::MAX);
        events.push((one.from_us, true, at, line("invoke", asked)));
        events.push((until, false, at, line(kind, if one.outcome == Outcome::Ok { &value } else { asked })));
    }
    events.sort();
    let numbered = events.iter().enumerate();
    numbered.map(|(index, (.., line))| format!("{{\"index\":{index},{line}\n")).collect()
}

#[cfg(test)]
mod tests;
