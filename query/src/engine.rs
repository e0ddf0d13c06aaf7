//! Running queries: views, planning and execution on the CPU runtime, within memory, time and concurrency budgets.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use bytes::Bytes;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::optimizer::{Optimizer, OptimizerRule};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::{EmptyRecordBatchStream, SendableRecordBatchStream};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::StreamExt;
use signaldb_catalog::{Access, Identity};
use signaldb_lake::Lake;
use signaldb_model::{Position, TenantId};
use signaldb_raft::{Group, Groups, Leadership};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::as_of;
use crate::below::ComputeBelowView;
use crate::budget::{Budget, size};
use crate::distributed::{Cluster, Distribution, Host, PeerWorker, Spread, runtime_of};
use crate::error::{QueryError, QueryErrorKind, lake_error, read_error, unavailable};
use crate::gate::Gate;
use crate::kept::KeptParts;
use crate::logical_view::{ATTRIBUTE, ATTRIBUTES, HEX_ID};
use crate::names::{CATALOG, OneCatalog, TenantCatalog};
use crate::narrow::NarrowEarly;
use crate::newest::NewestPages;
use crate::parameters::{self, Parameters};
use crate::pool::{NodeMemory, QueryMemory, QueryPool};
use crate::queries::{Listed, OpenResult, Queries, QueryId, Record};
use crate::rewrite::CollapseView;
use crate::row_filters::RowFiltersThatPay;
use crate::scanned::Stores;
use crate::snapshot::{LEADER_POLL, LEADER_TIMEOUT, Snapshotter};
use crate::{metrics, remote, spill};

mod describe;
pub(crate) mod maintain;
mod portions;
pub(crate) mod running;
#[cfg(test)]
pub(crate) mod tests;

pub use describe::Description;
pub use portions::Answers;
pub(crate) use portions::{Portions, Progress, Scan, Shape};

/// How long a flush that somebody waits for may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Batches that wait for a slow client; then the query waits.
const OUTPUT_QUEUE: usize = 2;

/// Results of one tenant that may be open beside those that run or wait: they are computed, and not read to their end. Each
/// has up to [`OUTPUT_QUEUE`] batches in memory, which nobody counts, for as long as its client holds on to it.
const UNREAD_MAX: usize = 64;

/// How often a query begins anew when what it reads of another node goes away before its first row.
const RESTARTS_MAX: usize = 2;

/// Memory that a sort keeps for merging what it spilled, at most; DataFusion's default.
const MERGE_BYTES_MAX: usize = 10 << 20;

/// Budgets of the node's queries.
#[derive(Debug, Clone)]
pub struct QueryConfig {
    /// Memory of all queries together.
    pub memory_bytes: usize,
    /// Memory of one query; beyond it, and when all hold too much, it spills to `spill_dir`.
    pub query_memory_bytes: usize,
    /// Emptied when the node starts.
    pub spill_dir: PathBuf,
    /// Of all queries together.
    pub spill_bytes_max: u64,
    /// Bytes that one query may read from the store; `None`: as many as it likes.
    pub scan_bytes_max: Option<u64>,
    /// Memory for parts of data files that are kept between queries, beside `memory_bytes`.
    pub cache_bytes_max: usize,
    /// From arrival to the last row, of queries that do not say it themselves.
    pub deadline: Duration,
    /// The most that a query may ask for.
    pub deadline_max: Duration,
    /// Queries that run at once; others wait within their deadline.
    pub concurrency: usize,
    /// The same of one tenant.
    pub tenant_concurrency: usize,
    /// Queries of one tenant that may wait; others are refused.
    pub queue: usize,
    /// Threads that one query may use.
    pub partitions: usize,
    /// Which scans spread over the nodes; shares of others' queries are done in any case.
    pub distribution: Distribution,
}

/// What a query must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Everything acknowledged before the query.
    #[default]
    Strong,
    /// What this node has.
    Eventual,
}

