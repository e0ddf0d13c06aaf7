//! Which attributes there are, and which values they have.

use std::collections::{BTreeMap, BTreeSet};

use signaldb_signals::promoted;

use super::ast::{Expr, Field, Intrinsic, Kind, Literal, Operator, Scope, Spanset, Stage, Status, Traceql};
use super::bytes::bytes_of;
use super::eval::{self, At};
use super::pushdown;
use super::scan::{self, Answered, Asked, Reader, Window, in_window};
use super::search::{Inspected, add_columns};
use super::spans::{ALWAYS, SpanColumns, columns_of};
use super::value::Value;
use crate::engine::{Progress, QueryEngine};
use crate::error::QueryError;

/// What the names or values of one answer may take.
const VALUES_BYTES_MAX: usize = 4 << 20;
/// How often each of them is in memory at most: as its key, as itself, and in an answer so far.
const COPIES: usize = 3;

/// Where tags are looked for; those of intrinsics are known.
pub const TAG_SCOPES: [Scope; 5] = [Scope::Resource, Scope::Span, Scope::Event, Scope::Link, Scope::Instrumentation];

/// Names that people expect in lists of intrinsics.
pub const INTRINSIC_TAGS: [&str; 20] = [
    "duration",
    "event:name",
    "event:timeSinceStart",
    "instrumentation:name",
    "instrumentation:version",
    "kind",
    "name",
    "rootName",
    "rootServiceName",
    "span:duration",
    "span:kind",
    "span:name",
    "span:status",
    "span:statusMessage",
    "status",
    "statusMessage",
    "trace:duration",
    "trace:rootName",
    "trace:rootService",
    "traceDuration",
];

/// A question for names or values.
#[derive(Debug, Clone, Default)]
pub struct TagQuestion {
    pub window: Window,
    /// Only of spans that this keeps; anything but one filter is not looked at.
    pub filter: Option<Traceql>,
    /// Names of each scope, or values.
    pub limit: usize,
}

impl TagQuestion {
    fn condition(&self) -> Option<&Expr> {
        match self.filter.as_ref()?.stages.as_slice() {
            [Stage::Spans(Spanset::Filter(expr))] if eval::is_local(expr) => Some(expr),
            _ => None,
        }
    }

    /// As `system.queries` shows it.
    fn text(&self, what: &str) -> String {
        match &self.filter {
            Some(filter) => format!("{what} of {}", filter.source),
            None => what.to_owned(),
        }
    }
}

/// Names of attributes by scope.
pub type TagNames = BTreeMap<Scope, BTreeSet<String>>;

impl QueryEngine {
    /// The names of attributes, by scope.
    ///
    /// # Errors
    /// They come as the answer: those of [`QueryEngine::run`].
    pub fn tag_names(
        &self,
        asked: Asked,
        scopes: Vec<Scope>,
        question: TagQuestion,
    ) -> Result<Answered<TagNames>, QueryError> {
        let text = question.text("names of attributes");
        scan::start(self, asked, text, |reader, progress| names(reader, scopes, question, progress))
    }

    /// The values of a field.
    ///
    /// # Errors
    /// They come as the answer: those of [`QueryEngine::run`].
    pub fn tag_values(
        &self,
        asked: Asked,
        field: Field,
        question: TagQuestion,
    ) -> Result<Answered<Vec<Value<'static>>>, QueryError> {
        let text = question.text(&format!("values of {field}"));
        scan::start(self, asked, text, |reader, progress| values(reader, field, question, progress))
    }
}

/// What was read until now; more follows.
fn so_far(reader: &Reader) -> Inspected {
    Inspected { so_far: true, ..reader.inspected() }
}

/// The columns of the condition of a question.
fn columns_of_question(question: &TagQuestion) -> BTreeSet<&'static str> {
    let mut columns = BTreeSet::from(ALWAYS);
    if let (Some(query), Some(_)) = (&question.filter, question.condition()) {
        add_columns(query, &mut columns);
    }
    columns
}

async fn names(
    mut reader: Reader,
    scopes: Vec<Scope>,
    question: TagQuestion,
    mut progress: Progress<(TagNames, Inspected)>,
) -> Result<(TagNames, Inspected), QueryError> {
    let mut columns = columns_of_question(&question);
    for scope in &scopes {
        columns_of(&Field::Attribute { parent: false, scope: *scope, name: String::new() }, &mut columns);
        match scope {
            Scope::Span => columns.extend(promoted::RECORD.iter().map(|promoted| promoted.column)),
            Scope::Resource => columns.extend(promoted::RESOURCE.iter().map(|promoted| promoted.column)),
            _ => {}
        }
    }
    let condition = question.condition();
    let filter = in_window(question.window, condition.and_then(pushdown::of_expr));
    let held = reader.memory("names of attributes");
    let mut spans = reader.spans(&columns, filter).await?;
    let mut found: TagNames = scopes.iter().map(|scope| (*scope, BTreeSet::new())).collect();
    let mut room = VALUES_BYTES_MAX;
    while let Some(batch) = reader.next(&mut spans).await? {
        held.try_resize(bytes_of(&batch) + (VALUES_BYTES_MAX - room) * COPIES)?;
        let columns = SpanColumns::of(&batch);
        for row in 0..columns.rows {
            if condition.is_none_or(|expr| eval::matches(expr, At::span(&columns, row))) {
                for (scope, names) in &mut found {
                    add_names(&columns, row, *scope, names, question.limit, &mut room);
                }
            }
        }
        if found.values().all(|names| names.len() >= question.limit) {
            break;
        }
        if progress.is_due() && found.values().any(|names| !names.is_empty()) {
            progress.so_far((found.clone(), so_far(&reader)));
        }
    }
    Ok((found, reader.inspected()))
}

