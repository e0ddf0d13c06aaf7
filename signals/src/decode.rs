//! OTLP requests to columns, many at a time.
//!
//! ```text
//! in:  requests as checked by `request::check`, in log order
//! out: for each table that gets rows one batch, and which of its rows came from which request
//! ```

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, FixedSizeBinaryBuilder, Int64Builder, ListArray, RecordBatch, StringBuilder, StructArray,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};

use crate::any_value;
use crate::attributes::{AttributeColumns, AttributesBuilder};
use crate::logs::LogsBuilder;
use crate::metrics::MetricsBuilder;
use crate::promoted::{self, Promoted};
use crate::request::{SignalKind, messages};
use crate::rows::{Place, Rows, Shared};
use crate::schema;
use crate::table::SignalTable;
use crate::traces::TracesBuilder;
use crate::wire::Fields;

/// Rows of one table.
#[derive(Debug, Clone)]
pub struct DecodedTable {
    pub table: SignalTable,
    pub rows: Rows,
    /// For each request that added rows: its number as given to [`decode`] and the end of its rows, ascending.
    pub requests: Vec<(u64, usize)>,
}

/// Decodes checked requests of one kind; each comes with a number that the caller gives it (its log index).
pub fn decode<'a>(kind: SignalKind, requests: impl IntoIterator<Item = (u64, &'a [u8])>) -> Vec<DecodedTable> {
    match kind {
        SignalKind::Traces => decode_with(TracesBuilder::new(), requests),
        SignalKind::Logs => decode_with(LogsBuilder::new(), requests),
        SignalKind::Metrics => decode_with(MetricsBuilder::new(), requests),
    }
}

/// Builds the rows of one kind of request.
pub(crate) trait RowsBuilder {
    /// Adds the rows of one span, log record or metric.
    fn append(&mut self, item: &[u8], resource: &[u8], scope: &[u8], number: u64);
    fn start_resource(&mut self, resource: &[u8]);
    fn start_scope(&mut self, scope: &[u8]);
    fn finish(self) -> Vec<DecodedTable>;
}

fn decode_with<'a>(
    mut builder: impl RowsBuilder,
    requests: impl IntoIterator<Item = (u64, &'a [u8])>,
) -> Vec<DecodedTable> {
    for (number, request) in requests {
        for resource in messages(request, 1) {
            builder.start_resource(resource);
            for scope in messages(resource, 2) {
                builder.start_scope(scope);
                for item in messages(scope, 2) {
                    builder.append(item, resource, scope, number);
                }
            }
        }
    }
    builder.finish()
}

/// The columns that every table has: resource and scope once each, and which row has which.
#[derive(Debug)]
pub(crate) struct Common {
    resources: ResourceBuilder,
    scopes: ScopeBuilder,
    resource_of_row: Vec<u32>,
    scope_of_row: Vec<u32>,
    requests: Vec<(u64, usize)>,
}

/// Numbers for messages: the same bytes get the same number.
#[derive(Debug, Default)]
struct Interned {
    numbers: HashMap<Vec<u8>, u32>,
    key: Vec<u8>,
    current: u32,
}

impl Interned {
    /// Makes the message current; whether it is a new one.
    fn start(&mut self, message: &[u8], schema_url: &[u8]) -> bool {
        self.key.clear();
        self.key.extend_from_slice(&(message.len() as u64).to_le_bytes());
        self.key.extend_from_slice(message);
        self.key.extend_from_slice(schema_url);
        if let Some(number) = self.numbers.get(&self.key) {
            self.current = *number;
            return false;
        }
        self.current = self.numbers.len() as u32;
        self.numbers.insert(self.key.clone(), self.current);
        true
    }
}

#[derive(Debug)]
struct ResourceBuilder {
    interned: Interned,
    attributes: AttributesBuilder,
    dropped: Int64Builder,
    entity_refs: StringBuilder,
    schema_url: StringBuilder,
}

#[derive(Debug)]
struct ScopeBuilder {
    interned: Interned,
    name: StringBuilder,
    version: StringBuilder,
    attributes: AttributesBuilder,
    dropped: Int64Builder,
    schema_url: StringBuilder,
}

impl Common {
    pub(crate) fn new() -> Self {
        Self {
            resources: ResourceBuilder {
                interned: Interned::default(),
                attributes: AttributesBuilder::new(promoted::RESOURCE),
                dropped: Int64Builder::new(),
                entity_refs: StringBuilder::new(),
                schema_url: StringBuilder::new(),
            },
            scopes: ScopeBuilder {
                interned: Interned::default(),
                name: StringBuilder::new(),
                version: StringBuilder::new(),
                attributes: AttributesBuilder::new(promoted::NONE),
                dropped: Int64Builder::new(),
                schema_url: StringBuilder::new(),
            },
            resource_of_row: Vec::new(),
            scope_of_row: Vec::new(),
            requests: Vec::new(),
        }
    }

