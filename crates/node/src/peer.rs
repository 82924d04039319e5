//! Links to peers: dialling, accepting, the handshake, and frames between sockets and the driver.
//!
//! Each pair of nodes keeps one link, dialled by the node with the smaller id. Both sides first say who they are, then
//! prove that they know the cluster's secret; `Prover` is the part that mutual TLS would replace. Then they compare the
//! hashes of their rules: where they differ the same scope could be held elsewhere or be of another kind, and no change
//! flows (`docs/decisions/0006-rules-must-agree.md`). A link that fails is dialled again with growing patience.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use prost::Message as _;
use rand::RngExt;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{debug, info, warn};
use tropism_crdt::NodeId;
use tropism_placement::{PolicyHash, RegionName};
use tropism_replica::DigestKey;
use tropism_replica::Hello;
use tropism_wire::frames::{PROTOCOL_VERSION, from_message, hello_from_message, hello_message, to_message};
use tropism_wire::limits::MAX_MESSAGE_BYTES;
use tropism_wire::v1::link_frame::Frame as Message;
use tropism_wire::v1::peer_service_client::PeerServiceClient;
use tropism_wire::v1::peer_service_server::{PeerService, PeerServiceServer};
use tropism_wire::{Problem, Reason, v1};

use crate::driver::{FRAME_QUEUE, Handle, wall_ms};
use crate::inbox::PEER_FRAMES;
use crate::traffic::{Line, Traffic};

/// How long a connection and its handshake may take: ten of the longest round trips.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// First and last wait before dialling again.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Messages that wait between a link's task and its socket: HTTP/2 holds the rest back.
const SOCKET_QUEUE: usize = 16;
/// Window of a link, bytes: what 4 MiB of credit and its heartbeats need to be under way at once.
const WINDOW_BYTES: u32 = 8 << 20;

/// Another node, as the configuration says.
#[derive(Debug, Clone)]
pub struct PeerAddress {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub region: RegionName,
    /// `host:port` to dial.
    pub address: String,
}

/// What links need.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    handle: Handle,
    node: NodeId,
    cluster: String,
    prover: Prover,
    peers: BTreeMap<NodeId, PeerAddress>,
    traffic: Arc<Traffic>,
    policy: PolicyHash,
    next_connection: AtomicU64,
}

/// What the digests of a cluster are keyed by: known to whoever knows its secret, and to nobody else.
pub(crate) fn digest_key(cluster: &str, secret: &[u8]) -> DigestKey {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return DigestKey::default() }; // takes any length
    mac.update(b"tropism digests v1");
    mac.update(cluster.as_bytes());
    let hash: [u8; 32] = mac.finalize().into_bytes().into();
    DigestKey(hash.first_chunk().copied().unwrap_or_default()) // a hash is longer than a key
}

