#![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, iter};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tropism_wire::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use tropism_wire::v1::state_service_server::{StateService, StateServiceServer};
use tropism_wire::{Effect, Problem, Reason, v1};

use crate::{Calls, Error, Happening, ScanRange, WatchTarget};

mod cached;
mod nearest;
mod values;

/// What a scripted node answers next.
enum Answer {
    /// A value of this version.
    Value(v1::Value, &'static str),
    /// A version or value with this token.
    Token(&'static str),
    /// An error.
    Fails(Status),
    /// Nothing, ever.
    Silence,
    /// These messages of a scan, then perhaps an error.
    Scan(Vec<Result<v1::ScanResponse, Status>>),
    /// These messages of a watch, then perhaps an error.
    Watch(Vec<Result<v1::WatchResponse, Status>>),
    /// A watch that says what the test says.
    Open(Messages<v1::WatchResponse>),
}

/// A node that answers by a script and remembers what it was asked.
#[derive(Clone, Default)]
struct Node(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    /// What it tells of the nodes, itself included; without, it knows of no nodes and no health.
    nodes: Vec<v1::Node>,
    /// How long its way takes.
    delay: Duration,
    /// Whether it says that it serves.
    serves: bool,
    answers: VecDeque<Answer>,
    /// Request ids of writes.
    ids: Vec<Bytes>,
    /// Tokens of requests.
    tokens: Vec<Bytes>,
    /// Page and resume tokens, and limits.
    continued: Vec<(Bytes, u64)>,
    /// What was put.
    puts: Vec<v1::PutRequest>,
}

impl Node {
    async fn start(answers: impl IntoIterator<Item = Answer>) -> (Self, String) {
        let node = Self::default();
        node.0.lock().unwrap().answers = answers.into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        node.clone().serve(listener);
        (node, endpoint)
    }

    fn serve(self, listener: TcpListener) -> AbortHandle {
        let cluster = ClusterServiceServer::new(self.clone());
        let health = HealthServer::new(self.clone());
        let server = Server::builder()
            .add_service(StateServiceServer::new(self))
            .add_service(cluster)
            .add_service(health)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server).abort_handle()
    }

    fn next(&self) -> Answer {
        self.0.lock().unwrap().answers.pop_front().expect("the script is longer")
    }

    async fn way(&self) {
        let delay = self.0.lock().unwrap().delay;
        tokio::time::sleep(delay).await;
    }

    async fn answer(&self, token: Bytes) -> Result<Option<v1::Answer>, Status> {
        self.way().await;
        self.0.lock().unwrap().tokens.push(token);
        match self.next() {
            Answer::Token(token) => Ok(Some(v1::Answer { token: token.into(), ..v1::Answer::default() })),
            Answer::Fails(status) => Err(status),
            Answer::Silence => std::future::pending().await,
            Answer::Value(..) | Answer::Scan(_) | Answer::Watch(_) | Answer::Open(_) => {
                panic!("the script says otherwise")
            }
        }
    }

    async fn write(&self, options: Option<v1::WriteOptions>) -> Result<Option<v1::Answer>, Status> {
        let options = options.unwrap();
        self.0.lock().unwrap().ids.push(options.request_id);
        self.answer(options.token).await
    }

    /// How many calls came.
    fn calls(&self) -> usize {
        self.0.lock().unwrap().tokens.len()
    }
}

type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

fn unscripted<A>() -> Result<Response<A>, Status> {
    Err(Status::unimplemented("not in a script"))
}

#[tonic::async_trait]
impl StateService for Node {
    type ScanStream = Messages<v1::ScanResponse>;
    type WatchStream = Messages<v1::WatchResponse>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let is_value = matches!(self.0.lock().unwrap().answers.front(), Some(Answer::Value(..)));
        if is_value && let Answer::Value(value, version) = self.next() {
            let entry = v1::Entry { value: Some(value), version: version.into(), ..v1::Entry::default() };
            return Ok(Response::new(v1::GetResponse { entry: Some(entry), answer: None }));
        }
        let answer = self.answer(request.into_inner().token).await?;
        Ok(Response::new(v1::GetResponse { entry: None, answer }))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let request = request.into_inner();
        self.0.lock().unwrap().puts.push(request.clone());
        let answer = self.write(request.options).await?;
        Ok(Response::new(v1::PutResponse { result: Some(v1::WriteResult::default()), answer }))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        self.0.lock().unwrap().continued.push((request.page_token, request.limit));
        match self.next() {
            Answer::Scan(messages) => Ok(Response::new(Box::pin(iter(messages)))),
            _ => panic!("the script says otherwise"),
        }
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.0.lock().unwrap().continued.push((request.into_inner().resume_token, 0));
        match self.next() {
            Answer::Watch(messages) => Ok(Response::new(Box::pin(iter(messages)))),
            Answer::Open(messages) => Ok(Response::new(messages)),
            _ => panic!("the script says otherwise"),
        }
    }

