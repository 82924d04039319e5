//! The log of a node: text for people or JSON for programs, one record a line.
//!
//! A record that is written while a sampled call runs names its trace. A message that comes again and again is written
//! ten times a second and then counted, so that a log tells of a flood without being one; whoever asks for
//! `debug` or `trace` gets everything.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::io::{self, IsTerminal};
use std::pin::Pin;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use serde_json::{Map, Value};
use thiserror::Error;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

use crate::config::{LogFormat, Telemetry};

/// What is not logged unless the configuration says so: consensus tells every step of its own.
const QUIET: &str = "openraft=error";
/// Records of one message that are written in a second: enough to see that it repeats.
const SAME_MESSAGE: u32 = 10;
/// The time of which [`SAME_MESSAGE`] speaks.
const WINDOW: Duration = Duration::from_secs(1);
/// Bytes of a text in a record, beyond which it is cut: our own are shorter.
const TEXT_BYTES: usize = 4 << 10;

/// Longest filters that are taken while the node runs, in bytes: dozens of targets.
pub const MAX_FILTER_BYTES: usize = 1024;

/// The filters in force, and how others are put in their place.
static FILTERS: OnceLock<Filters> = OnceLock::new();

struct Filters {
    text: Mutex<String>,
    reload: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

/// Filters that are not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// The text has too many bytes.
    #[error("has {0} bytes; at most {MAX_FILTER_BYTES} are taken")]
    TooLong(usize),
    /// The text is none.
    #[error(
        "is no filter: {0}; filters are a level (error, warn, info, debug, trace) or target=level, joined by commas"
    )]
    NoFilter(String),
    /// The process has a log that is not this one.
    #[error("cannot be set: the program that runs this node has a log of its own")]
    NotOurs,
}

/// Writes what the process logs to stderr from now on. Once a process.
pub fn init(config: &Telemetry) {
    // The configuration's filters are known to parse; the fallback says what the log's default is.
    let filter = parsed(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(config.log_format == LogFormat::Text && io::stderr().is_terminal())
        .event_format(Log::new(config.log_format))
        .with_filter_reloading();
    let handle = builder.reload_handle();
    let reload = Box::new(move |filter| handle.reload(filter));
    FILTERS.set(Filters { text: Mutex::new(config.log.clone()), reload }).ok(); // once a process
    builder.init();
}

fn parsed(filters: &str) -> Result<EnvFilter, FilterError> {
    EnvFilter::try_new(format!("{QUIET},{filters}")).map_err(|error| FilterError::NoFilter(error.to_string()))
}

/// The filters in force; `None` where the process has a log that is not this one.
pub fn filters() -> Option<String> {
    FILTERS.get().map(|filters| filters.text.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Checks filters that are to be put in the place of those in force.
///
/// # Errors
/// See [`FilterError`].
pub fn check_filters(text: &str) -> Result<(), FilterError> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(FilterError::TooLong(text.len()));
    }
    if text.trim().is_empty() {
        return Err(FilterError::NoFilter("it is empty".to_owned()));
    }
    parsed(text)?;
    if FILTERS.get().is_some() { Ok(()) } else { Err(FilterError::NotOurs) }
}

/// Logs by these filters from now on, in the whole process.
///
/// # Errors
/// See [`FilterError`]; nothing is changed then.
pub fn set_filters(text: &str) -> Result<(), FilterError> {
    check_filters(text)?;
    let Some(filters) = FILTERS.get() else { return Err(FilterError::NotOurs) };
    let mut current = filters.text.lock().unwrap_or_else(PoisonError::into_inner);
    (filters.reload)(parsed(text)?).map_err(|_| FilterError::NotOurs)?;
    text.clone_into(&mut current);
    Ok(())
}

thread_local! {
    /// The span of the sampled call that this thread works for.
    static CALL: Cell<Option<Ids>> = const { Cell::new(None) };
}

/// Trace and span, as bytes.
type Ids = ([u8; 16], [u8; 8]);

/// A future whose records name the trace of its call.
pub(crate) struct Within<F> {
    pub(crate) future: F,
    pub(crate) call: Named,
}

/// The trace of a call, for records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named(Ids);

impl Named {
    pub(crate) fn new(call: &SpanContext) -> Self {
        Self((call.trace_id().to_bytes(), call.span_id().to_bytes()))
    }

    /// Records of what is done name the trace.
    pub(crate) fn during<T>(self, done: impl FnOnce() -> T) -> T {
        struct Before(Option<Ids>);
        impl Drop for Before {
            fn drop(&mut self) {
                CALL.set(self.0);
            }
        }
        let _before = Before(CALL.replace(Some(self.0)));
        done()
    }
}

impl<F: Future + Unpin> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let call = self.call;
        call.during(|| Pin::new(&mut self.future).poll(context))
    }
}

