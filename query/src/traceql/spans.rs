//! The columns of spans that a query needs, and the values of a span's fields in them.

use std::collections::BTreeSet;

use arrow::array::{
    Array, AsArray, FixedSizeBinaryArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::Int64Type;
use signaldb_signals::AttributeLookup;
use signaldb_signals::promoted::{self, Promoted};

use super::ast::{Field, Intrinsic, Kind, Scope, Status};
use super::value::Value;
use crate::functions::hex;

/// What every query needs: whose span it is, and when it was.
pub(super) const ALWAYS: [&str; 5] = ["trace_id", "span_id", "parent_span_id", "time_unix_nano", "end_time_unix_nano"];

/// Adds the stored columns that hold `field`.
pub(super) fn columns_of(field: &Field, columns: &mut BTreeSet<&'static str>) {
    let (scope, name) = match field {
        Field::Attribute { scope, name, .. } => (*scope, name.as_str()),
        Field::Intrinsic(intrinsic) => return columns.extend(columns_of_intrinsic(*intrinsic)),
    };
    let promoted_column =
        |list: &'static [Promoted]| list.iter().find(|promoted| promoted.key == name).map(|promoted| promoted.column);
    if matches!(scope, Scope::Any | Scope::Span) {
        columns.extend(["attributes", "attribute_types"]);
        columns.extend(promoted_column(promoted::RECORD));
    }
    if matches!(scope, Scope::Any | Scope::Resource) {
        columns.extend(["resource_attributes", "resource_attribute_types"]);
        columns.extend(promoted_column(promoted::RESOURCE));
    }
    match scope {
        Scope::Event => columns.extend(["events"]),
        Scope::Link => columns.extend(["links"]),
        Scope::Instrumentation => columns.extend(["scope_attributes", "scope_attribute_types"]),
        _ => {}
    }
}

fn columns_of_intrinsic(intrinsic: Intrinsic) -> &'static [&'static str] {
    match intrinsic {
        Intrinsic::Name | Intrinsic::RootName => &["name"],
        Intrinsic::Status => &["status_code"],
        Intrinsic::StatusMessage => &["status_message"],
        Intrinsic::Kind => &["kind"],
        Intrinsic::RootServiceName => &["service_name"],
        Intrinsic::EventName | Intrinsic::EventTimeSinceStart => &["events"],
        Intrinsic::LinkTraceId | Intrinsic::LinkSpanId => &["links"],
        Intrinsic::InstrumentationName => &["scope_name"],
        Intrinsic::InstrumentationVersion => &["scope_version"],
        // Of the columns that are always there.
        _ => &[],
    }
}

/// Spans of a batch, by column; a column that is not there reads as empty.
#[derive(Debug)]
pub(super) struct SpanColumns<'a> {
    pub(super) rows: usize,
    trace_id: Option<&'a FixedSizeBinaryArray>,
    span_id: Option<&'a FixedSizeBinaryArray>,
    parent_span_id: Option<&'a FixedSizeBinaryArray>,
    start: Option<&'a Int64Array>,
    end: Option<&'a Int64Array>,
    name: Option<&'a StringArray>,
    kind: Option<&'a StringArray>,
    status_code: Option<&'a StringArray>,
    status_message: Option<&'a StringArray>,
    service_name: Option<&'a StringArray>,
    scope_name: Option<&'a StringArray>,
    scope_version: Option<&'a StringArray>,
    pub(super) span: Option<AttributeLookup<'a>>,
    pub(super) resource: Option<AttributeLookup<'a>>,
    pub(super) scope: Option<AttributeLookup<'a>>,
    pub(super) events: Option<Nested<'a>>,
    pub(super) links: Option<Nested<'a>>,
}

/// Events or links of spans.
#[derive(Debug)]
pub(super) struct Nested<'a> {
    list: &'a ListArray,
    structs: &'a StructArray,
    pub(super) attributes: Option<AttributeLookup<'a>>,
}

impl<'a> Nested<'a> {
    fn of(list: &'a ListArray) -> Self {
        let structs = list.values().as_struct();
        Self { list, structs, attributes: AttributeLookup::of_structs(structs) }
    }

