//! Shares of other nodes' queries, as this node runs them.
//!
//! A share has the time and the bytes of the store that its query has left, memory of this node up to what one query may
//! hold, and this node's caches; its errors name what the whole query may use. It is listed like a query, and ends when the
//! query does: whoever asked closes the stream. What the headers say is believed, for the service is mounted on the peer port
//! alone.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::DataFusionError;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::physical_plan::ExecutionPlan;
use datafusion_distributed::{
    DistributedExt, Worker, WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse, WorkerPlanRewriteHandler,
    WorkerQueryContext,
};
use futures::future::BoxFuture;
use signaldb_catalog::Identity;
use signaldb_model::{DatasetId, NodeId, TenantId};
use signaldb_raft::Peers;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::codegen::http::{self, HeaderMap, HeaderValue};
use tonic::codegen::{Context, InterceptedService, Poll, Service};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Request, Status};

use super::seal::SealCodec;
use crate::error::{QueryError, QueryErrorKind, unavailable};
use crate::files::DataFiles;
use crate::kept::KeptParts;
use crate::metrics;
use crate::pool::{NodeMemory, QueryMemory, QueryPool};
use crate::queries::{Left, Listed, Queries, QueryId, Record};
use crate::scanned::Stores;

/// A plan is read only by the version that wrote it.
const VERSION: &str = env!("CARGO_PKG_VERSION");

const VERSION_KEY: &str = "x-signaldb-version";
const QUERY_KEY: &str = "x-signaldb-query";
const TENANT_KEY: &str = "x-signaldb-tenant";
const DATASET_KEY: &str = "x-signaldb-dataset";
const TIME_KEY: &str = "x-signaldb-time-ms";
const TIME_MAX_KEY: &str = "x-signaldb-time-max-ms";
const SCAN_KEY: &str = "x-signaldb-scan-bytes";
const SCAN_MAX_KEY: &str = "x-signaldb-scan-bytes-max";

/// What a worker has to know of a query; it travels as headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    query: QueryId,
    identity: Identity,
    left: Left,
}

impl Asked {
    pub(super) fn of(record: &Record) -> Self {
        Self { query: record.id(), identity: record.identity().clone(), left: record.left() }
    }

    /// # Errors
    /// When a name is no header; names are letters, digits and dashes.
    pub(super) fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        let mut put = |key: &'static str, value: String| {
            let value = HeaderValue::try_from(value).map_err(|error| DataFusionError::External(Box::new(error)))?;
            headers.insert(key, value);
            Ok::<_, DataFusionError>(())
        };
        put(VERSION_KEY, VERSION.to_owned())?;
        put(QUERY_KEY, self.query.to_string())?;
        put(TENANT_KEY, self.identity.tenant.to_string())?;
        put(DATASET_KEY, self.identity.dataset.to_string())?;
        put(TIME_KEY, self.left.time.as_millis().to_string())?;
        put(TIME_MAX_KEY, self.left.time_max.as_millis().to_string())?;
        for (key, bytes) in [(SCAN_KEY, self.left.scan_bytes), (SCAN_MAX_KEY, self.left.scan_bytes_max)] {
            if let Some(bytes) = bytes {
                put(key, bytes.to_string())?;
            }
        }
        Ok(headers)
    }

    /// # Errors
    /// UNAVAILABLE when another version asks, or something is missing: then the query runs where it was asked.
    fn read(headers: &HeaderMap) -> Result<Self, QueryError> {
        let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
        let needed = |key: &str| text(key).ok_or_else(|| unavailable(format!("a share of a query has no {key}")));
        let version = needed(VERSION_KEY)?;
        if version != VERSION {
            return Err(unavailable(format!("version {version} asks version {VERSION} for a share of a query")));
        }
        let wrong = |key: &str| unavailable(format!("a share of a query has another {key} than this version knows"));
        let number = |key: &str| text(key).map(str::parse::<u64>).transpose().map_err(|_| wrong(key));
        let time = needed(TIME_KEY)?.parse::<u64>().map_err(|_| wrong(TIME_KEY))?;
        let scan_bytes = number(SCAN_KEY)?;
        // Who does not say what the whole query may use had it begin with this, for all that anybody can tell.
        let left = Left {
            time: Duration::from_millis(time),
            time_max: Duration::from_millis(number(TIME_MAX_KEY)?.unwrap_or(time)),
            scan_bytes,
            scan_bytes_max: number(SCAN_MAX_KEY)?.or(scan_bytes),
        };
        Ok(Self {
            query: needed(QUERY_KEY)?.parse()?,
            identity: Identity {
                tenant: TenantId::new(needed(TENANT_KEY)?).map_err(|_| wrong(TENANT_KEY))?,
                dataset: DatasetId::new(needed(DATASET_KEY)?).map_err(|_| wrong(DATASET_KEY))?,
            },
            left,
        })
    }
}

