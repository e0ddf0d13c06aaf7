//! Everything that a client talks to: OTLP over gRPC and HTTP, SQL over HTTP and Flight SQL, Tempo's API, health and
//! operations.
//!
//! Only this crate knows headers and status codes. Each protocol is a thin translation to the same few calls:
//! [`identity`] says whose request it is, [`intake`] bounds what is read, [`ingest`] appends, the query engine answers,
//! [`error`] maps every failure to every protocol's status.
//!
//! Start with [`App`] and [`serve`].

mod app;
mod decompress;
mod edge;
pub mod error;
mod flight_sql;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod iceberg_rest;
mod identity;
mod ingest;
mod intake;
pub mod metrics;
mod otlp_grpc;
mod otlp_http;
mod queries_http;
mod reading;
mod recover;
mod release;
mod serve;
mod sql_http;
mod starting;
mod tables_http;
mod tempo;
mod transfer;
mod view_http;

pub use app::{App, AppDeps};
pub use serve::{Listeners, ServeError, serve};
pub use starting::serve_starting;
