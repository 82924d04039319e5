//! What is counted where it happens: calls, commits, and how late the changes of other regions were.
//!
//! Counting is adding to atomics whose place is known before: no look-up by label, no lock, no allocation. Whatever the
//! node knows anyway is not counted here but read when somebody asks ([`super::sheet`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tonic::Code;
use tracing::{debug, warn};
use tropism_crdt::{NodeId, Stamp};

use super::names::{self, METHODS, OTHER};
use super::sheet::Sheet;

/// The codes of gRPC, from 0 on, as OpenTelemetry's conventions write them.
pub(super) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The service of keys and values, and its methods that read.
const KEYS: &str = "tropism.v1.StateService";
const READS: &[&str] = &["Get", "BatchGet", "Scan"];

/// In a second.
const MILLIS: f64 = 1e3;
const MICROS: f64 = 1e6;

/// Bounds of durations here, us: from a read in memory to the longest deadline but the last.
static DURATIONS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
/// Bounds of replication lags, ms: from the next city to a region that was cut off for a day.
static LAGS_MS: [u64; 16] = [
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 60_000, 300_000, 1_800_000, 7_200_000,
    86_400_000,
];
/// Bounds of writes in a commit: those that a turn may take.
static WRITES: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024];

/// How often something was how large.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Upper bounds, rising; a value is counted below the first that it does not exceed.
    bounds: &'static [u64],
    /// How many units of the bounds are one of those that are exposed. Divided by, so that 0.025 is exactly that.
    per: f64,
    /// One more than bounds: for what exceeds all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// A histogram at one moment: upper bounds with counts (not summed up), the last is infinite.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Counted {
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [u64], per: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, per, counts, sum: AtomicU64::new(0) }
    }

    fn record(&self, value: u64) {
        let bucket = self.bounds.iter().take_while(|bound| **bound < value).count();
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    fn read(&self) -> Counted {
        let bounds = self.bounds.iter().map(|bound| *bound as f64 / self.per).chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        Counted {
            buckets: bounds.zip(counts).collect(),
            sum: self.sum.load(Ordering::Relaxed) as f64 / self.per,
        }
    }
}

impl Counted {
    /// How many values there were.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// The calls of one method.
#[derive(Debug)]
struct Method {
    ended: [AtomicU64; CODES.len()],
    /// Of those that were answered well, and of the others.
    took: [Histogram; 2],
}

/// What a node counts of itself since its process started.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// As [`METHODS`], and one for a method that there is not.
    methods: Vec<Method>,
    commits: AtomicU64,
    commit_writes: Histogram,
    syncs: Histogram,
    /// This node's region.
    region: String,
    /// By the region of who made the change.
    lags: BTreeMap<String, Histogram>,
    /// Where peers are.
    homes: BTreeMap<NodeId, String>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new("", &[])
    }
}

impl Metrics {
    /// Of a node in this region with these peers, each in its region.
    pub(crate) fn new(region: &str, peers: &[(NodeId, String)]) -> Self {
        let durations = || Histogram::new(&DURATIONS_US, MICROS);
        let method =
            || Method { ended: std::array::from_fn(|_| AtomicU64::new(0)), took: [durations(), durations()] };
        let lag = |(_, region): &(NodeId, String)| (region.clone(), Histogram::new(&LAGS_MS, MILLIS));
        Self {
            methods: (0..=METHODS.len()).map(|_| method()).collect(),
            commits: AtomicU64::new(0),
            commit_writes: Histogram::new(&WRITES, 1.0),
            syncs: durations(),
            region: region.to_owned(),
            lags: peers.iter().map(lag).collect(),
            homes: peers.iter().cloned().collect(),
        }
    }

    /// A turn with this many clients' writes is durable.
    pub(crate) fn committed(&self, writes: usize, sync: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        if writes > 0 {
            self.commit_writes.record(writes as u64);
        }
        self.syncs.record(micros(sync));
    }

    /// Changes of peers are durable and readable, by whom and from when.
    pub(crate) fn applied(&self, changes: &[(NodeId, Stamp)], now_ms: u64) {
        for (origin, stamp) in changes {
            if let Some(lag) = self.homes.get(origin).and_then(|region| self.lags.get(region)) {
                lag.record(now_ms.saturating_sub(stamp.unix_ms()));
            }
        }
    }

