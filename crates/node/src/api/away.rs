//! Calls about scopes that other regions serve: they are forwarded once, to the nearest node that does.
//!
//! A client needs to know one node, its nearest. What it asks for may be held elsewhere; then the node asks there, holds the
//! answer in memory only as long as it passes it on, and the answer says who gave it. The call counts as one from the region
//! that it arrived in, which is what draws the scope there. A node that got a forwarded call forwards it no further.
//!
//! Forwarded calls come in at the port of the links, with a code that only who knows the cluster's secret can make.
//!
//! A write is tried again by the same request id at the node that may have it: a forwarder remembers where a write went whose
//! outcome it does not know, and sends it there or nowhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;
use tropism_crdt::NodeId;
use tropism_placement::RegionName;
use tropism_wire::from_proto;
use tropism_wire::limits::MAX_MESSAGE_BYTES;
use tropism_wire::v1::history_service_client::HistoryServiceClient;
use tropism_wire::v1::placement_service_client::PlacementServiceClient;
use tropism_wire::v1::state_service_client::StateServiceClient;
use tropism_wire::{FORWARDED_METADATA, PROOF_METADATA, Problem, REGION_METADATA, Reason, v1};

use super::admission::Deadline;
use super::{Api, Call};
use crate::driver::Published;
use crate::peer::{PeerAddress, code};

/// How long a connection may take: some of the longest round trips.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// Keepalive while calls run: a cut that swallows bytes is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// Scans and watches that are passed on at once: each holds up to two messages.
const STREAMS: usize = 1_024;
/// Messages of a stream that wait for the client.
const READY_MESSAGES: usize = 2;
/// Pause before a call about a scope that moves is tried again: records reach all nodes within some round trips.
const MOVE_PAUSE: Duration = Duration::from_millis(25);
/// Writes of unknown outcome that are remembered; the oldest is forgotten first.
const UNSETTLED: usize = 10_000;

/// The ways to the other nodes.
pub(crate) struct Away {
    node: NodeId,
    cluster: String,
    secret: Vec<u8>,
    ways: BTreeMap<NodeId, Way>,
    streams: Arc<Semaphore>,
    unsettled: Mutex<Unsettled>,
}

/// The way to one node.
struct Way {
    region: RegionName,
    address: String,
    proof: Option<MetadataValue<Ascii>>,
    channel: OnceLock<Channel>,
}

/// Where writes went whose outcome is not known, the oldest first.
#[derive(Default)]
struct Unsettled {
    by_id: BTreeMap<Bytes, NodeId>,
    order: VecDeque<Bytes>,
}

impl Away {
    /// From a node to its peers.
    pub(crate) fn new(node: NodeId, cluster: &str, secret: &[u8], peers: &[PeerAddress]) -> Self {
        let mut away = Self {
            node,
            cluster: cluster.to_owned(),
            secret: secret.to_vec(),
            ways: BTreeMap::new(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            unsettled: Mutex::default(),
        };
        for peer in peers {
            let proof = away.proof(node.as_str(), peer.node.as_str()).parse().ok();
            let (region, address) = (peer.region.clone(), peer.address.clone());
            away.ways.insert(peer.node, Way { region, address, proof, channel: OnceLock::new() });
        }
        away
    }

    /// What shows that a call was forwarded by a node that knows the secret.
    fn proof(&self, from: &str, to: &str) -> String {
        let parts: [&[u8]; 4] =
            [b"tropism forwarded call v1", self.cluster.as_bytes(), from.as_bytes(), to.as_bytes()];
        code(&self.secret, &parts).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Refuses what comes to the port of the links and was not forwarded by a peer.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let from = text(FORWARDED_METADATA);
        let known = self.ways.keys().any(|peer| peer.as_str() == from);
        let wanted = self.proof(from, self.node.as_str());
        if known && bool::from(wanted.as_bytes().ct_eq(text(PROOF_METADATA).as_bytes())) {
            return Ok(());
        }
        Err(Problem::unauthenticated("only nodes of the cluster call here; clients have a port of their own")
            .into())
    }

    fn unsettled(&self) -> std::sync::MutexGuard<'_, Unsettled> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unsettled {
    fn remember(&mut self, id: &Bytes, node: NodeId) {
        if self.by_id.insert(id.clone(), node).is_some() {
            return;
        }
        self.order.push_back(id.clone());
        if self.order.len() > UNSETTLED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }
}

impl Way {
    /// The connection, made at the first call.
    fn channel(&self) -> Option<Channel> {
        if let Some(channel) = self.channel.get() {
            return Some(channel.clone());
        }
        let endpoint = match Endpoint::from_shared(format!("http://{}", self.address)) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                warn!(address = self.address, %error, "nothing is forwarded there: the address is none");
                return None;
            }
        };
        let channel = endpoint
            .connect_timeout(CONNECT_TIME)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(false)
            .connect_lazy();
        Some(self.channel.get_or_init(|| channel).clone())
    }
}