    async fn batch_get(
        &self,
        _: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        unscripted()
    }
    async fn batch_put(
        &self,
        _: Request<v1::BatchPutRequest>,
    ) -> Result<Response<v1::BatchPutResponse>, Status> {
        unscripted()
    }
    async fn patch(&self, _: Request<v1::PatchRequest>) -> Result<Response<v1::PatchResponse>, Status> {
        unscripted()
    }
    async fn increment(
        &self,
        _: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementResponse>, Status> {
        unscripted()
    }
    async fn batch_increment(
        &self,
        _: Request<v1::BatchIncrementRequest>,
    ) -> Result<Response<v1::BatchIncrementResponse>, Status> {
        unscripted()
    }
    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        unscripted()
    }
    async fn expire(&self, _: Request<v1::ExpireRequest>) -> Result<Response<v1::ExpireResponse>, Status> {
        unscripted()
    }
    async fn stamp(&self, _: Request<v1::StampRequest>) -> Result<Response<v1::StampResponse>, Status> {
        unscripted()
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.way().await;
        let nodes = self.0.lock().unwrap().nodes.clone();
        if nodes.is_empty() { unscripted() } else { Ok(Response::new(v1::ListNodesResponse { nodes })) }
    }

    async fn list_regions(
        &self,
        _: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        unscripted()
    }
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        unscripted()
    }
    async fn list_spans(
        &self,
        _: Request<v1::ListSpansRequest>,
    ) -> Result<Response<v1::ListSpansResponse>, Status> {
        unscripted()
    }
    async fn set_telemetry(
        &self,
        _: Request<v1::SetTelemetryRequest>,
    ) -> Result<Response<v1::SetTelemetryResponse>, Status> {
        unscripted()
    }
}

#[tonic::async_trait]
impl Health for Node {
    type WatchStream = Messages<HealthCheckResponse>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.way().await;
        let serves = self.0.lock().unwrap().serves;
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        unscripted()
    }
}

fn not_ready() -> Status {
    Problem::unavailable(Reason::NotReady, Duration::from_millis(1), "the node is starting").to_status()
}

fn outcome_unknown() -> Status {
    Problem::unavailable(Reason::OutcomeUnknown, Duration::from_millis(1), "the node stopped").to_status()
}

/// What a connection that breaks in the middle of a call looks like.
fn lost() -> Status {
    Status::unavailable("connection reset")
}

/// An endpoint where nothing listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn reads_go_on_at_the_next_endpoint() {
    let (first, at_first) = Node::start([Answer::Fails(not_ready())]).await;
    let (second, at_second) = Node::start([Answer::Fails(lost())]).await;
    let (third, at_third) = Node::start([Answer::Token("a"), Answer::Token("b")]).await;
    let client = Calls::in_order(vec![nobody().await, at_first, at_second, at_third.clone()]).unwrap();
    client.get("scope", "key").await.unwrap();
    assert_eq!(client.endpoint(), at_third, "and stay there");
    client.get("scope", "key").await.unwrap();
    assert_eq!([first.calls(), second.calls(), third.calls()], [1, 1, 2]);
}

