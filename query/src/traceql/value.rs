//! Values of fields, and what the operators make of them.

use std::borrow::Cow;
use std::cmp::Ordering;

use signaldb_proto::otlp::common::v1::AnyValue;
use signaldb_proto::otlp::common::v1::any_value::Value as Any;
use signaldb_signals::AttributeValue;

use super::ast::{Kind, Literal, Operator, Status};

/// A value of a span; `Value<'static>` is one that is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// Nanoseconds.
    Duration(i64),
    Status(Status),
    Kind(Kind),
    /// Of an array, of all events or of all links.
    List(Vec<Value<'a>>),
}

impl<'a> Value<'a> {
    pub(super) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn of_literal(literal: &'a Literal) -> Self {
        match literal {
            Literal::Nil => Self::Nil,
            Literal::Bool(value) => Self::Bool(*value),
            Literal::Int(value) => Self::Int(*value),
            Literal::Float(value) => Self::Float(*value),
            Literal::Text(text) => Self::text(text.as_str()),
            Literal::Duration(nanos) => Self::Duration(*nanos),
            Literal::Status(status) => Self::Status(*status),
            Literal::Kind(kind) => Self::Kind(*kind),
        }
    }

    pub(super) fn of_attribute(value: Option<AttributeValue<'a>>) -> Self {
        match value {
            None => Self::Nil,
            Some(AttributeValue::Text(text)) => Self::text(text),
            Some(AttributeValue::Integer(value)) => Self::Int(value),
            Some(AttributeValue::Double(value)) => Self::Float(value),
            Some(AttributeValue::Boolean(value)) => Self::Bool(value),
            Some(AttributeValue::Other(value)) => of_any(value),
        }
    }

    /// The same, on its own.
    pub(super) fn into_owned(self) -> Value<'static> {
        match self {
            Self::Nil => Value::Nil,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Float(value) => Value::Float(value),
            Self::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Self::Duration(nanos) => Value::Duration(nanos),
            Self::Status(status) => Value::Status(status),
            Self::Kind(kind) => Value::Kind(kind),
            Self::List(values) => Value::List(values.into_iter().map(Value::into_owned).collect()),
        }
    }

    /// Durations in seconds.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Duration(nanos) => Some(*nanos as f64 / 1e9),
            _ => None,
        }
    }

    /// What its texts take.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::List(values) => values.iter().map(|value| size_of::<Value<'_>>() + value.text_bytes()).sum(),
            _ => 0,
        }
    }

    /// As people see it; values of different types may look alike.
    pub fn shown(&self) -> String {
        match self {
            Self::Nil => "nil".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) if value.is_finite() => format!("{value:?}"),
            Self::Float(value) => value.to_string(),
            Self::Text(text) => text.clone().into_owned(),
            Self::Duration(nanos) => shown_duration(*nanos),
            Self::Status(status) => status.name().to_owned(),
            Self::Kind(kind) => kind.name().to_owned(),
            Self::List(values) => values.iter().map(Value::shown).collect::<Vec<_>>().join(","),
        }
    }

    /// Equal for equal values of one type only, and in a stable order.
    pub(super) fn group_key(&self, out: &mut String) {
        let tag = match self {
            Self::Nil => '0',
            Self::Bool(_) => 'b',
            Self::Int(_) => 'i',
            Self::Float(_) => 'f',
            Self::Text(_) => 's',
            Self::Duration(_) => 'd',
            Self::Status(_) => 't',
            Self::Kind(_) => 'k',
            Self::List(_) => 'l',
        };
        let shown = self.shown();
        out.push(tag);
        out.push_str(&shown.len().to_string());
        out.push(':');
        out.push_str(&shown);
    }
}

fn of_any(value: AnyValue) -> Value<'static> {
    match value.value {
        Some(Any::StringValue(text)) => Value::text(text),
        Some(Any::IntValue(value)) => Value::Int(value),
        Some(Any::DoubleValue(value)) => Value::Float(value),
        Some(Any::BoolValue(value)) => Value::Bool(value),
        Some(Any::ArrayValue(list)) => Value::List(list.values.into_iter().map(of_any).collect()),
        _ => Value::Nil,
    }
}