    /// Where the row's events or links are in the structs.
    pub(super) fn range(&self, row: usize) -> std::ops::Range<usize> {
        if self.list.is_null(row) {
            return 0..0;
        }
        let offsets = self.list.value_offsets();
        offsets[row] as usize..offsets[row + 1] as usize
    }

    fn each(&self, row: usize, read: impl Fn(usize) -> Value<'a>) -> Value<'a> {
        Value::List(self.range(row).map(read).collect())
    }

    fn attribute(&self, row: usize, name: &str) -> Value<'a> {
        let Some(attributes) = &self.attributes else { return Value::Nil };
        self.each(row, |at| Value::of_attribute(attributes.get(at, name)))
    }

    pub(super) fn texts(&self, row: usize, column: &str) -> Value<'a> {
        let Some(array) = self.structs.column_by_name(column) else { return Value::Nil };
        let array = array.as_string::<i32>();
        self.each(row, |at| if array.is_valid(at) { Value::text(array.value(at)) } else { Value::Nil })
    }

    fn ids(&self, row: usize, column: &str) -> Value<'a> {
        let Some(array) = self.structs.column_by_name(column) else { return Value::Nil };
        let array = array.as_fixed_size_binary();
        self.each(row, |at| if array.is_valid(at) { Value::text(hex(array.value(at))) } else { Value::Nil })
    }

    fn since(&self, row: usize, start: u64) -> Value<'a> {
        let Some(array) = self.structs.column_by_name("time_unix_nano") else { return Value::Nil };
        let array = array.as_primitive::<Int64Type>();
        self.each(row, |at| {
            if array.is_valid(at) { Value::Duration(array.value(at).wrapping_sub(start as i64)) } else { Value::Nil }
        })
    }
}

impl<'a> SpanColumns<'a> {
    pub(super) fn of(batch: &'a RecordBatch) -> Self {
        let text = |name: &str| batch.column_by_name(name).map(|column| column.as_string::<i32>());
        let id = |name: &str| batch.column_by_name(name).map(|column| column.as_fixed_size_binary());
        let time = |name: &str| batch.column_by_name(name).map(|column| column.as_primitive::<Int64Type>());
        let nested = |name: &str| batch.column_by_name(name).map(|column| Nested::of(column.as_list::<i32>()));
        Self {
            rows: batch.num_rows(),
            trace_id: id("trace_id"),
            span_id: id("span_id"),
            parent_span_id: id("parent_span_id"),
            start: time("time_unix_nano"),
            end: time("end_time_unix_nano"),
            name: text("name"),
            kind: text("kind"),
            status_code: text("status_code"),
            status_message: text("status_message"),
            service_name: text("service_name"),
            scope_name: text("scope_name"),
            scope_version: text("scope_version"),
            span: AttributeLookup::of_records(batch),
            resource: AttributeLookup::of_resources(batch),
            scope: AttributeLookup::of_scopes(batch),
            events: nested("events"),
            links: nested("links"),
        }
    }

