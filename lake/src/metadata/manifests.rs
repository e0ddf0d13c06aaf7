//! Manifests and manifest lists, written into memory under the names that they will have.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use iceberg::io::{MemoryStorage, OutputFile, Storage};
use iceberg::spec::{
    DataFile, Manifest, ManifestContentType, ManifestFile, ManifestListWriter, ManifestWriter, ManifestWriterBuilder,
    PartitionSpecRef, SnapshotSummaryCollector, TableMetadata,
};
use iceberg::{Error, ErrorKind, Result};

use super::{Change, Seeds, paths};
use crate::table::day_of;

/// Manifests smaller than this are merged once there are [`SMALL_MANIFESTS_MAX`] of them.
const SMALL_MANIFEST_BYTES: i64 = 1 << 20;
pub(super) const SMALL_MANIFESTS_MAX: usize = 50;
/// A rewritten manifest is closed when its parts together reach this.
const MANIFEST_BYTES: i64 = 8 << 20;

/// Manifests whose contents [`super::next_metadata`] needs for `change`: those that may hold a file to remove, by its
/// day, and the small ones once there are enough to merge.
pub fn manifests_to_load<'a>(manifests: &'a [ManifestFile], change: &Change) -> Vec<&'a ManifestFile> {
    let merges = merges(manifests, change);
    let days: BTreeSet<Option<i32>> = change.remove.iter().map(day_of).collect();
    let wanted = |manifest: &&ManifestFile| {
        is_data(manifest) && is_alive(manifest) && (merges && is_small(manifest) || may_hold(manifest, &days))
    };
    manifests.iter().filter(wanted).collect()
}

/// Whether the commit merges small manifests.
pub(super) fn merges(manifests: &[ManifestFile], change: &Change) -> bool {
    let small = |manifest: &&ManifestFile| is_data(manifest) && is_alive(manifest) && is_small(manifest);
    change.merge_manifests && manifests.iter().filter(small).count() >= SMALL_MANIFESTS_MAX
}

fn is_data(manifest: &ManifestFile) -> bool {
    manifest.content == ManifestContentType::Data
}

fn is_small(manifest: &ManifestFile) -> bool {
    manifest.manifest_length < SMALL_MANIFEST_BYTES
}

/// A manifest of deleted entries only matters to the snapshot that deleted them.
fn is_alive(manifest: &ManifestFile) -> bool {
    manifest.has_added_files() || manifest.has_existing_files()
}

/// Whether the manifest may hold files of one of `days`. Partitioning that is not ours may hold anything.
fn may_hold(manifest: &ManifestFile, days: &BTreeSet<Option<i32>>) -> bool {
    let bound = |bytes: Option<&[u8]>| Some(i32::from_le_bytes(<[u8; 4]>::try_from(bytes?).ok()?));
    let range = manifest.partitions.as_deref().and_then(<[_]>::first).and_then(|summary| {
        let lower = bound(summary.lower_bound.as_ref().map(|bytes| bytes.as_slice()))?;
        Some((lower, bound(summary.upper_bound.as_ref().map(|bytes| bytes.as_slice()))?))
    });
    match range {
        Some((lower, upper)) if manifest.partition_spec_id == 0 && !days.contains(&None) => {
            lower <= upper && days.range(Some(lower)..=Some(upper)).next().is_some()
        }
        _ => !days.is_empty(),
    }
}

/// A live entry on its way from one manifest to another; its numbers stay what they were.
struct Carried<'a> {
    spec_id: i32,
    sequence: i64,
    file_sequence: i64,
    snapshot: i64,
    file: &'a DataFile,
    /// About what it takes in a manifest.
    bytes: i64,
}

