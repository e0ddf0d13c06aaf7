//! Flight between nodes: a group's leader pins a view of its memtable and serves the rows of it (DESIGN section 7).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, Result as ActionResult, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use prost::Message;
use signaldb_lake::{Lake, TableView};
use signaldb_model::{DatasetId, GroupId, TableCode, TableId, TenantId};
use signaldb_proto::peer::{
    CANCEL_ACTION, CancelRequest, FLUSH_ACTION, FlushRequest, KILL_ACTION, KillRequest, KillResponse, MAINTAIN_ACTION,
    MaintainRequest, QUERIES_ACTION, QueriesRequest, QueriesResponse, RELEASE_ACTION, RowsTicket, VIEW_ACTION,
    ViewRequest, ViewResponse,
};
use signaldb_raft::{Group, Groups, Peers};
use signaldb_signals::{SignalTable, schema};
use tokio::time::Instant;
use tonic::codegen::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use crate::engine::maintain;
use crate::error::{QueryError, lake_error};
use crate::queries::{Queries, QueryId, QueryStatus};
use crate::snapshot::{view_index, view_of};

/// Views that are pinned at a time; queries beyond wait for others to end.
const VIEWS_MAX: usize = 4096;
/// No view is kept longer, whatever is asked.
const KEEP_MAX: Duration = Duration::from_secs(600);
/// Rows of one message.
const BATCH_ROWS: usize = 8192;

/// The Flight service of the peer port.
pub struct PeerFlight {
    lake: Lake,
    /// Set once the groups are open; peers are served before.
    groups: Arc<OnceLock<Arc<Groups>>>,
    views: Mutex<HashMap<Bytes, Pinned>>,
    queries: Queries,
}

struct Pinned {
    view: TableView,
    table: SignalTable,
    until: Instant,
}

impl std::fmt::Debug for PeerFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerFlight").finish_non_exhaustive()
    }
}

impl PeerFlight {
    /// The service, for peers of this cluster only.
    pub fn service(
        lake: Lake,
        groups: Arc<OnceLock<Arc<Groups>>>,
        peers: Arc<Peers>,
        queries: Queries,
    ) -> InterceptedService<FlightServiceServer<Self>, impl tonic::service::Interceptor + Clone> {
        let check = move |request: Request<()>| {
            peers.check(&request.metadata().clone().into_headers())?;
            Ok(request)
        };
        let flight = FlightServiceServer::new(Self { lake, groups, views: Mutex::default(), queries });
        InterceptedService::new(flight, check)
    }

    fn group(&self, id: u32) -> Result<Arc<Group>, Status> {
        let groups = self.groups.get().ok_or_else(|| Status::unavailable("the node is starting"))?;
        groups.group(GroupId(id)).ok_or_else(|| Status::not_found(format!("there is no group {id}")))
    }

    async fn view(&self, request: ViewRequest) -> Result<ViewResponse, Status> {
        let group = self.group(request.group)?;
        let invalid = |error: signaldb_model::InvalidName| Status::invalid_argument(error.to_string());
        let code = TableCode(u8::try_from(request.table).unwrap_or(0));
        let table = SignalTable::from_code(code).ok_or_else(|| Status::invalid_argument("unknown table"))?;
        let id = TableId {
            tenant: TenantId::new(&request.tenant).map_err(invalid)?,
            dataset: DatasetId::new(&request.dataset).map_err(invalid)?,
            code,
        };
        let index = view_index(&group, request.strong, request.min_index).await.map_err(|error| error.to_status())?;
        let view = view_of(&self.lake, group.id(), &id, index, request.may_be_partial).await;
        let (view, whole) = view.map_err(|error| error.to_status())?;
        let partial = !whole;
        let Some(view) = view else { return Ok(ViewResponse { partial, ..ViewResponse::default() }) };
        let (watermark, floor) = (view.watermark, view.floor);
        let (version, location) = (view.version, view.location.clone());
        let until = Instant::now() + Duration::from_millis(request.keep_ms.into()).min(KEEP_MAX);
        let view = self.pin(Pinned { view, table, until })?;
        Ok(ViewResponse { found: true, watermark, version, location, view, floor, partial })
    }

    fn pin(&self, pinned: Pinned) -> Result<Bytes, Status> {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        views.retain(|_, view| view.until > now);
        if views.len() >= VIEWS_MAX {
            return Err(Status::unavailable("too many queries hold views of this node"));
        }
        let name = Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        views.insert(name.clone(), pinned);
        Ok(name)
    }

