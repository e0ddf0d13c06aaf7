use std::io::Write;

use prost::Message;
use serde_json::{Value, json};
use signaldb_proto::rpc;

use crate::node::Node;
use crate::spans::{batch, request, span};

fn gzip(content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

/// Scenario: bodies that are no requests, in both encodings, compressed and not, too large, and a zip bomb.
/// Guarantees: typed errors in the request's encoding, never a 500, and the node goes on.
#[tokio::test(flavor = "multi_thread")]
async fn undecodable_and_oversized_requests_get_typed_errors() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let url = node.otlp_http("/v1/traces");
    let post = |kind: &'static str, encoding: &'static str, body: Vec<u8>| {
        node.http.post(&url).header("content-type", kind).header("content-encoding", encoding).body(body).send()
    };
    let response = post("application/x-protobuf", "identity", b"this is no protobuf".to_vec()).await?;
    assert_eq!(response.status().as_u16(), 400);
    let status = rpc::Status::decode(response.bytes().await?)?;
    assert_eq!((status.code, status.retry_after()), (3, None));
    assert!(status.message.contains("protobuf"), "{}", status.message);
    for body in ["{", "[]", r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xyz"}]}]}]}"#] {
        let response = post("application/json", "identity", body.into()).await?;
        assert_eq!(response.status().as_u16(), 400, "{body}");
        let status: Value = response.json().await?;
        assert_eq!(status["code"], 3, "{status}");
    }
    assert_eq!(post("application/x-protobuf", "gzip", b"no gzip".to_vec()).await?.status().as_u16(), 400);
    assert_eq!(post("application/x-protobuf", "br", vec![]).await?.status().as_u16(), 415);
    assert_eq!(post("text/plain", "identity", vec![]).await?.status().as_u16(), 415);
    let bomb = gzip(&vec![0; 100 << 20])?;
    assert!(bomb.len() < 200 << 10);
    assert_eq!(post("application/x-protobuf", "gzip", bomb).await?.status().as_u16(), 413);
    assert_eq!(node.http.get(&url).send().await?.status().as_u16(), 405);
    let (body, _) = batch(1);
    let ok = post("application/x-protobuf", "gzip", gzip(&body)?).await?;
    assert_eq!(ok.status().as_u16(), 200);
    assert_eq!(node.number("SELECT count(*) FROM traces").await?, 1);
    Ok(())
}

/// Scenario: a request of 200 kB whose one large resource would be repeated for twenty thousand empty spans.
/// Guarantees: a 400 that says so; the node goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_would_expand_without_bounds_is_refused() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let spans = vec![signaldb_proto::otlp::trace::v1::Span::default(); 20_000];
    let body = request(&"x".repeat(100_000), spans).encode_to_vec();
    let post = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
    let response = post.body(body).send().await?;
    assert_eq!(response.status().as_u16(), 400);
    let status = rpc::Status::decode(response.bytes().await?)?;
    assert!(status.message.contains("repeated for each record"), "{}", status.message);
    assert_eq!(node.number("SELECT count(*) FROM traces").await?, 0);
    Ok(())
}

/// Scenario: records with odd values beside one that cannot be stored.
/// Guarantees: what can be stored is, the rest is rejected by number and reason, and the request is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn odd_records_are_stored_or_rejected_alone() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut backwards = span("ends before it starts");
    backwards.end_time_unix_nano = 1;
    let mut zero = span("zero ids");
    (zero.trace_id, zero.span_id) = (vec![0; 16], vec![0; 8]);
    let mut repeated = span("repeated keys");
    repeated.attributes.extend(repeated.attributes.clone());
    let mut bad = span("bad id");
    bad.trace_id = vec![1, 2, 3];
    let body = request("s", vec![backwards, zero, bad, repeated]).encode_to_vec();
    let post = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
    let response = post.body(body).send().await?.error_for_status()?;
    assert!(response.headers().contains_key("x-signaldb-position"));
    let answer =
        signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceResponse::decode(response.bytes().await?)?;
    let partial = answer.partial_success.expect("partial success");
    assert_eq!(partial.rejected_spans, 1);
    assert!(partial.error_message.contains("trace_id has 3 bytes"), "{}", partial.error_message);
    assert_eq!(node.number("SELECT count(*) FROM traces").await?, 3);
    assert_eq!(node.number("SELECT duration_nano FROM traces WHERE name = 'ends before it starts'").await?, 0);
    let metrics = json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "m", "gauge": {"dataPoints": [
        {"asDouble": "NaN"}, {"asDouble": "-Infinity"}, {"asInt": "9007199254740993", "attributes": [{"key": "e", "value": {}}]},
    ]}}]}]}]});
    node.http.post(node.otlp_http("/v1/metrics")).json(&metrics).send().await?.error_for_status()?;
    let rows = node.sql_json("SELECT value_int FROM metrics_gauge WHERE value_int IS NOT NULL").await?;
    assert_eq!(rows["rows"][0][0].as_i64(), Some(9_007_199_254_740_993));
    assert_eq!(node.number("SELECT count(*) FROM metrics_gauge WHERE isnan(value_double)").await?, 1);
    let empty = node.http.post(node.otlp_http("/v1/traces")).json(&json!({})).send().await?;
    assert_eq!((empty.status().as_u16(), empty.text().await?.as_str()), (200, "{}"));
    Ok(())
}

/// Scenario: SQL that is wrong, or not allowed.
/// Guarantees: 400 with message and position; nothing is changed by a query.
#[tokio::test(flavor = "multi_thread")]
async fn bad_sql_is_a_400_with_a_position() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let cases = [
        ("SELEC 1", "line 1, column 1"),
        ("SELECT\n  nope FROM traces", "line 2, column 3"),
        ("SELECT * FROM nothing", "line 1, column 15"),
        ("DROP TABLE traces", ""),
        ("INSERT INTO traces VALUES (1)", ""),
        ("SET x = 1", ""),
        ("SELECT 1; SELECT 2", ""),
        ("", ""),
        ("SELECT * FROM other_dataset_that_is_fine.nope", ""),
    ];
    for (query, position) in cases {
        let response = node.http.post(node.url("/api/v1/sql")).json(&json!({"query": query})).send().await?;
        assert_eq!(response.status().as_u16(), 400, "{query}");
        let body: Value = response.json().await?;
        let hint = body["error"]["hint"].as_str().unwrap_or_default();
        assert!(hint.contains(position), "{query}: {body}");
        assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    }
    for body in ["", "{}", "[]", r#"{"query": 1}"#, r#"{"query": "SELECT 1", "extra": 1}"#] {
        let sent = node.http.post(node.url("/api/v1/sql")).header("content-type", "application/json").body(body);
        assert_eq!(sent.send().await?.status().as_u16(), 400, "{body}");
    }
    Ok(())
}
