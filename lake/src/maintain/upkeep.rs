//! What maintenance does to one table. Each step stands by itself: a crash between any two loses and doubles nothing.

use std::sync::Arc;
use std::time::Duration;

use iceberg::spec::{DataFile, TableMetadata};
use signaldb_model::TableId;
use signaldb_signals::SignalTable;
use tokio_util::sync::CancellationToken;

use crate::commit::{Committed, commit, commit_planned};
use crate::compact::execute::execute;
use crate::compact::plan::{CompactionPolicy, Rewrite, plan};
use crate::error::LakeError;
use crate::lake::Lake;
use crate::metadata::{Change, expired_snapshots};
use crate::orphans::{self, Moment, Seen};
use crate::promote::{Decision, FileSchema, PromoteError, Promotion};
use crate::retention;
use crate::table::version_of;
use crate::{metrics, names};

/// A table that nobody commits to drops its expired snapshots this often.
const EXPIRE_IDLE: Duration = Duration::from_secs(24 * 3600);

/// A rewrite that was committed.
#[derive(Debug)]
pub(crate) struct Compacted {
    /// Where the table is then.
    pub(crate) location: String,
    /// What took the place of the files that were read.
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// One table. Steps that commit return where the table is then, for the readers to be told.
#[derive(Clone, Copy)]
pub(crate) struct Upkeep<'a> {
    pub(crate) lake: &'a Lake,
    pub(crate) id: &'a TableId,
    pub(crate) table: SignalTable,
}

