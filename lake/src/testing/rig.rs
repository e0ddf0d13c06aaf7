//! A node in one process: a group of one voter on a simulated disk, a catalog in a file and a store in memory. Two lakes
//! follow the same log, each with a flusher of its own: a leader that does not know that it was deposed goes on beside
//! the one that came after it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use iceberg::spec::DataFile;
use signaldb_catalog::{Database, IcebergCatalog, PoolConfig};
use signaldb_model::{Clock, DatasetId, GroupId, ManualClock, NodeId, SystemClock, TableId, TenantId, UnixNanos};
use signaldb_raft::state_store::{MemoryStateStore, StateStore};
use signaldb_raft::{
    Append, ApplySink, Command, Compression, Group, GroupState, Groups, GroupsConfig, OpenLog, PeersConfig, TableState,
    TableStats,
};
use signaldb_signals::SignalKind;
use signaldb_wal::WalConfig;
use signaldb_wal::sim::SimIo;

use super::faults::{Faults, FaultyLog, FaultyPointers, FaultyProposer};
use super::{Row, TABLE, read_file, read_parquet, request, rows_of};
use crate::flush::{Flusher, Proposer};
use crate::memtable::{GroupMemtable, LogReader};
use crate::pointers::TablePointers;
use crate::storage::{S3Options, Store};
use crate::{Lake, LakeConfig, LakeError, quarantine};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Rows of data files by location: files never change, and checks are many.
type FileRows = Arc<Mutex<HashMap<String, Vec<Row>>>>;

/// What outlives the process.
pub(crate) struct Rig {
    _dir: tempfile::TempDir,
    pub(crate) catalog: IcebergCatalog,
    pub(crate) store: Store,
    disk: SimIo,
    state: Arc<MemoryStateStore>,
    clock: Arc<ManualClock>,
    read: FileRows,
    memory: usize,
    pub(crate) process: Process,
    pub(crate) ledger: Ledger,
}

/// What is started and stopped.
pub(crate) struct Process {
    groups: Groups,
    pub(crate) group: Arc<Group>,
    pub(crate) cluster_id: String,
    pub(crate) leaders: [Leader; 2],
    read: FileRows,
}

/// A lake that believes to lead the group.
pub(crate) struct Leader {
    pub(crate) lake: Lake,
    pub(crate) faults: Arc<Faults>,
    pub(crate) pointers: Arc<FaultyPointers>,
    pub(crate) proposer: Arc<FaultyProposer>,
    pub(crate) log: Arc<FaultyLog>,
    pub(crate) flusher: Flusher,
}

/// What was acknowledged, and how far it was seen in the tables.
#[derive(Default)]
pub(crate) struct Ledger {
    acknowledged: BTreeMap<TableId, Vec<Row>>,
    watermarks: BTreeMap<TableId, u64>,
    written: usize,
    /// What requests say that they expand to, at least.
    raw_bytes: usize,
}

/// Applies to both lakes.
struct Both([Lake; 2]);

impl ApplySink for Both {
    fn restored(&self, group: GroupId, applied: u64, state: &GroupState) {
        self.0.iter().for_each(|lake| lake.restored(group, applied, state));
    }

    fn appended(&self, group: GroupId, index: u64, append: Append) {
        self.0.iter().for_each(|lake| lake.appended(group, index, append.clone()));
    }

    fn flushed(&self, group: GroupId, table: &TableId, hi: u64, version: i64, location: &str) {
        self.0.iter().for_each(|lake| lake.flushed(group, table, hi, version, location));
    }

    fn advanced(&self, group: GroupId, table: &TableId, version: i64, location: &str) {
        self.0.iter().for_each(|lake| lake.advanced(group, table, version, location));
    }

    fn quarantine(&self, group: GroupId, table: &TableId, state: &TableState) {
        self.0.iter().for_each(|lake| lake.quarantine(group, table, state));
    }

    fn meta(&self, _json: &str) {}

    fn applied(&self, group: GroupId, index: u64) {
        self.0.iter().for_each(|lake| lake.applied(group, index));
    }
}