/// A query and who asks.
#[derive(Debug, Clone)]
pub struct Query {
    pub identity: Identity,
    pub sql: String,
    /// Values of `?`, `$1` or `$name` in the text. With several rows it runs once for each, one after the other: one query
    /// with one budget, whose rows follow each other.
    pub parameters: Parameters,
    pub consistency: Consistency,
    /// An acknowledged position that must be visible, whatever the consistency.
    pub min_position: Option<Position>,
    pub allowance: Allowance,
}

/// How long a query may take, and how far beyond its tenant it may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance {
    /// From arrival to the last row; `None`: what is configured.
    pub deadline: Option<Duration>,
    /// Whether `system.queries` shows the queries of all tenants.
    pub all_tenants: bool,
    /// Whether large scans spread over the nodes; `None`: what is configured.
    pub distributed: Option<bool>,
}

/// Answers queries. Cheap to clone.
#[derive(Clone)]
pub struct QueryEngine(Arc<Inner>);

struct Inner {
    config: QueryConfig,
    lake: Lake,
    groups: Arc<Groups>,
    access: Access,
    /// What queries share: caches, and the place of spilled files.
    runtime: Arc<RuntimeEnv>,
    memory: Arc<NodeMemory>,
    stores: Stores,
    /// Begins each query's session. A function, so that the compiler, wherever it asks whether an engine may be sent to
    /// another thread, need not look through all of DataFusion's plans.
    session: Box<dyn Fn() -> SessionStateBuilder + Send + Sync>,
    spread: Spread,
    gate: Gate,
    queries: Queries,
    cpu: tokio::runtime::Handle,
}

impl fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryEngine").field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// Rows as they come. Dropping it cancels the query.
#[derive(Debug)]
pub struct RunningQuery {
    pub schema: SchemaRef,
    /// Groups that did not answer, so that their newest rows are missing; only an eventual read goes on without them.
    /// The meta group is among them when it could not be asked where the tenant's rows are.
    pub missing_groups: Vec<u32>,
    /// `None` says that the result is complete.
    batches: mpsc::Receiver<Result<Option<RecordBatch>, QueryError>>,
    record: Arc<Record>,
    /// What whoever reads makes of the rows that it has.
    leaving: Option<MemoryReservation>,
    memory_bytes_max: usize,
    _open: OpenResult,
    _task: AbortOnDropHandle<()>,
}

impl RunningQuery {
    /// Its name in `system.queries`.
    pub fn id(&self) -> QueryId {
        self.record.id()
    }

    /// Bytes that it read from the store so far.
    pub fn scanned_bytes(&self) -> u64 {
        self.record.scanned_bytes()
    }

    /// The next rows, `None` after the last.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        match self.batches.recv().await {
            Some(Ok(Some(batch))) => Some(Ok(batch)),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some(Err(error)),
            // The task went away in the middle: what was sent so far must not pass for the whole.
            None => Some(Err(self.record.gone())),
        }
    }

    /// Counts bytes that are made of the rows that came last as the query's memory, in place of those of the rows before.
    /// Whatever its operators hold at the moment, they are granted: they are there as long as the rows are on their way.
    ///
    /// # Errors
    /// [`QueryErrorKind::Resources`] when they alone are more than one query may hold.
    pub fn hold(&mut self, bytes: usize) -> Result<(), QueryError> {
        if bytes > self.memory_bytes_max {
            let (most, wanted) = (size(self.memory_bytes_max as u64), size(bytes as u64));
            let message = format!("query.memory allows {most}, and the next rows take {wanted} as they are sent");
            return Err(Budget::Memory.exceeded(message));
        }
        if self.leaving.is_none() && bytes > 0 {
            self.leaving = self.record.reservation("rows as they are sent");
        }
        if let Some(leaving) = &self.leaving {
            leaving.resize(bytes);
        }
        Ok(())
    }

    /// All rows, for results that are known to be small or are formatted as a whole.
    pub async fn collect(mut self) -> Result<(SchemaRef, Vec<RecordBatch>), QueryError> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok((self.schema, batches))
    }
}

