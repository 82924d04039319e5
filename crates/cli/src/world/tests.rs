//! Relays over real sockets, and worlds of real processes whose nodes only pretend.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use tropism_node::config::NodeConfig;
use tropism_placement::Regions;

use super::alarm::Alarm;
use super::control::{
    self, LinkAction, LinkRequest, LinkState, NodeAction, NodeRequest, NodeState, change_link, change_node,
};
use super::description::{Description, find, remember};
use super::directory::WorldDirectory;
use super::process::end_with_parent;
use super::relay::{Line, QUEUE_BYTES, Relay, Slow, Traffic};
use super::{Options, RegionsFile, World};

/// Long enough that something swallowed would have come through.
const A_WHILE: Duration = Duration::from_millis(150);

/// A relay to a listener of the test, and the two lines.
struct Route {
    relay: Relay,
    target: TcpListener,
    there: Arc<Line>,
    back: Arc<Line>,
}

impl Route {
    async fn new(there_ms: u64, back_ms: u64) -> Self {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let line = |ms| Arc::new(Line::new(Duration::from_millis(ms)));
        let (there, back) = (line(there_ms), line(back_ms));
        let alarm = Arc::new(Alarm::start().unwrap());
        let address = target.local_addr().unwrap();
        let relay = Relay::start(address, Traffic::Peers, there.clone(), back.clone(), alarm).await.unwrap();
        Self { relay, target, there, back }
    }

    /// Both ends of a new connection.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(self.relay.address).await.unwrap();
        let (far, _) = self.target.accept().await.unwrap();
        (near, far)
    }
}

async fn read_exactly(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(A_WHILE, stream.read(&mut [0; 64])).await.is_err()
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 64]).await, Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn bytes_keep_their_order_and_never_arrive_before_the_delay_of_their_direction() {
    let path = Route::new(30, 50).await;
    let begun = Instant::now();
    let (mut near, mut far) = path.connect().await;
    assert!(begun.elapsed() >= Duration::from_millis(30), "a connection takes a round trip");

    let sent = Instant::now();
    for number in 0..1000_u32 {
        near.write_all(&number.to_be_bytes()).await.unwrap(); // nothing is waited for in between
    }
    let mut arrived = read_exactly(&mut far, 4).await;
    assert!(sent.elapsed() >= Duration::from_millis(30));
    arrived.extend(read_exactly(&mut far, 3996).await);
    let numbers: Vec<u32> =
        arrived.chunks(4).map(|four| u32::from_be_bytes(four.try_into().unwrap())).collect();
    assert_eq!(numbers, (0..1000).collect::<Vec<u32>>());

    let sent = Instant::now();
    far.write_all(b"back").await.unwrap();
    assert_eq!(read_exactly(&mut near, 4).await, b"back");
    assert!(sent.elapsed() >= Duration::from_millis(50));
    assert_eq!(path.there.carried(Traffic::Peers), 4000);
    assert_eq!(path.there.carried(Traffic::Clients), 0);
}

#[tokio::test]
async fn an_end_passes_after_the_last_byte_and_the_other_direction_goes_on() {
    let path = Route::new(5, 5).await;
    let (mut near, mut far) = path.connect().await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = String::new();
    far.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}

#[tokio::test]
async fn a_broken_connection_and_a_refused_one_are_reset() {
    let path = Route::new(5, 5).await;
    let (mut near, far) = path.connect().await;
    far.set_zero_linger().unwrap();
    drop(far);
    assert!(is_reset(&mut near).await);

    drop(path.target);
    let mut near = TcpStream::connect(path.relay.address).await.unwrap();
    assert!(is_reset(&mut near).await);
}

#[tokio::test]
async fn a_cut_swallows_and_the_heal_resets_what_was_open() {
    let path = Route::new(5, 5).await;
    let (mut near, mut far) = path.connect().await;
    near.write_all(b"before").await.unwrap();
    assert_eq!(read_exactly(&mut far, 6).await, b"before");

    path.there.cut();
    path.back.cut();
    near.write_all(b"lost").await.unwrap();
    far.write_all(b"lost").await.unwrap();
    let mut late = TcpStream::connect(path.relay.address).await.unwrap();
    late.write_all(b"lost").await.unwrap();
    for stream in [&mut near, &mut far, &mut late] {
        assert!(is_silent(stream).await);
    }

    path.there.heal();
    path.back.heal();
    for stream in [&mut near, &mut far, &mut late] {
        assert!(is_reset(stream).await);
    }
    let (mut near, mut far) = path.connect().await;
    near.write_all(b"after").await.unwrap();
    assert_eq!(read_exactly(&mut far, 5).await, b"after");
    assert_eq!(path.there.carried(Traffic::Peers), 11);
}

