//! The ready file: what a running world offers, for people, scripts and the other commands.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::WorldError;
use super::directory::{state_directory, write_public};

/// Names the ready file for commands without `--ready-file`.
pub(crate) const READY_FILE_VARIABLE: &str = "TROPISM_READY_FILE";
/// Largest ready file that is read, in bytes: 64 regions and 256 places take some 2 MB.
const MAX_READY_BYTES: u64 = 8 << 20;
/// How long a world may take to accept a connection; it is on this machine.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// In the state directory: the path of the ready file of the world that was started last.
const LAST_STARTED: &str = "last-world";

/// A running world. URLs are `http://127.0.0.1:PORT`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// The regions, in the order of the regions file.
    pub(crate) regions: Vec<RegionDescription>,
    /// Per place, regions included, how clients reach the nodes from there.
    pub(crate) places: BTreeMap<String, PlaceDescription>,
    /// `IP:port` of the control port.
    pub(crate) control: SocketAddr,
}

/// A region of a running world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RegionDescription {
    /// Its name.
    pub(crate) name: String,
    /// The endpoint of its first node, without delay.
    pub(crate) endpoint: String,
    /// Its nodes.
    pub(crate) nodes: Vec<NodeDescription>,
}

/// A node of a running world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeDescription {
    /// Its id.
    pub(crate) id: String,
    /// Where it serves clients, without delay.
    pub(crate) endpoint: String,
    /// Where its metrics are scraped.
    #[serde(default)]
    pub(crate) metrics: String,
    /// Its process id, of its last start.
    pub(crate) pid: u32,
    /// The directory of its store.
    pub(crate) data_dir: PathBuf,
}

/// The world as seen by clients in one place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlaceDescription {
    /// The id of the nearest node.
    pub(crate) nearest: String,
    /// Per node id, the endpoint whose round trip is that from this place.
    pub(crate) endpoints: BTreeMap<String, String>,
    /// Per node id, that round trip in milliseconds.
    pub(crate) rtt_ms: BTreeMap<String, f64>,
}

impl Description {
    /// Writes the ready file; a reader sees it whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), WorldError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| WorldError::system("the ready file".to_owned(), error.into()))?;
        text.push('\n');
        write_public(path, text.as_bytes())
    }

    /// Reads a ready file.
    pub(crate) fn read(path: &Path) -> Result<Self, WorldError> {
        let shown = path.display();
        let no_world = |why: String| WorldError::NoWorld(format!("{shown} {why}"));
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_READY_BYTES).read_to_end(&mut text)).map_err(
            |error| match error.kind() {
                io::ErrorKind::NotFound => no_world("does not exist".to_owned()),
                _ => no_world(format!("cannot be read: {error}")),
            },
        )?;
        serde_json::from_slice(&text).map_err(|error| no_world(format!("is no ready file: {error}")))
    }
}

/// The world to talk to: that of `ready_file`, else of `TROPISM_READY_FILE`, else the last one started. It is running.
pub(crate) fn find_world(ready_file: Option<&Path>) -> Result<Description, WorldError> {
    find(ready_file, env::var_os(READY_FILE_VARIABLE), state_directory())
}

pub(crate) fn find(
    ready_file: Option<&Path>,
    variable: Option<OsString>,
    state: Option<PathBuf>,
) -> Result<Description, WorldError> {
    let variable = variable.filter(|value| !value.is_empty()).map(PathBuf::from);
    let last_started = || fs::read_to_string(state?.join(LAST_STARTED)).ok().map(PathBuf::from);
    let path = ready_file
        .map(Path::to_path_buf)
        .or(variable)
        .or_else(last_started)
        .ok_or_else(|| WorldError::NoWorld("no world was started here".to_owned()))?;
    let world = Description::read(&path)?;
    if TcpStream::connect_timeout(&world.control, ANSWER_TIME).is_err() {
        return Err(WorldError::NoWorld(format!("the world of {} is not running any more", path.display())));
    }
    Ok(world)
}

/// Remembers a ready file as that of the world started last.
pub(crate) fn remember(state: &Path, ready_file: &Path) -> Result<(), WorldError> {
    fs::create_dir_all(state)
        .map_err(|error| WorldError::system(format!("directory {}", state.display()), error))?;
    write_public(&state.join(LAST_STARTED), ready_file.as_os_str().as_encoded_bytes())
}
