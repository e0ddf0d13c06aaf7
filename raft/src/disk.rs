//! How much room the log's disk has, and what follows from it (DESIGN section 4). Whoever watches the disk says it
//! ([`crate::Groups::set_disk_level`]); the groups act on it.

use tokio::sync::watch;

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
    /// leaders this node is a slow one; heartbeats, votes and snapshots go on.
    Exhausted,
}

/// The level as of now.
pub(crate) type DiskWatch = watch::Receiver<DiskLevel>;
