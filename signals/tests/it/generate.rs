//! Random OTLP messages of every shape: large integers, nested lists, empty values, repeated keys, bytes, NaN.

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::summary_data_point::ValueAtQuantile;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, Sum, Summary, SummaryDataPoint, exemplar, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z.]{1,8}", "\\PC{0,6}", Just("zero\0byte".to_owned())]
}

/// Comparable doubles: NaN is tested apart, for it equals nothing.
fn double() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>().prop_filter("not NaN", |value| !value.is_nan()), Just(-0.0), Just(f64::INFINITY)]
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let leaf = prop_oneof![
        Just(None),
        text().prop_map(|value| Some(Any::StringValue(value))),
        any::<bool>().prop_map(|value| Some(Any::BoolValue(value))),
        any::<i64>().prop_map(|value| Some(Any::IntValue(value))),
        Just(Some(Any::IntValue((1 << 53) + 1))),
        double().prop_map(|value| Some(Any::DoubleValue(value))),
        vec(any::<u8>(), 0..5).prop_map(|value| Some(Any::BytesValue(value))),
    ]
    .prop_map(|value| AnyValue { value });
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3)
                .prop_map(|values| AnyValue { value: Some(Any::ArrayValue(ArrayValue { values })) }),
            vec((text(), option::of(inner)), 0..3).prop_map(|pairs| {
                let pair = |(key, value)| KeyValue { key, value, ..KeyValue::default() };
                let values = pairs.into_iter().map(pair).collect();
                AnyValue { value: Some(Any::KvlistValue(KeyValueList { values })) }
            }),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    let promoted = ["service.name", "http.request.method", "http.response.status_code", "server.port", "host.name"];
    prop_oneof![3 => text(), 2 => proptest::sample::select(promoted.to_vec()).prop_map(str::to_owned)]
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let pair = (key(), option::weighted(0.9, any_value()));
    vec(pair, 0..6).prop_map(|pairs| {
        pairs.into_iter().map(|(key, value)| KeyValue { key, value, ..KeyValue::default() }).collect()
    })
}

fn id(bytes: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(vec![]), Just(vec![0; bytes]), vec(any::<u8>(), bytes)]
}

pub(crate) fn resource() -> impl Strategy<Value = Resource> {
    let entity = (text(), text(), vec(text(), 0..2), vec(text(), 0..2)).prop_map(
        |(schema_url, kind, id_keys, description_keys)| EntityRef {
            schema_url,
            r#type: kind,
            id_keys,
            description_keys,
        },
    );
    (attributes(), any::<u32>(), vec(entity, 0..2)).prop_map(|(attributes, dropped_attributes_count, entity_refs)| {
        Resource { attributes, dropped_attributes_count, entity_refs }
    })
}

pub(crate) fn scope() -> impl Strategy<Value = InstrumentationScope> {
    (text(), text(), attributes(), any::<u32>()).prop_map(|(name, version, attributes, dropped_attributes_count)| {
        InstrumentationScope { name, version, attributes, dropped_attributes_count }
    })
}

pub(crate) fn span() -> impl Strategy<Value = Span> {
    let event = (any::<u64>(), text(), attributes(), any::<u32>()).prop_map(
        |(time_unix_nano, name, attributes, dropped_attributes_count)| Event {
            time_unix_nano,
            name,
            attributes,
            dropped_attributes_count,
        },
    );
    let link = (id(16), id(8), text(), attributes(), any::<u32>(), any::<u32>()).prop_map(
        |(trace_id, span_id, trace_state, attributes, dropped_attributes_count, flags)| Link {
            trace_id,
            span_id,
            trace_state,
            attributes,
            dropped_attributes_count,
            flags,
        },
    );
    let head = (id(16), id(8), id(8), text(), any::<u32>(), text(), -2..9i32);
    let times = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>());
    let tail = (attributes(), vec(event, 0..3), vec(link, 0..3), text(), -1..5i32);
    (head, times, tail).prop_map(|(head, times, tail)| Span {
        trace_id: head.0,
        span_id: head.1,
        parent_span_id: head.2,
        trace_state: head.3,
        flags: head.4,
        name: head.5,
        kind: head.6,
        start_time_unix_nano: times.0,
        end_time_unix_nano: times.1,
        dropped_attributes_count: times.2,
        dropped_events_count: times.3,
        dropped_links_count: times.4,
        attributes: tail.0,
        events: tail.1,
        links: tail.2,
        status: Some(Status { message: tail.3, code: tail.4 }),
    })
}

