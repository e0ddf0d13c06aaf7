//! Tables as catalog and store have them: read, made, and their next versions staged and swapped in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{
    DataFile, FormatVersion, Manifest, ManifestContentType, ManifestFile, ManifestList, Snapshot, TableMetadata,
};
use signaldb_catalog::{CatalogError, Swap, SwapOutcome};
use signaldb_model::mutation::{self, Mutation};
use signaldb_model::{DatasetId, GroupId, TableId, TenantId};
use signaldb_signals::SignalTable;

use super::Lake;
use crate::error::LakeError;
use crate::metadata::{Base, Change, Seeds, Staged, manifests_to_load, next_metadata};
use crate::orphans::COMMIT_WITHIN;
use crate::{names, table};

/// Manifests that are read at the same time.
const READS_AT_ONCE: usize = 8;

impl Lake {
    /// Parsed metadata at `location`, from memory if it was read before: files never change.
    pub async fn metadata_at(&self, location: &str) -> Result<Arc<TableMetadata>, LakeError> {
        if let Some(found) = self.0.metadata.get(location, self.0.clock.elapsed()) {
            return Ok(found);
        }
        let content = self.0.store.read(location).await?;
        let metadata: TableMetadata = serde_json::from_slice(&content).map_err(iceberg::Error::from)?;
        let metadata = Arc::new(metadata);
        self.remember(location, Arc::clone(&metadata));
        Ok(metadata)
    }

    /// Where a table's metadata is now and what it says, by one read of the catalog; `None` when there is no such table.
    ///
    /// # Errors
    /// When catalog or store do not answer.
    pub async fn current_table(
        &self,
        namespace: &str,
        table: &str,
    ) -> Result<Option<(String, Arc<TableMetadata>)>, LakeError> {
        let Some(location) = self.0.pointers.load(namespace, table).await? else { return Ok(None) };
        let metadata = self.metadata_at(&location).await?;
        Ok(Some((location, metadata)))
    }

    pub(crate) async fn manifests(&self, metadata: &TableMetadata) -> Result<Vec<ManifestFile>, LakeError> {
        match metadata.current_snapshot() {
            Some(snapshot) => self.manifests_of(snapshot).await,
            None => Ok(Vec::new()),
        }
    }

    async fn manifests_of(&self, snapshot: &Snapshot) -> Result<Vec<ManifestFile>, LakeError> {
        let list = self.0.store.read(snapshot.manifest_list()).await?;
        Ok(ManifestList::parse_with_version(&list, FormatVersion::V2)?.entries().to_vec())
    }

    /// The same for queries, from memory if it was read before.
    async fn known_manifests_of(&self, snapshot: &Snapshot) -> Result<Arc<Vec<ManifestFile>>, LakeError> {
        let location = snapshot.manifest_list();
        if let Some(found) = self.0.manifest_lists.get(location, self.0.clock.elapsed()) {
            return Ok(found);
        }
        let manifests = Arc::new(self.manifests_of(snapshot).await?);
        self.0.manifest_lists.insert(location, Arc::clone(&manifests), self.0.clock.elapsed());
        Ok(manifests)
    }

    /// The version of the table after the one at `location`: every file that must be written before the swap.
    ///
    /// # Errors
    /// As [`next_metadata`], or when the store cannot be read.
    pub(crate) async fn stage(
        &self,
        metadata: &TableMetadata,
        location: &str,
        change: Change,
    ) -> Result<Staged, LakeError> {
        self.restage(metadata, location, change, &mut HashMap::new()).await
    }

    /// The same for a commit that may be tried again: what it read for one base serves for the next, for manifests never
    /// change.
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub(crate) async fn restage(
        &self,
        metadata: &TableMetadata,
        location: &str,
        change: Change,
        read: &mut HashMap<String, Manifest>,
    ) -> Result<Staged, LakeError> {
        let manifests = self.manifests(metadata).await?;
        let mut wanted: Vec<String> =
            manifests_to_load(&manifests, &change).iter().map(|manifest| manifest.manifest_path.clone()).collect();
        wanted.retain(|path| !read.contains_key(path));
        let loaded = stream::iter(wanted).map(|path| async move {
            let content = self.0.store.read(&path).await?;
            Ok::<_, LakeError>((path, Manifest::parse_avro(&content)?))
        });
        read.extend(loaded.buffer_unordered(READS_AT_ONCE).try_collect::<Vec<_>>().await?);
        // The entries themselves are shared.
        let loaded = read.clone();
        let seeds = Seeds {
            snapshot_id: (uuid::Uuid::new_v4().as_u128() as i64) & i64::MAX,
            commit: uuid::Uuid::new_v4(),
            metadata: uuid::Uuid::new_v4(),
            now_ms: self.0.clock.now().millis(),
        };
        Ok(next_metadata(Base { metadata, location, manifests, loaded }, change, seeds)?)
    }

