//! One node's configuration file.
//!
//! The file is TOML; `config/example.toml` shows every key with its meaning and default, and the documentation is made
//! from it. [`NodeConfig::parse`] looks at the text alone; [`NodeConfig::check`] also reads the files it names, and is
//! what a node starts from. Both go on after an error, so that one look at the file mends all of it, and every
//! complaint reads `file:line: key: reason`. Unknown keys are errors: a mistyped limit is no limit.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::fs;
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};
use tracing_subscriber::EnvFilter;
use tropism_crdt::NodeId;
use tropism_placement::{
    ConfigError, ConfigErrors, MAX_CONFIG_BYTES, MAX_CONFIG_ERRORS, MAX_NODES, RegionName, Regions,
};

#[cfg(test)]
mod tests;

/// Shortest cluster secret in bytes: 128 bits, beyond guessing if they are random.
pub const MIN_SECRET_BYTES: usize = 16;
/// Longest cluster secret in bytes: more is some other file.
pub const MAX_SECRET_BYTES: usize = 4096;
/// Longest cluster id in bytes: it is told in every handshake.
pub const MAX_CLUSTER_ID_BYTES: usize = 63;

/// Longest `host:port` in bytes: a DNS name has at most 253.
const MAX_ADDRESS_BYTES: usize = 260;
/// Bytes of a refused value that an error repeats: enough to recognise it, too few to flood a log.
const ECHO_BYTES: usize = 64;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SIZES: &[(&str, u64)] = &[("B", 1), ("KiB", KIB), ("MiB", MIB), ("GiB", GIB)];
const SECONDS: &[(&str, u64)] = &[("s", 1), ("m", 60), ("h", 3600)];
/// Memory and log sizes that make sense, in bytes: from a toy to the largest machine.
const SPACE: (u64, u64) = (MIB, 1024 * GIB);
/// Hours that changes may wait for a silent member: after a day everything of a moved scope must be gone from disk.
const LOG_HOURS: (u64, u64) = (1, 24);
/// Watches at once: each costs a task and up to its buffer.
const WATCHES: (u64, u64) = (1, 100_000);
/// Buffer of a watch, in bytes: from a few small changes to several of the largest.
const WATCH_BUFFER: (u64, u64) = (64 * KIB, 64 * MIB);
/// Seconds between metrics for a collector; 0: never. An hour is rarer than anybody looks.
const PUSH_SECONDS: (u64, u64) = (0, 3600);
/// How fast placement's clock may be: at 300 counters are too old after two seconds.
const PACE: (u64, u64) = (1, 300);
/// Seconds a stop may take: no call lasts longer than a minute.
const STOP_SECONDS: (u64, u64) = (0, 60);

/// A node's configuration, one field per section of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Which node this is.
    pub node: Identity,
    /// Where it listens.
    pub listen: Listen,
    /// Which cluster it belongs to.
    pub cluster: Cluster,
    /// The other nodes, in file order; ids are unique.
    pub peers: Vec<Peer>,
    /// How much it may use.
    pub limits: Limits,
    /// How scopes move.
    pub placement: Placement,
    /// What it tells about itself.
    pub telemetry: Telemetry,
}

/// Section `[node]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// This node's id.
    pub id: NodeId,
    /// Its region.
    pub region: RegionName,
    /// The directory of its store.
    pub data_dir: PathBuf,
    /// Where it keeps what it knows.
    pub engine: Engine,
}

/// Where a node keeps what it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// In a store on disk, durable.
    Disk,
    /// In memory: a cache node, of which nothing survives a stop.
    Memory,
}

/// Section `[listen]`. Both addresses are loopback ones unless `insecure` is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Where clients are served.
    pub client: SocketAddr,
    /// Where other nodes are answered.
    pub peer: SocketAddr,
    /// Whether other addresses than loopback were allowed without TLS: worth a warning.
    pub insecure: bool,
}

/// Section `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster's name: `[a-z0-9][a-z0-9-]*`, at most [`MAX_CLUSTER_ID_BYTES`].
    pub id: String,
    /// The file with the secret that all nodes share.
    pub secret_file: PathBuf,
    /// The regions file.
    pub regions_file: PathBuf,
}

