use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::node::{Node, scale};
use crate::spans::{batch, compare, send_batch};

/// Scenario: four clients export without pause while the node is killed with SIGKILL at random moments and started
/// again; clients retry unknown outcomes byte by byte; flushes run every 200 ms.
/// Guarantees: every acknowledged span is there exactly once, compared by span id.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_under_load_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &["flush.interval=200ms", "flush.max_interval=200ms"]).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let (http, urls) = (node.http.clone(), [node.otlp_http("/v1/traces")]);
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let ids = send_batch(&http, &urls, 5).await?;
                acknowledged.lock().await.extend(ids);
            }
            anyhow::Ok(())
        });
    }
    for _ in 0..3 * scale() {
        // The moment is random, whatever the node does then: writing, flushing, starting.
        let pause = 50 + uuid::Uuid::new_v4().as_u128() % 700;
        tokio::time::sleep(Duration::from_millis(u64::try_from(pause)?)).await;
        node.kill()?;
        node.restart().await?;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client??;
    }
    let acknowledged = acknowledged.lock().await.clone();
    assert!(acknowledged.len() > 50, "the clients were heard: {}", acknowledged.len());
    for flushed in [false, true] {
        if flushed {
            node.flush().await?;
        }
        let found = node.span_ids().await?;
        let (missing, doubled) = compare(&acknowledged, &found);
        assert!(missing.is_empty() && doubled.is_empty(), "missing {missing:?}, doubled {doubled:?}");
        assert_eq!(found.len(), acknowledged.len(), "nothing is there that was not acknowledged in the end");
    }
    Ok(())
}

/// Scenario: the log's last segment ends in half a record, as a crash in the middle of a write leaves it; the node
/// starts, writes, and starts once more.
/// Guarantees: the torn end is cut and never appended behind: what was acknowledged before and after it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_log_tail_is_cut_and_never_appended_behind() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &[]).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let mut acknowledged = send_batch(&node.http, &urls, 10).await?;
    node.kill()?;
    let segments = dir.path().join("data/wal/segments");
    let mut names: Vec<std::path::PathBuf> =
        std::fs::read_dir(&segments)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    names.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    names.sort();
    let last = names.last().expect("a segment");
    let torn: Vec<u8> = std::fs::read(last)?.into_iter().take(100).collect();
    std::fs::write(last, [std::fs::read(last)?, torn].concat())?;
    for _ in 0..2 {
        node.restart().await?;
        acknowledged.extend(send_batch(&node.http, &urls, 10).await?);
        let (missing, doubled) = compare(&acknowledged, &node.span_ids().await?);
        assert!(missing.is_empty() && doubled.is_empty(), "missing {missing:?}, doubled {doubled:?}");
        node.kill()?;
    }
    Ok(())
}

/// Scenario: a byte-identical retry, then the same with the window opted out, also across a `kill -9`.
/// Guarantees: a repeat returns the first position and stores nothing; without deduplication it is a second row.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_stored_once() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &[]).await?;
    let (body, _) = batch(3);
    let mut positions = Vec::new();
    for attempt in 0..3 {
        let request = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
        let response = request.body(body.clone()).send().await?.error_for_status()?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        positions.push(header("x-signaldb-position"));
        assert_eq!(header("x-signaldb-deduplicated").is_some(), attempt > 0);
        assert_eq!(header("x-signaldb-ack").as_deref(), Some("local-fsync"));
        if attempt == 1 {
            node.kill()?;
            node.restart().await?;
        }
    }
    assert!(positions[0].is_some() && positions.iter().all(|position| *position == positions[0]), "{positions:?}");
    assert_eq!(node.number("SELECT count(*) FROM traces").await?, 3);
    let request = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
    request.header("x-signaldb-dedup", "off").body(body).send().await?.error_for_status()?;
    assert_eq!(node.number("SELECT count(*) FROM traces").await?, 6);
    Ok(())
}
