//! What manifest entries say of data files: which a filter can match, and what needs no reading.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, Result, ScalarValue, Statistics};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use iceberg::spec::{DataFile, Datum, PrimitiveLiteral};
use signaldb_signals::schema::TableSchema;

/// Partitions are days of this column.
const TIMESTAMP: &str = "timestamp";
const MICROS_A_DAY: i64 = 86_400_000_000;

/// Files that may hold matching rows; all of them when the filter says nothing about bounds.
pub(crate) fn files<'a>(
    schema: &TableSchema,
    files: Vec<&'a DataFile>,
    filter: Option<Arc<dyn PhysicalExpr>>,
) -> Result<Vec<&'a DataFile>> {
    let Some(filter) = filter else { return Ok(files) };
    let predicate = PruningPredicate::try_new(filter, Arc::clone(&schema.arrow))?;
    let kept = predicate.prune(&FileBounds::new(schema, &files));
    let keep = match kept {
        Ok(keep) => keep,
        // DataFusion compares what no kernel does, a text with a large one, say. The filter itself is none the worse.
        Err(error) => {
            tracing::debug!(%error, "bounds of data files do not serve a filter");
            return Ok(files);
        }
    };
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

    /// `of_day`: what a day, in microseconds, says of the column that files are partitioned by.
    fn bounds(
        &self,
        column: &Column,
        side: impl Fn(&DataFile) -> &HashMap<i32, Datum>,
        of_day: impl Fn(i64) -> i64,
    ) -> Option<ArrayRef> {
        let id = self.ids.get(column.name.as_str())?;
        let kind = self.arrow.field_with_name(&column.name).ok()?.data_type();
        let day = |file: &DataFile| {
            let day = signaldb_lake::day_of(file).filter(|_| column.name == TIMESTAMP)?;
            Some(ScalarValue::Int64(Some(of_day(i64::from(day) * MICROS_A_DAY))))
        };
        let scalar = |file: &&DataFile| match side(file).get(id) {
            Some(bound) => scalar(bound)?.cast_to(kind).ok(),
            None => match day(file) {
                Some(bound) => bound.cast_to(kind).ok(),
                None => ScalarValue::try_from(kind).ok(),
            },
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

/// What the file's entry says of `columns`, positions in the schema; of others nothing.
///
/// Bounds of texts may be cut, and entries of other writers may be rounded: those are estimates, unless both bounds are the
/// same.
pub(crate) fn statistics(schema: &TableSchema, columns: &[usize], file: &DataFile) -> Statistics {
    let mut statistics = Statistics::new_unknown(&schema.arrow);
    statistics.num_rows = Precision::Exact(count(file.record_count()));
    let own = signaldb_lake::is_own(file);
    for at in columns {
        let (Some(column), Some(slot)) = (schema.columns.get(*at), statistics.column_statistics.get_mut(*at)) else {
            continue;
        };
        *slot = column_statistics(column.id, schema.arrow.field(*at).data_type(), own, file);
    }
    statistics
}

fn column_statistics(id: i32, kind: &DataType, own: bool, file: &DataFile) -> ColumnStatistics {
    let precision = |exact: bool, value: ScalarValue| match exact {
        true => Precision::Exact(value),
        false => Precision::Inexact(value),
    };
    let bound = |side: &HashMap<i32, Datum>| scalar(side.get(&id)?)?.cast_to(kind).ok();
    let mut statistics = ColumnStatistics::new_unknown();
    if let (Some(lower), Some(upper)) = (bound(file.lower_bounds()), bound(file.upper_bounds())) {
        let exact = own && (kind != &DataType::Utf8View || lower == upper);
        (statistics.min_value, statistics.max_value) = (precision(exact, lower), precision(exact, upper));
    }
    if let Some(nulls) = file.null_value_counts().get(&id).filter(|_| own) {
        statistics.null_count = Precision::Exact(count(*nulls));
    }
    statistics
}

fn count(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// No row of the file is newer, microseconds since 1970, as far as its entry says.
pub(crate) fn newest_micros(schema: &TableSchema, file: &DataFile) -> Option<i64> {
    let column = schema.column(TIMESTAMP)?;
    match file.upper_bounds().get(&column.id).map(Datum::literal) {
        Some(PrimitiveLiteral::Long(at)) => Some(*at),
        _ => signaldb_lake::day_of(file).map(|day| (i64::from(day) + 1) * MICROS_A_DAY - 1),
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
        self.bounds(column, DataFile::lower_bounds, |day| day)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, DataFile::upper_bounds, |day| day + (MICROS_A_DAY - 1))
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

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{Expr, col, lit};
    use datafusion::prelude::SessionContext;
    use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Literal, Struct};
    use signaldb_signals::SignalTable;

    use super::*;
    use crate::views;

    const DAY: i32 = 20_000;
    const OWN: &str = "file:///t/data/timestamp_day=2024-10-04/1-019253b0-0000-7000-8000-000000000000-0.parquet";
    const FOREIGN: &str = "file:///t/data/00000-0.parquet";

    fn traces() -> &'static TableSchema {
        views::of(SignalTable::Traces)
    }

    fn id(column: &str) -> i32 {
        traces().column(column).expect("exists").id
    }

    fn file(path: &str, lower: &[(&str, Datum)], upper: &[(&str, Datum)]) -> DataFile {
        let bounds = |bounds: &[(&str, Datum)]| -> HashMap<i32, Datum> {
            bounds.iter().map(|(name, bound)| (id(name), bound.clone())).collect()
        };
        let mut builder = DataFileBuilder::default();
        builder
            .content(DataContentType::Data)
            .file_path(path.to_owned())
            .file_format(DataFileFormat::Parquet)
            .partition(Struct::from_iter([Some(Literal::date(DAY))]))
            .partition_spec_id(0)
            .record_count(10)
            .file_size_in_bytes(1)
            .null_value_counts(HashMap::from([(id("kind"), 10), (id("name"), 0)]))
            .lower_bounds(bounds(lower))
            .upper_bounds(bounds(upper));
        builder.build().expect("builds")
    }

    /// Whether a filter can match a file without bounds.
    fn can_match(filter: &Expr) -> bool {
        let file = file(FOREIGN, &[], &[]);
        let schema = datafusion::common::DFSchema::try_from(Arc::clone(&traces().arrow)).expect("converts");
        let filter = SessionContext::new().create_physical_expr(filter.clone(), &schema).expect("plans");
        !files(traces(), vec![&file], Some(filter)).expect("prunes").is_empty()
    }

    fn micros(at: i64) -> Expr {
        let kind = traces().arrow.field_with_name("timestamp").expect("exists").data_type();
        lit(ScalarValue::from(at).cast_to(kind).expect("converts"))
    }

    #[test]
    fn a_file_without_bounds_has_those_of_its_day() {
        let start = i64::from(DAY) * MICROS_A_DAY;
        assert!(can_match(&col("timestamp").gt_eq(micros(start + MICROS_A_DAY - 1))));
        assert!(!can_match(&col("timestamp").gt_eq(micros(start + MICROS_A_DAY))));
        assert!(can_match(&col("timestamp").lt_eq(micros(start))));
        assert!(!can_match(&col("timestamp").lt(micros(start))));
        assert!(can_match(&col("duration_nano").lt(lit(0_i64))), "nothing is said of others");
    }

    #[test]
    fn bounds_are_exact_where_they_cannot_be_cut() {
        let (lower, upper) = (Datum::string("a"), Datum::string("b"));
        let view = |text: &str| ScalarValue::Utf8View(Some(text.to_owned()));
        let times = |at| ("duration_nano", Datum::long(at));
        let at = |name: &str| traces().arrow.index_of(name).expect("exists");
        let columns = [at("duration_nano"), at("name"), at("kind")];
        let of = |path: &str, upper: &Datum| {
            let file = file(path, &[times(1), ("name", lower.clone())], &[times(5), ("name", upper.clone())]);
            statistics(traces(), &columns, &file)
        };
        let own = of(OWN, &upper);
        assert_eq!(own.num_rows, Precision::Exact(10));
        let duration = &own.column_statistics[at("duration_nano")];
        assert_eq!(duration.min_value, Precision::Exact(ScalarValue::from(1_i64)));
        assert_eq!(duration.max_value, Precision::Exact(ScalarValue::from(5_i64)));
        assert_eq!(own.column_statistics[at("name")].max_value, Precision::Inexact(view("b")));
        assert_eq!(own.column_statistics[at("kind")].null_count, Precision::Exact(10));
        assert_eq!(own.column_statistics[at("span_id")], ColumnStatistics::new_unknown(), "was not asked for");
        let same = of(OWN, &lower);
        assert_eq!(same.column_statistics[at("name")].max_value, Precision::Exact(view("a")));
        let foreign = of(FOREIGN, &lower);
        assert_eq!(foreign.column_statistics[at("name")].max_value, Precision::Inexact(view("a")));
        assert_eq!(foreign.column_statistics[at("duration_nano")].min_value, Precision::Inexact(1_i64.into()));
        assert_eq!(foreign.column_statistics[at("kind")].null_count, Precision::Absent);
    }
}