/// A code over parts, each with its length, that only who knows the secret can make.
pub(crate) fn code(secret: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return [0; 32] };
    for part in parts {
        mac.update(&(part.len() as u32).to_be_bytes()); // names, nonces and messages: below 4 GiB
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Proves that a node knows the cluster's secret: an HMAC over both nonces and both ids.
#[derive(Clone)]
struct Prover {
    secret: Vec<u8>,
}

impl Prover {
    /// The proof of `prover` towards `other`.
    fn proof(&self, cluster: &str, prover: (&NodeId, &[u8; 32]), other: (&NodeId, &[u8; 32])) -> [u8; 32] {
        let (name, other_name) = (prover.0.as_str().as_bytes(), other.0.as_str().as_bytes());
        code(&self.secret, &[b"tropism link v1", cluster.as_bytes(), name, prover.1, other_name, other.1])
    }
}

type Incoming = Streaming<v1::LinkFrame>;

/// One link's sending half while it is shaken hands on.
struct Outgoing(mpsc::Sender<Result<v1::LinkFrame, Status>>);

impl Outgoing {
    async fn say(&self, frame: Message) -> Result<(), Status> {
        let frame = v1::LinkFrame { round: 0, number: 0, frame: Some(frame) };
        self.0.send(Ok(frame)).await.map_err(|_| Status::unavailable("the link is gone"))
    }
}

async fn hear(incoming: &mut Incoming) -> Result<Message, Status> {
    let frame = incoming.message().await?.and_then(|message| message.frame);
    frame.ok_or_else(|| Status::unavailable("the link ended in its handshake"))
}

fn refused(message: impl Into<String>) -> Status {
    Problem::failed_precondition(Reason::PeerRefused, message).into()
}

impl Links {
    /// Links of a node.
    pub fn new(
        handle: Handle,
        node: NodeId,
        cluster: String,
        secret: &[u8],
        peers: Vec<PeerAddress>,
        traffic: Arc<Traffic>,
        policy: PolicyHash,
    ) -> Self {
        Self(Arc::new(Inner {
            handle,
            node,
            cluster,
            prover: Prover { secret: secret.to_vec() },
            peers: peers.into_iter().map(|peer| (peer.node, peer)).collect(),
            traffic,
            policy,
            next_connection: AtomicU64::new(1),
        }))
    }

    /// The service that accepts links.
    pub fn service(&self) -> PeerServiceServer<Self> {
        PeerServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + 64 * 1024)
            .max_encoding_message_size(MAX_MESSAGE_BYTES + 64 * 1024)
    }

    /// Keeps a link to every peer with a greater id, for ever.
    pub fn dial_all(&self) {
        for peer in self.0.peers.values().filter(|peer| self.0.node < peer.node) {
            let (links, peer) = (self.clone(), peer.clone());
            tokio::spawn(async move { links.keep_dialling(&peer).await });
        }
    }

    async fn keep_dialling(&self, peer: &PeerAddress) {
        let mut patience = REDIAL.0;
        loop {
            let begun = Instant::now();
            let outcome = self.dial(peer).await;
            if let Err(status) = &outcome {
                self.note_refusal(&peer.node, status);
            }
            match outcome {
                Ok(()) => debug!(peer = %peer.node, "link ended"),
                Err(status) if patience >= REDIAL.1 => {
                    info!(peer = %peer.node, address = peer.address, reason = status.message(), "no link; dialling on");
                }
                Err(status) => debug!(peer = %peer.node, reason = status.message(), "no link"),
            }
            patience = if begun.elapsed() > HANDSHAKE_TIME { REDIAL.0 } else { (patience * 2).min(REDIAL.1) };
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(patience.mul_f64(jitter)).await;
        }
    }

    async fn dial(&self, peer: &PeerAddress) -> Result<(), Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.address))
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .connect_timeout(HANDSHAKE_TIME)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = PeerServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES + 64 * 1024)
            .max_encoding_message_size(MAX_MESSAGE_BYTES + 64 * 1024);
        let (sender, frames) = mpsc::channel::<Result<v1::LinkFrame, Status>>(SOCKET_QUEUE);
        let outgoing = Outgoing(sender);
        let own = self.own_hello(peer.node).await?;
        let nonce: [u8; 32] = rand::rng().random();
        let expected = peer.node.to_string();
        let hello = hello_message(&own, &self.0.cluster, &expected, &nonce, &self.0.policy);
        outgoing.say(Message::Hello(hello)).await?;
        let frames = tokio_stream::StreamExt::filter_map(ReceiverStream::new(frames), Result::ok);
        let shaken = timeout(HANDSHAKE_TIME, async {
            let mut incoming = client.link(Request::new(frames)).await?.into_inner();
            let Message::Hello(hello) = hear(&mut incoming).await? else {
                return Err(refused("the peer did not begin with a hello"));
            };
            let (theirs, their_nonce) = self.check(&hello, Some(peer))?;
            let proof =
                self.0.prover.proof(&self.0.cluster, (&self.0.node, &nonce), (&theirs.node, &their_nonce));
            outgoing.say(Message::Proof(v1::HelloProof { hmac: proof.to_vec().into() })).await?;
            self.verify(hear(&mut incoming).await?, (&theirs.node, &their_nonce), &nonce)?;
            self.same_rules(&theirs.node, &hello.policy_hash)?;
            Ok((theirs, incoming))
        });
        let (theirs, incoming) =
            shaken.await.map_err(|_| Status::deadline_exceeded("the handshake took too long"))??;
        self.run(theirs, outgoing, incoming).await
    }

    async fn accept(&self, mut incoming: Incoming, outgoing: Outgoing) -> Result<(), Status> {
        let shaken = timeout(HANDSHAKE_TIME, async {
            let Message::Hello(hello) = hear(&mut incoming).await? else {
                return Err(refused("a link begins with a hello"));
            };
            let (theirs, their_nonce) = self.check(&hello, None)?;
            let own = self.own_hello(theirs.node).await?;
            let nonce: [u8; 32] = rand::rng().random();
            let message = hello_message(&own, &self.0.cluster, "", &nonce, &self.0.policy);
            outgoing.say(Message::Hello(message)).await?;
            self.verify(hear(&mut incoming).await?, (&theirs.node, &their_nonce), &nonce)?;
            self.same_rules(&theirs.node, &hello.policy_hash)?;
            let proof =
                self.0.prover.proof(&self.0.cluster, (&self.0.node, &nonce), (&theirs.node, &their_nonce));
            outgoing.say(Message::Proof(v1::HelloProof { hmac: proof.to_vec().into() })).await?;
            Ok(theirs)
        });
        let theirs = shaken.await.map_err(|_| Status::deadline_exceeded("the handshake took too long"))??;
        self.run(theirs, outgoing, incoming).await
    }

    async fn own_hello(&self, peer: NodeId) -> Result<Hello, Status> {
        self.0.handle.hello(peer).await.ok_or_else(|| Status::unavailable("the node stops"))
    }

    /// Whether a hello comes from a member of this cluster that may speak to us.
    fn check(&self, hello: &v1::Hello, dialled: Option<&PeerAddress>) -> Result<(Hello, [u8; 32]), Status> {
        if hello.protocol_version < PROTOCOL_VERSION {
            return Err(refused(format!(
                "protocol {} is spoken there, {PROTOCOL_VERSION} here",
                hello.protocol_version
            )));
        }
        if hello.cluster_id != self.0.cluster {
            let theirs = tropism_wire::error::echo(&hello.cluster_id);
            return Err(refused(format!(
                "the other side is of cluster {theirs}, this node of {}",
                self.0.cluster
            )));
        }
        let (theirs, nonce) = hello_from_message(hello).map_err(|error| {
            Problem::invalid_argument(Reason::MalformedRequest, "hello", error.to_string())
        })?;
        let Some(known) = self.0.peers.get(&theirs.node) else {
            return Err(refused(format!("node {} is no peer of {}", theirs.node, self.0.node)));
        };
        if known.region != theirs.region {
            return Err(refused(format!(
                "node {} is of region {}, not {}",
                theirs.node, known.region, theirs.region
            )));
        }
        if dialled.is_some_and(|dialled| dialled.node != theirs.node) {
            return Err(refused(format!("node {} answered at another's address", theirs.node)));
        }
        if !hello.expected_node.is_empty() && hello.expected_node != self.0.node.as_str() {
            let expected = tropism_wire::error::echo(&hello.expected_node);
            return Err(refused(format!("this is node {}, not {expected}", self.0.node)));
        }
        Ok((theirs, nonce))
    }

    fn verify(
        &self,
        message: Message,
        theirs: (&NodeId, &[u8; 32]),
        own_nonce: &[u8; 32],
    ) -> Result<(), Status> {
        let Message::Proof(proof) = message else { return Err(refused("a proof comes behind the hello")) };
        let expected = self.0.prover.proof(&self.0.cluster, theirs, (&self.0.node, own_nonce));
        if bool::from(expected.as_slice().ct_eq(&proof.hmac)) {
            return Ok(());
        }
        warn!(peer = %theirs.0, "a peer does not know the cluster's secret");
        Err(Problem::unauthenticated("the peer does not know the cluster's secret").into())
    }

    /// Whether a peer that proved who it is follows the rules that this node follows.
    fn same_rules(&self, peer: &NodeId, theirs: &[u8]) -> Result<(), Status> {
        let own = self.0.policy;
        if theirs == own.0 {
            return Ok(());
        }
        let theirs = <[u8; 32]>::try_from(theirs)
            .map_or_else(|_| "it does not say which".to_owned(), |hash| PolicyHash(hash).to_string());
        let status = refused(format!(
            "{peer} and {} have different rules ({theirs} and {own}): nothing is replicated between them until both have \
             the same regions file",
            self.0.node
        ));
        self.note_refusal(peer, &status);
        Err(status)
    }

    /// Notes, and logs once, that a peer and this node refuse each other.
    fn note_refusal(&self, peer: &NodeId, status: &Status) {
        let refusal = status.code() == Code::FailedPrecondition;
        if let Some(line) = self.0.traffic.line(peer)
            && refusal
            && line.refuse(status.message(), wall_ms())
        {
            warn!(%peer, reason = status.message(), "link refused");
        }
    }

    /// Carries frames both ways until either side has enough.
    async fn run(&self, theirs: Hello, outgoing: Outgoing, mut incoming: Incoming) -> Result<(), Status> {
        let peer = theirs.node;
        let connection = self.0.next_connection.fetch_add(1, Ordering::Relaxed);
        let (frames, mut to_send) = mpsc::channel(FRAME_QUEUE);
        let places = Arc::new(Semaphore::new(PEER_FRAMES));
        info!(%peer, region = %theirs.region, "link up");
        self.0.handle.link_up(theirs, connection, frames);
        let nobody = Line::default();
        let line = self.0.traffic.line(&peer).unwrap_or(&nobody);
        let sending = async {
            while let Some(frame) = to_send.recv().await {
                let message = to_message(&frame);
                line.sent(&frame, &message);
                if outgoing.0.send(Ok(message)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let receiving = async {
            while let Some(message) = incoming.message().await? {
                let bytes = message.encoded_len();
                let frame = from_message(message).map_err(|error| {
                    Status::from(Problem::invalid_argument(
                        Reason::MalformedRequest,
                        "frame",
                        error.to_string(),
                    ))
                })?;
                if let Some(frame) = frame {
                    line.received(&frame, bytes);
                    self.0.handle.frame(peer, connection, frame, &places).await;
                }
            }
            Ok(())
        };
        let outcome: Result<(), Status> = tokio::select! {
            outcome = sending => outcome,
            outcome = receiving => outcome,
        };
        self.0.handle.link_down(peer, connection);
        let reason = outcome.as_ref().err().map_or("closed", |status| status.message());
        info!(%peer, reason, "link down");
        outcome
    }
}

#[tonic::async_trait]
impl PeerService for Links {
    type LinkStream = ReceiverStream<Result<v1::LinkFrame, Status>>;

    async fn link(&self, request: Request<Incoming>) -> Result<Response<Self::LinkStream>, Status> {
        let (sender, frames) = mpsc::channel(SOCKET_QUEUE);
        let links = self.clone();
        tokio::spawn(async move {
            let outgoing = Outgoing(sender.clone());
            if let Err(status) = links.accept(request.into_inner(), outgoing).await {
                debug!(reason = status.message(), "link refused or broken");
                sender.send(Err(status)).await.ok(); // the other side may have gone
            }
        });
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tropism_placement::Regions;
    use tropism_replica::{Identity, Opening, Peer};
    use tropism_storage::{MemoryEngine, Store};

    use super::*;
    use crate::driver::Driver;
    use crate::telemetry::Telemetry;

    #[test]
    fn a_proof_depends_on_the_secret_the_cluster_both_ids_and_both_nonces() {
        let prover = |secret: &[u8]| Prover { secret: secret.to_vec() };
        let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let proof = prover(b"secret").proof("c", (&a, &[1; 32]), (&b, &[2; 32]));
        let others = [
            prover(b"secreT").proof("c", (&a, &[1; 32]), (&b, &[2; 32])),
            prover(b"secret").proof("d", (&a, &[1; 32]), (&b, &[2; 32])),
            prover(b"secret").proof("c", (&b, &[1; 32]), (&a, &[2; 32])),
            prover(b"secret").proof("c", (&a, &[2; 32]), (&b, &[2; 32])),
            prover(b"secret").proof("c", (&a, &[1; 32]), (&b, &[1; 32])),
            prover(b"secret").proof("c", (&b, &[2; 32]), (&a, &[1; 32])),
        ];
        assert!(others.iter().all(|other| *other != proof), "and one side's proof is not the other's");
        let hex: String = proof.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex.len(), 64);
    }

    const RULES: &str = r#"
region = [{ name = "a", place = "A" }, { name = "b", place = "B" }]
rtt = [{ between = ["a", "b"], ms = 10 }]
[[rule]]
name = "everything"
pattern = "**"
kind = "register"
"#;

    /// A node of two: its links, and what is noted of them.
    struct Side {
        driver: Option<Driver>,
        handle: Handle,
        links: Links,
        traffic: Arc<Traffic>,
    }

    impl Side {
        /// Node `NAME-1` of region NAME, whose only peer answers at `peer_address`.
        fn new(name: &str, peer: &str, peer_address: &str, regions_file: &str) -> Self {
            let regions = Regions::parse("regions.toml", regions_file).unwrap();
            let node = |name: &str| NodeId::new(&format!("{name}-1")).unwrap();
            let region = |name: &str| RegionName::new(name).unwrap();
            let identity = Identity {
                cluster: "test".into(),
                node: node(name),
                region: region(name),
                boot_random: 1,
                new_store_id: u128::from(name.as_bytes()[0]),
                opening: Opening { accept_loss: true, ..Opening::default() },
                peers: vec![Peer { node: node(peer), region: region(peer) }],
                rules: regions.rules().clone(),
                directory: false,
                cache_bytes: 1 << 20,
                log_keep_ms: 600_000,
                digest_key: tropism_replica::DigestKey::default(),
                part_bytes: tropism_replica::limits::FRAME_BYTES,
                settle_keys: tropism_replica::limits::SETTLE_KEYS,
                log_cap_ms: u64::MAX,
                log_cap_bytes: u64::MAX,
                log_keep_bytes: 256 << 20,
            };
            let store = Store::open(Box::new(MemoryEngine::new())).unwrap();
            let (driver, handle) = Driver::start(store, identity, None, Telemetry::default()).unwrap();
            let traffic = Arc::new(Traffic::new(std::iter::once(node(peer))));
            let address =
                PeerAddress { node: node(peer), region: region(peer), address: peer_address.to_owned() };
            let links = Links::new(
                handle.clone(),
                node(name),
                "test".into(),
                b"secret",
                vec![address],
                traffic.clone(),
                regions.rules().hash(),
            );
            Self { driver: Some(driver), handle, links, traffic }
        }

        fn refusal(&self, peer: &str) -> Option<String> {
            self.traffic.line(&NodeId::new(peer).unwrap()).unwrap().refusal().map(|refusal| refusal.reason)
        }

        fn up(&self) -> bool {
            self.handle.published().status.links.iter().all(|link| link.up)
        }
    }

    impl Drop for Side {
        fn drop(&mut self) {
            self.driver.take().unwrap().stop();
        }
    }

    /// Two nodes with these regions files, of which a-1 dials b-1.
    async fn two(of_a: &str, of_b: &str) -> (Side, Side) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (a, b) = (Side::new("a", "b", &address, of_a), Side::new("b", "a", "127.0.0.1:1", of_b));
        let service = b.links.service();
        tokio::spawn(async move {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        a.links.dial_all();
        (a, b)
    }

    async fn eventually(what: &str, holds: impl Fn() -> bool) {
        for _ in 0..1_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never: {what}");
    }

    #[tokio::test]
    async fn nodes_with_different_rules_refuse_each_other_and_both_say_why() {
        let other = RULES.replace("register", "document");
        let (a, b) = two(RULES, &other).await;
        eventually("both know", || a.refusal("b-1").is_some() && b.refusal("a-1").is_some()).await;
        let hash = |file| Regions::parse("r", file).unwrap().rules().hash().to_string();
        for reason in [a.refusal("b-1").unwrap(), b.refusal("a-1").unwrap()] {
            for part in ["a-1", "b-1", hash(RULES).as_str(), hash(&other).as_str()] {
                assert!(reason.contains(part), "{reason} names {part}");
            }
        }
        assert!(!a.up() && !b.up());
    }

    #[tokio::test]
    async fn rules_that_differ_in_what_one_node_alone_looks_at_link() {
        let other = RULES.replace("\"everything\"", "\"all\"\nexpiry = \"1h\"\ndurability = \"local\"");
        let (a, b) = two(RULES, &other).await;
        eventually("the link is up", || a.up() && b.up()).await;
        assert_eq!((a.refusal("b-1"), b.refusal("a-1")), (None, None));
    }

    #[tokio::test]
    async fn a_peer_that_does_not_say_its_rules_is_refused() {
        let (a, _b) = two(RULES, RULES).await;
        let status = a.links.same_rules(&NodeId::new("b-1").unwrap(), b"").unwrap_err();
        assert!(status.message().contains("does not say"), "{status:?}");
    }
}
