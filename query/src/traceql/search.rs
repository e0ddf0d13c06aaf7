//! Finding traces: which may match (a scan), then the spans of some of them at a time, newest first, until there are
//! enough. Memory holds one portion of traces, and what was found; all of it is counted as the query's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::Expr as Filter;
use signaldb_signals::promoted;

use super::ast::{Expr, Field, Function, Intrinsic, Metrics, Scalar, Spanset as SpansetExpr, Stage, Traceql};
use super::bytes::bytes_of;
use super::eval::{self, At};
use super::pushdown;
use super::scan::{self, Answered, Asked, Candidate, Reader, TraceId, Window, of_traces};
use super::series::compare;
use super::spans::{ALWAYS, SpanColumns, columns_of};
use super::trace::{SpanRef, Trace};
use super::value::Value;
use crate::engine::{Progress, QueryEngine};
use crate::error::{QueryError, QueryErrorKind};

/// Traces of which one scan tells the ids.
const CANDIDATES: usize = 10_000;
/// Traces whose spans are read at once, at first and at most.
const PORTION: usize = 32;
const PORTION_MAX: usize = 512;
/// What the spans of a portion may take, if the query may hold as much; beyond it the portion is halved.
const PORTION_BYTES: usize = 64 << 20;
/// What a span takes beside its values while its trace is looked at: its places in the tree and in sets of spans.
const SPAN_BYTES: usize = 256;
/// What the traces of one answer may take, spans that are shown included: messages and text are made of it.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The same of an answer so far; a larger one is not said.
const SO_FAR_BYTES_MAX: usize = 2 << 20;
/// What a trace, a spanset, a span or an attribute takes without its texts, about.
const ENTRY_BYTES: usize = 100;
/// How long traces are looked at before other tasks have their turn.
const TURN: Duration = Duration::from_millis(10);
/// Traces that one answer may list.
pub const TRACES_MAX: usize = 10_000;

/// A question for traces.
#[derive(Debug)]
pub struct Search {
    pub query: Traceql,
    pub window: Window,
    /// Durations of whole traces, in nanoseconds.
    pub min_duration: Option<u64>,
    pub max_duration: Option<u64>,
    /// Traces that are wanted.
    pub limit: usize,
    /// Spans that are shown of each spanset; 0: all.
    pub spans_per_spanset: usize,
}

/// A trace that matches.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundTrace {
    pub id: [u8; 16],
    /// `None` while the root has not arrived.
    pub root_service: Option<String>,
    pub root_name: Option<String>,
    pub start: u64,
    pub duration: u64,
    pub spansets: Vec<FoundSpanset>,
    /// Spans, and those with an error, of each service.
    pub services: BTreeMap<String, (u32, u32)>,
}

/// Spans of it that match together.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundSpanset {
    pub spans: Vec<FoundSpan>,
    /// How many there are; not all are in `spans`.
    pub matched: usize,
    pub attributes: Vec<(String, Value<'static>)>,
}

/// A span that matches, with what the query asked of it.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundSpan {
    pub id: Vec<u8>,
    pub name: String,
    pub start: u64,
    pub duration: u64,
    pub attributes: Vec<(String, Value<'static>)>,
}

/// What was read for an answer, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspected {
    pub traces: u64,
    pub spans: u64,
    pub bytes: u64,
    /// Groups whose newest rows are not in an eventual answer.
    pub missing_groups: BTreeSet<u32>,
    /// More is read; another answer follows.
    pub so_far: bool,
}

impl FoundTrace {
    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        let pairs = |pairs: &[(String, Value<'static>)]| -> usize {
            pairs.iter().map(|(key, value)| ENTRY_BYTES + key.len() + value.text_bytes()).sum()
        };
        let span = |span: &FoundSpan| ENTRY_BYTES + span.name.len() + pairs(&span.attributes);
        let spanset =
            |set: &FoundSpanset| ENTRY_BYTES + set.spans.iter().map(span).sum::<usize>() + pairs(&set.attributes);
        let services = self.services.keys().map(|name| ENTRY_BYTES + name.len()).sum::<usize>();
        ENTRY_BYTES + services + self.spansets.iter().map(spanset).sum::<usize>()
    }
}

