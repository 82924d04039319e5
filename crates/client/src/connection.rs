//! Endpoints, and what is done with an attempt that failed: give up, go elsewhere, or ask the same node again.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tropism_wire::v1::ListRegionsRequest;
use tropism_wire::v1::cluster_service_client::ClusterServiceClient;
use tropism_wire::{Effect, Problem, Reason, error::echo, limits::DEFAULT_DEADLINE};

use crate::error::{Error, innermost, is_loss, never_sent};

/// A call's time, its retries included, when nothing else is said: a person has given up by then.
pub const DEFAULT_TIMEOUT: Duration = DEFAULT_DEADLINE;
/// A connection on which nothing came for this long is asked for a sign of life.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long that may take: with the interval, a cut link is noticed well within a call's time.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Most endpoints of one client: every node of a large cluster.
pub const MAX_ENDPOINTS: usize = 256;

/// How long a connection may take to be made: several of the longest round trips on Earth.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// Bytes under way in one stream: what 100 MB/s fills in 10 ms, or 10 MB/s over 100 ms.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes under way in one connection: several streams.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// First pause before the same node is asked again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest such pause: a node that restarts is found soon after it serves.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a call does to the state, and so how an attempt may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Nothing: repeat it anywhere.
    Read,
    /// It writes, and carries a request id: repeat it at the same node, elsewhere only when it had no effect.
    Write,
    /// It opens a stream that only reads; the deadline is for the beginning.
    Stream,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) endpoint: String,
    channel: Channel,
}

/// The nodes that a client may talk to.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    /// Index of the one talked to.
    current: AtomicUsize,
}

impl Nodes {
    /// Prepares connections; nothing is sent before the first call.
    pub(crate) fn new(endpoints: Vec<String>) -> Result<Self, Error> {
        if endpoints.is_empty() || endpoints.len() > MAX_ENDPOINTS {
            let reason = format!("list has {} entries; it must have 1 to {MAX_ENDPOINTS}", endpoints.len());
            return Err(Error::BadEndpoint { endpoint: "".to_owned(), reason });
        }
        let nodes = endpoints.into_iter().map(Node::new).collect::<Result<_, _>>()?;
        Ok(Self { nodes, current: AtomicUsize::new(0) })
    }

    /// Asks all nodes at once; the first that answers is talked to.
    pub(crate) async fn race(&self, time: Duration) -> Result<(), Error> {
        if self.nodes.len() == 1 {
            return Ok(());
        }
        let mut asked = JoinSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let mut client = ClusterServiceClient::new(node.channel.clone());
            asked.spawn(
                async move { (index, timeout(time, client.list_regions(ListRegionsRequest {})).await) },
            );
        }
        let mut failures = Vec::new();
        while let Some(done) = asked.join_next().await {
            let Ok((index, answer)) = done else { continue }; // a panic of the runtime; the others may answer
            match answer {
                Ok(Ok(_)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(Err(status)) => failures.push(self.nodes[index].failure(&status)),
                Err(_) => failures.push(format!("{}: no answer in time", self.nodes[index].endpoint)),
            }
        }
        Err(Error::Unreachable(failures))
    }

    /// The node talked to.
    pub(crate) fn current(&self) -> &Node {
        &self.nodes[self.current.load(Ordering::Relaxed)]
    }