#[tokio::test]
async fn what_is_under_way_when_a_line_is_cut_is_lost() {
    let path = Route::new(100, 1).await;
    let (mut near, mut far) = path.connect().await;
    near.write_all(b"under way").await.unwrap();
    path.there.cut();
    assert!(is_silent(&mut far).await);
    path.there.heal();
    assert!(is_reset(&mut far).await);
}

#[tokio::test]
async fn a_cut_hides_ends_and_breaks_too() {
    let path = Route::new(1, 1).await;
    let (near, mut far) = path.connect().await;
    path.there.cut();
    path.back.cut();
    near.set_zero_linger().unwrap();
    drop(near);
    assert!(is_silent(&mut far).await);
    path.there.heal();
    path.back.heal();
    assert!(is_reset(&mut far).await);
}

#[tokio::test]
async fn a_one_way_cut_lets_the_other_direction_pass() {
    let path = Route::new(1, 1).await;
    let (mut near, mut far) = path.connect().await;
    path.there.cut();
    near.write_all(b"lost").await.unwrap();
    far.write_all(b"still here").await.unwrap();
    assert_eq!(read_exactly(&mut near, 10).await, b"still here");
    assert!(is_silent(&mut far).await);
    path.there.heal();
    assert!(is_reset(&mut near).await);
    assert!(is_reset(&mut far).await);
}

