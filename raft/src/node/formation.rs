//! How a cluster comes to be, and how a node finds out that it does not belong to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use signaldb_model::NodeId;
use signaldb_proto::peer::{IdentityRequest, IdentityResponse, Voter};

use crate::error::OpenError;
use crate::peers::{Lane, Peers};
use crate::recovery::Refusal;
use crate::types::Peer;

const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Rounds of asking between two lines in the log.
const ROUNDS_A_LINE: u32 = 50;

/// The first voters of the meta group: all that are configured, once each of them answers.
///
/// # Errors
/// When a cluster exists already and does not know this disk: the node was wiped, or was never part of it.
pub(super) async fn form(peers: &Peers) -> Result<BTreeMap<u64, Peer>, OpenError> {
    for round in 0u32.. {
        let answers = ask_all(peers).await;
        if let Some((from, voters)) =
            answers.iter().find_map(|(node, answer)| Some((node, formed(answer.as_ref().ok()?)?)))
        {
            return match voters.get(&peers.node().0) {
                Some(known) if known.disk_id == peers.disk_id() => Ok(voters),
                Some(known) => {
                    let source = Refusal::Wiped { known: known.disk_id.clone() };
                    Err(OpenError::Refused { peer: from.0, source })
                }
                None => {
                    let reason = format!(
                        "node {from} is in a cluster that knows no node {}: a further node needs `signaldb cluster \
                         add-node`, which this version does not have yet",
                        peers.node()
                    );
                    Err(OpenError::Group { group: 0, reason })
                }
            };
        }
        let silent: Vec<String> =
            answers.iter().filter_map(|(node, answer)| Some(format!("{node} ({})", answer.as_ref().err()?))).collect();
        if silent.is_empty() {
            return all(peers, &answers);
        }
        if round.is_multiple_of(ROUNDS_A_LINE) {
            tracing::info!("a new cluster forms when all of cluster.peers answer; waiting for {}", silent.join(", "));
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
    Ok(BTreeMap::new())
}

type Answers = BTreeMap<NodeId, Result<IdentityResponse, String>>;

async fn ask_all(peers: &Peers) -> Answers {
    let others = peers.addresses().keys().filter(|node| **node != peers.node());
    let ask = |node: NodeId| async move {
        let answer = peers.call(node, Lane::Control, "Identity", &IdentityRequest {}, ASK_TIMEOUT).await;
        (node, answer.map_err(|status| status.message().to_owned()))
    };
    join_all(others.map(|node| ask(*node))).await.into_iter().collect()
}

/// Whether a node answers now.
pub(super) async fn answers(peers: &Peers, node: NodeId) -> bool {
    let asked: Result<IdentityResponse, _> =
        peers.call(node, Lane::Control, "Identity", &IdentityRequest {}, ASK_TIMEOUT).await;
    asked.is_ok()
}

/// The other nodes that answer now and would lead.
pub(super) async fn willing(peers: &Peers) -> BTreeSet<NodeId> {
    let answers = ask_all(peers).await.into_iter();
    answers.filter(|(_, answer)| answer.as_ref().is_ok_and(|answer| answer.willing)).map(|(node, _)| node).collect()
}

fn formed(answer: &IdentityResponse) -> Option<BTreeMap<u64, Peer>> {
    let voters = answer.voters.iter();
    let voters: BTreeMap<u64, Peer> = voters
        .map(|voter| (voter.node, Peer { address: voter.address.clone(), disk_id: voter.disk_id.clone() }))
        .collect();
    (!voters.is_empty()).then_some(voters)
}

/// Everybody answered and nobody has an identity.
fn all(peers: &Peers, answers: &Answers) -> Result<BTreeMap<u64, Peer>, OpenError> {
    let mut voters = BTreeMap::new();
    for (node, address) in peers.addresses() {
        let disk_id = match answers.get(node) {
            Some(Ok(answer)) if answer.node != node.0 => {
                let reason = format!("the node at {address} says that it is node {}, not {node}", answer.node);
                return Err(OpenError::Group { group: 0, reason });
            }
            Some(Ok(answer)) => answer.disk_id.clone(),
            _ => peers.disk_id().to_owned(),
        };
        voters.insert(node.0, Peer { address: address.clone(), disk_id });
    }
    Ok(voters)
}

/// Whether the configuration fits the members that the log names.
///
/// # Errors
/// Says what to change.
pub(super) fn check_members(peers: &Peers, members: &BTreeMap<u64, Peer>) -> Result<(), OpenError> {
    let (configured, known) = (peers.addresses().len().max(1), members.len());
    let reason = match members.get(&peers.node().0) {
        // The log does not reach to the membership yet; the leader sends it.
        _ if members.is_empty() => return Ok(()),
        None => format!("the log is not of node {} but of {:?}: node.id was changed", peers.node(), members.keys()),
        Some(me) if me.disk_id != peers.disk_id() => {
            format!("the log names disk {} for this node, the disk is {}", me.disk_id, peers.disk_id())
        }
        Some(_) if configured != known => format!(
            "cluster.peers has {configured} nodes, the log knows {known}: a cluster is formed from empty data \
             directories, and grows by `signaldb cluster add-node`, which this version does not have yet"
        ),
        Some(_) => return Ok(()),
    };
    Err(OpenError::Group { group: 0, reason })
}

pub(super) fn listed(voters: &BTreeMap<u64, Peer>) -> Vec<Voter> {
    if voters.len() <= 1 {
        return Vec::new();
    }
    let voter = |(node, peer): (&u64, &Peer)| Voter {
        node: *node,
        address: peer.address.clone(),
        disk_id: peer.disk_id.clone(),
    };
    voters.iter().map(voter).collect()
}
