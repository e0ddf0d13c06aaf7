//! The lake of one process: memtables of all groups, the tasks that build and flush them, and the tables.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use iceberg::spec::{DataFile, ManifestFile, TableMetadata};
use signaldb_catalog::IcebergCatalog;
use signaldb_model::{Clock, GroupId, TableId};
use signaldb_raft::{Group, Groups};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::config::LakeConfig;
use crate::error::LakeError;
use crate::flush::{FlushRequest, Flusher, Known};
use crate::maintain::Maintainer;
use crate::memtable::{GroupMemtable, LogReader, NotBuilt, TableView};
use crate::outage::Outage;
use crate::pointers::TablePointers;
use crate::storage::Store;
use crate::turns::CommitTurns;

mod load;
mod sink;
mod tables;

/// Tables whose parsed metadata is kept; each entry is small beside its manifests.
const METADATA_CACHE_MAX: usize = 256;
/// Manifests whose data files are kept in memory.
const MANIFEST_CACHE_MAX: usize = 4096;
/// Flush requests that may wait; more are refused, for they would only wait for the same cut.
const FLUSH_QUEUE: usize = 64;

/// Memtables, flushes and tables. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lake(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: LakeConfig,
    /// `None` in simulation.
    catalog: Option<IcebergCatalog>,
    pointers: Arc<dyn TablePointers>,
    store: Store,
    clock: Arc<dyn Clock>,
    cpu: tokio::runtime::Handle,
    memtables: RwLock<BTreeMap<GroupId, Arc<GroupMemtable>>>,
    flushers: Mutex<BTreeMap<GroupId, mpsc::Sender<FlushRequest>>>,
    groups: Mutex<BTreeMap<GroupId, OpenGroup>>,
    metadata: Cache<TableMetadata>,
    /// Of the snapshots that were scanned.
    manifest_lists: Cache<Vec<ManifestFile>>,
    manifests: Cache<Vec<DataFile>>,
    /// Last failure of a flush, by group; empty while all is well.
    failures: Mutex<BTreeMap<GroupId, String>>,
    outage: Outage,
    last_flush: Mutex<Option<signaldb_model::UnixNanos>>,
    failure: Mutex<Option<String>>,
    table_turns: Mutex<HashMap<TableId, Arc<tokio::sync::Mutex<()>>>>,
    commit_turns: CommitTurns,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A group that is open, and its log as the memtable reads it.
#[derive(Debug, Clone)]
struct OpenGroup {
    group: Arc<Group>,
    log: Arc<dyn LogReader>,
}

impl Lake {
    /// `cpu` is the runtime that decodes and encodes; acknowledgments never run on it.
    pub fn new(
        config: LakeConfig,
        catalog: IcebergCatalog,
        store: Store,
        clock: Arc<dyn Clock>,
        cpu: tokio::runtime::Handle,
    ) -> Self {
        let pointers = Arc::new(catalog.clone());
        Self::with_pointers(config, catalog, pointers, store, clock, cpu)
    }