    /// Clients' writes that are durable, calls that read and were answered well, and calls about keys that were not
    /// answered well.
    pub(crate) fn of_clients(&self) -> (u64, u64, u64) {
        let of_keys = METHODS.iter().zip(&self.methods).filter(|((service, _), _)| *service == KEYS);
        let (mut reads, mut failed) = (0, 0);
        for ((_, name), method) in of_keys {
            let counts = || method.ended.iter().map(|ended| ended.load(Ordering::Relaxed));
            if READS.contains(name) {
                reads += counts().next().unwrap_or(0); // the first code is that of a good answer
            }
            failed += counts().skip(1).sum::<u64>();
        }
        (self.commit_writes.sum.load(Ordering::Relaxed), reads, failed)
    }

    /// Writes down everything that was counted.
    pub(crate) fn write(&self, sheet: &mut Sheet) {
        let names = METHODS.iter().map(|(service, method)| format!("{service}/{method}"));
        for (method, name) in self.methods.iter().zip(names.chain([OTHER.to_owned()])) {
            for (ended, code) in method.ended.iter().zip(CODES) {
                let ended = ended.load(Ordering::Relaxed);
                if ended > 0 {
                    sheet.counter(&names::CALLS, &[&name, code], ended);
                }
            }
            for (took, outcome) in method.took.iter().zip(["ok", "error"]) {
                let took = took.read();
                if took.count() > 0 {
                    sheet.histogram(&names::CALL_DURATION, &[&name, outcome], took);
                }
            }
        }
        sheet.counter(&names::COMMITS, &[], self.commits.load(Ordering::Relaxed));
        sheet.histogram(&names::COMMIT_WRITES, &[], self.commit_writes.read());
        sheet.histogram(&names::SYNC_DURATION, &[], self.syncs.read());
        for (region, lag) in &self.lags {
            sheet.histogram(&names::REPLICATION_LAG, &[region, &self.region], lag.read());
        }
    }
}

/// Counts the calls of one service.
#[derive(Debug, Clone)]
pub(crate) struct ServiceCalls {
    metrics: Arc<Metrics>,
    /// Of the service's name between slashes.
    prefix: usize,
    /// Its methods among [`METHODS`], where they are next to each other.
    methods: Range<usize>,
}

/// A call under way; counted when this is dropped, as cancelled unless its status was told.
#[derive(Debug)]
pub(crate) struct CallCount {
    metrics: Arc<Metrics>,
    method: usize,
    began: Instant,
    /// Its number.
    code: Option<Code>,
}

impl ServiceCalls {
    pub(crate) fn new(metrics: &Arc<Metrics>, service: &str) -> Self {
        let first = METHODS.iter().position(|(name, _)| *name == service).unwrap_or(METHODS.len());
        let count = METHODS.iter().filter(|(name, _)| *name == service).count();
        Self { metrics: metrics.clone(), prefix: service.len() + 2, methods: first..first + count }
    }

    /// A call comes.
    pub(crate) fn begin(&self, path: &str) -> CallCount {
        let name = path.get(self.prefix..).unwrap_or_default();
        let known = METHODS[self.methods.clone()].iter().position(|(_, method)| *method == name);
        CallCount {
            metrics: self.metrics.clone(),
            method: known.map_or(METHODS.len(), |at| self.methods.start + at),
            began: Instant::now(),
            code: None,
        }
    }
}

impl CallCount {
    /// Whether the call's status comes at the end of a stream.
    pub(super) fn streams(&self) -> bool {
        METHODS.get(self.method).is_some_and(|(_, method)| names::STREAMS.contains(method))
    }

    /// Whether it is known how the call ended.
    pub(super) fn is_told(&self) -> bool {
        self.code.is_some()
    }

    /// How the call ended.
    pub(super) fn ended(&mut self, code: Code) {
        self.code = Some(code);
    }
}

impl CallCount {
    /// Without its error's text, which may name what a client wrote.
    fn log(&self, code: Code) {
        let method = METHODS.get(self.method).map_or(OTHER, |(_, method)| method);
        let status = CODES[code as usize];
        match code {
            Code::Unknown | Code::Internal | Code::DataLoss => warn!(method, status, "a call failed"),
            _ => debug!(method, status, "a call was not answered well"),
        }
    }
}

impl Drop for CallCount {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        if code != Code::Ok {
            self.log(code);
        }
        let method = &self.metrics.methods[self.method];
        method.ended[code as usize].fetch_add(1, Ordering::Relaxed); // 0 to 16
        method.took[usize::from(code != Code::Ok)].record(micros(self.began.elapsed()));
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use std::sync::Arc;

    use tonic::Code;

    use super::{CODES, Duration, METHODS, Metrics, NodeId, ServiceCalls, Sheet, Stamp};

