//! Plans over several workers in one process: everything but the network.

mod statements;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use bytes::Bytes;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::prelude::{ParquetReadOptions, SessionConfig};
use datafusion_distributed::{
    CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest, GetWorkerInfoResponse, Worker, WorkerChannel,
    WorkerToCoordinatorMsg,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use signaldb_catalog::Identity;
use signaldb_model::{DatasetId, SystemClock, TenantId};
use tonic::codegen::http::HeaderMap;

use super::channels::Here;
use super::*;
use crate::budget::{Budget, size};
use crate::error::{QueryError, QueryErrorKind};
use crate::pool::{NodeMemory, QueryMemory, QueryPool};
use crate::queries::{Listed, Queries};
use crate::scanned::Stores;

const MEMORY: usize = 256 << 20;
const FILES: i64 = 7;
const ROWS_A_FILE: i64 = 3000;
/// Rows of the same table that are in no file.
const TAIL: i64 = 500;

/// Statements over `t`, and whether several nodes share the work of answering them.
const STATEMENTS: &[(&str, bool)] = &[
    ("SELECT service, count(*), sum(n), min(n), max(n) FROM t GROUP BY service ORDER BY service", true),
    ("SELECT count(*), avg(n) FROM t WHERE n % 3 = 0", true),
    ("SELECT service, n FROM t WHERE n % 97 = 0 ORDER BY service, n", true),
    ("SELECT count(DISTINCT n) FROM t WHERE n > 10", true),
    ("SELECT a.service, count(*) FROM t a JOIN t b ON a.n = b.n WHERE b.n < 100 GROUP BY 1 ORDER BY 1", true),
    ("SELECT upper(service), count(*) FROM t WHERE n > (SELECT avg(n) FROM t) GROUP BY 1 ORDER BY 1", true),
    ("SELECT count(*) FROM (SELECT DISTINCT service, n % 10 FROM t) AS pairs", true),
    ("SELECT 1 FROM t WHERE n = 21", true),
    ("SELECT count(*) FROM t WHERE service = 'none'", true),
    ("SELECT n FROM t ORDER BY n DESC LIMIT 5", false),
    ("SELECT n FROM t ORDER BY n", false),
];

/// What happens to the shares of node 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Its streams end before their end, as if there was no more.
    Cut,
    /// Its streams break.
    Break,
    /// What it says beside rows breaks.
    Mute,
    /// It hears that rows are wanted when somebody reads them, as over a network.
    Late,
}

fn broken() -> DataFusionError {
    DataFusionError::Execution("connection reset".to_owned())
}

/// Streams that the worker is asked for at the first look at each.
fn late(worker: &Worker, asked: &ExecuteTaskRequest) -> Vec<BoxStream<'static, Result<RecordBatch>>> {
    let stream = |partition: usize| {
        let worker = worker.clone();
        let request = ExecuteTaskRequest {
            task_key: asked.task_key,
            target_partition_start: partition,
            target_partition_end: partition + 1,
            producer_head_spec: asked.producer_head_spec.clone(),
        };
        let rows = async move {
            let (mut streams, _) = worker.execute_task(request).await?;
            streams.pop().ok_or_else(|| DataFusionError::Internal("no stream".to_owned()))
        };
        futures::stream::once(rows).try_flatten().boxed()
    };
    (asked.target_partition_start..asked.target_partition_end).map(stream).collect()
}

#[derive(Debug)]
struct InMemory {
    workers: BTreeMap<NodeId, PeerWorker>,
    fault: Fault,
    suspects: Mutex<Vec<NodeId>>,
}

impl Reach for InMemory {
    fn nodes(&self) -> Vec<NodeId> {
        self.workers.keys().copied().collect()
    }

    fn channel(&self, node: NodeId) -> Result<Box<dyn WorkerChannel>> {
        let fault = if node == NodeId(2) { self.fault } else { Fault::None };
        Ok(Box::new(Faulty { inner: Here(self.workers[&node].worker().clone()), fault }))
    }

    fn suspect(&self, node: NodeId) {
        self.suspects.lock().expect("nobody panics").push(node);
    }
}

struct Faulty {
    inner: Here,
    fault: Fault,
}

