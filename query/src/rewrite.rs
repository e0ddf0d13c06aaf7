//! Collapses the logical view's expressions back to stored columns, before filters are pushed down.
//!
//! | in | out |
//! |---|---|
//! | `signaldb_hex_id(trace_id) = '4bf9..'` | `trace_id = 0x4bf9..` |
//! | `signaldb_hex_id(trace_id) IN (..)` | `trace_id IN (..)` |
//! | `signaldb_hex_id(trace_id) IS NULL` | `trace_id IS NULL` |
//! | `signaldb_attributes(m, ..)['http.route']` | `signaldb_attribute(http_route, m['http.route'])` |
//! | `signaldb_attributes(m, ..)['k']` | `m['k']` |
//! | `m['k']` with `'k'` as a view | `m['k']` |
//!
//! What becomes of `signaldb_attribute` depends on the data file: [`crate::whole`].

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::{InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, lit};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use crate::functions::{self, promoted_list, unhex};
use crate::logical_view::ATTRIBUTE;

/// The rule; runs before `push_down_filter` in each optimizer pass.
#[derive(Debug)]
pub(crate) struct CollapseView;

impl OptimizerRule for CollapseView {
    fn name(&self) -> &str {
        "collapse_logical_view"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let names = NamePreserver::new(&plan);
        let rewritten = plan.map_expressions(|expression| {
            let name = names.save(&expression);
            Ok(expression.transform_up(collapse)?.update_data(|expression| name.restore(expression)))
        })?;
        if rewritten.transformed { rewritten.map_data(LogicalPlan::recompute_schema) } else { Ok(rewritten) }
    }
}

fn collapse(expression: Expr) -> Result<Transformed<Expr>> {
    Ok(match expression {
        Expr::BinaryExpr(binary) => match collapse_comparison(&binary) {
            Some(collapsed) => Transformed::yes(collapsed),
            None => Transformed::no(Expr::BinaryExpr(binary)),
        },
        Expr::InList(list) => match collapse_in_list(&list) {
            Some(collapsed) => Transformed::yes(collapsed),
            None => Transformed::no(Expr::InList(list)),
        },
        Expr::ScalarFunction(function) => match collapse_get_field(&function) {
            Some(collapsed) => Transformed::yes(collapsed),
            None => Transformed::no(Expr::ScalarFunction(function)),
        },
        Expr::IsNull(id) => match hex_column(&id) {
            Some((column, _)) => Transformed::yes(column.clone().is_null()),
            None => Transformed::no(Expr::IsNull(id)),
        },
        Expr::IsNotNull(id) => match hex_column(&id) {
            Some((column, _)) => Transformed::yes(column.clone().is_not_null()),
            None => Transformed::no(Expr::IsNotNull(id)),
        },
        other => Transformed::no(other),
    })
}

/// The text of a literal.
pub(crate) fn text(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    }
}

/// What an expression of the view's columns collapses to, if it does.
pub(crate) fn collapsed(expression: Expr) -> Option<Expr> {
    collapse(expression).ok().filter(|collapsed| collapsed.transformed).map(|collapsed| collapsed.data)
}

/// The id column under a hex call, with its length in bytes.
pub(crate) fn hex_column(expression: &Expr) -> Option<(&Expr, usize)> {
    let Expr::ScalarFunction(function) = expression else { return None };
    let [column @ Expr::Column(inner)] = function.args.as_slice() else { return None };
    if function.func.name() != functions::HEX_ID {
        return None;
    }
    Some((column, if inner.name == "trace_id" { 16 } else { 8 }))
}

fn id_literal(hex: &str, bytes: usize) -> Option<Expr> {
    let id = unhex(hex, bytes)?;
    Some(Expr::Literal(ScalarValue::FixedSizeBinary(i32::try_from(bytes).ok()?, Some(id)), None))
}

/// What a comparison of `column` with a value that it cannot have comes to: null stays null.
pub(crate) fn false_or_null(column: &Expr) -> Expr {
    column.clone().is_null().and(lit(ScalarValue::Boolean(None)))
}

fn collapse_comparison(binary: &BinaryExpr) -> Option<Expr> {
    let (left, right) = (hex_column(&binary.left), hex_column(&binary.right));
    let ((column, bytes), hex) = match (left, right) {
        (Some(id), None) => (id, text(&binary.right)?),
        (None, Some(id)) => (id, text(&binary.left)?),
        _ => return None,
    };
    match (binary.op, id_literal(hex, bytes)) {
        (Operator::Eq, Some(id)) => Some(column.clone().eq(id)),
        (Operator::NotEq, Some(id)) => Some(column.clone().not_eq(id)),
        // A text that is no id equals none.
        (Operator::Eq, None) => Some(false_or_null(column)),
        _ => None,
    }
}

fn collapse_in_list(list: &InList) -> Option<Expr> {
    let (column, bytes) = hex_column(&list.expr)?;
    let ids = list.list.iter().map(|item| id_literal(text(item)?, bytes)).collect::<Option<Vec<_>>>()?;
    Some(Expr::InList(InList { expr: Box::new(column.clone()), list: ids, negated: list.negated }))
}

fn collapse_get_field(function: &ScalarFunction) -> Option<Expr> {
    let [map, key] = function.args.as_slice() else { return None };
    let key_text = text(key).filter(|_| function.func.name() == "get_field")?;
    let value_in = |map: &Expr| {
        Expr::ScalarFunction(ScalarFunction { args: vec![map.clone(), lit(key_text)], ..function.clone() })
    };
    let (map, columns) = match map {
        Expr::ScalarFunction(view) if view.func.name() == functions::ATTRIBUTES => view.args.split_first()?,
        // The keys of maps are no views, and are compared with what they are.
        map => return (*key != lit(key_text)).then(|| value_in(map)),
    };
    let in_map = value_in(map);
    let at = promoted_list(columns.len()).iter().position(|promoted| promoted.key == key_text);
    match at {
        Some(at) => Some(ATTRIBUTE.call(vec![columns.get(at)?.clone(), in_map])),
        None => Some(in_map),
    }
}
