//! Computes what a plan asks of the logical view's columns below the view, from stored columns.
//!
//! | above the view | becomes | for which the view computes |
//! |---|---|---|
//! | `GROUP BY attributes['order.id']` | `GROUP BY one` | `m['order.id'] AS one` in place of the whole map |
//! | `JOIN .. ON l.trace_id = r.trace_id` | `ON l.raw = r.raw` | `trace_id AS raw`, 16 bytes in place of 32 letters |
//!
//! Filters need none of this: DataFusion pushes them below the view, where [`crate::rewrite`] collapses them.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::functions::core::get_field;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan, Projection, SubqueryAlias, lit};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use crate::functions::ATTRIBUTES;
use crate::rewrite::{collapsed, hex_column, text};

/// The rule; runs before `push_down_filter` in each optimizer pass.
#[derive(Debug)]
pub(crate) struct ComputeBelowView;

impl OptimizerRule for ComputeBelowView {
    fn name(&self) -> &str {
        "compute_below_logical_view"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let rewritten = match &plan {
            LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) => attributes_below(&plan)?,
            LogicalPlan::Join(join) => ids_below(join)?,
            _ => None,
        };
        Ok(rewritten.map_or_else(|| Transformed::no(plan), Transformed::yes))
    }
}

/// What is asked of a column of the view.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// The attribute of this key, of a map.
    Attribute(String),
    /// The bytes of an id.
    Raw,
}

impl Asked {
    /// From the view's expression for the column, if that is one which more than this would have to be computed for.
    fn of(&self, shown: &Expr) -> Option<Expr> {
        match (self, shown) {
            (Self::Raw, _) => hex_column(shown).map(|(column, _)| column.clone()),
            (Self::Attribute(key), Expr::ScalarFunction(call)) if call.func.name() == ATTRIBUTES => {
                collapsed(get_field().call(vec![shown.clone(), lit(key.as_str())]))
            }
            (Self::Attribute(_), _) => None,
        }
    }

    /// Of the new column beside `column`.
    fn name(&self, column: &str) -> String {
        match self {
            Self::Attribute(key) => format!("__{column}['{key}']"),
            Self::Raw => format!("__raw_{column}"),
        }
    }
}

/// Columns and what is asked of them, and the columns that have it.
type Answers = BTreeMap<(Column, Asked), Column>;

