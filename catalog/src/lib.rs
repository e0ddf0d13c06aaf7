//! The SQL catalog: Iceberg table pointers that PyIceberg and others open directly, and who may do what.
//!
//! Only this crate talks to the SQL database. It never reads or writes Iceberg metadata: it moves pointers, all or
//! none, and says honestly when it does not know whether they moved ([`IcebergCatalog::swap`]).

mod access;
mod database;
mod iceberg;
mod session;
#[cfg(any(test, feature = "testing"))]
pub mod test_postgres;

pub use access::{Access, AccessError, Datasets, Identity, TenantConfig};
pub use database::{CatalogError, Database, PoolConfig, PoolStatus};
pub use iceberg::{IcebergCatalog, Swap, SwapOutcome, TablePointer};
pub use session::SESSION_TOKEN_BYTES;
