//! A whole node: store, driver, links, API, health and reflection, from its start to its clean stop.
//!
//! A stop goes through the `Phase`s: new calls are refused while those that run may end, links stay up so that they can;
//! then connections are closed, threads end, and the replica leaves a clean store behind.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::RngExt;
use thiserror::Error;
use tokio::io::BufWriter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tracing::{info, warn};
use tropism_crdt::Origin;
use tropism_disk::{OpenError, Witness};
use tropism_replica::limits::{LOG_KEEP_MS, PART_BYTES, SETTLE_KEYS};
use tropism_replica::{BootError, Identity, Peer};
use tropism_storage::{Head, Store, StoreError};
use tropism_wire::{DESCRIPTORS, v1};

use crate::api::{Api, ApiConfig, Away};
use crate::config::{CheckedConfig, Engine, NodeConfig};
use crate::directory::{DirectoryConfig, DirectoryThread, Service, agreement, voters};
use crate::driver::{Driver, Failure, Witnessed, wall_ms};
use crate::lane;
use crate::open::{Opened, healing, salvage};
use crate::peer::{Links, PeerAddress, digest_key};
use crate::placement::{Pace, Placement};
use crate::telemetry::push::Push;
use crate::telemetry::{Telemetry, resource, scrape};
use crate::traffic::Traffic;

#[cfg(test)]
mod tests;

/// Connections of clients at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 1_024;
/// Calls at once on one connection, beyond which HTTP/2 makes the client wait.
const STREAMS_PER_CONNECTION: u32 = 1_024;
/// The witness is synced at least this often.
const WITNESS_SYNC: Duration = Duration::from_secs(1);
/// How often a node that stops looks whether calls still run.
const IDLE_CHECK: Duration = Duration::from_millis(10);
/// How long connections may take to carry away what was answered, when the last call has ended: a few round trips to
/// the other end of the world.
const FLUSH_TIME: Duration = Duration::from_secs(1);
/// Share of the file system that the log may take for members that do not answer, percent.
const LOG_DISK_PERCENT: u64 = 10;
/// What it may take of memory for them, bytes.
const MEMORY_LOG_BYTES: u64 = 1 << 30;
/// Where a vote's store is, below the node's data directory.
const DIRECTORY_DIR: &str = "directory";
/// Bytes of metadata a call may bring: what the API refuses in words is below it.
const HEADER_BYTES: u32 = 16 * 1024;

/// Why a node did not start, or stopped by itself.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The store is not to be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store is not this node's, or cannot be read.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A thread or a runtime could not be made.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// The node found that it must not go on.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// How far a node is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Not at all.
    Serving,
    /// Calls that run may end; health says that the node does not serve.
    Draining,
    /// Connections are told to close, and close when what was answered has left.
    Closing,
    /// Threads end.
    Over,
}

/// Waits for a phase, or one behind it.
async fn reached(mut phases: watch::Receiver<Phase>, phase: Phase) {
    phases.wait_for(|now| *now >= phase).await.ok(); // without a sender everything is over
}

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Version of the program, with the commit it was built from.
    pub version: String,
    /// Serve what the store has, also when peers may have had more of it: what is missing is given up.
    pub accept_loss: bool,
}

/// Serves until `stop` is told, or until the node must not go on. Blocks the calling thread. A store that must not be served
/// is set aside, and the node goes on with an empty one, if it has peers to fill that.
pub fn run(checked: CheckedConfig, start: Start, stop: watch::Receiver<bool>) -> Result<(), ServeError> {
    healing(&checked.config, start.accept_loss, |opened| serve(&checked, &start, opened, stop.clone()))
}