/// `plan` with attributes of its input's maps as columns of their own.
fn attributes_below(plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let mut asked = Vec::new();
    for expression in plan.expressions() {
        if matches!(expression, Expr::GroupingSet(_)) {
            // It has no name to keep.
            return Ok(None);
        }
        expression.apply(|part| {
            asked.extend(attribute_of(part));
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    let [input] = plan.inputs()[..] else { return Ok(None) };
    let Some((input, answers)) = exposed(input, asked)? else { return Ok(None) };
    let names = NamePreserver::new(plan);
    let answer = |expression: Expr| {
        let name = names.save(&expression);
        let answered = expression.transform_up(|part| {
            let found = attribute_of(&part).and_then(|asked| answers.get(&asked));
            Ok(found.map_or_else(|| Transformed::no(part), |column| Transformed::yes(Expr::Column(column.clone()))))
        })?;
        Ok(answered.update_data(|expression| name.restore(expression)).data)
    };
    let expressions = plan.expressions().into_iter().map(answer).collect::<Result<_>>()?;
    plan.with_new_exprs(expressions, vec![input]).map(Some)
}

/// `map['key']` of a column.
fn attribute_of(expression: &Expr) -> Option<(Column, Asked)> {
    let Expr::ScalarFunction(call) = expression else { return None };
    let [Expr::Column(map), key] = call.args.as_slice() else { return None };
    let key = text(key).filter(|_| call.func.name() == "get_field")?;
    Some((map.clone(), Asked::Attribute(key.to_owned())))
}

/// The join by the bytes of ids wherever it is by their hex.
fn ids_below(join: &Join) -> Result<Option<LogicalPlan>> {
    let mut pairs = Vec::new();
    for (at, (left, right)) in join.on.iter().enumerate() {
        let (Expr::Column(left), Expr::Column(right)) = (left, right) else { continue };
        let lengths = (id_bytes(&join.left, left), id_bytes(&join.right, right));
        if matches!(lengths, (Some(left), Some(right)) if left == right) {
            pairs.push((at, (left.clone(), Asked::Raw), (right.clone(), Asked::Raw)));
        }
    }
    let lefts = pairs.iter().map(|(_, left, _)| left.clone()).collect();
    let rights = pairs.iter().map(|(.., right)| right.clone()).collect();
    let (Some((left, of_left)), Some((right, of_right))) = (exposed(&join.left, lefts)?, exposed(&join.right, rights)?)
    else {
        return Ok(None);
    };
    let mut on = join.on.clone();
    for (at, left, right) in pairs {
        if let (Some(left), Some(right)) = (of_left.get(&left), of_right.get(&right)) {
            on[at] = (Expr::Column(left.clone()), Expr::Column(right.clone()));
        }
    }
    // Without it, if names were to clash.
    let Ok(joined) = Join::try_new(
        Arc::new(left),
        Arc::new(right),
        on,
        join.filter.clone(),
        join.join_type,
        join.join_constraint,
        join.null_equality,
        join.null_aware,
    ) else {
        return Ok(None);
    };
    // Whoever reads the join sees what it saw before.
    let shown = join.schema.columns().into_iter().map(Expr::Column).collect();
    Ok(Some(LogicalPlan::Projection(Projection::try_new(shown, Arc::new(LogicalPlan::Join(joined)))?)))
}

/// How many bytes the id has that a plan shows as hex in a column.
fn id_bytes(plan: &LogicalPlan, column: &Column) -> Option<usize> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let at = projection.schema.maybe_index_of_column(column)?;
            match unaliased(&projection.expr[at]) {
                Expr::Column(column) => id_bytes(&projection.input, column),
                shown => hex_column(shown).map(|(_, bytes)| bytes),
            }
        }
        LogicalPlan::SubqueryAlias(alias) => id_bytes(&alias.input, &inner(alias, column)?),
        LogicalPlan::Filter(filter) => id_bytes(&filter.input, column),
        _ => None,
    }
}

/// `plan` with a column more for each that is `asked` and that a view below it can compute; `None` if there is none.
fn exposed(plan: &LogicalPlan, mut asked: Vec<(Column, Asked)>) -> Result<Option<(LogicalPlan, Answers)>> {
    asked.sort();
    asked.dedup();
    if asked.is_empty() {
        return Ok(None);
    }
    match plan {
        LogicalPlan::Projection(projection) => in_projection(projection, asked),
        LogicalPlan::SubqueryAlias(alias) => {
            let within = |(column, asked): &(Column, Asked)| Some((inner(alias, column)?, asked.clone()));
            let Some((input, answers)) = exposed(&alias.input, asked.iter().filter_map(within).collect())? else {
                return Ok(None);
            };
            let outer = |one: &(Column, Asked)| {
                let answer = answers.get(&within(one)?)?;
                Some((one.clone(), Column::new(Some(alias.alias.clone()), answer.name.clone())))
            };
            let answers = asked.iter().filter_map(outer).collect();
            let alias = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
            Ok(Some((LogicalPlan::SubqueryAlias(alias), answers)))
        }
        LogicalPlan::Filter(filter) => {
            let Some((input, answers)) = exposed(&filter.input, asked)? else { return Ok(None) };
            let filter = Filter::try_new(filter.predicate.clone(), Arc::new(input))?;
            Ok(Some((LogicalPlan::Filter(filter), answers)))
        }
        _ => Ok(None),
    }
}

