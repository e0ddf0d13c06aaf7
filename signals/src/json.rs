//! OTLP JSON (specification 1.x, "JSON Protobuf Encoding") to protobuf, and AnyValue to JSON.
//!
//! Own code because the generated serde of opentelemetry-proto refuses or drops values that the specification allows
//! (`"NaN"`, numeric strings, `{"arrayValue":{}}`, URL-safe base64). Names are lowerCamelCase; unknown names are
//! ignored; `null` is unset; ids are hex; 64-bit integers are numbers or strings; enums are integers.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::summary_data_point::ValueAtQuantile;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::request::SignalKind;

/// JSON that is not an OTLP request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JsonError {
    #[error("request body is not valid JSON: {0}")]
    Syntax(String),
    #[error("{path}: expected {expected}")]
    Type { path: String, expected: &'static str },
}

/// Translates an OTLP JSON request into the protobuf bytes of the same request.
///
/// # Errors
/// [`JsonError`] says where the JSON is not what OTLP defines.
pub fn to_protobuf(kind: SignalKind, body: &[u8]) -> Result<Vec<u8>, JsonError> {
    let value: Value = serde_json::from_slice(body).map_err(|error| JsonError::Syntax(error.to_string()))?;
    let root = Object::of(&value, "$")?;
    Ok(match kind {
        SignalKind::Traces => {
            ExportTraceServiceRequest { resource_spans: root.list("resourceSpans", resource_spans)? }.encode_to_vec()
        }
        SignalKind::Logs => {
            ExportLogsServiceRequest { resource_logs: root.list("resourceLogs", resource_logs)? }.encode_to_vec()
        }
        SignalKind::Metrics => {
            ExportMetricsServiceRequest { resource_metrics: root.list("resourceMetrics", resource_metrics)? }
                .encode_to_vec()
        }
    })
}

/// An AnyValue as OTLP JSON; 64-bit integers are strings, doubles that JSON has no number for as well.
pub fn any_value_to_json(value: &AnyValue) -> Value {
    match &value.value {
        None | Some(Any::StringValueStrindex(_)) => json!({}),
        Some(Any::StringValue(text)) => json!({"stringValue": text}),
        Some(Any::BoolValue(value)) => json!({"boolValue": value}),
        Some(Any::IntValue(value)) => json!({"intValue": value.to_string()}),
        Some(Any::DoubleValue(value)) if value.is_nan() => json!({"doubleValue": "NaN"}),
        Some(Any::DoubleValue(value)) if value.is_infinite() => {
            json!({"doubleValue": if *value > 0.0 { "Infinity" } else { "-Infinity" }})
        }
        Some(Any::DoubleValue(value)) => json!({"doubleValue": value}),
        Some(Any::ArrayValue(list)) => {
            json!({"arrayValue": {"values": list.values.iter().map(any_value_to_json).collect::<Vec<_>>()}})
        }
        Some(Any::KvlistValue(list)) => {
            let values: Vec<Value> = list.values.iter().map(crate::any_value::key_value_to_json).collect();
            json!({"kvlistValue": {"values": values}})
        }
        Some(Any::BytesValue(bytes)) => json!({"bytesValue": BASE64.encode(bytes)}),
    }
}

pub(crate) fn any_value_from_json(value: &Value) -> Result<AnyValue, JsonError> {
    any_value(&Object::of(value, "$")?)
}

pub(crate) fn key_value_from_json(value: &Value) -> Result<KeyValue, JsonError> {
    key_value(&Object::of(value, "$")?)
}

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// A JSON object and where it stands.
struct Object<'a> {
    fields: &'a Map<String, Value>,
    path: String,
}

