use std::path::Path;

use anyhow::bail;
use serde_json::json;

use crate::cluster::{Cluster, assert_everywhere};
use crate::fixtures::{python, run_script};
use crate::node::Node;
use crate::rust_sdk;

/// Scenario: the OpenTelemetry SDK for Python exports all signals over gRPC and HTTP, ADBC queries and lists tables,
/// PyIceberg opens the SQLite catalog (`cluster-tests/python/clients.py`).
/// Guarantees: what the SDK was told was accepted is what ADBC and, after a flush, PyIceberg read, by span id.
#[tokio::test(flavor = "multi_thread")]
async fn python_clients_read_what_the_sdk_wrote() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    run(&python, &node, &[&node], &dir.path().join("data/catalog.db"), &[])
}

/// Scenario: the OpenTelemetry SDK for Rust exports all signals through one node, that for Python through another; HTTP
/// and ADBC read through every node, PyIceberg opens the catalog after a flush through the one nobody wrote to.
/// Guarantees: what either SDK wrote is on every node at once, by span id, and in Iceberg after the flush.
#[tokio::test(flavor = "multi_thread")]
async fn clients_write_and_read_through_different_nodes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &[]).await?;
    let [first, second, third] = &cluster.nodes[..] else { bail!("a cluster has three nodes") };
    let endpoint = first.otlp_grpc();
    let ids = tokio::task::spawn_blocking(move || rust_sdk::export(&endpoint)).await??;
    assert_eq!(ids.len(), 20);
    assert_everywhere(&cluster, &ids).await?;
    for node in [second, third] {
        rust_signals_are_there(node).await?;
    }
    let Some(python) = python()? else { return Ok(()) };
    run(&python, third, &[second, first, third], &cluster.root.join("shared/catalog.db"), &ids)
}

async fn rust_signals_are_there(node: &Node) -> anyhow::Result<()> {
    for (query, expected) in [
        (
            "SELECT DISTINCT name, kind, http_route, scope_name FROM traces WHERE service_name = 'rust-shop'",
            json!([["checkout", "SERVER", "/pay", "clients"]]),
        ),
        (
            "SELECT body, severity_text, attributes['order'] FROM logs WHERE service_name = 'rust-shop'",
            json!([["paid order-2", "INFO", "order-2"]]),
        ),
        // Cumulative metrics may be exported more than once.
        (
            "SELECT DISTINCT value_int, attributes['region'] FROM metrics_sum
                WHERE service_name = 'rust-shop' AND metric_name = 'orders'",
            json!([[3, "eu"]]),
        ),
        (
            "SELECT DISTINCT count FROM metrics_histogram
                WHERE service_name = 'rust-shop' AND metric_name = 'latency'",
            json!([[1]]),
        ),
    ] {
        let answer = node.sql_json(query).await?;
        assert_eq!(answer["rows"], expected, "{query}");
    }
    Ok(())
}

/// Runs `clients.py`: it writes through one node, reads through all readers, and flushes through the first of them.
/// `earlier` are the ids of the spans that are there before.
fn run(python: &Path, writer: &Node, readers: &[&Node], catalog: &Path, earlier: &[String]) -> anyhow::Result<()> {
    let flights: Vec<String> = readers.iter().map(|node| node.flight().replace("http://", "grpc://")).collect();
    let environment = [
        ("OTLP_GRPC", writer.otlp_grpc()),
        ("OTLP_HTTP", writer.otlp_http("")),
        ("SIGNALDB_HTTP", readers.first().map_or_else(|| writer.url(""), |node| node.url(""))),
        ("SIGNALDB_FLIGHT", flights.join(",")),
        ("SIGNALDB_CATALOG", format!("sqlite:///{}", catalog.display())),
        ("EARLIER_SPANS", earlier.join(",")),
    ];
    run_script(python, "clients.py", &environment, "every span id agrees").map(drop)
}
