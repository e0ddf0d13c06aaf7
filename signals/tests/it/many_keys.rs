use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use signaldb_signals::decode::decode;
use signaldb_signals::request::check;
use signaldb_signals::{SignalKind, SignalTable, encode, schema};

const KEYS: usize = 10_000;

fn attribute(n: usize) -> KeyValue {
    let value = any_value::Value::StringValue(format!("value {n}"));
    KeyValue { key: format!("key.{n:05}"), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Five keys in each of many spans, no two the same, and all of them in one span.
fn spans() -> Vec<Span> {
    let span = |keys: &[KeyValue]| Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        name: "work".to_owned(),
        start_time_unix_nano: 1,
        end_time_unix_nano: 2,
        attributes: keys.to_vec(),
        status: Some(Status::default()),
        ..Span::default()
    };
    let keys: Vec<KeyValue> = (0..KEYS).map(attribute).collect();
    keys.chunks(5).map(span).chain([span(&keys)]).collect()
}

#[test]
fn ten_thousand_keys_are_entries_of_maps_and_no_columns() {
    let sent = spans();
    let scope_spans = vec![ScopeSpans { spans: sent.clone(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    assert_eq!(check(SignalKind::Traces, &body).expect("valid").rows(), sent.len() as u64);
    let rows = decode(SignalKind::Traces, [(1, body.as_slice())]).remove(0).rows;
    assert_eq!(rows.schema(), &schema::of(SignalTable::Traces).arrow);
    let memory = rows.memory_bytes();
    assert!(memory < 8 * body.len(), "{memory} bytes in memory for a request of {}", body.len());
    let batch = rows.to_batch().expect("small");
    let resources = encode::resource_spans(&batch).into_iter();
    let back: Vec<Span> = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect();
    assert_eq!(back, sent);
}
