use std::time::{Duration, Instant};

use prost::Message;
use signaldb_proto::otlp::collector::logs::v1::ExportLogsServiceRequest;
use signaldb_proto::otlp::collector::logs::v1::logs_service_client::LogsServiceClient;
use signaldb_proto::otlp::collector::metrics::v1::ExportMetricsServiceRequest;
use signaldb_proto::otlp::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use signaldb_proto::otlp::collector::trace::v1::trace_service_client::TraceServiceClient;
use signaldb_proto::otlp::common::v1::{AnyValue, KeyValue, any_value};
use signaldb_proto::otlp::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use signaldb_proto::otlp::metrics::v1::metric::Data;
use signaldb_proto::otlp::metrics::v1::{
    ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, number_data_point,
};
use signaldb_proto::otlp::trace::v1::Span;
use tonic::codec::CompressionEncoding;

use crate::node::{DEADLINE, Node};
use crate::spans::{hex, now_nanos, request, span, text};

/// Scenario: all three signals and all five kinds of metrics over gRPC, plain, gzip and zstd.
/// Guarantees: each lands in its table with its values, before the flush and after it.
#[tokio::test(flavor = "multi_thread")]
async fn every_signal_arrives_over_grpc() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut traces = TraceServiceClient::connect(node.otlp_grpc()).await?.send_compressed(CompressionEncoding::Zstd);
    let one = span("over grpc");
    let (trace_id, span_id) = (hex(&one.trace_id), hex(&one.span_id));
    let response = traces.export(request("shop", vec![one])).await?;
    assert!(response.metadata().contains_key("x-signaldb-position"));
    assert_eq!(response.get_ref().partial_success, None);
    let mut logs = LogsServiceClient::connect(node.otlp_grpc()).await?.send_compressed(CompressionEncoding::Gzip);
    logs.export(log_request()).await?;
    let mut metrics = MetricsServiceClient::connect(node.otlp_grpc()).await?;
    metrics.export(metrics_request()).await?;
    for flushed in [false, true] {
        if flushed {
            node.flush().await?;
        }
        check(&node, &trace_id, &span_id).await?;
    }
    Ok(())
}

async fn check(node: &Node, trace_id: &str, span_id: &str) -> anyhow::Result<()> {
    let query = format!(
        "SELECT span_id, name, kind, status_code, service_name, attributes['http.route'], attributes['cart.size'],
            resource_attributes['service.name'], http_route FROM traces WHERE trace_id = '{trace_id}'"
    );
    let row = node.sql_json(&query).await?;
    let expected =
        serde_json::json!([span_id, "over grpc", "SERVER", "UNSET", "shop", "/checkout", "3", "shop", "/checkout"]);
    assert_eq!(row["rows"][0], expected, "{row}");
    let row = node.sql_json("SELECT body, severity_text, attributes['user'] FROM logs").await?;
    assert_eq!(row["rows"], serde_json::json!([["hello", "INFO", "ada"]]), "{row}");
    let filtered = "SELECT count(*) FROM logs WHERE attributes['user'] = 'ada' AND severity_number >= 9";
    assert_eq!(node.number(filtered).await?, 1);
    for table in ["gauge", "sum", "histogram", "exponential_histogram", "summary"] {
        let count = format!("SELECT count(*) FROM metrics_{table} WHERE metric_name = '{table}'");
        assert_eq!(node.number(&count).await?, 1, "{table}");
    }
    assert_eq!(node.number("SELECT value_int FROM metrics_gauge").await?, i64::MAX);
    let sum = node.sql_json("SELECT value_double, is_monotonic, aggregation_temporality FROM metrics_sum").await?;
    assert_eq!(sum["rows"][0], serde_json::json!([1.5, true, "CUMULATIVE"]), "{sum}");
    let histogram = node.sql_json("SELECT bucket_counts, explicit_bounds FROM metrics_histogram").await?;
    assert_eq!(histogram["rows"][0], serde_json::json!([[1, 2], [0.5]]), "{histogram}");
    Ok(())
}

fn log_request() -> ExportLogsServiceRequest {
    let record = LogRecord {
        time_unix_nano: now_nanos(),
        severity_number: 9,
        severity_text: "INFO".into(),
        body: Some(AnyValue { value: Some(any_value::Value::StringValue("hello".into())) }),
        attributes: vec![text("user", "ada")],
        ..LogRecord::default()
    };
    let scope_logs = vec![ScopeLogs { log_records: vec![record], ..ScopeLogs::default() }];
    ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }
}

