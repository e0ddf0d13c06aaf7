//! The next version of a table's metadata, as bytes: no I/O, no clock, no randomness (DESIGN section 6).
//!
//! One function serves flush, and later compaction, retention and expiry. It builds on **exactly** the base that it is
//! given; whether that base is still current is decided by the catalog's swap.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use iceberg::io::{MemoryStorage, OutputFile, Storage};
use iceberg::spec::{
    DataFile, MAIN_BRANCH, Manifest, ManifestFile, ManifestListWriter, ManifestWriter, ManifestWriterBuilder,
    Operation, PartitionSpec, Snapshot, SnapshotSummaryCollector, Summary, TableMetadata,
};
use iceberg::{Error, ErrorKind, Result};

mod history;

pub use history::{AsOf, AsOfError, Moment, Neighbours, snapshot_as_of};

/// Manifests smaller than this are merged once there are [`SMALL_MANIFESTS_MAX`] of them.
const SMALL_MANIFEST_BYTES: i64 = 1 << 20;
const SMALL_MANIFESTS_MAX: usize = 50;
/// A merged manifest is closed when its parts together reach this.
const MERGED_MANIFEST_BYTES: i64 = 8 << 20;
/// All snapshots of the last hour are kept, then one an hour for a week, and never more than this many.
const SNAPSHOTS_MAX: usize = 500;
const KEEP_ALL_MS: i64 = 3_600_000;
const KEEP_HOURLY_MS: i64 = 7 * 24 * KEEP_ALL_MS;

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
#[derive(Debug, Default)]
pub struct Change {
    pub add: Vec<DataFile>,
    pub set_properties: HashMap<String, String>,
    /// Goes into the snapshot's summary, for audit.
    pub summary: HashMap<String, String>,
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

/// Manifests whose contents [`next_metadata`] needs: the small ones, once there are enough to merge.
pub fn manifests_to_load(manifests: &[ManifestFile]) -> Vec<&ManifestFile> {
    let small: Vec<&ManifestFile> =
        manifests.iter().filter(|manifest| manifest.manifest_length < SMALL_MANIFEST_BYTES).collect();
    if small.len() >= SMALL_MANIFESTS_MAX { small } else { Vec::new() }
}

/// Builds the version after `base`: one snapshot that appends files, sets properties, merges small manifests and
/// drops expired snapshots.
///
/// # Errors
/// When the base's manifests do not fit its metadata. Nothing was written.
pub fn next_metadata(base: Base<'_>, change: Change, seeds: Seeds) -> Result<Staged> {
    let metadata = base.metadata;
    let mut stage = Stage::new(metadata, seeds);
    let mut manifests = stage.merge_small(base.manifests, &base.loaded)?;
    let mut collector = SnapshotSummaryCollector::default();
    if !change.add.is_empty() {
        manifests.push(stage.append(&change.add, &mut collector)?);
    }
    let list = stage.write_list(manifests)?;
    let mut summary = change.summary;
    summary.extend(collector.build());
    add_totals(&mut summary, metadata);
    let now_ms = seeds.now_ms.max(metadata.last_updated_ms());
    let snapshot = Snapshot::builder()
        .with_snapshot_id(seeds.snapshot_id)
        .with_parent_snapshot_id(metadata.current_snapshot_id())
        .with_sequence_number(metadata.next_sequence_number())
        // Never before the base: readers refuse snapshots that go back in time.
        .with_timestamp_ms(now_ms)
        .with_manifest_list(list)
        .with_summary(Summary { operation: Operation::Append, additional_properties: summary })
        .with_schema_id(metadata.current_schema_id())
        .build();
    let expired = expired_snapshots(metadata, now_ms);
    let next = metadata
        .clone()
        .into_builder(Some(base.location.to_owned()))
        .set_properties(change.set_properties)?
        .set_branch_snapshot(snapshot, MAIN_BRANCH)?
        .remove_snapshots(&expired)
        .build()?
        .metadata;
    let version = crate::table::version_of(base.location) + 1;
    let location = format!("{}/metadata/{version:05}-{}.metadata.json", metadata.location(), seeds.metadata);
    let json = serde_json::to_vec(&next)?;
    // What cannot be read back must not be published.
    let next: TableMetadata = serde_json::from_slice(&json)?;
    stage.files.push((location.clone(), json.into()));
    Ok(Staged { files: stage.files, metadata: next, location, version })
}

/// Snapshots that the retention of DESIGN section 6 drops, the current one never.
fn expired_snapshots(metadata: &TableMetadata, now_ms: i64) -> Vec<i64> {
    let mut newest_first: Vec<_> = metadata.snapshots().collect();
    newest_first.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.sequence_number()));
    let mut kept = 1;
    let mut hours = HashSet::new();
    let keep = |id: i64, at: i64, kept: usize, hours: &mut HashSet<i64>| {
        let age = now_ms - at;
        let wanted = age <= KEEP_ALL_MS || (age <= KEEP_HOURLY_MS && hours.insert(at / KEEP_ALL_MS));
        metadata.current_snapshot_id() == Some(id) || (wanted && kept < SNAPSHOTS_MAX)
    };
    let mut expired = Vec::new();
    for snapshot in newest_first {
        if keep(snapshot.snapshot_id(), snapshot.timestamp_ms(), kept, &mut hours) {
            kept += 1;
        } else {
            expired.push(snapshot.snapshot_id());
        }
    }
    expired
}

