//! Clients of a real world whose links are cut and whose nodes are killed and paused, and the history of what they saw.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tropism_client::{Calls, Effect, Value as Shown};
use tropism_sim::history::{Op, Operation, Outcome, Value, order_of};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a world may take to start, and to become equal in the end.
const MENDED: Duration = Duration::from_secs(90);
/// How often a session goes to another region, percent.
const HOPS_PERCENT: u32 = 30;
const REGISTERS: &str = "cache/history";
const COUNTERS: &str = "stats/history";

/// What is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program `tropism`.
    pub program: PathBuf,
    /// Where its stores are made.
    pub dir: PathBuf,
    /// How long clients call.
    pub time: Duration,
    /// Sessions, each one call after the other.
    pub sessions: usize,
    /// Keys of each kind.
    pub keys: usize,
}

/// Runs it: three regions, sessions that hop between them, and faults until everything is mended.
pub async fn run(plan: &Plan) -> Result<Vec<Operation>> {
    let world = World::start(plan).await?;
    let begun = Instant::now();
    let (stop, stopped) = watch::channel(false);
    let mut sessions = JoinSet::new();
    for number in 0..plan.sessions {
        let session = Session {
            process: format!("session-{number}"),
            regions: world.regions.clone(),
            keys: plan.keys,
            begun,
            made: 0,
        };
        sessions.spawn(session.run(stopped.clone()));
    }
    while begun.elapsed() < plan.time {
        world.break_and_mend(plan.time.saturating_sub(begun.elapsed())).await?;
    }
    stop.send_replace(true);
    let mut history = Vec::new();
    while let Some(operations) = sessions.join_next().await {
        history.extend(operations?);
    }
    history.extend(world.end(plan, begun).await?);
    history.sort_by_key(|operation| operation.from_us);
    Ok(history)
}

/// A development world.
struct World {
    program: PathBuf,
    ready: PathBuf,
    /// Name, endpoint and node of each region.
    regions: Vec<(String, String, String)>,
    process: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        self.process.kill().ok(); // its nodes end with it
        self.process.wait().ok();
    }
}

