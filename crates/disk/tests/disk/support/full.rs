//! Disks that are full, and disks that fail: in a process of its own, whose limits make it so, on a small file system
//! that is full, or under `strace`, which lets system calls fail.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::{TempDir, tempdir};

use super::child::{Limit, Running, Told, Work};
use super::class::Report;
use super::content::{Histories, Random, options};
use super::judge::{Judge, Outcome};

/// A journal is begun when the one before has so many bytes, and made as long as [`JOURNAL_LEN`] at once.
const JOURNAL_ENDS: u64 = 64_000_000;
const JOURNAL_LEN: u64 = 64 << 20;
/// Bytes of a small file system: filled in a moment, large enough for some compactions.
const SMALL_DISK: u64 = 6 << 20;
/// What is freed when room is made on it again, bytes.
const BALLAST: u64 = 4 << 20;

/// What a store that failed says it was doing, and what is to be done.
const DOING: [&str; 2] = ["while committing", "while syncing"];
const ADVICE: [&str; 3] = ["make room", "mend that", "the next start reads every table"];

/// Keeps the signal of a file that has become too large from ending the process, so that its writes fail.
fn without_signal() -> Vec<String> {
    ["sh", "-c", r#"trap "" XFSZ; exec "$0" "$@""#].map(str::to_owned).to_vec()
}

/// A process runs out of room at any moment: its store says so, keeps what was acknowledged, and goes on when there is
/// room again.
pub(crate) fn full(report: &mut Report, count: u64) {
    let mut histories = Histories::new();
    let mountable = SmallDisk::mount().is_some();
    for seed in report.seed..report.seed + count {
        let mut random = Random(seed);
        if mountable && seed % 2 == 0 {
            let Some(disk) = SmallDisk::mount() else { continue };
            let told = Running::start(&disk.data(), Work::ENDLESS, &[]).wait();
            let outcome = went_wrong(&told).unwrap_or_else(|| {
                disk.make_room();
                judge(&mut histories, &disk.data(), &told)
            });
            report.count(seed, &format!("a small file system, {told:?}"), outcome);
            continue;
        }
        let limit_from = 20 + random.below(200) as u64;
        let limit = match random.below(3) {
            // Commits are some 7 KB: soon, or at once.
            0 => Limit::FileBytes(limit_from * 7_000 + random.below(1_000_000) as u64),
            1 => Limit::FileBytes(random.below(1 << 20) as u64),
            _ => Limit::MoreFiles(random.below(4) as u64),
        };
        let told = limited(&mut histories, limit_from, limit, limit_from + 1_500);
        report.count(seed, &format!("{limit:?} from {limit_from}"), told);
    }
}

/// One state of a process with a limit.
pub(crate) fn limited(histories: &mut Histories, limit_from: u64, limit: Limit, until: u64) -> Outcome {
    let dir = tempdir().unwrap();
    let work = Work { sync_every: 4, until, limit_from, limit };
    let told = Running::start(dir.path(), work, &without_signal()).wait();
    went_wrong(&told).unwrap_or_else(|| judge(histories, dir.path(), &told))
}

/// No room for the journal that comes next, though for everything else.
pub(crate) fn next_journal(histories: &mut Histories) -> Outcome {
    let dir = tempdir().unwrap();
    let work = Work {
        sync_every: 200,
        until: 12_000,
        limit_from: JOURNAL_ENDS / 9_000,
        limit: Limit::FileBytes(JOURNAL_LEN - 1),
    };
    let told = Running::start(dir.path(), work, &without_signal()).wait();
    if told.failed.is_none() {
        return Outcome::Wrong(format!("a journal had no end: {told:?}"));
    }
    went_wrong(&told).unwrap_or_else(|| judge(histories, dir.path(), &told))
}

/// What no child may do, whatever its disk does.
fn went_wrong(told: &Told) -> Option<Outcome> {
    let wrong = |problem: &str| Some(Outcome::Wrong(format!("{problem}: {told:?}")));
    if told.hung {
        return wrong("hung");
    }
    match (&told.failed, told.ended) {
        (None, true) => {}
        (Some(problem), _) => {
            let says = |words: &[&str]| words.iter().any(|word| problem.contains(word));
            if !says(&["witness: "]) && (!says(&DOING) || !says(&ADVICE)) {
                return wrong("says too little");
            }
        }
        _ if told.acknowledged == 0 && told.refused.is_some() => {} // there was no room to begin with
        _ => return wrong("ended without a word"),
    }
    match (&told.reopened, &told.refused) {
        (Some(commit), _) if *commit < told.acknowledged => wrong("opened short"),
        (None, Some(refused)) if refused.starts_with("Io") => None,
        (Some(_), _) => None,
        _ => wrong("did not open again, and not for want of room"),
    }
}

/// When the disk is mended: nothing acknowledged is gone, and it goes on.
fn judge(histories: &mut Histories, dir: &Path, told: &Told) -> Outcome {
    let judge = &mut Judge {
        histories,
        options: &options(),
        acknowledged: told.acknowledged,
        made: u64::MAX,
        further: 20,
        must_open: true,
    };
    match (judge.judge(dir), &told.failed, &told.refused) {
        (Outcome::Harmless | Outcome::Cut, Some(_), Some(_)) => {
            Outcome::Detected("stopped; opens when mended")
        }
        (Outcome::Harmless | Outcome::Cut, Some(_), None) => Outcome::Detected("stopped; opens at once"),
        (outcome, ..) => outcome,
    }
}

/// A file system of a few MiB in memory, which only root may mount.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempdir().ok()?;
        let size = format!("size={SMALL_DISK}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tropism-test"]).arg(dir.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        let disk = mounted.then_some(Self { dir })?;
        let mut ballast = File::create(disk.dir.path().join("ballast")).ok()?;
        ballast.write_all(&vec![1; BALLAST as usize]).ok()?;
        Some(disk)
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    fn make_room(&self) {
        fs::remove_file(self.dir.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg(self.dir.path()).status().ok(); // the directory stays then
    }
}

/// Some write or sync of the journal fails, under `strace`: what was acknowledged before is there, and no reply says
/// that the write which failed had no effect.
pub(crate) fn failing(report: &mut Report, count: u64) {
    let tried =
        Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        report.skipped = Some("there is no strace, or it may not be used".into());
        return;
    }
    let mut histories = Histories::new();
    for seed in report.seed..report.seed + count {
        let mut random = Random(seed);
        let dir = tempdir().unwrap();
        let journal = dir.path().join("store/0.jnl");
        let call = ["fdatasync", "fdatasync", "fsync", "write"][random.below(4)];
        let error = ["EIO", "EIO", "ENOSPC"][random.below(3)];
        let at = 1 + random.below(if call == "fsync" { 8 } else { 150 });
        let again = ["", "+"][random.below(2)];
        let inject = format!("inject={call}:error={error}:when={at}{again}");
        let trace = format!("trace={call}");
        let path = journal.display().to_string();
        let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", &path, "-e", &trace, "-e", &inject];
        let work = Work { until: 500, ..Work::ENDLESS };
        // The store is made before the failures begin.
        drop(tropism_disk::open(dir.path(), &options()).unwrap());
        let told = Running::start(dir.path(), work, &wrapper.map(str::to_owned)).wait();
        let outcome = went_wrong(&told).unwrap_or_else(|| judge(&mut histories, dir.path(), &told));
        report.count(seed, &inject, outcome);
    }
}
