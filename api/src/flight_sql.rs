//! Flight SQL: handshake, statements, prepared statements with parameters, metadata, cancellation.
//!
//! Stateless: a ticket or handle is the statement itself with what was bound to it ([`statement`]), a session is its token,
//! and whose request it is comes from the metadata of every call. So a load balancer may send each call to another node.

mod bind;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod info;
mod service;
mod statement;
mod wire;

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use arrow_flight::sql::{Any, ProstMessageExt, TicketStatementQuery};
use arrow_flight::{CancelStatus, FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, SchemaAsIpc, Ticket};
use axum::http::HeaderMap;
use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use signaldb_catalog::Identity;
use signaldb_model::DatasetId;
use signaldb_model::limits::REQUEST_BYTES_MAX;
use signaldb_query::{
    Allowance, Consistency, Description, Parameters, Query, QueryError, QueryErrorKind, RunningQuery, SYSTEM_SCHEMA,
    SYSTEM_TABLES,
};
use signaldb_signals::SignalTable;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use self::statement::Statement;
use self::wire::Wire;
use crate::app::App;
use crate::edge;
use crate::error::{ApiError, Kind};
use crate::format::{PARTIAL, missing_groups};
use crate::identity::{header, identify};
use crate::reading::{CONSISTENCY, MIN_POSITION, Reading, ReadingParameters, consistency, position};

type DoGet = <FlightSql as FlightService>::DoGetStream;

/// Name of the one catalog that clients see.
const CATALOG: &str = "signaldb";
const TABLE: &str = "BASE TABLE";
const SYSTEM_TABLE: &str = "SYSTEM TABLE";

const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";
/// Asks for rows that clients of few types can show, Grafana's source among them (`edge.rs`).
const FLATTEN: &str = "x-signaldb-flatten";

pub(crate) struct FlightSql {
    app: App,
    info: SqlInfoData,
    types: XdbcTypeInfoData,
}

impl fmt::Debug for FlightSql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlightSql").finish_non_exhaustive()
    }
}

pub(crate) fn service(app: App) -> Result<FlightServiceServer<Wire>, FlightError> {
    let sql = FlightSql { app, info: info::sql_info()?, types: info::types()? };
    Ok(FlightServiceServer::new(Wire(sql)).max_decoding_message_size(REQUEST_BYTES_MAX))
}

fn status(error: impl Into<ApiError>) -> Status {
    error.into().grpc_status()
}

fn internal(error: impl fmt::Display) -> ApiError {
    ApiError::new(Kind::Internal, error.to_string())
}

/// Says by name what is not done here.
fn unsupported<T>(what: &str) -> Result<T, Status> {
    Err(status(ApiError::new(Kind::NotImplemented, format!("{what} is not supported"))))
}

/// An error of a stream; one without a name comes from encoding rows.
fn stream_status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => status(internal(other)),
    }
}

/// One endpoint without a place: the rows are wherever the client is connected to.
fn flight_info(
    schema: &Schema,
    ticket: &impl ProstMessageExt,
    descriptor: FlightDescriptor,
) -> Result<Response<FlightInfo>, Status> {
    let ticket = Ticket::new(ticket.as_any().encode_to_vec());
    let info = FlightInfo::new().try_with_schema(schema).map_err(|error| status(internal(error)))?;
    Ok(Response::new(info.with_endpoint(FlightEndpoint::new().with_ticket(ticket)).with_descriptor(descriptor)))
}

fn ipc_schema(schema: &Schema) -> Result<Bytes, ApiError> {
    let IpcMessage(bytes) =
        IpcMessage::try_from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).map_err(internal)?;
    Ok(bytes)
}

/// The statement as this call asks for it: its headers go before those of the call that made the ticket or handle.
fn with_headers(mut statement: Statement, headers: &HeaderMap) -> Result<Statement, ApiError> {
    if let Some(wanted) = header(headers, CONSISTENCY)? {
        consistency(Some(wanted))?;
        wanted.clone_into(&mut statement.consistency);
    }
    if let Some(wanted) = header(headers, MIN_POSITION)? {
        position(wanted)?;
        wanted.clone_into(&mut statement.min_position);
    }
    if let Some(flatten) = header(headers, FLATTEN)? {
        let expected = || ApiError::invalid(format!("{FLATTEN} is {flatten:?}; expected true or false"));
        statement.flat = flatten.parse::<bool>().map_err(|_| expected())?;
    }
    Ok(statement)
}