impl QueryEngine {
    /// Finds traces, newest first.
    ///
    /// # Errors
    /// [`QueryErrorKind::Invalid`] for a query that asks for series. Others come as the answer: those of
    /// [`QueryEngine::run`], and [`QueryErrorKind::Resources`] for one that is too large.
    pub fn search_traces(&self, asked: Asked, search: Search) -> Result<Answered<Vec<FoundTrace>>, QueryError> {
        if search.query.metrics.is_some() {
            let message = "a query for series is not one for traces: ask /api/metrics/query_range";
            return Err(QueryError::new(QueryErrorKind::Invalid, message));
        }
        scan::start(self, asked, search.query.source.clone(), |reader, progress| find(reader, search, progress))
    }
}

type Found = (Vec<FoundTrace>, Inspected);

async fn find(reader: Reader, search: Search, mut progress: Progress<Found>) -> Result<Found, QueryError> {
    let limit = search.limit.min(TRACES_MAX);
    let columns = columns_of_search(&search.query);
    let shown = shown_fields(&search.query.stages);
    let filter = pushdown::of_stages(&search.query.stages);
    let held = reader.memory("traces that were found");
    let mut traces = Traces::new(reader, search.window, filter, columns);
    let mut found: Vec<FoundTrace> = Vec::new();
    while found.len() < limit {
        let Some(portion) = traces.next().await? else { break };
        let mut seen = 0;
        while seen < portion.traces() {
            seen = portion.some(seen, |id, trace| {
                let duration = trace.end - trace.start;
                let fits = search.min_duration.is_none_or(|min| duration >= min)
                    && search.max_duration.is_none_or(|max| duration <= max);
                if fits && found.len() < limit {
                    let sets = eval::pipeline(&search.query.stages, trace);
                    if !sets.is_empty() {
                        let one = describe(id, trace, &sets, &shown, search.spans_per_spanset);
                        held.try_grow(one.bytes())?;
                        found.push(one);
                    }
                }
                Ok(())
            })?;
            if held.size() > ANSWER_BYTES_MAX {
                let message = format!(
                    "the traces that were found take more than {ANSWER_BYTES_MAX} bytes: ask for fewer (limit), or for fewer \
                     spans of each (spss)"
                );
                return Err(QueryError::new(QueryErrorKind::Resources, message));
            }
            tokio::task::yield_now().await;
        }
        if progress.is_due() && !found.is_empty() && held.size() <= SO_FAR_BYTES_MAX {
            progress.so_far((newest_first(found.clone()), Inspected { so_far: true, ..traces.inspected() }));
        }
    }
    Ok((newest_first(found), traces.inspected()))
}

fn newest_first(mut found: Vec<FoundTrace>) -> Vec<FoundTrace> {
    found.sort_by_key(|trace| std::cmp::Reverse(trace.start));
    found
}

fn describe(
    id: TraceId,
    trace: &Trace<'_>,
    sets: &[eval::Spanset<'_>],
    shown: &[Field],
    spans_per_spanset: usize,
) -> FoundTrace {
    let most = if spans_per_spanset == 0 { usize::MAX } else { spans_per_spanset };
    let span = |at: &usize| {
        let SpanRef { columns, row } = trace.spans[*at];
        let value = |field: &Field| match At::in_trace(trace, *at).field(field) {
            Value::Nil => None,
            // Events and links: the first of them.
            Value::List(values) => {
                values.into_iter().find(|value| *value != Value::Nil).map(|value| (field.key(), value.into_owned()))
            }
            value => Some((field.key(), value.into_owned())),
        };
        FoundSpan {
            id: columns.span_id(row).to_vec(),
            name: columns.name(row).to_owned(),
            start: columns.start(row),
            duration: columns.duration(row).unsigned_abs(),
            attributes: shown.iter().filter_map(value).collect(),
        }
    };
    let mut services: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for SpanRef { columns, row } in &trace.spans {
        let (spans, errors) = services.entry(columns.service_name(*row).to_owned()).or_default();
        *spans += 1;
        *errors += u32::from(columns.status(*row) == Some(super::ast::Status::Error));
    }
    FoundTrace {
        id,
        root_service: trace.root_service().map(str::to_owned),
        root_name: trace.root_name().map(str::to_owned),
        start: trace.start,
        duration: trace.end - trace.start,
        spansets: sets
            .iter()
            .map(|set| FoundSpanset {
                spans: set.spans.iter().take(most).map(span).collect(),
                matched: set.spans.len(),
                attributes: set
                    .attributes
                    .iter()
                    .map(|(key, value)| (key.clone(), value.clone().into_owned()))
                    .collect(),
            })
            .collect(),
        services,
    }
}

/// The stored columns that a search needs.
fn columns_of_search(query: &Traceql) -> BTreeSet<&'static str> {
    let mut columns = BTreeSet::from(ALWAYS);
    // For what is told of every trace.
    columns.extend(["name", "service_name", "status_code"]);
    add_columns(query, &mut columns);
    columns
}