#[tokio::test]
async fn a_write_that_had_no_effect_goes_elsewhere_with_the_same_request_id() {
    let (first, at_first) = Node::start([Answer::Fails(not_ready())]).await;
    let (second, at_second) = Node::start([Answer::Token("a")]).await;
    let client = Calls::in_order(vec![nobody().await, at_first, at_second]).unwrap();
    client.put_json("scope", "key", "{}").await.unwrap();
    let ids = [first, second].map(|node| node.0.lock().unwrap().ids.clone());
    assert!(ids[0].len() == 1 && ids[0] == ids[1] && ids[0][0].len() == 16, "{ids:?}");
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_settled_by_the_same_node() {
    let answers = [lost(), not_ready(), outcome_unknown()].map(Answer::Fails);
    let (first, at_first) = Node::start(answers.into_iter().chain([Answer::Token("a")])).await;
    let (second, at_second) = Node::start([]).await;
    let client = Calls::in_order(vec![at_first, at_second]).unwrap();
    client.put_json("scope", "key", "{}").await.unwrap();
    let ids = first.0.lock().unwrap().ids.clone();
    assert!(ids.len() == 4 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(second.calls(), 0);
}

#[tokio::test]
async fn two_writes_have_two_request_ids() {
    let (node, endpoint) = Node::start([Answer::Token("a"), Answer::Token("b")]).await;
    let client = Calls::connect(vec![endpoint]).await.unwrap();
    client.put_json("scope", "key", "{}").await.unwrap();
    client.put_json("scope", "key", "{}").await.unwrap();
    let ids = node.0.lock().unwrap().ids.clone();
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_session_sends_the_token_of_its_last_answer_and_another_session_does_not() {
    let (node, endpoint) = Node::start(["a", "b", "c"].map(Answer::Token)).await;
    let client = Calls::connect(vec![endpoint]).await.unwrap();
    client.put_json("scope", "key", "{}").await.unwrap();
    client.clone().get("scope", "key").await.unwrap();
    client.new_session().get("scope", "key").await.unwrap();
    assert_eq!(node.0.lock().unwrap().tokens, ["", "a", ""]);
    assert_eq!(client.token(), "b");
}

#[tokio::test]
async fn refusals_are_final_and_carry_everything() {
    let problem = Problem::invalid_argument(Reason::BadKey, "key", "key is empty");
    let (node, endpoint) = Node::start([Answer::Fails(problem.to_status())]).await;
    let client = Calls::connect(vec![endpoint]).await.unwrap();
    let error = client.put_json("scope", "", "{}").await.unwrap_err();
    assert_eq!((error.reason(), error.effect()), (Some(Reason::BadKey), Effect::None));
    assert_eq!(error, Error::Refused(problem));
    assert_eq!(node.calls(), 1);
}

#[tokio::test]
async fn silence_ends_with_the_timeout_and_says_what_may_have_happened() {
    let (_node, endpoint) = Node::start([Answer::Silence, Answer::Silence]).await;
    let client = Calls::connect(vec![endpoint]).await.unwrap().with_timeout(Duration::from_millis(50));
    let read = client.get("scope", "key").await.unwrap_err();
    let write = client.put_json("scope", "key", "{}").await.unwrap_err();
    assert!(matches!(read, Error::TimedOut { effect: Effect::None, .. }), "{read}");
    assert!(matches!(write, Error::TimedOut { effect: Effect::Unknown, .. }), "{write}");
}

#[tokio::test]
async fn a_write_that_stays_unsettled_says_so() {
    let (_node, endpoint) = Node::start(std::iter::repeat_with(|| Answer::Fails(lost())).take(99)).await;
    let client = Calls::connect(vec![endpoint]).await.unwrap().with_timeout(Duration::from_millis(200));
    let error = client.put_json("scope", "key", "{}").await.unwrap_err();
    assert_eq!(error.effect(), Effect::Unknown, "{error}");
}

#[tokio::test]
async fn where_nobody_listens_the_error_names_the_endpoint_and_the_cause() {
    let endpoints = vec![nobody().await, nobody().await];
    let client = Calls::in_order(endpoints.clone()).unwrap();
    for error in [
        client.get("scope", "key").await.unwrap_err(),
        client.put_json("scope", "key", "{}").await.unwrap_err(),
        Calls::connect(endpoints.clone()).await.unwrap_err(),
    ] {
        assert_eq!(error.effect(), Effect::None);
        let text = error.to_string();
        assert!(endpoints.iter().all(|endpoint| text.contains(endpoint)), "{text}");
        assert!(text.to_lowercase().contains("refused"), "{text}");
    }
}

#[test]
fn bad_endpoints_are_refused_before_anything_is_sent() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    for (endpoint, part) in [
        ("", "no URL"),
        ("127.0.0.1:7000", "http://127.0.0.1:7000"),
        ("localhost", "http://127.0.0.1:7000"),
        ("https://a:1", "no TLS"),
        ("http://a:1/path", "end behind the port"),
        ("http://a b", "no URL"),
    ] {
        let error = Calls::in_order(vec![endpoint.to_owned()]).unwrap_err();
        assert!(
            matches!(error, Error::BadEndpoint { .. }) && error.to_string().contains(part),
            "{endpoint}: {error}"
        );
    }
    assert!(matches!(Calls::in_order(Vec::new()).unwrap_err(), Error::BadEndpoint { .. }));
}

fn page(keys: &[&str], page_token: &'static str, token: &'static str) -> Result<v1::ScanResponse, Status> {
    let entries =
        keys.iter().map(|key| v1::Entry { key: (*key).to_owned(), ..v1::Entry::default() }).collect();
    let answer = Some(v1::Answer { token: token.into(), ..v1::Answer::default() });
    Ok(v1::ScanResponse { entries, page_token: page_token.into(), answer })
}

async fn scanned(client: &Calls, limit: u64) -> Vec<String> {
    let mut scan = client.scan("scope", ScanRange { limit, ..ScanRange::default() });
    let mut keys = Vec::new();
    while let Some(entry) = scan.next().await.unwrap() {
        keys.push(entry.key);
    }
    keys
}

#[tokio::test]
async fn a_scan_goes_on_behind_the_last_page_when_its_stream_breaks_or_ends_early() {
    let (node, endpoint) = Node::start([
        Answer::Scan(vec![page(&["a", "b"], "after b", "x"), Err(lost())]),
        Answer::Scan(vec![page(&["c"], "after c", "y")]),
        Answer::Scan(vec![page(&["d"], "", "z")]),
    ])
    .await;
    let client = Calls::connect(vec![endpoint]).await.unwrap();
    assert_eq!(scanned(&client, 0).await, ["a", "b", "c", "d"]);
    let continued =
        [("", 0), ("after b", 0), ("after c", 0)].map(|(token, limit)| (Bytes::from(token), limit));
    assert_eq!(node.0.lock().unwrap().continued, continued);
    assert_eq!(client.token(), "z", "the session covers the whole scan");
}

#[tokio::test]
async fn a_scan_keeps_its_limit_through_a_break() {
    let (node, endpoint) = Node::start([
        Answer::Scan(vec![page(&["a", "b"], "after b", ""), Err(lost())]),
        Answer::Scan(vec![page(&["c"], "after c", "")]),
    ])
    .await;
    let client = Calls::connect(vec![endpoint]).await.unwrap();
    assert_eq!(scanned(&client, 3).await, ["a", "b", "c"]);
    assert_eq!(node.0.lock().unwrap().continued, [(Bytes::new(), 3), (Bytes::from("after b"), 1)]);
}

#[tokio::test]
async fn a_watch_goes_on_from_its_resume_token() {
    use v1::WatchEventType as Type;
    let message = |r#type: Type, token: &'static str| {
        let event = v1::WatchEvent { r#type: r#type.into(), ..v1::WatchEvent::default() };
        Ok(v1::WatchResponse { events: vec![event], resume_token: token.into(), staleness_ms: 0 })
    };
    let slow = Problem::resource_exhausted(Reason::SlowReader, "watch_buffer_bytes", 1, "too slow")
        .with_bytes(tropism_wire::error::RESUME_TOKEN, b"t2");
    let (node, endpoint) = Node::start([
        Answer::Watch(vec![message(Type::Put, "t1"), Err(slow.to_status())]),
        Answer::Watch(vec![message(Type::Delete, "t3"), Err(lost())]),
        Answer::Watch(vec![message(Type::Current, "t4")]),
    ])
    .await;
    let client = Calls::connect(vec![endpoint]).await.unwrap();
    let mut watch = client.watch("scope", WatchTarget::Scope, false, None);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(watch.next().await.unwrap().events[0].happening);
    }
    assert_eq!(seen, [Happening::Put, Happening::Delete, Happening::Current]);
    assert_eq!(watch.resume_token(), "t4");
    let tokens: Vec<Bytes> =
        node.0.lock().unwrap().continued.iter().map(|(token, _)| token.clone()).collect();
    assert_eq!(tokens, ["", "t2", "t3"]);
}
