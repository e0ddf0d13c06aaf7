//! Requests near the limit of 64 MiB: they become several log entries, with one acknowledgment (DESIGN section 2).

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::node::{DEADLINE, Node};
use crate::spans::{request, send_batch, send_until_acknowledged, span, text};

const SPANS: usize = 240;
const FILLER_BYTES: usize = 256 << 10;

/// 60 MiB in new spans. Nothing repeats within the window of LZ4: the log carries as much.
fn large() -> Bytes {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let letters = (0..FILLER_BYTES).map(|_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        char::from(LETTERS[(random >> 32) as usize % LETTERS.len()])
    });
    let filler: String = letters.collect();
    let spans = (0..SPANS).map(|_| {
        let mut span = span("large");
        span.attributes.push(text("filler", &filler));
        span
    });
    request("shop", spans.collect()).encode_to_vec().into()
}

fn post(node: &Node, body: &Bytes) -> reqwest::RequestBuilder {
    let request = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
    request.body(body.clone()).timeout(DEADLINE)
}

/// Where the log of the busiest data group ends on this node.
async fn log_end(node: &Node) -> anyhow::Result<u64> {
    let state: Value = node.http.get(node.url("/api/v1/cluster")).send().await?.json().await?;
    let groups = state["groups"].as_array().context("groups")?.iter().filter(|group| group["group"] != 0);
    groups.filter_map(|group| group["last_log_index"].as_u64()).max().context("a data group")
}

/// Every span of so many large requests is there once.
async fn assert_stored(node: &Node, requests: usize) -> anyhow::Result<()> {
    let spans = i64::try_from(requests * SPANS)?;
    assert_eq!(node.number("SELECT count(*) FROM traces WHERE name = 'large'").await?, spans);
    assert_eq!(node.number("SELECT count(DISTINCT span_id) FROM traces WHERE name = 'large'").await?, spans);
    Ok(())
}

/// And so is every byte.
async fn assert_whole(node: &Node, requests: usize) -> anyhow::Result<()> {
    let bytes = "SELECT sum(length(attributes['filler'])) FROM traces WHERE name = 'large'";
    assert_eq!(node.number(bytes).await?, i64::try_from(requests * SPANS * FILLER_BYTES)?);
    assert_stored(node, requests).await
}

/// Scenario: 60 MiB over HTTP to a single node, twice.
/// Guarantees: several entries, one acknowledgment; the repeat is told the same position and stores nothing, before the
/// flush and after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_60_mib_request_is_split_and_acknowledged_once() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let body = large();
    let before = log_end(&node).await?;
    let mut positions = Vec::new();
    for repeated in [false, true] {
        let response = post(&node, &body).send().await?.error_for_status()?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        assert_eq!(header("x-signaldb-deduplicated").is_some(), repeated);
        positions.push(header("x-signaldb-position").context("a position")?);
        if !repeated {
            let entries = log_end(&node).await? - before;
            assert!(entries >= 15, "60 MiB in {entries} entries");
            assert_stored(&node, 1).await?;
        }
    }
    assert_eq!(positions[0], positions[1]);
    assert_whole(&node, 1).await?;
    node.flush().await?;
    assert_whole(&node, 1).await
}

/// Scenario: 60 MiB to the leader of three nodes, which is killed as soon as a part of it is in another node's log; the
/// client, left without an answer, sends the same bytes to the others.
/// Guarantees: what the first attempt left behind counts, what it did not is added: every span once, on every node.
#[tokio::test(flavor = "multi_thread")]
async fn a_60_mib_request_whose_leader_dies_midway_is_stored_once() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    for _ in 0..20 {
        send_batch(&cluster.http, &cluster.urls(), 1).await?;
    }
    let (mut sent, mut interrupted) = (0, false);
    while !interrupted {
        anyhow::ensure!(sent < 3, "the leader always answered before it was killed");
        let (body, leader) = (large(), cluster.leader().await?);
        let left = [(leader + 1) % 3, (leader + 2) % 3];
        let witness = &cluster.nodes[left[0]];
        let before = log_end(witness).await?;
        let mut sending = JoinSet::new();
        sending.spawn(post(&cluster.nodes[leader], &body).send());
        let until = Instant::now() + DEADLINE;
        while log_end(witness).await? == before {
            anyhow::ensure!(Instant::now() < until, "no part reached the other node");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        cluster.nodes[leader].kill()?;
        let first = sending.join_next().await.context("one request")??;
        interrupted = !first.is_ok_and(|response| response.status().is_success());
        let urls = left.map(|at| cluster.nodes[at].otlp_http("/v1/traces"));
        send_until_acknowledged(&cluster.http, &urls, body).await?;
        sent += 1;
        cluster.nodes[leader].relaunch()?;
        cluster.wait_ready().await?;
    }
    for node in &cluster.nodes {
        assert_stored(node, sent).await?;
    }
    assert_whole(&cluster.nodes[0], sent).await
}
