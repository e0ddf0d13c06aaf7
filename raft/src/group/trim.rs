//! Keeping a group's log short: completed cuts become durable snapshots, and the log behind them goes.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use signaldb_model::{Clock, GroupId};
use signaldb_wal::Wal;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{GroupConfig, SNAPSHOT_TIMEOUT};
use crate::command::Command;
use crate::disk::{DiskLevel, DiskWatch, SnapshotRoom};
use crate::log_store::LogStore;
use crate::state_machine::Shared;
use crate::state_store::StateStore;
use crate::types::{EncodedCommand, Raft};

/// A snapshot holds the whole dedup window, so it is not written with each flush: while there is room only after so many times
/// as much log. What is read again at a start, and what snapshots add to what is written, are bounded by that.
const LOG_A_SNAPSHOT: u64 = 4;
/// And so many times in the time for which flushed log is kept, however little is written: the log goes that much later.
const SNAPSHOTS_A_LAG: u32 = 4;

/// Keeps one group's log short.
pub(super) struct Trimmer {
    pub(super) id: GroupId,
    pub(super) raft: Raft,
    pub(super) shared: Arc<Shared>,
    pub(super) store: Arc<dyn StateStore>,
    /// A cut whose snapshot is not durable yet.
    pub(super) unfinished: Option<u64>,
    pub(super) log: LogStore,
    /// Last index of the log at the last tick.
    pub(super) seen: u64,
    pub(super) wal: Arc<Wal>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: GroupConfig,
    pub(super) disk: DiskWatch,
    pub(super) snapshots: Arc<SnapshotRoom>,
    /// Cuts that are durable snapshots, with the (monotonic) time since when the log behind them is only insurance.
    pub(super) kept: Vec<(Duration, u64)>,
    /// When the last of these became one, and how much had been appended by then.
    pub(super) last: Option<(Duration, u64)>,
}

