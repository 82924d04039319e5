//! Every key, every complaint.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::{Engine, NodeConfig};

/// The smallest complete configuration: what is required and nothing else.
const REQUIRED: &str = r#"
[node]
id = "tokyo-1"
region = "tokyo"
data_dir = "data"
[cluster]
id = "main"
secret_file = "cluster.secret"
regions_file = "regions.toml"
[[peer]]
id = "dallas-1"
region = "dallas"
address = "127.0.0.1:7200"
"#;

fn complaints(text: &str) -> String {
    NodeConfig::parse("node.toml", text).unwrap_err().to_string()
}

#[test]
fn the_example_is_complete_and_its_values_are_the_defaults() {
    let example = NodeConfig::parse("node.toml", NodeConfig::example()).unwrap();
    assert_eq!(example, NodeConfig::parse("node.toml", REQUIRED).unwrap());
    assert_eq!(example.node.engine, Engine::Disk);
    assert_eq!(example.limits.cache_bytes, 256 << 20);
    assert_eq!(example.limits.stop_time, Duration::from_secs(3));
}

#[test]
fn the_example_names_every_key_that_is_read() {
    let mut reader = super::Reader::new("node.toml", NodeConfig::example());
    reader.config().unwrap();
    let in_example =
        NodeConfig::example().lines().filter(|line| line.contains(" = ") && !line.starts_with('#'));
    assert_eq!(reader.lines.len(), in_example.count());
    let mut empty = super::Reader::new("node.toml", "[[peer]]");
    empty.config();
    let missed: Vec<String> = empty.errors.iter().map(|error| error.key.clone()).collect();
    let required = NodeConfig::example().lines().filter(|line| line.starts_with("# Required. "));
    assert_eq!(missed.len(), required.count(), "{missed:?}");
}

#[test]
fn relative_paths_start_from_the_directory_of_the_file() {
    let config = NodeConfig::parse("/etc/tropism/node.toml", REQUIRED).unwrap();
    assert_eq!(config.node.data_dir, Path::new("/etc/tropism/data"));
    let text = REQUIRED.replace("\"data\"", "\"/var/lib/tropism\"");
    let config = NodeConfig::parse("/etc/tropism/node.toml", &text).unwrap();
    assert_eq!(config.node.data_dir, Path::new("/var/lib/tropism"));
}

