//! What a query makes of one trace, or of one span where that is enough. Pure.

use super::ast::{Aggregate, Expr, Field, Literal, Operator, Scalar, Spanset as SpansetExpr, SpansetOperator, Stage};
use super::spans::SpanColumns;
use super::trace::Trace;
use super::value::{Value, apply, compare, is_nil, plain_number};

/// Where an expression is evaluated.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    columns: &'a SpanColumns<'a>,
    row: usize,
    trace: Option<(&'a Trace<'a>, usize)>,
}

impl<'a> At<'a> {
    pub(super) fn span(columns: &'a SpanColumns<'a>, row: usize) -> Self {
        Self { columns, row, trace: None }
    }

    pub(super) fn in_trace(trace: &'a Trace<'a>, at: usize) -> Self {
        let span = trace.spans[at];
        Self { columns: span.columns, row: span.row, trace: Some((trace, at)) }
    }

    pub(super) fn field(self, field: &Field) -> Value<'a> {
        match (field, self.trace) {
            (Field::Attribute { parent, scope, name }, Some((trace, at))) => trace.attribute(at, *parent, *scope, name),
            (Field::Attribute { parent: true, .. }, None) => Value::Nil,
            (Field::Attribute { scope, name, .. }, None) => self.columns.attribute(self.row, *scope, name),
            (Field::Intrinsic(intrinsic), Some((trace, at))) => trace.intrinsic(at, *intrinsic),
            (Field::Intrinsic(intrinsic), None) => self.columns.intrinsic(self.row, *intrinsic),
        }
    }
}

/// Whether an expression can be evaluated without the other spans of the trace.
pub(super) fn is_local(expr: &Expr) -> bool {
    let mut local = true;
    expr.fields(&mut |field| local &= !field.needs_trace());
    local
}

/// The value of an expression.
pub(super) fn value<'a>(expr: &'a Expr, at: At<'a>) -> Value<'a> {
    match expr {
        Expr::Literal(literal) => Value::of_literal(literal),
        Expr::Field(field) => at.field(field),
        Expr::Not(inner) => match value(inner, at) {
            Value::Bool(inner) => Value::Bool(!inner),
            _ => Value::Nil,
        },
        Expr::Negate(inner) => match value(inner, at) {
            Value::Int(inner) => Value::Int(inner.wrapping_neg()),
            Value::Float(inner) => Value::Float(-inner),
            Value::Duration(inner) => Value::Duration(inner.wrapping_neg()),
            _ => Value::Nil,
        },
        Expr::Binary { op: Operator::And, left, right } => Value::Bool(matches(left, at) && matches(right, at)),
        Expr::Binary { op: Operator::Or, left, right } => Value::Bool(matches(left, at) || matches(right, at)),
        Expr::Binary { op, left, right } => match (op, left.as_ref(), right.as_ref()) {
            (Operator::Equal, one, Expr::Literal(Literal::Nil))
            | (Operator::Equal, Expr::Literal(Literal::Nil), one) => Value::Bool(is_nil(&value(one, at))),
            (Operator::NotEqual, one, Expr::Literal(Literal::Nil))
            | (Operator::NotEqual, Expr::Literal(Literal::Nil), one) => Value::Bool(!is_nil(&value(one, at))),
            (op, left, right) => apply(*op, &value(left, at), &value(right, at)),
        },
        Expr::Match { left, negated, regex, .. } => {
            let one = |value: &Value<'a>| match value {
                Value::Text(text) => Some(regex.is_match(text)),
                _ => None,
            };
            Value::Bool(match value(left, at) {
                Value::List(values) => {
                    let mut found = values.iter().filter_map(one).peekable();
                    let present = found.peek().is_some();
                    let any = found.any(|matched| matched);
                    if *negated { present && !any } else { any }
                }
                found => one(&found).is_some_and(|matched| matched != *negated),
            })
        }
    }
}

/// Whether the expression is true.
pub(super) fn matches<'a>(expr: &'a Expr, at: At<'a>) -> bool {
    value(expr, at) == Value::Bool(true)
}

/// Some spans of a trace, by start, and what `by()` found they have in common.
#[derive(Debug, Clone)]
pub(super) struct Spanset<'a> {
    pub(super) spans: Vec<usize>,
    pub(super) attributes: Vec<(String, Value<'a>)>,
}

/// The spansets that the stages leave of a trace.
pub(super) fn pipeline<'a>(stages: &'a [Stage], trace: &'a Trace<'a>) -> Vec<Spanset<'a>> {
    let all = Spanset { spans: (0..trace.spans.len()).collect(), attributes: Vec::new() };
    let mut sets = vec![all];
    for stage in stages {
        sets = step(stage, trace, sets);
        if sets.is_empty() {
            break;
        }
    }
    sets
}

