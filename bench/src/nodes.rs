//! The program under test as its users run it: `tropism serve` and `tropism dev` in processes of their own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tropism_client::{Calls, v1};

/// How long a node may take until it serves.
const START: Duration = Duration::from_secs(120);

/// A process that is killed when this is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).spawn().with_context(|| format!("{command:?}"))?))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(mut self) -> Result<()> {
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)?;
        }
        ensure!(self.0.wait()?.success(), "a process did not end cleanly");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok(); // it may have ended
        self.0.wait().ok();
    }
}

/// A port that nobody uses at the moment.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The program, built beside this one.
pub(crate) fn program() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "tropism-cli", "--bin", "tropism"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    ensure!(build.status().context("building tropism")?.success(), "tropism does not build");
    Ok(std::env::current_exe()?.with_file_name("tropism"))
}

/// Nodes that know each other, one a region, without any delay between them.
pub(crate) struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    ports: Vec<(u16, u16)>,
}

impl Cluster {
    /// Prepares `nodes` nodes in an empty directory; none is started.
    pub(crate) fn new(program: &Path, dir: &Path, nodes: usize) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let ports = (0..nodes).map(|_| Ok((free_port()?, free_port()?))).collect::<Result<Vec<_>>>()?;
        fs::write(dir.join("regions.toml"), regions(nodes, 1.0))?;
        let secret = dir.join("secret");
        fs::write(&secret, "only measured, never kept")?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        for node in 0..nodes {
            let name = name(node);
            let (client, peer) = ports[node];
            let mut text = format!(
                "[node]\nid = \"{name}-1\"\nregion = \"{name}\"\ndata_dir = \"{name}\"\n\
                 [listen]\nclient = \"127.0.0.1:{client}\"\npeer = \"127.0.0.1:{peer}\"\n\
                 [cluster]\nid = \"bench\"\nsecret_file = \"secret\"\nregions_file = \"regions.toml\"\n\
                 [telemetry]\nlog = \"warn\"\n"
            );
            for (other, (_, peer)) in ports.iter().enumerate().filter(|(other, _)| *other != node) {
                let other = self::name(other);
                text += &format!(
                    "[[peer]]\nid = \"{other}-1\"\nregion = \"{other}\"\naddress = \"127.0.0.1:{peer}\"\n"
                );
            }
            fs::write(dir.join(format!("{name}.toml")), text)?;
        }
        Ok(Self { program: program.to_owned(), dir: dir.to_owned(), ports })
    }

    /// Where a node serves clients.
    pub(crate) fn endpoint(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[node].0)
    }

    /// Starts a node and waits until it serves; says how long that took.
    pub(crate) async fn start(&self, node: usize) -> Result<(Process, Duration)> {
        let name = name(node);
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
        let mut command = Command::new(&self.program);
        // What is measured begins alone, and is read while it is filled.
        command.arg("serve").arg("--accept-loss");
        command.arg("--config").arg(self.dir.join(format!("{name}.toml")));
        command.stdout(log.try_clone()?).stderr(log);
        let start = Instant::now();
        let process = Process::start(&mut command)?;
        while start.elapsed() < START {
            if status(&self.endpoint(node)).await.is_ok() {
                return Ok((process, start.elapsed()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("{name} does not serve; see {}", self.dir.join(format!("{name}.log")).display());
    }
}

/// A node's status, in one attempt.
pub(crate) async fn status(endpoint: &str) -> Result<v1::GetStatusResponse> {
    use v1::cluster_service_client::ClusterServiceClient;
    let mut client = ClusterServiceClient::connect(endpoint.to_owned()).await?;
    Ok(client.get_status(v1::GetStatusRequest::default()).await?.into_inner())
}

/// A development world with delays, as `tropism dev` runs it.
pub(crate) struct World {
    program: PathBuf,
    ready: PathBuf,
    description: Value,
    process: Option<Process>,
}

impl World {
    /// Two regions with this round trip.
    pub(crate) async fn start(program: &Path, dir: &Path, round_trip_ms: f64) -> Result<Self> {
        Self::of(program, dir, 2, round_trip_ms).await
    }

    /// So many regions, up to three, with this round trip between all.
    pub(crate) async fn of(program: &Path, dir: &Path, count: usize, round_trip_ms: f64) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (file, ready) = (dir.join("regions.toml"), dir.join("ready.json"));
        fs::write(&file, regions(count, round_trip_ms))?;
        let log = File::create(dir.join("world.log"))?;
        let mut command = Command::new(program);
        command.arg("dev").arg("--regions").arg(&file).arg("--data").arg(dir.join("world"));
        command.arg("--ready-file").arg(&ready).env("XDG_STATE_HOME", dir);
        let process = Process::start(command.stdout(log.try_clone()?).stderr(log))?;
        let start = Instant::now();
        while !ready.exists() {
            ensure!(
                start.elapsed() < START,
                "the world does not start; see {}",
                dir.join("world.log").display()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let description = serde_json::from_str(&fs::read_to_string(&ready)?)?;
        Ok(Self { program: program.to_owned(), ready, description, process: Some(process) })
    }

    /// A client of a region's node, without delay.
    pub(crate) fn client(&self, region: usize) -> Result<Calls> {
        Ok(Calls::in_order(vec![self.endpoint(region)?])?.with_timeout(Duration::from_secs(30)))
    }

    pub(crate) fn endpoint(&self, region: usize) -> Result<String> {
        let endpoint = self.description["regions"][region]["endpoint"].as_str();
        Ok(endpoint.context("a region without endpoint")?.to_owned())
    }

    /// Process ids of the nodes, and of the world's own process, which carries the delays.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let node = |region: usize| self.description["regions"][region]["nodes"][0]["pid"].as_u64();
        let nodes = [node(0), node(1)].into_iter().flatten().filter_map(|pid| u32::try_from(pid).ok());
        nodes.chain(self.process.iter().map(Process::pid)).collect()
    }

    /// Changes the link between the two regions: `cut`, `heal`.
    pub(crate) fn link(&self, action: &str) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["dev", "link", action, &name(0), &name(1), "--ready-file"]).arg(&self.ready);
        ensure!(command.stdout(Stdio::null()).status()?.success(), "the link was not changed");
        Ok(())
    }

    /// Bytes between nodes that the links have carried.
    pub(crate) fn carried_bytes(&self) -> Result<u64> {
        let mut command = Command::new(&self.program);
        command.args(["dev", "links", "--json", "--ready-file"]).arg(&self.ready);
        let links: Value = serde_json::from_slice(&command.output()?.stdout)?;
        let links = links.as_array().context("no links")?;
        Ok(links.iter().filter_map(|link| link["peer_bytes"].as_u64()).sum())
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::stop)
    }
}

/// The name of the n-th region.
pub(crate) fn name(region: usize) -> String {
    ["ada", "bea", "cora"][region].to_owned()
}

/// A regions file: that many regions, the same round trip between all, and a rule for each kind.
fn regions(count: usize, round_trip_ms: f64) -> String {
    let mut text = "region = [\n".to_owned();
    for region in 0..count {
        let (name, longitude) = (name(region), 10 * region);
        text += &format!(
            "  {{ name = \"{name}\", place = \"{name}\", latitude = 0.0, longitude = {longitude}.0 }},\n"
        );
    }
    text += "]\nrtt = [\n";
    for a in 0..count {
        for b in a + 1..count {
            let (a, b) = (name(a), name(b));
            text += &format!("  {{ between = [\"{a}\", \"{b}\"], ms = {round_trip_ms:.1} }},\n");
        }
    }
    text + "]\n\
            [[rule]]\nname = \"counters\"\npattern = \"counters/**\"\nkind = \"counter\"\n\
            [[rule]]\nname = \"registers\"\npattern = \"registers/**\"\nkind = \"register\"\n\
            [[rule]]\nname = \"documents\"\npattern = \"**\"\nkind = \"document\"\n"
}
