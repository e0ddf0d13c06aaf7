//! What flushing tells about itself (docs/monitoring.md).

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use signaldb_catalog::{CatalogError, PoolStatus, SwapOutcome};
use signaldb_model::UnixNanos;

use crate::error::LakeError;

/// Values of the label `cause` of failed flushes.
const CAUSES: [&str; 4] = ["catalog", "store", "table", "other"];
/// Values of the label `outcome` of catalog transactions.
const OUTCOMES: [&str; 4] = ["committed", "conflict", "unknown", "failed"];

/// Help texts, for the recorder that is installed; call it once, after that.
pub fn describe() {
    describe_gauge!("signaldb_unflushed_bytes", Unit::Bytes, "Bytes of rows in memory that are not in Iceberg yet.");
    describe_gauge!("signaldb_unflushed_bytes_max", Unit::Bytes, "Unflushed bytes beyond which writes are throttled.");
    describe_gauge!("signaldb_unflushed_log_bytes", Unit::Bytes, "Bytes of the log that hold rows not in Iceberg yet.");
    describe_gauge!(
        "signaldb_unflushed_log_bytes_max",
        Unit::Bytes,
        "The log's budget (wal.max_unflushed); 0 leaves it to the disk's reserve."
    );
    describe_gauge!(
        "signaldb_unflushed_backlog_bytes",
        Unit::Bytes,
        "Memory that unflushed rows would take for which there is none: they are in the log alone."
    );
    describe_gauge!(
        "signaldb_flush_oldest_seconds",
        Unit::Seconds,
        "Age of the oldest rows that this node has to flush."
    );
    describe_gauge!("signaldb_quarantined_tables", "Tables whose rows are put aside as files, as this node knows.");
    describe_gauge!("signaldb_flush_failing_groups", "Groups whose last flush by this node failed.");
    describe_gauge!(
        "signaldb_flush_last_success_timestamp_seconds",
        Unit::Seconds,
        "Unix time of this node's last flush; 0 before the first."
    );
    describe_counter!(
        "signaldb_flush_failures_total",
        "Failed flushes by cause: catalog, store, table (one was left out), other."
    );
    describe_histogram!("signaldb_flush_duration_seconds", Unit::Seconds, "From a cut to the last of its commits.");
    describe_counter!("signaldb_flush_bytes_total", Unit::Bytes, "Bytes of data files that flushes wrote.");
    for cause in CAUSES {
        counter!("signaldb_flush_failures_total", "cause" => cause).increment(0);
    }
    counter!("signaldb_flush_bytes_total").increment(0);
    describe_maintenance();
    describe_writer();
}

/// The four families of the writer: transactions, batches, pool, retries.
fn describe_writer() {
    describe_counter!(
        "signaldb_writer_transactions_total",
        "Catalog transactions that move tables, by outcome: committed, conflict, unknown, failed."
    );
    describe_histogram!("signaldb_writer_transaction_duration_seconds", Unit::Seconds, "Duration of each of them.");
    describe_counter!("signaldb_writer_batches_total", "Runs of one table's rows that flushes wrote.");
    describe_counter!("signaldb_writer_batch_files_total", "Data files that they were split into.");
    describe_counter!("signaldb_writer_batch_rows_total", "Rows in them.");
    describe_counter!("signaldb_writer_batch_bytes_total", Unit::Bytes, "Bytes of these files.");
    describe_gauge!("signaldb_writer_cache_entries", "Parsed files that are kept, by kind: metadata, manifest.");
    describe_gauge!("signaldb_writer_pool_connections", "Connections to the catalog by state: idle, in_use.");
    describe_gauge!("signaldb_writer_pool_connections_max", "Connections that there may be.");
    describe_counter!("signaldb_writer_pool_opened_total", "Connections to the catalog that were opened.");
    describe_counter!("signaldb_writer_pool_timeouts_total", "Requests that got no connection in time.");
    describe_counter!(
        "signaldb_writer_retries_total",
        "Attempts that are made again, by cause: conflict, unknown, catalog, store, table, other."
    );
    describe_counter!("signaldb_writer_retried_total", "Flushes after a failed one, by outcome: succeeded, failed.");
    describe_histogram!("signaldb_writer_retry_pause_seconds", Unit::Seconds, "Pauses before attempts made again.");
    for outcome in OUTCOMES {
        counter!("signaldb_writer_transactions_total", "outcome" => outcome).increment(0);
    }
    for cause in CAUSES.into_iter().chain(["conflict", "unknown"]) {
        counter!("signaldb_writer_retries_total", "cause" => cause).increment(0);
    }
    for retried in [Retried::Succeeded, Retried::Failed] {
        counter!("signaldb_writer_retried_total", "outcome" => retried.outcome()).increment(0);
    }
    note_batch_times(0, 0);
    note_file(0, 0);
    // A histogram is there once somebody asked for it.
    let _ = histogram!("signaldb_writer_transaction_duration_seconds");
    let _ = histogram!("signaldb_writer_retry_pause_seconds");
}

