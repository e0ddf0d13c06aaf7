//! The lake of one process: memtables of all groups, the tasks that build and flush them, and the tables.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{
    DataFile, FormatVersion, Manifest, ManifestContentType, ManifestFile, ManifestList, Snapshot, TableMetadata,
};
use signaldb_catalog::{CatalogError, IcebergCatalog, Swap, SwapOutcome};
use signaldb_model::{Clock, DatasetId, GroupId, TableId, TenantId};
use signaldb_raft::state::GroupState;
use signaldb_raft::{Append, ApplySink, Group, Groups, TableState};
use signaldb_signals::SignalTable;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::config::LakeConfig;
use crate::error::LakeError;
use crate::flush::{FlushRequest, Flusher, Known};
use crate::maintain::Maintainer;
use crate::memtable::{GroupMemtable, LogReader, NotBuilt, ROW_BYTES_A_REQUEST_BYTE, TableView};
use crate::metadata::{Base, Change, Seeds, Staged, manifests_to_load, next_metadata};
use crate::names;
use crate::orphans::COMMIT_WITHIN;
use crate::outage::{Call, Outage};
use crate::pointers::TablePointers;
use crate::quarantine;
use crate::storage::Store;
use crate::table;

/// Tables whose parsed metadata is kept; each entry is small beside its manifests.
const METADATA_CACHE_MAX: usize = 256;
/// Manifests whose data files are kept in memory.
const MANIFEST_CACHE_MAX: usize = 4096;
/// Manifests that are read at the same time.
const READS_AT_ONCE: usize = 8;
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
    groups: Mutex<BTreeMap<GroupId, Arc<Group>>>,
    metadata: Cache<TableMetadata>,
    manifests: Cache<Vec<DataFile>>,
    /// Last failure of a flush, by group; empty while all is well.
    failures: Mutex<BTreeMap<GroupId, String>>,
    outage: Outage,
    last_flush: Mutex<Option<signaldb_model::UnixNanos>>,
    failure: Mutex<Option<String>>,
    table_turns: Mutex<HashMap<TableId, Arc<tokio::sync::Mutex<()>>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
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
            manifests: Cache::new(MANIFEST_CACHE_MAX, ttl),
            failures: Mutex::default(),
            outage: Outage::default(),
            last_flush: Mutex::default(),
            failure: Mutex::default(),
            table_turns: Mutex::default(),
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

    /// One task a group decodes what was applied; while it works, more piles up and is decoded together.
    fn start_builder(&self, group: GroupId, memtable: Arc<GroupMemtable>) {
        let lake = self.clone();
        let build = async move {
            loop {
                tokio::select! {
                    biased;
                    () = lake.0.stop.cancelled() => return,
                    () = memtable.work.notified() => {}
                }
                let log = lake.log(group);
                let log = log.as_ref().map(|log| log as &dyn LogReader);
                let room = || lake.unflushed_bytes() < lake.0.config.memtable_bytes_max;
                let built = std::panic::AssertUnwindSafe(|| memtable.build(lake.0.clock.elapsed(), log, &room));
                let built = std::panic::catch_unwind(built);
                if let Err(reason) = built.unwrap_or_else(|panic| Err(panic_text(panic.as_ref()).to_owned())) {
                    // Rows that were acknowledged cannot be shown: better no node than one that leaves them out.
                    let failure = format!("rows of group {group} cannot be decoded: {reason}");
                    *lake.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                    return;
                }
            }
        };
        self.0.tasks.spawn_on(build, &self.0.cpu);
    }

    /// The failure after which the process must stop, if there was one.
    pub fn failure(&self) -> Option<String> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn log(&self, group: GroupId) -> Option<GroupLog> {
        let groups = self.0.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(&group).cloned().map(GroupLog)
    }

    /// Starts flushing a group that is open, whenever this node leads it.
    pub fn start_flusher(&self, group: Arc<Group>, cluster_id: String) {
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(group.id(), Arc::clone(&group));
        if !self.0.config.lone_voter {
            self.follow_leadership(Arc::clone(&group));
        }
        self.note_backlog(&self.memtable(group.id()));
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
    /// [`LakeError::Stopped`] when another node leads the group: its rows are built there; [`LakeError::Quarantined`] when a
    /// part of the rows is neither in memory nor in the table; [`LakeError::Backlog`] when some of them are in the log alone.
    pub async fn view(&self, group: GroupId, id: &TableId, index: u64) -> Result<Option<TableView>, LakeError> {
        if let Some(log) = self.log(group)
            && log.0.unreadable().is_some()
        {
            return Err(LakeError::Stopped("the group's log and its tables are not in step"));
        }
        let memtable = self.memtable(group);
        let in_quarantine = |reason| LakeError::Quarantined { table: id.to_string(), reason };
        let not_built = |reason| match reason {
            NotBuilt::Moved => LakeError::Stopped("another node leads the group"),
            // What is put aside does not come back by itself.
            NotBuilt::InLog => memtable.quarantine_of(id).map_or(LakeError::Backlog, in_quarantine),
        };
        let epoch = memtable.wait_built(index).await.map_err(not_built)?;
        let view = memtable.view(id, epoch);
        // A table without rows and an epoch that is over look the same until here.
        if memtable.epoch() != epoch {
            return Err(not_built(NotBuilt::Moved));
        }
        match view.as_ref().and_then(|view| view.quarantined.clone()) {
            Some(reason) => Err(in_quarantine(reason)),
            None => Ok(view),
        }
    }

    /// Parsed metadata at `location`, from memory if it was read before: files never change.
    pub async fn metadata_at(&self, location: &str) -> Result<Arc<TableMetadata>, LakeError> {
        if let Some(found) = self.0.metadata.get(location, self.0.clock.elapsed()) {
            return Ok(found);
        }
        let content = self.0.store.read(location).await?;
        let metadata: TableMetadata = serde_json::from_slice(&content).map_err(iceberg::Error::from)?;
        let metadata = Arc::new(metadata);
        self.remember(location, Arc::clone(&metadata));
        Ok(metadata)
    }

    /// Where a table's metadata is now and what it says, by one read of the catalog; `None` when there is no such table.
    ///
    /// # Errors
    /// When catalog or store do not answer.
    pub async fn current_table(
        &self,
        namespace: &str,
        table: &str,
    ) -> Result<Option<(String, Arc<TableMetadata>)>, LakeError> {
        let Some(location) = self.0.pointers.load(namespace, table).await? else { return Ok(None) };
        let metadata = self.metadata_at(&location).await?;
        Ok(Some((location, metadata)))
    }

    pub(crate) async fn manifests(&self, metadata: &TableMetadata) -> Result<Vec<ManifestFile>, LakeError> {
        match metadata.current_snapshot() {
            Some(snapshot) => self.manifests_of(snapshot).await,
            None => Ok(Vec::new()),
        }
    }

    async fn manifests_of(&self, snapshot: &Snapshot) -> Result<Vec<ManifestFile>, LakeError> {
        let list = self.0.store.read(snapshot.manifest_list()).await?;
        Ok(ManifestList::parse_with_version(&list, FormatVersion::V2)?.entries().to_vec())
    }

    /// The version of the table after the one at `location`: every file that must be written before the swap.
    ///
    /// # Errors
    /// As [`next_metadata`], or when the store cannot be read.
    pub(crate) async fn stage(
        &self,
        metadata: &TableMetadata,
        location: &str,
        change: Change,
    ) -> Result<Staged, LakeError> {
        let manifests = self.manifests(metadata).await?;
        let wanted: Vec<String> =
            manifests_to_load(&manifests, &change).iter().map(|manifest| manifest.manifest_path.clone()).collect();
        let loaded = stream::iter(wanted).map(|path| async move {
            let content = self.0.store.read(&path).await?;
            Ok::<_, LakeError>((path, Manifest::parse_avro(&content)?))
        });
        let loaded: HashMap<String, Manifest> = loaded.buffer_unordered(READS_AT_ONCE).try_collect().await?;
        let seeds = Seeds {
            snapshot_id: (uuid::Uuid::new_v4().as_u128() as i64) & i64::MAX,
            commit: uuid::Uuid::new_v4(),
            metadata: uuid::Uuid::new_v4(),
            now_ms: self.0.clock.now().millis(),
        };
        Ok(next_metadata(Base { metadata, location, manifests, loaded }, change, seeds)?)
    }

    /// Every file that this version of a table needs: its own, those of its log, and all that its snapshots reach.
    ///
    /// # Errors
    /// When one of them cannot be read: nobody can say then what is needed.
    pub(crate) async fn reachable(
        &self,
        metadata: &TableMetadata,
        location: &str,
    ) -> Result<HashSet<String>, LakeError> {
        let lists: Vec<String> = metadata.snapshots().map(|snapshot| snapshot.manifest_list().to_owned()).collect();
        let mut files: HashSet<String> = lists.iter().cloned().collect();
        files.insert(location.to_owned());
        files.extend(metadata.metadata_log().iter().map(|version| version.metadata_file.clone()));
        let manifests = stream::iter(lists).map(|path| async move {
            let content = self.0.store.read(&path).await?;
            let list = ManifestList::parse_with_version(&content, FormatVersion::V2)?;
            Ok::<_, LakeError>(list.entries().iter().map(|entry| entry.manifest_path.clone()).collect::<Vec<_>>())
        });
        let manifests: Vec<Vec<String>> = manifests.buffer_unordered(READS_AT_ONCE).try_collect().await?;
        let manifests: HashSet<String> = manifests.into_iter().flatten().collect();
        let data = stream::iter(manifests.iter().cloned().collect::<Vec<_>>()).map(|path| async move {
            // Not by way of the cache: most of these are old.
            let manifest = Manifest::parse_avro(&self.0.store.read(&path).await?)?;
            let alive = manifest.entries().iter().filter(|entry| entry.is_alive());
            Ok::<_, LakeError>(alive.map(|entry| entry.file_path().to_owned()).collect::<Vec<_>>())
        });
        let data: Vec<Vec<String>> = data.buffer_unordered(READS_AT_ONCE).try_collect().await?;
        files.extend(manifests);
        files.extend(data.into_iter().flatten());
        Ok(files)
    }

    /// Names the data files of a commit that begins now.
    pub(crate) fn new_commit(&self) -> uuid::Uuid {
        let now = self.0.clock.now().0;
        let (seconds, nanos) = (now / 1_000_000_000, (now % 1_000_000_000) as u32);
        uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos))
    }

    /// Whether data files of this commit may still be committed: later somebody may take them for orphans.
    pub(crate) fn may_commit(&self, commit: uuid::Uuid) -> bool {
        let within = i64::try_from(COMMIT_WITHIN.as_millis()).unwrap_or(i64::MAX);
        let age = names::commit_ms(commit).map(|begun| self.0.clock.now().millis().saturating_sub(begun));
        age.is_some_and(|age| age <= within)
    }

    /// The live data files of a table version. Manifests never change: each is read once.
    ///
    /// # Errors
    /// [`LakeError::ForeignDeletes`] when somebody else deleted rows: counting them would be a lie.
    pub async fn data_files(&self, metadata: &TableMetadata) -> Result<Vec<Arc<Vec<DataFile>>>, LakeError> {
        match metadata.current_snapshot() {
            Some(snapshot) => self.snapshot_files(metadata, snapshot).await,
            None => Ok(Vec::new()),
        }
    }

    /// The same of one snapshot of the table.
    ///
    /// # Errors
    /// As for [`Self::data_files`].
    pub async fn snapshot_files(
        &self,
        metadata: &TableMetadata,
        snapshot: &Snapshot,
    ) -> Result<Vec<Arc<Vec<DataFile>>>, LakeError> {
        let mut out = Vec::new();
        for manifest in self.manifests_of(snapshot).await? {
            if manifest.content == ManifestContentType::Deletes {
                return Err(LakeError::ForeignDeletes(metadata.location().to_owned()));
            }
            out.push(self.manifest_files(&manifest.manifest_path).await?);
        }
        Ok(out)
    }

    async fn manifest_files(&self, path: &str) -> Result<Arc<Vec<DataFile>>, LakeError> {
        if let Some(found) = self.0.manifests.get(path, self.0.clock.elapsed()) {
            return Ok(found);
        }
        let content = self.0.store.read(path).await?;
        let manifest = Manifest::parse_avro(&content)?;
        let alive = manifest.entries().iter().filter(|entry| entry.is_alive());
        let files = Arc::new(alive.map(|entry| entry.data_file().clone()).collect::<Vec<_>>());
        self.0.manifests.insert(path, Arc::clone(&files), self.0.clock.elapsed());
        Ok(files)
    }

    /// Last log index of `group` whose rows are in this version of the table.
    ///
    /// # Errors
    /// [`LakeError::ForeignMark`] when another cluster flushed here.
    pub fn flushed_index(
        &self,
        metadata: &TableMetadata,
        cluster_id: &str,
        group: GroupId,
        table: &TableId,
    ) -> Result<u64, LakeError> {
        crate::flush::flushed_index(metadata, cluster_id, group, table)
    }

    pub(crate) fn remember(&self, location: &str, metadata: Arc<TableMetadata>) {
        self.0.metadata.insert(location, metadata, self.0.clock.elapsed());
    }

    /// Makes the dataset's tables exist, empty.
    ///
    /// # Errors
    /// When catalog or store are down; rows are accepted all the same and the flush creates what it needs.
    pub async fn ensure_tables(
        &self,
        tenant: &TenantId,
        dataset: &DatasetId,
        tables: impl IntoIterator<Item = SignalTable>,
    ) -> Result<(), LakeError> {
        for table in tables {
            let id = TableId { tenant: tenant.clone(), dataset: dataset.clone(), code: table.code() };
            self.ensure_table(&id, table).await?;
        }
        Ok(())
    }

    /// Location of the table's current metadata, as the catalog says; creates the table if there is none.
    pub(crate) async fn ensure_table(&self, id: &TableId, table: SignalTable) -> Result<String, LakeError> {
        let (namespace, name) = (id.namespace(), table.name());
        if let Some(location) = self.0.pointers.load(&namespace, name).await? {
            return Ok(location);
        }
        let root = table::table_location(self.0.store.root(), id, table);
        let now_ms = self.0.clock.now().millis();
        let metadata = table::new_table(table, &root, uuid::Uuid::new_v4(), now_ms)?;
        let location = format!("{root}/metadata/00000-{}.metadata.json", uuid::Uuid::new_v4());
        let content = serde_json::to_vec(&metadata).map_err(iceberg::Error::from)?;
        self.0.store.write(&location, content.into()).await?;
        match self.0.pointers.create(&namespace, name, &location).await {
            Err(CatalogError::Unknown(_)) => {
                let found = self.0.pointers.load(&namespace, name).await?;
                found.ok_or(LakeError::Stopped("the table was not created"))
            }
            outcome => Ok(outcome?),
        }
    }

    /// Bytes of rows that are not yet flushed; of those that are not decoded yet, an estimate.
    pub fn unflushed_bytes(&self) -> usize {
        let memtables = self.0.memtables.read().unwrap_or_else(PoisonError::into_inner);
        memtables.values().map(|memtable| memtable.bytes()).sum()
    }

    fn memtables(&self) -> Vec<Arc<GroupMemtable>> {
        self.0.memtables.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Bytes of the log that hold rows which are not flushed, of all groups.
    pub fn unflushed_log_bytes(&self) -> usize {
        self.memtables().iter().map(|memtable| memtable.log_bytes()).sum()
    }

    /// Moves tables in the catalog, and counts it.
    ///
    /// # Errors
    /// As [`TablePointers::swap`].
    pub(crate) async fn swap(&self, swaps: &[Swap]) -> Result<SwapOutcome, CatalogError> {
        let (begun, _call) = (self.0.clock.elapsed(), self.call());
        let outcome = self.0.pointers.swap(swaps).await;
        crate::metrics::note_transaction(&outcome, self.0.clock.elapsed().saturating_sub(begun));
        outcome
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
    fn takes(&self, append: &Append) -> bool {
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

    /// Ends the tasks. A flush in flight is abandoned: the next start finds out how far it came.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(Duration::from_secs(2), self.0.tasks.wait()).await.is_err() {
            tracing::warn!("flush tasks did not stop in time");
        }
    }
}

