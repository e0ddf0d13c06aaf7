//! What an operator sees of the tables: how large they are, how many files, and what the planner makes of these.

use std::sync::Arc;

use iceberg::spec::DataFile;
use serde::Serialize;
use signaldb_model::{DatasetId, TableId, TenantId, UnixNanos};
use signaldb_signals::SignalTable;
use signaldb_signals::copies::CopiedAttribute;
use signaldb_signals::schema::Column;

use crate::compact::plan::{self, CompactionPolicy};
use crate::datafile::{is_filled, is_whole};
use crate::error::LakeError;
use crate::flush::{chain, table_id};
use crate::lake::Lake;
use crate::names;
use crate::promote::{Entry, PromotedSet};
use crate::table::{SORT_ORDER_ID, day_of, version_of};

/// Tables of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFilter {
    pub tenant: TenantId,
    /// `None` is all of them; so below.
    pub dataset: Option<DatasetId>,
    pub table: Option<SignalTable>,
}

impl TableFilter {
    pub(crate) fn takes(&self, id: &TableId) -> bool {
        self.tenant == id.tenant
            && self.dataset.as_ref().is_none_or(|dataset| *dataset == id.dataset)
            && self.table.is_none_or(|table| table.code() == id.code)
    }
}

/// A table at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct TableShape {
    pub namespace: String,
    pub table: String,
    pub version: i64,
    /// Snapshots that are kept.
    pub snapshots: usize,
    /// `None` when they cannot be read, or mean something else to us than to their writer.
    #[serde(flatten)]
    pub files: Option<FilesShape>,
    /// Attributes that an operator promoted, and those that one demoted since.
    pub promoted: Vec<PromotedShape>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A table's live data files together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FilesShape {
    pub files: usize,
    pub records: u64,
    pub bytes: u64,
    /// Files that compaction looks at: ours, and below three quarters of the target size.
    pub small_files: usize,
    pub oldest_day: Option<String>,
    pub newest_day: Option<String>,
    /// Rewrites that the next visit finds to do.
    pub planned_rewrites: usize,
}

/// A promoted attribute, and how far its column is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PromotedShape {
    pub key: String,
    pub level: &'static str,
    pub column: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether writers fill the column; false once the attribute was demoted.
    pub written: bool,
    /// Live data files that have the column.
    pub filled_files: usize,
    /// Those of them in which the column alone answers filters on the attribute.
    pub whole_files: usize,
}

/// A live data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileShape {
    /// Of its partition; `None` for partitioning that is not ours.
    pub day: Option<String>,
    /// 0: large enough. Each further class is smaller by a factor of eight.
    pub class: u32,
    /// Compaction looks at it.
    pub small: bool,
    pub records: u64,
    pub bytes: u64,
    /// It says that it is in the table's order.
    pub sorted: bool,
    pub path: String,
}

impl Lake {
    /// The tables that the catalog has, in its order. Where one cannot be read, its shape says why.
    ///
    /// # Errors
    /// When the catalog does not answer.
    pub async fn table_shapes(&self, filter: &TableFilter) -> Result<Vec<TableShape>, LakeError> {
        let mut shapes = Vec::new();
        for pointer in self.catalog().tables_of(filter.tenant.as_str()).await? {
            if !table_id(&pointer).is_some_and(|id| filter.takes(&id)) {
                continue;
            }
            let mut shape = TableShape {
                namespace: pointer.namespace,
                table: pointer.table,
                version: version_of(&pointer.location),
                snapshots: 0,
                files: None,
                promoted: Vec::new(),
                error: None,
            };
            if let Err(error) = self.look_at(&mut shape, &pointer.location).await {
                shape.error = Some(chain(&error));
            }
            shapes.push(shape);
        }
        Ok(shapes)
    }

    async fn look_at(&self, shape: &mut TableShape, location: &str) -> Result<(), LakeError> {
        let metadata = self.metadata_at(location).await?;
        shape.snapshots = metadata.snapshots().count();
        let files = self.data_files(&metadata).await?;
        shape.files =
            Some(FilesShape::of(&files, &CompactionPolicy::from(&self.config().compaction), self.clock().now()));
        let set = PromotedSet::of(&metadata)?;
        shape.promoted = set.entries().iter().map(|entry| PromotedShape::of(entry, &files)).collect();
        Ok(())
    }

