//! A stored table at one moment: data files of one metadata version, and the memtable rows above its watermarks.
//!
//! A scan leaves out what it can before it opens anything: files by the bounds of their manifest entries, files and row
//! groups by trace indexes. DataFusion's Parquet source then leaves out row groups and pages by the statistics, bloom
//! filters and page indexes that are kept in memory, and files that a dynamic filter has passed meanwhile.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, Result, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::DataFusionError;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::simplifier::PhysicalExprSimplifier;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricType};
use datafusion::physical_plan::union::UnionExec;
use iceberg::spec::DataFile;
use object_store::ObjectMeta;
use object_store::path::Path;
use signaldb_signals::copies::CopiedAttribute;
use signaldb_signals::schema::{self, TableSchema};
use signaldb_signals::{Rows, SignalTable};

use crate::copies::Copies;
use crate::error::{QueryError, QueryErrorKind};
use crate::files::DataFiles;
use crate::kept::KeptParts;
use crate::remote::{self, RemoteRows};
use crate::traces::{self, Place, Places, Pruned, TraceIndexes};
use crate::{likes, memory, prune, views, whole};

/// One consistent state of a table. Made for one query.
#[derive(Debug)]
pub(crate) struct StoredTable {
    /// The table's own columns, then those of `copies`, as queries see them.
    pub(crate) schema: Cow<'static, TableSchema>,
    /// Attributes that an operator promoted.
    copies: Copies,
    /// Live files of the metadata version that the query reads.
    pub(crate) files: Vec<Arc<Vec<DataFile>>>,
    /// Rows that this version does not have.
    pub(crate) rows: Vec<Rows>,
    /// The same, held by other nodes.
    pub(crate) remote: Vec<RemoteRows>,
    /// What it took to get here.
    pub(crate) catalog_reads: u64,
}

#[async_trait]
impl TableProvider for StoredTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema.arrow)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// All of them: what a filter on an attribute comes to depends on the file. DataFusion pushes what can be pushed from
    /// there into the Parquet scan by itself.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Exact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = &self.schema.arrow;
        // A limit counts what the filters keep.
        let limit = limit.filter(|_| filters.is_empty());
        let wanted = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
        let named = self.copies.named(schema, &wanted, filters);
        let traces = traces::wanted(filters);
        let mut plans = Vec::new();
        let mut notes = Notes { catalog_reads: self.catalog_reads, ..Notes::default() };
        // Of the first scan, which shows the notes.
        let mut shown: Option<ExecutionPlanMetricsSet> = None;
        let kept = state.config().get_extension::<KeptParts>().unwrap_or_else(|| Arc::new(KeptParts::new(0)));
        let files = self.files.iter().flat_map(|files| files.iter()).collect();
        for part in whole::split(&self.schema, &self.copies, &named, filters, files)? {
            let files_before = part.files.len();
            let files = prune::files(&self.schema, part.files, physical_filter(state, schema, &part.filters)?)?;
            notes.files += files_before;
            notes.pruned_by_bounds += files_before - files.len();
            let places = match &traces {
                Some(ids) if !files.is_empty() => self.places(state, &kept, files, ids).await?,
                _ => Places::all(files),
            };
            notes.by_trace_indexes.add(places.pruned);
            let view = self.copies.view(schema, &wanted, &part.absent)?;
            for (places, blooms) in [(places.indexed, Blooms::Unread), (places.others, Blooms::Read)] {
                if places.is_empty() {
                    continue;
                }
                let scan = |columns: &Vec<usize>| {
                    let exact = part.filters.is_empty();
                    let (scan, metrics) =
                        self.scan_files(state, &kept, FileScan { places, columns, blooms, exact, limit })?;
                    shown.get_or_insert(metrics);
                    Ok(scan)
                };
                plans.push(view.over(state, filtered(state, schema, &part.filters, view.columns(), scan)?)?);
            }
        }
        // Rows have no copies before they are in files.
        let view = self.copies.view(schema, &wanted, &named)?;
        let without = |filter: &Expr| self.copies.without(&named, filter.clone());
        let filters = filters.iter().map(without).collect::<Result<Vec<_>>>()?;
        for rows in &self.remote {
            let scan = |columns: &Vec<usize>| remote::scan(rows, schema, Some(columns));
            plans.push(view.over(state, filtered(state, schema, &filters, view.columns(), scan)?)?);
        }
        if !self.rows.is_empty() || shown.is_none() {
            let metrics = ExecutionPlanMetricsSet::new();
            shown.get_or_insert_with(|| metrics.clone());
            let rows = memory::scan(state, schema, &self.rows, Some(view.columns()), &filters, metrics)?;
            plans.push(view.over(state, rows)?);
        }
        notes.show(&shown.unwrap_or_default());
        match plans.len() {
            1 => Ok(plans.remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }
}

