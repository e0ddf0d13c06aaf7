//! Attribute lists as columns: a map of texts, a column of types, and the promoted columns.
//!
//! In: `[http.request.method="GET", retries=3, retries=4]`. Out:
//!
//! | attributes | attribute_types | http_request_method |
//! |---|---|---|
//! | `{retries: "3"}` | `Ai!39:{"key":"retries","value":{"intValue":"4"}}` | `GET` |
//!
//! The types column has one token an attribute, in the order of the request: a promoted attribute's position
//! (`A`..`9`), a type character of a map entry, or `!<bytes>:<json>` for a key that was there before (readers of Iceberg
//! tables expect map keys to be unique). It is null when every attribute is a text in the map.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayBuilder as _, ArrayRef, AsArray, Int64Builder, MapArray, StringArray, StringBuilder, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Int64Type};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};

use crate::any_value::{self, EMPTY, Scalar, TEXT};
use crate::json::key_value_from_json;
use crate::promoted::{self, POSITIONS, Promoted, PromotedType};
use crate::wire::{Fields, Value};

mod lookup;

pub use lookup::{AttributeLookup, AttributeValue};

/// Attributes of a list that are compared by looking back.
const LOOK_BACK_MAX: usize = 32;

/// Type character of a key without a value.
const NO_VALUE: u8 = b'n';

/// Builds the columns of one attribute list a row.
#[derive(Debug)]
pub(crate) struct AttributesBuilder {
    keys: StringBuilder,
    values: StringBuilder,
    offsets: Vec<i32>,
    types: StringBuilder,
    promoted: &'static [Promoted],
    columns: Vec<PromotedBuilder>,
    row_types: String,
    text: String,
}

/// Columns of a finished [`AttributesBuilder`].
#[derive(Debug)]
pub(crate) struct AttributeColumns {
    pub(crate) map: ArrayRef,
    pub(crate) types: ArrayRef,
    pub(crate) promoted: Vec<(&'static str, ArrayRef)>,
}

#[derive(Debug)]
enum PromotedBuilder {
    Text(StringBuilder),
    Integer(Int64Builder),
}

impl AttributesBuilder {
    pub(crate) fn new(promoted: &'static [Promoted]) -> Self {
        let column = |promoted: &Promoted| match promoted.kind {
            PromotedType::Text => PromotedBuilder::Text(StringBuilder::new()),
            PromotedType::Integer => PromotedBuilder::Integer(Int64Builder::new()),
        };
        Self {
            keys: StringBuilder::new(),
            values: StringBuilder::new(),
            offsets: vec![0],
            types: StringBuilder::new(),
            promoted,
            columns: promoted.iter().map(column).collect(),
            row_types: String::new(),
            text: String::new(),
        }
    }

    fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Adds a row from the KeyValue messages in `field` of `message`.
    pub(crate) fn append(&mut self, message: &[u8], field: u32) {
        self.row_types.clear();
        let mut plain = true;
        // A key can only have been seen if its bit is set; most rows never look back.
        let mut seen = 0u64;
        // Long lists are compared through a set: looking back would be quadratic.
        let mut many: Option<HashSet<&[u8]>> = None;
        let pairs = Fields::of(message).filter(|(found, _)| *found == field);
        for (at, (_, pair)) in pairs.clone().enumerate() {
            let (key, value) = key_and_value(pair.bytes());
            let ends = [key.first(), key.last()].map(|byte| usize::from(byte.copied().unwrap_or(0)));
            let bit = 1u64 << ((key.len() + ends[0] * 7 + ends[1] * 31) % 64);
            if at == LOOK_BACK_MAX {
                many = Some(pairs.clone().take(at).map(|(_, earlier)| key_and_value(earlier.bytes()).0).collect());
            }
            let repeated = match &mut many {
                Some(keys) => !keys.insert(key),
                None => {
                    seen & bit != 0
                        && pairs.clone().take(at).any(|(_, earlier)| key_and_value(earlier.bytes()).0 == key)
                }
            };
            seen |= bit;
            let token = if repeated {
                self.append_repeated(pair.bytes());
                continue;
            } else {
                self.append_pair(key, value)
            };
            plain &= token == TEXT;
            self.row_types.push(token as char);
        }
        if plain && !self.row_types.contains('!') {
            self.types.append_null();
        } else {
            self.types.append_value(&self.row_types);
        }
        self.offsets.push(self.keys.len() as i32);
    }

    fn append_repeated(&mut self, pair: &[u8]) {
        let json = any_value::key_value_to_json(&any_value::decode_key_value(pair)).to_string();
        let _ = write!(self.row_types, "!{}:{json}", json.len());
    }

