//! Commits without a snapshot. The crate's builder stamps them with the machine's clock and refuses a table that is ahead of
//! it; versions are stamped by what the caller says instead.

use iceberg::Result;
use iceberg::spec::TableMetadata;
use serde_json::Value;

/// The same metadata, with every time that the builder compares with its clock at zero.
pub(super) fn without_times(metadata: &TableMetadata) -> Result<TableMetadata> {
    let mut json = serde_json::to_value(metadata)?;
    json["last-updated-ms"] = 0.into();
    for log in ["snapshot-log", "metadata-log"] {
        for entry in json[log].as_array_mut().into_iter().flatten() {
            entry["timestamp-ms"] = 0.into();
        }
    }
    Ok(serde_json::from_value(json)?)
}

/// What was built on [`without_times`], as JSON, with the times of `base` put back and `now_ms` as its own.
pub(super) fn with_times(built: &TableMetadata, base: &TableMetadata, now_ms: i64) -> Result<Vec<u8>> {
    let mut json = serde_json::to_value(built)?;
    json["last-updated-ms"] = now_ms.into();
    // Of this log only the beginning can go.
    let snapshots = base.history().iter().rev().map(|entry| entry.timestamp_ms());
    restore(&mut json["snapshot-log"], snapshots);
    // This one has the base itself at its end, and may have lost its beginning.
    let versions = base.metadata_log().iter().rev().map(|entry| entry.timestamp_ms);
    restore(&mut json["metadata-log"], std::iter::once(base.last_updated_ms()).chain(versions));
    Ok(serde_json::to_vec(&json)?)
}

/// Writes `times` into the entries, both from the last one on.
fn restore(log: &mut Value, times: impl Iterator<Item = i64>) {
    for (entry, time) in log.as_array_mut().into_iter().flatten().rev().zip(times) {
        entry["timestamp-ms"] = time.into();
    }
}
