//! Running queries: views, planning and execution on the CPU runtime, within memory, time and concurrency budgets.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::optimizer::Optimizer;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use signaldb_catalog::{Access, Identity};
use signaldb_lake::{Lake, LakeError, TableView};
use signaldb_model::{DatasetId, NodeId, Position, TableId, TenantId};
use signaldb_raft::{Group, Groups, ReadError};
use signaldb_signals::{Rows, SignalTable, schema};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{QueryError, QueryErrorKind};
use crate::logical_view::{ATTRIBUTES, HEX_ID};
use crate::names::{CATALOG, OneCatalog, TenantCatalog};
use crate::rewrite::CollapseView;
use crate::table::StoredTable;

/// Batches that wait for a slow client; then the query waits.
const OUTPUT_QUEUE: usize = 2;

/// Budgets of the node's queries.
#[derive(Debug, Clone)]
pub struct QueryConfig {
    /// Memory of all queries together; beyond it they spill to `spill_dir`.
    pub memory_bytes: usize,
    pub spill_dir: PathBuf,
    pub spill_bytes_max: u64,
    /// From arrival to the last row.
    pub deadline: Duration,
    /// Queries that run at once; others wait within their deadline.
    pub concurrency: usize,
    /// Threads that one query may use.
    pub partitions: usize,
    pub node: NodeId,
    pub address: String,
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
    pub consistency: Consistency,
    /// An acknowledged position that must be visible, whatever the consistency.
    pub min_position: Option<Position>,
}

/// Answers queries. Cheap to clone.
#[derive(Clone)]
pub struct QueryEngine(Arc<Inner>);

struct Inner {
    config: QueryConfig,
    lake: Lake,
    groups: Arc<Groups>,
    access: Access,
    runtime: Arc<RuntimeEnv>,
    template: SessionState,
    running: Semaphore,
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
    /// `None` says that the result is complete.
    batches: mpsc::Receiver<Result<Option<RecordBatch>, QueryError>>,
    _task: AbortOnDropHandle<()>,
}

impl RunningQuery {
    /// The next rows, `None` after the last.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        match self.batches.recv().await {
            Some(Ok(Some(batch))) => Some(Ok(batch)),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some(Err(error)),
            // The task went away in the middle: what was sent so far must not pass for the whole.
            None => Some(Err(late())),
        }
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
    /// # Errors
    /// When the spill directory cannot be used.
    pub fn new(
        config: QueryConfig,
        lake: Lake,
        groups: Arc<Groups>,
        access: Access,
        cpu: tokio::runtime::Handle,
    ) -> Result<Self, QueryError> {
        let consumers_named = NonZeroUsize::new(5).expect("five is not zero");
        let pool = TrackConsumersPool::new(FairSpillPool::new(config.memory_bytes), consumers_named);
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![config.spill_dir.clone()]))
            .with_max_temp_directory_size(config.spill_bytes_max);
        let runtime =
            RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).with_disk_manager_builder(disk).build_arc()?;
        let template = template(&config, &runtime);
        let running = Semaphore::new(config.concurrency);
        Ok(Self(Arc::new(Inner { config, lake, groups, access, runtime, template, running, cpu })))
    }

    /// Starts a query; returns once its first rows can be asked for, with the schema known.
    ///
    /// # Errors
    /// [`QueryErrorKind::Invalid`] with a position for bad SQL; [`QueryErrorKind::Unavailable`] when a strong read
    /// cannot be served now; [`QueryErrorKind::Deadline`].
    ///
    /// Cancel safety: dropping the future cancels the query.
    pub async fn run(&self, query: Query) -> Result<RunningQuery, QueryError> {
        let deadline = Instant::now() + self.0.config.deadline;
        let (opened, schema) = oneshot::channel();
        let (rows, batches) = mpsc::channel(OUTPUT_QUEUE);
        let inner = Arc::clone(&self.0);
        let task = self.0.cpu.spawn(async move { inner.drive(query, deadline, opened, rows).await });
        let task = AbortOnDropHandle::new(task);
        let schema = schema.await.map_err(|_| QueryError::new(QueryErrorKind::Internal, "the query's task died"))??;
        Ok(RunningQuery { schema, batches, _task: task })
    }
}

