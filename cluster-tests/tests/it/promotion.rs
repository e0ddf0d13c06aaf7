//! Attributes that an operator promotes on a cluster of three nodes (ADR 13).

use anyhow::Context;
use prost::Message;
use serde_json::{Value, json};
use signaldb_proto::otlp::common::v1::KeyValue;
use signaldb_proto::otlp::trace::v1::Span;

use crate::cluster::Cluster;
use crate::fixtures::{python, run_script};
use crate::maintenance::{signaldb_table, table, traces};
use crate::node::Node;
use crate::pruning::{DAY_NANOS, FIRST_DAY, integer};
use crate::spans::{request, send_until_acknowledged, span, text};

/// Spans of one batch: as many of plan `free`, of plan `gold`, without a plan, and with a number of retries that is a text.
const EACH: u64 = 5;

/// Spans of one long past day, with ids of their own.
fn batch(retries: i64) -> Vec<Span> {
    let kinds: [Vec<KeyValue>; 4] = [
        vec![text("tenant.plan", "free"), integer("retries", retries)],
        vec![text("tenant.plan", "gold"), integer("retries", retries)],
        vec![integer("retries", retries)],
        vec![text("tenant.plan", "free"), text("retries", "many")],
    ];
    let one = |n: u64| {
        let start_time_unix_nano = FIRST_DAY * DAY_NANOS + n;
        let attributes = kinds[(n % 4) as usize].clone();
        Span { start_time_unix_nano, end_time_unix_nano: start_time_unix_nano + 1, attributes, ..span("work") }
    };
    (0..4 * EACH).map(one).collect()
}

async fn send(cluster: &Cluster, retries: i64) -> anyhow::Result<()> {
    let body = request("shop", batch(retries)).encode_to_vec().into();
    send_until_acknowledged(&cluster.http, &cluster.urls(), body).await
}

/// What each node counts, in units of [`EACH`].
async fn assert_counts(cluster: &Cluster, expected: &[(&str, u64)]) -> anyhow::Result<()> {
    for (at, node) in cluster.nodes.iter().enumerate() {
        for (filter, parts) in expected {
            let found = node.number(&format!("SELECT count(*) FROM traces WHERE {filter}")).await?;
            assert_eq!(found, i64::try_from(parts * EACH)?, "{filter} on node {}", at + 1);
        }
    }
    Ok(())
}

/// What queries say of so many batches, each of which was sent with three retries, however they are stored.
fn by_attributes(batches: u64) -> Vec<(&'static str, u64)> {
    vec![
        ("attributes['tenant.plan'] = 'gold'", batches),
        ("attributes['tenant.plan'] IS NULL", batches),
        ("attributes['retries'] = '3'", 3 * batches),
        ("attributes['retries'] = 'many'", batches),
        ("attributes['retries'] = '03'", 0),
    ]
}

fn by_columns(batches: u64) -> Vec<(&'static str, u64)> {
    vec![
        ("attr_tenant_plan = 'gold'", batches),
        ("attr_tenant_plan IS NULL", batches),
        ("attr_retries = 3", 3 * batches),
        ("attr_retries > 3", 0),
        ("attr_retries IS NULL", batches),
        ("attr_tenant_plan = 'free' AND attributes['retries'] = 'many'", batches),
    ]
}

async fn assert_same(cluster: &Cluster, batches: u64) -> anyhow::Result<()> {
    assert_counts(cluster, &by_attributes(batches)).await?;
    assert_counts(cluster, &by_columns(batches)).await
}

/// PyIceberg sees the columns with their types; so many spans have them filled, in units of [`EACH`], and each has what
/// its map has (`cluster-tests/python/promotion.py`).
fn assert_pyiceberg(cluster: &Cluster, plans: u64, retries: u64) -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let catalog = cluster.root.join("shared/catalog.db");
    let environment = [
        ("SIGNALDB_CATALOG", format!("sqlite:///{}", catalog.display())),
        ("PLANS", (plans * EACH).to_string()),
        ("RETRIES", (retries * EACH).to_string()),
    ];
    run_script(&python, "promotion.py", &environment, "the copies are right").map(drop)
}

/// What became of an attribute, by `signaldb table promote` or `demote`.
fn effect(node: &Node, arguments: &[&str]) -> anyhow::Result<Value> {
    let report = table(node, &[arguments, &["--table", "traces"][..]].concat())?.remove(0);
    Ok(traces(&report)?["effect"].clone())
}

