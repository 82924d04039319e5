//! What documents cost, in one thread of one process: the edit, its change, the merge, and what the replica does around
//! a write. No disk, no network.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tropism_crdt::document::{Document, Light, PatchOp, Paths, PeerChange, Tried};
use tropism_crdt::json::{Json, JsonLimits, PathPattern, Pointer, parse};
use tropism_crdt::{ExpiryChange, NodeId};
use tropism_placement::{Regions, ScopeName};
use tropism_replica::{Identity, Input, Now, Opening, Output, Replica, Write, WriteOp};
use tropism_storage::{MemoryEngine, Store};

/// Documents that are written in random order: more than any cache of the processor holds.
const HOT: usize = 10_000;
/// Times each row is measured.
const ROUNDS: usize = 5;

/// One thing that was measured, in us of one core for one operation.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What it is.
    pub(crate) name: String,
    /// The median of the rounds.
    pub(crate) median: f64,
    /// The fastest round.
    pub(crate) min: f64,
    /// The slowest round.
    pub(crate) max: f64,
}

/// Measures everything whose name contains `filter`, and says each row as it comes.
pub(crate) fn run(filter: &str, mut say: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let parts: [(&str, Part); 7] = [
        ("create", create),
        ("hot", hot),
        ("replica", replica),
        ("apply", apply),
        ("counter", counter),
        ("cold", cold),
        ("json", json_out),
    ];
    let mut rows = Rows { rows: Vec::new(), say: &mut say };
    for (name, part) in parts {
        if name.contains(filter) {
            part(&mut rows).context(name)?;
        }
    }
    Ok(rows.rows)
}

type Part = fn(&mut Rows<'_>) -> Result<()>;

struct Rows<'s> {
    rows: Vec<Row>,
    say: &'s mut dyn FnMut(&Row),
}

impl Rows<'_> {
    /// Adds a row from the us for one operation in each round.
    fn add(&mut self, name: &str, mut rounds: Vec<f64>) {
        rounds.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (rounds.first(), rounds.last()) else { return };
        let row = Row { name: name.to_owned(), median: rounds[rounds.len() / 2], min: *min, max: *max };
        (self.say)(&row);
        self.rows.push(row);
    }

    /// Measures `operation` so many times a round.
    fn measure(
        &mut self,
        name: &str,
        count: usize,
        mut operation: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let start = Instant::now();
            for n in 0..count {
                operation(round * count + n)?;
            }
            rounds.push(start.elapsed().as_secs_f64() * 1e6 / count as f64);
        }
        self.add(name, rounds);
        Ok(())
    }
}

fn create(rows: &mut Rows<'_>) -> Result<()> {
    let value = small(0)?;
    rows.measure("create a document of 200 B", 2_000, |_| {
        let mut document = Document::empty(&actor(0));
        ensure!(document.replace(&value, None, &Paths::default(), 0)?.is_some());
        black_box(document.to_canonical_json());
        Ok(())
    })
}

fn hot(rows: &mut Rows<'_>) -> Result<()> {
    let mut documents = Vec::with_capacity(HOT);
    for n in 0..HOT {
        let mut document = Document::empty(&actor(0));
        document.replace(&small(n as i64)?, None, &Paths::default(), 0)?;
        documents.push(document);
    }
    let mut order = Order(7);
    rows.measure("hot: patch of one field of 200 B", 10_000, |n| {
        let document = &mut documents[order.next(HOT)];
        let change = document.patch(&set("/visits", n as i64 + 1_000)?, None, &Paths::default(), 0)?;
        ensure!(change.is_some());
        Ok(())
    })?;
    rows.measure("hot: patch, heads, JSON, save", 10_000, |n| {
        let document = &mut documents[order.next(HOT)];
        let change = document.patch(&set("/visits", n as i64 + 100_000)?, None, &Paths::default(), 0)?;
        ensure!(change.is_some());
        black_box((document.heads(), document.to_canonical_json(), document.save()));
        Ok(())
    })?;
    rows.measure("hot: replace of one field of 200 B", 10_000, |n| {
        let document = &mut documents[order.next(HOT)];
        ensure!(document.replace(&small(n as i64 + 1_000_000)?, None, &Paths::default(), 0)?.is_some());
        Ok(())
    })
}