impl Inner {
    async fn drive(
        &self,
        query: Query,
        deadline: Instant,
        opened: oneshot::Sender<Result<SchemaRef, QueryError>>,
        rows: mpsc::Sender<Result<Option<RecordBatch>, QueryError>>,
    ) {
        metrics::counter!("signaldb_queries_total").increment(1);
        let open = async {
            let permit = self.running.acquire().await;
            let permit = permit.map_err(|_| QueryError::new(QueryErrorKind::Unavailable, "the node is stopping"))?;
            Ok::<_, QueryError>((permit, self.open(query).await?))
        };
        let (_permit, mut stream) = match tokio::time::timeout_at(deadline, Box::pin(open)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return drop(opened.send(Err(error))),
            Err(_) => return drop(opened.send(Err(late()))),
        };
        if opened.send(Ok(stream.schema())).is_err() {
            return;
        }
        loop {
            let item = match tokio::time::timeout_at(deadline, stream.next()).await {
                Ok(Some(item)) => item.map(Some).map_err(QueryError::from),
                Ok(None) => Ok(None),
                Err(_) => Err(late()),
            };
            let last = !matches!(item, Ok(Some(_)));
            // A receiver that is gone, or too slow for the deadline, ends the query.
            let sent = tokio::time::timeout_at(deadline, rows.send(item)).await;
            if last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }

    async fn open(&self, query: Query) -> Result<SendableRecordBatchStream, QueryError> {
        let datasets = self.access.datasets(&query.identity.tenant).into_iter().collect();
        let snapshotter = Arc::new(Snapshotter {
            lake: self.lake.clone(),
            groups: Arc::clone(&self.groups),
            tenant: query.identity.tenant.clone(),
            consistency: query.consistency,
            min_position: query.min_position,
            open: !self.access.enabled(),
            node: self.config.node,
            address: self.config.address.clone(),
        });
        let catalog = Arc::new(TenantCatalog { snapshotter, datasets, open: !self.access.enabled() });
        let mut state = SessionStateBuilder::new_from_existing(self.template.clone())
            .with_runtime_env(Arc::clone(&self.runtime))
            .with_catalog_list(Arc::new(OneCatalog(catalog)))
            .build();
        state.config_mut().options_mut().catalog.default_schema = query.identity.dataset.to_string();
        let context = SessionContext::new_with_state(state);
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = context.sql_with_options(&query.sql, options).await?;
        Ok(frame.execute_stream().await?)
    }
}

fn late() -> QueryError {
    QueryError::new(QueryErrorKind::Deadline, "the query did not finish within its deadline")
}

fn template(config: &QueryConfig, runtime: &Arc<RuntimeEnv>) -> SessionState {
    let mut session = SessionConfig::new()
        .with_target_partitions(config.partitions)
        .with_information_schema(true)
        .with_collect_statistics(false)
        .with_default_catalog_and_schema(CATALOG, "default")
        // The default would be registered into the tenant's catalog list.
        .with_create_default_catalog_and_schema(false);
    let options = session.options_mut();
    options.sql_parser.collect_spans = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.pushdown_filters = true;
    // It would move attributes['k'] below the view, out of reach of the rule that collapses it.
    options.optimizer.enable_leaf_expression_pushdown = false;
    options.execution.time_zone = Some("UTC".to_owned());
    let mut rules = Optimizer::new().rules;
    let before = rules.iter().position(|rule| rule.name() == "push_down_filter").unwrap_or(0);
    rules.insert(before, Arc::new(CollapseView));
    let mut builder = SessionStateBuilder::new()
        .with_config(session)
        .with_runtime_env(Arc::clone(runtime))
        .with_default_features()
        .with_optimizer_rules(rules);
    let functions = builder.scalar_functions().get_or_insert_default();
    functions.extend([Arc::clone(&HEX_ID), Arc::clone(&ATTRIBUTES)]);
    builder.build()
}

/// Takes the tenant's tables at the moment of one query (DESIGN section 7).
pub(crate) struct Snapshotter {
    pub(crate) lake: Lake,
    pub(crate) groups: Arc<Groups>,
    pub(crate) tenant: TenantId,
    consistency: Consistency,
    min_position: Option<Position>,
    /// Authentication is off.
    pub(crate) open: bool,
    pub(crate) node: NodeId,
    pub(crate) address: String,
}

impl Snapshotter {
    /// Views first, metadata second: then a flush that is in Iceberg and not yet applied is neither lost nor doubled.
    pub(crate) async fn table(&self, dataset: &DatasetId, table: SignalTable) -> Result<StoredTable, QueryError> {
        let id = TableId { tenant: self.tenant.clone(), dataset: dataset.clone(), code: table.code() };
        let mut views = Vec::new();
        for group in self.groups.homes(&self.tenant) {
            let index = self.read_index(&group).await?;
            let view = self.lake.view(group.id(), &id, index).await;
            views.extend(view.map(|view| (group, view)));
        }
        let Some(location) = self.newest_location(&id, table, &views).await? else {
            let rows = views.iter().flat_map(|(_, view)| rows_above(view, view.watermark)).collect();
            return Ok(StoredTable { schema: schema::of(table), files: Vec::new(), rows });
        };
        let metadata = self.lake.metadata_at(&location).await.map_err(lake_error)?;
        let cluster_id = &self.groups.founding().cluster_id;
        let mut rows = Vec::new();
        for (group, view) in &views {
            // The cut is the watermark of the metadata that is scanned, not the one that the view knew.
            let cut = self.lake.flushed_index(&metadata, cluster_id, group.id(), &id).map_err(lake_error)?;
            if cut < view.watermark {
                let message = format!("table {} went back behind its watermark {}", table.name(), view.watermark);
                return Err(QueryError::new(QueryErrorKind::Unavailable, message));
            }
            rows.extend(rows_above(view, cut));
        }
        let files = self.lake.data_files(&metadata).await.map_err(lake_error)?;
        Ok(StoredTable { schema: schema::of(table), files, rows })
    }

