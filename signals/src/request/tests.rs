use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

use super::*;

fn span(id: u8, name: &str) -> Span {
    Span {
        trace_id: vec![id; 16],
        span_id: vec![id; 8],
        name: name.into(),
        start_time_unix_nano: id.into(),
        ..Span::default()
    }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope = ScopeSpans { spans, schema_url: "scope".into(), ..ScopeSpans::default() };
    let resource =
        ResourceSpans { scope_spans: vec![scope], schema_url: "resource".into(), ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource] }
}

fn names(request: &[u8]) -> Vec<String> {
    let request = ExportTraceServiceRequest::decode(request).expect("decodes");
    let spans = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
    spans.map(|span| span.name.clone()).collect()
}

#[test]
fn counts_and_times_are_per_table() {
    let checked = check(SignalKind::Traces, &request(vec![span(3, "a"), span(1, "b")]).encode_to_vec()).expect("valid");
    let count = TableCount { table: TableCode(1), rows: 2, time_min: UnixNanos(1), time_max: UnixNanos(3) };
    assert_eq!(checked, Checked { tables: vec![count], ..Checked::default() });
    assert_eq!(check(SignalKind::Logs, &[]), Ok(Checked::default()));
}

#[test]
fn a_span_with_a_bad_id_is_rejected_alone() {
    let mut bad = span(2, "bad");
    bad.trace_id = vec![1, 2, 3];
    let body = request(vec![span(1, "a"), bad, span(3, "b")]).encode_to_vec();
    let checked = check(SignalKind::Traces, &body).expect("valid");
    assert_eq!((checked.rows(), checked.rejected), (2, 1));
    assert_eq!(checked.first_rejection.as_deref(), Some("trace_id has 3 bytes instead of 16"));
    assert_eq!(names(&checked.accepted.expect("rewritten")), ["a", "b"]);
}

#[test]
fn zero_and_missing_ids_are_stored() {
    let zero = Span { trace_id: vec![0; 16], span_id: vec![0; 8], ..Span::default() };
    let checked = check(SignalKind::Traces, &request(vec![zero, Span::default()]).encode_to_vec()).expect("valid");
    assert_eq!((checked.rows(), checked.rejected), (2, 0));
}

#[test]
fn a_data_point_with_a_bad_exemplar_is_rejected_alone() {
    use opentelemetry_proto::tonic::metrics::v1::Exemplar;
    let bad = NumberDataPoint {
        exemplars: vec![Exemplar { span_id: vec![1], ..Exemplar::default() }],
        ..NumberDataPoint::default()
    };
    let gauge = Gauge {
        data_points: vec![NumberDataPoint::default(), bad, NumberDataPoint { flags: 1, ..NumberDataPoint::default() }],
    };
    let metric = Metric { name: "m".into(), data: Some(metric::Data::Gauge(gauge)), ..Metric::default() };
    let scope = ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() };
    let resource = ResourceMetrics { scope_metrics: vec![scope], ..ResourceMetrics::default() };
    let body = ExportMetricsServiceRequest { resource_metrics: vec![resource] }.encode_to_vec();
    let checked = check(SignalKind::Metrics, &body).expect("valid");
    assert_eq!((checked.rows(), checked.rejected), (2, 1));
    let again = check(SignalKind::Metrics, &checked.accepted.expect("rewritten")).expect("valid");
    assert_eq!((again.rows(), again.rejected), (2, 0));
}

