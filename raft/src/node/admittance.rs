//! Whether this disk may go on under its node id: asked of the peers before the log is opened, and until each of them
//! has answered; agreed on in the meta group, so that it outlives them.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use signaldb_model::NodeId;
use signaldb_proto::peer::{self, KnownRequest, KnownResponse, PoisonedRequest};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{Meta, MetaCommand, meta_command};
use crate::blocking;
use crate::error::OpenError;
use crate::group::Group;
use crate::known::{Known, KnownStarts, Starts, judge, known_in};
use crate::peers::{Dial, Lane, Peers, PeersConfig};
use crate::recovery::{OwnIdentity, StartEpoch};
use crate::state_store::StateStore;

/// How long a start waits for peers: those that start as well answer only later.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a poisoned node tries to say so before it ends.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before peers that were silent are asked again, and before the meta group is.
const INTERVAL: Duration = Duration::from_secs(2);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What those that answered know.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) silent: BTreeSet<NodeId>,
    /// Number of a poisoned start whose consequences were not drawn yet.
    pub(super) poisoned: Option<u64>,
}

/// Asks before the log is opened: nobody has heard of this start yet, and nothing on disk was changed.
///
/// # Errors
/// Why this disk must not go on, as the first peer that knows says it.
pub(super) async fn ask_at_start(
    config: &PeersConfig,
    dial: &Arc<dyn Dial>,
    own: &OwnIdentity,
    settled: u64,
) -> Result<Asked, OpenError> {
    let disk_id = own.disk_id.clone().unwrap_or_default();
    let peers = Peers::new(config.clone(), disk_id, own.starts.clone(), KnownStarts::default());
    let peers = peers.over(Arc::clone(dial));
    ask(&peers, &others(&peers), own, settled).await
}

fn others(peers: &Peers) -> BTreeSet<NodeId> {
    peers.addresses().keys().copied().filter(|node| *node != peers.node()).collect()
}

async fn ask(peers: &Peers, nodes: &BTreeSet<NodeId>, own: &OwnIdentity, settled: u64) -> Result<Asked, OpenError> {
    let ask = |node: NodeId| async move {
        let question = KnownRequest { node: peers.node().0 };
        let answer: Result<KnownResponse, Status> =
            peers.call(node, Lane::Control, "Known", &question, ASK_TIMEOUT).await;
        (node, answer)
    };
    let mut asked = Asked::default();
    for (node, answer) in join_all(nodes.iter().map(|node| ask(*node))).await {
        match answer {
            Ok(answer) => {
                let poisoned = judge(own, settled, known_in(answer).as_ref());
                let poisoned = poisoned.map_err(|source| OpenError::Refused { peer: node.0, source })?;
                asked.poisoned = asked.poisoned.max(poisoned);
            }
            // A build of before there were epochs knows nothing.
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(_) => {
                asked.silent.insert(node);
            }
        }
    }
    Ok(asked)
}

/// Tells the peers, as far as they answer at once, that this start ends with a failed write or fsync: the mark on the
/// own disk may not be there.
pub(super) async fn tell_poison(peers: &Peers) {
    let epoch = peers.identity().starts.newest();
    let epoch = epoch.map(|epoch| peer::StartEpoch { number: epoch.number, token: epoch.token });
    let tell = |node: NodeId| async move {
        let poisoned = PoisonedRequest { node: peers.node().0, epoch };
        let told: Result<peer::Done, Status> =
            peers.call(node, Lane::Control, "Poisoned", &poisoned, TELL_TIMEOUT).await;
        if let Err(status) = told {
            tracing::warn!(peer = %node, reason = status.message(), "a peer was not told that the log is poisoned");
        }
    };
    join_all(others(peers).into_iter().map(tell)).await;
}

/// Works while the node runs.
pub(super) struct Admittance {
    pub(super) peers: Arc<Peers>,
    pub(super) meta_group: Arc<Group>,
    pub(super) meta: Arc<RwLock<Meta>>,
    pub(super) store: Arc<dyn StateStore>,
    /// Peers that did not say yet what they know of this node.
    pub(super) silent: BTreeSet<NodeId>,
    /// Number of the last poisoned start that this one knew of when it decided what to trust.
    pub(super) settled: u64,
    /// What the state store holds.
    pub(super) stored: Starts,
}

impl Admittance {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let step = async {
                self.store_news().await;
                if let Err(reason) = self.look().await {
                    self.peers.refuse(reason);
                }
                self.agree().await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = step => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.peers.known().changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn store_news(&mut self) {
        let starts = self.peers.known().all();
        if starts == self.stored {
            return;
        }
        let (store, news) = (Arc::clone(&self.store), starts.clone());
        match blocking::run(store.blocks(), move || KnownStarts::store(store.as_ref(), news)).await {
            Ok(Ok(())) => self.stored = starts,
            Ok(Err(error)) => tracing::warn!(%error, "what is known of the nodes' starts is not stored"),
            Err(error) => tracing::error!(%error, "storing what is known of the nodes' starts panicked"),
        }
    }