    async fn read_index(&self, group: &Arc<Group>) -> Result<u64, QueryError> {
        let strong = match self.consistency {
            Consistency::Strong => group.read_index().await.map_err(read_error)?,
            Consistency::Eventual => 0,
        };
        let asked = self.min_position.filter(|position| position.group == group.id()).map_or(0, |asked| asked.index);
        if asked > strong && asked > group.read_index().await.map_err(read_error)? {
            let message = format!("position {}:{asked} does not exist yet", group.id());
            return Err(QueryError::new(QueryErrorKind::Invalid, message));
        }
        Ok(strong.max(asked))
    }

    /// The newest metadata that any view names; the catalog is asked only while no view names one.
    async fn newest_location(
        &self,
        id: &TableId,
        table: SignalTable,
        views: &[(Arc<Group>, TableView)],
    ) -> Result<Option<String>, QueryError> {
        let newest = views.iter().map(|(_, view)| view).max_by_key(|view| view.version);
        if let Some(view) = newest.filter(|view| view.version >= 0) {
            return Ok(Some(view.location.clone()));
        }
        let found = self.lake.catalog().load(&id.namespace(), table.name()).await;
        found.map_err(|error| lake_error(LakeError::Catalog(error)))
    }
}

fn rows_above(view: &TableView, index: u64) -> impl Iterator<Item = Rows> + '_ {
    view.batches.iter().filter_map(move |batch| Some(batch.above(index)?.rows))
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn read_error(error: ReadError) -> QueryError {
    QueryError::new(QueryErrorKind::Unavailable, format!("a strong read cannot be served: {error}"))
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn lake_error(error: LakeError) -> QueryError {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    QueryError::new(QueryErrorKind::Unavailable, message)
}
