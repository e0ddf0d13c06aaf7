//! Messages of the protocol as JSON: proto3's own mapping, with what is zero left out, 64-bit integers as texts, bytes as
//! base64 and enums by name.

use std::fmt::Debug;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Map, Value, json};
use signaldb_proto::otlp::common::v1::{InstrumentationScope, KeyValue};
use signaldb_proto::otlp::resource::v1::Resource;
use signaldb_proto::otlp::trace::v1::span::{Event, Link};
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use signaldb_proto::tempo;
use signaldb_signals::json::any_value_to_json;

const KINDS: [&str; 6] = [
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];
const CODES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

/// An object that leaves out what is zero.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn put(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    fn text(self, name: &str, text: &str) -> Self {
        if text.is_empty() { self } else { self.put(name, text.into()) }
    }

    fn bytes(self, name: &str, bytes: &[u8]) -> Self {
        if bytes.is_empty() { self } else { self.put(name, STANDARD.encode(bytes).into()) }
    }

    /// 64 bits.
    fn long(self, name: &str, value: u64) -> Self {
        if value == 0 { self } else { self.put(name, value.to_string().into()) }
    }

    fn number(self, name: &str, value: u32) -> Self {
        if value == 0 { self } else { self.put(name, value.into()) }
    }

    fn double(self, name: &str, value: f64) -> Self {
        match value {
            0.0 => self,
            value if value.is_nan() => self.put(name, "NaN".into()),
            value if value.is_infinite() => self.put(name, if value > 0.0 { "Infinity" } else { "-Infinity" }.into()),
            value => self.put(name, value.into()),
        }
    }

    /// An enum; a number without a name stays one.
    fn name(self, name: &str, names: &[&str], value: i32) -> Self {
        match usize::try_from(value).ok().and_then(|at| names.get(at)) {
            Some(_) if value == 0 => self,
            Some(known) => self.put(name, (*known).into()),
            None => self.put(name, value.into()),
        }
    }

    fn list<T>(self, name: &str, items: &[T], item: impl Fn(&T) -> Value) -> Self {
        if items.is_empty() { self } else { self.put(name, items.iter().map(item).collect()) }
    }

    fn object<T>(self, name: &str, of: Option<&T>, object: impl Fn(&T) -> Value) -> Self {
        match of {
            Some(of) => self.put(name, object(of)),
            None => self,
        }
    }

    fn attributes(self, attributes: &[KeyValue], dropped: u32) -> Self {
        self.list("attributes", attributes, pair).number("droppedAttributesCount", dropped)
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn pair(pair: &KeyValue) -> Value {
    Object::default().text("key", &pair.key).object("value", pair.value.as_ref(), any_value_to_json).done()
}

/// What comes behind the spans of a trace.
pub(super) fn trace_end(end: &tempo::TraceByIdResponse, found: bool) -> Value {
    let bytes = end.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes);
    Object::default()
        // Nothing was found: nothing is told, as clients know it.
        .put("metrics", Object::default().long("inspectedBytes", if found { bytes } else { 0 }).done())
        .name("status", &["COMPLETE", "PARTIAL"], end.status)
        .text("message", &end.message)
        .done()
}

pub(super) fn resource_spans(part: &ResourceSpans) -> Value {
    let resource = |one: &Resource| Object::default().attributes(&one.attributes, one.dropped_attributes_count).done();
    Object::default()
        .object("resource", part.resource.as_ref(), resource)
        .list("scopeSpans", &part.scope_spans, scope_spans)
        .text("schemaUrl", &part.schema_url)
        .done()
}

fn scope_spans(part: &ScopeSpans) -> Value {
    let (scope, spans) = (part.scope.as_ref(), &part.spans);
    Object::default()
        .object("scope", scope, scope_of)
        .list("spans", spans, span)
        .text("schemaUrl", &part.schema_url)
        .done()
}

fn scope_of(scope: &InstrumentationScope) -> Value {
    let named = Object::default().text("name", &scope.name).text("version", &scope.version);
    named.attributes(&scope.attributes, scope.dropped_attributes_count).done()
}

