//! A call from its headers to the end of its answer: its span, and that it is counted.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::HeaderMap;
use http_body::{Frame, SizeHint};
use opentelemetry::trace::{Status as SpanStatus, TraceContextExt};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::log::{Named, Within};
use super::metrics::CallCount;
use super::{Telemetry, names};

/// The span of the call that a request belongs to, among its extensions. Absent when the call is not sampled.
#[derive(Debug, Clone)]
pub(crate) struct CallSpan(pub(crate) Span);

/// A service whose calls have spans.
#[derive(Clone)]
pub(crate) struct Followed<S> {
    service: S,
    telemetry: Telemetry,
}

impl<S> Followed<S> {
    pub(crate) fn new(service: S, telemetry: &Telemetry) -> Self {
        Self { service, telemetry: telemetry.clone() }
    }
}

impl<S: NamedService> NamedService for Followed<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Result<http::Response<Body>, Infallible>;
pub(super) type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl<S> Service<http::Request<Body>> for Followed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future = Answering>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Answering {
        let Some(span) = self.telemetry.server(request.uri().path(), request.headers()) else {
            return self.service.call(request); // nearly always
        };
        request.extensions_mut().insert(CallSpan(span.clone()));
        let call = Named::new(span.context().span().span_context());
        let span = Ending { span, call, code: None };
        let answer = call.during(|| self.service.call(request));
        Box::pin(async move {
            let mut span = span;
            let Ok(answer) = Within { future: answer, call }.await;
            span.told(answer.headers());
            Ok(answer.map(|body| Body::new(Carried { body, end: span })))
        })
    }
}

/// Counts a call that is answered, a stream when it ends.
pub(crate) fn answered(mut call: CallCount, answer: http::Response<Body>) -> http::Response<Body> {
    call.told(answer.headers());
    if call.streams() {
        return answer.map(|body| Body::new(Carried { body, end: call }));
    }
    if !call.is_told() {
        call.ended(Code::Ok); // what comes behind the message says so
    }
    answer
}

/// Who wants to know how a call ends.
trait End {
    /// The call's headers, or what came behind its last message: they may have its status.
    fn told(&mut self, headers: &HeaderMap);

    /// Within what the answer goes on to be made.
    fn during<T>(&self, done: impl FnOnce() -> T) -> T {
        done()
    }
}

impl End for CallCount {
    fn told(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.ended(Code::from_bytes(status.as_bytes()));
        }
    }
}

/// Ends the span with what the call's status was; a call that ends without one was cancelled by its client.
struct Ending {
    span: Span,
    call: Named,
    code: Option<Code>,
}

impl End for Ending {
    /// Looks for the status: among the headers of an answer without a message, or behind the last message.
    fn told(&mut self, headers: &HeaderMap) {
        if headers.contains_key("grpc-status") {
            self.code = Status::from_header_map(headers).map(|status| status.code());
        }
    }

    fn during<T>(&self, done: impl FnOnce() -> T) -> T {
        self.call.during(done)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.span.set_attribute(names::RPC_STATUS, i64::from(i32::from(code)));
        // Of a server these are errors; the others are the client's, by OpenTelemetry's conventions.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            self.span.set_status(SpanStatus::error("")); // the text of an error may name what a client wrote
        }
    }
}

/// An answer on its way, with what ends behind it.
struct Carried<E> {
    body: Body,
    end: E,
}

impl<E: End + Unpin> http_body::Body for Carried<E> {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = &mut *self;
        let polled = this.end.during(|| Pin::new(&mut this.body).poll_frame(context));
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            this.end.told(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
