//! What the lake holds, whether there is room for more, and what does not work.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use signaldb_model::{GroupId, TableId};
use signaldb_raft::Append;

use super::Lake;
use crate::memtable::{GroupMemtable, ROW_BYTES_A_REQUEST_BYTE};
use crate::outage::Call;
use crate::quarantine;

impl Lake {
    /// Bytes of rows that are not yet flushed; of those that are not decoded yet, an estimate.
    pub fn unflushed_bytes(&self) -> usize {
        let memtables = self.0.memtables.read().unwrap_or_else(PoisonError::into_inner);
        memtables.values().map(|memtable| memtable.bytes()).sum()
    }

    pub(super) fn memtables(&self) -> Vec<Arc<GroupMemtable>> {
        self.0.memtables.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Bytes of the log that hold rows which are not flushed, of all groups.
    pub fn unflushed_log_bytes(&self) -> usize {
        self.memtables().iter().map(|memtable| memtable.log_bytes()).sum()
    }

    /// A flush is about to ask catalog or store.
    pub(crate) fn call(&self) -> Call<'_> {
        self.0.outage.call(self.0.clock.elapsed())
    }

    /// The same, now and then, for rows that come.
    pub(crate) fn look_for_outage(&self) {
        if !self.0.outage.is_quiet() {
            self.outage_lasts();
        }
    }

    /// Looks whether catalog and store are down, or were and their rows are still to be flushed.
    pub(crate) fn outage_lasts(&self) -> bool {
        let backlog = || self.memtables().iter().any(|memtable| memtable.has_backlog());
        self.0.outage.look(self.0.clock.elapsed(), backlog)
    }

    /// Brings the gauges up to date, for whoever reads metrics next.
    pub fn record_metrics(&self) {
        let memtables = self.memtables();
        let now = self.0.clock.elapsed();
        let ages = memtables.iter().flat_map(|memtable| memtable.loads().into_values());
        crate::metrics::record(&crate::metrics::Sample {
            unflushed_bytes: self.unflushed_bytes(),
            unflushed_bytes_max: self.0.config.memtable_bytes_max,
            oldest: ages.map(|load| now.saturating_sub(load.since)).max().unwrap_or_default(),
            quarantined_tables: self.quarantined().len(),
            failing_groups: self.0.failures.lock().unwrap_or_else(PoisonError::into_inner).len(),
            last_flush: self.last_flush(),
            unflushed_log_bytes: memtables.iter().map(|memtable| memtable.log_bytes()).sum(),
            unflushed_log_bytes_max: self.0.config.log_bytes_max,
            backlog_bytes: memtables.iter().map(|memtable| memtable.backlog_bytes()).sum(),
            cached_metadata: self.0.metadata.len(),
            cached_manifests: self.0.manifests.len(),
            pool: self.catalog().pool_status(),
        });
    }

    /// Why no rows are taken now, if none are; `arriving` bytes of requests will become rows.
    ///
    /// Memory is the limit while catalog and store work: flushing does not keep up, and clients must slow down. While they
    /// are down, and until the rows of that time are flushed, the log's budget is.
    pub fn refusal(&self, arriving: usize) -> Option<&'static str> {
        if self.0.config.log_bytes_max.is_some_and(|limit| self.unflushed_log_bytes() >= limit) {
            return Some(
                "unflushed rows use up the log's budget (wal.max_unflushed): catalog or store are, or were, down",
            );
        }
        if self.has_room(arriving, self.0.config.memtable_bytes_max) || self.outage_lasts() {
            return None;
        }
        Some("unflushed rows, and those that arrive, use up their memory budget: flushing does not keep up")
    }

    /// Whether memtables have room for the rows of `arriving` bytes of requests.
    fn has_room(&self, arriving: usize, limit: usize) -> bool {
        let arriving = arriving.saturating_mul(ROW_BYTES_A_REQUEST_BYTE);
        self.unflushed_bytes().saturating_add(arriving) <= limit
    }

    /// Whether the rows of an entry that was applied go into memory at once. Admission keeps within the limit, but for what
    /// was on its way; a start, and a new leader, find more, and so does whoever takes rows during an outage.
    pub(super) fn takes(&self, append: &Append) -> bool {
        let limit = self.0.config.memtable_bytes_max;
        let limit = if self.0.outage.lasts() { limit } else { limit.saturating_mul(2) };
        self.has_room(append.raw_len as usize, limit)
    }

    /// Groups that may have rows here.
    pub(crate) fn group_count(&self) -> usize {
        self.0.memtables.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// `Ok(true)`: rows were flushed; `Ok(false)`: they could be, or need not be by this node. `outside`: catalog or store
    /// are at fault.
    pub(crate) fn note_flush(&self, group: GroupId, outcome: Result<bool, String>, outside: bool) {
        self.0.outage.note(group, outside);
        let mut failures = self.0.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(flushed) => {
                failures.remove(&group);
                if !flushed {
                    return;
                }
                *self.0.last_flush.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.0.clock.now());
            }
            Err(failure) => drop(failures.insert(group, failure)),
        }
    }

    /// What does not work although writes do: a catalog or store outage, tables in quarantine.
    pub fn degraded(&self) -> Vec<String> {
        let failures = self.0.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = failures.iter().map(|(group, failure)| format!("flush of group {group}: {failure}"));
        let aside = self.quarantined().into_iter().map(|(table, reason)| {
            format!(
                "table {table} is in quarantine, its rows go to {}: {reason}",
                quarantine::prefix(self.store(), &table)
            )
        });
        failing.chain(aside).collect()
    }

    /// Tables whose rows are put aside, with the reasons.
    fn quarantined(&self) -> BTreeMap<TableId, String> {
        let memtables = self.0.memtables.read().unwrap_or_else(PoisonError::into_inner);
        memtables.values().flat_map(|memtable| memtable.quarantined()).collect()
    }

    /// Whether the last flush of some group failed.
    pub(crate) fn is_flush_failing(&self) -> bool {
        !self.0.failures.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub fn last_flush(&self) -> Option<signaldb_model::UnixNanos> {
        *self.0.last_flush.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
