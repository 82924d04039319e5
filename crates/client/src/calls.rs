//! The calls of the protocol.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tropism_crdt::Stamp;
use tropism_placement::Durability;
use tropism_wire::limits::MAX_PAGE_SCOPES;
use tropism_wire::v1::cluster_service_client::ClusterServiceClient;
use tropism_wire::v1::parked_service_client::ParkedServiceClient;
use tropism_wire::v1::placement_service_client::PlacementServiceClient;
use tropism_wire::v1::scope_service_client::ScopeServiceClient;
use tropism_wire::v1::state_service_client::StateServiceClient;
use tropism_wire::{Effect, Problem, to_proto, v1};

use crate::connection::{About, DEFAULT_TIMEOUT, Nodes};
use crate::error::Error;
use crate::retry::Nature;
use crate::stream::{Scan, ScanRange, Watch, WatchTarget};
use crate::types::{
    Answered, Deleted, Entry, Expiry, Found, FoundMany, Incremented, Patch, PutItem, PutOptions, Register,
    Stamps, Value, Written, problem,
};

/// A session with a cluster: connections to one or more nodes, and what the session wrote and read.
///
/// Every call carries the session's token and keeps that of its answer, which covers both: a node merges the token of
/// the request with what its answer adds. So calls made one after the other read their writes and never go back, on
/// whatever node. Clones share the session; of calls made *at once* the last answer's token is kept, so give each task
/// a session of its own ([`Calls::new_session`]) where that matters.
///
/// Reads that find a node gone are repeated at the next endpoint. Writes carry a random request id: one whose answer was
/// lost is repeated at the same node until the time is over, and takes effect once; only one that certainly had no effect
/// goes elsewhere.
#[derive(Debug, Clone)]
pub struct Calls {
    pub(crate) nodes: Arc<Nodes>,
    /// The last answer's token, opaque.
    token: Arc<Mutex<Bytes>>,
    pub(crate) timeout: Duration,
    durability: Option<Durability>,
}

impl Calls {
    /// Calls to these endpoints (`http://host:port`), and to no others. Of several, the one that answers first is used and
    /// the others are for when it fails; of a single one, nothing is sent yet.
    pub async fn connect(endpoints: Vec<String>) -> Result<Self, Error> {
        let calls = Self::in_order(endpoints)?;
        if calls.nodes.view().len() > 1 {
            calls.nodes.race(calls.timeout).await?;
        }
        Ok(calls)
    }

    /// Calls to endpoints whose order is known to be the right one, the best first, and to no others. Sends nothing yet.
    /// Needs a runtime of tokio.
    pub fn in_order(endpoints: Vec<String>) -> Result<Self, Error> {
        Ok(Self::over(Nodes::new(endpoints, true)?))
    }

    /// Calls to whichever node of a cluster is the nearest.
    pub(crate) async fn nearest(nodes: Arc<Nodes>) -> Result<Self, Error> {
        let calls = Self::over(nodes);
        calls.nodes.race(calls.timeout).await?;
        calls.nodes.probe();
        Ok(calls)
    }

    fn over(nodes: Arc<Nodes>) -> Self {
        Self { nodes, token: Arc::default(), timeout: DEFAULT_TIMEOUT, durability: None }
    }

    /// The same with another time for each call, its retries included. Nodes shorten it to 60 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same with another durability of writes; none: the policy's.
    #[must_use]
    pub fn with_durability(mut self, durability: Option<Durability>) -> Self {
        self.durability = durability;
        self
    }

    /// A new session over the same connections.
    #[must_use]
    pub fn new_session(&self) -> Self {
        Self { token: Arc::default(), ..self.clone() }
    }