/// What one query runs in: its own memory, and stores that count what it reads.
pub(crate) fn runtime_of(
    shared: &RuntimeEnv,
    stores: &Stores,
    record: &Arc<Record>,
    memory: Arc<QueryPool>,
) -> Arc<RuntimeEnv> {
    let mut runtime = shared.clone();
    runtime.memory_pool = memory;
    runtime.object_store_registry = stores.counted(record);
    Arc::new(runtime)
}

/// What shares run in.
#[derive(Debug)]
pub(crate) struct Host {
    node: NodeId,
    /// The session of this node's own queries.
    template: SessionState,
    runtime: Arc<RuntimeEnv>,
    stores: Stores,
    memory: Arc<NodeMemory>,
    /// Of one query.
    query_memory_bytes: usize,
    queries: Queries,
    /// All shares of one query are one guest.
    guests: Mutex<HashMap<QueryId, Weak<Guest>>>,
}

/// A query of which this node does shares.
#[derive(Debug)]
pub(super) struct Guest {
    record: Arc<Record>,
    /// `None`: this node was asked itself, and lists the query as its own.
    lists: Option<Queries>,
    runtime: Arc<RuntimeEnv>,
    reported_bytes: AtomicU64,
    work: Mutex<Work>,
}

/// How many streams of a guest somebody reads. What has been prepared for it may be kept for longer, by whoever carries
/// plans; that does not count.
#[derive(Debug, Default)]
struct Work {
    streams: usize,
    listed: Option<Listed>,
}

/// One stream of a guest.
#[derive(Debug)]
pub(super) struct Share(Arc<Guest>);

impl Drop for Share {
    fn drop(&mut self) {
        let mut work = self.0.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.streams -= 1;
        if work.streams == 0 {
            work.listed = None;
        }
    }
}

impl Guest {
    pub(super) fn begin(self: &Arc<Self>) -> Share {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.streams += 1;
        if work.streams == 1 {
            work.listed = self.lists.as_ref().map(|queries| queries.enlist_share(&self.record));
        }
        Share(Arc::clone(self))
    }
}

impl Share {
    /// Does a part of the work until the query's deadline, or until somebody stops it.
    pub(super) async fn within<T>(&self, work: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
        self.0.record.within(work).await
    }

    /// Bytes that the guest has read since the last call. Where the query was asked they are counted at once.
    pub(super) fn unreported_bytes(&self) -> u64 {
        let guest = &self.0;
        if guest.lists.is_none() {
            return 0;
        }
        let scanned = guest.record.scanned_bytes();
        scanned.saturating_sub(guest.reported_bytes.fetch_max(scanned, Ordering::Relaxed))
    }
}

impl Host {
    /// Of the node whose queries share `runtime`, `stores` and `memory`; a share may hold `query_memory_bytes` of it.
    pub(crate) fn new(
        node: NodeId,
        template: SessionState,
        runtime: Arc<RuntimeEnv>,
        stores: Stores,
        memory: Arc<NodeMemory>,
        query_memory_bytes: usize,
        queries: Queries,
    ) -> Self {
        Self { node, template, runtime, stores, memory, query_memory_bytes, queries, guests: Mutex::default() }
    }

