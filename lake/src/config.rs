//! When to flush, and how much may wait.

use std::time::Duration;

/// Settings of the lake.
#[derive(Debug, Clone)]
pub struct LakeConfig {
    /// A table with over 1 MiB of unflushed rows is flushed when they are this old. Default 30 s.
    pub interval: Duration,
    /// Every row is flushed when it is this old. Default 10 min.
    pub max_interval: Duration,
    /// A group that holds this many bytes is flushed at once. Default 64 MiB.
    pub max_bytes: usize,
    /// Unflushed bytes of all groups, beyond which writes are throttled.
    pub memtable_bytes_max: usize,
    /// Every group has this node as its only voter: it leads them all, always.
    pub lone_voter: bool,
}

impl Default for LakeConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            max_interval: Duration::from_secs(600),
            max_bytes: 64 << 20,
            memtable_bytes_max: 1 << 30,
            lone_voter: true,
        }
    }
}