impl<'a> Object<'a> {
    fn of(value: &'a Value, path: &str) -> Result<Self, JsonError> {
        let fields = value.as_object().ok_or(JsonError::Type { path: path.to_owned(), expected: "an object" })?;
        Ok(Self { fields, path: path.to_owned() })
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn wrong<T>(&self, name: &str, expected: &'static str) -> Result<T, JsonError> {
        Err(JsonError::Type { path: format!("{}.{name}", self.path), expected })
    }

    fn object(&self, name: &str) -> Result<Option<Object<'a>>, JsonError> {
        self.get(name).map(|value| Object::of(value, &format!("{}.{name}", self.path))).transpose()
    }

    fn read<T>(&self, name: &str, read: impl Fn(&Object<'_>) -> Result<T, JsonError>) -> Result<Option<T>, JsonError> {
        self.object(name)?.map(|object| read(&object)).transpose()
    }

    fn values(&self, name: &str) -> Result<&'a [Value], JsonError> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(values)) => Ok(values),
            Some(_) => self.wrong(name, "an array"),
        }
    }

    fn list<T>(&self, name: &str, read: impl Fn(&Object<'_>) -> Result<T, JsonError>) -> Result<Vec<T>, JsonError> {
        let values = self.values(name)?.iter().enumerate();
        values.map(|(at, value)| read(&Object::of(value, &format!("{}.{name}[{at}]", self.path))?)).collect()
    }

    fn text(&self, name: &str) -> Result<String, JsonError> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => self.wrong(name, "a string"),
        }
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, JsonError> {
        let texts =
            self.values(name)?.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        texts.map_or_else(|| self.wrong(name, "strings"), Ok)
    }

    fn boolean(&self, name: &str) -> Result<bool, JsonError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => self.wrong(name, "a boolean"),
        }
    }

    fn unsigned(&self, name: &str) -> Result<u64, JsonError> {
        self.get(name)
            .map_or(Ok(0), |value| unsigned(value).map_or_else(|| self.wrong(name, "an unsigned integer"), Ok))
    }

    fn unsigned_list(&self, name: &str) -> Result<Vec<u64>, JsonError> {
        let values = self.values(name)?.iter().map(unsigned).collect::<Option<Vec<_>>>();
        values.map_or_else(|| self.wrong(name, "unsigned integers"), Ok)
    }

    fn signed_option(&self, name: &str) -> Result<Option<i64>, JsonError> {
        let read = |value| signed(value).map_or_else(|| self.wrong(name, "an integer"), Ok);
        self.get(name).map(read).transpose()
    }

    fn u32(&self, name: &str) -> Result<u32, JsonError> {
        u32::try_from(self.unsigned(name)?).or_else(|_| self.wrong(name, "an unsigned 32-bit integer"))
    }

    fn i32(&self, name: &str) -> Result<i32, JsonError> {
        let value = self.signed_option(name)?.unwrap_or(0);
        i32::try_from(value).or_else(|_| self.wrong(name, "a 32-bit integer"))
    }

    fn double_option(&self, name: &str) -> Result<Option<f64>, JsonError> {
        let read = |value| double(value).map_or_else(|| self.wrong(name, "a number"), Ok);
        self.get(name).map(read).transpose()
    }

    fn double(&self, name: &str) -> Result<f64, JsonError> {
        Ok(self.double_option(name)?.unwrap_or(0.0))
    }

    fn doubles(&self, name: &str) -> Result<Vec<f64>, JsonError> {
        let values = self.values(name)?.iter().map(double).collect::<Option<Vec<_>>>();
        values.map_or_else(|| self.wrong(name, "numbers"), Ok)
    }

    fn hex(&self, name: &str) -> Result<Vec<u8>, JsonError> {
        let text = self.text(name)?;
        let digits = text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        match digits.collect::<Option<Vec<u8>>>() {
            Some(bytes) if text.len() % 2 == 0 && !text.contains(['+', '-']) => Ok(bytes),
            _ => self.wrong(name, "hex digits"),
        }
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => {
            number.as_u64().or_else(|| whole(number.as_f64()?).and_then(|v| u64::try_from(v).ok()))
        }
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn signed(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => {
            number.as_i64().or_else(|| whole(number.as_f64()?).and_then(|v| i64::try_from(v).ok()))
        }
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// `1.0` and `1e3` are integers in JSON.
fn whole(value: f64) -> Option<i128> {
    (value.fract() == 0.0 && value.abs() < 1e19).then_some(value as i128)
}

fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            other => other.parse().ok(),
        },
        _ => None,
    }
}