fn replica(rows: &mut Rows<'_>) -> Result<()> {
    let mut node = Node::boot()?;
    for n in 0..HOT {
        node.write(n, WriteOp::PutDocument { value: small(n as i64)?, base: None })?;
    }
    node.commit()?;
    let mut order = Order(9);
    let (mut turns, mut commits) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (mut turn, mut commit) = (0.0, 0.0);
        for n in 0..10_000 / 64 {
            let mut writes = Vec::with_capacity(64);
            for m in 0..64 {
                let value = round * 1_000_000 + n * 64 + m + 1_000;
                let operations = set("/visits", value as i64)?;
                writes.push((order.next(HOT), WriteOp::Patch { operations: operations.into(), base: None }));
            }
            let start = Instant::now();
            for (key, op) in writes {
                node.write(key, op)?;
            }
            turn += start.elapsed().as_secs_f64() * 1e6;
            let start = Instant::now();
            node.commit()?;
            commit += start.elapsed().as_secs_f64() * 1e6;
        }
        turns.push(turn / (10_000 / 64 * 64) as f64);
        commits.push(commit / (10_000 / 64 * 64) as f64);
    }
    rows.add("replica: patch of one field of 200 B, turn", turns);
    rows.add("replica: its share of the commit of 64, in memory", commits);
    Ok(())
}

fn apply(rows: &mut Rows<'_>) -> Result<()> {
    for (name, documents, batch) in [
        ("apply: 1 change of one of 10 000 documents", HOT, 1),
        ("apply: 10 changes of one of 1 000 documents", 1_000, 10),
        ("apply: 100 changes of one of 100 documents", 100, 100),
    ] {
        let mut here = Vec::with_capacity(documents);
        let mut there = Vec::with_capacity(documents);
        for n in 0..documents {
            let mut document = Document::empty(&actor(1));
            document.replace(&small(n as i64)?, None, &Paths::default(), 0)?;
            here.push(Document::load(&document.save(), &actor(0))?);
            there.push(document);
        }
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let mut time = 0.0;
            for (n, (here, there)) in here.iter_mut().zip(&mut there).enumerate() {
                let changes = edits(there, batch, (round * documents + n) * batch + 1_000)?;
                let start = Instant::now();
                receive(here, &changes)?;
                black_box((here.heads(), here.to_canonical_json()));
                time += start.elapsed().as_secs_f64() * 1e6;
            }
            rounds.push(time / documents as f64);
        }
        rows.add(name, rounds);
    }
    let mut there = Document::empty(&actor(1));
    there.replace(&small(0)?, None, &Paths::default(), 0)?;
    edits(&mut there, 10_000, 1_000)?;
    let mut here = Document::load(&there.save(), &actor(0))?;
    let mut rounds = Vec::new();
    for round in 0..4 * ROUNDS {
        let changes = edits(&mut there, 100, 100_000 + round * 100)?;
        let start = Instant::now();
        receive(&mut here, &changes)?;
        black_box((here.heads(), here.to_canonical_json()));
        rounds.push(start.elapsed().as_secs_f64() * 1e6);
    }
    rows.add("apply: 100 changes behind 10 000 edits of one key", rounds);
    Ok(())
}

fn counter(rows: &mut Rows<'_>) -> Result<()> {
    let paths = Paths { text: Vec::new(), counters: vec![PathPattern::parse("/visits")?] };
    let mut document = Document::empty(&actor(0));
    document.replace(&small(0)?, None, &paths, 0)?;
    let increment = [PatchOp::Increment { path: Pointer::parse("/visits")?, by: 1 }];
    let mut count = 0;
    for behind in [1, 1_000, 10_000] {
        while count < behind {
            document.patch(&increment, None, &paths, 0)?;
            count += 1;
        }
        // As many as change hands with automerge together, and then some.
        rows.measure(&format!("counter: increment behind {behind}"), 128, |_| {
            count += 1;
            ensure!(document.patch(&increment, None, &paths, 0)?.is_some());
            black_box(document.to_canonical_json());
            Ok(())
        })?;
    }
    Ok(())
}

