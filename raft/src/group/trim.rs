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
use crate::disk::{DiskLevel, DiskWatch};
use crate::log_store::LogStore;
use crate::state_machine::Shared;
use crate::state_store::StateStore;
use crate::types::{EncodedCommand, Raft};

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
    /// Cuts that are durable snapshots, with the (monotonic) time since when the log behind them is only insurance.
    pub(super) kept: Vec<(Duration, u64)>,
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

    /// Makes a completed cut the durable snapshot. openraft purges only up to a snapshot that it has seen built.
    async fn make_durable(&mut self) -> Result<(), String> {
        let Some(cut) = self.unfinished else { return Ok(()) };
        self.shared.persist_ready(&self.store, self.id).await.map_err(|error| error.to_string())?;
        self.raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
        let built = |metrics: &openraft::RaftMetrics<crate::types::TypeConfig>| {
            metrics.snapshot.is_some_and(|id| id.index >= cut)
        };
        let built = self.raft.wait(Some(SNAPSHOT_TIMEOUT)).metrics(built, "the snapshot is durable").await;
        built.map_err(|error| error.to_string())?;
        self.unfinished = None;
        self.kept.push((self.clock.elapsed(), cut));
        Ok(())
    }

    /// A group without rows is never flushed, yet its few old entries would keep the oldest segment of the disk alive.
    async fn cut_if_idle_and_pinning(&mut self) -> Result<(), String> {
        let idle = self.shared.with_state(|state| state.dirty().next().is_none());
        let leads = self.raft.metrics().borrow_watched().state.is_leader();
        if leads && idle && self.wal.pins_oldest_segment(self.id.0) && self.kept.is_empty() {
            let cut = Command::FlushCut { at: self.shared.with_state(|state| state.now) };
            let written = self.raft.client_write(EncodedCommand(cut.encode())).await;
            written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn purge(&mut self) -> Result<(), String> {
        let nearly_full = *self.disk.borrow() != DiskLevel::Normal;
        let over_budget = nearly_full || self.wal.stats().bytes > self.config.purge_lag_bytes_max;
        let now = self.clock.elapsed();
        let old = |at: Duration| now.saturating_sub(at) >= self.config.purge_lag;
        let purgeable = self.kept.iter().take_while(|(at, _)| over_budget || old(*at)).count();
        match self.kept.drain(..purgeable).next_back() {
            Some((_, upto)) => self.raft.trigger().purge_log(upto).await.map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}