/// `room` is what the names of all scopes may still take.
fn add_names(
    columns: &SpanColumns<'_>,
    row: usize,
    scope: Scope,
    names: &mut BTreeSet<String>,
    limit: usize,
    room: &mut usize,
) {
    let mut add = |key: &str| {
        if names.len() < limit && key.len() <= *room && !names.contains(key) {
            *room -= key.len();
            names.insert(key.to_owned());
        }
    };
    let flat = match scope {
        Scope::Span | Scope::Any => &columns.span,
        Scope::Resource => &columns.resource,
        Scope::Instrumentation => &columns.scope,
        Scope::Event | Scope::Link => {
            let nested = if scope == Scope::Event { &columns.events } else { &columns.links };
            let Some(nested) = nested else { return };
            let Some(attributes) = &nested.attributes else { return };
            nested.range(row).for_each(|at| attributes.keys(at).for_each(&mut add));
            return;
        }
    };
    if let Some(attributes) = flat {
        attributes.keys(row).for_each(add);
    }
}

async fn values(
    mut reader: Reader,
    field: Field,
    question: TagQuestion,
    mut progress: Progress<(Vec<Value<'static>>, Inspected)>,
) -> Result<(Vec<Value<'static>>, Inspected), QueryError> {
    let (field, roots) = match field {
        Field::Intrinsic(Intrinsic::Status) => {
            return Ok((Status::ALL.map(Value::Status).into(), reader.inspected()));
        }
        Field::Intrinsic(Intrinsic::Kind) => return Ok((Kind::ALL.map(Value::Kind).into(), reader.inspected())),
        Field::Intrinsic(Intrinsic::RootName) => (Field::Intrinsic(Intrinsic::Name), true),
        Field::Intrinsic(Intrinsic::RootServiceName) => {
            (Field::Attribute { parent: false, scope: Scope::Resource, name: "service.name".to_owned() }, true)
        }
        // As many as there are spans; nobody picks one from a list.
        Field::Intrinsic(
            Intrinsic::Duration
            | Intrinsic::TraceDuration
            | Intrinsic::SpanId
            | Intrinsic::ParentId
            | Intrinsic::TraceId
            | Intrinsic::ChildCount
            | Intrinsic::EventTimeSinceStart
            | Intrinsic::LinkTraceId
            | Intrinsic::LinkSpanId
            | Intrinsic::NestedSetLeft
            | Intrinsic::NestedSetRight
            | Intrinsic::NestedSetParent
            | Intrinsic::IsRoot,
        ) => return Ok((Vec::new(), reader.inspected())),
        field => (field, false),
    };
    let root = Expr::Field(Field::Intrinsic(Intrinsic::IsRoot));
    let present = Expr::Binary {
        op: Operator::NotEqual,
        left: Box::new(Expr::Field(field.clone())),
        right: Box::new(Expr::Literal(Literal::Nil)),
    };
    let mut conditions: Vec<&Expr> = vec![&present];
    conditions.extend(roots.then_some(&root));
    conditions.extend(question.condition());
    let mut columns = columns_of_question(&question);
    columns_of(&field, &mut columns);
    let filter = conditions.iter().filter_map(|expr| pushdown::of_expr(expr)).reduce(|left, right| left.and(right));
    let held = reader.memory("values of an attribute");
    let mut spans = reader.spans(&columns, in_window(question.window, filter)).await?;
    let mut found: BTreeMap<String, Value<'static>> = BTreeMap::new();
    let (mut bytes, mut full) = (0, false);
    while let Some(batch) = reader.next(&mut spans).await? {
        held.try_resize(bytes_of(&batch) + bytes * COPIES)?;
        let columns = SpanColumns::of(&batch);
        for row in 0..columns.rows {
            let at = At::span(&columns, row);
            if !conditions.iter().all(|expr| eval::matches(expr, at)) {
                continue;
            }
            let values = match at.field(&field) {
                Value::List(values) => values,
                value => vec![value],
            };
            for value in values.into_iter().filter(|value| *value != Value::Nil && *value != Value::text("")) {
                let mut key = String::new();
                value.group_key(&mut key);
                if found.contains_key(&key) {
                    continue;
                }
                full = found.len() >= question.limit || bytes + key.len() > VALUES_BYTES_MAX;
                if full {
                    break;
                }
                bytes += key.len();
                found.insert(key, value.into_owned());
            }
        }
        if full {
            break;
        }
        if progress.is_due() && !found.is_empty() {
            progress.so_far((sorted(found.values().cloned()), so_far(&reader)));
        }
    }
    Ok((sorted(found.into_values()), reader.inspected()))
}

fn sorted(values: impl Iterator<Item = Value<'static>>) -> Vec<Value<'static>> {
    let mut values: Vec<Value<'static>> = values.collect();
    values.sort_by_cached_key(Value::shown);
    values
}
