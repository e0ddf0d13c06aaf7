//! Scanning memtable rows: filtered before what they share is spread, a batch at a time.

use std::fmt;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, Result, Statistics};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan, SendableRecordBatchStream};
use signaldb_signals::Rows;

/// Rows of one table as a source of a plan, in one partition.
#[derive(Debug, Clone)]
struct RowsSource {
    rows: Arc<[Rows]>,
    columns: Arc<[usize]>,
    /// With only `columns`.
    schema: SchemaRef,
    filter: Option<RowFilter>,
}

/// A filter over some columns of the table.
#[derive(Debug, Clone)]
struct RowFilter {
    columns: Arc<[usize]>,
    /// Its column numbers count in `columns`.
    keep: Arc<dyn PhysicalExpr>,
}

/// A plan that yields the `rows` that the filters keep, with the columns of `projection`.
pub(crate) fn scan(
    state: &dyn Session,
    schema: &SchemaRef,
    rows: &[Rows],
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
) -> Result<Arc<dyn ExecutionPlan>> {
    let columns = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
    let source = RowsSource {
        rows: rows.into(),
        schema: Arc::new(schema.project(&columns)?),
        columns: columns.into(),
        filter: RowFilter::new(state, schema, filters)?,
    };
    Ok(DataSourceExec::from_data_source(source))
}

impl RowFilter {
    fn new(state: &dyn Session, schema: &SchemaRef, filters: &[Expr]) -> Result<Option<Self>> {
        let Some(filter) = conjunction(filters.to_vec()) else { return Ok(None) };
        let mut columns = filter
            .column_refs()
            .into_iter()
            .map(|column| Ok(schema.index_of(&column.name)?))
            .collect::<Result<Vec<_>>>()?;
        columns.sort_unstable();
        let schema = DFSchema::try_from(schema.project(&columns)?)?;
        Ok(Some(Self { columns: columns.into(), keep: state.create_physical_expr(filter, &schema)? }))
    }

    fn apply(&self, rows: &Rows) -> Result<Rows> {
        let batch = rows.project(&self.columns)?;
        let keep = self.keep.evaluate(&batch)?.into_array(batch.num_rows())?;
        let keep: &BooleanArray = as_boolean_array(&keep)?;
        Ok(rows.filter(keep)?)
    }
}

impl RowsSource {
    fn batch(&self, rows: Rows) -> Result<RecordBatch> {
        let kept = match &self.filter {
            Some(filter) => filter.apply(&rows)?,
            None => rows,
        };
        Ok(kept.project(&self.columns)?)
    }
}

impl DataSource for RowsSource {
    fn open(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (source, size) = (self.clone(), context.session_config().batch_size());
        let slices = (0..self.rows.len()).flat_map(move |at| {
            let rows = source.rows[at].clone();
            let source = source.clone();
            (0..rows.num_rows()).step_by(size).map(move |start| {
                let length = size.min(rows.num_rows() - start);
                source.batch(rows.slice(start, length))
            })
        });
        let stream = futures::stream::iter(slices);
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream)))
    }

    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: usize = self.rows.iter().map(Rows::num_rows).sum();
        write!(f, "memtable rows={rows}")?;
        match &self.filter {
            Some(filter) => write!(f, ", filter={}", filter.keep),
            None => Ok(()),
        }
    }

    fn output_partitioning(&self) -> Partitioning {
        Partitioning::UnknownPartitioning(1)
    }

    fn eq_properties(&self) -> EquivalenceProperties {
        EquivalenceProperties::new(Arc::clone(&self.schema))
    }

    /// The exact count lets `count(*)` read nothing.
    fn partition_statistics(&self, _partition: Option<usize>) -> Result<Arc<Statistics>> {
        let rows = self.rows.iter().map(Rows::num_rows).sum();
        let rows = if self.filter.is_none() { Precision::Exact(rows) } else { Precision::Inexact(rows) };
        Ok(Arc::new(Statistics::new_unknown(&self.schema).with_num_rows(rows)))
    }

    /// The stream is lazy: a limit above it simply stops asking.
    fn with_fetch(&self, _limit: Option<usize>) -> Option<Arc<dyn DataSource>> {
        None
    }

    fn fetch(&self) -> Option<usize> {
        None
    }

    fn try_swapping_with_projection(&self, _projection: &ProjectionExprs) -> Result<Option<Arc<dyn DataSource>>> {
        Ok(None)
    }
}