fn said(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// What a ticket of a result holds.
fn statement_of(ticket: &Ticket) -> Result<Statement, ApiError> {
    let ticket = Any::decode(&*ticket.ticket).ok().and_then(|any| any.unpack::<TicketStatementQuery>().ok().flatten());
    let ticket = ticket.ok_or_else(|| ApiError::invalid("this ticket is not one of a query"))?;
    Statement::from_bytes(&ticket.statement_handle)
}

impl FlightSql {
    fn identify(&self, metadata: &MetadataMap) -> Result<Identity, Status> {
        let identity = identify(&self.app, metadata.as_ref()).map_err(status)?;
        self.app.prepare(&identity);
        Ok(identity)
    }

    /// A statement that a client asks for.
    fn statement(&self, sql: String, metadata: &MetadataMap) -> Result<Statement, Status> {
        let identity = self.identify(metadata)?;
        let (tenant, dataset) = (identity.tenant.to_string(), identity.dataset.to_string());
        let statement = Statement { sql, tenant, dataset, ..Statement::default() };
        with_headers(statement, metadata.as_ref()).map_err(status)
    }

    /// A statement that a client brings back.
    fn reopened(&self, handle: &[u8], metadata: &MetadataMap) -> Result<Statement, ApiError> {
        with_headers(Statement::from_bytes(handle)?, metadata.as_ref())
    }

    /// The query, without parameters, as the caller may run it.
    fn query(&self, statement: &Statement, metadata: &MetadataMap) -> Result<Query, ApiError> {
        let caller = identify(&self.app, metadata.as_ref())?;
        self.app.prepare(&caller);
        let (access, tenant) = (&self.app.access, caller.tenant.clone());
        let may_use = |dataset: &DatasetId| !access.enabled() || access.datasets(&tenant).contains(dataset);
        let parameters =
            ReadingParameters { consistency: said(&statement.consistency).map(str::to_owned), deadline: None };
        let reading = Reading::of(&self.app, &parameters, metadata.as_ref())?;
        let min_position = said(&statement.min_position).map(position).transpose()?;
        Ok(Reading { min_position, ..reading }.query(statement.identity(caller, may_use)?, statement.sql.clone()))
    }

    /// What a statement gives and takes, with the first row of what is bound to it.
    async fn describe(&self, statement: &Statement, metadata: &MetadataMap) -> Result<Description, ApiError> {
        let query = self.query(statement, metadata)?;
        let parameters = match &statement.bound {
            Some(bound) => {
                let rows = bind::rows(bound).await?;
                if rows.num_rows() > 0 { Parameters::of_rows(rows) } else { Parameters::default() }
            }
            None => Parameters::default(),
        };
        // No row is read, so none can be missing; what cannot be read now is said when it is.
        let query = Query { parameters, consistency: Consistency::Eventual, min_position: None, ..query };
        Ok(self.app.engine.describe(query).await?)
    }

    pub(super) async fn prepared_schema(&self, handle: &[u8], metadata: &MetadataMap) -> Result<Bytes, ApiError> {
        let statement = self.reopened(handle, metadata)?;
        let description = self.describe(&statement, metadata).await?;
        ipc_schema(&edge::result(&description.schema, statement.flat))
    }

    async fn statement_info(
        &self,
        statement: Statement,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let description = self.describe(&statement, request.metadata()).await.map_err(status)?;
        if statement.bound.is_none() && !description.parameters.fields().is_empty() {
            return Err(status(ApiError::invalid(
                "the statement has parameters, and no values are bound to them: prepare it and bind them (a driver from \
                 before 2024 ignores the handle that comes back then)",
            )));
        }
        let schema = edge::result(&description.schema, statement.flat);
        let ticket = Statement { id: Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes()), ..statement };
        flight_info(&schema, &TicketStatementQuery { statement_handle: ticket.to_bytes() }, request.into_inner())
    }

    async fn rows(&self, handle: &[u8], metadata: &MetadataMap) -> Result<Response<DoGet>, ApiError> {
        let statement = self.reopened(handle, metadata)?;
        let mut query = self.query(&statement, metadata)?;
        if let Some(bound) = &statement.bound {
            let rows = bind::rows(bound).await?;
            if rows.num_rows() == 0 {
                let description = self.describe(&statement, metadata).await?;
                let none = stream::empty::<Result<RecordBatch, FlightError>>();
                return Ok(sent(edge::result(&description.schema, statement.flat), none));
            }
            query.parameters = Parameters::of_rows(rows);
        }
        let running = Box::pin(self.app.engine.run_ticket(query, statement.id.clone())).await?;
        let (schema, missing) =
            (edge::result(&running.schema, statement.flat), missing_groups(&running.missing_groups));
        // Dropping the stream ends the query.
        let batches = stream::try_unfold((running, Arc::clone(&schema)), |(mut running, schema)| async move {
            let batch = next(&mut running, &schema).await.map_err(|error| FlightError::from(error.grpc_status()))?;
            Ok::<_, FlightError>(batch.map(|batch| (batch, (running, schema))))
        });
        let mut response = sent(schema, batches);
        if let Some(groups) = missing.and_then(|groups| MetadataValue::try_from(groups.as_bytes()).ok()) {
            response.metadata_mut().insert(PARTIAL, groups);
        }
        Ok(response)
    }

    /// Gives up the results of these tickets, whichever node computes them.
    async fn cancel(&self, info: Option<&FlightInfo>, metadata: &MetadataMap) -> Result<CancelStatus, Status> {
        let identity = self.identify(metadata)?;
        let endpoints = info.map(|info| info.endpoint.as_slice()).unwrap_or_default();
        let tickets = endpoints.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
        let tickets: Result<Vec<Bytes>, ApiError> = tickets.map(|ticket| Ok(statement_of(ticket)?.id)).collect();
        let found = self.app.engine.cancel(&tickets.map_err(status)?, &identity.tenant).await.map_err(status)?;
        // Rows that are on their way may still arrive. Nobody may have asked for them yet, or all of them are sent.
        Ok(if found { CancelStatus::Cancelling } else { CancelStatus::NotCancellable })
    }

    fn datasets(&self, identity: &Identity) -> Vec<String> {
        let mut datasets = self.app.access.datasets(&identity.tenant);
        datasets.insert(identity.dataset.clone());
        datasets.into_iter().map(String::from).collect()
    }

    /// Schema, name and type of each table that the caller may name.
    fn tables(&self, identity: &Identity) -> Vec<(String, &'static str, &'static str)> {
        let mut tables = Vec::new();
        for dataset in self.datasets(identity) {
            tables.extend(SignalTable::ALL.into_iter().map(|table| (dataset.clone(), table.name(), TABLE)));
        }
        tables.extend(SYSTEM_TABLES.iter().map(|name| (SYSTEM_SCHEMA.to_owned(), *name, SYSTEM_TABLE)));
        tables
    }

    /// A table as queries see it: the schema of selecting everything from it.
    async fn table_schema(
        &self,
        identity: &Identity,
        schema: &str,
        table: &str,
        flat: bool,
    ) -> Result<SchemaRef, ApiError> {
        let query = Query {
            identity: identity.clone(),
            sql: format!("SELECT * FROM \"{schema}\".\"{table}\" LIMIT 0"),
            parameters: Parameters::default(),
            consistency: Consistency::Eventual,
            min_position: None,
            allowance: Allowance::default(),
        };
        match self.app.engine.describe(query).await {
            Ok(description) if flat => Ok(edge::result(&description.schema, flat)),
            Ok(description) => Ok(edge::compatible(&description.schema)),
            // It is there, and what it has is not known: no reason to hide the others.
            Err(QueryError { kind: QueryErrorKind::Quarantined, .. }) => Ok(Arc::new(Schema::empty())),
            Err(error) => Err(error.into()),
        }
    }
}

/// The next rows as they are sent, `None` after the last.
async fn next(running: &mut RunningQuery, schema: &SchemaRef) -> Result<Option<RecordBatch>, ApiError> {
    let Some(batch) = running.next().await else { return Ok(None) };
    edge::convert(&batch?, schema).map(Some)
}

/// A result on its way. Dictionaries go as they are, each with the rows that need it.
fn sent(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
) -> Response<DoGet> {
    let encoder = FlightDataEncoderBuilder::new().with_schema(schema);
    let encoded = encoder.with_dictionary_handling(DictionaryHandling::Resend).build(batches);
    Response::new(Box::pin(encoded.map_err(stream_status)))
}