fn serve(
    checked: &CheckedConfig,
    start: &Start,
    opened: Opened,
    stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let CheckedConfig { config, secret, regions } = checked;
    let Opened { engine, witness, opening, aside } = opened;
    let store = Store::open(engine)?;
    let durable = store.durable();
    let peers: Vec<Peer> =
        config.peers.iter().map(|peer| Peer { node: peer.id, region: peer.region.clone() }).collect();
    let identity = Identity {
        cluster: config.cluster.id.clone(),
        node: config.node.id,
        region: config.node.region.clone(),
        boot_random: rand::rng().random(),
        new_store_id: rand::rng().random(),
        opening,
        peers: peers.clone(),
        digest_key: digest_key(&config.cluster.id, secret.as_bytes()),
        rules: regions.rules().clone(),
        directory: true,
        log_keep_ms: LOG_KEEP_MS,
        log_keep_bytes: config.limits.log_bytes,
        part_bytes: PART_BYTES,
        settle_keys: SETTLE_KEYS,
        log_cap_ms: config.limits.log_hours * 3_600_000, // at most 24 hours
        log_cap_bytes: match config.node.engine {
            Engine::Memory => MEMORY_LOG_BYTES,
            Engine::Disk => log_share(&config.node.data_dir)?,
        },
        cache_bytes: usize::try_from(config.limits.cache_bytes).unwrap_or(usize::MAX),
    };
    let (telemetry, exporting) = Telemetry::start(checked, &start.version)?;
    let (driver, handle) = Driver::start(store, identity, witness, telemetry.clone())?;
    let traffic = Arc::new(Traffic::new(config.peers.iter().map(|peer| peer.id)));
    let address = |peer: &crate::config::Peer| PeerAddress {
        node: peer.id,
        region: peer.region.clone(),
        address: peer.address.clone(),
    };
    let addresses: Vec<PeerAddress> = config.peers.iter().map(address).collect();
    let homes = addresses.iter().map(|peer| (peer.node, peer.region.clone()));
    let homes = homes.chain([(config.node.id, config.node.region.clone())]).collect();
    let voters = voters(&homes, regions);
    let pace = Pace { times: config.placement.pace, moves: config.placement.moves };
    let placement = Placement::new(config.node.id, &homes, regions, pace, rand::rng().random());
    let directory = DirectoryConfig {
        node: config.node.id,
        cluster: config.cluster.id.clone(),
        secret: secret.as_bytes().to_vec(),
        policy: agreement(regions.rules().hash(), &voters),
        peers: addresses.clone(),
        voters,
        path: durable.then(|| config.node.data_dir.join(DIRECTORY_DIR)),
        placement: placement.clone(),
    };
    let away = Away::new(config.node.id, &config.cluster.id, secret.as_bytes(), &addresses);
    let (directory_thread, directory, service) = DirectoryThread::start(directory, handle.clone())?;
    let links = Links::new(
        handle.clone(),
        config.node.id,
        config.cluster.id.clone(),
        secret.as_bytes(),
        addresses,
        traffic.clone(),
        regions.rules().hash(),
    );
    let (phase, phases) = watch::channel(Phase::Serving);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut threads = Vec::new();
    let outcome = runtime.block_on(async {
        let api = Api::new(ApiConfig {
            handle: handle.clone(),
            rules: Arc::new(regions.rules().clone()),
            regions: Arc::new(regions.clone()),
            cluster: config.cluster.id.clone(),
            node: config.node.id,
            region: config.node.region.clone(),
            endpoint: format!("http://{}", config.listen.client),
            metrics: config.telemetry.metrics.map(scrape::url).unwrap_or_default(),
            peers,
            traffic,
            engine: if durable { "disk" } else { "memory" },
            durable,
            insecure: config.listen.insecure,
            version: start.version.clone(),
            watches: config.limits.watches,
            watch_buffer_bytes: config.limits.watch_buffer_bytes,
            telemetry,
            directory,
            placement,
            away,
        });
        let links = LinkThread {
            links,
            directory: service,
            api: api.clone(),
            address: config.listen.peer,
            phases: phases.clone(),
        };
        threads.push(links.start()?);
        if let Some(aside) = aside {
            tokio::spawn(salvage(handle.clone(), aside));
        }
        let listener = config.telemetry.metrics.map(|address| {
            std::net::TcpListener::bind(address).map_err(|source| ServeError::Listen { address, source })
        });
        let (listener, push) = (listener.transpose()?, push(config, &start.version));
        if listener.is_some() || push.is_some() {
            let over = reached(phases.clone(), Phase::Over);
            threads.push(scrape::start(listener, push, api.clone(), over)?);
        }
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let mut clients = Clients { api, phase: &phase, phases, lanes: Vec::new(), permits };
        let outcome = clients.serve(config.listen.client, handle.failed(), stop, &mut threads).await;
        match outcome {
            Ok(listener) => {
                clients.drain(&listener, config.limits.stop_time).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    });
    phase.send_replace(Phase::Over);
    for thread in threads {
        if thread.join().is_err() {
            warn!("a thread panicked");
        }
    }
    runtime.shutdown_background();
    directory_thread.stop();
    driver.stop();
    exporting.stop();
    outcome
}

/// Where metrics are sent to, if they are.
fn push(config: &NodeConfig, version: &str) -> Option<Push> {
    let (otlp, every) = (config.telemetry.otlp.clone()?, config.telemetry.push_every?);
    Some(Push { otlp, every, resource: resource(config, version), started_ms: wall_ms() })
}

/// How large the log may grow for members that do not answer.
fn log_share(dir: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_blocks.saturating_mul(disk.f_frsize) / 100 * LOG_DISK_PERCENT)
}

/// The clients' side of a node.
struct Clients<'a> {
    api: Api,
    phase: &'a watch::Sender<Phase>,
    phases: watch::Receiver<Phase>,
    /// The API's threads, to whom connections are given in turn.
    lanes: Vec<Lane>,
    permits: Arc<Semaphore>,
}