/// Adds the stored columns that hold what a query mentions.
pub(super) fn add_columns(query: &Traceql, columns: &mut BTreeSet<&'static str>) {
    for stage in &query.stages {
        stage_fields(stage, &mut |field| columns_of(field, columns));
    }
    if let Some(Metrics { function, by, .. }) = &query.metrics {
        by.iter().chain(Function::field(function)).for_each(|field| columns_of(field, columns));
        if let Function::Compare(comparison) = function {
            comparison.selection.fields(&mut |field| columns_of(field, columns));
            compare::fields().for_each(|field| columns_of(&field, columns));
            let promoted = [promoted::RECORD, promoted::RESOURCE].into_iter().flatten();
            columns.extend(promoted.map(|promoted| promoted.column));
        }
    }
}

fn stage_fields(stage: &Stage, visit: &mut dyn FnMut(&Field)) {
    match stage {
        Stage::Spans(spanset) => spanset_fields(spanset, visit),
        Stage::Having { left, right, .. } => {
            scalar_fields(left, visit);
            scalar_fields(right, visit);
        }
        Stage::By(expr) => expr_fields(expr, visit),
        Stage::Coalesce => {}
        Stage::Select(fields) => fields.iter().for_each(visit),
    }
}

fn expr_fields(expr: &Expr, visit: &mut dyn FnMut(&Field)) {
    expr.fields(&mut |field| visit(field));
}

fn spanset_fields(spanset: &SpansetExpr, visit: &mut dyn FnMut(&Field)) {
    match spanset {
        SpansetExpr::Filter(expr) => expr_fields(expr, visit),
        SpansetExpr::Pipeline(stages) => stages.iter().for_each(|stage| stage_fields(stage, visit)),
        SpansetExpr::Binary { left, right, .. } => {
            spanset_fields(left, visit);
            spanset_fields(right, visit);
        }
    }
}

fn scalar_fields(scalar: &Scalar, visit: &mut dyn FnMut(&Field)) {
    match scalar {
        Scalar::Literal(_) | Scalar::Aggregate(_, None) => {}
        Scalar::Aggregate(_, Some(expr)) => expr_fields(expr, visit),
        Scalar::Negate(inner) => scalar_fields(inner, visit),
        Scalar::Binary { left, right, .. } => {
            scalar_fields(left, visit);
            scalar_fields(right, visit);
        }
    }
}

/// What spans of the result are shown with: whatever the query mentions, but what every span has anyway.
fn shown_fields(stages: &[Stage]) -> Vec<Field> {
    let mut shown: Vec<Field> = Vec::new();
    for stage in stages {
        stage_fields(stage, &mut |field| {
            let known = matches!(
                field,
                Field::Intrinsic(
                    Intrinsic::Name | Intrinsic::Duration | Intrinsic::IsRoot | Intrinsic::TraceId | Intrinsic::SpanId
                )
            );
            if !known && !shown.contains(field) {
                shown.push(field.clone());
            }
        });
    }
    shown
}

/// Traces that may match, newest first, some at a time.
pub(super) struct Traces {
    reader: Reader,
    window: Window,
    filter: Option<Filter>,
    columns: BTreeSet<&'static str>,
    /// Candidates that are not read yet, the next one last.
    waiting: Vec<Candidate>,
    last: Option<Candidate>,
    exhausted: bool,
    portion: usize,
    /// Memory of the candidates, and of the spans of one portion.
    listed: MemoryReservation,
    held: MemoryReservation,
}

/// All spans of some traces.
pub(super) struct Portion {
    batches: Vec<RecordBatch>,
    /// In the order in which they were asked for: batch and row of each span.
    traces: Vec<(TraceId, Vec<(usize, usize)>)>,
}