/// Section `[[peer]]`: another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: NodeId,
    /// Its region.
    pub region: RegionName,
    /// `host:port` that this node dials.
    pub address: String,
}

/// Section `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory for values in use, in bytes.
    pub cache_bytes: u64,
    /// Memory for blocks of the store's files, in bytes.
    pub block_cache_bytes: u64,
    /// Size of the log, in bytes, beyond which changes that every member has are not kept for watchers.
    pub log_bytes: u64,
    /// Longest that changes are kept for members that do not answer, in hours.
    pub log_hours: u64,
    /// Most watches at once.
    pub watches: usize,
    /// What may wait for one slow watcher, in bytes.
    pub watch_buffer_bytes: usize,
    /// How long calls may go on after the node was told to stop.
    pub stop_time: Duration,
}

/// Section `[placement]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Whether this node, as steward, moves scopes that follow their use.
    pub moves: bool,
    /// How many times as fast as others placement's clock is.
    pub pace: u32,
}

/// Section `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// Filters of `tracing`, known to parse.
    pub log: String,
    /// How records are written.
    pub log_format: LogFormat,
    /// URL of the collector that traces are exported to (OTLP over gRPC); none: nothing is.
    pub otlp: Option<String>,
    /// How many of a million calls are sampled that come without a decision of their client.
    pub sampling_ppm: u32,
    /// How often the collector gets metrics, too; none: never.
    pub push_every: Option<Duration>,
    /// Where metrics are scraped; none: nowhere. A loopback address unless `listen.insecure` is set.
    pub metrics: Option<SocketAddr>,
}

/// How records of the log are written, one a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// As JSON objects.
    Json,
}

