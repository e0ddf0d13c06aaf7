//! Errors of queries, with a position where there is one.

use std::fmt;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use signaldb_lake::LakeError;
use signaldb_raft::ReadError;
use tonic::{Code, Status};

use crate::budget::Budget;

/// What kind of failure a client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryErrorKind {
    /// The query is wrong: syntax, names, types, arguments.
    Invalid,
    /// The query is right, but nobody here answers it.
    Unsupported,
    /// A strong read cannot be served now; retry.
    Unavailable,
    /// The same for long: the newest rows are in the log alone. An eventual read goes on without them.
    Backlog,
    /// A budget of the query is used up: memory, spilled files, bytes scanned.
    Resources,
    /// Too many queries wait already; come again.
    Busy,
    /// Somebody stopped it.
    Cancelled,
    /// Rows of the table were put aside: it waits for an operator, not for a retry.
    Quarantined,
    Deadline,
    Internal,
}

/// A query failed.
#[derive(Debug, Clone)]
pub struct QueryError {
    pub kind: QueryErrorKind,
    pub message: String,
    /// Line and column of the offending text, from 1.
    pub position: Option<(u64, u64)>,
    /// The budget that was used up, if one was.
    pub budget: Option<Budget>,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.position {
            Some((line, column)) if !self.message.contains("Line: ") => write!(f, " at line {line}, column {column}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for QueryError {}

impl QueryError {
    pub(crate) fn new(kind: QueryErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), position: None, budget: None }
    }

    /// What a peer is told.
    pub(crate) fn to_status(&self) -> Status {
        match self.kind {
            QueryErrorKind::Invalid => Status::invalid_argument(&self.message),
            QueryErrorKind::Unsupported => Status::unimplemented(&self.message),
            QueryErrorKind::Deadline => Status::deadline_exceeded(&self.message),
            QueryErrorKind::Resources | QueryErrorKind::Busy => Status::resource_exhausted(&self.message),
            QueryErrorKind::Cancelled => Status::cancelled(&self.message),
            // Among peers nothing else is said with this code.
            QueryErrorKind::Quarantined => Status::aborted(&self.message),
            // Nor with this one; who does not know it takes it for unavailable.
            QueryErrorKind::Backlog => Status::out_of_range(&self.message),
            QueryErrorKind::Unavailable => Status::unavailable(&self.message),
            QueryErrorKind::Internal => Status::internal(&self.message),
        }
    }

    /// What a peer said.
    pub(crate) fn from_status(status: &Status) -> Self {
        let kind = match status.code() {
            Code::InvalidArgument => QueryErrorKind::Invalid,
            Code::Aborted => QueryErrorKind::Quarantined,
            Code::OutOfRange => QueryErrorKind::Backlog,
            _ => QueryErrorKind::Unavailable,
        };
        Self::new(kind, status.message())
    }
}

pub(crate) fn unavailable(message: String) -> QueryError {
    QueryError::new(QueryErrorKind::Unavailable, message)
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
pub(crate) fn read_error(error: ReadError) -> QueryError {
    QueryError::new(QueryErrorKind::Unavailable, format!("a strong read cannot be served: {error}"))
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
pub(crate) fn lake_error(error: LakeError) -> QueryError {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    let kind = match error {
        LakeError::Quarantined { .. } => QueryErrorKind::Quarantined,
        LakeError::Promote(_) => QueryErrorKind::Invalid,
        LakeError::Backlog { .. } => QueryErrorKind::Backlog,
        _ => QueryErrorKind::Unavailable,
    };
    QueryError::new(kind, message)
}

impl From<QueryError> for DataFusionError {
    fn from(error: QueryError) -> Self {
        Self::External(Box::new(error))
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        if let Some(own) = caused_by::<Self>(&error) {
            return own.clone();
        }
        if let Some(status) = caused_by::<Status>(&error) {
            return Self::from_status(status);
        }
        let store_failed = caused_by::<object_store::Error>(&error).is_some();
        let kind = if store_failed { QueryErrorKind::Unavailable } else { kind(&error) };
        let (message, position) = (message(&error), position(&error));
        let budget = (kind == QueryErrorKind::Resources).then(|| Budget::of_text(&message)).flatten();
        Self { kind, message, position, budget }
    }
}

/// The failure of that type behind an error, however deep it is wrapped.
fn caused_by<E: std::error::Error + 'static>(error: &DataFusionError) -> Option<&E> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

fn kind(error: &DataFusionError) -> QueryErrorKind {
    match error.find_root() {
        DataFusionError::SQL(..)
        | DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Configuration(_)
        | DataFusionError::Execution(_) => QueryErrorKind::Invalid,
        DataFusionError::ResourcesExhausted(_) => QueryErrorKind::Resources,
        DataFusionError::ArrowError(error, _) => match error.as_ref() {
            ArrowError::DivideByZero
            | ArrowError::CastError(_)
            | ArrowError::ParseError(_)
            | ArrowError::ArithmeticOverflow(_)
            | ArrowError::InvalidArgumentError(_)
            | ArrowError::ComputeError(_) => QueryErrorKind::Invalid,
            _ => QueryErrorKind::Internal,
        },
        _ => QueryErrorKind::Internal,
    }
}

fn message(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::TokenizerError(text) | ParserError::ParserError(text) => format!("SQL error: {text}"),
            ParserError::RecursionLimitExceeded => "SQL error: expressions are nested too deeply".to_owned(),
        },
        other => other.strip_backtrace(),
    }
}

fn position(error: &DataFusionError) -> Option<(u64, u64)> {
    if let Some(span) = error.diagnostic().and_then(|diagnostic| diagnostic.span) {
        return Some((span.start.line, span.start.column));
    }
    let DataFusionError::SQL(parser, _) = error.find_root() else { return None };
    let (ParserError::TokenizerError(text) | ParserError::ParserError(text)) = parser.as_ref() else { return None };
    let (_, place) = text.rsplit_once(" at Line: ")?;
    let (line, column) = place.split_once(", Column: ")?;
    Some((line.trim().parse().ok()?, column.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use datafusion::parquet::errors::ParquetError;

    use super::*;

    #[test]
    fn a_query_that_reads_too_much_is_not_mistaken_for_a_store_that_fails() {
        let own = Budget::Scan.exceeded("too much");
        let read = object_store::Error::Generic { store: "query", source: Box::new(own) };
        let wrapped = DataFusionError::ParquetError(Box::new(ParquetError::External(Box::new(read))));
        let error = QueryError::from(wrapped.context("while a file was read"));
        assert_eq!((error.kind, error.budget), (QueryErrorKind::Resources, Some(Budget::Scan)));
        let failed = object_store::Error::Generic { store: "S3", source: "500".into() };
        let error = QueryError::from(DataFusionError::ParquetError(Box::new(ParquetError::External(Box::new(failed)))));
        assert_eq!((error.kind, error.budget), (QueryErrorKind::Unavailable, None));
    }

    #[test]
    fn what_a_peer_says_of_rows_that_do_not_come_back_at_once_keeps_its_kind() {
        for kind in [QueryErrorKind::Invalid, QueryErrorKind::Unavailable, QueryErrorKind::Backlog] {
            let heard = QueryError::from_status(&QueryError::new(kind, "why").to_status());
            assert_eq!((heard.kind, heard.message.as_str()), (kind, "why"));
        }
    }
}
