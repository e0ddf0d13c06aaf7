//! Reading spans: those of a condition, those of some traces, and which traces have a span of a condition.

use std::collections::BTreeSet;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use datafusion::common::ScalarValue;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::logical_expr::{Expr as Filter, LogicalPlanBuilder, ident, lit};
use signaldb_catalog::Identity;
use signaldb_model::Position;
use signaldb_signals::SignalTable;

use super::bytes::bytes_of;
use super::search::Inspected;
use crate::engine::{Allowance, Answers, Consistency, Portions, Progress, Query, QueryEngine, Scan, Shape};
use crate::error::QueryError;
use crate::parameters::Parameters;
use crate::views;

/// How far apart in time the spans of one trace are looked for.
const SPREAD_NANOS: u64 = 24 * 3600 * 1_000_000_000;

pub(super) type TraceId = [u8; 16];

/// Who asks, and what must be seen.
#[derive(Debug, Clone)]
pub struct Asked {
    pub identity: Identity,
    pub consistency: Consistency,
    pub min_position: Option<Position>,
    pub allowance: Allowance,
    /// How often an answer so far is wanted before the last one; `None`: never.
    pub progress: Option<Duration>,
}

/// What was found, and what was read for it: so far, or at last.
pub type Answered<T> = Answers<(T, Inspected)>;

/// A time range in nanoseconds since 1970, both ends included. A span is in it when a moment of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    pub start: Option<u64>,
    pub end: Option<u64>,
}

impl Window {
    /// Wide enough for all spans of the traces of spans that are in it.
    pub(super) fn spread(self) -> Self {
        Self {
            start: self.start.map(|start| start.saturating_sub(SPREAD_NANOS)),
            end: self.end.map(|end| end.saturating_add(SPREAD_NANOS)),
        }
    }

    fn filter(self) -> Option<Filter> {
        let nanos = |time: u64| lit(i64::try_from(time).unwrap_or(i64::MAX));
        let until = self.end.map(|end| ident("time_unix_nano").lt_eq(nanos(end)));
        // Some spans end before they start.
        let since = self.start.map(|start| {
            ident("end_time_unix_nano").gt_eq(nanos(start)).or(ident("time_unix_nano").gt_eq(nanos(start)))
        });
        and(until, since)
    }
}

pub(super) fn and(left: Option<Filter>, right: Option<Filter>) -> Option<Filter> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.and(right)),
        (left, right) => left.or(right),
    }
}

/// A trace with a span that a condition keeps, and when the newest of these spans began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: TraceId,
    pub(super) newest: i64,
}

/// Starts a question as one query. `text` says in `system.queries` what is asked.
pub(super) fn start<A, F>(
    engine: &QueryEngine,
    asked: Asked,
    text: String,
    work: impl FnOnce(Reader, Progress<A>) -> F + Send + 'static,
) -> Result<Answers<A>, QueryError>
where
    A: Send + 'static,
    F: Future<Output = Result<A, QueryError>> + Send + 'static,
{
    let Asked { identity, consistency, min_position, allowance, progress } = asked;
    let query = Query { identity, sql: text, parameters: Parameters::default(), consistency, min_position, allowance };
    engine.in_portions(query, SignalTable::Traces, progress, |portions, progress| {
        work(Reader { portions, inspected: Inspected::default() }, progress)
    })
}

/// Reads spans for one question.
pub(super) struct Reader {
    portions: Portions,
    inspected: Inspected,
}

/// Spans as they come.
pub(super) struct Spans(Scan);

impl Reader {
    /// Counts memory that the question holds.
    pub(super) fn memory(&self, what: &str) -> MemoryReservation {
        self.portions.memory(what)
    }

    /// What was read so far.
    pub(super) fn inspected(&self) -> Inspected {
        Inspected { missing_groups: self.portions.missing().clone(), ..self.inspected.clone() }
    }

    pub(super) fn note_traces(&mut self, traces: usize) {
        self.inspected.traces += traces as u64;
    }

