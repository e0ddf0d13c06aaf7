//! Disks that fill up, fail, and lose what was not synced: real ones, ext4 on loop devices (DESIGN sections 3 and 4).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use prost::Message;
use serde_json::Value;
use signaldb_proto::otlp::collector::trace::v1::trace_service_client::TraceServiceClient;
use signaldb_proto::rpc;

use crate::cluster::{Cluster, Load, assert_everywhere};
use crate::ext4::{Disk, loop_devices, shut_down};
use crate::node::{DEADLINE, Node, free_ports};
use crate::spans::{batch, compare, request, send_batch, send_until_acknowledged, span};

const MIB: u64 = 1 << 20;
/// As little is synced as the configuration allows: the worst case of the `quorum` level.
const LAZY: [&str; 2] = ["wal.sync_interval=1s", "wal.sync_bytes=1GiB"];

/// Three nodes, some of them with a file system of their own for all their data.
struct Machines {
    // Dropped first: a process must be gone before its disk is.
    cluster: Cluster,
    /// By node; `None` where it is the one of the temporary directory.
    disks: Vec<Option<Disk>>,
}

impl Machines {
    async fn start(dir: &Path, own_disk: [bool; 3], settings: &[&str]) -> anyhow::Result<Self> {
        for attempt in 0..5 {
            let root = dir.join(format!("attempt-{attempt}"));
            let ports = [free_ports()?, free_ports()?, free_ports()?];
            let (mut disks, mut nodes) = (Vec::new(), Vec::new());
            for (at, own_disk) in own_disk.into_iter().enumerate() {
                let home = root.join(format!("node-{}", at + 1));
                disks.push(own_disk.then(|| Disk::new(dir, &home.join("data"))).transpose()?);
                nodes.push((home, Cluster::settings(&root, &ports, at, settings)));
            }
            let nodes =
                nodes.into_iter().zip(ports).map(|((home, settings), ports)| Node::launch(&home, settings, ports));
            let cluster = Cluster { nodes: nodes.collect::<anyhow::Result<_>>()?, root, http: reqwest::Client::new() };
            let mut machines = Self { cluster, disks };
            // Somebody else may have taken a port in between.
            if machines.cluster.wait_ready().await.is_ok() {
                return Ok(machines);
            }
        }
        bail!("the cluster did not become ready; its output is below {}", dir.display())
    }

    fn disk(&self, at: usize) -> anyhow::Result<&Disk> {
        self.disks[at].as_ref().context("the node has a disk of its own")
    }

    /// The machine of a node that is gone boots again: what was not synced is lost.
    fn boot(&mut self, at: usize) -> anyhow::Result<()> {
        self.disk(at)?.remount()?;
        self.cluster.nodes[at].reboot()?;
        self.cluster.nodes[at].relaunch()
    }
}

