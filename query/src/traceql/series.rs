//! Series of spans over time: `{ ... } | rate() by (...)`.
//!
//! A span belongs to the step in which it begins. Conditions on single spans are one scan whose rows are counted as they
//! come; what needs whole traces goes through [`super::search::Traces`]. What is counted is counted as the query's memory,
//! too.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::{ident, lit};

use super::ast::{
    BUCKET, Body, Field, Function, Keep, Literal, Metrics, Operator, QUANTILE, SeriesExpr, SpanSeries, Spanset, Stage,
    Traceql,
};
use super::bytes::bytes_of;
use super::eval::{self, At};
use super::pushdown;
use super::scan::{self, Answered, Asked, Reader, Window, and};
use super::search::{Inspected, Traces, add_columns};
use super::spans::{ALWAYS, SpanColumns};
use super::value::{Value, holds};
use crate::engine::{Progress, QueryEngine};
use crate::error::{QueryError, QueryErrorKind};

mod arithmetic;
pub(super) mod compare;

/// Moments of a series.
pub const STEPS_MAX: u64 = 11_000;
/// Series of an answer, before `topk` and `bottomk`.
const SERIES_MAX: usize = 10_000;
/// Moments of all series together. A quantile has one for each of its buckets, and one for each number that it says.
const CELLS_MAX: usize = 2_000_000;
/// What the labels of all series may take.
const LABEL_BYTES_MAX: usize = 64 << 20;
/// What a series takes without its labels, and a moment of it or a bucket of a quantile, while it grows and as a message.
const SERIES_BYTES: usize = 300;
const CELL_BYTES: usize = 96;
/// The only label of series that are not grouped.
const NAME: &str = "__name__";
/// What an answer so far may take; a larger one is not said.
const SO_FAR_BYTES_MAX: usize = 4 << 20;
/// Buckets of a quantile from one power of two to the next: what it says is within 2.2 % of the truth.
const BUCKETS_PER_DOUBLING: f64 = 16.0;

/// A question for series.
#[derive(Debug)]
pub struct SeriesQuestion {
    pub query: Traceql,
    /// Nanoseconds since 1970; the start is included, the end is not.
    pub start: u64,
    pub end: u64,
    /// Nanoseconds; one step from start to end gives a single value.
    pub step: u64,
    /// Spans that are named as examples, over all series.
    pub exemplars: usize,
}

/// A series.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub labels: Vec<(String, Value<'static>)>,
    /// Start of the step, in nanoseconds, and value.
    pub samples: Vec<(u64, f64)>,
    pub exemplars: Vec<SeriesExemplar>,
}

/// A span of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesExemplar {
    pub trace_id: [u8; 16],
    pub time: u64,
    pub value: f64,
}

impl QueryEngine {
    /// Computes series.
    ///
    /// # Errors
    /// [`QueryErrorKind::Invalid`] for a query that asks for no series, or for too many moments. Others come as the answer:
    /// those of [`QueryEngine::run`], and [`QueryErrorKind::Resources`] for too many series.
    pub fn span_series(&self, asked: Asked, question: SeriesQuestion) -> Result<Answered<Vec<Series>>, QueryError> {
        let invalid = |message: String| Err(QueryError::new(QueryErrorKind::Invalid, message));
        if matches!(question.query.body, Body::Traces(_)) {
            return invalid(
                "the query asks for no series: it ends with no rate(), count_over_time() or the like".into(),
            );
        }
        if question.step == 0 || question.end <= question.start {
            return invalid("the end must be after the start, and the step above 0".into());
        }
        let steps = (question.end - question.start).div_ceil(question.step);
        if steps > STEPS_MAX {
            return invalid(format!("{steps} steps are more than {STEPS_MAX}: ask for a longer step"));
        }
        let text = question.query.source.clone();
        scan::start(self, asked, text, |reader, progress| compute(reader, question, progress))
    }
}

type Found = (Vec<Series>, Inspected);

/// Series as they grow, span by span.
trait Collected {
    fn add(&mut self, at: At<'_>, columns: &SpanColumns<'_>, row: usize) -> Result<(), QueryError>;