impl Clients<'_> {
    /// Listens for clients and serves them until the node is to stop.
    async fn serve(
        &mut self,
        address: SocketAddr,
        mut failed: watch::Receiver<Option<Failure>>,
        mut stop: watch::Receiver<bool>,
        started: &mut Vec<JoinHandle<()>>,
    ) -> Result<TcpListener, ServeError> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        // One runtime per two cores: the replica, the store and the links need the others; gets get slower with more.
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        for number in 0..threads {
            let (lane, thread) = api_thread(&self.api, self.phases.clone(), number)?;
            self.lanes.push(lane);
            started.push(thread);
        }
        info!(%address, threads, "serving clients");
        tokio::select! {
            never = self.accept(&listener) => match never {},
            failed = failed.wait_for(Option::is_some) => {
                match failed.ok().and_then(|failure| failure.clone()) {
                    Some(failure) => Err(failure.into()),
                    None => Ok(listener), // the replica's thread has ended without a failure: it was stopped
                }
            }
            _ = stop.wait_for(|stop| *stop) => Ok(listener),
        }
    }

    /// Hands connections round the API's threads.
    async fn accept(&self, listener: &TcpListener) -> std::convert::Infallible {
        let mut next = 0_usize;
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await; // out of descriptors, most likely
                    continue;
                }
            };
            let Ok(permit) = self.permits.clone().acquire_owned().await else { continue }; // never closed
            next = next.wrapping_add(1);
            let lane = &self.lanes[next % self.lanes.len()];
            if let Ok(stream) = stream.into_std() {
                lane.send((stream, permit)).await.ok(); // ends only with the process
            }
        }
    }

    /// Lets calls that run end, for so long at most, and then their answers leave.
    async fn drain(&mut self, listener: &TcpListener, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        info!(?time, "stopping: calls that run may end");
        self.api.stop();
        self.phase.send_replace(Phase::Draining);
        let idle = async {
            while !self.api.is_idle() {
                tokio::time::sleep(IDLE_CHECK).await;
            }
        };
        // Connections are still accepted: who asks hears that the node does not serve.
        let whole = tokio::select! {
            never = self.accept(listener) => match never {},
            whole = tokio::time::timeout_at(until, idle) => whole.is_ok(),
        };
        if !whole {
            warn!(
                "stopping: calls still run and are cut off; what became of them is unknown to their clients"
            );
            return;
        }
        self.phase.send_replace(Phase::Closing);
        self.lanes.clear();
        // All connections have gone when all permits are back.
        let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
        let flushed = self.permits.acquire_many(all);
        tokio::time::timeout(FLUSH_TIME, flushed).await.ok();
    }
}

type Lane = mpsc::Sender<(std::net::TcpStream, tokio::sync::OwnedSemaphorePermit)>;

/// One thread with a runtime of its own that serves the connections it is given: half the CPU of a shared runtime.
fn api_thread(
    api: &Api,
    phases: watch::Receiver<Phase>,
    number: usize,
) -> io::Result<(Lane, JoinHandle<()>)> {
    let (lane, connections) = mpsc::channel(16);
    let api = api.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name(format!("api-{number}")).spawn(move || {
        runtime.block_on(async move {
            lane::enter();
            let (reporter, health) = tonic_health::server::health_reporter();
            let filled = filled(&api);
            let ready = if filled.is_some() { ServingStatus::NotServing } else { ServingStatus::Serving };
            set_health(&reporter, ready).await;
            if let Some(filled) = filled {
                let (reporter, draining) = (reporter.clone(), reached(phases.clone(), Phase::Draining));
                tokio::spawn(async move {
                    tokio::select! {
                        () = filled => set_health(&reporter, ServingStatus::Serving).await,
                        () = draining => {} // it will not serve any more
                    }
                });
            }
            let draining = reached(phases.clone(), Phase::Draining);
            tokio::spawn(async move {
                draining.await;
                set_health(&reporter, ServingStatus::NotServing).await;
            });
            let reflection = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(DESCRIPTORS)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            };
            // Most tools still ask for the first version.
            let (reflection, reflection_alpha) = match (reflection().build_v1(), reflection().build_v1alpha())
            {
                (Ok(current), Ok(alpha)) => (Some(current), Some(alpha)),
                (Err(error), _) | (_, Err(error)) => {
                    warn!(%error, "no reflection");
                    (None, None)
                }
            };
            let incoming =
                tokio_stream::StreamExt::filter_map(ReceiverStream::new(connections), |(stream, permit)| {
                    Connection::new(stream, permit).map(Ok::<_, io::Error>)
                });
            let served = Server::builder()
                .tcp_nodelay(true)
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .http2_keepalive_interval(Some(Duration::from_secs(30)))
                .http2_keepalive_timeout(Some(Duration::from_secs(20)))
                .http2_max_header_list_size(HEADER_BYTES)
                .http2_max_pending_accept_reset_streams(Some(20))
                .add_routes(api.routes())
                .add_service(health)
                .add_optional_service(reflection)
                .add_optional_service(reflection_alpha)
                .serve_with_incoming_shutdown(incoming, reached(phases.clone(), Phase::Closing));
            tokio::select! {
                served = served => if let Err(error) = served {
                    warn!(%error, "an API thread ended");
                },
                () = reached(phases, Phase::Over) => {}
            }
        });
        runtime.shutdown_background();
    })?;
    Ok((lane, thread))
}