    /// The session's token: a client elsewhere that is given it goes on with the session.
    pub fn token(&self) -> Bytes {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes on with the session of this token.
    pub fn set_token(&self, token: Bytes) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// The endpoint talked to.
    pub fn endpoint(&self) -> String {
        self.nodes.first().map(|node| node.endpoint.clone()).unwrap_or_default()
    }

    /// The value of a key.
    pub async fn get(&self, scope: &str, key: &str) -> Result<Found, Error> {
        let request = v1::GetRequest { scope: scope.to_owned(), key: key.to_owned(), token: self.token() };
        let answer = self
            .nodes
            .call(self.about(Nature::Read, Some(scope)), &request, |channel, request| async move {
                state(channel).get(request).await
            })
            .await?;
        let answered = self.keep(answer.answer);
        Ok(Found { entry: answer.entry.map(|entry| Entry::from_proto(entry, key)), answered })
    }

    /// The values of many keys of a scope, 1 to 1000, each once, all from one state of the node that answers. Keys that are
    /// not visible are left out; those that did not fit into the answer are in `left`.
    pub async fn batch_get(&self, scope: &str, keys: Vec<String>) -> Result<FoundMany, Error> {
        let request = v1::BatchGetRequest { scope: scope.to_owned(), keys, token: self.token() };
        let answer = self
            .nodes
            .call(self.about(Nature::Read, Some(scope)), &request, |channel, request| async move {
                state(channel).batch_get(request).await
            })
            .await?;
        let answered = self.keep(answer.answer);
        let entries = answer.entries.into_iter().map(|entry| Entry::from_proto(entry, "")).collect();
        Ok(FoundMany { entries, left: answer.left, answered })
    }

    /// Writes a document: a JSON object.
    pub async fn put_json(&self, scope: &str, key: &str, json: impl Into<Bytes>) -> Result<Written, Error> {
        self.put(scope, key, Value::Document(json.into()), PutOptions::default()).await
    }

    /// Writes a register: bytes with their content type.
    pub async fn put_register(
        &self,
        scope: &str,
        key: &str,
        content: impl Into<Bytes>,
        content_type: &str,
    ) -> Result<Written, Error> {
        let register = Register { content: content.into(), content_type: content_type.to_owned() };
        self.put(scope, key, Value::Register(register), PutOptions::default()).await
    }

    /// Writes a key.
    pub async fn put(
        &self,
        scope: &str,
        key: &str,
        value: Value,
        options: PutOptions,
    ) -> Result<Written, Error> {
        use v1::{batch_put_item::Precondition as OfItem, put_request::Precondition as OfPut};
        let item: v1::BatchPutItem = PutItem { key: key.to_owned(), value, options }.into();
        let request = v1::PutRequest {
            scope: scope.to_owned(),
            key: item.key,
            value: item.value,
            base_version: item.base_version,
            precondition: item.precondition.map(|precondition| match precondition {
                OfItem::IfAbsent(absent) => OfPut::IfAbsent(absent),
                OfItem::IfVersion(version) => OfPut::IfVersion(version),
            }),
            expiry: item.expiry,
            options: self.write_options(),
        };
        let answer = self
            .nodes
            .call(self.about(Nature::Write, Some(scope)), &request, |channel, request| async move {
                state(channel).put(request).await
            })
            .await?;
        self.written(answer.result, answer.answer)
    }

    /// Writes a key within a trace: `traceparent` is the W3C header of the span that this call is in.
    pub async fn put_traced(
        &self,
        scope: &str,
        key: &str,
        value: Value,
        traceparent: &str,
    ) -> Result<Written, Error> {
        let item: v1::BatchPutItem =
            PutItem { key: key.to_owned(), value, options: PutOptions::default() }.into();
        let request = v1::PutRequest {
            scope: scope.to_owned(),
            key: item.key,
            value: item.value,
            options: self.write_options(),
            ..v1::PutRequest::default()
        };
        let header = MetadataValue::try_from(traceparent).ok(); // what is no header is no traceparent either
        let answer = self
            .nodes
            .call(self.about(Nature::Write, Some(scope)), &request, |channel, mut request| {
                if let Some(header) = &header {
                    request.metadata_mut().insert("traceparent", header.clone());
                }
                async move { state(channel).put(request).await }
            })
            .await?;
        self.written(answer.result, answer.answer)
    }

    /// What the node talked to did in a trace that was sampled, of its last spans.
    pub async fn spans(&self, trace_id: [u8; 16]) -> Result<Vec<v1::Span>, Error> {
        let request = v1::ListSpansRequest { trace_id: trace_id.to_vec().into() };
        let answer = self
            .nodes
            .call(self.about(Nature::Read, None), &request, |channel, request| async move {
                cluster(channel).list_spans(request).await
            })
            .await?;
        Ok(answer.spans)
    }

    /// Writes many keys of a scope, 1 to 1000 in at most 4 MiB. Each item has its own result, in their order.
    pub async fn batch_put(
        &self,
        scope: &str,
        items: Vec<PutItem>,
    ) -> Result<Vec<Result<Written, Problem>>, Error> {
        let count = items.len();
        let items = items.into_iter().map(Into::into).collect();
        let request = v1::BatchPutRequest { scope: scope.to_owned(), items, options: self.write_options() };
        let answer = self
            .nodes
            .call(self.about(Nature::Write, Some(scope)), &request, |channel, request| async move {
                state(channel).batch_put(request).await
            })
            .await?;
        let answered = self.keep(answer.answer);
        if answer.results.len() != count {
            return Err(self.unexpected(format!("{} results for {count} items", answer.results.len())));
        }
        let result = |result: v1::WriteResult| match &result.failure {
            Some(failure) => Err(problem(failure)),
            None => Ok(Written::from_proto(result, answered.clone())),
        };
        Ok(answer.results.into_iter().map(result).collect())
    }

    /// Edits a document; all of the patch or nothing. `options`: the base version, a precondition on the version, the
    /// expiry; a patch cannot demand that the key be absent.
    pub async fn patch(
        &self,
        scope: &str,
        key: &str,
        patch: Patch,
        options: PutOptions,
    ) -> Result<Written, Error> {
        use crate::types::Precondition;
        use v1::patch_request::Patch as Edit;
        let if_version = match options.precondition {
            Precondition::None => Bytes::new(),
            Precondition::Version(version) => version,
            Precondition::Absent => {
                return Err(Error::Refused(Problem::invalid_argument(
                    tropism_wire::Reason::BadPatch,
                    "if_version",
                    "a patch cannot demand that the key be absent; put it instead",
                )));
            }
        };
        let request = v1::PatchRequest {
            scope: scope.to_owned(),
            key: key.to_owned(),
            patch: Some(match patch {
                Patch::Operations(operations) => Edit::Operations(v1::PatchOperations { operations }),
                Patch::Json(patch) => Edit::JsonPatch(patch),
                Patch::Merge(patch) => Edit::MergePatch(patch),
            }),
            base_version: options.base_version,
            if_version,
            expiry: options.expiry.map(Into::into),
            options: self.write_options(),
        };
        let answer = self
            .nodes
            .call(self.about(Nature::Write, Some(scope)), &request, |channel, request| async move {
                state(channel).patch(request).await
            })
            .await?;
        self.written(answer.result, answer.answer)
    }

    /// Adds to a counter.
    pub async fn increment(
        &self,
        scope: &str,
        key: &str,
        by: i64,
        expiry: Option<Expiry>,
    ) -> Result<Incremented, Error> {
        let request = v1::IncrementRequest {
            scope: scope.to_owned(),
            key: key.to_owned(),
            by,
            expiry: expiry.map(Into::into),
            options: self.write_options(),
        };
        let answer = self
            .nodes
            .call(self.about(Nature::Write, Some(scope)), &request, |channel, request| async move {
                state(channel).increment(request).await
            })
            .await?;
        Ok(Incremented { written: self.written(answer.result, answer.answer)?, value: answer.value })
    }

    /// Deletes a key, if it has `if_version` where that is given.
    pub async fn delete(&self, scope: &str, key: &str, if_version: Option<Bytes>) -> Result<Deleted, Error> {
        let request = v1::DeleteRequest {
            scope: scope.to_owned(),
            key: key.to_owned(),
            if_version: if_version.unwrap_or_default(),
            options: self.write_options(),
        };
        let answer = self
            .nodes
            .call(self.about(Nature::Write, Some(scope)), &request, |channel, request| async move {
                state(channel).delete(request).await
            })
            .await?;
        let was_visible = answer.was_visible;
        Ok(Deleted { written: self.written(answer.result, answer.answer)?, was_visible })
    }

    /// Sets or clears the expiry of a visible key. Returns when it expires, Unix milliseconds; none: never.
    pub async fn expire(&self, scope: &str, key: &str, expiry: Expiry) -> Result<Option<u64>, Error> {
        Ok(self.expire_at(scope, key, expiry).await?.1)
    }

    /// The same, and the write.
    pub(crate) async fn expire_at(
        &self,
        scope: &str,
        key: &str,
        expiry: Expiry,
    ) -> Result<(Written, Option<u64>), Error> {
        let request = v1::ExpireRequest {
            scope: scope.to_owned(),
            key: key.to_owned(),
            expiry: Some(expiry.into()),
            options: self.write_options(),
        };
        let answer = self
            .nodes
            .call(self.about(Nature::Write, Some(scope)), &request, |channel, request| async move {
                state(channel).expire(request).await
            })
            .await?;
        let expires_at_ms = Some(answer.expires_at_ms).filter(|ms| *ms > 0);
        Ok((self.written(answer.result, answer.answer)?, expires_at_ms))
    }

    /// The visible keys of a scope in byte order. The session's token covers the scan once it is at its end.
    pub fn scan(&self, scope: &str, range: ScanRange) -> Scan {
        Scan::new(self.clone(), scope, range)
    }

    /// The changes of a key, a prefix or a scope: from now on, after the current values, or after a resume token.
    pub fn watch(
        &self,
        scope: &str,
        target: WatchTarget,
        initial_values: bool,
        resume_token: Option<Bytes>,
    ) -> Watch {
        Watch::new(self.clone(), scope, target, initial_values, resume_token.unwrap_or_default())
    }

    /// Stamps above those of all writes to the scope that the node has seen, 1 to 1000.
    pub async fn stamp(&self, scope: &str, count: u32) -> Result<Stamps, Error> {
        let request = v1::StampRequest { scope: scope.to_owned(), count, token: self.token() };
        let answer = self
            .nodes
            .call(self.about(Nature::Read, Some(scope)), &request, |channel, request| async move {
                state(channel).stamp(request).await
            })
            .await?;
        self.keep(answer.answer);
        Ok(Stamps { stamps: answer.stamps.into_iter().map(Stamp::from_u64).collect(), origin: answer.origin })
    }

    /// How the answering node is.
    pub async fn status(&self) -> Result<v1::GetStatusResponse, Error> {
        self.nodes
            .call(self.about(Nature::Read, None), &v1::GetStatusRequest {}, |channel, request| async move {
                cluster(channel).get_status(request).await
            })
            .await
    }

    /// The regions, and the round trips between them.
    pub async fn regions(&self) -> Result<v1::ListRegionsResponse, Error> {
        self.nodes
            .call(self.about(Nature::Read, None), &v1::ListRegionsRequest {}, |channel, request| async move {
                cluster(channel).list_regions(request).await
            })
            .await
    }

    /// The nodes of all regions, as the answering node knows them.
    pub async fn nodes(&self) -> Result<Vec<v1::Node>, Error> {
        let answer = self
            .nodes
            .call(
                self.about(Nature::Read, None),
                &v1::ListNodesRequest::default(),
                |channel, request| async move { cluster(channel).list_nodes(request).await },
            )
            .await?;
        Ok(answer.nodes)
    }

    /// The placement record of a scope, and what the answering node holds of it.
    pub async fn scope(&self, name: &str) -> Result<v1::Scope, Error> {
        let answer = self
            .nodes
            .call(
                self.about(Nature::Read, None),
                &v1::GetScopeRequest { name: name.to_owned() },
                |channel, request| async move { scopes(channel).get_scope(request).await },
            )
            .await?;
        answer.scope.ok_or_else(|| self.unexpected("no scope".to_owned()))
    }

    /// Drops a scope of this incarnation with all its keys, in every region. Asking again changes nothing.
    pub async fn drop_scope(&self, name: &str, incarnation: u64) -> Result<v1::DropScopeResponse, Error> {
        let request = v1::DropScopeRequest { name: name.to_owned(), incarnation };
        let call = |channel, request| async move { scopes(channel).drop_scope(request).await };
        self.nodes.call(self.about(Nature::Read, None), &request, call).await
    }

    /// Creates a dropped scope anew; one that is there is as it was.
    pub async fn create_scope(&self, name: &str) -> Result<v1::Scope, Error> {
        let request = v1::CreateScopeRequest { name: name.to_owned() };
        let call = |channel, request| async move { scopes(channel).create_scope(request).await };
        let answer = self.nodes.call(self.about(Nature::Read, None), &request, call).await?;
        answer.scope.ok_or_else(|| self.unexpected("no scope".to_owned()))
    }

    /// Sends a scope on its way to these regions, the steward's first; none: it stays where it is.
    pub async fn move_scope(&self, name: &str, regions: Vec<String>) -> Result<v1::Scope, Error> {
        let stay = regions.is_empty();
        let request = v1::MoveScopeRequest { name: name.to_owned(), regions, stay };
        let call = |channel, request| async move { scopes(channel).move_scope(request).await };
        let answer = self.nodes.call(self.about(Nature::Read, None), &request, call).await?;
        answer.scope.ok_or_else(|| self.unexpected("no scope".to_owned()))
    }

    /// Why a scope is where it is.
    pub async fn explain_scope(&self, name: &str) -> Result<v1::ExplainScopeResponse, Error> {
        let request = v1::ExplainScopeRequest { name: name.to_owned() };
        let call = |channel, request| async move { placement(channel).explain_scope(request).await };
        self.nodes.call(self.about(Nature::Read, None), &request, call).await
    }

    /// What the answering node decided and heard of placement, behind the event with this number.
    pub async fn placement_events(&self, after: u64) -> Result<Vec<v1::PlacementEvent>, Error> {
        let request = v1::ListPlacementEventsRequest { after };
        let call = |channel, request| async move { placement(channel).list_placement_events(request).await };
        Ok(self.nodes.call(self.about(Nature::Read, None), &request, call).await?.events)
    }

    /// Says who may move a scope.
    pub async fn hold_scope(&self, name: &str, hold: v1::ScopeHold) -> Result<v1::Scope, Error> {
        let request = v1::HoldScopeRequest { name: name.to_owned(), hold: hold.into() };
        let call = |channel, request| async move { scopes(channel).hold_scope(request).await };
        let answer = self.nodes.call(self.about(Nature::Read, None), &request, call).await?;
        answer.scope.ok_or_else(|| self.unexpected("no scope".to_owned()))
    }

    /// A page of the scopes at or below `prefix` that the answering node knows, by name, and the token of the next page;
    /// empty at the end. Begins with an empty token.
    pub async fn scopes(&self, prefix: &str, page_token: Bytes) -> Result<(Vec<v1::Scope>, Bytes), Error> {
        let request =
            v1::ListScopesRequest { prefix: prefix.to_owned(), page_size: MAX_PAGE_SCOPES, page_token };
        let answer = self
            .nodes
            .call(self.about(Nature::Read, None), &request, |channel, request| async move {
                scopes(channel).list_scopes(request).await
            })
            .await?;
        Ok((answer.scopes, answer.next_page_token))
    }

    /// What the members of a scope hold, compared with the node `node` (empty: whichever answers), from a shard on; and, in
    /// the answer, where the next call goes on. Takes as long as the client's timeout allows.
    pub async fn verify_scope(
        &self,
        node: &str,
        name: &str,
        first_shard: u32,
    ) -> Result<v1::VerifyScopeResponse, Error> {
        let request = v1::VerifyScopeRequest { name: name.to_owned(), first_shard, node: node.to_owned() };
        self.nodes
            .call(self.about(Nature::Read, None), &request, |channel, request| async move {
                scopes(channel).verify_scope(request).await
            })
            .await
    }

    /// A page of the answering node's parked keys. A client that talks to several nodes names the one it means.
    pub async fn parked(&self, request: &v1::ListParkedRequest) -> Result<v1::ListParkedResponse, Error> {
        self.nodes
            .call(self.about(Nature::Read, None), request, |channel, request| async move {
                parked(channel).list_parked(request).await
            })
            .await
    }

    /// What is known of one parked key; `node` as in [`Self::parked`], empty: whichever answers.
    pub async fn show_parked(
        &self,
        node: &str,
        scope: &str,
        key: &str,
    ) -> Result<v1::GetParkedResponse, Error> {
        let request =
            v1::GetParkedRequest { node: node.to_owned(), scope: scope.to_owned(), key: key.to_owned() };
        self.nodes
            .call(self.about(Nature::Read, None), &request, |channel, request| async move {
                parked(channel).get_parked(request).await
            })
            .await
    }

    /// Applies again what is kept of a parked key. Repeated when its answer was lost: if everything applied the first
    /// time, the answer is then that the key is not parked.
    pub async fn retry_parked(
        &self,
        node: &str,
        scope: &str,
        key: &str,
    ) -> Result<v1::RetryParkedResponse, Error> {
        let request =
            v1::RetryParkedRequest { node: node.to_owned(), scope: scope.to_owned(), key: key.to_owned() };
        self.nodes
            .call(self.about(Nature::Write, None), &request, |channel, request| async move {
                parked(channel).retry_parked(request).await
            })
            .await
    }

    /// Gives up what is kept of a parked key at this node, for good. Repeated like [`Self::retry_parked`].
    pub async fn drop_parked(
        &self,
        node: &str,
        scope: &str,
        key: &str,
    ) -> Result<v1::DropParkedResponse, Error> {
        let request = v1::DropParkedRequest {
            node: node.to_owned(),
            scope: scope.to_owned(),
            key: key.to_owned(),
            confirm: true,
        };
        self.nodes
            .call(self.about(Nature::Write, None), &request, |channel, request| async move {
                parked(channel).drop_parked(request).await
            })
            .await
    }

    pub(crate) fn about<'a>(&self, nature: Nature, scope: Option<&'a str>) -> About<'a> {
        About { nature, scope, session: !self.token().is_empty(), time: self.timeout }
    }

    /// Durability, session and a fresh request id.
    fn write_options(&self) -> Option<v1::WriteOptions> {
        let id: [u8; 16] = rand::random();
        Some(v1::WriteOptions {
            durability: self.durability.map(to_proto::durability),
            token: self.token(),
            request_id: Bytes::copy_from_slice(&id),
        })
    }

    /// Keeps the token of an answer.
    pub(crate) fn keep(&self, answer: Option<v1::Answer>) -> Answered {
        let Some(answer) = answer else { return Answered::default() };
        let answered = Answered::from(&answer);
        self.set_token(answer.token);
        answered
    }

    fn written(&self, result: Option<v1::WriteResult>, answer: Option<v1::Answer>) -> Result<Written, Error> {
        let answered = self.keep(answer);
        let result = result.ok_or_else(|| self.unexpected("no result".to_owned()))?;
        Ok(Written::from_proto(result, answered))
    }

    fn unexpected(&self, what: String) -> Error {
        Error::Unexpected { endpoint: self.endpoint(), what, effect: Effect::Unknown }
    }
}

pub(crate) fn state(channel: Channel) -> StateServiceClient<Channel> {
    StateServiceClient::new(channel)
}

fn scopes(channel: Channel) -> ScopeServiceClient<Channel> {
    ScopeServiceClient::new(channel)
}

fn placement(channel: Channel) -> PlacementServiceClient<Channel> {
    PlacementServiceClient::new(channel)
}

fn parked(channel: Channel) -> ParkedServiceClient<Channel> {
    ParkedServiceClient::new(channel)
}

fn cluster(channel: Channel) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(channel)
}