fn cold(rows: &mut Rows<'_>) -> Result<()> {
    let mut document = Document::empty(&actor(0));
    document.replace(&small(0)?, None, &Paths::default(), 0)?;
    let stored = document.to_stored()?;
    rows.measure("cold: load of 200 B", 2_000, |_| {
        black_box(Document::load(&stored, &actor(0))?);
        Ok(())
    })?;
    rows.measure("cold: load, patch, heads, JSON, save of 200 B", 2_000, |n| {
        let mut document = Document::load(&stored, &actor(0))?;
        document.patch(&set("/visits", n as i64 + 1_000)?, None, &Paths::default(), 0)?;
        black_box((document.heads(), document.to_canonical_json(), document.save()));
        Ok(())
    })?;
    for (saved, behind) in [(50, 0), (50, 10), (50, 50), (50, 100), (10_000, 0), (10_000, 500)] {
        let mut document = Document::empty(&actor(0));
        document.replace(&small(0)?, None, &Paths::default(), 0)?;
        edits(&mut document, saved, 1_000)?;
        let stored = document.to_stored()?;
        let pieces = [edits(&mut document, behind, 1_000_000)?.concat()];
        let name = format!("of {saved} edits saved and {behind} behind");
        let count = if saved > 1_000 { 20 } else { 500 };
        rows.measure(&format!("cold: light, patch, {name}"), count, |n| {
            let light = Light::restore(Some(&stored), &pieces, &actor(0));
            let mut light = light.context("a light state")?;
            let tried = light.patch(&set("/visits", n as i64 + 10_000_000)?, None, &Paths::default(), 0)?;
            ensure!(matches!(tried, Tried::Done(Some(_))));
            Ok(())
        })?;
        rows.measure(&format!("cold: whole {name}"), count, |_| {
            let mut document = Document::load(&stored, &actor(0))?;
            document.restore(&pieces)?;
            Ok(())
        })?;
        rows.measure(&format!("cold: whole, saved again, {name}"), count, |_| {
            let mut document = Document::load(&stored, &actor(0))?;
            document.restore(&pieces)?;
            black_box(document.to_stored()?);
            Ok(())
        })?;
    }
    Ok(())
}

fn json_out(rows: &mut Rows<'_>) -> Result<()> {
    let text = small(0)?.to_canonical();
    rows.measure("json: parse of 200 B", 20_000, |_| {
        black_box(parse(&text, &JsonLimits::default())?);
        Ok(())
    })?;
    for (name, value, count) in [
        ("json: of a document of 200 B", small(0)?, 10_000),
        ("json: of a document of 2 KB", fields(40)?, 2_000),
        ("json: of a document of 89 KB", nested(45)?, 20),
    ] {
        let mut document = Document::empty(&actor(0));
        document.replace(&value, None, &Paths::default(), 0)?;
        let document = Document::load(&document.save(), &actor(0))?;
        rows.measure(name, count, |_| {
            black_box(document.to_canonical_json());
            Ok(())
        })?;
    }
    Ok(())
}

/// One node without peers, on a memory engine.
struct Node {
    replica: Replica,
    store: Store,
    now: Now,
    scope: ScopeName,
}

