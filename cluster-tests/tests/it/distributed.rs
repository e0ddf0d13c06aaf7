//! Scans that spread over the nodes of a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::node::{DEADLINE, Node};
use crate::spans::send_batch;

/// Every scan spreads; data files stay as they were flushed.
const SETTINGS: [&str; 5] = [
    "query.distributed.enabled=true",
    "query.distributed.min_bytes=0B",
    "compaction.enabled=false",
    "flush.interval=10m",
    "flush.max_interval=10m",
];
const FLUSHES: usize = 5;
const SPANS: usize = 400;

/// Statements whose scans spread.
const STATEMENTS: [&str; 6] = [
    "SELECT name, count(*), min(timestamp), max(timestamp) FROM traces GROUP BY name ORDER BY name",
    "SELECT count(*) FROM traces WHERE name LIKE '%7%'",
    "SELECT count(DISTINCT span_id), count(DISTINCT trace_id) FROM traces WHERE name <> 'span 3'",
    "SELECT span_id, name FROM traces WHERE name IN ('span 7', 'span 8') ORDER BY span_id",
    "SELECT service_name, attributes['k'] IS NULL, count(*) FROM traces GROUP BY 1, 2 ORDER BY 1, 2",
    "SELECT count(*) FROM traces a JOIN traces b ON a.span_id = b.span_id WHERE b.name = 'span 11'",
];

/// Rows, with or without shares for others.
async fn rows(node: &Node, query: &str, consistency: &str, distributed: &str) -> anyhow::Result<Value> {
    let url = node.url(&format!("/api/v1/sql?consistency={consistency}"));
    let request = node.http.post(url).header("x-signaldb-distributed", distributed).json(&json!({"query": query}));
    let response = request.timeout(DEADLINE).send().await?;
    let (status, body): (_, Value) = (response.status(), response.json().await?);
    anyhow::ensure!(status.is_success(), "{query}: {status}: {body}");
    Ok(body["rows"].clone())
}

async fn plan(node: &Node, query: &str, distributed: &str) -> anyhow::Result<String> {
    Ok(rows(node, &format!("EXPLAIN {query}"), "strong", distributed).await?.to_string())
}

async fn shares(node: &Node) -> anyhow::Result<u64> {
    let metrics = node.http.get(node.url("/metrics")).send().await?.text().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("signaldb_query_guests_total "));
    Ok(line.context("is there")?.trim().parse()?)
}

/// Spans in several data files, and some that are in none.
async fn filled(dir: &std::path::Path) -> anyhow::Result<(Cluster, usize)> {
    let cluster = Cluster::start(dir, &SETTINGS).await?;
    for _ in 0..FLUSHES {
        send_batch(&cluster.http, &cluster.urls(), SPANS).await?;
        cluster.nodes[0].flush().await?;
    }
    send_batch(&cluster.http, &cluster.urls(), SPANS).await?;
    Ok((cluster, (FLUSHES + 1) * SPANS))
}

/// Scenario: spans in five data files and in a leader's memory; every node is asked with and without shares for the others,
/// strongly and eventually.
/// Guarantees: plans show shares for three nodes, all of them do theirs, and answers are the same.
#[tokio::test(flavor = "multi_thread")]
async fn scans_spread_and_answers_stay_the_same() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (cluster, spans) = filled(dir.path()).await?;
    for (node, query) in cluster.nodes.iter().cycle().zip(STATEMENTS) {
        let spread = plan(node, query, "on").await?;
        assert!(spread.contains("NetworkCoalesceExec") && spread.contains("input_tasks=3"), "{query}: {spread}");
        let whole = plan(node, query, "off").await?;
        assert!(!whole.contains("NetworkCoalesceExec"), "{query}: {whole}");
        let expected = rows(node, query, "strong", "off").await?;
        assert_eq!(rows(node, query, "strong", "on").await?, expected, "{query}");
        // The node may lack what a strong read asked another one for.
        let until = Instant::now() + DEADLINE;
        while rows(node, query, "eventual", "off").await? != expected {
            anyhow::ensure!(Instant::now() < until, "{query}: an eventual answer stays behind");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(rows(node, query, "eventual", "on").await?, expected, "{query}");
    }
    let asked = &cluster.nodes[0];
    for count in ["SELECT count(*) FROM traces", "SELECT count(*) FROM traces WHERE length(span_id) = 16"] {
        assert_eq!(asked.number(count).await?, i64::try_from(spans)?, "{count}");
    }
    for node in &cluster.nodes {
        assert!(shares(node).await? > 0);
    }
    let analyzed = rows(asked, &format!("EXPLAIN ANALYZE {}", STATEMENTS[0]), "strong", "on").await?.to_string();
    assert!(analyzed.contains("Stage 1") && analyzed.contains("bytes_scanned"), "{analyzed}");
    Ok(())
}

