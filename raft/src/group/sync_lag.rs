//! How long committed entries wait for the disks, and what a group does when that is too long (DESIGN section 3).
//!
//! At level `quorum` the loss of power everywhere loses what is not synced. That is a moment's worth while the disks
//! keep up. When they do not, the group stops counting on them: until they have caught up, entries count as flushed only
//! once they are on this node's disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use signaldb_model::AckLevel;
use tokio_util::sync::CancellationToken;

use super::Group;

/// Lag that alarms and falls back. A leader hears of idle followers' disks with each heartbeat only, so that the bound is
/// no less than two of those.
pub(super) const SYNC_LAG_MAX: Duration = Duration::from_secs(1);
/// How often the lag is looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// Commits that are remembered while syncs hang: four minutes' worth. Later ones are forgotten, the oldest never.
const SEEN_MAX: usize = 1024;

/// On while entries have to be on this node's disk before they count as flushed, although the group's level does not ask
/// for it. Set by [`Group::observe_sync`], read by each append.
#[derive(Debug, Clone, Default)]
pub(crate) struct SyncFallback(Arc<AtomicBool>);

impl SyncFallback {
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, on: bool) {
        self.0.store(on, Ordering::Release);
    }
}

/// Whether the fallback is on next. It ends well below the bound where it begins, so that it does not flutter.
fn falls_back(on: bool, lag: Duration, lag_max: Duration) -> bool {
    if on { lag > lag_max / 2 } else { lag > lag_max }
}

/// When what is not yet synced was committed.
#[derive(Debug, Default)]
pub(super) struct SyncLag {
    /// Times and the commit index then, both ascending.
    seen: VecDeque<(Duration, u64)>,
}

impl SyncLag {
    /// The age of the oldest entry that is committed and not synced, as exact as the calls are frequent.
    fn observe(&mut self, now: Duration, committed: u64, synced: u64) -> Duration {
        let newest = self.seen.back().map_or(0, |(_, index)| *index);
        if synced < committed && newest < committed && self.seen.len() < SEEN_MAX {
            self.seen.push_back((now, committed));
        }
        while self.seen.front().is_some_and(|(_, index)| *index <= synced) {
            self.seen.pop_front();
        }
        self.seen.front().map_or(Duration::ZERO, |(at, _)| now.saturating_sub(*at))
    }
}

impl Group {
    /// Looks how far the disks are behind the commits, and begins or ends the fallback; returns the lag.
    pub(crate) fn observe_sync(&self) -> Duration {
        if self.level != AckLevel::Quorum {
            return Duration::ZERO;
        }
        let committed = self.raft.metrics().borrow_watched().local_committed.map_or(0, |id| id.index);
        let synced = self.quorum_synced_index();
        let now = self.clock.elapsed();
        let lag = self.lag.lock().unwrap_or_else(PoisonError::into_inner).observe(now, committed, synced);
        let on = self.fallback.is_on();
        let next = falls_back(on, lag, self.sync_lag_max);
        if next != on {
            tracing::warn!(group = %self.id, ?lag, fsync_before_ack = next, "syncs are behind, or caught up");
            self.fallback.set(next);
        }
        lag
    }
}

/// Observes all groups until `stop`.
pub(crate) async fn watch_sync(groups: Vec<Arc<Group>>, stop: CancellationToken) {
    let mut due = tokio::time::interval(INTERVAL);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = due.tick() => {}
        }
        for group in &groups {
            group.observe_sync();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_the_oldest_unsynced_commit() {
        let mut lag = SyncLag::default();
        for (at, committed, synced, expected) in [
            (0, 10, 10, 0),
            (100, 20, 10, 0),
            (200, 30, 10, 100),
            (300, 30, 19, 200),
            // 20 is synced, 30 was seen at 200.
            (400, 40, 20, 200),
            (500, 40, 40, 0),
            (900, 41, 40, 0),
        ] {
            let found = lag.observe(Duration::from_millis(at), committed, synced);
            assert_eq!(found, Duration::from_millis(expected), "at {at}");
        }
    }

    #[test]
    fn a_sync_that_hangs_is_remembered_in_bounded_memory() {
        let mut lag = SyncLag::default();
        for at in 0..3 * SEEN_MAX as u64 {
            assert_eq!(lag.observe(Duration::from_secs(at), at + 1, 0), Duration::from_secs(at));
        }
        assert_eq!(lag.seen.len(), SEEN_MAX);
    }

    #[test]
    fn the_fallback_begins_above_the_bound_and_ends_well_below() {
        let max = Duration::from_secs(1);
        for (on, millis, expected) in
            [(false, 1000, false), (false, 1001, true), (true, 900, true), (true, 501, true), (true, 500, false)]
        {
            assert_eq!(falls_back(on, Duration::from_millis(millis), max), expected, "{on} {millis}");
        }
    }
}
