//! Three nodes in this process and a collector that their traces go to.

use std::time::Instant;

use tonic::metadata::MetadataValue;

use super::*;
use crate::telemetry::names;
use crate::telemetry::tests::{Collector, Received};

const NAMES: [&str; 3] = ["dallas", "frankfurt", "tokyo"];
const REGIONS: &str = r#"
region = [{ name = "dallas", place = "A" }, { name = "frankfurt", place = "B" }, { name = "tokyo", place = "C" }]
rtt = [
    { between = ["dallas", "frankfurt"], ms = 1 },
    { between = ["dallas", "tokyo"], ms = 1 },
    { between = ["frankfurt", "tokyo"], ms = 1 },
]
[[rule]]
name = "everything"
pattern = "**"
kind = "register"
"#;
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

/// Where the nodes live.
pub(super) struct Trio {
    directory: tempfile::TempDir,
    clients: Vec<SocketAddr>,
}

pub(super) struct Node {
    pub(super) channel: Channel,
    stop: watch::Sender<bool>,
    node: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Trio {
    /// With traces to a collector. Only the second samples by itself.
    fn new(otlp: SocketAddr) -> Self {
        Self::with(|at| format!("otlp = \"http://{otlp}\", sampling = {}.0", u8::from(at == 1)))
    }

    /// With this telemetry.
    pub(super) fn with(telemetry: impl Fn(usize) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("regions.toml"), REGIONS).unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "0123456789abcdef").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let clients: Vec<SocketAddr> = NAMES.iter().map(|_| free_address()).collect();
        let peers: Vec<SocketAddr> = NAMES.iter().map(|_| free_address()).collect();
        for (at, name) in NAMES.iter().enumerate() {
            let others: Vec<String> = (0..3)
                .filter(|other| *other != at)
                .map(|other| {
                    let name = NAMES[other];
                    format!(r#"{{ id = "{name}-1", region = "{name}", address = "{}" }}"#, peers[other])
                })
                .collect();
            let config = format!(
                r#"
                node = {{ id = "{name}-1", region = "{name}", data_dir = "data-{name}" }}
                listen = {{ client = "{}", peer = "{}" }}
                cluster = {{ id = "test", secret_file = "secret", regions_file = "regions.toml" }}
                peer = [{}]
                telemetry = {{ {} }}
                "#,
                clients[at],
                peers[at],
                others.join(", "),
                telemetry(at)
            );
            fs::write(directory.path().join(format!("{name}.toml")), config).unwrap();
        }
        Self { directory, clients }
    }

    pub(super) async fn start(&self, at: usize) -> Node {
        let checked = NodeConfig::check(&self.directory.path().join(format!("{}.toml", NAMES[at]))).unwrap();
        let (stop, stopped) = watch::channel(false);
        let start = Start { version: "1.2.3".into(), accept_loss: true };
        let node = tokio::task::spawn_blocking(move || run(checked, start, stopped));
        let channel = Endpoint::from_shared(format!("http://{}", self.clients[at])).unwrap().connect_lazy();
        let node = Node { channel, stop, node };
        while node.put("begin", 1, None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node
    }
}

impl Node {
    pub(super) async fn put(&self, key: &str, regions: u32, traceparent: Option<&str>) -> Result<(), Status> {
        let register = v1::Register { content: Bytes::from_static(b"hush"), content_type: String::new() };
        let durability = v1::Durability { level: v1::DurabilityLevel::Regions.into(), regions };
        let mut request = Request::new(v1::PutRequest {
            scope: "cache".into(),
            key: key.into(),
            value: Some(v1::Value { value: Some(v1::value::Value::Register(register)) }),
            options: Some(v1::WriteOptions { durability: Some(durability), ..Default::default() }),
            ..Default::default()
        });
        if let Some(text) = traceparent {
            request.metadata_mut().insert("traceparent", MetadataValue::try_from(text).unwrap());
        }
        StateServiceClient::new(self.channel.clone()).put(request).await.map(|_| ())
    }