/// Waits until `holds` of what a node answers at `path`.
async fn wait_for(node: &Node, path: &str, holds: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        let answer = node.http.get(node.url(path)).timeout(Duration::from_secs(5)).send().await;
        let answer = match answer {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        if holds(&answer) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "{path} still says {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_level(node: &Node, level: u8) -> anyhow::Result<()> {
    let line = format!("signaldb_wal_disk_level {level}");
    wait_for(node, "/metrics", |metrics| metrics.lines().any(|other| other == line)).await
}

/// Waits until the groups that node `id` leads, as `node` sees them, are as many as `holds` wants.
async fn wait_led(node: &Node, id: u64, holds: impl Fn(usize) -> bool) -> anyhow::Result<()> {
    wait_for(node, "/api/v1/cluster", |state| {
        let state: Value = serde_json::from_str(state).unwrap_or_default();
        let Some(groups) = state["groups"].as_array() else { return false };
        let leaders: Vec<u64> = groups.iter().filter_map(|group| group["leader"].as_u64()).collect();
        leaders.len() == groups.len() && holds(leaders.iter().filter(|leader| **leader == id).count())
    })
    .await
}

async fn wait_said(node: &Node, text: &str) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    while !node.log()?.contains(text) {
        anyhow::ensure!(Instant::now() < until, "the node never said {text:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// One export over HTTP that must be turned away with 503 and a retry hint.
async fn assert_refused(node: &Node, body: Bytes) -> anyhow::Result<()> {
    let sent = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf").body(body);
    let refused = sent.timeout(Duration::from_secs(30)).send().await?;
    assert_eq!(refused.status().as_u16(), 503);
    assert!(refused.headers().contains_key("retry-after"), "{:?}", refused.headers());
    Ok(())
}

/// Scenario: a single node's disk fills up below the reserve, with several segments of log that is not flushed and would
/// be kept for long; then there is room again.
/// Guarantees: exports over HTTP and gRPC are turned away typed, with a hint when to come again; queries go on; the log is
/// flushed and purged by itself; without a restart the same bytes are taken again, and nothing acknowledged is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_on_a_nearly_full_disk_refuses_rows_and_heals_without_a_restart() -> anyhow::Result<()> {
    let Some(_devices) = loop_devices().await? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("node");
    let disk = Disk::new(dir.path(), &home.join("data"))?;
    let mut node = Node::start(&home, &["wal.disk_reserve=64MiB", "wal.max_segment_size=64KiB"]).await?;
    wait_for(&node, "/metrics", |metrics| metrics.contains("signaldb_wal_ballast_bytes 16777216")).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let segments = |health: &str| {
        let health: Value = serde_json::from_str(health).unwrap_or_default();
        health["wal"]["total_segments"].as_u64().unwrap_or_default()
    };
    let mut acknowledged = Vec::new();
    while segments(&node.http.get(node.url("/health")).send().await?.text().await?) < 4 {
        acknowledged.extend(send_batch(&node.http, &urls, 50).await?);
        anyhow::ensure!(acknowledged.len() < 100_000, "the log does not grow");
    }

    let filler = disk.fill(40 * MIB)?;
    wait_for(&node, "/ready", |reasons| reasons.contains("disk reserve")).await?;
    let (body, ids) = batch(3);
    assert_refused(&node, body.clone()).await?;
    let refused =
        TraceServiceClient::connect(node.otlp_grpc()).await?.export(request("shop", vec![span("late")])).await;
    let refused = refused.err().context("it is refused")?;
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(rpc::Status::decode(refused.details())?.retry_after().is_some(), "{refused:?}");
    assert_eq!(compare(&acknowledged, &node.span_ids().await?), (vec![], vec![]));
    wait_for(&node, "/health", |health| (1..=2).contains(&segments(health))).await?;

    // Next to nothing: what the ballast kept is given up.
    let rest = disk.fill(4 * MIB)?;
    wait_for(&node, "/metrics", |metrics| metrics.lines().any(|line| line == "signaldb_wal_ballast_bytes 0")).await?;
    assert!(disk.free()? > 4 * MIB);
    std::fs::remove_file(rest)?;
    assert_refused(&node, body.clone()).await?;

    std::fs::remove_file(filler)?;
    send_until_acknowledged(&node.http, &urls, body).await?;
    acknowledged.extend(ids);
    node.wait_ready().await?;
    wait_for(&node, "/metrics", |metrics| metrics.contains("signaldb_wal_ballast_bytes 16777216")).await?;
    let said = node.log()?;
    assert_eq!(said.matches("disk reserve: ingest is stopped").count(), 1, "changes only: {said}");
    assert_eq!(said.matches("disk reserve: ingest is resumed").count(), 1, "{said}");
    node.kill()?;
    node.restart().await?;
    assert_eq!(compare(&acknowledged, &node.span_ids().await?), (vec![], vec![]));
    Ok(())
}

/// Scenario: less than the reserve is free of the disk that holds the log and what queries spill; then there is room again.
/// Guarantees: a sort that spills is ended and names the budget, one that fits into memory is answered; with room both are.
#[tokio::test(flavor = "multi_thread")]
async fn queries_do_not_spill_to_a_nearly_full_disk() -> anyhow::Result<()> {
    let Some(_devices) = loop_devices().await? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("node");
    let disk = Disk::new(dir.path(), &home.join("data"))?;
    let node = Node::start(&home, &["wal.disk_reserve=64MiB", "query.memory=6MiB"]).await?;
    let sorted = |rows: u32| {
        format!(
            "SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY value % 1000003, value) AS n \
             FROM generate_series(1, {rows}))"
        )
    };
    let filler = disk.fill(40 * MIB)?;
    wait_level(&node, 1).await?;
    let refused = node.number(&sorted(600_000)).await.err().context("it is ended")?;
    assert!(format!("{refused:#}").contains("query.spill"), "{refused:#}");
    assert_eq!(node.number(&sorted(1000)).await?, 1000);
    std::fs::remove_file(filler)?;
    wait_level(&node, 0).await?;
    assert_eq!(node.number(&sorted(600_000)).await?, 600_000);
    Ok(())
}

/// Scenario: under load through all nodes the disk of one of three fills up, first below the reserve, then until next to
/// nothing is left; then there is room again.
/// Guarantees: it turns exports away typed and leads nothing; the others take everything. With no room it refuses entries
/// instead of failing, and catches up afterwards; it leads again, and nothing acknowledged is lost.
#[tokio::test(flavor = "multi_thread")]
async fn one_node_of_three_on_a_full_disk_leads_nothing_and_heals_without_a_restart() -> anyhow::Result<()> {
    let Some(_devices) = loop_devices().await? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let mut machines = Machines::start(dir.path(), [true, false, false], &["wal.disk_reserve=64MiB"]).await?;
    let urls = machines.cluster.urls();
    let [full, other, third] = &machines.cluster.nodes[..] else { bail!("a cluster has three nodes") };
    wait_led(other, 1, |led| led > 0).await?;
    wait_for(full, "/metrics", |metrics| metrics.contains("signaldb_wal_ballast_bytes 16777216")).await?;
    let load = Load::start(&machines.cluster, 3);
    load.wait_more(30).await?;

    let mut fillers = vec![machines.disk(0)?.fill(40 * MIB)?];
    wait_for(full, "/ready", |reasons| reasons.contains("disk reserve")).await?;
    wait_led(other, 1, |led| led == 0).await?;
    assert_refused(full, batch(1).0).await?;
    let mut acknowledged = Vec::new();
    for at in [1, 2] {
        acknowledged.extend(send_batch(&machines.cluster.http, &urls[at..=at], 3).await?);
    }
    load.wait_more(50).await?;

    // The first time the ballast goes; what it kept is taken too.
    fillers.push(machines.disk(0)?.fill(4 * MIB)?);
    wait_said(full, "the ballast file was given up").await?;
    wait_level(full, 1).await?;
    fillers.push(machines.disk(0)?.fill(4 * MIB)?);
    wait_level(full, 2).await?;
    load.wait_more(200).await?;
    wait_led(third, 1, |led| led == 0).await?;
    wait_level(full, 2).await?;

    fillers.iter().try_for_each(std::fs::remove_file)?;
    wait_level(full, 0).await?;
    load.wait_more(50).await?;
    acknowledged.extend(load.stop().await?);
    wait_led(other, 1, |led| led > 0).await?;
    machines.cluster.wait_ready().await?;
    machines.cluster.wait_equal_logs().await?;
    assert_everywhere(&machines.cluster, &acknowledged).await
}

/// Scenario: under load the disk under a leader fails every call from one moment on, and with it goes what was not
/// synced; its machine boots again.
/// Guarantees: the node says so and ends by itself, with an error; the others go on. It comes back as one that may have
/// lost entries, catches up, and everything acknowledged is on every node.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_fails_leaves_and_comes_back_recovering() -> anyhow::Result<()> {
    let Some(_devices) = loop_devices().await? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let mut machines = Machines::start(dir.path(), [true; 3], &LAZY).await?;
    let load = Load::start(&machines.cluster, 4);
    load.wait_more(500).await?;
    let victim = machines.cluster.leader().await?;
    shut_down([machines.disk(victim)?])?;
    let said = machines.cluster.nodes[victim].wait_ended().await?;
    assert!(said.contains("WAL is poisoned"), "{said}");
    let code = machines.cluster.nodes[victim].exit_code()?;
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    load.wait_more(100).await?;
    machines.boot(victim)?;
    machines.cluster.wait_ready().await?;
    wait_said(&machines.cluster.nodes[victim], "may have lost acknowledged entries").await?;
    wait_said(&machines.cluster.nodes[victim], "it votes and may lead again").await?;
    let acknowledged = load.stop().await?;
    assert_everywhere(&machines.cluster, &acknowledged).await
}

/// Scenario: the disks under all three nodes fail at once, under load, and the processes are killed; everything that was
/// not synced is lost. All machines boot again.
/// Guarantees: the cluster comes back by itself and says that its majority may have lost entries. Everything up to an
/// acknowledgment at `quorum-fsync` is there; of what was acknowledged at `quorum` after it some may be missing, nothing
/// is doubled or made up, and all nodes show the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_of_all_disks_keeps_what_was_acknowledged_at_quorum_fsync() -> anyhow::Result<()> {
    let Some(_devices) = loop_devices().await? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let mut machines = Machines::start(dir.path(), [true; 3], &LAZY).await?;
    let load = Load::start(&machines.cluster, 4);
    load.wait_more(500).await?;
    let mut certain = load.stop().await?;
    // In the same log and behind all of these: a majority that synced it has synced them.
    let (body, ids) = batch(1);
    let barrier = machines.cluster.http.post(machines.cluster.nodes[0].otlp_http("/v1/traces"));
    let barrier = barrier.header("x-signaldb-ack", "quorum-fsync").header("content-type", "application/x-protobuf");
    let barrier = barrier.body(body).send().await?.error_for_status()?;
    assert_eq!(barrier.headers().get("x-signaldb-ack").map(|level| level.as_bytes()), Some(&b"quorum-fsync"[..]));
    certain.extend(ids);

    let load = Load::start(&machines.cluster, 4);
    load.wait_more(200).await?;
    shut_down(machines.disks.iter().flatten())?;
    machines.cluster.nodes.iter_mut().try_for_each(Node::kill)?;
    (0..3).try_for_each(|at| machines.boot(at))?;
    machines.cluster.wait_ready().await?;
    let uncertain = load.stop().await?;
    let after = send_batch(&machines.cluster.http, &machines.cluster.urls(), 5).await?;
    certain.extend(after);

    let mut shown = Vec::new();
    for node in &machines.cluster.nodes {
        wait_said(node, "may have lost acknowledged entries").await?;
        let found = node.span_ids().await?;
        let (missing, doubled) = compare(&certain, &found);
        assert!(missing.is_empty() && doubled.is_empty(), "missing {missing:?}, doubled {doubled:?}");
        let known = |id: &String| certain.contains(id) || uncertain.contains(id);
        assert!(found.iter().all(known), "nothing is there that nobody sent");
        shown.push(found);
    }
    assert!(shown.iter().all(|found| *found == shown[0]), "all nodes show the same");
    let lost = compare(&uncertain, &shown[0]).0.len();
    println!("{lost} of {} spans that were acknowledged at quorum around the power loss are lost", uncertain.len());
    let logs = machines.cluster.nodes.iter().map(Node::log).collect::<anyhow::Result<Vec<_>>>()?;
    assert!(logs.iter().any(|said| said.contains("the voters chose this replica's log")), "the loss is said");
    Ok(())
}