    /// Sends `request` with `send` until an answer counts or the time is over.
    pub(crate) async fn call<Q, A, Sent>(
        self: &Arc<Self>,
        nature: Nature,
        time: Duration,
        request: &Q,
        send: impl Fn(Channel, Request<Q>) -> Sent,
    ) -> Result<A, Error>
    where
        Q: Clone,
        Sent: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + time;
        let mut at = self.current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        let mut refusal: Option<Problem> = None;
        let mut pause = FIRST_PAUSE;
        // A write was sent whose answer was lost: from now on only that node can say what became of it.
        let mut unsettled = false;
        loop {
            let node = &self.nodes[at];
            let mut attempt = Request::new(request.clone());
            if nature != Nature::Stream {
                attempt.set_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            let answer = timeout_at(deadline, send(node.channel.clone(), attempt)).await;
            let effect = if nature == Nature::Write { Effect::Unknown } else { Effect::None };
            // What another node said of why it did not answer says more than that this one did not.
            let timed_out = |refusal: &Option<Problem>| match refusal {
                Some(problem) if effect == Effect::None => Error::Refused(problem.clone()),
                _ => Error::TimedOut { endpoint: node.endpoint.clone(), timeout: time, effect },
            };
            let status = match answer {
                Ok(Ok(answer)) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => status,
                Err(_) => return Err(timed_out(&refusal)),
            };
            if Problem::from_status(&status).is_none() && Instant::now() >= deadline {
                return Err(timed_out(&refusal)); // the transport has a timer of its own
            }
            match after(&status, nature, unsettled) {
                Next::Stop => return Err(Error::from_status(&node.endpoint, &status, effect)),
                Next::Elsewhere => {
                    failures.push(node.failure(&status));
                    refusal = Problem::from_status(&status).or(refusal);
                    // A connection that died unnoticed is made anew by the next attempt: a lone node gets a second one.
                    let lost = !never_sent(&status) && refusal.is_none();
                    let attempts = if lost { self.nodes.len().max(2) } else { self.nodes.len() };
                    if failures.len() >= attempts {
                        return Err(match refusal {
                            Some(problem) => Error::Refused(problem),
                            None if lost => Error::from_status(&node.endpoint, &status, effect),
                            None => Error::Unreachable(failures),
                        });
                    }
                    at = (at + 1) % self.nodes.len();
                }
                Next::Again => {
                    unsettled |= nature == Nature::Write && !has_no_effect(&status);
                    let told = Problem::from_status(&status).and_then(|problem| problem.retry_delay());
                    let wait =
                        pause.mul_f64(rand::rng().random_range(0.5..1.0)).max(told.unwrap_or_default());
                    if Instant::now() + wait >= deadline {
                        return Err(match Problem::from_status(&status) {
                            Some(problem) if !unsettled || problem.effect() == Effect::Unknown => {
                                Error::Refused(problem)
                            }
                            _ => {
                                let cause = innermost(&status);
                                Error::Lost { endpoint: node.endpoint.clone(), cause, effect }
                            }
                        });
                    }
                    sleep(wait).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

impl Node {
    fn new(endpoint: String) -> Result<Self, Error> {
        let bad = |reason: String| Error::BadEndpoint { endpoint: echo(&endpoint), reason };
        let uri: Uri = endpoint
            .parse()
            .map_err(|error| bad(format!("is no URL ({error}); it must be like http://127.0.0.1:7000")))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
            return Err(bad("must be like http://127.0.0.1:7000; there is no TLS".to_owned()));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(bad("must end behind the port: a node has no paths".to_owned()));
        }
        let channel = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIME)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_lazy();
        Ok(Self { endpoint, channel })
    }

    fn failure(&self, status: &Status) -> String {
        let cause = match Problem::from_status(status) {
            Some(problem) => problem.message().to_owned(),
            None => innermost(status),
        };
        format!("{}: {cause}", self.endpoint)
    }
}

/// What is done after an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The answer is final.
    Stop,
    /// Another node may do better.
    Elsewhere,
    /// The same node, a little later.
    Again,
}

/// What is done after `status`. `unsettled`: an earlier attempt of this write may have taken effect.
pub(crate) fn after(status: &Status, nature: Nature, unsettled: bool) -> Next {
    let elsewhere = if unsettled { Next::Again } else { Next::Elsewhere };
    if never_sent(status) {
        return elsewhere;
    }
    match Reason::of(status) {
        Some(Reason::OutcomeUnknown | Reason::Overloaded) => Next::Again,
        Some(reason) if reason.code() == Code::Unavailable => elsewhere,
        Some(_) => Next::Stop,
        None if !is_loss(status.code()) => Next::Stop,
        None if nature == Nature::Write => Next::Again,
        None => Next::Elsewhere,
    }
}

/// Whether the attempt certainly changed nothing.
fn has_no_effect(status: &Status) -> bool {
    never_sent(status) || Reason::of(status).is_some_and(|reason| reason.effect() == Effect::None)
}