#[async_trait]
impl WorkerChannel for Faulty {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        let answers = self.inner.coordinator_channel(headers, messages).await?;
        Ok(match self.fault {
            Fault::Mute => futures::stream::once(async { Err(broken()) }).boxed(),
            _ => answers,
        })
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<datafusion::execution::TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let fault = self.fault;
        if fault == Fault::Late {
            return Ok(late(&self.inner.0, &request));
        }
        let streams = self.inner.execute_task(headers, request, metrics, context).await?;
        let spoiled = |rows: BoxStream<'static, Result<RecordBatch>>| match fault {
            Fault::None | Fault::Mute | Fault::Late => rows,
            // What is left of the rows without the end.
            Fault::Cut => {
                let whole = |batch: &Result<RecordBatch>| match batch {
                    Ok(batch) => batch.columns().last().is_some_and(|end| end.null_count() == end.len()),
                    Err(_) => true,
                };
                rows.take_while(move |batch| futures::future::ready(whole(batch))).boxed()
            }
            Fault::Break => futures::stream::once(async { Err(broken()) }).boxed(),
        };
        Ok(streams.into_iter().map(spoiled).collect())
    }

    async fn get_worker_info(&mut self, request: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        self.inner.get_worker_info(request).await
    }
}

/// Files that go when the test ends.
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn schema() -> SchemaRef {
    let service = Field::new("service", DataType::Utf8, true);
    Arc::new(Schema::new(vec![service, Field::new("n", DataType::Int64, false)]))
}

fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
    let service: StringArray = numbers.clone().map(|n| (n % 11 != 0).then(|| format!("service-{}", n % 5))).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(service), Arc::new(Int64Array::from_iter_values(numbers))];
    RecordBatch::try_new(schema(), columns).expect("fits")
}

fn write_files() -> Files {
    let files = Files(std::env::temp_dir().join(format!("signaldb-spread-{}", uuid::Uuid::new_v4())));
    std::fs::create_dir(&files.0).expect("a directory");
    for file in 0..FILES {
        let to = std::fs::File::create(files.0.join(format!("{file}.parquet"))).expect("a file");
        let mut writer = ArrowWriter::try_new(to, schema(), None).expect("a writer");
        writer.write(&rows(file * ROWS_A_FILE..(file + 1) * ROWS_A_FILE)).expect("writes");
        writer.close().expect("closes");
    }
    files
}

fn template(threads: usize) -> SessionState {
    let config = SessionConfig::new().with_target_partitions(threads);
    SessionStateBuilder::new().with_config(config).with_default_features().build()
}

/// Nodes of this process, and a query of the first one.
struct Nodes {
    reach: Arc<InMemory>,
    query: Listed,
    memory: Arc<QueryPool>,
    others: Vec<Queries>,
}

/// Nodes 1 to `count`, which know the functions of `template` and read `stores`.
fn start_nodes(
    count: u64,
    template: &SessionState,
    stores: &Stores,
    fault: Fault,
    scan_bytes_max: Option<u64>,
) -> Nodes {
    let (runtime, memory) = (Arc::new(RuntimeEnv::default()), Arc::new(NodeMemory::new(MEMORY, 4)));
    let mut queries = Vec::new();
    let workers = (1..=count).map(|node| {
        let worker = PeerWorker::new(tokio::runtime::Handle::current());
        let own = Queries::new(NodeId(node), Arc::new(SystemClock));
        queries.push(own.clone());
        let (runtime, memory) = (Arc::clone(&runtime), Arc::clone(&memory));
        worker.serve(Host::new(NodeId(node), template.clone(), runtime, stores.clone(), memory, MEMORY, own));
        (NodeId(node), worker)
    });
    let workers: BTreeMap<NodeId, PeerWorker> = workers.collect();
    let others = queries.split_off(1);
    let identity = Identity {
        tenant: TenantId::new("acme").expect("a name"),
        dataset: DatasetId::new("production").expect("a name"),
    };
    let query = queries[0].list(&identity, "SELECT", Bytes::new(), Duration::from_secs(600), scan_bytes_max);
    let memory = QueryMemory::pool(&memory, MEMORY);
    query.plans(Arc::clone(&memory));
    Nodes { reach: Arc::new(InMemory { workers, fault, suspects: Mutex::default() }), query, memory, others }
}

