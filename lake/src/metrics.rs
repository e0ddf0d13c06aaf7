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
    pub(crate) last_flush: Option<UnixNanos>,
}

/// Brings the gauges up to date.
pub(crate) fn record(sample: &Sample) {
    gauge!("signaldb_unflushed_bytes").set(sample.unflushed_bytes as f64);
    gauge!("signaldb_unflushed_bytes_max").set(sample.unflushed_bytes_max as f64);
    gauge!("signaldb_flush_oldest_seconds").set(sample.oldest.as_secs_f64());
    gauge!("signaldb_flush_failing_groups").set(sample.failing_groups as f64);
    let last = sample.last_flush.map_or(0.0, |at| Duration::from_nanos(at.0).as_secs_f64());
    gauge!("signaldb_flush_last_success_timestamp_seconds").set(last);
}
