//! What the groups of a node tell about themselves, as `signaldb_raft_*` (docs/monitoring.md).
//!
//! Labels are bounded: `group` by the groups of the cluster (at most 65), `node` by the members of a group. Handles are
//! registered once a group; gauges are set when somebody asks ([`crate::Groups::record_metrics`]).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use signaldb_model::{GroupId, NodeId};

use crate::admission::Admission;
use crate::error::{RejectReason, WriteError};
use crate::group::{GroupStatus, Leadership};

/// Help texts, for the recorder that is installed; call it once, after that.
pub fn describe() {
    describe_gauge!("signaldb_raft_is_leader", "1 while this node leads the group.");
    describe_gauge!("signaldb_raft_has_leader", "1 while this node leads the group, or heard from its leader lately.");
    describe_gauge!("signaldb_raft_recovering", "1 while this replica may have lost entries and must not vote.");
    describe_gauge!("signaldb_raft_term", "Raft term.");
    describe_gauge!("signaldb_raft_last_log_index", "Index of the last entry of this node's log.");
    describe_gauge!("signaldb_raft_commit_index", "Index up to which this node knows entries as committed.");
    describe_gauge!("signaldb_raft_applied_index", "Index up to which this node applied entries.");
    describe_gauge!(
        "signaldb_raft_synced_index",
        "Index up to which entries are on the disks of a majority (leader), or on this node's disk (others)."
    );
    describe_gauge!("signaldb_raft_flushed_index", "Index up to which all rows are in Iceberg.");
    describe_gauge!("signaldb_raft_purged_index", "Index up to which the log holds nothing any more.");
    describe_gauge!("signaldb_raft_follower_lag_entries", "Entries that a member is behind; 0 unless this node leads.");
    describe_gauge!(
        "signaldb_raft_sync_lag_seconds",
        Unit::Seconds,
        "How long the oldest committed entry has not been known to be synced; quorum groups only."
    );
    describe_gauge!(
        "signaldb_raft_fsync_before_ack",
        "1 while a quorum group waits for this node's disk before entries count, because syncs are too far behind."
    );
    describe_gauge!("signaldb_raft_uncommitted_bytes", Unit::Bytes, "Bytes that the group's leader has in flight.");
    describe_gauge!("signaldb_raft_node_uncommitted_bytes", Unit::Bytes, "The same over all groups of this node.");
    describe_gauge!(
        "signaldb_raft_waiting_bytes",
        Unit::Bytes,
        "Bytes of requests of this node that are on their way to a leader, or look for one."
    );
    describe_gauge!("signaldb_raft_snapshot_bytes", Unit::Bytes, "Size of the durable snapshot.");
    describe_counter!(
        "signaldb_raft_snapshots_total",
        "Snapshots made durable: built here, or installed from a leader."
    );
    describe_counter!("signaldb_raft_elections_total", "Terms that this node saw begin, with or without a winner.");
    describe_counter!("signaldb_raft_leader_changes_total", "Leaderships that this node saw begin.");
    describe_counter!(
        "signaldb_raft_proposals_total",
        "Writes through this node by outcome: committed, unknown, or rejected with its reason."
    );
    describe_histogram!(
        "signaldb_raft_propose_duration_seconds",
        Unit::Seconds,
        "From a write's arrival in the group to its commit and apply, over all attempts; committed writes only."
    );
    describe_gauge!(
        "signaldb_raft_append_bytes_in_flight",
        Unit::Bytes,
        "Bytes of appends that a follower has not answered yet."
    );
    describe_counter!(
        "signaldb_dedup_window_shortened_total",
        "Times that a full dedup window dropped its oldest entries early."
    );
    counter!("signaldb_dedup_window_shortened_total").increment(0);
}

/// How a snapshot became durable.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SnapshotKind {
    Built,
    Installed,
}

impl SnapshotKind {
    fn name(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Installed => "installed",
        }
    }
}

/// Counts a durable snapshot; rare enough to look its counter up.
pub(crate) fn note_snapshot(group: GroupId, kind: SnapshotKind) {
    snapshots(group, kind).increment(1);
}

fn snapshots(group: GroupId, kind: SnapshotKind) -> Counter {
    counter!("signaldb_raft_snapshots_total", "group" => group.0.to_string(), "kind" => kind.name())
}

