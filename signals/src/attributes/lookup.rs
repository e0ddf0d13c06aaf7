//! Attributes of a row by key: nothing is decoded but what is asked for.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StructArray};
use arrow::datatypes::Int64Type;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;

use super::{AttributesReader, NO_VALUE};
use crate::any_value::{self, EMPTY, TEXT};
use crate::promoted::{self, POSITIONS, Promoted, PromotedType};

/// The attribute lists of a batch, one a row. Promoted columns that the batch does not have count as empty.
#[derive(Debug)]
pub struct AttributeLookup<'a>(AttributesReader<'a>);

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum AttributeValue<'a> {
    Text(&'a str),
    Integer(i64),
    Double(f64),
    Boolean(bool),
    /// Bytes, an array or a list of pairs.
    Other(AnyValue),
}

impl<'a> AttributeLookup<'a> {
    /// The records' own attributes, of a batch of `traces` or `logs`; `None` when the batch does not have their column.
    pub fn of_records(batch: &'a RecordBatch) -> Option<Self> {
        Self::of(|name| batch.column_by_name(name), "attributes", "attribute_types", promoted::RECORD)
    }

    /// The attributes of the records' resources.
    pub fn of_resources(batch: &'a RecordBatch) -> Option<Self> {
        let (map, types) = ("resource_attributes", "resource_attribute_types");
        Self::of(|name| batch.column_by_name(name), map, types, promoted::RESOURCE)
    }

    /// The attributes of the records' instrumentation scopes.
    pub fn of_scopes(batch: &'a RecordBatch) -> Option<Self> {
        Self::of(|name| batch.column_by_name(name), "scope_attributes", "scope_attribute_types", promoted::NONE)
    }

    /// The attributes of events or links, whose structs these are.
    pub fn of_structs(structs: &'a StructArray) -> Option<Self> {
        Self::of(|name| structs.column_by_name(name), "attributes", "attribute_types", promoted::NONE)
    }

    fn of(
        column: impl Fn(&str) -> Option<&'a ArrayRef>,
        map: &str,
        types: &str,
        promoted: &'static [Promoted],
    ) -> Option<Self> {
        let types = column(types).map(|types| types.as_string::<i32>());
        let columns = promoted.iter().map(|promoted| column(promoted.column)).collect();
        Some(Self(AttributesReader::new(column(map)?.as_map(), types, promoted, columns)))
    }

