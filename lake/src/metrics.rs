//! What flushing tells about itself (docs/monitoring.md).

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use signaldb_model::UnixNanos;

use crate::error::LakeError;

/// Values of the label `cause` of failed flushes.
const CAUSES: [&str; 4] = ["catalog", "store", "table", "other"];

/// Help texts, for the recorder that is installed; call it once, after that.
pub fn describe() {
    describe_gauge!("signaldb_unflushed_bytes", Unit::Bytes, "Bytes of rows in memory that are not in Iceberg yet.");
    describe_gauge!("signaldb_unflushed_bytes_max", Unit::Bytes, "Unflushed bytes beyond which writes are throttled.");
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

fn cause(failure: &LakeError) -> &'static str {
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
        LakeError::Write(_) | LakeError::Read(_) | LakeError::Stopped(_) => "other",
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
}