/// Bytes on the way to one follower of a group.
pub(crate) fn appends_in_flight(group: GroupId, node: NodeId) -> Gauge {
    gauge!("signaldb_raft_append_bytes_in_flight", "group" => group.0.to_string(), "node" => node.0.to_string())
}

/// Brings the gauges that no group has for itself up to date.
pub(crate) fn record_node(uncommitted: &Admission, waiting: &Admission) {
    gauge!("signaldb_raft_node_uncommitted_bytes").set(uncommitted.used() as f64);
    gauge!("signaldb_raft_waiting_bytes").set(waiting.used() as f64);
}

/// A group at one moment.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) status: GroupStatus,
    pub(crate) has_leader: bool,
    pub(crate) recovering: bool,
    pub(crate) sync_lag: Duration,
    pub(crate) fsync_before_ack: bool,
    pub(crate) uncommitted_bytes: usize,
    pub(crate) snapshot_bytes: usize,
    /// Entries that each other member is behind; empty unless this node leads.
    pub(crate) follower_lags: BTreeMap<NodeId, u64>,
}

/// The elections and leaderships that were counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeenLeadership {
    term: u64,
    last: Option<(u64, NodeId)>,
}

impl SeenLeadership {
    /// Elections up to `term` are not this process's.
    pub(crate) fn since(term: u64) -> Self {
        Self { term, last: None }
    }

    /// The terms and the leaderships that are new.
    fn see(&mut self, now: Leadership) -> (u64, u64) {
        let elections = now.term.saturating_sub(self.term);
        self.term = self.term.max(now.term);
        let leads = now.leader.map(|leader| (now.term, leader));
        let changed = leads.is_some() && leads != self.last;
        self.last = leads.or(self.last);
        (elections, u64::from(changed))
    }
}

/// Handles of one group.
#[derive(Debug)]
pub(crate) struct GroupMeters {
    group: String,
    is_leader: Gauge,
    has_leader: Gauge,
    recovering: Gauge,
    term: Gauge,
    last_log_index: Gauge,
    commit_index: Gauge,
    applied_index: Gauge,
    synced_index: Gauge,
    flushed_index: Gauge,
    purged_index: Gauge,
    sync_lag: Gauge,
    fsync_before_ack: Gauge,
    uncommitted_bytes: Gauge,
    snapshot_bytes: Gauge,
    followers: Mutex<BTreeMap<NodeId, Gauge>>,
    elections: Counter,
    leader_changes: Counter,
    committed: Counter,
    unknown: Counter,
    rejected: BTreeMap<&'static str, Counter>,
    propose_duration: Histogram,
}