impl Traces {
    pub(super) fn new(reader: Reader, window: Window, filter: Option<Filter>, columns: BTreeSet<&'static str>) -> Self {
        Self {
            listed: reader.memory("ids of traces"),
            held: reader.memory("spans of traces"),
            reader,
            window,
            filter,
            columns,
            waiting: Vec::new(),
            last: None,
            exhausted: false,
            portion: PORTION,
        }
    }

    pub(super) fn inspected(&self) -> Inspected {
        self.reader.inspected()
    }

    /// The next traces, `None` after the last. The portion before must be gone.
    pub(super) async fn next(&mut self) -> Result<Option<Portion>, QueryError> {
        self.held.free();
        if self.waiting.is_empty() && !self.exhausted {
            self.listed.try_resize(CANDIDATES * size_of::<Candidate>())?;
            let page = self.reader.candidates(self.window, self.filter.clone(), self.last, CANDIDATES).await?;
            self.exhausted = page.len() < CANDIDATES;
            self.last = page.last().copied();
            self.waiting = page;
            self.waiting.reverse();
        }
        loop {
            let count = self.portion.min(self.waiting.len());
            if count == 0 {
                return Ok(None);
            }
            let chosen: Vec<Candidate> = self.waiting.iter().rev().take(count).copied().collect();
            if let Some(portion) = self.load(&chosen).await? {
                self.waiting.truncate(self.waiting.len() - count);
                self.reader.note_traces(count);
                self.portion = (self.portion * 2).min(PORTION_MAX);
                return Ok(Some(portion));
            }
            self.portion = (count / 2).max(1);
        }
    }

    /// The spans of these traces, unless they are too many at once.
    async fn load(&mut self, chosen: &[Candidate]) -> Result<Option<Portion>, QueryError> {
        let ids: Vec<TraceId> = chosen.iter().map(|candidate| candidate.id).collect();
        let times = || chosen.iter().map(|candidate| u64::try_from(candidate.newest).unwrap_or(0));
        let window = Window { start: times().min(), end: times().max() }.spread();
        self.held.free();
        let mut spans = self.reader.spans(&self.columns, of_traces(&ids, window)).await?;
        let mut batches = Vec::new();
        while let Some(batch) = self.reader.next(&mut spans).await? {
            let refused = self.held.try_grow(bytes_of(&batch) + batch.num_rows() * SPAN_BYTES).err();
            batches.push(batch);
            match (refused, ids.as_slice()) {
                (Some(refused), [id]) => {
                    let error = QueryError::from(refused);
                    let message = format!("the spans of trace {}: {}", crate::functions::hex(id), error.message);
                    return Err(QueryError { message, ..error });
                }
                (None, _) if ids.len() == 1 || self.held.size() <= PORTION_BYTES => {}
                _ => return Ok(None),
            }
        }
        Ok(Some(Portion::new(&ids, batches)))
    }
}

impl Portion {
    fn new(ids: &[TraceId], batches: Vec<RecordBatch>) -> Self {
        let mut traces: Vec<(TraceId, Vec<(usize, usize)>)> = ids.iter().map(|id| (*id, Vec::new())).collect();
        let places: HashMap<&[u8], usize> = ids.iter().enumerate().map(|(at, id)| (id.as_slice(), at)).collect();
        for (batch, columns) in batches.iter().map(SpanColumns::of).enumerate() {
            for row in 0..columns.rows {
                if let Some(at) = places.get(columns.trace_id(row)) {
                    traces[*at].1.push((batch, row));
                }
            }
        }
        traces.retain(|(_, spans)| !spans.is_empty());
        Self { batches, traces }
    }

    pub(super) fn traces(&self) -> usize {
        self.traces.len()
    }

    /// Calls `visit` for each trace from the `from`th on, until it is time for other tasks; says which trace is the next.
    pub(super) fn some(
        &self,
        from: usize,
        mut visit: impl FnMut(TraceId, &Trace<'_>) -> Result<(), QueryError>,
    ) -> Result<usize, QueryError> {
        let begun = Instant::now();
        let columns: Vec<SpanColumns<'_>> = self.batches.iter().map(SpanColumns::of).collect();
        let mut at = from;
        while let Some((id, spans)) = self.traces.get(at).filter(|_| at == from || begun.elapsed() < TURN) {
            let spans = spans.iter().map(|(batch, row)| SpanRef { columns: &columns[*batch], row: *row }).collect();
            visit(*id, &Trace::new(spans))?;
            at += 1;
        }
        Ok(at)
    }
}
