//! What can go wrong with a log on disk.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

/// A request to an open log failed.
#[derive(Debug, Clone, Error)]
pub enum WalError {
    /// A write or an fsync failed. It is never retried: after it nobody knows what is on the disk, so the log
    /// refuses everything and the process must stop (Rebello et al., ATC 2020).
    #[error("log is poisoned by a failed {operation}")]
    Poisoned { operation: &'static str, source: Arc<io::Error> },
    /// The log was closed.
    #[error("log is closed")]
    Closed,
    /// A read failed or found bytes that do not match their checksum.
    #[error("read WAL segment {segment:06} at offset {offset}: {reason}")]
    Read { segment: u64, offset: u64, reason: String },
    /// The range asked for was purged or never written.
    #[error("group {group} holds no entry {index} (it holds {first}..={last})")]
    Missing { group: u32, index: u64, first: u64, last: u64 },
}

/// A log directory cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Written by a newer version, or not a log.
    #[error("log format {found} in {path} is not supported (this build reads format {supported})")]
    Format { path: PathBuf, found: u32, supported: u32 },
    /// `metadata.json` is unreadable.
    #[error("{path} is damaged: {reason}")]
    Metadata { path: PathBuf, reason: String },
    /// Whoever decides refused what was found. Nothing was changed on disk.
    #[error("the log in {path} may not be opened: {reason}")]
    Refused { path: PathBuf, reason: String },
    /// Bytes that were known to be on disk are damaged, and nobody accepted the loss. Nothing was changed on disk.
    #[error(
        "WAL corruption in segment {segment:06} at offset {offset}: {reason}; batches from {batch} on, which were \
         known to be on disk, are unreadable; affected groups: {groups:?}; lost: {lost}; {verdict}. Restore the file, \
         or accept the loss with `signaldb wal repair --accept-data-loss`"
    )]
    Corrupt {
        segment: u64,
        offset: u64,
        batch: u64,
        groups: Vec<u32>,
        /// What is lost of each group.
        lost: String,
        reason: String,
        /// Why the start did not go on.
        verdict: String,
    },
}

impl OpenError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
