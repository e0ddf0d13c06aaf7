//! The recorder behind `/metrics`, and what only the assembled node can tell (docs/monitoring.md).

use anyhow::Context;
use metrics::{Unit, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::data_dir::DiskRoom;

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
    Ok(handle)
}

pub(crate) fn record_disk(room: DiskRoom) {
    gauge!("signaldb_wal_disk_size_bytes").set(room.size as f64);
    gauge!("signaldb_wal_disk_free_bytes").set(room.free as f64);
    gauge!("signaldb_wal_disk_reserve_bytes").set(room.reserve as f64);
}