impl GroupMeters {
    pub(crate) fn register(id: GroupId) -> Self {
        let group = id.0.to_string();
        let one = |name: &'static str| gauge!(name, "group" => group.clone());
        let total = |name: &'static str| counter!(name, "group" => group.clone());
        let outcome = |outcome: &'static str| {
            let labels = [("group", group.clone()), ("outcome", outcome.to_owned())];
            counter!("signaldb_raft_proposals_total", &labels)
        };
        let rejected = |reason: &'static str| {
            let labels = [("group", group.clone()), ("outcome", "rejected".to_owned()), ("reason", reason.to_owned())];
            (reason, counter!("signaldb_raft_proposals_total", &labels))
        };
        for kind in [SnapshotKind::Built, SnapshotKind::Installed] {
            snapshots(id, kind).increment(0);
        }
        Self {
            is_leader: one("signaldb_raft_is_leader"),
            has_leader: one("signaldb_raft_has_leader"),
            recovering: one("signaldb_raft_recovering"),
            term: one("signaldb_raft_term"),
            last_log_index: one("signaldb_raft_last_log_index"),
            commit_index: one("signaldb_raft_commit_index"),
            applied_index: one("signaldb_raft_applied_index"),
            synced_index: one("signaldb_raft_synced_index"),
            flushed_index: one("signaldb_raft_flushed_index"),
            purged_index: one("signaldb_raft_purged_index"),
            sync_lag: one("signaldb_raft_sync_lag_seconds"),
            fsync_before_ack: one("signaldb_raft_fsync_before_ack"),
            uncommitted_bytes: one("signaldb_raft_uncommitted_bytes"),
            snapshot_bytes: one("signaldb_raft_snapshot_bytes"),
            followers: Mutex::default(),
            elections: total("signaldb_raft_elections_total"),
            leader_changes: total("signaldb_raft_leader_changes_total"),
            committed: outcome("committed"),
            unknown: outcome("unknown"),
            rejected: RejectReason::NAMES.into_iter().map(rejected).collect(),
            propose_duration: histogram!("signaldb_raft_propose_duration_seconds", "group" => group.clone()),
            group,
        }
    }

    /// Brings the gauges up to date.
    pub(crate) fn record(&self, sample: &Sample) {
        let status = &sample.status;
        self.is_leader.set(f64::from(status.state == "leader"));
        self.has_leader.set(f64::from(sample.has_leader));
        self.recovering.set(f64::from(sample.recovering));
        self.term.set(status.term as f64);
        self.last_log_index.set(status.last_log_index as f64);
        self.commit_index.set(status.commit_index as f64);
        self.applied_index.set(status.applied_index as f64);
        self.synced_index.set(status.synced_index as f64);
        self.flushed_index.set(status.flushed_index as f64);
        self.purged_index.set(status.purged_index as f64);
        self.sync_lag.set(sample.sync_lag.as_secs_f64());
        self.fsync_before_ack.set(f64::from(sample.fsync_before_ack));
        self.uncommitted_bytes.set(sample.uncommitted_bytes as f64);
        self.snapshot_bytes.set(sample.snapshot_bytes as f64);
        self.record_followers(&sample.follower_lags);
    }

    /// A gauge never goes away: one of a member that is gone, or that another node leads now, shows 0.
    fn record_followers(&self, lags: &BTreeMap<NodeId, u64>) {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        for node in lags.keys() {
            followers.entry(*node).or_insert_with(|| {
                let (group, node) = (self.group.clone(), node.0.to_string());
                gauge!("signaldb_raft_follower_lag_entries", "group" => group, "node" => node)
            });
        }
        for (node, gauge) in followers.iter() {
            gauge.set(lags.get(node).map_or(0.0, |lag| *lag as f64));
        }
    }

    /// Counts what `now` has that was not `seen` before.
    pub(crate) fn note_leadership(&self, seen: &mut SeenLeadership, now: Leadership) {
        let (elections, changes) = seen.see(now);
        self.elections.increment(elections);
        self.leader_changes.increment(changes);
    }

    /// Counts a write that ended, well or with `failure`.
    pub(crate) fn note_proposal(&self, failure: Option<&WriteError>, took: Duration) {
        match failure {
            None => {
                self.committed.increment(1);
                self.propose_duration.record(took.as_secs_f64());
            }
            Some(WriteError::Unknown(_)) => self.unknown.increment(1),
            Some(WriteError::Rejected(reason)) => {
                if let Some(counter) = self.rejected.get(reason.name()) {
                    counter.increment(1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elections_are_terms_and_leader_changes_are_leaderships() {
        let mut seen = SeenLeadership::since(7);
        for (term, leader, expected) in [
            (7, None, (0, 0)),
            (8, Some(2), (1, 1)),
            (8, Some(2), (0, 0)),
            // Two elections without a winner, then the same node again.
            (10, None, (2, 0)),
            (10, Some(2), (0, 1)),
            // Its name was gone for a moment.
            (10, None, (0, 0)),
            (10, Some(2), (0, 0)),
            (12, Some(3), (2, 1)),
        ] {
            let now = Leadership { term, leader: leader.map(NodeId), here: false };
            assert_eq!(seen.see(now), expected, "{term} {leader:?}");
        }
    }

    #[test]
    fn every_reason_has_a_counter() {
        let meters = GroupMeters::register(GroupId(1));
        for reason in [
            RejectReason::NoLeader { group: 1 },
            RejectReason::Throttled { bytes: 1, limit: 1, retry_after: Duration::ZERO },
            RejectReason::TooLarge { bytes: 1, limit: 1 },
            RejectReason::Stopping,
            RejectReason::Busy(String::new()),
            RejectReason::Halted(String::new()),
            RejectReason::DiskReserve,
            RejectReason::Undecodable(String::new()),
        ] {
            assert!(meters.rejected.contains_key(reason.name()), "{reason}");
        }
    }
}
