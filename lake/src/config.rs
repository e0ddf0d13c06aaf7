//! When to flush, and how much may wait; how tables are kept in shape.

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
    /// Memory of unflushed rows of all groups. Beyond it writes are throttled, or, while catalog or store are down, rows
    /// stay in the log.
    pub memtable_bytes_max: usize,
    /// The log's budget: bytes of it that may hold unflushed rows, of all groups; `None` leaves it to the disk's reserve.
    pub log_bytes_max: Option<usize>,
    /// Tables of one flush whose files are written at the same time. Default 4.
    pub concurrency: usize,
    pub batch: BatchConfig,
    /// How long parsed metadata and manifests that nobody asks for are kept. Default 5 min; zero keeps none.
    pub cache_ttl: Duration,
    pub retry: RetryConfig,
    /// Every group has this node as its only voter: it leads them all, always.
    pub lone_voter: bool,
    pub compaction: CompactionConfig,
    pub retention: RetentionConfig,
}

/// Rows of a flush that are sorted together, in memory. Each batch is a data file for each of its days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchConfig {
    /// Default 1,000,000.
    pub rows_max: usize,
    /// Default 512 MiB, which is the most.
    pub bytes_max: usize,
}

/// How commits and flushes that failed are tried again.
#[derive(Debug, Clone)]
pub struct RetryConfig {
    /// Attempts of one commit while others win, before it counts as failed; a compaction has eight times as many, before its
    /// files are given up. Flushes are tried again for ever. Default 5.
    pub max_attempts: u32,
    /// Pause after the first failure, half of it drawn. Default 100 ms.
    pub initial_delay: Duration,
    /// Default 10 s.
    pub max_delay: Duration,
    /// By which each pause is longer than the last. Default 2.
    pub backoff_multiplier: f64,
}

/// How small data files become large ones.
#[derive(Debug, Clone)]
pub struct CompactionConfig {
    /// Default true. Off, small files stay small; retention and cleaning go on.
    pub enabled: bool,
    /// How often the leader of a table's owner group looks after it. Default 1 min.
    pub interval: Duration,
    /// Size of a compacted file, which is built in memory. Default 128 MiB.
    pub target_file_bytes: u64,
    /// Files of like size that are merged while their day lasts. Default 8.
    pub min_files: usize,
    /// Compressed row groups that a merge may hold, bytes. Default 256 MiB.
    pub memory_bytes: u64,
}

/// How long rows and files are kept.
#[derive(Debug, Clone)]
pub struct RetentionConfig {
    /// Age at which rows go where no rule says otherwise; default `None`, for ever.
    pub keep: Option<Duration>,
    pub rules: Vec<RetentionRule>,
    /// How long a file that nobody needs any more is kept for queries that still read it; at least twice the longest
    /// query. Default 1 h.
    pub grace: Duration,
    /// How often a table's files are listed. Default 1 h.
    pub collect_interval: Duration,
}

/// Retention of the tables that match all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionRule {
    pub tenant: Option<String>,
    pub dataset: Option<String>,
    /// As in SQL: `logs`, `metrics_gauge`.
    pub table: Option<String>,
    /// `None` is for ever.
    pub keep: Option<Duration>,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { rows_max: 1_000_000, bytes_max: 512 << 20 }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(10),
            backoff_multiplier: 2.0,
        }
    }
}

impl Default for CompactionConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Duration::from_secs(60),
            target_file_bytes: 128 << 20,
            min_files: 8,
            memory_bytes: 256 << 20,
        }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self { keep: None, rules: Vec::new(), grace: hour, collect_interval: hour }
    }
}

impl Default for LakeConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            max_interval: Duration::from_secs(600),
            max_bytes: 64 << 20,
            memtable_bytes_max: 1 << 30,
            log_bytes_max: None,
            concurrency: 4,
            batch: BatchConfig::default(),
            cache_ttl: Duration::from_secs(300),
            retry: RetryConfig::default(),
            lone_voter: true,
            compaction: CompactionConfig::default(),
            retention: RetentionConfig::default(),
        }
    }
}
