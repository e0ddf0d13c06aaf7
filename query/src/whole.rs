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
//! flushed, the filter stays as it is. For attributes that an operator promoted it is the same (ADR 13):
//!
//! | in | where the column is whole |
//! |---|---|
//! | `m['tenant.plan'] = 'gold'` | `attr_tenant_plan = 'gold'` |
//! | `m['retries'] = '3'` | `attr_retries = 3` |
//! | `m['cached'] = 'true'` | `attr_cached = true` |
//!
//! A filter on such a column becomes one on the map where rows do not have the column: [`crate::copies`].
//!
//! Attributes are `Utf8` and the columns of texts are views: whoever plans what comes out has to coerce the types, as the
//! session does.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, Operator, TryCast, cast, lit};
use iceberg::spec::DataFile;
use signaldb_signals::copies::{boolean, integer};
use signaldb_signals::schema::TableSchema;

use crate::copies::Copies;
use crate::functions;
use crate::rewrite::{false_or_null, text};

/// Files in which the same columns are whole and the same copies absent, and what the filters come to there.
pub(crate) struct Part<'a> {
    pub(crate) files: Vec<&'a DataFile>,
    pub(crate) filters: Vec<Expr>,
    /// Copies that the rows of the files do not have.
    pub(crate) absent: BTreeSet<&'a str>,
}

/// Splits `files` by what `filters` come to in them, and by which of the copies in `named` they have.
///
/// # Errors
/// None but what walking an expression may have.
pub(crate) fn split<'a>(
    schema: &TableSchema,
    copies: &'a Copies,
    named: &BTreeSet<&'a str>,
    filters: &[Expr],
    files: Vec<&'a DataFile>,
) -> Result<Vec<Part<'a>>> {
    let asked = asked(filters, copies)?;
    let mut parts: BTreeMap<(BTreeSet<&str>, BTreeSet<&'a str>), Vec<&'a DataFile>> = BTreeMap::new();
    for file in files {
        let is_whole = |name: &&str| schema.column(name).is_some_and(|column| signaldb_lake::is_whole(file, column));
        let whole = asked.iter().map(String::as_str).filter(is_whole).collect();
        parts.entry((whole, copies.absent(named, file))).or_default().push(file);
    }
    let mut out = Vec::new();
    for ((whole, absent), files) in parts {
        let collapsed = |filter: &Expr| copies.without(&absent, collapse(filter.clone(), schema, copies, &whole)?);
        let filters = filters.iter().map(collapsed).collect::<Result<_>>()?;
        out.push(Part { files, filters, absent });
    }
    Ok(out)
}