fn any_value(object: &Object<'_>) -> Result<AnyValue, JsonError> {
    let value = if object.get("stringValue").is_some() {
        Some(Any::StringValue(object.text("stringValue")?))
    } else if object.get("boolValue").is_some() {
        Some(Any::BoolValue(object.boolean("boolValue")?))
    } else if let Some(value) = object.signed_option("intValue")? {
        Some(Any::IntValue(value))
    } else if let Some(value) = object.double_option("doubleValue")? {
        Some(Any::DoubleValue(value))
    } else if let Some(list) = object.object("arrayValue")? {
        Some(Any::ArrayValue(ArrayValue { values: list.list("values", any_value)? }))
    } else if let Some(list) = object.object("kvlistValue")? {
        Some(Any::KvlistValue(KeyValueList { values: list.list("values", key_value)? }))
    } else if object.get("bytesValue").is_some() {
        let text = object.text("bytesValue")?;
        let bytes = BASE64.decode(&text).or_else(|_| BASE64_URL.decode(&text));
        Some(Any::BytesValue(bytes.or_else(|_| object.wrong("bytesValue", "base64"))?))
    } else {
        None
    };
    Ok(AnyValue { value })
}

fn key_value(object: &Object<'_>) -> Result<KeyValue, JsonError> {
    Ok(KeyValue { key: object.text("key")?, value: object.read("value", any_value)?, ..KeyValue::default() })
}

fn entity_ref(object: &Object<'_>) -> Result<EntityRef, JsonError> {
    Ok(EntityRef {
        schema_url: object.text("schemaUrl")?,
        r#type: object.text("type")?,
        id_keys: object.texts("idKeys")?,
        description_keys: object.texts("descriptionKeys")?,
    })
}

fn resource(object: &Object<'_>) -> Result<Resource, JsonError> {
    Ok(Resource {
        attributes: object.list("attributes", key_value)?,
        dropped_attributes_count: object.u32("droppedAttributesCount")?,
        entity_refs: object.list("entityRefs", entity_ref)?,
    })
}

fn scope(object: &Object<'_>) -> Result<InstrumentationScope, JsonError> {
    Ok(InstrumentationScope {
        name: object.text("name")?,
        version: object.text("version")?,
        attributes: object.list("attributes", key_value)?,
        dropped_attributes_count: object.u32("droppedAttributesCount")?,
    })
}

fn resource_spans(object: &Object<'_>) -> Result<ResourceSpans, JsonError> {
    Ok(ResourceSpans {
        resource: object.read("resource", resource)?,
        scope_spans: object.list("scopeSpans", |object| {
            Ok(ScopeSpans {
                scope: object.read("scope", scope)?,
                spans: object.list("spans", span)?,
                schema_url: object.text("schemaUrl")?,
            })
        })?,
        schema_url: object.text("schemaUrl")?,
    })
}