/// `1.5s`, `2m3s`, `120ms`, as Go writes durations.
pub(super) fn shown_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let trimmed = |value: f64| format!("{value}");
    let text = match total {
        0 => "0s".to_owned(),
        1..=999 => format!("{total}ns"),
        1_000..=999_999 => format!("{}µs", trimmed(total as f64 / 1e3)),
        1_000_000..=999_999_999 => format!("{}ms", trimmed(total as f64 / 1e6)),
        _ => {
            let (hours, minutes) = (total / 3_600_000_000_000, total / 60_000_000_000 % 60);
            let seconds = trimmed((total % 60_000_000_000) as f64 / 1e9);
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// What an operator other than `&&` and `||` makes of two values.
pub(super) fn apply<'a>(op: Operator, left: &Value<'a>, right: &Value<'a>) -> Value<'a> {
    if op.compares() {
        return Value::Bool(compare(op, left, right));
    }
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => match whole(op, *left, *right) {
            Some(value) => Value::Int(value),
            None => real(op, *left as f64, *right as f64).map_or(Value::Nil, Value::Float),
        },
        (Value::Duration(left), Value::Duration(right)) if matches!(op, Operator::Add | Operator::Subtract) => {
            whole(op, *left, *right).map_or(Value::Nil, Value::Duration)
        }
        (Value::Duration(nanos), other) if scalar(other).is_some() && !matches!(op, Operator::Power) => {
            let value = scalar(other).and_then(|other| real(op, *nanos as f64, other));
            value.map_or(Value::Nil, |value| Value::Duration(value as i64))
        }
        (left, right) => {
            // Durations count in nanoseconds here.
            let (left, right) = (plain_number(left), plain_number(right));
            left.zip(right).and_then(|(left, right)| real(op, left, right)).map_or(Value::Nil, Value::Float)
        }
    }
}

fn scalar(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Int(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        _ => None,
    }
}

/// Durations in nanoseconds.
pub(super) fn plain_number(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Duration(nanos) => Some(*nanos as f64),
        other => scalar(other),
    }
}

fn whole(op: Operator, left: i64, right: i64) -> Option<i64> {
    match op {
        Operator::Add => left.checked_add(right),
        Operator::Subtract => left.checked_sub(right),
        Operator::Multiply => left.checked_mul(right),
        Operator::Modulo => left.checked_rem(right),
        // Only where it leaves no rest: 1 / 2 is a half.
        Operator::Divide => left.checked_rem(right).filter(|rest| *rest == 0).and_then(|_| left.checked_div(right)),
        Operator::Power => u32::try_from(right).ok().and_then(|right| left.checked_pow(right)),
        _ => None,
    }
}

fn real(op: Operator, left: f64, right: f64) -> Option<f64> {
    let value = match op {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        Operator::Modulo => left % right,
        Operator::Power => left.powf(right),
        _ => return None,
    };
    (!value.is_nan()).then_some(value)
}

/// Whether the comparison holds. Values of different types are neither equal nor different, except from nil.
///
/// An array, like the events of a span, is equal to what one of its values is, and different from what none of them is.
pub(super) fn compare(op: Operator, left: &Value<'_>, right: &Value<'_>) -> bool {
    match (left, right) {
        (Value::Nil, Value::Nil) => op == Operator::Equal,
        (Value::Nil, _) | (_, Value::Nil) => false,
        (Value::List(values), one) => any_of(op, values, |op, value| compare(op, value, one)),
        (one, Value::List(values)) => any_of(op, values, |op, value| compare(op, one, value)),
        _ => ordering(left, right).is_some_and(|ordering| holds(op, ordering)),
    }
}

fn any_of(op: Operator, values: &[Value<'_>], test: impl Fn(Operator, &Value<'_>) -> bool) -> bool {
    if op == Operator::NotEqual {
        let present = values.iter().any(|value| !is_nil(value));
        return present && !values.iter().any(|value| test(Operator::Equal, value));
    }
    values.iter().any(|value| test(op, value))
}

