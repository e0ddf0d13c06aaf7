//! `signaldb cluster recover`: an operator accepts a loss, and the group goes on in a new incarnation.

use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use crate::cluster::{Cluster, Load};
use crate::fixtures::{copy_dir, until};
use crate::node::{Node, binary};
use crate::spans::{batch, compare, send_batch};

const MANUAL: [&str; 2] = ["flush.interval=1h", "flush.max_interval=1h"];

fn recover(node: &Node, group: u64, accept: bool) -> anyhow::Result<Value> {
    let mut command = Command::new(binary()?);
    command.args(["cluster", "recover", "--format", "json", "--group", &group.to_string()]);
    command.args(["--endpoint", &node.url("")]);
    if accept {
        command.arg("--accept-data-loss");
    }
    let output = command.output().context("run signaldb cluster recover")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn groups(node: &Node) -> anyhow::Result<Vec<Value>> {
    let status: Value = node.http.get(node.url("/api/v1/cluster")).send().await?.json().await?;
    status["groups"].as_array().cloned().context("groups")
}

/// Scenario: the log of a single node is put back as it was before rows were written and flushed.
/// Guarantees: the group halts and says so, takes and shows nothing; nothing happens unasked; when the operator accepts,
/// the rows in the tables are all there, and rows that take the indexes of lost ones are neither hidden nor doubled, in
/// memory, after a flush and after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_older_than_its_tables_halts_until_the_operator_accepts() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &MANUAL).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let mut ids = send_batch(&node.http, &urls, 10).await?;
    node.flush().await?;
    ids.extend(send_batch(&node.http, &urls, 5).await?);
    node.terminate()?;
    let (data, kept) = (dir.path().join("data"), dir.path().join("kept"));
    for part in ["wal", "state"] {
        copy_dir(&data.join(part), &kept.join(part))?;
    }
    node.restart().await?;
    for _ in 0..20 {
        ids.extend(send_batch(&node.http, &urls, 5).await?);
    }
    node.flush().await?;
    let lost = send_batch(&node.http, &urls, 5).await?;
    node.terminate()?;
    for part in ["wal", "state"] {
        std::fs::remove_dir_all(data.join(part))?;
        copy_dir(&kept.join(part), &data.join(part))?;
    }

    node.relaunch()?;
    until("halted", async || {
        let Ok(response) = node.http.get(node.url("/ready")).send().await else { return Ok(false) };
        Ok(response.text().await?.contains("this log is older than its tables"))
    })
    .await?;
    let write =
        node.http.post(&urls[0]).header("content-type", "application/x-protobuf").body(batch(1).0).send().await?;
    assert_eq!(write.status().as_u16(), 503);
    assert!(write.headers().contains_key("retry-after"));
    node.sql_json("SELECT count(*) FROM traces").await.expect_err("rows would be missing");
    let halted: Vec<Value> = groups(&node).await?.into_iter().filter(|group| group["state"] == "halted").collect();
    let [halted] = halted.as_slice() else { anyhow::bail!("one group halted: {halted:?}") };
    let group = halted["group"].as_u64().context("a group")?;
    let shown = recover(&node, group, false)?;
    assert_eq!((shown["action"].as_str(), shown["done"].as_bool()), (Some("go_on"), Some(false)), "{shown}");
    assert!(!node.is_ready().await, "nothing was done unasked");

    let done = recover(&node, group, true)?;
    assert_eq!(done["done"], true, "{done}");
    node.wait_ready().await?;
    for _ in 0..10 {
        ids.extend(send_batch(&node.http, &urls, 3).await?);
    }
    assert_eq!(compare(&ids, &node.span_ids().await?), (vec![], vec![]));
    assert!(compare(&lost, &node.span_ids().await?).0.len() == lost.len(), "only the lost log held them");
    node.flush().await?;
    assert_eq!(compare(&ids, &node.span_ids().await?), (vec![], vec![]));
    node.kill()?;
    node.restart().await?;
    ids.extend(send_batch(&node.http, &urls, 3).await?);
    assert_eq!(compare(&ids, &node.span_ids().await?), (vec![], vec![]));
    assert_eq!(recover(&node, group, true)?["action"], "none");
    Ok(())
}

/// Scenario: a follower loses power and acknowledged entries with it; before it has caught up the leader's machine is
/// gone for good.
/// Guarantees: the two that are left acknowledge nothing; the operator is told which voters did not answer before
/// anything happens; on acceptance the longest log leads, nothing that it holds is lost, and writes go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_recovering_voter_and_a_lost_leader_halt_until_the_operator_accepts() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &["wal.sync_interval=1s", "wal.sync_bytes=1GiB"]).await?;
    let load = Load::start(&cluster, 4);
    load.wait_more(2000).await?;
    let mut ids = load.stop().await?;
    cluster.wait_equal_logs().await?;
    let lost = cluster.leader().await?;
    let (whole, short) = ((lost + 1) % 3, (lost + 2) % 3);
    cluster.nodes[lost].kill()?;
    cluster.nodes[short].lose_power(20_000)?;
    cluster.nodes[short].relaunch()?;
    until("recovering", async || Ok(cluster.nodes[short].log()?.contains("may have lost acknowledged entries")))
        .await?;
    let write = cluster.http.post(cluster.nodes[whole].otlp_http("/v1/traces")).body(batch(1).0);
    let write = write.header("content-type", "application/x-protobuf").send().await?;
    assert_eq!(write.status().as_u16(), 503, "one voter of three acknowledges nothing");

    let mut chosen = 0;
    for group in 0..groups(&cluster.nodes[whole]).await?.len() as u64 {
        let mut shown = Value::Null;
        // It may still be looking for the leader that is gone.
        until("decided", async || {
            shown = recover(&cluster.nodes[whole], group, false)?;
            let elected = shown["action"] == "elect";
            let leads = groups(&cluster.nodes[whole]).await?[usize::try_from(group)?]["leader"].as_u64();
            Ok(elected || leads.is_some_and(|leader| leader != lost as u64 + 1))
        })
        .await?;
        if shown["action"] == "elect" {
            assert_eq!(shown["missing"], serde_json::json!([lost + 1]), "{shown}");
            assert_eq!(shown["recovering"], serde_json::json!([short + 1]), "{shown}");
            let done = recover(&cluster.nodes[whole], group, true)?;
            assert_eq!(done["done"], true, "{done}");
            chosen += 1;
        }
    }
    assert!(chosen > 0, "the group that was written to needed it");
    let urls = [whole, short].map(|at| cluster.nodes[at].otlp_http("/v1/traces"));
    for at in [whole, short] {
        cluster.nodes[at].wait_ready().await?;
    }
    ids.extend(send_batch(&cluster.http, &urls, 5).await?);
    for at in [whole, short] {
        assert_eq!(compare(&ids, &cluster.nodes[at].span_ids().await?), (vec![], vec![]), "node {}", at + 1);
    }
    cluster.nodes[whole].flush().await?;
    ids.extend(send_batch(&cluster.http, &urls, 5).await?);
    for at in [whole, short] {
        assert_eq!(compare(&ids, &cluster.nodes[at].span_ids().await?), (vec![], vec![]), "node {}", at + 1);
    }
    Ok(())
}
