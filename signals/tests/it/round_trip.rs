use arrow::array::RecordBatch;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use prost::Message;
use signaldb_signals::decode::decode;
use signaldb_signals::request::{self, check};
use signaldb_signals::{SignalKind, encode, json};

use crate::generate;

/// Arrow to Parquet and back; the schema, field ids included, must survive as well.
fn through_parquet(batch: &RecordBatch) -> RecordBatch {
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).expect("schema is writable");
    writer.write(batch).expect("writes");
    writer.close().expect("closes");
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).expect("opens").build().expect("reads");
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().expect("reads");
    let read = arrow::compute::concat_batches(&batch.schema(), &batches).expect("same schema");
    assert_eq!(&read, batch);
    read
}

fn one_table(kind: SignalKind, body: &[u8]) -> (signaldb_signals::SignalTable, RecordBatch) {
    let checked = check(kind, body).expect("valid");
    assert_eq!(checked.rejected, 0);
    let mut tables = decode(kind, [(7, body)]);
    assert_eq!(tables.len(), 1);
    let table = tables.remove(0);
    assert_eq!(table.requests, [(7, table.rows.num_rows())]);
    assert_eq!(checked.rows(), table.rows.num_rows() as u64);
    (table.table, through_parquet(&table.rows.to_batch().expect("small")))
}

proptest! {
    // The same rows in every run.
    #![proptest_config(ProptestConfig { cases: 200, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn spans_are_identical(rows in vec((generate::resource(), generate::scope(), generate::span(), any::<bool>()), 1..4)) {
        let resource_spans: Vec<ResourceSpans> = rows.into_iter().map(|(resource, scope, span, url)| {
            let schema_url = if url { "https://schema".to_owned() } else { String::new() };
            let scope = ScopeSpans { scope: Some(scope), spans: vec![span], schema_url: schema_url.clone() };
            ResourceSpans { resource: Some(resource), scope_spans: vec![scope], schema_url }
        }).collect();
        let body = ExportTraceServiceRequest { resource_spans: resource_spans.clone() }.encode_to_vec();
        let (_, batch) = one_table(SignalKind::Traces, &body);
        prop_assert_eq!(encode::resource_spans(&batch), resource_spans);
    }

    #[test]
    fn log_records_are_identical(rows in vec((generate::resource(), generate::scope(), generate::log_record()), 1..4)) {
        let resource_logs: Vec<ResourceLogs> = rows.into_iter().map(|(resource, scope, record)| {
            let scope = ScopeLogs { scope: Some(scope), log_records: vec![record], schema_url: String::new() };
            ResourceLogs { resource: Some(resource), scope_logs: vec![scope], schema_url: String::new() }
        }).collect();
        let body = ExportLogsServiceRequest { resource_logs: resource_logs.clone() }.encode_to_vec();
        let (_, batch) = one_table(SignalKind::Logs, &body);
        prop_assert_eq!(encode::resource_logs(&batch), resource_logs);
    }

    #[test]
    fn data_points_are_identical(resource in generate::resource(), scope in generate::scope(), metric in generate::metric()) {
        let scope = ScopeMetrics { scope: Some(scope), metrics: vec![metric], schema_url: String::new() };
        let resource = ResourceMetrics { resource: Some(resource), scope_metrics: vec![scope], schema_url: String::new() };
        let body = ExportMetricsServiceRequest { resource_metrics: vec![resource.clone()] }.encode_to_vec();
        let (table, batch) = one_table(SignalKind::Metrics, &body);
        prop_assert_eq!(encode::resource_metrics(&batch, table), vec![resource]);
    }

    /// No bytes make the check or the decoder panic, and what passes the check decodes to as many rows.
    #[test]
    fn any_bytes_are_safe(body in vec(any::<u8>(), 0..200), kind in 1..4u8) {
        let kind = SignalKind::from_code(kind).expect("a kind");
        let _ = decode(kind, [(0, body.as_slice())]);
        if let Ok(checked) = check(kind, &body) {
            let accepted = checked.accepted.clone().unwrap_or(body);
            let rows: usize = decode(kind, [(0, accepted.as_slice())]).iter().map(|table| table.rows.num_rows()).sum();
            prop_assert_eq!(rows as u64, checked.rows());
        }
        let _ = json::to_protobuf(kind, &[]);
    }

    /// Flipping bytes of a real request neither panics nor changes how many rows the check announces.
    #[test]
    fn damaged_requests_are_safe(span in generate::span(), resource in generate::resource(), flips in vec((any::<usize>(), any::<u8>()), 1..4)) {
        let scope = ScopeSpans { spans: vec![span.clone(), span], ..ScopeSpans::default() };
        let resource = ResourceSpans { resource: Some(resource), scope_spans: vec![scope], ..ResourceSpans::default() };
        let mut body = ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec();
        for (at, with) in flips {
            let at = at % body.len();
            body[at] ^= with;
        }
        if let Ok(checked) = check(SignalKind::Traces, &body) {
            let accepted = checked.accepted.clone().unwrap_or(body);
            let rows: usize = decode(SignalKind::Traces, [(0, accepted.as_slice())]).iter().map(|table| table.rows.num_rows()).sum();
            prop_assert_eq!(rows as u64, checked.rows());
            let Ok(parts) = request::split(&accepted, 300) else { return Ok(()) };
            let split: u64 = parts.iter().map(|part| check(SignalKind::Traces, part).map_or(0, |part| part.rows())).sum();
            prop_assert_eq!(split, checked.rows());
        }
    }
}

