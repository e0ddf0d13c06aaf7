//! Views that another node holds, as this node's queries see them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::FlightClient;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, Ticket};
use bytes::Bytes;
use datafusion::common::{Result, Statistics};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan, SendableRecordBatchStream};
use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use signaldb_model::{GroupId, NodeId, TableId, TenantId};
use signaldb_proto::peer::{
    CANCEL_ACTION, CancelRequest, FLUSH_ACTION, FlushRequest, KILL_ACTION, KillRequest, KillResponse, MAINTAIN_ACTION,
    MaintainRequest, QUERIES_ACTION, QueriesRequest, QueriesResponse, RELEASE_ACTION, RowsTicket, VIEW_ACTION,
    ViewRequest, ViewResponse,
};
use signaldb_raft::{Lane, MESSAGE_BYTES_MAX, Peers};
use tonic::Status;

use crate::queries::{QueryId, QueryStatus};
use crate::views;

/// How long a leader may take to flush.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may maintain tables: it begins nothing after a minute, and what it began takes minutes at most.
const MAINTAIN_TIMEOUT: Duration = Duration::from_secs(600);

/// The rows of a view that a group's leader pinned, above an index.
#[derive(Debug, Clone)]
pub(crate) struct RemoteRows {
    pub(crate) lease: Arc<Lease>,
    pub(crate) above: u64,
}

/// A view that a leader holds for a query; given back when the last user is gone.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) peers: Arc<Peers>,
    pub(crate) leader: NodeId,
    pub(crate) view: Bytes,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (peers, leader, view) = (Arc::clone(&self.peers), self.leader, self.view.clone());
        // Without an answer the leader lets go by itself, at the query's deadline.
        self.runtime.spawn(async move {
            let ticket = RowsTicket { view, ..RowsTicket::default() };
            let released = act(&peers, leader, RELEASE_ACTION, ticket.encode_to_vec());
            drop(tokio::time::timeout(Duration::from_secs(2), released).await);
        });
    }
}

/// What a query asks a leader for.
pub(crate) struct ViewQuestion<'a> {
    pub(crate) group: GroupId,
    pub(crate) table: &'a TableId,
    pub(crate) strong: bool,
    pub(crate) min_index: u64,
    pub(crate) keep: Duration,
    pub(crate) may_miss: bool,
}

fn client(peers: &Peers, node: NodeId, lane: Lane) -> Result<FlightClient, Status> {
    let channel = peers.channel(node, lane)?;
    let inner = FlightServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut client = FlightClient::new_from_inner(inner);
    *client.metadata_mut() = peers.metadata(node);
    Ok(client)
}

fn status(error: arrow_flight::error::FlightError) -> Status {
    match error {
        arrow_flight::error::FlightError::Tonic(status) => *status,
        other => Status::unavailable(other.to_string()),
    }
}

/// Small messages: rows that somebody reads slowly must not hold up what other queries ask.
async fn act(peers: &Peers, node: NodeId, action: &str, body: Vec<u8>) -> Result<Bytes, Status> {
    let action = Action { r#type: action.to_owned(), body: body.into() };
    let mut results = client(peers, node, Lane::Control)?.do_action(action).await.map_err(status)?;
    results.try_next().await.map_err(status)?.ok_or_else(|| Status::internal("an action without a result"))
}

/// Asks the leader for a view.
pub(crate) async fn view(peers: &Peers, leader: NodeId, question: &ViewQuestion<'_>) -> Result<ViewResponse, Status> {
    let request = ViewRequest {
        group: question.group.0,
        tenant: question.table.tenant.to_string(),
        dataset: question.table.dataset.to_string(),
        table: question.table.code.0.into(),
        strong: question.strong,
        min_index: question.min_index,
        keep_ms: u32::try_from(question.keep.as_millis()).unwrap_or(u32::MAX),
        may_be_partial: question.may_miss,
    };
    let body = act(peers, leader, VIEW_ACTION, request.encode_to_vec()).await?;
    ViewResponse::decode(body).map_err(|error| Status::internal(error.to_string()))
}

/// Asks the leader to flush what it applied before.
pub(crate) async fn flush(peers: &Peers, leader: NodeId, group: GroupId) -> Result<(), Status> {
    let flush = act(peers, leader, FLUSH_ACTION, FlushRequest { group: group.0 }.encode_to_vec());
    let flushed = tokio::time::timeout(FLUSH_TIMEOUT, flush).await;
    flushed.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("node {leader} does not flush")))).map(drop)
}

/// Asks the leader to maintain tables; its report.
pub(crate) async fn maintain(peers: &Peers, leader: NodeId, request: &MaintainRequest) -> Result<String, Status> {
    let maintain = act(peers, leader, MAINTAIN_ACTION, request.encode_to_vec());
    let late = |_| Err(Status::deadline_exceeded(format!("node {leader} is still maintaining the tables")));
    let report = tokio::time::timeout(MAINTAIN_TIMEOUT, maintain).await.unwrap_or_else(late)?;
    String::from_utf8(report.into()).map_err(|_| Status::internal("the report is not text"))
}

/// The queries that run on a node.
pub(crate) async fn queries(
    peers: &Peers,
    node: NodeId,
    tenant: Option<&TenantId>,
) -> Result<Vec<QueryStatus>, Status> {
    let request = QueriesRequest { tenant: tenant.map(TenantId::to_string).unwrap_or_default() };
    let answer = act(peers, node, QUERIES_ACTION, request.encode_to_vec()).await?;
    let answer = QueriesResponse::decode(answer).map_err(|error| Status::internal(error.to_string()))?;
    Ok(answer.queries.into_iter().map(|query| QueryStatus::from_peer(node, query)).collect())
}

