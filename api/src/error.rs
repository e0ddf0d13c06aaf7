//! Every failure as every protocol's status: the only file that maps them.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prost::Message;
use serde_json::json;
use signaldb_catalog::AccessError;
use signaldb_lake::LakeError;
use signaldb_proto::rpc;
use signaldb_query::{QueryError, QueryErrorKind};
use signaldb_raft::{RejectReason, WriteError};

/// What a client is asked to wait when nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The same while rows of a long outage wait for their flush.
const BACKLOG_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Metadata of every gRPC status that was made here: the name of the error.
pub(crate) const ERROR_NAME: &str = "x-signaldb-error";

/// A request that was not answered.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
    pub retry_after: Option<Duration>,
    /// The setting that is the budget which was used up, if one was.
    pub budget: Option<&'static str>,
}

/// What went wrong, in the terms of all protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Invalid,
    Unauthenticated,
    Forbidden,
    NotFound,
    /// Of the Iceberg catalog; it may be there for somebody else.
    NoSuchNamespace,
    /// Of the Iceberg catalog.
    NoSuchTable,
    /// The Iceberg catalog was asked to change something.
    ReadOnly,
    MethodNotAllowed,
    TooLarge,
    UnsupportedMediaType,
    /// Come again later; nothing was written.
    Throttled,
    /// Come again later; nothing was written.
    Unavailable,
    /// Come again later, or ask for less: the newest rows are in the log alone.
    Backlog,
    /// The write may have happened; the same bytes again are deduplicated.
    UnknownOutcome,
    Deadline,
    /// A query used up a budget.
    Resources,
    /// Somebody stopped the query.
    Cancelled,
    /// The table's rows are put aside until an operator has seen to it.
    Quarantined,
    NotImplemented,
    Internal,
}

impl Kind {
    /// The name in JSON errors and in metrics.
    pub(crate) fn name(self) -> &'static str {
        self.codes().2
    }

    /// HTTP status, gRPC code and the name in JSON errors.
    fn codes(self) -> (StatusCode, tonic::Code, &'static str) {
        use tonic::Code;
        match self {
            Self::Invalid => (StatusCode::BAD_REQUEST, Code::InvalidArgument, "invalid_argument"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, Code::Unauthenticated, "unauthenticated"),
            Self::Forbidden => (StatusCode::FORBIDDEN, Code::PermissionDenied, "permission_denied"),
            Self::NotFound => (StatusCode::NOT_FOUND, Code::NotFound, "not_found"),
            Self::NoSuchNamespace => (StatusCode::NOT_FOUND, Code::NotFound, "no_such_namespace"),
            Self::NoSuchTable => (StatusCode::NOT_FOUND, Code::NotFound, "no_such_table"),
            Self::ReadOnly => (StatusCode::FORBIDDEN, Code::PermissionDenied, "read_only"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, "method_not_allowed"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, "too_large"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, "unsupported_media_type")
            }
            Self::Throttled => (StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, "throttled"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "unavailable"),
            Self::Backlog => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "backlog"),
            Self::UnknownOutcome => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "unknown_outcome"),
            Self::Deadline => (StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded, "deadline_exceeded"),
            Self::Resources => (StatusCode::UNPROCESSABLE_ENTITY, Code::ResourceExhausted, "resources_exhausted"),
            // The status that proxies use for a request that was given up; there is no standard one.
            Self::Cancelled => {
                (StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT), Code::Cancelled, "cancelled")
            }
            Self::Quarantined => (StatusCode::CONFLICT, Code::FailedPrecondition, "quarantined"),
            Self::NotImplemented => (StatusCode::NOT_IMPLEMENTED, Code::Unimplemented, "not_implemented"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "internal"),
        }
    }

    /// The exception that Iceberg's clients raise; Java's look at the name as well as at the status.
    fn iceberg_type(self) -> &'static str {
        match self {
            Self::Unauthenticated => "NotAuthorizedException",
            Self::Forbidden | Self::ReadOnly => "ForbiddenException",
            Self::NotFound => "NotFoundException",
            Self::NoSuchNamespace => "NoSuchNamespaceException",
            Self::NoSuchTable => "NoSuchTableException",
            Self::MethodNotAllowed | Self::NotImplemented => "UnsupportedOperationException",
            Self::Throttled => "TooManyRequestsException",
            Self::Unavailable | Self::Backlog | Self::UnknownOutcome | Self::Deadline => "ServiceUnavailableException",
            Self::Internal | Self::Resources | Self::Cancelled | Self::Quarantined => "InternalServerError",
            Self::Invalid | Self::TooLarge | Self::UnsupportedMediaType => "BadRequestException",
        }
    }
}

