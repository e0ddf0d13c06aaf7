//! Machines that lose power: what a node had only in its page cache is gone (DESIGN section 3).

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Load, assert_everywhere};
use crate::node::{DEADLINE, Node};
use crate::spans::{batch, send_batch};

/// As little is synced as the configuration allows: the worst case of the `quorum` level.
const LAZY: [&str; 2] = ["wal.sync_interval=1s", "wal.sync_bytes=1GiB"];
/// Bytes that a power loss takes from a log: some dozen entries of these tests, of which a real one would spare those that
/// were synced since.
const LOST_BYTES: u64 = 20_000;

/// Exports until the log of every node is long enough to lose something, and waits until all hold the same.
async fn fill(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let load = Load::start(cluster, 4);
    load.wait_more(2000).await?;
    let acknowledged = load.stop().await?;
    cluster.wait_equal_logs().await?;
    Ok(acknowledged)
}

/// Kills a node, writes through the others, starts it again, and finds everything on every node.
async fn goes_on_without(cluster: &mut Cluster, at: usize, mut acknowledged: Vec<String>) -> anyhow::Result<()> {
    cluster.nodes[at].kill()?;
    acknowledged.extend(send_batch(&cluster.http, &cluster.urls(), 5).await?);
    cluster.nodes[at].relaunch()?;
    cluster.wait_ready().await?;
    assert_everywhere(cluster, &acknowledged).await
}

async fn wait_said(node: &Node, text: &str) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    while !node.log()?.contains(text) {
        anyhow::ensure!(Instant::now() < until, "the node never said {text:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Scenario: the leader's machine loses power, and with it acknowledged entries of its log; it comes back while the
/// others go on, and afterwards another node is killed.
/// Guarantees: nothing acknowledged is lost; the node abstains until it has caught up, then votes and leads again.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_loses_power_loses_nothing_acknowledged() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &LAZY).await?;
    let mut acknowledged = fill(&cluster).await?;
    let victim = cluster.leader().await?;
    cluster.nodes[victim].lose_power(LOST_BYTES)?;
    acknowledged.extend(send_batch(&cluster.http, &cluster.urls(), 5).await?);
    cluster.nodes[victim].relaunch()?;
    cluster.nodes[victim].wait_ready().await?;
    wait_said(&cluster.nodes[victim], "may have lost acknowledged entries").await?;
    wait_said(&cluster.nodes[victim], "it votes and may lead again").await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    // Its vote is needed now.
    goes_on_without(&mut cluster, (victim + 1) % 3, acknowledged).await
}

/// Scenario: all three machines lose power at once, two of them with acknowledged entries; two come back, and later the
/// third.
/// Guarantees: two halt instead of electing past what the third may hold; all three choose the longest log, and nothing
/// that it holds is lost.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_of_all_the_longest_log_wins_and_no_two_elect_without_the_third() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &LAZY).await?;
    let mut acknowledged = fill(&cluster).await?;
    let whole = (cluster.leader().await? + 1) % 3;
    for (at, node) in cluster.nodes.iter_mut().enumerate() {
        node.lose_power(if at == whole { 0 } else { LOST_BYTES })?;
    }
    let short = [(whole + 1) % 3, (whole + 2) % 3];
    for at in short {
        cluster.nodes[at].relaunch()?;
    }
    // The lowest id of the voters speaks for all; the whole one may have it, then nobody says anything.
    for at in short {
        wait_said(&cluster.nodes[at], "may have lost acknowledged entries").await?;
    }
    let refused = cluster.http.post(cluster.nodes[short[0]].otlp_http("/v1/traces"));
    let refused = refused.header("content-type", "application/x-protobuf").body(batch(1).0).send().await?;
    assert_eq!(refused.status().as_u16(), 503, "two of three that may have lost entries acknowledge nothing");
    assert!(!cluster.nodes[short[0]].is_ready().await && !cluster.nodes[short[1]].is_ready().await);
    cluster.nodes[whole].relaunch()?;
    cluster.wait_ready().await?;
    wait_said(&cluster.nodes[whole], "the voters chose this replica's log").await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    acknowledged.extend(send_batch(&cluster.http, &cluster.urls(), 5).await?);
    assert_everywhere(&cluster, &acknowledged).await
}

/// Scenario: the leader's machine and another one lose power together with acknowledged entries; the third goes on, and
/// has the lowest id.
/// Guarantees: those that recover get all voters to elect the one that lost nothing; nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_majority_that_loses_power_with_the_leader_recovers_from_the_third() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &LAZY).await?;
    let mut acknowledged = fill(&cluster).await?;
    while cluster.leader().await? == 0 {
        cluster.nodes[0].kill()?;
        acknowledged.extend(send_batch(&cluster.http, &cluster.urls(), 5).await?);
        cluster.nodes[0].relaunch()?;
        cluster.wait_ready().await?;
    }
    cluster.wait_equal_logs().await?;
    for node in &mut cluster.nodes[1..] {
        node.lose_power(LOST_BYTES)?;
    }
    for node in &mut cluster.nodes[1..] {
        node.relaunch()?;
    }
    cluster.wait_ready().await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    acknowledged.extend(send_batch(&cluster.http, &cluster.urls(), 5).await?);
    assert_everywhere(&cluster, &acknowledged).await
}