#[tokio::test]
async fn a_slow_line_adds_its_delay_and_its_bandwidth_and_keeps_order_when_it_gets_faster() {
    let path = Route::new(1, 1).await;
    let (mut near, mut far) = path.connect().await;
    path.there.slow(Slow { extra: Duration::from_millis(80), bytes_per_second: None });
    let sent = Instant::now();
    near.write_all(b"first").await.unwrap();
    sleep(Duration::from_millis(40)).await; // the relay reads it while the line is slow
    path.there.heal();
    near.write_all(b"then").await.unwrap();
    assert_eq!(read_exactly(&mut far, 9).await, b"firstthen");
    assert!(sent.elapsed() >= Duration::from_millis(80));

    path.there.slow(Slow { extra: Duration::ZERO, bytes_per_second: NonZeroU64::new(1_000_000) });
    let sent = Instant::now();
    near.write_all(&[7; 100_000]).await.unwrap();
    read_exactly(&mut far, 100_000).await;
    assert!(sent.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_full_queue_stops_the_reading() {
    let path = Route::new(1, 1).await;
    let (mut near, _far) = path.connect().await;
    path.there.slow(Slow { extra: Duration::from_secs(3600), bytes_per_second: None });
    let chunk = vec![1; 64 << 10];
    let mut taken = 0;
    while let Ok(written) = timeout(Duration::from_secs(1), near.write(&chunk)).await {
        taken += written.unwrap();
        assert!(taken < 4 * QUEUE_BYTES, "the kernel's buffers hold far less than the rest");
    }
}

/// A world in a directory of its own, with nodes that only pretend.
fn options(data: &Path) -> Options {
    let pretend = format!(
        "{NODE_CONFIG}=$0 exec '{}' --exact --nocapture world::tests::pretend_to_be_a_node",
        env::current_exe().unwrap().display()
    );
    Options {
        regions: RegionsFile::parse("regions.toml", Regions::shipped("three-continents").unwrap()).unwrap(),
        nodes_per_region: 1,
        data: data.join("world"),
        fresh: false,
        ready_file: Some(data.join("ready.json")),
        state: Some(data.join("state")),
        node_command: ["/bin/sh", "-c", &pretend].map(Into::into).into(),
        otlp: None,
        placement_pace: 1,
    }
}

const NODE_CONFIG: &str = "TROPISM_TEST_NODE_CONFIG";

#[test]
fn pretend_to_be_a_node() {
    let Some(path) = env::var_os(NODE_CONFIG) else { return };
    end_with_parent().unwrap();
    let config = NodeConfig::check(Path::new(&path)).unwrap().config;
    let _peer = std::net::TcpListener::bind(config.listen.peer).unwrap();
    for stream in std::net::TcpListener::bind(config.listen.client).unwrap().incoming() {
        std::thread::spawn(move || {
            let mut stream = stream.unwrap();
            let mut order = [0; 4];
            while stream.read_exact(&mut order).is_ok() {
                if &order == b"exit" {
                    eprintln!("the disk is on fire");
                    std::process::exit(3);
                }
                stream.write_all(&order).unwrap();
            }
        });
    }
}

async fn ping(endpoint: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(endpoint.strip_prefix("http://").unwrap()).await?;
    stream.write_all(b"ping").await?;
    stream.read_exact(&mut [0; 4]).await.map(drop)
}

async fn healthy(endpoint: String) -> bool {
    ping(&endpoint).await.is_ok()
}

#[tokio::test]
async fn a_world_tells_where_everything_is_and_takes_its_word_back_when_it_stops() {
    let directory = tempfile::tempdir().unwrap();
    let ready = directory.path().join("ready.json");
    fs::write(&ready, "of an earlier world").unwrap();
    let world = World::start(options(directory.path()), healthy).await.unwrap();

    let description = Description::read(&ready).unwrap();
    assert_eq!(description, world.description());
    assert_eq!(find(Some(&ready), None, None).unwrap(), description);
    assert_eq!(find(None, Some(ready.clone().into()), None).unwrap(), description);
    let state = Some(directory.path().join("state"));
    assert_eq!(find(None, Some("".into()), state.clone()).unwrap(), description);

    let names: Vec<&str> = description.regions.iter().map(|region| region.name.as_str()).collect();
    assert_eq!(names, ["dallas", "frankfurt", "tokyo"]);
    let tokyo = &description.regions[2];
    assert_eq!(tokyo.nodes[0].id, "tokyo-1");
    assert!(tokyo.nodes[0].pid > 0 && tokyo.endpoint == tokyo.nodes[0].endpoint);
    let config = tokyo.nodes[0].data_dir.parent().unwrap().join("node.toml");
    let metrics = NodeConfig::check(&config).unwrap().config.telemetry.metrics.unwrap();
    assert_eq!(tokyo.nodes[0].metrics, format!("http://{metrics}/metrics"));
    let osaka = &description.places["osaka"];
    assert_eq!((osaka.nearest.as_str(), osaka.rtt_ms["tokyo-1"]), ("tokyo-1", 9.0));
    assert_eq!(description.places["tokyo"].endpoints["tokyo-1"], tokyo.endpoint, "no way to go, no relay");
    let begun = Instant::now();
    ping(&description.places["tokyo"].endpoints["dallas-1"]).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(143), "the round trip of the regions file");

    let data = directory.path().join("world").canonicalize().unwrap();
    let secret = fs::metadata(data.join("cluster.secret")).unwrap();
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);
    let config = NodeConfig::check(&data.join("nodes/tokyo-1/node.toml")).unwrap().config;
    assert_eq!(config.peers.len(), 2);
    assert_eq!(config.node.data_dir, tokyo.nodes[0].data_dir);
    let dialled: SocketAddr = config.peers[0].address.parse().unwrap();
    let dallas = NodeConfig::check(&data.join("nodes/dallas-1/node.toml")).unwrap().config;
    assert_ne!(dialled, dallas.listen.peer, "peers are dialled through relays");

    world.stop().await.unwrap();
    assert!(!ready.exists());
    let error = find(Some(&ready), None, None).unwrap_err().to_string();
    assert!(error.ends_with("does not exist; `tropism dev` starts a world"), "{error}");
    let error = find(None, None, state).unwrap_err().to_string();
    assert!(error.ends_with("`tropism dev` starts a world"), "{error}");
    assert!(ping(&tokyo.endpoint).await.is_err());
}