/// The log of one group as the memtable reads it.
struct GroupLog(Arc<Group>);

impl LogReader for GroupLog {
    fn read_appends(&self, from: u64, to: u64, bytes_max: usize) -> Result<(Vec<(u64, Append)>, u64), String> {
        self.0.read_appends(from, to, bytes_max).map_err(|error| error.to_string())
    }

    fn purged(&self) -> u64 {
        self.0.purged_index()
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked")
}

impl ApplySink for Lake {
    fn restored(&self, group: GroupId, applied: u64, state: &GroupState) {
        self.memtable(group).restore(applied, &state.tables);
    }

    fn appended(&self, group: GroupId, index: u64, append: Append) {
        let memtable = self.memtable(group);
        let room = self.takes(&append);
        memtable.append(index, append, room);
    }

    fn flushed(&self, group: GroupId, table: &TableId, hi: u64, version: i64, location: &str) {
        self.memtable(group).flushed(table, hi, version, location);
        self.note_room();
    }

    fn advanced(&self, group: GroupId, table: &TableId, version: i64, location: &str) {
        self.memtable(group).advanced(table, version, location);
    }

    fn quarantine(&self, group: GroupId, table: &TableId, state: &TableState) {
        self.memtable(group).quarantine(table, state);
        self.note_room();
    }

    fn meta(&self, _json: &str) {}

    fn applied(&self, group: GroupId, index: u64) {
        self.memtable(group).applied(index);
    }
}
