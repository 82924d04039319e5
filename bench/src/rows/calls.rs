//! What a node answers, beside an echo in the same run.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use tonic::transport::Channel;
use tropism_client::v1;
use v1::state_service_client::StateServiceClient;

use super::Plan;
use crate::echo::{EchoClient, Payload};
use crate::load::{Figures, closed, connect};
use crate::nodes::{Cluster, Process, free_port};
use crate::report::{Report, cells, median, middle, number};

/// Keys that calls choose from at random.
const KEYS: u64 = 10_000;
/// Bytes of the echo's message.
const ECHO_BYTES: usize = 64;
/// Items of a bulk call.
const BULK: u64 = 100;

/// A running echo.
pub(crate) async fn start_echo() -> Result<(Process, String)> {
    let port = free_port()?;
    let process = Process::start(Command::new(std::env::current_exe()?).arg("echo").arg(port.to_string()))?;
    let endpoint = format!("http://127.0.0.1:{port}");
    for _ in 0..200 {
        if EchoClient::connect(endpoint.clone()).await.is_ok() {
            return Ok((process, endpoint));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the echo does not start")
}

/// One unary echo.
pub(crate) async fn echo(channel: Channel) -> Result<u64> {
    let data = Bytes::from_static(&[7; ECHO_BYTES]);
    let answer = EchoClient::new(channel).unary(Payload { data }).await?;
    ensure!(answer.into_inner().data.len() == ECHO_BYTES, "the echo answers something else");
    Ok(1)
}

fn key(number: u64) -> String {
    format!("key-{:05}", number % KEYS)
}

/// A document of 200 bytes with five fields, one of which changes.
fn document(number: u64) -> Bytes {
    let filler = |letter: &str| letter.repeat(30);
    Bytes::from(format!(
        "{{\"city\":\"{}\",\"count\":0,\"name\":\"{}\",\"note\":\"{}\",\"status\":\"{number:016x}{}\"}}",
        filler("c"),
        filler("n"),
        filler("o"),
        "s".repeat(12),
    ))
}

fn register(number: u64) -> v1::Value {
    let mut content = vec![7; 200];
    content[..8].copy_from_slice(&number.to_be_bytes());
    let register = v1::Register { content: content.into(), content_type: String::new() };
    v1::Value { value: Some(v1::value::Value::Register(register)) }
}

fn json(number: u64) -> v1::Value {
    v1::Value { value: Some(v1::value::Value::Json(document(number))) }
}

/// A client's stub that takes large answers.
pub(crate) fn stub(channel: Channel) -> StateServiceClient<Channel> {
    StateServiceClient::new(channel).max_decoding_message_size(usize::MAX)
}

async fn get(channel: Channel, scope: &'static str, number: u64) -> Result<u64> {
    let request = v1::GetRequest { scope: scope.to_owned(), key: key(number), ..Default::default() };
    let answer = stub(channel).get(request).await?.into_inner();
    ensure!(answer.entry.is_some(), "a key is missing");
    Ok(1)
}

/// Sets one field of a document.
async fn patch(channel: Channel, number: u64) -> Result<u64> {
    let action = v1::patch_operation::Action::Set(format!("\"{number:016x}ssssssssssss\"").into());
    let operation = v1::PatchOperation { path: "/status".to_owned(), action: Some(action) };
    let operations = v1::PatchOperations { operations: vec![operation] };
    let request = v1::PatchRequest {
        scope: "documents".to_owned(),
        key: key(number),
        patch: Some(v1::patch_request::Patch::Operations(operations)),
        ..Default::default()
    };
    stub(channel).patch(request).await?;
    Ok(1)
}

async fn put(channel: Channel, scope: &'static str, number: u64, value: v1::Value) -> Result<u64> {
    let request = v1::PutRequest {
        scope: scope.to_owned(),
        key: key(number),
        value: Some(value),
        ..Default::default()
    };
    stub(channel).put(request).await?;
    Ok(1)
}

async fn increment(channel: Channel, number: u64) -> Result<u64> {
    let request = v1::IncrementRequest {
        scope: "counters/all".to_owned(),
        key: key(number),
        by: 1,
        ..Default::default()
    };
    stub(channel).increment(request).await?;
    Ok(1)
}

/// Bulk calls of different keys: as many in a row, from a random one on.
fn several(number: u64) -> impl Iterator<Item = u64> {
    let first = number % KEYS;
    (0..BULK).map(move |offset| first + offset)
}

async fn batch_get(channel: Channel, number: u64) -> Result<u64> {
    let keys = several(number).map(key).collect();
    let request = v1::BatchGetRequest { scope: "documents".to_owned(), keys, ..Default::default() };
    let answer = stub(channel).batch_get(request).await?.into_inner();
    ensure!(answer.entries.len() as u64 == BULK, "keys are missing");
    Ok(BULK)
}

/// Puts many values in one call.
pub(crate) async fn put_many(
    channel: Channel,
    scope: &str,
    values: impl Iterator<Item = (String, v1::Value)>,
) -> Result<u64> {
    let items: Vec<v1::BatchPutItem> = values
        .map(|(key, value)| v1::BatchPutItem { key, value: Some(value), ..Default::default() })
        .collect();
    let request = v1::BatchPutRequest { scope: scope.to_owned(), items, ..Default::default() };
    let answer = stub(channel).batch_put(request).await?.into_inner();
    if let Some(failure) = answer.results.iter().find_map(|result| result.failure.as_ref()) {
        anyhow::bail!("a put failed: {}", failure.message);
    }
    Ok(answer.results.len() as u64)
}

async fn batch_increment(channel: Channel, number: u64) -> Result<u64> {
    let items =
        several(number).map(|key| v1::BatchIncrementItem { key: self::key(key), by: 1, expiry: None });
    let items = items.collect();
    let request = v1::BatchIncrementRequest { scope: "counters/all".to_owned(), items, ..Default::default() };
    stub(channel).batch_increment(request).await?;
    Ok(BULK)
}

/// What is called in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    GetDocument,
    GetRegister,
    PatchDocument,
    PutDocument,
    PutRegister,
    Increment,
    BatchGet,
    BatchPutDocuments,
    BatchPutRegisters,
    BatchIncrement,
}

impl Op {
    async fn call(self, channel: Channel, random: u64) -> Result<u64> {
        match self {
            Self::GetDocument => get(channel, "documents", random).await,
            Self::GetRegister => get(channel, "registers/all", random).await,
            Self::PatchDocument => patch(channel, random).await,
            Self::PutDocument => put(channel, "documents", random, json(random)).await,
            Self::PutRegister => put(channel, "registers/all", random, register(random)).await,
            Self::Increment => increment(channel, random).await,
            Self::BatchGet => batch_get(channel, random).await,
            Self::BatchPutDocuments => {
                let values = several(random).map(|number| (key(number), json(number ^ random)));
                put_many(channel, "documents", values).await
            }
            Self::BatchPutRegisters => {
                let values = several(random).map(|number| (key(number), register(number ^ random)));
                put_many(channel, "registers/all", values).await
            }
            Self::BatchIncrement => batch_increment(channel, random).await,
        }
    }
}

/// A row: name, call, calls in flight, and the least ratio to the echo.
const ROWS: [(&str, Op, usize, Option<f64>); 12] = [
    ("get, document of 200 B", Op::GetDocument, 64, Some(0.75)),
    ("get, register of 200 B", Op::GetRegister, 64, Some(0.75)),
    ("patch of one field, durable", Op::PatchDocument, 64, Some(0.14)),
    ("put of a document, durable", Op::PutDocument, 64, None),
    ("put of a register, durable", Op::PutRegister, 64, Some(0.35)),
    ("increment, durable", Op::Increment, 64, Some(0.35)),
    ("patch, one in flight", Op::PatchDocument, 1, None),
    ("put of a register, one in flight", Op::PutRegister, 1, None),
    ("bulk get of 100 documents", Op::BatchGet, 8, None),
    ("bulk put of 100 documents", Op::BatchPutDocuments, 8, None),
    ("bulk put of 100 registers", Op::BatchPutRegisters, 8, None),
    ("bulk increment of 100", Op::BatchIncrement, 8, None),
];

/// Gets, puts and bulk calls of one node. Every run of a row follows a run of the echo; their ratio counts.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let (echo_process, echo_endpoint) = start_echo().await?;
    let echo_pid = [echo_process.pid()];
    let cluster = Cluster::new(&plan.program, &plan.dir.join("calls"), 1)?;
    let (node, _) = cluster.start(0).await?;
    let echo_channels = connect(&echo_endpoint, 4).await?;
    let channels = connect(&cluster.endpoint(0), 4).await?;
    for first in (0..KEYS).step_by(500) {
        let channel = &channels[0];
        let keys = first..first + 500;
        put_many(channel.clone(), "documents", keys.clone().map(|number| (key(number), json(number))))
            .await?;
        put_many(channel.clone(), "registers/all", keys.map(|number| (key(number), register(number))))
            .await?;
    }

    let header = [
        "",
        "per second",
        "of echo",
        "p50 us",
        "p99 us",
        "p99 of echo",
        "server us",
        "client us",
        "other cores",
    ];
    let mut rows = vec![cells(header)];
    let mut figures = serde_json::Map::new();
    let mut rates: Vec<(Op, usize, f64)> = Vec::new();
    let mut echoes = Vec::new();
    for (name, op, in_flight, bar) in ROWS.into_iter().filter(|row| row.0.contains(&plan.row)) {
        let (mut runs, mut ratios, mut tails) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..plan.runs {
            let echo_flight = if in_flight == 1 { 1 } else { 64 };
            let echo =
                closed(&echo_channels, echo_flight, plan.time, &echo_pid, |channel, _| echo(channel)).await?;
            let call = move |channel, random| op.call(channel, random);
            let run = closed(&channels, in_flight, plan.time, &[node.pid()], call).await?;
            ratios.push(run.per_second / echo.per_second);
            tails.push(run.p99_us / echo.p99_us);
            runs.push(run);
            if in_flight != 1 {
                echoes.push(echo);
            }
        }
        let (run, ratio, tail) = (middle(runs), median(ratios), median(tails));
        rates.push((op, in_flight, run.per_second));
        rows.push(line(name, run, Some((ratio, tail))));
        figures.insert(
            name.to_owned(),
            json!({ "figures": run.to_json(), "of_echo": ratio, "p99_of_echo": tail }),
        );
        if let Some(bar) = bar {
            report.at_least(format!("{name}: of echo"), ratio, bar);
        }
        if op == Op::GetDocument {
            report.at_most(format!("{name}: p99 of echo's"), tail, 2.0);
        }
        if in_flight == 1 {
            report.at_most(format!("{name}: p50 ms"), run.p50_us / 1e3, 0.5);
        }
    }
    let echo = middle(echoes);
    rows.insert(1, line("echo of 64 B", echo, None));
    figures.insert("echo".to_owned(), echo.to_json());
    let rate = |wanted: Op| {
        rates.iter().find(|(op, in_flight, _)| *op == wanted && *in_flight > 1).map_or(f64::NAN, |row| row.2)
    };
    for (name, bulk, unary) in [
        ("bulk get: of unary", Op::BatchGet, Op::GetDocument),
        ("bulk put of documents: of unary", Op::BatchPutDocuments, Op::PutDocument),
        ("bulk put of registers: of unary", Op::BatchPutRegisters, Op::PutRegister),
        ("bulk increment: of unary", Op::BatchIncrement, Op::Increment),
    ] {
        if rate(bulk).is_finite() && rate(unary).is_finite() {
            report.at_least(name, rate(bulk) / rate(unary), 3.0);
        }
    }
    report.table("One node, 4 connections, 64 calls in flight (bulk: 8), 10 000 keys; us per item", &rows);
    report.keep("calls", figures.into());
    node.stop().context("the node")
}

fn line(name: &str, run: Figures, of_echo: Option<(f64, f64)>) -> Vec<String> {
    let (ratio, tail) =
        of_echo.map_or((String::new(), String::new()), |(r, t)| (format!("{r:.3}"), format!("{t:.2}")));
    vec![
        name.to_owned(),
        number(run.per_second),
        ratio,
        number(run.p50_us),
        number(run.p99_us),
        tail,
        number(run.server_us),
        number(run.client_us),
        format!("{:.2}", run.foreign),
    ]
}