#[test]
fn large_requests_are_split_between_records_and_keep_their_resources() {
    let spans: Vec<Span> = (0..200).map(|n| span(n, &format!("span {n}"))).collect();
    let body = request(spans).encode_to_vec();
    let parts = split(&body, 1000).expect("splits");
    assert!(parts.len() > 5);
    assert!(parts.iter().all(|part| part.len() <= 1100));
    let all: Vec<String> = parts.iter().flat_map(|part| names(part)).collect();
    assert_eq!(all, names(&body));
    for part in &parts {
        let part = ExportTraceServiceRequest::decode(part.as_slice()).expect("decodes");
        assert_eq!(part.resource_spans[0].schema_url, "resource");
        assert_eq!(part.resource_spans[0].scope_spans[0].schema_url, "scope");
    }
    assert_eq!(split(&body, 1000), Ok(parts), "a retry falls into the same parts");
    assert_eq!(split(&body, 1 << 30).expect("splits").len(), 1);
    assert_eq!(split(&[], 10), Ok(vec![]));
}

#[test]
fn parts_are_bounded_unless_one_record_is_larger_than_a_part() {
    // Tags and lengths of the messages around the records.
    const FRAMES: usize = 64;
    let spans = (0..=255).map(|n| span(n, &"x".repeat(usize::from(n) * 7919 % 3001))).collect();
    let body = request(spans).encode_to_vec();
    for bytes_max in [1, 1000, 3000, 20_000] {
        let parts = split(&body, bytes_max).expect("splits");
        let all: Vec<String> = parts.iter().flat_map(|part| names(part)).collect();
        assert_eq!(all, names(&body), "{bytes_max}");
        for part in &parts {
            assert!(part.len() <= bytes_max + FRAMES || names(part).len() == 1, "{} > {bytes_max}", part.len());
        }
    }
}

#[test]
fn garbage_is_an_error() {
    assert!(check(SignalKind::Traces, b"this is not protobuf").is_err());
    assert!(check(SignalKind::Metrics, &[0x0a, 0xff, 0xff]).is_err());
}

/// A small request that asks for terabytes: one large resource, very many empty records.
#[test]
fn what_would_expand_beyond_bounds_is_refused() {
    use opentelemetry_proto::tonic::resource::v1::Resource;
    let mut large = request(vec![Span::default(); 20_000]);
    let entity = "x".repeat(100_000);
    let refs = vec![opentelemetry_proto::tonic::common::v1::EntityRef { schema_url: entity, ..Default::default() }];
    large.resource_spans[0].resource = Some(Resource { entity_refs: refs, ..Resource::default() });
    let body = large.encode_to_vec();
    assert!(body.len() < 200_000);
    assert!(matches!(check(SignalKind::Traces, &body), Err(RequestError::Expansion { .. })));
    assert!(matches!(split(&body, 50_000), Err(RequestError::Expansion { .. })));
}

#[test]
fn many_small_records_of_one_scope_expand_to_little() {
    let body = request(vec![span(1, "a"); 30_000]).encode_to_vec();
    let shared = "scope".len() + "resource".len() + 4;
    assert_eq!(expanded_bytes(SignalKind::Traces, &body), 30_000 * shared as u64);
    assert_eq!(check(SignalKind::Traces, &body).map(|checked| checked.rows()), Ok(30_000));
    let gauge =
        Gauge { data_points: vec![NumberDataPoint { time_unix_nano: 1, ..NumberDataPoint::default() }; 30_000] };
    let metric = Metric { data: Some(metric::Data::Gauge(gauge)), ..Metric::default() };
    let scope_metrics = vec![ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() }];
    let resource_metrics = vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }];
    let body = ExportMetricsServiceRequest { resource_metrics }.encode_to_vec();
    assert_eq!(check(SignalKind::Metrics, &body).map(|checked| checked.rows()), Ok(30_000));
}

#[test]
fn a_year_of_days_fits_and_more_is_refused_by_name() {
    let day = |day: u64| Span { start_time_unix_nano: day * NANOS_A_DAY, ..span(1, "s") };
    let year = request((0..366).map(day).chain([day(20_000)]).collect()).encode_to_vec();
    assert_eq!(check(SignalKind::Traces, &year).map(|checked| checked.rows()), Ok(367));
    let more = request((0..500).map(day).collect()).encode_to_vec();
    assert_eq!(check(SignalKind::Traces, &more), Err(RequestError::Days { days: 500 }));
}