    /// The session of a share.
    ///
    /// # Errors
    /// As for [`Asked::read`]; and when the query that asks has ended meanwhile.
    fn session(&self, asker: WorkerQueryContext) -> Result<SessionState, QueryError> {
        let WorkerQueryContext { mut builder, headers } = asker;
        let guest = self.guest(&Asked::read(&headers)?)?;
        let kept = self.template.config().get_extension::<KeptParts>().unwrap_or_else(|| Arc::new(KeptParts::new(0)));
        let config = builder.config().take().unwrap_or_default();
        let mut config = config.with_create_default_catalog_and_schema(false);
        // Time zone, sizes of batches, how files are read: as everywhere.
        config.options_mut().execution = self.template.config_options().execution.clone();
        config.set_distributed_user_codec(SealCodec);
        let readers = OwnReaders { runtime: Arc::clone(&guest.runtime), kept };
        config.set_distributed_worker_plan_rewrite_handler(readers);
        let runtime = Arc::clone(&guest.runtime);
        config.set_extension(guest);
        Ok(SessionStateBuilder::new_from_existing(self.template.clone())
            .with_config(config)
            .with_runtime_env(runtime)
            .build())
    }

    fn guest(&self, asked: &Asked) -> Result<Arc<Guest>, QueryError> {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guest) = guests.get(&asked.query).and_then(Weak::upgrade) {
            return Ok(guest);
        }
        guests.retain(|_, guest| guest.strong_count() > 0);
        let (record, memory, lists) = match asked.query.node == self.node {
            true => {
                let ended = || unavailable(format!("query {} has ended", asked.query));
                let record = self.queries.find(asked.query).ok_or_else(ended)?;
                let memory = record.memory().ok_or_else(ended)?;
                (record, memory, None)
            }
            false => {
                let text = format!("a share of query {}", asked.query);
                let record = self.queries.record_of_shares(&asked.identity, &text, asked.left);
                let memory = QueryMemory::pool_of_guest(&self.memory, self.query_memory_bytes);
                record.plans(Arc::clone(&memory));
                record.runs();
                metrics::note_guest();
                (record, memory, Some(self.queries.clone()))
            }
        };
        let runtime = runtime_of(&self.runtime, &self.stores, &record, memory);
        let reported_bytes = AtomicU64::new(0);
        let guest = Arc::new(Guest { record, lists, runtime, reported_bytes, work: Mutex::default() });
        guests.insert(asked.query, Arc::downgrade(&guest));
        Ok(guest)
    }
}

/// Files are read with what this node keeps of them.
struct OwnReaders {
    runtime: Arc<RuntimeEnv>,
    kept: Arc<KeptParts>,
}

impl OwnReaders {
    fn reread(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
        let scan = plan.downcast_ref::<DataSourceExec>();
        let Some((config, source)) = scan.and_then(DataSourceExec::downcast_to_file_source::<ParquetSource>) else {
            return Ok(Transformed::no(plan));
        };
        let store = self.runtime.object_store(&config.object_store_url)?;
        let reader = DataFiles { store, kept: Arc::clone(&self.kept) };
        let source = source.clone().with_parquet_file_reader_factory(Arc::new(reader));
        let config = FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source)).build();
        let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(config);
        Ok(Transformed::yes(plan))
    }
}

impl WorkerPlanRewriteHandler for OwnReaders {
    fn rewrite_worker_plan(&self, event: WorkerPlanRewriteEvent<'_>) -> Result<WorkerPlanRewriteEventResponse> {
        let plan = event.plan.transform_down(|plan| self.reread(plan))?.data;
        Ok(WorkerPlanRewriteEventResponse::new(plan))
    }
}

/// Does shares of queries, once there is an engine. Cheap to clone.
#[derive(Clone)]
pub struct PeerWorker {
    worker: Worker,
    host: Arc<OnceLock<Host>>,
    cpu: tokio::runtime::Handle,
}

impl fmt::Debug for PeerWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerWorker").finish_non_exhaustive()
    }
}

impl PeerWorker {
    /// Runs on `cpu`.
    pub fn new(cpu: tokio::runtime::Handle) -> Self {
        let host = Arc::new(OnceLock::<Host>::new());
        let found = Arc::clone(&host);
        let worker = Worker::from_session_builder(move |asker: WorkerQueryContext| {
            let starting = || QueryError::new(QueryErrorKind::Unavailable, "the node is starting");
            let session = found.get().ok_or_else(starting).and_then(|host| host.session(asker));
            std::future::ready(session.map_err(DataFusionError::from))
        });
        Self { worker, host, cpu }
    }