fn span(object: &Object<'_>) -> Result<Span, JsonError> {
    Ok(Span {
        trace_id: object.hex("traceId")?,
        span_id: object.hex("spanId")?,
        trace_state: object.text("traceState")?,
        parent_span_id: object.hex("parentSpanId")?,
        flags: object.u32("flags")?,
        name: object.text("name")?,
        kind: object.i32("kind")?,
        start_time_unix_nano: object.unsigned("startTimeUnixNano")?,
        end_time_unix_nano: object.unsigned("endTimeUnixNano")?,
        attributes: object.list("attributes", key_value)?,
        dropped_attributes_count: object.u32("droppedAttributesCount")?,
        events: object.list("events", |object| {
            Ok(Event {
                time_unix_nano: object.unsigned("timeUnixNano")?,
                name: object.text("name")?,
                attributes: object.list("attributes", key_value)?,
                dropped_attributes_count: object.u32("droppedAttributesCount")?,
            })
        })?,
        dropped_events_count: object.u32("droppedEventsCount")?,
        links: object.list("links", |object| {
            Ok(Link {
                trace_id: object.hex("traceId")?,
                span_id: object.hex("spanId")?,
                trace_state: object.text("traceState")?,
                attributes: object.list("attributes", key_value)?,
                dropped_attributes_count: object.u32("droppedAttributesCount")?,
                flags: object.u32("flags")?,
            })
        })?,
        dropped_links_count: object.u32("droppedLinksCount")?,
        status: object
            .read("status", |object| Ok(Status { message: object.text("message")?, code: object.i32("code")? }))?,
    })
}

fn resource_logs(object: &Object<'_>) -> Result<ResourceLogs, JsonError> {
    Ok(ResourceLogs {
        resource: object.read("resource", resource)?,
        scope_logs: object.list("scopeLogs", |object| {
            Ok(ScopeLogs {
                scope: object.read("scope", scope)?,
                log_records: object.list("logRecords", log_record)?,
                schema_url: object.text("schemaUrl")?,
            })
        })?,
        schema_url: object.text("schemaUrl")?,
    })
}

fn log_record(object: &Object<'_>) -> Result<LogRecord, JsonError> {
    Ok(LogRecord {
        time_unix_nano: object.unsigned("timeUnixNano")?,
        observed_time_unix_nano: object.unsigned("observedTimeUnixNano")?,
        severity_number: object.i32("severityNumber")?,
        severity_text: object.text("severityText")?,
        body: object.read("body", any_value)?,
        attributes: object.list("attributes", key_value)?,
        dropped_attributes_count: object.u32("droppedAttributesCount")?,
        flags: object.u32("flags")?,
        trace_id: object.hex("traceId")?,
        span_id: object.hex("spanId")?,
        event_name: object.text("eventName")?,
    })
}

fn resource_metrics(object: &Object<'_>) -> Result<ResourceMetrics, JsonError> {
    Ok(ResourceMetrics {
        resource: object.read("resource", resource)?,
        scope_metrics: object.list("scopeMetrics", |object| {
            Ok(ScopeMetrics {
                scope: object.read("scope", scope)?,
                metrics: object.list("metrics", metric)?,
                schema_url: object.text("schemaUrl")?,
            })
        })?,
        schema_url: object.text("schemaUrl")?,
    })
}

fn metric(object: &Object<'_>) -> Result<Metric, JsonError> {
    let data = if let Some(data) = object.object("gauge")? {
        Some(metric::Data::Gauge(Gauge { data_points: data.list("dataPoints", number_point)? }))
    } else if let Some(data) = object.object("sum")? {
        Some(metric::Data::Sum(Sum {
            data_points: data.list("dataPoints", number_point)?,
            aggregation_temporality: data.i32("aggregationTemporality")?,
            is_monotonic: data.boolean("isMonotonic")?,
        }))
    } else if let Some(data) = object.object("histogram")? {
        Some(metric::Data::Histogram(Histogram {
            data_points: data.list("dataPoints", histogram_point)?,
            aggregation_temporality: data.i32("aggregationTemporality")?,
        }))
    } else if let Some(data) = object.object("exponentialHistogram")? {
        Some(metric::Data::ExponentialHistogram(ExponentialHistogram {
            data_points: data.list("dataPoints", exponential_histogram_point)?,
            aggregation_temporality: data.i32("aggregationTemporality")?,
        }))
    } else if let Some(data) = object.object("summary")? {
        Some(metric::Data::Summary(Summary { data_points: data.list("dataPoints", summary_point)? }))
    } else {
        None
    };
    Ok(Metric {
        name: object.text("name")?,
        description: object.text("description")?,
        unit: object.text("unit")?,
        metadata: object.list("metadata", key_value)?,
        data,
    })
}