fn metrics_request() -> ExportMetricsServiceRequest {
    let time_unix_nano = now_nanos();
    let point = |value| NumberDataPoint { time_unix_nano, value: Some(value), ..NumberDataPoint::default() };
    let gauge = Gauge { data_points: vec![point(number_data_point::Value::AsInt(i64::MAX))] };
    let sum = Sum {
        data_points: vec![point(number_data_point::Value::AsDouble(1.5))],
        aggregation_temporality: 2,
        is_monotonic: true,
    };
    let histogram_point = HistogramDataPoint {
        time_unix_nano,
        count: 3,
        bucket_counts: vec![1, 2],
        explicit_bounds: vec![0.5],
        ..HistogramDataPoint::default()
    };
    let exponential_point = ExponentialHistogramDataPoint { time_unix_nano, count: 1, ..Default::default() };
    let summary_point = SummaryDataPoint { time_unix_nano, count: 1, ..SummaryDataPoint::default() };
    let data = [
        ("gauge", Data::Gauge(gauge)),
        ("sum", Data::Sum(sum)),
        ("histogram", Data::Histogram(Histogram { data_points: vec![histogram_point], aggregation_temporality: 1 })),
        (
            "exponential_histogram",
            Data::ExponentialHistogram(ExponentialHistogram {
                data_points: vec![exponential_point],
                aggregation_temporality: 1,
            }),
        ),
        ("summary", Data::Summary(Summary { data_points: vec![summary_point] })),
    ];
    let metrics = data
        .into_iter()
        .map(|(name, data)| Metric { name: name.into(), data: Some(data), ..Metric::default() })
        .collect();
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }],
    }
}

/// Scenario: spans with 10,000 different attribute keys in one request, one of the spans with all of them.
/// Guarantees: every key is found, before the flush and after it; the table has the columns that it had, and its file is no
/// larger than the request.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_keys_in_one_request_are_all_found() -> anyhow::Result<()> {
    const COLUMNS: &str = "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'default'";
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    // Tables are made in the background.
    let until = Instant::now() + DEADLINE;
    let tables = COLUMNS.replace("count(*)", "count(DISTINCT table_name)");
    while node.number(&tables).await? < 7 {
        anyhow::ensure!(Instant::now() < until, "the tables are not made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let columns = node.number(COLUMNS).await?;
    let keys: Vec<_> = (0..10_000).map(|n| text(&format!("key.{n:05}"), &format!("value {n}"))).collect();
    let with = |keys: &[KeyValue]| Span { attributes: keys.to_vec(), ..span("many") };
    let spans: Vec<Span> = keys.chunks(5).map(with).chain([with(&keys)]).collect();
    let body = request("shop", spans);
    let sent = body.encoded_len();
    TraceServiceClient::connect(node.otlp_grpc()).await?.export(body).await?;
    for flushed in [false, true] {
        if flushed {
            node.flush().await?;
        }
        for key in ["key.00000", "key.04711", "key.09999"] {
            let present = format!("SELECT count(*) FROM traces WHERE attributes['{key}'] IS NOT NULL");
            assert_eq!(node.number(&present).await?, 2, "{key}");
        }
        let equal = "SELECT count(*) FROM traces WHERE attributes['key.04711'] = 'value 4711'";
        assert_eq!(node.number(equal).await?, 2);
        assert_eq!(node.number("SELECT max(cardinality(attributes)) FROM traces").await?, 10_000);
        assert_eq!(node.number(COLUMNS).await?, columns);
    }
    let bytes = node.number("SELECT sum(bytes) FROM system.files WHERE \"table\" = 'traces'").await?;
    assert!(usize::try_from(bytes)? < sent, "{bytes} bytes of {sent}");
    Ok(())
}

/// Scenario: a request of 12 MB, which becomes several log entries, sent twice.
/// Guarantees: one acknowledgment, every span once.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_request_is_split_and_stored_once() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut client = TraceServiceClient::connect(node.otlp_grpc()).await?;
    let filler = "x".repeat(4000);
    let spans = (0..3000).map(|_| {
        let mut span = span("large");
        span.attributes.push(text("filler", &filler));
        span
    });
    let body = request("shop", spans.collect());
    client.export(body.clone()).await?;
    let again = client.export(body).await?;
    assert!(again.metadata().contains_key("x-signaldb-deduplicated"));
    assert_eq!(node.number("SELECT count(DISTINCT span_id) FROM traces").await?, 3000);
    assert_eq!(node.number("SELECT count(*) FROM traces").await?, 3000);
    Ok(())
}