/// The secret that all nodes of a cluster share. Its bytes never appear in a log or an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The bytes, [`MIN_SECRET_BYTES`] to [`MAX_SECRET_BYTES`]; white space at the end of the file is none of them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn read(path: &Path) -> Result<Self, String> {
        let cannot = |error| format!("cannot read \"{}\": {error}", shown(path));
        let file = fs::File::open(path).map_err(cannot)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = file.metadata().map_err(cannot)?.permissions().mode();
            if mode & 0o004 != 0 {
                let path = shown(path);
                return Err(format!("everybody can read \"{path}\" (mode {:o}); chmod 600 it", mode & 0o777));
            }
        }
        let mut bytes = Vec::new();
        file.take(MAX_SECRET_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(cannot)?;
        let found = bytes.len();
        bytes.truncate(bytes.trim_ascii_end().len());
        if found > MAX_SECRET_BYTES || bytes.len() < MIN_SECRET_BYTES {
            let more = if found > MAX_SECRET_BYTES { "more than " } else { "" };
            let found = if more.is_empty() { bytes.len() } else { MAX_SECRET_BYTES };
            return Err(format!(
                "\"{}\" has {more}{found} bytes; a secret has {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}",
                shown(path)
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A configuration together with the files it names, all found good.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedConfig {
    /// The configuration.
    pub config: NodeConfig,
    /// The content of `cluster.secret_file`.
    pub secret: Secret,
    /// The content of `cluster.regions_file`.
    pub regions: Regions,
}

impl NodeConfig {
    /// A complete configuration with comments. Where a key has a default, it is the value here.
    pub fn example() -> &'static str {
        include_str!("config/example.toml")
    }

    /// Reads a configuration. `file_name` is its name in errors, and relative paths start from its directory. Opens no
    /// other file.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(file_name, text);
        match reader.config() {
            Some(config) if reader.errors.is_empty() => Ok(config),
            _ => Err(reader.into_errors()),
        }
    }

    /// Reads a configuration file and the files it names, and checks that they fit together.
    pub fn check(path: &Path) -> Result<CheckedConfig, ConfigErrors> {
        let file_name = path.to_string_lossy();
        let text = match read_text(path) {
            Ok(text) => text,
            Err(reason) => {
                let mut reader = Reader::new(&file_name, "");
                reader.fail(1, "file", reason);
                return Err(reader.into_errors());
            }
        };
        let mut reader = Reader::new(&file_name, &text);
        let Some(config) = reader.config().filter(|_| reader.errors.is_empty()) else {
            return Err(reader.into_errors());
        };
        let secret = Secret::read(&config.cluster.secret_file).map_err(|reason| {
            reader.fail(reader.line("cluster.secret_file", 0), "cluster.secret_file", reason)
        });
        let regions = reader.regions(&config);
        match (secret, regions) {
            (Ok(secret), Some(regions)) if reader.errors.is_empty() => {
                Ok(CheckedConfig { config, secret, regions })
            }
            _ => Err(reader.into_errors()),
        }
    }

    /// The reference of the file for people, in Markdown: every key with default and meaning, and the example.
    pub fn documentation() -> String {
        let mut page = String::from(
            "# Configuration of a node\n\n\
             `tropism serve --config FILE` runs one node. The file is TOML. A key that is not listed here is an error; \
             `tropism config check FILE` names every error with its line, and `tropism config example` prints the \
             file at the end of this page.\n\n\
             Sizes are text: a whole number with `B`, `KiB`, `MiB` or `GiB`. Times are text: a whole number with `s`, \
             `m` or `h`. Relative paths start from the file's directory.\n",
        );
        let mut meaning = String::new();
        for line in Self::example().lines() {
            if let Some(words) = line.strip_prefix("# ") {
                if !meaning.is_empty() {
                    meaning.push(' ');
                }
                meaning.push_str(words);
            } else if line.starts_with('[') {
                let about = if meaning.is_empty() { String::new() } else { format!("\n{meaning}\n") };
                page += &format!("\n## `{line}`\n{about}\n| key | default | meaning |\n|---|---|---|\n");
                meaning.clear();
            } else if let Some((key, value)) = line.split_once(" = ") {
                let (default, words) = match meaning.strip_prefix("Required. ") {
                    Some(words) => ("required".to_owned(), words),
                    None => (format!("`{value}`"), meaning.as_str()),
                };
                page += &format!("| `{key}` | {default} | {} |\n", words.replace('|', "\\|"));
                meaning.clear();
            } else {
                meaning.clear();
            }
        }
        page + "\n## Example\n\n```toml\n" + Self::example() + "```\n"
    }
}

/// The text being read, where its keys stand, and what was found wrong so far.
struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    /// Every key taken so far and its line, in file order within a section.
    lines: Vec<(String, usize)>,
    errors: Vec<ConfigError>,
    omitted: usize,
}

impl<'t> Reader<'t> {
    fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, lines: Vec::new(), errors: Vec::new(), omitted: 0 }
    }

    /// Reads the whole text. None, or some with errors, if something is wrong.
    fn config(&mut self) -> Option<NodeConfig> {
        if self.text.len() > MAX_CONFIG_BYTES {
            let reason = format!("the file has more than {MAX_CONFIG_BYTES} bytes, the limit");
            self.fail(1, "syntax", reason);
            return None;
        }
        let mut root = match DeTable::parse(self.text) {
            Ok(root) => root.into_inner(),
            Err(error) => {
                let at = error.span().unwrap_or_default().start;
                self.fail(self.line_at(at), "syntax", error.message().replace('\n', ", "));
                return None;
            }
        };
        let node = self.table(&mut root, "node").identity();
        let listen = self.table(&mut root, "listen").listen();
        let cluster = self.table(&mut root, "cluster").cluster();
        let peers = self.peers(&mut root, node.as_ref().map(|node| node.id));
        let limits = self.table(&mut root, "limits").limits();
        let placement = self.table(&mut root, "placement").placement();
        let telemetry = self.table(&mut root, "telemetry").telemetry(listen.as_ref());
        for key in root.keys() {
            self.fail(self.line_at(key.span().start), &echo(key.get_ref()), "unknown section");
        }
        Some(NodeConfig {
            node: node?,
            listen: listen?,
            cluster: cluster?,
            peers: peers?,
            limits: limits?,
            placement: placement?,
            telemetry: telemetry?,
        })
    }

    /// Takes a section; an absent one is empty, so that its required keys are missed by name.
    fn table<'r>(&'r mut self, root: &mut DeTable<'t>, section: &'static str) -> Table<'r, 't> {
        let Some(value) = root.remove(section) else {
            return Table { section, line: 1, entries: DeTable::new(), reader: self };
        };
        let line = self.line_at(value.span().start);
        match value.into_inner() {
            DeValue::Table(entries) => Table { section, line, entries, reader: self },
            other => {
                self.fail(line, section, format!("must be a table, [{section}], not {}", other.type_str()));
                Table { section, line, entries: DeTable::new(), reader: self }
            }
        }
    }

    fn peers(&mut self, root: &mut DeTable<'t>, own: Option<NodeId>) -> Option<Vec<Peer>> {
        let Some(value) = root.remove("peer") else { return Some(Vec::new()) };
        let line = self.line_at(value.span().start);
        let DeValue::Array(items) = value.into_inner() else {
            self.fail(line, "peer", "must be an array of tables, [[peer]]");
            return None;
        };
        if items.len() >= MAX_NODES {
            self.fail(
                line,
                "peer",
                format!("{} entries; a cluster has at most {MAX_NODES} nodes", items.len()),
            );
            return None;
        }
        let mut taken: BTreeSet<NodeId> = own.into_iter().collect();
        let mut peers = Vec::new();
        for item in items {
            let line = self.line_at(item.span().start);
            let DeValue::Table(entries) = item.into_inner() else {
                self.fail(line, "peer", "must be a table");
                continue;
            };
            let Some(peer) = (Table { section: "peer", line, entries, reader: self }).peer() else {
                continue;
            };
            if !taken.insert(peer.id) {
                let reason = format!("\"{}\" is already another node's", peer.id);
                self.fail(self.line("peer.id", peers.len()), "peer.id", reason);
            }
            peers.push(peer);
        }
        Some(peers)
    }

    /// Reads the regions file and compares its names with those of the configuration.
    fn regions(&mut self, config: &NodeConfig) -> Option<Regions> {
        let path = &config.cluster.regions_file;
        let text = read_text(path)
            .map_err(|reason| {
                let reason = format!("\"{}\" {reason}", shown(path));
                self.fail(self.line("cluster.regions_file", 0), "cluster.regions_file", reason);
            })
            .ok()?;
        let regions = match Regions::parse(&path.to_string_lossy(), &text) {
            Ok(regions) => regions,
            Err(mut wrong) => {
                self.errors.append(&mut wrong.errors);
                self.omitted += wrong.omitted;
                return None;
            }
        };
        let own = ("node.region", 0, &config.node.region);
        let others = config.peers.iter().enumerate().map(|(i, peer)| ("peer.region", i, &peer.region));
        for (key, nth, name) in std::iter::once(own).chain(others) {
            if !regions.regions().iter().any(|region| region.name == *name) {
                let known: Vec<&str> = regions.regions().iter().map(|region| region.name.as_str()).collect();
                let reason = format!(
                    "\"{}\" is not in the regions file; its regions are {}",
                    name.as_str(),
                    known.join(", ")
                );
                self.fail(self.line(key, nth), key, reason);
            }
        }
        Some(regions)
    }

    fn fail(&mut self, line: usize, key: &str, reason: impl Display) {
        if self.errors.len() >= MAX_CONFIG_ERRORS {
            self.omitted += 1;
            return;
        }
        let (file, key) = (self.file.to_owned(), key.to_owned());
        self.errors.push(ConfigError { file, line, key, reason: reason.to_string() });
    }

    /// The line of the nth time that this key was taken.
    fn line(&self, key: &str, nth: usize) -> usize {
        self.lines.iter().filter(|(taken, _)| taken == key).nth(nth).map_or(1, |(_, line)| *line)
    }

    fn line_at(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
    }

    fn into_errors(mut self) -> ConfigErrors {
        // Of this file by line; those of other files come after and are sorted already.
        self.errors.sort_by_key(|error| if error.file == self.file { error.line } else { usize::MAX });
        ConfigErrors { errors: self.errors, omitted: self.omitted }
    }
}

