//! Who is let in, and for how long.
//!
//! [`Admitted`] stands before each service: it bounds the metadata and the calls that run at once (what is over is shed
//! at once instead of queued), gives every call a [`Deadline`], and says what gRPC itself refused in the words and
//! details of our own errors.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;
use tropism_wire::error::echo;
use tropism_wire::from_proto;
use tropism_wire::limits::{MAX_MESSAGE_BYTES, MAX_METADATA_BYTES};
use tropism_wire::{Problem, Reason};

use super::stopping;
use crate::telemetry::Telemetry;
use crate::telemetry::calls::answered;
use crate::telemetry::metrics::ServiceCalls;

/// Calls that run at once; each may hold a message of 4 MiB, most hold a few hundred bytes. At 100 000 calls a second
/// and 10 ms each, a quarter of this is in use.
pub const CONCURRENT_CALLS: usize = 4_096;
/// When to come back after being shed: some hundred calls later.
pub(super) const SHED_RETRY: Duration = Duration::from_millis(100);
/// What is kept back of a call's time, at most, for its answer to travel: an eighth of it or this.
const MOST_MARGIN: Duration = Duration::from_millis(10);
/// A call that did not even end at its deadline (its message still trickles in) is ended after this. Beyond the deadline
/// so that a call that has begun to do something always speaks first.
const BACKSTOP: Duration = Duration::from_secs(1);

/// When a call ends, in two steps, so that the inner one can still tell what it waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// Waiting for something ends here.
    pub(super) give_up: Instant,
    /// The answer is given here at the latest.
    pub(super) answer: Instant,
}

impl Deadline {
    /// The deadline of a call that comes now and may take `time`.
    pub(super) fn after(time: Duration) -> Self {
        let (now, margin) = (Instant::now(), (time / 8).min(MOST_MARGIN));
        Self { give_up: now + (time - margin), answer: now + (time - margin / 2) }
    }

    /// Refuses a call whose time is over before anything was done.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if Instant::now() < self.give_up { Ok(()) } else { Err(over()) }
    }
}

fn over() -> Problem {
    Problem::deadline_exceeded("the call's time (grpc-timeout) was over before anything was done")
}

/// The time that a client gives its call (`grpc-timeout`: up to 8 digits and one of `H M S m u n`), within the limits.
fn time(headers: &HeaderMap) -> Result<Duration, Problem> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(from_proto::deadline(None)) };
    let bad = || {
        let shown = echo(&String::from_utf8_lossy(value.as_bytes()));
        let message = format!("grpc-timeout {shown} is no time; it is 1 to 8 digits and one of H M S m u n");
        Problem::invalid_argument(Reason::BadDeadline, "grpc-timeout", message)
    };
    let text = value.to_str().map_err(|_| bad())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(bad());
    }
    let count: u64 = digits.parse().map_err(|_| bad())?;
    let named = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(bad()),
    };
    Ok(from_proto::deadline(Some(named)))
}

/// Why clients are not served now, if they are not.
type Unready = dyn Fn() -> Option<Problem> + Send + Sync;

/// The bound that all services of a node share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gate {
    calls: Arc<Semaphore>,
    shed: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
    unready: Arc<Unready>,
}

impl Gate {
    pub(super) fn new(unready: impl Fn() -> Option<Problem> + Send + Sync + 'static) -> Self {
        Self {
            calls: Arc::new(Semaphore::new(CONCURRENT_CALLS)),
            shed: Arc::default(),
            closed: Arc::default(),
            unready: Arc::new(unready),
        }
    }

    /// Calls running now.
    pub(super) fn running(&self) -> usize {
        CONCURRENT_CALLS - self.calls.available_permits()
    }

    /// Lets nobody in any more, but for calls that are always let in.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the node stops.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Calls that were shed because too many ran.
    pub(super) fn shed(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }

    fn admit(&self, headers: &HeaderMap) -> Result<(Duration, OwnedSemaphorePermit), Problem> {
        let metadata: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if metadata > MAX_METADATA_BYTES {
            let message = format!("the metadata has {metadata} bytes; the limit is {MAX_METADATA_BYTES}");
            let most = MAX_METADATA_BYTES as u64;
            return Err(Problem::resource_exhausted(
                Reason::MetadataTooLarge,
                "metadata_bytes",
                most,
                message,
            ));
        }
        let time = time(headers)?;
        let permit = self.calls.clone().try_acquire_owned().map_err(|_| {
            self.shed.fetch_add(1, Ordering::Relaxed);
            let message = format!("the node is busy: {CONCURRENT_CALLS} calls run already");
            Problem::resource_exhausted(
                Reason::Overloaded,
                "concurrent_calls",
                CONCURRENT_CALLS as u64,
                message,
            )
            .retry_after(SHED_RETRY)
        })?;
        Ok((time, permit))
    }
}