    /// Empty when the span has none.
    pub(super) fn trace_id(&self, row: usize) -> &'a [u8] {
        id(self.trace_id, row)
    }

    pub(super) fn span_id(&self, row: usize) -> &'a [u8] {
        id(self.span_id, row)
    }

    /// Empty for a root; some senders write zeros there.
    pub(super) fn parent_span_id(&self, row: usize) -> &'a [u8] {
        let id = id(self.parent_span_id, row);
        if id.iter().all(|byte| *byte == 0) { &[] } else { id }
    }

    pub(super) fn start(&self, row: usize) -> u64 {
        nanos(self.start, row)
    }

    /// Never before the start.
    pub(super) fn end(&self, row: usize) -> u64 {
        nanos(self.end, row).max(self.start(row))
    }

    pub(super) fn duration(&self, row: usize) -> i64 {
        i64::try_from(self.end(row) - self.start(row)).unwrap_or(i64::MAX)
    }

    pub(super) fn name(&self, row: usize) -> &'a str {
        text(self.name, row).unwrap_or_default()
    }

    pub(super) fn service_name(&self, row: usize) -> &'a str {
        text(self.service_name, row).unwrap_or_default()
    }

    pub(super) fn status(&self, row: usize) -> Option<Status> {
        Some(match text(self.status_code, row) {
            None | Some("UNSET") => Status::Unset,
            Some("OK") => Status::Ok,
            Some("ERROR") => Status::Error,
            Some(_) => return None,
        })
    }

    fn kind(&self, row: usize) -> Option<Kind> {
        Some(match text(self.kind, row) {
            None | Some("UNSPECIFIED") => Kind::Unspecified,
            Some("INTERNAL") => Kind::Internal,
            Some("SERVER") => Kind::Server,
            Some("CLIENT") => Kind::Client,
            Some("PRODUCER") => Kind::Producer,
            Some("CONSUMER") => Kind::Consumer,
            Some(_) => return None,
        })
    }

    /// An attribute of the span itself; those of parents are the trace's to find.
    pub(super) fn attribute(&self, row: usize, scope: Scope, name: &str) -> Value<'a> {
        let of = |lookup: &Option<AttributeLookup<'a>>| {
            Value::of_attribute(lookup.as_ref().and_then(|lookup| lookup.get(row, name)))
        };
        let nested = |nested: &Option<Nested<'a>>| nested.as_ref().map_or(Value::Nil, |list| list.attribute(row, name));
        match scope {
            Scope::Any => match of(&self.span) {
                Value::Nil => of(&self.resource),
                found => found,
            },
            Scope::Span => of(&self.span),
            Scope::Resource => of(&self.resource),
            Scope::Instrumentation => of(&self.scope),
            Scope::Event => nested(&self.events),
            Scope::Link => nested(&self.links),
        }
    }

    /// An intrinsic of the span itself; nil for those of its trace.
    pub(super) fn intrinsic(&self, row: usize, intrinsic: Intrinsic) -> Value<'a> {
        let texts = |found: Option<&'a str>| Value::text(found.unwrap_or_default());
        match intrinsic {
            Intrinsic::Duration => Value::Duration(self.duration(row)),
            Intrinsic::Name => Value::text(self.name(row)),
            Intrinsic::Status => self.status(row).map_or(Value::Nil, Value::Status),
            Intrinsic::StatusMessage => texts(text(self.status_message, row)),
            Intrinsic::Kind => self.kind(row).map_or(Value::Nil, Value::Kind),
            Intrinsic::SpanId => Value::text(hex(self.span_id(row))),
            Intrinsic::ParentId => Value::text(hex(self.parent_span_id(row))),
            Intrinsic::IsRoot => Value::Bool(self.parent_span_id(row).is_empty()),
            Intrinsic::TraceId => Value::text(hex(self.trace_id(row))),
            Intrinsic::EventName => self.events.as_ref().map_or(Value::Nil, |events| events.texts(row, "name")),
            Intrinsic::EventTimeSinceStart => {
                self.events.as_ref().map_or(Value::Nil, |events| events.since(row, self.start(row)))
            }
            Intrinsic::LinkTraceId => self.links.as_ref().map_or(Value::Nil, |links| links.ids(row, "trace_id")),
            Intrinsic::LinkSpanId => self.links.as_ref().map_or(Value::Nil, |links| links.ids(row, "span_id")),
            Intrinsic::InstrumentationName => texts(text(self.scope_name, row)),
            Intrinsic::InstrumentationVersion => texts(text(self.scope_version, row)),
            _ => Value::Nil,
        }
    }
}

fn id(array: Option<&FixedSizeBinaryArray>, row: usize) -> &[u8] {
    array.filter(|array| array.is_valid(row)).map_or(&[], |array| array.value(row))
}

fn text(array: Option<&StringArray>, row: usize) -> Option<&str> {
    array.filter(|array| array.is_valid(row)).map(|array| array.value(row))
}

fn nanos(array: Option<&Int64Array>, row: usize) -> u64 {
    array.filter(|array| array.is_valid(row)).map_or(0, |array| array.value(row) as u64)
}
