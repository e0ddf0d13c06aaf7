//! Time travel: a table as it was in Iceberg at a moment, without the rows that were not flushed by then.
//!
//! `table_at('traces', TIMESTAMP '...')` and `table_at_snapshot('traces', id)` are tables; [`clause`] turns
//! `traces FOR TIMESTAMP AS OF ...` into them.

mod clause;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use signaldb_lake::metadata::{AsOf, AsOfError, Moment, snapshot_as_of};
use signaldb_lake::{Lake, copies_of};
use signaldb_model::{DatasetId, TableId};
use signaldb_signals::SignalTable;

use crate::error::{QueryError, QueryErrorKind, lake_error};
use crate::names::{CATALOG, TenantCatalog};
use crate::table::StoredTable;
use crate::{logical_view, views};

pub(crate) use clause::{parse, rewrite as rewrite_clauses};

const TABLE_AT: &str = "table_at";
const TABLE_AT_SNAPSHOT: &str = "table_at_snapshot";

/// The functions for one query, by name. Bare table names are of `dataset`.
pub(crate) fn functions(catalog: &Arc<TenantCatalog>, dataset: &DatasetId) -> Vec<(String, Arc<TableFunction>)> {
    let function = |name: &str, by| {
        let past = Past { catalog: Arc::clone(catalog), dataset: dataset.clone(), by };
        (name.to_owned(), Arc::new(TableFunction::new(name.to_owned(), Arc::new(past))))
    };
    vec![function(TABLE_AT, By::Time), function(TABLE_AT_SNAPSHOT, By::Snapshot)]
}

/// What the second argument is.
#[derive(Debug, Clone, Copy)]
enum By {
    Time,
    Snapshot,
}

#[derive(Debug)]
struct Past {
    catalog: Arc<TenantCatalog>,
    dataset: DatasetId,
    by: By,
}

impl TableFunctionImpl for Past {
    fn call_with_args(&self, arguments: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let (name, as_of) = arguments_of(self.by, arguments.exprs())?;
        let (dataset, table) = self.resolve(name).ok_or_else(|| invalid(format!("table '{name}' not found")))?;
        let snapshotter = &self.catalog.snapshotter;
        let id = TableId { tenant: snapshotter.tenant.clone(), dataset, code: table.code() };
        logical_view::over(views::of(table), Arc::new(PastTable { lake: snapshotter.lake.clone(), id, table, as_of }))
    }
}

impl Past {
    /// `table`, `dataset.table` or `signaldb.dataset.table`, as far as it exists for the caller.
    fn resolve(&self, name: &str) -> Option<(DatasetId, SignalTable)> {
        let parts: Vec<&str> = name.split('.').collect();
        let (dataset, table) = match parts[..] {
            [table] => (self.dataset.clone(), table),
            [dataset, table] | [CATALOG, dataset, table] => (self.catalog.dataset(dataset)?, table),
            _ => return None,
        };
        Some((dataset, SignalTable::from_name(table)?))
    }
}

fn arguments_of(by: By, arguments: &[Expr]) -> Result<(&str, AsOf), QueryError> {
    let wanted = match by {
        By::Time => "table_at takes a table's name and a time: table_at('traces', TIMESTAMP '2026-01-02T03:04:05Z')",
        By::Snapshot => {
            "table_at_snapshot takes a table's name and a snapshot's id (system.snapshots): table_at_snapshot('traces', 1)"
        }
    };
    let [Expr::Literal(table, _), Expr::Literal(when, _)] = arguments else { return Err(invalid(wanted)) };
    let as_of = match by {
        By::Time => milliseconds(when).map(|at| AsOf::Time(Moment(at))),
        By::Snapshot => snapshot_id(when).map(AsOf::Snapshot),
    };
    match (table.try_as_str().flatten(), as_of) {
        (Some(table), Some(as_of)) => Ok((table, as_of)),
        _ => Err(invalid(wanted)),
    }
}