pub(super) fn holds(op: Operator, ordering: Ordering) -> bool {
    match op {
        Operator::Equal => ordering.is_eq(),
        Operator::NotEqual => ordering.is_ne(),
        Operator::Less => ordering.is_lt(),
        Operator::LessOrEqual => ordering.is_le(),
        Operator::Greater => ordering.is_gt(),
        Operator::GreaterOrEqual => ordering.is_ge(),
        _ => false,
    }
}

/// How two values of one type relate; a NaN relates to nothing.
fn ordering(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    match (left, right) {
        (Value::Int(left) | Value::Duration(left), Value::Int(right) | Value::Duration(right)) => Some(left.cmp(right)),
        (Value::Text(left), Value::Text(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Status(left), Value::Status(right)) => Some(left.cmp(right)),
        (Value::Kind(left), Value::Kind(right)) => Some(left.cmp(right)),
        (left, right) => plain_number(left)?.partial_cmp(&plain_number(right)?),
    }
}

/// Whether the value is there, for comparisons with nil.
pub(super) fn is_nil(value: &Value<'_>) -> bool {
    matches!(value, Value::Nil) || matches!(value, Value::List(values) if values.iter().all(is_nil))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value<'_> {
        Value::text(text)
    }

    #[test]
    fn comparisons() {
        use Operator::{Equal, Greater, Less, LessOrEqual, NotEqual};
        let list = || Value::List(vec![text("a"), text("b")]);
        for (left, op, right, expected) in [
            (Value::Int(1), Equal, Value::Int(1), true),
            (Value::Int(1), Equal, Value::Float(1.0), true),
            (Value::Int(i64::MAX), Greater, Value::Int(i64::MAX - 1), true),
            (Value::Int(2), Greater, Value::Float(1.5), true),
            (Value::Duration(2_000), Less, Value::Int(3_000), true),
            (text("b"), Greater, text("a"), true),
            (text("1"), Equal, Value::Int(1), false),
            // What has another type is not different either.
            (text("1"), NotEqual, Value::Int(1), false),
            (Value::Nil, NotEqual, Value::Int(1), false),
            (Value::Nil, LessOrEqual, Value::Int(1), false),
            (Value::Float(f64::NAN), NotEqual, Value::Float(1.0), false),
            (Value::Bool(true), Equal, Value::Bool(true), true),
            (list(), Equal, text("b"), true),
            (list(), Equal, text("c"), false),
            (list(), NotEqual, text("b"), false),
            (list(), NotEqual, text("c"), true),
            (Value::List(Vec::new()), NotEqual, text("c"), false),
        ] {
            assert_eq!(compare(op, &left, &right), expected, "{left:?} {op:?} {right:?}");
        }
    }

    #[test]
    fn arithmetic() {
        use Operator::{Add, Divide, Modulo, Multiply, Power, Subtract};
        for (left, op, right, expected) in [
            (Value::Int(1), Add, Value::Int(2), Value::Int(3)),
            (Value::Int(1), Divide, Value::Int(2), Value::Float(0.5)),
            (Value::Int(4), Divide, Value::Int(2), Value::Int(2)),
            (Value::Int(7), Modulo, Value::Int(4), Value::Int(3)),
            (Value::Int(2), Power, Value::Int(10), Value::Int(1024)),
            (Value::Int(1), Modulo, Value::Int(0), Value::Nil),
            (Value::Int(i64::MAX), Add, Value::Int(1), Value::Float(9_223_372_036_854_775_807.0 + 1.0)),
            (Value::Duration(10), Subtract, Value::Duration(4), Value::Duration(6)),
            (Value::Duration(10), Multiply, Value::Int(4), Value::Duration(40)),
            (Value::Duration(10), Divide, Value::Duration(4), Value::Float(2.5)),
            (text("a"), Add, Value::Int(1), Value::Nil),
        ] {
            assert_eq!(apply(op, &left, &right), expected, "{left:?} {op:?} {right:?}");
        }
    }

    #[test]
    fn durations_are_shown_as_go_does() {
        for (nanos, expected) in [
            (0, "0s"),
            (17, "17ns"),
            (1_500, "1.5µs"),
            (20_000_000, "20ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (-3_600_000_000_000, "-1h0m0s"),
        ] {
            assert_eq!(shown_duration(nanos), expected);
        }
    }
}
