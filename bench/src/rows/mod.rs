//! What is measured, one module a question.

use std::path::PathBuf;
use std::time::Duration;

pub(crate) mod behind;
pub(crate) mod calls;
pub(crate) mod catch_up;
pub(crate) mod cut;
pub(crate) mod keys;
pub(crate) mod moves;
pub(crate) mod news;
pub(crate) mod transport;

/// How to measure.
pub(crate) struct Plan {
    /// The program under test.
    pub(crate) program: PathBuf,
    /// An empty directory on the disk that is measured.
    pub(crate) dir: PathBuf,
    /// Time of a run.
    pub(crate) time: Duration,
    /// Runs of which the middle one counts.
    pub(crate) runs: usize,
    /// Rows of calls whose name contains this.
    pub(crate) row: String,
    /// 1 for the real size of what is large; a fraction for a quick look, whose figures prove nothing.
    pub(crate) scale: f64,
}

impl Plan {
    /// A number that is scaled.
    pub(crate) fn scaled(&self, number: u64) -> u64 {
        ((number as f64 * self.scale) as u64).max(1)
    }
}