/// The promoted attributes: column, whether it is written, files with it, files in which it is whole.
fn promoted(node: &Node) -> anyhow::Result<Vec<Value>> {
    let report = table(node, &["promoted", "--table", "traces"])?.remove(0);
    let listed = traces(&report)?["promoted"].as_array().context("a list")?;
    let shown = |one: &Value| json!([one["column"], one["written"], one["filled_files"], one["whole_files"]]);
    Ok(listed.iter().map(shown).collect())
}

fn refusal(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    let output = signaldb_table(node, arguments)?;
    anyhow::ensure!(!output.status.success(), "{arguments:?} was not refused");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Scenario: two keys of the tenant's own are promoted, demoted and promoted again, each time by another of three nodes,
/// while spans that have them are in files of before, in files of later, or not flushed; all of them are compacted.
/// Guarantees: whichever node is asked, the table gets its columns once; every node answers the same filters, on
/// attributes and on columns, with the same spans at any time; PyIceberg sees the columns filled as far as files have them;
/// after a demotion the column is gone from queries, and nothing else is; what cannot be promoted is refused and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_attribute_is_a_column_on_every_node_whatever_was_flushed_or_compacted() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = [
        "flush.interval=1h",
        "flush.max_interval=1h",
        "compaction.interval=1h",
        "compaction.min_files=2",
        // Small files of any number of rows are of one size class.
        "compaction.target_file_size=1MiB",
    ];
    let cluster = Cluster::start(dir.path(), &settings).await?;
    let [first, second, third] = &cluster.nodes[..] else { anyhow::bail!("three nodes") };
    send(&cluster, 3).await?;
    first.flush().await?;
    assert_counts(&cluster, &by_attributes(1)).await?;

    assert_eq!(effect(first, &["promote", "tenant.plan", "--dry-run"])?, "promoted");
    assert_eq!(promoted(second)?, Vec::<Value>::new(), "a dry run changes nothing");
    assert_eq!(effect(second, &["promote", "tenant.plan"])?, "promoted");
    assert_eq!(effect(third, &["promote", "retries", "--type", "int"])?, "promoted");
    assert_eq!(effect(first, &["promote", "retries", "--type", "int"])?, "unchanged");
    assert_eq!(promoted(first)?, [json!(["attr_tenant_plan", true, 0, 0]), json!(["attr_retries", true, 0, 0])]);
    assert_same(&cluster, 1).await?;
    assert_pyiceberg(&cluster, 0, 0)?;

    send(&cluster, 3).await?;
    assert_same(&cluster, 2).await?;
    third.flush().await?;
    assert_same(&cluster, 2).await?;
    assert_eq!(promoted(third)?, [json!(["attr_tenant_plan", true, 1, 1]), json!(["attr_retries", true, 1, 0])]);
    assert_pyiceberg(&cluster, 3, 3)?;
    send(&cluster, 3).await?;
    assert_same(&cluster, 3).await?;
    let compacted = table(second, &["compact", "--table", "traces"])?;
    assert_eq!(traces(compacted.last().context("a report")?)?["left"], 0, "{compacted:?}");
    assert_same(&cluster, 3).await?;
    assert_eq!(promoted(second)?, [json!(["attr_tenant_plan", true, 1, 1]), json!(["attr_retries", true, 1, 0])]);
    assert_pyiceberg(&cluster, 6, 6)?;

    for (arguments, reason) in [
        (&["promote", "http.route", "--table", "traces"][..], "http_route"),
        (&["promote", "Retries", "--table", "traces"][..], "another column attr_retries"),
        (&["promote", "retries", "--table", "traces"][..], "promoted before, as int"),
        (&["demote", "retries", "--table", "traces", "--level", "scope"][..], "not promoted from scope"),
        (&["promote", "", "--table", "traces"][..], "1 to 128 bytes"),
        (&["promote", "k", "--table", "traces", "--dataset", "nope"][..], "default.nope.traces"),
        (&["promote", "k"][..], "--table"),
        (&["promote", "k", "--table", "traces", "--type", "date"][..], "date"),
    ] {
        let said = refusal(first, arguments)?;
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }

    assert_eq!(effect(first, &["demote", "tenant.plan"])?, "demoted");
    send(&cluster, 3).await?;
    second.flush().await?;
    assert_counts(&cluster, &by_attributes(4)).await?;
    assert_counts(&cluster, &[("attr_retries = 3", 12)]).await?;
    let gone = third.sql_json("SELECT attr_tenant_plan FROM traces").await.err().context("the column is gone")?;
    assert!(gone.to_string().contains("attr_tenant_plan"), "{gone}");
    assert_eq!(effect(second, &["promote", "tenant.plan"])?, "woken");
    assert_same(&cluster, 4).await?;
    table(first, &["compact", "--table", "traces"])?;
    assert_same(&cluster, 4).await?;
    assert_pyiceberg(&cluster, 12, 12)
}
