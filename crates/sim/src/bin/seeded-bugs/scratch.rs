//! A copy of what the simulator is built from, in which bugs are seeded. The checkout is only read.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::bug::Bug;

/// The crates that the simulator is built from.
const CRATES: [&str; 5] = ["crdt", "placement", "storage", "replica", "sim"];
/// Folders that they read at compile time.
const INCLUDED: [&str; 1] = ["regions"];
/// A world takes a second or two, a minute where many share the machine: one that takes this long, in seconds, does not
/// end.
const WORLD_SECONDS: u64 = 1_800;
/// How often a running world is looked at, ms.
const LOOK_MS: u64 = 10;

/// The copy, its build output, and a lock so that two runs do not share them.
pub(crate) struct Scratch {
    root: PathBuf,
    folder: PathBuf,
    seeded: Option<Bug>,
    _lock: File,
}

/// What one world came to.
pub(crate) enum World {
    /// Nothing was found.
    Holds,
    /// The promise that was broken, and how.
    Caught(String, String),
}

impl Scratch {
    /// Makes the copy of `root` in `folder`, or brings an earlier one up to date.
    pub(crate) fn new(root: &Path, folder: &Path) -> Result<Self, String> {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let lock = folder.join("lock");
        let unlocked = |error: &dyn std::fmt::Display| format!("{}: {error}", lock.display());
        let file = File::create(&lock).map_err(|error| unlocked(&error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(unlocked(&"another run uses this folder")),
            Err(TryLockError::Error(error)) => return Err(unlocked(&error)),
        }
        let scratch = Self { root: root.to_owned(), folder: folder.to_owned(), seeded: None, _lock: file };
        let manifest = read(&root.join("Cargo.toml"))?;
        scratch.write("Cargo.toml", &smaller(&manifest)?)?;
        scratch.write("Cargo.lock", &read(&root.join("Cargo.lock"))?)?;
        for name in CRATES {
            scratch.write(
                &format!("crates/{name}/Cargo.toml"),
                &read(&root.join(format!("crates/{name}/Cargo.toml")))?,
            )?;
            scratch.copy_folder(&format!("crates/{name}/src"))?;
        }
        for name in INCLUDED {
            scratch.copy_folder(name)?;
        }
        Ok(scratch)
    }

    /// Puts a bug in the place of the one before.
    pub(crate) fn seed(&mut self, bug: &Bug) -> Result<(), String> {
        let original = read(&self.root.join(&bug.file))?;
        let patched = bug.patch(&original)?;
        if let Some(before) = self.seeded.take().filter(|before| before.file != bug.file) {
            self.write(&before.file, &read(&self.root.join(&before.file))?)?;
        }
        self.write(&bug.file, &patched)?;
        self.seeded = Some(bug.clone());
        Ok(())
    }

    /// Builds the simulator of the copy.
    pub(crate) fn build(&self) -> Result<(), String> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        // Everything it needs was fetched to build this program.
        let arguments = ["build", "--quiet", "--offline", "--package", "tropism-sim", "--bin", "tropism-sim"];
        let output = Command::new(cargo)
            .args(arguments)
            .arg("--target-dir")
            .arg(self.folder.join("target"))
            .current_dir(&self.folder)
            .env("CARGO_TERM_COLOR", "never")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cargo does not start: {error}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("it does not build:\n{}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Runs one world with what was built.
    pub(crate) fn world(&self, seed: u64) -> Result<World, String> {
        let program = self.folder.join("target/debug/tropism-sim");
        let said = self.folder.join("said");
        let file = File::create(&said).map_err(|error| format!("{}: {error}", said.display()))?;
        let begun = Instant::now();
        let mut child = Command::new(&program)
            .args(["--json", "--seeds", "1", "--first-seed", &seed.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", program.display()))?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return judge(status, &read(&said)?),
                Ok(None) if begun.elapsed().as_secs() >= WORLD_SECONDS => {
                    child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
                    let text = format!("the world did not end in {WORLD_SECONDS} s");
                    return Ok(World::Caught("no end".to_owned(), text));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(LOOK_MS)),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn copy_folder(&self, below: &str) -> Result<(), String> {
        let from = self.root.join(below);
        let to = self.folder.join(below);
        let mut names = Vec::new();
        for entry in fs::read_dir(&from).map_err(|error| format!("{}: {error}", from.display()))? {
            let entry = entry.map_err(|error| format!("{}: {error}", from.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{below}/{name}");
            match entry.path().is_dir() {
                true => self.copy_folder(&path)?,
                false => self.write(&path, &read(&entry.path())?)?,
            }
            names.push(name);
        }
        // What an earlier copy had and the checkout has no more.
        for entry in fs::read_dir(&to).into_iter().flatten().flatten() {
            if !names.contains(&entry.file_name().to_string_lossy().into_owned()) {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Writes a file of the copy, unless that is what it says already: what did not change is not built again.
    fn write(&self, path: &str, text: &str) -> Result<(), String> {
        let path = self.folder.join(path);
        if fs::read_to_string(&path).is_ok_and(|found| found == text) {
            return Ok(());
        }
        let parent = path.parent().map_or(Ok(()), fs::create_dir_all);
        parent.and_then(|()| fs::write(&path, text)).map_err(|error| format!("{}: {error}", path.display()))
    }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The manifest of a workspace that has nothing but the crates that were copied.
fn smaller(manifest: &str) -> Result<String, String> {
    let mut changed = 0;
    let lines: Vec<&str> = manifest
        .lines()
        .map(|line| {
            let fewer = [("members = ", "members = [\"crates/*\"]"), ("default-members = ", "")];
            let fewer = fewer.iter().find(|(begin, _)| line.starts_with(begin));
            changed += usize::from(fewer.is_some());
            fewer.map_or(line, |(_, fewer)| fewer)
        })
        .collect();
    match changed {
        2 => Ok(lines.join("\n") + "\n"),
        _ => Err("Cargo.toml: its members and default-members are not lines of their own".to_owned()),
    }
}

/// What a world came to, by how its process ended and what it said.
fn judge(status: ExitStatus, said: &str) -> Result<World, String> {
    if status.success() {
        return Ok(World::Holds);
    }
    // `seed 7: Promise: text`, as the simulator says it.
    let violation = said.lines().find_map(|line| {
        let (_, violation) = line.strip_prefix("seed ")?.split_once(": ")?;
        violation.split_once(": ")
    });
    if let Some((promise, text)) = violation {
        return Ok(World::Caught(promise.to_owned(), text.to_owned()));
    }
    let mut lines = said.lines().skip_while(|line| !line.contains("panicked at "));
    if let Some(place) = lines.next() {
        let place = place.split_once("panicked at ").map_or(place, |(_, place)| place);
        return Ok(World::Caught(
            "panic".to_owned(),
            format!("{place} {}", lines.next().unwrap_or_default()),
        ));
    }
    Err(format!("the simulator ended with {status} and did not say why:\n{said}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::root;

    #[test]
    fn the_workspace_can_be_made_smaller() {
        let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(smaller(&manifest).unwrap().contains("\nmembers = [\"crates/*\"]\n"));
        assert!(smaller("[workspace]\n").unwrap_err().contains("members"));
    }

    #[cfg(unix)]
    #[test]
    fn a_world_that_fails_is_a_catch_and_one_that_says_nothing_is_an_error() {
        use std::os::unix::process::ExitStatusExt;
        let failed = ExitStatus::from_raw(1 << 8);
        assert!(matches!(judge(ExitStatus::from_raw(0), ""), Ok(World::Holds)));
        let caught = |said: &str| match judge(failed, said) {
            Ok(World::Caught(promise, text)) => (promise, text),
            _ => panic!("{said:?} is not a catch"),
        };
        assert_eq!(
            caught("noise\nseed 7: Stability: n1: holds\nreplay: cargo\n"),
            ("Stability".into(), "n1: holds".into())
        );
        let panic = "\nthread 'main' (1) panicked at crates/x.rs:1:2:\na vector counts without gaps\n";
        assert_eq!(caught(panic), ("panic".into(), "crates/x.rs:1:2: a vector counts without gaps".into()));
        assert!(judge(failed, "nothing known").is_err());
    }
}
