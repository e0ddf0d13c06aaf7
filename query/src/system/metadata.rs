//! `system.flushes`, `system.snapshots` and `system.files`: what the metadata of the caller's tables says.
//!
//! Nothing is read before one of them is scanned: tools list all tables with their columns.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::{MemTable, TableType};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use iceberg::spec::{DataFile, Datum, Literal, PrimitiveLiteral, SnapshotRef, TableMetadata};
use signaldb_catalog::TablePointer;
use signaldb_lake::flush_of;

use super::{Columns, batch, dataset, pointers};
use crate::error::lake_error;
use crate::snapshot::Snapshotter;

/// Field id of `timestamp` in every table.
const TIMESTAMP_ID: i32 = 1;

/// The tables of this file.
#[derive(Debug, Clone, Copy)]
pub(super) enum MetadataTable {
    Flushes,
    Snapshots,
    Files,
}

impl MetadataTable {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "flushes" => Some(Self::Flushes),
            "snapshots" => Some(Self::Snapshots),
            "files" => Some(Self::Files),
            _ => None,
        }
    }

    fn columns(self, tables: &[Table]) -> Columns {
        match self {
            Self::Flushes => flushes(&snapshot_rows(tables)),
            Self::Snapshots => snapshots(&snapshot_rows(tables)),
            Self::Files => files(&file_rows(tables)),
        }
    }
}

/// A table that is read when it is scanned.
pub(super) struct LazyTable {
    table: MetadataTable,
    schema: SchemaRef,
    snapshotter: Arc<Snapshotter>,
}

impl fmt::Debug for LazyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyTable").field("table", &self.table).finish_non_exhaustive()
    }
}

impl LazyTable {
    pub(super) fn new(table: MetadataTable, snapshotter: Arc<Snapshotter>) -> Result<Self> {
        let schema = batch(table.columns(&[]))?.schema();
        Ok(Self { table, schema, snapshotter })
    }

    async fn load(&self) -> Result<RecordBatch> {
        let lake = &self.snapshotter.lake;
        let mut tables = Vec::new();
        for pointer in pointers(&self.snapshotter).await? {
            let metadata = lake.metadata_at(&pointer.location).await.map_err(lake_error)?;
            let files = match self.table {
                MetadataTable::Files => lake.data_files(&metadata).await.map_err(lake_error)?,
                MetadataTable::Flushes | MetadataTable::Snapshots => Vec::new(),
            };
            tables.push(Table { pointer, metadata, files });
        }
        Ok(batch(self.table.columns(&tables))?)
    }
}

#[async_trait]
impl TableProvider for LazyTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = self.load().await?;
        let table = MemTable::try_new(rows.schema(), vec![vec![rows]])?;
        table.scan(state, projection, filters, limit).await
    }
}

/// What was read of one table.
struct Table {
    pointer: TablePointer,
    metadata: Arc<TableMetadata>,
    /// Live data files of the current snapshot, where they are asked for.
    files: Vec<Arc<Vec<DataFile>>>,
}

/// A snapshot that is still kept.
struct SnapshotRow<'a> {
    table: &'a Table,
    snapshot: &'a SnapshotRef,
}

impl SnapshotRow<'_> {
    /// A number of the summary.
    fn number(&self, key: &str) -> Option<i64> {
        self.snapshot.summary().additional_properties.get(key)?.parse().ok()
    }

    fn current(&self) -> bool {
        self.table.metadata.current_snapshot_id() == Some(self.snapshot.snapshot_id())
    }
}

/// Oldest first.
fn snapshot_rows(tables: &[Table]) -> Vec<SnapshotRow<'_>> {
    let of =
        tables.iter().flat_map(|table| table.metadata.snapshots().map(move |snapshot| SnapshotRow { table, snapshot }));
    let mut rows: Vec<SnapshotRow<'_>> = of.collect();
    rows.sort_by_key(|row| (row.snapshot.timestamp_ms(), row.snapshot.sequence_number()));
    rows
}

fn texts<'a, T>(rows: &'a [T], field: impl Fn(&'a T) -> &'a str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(field)))
}

fn numbers<T>(rows: &[T], field: impl Fn(&T) -> Option<i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(rows.iter().map(field)))
}

