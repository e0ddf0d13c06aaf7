//! Computing with series: `({ status = error } | rate()) / ({} | rate())`. Pure.
//!
//! ```text
//! left                      right               left / right
//! { service = "a" } 1 2     {} 4 0              { service = "a" } 0.25 -     a side without labels goes with all
//! { service = "a" } 1 2     { service = "a" } 2 2
//! { service = "b" } 3 3     { service = "c" } 1 1
//!                                               { service = "a" } 0.5  1     what only one side has goes
//! ```
//!
//! A moment that one side does not have, a division by zero, and what is too large for a number leave none.

use std::collections::BTreeMap;

use super::super::ast::{Operator, SeriesExpr};
use super::super::value::Value;
use super::{NAME, Series, keep};

/// Computes an expression of the series of its spans, which come from left to right; steps are `step` long.
///
/// The answer has at most the series and moments of one of them.
pub(super) fn evaluate(expr: &SeriesExpr, step: u64, of_spans: &mut impl Iterator<Item = Vec<Series>>) -> Vec<Series> {
    match expr {
        SeriesExpr::Spans(_) => of_spans.next().unwrap_or_default(),
        SeriesExpr::WithNumber { op, of, number, number_first } => {
            let mut series = evaluate(of, step, of_spans);
            if let Some(number) = Value::of_literal(number).number() {
                let compute = |value| if *number_first { apply(*op, number, value) } else { apply(*op, value, number) };
                series.iter_mut().for_each(|one| each(one, step, compute));
            }
            series.retain(|one| !one.samples.is_empty());
            series
        }
        SeriesExpr::Between { op, left, right } => {
            let left = evaluate(left, step, of_spans);
            let right = evaluate(right, step, of_spans);
            between(*op, step, left, right)
        }
        SeriesExpr::Kept { of, kept } => {
            let mut series = evaluate(of, step, of_spans);
            keep(&mut series, kept, step);
            series
        }
    }
}

fn apply(op: Operator, left: f64, right: f64) -> f64 {
    match op {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        // In either sign, and of zero, too.
        _ if right == 0.0 => f64::NAN,
        _ => left / right,
    }
}

/// An example has a value of its own; it goes with its moment all the same.
fn each(series: &mut Series, step: u64, compute: impl Fn(f64) -> f64) {
    series.samples.retain_mut(|(_, value)| {
        *value = compute(*value);
        value.is_finite()
    });
    series.exemplars.retain_mut(|exemplar| {
        exemplar.value = compute(exemplar.value);
        exemplar.value.is_finite()
    });
    series.drop_loose_exemplars(step);
}

fn between(op: Operator, step: u64, left: Vec<Series>, right: Vec<Series>) -> Vec<Series> {
    // The series of one side become the answer: of the one that has labels, else of the left one.
    let right_first = matches!(left.as_slice(), [only] if !has_labels(only)) && right.iter().all(has_labels);
    let (mut series, others) = if right_first { (right, left) } else { (left, right) };
    let compute = |own, other| if right_first { apply(op, other, own) } else { apply(op, own, other) };
    let by_labels: BTreeMap<String, &Series> = others.iter().map(|other| (key(other), other)).collect();
    series.retain_mut(|one| {
        let other = match others.as_slice() {
            [only] if !has_labels(only) => Some(only),
            _ => by_labels.get(&key(one)).copied(),
        };
        let Some(other) = other else { return false };
        meet(one, other, compute);
        on_line(one, step);
        if !has_labels(one) {
            one.labels = vec![(NAME.to_owned(), Value::text(format!("{} {} {}", name(one), op.symbol(), name(other))))];
        }
        !one.samples.is_empty()
    });
    series
}

/// Computes with the numbers of the moments that both have; both are in the order of time.
fn meet(one: &mut Series, other: &Series, compute: impl Fn(f64, f64) -> f64) {
    let mut others = other.samples.iter().peekable();
    one.samples.retain_mut(|(time, value)| {
        while others.next_if(|(other, _)| *other < *time).is_some() {}
        let Some((_, other)) = others.next_if(|(other, _)| *other == *time) else { return false };
        *value = compute(*value, *other);
        value.is_finite()
    });
}

