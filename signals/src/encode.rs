//! Columns back to OTLP: each row becomes a request part of its own resource and scope.
//!
//! With [`crate::decode`] it is the identity on (resource, scope, record). What the way back does not keep: which
//! records shared a message, whether an absent message was absent or empty, metrics and resources without records.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use opentelemetry_proto::tonic::common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue};
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

use crate::any_value;
use crate::attributes::AttributesReader;
use crate::metrics::TEMPORALITIES;
use crate::promoted::{self, Promoted};
use crate::schema;
use crate::table::SignalTable;
use crate::traces::{KINDS, STATUS_CODES};

/// The spans of a batch of `traces`.
pub fn resource_spans(batch: &RecordBatch) -> Vec<ResourceSpans> {
    let row = Rows::of(batch, SignalTable::Traces);
    let each = |at| {
        let scope_spans = ScopeSpans {
            scope: Some(row.scope(at)),
            spans: vec![row.span(at)],
            schema_url: row.text("scope_schema_url", at),
        };
        ResourceSpans {
            resource: Some(row.resource(at)),
            scope_spans: vec![scope_spans],
            schema_url: row.text("resource_schema_url", at),
        }
    };
    (0..batch.num_rows()).map(each).collect()
}

/// The records of a batch of `logs`.
pub fn resource_logs(batch: &RecordBatch) -> Vec<ResourceLogs> {
    let row = Rows::of(batch, SignalTable::Logs);
    let each = |at| {
        let scope_logs = ScopeLogs {
            scope: Some(row.scope(at)),
            log_records: vec![row.log_record(at)],
            schema_url: row.text("scope_schema_url", at),
        };
        ResourceLogs {
            resource: Some(row.resource(at)),
            scope_logs: vec![scope_logs],
            schema_url: row.text("resource_schema_url", at),
        }
    };
    (0..batch.num_rows()).map(each).collect()
}

/// The points of a batch of a metrics table.
pub fn resource_metrics(batch: &RecordBatch, table: SignalTable) -> Vec<ResourceMetrics> {
    let row = Rows::of(batch, table);
    let each = |at| {
        let scope_metrics = ScopeMetrics {
            scope: Some(row.scope(at)),
            metrics: vec![row.metric(at)],
            schema_url: row.text("scope_schema_url", at),
        };
        ResourceMetrics {
            resource: Some(row.resource(at)),
            scope_metrics: vec![scope_metrics],
            schema_url: row.text("resource_schema_url", at),
        }
    };
    (0..batch.num_rows()).map(each).collect()
}