/// One section; its keys are taken out as they are read, and what is left is unknown.
struct Table<'r, 't> {
    section: &'static str,
    line: usize,
    entries: DeTable<'t>,
    reader: &'r mut Reader<'t>,
}

impl Table<'_, '_> {
    fn identity(mut self) -> Option<Identity> {
        let id = self.take("id", None, node_id);
        let region = self.take("region", None, region_name);
        let data_dir = self.path("data_dir");
        let engine = self.take("engine", Some(Engine::Disk), |value| match string(value)?.as_str() {
            "disk" => Ok(Engine::Disk),
            "memory" => Ok(Engine::Memory),
            other => Err(format!("\"{}\" is unknown; it must be \"disk\" or \"memory\"", echo(other))),
        });
        self.finish();
        Some(Identity { id: id?, region: region?, data_dir: data_dir?, engine: engine? })
    }

    fn listen(mut self) -> Option<Listen> {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let client = self.take("client", Some(local(7000)), listen_address);
        let peer = self.take("peer", Some(local(7100)), listen_address);
        let insecure = self.take("insecure", Some(false), |value| match value {
            DeValue::Boolean(answer) => Ok(answer),
            other => Err(format!("must be true or false, not {}", other.type_str())),
        });
        if insecure == Some(false) {
            for (key, address) in [("client", client), ("peer", peer)] {
                if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
                    let reason = format!(
                        "{address} is not a loopback address, and there is no TLS; insecure = true allows it"
                    );
                    self.fail(key, reason);
                }
            }
        }
        if client.is_some() && client == peer {
            self.fail("peer", "is the same as listen.client");
        }
        self.finish();
        Some(Listen { client: client?, peer: peer?, insecure: insecure? })
    }

    fn cluster(mut self) -> Option<Cluster> {
        let id = self.take("id", None, cluster_id);
        let secret_file = self.path("secret_file");
        let regions_file = self.path("regions_file");
        self.finish();
        Some(Cluster { id: id?, secret_file: secret_file?, regions_file: regions_file? })
    }

    fn peer(mut self) -> Option<Peer> {
        let id = self.take("id", None, node_id);
        let region = self.take("region", None, region_name);
        let address = self.take("address", None, dial_address);
        self.finish();
        Some(Peer { id: id?, region: region?, address: address? })
    }

    fn limits(mut self) -> Option<Limits> {
        let cache_bytes = self.take("cache_bytes", Some(256 * MIB), size(SPACE));
        let block_cache_bytes = self.take("block_cache_bytes", Some(64 * MIB), size(SPACE));
        let log_bytes = self.take("log_bytes", Some(256 * MIB), size(SPACE));
        let log_hours = self.take("log_hours", Some(24), |value| whole(value, LOG_HOURS));
        let watches = self.take("watches", Some(1000), |value| whole(value, WATCHES));
        let watch_buffer_bytes = self.take("watch_buffer_bytes", Some(MIB), size(WATCH_BUFFER));
        let stop_seconds = self.take("stop_time", Some(3), seconds(STOP_SECONDS));
        self.finish();
        Some(Limits {
            cache_bytes: cache_bytes?,
            block_cache_bytes: block_cache_bytes?,
            log_bytes: log_bytes?,
            log_hours: log_hours?,
            watches: usize::try_from(watches?).ok()?, // at most WATCHES.1
            watch_buffer_bytes: usize::try_from(watch_buffer_bytes?).ok()?, // at most WATCH_BUFFER.1
            stop_time: Duration::from_secs(stop_seconds?),
        })
    }

    fn placement(mut self) -> Option<Placement> {
        let moves = self.take("moves", Some(true), |value| match value {
            DeValue::Boolean(moves) => Ok(moves),
            other => Err(format!("must be true or false, not {}", other.type_str())),
        });
        let pace = self.take("pace", Some(1), |value| whole(value, PACE));
        self.finish();
        Some(Placement { moves: moves?, pace: u32::try_from(pace?).ok()? }) // at most PACE.1
    }

    fn telemetry(mut self, listen: Option<&Listen>) -> Option<Telemetry> {
        let log = self.take("log", Some("info".to_owned()), |value| {
            let filters = string(value)?;
            match EnvFilter::try_new(&filters) {
                Ok(_) => Ok(filters),
                Err(error) => Err(format!("\"{}\" is no filter: {error}", echo(&filters))),
            }
        });
        let text = Some(LogFormat::Text);
        let log_format = self.take("log_format", text, |value| match string(value)?.as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("\"{}\" is unknown; it must be \"text\" or \"json\"", echo(other))),
        });
        let otlp = self.take("otlp", Some(None), |value| match string(value)?.as_str() {
            "" => Ok(None),
            url => collector(url).map(Some),
        });
        let sampling_ppm = self.take("sampling", Some(10_000), share);
        let push_every = self.take("push_metrics", Some(60), seconds(PUSH_SECONDS));
        let metrics = self.take("metrics", Some(None), |value| match value {
            DeValue::String(text) if text.is_empty() => Ok(None),
            address => listen_address(address).map(Some),
        });
        if let (Some(Some(address)), Some(listen)) = (metrics, listen) {
            if !listen.insecure && !address.ip().is_loopback() {
                let reason = format!(
                    "{address} is not a loopback address, and there is no TLS; listen.insecure = true allows it"
                );
                self.fail("metrics", reason);
            }
            for (key, other) in [("listen.client", listen.client), ("listen.peer", listen.peer)] {
                if address == other {
                    self.fail("metrics", format!("is the same as {key}"));
                }
            }
        }
        self.finish();
        Some(Telemetry {
            log: log?,
            log_format: log_format?,
            otlp: otlp?,
            sampling_ppm: sampling_ppm?,
            push_every: Some(push_every?).filter(|every| *every > 0).map(Duration::from_secs),
            metrics: metrics?,
        })
    }

    /// Takes a key: its converted value, the default if it is absent, or None after reporting what is wrong.
    fn take<T>(
        &mut self,
        key: &str,
        default: Option<T>,
        convert: impl FnOnce(DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let path = format!("{}.{key}", self.section);
        let Some(value) = self.entries.remove(key) else {
            if default.is_none() {
                self.reader.fail(self.line, &path, "is missing");
            }
            return default;
        };
        let line = self.reader.line_at(value.span().start);
        self.reader.lines.push((path.clone(), line));
        convert(value.into_inner()).map_err(|reason| self.reader.fail(line, &path, reason)).ok()
    }

    /// Takes a required path; a relative one starts from the file's directory.
    fn path(&mut self, key: &str) -> Option<PathBuf> {
        let base = Path::new(self.reader.file).parent().unwrap_or(Path::new(""));
        self.take(key, None, |value| match string(value)?.as_str() {
            "" => Err("is empty; it must be a path".to_owned()),
            path if path.contains('\0') => Err("is no path: it contains a NUL character".to_owned()),
            path => Ok(base.join(path)),
        })
    }

    /// Reports that a key which was taken, or its default, does not fit.
    fn fail(&mut self, key: &str, reason: impl Display) {
        let path = format!("{}.{key}", self.section);
        let line = self.reader.line(&path, 0).max(self.line);
        self.reader.fail(line, &path, reason);
    }

    /// Reports every key that nobody took.
    fn finish(self) {
        for key in self.entries.keys() {
            let line = self.reader.line_at(key.span().start);
            self.reader.fail(line, &format!("{}.{}", self.section, echo(key.get_ref())), "unknown key");
        }
    }
}

