//! Nodes that are scraped.

use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ResourceMetrics, metric, number_data_point,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::traces::{Node, Trio};
use super::*;
use crate::telemetry::names;
use crate::telemetry::scrape::SCRAPES;
use crate::telemetry::tests::{Collector, text};

/// Sends a request and reads everything that comes back.
async fn http(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn scrape(address: SocketAddr) -> String {
    http(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await
}

/// The same, of a scraper that may be hung up on.
async fn asked(address: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.ok();
    stream.read_to_end(&mut answer).await.ok();
    answer
}

/// The value of a series.
fn value(told: &str, series: &str) -> Option<f64> {
    let line = told.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

/// Scrapes until a series has a value that is meant.
async fn until(address: SocketAddr, series: &str, is_meant: impl Fn(f64) -> bool) -> String {
    let begun = Instant::now();
    loop {
        let told = scrape(address).await;
        if value(&told, series).is_some_and(&is_meant) {
            return told;
        }
        assert!(begun.elapsed().as_secs() < 30, "{series} is waited for:\n{told}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The first two of three nodes, and where each is scraped.
async fn two() -> (Trio, [Node; 2], [SocketAddr; 2]) {
    let addresses = [free_address(), free_address(), free_address()];
    let trio = Trio::with(|at| format!("metrics = \"{}\"", addresses[at]));
    let nodes = [trio.start(0).await, trio.start(1).await];
    for node in &nodes {
        node.until_linked(2).await;
    }
    (trio, nodes, [addresses[0], addresses[1]])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_shows_calls_by_their_status_and_how_late_the_changes_of_another_region_were() {
    let (_trio, [dallas, frankfurt], [dallas_at, frankfurt_at]) = two().await;
    let puts = |code: &str| {
        let method = "rpc_method=\"tropism.v1.StateService/Put\"";
        format!("rpc_server_calls_total{{{method},rpc_response_status_code=\"{code}\"}}")
    };
    let lag = "tropism_replication_lag_seconds_count{from_region=\"dallas\",to_region=\"frankfurt\"}";
    let ok = value(&scrape(dallas_at).await, &puts("OK")).unwrap();
    let refused = value(&scrape(dallas_at).await, &puts("INVALID_ARGUMENT")).unwrap_or(0.0);
    let applied = value(&scrape(frankfurt_at).await, lag).unwrap();
    for n in 0..5 {
        dallas.put(&format!("secret-{n}"), 2, None).await.unwrap();
    }
    dallas.put("", 2, None).await.unwrap_err();
    let told = until(dallas_at, &puts("OK"), |count| count >= ok + 5.0).await;
    assert_eq!(value(&told, &puts("OK")), Some(ok + 5.0));
    assert_eq!(value(&told, &puts("INVALID_ARGUMENT")), Some(refused + 1.0));
    assert!(value(&told, "tropism_store_commits_total").unwrap() >= 5.0);
    assert!(!told.contains("secret"));

    let told = until(frankfurt_at, lag, |count| count >= applied + 5.0).await;
    assert_eq!(value(&told, lag), Some(applied + 5.0), "each once");
    let up = "tropism_link_up{peer=\"dallas-1\",peer_region=\"dallas\"}";
    let told = until(frankfurt_at, up, |up| up == 1.0).await;
    assert_eq!(value(&told, "tropism_link_up{peer=\"tokyo-1\",peer_region=\"tokyo\"}"), Some(0.0));
    let staleness = |from: &str| {
        format!("tropism_replication_staleness_seconds{{from_region=\"{from}\",to_region=\"frankfurt\"}}")
    };
    assert_eq!(value(&told, &staleness("tokyo")), None, "nobody knows: it was never heard");

    // Nobody writes any more, and yet what may be missing is ever younger than the last write.
    let idle_since = Instant::now();
    until(frankfurt_at, &staleness("dallas"), |age| age < idle_since.elapsed().as_secs_f64()).await;
    assert_eq!(value(&scrape(frankfurt_at).await, lag), Some(applied + 5.0), "idling is no lag");

    let status = frankfurt.status().await;
    assert_eq!(status.node.unwrap().metrics, format!("http://{frankfurt_at}/metrics"));
    dallas.stop().await;
    frankfurt.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_client_gives_up_is_cancelled_and_a_stream_counts_when_it_ends() {
    let (_trio, [dallas, frankfurt], [at, _]) = two().await;
    let count = |method: &str, code: &str| {
        let method = format!("rpc_method=\"tropism.v1.StateService/{method}\"");
        format!("rpc_server_calls_total{{{method},rpc_response_status_code=\"{code}\"}}")
    };
    let request = v1::WatchRequest { scope: "cache".into(), ..Default::default() };
    let mut watch =
        StateServiceClient::new(dallas.channel.clone()).watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    assert_eq!(value(&scrape(at).await, &count("Watch", "OK")), None, "it goes on");
    drop(watch);
    until(at, &count("Watch", "CANCELLED"), |count| count == 1.0).await;

    let request = v1::ScanRequest { scope: "cache".into(), ..Default::default() };
    let mut scan = StateServiceClient::new(dallas.channel.clone()).scan(request).await.unwrap().into_inner();
    while scan.message().await.unwrap().is_some() {}
    until(at, &count("Scan", "OK"), |count| count == 1.0).await;

    // It waits for the third region, which does not run.
    tokio::time::timeout(Duration::from_millis(300), dallas.put("waits", 3, None)).await.unwrap_err();
    until(at, &count("Put", "CANCELLED"), |count| count >= 1.0).await;
    dallas.stop().await;
    frankfurt.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scrapers_that_hang_take_places_of_scrapers_and_nothing_else() {
    let (_trio, [dallas, frankfurt], [at, _]) = two().await;
    let mut hanging = Vec::new();
    for request in ["", "GET /metr", "GET /metrics HTTP/1.1\r\nHost:"].iter().cycle().take(SCRAPES) {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        hanging.push(stream);
    }
    // Connections are taken in their order, so this one finds no place.
    assert_eq!(asked(at).await, b"", "hung up on, one way or the other");
    dallas.put("key", 2, None).await.unwrap();
    drop(hanging);
    let begun = Instant::now();
    loop {
        if asked(at).await.starts_with(b"HTTP/1.1 200 OK\r\n") {
            break;
        }
        assert!(begun.elapsed().as_secs() < 30, "places come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    dallas.stop().await;
    frankfurt.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_metrics_are_served_in_the_format_that_is_asked_for() {
    let (_trio, [dallas, frankfurt], [at, _]) = two().await;
    let told = scrape(at).await;
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.contains("text/plain; version=0.0.4"), "{told}");
    assert!(told.contains("\n# TYPE rpc_server_calls_total counter\n") && !told.contains("# EOF"));
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let told = http(at, &format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n")).await;
    assert!(
        told.contains("application/openmetrics-text; version=1.0.0") && told.ends_with("# EOF\n"),
        "{told}"
    );
    let told = http(at, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.ends_with("\r\n\r\n"), "{told}");
    let told = http(at, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 404 "), "{told}");
    let told = http(at, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 405 ") && told.contains("allow: GET, HEAD"), "{told}");
    let long = "x".repeat(20 << 10);
    let told = http(at, &format!("GET /metrics HTTP/1.1\r\nHost: {long}\r\n\r\n")).await;
    assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
    dallas.stop().await;
    frankfurt.stop().await;
}

/// What was told of puts that were answered well.
fn puts(told: &ResourceMetrics) -> Option<i64> {
    let metrics = told.scope_metrics.iter().flat_map(|scope| &scope.metrics);
    let calls =
        metrics.filter(|metric| metric.name == "rpc_server_calls").find_map(|metric| metric.data.clone());
    let Some(metric::Data::Sum(sum)) = calls else { return None };
    assert!(sum.is_monotonic && sum.aggregation_temporality() == AggregationTemporality::Cumulative);
    let put = sum.data_points.iter().find(|point| {
        text(&point.attributes, "rpc_method") == "tropism.v1.StateService/Put"
            && text(&point.attributes, "rpc_response_status_code") == "OK"
    });
    match put?.value? {
        number_data_point::Value::AsInt(count) => Some(count),
        number_data_point::Value::AsDouble(_) => panic!("a count is whole"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_metrics_too() {
    let (collector, otlp) = Collector::start().await;
    let scraped = [free_address(), free_address(), free_address()];
    let trio = Trio::with(|at| {
        let otlp = format!("otlp = \"http://{otlp}\", push_metrics = \"1s\"");
        format!("{otlp}, sampling = 0.0, metrics = \"{}\"", scraped[at])
    });
    let nodes = [trio.start(0).await, trio.start(1).await];
    nodes[0].until_linked(2).await;
    for _ in 0..3 {
        nodes[0].put("secret", 2, None).await.unwrap();
    }
    let of = |region: &'static str| {
        move |told: &ResourceMetrics| {
            text(&told.resource.as_ref().unwrap().attributes, names::REGION) == region
        }
    };
    let dallas = of("dallas");
    let told = collector.until_metrics(|told| dallas(told) && puts(told).is_some_and(|puts| puts >= 4)).await;
    assert_eq!(text(&told.resource.as_ref().unwrap().attributes, names::SERVICE_NAME), "tropism");
    // The same families as a scrape.
    let scrape = scrape(scraped[1]).await;
    let families = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let families: Vec<&str> = families.map(|name| name.strip_suffix("_total").unwrap_or(name)).collect();
    let frankfurt = of("frankfurt");
    let whole = |told: &ResourceMetrics| {
        let names =
            told.scope_metrics.iter().flat_map(|scope| &scope.metrics).map(|metric| metric.name.as_str());
        let names: std::collections::BTreeSet<&str> = names.collect();
        frankfurt(told) && families.iter().all(|family| names.contains(family))
    };
    let told = collector.until_metrics(whole).await;
    let mut metrics = told.scope_metrics.iter().flat_map(|scope| &scope.metrics);
    let lag = metrics.find(|metric| metric.name == "tropism_replication_lag_seconds").unwrap();
    assert_eq!(lag.unit, "s");
    let Some(metric::Data::Histogram(lag)) = lag.data.clone() else { panic!("a histogram") };
    for point in lag.data_points {
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
        assert!(point.start_time_unix_nano < point.time_unix_nano);
    }
    let [dallas, frankfurt] = nodes;
    dallas.stop().await;
    frankfurt.stop().await;
}