#[tokio::test]
async fn nodes_are_killed_paused_resumed_and_started_on_the_same_ports() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::start(options(directory.path()), healthy).await.unwrap();
    let control = world.description().control;
    let tokyo = world.description().regions[2].nodes[0].clone();
    let order = |action| change_node(control, NodeRequest { action, id: "tokyo-1".to_owned() });
    let refused = async |action| order(action).await.unwrap_err().to_string();

    let killed = order(NodeAction::Kill).await.unwrap();
    assert_eq!((killed.state, killed.pid), (NodeState::Down, None));
    assert!(ping(&tokyo.endpoint).await.is_err());
    let reason = "tokyo-1 is not running; `tropism dev node start tokyo-1` starts it";
    assert_eq!(refused(NodeAction::Kill).await, reason);
    assert_eq!(refused(NodeAction::Pause).await, reason);

    let started = order(NodeAction::Start).await.unwrap();
    assert_eq!(started.state, NodeState::Running);
    assert_ne!(started.pid, Some(tokyo.pid));
    ping(&tokyo.endpoint).await.unwrap();
    let ready = Description::read(&directory.path().join("ready.json")).unwrap();
    assert_eq!(Some(ready.regions[2].nodes[0].pid), started.pid, "the ready file follows");
    assert_eq!(refused(NodeAction::Start).await, "tokyo-1 is running already");
    assert_eq!(refused(NodeAction::Resume).await, "tokyo-1 is not paused");

    assert_eq!(order(NodeAction::Pause).await.unwrap().state, NodeState::Paused);
    assert!(timeout(A_WHILE, ping(&tokyo.endpoint)).await.is_err(), "it hangs, it does not refuse");
    assert_eq!(refused(NodeAction::Pause).await, "tokyo-1 is paused already");
    assert_eq!(order(NodeAction::Resume).await.unwrap().state, NodeState::Running);
    ping(&tokyo.endpoint).await.unwrap();

    order(NodeAction::Pause).await.unwrap();
    world.stop().await.unwrap(); // a paused one ends as well
    assert!(ping(&tokyo.endpoint).await.is_err());
}

#[tokio::test]
async fn a_node_that_ends_by_itself_is_reported_with_the_end_of_its_log() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::start(options(directory.path()), healthy).await.unwrap();
    let description = world.description();
    let endpoint = description.regions[0].endpoint.strip_prefix("http://").unwrap();
    TcpStream::connect(endpoint).await.unwrap().write_all(b"exit").await.unwrap();
    let failure = world.failure().await;
    assert!(failure.starts_with("dallas-1 ended by itself: exit status: 3; the end of "), "{failure}");
    assert!(failure.ends_with("\n  dallas-1 | the disk is on fire"), "{failure}");
    let start = NodeRequest { action: NodeAction::Start, id: "dallas-1".to_owned() };
    assert_eq!(change_node(description.control, start).await.unwrap().state, NodeState::Running);
    world.stop().await.unwrap();
}

#[tokio::test]
async fn a_world_whose_nodes_do_not_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let mut broken = options(directory.path());
    broken.node_command = ["/bin/sh", "-c", "echo the tape is torn; exit 4"].map(Into::into).into();
    let error = World::start(broken, healthy).await.err().unwrap().to_string();
    assert!(error.contains("-1 ended by itself: exit status: 4"), "{error}");
    assert!(error.ends_with("-1 | the tape is torn"), "{error}");
    assert!(!directory.path().join("ready.json").exists());

    let mut broken = options(directory.path());
    broken.node_command = vec!["/nowhere/tropism".into()];
    let error = World::start(broken, healthy).await.err().unwrap().to_string();
    assert!(error.starts_with("starting dallas-1: "), "{error}");
}

#[tokio::test]
async fn a_node_ends_when_its_parent_does() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::start(options(directory.path()), healthy).await.unwrap();
    let config = directory.path().join("world/nodes/tokyo-1/node.toml");
    world.stop().await.unwrap();

    let command = options(directory.path()).node_command;
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    drop(child.stdin.take());
    assert_eq!(child.wait().await.unwrap().code(), Some(137));
}

