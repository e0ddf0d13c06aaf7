//! Settings of the log engine.

use std::time::Duration;

/// Sizes and times of one log.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// A segment that reached this many bytes is sealed and the next one is started. Default 64 MiB.
    pub segment_bytes_max: u64,
    /// Longest time between a write and its fdatasync when nobody waits for the sync. Default 50 ms.
    pub sync_interval: Duration,
    /// Bytes written without a sync that hurry the next one. Default 4 MiB.
    pub sync_bytes: u64,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self { segment_bytes_max: 64 << 20, sync_interval: Duration::from_millis(50), sync_bytes: 4 << 20 }
    }
}