impl QueryEngine {
    /// `worker`: who does shares of other nodes' queries, and of those that spread from here.
    ///
    /// # Errors
    /// When the spill directory or the store's URL cannot be used.
    pub fn new(
        config: QueryConfig,
        lake: Lake,
        groups: Arc<Groups>,
        access: Access,
        queries: Queries,
        worker: PeerWorker,
        cpu: tokio::runtime::Handle,
    ) -> Result<Self, QueryError> {
        spill::empty(&config.spill_dir)?;
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![config.spill_dir.clone()]))
            .with_max_temp_directory_size(config.spill_bytes_max);
        let runtime = RuntimeEnvBuilder::new().with_disk_manager_builder(disk).build_arc()?;
        let other =
            lake.store().objects().map(|(url, objects)| Ok::<_, QueryError>((ObjectStoreUrl::parse(url)?, objects)));
        let stores = Stores::new(other.transpose()?);
        let template = template(&config);
        let memory = Arc::new(NodeMemory::new(config.memory_bytes, config.concurrency));
        let gate = Gate::new(config.concurrency, config.tenant_concurrency, config.queue);
        worker.serve(Host::new(
            groups.peers().node(),
            template.clone(),
            Arc::clone(&runtime),
            stores.clone(),
            Arc::clone(&memory),
            config.query_memory_bytes,
            queries.clone(),
        ));
        let nodes = Cluster::new(Arc::clone(groups.peers()), worker);
        let spread = Spread::new(config.distribution, Arc::new(nodes));
        Ok(Self(Arc::new(Inner {
            config,
            lake,
            groups,
            access,
            runtime,
            memory,
            stores,
            session: Box::new(move || SessionStateBuilder::new_from_existing(template.clone())),
            spread,
            gate,
            queries,
            cpu,
        })))
    }

    /// Starts a query; returns once its first rows can be asked for, with the schema known.
    ///
    /// # Errors
    /// [`QueryErrorKind::Invalid`] with a position for bad SQL; [`QueryErrorKind::Unavailable`] when a strong read
    /// cannot be served now, [`QueryErrorKind::Backlog`] when that may last; [`QueryErrorKind::Busy`] when too many wait, or
    /// are not read; [`QueryErrorKind::Deadline`].
    ///
    /// Cancel safety: dropping the future cancels the query.
    pub async fn run(&self, query: Query) -> Result<RunningQuery, QueryError> {
        self.run_ticket(query, Bytes::new()).await
    }

    /// The same for a Flight ticket, by whose id [`Self::cancel`] finds it.
    ///
    /// # Errors
    /// As for [`Self::run`].
    ///
    /// Cancel safety: dropping the future cancels the query.
    pub async fn run_ticket(&self, query: Query, ticket: Bytes) -> Result<RunningQuery, QueryError> {
        let allowed = self.allowed(query.allowance.deadline)?;
        let open = self.open_result(&query.identity.tenant)?;
        let listed = self.list(&query, ticket, allowed);
        let record = Arc::clone(&listed);
        let (opened, schema) = oneshot::channel();
        let (rows, batches) = mpsc::channel(OUTPUT_QUEUE);
        let inner = Arc::clone(&self.0);
        let task = self.0.cpu.spawn(async move { inner.drive(query, listed, opened, rows).await });
        let task = AbortOnDropHandle::new(task);
        let opened = schema.await.map_err(|_| QueryError::new(QueryErrorKind::Internal, "the query's task died"))??;
        let (schema, missing_groups) = opened;
        let memory_bytes_max = self.0.config.query_memory_bytes;
        let leaving = None;
        Ok(RunningQuery {
            schema,
            missing_groups,
            batches,
            record,
            leaving,
            memory_bytes_max,
            _open: open,
            _task: task,
        })
    }

    /// One more result of a tenant: the line at the gate ends when the work is done, and this when somebody read the rows.
    fn open_result(&self, tenant: &TenantId) -> Result<OpenResult, QueryError> {
        let QueryConfig { tenant_concurrency, queue, .. } = self.0.config;
        let most = tenant_concurrency.saturating_add(queue).saturating_add(UNREAD_MAX);
        self.0.queries.open(tenant, most).inspect_err(|error| {
            metrics::note_started();
            metrics::note_failed(error);
        })
    }

    fn list(&self, query: &Query, ticket: Bytes, allowed: Duration) -> Listed {
        self.0.queries.list(&query.identity, &query.sql, ticket, allowed, self.0.config.scan_bytes_max)
    }

    /// All the time that a query has which asks for that much.
    fn allowed(&self, asked: Option<Duration>) -> Result<Duration, QueryError> {
        let QueryConfig { deadline, deadline_max, .. } = self.0.config;
        match asked {
            Some(asked) if asked > deadline_max => {
                let message = format!("a deadline of {asked:?} is more than query.deadline_max, {deadline_max:?}");
                Err(QueryError::new(QueryErrorKind::Invalid, message))
            }
            asked => Ok(asked.unwrap_or(deadline)),
        }
    }

    /// Brings the gauges of queries up to date.
    pub fn record_metrics(&self) {
        self.0.queries.record_metrics();
        metrics::record(&self.0.memory, &self.0.runtime.spilling_progress());
    }

    /// Ends the queries that spilled, because the disk that they spill to is needed for the log; returns how many.
    pub fn stop_spilling(&self) -> usize {
        match self.0.runtime.spilling_progress().current_bytes {
            0 => 0,
            _ => self.0.queries.stop_spilling(),
        }
    }

    /// Flushes everything that the tenant's groups, wherever they are led, applied before the call.
    ///
    /// # Errors
    /// [`QueryErrorKind::Unavailable`] when a leader, the catalog or the store does not answer in time.
    pub async fn flush(&self, tenant: &TenantId) -> Result<usize, QueryError> {
        let groups = self.0.groups.homes_now(tenant, LEADER_TIMEOUT).await.map_err(read_error)?;
        let until = Instant::now() + FLUSH_TIMEOUT;
        for group in &groups {
            self.flush_until(group, until).await?;
        }
        Ok(groups.len())
    }

    /// Flushes everything that a group, wherever it is led, applied before the call.
    ///
    /// # Errors
    /// As for [`Self::flush`].
    pub async fn flush_group(&self, group: &Arc<Group>) -> Result<(), QueryError> {
        self.flush_until(group, Instant::now() + FLUSH_TIMEOUT).await
    }

    async fn flush_until(&self, group: &Arc<Group>, until: Instant) -> Result<(), QueryError> {
        loop {
            let seen = group.leadership();
            let flushed = match seen.leader {
                _ if seen.here => self.0.lake.flush(std::slice::from_ref(group)).await.map_err(lake_error),
                Some(leader) => remote::flush(self.0.groups.peers(), leader, group.id())
                    .await
                    .map_err(|status| QueryError::from_status(&status)),
                None => Err(unavailable(format!("group {} has no leader", group.id()))),
            };
            match flushed {
                Ok(()) => return Ok(()),
                Err(error) => another_attempt(group, seen, until, error).await?,
            }
        }
    }
}