#[tokio::test]
async fn links_are_cut_slowed_and_healed_through_the_control_port() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::start(options(directory.path()), healthy).await.unwrap();
    let description = world.description();
    let control = description.control;
    let request = |action, one_way| LinkRequest {
        action,
        a: "tokyo".to_owned(),
        b: "dallas".to_owned(),
        one_way,
        extra_ms: None,
        bytes_per_second: None,
    };
    let from_tokyo = description.places["tokyo"].endpoints["dallas-1"].strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(from_tokyo).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    read_exactly(&mut stream, 4).await;

    let cut = change_link(control, request(LinkAction::Cut, true)).await.unwrap();
    assert_eq!(cut.len(), 1);
    assert_eq!((cut[0].from.as_str(), cut[0].to.as_str(), cut[0].state), ("tokyo", "dallas", LinkState::Cut));
    assert!(cut[0].cut_seconds.unwrap() >= 0.0);
    stream.write_all(b"ping").await.unwrap();
    assert!(timeout(Duration::from_millis(400), stream.read(&mut [0; 4])).await.is_err());

    let all = control::links(control).await.unwrap();
    assert_eq!(all.len(), 6);
    let of = |from: &str, to: &str| all.iter().find(|link| link.from == from && link.to == to).unwrap();
    assert_eq!(of("dallas", "tokyo").state, LinkState::Open);
    assert_eq!(of("dallas", "tokyo").delay_ms, 71.5);
    assert_eq!((of("tokyo", "dallas").client_bytes, of("tokyo", "dallas").peer_bytes), (4, 0));

    let healed = change_link(control, request(LinkAction::Heal, false)).await.unwrap();
    assert!(healed.len() == 2 && healed.iter().all(|link| link.state == LinkState::Open));
    assert!(is_reset(&mut stream).await);
    let slowed = change_link(control, request(LinkAction::Slow, false)).await.unwrap();
    assert!(slowed.iter().all(|link| link.state == LinkState::Slow && link.extra_ms == 250.0));
    world.stop().await.unwrap();
}

#[tokio::test]
async fn bad_requests_are_answered_with_what_would_be_good() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::start(options(directory.path()), healthy).await.unwrap();
    let control = world.description().control;
    let ask = async |line: &str| {
        let mut stream = TcpStream::connect(control).await.unwrap();
        stream.write_all(line.as_bytes()).await.unwrap();
        stream.write_all(b"\n{\"links\":{}}\n").await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let answer = lines.next_line().await.unwrap().unwrap();
        (answer, matches!(lines.next_line().await, Ok(Some(_))))
    };
    let link = |rest: &str| format!("{{\"link\":{{\"a\":\"tokyo\",\"b\":\"dallas\",{rest}}}}}");
    for (request, complaint) in [
        (link("\"action\":\"cut\"").replace("tokyo", "tokio"), "the regions are dallas, frankfurt, tokyo"),
        (link("\"action\":\"cut\"").replace("tokyo", "dallas"), "a link is between two regions"),
        (link("\"action\":\"cut\",\"extra_ms\":1"), "extra_ms and bytes_per_second are for the action slow"),
        (link("\"action\":\"slow\",\"extra_ms\":-1"), "extra_ms -1 is outside 0 to 60000 milliseconds"),
        (link("\"action\":\"slow\",\"bytes_per_second\":5"), "bytes_per_second 5 is below 1000"),
        (
            "{\"node\":{\"action\":\"kill\",\"id\":\"x\"}}".to_owned(),
            "the nodes are dallas-1, frankfurt-1, tokyo-1",
        ),
    ] {
        let (answer, goes_on) = ask(&request).await;
        assert!(answer.starts_with("{\"error\":\"") && answer.contains(complaint), "{request}: {answer}");
        assert!(goes_on, "{request}");
    }
    for (request, complaint) in [
        (link("\"action\":\"burn\""), "unknown variant `burn`"),
        (link("\"action\":\"cut\",\"both\":1"), "unknown field `both`"),
        ("{\"node\":{\"id\":\"tokyo-1\"}}".to_owned(), "missing field `action`"),
        ("GET / HTTP/1.1\r".to_owned(), "is no request"),
        (String::new(), "is no request"),
        ("\u{1}\u{fffd}".repeat(100), "is no request"),
        ("[".repeat(5000), "longer than 4096 bytes"),
    ] {
        let (answer, goes_on) = ask(&request).await;
        assert!(answer.starts_with("{\"error\":\"") && answer.contains(complaint), "{request}: {answer}");
        assert!(answer.len() < 700 && !goes_on, "{request}");
    }
    assert_eq!(control::links(control).await.unwrap().len(), 6);
    world.stop().await.unwrap();
}

