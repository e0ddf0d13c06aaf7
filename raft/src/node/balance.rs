//! Spreading leaderships: each node gives away one group at a time while another leads two fewer.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signaldb_model::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;

use super::formation;
use crate::disk::{DiskLevel, DiskWatch};
use crate::group::Group;
use crate::peers::Peers;

/// How often a node looks. Nodes start at different moments, so that two seldom act at once.
const INTERVAL: Duration = Duration::from_secs(5);
/// The same while the log's disk is nearly full and another node may yet take a leadership.
const INTERVAL_NEARLY_FULL: Duration = Duration::from_secs(1);
/// How long the new leader may take; then the others elect.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(120);

/// Looks again and again until `stop`; at once when the disk's level changes.
pub(super) async fn run(groups: Vec<Arc<Group>>, peers: Arc<Peers>, mut disk: DiskWatch, stop: CancellationToken) {
    let (me, mut before) = (peers.node(), BTreeMap::new());
    let nodes: Vec<NodeId> = peers.addresses().keys().copied().collect();
    // A transfer that did not work is not tried again soon.
    let mut failed: BTreeMap<(GroupId, NodeId), Instant> = BTreeMap::new();
    let mut pause = INTERVAL;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = disk.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(pause) => {}
        }
        let nearly_full = *disk.borrow_and_update() != DiskLevel::Normal;
        pause = if nearly_full { INTERVAL_NEARLY_FULL } else { INTERVAL };
        if nearly_full {
            tokio::select! {
                () = stop.cancelled() => return,
                () = give_all(&groups, &peers, &nodes) => {}
            }
            continue;
        }
        let leaders = leaders(&groups);
        // While leaderships move by themselves, nobody pushes.
        let settled = leaders == before && leaders.len() == groups.len();
        before = leaders;
        if !settled {
            continue;
        }
        failed.retain(|_, at| at.elapsed() < PAUSE_AFTER_FAILURE);
        let may_lead =
            |id: GroupId, node: NodeId| !failed.contains_key(&(id, node)) && is_close_behind(&groups, id, node);
        if move_away(&before, me, &nodes, may_lead).is_none() {
            continue;
        }
        // One that stops, or takes no rows, may be asked again soon: that is no failure.
        let willing = tokio::select! {
            () = stop.cancelled() => return,
            willing = formation::willing(&peers) => willing,
        };
        let may_lead = |id: GroupId, node: NodeId| willing.contains(&node) && may_lead(id, node);
        let Some((id, to)) = move_away(&before, me, &nodes, may_lead) else { continue };
        let Some(group) = groups.iter().find(|group| group.id() == id) else { continue };
        tracing::info!(group = %id, %to, "leadership is given away: this node leads more groups than that one");
        tokio::select! {
            () = stop.cancelled() => return,
            given = group.transfer(to.0, TRANSFER_TIMEOUT) => if let Err(error) = given {
                tracing::info!(group = %id, %to, %error, "leadership was not given away");
                failed.insert((id, to), Instant::now());
            },
        }
    }
}

/// Gives every leadership to nodes that take rows, because this one does not: its log's disk is nearly full.
async fn give_all(groups: &[Arc<Group>], peers: &Peers, nodes: &[NodeId]) {
    let (me, leaders) = (peers.node(), leaders(groups));
    if leaders.values().all(|leader| *leader != me) {
        return;
    }
    let willing = formation::willing(peers).await;
    let may_lead = |id: GroupId, node: NodeId| willing.contains(&node) && is_close_behind(groups, id, node);
    for (id, to) in give_up(leaders, me, nodes, may_lead) {
        let Some(group) = groups.iter().find(|group| group.id() == id) else { continue };
        tracing::info!(group = %id, %to, "leadership is given away: the log's disk is nearly full here");
        if let Err(error) = group.transfer(to.0, TRANSFER_TIMEOUT).await {
            tracing::info!(group = %id, %to, %error, "leadership was not given away");
        }
    }
}

fn is_close_behind(groups: &[Arc<Group>], id: GroupId, node: NodeId) -> bool {
    groups.iter().find(|group| group.id() == id).is_some_and(|group| group.is_close_behind(node))
}

fn leaders(groups: &[Arc<Group>]) -> BTreeMap<GroupId, NodeId> {
    groups.iter().filter_map(|group| Some((group.id(), group.leadership().leader?))).collect()
}