    /// Every code of every method, and lags from as many regions.
    pub(crate) fn everything(regions: usize) -> Metrics {
        let node = |n: usize| (NodeId::new(&format!("n-{n}")).unwrap(), format!("r-{n}"));
        let peers: Vec<_> = (0..regions).map(node).collect();
        let metrics = Arc::new(Metrics::new("here", &peers));
        for (service, method) in METHODS.iter().copied().chain([("tropism.v1.StateService", "None")]) {
            for code in 0..CODES.len() {
                let mut call = ServiceCalls::new(&metrics, service).begin(&format!("/{service}/{method}"));
                call.ended(Code::from(i32::try_from(code).unwrap()));
            }
        }
        Arc::into_inner(metrics).unwrap()
    }

    fn text(metrics: &Metrics) -> String {
        let mut sheet = Sheet::default();
        metrics.write(&mut sheet);
        sheet.text(true).0
    }

    fn has(metrics: &Metrics, line: &str) {
        let told = text(metrics);
        assert!(told.lines().any(|found| found == line), "{line}\n{told}");
    }

    #[test]
    fn calls_are_counted_by_method_and_code_and_what_was_dropped_is_cancelled() {
        let metrics = Arc::new(Metrics::default());
        let calls = ServiceCalls::new(&metrics, "tropism.v1.StateService");
        calls.begin("/tropism.v1.StateService/Get").ended(Code::Ok);
        calls.begin("/tropism.v1.StateService/Get").ended(Code::Ok);
        calls.begin("/tropism.v1.StateService/Put").ended(Code::DataLoss);
        drop(calls.begin("/tropism.v1.StateService/Watch"));
        calls.begin("/tropism.v1.StateService/Secret").ended(Code::Unimplemented);
        calls.begin("/").ended(Code::Unimplemented);
        for (method, code, count) in [
            ("tropism.v1.StateService/Get", "OK", 2),
            ("tropism.v1.StateService/Put", "DATA_LOSS", 1),
            ("tropism.v1.StateService/Watch", "CANCELLED", 1),
            ("_OTHER", "UNIMPLEMENTED", 2),
        ] {
            let labels = format!("{{rpc_method=\"{method}\",rpc_response_status_code=\"{code}\"}}");
            has(&metrics, &format!("rpc_server_calls_total{labels} {count}"));
        }
        let told = text(&metrics);
        assert!(!told.contains("Secret"), "nobody makes up names");
        metrics.committed(3, Duration::ZERO);
        assert_eq!(metrics.of_clients(), (3, 2, 2), "writes, reads, and a put and a watch that failed");
        assert!(
            told.contains(
                "duration_seconds_count{rpc_method=\"tropism.v1.StateService/Get\",outcome=\"ok\"} 2"
            )
        );
        assert!(told.contains("duration_seconds_count{rpc_method=\"_OTHER\",outcome=\"error\"} 2"));
    }

    #[test]
    fn a_value_is_counted_below_the_bound_that_it_reaches() {
        let metrics = Metrics::new("here", &[(NodeId::new("n-1").unwrap(), "there".into())]);
        let node = NodeId::new("n-1").unwrap();
        let unknown = (NodeId::new("n-2").unwrap(), Stamp::new(1, 0));
        for made_ms in [1_000, 995, 994, 2_000, 500] {
            metrics.applied(&[(node, Stamp::new(made_ms, 0)), unknown], 1_000);
        }
        let name = "tropism_replication_lag_seconds";
        for (bound, count) in [("0.005", 3), ("0.01", 4), ("0.25", 4), ("0.5", 5), ("+Inf", 5)] {
            let labels = format!("{{le=\"{bound}\",from_region=\"there\",to_region=\"here\"}}");
            has(&metrics, &format!("{name}_bucket{labels} {count}"));
        }
        has(&metrics, &format!("{name}_sum{{from_region=\"there\",to_region=\"here\"}} 0.511"));
    }

    #[test]
    fn commits_are_counted_with_the_writes_in_them() {
        let metrics = Metrics::default();
        metrics.committed(0, Duration::from_micros(100));
        metrics.committed(3, Duration::from_secs(100));
        has(&metrics, "tropism_store_commits_total 2");
        has(&metrics, "tropism_store_commit_writes_bucket{le=\"2.0\"} 0");
        has(&metrics, "tropism_store_commit_writes_bucket{le=\"4.0\"} 1");
        has(&metrics, "tropism_store_sync_duration_seconds_bucket{le=\"0.0001\"} 1");
        has(&metrics, "tropism_store_sync_duration_seconds_bucket{le=\"10.0\"} 1");
        has(&metrics, "tropism_store_sync_duration_seconds_count 2");
    }
}
