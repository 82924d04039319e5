//! A node of the world: a child process, supervised by one task.
//!
//! The child's stdin is a pipe that the parent holds open and never writes to. However the parent ends, the pipe
//! closes, and the child ends at once ([`end_with_parent`]): killing the parent is a power cut of the world.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::WorldError;

/// How long a node has from its start until it answers: a store after a crash is checked first.
const START_TIME: Duration = Duration::from_secs(60);
/// How long a node that was told to stop may take; then it is killed.
const STOP_TIME: Duration = Duration::from_secs(5);
/// Pause between questions whether a node answers.
const ASK_INTERVAL: Duration = Duration::from_millis(25);
/// Longest a single question may take.
const ASK_TIME: Duration = Duration::from_secs(2);
/// Lines of a log that a report of a failure repeats, and most bytes of them.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 8 << 10;
/// Orders waiting for a node; callers beyond it wait.
const ORDERS: usize = 8;

/// Asks a node's endpoint whether it serves.
pub(crate) type Health = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// How a node is started, the same each time.
pub(crate) struct Launch {
    /// The node's id.
    pub(crate) id: String,
    /// Program and arguments; the path of the configuration is added.
    pub(crate) command: Vec<OsString>,
    /// Its configuration file.
    pub(crate) config: PathBuf,
    /// Where its stdout and stderr go.
    pub(crate) log: PathBuf,
    /// Where it serves clients.
    pub(crate) client: SocketAddr,
}

/// A node, as the rest of the world sees it. When the last clone of it is dropped, the process is killed.
#[derive(Clone)]
pub(crate) struct NodeProcess {
    launch: Arc<Launch>,
    orders: mpsc::Sender<(Order, oneshot::Sender<Result<(), WorldError>>)>,
    state: watch::Receiver<ProcessState>,
}

/// What a node is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Start the process.
    Start,
    /// SIGKILL: a crash.
    Kill,
    /// SIGSTOP: it hangs, its sockets stay.
    Pause,
    /// SIGCONT.
    Resume,
    /// SIGTERM, and SIGKILL if that does not help in time.
    Stop,
}

/// How a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProcessState {
    /// Running under this process id.
    Running(u32),
    /// Stopped in its tracks.
    Paused(u32),
    /// Not running, as it was told.
    Down,
    /// Ended on its own: what happened, with the end of its log.
    Failed(String),
}

impl NodeProcess {
    /// A node that is not started yet. Its unexpected ends are told to `failures`.
    pub(crate) fn new(launch: Launch, failures: mpsc::Sender<String>) -> Self {
        let launch = Arc::new(launch);
        let (orders, received) = mpsc::channel(ORDERS);
        let (state, seen) = watch::channel(ProcessState::Down);
        let supervisor = Supervisor { launch: launch.clone(), running: None, state, failures };
        tokio::spawn(supervisor.supervise(received));
        Self { launch, orders, state: seen }
    }

    /// Where it serves clients, as a URL.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.launch.client)
    }

    /// How it is.
    pub(crate) fn state(&self) -> ProcessState {
        self.state.borrow().clone()
    }

    /// Gives an order and waits until it is done. A started process does not serve yet.
    pub(crate) async fn order(&self, order: Order) -> Result<(), WorldError> {
        let (reply, done) = oneshot::channel();
        let gone = || WorldError::Refused(format!("{} is being shut down", self.launch.id));
        self.orders.send((order, reply)).await.map_err(|_| gone())?;
        done.await.map_err(|_| gone())?
    }

    /// Waits until the started node answers.
    pub(crate) async fn serving(&self, healthy: &Health) -> Result<(), WorldError> {
        let mut state = self.state.clone();
        let answers = async {
            loop {
                let asked = async {
                    TcpStream::connect(self.launch.client).await.is_ok() && healthy(self.endpoint()).await
                };
                if matches!(timeout(ASK_TIME, asked).await, Ok(true)) {
                    return;
                }
                sleep(ASK_INTERVAL).await;
            }
        };
        let ended = |state: &ProcessState| matches!(state, ProcessState::Down | ProcessState::Failed(_));
        tokio::select! {
            () = answers => Ok(()),
            state = state.wait_for(ended) => Err(WorldError::Node(match state.as_deref() {
                Ok(ProcessState::Failed(what)) => what.clone(),
                _ => format!("{} was stopped before it served", self.launch.id),
            })),
            () = sleep(START_TIME) => Err(WorldError::Node(format!(
                "{} does not answer on {} after {} s{}",
                self.launch.id,
                self.launch.client,
                START_TIME.as_secs(),
                tail(&self.launch)
            ))),
        }
    }
}

/// The task that owns the child.
struct Supervisor {
    launch: Arc<Launch>,
    running: Option<Running>,
    state: watch::Sender<ProcessState>,
    failures: mpsc::Sender<String>,
}

struct Running {
    child: Child,
    pid: Pid,
    paused: bool,
    /// Open as long as the node shall live.
    _lifeline: Option<ChildStdin>,
}