    /// Adds the service to those of the peer port, for peers of this cluster only.
    pub fn mount(&self, routes: Routes, peers: Arc<Peers>) -> Routes {
        let check = move |request: Request<()>| -> Result<Request<()>, Status> {
            peers.check(&request.metadata().clone().into_headers())?;
            Ok(request)
        };
        let service = OnCpu { service: self.worker.clone().into_worker_server(), cpu: self.cpu.clone() };
        routes.add_service(InterceptedService::new(service, check))
    }

    /// From now on there is somebody to do the work.
    pub(crate) fn serve(&self, host: Host) {
        // There is one engine.
        let _ = self.host.set(host);
    }

    pub(super) fn worker(&self) -> &Worker {
        &self.worker
    }
}

/// Answers calls on another runtime than that of the connection, which acknowledges writes too.
#[derive(Clone)]
struct OnCpu<S> {
    service: S,
    cpu: tokio::runtime::Handle,
}

impl<S: NamedService> NamedService for OnCpu<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for OnCpu<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut service = self.service.clone();
        let answer = AbortOnDropHandle::new(self.cpu.spawn(async move {
            poll_fn(|context| service.poll_ready(context)).await?;
            service.call(request).await
        }));
        Box::pin(async move {
            answer.await.unwrap_or_else(|_| Ok(Status::unavailable("the share of the query died").into_http()))
        })
    }
}

#[cfg(test)]
mod tests {
    use signaldb_model::SystemClock;
    use tokio::time::Instant;

    use super::*;

    fn asked() -> Asked {
        Asked {
            query: "3-00000000000000ab".parse().expect("an id"),
            identity: Identity {
                tenant: TenantId::new("acme").expect("a name"),
                dataset: DatasetId::new("production").expect("a name"),
            },
            left: Left {
                time: Duration::from_millis(1500),
                time_max: Duration::from_secs(30),
                scan_bytes: Some(1 << 20),
                scan_bytes_max: Some(1 << 30),
            },
        }
    }

    #[test]
    fn a_worker_hears_all_of_a_query() {
        let unbounded = Left { scan_bytes: None, scan_bytes_max: None, ..asked().left };
        for asked in [asked(), Asked { left: unbounded, ..asked() }] {
            assert_eq!(Asked::read(&asked.headers().expect("are headers")).expect("reads"), asked);
        }
    }

    /// As builds of this version said it before errors named more.
    #[test]
    fn who_says_only_what_is_left_is_understood() {
        let mut headers = asked().headers().expect("are headers");
        for key in [TIME_MAX_KEY, SCAN_MAX_KEY] {
            assert!(headers.remove(key).is_some(), "{key}");
        }
        let left = asked().left;
        let left = Left { time_max: left.time, scan_bytes_max: left.scan_bytes, ..left };
        assert_eq!(Asked::read(&headers).expect("reads"), Asked { left, ..asked() });
    }

    #[test]
    fn any_time_that_is_left_is_a_deadline_and_what_is_no_time_is_refused() {
        let with_time = |time: &'static str| {
            let mut headers = asked().headers().expect("are headers");
            headers.insert(TIME_KEY, HeaderValue::from_static(time));
            Asked::read(&headers)
        };
        let queries = Queries::new(NodeId(1), Arc::new(SystemClock));
        for time in ["1000", "9223372036854775807", "18446744073709551615"] {
            let asked = with_time(time).expect("reads");
            let share = queries.record_of_shares(&asked.identity, "a share", asked.left);
            assert!(share.deadline() > Instant::now(), "{time}");
        }
        for time in ["", "-1", "1.5", "soon", "18446744073709551616"] {
            assert_eq!(with_time(time).expect_err("refused").kind, QueryErrorKind::Unavailable, "{time}");
        }
    }

    #[test]
    fn another_version_or_half_a_question_is_refused() {
        let good = asked().headers().expect("are headers");
        for key in [VERSION_KEY, QUERY_KEY, TENANT_KEY, DATASET_KEY, TIME_KEY] {
            let mut bad = good.clone();
            bad.remove(key);
            assert_eq!(Asked::read(&bad).expect_err("refused").kind, QueryErrorKind::Unavailable, "{key}");
        }
        let mut other = good;
        other.insert(VERSION_KEY, HeaderValue::from_static("0.0.0-other"));
        assert_eq!(Asked::read(&other).expect_err("refused").kind, QueryErrorKind::Unavailable);
    }
}
