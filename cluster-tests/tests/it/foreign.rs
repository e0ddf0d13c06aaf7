//! Another engine at the tables of a cluster: it drops and alters them, appends and deletes (ADR 14).

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, assert_everywhere};
use crate::fixtures::{assert_pyiceberg, python, run_script, until};
use crate::node::{Node, binary};
use crate::spans::{log_record, now_nanos, send_batch, send_until_acknowledged};

/// Nothing is flushed or compacted unasked.
const MANUAL: [&str; 3] = ["flush.interval=1h", "flush.max_interval=1h", "compaction.interval=1h"];
const LOGS: &str = "SELECT count(*) FROM logs";
const LOGS_IN_ICEBERG: &str = "SELECT sum(added_records) FROM system.flushes WHERE \"table\" = 'logs'";

/// PyIceberg at the catalog and the store of a cluster (`cluster-tests/python/foreign.py`).
struct Engine {
    python: PathBuf,
    shared: PathBuf,
}

impl Engine {
    fn catalog(&self) -> PathBuf {
        self.shared.join("catalog.db")
    }

    /// Does something to the table of spans; returns the ids of rows that came by that.
    fn act(&self, action: &str, before: u64) -> anyhow::Result<Vec<String>> {
        let environment = [
            ("ACTION", action.to_owned()),
            ("SIGNALDB_CATALOG", format!("sqlite:///{}", self.catalog().display())),
            ("STORE", self.shared.join("storage").display().to_string()),
            ("BEFORE", before.to_string()),
        ];
        let said = run_script(&self.python, "foreign.py", &environment, "it was done")?;
        let ids = said.lines().find_map(|line| line.strip_prefix("ids ")).unwrap_or_default();
        Ok(ids.split_whitespace().map(str::to_owned).collect())
    }
}

/// Writes so many spans, whose ids it returns, and one log record.
async fn write(cluster: &Cluster, spans: usize) -> anyhow::Result<Vec<String>> {
    let logs: Vec<String> = cluster.nodes.iter().map(|node| node.otlp_http("/v1/logs")).collect();
    send_until_acknowledged(&cluster.http, &logs, log_record(now_nanos())).await?;
    send_batch(&cluster.http, &cluster.urls(), spans).await
}