    /// Puts until so many regions have it.
    pub(super) async fn until_linked(&self, regions: u32) {
        while self.put("begin", regions, None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn status(&self) -> v1::GetStatusResponse {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner()
    }

    pub(super) async fn stop(self) {
        self.stop.send(true).unwrap();
        self.node.await.unwrap().unwrap();
    }
}

fn id(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

/// The span of the call, that of the commit, and those where it was applied, by region.
fn parts(trace: &[Received]) -> (Received, Received, Vec<Received>) {
    let of = |name: &'static str| trace.iter().filter(move |received| received.span.name == name);
    let mut applied: Vec<Received> = of(names::APPLY).cloned().collect();
    applied.sort_by_key(Received::region);
    let call = of("tropism.v1.StateService/Put").next().unwrap().clone();
    (call, of(names::COMMIT).next().unwrap().clone(), applied)
}

fn regions(of: &[Received]) -> Vec<String> {
    of.iter().map(Received::region).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_one_trace_in_all_regions_and_one_that_comes_late_links_to_it() {
    let (collector, otlp) = Collector::start().await;
    let trio = Trio::new(otlp);
    let (dallas, frankfurt, tokyo) = (trio.start(0).await, trio.start(1).await, trio.start(2).await);
    dallas.until_linked(3).await;
    frankfurt.until_linked(3).await;

    // A client's own trace.
    dallas.put("a-hidden-key", 3, Some(&format!("00-{TRACE}-{CLIENT}-01"))).await.unwrap();
    let trace = collector.until(4, |received| received.span.trace_id == id(TRACE)).await;
    assert_eq!(trace.len(), 4, "{trace:#?}");
    let (call, commit, applied) = parts(&trace);
    assert_eq!((call.region(), call.span.parent_span_id.clone()), ("dallas".to_owned(), id(CLIENT)));
    assert_eq!((call.text(names::RPC_SYSTEM).as_str(), call.text(names::RPC_STATUS).as_str()), ("grpc", "0"));
    assert_eq!(call.text(names::RPC_SERVICE), "tropism.v1.StateService");
    assert_eq!(call.text(names::RPC_METHOD), "Put");
    assert_eq!((commit.region(), &commit.span.parent_span_id), ("dallas".to_owned(), &call.span.span_id));
    assert_eq!(regions(&applied), ["frankfurt", "tokyo"]);
    for apply in &applied {
        assert_eq!(apply.span.parent_span_id, commit.span.span_id);
        assert!(apply.span.links.is_empty() && apply.text(names::ORIGIN) == "dallas-1");
        assert_eq!(apply.text(names::SCOPE), "cache");
        assert!(apply.span.start_time_unix_nano <= apply.span.end_time_unix_nano);
    }

    // A trace of the node's own choice; and none where neither client nor node wants one.
    let sampled = |received: &Received| {
        received.span.name == "tropism.v1.StateService/Put" && received.region() == "frankfurt"
    };
    let before = collector.until(1, sampled).await.len();
    frankfurt.put("another", 3, None).await.unwrap();
    let calls = collector.until(before + 1, sampled).await;
    let own = calls.iter().max_by_key(|call| call.span.start_time_unix_nano).unwrap().span.trace_id.clone();
    let (call, commit, applied) = parts(&collector.until(4, |received| received.span.trace_id == own).await);
    assert!(call.span.parent_span_id.is_empty() && commit.span.parent_span_id == call.span.span_id);
    assert_eq!(regions(&applied), ["dallas", "tokyo"]);
    assert!(applied.iter().all(|apply| apply.span.parent_span_id == commit.span.span_id));
    let get = v1::GetRequest { scope: "cache".into(), key: "another".into(), ..Default::default() };
    StateServiceClient::new(frankfurt.channel.clone()).get(get).await.unwrap();
    collector.until(1, |received| received.span.name == "tropism.v1.StateService/Get").await;
    let unwanted = "00-11111111111111111111111111111111-2222222222222222-00";
    frankfurt.put("unwanted", 3, Some(unwanted)).await.unwrap();
    dallas.put("malformed", 1, Some("00-xyz")).await.unwrap();
    assert!(dallas.status().await.warnings.iter().any(|w| w.name == "traceparent_malformed"));

    // A region that is away.
    tokyo.stop().await;
    let trace = TRACE.replace('0', "9");
    dallas.put("late", 2, Some(&format!("00-{trace}-{CLIENT}-01"))).await.unwrap();
    let made = collector.until(3, |received| received.span.trace_id == id(&trace)).await;
    let (_, commit, applied) = parts(&made);
    assert_eq!(regions(&applied), ["frankfurt"]);
    tokio::time::sleep(crate::telemetry::LATE + Duration::from_millis(500)).await;
    let tokyo = trio.start(2).await;
    let late = collector
        .until(1, |received| received.span.links.iter().any(|link| link.span_id == commit.span.span_id));
    let late = late.await.remove(0);
    assert_eq!((late.region().as_str(), late.span.name.as_str()), ("tokyo", names::APPLY));
    assert!(late.span.parent_span_id.is_empty() && late.span.trace_id != id(&trace));
    assert_eq!(late.span.links[0].trace_id, id(&trace));
    assert!(late.text(names::LAG).parse::<u128>().unwrap() > crate::telemetry::LATE.as_millis());

    for node in [dallas, frankfurt, tokyo] {
        node.stop().await;
    }
    let all = collector.all();
    assert!(!all.iter().any(|received| received.span.trace_id == id("11111111111111111111111111111111")));
    let quiet = |received: &&Received| received.region() == "dallas" && received.span.name != names::APPLY;
    assert_eq!(all.iter().filter(quiet).count(), 4, "two writes that were asked for, with their commits");
    for received in &all {
        let name = received.span.name.as_str();
        let is_call = names::METHODS.iter().any(|(service, method)| format!("{service}/{method}") == name);
        assert!(is_call || names::SPANS.contains(&name), "{name}");
        for attribute in received.span.attributes.iter().chain(&received.resource) {
            assert!(names::ATTRIBUTES.contains(&attribute.key.as_str()), "{}", attribute.key);
        }
        let told = format!("{received:?}");
        assert!(!["a-hidden-key", "another", "hush"].iter().any(|secret| told.contains(secret)), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_is_dead_costs_spans_and_nothing_else() {
    let hanging = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); // takes connections and says nothing
    for otlp in [hanging.local_addr().unwrap(), free_address()] {
        let trio = Trio::new(otlp);
        let node = trio.start(1).await; // which samples everything
        let begun = Instant::now();
        for round in 0..2_500 {
            node.put(&round.to_string(), 1, None).await.unwrap();
        }
        println!("{:?} for 2500 writes", begun.elapsed());
        let queue = node.status().await.queues.into_iter().find(|queue| queue.name == "spans to export");
        let queue = queue.unwrap();
        assert!(queue.times_full > 0 && queue.length <= queue.limit, "{queue:?}");
        let begun = Instant::now();
        node.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_collector_tells_what_it_did_in_a_trace_to_who_asks() {
    let trio = Trio::with(|_| String::new());
    let (dallas, frankfurt) = (trio.start(0).await, trio.start(1).await);
    dallas.until_linked(2).await;
    let spans = async |node: &Node, trace: &str| {
        let request = v1::ListSpansRequest { trace_id: id(trace).into() };
        let answer = ClusterServiceClient::new(node.channel.clone()).list_spans(request).await;
        answer.map(|answer| answer.into_inner().spans)
    };
    dallas.put("a-hidden-key", 2, Some(&format!("00-{TRACE}-{CLIENT}-01"))).await.unwrap();
    let begun = Instant::now();
    let (made, applied) = loop {
        let (made, applied) = (spans(&dallas, TRACE).await.unwrap(), spans(&frankfurt, TRACE).await.unwrap());
        if made.len() == 2 && applied.len() == 1 {
            break (made, applied);
        }
        assert!(begun.elapsed().as_secs() < 30, "{made:?} {applied:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let (commit, call) = (&made[0], &made[1]);
    assert_eq!((commit.name.as_str(), call.name.as_str()), (names::COMMIT, "tropism.v1.StateService/Put"));
    assert_eq!((call.node.as_str(), call.region.as_str()), ("dallas-1", "dallas"));
    assert_eq!((&call.parent_span_id, &commit.parent_span_id), (&id(CLIENT).into(), &call.span_id));
    assert!(call.start_us <= commit.start_us && commit.duration_us <= call.duration_us);
    let apply = &applied[0];
    assert_eq!((apply.name.as_str(), apply.node.as_str(), apply.late), (names::APPLY, "frankfurt-1", false));
    // A collector of frankfurt's would never see a span of dallas', so it is within the client's.
    assert_eq!(apply.parent_span_id, id(CLIENT));
    let origin = apply.attributes.iter().find(|told| told.name == names::ORIGIN);
    assert_eq!(origin.map(|told| told.value.as_str()), Some("dallas-1"));
    assert!(!format!("{made:?} {applied:?}").contains("hidden"));

    let unsampled = TRACE.replace('0', "9");
    dallas.put("unsampled", 2, Some(&format!("00-{unsampled}-{CLIENT}-00"))).await.unwrap();
    assert_eq!(spans(&dallas, &unsampled).await.unwrap(), []);
    let refused = spans(&dallas, "abcd").await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, Reason::MalformedRequest));
    assert!(dallas.status().await.queues.iter().all(|queue| queue.name != "spans to export"));
    dallas.stop().await;
    frankfurt.stop().await;
}
