//! A process of its own that writes to a store: to be killed, to run out of room, to have its disk fail.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tropism_disk::{Witness, open};
use tropism_storage::Store;

use super::content::{commit_next, head_of, options, origin};
use super::judge::kind;

/// Set in the child: the directory it writes to.
const DIR: &str = "TROPISM_DISK_TEST_CHILD_DIR";
/// Set in the child: its [`Work`].
const WORK: &str = "TROPISM_DISK_TEST_CHILD_WORK";
/// The test that is the child, when this is a test binary; other programs ask [`run_if_child`] first.
const TEST: &str = "damage::the_child_process";
/// How long a child may say nothing before it counts as hung. Opening and syncing a few MiB takes a fraction of it on
/// any machine.
const HUNG: Duration = Duration::from_secs(60);

/// What a child does: commits, syncs and acknowledges, until it is killed, fails, or has made `until` commits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Commits of which only the last is synced, at most.
    pub(crate) sync_every: u64,
    /// Ends behind this commit.
    pub(crate) until: u64,
    /// From this commit on, the limit holds.
    pub(crate) limit_from: u64,
    pub(crate) limit: Limit,
}

/// A limit of the process that makes its disk look full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    None,
    /// No file can be written beyond so many bytes.
    FileBytes(u64),
    /// So many more files than are open can be opened.
    MoreFiles(u64),
}

impl Work {
    pub(crate) const ENDLESS: Self =
        Self { sync_every: 4, until: u64::MAX, limit_from: u64::MAX, limit: Limit::None };

    fn encode(&self) -> String {
        let (name, amount) = match self.limit {
            Limit::None => ("none", 0),
            Limit::FileBytes(bytes) => ("file-bytes", bytes),
            Limit::MoreFiles(files) => ("more-files", files),
        };
        format!("{} {} {} {name} {amount}", self.sync_every, self.until, self.limit_from)
    }

    fn decode(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |at: usize| words[at].parse().unwrap();
        let limit = match words[3] {
            "file-bytes" => Limit::FileBytes(number(4)),
            "more-files" => Limit::MoreFiles(number(4)),
            _ => Limit::None,
        };
        Self { sync_every: number(0), until: number(1), limit_from: number(2), limit }
    }
}

/// Does the work of a child, if this process is one.
pub(crate) fn run_if_child() -> bool {
    let (Some(dir), Ok(work)) = (env::var_os(DIR), env::var(WORK)) else { return false };
    work_on(Path::new(&dir), Work::decode(&work));
    true
}

fn say(line: String) {
    let mut out = std::io::stdout().lock();
    // The harness of the tests may have begun a line.
    out.write_all(format!("\n{}\n", line.replace('\n', " ")).as_bytes()).unwrap();
    out.flush().unwrap();
}

fn work_on(dir: &Path, work: Work) {
    match open(dir, &options()) {
        Ok((engine, witness)) => {
            let mut store = Store::open(Box::new(engine)).unwrap();
            match write(&mut store, witness, work) {
                Ok(()) => say("ended".into()),
                Err(problem) => say(format!("failed {problem}")),
            }
        }
        Err(error) => return say(format!("refused {} {error}", kind(&error))),
    }
    // As the node's next start finds it: nothing has been mended.
    match open(dir, &options()) {
        Ok((engine, _)) => say(format!("reopened {}", head_of(&engine).unwrap().commit)),
        Err(error) => say(format!("refused {} {error}", kind(&error))),
    }
}

fn write(store: &mut Store, mut witness: Witness, work: Work) -> Result<(), String> {
    let mut limited = false;
    while store.head().commit < work.until {
        for _ in 0..=store.head().commit % work.sync_every {
            if !limited && store.head().commit >= work.limit_from {
                limited = true;
                hold(work.limit);
            }
            commit_next(store).map_err(|error| error.to_string())?;
        }
        store.sync().map_err(|error| error.to_string())?;
        witness.record(origin(), 0, store.head()).map_err(|error| format!("witness: {error}"))?;
        say(format!("acknowledged {}", store.head().commit));
    }
    Ok(())
}

fn hold(limit: Limit) {
    let (resource, amount) = match limit {
        Limit::None => return,
        Limit::FileBytes(bytes) => (Resource::Fsize, bytes),
        Limit::MoreFiles(more) => {
            let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
            (Resource::Nofile, open + more)
        }
    };
    let maximum = getrlimit(resource).maximum;
    setrlimit(resource, Rlimit { current: Some(amount), maximum }).unwrap();
}

/// What a child said until it ended.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The last commit that it acknowledged.
    pub(crate) acknowledged: u64,
    /// Why it stopped.
    pub(crate) failed: Option<String>,
    /// Whether it did all its work.
    pub(crate) ended: bool,
    /// The commit at which the store opened again, before anything was mended.
    pub(crate) reopened: Option<u64>,
    /// Why the store did not open.
    pub(crate) refused: Option<String>,
    /// It said nothing for too long, and was killed.
    pub(crate) hung: bool,
}

/// A child that runs. It is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    told: Told,
}

impl Running {
    /// Starts a child; `wrapper` is the command that starts it, with what precedes the program.
    pub(crate) fn start(dir: &Path, work: Work, wrapper: &[String]) -> Self {
        let program = env::current_exe().unwrap();
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(["--exact", TEST, "--nocapture", "--test-threads=1"]);
        command.env(DIR, dir).env(WORK, work.encode());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)).ok(); // nobody listens any more
        });
        Self { child, lines, told: Told::default() }
    }

    /// Waits for the first acknowledgement, or the end.
    pub(crate) fn wait_for_work(&mut self) {
        while self.told.acknowledged == 0 && self.hear() {}
    }

    /// Takes a line; false behind the last.
    fn hear(&mut self) -> bool {
        match self.lines.recv_timeout(HUNG) {
            Ok(line) => {
                self.told.note(&line);
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                self.told.hung = true;
                false
            }
        }
    }

    /// Kills it after a while and says what it had said.
    pub(crate) fn kill_after(mut self, while_: Duration) -> Told {
        let until = Instant::now() + while_;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.lines.recv_timeout(left) {
                Ok(line) => self.told.note(&line),
                Err(_) => break,
            }
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        while self.hear() {}
        std::mem::take(&mut self.told)
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> Told {
        while self.hear() {}
        std::mem::take(&mut self.told)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok(); // it may have ended
        self.child.wait().ok();
    }
}

impl Told {
    fn note(&mut self, line: &str) {
        let Some((word, rest)) = line.split_once(' ') else {
            self.ended |= line == "ended";
            return;
        };
        match word {
            "acknowledged" => self.acknowledged = rest.parse().unwrap(),
            "failed" => self.failed = Some(rest.to_owned()),
            "reopened" => self.reopened = rest.parse().ok(),
            "refused" => self.refused = Some(rest.to_owned()),
            _ => {} // of the harness
        }
    }
}