    /// Puts one attribute where it belongs; returns its token.
    fn append_pair(&mut self, key: &[u8], value: Option<&[u8]>) -> u8 {
        let scalar = value.map(any_value::scalar);
        if let Some(at) = promoted::position(self.promoted, key) {
            let row = self.rows();
            match (&mut self.columns[at], scalar) {
                (PromotedBuilder::Text(column), Some(Scalar::Text(text))) => {
                    column.append_nulls(row - column.len());
                    column.append_value(any_value::text(text));
                    return POSITIONS[at];
                }
                (PromotedBuilder::Integer(column), Some(Scalar::Integer(number))) => {
                    column.append_nulls(row - column.len());
                    column.append_value(number);
                    return POSITIONS[at];
                }
                // A value of another type stays in the map.
                _ => {}
            }
        }
        self.keys.append_value(any_value::text(key));
        match scalar {
            None => {
                self.values.append_null();
                NO_VALUE
            }
            Some(Scalar::Text(text)) => {
                self.values.append_value(any_value::text(text));
                TEXT
            }
            Some(Scalar::Integer(number)) => {
                let _ = write!(self.values, "{number}");
                self.values.append_value("");
                b'i'
            }
            Some(Scalar::Other(message)) => {
                self.text.clear();
                let kind = any_value::write_other(message, &mut self.text);
                if kind == EMPTY {
                    self.values.append_null()
                } else {
                    self.values.append_value(&self.text)
                }
                kind
            }
        }
    }

    /// The columns, with the map typed as `map_type` (a schema's own type carries the field ids).
    pub(crate) fn finish(mut self, map_type: &DataType) -> AttributeColumns {
        let rows = self.rows();
        let map = map_array(map_type, self.offsets, Arc::new(self.keys.finish()), Arc::new(self.values.finish()));
        let promoted = self.promoted.iter().zip(self.columns).map(|(promoted, column)| {
            let column: ArrayRef = match column {
                PromotedBuilder::Text(mut column) => {
                    column.append_nulls(rows - column.len());
                    Arc::new(column.finish())
                }
                PromotedBuilder::Integer(mut column) => {
                    column.append_nulls(rows - column.len());
                    Arc::new(column.finish())
                }
            };
            (promoted.column, column)
        });
        AttributeColumns { map: Arc::new(map), types: Arc::new(self.types.finish()), promoted: promoted.collect() }
    }
}

fn key_and_value(pair: &[u8]) -> (&[u8], Option<&[u8]>) {
    let (mut key, mut found) = (&[][..], None);
    for (field, value) in Fields::of(pair) {
        match (field, value) {
            (1, Value::Bytes(bytes)) => key = bytes,
            (2, Value::Bytes(bytes)) => found = Some(bytes),
            _ => {}
        }
    }
    (key, found)
}

fn map_array(map_type: &DataType, offsets: Vec<i32>, keys: ArrayRef, values: ArrayRef) -> MapArray {
    let DataType::Map(entries, ordered) = map_type else { unreachable!("attribute columns are maps") };
    let DataType::Struct(fields) = entries.data_type() else { unreachable!("map entries are structs") };
    let pairs = StructArray::new(fields.clone(), vec![keys, values], None);
    MapArray::new(Arc::clone(entries), OffsetBuffer::new(offsets.into()), pairs, None, *ordered)
}

/// The columns of one attribute list, read row by row.
#[derive(Debug)]
pub(crate) struct AttributesReader<'a> {
    map: &'a MapArray,
    keys: &'a StringArray,
    values: &'a StringArray,
    types: Option<&'a StringArray>,
    promoted: &'static [Promoted],
    columns: Vec<Option<&'a ArrayRef>>,
}

/// One attribute of a row.
enum Item<'a> {
    Map { key: &'a str, value: Option<&'a str>, kind: u8 },
    Promoted(usize),
    Repeated(&'a str),
}

impl<'a> AttributesReader<'a> {
    /// `columns` are the promoted columns in the order of `promoted`, `None` for one that the batch does not have.
    pub(crate) fn new(
        map: &'a MapArray,
        types: Option<&'a StringArray>,
        promoted: &'static [Promoted],
        columns: Vec<Option<&'a ArrayRef>>,
    ) -> Self {
        let (keys, values) = (map.keys().as_string::<i32>(), map.values().as_string::<i32>());
        Self { map, keys, values, types, promoted, columns }
    }