/// Writes manifests into memory.
pub(super) struct Stage<'a> {
    metadata: &'a TableMetadata,
    seeds: Seeds,
    storage: Arc<dyn Storage>,
    files: Vec<(String, Bytes)>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(metadata: &'a TableMetadata, seeds: Seeds) -> Self {
        Self { metadata, seeds, storage: Arc::new(MemoryStorage::new()), files: Vec::new() }
    }

    /// What was written, in order.
    pub(super) fn into_files(self) -> Vec<(String, Bytes)> {
        self.files
    }

    /// Manifests of the next snapshot before anything is added, and whether any is new: those that hold a file to remove
    /// are written anew, and with `merge` the small ones; the others are carried over as they are.
    pub(super) fn rewrite(
        &mut self,
        manifests: Vec<ManifestFile>,
        loaded: &HashMap<String, Manifest>,
        remove: &[DataFile],
        merge: bool,
        summary: &mut SnapshotSummaryCollector,
    ) -> Result<(Vec<ManifestFile>, bool)> {
        if !remove.is_empty() && manifests.iter().any(|manifest| !is_data(manifest)) {
            let message = "files cannot be removed from under delete files of another writer";
            return Err(Error::new(ErrorKind::FeatureUnsupported, message));
        }
        let remove = paths(remove);
        let (mut kept, mut existing, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
        let mut found: HashSet<&str> = HashSet::new();
        for manifest in manifests.into_iter().filter(is_alive) {
            let content = loaded.get(&manifest.manifest_path).filter(|_| is_data(&manifest));
            let content = content.filter(|content| merge && is_small(&manifest) || holds(content, &remove));
            let Some(content) = content else {
                kept.push(manifest);
                continue;
            };
            for carried in carry(&manifest, content) {
                if remove.contains(carried.file.file_path()) {
                    found.insert(carried.file.file_path());
                    deleted.push(carried);
                } else {
                    existing.push(carried);
                }
            }
        }
        if let Some(missing) = remove.iter().find(|path| !found.contains(*path)) {
            let message = format!("{missing} is not in the table any more");
            return Err(Error::new(ErrorKind::PreconditionFailed, message));
        }
        let rewritten = !existing.is_empty() || !deleted.is_empty();
        // By day, so that a scan of some days reads few manifests.
        existing.sort_by_key(|entry| (entry.spec_id, day_of(entry.file), entry.sequence));
        for part in parts(&existing) {
            kept.push(self.write(part, |writer, entry| {
                let (sequence, file_sequence) = (entry.sequence, Some(entry.file_sequence));
                writer.add_existing_file(entry.file.clone(), entry.snapshot, sequence, file_sequence)
            })?);
        }
        // In manifests of their own: the next commit leaves those out.
        deleted.sort_by_key(|entry| entry.spec_id);
        for part in parts(&deleted) {
            kept.push(self.write(part, |writer, entry| {
                writer.add_delete_file(entry.file.clone(), entry.sequence, Some(entry.file_sequence))
            })?);
            let spec = self.spec(part.first().map_or(0, |first| first.spec_id))?;
            for entry in part {
                summary.remove_file(entry.file, Arc::clone(self.metadata.current_schema()), Arc::clone(&spec));
            }
        }
        Ok((kept, rewritten))
    }

    /// A manifest of new files. Their sequence numbers are inherited from the manifest list, as the specification wants.
    pub(super) fn append(
        &mut self,
        files: &[DataFile],
        summary: &mut SnapshotSummaryCollector,
    ) -> Result<ManifestFile> {
        let spec = Arc::clone(self.metadata.default_partition_spec());
        let (path, mut writer) = self.manifest_writer(&spec);
        for file in files {
            summary.add_file(file, Arc::clone(self.metadata.current_schema()), Arc::clone(&spec));
            writer.add_file(file.clone(), -1)?;
        }
        self.finish(path, writer)
    }

    pub(super) fn write_list(&mut self, manifests: Vec<ManifestFile>) -> Result<String> {
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

    /// One manifest of `entries`, which share a partition spec.
    fn write(
        &mut self,
        entries: &[Carried<'_>],
        add: impl Fn(&mut ManifestWriter, &Carried<'_>) -> Result<()>,
    ) -> Result<ManifestFile> {
        let spec = self.spec(entries.first().map_or(0, |first| first.spec_id))?;
        let (path, mut writer) = self.manifest_writer(&spec);
        for entry in entries {
            add(&mut writer, entry)?;
        }
        self.finish(path, writer)
    }

    fn spec(&self, id: i32) -> Result<PartitionSpecRef> {
        let spec = self.metadata.partition_spec_by_id(id).cloned();
        spec.ok_or_else(|| Error::new(ErrorKind::DataInvalid, "manifest of an unknown partition spec"))
    }

    fn manifest_writer(&self, spec: &PartitionSpecRef) -> (String, ManifestWriter) {
        let path = format!("{}/metadata/{}-m{}.avro", self.metadata.location(), self.seeds.commit, self.files.len());
        let output = OutputFile::new(Arc::clone(&self.storage), path.clone());
        let schema = Arc::clone(self.metadata.current_schema());
        let builder = ManifestWriterBuilder::new(output, Some(self.seeds.snapshot_id), schema, spec.as_ref().clone());
        (path, builder.build_v2_data())
    }

    fn finish(&mut self, path: String, writer: ManifestWriter) -> Result<ManifestFile> {
        let manifest = ready(writer.write_manifest_file())?;
        let content = ready(self.storage.read(&path))?;
        self.files.push((path, content));
        Ok(manifest)
    }
}

fn holds(manifest: &Manifest, paths: &HashSet<&str>) -> bool {
    !paths.is_empty() && manifest.entries().iter().any(|entry| entry.is_alive() && paths.contains(entry.file_path()))
}

/// The live entries of a manifest. As parsed, they do not inherit their numbers from the manifest list.
fn carry<'a>(manifest: &ManifestFile, content: &'a Manifest) -> Vec<Carried<'a>> {
    let bytes = manifest.manifest_length / i64::try_from(content.entries().len().max(1)).unwrap_or(i64::MAX);
    let alive = content.entries().iter().filter(|entry| entry.is_alive());
    let carried = alive.map(|entry| Carried {
        spec_id: manifest.partition_spec_id,
        sequence: entry.sequence_number().unwrap_or(manifest.sequence_number),
        file_sequence: entry.file_sequence_number.unwrap_or(manifest.sequence_number),
        snapshot: entry.snapshot_id().unwrap_or(manifest.added_snapshot_id),
        file: entry.data_file(),
        bytes,
    });
    carried.collect()
}

/// Runs of entries of one partition spec that make a manifest of at most about [`MANIFEST_BYTES`].
fn parts<'a, 'b>(entries: &'b [Carried<'a>]) -> Vec<&'b [Carried<'a>]> {
    let mut parts = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if at > begin && (entry.spec_id != entries[begin].spec_id || bytes + entry.bytes > MANIFEST_BYTES) {
            parts.push(&entries[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += entry.bytes;
    }
    if begin < entries.len() {
        parts.push(&entries[begin..]);
    }
    parts
}

/// Memory storage is always ready; this keeps the functions synchronous.
fn ready<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let pending = || Err(Error::new(ErrorKind::Unexpected, "memory storage was not ready"));
    future.now_or_never().unwrap_or_else(pending)
}
