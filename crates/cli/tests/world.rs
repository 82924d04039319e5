//! The program itself: three regions on real processes, sockets and stores.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that should happen soon: long enough for a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// A world in a directory of its own.
struct World {
    directory: tempfile::TempDir,
    process: Child,
}

impl World {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let process = spawn(directory.path());
        let world = Self { directory, process };
        world.wait_until_ready();
        world
    }

    fn ready_file(&self) -> PathBuf {
        self.directory.path().join("ready.json")
    }

    fn wait_until_ready(&self) {
        eventually("the world is ready", || self.ready_file().exists());
    }

    /// A power cut: the parent is killed, and every node ends with it.
    fn power_cut(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        std::fs::remove_file(self.ready_file()).unwrap();
    }

    fn start_again(&mut self) {
        self.process = spawn(self.directory.path());
        self.wait_until_ready();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        tropism(self.directory.path())
            .args(arguments)
            .arg("--ready-file")
            .arg(self.ready_file())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed; its output without the newline at the end.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        text.trim_end().to_owned()
    }

    /// Waits until every region shows the same value, and that is `expected`.
    fn everywhere(&self, scope: &str, key: &str, expected: &str) {
        for region in REGIONS {
            eventually(&format!("{region} shows {key} as {expected}"), || {
                let output = self.run(&["get", scope, key, "--from", region]);
                output.status.success() && String::from_utf8_lossy(&output.stdout).trim_end() == expected
            });
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

const REGIONS: [&str; 3] = ["dallas", "frankfurt", "tokyo"];

fn tropism(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tropism"));
    command.env("XDG_STATE_HOME", state).env_remove("TROPISM_FROM").env_remove("TROPISM_READY_FILE");
    command
}

fn spawn(directory: &Path) -> Child {
    tropism(directory)
        .arg("dev")
        .arg("--data")
        .arg(directory.join("data"))
        .arg("--ready-file")
        .arg(directory.join("ready.json"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn three_regions_write_merge_survive_a_cut_a_killed_node_and_a_power_cut() {
    let mut world = World::start();

    // A write in one region is seen in all, byte for byte.
    world.ok(&[
        "put",
        "shop/carts",
        "alice",
        r#"{"note":"hi","items":[{"sku":"tea","n":2}]}"#,
        "--from",
        "tokyo",
    ]);
    world.everywhere("shop/carts", "alice", r#"{"items":[{"n":2,"sku":"tea"}],"note":"hi"}"#);

    // Two regions edit one document; both edits stay.
    world.ok(&["patch", "shop/carts", "alice", "--op", "inc /items/0/n 1", "--from", "dallas"]);
    world.ok(&["patch", "shop/carts", "alice", "--op", "inc /items/0/n 4", "--from", "frankfurt"]);
    world.ok(&["patch", "shop/carts", "alice", "--op", r#"set /note "hello""#, "--from", "tokyo"]);
    world.everywhere("shop/carts", "alice", r#"{"items":[{"n":7,"sku":"tea"}],"note":"hello"}"#);

    // A region that is cut off goes on by itself, and afterwards everything is there.
    for other in ["dallas", "frankfurt"] {
        world.ok(&["dev", "link", "cut", "tokyo", other]);
    }
    for _ in 0..5 {
        world.ok(&["incr", "stats/visits", "home", "2", "--from", "tokyo"]);
        world.ok(&["incr", "stats/visits", "home", "1", "--from", "dallas"]);
    }
    assert_eq!(world.ok(&["get", "stats/visits", "home", "--from", "tokyo"]), "10");
    for other in ["dallas", "frankfurt"] {
        world.ok(&["dev", "link", "heal", "tokyo", other]);
    }
    world.everywhere("stats/visits", "home", "15");

    // With one link cut the third region passes changes on.
    world.ok(&["dev", "link", "cut", "tokyo", "dallas"]);
    world.ok(&["put", "cache/pages", "home", "--text", "through frankfurt", "--from", "tokyo"]);
    world.everywhere("cache/pages", "home", "through frankfurt");
    world.ok(&["dev", "link", "heal", "tokyo", "dallas"]);

    // A node that is killed comes back with everything it acknowledged.
    world.ok(&["put", "cache/pages", "kept", "--text", "before the kill", "--from", "tokyo"]);
    world.ok(&["dev", "node", "kill", "tokyo-1"]);
    world.ok(&["dev", "node", "start", "tokyo-1"]);
    world.everywhere("cache/pages", "kept", "before the kill");

    // A power cut of the whole world in the middle of writing loses nothing acknowledged.
    for number in 0..10 {
        world.ok(&[
            "put",
            "cache/pages",
            &format!("p{number}"),
            "--text",
            "kept",
            "--from",
            REGIONS[number % 3],
        ]);
    }
    world.power_cut();
    world.start_again();
    for number in 0..10 {
        world.everywhere("cache/pages", &format!("p{number}"), "kept");
    }
    world.everywhere("stats/visits", "home", "15");

    // What is refused says so, and where.
    let missing = world.run(&["get", "shop/carts", "nobody"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("nobody"));
    let refused = world.run(&["put", "shop/carts", "alice", "[1]"]);
    assert_eq!(refused.status.code(), Some(1), "a document is an object");
    assert_eq!(world.run(&["put"]).status.code(), Some(2));
    let status = world.ok(&["status", "--json"]);
    assert!(status.contains("tokyo-1"), "{status}");
}
