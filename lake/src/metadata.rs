//! The next version of a table's metadata, as bytes: no I/O, no clock, no randomness (DESIGN section 6).
//!
//! One function serves flush, compaction, retention and expiry. It builds on **exactly** the base that it is given;
//! whether that base is still current is decided by the catalog's swap. What a change does not name stays as it is, the
//! flush marks among the properties first of all.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use iceberg::Result;
use iceberg::spec::{
    DataFile, MAIN_BRANCH, Manifest, ManifestFile, Operation, Snapshot, SnapshotSummaryCollector, Summary,
    TableMetadata,
};
use signaldb_signals::schema::Column;

mod expiry;
mod history;
mod manifests;
mod timeless;

pub(crate) use expiry::expired_snapshots;
pub use history::{AsOf, AsOfError, Moment, Neighbours, snapshot_as_of};
pub use manifests::manifests_to_load;

use manifests::Stage;
use timeless::{with_times, without_times};

/// The version to build on.
#[derive(Debug)]
pub struct Base<'a> {
    pub metadata: &'a TableMetadata,
    pub location: &'a str,
    /// The current snapshot's manifests.
    pub manifests: Vec<ManifestFile>,
    /// Contents of those manifests that [`manifests_to_load`] asked for, by path.
    pub loaded: HashMap<String, Manifest>,
}

/// What the commit changes.
#[derive(Debug, Clone, Default)]
pub struct Change {
    pub add: Vec<DataFile>,
    /// Data files that the table no longer has; each must be live in the base. With `add` the rows are the same in
    /// other files (compaction), without it they are gone (retention).
    pub remove: Vec<DataFile>,
    /// Columns that the table has from here on; those that it has already stay as they are.
    pub add_columns: Vec<Column>,
    pub set_properties: HashMap<String, String>,
    /// Goes into the snapshot's summary, for audit.
    pub summary: HashMap<String, String>,
    /// Drops the snapshots that nobody is promised any more.
    pub expire: bool,
    /// Rewrites small manifests into larger ones, once there are many.
    pub merge_manifests: bool,
}

/// Everything random or timed, drawn by the caller.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    pub snapshot_id: i64,
    /// Names the commit's manifests.
    pub commit: uuid::Uuid,
    /// Names the metadata file.
    pub metadata: uuid::Uuid,
    pub now_ms: i64,
}

/// Files to write, in this order, before the swap.
#[derive(Debug)]
pub struct Staged {
    pub files: Vec<(String, Bytes)>,
    pub metadata: TableMetadata,
    pub location: String,
    pub version: i64,
}

/// Builds the version after `base`. A change of files or manifests makes a snapshot, and so does a summary; one of
/// properties, or of what is expired, makes none.
///
/// # Errors
/// [`iceberg::ErrorKind::PreconditionFailed`] when a file to remove is not live in the base;
/// [`iceberg::ErrorKind::FeatureUnsupported`] when files are to be removed from under delete files of somebody else;
/// others when the base's manifests do not fit its metadata. Nothing was written.
pub fn next_metadata(base: Base<'_>, change: Change, seeds: Seeds) -> Result<Staged> {
    let evolved = crate::table::with_columns(base.metadata, &change.add_columns)?;
    let metadata = evolved.as_ref().unwrap_or(base.metadata);
    // Never before the base: readers refuse snapshots that go back in time.
    let now_ms = seeds.now_ms.max(metadata.last_updated_ms());
    let mut stage = Stage::new(metadata, seeds);
    let mut collector = SnapshotSummaryCollector::default();
    let merges = manifests::merges(&base.manifests, &change);
    let (mut manifests, rewritten) =
        stage.rewrite(base.manifests, &base.loaded, &change.remove, merges, &mut collector)?;
    if !change.add.is_empty() {
        manifests.push(stage.append(&change.add, &mut collector)?);
    }
    let expired = if change.expire { expired_snapshots(metadata, now_ms)? } else { Vec::new() };
    let operation = match (change.add.is_empty(), change.remove.is_empty()) {
        (false, true) => Some(Operation::Append),
        (true, false) => Some(Operation::Delete),
        (false, false) => Some(Operation::Replace),
        (true, true) if rewritten => Some(Operation::Replace),
        // What is said for audit has no other place.
        (true, true) => (!change.summary.is_empty()).then_some(Operation::Append),
    };
    let begun = if operation.is_some() { metadata.clone() } else { without_times(metadata)? };
    let mut builder = begun.into_builder(Some(base.location.to_owned())).set_properties(change.set_properties)?;
    if let Some(operation) = &operation {
        let mut summary = change.summary;
        summary.extend(collector.build());
        add_totals(&mut summary, metadata);
        let snapshot = Snapshot::builder()
            .with_snapshot_id(seeds.snapshot_id)
            .with_parent_snapshot_id(metadata.current_snapshot_id())
            .with_sequence_number(metadata.next_sequence_number())
            .with_timestamp_ms(now_ms)
            .with_manifest_list(stage.write_list(manifests)?)
            .with_summary(Summary { operation: operation.clone(), additional_properties: summary })
            .with_schema_id(metadata.current_schema_id())
            .build();
        builder = builder.set_branch_snapshot(snapshot, MAIN_BRANCH)?;
    }
    // References to what goes, go with it; statistics do not by themselves.
    builder = builder.remove_snapshots(&expired);
    for snapshot in &expired {
        builder = builder.remove_statistics(*snapshot).remove_partition_statistics(*snapshot);
    }
    let json = match &operation {
        Some(_) => serde_json::to_vec(&builder.build()?.metadata)?,
        None => with_times(&builder.build()?.metadata, metadata, now_ms)?,
    };
    // What cannot be read back must not be published.
    let next: TableMetadata = serde_json::from_slice(&json)?;
    let version = crate::table::version_of(base.location) + 1;
    let location = format!("{}/metadata/{version:05}-{}.metadata.json", metadata.location(), seeds.metadata);
    let mut files = stage.into_files();
    files.push((location.clone(), json.into()));
    Ok(Staged { files, metadata: next, location, version })
}

/// Adds the running totals that readers expect in a summary.
fn add_totals(summary: &mut HashMap<String, String>, metadata: &TableMetadata) {
    let number = |map: &HashMap<String, String>, key: &str| -> i64 {
        map.get(key).and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let empty = HashMap::new();
    let previous = metadata.current_snapshot().map_or(&empty, |snapshot| &snapshot.summary().additional_properties);
    let totals = [
        ("total-data-files", "added-data-files", "deleted-data-files"),
        ("total-records", "added-records", "deleted-records"),
        ("total-files-size", "added-files-size", "removed-files-size"),
        ("total-delete-files", "", ""),
        ("total-position-deletes", "", ""),
        ("total-equality-deletes", "", ""),
    ];
    for (total, added, removed) in totals {
        let value = number(previous, total) + number(summary, added) - number(summary, removed);
        summary.insert(total.to_owned(), value.max(0).to_string());
    }
}

/// Paths of `files`.
fn paths(files: &[DataFile]) -> HashSet<&str> {
    files.iter().map(DataFile::file_path).collect()
}

#[cfg(test)]
mod tests;
