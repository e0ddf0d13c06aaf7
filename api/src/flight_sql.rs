//! Flight SQL: handshake, statements, prepared statements without parameters, catalogs, schemas and tables.
//!
//! Stateless: a ticket is the query itself, and whose query it is comes from the metadata of every call. A ticket is
//! input like any other.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::server::FlightSqlService;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandPreparedStatementQuery, CommandStatementQuery, ProstMessageExt, SqlInfo, SqlSupportedTransaction,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage, SchemaAsIpc,
    Ticket,
};
use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use signaldb_catalog::Identity;
use signaldb_model::limits::REQUEST_BYTES_MAX;
use signaldb_query::RunningQuery;
use signaldb_signals::SignalTable;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::format::{PARTIAL, missing_groups};
use crate::identity::{identify, session_token};
use crate::reading::{Reading, ReadingParameters};

type DoGet = <FlightSql as FlightService>::DoGetStream;

/// Name of the one catalog that clients see.
const CATALOG: &str = "signaldb";
const TABLE_TYPE: &str = "BASE TABLE";

/// What a ticket and a prepared statement's handle hold.
#[derive(Clone, PartialEq, Message)]
struct QueryHandle {
    #[prost(string, tag = "1")]
    sql: String,
}

pub(crate) struct FlightSql {
    app: App,
    info: SqlInfoData,
}

impl fmt::Debug for FlightSql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlightSql").finish_non_exhaustive()
    }
}

pub(crate) fn service(app: App) -> Result<FlightServiceServer<FlightSql>, FlightError> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "SignalDB");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    // An i32, whatever else would convert: the Go driver panics on another type.
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    Ok(FlightServiceServer::new(FlightSql { app, info: info.build()? }).max_decoding_message_size(REQUEST_BYTES_MAX))
}

fn internal(error: impl fmt::Display) -> Status {
    ApiError::new(Kind::Internal, error.to_string()).grpc_status()
}

/// The schema that clients of every age can read; the encoder casts to it.
fn compatible(schema: &Schema) -> SchemaRef {
    fn kind(of: &DataType) -> DataType {
        match of {
            DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
            DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
            DataType::Dictionary(_, values) => kind(values),
            DataType::List(element) | DataType::LargeList(element) => DataType::List(Arc::new(field(element))),
            DataType::Struct(fields) => DataType::Struct(fields.iter().map(|inner| field(inner)).collect()),
            DataType::Map(entries, sorted) => DataType::Map(Arc::new(field(entries)), *sorted),
            other => other.clone(),
        }
    }
    fn field(of: &Field) -> Field {
        Field::new(of.name(), kind(of.data_type()), of.is_nullable())
    }
    Arc::new(Schema::new(schema.fields().iter().map(|of| field(of)).collect::<Vec<_>>()))
}

/// Exactly the schema that the encoder will announce: drivers compare it with FlightInfo's.
fn announced(schema: SchemaRef) -> SchemaRef {
    let none = stream::empty::<Result<RecordBatch, FlightError>>();
    let encoder = FlightDataEncoderBuilder::new().with_schema(Arc::clone(&schema)).build(none);
    encoder.known_schema().unwrap_or(schema)
}

fn stream_of(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
) -> Response<DoGet> {
    let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(batches);
    Response::new(Box::pin(encoded.map_err(Status::from)))
}

fn one_batch(batch: Result<RecordBatch, FlightError>) -> Result<Response<DoGet>, Status> {
    let batch = batch.map_err(Status::from)?;
    Ok(stream_of(batch.schema(), stream::iter([Ok(batch)])))
}

fn flight_info(
    schema: &Schema,
    ticket: &impl ProstMessageExt,
    descriptor: FlightDescriptor,
) -> Result<Response<FlightInfo>, Status> {
    let ticket = Ticket::new(ticket.as_any().encode_to_vec());
    let info = FlightInfo::new().try_with_schema(schema).map_err(internal)?;
    Ok(Response::new(info.with_endpoint(FlightEndpoint::new().with_ticket(ticket)).with_descriptor(descriptor)))
}

fn ipc_schema(schema: &Schema) -> Result<Bytes, Status> {
    let IpcMessage(bytes) =
        IpcMessage::try_from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).map_err(internal)?;
    Ok(bytes)
}

impl FlightSql {
    fn identify(&self, metadata: &MetadataMap) -> Result<Identity, Status> {
        let identity = identify(&self.app, metadata.as_ref()).map_err(|error| error.grpc_status())?;
        self.app.prepare(&identity);
        Ok(identity)
    }

    async fn run(&self, handle: &[u8], metadata: &MetadataMap) -> Result<RunningQuery, Status> {
        let identity = self.identify(metadata)?;
        let handle = QueryHandle::decode(handle)
            .map_err(|_| ApiError::invalid("this ticket or statement handle is not one of ours").grpc_status())?;
        let reading = Reading::of(&self.app, &ReadingParameters::default(), metadata.as_ref());
        let query = reading.map_err(|error| error.grpc_status())?.query(identity, handle.sql);
        self.app.engine.run(query).await.map_err(|error| ApiError::from(error).grpc_status())
    }

