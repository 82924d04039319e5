//! Two nodes in this process, one of which finds that its store must not be served.

use std::path::PathBuf;

use super::*;

/// Two regions, and a rule for each alone.
const REGIONS: &str = r#"
region = [{ name = "here", place = "Here" }, { name = "there", place = "There" }]
rtt = [{ between = ["here", "there"], ms = 10 }]
[[rule]]
name = "mine"
pattern = "mine/**"
kind = "register"
regions = ["there"]
[[rule]]
name = "everything"
pattern = "**"
kind = "register"
"#;

/// Where two nodes live, whether they run or not.
struct Pair {
    directory: tempfile::TempDir,
    addresses: [(SocketAddr, SocketAddr); 2],
}

const NAMES: [&str; 2] = ["here", "there"];

/// One of them, running.
struct Running {
    channel: Channel,
    stop: watch::Sender<bool>,
    node: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Pair {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("regions.toml"), REGIONS).unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "0123456789abcdef").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let pair = Self { directory, addresses: [(); 2].map(|()| (free_address(), free_address())) };
        for (at, name) in NAMES.iter().enumerate() {
            let (client, peer) = pair.addresses[at];
            let other = 1 - at;
            let config = format!(
                r#"
                node = {{ id = "{name}-1", region = "{name}", data_dir = "data-{name}" }}
                listen = {{ client = "{client}", peer = "{peer}" }}
                cluster = {{ id = "test", secret_file = "secret", regions_file = "regions.toml" }}
                peer = [{{ id = "{0}-1", region = "{0}", address = "{1}" }}]
                "#,
                NAMES[other], pair.addresses[other].1
            );
            fs::write(pair.file(&format!("{name}.toml")), config).unwrap();
        }
        pair
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn start(&self, at: usize, start: Start) -> Running {
        let checked = NodeConfig::check(&self.file(&format!("{}.toml", NAMES[at]))).unwrap();
        let (stop, stopped) = watch::channel(false);
        let node = tokio::task::spawn_blocking(move || run(checked, start, stopped));
        let channel =
            Endpoint::from_shared(format!("http://{}", self.addresses[at].0)).unwrap().connect_lazy();
        let running = Running { channel, stop, node };
        while running.status().await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running
    }
}

