//! The directory on a node: its vote if it has one, the questions that nodes ask each other about it, and the feed by which
//! this node follows it.
//!
//! A thread of its own with a runtime of its own: its small writes are synced there, and neither the replica nor the links
//! wait for them. Nothing that a client waits for waits for the directory, but a change of a placement record itself.
//!
//! The voters are chosen from the regions file. Once all nodes of the world have met and none of them knows
//! a group, the first voter begins one; its leader then begins the directory with the newest of the copies that nodes
//! have of records, which is how a world goes on whose voters have all lost their stores. A voter that lost its own asks
//! the others to be let in again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::RngExt;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info, warn};
use tropism_crdt::NodeId;
use tropism_directory::{Asking, Group, Network, Rpc, StoreProblem, Undecided, Unreachable};
use tropism_placement::{PolicyHash, RegionName, Regions, StoredRecord};
use tropism_storage::rows::Row;
use tropism_wire::limits::MAX_MESSAGE_BYTES;
use tropism_wire::v1;
use tropism_wire::v1::directory_question::Question;
use tropism_wire::v1::directory_reply::Reply;
use tropism_wire::v1::directory_service_client::DirectoryServiceClient;

use crate::driver::Handle;
use crate::peer::PeerAddress;
use crate::placement::Placement;

mod placing;
mod seal;
mod service;
#[cfg(test)]
mod tests;

use seal::Seal;
pub(crate) use service::Service;

/// Most voters: more make no decision safer, and each slower.
const MAX_VOTERS: usize = 5;
/// How long a change may take to be decided: some elections.
pub(crate) const DECIDE_TIME: Duration = Duration::from_secs(5);
/// How long a question without a patience of its own waits for its answer.
const ASK_TIME: Duration = Duration::from_secs(3);
/// How long a voter may take to be let in: a snapshot of all records over a slow line.
const ADMIT_TIME: Duration = Duration::from_secs(60);
/// How often a voter looks whether it is one.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Wait before a follower asks somebody else.
const NEXT_SOURCE: Duration = Duration::from_millis(500);
/// How long a follower's question may wait for something new.
const FOLLOW_WAIT: Duration = Duration::from_secs(10);
/// Records in one answer: some 300 kB, each of at most 3 kB.
const RECORDS_PER_ANSWER: usize = 1_000;
/// Proposals under way at once; further ones wait.
const PROPOSALS_AT_ONCE: usize = 64;
/// Keepalive of connections: a cut that swallows bytes is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// What the directory of a node is made of.
pub(crate) struct DirectoryConfig {
    /// This node.
    pub(crate) node: NodeId,
    /// The cluster's name.
    pub(crate) cluster: String,
    /// Its secret.
    pub(crate) secret: Vec<u8>,
    /// What both sides must agree on ([`agreement`]): who follows other rules or voters decides nothing with us.
    pub(crate) policy: PolicyHash,
    /// The other nodes.
    pub(crate) peers: Vec<PeerAddress>,
    /// The nodes that vote, those that keep nothing durably left out as they come.
    pub(crate) voters: Vec<NodeId>,
    /// Where a vote's store is; none: this node has no disk, and never votes.
    pub(crate) path: Option<PathBuf>,
    /// What is counted, heard and decided about where scopes are.
    pub(crate) placement: Placement,
}

/// The nodes that vote: the first by name of each of the first five regions of the file, three, or one. An even number
/// would be no safer than one less.
pub(crate) fn voters(nodes: &BTreeMap<NodeId, RegionName>, regions: &Regions) -> Vec<NodeId> {
    let first = |region: &RegionName| nodes.iter().find(|(_, home)| *home == region).map(|(node, _)| *node);
    let mut voters: Vec<NodeId> =
        regions.regions().iter().filter_map(|region| first(&region.name)).take(MAX_VOTERS).collect();
    if voters.len().is_multiple_of(2) {
        voters.pop();
    }
    voters
}

