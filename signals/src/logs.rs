//! Log records to columns.

use std::fmt::Write;

use arrow::array::{FixedSizeBinaryBuilder, Int32Array, Int64Array, StringBuilder};

use crate::any_value::{self, EMPTY, Scalar};
use crate::attributes::AttributesBuilder;
use crate::decode::{
    Columns, Common, DecodedTable, RowsBuilder, append_id, append_text, record_attributes, timestamps,
};
use crate::table::SignalTable;
use crate::wire::Fields;

/// One row per log record. `body` is the value's text; `body_type` its type character, null for text.
#[derive(Debug)]
pub(crate) struct LogsBuilder {
    common: Common,
    /// The record's time, or when it was observed if it has none.
    timestamp: Vec<u64>,
    time: Vec<i64>,
    observed: Vec<i64>,
    severity_number: Vec<i32>,
    severity_text: StringBuilder,
    body: StringBuilder,
    body_type: StringBuilder,
    event_name: StringBuilder,
    trace_id: FixedSizeBinaryBuilder,
    span_id: FixedSizeBinaryBuilder,
    flags: Vec<i64>,
    dropped_attributes: Vec<i64>,
    attributes: AttributesBuilder,
    text: String,
}

impl LogsBuilder {
    pub(crate) fn new() -> Self {
        Self {
            common: Common::new(),
            timestamp: Vec::new(),
            time: Vec::new(),
            observed: Vec::new(),
            severity_number: Vec::new(),
            severity_text: StringBuilder::new(),
            body: StringBuilder::new(),
            body_type: StringBuilder::new(),
            event_name: StringBuilder::new(),
            trace_id: FixedSizeBinaryBuilder::new(16),
            span_id: FixedSizeBinaryBuilder::new(8),
            flags: Vec::new(),
            dropped_attributes: Vec::new(),
            attributes: record_attributes(SignalTable::Logs),
            text: String::new(),
        }
    }

    fn append_body(&mut self, body: Option<&[u8]>) {
        match body.map(any_value::scalar) {
            None => {
                self.body.append_null();
                self.body_type.append_null();
            }
            Some(Scalar::Text(text)) => {
                self.body.append_value(any_value::text(text));
                self.body_type.append_null();
            }
            Some(Scalar::Integer(number)) => {
                let _ = write!(self.body, "{number}");
                self.body.append_value("");
                self.body_type.append_value("i");
            }
            Some(Scalar::Other(message)) => {
                self.text.clear();
                let kind = any_value::write_other(message, &mut self.text);
                if kind == EMPTY {
                    self.body.append_null()
                } else {
                    self.body.append_value(&self.text)
                }
                self.body_type.append_value((kind as char).encode_utf8(&mut [0; 4]));
            }
        }
    }
}

impl RowsBuilder for LogsBuilder {
    fn start_resource(&mut self, resource: &[u8]) {
        self.common.start_resource(resource);
    }

    fn start_scope(&mut self, scope: &[u8]) {
        self.common.start_scope(scope);
    }

    fn append(&mut self, item: &[u8], _resource: &[u8], _scope: &[u8], number: u64) {
        let (mut time, mut observed, mut severity, mut dropped, mut flags) = (0, 0, 0, 0, 0);
        let (mut severity_text, mut event_name) = (&[][..], &[][..]);
        let (mut trace_id, mut span_id) = (&[][..], &[][..]);
        let mut body = None;
        for (field, value) in Fields::of(item) {
            match field {
                1 => time = value.number(),
                2 => severity = value.number(),
                3 => severity_text = value.bytes(),
                5 => body = Some(value.bytes()),
                7 => dropped = value.number(),
                8 => flags = value.number(),
                9 => trace_id = value.bytes(),
                10 => span_id = value.bytes(),
                11 => observed = value.number(),
                12 => event_name = value.bytes(),
                _ => {}
            }
        }
        self.common.row(number);
        self.timestamp.push(if time == 0 { observed } else { time });
        self.time.push(time as i64);
        self.observed.push(observed as i64);
        self.severity_number.push(severity as i32);
        append_text(&mut self.severity_text, Some(severity_text));
        self.append_body(body);
        append_text(&mut self.event_name, Some(event_name));
        append_id(&mut self.trace_id, trace_id);
        append_id(&mut self.span_id, span_id);
        self.flags.push(flags as i64);
        self.dropped_attributes.push(dropped as i64);
        self.attributes.append(item, 6);
    }

    fn finish(mut self) -> Vec<DecodedTable> {
        if self.common.rows() == 0 {
            return Vec::new();
        }
        let mut columns = Columns::of(SignalTable::Logs);
        columns.put("timestamp", timestamps(&self.timestamp));
        columns.put("time_unix_nano", Int64Array::from(self.time));
        columns.put("observed_time_unix_nano", Int64Array::from(self.observed));
        columns.put("severity_number", Int32Array::from(self.severity_number));
        columns.put("severity_text", self.severity_text.finish());
        columns.put("body", self.body.finish());
        columns.put("body_type", self.body_type.finish());
        columns.put("event_name", self.event_name.finish());
        columns.put("trace_id", self.trace_id.finish());
        columns.put("span_id", self.span_id.finish());
        columns.put("flags", Int64Array::from(self.flags));
        columns.put("dropped_attributes_count", Int64Array::from(self.dropped_attributes));
        columns.put_attributes(self.attributes);
        vec![self.common.finish(SignalTable::Logs, columns)]
    }
}
