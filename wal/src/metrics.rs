//! What the log tells about itself, as `signaldb_wal_*` (docs/monitoring.md).
//!
//! Counters and histograms are handles that an open log registers once: nothing is looked up or formatted on the way of
//! a record. Gauges are set when somebody asks ([`record`]).

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::wal::Wal;

/// Help texts, for the recorder that is installed; call it once, after that.
pub fn describe() {
    describe_gauge!("signaldb_wal_bytes", Unit::Bytes, "Bytes of all log segments.");
    describe_gauge!("signaldb_wal_segments", "Log segments.");
    describe_counter!("signaldb_wal_appended_bytes_total", Unit::Bytes, "Bytes of entries that were written.");
    describe_counter!(
        "signaldb_wal_written_bytes_total",
        Unit::Bytes,
        "Bytes written into segments: entries, headers, votes, checkpoints, footers."
    );
    describe_counter!("signaldb_wal_segments_created_total", "Segments started, without the first of this process.");
    describe_counter!("signaldb_wal_segments_removed_total", "Segments removed because no group needs them.");
    describe_histogram!(
        "signaldb_wal_flush_duration_seconds",
        Unit::Seconds,
        "Duration of each fdatasync of the written segment."
    );
    describe_counter!("signaldb_wal_syncs_total", "fdatasyncs of the written segment, failed ones included.");
    describe_gauge!("signaldb_wal_unsynced_bytes", Unit::Bytes, "Bytes written and not known to be on disk.");
    describe_gauge!(
        "signaldb_wal_sync_lag_seconds",
        Unit::Seconds,
        "Age of the oldest bytes that are written and not known to be on disk."
    );
    describe_gauge!("signaldb_wal_poisoned", "1 after a failed write or fdatasync: the log refuses everything.");
    describe_counter!("signaldb_wal_torn_tails_total", "Torn ends that the start of this process cut off.");
    describe_counter!(
        "signaldb_wal_corruptions_total",
        "Reads of the log that failed, or whose bytes did not match their checksum."
    );
}

/// Handles of one open log.
#[derive(Debug)]
pub(crate) struct Meters {
    pub(crate) appended_bytes: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) segments_created: Counter,
    pub(crate) segments_removed: Counter,
    pub(crate) sync_duration: Histogram,
    pub(crate) syncs: Counter,
    pub(crate) torn_tails: Counter,
    pub(crate) corruptions: Counter,
}

impl Meters {
    pub(crate) fn register() -> Self {
        Self {
            appended_bytes: counter!("signaldb_wal_appended_bytes_total"),
            written_bytes: counter!("signaldb_wal_written_bytes_total"),
            segments_created: counter!("signaldb_wal_segments_created_total"),
            segments_removed: counter!("signaldb_wal_segments_removed_total"),
            sync_duration: histogram!("signaldb_wal_flush_duration_seconds"),
            syncs: counter!("signaldb_wal_syncs_total"),
            torn_tails: counter!("signaldb_wal_torn_tails_total"),
            corruptions: counter!("signaldb_wal_corruptions_total"),
        }
    }
}

/// Brings the gauges up to date.
pub fn record(wal: &Wal) {
    let stats = wal.stats();
    gauge!("signaldb_wal_bytes").set(stats.bytes as f64);
    gauge!("signaldb_wal_segments").set(stats.segments as f64);
    gauge!("signaldb_wal_unsynced_bytes").set(stats.unsynced_bytes as f64);
    gauge!("signaldb_wal_sync_lag_seconds").set(stats.sync_lag.as_secs_f64());
    gauge!("signaldb_wal_poisoned").set(f64::from(wal.poisoned().is_some()));
}