    /// The next of the spans, `None` after the last. Texts are plain: whoever looks at them, and keeps them, knows no views.
    pub(super) async fn next(&mut self, spans: &mut Spans) -> Result<Option<RecordBatch>, QueryError> {
        let Some(batch) = self.portions.next(&mut spans.0).await? else { return Ok(None) };
        // They may be kept for long, and are counted by their own bytes.
        let batch = views::without_views(&batch)?;
        self.inspected.bytes += bytes_of(&batch) as u64;
        self.inspected.spans += batch.num_rows() as u64;
        Ok(Some(batch))
    }

    /// The spans that a filter keeps; `columns` are stored ones.
    pub(super) async fn spans(
        &mut self,
        columns: &BTreeSet<&'static str>,
        filter: Option<Filter>,
    ) -> Result<Spans, QueryError> {
        let columns: Vec<Filter> = columns.iter().map(|name| ident(*name)).collect();
        let shape: Shape = Box::new(move |scan: LogicalPlanBuilder| {
            let scan = match &filter {
                Some(filter) => scan.filter(filter.clone())?,
                None => scan,
            };
            scan.project(columns.clone())?.build()
        });
        Ok(Spans(self.portions.scan(shape, true).await?))
    }

    /// Traces with a span in the window that the filter keeps, newest first, up to `limit` of those behind `after`.
    pub(super) async fn candidates(
        &mut self,
        window: Window,
        filter: Option<Filter>,
        after: Option<Candidate>,
        limit: usize,
    ) -> Result<Vec<Candidate>, QueryError> {
        let filter = and(and(window.filter(), filter), Some(ident("trace_id").is_not_null()));
        let shape: Shape = Box::new(move |scan: LogicalPlanBuilder| {
            let mut plan = match &filter {
                Some(filter) => scan.filter(filter.clone())?,
                None => scan,
            };
            plan = plan.aggregate([ident("trace_id")], [max(ident("time_unix_nano")).alias("newest")])?;
            if let Some(after) = after {
                let earlier = ident("newest").lt(lit(after.newest));
                let same = ident("newest").eq(lit(after.newest)).and(ident("trace_id").lt(id_literal(&after.id)));
                plan = plan.filter(earlier.or(same))?;
            }
            plan.project([ident("trace_id"), ident("newest")])?
                .sort([ident("newest").sort(false, false), ident("trace_id").sort(false, false)])?
                .limit(0, Some(limit))?
                .build()
        });
        // A trace that changed meanwhile may have moved before `after`.
        let mut scan = self.portions.scan(shape, after.is_none()).await?;
        let mut found = Vec::new();
        while let Some(batch) = self.portions.next(&mut scan).await? {
            found.extend(read_candidates(&batch));
        }
        Ok(found)
    }
}

fn read_candidates(batch: &RecordBatch) -> Vec<Candidate> {
    let ids = batch.column(0).as_fixed_size_binary();
    let newest = batch.column(1).as_primitive::<Int64Type>();
    let read = |row: usize| {
        let id = TraceId::try_from(ids.value(row)).ok()?;
        Some(Candidate { id, newest: newest.is_valid(row).then(|| newest.value(row))? })
    };
    (0..batch.num_rows()).filter_map(read).collect()
}

fn id_literal(id: &TraceId) -> Filter {
    lit(ScalarValue::FixedSizeBinary(16, Some(id.to_vec())))
}

/// The spans of these traces, with the times that a window allows.
pub(super) fn of_traces(ids: &[TraceId], window: Window) -> Option<Filter> {
    let ids = match ids {
        [id] => ident("trace_id").eq(id_literal(id)),
        ids => ident("trace_id").in_list(ids.iter().map(id_literal).collect(), false),
    };
    and(Some(ids), window.filter())
}

/// The filter of a window and a condition.
pub(super) fn in_window(window: Window, filter: Option<Filter>) -> Option<Filter> {
    and(window.filter(), filter)
}
