//! `/metrics` over HTTP, for whoever scrapes it, and the thread on which metrics are also pushed.
//!
//! The thread and its runtime are for that alone. A connection carries one request, has [`SCRAPE_TIME`] for all of it, and one of
//! [`SCRAPES`] places; who finds none is hung up on. So who asks and does not read, or does not even ask, takes a place
//! for that long and nothing else. What is told is at most [`FRESH`] old, however often it is asked for.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tracing::{info, warn};

use super::push::Push;
use crate::api::Api;

/// Connections at once: some scrapers, and a person who looks.
pub(crate) const SCRAPES: usize = 8;
/// How long a connection may take: as long as Prometheus waits unless it is told otherwise.
pub(crate) const SCRAPE_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request's head: what HTTP libraries send, several times.
const HEAD_BYTES: usize = 16 << 10;
/// Metrics are gathered this often at most.
const FRESH: Duration = Duration::from_millis(100);

/// The texts of one moment.
struct Told {
    at: Instant,
    open_metrics: bool,
    text: Bytes,
    kind: &'static str,
}

/// What answers scrapers.
struct Scraped {
    api: Api,
    /// In both formats, at most one of each.
    told: Mutex<Vec<Told>>,
}

/// Answers on this listener, and pushes, until `over`. The API tells what there is.
pub(crate) fn start(
    listener: Option<std::net::TcpListener>,
    push: Option<Push>,
    api: Api,
    over: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        runtime.block_on(async move {
            if let Some(push) = push {
                tokio::spawn(push.run(api.clone()));
            }
            if let Some(listener) = listener {
                tokio::spawn(serve_all(listener, api));
            }
            over.await;
        });
        runtime.shutdown_background();
    })
}

async fn serve_all(listener: std::net::TcpListener, api: Api) {
    let listener = match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "metrics are not served"),
    };
    if let Ok(address) = listener.local_addr() {
        info!(%address, "serving metrics");
    }
    match accept(&listener, &Arc::new(Scraped { api, told: Mutex::default() })).await {}
}

async fn accept(listener: &TcpListener, scraped: &Arc<Scraped>) -> Infallible {
    let places = Arc::new(Semaphore::new(SCRAPES));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await; // out of descriptors, most likely
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let scraped = scraped.clone();
        tokio::spawn(async move {
            timeout(SCRAPE_TIME, serve(stream, scraped)).await.ok(); // hung up on
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, scraped: Arc<Scraped>) {
    let answer = service_fn(move |request| {
        let scraped = scraped.clone();
        async move { Ok::<_, Infallible>(scraped.answer(&request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    served.await.ok(); // who went away does not read why
}

impl Scraped {
    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/metrics" {
            return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let accepted = request.headers().get_all(header::ACCEPT).into_iter();
        let open_metrics = accepted
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.contains("application/openmetrics-text"));
        let (text, kind) = self.text(open_metrics).await;
        let mut answer = Response::new(Full::new(text)); // without a body when only the head is asked for
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        answer
    }

    async fn text(&self, open_metrics: bool) -> (Bytes, &'static str) {
        let mut told = self.told.lock().await; // one gathers, the others wait for it
        told.retain(|told| told.at.elapsed() < FRESH);
        if let Some(told) = told.iter().find(|told| told.open_metrics == open_metrics) {
            return (told.text.clone(), told.kind);
        }
        let (text, kind) = self.api.sheet().await.text(open_metrics);
        let text = Bytes::from(text);
        told.push(Told { at: Instant::now(), open_metrics, text: text.clone(), kind });
        (text, kind)
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// URL at which a node with this address is scraped.
pub(crate) fn url(address: SocketAddr) -> String {
    format!("http://{address}/metrics")
}
