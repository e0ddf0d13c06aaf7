//! What scans leave out, as `EXPLAIN ANALYZE` says, and that nothing is missing for it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use prost::Message;
use serde_json::{Value, json};
use signaldb_proto::otlp::collector::metrics::v1::ExportMetricsServiceRequest;
use signaldb_proto::otlp::metrics::v1::{
    Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point,
};
use signaldb_proto::otlp::trace::v1::Span;

use crate::cluster::Cluster;
use crate::node::Node;
use crate::pruning::{DAY_NANOS, FIRST_DAY};
use crate::spans::{hex, request, send_until_acknowledged, span, text};

const SPANS: u64 = 2000;

fn trace_id(day: u64, n: u64) -> Vec<u8> {
    [(day + 1).to_be_bytes(), (n + 1).to_be_bytes()].concat()
}

/// One span of each of a day's traces, a second apart.
fn spans(day: u64) -> Vec<Span> {
    let one = |n: u64| {
        let start = (FIRST_DAY + day) * DAY_NANOS + n * 1_000_000_000;
        Span { trace_id: trace_id(day, n), start_time_unix_nano: start, end_time_unix_nano: start + 1, ..span("work") }
    };
    (0..SPANS).map(one).collect()
}

async fn send(node: &Node, service: &str, spans: Vec<Span>) -> anyhow::Result<()> {
    let body = request(service, spans).encode_to_vec().into();
    send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body).await
}

/// What `EXPLAIN` or `EXPLAIN ANALYZE` says.
async fn explain(node: &Node, sql: &str) -> anyhow::Result<String> {
    Ok(node.sql_json(sql).await?["rows"].to_string())
}

/// A count in an `EXPLAIN ANALYZE`.
fn noted(plan: &str, name: &str) -> anyhow::Result<u64> {
    let (_, rest) = plan.split_once(&format!("{name}=")).with_context(|| format!("no {name} in {plan}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{name} is no count in {plan}"))
}

/// What looking for a trace came to.
#[derive(Debug, PartialEq, Eq)]
struct Search {
    rows: i64,
    /// That were left out by trace indexes.
    pruned: u64,
    index_reads: u64,
    catalog_reads: u64,
}

async fn search(node: &Node, filter: &str) -> anyhow::Result<Search> {
    let sql = format!("SELECT count(*) FROM traces WHERE {filter}");
    let plan = explain(node, &format!("EXPLAIN ANALYZE {sql}")).await?;
    Ok(Search {
        rows: node.number(&sql).await?,
        pruned: noted(&plan, "files_pruned_by_trace_index")?,
        index_reads: noted(&plan, "trace_index_reads")?,
        catalog_reads: noted(&plan, "catalog_reads")?,
    })
}

fn trace_indexes(dir: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            trace_indexes(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "tidx") {
            found.push(path);
        }
    }
    Ok(())
}