    fn items(&self, row: usize) -> Vec<Item<'a>> {
        let mut entries = self.map.value_offsets()[row] as usize..self.map.value_offsets()[row + 1] as usize;
        let mut entry = |kind: u8| {
            let at = entries.next()?;
            let value = self.values.is_valid(at).then(|| self.values.value(at));
            Some(Item::Map { key: self.keys.value(at), value, kind })
        };
        let types = self.types.filter(|types| types.is_valid(row)).map(|types| types.value(row));
        let mut out = Vec::new();
        let mut tokens = types.unwrap_or_default();
        while let Some(token) = tokens.bytes().next() {
            tokens = &tokens[1..];
            if let Some(at) = POSITIONS.iter().position(|position| *position == token) {
                out.push(Item::Promoted(at));
            } else if token == b'!' {
                let Some((len, rest)) = tokens.split_once(':') else { break };
                let Some((json, rest)) = len.parse().ok().and_then(|len: usize| rest.split_at_checked(len)) else {
                    break;
                };
                out.push(Item::Repeated(json));
                tokens = rest;
            } else {
                out.extend(entry(token));
            }
        }
        // Without tokens, and for rows that somebody else wrote, the map speaks for itself.
        while let Some(item) = entry(TEXT) {
            out.push(item);
        }
        out
    }

    /// The attributes of a row as they were sent.
    pub(crate) fn key_values(&self, row: usize) -> Vec<KeyValue> {
        self.items(row).into_iter().filter_map(|item| self.key_value(item, row)).collect()
    }

    fn key_value(&self, item: Item<'_>, row: usize) -> Option<KeyValue> {
        match item {
            Item::Repeated(json) => key_value_from_json(&serde_json::from_str(json).ok()?).ok(),
            Item::Map { key, value, kind } => {
                let value = if kind == NO_VALUE { None } else { any_value::parse(value.unwrap_or_default(), kind) };
                Some(KeyValue { key: key.to_owned(), value, ..KeyValue::default() })
            }
            Item::Promoted(at) => {
                let (promoted, column) = (self.promoted.get(at)?, self.columns.get(at).copied().flatten()?);
                let value = match promoted.kind {
                    PromotedType::Text => Any::StringValue(column.as_string::<i32>().value(row).to_owned()),
                    PromotedType::Integer => Any::IntValue(column.as_primitive::<Int64Type>().value(row)),
                };
                let value = Some(AnyValue { value: Some(value) });
                Some(KeyValue { key: promoted.key.to_owned(), value, ..KeyValue::default() })
            }
        }
    }
}

/// The promoted attributes that have a value in the map of some row, where it does not fit their column; once a value.
pub fn found_in_map<'a>(map: &'a MapArray, promoted: &'a [Promoted]) -> impl Iterator<Item = &'a Promoted> {
    let (keys, values) = (map.keys().as_string::<i32>(), map.values().as_string::<i32>());
    let offset = |offset: Option<&i32>| offset.map_or(0, |offset| *offset as usize);
    let entries = offset(map.value_offsets().first())..offset(map.value_offsets().last());
    let with_value = entries.filter(move |at| values.is_valid(*at));
    with_value.filter_map(move |at| {
        let position = promoted::position(promoted, keys.value(at).as_bytes())?;
        Some(&promoted[position])
    })
}

/// The whole map again, promoted attributes included, as texts; repeated keys keep their first value.
///
/// `columns` are the promoted columns in the order of `promoted`, `None` for one that is not there; texts may be views. The
/// result has the type of `map`.
pub fn merge_attributes(map: &MapArray, promoted: &'static [Promoted], columns: &[Option<ArrayRef>]) -> MapArray {
    let (keys, values) = (map.keys().as_string::<i32>(), map.values().as_string::<i32>());
    let (mut out_keys, mut out_values) = (StringBuilder::new(), StringBuilder::new());
    let mut offsets = vec![0];
    let present: Vec<(&Promoted, &ArrayRef)> =
        promoted.iter().zip(columns).filter_map(|(promoted, column)| Some((promoted, column.as_ref()?))).collect();
    for row in 0..map.len() {
        for (promoted, column) in present.iter().filter(|(_, column)| column.is_valid(row)) {
            out_keys.append_value(promoted.key);
            match promoted.kind {
                PromotedType::Text => out_values.append_value(text(column, row)),
                PromotedType::Integer => {
                    let _ = write!(out_values, "{}", column.as_primitive::<Int64Type>().value(row));
                    out_values.append_value("");
                }
            }
        }
        for at in map.value_offsets()[row] as usize..map.value_offsets()[row + 1] as usize {
            out_keys.append_value(keys.value(at));
            out_values.append_option(values.is_valid(at).then(|| values.value(at)));
        }
        offsets.push(out_keys.len() as i32);
    }
    map_array(map.data_type(), offsets, Arc::new(out_keys.finish()), Arc::new(out_values.finish()))
}

/// A text as tables have it, or as queries do.
fn text(column: &ArrayRef, row: usize) -> &str {
    match column.as_string_view_opt() {
        Some(views) => views.value(row),
        None => column.as_string::<i32>().value(row),
    }
}
