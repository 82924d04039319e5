//! The list of names, and a collector for tests of whole nodes.
#![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::ResourceMetrics;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prost::Message;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tropism_wire::DESCRIPTORS;

use super::{MILLION, On, Telemetry, names};

/// Takes spans and metrics over OTLP/gRPC and keeps them.
#[derive(Clone, Default)]
pub(crate) struct Collector {
    received: Arc<Mutex<Vec<Received>>>,
    metrics: Arc<Mutex<Vec<ResourceMetrics>>>,
}

/// A span with the resource it came from.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) span: Span,
    pub(crate) resource: Vec<KeyValue>,
}

impl Received {
    pub(crate) fn region(&self) -> String {
        text(&self.resource, names::REGION)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        text(&self.span.attributes, name)
    }
}

/// An attribute, as text; empty when it is not there.
pub(crate) fn text(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()).and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

impl Collector {
    /// Serves on a port of its own.
    pub(crate) async fn start() -> (Self, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, collector) = (listener.local_addr().unwrap(), Self::default());
        let service = TraceServiceServer::new(collector.clone());
        let served = tonic::transport::Server::builder()
            .add_service(service)
            .add_service(MetricsServiceServer::new(collector.clone()));
        tokio::spawn(served.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, address)
    }

    /// Everything so far.
    pub(crate) fn all(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Waits for metrics that are meant, of one node at one moment.
    pub(crate) async fn until_metrics(&self, is_meant: impl Fn(&ResourceMetrics) -> bool) -> ResourceMetrics {
        let begun = std::time::Instant::now();
        loop {
            if let Some(found) = self.metrics.lock().unwrap().iter().rev().find(|found| is_meant(found)) {
                return found.clone();
            }
            assert!(begun.elapsed().as_secs() < 30, "metrics are waited for");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Waits until there are so many spans of this kind.
    pub(crate) async fn until(&self, count: usize, is_meant: impl Fn(&Received) -> bool) -> Vec<Received> {
        let begun = std::time::Instant::now();
        loop {
            let mut found = self.all();
            found.retain(&is_meant);
            if found.len() >= count {
                return found;
            }
            assert!(begun.elapsed().as_secs() < 30, "{count} are waited for: {:#?}", self.all());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.received.lock().unwrap();
        for from in request.into_inner().resource_spans {
            let resource = from.resource.unwrap().attributes;
            let spans = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
            received.extend(spans.map(|span| Received { span, resource: resource.clone() }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Traces every call, to nowhere.
pub(crate) fn traced() -> Telemetry {
    let provider = SdkTracerProvider::builder().build();
    let on = On::new(&provider, MILLION, Arc::default());
    Telemetry { on: Some(Arc::new(on)), ..Telemetry::default() }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics.lock().unwrap().extend(request.into_inner().resource_metrics);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[test]
fn every_method_that_clients_call_has_a_name_and_no_other() {
    let files = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
    let mut methods = BTreeSet::new();
    for file in files.iter().filter(|file| file.package() == "tropism.v1") {
        let between_nodes = ["PeerService", "DirectoryService"];
        for service in file.service.iter().filter(|service| !between_nodes.contains(&service.name())) {
            let name = format!("tropism.v1.{}", service.name());
            methods.extend(service.method.iter().map(|method| (name.clone(), method.name().to_owned())));
        }
    }
    let listed: BTreeSet<(String, String)> =
        names::METHODS.iter().map(|(service, method)| ((*service).into(), (*method).into())).collect();
    assert_eq!(listed, methods);
    assert_eq!(names::method("/tropism.v1.StateService/Get"), ("tropism.v1.StateService", "Get"));
    assert_eq!(names::method("/tropism.v1.StateService/\u{1b}[31m"), (names::OTHER, names::OTHER));
}

#[test]
fn the_page_lists_the_names_that_there_are() {
    let page = include_str!("../../../../docs/operations/telemetry.md");
    let rows = |heading: &str| -> BTreeSet<&str> {
        let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
    };
    let spans: BTreeSet<&str> = names::SPANS.iter().copied().chain(["SERVICE/METHOD"]).collect();
    assert_eq!(rows("Spans"), spans);
    assert_eq!(rows("Attributes"), names::ATTRIBUTES.iter().copied().collect());
    let mut metrics = String::from("| name | kind | labels | meaning |\n|---|---|---|---|\n");
    for metric in names::METRICS {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (metric.name, metric.kind.as_str());
        metrics += &format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), metric.help);
    }
    assert!(page.contains(&metrics), "the page says of metrics:\n{metrics}");
}

#[test]
fn metrics_are_named_as_prometheus_wants_it() {
    let mut known = BTreeSet::new();
    for metric in names::METRICS {
        assert!(known.insert(metric.name), "{} is there twice", metric.name);
        let counter = metric.kind == names::Kind::Counter;
        assert_eq!(metric.name.ends_with("_total"), counter, "{}", metric.name);
        let ours = ["tropism_", "rpc_server_", "process_"].iter().any(|ours| metric.name.starts_with(ours));
        assert!(ours, "{}", metric.name);
        assert!(metric.help.ends_with('.') && !metric.help.contains('\n'), "{}", metric.name);
        for secret in ["key", "value", "token"] {
            assert!(!metric.labels.contains(&secret), "{}", metric.name);
        }
    }
}

/// What looks like a metric in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| ["tropism_", "rpc_server_", "process_"].iter().any(|ours| word.starts_with(ours)))
        .collect()
}

#[test]
fn alerts_and_dashboard_name_only_metrics_and_labels_that_there_are() {
    let dashboard = include_str!("../../../../docs/operations/dashboard.json");
    let alerts = include_str!("../../../../docs/operations/alerts.yml");
    let mut exposed = BTreeSet::new();
    for metric in names::METRICS {
        match metric.kind {
            names::Kind::Histogram => {
                exposed.extend(["bucket", "sum", "count"].map(|part| format!("{}_{part}", metric.name)));
            }
            names::Kind::Counter | names::Kind::Gauge => {
                exposed.insert(metric.name.to_owned());
            }
        }
    }
    for text in [dashboard, alerts] {
        let named = metrics_in(text);
        assert!(named.len() > 10, "{named:?}");
        for name in named {
            assert!(exposed.contains(name), "{name} is no metric");
        }
    }
    // `{{label}}` of a legend, `$labels.label` of a text; `instance` is Prometheus' own.
    let legends = dashboard.split("{{").skip(1).filter_map(|after| after.split("}}").next());
    let texts = alerts.split("$labels.").skip(1).map(|after| after.split([' ', '}']).next().unwrap());
    for label in legends.chain(texts) {
        let known = names::METRICS.iter().any(|metric| metric.labels.contains(&label));
        assert!(known || label == "instance", "{label} is no label");
    }
}

#[test]
fn the_dashboard_is_json() {
    let dashboard = include_str!("../../../../docs/operations/dashboard.json");
    let read: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let panels = read["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    assert!(
        panels.iter().all(|panel| ids.insert(panel["id"].as_u64().unwrap())),
        "each has an id of its own"
    );
}