/// The group that `me` gives to another node, if that makes the counts more even.
fn move_away(
    leaders: &BTreeMap<GroupId, NodeId>,
    me: NodeId,
    nodes: &[NodeId],
    may_lead: impl Fn(GroupId, NodeId) -> bool,
) -> Option<(GroupId, NodeId)> {
    let count = |node: NodeId| leaders.values().filter(|leader| **leader == node).count();
    // The meta group stays where it is as long as there are others to give.
    let mine = leaders.iter().rev().filter(|(_, leader)| **leader == me).map(|(group, _)| *group);
    let others = || nodes.iter().copied().filter(|node| *node != me && count(me) >= count(*node) + 2);
    let moves = mine.flat_map(|group| others().map(move |node| (group, node)));
    moves.filter(|(group, node)| may_lead(*group, *node)).min_by_key(|(group, node)| (count(*node), Reverse(*group)))
}

/// Where every group that `me` leads goes, spread over those that may lead it; one that nobody may lead stays.
fn give_up(
    mut leaders: BTreeMap<GroupId, NodeId>,
    me: NodeId,
    nodes: &[NodeId],
    may_lead: impl Fn(GroupId, NodeId) -> bool,
) -> Vec<(GroupId, NodeId)> {
    let mine: Vec<GroupId> = leaders.iter().filter(|(_, leader)| **leader == me).map(|(group, _)| *group).collect();
    let mut moves = Vec::new();
    for group in mine {
        let count = |node: NodeId| leaders.values().filter(|leader| **leader == node).count();
        let others = nodes.iter().copied().filter(|node| *node != me && may_lead(group, *node));
        if let Some(to) = others.min_by_key(|node| count(*node)) {
            leaders.insert(group, to);
            moves.push((group, to));
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(counts: [usize; 3]) -> BTreeMap<GroupId, NodeId> {
        let leaders = counts.into_iter().zip(1..).flat_map(|(count, node)| std::iter::repeat_n(NodeId(node), count));
        (0..).map(GroupId).zip(leaders).collect()
    }

    #[test]
    fn counts_become_even_and_then_nothing_moves() {
        let nodes = [1, 2, 3].map(NodeId);
        let mut leaders = spread([9, 0, 0]);
        let mut moves = 0;
        loop {
            let proposed = nodes.iter().find_map(|me| move_away(&leaders, *me, &nodes, |_, _| true));
            let Some((group, to)) = proposed else { break };
            leaders.insert(group, to);
            moves += 1;
            assert!(moves < 20, "no end");
        }
        assert_eq!(moves, 6);
        let counts = nodes.map(|node| leaders.values().filter(|leader| **leader == node).count());
        assert_eq!(counts, [3, 3, 3]);
        assert_eq!(leaders[&GroupId(0)], NodeId(1), "the meta group stayed");
    }

    #[test]
    fn a_difference_of_one_is_even() {
        let nodes = [1, 2, 3].map(NodeId);
        assert_eq!(move_away(&spread([4, 3, 3]), NodeId(1), &nodes, |_, _| true), None);
        assert_eq!(move_away(&spread([5, 3, 3]), NodeId(2), &nodes, |_, _| true), None, "only the owner gives");
    }

    #[test]
    fn a_node_that_cannot_lead_is_passed_over() {
        let nodes = [1, 2, 3].map(NodeId);
        let alive = |_, node| node != NodeId(3);
        assert_eq!(move_away(&spread([7, 2, 0]), NodeId(1), &nodes, alive), Some((GroupId(6), NodeId(2))));
        assert_eq!(move_away(&spread([7, 2, 0]), NodeId(1), &nodes, |_, _| false), None);
    }

    #[test]
    fn a_node_whose_disk_is_nearly_full_gives_all_to_the_others_evenly() {
        let nodes = [1, 2, 3].map(NodeId);
        let leaders = spread([5, 3, 1]);
        let moves = give_up(leaders.clone(), NodeId(1), &nodes, |_, _| true);
        assert_eq!(moves.iter().map(|(group, _)| group.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4], "the meta group too");
        let mut after = leaders.clone();
        after.extend(moves);
        let counts = nodes.map(|node| after.values().filter(|leader| **leader == node).count());
        assert_eq!(counts, [0, 5, 4]);
        let only = give_up(leaders.clone(), NodeId(1), &nodes, |_, node| node == NodeId(2));
        assert!(only.len() == 5 && only.iter().all(|(_, to)| *to == NodeId(2)));
        assert!(give_up(leaders, NodeId(1), &nodes, |_, _| false).is_empty(), "all disks are nearly full");
    }
}
