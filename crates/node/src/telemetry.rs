//! What a node tells of itself: traces that cross regions, and metrics.
//!
//! A trace has a span for a call, one for its commit here, one wherever its change is applied.
//! The decision falls when a call comes: a client's `traceparent` decides, without one the node's own share of calls. A
//! call that is not sampled costs a look at its headers and a random number. Spans live in a subscriber of their own: no
//! log line and no field of one can get into a trace, and several nodes in a process tell nothing about each other. What
//! the replica applied it tells as data; the spans of that are made here, too. Metrics are counted in `metrics`, written
//! down in `sheet` and told by `scrape`.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use opentelemetry::trace::{
    Link, SpanBuilder, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tracing::{Dispatch, Level, Span, dispatcher, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tropism_crdt::{NodeId, TraceContext};
use tropism_replica::{Now, Traced};

use crate::config::{CheckedConfig, NodeConfig};

pub(crate) mod calls;
pub(crate) mod context;
mod export;
pub mod log;
pub(crate) mod metrics;
pub mod names;
mod process;
pub(crate) mod push;
pub(crate) mod recent;
pub(crate) mod scrape;
pub(crate) mod sheet;
#[cfg(test)]
pub(crate) mod tests;

use context::Incoming;
use export::{Counts, Exporter};
use metrics::Metrics;
use recent::{Ended, Recent};
use sheet::Sheet;

/// Of all spans, so that the subscriber takes nothing else.
const TARGET: &str = "tropism::trace";
/// A change that is applied so long after it was made begins a trace of its own, which links to the write's: a trace
/// that is open for hours while a region is cut off helps nobody.
pub const LATE: Duration = Duration::from_secs(10);
/// What [`Telemetry::server`] draws from.
pub(crate) const MILLION: u32 = 1_000_000;

/// Where spans go (by default nowhere, not even to be kept), and what is counted. Cheap to clone.
#[derive(Clone, Default)]
pub struct Telemetry {
    on: Option<Arc<On>>,
    malformed: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.on.is_some() { "Telemetry(on)" } else { "Telemetry(off)" })
    }
}

struct On {
    /// Takes spans of `tracing` and hands them to `tracer`.
    dispatch: Dispatch,
    tracer: SdkTracer,
    /// Calls of a million that are sampled without being asked to.
    sampling_ppm: AtomicU32,
    counts: Arc<Counts>,
    /// Whether spans go to a collector.
    exports: bool,
    recent: Recent,
}

/// A span that ends when this is dropped.
#[expect(dead_code, reason = "what is in it is dropped, not read")]
pub(crate) enum Open {
    Commit(Span),
    Apply(Box<opentelemetry_sdk::trace::Span>),
}

/// What makes the exporter stop.
pub(crate) struct Running(Option<Exporter>);

impl Running {
    /// Sends what waits, for two seconds at most. Blocks the calling thread.
    pub(crate) fn stop(self) {
        if let Some(exporter) = self.0 {
            exporter.stop();
        }
    }
}

