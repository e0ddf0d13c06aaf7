//! The lake: rows that are not yet flushed, and the flush that brings them into Iceberg exactly once.
//!
//! [`Lake`] listens behind apply. A builder decodes what was applied into memtables; a flusher a group cuts, writes
//! data files and commits them (DESIGN section 6). Only this crate writes Iceberg metadata: [`metadata`] computes the
//! next version of a table as bytes, without I/O. Maintenance keeps the tables in shape: compaction, retention, expiry
//! of snapshots, and what nobody needs any more; an operator may look at them ([`TableShape`]) and ask for it
//! ([`TableTask`]).
//!
//! Start with [`Lake`], then [`memtable`], [`flush`] and [`maintain`].

mod cache;
mod commit;
mod compact;
mod config;
mod datafile;
mod error;
mod flush;
mod lake;
mod maintain;
mod memtable;
pub mod metadata;
pub mod metrics;
mod names;
mod orphans;
mod outage;
mod pointers;
mod promote;
mod quarantine;
mod retention;
mod retry;
mod shape;
mod storage;
mod table;
#[cfg(test)]
mod testing;
pub mod trace_index;
mod turns;

pub use config::{BatchConfig, CompactionConfig, LakeConfig, RetentionConfig, RetentionRule, RetryConfig};
pub use datafile::{data_files_of, is_filled, is_own, is_whole};
pub use error::LakeError;
pub use flush::flush_of;
pub use lake::Lake;
pub use maintain::{TableTask, Task, TaskReport};
pub use memtable::{MemBatch, TableView, request_of};
pub use pointers::TablePointers;
pub use promote::{Attribute, PROMOTED_MAX, PromoteError, Promotion, copies_of};
pub use shape::{FileShape, FilesShape, PromotedShape, TableFilter, TableShape};
pub use storage::{Listed, ObjectFailure, S3Credentials, S3Options, Store, StoreError};
pub use table::{day_of, version_of};