impl StoredTable {
    /// A table without rows; writers copy `attributes` into columns of their own.
    ///
    /// # Errors
    /// None: the table has the columns that it is given.
    pub(crate) fn new(table: SignalTable, attributes: Vec<CopiedAttribute>) -> Result<Self, QueryError> {
        let schema = match attributes.is_empty() {
            true => Cow::Borrowed(views::of(table)),
            false => {
                let copied = attributes.iter().map(|attribute| attribute.column.clone());
                Cow::Owned(views::in_queries(&schema::of(table).with(copied)))
            }
        };
        let copies = Copies::new(attributes, &schema)?;
        Ok(Self { schema, copies, files: Vec::new(), rows: Vec::new(), remote: Vec::new(), catalog_reads: 0 })
    }

    /// Where rows of the traces may be in `files`, by the trace indexes of compactions.
    async fn places<'a>(
        &self,
        state: &dyn Session,
        kept: &Arc<KeptParts>,
        files: Vec<&'a DataFile>,
        ids: &BTreeSet<Vec<u8>>,
    ) -> Result<Places<'a>> {
        let url = store_of(files.iter().copied())?;
        let store = state.runtime_env().object_store(&url)?;
        let indexes = TraceIndexes { store, kept: Arc::clone(kept) };
        Ok(indexes.places(files, ids, |location| locate(location).ok().map(|(_, path)| path)).await)
    }

    /// A scan and its metrics.
    fn scan_files(
        &self,
        state: &dyn Session,
        kept: &Arc<KeptParts>,
        scan: FileScan<'_>,
    ) -> Result<(Arc<dyn ExecutionPlan>, ExecutionPlanMetricsSet)> {
        let FileScan { mut places, columns, blooms, exact, limit } = scan;
        // The newest first: `ORDER BY timestamp DESC LIMIT n` is done with the others once it has seen these.
        places.sort_by_key(|place| std::cmp::Reverse(prune::newest_micros(&self.schema, place.file)));
        let url = store_of(places.iter().map(|place| place.file))?;
        let files = places.iter().map(|place| self.place(columns, place)).collect::<Result<Vec<_>>>()?;
        let total = self.total(&files, exact)?;
        let groups = state.config().target_partitions().min(files.len()).max(1);
        // Partitions take the next file from one queue, which begins with the first group.
        let grouped = files.chunks(files.len().div_ceil(groups).max(1)).map(|files| FileGroup::new(files.to_vec()));
        let reader = DataFiles { store: state.runtime_env().object_store(&url)?, kept: Arc::clone(kept) };
        let source = ParquetSource::new(Arc::clone(&self.schema.arrow))
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_pushdown_filters(true)
            .with_enable_page_index(true)
            .with_bloom_filter_on_read(blooms == Blooms::Read)
            .with_parquet_file_reader_factory(Arc::new(reader));
        let metrics = source.metrics().clone();
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(grouped.collect())
            .with_statistics(total)
            .with_projection_indices(Some(columns.clone()))?
            .with_limit(limit)
            .build();
        let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(config);
        Ok((plan, metrics))
    }

    /// A file as the scan sees it. Its statistics serve to leave it out by a dynamic filter, and in place of columns that
    /// have but one value in it.
    fn place(&self, columns: &[usize], place: &Place<'_>) -> Result<PartitionedFile> {
        let (_, location) = locate(place.file.file_path())?;
        let meta = ObjectMeta {
            location,
            // Data files never change.
            last_modified: Default::default(),
            size: place.file.file_size_in_bytes(),
            e_tag: None,
            version: None,
        };
        let statistics = prune::statistics(&self.schema, columns, place.file);
        let file = PartitionedFile::new_from_meta(meta).with_statistics(Arc::new(statistics));
        Ok(match &place.rows {
            Some(rows) => file.with_extension(traces::access_plan(rows)),
            None => file,
        })
    }

    /// What is known of the rows of all files. If nothing is filtered the count is exact, and bounds are: `count(*)`, `min` and
    /// `max` open no file.
    fn total(&self, files: &[PartitionedFile], exact: bool) -> Result<Statistics> {
        let each = || files.iter().filter_map(|file| file.statistics.as_deref());
        if exact {
            return Statistics::try_merge_iter(each(), &self.schema.arrow);
        }
        let rows: usize = each().filter_map(|statistics| statistics.num_rows.get_value()).sum();
        Ok(Statistics::new_unknown(&self.schema.arrow).with_num_rows(Precision::Inexact(rows)))
    }
}

/// Files of one store, and how to scan them.
struct FileScan<'a> {
    places: Vec<Place<'a>>,
    columns: &'a Vec<usize>,
    blooms: Blooms,
    /// Nothing is filtered.
    exact: bool,
    limit: Option<usize>,
}

/// Whether bloom filters can tell more than is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blooms {
    Read,
    Unread,
}

