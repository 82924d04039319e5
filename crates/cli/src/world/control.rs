//! The control port: how other commands cut links and kill nodes of a running world.
//!
//! On loopback, one JSON request per line and one JSON answer per line:
//!
//! ```text
//! {"link":{"action":"cut","a":"tokyo","b":"dallas","one_way":true}}   -> {"links":[{"from":"tokyo",...}]}
//! {"link":{"action":"slow","a":"tokyo","b":"dallas","extra_ms":200}}  -> {"links":[...]}
//! {"node":{"action":"kill","id":"tokyo-1"}}                           -> {"node":{"id":"tokyo-1","state":"down"}}
//! {"links":{}}                                                        -> {"links":[...]}
//! anything that cannot be done                                        -> {"error":"unknown region ..."}
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tropism_wire::error::echo;

use super::process::{Order, ProcessState};
use super::relay::{Line, Slow, Traffic};
use super::{Shared, WorldError};

/// Longest request, in bytes: it holds two names.
const MAX_REQUEST_BYTES: usize = 4 << 10;
/// Longest answer, in bytes: 64 regions have 4032 directions.
const MAX_ANSWER_BYTES: u64 = 4 << 20;
/// Connections served at once; more wait until one ends.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may take for its next request; a forgotten one must not take another's place.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long an answer may take: starting a node is the longest.
const ANSWER_TIME: Duration = Duration::from_secs(90);
/// What slows a link when nothing is said: twice a long link's own delay.
const USUAL_EXTRA: Duration = Duration::from_millis(250);
/// Most extra delay: a minute is as good as a cut.
const MAX_EXTRA_MS: f64 = 60_000.0;
/// Least bandwidth, in bytes per second: below it not even heartbeats pass.
const MIN_BYTES_PER_SECOND: u64 = 1000;

/// What the control port is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Request {
    /// Change a link.
    Link(LinkRequest),
    /// Do something to a node.
    Node(NodeRequest),
    /// List the links.
    Links {},
}

/// Changes the link between two regions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkRequest {
    /// What to do.
    pub(crate) action: LinkAction,
    /// A region.
    pub(crate) a: String,
    /// Another region.
    pub(crate) b: String,
    /// Only the direction from `a` to `b`.
    #[serde(default)]
    pub(crate) one_way: bool,
    /// For `slow`: added to the direction's delay, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) extra_ms: Option<f64>,
    /// For `slow`: bandwidth of the direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_per_second: Option<u64>,
}

/// What can be done to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LinkAction {
    /// Swallow everything, silently.
    Cut,
    /// Delay, and limit the bandwidth.
    Slow,
    /// Open at full speed; connections open during a cut are reset.
    Heal,
}

/// Does something to a node's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeRequest {
    /// What to do.
    pub(crate) action: NodeAction,
    /// The node's id.
    pub(crate) id: String,
}

/// What can be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeAction {
    /// End it without warning.
    Kill,
    /// Let it hang.
    Pause,
    /// Let it go on.
    Resume,
    /// Start it again and wait until it serves.
    Start,
}

/// What the control port answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// Directions of links: all of them, or those that were changed.
    Links(Vec<LinkStatus>),
    /// The node after what was done to it.
    Node(NodeStatus),
    /// Nothing was done, and why.
    Error(String),
}

/// One direction between two regions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinkStatus {
    /// Where bytes come from.
    pub(crate) from: String,
    /// Where they go.
    pub(crate) to: String,
    /// How it is.
    pub(crate) state: LinkState,
    /// Its delay, in milliseconds: half the round trip.
    pub(crate) delay_ms: f64,
    /// What is added, in milliseconds.
    pub(crate) extra_ms: f64,
    /// Its bandwidth, if limited.
    pub(crate) bytes_per_second: Option<u64>,
    /// How long it has been cut, in seconds.
    pub(crate) cut_seconds: Option<f64>,
    /// Bytes between nodes that arrived since the world started.
    pub(crate) peer_bytes: u64,
    /// Bytes between clients and nodes that arrived since the world started.
    pub(crate) client_bytes: u64,
}

/// How a direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LinkState {
    /// As the regions file says.
    Open,
    /// Slowed.
    Slow,
    /// Swallowing.
    Cut,
}