fn span(span: &Span) -> Value {
    let status =
        |status: &Status| Object::default().text("message", &status.message).name("code", &CODES, status.code).done();
    Object::default()
        .bytes("traceId", &span.trace_id)
        .bytes("spanId", &span.span_id)
        .text("traceState", &span.trace_state)
        .bytes("parentSpanId", &span.parent_span_id)
        .number("flags", span.flags)
        .text("name", &span.name)
        .name("kind", &KINDS, span.kind)
        .long("startTimeUnixNano", span.start_time_unix_nano)
        .long("endTimeUnixNano", span.end_time_unix_nano)
        .attributes(&span.attributes, span.dropped_attributes_count)
        .list("events", &span.events, event)
        .number("droppedEventsCount", span.dropped_events_count)
        .list("links", &span.links, link)
        .number("droppedLinksCount", span.dropped_links_count)
        .object("status", span.status.as_ref(), status)
        .done()
}

fn event(event: &Event) -> Value {
    Object::default()
        .long("timeUnixNano", event.time_unix_nano)
        .text("name", &event.name)
        .attributes(&event.attributes, event.dropped_attributes_count)
        .done()
}

fn link(link: &Link) -> Value {
    Object::default()
        .bytes("traceId", &link.trace_id)
        .bytes("spanId", &link.span_id)
        .text("traceState", &link.trace_state)
        .attributes(&link.attributes, link.dropped_attributes_count)
        .number("flags", link.flags)
        .done()
}

fn metrics(metrics: &tempo::SearchMetrics) -> Value {
    Object::default()
        .number("inspectedTraces", metrics.inspected_traces)
        .long("inspectedBytes", metrics.inspected_bytes)
        .number("completedJobs", metrics.completed_jobs)
        .number("totalJobs", metrics.total_jobs)
        .long("inspectedSpans", metrics.inspected_spans)
        .done()
}

pub(super) fn search(found: &tempo::SearchResponse) -> Value {
    let traces: Vec<Value> = found.traces.iter().map(summary).collect();
    // Clients look for the list even when it is empty.
    Object::default().put("traces", traces.into()).object("metrics", found.metrics.as_ref(), metrics).done()
}

fn summary(trace: &tempo::TraceSearchMetadata) -> Value {
    let stats: Map<String, Value> = trace
        .service_stats
        .iter()
        .map(|(name, stats)| {
            let stats =
                Object::default().number("spanCount", stats.span_count).number("errorCount", stats.error_count).done();
            (name.clone(), stats)
        })
        .collect();
    let summary = Object::default()
        .text("traceID", &trace.trace_id)
        .text("rootServiceName", &trace.root_service_name)
        .text("rootTraceName", &trace.root_trace_name)
        .long("startTimeUnixNano", trace.start_time_unix_nano)
        .number("durationMs", trace.duration_ms)
        .object("spanSet", trace.span_set.as_ref(), span_set)
        .list("spanSets", &trace.span_sets, span_set);
    if stats.is_empty() { summary.done() } else { summary.put("serviceStats", stats.into()).done() }
}

fn span_set(set: &tempo::SpanSet) -> Value {
    let span = |span: &tempo::Span| {
        Object::default()
            .text("spanID", &span.span_id)
            .text("name", &span.name)
            .long("startTimeUnixNano", span.start_time_unix_nano)
            .long("durationNanos", span.duration_nanos)
            .list("attributes", &span.attributes, pair)
            .done()
    };
    Object::default()
        .list("spans", &set.spans, span)
        .number("matched", set.matched)
        .list("attributes", &set.attributes, pair)
        .done()
}

pub(super) fn tags_v1(found: &tempo::SearchTagsResponse) -> Value {
    json!({"tagNames": found.tag_names})
}

pub(super) fn tags_v2(found: &tempo::SearchTagsV2Response) -> Value {
    let scope = |scope: &tempo::SearchTagsV2Scope| json!({"name": scope.name, "tags": scope.tags});
    json!({"scopes": found.scopes.iter().map(scope).collect::<Vec<_>>()})
}