    /// The value of the first attribute with this key; `None` also for one without a value.
    pub fn get(&self, row: usize, key: &str) -> Option<AttributeValue<'a>> {
        if let Some(at) = promoted::position(self.0.promoted, key.as_bytes())
            && let Some(column) = self.0.columns.get(at).copied().flatten().filter(|column| column.is_valid(row))
        {
            return Some(match self.0.promoted[at].kind {
                PromotedType::Text => AttributeValue::Text(column.as_string::<i32>().value(row)),
                PromotedType::Integer => AttributeValue::Integer(column.as_primitive::<Int64Type>().value(row)),
            });
        }
        let entries = self.entries(row);
        let nth = entries.clone().position(|at| self.0.keys.value(at) == key)?;
        let at = entries.start + nth;
        let text = if self.0.values.is_valid(at) { self.0.values.value(at) } else { "" };
        match self.kind(row, nth) {
            TEXT => Some(AttributeValue::Text(text)),
            NO_VALUE | EMPTY => None,
            kind => {
                let value = any_value::parse(text, kind)?;
                Some(match value.value? {
                    Any::IntValue(value) => AttributeValue::Integer(value),
                    Any::DoubleValue(value) => AttributeValue::Double(value),
                    Any::BoolValue(value) => AttributeValue::Boolean(value),
                    other => AttributeValue::Other(AnyValue { value: Some(other) }),
                })
            }
        }
    }

    /// The keys of a row; a key that was sent more than once comes once.
    pub fn keys(&self, row: usize) -> impl Iterator<Item = &'a str> + '_ {
        let columns = self.0.promoted.iter().zip(&self.0.columns);
        let in_columns = columns.filter(move |(_, column)| column.is_some_and(|column| column.is_valid(row)));
        in_columns.map(|(promoted, _)| promoted.key).chain(self.entries(row).map(move |at| self.0.keys.value(at)))
    }

    fn entries(&self, row: usize) -> std::ops::Range<usize> {
        if self.0.map.is_null(row) {
            return 0..0;
        }
        let offsets = self.0.map.value_offsets();
        offsets[row] as usize..offsets[row + 1] as usize
    }

    /// Type character of the `nth` entry of a row's map.
    fn kind(&self, row: usize, nth: usize) -> u8 {
        let Some(types) = self.0.types.filter(|types| types.is_valid(row)) else { return TEXT };
        let (mut tokens, mut before) = (types.value(row), nth);
        while let Some(token) = tokens.bytes().next() {
            tokens = &tokens[1..];
            if POSITIONS.contains(&token) {
                continue;
            }
            if token == b'!' {
                let rest = tokens.split_once(':');
                let rest = rest.and_then(|(len, rest)| rest.split_at_checked(len.parse().ok()?));
                let Some((_, rest)) = rest else { return TEXT };
                tokens = rest;
            } else if before == 0 {
                return token;
            } else {
                before -= 1;
            }
        }
        TEXT
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{ArrayValue, KeyValue};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;

    use super::*;
    use crate::SignalKind;
    use crate::decode::decode;

    fn pair(key: &str, value: Option<Any>) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: value.map(|value| AnyValue { value: Some(value) }),
            ..Default::default()
        }
    }

    /// What is looked up is what the way back to OTLP says, whatever the types and wherever the key is.
    #[test]
    fn every_key_is_found_with_its_type() {
        let text = |text: &str| Some(Any::StringValue(text.to_owned()));
        let list = Any::ArrayValue(ArrayValue { values: vec![AnyValue { value: text("x") }] });
        let lists = [
            vec![],
            vec![pair("a", text("1")), pair("b", text("é"))],
            vec![
                pair("http.route", text("/x")),
                pair("i", Some(Any::IntValue(7))),
                pair("i", Some(Any::IntValue(8))),
                pair("server.port", Some(Any::IntValue(80))),
                pair("d", Some(Any::DoubleValue(0.5))),
                pair("b", Some(Any::BoolValue(true))),
                pair("none", None),
                pair("l", Some(list.clone())),
                pair("http.response.status_code", text("not a number")),
                pair("last", text("z")),
            ],
        ];
        let spans = lists.iter().map(|list| Span { attributes: list.clone(), ..Span::default() }).collect();
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }],
        };
        let body = request.encode_to_vec();
        let tables = decode(SignalKind::Traces, [(1, body.as_slice())]);
        let batch = tables.first().expect("a table").rows.to_batch().expect("small");
        let lookup = AttributeLookup::of_records(&batch).expect("has the columns");
        for (row, list) in lists.iter().enumerate() {
            let mut expected: Vec<&str> = list.iter().map(|pair| pair.key.as_str()).collect();
            expected.sort_unstable();
            expected.dedup();
            let mut keys: Vec<&str> = lookup.keys(row).collect();
            keys.sort_unstable();
            assert_eq!(keys, expected, "{row}");
            assert_eq!(lookup.get(row, "absent"), None);
        }
        assert_eq!(lookup.get(1, "b"), Some(AttributeValue::Text("é")));
        for (key, value) in [
            ("http.route", Some(AttributeValue::Text("/x"))),
            ("i", Some(AttributeValue::Integer(7))),
            ("server.port", Some(AttributeValue::Integer(80))),
            ("d", Some(AttributeValue::Double(0.5))),
            ("b", Some(AttributeValue::Boolean(true))),
            ("none", None),
            ("l", Some(AttributeValue::Other(AnyValue { value: Some(list) }))),
            ("http.response.status_code", Some(AttributeValue::Text("not a number"))),
            ("last", Some(AttributeValue::Text("z"))),
        ] {
            assert_eq!(lookup.get(2, key), value, "{key}");
        }
    }
}
