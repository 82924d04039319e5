//! Nodes in this process that agree on where scopes are.

use tropism_wire::v1::placement_service_client::PlacementServiceClient;
use tropism_wire::v1::scope_service_client::ScopeServiceClient;
use tropism_wire::{FORWARDED_METADATA, PROOF_METADATA};

use super::*;

const SCOPE: &str = "cache";
/// One world at a time: elections and deadlines of several would take the time of each other.
static ONE_WORLD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Where the nodes live: one in each region.
struct World {
    directory: tempfile::TempDir,
    names: Vec<&'static str>,
    clients: Vec<SocketAddr>,
    peers: Vec<SocketAddr>,
}

struct Node {
    region: &'static str,
    channel: Channel,
    stop: watch::Sender<bool>,
    node: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl World {
    fn new(names: &[&'static str]) -> Self {
        Self::with(names, "[[rule]]\nname = \"everything\"\npattern = \"**\"\nkind = \"register\"\n", "")
    }

    /// With these rules, and more lines in the nodes' configurations.
    fn with(names: &[&'static str], rules: &str, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // A port that one world gave back may be the next one's: they must not take each other for one.
        let cluster = format!("test-{:x}", rand::random::<u64>());
        let region = |name: &&str| format!(r#"{{ name = "{name}", place = "{name}" }}"#);
        let regions: Vec<String> = names.iter().map(region).collect();
        let mut rtt = Vec::new();
        for (at, a) in names.iter().enumerate() {
            rtt.extend(names[..at].iter().map(|b| format!(r#"{{ between = ["{a}", "{b}"], ms = 1 }}"#)));
        }
        let file = format!("region = [{}]\nrtt = [{}]\n{rules}", regions.join(", "), rtt.join(", "));
        fs::write(directory.path().join("regions.toml"), file).unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "0123456789abcdef").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let clients: Vec<SocketAddr> = names.iter().map(|_| free_address()).collect();
        let peers: Vec<SocketAddr> = names.iter().map(|_| free_address()).collect();
        for (at, name) in names.iter().enumerate() {
            let other = |(other, address): (&&str, &SocketAddr)| {
                format!(r#"{{ id = "{other}-1", region = "{other}", address = "{address}" }}"#)
            };
            let others = names.iter().zip(&peers).filter(|(other, _)| *other != name).map(other);
            let config = format!(
                r#"
                node = {{ id = "{name}-1", region = "{name}", data_dir = "data-{name}" }}
                listen = {{ client = "{}", peer = "{}" }}
                cluster = {{ id = "{cluster}", secret_file = "secret", regions_file = "regions.toml" }}
                peer = [{}]
                {more}
                "#,
                clients[at],
                peers[at],
                others.collect::<Vec<_>>().join(", "),
            );
            fs::write(directory.path().join(format!("{name}.toml")), config).unwrap();
        }
        Self { directory, names: names.to_vec(), clients, peers }
    }

    fn start(&self, at: usize) -> Node {
        let region = self.names[at];
        let checked = NodeConfig::check(&self.directory.path().join(format!("{region}.toml"))).unwrap();
        let (stop, stopped) = watch::channel(false);
        let node = tokio::task::spawn_blocking(move || run(checked, Start::default(), stopped));
        let channel = Endpoint::from_shared(format!("http://{}", self.clients[at])).unwrap().connect_lazy();
        Node { region, channel, stop, node }
    }

    async fn all(&self) -> Vec<Node> {
        let nodes: Vec<Node> = (0..self.names.len()).map(|at| self.start(at)).collect();
        for node in &nodes {
            node.until_decided().await;
        }
        nodes
    }

    /// The disk of a node that does not run is gone.
    fn lose(&self, at: usize) {
        fs::remove_dir_all(self.directory.path().join(format!("data-{}", self.names[at]))).unwrap();
    }
}

/// Tries until it works.
async fn until<T>(what: &str, mut step: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let begun = Instant::now();
    loop {
        match step().await {
            Ok(done) => return done,
            Err(status) if begun.elapsed() > Duration::from_secs(60) => panic!("{what}: {status:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl Node {
    fn scopes(&self) -> ScopeServiceClient<Channel> {
        ScopeServiceClient::new(self.channel.clone())
    }

    /// Until the directory can be changed from here.
    async fn until_decided(&self) {
        let created = async || {
            self.scopes().create_scope(v1::CreateScopeRequest { name: "never-dropped".into() }).await?;
            let status = self.status().await?;
            let view = status.directory.unwrap_or_default();
            if view.informed && view.waiting.is_empty() {
                Ok(())
            } else {
                Err(Status::unknown(format!("{view:?}")))
            }
        };
        until("the directory", created).await;
    }

    async fn status(&self) -> Result<v1::GetStatusResponse, Status> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        Ok(client.get_status(v1::GetStatusRequest {}).await?.into_inner())
    }

    async fn put(&self, key: &str, content: &'static str) -> Result<(), Status> {
        let content = Bytes::from_static(content.as_bytes());
        let register = v1::Register { content, content_type: String::new() };
        let request = v1::PutRequest {
            scope: SCOPE.into(),
            key: key.into(),
            value: Some(v1::Value { value: Some(v1::value::Value::Register(register)) }),
            ..Default::default()
        };
        StateServiceClient::new(self.channel.clone()).put(request).await.map(|_| ())
    }

    /// The content of a key; `None`: there is none.
    async fn get(&self, key: &str) -> Result<Option<String>, Status> {
        let request = v1::GetRequest { scope: SCOPE.into(), key: key.into(), ..Default::default() };
        let response = StateServiceClient::new(self.channel.clone()).get(request).await?.into_inner();
        Ok(response.entry.and_then(|entry| entry.value).map(|value| match value.value {
            Some(v1::value::Value::Register(register)) => {
                String::from_utf8(register.content.to_vec()).unwrap()
            }
            other => panic!("{other:?}"),
        }))
    }

    /// The region that answers about a key.
    async fn answering(&self, key: &str) -> String {
        let request = v1::GetRequest { scope: SCOPE.into(), key: key.into(), ..Default::default() };
        let response = StateServiceClient::new(self.channel.clone()).get(request).await.unwrap();
        response.into_inner().answer.unwrap().region
    }

    async fn until_it_has(&self, key: &str, content: &str) {
        until(self.region, async || match self.get(key).await? {
            Some(found) if found == content => Ok(()),
            other => Err(Status::unknown(format!("{other:?}"))),
        })
        .await;
    }

    async fn scope(&self) -> Result<v1::Scope, Status> {
        let answer = self.scopes().get_scope(v1::GetScopeRequest { name: SCOPE.into() }).await?;
        Ok(answer.into_inner().scope.unwrap())
    }

    async fn move_to(&self, regions: &[&str]) -> Result<v1::Scope, Status> {
        let regions = regions.iter().map(|region| (*region).to_owned()).collect();
        let request = v1::MoveScopeRequest { name: SCOPE.into(), regions, stay: false };
        Ok(self.scopes().move_scope(request).await?.into_inner().scope.unwrap())
    }

    async fn until_served_by(&self, regions: &[&str]) -> v1::Scope {
        until(self.region, async || {
            let scope = self.scope().await?;
            let there = scope.goal.is_empty() && scope.learners.is_empty() && scope.leaving.is_empty();
            if there && scope.serving == regions {
                Ok(scope)
            } else {
                Err(Status::unknown(format!("{scope:?}")))
            }
        })
        .await
    }

    async fn drop_scope(&self, incarnation: u64) -> Result<u64, Status> {
        let request = v1::DropScopeRequest { name: SCOPE.into(), incarnation };
        Ok(self.scopes().drop_scope(request).await?.into_inner().epoch)
    }

    async fn create(&self) -> Result<v1::Scope, Status> {
        let request = v1::CreateScopeRequest { name: SCOPE.into() };
        Ok(self.scopes().create_scope(request).await?.into_inner().scope.unwrap())
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.node.await.unwrap().unwrap();
    }
}

fn reason(status: &Status) -> String {
    Problem::from_status(status).map(|problem| format!("{:?}", problem.reason())).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_moves_while_it_is_used_and_is_served_where_it_is() {
    let _alone = ONE_WORLD.lock().await;
    let world = World::new(&["dallas", "frankfurt", "tokyo"]);
    let nodes = world.all().await;
    let [dallas, frankfurt, tokyo] = &nodes[..] else { panic!() };
    dallas.put("home", "from dallas").await.unwrap();
    let mut watched = {
        let request = v1::WatchRequest { scope: SCOPE.into(), initial_values: true, ..Default::default() };
        StateServiceClient::new(dallas.channel.clone()).watch(request).await.unwrap().into_inner()
    };
    let moving = dallas.move_to(&["tokyo"]).await.unwrap();
    assert_eq!((moving.goal, moving.implied), (vec!["tokyo".to_owned()], false));
    // No write is refused, neither at the fence nor when the scope has gone: whoever is asked asks where it is.
    let mut written = 0;
    loop {
        frankfurt.put(&format!("k{written}"), "while it moves").await.unwrap();
        dallas.get(&format!("k{written}")).await.unwrap();
        written += 1;
        let scope = frankfurt.scope().await.unwrap();
        if scope.serving == ["tokyo"] && scope.leaving.is_empty() {
            break;
        }
    }
    let scope = tokyo.until_served_by(&["tokyo"]).await;
    assert!(scope.epoch >= 4, "{scope:?}, {written} writes");
    frankfurt.put(&format!("k{written}"), "after it has moved").await.unwrap();
    for key in 0..=written {
        assert!(tokyo.get(&format!("k{key}")).await.unwrap().is_some(), "k{key} of {written}");
    }
    assert_eq!(dallas.get("home").await.unwrap().as_deref(), Some("from dallas"));
    assert_eq!(dallas.answering("home").await, "tokyo", "the answer says whose it is");
    let end = loop {
        match watched.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the watch ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&end), "NotServedHere", "the watch goes on elsewhere: {end:?}");
    let resume = Problem::from_status(&end).unwrap().fact_bytes(RESUME_TOKEN).unwrap();
    assert!(!resume.is_empty());
    let mut watched = {
        let request =
            v1::WatchRequest { scope: SCOPE.into(), resume_token: resume.into(), ..Default::default() };
        StateServiceClient::new(dallas.channel.clone()).watch(request).await.unwrap().into_inner()
    };

    // And back: what was written meanwhile comes along.
    tokyo.put("home", "from tokyo").await.unwrap();
    let told = |event: &v1::WatchEvent| event.entry.as_ref().is_some_and(|entry| entry.key == "home");
    while !watched.message().await.unwrap().unwrap().events.iter().any(told) {}
    frankfurt.move_to(&["dallas", "tokyo"]).await.unwrap();
    dallas.until_served_by(&["dallas", "tokyo"]).await;
    assert_eq!(dallas.get("home").await.unwrap().as_deref(), Some("from tokyo"));
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_world_that_lacks_a_node_is_served_before_its_directory_begins() {
    let _alone = ONE_WORLD.lock().await;
    let world = World::new(&["dallas", "frankfurt", "tokyo"]);
    let (dallas, frankfurt) = (world.start(0), world.start(1));
    until("dallas", async || dallas.put("home", "two of three").await).await;
    frankfurt.until_it_has("home", "two of three").await;
    let refused = dallas.drop_scope(0).await.unwrap_err();
    assert!(["DirectoryUnavailable", "OutcomeUnknown"].contains(&&*reason(&refused)), "{refused:?}");
    let tokyo = world.start(2);
    tokyo.until_decided().await;
    tokyo.until_it_has("home", "two of three").await;
    for node in [dallas, frankfurt, tokyo] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_scope_is_gone_everywhere_until_it_is_created_anew() {
    let _alone = ONE_WORLD.lock().await;
    let world = World::new(&["dallas", "frankfurt", "tokyo"]);
    let mut nodes = world.all().await;
    nodes[0].put("home", "old").await.unwrap();
    nodes[2].until_it_has("home", "old").await;
    let wrong = nodes[0].drop_scope(1).await.unwrap_err();
    assert_eq!(reason(&wrong), "VersionMismatch");
    let epoch = nodes[1].drop_scope(0).await.unwrap();
    assert_eq!(nodes[1].drop_scope(0).await.unwrap(), epoch, "once more changes nothing");
    for node in &nodes {
        until(node.region, async || match node.get("home").await {
            Err(status) if reason(&status) == "ScopeDropped" => Ok(()),
            other => Err(Status::unknown(format!("{other:?}"))),
        })
        .await;
        assert_eq!(reason(&node.put("home", "x").await.unwrap_err()), "ScopeDropped");
        assert_eq!(reason(&node.scope().await.unwrap_err()), "ScopeNotFound");
    }
    // A node remembers it through a restart, whoever it can reach.
    for node in nodes.drain(..) {
        node.stop().await;
    }
    let alone = world.start(2);
    let refused = until("tokyo", async || match alone.get("home").await {
        Err(status) if status.code() == Code::Unavailable => Err(status),
        other => Ok(other),
    });
    assert_eq!(reason(&refused.await.unwrap_err()), "ScopeDropped");
    alone.stop().await;

    let nodes = world.all().await;
    let scope = nodes[0].create().await.unwrap();
    assert_eq!((scope.incarnation, scope.serving, scope.goal.len()), (1, vec!["dallas".to_owned()], 3));
    assert_eq!(nodes[0].get("home").await.unwrap(), None, "another scope of the same name");
    nodes[0].put("home", "new").await.unwrap();
    nodes[2].until_it_has("home", "new").await;
    assert_eq!(
        reason(&nodes[2].drop_scope(0).await.unwrap_err()),
        "VersionMismatch",
        "the one before was meant"
    );
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_of_a_record_changes_and_everything_else_goes_on() {
    let _alone = ONE_WORLD.lock().await;
    let world = World::new(&["dallas", "frankfurt", "tokyo"]);
    let mut nodes = world.all().await;
    let (tokyo, frankfurt) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let dallas = nodes.pop().unwrap();
    frankfurt.stop().await;
    tokyo.stop().await;
    dallas.put("home", "alone").await.unwrap();
    let refused = dallas.drop_scope(0).await.unwrap_err();
    assert!(["DirectoryUnavailable", "OutcomeUnknown"].contains(&&*reason(&refused)), "{refused:?}");
    dallas.put("home", "still alone").await.unwrap();
    let frankfurt = world.start(1);
    until("a majority", async || dallas.drop_scope(0).await).await;
    let tokyo = world.start(2);
    until("tokyo", async || match tokyo.get("home").await {
        Err(status) if reason(&status) == "ScopeDropped" => Ok(()),
        other => Err(Status::unknown(format!("{other:?}"))),
    })
    .await;
    for node in [dallas, frankfurt, tokyo] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_lost_its_disk_is_informed_and_votes_again() {
    let _alone = ONE_WORLD.lock().await;
    let world = World::new(&["dallas", "frankfurt", "tokyo"]);
    let mut nodes = world.all().await;
    nodes[0].put("home", "x").await.unwrap();
    nodes[0].drop_scope(0).await.unwrap();
    let tokyo = nodes.pop().unwrap();
    nodes.remove(0).stop().await;
    world.lose(0);
    let dallas = world.start(0);
    dallas.until_decided().await;
    assert_eq!(reason(&dallas.get("home").await.unwrap_err()), "ScopeDropped", "it knows again");
    // Two of three: the one that lost its disk is needed.
    tokyo.stop().await;
    until("two of three", async || dallas.create().await).await;
    let frankfurt = nodes.pop().unwrap();
    assert_eq!(frankfurt.status().await.unwrap().directory.unwrap().voters.len(), 3);
    for node in [dallas, frankfurt] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_whose_only_voter_lost_its_disk_begins_anew_with_what_the_others_know() {
    let _alone = ONE_WORLD.lock().await;
    let world = World::new(&["dallas", "frankfurt"]);
    let mut nodes = world.all().await;
    nodes[0].drop_scope(0).await.unwrap();
    until("frankfurt", async || match nodes[1].get("home").await {
        Err(status) if reason(&status) == "ScopeDropped" => Ok(()),
        other => Err(Status::unknown(format!("{other:?}"))),
    })
    .await;
    nodes.remove(0).stop().await;
    world.lose(0);
    let dallas = world.start(0);
    // The first answer that it gives at all: it serves nobody before it knows what the other does.
    let first = until("dallas", async || match dallas.get("home").await {
        Err(status) if status.code() == Code::Unavailable => Err(status),
        other => Ok(other),
    });
    assert_eq!(reason(&first.await.unwrap_err()), "ScopeDropped");
    dallas.until_decided().await;
    assert_eq!(reason(&dallas.get("home").await.unwrap_err()), "ScopeDropped", "it was told by the other");
    let scope = dallas.create().await.unwrap();
    assert_eq!(scope.incarnation, 1, "the epochs go on");
    nodes[0].until_served_by(&["dallas", "frankfurt"]).await;
    for node in [dallas, nodes.remove(0)] {
        node.stop().await;
    }
}

const FOLLOWING: &str = r#"
[[rule]]
name = "follow"
pattern = "**"
kind = "register"
mode = "follow"
regions = ["dallas"]
min_regions = 1
max_regions = 1
"#;

async fn explained(node: &Node) -> v1::ExplainScopeResponse {
    let mut client = PlacementServiceClient::new(node.channel.clone());
    client.explain_scope(v1::ExplainScopeRequest { name: SCOPE.into() }).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_goes_where_it_is_used_and_everybody_can_see_why() {
    let _alone = ONE_WORLD.lock().await;
    let world = World::with(&["dallas", "frankfurt", "tokyo"], FOLLOWING, "placement = { pace = 300 }");
    let nodes = world.all().await;
    let [dallas, frankfurt, tokyo] = &nodes[..] else { panic!() };
    // It is in dallas alone, and used from tokyo alone.
    let mut written = 0;
    loop {
        tokyo.put(&format!("k{written}"), "from tokyo").await.unwrap();
        written += 1;
        let why = explained(frankfurt).await;
        if why.current.unwrap().regions == ["tokyo"] {
            break;
        }
        assert!(written < 5_000, "{:?} {:?}", why.blockers, why.uses);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokyo.until_served_by(&["tokyo"]).await;
    let why = explained(dallas).await;
    assert_eq!((why.steward.as_str(), why.pace, why.mode()), ("tokyo-1", 300, v1::PlacementMode::Follow));
    for key in 0..written {
        assert!(tokyo.get(&format!("k{key}")).await.unwrap().is_some(), "k{key} of {written}");
    }
    let mut client = PlacementServiceClient::new(dallas.channel.clone());
    let events = client.list_placement_events(v1::ListPlacementEventsRequest { after: 0 }).await.unwrap();
    let events = events.into_inner().events;
    let kinds: Vec<v1::PlacementEventKind> = events.iter().map(v1::PlacementEvent::kind).collect();
    for kind in [v1::PlacementEventKind::Decided, v1::PlacementEventKind::Settled] {
        assert!(kinds.contains(&kind), "{events:?}");
    }
    let decided = events.iter().find(|event| event.kind() == v1::PlacementEventKind::Decided).unwrap();
    assert!(decided.message.starts_with("from dallas to tokyo; used from tokyo"), "{}", decided.message);
    let last = events.last().unwrap().number;
    let none = client.list_placement_events(v1::ListPlacementEventsRequest { after: last }).await.unwrap();
    assert!(none.into_inner().events.iter().all(|event| event.number > last));
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_of_the_cluster_call_at_the_port_of_the_links_and_a_scope_that_nobody_serves_is_refused() {
    let _alone = ONE_WORLD.lock().await;
    let rules = FOLLOWING
        .replace("follow\"\nregions", "fixed\"\nregions")
        .replace("min_regions = 1\nmax_regions = 1\n", "");
    let world = World::with(&["dallas", "frankfurt", "tokyo"], &rules, "");
    let mut nodes = world.all().await;
    nodes[2].put("home", "sweet").await.unwrap();
    let request = || v1::GetRequest { scope: SCOPE.into(), key: "home".into(), ..Default::default() };
    let links = Endpoint::from_shared(format!("http://{}", world.peers[0])).unwrap().connect_lazy();
    let mut stranger = StateServiceClient::new(links);
    assert_eq!(reason(&stranger.get(request()).await.unwrap_err()), "BadProof");
    let mut forged = Request::new(request());
    forged.metadata_mut().insert(FORWARDED_METADATA, "tokyo-1".parse().unwrap());
    forged.metadata_mut().insert(PROOF_METADATA, "00".repeat(32).parse().unwrap());
    assert_eq!(reason(&stranger.get(forged).await.unwrap_err()), "BadProof");
    // What says that it was forwarded is forwarded no further.
    let mut forwarded = Request::new(request());
    forwarded.metadata_mut().insert(FORWARDED_METADATA, "tokyo-1".parse().unwrap());
    let refused = StateServiceClient::new(nodes[1].channel.clone()).get(forwarded).await.unwrap_err();
    assert_eq!(reason(&refused), "NotServedHere");
    nodes.remove(0).stop().await;
    let refused = until("tokyo", async || match nodes[1].get("home").await {
        Err(status) if reason(&status) == "NotServedHere" => Ok(status),
        other => Err(Status::unknown(format!("{other:?}"))),
    });
    assert!(refused.await.message().contains("dallas"));
    for node in nodes {
        node.stop().await;
    }
}

/// Whether any file below a directory has these bytes in it.
fn somewhere_below(directory: &Path, wanted: &[u8]) -> bool {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().any(|path| match path.is_dir() {
        true => somewhere_below(&path, wanted),
        false => fs::read(&path).unwrap().windows(wanted.len()).any(|part| part == wanted),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_written_to_disk_in_allowed_regions_only_whoever_is_asked_and_wherever_they_move() {
    let _alone = ONE_WORLD.lock().await;
    let names = ["r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9"];
    let rules = r#"
        [[rule]]
        name = "kept"
        pattern = "cache"
        kind = "register"
        mode = "follow"
        allowed = ["r0", "r1", "r2"]
        regions = ["r0"]
        min_regions = 1
        max_regions = 2
        [[rule]]
        name = "rest"
        pattern = "**"
        kind = "register"
    "#;
    let world = World::with(&names, rules, "");
    let nodes = world.all().await;
    // Too random to be packed: it stands in a file as it is.
    let tag: &'static str = Box::leak(format!("{:032x}", rand::random::<u128>()).into_boxed_str());
    for (goal, round) in [(&["r0"][..], 'a'), (&["r1"], 'b'), (&["r1", "r2"], 'c'), (&["r2"], 'd')] {
        if round != 'a' {
            nodes[9].move_to(goal).await.unwrap();
            nodes[9].until_served_by(goal).await;
        }
        for (at, node) in nodes.iter().enumerate() {
            let key = format!("{round}{at}");
            node.put(&key, tag).await.unwrap();
            let found = node.get(&key).await.unwrap();
            assert!(found.as_deref() == Some(tag) || goal.len() > 1, "{key}"); // of two regions one may be behind
        }
        let request = v1::ScanRequest { scope: SCOPE.into(), ..Default::default() };
        let mut scan =
            StateServiceClient::new(nodes[7].channel.clone()).scan(request).await.unwrap().into_inner();
        let mut found = 0;
        while let Some(message) = scan.message().await.unwrap() {
            found += message.entries.len();
        }
        assert!(found >= 10, "{found}");
    }
    let refused = nodes[3].move_to(&["r3"]).await.unwrap_err();
    assert_eq!(reason(&refused), "PlacementRefused");
    for node in nodes {
        node.stop().await;
    }
    let has =
        |name: &str| somewhere_below(&world.directory.path().join(format!("data-{name}")), tag.as_bytes());
    assert!(has("r2"), "what is there is found");
    let elsewhere: Vec<&str> = names.into_iter().skip(3).filter(|name| has(name)).collect();
    assert!(elsewhere.is_empty(), "values in {elsewhere:?}");
}