/// A call that goes to another node.
pub(super) struct Route {
    api: Api,
    node: NodeId,
    channel: Channel,
    proof: Option<MetadataValue<Ascii>>,
    /// Of a write with one: whoever has it answers alike.
    request_id: Bytes,
    writes: bool,
    deadline: Deadline,
}

/// What a call about keys says of itself before it is looked at.
pub(super) trait AboutKeys: Clone {
    /// The scope's name, not checked.
    fn scope(&self) -> &str;
    /// Of a call that writes, its request id, which may be empty.
    fn writes(&self) -> Option<Bytes>;
}

macro_rules! about_keys {
    (reads $($read:ident)+; writes $($write:ident)+) => {
        $(impl AboutKeys for v1::$read {
            fn scope(&self) -> &str {
                &self.scope
            }

            fn writes(&self) -> Option<Bytes> {
                None
            }
        })+
        $(impl AboutKeys for v1::$write {
            fn scope(&self) -> &str {
                &self.scope
            }

            fn writes(&self) -> Option<Bytes> {
                Some(self.options.as_ref().map(|options| options.request_id.clone()).unwrap_or_default())
            }
        })+
    };
}

about_keys!(
    reads GetRequest BatchGetRequest ScanRequest WatchRequest StampRequest
        GetHistoryRequest GetAtRequest ListConflictsRequest;
    writes PutRequest BatchPutRequest PatchRequest IncrementRequest BatchIncrementRequest DeleteRequest ExpireRequest
);

/// A call once more.
fn copy<T: Clone>(request: &Request<T>) -> Request<T> {
    let mut copy = Request::new(request.get_ref().clone());
    copy.metadata_mut().clone_from(request.metadata());
    copy.extensions_mut().clone_from(request.extensions());
    copy
}

impl Api {
    /// Answers a call where its scope is served. While the scope moves, a region may refuse what another does not take yet: then
    /// it is tried again until the call's time is over. Nothing is tried again that may have had an effect.
    pub(super) async fn wherever<T, R, H, A>(
        &self,
        request: Request<T>,
        here: impl Fn(Request<T>) -> H,
        there: impl Fn(Route, Request<T>) -> A,
    ) -> Result<Response<R>, Status>
    where
        T: AboutKeys,
        H: Future<Output = Result<Response<R>, Status>>,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let mut silent = BTreeSet::new();
        let deadline = Call::deadline(request.extensions());
        let mut request = Some(request);
        loop {
            let Some(call) = request.take() else { return Err(Problem::internal("a call was lost").into()) };
            let (outcome, tried) = match self.target(&call, &silent)? {
                Target::Here { stays: true } => return here(call).await,
                Target::Here { stays: false } => {
                    request = Some(copy(&call));
                    (here(call).await, None)
                }
                Target::There(node) => {
                    let route = self.route(node, &call, deadline)?;
                    request = Some(copy(&call));
                    (there(route, call).await, Some(node))
                }
            };
            let Err(status) = outcome else { return outcome };
            let elsewhere = Reason::of(&status) == Some(Reason::NotServedHere);
            if !elsewhere || Instant::now() + MOVE_PAUSE >= deadline.give_up {
                return Err(status);
            }
            match tried {
                Some(node) if !self.hears(&self.handle.published(), &node) => {
                    silent.insert(node); // the next nearest
                }
                _ => sleep(MOVE_PAUSE).await,
            }
        }
    }
}

/// Where a call is answered.
enum Target {
    /// Here, if only with an error. If the scope does not stay, perhaps not when the call is carried out.
    Here { stays: bool },
    /// At another node.
    There(NodeId),
}