    /// The same with another way to the catalog for commits.
    pub(crate) fn with_pointers(
        config: LakeConfig,
        catalog: impl Into<Option<IcebergCatalog>>,
        pointers: Arc<dyn TablePointers>,
        store: Store,
        clock: Arc<dyn Clock>,
        cpu: tokio::runtime::Handle,
    ) -> Self {
        let ttl = config.cache_ttl;
        Self(Arc::new(Inner {
            config,
            catalog: catalog.into(),
            pointers,
            store,
            clock,
            cpu,
            memtables: RwLock::default(),
            flushers: Mutex::default(),
            groups: Mutex::default(),
            metadata: Cache::new(METADATA_CACHE_MAX, ttl),
            manifest_lists: Cache::new(METADATA_CACHE_MAX, ttl),
            manifests: Cache::new(MANIFEST_CACHE_MAX, ttl),
            failures: Mutex::default(),
            outage: Outage::default(),
            last_flush: Mutex::default(),
            failure: Mutex::default(),
            table_turns: Mutex::default(),
            commit_turns: CommitTurns::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// A lake of a simulation: there is no database behind `pointers`, and nothing runs beside the thread that drives `cpu`.
    pub fn simulated(
        config: LakeConfig,
        pointers: Arc<dyn TablePointers>,
        store: Store,
        clock: Arc<dyn Clock>,
        cpu: tokio::runtime::Handle,
    ) -> Self {
        Self::with_pointers(config, None::<IcebergCatalog>, pointers, store, clock, cpu)
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.0.catalog.is_none()
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// # Panics
    /// In simulation.
    pub fn catalog(&self) -> &IcebergCatalog {
        self.0.catalog.as_ref().expect("only a simulation has no database")
    }

    pub(crate) fn pointers(&self) -> &dyn TablePointers {
        self.0.pointers.as_ref()
    }

    pub(crate) fn config(&self) -> &LakeConfig {
        &self.0.config
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    pub(crate) fn cpu(&self) -> &tokio::runtime::Handle {
        &self.0.cpu
    }

    /// Cancelled when the node stops.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Held by whoever maintains the table: two at once would do the same work, and one of them in vain.
    pub(crate) fn table_turn(&self, id: &TableId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.table_turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(id.clone()).or_default())
    }

    /// Held from looking at a table to its swap, by flushes and maintenance alike.
    pub(crate) fn commit_turns(&self) -> &CommitTurns {
        &self.0.commit_turns
    }

    pub(crate) fn memtable(&self, group: GroupId) -> Arc<GroupMemtable> {
        if let Some(found) = self.0.memtables.read().unwrap_or_else(PoisonError::into_inner).get(&group) {
            return Arc::clone(found);
        }
        let mut memtables = self.0.memtables.write().unwrap_or_else(PoisonError::into_inner);
        let memtable = memtables.entry(group).or_insert_with(|| {
            let memtable = Arc::new(GroupMemtable::new(self.0.config.lone_voter));
            self.start_builder(group, Arc::clone(&memtable));
            memtable
        });
        Arc::clone(memtable)
    }

    /// The failure after which the process must stop, if there was one.
    pub fn failure(&self) -> Option<String> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn open_group(&self, group: GroupId) -> Option<OpenGroup> {
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    /// From here on rows of the group that memory had no room for are read back from its `log`.
    pub(crate) fn open_log(&self, group: Arc<Group>, log: Arc<dyn LogReader>) {
        let (id, open) = (group.id(), OpenGroup { group, log });
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(id, open);
        self.note_backlog(&self.memtable(id));
    }

    /// Starts flushing a group that is open, whenever this node leads it.
    pub fn start_flusher(&self, group: Arc<Group>, cluster_id: String) {
        self.open_log(Arc::clone(&group), Arc::<Group>::clone(&group));
        if !self.0.config.lone_voter {
            self.follow_leadership(Arc::clone(&group));
        }
        let (sender, requests) = mpsc::channel(FLUSH_QUEUE);
        self.0.flushers.lock().unwrap_or_else(PoisonError::into_inner).insert(group.id(), sender);
        let flusher = Flusher::new(self.clone(), group, cluster_id);
        self.0.tasks.spawn(flusher.run(requests, self.0.stop.clone()));
    }

    /// Compares the log of a lone voter with every table there is, before it takes rows: a group whose tables know more
    /// than its log halts.
    ///
    /// # Errors
    /// When catalog or store do not answer.
    pub async fn look_ahead(&self, groups: &[Arc<Group>], cluster_id: &str) -> Result<(), LakeError> {
        for group in groups {
            crate::flush::look_ahead(self, group, cluster_id, Known::OrNot).await?;
        }
        Ok(())
    }

    fn follow_leadership(&self, group: Arc<Group>) {
        let (memtable, stop) = (self.memtable(group.id()), self.0.stop.clone());
        let lake = self.clone();
        self.0.tasks.spawn(async move {
            let mut seen = group.leadership();
            loop {
                if seen.here {
                    memtable.activate();
                    lake.note_backlog(&memtable);
                } else {
                    memtable.deactivate();
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = group.leadership_change(seen) => match changed {
                        Ok(now) => seen = now,
                        // The group stopped, and with it the node.
                        Err(_) => return,
                    },
                }
            }
        });
    }

    /// After a start, or where this node leads now: rows of a long outage may be more than memory has room for.
    fn note_backlog(&self, memtable: &GroupMemtable) {
        let backlog = memtable.backlog_bytes();
        if backlog > 0 && backlog.saturating_add(self.unflushed_bytes()) > self.0.config.memtable_bytes_max {
            self.0.outage.fall_behind();
        }
        // Its log can be read now.
        memtable.work.notify_one();
    }

    /// Rows have left memory: others, of any group, may be read back.
    fn note_room(&self) {
        for memtable in self.memtables() {
            if memtable.has_backlog() {
                memtable.work.notify_one();
            }
        }
    }

    /// Starts to look after the tables of the groups that this node leads.
    pub fn start_maintenance(&self, groups: Arc<Groups>) {
        let maintainer = Maintainer::new(self.clone(), groups);
        self.0.tasks.spawn(maintainer.run(self.0.stop.clone()));
    }

    /// Flushes everything that `groups` applied before the call.
    ///
    /// # Errors
    /// [`LakeError::Stopped`] when the node stops first, or the failure of the flush.
    pub async fn flush(&self, groups: &[Arc<Group>]) -> Result<(), LakeError> {
        let mut waiting = Vec::new();
        for group in groups {
            let sender = self.0.flushers.lock().unwrap_or_else(PoisonError::into_inner).get(&group.id()).cloned();
            let sender = sender.ok_or(LakeError::Stopped("the group is not flushed by this node"))?;
            let (done, outcome) = oneshot::channel();
            sender.send(FlushRequest { done }).await.map_err(|_| LakeError::Stopped("the node is stopping"))?;
            waiting.push(outcome);
        }
        for outcome in waiting {
            outcome.await.map_err(|_| LakeError::Stopped("the node is stopping"))??;
        }
        Ok(())
    }

    /// One atomic view of what `group` holds of a table, with rows built up to `index`; `None` when it never had any.
    ///
    /// # Errors
    /// As for [`Self::partial_view`], and [`LakeError::Backlog`] when rows of the table are in the log alone.
    pub async fn view(&self, group: GroupId, id: &TableId, index: u64) -> Result<Option<TableView>, LakeError> {
        let (view, whole) = self.partial_view(group, id, index).await?;
        match whole {
            true => Ok(view),
            false => Err(LakeError::Backlog { bytes: self.memtable(group).backlog_bytes() }),
        }
    }

    /// The same without the rows that are in the log alone; false when the table has, or may have, some.
    ///
    /// # Errors
    /// [`LakeError::Stopped`] when another node leads the group: its rows are built there; [`LakeError::Quarantined`] when a
    /// part of the rows is neither in memory nor in the table.
    pub async fn partial_view(
        &self,
        group: GroupId,
        id: &TableId,
        index: u64,
    ) -> Result<(Option<TableView>, bool), LakeError> {
        if let Some(open) = self.open_group(group)
            && open.group.unreadable().is_some()
        {
            return Err(LakeError::Stopped("the group's log and its tables are not in step"));
        }
        let memtable = self.memtable(group);
        let moved = || LakeError::Stopped("another node leads the group");
        let (view, whole) = match memtable.wait_built(index).await {
            Ok(epoch) => {
                let view = memtable.view(id, epoch);
                // A table without rows and an epoch that is over look the same until here.
                if memtable.epoch() != epoch {
                    return Err(moved());
                }
                (view, true)
            }
            Err(NotBuilt::InLog) => memtable.view_beside_backlog(id, index).ok_or_else(moved)?,
            Err(NotBuilt::Moved) => return Err(moved()),
        };
        // What is put aside does not come back by itself: that says more than where the rest waits.
        match view.as_ref().and_then(|view| view.quarantined.clone()) {
            Some(reason) => Err(LakeError::Quarantined { table: id.to_string(), reason }),
            None => Ok((view, whole)),
        }
    }

    /// Ends the tasks. A flush in flight is abandoned: the next start finds out how far it came.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(Duration::from_secs(2), self.0.tasks.wait()).await.is_err() {
            tracing::warn!("flush tasks did not stop in time");
        }
    }
}
