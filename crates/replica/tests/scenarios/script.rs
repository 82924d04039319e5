//! Scenarios as scripts: one behaviour a file, with what it showed recorded below each step.
//!
//! A line that begins with `> ` is a step, the lines below it are what it shows, `#` begins a comment. A step that shows
//! something else fails the test; with `RECORD=1` in the environment the files are written anew, and `git diff` shows
//! what changed. `expect` fails also then.
//!
//! ```text
//! cluster a b c [log-keep=2s] [log-cap=5s] [part-bytes=150] [settle-keys=1]   always first; everybody is linked
//! a put SCOPE KEY VALUE [| OPTION...]      a whole document or register
//! a set SCOPE KEY /PATH JSON [| ...]       edits a document
//! a remove SCOPE KEY /PATH [| ...]
//! a add SCOPE KEY NUMBER [| ...]           adds to a counter
//! a delete SCOPE KEY [| ...]
//!     options: regions=2  request=NAME  expires=5s  if=absent
//! deliver                                  carries frames until there are none: nothing else does but `wait`
//! deliver 3 parts                          carries frames until three parts of shards have arrived
//! wait 2s                                  time passes, and frames are carried
//! cut a b   |   heal a b                   a connection
//! crash a   |   start a [empty|lost|aside|copy]   a process: on what was durable; on an empty store that is served as it is,
//!                                          that peers fill first, for which the one before is set aside; on what `copy` made
//! copy a                                   of its store
//! clock a 3d   |   clock a 0s              how far its wall clock is ahead
//! show SCOPE KEY                           at every member
//! expect SCOPE KEY VALUE|nothing           at every member
//! expect a SCOPE KEY VALUE|nothing         at one
//! expect equal                             vectors, digests and values of every member
//! ```
//!
//! SCOPEs: `docs` (documents, with a counter at `/n`), `cache/c` (registers), `stats/s` (counters).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use tropism_crdt::ExpiryChange;
use tropism_crdt::cell::Content;
use tropism_crdt::document::PatchOp;
use tropism_crdt::json::{JsonLimits, Pointer, parse};
use tropism_placement::Durability;
use tropism_replica::{Event, Output, Precondition, Write, WriteDone, WriteError, WriteOp};
use tropism_storage::{MemoryEngine, Reads, Store};

use super::driver::{Cluster, Settings, bytes, document, id, increment, shard, write};

/// How long a write waits for other regions, us.
const PATIENCE_US: u64 = 5_000_000;

#[test]
fn every_script_shows_what_is_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let record = std::env::var_os("RECORD").is_some();
    let mut differ = Vec::new();
    let mut scripts = 0;
    let entries: BTreeSet<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in entries.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "txt")) {
        scripts += 1;
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let recorded = fs::read_to_string(&path).unwrap();
        let (shown, failed) = play(&name, &recorded);
        differ.extend(failed);
        if recorded == shown {
            continue;
        }
        if record {
            fs::write(&path, shown).unwrap();
        } else {
            let line = recorded.lines().zip(shown.lines()).position(|(was, is)| was != is);
            let line = line.unwrap_or_else(|| recorded.lines().count().min(shown.lines().count()));
            let of = |text: &str| text.lines().nth(line).unwrap_or("(the end)").to_owned();
            let (was, is) = (of(&recorded), of(&shown));
            differ.push(format!("{name}:{}:\n  recorded: {was}\n  shown:    {is}", line + 1));
        }
    }
    assert!(scripts > 0);
    assert!(differ.is_empty(), "{}\nrecord anew with RECORD=1, and read the difference", differ.join("\n"));
}

