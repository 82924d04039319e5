//! Made-up use of scopes around the world: who asks for what from where, in steps of five minutes.
//!
//! No public trace says from which region each object of a store is used, so this is an overlay of four patterns, as published
//! systems describe theirs: half of the scopes are used from one region by day, a fifth follow the sun through three offices,
//! the rest are used from everywhere or travel with somebody. Any scope has bursts.

use tropism_placement::Use;

/// Milliseconds of a step: the period of decisions.
pub(crate) const STEP_MS: u64 = 300_000;
/// Its seconds.
pub(crate) const STEP_SECONDS: f64 = 300.0;
/// Steps of a day.
pub(crate) const DAY_STEPS: usize = 288;
/// Bytes of an answer.
pub(crate) const READ_BYTES: f64 = 1000.0;
/// Bytes of a change.
pub(crate) const WRITE_BYTES: f64 = 200.0;

/// Offices of who follows the sun: Washington, Frankfurt, Tokyo in the file of ten cities.
const OFFICES: [usize; 3] = [2, 3, 8];
/// Requests a second, as a median of scopes, and at most.
const RATE: (f64, f64) = (0.03, 20.0);
/// Bytes of a scope, as a median.
const BYTES: f64 = 440_000.0;

/// How a scope is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pattern {
    /// From one region, by day.
    Local,
    /// From three offices, nine hours each.
    Sun,
    /// From everywhere, by day there.
    Global,
    /// From one region that is another one from day to day with a chance of 0.4.
    Travelling,
}

impl Pattern {
    pub(crate) const ALL: [Self; 4] = [Self::Local, Self::Sun, Self::Global, Self::Travelling];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "one region",
            Self::Sun => "follow the sun",
            Self::Global => "global",
            Self::Travelling => "travelling",
        }
    }
}

/// Requests of one step from one region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) region: usize,
    pub(crate) reads: u32,
    pub(crate) writes: u32,
}

/// One scope's week.
pub(crate) struct Trace {
    pub(crate) pattern: Pattern,
    pub(crate) bytes: f64,
    /// By step, regions with requests only.
    pub(crate) steps: Vec<Vec<Requests>>,
}

impl Trace {
    /// Makes the scope with this number. `hours_east` is each region's local time against UTC.
    pub(crate) fn new(seed: u64, number: usize, steps: usize, hours_east: &[f64]) -> Self {
        let mut random = Random(seed ^ (number as u64).wrapping_mul(0xa076_1d64_78bd_642f));
        let regions = hours_east.len();
        let pattern = match random.share() {
            x if x < 0.5 => Pattern::Local,
            x if x < 0.7 => Pattern::Sun,
            x if x < 0.85 => Pattern::Global,
            _ => Pattern::Travelling,
        };
        let rate = (RATE.0 * (1.5 * random.normal()).exp()).min(RATE.1);
        let bytes = BYTES * (1.5 * random.normal()).exp();
        let writes = [0.05, 0.2, 0.5][random.below(3)];
        let mut home = random.below(regions);
        let guest = random.below(regions);
        let weights: Vec<f64> = (0..regions).map(|_| -random.share().max(1e-9).ln()).collect();
        let total: f64 = weights.iter().sum();

        let mut burst_left = 0;
        let mut made = Vec::with_capacity(steps);
        for step in 0..steps {
            if pattern == Pattern::Travelling && step > 0 && step % DAY_STEPS == 0 && random.share() < 0.4 {
                home = random.below(regions);
            }
            burst_left = if burst_left > 0 { burst_left - 1 } else { 0 };
            if burst_left == 0 && random.share() < 1.0 / 2000.0 {
                burst_left = 6 + random.below(25);
            }
            let rate = if burst_left > 0 { rate * 3.0 } else { rate };
            let utc = (step % DAY_STEPS) as f64 / 12.0;
            let mut requests = Vec::new();
            for region in 0..regions {
                let hour = (utc + hours_east[region]).rem_euclid(24.0);
                let share = match pattern {
                    Pattern::Local | Pattern::Travelling => {
                        let there = f64::from(u8::from(region == home)) * 0.99;
                        (there + f64::from(u8::from(region == guest)) * 0.01) * by_day(hour)
                    }
                    Pattern::Sun if OFFICES.contains(&region) => {
                        if (9.0..18.0).contains(&hour) {
                            1.0
                        } else {
                            0.01
                        }
                    }
                    Pattern::Sun => 0.0,
                    Pattern::Global => weights[region] / total * by_day(hour),
                };
                let expected = rate * share * STEP_SECONDS;
                let (reads, writes) =
                    (random.poisson(expected * (1.0 - writes)), random.poisson(expected * writes));
                if reads + writes > 0 {
                    requests.push(Requests { region, reads, writes });
                }
            }
            made.push(requests);
        }
        Self { pattern, bytes, steps: made }
    }

    /// The rates of some steps.
    pub(crate) fn rates(&self, steps: std::ops::Range<usize>, regions: usize) -> Vec<Use> {
        let seconds = steps.len() as f64 * STEP_SECONDS;
        let mut rates = vec![Use::default(); regions];
        for requests in self.steps[steps].iter().flatten() {
            rates[requests.region].reads += f64::from(requests.reads) / seconds;
            rates[requests.region].writes += f64::from(requests.writes) / seconds;
        }
        rates
    }
}

/// How busy people are at an hour: 0.05 at night, 1.95 in the early afternoon, 1 on average.
fn by_day(hour: f64) -> f64 {
    1.0 + 0.95 * ((hour - 14.0) / 24.0 * std::f64::consts::TAU).cos()
}

/// SplitMix64: the same numbers from the same seed, everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1, the end excluded.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.share() * count as f64) as usize
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (self.share().max(1e-300), self.share());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    fn poisson(&mut self, mean: f64) -> u32 {
        if mean > 50.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u32;
        }
        let (limit, mut product, mut count) = ((-mean).exp(), self.share(), 0);
        while product > limit {
            product *= self.share();
            count += 1;
        }
        count
    }
}
