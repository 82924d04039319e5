//! TCP relays that stand for the distance between two sites.
//!
//! A [`Line`] is one direction between two sites: its delay, and whether it is open, cut or slow at the moment. A
//! [`Relay`] listens for whoever dials from one site to one address in the other and carries every connection over the
//! two lines. What is read is stamped with its arrival and queued, so pipelining and throughput are kept; a full queue
//! stops the reading, as a full window does. Making a connection takes one round trip.
//!
//! A cut line swallows: nobody is told, not even of an end. Bytes were lost then, so a stream cannot go on: at the heal
//! every connection that was open during the cut is reset. A connection made during a cut hangs, like a lost SYN.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::alarm::Alarm;

/// Most bytes under way in one direction of one connection; then its reading stops. Carries 1 Gbit/s over 125 ms.
pub(crate) const QUEUE_BYTES: usize = 16 << 20;
/// Most connections of a relay; more wait in the kernel until one ends.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// Bytes read at once: large reads keep the queue short.
const CHUNK_BYTES: usize = 64 << 10;
/// What a queued chunk costs besides its bytes, so that tiny ones are bounded too.
const CHUNK_OVERHEAD_BYTES: usize = 128;
/// How long a relay pauses when the system refuses to accept (out of descriptors): others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One direction between two sites, shared by all connections that cross it.
pub(crate) struct Line {
    delay: Duration,
    state: watch::Sender<LineState>,
    /// When a line of limited bandwidth has sent what it was given so far.
    busy_until: Mutex<Instant>,
    /// Bytes that arrived, by [`Traffic`].
    carried: [AtomicU64; 2],
}

/// How a line is at the moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LineState {
    /// Since when everything is swallowed.
    pub(crate) cut_since: Option<Instant>,
    /// What slows the line.
    pub(crate) slow: Slow,
    /// How often it was cut so far.
    cuts: u64,
}

/// What slows a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Slow {
    /// Added to the delay.
    pub(crate) extra: Duration,
    /// Bandwidth; none is no limit.
    pub(crate) bytes_per_second: Option<NonZeroU64>,
}

/// Whose bytes a relay carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Between nodes.
    Peers,
    /// Between clients and nodes.
    Clients,
}

impl Line {
    /// An open line that takes `delay` in its direction.
    pub(crate) fn new(delay: Duration) -> Self {
        let state = watch::Sender::new(LineState::default());
        Self { delay, state, busy_until: Mutex::new(Instant::now()), carried: Default::default() }
    }

    /// How long it takes when nothing slows it.
    pub(crate) fn delay(&self) -> Duration {
        self.delay
    }

    /// How it is at the moment.
    pub(crate) fn state(&self) -> LineState {
        *self.state.borrow()
    }

    /// Bytes that arrived so far.
    pub(crate) fn carried(&self, traffic: Traffic) -> u64 {
        self.carried[traffic as usize].load(Ordering::Relaxed)
    }

    /// From now on everything is swallowed, also what is under way.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| {
            if state.cut_since.is_none() {
                state.cut_since = Some(Instant::now());
                state.cuts += 1;
            }
        });
    }

    /// Slows what is sent from now on; what is under way keeps its arrival, and order is kept.
    pub(crate) fn slow(&self, slow: Slow) {
        self.state.send_modify(|state| state.slow = slow);
    }

    /// Opens the line at full speed. Connections that were open during a cut are reset.
    pub(crate) fn heal(&self) {
        self.state.send_modify(|state| *state = LineState { cuts: state.cuts, ..LineState::default() });
    }

    /// When bytes handed over now arrive.
    fn arrival(&self, bytes: usize) -> Instant {
        let slow = self.state().slow;
        let now = Instant::now();
        let sent = match slow.bytes_per_second {
            None => now,
            Some(rate) => {
                let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
                *busy_until =
                    now.max(*busy_until) + Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
                *busy_until
            }
        };
        sent + self.delay + slow.extra
    }
}

/// A listening address that stands for an address in another site.
pub(crate) struct Relay {
    /// Whom to dial instead of the target.
    pub(crate) address: SocketAddr,
    accepting: AbortHandle,
}

/// What all connections of a relay share.
struct Route {
    target: SocketAddr,
    traffic: Traffic,
    there: Arc<Line>,
    back: Arc<Line>,
    alarm: Arc<Alarm>,
}

impl Relay {
    /// Listens on a free loopback port. Bytes of who dials go over `there`, the target's answers over `back`.
    pub(crate) async fn start(
        target: SocketAddr,
        traffic: Traffic,
        there: Arc<Line>,
        back: Arc<Line>,
        alarm: Arc<Alarm>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let route = Arc::new(Route { target, traffic, there, back, alarm });
        let accepting = tokio::spawn(accept(listener, route)).abort_handle();
        Ok(Self { address, accepting })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort(); // and with it its connections
    }
}

