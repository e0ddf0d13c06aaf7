//! Spreading leaderships: each node gives away one group at a time while another leads two fewer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use signaldb_model::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;

use crate::group::Group;

/// How often a node looks. Nodes start at different moments, so that two seldom act at once.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the new leader may take; then the others elect.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);

/// Looks again and again until `stop`.
pub(super) async fn run(groups: Vec<Arc<Group>>, me: NodeId, nodes: Vec<NodeId>, stop: CancellationToken) {
    let mut before = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let leaders = leaders(&groups);
        // While leaderships move by themselves, nobody pushes.
        let settled = leaders == before && leaders.len() == groups.len();
        before = leaders;
        let Some((id, to)) = move_away(&before, me, &nodes).filter(|_| settled) else { continue };
        let Some(group) = groups.iter().find(|group| group.id() == id && group.is_close_behind(to)) else { continue };
        tracing::info!(group = %id, %to, "leadership is given away: this node leads more groups than that one");
        tokio::select! {
            () = stop.cancelled() => return,
            moved = group.transfer(to.0, TRANSFER_TIMEOUT) => if let Err(error) = moved {
                tracing::warn!(group = %id, %to, %error, "leadership did not move");
            },
        }
    }
}

fn leaders(groups: &[Arc<Group>]) -> BTreeMap<GroupId, NodeId> {
    groups.iter().filter_map(|group| Some((group.id(), group.leadership().leader?))).collect()
}

/// The group that `me` gives to another node, if that makes the counts more even.
fn move_away(leaders: &BTreeMap<GroupId, NodeId>, me: NodeId, nodes: &[NodeId]) -> Option<(GroupId, NodeId)> {
    let count = |node: NodeId| leaders.values().filter(|leader| **leader == node).count();
    let to = nodes.iter().copied().filter(|node| *node != me).min_by_key(|node| (count(*node), *node))?;
    if count(me) < count(to) + 2 {
        return None;
    }
    // The meta group stays where it is as long as there are others to give.
    let mine = leaders.iter().filter(|(_, leader)| **leader == me).map(|(group, _)| *group);
    mine.max().map(|group| (group, to))
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
            let proposed = nodes.iter().find_map(|me| move_away(&leaders, *me, &nodes));
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
        assert_eq!(move_away(&spread([4, 3, 3]), NodeId(1), &nodes), None);
        assert_eq!(move_away(&spread([5, 3, 3]), NodeId(2), &nodes), None, "only the owner gives");
    }
}