/// Waits a moment before a group's leader is asked again, unless that is in vain: only a leadership that moved is worth
/// another attempt.
async fn another_attempt(group: &Group, seen: Leadership, until: Instant, error: QueryError) -> Result<(), QueryError> {
    if (group.leadership() == seen && seen.leader.is_some()) || Instant::now() >= until {
        return Err(error);
    }
    tokio::time::sleep(LEADER_POLL).await;
    Ok(())
}

impl Inner {
    async fn drive(
        &self,
        mut query: Query,
        listed: Listed,
        opened: oneshot::Sender<Result<(SchemaRef, Vec<u32>), QueryError>>,
        rows: mpsc::Sender<Result<Option<RecordBatch>, QueryError>>,
    ) {
        metrics::note_started();
        let record: &Arc<Record> = &listed;
        let spread = query.allowance.distributed.unwrap_or(self.config.distribution.enabled).then_some(&self.spread);
        let mut runs = std::mem::take(&mut query.parameters).runs();
        query.parameters = runs.next().unwrap_or_default();
        let open = async {
            let permit = self.gate.enter(&query.identity.tenant).await?;
            let pool = QueryMemory::pool(&self.memory, self.config.query_memory_bytes);
            listed.plans(Arc::clone(&pool));
            let runtime = self.runtime_of(&listed, pool);
            let (stream, missing) = self.open(&query, &runtime, &listed, spread).await?;
            Ok::<_, QueryError>((permit, runtime, stream, missing))
        };
        let (permit, runtime, mut stream, missing) = match record.within(Box::pin(open)).await {
            Ok(found) => found,
            Err(error) => {
                metrics::note_failed(&error);
                return drop(opened.send(Err(error)));
            }
        };
        let schema = stream.schema();
        if opened.send(Ok((Arc::clone(&schema), missing.clone()))).is_err() {
            return;
        }
        record.runs();
        let whole = query.consistency == Consistency::Strong || query.min_position.is_some();
        let may_restart = whole || spread.is_some();
        let (mut restarts, mut yielded, mut scanned_before) = (0, false, 0);
        let last = loop {
            let next = async { stream.next().await.transpose().map_err(QueryError::from) };
            let item = record.within(next).await;
            let batch = match item {
                Err(error) if error.kind == QueryErrorKind::Unavailable && may_restart && !yielded => {
                    // A leader that held rows for it is gone, say; nobody has seen anything of the answer yet.
                    restarts += 1;
                    // Nor do other parts of it go on reading, and holding memory.
                    stream = Box::pin(EmptyRecordBatchStream::new(Arc::clone(&schema)));
                    let expected = (&schema, missing.as_slice());
                    match self.restart(&query, &runtime, record, expected, scanned_before, restarts).await {
                        Some(anew) => {
                            stream = anew;
                            continue;
                        }
                        None => break Err(error),
                    }
                }
                Ok(Some(batch)) => batch,
                Ok(None) => {
                    let Some(parameters) = runs.next() else { break Ok(None) };
                    query.parameters = parameters;
                    // The next run has the memory that this one held.
                    stream = Box::pin(EmptyRecordBatchStream::new(Arc::clone(&schema)));
                    scanned_before = record.scanned_bytes();
                    match self.next_run(&query, &runtime, record, spread, (&schema, missing.as_slice())).await {
                        Ok(next) => stream = next,
                        Err(error) => break Err(error),
                    }
                    (restarts, yielded) = (0, false);
                    continue;
                }
                Err(error) => break Err(error),
            };
            yielded = true;
            record.note_rows(batch.num_rows());
            let sent = tokio::select! {
                biased;
                sent = tokio::time::timeout_at(record.deadline(), rows.send(Ok(Some(batch)))) => matches!(sent, Ok(Ok(()))),
                // Whoever reads slowly hears of it from the record.
                () = record.stopped() => false,
            };
            // A receiver that is gone, or too slow for the deadline, ends the query.
            if !sent {
                break Err(record.end());
            }
        };
        if let Err(error) = &last {
            metrics::note_failed(error);
        }
        // Others need not wait for whoever reads the end slowly.
        drop((stream, runtime, permit));
        if record.reason().is_some() {
            // Nobody waits for it any more; who reads slowly hears of it from the record.
            drop(rows.try_send(last));
        } else {
            drop(tokio::time::timeout_at(record.deadline(), rows.send(last)).await);
        }
    }

