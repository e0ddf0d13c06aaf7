//! Disks that are not what the cluster knows under their node id: an older copy, an empty one (DESIGN section 3).

use crate::cluster::{Cluster, assert_everywhere};
use crate::fixtures::copy_dir;
use crate::node::Node;
use crate::spans::send_batch;

/// The node whose disk is replaced.
const REPLACED: usize = 2;

/// What the node's process says from here on until it ends by itself.
async fn last_words(node: &mut Node, before: usize) -> anyhow::Result<String> {
    let said = node.wait_ended().await?;
    Ok(said.get(before..).unwrap_or_default().to_owned())
}

/// Starts the node, which must end by itself and say why.
async fn refused(node: &mut Node, reason: &str) -> anyhow::Result<()> {
    let before = node.log()?.len();
    node.relaunch()?;
    let said = last_words(node, before).await?;
    anyhow::ensure!(said.contains(reason) && said.contains("add-node"), "{said}");
    Ok(())
}

/// Kills the two others and starts all three; the replaced disk must be refused all the same, and the others serve.
async fn refused_when_all_start(cluster: &mut Cluster, reason: &str) -> anyhow::Result<()> {
    for node in &mut cluster.nodes[..REPLACED] {
        node.kill()?;
    }
    let before = cluster.nodes[REPLACED].log()?.len();
    cluster.nodes.iter_mut().rev().try_for_each(Node::relaunch)?;
    let said = last_words(&mut cluster.nodes[REPLACED], before).await?;
    anyhow::ensure!(said.contains(reason) && said.contains("add-node"), "{said}");
    for node in &mut cluster.nodes[..REPLACED] {
        node.wait_ready().await?;
    }
    Ok(())
}

/// Scenario: a node's data directory is copied while it is stopped; the node runs again and acknowledges more; then the
/// copy is put back, started twice beside the others, and once together with them.
/// Guarantees: each time it ends and names the restored old copy and `add-node`; the others acknowledge meanwhile; with
/// its own disk the node comes back and has everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_old_copy_is_refused_and_the_others_go_on() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let urls = cluster.urls();
    let mut acknowledged = send_batch(&cluster.http, &urls, 5).await?;
    let home = cluster.nodes[REPLACED].dir.clone();
    let (data, copy, newest) = (home.join("data"), home.join("copy"), home.join("newest"));

    cluster.nodes[REPLACED].terminate()?;
    copy_dir(&data, &copy)?;
    cluster.nodes[REPLACED].relaunch()?;
    cluster.wait_ready().await?;
    acknowledged.extend(send_batch(&cluster.http, &urls[REPLACED..], 5).await?);
    cluster.nodes[REPLACED].terminate()?;
    std::fs::rename(&data, &newest)?;
    std::fs::rename(&copy, &data)?;

    // A supervisor starts it again and again: that brings it no nearer.
    for _ in 0..2 {
        refused(&mut cluster.nodes[REPLACED], "restored old copy").await?;
        acknowledged.extend(send_batch(&cluster.http, &urls[..REPLACED], 5).await?);
    }
    refused_when_all_start(&mut cluster, "restored old copy").await?;
    acknowledged.extend(send_batch(&cluster.http, &urls[..REPLACED], 5).await?);

    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&newest, &data)?;
    cluster.nodes[REPLACED].relaunch()?;
    cluster.wait_ready().await?;
    assert_everywhere(&cluster, &acknowledged).await
}

/// Scenario: a node's data directory is gone; the node starts beside the others, and together with them.
/// Guarantees: each time it ends and names the wiped disk and `add-node`; the others acknowledge meanwhile; with its own
/// disk the node comes back and has everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_disk_may_not_come_back_under_its_id() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let urls = cluster.urls();
    let mut acknowledged = send_batch(&cluster.http, &urls, 5).await?;
    let home = cluster.nodes[REPLACED].dir.clone();
    let (data, away) = (home.join("data"), home.join("away"));

    cluster.nodes[REPLACED].kill()?;
    std::fs::rename(&data, &away)?;
    refused(&mut cluster.nodes[REPLACED], "wiped").await?;
    // The first attempt has left an identity of its own: now it is a foreign disk.
    refused(&mut cluster.nodes[REPLACED], "the cluster knows this node id with disk").await?;
    acknowledged.extend(send_batch(&cluster.http, &urls[..REPLACED], 5).await?);
    std::fs::remove_dir_all(&data)?;
    refused_when_all_start(&mut cluster, "wiped").await?;
    acknowledged.extend(send_batch(&cluster.http, &urls[..REPLACED], 5).await?);

    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&away, &data)?;
    cluster.nodes[REPLACED].relaunch()?;
    cluster.wait_ready().await?;
    assert_everywhere(&cluster, &acknowledged).await
}