/// Plays a script; gives it back with what its steps show, and what was expected and is not so.
fn play(name: &str, script: &str) -> (String, Vec<String>) {
    let mut out = String::new();
    let mut stage: Option<Stage> = None;
    for (number, line) in script.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        }
        let Some(step) = line.strip_prefix("> ") else { continue }; // what was shown before
        writeln!(out, "{line}").unwrap();
        let place = format!("{name}:{}: {step}", number + 1);
        let words: Vec<&str> = step.split_whitespace().collect();
        match (&mut stage, words.as_slice()) {
            (None, ["cluster", words @ ..]) => stage = Some(Stage::of(words)),
            (Some(stage), words) => stage.step(step, words, &place),
            (None, _) => panic!("{place}: a script begins with `cluster`"),
        }
        let Some(stage) = &mut stage else { unreachable!("made above") };
        stage.hear();
        let states = std::mem::take(&mut stage.cluster.states);
        if !states.is_empty() {
            stage.shown.push(format!("states came: {}", states.join(" ")));
        }
        for line in std::mem::take(&mut stage.shown) {
            writeln!(out, "{line}").unwrap();
        }
    }
    (out, stage.map(|stage| stage.failed).unwrap_or_default())
}

/// The nodes of a script.
struct Stage {
    cluster: Cluster,
    copies: BTreeMap<usize, Store>,
    shown: Vec<String>,
    failed: Vec<String>,
}

impl Stage {
    fn of(words: &[&str]) -> Self {
        let mut settings = Settings::default();
        let mut count = 0;
        for word in words {
            match word.split_once('=') {
                None => count += 1,
                Some(("log-keep", time)) => settings.log_keep_ms = ms(time),
                Some(("log-cap", time)) => settings.log_cap_ms = ms(time),
                Some(("part-bytes", number)) => settings.part_bytes = number.parse().unwrap(),
                Some(("settle-keys", number)) => settings.settle_keys = number.parse().unwrap(),
                Some(_) => panic!("unknown setting {word}"),
            }
        }
        let mut cluster = Cluster::of(count, settings);
        cluster.link();
        Self { cluster, copies: BTreeMap::new(), shown: Vec::new(), failed: Vec::new() }
    }

    fn step(&mut self, step: &str, words: &[&str], place: &str) {
        match *words {
            ["deliver"] => self.cluster.settle(),
            ["deliver", count, "parts"] => {
                assert!(self.cluster.carry_parts(count.parse().unwrap()), "{place}: there are no more");
            }
            ["wait", time] => self.cluster.wait_ms(ms(time)),
            ["cut", a, b] => self.cluster.cut(node(a), node(b)),
            ["heal", a, b] => self.cluster.connect(node(a), node(b)),
            ["crash", at] => self.crash(node(at)),
            ["start", at] => self.cluster.restart(node(at)),
            ["start", at, "empty"] => {
                let empty = Store::open(Box::new(MemoryEngine::new())).unwrap();
                self.cluster.replace(node(at), Some(empty));
            }
            ["start", at, "lost"] => self.cluster.lose_store(node(at), None),
            ["start", at, "aside"] => self.cluster.lose_store(node(at), Some("damaged")),
            ["start", at, "copy"] => {
                let copy = self.copies.remove(&node(at));
                assert!(copy.is_some(), "{place}: there is no copy");
                self.cluster.replace(node(at), copy);
            }
            ["copy", at] => {
                self.copies.insert(node(at), self.cluster.copy_of(node(at)));
            }
            ["clock", at, time] => self.cluster.nodes[node(at)].offset_ms = ms(time) as i64,
            ["show", scope, key] => {
                for at in self.running() {
                    let what = self.spell(at, scope, key);
                    self.shown.push(format!("{}: {what}", name(at)));
                }
            }
            ["expect", "equal"] => self.expect_equal(place),
            ["expect", at @ ("a" | "b" | "c"), scope, key, ref value @ ..] => {
                self.expect(node(at), (scope, key), &value.join(" "), place);
            }
            ["expect", scope, key, ref value @ ..] => {
                for at in self.running() {
                    self.expect(at, (scope, key), &value.join(" "), place);
                }
            }
            [at, ..] => {
                let write = self.write_of(node(at), step, place);
                self.cluster.send(node(at), write);
            }
            [] => panic!("{place}: an empty step"),
        }
    }