pub(crate) fn log_record() -> impl Strategy<Value = LogRecord> {
    let head = (any::<u64>(), any::<u64>(), any::<i32>(), text(), option::of(any_value()), attributes());
    let tail = (any::<u32>(), any::<u32>(), id(16), id(8), text());
    (head, tail).prop_map(|(head, tail)| LogRecord {
        time_unix_nano: head.0,
        observed_time_unix_nano: head.1,
        severity_number: head.2,
        severity_text: head.3,
        body: head.4,
        attributes: head.5,
        dropped_attributes_count: tail.0,
        flags: tail.1,
        trace_id: tail.2,
        span_id: tail.3,
        event_name: tail.4,
    })
}

fn exemplars() -> impl Strategy<Value = Vec<Exemplar>> {
    let value = option::of(prop_oneof![
        any::<i64>().prop_map(exemplar::Value::AsInt),
        double().prop_map(exemplar::Value::AsDouble)
    ]);
    let exemplar = (attributes(), any::<u64>(), id(8), id(16), value).prop_map(
        |(filtered_attributes, time_unix_nano, span_id, trace_id, value)| Exemplar {
            filtered_attributes,
            time_unix_nano,
            span_id,
            trace_id,
            value,
        },
    );
    vec(exemplar, 0..3)
}

fn number_point() -> impl Strategy<Value = NumberDataPoint> {
    let value = option::of(prop_oneof![
        any::<i64>().prop_map(number_data_point::Value::AsInt),
        double().prop_map(number_data_point::Value::AsDouble)
    ]);
    (attributes(), any::<u64>(), any::<u64>(), exemplars(), any::<u32>(), value).prop_map(
        |(attributes, start_time_unix_nano, time_unix_nano, exemplars, flags, value)| NumberDataPoint {
            attributes,
            start_time_unix_nano,
            time_unix_nano,
            exemplars,
            flags,
            value,
        },
    )
}

fn data() -> impl Strategy<Value = metric::Data> {
    let gauge = number_point().prop_map(|point| metric::Data::Gauge(Gauge { data_points: vec![point] }));
    let sum = (number_point(), -1..4i32, any::<bool>()).prop_map(|(point, aggregation_temporality, is_monotonic)| {
        metric::Data::Sum(Sum { data_points: vec![point], aggregation_temporality, is_monotonic })
    });
    let optional = || (option::of(double()), option::of(double()), option::of(double()));
    let head = || (attributes(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>());
    let histogram = (head(), optional(), vec(any::<u64>(), 0..4), vec(double(), 0..4), exemplars(), 0..3i32).prop_map(
        |(head, (sum, min, max), bucket_counts, explicit_bounds, exemplars, aggregation_temporality)| {
            let point = HistogramDataPoint {
                attributes: head.0,
                start_time_unix_nano: head.1,
                time_unix_nano: head.2,
                count: head.3,
                flags: head.4,
                sum,
                min,
                max,
                bucket_counts,
                explicit_bounds,
                exemplars,
            };
            metric::Data::Histogram(Histogram { data_points: vec![point], aggregation_temporality })
        },
    );
    let buckets = || {
        (any::<i32>(), vec(any::<u64>(), 0..4)).prop_map(|(offset, bucket_counts)| Buckets { offset, bucket_counts })
    };
    let exponential = (head(), optional(), any::<i32>(), any::<u64>(), double(), buckets(), buckets(), exemplars())
        .prop_map(|(head, (sum, min, max), scale, zero_count, zero_threshold, positive, negative, exemplars)| {
            let point = ExponentialHistogramDataPoint {
                attributes: head.0,
                start_time_unix_nano: head.1,
                time_unix_nano: head.2,
                count: head.3,
                flags: head.4,
                sum,
                min,
                max,
                scale,
                zero_count,
                zero_threshold,
                positive: Some(positive),
                negative: Some(negative),
                exemplars,
            };
            metric::Data::ExponentialHistogram(ExponentialHistogram {
                data_points: vec![point],
                aggregation_temporality: 1,
            })
        });
    let quantile = (double(), double()).prop_map(|(quantile, value)| ValueAtQuantile { quantile, value });
    let summary = (head(), double(), vec(quantile, 0..3)).prop_map(|(head, sum, quantile_values)| {
        let point = SummaryDataPoint {
            attributes: head.0,
            start_time_unix_nano: head.1,
            time_unix_nano: head.2,
            count: head.3,
            flags: head.4,
            sum,
            quantile_values,
        };
        metric::Data::Summary(Summary { data_points: vec![point] })
    });
    prop_oneof![gauge, sum, histogram, exponential, summary]
}

pub(crate) fn metric() -> impl Strategy<Value = Metric> {
    (text(), text(), text(), attributes(), data()).prop_map(|(name, description, unit, metadata, data)| Metric {
        name,
        description,
        unit,
        metadata,
        data: Some(data),
    })
}
