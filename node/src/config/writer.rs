//! How flushes use catalog and store, in the seed documents' terms; their units in names are translated in `seeds`.

use serde::{Deserialize, Serialize};

use super::{ByteSize, Config, ConfigError, Time};

/// Fewer rows are not worth a data file.
const BATCH_ROWS_MIN: usize = 1000;
const BATCH_BYTES_MIN: u64 = 1 << 20;
/// A batch is sorted in memory.
const BATCH_BYTES_MAX: u64 = 512 << 20;

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Writer {
    pub pool: Pool,
    pub retry: Retry,
    pub batch: Batch,
}

/// Connections of this node to each of its databases.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Kept open.
    pub min_connections: u32,
    pub max_connections: u32,
    /// How long a request waits for a connection.
    pub connection_timeout: Time,
    /// A connection that nobody needed for so long is closed.
    pub idle_timeout: Time,
    /// A connection this old is closed.
    pub max_lifetime: Time,
}

/// How what failed is tried again.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Of one commit while others win. Flushes are tried again for ever.
    pub max_attempts: u32,
    /// Half of each pause is drawn.
    pub initial_delay: Time,
    pub max_delay: Time,
    pub backoff_multiplier: f64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Rows of a flush that are sorted together, and become one data file a day.
    pub max_rows_per_batch: usize,
    /// The same, as they are in memory.
    pub max_memory_per_batch: ByteSize,
    /// Off, a flush's rows of a table are one batch, up to 512 MiB.
    pub enable_auto_split: bool,
    /// Tables of one flush whose files are written at the same time.
    pub target_concurrent_batches: usize,
    /// Keep parsed metadata, and tenants, in memory.
    pub enable_catalog_caching: bool,
    /// Parsed metadata that nobody asks for is kept this long; tenants are read again this often.
    pub catalog_cache_ttl: Time,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            min_connections: 2,
            max_connections: 10,
            connection_timeout: Time::from_secs(5),
            idle_timeout: Time::from_secs(30 * 60),
            max_lifetime: Time::from_secs(30 * 60),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial_delay: Time::from_millis(100),
            max_delay: Time::from_secs(10),
            backoff_multiplier: 2.0,
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_rows_per_batch: 1_000_000,
            max_memory_per_batch: ByteSize(512 << 20),
            enable_auto_split: true,
            target_concurrent_batches: 4,
            enable_catalog_caching: true,
            catalog_cache_ttl: Time::from_secs(300),
        }
    }
}

pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let wrong = |key: &str, message: &str| {
        Err(ConfigError::Value { key: format!("writer.{key}"), message: message.to_owned() })
    };
    let Writer { pool, retry, batch } = &config.writer;
    if pool.max_connections == 0 || pool.max_connections < pool.min_connections {
        return wrong("pool.max_connections", "expected 1 or more, and no less than min_connections");
    }
    let times = [
        ("pool.connection_timeout", pool.connection_timeout),
        ("pool.idle_timeout", pool.idle_timeout),
        ("pool.max_lifetime", pool.max_lifetime),
        ("retry.initial_delay", retry.initial_delay),
        ("batch.catalog_cache_ttl", batch.catalog_cache_ttl),
    ];
    if let Some((key, _)) = times.iter().find(|(_, time)| time.0.is_zero()) {
        return wrong(key, "expected more than 0s");
    }
    if retry.max_attempts == 0 {
        return wrong("retry.max_attempts", "expected 1 or more");
    }
    if retry.max_delay < retry.initial_delay {
        return wrong("retry.max_delay", "expected no less than initial_delay");
    }
    if !(1.0..=10.0).contains(&retry.backoff_multiplier) {
        return wrong("retry.backoff_multiplier", "expected 1 to 10");
    }
    if batch.max_rows_per_batch < BATCH_ROWS_MIN {
        return wrong(
            "batch.max_rows_per_batch",
            "expected 1000 or more; compaction.target_file_size says how files end up",
        );
    }
    if !(BATCH_BYTES_MIN..=BATCH_BYTES_MAX).contains(&batch.max_memory_per_batch.0) {
        return wrong(
            "batch.max_memory_per_batch",
            "expected 1MiB to 512MiB; flush.max_bytes says when a group is flushed",
        );
    }
    if !(1..=64).contains(&batch.target_concurrent_batches) {
        return wrong("batch.target_concurrent_batches", "expected 1 to 64");
    }
    Ok(())
}
