//! A development world: several regions on one machine, with their real distances.
//!
//! Every node is a child process of this program with its own ports and directory. Nodes do not know each other's
//! ports: each dials relays in this process, which give every direction between two regions its delay and can cut, slow
//! and heal it. Clients have places: per place and node there is a relay with the round trip from that place, and where
//! that is none the node itself. What is running where stands in the ready file, and the control port changes links and
//! nodes while the world runs.
//!
//! A world ends in order (SIGTERM to every node) or with its process, like a power cut; its data stay either way.

mod alarm;
pub(crate) mod control;
pub(crate) mod description;
pub(crate) mod directory;
pub(crate) mod process;
mod relay;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tropism_crdt::NodeId;
use tropism_placement::{ConfigErrors, Place, Regions};

use alarm::Alarm;
use description::{Description, NodeDescription, PlaceDescription, RegionDescription, remember};
use directory::{WorldDirectory, write_public};
use process::{Health, Launch, NodeProcess, Order, ProcessState};
use relay::{Line, Relay, Traffic};

/// Most nodes of a region: each is a process that holds all of it, linked with every other one.
pub(crate) const MAX_NODES_PER_REGION: usize = 5;
/// The cluster id of every development world; what keeps two of them apart is their secret.
const CLUSTER: &str = "dev";
/// Unexpected ends of nodes that wait to be told; beyond it they are only seen in the node's state.
const FAILURES: usize = 64;

/// Why a world cannot do something.
#[derive(Debug, Error)]
pub(crate) enum WorldError {
    /// What was asked for at the start does not fit: choose other options.
    #[error("{0}")]
    Options(String),
    /// A node does not serve: its log, which is quoted, says why.
    #[error("{0}")]
    Node(String),
    /// No running world was found: start one.
    #[error("{0}; `tropism dev` starts a world")]
    NoWorld(String),
    /// A request named something that is not there or cannot be done now: correct it.
    #[error("{0}")]
    Refused(String),
    /// The system refused something: its reason says what to mend.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
}

impl WorldError {
    fn system(doing: String, source: io::Error) -> Self {
        Self::System { doing, source }
    }
}

/// What a world is made from.
pub(crate) struct Options {
    /// The regions file.
    pub(crate) regions: RegionsFile,
    /// Nodes of each region, at most [`MAX_NODES_PER_REGION`].
    pub(crate) nodes_per_region: usize,
    /// Where everything is kept.
    pub(crate) data: PathBuf,
    /// Whether to delete what is there.
    pub(crate) fresh: bool,
    /// Where to write the ready file, besides the data directory.
    pub(crate) ready_file: Option<PathBuf>,
    /// The directory in which this world is remembered as the last one started; none to leave it out.
    pub(crate) state: Option<PathBuf>,
    /// Program and arguments of a node; the path of its configuration is added. See [`node_command`].
    pub(crate) node_command: Vec<OsString>,
    /// URL of the collector that gets a trace of every call.
    pub(crate) otlp: Option<String>,
    /// How many times as fast as others placement's clock is.
    pub(crate) placement_pace: u32,
}

/// A regions file, read.
pub(crate) struct RegionsFile {
    text: String,
    regions: Regions,
}

impl RegionsFile {
    /// Reads and checks the text of a regions file; `name` is its name in errors.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        Ok(Self { text: text.to_owned(), regions: Regions::parse(name, text)? })
    }
}

/// How a world starts its nodes: this same program, told to end with its parent.
pub(crate) fn node_command() -> Result<Vec<OsString>, WorldError> {
    let program =
        env::current_exe().map_err(|error| WorldError::system("finding this program".to_owned(), error))?;
    Ok([program.into(), "serve".into(), "--end-with-stdin".into(), "--config".into()].into())
}

/// A running world. Dropping it kills the nodes; [`World::stop`] stops them in order.
pub(crate) struct World {
    shared: Arc<Shared>,
    failures: mpsc::Receiver<String>,
    control: AbortHandle,
    _network: Network,
    _plans: Vec<Plan>,
    _directory: WorldDirectory,
}

