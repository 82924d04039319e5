//! Connections to nodes, the attempts of a call, and the probes that tell which node is near.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tropism_wire::v1::cluster_service_client::ClusterServiceClient;
use tropism_wire::v1::{ListNodesRequest, Node as NodeOfList};
use tropism_wire::{Effect, Problem, REGION_METADATA, Reason, error::echo, limits::DEFAULT_DEADLINE};

use crate::error::{Error, innermost, never_sent};
use crate::retry::{Budget, Nature, Next, Pauses, Verdict, after, has_no_effect, verdict};
use crate::route::{Moment, NodeNumber, NodeView, PROBE_INTERVAL, Routes, Told};

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
/// The share of what is left of the time for reading a scope that one node may take while there is another one to ask, and the least of it:
/// several of the longest round trips. So a node that hangs, or waits for what the session has seen, is not the end of it.
const PATIENCE_SHARE: f64 = 0.25;
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// How long a probe may take: a node that is slower serves nobody well.
const PROBE_TIME: Duration = Duration::from_secs(2);
/// Most probes under way at once.
const MAX_PROBES: usize = 16;
/// How often the nodes are asked for again: they change when an operator changes them.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);
/// The same when a scope is in a region of which no node is known.
const LEAST_TOLD_INTERVAL: Duration = Duration::from_secs(5);
/// Least time between two looks at which node is to be probed.
const LEAST_ROUND: Duration = Duration::from_millis(100);

/// What is called, as far as routing goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) nature: Nature,
    /// The scope, where it is about one.
    pub(crate) scope: Option<&'a str>,
    /// It carries a token.
    pub(crate) session: bool,
    /// Its time, all attempts included.
    pub(crate) time: Duration,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) number: NodeNumber,
    pub(crate) endpoint: String,
    channel: Channel,
}

/// The nodes that a client may talk to.
#[derive(Debug)]
pub(crate) struct Nodes {
    began: Instant,
    /// How fast the time of probes and memories goes: 1, but for tests.
    speed: u32,
    shared: Mutex<Shared>,
    budget: Mutex<Budget>,
    /// Wakes the prober: the nodes that are known do not suffice.
    ask_again: Arc<Notify>,
}

#[derive(Debug)]
struct Shared {
    routes: Routes,
    nodes: BTreeMap<NodeNumber, Arc<Node>>,
}

impl Nodes {
    /// Nodes in this order, or with distances to be measured. Prepares connections; nothing is sent before the first call.
    pub(crate) fn new(endpoints: Vec<String>, fixed: bool) -> Result<Arc<Self>, Error> {
        if endpoints.is_empty() || endpoints.len() > MAX_ENDPOINTS {
            let reason = format!("list has {} entries; it must have 1 to {MAX_ENDPOINTS}", endpoints.len());
            return Err(Error::BadEndpoint { endpoint: "".to_owned(), reason });
        }
        let routes = Routes::new(endpoints, fixed);
        let mut nodes = BTreeMap::new();
        for (number, endpoint) in routes.endpoints() {
            nodes.insert(number, Arc::new(Node::new(number, endpoint)?));
        }
        Ok(Arc::new(Self {
            began: Instant::now(),
            speed: 1,
            shared: Mutex::new(Shared { routes, nodes }),
            budget: Mutex::new(Budget::new()),
            ask_again: Arc::default(),
        }))
    }

    fn now(&self) -> Moment {
        self.began.elapsed() * self.speed
    }