    /// The query from its beginning, when it had read `scanned_before`, if that may help, now on this node alone; its answer
    /// must have the same columns, and lack no groups but those that it is said to lack.
    async fn restart(
        &self,
        query: &Query,
        runtime: &Arc<RuntimeEnv>,
        record: &Arc<Record>,
        (schema, missing): (&SchemaRef, &[u32]),
        scanned_before: u64,
        restarts: usize,
    ) -> Option<SendableRecordBatchStream> {
        if restarts > RESTARTS_MAX {
            return None;
        }
        let open = async {
            tokio::time::sleep(LEADER_POLL).await;
            // What was left of the beginning before has had the time to end, and to read no more.
            record.scan_again(scanned_before);
            self.open(query, runtime, record, None).await
        };
        let (stream, lacks) = record.within(Box::pin(open)).await.ok()?;
        (stream.schema() == *schema && lacks.iter().all(|group| missing.contains(group))).then_some(stream)
    }

    /// The query with the parameters of its next run: what was said before the first row still has to be true.
    async fn next_run(
        &self,
        query: &Query,
        runtime: &Arc<RuntimeEnv>,
        record: &Arc<Record>,
        spread: Option<&Spread>,
        (schema, missing): (&SchemaRef, &[u32]),
    ) -> Result<SendableRecordBatchStream, QueryError> {
        let open = self.open(query, runtime, record, spread);
        let (stream, lacking) = record.within(Box::pin(open)).await?;
        if !same_columns(&stream.schema(), schema) {
            let message = "the result's columns depend on the parameters: bind one row at a time";
            return Err(QueryError::new(QueryErrorKind::Invalid, message));
        }
        if lacking.iter().any(|group| !missing.contains(group)) {
            return Err(unavailable(
                "a leader went away between two rows of parameters; nothing would say so".to_owned(),
            ));
        }
        Ok(stream)
    }