fn committed_at(rows: &[SnapshotRow<'_>]) -> ArrayRef {
    let times = rows.iter().map(|row| row.snapshot.timestamp_ms());
    Arc::new(TimestampMillisecondArray::from_iter_values(times).with_timezone("+00:00"))
}

/// What each snapshot added; `system.snapshots` says more.
fn flushes(rows: &[SnapshotRow<'_>]) -> Columns {
    vec![
        ("dataset", texts(rows, |row| dataset(&row.table.pointer))),
        ("table", texts(rows, |row| &row.table.pointer.table)),
        ("snapshot_id", numbers(rows, |row| Some(row.snapshot.snapshot_id()))),
        ("committed_at", committed_at(rows)),
        ("added_records", numbers(rows, |row| Some(row.number("added-records").unwrap_or(0)))),
        ("added_bytes", numbers(rows, |row| Some(row.number("added-files-size").unwrap_or(0)))),
    ]
}

fn snapshots(rows: &[SnapshotRow<'_>]) -> Columns {
    let flushes: Vec<_> = rows.iter().map(|row| flush_of(row.snapshot)).collect();
    let groups = flushes.iter().map(|flush| flush.map(|(group, _)| group.0));
    let indexes = flushes.iter().map(|flush| flush.map(|(_, index)| index));
    vec![
        ("dataset", texts(rows, |row| dataset(&row.table.pointer))),
        ("table", texts(rows, |row| &row.table.pointer.table)),
        ("snapshot_id", numbers(rows, |row| Some(row.snapshot.snapshot_id()))),
        ("parent_id", numbers(rows, |row| row.snapshot.parent_snapshot_id())),
        ("sequence_number", numbers(rows, |row| Some(row.snapshot.sequence_number()))),
        ("committed_at", committed_at(rows)),
        ("is_current", Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.current()))))),
        ("operation", texts(rows, |row| row.snapshot.summary().operation.as_str())),
        ("added_records", numbers(rows, |row| row.number("added-records"))),
        ("added_files", numbers(rows, |row| row.number("added-data-files"))),
        ("added_bytes", numbers(rows, |row| row.number("added-files-size"))),
        ("total_records", numbers(rows, |row| row.number("total-records"))),
        ("total_files", numbers(rows, |row| row.number("total-data-files"))),
        ("total_bytes", numbers(rows, |row| row.number("total-files-size"))),
        ("flush_group", Arc::new(UInt32Array::from_iter(groups))),
        ("flush_index", Arc::new(UInt64Array::from_iter(indexes))),
        ("manifest_list", texts(rows, |row| row.snapshot.manifest_list())),
    ]
}

/// A live data file.
struct FileRow<'a> {
    table: &'a Table,
    file: &'a DataFile,
}

fn file_rows(tables: &[Table]) -> Vec<FileRow<'_>> {
    let of = tables
        .iter()
        .flat_map(|table| table.files.iter().flat_map(|files| files.iter()).map(move |file| FileRow { table, file }));
    of.collect()
}

impl FileRow<'_> {
    /// Days since 1970.
    fn day(&self) -> Option<i32> {
        match self.file.partition().iter().next().flatten()? {
            Literal::Primitive(PrimitiveLiteral::Int(day)) => Some(*day),
            _ => None,
        }
    }
}

fn microseconds(bound: Option<&Datum>) -> Option<i64> {
    match bound?.literal() {
        PrimitiveLiteral::Long(at) => Some(*at),
        _ => None,
    }
}

fn files(rows: &[FileRow<'_>]) -> Columns {
    let times = |times: Vec<Option<i64>>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone("+00:00"))
    };
    let lowest = rows.iter().map(|row| microseconds(row.file.lower_bounds().get(&TIMESTAMP_ID)));
    let highest = rows.iter().map(|row| microseconds(row.file.upper_bounds().get(&TIMESTAMP_ID)));
    vec![
        ("dataset", texts(rows, |row| dataset(&row.table.pointer))),
        ("table", texts(rows, |row| &row.table.pointer.table)),
        ("path", texts(rows, |row| row.file.file_path())),
        ("partition_day", Arc::new(Date32Array::from_iter(rows.iter().map(FileRow::day)))),
        ("records", numbers(rows, |row| i64::try_from(row.file.record_count()).ok())),
        ("bytes", numbers(rows, |row| i64::try_from(row.file.file_size_in_bytes()).ok())),
        ("timestamp_min", times(lowest.collect())),
        ("timestamp_max", times(highest.collect())),
    ]
}

#[cfg(test)]
mod tests {
    use signaldb_signals::{SignalTable, schema};

    use super::*;

    #[test]
    fn schemas_are_known_before_anything_is_read() {
        for table in [MetadataTable::Flushes, MetadataTable::Snapshots, MetadataTable::Files] {
            let rows = batch(table.columns(&[])).expect("columns of no rows");
            assert_eq!(rows.num_rows(), 0);
            let first: Vec<&str> =
                rows.schema_ref().fields().iter().map(|field| field.name().as_str()).take(2).collect();
            assert_eq!(first, ["dataset", "table"]);
        }
    }

    #[test]
    fn the_id_of_timestamp_is_the_same_in_every_table() {
        for table in SignalTable::ALL {
            assert_eq!(schema::of(table).column("timestamp").map(|column| column.id), Some(TIMESTAMP_ID), "{table:?}");
        }
    }
}