/// What the control port needs.
pub(crate) struct Shared {
    /// Names of the regions, in file order.
    regions: Vec<String>,
    lines: Lines,
    nodes: BTreeMap<String, NodeProcess>,
    healthy: Health,
    description: Mutex<Description>,
    ready_files: Vec<PathBuf>,
}

impl World {
    /// Starts every node and waits until all serve, which `healthy` says of an endpoint. Whatever goes wrong, nothing
    /// keeps running.
    pub(crate) async fn start<F, Answer>(options: Options, healthy: F) -> Result<Self, WorldError>
    where
        F: Fn(String) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = bool> + Send + 'static,
    {
        let RegionsFile { text, regions } = &options.regions;
        let directory = WorldDirectory::open(&options.data, options.fresh)?;
        let mut ready_files = vec![directory.ready_file()];
        ready_files.extend(options.ready_file);
        for path in &ready_files {
            remove(path)?; // whoever waits for it must not find that of an earlier world
        }
        let regions_file = directory.put_regions(text, regions)?;
        let secret_file = directory.secret()?;
        let plans = Plan::all(regions, options.nodes_per_region, &directory)?;

        let mut network = Network::new(regions)?;
        let (failed, failures) = mpsc::channel(FAILURES);
        let mut nodes = BTreeMap::new();
        for plan in &plans {
            let mut peers = Vec::new();
            for peer in plans.iter().filter(|peer| peer.id != plan.id) {
                let target = peer.peer.address;
                peers.push((peer, network.reach(&plan.region, &peer.region, target, Traffic::Peers).await?));
            }
            let config = plan.directory.join("node.toml");
            let text = {
                let (otlp, pace) = (options.otlp.as_deref(), options.placement_pace);
                plan.config(&peers, &secret_file, &regions_file, otlp, pace)?
            };
            write_public(&config, text.as_bytes())?;
            let log = plan.directory.join("log");
            File::create(&log).map_err(|error| WorldError::system(log.display().to_string(), error))?;
            let command = options.node_command.clone();
            let launch = Launch { id: plan.id.clone(), command, config, log, client: plan.client.address };
            nodes.insert(plan.id.clone(), NodeProcess::new(launch, failed.clone()));
        }

        let mut places = BTreeMap::new();
        for place in regions.places() {
            places.insert(place.name.clone(), network.describe_place(place, regions, &plans).await?);
        }
        let (listener, control) = control::listen()
            .await
            .map_err(|error| WorldError::system("the control port".to_owned(), error))?;
        let shared = Arc::new(Shared {
            regions: regions.regions().iter().map(|region| region.name.as_str().to_owned()).collect(),
            lines: network.lines.clone(),
            nodes,
            healthy: Arc::new(move |endpoint| Box::pin(healthy(endpoint))),
            description: Mutex::new(Description {
                regions: describe_regions(regions, &plans),
                places,
                control,
            }),
            ready_files,
        });

        for node in shared.nodes.values() {
            node.order(Order::Start).await?;
        }
        for node in shared.nodes.values() {
            node.serving(&shared.healthy).await?;
        }
        shared.tell_process_ids()?;
        if let Some(state) = &options.state {
            remember(state, &directory.ready_file())?;
        }
        let control = tokio::spawn(control::serve(listener, shared.clone())).abort_handle();
        Ok(Self { shared, failures, control, _network: network, _plans: plans, _directory: directory })
    }

