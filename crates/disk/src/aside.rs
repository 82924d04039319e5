//! Stores that were set aside: kept beside the one that takes their place, with the reason, until they are looked at.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::engine::{DiskEngine, DiskOptions};
use crate::{STORE, SUSPECT, TORN_TAIL, WITNESS, lock, sync_dir};

/// Beginning of the names of directories that hold a store set aside; the Unix time in ms follows.
const ASIDE: &str = "set-aside-";
/// What was wrong, in words.
const REASON: &str = "reason";
/// There when everything that could be read was taken over.
const SALVAGED: &str = "salvaged";
/// Stores that are kept, the newest. A disk that damages one store after the other would be full of them.
pub const ASIDE_KEPT: usize = 2;

/// A store that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its directory.
    pub dir: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

impl Aside {
    /// Opens what is left of it. It was verified to be damaged, or is older than it should be: nothing of it may be served.
    /// `None` when the engine cannot read it at all.
    pub fn open(&self, options: &DiskOptions) -> Option<DiskEngine> {
        let lock = lock(&self.dir).ok()?;
        // The engine was not made for files that are not its own; what it does not survive is not to be read.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            DiskEngine::open(&self.dir.join(STORE), options, lock, &self.dir.join(SUSPECT), 0)
        }));
        opened.ok()?.ok()
    }

    /// Notes that everything that could be read was taken over: nobody has to read it again.
    pub fn salvaged(&self) -> io::Result<()> {
        fs::write(self.dir.join(SALVAGED), b"")
    }
}

/// Moves the store of a data directory, with its witness, to a directory beside it. The next [`open`](crate::open) makes an
/// empty one. Of earlier ones the oldest goes, so that [`ASIDE_KEPT`] stay. Nothing has the store open.
pub fn set_aside(dir: &Path, wall_ms: u64, reason: &str) -> io::Result<Aside> {
    let aside = Aside { dir: dir.join(format!("{ASIDE}{wall_ms}")), reason: reason.to_owned() };
    fs::create_dir_all(&aside.dir)?;
    fs::write(aside.dir.join(REASON), reason)?;
    // The store last: as long as it is there, a start finds it damaged again.
    for name in [TORN_TAIL, SUSPECT, WITNESS, STORE] {
        match fs::rename(dir.join(name), aside.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    sync_dir(&aside.dir)?;
    sync_dir(dir)?;
    let mut all = list(dir)?;
    let surplus = all.len().saturating_sub(ASIDE_KEPT);
    for (_, old) in all.drain(..surplus) {
        fs::remove_dir_all(old)?;
    }
    Ok(aside)
}

/// The store that was set aside last, unless everything was taken over from it.
pub fn last_aside(dir: &Path) -> io::Result<Option<Aside>> {
    let Some((_, dir)) = list(dir)?.pop() else { return Ok(None) };
    if dir.join(SALVAGED).try_exists()? {
        return Ok(None);
    }
    let reason = fs::read_to_string(dir.join(REASON)).unwrap_or_else(|_| "unknown".to_owned());
    Ok(Some(Aside { dir, reason }))
}

/// The directories of stores that were set aside, oldest first.
fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let at = name.to_str().and_then(|name| name.strip_prefix(ASIDE)).and_then(|at| at.parse().ok());
        found.extend(at.map(|at: u64| (at, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tropism_storage::{Batch, Engine, Space, StoreKey, View};

    use super::*;
    use crate::{OpenError, open};

    #[test]
    fn a_store_is_set_aside_with_its_witness_and_can_still_be_read_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let options = DiskOptions::default();
        for at in 1..=4_u64 {
            let (mut engine, witness) = open(dir.path(), &options).unwrap();
            let key = StoreKey::existing(b"\0\0key".to_vec().into());
            let value = at.to_be_bytes().to_vec();
            engine.commit(Batch { writes: vec![(Space::Log, key, Some(value.into()))] }).unwrap();
            engine.sync().unwrap();
            drop((engine, witness));
            let aside = set_aside(dir.path(), at, "for a test").unwrap();
            assert_eq!(last_aside(dir.path()).unwrap(), Some(aside.clone()));
            let old = aside.open(&options).unwrap();
            assert_eq!(old.get(Space::Log, b"\0\0key").unwrap().unwrap()[..], at.to_be_bytes());
            drop(old);
            aside.salvaged().unwrap();
            assert_eq!(last_aside(dir.path()).unwrap(), None);
        }
        let names: Vec<u64> = list(dir.path()).unwrap().into_iter().map(|(at, _)| at).collect();
        assert_eq!(names, [3, 4]);
    }

    #[test]
    fn what_is_left_when_the_move_was_interrupted_is_not_taken_for_an_empty_store() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), &DiskOptions::default()).unwrap());
        // The witness was moved, the store was not.
        fs::rename(dir.path().join(WITNESS), dir.path().join("elsewhere")).unwrap();
        assert!(open(dir.path(), &DiskOptions::default()).is_ok(), "without a commit nothing can be short");
        fs::remove_dir_all(dir.path().join(STORE)).unwrap();
        let opened = open(dir.path(), &DiskOptions::default());
        assert!(matches!(opened, Err(OpenError::Damaged { .. })));
    }
}