/// A service behind the gate, whose calls are counted.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    service: S,
    gate: Gate,
    calls: ServiceCalls,
    always: bool,
}

impl<S: NamedService> Admitted<S> {
    pub(super) fn new(service: S, gate: Gate, telemetry: &Telemetry) -> Self {
        let calls = ServiceCalls::new(telemetry.metrics(), S::NAME);
        Self { service, gate, calls, always: false }
    }

    /// The same, let in also while the node stops, or is not ready for clients.
    pub(super) fn always(self) -> Self {
        Self { always: true, ..self }
    }
}

impl<S: NamedService> NamedService for Admitted<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = http::Response<Body>;

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = Answer, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let call = self.calls.begin(request.uri().path());
        if !self.always {
            let refused = if self.gate.is_closed() { Some(stopping()) } else { (self.gate.unready)() };
            if let Some(problem) = refused {
                return Box::pin(ready(Ok(answered(call, problem.to_status().into_http()))));
            }
        }
        let (time, permit) = match self.gate.admit(request.headers()) {
            Ok(admitted) => admitted,
            Err(problem) => return Box::pin(ready(Ok(answered(call, problem.to_status().into_http())))),
        };
        let deadline = Deadline::after(time);
        request.extensions_mut().insert(deadline);
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = match timeout_at(deadline.answer + BACKSTOP, answer).await {
                Ok(Ok(answer)) => explained(answer),
                Ok(Err(never)) => match never {},
                Err(_) => over().to_status().into_http(),
            };
            drop(permit);
            Ok(answered(call, answer))
        })
    }
}

/// What gRPC refused by itself (it knows no details) as one of our errors.
fn explained(answer: Answer) -> Answer {
    if !answer.headers().contains_key("grpc-status") {
        return answer; // the good way: the status comes behind the message
    }
    let Some(status) = Status::from_header_map(answer.headers()) else { return answer };
    if !status.details().is_empty() {
        return answer;
    }
    let said = echo(status.message());
    let problem = match status.code() {
        Code::Internal => {
            let message = format!("the request is not the one message that the method takes: {said}");
            Problem::invalid_argument(Reason::MalformedRequest, "request", message)
        }
        Code::OutOfRange => {
            let message = format!("the request is larger than {MAX_MESSAGE_BYTES} bytes; split it: {said}");
            let most = MAX_MESSAGE_BYTES as u64;
            Problem::resource_exhausted(Reason::MessageTooLarge, "message_bytes", most, message)
        }
        Code::Unimplemented => Problem::unimplemented(format!(
            "there is no such method, or the message is compressed in a way not accepted (identity is): {said}"
        )),
        _ => return answer,
    };
    problem.to_status().into_http()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue};
    use tropism_wire::Reason;

    use super::{CONCURRENT_CALLS, Gate, time};

    fn with(name: &'static str, value: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_bytes(value).unwrap())])
    }

    #[test]
    fn a_time_is_read_shortened_to_the_limit_or_refused() {
        assert_eq!(time(&HeaderMap::new()).unwrap(), Duration::from_secs(10));
        for (text, expected) in [
            ("0n", Duration::ZERO),
            ("1S", Duration::from_secs(1)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("1M", Duration::from_secs(60)),
            ("99999999H", Duration::from_secs(60)),
        ] {
            assert_eq!(time(&with("grpc-timeout", text.as_bytes())).unwrap(), expected, "{text}");
        }
        for text in ["", "S", "-1S", "abc", "1", "1s", "1.5S", "123456789S", "\u{e9}", "1 S", "+1S"] {
            let problem = time(&with("grpc-timeout", text.as_bytes())).unwrap_err();
            assert_eq!(
                (problem.reason(), problem.field()),
                (Reason::BadDeadline, Some("grpc-timeout")),
                "{text}"
            );
        }
    }

    #[test]
    fn metadata_and_calls_are_bounded_and_a_shed_call_learns_when_to_come_back() {
        let gate = Gate::new(|| None);
        assert!(
            gate.admit(&with("a", &[b'x'; 8 << 10])).is_err_and(|p| p.reason() == Reason::MetadataTooLarge)
        );
        let running: Vec<_> = (0..CONCURRENT_CALLS).map(|_| gate.admit(&HeaderMap::new()).unwrap()).collect();
        assert_eq!(gate.running(), CONCURRENT_CALLS);
        let shed = gate.admit(&HeaderMap::new()).unwrap_err();
        assert_eq!(shed.reason(), Reason::Overloaded);
        assert!(shed.retry_delay().is_some());
        assert_eq!(gate.shed(), 1);
        drop(running);
        assert!(gate.admit(&HeaderMap::new()).is_ok());
    }
}
