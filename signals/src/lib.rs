//! Table shapes, and OTLP to columns and back. Pure: no I/O, no clock, no runtime.
//!
//! A request is checked once at the edge ([`request::check`]), travels the log as the protobuf that the client sent,
//! and becomes Arrow in bulk behind apply ([`decode::decode`]). What was checked always decodes. [`encode`] is the way
//! back; together they are the identity on records (tests/it/round_trip.rs).
//!
//! Start with [`table::SignalTable`] and [`schema`], the one source of column names, types and field ids.

mod any_value;
mod attributes;
pub mod copies;
pub mod decode;
pub mod encode;
pub mod json;
mod logs;
mod metrics;
pub mod promoted;
pub mod request;
pub mod rows;
pub mod schema;
pub mod table;
mod traces;
mod view_ddl;
mod wire;

pub use attributes::{AttributeLookup, AttributeValue, found_in_map, merge_attributes};
pub use request::{Checked, RequestError, SignalKind};
pub use rows::Rows;
pub use table::SignalTable;
pub use view_ddl::{ViewDialect, promoted_into, view_ddl};
pub use wire::WireError;
