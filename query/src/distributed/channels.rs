//! The way to the nodes that do shares of a query.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest, GetWorkerInfoResponse,
    TaskMetrics, Worker, WorkerChannel, WorkerToCoordinatorMsg, grpc,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use signaldb_model::NodeId;
use signaldb_raft::{Lane, Peers};
use tokio::time::Instant;
use tonic::codegen::http::HeaderMap;
use url::Url;

use super::seal::tagged;
use super::worker::PeerWorker;
use crate::error::unavailable;

/// How long a node gets no shares after one was lost there.
const SUSPICION: Duration = Duration::from_secs(30);
/// Operators of a share, and more: there are numbers for each of them, or for too many.
const OPERATORS_MAX: usize = 1000;

/// Names a node to datafusion-distributed; nobody connects to it.
///
/// # Errors
/// None: a number is a host.
pub(super) fn url_of(node: NodeId) -> Result<Url> {
    Url::parse(&format!("node://{node}")).map_err(|error| DataFusionError::External(Box::new(error)))
}

fn node_of(url: &Url) -> Option<NodeId> {
    url.host_str().and_then(|host| host.parse().ok()).map(NodeId)
}

/// The nodes that do shares, and the way to them.
pub(crate) trait Reach: fmt::Debug + Send + Sync + 'static {
    /// Those that may be asked now, in the same order as long as they are the same.
    fn nodes(&self) -> Vec<NodeId>;

    /// # Errors
    /// UNAVAILABLE for a node that nobody knows.
    fn channel(&self, node: NodeId) -> Result<Box<dyn WorkerChannel>>;

    /// A share was lost there.
    fn suspect(&self, node: NodeId);
}

/// The nodes of the cluster, this one included.
#[derive(Debug)]
pub(crate) struct Cluster {
    peers: Arc<Peers>,
    here: PeerWorker,
    suspects: Mutex<HashMap<NodeId, Instant>>,
}

impl Cluster {
    pub(crate) fn new(peers: Arc<Peers>, here: PeerWorker) -> Self {
        Self { peers, here, suspects: Mutex::default() }
    }
}

impl Reach for Cluster {
    fn nodes(&self) -> Vec<NodeId> {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.retain(|_, since| since.elapsed() < SUSPICION);
        self.peers.addresses().keys().copied().filter(|node| !suspects.contains_key(node)).collect()
    }

    fn channel(&self, node: NodeId) -> Result<Box<dyn WorkerChannel>> {
        if node == self.peers.node() {
            return Ok(Box::new(Here(self.here.worker().clone())));
        }
        // Apart from rows that are in memory alone, which strong reads wait for.
        let channel =
            self.peers.channel(node, Lane::Shares).map_err(|status| unavailable(status.message().to_owned()))?;
        let inner = grpc::create_worker_client(grpc::BoxCloneSyncChannel::new(channel));
        Ok(Box::new(There { inner, identity: self.peers.metadata(node).into_headers() }))
    }

    fn suspect(&self, node: NodeId) {
        // What this node loses it has lost for reasons that are its own.
        if node != self.peers.node() {
            self.suspects.lock().unwrap_or_else(PoisonError::into_inner).insert(node, Instant::now());
        }
    }
}

/// Finds the way by a node's name.
pub(super) struct Channels(pub(super) Arc<dyn Reach>);

#[async_trait]
impl ChannelResolver for Channels {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        let node = node_of(url).ok_or_else(|| unavailable(format!("{url} names no node")))?;
        let inner = self.0.channel(node)?;
        Ok(Box::new(Watched { inner, node, reach: Arc::clone(&self.0) }))
    }
}

/// A share that is done by the node that was asked, without a connection.
pub(super) struct Here(pub(super) Worker);

#[async_trait]
impl WorkerChannel for Here {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        self.0.coordinator_channel(headers, messages.map(Ok).boxed()).await
    }

    async fn execute_task(
        &mut self,
        _headers: HeaderMap,
        request: ExecuteTaskRequest,
        _metrics: ExecutionPlanMetricsSet,
        _context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let (streams, _) = self.0.execute_task(request).await?;
        Ok(streams.into_iter().map(StreamExt::boxed).collect())
    }

    async fn get_worker_info(&mut self, _request: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        Ok(GetWorkerInfoResponse { version: self.0.version().to_owned() })
    }
}

