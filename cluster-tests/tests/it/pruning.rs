use anyhow::Context;
use prost::Message;
use serde_json::{Value, json};
use signaldb_proto::otlp::common::v1::{AnyValue, KeyValue, any_value};
use signaldb_proto::otlp::trace::v1::Span;

use crate::node::Node;
use crate::spans::{hex, request, send_until_acknowledged, span, text};

const SPANS: u64 = 2000;
pub(crate) const DAY_NANOS: u64 = 86_400_000_000_000;
/// 2026-01-01.
pub(crate) const FIRST_DAY: u64 = 20_454;

pub(crate) fn integer(key: &str, value: i64) -> KeyValue {
    let value = Some(AnyValue { value: Some(any_value::Value::IntValue(value)) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// The trace of span `n` of file `file`.
fn trace_id(file: u64, n: u64) -> Vec<u8> {
    [(file + 1).to_be_bytes(), (n + 1).to_be_bytes()].concat()
}

/// Spans of one file: one service, one route, one port, one day, and a long text that no two share.
fn spans(file: u64, route: &str, port: i64) -> Vec<Span> {
    let noise = || [(); 6].map(|()| uuid::Uuid::new_v4().simple().to_string()).concat();
    let one = |n: u64| {
        let start = (FIRST_DAY + file) * DAY_NANOS + n * 1_000_000;
        Span {
            trace_id: trace_id(file, n),
            start_time_unix_nano: start,
            end_time_unix_nano: start + 1,
            attributes: vec![text("http.route", route), integer("server.port", port), text("noise", &noise())],
            ..span("work")
        }
    };
    (0..SPANS).map(one).collect()
}

async fn send(node: &Node, service: &str, spans: Vec<Span>) -> anyhow::Result<()> {
    let body = request(service, spans).encode_to_vec().into();
    send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body).await
}

/// What a query did, as `EXPLAIN ANALYZE` says.
struct Scan {
    plan: String,
    /// Data files that were not pruned by their bounds.
    files: usize,
    /// Bytes of them that were read.
    bytes: f64,
}

async fn scan(node: &Node, filter: &str) -> anyhow::Result<Scan> {
    let answer = node.sql_json(&format!("EXPLAIN ANALYZE SELECT count(*) FROM traces WHERE {filter}")).await?;
    let plan = answer["rows"][0][1].as_str().context("a plan")?.to_owned();
    let values = plan.split("bytes_scanned=").skip(1).map(|rest| rest.split([',', ']']).next().unwrap_or_default());
    let bytes = values.map(number).sum::<anyhow::Result<f64>>()?;
    Ok(Scan { files: plan.matches(".parquet").count(), bytes, plan })
}

/// `1.25 K` is 1250.
fn number(text: &str) -> anyhow::Result<f64> {
    let (digits, unit) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let unit = match unit {
        "" => 1.0,
        "K" => 1e3,
        "M" => 1e6,
        other => anyhow::bail!("a count in {other}"),
    };
    Ok(digits.parse::<f64>().with_context(|| format!("{text} is no count"))? * unit)
}

async fn count(node: &Node, filter: &str) -> anyhow::Result<i64> {
    node.number(&format!("SELECT count(*) FROM traces WHERE {filter}")).await
}

/// Scenario: two data files whose spans differ in service, route, port and day, each span with a long text of its own; then
/// a third in which one route is a number, so that it does not fit the column; then spans that are not flushed. Filters of
/// every kind are explained.
/// Guarantees: filters on columns, on promoted attributes of spans and resources, and on times leave out files by their
/// bounds and do not read the maps; ids leave out row groups by bloom filters; other keys read the maps. The odd route
/// costs its file the pruning by that key and by no other; whatever is pruned, every row is found.
#[tokio::test(flavor = "multi_thread")]
async fn filters_reach_files_row_groups_and_columns() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["compaction.enabled=false"]).await?;
    for (file, service, route, port) in [(0, "a", "/a", 80), (1, "b", "/b", 443)] {
        send(&node, service, spans(file, route, port)).await?;
        node.flush().await?;
    }
    let spans_each = SPANS as i64;
    let all = scan(&node, "attributes['noise'] <> ''").await?;
    assert_eq!(all.files, 2, "{}", all.plan);
    for filter in [
        "http_route = '/b'",
        "service_name = 'b'",
        "server_port > 400",
        "attributes['http.route'] = '/b'",
        "attributes['http.route'] > '/aa'",
        "attributes['http.route'] IN ('/b', '/x')",
        "attributes['http.route'] = '/b' AND name = 'work'",
        "attributes['server.port'] = '443'",
        "CAST(attributes['server.port'] AS BIGINT) > 400",
        "attributes['server.port'] > 400",
        "resource_attributes['service.name'] = 'b'",
        "timestamp >= TIMESTAMP '2026-01-02T00:00:00Z'",
        "attributes['http.route'] = '/b' AND timestamp < TIMESTAMP '2026-02-01T00:00:00Z'",
    ] {
        let scan = scan(&node, filter).await?;
        assert_eq!(scan.files, 1, "{filter}: {}", scan.plan);
        assert!(scan.bytes * 10.0 < all.bytes, "{filter} read {} of {}: {}", scan.bytes, all.bytes, scan.plan);
        assert_eq!(count(&node, filter).await?, spans_each, "{filter}");
    }
    for filter in ["attributes['http.route'] = '/c'", "attributes['server.port'] = '0443'", "timestamp < '2026-01-01'"]
    {
        let scan = scan(&node, filter).await?;
        assert_eq!((scan.files, count(&node, filter).await?), (0, 0), "{filter}: {}", scan.plan);
    }
    let either = "attributes['http.route'] = '/b' OR attributes['noise'] = 'x'";
    assert_eq!((scan(&node, either).await?.files, count(&node, either).await?), (2, spans_each));

    let mut third = spans(2, "/c", 9000);
    third[0].attributes[0] = integer("http.route", 5);
    send(&node, "c", third).await?;
    node.flush().await?;
    for (filter, files, rows) in [
        ("attributes['http.route'] = '/b'", 2, spans_each),
        ("attributes['http.route'] = '/c'", 1, spans_each - 1),
        ("attributes['http.route'] = '5'", 1, 1),
        ("attributes['http.route'] IS NULL", 1, 0),
        ("http_route = '/c'", 1, spans_each - 1),
        ("http_route = '/b'", 1, spans_each),
        ("attributes['server.port'] = '443'", 1, spans_each),
    ] {
        let scan = scan(&node, filter).await?;
        assert_eq!((scan.files, count(&node, filter).await?), (files, rows), "{filter}: {}", scan.plan);
    }

    // A bloom filter may say yes when the answer is no, one time in a hundred.
    let mut pruned = 0;
    for n in 0..10 {
        let filter = format!("trace_id = '{}'", hex(&trace_id(n % 3, n * 7)));
        let scan = scan(&node, &filter).await?;
        assert_eq!((scan.files, count(&node, &filter).await?), (3, 1), "{filter}: {}", scan.plan);
        pruned += usize::from(scan.plan.contains("row_groups_pruned_bloom_filter=3 total → 1 matched"));
    }
    assert!(pruned >= 8, "{pruned} of 10 traces were looked for in one file");

    send(&node, "b", spans(1, "/b", 443)).await?;
    for filter in ["attributes['http.route'] = '/b'", "attributes['server.port'] = '443'", "http_route = '/b'"] {
        assert_eq!(count(&node, filter).await?, 2 * spans_each, "{filter}");
    }
    let limited = "SELECT count(*) FROM (SELECT name FROM traces WHERE attributes['http.route'] = '/b' LIMIT 2500)";
    assert_eq!(node.number(limited).await?, 2500);
    Ok(())
}