    /// The schema of a query's result: it is started and dropped, so that the plan is the real one.
    async fn schema_of(&self, handle: &[u8], metadata: &MetadataMap) -> Result<SchemaRef, Status> {
        Ok(announced(compatible(&self.run(handle, metadata).await?.schema)))
    }

    async fn statement_info(
        &self,
        handle: Bytes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let schema = self.schema_of(&handle, request.metadata()).await?;
        flight_info(&schema, &TicketStatementQuery { statement_handle: handle }, request.into_inner())
    }

    async fn rows(&self, handle: &[u8], metadata: &MetadataMap) -> Result<Response<DoGet>, Status> {
        let running = self.run(handle, metadata).await?;
        let schema = compatible(&running.schema);
        let missing = missing_groups(&running.missing_groups);
        let batches = stream::unfold(running, |mut running| async move {
            let batch = running.next().await?;
            let batch = batch.map_err(|error| FlightError::from(ApiError::from(error).grpc_status()));
            Some((batch, running))
        });
        let mut response = stream_of(schema, batches);
        if let Some(groups) = missing.and_then(|groups| MetadataValue::try_from(groups.as_bytes()).ok()) {
            response.metadata_mut().insert(PARTIAL, groups);
        }
        Ok(response)
    }

    fn datasets(&self, identity: &Identity) -> Vec<String> {
        let mut datasets = self.app.access.datasets(&identity.tenant);
        datasets.insert(identity.dataset.clone());
        datasets.into_iter().map(String::from).collect()
    }
}

#[tonic::async_trait]
impl FlightSqlService for FlightSql {
    type FlightService = Self;

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}

    /// Basic in, bearer out; the client sends headers only.
    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>>, Status> {
        let token = if self.app.access.enabled() {
            self.identify(request.metadata())?;
            session_token(request.metadata().as_ref()).map_err(|error| error.grpc_status())?
        } else {
            "anonymous".to_owned()
        };
        let answer = HandshakeResponse { protocol_version: 0, payload: Bytes::from(token.clone()) };
        let answers: Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>> =
            Box::pin(stream::iter([Ok(answer)]));
        let mut response = Response::new(answers);
        response.metadata_mut().insert("authorization", format!("Bearer {token}").parse().map_err(internal)?);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.statement_info(QueryHandle { sql: query.query }.encode_to_vec().into(), request).await
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.statement_info(query.prepared_statement_handle, request).await
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.rows(&ticket.statement_handle, request.metadata()).await
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.rows(&query.prepared_statement_handle, request.metadata()).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let handle = Bytes::from(QueryHandle { sql: query.query }.encode_to_vec());
        let schema = self.schema_of(&handle, request.metadata()).await?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle,
            dataset_schema: ipc_schema(&schema)?,
            parameter_schema: ipc_schema(&Schema::empty())?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        _query: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        Ok(())
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&query.into_builder().schema(), &query, request.into_inner())
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        let mut builder = query.into_builder();
        builder.append(CATALOG);
        one_batch(builder.build())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&query.clone().into_builder().schema(), &query, request.into_inner())
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        let identity = self.identify(request.metadata())?;
        let mut builder = query.into_builder();
        for dataset in self.datasets(&identity) {
            builder.append(CATALOG, dataset);
        }
        one_batch(builder.build())
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&query.clone().into_builder().schema(), &query, request.into_inner())
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        let identity = self.identify(request.metadata())?;
        let with_schema = query.include_schema;
        let mut builder = query.into_builder();
        let mut schemas = Vec::new();
        for table in SignalTable::ALL {
            let schema =
                if with_schema { self.table_schema(&request, table).await? } else { Arc::new(Schema::empty()) };
            schemas.push((table, schema));
        }
        for dataset in self.datasets(&identity) {
            for (table, schema) in &schemas {
                builder.append(CATALOG, &dataset, table.name(), TABLE_TYPE, schema).map_err(Status::from)?;
            }
        }
        one_batch(builder.build())
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&query.into_builder().schema(), &query, request.into_inner())
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        let mut builder = query.into_builder();
        builder.append(TABLE_TYPE);
        one_batch(builder.build())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&query.clone().into_builder(&self.info).schema(), &query, request.into_inner())
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        one_batch(query.into_builder(&self.info).build())
    }
}

impl FlightSql {
    /// A table as queries see it: the schema of selecting everything from it.
    async fn table_schema(&self, request: &Request<Ticket>, table: SignalTable) -> Result<SchemaRef, Status> {
        let sql = format!("SELECT * FROM {} LIMIT 0", table.name());
        self.schema_of(&QueryHandle { sql }.encode_to_vec(), request.metadata()).await
    }
}
