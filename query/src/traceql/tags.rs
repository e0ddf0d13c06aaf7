//! Which attributes there are, and which values they have.

use std::collections::{BTreeMap, BTreeSet};

use signaldb_signals::promoted;

use super::ast::{Expr, Field, Intrinsic, Kind, Literal, Operator, Scope, Spanset, Stage, Status, Traceql};
use super::eval::{self, At};
use super::pushdown;
use super::scan::{Asked, Reader, Window, in_window};
use super::search::{Inspected, add_columns};
use super::spans::{ALWAYS, SpanColumns, columns_of};
use super::value::Value;
use crate::engine::QueryEngine;
use crate::error::QueryError;

/// What the names or values of one answer may take.
const VALUES_BYTES_MAX: usize = 4 << 20;

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
}

impl QueryEngine {
    /// The names of attributes, by scope.
    ///
    /// # Errors
    /// As for [`QueryEngine::run`].
    pub async fn tag_names(
        &self,
        asked: Asked,
        scopes: Vec<Scope>,
        question: TagQuestion,
    ) -> Result<(BTreeMap<Scope, BTreeSet<String>>, Inspected), QueryError> {
        let engine = self.clone();
        self.beside(asked.allowance, async move { names(Reader::new(engine, asked), &scopes, &question).await }).await
    }

    /// The values of a field.
    ///
    /// # Errors
    /// As for [`QueryEngine::run`].
    pub async fn tag_values(
        &self,
        asked: Asked,
        field: Field,
        question: TagQuestion,
    ) -> Result<(Vec<Value<'static>>, Inspected), QueryError> {
        let engine = self.clone();
        self.beside(asked.allowance, async move { values(Reader::new(engine, asked), field, &question).await }).await
    }
}

fn inspected(reader: Reader) -> Inspected {
    Inspected {
        traces: 0,
        spans: reader.inspected_spans,
        bytes: reader.inspected_bytes,
        missing_groups: reader.missing,
    }
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
    scopes: &[Scope],
    question: &TagQuestion,
) -> Result<(BTreeMap<Scope, BTreeSet<String>>, Inspected), QueryError> {
    let mut columns = columns_of_question(question);
    for scope in scopes {
        columns_of(&Field::Attribute { parent: false, scope: *scope, name: String::new() }, &mut columns);
        match scope {
            Scope::Span => columns.extend(promoted::RECORD.iter().map(|promoted| promoted.column)),
            Scope::Resource => columns.extend(promoted::RESOURCE.iter().map(|promoted| promoted.column)),
            _ => {}
        }
    }
    let condition = question.condition();
    let filter = in_window(question.window, condition.and_then(pushdown::of_expr));
    let mut spans = reader.spans(&columns, filter).await?;
    let mut found: BTreeMap<Scope, BTreeSet<String>> = scopes.iter().map(|scope| (*scope, BTreeSet::new())).collect();
    let mut room = VALUES_BYTES_MAX;
    while let Some(batch) = spans.next().await {
        let batch = batch?;
        reader.note(&batch);
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
    }
    Ok((found, inspected(reader)))
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
    question: &TagQuestion,
) -> Result<(Vec<Value<'static>>, Inspected), QueryError> {
    let (field, roots) = match field {
        Field::Intrinsic(Intrinsic::Status) => {
            return Ok((Status::ALL.map(Value::Status).into(), inspected(reader)));
        }
        Field::Intrinsic(Intrinsic::Kind) => return Ok((Kind::ALL.map(Value::Kind).into(), inspected(reader))),
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
        ) => return Ok((Vec::new(), inspected(reader))),
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
    let mut columns = columns_of_question(question);
    columns_of(&field, &mut columns);
    let filter = conditions.iter().filter_map(|expr| pushdown::of_expr(expr)).reduce(|left, right| left.and(right));
    let mut spans = reader.spans(&columns, in_window(question.window, filter)).await?;
    let mut found: BTreeMap<String, Value<'static>> = BTreeMap::new();
    let (mut bytes, mut full) = (0, false);
    while let Some(batch) = spans.next().await {
        let batch = batch?;
        reader.note(&batch);
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
    }
    let mut values: Vec<Value<'static>> = found.into_values().collect();
    values.sort_by_cached_key(Value::shown);
    Ok((values, inspected(reader)))
}
