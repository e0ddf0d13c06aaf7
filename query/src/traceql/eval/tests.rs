use arrow::array::RecordBatch;
use prost::Message;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::common::v1::any_value::Value as Any;
use signaldb_proto::otlp::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use signaldb_proto::otlp::resource::v1::Resource;
use signaldb_proto::otlp::trace::v1::span::{Event, Link};
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use signaldb_signals::SignalKind;
use signaldb_signals::decode::decode;

use super::super::ast::Traceql;
use super::super::spans::SpanColumns;
use super::super::trace::SpanRef;
use super::*;

const MILLI: u64 = 1_000_000;

fn pair(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(value: &str) -> Any {
    Any::StringValue(value.to_owned())
}

fn span(id: u8, parent: u8, name: &str, start: u64, end: u64, attributes: Vec<KeyValue>) -> Span {
    Span {
        trace_id: vec![7; 16],
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        name: name.to_owned(),
        kind: if parent == 0 { 2 } else { 3 },
        start_time_unix_nano: 1_000_000_000_000 + start * MILLI,
        end_time_unix_nano: 1_000_000_000_000 + end * MILLI,
        attributes,
        ..Span::default()
    }
}

fn of_service(service: &str, spans: Vec<Span>) -> ResourceSpans {
    let attributes = vec![pair("service.name", text(service)), pair("zone", text("eu"))];
    let resource = Some(Resource { attributes, ..Resource::default() });
    let scope = Some(InstrumentationScope { name: "lib".to_owned(), version: "1.2".to_owned(), ..Default::default() });
    let scope_spans = vec![ScopeSpans { scope, spans, ..ScopeSpans::default() }];
    ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }
}

/// root(1) -> auth(2), pay(3) -> db(4), db(5); lost(6) has a parent that is not there.
fn batch() -> RecordBatch {
    let tags = Any::ArrayValue(ArrayValue {
        values: vec![AnyValue { value: Some(text("x")) }, AnyValue { value: Some(text("y")) }],
    });
    let mut pay =
        span(3, 1, "pay", 20, 90, vec![pair("tags", tags), pair("http.response.status_code", Any::IntValue(500))]);
    pay.status = Some(Status { code: 2, message: "boom".to_owned() });
    pay.events = vec![
        Event {
            time_unix_nano: pay.start_time_unix_nano + 5 * MILLI,
            name: "exception".to_owned(),
            attributes: vec![pair("exception.type", text("IoError"))],
            ..Event::default()
        },
        Event { time_unix_nano: pay.start_time_unix_nano + 9 * MILLI, name: "retry".to_owned(), ..Event::default() },
    ];
    pay.links = vec![Link { trace_id: vec![9; 16], span_id: vec![8; 8], ..Link::default() }];
    let request = ExportTraceServiceRequest {
        resource_spans: vec![
            of_service(
                "front",
                vec![span(
                    1,
                    0,
                    "GET /",
                    0,
                    100,
                    vec![pair("http.route", text("/")), pair("ok", Any::BoolValue(true))],
                )],
            ),
            of_service("shop", vec![span(2, 1, "auth", 5, 15, vec![pair("zone", text("us"))]), pay]),
            of_service(
                "db",
                vec![
                    span(4, 3, "select", 30, 40, vec![pair("rows", Any::IntValue(10))]),
                    span(5, 3, "insert", 50, 80, vec![pair("rows", Any::DoubleValue(2.5))]),
                    span(6, 99, "lost", 60, 61, vec![]),
                ],
            ),
        ],
    };
    let body = request.encode_to_vec();
    let tables = decode(SignalKind::Traces, [(1, body.as_slice())]);
    tables.first().expect("a table").rows.to_batch().expect("small")
}

/// The names of the spans in each spanset that a query leaves.
fn found(query: &str, batch: &RecordBatch) -> Vec<Vec<String>> {
    let columns = SpanColumns::of(batch);
    let trace = Trace::new((0..columns.rows).map(|row| SpanRef { columns: &columns, row }).collect());
    let query = Traceql::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    let sets = pipeline(query.stages(), &trace);
    let name = |at: &usize| trace.spans[*at].columns.name(trace.spans[*at].row).to_owned();
    sets.iter().map(|set| set.spans.iter().map(name).collect()).collect()
}

