//! The lake: rows that are not yet flushed, and the flush that brings them into Iceberg exactly once.
//!
//! [`Lake`] listens behind apply. A builder decodes what was applied into memtables; a flusher a group cuts, writes
//! data files and commits them (DESIGN section 6). Only this crate writes Iceberg metadata: [`metadata`] computes the
//! next version of a table as bytes, without I/O.
//!
//! Start with [`Lake`], then [`memtable`] and [`flush`].

mod config;
mod datafile;
mod error;
mod flush;
mod lake;
mod memtable;
pub mod metadata;
pub mod metrics;
mod storage;
mod table;

pub use config::LakeConfig;
pub use error::LakeError;
pub use lake::Lake;
pub use memtable::{MemBatch, TableView};
pub use storage::{Listed, ObjectFailure, S3Credentials, S3Options, Store, StoreError};
pub use table::version_of;