fn step<'a>(stage: &'a Stage, trace: &'a Trace<'a>, sets: Vec<Spanset<'a>>) -> Vec<Spanset<'a>> {
    match stage {
        Stage::Spans(expr) => {
            let kept = sets.into_iter().map(|set| Spanset { spans: select(expr, trace, &set.spans), ..set });
            kept.filter(|set| !set.spans.is_empty()).collect()
        }
        Stage::Having { op, left, right } => {
            let holds =
                |set: &Spanset<'a>| compare(*op, &number(left, trace, &set.spans), &number(right, trace, &set.spans));
            sets.into_iter().filter(holds).map(|set| with_aggregates(set, [left, right], trace)).collect()
        }
        Stage::By(expr) => sets.into_iter().flat_map(|set| group(expr, trace, set)).collect(),
        Stage::Coalesce => {
            let mut spans: Vec<usize> = sets.into_iter().flat_map(|set| set.spans).collect();
            spans.sort_unstable();
            spans.dedup();
            vec![Spanset { spans, attributes: Vec::new() }]
        }
        // Only what is shown.
        Stage::Select(_) => sets,
    }
}

/// Which of `among` an expression over spansets keeps.
fn select<'a>(expr: &'a SpansetExpr, trace: &'a Trace<'a>, among: &[usize]) -> Vec<usize> {
    match expr {
        SpansetExpr::Filter(filter) => {
            among.iter().copied().filter(|at| matches(filter, At::in_trace(trace, *at))).collect()
        }
        SpansetExpr::Pipeline(stages) => {
            let mut sets = vec![Spanset { spans: among.to_vec(), attributes: Vec::new() }];
            for stage in stages {
                sets = step(stage, trace, sets);
            }
            union(sets.into_iter().map(|set| set.spans))
        }
        SpansetExpr::Binary { op, left, right } => {
            let (left, right) = (select(left, trace, among), select(right, trace, among));
            match op {
                SpansetOperator::And if left.is_empty() || right.is_empty() => Vec::new(),
                SpansetOperator::And | SpansetOperator::Or => union([left, right]),
                SpansetOperator::Structural(form, relation) => trace.relate(*form, *relation, &left, &right),
            }
        }
    }
}

fn union(sets: impl IntoIterator<Item = Vec<usize>>) -> Vec<usize> {
    let mut all: Vec<usize> = sets.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn group<'a>(expr: &'a Expr, trace: &'a Trace<'a>, set: Spanset<'a>) -> Vec<Spanset<'a>> {
    let mut groups: Vec<(String, Spanset<'a>)> = Vec::new();
    let mut places: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for at in set.spans {
        let found = value(expr, At::in_trace(trace, at));
        let mut key = String::new();
        found.group_key(&mut key);
        let place = *places.entry(key.clone()).or_insert_with(|| {
            let mut attributes = set.attributes.clone();
            attributes.push((format!("by({expr})"), found));
            groups.push((key, Spanset { spans: Vec::new(), attributes }));
            groups.len() - 1
        });
        groups[place].1.spans.push(at);
    }
    groups.into_iter().map(|(_, set)| set).collect()
}

/// A spanset shows the numbers that it was kept for.
fn with_aggregates<'a>(mut set: Spanset<'a>, sides: [&'a Scalar; 2], trace: &'a Trace<'a>) -> Spanset<'a> {
    for side in sides {
        if let Scalar::Aggregate(..) = side {
            let (name, found) = (side.to_string(), number(side, trace, &set.spans));
            set.attributes.retain(|(known, _)| *known != name);
            set.attributes.push((name, found));
        }
    }
    set
}

fn number<'a>(scalar: &'a Scalar, trace: &'a Trace<'a>, spans: &[usize]) -> Value<'a> {
    match scalar {
        Scalar::Literal(literal) => Value::of_literal(literal),
        Scalar::Negate(inner) => match number(inner, trace, spans) {
            Value::Int(inner) => Value::Int(inner.wrapping_neg()),
            Value::Float(inner) => Value::Float(-inner),
            Value::Duration(inner) => Value::Duration(inner.wrapping_neg()),
            _ => Value::Nil,
        },
        Scalar::Binary { op, left, right } => apply(*op, &number(left, trace, spans), &number(right, trace, spans)),
        Scalar::Aggregate(Aggregate::Count, _) | Scalar::Aggregate(_, None) => {
            Value::Int(i64::try_from(spans.len()).unwrap_or(i64::MAX))
        }
        Scalar::Aggregate(aggregate, Some(of)) => {
            let values = spans.iter().map(|at| value(of, At::in_trace(trace, *at)));
            let values = values.filter(|value| plain_number(value).is_some());
            fold(*aggregate, values)
        }
    }
}

fn fold<'a>(aggregate: Aggregate, values: impl Iterator<Item = Value<'a>>) -> Value<'a> {
    let (mut count, mut total) = (0_i64, None);
    for value in values {
        count += 1;
        total = Some(match total {
            None => value,
            Some(total) => match aggregate {
                Aggregate::Min if compare(Operator::Less, &value, &total) => value,
                Aggregate::Max if compare(Operator::Greater, &value, &total) => value,
                Aggregate::Min | Aggregate::Max => total,
                _ => apply(Operator::Add, &total, &value),
            },
        });
    }
    match total {
        None => Value::Nil,
        Some(total) if aggregate == Aggregate::Avg => apply(Operator::Divide, &total, &Value::Int(count)),
        Some(total) => total,
    }
}

#[cfg(test)]
mod tests;