async fn accept(listener: TcpListener, route: Arc<Route>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((near, _)) => {
                    connections.spawn(carry(near, route.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until both sides have ended it or it is reset.
async fn carry(mut near: TcpStream, route: Arc<Route>) {
    let there = Crossing::begin(&route.there);
    let back = Crossing::begin(&route.back);
    let Some(mut far) = connect(&mut near, &route, &there, &back).await else {
        reset(&near);
        return;
    };
    // Nagle's algorithm would hold back what has arrived already. If it stays on, bytes are late, not wrong.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.split();
    let (far_read, far_write) = far.split();
    let ended = tokio::select! {
        ended = async { tokio::try_join!(
            cross(near_read, far_write, &there, &route),
            cross(far_read, near_write, &back, &route),
        ) } => ended.map(|_| ()),
        () = there.healed() => Err(Reset),
        () = back.healed() => Err(Reset),
    };
    if ended.is_err() {
        reset(&near);
        reset(&far);
    }
}

/// Makes the connection onward: after one round trip, and not while a line is cut. None if it shall be reset.
async fn connect(
    near: &mut TcpStream,
    route: &Route,
    there: &Crossing<'_>,
    back: &Crossing<'_>,
) -> Option<TcpStream> {
    let round_trip = async {
        route.alarm.at(route.there.arrival(0)).await;
        route.alarm.at(route.back.arrival(0)).await;
    };
    tokio::select! {
        biased;
        () = there.cut() => {}
        () = back.cut() => {}
        // A cut from here on finds a connection that may be known to the target, and so must stay.
        () = round_trip => return TcpStream::connect(route.target).await.ok(),
    }
    // Nobody answers. Whoever dialled gives up, or hears of it at the heal.
    tokio::select! {
        () = there.healed() => {}
        () = back.healed() => {}
        () = swallow(near) => {}
    }
    None
}

/// A connection's view of a line: whether it was cut since the connection began.
struct Crossing<'a> {
    line: &'a Line,
    /// Cuts that were over when the connection began.
    cuts_before: u64,
}

impl<'a> Crossing<'a> {
    fn begin(line: &'a Line) -> Self {
        let state = line.state();
        Self { line, cuts_before: state.cuts - u64::from(state.cut_since.is_some()) }
    }

    /// Returns once the line was cut.
    async fn cut(&self) {
        self.until(|state| state.cuts != self.cuts_before).await;
    }

    /// Returns once the line was cut and is open again.
    async fn healed(&self) {
        self.until(|state| state.cuts != self.cuts_before && state.cut_since.is_none()).await;
    }

    async fn until(&self, reached: impl FnMut(&LineState) -> bool) {
        // Fails only when the line is gone, and it is borrowed here.
        let _ = self.line.state.subscribe().wait_for(reached).await;
    }
}

/// What goes over a line, and when it arrives.
struct Parcel {
    due: Instant,
    load: Load,
    /// Its room in the queue, given back when it has arrived.
    _room: OwnedSemaphorePermit,
}

enum Load {
    Bytes(Vec<u8>),
    /// The sender says nothing more.
    End,
    /// The sender broke off.
    Break,
}

/// A connection that must be broken off on both sides.
struct Reset;

/// Carries one direction of a connection until its source ends.
async fn cross(
    source: ReadHalf<'_>,
    target: WriteHalf<'_>,
    crossing: &Crossing<'_>,
    route: &Route,
) -> Result<(), Reset> {
    let (queue, parcels) = mpsc::unbounded_channel(); // bounded in bytes by its room
    let ((), delivered) =
        tokio::join!(send(source, crossing.line, queue), deliver(parcels, target, crossing, route));
    delivered
}

async fn send(mut source: ReadHalf<'_>, line: &Line, queue: mpsc::UnboundedSender<Parcel>) {
    let room = Arc::new(Semaphore::new(QUEUE_BYTES));
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut due = Instant::now();
    loop {
        let load = match source.read(&mut buffer).await {
            Ok(0) => Load::End,
            Ok(count) => Load::Bytes(buffer[..count].to_vec()),
            Err(_) => Load::Break,
        };
        let (bytes, last) = match &load {
            Load::Bytes(bytes) => (bytes.len(), false),
            Load::End | Load::Break => (0, true),
        };
        due = due.max(line.arrival(bytes)); // a line that got faster does not overtake itself
        let cost = (bytes + CHUNK_OVERHEAD_BYTES) as u32; // a chunk is far below 4 GiB
        let Ok(_room) = room.clone().acquire_many_owned(cost).await else { return }; // it is never closed
        if queue.send(Parcel { due, load, _room }).is_err() || last {
            return;
        }
    }
}

async fn deliver(
    mut parcels: mpsc::UnboundedReceiver<Parcel>,
    mut target: WriteHalf<'_>,
    crossing: &Crossing<'_>,
    route: &Route,
) -> Result<(), Reset> {
    tokio::select! {
        biased;
        () = crossing.cut() => {}
        delivered = hand_over(&mut parcels, &mut target, crossing.line, route) => match delivered {
            Ok(Load::Break) => return Err(Reset),
            Ok(Load::Bytes(_) | Load::End) => return Ok(()),
            Err(_) => {} // the target is gone, which its own direction tells
        },
    }
    while parcels.recv().await.is_some() {} // swallowed, until the source ends
    Ok(())
}

/// Hands over every parcel at its time. Returns the last.
async fn hand_over(
    parcels: &mut mpsc::UnboundedReceiver<Parcel>,
    target: &mut WriteHalf<'_>,
    line: &Line,
    route: &Route,
) -> io::Result<Load> {
    while let Some(Parcel { due, load, _room }) = parcels.recv().await {
        route.alarm.at(due).await;
        match load {
            Load::Bytes(bytes) => {
                target.write_all(&bytes).await?;
                line.carried[route.traffic as usize].fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Load::End => {
                target.shutdown().await?;
                return Ok(Load::End);
            }
            Load::Break => return Ok(Load::Break),
        }
    }
    Ok(Load::End)
}

/// Reads and forgets until the other side ends.
async fn swallow(stream: &mut TcpStream) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
}

/// Makes the coming drop a reset: the other side must not take it for an orderly end.
fn reset(stream: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = stream.set_zero_linger();
}