    /// What the meta group and those that were silent at the start know of this node.
    ///
    /// # Errors
    /// Why it must stop.
    async fn look(&mut self) -> Result<(), String> {
        let (own, me) = (self.peers.identity(), self.peers.node().0);
        let agreed = judge(&own, self.settled, self.peers.known().of(me).as_ref());
        let agreed = agreed.map_err(|refusal| format!("the cluster refuses this node: {refusal}"))?;
        let asked = ask(&self.peers, &self.silent, &own, self.settled).await;
        let asked = asked.map_err(|error| match error {
            OpenError::Refused { peer, source } => format!("node {peer} refuses this node: {source}"),
            other => other.to_string(),
        })?;
        self.silent = asked.silent;
        // This start's own poison ends it anyway.
        match agreed.max(asked.poisoned).filter(|number| *number < own.starts.number()) {
            None => Ok(()),
            Some(number) => Err(format!(
                "a write or an fsync failed in start epoch {number} of this node, as its peers remember and this start \
                 did not know: what it trusted may be lost; started again, it recovers from them"
            )),
        }
    }

    async fn agree(&self) {
        let agreed = {
            let meta = self.meta.read().unwrap_or_else(PoisonError::into_inner);
            // What the cluster is comes first.
            meta.founding.as_ref().map(|_| meta.starts.clone())
        };
        let Some(agreed) = agreed else { return };
        for command in not_agreed(&agreed, &self.peers.known().all(), self.peers.node().0, &self.peers.identity()) {
            let proposed = self.meta_group.propose_index(&meta_command(&command), PROPOSE_TIMEOUT).await;
            match proposed {
                Ok(index) => drop(self.meta_group.wait_applied(index, PROPOSE_TIMEOUT).await),
                Err(error) => {
                    return tracing::debug!(%error, "the meta group does not know of the nodes' starts yet");
                }
            }
        }
    }
}

/// What the meta group has to be told: this node's own start, and whose log was poisoned.
fn not_agreed(agreed: &Starts, known: &Starts, me: u64, own: &OwnIdentity) -> Vec<MetaCommand> {
    let mut commands = Vec::new();
    if let (Some(disk_id), Some(epoch)) = (own.disk_id.clone(), own.starts.newest())
        && lacks(agreed.get(&me), &disk_id, epoch, |known| known.epoch)
    {
        commands.push(MetaCommand::Started { node: me, disk_id, epoch });
    }
    for (node, known) in known {
        if let Some(epoch) = known.poisoned
            && lacks(agreed.get(node), &known.disk_id, epoch, |known| known.poisoned)
        {
            commands.push(MetaCommand::Poisoned { node: *node, disk_id: known.disk_id.clone(), epoch });
        }
    }
    commands
}

fn lacks(agreed: Option<&Known>, disk_id: &str, epoch: StartEpoch, of: fn(&Known) -> Option<StartEpoch>) -> bool {
    let Some(agreed) = agreed else { return true };
    agreed.disk_id == disk_id && of(agreed).is_none_or(|agreed| agreed.number < epoch.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::StartHistory;

    #[test]
    fn the_meta_group_is_told_what_it_lacks_and_nothing_twice() {
        let epoch = |number| StartEpoch { number, token: 7 };
        let starts = StartHistory::new(2, vec![7, 7]).expect("a history");
        let own = OwnIdentity { disk_id: Some("a".to_owned()), starts };
        let known = |disk: &str, seen, poisoned: Option<u64>| Known {
            disk_id: disk.to_owned(),
            epoch: Some(epoch(seen)),
            poisoned: poisoned.map(epoch),
        };
        let heard = Starts::from([(1, known("a", 2, None)), (2, known("b", 5, None)), (3, known("c", 4, Some(4)))]);
        let started = MetaCommand::Started { node: 1, disk_id: "a".to_owned(), epoch: epoch(2) };
        let poisoned = MetaCommand::Poisoned { node: 3, disk_id: "c".to_owned(), epoch: epoch(4) };
        let told = not_agreed(&Starts::new(), &heard, 1, &own);
        assert_eq!(told, [started.clone(), poisoned.clone()], "node 2 speaks for itself");
        let mut meta = Meta::default();
        for command in told {
            meta.apply(&serde_json::to_string(&command).expect("encodes"));
        }
        assert!(not_agreed(&meta.starts, &heard, 1, &own).is_empty());
        let earlier = Starts::from([(1, known("a", 1, None)), (3, known("c", 5, Some(3)))]);
        assert_eq!(not_agreed(&earlier, &heard, 1, &own), [started, poisoned]);
    }
}