/// What nodes must agree on to decide anything together: their rules, and who votes. Two nodes that take others for the
/// voters could begin two groups.
pub(crate) fn agreement(rules: PolicyHash, voters: &[NodeId]) -> PolicyHash {
    let mut hash = Sha256::new_with_prefix(rules.0);
    for voter in voters {
        hash.update([u8::try_from(voter.as_str().len()).unwrap_or(u8::MAX)]); // ids are at most 63 bytes
        hash.update(voter.as_str());
    }
    PolicyHash(hash.finalize().into())
}

/// What is known of the directory here, for whoever asks how the node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DirectoryView {
    /// The nodes that vote; before the group has begun those that shall.
    pub voters: Vec<NodeId>,
    /// The node that leads, as far as is known.
    pub leader: Option<NodeId>,
    /// The revision that this node follows.
    pub revision: u64,
    /// Since this node started it has followed everything that the directory had at some time.
    pub informed: bool,
    /// What this node's vote waits for.
    vote_waits: Option<String>,
    /// What this node waits for to follow.
    feed_waits: Option<String>,
}

impl DirectoryView {
    /// What is waited for, if it does not work.
    pub fn waiting(&self) -> Option<&str> {
        self.vote_waits.as_deref().or(self.feed_waits.as_deref())
    }
}

/// Proposes records, and follows what is decided. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    proposals: mpsc::Sender<Proposal>,
    view: watch::Receiver<DirectoryView>,
}

struct Proposal {
    record: StoredRecord,
    patience: Duration,
    reply: oneshot::Sender<Result<u64, Undecided>>,
}

impl Directory {
    /// One that decides by itself, and tells one replica: for what is tested on one node.
    #[cfg(test)]
    pub(crate) fn alone(handle: Handle) -> Self {
        let (proposals, mut queue) = mpsc::channel::<Proposal>(PROPOSALS_AT_ONCE);
        tokio::spawn(async move {
            let mut decided = tropism_placement::Directory::default();
            while let Some(Proposal { record, reply, .. }) = queue.recv().await {
                let outcome = decided.decide(record.clone()).map_err(|refusal| match refusal {
                    tropism_placement::Refusal::Late { epoch, .. } => Undecided::Late { epoch },
                    refusal => Undecided::Refused(refusal.to_string()),
                });
                if outcome.is_ok() {
                    handle.records(vec![record], true).await;
                }
                reply.send(outcome).ok();
            }
        });
        Self { proposals, view: watch::channel(DirectoryView::default()).1 }
    }

    /// Makes a record the newest of its scope; returns its revision.
    pub(crate) async fn decide(&self, record: StoredRecord, patience: Duration) -> Result<u64, Undecided> {
        let (reply, decided) = oneshot::channel();
        let stopped = || Undecided::Stopped("the node stops".into());
        self.proposals.send(Proposal { record, patience, reply }).await.map_err(|_| stopped())?;
        decided.await.map_err(|_| stopped())?
    }

    /// How it is.
    pub(crate) fn view(&self) -> DirectoryView {
        self.view.borrow().clone()
    }
}

/// The thread of the directory.
pub(crate) struct DirectoryThread {
    thread: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl DirectoryThread {
    /// Starts it: opens the vote's store, if there is one, and begins to follow.
    pub(crate) fn start(
        config: DirectoryConfig,
        handle: Handle,
    ) -> std::io::Result<(Self, Directory, Service)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (proposals, queue) = mpsc::channel(PROPOSALS_AT_ONCE);
        let (stop, mut stopped) = watch::channel(false);
        let (group, groups) = watch::channel(None);
        let first = DirectoryView { voters: config.voters.clone(), ..DirectoryView::default() };
        let (view, views) = watch::channel(first);
        let seal = Seal::new(&config.cluster, &config.secret);
        let service = Service::new(&config, seal.clone(), handle.clone(), groups.clone());
        let local = service.clone();
        let thread = std::thread::Builder::new().name("directory".into()).spawn(move || {
            runtime.block_on(async move {
                let asker = Asker::new(&config, seal);
                let node =
                    Arc::new(Node { config, handle, asker, local, groups, view, leader: Mutex::default() });
                let work = node.run(group, queue);
                tokio::select! {
                    () = work => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
                let group = node.groups.borrow().clone();
                if let Some(group) = group {
                    group.stop().await;
                }
            });
            runtime.shutdown_background();
        })?;
        Ok((Self { thread, stop }, Directory { proposals, view: views }, service))
    }

    /// Stops it, and waits.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            warn!("the directory's thread panicked");
        }
    }
}