fn string(value: DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.into_owned()),
        other => Err(format!("must be a string, not {}", other.type_str())),
    }
}

fn whole(value: DeValue<'_>, (least, most): (u64, u64)) -> Result<u64, String> {
    let DeValue::Integer(integer) = &value else {
        return Err(format!("must be a whole number from {least} to {most}, not {}", value.type_str()));
    };
    match u64::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{} is outside {least} to {most}", echo(integer.as_str()))),
    }
}

fn size(range: (u64, u64)) -> impl Fn(DeValue<'_>) -> Result<u64, String> {
    move |value| scaled(&string(value)?, SIZES, range, "a size like \"256MiB\"")
}

fn seconds(range: (u64, u64)) -> impl Fn(DeValue<'_>) -> Result<u64, String> {
    move |value| scaled(&string(value)?, SECONDS, range, "a time like \"30s\"")
}

/// A whole number with a unit, in base units; the units are in rising order.
fn scaled(text: &str, units: &[(&str, u64)], (least, most): (u64, u64), what: &str) -> Result<u64, String> {
    let number = units.iter().rev().find_map(|(unit, factor)| {
        let digits = text.strip_suffix(unit)?;
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // Too many digits are a number all the same, and beyond every range.
        plain.then(|| digits.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(*factor))
    });
    if let Some(number) = number.filter(|number| (least..=most).contains(number)) {
        return Ok(number);
    }
    let name = |number: u64| {
        let fits = units.iter().rev().find(|(_, factor)| number >= *factor && number.is_multiple_of(*factor));
        fits.map_or(number.to_string(), |(unit, factor)| format!("{}{unit}", number / factor))
    };
    Err(format!("\"{}\" must be {what}, from {} to {}", echo(text), name(least), name(most)))
}