    /// What runs where.
    pub(crate) fn description(&self) -> Description {
        self.shared.description.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the next node that ends without having been told to. Says which, how, and the end of its log; the
    /// others keep running, and `tropism dev node start` starts it again.
    pub(crate) async fn failure(&mut self) -> String {
        match self.failures.recv().await {
            Some(failure) => failure,
            None => std::future::pending().await, // no supervisor is left: nothing can fail any more
        }
    }

    /// Stops every node, all at once, and waits until they have ended. The ready file goes first: nobody shall begin
    /// to use what ends.
    pub(crate) async fn stop(self) -> Result<(), WorldError> {
        self.control.abort();
        let mut result = Ok(());
        for path in &self.shared.ready_files {
            result = result.and(remove(path));
        }
        let mut stopping = JoinSet::new();
        for node in self.shared.nodes.values() {
            let node = node.clone();
            stopping.spawn(async move { node.order(Order::Stop).await });
        }
        for stopped in stopping.join_all().await {
            result = result.and(stopped);
        }
        result
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.control.abort(); // it shares the nodes, which end with their last owner
    }
}

impl Shared {
    /// Writes the ready files anew, with the process ids of now.
    fn tell_process_ids(&self) -> Result<(), WorldError> {
        let description = {
            let mut description = self.description.lock().unwrap_or_else(PoisonError::into_inner);
            for node in description.regions.iter_mut().flat_map(|region| &mut region.nodes) {
                if let Some(ProcessState::Running(pid)) = self.nodes.get(&node.id).map(NodeProcess::state) {
                    node.pid = pid;
                }
            }
            description.clone()
        };
        self.ready_files.iter().try_for_each(|path| description.write(path))
    }
}

/// A node of the world before it runs.
struct Plan {
    id: String,
    region: String,
    directory: PathBuf,
    client: Port,
    peer: Port,
    metrics: Port,
}

impl Plan {
    fn all(
        regions: &Regions,
        nodes_per_region: usize,
        directory: &WorldDirectory,
    ) -> Result<Vec<Self>, WorldError> {
        if !(1..=MAX_NODES_PER_REGION).contains(&nodes_per_region) {
            return Err(WorldError::Options(format!(
                "{nodes_per_region} nodes per region; this version runs 1 to {MAX_NODES_PER_REGION}"
            )));
        }
        let port =
            || Port::reserve().map_err(|error| WorldError::system("reserving a port".to_owned(), error));
        let mut plans = Vec::new();
        for region in regions.regions() {
            for number in 1..=nodes_per_region {
                let region = region.name.as_str().to_owned();
                let id = format!("{region}-{number}");
                if let Err(error) = NodeId::new(&id) {
                    return Err(WorldError::Options(format!("a node of region \"{region}\": {error}")));
                }
                plans.push(Self {
                    directory: directory.node(&id)?,
                    id,
                    region,
                    client: port()?,
                    peer: port()?,
                    metrics: port()?,
                });
            }
        }
        Ok(plans)
    }

    /// The node's configuration file.
    fn config(
        &self,
        peers: &[(&Plan, SocketAddr)],
        secret: &Path,
        regions: &Path,
        otlp: Option<&str>,
        placement_pace: u32,
    ) -> Result<String, WorldError> {
        let path = |path: &Path| match path.to_str() {
            Some(text) => Ok(quoted(text)),
            None => {
                Err(WorldError::Options(format!("{} is not UTF-8; name another with --data", path.display())))
            }
        };
        let mut text = format!(
            "# Written by `tropism dev` at each start.\n\
             [node]\nid = {}\nregion = {}\ndata_dir = {}\n\
             [listen]\nclient = \"{}\"\npeer = \"{}\"\n\
             [cluster]\nid = {}\nsecret_file = {}\nregions_file = {}\n",
            quoted(&self.id),
            quoted(&self.region),
            path(&self.data())?,
            self.client.address,
            self.peer.address,
            quoted(CLUSTER),
            path(secret)?,
            path(regions)?,
        );
        text += &format!("[placement]\npace = {placement_pace}\n");
        text += &format!("[telemetry]\nmetrics = \"{}\"\n", self.metrics.address);
        if let Some(otlp) = otlp {
            text += &format!("otlp = {}\nsampling = 1.0\n", quoted(otlp));
        }
        for (peer, address) in peers {
            let (id, region) = (quoted(&peer.id), quoted(&peer.region));
            text += &format!("[[peer]]\nid = {id}\nregion = {region}\naddress = \"{address}\"\n");
        }
        Ok(text)
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.client.address)
    }

    fn metrics(&self) -> String {
        format!("http://{}/metrics", self.metrics.address)
    }
}

/// A port that stays ours while a node is down: bound but not listening, so that the node can bind it too (both say
/// SO_REUSEADDR) and the system gives it to nobody else.
struct Port {
    address: SocketAddr,
    _socket: TcpSocket,
}

impl Port {
    fn reserve() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Self { address: socket.local_addr()?, _socket: socket })
    }
}