/// The promoted columns whose attributes the filters ask for.
fn asked(filters: &[Expr], copies: &Copies) -> Result<BTreeSet<String>> {
    let mut columns = BTreeSet::new();
    for filter in filters {
        filter.apply(|expression| {
            columns.extend(promoted_column(expression, copies).map(|column| column.name));
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(columns)
}

/// The column of the attribute that the expression asks for: one in a call of `signaldb_attribute`, or a copy.
fn promoted_column(expression: &Expr, copies: &Copies) -> Option<Column> {
    let Expr::ScalarFunction(call) = expression else { return None };
    match call.args.as_slice() {
        [Expr::Column(column), _] if call.func.name() == functions::ATTRIBUTE => Some(column.clone()),
        _ => copies.column_of(expression).map(|column| Column::from_name(&column.name)),
    }
}

fn collapse(filter: Expr, schema: &TableSchema, copies: &Copies, whole: &BTreeSet<&str>) -> Result<Expr> {
    let step = |expression: Expr| {
        Ok(match collapsed(&expression, schema, copies, whole) {
            Some(collapsed) => Transformed::yes(collapsed),
            None => Transformed::no(expression),
        })
    };
    Ok(filter.transform_up(step)?.data)
}

/// One step; what is inside the expression is collapsed already.
fn collapsed(expression: &Expr, schema: &TableSchema, copies: &Copies, whole: &BTreeSet<&str>) -> Option<Expr> {
    match expression {
        Expr::ScalarFunction(_) => {
            let column = promoted_column(expression, copies).filter(|column| whole.contains(column.name.as_str()))?;
            let column = Expr::Column(column);
            Some(if typed(&column, schema).is_some() { cast(column, DataType::Utf8) } else { column })
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let ((column, kind), value) = match (as_text(left, schema), as_text(right, schema)) {
                (Some(column), None) => (column, text(right)?),
                (None, Some(column)) => (column, text(left)?),
                _ => return None,
            };
            match (op, kind.literal(value)) {
                (Operator::Eq, Some(value)) => Some(column.clone().eq(value)),
                (Operator::NotEq, Some(value)) => Some(column.clone().not_eq(value)),
                (Operator::Eq, None) => Some(false_or_null(column)),
                _ => None,
            }
        }
        Expr::InList(InList { expr, list, negated }) => {
            let (column, kind) = as_text(expr, schema)?;
            let values = list.iter().map(|item| kind.literal(text(item)?)).collect::<Option<Vec<_>>>()?;
            Some(Expr::InList(InList { expr: Box::new(column.clone()), list: values, negated: *negated }))
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if field.data_type() == &DataType::Int64 =>
        {
            as_text(expr, schema).filter(|(_, kind)| *kind == Typed::Integer).map(|(column, _)| column.clone())
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if field.data_type() == &DataType::Float64 =>
        {
            as_text(expr, schema)
                .filter(|(_, kind)| *kind == Typed::Integer)
                .map(|(column, _)| cast(column.clone(), DataType::Float64))
        }
        _ => None,
    }
}

/// Types whose values have one text each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Typed {
    Integer,
    Boolean,
}

impl Typed {
    /// The value that has this text; `+1` and `01` are the text of none.
    fn literal(self, text: &str) -> Option<Expr> {
        match self {
            Self::Integer => integer(text).map(lit),
            Self::Boolean => boolean(text).map(lit),
        }
    }
}

fn typed(column: &Expr, schema: &TableSchema) -> Option<Typed> {
    let Expr::Column(column) = column else { return None };
    match schema.arrow.field_with_name(&column.name).ok()?.data_type() {
        DataType::Int64 => Some(Typed::Integer),
        DataType::Boolean => Some(Typed::Boolean),
        _ => None,
    }
}

/// The column whose values' text the expression is.
fn as_text<'a>(expression: &'a Expr, schema: &TableSchema) -> Option<(&'a Expr, Typed)> {
    match expression {
        Expr::Cast(Cast { expr, field }) if matches!(field.data_type(), DataType::Utf8 | DataType::Utf8View) => {
            Some((expr.as_ref(), typed(expr, schema)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{col, try_cast};

    use super::*;
    use crate::copies;
    use crate::copies::tests::in_map;
    use crate::logical_view::ATTRIBUTE;

    fn attribute(column: &str) -> Expr {
        ATTRIBUTE.call(vec![col(column), col("in_map")])
    }

    fn check(filter: Expr, expected: Expr) {
        let whole = BTreeSet::from(["http_route", "server_port", "attr_tenant_plan", "attr_retries", "attr_cached"]);
        let (schema, copies) = copies::tests::example();
        let collapsed = collapse(filter.clone(), &schema, &copies, &whole).expect("collapses");
        assert_eq!(collapsed, expected, "{filter}");
    }

    #[test]
    fn filters_on_attributes_that_an_operator_promoted_become_filters_on_columns() {
        let attribute = |key: &str| in_map("attributes", key);
        check(attribute("tenant.plan").eq(lit("gold")), col("attr_tenant_plan").eq(lit("gold")));
        check(attribute("tenant.plan").is_null(), col("attr_tenant_plan").is_null());
        check(attribute("retries").eq(lit("3")), col("attr_retries").eq(lit(3_i64)));
        check(lit("03").eq(attribute("retries")), false_or_null(&col("attr_retries")));
        check(cast(attribute("retries"), DataType::Int64).gt(lit(2_i64)), col("attr_retries").gt(lit(2_i64)));
        check(attribute("cached").not_eq(lit("true")), col("attr_cached").not_eq(lit(true)));
        check(attribute("cached").eq(lit("True")), false_or_null(&col("attr_cached")));
        let number = cast(cast(col("attr_cached"), DataType::Utf8), DataType::Int64);
        check(cast(attribute("cached"), DataType::Int64).eq(lit(1_i64)), number.eq(lit(1_i64)));
        // A double is written in more than one way.
        for other in [attribute("cost").eq(lit("1.5")), in_map("scope_attributes", "tenant.plan").is_null()] {
            check(other.clone(), other);
        }
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
        check(cast(col("server_port"), DataType::Utf8View).eq(lit("80")), col("server_port").eq(lit(80_i64)));
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
        let copies = Copies::default();
        let names: Vec<String> =
            asked(&[filter, attribute("http_route").is_null()], &copies).expect("walks").into_iter().collect();
        assert_eq!(names, ["http_route", "url_path"]);
    }
}