#[test]
fn every_complaint_names_file_line_key_and_limit() {
    let long = "x".repeat(40);
    for (old, new, complaint) in [
        ("id = \"tokyo-1\"", "id = \"Tokyo\"", "node.toml:3: node.id: node id \"Tokyo\" "),
        ("id = \"tokyo-1\"", &format!("id = \"{long}\""), "node.toml:3: node.id: node id "),
        ("id = \"tokyo-1\"", "id = 7", "node.toml:3: node.id: must be a string, not integer"),
        ("id = \"tokyo-1\"", "", "node.toml:2: node.id: is missing"),
        ("region = \"tokyo\"", "region = \"\"", "node.toml:4: node.region: region name is empty"),
        ("data_dir = \"data\"", "data_dir = \"\"", "node.toml:5: node.data_dir: is empty"),
        (
            "data_dir",
            "engine = \"tape\"\ndata_dir",
            "node.engine: \"tape\" is unknown; it must be \"disk\" or",
        ),
        ("data_dir", "data_dirs", "node.toml:5: node.data_dirs: unknown key"),
        ("id = \"main\"", "id = \"-\"", "node.toml:7: cluster.id: \"-\" is no cluster id"),
        ("id = \"main\"", "id = \"main\"\nsecret = \"s\"", "node.toml:8: cluster.secret: unknown key"),
        (
            "id = \"dallas-1\"",
            "id = \"tokyo-1\"",
            "node.toml:11: peer.id: \"tokyo-1\" is already another node's",
        ),
        ("[node]", "[telemetry]\notlp = \"https://127.0.0.1:4317\"\n[node]", "there is no TLS"),
        ("[node]", "[telemetry]\notlp = \"collector\"\n[node]", "must be a URL like"),
        ("[node]", "[telemetry]\notlp = 4317\n[node]", "telemetry.otlp: must be a string, not integer"),
        (
            "[node]",
            "[telemetry]\nmetrics = \"0.0.0.0:9100\"\n[node]",
            "node.toml:3: telemetry.metrics: 0.0.0.0:9100 is not a loopback address, and there is no TLS; listen.insecure",
        ),
        (
            "[node]",
            "[telemetry]\nmetrics = \"127.0.0.1\"\n[node]",
            "node.toml:3: telemetry.metrics: \"127.0.0.1\" is no IP:port with a port from 1 to 65535",
        ),
        (
            "[node]",
            "[telemetry]\nmetrics = \"127.0.0.1:7000\"\n[node]",
            "node.toml:3: telemetry.metrics: is the same as listen.client",
        ),
        (
            "[node]",
            "[telemetry]\nlog_format = \"xml\"\n[node]",
            "node.toml:3: telemetry.log_format: \"xml\" is unknown; it must be \"text\" or \"json\"",
        ),
        (
            "[node]",
            "[telemetry]\npush_metrics = \"2h\"\n[node]",
            "node.toml:3: telemetry.push_metrics: \"2h\" must be a time like \"30s\", from 0 to 1h",
        ),
        ("[node]", "[telemetry]\nmetrics = 9100\n[node]", "telemetry.metrics: must be a string, not integer"),
        ("[node]", "[telemetry]\nsampling = 1.5\n[node]", "telemetry.sampling: 1.5 is outside 0.0 to 1.0"),
        ("[node]", "[telemetry]\nsampling = nan\n[node]", "telemetry.sampling: nan is outside 0.0 to 1.0"),
        (
            "[node]",
            "[telemetry]\nsampling = \"all\"\n[node]",
            "telemetry.sampling: must be a share from 0.0 to 1.0, not string",
        ),
        ("127.0.0.1:7200", "127.0.0.1", "peer.address: \"127.0.0.1\" is no host:port"),
        ("127.0.0.1:7200", "dallas:0", "peer.address: \"dallas:0\" is no host:port"),
        ("127.0.0.1:7200", "a b:1", "peer.address: \"a b:1\" is no host:port"),
        (
            "[node]",
            "[listen]\nclient = \"0.0.0.0:7000\"\n[node]",
            "node.toml:3: listen.client: 0.0.0.0:7000 is not",
        ),
        ("[node]", "[listen]\nclient = \"localhost\"\n[node]", "listen.client: \"localhost\" is no IP:port"),
        ("[node]", "[listen]\npeer = \"127.0.0.1:0\"\n[node]", "listen.peer: \"127.0.0.1:0\" is no IP:port"),
        (
            "[node]",
            "[listen]\npeer = \"127.0.0.1:7000\"\n[node]",
            "listen.peer: is the same as listen.client",
        ),
        (
            "[node]",
            "[listen]\ninsecure = \"no\"\n[node]",
            "listen.insecure: must be true or false, not string",
        ),
        (
            "[node]",
            "[limits]\ncache_bytes = \"1GB\"\n[node]",
            "\"1GB\" must be a size like \"256MiB\", from 1MiB to 1024GiB",
        ),
        ("[node]", "[limits]\ncache_bytes = \"1B\"\n[node]", "limits.cache_bytes: \"1B\" must be a size"),
        ("[node]", "[limits]\ncache_bytes = \"99999999999999999999GiB\"\n[node]", "must be a size"),
        ("[node]", "[limits]\ncache_bytes = 5\n[node]", "limits.cache_bytes: must be a string, not integer"),
        ("[node]", "[limits]\nlog_hours = 25\n[node]", "limits.log_hours: 25 is outside 1 to 24"),
        ("[node]", "[limits]\nlog_hours = -1\n[node]", "limits.log_hours: -1 is outside 1 to 24"),
        (
            "[node]",
            "[limits]\nstop_time = \"2m\"\n[node]",
            "\"2m\" must be a time like \"30s\", from 0 to 1m",
        ),
        ("[node]", "[telemetry]\nlog = \"a=b=c\"\n[node]", "telemetry.log: \"a=b=c\" is no filter"),
        ("[node]", "[telemetr]\n[node]", "node.toml:2: telemetr: unknown section"),
        (
            "[node]",
            "telemetry = 3\n[node]",
            "node.toml:2: telemetry: must be a table, [telemetry], not integer",
        ),
        ("[[peer]]", "[peer]", "peer: must be an array of tables, [[peer]]"),
        ("[node]", "[node]\n[node]", "node.toml:3: syntax: "),
        ("[node]", "[node", "node.toml:2: syntax: "),
    ] {
        let text = REQUIRED.replacen(old, new, 1);
        assert_ne!(text, REQUIRED, "{old}");
        let complaints = complaints(&text);
        assert!(complaints.contains(complaint), "{new}: {complaints}");
        assert_eq!(complaints.lines().count(), complaints.matches("node.toml:").count(), "{complaints}");
    }
}