    /// The live data files of one table, by day, then size class, the large ones first; `None` when there is no such table.
    ///
    /// # Errors
    /// When catalog or store do not answer; [`LakeError::ForeignDeletes`].
    pub async fn file_shapes(
        &self,
        tenant: &TenantId,
        dataset: &DatasetId,
        table: SignalTable,
    ) -> Result<Option<Vec<FileShape>>, LakeError> {
        let id = TableId { tenant: tenant.clone(), dataset: dataset.clone(), code: table.code() };
        let Some((_, metadata)) = self.current_table(&id.namespace(), table.name()).await? else { return Ok(None) };
        let policy = CompactionPolicy::from(&self.config().compaction);
        let files = self.data_files(&metadata).await?;
        let mut shapes: Vec<FileShape> =
            files.iter().flat_map(|files| files.iter()).map(|file| FileShape::of(file, &policy)).collect();
        shapes.sort_by(|a, b| (&a.day, a.class, &a.path).cmp(&(&b.day, b.class, &b.path)));
        Ok(Some(shapes))
    }
}

impl FilesShape {
    fn of(files: &[Arc<Vec<DataFile>>], policy: &CompactionPolicy, now: UnixNanos) -> Self {
        let live = || files.iter().flat_map(|files| files.iter());
        let days = || live().filter_map(day_of);
        Self {
            files: live().count(),
            records: live().map(DataFile::record_count).sum(),
            bytes: live().map(DataFile::file_size_in_bytes).sum(),
            small_files: live().filter(|file| plan::is_small(file, policy)).count(),
            oldest_day: days().min().map(names::date),
            newest_day: days().max().map(names::date),
            planned_rewrites: plan::plan(live(), policy, now).len(),
        }
    }
}

impl PromotedShape {
    fn of(entry: &Entry, files: &[Arc<Vec<DataFile>>]) -> Self {
        let CopiedAttribute { key, level, kind, column } = &entry.copy;
        let count = |has: fn(&DataFile, &Column) -> bool| {
            files.iter().flat_map(|files| files.iter()).filter(|file| has(file, column)).count()
        };
        Self {
            key: key.clone(),
            level: level.name(),
            column: column.name.clone(),
            kind: kind.name(),
            written: entry.written,
            filled_files: count(is_filled),
            whole_files: count(is_whole),
        }
    }
}

impl FileShape {
    fn of(file: &DataFile, policy: &CompactionPolicy) -> Self {
        Self {
            day: day_of(file).map(names::date),
            class: plan::class(file.file_size_in_bytes(), policy),
            small: plan::is_small(file, policy),
            records: file.record_count(),
            bytes: file.file_size_in_bytes(),
            sorted: file.sort_order_id().map(i64::from) == Some(SORT_ORDER_ID),
            path: file.file_path().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::{Draw, TABLE, TestLake};
    use crate::{CompactionConfig, LakeConfig};

    #[tokio::test]
    async fn shapes_say_what_is_there_and_what_the_planner_would_do() {
        let compaction = CompactionConfig { min_files: 4, ..CompactionConfig::default() };
        let lake = TestLake::new(LakeConfig { compaction, ..LakeConfig::default() }).await;
        let mut draw = Draw(1);
        for n in 0..5 {
            lake.flush(&draw.rows(n, 10, lake.day_start(1)), n as u64 + 1).await;
        }
        // The day is over, and quiet: all of it is merged.
        lake.clock.advance(Duration::from_secs(3 * 3600));
        let filter = |dataset: &str, table| TableFilter {
            tenant: lake.id.tenant.clone(),
            dataset: Some(DatasetId::new(dataset).expect("name")),
            table,
        };
        let shapes = lake.lake.table_shapes(&filter("d", Some(TABLE))).await.expect("reads");
        let [shape] = &shapes[..] else { panic!("one table: {shapes:?}") };
        assert_eq!((shape.namespace.as_str(), shape.table.as_str(), shape.snapshots), ("t.d", "traces", 5));
        assert_eq!((shape.version, &shape.error), (5, &None));
        let files = shape.files.clone().expect("are known");
        assert_eq!((files.files, files.records, files.small_files, files.planned_rewrites), (5, 50, 5, 1));
        assert_eq!(files.oldest_day, files.newest_day);
        for other in [filter("other", None), filter("d", Some(SignalTable::Logs))] {
            assert!(lake.lake.table_shapes(&other).await.expect("reads").is_empty());
        }
        let json = serde_json::to_value(shape).expect("JSON");
        assert_eq!((&json["files"], &json["planned_rewrites"], json.get("error")), (&5.into(), &1.into(), None));

        let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
        lake.upkeep().rewrite(&rewrite, &CancellationToken::new()).await.expect("rewrites").expect("commits");
        let files = lake.lake.file_shapes(&lake.id.tenant, &lake.id.dataset, TABLE).await.expect("reads");
        let [file] = &files.expect("exists")[..] else { panic!("one file") };
        assert_eq!((file.records, file.small, file.sorted, file.class > 0), (50, true, true, true));
    }
}
