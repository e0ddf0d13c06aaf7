//! Scanning memtable rows: filtered before what they share is spread, a batch at a time. Their texts become views then.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{max, min};
use arrow::datatypes::{
    ArrowNumericType, DataType, Int32Type, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use datafusion::catalog::Session;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, Result, ScalarValue, Statistics};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan, SendableRecordBatchStream};
use signaldb_signals::Rows;

use crate::views;

/// Plans with more columns are not about bounds.
const BOUNDED_COLUMNS_MAX: usize = 4;

/// Rows of one table as a source of a plan, in one partition.
#[derive(Debug, Clone)]
struct RowsSource {
    rows: Arc<[Rows]>,
    columns: Arc<[usize]>,
    /// With only `columns`.
    schema: SchemaRef,
    filter: Option<RowFilter>,
    /// Once somebody asked.
    statistics: Arc<OnceLock<Arc<Statistics>>>,
    metrics: ExecutionPlanMetricsSet,
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
    metrics: ExecutionPlanMetricsSet,
) -> Result<Arc<dyn ExecutionPlan>> {
    let columns = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
    let source = RowsSource {
        rows: rows.into(),
        schema: Arc::new(schema.project(&columns)?),
        columns: columns.into(),
        filter: RowFilter::new(state, schema, filters)?,
        statistics: Arc::default(),
        metrics,
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
        let batch = views::with_views(&rows.project(&self.columns)?)?;
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
        views::with_views(&kept.project(&self.columns)?)
    }
}

impl RowsSource {
    fn look(&self) -> Result<Statistics> {
        let rows = self.rows.iter().map(Rows::num_rows).sum();
        let mut statistics = Statistics::new_unknown(&self.schema);
        if self.filter.is_some() {
            return Ok(statistics.with_num_rows(Precision::Inexact(rows)));
        }
        if self.columns.len() <= BOUNDED_COLUMNS_MAX {
            let slots = statistics.column_statistics.iter_mut().zip(self.columns.iter()).zip(self.schema.fields());
            for ((slot, column), _) in slots.filter(|(_, field)| is_bounded(field.data_type())) {
                let parts = self.rows.iter().map(|rows| Ok(rows.column(*column)?));
                *slot = bounds(&parts.collect::<Result<Vec<ArrayRef>>>()?);
            }
        }
        Ok(statistics.with_num_rows(Precision::Exact(rows)))
    }
}

/// Columns that people ask the first or last of, and that cost little to look through.
fn is_bounded(kind: &DataType) -> bool {
    matches!(kind, DataType::Int32 | DataType::Int64 | DataType::Timestamp(TimeUnit::Microsecond, _))
}

/// Nulls and bounds of a column's parts; no bounds where there is no value.
fn bounds(parts: &[ArrayRef]) -> ColumnStatistics {
    let scalars = match parts.first().map(|part| part.data_type().clone()) {
        Some(DataType::Int32) => {
            range::<Int32Type>(parts).map(|(min, max)| (ScalarValue::from(min), ScalarValue::from(max)))
        }
        Some(DataType::Int64) => {
            range::<Int64Type>(parts).map(|(min, max)| (ScalarValue::from(min), ScalarValue::from(max)))
        }
        Some(DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            let at = |at| ScalarValue::TimestampMicrosecond(Some(at), zone.clone());
            range::<TimestampMicrosecondType>(parts).map(|(min, max)| (at(min), at(max)))
        }
        _ => None,
    };
    let mut statistics = ColumnStatistics::new_unknown();
    statistics.null_count = Precision::Exact(parts.iter().map(|part| part.null_count()).sum());
    if let Some((min, max)) = scalars {
        (statistics.min_value, statistics.max_value) = (Precision::Exact(min), Precision::Exact(max));
    }
    statistics
}

fn range<T: ArrowNumericType<Native: Ord>>(parts: &[ArrayRef]) -> Option<(T::Native, T::Native)> {
    let parts = || parts.iter().map(|part| part.as_primitive::<T>());
    Some((parts().filter_map(min).min()?, parts().filter_map(max).max()?))
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

    /// Exact counts and bounds let `count(*)`, `min` and `max` read nothing, here and in files.
    fn partition_statistics(&self, _partition: Option<usize>) -> Result<Arc<Statistics>> {
        if let Some(known) = self.statistics.get() {
            return Ok(Arc::clone(known));
        }
        let statistics = Arc::new(self.look()?);
        Ok(Arc::clone(self.statistics.get_or_init(|| statistics)))
    }

    fn metrics(&self) -> ExecutionPlanMetricsSet {
        self.metrics.clone()
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
