//! Keeping tables in shape, one at a time: the leader of a table's owner group does it, in the background.
//!
//! A visit of a table tells its group of commits that it does not know, removes what is too old, merges small files,
//! drops old snapshots, and now and then deletes files that nobody needs ([`Upkeep`]). Whatever a node believes about its
//! leadership, a commit holds only on the base that it was made for; a flush that comes between wins. What an operator asks
//! for ([`TableTask`]) takes the same steps.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use signaldb_model::TableId;
use signaldb_raft::{Command, Group, GroupState, Groups};
use signaldb_signals::SignalTable;
use tokio_util::sync::CancellationToken;

use crate::error::LakeError;
use crate::flush::{chain, is_of_log};
use crate::lake::Lake;
use crate::orphans::Seen;
use crate::{metrics, quarantine, table};

mod task;
mod upkeep;

#[cfg(test)]
mod exactly_once;
#[cfg(test)]
mod tests;

pub use task::{TableTask, Task, TaskReport};
pub(crate) use upkeep::Upkeep;

/// How long a proposal may take.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Rewrites of one table before the next has its turn.
const REWRITES_A_VISIT: usize = 4;
/// After a rewrite the node rests as long as it took, at most this: half a core, not a whole one.
const REST_MAX: Duration = Duration::from_secs(30);

/// Looks after the tables whose owner group this node leads.
pub(crate) struct Maintainer {
    lake: Lake,
    groups: Arc<Groups>,
    notes: HashMap<TableId, Notes>,
}

/// What is remembered of a table from visit to visit.
#[derive(Default)]
struct Notes {
    /// Leadership that `seen` was seen in.
    term: u64,
    seen: Seen,
    /// When its files were listed, by the process's clock.
    listed: Option<Duration>,
}

impl Maintainer {
    pub(crate) fn new(lake: Lake, groups: Arc<Groups>) -> Self {
        Self { lake, groups, notes: HashMap::new() }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let interval = self.lake.config().compaction.interval.max(Duration::from_millis(10));
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            // Cut off anywhere: what is not committed never happened, what is not announced is at the next visit.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = Box::pin(self.visit_all(&stop)) => {}
            }
        }
    }

    async fn visit_all(&mut self, stop: &CancellationToken) {
        let owned = self.owned();
        self.notes.retain(|id, _| owned.iter().any(|(_, owned)| owned == id));
        let (mut pending, mut waiting) = (0, 0);
        for (group, id) in owned {
            if is_busy(&self.lake) {
                metrics::note_paused();
                return;
            }
            // An operator's task has the table.
            let Ok(_turn) = self.lake.table_turn(&id).try_lock_owned() else { continue };
            let notes = self.notes.entry(id.clone()).or_default();
            let cluster_id = &self.groups.founding().cluster_id;
            let visit = Visit { lake: &self.lake, group: &group, cluster_id, id: &id };
            match Box::pin(visit.run(notes, stop)).await {
                Ok(left) => pending += left,
                Err(error) => {
                    metrics::note_maintenance_failure(&error);
                    tracing::warn!(table = %id, error = %chain(&error), "table maintenance failed; it is tried again");
                }
            }
            waiting += notes.seen.len();
        }
        metrics::record_maintenance(pending, waiting);
    }

    /// Tables whose owner group this node leads, each with that group. The first of a tenant's groups owns its tables.
    fn owned(&self) -> Vec<(Arc<Group>, TableId)> {
        let mut owned = Vec::new();
        for group in self.groups.data_groups().filter(|group| group.is_leader() && is_in_step(group)) {
            let tables: Vec<TableId> = group.with_state(|state| state.tables.keys().cloned().collect());
            let mine =
                |id: &TableId| self.groups.homes(&id.tenant).first().is_some_and(|owner| owner.id() == group.id());
            owned.extend(tables.into_iter().filter(mine).map(|id| (Arc::clone(group), id)));
        }
        owned
    }
}

/// Where log and tables are not in step, nothing is touched.
fn is_in_step(group: &Group) -> bool {
    group.halted().is_none() && group.with_state(|state| state.unsettled().is_none())
}

/// Whether flushing needs the memory, the catalog or the store for itself.
fn is_busy(lake: &Lake) -> bool {
    lake.unflushed_bytes() > lake.config().memtable_bytes_max / 2 || lake.is_flush_failing()
}

/// One visit of one table.
struct Visit<'a> {
    lake: &'a Lake,
    group: &'a Group,
    cluster_id: &'a str,
    id: &'a TableId,
}