pub(crate) fn table_id(dataset: &str) -> TableId {
    let (tenant, dataset) = (TenantId::new("t").expect("name"), DatasetId::new(dataset).expect("name"));
    TableId { tenant, dataset, code: TABLE.code() }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with_memory(LakeConfig::default().memtable_bytes_max, 0).await
    }

    /// Memtables have `memory` bytes, and each request counts as `raw_bytes` at least: rows that there is no room for stay in
    /// the log, few as they are.
    pub(crate) async fn with_memory(memory: usize, raw_bytes: usize) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let address = format!("sqlite://{}/catalog.db", dir.path().display());
        let database = Database::open(&address, &PoolConfig::default()).await.expect("opens");
        let catalog = IcebergCatalog::open(database).await.expect("creates tables");
        let store = Store::open("memory://", "", &S3Options::default()).expect("opens");
        let (disk, state) = (SimIo::new(), Arc::default());
        let clock = Arc::new(ManualClock::new(SystemClock.now()));
        let read = FileRows::default();
        let process = Box::pin(Process::start(&catalog, &store, &disk, &state, &clock, &read, memory)).await;
        let ledger = Ledger { raw_bytes, ..Ledger::default() };
        Self { _dir: dir, catalog, store, disk, state, clock, read, memory, process, ledger }
    }

    pub(crate) fn now(&self) -> UnixNanos {
        self.clock.now()
    }

    /// Ends the process and starts it again: whatever it knew beside log, catalog and store is gone.
    pub(crate) async fn restart(&mut self) {
        self.process.stop().await;
        let Self { catalog, store, disk, state, clock, read, memory, .. } = &*self;
        let started = Process::start(catalog, store, disk, state, clock, read, *memory);
        let started = Box::pin(started).await;
        self.process = started;
    }

    pub(crate) async fn append(&mut self, dataset: &str, rows: usize) {
        self.ledger.append(&self.process.group, self.clock.now(), dataset, rows).await;
    }

    /// Flushes everything by the lake at `leader`.
    pub(crate) async fn flush(&mut self, leader: usize) -> Result<bool, LakeError> {
        self.process.leaders[leader].flusher.step(true).await
    }

    /// From here on the log's indexes are those of another incarnation.
    pub(crate) async fn begin_incarnation(&self, id: u64) {
        let begin = Command::BeginIncarnation { id };
        self.process.group.propose_index(&begin, TIMEOUT).await.expect("commits");
    }

    /// What was given up by the lake at `leader` happens now.
    pub(crate) async fn land_late(&self, leader: usize) {
        let leader = &self.process.leaders[leader];
        leader.pointers.land_late().await;
        leader.proposer.land_late().await;
    }

    /// Every table of `datasets`, as both lakes show it and as other engines do; `flushed`: all of it is in files.
    pub(crate) async fn check<'a>(
        &mut self,
        datasets: impl IntoIterator<Item = &'a str>,
        flushed: bool,
        context: &dyn std::fmt::Debug,
    ) {
        for dataset in datasets {
            let id = table_id(dataset);
            for leader in &self.process.leaders {
                let rows = self.process.read(leader, &id, flushed).await;
                self.ledger.compare(&id, rows, context);
            }
            self.check_table(&id, context).await;
        }
    }

    /// Rows of a table that were put aside, sorted.
    pub(crate) async fn put_aside(&self, id: &TableId) -> Vec<Row> {
        let mut rows = Vec::new();
        for file in self.store.list(&quarantine::prefix(&self.store, id)).await.expect("lists") {
            rows.extend(read_parquet(self.store.read(&file.location).await.expect("reads")));
        }
        rows.sort();
        rows
    }

    /// Every file that the tables reach is in the store.
    pub(crate) async fn check_files(&self) {
        for dataset in self.ledger.datasets() {
            let (id, lake) = (table_id(&dataset), &self.process.leaders[1].lake);
            let found = lake.current_table(&id.namespace(), TABLE.name()).await.expect("reads");
            let Some((location, metadata)) = found else { continue };
            let listed = lake.store().list(metadata.location()).await.expect("lists");
            let listed: HashSet<&str> = listed.iter().map(|file| file.location.as_str()).collect();
            for needed in lake.reachable(&metadata, &location).await.expect("reads") {
                assert!(listed.contains(needed.as_str()), "{needed} is not there");
            }
        }
    }

    /// No file is referenced twice, and the watermark only rises.
    async fn check_table(&mut self, id: &TableId, context: &dyn std::fmt::Debug) {
        let lake = &self.process.leaders[1].lake;
        let found = lake.current_table(&id.namespace(), TABLE.name()).await.expect("reads");
        let Some((_, metadata)) = found else { return };
        let files = lake.data_files(&metadata).await.expect("reads");
        let paths: Vec<&str> = files.iter().flat_map(|files| files.iter()).map(|file| file.file_path()).collect();
        let distinct: BTreeSet<&str> = paths.iter().copied().collect();
        assert_eq!(paths.len(), distinct.len(), "a file is referenced twice: {context:?}");
        let group = self.process.group.id();
        let of_log = |state: &GroupState| state.tables.get(id).map_or((0, 0), |known| (known.watermark, known.floor));
        let (known, floor) = self.process.group.with_state(of_log);
        let mark = lake.flushed_index(&metadata, &self.process.cluster_id, group, id).expect("is ours").max(floor);
        let before = self.ledger.watermarks.insert(id.clone(), mark).unwrap_or(0);
        assert!(before <= mark, "the watermark went from {before} back to {mark}: {context:?}");
        assert!(known <= mark, "the log calls {known} flushed, the table {mark}: {context:?}");
    }
}

