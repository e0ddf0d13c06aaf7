//! TraceQL: a query as a tree, what of it a scan can decide, and the rest, trace by trace, in memory.
//!
//! Only what the public documentation of the language says is known here; what we do not answer is refused by name.

mod ast;
mod lexer;
mod parser;

pub use ast::{Field, Kind, Status, Traceql};
pub use parser::ParseError;