impl Api {
    fn target<T: AboutKeys>(&self, call: &Request<T>, silent: &BTreeSet<NodeId>) -> Result<Target, Problem> {
        const HERE: Target = Target::Here { stays: true };
        if call.metadata().contains_key(FORWARDED_METADATA) {
            return Ok(HERE);
        }
        let Ok(name) = from_proto::scope_name("scope", call.get_ref().scope()) else { return Ok(HERE) };
        let published = self.handle.published();
        let Some(serving) = published.records.serving(&name) else { return Ok(HERE) };
        if serving.contains(&self.region) {
            let stored = published.records.stored(&name);
            let stays = stored.is_none_or(|record| record.goal.is_none() && record.members.is_stable());
            return Ok(Target::Here { stays });
        }
        let request_id = call.get_ref().writes().unwrap_or_default();
        let before = match request_id.is_empty() {
            true => None,
            false => self.away.unsettled().by_id.get(&request_id).copied(),
        };
        match before {
            None => {}
            Some(node) if self.hears(&published, &node) => return Ok(Target::There(node)),
            Some(node) => {
                let message = format!(
                    "an earlier try of this write went to {node}, which cannot be reached now; only there it can be \
                     known what became of it"
                );
                return Err(Problem::outcome_unknown(message).retry_after(Duration::from_secs(1)));
            }
        }
        Ok(self.nearest(&published, serving, silent).map_or(HERE, Target::There))
    }

    /// The way to the node that a call goes to.
    fn route<T: AboutKeys>(
        &self,
        node: NodeId,
        call: &Request<T>,
        deadline: Deadline,
    ) -> Result<Route, Problem> {
        let mut route = self.way(node, deadline).ok_or_else(|| {
            Problem::unavailable(Reason::NotServedHere, MOVE_PAUSE, format!("there is no way to {node}"))
        })?;
        let writes = call.get_ref().writes();
        route.writes = writes.is_some();
        route.request_id = writes.unwrap_or_default();
        Ok(route)
    }

    /// The way to one node, for a call that only looks.
    pub(super) fn way(&self, node: NodeId, deadline: Deadline) -> Option<Route> {
        let way = self.away.ways.get(&node)?;
        let (channel, proof) = (way.channel()?, way.proof.clone());
        Some(Route {
            api: self.clone(),
            node,
            channel,
            proof,
            request_id: Bytes::new(),
            writes: false,
            deadline,
        })
    }

    fn hears(&self, published: &Published, node: &NodeId) -> bool {
        published.status.links.iter().any(|link| link.up && link.peer.node == *node)
    }

    /// Of the nodes in these regions that are heard, the one with the shortest round trip.
    fn nearest(
        &self,
        published: &Published,
        regions: &[RegionName],
        silent: &BTreeSet<NodeId>,
    ) -> Option<NodeId> {
        (published.status.links.iter())
            .filter(|link| {
                link.up && regions.contains(&link.peer.region) && !silent.contains(&link.peer.node)
            })
            .map(|link| (link.rtt_us.unwrap_or(u64::MAX), link.peer.node))
            .min()
            .map(|(_, node)| node)
    }
}

impl Route {
    /// The request as it is sent on.
    fn passed_on<T>(&self, mut request: Request<T>) -> Request<T> {
        let region = self.api.placement.region_name(self.api.placement.arrived(request.metadata()).into());
        let (region, node) = (region.parse(), self.api.node.as_str().parse());
        let metadata = request.metadata_mut();
        metadata.remove("grpc-timeout");
        if let (Ok(region), Ok(node)) = (region, node) {
            metadata.insert(REGION_METADATA, region);
            metadata.insert(FORWARDED_METADATA, node);
        }
        if let Some(proof) = &self.proof {
            metadata.insert(PROOF_METADATA, proof.clone());
        }
        let left = self.deadline.give_up.saturating_duration_since(Instant::now());
        request.set_timeout(left);
        request
    }

