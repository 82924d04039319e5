//! What a call costs by transport: unary calls, a stream, and bare datagrams.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::Plan;
use super::calls::{echo, start_echo};
use crate::echo::{EchoClient, Payload};
use crate::load::{Figures, closed, connect};
use crate::machine::{Usage, quiet};
use crate::report::{Report, cells, number};

/// Bytes of a message.
const BYTES: usize = 64;

/// Echoes of 64 B by unary calls, over a stream and as datagrams, one and 64 in flight.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let (process, endpoint) = start_echo().await?;
    let servers = [process.pid()];
    let channels = connect(&endpoint, 4).await?;
    let port: u16 = endpoint.rsplit(':').next().unwrap_or_default().parse()?;
    let mut rows = vec![cells([
        "",
        "in flight",
        "per second",
        "p50 us",
        "p99 us",
        "server us",
        "client us",
        "other cores",
    ])];
    let mut figures = Vec::new();
    for in_flight in [1, 64] {
        let unary = closed(&channels, in_flight, plan.time, &servers, |channel, _| echo(channel)).await?;
        quiet().await;
        let stream = stream(&endpoint, in_flight, plan.time, &servers).await?;
        quiet().await;
        let datagrams = datagrams(port, in_flight, plan.time, &servers).await?;
        for (name, run) in [("unary call", unary), ("one stream", stream), ("datagrams", datagrams)] {
            rows.push(vec![
                name.to_owned(),
                in_flight.to_string(),
                number(run.per_second),
                number(run.p50_us),
                number(run.p99_us),
                number(run.server_us),
                number(run.client_us),
                format!("{:.2}", run.foreign),
            ]);
            figures.push(json!({ "transport": name, "in_flight": in_flight, "figures": run.to_json() }));
        }
    }
    report.table(
        "Echo of 64 B by transport; unary over 4 connections, datagrams over a socket a worker",
        &rows,
    );
    report.keep("transport", figures.into());
    Ok(())
}

/// One stream with so many messages in flight.
async fn stream(endpoint: &str, in_flight: usize, time: Duration, servers: &[u32]) -> Result<Figures> {
    let (messages, queue) = mpsc::channel(in_flight);
    let mut client = EchoClient::connect(endpoint.to_owned()).await?;
    let mut answers = {
        let message = || Payload { data: Bytes::from_static(&[7; BYTES]) };
        messages.send(message()).await?; // the answer's headers come with the first message
        client.duplex(ReceiverStream::new(queue)).await?.into_inner()
    };
    let mut sent = std::collections::VecDeque::from([Instant::now()]);
    let mut times = Histogram::<u64>::new(3)?;
    let (start, mut items) = (Instant::now(), 0_u64);
    let usage = Usage::of(servers);
    while start.elapsed() < time {
        while sent.len() < in_flight {
            messages.send(Payload { data: Bytes::from_static(&[7; BYTES]) }).await?;
            sent.push_back(Instant::now());
        }
        if answers.message().await?.is_none() {
            break;
        }
        if let Some(sent) = sent.pop_front() {
            times.record(u64::try_from(sent.elapsed().as_nanos())?)?;
        }
        items += 1;
    }
    Ok(figures(&usage, items, &times))
}

/// Datagrams, each worker with a socket of its own and one in flight. A datagram that is lost is sent again.
async fn datagrams(port: u16, in_flight: usize, time: Duration, servers: &[u32]) -> Result<Figures> {
    let usage = Usage::of(servers);
    let end = Instant::now() + time;
    let mut workers = JoinSet::new();
    for _ in 0..in_flight {
        workers.spawn(async move {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            socket.connect((Ipv4Addr::LOCALHOST, port)).await?;
            let (mut times, mut items) = (Histogram::<u64>::new(3)?, 0_u64);
            let mut buffer = [7; BYTES];
            while Instant::now() < end {
                let start = Instant::now();
                socket.send(&buffer).await?;
                let answer = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut buffer));
                if answer.await.is_ok() {
                    times.record(u64::try_from(start.elapsed().as_nanos())?)?;
                    items += 1;
                }
            }
            anyhow::Ok((items, times))
        });
    }
    let (mut items, mut times) = (0, Histogram::<u64>::new(3)?);
    while let Some(worker) = workers.join_next().await {
        let (more, more_times) = worker??;
        items += more;
        times.add(more_times)?;
    }
    Ok(figures(&usage, items, &times))
}

fn figures(usage: &Usage, items: u64, times: &Histogram<u64>) -> Figures {
    let used = usage.used();
    let each = |seconds: f64| seconds * 1e6 / items.max(1) as f64;
    Figures {
        per_second: items as f64 / used.seconds,
        p50_us: times.value_at_quantile(0.5) as f64 / 1e3,
        p99_us: times.value_at_quantile(0.99) as f64 / 1e3,
        server_us: each(used.servers),
        client_us: each(used.client),
        foreign: used.foreign,
    }
}
