//! The program itself: three regions on real processes, sockets and stores.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tropism_storage::{Space, Store, StoreKey, View};

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
    let traced = world.ok(&["trace-write", "shop/carts", "traced", r#"{"hidden":1}"#, "--from", "tokyo"]);
    for part in ["tokyo-1      Put", "tokyo-1      commit", "dallas-1     apply", "frankfurt-1  apply"] {
        assert!(traced.contains(part), "{traced}");
    }
    assert!(!traced.contains("hidden"), "{traced}");
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

    // A scope moves, and clients find it; dropped it is gone until it is created anew.
    world.ok(&["put", "cache/moved", "home", "--text", "here", "--from", "dallas"]);
    let told = world.ok(&["scope", "move", "cache/moved", "--to", "tokyo", "--json", "--from", "frankfurt"]);
    assert!(told.contains(r#""serving":["tokyo"]"#) && told.contains(r#""goal":[]"#), "{told}");
    assert_eq!(world.ok(&["get", "cache/moved", "home", "--from", "dallas"]), "here");
    let kept = world.run(&["scope", "drop", "cache/moved", "--from", "tokyo"]);
    assert_eq!(kept.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&kept.stderr).contains("it has 1 key,"), "{kept:?}");
    let dropped = world.ok(&["scope", "drop", "cache/moved", "--yes", "--from", "tokyo"]);
    assert_eq!(dropped, "dropped cache/moved with 1 key");
    let gone = world.run(&["get", "cache/moved", "home", "--from", "tokyo"]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("SCOPE_DROPPED"), "{gone:?}");
    world.ok(&["scope", "create", "cache/moved", "--from", "tokyo"]);
    let pinned = world.ok(&["scope", "pin", "cache/moved", "--from", "tokyo"]);
    assert!(pinned.contains("operators only (pinned)"), "{pinned}");
    let added = world.ok(&["scope", "move", "cache/moved", "--drop", "dallas", "--json"]);
    assert!(added.contains(r#""serving":["frankfurt","tokyo"]"#) && added.contains("pinned"), "{added}");
    assert_eq!(world.run(&["get", "cache/moved", "home", "--from", "tokyo"]).status.code(), Some(1));
    assert!(world.ok(&["status", "--json"]).contains(r#""voters":["dallas-1","frankfurt-1","tokyo-1"]"#));

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

/// Flips a byte of what a stopped node stores of a key: of its value, or of the first piece of its history.
fn rot(data_dir: &Path, space: Space, key: &str) {
    let (engine, _witness) = tropism_disk::open(data_dir, &tropism_disk::DiskOptions::default()).unwrap();
    let mut store = Store::open(Box::new(engine)).unwrap();
    let of_key = |name: &[u8]| match space {
        Space::Edits => name[18..].starts_with(&[key.as_bytes(), &[0]].concat()),
        _ => &name[18..] == key.as_bytes(),
    };
    let rows: Vec<_> = store.scan(space, &[], &[0xff; 1_100]).map(|row| row.unwrap()).collect();
    let (name, row) = rows.into_iter().find(|(name, _)| of_key(name)).expect("it is stored");
    let mut row = row.to_vec();
    row[2] ^= 0x10;
    store.put(space, StoreKey::existing(name), row.into());
    store.commit(0).unwrap();
    store.sync().unwrap();
}

#[test]
fn parked_keys_of_a_node_are_listed_shown_tried_again_and_dropped() {
    let world = World::start();
    world.ok(&["put", "shop/carts", "alice", r#"{"a":1}"#, "--from", "tokyo"]);
    world.ok(&["put", "cache/pages", "home", "--text", "one", "--from", "tokyo"]);
    world.everywhere("cache/pages", "home", "one");
    world.everywhere("shop/carts", "alice", r#"{"a":1}"#);
    let ready: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(world.ready_file()).unwrap()).unwrap();
    let regions = ready["regions"].as_array().unwrap();
    let tokyo = regions.iter().find(|region| region["name"] == "tokyo").unwrap();
    let data_dir = PathBuf::from(tokyo["nodes"][0]["data_dir"].as_str().unwrap());
    let said = |arguments: &[&str], code: i32| {
        let output = world.run(arguments);
        let (out, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{errors}");
        format!("{out}{errors}")
    };
    assert!(said(&["parked", "list"], 0).contains("no parked keys"));

    world.ok(&["dev", "node", "kill", "tokyo-1"]);
    rot(&data_dir, Space::Values, "home");
    rot(&data_dir, Space::Edits, "alice");
    world.ok(&["dev", "node", "start", "tokyo-1"]);
    world.ok(&["put", "shop/carts", "alice", r#"{"a":2}"#, "--from", "dallas"]);
    world.ok(&["put", "cache/pages", "home", "--text", "two", "--from", "dallas"]);
    eventually("both keys are parked", || {
        let lines = world.ok(&["parked", "list", "--json"]);
        let keys: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        keys.len() == 2
            && keys.iter().all(|key| key["node"] == "tokyo-1" && key["kept_changes"] == 1)
            && keys.iter().any(|key| key["state"] == "row_damaged")
            && keys.iter().any(|key| key["state"] == "changes_refused")
    });
    let listed = said(&["parked", "list", "shop/carts", "--node", "tokyo-1"], 0);
    assert!(listed.contains("alice") && !listed.contains("home"), "{listed}");
    let shown = said(&["parked", "show", "shop/carts", "alice", "--node", "tokyo-1"], 0);
    assert!(
        shown.contains("dallas-1@") && shown.contains("history") && shown.contains("1 change"),
        "{shown}"
    );
    assert!(said(&["parked", "show", "shop/carts", "alice"], 2).contains("--node"), "which node?");
    assert!(said(&["parked", "show", "shop/carts", "alice", "--node", "dallas-1"], 1).contains("not parked"));
    assert!(
        said(&["parked", "show", "shop/carts", "nobody", "--from", "tokyo"], 1).contains("KEY_NOT_FOUND")
    );

    // Nothing became readable, so nothing applies.
    let tried = said(&["parked", "retry", "shop/carts", "--node", "tokyo-1"], 1);
    assert!(tried.contains("1 change left, still parked") && tried.contains("1 of 1 parked keys"), "{tried}");
    let tried = said(&["parked", "retry", "cache/pages", "home", "--node", "tokyo-1"], 1);
    assert!(tried.contains("when the row can be read again") && tried.contains("ROW_DAMAGED"), "{tried}");
    assert!(said(&["parked", "retry", "cache/pages", "--node", "tokyo-1"], 1).contains("home: "));

    let unsure = said(&["parked", "drop", "cache/pages", "home", "--node", "tokyo-1"], 2);
    assert!(unsure.contains("nothing was dropped") && unsure.contains("--yes"), "{unsure}");
    assert!(said(&["parked", "list"], 0).contains("home"));
    let gone = said(&["parked", "drop", "cache/pages", "home", "--node", "tokyo-1", "--yes"], 0);
    assert!(gone.contains("1 change") && gone.contains("and the row") && gone.contains("tokyo-1"), "{gone}");
    let gone = said(&["parked", "drop", "shop/carts", "alice", "--node", "tokyo-1", "--yes", "--json"], 0);
    let gone: serde_json::Value = serde_json::from_str(&gone).unwrap();
    assert_eq!(
        (&gone["dropped_changes"], &gone["row_removed"], &gone["node"]),
        (&1.into(), &false.into(), &"tokyo-1".into())
    );
    assert!(said(&["parked", "list"], 0).contains("no parked keys"));
    assert_eq!(
        world.ok(&["get", "shop/carts", "alice", "--from", "tokyo"]),
        r#"{"a":1}"#,
        "without the dropped"
    );
    world.ok(&["put", "cache/pages", "home", "--text", "three", "--from", "dallas"]);
    world.everywhere("cache/pages", "home", "three");
    // What a status says is up to a tenth of a second old.
    eventually("status says what was dropped", || said(&["status"], 0).contains("dropped here by hand"));
}

/// The objects that a command prints, one a line.
fn objects(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_regions_write_apart_is_told_alike_everywhere_and_decided_by_one_command() {
    let world = World::start();
    world.ok(&["put", "shop/carts", "alice", r#"{"note":"hi"}"#, "--from", "tokyo"]);
    world.everywhere("shop/carts", "alice", r#"{"note":"hi"}"#);
    for other in ["dallas", "frankfurt"] {
        world.ok(&["dev", "link", "cut", "tokyo", other]);
    }
    for region in ["tokyo", "dallas"] {
        let note = format!("set /note \"{region}\"");
        let object = format!("set /by {{\"region\":\"{region}\"}}");
        world.ok(&["patch", "shop/carts", "alice", "--op", &note, "--op", &object, "--from", region]);
        world.ok(&["put", "cache/pages", "home", "--text", region, "--from", region]);
    }
    for other in ["dallas", "frankfurt"] {
        world.ok(&["dev", "link", "heal", "tokyo", other]);
    }

    let listed =
        |scope: &str, region: &str| objects(&world.ok(&["conflicts", scope, "--json", "--from", region]));
    for (scope, count) in [("shop/carts", 2), ("cache/pages", 1)] {
        for region in REGIONS {
            eventually(&format!("{region} lists what was hidden in {scope}"), || {
                listed(scope, region).len() == count
            });
        }
        let first = listed(scope, REGIONS[0]);
        for region in REGIONS {
            assert_eq!(listed(scope, region), first, "{scope} in {region}, ids and all");
        }
    }

    // The hidden object, as a whole, and what is shown of the note: then both are decided.
    let found = listed("shop/carts", "dallas");
    let at = |path: &str| found.iter().find(|conflict| conflict["path"] == path).unwrap();
    let id = |path: &str| at(path)["id"].as_str().unwrap().to_owned();
    let (hidden, shown) = (at("/by")["hidden"]["value"].clone(), at("/note")["shown"]["value"].clone());
    world.ok(&["conflicts", "shop/carts", "--take", &id("/by"), "--from", "frankfurt"]);
    let frankfurt = ["conflicts", "shop/carts", "--keep", &id("/note"), "--from", "frankfurt"];
    world.ok(&frankfurt);
    world.everywhere("shop/carts", "alice", &format!("{{\"by\":{hidden},\"note\":{shown}}}"));
    let page = listed("cache/pages", "dallas").remove(0);
    world.ok(&["conflicts", "cache/pages", "--take", page["id"].as_str().unwrap(), "--from", "dallas"]);
    world.everywhere("cache/pages", "home", page["hidden"]["value"]["text"].as_str().unwrap());
    for region in REGIONS {
        assert!(listed("shop/carts", region).is_empty() && listed("cache/pages", region).is_empty());
    }
    let again = world.run(&frankfurt);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("any more"));

    // Who did what, and the document as it was.
    let changes = objects(&world.ok(&["history", "shop/carts", "alice", "--json", "--from", "frankfurt"]));
    assert_eq!(changes.len(), 5);
    assert_eq!(changes[0]["region"], "frankfurt");
    let first = changes[4]["version"].as_str().unwrap();
    assert_eq!(world.ok(&["get", "shop/carts", "alice", "--at", first]), r#"{"note":"hi"}"#);
    let frame = world.ok(&["top", "--once"]);
    assert!(REGIONS.iter().all(|region| frame.contains(&format!("{region}-1"))), "{frame}");
}
