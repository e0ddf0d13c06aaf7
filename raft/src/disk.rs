//! How much room the log's disk has, and what follows from it (DESIGN section 4). Whoever watches the disk says it
//! ([`crate::Groups::set_disk_level`], [`crate::Groups::set_room_for_snapshots`]); the groups act on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard, watch};

use crate::state_store::StateStore;

/// Room on the log's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum DiskLevel {
    /// The reserve is free.
    #[default]
    Normal,
    /// It is not: no rows are taken, leaderships go to nodes that take them, and log whose rows are in Iceberg is purged
    /// at once.
    NearlyFull,
    /// Next to nothing is free: entries of leaders are refused too, so that votes and purge records find room. For its
    /// leaders this node is a slow one; heartbeats and votes go on, and snapshots that fit.
    Exhausted,
}

/// The level as of now.
pub(crate) type DiskWatch = watch::Receiver<DiskLevel>;

/// What snapshots may take of the disk that they share with the log. Where they left nothing, the next record of the log would
/// end the node. They are written one at a time, so that each finds what the one before left.
#[derive(Debug)]
pub(crate) struct SnapshotRoom {
    store: Arc<dyn StateStore>,
    left: AtomicU64,
    turn: Mutex<()>,
}

impl SnapshotRoom {
    /// Without bound until somebody says one.
    pub(crate) fn new(store: Arc<dyn StateStore>) -> Self {
        Self { store, left: AtomicU64::new(u64::MAX), turn: Mutex::default() }
    }

    /// Bytes that they may take.
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    pub(crate) fn set_left(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    /// What a snapshot of so many bytes takes for a while.
    pub(crate) fn taken_by(&self, bytes: u64) -> u64 {
        self.store.room_to_put(bytes)
    }

    /// One was written. The next look at the disk finds what it really took.
    pub(crate) fn took(&self, bytes: u64) {
        self.set_left(self.left().saturating_sub(bytes));
    }

    /// Held while one is written.
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}