/// How a flush after a failed one ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Retried {
    Succeeded,
    Failed,
}

impl Retried {
    fn outcome(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn note(self) {
        counter!("signaldb_writer_retried_total", "outcome" => self.outcome()).increment(1);
    }
}

pub(crate) fn note_transaction(outcome: &Result<SwapOutcome, CatalogError>, took: Duration) {
    let outcome = match outcome {
        Ok(SwapOutcome::Moved) => "committed",
        Ok(SwapOutcome::Conflict) => "conflict",
        Err(CatalogError::Unknown(_)) => "unknown",
        Err(_) => "failed",
    };
    counter!("signaldb_writer_transactions_total", "outcome" => outcome).increment(1);
    histogram!("signaldb_writer_transaction_duration_seconds").record(took.as_secs_f64());
}

/// A table's rows were written as so many files.
pub(crate) fn note_batch(files: usize) {
    note_batch_times(1, files);
}

fn note_batch_times(times: u64, files: usize) {
    counter!("signaldb_writer_batches_total").increment(times);
    counter!("signaldb_writer_batch_files_total").increment(files as u64);
}

pub(crate) fn note_file(rows: u64, bytes: u64) {
    counter!("signaldb_writer_batch_rows_total").increment(rows);
    counter!("signaldb_writer_batch_bytes_total").increment(bytes);
}

pub(crate) fn note_retry(cause: &'static str, pause: Duration) {
    counter!("signaldb_writer_retries_total", "cause" => cause).increment(1);
    histogram!("signaldb_writer_retry_pause_seconds").record(pause.as_secs_f64());
}

fn record_pool(pool: &PoolStatus) {
    gauge!("signaldb_writer_pool_connections", "state" => "idle").set(f64::from(pool.idle));
    gauge!("signaldb_writer_pool_connections", "state" => "in_use").set(f64::from(pool.in_use));
    gauge!("signaldb_writer_pool_connections_max").set(f64::from(pool.max));
    counter!("signaldb_writer_pool_opened_total").absolute(pool.opened);
    counter!("signaldb_writer_pool_timeouts_total").absolute(pool.timeouts);
}

fn describe_maintenance() {
    describe_counter!("signaldb_compaction_rewrites_total", "Rewrites of data files that were committed.");
    describe_counter!("signaldb_compaction_overtaken_total", "Rewrites that another commit made useless.");
    describe_counter!("signaldb_compaction_paused_total", "Rounds cut short because flushing needed the node.");
    describe_counter!(
        "signaldb_compaction_failures_total",
        "Failed maintenance of a table by cause: catalog, store, table, other."
    );
    describe_counter!("signaldb_compaction_files_removed_total", "Data files that rewrites replaced.");
    describe_counter!("signaldb_compaction_files_added_total", "Data files that rewrites added.");
    describe_counter!("signaldb_compaction_read_bytes_total", Unit::Bytes, "Bytes of the files that were replaced.");
    describe_counter!("signaldb_compaction_written_bytes_total", Unit::Bytes, "Bytes of the files that were added.");
    describe_counter!(
        "signaldb_compaction_trace_index_bytes_total",
        Unit::Bytes,
        "Bytes of trace indexes that were written."
    );
    describe_counter!(
        "signaldb_compaction_trace_index_failures_total",
        "Trace indexes that could not be written; traces of their files are found more slowly."
    );
    describe_gauge!("signaldb_compaction_pending_rewrites", "Rewrites that this node had left after its last round.");
    describe_gauge!(
        "signaldb_compaction_last_duration_seconds",
        Unit::Seconds,
        "Duration of this node's last rewrite."
    );
    describe_counter!("signaldb_retention_files_total", "Data files that were removed because their rows are too old.");
    describe_counter!("signaldb_retention_rows_total", "Rows in them.");
    describe_counter!("signaldb_retention_orphans_deleted_total", "Files deleted because nobody needs them any more.");
    describe_gauge!("signaldb_retention_orphans", "Such files that are not old enough, as of this node's last round.");
    for cause in CAUSES {
        counter!("signaldb_compaction_failures_total", "cause" => cause).increment(0);
    }
    note_rewritten_times(0, 0, 0, 0, 0);
    counter!("signaldb_compaction_overtaken_total").increment(0);
    counter!("signaldb_compaction_paused_total").increment(0);
    counter!("signaldb_compaction_trace_index_failures_total").increment(0);
    note_trace_index(0);
    note_retired(0, 0);
    counter!("signaldb_retention_orphans_deleted_total").increment(0);
    record_maintenance(0, 0);
    note_rewrite_took(Duration::ZERO);
}

pub(crate) fn note_rewritten(read: usize, written: usize, read_bytes: u64, written_bytes: u64) {
    note_rewritten_times(1, read, written, read_bytes, written_bytes);
}

fn note_rewritten_times(times: u64, read: usize, written: usize, read_bytes: u64, written_bytes: u64) {
    counter!("signaldb_compaction_rewrites_total").increment(times);
    counter!("signaldb_compaction_files_removed_total").increment(read as u64);
    counter!("signaldb_compaction_files_added_total").increment(written as u64);
    counter!("signaldb_compaction_read_bytes_total").increment(read_bytes);
    counter!("signaldb_compaction_written_bytes_total").increment(written_bytes);
}

pub(crate) fn note_rewrite_took(took: Duration) {
    gauge!("signaldb_compaction_last_duration_seconds").set(took.as_secs_f64());
}

pub(crate) fn note_trace_index(bytes: usize) {
    counter!("signaldb_compaction_trace_index_bytes_total").increment(bytes as u64);
}

pub(crate) fn note_trace_index_failure() {
    counter!("signaldb_compaction_trace_index_failures_total").increment(1);
}

pub(crate) fn note_overtaken() {
    counter!("signaldb_compaction_overtaken_total").increment(1);
}

pub(crate) fn note_paused() {
    counter!("signaldb_compaction_paused_total").increment(1);
}

pub(crate) fn note_maintenance_failure(failure: &LakeError) {
    counter!("signaldb_compaction_failures_total", "cause" => cause(failure)).increment(1);
}

pub(crate) fn note_retired(files: usize, rows: u64) {
    counter!("signaldb_retention_files_total").increment(files as u64);
    counter!("signaldb_retention_rows_total").increment(rows);
}

pub(crate) fn note_orphan_deleted() {
    counter!("signaldb_retention_orphans_deleted_total").increment(1);
}

/// What a round of maintenance left to do.
pub(crate) fn record_maintenance(pending: usize, orphans: usize) {
    gauge!("signaldb_compaction_pending_rewrites").set(pending as f64);
    gauge!("signaldb_retention_orphans").set(orphans as f64);
}

pub(crate) fn note_failure(failure: &LakeError) {
    counter!("signaldb_flush_failures_total", "cause" => cause(failure)).increment(1);
}

pub(crate) fn cause(failure: &LakeError) -> &'static str {
    match failure {
        LakeError::Catalog(_) => "catalog",
        LakeError::Store(_) => "store",
        LakeError::Table(_)
        | LakeError::Iceberg(_)
        | LakeError::Parquet(_)
        | LakeError::Arrow(_)
        | LakeError::ForeignMark { .. }
        | LakeError::WentBack { .. }
        | LakeError::Quarantined { .. }
        | LakeError::Unsorted
        | LakeError::UnknownColumn { .. }
        | LakeError::RowsDiffer { .. }
        | LakeError::ForeignDeletes(_) => "table",
        LakeError::Write(_)
        | LakeError::Read(_)
        | LakeError::Backlog { .. }
        | LakeError::Promote(_)
        | LakeError::Stopped(_) => "other",
    }
}

