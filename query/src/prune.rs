//! Which data files a filter can match, by the bounds in their manifest entries.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, Result, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use iceberg::spec::{DataFile, Datum, PrimitiveLiteral};
use signaldb_signals::schema::TableSchema;

/// Files that may hold matching rows; all of them when the filter says nothing about bounds.
pub(crate) fn files<'a>(
    schema: &TableSchema,
    files: Vec<&'a DataFile>,
    filter: Option<Arc<dyn PhysicalExpr>>,
) -> Result<Vec<&'a DataFile>> {
    let Some(filter) = filter else { return Ok(files) };
    let predicate = PruningPredicate::try_new(filter, Arc::clone(&schema.arrow))?;
    let keep = predicate.prune(&FileBounds::new(schema, &files))?;
    Ok(files.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| file).collect())
}

/// Bounds of many files, one array slot a file; null where a file has none.
struct FileBounds<'a> {
    ids: HashMap<&'a str, i32>,
    arrow: SchemaRef,
    files: &'a [&'a DataFile],
}

impl<'a> FileBounds<'a> {
    fn new(schema: &'a TableSchema, files: &'a [&'a DataFile]) -> Self {
        let ids = schema.columns.iter().map(|column| (column.name.as_str(), column.id)).collect();
        Self { ids, arrow: Arc::clone(&schema.arrow), files }
    }

    fn bounds(&self, column: &Column, side: impl Fn(&DataFile) -> &HashMap<i32, Datum>) -> Option<ArrayRef> {
        let id = self.ids.get(column.name.as_str())?;
        let kind = self.arrow.field_with_name(&column.name).ok()?.data_type();
        let scalar = |file: &&DataFile| match side(file).get(id) {
            Some(bound) => scalar(bound)?.cast_to(kind).ok(),
            None => ScalarValue::try_from(kind).ok(),
        };
        let scalars = self.files.iter().map(scalar).collect::<Option<Vec<_>>>()?;
        ScalarValue::iter_to_array(scalars).ok()
    }

    fn counts(&self, column: &Column, side: impl Fn(&DataFile) -> &HashMap<i32, u64>) -> Option<ArrayRef> {
        let id = self.ids.get(column.name.as_str())?;
        let counts: UInt64Array = self.files.iter().map(|file| side(file).get(id).copied()).collect();
        Some(Arc::new(counts))
    }
}

fn scalar(bound: &Datum) -> Option<ScalarValue> {
    Some(match bound.literal() {
        PrimitiveLiteral::Boolean(value) => ScalarValue::Boolean(Some(*value)),
        PrimitiveLiteral::Int(value) => ScalarValue::Int32(Some(*value)),
        PrimitiveLiteral::Long(value) => ScalarValue::Int64(Some(*value)),
        PrimitiveLiteral::String(value) => ScalarValue::Utf8(Some(value.clone())),
        _ => return None,
    })
}

impl PruningStatistics for FileBounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, DataFile::lower_bounds)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, DataFile::upper_bounds)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        self.counts(column, DataFile::null_value_counts)
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let rows: UInt64Array = self.files.iter().map(|file| Some(file.record_count())).collect();
        Some(Arc::new(rows))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