impl Visit<'_> {
    /// Returns how many rewrites are left to do.
    async fn run(&self, notes: &mut Notes, stop: &CancellationToken) -> Result<usize, LakeError> {
        let Some(table) = SignalTable::from_code(self.id.code) else { return Ok(0) };
        let upkeep = Upkeep { lake: self.lake, id: self.id, table };
        if !self.begin(&upkeep).await? {
            return Ok(0);
        }
        self.announce(upkeep.retire().await?).await?;
        let left = if self.lake.config().compaction.enabled { self.compact(&upkeep, stop).await? } else { 0 };
        self.announce(upkeep.expire().await?).await?;
        let term = self.group.term();
        if notes.term != term {
            // Another leader may have committed what this node took for an orphan.
            *notes = Notes { term, ..Notes::default() };
        }
        let now = self.lake.clock().elapsed();
        let interval = self.lake.config().retention.collect_interval;
        if notes.listed.is_none_or(|listed| now.saturating_sub(listed) >= interval) && self.group.is_leader() {
            notes.listed = Some(now);
            self.announce(upkeep.collect(&mut notes.seen).await?).await?;
        }
        Ok(left)
    }

    /// Brings log and table together before anything is done; false when there is no table.
    async fn begin(&self, upkeep: &Upkeep<'_>) -> Result<bool, LakeError> {
        let Some((location, metadata)) = upkeep.current().await? else { return Ok(false) };
        let known = |state: &GroupState| state.tables.get(self.id).is_some_and(|known| known.quarantined.is_some());
        if self.group.with_state(known) || quarantine::altered(&metadata, upkeep.table).is_some() {
            // Somebody else's, or not what our files fit into.
            return Ok(false);
        }
        if !is_of_log(&metadata, self.cluster_id, self.group, self.id)? {
            return Err(LakeError::Stopped("the table is ahead of the group's log"));
        }
        // After a commit without an announcement, or somebody else's.
        self.announce(Some(location)).await?;
        Ok(true)
    }

    async fn compact(&self, upkeep: &Upkeep<'_>, stop: &CancellationToken) -> Result<usize, LakeError> {
        let rewrites = upkeep.rewrites().await?;
        let mut left = rewrites.len();
        for rewrite in rewrites.into_iter().take(REWRITES_A_VISIT) {
            if !self.group.is_leader() {
                break;
            }
            let begun = self.lake.clock().elapsed();
            match upkeep.rewrite(&rewrite, stop).await {
                Ok(compacted) => {
                    left -= 1;
                    self.announce(compacted.map(|compacted| compacted.location)).await?;
                }
                // Catalog and store are everybody's.
                Err(error @ (LakeError::Catalog(_) | LakeError::Store(_) | LakeError::Stopped(_))) => {
                    return Err(error);
                }
                Err(error) => {
                    metrics::note_maintenance_failure(&error);
                    let (day, error) = (rewrite.day, chain(&error));
                    tracing::error!(table = %self.id, day, %error, "data files cannot be compacted");
                }
            }
            let took = self.lake.clock().elapsed().saturating_sub(begun);
            metrics::note_rewrite_took(took);
            tokio::time::sleep(took.min(REST_MAX)).await;
        }
        Ok(left)
    }

    /// Tells the group's replicas, and through them every reader, where the table is now.
    async fn announce(&self, location: Option<String>) -> Result<(), LakeError> {
        let Some(location) = location else { return Ok(()) };
        let version = table::version_of(&location);
        let known = self.group.with_state(|state| state.tables.get(self.id).map_or(-1, |table| table.version));
        if version < known {
            return self.expect_ahead(known).await;
        }
        if version > known {
            let advanced = Command::TableAdvanced { table: self.id.clone(), version, location };
            self.group.propose_index(&advanced, PROPOSE_TIMEOUT).await?;
        }
        Ok(())
    }

    /// A flush that came after a look at the catalog may have been told of before it; or the table was put back.
    async fn expect_ahead(&self, known: i64) -> Result<(), LakeError> {
        let table = SignalTable::from_code(self.id.code).map_or("", SignalTable::name);
        let location = self.lake.pointers().load(&self.id.namespace(), table).await?;
        match location {
            Some(location) if table::version_of(&location) >= known => Ok(()),
            _ => Err(LakeError::Stopped("the catalog names an older version of the table than the log")),
        }
    }
}
