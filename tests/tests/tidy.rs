//! Rules of the repository that no compiler checks.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Files below a folder with one of these endings, without build output.
fn files(below: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(below)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "nothing in {below}");
    found
}

/// Lines of code: tests, comments and documentation left out.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let body = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = body.lines().enumerate().map(|(number, line)| (number + 1, line.to_owned()));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//")).collect()
}

#[test]
fn below_the_pure_line_there_is_no_clock_randomness_thread_file_socket_or_unordered_map() {
    let banned = [
        ("tokio::", "async belongs to the shell"),
        ("tonic::", "the wire belongs to the shell"),
        ("SystemTime", "time is an argument"),
        ("Instant::now", "time is an argument"),
        ("rand::", "randomness is an argument"),
        ("std::thread", "one replica, one thread, which the shell owns"),
        ("std::fs", "storage is behind the engine"),
        ("TcpStream", "sockets belong to the shell"),
        ("TcpListener", "sockets belong to the shell"),
        ("HashMap", "its order differs from run to run: BTreeMap"),
        ("HashSet", "its order differs from run to run: BTreeSet"),
    ];
    for crate_name in ["crdt", "placement", "storage", "replica", "sim"] {
        for path in files(&format!("crates/{crate_name}/src"), &[".rs"]) {
            let text = path.to_string_lossy();
            let program = text.ends_with("sim/src/main.rs") || text.contains("sim/src/bin/");
            if program || text.ends_with("tests.rs") || text.contains("/tests/") {
                continue; // programs, and tests
            }
            for (number, line) in code(&path) {
                for (word, instead) in banned {
                    assert!(!line.contains(word), "{}:{number}: {word}: {instead}", path.display());
                }
            }
        }
    }
}

#[test]
fn the_crates_below_the_line_depend_on_nothing_above_it() {
    for crate_name in ["crdt", "placement", "storage", "replica", "sim"] {
        let manifest = fs::read_to_string(root().join(format!("crates/{crate_name}/Cargo.toml"))).unwrap();
        let normal = manifest.split("[dev-dependencies]").next().unwrap();
        for banned in
            ["tokio", "tonic", "prost", "rand.", "fjall", "tropism-node", "tropism-wire", "tropism-disk"]
        {
            assert!(!normal.contains(banned), "{crate_name} depends on {banned}");
        }
    }
}

#[test]
fn a_plain_cargo_run_knows_which_program_is_meant() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.lines().find(|line| line.starts_with("default-members")).unwrap();
    let of = |member: &&str| fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let named: Vec<&str> = members
        .split('"')
        .filter(|word| word.starts_with("crates/"))
        .filter(|member| of(member).lines().any(|line| line.starts_with("default-run")))
        .collect();
    assert_eq!(named, ["crates/cli"], "the README's first command has no --bin");
}

#[test]
fn every_module_opens_with_what_it_is_for() {
    for path in files("crates", &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("//!") || text.starts_with("#!"),
            "{} opens without a story",
            path.display()
        );
    }
}

#[test]
fn nothing_is_left_to_do_and_no_test_is_ignored() {
    let unfinished = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"].map(str::to_owned);
    for path in files("crates", &[".rs"]) {
        for (number, line) in code(&path) {
            for word in &unfinished {
                assert!(!line.contains(word.as_str()), "{}:{number}: {word}", path.display());
            }
        }
    }
}

#[test]
fn relative_links_in_the_documents_lead_somewhere() {
    let mut documents = files("docs", &[".md"]);
    documents.push(root().join("README.md"));
    for path in documents {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(path.parent().unwrap().join(target).exists(), "{}: {link}", path.display());
        }
    }
}
