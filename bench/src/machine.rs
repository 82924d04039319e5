//! What the machine and its processes used, as the kernel counts it.

use std::fs;
use std::time::{Duration, Instant};

/// Processor seconds that a process has used; 0 when it is gone.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let nanoseconds = |thread: fs::DirEntry| -> Option<f64> {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    threads.flatten().filter_map(nanoseconds).sum::<f64>() / 1e9
}

/// Resident memory of a process in bytes; 0 when it is gone.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: Option<u64> = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Processor seconds that everything on the machine has used since it started.
fn busy_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map(|t| t.parse().unwrap_or(0.0)).collect();
    // user nice system idle iowait irq softirq steal
    let busy: f64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
    busy / rustix::param::clock_ticks_per_second() as f64
}

/// Processor time of some processes and of everything else, from a moment on.
pub(crate) struct Usage {
    pids: Vec<u32>,
    since: Instant,
    busy: f64,
    own: f64,
    theirs: f64,
}

/// What was used since.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) seconds: f64,
    /// Processor seconds of this process.
    pub(crate) client: f64,
    /// Processor seconds of the processes that are measured.
    pub(crate) servers: f64,
    /// Cores that everything else took.
    pub(crate) foreign: f64,
}

impl Usage {
    /// Starts counting.
    pub(crate) fn of(pids: &[u32]) -> Self {
        Self {
            pids: pids.to_vec(),
            since: Instant::now(),
            busy: busy_seconds(),
            own: cpu_seconds(std::process::id()),
            theirs: pids.iter().map(|pid| cpu_seconds(*pid)).sum(),
        }
    }

    /// What was used so far.
    pub(crate) fn used(&self) -> Used {
        let seconds = self.since.elapsed().as_secs_f64();
        let client = cpu_seconds(std::process::id()) - self.own;
        let servers = self.pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>() - self.theirs;
        let foreign = ((busy_seconds() - self.busy - client - servers) / seconds).max(0.0);
        Used { seconds, client, servers, foreign }
    }
}

/// Waits until the rest of the machine leaves it alone, at most ten seconds.
pub(crate) async fn quiet() {
    for _ in 0..20 {
        let usage = Usage::of(&[]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let used = usage.used();
        if used.foreign < 0.15 {
            return;
        }
    }
}