impl Process {
    async fn start(
        catalog: &IcebergCatalog,
        store: &Store,
        disk: &SimIo,
        state: &Arc<MemoryStateStore>,
        clock: &Arc<ManualClock>,
        read: &FileRows,
        memory: usize,
    ) -> Self {
        let parts = [(); 2].map(|()| {
            let faults = Arc::new(Faults::default());
            let pointers = Arc::new(FaultyPointers::new(catalog.clone(), Arc::clone(&faults)));
            let way: Arc<dyn TablePointers> = Arc::<FaultyPointers>::clone(&pointers);
            let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
            // One table after the other: a step's number means the same in every run.
            let config = LakeConfig { concurrency: 1, memtable_bytes_max: memory, ..LakeConfig::default() };
            let cpu = tokio::runtime::Handle::current();
            let lake = Lake::with_pointers(config, catalog.clone(), way, store.with_faults(&faults), clock, cpu);
            (lake, faults, pointers)
        });
        let sink = Arc::new(Both([parts[0].0.clone(), parts[1].0.clone()]));
        let peers =
            PeersConfig { cluster: "test".into(), secret: String::new(), node: NodeId(1), addresses: BTreeMap::new() };
        let state: Arc<dyn StateStore> = Arc::<MemoryStateStore>::clone(state);
        let config = groups_config();
        let log = OpenLog::open(&config, peers, Arc::new(disk.clone()), state).await.expect("opens");
        let time: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
        let groups = Groups::open(log, config, time, sink).await.expect("opens");
        let group = groups.home(&TenantId::new("t").expect("name"), TIMEOUT).await.expect("placed");
        let cluster_id = groups.founding().cluster_id.clone();
        let leaders = parts.map(|(lake, faults, pointers)| {
            let proposer = Arc::new(FaultyProposer::new(Arc::clone(&group), Arc::clone(&faults)));
            let way: Arc<dyn Proposer> = Arc::<FaultyProposer>::clone(&proposer);
            let flusher = Flusher::with_proposer(lake.clone(), Arc::clone(&group), way, cluster_id.clone());
            let log = Arc::new(FaultyLog::new(Arc::clone(&group)));
            let reader: Arc<dyn LogReader> = Arc::<FaultyLog>::clone(&log);
            lake.open_log(Arc::clone(&group), reader);
            Leader { lake, faults, pointers, proposer, log, flusher }
        });
        // As every start of a node does.
        let compared = leaders[0].lake.look_ahead(&[Arc::clone(&group)], &cluster_id).await;
        compared.expect("answers");
        assert_eq!(group.halted(), None);
        Self { groups, group, cluster_id, leaders, read: Arc::clone(read) }
    }

    /// The memtable of the lake at `leader`.
    pub(crate) fn memtable(&self, leader: usize) -> Arc<GroupMemtable> {
        self.leaders[leader].lake.memtable(self.group.id())
    }

    pub(crate) async fn stop(&self) {
        for leader in &self.leaders {
            leader.lake.close().await;
        }
        self.groups.close().await;
    }