/// The lake at one moment.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) unflushed_bytes: usize,
    pub(crate) unflushed_bytes_max: usize,
    pub(crate) oldest: Duration,
    pub(crate) failing_groups: usize,
    pub(crate) quarantined_tables: usize,
    pub(crate) last_flush: Option<UnixNanos>,
    pub(crate) unflushed_log_bytes: usize,
    pub(crate) unflushed_log_bytes_max: Option<usize>,
    pub(crate) backlog_bytes: usize,
    pub(crate) cached_metadata: usize,
    pub(crate) cached_manifests: usize,
    pub(crate) pool: PoolStatus,
}

/// Brings the gauges up to date.
pub(crate) fn record(sample: &Sample) {
    gauge!("signaldb_unflushed_bytes").set(sample.unflushed_bytes as f64);
    gauge!("signaldb_unflushed_bytes_max").set(sample.unflushed_bytes_max as f64);
    gauge!("signaldb_flush_oldest_seconds").set(sample.oldest.as_secs_f64());
    gauge!("signaldb_flush_failing_groups").set(sample.failing_groups as f64);
    gauge!("signaldb_quarantined_tables").set(sample.quarantined_tables as f64);
    let last = sample.last_flush.map_or(0.0, |at| Duration::from_nanos(at.0).as_secs_f64());
    gauge!("signaldb_flush_last_success_timestamp_seconds").set(last);
    gauge!("signaldb_unflushed_log_bytes").set(sample.unflushed_log_bytes as f64);
    gauge!("signaldb_unflushed_log_bytes_max").set(sample.unflushed_log_bytes_max.unwrap_or(0) as f64);
    gauge!("signaldb_unflushed_backlog_bytes").set(sample.backlog_bytes as f64);
    gauge!("signaldb_writer_cache_entries", "kind" => "metadata").set(sample.cached_metadata as f64);
    gauge!("signaldb_writer_cache_entries", "kind" => "manifest").set(sample.cached_manifests as f64);
    record_pool(&sample.pool);
}