/// A share from 0 to 1, in millionths.
fn share(value: DeValue<'_>) -> Result<u32, String> {
    let text = match &value {
        DeValue::Float(number) => number.as_str(),
        DeValue::Integer(number) => number.as_str(),
        other => return Err(format!("must be a share from 0.0 to 1.0, not {}", other.type_str())),
    };
    match text.parse::<f64>() {
        // In range, so at most a million.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(number) if (0.0..=1.0).contains(&number) => Ok((number * 1_000_000.0).round() as u32),
        _ => Err(format!("{} is outside 0.0 to 1.0", echo(text))),
    }
}

/// The URL of a collector: there is no TLS to it.
fn collector(url: &str) -> Result<String, String> {
    let good = url.parse::<http::Uri>().is_ok_and(|uri| {
        let plain = uri.scheme() == Some(&http::uri::Scheme::HTTP);
        plain && uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'))
    });
    if good && url.len() <= MAX_ADDRESS_BYTES {
        return Ok(url.to_owned());
    }
    Err(format!("\"{}\" must be a URL like \"http://127.0.0.1:4317\"; there is no TLS", echo(url)))
}

fn node_id(value: DeValue<'_>) -> Result<NodeId, String> {
    NodeId::new(&string(value)?).map_err(|error| error.to_string())
}