    /// `outer` is a ResourceSpans, ResourceLogs or ResourceMetrics message.
    pub(crate) fn start_resource(&mut self, outer: &[u8]) {
        let builder = &mut self.resources;
        let (resource, schema_url) = (messages(outer, 1).last().unwrap_or_default(), messages(outer, 3).last());
        if !builder.interned.start(resource, schema_url.unwrap_or_default()) {
            return;
        }
        builder.attributes.append(resource, 1);
        builder.dropped.append_value(crate::request::number(resource, 2) as i64);
        append_entity_refs(&mut builder.entity_refs, resource);
        append_text(&mut builder.schema_url, schema_url);
    }

    /// `outer` is a ScopeSpans, ScopeLogs or ScopeMetrics message.
    pub(crate) fn start_scope(&mut self, outer: &[u8]) {
        let builder = &mut self.scopes;
        let (scope, schema_url) = (messages(outer, 1).last().unwrap_or_default(), messages(outer, 3).last());
        if !builder.interned.start(scope, schema_url.unwrap_or_default()) {
            return;
        }
        append_text(&mut builder.name, messages(scope, 1).last());
        append_text(&mut builder.version, messages(scope, 2).last());
        builder.attributes.append(scope, 3);
        builder.dropped.append_value(crate::request::number(scope, 4) as i64);
        append_text(&mut builder.schema_url, schema_url);
    }

    /// Notes that request `number` added a row under the current resource and scope.
    pub(crate) fn row(&mut self, number: u64) {
        self.resource_of_row.push(self.resources.interned.current);
        self.scope_of_row.push(self.scopes.interned.current);
        let end = self.resource_of_row.len();
        match self.requests.last_mut() {
            Some((last, rows)) if *last == number => *rows = end,
            _ => self.requests.push((number, end)),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.resource_of_row.len()
    }

    /// Adds the common columns and makes the rows.
    pub(crate) fn finish(mut self, table: SignalTable, mut columns: Columns) -> DecodedTable {
        let resources = columns.share(self.resource_of_row);
        let attributes = self.resources.attributes.finish(&columns.data_type("resource_attributes"));
        columns.put_attributes_in(resources, "resource_attributes", "resource_attribute_types", attributes);
        columns.put_in(resources, "resource_dropped_attributes_count", self.resources.dropped.finish());
        columns.put_in(resources, "resource_entity_refs", self.resources.entity_refs.finish());
        columns.put_in(resources, "resource_schema_url", self.resources.schema_url.finish());
        let scopes = columns.share(self.scope_of_row);
        let attributes = self.scopes.attributes.finish(&columns.data_type("scope_attributes"));
        columns.put_attributes_in(scopes, "scope_attributes", "scope_attribute_types", attributes);
        columns.put_in(scopes, "scope_name", self.scopes.name.finish());
        columns.put_in(scopes, "scope_version", self.scopes.version.finish());
        columns.put_in(scopes, "scope_dropped_attributes_count", self.scopes.dropped.finish());
        columns.put_in(scopes, "scope_schema_url", self.scopes.schema_url.finish());
        DecodedTable { table, rows: columns.into_rows(), requests: self.requests }
    }
}

/// Finished columns by name, on the way to rows.
#[derive(Debug)]
pub(crate) struct Columns {
    schema: SchemaRef,
    /// With the part that each belongs to.
    arrays: HashMap<String, (Part, ArrayRef)>,
    of_row: Vec<UInt32Array>,
}

/// What has one value of a column: each row, or what many rows share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Row,
    Shared(usize),
}

impl Columns {
    pub(crate) fn of(table: SignalTable) -> Self {
        Self { schema: Arc::clone(&schema::of(table).arrow), arrays: HashMap::new(), of_row: Vec::new() }
    }

    pub(crate) fn data_type(&self, name: &str) -> DataType {
        self.schema.field_with_name(name).expect("column of the schema").data_type().clone()
    }

    /// A part for columns with one value a resource, scope or metric; `of_row` says which of them each row has.
    pub(crate) fn share(&mut self, of_row: Vec<u32>) -> Part {
        self.of_row.push(of_row.into());
        Part::Shared(self.of_row.len() - 1)
    }

    pub(crate) fn put(&mut self, name: &str, array: impl Array + 'static) {
        self.put_in(Part::Row, name, array);
    }

    pub(crate) fn put_in(&mut self, part: Part, name: &str, array: impl Array + 'static) {
        self.put_ref(part, name, Arc::new(array));
    }

    fn put_ref(&mut self, part: Part, name: &str, array: ArrayRef) {
        self.arrays.insert(name.to_owned(), (part, array));
    }

    pub(crate) fn put_attributes(&mut self, builder: AttributesBuilder) {
        let attributes = builder.finish(&self.data_type("attributes"));
        self.put_attributes_in(Part::Row, "attributes", "attribute_types", attributes);
    }

    pub(crate) fn put_attributes_in(&mut self, part: Part, map: &str, types: &str, attributes: AttributeColumns) {
        self.put_ref(part, map, attributes.map);
        self.put_ref(part, types, attributes.types);
        for (column, array) in attributes.promoted {
            self.put_ref(part, column, array);
        }
    }