/// Columns by name; a column that is not there reads as null.
struct Rows<'a> {
    table: SignalTable,
    columns: Vec<(&'a str, &'a ArrayRef)>,
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch, table: SignalTable) -> Self {
        let names = batch.schema_ref().fields().iter().map(|field| field.name().as_str());
        Self { table, columns: names.zip(batch.columns()).collect() }
    }

    /// The structs of one row of a list column.
    fn structs(&self, name: &str, at: usize) -> Option<(Rows<'a>, std::ops::Range<usize>)> {
        let list = self.valid(name, at)?.as_list::<i32>();
        let structs: &'a StructArray = list.values().as_struct();
        let names = structs.fields().iter().map(|field| field.name().as_str());
        let columns = names.zip(structs.columns()).collect();
        let range = list.value_offsets()[at] as usize..list.value_offsets()[at + 1] as usize;
        Some((Rows { table: self.table, columns }, range))
    }

    fn each_struct<T>(&self, name: &str, at: usize, read: impl Fn(&Rows<'a>, usize) -> T) -> Vec<T> {
        let Some((rows, range)) = self.structs(name, at) else { return Vec::new() };
        range.map(|at| read(&rows, at)).collect()
    }

    fn column(&self, name: &str) -> Option<&'a ArrayRef> {
        self.columns.iter().find(|(found, _)| *found == name).map(|(_, array)| *array)
    }

    fn valid(&self, name: &str, at: usize) -> Option<&'a ArrayRef> {
        self.column(name).filter(|array| array.is_valid(at))
    }

    fn text_option(&self, name: &str, at: usize) -> Option<&'a str> {
        Some(self.valid(name, at)?.as_string::<i32>().value(at))
    }

    fn text(&self, name: &str, at: usize) -> String {
        self.text_option(name, at).unwrap_or_default().to_owned()
    }

    fn long_option(&self, name: &str, at: usize) -> Option<i64> {
        Some(self.valid(name, at)?.as_primitive::<Int64Type>().value(at))
    }

    fn nanos(&self, name: &str, at: usize) -> u64 {
        self.long_option(name, at).unwrap_or(0) as u64
    }

    fn u32(&self, name: &str, at: usize) -> u32 {
        self.nanos(name, at) as u32
    }

    fn int(&self, name: &str, at: usize) -> i32 {
        self.valid(name, at).map_or(0, |array| array.as_primitive::<Int32Type>().value(at))
    }

    fn double_option(&self, name: &str, at: usize) -> Option<f64> {
        Some(self.valid(name, at)?.as_primitive::<Float64Type>().value(at))
    }

    fn double(&self, name: &str, at: usize) -> f64 {
        self.double_option(name, at).unwrap_or(0.0)
    }

    fn id(&self, name: &str, at: usize) -> Vec<u8> {
        self.valid(name, at).map_or_else(Vec::new, |array| array.as_fixed_size_binary().value(at).to_vec())
    }

    fn longs(&self, name: &str, at: usize) -> Vec<u64> {
        let Some(list) = self.valid(name, at) else { return Vec::new() };
        list.as_list::<i32>().value(at).as_primitive::<Int64Type>().values().iter().map(|value| *value as u64).collect()
    }

    fn doubles(&self, name: &str, at: usize) -> Vec<f64> {
        let Some(list) = self.valid(name, at) else { return Vec::new() };
        list.as_list::<i32>().value(at).as_primitive::<Float64Type>().values().to_vec()
    }

    fn enumerated(&self, name: &str, names: &[&str], at: usize) -> i32 {
        let text = self.text_option(name, at).unwrap_or_default();
        let known = names.iter().position(|known| *known == text).and_then(|at| i32::try_from(at).ok());
        known.unwrap_or_else(|| text.parse().unwrap_or(0))
    }

    fn attributes(&self, map: &str, types: &str, promoted: &'static [Promoted], at: usize) -> Vec<KeyValue> {
        let Some(map) = self.valid(map, at) else { return Vec::new() };
        let types = self.column(types).map(|types| types.as_string::<i32>());
        let columns = promoted.iter().map(|promoted| self.column(promoted.column)).collect();
        AttributesReader::new(map.as_map(), types, promoted, columns).key_values(at)
    }

    fn record_attributes(&self, at: usize) -> Vec<KeyValue> {
        self.attributes("attributes", "attribute_types", schema::record_promoted(self.table), at)
    }

    fn nested_attributes(&self, at: usize) -> Vec<KeyValue> {
        self.attributes("attributes", "attribute_types", promoted::NONE, at)
    }

    fn resource(&self, at: usize) -> Resource {
        Resource {
            attributes: self.attributes("resource_attributes", "resource_attribute_types", promoted::RESOURCE, at),
            dropped_attributes_count: self.u32("resource_dropped_attributes_count", at),
            entity_refs: self.text_option("resource_entity_refs", at).map(entity_refs).unwrap_or_default(),
        }
    }

    fn scope(&self, at: usize) -> InstrumentationScope {
        InstrumentationScope {
            name: self.text("scope_name", at),
            version: self.text("scope_version", at),
            attributes: self.attributes("scope_attributes", "scope_attribute_types", promoted::NONE, at),
            dropped_attributes_count: self.u32("scope_dropped_attributes_count", at),
        }
    }

    fn span(&self, at: usize) -> Span {
        Span {
            trace_id: self.id("trace_id", at),
            span_id: self.id("span_id", at),
            trace_state: self.text("trace_state", at),
            parent_span_id: self.id("parent_span_id", at),
            flags: self.u32("flags", at),
            name: self.text("name", at),
            kind: self.enumerated("kind", KINDS, at),
            start_time_unix_nano: self.nanos("time_unix_nano", at),
            end_time_unix_nano: self.nanos("end_time_unix_nano", at),
            attributes: self.record_attributes(at),
            dropped_attributes_count: self.u32("dropped_attributes_count", at),
            events: self.each_struct("events", at, |event, at| Event {
                time_unix_nano: event.nanos("time_unix_nano", at),
                name: event.text("name", at),
                attributes: event.nested_attributes(at),
                dropped_attributes_count: event.u32("dropped_attributes_count", at),
            }),
            dropped_events_count: self.u32("dropped_events_count", at),
            links: self.each_struct("links", at, |link, at| Link {
                trace_id: link.id("trace_id", at),
                span_id: link.id("span_id", at),
                trace_state: link.text("trace_state", at),
                attributes: link.nested_attributes(at),
                dropped_attributes_count: link.u32("dropped_attributes_count", at),
                flags: link.u32("flags", at),
            }),
            dropped_links_count: self.u32("dropped_links_count", at),
            status: Some(Status {
                message: self.text("status_message", at),
                code: self.enumerated("status_code", STATUS_CODES, at),
            }),
        }
    }

    fn log_record(&self, at: usize) -> LogRecord {
        LogRecord {
            time_unix_nano: self.nanos("time_unix_nano", at),
            observed_time_unix_nano: self.nanos("observed_time_unix_nano", at),
            severity_number: self.int("severity_number", at),
            severity_text: self.text("severity_text", at),
            body: self.body(at),
            attributes: self.record_attributes(at),
            dropped_attributes_count: self.u32("dropped_attributes_count", at),
            flags: self.u32("flags", at),
            trace_id: self.id("trace_id", at),
            span_id: self.id("span_id", at),
            event_name: self.text("event_name", at),
        }
    }

    fn body(&self, at: usize) -> Option<AnyValue> {
        let text = self.text_option("body", at);
        match self.text_option("body_type", at).and_then(|kind| kind.bytes().next()) {
            None => text.and_then(|text| any_value::parse(text, any_value::TEXT)),
            Some(kind) => any_value::parse(text.unwrap_or_default(), kind),
        }
    }

    fn metric(&self, at: usize) -> Metric {
        let temporality = self.enumerated("aggregation_temporality", TEMPORALITIES, at);
        let data = match self.table {
            SignalTable::MetricsSum => metric::Data::Sum(Sum {
                data_points: vec![self.number_point(at)],
                aggregation_temporality: temporality,
                is_monotonic: self.valid("is_monotonic", at).is_some_and(|array| array.as_boolean().value(at)),
            }),
            SignalTable::MetricsHistogram => metric::Data::Histogram(Histogram {
                data_points: vec![self.histogram_point(at)],
                aggregation_temporality: temporality,
            }),
            SignalTable::MetricsExponentialHistogram => metric::Data::ExponentialHistogram(ExponentialHistogram {
                data_points: vec![self.exponential_histogram_point(at)],
                aggregation_temporality: temporality,
            }),
            SignalTable::MetricsSummary => metric::Data::Summary(Summary { data_points: vec![self.summary_point(at)] }),
            _ => metric::Data::Gauge(Gauge { data_points: vec![self.number_point(at)] }),
        };
        Metric {
            name: self.text("metric_name", at),
            description: self.text("description", at),
            unit: self.text("unit", at),
            metadata: self.attributes("metadata", "metadata_types", promoted::NONE, at),
            data: Some(data),
        }
    }

    fn number_point(&self, at: usize) -> NumberDataPoint {
        let int = self.long_option("value_int", at).map(number_data_point::Value::AsInt);
        NumberDataPoint {
            attributes: self.record_attributes(at),
            start_time_unix_nano: self.nanos("start_time_unix_nano", at),
            time_unix_nano: self.nanos("time_unix_nano", at),
            exemplars: self.exemplars(at),
            flags: self.u32("flags", at),
            value: int.or_else(|| self.double_option("value_double", at).map(number_data_point::Value::AsDouble)),
        }
    }

    fn histogram_point(&self, at: usize) -> HistogramDataPoint {
        HistogramDataPoint {
            attributes: self.record_attributes(at),
            start_time_unix_nano: self.nanos("start_time_unix_nano", at),
            time_unix_nano: self.nanos("time_unix_nano", at),
            count: self.nanos("count", at),
            sum: self.double_option("sum", at),
            bucket_counts: self.longs("bucket_counts", at),
            explicit_bounds: self.doubles("explicit_bounds", at),
            exemplars: self.exemplars(at),
            flags: self.u32("flags", at),
            min: self.double_option("min", at),
            max: self.double_option("max", at),
        }
    }

    fn exponential_histogram_point(&self, at: usize) -> ExponentialHistogramDataPoint {
        let buckets = |offset: &str, counts: &str| {
            Some(Buckets { offset: self.int(offset, at), bucket_counts: self.longs(counts, at) })
        };
        ExponentialHistogramDataPoint {
            attributes: self.record_attributes(at),
            start_time_unix_nano: self.nanos("start_time_unix_nano", at),
            time_unix_nano: self.nanos("time_unix_nano", at),
            count: self.nanos("count", at),
            sum: self.double_option("sum", at),
            scale: self.int("scale", at),
            zero_count: self.nanos("zero_count", at),
            positive: buckets("positive_offset", "positive_bucket_counts"),
            negative: buckets("negative_offset", "negative_bucket_counts"),
            flags: self.u32("flags", at),
            exemplars: self.exemplars(at),
            min: self.double_option("min", at),
            max: self.double_option("max", at),
            zero_threshold: self.double("zero_threshold", at),
        }
    }

    fn summary_point(&self, at: usize) -> SummaryDataPoint {
        SummaryDataPoint {
            attributes: self.record_attributes(at),
            start_time_unix_nano: self.nanos("start_time_unix_nano", at),
            time_unix_nano: self.nanos("time_unix_nano", at),
            count: self.nanos("count", at),
            sum: self.double("sum", at),
            quantile_values: self.each_struct("quantile_values", at, |pair, at| ValueAtQuantile {
                quantile: pair.double("quantile", at),
                value: pair.double("value", at),
            }),
            flags: self.u32("flags", at),
        }
    }

    fn exemplars(&self, at: usize) -> Vec<Exemplar> {
        self.each_struct("exemplars", at, |row, at| {
            let int = row.long_option("value_int", at).map(exemplar::Value::AsInt);
            Exemplar {
                filtered_attributes: row.attributes(
                    "filtered_attributes",
                    "filtered_attribute_types",
                    promoted::NONE,
                    at,
                ),
                time_unix_nano: row.nanos("time_unix_nano", at),
                span_id: row.id("span_id", at),
                trace_id: row.id("trace_id", at),
                value: int.or_else(|| row.double_option("value_double", at).map(exemplar::Value::AsDouble)),
            }
        })
    }
}

fn entity_refs(json: &str) -> Vec<EntityRef> {
    let list: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let texts = |value: &serde_json::Value| {
        value.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
    };
    let each = |entity: &serde_json::Value| EntityRef {
        schema_url: entity["schemaUrl"].as_str().unwrap_or_default().to_owned(),
        r#type: entity["type"].as_str().unwrap_or_default().to_owned(),
        id_keys: texts(&entity["idKeys"]),
        description_keys: texts(&entity["descriptionKeys"]),
    };
    list.iter().map(each).collect()
}