#[test]
fn all_errors_are_told_at_once_and_echo_little() {
    let text = REQUIRED.replace("\"tokyo\"", &format!("\"{}\"", "é".repeat(1000))).replace("\"main\"", "3");
    let complaints = complaints(&text);
    assert_eq!(complaints.lines().count(), 2, "{complaints}");
    assert!(complaints.len() < 500, "{complaints}");
    assert!(NodeConfig::parse("node.toml", &"#".repeat(2 << 20)).is_err());
}

#[test]
fn other_addresses_than_loopback_need_the_word_insecure() {
    let text =
        format!("{REQUIRED}\n[listen]\nclient = \"0.0.0.0:7000\"\npeer = \"[::]:7100\"\ninsecure = true");
    let config = NodeConfig::parse("node.toml", &text).unwrap();
    assert!(config.listen.insecure && !config.listen.peer.ip().is_loopback());
}

#[test]
fn checking_reads_the_secret_and_the_regions() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let mode = |mode| fs::set_permissions(file("cluster.secret"), fs::Permissions::from_mode(mode)).unwrap();
    let complaints = || NodeConfig::check(&file("node.toml")).unwrap_err().to_string();
    assert!(complaints().contains("node.toml:1: file: cannot be read"), "{}", complaints());

    fs::write(file("node.toml"), REQUIRED).unwrap();
    assert!(complaints().contains("node.toml:8: cluster.secret_file: cannot read"), "{}", complaints());
    assert!(complaints().contains("node.toml:9: cluster.regions_file: "), "{}", complaints());

    fs::write(file("regions.toml"), "region = [{ name = \"tokyo\", place = \"Tokyo\" }]\nregio = 1").unwrap();
    fs::write(file("cluster.secret"), "too short       \n").unwrap();
    mode(0o600);
    assert!(complaints().contains("has 9 bytes; a secret has 16 to 4096"), "{}", complaints());
    assert!(complaints().contains("regions.toml:2: regio: unknown key"), "{}", complaints());

    fs::write(file("regions.toml"), "region = [{ name = \"tokyo\", place = \"Tokyo\" }]").unwrap();
    fs::write(file("cluster.secret"), "0123456789abcdef\n").unwrap();
    let wanted = "node.toml:12: peer.region: \"dallas\" is not in the regions file; its regions are tokyo";
    assert!(complaints().ends_with(wanted), "{}", complaints());

    fs::write(file("node.toml"), REQUIRED.replace("\"dallas\"", "\"tokyo\"")).unwrap();
    mode(0o644);
    assert!(complaints().contains("everybody can read"), "{}", complaints());
    mode(0o600);
    let checked = NodeConfig::check(&file("node.toml")).unwrap();
    assert_eq!(checked.secret.as_bytes(), b"0123456789abcdef");
    assert_eq!(format!("{:?}", checked.secret), "Secret(..)");
    assert_eq!(checked.regions.regions().len(), 1);
}

#[test]
fn the_page_in_docs_is_the_documentation() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let documentation = NodeConfig::documentation();
    assert_eq!(fs::read_to_string(page).unwrap(), documentation, "docs/configuration.md is this text");
    assert!(
        documentation.contains("| `region` | required | The region it stands in, one of the regions file. |")
    );
    assert!(documentation.contains("| `engine` | `\"disk\"` |"));
}
