//! What a node answers about the directory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, async_trait};
use tropism_crdt::NodeId;
use tropism_directory::{Feed, Group, Rpc, Undecided};
use tropism_placement::{PolicyHash, StoredRecord};
use tropism_storage::rows::Row;
use tropism_wire::limits::MAX_MESSAGE_BYTES;
use tropism_wire::v1::directory_question::Question;
use tropism_wire::v1::directory_reply::Reply;
use tropism_wire::v1::directory_service_server::{DirectoryService, DirectoryServiceServer};
use tropism_wire::{Problem, Reason, v1};

use super::{ADMIT_TIME, ASK_TIME, DECIDE_TIME, DirectoryConfig, FOLLOW_WAIT, RECORDS_PER_ANSWER, Seal};
use crate::driver::Handle;
use crate::placement::Placement;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service(Arc<Inner>);

struct Inner {
    node: NodeId,
    cluster: String,
    policy: PolicyHash,
    peers: Vec<NodeId>,
    seal: Seal,
    handle: Handle,
    groups: watch::Receiver<Option<Group>>,
    placement: Placement,
}

impl Service {
    pub(super) fn new(
        config: &DirectoryConfig,
        seal: Seal,
        handle: Handle,
        groups: watch::Receiver<Option<Group>>,
    ) -> Self {
        Self(Arc::new(Inner {
            node: config.node,
            cluster: config.cluster.clone(),
            policy: config.policy,
            peers: config.peers.iter().map(|peer| peer.node).collect(),
            seal,
            handle,
            groups,
            placement: config.placement.clone(),
        }))
    }

