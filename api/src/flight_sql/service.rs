//! The calls of the protocol, one function each. What more than one of them does is in [`FlightSql`].

use std::pin::Pin;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::server::{DoPutError, FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionBeginTransactionRequest,
    ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    ActionCreatePreparedSubstraitPlanRequest, ActionEndSavepointRequest, ActionEndTransactionRequest, Any, Command,
    CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery,
    CommandStatementSubstraitPlan, CommandStatementUpdate, DoPutPreparedStatementResult, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, Ticket,
};
use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use signaldb_query::SYSTEM_SCHEMA;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use super::statement::Statement;
use super::{
    CANCEL_FLIGHT_INFO, CATALOG, DoGet, FlightSql, SYSTEM_TABLE, TABLE, bind, edge, flight_info, info, internal,
    ipc_schema, status, stream_status, unsupported, with_headers,
};
use crate::error::ApiError;
use crate::identity::session_token;

type DoAction = <FlightSql as FlightService>::DoActionStream;
type DoPut = <FlightSql as FlightService>::DoPutStream;
type Handshake = Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl FlightSqlService for FlightSql {
    type FlightService = Self;

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}

    /// Basic in, bearer out; the client sends headers only.
    async fn do_handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Result<Response<Handshake>, Status> {
        let token = session_token(&self.app, request.metadata().as_ref()).map_err(status)?;
        let answer = HandshakeResponse { protocol_version: 0, payload: Bytes::from(token.clone()) };
        let answers: Handshake = Box::pin(stream::iter([Ok(answer)]));
        let mut response = Response::new(answers);
        let bearer =
            format!("Bearer {token}").parse::<MetadataValue<Ascii>>().map_err(|error| status(internal(error)))?;
        response.metadata_mut().insert("authorization", bearer);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let statement = self.statement(query.query, request.metadata())?;
        refuse_transaction(query.transaction_id.as_ref())?;
        self.statement_info(statement, request).await
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let statement = self.reopened(&query.prepared_statement_handle, request.metadata()).map_err(status)?;
        self.statement_info(statement, request).await
    }

    async fn get_flight_info_substrait_plan(
        &self,
        _query: CommandStatementSubstraitPlan,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        unsupported("CommandStatementSubstraitPlan")
    }

    async fn get_flight_info_fallback(
        &self,
        command: Command,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        match command {
            Command::Unknown(any) => {
                Err(status(ApiError::invalid(format!("{:?} is not a command of Flight SQL", any.type_url))))
            }
            known => unsupported(&format!("GetFlightInfo of {}", short_name(known.type_url()))),
        }
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.rows(&ticket.statement_handle, request.metadata()).await.map_err(status)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.rows(&query.prepared_statement_handle, request.metadata()).await.map_err(status)
    }

    async fn do_get_fallback(&self, request: Request<Ticket>, message: Any) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        Err(status(ApiError::invalid(format!("{:?} is not a ticket of Flight SQL", message.type_url))))
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let statement = self.statement(query.query, request.metadata())?;
        refuse_transaction(query.transaction_id.as_ref())?;
        let description = self.describe(&statement, request.metadata()).await.map_err(status)?;
        let schema = edge::result(&description.schema, statement.flat);
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: statement.to_bytes(),
            dataset_schema: ipc_schema(&schema).map_err(status)?,
            parameter_schema: ipc_schema(&edge::compatible(&description.parameters)).map_err(status)?,
        })
    }

    /// The next handle has what was bound in it.
    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let (metadata, _, messages) = request.into_parts();
        let statement = self.reopened(&query.prepared_statement_handle, &metadata).map_err(status)?;
        // Before anything is read of who may not bind.
        self.query(&statement, &metadata).map_err(status)?;
        let bound = bind::receive(messages).await.map_err(status)?;
        let bound = Statement { bound: Some(bound), ..statement };
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(bound.to_bytes()) })
    }

    /// There is nothing to close but the handle itself.
    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        self.identify(request.metadata())?;
        Statement::from_bytes(&query.prepared_statement_handle).map(drop).map_err(status)
    }

    async fn do_action_cancel_query(
        &self,
        query: ActionCancelQueryRequest,
        request: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        let unreadable = |_| status(ApiError::invalid("CancelQuery needs the FlightInfo of a query"));
        let info = FlightInfo::decode(query.info).map_err(unreadable)?;
        // The two enumerations have the same numbers.
        Ok(ActionCancelQueryResult { result: self.cancel(Some(&info), request.metadata()).await? as i32 })
    }

    async fn do_action_fallback(&self, request: Request<Action>) -> Result<Response<DoAction>, Status> {
        let action = request.get_ref();
        if action.r#type == CANCEL_FLIGHT_INFO {
            let unreadable = |_| status(ApiError::invalid("CancelFlightInfo needs a CancelFlightInfoRequest"));
            let asked = CancelFlightInfoRequest::decode(action.body.clone()).map_err(unreadable)?;
            let result = CancelFlightInfoResult::new(self.cancel(asked.info.as_ref(), request.metadata()).await?);
            let answer = arrow_flight::Result::new(result.encode_to_vec());
            return Ok(Response::new(Box::pin(stream::iter([Ok(answer)]))));
        }
        self.identify(request.metadata())?;
        let name: String = action.r#type.chars().take(100).collect();
        unsupported(&format!("the action {name:?}"))
    }

    async fn do_action_create_prepared_substrait_plan(
        &self,
        _query: ActionCreatePreparedSubstraitPlanRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        self.identify(request.metadata())?;
        unsupported("CreatePreparedSubstraitPlan")
    }

    async fn do_action_begin_transaction(
        &self,
        _query: ActionBeginTransactionRequest,
        request: Request<Action>,
    ) -> Result<ActionBeginTransactionResult, Status> {
        self.identify(request.metadata())?;
        unsupported("BeginTransaction")
    }

    async fn do_action_end_transaction(
        &self,
        _query: ActionEndTransactionRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        self.identify(request.metadata())?;
        unsupported("EndTransaction")
    }

    async fn do_action_begin_savepoint(
        &self,
        _query: ActionBeginSavepointRequest,
        request: Request<Action>,
    ) -> Result<ActionBeginSavepointResult, Status> {
        self.identify(request.metadata())?;
        unsupported("BeginSavepoint")
    }

    async fn do_action_end_savepoint(
        &self,
        _query: ActionEndSavepointRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        self.identify(request.metadata())?;
        unsupported("EndSavepoint")
    }

    async fn do_put_statement_update(
        &self,
        _command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.identify(request.metadata())?;
        unsupported("CommandStatementUpdate: SQL only reads, and changing data with it")
    }

    async fn do_put_prepared_statement_update(
        &self,
        _command: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.identify(request.metadata())?;
        unsupported("CommandPreparedStatementUpdate: SQL only reads, and changing data with it")
    }

    async fn do_put_statement_ingest(
        &self,
        _command: CommandStatementIngest,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.identify(request.metadata())?;
        unsupported("CommandStatementIngest: rows come in over OTLP, and bulk ingestion over Flight")
    }

    async fn do_put_substrait_plan(
        &self,
        _command: CommandStatementSubstraitPlan,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.identify(request.metadata())?;
        unsupported("CommandStatementSubstraitPlan")
    }

    async fn do_put_fallback(
        &self,
        request: Request<PeekableFlightDataStream>,
        message: Any,
    ) -> Result<Response<DoPut>, Status> {
        self.identify(request.metadata())?;
        unsupported(&format!("DoPut of {:?}", short_name(&message.type_url)))
    }

    async fn do_put_error_callback(
        &self,
        _request: Request<PeekableFlightDataStream>,
        error: DoPutError,
    ) -> Result<Response<DoPut>, Status> {
        Err(status(ApiError::invalid(error.to_string())))
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
        for schema in self.datasets(&identity).into_iter().chain([SYSTEM_SCHEMA.to_owned()]) {
            builder.append(CATALOG, schema);
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
        let flat = with_headers(Statement::default(), request.metadata().as_ref()).map_err(status)?.flat;
        let mut names = CommandGetTables { include_schema: false, ..query.clone() }.into_builder();
        for (schema, table, kind) in self.tables(&identity) {
            names.append(CATALOG, schema, table, kind, &Schema::empty()).map_err(|error| status(internal(error)))?;
        }
        let names = names.build();
        if !query.include_schema {
            return one_batch(names);
        }
        // Only what the filters left has to be planned.
        let names = names.map_err(|error| status(internal(error)))?;
        let text = |column: usize, row: usize| names.column(column).as_string::<i32>().value(row);
        let mut builder = query.into_builder();
        for row in 0..names.num_rows() {
            let (schema, table, kind) = (text(1, row), text(2, row), text(3, row));
            let columns = self.table_schema(&identity, schema, table, flat).await.map_err(status)?;
            builder.append(CATALOG, schema, table, kind, &columns).map_err(|error| status(internal(error)))?;
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
        for kind in [TABLE, SYSTEM_TABLE] {
            builder.append(kind);
        }
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

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&query.into_builder(&self.types).schema(), &query, request.into_inner())
    }

    async fn do_get_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        one_batch(query.into_builder(&self.types).build())
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&info::PRIMARY_KEYS, &query, request.into_inner())
    }

    async fn do_get_primary_keys(
        &self,
        _query: CommandGetPrimaryKeys,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        no_rows(&info::PRIMARY_KEYS)
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&info::FOREIGN_KEYS, &query, request.into_inner())
    }

    async fn do_get_exported_keys(
        &self,
        _query: CommandGetExportedKeys,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        no_rows(&info::FOREIGN_KEYS)
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&info::FOREIGN_KEYS, &query, request.into_inner())
    }

    async fn do_get_imported_keys(
        &self,
        _query: CommandGetImportedKeys,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        no_rows(&info::FOREIGN_KEYS)
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.identify(request.metadata())?;
        flight_info(&info::FOREIGN_KEYS, &query, request.into_inner())
    }

    async fn do_get_cross_reference(
        &self,
        _query: CommandGetCrossReference,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        self.identify(request.metadata())?;
        no_rows(&info::FOREIGN_KEYS)
    }
}

fn one_batch(batch: Result<RecordBatch, FlightError>) -> Result<Response<DoGet>, Status> {
    let batch = batch.map_err(|error| status(internal(error)))?;
    let encoder = FlightDataEncoderBuilder::new().with_schema(batch.schema());
    let encoded = encoder.build(stream::iter([Ok(batch)]));
    Ok(Response::new(Box::pin(encoded.map_err(stream_status))))
}

fn no_rows(schema: &SchemaRef) -> Result<Response<DoGet>, Status> {
    one_batch(Ok(RecordBatch::new_empty(Arc::clone(schema))))
}

fn refuse_transaction(id: Option<&Bytes>) -> Result<(), Status> {
    if id.is_some_and(|id| !id.is_empty()) { unsupported("a statement in a transaction") } else { Ok(()) }
}

/// The name of a message without where it comes from.
fn short_name(type_url: &str) -> String {
    type_url.rsplit('.').next().unwrap_or_default().chars().take(100).collect()
}