impl World {
    async fn start(plan: &Plan) -> Result<Self> {
        let ready = plan.dir.join("ready.json");
        let mut command = Command::new(&plan.program);
        command.arg("dev").arg("--data").arg(plan.dir.join("data")).arg("--ready-file").arg(&ready);
        command
            .env("XDG_STATE_HOME", &plan.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut world = Self { program: plan.program.clone(), ready, regions: Vec::new(), process };
        let begun = Instant::now();
        while !world.ready.exists() {
            ensure!(begun.elapsed() < MENDED, "the world does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let text: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&world.ready)?)?;
        for region in text["regions"].as_array().context("a world without regions")? {
            let word = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("no word");
            world.regions.push((
                word(&region["name"])?,
                word(&region["endpoint"])?,
                word(&region["nodes"][0]["id"])?,
            ));
        }
        Ok(world)
    }

    /// One fault for a while.
    async fn break_and_mend(&self, left: Duration) -> Result<()> {
        let (breaks, mends, millis): (Vec<&str>, Vec<&str>, u64) = {
            let mut random = rand::rng();
            let pair: Vec<&(String, String, String)> = self.regions.sample(&mut random, 2).collect();
            let [(a, _, node), (b, ..)] = pair[..] else { bail!("a world of fewer than two regions") };
            let millis = random.random_range(300..3_000);
            match random.random_range(0..4) {
                0 => (vec!["link", "cut", a, b], vec!["link", "heal", a, b], millis),
                1 => (vec!["link", "cut", a, b, "--one-way"], vec!["link", "heal", a, b], millis),
                2 => (vec!["node", "pause", node], vec!["node", "resume", node], millis / 2),
                _ => (vec!["node", "kill", node], vec!["node", "start", node], millis / 2),
            }
        };
        self.dev(&breaks)?;
        tokio::time::sleep(Duration::from_millis(millis).min(left)).await;
        self.dev(&mends)?;
        tokio::time::sleep(Duration::from_millis(millis / 2).min(left)).await;
        Ok(())
    }

    fn dev(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("dev").args(words).arg("--ready-file").arg(&self.ready).stdin(Stdio::null());
        let output = command.output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// What every region shows of every key, once it is the same.
    async fn end(&self, plan: &Plan, begun: Instant) -> Result<Vec<Operation>> {
        let deadline = Instant::now() + MENDED;
        loop {
            let mut all = Vec::new();
            let mut unlike = None;
            for (scope, key) in keys(plan.keys) {
                let mut shown = Vec::new();
                for (region, endpoint, _) in &self.regions {
                    let client = Calls::in_order(vec![endpoint.clone()])?.with_timeout(PATIENCE);
                    let call = Call { process: format!("end-{region}"), region, begun };
                    if let Some(operation) = call.get(&client, &scope, &key).await {
                        shown.push(Operation { last: true, ..operation });
                    }
                }
                let same = shown.len() == self.regions.len()
                    && shown
                        .windows(2)
                        .all(|two| (&two[0].value, &two[0].order) == (&two[1].value, &two[1].order));
                if !same {
                    unlike = Some(format!("{scope} {key}"));
                }
                all.extend(shown);
            }
            match unlike {
                None => return Ok(all),
                // The history says what differs.
                Some(_) if Instant::now() > deadline => return Ok(all),
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

fn keys(count: usize) -> impl Iterator<Item = (String, String)> {
    let of = move |scope: &'static str| (1..=count).map(move |key| (scope.to_owned(), format!("k{key}")));
    of(REGISTERS).chain(of(COUNTERS))
}

/// One session.
struct Session {
    process: String,
    regions: Vec<(String, String, String)>,
    keys: usize,
    begun: Instant,
    /// Values it put.
    made: u64,
}

impl Session {
    async fn run(mut self, stopped: watch::Receiver<bool>) -> Vec<Operation> {
        let mut operations = Vec::new();
        let mut region = rand::rng().random_range(0..self.regions.len());
        let mut client: Option<Calls> = None;
        while !*stopped.borrow() {
            let (hops, scope, key, is_get, by, pause) = {
                let mut random = rand::rng();
                (
                    random.random_ratio(HOPS_PERCENT, 100),
                    if random.random_ratio(1, 3) { COUNTERS } else { REGISTERS },
                    format!("k{}", random.random_range(1..=self.keys)),
                    random.random_ratio(1, 2),
                    random.random_range(0..10),
                    random.random_range(0..20),
                )
            };
            if hops || client.is_none() {
                let token = client.map(|client| client.token()).unwrap_or_default();
                region = rand::rng().random_range(0..self.regions.len());
                let Ok(there) = Calls::in_order(vec![self.regions[region].1.clone()]) else {
                    return operations;
                };
                let there = there.with_timeout(PATIENCE);
                there.set_token(token);
                client = Some(there);
            }
            let Some(there) = &client else { continue };
            let call =
                Call { process: self.process.clone(), region: &self.regions[region].0, begun: self.begun };
            if is_get {
                operations.extend(call.get(there, scope, &key).await);
            } else if scope == COUNTERS {
                operations.push(call.increment(there, &key, by).await);
            } else {
                self.made += 1;
                let value = format!("{}-{}", self.process, self.made);
                operations.push(call.put(there, &key, value).await);
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        operations
    }
}

/// A call that becomes a line.
struct Call<'a> {
    process: String,
    region: &'a str,
    begun: Instant,
}

impl Call<'_> {
    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn operation(self, from_us: u64, op: Op, (scope, key): (&str, &str), value: Option<Value>) -> Operation {
        Operation {
            to_us: Some(self.now_us()),
            process: self.process,
            region: self.region.to_owned(),
            from_us,
            op,
            scope: scope.to_owned(),
            key: key.to_owned(),
            value,
            outcome: Outcome::Ok,
            order: None,
            last: false,
        }
    }

    /// None when it was not answered: nothing was seen.
    async fn get(self, client: &Calls, scope: &str, key: &str) -> Option<Operation> {
        let from_us = self.now_us();
        let entry = client.get(scope, key).await.ok()?.entry;
        let value = match entry.as_ref().and_then(|entry| entry.value.as_ref()) {
            Some(Shown::Register(register)) => {
                Some(Value::Text(String::from_utf8_lossy(&register.content).into_owned()))
            }
            Some(Shown::Counter(sum)) => Some(Value::Sum(u64::try_from(*sum).unwrap_or(u64::MAX))),
            _ => None,
        };
        let order = entry.and_then(|entry| order_of(&entry.version));
        Some(Operation { order, ..self.operation(from_us, Op::Get, (scope, key), value) })
    }

    async fn put(self, client: &Calls, key: &str, value: String) -> Operation {
        let from_us = self.now_us();
        let written = client.put_register(REGISTERS, key, value.clone(), "").await;
        let operation = self.operation(from_us, Op::Put, (REGISTERS, key), Some(Value::Text(value)));
        match written {
            Ok(written) => Operation { order: order_of(&written.version), ..operation },
            Err(error) => not_done(operation, error.effect()),
        }
    }

    async fn increment(self, client: &Calls, key: &str, by: u64) -> Operation {
        let from_us = self.now_us();
        let added = client.increment(COUNTERS, key, by.cast_signed(), None).await;
        let operation = self.operation(from_us, Op::Increment, (COUNTERS, key), Some(Value::Sum(by)));
        match added {
            Ok(_) => operation,
            Err(error) => not_done(operation, error.effect()),
        }
    }
}

fn not_done(operation: Operation, effect: Effect) -> Operation {
    match effect {
        Effect::None => Operation { outcome: Outcome::Failed, ..operation },
        Effect::Unknown => Operation { outcome: Outcome::Unknown, to_us: None, ..operation },
    }
}

/// The program beside this one in cargo's target folder.
pub fn program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let beside = here.ancestors().skip(1).take(2).map(|folder| folder.join("tropism"));
    beside.into_iter().find(|path: &PathBuf| Path::is_file(path)).context("tropism is not built: cargo build")
}