    /// What a failed call means for whoever asked.
    fn failed(&self, status: Status) -> Status {
        if Reason::of(&status).is_some() {
            return status; // the other node's own words
        }
        let region = self.api.away.ways.get(&self.node).map(|way| way.region.as_str()).unwrap_or_default();
        let why = status.message();
        if self.writes && !never_sent(&status) {
            if !self.request_id.is_empty() {
                self.api.away.unsettled().remember(&self.request_id, self.node);
            }
            let message = format!("{} in region {region} was asked and did not answer: {why}", self.node);
            return Problem::outcome_unknown(message).into();
        }
        let message = format!(
            "region {} does not serve the scope, and {} in region {region}, which does, did not answer: {why}",
            self.api.region, self.node
        );
        Problem::unavailable(Reason::NotServedHere, Duration::from_secs(1), message)
            .with("regions", region)
            .into()
    }

    /// Asks the other node about keys.
    pub(super) async fn state<T, R, F>(
        &self,
        request: Request<T>,
        ask: impl FnOnce(StateServiceClient<Channel>, Request<T>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let client = StateServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        ask(client, self.passed_on(request)).await.map_err(|status| self.failed(status))
    }

    /// Asks the other node about the past of keys.
    pub(super) async fn history<T, R, F>(
        &self,
        request: Request<T>,
        ask: impl FnOnce(HistoryServiceClient<Channel>, Request<T>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let client = HistoryServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        ask(client, self.passed_on(request)).await.map_err(|status| self.failed(status))
    }

    /// The same for an answer that is a stream.
    pub(super) async fn stream<T, R, F>(
        &self,
        request: Request<T>,
        ask: impl FnOnce(StateServiceClient<Channel>, Request<T>) -> F,
    ) -> Result<Response<ReceiverStream<Result<R, Status>>>, Status>
    where
        F: Future<Output = Result<Response<Streaming<R>>, Status>>,
        R: Send + 'static,
    {
        let place = self.api.away.streams.clone().try_acquire_owned().map_err(|_| {
            let message = format!("the node is busy: {STREAMS} streams are passed on already");
            Problem::resource_exhausted(Reason::Overloaded, "forwarded_streams", STREAMS as u64, message)
                .retry_after(super::admission::SHED_RETRY)
        })?;
        let answer = self.state(request, ask).await?;
        let (messages, receiver) = mpsc::channel(READY_MESSAGES);
        let end = format!("{} does not answer any more", self.node);
        tokio::spawn(pass_on(answer.into_inner(), messages, end, place));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// Asks the other node about placement.
    pub(super) async fn placement<T, R, F>(
        &self,
        request: Request<T>,
        ask: impl FnOnce(PlacementServiceClient<Channel>, Request<T>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let client = PlacementServiceClient::new(self.channel.clone());
        ask(client, self.passed_on(request)).await.map_err(|status| self.failed(status))
    }
}

/// Hands a stream through until either side ends it.
async fn pass_on<R>(
    mut from: Streaming<R>,
    to: mpsc::Sender<Result<R, Status>>,
    end: String,
    _place: OwnedSemaphorePermit,
) {
    loop {
        let message = tokio::select! {
            message = from.message() => message,
            () = to.closed() => return,
        };
        let last = match message {
            Ok(Some(message)) => {
                if to.send(Ok(message)).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(None) => return,
            Err(status) if Reason::of(&status).is_some() => status,
            Err(status) => {
                let message = format!("{end}: {}; go on with the resume token", status.message());
                Problem::unavailable(Reason::NotServedHere, Duration::from_secs(1), message).into()
            }
        };
        to.send(Err(last)).await.ok(); // whoever asked may have gone
        return;
    }
}

/// Whether a call failed before anything of it left this node.
fn never_sent(status: &Status) -> bool {
    let mut source: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_writes_of_unknown_outcome_went_is_remembered_within_a_bound() {
        let (mut unsettled, node) =
            (Unsettled::default(), NodeId::new("far-1").unwrap_or_else(|e| panic!("{e}")));
        let id = |number: usize| Bytes::copy_from_slice(&(number as u128).to_be_bytes());
        for number in 0..UNSETTLED + 10 {
            unsettled.remember(&id(number), node);
            unsettled.remember(&id(number), node); // tried again, and still not known
        }
        assert_eq!((unsettled.by_id.len(), unsettled.order.len()), (UNSETTLED, UNSETTLED));
        assert!(!unsettled.by_id.contains_key(&id(9)) && unsettled.by_id.contains_key(&id(10)));
    }
}