    fn rows(&self, ticket: &RowsTicket) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
        let columns: Vec<usize> = ticket.columns.iter().map(|column| *column as usize).collect();
        let (table, rows) = {
            let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
            let pinned = views.get(&ticket.view).ok_or_else(|| Status::not_found("the view is no longer held"))?;
            let rows = pinned.view.batches.iter().filter_map(|batch| Some(batch.above(ticket.above)?.rows));
            (pinned.table, rows.collect::<Vec<_>>())
        };
        let schema =
            schema::of(table).arrow.project(&columns).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let batches = rows.into_iter().flat_map(move |rows| {
            let columns = columns.clone();
            (0..rows.num_rows())
                .step_by(BATCH_ROWS)
                .map(move |start| rows.slice(start, BATCH_ROWS.min(rows.num_rows() - start)).project(&columns))
        });
        let batches = stream::iter(batches).map_err(FlightError::Arrow);
        let encoded = FlightDataEncoderBuilder::new().with_schema(Arc::new(schema)).build(batches);
        Ok(encoded.map_err(Status::from).boxed())
    }

    async fn flush(&self, request: &FlushRequest) -> Result<(), Status> {
        let group = self.group(request.group)?;
        if !group.is_leader() {
            return Err(Status::unavailable("another node leads the group"));
        }
        self.lake.flush(&[group]).await.map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn maintain(&self, request: &MaintainRequest) -> Result<String, Status> {
        let group = self.group(request.group)?;
        let groups = self.groups.get().ok_or_else(|| Status::unavailable("the node is starting"))?;
        let task = maintain::task_of(request).map_err(|error| error.to_status())?;
        let report = self.lake.maintain(&group, &groups.founding().cluster_id, &task).await;
        report.map(|report| report.to_json()).map_err(|error| lake_error(error).to_status())
    }
}

fn queries_of(queries: &Queries, request: &QueriesRequest) -> Result<QueriesResponse, Status> {
    let found = queries.statuses(named(&request.tenant)?.as_ref());
    Ok(QueriesResponse { queries: found.into_iter().map(QueryStatus::into_peer).collect() })
}

fn kill(queries: &Queries, request: &KillRequest) -> Result<KillResponse, Status> {
    let id: QueryId = request.id.parse().map_err(|error: QueryError| error.to_status())?;
    Ok(KillResponse { found: queries.kill(id, named(&request.tenant)?.as_ref()) })
}

fn cancel(queries: &Queries, request: &CancelRequest) -> Result<KillResponse, Status> {
    let tenant = TenantId::new(&request.tenant).map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(KillResponse { found: queries.cancel(&request.tickets, &tenant) })
}

/// The tenant that a message names, if it names one.
fn named(tenant: &str) -> Result<Option<TenantId>, Status> {
    let named = (!tenant.is_empty()).then(|| TenantId::new(tenant)).transpose();
    named.map_err(|error| Status::invalid_argument(error.to_string()))
}

type Boxed<T> = BoxStream<'static, Result<T, Status>>;

fn absent<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("peers ask for views and their rows"))
}

#[tonic::async_trait]
impl FlightService for PeerFlight {
    type HandshakeStream = Boxed<HandshakeResponse>;
    type ListFlightsStream = Boxed<FlightInfo>;
    type DoGetStream = Boxed<FlightData>;
    type DoPutStream = Boxed<PutResult>;
    type DoActionStream = Boxed<ActionResult>;
    type ListActionsStream = Boxed<ActionType>;
    type DoExchangeStream = Boxed<FlightData>;

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        fn decode<M: Message + Default>(body: Bytes) -> Result<M, Status> {
            M::decode(body).map_err(|error| Status::invalid_argument(error.to_string()))
        }
        let action = request.into_inner();
        let body = match action.r#type.as_str() {
            VIEW_ACTION => Bytes::from(self.view(decode(action.body)?).await?.encode_to_vec()),
            RELEASE_ACTION => {
                let ticket: RowsTicket = decode(action.body)?;
                self.views.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket.view);
                Bytes::new()
            }
            FLUSH_ACTION => {
                self.flush(&decode(action.body)?).await?;
                Bytes::new()
            }
            MAINTAIN_ACTION => Bytes::from(Box::pin(self.maintain(&decode(action.body)?)).await?),
            QUERIES_ACTION => queries_of(&self.queries, &decode(action.body)?)?.encode_to_vec().into(),
            CANCEL_ACTION => cancel(&self.queries, &decode(action.body)?)?.encode_to_vec().into(),
            KILL_ACTION => kill(&self.queries, &decode(action.body)?)?.encode_to_vec().into(),
            other => return Err(Status::unimplemented(format!("peers do not know the action {other}"))),
        };
        Ok(Response::new(stream::iter([Ok(ActionResult { body })]).boxed()))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let ticket = RowsTicket::decode(request.into_inner().ticket);
        let ticket = ticket.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(self.rows(&ticket)?))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        absent()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        absent()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        absent()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        absent()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        absent()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        absent()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        absent()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        absent()
    }
}