fn in_projection(projection: &Projection, asked: Vec<(Column, Asked)>) -> Result<Option<(LogicalPlan, Answers)>> {
    let (mut expressions, mut answers) = (projection.expr.clone(), Answers::new());
    let mut passed = Vec::new();
    for (column, what) in asked {
        let Some(at) = projection.schema.maybe_index_of_column(&column) else { continue };
        let name = what.name(&column.name);
        match unaliased(&projection.expr[at]) {
            Expr::Column(below) => passed.push((column, what, below.clone())),
            shown => {
                let Some(computed) = what.of(shown) else { continue };
                if with(&mut expressions, computed.alias(&name)) {
                    answers.insert((column, what), Column::from_name(name));
                }
            }
        }
    }
    let below = passed.iter().map(|(_, what, below)| (below.clone(), what.clone())).collect();
    let mut input = Arc::clone(&projection.input);
    if let Some((exposing, found)) = exposed(&projection.input, below)? {
        input = Arc::new(exposing);
        for (column, what, below) in passed {
            let Some(answer) = found.get(&(below, what.clone())) else { continue };
            if with(&mut expressions, Expr::Column(answer.clone())) {
                answers.insert((column, what), answer.clone());
            }
        }
    }
    if answers.is_empty() {
        return Ok(None);
    }
    Ok(Some((LogicalPlan::Projection(Projection::try_new(expressions, input)?), answers)))
}

/// Has `expressions` yield `one`; says whether they do. They do not where something else has its name.
fn with(expressions: &mut Vec<Expr>, one: Expr) -> bool {
    let (_, name) = one.qualified_name();
    match expressions.iter().find(|other| other.qualified_name().1 == name) {
        Some(other) => *other == one,
        None => {
            expressions.push(one);
            true
        }
    }
}