/// Asks other nodes.
struct Asker {
    node: NodeId,
    policy: PolicyHash,
    seal: Seal,
    peers: BTreeMap<NodeId, DirectoryServiceClient<Channel>>,
}

impl Asker {
    fn new(config: &DirectoryConfig, seal: Seal) -> Self {
        let mut peers = BTreeMap::new();
        for peer in &config.peers {
            let endpoint = match Endpoint::from_shared(format!("http://{}", peer.address)) {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    warn!(peer = %peer.node, %error, "no directory is asked there: its address is none");
                    continue;
                }
            };
            let channel = endpoint
                .connect_timeout(ASK_TIME)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(false)
                .connect_lazy();
            let client = DirectoryServiceClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            peers.insert(peer.node, client);
        }
        Self { node: config.node, policy: config.policy, seal, peers }
    }

    /// Asks a node, and checks that it is the node that answers.
    async fn ask(&self, to: &NodeId, question: Question, patience: Duration) -> Result<Reply, Unreachable> {
        let unknown = || Unreachable(format!("node {to} is no peer of {}", self.node));
        let mut client = self.peers.get(to).ok_or_else(unknown)?.clone();
        let request = self.seal.question(&self.node, to, &self.policy, rand::rng().random(), question);
        let asked = request.hmac.clone();
        let answer = timeout(patience, client.ask(request)).await;
        let answer = answer.map_err(|_| Unreachable(format!("{to} did not answer in time")))?;
        let answer = answer.map_err(|status| Unreachable(format!("{to}: {}", status.message())))?;
        self.seal.open(&asked, answer.into_inner()).map_err(|problem| Unreachable(format!("{to}: {problem}")))
    }
}

/// What the thread works with.
struct Node {
    config: DirectoryConfig,
    handle: Handle,
    asker: Asker,
    local: Service,
    groups: watch::Receiver<Option<Group>>,
    view: watch::Sender<DirectoryView>,
    /// The node that led when it was last heard of.
    leader: Mutex<Option<NodeId>>,
}

impl Node {
    async fn run(self: &Arc<Self>, group: watch::Sender<Option<Group>>, queue: mpsc::Receiver<Proposal>) {
        let votes = self.config.voters.contains(&self.config.node);
        if let Some(path) = self.config.path.as_ref().filter(|_| votes) {
            match Group::open(path, Arc::new(Voters(self.clone()))).await {
                Ok(opened) => {
                    group.send_replace(Some(opened));
                }
                Err(problem @ (StoreProblem::Engine(_) | StoreProblem::Damaged { .. })) => {
                    // The others decide without it, and what this node serves does not depend on it.
                    warn!(%problem, path = %path.display(), "this node does not vote; move that away to vote anew");
                }
            }
        }
        tokio::join!(
            self.keep_voting(),
            self.follow(),
            self.propose_all(queue),
            self.propose_steps(),
            self.place()
        );
    }

    fn group(&self) -> Option<Group> {
        self.groups.borrow().clone()
    }

    /// Asks a node, this one among them.
    async fn ask(&self, to: &NodeId, question: Question, patience: Duration) -> Result<Reply, Unreachable> {
        if *to == self.config.node {
            let answer = timeout(patience, self.local.answer(to, question)).await;
            let answer = answer.map_err(|_| Unreachable(format!("{to} did not answer in time")))?;
            return answer.map_err(|status| Unreachable(status.message().to_owned()));
        }
        self.asker.ask(to, question, patience).await
    }

    fn leads(&self, leader: &str) {
        let mut known = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(leader) = NodeId::new(leader) {
            *known = Some(leader);
            self.view.send_if_modified(|view| view.leader.replace(leader) != Some(leader));
        }
    }