/// How records are written.
struct Log {
    json: bool,
    text: Format,
    messages: Mutex<Messages>,
}

impl Log {
    fn new(format: LogFormat) -> Self {
        Self { json: format == LogFormat::Json, text: Format::default(), messages: Mutex::default() }
    }
}

impl<S, N> FormatEvent<S, N> for Log
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let limited = *metadata.level() <= Level::INFO; // the more severe, the less
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for (of, message, count) in messages.over(now) {
            self.suppressed(&mut writer, of, &message, count)?;
        }
        let of = (*metadata.level(), metadata.target());
        let take = !limited || messages.take(metadata.callsite(), of, now, || message(event));
        drop(messages);
        if !take {
            return Ok(());
        }
        let call = CALL.get();
        if !self.json {
            let Some((trace, span)) = call else { return self.text.format_event(context, writer, event) };
            let mut line = String::new();
            self.text.format_event(context, Writer::new(&mut line), event)?;
            let line = line.trim_end_matches('\n');
            return writeln!(writer, "{line} trace_id={} span_id={}", hex(&trace), hex(&span));
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut record = record(of, fields.message)?;
        if let Some((trace, span)) = call {
            record.insert("trace_id".into(), hex(&trace).into());
            record.insert("span_id".into(), hex(&span).into());
        }
        if !fields.others.is_empty() {
            record.insert("fields".into(), Value::Object(fields.others));
        }
        writeln!(writer, "{}", Value::Object(record))
    }
}

impl Log {
    /// Says how often a message was not written.
    fn suppressed(&self, writer: &mut Writer<'_>, of: Of, message: &str, count: u64) -> fmt::Result {
        let mut record = record(of, format!("{count} more within a second: {message}"))?;
        if self.json {
            record.insert("suppressed".into(), count.into());
            return writeln!(writer, "{}", Value::Object(record));
        }
        SystemTime.format_time(writer)?;
        writeln!(writer, " {:>5} {}: {count} more within a second: {}", of.0, of.1, message.escape_debug())
    }
}