impl Supervisor {
    async fn supervise(
        mut self,
        mut orders: mpsc::Receiver<(Order, oneshot::Sender<Result<(), WorldError>>)>,
    ) {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some((order, reply)) => {
                        let done = self.obey(order).await;
                        self.publish();
                        let _ = reply.send(done); // who asked may be gone
                    }
                    None => return, // the child is killed by being dropped
                },
                status = ended(&mut self.running) => self.failed(status),
            }
        }
    }

    async fn obey(&mut self, order: Order) -> Result<(), WorldError> {
        let id = &self.launch.id;
        let refuse = |what: &str| Err(WorldError::Refused(format!("{id} {what}")));
        let signalled =
            |error: rustix::io::Errno| WorldError::system(format!("signalling {id}"), error.into());
        let start = format!("is not running; `tropism dev node start {id}` starts it");
        match (order, &mut self.running) {
            (Order::Start, None) => {
                let running = self.launch.spawn();
                self.running =
                    Some(running.map_err(|error| WorldError::system(format!("starting {id}"), error))?);
            }
            (Order::Start, Some(_)) => return refuse("is running already"),
            (Order::Stop, None) => {}
            (_, None) => return refuse(&start),
            (Order::Kill, Some(running)) => {
                running.end().await.map_err(|error| WorldError::system(format!("killing {id}"), error))?;
                self.running = None;
            }
            (Order::Pause, Some(running)) => {
                if running.paused {
                    return refuse("is paused already");
                }
                kill_process(running.pid, Signal::STOP).map_err(signalled)?;
                running.paused = true;
            }
            (Order::Resume, Some(running)) => {
                if !running.paused {
                    return refuse("is not paused");
                }
                kill_process(running.pid, Signal::CONT).map_err(signalled)?;
                running.paused = false;
            }
            (Order::Stop, Some(running)) => {
                kill_process(running.pid, Signal::TERM).map_err(signalled)?;
                kill_process(running.pid, Signal::CONT).map_err(signalled)?; // a paused one must wake to hear it
                if timeout(STOP_TIME, running.child.wait()).await.is_err() {
                    running
                        .end()
                        .await
                        .map_err(|error| WorldError::system(format!("killing {id}"), error))?;
                }
                self.running = None;
            }
        }
        Ok(())
    }

    /// The child ended and nobody had told it to.
    fn failed(&mut self, status: io::Result<ExitStatus>) {
        self.running = None;
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let what = format!("{} ended by itself: {how}{}", self.launch.id, tail(&self.launch));
        // A full queue has enough to tell; the state says it as well.
        let _ = self.failures.try_send(what.clone());
        self.state.send_replace(ProcessState::Failed(what));
    }

    fn publish(&self) {
        self.state.send_if_modified(|state| {
            let now = match &self.running {
                // A refused order does not make it forget what happened.
                None if matches!(state, ProcessState::Failed(_)) => return false,
                None => ProcessState::Down,
                Some(running) if running.paused => {
                    ProcessState::Paused(running.pid.as_raw_nonzero().get() as u32)
                }
                Some(running) => ProcessState::Running(running.pid.as_raw_nonzero().get() as u32),
            };
            let changed = *state != now;
            *state = now;
            changed
        });
    }
}

async fn ended(running: &mut Option<Running>) -> io::Result<ExitStatus> {
    match running {
        Some(running) => running.child.wait().await,
        None => std::future::pending().await,
    }
}

impl Launch {
    fn spawn(&self) -> io::Result<Running> {
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| io::Error::other("there is no command"))?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut child = Command::new(program)
            .args(arguments)
            .arg(&self.config)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0) // Ctrl-C in a terminal is for the parent, which stops its children in order
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.ok_or_else(|| io::Error::other("the process has no id"))?;
        let lifeline = child.stdin.take(); // waiting for the child would close it
        Ok(Running { child, pid, paused: false, _lifeline: lifeline })
    }
}

impl Running {
    async fn end(&mut self) -> io::Result<()> {
        self.child.kill().await // SIGKILL ends a paused process as well
    }
}

/// The end of a node's log, as a paragraph of a report.
fn tail(launch: &Launch) -> String {
    let path = launch.log.display();
    match read_tail(&launch.log) {
        Ok(text) if !text.trim().is_empty() => {
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(TAIL_LINES)..].iter();
            let last: String = last.map(|line| format!("\n  {} | {line}", launch.id)).collect();
            format!("; the end of {path}:{last}")
        }
        Ok(_) => format!("; {path} is empty"),
        Err(error) => format!("; {path} cannot be read: {error}"),
    }
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The child's half: from now on the process ends, at once and without cleaning up, when its stdin closes.
pub(crate) fn end_with_parent() -> io::Result<()> {
    let watch = || {
        let mut stdin = io::stdin().lock();
        let mut ignored = [0; 64];
        while !matches!(stdin.read(&mut ignored), Ok(0) | Err(_)) {}
        std::process::exit(EXIT_ORPHAN);
    };
    thread::Builder::new().name("parent".to_owned()).spawn(watch).map(drop)
}

/// Exit status of a node whose parent is gone: that of a process ended by SIGKILL, as in a power cut.
const EXIT_ORPHAN: i32 = 137;