/// Scenario: a follower's disk flips a bit in a segment that was known to be on disk.
/// Guarantees: the node says where, takes the damaged entries from its peers, and serves everything again.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_on_one_node_is_refilled_from_the_others() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let mut acknowledged = fill(&cluster).await?;
    let victim = (cluster.leader().await? + 1) % 3;
    let (code, _) = cluster.nodes[victim].terminate()?;
    assert_eq!(code, Some(0));
    cluster.nodes[victim].flip_bit()?;
    acknowledged.extend(send_batch(&cluster.http, &cluster.urls(), 5).await?);
    cluster.nodes[victim].relaunch()?;
    cluster.nodes[victim].wait_ready().await?;
    wait_said(&cluster.nodes[victim], "WAL corruption").await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    // Whoever leads now: what was refilled serves it.
    goes_on_without(&mut cluster, (victim + 1) % 3, acknowledged).await
}

/// Scenario: a cluster is stopped with SIGTERM, all machines reboot, and it starts again.
/// Guarantees: everything was synced and marked so: no node recovers, nobody has to wait for a third.
#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_after_a_clean_stop_costs_no_recovery() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &LAZY).await?;
    let acknowledged = fill(&cluster).await?;
    for node in &mut cluster.nodes {
        let (code, _) = node.terminate()?;
        assert_eq!(code, Some(0));
    }
    for node in &mut cluster.nodes {
        node.reboot()?;
        node.relaunch()?;
    }
    cluster.wait_ready().await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    for node in &cluster.nodes {
        assert!(!node.log()?.contains("may have lost acknowledged entries"));
    }
    Ok(())
}

/// Scenario: one tenant's configuration asks for `quorum-fsync`, the cluster's for nothing.
/// Guarantees: its writes are acknowledged at that level, those of others at `quorum`, and none below what it asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_gets_the_level_that_it_is_configured_with() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let tenants = "auth.tenants=[{id=\"audit\",ack=\"quorum-fsync\"}]";
    let cluster = Cluster::start(dir.path(), &[tenants]).await?;
    for (tenant, asked, expected) in [
        ("audit", None, "quorum-fsync"),
        ("audit", Some("quorum"), "quorum-fsync"),
        ("shop", None, "quorum"),
        ("shop", Some("quorum-fsync"), "quorum-fsync"),
    ] {
        let sent = cluster.http.post(cluster.nodes[1].otlp_http("/v1/traces")).header("x-tenant-id", tenant);
        let sent = asked.into_iter().fold(sent, |sent, level| sent.header("x-signaldb-ack", level));
        let sent = sent.header("content-type", "application/x-protobuf").body(batch(1).0).send().await?;
        let level = sent.error_for_status()?.headers().get("x-signaldb-ack").cloned();
        assert_eq!(level.as_ref().map(|level| level.as_bytes()), Some(expected.as_bytes()), "{tenant}, {asked:?}");
    }
    Ok(())
}

/// Scenario: an export asks for `quorum-fsync` where `quorum` is the rule and nothing is synced by itself; then every
/// machine loses power with all that was not synced.
/// Guarantees: the acknowledgment says `quorum-fsync`, and the record is there afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgment_at_quorum_fsync_survives_the_power_loss_of_all() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &LAZY).await?;
    fill(&cluster).await?;
    let (body, ids) = batch(1);
    let sent = cluster.http.post(cluster.nodes[0].otlp_http("/v1/traces")).header("x-signaldb-ack", "quorum-fsync");
    let sent = sent.header("content-type", "application/x-protobuf").body(body).send().await?.error_for_status()?;
    assert_eq!(sent.headers().get("x-signaldb-ack").map(|value| value.as_bytes()), Some(&b"quorum-fsync"[..]));
    let marks: Vec<u64> = cluster.nodes.iter().map(Node::log_bytes).collect::<anyhow::Result<_>>()?;
    // Entries that no disk has to keep.
    let load = Load::start(&cluster, 4);
    load.wait_more(500).await?;
    load.stop().await?;
    for (node, mark) in cluster.nodes.iter_mut().zip(marks) {
        let lost = node.log_bytes()?.saturating_sub(mark);
        node.lose_power(lost)?;
        node.relaunch()?;
    }
    cluster.wait_ready().await?;
    for node in &cluster.nodes {
        assert!(node.span_ids().await?.contains(&ids[0]));
    }
    Ok(())
}
