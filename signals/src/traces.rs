//! Spans to columns.

use std::sync::Arc;

use arrow::array::{ArrayBuilder as _, ArrayRef, FixedSizeBinaryBuilder, Int64Array, Int64Builder, StringBuilder};

use crate::attributes::AttributesBuilder;
use crate::decode::{
    Columns, Common, DecodedTable, RowsBuilder, append_enum, append_id, append_text, list_of_structs,
    record_attributes, struct_fields, timestamps,
};
use crate::promoted;
use crate::table::SignalTable;
use crate::wire::Fields;

pub(crate) const KINDS: &[&str] = &["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
pub(crate) const STATUS_CODES: &[&str] = &["UNSET", "OK", "ERROR"];

/// One row per span.
#[derive(Debug)]
pub(crate) struct TracesBuilder {
    common: Common,
    start: Vec<u64>,
    end: Vec<i64>,
    trace_id: FixedSizeBinaryBuilder,
    span_id: FixedSizeBinaryBuilder,
    parent_span_id: FixedSizeBinaryBuilder,
    trace_state: StringBuilder,
    flags: Vec<i64>,
    name: StringBuilder,
    kind: StringBuilder,
    status_code: StringBuilder,
    status_message: StringBuilder,
    dropped_attributes: Vec<i64>,
    dropped_events: Vec<i64>,
    dropped_links: Vec<i64>,
    attributes: AttributesBuilder,
    events: EventsBuilder,
    links: LinksBuilder,
}

#[derive(Debug)]
struct EventsBuilder {
    offsets: Vec<i32>,
    time: Int64Builder,
    name: StringBuilder,
    attributes: AttributesBuilder,
    dropped: Int64Builder,
}

#[derive(Debug)]
struct LinksBuilder {
    offsets: Vec<i32>,
    trace_id: FixedSizeBinaryBuilder,
    span_id: FixedSizeBinaryBuilder,
    trace_state: StringBuilder,
    attributes: AttributesBuilder,
    dropped: Int64Builder,
    flags: Int64Builder,
}

/// Fields of a span, gathered in one pass.
#[derive(Default)]
struct Span<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    parent_span_id: &'a [u8],
    trace_state: &'a [u8],
    name: &'a [u8],
    status: &'a [u8],
    flags: u64,
    kind: u64,
    start: u64,
    end: u64,
    dropped_attributes: u64,
    dropped_events: u64,
    dropped_links: u64,
}

impl TracesBuilder {
    pub(crate) fn new() -> Self {
        Self {
            common: Common::new(),
            start: Vec::new(),
            end: Vec::new(),
            trace_id: FixedSizeBinaryBuilder::new(16),
            span_id: FixedSizeBinaryBuilder::new(8),
            parent_span_id: FixedSizeBinaryBuilder::new(8),
            trace_state: StringBuilder::new(),
            flags: Vec::new(),
            name: StringBuilder::new(),
            kind: StringBuilder::new(),
            status_code: StringBuilder::new(),
            status_message: StringBuilder::new(),
            dropped_attributes: Vec::new(),
            dropped_events: Vec::new(),
            dropped_links: Vec::new(),
            attributes: record_attributes(SignalTable::Traces),
            events: EventsBuilder::new(),
            links: LinksBuilder::new(),
        }
    }
}

impl RowsBuilder for TracesBuilder {
    fn start_resource(&mut self, resource: &[u8]) {
        self.common.start_resource(resource);
    }

    fn start_scope(&mut self, scope: &[u8]) {
        self.common.start_scope(scope);
    }

    fn append(&mut self, item: &[u8], _resource: &[u8], _scope: &[u8], number: u64) {
        let mut span = Span::default();
        for (field, value) in Fields::of(item) {
            match field {
                1 => span.trace_id = value.bytes(),
                2 => span.span_id = value.bytes(),
                3 => span.trace_state = value.bytes(),
                4 => span.parent_span_id = value.bytes(),
                5 => span.name = value.bytes(),
                6 => span.kind = value.number(),
                7 => span.start = value.number(),
                8 => span.end = value.number(),
                10 => span.dropped_attributes = value.number(),
                11 => self.events.append(value.bytes()),
                12 => span.dropped_events = value.number(),
                13 => self.links.append(value.bytes()),
                14 => span.dropped_links = value.number(),
                15 => span.status = value.bytes(),
                16 => span.flags = value.number(),
                _ => {}
            }
        }
        self.common.row(number);
        self.start.push(span.start);
        self.end.push(span.end as i64);
        append_id(&mut self.trace_id, span.trace_id);
        append_id(&mut self.span_id, span.span_id);
        append_id(&mut self.parent_span_id, span.parent_span_id);
        append_text(&mut self.trace_state, Some(span.trace_state));
        self.flags.push(span.flags as i64);
        append_text(&mut self.name, Some(span.name));
        append_enum(&mut self.kind, KINDS, span.kind);
        self.append_status(span.status);
        self.dropped_attributes.push(span.dropped_attributes as i64);
        self.dropped_events.push(span.dropped_events as i64);
        self.dropped_links.push(span.dropped_links as i64);
        self.attributes.append(item, 9);
        self.events.end_row();
        self.links.end_row();
    }