/// Adds the running totals that readers expect in a summary.
fn add_totals(summary: &mut HashMap<String, String>, metadata: &TableMetadata) {
    let number = |map: &HashMap<String, String>, key: &str| -> i64 {
        map.get(key).and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let empty = HashMap::new();
    let previous = metadata.current_snapshot().map_or(&empty, |snapshot| &snapshot.summary().additional_properties);
    let totals = [
        ("total-data-files", "added-data-files"),
        ("total-records", "added-records"),
        ("total-files-size", "added-files-size"),
        ("total-delete-files", ""),
        ("total-position-deletes", ""),
        ("total-equality-deletes", ""),
    ];
    for (total, added) in totals {
        let value = number(previous, total) + number(summary, added);
        summary.insert(total.to_owned(), value.to_string());
    }
}

/// Writes manifests into memory under the names that they will have.
struct Stage<'a> {
    metadata: &'a TableMetadata,
    seeds: Seeds,
    storage: Arc<dyn Storage>,
    files: Vec<(String, Bytes)>,
}

impl<'a> Stage<'a> {
    fn new(metadata: &'a TableMetadata, seeds: Seeds) -> Self {
        Self { metadata, seeds, storage: Arc::new(MemoryStorage::new()), files: Vec::new() }
    }

    fn manifest_writer(&self, spec: &PartitionSpec) -> (String, ManifestWriter) {
        let path = format!("{}/metadata/{}-m{}.avro", self.metadata.location(), self.seeds.commit, self.files.len());
        let output = OutputFile::new(Arc::clone(&self.storage), path.clone());
        let schema = Arc::clone(self.metadata.current_schema());
        let builder = ManifestWriterBuilder::new(output, Some(self.seeds.snapshot_id), schema, spec.clone());
        (path, builder.build_v2_data())
    }

    fn finish(&mut self, path: String, writer: ManifestWriter) -> Result<ManifestFile> {
        let manifest = ready(writer.write_manifest_file())?;
        let content = ready(self.storage.read(&path))?;
        self.files.push((path, content));
        Ok(manifest)
    }

    fn append(&mut self, files: &[DataFile], summary: &mut SnapshotSummaryCollector) -> Result<ManifestFile> {
        let spec = Arc::clone(self.metadata.default_partition_spec());
        let (path, mut writer) = self.manifest_writer(&spec);
        for file in files {
            summary.add_file(file, Arc::clone(self.metadata.current_schema()), Arc::clone(&spec));
            // -1: the sequence number is inherited from the manifest list, as the specification wants.
            writer.add_file(file.clone(), -1)?;
        }
        self.finish(path, writer)
    }

    /// Rewrites small manifests into larger ones; the others are carried over as they are.
    fn merge_small(
        &mut self,
        manifests: Vec<ManifestFile>,
        loaded: &HashMap<String, Manifest>,
    ) -> Result<Vec<ManifestFile>> {
        let (small, mut kept): (Vec<_>, Vec<_>) =
            manifests.into_iter().filter(alive).partition(|manifest| loaded.contains_key(&manifest.manifest_path));
        let mut group: Vec<ManifestFile> = Vec::new();
        let mut bytes = 0;
        for manifest in small {
            let other_spec = group.first().is_some_and(|first| first.partition_spec_id != manifest.partition_spec_id);
            if other_spec || bytes + manifest.manifest_length > MERGED_MANIFEST_BYTES {
                kept.extend(self.merge(&std::mem::take(&mut group), loaded)?);
                bytes = 0;
            }
            bytes += manifest.manifest_length;
            group.push(manifest);
        }
        kept.extend(self.merge(&group, loaded)?);
        Ok(kept)
    }

    fn merge(&mut self, group: &[ManifestFile], loaded: &HashMap<String, Manifest>) -> Result<Option<ManifestFile>> {
        let Some(first) = group.first() else { return Ok(None) };
        let spec = self.metadata.partition_spec_by_id(first.partition_spec_id);
        let spec = spec.ok_or_else(|| Error::new(ErrorKind::DataInvalid, "manifest of an unknown partition spec"))?;
        let (path, mut writer) = self.manifest_writer(&Arc::clone(spec));
        for manifest in group {
            let entries = loaded.get(&manifest.manifest_path).map(Manifest::entries).unwrap_or_default();
            for entry in entries.iter().filter(|entry| entry.is_alive()) {
                // Manifests as parsed do not inherit these from the manifest list.
                let sequence = entry.sequence_number().unwrap_or(manifest.sequence_number);
                let file_sequence = entry.file_sequence_number.unwrap_or(manifest.sequence_number);
                let snapshot = entry.snapshot_id().unwrap_or(manifest.added_snapshot_id);
                writer.add_existing_file(entry.data_file().clone(), snapshot, sequence, Some(file_sequence))?;
            }
        }
        self.finish(path, writer).map(Some)
    }

    fn write_list(&mut self, manifests: Vec<ManifestFile>) -> Result<String> {
        let Seeds { snapshot_id, commit, .. } = self.seeds;
        let path = format!("{}/metadata/snap-{snapshot_id}-0-{commit}.avro", self.metadata.location());
        let output = OutputFile::new(Arc::clone(&self.storage), path.clone());
        let sequence = self.metadata.next_sequence_number();
        let parent = self.metadata.current_snapshot_id();
        let mut writer = ManifestListWriter::v2(ready(output.writer())?, snapshot_id, parent, sequence);
        writer.add_manifests(manifests.into_iter())?;
        ready(writer.close())?;
        let content = ready(self.storage.read(&path))?;
        self.files.push((path.clone(), content));
        Ok(path)
    }
}

/// A manifest of deleted entries only matters to the snapshot that deleted them.
fn alive(manifest: &ManifestFile) -> bool {
    manifest.has_added_files() || manifest.has_existing_files()
}

/// Memory storage is always ready; this keeps the function synchronous.
fn ready<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let pending = || Err(Error::new(ErrorKind::Unexpected, "memory storage was not ready"));
    future.now_or_never().unwrap_or_else(pending)
}

#[cfg(test)]
mod tests;