    /// What one query runs in: its own memory, and stores that count what it reads.
    fn runtime_of(&self, record: &Arc<Record>, memory: Arc<QueryPool>) -> Arc<RuntimeEnv> {
        runtime_of(&self.runtime, &self.stores, record, memory)
    }

    async fn open(
        &self,
        query: &Query,
        runtime: &Arc<RuntimeEnv>,
        record: &Arc<Record>,
        spread: Option<&Spread>,
    ) -> Result<(SendableRecordBatchStream, Vec<u32>), QueryError> {
        let (context, snapshotter) = self.context(query, runtime, record.deadline());
        let context = match spread {
            Some(spread) => spread.session(context, record)?,
            None => context,
        };
        let (state, plan) = Box::pin(plan(&context, &query.sql)).await?.into_parts();
        let frame = DataFrame::new(state, parameters::bind(plan, &query.parameters)?);
        let stream = frame.execute_stream().await?;
        Ok((stream, snapshotter.missing()))
    }

    /// What the names in a query mean, and what takes the tables that it names.
    fn context(
        &self,
        query: &Query,
        runtime: &Arc<RuntimeEnv>,
        deadline: Instant,
    ) -> (SessionContext, Arc<Snapshotter>) {
        let datasets = self.access.datasets(&query.identity.tenant).into_iter().collect();
        let snapshotter = Arc::new(Snapshotter {
            lake: self.lake.clone(),
            groups: Arc::clone(&self.groups),
            queries: self.queries.clone(),
            tenant: query.identity.tenant.clone(),
            consistency: query.consistency,
            min_position: query.min_position,
            open: !self.access.enabled(),
            all_tenants: query.allowance.all_tenants,
            deadline,
            missing: Mutex::default(),
        });
        let tables = Arc::clone(&snapshotter);
        let catalog = Arc::new(TenantCatalog { snapshotter: tables, datasets, open: !self.access.enabled() });
        let mut builder = (self.session)()
            .with_runtime_env(Arc::clone(runtime))
            .with_catalog_list(Arc::new(OneCatalog(Arc::clone(&catalog))));
        builder.table_functions().get_or_insert_default().extend(as_of::functions(&catalog, &query.identity.dataset));
        let mut state = builder.build();
        state.config_mut().options_mut().catalog.default_schema = query.identity.dataset.to_string();
        (SessionContext::new_with_state(state), snapshotter)
    }
}

