//! What of a TraceQL condition a scan can decide, as an expression over the stored columns.
//!
//! It never drops a span that the condition keeps; it may keep others, which [`super::eval`] drops. `None` says nothing.
//!
//! | TraceQL | filter |
//! |---|---|
//! | `name = "x"` | `name = 'x'` |
//! | `span.http.route = "/x"` | `signaldb_attribute(http_route, attributes['http.route']) = '/x'` |
//! | `resource.zone =~ "eu.*"` | `resource_attributes['zone']` matches, or is an array |
//! | `span.http.response.status_code >= 500` | `TRY_CAST(signaldb_attribute(..) AS DOUBLE) >= 500` |
//! | `.a = 1` | of the span or of the resource |
//! | `event.a = 1`, arithmetic, what needs the trace | nothing |

use arrow::datatypes::DataType;
use datafusion::functions::core::expr_fn::get_field;
use datafusion::functions::string::expr_fn::starts_with;
use datafusion::logical_expr::{self as df, Expr as Filter, binary_expr, ident, lit, try_cast};
use signaldb_signals::promoted::{self, Promoted, PromotedType};

use super::ast::{
    Expr, Field, Form, Intrinsic, Kind, Literal, Operator, Scope, Spanset, SpansetOperator, Stage, Status,
};
use crate::logical_view::ATTRIBUTE;

/// How the text of an array begins in an attribute map.
const ARRAY: &str = "{\"arrayValue\"";

/// A filter that keeps every span which makes its trace part of the result.
pub(super) fn of_stages(stages: &[Stage]) -> Option<Filter> {
    // Later stages only take away.
    match stages.first()? {
        Stage::Spans(spanset) => of_spanset(spanset),
        _ => None,
    }
}

fn of_spanset(spanset: &Spanset) -> Option<Filter> {
    match spanset {
        Spanset::Filter(expr) => of_expr(expr),
        Spanset::Pipeline(stages) => of_stages(stages),
        Spanset::Binary { op, left, right } => match op {
            // Both must be in the trace: either finds it.
            SpansetOperator::And => of_spanset(left).or_else(|| of_spanset(right)),
            SpansetOperator::Or => Some(of_spanset(left)?.or(of_spanset(right)?)),
            // Spans on the right may relate to none because there is none.
            SpansetOperator::Structural(Form::Negated, _) => of_spanset(right),
            SpansetOperator::Structural(..) => of_spanset(right).or_else(|| of_spanset(left)),
        },
    }
}

/// A filter that keeps every span for which the condition is true.
pub(super) fn of_expr(expr: &Expr) -> Option<Filter> {
    match expr {
        Expr::Literal(Literal::Bool(false)) => Some(lit(false)),
        Expr::Field(Field::Intrinsic(Intrinsic::IsRoot)) => Some(is_root()),
        Expr::Field(field) => comparison(Operator::Equal, field, &Literal::Bool(true)),
        Expr::Binary { op: Operator::And, left, right } => match (of_expr(left), of_expr(right)) {
            (Some(left), Some(right)) => Some(left.and(right)),
            (left, right) => left.or(right),
        },
        Expr::Binary { op: Operator::Or, left, right } => Some(of_expr(left)?.or(of_expr(right)?)),
        Expr::Binary { op, left, right } if op.compares() => match (left.as_ref(), right.as_ref()) {
            (Expr::Field(field), Expr::Literal(literal)) => comparison(*op, field, literal),
            (Expr::Literal(literal), Expr::Field(field)) => comparison(op.mirrored(), field, literal),
            _ => None,
        },
        Expr::Match { left, negated, source, .. } => match left.as_ref() {
            Expr::Field(field) => matching(field, *negated, source),
            _ => None,
        },
        _ => None,
    }
}

/// Zeros are written by some senders instead of nothing.
fn is_root() -> Filter {
    let zeros = lit(datafusion::common::ScalarValue::FixedSizeBinary(8, Some(vec![0; 8])));
    ident("parent_span_id").is_null().or(ident("parent_span_id").eq(zeros))
}

fn comparison(op: Operator, field: &Field, literal: &Literal) -> Option<Filter> {
    match field {
        Field::Attribute { parent: true, .. } => None,
        Field::Attribute { scope, name, .. } => of_attribute(*scope, name, &|column| {
            let present = || column.value.clone().is_not_null();
            match literal {
                Literal::Nil => (op == Operator::NotEqual).then(present),
                Literal::Text(text) => Some(match op {
                    Operator::Equal => column.or_array(column.value.clone().eq(lit(text.as_str()))),
                    // Among the others are texts, and what has another type.
                    _ => present(),
                }),
                Literal::Bool(value) => Some(match op {
                    Operator::Equal => column.or_array(column.value.clone().eq(lit(value.to_string()))),
                    _ => present(),
                }),
                Literal::Int(_) | Literal::Float(_) | Literal::Duration(_) => {
                    let number = try_cast(column.value.clone(), DataType::Float64);
                    number_filter(op, number, number_of(literal)?)
                        .map(|filter| column.or_array(filter))
                        .or_else(|| Some(present()))
                }
                Literal::Status(_) | Literal::Kind(_) => Some(lit(false)),
            }
        }),
        Field::Intrinsic(intrinsic) => of_intrinsic(op, *intrinsic, literal),
    }
}

