//! SQL over what is flushed and what is not, as one table (DESIGN sections 7 and 10).
//!
//! A query first takes a view of each group's memtable, then scans the newest metadata that any view names, and adds
//! the memtable rows above that metadata's watermarks: nothing is missed, nothing is counted twice. Everything here
//! runs on the CPU runtime, so that queries never delay acknowledgments.
//!
//! Start with [`QueryEngine`].

mod as_of;
mod below;
mod budget;
mod copies;
mod distributed;
mod engine;
mod error;
mod files;
mod functions;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod kept;
mod likes;
mod logical_view;
mod memory;
pub mod metrics;
mod names;
mod narrow;
mod newest;
mod parameters;
mod peer_flight;
mod pool;
mod prune;
mod queries;
mod remote;
mod rewrite;
mod row_filters;
mod scanned;
mod snapshot;
mod spill;
mod system;
mod table;
pub mod traceql;
mod traces;
mod views;
mod whole;

pub use budget::Budget;
pub use distributed::{Distribution, PeerWorker};
pub use engine::{Allowance, Answers, Consistency, Description, Query, QueryConfig, QueryEngine, RunningQuery};
pub use error::{QueryError, QueryErrorKind};
pub use names::SYSTEM as SYSTEM_SCHEMA;
pub use parameters::Parameters;
pub use peer_flight::PeerFlight;
pub use queries::{Queries, QueryId, QueryStatus};
#[cfg(feature = "testing")]
pub use snapshot::testing::{SeenTable, TableReader};
pub use system::NAMES as SYSTEM_TABLES;