    fn finish(mut self) -> Vec<DecodedTable> {
        if self.common.rows() == 0 {
            return Vec::new();
        }
        let mut columns = Columns::of(SignalTable::Traces);
        columns.put("timestamp", timestamps(&self.start));
        // An end before the start is stored as it came; the duration is then zero.
        let durations =
            self.start.iter().zip(&self.end).map(|(start, end)| (*end as u64).saturating_sub(*start) as i64);
        columns.put("duration_nano", Int64Array::from_iter_values(durations));
        columns.put("time_unix_nano", Int64Array::from_iter_values(self.start.iter().map(|nanos| *nanos as i64)));
        columns.put("end_time_unix_nano", Int64Array::from(self.end));
        columns.put("trace_id", self.trace_id.finish());
        columns.put("span_id", self.span_id.finish());
        columns.put("parent_span_id", self.parent_span_id.finish());
        columns.put("trace_state", self.trace_state.finish());
        columns.put("flags", Int64Array::from(self.flags));
        columns.put("name", self.name.finish());
        columns.put("kind", self.kind.finish());
        columns.put("status_code", self.status_code.finish());
        columns.put("status_message", self.status_message.finish());
        columns.put("dropped_attributes_count", Int64Array::from(self.dropped_attributes));
        columns.put("dropped_events_count", Int64Array::from(self.dropped_events));
        columns.put("dropped_links_count", Int64Array::from(self.dropped_links));
        columns.put_attributes(self.attributes);
        self.events.finish(&mut columns);
        self.links.finish(&mut columns);
        vec![self.common.finish(SignalTable::Traces, columns)]
    }
}

impl TracesBuilder {
    fn append_status(&mut self, status: &[u8]) {
        let (mut message, mut code) = (&[][..], 0);
        for (field, value) in Fields::of(status) {
            match field {
                2 => message = value.bytes(),
                3 => code = value.number(),
                _ => {}
            }
        }
        append_text(&mut self.status_message, Some(message));
        append_enum(&mut self.status_code, STATUS_CODES, code);
    }
}

impl EventsBuilder {
    fn new() -> Self {
        Self {
            offsets: vec![0],
            time: Int64Builder::new(),
            name: StringBuilder::new(),
            attributes: AttributesBuilder::new(promoted::NONE),
            dropped: Int64Builder::new(),
        }
    }

    fn append(&mut self, event: &[u8]) {
        let (mut time, mut name, mut dropped) = (0, &[][..], 0);
        for (field, value) in Fields::of(event) {
            match field {
                1 => time = value.number(),
                2 => name = value.bytes(),
                4 => dropped = value.number(),
                _ => {}
            }
        }
        self.time.append_value(time as i64);
        append_text(&mut self.name, Some(name));
        self.attributes.append(event, 3);
        self.dropped.append_value(dropped as i64);
    }

    fn end_row(&mut self) {
        self.offsets.push(self.time.len() as i32);
    }

    fn finish(mut self, columns: &mut Columns) {
        let list = columns.data_type("events");
        let attributes = self.attributes.finish(struct_fields(&list)[2].data_type());
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(self.time.finish()),
            Arc::new(self.name.finish()),
            attributes.map,
            attributes.types,
            Arc::new(self.dropped.finish()),
        ];
        columns.put("events", list_of_structs(&list, self.offsets, arrays));
    }
}

impl LinksBuilder {
    fn new() -> Self {
        Self {
            offsets: vec![0],
            trace_id: FixedSizeBinaryBuilder::new(16),
            span_id: FixedSizeBinaryBuilder::new(8),
            trace_state: StringBuilder::new(),
            attributes: AttributesBuilder::new(promoted::NONE),
            dropped: Int64Builder::new(),
            flags: Int64Builder::new(),
        }
    }

    fn append(&mut self, link: &[u8]) {
        let (mut trace_id, mut span_id, mut trace_state) = (&[][..], &[][..], &[][..]);
        let (mut dropped, mut flags) = (0, 0);
        for (field, value) in Fields::of(link) {
            match field {
                1 => trace_id = value.bytes(),
                2 => span_id = value.bytes(),
                3 => trace_state = value.bytes(),
                5 => dropped = value.number(),
                6 => flags = value.number(),
                _ => {}
            }
        }
        append_id(&mut self.trace_id, trace_id);
        append_id(&mut self.span_id, span_id);
        append_text(&mut self.trace_state, Some(trace_state));
        self.attributes.append(link, 4);
        self.dropped.append_value(dropped as i64);
        self.flags.append_value(flags as i64);
    }

    fn end_row(&mut self) {
        self.offsets.push(self.dropped.len() as i32);
    }

    fn finish(mut self, columns: &mut Columns) {
        let list = columns.data_type("links");
        let attributes = self.attributes.finish(struct_fields(&list)[3].data_type());
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(self.trace_id.finish()),
            Arc::new(self.span_id.finish()),
            Arc::new(self.trace_state.finish()),
            attributes.map,
            attributes.types,
            Arc::new(self.dropped.finish()),
            Arc::new(self.flags.finish()),
        ];
        columns.put("links", list_of_structs(&list, self.offsets, arrays));
    }
}