    /// Every file that this version of a table needs: its own, those of its log, and all that its snapshots reach.
    ///
    /// # Errors
    /// When one of them cannot be read: nobody can say then what is needed.
    pub(crate) async fn reachable(
        &self,
        metadata: &TableMetadata,
        location: &str,
    ) -> Result<HashSet<String>, LakeError> {
        let lists: Vec<String> = metadata.snapshots().map(|snapshot| snapshot.manifest_list().to_owned()).collect();
        let mut files: HashSet<String> = lists.iter().cloned().collect();
        files.insert(location.to_owned());
        files.extend(metadata.metadata_log().iter().map(|version| version.metadata_file.clone()));
        let manifests = stream::iter(lists).map(|path| async move {
            let content = self.0.store.read(&path).await?;
            let list = ManifestList::parse_with_version(&content, FormatVersion::V2)?;
            Ok::<_, LakeError>(list.entries().iter().map(|entry| entry.manifest_path.clone()).collect::<Vec<_>>())
        });
        let manifests: Vec<Vec<String>> = manifests.buffer_unordered(READS_AT_ONCE).try_collect().await?;
        let manifests: HashSet<String> = manifests.into_iter().flatten().collect();
        let data = stream::iter(manifests.iter().cloned().collect::<Vec<_>>()).map(|path| async move {
            // Not by way of the cache: most of these are old.
            let manifest = Manifest::parse_avro(&self.0.store.read(&path).await?)?;
            let alive = manifest.entries().iter().filter(|entry| entry.is_alive());
            Ok::<_, LakeError>(alive.map(|entry| entry.file_path().to_owned()).collect::<Vec<_>>())
        });
        let data: Vec<Vec<String>> = data.buffer_unordered(READS_AT_ONCE).try_collect().await?;
        files.extend(manifests);
        files.extend(data.into_iter().flatten());
        Ok(files)
    }