/// What a scan left out before it began, for `EXPLAIN ANALYZE`.
#[derive(Debug, Default)]
struct Notes {
    files: usize,
    pruned_by_bounds: usize,
    by_trace_indexes: Pruned,
    catalog_reads: u64,
}

impl Notes {
    fn show(&self, metrics: &ExecutionPlanMetricsSet) {
        let Pruned { files, row_groups, index_reads, index_hits } = self.by_trace_indexes;
        for (name, value) in [
            ("files", self.files),
            ("files_pruned_by_bounds", self.pruned_by_bounds),
            ("files_pruned_by_trace_index", files),
            ("row_groups_pruned_by_trace_index", row_groups),
            ("trace_index_reads", index_reads),
            ("trace_index_hits", index_hits),
            ("catalog_reads", usize::try_from(self.catalog_reads).unwrap_or(usize::MAX)),
        ] {
            MetricBuilder::new(metrics).with_type(MetricType::Summary).global_counter(name).add(value);
        }
    }
}

fn physical_filter(state: &dyn Session, schema: &SchemaRef, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let Some(filter) = conjunction(filters.to_vec()) else { return Ok(None) };
    predicate(state, schema, filter).map(Some)
}

/// A filter over rows of `schema`. What of it is known now is computed: bounds and bloom filters serve literals alone, and
/// where a column took the place of an attribute, which is a text, the literal beside it has to become a view.
fn predicate(state: &dyn Session, schema: &SchemaRef, filter: Expr) -> Result<Arc<dyn PhysicalExpr>> {
    let filter = likes::prunable(filter)?;
    let filter = state.create_physical_expr(filter, &DFSchema::try_from(Arc::clone(schema))?)?;
    PhysicalExprSimplifier::new(schema).simplify(filter)
}

/// What `filters` keep of a scan, with the columns `wanted`. The scan is asked for those that the filters need, too.
fn filtered(
    state: &dyn Session,
    schema: &SchemaRef,
    filters: &[Expr],
    wanted: &[usize],
    scan: impl FnOnce(&Vec<usize>) -> Result<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let (mut columns, wanted) = (wanted.to_vec(), wanted.len());
    let Some(filter) = conjunction(filters.to_vec()) else { return scan(&columns) };
    let needed = filter.column_refs().into_iter().map(|column| Ok(schema.index_of(&column.name)?));
    let mut needed = needed.collect::<Result<Vec<usize>>>()?;
    needed.retain(|column| !columns.contains(column));
    // In the same order in every run.
    needed.sort_unstable();
    columns.extend(needed);
    let input = scan(&columns)?;
    let filter = predicate(state, &input.schema(), filter)?;
    let projection = (columns.len() > wanted).then(|| (0..wanted).collect());
    Ok(Arc::new(FilterExecBuilder::new(filter, input).apply_projection(projection)?.build()?))
}

/// The store that has the files.
fn store_of<'a>(files: impl Iterator<Item = &'a DataFile>) -> Result<ObjectStoreUrl> {
    let mut found: Option<ObjectStoreUrl> = None;
    for file in files {
        let (url, _) = locate(file.file_path())?;
        match &found {
            Some(found) if *found != url => {
                let message = format!("the table has files in {found} and in {url}; a scan reads one store");
                return Err(QueryError::new(QueryErrorKind::Internal, message).into());
            }
            _ => found = Some(url),
        }
    }
    Ok(found.unwrap_or_else(ObjectStoreUrl::local_filesystem))
}

/// `s3://bucket/key` is the key in the bucket's store; anything else is a path of a local file.
fn locate(path: &str) -> Result<(ObjectStoreUrl, Path)> {
    let invalid = |error: object_store::path::Error| DataFusionError::External(Box::new(error));
    match path.split_once("://") {
        Some((scheme, rest)) if scheme != "file" => {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            Ok((ObjectStoreUrl::parse(format!("{scheme}://{bucket}"))?, Path::parse(key).map_err(invalid)?))
        }
        _ => {
            let path = path.trim_start_matches("file://");
            Ok((ObjectStoreUrl::local_filesystem(), Path::from_absolute_path(path).map_err(invalid)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_in_their_store() {
        for (path, store, location) in [
            ("file:///data/t/a b.parquet", "file:///", "data/t/a b.parquet"),
            ("/data/t/x.parquet", "file:///", "data/t/x.parquet"),
            ("s3://bucket/t/day=1/x.parquet", "s3://bucket/", "t/day=1/x.parquet"),
            ("memory://tables/x.parquet", "memory://tables/", "x.parquet"),
        ] {
            let (found, key) = locate(path).expect(path);
            assert_eq!((found.as_str(), key.as_ref()), (store, location), "{path}");
        }
        assert!(locate("s3://bucket/a//b").is_err());
    }
}
