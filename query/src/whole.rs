//! Filters on promoted attributes, in files whose columns have all values of them (ADR 12).
//!
//! | in | where the column is whole |
//! |---|---|
//! | `signaldb_attribute(http_route, m['http.route']) = '/x'` | `http_route = '/x'` |
//! | `signaldb_attribute(server_port, m['server.port']) = '80'` | `server_port = 80` |
//! | `CAST(signaldb_attribute(server_port, ..) AS BIGINT) > 80` | `server_port > 80` |
//! | `TRY_CAST(signaldb_attribute(server_port, ..) AS DOUBLE) > 80` | `CAST(server_port AS DOUBLE) > 80` |
//!
//! Then bounds, row groups and pages are pruned, and the map is not read. In other files, and for rows that are not
//! flushed, the filter stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, Operator, TryCast, cast, lit};
use iceberg::spec::DataFile;
use signaldb_signals::schema::TableSchema;

use crate::functions;
use crate::rewrite::{false_or_null, text};

/// Files in which the same columns are whole, and what the filters come to there.
pub(crate) struct Part<'a> {
    pub(crate) files: Vec<&'a DataFile>,
    pub(crate) filters: Vec<Expr>,
}

/// Splits `files` by what `filters` come to in them.
///
/// # Errors
/// None but what walking an expression may have.
pub(crate) fn split<'a>(schema: &TableSchema, filters: &[Expr], files: Vec<&'a DataFile>) -> Result<Vec<Part<'a>>> {
    let asked = asked(filters)?;
    let mut parts: BTreeMap<BTreeSet<&str>, Vec<&'a DataFile>> = BTreeMap::new();
    for file in files {
        let is_whole = |name: &&str| schema.column(name).is_some_and(|column| signaldb_lake::is_whole(file, column.id));
        let whole = asked.iter().map(String::as_str).filter(is_whole).collect();
        parts.entry(whole).or_default().push(file);
    }
    let part = |(whole, files): (BTreeSet<&str>, Vec<&'a DataFile>)| {
        let filters = filters.iter().map(|filter| collapse(filter.clone(), schema, &whole)).collect::<Result<_>>()?;
        Ok(Part { files, filters })
    };
    parts.into_iter().map(part).collect()
}