impl Upkeep<'_> {
    /// The table as the catalog has it; `None` when it does not exist.
    pub(crate) async fn current(&self) -> Result<Option<(String, Arc<TableMetadata>)>, LakeError> {
        let location = self.lake.pointers().load(&self.id.namespace(), self.table.name()).await?;
        let Some(location) = location else { return Ok(None) };
        let metadata = self.lake.metadata_at(&location).await?;
        Ok(Some((location, metadata)))
    }

    /// Live files. None of a table with foreign delete files: they say what is in it, and we would not know.
    async fn files(&self) -> Result<Vec<Arc<Vec<DataFile>>>, LakeError> {
        let Some((_, metadata)) = self.current().await? else { return Ok(Vec::new()) };
        match self.lake.data_files(&metadata).await {
            Err(LakeError::ForeignDeletes(_)) => Ok(Vec::new()),
            files => files,
        }
    }

    /// How long its rows are kept; `None` is for ever.
    pub(crate) fn keep(&self) -> Option<Duration> {
        retention::keep(&self.lake.config().retention, self.id, self.table)
    }

    /// Files all of whose rows are too old.
    pub(crate) async fn outdated(&self) -> Result<Vec<DataFile>, LakeError> {
        let Some(keep) = self.keep() else { return Ok(Vec::new()) };
        let files = self.files().await?;
        let live = files.iter().flat_map(|files| files.iter());
        Ok(retention::plan(live, self.table, keep, self.lake.clock().now()))
    }

    /// Removes files all of whose rows are too old.
    pub(crate) async fn retire(&self) -> Result<Option<String>, LakeError> {
        self.remove(self.outdated().await?).await
    }

    /// Removes files that are [`Self::outdated`]; `None` when there are none, or somebody else was faster.
    pub(crate) async fn remove(&self, remove: Vec<DataFile>) -> Result<Option<String>, LakeError> {
        if remove.is_empty() {
            return Ok(None);
        }
        let (count, rows) = (remove.len(), remove.iter().map(DataFile::record_count).sum());
        let change = Change { remove, expire: true, merge_manifests: true, ..Change::default() };
        let committed = commit(self.lake, self.id, self.table, &change, None).await?;
        let Committed::Done { location } = committed else { return Ok(None) };
        metrics::note_retired(count, rows);
        tracing::info!(table = %self.id, files = count, rows, "rows that are too old were removed");
        Ok(Some(location))
    }

    /// What there is to compact, best first.
    pub(crate) async fn rewrites(&self) -> Result<Vec<Rewrite>, LakeError> {
        let policy = CompactionPolicy::from(&self.lake.config().compaction);
        let files = self.files().await?;
        let live = files.iter().flat_map(|files| files.iter());
        Ok(plan(live, &policy, self.lake.clock().now()))
    }

    /// Puts few files in the place of many; `None` when somebody else was faster.
    pub(crate) async fn rewrite(
        &self,
        rewrite: &Rewrite,
        stop: &CancellationToken,
    ) -> Result<Option<Compacted>, LakeError> {
        let Some((_, metadata)) = self.current().await? else { return Ok(None) };
        let target_bytes = self.lake.config().compaction.target_file_bytes;
        let (schema, root) = (FileSchema::of(self.table, &metadata), metadata.location());
        let rewritten = execute(self.lake, schema, root, rewrite, target_bytes, stop).await?;
        let (read, written) = (rewrite.files.len(), rewritten.files.len());
        let written_bytes = rewritten.files.iter().map(DataFile::file_size_in_bytes).sum();
        let change = Change {
            add: rewritten.files,
            remove: rewrite.files.clone(),
            expire: true,
            merge_manifests: true,
            ..Change::default()
        };
        let committed = commit(self.lake, self.id, self.table, &change, Some(rewritten.commit)).await?;
        let Committed::Done { location } = committed else {
            metrics::note_overtaken();
            return Ok(None);
        };
        metrics::note_rewritten(read, written, rewrite.bytes(), written_bytes);
        tracing::debug!(table = %self.id, day = rewrite.day, read, written, "data files were compacted");
        Ok(Some(Compacted { location, files: written, bytes: written_bytes }))
    }

    /// Promotes or demotes an attribute; returns what came of it, and where the table is then.
    ///
    /// # Errors
    /// [`LakeError::Promote`]; nothing was changed then.
    pub(crate) async fn promote(&self, promotion: &Promotion) -> Result<(Decision, String), LakeError> {
        let mut decided = None;
        let plan = |metadata: &TableMetadata| -> Result<Option<Change>, LakeError> {
            let mut decision = promotion.decide(metadata, self.table)?;
            let change = decision.change.take();
            decided = Some(decision);
            Ok(change)
        };
        let committed = commit_planned(self.lake, self.id, self.table, None, plan).await?;
        match (committed, decided) {
            (Committed::Done { location }, Some(decision)) => Ok((decision, location)),
            _ => Err(PromoteError::NoTable(self.id.to_string()).into()),
        }
    }

    /// Drops expired snapshots of a table that has no other commits to do it in.
    pub(crate) async fn expire(&self) -> Result<Option<String>, LakeError> {
        let Some((_, metadata)) = self.current().await? else { return Ok(None) };
        let now_ms = self.lake.clock().now().millis();
        let idle_ms = now_ms.saturating_sub(metadata.last_updated_ms());
        if idle_ms < EXPIRE_IDLE.as_millis() as i64 || expired_snapshots(&metadata, now_ms)?.is_empty() {
            return Ok(None);
        }
        self.commit_expiry().await
    }

    /// Times of the snapshots that the next commit drops, milliseconds.
    pub(crate) async fn expired_ms(&self) -> Result<Vec<i64>, LakeError> {
        let Some((_, metadata)) = self.current().await? else { return Ok(Vec::new()) };
        let expired = expired_snapshots(&metadata, self.lake.clock().now().millis())?;
        Ok(expired.iter().filter_map(|id| Some(metadata.snapshot_by_id(*id)?.timestamp_ms())).collect())
    }

    /// Drops expired snapshots now.
    pub(crate) async fn commit_expiry(&self) -> Result<Option<String>, LakeError> {
        let change = Change { expire: true, ..Change::default() };
        match commit(self.lake, self.id, self.table, &change, None).await? {
            Committed::Done { location } => Ok(Some(location)),
            Committed::Overtaken => Ok(None),
        }
    }

    /// Deletes files that nobody needs any more. The readers must have been told where the table is now.
    pub(crate) async fn collect(&self, seen: &mut Seen) -> Result<Option<String>, LakeError> {
        let begun = self.lake.clock().elapsed();
        let Some((location, metadata)) = self.current().await? else { return Ok(None) };
        let mut reachable = self.lake.reachable(&metadata, &location).await?;
        // A trace index lives as long as any data file of its commit.
        let indexes: Vec<String> = reachable.iter().filter_map(|file| Some(names::trace_index_of(file)?.0)).collect();
        reachable.extend(indexes);
        let listed = self.lake.store().list(metadata.location()).await?;
        let moment = Moment {
            reachable: &reachable,
            version: version_of(&location),
            now_ms: self.lake.clock().now().millis(),
            begun,
            listed: self.lake.clock().elapsed(),
            grace: self.lake.config().retention.grace,
        };
        let plan = orphans::plan(listed, seen, &moment);
        for location in &plan.delete {
            self.lake.store().delete(location).await?;
            metrics::note_orphan_deleted();
        }
        if !plan.delete.is_empty() {
            tracing::info!(table = %self.id, files = plan.delete.len(), "files that nobody needs were deleted");
        }
        match plan.needs_commit {
            true => self.commit_expiry().await,
            false => Ok(None),
        }
    }
}
