use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{DEADLINE, Node, binary};
use crate::outage::CatalogLock;
use crate::spans::{compare, send_batch};

/// Scenario: SIGTERM after a few writes, then another start.
/// Guarantees: exit code 0 within ten seconds, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_cleanly() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &[]).await?;
    let ids = send_batch(&node.http, &[node.otlp_http("/v1/traces")], 20).await?;
    let (code, took) = node.terminate()?;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    node.restart().await?;
    assert_eq!(compare(&ids, &node.span_ids().await?), (vec![], vec![]));
    Ok(())
}

/// Scenario: the object store goes away under load and comes back.
/// Guarantees: writes go on and are visible, the node stays ready and says that it is degraded, and what was written
/// meanwhile is flushed afterwards, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_outage_stops_flushes_not_writes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["flush.interval=200ms", "flush.max_interval=200ms"]).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let mut acknowledged = send_batch(&node.http, &urls, 5).await?;
    node.flush().await?;
    let (store, away) = (dir.path().join("data/storage"), dir.path().join("data/away"));
    std::fs::rename(&store, &away)?;
    std::fs::write(&store, "not a directory")?;
    acknowledged.extend(send_batch(&node.http, &urls, 5).await?);
    wait_degraded(&node, true).await?;
    acknowledged.extend(send_batch(&node.http, &urls, 5).await?);
    std::fs::remove_file(&store)?;
    std::fs::rename(&away, &store)?;
    wait_degraded(&node, false).await?;
    node.flush().await?;
    assert_eq!(compare(&acknowledged, &node.span_ids().await?), (vec![], vec![]));
    Ok(())
}

/// Scenario: somebody else holds the catalog locked, under load, and lets go.
/// Guarantees: as for the object store; a commit whose outcome was unknown is neither lost nor doubled.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_outage_stops_flushes_not_writes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["flush.interval=200ms", "flush.max_interval=200ms"]).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let mut acknowledged = send_batch(&node.http, &urls, 5).await?;
    node.flush().await?;
    let lock = CatalogLock::take(&dir.path().join("data/catalog.db"))?;
    for _ in 0..2 {
        acknowledged.extend(send_batch(&node.http, &urls, 5).await?);
        wait_degraded(&node, true).await?;
    }
    assert_eq!(compare(&acknowledged, &node.span_ids().await?), (vec![], vec![]));
    lock.release()?;
    wait_degraded(&node, false).await?;
    node.flush().await?;
    assert_eq!(compare(&acknowledged, &node.span_ids().await?), (vec![], vec![]));
    Ok(())
}

async fn wait_degraded(node: &Node, wanted: bool) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        let response = node.http.get(node.url("/ready")).send().await?;
        assert!(response.status().is_success(), "the node can acknowledge writes");
        let body: Value = response.json().await?;
        if body["degraded"].as_array().is_some_and(|degraded| degraded.is_empty() != wanted) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "degraded never became {wanted}: {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Scenario: a second process on the same data directory, a taken port, an unknown setting, a peer port that is open to
/// others without a secret, another cluster's store.
/// Guarantees: each is refused with what is wrong and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn starts_that_cannot_work_say_why() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &[]).await?;
    let data = dir.path().join("data").display().to_string();
    let fail = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(binary()?).current_dir(dir.path()).args(arguments).output()?;
        anyhow::ensure!(!output.status.success(), "{arguments:?} was accepted");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let taken = fail(&["server", "--data-dir", &data])?;
    assert!(taken.contains("used by another signaldb process") && taken.contains("--data-dir"), "{taken}");
    let unknown = fail(&["server", "--set", "flush.intervall=1s"])?;
    assert!(unknown.contains("intervall") && unknown.contains("interval"), "{unknown}");
    let cluster = "cluster.peers=['1=10.0.0.1:50051','2=10.0.0.2:50051','3=10.0.0.3:50051']";
    let open = fail(&["server", "--set", "node.id=1", "--set", cluster, "--set", "listen.peer=0.0.0.0:50051"])?;
    assert!(open.contains("cluster.secret") && open.contains("listen.peer"), "{open}");
    let port = node.url("").rsplit(':').next().unwrap_or_default().to_owned();
    let other = dir.path().join("other").display().to_string();
    let listen = format!("listen.http=127.0.0.1:{port}");
    let arguments = [
        "server",
        "--data-dir",
        &other,
        "--set",
        "listen.otlp_grpc=127.0.0.1:0",
        "--set",
        "listen.otlp_http=127.0.0.1:0",
        "--set",
        &listen,
    ];
    let port_taken = fail(&arguments)?;
    assert!(port_taken.contains("listen.http") && port_taken.contains("--set"), "{port_taken}");

    node.kill()?;
    let foreign = dir.path().join("data/storage/signaldb-store.json");
    std::fs::write(&foreign, r#"{"store_id": "somebody-else"}"#)?;
    let any = |name: &str| format!("listen.{name}=127.0.0.1:0");
    let ports: Vec<String> = ["otlp_grpc", "otlp_http", "http", "flight"].map(any).into();
    let mut arguments = vec!["server", "--data-dir", &data];
    for port in &ports {
        arguments.extend(["--set", port]);
    }
    let refused = fail(&arguments)?;
    assert!(refused.contains("somebody-else"), "{refused}");
    Ok(())
}

/// Scenario: the operational endpoints of a fresh node.
/// Guarantees: their documented shapes.
#[tokio::test(flavor = "multi_thread")]
async fn health_cluster_and_metrics_have_their_documented_shapes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    send_batch(&node.http, &[node.otlp_http("/v1/traces")], 5).await?;
    let get = |path: &'static str| node.http.get(node.url(path)).send();
    let health: Value = get("/health").await?.json().await?;
    for key in ["unprocessed_entries", "total_segments", "disk_usage_bytes"] {
        assert!(health["wal"][key].is_u64(), "{key}: {health}");
    }
    assert!(health["wal"]["unprocessed_entries"].as_u64() > Some(0), "{health}");
    assert!(health["wal"].get("last_flush").is_some());
    node.flush().await?;
    let health: Value = get("/health").await?.json().await?;
    assert_eq!(health["wal"]["unprocessed_entries"], 0, "{health}");
    assert!(health["wal"]["last_flush"].is_string());
    let cluster: Value = get("/api/v1/cluster").await?.json().await?;
    assert_eq!(cluster["nodes"][0]["state"], "ready");
    assert_eq!(cluster["groups"].as_array().map(Vec::len), Some(9), "a meta group and eight data groups");
    for key in ["leader", "term", "last_log_index", "commit_index", "applied_index", "synced_index", "flushed_index"] {
        assert!(cluster["groups"][0][key].is_u64(), "{key}");
    }
    let metrics = get("/metrics").await?.text().await?;
    for name in ["signaldb_ingest_records_total 5", "signaldb_wal_flush_duration_seconds_bucket", "signaldb_raft_term"]
    {
        assert!(metrics.contains(name), "{name}");
    }
    let later = get("/loki/api/v1/labels").await?;
    assert_eq!(later.status().as_u16(), 501);
    assert!(later.text().await?.contains("Loki"));
    assert_eq!(get("/nothing").await?.status().as_u16(), 404);
    assert_eq!(get("/api/v1/sql").await?.status().as_u16(), 405);
    Ok(())
}