    /// Names the data files of a commit that begins now.
    pub(crate) fn new_commit(&self) -> uuid::Uuid {
        let now = self.0.clock.now().0;
        let (seconds, nanos) = (now / 1_000_000_000, (now % 1_000_000_000) as u32);
        uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos))
    }

    /// Whether data files of this commit may still be committed: later somebody may take them for orphans.
    pub(crate) fn may_commit(&self, commit: uuid::Uuid) -> bool {
        let within = i64::try_from(COMMIT_WITHIN.as_millis()).unwrap_or(i64::MAX);
        let age = names::commit_ms(commit).map(|begun| self.0.clock.now().millis().saturating_sub(begun));
        age.is_some_and(|age| age <= within)
    }

    /// The live data files of a table version. Manifests never change: each is read once.
    ///
    /// # Errors
    /// [`LakeError::ForeignDeletes`] when somebody else deleted rows: counting them would be a lie.
    pub async fn data_files(&self, metadata: &TableMetadata) -> Result<Vec<Arc<Vec<DataFile>>>, LakeError> {
        match metadata.current_snapshot() {
            Some(snapshot) => self.snapshot_files(metadata, snapshot).await,
            None => Ok(Vec::new()),
        }
    }

    /// The same of one snapshot of the table.
    ///
    /// # Errors
    /// As for [`Self::data_files`].
    pub async fn snapshot_files(
        &self,
        metadata: &TableMetadata,
        snapshot: &Snapshot,
    ) -> Result<Vec<Arc<Vec<DataFile>>>, LakeError> {
        let mut out = Vec::new();
        for manifest in self.known_manifests_of(snapshot).await?.iter() {
            if manifest.content == ManifestContentType::Deletes {
                return Err(LakeError::ForeignDeletes(metadata.location().to_owned()));
            }
            out.push(self.manifest_files(&manifest.manifest_path).await?);
        }
        Ok(out)
    }

    async fn manifest_files(&self, path: &str) -> Result<Arc<Vec<DataFile>>, LakeError> {
        if let Some(found) = self.0.manifests.get(path, self.0.clock.elapsed()) {
            return Ok(found);
        }
        let content = self.0.store.read(path).await?;
        let manifest = Manifest::parse_avro(&content)?;
        let alive = manifest.entries().iter().filter(|entry| entry.is_alive());
        let files = Arc::new(alive.map(|entry| entry.data_file().clone()).collect::<Vec<_>>());
        self.0.manifests.insert(path, Arc::clone(&files), self.0.clock.elapsed());
        Ok(files)
    }

    /// Last log index of `group` whose rows are in this version of the table.
    ///
    /// # Errors
    /// [`LakeError::ForeignMark`] when another cluster flushed here.
    pub fn flushed_index(
        &self,
        metadata: &TableMetadata,
        cluster_id: &str,
        group: GroupId,
        table: &TableId,
    ) -> Result<u64, LakeError> {
        crate::flush::flushed_index(metadata, cluster_id, group, table)
    }

    pub(crate) fn remember(&self, location: &str, metadata: Arc<TableMetadata>) {
        self.0.metadata.insert(location, metadata, self.0.clock.elapsed());
    }

    /// Makes the dataset's tables exist, empty.
    ///
    /// # Errors
    /// When catalog or store are down; rows are accepted all the same and the flush creates what it needs.
    pub async fn ensure_tables(
        &self,
        tenant: &TenantId,
        dataset: &DatasetId,
        tables: impl IntoIterator<Item = SignalTable>,
    ) -> Result<(), LakeError> {
        for table in tables {
            let id = TableId { tenant: tenant.clone(), dataset: dataset.clone(), code: table.code() };
            self.ensure_table(&id, table).await?;
        }
        Ok(())
    }

    /// Location of the table's current metadata, as the catalog says; `None` while there is no table.
    ///
    /// # Errors
    /// When the catalog does not answer.
    pub async fn location(&self, id: &TableId, table: SignalTable) -> Result<Option<String>, LakeError> {
        Ok(self.0.pointers.load(&id.namespace(), table.name()).await?)
    }

    /// Location of the table's current metadata, as the catalog says; creates the table if there is none.
    pub(crate) async fn ensure_table(&self, id: &TableId, table: SignalTable) -> Result<String, LakeError> {
        let (namespace, name) = (id.namespace(), table.name());
        if let Some(location) = self.location(id, table).await? {
            return Ok(location);
        }
        let root = table::table_location(self.0.store.root(), id, table);
        let now_ms = self.0.clock.now().millis();
        let metadata = table::new_table(table, &root, uuid::Uuid::new_v4(), now_ms)?;
        let location = format!("{root}/metadata/00000-{}.metadata.json", uuid::Uuid::new_v4());
        let content = serde_json::to_vec(&metadata).map_err(iceberg::Error::from)?;
        self.0.store.write(&location, content.into()).await?;
        match self.0.pointers.create(&namespace, name, &location).await {
            Err(CatalogError::Unknown(_)) => {
                let found = self.0.pointers.load(&namespace, name).await?;
                found.ok_or(LakeError::Stopped("the table was not created"))
            }
            outcome => Ok(outcome?),
        }
    }

    /// Moves tables in the catalog, and counts it.
    ///
    /// # Errors
    /// As [`crate::pointers::TablePointers::swap`].
    pub(crate) async fn swap(&self, swaps: &[Swap]) -> Result<SwapOutcome, CatalogError> {
        let (begun, _call) = (self.0.clock.elapsed(), self.call());
        let outcome = self.0.pointers.swap(swaps).await;
        crate::metrics::note_transaction(&outcome, self.0.clock.elapsed().saturating_sub(begun));
        match outcome {
            Err(CatalogError::Unknown(_)) if mutation::active(Mutation::CommitErrorIsSuccess) => Ok(SwapOutcome::Moved),
            outcome => outcome,
        }
    }
}