/// A share that another node does; every call says who calls.
struct There {
    inner: Box<dyn WorkerChannel>,
    identity: HeaderMap,
}

impl There {
    fn signed(&self, mut headers: HeaderMap) -> HeaderMap {
        headers.extend(self.identity.clone());
        headers
    }
}

#[async_trait]
impl WorkerChannel for There {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        let headers = self.signed(headers);
        self.inner.coordinator_channel(headers, messages).await
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let headers = self.signed(headers);
        self.inner.execute_task(headers, request, metrics, context).await
    }

    async fn get_worker_info(&mut self, request: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        self.inner.get_worker_info(request).await
    }
}

/// Notes which node loses shares.
struct Watched {
    inner: Box<dyn WorkerChannel>,
    node: NodeId,
    reach: Arc<dyn Reach>,
}

/// What a worker says of the query is the query's failure; anything else is the worker's.
fn watch(reach: &dyn Reach, node: NodeId, error: &DataFusionError) {
    if tagged(error).is_none() {
        tracing::warn!(peer = %node, error = %error.strip_backtrace(), "a node failed that does a share of a query");
        reach.suspect(node);
    }
}

/// What a worker says beside rows, which is numbers. Whether the rows are whole their seals say, so nothing that goes wrong
/// here fails a query that has them. `EXPLAIN ANALYZE` waits for the numbers of every share, also of one that nobody wanted
/// rows of, as of a join whose other side is empty: where a worker says none, there are none.
fn beside_rows(
    answers: BoxStream<'static, Result<WorkerToCoordinatorMsg>>,
    lost: impl Fn(&DataFusionError) + Send + 'static,
) -> BoxStream<'static, Result<WorkerToCoordinatorMsg>> {
    let answers = stream::unfold(Some((answers, lost, false)), |state| async move {
        let (mut answers, lost, told) = state?;
        match answers.next().await {
            Some(Ok(answer)) => {
                let told = told || matches!(answer, WorkerToCoordinatorMsg::TaskMetrics(_));
                return Some((Ok(answer), Some((answers, lost, told))));
            }
            Some(Err(error)) => lost(&error),
            None => {}
        }
        (!told).then(|| (Ok(WorkerToCoordinatorMsg::TaskMetrics(no_numbers())), None))
    });
    answers.boxed()
}

fn no_numbers() -> TaskMetrics {
    TaskMetrics { pre_order_plan_metrics: vec![MetricsSet::new(); OPERATORS_MAX], task_metrics: MetricsSet::new() }
}

#[async_trait]
impl WorkerChannel for Watched {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        let answers = self.inner.coordinator_channel(headers, messages).await;
        let answers = answers.unwrap_or_else(|error| stream::once(async move { Err(error) }).boxed());
        let (reach, node) = (Arc::clone(&self.reach), self.node);
        Ok(beside_rows(answers, move |error| watch(reach.as_ref(), node, error)))
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let streams = self.inner.execute_task(headers, request, metrics, context).await;
        let streams = streams.inspect_err(|error| watch(self.reach.as_ref(), self.node, error))?;
        let watched = |rows: BoxStream<'static, Result<RecordBatch>>| {
            let (reach, node) = (Arc::clone(&self.reach), self.node);
            rows.inspect(move |rows| {
                if let Err(error) = rows {
                    watch(reach.as_ref(), node, error);
                }
            })
            .boxed()
        };
        Ok(streams.into_iter().map(watched).collect())
    }

    async fn get_worker_info(&mut self, request: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        self.inner.get_worker_info(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_by_its_name() {
        for node in [1, 7, u64::MAX].map(NodeId) {
            let url = url_of(node).expect("a url");
            assert_eq!(node_of(&url), Some(node));
            assert_eq!(Url::parse(url.as_str()).as_ref(), Ok(&url), "it travels as a text");
        }
        assert_eq!(node_of(&Url::parse("node://x").expect("a url")), None);
    }
}
