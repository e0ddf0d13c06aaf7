//! An attribute value as text and a type character, and back.
//!
//! | OTLP value | text | type |
//! |---|---|---|
//! | `"GET"` | `GET` | `s` |
//! | `42` | `42` | `i` |
//! | `1.5`, `NaN` | `1.5`, `NaN` | `d` |
//! | `true` | `true` | `b` |
//! | bytes `01 02` | `AQI=` | `y` |
//! | array, kvlist | its OTLP JSON, `{"arrayValue":{"values":[...]}}` | `j` |
//! | no value set | empty | `e` |

use std::borrow::Cow;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use serde_json::json;

use crate::json as otlp_json;
use crate::wire::{Fields, Value};

/// Type character of a text value; the others are in the module's table.
pub(crate) const TEXT: u8 = b's';
/// Type character of a value that is not set.
pub(crate) const EMPTY: u8 = b'e';

/// A decoded value, borrowing from the message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scalar<'a> {
    Text(&'a [u8]),
    Integer(i64),
    /// Anything else: the bytes of the AnyValue message.
    Other(&'a [u8]),
}

/// Reads the value of an AnyValue message; the last of several wins, as protobuf says.
pub(crate) fn scalar(message: &[u8]) -> Scalar<'_> {
    match Fields::of(message).filter(|(field, _)| (1..=7).contains(field)).last() {
        Some((1, value)) => Scalar::Text(value.bytes()),
        Some((3, value)) => Scalar::Integer(value.number() as i64),
        _ => Scalar::Other(message),
    }
}

/// Text that is not UTF-8 gets replacement characters; the client was told so in `partial_success`.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Writes the text of an AnyValue message that is neither a string nor an integer; returns its type character.
pub(crate) fn write_other(message: &[u8], out: &mut String) -> u8 {
    match Fields::of(message).filter(|(field, _)| (1..=7).contains(field)).last() {
        Some((2, value)) => {
            out.push_str(if value.number() != 0 { "true" } else { "false" });
            b'b'
        }
        Some((4, value)) => {
            write_double(value.double(), out);
            b'd'
        }
        Some((7, value)) => {
            STANDARD.encode_string(value.bytes(), out);
            b'y'
        }
        Some((5 | 6, _)) => {
            let value = decode(message);
            let _ = write!(out, "{}", otlp_json::any_value_to_json(&value));
            b'j'
        }
        _ => EMPTY,
    }
}

/// Shortest text that parses back to the same double; NaN and infinities as OTLP JSON spells them.
pub(crate) fn write_double(value: f64, out: &mut String) {
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    } else {
        let _ = write!(out, "{value:?}");
    }
}

/// The value that a text and its type character stand for; `None` when they do not fit each other.
pub(crate) fn parse(text: &str, kind: u8) -> Option<AnyValue> {
    let value = match kind {
        TEXT => Some(Any::StringValue(text.to_owned())),
        b'i' => Some(Any::IntValue(text.parse().ok()?)),
        b'd' => Some(Any::DoubleValue(match text {
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            other => other.parse().ok()?,
        })),
        b'b' => Some(Any::BoolValue(text == "true")),
        b'y' => Some(Any::BytesValue(STANDARD.decode(text).ok()?)),
        b'j' => return otlp_json::any_value_from_json(&serde_json::from_str(text).ok()?).ok(),
        EMPTY => None,
        _ => return None,
    };
    Some(AnyValue { value })
}

/// Decodes an AnyValue message; texts that are not UTF-8 get replacement characters.
pub(crate) fn decode(message: &[u8]) -> AnyValue {
    let value =
        Fields::of(message).filter(|(field, _)| (1..=7).contains(field)).last().map(|(field, value)| match field {
            1 => Any::StringValue(text(value.bytes()).into_owned()),
            2 => Any::BoolValue(value.number() != 0),
            3 => Any::IntValue(value.number() as i64),
            4 => Any::DoubleValue(value.double()),
            5 => Any::ArrayValue(ArrayValue { values: messages(value).map(decode).collect() }),
            6 => Any::KvlistValue(KeyValueList { values: messages(value).map(decode_key_value).collect() }),
            _ => Any::BytesValue(value.bytes().to_vec()),
        });
    AnyValue { value }
}

fn messages(list: Value<'_>) -> impl Iterator<Item = &[u8]> {
    Fields::of(list.bytes()).filter(|(field, _)| *field == 1).map(|(_, value)| value.bytes())
}

/// Decodes a KeyValue message.
pub(crate) fn decode_key_value(message: &[u8]) -> KeyValue {
    let mut out = KeyValue::default();
    for (field, value) in Fields::of(message) {
        match field {
            1 => out.key = text(value.bytes()).into_owned(),
            2 => out.value = Some(decode(value.bytes())),
            _ => {}
        }
    }
    out
}

/// A KeyValue as OTLP JSON.
pub(crate) fn key_value_to_json(pair: &KeyValue) -> serde_json::Value {
    match &pair.value {
        Some(value) => json!({"key": pair.key, "value": otlp_json::any_value_to_json(value)}),
        None => json!({"key": pair.key}),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn every_value_survives_as_text() {
        let nested = ArrayValue {
            values: vec![AnyValue { value: Some(Any::DoubleValue(f64::INFINITY)) }, AnyValue { value: None }],
        };
        let values = [
            Any::StringValue("é\0".into()),
            Any::IntValue(i64::MIN),
            Any::IntValue((1 << 53) + 1),
            Any::DoubleValue(-0.0),
            Any::DoubleValue(0.1),
            Any::DoubleValue(f64::NEG_INFINITY),
            Any::BoolValue(false),
            Any::BytesValue(vec![0, 255]),
            Any::ArrayValue(nested),
            Any::ArrayValue(ArrayValue::default()),
            Any::KvlistValue(KeyValueList::default()),
        ];
        for value in values.into_iter().map(Some).chain([None]) {
            let value = AnyValue { value };
            let message = value.encode_to_vec();
            assert_eq!(decode(&message), value);
            let mut out = String::new();
            let kind = match scalar(&message) {
                Scalar::Text(bytes) => {
                    out.push_str(&text(bytes));
                    TEXT
                }
                Scalar::Integer(number) => {
                    let _ = write!(out, "{number}");
                    b'i'
                }
                Scalar::Other(message) => write_other(message, &mut out),
            };
            assert_eq!(parse(&out, kind), Some(value.clone()), "{out} {}", kind as char);
        }
    }
}