/// Both directions between every place and every region but itself.
type Lines = BTreeMap<(String, String), Arc<Line>>;

/// The lines of the world and the relays over them.
struct Network {
    alarm: Arc<Alarm>,
    lines: Lines,
    relays: Vec<Relay>,
}

impl Network {
    fn new(regions: &Regions) -> Result<Self, WorldError> {
        let alarm =
            Alarm::start().map_err(|error| WorldError::system("starting a thread".to_owned(), error))?;
        let mut lines = Lines::new();
        for place in regions.places() {
            for (region, rtt_ms) in regions.regions().iter().zip(&place.round_trips) {
                let (place, region) = (place.name.clone(), region.name.as_str().to_owned());
                if place == region {
                    continue;
                }
                let half = Duration::from_secs_f64(rtt_ms / 2e3); // at most MAX_ROUND_TRIP_MS / 2
                for key in [(place.clone(), region.clone()), (region, place)] {
                    lines.entry(key).or_insert_with(|| Arc::new(Line::new(half)));
                }
            }
        }
        Ok(Self { alarm: Arc::new(alarm), lines, relays: Vec::new() })
    }

    /// Where somebody in `from` dials to reach an address in `to`: a relay, or the address itself inside a region.
    async fn reach(
        &mut self,
        from: &str,
        to: &str,
        target: SocketAddr,
        traffic: Traffic,
    ) -> Result<SocketAddr, WorldError> {
        let line = |from: &str, to: &str| self.lines.get(&(from.to_owned(), to.to_owned())).cloned();
        let (Some(there), Some(back)) = (line(from, to), line(to, from)) else { return Ok(target) };
        let relay = Relay::start(target, traffic, there, back, self.alarm.clone())
            .await
            .map_err(|error| WorldError::system(format!("the link from {from} to {to}"), error))?;
        let address = relay.address;
        self.relays.push(relay);
        Ok(address)
    }

    async fn describe_place(
        &mut self,
        place: &Place,
        regions: &Regions,
        plans: &[Plan],
    ) -> Result<PlaceDescription, WorldError> {
        let nearest = regions.nearest(&place.name).map(|region| region.name.as_str());
        let mut description = PlaceDescription {
            nearest: plans
                .iter()
                .find(|plan| Some(plan.region.as_str()) == nearest)
                .map(|plan| plan.id.clone())
                .unwrap_or_default(),
            endpoints: BTreeMap::new(),
            rtt_ms: BTreeMap::new(),
        };
        for plan in plans {
            let address =
                self.reach(&place.name, &plan.region, plan.client.address, Traffic::Clients).await?;
            description.endpoints.insert(plan.id.clone(), format!("http://{address}"));
            let rtt_ms = regions.rtt(&place.name, &plan.region).unwrap_or(0.0); // it has one with every region
            description.rtt_ms.insert(plan.id.clone(), rtt_ms);
        }
        Ok(description)
    }
}

fn describe_regions(regions: &Regions, plans: &[Plan]) -> Vec<RegionDescription> {
    let describe = |name: &str| {
        let plans = || plans.iter().filter(|plan| plan.region == name);
        let node = |plan: &Plan| NodeDescription {
            id: plan.id.clone(),
            endpoint: plan.endpoint(),
            metrics: plan.metrics(),
            pid: 0, // told once it runs
            data_dir: plan.data(),
        };
        RegionDescription {
            name: name.to_owned(),
            endpoint: plans().next().map(Plan::endpoint).unwrap_or_default(), // a region has at least one node
            nodes: plans().map(node).collect(),
        }
    };
    regions.regions().iter().map(|region| describe(region.name.as_str())).collect()
}

/// What tells a world to stop: Ctrl-C, SIGTERM, or the end of its terminal.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// From now on these signals do not end the process by themselves.
    pub(crate) fn catch() -> Result<Self, WorldError> {
        let catch =
            |kind| signal(kind).map_err(|error| WorldError::system("catching signals".to_owned(), error));
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Deletes a file that may be absent.
fn remove(path: &Path) -> Result<(), WorldError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(WorldError::system(format!("deleting {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// A text as TOML.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