fn region_name(value: DeValue<'_>) -> Result<RegionName, String> {
    RegionName::new(&string(value)?).map_err(|error| error.to_string())
}

fn cluster_id(value: DeValue<'_>) -> Result<String, String> {
    let text = string(value)?;
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if (1..=MAX_CLUSTER_ID_BYTES).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-')
    {
        return Ok(text);
    }
    let limit = MAX_CLUSTER_ID_BYTES;
    Err(format!("\"{}\" is no cluster id: [a-z0-9][a-z0-9-]*, 1 to {limit} bytes", echo(&text)))
}

fn listen_address(value: DeValue<'_>) -> Result<SocketAddr, String> {
    let text = string(value)?;
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => Ok(address),
        _ => Err(format!("\"{}\" is no IP:port with a port from 1 to 65535", echo(&text))),
    }
}

/// `host:port`, an IPv6 host in brackets.
fn dial_address(value: DeValue<'_>) -> Result<String, String> {
    let text = string(value)?;
    let host_good = |host: &str| match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| matches!(b, b'-' | b'.' | b'_') || b.is_ascii_alphanumeric())
        }
    };
    let port_good = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    match text.rsplit_once(':') {
        Some((host, port)) if text.len() <= MAX_ADDRESS_BYTES && host_good(host) && port_good(port) => {
            Ok(text)
        }
        _ => Err(format!("\"{}\" is no host:port with a port from 1 to 65535", echo(&text))),
    }
}

/// The text of a configuration file, which is never large.
fn read_text(path: &Path) -> Result<String, String> {
    let cannot = |error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(cannot)?;
    file.take(MAX_CONFIG_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(cannot)?;
    String::from_utf8(bytes)
        .map_err(|error| format!("is not UTF-8 text: byte {} is wrong", error.utf8_error().valid_up_to()))
}

/// The beginning of an untrusted text, escaped for errors and logs.
fn echo(text: &str) -> String {
    let most = text.len().min(ECHO_BYTES);
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", text[..end].escape_debug())
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}
