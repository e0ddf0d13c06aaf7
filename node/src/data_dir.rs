//! The node's own directory: one process at a time, and room to write.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock, statvfs};

use crate::config::DiskReserve;

/// Holds the directory until it is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    _lock: File,
}

impl DataDir {
    /// Creates the directory and takes it for this process.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create data directory {}", dir.display()))?;
        let path = dir.join("LOCK");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| format!("open {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "data directory {} is used by another signaldb process; stop it, or choose another with --data-dir",
                dir.display()
            );
        }
        Ok(Self { _lock: lock })
    }
}

/// Room on the file system of the log, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskRoom {
    pub(crate) size: u64,
    pub(crate) free: u64,
    /// Ingest stops when less is free.
    pub(crate) reserve: u64,
}

impl DiskRoom {
    /// `None` when the system does not say.
    pub(crate) fn of(dir: &Path, reserve: DiskReserve) -> Option<Self> {
        let stat = statvfs(dir).ok()?;
        let (size, free) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
        Some(Self { size, free, reserve: reserve.bytes.min(size / 100 * u64::from(reserve.percent)) })
    }

    pub(crate) fn below_reserve(self) -> bool {
        self.free < self.reserve
    }
}