impl Node {
    fn boot() -> Result<Self> {
        let regions = "region = [{ name = \"a\", place = \"A\" }]\n[[rule]]\nname = \"all\"\npattern = \"**\"\nkind = \"document\"\n";
        let regions = Regions::parse("bench", regions)?;
        let now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };
        let mut store = Store::open(Box::new(MemoryEngine::new()))?;
        let region = regions.regions().first().context("a region")?.name.clone();
        let identity = Identity {
            cluster: "bench".into(),
            node: NodeId::new("a-1")?,
            region,
            boot_random: 1,
            new_store_id: 1,
            opening: Opening { accept_loss: true, ..Opening::default() },
            peers: Vec::new(),
            rules: regions.rules().clone(),
            directory: false,
            cache_bytes: 1 << 30,
            log_keep_ms: 600_000,
            digest_key: tropism_replica::DigestKey::default(),
            part_bytes: tropism_replica::limits::FRAME_BYTES,
            settle_keys: tropism_replica::limits::SETTLE_KEYS,
            log_cap_ms: u64::MAX,
            log_cap_bytes: u64::MAX,
            log_keep_bytes: tropism_replica::limits::LOG_KEEP_BYTES,
        };
        let replica = Replica::boot(now, &mut store, identity)?;
        Ok(Self { replica, store, now, scope: ScopeName::new("bench/documents")? })
    }

    fn write(&mut self, key: usize, op: WriteOp) -> Result<()> {
        let write = Write {
            scope: self.scope.clone(),
            key: format!("user-{key:06}"),
            op,
            precondition: None,
            expiry: ExpiryChange::Keep,
            durability: None,
            deadline_us: u64::MAX,
            request_id: None,
            trace: None,
        };
        let input = Input::Write { ticket: 0, write: Box::new(write) };
        self.replica.handle(self.now, &mut self.store, input)?;
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        self.now.mono_us += 1_000;
        self.now.wall_ms += 1;
        self.replica.flush(self.now, &mut self.store)?;
        self.store.commit(self.now.wall_ms)?;
        self.store.sync()?;
        while let Some(output) = self.replica.poll_output() {
            if let Output::Reply { outcome, .. } = output {
                outcome?;
            }
        }
        Ok(())
    }
}

/// Numbers in an order that no cache follows.
struct Order(u64);

impl Order {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

/// An origin's bytes, as long as real ones.
fn actor(node: u8) -> Vec<u8> {
    let mut bytes = b"\x05node-".to_vec();
    bytes.push(b'a' + node);
    bytes.extend([7; 16]);
    bytes
}

fn small(visits: i64) -> Result<Json> {
    let text = format!(
        r#"{{"active":true,"city":"Reykjavik","email":"gudrun.jonsdottir@example.org","id":"b1946ac9-2a4c-4e2f","name":"Gudrun Jonsdottir","note":"prefers tea over coffee, arrives late","plan":"family","visits":{visits}}}"#
    );
    Ok(parse(text.as_bytes(), &JsonLimits::default())?)
}

fn fields(count: usize) -> Result<Json> {
    let field = |n| format!(r#""field-{n:04}":"the value of the field number {n:04}""#);
    let text = (0..count).map(field).collect::<Vec<_>>().join(",");
    Ok(parse(format!("{{{text}}}").as_bytes(), &JsonLimits::default())?)
}

fn nested(count: usize) -> Result<Json> {
    let inner = String::from_utf8(fields(40)?.to_canonical())?;
    let text = (0..count).map(|n| format!(r#""part-{n:04}":{inner}"#)).collect::<Vec<_>>().join(",");
    Ok(parse(format!("{{{text}}}").as_bytes(), &JsonLimits::default())?)
}

fn set(path: &str, value: i64) -> Result<[PatchOp; 1]> {
    Ok([PatchOp::Set { path: Pointer::parse(path)?, value: Json::Int(value) }])
}

fn edits(document: &mut Document, count: usize, from: usize) -> Result<Vec<Vec<u8>>> {
    let edit = |n| {
        let change = document.patch(&set("/visits", n as i64)?, None, &Paths::default(), 0)?;
        change.context("a change")
    };
    (from..from + count).map(edit).collect()
}

fn receive(document: &mut Document, changes: &[Vec<u8>]) -> Result<()> {
    let origin = actor(1);
    let batch: Vec<_> = changes.iter().map(|bytes| PeerChange { origin: &origin, bytes }).collect();
    ensure!(document.apply(&batch)?.applied == changes.len());
    Ok(())
}
