//! A stored table at one moment: data files of one metadata version, and the memtable rows above its watermarks.

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
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::DataFusionError;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::union::UnionExec;
use iceberg::spec::DataFile;
use object_store::ObjectMeta;
use object_store::path::Path;
use signaldb_signals::copies::CopiedAttribute;
use signaldb_signals::schema::{self, TableSchema};
use signaldb_signals::{Rows, SignalTable};

use crate::copies::Copies;
use crate::error::{QueryError, QueryErrorKind};
use crate::remote::{self, RemoteRows};
use crate::{memory, prune, whole};

/// One consistent state of a table. Made for one query.
#[derive(Debug)]
pub(crate) struct StoredTable {
    /// The table's own columns, then those of `copies`.
    pub(crate) schema: Cow<'static, TableSchema>,
    /// Attributes that an operator promoted.
    copies: Copies,
    /// Live files of the metadata version that the query reads.
    pub(crate) files: Vec<Arc<Vec<DataFile>>>,
    /// Rows that this version does not have.
    pub(crate) rows: Vec<Rows>,
    /// The same, held by other nodes.
    pub(crate) remote: Vec<RemoteRows>,
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
        let mut plans = Vec::new();
        let files = self.files.iter().flat_map(|files| files.iter()).collect();
        for part in whole::split(&self.schema, &self.copies, &named, filters, files)? {
            let files = prune::files(&self.schema, part.files, physical_filter(state, schema, &part.filters)?)?;
            if !files.is_empty() {
                let view = self.copies.view(schema, &wanted, &part.absent)?;
                let scan =
                    |columns: &Vec<usize>| self.scan_files(state, &files, columns, part.filters.is_empty(), limit);
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
        if !self.rows.is_empty() || plans.is_empty() {
            let rows = memory::scan(state, schema, &self.rows, Some(view.columns()), &filters)?;
            plans.push(view.over(state, rows)?);
        }
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
        let own = schema::of(table);
        let schema = match attributes.is_empty() {
            true => Cow::Borrowed(own),
            false => Cow::Owned(own.with(attributes.iter().map(|attribute| attribute.column.clone()))),
        };
        let copies = Copies::new(attributes, &schema)?;
        Ok(Self { schema, copies, files: Vec::new(), rows: Vec::new(), remote: Vec::new() })
    }

    fn scan_files(
        &self,
        state: &dyn Session,
        files: &[&DataFile],
        columns: &[usize],
        exact: bool,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let groups = state.config().target_partitions().min(files.len()).max(1);
        let (mut stores, mut grouped) = (BTreeSet::new(), vec![Vec::<PartitionedFile>::new(); groups]);
        for (at, file) in files.iter().enumerate() {
            let (store, file) = place(file)?;
            stores.insert(store);
            grouped[at % groups].push(file);
        }
        let url = stores.pop_first().unwrap_or_else(ObjectStoreUrl::local_filesystem);
        if let Some(other) = stores.first() {
            let message = format!("the table has files in {url} and in {other}; a scan reads one store");
            return Err(QueryError::new(QueryErrorKind::Internal, message).into());
        }
        let runtime = state.runtime_env();
        let footers = CachedParquetFileReaderFactory::new(
            runtime.object_store(&url)?,
            runtime.cache_manager.get_file_metadata_cache(),
        );
        let source = ParquetSource::new(Arc::clone(&self.schema.arrow))
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_pushdown_filters(true)
            .with_enable_page_index(true)
            .with_bloom_filter_on_read(true)
            .with_parquet_file_reader_factory(Arc::new(footers));
        let rows: u64 = files.iter().map(|file| file.record_count()).sum();
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        let rows = if exact { Precision::Exact(rows) } else { Precision::Inexact(rows) };
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(grouped.into_iter().map(FileGroup::new).collect())
            // With exact counts, count(*) opens no file.
            .with_statistics(Statistics::new_unknown(&self.schema.arrow).with_num_rows(rows))
            .with_projection_indices(Some(columns.to_vec()))?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

fn physical_filter(state: &dyn Session, schema: &SchemaRef, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let Some(filter) = conjunction(filters.to_vec()) else { return Ok(None) };
    let schema = DFSchema::try_from(Arc::clone(schema))?;
    state.create_physical_expr(filter, &schema).map(Some)
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
    let filter = state.create_physical_expr(filter, &DFSchema::try_from(input.schema())?)?;
    let projection = (columns.len() > wanted).then(|| (0..wanted).collect());
    Ok(Arc::new(FilterExecBuilder::new(filter, input).apply_projection(projection)?.build()?))
}

/// The store that holds a file, and the file in it.
fn place(file: &DataFile) -> Result<(ObjectStoreUrl, PartitionedFile)> {
    let (store, location) = locate(file.file_path())?;
    let meta = ObjectMeta {
        location,
        // Data files never change, so that the cache of footers needs no time.
        last_modified: Default::default(),
        size: file.file_size_in_bytes(),
        e_tag: None,
        version: None,
    };
    Ok((store, PartitionedFile::new_from_meta(meta)))
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