/// When the store is filled, if it has to be.
fn filled(api: &Api) -> Option<impl Future<Output = ()> + use<>> {
    let handle = api.handle();
    handle.published().rebuild.is_some().then_some(async move {
        let mut commits = handle.commits();
        while handle.published().rebuild.is_some() && commits.changed().await.is_ok() {}
    })
}

/// Tells who asks for the health of the node or of one of its services.
async fn set_health(reporter: &tonic_health::server::HealthReporter, status: ServingStatus) {
    for service in [
        "",
        v1::state_service_server::SERVICE_NAME,
        v1::scope_service_server::SERVICE_NAME,
        v1::placement_service_server::SERVICE_NAME,
        v1::history_service_server::SERVICE_NAME,
        v1::parked_service_server::SERVICE_NAME,
        v1::cluster_service_server::SERVICE_NAME,
    ] {
        reporter.set_service_status(service, status).await;
    }
}

/// The thread of the links, with a runtime of its own.
struct LinkThread {
    links: Links,
    directory: Service,
    api: Api,
    address: SocketAddr,
    phases: watch::Receiver<Phase>,
}

impl LinkThread {
    /// Listens, then accepts and dials on its own thread.
    fn start(self) -> Result<JoinHandle<()>, ServeError> {
        let Self { links, directory, api, address, phases } = self;
        let listener =
            std::net::TcpListener::bind(address).map_err(|source| ServeError::Listen { address, source })?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("links".into()).spawn(move || {
            runtime.block_on(async move {
                let listener = match TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return warn!(%error, "links are not accepted"),
                };
                links.dial_all();
                let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
                let served = Server::builder()
                    .initial_stream_window_size(8 << 20)
                    .initial_connection_window_size(8 << 20)
                    .http2_max_header_list_size(HEADER_BYTES)
                    .add_routes(api.forwarded())
                    .add_service(links.service())
                    .add_service(directory.server())
                    .serve_with_incoming(incoming);
                tokio::select! {
                    served = served => if let Err(error) = served {
                        warn!(%error, "links are no longer accepted");
                    },
                    () = reached(phases, Phase::Over) => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(thread)
    }
}

/// The witness of the disk engine.
pub(crate) struct KeptWitness {
    pub(crate) witness: Witness,
    pub(crate) synced: Instant,
}

impl Witnessed for KeptWitness {
    fn synced(&mut self, origin: Origin, reserved_ms: u64, head: Head) -> io::Result<()> {
        self.witness.record(origin, reserved_ms, head)?;
        if self.synced.elapsed() >= WITNESS_SYNC {
            self.witness.sync()?;
            self.synced = Instant::now();
        }
        Ok(())
    }
}

/// What a connection gathers before it is written, in bytes: one frame of the largest size that peers allow at first
/// (RFC 9113: 16 KiB), with its header and the headers before it.
const WRITE_BUFFER_BYTES: usize = 18 << 10;

/// A client's connection with its place among the [`CONNECTIONS`].
///
/// It says that it cannot write several buffers at once. The HTTP/2 library then copies answers below 1 KiB together, and
/// writes one time for all that are there; with vectored writes it does so only below 256 B, and larger answers cost a
/// system call each. The buffer makes one write of a larger frame's parts.
struct Connection {
    stream: BufWriter<TcpStream>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: std::net::TcpStream, permit: tokio::sync::OwnedSemaphorePermit) -> Option<Self> {
        let stream = TcpStream::from_std(stream).and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        match stream {
            Ok(stream) => {
                let stream = BufWriter::with_capacity(WRITE_BUFFER_BYTES, stream);
                Some(Self { stream, _permit: permit })
            }
            Err(error) => {
                warn!(%error, "a connection was lost at once");
                None
            }
        }
    }
}

mod connection {
    //! [`Connection`](super::Connection) as the transport wants it.

    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tonic::transport::server::{Connected, TcpConnectInfo};

    use super::Connection;

    impl Connected for Connection {
        type ConnectInfo = TcpConnectInfo;

        fn connect_info(&self) -> TcpConnectInfo {
            self.stream.get_ref().connect_info()
        }
    }

    impl AsyncRead for Connection {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Connection {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }
}