impl ApiError {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let retry_after = match kind {
            Kind::Throttled | Kind::Unavailable | Kind::UnknownOutcome => Some(RETRY_AFTER),
            Kind::Backlog => Some(BACKLOG_RETRY_AFTER),
            _ => None,
        };
        Self { kind, message: message.into(), hint: None, retry_after, budget: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn http_status(&self) -> StatusCode {
        self.kind.codes().0
    }

    /// `google.rpc.Status`, with RetryInfo exactly when a retry makes sense.
    pub fn rpc_status(&self) -> rpc::Status {
        rpc::Status::new(self.kind.codes().1 as i32, &self.message, self.retry_after)
    }

    /// The same as gRPC status, the name of the error in its metadata.
    pub fn grpc_status(&self) -> tonic::Status {
        let (_, code, name) = self.kind.codes();
        let details = self.rpc_status().encode_to_vec().into();
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert(ERROR_NAME, tonic::metadata::MetadataValue::from_static(name));
        if let Some(budget) = self.budget {
            metadata.insert("x-signaldb-budget", tonic::metadata::MetadataValue::from_static(budget));
        }
        tonic::Status::with_details_and_metadata(code, &self.message, details, metadata)
    }

    /// The same for a client of the Iceberg REST catalog.
    pub(crate) fn into_iceberg(self) -> Response {
        let status = self.http_status();
        let message = match &self.hint {
            Some(hint) => format!("{}; {hint}", self.message),
            None => self.message.clone(),
        };
        let body = json!({"error": {"message": message, "type": self.kind.iceberg_type(), "code": status.as_u16()}});
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        self.add_headers(&mut response);
        response
    }

    /// The same for a client of Tempo, which shows the text as it is.
    pub(crate) fn into_tempo(self) -> Response {
        let text = match &self.hint {
            Some(hint) => format!("{}; {hint}", self.message),
            None => self.message.clone(),
        };
        let content_type = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
        let mut response = (self.http_status(), content_type, text).into_response();
        self.add_headers(&mut response);
        response
    }

    /// Headers that go with the error whatever the body is.
    pub fn add_headers(&self, response: &mut Response) {
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == Kind::Unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer, Basic"));
        }
    }
}

/// The JSON error of port 3000.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _, name) = self.kind.codes();
        let mut body = json!({"error": {"code": name, "message": self.message, "hint": self.hint}});
        if let Some(budget) = self.budget {
            body["error"]["budget"] = budget.into();
        }
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        self.add_headers(&mut response);
        response
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let message = error.to_string();
        match error {
            WriteError::Unknown(_) => {
                Self::new(Kind::UnknownOutcome, message).with_hint("send the same bytes again: they are stored once")
            }
            WriteError::Rejected(RejectReason::TooLarge { .. }) => Self::new(Kind::TooLarge, message),
            WriteError::Rejected(RejectReason::Throttled { retry_after, .. }) => {
                Self { retry_after: Some(retry_after), ..Self::new(Kind::Throttled, message) }
            }
            WriteError::Rejected(RejectReason::Busy(_)) => Self::new(Kind::Throttled, message),
            WriteError::Rejected(RejectReason::Undecodable(_)) => {
                Self::new(Kind::Unavailable, message).with_hint("nodes of different versions: finish the upgrade")
            }
            WriteError::Rejected(
                RejectReason::NoLeader { .. }
                | RejectReason::Stopping
                | RejectReason::DiskReserve
                | RejectReason::Halted(_),
            ) => Self::new(Kind::Unavailable, message),
        }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let kind = match error.kind {
            QueryErrorKind::Invalid => Kind::Invalid,
            QueryErrorKind::Unsupported => Kind::NotImplemented,
            QueryErrorKind::Unavailable => Kind::Unavailable,
            QueryErrorKind::Backlog => Kind::Backlog,
            QueryErrorKind::Resources => Kind::Resources,
            QueryErrorKind::Busy => Kind::Throttled,
            QueryErrorKind::Cancelled => Kind::Cancelled,
            QueryErrorKind::Quarantined => Kind::Quarantined,
            QueryErrorKind::Deadline => Kind::Deadline,
            QueryErrorKind::Internal => Kind::Internal,
        };
        let (message, position) = (error.to_string(), error.position);
        if let Some(budget) = error.budget {
            return Self { budget: Some(budget.key()), ..Self::new(kind, message).with_hint(budget.advice()) };
        }
        match (kind, position) {
            (Kind::Backlog, _) => Self::new(kind, message).with_hint(
                "`?consistency=eventual`, over Flight the header `x-signaldb-consistency: eventual`, answers without these \
                 rows and says that the answer is partial",
            ),
            (_, Some((line, column))) => Self::new(kind, message).with_hint(format!("line {line}, column {column}")),
            (_, None) => Self::new(kind, message),
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        let kind = match error {
            AccessError::UnknownKey | AccessError::SessionEnded => Kind::Unauthenticated,
            AccessError::Forbidden => Kind::Forbidden,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<LakeError> for ApiError {
    fn from(error: LakeError) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            message = format!("{message}: {error}");
            source = error.source();
        }
        Self::new(Kind::Unavailable, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_retried_says_so() {
        let retryable = [Kind::Throttled, Kind::Unavailable, Kind::Backlog, Kind::UnknownOutcome];
        let all = [Kind::Invalid, Kind::Unauthenticated, Kind::Forbidden, Kind::TooLarge, Kind::Internal];
        for kind in retryable {
            let error = ApiError::new(kind, "x");
            assert!(error.rpc_status().retry_after().is_some());
            assert!(error.into_response().headers().contains_key(header::RETRY_AFTER));
        }
        for kind in all {
            assert_eq!(ApiError::new(kind, "x").rpc_status().retry_after(), None, "{kind:?}");
        }
    }

    #[test]
    fn unknown_outcomes_are_named() {
        let error = ApiError::from(WriteError::Unknown("lost".into()));
        assert_eq!(error.http_status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(error.kind.codes().2, "unknown_outcome");
        assert_eq!(error.grpc_status().code(), tonic::Code::Unavailable);
    }
}
