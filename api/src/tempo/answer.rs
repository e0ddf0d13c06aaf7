//! What the engine found, as the messages of the protocol. Pure.

use std::collections::BTreeSet;
use std::fmt::Debug;

use prost::Message;
use signaldb_proto::otlp::common::v1::any_value::Value as Any;
use signaldb_proto::otlp::common::v1::{AnyValue, ArrayValue, KeyValue};
use signaldb_proto::tempo;
use signaldb_query::traceql::{
    Field, FoundSpan, FoundSpanset, FoundTrace, INTRINSIC_TAGS, Inspected, Scope, Series, TagNames, TracePart, Value,
};

use super::ask::scope_name;

/// What clients show instead of a root that has not arrived.
const NO_ROOT: &str = "<root span not yet received>";

const MILLI: u64 = 1_000_000;

fn any(value: Value<'static>) -> AnyValue {
    let value = match value {
        Value::Bool(value) => Any::BoolValue(value),
        Value::Int(value) => Any::IntValue(value),
        Value::Float(value) => Any::DoubleValue(value),
        Value::List(values) => Any::ArrayValue(ArrayValue { values: values.into_iter().map(any).collect() }),
        other => Any::StringValue(other.shown()),
    };
    AnyValue { value: Some(value) }
}

fn pair((key, value): (String, Value<'static>)) -> KeyValue {
    KeyValue { key, value: Some(any(value)), ..KeyValue::default() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn clamped<T: TryFrom<u64>>(value: u64, most: T) -> T {
    T::try_from(value).unwrap_or(most)
}

/// What was read; one job, which is done when nothing more follows.
pub(super) fn metrics(inspected: &Inspected) -> tempo::SearchMetrics {
    tempo::SearchMetrics {
        inspected_traces: clamped(inspected.traces, u32::MAX),
        inspected_bytes: inspected.bytes,
        completed_jobs: u32::from(!inspected.so_far),
        total_jobs: 1,
        inspected_spans: inspected.spans,
    }
}

/// Says that the newest rows of some groups are not in the answer.
pub(super) fn partial(inspected: &Inspected) -> Option<String> {
    let groups: Vec<String> = inspected.missing_groups.iter().map(ToString::to_string).collect();
    (!groups.is_empty()).then(|| format!("groups {} did not answer: their newest spans are missing", groups.join(",")))
}

/// How a trace ended, without the trace.
pub(super) fn trace_end(last: &TracePart) -> tempo::TraceByIdResponse {
    let missing = partial(&last.inspected);
    let cut = last.cut.then(|| "the trace is larger than one answer: the rest is left out".to_owned());
    let message = [cut, missing].into_iter().flatten().collect::<Vec<_>>().join("; ");
    tempo::TraceByIdResponse {
        trace: None,
        metrics: Some(tempo::TraceByIdMetrics { inspected_bytes: last.inspected.bytes }),
        status: status(&message).into(),
        message,
    }
}

/// An answer that has nothing to say is whole.
fn status(message: &str) -> tempo::PartialStatus {
    if message.is_empty() { tempo::PartialStatus::Complete } else { tempo::PartialStatus::Partial }
}

pub(super) fn search(found: Vec<FoundTrace>, inspected: &Inspected, by_tags: bool) -> tempo::SearchResponse {
    let traces = found.into_iter().map(|trace| summary(trace, by_tags)).collect();
    tempo::SearchResponse { traces, metrics: Some(metrics(inspected)) }
}

fn summary(trace: FoundTrace, by_tags: bool) -> tempo::TraceSearchMetadata {
    let span_sets: Vec<tempo::SpanSet> =
        if by_tags { Vec::new() } else { trace.spansets.into_iter().map(span_set).collect() };
    let stats = |(span_count, error_count)| tempo::ServiceStats { span_count, error_count };
    let id = hex(&trace.id);
    let id = id.trim_start_matches('0');
    tempo::TraceSearchMetadata {
        trace_id: if id.is_empty() { "0".to_owned() } else { id.to_owned() },
        root_service_name: trace.root_service.unwrap_or_else(|| NO_ROOT.to_owned()),
        root_trace_name: trace.root_name.unwrap_or_default(),
        start_time_unix_nano: trace.start,
        duration_ms: clamped(trace.duration / MILLI, u32::MAX),
        span_set: span_sets.first().cloned(),
        span_sets,
        service_stats: trace.services.into_iter().map(|(name, counts)| (name, stats(counts))).collect(),
    }
}

fn span_set(set: FoundSpanset) -> tempo::SpanSet {
    tempo::SpanSet {
        spans: set.spans.into_iter().map(span).collect(),
        matched: clamped(set.matched as u64, u32::MAX),
        attributes: set.attributes.into_iter().map(pair).collect(),
    }
}

fn span(span: FoundSpan) -> tempo::Span {
    tempo::Span {
        span_id: hex(&span.id),
        name: span.name,
        start_time_unix_nano: span.start,
        duration_nanos: span.duration,
        attributes: span.attributes.into_iter().map(pair).collect(),
    }
}

/// Names by scope; scopes without any are left out.
pub(super) fn tags_v2(scopes: &[Option<Scope>], mut found: TagNames) -> tempo::SearchTagsV2Response {
    let mut out = tempo::SearchTagsV2Response::default();
    for scope in scopes {
        let tags: Vec<String> = match scope {
            None => INTRINSIC_TAGS.map(str::to_owned).into(),
            Some(scope) => found.remove(scope).unwrap_or_default().into_iter().collect(),
        };
        if !tags.is_empty() {
            out.scopes.push(tempo::SearchTagsV2Scope { name: scope_name(*scope).to_owned(), tags });
        }
    }
    out
}

/// The same as one list; intrinsics are in it only when they alone are asked for.
pub(super) fn tags_v1(scopes: &[Option<Scope>], found: TagNames) -> tempo::SearchTagsResponse {
    let tag_names = match scopes {
        [None] => INTRINSIC_TAGS.map(str::to_owned).into(),
        _ => found.into_values().flatten().collect::<BTreeSet<String>>().into_iter().collect(),
    };
    tempo::SearchTagsResponse { tag_names }
}

pub(super) fn values_v2(values: Vec<Value<'static>>) -> tempo::SearchTagValuesV2Response {
    let value = |value: Value<'static>| {
        let kind = match &value {
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Duration(_) => "duration",
            Value::Status(_) | Value::Kind(_) => "keyword",
            _ => "string",
        };
        tempo::TagValue { r#type: kind.to_owned(), value: value.shown() }
    };
    tempo::SearchTagValuesV2Response { tag_values: values.into_iter().map(value).collect() }
}

pub(super) fn values_v1(values: &[Value<'static>]) -> tempo::SearchTagValuesResponse {
    let texts: BTreeSet<String> = values.iter().map(Value::shown).collect();
    tempo::SearchTagValuesResponse { tag_values: texts.into_iter().collect() }
}

/// The field that a name of the older API means.
pub(super) fn field_v1(name: &str) -> Field {
    Field::parse(match name {
        "root.name" => "rootName",
        "root.service.name" => "rootServiceName",
        "status.code" => "status",
        other => other,
    })
}

pub(super) fn range(series: Vec<Series>, inspected: &Inspected) -> tempo::QueryRangeResponse {
    answered(series.into_iter().map(time_series).collect(), inspected)
}

fn answered<S>(series: Vec<S>, inspected: &Inspected) -> tempo::SeriesResponse<S>
where
    S: Message + Default + Debug,
{
    let message = partial(inspected).unwrap_or_default();
    tempo::SeriesResponse { series, metrics: Some(metrics(inspected)), status: status(&message).into(), message }
}

fn time_series(series: Series) -> tempo::TimeSeries {
    let millis = |nanos: u64| clamped(nanos / MILLI, i64::MAX);
    let example = |trace_id: &[u8; 16]| pair(("trace:id".to_owned(), Value::Text(hex(trace_id).into())));
    tempo::TimeSeries {
        prom_labels: prom_labels(&series.labels),
        samples: series
            .samples
            .iter()
            .map(|(time, value)| tempo::Sample { value: *value, timestamp_ms: millis(*time) })
            .collect(),
        exemplars: series
            .exemplars
            .iter()
            .map(|one| tempo::Exemplar {
                labels: vec![example(&one.trace_id)],
                value: one.value,
                timestamp_ms: millis(one.time),
            })
            .collect(),
        labels: series.labels.into_iter().map(pair).collect(),
    }
}

pub(super) fn instant(series: Vec<Series>, inspected: &Inspected) -> tempo::QueryInstantResponse {
    let one = |series: Series| {
        let value = series.samples.first().map(|(_, value)| *value)?;
        let prom_labels = prom_labels(&series.labels);
        Some(tempo::InstantSeries { labels: series.labels.into_iter().map(pair).collect(), value, prom_labels })
    };
    answered(series.into_iter().filter_map(one).collect(), inspected)
}

/// `{name="x", p="0.9"}`
fn prom_labels(labels: &[(String, Value<'static>)]) -> String {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={:?}", value.shown())).collect();
    format!("{{{}}}", labels.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn leading_zeros_of_ids_are_left_out() {
        let mut id = [0; 16];
        id[15] = 0xa;
        let found = FoundTrace {
            id,
            root_service: None,
            root_name: None,
            start: 1,
            duration: 2_500_000,
            spansets: vec![FoundSpanset { spans: Vec::new(), matched: 4, attributes: Vec::new() }],
            services: BTreeMap::from([("shop".to_owned(), (4, 1))]),
        };
        let answer = search(vec![found.clone()], &Inspected::default(), false);
        let one = &answer.traces[0];
        assert_eq!((one.trace_id.as_str(), one.root_service_name.as_str(), one.duration_ms), ("a", NO_ROOT, 2));
        assert_eq!(one.span_set, one.span_sets.first().cloned());
        assert_eq!(one.service_stats["shop"], tempo::ServiceStats { span_count: 4, error_count: 1 });
        assert!(search(vec![found], &Inspected::default(), true).traces[0].span_sets.is_empty());
    }

    #[test]
    fn values_have_types() {
        let values = vec![Value::Int(3), Value::Float(3.0), Value::Text("x".into()), Value::Bool(true)];
        let shown: Vec<(String, String)> =
            values_v2(values).tag_values.into_iter().map(|value| (value.r#type, value.value)).collect();
        let expected = [("int", "3"), ("float", "3.0"), ("string", "x"), ("bool", "true")];
        assert_eq!(shown, expected.map(|(kind, value)| (kind.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_cut_trace_says_so() {
        let whole = trace_end(&TracePart::default());
        assert_eq!((whole.status, whole.message.as_str()), (0, ""));
        assert_eq!(trace_end(&TracePart { cut: true, ..TracePart::default() }).status, 1);
        let inspected = Inspected { missing_groups: BTreeSet::from([2]), ..Inspected::default() };
        assert_eq!(trace_end(&TracePart { inspected, ..TracePart::default() }).status, 1);
    }

    #[test]
    fn an_answer_so_far_says_that_more_is_read() {
        let so_far = Inspected { traces: 3, so_far: true, ..Inspected::default() };
        let read = metrics(&so_far);
        assert_eq!((read.inspected_traces, read.completed_jobs, read.total_jobs), (3, 0, 1));
        assert_eq!(metrics(&Inspected::default()).completed_jobs, 1);
    }
}