/// Scenario: two days with the spans of two services in two data files each are compacted; then comes a third service, in a
/// data file that is not, and a fourth that is not flushed. The indexes are damaged at last, and removed.
/// Guarantees: a trace is found whole each time. The index of each compaction is read once for it, kept, and leaves out the
/// day that does not have it; the catalog is not asked. Without indexes the same rows are found.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_found_by_the_indexes_of_compactions() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &["compaction.enabled=false", "compaction.min_files=2"]).await?;
    for service in ["a", "b"] {
        for day in [0, 1] {
            send(&node, service, spans(day)).await?;
        }
        node.flush().await?;
    }
    let id = |day, n| format!("trace_id = '{}'", hex(&trace_id(day, n)));
    let before = search(&node, &id(0, 7)).await?;
    assert_eq!((before.rows, before.pruned, before.index_reads), (2, 0, 0), "flushes have no index");
    let compact = node.http.post(node.url("/api/v1/admin/tables/compact")).json(&json!({"table": "traces"}));
    compact.send().await?.error_for_status()?;
    let mut indexes = Vec::new();
    trace_indexes(dir.path(), &mut indexes)?;
    assert_eq!(indexes.len(), 2, "one a rewrite: {indexes:?}");

    // The beginning of each index, and the leaf of the one that has the hash; of the other one perhaps, too.
    let first = search(&node, &id(0, 7)).await?;
    assert_eq!((first.rows, first.pruned, first.catalog_reads), (2, 1, 0));
    assert!((3..=4).contains(&first.index_reads), "{first:?}");
    let again = search(&node, &id(0, 7)).await?;
    assert_eq!(again, Search { rows: 2, pruned: 1, index_reads: 0, catalog_reads: 0 });
    for n in [0, 1, SPANS / 2, SPANS - 1] {
        let search = search(&node, &id(1, n)).await?;
        assert_eq!((search.rows, search.pruned), (2, 1), "{n}");
    }
    let either = search(&node, &format!("{} OR {}", id(0, 3), id(1, 4))).await?;
    assert_eq!((either.rows, either.pruned), (4, 0));
    let none = search(&node, &id(5, 0)).await?;
    assert_eq!((none.rows, none.pruned), (0, 2));
    let named = search(&node, &format!("{} AND attributes['cart.size'] = '4'", id(0, 7))).await?;
    assert_eq!((named.rows, named.pruned), (0, 1));
    let in_service = format!("{} AND resource_attributes['service.name'] = 'b'", id(0, 7));
    assert_eq!(search(&node, &in_service).await?.rows, 1);

    send(&node, "c", spans(0)).await?;
    node.flush().await?;
    assert_eq!(search(&node, &id(0, 7)).await?.rows, 3);
    send(&node, "d", spans(0)).await?;
    let unflushed = search(&node, &id(0, 7)).await?;
    assert_eq!((unflushed.rows, unflushed.pruned), (4, 1));

    for index in &indexes {
        let mut content = std::fs::read(index)?;
        let last = content.len() - 1;
        content[last] ^= 1;
        std::fs::write(index, content)?;
    }
    node.kill()?;
    node.restart().await?;
    for n in [7, SPANS - 1] {
        let damaged = search(&node, &id(0, n)).await?;
        assert_eq!((damaged.rows, damaged.catalog_reads), (4, 0), "{n}");
    }
    for index in &indexes {
        std::fs::remove_file(index)?;
    }
    node.kill()?;
    node.restart().await?;
    for n in [7, SPANS - 1] {
        let removed = search(&node, &id(0, n)).await?;
        assert_eq!((removed.rows, removed.pruned), (4, 0), "{n}");
    }
    Ok(())
}

/// Scenario: spans of three days in a data file each, and of a fourth that is not flushed.
/// Guarantees: counts and bounds of all of them open no file; the newest and the oldest rows are found in order, whatever is
/// flushed, and files that cannot have them are not opened; what is read once is kept.
#[tokio::test(flavor = "multi_thread")]
async fn counts_bounds_and_newest_rows_read_little() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["compaction.enabled=false"]).await?;
    for day in [1, 0, 2] {
        send(&node, "a", spans(day)).await?;
        node.flush().await?;
    }
    let time = |day: u64, n: u64| ((FIRST_DAY + day) * DAY_NANOS + n * 1_000_000_000) as i64;
    let check_newest = async |day: u64| -> anyhow::Result<String> {
        let sql = "SELECT time_unix_nano FROM traces ORDER BY timestamp DESC LIMIT 3 OFFSET 1";
        let rows = node.sql_json(sql).await?;
        let expected = json!([[time(day, SPANS - 2)], [time(day, SPANS - 3)], [time(day, SPANS - 4)]]);
        assert_eq!(rows["rows"], expected);
        let rows = node.sql_json("SELECT time_unix_nano FROM traces ORDER BY time_unix_nano LIMIT 2").await?;
        assert_eq!(rows["rows"], json!([[time(0, 0)], [time(0, 1)]]));
        explain(&node, &format!("EXPLAIN ANALYZE {sql}")).await
    };
    let check_bounds = async |day: u64, count: u64| -> anyhow::Result<()> {
        let sql = "SELECT count(*), min(time_unix_nano), max(time_unix_nano) FROM traces";
        let plan = explain(&node, &format!("EXPLAIN {sql}")).await?;
        assert!(plan.contains("PlaceholderRowExec") && !plan.contains(".parquet"), "{plan}");
        let rows = node.sql_json(sql).await?;
        assert_eq!(rows["rows"], json!([[count, time(0, 0), time(day, SPANS - 1)]]));
        Ok(())
    };
    for _ in 0..2 {
        let plan = check_newest(2).await?;
        assert!(!plan.contains("3 total → 3 matched") && !plan.contains("3 total → 2 matched"), "{plan}");
        assert_eq!(noted(&plan, "catalog_reads")?, 0);
    }
    check_bounds(2, 3 * SPANS).await?;
    let all = "EXPLAIN ANALYZE SELECT count(name) FROM traces WHERE duration_nano < 100";
    explain(&node, all).await?;
    let again = explain(&node, all).await?;
    assert_eq!((noted(&again, "cache_hits")?, noted(&again, "cache_misses")?), (3, 0), "{again}");

    send(&node, "b", spans(3)).await?;
    check_newest(3).await?;
    check_bounds(3, 4 * SPANS).await?;
    let day = "timestamp >= TIMESTAMP '2026-01-02T00:00:00Z' AND timestamp < TIMESTAMP '2026-01-03T00:00:00Z'";
    let plan = explain(&node, &format!("EXPLAIN ANALYZE SELECT count(*) FROM traces WHERE {day}")).await?;
    assert_eq!(noted(&plan, "files_pruned_by_bounds")?, 2, "{plan}");
    Ok(())
}