    /// What it takes in memory, and what the series that are made of it take, about.
    fn bytes(&self) -> usize;

    fn is_empty(&self) -> bool;

    fn finish(&self) -> Vec<Series>;
}

async fn compute(
    mut reader: Reader,
    question: SeriesQuestion,
    mut progress: Progress<Found>,
) -> Result<Found, QueryError> {
    let Body::Series(expr) = &question.query.body else { return Ok((Vec::new(), Inspected::default())) };
    // What one side of a quotient is so far answers nothing.
    let mut progress = matches!(expr, SeriesExpr::Spans(_)).then_some(&mut progress);
    let (mut of_spans, mut held) = (Vec::new(), Vec::new());
    for spans in expr.of_spans() {
        let collected = match &spans.metrics.function {
            Function::Compare(comparison) => {
                let comparing = compare::Comparing::new(comparison, &question);
                Box::pin(collect(reader, &question, spans, comparing, progress.as_deref_mut())).await?
            }
            _ => {
                let tally = Tally::new(&spans.metrics, &question);
                Box::pin(collect(reader, &question, spans, tally, progress.as_deref_mut())).await?
            }
        };
        of_spans.push(collected.series);
        held.push(collected.held);
        reader = collected.reader;
        // Both sides of a quotient are of one moment.
        reader.stays();
    }
    // They change in place, and none is made anew: what they take is counted.
    let series = arithmetic::evaluate(expr, question.step, &mut of_spans.into_iter());
    Ok((series, reader.inspected()))
}

/// Whether the labels and numbers of a span are known without the other spans of its trace.
fn is_local(metrics: &Metrics) -> bool {
    let needs_trace = |field: &Field| field.needs_trace();
    let selects_locally = match &metrics.function {
        Function::Compare(comparison) => eval::is_local(&comparison.selection),
        _ => true,
    };
    selects_locally && !metrics.by.iter().chain(Function::field(&metrics.function)).any(needs_trace)
}

/// Series of spans, and what they take.
struct OfSpans {
    series: Vec<Series>,
    held: MemoryReservation,
    reader: Reader,
}

async fn collect(
    mut reader: Reader,
    question: &SeriesQuestion,
    SpanSeries { stages, metrics }: &SpanSeries,
    mut tally: impl Collected,
    mut progress: Option<&mut Progress<Found>>,
) -> Result<OfSpans, QueryError> {
    let mut columns = BTreeSet::from(ALWAYS);
    add_columns(stages, Some(metrics), &mut columns);
    let filter = pushdown::of_stages(stages);
    let held = reader.memory("series");
    let condition = match stages.as_slice() {
        [Stage::Spans(Spanset::Filter(expr))] if eval::is_local(expr) && is_local(metrics) => expr,
        stages => {
            let window = Window { start: Some(question.start), end: Some(question.end - 1) };
            let mut traces = Traces::new(reader, window, filter, columns);
            while let Some(portion) = traces.next().await? {
                let mut seen = 0;
                while seen < portion.traces() {
                    seen = portion.some(seen, |_, trace| {
                        let sets = eval::pipeline(stages, trace);
                        let spans: BTreeSet<usize> = sets.into_iter().flat_map(|set| set.spans).collect();
                        spans.into_iter().try_for_each(|at| {
                            let span = trace.spans[at];
                            tally.add(At::in_trace(trace, at), span.columns, span.row)
                        })
                    })?;
                    held.try_resize(tally.bytes())?;
                    tokio::task::yield_now().await;
                }
                say(&tally, progress.as_deref_mut(), || traces.inspected());
            }
            return Ok(OfSpans { series: tally.finish(), held, reader: traces.into_reader() });
        }
    };
    let nanos = |time: u64| lit(i64::try_from(time).unwrap_or(i64::MAX));
    let time = ident("time_unix_nano");
    let within = time.clone().gt_eq(nanos(question.start)).and(time.lt(nanos(question.end)));
    let mut spans = reader.spans(&columns, and(Some(within), filter)).await?;
    while let Some(batch) = reader.next(&mut spans).await? {
        held.try_resize(tally.bytes() + bytes_of(&batch))?;
        let columns = SpanColumns::of(&batch);
        for row in 0..columns.rows {
            let at = At::span(&columns, row);
            if eval::matches(condition, at) {
                tally.add(at, &columns, row)?;
            }
        }
        say(&tally, progress.as_deref_mut(), || reader.inspected());
    }
    held.try_resize(tally.bytes())?;
    Ok(OfSpans { series: tally.finish(), held, reader })
}