/// The same spans with two keys of the tenant's own.
fn own_spans(file: u64, plan: &str, retries: i64) -> Vec<Span> {
    let mut spans = spans(file, "/", 80);
    for span in &mut spans {
        span.attributes.extend([text("tenant.plan", plan), integer("retries", retries)]);
    }
    spans
}

async fn post(node: &Node, path: &str, body: Value) -> anyhow::Result<Value> {
    let answer = node.http.post(node.url(path)).json(&body).send().await?;
    Ok(answer.error_for_status()?.json().await?)
}

/// Scenario: keys of the tenant's own are promoted after two data files of one day were written; two of other days follow,
/// in the last of which one number is a text; then spans that are not flushed. The first day's files are compacted.
/// Guarantees: filters on the attributes and on their columns leave out files by their bounds and do not read the maps, as
/// far as the files have the columns; before that they read them. Whatever is pruned, every row is found, also by the
/// column's name, before it was flushed or compacted.
#[tokio::test(flavor = "multi_thread")]
async fn filters_on_promoted_attributes_reach_files_and_columns() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["compaction.enabled=false", "compaction.min_files=2"]).await?;
    for _ in 0..2 {
        send(&node, "a", own_spans(0, "free", 1)).await?;
        node.flush().await?;
    }
    for (key, kind) in [("tenant.plan", "text"), ("retries", "int")] {
        let body = json!({"table": "traces", "key": key, "type": kind});
        let answer = post(&node, "/api/v1/admin/promote", body).await?;
        assert_eq!(answer["tables"][0]["effect"], "promoted", "{answer}");
    }
    send(&node, "b", own_spans(1, "gold", 5)).await?;
    node.flush().await?;
    let mut odd = own_spans(2, "trial", 9);
    odd[0].attributes.pop();
    odd[0].attributes.push(text("retries", "many"));
    send(&node, "c", odd).await?;
    node.flush().await?;

    let (all, each) = (scan(&node, "attributes['noise'] <> ''").await?, SPANS as i64);
    assert_eq!(all.files, 4, "{}", all.plan);
    for (filter, files, rows) in [
        ("attributes['tenant.plan'] = 'gold'", 3, each),
        ("attr_tenant_plan = 'gold'", 3, each),
        ("attributes['retries'] = '5'", 4, each),
        ("attr_retries = 5", 3, each),
        ("attr_retries < 5", 2, 2 * each),
        ("attr_retries IS NULL", 3, 1),
        ("attributes['retries'] = 'many'", 3, 1),
        ("attr_tenant_plan = 'free'", 2, 2 * each),
    ] {
        let scan = scan(&node, filter).await?;
        assert_eq!((scan.files, count(&node, filter).await?), (files, rows), "{filter}: {}", scan.plan);
    }

    let compacted = post(&node, "/api/v1/admin/tables/compact", json!({"table": "traces"})).await?;
    assert_eq!(compacted["tables"][0]["rewrites"][0]["new_files"], 1, "{compacted}");
    for filter in [
        "attributes['tenant.plan'] = 'gold'",
        "attr_tenant_plan = 'gold'",
        "attributes['tenant.plan'] IN ('gold', 'x')",
        "attr_retries = 5",
        "attr_tenant_plan = 'gold' AND attr_retries > 4",
    ] {
        let scan = scan(&node, filter).await?;
        assert_eq!(scan.files, 1, "{filter}: {}", scan.plan);
        assert!(scan.bytes * 10.0 < all.bytes, "{filter} read {} of {}: {}", scan.bytes, all.bytes, scan.plan);
        assert_eq!(count(&node, filter).await?, each, "{filter}");
    }
    for (filter, files, rows) in [
        // Of the file with the odd one the map is asked.
        ("attributes['retries'] = '5'", 2, each),
        ("attributes['retries'] = '1'", 2, 2 * each),
        ("attr_retries = 1", 1, 2 * each),
        ("attributes['tenant.plan'] = 'nobody'", 0, 0),
        ("attr_tenant_plan IS NULL", 0, 0),
        ("attr_retries IS NULL", 1, 1),
    ] {
        let scan = scan(&node, filter).await?;
        assert_eq!((scan.files, count(&node, filter).await?), (files, rows), "{filter}: {}", scan.plan);
    }

    send(&node, "b", own_spans(1, "gold", 5)).await?;
    for filter in ["attributes['tenant.plan'] = 'gold'", "attr_tenant_plan = 'gold'", "attr_retries = 5"] {
        assert_eq!(count(&node, filter).await?, 2 * each, "{filter}");
    }
    let plans =
        "SELECT count(*) FROM (SELECT attr_tenant_plan, max(attr_retries) FROM traces GROUP BY attr_tenant_plan)";
    assert_eq!(node.number(plans).await?, 3);
    let limited = "SELECT count(*) FROM (SELECT attr_tenant_plan FROM traces WHERE attr_retries = 5 LIMIT 2500)";
    assert_eq!(node.number(limited).await?, 2500);
    let past = "SELECT count(*) FROM traces FOR TIMESTAMP AS OF now() WHERE attributes['tenant.plan'] = 'gold'";
    assert_eq!(node.number(past).await?, each);
    Ok(())
}
