//! Spans on their way to a collector.
//!
//! Who ends a span puts it into a bounded queue and goes on; a full queue drops it. A thread with a runtime of its own
//! takes them from there and sends them in batches, with a time limit each. So a collector that is dead, slow or hangs
//! costs spans, never a request, and no more than [`STOP_TIME`] when the node stops.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::{mpsc, watch};
use tracing::warn;

/// Spans that wait for the collector; beyond it they are dropped. A few MiB.
pub(crate) const QUEUE_SPANS: usize = 4_096;
/// Spans of one message: far below the 4 MiB that a collector takes.
const BATCH_SPANS: usize = 512;
/// Spans that can wait at once: those of the queue, and the batch that is being sent.
pub(crate) const WAITING_SPANS: usize = QUEUE_SPANS + BATCH_SPANS;
/// How long a span waits for company.
const LINGER: Duration = Duration::from_millis(500);
/// How long the collector may take for a batch; then it is dropped.
pub(super) const EXPORT_TIME: Duration = Duration::from_secs(5);
/// How long a stopping node goes on sending what waits.
pub(crate) const STOP_TIME: Duration = Duration::from_secs(2);
/// Drops are logged this often at most.
pub(super) const WARN_EVERY: Duration = Duration::from_secs(60);

/// What became of spans since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Ended ones that were put into the queue.
    queued: AtomicU64,
    /// Those that the collector has taken.
    exported: AtomicU64,
    /// Those that were dropped: the queue was full, or the collector did not take them.
    dropped: AtomicU64,
    /// Those of them that had been in the queue.
    refused: AtomicU64,
}

impl Counts {
    /// Spans that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts spans that are dropped.
    pub(crate) fn lose(&self, spans: u64) {
        self.dropped.fetch_add(spans, Ordering::Relaxed);
    }

    /// Spans that wait.
    pub(crate) fn waiting(&self) -> u64 {
        let gone = self.exported.load(Ordering::Relaxed) + self.refused.load(Ordering::Relaxed);
        self.queued.load(Ordering::Relaxed).saturating_sub(gone)
    }
}

/// Puts spans that ended into the queue. Never waits.
#[derive(Debug)]
pub(crate) struct Queue {
    spans: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        match self.spans.try_send(span) {
            Ok(()) => self.counts.queued.fetch_add(1, Ordering::Relaxed),
            Err(_) => self.counts.dropped.fetch_add(1, Ordering::Relaxed),
        };
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(()) // nobody waits for a collector
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(()) // the thread is stopped by who started it
    }
}

/// The thread that sends.
pub(crate) struct Exporter {
    stop: watch::Sender<bool>,
    /// Ends when the thread does.
    ended: blocking::Receiver<()>,
    counts: Arc<Counts>,
}

impl Exporter {
    /// Starts it. Whether there is a collector behind the URL is not looked at.
    pub(crate) fn start(otlp: &str, resource: Resource, counts: Arc<Counts>) -> io::Result<(Self, Queue)> {
        let (spans, queue) = mpsc::channel(QUEUE_SPANS);
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = blocking::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let exporter = {
            let _within = runtime.enter(); // the connection is made by this runtime
            let builder = SpanExporter::builder().with_tonic().with_endpoint(otlp).with_timeout(EXPORT_TIME);
            builder.build().map_err(|error| io::Error::other(format!("telemetry.otlp: {error}")))?
        };
        let (queue_counts, worker_counts) = (counts.clone(), counts.clone());
        std::thread::Builder::new().name("telemetry".into()).spawn(move || {
            let _alive = alive;
            let mut exporter = exporter;
            exporter.set_resource(&resource);
            let mut worker = Worker { exporter, queue, counts: worker_counts, warned: None, told: 0 };
            let mut cut_off = stopped.clone();
            runtime.block_on(async {
                let over = async {
                    cut_off.wait_for(|stop| *stop).await.ok(); // without a sender everything is over
                    tokio::time::sleep(STOP_TIME).await;
                };
                tokio::select! {
                    () = worker.run(stopped) => {}
                    () = over => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok((Self { stop, ended, counts }, Queue { spans, counts: queue_counts }))
    }

    /// Sends what waits, for [`STOP_TIME`] at most. Blocks the calling thread.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
        // It ends by itself within that time; a thread that does not is left alone.
        self.ended.recv_timeout(STOP_TIME + Duration::from_secs(1)).ok();
        let lost = self.counts.waiting();
        if lost > 0 {
            warn!(lost, "spans were not exported before the stop");
        }
    }
}

struct Worker {
    exporter: SpanExporter,
    queue: mpsc::Receiver<SpanData>,
    counts: Arc<Counts>,
    /// When drops were logged last, and how many there were.
    warned: Option<Instant>,
    told: u64,
}

impl Worker {
    /// Until it is to stop and nothing waits.
    async fn run(&mut self, mut stopped: watch::Receiver<bool>) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                count = self.queue.recv_many(&mut batch, BATCH_SPANS) => if count == 0 { return },
                _ = stopped.wait_for(|stop| *stop) => return, // and nothing waits
            }
            if batch.len() < BATCH_SPANS {
                let stop = stopped.wait_for(|stop| *stop);
                tokio::time::timeout(LINGER, stop).await.ok();
                while batch.len() < BATCH_SPANS
                    && let Ok(span) = self.queue.try_recv()
                {
                    batch.push(span);
                }
            }
            self.send(batch).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        let problem = match tokio::time::timeout(EXPORT_TIME, self.exporter.export(batch)).await {
            Ok(Ok(())) => {
                self.counts.exported.fetch_add(spans, Ordering::Relaxed);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {EXPORT_TIME:?}")),
        };
        if problem.is_some() {
            self.counts.refused.fetch_add(spans, Ordering::Relaxed);
            self.counts.lose(spans);
        }
        let dropped = self.counts.dropped();
        if dropped > self.told && self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            let since = dropped - self.told;
            let problem = problem.unwrap_or_else(|| "the queue was full".to_owned());
            warn!(dropped = since, problem, "spans were dropped instead of exported");
            (self.warned, self.told) = (Some(Instant::now()), dropped);
        }
    }
}