impl Trimmer {
    pub(super) async fn run(mut self, mut completed_cut: watch::Receiver<u64>, stop: CancellationToken) {
        let mut due = tokio::time::interval(self.config.trim_interval);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ticked = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = completed_cut.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.unfinished = Some(*completed_cut.borrow_and_update());
                    false
                }
                changed = self.disk.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
                _ = due.tick() => true,
            };
            // A group without a quorum may never answer.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.trim(ticked) => {}
            }
        }
    }

    async fn trim(&mut self, ticked: bool) {
        if ticked {
            // Quiet for a whole interval: a crash of the machine from here on costs no recovery.
            let last = self.log.last_index();
            if std::mem::replace(&mut self.seen, last) == last {
                self.log.note_idle();
            }
            self.tell_if_stuck();
        }
        let outcome = match self.make_durable().await {
            Ok(()) if ticked => self.cut_if_idle_and_pinning().await,
            outcome => outcome,
        };
        if let Err(error) = outcome {
            tracing::warn!(group = self.id.0, %error, "no snapshot; the log is kept");
        }
        if let Err(error) = self.purge().await {
            tracing::warn!(group = self.id.0, %error, "the log is not purged");
        }
    }

    /// Only more room helps.
    fn tell_if_stuck(&self) {
        let worth = self.unfinished.map(|cut| self.worth(cut));
        if let Some(Worth { takes, left, .. }) = worth.filter(|worth| worth.lacks_room()) {
            tracing::warn!(group = self.id.0, takes, left, "the log is kept: its disk has no room for the snapshot");
        }
    }

    /// Makes a completed cut the durable snapshot. openraft purges only up to a snapshot that it has seen built.
    async fn make_durable(&mut self) -> Result<(), String> {
        let Some(cut) = self.unfinished.filter(|cut| self.worth(*cut).is_a_snapshot()) else { return Ok(()) };
        {
            let _turn = self.snapshots.turn().await;
            // Another group's may have taken the room meanwhile.
            let worth = self.worth(cut);
            if !worth.is_a_snapshot() {
                return Ok(());
            }
            let persisted = self.shared.persist_ready(&self.store, self.id).await;
            self.snapshots.took(worth.takes);
            persisted.map_err(|error| error.to_string())?;
        }
        self.raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
        let built = |metrics: &openraft::RaftMetrics<crate::types::TypeConfig>| {
            metrics.snapshot.is_some_and(|id| id.index >= cut)
        };
        let built = self.raft.wait(Some(SNAPSHOT_TIMEOUT)).metrics(built, "the snapshot is durable").await;
        built.map_err(|error| error.to_string())?;
        self.unfinished = None;
        let now = self.clock.elapsed();
        self.last = Some((now, self.log.appended_bytes()));
        self.kept.push((now, cut));
        Ok(())
    }

    fn worth(&self, cut: u64) -> Worth {
        let since = |(at, appended): (Duration, u64)| Since {
            age: self.clock.elapsed().saturating_sub(at),
            log_bytes: self.log.appended_bytes() - appended,
        };
        let snapshot_bytes = self.shared.ready_bytes() as u64;
        Worth {
            room: self.room(),
            // What is durable already goes first.
            gives_back: if self.kept.is_empty() { self.wal.share_of_purge(self.id.0, cut) } else { 0 },
            snapshot_bytes,
            // One that is durable, of which openraft only has to hear, takes nothing.
            takes: if snapshot_bytes > 0 { self.snapshots.taken_by(snapshot_bytes) } else { 0 },
            left: self.snapshots.left(),
            last: self.last.map(since),
            lag: self.config.purge_lag,
        }
    }

    fn room(&self) -> Room {
        if *self.disk.borrow() != DiskLevel::Normal {
            Room::Little
        } else if self.wal.stats().bytes > self.config.purge_lag_bytes_max {
            Room::TooMuchLog
        } else {
            Room::Enough
        }
    }

    /// A group without rows is never flushed, yet its few old entries would keep the oldest segment of the disk alive.
    async fn cut_if_idle_and_pinning(&mut self) -> Result<(), String> {
        let idle = self.shared.with_state(|state| state.dirty().next().is_none());
        let leads = self.raft.metrics().borrow_watched().state.is_leader();
        let pins = self.wal.pins_oldest_segment(self.id.0) && self.kept.is_empty();
        let waiting = self.unfinished.map(|cut| self.wal.share_of_purge(self.id.0, cut));
        if leads && idle && needs_cut(pins, waiting) {
            let cut = Command::FlushCut { at: self.shared.with_state(|state| state.now) };
            let written = self.raft.client_write(EncodedCommand(cut.encode())).await;
            written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn purge(&mut self) -> Result<(), String> {
        let at_once = self.room() != Room::Enough;
        let now = self.clock.elapsed();
        let old = |at: Duration| now.saturating_sub(at) >= self.config.purge_lag;
        let purgeable = self.kept.iter().take_while(|(at, _)| at_once || old(*at)).count();
        match self.kept.drain(..purgeable).next_back() {
            Some((_, upto)) => self.raft.trigger().purge_log(upto).await.map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

/// Whether an idle group needs a cut, when so much could go with the one that is `waiting` to become durable. One that lets log
/// go is as good as another; without this, each tick would write one more.
fn needs_cut(pins: bool, waiting: Option<u64>) -> bool {
    pins && waiting.is_none_or(|bytes| bytes == 0)
}

/// The room that there is for log, and for snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    /// Log that is only insurance goes whatever its age.
    TooMuchLog,
    /// It does, and snapshots take from the same disk.
    Little,
}

/// What a snapshot costs, and what it gives.
#[derive(Debug, Clone, Copy)]
struct Worth {
    room: Room,
    /// Log that could go with it, if this group pins the oldest segment and nothing that is durable lets it go. Segments are
    /// shared: a group with little log may keep much of others, and all of them may have to let go, so this is the share of one.
    gives_back: u64,
    snapshot_bytes: u64,
    /// Bytes that writing it takes of the disk for a while, and what snapshots may take of it.
    takes: u64,
    left: u64,
    /// `None` before the first one since the start.
    last: Option<Since>,
    lag: Duration,
}

/// What came since the last snapshot.
#[derive(Debug, Clone, Copy)]
struct Since {
    age: Duration,
    log_bytes: u64,
}

impl Worth {
    /// Where there is no room, a snapshot that takes more of it than it gives back would fill the disk that it is to empty: it
    /// has to be smaller than the log. And it has to fit: room comes back only after all groups that share segments have written
    /// theirs.
    /// Source: Ongaro, Consensus: Bridging Theory and Practice, 2014, section 5.1.3.
    fn is_a_snapshot(self) -> bool {
        let Self { room, snapshot_bytes, last, lag, .. } = self;
        let is_due = last.is_none_or(|last| {
            last.age >= lag / SNAPSHOTS_A_LAG || last.log_bytes >= snapshot_bytes.saturating_mul(LOG_A_SNAPSHOT)
        });
        match room {
            Room::Enough => is_due,
            Room::TooMuchLog => is_due || self.gives_room(),
            Room::Little => self.gives_room() && !self.lacks_room(),
        }
    }

    fn gives_room(self) -> bool {
        self.gives_back > 0 && self.gives_back >= self.snapshot_bytes
    }

    /// It would give some, and does not fit.
    fn lacks_room(self) -> bool {
        self.room == Room::Little && self.gives_room() && self.takes > self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOT: u64 = 2 << 20;

    fn after(seconds: u64, log_bytes: u64) -> Worth {
        let last = Some(Since { age: Duration::from_secs(seconds), log_bytes });
        let lag = Duration::from_secs(600);
        let (takes, left) = (3 * SNAPSHOT, u64::MAX);
        Worth { room: Room::Enough, gives_back: 64 << 20, snapshot_bytes: SNAPSHOT, takes, left, last, lag }
    }

    #[test]
    fn while_there_is_room_a_snapshot_waits_for_log_or_for_time() {
        assert!(Worth { last: None, ..after(0, 0) }.is_a_snapshot(), "the first one since the start");
        assert!(!after(0, SNAPSHOT).is_a_snapshot() && !after(149, 4 * SNAPSHOT - 1).is_a_snapshot());
        assert!(after(150, 0).is_a_snapshot());
        assert!(after(0, 4 * SNAPSHOT).is_a_snapshot());
        assert!(Worth { gives_back: 0, ..after(150, 0) }.is_a_snapshot(), "whoever keeps the oldest segment");
        assert!(Worth { lag: Duration::ZERO, ..after(0, 0) }.is_a_snapshot(), "nothing is to be kept");
    }

    #[test]
    fn on_a_full_disk_a_snapshot_must_give_back_more_than_it_takes() {
        let full = |gives_back| Worth { room: Room::Little, gives_back, ..after(600, 100 * SNAPSHOT) };
        assert!(full(SNAPSHOT).is_a_snapshot());
        assert!(!full(SNAPSHOT - 1).is_a_snapshot(), "at any age, and however much log there is");
        assert!(!Worth { last: None, ..full(SNAPSHOT - 1) }.is_a_snapshot(), "nor the first one since the start");
        assert!(!Worth { snapshot_bytes: 0, ..full(0) }.is_a_snapshot(), "nothing would go");
        let little = Worth { room: Room::Little, ..after(0, 0) };
        assert!(little.is_a_snapshot(), "a group that wrote nothing may keep what others wrote");
    }

    #[test]
    fn on_a_full_disk_a_snapshot_must_fit_whatever_it_gives_back() {
        let full = |left| Worth { room: Room::Little, left, ..after(600, 100 * SNAPSHOT) };
        assert!(full(3 * SNAPSHOT).is_a_snapshot());
        assert!(!full(3 * SNAPSHOT - 1).is_a_snapshot());
        assert!(Worth { room: Room::Enough, ..full(0) }.is_a_snapshot(), "more than the reserve is free");
    }

    #[test]
    fn an_idle_group_waits_for_the_cut_that_it_has() {
        assert!(needs_cut(true, None) && !needs_cut(false, None));
        assert!(!needs_cut(true, Some(1)));
        assert!(needs_cut(true, Some(0)), "that one is too old, or taken over by a snapshot of the leader");
    }

    #[test]
    fn more_log_than_is_to_be_kept_goes_on_becoming_snapshots_by_time() {
        let long = |worth: Worth| Worth { room: Room::TooMuchLog, ..worth };
        assert!(long(after(0, 0)).is_a_snapshot(), "it gives much back");
        let little = Worth { gives_back: SNAPSHOT - 1, ..after(149, 0) };
        assert!(!long(little).is_a_snapshot());
        assert!(long(Worth { gives_back: 0, ..after(150, 0) }).is_a_snapshot(), "there is room for it");
    }
}
