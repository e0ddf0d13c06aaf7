//! The table as people see it: ids as hex text, attribute maps whole, encoding helpers left out.
//!
//! It is a projection over the stored table, inlined into every query; [`crate::rewrite`] turns comparisons of its
//! expressions back into comparisons of columns, so that files and row groups are still pruned.

use std::sync::{Arc, LazyLock};

use datafusion::catalog::TableProvider;
use datafusion::common::Result;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, ScalarUDF, ident};
use signaldb_signals::promoted::Promoted;
use signaldb_signals::schema::{Column, ColumnKind, TableSchema};
use signaldb_signals::{SignalTable, promoted_into};

use crate::functions::{Attribute, Attributes, HexId};

pub(crate) static HEX_ID: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(ScalarUDF::from(HexId::new())));
pub(crate) static ATTRIBUTES: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(ScalarUDF::from(Attributes::new())));
pub(crate) static ATTRIBUTE: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(ScalarUDF::from(Attribute::new())));

pub(crate) fn over(schema: &TableSchema, stored: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>> {
    let columns = schema.columns.iter().filter(|column| !column.is_helper());
    let expressions: Vec<Expr> = columns.map(|column| expression(schema.table, column)).collect();
    let name = format!("stored_{}", schema.table.name());
    let plan = LogicalPlanBuilder::scan(name, provider_as_source(stored), None)?.project(expressions)?.build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

fn expression(table: SignalTable, column: &Column) -> Expr {
    let (name, promoted) = (column.name.as_str(), promoted_into(table, column));
    match &column.kind {
        ColumnKind::Fixed(_) => HEX_ID.call(vec![ident(name)]).alias(name),
        ColumnKind::Map { .. } if !promoted.is_empty() => {
            let column = |promoted: &Promoted| ident(promoted.column);
            let arguments = std::iter::once(ident(name)).chain(promoted.iter().map(column)).collect();
            ATTRIBUTES.call(arguments).alias(name)
        }
        _ => ident(name),
    }
}