impl Telemetry {
    /// Starts to count and to trace, and to export if the configuration says where to.
    pub(crate) fn start(checked: &CheckedConfig, version: &str) -> io::Result<(Self, Running)> {
        let config = &checked.config;
        let peers: Vec<(NodeId, String)> =
            config.peers.iter().map(|peer| (peer.id, peer.region.as_str().to_owned())).collect();
        let metrics = Arc::new(Metrics::new(config.node.region.as_str(), &peers));
        let told = resource(config, version);
        // Empty to begin with: what the environment says of resources is not in the list of names.
        let resource = Resource::builder_empty()
            .with_attributes(told.into_iter().map(|(name, value)| KeyValue::new(name, value)))
            .build();
        let counts = Arc::new(Counts::default());
        let recent = Recent::default();
        let mut provider = SdkTracerProvider::builder()
            .with_span_processor(recent.clone())
            .with_resource(resource.clone())
            .with_sampler(Sampler::AlwaysOn); // whether a call is sampled is decided before it has a span
        let mut exporter = None;
        if let Some(otlp) = &config.telemetry.otlp {
            let (started, queue) = Exporter::start(otlp, resource, counts.clone())?;
            provider = provider.with_span_processor(queue);
            exporter = Some(started);
        }
        // Without a collector only clients decide, who ask for the spans themselves.
        let exports = exporter.is_some();
        let sampling_ppm = if exports { config.telemetry.sampling_ppm } else { 0 };
        let on = On { exports, recent, ..On::new(&provider.build(), sampling_ppm, counts) };
        Ok((Self { on: Some(Arc::new(on)), malformed: Arc::default(), metrics }, Running(exporter)))
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Writes down what was counted.
    pub(crate) fn write(&self, sheet: &mut Sheet) {
        self.metrics.write(sheet);
        process::write(sheet);
        sheet.counter(&names::MALFORMED, &[], self.malformed());
    }

    /// How many of a million calls are sampled without being asked to, and whether there is a collector to send them to.
    pub(crate) fn sampling(&self) -> (u32, bool) {
        self.on.as_ref().map_or((0, false), |on| (on.sampling_ppm.load(Ordering::Relaxed), on.exports))
    }

    /// Samples so many of a million calls from now on, at most all; without a collector none, as before.
    pub(crate) fn set_sampling(&self, sampling_ppm: u32) {
        if let Some(on) = self.on.as_ref().filter(|on| on.exports) {
            on.sampling_ppm.store(sampling_ppm.min(MILLION), Ordering::Relaxed);
        }
    }

    /// Calls whose `traceparent` was none.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Spans that wait for the collector, how many may wait, and how many were dropped; `None` when nothing is exported.
    pub(crate) fn queue(&self) -> Option<(usize, usize, u64)> {
        let counts = &self.on.as_ref().filter(|on| on.exports)?.counts;
        Some((
            usize::try_from(counts.waiting()).unwrap_or(usize::MAX),
            export::WAITING_SPANS,
            counts.dropped(),
        ))
    }

    /// What a write carries where no span is exported: its client's context, for regions that do export, whose spans
    /// would have a parent that no collector ever sees.
    pub(crate) fn passed_on(&self, headers: &HeaderMap) -> Option<TraceContext> {
        if self.on.as_ref().is_some_and(|on| on.exports) {
            return None; // a sampled call has a span, and its write carries that one's context
        }
        match Incoming::of(headers) {
            Incoming::Sampled(context) => Some(context),
            _ => None,
        }
    }

    /// The last spans of a trace that ended here.
    pub(crate) fn spans(&self, trace_id: [u8; 16]) -> Vec<Ended> {
        self.on.as_ref().map(|on| on.recent.of(TraceId::from_bytes(trace_id))).unwrap_or_default()
    }

    fn incoming(&self, headers: &HeaderMap) -> Incoming {
        let incoming = Incoming::of(headers);
        if incoming == Incoming::Malformed {
            self.malformed.fetch_add(1, Ordering::Relaxed);
        }
        incoming
    }

    /// The span of a call that comes now, if it is sampled.
    pub(crate) fn server(&self, path: &str, headers: &HeaderMap) -> Option<Span> {
        let on = self.on.as_ref()?;
        let parent = match self.incoming(headers) {
            Incoming::Unsampled => return None,
            Incoming::Sampled(context) => Some(context),
            Incoming::Absent | Incoming::Malformed => {
                let sampling_ppm = on.sampling_ppm.load(Ordering::Relaxed);
                let drawn = sampling_ppm > 0 && rand::random_range(0..MILLION) < sampling_ppm;
                drawn.then_some(())?;
                None
            }
        };
        let (service, method) = names::method(path);
        let name = if method == names::OTHER { names::OTHER } else { path.trim_start_matches('/') };
        let span = on.span(name, "server");
        if let Some(parent) = parent {
            // It was not entered or asked for its context yet, so this cannot fail.
            span.set_parent(Context::new().with_remote_span_context(span_context(&parent))).ok();
        }
        span.set_attribute(names::RPC_SYSTEM, "grpc");
        span.set_attribute(names::RPC_SERVICE, service);
        span.set_attribute(names::RPC_METHOD, method);
        Some(span)
    }

    /// The span of a write's commit within a sampled call, and what its change carries.
    pub(crate) fn commit(&self, call: Option<&Span>, scope: &str) -> Option<(Span, TraceContext)> {
        let (on, call) = (self.on.as_ref()?, call?);
        let span = on.span(names::COMMIT, "internal");
        span.set_parent(call.context()).ok(); // as above
        span.set_attribute(names::SCOPE, scope.to_owned());
        let context = span.context();
        let context = context.span().span_context().clone();
        let trace = TraceContext {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            flags: context.trace_flags().to_u8(),
        };
        Some((span, trace))
    }

    /// The spans of changes that were applied in the turn that ends `now`.
    pub(crate) fn applied(&self, now: Now, traced: Traced, open: &mut Vec<Open>) {
        let Some(on) = &self.on else { return };
        on.counts.lose(traced.missed);
        let wall = SystemTime::now();
        for change in traced.changes {
            let since = Duration::from_micros(now.mono_us.saturating_sub(change.at.mono_us));
            let lag_ms = change.at.wall_ms.saturating_sub(change.stamp.unix_ms());
            let made_by = span_context(&change.trace);
            let (parent, links) = if u128::from(lag_ms) > LATE.as_millis() {
                (Context::new(), vec![Link::with_context(made_by)])
            } else {
                (Context::new().with_remote_span_context(made_by), Vec::new())
            };
            let span = SpanBuilder::from_name(names::APPLY)
                .with_kind(SpanKind::Consumer)
                .with_start_time(wall.checked_sub(since).unwrap_or(wall))
                .with_attributes([
                    KeyValue::new(names::SCOPE, change.scope),
                    KeyValue::new(names::ORIGIN, change.origin.as_str().to_owned()),
                    KeyValue::new(names::LAG, i64::try_from(lag_ms).unwrap_or(i64::MAX)),
                ])
                .with_links(links)
                .start_with_context(&on.tracer, &parent);
            open.push(Open::Apply(Box::new(span)));
        }
    }
}

/// What is said of a node to whom it exports to.
pub(crate) fn resource(config: &NodeConfig, version: &str) -> Vec<(&'static str, String)> {
    let node = config.node.id.as_str();
    [
        (names::SERVICE_NAME, names::SERVICE),
        (names::SERVICE_INSTANCE_ID, node),
        (names::SERVICE_VERSION, version),
        (names::NODE, node),
        (names::REGION, config.node.region.as_str()),
        (names::CLUSTER, &config.cluster.id),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}

impl On {
    fn new(provider: &SdkTracerProvider, sampling_ppm: u32, counts: Arc<Counts>) -> Self {
        let tracer = provider.tracer(names::SERVICE);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer.clone())
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        let only_ours = Targets::new().with_target(TARGET, Level::INFO);
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(only_ours).with(layer));
        let sampling_ppm = AtomicU32::new(sampling_ppm);
        Self { dispatch, tracer, sampling_ppm, counts, exports: false, recent: Recent::default() }
    }

    /// Never a child by `tracing`'s own rules: the registry lets go of a parent through the default subscriber of the
    /// thread, which is not this one, so that the parent would never end. Parents are set by their contexts.
    fn span(&self, name: &str, kind: &str) -> Span {
        dispatcher::with_default(
            &self.dispatch,
            || info_span!(target: TARGET, parent: None, "span", otel.name = name, otel.kind = kind),
        )
    }
}

/// A context of somewhere else.
fn span_context(context: &TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(context.trace_id),
        SpanId::from_bytes(context.span_id),
        TraceFlags::new(context.flags),
        true,
        TraceState::default(),
    )
}