/// Has its node stop a query; says whether there was one.
pub(crate) async fn kill(peers: &Peers, id: QueryId, tenant: Option<&TenantId>) -> Result<bool, Status> {
    let tenant = tenant.map(TenantId::to_string).unwrap_or_default();
    let request = KillRequest { id: id.to_string(), tenant };
    let answer = act(peers, id.node, KILL_ACTION, request.encode_to_vec()).await?;
    Ok(KillResponse::decode(answer).map_err(|error| Status::internal(error.to_string()))?.found)
}

/// Has a node stop the queries that answer these tickets of the tenant's; says whether there was one.
pub(crate) async fn cancel(peers: &Peers, node: NodeId, tickets: &[Bytes], tenant: &TenantId) -> Result<bool, Status> {
    let request = CancelRequest { tickets: tickets.to_vec(), tenant: tenant.to_string() };
    let answer = act(peers, node, CANCEL_ACTION, request.encode_to_vec()).await?;
    Ok(KillResponse::decode(answer).map_err(|error| Status::internal(error.to_string()))?.found)
}

/// A plan that yields the rows with the columns of `projection`.
pub(crate) fn scan(
    rows: &RemoteRows,
    schema: &SchemaRef,
    projection: Option<&Vec<usize>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let columns = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
    let schema = Arc::new(schema.project(&columns)?);
    Ok(DataSourceExec::from_data_source(RemoteSource { rows: rows.clone(), schema, columns: columns.into() }))
}

/// One column of the rows, all of it, as it is stored.
#[cfg(feature = "testing")]
pub(crate) async fn collect(rows: &RemoteRows, schema: &SchemaRef, column: usize) -> Result<Vec<RecordBatch>> {
    let schema = Arc::new(schema.project(&[column])?);
    let source = RemoteSource { rows: rows.clone(), schema, columns: Arc::from([column]) };
    source.rows().await?.try_collect().await
}

#[derive(Debug, Clone)]
struct RemoteSource {
    rows: RemoteRows,
    /// With only `columns`.
    schema: SchemaRef,
    columns: Arc<[usize]>,
}

impl RemoteSource {
    /// As they come: texts are not views yet.
    async fn rows(self) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + 'static> {
        let failed = |error: Status| DataFusionError::External(Box::new(error));
        let ticket = RowsTicket {
            view: self.rows.lease.view.clone(),
            above: self.rows.above,
            columns: self.columns.iter().map(|column| *column as u32).collect(),
        };
        let mut client = client(&self.rows.lease.peers, self.rows.lease.leader, Lane::Rows).map_err(failed)?;
        let batches = client.do_get(Ticket { ticket: ticket.encode_to_vec().into() }).await;
        let batches = batches.map_err(|error| failed(status(error)))?;
        Ok(batches.map_err(move |error| failed(status(error))))
    }
}

impl DataSource for RemoteSource {
    fn open(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = futures::stream::once(self.clone().rows()).try_flatten();
        let rows = rows.map(|rows| views::with_views(&rows?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }

    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memtable of node {} above {}", self.rows.lease.leader, self.rows.above)
    }

    fn output_partitioning(&self) -> Partitioning {
        Partitioning::UnknownPartitioning(1)
    }

    fn eq_properties(&self) -> EquivalenceProperties {
        EquivalenceProperties::new(Arc::clone(&self.schema))
    }

    fn partition_statistics(&self, _partition: Option<usize>) -> Result<Arc<Statistics>> {
        Ok(Arc::new(Statistics::new_unknown(&self.schema)))
    }

    /// The stream is lazy: a limit above it simply stops asking.
    fn with_fetch(&self, _limit: Option<usize>) -> Option<Arc<dyn DataSource>> {
        None
    }

    fn fetch(&self) -> Option<usize> {
        None
    }

    fn try_swapping_with_projection(&self, _projection: &ProjectionExprs) -> Result<Option<Arc<dyn DataSource>>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::new_null_array;
    use arrow_flight::decode::FlightRecordBatchStream;
    use arrow_flight::encode::FlightDataEncoderBuilder;
    use futures::stream;
    use signaldb_signals::{SignalTable, schema};

    use super::*;

    /// What a leader sends has the types of its memtable, whatever queries make of them: nodes of other builds read it.
    #[tokio::test]
    async fn rows_that_came_from_another_node_have_the_columns_of_the_scan() {
        for table in SignalTable::ALL {
            let stored = Arc::clone(&schema::of(table).arrow);
            let columns = stored.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
            let row = RecordBatch::try_new(Arc::clone(&stored), columns).expect("a row of nulls");
            let encoded = FlightDataEncoderBuilder::new().with_schema(stored).build(stream::iter([Ok(row)]));
            let mut came = FlightRecordBatchStream::new_from_flight_data(encoded);
            let mut batches = 0;
            while let Some(batch) = came.try_next().await.expect("decodes") {
                let seen = views::with_views(&batch).expect("casts");
                assert_eq!(seen.schema().fields(), views::of(table).arrow.fields(), "{table:?}");
                batches += 1;
            }
            assert_eq!(batches, 1, "{table:?}");
        }
    }
}
