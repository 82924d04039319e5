//! All metrics of one moment, and how they are written down for who scrapes them.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::metrics::Counted;
use super::names::{Kind, METRICS, Metric};

/// Series of a node, at most; what goes beyond is a defect that a test looks for. A histogram is one for each bucket and
/// two more.
pub(crate) const MAX_SERIES: usize = 5_000;

/// Metrics of one moment.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    /// By metric, as in [`METRICS`].
    points: Vec<(&'static Metric, Point)>,
}

/// One value of a metric.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Counter(u64),
    Seconds(f64),
    Gauge(f64),
    Histogram(Counted),
}

impl Sheet {
    /// What was counted since the start.
    pub(crate) fn counter(&mut self, metric: &'static Metric, labels: &[&str], count: u64) {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.add(metric, labels, Value::Counter(count));
    }

    /// Seconds since the start, of a counter without labels.
    pub(super) fn seconds(&mut self, metric: &'static Metric, seconds: f64) {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.add(metric, &[], Value::Seconds(seconds));
    }

    /// What is now. What is not a number is left out.
    pub(crate) fn gauge(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        if value.is_finite() {
            self.add(metric, labels, Value::Gauge(value));
        }
    }

    /// How often what was how large.
    pub(super) fn histogram(&mut self, metric: &'static Metric, labels: &[&str], counted: Counted) {
        debug_assert_eq!(metric.kind, Kind::Histogram);
        self.add(metric, labels, Value::Histogram(counted));
    }

    fn add(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let labels = metric.labels.iter().copied().zip(labels.iter().map(|label| (*label).to_owned()));
        self.points.push((metric, Point { labels: labels.collect(), value }));
    }

    /// How many series a scraper sees.
    pub(crate) fn series(&self) -> usize {
        let series = self.points.iter().map(|(_, point)| match &point.value {
            Value::Histogram(counted) => counted.buckets.len() + 2,
            Value::Counter(_) | Value::Seconds(_) | Value::Gauge(_) => 1,
        });
        series.sum()
    }

    /// The points of each metric that has any, in the order of the list.
    pub(super) fn families(self) -> Vec<(&'static Metric, Vec<Point>)> {
        let mut families: Vec<(&'static Metric, Vec<Point>)> =
            METRICS.iter().map(|metric| (*metric, Vec::new())).collect();
        for (metric, point) in self.points {
            if let Some((_, points)) = families.iter_mut().find(|(known, _)| known.name == metric.name) {
                points.push(point);
            }
        }
        families.retain(|(_, points)| !points.is_empty());
        families
    }

    /// The text, in the format of OpenMetrics 1.0 or in that of Prometheus before it, and its content type.
    pub(crate) fn text(self, open_metrics: bool) -> (String, &'static str) {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut written = String::new();
        let (outcome, kind) = if open_metrics {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (text::encode(&mut written, &registry), kind)
        } else {
            (prometheus_text::encode(&mut written, &registry), prometheus_text::CONTENT_TYPE)
        };
        debug_assert!(outcome.is_ok(), "writing to a text does not fail");
        (written, kind)
    }
}

impl Collector for Sheet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for metric in METRICS {
            let mut points = self.points.iter().filter(|(of, _)| of.name == metric.name).peekable();
            if points.peek().is_none() {
                continue;
            }
            // The encoder adds the ending by itself where the format wants it.
            let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(name, metric.help, None, kind)?;
            for (_, point) in points {
                let mut of = family.encode_family(&point.labels)?;
                match &point.value {
                    Value::Counter(count) => of.encode_counter::<NoLabelSet, u64, u64>(count, None)?,
                    Value::Seconds(value) => of.encode_counter::<NoLabelSet, f64, u64>(value, None)?,
                    Value::Gauge(value) => of.encode_gauge(value)?,
                    Value::Histogram(counted) => {
                        of.encode_histogram::<NoLabelSet>(
                            counted.sum,
                            counted.count(),
                            &counted.buckets,
                            None,
                        )?;
                    }
                }
            }
        }
        Ok(())
    }
}
