//! The node's own directory: one process at a time.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use signaldb_wal::{LogIo, RealIo};

use crate::config::Config;

/// Name of the file whose lock means that the directory is in use.
const LOCK: &str = "LOCK";

/// Holds the directory until it is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    _lock: File,
}

impl DataDir {
    /// Creates the directory and takes it for this process.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        // Durable, with each level that is made: what is synced below it must not vanish with it.
        RealIo.create_dir_all(dir).with_context(|| format!("create data directory {}", dir.display()))?;
        let path = dir.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| format!("open {}", path.display()))?;
        Self::lock(lock, FlockOperation::NonBlockingLockExclusive, dir)
    }

    /// Takes what a node writes to: its own directory, and that of its log, which may be elsewhere.
    pub(crate) fn open_all(config: &Config) -> anyhow::Result<Vec<Self>> {
        let mut held = vec![Self::open(&config.node.data_dir)?];
        let log = config.wal_dir();
        RealIo.create_dir_all(&log).with_context(|| format!("create log directory {}", log.display()))?;
        for dir in dirs(config).iter().skip(1) {
            held.push(Self::open(dir)?);
        }
        Ok(held)
    }

    /// Takes the directories of a node that does not run, as far as they exist. Nothing is changed in them unless
    /// `alone`; commands that only look share them.
    pub(crate) fn of_stopped_node(config: &Config, alone: bool) -> anyhow::Result<Vec<Self>> {
        let mut held = Vec::new();
        for dir in dirs(config).into_iter().filter(|dir| dir.is_dir()) {
            if alone {
                held.push(Self::open(&dir)?);
                continue;
            }
            let path = dir.join(LOCK);
            match File::open(&path) {
                Ok(lock) => held.push(Self::lock(lock, FlockOperation::NonBlockingLockShared, &dir)?),
                // No node was ever here.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
            }
        }
        Ok(held)
    }

    fn lock(lock: File, operation: FlockOperation, dir: &Path) -> anyhow::Result<Self> {
        if flock(&lock, operation).is_err() {
            bail!(
                "data directory {} is used by another signaldb process; stop it, or choose another with --data-dir",
                dir.display()
            );
        }
        Ok(Self { _lock: lock })
    }
}

/// The node's directory, then its log's unless that is the same.
fn dirs(config: &Config) -> Vec<PathBuf> {
    let (own, log) = (config.node.data_dir.clone(), config.wal_dir());
    let same = match (own.canonicalize(), log.canonicalize()) {
        (Ok(own), Ok(log)) => own == log,
        _ => own == log,
    };
    if same { vec![own] } else { vec![own, log] }
}