/// Milliseconds since 1970 of a time, a date or a text that says one; without a zone they are UTC.
fn milliseconds(when: &ScalarValue) -> Option<i64> {
    if !(when.data_type().is_temporal() || when.try_as_str().is_some()) {
        return None;
    }
    let kind = DataType::Timestamp(TimeUnit::Nanosecond, Some("+00:00".into()));
    match when.cast_to(&kind).ok()? {
        // Downwards: what was committed later in the same millisecond is not yet there.
        ScalarValue::TimestampNanosecond(at, _) => at.map(|at| at.div_euclid(1_000_000)),
        _ => None,
    }
}

fn snapshot_id(id: &ScalarValue) -> Option<i64> {
    match id.cast_to(&DataType::Int64).ok()? {
        ScalarValue::Int64(id) => id,
        _ => None,
    }
}

fn invalid(message: impl Into<String>) -> QueryError {
    QueryError::new(QueryErrorKind::Invalid, message)
}

/// A stored table of the past. Nothing is read before it is scanned.
struct PastTable {
    lake: Lake,
    id: TableId,
    table: SignalTable,
    as_of: AsOf,
}

impl fmt::Debug for PastTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PastTable").field("id", &self.id).field("as_of", &self.as_of).finish_non_exhaustive()
    }
}

impl PastTable {
    async fn load(&self) -> Result<StoredTable, QueryError> {
        let found = self.lake.current_table(&self.id.namespace(), self.table.name()).await.map_err(lake_error)?;
        let Some((_, metadata)) = found else {
            // Its tables are made on a tenant's first request, a moment later.
            let error = match self.as_of {
                AsOf::Time(asked) => AsOfError::NoSnapshotYet(asked),
                AsOf::Snapshot(id) => AsOfError::UnknownSnapshot(id),
            };
            return Err(invalid(error.to_string()));
        };
        let snapshot = snapshot_as_of(&metadata, self.as_of).map_err(|error| invalid(error.to_string()))?;
        // Which attributes have columns is known now, and which columns a file has says the file.
        let mut stored = StoredTable::new(self.table, copies_of(&metadata))?;
        stored.files = self.lake.snapshot_files(&metadata, &snapshot).await.map_err(lake_error)?;
        stored.catalog_reads = 1;
        Ok(stored)
    }
}

#[async_trait]
impl TableProvider for PastTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&views::of(self.table).arrow)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// As for the table of the present.
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
        // Columns by promotion are those of the present: here they only serve filters on the attributes.
        let own: Vec<usize> = (0..self.schema().fields().len()).collect();
        self.load().await?.scan(state, Some(projection.unwrap_or(&own)), filters, limit).await
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::lit;

    use super::*;

    #[test]
    fn times_are_floored_to_the_milliseconds_that_snapshots_have() {
        let nanoseconds = |at, zone: Option<&str>| ScalarValue::TimestampNanosecond(at, zone.map(Into::into));
        for (when, expected) in [
            (nanoseconds(Some(1_999_999), None), Some(1)),
            (nanoseconds(Some(2_000_000), Some("+00:00")), Some(2)),
            (nanoseconds(None, None), None),
            (ScalarValue::from("1970-01-01T00:00:01.5Z"), Some(1500)),
            (ScalarValue::from("1970-01-01 00:00:01"), Some(1000)),
            (ScalarValue::from("1970-01-01T01:00:00+01:00"), Some(0)),
            (ScalarValue::from("yesterday"), None),
            (ScalarValue::from(5_i64), None),
        ] {
            assert_eq!(milliseconds(&when), expected, "{when:?}");
        }
    }

    #[test]
    fn arguments_are_a_name_and_a_moment() {
        let arguments = [lit("d.traces"), lit(7_i64)];
        let found = arguments_of(By::Snapshot, &arguments).expect("reads");
        assert_eq!(found, ("d.traces", AsOf::Snapshot(7)));
        let bad: &[&[Expr]] = &[&[], &[lit("traces")], &[lit(1_i64), lit(1_i64)], &[lit("traces"), lit("x")]];
        for arguments in bad {
            assert!(arguments_of(By::Snapshot, arguments).is_err(), "{arguments:?}");
            assert!(arguments_of(By::Time, arguments).is_err(), "{arguments:?}");
        }
    }
}
