//! What can go wrong on the way into Iceberg.

use signaldb_catalog::CatalogError;
use signaldb_raft::{ReadError, WriteError};
use thiserror::Error;

use crate::storage::StoreError;

/// A flush or a table read failed. Rows stay where they were: in the log and in memory.
#[derive(Debug, Error)]
pub enum LakeError {
    #[error("catalog")]
    Catalog(#[from] CatalogError),
    #[error("object store")]
    Store(#[from] StoreError),
    #[error("table metadata")]
    Iceberg(#[from] iceberg::Error),
    #[error("data file")]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error("columns")]
    Arrow(#[from] arrow::error::ArrowError),
    #[error("propose a flush")]
    Write(#[from] WriteError),
    #[error("read index")]
    Read(#[from] ReadError),
    /// The table was last flushed by somebody else's cluster, group or incarnation: flushing would double or lose rows.
    #[error("table {table} carries a foreign flush mark: {found}")]
    ForeignMark { table: String, found: String },
    /// Somebody put the catalog's pointer back to an older version of the table. Rows that are in the newer ones only are
    /// neither in memory nor, perhaps, in the log: a commit on the older one would lose them for good.
    #[error(
        "table {table} was put back from outside: the catalog names its version {found} with rows up to entry {flushed}, \
         the log knows version {known} with rows up to entry {watermark}. Nothing is flushed to it until the catalog \
         names {location} again, or a version after it"
    )]
    WentBack { table: String, found: i64, flushed: u64, known: i64, watermark: u64, location: String },
    /// Rows of the table were put aside: what is left of it would pass for the whole.
    #[error("table {table} is in quarantine: {reason}")]
    Quarantined { table: String, reason: String },
    /// Rows were deleted by a writer that is not us; a scan would count them.
    #[error("table at {0} has delete files of another writer")]
    ForeignDeletes(String),
    /// A data file that says it is in the table's order is not.
    #[error("a data file is not sorted as it says")]
    Unsorted,
    /// A newer version wrote the file; this one would lose the column.
    #[error("data file {location} has the column {column}, which this version does not know")]
    UnknownColumn { column: String, location: String },
    /// What was to replace data files does not have their rows. Nothing was committed.
    #[error("{written} rows were written for {read} that were to be rewritten")]
    RowsDiffer { read: u64, written: u64 },
    /// One table could not be flushed; the others were.
    #[error("a table was left out of the flush")]
    Table(#[source] Box<LakeError>),
    /// Catalog or store were down for so long that the newest rows are in the log alone; they come back by themselves.
    /// `bytes` of memory would hold them.
    #[error(
        "the newest rows, about {bytes} bytes of them, wait in the log for their flush: catalog or store are, or were, down"
    )]
    Backlog { bytes: usize },
    #[error("{0}")]
    Stopped(&'static str),
}