    /// The same in a hurry.
    #[cfg(test)]
    pub(crate) fn at_speed(self: Arc<Self>, speed: u32) -> Arc<Self> {
        Arc::new(Self { speed, ..Arc::into_inner(self).unwrap_or_else(|| panic!("nobody else has it yet")) })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks all nodes at once; the first that answers is talked to. Those that answer later are made known, too.
    pub(crate) async fn race(self: &Arc<Self>, time: Duration) -> Result<(), Error> {
        let nodes: Vec<Arc<Node>> = self.shared().nodes.values().cloned().collect();
        let mut asked = JoinSet::new();
        for node in nodes {
            let shared = Arc::downgrade(self);
            asked.spawn(async move {
                let answer = timeout(time, node.told()).await;
                if let (Ok(Ok(told)), Some(shared)) = (&answer, shared.upgrade()) {
                    shared.learn(node.number, told, false);
                }
                (node, answer)
            });
        }
        let mut failures = Vec::new();
        while let Some(done) = asked.join_next().await {
            let Ok((node, answer)) = done else { continue }; // a panic of the runtime; the others may answer
            match answer {
                Ok(Ok(_)) => {
                    self.shared().routes.answered_first(node.number);
                    asked.detach_all();
                    return Ok(());
                }
                Ok(Err(status)) => failures.push(node.failure(&status)),
                Err(_) => failures.push(format!("{}: no answer in time", node.endpoint)),
            }
        }
        Err(Error::Unreachable(failures))
    }

    /// From now on distances are measured and nodes learned of, until the last client is dropped.
    pub(crate) fn probe(self: &Arc<Self>) {
        tokio::spawn(probe(Arc::downgrade(self)));
    }

    /// What is known of the nodes.
    pub(crate) fn view(&self) -> Vec<NodeView> {
        self.shared().routes.view()
    }

    /// The node that is asked first where nothing speaks against it.
    pub(crate) fn first(&self) -> Option<Arc<Node>> {
        let now = self.now();
        let mut shared = self.shared();
        let first = shared.routes.plan(None, false, now).first().copied()?;
        shared.nodes.get(&first).cloned()
    }

    /// Whether another node than this one would be asked by a new call, because it is nearer.
    pub(crate) fn nearer(&self, about: About<'_>, node: &Node) -> bool {
        let now = self.now();
        let mut shared = self.shared();
        let first = shared.routes.plan(about.scope, about.session, now).first().copied();
        shared.routes.measures() && first != Some(node.number)
    }

    /// The node to ask next, and whether there is yet another one.
    fn pick(&self, about: About<'_>, tried: &[NodeNumber]) -> Option<(Arc<Node>, bool)> {
        let now = self.now();
        let mut shared = self.shared();
        let plan = shared.routes.plan(about.scope, about.session, now);
        let mut left = plan.into_iter().filter(|number| !tried.contains(number));
        let node = shared.nodes.get(&left.next()?).cloned()?;
        Some((node, left.next().is_some()))
    }

    /// Sends `request` with `send` until an answer counts or the time is over.
    pub(crate) async fn call<Q, A, Sent>(
        &self,
        about: About<'_>,
        request: &Q,
        send: impl Fn(Channel, Request<Q>) -> Sent,
    ) -> Result<A, Error>
    where
        Q: Clone,
        Sent: Future<Output = Result<Response<A>, Status>>,
    {
        self.call_at(about, request, send).await.map(|(_, answer)| answer)
    }

    /// The same, and who answered.
    pub(crate) async fn call_at<Q, A, Sent>(
        &self,
        about: About<'_>,
        request: &Q,
        send: impl Fn(Channel, Request<Q>) -> Sent,
    ) -> Result<(Arc<Node>, A), Error>
    where
        Q: Clone,
        Sent: Future<Output = Result<Response<A>, Status>>,
    {
        let About { nature, time, .. } = about;
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).begin(self.now());
        let deadline = Instant::now() + time;
        let effect = if nature == Nature::Write { Effect::Unknown } else { Effect::None };
        let mut tried: Vec<NodeNumber> = Vec::new();
        let mut failures = Vec::new();
        let mut refusal: Option<Problem> = None;
        let mut pauses = Pauses::new();
        // A write was sent whose answer was lost: from now on only that node can say what became of it.
        let mut unsettled = false;
        let Some((mut node, mut others)) = self.pick(about, &tried) else {
            return Err(Error::Unreachable(failures));
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = if nature != Nature::Write && about.scope.is_some() && others {
                left.mul_f64(PATIENCE_SHARE).max(LEAST_PATIENCE).min(left)
            } else {
                left
            };
            let mut attempt = Request::new(request.clone());
            if nature != Nature::Stream {
                attempt.set_timeout(patience);
            }
            let home = self.shared().routes.home_of(node.number).and_then(|home| home.parse().ok());
            if let Some(home) = home {
                attempt.metadata_mut().insert(REGION_METADATA, home);
            }
            let until = Instant::now() + patience;
            let answer = timeout_at(until, send(node.channel.clone(), attempt)).await;
            // What another node said of why it did not answer says more than that this one did not.
            let timed_out = |refusal: &Option<Problem>| match refusal {
                Some(problem) if effect == Effect::None => Error::Refused(problem.clone()),
                _ => Error::TimedOut { endpoint: node.endpoint.clone(), timeout: time, effect },
            };
            let (status, silent) = match answer {
                Ok(Ok(answer)) => {
                    self.shared().routes.answered(node.number);
                    return Ok((node, answer.into_inner()));
                }
                // It had a part of the time, which is over there first.
                Ok(Err(status))
                    if patience < left && Reason::of(&status) == Some(Reason::DeadlineExceeded) =>
                {
                    (no_answer(), true)
                }
                // The transport has a timer of its own.
                Ok(Err(status)) => {
                    let silent = Problem::from_status(&status).is_none() && Instant::now() >= until;
                    (status, silent)
                }
                Err(_) => (no_answer(), true),
            };
            self.blame(&node, about, &status, silent, patience);
            if silent && Instant::now() >= deadline {
                return Err(timed_out(&refusal));
            }
            match after(&status, nature, unsettled) {
                Next::Stop => return Err(Error::from_status(&node.endpoint, &status, effect)),
                Next::Elsewhere => {
                    failures.push(node.failure(&status));
                    refusal = Problem::from_status(&status).or(refusal);
                    tried.push(node.number);
                    let redirected = self.redirected(about, refusal.as_ref(), &status);
                    let next = match self.pick(about, &tried) {
                        // A connection that died unnoticed is made anew by the next attempt: a lone node gets a second one.
                        None if tried.len() == 1 && !never_sent(&status) && refusal.is_none() => {
                            Some((node.clone(), false))
                        }
                        next => next,
                    };
                    let lost = !never_sent(&status) && refusal.is_none();
                    let Some(next) = next.filter(|_| redirected || self.may_repeat()) else {
                        return Err(match refusal {
                            Some(problem) => Error::Refused(problem),
                            None if lost => Error::from_status(&node.endpoint, &status, effect),
                            None => Error::Unreachable(failures),
                        });
                    };
                    (node, others) = next;
                }
                Next::Again => {
                    unsettled |= nature == Nature::Write && !has_no_effect(&status);
                    let told = Problem::from_status(&status).and_then(|problem| problem.retry_delay());
                    let wait = pauses.next(rand::rng().random(), told.unwrap_or_default());
                    if Instant::now() + wait >= deadline || !(unsettled || self.may_repeat()) {
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
                }
            }
        }
    }

    /// Remembers what a failed attempt says about its node.
    fn blame(&self, node: &Node, about: About<'_>, status: &Status, silent: bool, patience: Duration) {
        let verdict = match verdict(status) {
            // It may be waiting for what the session has seen; a short time says nothing at all.
            _ if silent && about.session => Verdict::Behind,
            _ if silent && patience < LEAST_PATIENCE => Verdict::Fine,
            verdict => verdict,
        };
        let now = self.now();
        match verdict {
            Verdict::Gone => self.shared().routes.gone(node.number, now),
            Verdict::Behind => self.shared().routes.behind(node.number, now),
            Verdict::Fine => {}
        }
    }

    /// A stream of this node broke.
    pub(crate) fn broken(&self, node: &Node, status: &Status) {
        if verdict(status) == Verdict::Gone {
            let now = self.now();
            self.shared().routes.gone(node.number, now);
        }
    }

    /// Remembers where a scope is, if `status` says so.
    fn redirected(&self, about: About<'_>, refusal: Option<&Problem>, status: &Status) -> bool {
        if Reason::of(status) != Some(Reason::NotServedHere) {
            return false;
        }
        let (Some(scope), Some(problem)) = (about.scope, refusal) else { return false };
        let regions: Vec<String> = problem
            .fact(SERVING_REGIONS)
            .unwrap_or_default()
            .split(',')
            .filter(|region| !region.is_empty())
            .map(str::to_owned)
            .collect();
        if regions.is_empty() {
            return false;
        }
        let now = self.now();
        if !self.shared().routes.served_in(scope, regions, now) {
            self.ask_again.notify_one();
        }
        true
    }

    fn may_repeat(&self) -> bool {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps what a node told of itself and the others; `all`: those that it does not name are no more.
    fn learn(&self, number: NodeNumber, told: &[NodeOfList], all: bool) {
        let mut shared = self.shared();
        let Shared { routes, nodes } = &mut *shared;
        if let Some(this) = told.iter().find(|node| node.this_node)
            && !routes.met(number, &this.id, &this.region)
        {
            return; // what it says of others says nothing either
        }
        if !routes.measures() {
            return;
        }
        // An address on this machine means the node's own machine.
        let local = nodes.get(&number).is_some_and(|node| is_local(&node.endpoint));
        let told: Vec<Told> = told
            .iter()
            .filter(|node| local || !is_local(&node.endpoint))
            .map(|NodeOfList { id, region, endpoint, .. }| Told {
                id: id.clone(),
                region: region.clone(),
                endpoint: endpoint.clone(),
            })
            .filter(|told| Node::endpoint(&told.endpoint).is_ok())
            .collect();
        routes.told(&told, all);
        let known: Vec<(NodeNumber, String)> =
            routes.endpoints().map(|(number, endpoint)| (number, endpoint.to_owned())).collect();
        nodes.retain(|number, _| known.iter().any(|(known, _)| known == number));
        for (number, endpoint) in known {
            if !nodes.contains_key(&number)
                && let Ok(node) = Node::new(number, &endpoint)
            {
                nodes.insert(number, Arc::new(node));
            }
        }
    }
}

/// What a node that said nothing for as long as it was given is taken to have said.
fn no_answer() -> Status {
    Status::unavailable("no answer in time")
}

/// Name of the fact that a [`Reason::NotServedHere`] brings: the regions that serve the scope, joined by commas.
const SERVING_REGIONS: &str = "regions";

/// Probes nodes when they are due, and asks for the nodes now and then. Keeps nothing while it sleeps, so that it ends with
/// the last client.
async fn probe(nodes: Weak<Nodes>) {
    let mut told_at = Moment::ZERO;
    loop {
        let Some(strong) = nodes.upgrade() else { return };
        let now = strong.now();
        let speed = strong.speed;
        let (due, wait): (Vec<Arc<Node>>, Duration) = {
            let mut shared = strong.shared();
            let due = shared.routes.due(now, rand::rng().random_range(0.8..1.2));
            let due = due.into_iter().filter_map(|number| shared.nodes.get(&number).cloned()).collect();
            (due, shared.routes.next_due().saturating_sub(now))
        };
        let ask_again = strong.ask_again.clone();
        drop(strong);
        for some in due.chunks(MAX_PROBES) {
            let mut probes = JoinSet::new();
            for node in some {
                let (node, nodes) = (node.clone(), nodes.clone());
                probes.spawn(async move { node.probe(&nodes).await });
            }
            while probes.join_next().await.is_some() {}
        }
        if told_at <= now {
            told_at = now + TOLD_INTERVAL;
            let first = nodes.upgrade().and_then(|nodes| nodes.first());
            if let Some(first) = first
                && let Ok(Ok(told)) = timeout(PROBE_TIME, first.told()).await
                && let Some(nodes) = nodes.upgrade()
            {
                nodes.learn(first.number, &told, true);
            }
        }
        let wait = wait.clamp(LEAST_ROUND, PROBE_INTERVAL) / speed;
        if timeout(wait, ask_again.notified()).await.is_ok() {
            told_at = told_at.min(now + LEAST_TOLD_INTERVAL);
        }
    }
}

/// Whether an address is on the machine of whoever dials it.
fn is_local(endpoint: &str) -> bool {
    let Ok(uri) = endpoint.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Node {
    fn new(number: NodeNumber, endpoint: &str) -> Result<Self, Error> {
        let channel = Self::endpoint(endpoint)?
            .connect_timeout(CONNECT_TIME)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_lazy();
        Ok(Self { number, endpoint: endpoint.to_owned(), channel })
    }

    fn endpoint(endpoint: &str) -> Result<Endpoint, Error> {
        let bad = |reason: String| Error::BadEndpoint { endpoint: echo(endpoint), reason };
        let uri: Uri = endpoint
            .parse()
            .map_err(|error| bad(format!("is no URL ({error}); it must be like http://127.0.0.1:7000")))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
            return Err(bad("must be like http://127.0.0.1:7000; there is no TLS".to_owned()));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(bad("must end behind the port: a node has no paths".to_owned()));
        }
        Ok(Endpoint::from(uri))
    }

    /// Asks for the nodes.
    async fn told(&self) -> Result<Vec<NodeOfList>, Status> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        Ok(client.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes)
    }

    /// Asks who it is, if that is not known, and whether it serves; measures how long that takes.
    async fn probe(&self, nodes: &Weak<Nodes>) {
        let met = || nodes.upgrade().is_some_and(|nodes| nodes.shared().routes.is_met(self.number));
        if !met()
            && let Ok(Ok(told)) = timeout(PROBE_TIME, self.told()).await
            && let Some(nodes) = nodes.upgrade()
        {
            nodes.learn(self.number, &told, false);
        }
        let met = met();
        let begun = Instant::now(); // the connection is there by now
        let serves = met && matches!(timeout(PROBE_TIME, self.serves()).await, Ok(Ok(true)));
        let round_trip = begun.elapsed();
        let Some(nodes) = nodes.upgrade() else { return };
        let now = nodes.now();
        let mut shared = nodes.shared();
        if serves {
            shared.routes.probed(self.number, round_trip);
        } else {
            shared.routes.probe_failed(self.number, now);
        }
    }

    /// Whether it says that it serves.
    async fn serves(&self) -> Result<bool, Status> {
        let mut client = HealthClient::new(self.channel.clone());
        let HealthCheckResponse { status } = client.check(HealthCheckRequest::default()).await?.into_inner();
        Ok(status == i32::from(ServingStatus::Serving))
    }

    fn failure(&self, status: &Status) -> String {
        let cause = match Problem::from_status(status) {
            Some(problem) => problem.message().to_owned(),
            None => innermost(status),
        };
        format!("{}: {cause}", self.endpoint)
    }
}