#[tokio::test]
async fn a_data_directory_has_one_world_and_outlives_it() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::start(options(directory.path()), healthy).await.unwrap();
    let error = World::start(options(directory.path()), healthy).await.err().unwrap().to_string();
    assert!(error.starts_with("another world is running in "), "{error}");
    assert!(directory.path().join("ready.json").exists(), "the refused one leaves the other's ready file");
    world.stop().await.unwrap();

    let data = directory.path().join("world");
    let secret = fs::read(data.join("cluster.secret")).unwrap();
    let mut other = options(directory.path());
    other.regions = RegionsFile::parse("single.toml", Regions::shipped("single").unwrap()).unwrap();
    let error = World::start(other, healthy).await.err().unwrap().to_string();
    assert!(error.contains("was made with other regions or rules; start over with --fresh"), "{error}");
    let world = World::start(options(directory.path()), healthy).await.unwrap();
    assert_eq!(fs::read(data.join("cluster.secret")).unwrap(), secret);
    world.stop().await.unwrap();

    let mut fresh = options(directory.path());
    fresh.regions = RegionsFile::parse("single.toml", Regions::shipped("single").unwrap()).unwrap();
    fresh.fresh = true;
    let world = World::start(fresh, healthy).await.unwrap();
    assert_ne!(fs::read(data.join("cluster.secret")).unwrap(), secret);
    assert!(!data.join("nodes/tokyo-1").exists());
    world.stop().await.unwrap();

    let mut many = options(directory.path());
    many.nodes_per_region = 6;
    many.fresh = true;
    let error = World::start(many, healthy).await.err().unwrap().to_string();
    assert_eq!(error, "6 nodes per region; this version runs 1 to 5");
}

#[test]
fn only_a_world_s_own_directory_is_taken_or_emptied() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.txt"), "four years").unwrap();
    for fresh in [false, true] {
        let error = WorldDirectory::open(directory.path(), fresh).err().unwrap().to_string();
        assert!(error.contains("is not empty and not a development world"), "{error}");
    }
    fs::write(directory.path().join("tropism-dev-world"), "something else").unwrap();
    let error = WorldDirectory::open(directory.path(), true).err().unwrap().to_string();
    assert!(error.contains("is not what a development world writes there"), "{error}");
    assert!(directory.path().join("thesis.txt").exists());

    let own = directory.path().join("own");
    drop(WorldDirectory::open(&own, false).unwrap());
    std::os::unix::fs::symlink(directory.path(), own.join("link")).unwrap();
    fs::create_dir(own.join("nodes")).unwrap();
    drop(WorldDirectory::open(&own, true).unwrap());
    assert_eq!(fs::read_dir(&own).unwrap().count(), 1, "the marker stays");
    assert!(directory.path().join("thesis.txt").exists(), "links are not followed");
}

#[test]
fn a_world_that_is_gone_is_told_from_one_that_never_was() {
    let directory = tempfile::tempdir().unwrap();
    let state: PathBuf = directory.path().join("state");
    let error = find(None, None, Some(state.clone())).unwrap_err().to_string();
    assert_eq!(error, "no world was started here; `tropism dev` starts a world");

    let ready = directory.path().join("ready.json");
    let control = {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    Description { regions: Vec::new(), places: Default::default(), control }.write(&ready).unwrap();
    remember(&state, &ready).unwrap();
    let error = find(None, None, Some(state)).unwrap_err().to_string();
    assert!(error.ends_with("is not running any more; `tropism dev` starts a world"), "{error}");
    fs::write(&ready, "{}").unwrap();
    let error = find(Some(&ready), None, None).unwrap_err().to_string();
    assert!(error.contains("is no ready file: missing field `regions`"), "{error}");
}

#[tokio::test]
async fn the_alarm_rings_in_order_and_not_before() {
    let alarm = Arc::new(Alarm::start().unwrap());
    let begun = Instant::now();
    let rings = [30_u64, 10, 20].map(|ms| {
        let alarm = alarm.clone();
        tokio::spawn(async move {
            alarm.at(begun + Duration::from_millis(ms)).await;
            (Instant::now(), ms)
        })
    });
    for ring in rings {
        let (at, ms) = ring.await.unwrap();
        assert!(at >= begun + Duration::from_millis(ms));
    }
    sleep(Duration::ZERO).await;
    alarm.at(begun).await; // what is past is now
}