    fn into_rows(mut self) -> Rows {
        let mut places = Vec::with_capacity(self.schema.fields().len());
        let mut own = Gathered::default();
        let mut shared: Vec<Gathered> = self.of_row.iter().map(|_| Gathered::default()).collect();
        for field in self.schema.fields() {
            let found = self.arrays.remove(field.name());
            let (part, array) = found.unwrap_or_else(|| unreachable!("no builder made column {}", field.name()));
            places.push(match part {
                Part::Row => Place::Own(own.push(field, array)),
                Part::Shared(at) => Place::Shared(at, shared[at].push(field, array)),
            });
        }
        let share = |(gathered, of_row): (Gathered, _)| Shared { values: gathered.into_batch(), of_row };
        let shared = shared.into_iter().zip(self.of_row).map(share).collect();
        Rows::new(self.schema, places.into(), own.into_batch(), shared)
    }
}

#[derive(Default)]
struct Gathered {
    fields: Vec<FieldRef>,
    arrays: Vec<ArrayRef>,
}

impl Gathered {
    fn push(&mut self, field: &FieldRef, array: ArrayRef) -> usize {
        self.fields.push(Arc::clone(field));
        self.arrays.push(array);
        self.arrays.len() - 1
    }

    fn into_batch(self) -> RecordBatch {
        RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.arrays).expect("builders follow the schema")
    }
}

/// The type of a list column's structs, with their field ids.
pub(crate) fn struct_fields(list: &DataType) -> arrow::datatypes::Fields {
    let DataType::List(element) = list else { unreachable!("a list column") };
    let DataType::Struct(fields) = element.data_type() else { unreachable!("a list of structs") };
    fields.clone()
}

/// A list column from the structs of all rows and where each row's end.
pub(crate) fn list_of_structs(list: &DataType, offsets: Vec<i32>, columns: Vec<ArrayRef>) -> ListArray {
    let DataType::List(element) = list else { unreachable!("a list column") };
    let structs = StructArray::new(struct_fields(list), columns, None);
    ListArray::new(Arc::clone(element), OffsetBuffer::new(offsets.into()), Arc::new(structs), None)
}

/// A list column of numbers.
pub(crate) fn list_of_numbers(list: &DataType, offsets: Vec<i32>, values: ArrayRef) -> ListArray {
    let DataType::List(element) = list else { unreachable!("a list column") };
    ListArray::new(Arc::clone(element), OffsetBuffer::new(offsets.into()), values, None)
}

/// `timestamp` from nanoseconds.
pub(crate) fn timestamps(nanos: &[u64]) -> TimestampMicrosecondArray {
    TimestampMicrosecondArray::from_iter_values(nanos.iter().map(|nanos| (nanos / 1000) as i64)).with_timezone("+00:00")
}

/// Proto3 texts have no presence: empty is null.
pub(crate) fn append_text(builder: &mut StringBuilder, text: Option<&[u8]>) {
    match text {
        Some(text) if !text.is_empty() => builder.append_value(any_value::text(text)),
        _ => builder.append_null(),
    }
}

/// An id, null when it is empty or, in a request that was never checked, of a wrong length.
pub(crate) fn append_id(builder: &mut FixedSizeBinaryBuilder, id: &[u8]) {
    if id.is_empty() || builder.append_value(id).is_err() {
        builder.append_null();
    }
}

/// Name of an enum value; one that has no name yet is written as its number.
pub(crate) fn append_enum(builder: &mut StringBuilder, names: &[&str], value: u64) {
    let value = value as i32;
    match usize::try_from(value).ok().and_then(|at| names.get(at)) {
        Some(name) => builder.append_value(name),
        None => {
            let _ = write!(builder, "{value}");
            builder.append_value("");
        }
    }
}

fn append_entity_refs(builder: &mut StringBuilder, resource: &[u8]) {
    let refs: Vec<serde_json::Value> = messages(resource, 3).map(entity_ref_to_json).collect();
    if refs.is_empty() {
        builder.append_null();
    } else {
        builder.append_value(serde_json::Value::from(refs).to_string());
    }
}

fn entity_ref_to_json(entity: &[u8]) -> serde_json::Value {
    let texts = |field: u32| -> Vec<String> {
        Fields::of(entity)
            .filter(|(found, _)| *found == field)
            .map(|(_, value)| any_value::text(value.bytes()).into_owned())
            .collect()
    };
    serde_json::json!({
        "schemaUrl": texts(1).pop().unwrap_or_default(),
        "type": texts(2).pop().unwrap_or_default(),
        "idKeys": texts(3),
        "descriptionKeys": texts(4),
    })
}

/// Attributes that a table's records promote.
pub(crate) fn record_attributes(table: SignalTable) -> AttributesBuilder {
    let promoted: &'static [Promoted] = schema::record_promoted(table);
    AttributesBuilder::new(promoted)
}