/// Says the series so far when it is time, unless they are large.
fn say(tally: &impl Collected, progress: Option<&mut Progress<Found>>, inspected: impl FnOnce() -> Inspected) {
    let Some(progress) = progress else { return };
    if progress.is_due() && !tally.is_empty() && tally.bytes() <= SO_FAR_BYTES_MAX {
        progress.so_far((tally.finish(), Inspected { so_far: true, ..inspected() }));
    }
}

/// What is known of a series in one step.
#[derive(Debug, Clone)]
enum Cell {
    Count(u64),
    /// The least or the greatest.
    One(f64),
    Sum {
        total: f64,
        count: u64,
    },
    Sketch(Sketch),
}

/// Numbers, counted in buckets that grow with them.
#[derive(Debug, Clone, Default)]
struct Sketch {
    /// Numbers below 0, by what they are without their sign.
    below: BTreeMap<i32, u64>,
    zeros: u64,
    above: BTreeMap<i32, u64>,
    count: u64,
    min: f64,
    max: f64,
}

impl Sketch {
    /// Says whether the number is the first of its bucket.
    fn add(&mut self, value: f64) -> bool {
        (self.min, self.max) =
            if self.count == 0 { (value, value) } else { (self.min.min(value), self.max.max(value)) };
        self.count += 1;
        let bucket = |size: f64| (size.log2() * BUCKETS_PER_DOUBLING).floor() as i32;
        let count = if value > 0.0 {
            self.above.entry(bucket(value)).or_default()
        } else if value < 0.0 {
            self.below.entry(bucket(-value)).or_default()
        } else {
            self.zeros += 1;
            return false;
        };
        *count += 1;
        *count == 1
    }

    fn quantile(&self, quantile: f64) -> f64 {
        let rank = ((self.count as f64 * quantile).ceil() as u64).clamp(1, self.count.max(1));
        if rank == self.count {
            return self.max;
        }
        let middle = |bucket: i32| ((f64::from(bucket) + 0.5) / BUCKETS_PER_DOUBLING).exp2();
        let below = self.below.iter().rev().map(|(bucket, count)| (-middle(*bucket), *count));
        let above = self.above.iter().map(|(bucket, count)| (middle(*bucket), *count));
        let mut seen = 0;
        for (value, count) in below.chain([(0.0, self.zeros)]).chain(above) {
            seen += count;
            if seen >= rank {
                return value.clamp(self.min, self.max);
            }
        }
        self.max
    }
}

struct Growing {
    labels: Vec<(String, Value<'static>)>,
    cells: BTreeMap<u64, Cell>,
    exemplars: Vec<SeriesExemplar>,
}

/// Series as they grow.
struct Tally<'q> {
    metrics: &'q Metrics,
    question: &'q SeriesQuestion,
    series: BTreeMap<String, Growing>,
    cells: usize,
    label_bytes: usize,
    /// Series that are made of one that grows.
    outcomes: usize,
    /// Moments that each series has at least: what is counted has them all.
    moments: usize,
    exemplars: usize,
}

impl<'q> Tally<'q> {
    fn new(metrics: &'q Metrics, question: &'q SeriesQuestion) -> Self {
        let steps = (question.end - question.start).div_ceil(question.step);
        let moments = if counts(&metrics.function) { usize::try_from(steps).unwrap_or(usize::MAX) } else { 1 };
        let outcomes = match &metrics.function {
            Function::QuantileOverTime(_, quantiles) => quantiles.len(),
            _ => 1,
        };
        let series = BTreeMap::new();
        Self { metrics, question, series, cells: 0, label_bytes: 0, outcomes, moments, exemplars: 0 }
    }
}