    /// For the server of the links.
    pub(crate) fn server(&self) -> DirectoryServiceServer<Self> {
        DirectoryServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn group(&self) -> Option<Group> {
        self.0.groups.borrow().clone()
    }

    /// The answer to a question of a node that is known to have asked it.
    pub(super) async fn answer(&self, from: &NodeId, question: Question) -> Result<Reply, Status> {
        let group = self.group();
        let no_vote = || -> Status {
            let message = format!("node {} does not vote", self.0.node);
            Problem::unavailable(Reason::NotReady, Duration::from_secs(1), message).into()
        };
        Ok(match question {
            Question::Voter(message) => {
                let group = group.ok_or_else(no_vote)?;
                let rpc = rpc(message.kind).ok_or_else(|| malformed("voter.kind", "it is none of 1 to 3"))?;
                let v1::VoterMessage { voter, kind, body } = message;
                let answer = group.answer(voter, rpc, &body).await;
                let answer = answer.map_err(|problem| malformed("voter", &problem.to_string()))?;
                Reply::Voter(v1::VoterMessage { kind, body: answer.into(), voter })
            }
            Question::Standing(_) => Reply::Standing(group.map_or_else(Default::default, |group| {
                let standing = group.standing();
                let voter = |(voter, node)| v1::DirectoryVoter { voter, node };
                v1::StandingReply {
                    voter: standing.id,
                    fresh: standing.fresh,
                    voters: standing.voters.into_iter().map(voter).collect(),
                    leader: standing.leader.unwrap_or_default(),
                    founded: standing.founded,
                }
            })),
            Question::Admit(v1::AdmitQuestion { voter }) => {
                let group = group.ok_or_else(no_vote)?;
                let admitted = group.admit(voter, from.as_str(), ADMIT_TIME).await;
                Reply::Decide(told(admitted.map(|()| 0)))
            }
            Question::Decide(v1::DecideQuestion { record }) => {
                let group = group.ok_or_else(no_vote)?;
                let record = StoredRecord::decode(&record);
                let record = record.map_err(|error| malformed("decide.record", &error.to_string()))?;
                Reply::Decide(told(group.decide(record, DECIDE_TIME).await))
            }
            Question::Copies(v1::CopiesQuestion { after }) => {
                let published = self.0.handle.published();
                let behind =
                    published.records.all_stored().filter(|record| *record.scope.name.as_str() > *after);
                let mut records: Vec<Bytes> = behind.take(RECORDS_PER_ANSWER + 1).map(encoded).collect();
                let last = records.len() <= RECORDS_PER_ANSWER;
                records.truncate(RECORDS_PER_ANSWER);
                Reply::Copies(v1::CopiesReply { records, last })
            }
            Question::Counts(question) => {
                self.0.placement.told_by(from, &question);
                Reply::Counts(v1::CountsReply {})
            }
            Question::Follow(question) => Reply::Follow(match group {
                Some(group) => follow(&group, &question).await,
                None => v1::FollowReply::default(),
            }),
        })
    }
}

/// What came after what the asking node knows, once there is something or it has waited long enough.
async fn follow(group: &Group, question: &v1::FollowQuestion) -> v1::FollowReply {
    let until = Instant::now() + Duration::from_millis(question.wait_ms.into()).min(FOLLOW_WAIT);
    let confirmed = question.confirmed && group.confirm(ASK_TIME / 2).await.is_ok();
    let mut turns = group.turns();
    loop {
        turns.borrow_and_update(); // before looking: what comes after is not missed
        let feed = group.since(question.directory, question.revision, RECORDS_PER_ANSWER);
        let news = feed
            .as_ref()
            .is_some_and(|feed| feed.directory != question.directory || feed.revision != question.revision);
        if news || !matches!(timeout_at(until, turns.changed()).await, Ok(Ok(()))) {
            let leader = group.standing().leader.unwrap_or_default();
            let Some(Feed { directory, revision, records }) = feed else {
                return v1::FollowReply { leader, ..v1::FollowReply::default() };
            };
            let confirmed = confirmed && records.len() < RECORDS_PER_ANSWER;
            let records = records.iter().map(encoded).collect();
            return v1::FollowReply { directory, revision, records, confirmed, leader };
        }
    }
}

fn encoded(record: &StoredRecord) -> Bytes {
    record.encode()
}

/// The records of an answer.
pub(super) fn records(encoded: &[Bytes]) -> Result<Vec<StoredRecord>, String> {
    encoded.iter().map(|bytes| StoredRecord::decode(bytes).map_err(|error| error.to_string())).collect()
}

/// A voter's question as a number.
pub(super) fn kind(rpc: Rpc) -> u32 {
    match rpc {
        Rpc::Append => 1,
        Rpc::Vote => 2,
        Rpc::Snapshot => 3,
    }
}

fn rpc(kind: u32) -> Option<Rpc> {
    Some(match kind {
        1 => Rpc::Append,
        2 => Rpc::Vote,
        3 => Rpc::Snapshot,
        _ => return None,
    })
}

/// What became of a wish, for the wire.
pub(super) fn told(outcome: Result<u64, Undecided>) -> v1::DecideReply {
    let reply = |result: v1::DecideResult| v1::DecideReply { result: result.into(), ..Default::default() };
    match outcome {
        Ok(number) => v1::DecideReply { number, ..reply(v1::DecideResult::Decided) },
        Err(Undecided::Late { epoch }) => v1::DecideReply { number: epoch, ..reply(v1::DecideResult::Late) },
        Err(Undecided::Refused(problem)) => v1::DecideReply { problem, ..reply(v1::DecideResult::Refused) },
        Err(Undecided::Elsewhere { leader }) => {
            v1::DecideReply { leader: leader.unwrap_or_default(), ..reply(v1::DecideResult::Elsewhere) }
        }
        Err(Undecided::NotFounded) => reply(v1::DecideResult::NotFounded),
        Err(Undecided::Unknown) => reply(v1::DecideResult::Unknown),
        Err(Undecided::Stopped(problem)) => v1::DecideReply { problem, ..reply(v1::DecideResult::Unknown) },
    }
}

/// What became of a wish, from the wire.
pub(super) fn decided(reply: v1::DecideReply) -> Result<u64, Undecided> {
    let leader = (!reply.leader.is_empty()).then(|| reply.leader.clone());
    match reply.result() {
        v1::DecideResult::Decided => Ok(reply.number),
        v1::DecideResult::Late => Err(Undecided::Late { epoch: reply.number }),
        v1::DecideResult::Refused => Err(Undecided::Refused(reply.problem)),
        v1::DecideResult::Elsewhere => Err(Undecided::Elsewhere { leader }),
        v1::DecideResult::NotFounded => Err(Undecided::NotFounded),
        v1::DecideResult::Unknown | v1::DecideResult::Unspecified => Err(Undecided::Unknown),
    }
}

fn malformed(field: &str, problem: &str) -> Status {
    Problem::invalid_argument(Reason::MalformedRequest, field, format!("{field}: {problem}")).into()
}

fn refused(message: String) -> Status {
    Problem::failed_precondition(Reason::PeerRefused, message).into()
}

#[async_trait]
impl DirectoryService for Service {
    async fn ask(&self, request: Request<v1::AskRequest>) -> Result<Response<v1::AskResponse>, Status> {
        let ask = request.into_inner();
        let own = (&self.0.cluster, self.0.node);
        let echo = tropism_wire::error::echo;
        if ask.cluster_id != *own.0 {
            let theirs = echo(&ask.cluster_id);
            return Err(refused(format!("the asking node is of cluster {theirs}, this one of {}", own.0)));
        }
        if !self.0.seal.is_sound(&ask) {
            return Err(Problem::unauthenticated("the asking node does not know the cluster's secret").into());
        }
        if ask.to_node != own.1.as_str() {
            return Err(refused(format!("this is node {}, not {}", own.1, echo(&ask.to_node))));
        }
        let Some(from) = self.0.peers.iter().find(|peer| peer.as_str() == ask.from_node) else {
            return Err(refused(format!("node {} is no peer of {}", echo(&ask.from_node), own.1)));
        };
        if *ask.policy_hash != self.0.policy.0 {
            return Err(refused(format!(
                "{from} and {} have different rules or voters: they agree on nothing until both have the same regions file",
                own.1
            )));
        }
        let question =
            v1::DirectoryQuestion::decode(ask.question).ok().and_then(|question| question.question);
        let question = question.ok_or_else(|| malformed("question", "it asks nothing that is known here"))?;
        let reply = self.answer(from, question).await?;
        Ok(Response::new(self.0.seal.answer(&ask.hmac, reply)))
    }
}
