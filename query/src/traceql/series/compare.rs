//! `compare({ ... })`: how often each attribute has each value among the spans that a condition selects, and among the others.
//!
//! ```text
//! { __meta_type = "baseline",        resource.zone = "eu" }  12
//! { __meta_type = "selection",       resource.zone = "us" }   3
//! { __meta_type = "baseline_total",  resource.zone = nil }   12      spans of the group that have the attribute
//! { __meta_error = "__too_many_values__", span.user = nil }   0      only the most frequent are there
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::super::ast::{Comparison, Field, Intrinsic, Scope};
use super::super::eval::{self, At};
use super::super::spans::SpanColumns;
use super::super::value::Value;
use super::{CELL_BYTES, CELLS_MAX, Collected, SERIES_BYTES, Series, SeriesQuestion};
use crate::error::{QueryError, QueryErrorKind};

/// Values of an attribute in a group that are counted; of further ones only the total is.
const VALUES_MAX: usize = 10_000;

/// What is compared beside attributes.
const INTRINSICS: [Intrinsic; 4] = [Intrinsic::Name, Intrinsic::Kind, Intrinsic::Status, Intrinsic::StatusMessage];

/// Whose attributes are compared; `None`: intrinsics.
const SCOPES: [Option<Scope>; 3] = [None, Some(Scope::Resource), Some(Scope::Span)];

/// Of spans, by step.
type Counts = BTreeMap<u64, u64>;

/// Counts as they grow.
pub(super) struct Comparing<'q> {
    comparison: &'q Comparison,
    question: &'q SeriesQuestion,
    /// Baseline and selection, each by scope and name.
    groups: [[BTreeMap<String, Attribute>; SCOPES.len()]; 2],
    cells: usize,
    bytes: usize,
}

/// What is known of an attribute in one group.
#[derive(Default)]
struct Attribute {
    values: BTreeMap<String, Counted>,
    total: Counts,
    /// There are values that are not counted.
    more: bool,
}

/// One of its values.
struct Counted {
    value: Value<'static>,
    spans: u64,
    steps: Counts,
}

/// The fields that are read beside attributes, and one of each scope.
pub(in super::super) fn fields() -> impl Iterator<Item = Field> {
    let of_scope = |scope| Field::Attribute { parent: false, scope, name: String::new() };
    INTRINSICS.into_iter().map(Field::Intrinsic).chain(SCOPES.into_iter().flatten().map(of_scope))
}

impl<'q> Comparing<'q> {
    pub(super) fn new(comparison: &'q Comparison, question: &'q SeriesQuestion) -> Self {
        Self { comparison, question, groups: Default::default(), cells: 0, bytes: 0 }
    }

    fn count(&mut self, selected: bool, scope: usize, name: &str, value: Value<'_>, step: u64) {
        if value == Value::Nil || value == Value::text("") {
            return;
        }
        let attributes = &mut self.groups[usize::from(selected)][scope];
        if !attributes.contains_key(name) {
            self.bytes += SERIES_BYTES + name.len();
            attributes.insert(name.to_owned(), Attribute::default());
        }
        let Some(attribute) = attributes.get_mut(name) else { return };
        let mut cells = add(&mut attribute.total, step);
        let mut key = String::new();
        value.group_key(&mut key);
        if let Some(counted) = attribute.values.get_mut(&key) {
            counted.spans += 1;
            cells += add(&mut counted.steps, step);
        } else if attribute.values.len() < VALUES_MAX {
            self.bytes += SERIES_BYTES + key.len() * 3;
            let counted = Counted { value: value.into_owned(), spans: 1, steps: Counts::from([(step, 1)]) };
            attribute.values.insert(key, counted);
            cells += 1;
        } else {
            attribute.more = true;
        }
        self.cells += cells;
    }

    fn series(&self, kind: (&str, &str), label: &str, value: &Value<'static>, counts: &Counts) -> Series {
        let labels = vec![(kind.0.to_owned(), Value::text(kind.1.to_owned())), (label.to_owned(), value.clone())];
        let at = |step: u64| self.question.start + step * self.question.step;
        let samples = counts.iter().map(|(step, count)| (at(*step), *count as f64)).collect();
        Series { labels, samples, exemplars: Vec::new() }
    }
}

/// Says whether the step is a new one.
fn add(counts: &mut Counts, step: u64) -> usize {
    let count = counts.entry(step).or_default();
    *count += 1;
    usize::from(*count == 1)
}