/// Shows examples on the line: a quotient of series has no span of its own.
fn on_line(series: &mut Series, step: u64) {
    let mut exemplars = std::mem::take(&mut series.exemplars);
    exemplars.retain_mut(|exemplar| {
        let value = series.value_at(exemplar.time, step);
        exemplar.value = value.unwrap_or(exemplar.value);
        value.is_some()
    });
    series.exemplars = exemplars;
}

fn has_labels(series: &Series) -> bool {
    series.labels.iter().any(|(name, _)| name != NAME)
}

/// What a series without labels is called.
fn name(series: &Series) -> String {
    series.labels.first().map(|(_, name)| name.shown()).unwrap_or_default()
}

/// Equal for equal labels, in whatever order.
fn key(series: &Series) -> String {
    let mut labels: Vec<&(String, Value<'static>)> = series.labels.iter().filter(|(name, _)| name != NAME).collect();
    labels.sort_by(|left, right| left.0.cmp(&right.0));
    labels.dedup_by(|left, right| left.0 == right.0);
    let mut key = String::new();
    for (name, value) in labels {
        Value::text(name.as_str()).group_key(&mut key);
        value.group_key(&mut key);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::super::super::ast::{Body, Traceql};
    use super::super::SeriesExemplar;
    use super::*;

    /// `a=1,b=2` and the numbers of moments 0, 10, 20; `-`: none.
    fn series(labels: &str, numbers: &str) -> Series {
        let label =
            |label: &str| label.split_once('=').map(|(name, value)| (name.to_owned(), Value::text(value.to_owned())));
        let labels: Vec<(String, Value<'static>)> = labels.split(',').filter_map(label).collect();
        let sample = |(at, number): (usize, &str)| Some((at as u64 * 10, number.parse::<f64>().ok()?));
        let samples = numbers.split(' ').enumerate().filter_map(sample).collect();
        let exemplars = vec![SeriesExemplar { trace_id: [1; 16], time: 15, value: 7.0 }];
        Series { labels, samples, exemplars }
    }

    fn shown(one: &Series) -> String {
        let labels: Vec<String> = one.labels.iter().map(|(name, value)| format!("{name}={}", value.shown())).collect();
        let number = |at: u64| {
            let found = one.samples.iter().find(|(time, _)| *time == at * 10);
            found.map_or_else(|| "-".to_owned(), |(_, value)| value.to_string())
        };
        format!("{} {}", labels.join(","), (0..3).map(number).collect::<Vec<_>>().join(" "))
    }

    fn evaluated(query: &str, of_spans: &[&[Series]]) -> Vec<Series> {
        let query = Traceql::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        let Body::Series(expr) = &query.body else { panic!("{query}") };
        assert_eq!(expr.of_spans().len(), of_spans.len(), "{query}");
        evaluate(expr, 10, &mut of_spans.iter().map(|series| series.to_vec()))
    }

    fn check(query: &str, of_spans: &[&[Series]], expected: &[&str]) {
        let found: Vec<String> = evaluated(query, of_spans).iter().map(shown).collect();
        assert_eq!(found, expected, "{query}");
    }

    #[test]
    fn numbers_go_with_every_moment() {
        let rate = [series("__name__=rate", "1 2 -")];
        check("({} | rate()) * 60", &[&rate], &["__name__=rate 60 120 -"]);
        check("6 / ({} | rate())", &[&rate], &["__name__=rate 6 3 -"]);
        check("({} | rate()) - 5", &[&rate], &["__name__=rate -4 -3 -"]);
        check("10 - ({} | rate()) * -1", &[&rate], &["__name__=rate 11 12 -"]);
        check("({} | rate()) / (1024 * 2)", &[&[series("a=1", "2048 0 1")]], &["a=1 1 0 0.00048828125"]);
        check("({} | rate()) * 1e300 * 1e300", &[&rate], &[]);
    }

    #[test]
    fn series_of_the_same_labels_meet() {
        let left = [series("a=1,b=1", "1 2 3"), series("a=1,b=2", "1 1 1"), series("a=2,b=1", "4 4 4")];
        let right = [series("b=1,a=1", "2 - 2"), series("b=1,a=2", "0 8 0"), series("b=9,a=9", "1 1 1")];
        let query = "({} | rate() by(.a, .b)) / ({} | rate() by(.b, .a))";
        check(query, &[&left, &right], &["a=1,b=1 0.5 - 1.5", "a=2,b=1 - 0.5 -"]);
        check(query, &[&left, &[]], &[]);
        check(query, &[&[], &right], &[]);
    }

    #[test]
    fn a_side_without_labels_goes_with_all() {
        let by_service = [series("service=a", "1 2 3"), series("service=b", "3 2 -")];
        let all = [series("__name__=rate", "4 0 6")];
        let (grouped, total) = ("({} | rate() by(resource.service.name))", "({} | rate())");
        let expected = ["service=a 0.25 - 0.5", "service=b 0.75 - -"];
        check(&format!("{grouped} / {total}"), &[&by_service, &all], &expected);
        let expected = ["service=a 3 -2 3", "service=b 1 -2 -"];
        check(&format!("{total} - {grouped}"), &[&all, &by_service], &expected);
        check(&format!("{total} / {grouped}"), &[&all, &[]], &[]);
        check(&format!("{grouped} / {total}"), &[&by_service, &[]], &[]);
        check(
            "({} | rate()) / ({} | count_over_time())",
            &[&all, &[series("__name__=count_over_time", "8 0 2")]],
            &["__name__=rate / count_over_time 0.5 - 3"],
        );
    }

    #[test]
    fn products_come_first_and_what_is_kept_last() {
        let one = |number: &str| vec![series("__name__=rate", number)];
        let rate = "({} | rate())";
        let query = format!("100 * {rate} / {rate} + {rate} * 2");
        check(&query, &[&one("1"), &one("4"), &one("3")], &["__name__=rate / rate + rate 31 - -"]);
        let by = [series("a=1", "1 5 2"), series("a=2", "2 4 9")];
        let grouped = "({} | rate() by(.a))";
        check(&format!("{grouped} + {grouped} | topk(1) > 5"), &[&by, &by], &["a=1 - 10 -", "a=2 - - 18"]);
        check(&format!("({grouped} * 2 > 5) - 1"), &[&by], &["a=1 - 9 -", "a=2 - 7 17"]);
    }

    #[test]
    fn examples_stay_near_their_line() {
        let left = [series("a=1", "1 2 3")];
        let times = |query: &str, of_spans: &[&[Series]]| -> Vec<f64> {
            let series = evaluated(query, of_spans);
            series.iter().flat_map(|one| &one.exemplars).map(|exemplar| exemplar.value).collect()
        };
        assert_eq!(times("({} | rate() by(.a)) * 2", &[&left]), [14.0]);
        let quotient = "({} | rate() by(.a)) / ({} | rate() by(.a))";
        assert_eq!(times(quotient, &[&left, &[series("a=1", "1 4 1")]]), [0.5]);
        assert_eq!(times(quotient, &[&left, &[series("a=1", "1 0 1")]]), [0.0; 0], "there is no line");
        assert_eq!(times(quotient, &[&left, &[series("a=1", "1 - 1")]]), [0.0; 0], "one side has no such moment");
        assert_eq!(times("5 / ({} | rate() by(.a))", &[&[series("a=1", "1 0 1")]]), [0.0; 0], "nor is there one");
        assert_eq!(times("({} | rate() by(.a)) * 2 > 3", &[&left]), [14.0]);
        assert_eq!(times("({} | rate() by(.a)) * 2 > 5", &[&left]), [0.0; 0], "its moment is gone");
    }
}