/// A node's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    /// Its id.
    pub(crate) id: String,
    /// How it is.
    pub(crate) state: NodeState,
    /// Its process id while there is a process.
    pub(crate) pid: Option<u32>,
}

/// How a node's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeState {
    /// Running.
    Running,
    /// Hanging.
    Paused,
    /// Not there.
    Down,
}

/// Binds the control port; requests are answered by [`serve`].
pub(crate) async fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Answers requests until it is dropped.
pub(crate) async fn serve(listener: TcpListener, world: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, world.clone()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await, // out of descriptors
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers the requests of one connection. An error ends it: nobody is left to tell.
async fn converse(stream: TcpStream, world: Arc<Shared>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let limit = MAX_REQUEST_BYTES as u64 + 1;
        timeout(IDLE_TIME, (&mut stream).take(limit).read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let request = if line.len() > MAX_REQUEST_BYTES {
            Err(format!("the request is longer than {MAX_REQUEST_BYTES} bytes, the limit"))
        } else {
            serde_json::from_slice(&line).map_err(|error| {
                let line = String::from_utf8_lossy(&line);
                format!("{} is no request: {error}", echo(line.trim_end()))
            })
        };
        // After a line that is no request the rest is not read: a web page can make a browser send a request here, in
        // whose middle stands a good line.
        let last = request.is_err();
        let answer = match request {
            Ok(request) => {
                world.answer(request).await.unwrap_or_else(|error| Answer::Error(error.to_string()))
            }
            Err(reason) => Answer::Error(reason),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        if last {
            return stream.shutdown().await;
        }
    }
}

impl Shared {
    async fn answer(&self, request: Request) -> Result<Answer, WorldError> {
        match request {
            Request::Link(request) => self.change_link(&request),
            Request::Node(request) => self.change_node(&request).await,
            Request::Links {} => {
                let pairs = self.regions.iter().flat_map(|a| self.regions.iter().map(move |b| (a, b)));
                Ok(Answer::Links(pairs.filter_map(|(from, to)| self.link_status(from, to)).collect()))
            }
        }
    }

    fn change_link(&self, request: &LinkRequest) -> Result<Answer, WorldError> {
        let LinkRequest { action, a, b, one_way, .. } = request;
        for name in [a, b] {
            if !self.regions.contains(name) {
                return refuse(format!(
                    "unknown region {}; the regions are {}",
                    echo(name),
                    self.regions.join(", ")
                ));
            }
        }
        if a == b {
            return refuse(format!("\"{a}\" is named twice; a link is between two regions"));
        }
        let slow = request.slow()?;
        let mut directions = vec![(a, b)];
        if !one_way {
            directions.push((b, a));
        }
        for (from, to) in &directions {
            if let Some(line) = self.line(from, to) {
                match action {
                    LinkAction::Cut => line.cut(),
                    LinkAction::Slow => line.slow(slow),
                    LinkAction::Heal => line.heal(),
                }
            }
        }
        Ok(Answer::Links(directions.iter().filter_map(|(from, to)| self.link_status(from, to)).collect()))
    }

    async fn change_node(&self, request: &NodeRequest) -> Result<Answer, WorldError> {
        let id = &request.id;
        let Some(node) = self.nodes.get(id) else {
            let known: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
            return refuse(format!("unknown node {}; the nodes are {}", echo(id), known.join(", ")));
        };
        let order = match request.action {
            NodeAction::Kill => Order::Kill,
            NodeAction::Pause => Order::Pause,
            NodeAction::Resume => Order::Resume,
            NodeAction::Start => Order::Start,
        };
        node.order(order).await?;
        if order == Order::Start {
            self.tell_process_ids()?;
            node.serving(&self.healthy).await?;
        }
        let (state, pid) = match node.state() {
            ProcessState::Running(pid) => (NodeState::Running, Some(pid)),
            ProcessState::Paused(pid) => (NodeState::Paused, Some(pid)),
            ProcessState::Down | ProcessState::Failed(_) => (NodeState::Down, None),
        };
        Ok(Answer::Node(NodeStatus { id: id.clone(), state, pid }))
    }

    fn line(&self, from: &str, to: &str) -> Option<&Arc<Line>> {
        self.lines.get(&(from.to_owned(), to.to_owned()))
    }

    fn link_status(&self, from: &str, to: &str) -> Option<LinkStatus> {
        let line = self.line(from, to)?;
        let state = line.state();
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        Some(LinkStatus {
            from: from.to_owned(),
            to: to.to_owned(),
            state: match state.cut_since {
                Some(_) => LinkState::Cut,
                None if state.slow == Slow::default() => LinkState::Open,
                None => LinkState::Slow,
            },
            delay_ms: milliseconds(line.delay()),
            extra_ms: milliseconds(state.slow.extra),
            bytes_per_second: state.slow.bytes_per_second.map(NonZeroU64::get),
            cut_seconds: state.cut_since.map(|since| Instant::now().duration_since(since).as_secs_f64()),
            peer_bytes: line.carried(Traffic::Peers),
            client_bytes: line.carried(Traffic::Clients),
        })
    }
}

impl LinkRequest {
    /// What a `slow` asks for.
    fn slow(&self) -> Result<Slow, WorldError> {
        if self.action != LinkAction::Slow && (self.extra_ms.is_some() || self.bytes_per_second.is_some()) {
            return refuse("extra_ms and bytes_per_second are for the action slow".to_owned());
        }
        let extra = match self.extra_ms {
            Some(extra_ms) if (0.0..=MAX_EXTRA_MS).contains(&extra_ms) => {
                Duration::from_secs_f64(extra_ms / 1e3)
            }
            Some(extra_ms) => {
                return refuse(format!("extra_ms {extra_ms} is outside 0 to {MAX_EXTRA_MS} milliseconds"));
            }
            None if self.bytes_per_second.is_some() => Duration::ZERO,
            None => USUAL_EXTRA,
        };
        let bytes_per_second = match self.bytes_per_second {
            Some(rate) if rate < MIN_BYTES_PER_SECOND => {
                return refuse(format!("bytes_per_second {rate} is below {MIN_BYTES_PER_SECOND}, the least"));
            }
            rate => rate.and_then(NonZeroU64::new),
        };
        Ok(Slow { extra, bytes_per_second })
    }
}

fn refuse<T>(reason: String) -> Result<T, WorldError> {
    Err(WorldError::Refused(reason))
}

/// Changes a link of a running world. Returns the directions that were changed.
pub(crate) async fn change_link(
    control: SocketAddr,
    request: LinkRequest,
) -> Result<Vec<LinkStatus>, WorldError> {
    match ask(control, &Request::Link(request)).await? {
        Answer::Links(links) => Ok(links),
        other => Err(unexpected(&other)),
    }
}

/// Does something to a node of a running world. Returns the node after it.
pub(crate) async fn change_node(control: SocketAddr, request: NodeRequest) -> Result<NodeStatus, WorldError> {
    match ask(control, &Request::Node(request)).await? {
        Answer::Node(node) => Ok(node),
        other => Err(unexpected(&other)),
    }
}

/// All directions between regions of a running world.
pub(crate) async fn links(control: SocketAddr) -> Result<Vec<LinkStatus>, WorldError> {
    match ask(control, &Request::Links {}).await? {
        Answer::Links(links) => Ok(links),
        other => Err(unexpected(&other)),
    }
}

async fn ask(control: SocketAddr, request: &Request) -> Result<Answer, WorldError> {
    let asked = async {
        let mut stream = TcpStream::connect(control).await?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut line = Vec::new();
        BufReader::new(stream).take(MAX_ANSWER_BYTES).read_until(b'\n', &mut line).await?;
        Ok(serde_json::from_slice(&line)?)
    };
    match timeout(ANSWER_TIME, asked).await {
        Ok(Ok(Answer::Error(reason))) => Err(WorldError::Refused(reason)),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(WorldError::system(format!("the world's control port {control}"), error)),
        Err(_) => Err(WorldError::system(
            format!("the world's control port {control}"),
            io::ErrorKind::TimedOut.into(),
        )),
    }
}

fn unexpected(answer: &Answer) -> WorldError {
    WorldError::Refused(format!("the world gave another kind of answer: {}", echo(&format!("{answer:?}"))))
}