/// The promoted columns whose attributes the filters ask for.
fn asked(filters: &[Expr]) -> Result<BTreeSet<String>> {
    let mut columns = BTreeSet::new();
    for filter in filters {
        filter.apply(|expression| {
            columns.extend(promoted_column(expression).map(|column| column.name.clone()));
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(columns)
}

/// The column in a call of `signaldb_attribute`.
fn promoted_column(expression: &Expr) -> Option<&Column> {
    let Expr::ScalarFunction(call) = expression else { return None };
    match call.args.as_slice() {
        [Expr::Column(column), _] if call.func.name() == functions::ATTRIBUTE => Some(column),
        _ => None,
    }
}

fn collapse(filter: Expr, schema: &TableSchema, whole: &BTreeSet<&str>) -> Result<Expr> {
    let step = |expression: Expr| {
        Ok(match collapsed(&expression, schema, whole) {
            Some(collapsed) => Transformed::yes(collapsed),
            None => Transformed::no(expression),
        })
    };
    Ok(filter.transform_up(step)?.data)
}

/// One step; what is inside the expression is collapsed already.
fn collapsed(expression: &Expr, schema: &TableSchema, whole: &BTreeSet<&str>) -> Option<Expr> {
    match expression {
        Expr::ScalarFunction(_) => {
            let column = promoted_column(expression).filter(|column| whole.contains(column.name.as_str()))?;
            let column = Expr::Column(column.clone());
            Some(if is_integer(&column, schema) { cast(column, DataType::Utf8) } else { column })
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, value) = match (integer_as_text(left, schema), integer_as_text(right, schema)) {
                (Some(column), None) => (column, text(right)?),
                (None, Some(column)) => (column, text(left)?),
                _ => return None,
            };
            match (op, integer(value)) {
                (Operator::Eq, Some(value)) => Some(column.clone().eq(lit(value))),
                (Operator::NotEq, Some(value)) => Some(column.clone().not_eq(lit(value))),
                (Operator::Eq, None) => Some(false_or_null(column)),
                _ => None,
            }
        }
        Expr::InList(InList { expr, list, negated }) => {
            let column = integer_as_text(expr, schema)?;
            let values = list.iter().map(|item| Some(lit(integer(text(item)?)?))).collect::<Option<Vec<_>>>()?;
            Some(Expr::InList(InList { expr: Box::new(column.clone()), list: values, negated: *negated }))
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if field.data_type() == &DataType::Int64 =>
        {
            integer_as_text(expr, schema).cloned()
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if field.data_type() == &DataType::Float64 =>
        {
            integer_as_text(expr, schema).map(|column| cast(column.clone(), DataType::Float64))
        }
        _ => None,
    }
}

fn is_integer(column: &Expr, schema: &TableSchema) -> bool {
    let Expr::Column(column) = column else { return false };
    schema.arrow.field_with_name(&column.name).is_ok_and(|field| field.data_type() == &DataType::Int64)
}

/// The integer column whose text the expression is.
fn integer_as_text<'a>(expression: &'a Expr, schema: &TableSchema) -> Option<&'a Expr> {
    match expression {
        Expr::Cast(Cast { expr, field }) if field.data_type() == &DataType::Utf8 && is_integer(expr, schema) => {
            Some(expr)
        }
        _ => None,
    }
}

/// The integer that has this text; `+1` and `01` are the text of none.
fn integer(text: &str) -> Option<i64> {
    text.parse().ok().filter(|value: &i64| value.to_string() == text)
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{col, try_cast};
    use signaldb_signals::{SignalTable, schema};

    use super::*;
    use crate::logical_view::ATTRIBUTE;

    fn attribute(column: &str) -> Expr {
        ATTRIBUTE.call(vec![col(column), col("in_map")])
    }

    fn check(filter: Expr, expected: Expr) {
        let whole = BTreeSet::from(["http_route", "server_port"]);
        let collapsed = collapse(filter.clone(), schema::of(SignalTable::Traces), &whole).expect("collapses");
        assert_eq!(collapsed, expected, "{filter}");
    }

    #[test]
    fn filters_on_whole_columns_become_filters_on_columns() {
        check(attribute("http_route").eq(lit("/x")), col("http_route").eq(lit("/x")));
        check(attribute("http_route").is_null(), col("http_route").is_null());
        let either = attribute("http_route").eq(lit("/x")).or(col("name").eq(lit("n")));
        check(either, col("http_route").eq(lit("/x")).or(col("name").eq(lit("n"))));
        check(attribute("server_port").eq(lit("80")), col("server_port").eq(lit(80_i64)));
        check(lit("80").not_eq(attribute("server_port")), col("server_port").not_eq(lit(80_i64)));
        check(attribute("server_port").eq(lit("080")), false_or_null(&col("server_port")));
        let list = |column: Expr, items: Vec<Expr>| column.in_list(items, false);
        check(
            list(attribute("server_port"), vec![lit("80"), lit("443")]),
            list(col("server_port"), vec![lit(80_i64), lit(443_i64)]),
        );
        check(cast(attribute("server_port"), DataType::Int64).gt(lit(80_i64)), col("server_port").gt(lit(80_i64)));
        check(
            try_cast(attribute("server_port"), DataType::Float64).gt(lit(80.0)),
            cast(col("server_port"), DataType::Float64).gt(lit(80.0)),
        );
    }

    #[test]
    fn what_is_not_about_a_whole_column_stays() {
        for filter in
            [attribute("url_path").eq(lit("/x")), col("in_map").eq(lit("/x")), col("server_port").eq(lit(80_i64))]
        {
            check(filter.clone(), filter);
        }
        // As texts they compare otherwise than as integers.
        let text = cast(col("server_port"), DataType::Utf8);
        check(attribute("server_port").lt(lit("9")), text.clone().lt(lit("9")));
        check(attribute("server_port").not_eq(lit("x")), text.clone().not_eq(lit("x")));
        check(attribute("server_port").in_list(vec![lit("x")], true), text.in_list(vec![lit("x")], true));
    }

    #[test]
    fn the_columns_that_are_asked_for_are_found_at_any_depth() {
        let filter = attribute("http_route").eq(lit("/x")).or(attribute("url_path").is_null()).is_true();
        let names: Vec<String> =
            asked(&[filter, attribute("http_route").is_null()]).expect("walks").into_iter().collect();
        assert_eq!(names, ["http_route", "url_path"]);
    }
}