fn of_intrinsic(op: Operator, intrinsic: Intrinsic, literal: &Literal) -> Option<Filter> {
    let column = |name: &str| ident(name);
    match (intrinsic, literal) {
        (Intrinsic::Name, Literal::Text(text)) => text_filter(op, column("name"), text),
        (Intrinsic::StatusMessage, Literal::Text(text)) => text_filter(op, column("status_message"), text),
        (Intrinsic::InstrumentationName, Literal::Text(text)) => text_filter(op, column("scope_name"), text),
        (Intrinsic::InstrumentationVersion, Literal::Text(text)) => text_filter(op, column("scope_version"), text),
        (Intrinsic::Duration, Literal::Int(nanos) | Literal::Duration(nanos)) => {
            let duration = column("duration_nano");
            Some(binary_expr(duration, operator(op)?, lit(*nanos)))
        }
        (Intrinsic::Status, Literal::Status(status)) => {
            let name = match status {
                Status::Unset => "UNSET",
                Status::Ok => "OK",
                Status::Error => "ERROR",
            };
            enum_filter(op, column("status_code"), name, *status == Status::Unset)
        }
        (Intrinsic::Kind, Literal::Kind(kind)) => {
            let name = kind.name().to_ascii_uppercase();
            enum_filter(op, column("kind"), &name, *kind == Kind::Unspecified)
        }
        (Intrinsic::TraceId, Literal::Text(hex)) if op == Operator::Equal => id_filter("trace_id", hex, 16),
        (Intrinsic::SpanId, Literal::Text(hex)) if op == Operator::Equal => id_filter("span_id", hex, 8),
        (Intrinsic::ParentId, Literal::Text(hex)) if op == Operator::Equal => id_filter("parent_span_id", hex, 8),
        _ => None,
    }
}

/// An absent text is empty, as it is to the language.
fn text_filter(op: Operator, column: Filter, text: &str) -> Option<Filter> {
    let filter = binary_expr(column.clone(), operator(op)?, lit(text));
    let excludes_absent = op == Operator::Equal && !text.is_empty();
    Some(if excludes_absent { filter } else { filter.or(column.is_null()) })
}

fn enum_filter(op: Operator, column: Filter, name: &str, default: bool) -> Option<Filter> {
    let filter = binary_expr(column.clone(), operator(op)?, lit(name));
    Some(if (op == Operator::Equal) == default { filter.or(column.is_null()) } else { filter })
}

/// Says nothing of the empty text: that is no id.
fn id_filter(column: &str, hex: &str, bytes: usize) -> Option<Filter> {
    let id = crate::functions::unhex(hex, bytes)?;
    let id = datafusion::common::ScalarValue::FixedSizeBinary(i32::try_from(bytes).ok()?, Some(id));
    Some(ident(column).eq(lit(id)))
}

fn matching(field: &Field, negated: bool, source: &str) -> Option<Filter> {
    let pattern = format!("^(?:{source})$");
    let is_match = |text: Filter| binary_expr(text, df::Operator::RegexMatch, lit(pattern.as_str()));
    match field {
        Field::Attribute { parent: true, .. } => None,
        Field::Attribute { scope, name, .. } => of_attribute(*scope, name, &|column| {
            Some(if negated {
                column.value.clone().is_not_null()
            } else {
                column.or_array(is_match(column.value.clone()))
            })
        }),
        Field::Intrinsic(Intrinsic::Name) if !negated => Some(is_match(ident("name")).or(ident("name").is_null())),
        _ => None,
    }
}

/// The text of an attribute.
struct Column {
    value: Filter,
    /// Whether an array may be in it: those of promoted attributes are texts or integers by their definition.
    arrays: bool,
}

impl Column {
    /// What holds for one of an array's values is not looked for in a scan.
    fn or_array(&self, filter: Filter) -> Filter {
        if self.arrays { filter.or(starts_with(self.value.clone(), lit(ARRAY))) } else { filter }
    }
}