#[test]
fn filters_keep_the_right_spans() {
    let batch = batch();
    let all = ["GET /", "auth", "pay", "select", "insert", "lost"];
    let cases: &[(&str, &[&str])] = &[
        ("{}", &all),
        ("{ name = \"pay\" }", &["pay"]),
        ("{ name != \"pay\" }", &["GET /", "auth", "select", "insert", "lost"]),
        ("{ name =~ \"se.*\" }", &["select"]),
        // Anchored.
        ("{ name =~ \"sele\" }", &[]),
        ("{ name !~ \"(s|in)se.*\" }", &["GET /", "auth", "pay", "select", "lost"]),
        ("{ duration >= 30ms }", &["GET /", "pay", "insert"]),
        ("{ duration = 10ms }", &["auth", "select"]),
        ("{ status = error }", &["pay"]),
        ("{ status != error && kind = client }", &["auth", "select", "insert", "lost"]),
        ("{ kind = server }", &["GET /"]),
        ("{ statusMessage = \"boom\" }", &["pay"]),
        ("{ resource.service.name = \"db\" }", &["select", "insert", "lost"]),
        ("{ .service.name = \"db\" }", &["select", "insert", "lost"]),
        ("{ span.service.name = \"db\" }", &[]),
        // The span's own comes first.
        ("{ .zone = \"us\" }", &["auth"]),
        ("{ resource.zone = \"us\" }", &[]),
        ("{ span.http.route = \"/\" }", &["GET /"]),
        ("{ span.http.response.status_code >= 500 }", &["pay"]),
        ("{ .http.response.status_code = \"500\" }", &[]),
        ("{ .rows > 2 }", &["select", "insert"]),
        ("{ .rows = 10.0 }", &["select"]),
        ("{ .rows * 2 = 5 }", &["insert"]),
        ("{ .rows != nil }", &["select", "insert"]),
        ("{ .rows = nil && duration > 50ms }", &["GET /", "pay"]),
        ("{ .rows != 10 }", &["insert"]),
        ("{ .ok }", &["GET /"]),
        ("{ !.ok }", &[]),
        ("{ .tags = \"y\" }", &["pay"]),
        ("{ .tags != \"y\" }", &[]),
        ("{ .tags != \"z\" }", &["pay"]),
        ("{ .tags =~ \"x|z\" }", &["pay"]),
        ("{ event:name = \"retry\" }", &["pay"]),
        ("{ event.exception.type = \"IoError\" }", &["pay"]),
        ("{ event.exception.type != nil }", &["pay"]),
        ("{ event:timeSinceStart > 6ms }", &["pay"]),
        ("{ link:traceID = \"09090909090909090909090909090909\" }", &["pay"]),
        ("{ link:spanID != \"0808080808080808\" }", &[]),
        ("{ instrumentation:name = \"lib\" && instrumentation:version = \"1.2\" && name = \"pay\" }", &["pay"]),
        ("{ span:id = \"0404040404040404\" }", &["select"]),
        ("{ span:id = \"404040404040404\" }", &["select"]),
        ("{ span:parentID = \"\" }", &["GET /"]),
        ("{ span:parentID = \"0303030303030303\" }", &["select", "insert"]),
        ("{ trace:id = \"07070707070707070707070707070707\" && name = \"pay\" }", &["pay"]),
        ("{ nestedSetParent < 0 }", &["GET /"]),
        ("{ nestedSetParent = 0 }", &["lost"]),
        ("{ nestedSetParent >= 1 }", &["auth", "pay", "select", "insert"]),
        ("{ span:childCount = 2 }", &["GET /", "pay"]),
        ("{ rootName = \"GET /\" && rootServiceName = \"front\" && name = \"pay\" }", &["pay"]),
        ("{ traceDuration = 100ms && name = \"pay\" }", &["pay"]),
        ("{ parent.http.route = \"/\" }", &["auth", "pay"]),
        ("{ parent.resource.service.name = \"shop\" }", &["select", "insert"]),
        ("{ 1 = 1 }", &all),
        ("{ false }", &[]),
    ];
    for (query, expected) in cases {
        let sets = found(query, &batch);
        let names: Vec<&str> = sets.iter().flatten().map(String::as_str).collect();
        assert_eq!(names, *expected, "{query}");
    }
}

