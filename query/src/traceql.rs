//! TraceQL: a query as a tree, what of it a scan can decide, and the rest, trace by trace, in memory.
//!
//! Only what the public documentation of the language says is known here; what we do not answer is refused by name.
//!
//! | file | does |
//! |---|---|
//! | `lexer`, `parser`, `ast` | text to tree, pure |
//! | `pushdown` | a filter for the scan that keeps at least what the query keeps, pure |
//! | `scan` | plans over the stored `traces` |
//! | `spans`, `value`, `trace`, `eval` | what the query makes of the spans of a trace, pure |
//! | `search`, `by_id`, `tags`, `series` | the questions |

mod ast;
mod by_id;
mod bytes;
mod eval;
mod lexer;
mod parser;
mod pushdown;
mod scan;
mod search;
mod series;
mod spans;
mod tags;
mod trace;
mod value;

use crate::error::{QueryError, QueryErrorKind};

pub use ast::{Field, Function, Intrinsic, Kind, Literal, Metrics, Scope, Status, Traceql};
pub use by_id::TracePart;
pub use lexer::duration;
pub use parser::ParseError;
pub use scan::{Answered, Asked, Window};
pub use search::{FoundSpan, FoundSpanset, FoundTrace, Inspected, Search, TRACES_MAX};
pub use series::{STEPS_MAX, Series, SeriesExemplar, SeriesQuestion};
pub use tags::{INTRINSIC_TAGS, TAG_SCOPES, TagNames, TagQuestion};
pub use value::Value;

impl Traceql {
    /// How many spans are to be named as examples, where a hint says so.
    pub fn exemplars(&self) -> Option<usize> {
        let hint = self.hints.iter().find(|(name, _)| name == "exemplars");
        match hint.map(|(_, value)| value)? {
            Literal::Int(count) => Some(usize::try_from(*count).unwrap_or(0)),
            Literal::Bool(false) => Some(0),
            _ => None,
        }
    }
}

impl From<ParseError> for QueryError {
    fn from(error: ParseError) -> Self {
        let kind = if error.unsupported { QueryErrorKind::Unsupported } else { QueryErrorKind::Invalid };
        // The position is in the message, as clients of Tempo expect it.
        Self::new(kind, error.to_string())
    }
}
