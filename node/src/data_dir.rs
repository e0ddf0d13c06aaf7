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

/// Whether less is free than the reserve asks for.
pub(crate) fn below_reserve(dir: &Path, reserve: DiskReserve) -> bool {
    let Ok(stat) = statvfs(dir) else { return false };
    let (free, total) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
    free < reserve.bytes.min(total / 100 * u64::from(reserve.percent))
}