/// What every record has.
fn record((level, target): Of, message: String) -> Result<Map<String, Value>, fmt::Error> {
    let mut time = String::new();
    SystemTime.format_time(&mut Writer::new(&mut time))?;
    Ok(Map::from_iter([
        ("timestamp".to_owned(), time.into()),
        ("level".to_owned(), level.as_str().into()),
        ("target".to_owned(), target.into()),
        ("message".to_owned(), message.into()),
    ]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fields of a record.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let value = match value {
            Value::String(mut text) if text.len() > TEXT_BYTES => {
                let end = (0..=TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
                text.truncate(end);
                Value::String(text + "...")
            }
            value => value,
        };
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.others.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

fn message(event: &Event<'_>) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    fields.message
}

/// How often which message came lately. As many as the program has places that log.
#[derive(Default)]
struct Messages(HashMap<Identifier, Window>);

struct Window {
    of: Of,
    began: Instant,
    written: u32,
    suppressed: u64,
    /// The first that was.
    message: String,
}

/// Level and target of a message.
type Of = (Level, &'static str);

impl Messages {
    /// Whether this one is written.
    fn take(&mut self, id: Identifier, of: Of, now: Instant, message: impl FnOnce() -> String) -> bool {
        let fresh = || Window { of, began: now, written: 0, suppressed: 0, message: String::new() };
        let window = self.0.entry(id).or_insert_with(fresh);
        if now.saturating_duration_since(window.began) >= WINDOW {
            *window = fresh(); // what it suppressed was told by `over`
        }
        if window.written < SAME_MESSAGE {
            window.written += 1;
            return true;
        }
        if window.suppressed == 0 {
            window.message = message();
        }
        window.suppressed += 1;
        false
    }

    /// Messages whose time is over and that were not all written, with how many were not.
    fn over(&mut self, now: Instant) -> Vec<(Of, String, u64)> {
        let ended = self
            .0
            .values_mut()
            .filter(|window| window.suppressed > 0 && now.saturating_duration_since(window.began) >= WINDOW);
        ended
            .map(|window| {
                (window.of, std::mem::take(&mut window.message), std::mem::take(&mut window.suppressed))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use std::sync::Arc;

    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
    use tracing::{debug, warn};
    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        /// A log that is written here.
        fn log(&self, format: LogFormat) -> impl Subscriber + Send + Sync + use<> {
            let writer = self.clone();
            tracing_subscriber::fmt()
                .with_max_level(LevelFilter::DEBUG)
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .event_format(Log::new(format))
                .finish()
        }

        fn read(&self) -> Vec<String> {
            let written = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            written.lines().map(str::to_owned).collect()
        }
    }

    /// The lines that are logged meanwhile.
    fn logged(format: LogFormat, done: impl FnOnce()) -> Vec<String> {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.log(format), done);
        lines.read()
    }

    /// The same, as JSON, of a future; nothing else runs on this thread.
    async fn logged_of<F: Future>(done: F) -> Vec<String> {
        let lines = Lines::default();
        let guard = tracing::subscriber::set_default(lines.log(LogFormat::Json));
        done.await;
        drop(guard);
        lines.read()
    }

    fn call() -> Named {
        let (trace, span) = (TraceId::from_bytes([0xab; 16]), SpanId::from_bytes([0xcd; 8]));
        Named::new(&SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default()))
    }

    #[test]
    fn a_record_is_one_object_with_the_trace_of_its_call_and_nothing_can_break_out_of_it() {
        let lines = logged(LogFormat::Json, || {
            let nasty = "a\"b\n\u{1b}[31m{}";
            warn!(count = 3, ratio = 0.5, yes = true, nasty, error = ?Some(nasty), "it {}", nasty);
            call().during(|| warn!("within"));
            warn!(long = "x".repeat(10_000), "behind");
        });
        let read: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.len(), 3, "{lines:?}");
        assert!(lines.iter().all(|line| line.bytes().all(|byte| byte >= b' ')), "{lines:?}");
        assert_eq!(read[0]["level"], "WARN");
        assert_eq!(read[0]["message"], "it a\"b\n\u{1b}[31m{}");
        assert_eq!(read[0]["target"], "tropism_node::telemetry::log::tests");
        assert!(read[0]["timestamp"].as_str().unwrap().ends_with('Z'));
        let fields = &read[0]["fields"];
        assert_eq!((&fields["count"], &fields["yes"]), (&Value::from(3), &Value::from(true)));
        assert_eq!(
            (&fields["ratio"], &fields["nasty"]),
            (&Value::from(0.5), &Value::from("a\"b\n\u{1b}[31m{}"))
        );
        assert!(read[0].get("trace_id").is_none() && read[2].get("trace_id").is_none());
        assert_eq!(read[1]["trace_id"], "ab".repeat(16));
        assert_eq!(read[1]["span_id"], "cd".repeat(8));
        assert_eq!(read[2]["fields"]["long"].as_str().unwrap().len(), TEXT_BYTES + 3);
    }

    #[tokio::test]
    async fn what_a_sampled_call_logs_names_its_trace_also_after_it_waited() {
        use tonic::body::Body;
        use tower::Service;

        use crate::telemetry::calls::{Answering, Followed};

        #[derive(Clone)]
        struct Waits;

        impl Service<http::Request<Body>> for Waits {
            type Response = http::Response<Body>;
            type Error = std::convert::Infallible;
            type Future = Answering;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, _: http::Request<Body>) -> Answering {
                Box::pin(async {
                    tokio::task::yield_now().await;
                    warn!("within");
                    Ok(http::Response::new(Body::empty()))
                })
            }
        }

        let parent = format!("00-{}-00f067aa0ba902b7-", "ab".repeat(16));
        for (sampled, trace) in [("01", Value::from("ab".repeat(16))), ("00", Value::Null)] {
            let mut service = Followed::new(Waits, &crate::telemetry::tests::traced());
            let mut request = http::Request::new(Body::empty());
            request.headers_mut().insert("traceparent", format!("{parent}{sampled}").parse().unwrap());
            let lines = logged_of(service.call(request)).await;
            let read: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(read[0]["message"], "within");
            assert_eq!(*read[0].get("trace_id").unwrap_or(&Value::Null), trace);
        }
    }

    #[test]
    fn text_names_the_trace_too() {
        let lines = logged(LogFormat::Text, || {
            warn!(count = 3, "before");
            call().during(|| warn!(count = 4, "within"));
        });
        let ids = format!("within count=4 trace_id={} span_id={}", "ab".repeat(16), "cd".repeat(8));
        assert!(lines[0].ends_with("before count=3") && lines[1].ends_with(&ids), "{lines:?}");
    }

    #[test]
    fn a_message_that_repeats_is_written_some_times_and_then_counted() {
        let mut messages = Messages::default();
        let now = Instant::now();
        let [one, other] = {
            // Two places that log.
            let ids: Arc<Mutex<Vec<Identifier>>> = Arc::default();
            struct Seen(Arc<Mutex<Vec<Identifier>>>);
            impl Subscriber for Seen {
                fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
                    true
                }
                fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
                    tracing::span::Id::from_u64(1)
                }
                fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
                fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
                fn event(&self, event: &Event<'_>) {
                    self.0.lock().unwrap().push(event.metadata().callsite());
                }
                fn enter(&self, _: &tracing::span::Id) {}
                fn exit(&self, _: &tracing::span::Id) {}
            }
            tracing::subscriber::with_default(Seen(ids.clone()), || {
                warn!("one");
                warn!("other");
            });
            let ids = ids.lock().unwrap();
            [ids[0].clone(), ids[1].clone()]
        };
        let of = (Level::WARN, "t");
        let mut take = |id: &Identifier, after_ms| {
            let now = now + Duration::from_millis(after_ms);
            let over = messages.over(now);
            (messages.take(id.clone(), of, now, || "flood".into()), over)
        };
        for _ in 0..SAME_MESSAGE {
            assert_eq!(take(&one, 0), (true, vec![]));
        }
        for _ in 0..5 {
            assert_eq!(take(&one, 999), (false, vec![]));
        }
        assert_eq!(take(&other, 999), (true, vec![]), "another message is another matter");
        assert_eq!(
            take(&other, 1_000),
            (true, vec![(of, "flood".to_owned(), 5)]),
            "whoever comes next tells it"
        );
        assert_eq!(take(&one, 1_000), (true, vec![]));
    }

    #[test]
    fn who_asks_for_debug_gets_everything() {
        let flood = |is_debug| {
            logged(LogFormat::Json, || {
                for _ in 0..100 {
                    if is_debug { debug!("again") } else { warn!("again") }
                }
            })
        };
        assert_eq!(flood(true).len(), 100);
        let written = flood(false).len();
        assert!((10..100).contains(&written), "{written}"); // a slow machine may have begun another second
    }
}