#[test]
fn text_that_is_not_utf8_is_stored_with_replacement_characters() {
    // A span whose name (field 5) is the byte 0xff.
    let body = [0x0a, 0x07, 0x12, 0x05, 0x12, 0x03, 0x2a, 0x01, 0xff];
    let checked = check(SignalKind::Traces, &body).expect("accepted");
    assert!(checked.replaced_text);
    let (_, batch) = one_table(SignalKind::Traces, &body);
    let spans = encode::resource_spans(&batch);
    assert_eq!(spans[0].scope_spans[0].spans[0].name, "\u{fffd}");
}

#[test]
fn the_published_json_examples_survive() {
    // From the examples of the OTLP specification, in our own words: one record with every common field.
    let examples = [
        (
            SignalKind::Traces,
            r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"my.service"}}]},
            "scopeSpans":[{"scope":{"name":"my.library","version":"1.0.0","attributes":[{"key":"my.scope.attribute","value":{"stringValue":"some"}}]},
            "spans":[{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174","parentSpanId":"EEE19B7EC3C1B173",
            "name":"I'm a server span","startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000","kind":2,
            "attributes":[{"key":"my.span.attr","value":{"stringValue":"some value"}}]}]}]}]}"#,
        ),
        (
            SignalKind::Logs,
            r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1544712660300000000","severityNumber":10,
            "severityText":"Information","traceId":"5B8EFFF798038103D269B633813FC60C","body":{"stringValue":"Example log record"},
            "attributes":[{"key":"map.attribute","value":{"kvlistValue":{"values":[{"key":"some.map.key","value":{"stringValue":"v"}}]}}},
            {"key":"double.attribute","value":{"doubleValue":637.704}},{"key":"int.attribute","value":{"intValue":"10"}}]}]}]}]}"#,
        ),
        (
            SignalKind::Metrics,
            r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"my.counter","unit":"1","sum":{"aggregationTemporality":1,
            "isMonotonic":true,"dataPoints":[{"asDouble":5,"startTimeUnixNano":"1544712660300000000","timeUnixNano":"1544712660300000000"}]}}]}]}]}"#,
        ),
    ];
    for (kind, example) in examples {
        let body = json::to_protobuf(kind, example.as_bytes()).expect("valid");
        let (_, batch) = one_table(kind, &body);
        assert_eq!(batch.num_rows(), 1);
    }
}
