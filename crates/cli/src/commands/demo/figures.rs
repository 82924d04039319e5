//! Measured times and how they are shown.

use std::time::Duration;

use serde_json::{Value, json};

/// Durations of one kind.
#[derive(Debug, Default, Clone)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn extend(&mut self, more: &Times) {
        self.0.extend(&more.0);
    }

    pub(super) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The least time that `percent` of all do not exceed, in milliseconds; 0 when there is none.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent.min(100)).div_ceil(100).max(1);
        sorted.get(rank - 1).map_or(0.0, |time| milliseconds(*time))
    }

    /// For the report.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "count": self.len(),
            "p50_ms": self.percentile(50),
            "p99_ms": self.percentile(99),
            "max_ms": self.percentile(100),
        })
    }
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Milliseconds for people, three digits of them.
pub(super) fn ms(milliseconds: f64) -> String {
    match milliseconds {
        0.0..10.0 => format!("{milliseconds:.2} ms"),
        10.0..100.0 => format!("{milliseconds:.1} ms"),
        _ => format!("{milliseconds:.0} ms"),
    }
}

/// A row of a table.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Times, ms};

    #[test]
    fn a_percentile_is_the_least_time_that_so_many_do_not_exceed() {
        let mut times = Times::default();
        assert_eq!(times.percentile(50), 0.0);
        for time in (1..=200).rev() {
            times.add(Duration::from_millis(time));
        }
        assert_eq!([0, 1, 50, 99, 100].map(|p| times.percentile(p)), [1.0, 2.0, 100.0, 198.0, 200.0]);
    }

    #[test]
    fn milliseconds_have_three_digits() {
        assert_eq!([0.4, 9.994, 61.54, 233.4].map(ms), ["0.40 ms", "9.99 ms", "61.5 ms", "233 ms"]);
    }
}