fn of_attribute(scope: Scope, name: &str, filter: &dyn Fn(&Column) -> Option<Filter>) -> Option<Filter> {
    let column = |map: &str, list: &'static [Promoted]| {
        let in_map = get_field(ident(map), name);
        match list.iter().find(|promoted| promoted.key == name) {
            Some(promoted) => Column {
                value: ATTRIBUTE.call(vec![ident(promoted.column), in_map]),
                arrays: promoted.kind == PromotedType::Text && !is_definite(name),
            },
            None => Column { value: in_map, arrays: true },
        }
    };
    let span = || column("attributes", promoted::RECORD);
    let resource = || column("resource_attributes", promoted::RESOURCE);
    match scope {
        Scope::Span => filter(&span()),
        Scope::Resource => filter(&resource()),
        Scope::Instrumentation => filter(&Column { value: get_field(ident("scope_attributes"), name), arrays: true }),
        Scope::Any => Some(filter(&span())?.or(filter(&resource())?)),
        Scope::Event | Scope::Link => None,
    }
}

/// The one attribute that nearly every query has: nobody sends an array of it.
fn is_definite(name: &str) -> bool {
    name == "service.name"
}

fn number_of(literal: &Literal) -> Option<f64> {
    match literal {
        Literal::Int(value) | Literal::Duration(value) => Some(*value as f64),
        Literal::Float(value) => Some(*value),
        _ => None,
    }
}

/// As doubles, neighbours of large integers are equal: comparisons that exclude equality include it here.
fn number_filter(op: Operator, number: Filter, value: f64) -> Option<Filter> {
    Some(match op {
        Operator::Equal => number.eq(lit(value)),
        Operator::Less | Operator::LessOrEqual => number.lt_eq(lit(value)),
        Operator::Greater | Operator::GreaterOrEqual => number.gt_eq(lit(value)),
        _ => return None,
    })
}

fn operator(op: Operator) -> Option<df::Operator> {
    Some(match op {
        Operator::Equal => df::Operator::Eq,
        Operator::NotEqual => df::Operator::NotEq,
        Operator::Less => df::Operator::Lt,
        Operator::LessOrEqual => df::Operator::LtEq,
        Operator::Greater => df::Operator::Gt,
        Operator::GreaterOrEqual => df::Operator::GtEq,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::ast::Traceql;
    use super::*;

    fn check(query: &str, expected: &str) {
        let query = Traceql::parse(query).expect(query);
        let filter = of_stages(query.stages()).map_or_else(|| "-".to_owned(), |filter| filter.to_string());
        assert_eq!(filter, expected, "{query}");
    }

    #[test]
    fn conditions_on_columns_become_filters() {
        check("{ name = \"x\" }", "name = Utf8(\"x\")");
        check("{ name != \"x\" }", "name != Utf8(\"x\") OR name IS NULL");
        check("{ duration > 1us }", "duration_nano > Int64(1000)");
        check("{ 1us < duration }", "duration_nano > Int64(1000)");
        check("{ status = error }", "status_code = Utf8(\"ERROR\")");
        check("{ status != error }", "status_code != Utf8(\"ERROR\") OR status_code IS NULL");
        check("{ kind = server }", "kind = Utf8(\"SERVER\")");
        check("{ span:id = \"A1\" }", "span_id = FixedSizeBinary(8, \"0,0,0,0,0,0,0,161\")");
        let service = "signaldb_attribute(service_name, get_field(resource_attributes, Utf8(\"service.name\")))";
        check("{ resource.service.name = \"x\" }", &format!("{service} = Utf8(\"x\")"));
        check("{ resource.service.name != nil }", &format!("{service} IS NOT NULL"));
    }

    /// A filter may keep too much; where it would have to guess, it says nothing.
    #[test]
    fn what_a_scan_cannot_decide_is_left_out() {
        for query in [
            "{}",
            "{ .a = nil }",
            "{ !(name = \"x\") }",
            "{ .a + 1 = 2 }",
            "{ name = \"x\" || .a + 1 = 2 }",
            "{ event.a = 1 }",
            "{ span:id = \"\" }",
            "{ event:name = \"x\" }",
            "{ parent.a = 1 }",
            "{ traceDuration > 1s }",
            "{ rootName = \"x\" }",
            "count() > 2",
            "{ name = \"x\" } || {}",
            "{ name = \"x\" } !>> {}",
        ] {
            check(query, "-");
        }
        let name = "name = Utf8(\"x\")";
        check("{ name = \"x\" && .a + 1 = 2 }", name);
        check("{ name = \"x\" } && {}", name);
        check("{ name = \"x\" } >> {}", name);
        check("{} >> { name = \"x\" }", name);
        check("{} !>> { name = \"x\" }", name);
        check("({ name = \"x\" } | count() > 2) | by(name)", name);
        check("{ name = \"x\" } || { status = ok }", "name = Utf8(\"x\") OR status_code = Utf8(\"OK\")");
    }
}
