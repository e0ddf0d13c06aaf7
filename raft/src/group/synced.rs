//! How far a group is on the disks of a majority (DESIGN section 3): the quorum-synced index.
//!
//! At level `quorum` an entry is committed when a majority wrote it; it is on a majority's disks a moment later. What
//! must survive the power loss of all waits for this index: stronger acknowledgments, and Iceberg commits, for a table
//! that is ahead of every log would hide whatever is written at the lost indexes next.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use signaldb_model::NodeId;
use signaldb_proto::peer;
use tokio::sync::{oneshot, watch};

use super::Group;
use crate::error::ReadError;
use crate::peers::Lane;
use crate::recovery::{LeaderVote, SyncedReports};

/// How long a follower may take to sync, and its leader to wait for it.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// What the voters reported to this node's newest leadership.
#[derive(Debug)]
pub(super) struct SyncedQuorum {
    leader: LeaderVote,
    reports: SyncedReports,
    /// Changes with every report.
    changed: watch::Sender<()>,
}

impl Default for SyncedQuorum {
    fn default() -> Self {
        let leader = LeaderVote { term: 0, node: 0 };
        Self { leader, reports: SyncedReports::new(leader), changed: watch::Sender::new(()) }
    }
}

impl SyncedQuorum {
    fn note(&mut self, voter: NodeId, leader: LeaderVote, index: u64) {
        if leader.term > self.leader.term {
            (self.leader, self.reports) = (leader, SyncedReports::new(leader));
        }
        self.reports.report(voter.0, leader, index);
        self.changed.send_replace(());
    }
}

impl Group {
    /// The last index that is on this node's disk.
    pub(crate) fn synced_index(&self) -> u64 {
        self.log.synced_index()
    }

    /// Takes a follower's report to this node as the leader of `term`.
    pub(crate) fn note_synced(&self, follower: NodeId, term: u64, index: u64) {
        self.synced().note(follower, LeaderVote { term, node: self.node.0 }, index);
    }

    fn synced(&self) -> MutexGuard<'_, SyncedQuorum> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The quorum-synced index, as the leader knows it; on other nodes how far their own disk is.
    pub(super) fn quorum_synced_index(&self) -> u64 {
        self.led_synced_index(self.term()).unwrap_or_else(|| self.synced_index())
    }

    /// The quorum-synced index, if this node leads in `term`: what one disk has proves nothing.
    fn led_synced_index(&self, term: u64) -> Option<u64> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if !metrics.state.is_leader() || metrics.current_term != term {
            return None;
        }
        let leader = LeaderVote { term, node: self.node.0 };
        let mut quorum = self.synced();
        if leader.term > quorum.leader.term {
            (quorum.leader, quorum.reports) = (leader, SyncedReports::new(leader));
        }
        quorum.reports.report(self.node.0, leader, self.synced_index());
        Some(quorum.reports.index(metrics.membership_config.membership().get_joint_config()).unwrap_or(0))
    }

    /// Waits, as the leader, until a majority has the committed entry at `index` on disk, and makes them hurry.
    ///
    /// # Errors
    /// When this node does not lead, or a majority does not answer within `timeout`: the entry stays committed.
    ///
    /// Cancel safety: safe.
    pub async fn wait_synced(&self, index: u64, timeout: Duration) -> Result<(), ReadError> {
        let failed = |reason: &str| ReadError::Unavailable { group: self.id.0, reason: reason.to_owned() };
        let mut changed = self.synced().changed.subscribe();
        let not_leading = || ReadError::NoLeader { group: self.id.0 };
        let leading = self.term();
        if self.led_synced_index(leading).ok_or_else(not_leading)? >= index {
            return Ok(());
        }
        let term = self.log.term_at(index).map_err(|error| failed(&error.to_string()))?;
        // Purged entries are in Iceberg, and were synced before.
        let Some(entry_term) = term else { return Ok(()) };
        let voters: Vec<u64> = self.members().into_keys().filter(|node| *node != self.node.0).collect();
        let mut hurried: futures::stream::FuturesUnordered<_> = voters
            .into_iter()
            .map(|node| async move {
                let request = peer::SyncRequest { group: self.id.0, index, term: entry_term };
                let asked = self.peers.call(NodeId(node), Lane::Control, "Sync", &request, SYNC_TIMEOUT).await;
                match asked {
                    Ok(peer::SyncResponse { synced }) => self.note_synced(NodeId(node), leading, synced),
                    Err(status) => tracing::debug!(group = %self.id, node, %status, "follower did not sync"),
                }
            })
            .collect();
        let mut here = std::pin::pin!(self.sync_here(index));
        let mut synced_here = false;
        let waited = tokio::time::timeout(timeout, async {
            while self.led_synced_index(leading).ok_or_else(not_leading)? < index {
                tokio::select! {
                    outcome = &mut here, if !synced_here => {
                        outcome?;
                        synced_here = true;
                    }
                    Some(()) = futures::StreamExt::next(&mut hurried) => {}
                    changed = changed.changed() => changed.map_err(|_| failed("the group stopped"))?,
                }
            }
            Ok(())
        });
        waited.await.map_err(|_| failed("no majority has it on disk in time"))?
    }

    /// Waits until this node has the entry at `index` on disk, and hurries the sync.
    pub(super) async fn sync_here(&self, index: u64) -> Result<(), ReadError> {
        let (sender, receiver) = oneshot::channel();
        self.log.when_synced(index, Box::new(move |outcome| drop(sender.send(outcome))));
        let failed = |reason: String| ReadError::Unavailable { group: self.id.0, reason };
        receiver.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    /// Syncs for a leader whose entry at `index` is of `term`: the logs are the same up to there if this one's is too
    /// (Log Matching Property, Ongaro section 3.5).
    ///
    /// # Errors
    /// When the entry is not here, or is another.
    pub(crate) async fn sync_for_peer(&self, index: u64, term: u64) -> Result<u64, ReadError> {
        let failed = |reason: String| ReadError::Unavailable { group: self.id.0, reason };
        match self.log.term_at(index).map_err(|error| failed(error.to_string()))? {
            Some(found) if found == term => {}
            None if self.log.purged_index() >= index => return Ok(index),
            found => return Err(failed(format!("entry {index} of term {term} is not here, but {found:?}"))),
        }
        tokio::time::timeout(SYNC_TIMEOUT, self.sync_here(index))
            .await
            .map_err(|_| failed("the disk does not sync in time".to_owned()))??;
        // The entry may have been replaced while this waited.
        match self.log.term_at(index) {
            Ok(Some(found)) if found == term => Ok(index),
            _ => Err(failed(format!("entry {index} of term {term} is not here any more"))),
        }
    }
}