impl Nodes {
    /// The same session, whose scans spread over them.
    fn spread(&self, local: &SessionContext) -> SessionContext {
        let reach: Arc<dyn Reach> = Arc::<InMemory>::clone(&self.reach);
        let spread = Spread::new(Distribution { enabled: true, bytes_min: 0 }, reach);
        spread.session(local.clone(), &self.query).expect("a session")
    }
}

/// Nodes, and a table of theirs as one node reads it and as all do.
struct Setup {
    nodes: Nodes,
    spread: SessionContext,
    local: SessionContext,
    files: Files,
}

async fn set_up(nodes: u64, fault: Fault) -> Setup {
    set_up_with(nodes, fault, 3, None).await
}

async fn set_up_with(nodes: u64, fault: Fault, threads: usize, scan_bytes_max: Option<u64>) -> Setup {
    let (files, stores) = (write_files(), Stores::new(None));
    let nodes = start_nodes(nodes, &template(threads), &stores, fault, scan_bytes_max);
    let runtime = runtime_of(&RuntimeEnv::default(), &stores, &nodes.query, Arc::clone(&nodes.memory));
    let state = SessionStateBuilder::new_from_existing(template(threads)).with_runtime_env(runtime).build();
    let local = SessionContext::new_with_state(state);
    let path = files.0.to_str().expect("a text");
    local.register_parquet("files", path, ParquetReadOptions::default()).await.expect("registers");
    let tail = FILES * ROWS_A_FILE..FILES * ROWS_A_FILE + TAIL;
    let tail = MemTable::try_new(schema(), vec![vec![rows(tail)]]).expect("a table");
    local.register_table("tail", Arc::new(tail)).expect("registers");
    let view = "CREATE VIEW t AS SELECT * FROM files UNION ALL SELECT * FROM tail";
    local.sql(view).await.expect("plans").collect().await.expect("makes a view");
    let spread = nodes.spread(&local);
    Setup { nodes, spread, local, files }
}