/// Whether columns can be null may differ from run to run: a value that is bound is null or not.
fn same_columns(one: &Schema, other: &Schema) -> bool {
    let columns = |schema: &Schema| -> Vec<(String, DataType)> {
        schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    columns(one) == columns(other)
}

/// Only queries: nothing that changes data, tables or settings.
async fn plan(context: &SessionContext, sql: &str) -> Result<DataFrame, QueryError> {
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let tokens = parameters::number_question_marks(sql, as_of::rewrite_clauses(sql)?)?;
    let Some(tokens) = tokens else { return Ok(context.sql_with_options(sql, options).await?) };
    let state = context.state();
    let statement = as_of::parse(tokens, state.config_options().sql_parser.recursion_limit)?;
    let plan = state.statement_to_plan(statement).await?;
    options.verify_plan(&plan)?;
    Ok(context.execute_logical_plan(plan).await?)
}

fn template(config: &QueryConfig) -> SessionState {
    let kept = Arc::new(KeptParts::new(config.cache_bytes_max));
    let mut session = SessionConfig::new()
        .with_target_partitions(config.partitions)
        .with_information_schema(true)
        .with_collect_statistics(false)
        // Scans find it there.
        .with_extension(Arc::clone(&kept))
        .with_default_catalog_and_schema(CATALOG, "default")
        // The default would be registered into the tenant's catalog list.
        .with_create_default_catalog_and_schema(false);
    let options = session.options_mut();
    options.sql_parser.collect_spans = true;
    options.execution.parquet.pushdown_filters = true;
    // Each of a query's sorts keeps it, and together they must leave room for what is sorted.
    let merges = config.query_memory_bytes / (4 * config.partitions.max(1));
    options.execution.sort_spill_reservation_bytes = merges.min(MERGE_BYTES_MAX);
    // It would move attributes['k'] below the view, out of reach of the rule that collapses it.
    options.optimizer.enable_leaf_expression_pushdown = false;
    options.execution.time_zone = Some("UTC".to_owned());
    let mut physical_rules = PhysicalOptimizer::new().rules;
    let before = physical_rules.iter().position(|rule| rule.name() == "EnsureCooperative");
    physical_rules.insert(before.unwrap_or(physical_rules.len()), Arc::new(NewestPages(kept)));
    let checks = physical_rules.iter().position(|rule| rule.name() == "SanityCheckPlan");
    physical_rules.insert(checks.unwrap_or(physical_rules.len()), Arc::new(RowFiltersThatPay));
    let mut builder = SessionStateBuilder::new()
        .with_config(session)
        .with_default_features()
        .with_optimizer_rules(optimizer_rules())
        .with_physical_optimizer_rules(physical_rules);
    let functions = builder.scalar_functions().get_or_insert_default();
    functions.extend([Arc::clone(&HEX_ID), Arc::clone(&ATTRIBUTES), Arc::clone(&ATTRIBUTE)]);
    builder.build()
}

/// DataFusion's rules, and those that see through the logical view.
pub(crate) fn optimizer_rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let mut rules = Optimizer::new().rules;
    let comparisons = rules.iter().position(|rule| rule.name() == "rewrite_set_comparison");
    rules.insert(comparisons.map_or(0, |at| at + 1), Arc::new(NarrowEarly::default()));
    let before = rules.iter().position(|rule| rule.name() == "push_down_filter").unwrap_or(0);
    rules.insert(before, Arc::new(CollapseView));
    rules.insert(before + 1, Arc::new(ComputeBelowView));
    rules
}
