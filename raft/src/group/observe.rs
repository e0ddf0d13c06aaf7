//! What a group tells about itself when somebody asks for metrics.

use std::collections::BTreeMap;

use openraft::async_runtime::WatchReceiver;
use signaldb_model::NodeId;

use super::Group;
use crate::metrics::Sample;

impl Group {
    /// Brings the group's gauges up to date.
    pub(crate) fn record_metrics(&self) {
        self.meters.record(&Sample {
            status: self.status(),
            has_leader: self.has_leader(),
            recovering: self.is_recovering(),
            sync_lag: self.observe_sync(),
            fsync_before_ack: self.fallback.is_on(),
            uncommitted_bytes: self.admission.used(),
            snapshot_bytes: self.shared.snapshot_bytes(),
            follower_lags: self.follower_lags(),
        });
    }

    /// Entries that each other member is behind; empty unless this node leads.
    fn follower_lags(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let last = metrics.last_log_index.unwrap_or(0);
        let others = metrics.replication.iter().flatten().filter(|(node, _)| **node != self.node.0);
        others.map(|(node, matched)| (NodeId(*node), last.saturating_sub(matched.map_or(0, |id| id.index)))).collect()
    }
}