impl Collected for Comparing<'_> {
    fn add(&mut self, at: At<'_>, columns: &SpanColumns<'_>, row: usize) -> Result<(), QueryError> {
        let time = columns.start(row);
        if time < self.question.start || time >= self.question.end {
            return Ok(());
        }
        let step = (time - self.question.start) / self.question.step;
        let within = self.comparison.within.is_none_or(|(start, end)| time >= start && time < end);
        let selected = within && eval::matches(&self.comparison.selection, at);
        for (scope, of) in SCOPES.into_iter().enumerate() {
            let lookup = match of {
                None => {
                    for intrinsic in INTRINSICS {
                        let field = Field::Intrinsic(intrinsic);
                        self.count(selected, scope, &intrinsic.to_string(), at.field(&field), step);
                    }
                    continue;
                }
                Some(Scope::Resource) => &columns.resource,
                Some(_) => &columns.span,
            };
            let Some(lookup) = lookup else { continue };
            for key in lookup.keys(row) {
                self.count(selected, scope, key, Value::of_attribute(lookup.get(row, key)), step);
            }
        }
        if self.cells > CELLS_MAX {
            let message =
                format!("the series have more than {CELLS_MAX} moments: ask for a longer step, or for fewer spans");
            return Err(QueryError::new(QueryErrorKind::Resources, message));
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.bytes + self.cells * CELL_BYTES
    }

    fn is_empty(&self) -> bool {
        self.cells == 0
    }

    fn finish(&self) -> Vec<Series> {
        let (mut out, mut cut) = (Vec::new(), BTreeSet::new());
        for (group, meta, meta_total) in [(0, "baseline", "baseline_total"), (1, "selection", "selection_total")] {
            for (scope, attributes) in SCOPES.into_iter().zip(&self.groups[group]) {
                for (name, attribute) in attributes {
                    let label = match scope {
                        None => name.clone(),
                        Some(scope) => Field::Attribute { parent: false, scope, name: name.clone() }.to_string(),
                    };
                    let mut values: Vec<&Counted> = attribute.values.values().collect();
                    values.sort_by_key(|counted| std::cmp::Reverse(counted.spans));
                    for counted in values.iter().take(self.comparison.top) {
                        out.push(self.series(("__meta_type", meta), &label, &counted.value, &counted.steps));
                    }
                    out.push(self.series(("__meta_type", meta_total), &label, &Value::Nil, &attribute.total));
                    if attribute.more || values.len() > self.comparison.top {
                        cut.insert(label);
                    }
                }
            }
        }
        let (error, nothing) = (("__meta_error", "__too_many_values__"), Counts::from([(0, 0)]));
        out.extend(cut.iter().map(|label| self.series(error, label, &Value::Nil, &nothing)));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::ast::{Function, Traceql};
    use super::*;

    /// `labels value@moment`, of each series.
    fn shown(comparing: &Comparing<'_>) -> Vec<String> {
        let one = |series: Series| {
            let labels: Vec<String> =
                series.labels.iter().map(|(name, value)| format!("{name}={}", value.shown())).collect();
            let samples: Vec<String> = series.samples.iter().map(|(time, value)| format!("{value}@{time}")).collect();
            format!("{} {}", labels.join(","), samples.join(" "))
        };
        comparing.finish().into_iter().map(one).collect()
    }

    fn check(query: &str, spans: &[(bool, usize, &str, &str, u64)], expected: &[&str]) {
        let query = Traceql::parse(query).expect(query);
        let question = SeriesQuestion { query: query.clone(), start: 100, end: 200, step: 50, exemplars: 0 };
        let metrics = query.metrics.expect("series");
        let Function::Compare(comparison) = &metrics.function else { panic!("{metrics}") };
        let mut comparing = Comparing::new(comparison, &question);
        for (selected, scope, name, value, step) in spans {
            comparing.count(*selected, *scope, name, Value::text(*value), *step);
        }
        assert_eq!(shown(&comparing), expected, "{metrics}");
    }

    #[test]
    fn values_are_counted_in_both_groups() {
        let spans = [
            (false, 1, "zone", "eu", 0),
            (false, 1, "zone", "eu", 1),
            (false, 1, "zone", "us", 1),
            (true, 1, "zone", "us", 0),
            (true, 0, "name", "pay", 0),
            (true, 2, "a b", "x", 1),
            (true, 2, "empty", "", 1),
        ];
        let expected = [
            "__meta_type=baseline,resource.zone=eu 1@100 1@150",
            "__meta_type=baseline,resource.zone=us 1@150",
            "__meta_type=baseline_total,resource.zone=nil 1@100 2@150",
            "__meta_type=selection,name=pay 1@100",
            "__meta_type=selection_total,name=nil 1@100",
            "__meta_type=selection,resource.zone=us 1@100",
            "__meta_type=selection_total,resource.zone=nil 1@100",
            "__meta_type=selection,span.\"a b\"=x 1@150",
            "__meta_type=selection_total,span.\"a b\"=nil 1@150",
        ];
        check("{} | compare({ status = error })", &spans, &expected);
        check("{} | compare({ status = error })", &[], &[]);
    }

    #[test]
    fn the_most_frequent_values_are_kept_and_that_there_are_more_is_said() {
        let spans = [
            (false, 2, "user", "a", 0),
            (false, 2, "user", "b", 0),
            (false, 2, "user", "b", 0),
            (true, 2, "user", "c", 0),
        ];
        let expected = [
            "__meta_type=baseline,span.user=b 2@100",
            "__meta_type=baseline_total,span.user=nil 3@100",
            "__meta_type=selection,span.user=c 1@100",
            "__meta_type=selection_total,span.user=nil 1@100",
            "__meta_error=__too_many_values__,span.user=nil 0@100",
        ];
        check("{} | compare({ status = error }, 1)", &spans, &expected);
    }

    #[test]
    fn values_beyond_a_bound_are_in_the_total_alone() {
        let query = Traceql::parse("{} | compare({ status = error }, 1)").expect("valid");
        let question = SeriesQuestion { query: query.clone(), start: 0, end: 1, step: 1, exemplars: 0 };
        let metrics = query.metrics.expect("series");
        let Function::Compare(comparison) = &metrics.function else { panic!("{metrics}") };
        let mut comparing = Comparing::new(comparison, &question);
        for n in 0..VALUES_MAX + 5 {
            comparing.count(false, 2, "id", Value::text(n.to_string()), 0);
        }
        assert_eq!(comparing.cells, VALUES_MAX + 1);
        let total = format!("__meta_type=baseline_total,span.id=nil {}@0", VALUES_MAX + 5);
        assert!(shown(&comparing).contains(&total), "{:?}", shown(&comparing));
        assert!(comparing.bytes() > VALUES_MAX * CELL_BYTES);
    }
}