fn number_point(object: &Object<'_>) -> Result<NumberDataPoint, JsonError> {
    let value = match (object.signed_option("asInt")?, object.double_option("asDouble")?) {
        (Some(value), _) => Some(number_data_point::Value::AsInt(value)),
        (None, Some(value)) => Some(number_data_point::Value::AsDouble(value)),
        (None, None) => None,
    };
    Ok(NumberDataPoint {
        attributes: object.list("attributes", key_value)?,
        start_time_unix_nano: object.unsigned("startTimeUnixNano")?,
        time_unix_nano: object.unsigned("timeUnixNano")?,
        exemplars: object.list("exemplars", exemplar)?,
        flags: object.u32("flags")?,
        value,
    })
}

fn histogram_point(object: &Object<'_>) -> Result<HistogramDataPoint, JsonError> {
    Ok(HistogramDataPoint {
        attributes: object.list("attributes", key_value)?,
        start_time_unix_nano: object.unsigned("startTimeUnixNano")?,
        time_unix_nano: object.unsigned("timeUnixNano")?,
        count: object.unsigned("count")?,
        sum: object.double_option("sum")?,
        bucket_counts: object.unsigned_list("bucketCounts")?,
        explicit_bounds: object.doubles("explicitBounds")?,
        exemplars: object.list("exemplars", exemplar)?,
        flags: object.u32("flags")?,
        min: object.double_option("min")?,
        max: object.double_option("max")?,
    })
}

fn exponential_histogram_point(object: &Object<'_>) -> Result<ExponentialHistogramDataPoint, JsonError> {
    let buckets = |object: &Object<'_>| {
        Ok(Buckets { offset: object.i32("offset")?, bucket_counts: object.unsigned_list("bucketCounts")? })
    };
    Ok(ExponentialHistogramDataPoint {
        attributes: object.list("attributes", key_value)?,
        start_time_unix_nano: object.unsigned("startTimeUnixNano")?,
        time_unix_nano: object.unsigned("timeUnixNano")?,
        count: object.unsigned("count")?,
        sum: object.double_option("sum")?,
        scale: object.i32("scale")?,
        zero_count: object.unsigned("zeroCount")?,
        positive: object.read("positive", buckets)?,
        negative: object.read("negative", buckets)?,
        flags: object.u32("flags")?,
        exemplars: object.list("exemplars", exemplar)?,
        min: object.double_option("min")?,
        max: object.double_option("max")?,
        zero_threshold: object.double("zeroThreshold")?,
    })
}

fn summary_point(object: &Object<'_>) -> Result<SummaryDataPoint, JsonError> {
    Ok(SummaryDataPoint {
        attributes: object.list("attributes", key_value)?,
        start_time_unix_nano: object.unsigned("startTimeUnixNano")?,
        time_unix_nano: object.unsigned("timeUnixNano")?,
        count: object.unsigned("count")?,
        sum: object.double("sum")?,
        quantile_values: object.list("quantileValues", |object| {
            Ok(ValueAtQuantile { quantile: object.double("quantile")?, value: object.double("value")? })
        })?,
        flags: object.u32("flags")?,
    })
}

fn exemplar(object: &Object<'_>) -> Result<Exemplar, JsonError> {
    let value = match (object.signed_option("asInt")?, object.double_option("asDouble")?) {
        (Some(value), _) => Some(exemplar::Value::AsInt(value)),
        (None, Some(value)) => Some(exemplar::Value::AsDouble(value)),
        (None, None) => None,
    };
    Ok(Exemplar {
        filtered_attributes: object.list("filteredAttributes", key_value)?,
        time_unix_nano: object.unsigned("timeUnixNano")?,
        span_id: object.hex("spanId")?,
        trace_id: object.hex("traceId")?,
        value,
    })
}

#[cfg(test)]
mod tests;
