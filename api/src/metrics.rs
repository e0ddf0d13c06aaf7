//! What the ports tell about themselves (docs/monitoring.md).

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::app::App;
use crate::error::Kind;

/// Outcomes of ingest that rules ask for; others appear when they happen.
const FAILURES: [Kind; 3] = [Kind::Throttled, Kind::Unavailable, Kind::UnknownOutcome];

/// Help texts, for the recorder that is installed; call it once, after that.
pub fn describe() {
    describe_gauge!("signaldb_ready", "1 while the node can acknowledge writes, as /ready says.");
    describe_counter!("signaldb_ingest_requests_total", "Requests with records that could be decoded.");
    describe_counter!("signaldb_ingest_records_total", "Records in them that are sound.");
    describe_counter!(
        "signaldb_ingest_rejected_records_total",
        "Records in them that were rejected for what they are."
    );
    describe_counter!("signaldb_ingest_bytes_total", Unit::Bytes, "Bytes of these requests, decompressed.");
    describe_counter!(
        "signaldb_ingest_failed_requests_total",
        "Requests that were not acknowledged, by the code of the error; those without a valid identity not included."
    );
    describe_gauge!(
        "signaldb_ingest_held_bytes",
        Unit::Bytes,
        "Bytes of requests that are being read or are on their way into the log."
    );
    counter!("signaldb_ingest_requests_total").increment(0);
    counter!("signaldb_ingest_records_total").increment(0);
    counter!("signaldb_ingest_rejected_records_total").increment(0);
    counter!("signaldb_ingest_bytes_total").increment(0);
    for kind in FAILURES {
        counter!("signaldb_ingest_failed_requests_total", "code" => kind.name()).increment(0);
    }
}

pub(crate) fn note_failed_ingest(kind: Kind) {
    counter!("signaldb_ingest_failed_requests_total", "code" => kind.name()).increment(1);
}

/// Brings all gauges of the node up to date.
pub(crate) fn record(app: &App, ready: bool) {
    app.groups.record_metrics();
    app.lake.record_metrics();
    app.engine.record_metrics();
    gauge!("signaldb_ready").set(f64::from(ready));
    gauge!("signaldb_ingest_held_bytes").set(app.intake().bytes() as f64);
}