/// Scenario: a node dies, and the others are asked at once, again and again.
/// Guarantees: every answer is whole; a while later nobody asks the dead node for shares any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_costs_no_rows() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut cluster, spans) = filled(dir.path()).await?;
    let leader = cluster.leader().await?;
    let (asked, dead) = ((leader + 1) % 3, (leader + 2) % 3);
    let count = "SELECT count(*) FROM traces WHERE length(span_id) = 16";
    assert_eq!(cluster.nodes[asked].number(count).await?, i64::try_from(spans)?);
    cluster.nodes[dead].kill()?;
    let until = Instant::now() + DEADLINE;
    loop {
        assert_eq!(cluster.nodes[asked].number(count).await?, i64::try_from(spans)?);
        let plan = plan(&cluster.nodes[asked], count, "on").await?;
        if plan.contains("input_tasks=2") {
            break;
        }
        anyhow::ensure!(Instant::now() < until, "the dead node still gets shares: {plan}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// How many answers clients wait for before a node dies, and again after that.
const ANSWERS: usize = 20;

/// Asks for the number of rows until it is told to stop.
async fn count_again_and_again(
    (http, url): (reqwest::Client, String),
    spans: usize,
    (answers, stop): (Arc<AtomicUsize>, Arc<AtomicBool>),
) -> anyhow::Result<()> {
    let query = json!({"query": "SELECT count(*) FROM traces WHERE length(span_id) = 16"});
    while !stop.load(Ordering::Relaxed) {
        let response = http.post(&url).json(&query).timeout(DEADLINE).send().await?;
        let (status, body): (_, Value) = (response.status(), response.json().await?);
        // Said aloud: somebody has seen a part of it already, or the strong read could not be served just now.
        if status == reqwest::StatusCode::SERVICE_UNAVAILABLE {
            continue;
        }
        anyhow::ensure!(status.is_success(), "{status}: {body}");
        anyhow::ensure!(body["rows"][0][0].as_u64() == Some(spans as u64), "{spans} spans, and the answer is {body}");
        answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Scenario: clients count without a pause, every scan spread, while a node that does shares dies and comes back.
/// Guarantees: nobody is ever told fewer rows; whoever gets no answer is told to come again, and answers go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_in_the_middle_makes_no_answer_short() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut cluster, spans) = filled(dir.path()).await?;
    let leader = cluster.leader().await?;
    let (asked, dead) = ((leader + 1) % 3, (leader + 2) % 3);
    let (answers, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let to = (cluster.http.clone(), cluster.nodes[asked].url("/api/v1/sql"));
        clients.spawn(count_again_and_again(to, spans, (Arc::clone(&answers), Arc::clone(&stop))));
    }
    for kills in [true, false] {
        let (before, until) = (answers.load(Ordering::Relaxed), Instant::now() + DEADLINE);
        while answers.load(Ordering::Relaxed) < before + ANSWERS {
            anyhow::ensure!(Instant::now() < until, "no answers any more, with the node dead: {}", !kills);
            // A client that gave up says why.
            if let Some(ended) = clients.try_join_next() {
                ended??;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        match kills {
            true => cluster.nodes[dead].kill()?,
            false => cluster.nodes[dead].restart().await?,
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}