/// Scenario: a gauge with numbers, NaN and infinities among them, in a data file.
/// Guarantees: comparisons find the same points before the flush and after it: NaN is greater than every number.
#[tokio::test(flavor = "multi_thread")]
async fn comparisons_find_nan_in_files_as_in_memory() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["compaction.enabled=false"]).await?;
    let values = [1.0, 3.0, f64::NAN, f64::NEG_INFINITY, -0.0];
    let point = |(value, n): (f64, u64)| NumberDataPoint {
        time_unix_nano: FIRST_DAY * DAY_NANOS + n,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    };
    let gauge = Gauge { data_points: values.into_iter().zip(0..).map(point).collect() };
    let metric = Metric { name: "g".to_owned(), data: Some(metric::Data::Gauge(gauge)), ..Metric::default() };
    let scope_metrics = vec![ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() }];
    let resource_metrics = vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }];
    let body = ExportMetricsServiceRequest { resource_metrics }.encode_to_vec().into();
    send_until_acknowledged(&node.http, &[node.otlp_http("/v1/metrics")], body).await?;
    for _ in 0..2 {
        for (filter, rows) in
            [("value_double > 5", 1), ("value_double > 2", 2), ("value_double < -1e300", 1), ("isnan(value_double)", 1)]
        {
            let found = node.number(&format!("SELECT count(*) FROM metrics_gauge WHERE {filter}")).await?;
            assert_eq!(found, rows, "{filter}");
        }
        node.flush().await?;
    }
    Ok(())
}

/// What every node says of spans and their texts.
async fn answers_about_texts(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    let mut answers = Vec::new();
    for sql in [
        "SELECT service_name, http_route, count(*) FROM traces GROUP BY 1, 2 ORDER BY 1, 2",
        "SELECT attributes['http.route'], min(name), count(*) FROM traces GROUP BY 1 ORDER BY 1",
        "SELECT name, attributes FROM traces WHERE attributes['http.route'] = '/a/route/of/some/length' ORDER BY name",
        "SELECT count(*) FROM traces WHERE name LIKE '%work 1%' OR attributes['own'] = name",
        "SELECT service_name, name FROM traces ORDER BY name DESC, service_name LIMIT 5",
    ] {
        let mut said: Option<Value> = None;
        for (at, node) in cluster.nodes.iter().enumerate() {
            let body = node.sql_json(sql).await?;
            let answer = json!([body["columns"], body["rows"]]);
            assert_eq!(said.get_or_insert_with(|| answer.clone()), &answer, "{sql} of node {}", at + 1);
        }
        answers.extend(said);
    }
    Ok(answers)
}

/// Scenario: spans on three nodes, which are in memory at first and then in a file; then twice as many, of which a half are
/// in memory.
/// Guarantees: every node gives the same answers about texts, with the same types, wherever the rows are.
#[tokio::test(flavor = "multi_thread")]
async fn texts_are_the_same_in_files_in_memory_and_from_other_nodes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &["flush.interval=1h", "flush.max_interval=1h"]).await?;
    let one = |n: u64| Span {
        name: format!("work {n}"),
        attributes: match n % 3 {
            0 => vec![text("http.route", "/a/route/of/some/length"), text("own", &format!("work {n}"))],
            1 => vec![text("http.route", "/x")],
            _ => vec![],
        },
        ..span("work")
    };
    for (service, names) in [("a", 0..20), ("a service with a long name", 10..30)] {
        let body = request(service, names.map(one).collect()).encode_to_vec().into();
        send_until_acknowledged(&cluster.http, &cluster.urls(), body).await?;
        let before = answers_about_texts(&cluster).await?;
        assert_eq!(before[0][0][0], json!({"name": "service_name", "type": "Utf8"}));
        cluster.nodes[0].flush().await?;
        assert_eq!(answers_about_texts(&cluster).await?, before);
    }
    Ok(())
}
