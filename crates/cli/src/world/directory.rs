//! The data directory of a development world.
//!
//! ```text
//! DIR/tropism-dev-world      marks the directory as a world's own; locked while the world runs
//! DIR/regions.toml           the regions file in force
//! DIR/cluster.secret         what the nodes prove to each other, drawn once
//! DIR/world.json             the ready file
//! DIR/nodes/ID/node.toml     a node's configuration, written at each start
//! DIR/nodes/ID/log           what it wrote to stdout and stderr since the world was started
//! DIR/nodes/ID/data          its store
//! ```

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tropism_placement::Regions;

use super::WorldError;

const MARKER: &str = "tropism-dev-world";
const MARKER_TEXT: &str =
    "A development world of tropism. `tropism dev --fresh` deletes everything in this directory.\n";
const REGIONS: &str = "regions.toml";
const SECRET: &str = "cluster.secret";
/// Random bytes of a secret; written as twice as many hexadecimal digits.
const SECRET_RANDOM_BYTES: usize = 32;
/// For files that others may read, and for those that they may not.
const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

/// A world's data directory, locked until this is dropped.
pub(crate) struct WorldDirectory {
    path: PathBuf,
    lock: File,
}

impl WorldDirectory {
    /// Takes a directory: creates it, or recognises it as a world's own. With `fresh` everything in it is deleted.
    pub(crate) fn open(path: &Path, fresh: bool) -> Result<Self, WorldError> {
        let shown = path.display();
        let cannot = |error| WorldError::system(format!("data directory {shown}"), error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(cannot)?;
        let path = path.canonicalize().map_err(cannot)?;
        let marker = path.join(MARKER);
        // A marker alone may be empty: its world ended before it wrote it.
        let other = |entry: io::Result<fs::DirEntry>| entry.map_or(true, |entry| entry.file_name() != MARKER);
        let empty = !fs::read_dir(&path).map_err(cannot)?.any(other);
        let mut lock =
            OpenOptions::new().read(true).write(true).create(empty).truncate(false).open(&marker).map_err(
                |error| match error.kind() {
                    io::ErrorKind::NotFound => WorldError::Options(format!(
                        "{shown} is not empty and not a development world; name another directory with --data"
                    )),
                    _ => cannot(error),
                },
            )?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(WorldError::Options(format!(
                    "another world is running in {shown}; stop it, or name another directory with --data"
                )));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
        let mut text = String::new();
        let read = Read::by_ref(&mut lock).take(MARKER_TEXT.len() as u64 + 1).read_to_string(&mut text);
        if empty && matches!(read, Ok(0)) {
            lock.write_all(MARKER_TEXT.as_bytes()).map_err(cannot)?;
        } else if read.is_err() || text != MARKER_TEXT {
            return Err(WorldError::Options(format!(
                "{} is not what a development world writes there; name another directory with --data",
                marker.display()
            )));
        }
        if fresh {
            empty_out(&path).map_err(cannot)?;
        }
        Ok(Self { path, lock })
    }

    /// The ready file that is always written.
    pub(crate) fn ready_file(&self) -> PathBuf {
        self.path.join("world.json")
    }

    /// The directory of a node, created if need be.
    pub(crate) fn node(&self, id: &str) -> Result<PathBuf, WorldError> {
        let path = self.path.join("nodes").join(id);
        fs::create_dir_all(&path)
            .map_err(|error| WorldError::system(format!("directory {}", path.display()), error))?;
        Ok(path)
    }

    /// Puts the regions file where the nodes read it. Stores made under other regions or rules would not fit.
    pub(crate) fn put_regions(&self, text: &str, regions: &Regions) -> Result<PathBuf, WorldError> {
        let path = self.path.join(REGIONS);
        match fs::read_to_string(&path) {
            Ok(before) => {
                let same = Regions::parse(REGIONS, &before).is_ok_and(|before| {
                    let names = |regions: &Regions| -> Vec<String> {
                        regions.regions().iter().map(|region| region.name.as_str().to_owned()).collect()
                    };
                    names(&before) == names(regions) && before.rules() == regions.rules()
                });
                if !same {
                    return Err(WorldError::Options(format!(
                        "the world in {} was made with other regions or rules; start over with --fresh, or name \
                         another directory with --data",
                        self.path.display()
                    )));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(WorldError::system(path.display().to_string(), error)),
        }
        write_whole(&path, text.as_bytes(), PUBLIC)?;
        Ok(path)
    }

    /// The file with the cluster's secret, which is drawn at the first start.
    pub(crate) fn secret(&self) -> Result<PathBuf, WorldError> {
        let path = self.path.join(SECRET);
        if !path.exists() {
            let random: [u8; SECRET_RANDOM_BYTES] = rand::random();
            let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            write_whole(&path, digits.as_bytes(), PRIVATE)?;
        }
        Ok(path)
    }
}

impl Drop for WorldDirectory {
    fn drop(&mut self) {
        // Closing is not enough: a child that is just being started still has a copy of the descriptor.
        let _ = self.lock.unlock();
    }
}

/// Writes a public file so that a reader sees it whole or not at all.
pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> Result<(), WorldError> {
    write_whole(path, bytes, PUBLIC)
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WorldError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| WorldError::system(format!("writing {}", path.display()), error))
}

/// Deletes everything but the marker, which keeps its lock. Links are deleted, not followed.
fn empty_out(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Where the program keeps what outlives it: `$XDG_STATE_HOME/tropism`, else `~/.local/state/tropism`. None when the
/// environment names neither.
pub(crate) fn state_directory() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("tropism"))
}

/// Where a world keeps its data unless `--data` says otherwise.
pub(crate) fn default_data_directory() -> Result<PathBuf, WorldError> {
    let none = "neither XDG_STATE_HOME nor HOME names a directory; name one with --data";
    Ok(state_directory().ok_or_else(|| WorldError::Options(none.to_owned()))?.join("dev"))
}