/// Runs `signaldb cluster release`; what it says.
fn release(node: &Node, table: &str) -> anyhow::Result<String> {
    let mut command = Command::new(binary()?);
    command.args(["cluster", "release", "--tenant", "default", "--dataset", "default", "--table", table]);
    let output = command.args(["--endpoint", &node.url("")]).output().context("run signaldb cluster release")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the node says that does not work although it is ready.
async fn degraded(node: &Node) -> anyhow::Result<String> {
    let ready = node.http.get(node.url("/ready")).send().await?.error_for_status()?;
    let said = ready.json::<Value>().await?["degraded"].take();
    Ok(said.as_array().context("a list")?.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"))
}

/// Every node says that the table of spans is in quarantine, and why, and answers nothing about it; all log records, so many,
/// are in Iceberg.
async fn assert_quarantined(cluster: &Cluster, reason: &str, log_records: i64) -> anyhow::Result<()> {
    for node in &cluster.nodes {
        until("quarantined", async || {
            let said = degraded(node).await?;
            Ok(["is in quarantine", "/quarantine/default/default/traces", reason]
                .iter()
                .all(|part| said.contains(part)))
        })
        .await?;
        let query = json!({"query": "SELECT count(*) FROM traces"});
        let refused = node.http.post(node.url("/api/v1/sql")).json(&query).send().await?;
        let (status, body) = (refused.status().as_u16(), refused.json::<Value>().await?);
        assert_eq!((status, &body["error"]["code"]), (409, &json!("quarantined")), "{body}");
        assert_eq!(node.number(LOGS).await?, log_records);
        until("flushed", async || Ok(node.number(LOGS_IN_ICEBERG).await? == log_records)).await?;
    }
    Ok(())
}

/// Scenario: another engine changes the table of spans by `change`; rows come in and are flushed; the leader is killed, the
/// next one flushes, the first comes back. The change is taken back by `undo`, the table is released, and the rows that
/// were put aside are brought back from outside.
/// Guarantees: every node is ready, degraded, and says why; queries of the table are refused, the other table of the group is
/// flushed and answered; nothing is released by itself; in the end every acknowledged span is on every node and in PyIceberg
/// once.
async fn lost_and_released(change: &str, undo: Option<&str>, reason: &str) -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &MANUAL).await?;
    let engine = Engine { python, shared: cluster.root.join("shared") };
    let mut acknowledged = write(&cluster, 5).await?;
    cluster.nodes[0].flush().await?;
    engine.act(change, 0)?;
    acknowledged.extend(write(&cluster, 4).await?);
    cluster.nodes[1].flush().await?;
    assert_quarantined(&cluster, reason, 2).await?;

    let leader = cluster.leader().await?;
    cluster.nodes[leader].kill()?;
    acknowledged.extend(write(&cluster, 3).await?);
    let next = &cluster.nodes[(leader + 1) % 3];
    // It may not know yet who leads.
    until("flushed", async || Ok(next.flush().await.is_ok())).await?;
    cluster.nodes[leader].relaunch()?;
    cluster.wait_ready().await?;
    if let Some(undo) = undo {
        engine.act(undo, 0)?;
    }
    assert_quarantined(&cluster, reason, 3).await?;

    let other = release(&cluster.nodes[0], "logs")?;
    assert!(other.contains("was not in quarantine"), "{other}");
    let said = release(&cluster.nodes[0], "traces")?;
    assert!(said.contains("was released from quarantine"), "{said}");
    for node in &cluster.nodes {
        until("released", async || Ok(degraded(node).await?.is_empty())).await?;
    }
    acknowledged.extend(write(&cluster, 2).await?);
    cluster.nodes[2].flush().await?;
    engine.act("bring_back", 0)?;
    acknowledged.extend(write(&cluster, 1).await?);
    cluster.nodes[0].flush().await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    assert_pyiceberg(dir.path(), &engine.catalog(), &acknowledged)
}

/// See [`lost_and_released`]: the released table is a new one. A node that hears of the dataset for the first time may have
/// made it before.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_pyiceberg_drops_loses_nothing_that_was_acknowledged() -> anyhow::Result<()> {
    Box::pin(lost_and_released("drop", None, "the catalog ")).await
}

/// See [`lost_and_released`]: the column has its name again before the release.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_pyiceberg_alters_loses_nothing_that_was_acknowledged() -> anyhow::Result<()> {
    Box::pin(lost_and_released("rename", Some("rename_back"), "its column name was dropped, renamed or changed")).await
}

/// Scenario: between flushes another engine deletes all rows of before a time, and appends some of its own.
/// Guarantees: no node is degraded; flushes go on; every node and PyIceberg have what was acknowledged since then and what was
/// appended, once, and nothing that was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn what_pyiceberg_appends_and_deletes_leaves_flushes_going() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &MANUAL).await?;
    let engine = Engine { python, shared: cluster.root.join("shared") };
    write(&cluster, 5).await?;
    cluster.nodes[0].flush().await?;
    let later = now_nanos();
    let mut expected = write(&cluster, 4).await?;
    cluster.nodes[1].flush().await?;
    engine.act("delete", later)?;
    expected.extend(write(&cluster, 2).await?);
    cluster.nodes[2].flush().await?;
    assert_everywhere(&cluster, &expected).await?;

    let theirs = engine.act("append", 0)?;
    assert_eq!(theirs.len(), expected.len());
    expected.extend(theirs);
    expected.extend(write(&cluster, 3).await?);
    cluster.nodes[0].flush().await?;
    assert_everywhere(&cluster, &expected).await?;
    for node in &cluster.nodes {
        assert_eq!(degraded(node).await?, "");
    }
    assert_pyiceberg(dir.path(), &engine.catalog(), &expected)
}