    fn leader(&self) -> Option<NodeId> {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what is waited for, by the vote or by the feed.
    fn waits(&self, of: fn(&mut DirectoryView) -> &mut Option<String>, why: Option<String>) {
        self.view.send_if_modified(|view| {
            let known = of(view);
            let changed = *known != why;
            if let (true, Some(why)) = (changed, &why) {
                info!(why, "the directory waits");
            }
            known.clone_from(&why);
            changed
        });
    }

    /// Makes this node a voter among the others, and stays one.
    async fn keep_voting(&self) {
        let Some(group) = self.group() else { return };
        loop {
            let why = self.look(&group).await.err();
            self.waits(|view| &mut view.vote_waits, why);
            sleep(LOOK_EVERY.mul_f64(rand::rng().random_range(0.8..1.2))).await;
        }
    }

    /// One step towards a directory that works with this voter; an error says what is waited for.
    async fn look(&self, group: &Group) -> Result<(), String> {
        let standing = group.standing();
        if let Some(why) = standing.stopped {
            return Err(format!("this node votes no more until it is started again: {why}"));
        }
        if let Some(leader) = &standing.leader {
            self.leads(leader);
        }
        if standing.leads && !standing.founded {
            return self.found(group).await;
        }
        if standing.voters.contains_key(&standing.id) {
            return Ok(());
        }
        let mut others = Vec::new();
        for peer in self.asker.peers.keys() {
            match self.standing_of(peer).await {
                Ok(other) => others.push((*peer, other)),
                Err(_) if self.config.voters.first() != Some(&self.config.node) => {}
                Err(Unreachable(why)) => return Err(format!("all nodes have to meet once: {why}")),
            }
        }
        let knows = |(_, other): &&(NodeId, v1::StandingReply)| other.voter != 0 && !other.fresh;
        if let Some((_, other)) = others.iter().find(knows) {
            // There is a group: it has to let this voter in.
            let leader = NodeId::new(&other.leader).ok();
            return self.ask_to_be_let_in(standing.id, leader).await;
        }
        if self.config.voters.first() != Some(&self.config.node) {
            return Err("the first voter begins the directory when all nodes have met".into());
        }
        let named = |(node, other): &(NodeId, v1::StandingReply)| {
            let votes = other.voter != 0 && self.config.voters.contains(node);
            votes.then(|| (other.voter, node.to_string()))
        };
        let mut voters: BTreeMap<u64, String> = others.iter().filter_map(named).collect();
        voters.insert(standing.id, self.config.node.to_string());
        info!(?voters, "all nodes have met: the directory's voters begin");
        group.initialize(voters).await.map_err(|error| error.to_string())
    }

    async fn standing_of(&self, node: &NodeId) -> Result<v1::StandingReply, Unreachable> {
        match self.asker.ask(node, Question::Standing(v1::StandingQuestion {}), ASK_TIME).await? {
            Reply::Standing(standing) => Ok(standing),
            _ => Err(Unreachable(format!("{node} answered something else"))),
        }
    }

    async fn ask_to_be_let_in(&self, voter: u64, leader: Option<NodeId>) -> Result<(), String> {
        let Some(leader) = leader.filter(|leader| *leader != self.config.node) else {
            return Err("the voters have no leader that could let this one in".into());
        };
        let admitted =
            self.asker.ask(&leader, Question::Admit(v1::AdmitQuestion { voter }), ADMIT_TIME).await;
        match admitted.map_err(|Unreachable(why)| why)? {
            Reply::Decide(reply) => match service::decided(reply) {
                Ok(_) => {
                    info!(%leader, "this node votes in the place of an earlier life");
                    Ok(())
                }
                Err(undecided) => Err(format!("this node does not vote yet: {undecided}")),
            },
            _ => Err(format!("{leader} answered something else")),
        }
    }

    /// Begins the directory with what all nodes have copies of.
    async fn found(&self, group: &Group) -> Result<(), String> {
        let mut copies = Vec::new();
        for node in self.asker.peers.keys().chain([&self.config.node]) {
            let mut after = String::new();
            loop {
                let question = Question::Copies(v1::CopiesQuestion { after: after.clone() });
                let answer = self.ask(node, question, ASK_TIME).await;
                let Reply::Copies(part) =
                    answer.map_err(|Unreachable(why)| format!("all nodes have to meet once: {why}"))?
                else {
                    return Err(format!("{node} answered something else"));
                };
                let records =
                    service::records(&part.records).map_err(|problem| format!("{node}: {problem}"))?;
                if let Some(last) = records.last() {
                    last.scope.name.as_str().clone_into(&mut after);
                }
                let over = part.last || records.is_empty();
                copies.extend(records);
                if over {
                    break;
                }
            }
        }
        let name = rand::rng().random();
        let count = copies.len();
        group.found(name, copies, DECIDE_TIME).await.map_err(|error| error.to_string())?;
        info!(copies = count, "the directory has begun");
        Ok(())
    }

    /// Hears of every record that is decided, and hands it to the replica.
    async fn follow(&self) {
        let (mut directory, mut revision, mut informed) = (0, 0, false);
        let mut turn = 0_usize;
        let mut not_begun = Some(BTreeSet::new());
        loop {
            let from = self.source(informed, turn);
            let Some(from) = from else { return };
            let wait = if informed { FOLLOW_WAIT } else { Duration::ZERO };
            let question = v1::FollowQuestion {
                directory,
                revision,
                wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
                confirmed: !informed,
            };
            let reply = match self.ask(&from, Question::Follow(question), ASK_TIME + wait).await {
                Ok(Reply::Follow(reply)) => Some(reply),
                Ok(_) => None,
                Err(Unreachable(why)) => {
                    debug!(%from, why, "the directory is not followed there");
                    None
                }
            };
            let records = reply.as_ref().map(|reply| service::records(&reply.records));
            let begun = reply.filter(|reply| reply.directory != 0);
            let (Some(reply), Some(Ok(records))) = (begun, &records) else {
                turn += 1;
                *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = None;
                if !informed && self.group().is_none() {
                    let why = "no voter tells that the directory has begun".to_owned();
                    self.waits(|view| &mut view.feed_waits, Some(why));
                }
                if let (Some(said), Some(Ok(_))) = (&mut not_begun, &records) {
                    said.insert(from);
                    if said.len() * 2 > self.config.voters.len() && self.nobody_has_copies().await {
                        // There is nothing that could be missed: a store that is filled does not wait for it.
                        self.handle.records(Vec::new(), true).await;
                        not_begun = None;
                    }
                }
                sleep(NEXT_SOURCE).await;
                continue;
            };
            if !reply.leader.is_empty() {
                self.leads(&reply.leader);
            }
            if directory != 0 && directory != reply.directory {
                warn!("the directory is another one: it was begun anew");
            }
            (directory, revision) = (reply.directory, reply.revision);
            let news = !records.is_empty() || reply.confirmed && !informed;
            if news {
                let known = self.handle.published().records.clone();
                let newer = records.iter().filter(|record| record.epoch() > known.epoch(&record.scope.name));
                newer.clone().for_each(|record| self.config.placement.step(record));
                self.config.placement.adopted(newer);
                self.handle.records(records.clone(), reply.confirmed).await;
            }
            informed |= reply.confirmed;
            self.view.send_if_modified(|view| {
                let before = view.clone();
                (view.revision, view.informed) = (revision, informed);
                if reply.confirmed {
                    view.feed_waits = None;
                }
                *view != before
            });
            if !informed && !news {
                turn += 1;
                sleep(NEXT_SOURCE).await;
            }
        }
    }

    /// Whether no node that answers knows a record: none was ever decided, as far as can be seen from here.
    async fn nobody_has_copies(&self) -> bool {
        for node in self.asker.peers.keys().chain([&self.config.node]) {
            let question = Question::Copies(v1::CopiesQuestion::default());
            if let Ok(Reply::Copies(copies)) = self.ask(node, question, ASK_TIME).await
                && !copies.records.is_empty()
            {
                return false;
            }
        }
        true
    }

    /// Whom to ask next: who leads until this node is informed, and then itself if it votes.
    fn source(&self, informed: bool, turn: usize) -> Option<NodeId> {
        let voters = &self.config.voters;
        let any = voters.get(turn % voters.len().max(1)).copied();
        let follows = |group: Group| {
            let standing = group.standing();
            standing.founded && standing.stopped.is_none()
        };
        if informed && turn.is_multiple_of(2) && self.group().is_some_and(follows) {
            return Some(self.config.node);
        }
        if informed { any } else { self.leader().or(any) }
    }

    /// Carries proposals of this node's clients to whoever leads.
    async fn propose_all(self: &Arc<Self>, mut queue: mpsc::Receiver<Proposal>) {
        let places = Arc::new(Semaphore::new(PROPOSALS_AT_ONCE));
        while let Some(Proposal { record, patience, mut reply }) = queue.recv().await {
            let Ok(place) = places.clone().acquire_owned().await else { return }; // never closed
            let node = self.clone();
            tokio::spawn(async move {
                tokio::select! {
                    outcome = node.propose(record, patience) => { reply.send(outcome).ok(); } // or the caller has gone
                    () = reply.closed() => {}
                }
                drop(place);
            });
        }
    }

    /// Carries what the replica proposes as the steward of scopes that are on their way.
    async fn propose_steps(self: &Arc<Self>) {
        let Some(mut steps) = self.handle.take_proposals() else { return };
        let places = Arc::new(Semaphore::new(PROPOSALS_AT_ONCE));
        while let Some(record) = steps.recv().await {
            let Ok(place) = places.clone().acquire_owned().await else { return }; // never closed
            let node = self.clone();
            tokio::spawn(async move {
                let (scope, epoch) = (record.scope.name.clone(), record.epoch());
                match node.propose(record, DECIDE_TIME).await {
                    Ok(revision) => debug!(%scope, epoch, revision, "a step of a move is decided"),
                    // It is proposed again, or what came first makes it needless.
                    Err(undecided) => debug!(%scope, epoch, %undecided, "a step of a move is not decided"),
                }
                drop(place);
            });
        }
    }

    /// Proposes a record wherever it can be decided.
    async fn propose(&self, record: StoredRecord, patience: Duration) -> Result<u64, Undecided> {
        let until = Instant::now() + patience;
        let bytes = record.encode();
        let mut turn = 0_usize;
        let mut sent = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let voters = &self.config.voters;
            let any = voters.get(turn % voters.len().max(1)).copied();
            let Some(to) = self.leader().or(any).filter(|_| !left.is_zero()) else {
                return Err(if sent { Undecided::Unknown } else { Undecided::Elsewhere { leader: None } });
            };
            let question = Question::Decide(v1::DecideQuestion { record: bytes.clone() });
            let outcome = match self.ask(&to, question, left).await {
                Ok(Reply::Decide(reply)) => service::decided(reply),
                Ok(_) => Err(Undecided::Elsewhere { leader: None }),
                Err(Unreachable(why)) => {
                    debug!(%to, why, "a proposal got no answer");
                    sent = true; // perhaps it arrived
                    Err(Undecided::Elsewhere { leader: None })
                }
            };
            match outcome {
                Err(Undecided::Elsewhere { leader: Some(leader) }) => self.leads(&leader),
                Err(Undecided::Elsewhere { leader: None }) => {
                    *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    turn += 1;
                    sleep(LOOK_EVERY / 4).await;
                }
                Err(Undecided::Unknown) if !Instant::now().gt(&until) => {
                    sent = true; // the same record once more is no conflict
                    turn += 1;
                    sleep(LOOK_EVERY / 4).await;
                }
                outcome => return outcome,
            }
        }
    }
}

/// How the voters reach each other.
struct Voters(Arc<Node>);

impl Network for Voters {
    fn ask(&self, node: &str, voter: u64, rpc: Rpc, body: Vec<u8>, patience: Duration) -> Asking<'_> {
        let node = NodeId::new(node).map_err(|error| Unreachable(error.to_string()));
        Box::pin(async move {
            let node = node?;
            let message = v1::VoterMessage { kind: service::kind(rpc), body: body.into(), voter };
            match self.0.asker.ask(&node, Question::Voter(message), patience).await? {
                Reply::Voter(answer) => Ok(answer.body.into()),
                _ => Err(Unreachable(format!("{node} answered something else"))),
            }
        })
    }
}
