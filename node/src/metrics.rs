//! The recorder behind `/metrics`, and what only the assembled node can tell (docs/monitoring.md).

use anyhow::Context;
use metrics::{Unit, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use signaldb_raft::DiskLevel;

use crate::disk::DiskRoom;

/// Installs the recorder of the process and describes what it will hold.
pub(crate) fn install() -> anyhow::Result<PrometheusHandle> {
    let buckets = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &buckets)
        .and_then(PrometheusBuilder::install_recorder)
        .context("install the metrics recorder")?;
    signaldb_wal::metrics::describe();
    signaldb_raft::metrics::describe();
    signaldb_lake::metrics::describe();
    signaldb_query::metrics::describe();
    signaldb_api::metrics::describe();
    describe_gauge!("signaldb_wal_disk_size_bytes", Unit::Bytes, "Size of the file system that holds the log.");
    describe_gauge!("signaldb_wal_disk_free_bytes", Unit::Bytes, "Bytes free there.");
    describe_gauge!("signaldb_wal_disk_reserve_bytes", Unit::Bytes, "Ingest stops when less than this is free there.");
    describe_gauge!(
        "signaldb_wal_disk_level",
        "0: the reserve is free. 1: it is not, no rows are taken. 2: next to nothing is, entries of leaders are refused."
    );
    describe_gauge!(
        "signaldb_wal_ballast_bytes",
        Unit::Bytes,
        "Size of the file that keeps room for votes and purge records; 0 while it is given up."
    );
    Ok(handle)
}

pub(crate) fn record_disk(room: DiskRoom, level: DiskLevel, ballast_bytes: u64) {
    gauge!("signaldb_wal_disk_size_bytes").set(room.size as f64);
    gauge!("signaldb_wal_disk_free_bytes").set(room.free as f64);
    gauge!("signaldb_wal_disk_reserve_bytes").set(room.reserve as f64);
    gauge!("signaldb_wal_disk_level").set(match level {
        DiskLevel::Normal => 0.0,
        DiskLevel::NearlyFull => 1.0,
        DiskLevel::Exhausted => 2.0,
    });
    gauge!("signaldb_wal_ballast_bytes").set(ballast_bytes as f64);
}