async fn answer(context: &SessionContext, sql: &str) -> Result<String, QueryError> {
    let batches = context.sql(sql).await?.collect().await?;
    Ok(pretty_format_batches(&batches).map_err(DataFusionError::from)?.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_to_four_nodes_answer_what_one_answers() {
    for nodes in 1..=4 {
        for (sql, spreads) in STATEMENTS {
            let setup = set_up(nodes, Fault::None).await;
            let plan = answer(&setup.spread, &format!("EXPLAIN {sql}")).await.expect("explains");
            assert_eq!(plan.contains("NetworkCoalesceExec"), *spreads && nodes > 1, "{nodes} nodes: {sql}\n{plan}");
            let expected = answer(&setup.local, sql).await.expect("answers");
            let got = answer(&setup.spread, sql).await.unwrap_or_else(|error| panic!("{nodes} nodes: {sql}: {error}"));
            assert_eq!(got, expected, "{nodes} nodes: {sql}\n{plan}");
        }
    }
}

/// What reads one partition here still reads all shares.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_one_thread_answer_what_one_answers() {
    let filtered = "SELECT service, n FROM files WHERE n % 97 = 0 ORDER BY service, n";
    let joined = "SELECT count(*) FROM files a JOIN files b ON a.n = b.n WHERE a.n % 2 = 0 AND b.n % 3 = 0";
    for sql in STATEMENTS.iter().map(|(sql, _)| *sql).chain([filtered, joined]) {
        let setup = set_up_with(3, Fault::None, 1, None).await;
        let expected = answer(&setup.local, sql).await.expect("answers");
        let plan = answer(&setup.spread, &format!("EXPLAIN {sql}")).await.expect("explains");
        assert_eq!(answer(&setup.spread, sql).await.expect("answers"), expected, "{sql}\n{plan}");
        assert!(sql != filtered || plan.contains("NetworkCoalesceExec"), "{plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_in_no_file_stay_where_the_query_was_asked() {
    let setup = set_up(3, Fault::None).await;
    let plan = answer(&setup.spread, &format!("EXPLAIN {}", STATEMENTS[0].0)).await.expect("explains");
    let at = |text: &str| plan.lines().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}\n{plan}"));
    let depth = |text: &str| plan.lines().nth(at(text)).and_then(|line| line.find(text)).expect("is there");
    let (boundary, files) = (at("NetworkCoalesceExec"), at("DistributedLeafExec"));
    assert!(boundary < files && depth("UnsealExec") < depth("DistributedLeafExec"), "{plan}");
    // The memtable is a sibling of what travels.
    let memory = plan.lines().skip(files + 1).filter(|line| line.contains("DataSourceExec")).count();
    assert_eq!(memory, 1, "{plan}");
    assert_eq!(plan.matches("mode=Partial").count(), 2, "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_analyzed_plan_shows_what_workers_did() {
    let setup = set_up(3, Fault::None).await;
    let plan = answer(&setup.spread, &format!("EXPLAIN ANALYZE {}", STATEMENTS[0].0)).await.expect("explains");
    assert!(plan.contains("Stage 1") && plan.contains("bytes_scanned"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_ends_early_is_an_error_and_no_answer() {
    for fault in [Fault::Cut, Fault::Break] {
        for (sql, _) in STATEMENTS.iter().filter(|(_, spreads)| *spreads) {
            let setup = set_up(3, fault).await;
            let error = answer(&setup.spread, sql).await.expect_err(sql);
            assert_eq!(error.kind, QueryErrorKind::Unavailable, "{fault:?}: {sql}: {error}");
            let suspects = setup.nodes.reach.suspects.lock().expect("nobody panics").clone();
            assert_eq!(suspects.contains(&NodeId(2)), fault == Fault::Break, "{sql}");
        }
    }
}

/// As when a node dies with all of its rows sent: the seals say that the answer is whole.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_beside_rows_that_are_whole_fails_no_query() {
    for (sql, _) in STATEMENTS.iter().filter(|(_, spreads)| *spreads) {
        let setup = set_up(3, Fault::Mute).await;
        let expected = answer(&setup.local, sql).await.expect("answers");
        let got = answer(&setup.spread, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(got, expected, "{sql}");
    }
}

/// Nobody reads the right side of a join whose left side is empty.
#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_nobody_asked_for_keeps_nobody_waiting() {
    let join = "SELECT count(*) FROM files a JOIN files b ON a.n = b.n";
    let sql = format!("EXPLAIN ANALYZE {join} WHERE a.service = 'none' AND b.service = 'no one'");
    for fault in [Fault::Late, Fault::Mute] {
        let setup = set_up(3, fault).await;
        let analyzed = tokio::time::timeout(Duration::from_secs(60), answer(&setup.spread, &sql)).await;
        let plan = analyzed.expect("waits for nobody").expect("explains");
        assert!(plan.contains("Stage 1") && plan.contains("Stage 2"), "{fault:?}: {plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_read_counts_where_the_query_was_asked_and_nothing_is_left_of_it() {
    let setup = set_up(3, Fault::None).await;
    let before = setup.nodes.query.scanned_bytes();
    answer(&setup.spread, STATEMENTS[0].0).await.expect("answers");
    let read = setup.nodes.query.scanned_bytes() - before;
    let files: u64 = std::fs::read_dir(&setup.files.0)
        .expect("is there")
        .map(|file| file.and_then(|file| file.metadata()).expect("is there").len())
        .sum();
    assert!(read > files / 2, "{read} of {files} bytes");
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while setup.nodes.others.iter().any(|queries| !queries.statuses(None).is_empty()) {
        assert!(tokio::time::Instant::now() < until, "a share is still listed");
        tokio::task::yield_now().await;
    }
}

/// A part of the budget is used before the shares begin.
#[tokio::test(flavor = "multi_thread")]
async fn shares_that_read_too_much_name_all_that_their_query_may_read() {
    let setup = set_up(3, Fault::None).await;
    let before = setup.nodes.query.scanned_bytes();
    answer(&setup.spread, STATEMENTS[0].0).await.expect("answers");
    let read = setup.nodes.query.scanned_bytes() - before;
    assert!(before > 0 && read > 4, "{before} and {read} bytes");
    let limit = before + read / 4;
    let bounded = set_up_with(3, Fault::None, 3, Some(limit)).await;
    let error = answer(&bounded.spread, STATEMENTS[0].0).await.expect_err("too much");
    assert_eq!((error.kind, error.budget), (QueryErrorKind::Resources, Some(Budget::Scan)), "{error}");
    assert!(error.message.ends_with(&format!("query.scan allows {}", size(limit))), "{error}");
}
