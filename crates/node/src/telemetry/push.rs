//! Metrics on their way to a collector, over OTLP: the same that are scraped.
//!
//! Everything is sent as what it is since the start, so that nothing waits here: what a collector did not take is in what
//! it gets next.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1 as otlp;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use super::export::{EXPORT_TIME, WARN_EVERY};
use super::names;
use super::sheet::{Point, Sheet, Value};
use crate::api::Api;

/// Where metrics are sent, and how often.
pub(crate) struct Push {
    /// URL of the collector.
    pub(crate) otlp: String,
    /// The time between two.
    pub(crate) every: Duration,
    /// What is said of the node, with names of the closed list.
    pub(crate) resource: Vec<(&'static str, String)>,
    /// When the process started, Unix ms.
    pub(crate) started_ms: u64,
}

impl Push {
    /// Sends until this is dropped, or the collector says that it takes none.
    pub(crate) async fn run(self, api: Api) {
        let channel = match Endpoint::from_shared(self.otlp.clone()) {
            Ok(endpoint) => endpoint.connect_timeout(EXPORT_TIME).connect_lazy(),
            Err(error) => return warn!(%error, "metrics are not exported"), // the configuration has looked at it
        };
        let mut collector = MetricsServiceClient::new(channel);
        let mut due = interval(self.every);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        due.tick().await; // at once: there is nothing to tell yet
        let mut failed = 0_u32;
        let quiet = WARN_EVERY.as_secs() / self.every.as_secs().max(1);
        loop {
            due.tick().await;
            match self.send(&mut collector, api.sheet().await).await {
                Ok(()) => failed = 0,
                Err((Code::Unimplemented, _)) => {
                    return info!("the collector takes traces only: metrics are not sent to it");
                }
                Err((_, problem)) => {
                    if u64::from(failed) % quiet.max(1) == 0 {
                        warn!(problem, "metrics were not exported; the next ones include them");
                    }
                    failed = failed.saturating_add(1);
                }
            }
        }
    }

    async fn send(
        &self,
        collector: &mut MetricsServiceClient<Channel>,
        sheet: Sheet,
    ) -> Result<(), (Code, String)> {
        let request = self.request(sheet, crate::driver::wall_ms());
        match timeout(EXPORT_TIME, collector.export(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err((status.code(), status.message().to_owned())),
            Err(_) => Err((Code::DeadlineExceeded, format!("no answer within {EXPORT_TIME:?}"))),
        }
    }

    fn request(&self, sheet: Sheet, now_ms: u64) -> ExportMetricsServiceRequest {
        let at = Times { start_ns: self.started_ms * 1_000_000, now_ns: now_ms * 1_000_000 };
        let families = sheet.families();
        let metrics = families.into_iter().map(|(metric, points)| family(metric, points, at));
        let scope = InstrumentationScope { name: names::SERVICE.to_owned(), ..Default::default() };
        let metrics =
            otlp::ScopeMetrics { scope: Some(scope), metrics: metrics.collect(), ..Default::default() };
        let attributes = self.resource.iter().map(|(name, value)| attribute(name, value.clone())).collect();
        let metrics = otlp::ResourceMetrics {
            resource: Some(Resource { attributes, ..Default::default() }),
            scope_metrics: vec![metrics],
            ..Default::default()
        };
        ExportMetricsServiceRequest { resource_metrics: vec![metrics] }
    }
}

#[derive(Clone, Copy)]
struct Times {
    start_ns: u64,
    now_ns: u64,
}

/// The unit, as OpenTelemetry writes it, of a name that ends with Prometheus'.
fn unit(name: &str) -> &'static str {
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        Some("ratio") => "1",
        _ => "",
    }
}

fn attribute(name: &str, value: String) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::StringValue(value)) });
    KeyValue { key: name.to_owned(), value, ..Default::default() }
}

fn family(metric: &names::Metric, points: Vec<Point>, at: Times) -> otlp::Metric {
    let temporality = otlp::AggregationTemporality::Cumulative.into();
    let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
    let data = match metric.kind {
        names::Kind::Counter => otlp::metric::Data::Sum(otlp::Sum {
            data_points: points.into_iter().filter_map(|point| number(point, at)).collect(),
            aggregation_temporality: temporality,
            is_monotonic: true,
        }),
        names::Kind::Gauge => {
            let data_points = points.into_iter().filter_map(|point| number(point, at)).collect();
            otlp::metric::Data::Gauge(otlp::Gauge { data_points })
        }
        names::Kind::Histogram => otlp::metric::Data::Histogram(otlp::Histogram {
            data_points: points.into_iter().filter_map(|point| distribution(point, at)).collect(),
            aggregation_temporality: temporality,
        }),
    };
    otlp::Metric {
        name: name.to_owned(),
        description: metric.help.to_owned(),
        unit: unit(name).to_owned(),
        data: Some(data),
        ..Default::default()
    }
}

fn attributes(labels: Vec<(&'static str, String)>) -> Vec<KeyValue> {
    labels.into_iter().map(|(name, value)| attribute(name, value)).collect()
}

fn number(point: Point, at: Times) -> Option<otlp::NumberDataPoint> {
    use otlp::number_data_point::Value as Number;
    let value = match point.value {
        Value::Counter(count) => Number::AsInt(i64::try_from(count).unwrap_or(i64::MAX)),
        Value::Gauge(value) | Value::Seconds(value) => Number::AsDouble(value),
        Value::Histogram(_) => return None,
    };
    Some(otlp::NumberDataPoint {
        attributes: attributes(point.labels),
        start_time_unix_nano: at.start_ns,
        time_unix_nano: at.now_ns,
        value: Some(value),
        ..Default::default()
    })
}

fn distribution(point: Point, at: Times) -> Option<otlp::HistogramDataPoint> {
    let Value::Histogram(counted) = point.value else { return None };
    let bounds = counted.buckets.iter().map(|(bound, _)| *bound).filter(|bound| bound.is_finite());
    Some(otlp::HistogramDataPoint {
        attributes: attributes(point.labels),
        start_time_unix_nano: at.start_ns,
        time_unix_nano: at.now_ns,
        count: counted.count(),
        sum: Some(counted.sum),
        bucket_counts: counted.buckets.iter().map(|(_, count)| *count).collect(),
        explicit_bounds: bounds.collect(),
        ..Default::default()
    })
}