    /// A client's write: `NODE VERB SCOPE KEY REST [| OPTIONS]`.
    fn write_of(&self, at: usize, step: &str, place: &str) -> Write {
        let (what, options) = step.split_once(" | ").unwrap_or((step, ""));
        let mut parts = what.splitn(5, ' ').skip(1);
        let mut part = || parts.next().unwrap_or_default();
        let (verb, scope, key, rest) = (part(), part(), part(), part());
        let path = |text: &str| Pointer::parse(text).unwrap();
        let patch = |operation| WriteOp::Patch { operations: vec![operation], base: None };
        let op = match verb {
            "put" if scope == "docs" => document(rest),
            "put" => bytes(rest),
            "set" => {
                let (to, value) = rest.split_once(' ').unwrap();
                let value = parse(value.as_bytes(), &JsonLimits::default()).unwrap();
                patch(PatchOp::Set { path: path(to), value })
            }
            "remove" => patch(PatchOp::Remove { path: path(rest) }),
            "add" => increment(rest.parse().unwrap()),
            "delete" => WriteOp::Delete,
            _ => panic!("{place}: unknown step"),
        };
        let mut write = write(scope, key, op);
        let now = self.cluster.now_of(at);
        write.deadline_us = now.mono_us + PATIENCE_US;
        for option in options.split_whitespace() {
            match option.split_once('=').unwrap() {
                ("regions", count) => write.durability = Some(Durability::Regions(count.parse().unwrap())),
                ("request", name) => {
                    let mut id = [0; 16];
                    id[..name.len()].copy_from_slice(name.as_bytes());
                    write.request_id = Some(id);
                }
                ("expires", time) => write.expiry = ExpiryChange::At(now.wall_ms + ms(time)),
                ("if", "absent") => write.precondition = Some(Precondition::Absent),
                _ => panic!("{place}: unknown option {option}"),
            }
        }
        write
    }

    /// A process ends without a word; what was under way from it arrives no more, and its peers notice.
    fn crash(&mut self, at: usize) {
        self.cluster.nodes[at].down = true;
        for peer in 0..self.cluster.nodes.len() {
            if peer != at {
                self.cluster.cut(at, peer);
            }
        }
    }

    fn running(&self) -> Vec<usize> {
        (0..self.cluster.nodes.len()).filter(|at| !self.cluster.nodes[*at].down).collect()
    }

    /// Shows answers, and what happened that is worth a word: of each kind one a step.
    fn hear(&mut self) {
        for at in 0..self.cluster.nodes.len() {
            let outputs = std::mem::take(&mut self.cluster.nodes[at].outputs);
            let mut said = BTreeSet::new();
            for output in outputs {
                let line = match output {
                    Output::Reply { outcome, .. } => Some(answer(outcome)),
                    Output::Event(event) => said_of(&event),
                    // No step asks for them.
                    Output::Parked { .. } | Output::Verified { .. } | Output::Propose(_) => None,
                    Output::Disconnect { reason, .. } => Some(format!("drops a link: {reason}")),
                    Output::Send { .. } => {
                        self.cluster.nodes[at].outputs.push(output);
                        None
                    }
                };
                let line = line.map(|line| format!("{}: {line}", name(at)));
                self.shown.extend(line.filter(|line| said.insert(line.clone())));
            }
        }
    }

    /// What a reader finds.
    fn visible(&self, at: usize, scope: &str, key: &str) -> String {
        let cell = self.cluster.value(at, scope, key).cell;
        if !cell.visible(self.cluster.now_of(at).wall_ms) {
            return "nothing".into();
        }
        match cell.content {
            Content::Empty => "empty".into(),
            Content::Register(register) => String::from_utf8_lossy(&register.bytes).into_owned(),
            Content::Counter(counter) => counter.value().unwrap().to_string(),
            Content::Document { json, .. } => String::from_utf8_lossy(&json).into_owned(),
        }
    }

    /// What a reader finds, and how the key stands.
    fn spell(&self, at: usize, scope: &str, key: &str) -> String {
        let cell = self.cluster.value(at, scope, key).cell;
        let stands = match (cell.alive(), &cell.content) {
            (true, _) if cell.expired(self.cluster.now_of(at).wall_ms) => ", expired",
            (false, _) if cell.written.is_none() && cell.deleted_at.is_some() => ", a stub",
            (false, _) if cell.deleted_at.is_some() => ", deleted",
            _ => "",
        };
        format!("{} (life {}{stands})", self.visible(at, scope, key), cell.life)
    }