impl Collected for Tally<'_> {
    fn add(&mut self, at: At<'_>, columns: &SpanColumns<'_>, row: usize) -> Result<(), QueryError> {
        let time = columns.start(row);
        if time < self.question.start || time >= self.question.end {
            return Ok(());
        }
        let value = match Function::field(&self.metrics.function) {
            None => None,
            Some(field) => match at.field(field).number() {
                Some(value) if !value.is_nan() => Some(value),
                _ => return Ok(()),
            },
        };
        let mut labels: Vec<(String, Value<'_>)> =
            self.metrics.by.iter().map(|field| (field.to_string(), first(at.field(field)))).collect();
        if let (Function::HistogramOverTime(_), Some(value)) = (&self.metrics.function, value) {
            labels.push((BUCKET.to_owned(), Value::Float(upper_bound(value))));
        }
        let mut key = String::new();
        labels.iter().for_each(|(_, value)| value.group_key(&mut key));
        let (known, key_bytes) = (self.series.len(), key.len());
        let series = self.series.entry(key).or_insert_with(|| Growing {
            labels: labels.into_iter().map(|(name, value)| (name, value.into_owned())).collect(),
            cells: BTreeMap::new(),
            exemplars: Vec::new(),
        });
        let step = (time - self.question.start) / self.question.step;
        let new = !series.cells.contains_key(&step);
        if grow(&self.metrics.function, series.cells.entry(step), value.unwrap_or(0.0)) {
            self.cells += 1;
        }
        if new {
            self.cells += self.outcomes;
            if self.exemplars < self.question.exemplars
                && let Ok(trace_id) = columns.trace_id(row).try_into()
            {
                self.exemplars += 1;
                series.exemplars.push(SeriesExemplar { trace_id, time, value: value.unwrap_or(f64::NAN) });
            }
        }
        if self.series.len() > known {
            self.label_bytes += key_bytes * self.outcomes;
            if self.label_bytes > LABEL_BYTES_MAX {
                let message = format!("the labels of the series take more than {LABEL_BYTES_MAX} bytes");
                return Err(QueryError::new(QueryErrorKind::Resources, message));
            }
        }
        if known >= SERIES_MAX && self.series.len() > SERIES_MAX {
            let message = format!("the query has more than {SERIES_MAX} series: group by something with fewer values");
            return Err(QueryError::new(QueryErrorKind::Resources, message));
        }
        if self.cells.max(self.series.len().saturating_mul(self.moments)) > CELLS_MAX {
            let message = format!("the series have more than {CELLS_MAX} moments: ask for a longer step");
            return Err(QueryError::new(QueryErrorKind::Resources, message));
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let cells = self.cells.max(self.series.len().saturating_mul(self.moments));
        cells * CELL_BYTES + self.series.len() * SERIES_BYTES + self.label_bytes * 3
    }

    fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    fn finish(&self) -> Vec<Series> {
        let Self { metrics, question, series, .. } = self;
        let mut out: Vec<Series> = series.values().flat_map(|growing| finished(growing, metrics, question)).collect();
        keep(&mut out, &metrics.kept, question.step);
        out
    }
}

/// What a label has of many events: the first.
fn first(value: Value<'_>) -> Value<'_> {
    match value {
        Value::List(values) => values.into_iter().find(|value| *value != Value::Nil).unwrap_or(Value::Nil),
        value => value,
    }
}

fn counts(function: &Function) -> bool {
    matches!(function, Function::Rate | Function::CountOverTime | Function::HistogramOverTime(_))
}

/// The power of two, as seconds where it is a duration, at or above a value.
fn upper_bound(value: f64) -> f64 {
    if value <= 0.0 { 0.0 } else { value.log2().ceil().exp2() }
}

/// Says whether the cell takes more room than before, beside that of a new one.
fn grow(function: &Function, cell: std::collections::btree_map::Entry<'_, u64, Cell>, value: f64) -> bool {
    let cell = cell.or_insert_with(|| match function {
        Function::Rate | Function::CountOverTime | Function::HistogramOverTime(_) | Function::Compare(_) => {
            Cell::Count(0)
        }
        Function::MinOverTime(_) | Function::MaxOverTime(_) => Cell::One(value),
        Function::AvgOverTime(_) | Function::SumOverTime(_) => Cell::Sum { total: 0.0, count: 0 },
        Function::QuantileOverTime(..) => Cell::Sketch(Sketch::default()),
    });
    match cell {
        Cell::Count(count) => *count += 1,
        Cell::One(one) if matches!(function, Function::MinOverTime(_)) => *one = one.min(value),
        Cell::One(one) => *one = one.max(value),
        Cell::Sum { total, count } => {
            *total += value;
            *count += 1;
        }
        Cell::Sketch(sketch) => return sketch.add(value),
    }
    false
}

fn finished(growing: &Growing, metrics: &Metrics, question: &SeriesQuestion) -> Vec<Series> {
    let Growing { labels, cells, exemplars } = growing;
    let mut labels = labels.clone();
    let at = |step: u64| question.start + step * question.step;
    if let Function::QuantileOverTime(_, quantiles) = &metrics.function {
        return quantiles
            .iter()
            .map(|quantile| {
                let mut labels = labels.clone();
                labels.push((QUANTILE.to_owned(), Value::Float(*quantile)));
                let value =
                    |cell: &Cell| if let Cell::Sketch(sketch) = cell { sketch.quantile(*quantile) } else { 0.0 };
                let samples = cells.iter().map(|(step, cell)| (at(*step), value(cell))).collect();
                Series { labels, samples, exemplars: exemplars.clone() }
            })
            .collect();
    }
    let seconds = question.step.min(question.end - question.start) as f64 / 1e9;
    let value = |cell: &Cell| match (cell, &metrics.function) {
        (Cell::Count(count), Function::Rate) => *count as f64 / seconds,
        (Cell::Count(count), _) => *count as f64,
        (Cell::One(one), _) => *one,
        (Cell::Sum { total, count }, Function::AvgOverTime(_)) => total / (*count).max(1) as f64,
        (Cell::Sum { total, .. }, _) => *total,
        (Cell::Sketch(_), _) => 0.0,
    };
    // What is counted is 0 where nothing is; what is measured is not there.
    let steps = (question.end - question.start).div_ceil(question.step);
    let samples: Vec<(u64, f64)> = if counts(&metrics.function) {
        (0..steps).map(|step| (at(step), cells.get(&step).map_or(0.0, value))).collect()
    } else {
        cells.iter().map(|(step, cell)| (at(*step), value(cell))).collect()
    };
    if labels.is_empty() {
        labels.push((NAME.to_owned(), Value::text(metrics.function.name())));
    }
    // A count has no value of its own: an example is shown on the line.
    let shown = |exemplar: &SeriesExemplar| {
        let step = (exemplar.time - question.start) / question.step;
        let on_line = || cells.get(&step).map_or(0.0, value);
        SeriesExemplar { value: if exemplar.value.is_nan() { on_line() } else { exemplar.value }, ..exemplar.clone() }
    };
    vec![Series { labels, samples, exemplars: exemplars.iter().map(shown).collect() }]
}

impl Series {
    /// The value in the step, `step` long, of a moment.
    fn value_at(&self, moment: u64, step: u64) -> Option<f64> {
        let behind = self.samples.partition_point(|(time, _)| *time <= moment);
        let (time, value) = *self.samples.get(behind.checked_sub(1)?)?;
        (moment - time < step).then_some(value)
    }

    /// Examples of steps that have no value are examples of nothing.
    fn drop_loose_exemplars(&mut self, step: u64) {
        let mut exemplars = std::mem::take(&mut self.exemplars);
        exemplars.retain(|exemplar| self.value_at(exemplar.time, step).is_some());
        self.exemplars = exemplars;
    }
}

/// Keeps what is to be kept, one after the other; a series of which nothing is goes. Steps are `step` long.
fn keep(series: &mut Vec<Series>, kept: &[Keep], step: u64) {
    for keep in kept {
        match keep {
            Keep::Top(count) => keep_ranked(series, *count, |left, right| right.total_cmp(&left)),
            Keep::Bottom(count) => keep_ranked(series, *count, |left, right| left.total_cmp(&right)),
            Keep::Where(op, than) => keep_where(series, *op, than),
        }
        series.retain(|one| !one.samples.is_empty());
    }
    if !kept.is_empty() {
        series.iter_mut().for_each(|one| one.drop_loose_exemplars(step));
    }
}

/// Keeps the first values of each moment in an order.
fn keep_ranked(series: &mut [Series], count: usize, order: impl Fn(f64, f64) -> Ordering) {
    let mut moments: BTreeMap<u64, Vec<(f64, usize)>> = BTreeMap::new();
    for (at, one) in series.iter().enumerate() {
        for (time, value) in &one.samples {
            moments.entry(*time).or_default().push((*value, at));
        }
    }
    let mut kept: BTreeSet<(usize, u64)> = BTreeSet::new();
    for (time, mut values) in moments {
        values.sort_by(|left, right| order(left.0, right.0).then(left.1.cmp(&right.1)));
        kept.extend(values.into_iter().take(count).map(|(_, at)| (at, time)));
    }
    for (at, one) in series.iter_mut().enumerate() {
        one.samples.retain(|(time, _)| kept.contains(&(at, *time)));
    }
}

/// Durations compare as seconds, as they are in series.
fn keep_where(series: &mut [Series], op: Operator, than: &Literal) {
    let Some(than) = Value::of_literal(than).number() else { return };
    let fits = |value: f64| value.partial_cmp(&than).is_some_and(|ordering| holds(op, ordering));
    series.iter_mut().for_each(|one| one.samples.retain(|(_, value)| fits(*value)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_the_truth() {
        let mut sketch = Sketch::default();
        for n in 1..=1000 {
            sketch.add(f64::from(n) / 1000.0);
        }
        for quantile in [0.01, 0.5, 0.9, 0.99] {
            let found = sketch.quantile(quantile);
            assert!((found - quantile).abs() <= quantile * 0.03 + 0.001, "{quantile}: {found}");
        }
        assert_eq!(sketch.quantile(1.0), 1.0);
        let mut one = Sketch::default();
        assert!(one.add(0.25), "a new bucket");
        assert_eq!((one.quantile(0.0), one.quantile(0.5)), (0.25, 0.25));
        assert!(!one.add(0.25) && one.add(1.0) && one.add(-1.0), "only the first number of a bucket takes room");
    }

    #[test]
    fn quantiles_of_numbers_below_zero_are_near_the_truth() {
        let mut sketch = Sketch::default();
        for n in -1000..=1000 {
            sketch.add(f64::from(n));
        }
        for (quantile, expected) in [(0.1, -800.0), (0.25, -500.0), (0.75, 500.0), (1.0, 1000.0)] {
            let found = sketch.quantile(quantile);
            assert!((found - expected).abs() <= 25.0, "{quantile}: {found}");
        }
        assert_eq!(sketch.quantile(0.5), 0.0);
    }

    #[test]
    fn buckets_are_powers_of_two() {
        for (value, bound) in [(0.0, 0.0), (0.25, 0.25), (0.3, 0.5), (1.0, 1.0), (5.0, 8.0)] {
            assert_eq!(upper_bound(value), bound, "{value}");
        }
    }

    #[test]
    fn ranks_are_of_each_moment() {
        let one = |name: &str, samples: &[(u64, f64)]| Series {
            labels: vec![(name.to_owned(), Value::Nil)],
            samples: samples.to_vec(),
            exemplars: Vec::new(),
        };
        let all =
            || vec![one("a", &[(0, 1.0), (1, 9.0)]), one("b", &[(0, 2.0), (1, 3.0)]), one("c", &[(0, 0.5), (1, 1.0)])];
        let mut top = all();
        keep(&mut top, &[Keep::Top(1)], 1);
        assert_eq!(top, [one("a", &[(1, 9.0)]), one("b", &[(0, 2.0)])]);
        let mut bottom = all();
        keep(&mut bottom, &[Keep::Bottom(2)], 1);
        assert_eq!(bottom, [one("a", &[(0, 1.0)]), one("b", &[(1, 3.0)]), one("c", &[(0, 0.5), (1, 1.0)])]);
    }

    #[test]
    fn comparisons_are_of_each_moment_and_in_their_place() {
        let of = |name: &str, samples: &[(u64, f64)]| Series {
            labels: vec![(name.to_owned(), Value::Nil)],
            samples: samples.to_vec(),
            exemplars: Vec::new(),
        };
        let check = |kept: &[Keep], expected: &[Series]| {
            let mut series = vec![of("a", &[(0, 1.0), (1, 9.0)]), of("b", &[(0, 2.0), (1, 3.0)]), of("c", &[(0, 0.5)])];
            keep(&mut series, kept, 1);
            assert_eq!(series, expected, "{kept:?}");
        };
        let (two, three) = (Literal::Int(2), Literal::Duration(3_000_000_000));
        check(&[Keep::Where(Operator::Greater, two.clone())], &[of("a", &[(1, 9.0)]), of("b", &[(1, 3.0)])]);
        check(&[Keep::Where(Operator::Equal, two.clone())], &[of("b", &[(0, 2.0)])]);
        check(&[Keep::Where(Operator::GreaterOrEqual, three)], &[of("a", &[(1, 9.0)]), of("b", &[(1, 3.0)])]);
        let least = Keep::Bottom(1);
        check(&[Keep::Where(Operator::GreaterOrEqual, two.clone()), least.clone()], &[of("b", &[(0, 2.0), (1, 3.0)])]);
        check(&[least, Keep::Where(Operator::GreaterOrEqual, two)], &[of("b", &[(1, 3.0)])]);
    }

    #[test]
    fn an_example_goes_with_its_moment() {
        let example = |time: u64| SeriesExemplar { trace_id: [1; 16], time, value: 7.0 };
        // Steps are 10 long and begin at 100; the first example of each is at its beginning, the second at its end.
        let of = |name: &str, samples: &[(u64, f64)]| Series {
            labels: vec![(name.to_owned(), Value::Nil)],
            samples: samples.to_vec(),
            exemplars: [100, 109, 110, 119, 120, 129].map(example).to_vec(),
        };
        let check = |kept: &[Keep], expected: &[(&str, &[u64])]| {
            let mut series =
                vec![of("a", &[(100, 1.0), (110, 9.0), (120, 2.0)]), of("b", &[(100, 3.0), (110, 2.0), (120, 1.0)])];
            keep(&mut series, kept, 10);
            let times = |one: &Series| one.exemplars.iter().map(|exemplar| exemplar.time).collect::<Vec<_>>();
            let found: Vec<_> = series.iter().map(|one| (one.labels[0].0.as_str(), times(one))).collect();
            let expected: Vec<_> = expected.iter().map(|(name, times)| (*name, times.to_vec())).collect();
            assert_eq!(found, expected, "{kept:?}");
        };
        let all: &[u64] = &[100, 109, 110, 119, 120, 129];
        check(&[], &[("a", all), ("b", all)]);
        check(&[Keep::Top(2)], &[("a", all), ("b", all)]);
        check(&[Keep::Top(1)], &[("a", &[110, 119, 120, 129]), ("b", &[100, 109])]);
        check(&[Keep::Bottom(1)], &[("a", &[100, 109]), ("b", &[110, 119, 120, 129])]);
        check(&[Keep::Where(Operator::Greater, Literal::Int(5))], &[("a", &[110, 119])]);
        check(&[Keep::Top(1), Keep::Where(Operator::Less, Literal::Int(3))], &[("a", &[120, 129])]);
    }
}