    /// What a strong query reads whose view comes from `leader` (`query/src/engine.rs`); `flushed`: from files alone.
    pub(crate) async fn read(&self, leader: &Leader, id: &TableId, flushed: bool) -> Vec<Row> {
        let (lake, group) = (&leader.lake, self.group.id());
        let index = self.group.read_index_here().await.expect("leads");
        let until = std::time::Instant::now() + TIMEOUT;
        let view = loop {
            match lake.view(group, id, index).await {
                // What reads rows back has not seen yet that none are left.
                Err(LakeError::Backlog { .. }) if flushed && std::time::Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                view => break view.expect("leads"),
            }
        };
        let Some(view) = view else { return Vec::new() };
        let location = match view.version {
            -1 => lake.pointers().load(&id.namespace(), TABLE.name()).await.expect("answers"),
            _ => Some(view.location.clone()),
        };
        let (mut rows, mut cut) = (Vec::new(), view.watermark);
        if let Some(location) = location {
            let metadata = lake.metadata_at(&location).await.expect("reads");
            cut = lake.flushed_index(&metadata, &self.cluster_id, group, id).expect("is ours").max(view.floor);
            assert!(cut >= view.watermark, "table {id} went back behind its watermark");
            for files in lake.data_files(&metadata).await.expect("reads") {
                for file in files.iter() {
                    rows.extend(self.rows_of(lake, file).await);
                }
            }
        }
        for batch in view.batches.iter().filter_map(|batch| batch.above(cut)) {
            assert!(!flushed, "rows of {id} were not flushed");
            rows.extend(rows_of(&batch.rows.to_batch().expect("spreads")));
        }
        rows
    }

    async fn rows_of(&self, lake: &Lake, file: &DataFile) -> Vec<Row> {
        let known = self.read.lock().unwrap_or_else(PoisonError::into_inner).get(file.file_path()).cloned();
        if let Some(rows) = known {
            return rows;
        }
        let rows = read_file(lake, file).await;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert(file.file_path().to_owned(), rows.clone());
        rows
    }
}

impl Ledger {
    pub(crate) async fn append(&mut self, group: &Group, now: UnixNanos, dataset: &str, count: usize) {
        let rows: Vec<Row> = (0..count)
            .map(|_| {
                self.written += 1;
                let n = self.written;
                let start = now.0 as i64 + i64::try_from(n).expect("small") * 1000;
                (format!("service-{}", n % 3), format!("span-{n}"), start)
            })
            .collect();
        let (id, payload) = (table_id(dataset), Bytes::from(request(&rows)));
        let stats = TableStats { table: id.code, rows: count as u32, time_min: now, time_max: now };
        let append = Append {
            kind: SignalKind::Traces as u8,
            tenant: id.tenant.clone(),
            dataset: id.dataset.clone(),
            at: UnixNanos::default(),
            dedup: None,
            tables: vec![stats],
            compression: Compression::None,
            // Nothing is compressed: it is not needed to decode them.
            raw_len: payload.len().max(self.raw_bytes) as u32,
            payload,
        };
        group.append(append, None, TIMEOUT).await.expect("commits");
        self.acknowledged.entry(id).or_default().extend(rows);
    }

    /// Rows that somebody else put into the table.
    pub(crate) fn expect(&mut self, id: &TableId, rows: &[Row]) {
        self.acknowledged.entry(id.clone()).or_default().extend_from_slice(rows);
    }

    /// What was acknowledged so far, which the table need not have from here on.
    pub(crate) fn take(&mut self, id: &TableId) -> Vec<Row> {
        self.acknowledged.remove(id).unwrap_or_default()
    }

    /// What was acknowledged is there, once.
    pub(crate) fn compare(&self, id: &TableId, mut rows: Vec<Row>, context: &dyn std::fmt::Debug) {
        let mut expected = self.acknowledged.get(id).cloned().unwrap_or_default();
        expected.sort();
        rows.sort();
        if rows == expected {
            return;
        }
        let distinct: BTreeSet<&Row> = rows.iter().collect();
        let missing = expected.iter().filter(|row| !distinct.contains(row)).count();
        let doubled = rows.len() - distinct.len();
        panic!("table {id}: {missing} rows missing, {doubled} doubled, of {}: {context:?}", expected.len());
    }

    /// All datasets that rows were written to.
    pub(crate) fn datasets(&self) -> Vec<String> {
        self.acknowledged.keys().map(|id| id.dataset.to_string()).collect()
    }
}

fn groups_config() -> GroupsConfig {
    GroupsConfig {
        address: "127.0.0.1:1".into(),
        wal_dir: "/wal".into(),
        boot_id: "boot".into(),
        wal: WalConfig { segment_bytes_max: 64 << 10, ..WalConfig::default() },
        data_groups: 1,
        heartbeat_interval: Duration::from_millis(500),
        election_timeout: (Duration::from_secs(1), Duration::from_millis(1500)),
        purge_lag: Duration::ZERO,
        purge_lag_bytes_max: 1 << 30,
        trim_interval: Duration::from_millis(20),
        fsync: false,
    }
}