pub(super) fn values_v1(found: &tempo::SearchTagValuesResponse) -> Value {
    json!({"tagValues": found.tag_values})
}

pub(super) fn values_v2(found: &tempo::SearchTagValuesV2Response) -> Value {
    let value = |value: &tempo::TagValue| json!({"type": value.r#type, "value": value.value});
    json!({"tagValues": found.tag_values.iter().map(value).collect::<Vec<_>>()})
}

pub(super) fn range(found: &tempo::QueryRangeResponse) -> Value {
    let sample = |sample: &tempo::Sample| {
        Object::default()
            .put("timestampMs", sample.timestamp_ms.to_string().into())
            .double("value", sample.value)
            .done()
    };
    let exemplar = |exemplar: &tempo::Exemplar| {
        Object::default()
            .list("labels", &exemplar.labels, pair)
            .double("value", exemplar.value)
            .put("timestampMs", exemplar.timestamp_ms.to_string().into())
            .done()
    };
    let series = |series: &tempo::TimeSeries| {
        Object::default()
            .list("labels", &series.labels, pair)
            .list("samples", &series.samples, sample)
            .text("promLabels", &series.prom_labels)
            .list("exemplars", &series.exemplars, exemplar)
            .done()
    };
    answered(found, series)
}

pub(super) fn instant(found: &tempo::QueryInstantResponse) -> Value {
    let series = |series: &tempo::InstantSeries| {
        Object::default()
            .list("labels", &series.labels, pair)
            .double("value", series.value)
            .text("promLabels", &series.prom_labels)
            .done()
    };
    answered(found, series)
}

fn answered<S>(found: &tempo::SeriesResponse<S>, series: impl Fn(&S) -> Value) -> Value
where
    S: Message + Default + Debug,
{
    Object::default()
        .put("series", found.series.iter().map(series).collect())
        .object("metrics", found.metrics.as_ref(), metrics)
        .name("status", &["COMPLETE", "PARTIAL"], found.status)
        .text("message", &found.message)
        .done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_as_clients_know_it() {
        let one = Span {
            trace_id: vec![0, 1],
            span_id: vec![2; 8],
            name: "pay".to_owned(),
            kind: 2,
            start_time_unix_nano: 7,
            status: Some(Status { code: 2, ..Status::default() }),
            ..Span::default()
        };
        let scope_spans = vec![ScopeSpans { spans: vec![one], ..ScopeSpans::default() }];
        let part = ResourceSpans { scope_spans, ..ResourceSpans::default() };
        let expected = json!({"scopeSpans": [{"spans": [{
            "traceId": "AAE=", "spanId": "AgICAgICAgI=", "name": "pay", "kind": "SPAN_KIND_SERVER",
            "startTimeUnixNano": "7", "status": {"code": "STATUS_CODE_ERROR"},
        }]}]});
        assert_eq!(resource_spans(&part), expected);
        let metrics = Some(tempo::TraceByIdMetrics { inspected_bytes: 9 });
        let end = tempo::TraceByIdResponse { metrics, status: 1, message: "cut".to_owned(), ..Default::default() };
        let expected = json!({"metrics": {"inspectedBytes": "9"}, "status": "PARTIAL", "message": "cut"});
        assert_eq!(trace_end(&end, true), expected);
        assert_eq!(trace_end(&tempo::TraceByIdResponse::default(), false), json!({"metrics": {}}));
    }

    #[test]
    fn zeros_are_left_out() {
        let samples =
            vec![tempo::Sample { value: 0.0, timestamp_ms: 5 }, tempo::Sample { value: 1.5, timestamp_ms: 6 }];
        let series = vec![tempo::TimeSeries { samples, ..Default::default() }];
        let found = tempo::QueryRangeResponse { series, ..Default::default() };
        let expected = json!({"series": [{"samples": [{"timestampMs": "5"}, {"timestampMs": "6", "value": 1.5}]}]});
        assert_eq!(range(&found), expected);
        assert_eq!(search(&tempo::SearchResponse::default()), json!({"traces": []}));
    }
}