impl Running {
    async fn status(&self) -> Option<v1::NodeStatus> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        client.get_status(v1::GetStatusRequest {}).await.ok()?.into_inner().node
    }

    async fn until_it_serves(&self) {
        while self.status().await.is_none_or(|status| status.state() != v1::NodeState::Serving) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn healthy(&self) -> bool {
        let asked = HealthClient::new(self.channel.clone()).check(HealthCheckRequest::default()).await;
        asked.unwrap().into_inner().status == i32::from(ServingStatus::Serving)
    }

    async fn put(&self, scope: &str, key: &str, regions: u32) -> Result<(), Status> {
        let register = v1::Register { content: Bytes::from_static(b"v"), content_type: String::new() };
        let durability = v1::Durability { level: v1::DurabilityLevel::Regions.into(), regions };
        let request = v1::PutRequest {
            scope: scope.into(),
            key: key.into(),
            value: Some(v1::Value { value: Some(v1::value::Value::Register(register)) }),
            options: Some(v1::WriteOptions { durability: Some(durability), ..Default::default() }),
            ..Default::default()
        };
        StateServiceClient::new(self.channel.clone()).put(request).await.map(|_| ())
    }

    async fn get(&self, scope: &str, key: &str) -> Result<bool, Status> {
        let request = v1::GetRequest { scope: scope.into(), key: key.into(), ..Default::default() };
        let answer = StateServiceClient::new(self.channel.clone()).get(request).await?;
        Ok(answer.into_inner().entry.is_some())
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.node.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_which_nothing_says_that_it_is_whole_is_set_aside_and_filled_by_the_peer_and_itself() {
    let pair = Pair::new();
    let here = pair.start(0, Start::default()).await;
    assert_eq!(here.status().await.unwrap().state(), v1::NodeState::Rebuilding, "it knows of no peer yet");
    assert!(!here.healthy().await);
    let there = pair.start(1, Start::default()).await;
    here.until_it_serves().await;
    there.until_it_serves().await;
    there.put("cache", "shared", 2).await.unwrap();
    there.put("mine/own", "k", 1).await.unwrap();
    here.stop().await;
    there.put("cache", "only-there", 1).await.unwrap();
    there.stop().await;

    fs::remove_file(pair.file("data-there").join("witness")).unwrap();
    let there = pair.start(1, Start::default()).await;
    let status = there.status().await.unwrap();
    assert_eq!(status.state(), v1::NodeState::Rebuilding);
    let rebuild = status.rebuild.unwrap();
    assert!(rebuild.reason.contains("without a witness"), "{rebuild:?}");
    assert_eq!(rebuild.unvouched, ["everything"]);
    assert!(!there.healthy().await);
    for refused in [there.get("cache", "shared").await.map(|_| ()), there.put("cache", "k", 1).await] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, Reason::NotReady));
        assert!(refused.message().contains("without a witness"), "{}", refused.message());
    }

    let here = pair.start(0, Start::default()).await;
    there.until_it_serves().await;
    while !there.healthy().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(there.get("cache", "shared").await.unwrap(), "from the peer");
    assert!(there.get("cache", "only-there").await.unwrap(), "from what was set aside");
    while !here.get("cache", "only-there").await.unwrap() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lost = there.get("mine/own", "k").await.unwrap_err();
    assert_eq!((lost.code(), reason(&lost)), (Code::DataLoss, Reason::StoreLost));
    there.put("cache", "goes-on", 2).await.unwrap();
    there.stop().await;

    let there = pair.start(1, Start { accept_loss: true, ..Start::default() }).await;
    there.until_it_serves().await;
    there.get("mine/own", "k").await.unwrap();
    there.stop().await;
    let there = pair.start(1, Start::default()).await;
    there.until_it_serves().await;
    there.get("mine/own", "k").await.unwrap();
    there.stop().await;
    here.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_and_an_old_copy_are_set_aside() {
    let pair = Pair::new();
    let (here, there) = (pair.start(0, Start::default()).await, pair.start(1, Start::default()).await);
    here.until_it_serves().await;
    there.until_it_serves().await;
    there.put("cache", "a", 2).await.unwrap();
    there.stop().await;
    let (data, copy) = (pair.file("data-there"), pair.file("copy"));
    copy_all(&data, &copy);
    let there = pair.start(1, Start::default()).await;
    there.until_it_serves().await;
    there.put("cache", "b", 2).await.unwrap();
    there.stop().await;

    // The whole directory as it was, witness included: only the peer knows.
    fs::remove_dir_all(&data).unwrap();
    copy_all(&copy, &data);
    let there = pair.start(1, Start::default()).await;
    let aside = || {
        let names = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with("set-aside-")).count()
    };
    while aside() < 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    there.until_it_serves().await;
    assert!(there.get("cache", "a").await.unwrap() && there.get("cache", "b").await.unwrap());
    there.stop().await;

    fs::remove_file(data.join("store/version")).unwrap();
    let there = pair.start(1, Start::default()).await;
    there.until_it_serves().await;
    assert_eq!(aside(), 2);
    assert!(there.get("cache", "a").await.unwrap() && there.get("cache", "b").await.unwrap());
    there.stop().await;

    // What an operator gave up was of the store that was there: the one in its place is filled like any other.
    fs::remove_file(data.join("store/version")).unwrap();
    let there = pair.start(1, Start { accept_loss: true, ..Start::default() }).await;
    there.until_it_serves().await;
    assert!(there.get("cache", "a").await.unwrap() && there.get("cache", "b").await.unwrap());
    there.stop().await;
    here.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_peers_does_not_set_its_store_aside() {
    let pair = Pair::new();
    let config = fs::read_to_string(pair.file("here.toml")).unwrap();
    let alone: String = config
        .lines()
        .filter(|line| !line.contains("peer = ["))
        .fold(String::new(), |text, line| text + line + "\n");
    fs::write(pair.file("here.toml"), alone).unwrap();
    let here = pair.start(0, Start::default()).await;
    here.until_it_serves().await;
    here.put("cache", "a", 1).await.unwrap();
    here.stop().await;
    fs::remove_file(pair.file("data-here").join("witness")).unwrap();
    let checked = NodeConfig::check(&pair.file("here.toml")).unwrap();
    let (_stop, stopped) = watch::channel(false);
    let ended = tokio::task::spawn_blocking(move || run(checked, Start::default(), stopped)).await.unwrap();
    assert!(matches!(ended, Err(ServeError::Open(OpenError::WitnessLost { .. }))), "{ended:?}");
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