#[test]
fn structure() {
    let batch = batch();
    let cases: &[(&str, &[&str])] = &[
        ("{ name = \"GET /\" } > {}", &["auth", "pay"]),
        ("{ name = \"GET /\" } >> {}", &["auth", "pay", "select", "insert"]),
        ("{ name = \"GET /\" } >> { .rows > 5 }", &["select"]),
        ("{ .rows > 5 } < {}", &["pay"]),
        ("{ .rows > 5 } << {}", &["GET /", "pay"]),
        ("{ name = \"select\" } ~ {}", &["insert"]),
        ("{ name =~ \"select|insert\" } ~ {}", &["select", "insert"]),
        ("{ name = \"GET /\" } ~ {}", &[]),
        ("{ name = \"GET /\" } !> {}", &["GET /", "select", "insert", "lost"]),
        ("{ name = \"GET /\" } !>> {}", &["GET /", "lost"]),
        ("{ .rows > 5 } !< {}", &["GET /", "auth", "select", "insert", "lost"]),
        ("{ .rows > 5 } !<< {}", &["auth", "select", "insert", "lost"]),
        ("{ name = \"select\" } !~ {}", &["GET /", "auth", "pay", "select", "lost"]),
        ("{ kind = server } &>> { .rows > 5 }", &["GET /", "select"]),
        ("{ kind = server } &> { name = \"pay\" }", &["GET /", "pay"]),
        ("{ .rows > 5 } &<< { kind = server }", &["GET /", "select"]),
        ("{ .rows > 5 } &< { name = \"pay\" }", &["pay", "select"]),
        ("{ name = \"select\" } &~ { name = \"insert\" }", &["select", "insert"]),
        ("{ kind = server } > { name = \"pay\" } > { .rows != nil }", &["select", "insert"]),
        ("{ name = \"pay\" } && { name = \"auth\" }", &["auth", "pay"]),
        ("{ name = \"pay\" } && { name = \"nope\" }", &[]),
        ("{ name = \"pay\" } || { name = \"nope\" }", &["pay"]),
        ("{ name = \"nope\" } >> {}", &[]),
        ("{ name = \"nope\" } !>> { .rows > 5 }", &["select"]),
        ("{ name = \"lost\" } >> {}", &[]),
    ];
    for (query, expected) in cases {
        let sets = found(query, &batch);
        let names: Vec<&str> = sets.iter().flatten().map(String::as_str).collect();
        assert_eq!(names, *expected, "{query}");
    }
}

#[test]
fn pipelines() {
    let batch = batch();
    let cases: &[(&str, &[&[&str]])] = &[
        ("{ .rows != nil } | count() > 1", &[&["select", "insert"]]),
        ("{ .rows != nil } | count() > 2", &[]),
        ("{ .rows != nil } | avg(.rows) = 6.25", &[&["select", "insert"]]),
        ("{ .rows != nil } | max(duration) = 30ms", &[&["select", "insert"]]),
        ("{ .rows != nil } | sum(duration) - min(duration) >= 30ms", &[&["select", "insert"]]),
        ("{ .rows != nil } | avg(.nope) > 0", &[]),
        ("{ .rows != nil } | { name = \"insert\" }", &[&["insert"]]),
        ("{ status = unset } | by(resource.service.name) | count() > 1", &[&["select", "insert", "lost"]]),
        ("{ status = unset } | by(resource.service.name) | count() < 2 | coalesce()", &[&["GET /", "auth"]]),
        ("{ name =~ \"a.*|pay\" } | by(status) | select(name)", &[&["auth"], &["pay"]]),
        ("({ .rows != nil } | count() > 1) && { name = \"pay\" }", &[&["pay", "select", "insert"]]),
        ("({ .rows != nil } | count() > 2) || { name = \"pay\" }", &[&["pay"]]),
    ];
    for (query, expected) in cases {
        let sets = found(query, &batch);
        let names: Vec<Vec<&str>> = sets.iter().map(|set| set.iter().map(String::as_str).collect()).collect();
        assert_eq!(names, *expected, "{query}");
    }
}

/// Spans whose parents are each other, or themselves, and a tree as deep as it is large: no endless walk, no deep stack.
#[test]
fn odd_trees_end() {
    let mut spans = vec![span(1, 2, "a", 0, 1, vec![]), span(2, 1, "b", 0, 1, vec![]), span(3, 3, "c", 0, 1, vec![])];
    let id = |n: u32| [&[0xff, 0, 0, 0][..], &n.to_be_bytes()].concat();
    for n in 0..50_000 {
        let mut deep = span(4, 0, "deep", 2, 3, vec![]);
        deep.span_id = id(n);
        deep.parent_span_id = if n == 0 { Vec::new() } else { id(n - 1) };
        spans.push(deep);
    }
    let request = ExportTraceServiceRequest { resource_spans: vec![of_service("s", spans)] };
    let body = request.encode_to_vec();
    let tables = decode(SignalKind::Traces, [(1, body.as_slice())]);
    let batch = tables.first().expect("a table").rows.to_batch().expect("small");
    let sizes = |query: &str| -> Vec<usize> { found(query, &batch).iter().map(Vec::len).collect() };
    assert_eq!(sizes("{ nestedSetParent < 0 } >> {}"), [49_999]);
    assert_eq!(sizes("{ name = \"deep\" } << {}"), [49_999]);
    assert_eq!(sizes("{ name = \"a\" } >> {}"), Vec::<usize>::new());
    assert_eq!(sizes("{ name = \"a\" } > {}"), [1]);
    assert_eq!(sizes("{ name = \"c\" } ~ {}"), Vec::<usize>::new());
}