    fn expect(&mut self, at: usize, (scope, key): (&str, &str), value: &str, place: &str) {
        let is = self.visible(at, scope, key);
        if is != value {
            self.failed.push(format!("{place}\n  at {}: {is}", name(at)));
        }
    }

    fn expect_equal(&mut self, place: &str) {
        let running = self.running();
        let states: Vec<String> = running.iter().map(|at| self.state(*at)).collect();
        for (at, state) in running.iter().zip(&states).filter(|(_, state)| **state != states[0]) {
            self.failed.push(format!(
                "{place}\n  {}: {}\n  {}: {state}",
                name(running[0]),
                states[0],
                name(*at)
            ));
        }
    }

    /// Everything that members with equal vectors must agree on.
    fn state(&self, at: usize) -> String {
        let store = &self.cluster.nodes[at].store;
        let mut state = String::new();
        for scope in ["docs", "cache/c", "stats/s"] {
            write!(state, "{scope} {:?}", store.vector_row(shard(scope)).unwrap()).unwrap();
            for (key, _) in store.values(shard(scope), "", None).map(|value| value.unwrap()) {
                write!(state, " {key}={}", self.visible(at, scope, &key)).unwrap();
            }
        }
        state
    }
}

fn node(name: &str) -> usize {
    match name {
        "a" => 0,
        "b" => 1,
        "c" => 2,
        _ => panic!("there is no node {name}"),
    }
}

fn name(node: usize) -> &'static str {
    ["a", "b", "c"][node]
}

/// `250ms`, `2s`, `5m`, `1h`, `3d`.
fn ms(time: &str) -> u64 {
    let unit = time.find(|c: char| !c.is_ascii_digit()).unwrap_or(time.len());
    let number: u64 = time[..unit].parse().unwrap();
    number
        * match &time[unit..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            other => panic!("unknown unit {other:?} of {time}"),
        }
}

/// An answer in words.
fn answer(outcome: Result<WriteDone, WriteError>) -> String {
    let done = match outcome {
        Ok(done) => done,
        Err(error) => return format!("no: {error}"),
    };
    let mut line = String::from(if done.replayed { "ok, as before" } else { "ok" });
    if done.change.is_none() {
        line.push_str(", nothing to do");
    }
    if !done.existed && !done.replayed && done.change.is_some() {
        line.push_str(", new");
    }
    if let Some(counter) = done.counter {
        write!(line, ", now {counter}").unwrap();
    }
    line
}

/// Events that a scenario may be about.
fn said_of(event: &Event) -> Option<String> {
    let who = |node: &tropism_crdt::NodeId| name((0..3).find(|at| id(*at) == *node).unwrap_or(0));
    Some(match event {
        Event::Refused { reason, .. } => format!("refuses a change: {reason}"),
        Event::FutureStamp(of) => format!("stores a stamp of {} from the future", who(of)),
        Event::Outlived => "counts an edit of a life that is over".into(),
        Event::Collected => "collects what is deleted everywhere".into(),
        Event::Expired => "deletes what has expired".into(),
        Event::Landed { keys, .. } => format!("has a shard of {keys} keys as a whole"),
        Event::Settled { .. } => "has merged its keys".into(),
        Event::Owes(to) => format!("has no log for {}", who(to)),
        Event::Quit(to) => format!("owes {} nothing any more", who(to)),
        Event::Parked { reason } => format!("parks a key: {reason}"),
        Event::Rebuilding { seen_by } => format!("had another store, says {}", who(seen_by)),
        Event::Rebuilt { salvaged, .. } if salvaged.read > 0 => format!(
            "is filled; of {} changes of the store before nobody else had {}, and {} could not be applied",
            salvaged.read, salvaged.taken, salvaged.left
        ),
        Event::Rebuilt { .. } => "is filled".into(),
        Event::Short { by, .. } => format!("is short, says {}", who(by)),
        Event::DigestsDiffer { peer, .. } => format!("has another digest than {}", who(peer)),
        _ => return None,
    })
}
