//! The Flight service: what the protocol's helper leaves out, and a name for every error.

use std::pin::Pin;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{Any, CommandPreparedStatementQuery};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, PollInfo,
    SchemaResult, Ticket,
};
use futures::{Stream, stream};
use prost::Message;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{CANCEL_FLIGHT_INFO, FlightSql, unsupported};
use crate::error::{ApiError, ERROR_NAME, Kind};

/// The actions that are answered, and what is in them.
const ACTIONS: &[(&str, &str)] = &[
    ("CreatePreparedStatement", "ActionCreatePreparedStatementRequest -> ActionCreatePreparedStatementResult"),
    ("ClosePreparedStatement", "ActionClosePreparedStatementRequest -> nothing"),
    ("CancelQuery", "ActionCancelQueryRequest -> ActionCancelQueryResult"),
    (CANCEL_FLIGHT_INFO, "CancelFlightInfoRequest -> CancelFlightInfoResult"),
];

#[derive(Debug)]
pub(crate) struct Wire(pub(super) FlightSql);

/// An error with a name. Those without one come from the helper: it could not read a message, or does not know it.
fn named(status: Status) -> Status {
    if status.metadata().contains_key(ERROR_NAME) {
        return status;
    }
    let kind = match status.code() {
        Code::InvalidArgument | Code::Internal => Kind::Invalid,
        Code::Unimplemented => Kind::NotImplemented,
        _ => return status,
    };
    ApiError::new(kind, status.message()).grpc_status()
}

fn prepared(descriptor: &FlightDescriptor) -> Option<CommandPreparedStatementQuery> {
    Any::decode(&*descriptor.cmd).ok()?.unpack().ok()?
}

#[tonic::async_trait]
impl FlightService for Wire {
    type HandshakeStream = <FlightSql as FlightService>::HandshakeStream;
    type ListFlightsStream = <FlightSql as FlightService>::ListFlightsStream;
    type DoGetStream = <FlightSql as FlightService>::DoGetStream;
    type DoPutStream = <FlightSql as FlightService>::DoPutStream;
    type DoExchangeStream = <FlightSql as FlightService>::DoExchangeStream;
    type DoActionStream = <FlightSql as FlightService>::DoActionStream;
    type ListActionsStream = Pin<Box<dyn Stream<Item = Result<ActionType, Status>> + Send + 'static>>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        self.0.handshake(request).await.map_err(named)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        self.0.identify(request.metadata())?;
        unsupported("ListFlights")
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        self.0.get_flight_info(request).await.map_err(named)
    }

    /// Nothing runs before its rows are fetched, so the first poll is the last.
    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let info = self.get_flight_info(request).await?.into_inner();
        Ok(Response::new(PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() }))
    }

    /// That of the information. A prepared statement has one before its parameters have values, too.
    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let schema = match prepared(request.get_ref()) {
            Some(query) => {
                let schema = self.0.prepared_schema(&query.prepared_statement_handle, request.metadata()).await;
                schema.map_err(|error| error.grpc_status())?
            }
            None => self.get_flight_info(request).await?.into_inner().schema,
        };
        Ok(Response::new(SchemaResult { schema }))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        self.0.do_get(request).await.map_err(named)
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        self.0.do_put(request).await.map_err(named)
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        self.0.identify(request.metadata())?;
        unsupported("DoExchange")
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        self.0.do_action(request).await.map_err(named)
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        self.0.identify(request.metadata())?;
        let actions = ACTIONS.iter().map(|(name, description)| {
            Ok::<_, Status>(ActionType { r#type: (*name).to_owned(), description: (*description).to_owned() })
        });
        Ok(Response::new(Box::pin(stream::iter(actions))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_name() {
        for (from, code) in [
            (Status::internal("ParseError(..)"), Code::InvalidArgument),
            (Status::invalid_argument("DecodeError"), Code::InvalidArgument),
            (Status::unimplemented("Not yet implemented"), Code::Unimplemented),
            (ApiError::new(Kind::Internal, "ours").grpc_status(), Code::Internal),
        ] {
            let status = named(from);
            assert_eq!(status.code(), code);
            assert!(status.metadata().contains_key(ERROR_NAME));
        }
    }
}
