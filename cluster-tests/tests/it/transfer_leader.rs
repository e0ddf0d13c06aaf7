//! `signaldb cluster transfer-leader`: leaderships move when somebody asks.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::cluster::{Cluster, Load, assert_everywhere};
use crate::node::{DEADLINE, Node, binary};

/// Moves there and back again.
const MOVES: usize = 6;

fn transfer(node: &Node, group: u64, to: u64) -> anyhow::Result<Output> {
    let mut command = Command::new(binary()?);
    command.args(["cluster", "transfer-leader", "--format", "json", "--endpoint", &node.url("")]);
    command.args(["--group", &group.to_string(), "--to", &to.to_string()]);
    command.output().context("run signaldb cluster transfer-leader")
}

/// The group that took most, as a node sees it.
async fn busiest(node: &Node) -> anyhow::Result<Value> {
    let status: Value = node.http.get(node.url("/api/v1/cluster")).send().await?.json().await?;
    let groups = status["groups"].as_array().context("groups")?.iter();
    let busiest = groups.filter(|group| group["group"] != 0).max_by_key(|group| group["last_log_index"].as_u64());
    Ok(busiest.context("a data group")?.clone())
}

/// Scenario: under load the busiest group's leadership is moved from node to node, again and again; a node that does not
/// lead is asked, and one that does is asked for a node that is not there.
/// Guarantees: each move that is answered with success came about, in a new term; nothing that was acknowledged is lost or
/// doubled; who cannot do what it is asked says why, and nothing moves.
#[tokio::test(flavor = "multi_thread")]
async fn leaderships_move_on_demand_and_nothing_is_lost() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &[]).await?;
    let load = Load::start(&cluster, 3);
    load.wait_more(30).await?;
    let mut moves = 0;
    let until = Instant::now() + DEADLINE * 2;
    while moves < MOVES {
        assert!(Instant::now() < until, "{moves} moves only");
        let from = cluster.leader().await?;
        let to = (from + 1) % cluster.nodes.len();
        let before = busiest(&cluster.nodes[from]).await?;
        let group = before["group"].as_u64().context("a group")?;
        let output = transfer(&cluster.nodes[from], group, to as u64 + 1)?;
        if !output.status.success() {
            // A new leader that is not known everywhere yet, or a follower that is behind: said, not guessed.
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(&format!("group {group}")), "{said}");
            continue;
        }
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!((&answer["from"], &answer["to"]), (&Value::from(from + 1), &Value::from(to + 1)));
        loop {
            let after = busiest(&cluster.nodes[to]).await?;
            if after["group"] == group && after["term"].as_u64() > before["term"].as_u64() {
                break;
            }
            assert!(Instant::now() < until, "group {group} stays in its term: {after}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        moves += 1;
        load.wait_more(10).await?;
    }
    let leader = cluster.leader().await?;
    let group = busiest(&cluster.nodes[leader]).await?["group"].as_u64().context("a group")?;
    let nowhere = transfer(&cluster.nodes[leader], group, 9)?;
    let said = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(!nowhere.status.success() && said.contains(&format!("group {group}")), "{said}");
    let acknowledged = load.stop().await?;
    assert_everywhere(&cluster, &acknowledged).await
}