fn unaliased(expression: &Expr) -> &Expr {
    match expression {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// The column of the alias's input that is this one outside.
fn inner(alias: &SubqueryAlias, column: &Column) -> Option<Column> {
    let at = alias.schema.maybe_index_of_column(column)?;
    Some(Column::from(alias.input.schema().qualified_field(at)))
}

#[cfg(test)]
mod tests {
    use datafusion::execution::session_state::SessionStateBuilder;
    use datafusion::prelude::SessionContext;
    use signaldb_signals::{SignalTable, schema};

    use super::*;
    use crate::engine::optimizer_rules;
    use crate::logical_view;
    use crate::table::StoredTable;

    /// The plan of a query, and that it has the columns that it has without the rule.
    async fn optimized(sql: &str) -> String {
        let without = optimizer_rules().into_iter().filter(|rule| rule.name() != ComputeBelowView.name()).collect();
        let mut plans = Vec::new();
        for rules in [without, optimizer_rules()] {
            let mut options = datafusion::prelude::SessionConfig::new();
            options.options_mut().sql_parser.map_string_types_to_utf8view = false;
            options.options_mut().optimizer.enable_leaf_expression_pushdown = false;
            options.options_mut().optimizer.skip_failed_rules = false;
            let builder = SessionStateBuilder::new().with_config(options).with_default_features();
            let context = SessionContext::new_with_state(builder.with_optimizer_rules(rules).build());
            for table in [SignalTable::Traces, SignalTable::Logs] {
                let stored = StoredTable::new(table, Vec::new()).expect("has its columns");
                let view = logical_view::over(schema::of(table), Arc::new(stored)).expect("is a plan");
                context.register_table(table.name(), view).expect("is new");
            }
            let frame = context.sql(sql).await.expect(sql);
            let plan = frame.clone().into_optimized_plan().expect(sql);
            let rows = frame.collect().await.expect(sql);
            plans.push((plan, rows));
        }
        let (plain, rule) = (&plans[0].0, &plans[1].0);
        assert!(plain.schema().logically_equivalent_names_and_types(rule.schema()), "{sql}: {plain:?} {rule:?}");
        assert_eq!(plans[0].1, plans[1].1, "{sql}");
        format!("{}", plans[1].0.display_indent())
    }

    #[tokio::test]
    async fn attributes_of_groups_and_columns_are_computed_without_the_rest_of_their_map() {
        for sql in [
            "SELECT attributes['order.id'] AS id, count(*) FROM logs GROUP BY id",
            "SELECT count(DISTINCT attributes['order.id']) FROM logs WHERE service_name = 'a'",
            "SELECT max(attributes['order.id']), min(l.attributes['http.route']) FROM logs AS l",
            "SELECT attributes['order.id'] || attributes['a.b'] FROM traces WHERE attributes['c'] = 'd'",
            "SELECT x['order.id'] AS y FROM (SELECT attributes AS x, name FROM traces) WHERE name = 'n' ORDER BY y",
            "SELECT k, count(*) FROM (SELECT attributes['order.id'] AS k FROM logs) GROUP BY k HAVING count(*) > 1",
        ] {
            let plan = optimized(sql).await;
            assert!(!plan.contains("signaldb_attributes("), "{sql}: {plan}");
        }
    }

    #[tokio::test]
    async fn a_map_that_is_shown_stays_whole() {
        let plan = optimized("SELECT attributes, attributes['order.id'] FROM logs").await;
        assert!(plan.contains("signaldb_attributes("), "{plan}");
        optimized("SELECT attributes['a'], count(*) FROM logs GROUP BY GROUPING SETS ((attributes['a']), ())").await;
    }

    /// Columns are left out before the queries within a query are joined to it.
    #[tokio::test]
    async fn queries_within_queries_see_their_columns() {
        for sql in [
            "SELECT name FROM traces AS t WHERE EXISTS (SELECT 1 FROM logs AS l WHERE l.trace_id = t.trace_id)",
            "SELECT (SELECT max(l.body) FROM logs AS l WHERE l.trace_id = t.trace_id) FROM traces AS t",
            "SELECT name FROM traces AS t WHERE duration_nano > (SELECT avg(o.duration_nano) FROM traces AS o \
                WHERE o.service_name = t.service_name)",
            "SELECT t.name, l.n FROM traces AS t, LATERAL (SELECT count(*) AS n FROM logs AS l \
                WHERE l.trace_id = t.trace_id) AS l",
            "SELECT count(*) FROM (SELECT service_name FROM traces UNION ALL SELECT service_name FROM logs)",
            "WITH a AS (SELECT * FROM traces) SELECT x.name FROM a AS x JOIN a AS y ON x.span_id = y.parent_span_id",
        ] {
            optimized(sql).await;
        }
    }

    #[tokio::test]
    async fn joins_compare_the_bytes_of_ids() {
        for sql in [
            "SELECT s.name FROM logs AS l JOIN traces AS s ON l.trace_id = s.trace_id AND l.span_id = s.span_id",
            "SELECT count(*) FROM traces AS c LEFT JOIN traces AS p ON c.parent_span_id = p.span_id",
            "SELECT name FROM traces WHERE trace_id IN (SELECT trace_id FROM logs WHERE severity_text = 'ERROR')",
            "SELECT l.body FROM logs AS l, traces AS s WHERE l.trace_id = s.trace_id AND s.status_code = 'ERROR'",
        ] {
            let plan = optimized(sql).await;
            assert!(plan.contains("__raw_") && !plan.contains("signaldb_hex_id("), "{sql}: {plan}");
        }
        let shown = optimized("SELECT l.trace_id FROM logs AS l JOIN traces AS s ON l.trace_id = s.trace_id").await;
        assert!(shown.contains("Inner Join: l.__raw_trace_id = s.__raw_trace_id"), "{shown}");
        let other = optimized("SELECT l.body FROM logs AS l JOIN traces AS s ON l.trace_id = s.span_id").await;
        assert!(!other.contains("__raw_"), "ids of other lengths are never the same: {other}");
    }

    /// A query may name a column twice, and may name one as the rule would.
    #[tokio::test]
    async fn names_do_not_clash() {
        let twice = "SELECT l.body FROM (SELECT trace_id AS a, trace_id AS b FROM traces) AS t JOIN logs AS l \
            ON t.a = l.trace_id AND t.b = l.trace_id";
        let plan = optimized(twice).await;
        assert!(plan.contains("t.__raw_trace_id") && !plan.contains("signaldb_hex_id("), "{plan}");
        let twice = "SELECT max(x['k']), min(y['k']) FROM (SELECT attributes AS x, attributes AS y FROM logs) AS l";
        let plan = optimized(twice).await;
        assert!(!plan.contains("signaldb_attributes("), "{plan}");
        let taken = "SELECT t.__raw_trace_id FROM (SELECT trace_id, name AS __raw_trace_id FROM traces) AS t \
            JOIN logs AS l ON t.trace_id = l.trace_id";
        let plan = optimized(taken).await;
        assert!(plan.contains("signaldb_hex_id("), "{plan}");
    }
}
