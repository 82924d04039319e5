//! The last spans of a node, for who asks it about one trace.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

/// Spans that are kept, the last ones: those of some hundred writes, and less than a MiB.
pub(crate) const RECENT_SPANS: usize = 1_024;

/// A span that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) trace: TraceId,
    pub(crate) span: SpanId,
    pub(crate) parent: SpanId,
    /// Of another trace: what it came from, when it was late.
    pub(crate) link: Option<(TraceId, SpanId)>,
    pub(crate) name: String,
    /// Unix us.
    pub(crate) start_us: u64,
    pub(crate) duration_us: u64,
    pub(crate) attributes: Vec<(String, String)>,
}

/// The last spans. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent(Arc<Mutex<VecDeque<Ended>>>);

impl Recent {
    /// Those that belong to a trace or were made by it, in the order of their ends.
    pub(crate) fn of(&self, trace: TraceId) -> Vec<Ended> {
        let spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of = |span: &&Ended| span.trace == trace || span.link.is_some_and(|(of, _)| of == trace);
        spans.iter().filter(is_of).cloned().collect()
    }
}

impl SpanProcessor for Recent {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let since = |from: SystemTime, to: SystemTime| us(to.duration_since(from).unwrap_or_default());
        let text =
            |attribute: opentelemetry::KeyValue| (attribute.key.to_string(), attribute.value.to_string());
        let ended = Ended {
            trace: span.span_context.trace_id(),
            span: span.span_context.span_id(),
            parent: span.parent_span_id,
            link: span
                .links
                .iter()
                .next()
                .map(|link| (link.span_context.trace_id(), link.span_context.span_id())),
            name: span.name.into_owned(),
            start_us: since(UNIX_EPOCH, span.start_time),
            duration_us: since(span.start_time, span.end_time),
            attributes: span.attributes.into_iter().map(text).collect(),
        };
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() >= RECENT_SPANS {
            spans.pop_front();
        }
        spans.push_back(ended);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::Context;
    use opentelemetry::trace::{
        Link, Span, SpanBuilder, SpanContext, SpanId, TraceFlags, TraceId, TraceState, Tracer, TracerProvider,
    };
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::{RECENT_SPANS, Recent};

    #[test]
    fn a_span_that_came_late_is_found_by_what_made_it() {
        let recent = Recent::default();
        let provider = SdkTracerProvider::builder().with_span_processor(recent.clone()).build();
        let (trace, span) = (TraceId::from_bytes([1; 16]), SpanId::from_bytes([2; 8]));
        let made_by = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default());
        let late = SpanBuilder::from_name("late").with_links(vec![Link::with_context(made_by)]);
        drop(late.start_with_context(&provider.tracer("test"), &Context::new()));
        let found = recent.of(trace);
        assert_eq!(found.len(), 1);
        assert!(found[0].trace != trace && found[0].link == Some((trace, span)), "{found:?}");
    }

    #[test]
    fn the_last_spans_are_kept_and_found_by_their_trace() {
        let recent = Recent::default();
        let provider = SdkTracerProvider::builder().with_span_processor(recent.clone()).build();
        let tracer = provider.tracer("test");
        let first = tracer.start("first").span_context().trace_id();
        assert_eq!(recent.of(first).len(), 1);
        for _ in 1..RECENT_SPANS {
            drop(tracer.start("more"));
        }
        assert_eq!(recent.of(first)[0].name, "first");
        drop(tracer.start("one too many"));
        assert_eq!(recent.of(first), []);
        assert_eq!(recent.0.lock().map_or(0, |spans| spans.len()), RECENT_SPANS);
    }
}
