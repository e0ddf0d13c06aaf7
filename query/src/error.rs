//! Errors of queries, with a position where there is one.

use std::fmt;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use tonic::{Code, Status};

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
    /// Memory or spill budget used up.
    Resources,
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
        Self { kind, message: message.into(), position: None }
    }

    /// What a peer is told.
    pub(crate) fn to_status(&self) -> Status {
        match self.kind {
            QueryErrorKind::Invalid => Status::invalid_argument(&self.message),
            QueryErrorKind::Unsupported => Status::unimplemented(&self.message),
            QueryErrorKind::Deadline => Status::deadline_exceeded(&self.message),
            QueryErrorKind::Resources => Status::resource_exhausted(&self.message),
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

impl From<QueryError> for DataFusionError {
    fn from(error: QueryError) -> Self {
        Self::External(Box::new(error))
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        let position = position(&error);
        if let DataFusionError::External(inner) = error.find_root()
            && let Some(own) = inner.downcast_ref::<QueryError>()
        {
            return own.clone();
        }
        if let DataFusionError::External(inner) = error.find_root()
            && let Some(status) = inner.downcast_ref::<Status>()
        {
            return Self::from_status(status);
        }
        let kind = if store_failed(&error) { QueryErrorKind::Unavailable } else { kind(&error) };
        Self { kind, message: message(&error), position }
    }
}

/// Whether the object store is at fault, however deep it is wrapped: nothing is wrong with the query then.
fn store_failed(error: &DataFusionError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<object_store::Error>() {
            return true;
        }
        source = error.source();
    }
    false
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
    use super::*;

    #[test]
    fn what_a_peer_says_of_rows_that_do_not_come_back_at_once_keeps_its_kind() {
        for kind in [QueryErrorKind::Invalid, QueryErrorKind::Unavailable, QueryErrorKind::Backlog] {
            let heard = QueryError::from_status(&QueryError::new(kind, "why").to_status());
            assert_eq!((heard.kind, heard.message.as_str()), (kind, "why"));
        }
    }
}
