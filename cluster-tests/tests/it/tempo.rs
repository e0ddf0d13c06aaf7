use std::collections::BTreeSet;

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use signaldb_proto::RawCodec;
use signaldb_proto::otlp::common::v1::{AnyValue, KeyValue, any_value};
use signaldb_proto::otlp::trace::v1::{Span, Status, TracesData};
use signaldb_proto::tempo;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::spans::{hex, now_nanos, request, send_until_acknowledged, span, text};

const MILLI: u64 = 1_000_000;

/// A trace: `GET /` of service front, under it `pay` of shop, which failed, and under that `select` of db.
struct Checkout {
    id: Vec<u8>,
    start: u64,
    spans: Vec<(&'static str, Span)>,
}

impl Checkout {
    fn new() -> Self {
        let id = uuid::Uuid::new_v4().as_bytes().to_vec();
        let start = now_nanos() - 200 * MILLI;
        let make = |name: &str, parent: &[u8], from: u64, until: u64| Span {
            trace_id: id.clone(),
            parent_span_id: parent.to_vec(),
            start_time_unix_nano: start + from * MILLI,
            end_time_unix_nano: start + until * MILLI,
            ..span(name)
        };
        let root = make("GET /", &[], 0, 100);
        let mut pay = make("pay", &root.span_id, 10, 90);
        pay.status = Some(Status { code: 2, message: "declined".to_owned() });
        pay.attributes = vec![text("card", "visa"), int("amount", 42)];
        let mut select = make("select", &pay.span_id, 20, 30);
        (select.kind, select.attributes) = (3, vec![text("db.system.name", "postgresql")]);
        Self { id, start, spans: vec![("front", root), ("shop", pay), ("db", select)] }
    }

    fn hex(&self) -> String {
        hex(&self.id)
    }

    async fn send(&self, node: &Node) -> anyhow::Result<()> {
        for (service, span) in &self.spans {
            let body = Bytes::from(request(service, vec![span.clone()]).encode_to_vec());
            send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body).await?;
        }
        Ok(())
    }
}

fn int(key: &str, value: i64) -> KeyValue {
    let value = Some(AnyValue { value: Some(any_value::Value::IntValue(value)) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

async fn get(node: &Node, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
    let response = node.http.get(node.url(path)).query(query).send().await?;
    let status = response.status();
    let text = response.text().await?;
    anyhow::ensure!(status.is_success(), "{path} {query:?}: {status}: {text}");
    serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
}

/// Names of the spans that a search shows, over all its traces.
async fn found(node: &Node, query: &str) -> anyhow::Result<BTreeSet<String>> {
    let answer = get(node, "/api/search", &[("q", query), ("spss", "0")]).await?;
    let sets = answer["traces"].as_array().context("traces")?.iter().flat_map(|trace| trace["spanSets"].as_array());
    let spans = sets.flatten().flat_map(|set| set["spans"].as_array()).flatten();
    Ok(spans.filter_map(|span| span["name"].as_str().map(str::to_owned)).collect())
}

/// Scenario: a trace of three services is acknowledged and asked for at once, by id and by TraceQL, before the flush and
/// after it.
/// Guarantees: it is found whole each time, in JSON and protobuf, at the root and under `/tempo`.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_found_as_soon_as_it_is_acknowledged() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let (checkout, other) = (Checkout::new(), Checkout::new());
    checkout.send(&node).await?;
    for flushed in [false, true] {
        if flushed {
            node.flush().await?;
            // Some in files, some in memory.
            other.send(&node).await?;
        }
        by_id(&node, &checkout).await?;
        search(&node, &checkout).await?;
        tags(&node).await?;
    }
    Ok(())
}

async fn by_id(node: &Node, checkout: &Checkout) -> anyhow::Result<()> {
    let id = checkout.hex();
    for prefix in ["", "/tempo"] {
        let v1 = get(node, &format!("{prefix}/api/traces/{id}"), &[]).await?;
        assert_eq!(v1["batches"].as_array().map(Vec::len), Some(3), "{v1}");
        let v2 = get(node, &format!("{prefix}/api/v2/traces/{id}"), &[]).await?;
        let spans = v2["trace"]["resourceSpans"].as_array().context("resources")?;
        assert_eq!(spans.len(), 3, "{v2}");
        assert!(v2["status"].is_null(), "{v2}");
        let kinds: BTreeSet<&str> =
            spans.iter().filter_map(|one| one["scopeSpans"][0]["spans"][0]["kind"].as_str()).collect();
        assert_eq!(kinds, BTreeSet::from(["SPAN_KIND_CLIENT", "SPAN_KIND_SERVER"]));
    }
    let protobuf = |path: String| node.http.get(node.url(&path)).header("accept", "application/protobuf").send();
    let sent: BTreeSet<Vec<u8>> = checkout.spans.iter().map(|(_, span)| span.encode_to_vec()).collect();
    let of = |trace: TracesData| -> BTreeSet<Vec<u8>> {
        let scopes = trace.resource_spans.into_iter().flat_map(|part| part.scope_spans);
        // The way back sets a status where there was none.
        let spans = scopes.flat_map(|part| part.spans).map(|mut span| {
            span.status = span.status.filter(|status| *status != Status::default());
            span.encode_to_vec()
        });
        spans.collect()
    };
    let v1 = protobuf(format!("/api/traces/{id}")).await?.error_for_status()?.bytes().await?;
    assert_eq!(of(TracesData::decode(v1)?), sent);
    let v2 = protobuf(format!("/api/v2/traces/{id}")).await?.error_for_status()?.bytes().await?;
    let v2 = tempo::TraceByIdResponse::decode(v2)?;
    assert_eq!(v2.status, 0, "{}", v2.message);
    assert_eq!(of(v2.trace.context("a trace")?), sent);

    // The window may be beside it by hours.
    let seconds = checkout.start / 1_000_000_000;
    let (start, end) = ((seconds - 7200).to_string(), (seconds - 3600).to_string());
    let windowed = get(node, &format!("/api/v2/traces/{id}"), &[("start", &start), ("end", &end)]).await?;
    assert_eq!(windowed["trace"]["resourceSpans"].as_array().map(Vec::len), Some(3));

    let unknown = node.http.get(node.url("/api/traces/abc")).send().await?;
    assert_eq!((unknown.status().as_u16(), unknown.text().await?.as_str()), (404, ""));
    assert_eq!(get(node, "/api/v2/traces/abc", &[]).await?, json!({"trace": {}, "metrics": {}}));
    for bad in ["xyz", "123456789012345678901234567890123"] {
        let response = node.http.get(node.url(&format!("/api/v2/traces/{bad}"))).send().await?;
        assert_eq!(response.status().as_u16(), 400, "{bad}");
        assert!(response.text().await?.contains("trace IDs"), "{bad}");
    }
    Ok(())
}

async fn search(node: &Node, checkout: &Checkout) -> anyhow::Result<()> {
    let id = checkout.hex();
    let of_this = format!("{{ trace:id = \"{id}\" && status = error }}");
    let answer = get(node, "/api/search", &[("q", of_this.as_str())]).await?;
    let trace = &answer["traces"][0];
    assert_eq!(trace["traceID"], id.trim_start_matches('0'), "{answer}");
    assert_eq!(trace["rootServiceName"], "front");
    assert_eq!(trace["rootTraceName"], "GET /");
    assert_eq!(trace["durationMs"], 100);
    assert_eq!(trace["startTimeUnixNano"], checkout.start.to_string());
    assert_eq!(trace["serviceStats"]["shop"], json!({"spanCount": 1, "errorCount": 1}));
    assert_eq!(trace["spanSets"][0]["matched"], 1);
    assert_eq!(trace["spanSet"], trace["spanSets"][0]);
    let shown = &trace["spanSets"][0]["spans"][0];
    assert_eq!((&shown["name"], &shown["durationNanos"]), (&json!("pay"), &json!("80000000")));
    assert_eq!(shown["attributes"], json!([{"key": "status", "value": {"stringValue": "error"}}]));
    for (query, expected) in [
        ("{ resource.service.name = \"shop\" }", &["pay"][..]),
        ("{ .service.name =~ \"sh.*|db\" }", &["pay", "select"]),
        ("{ span.amount > 41 && span.amount < 43 }", &["pay"]),
        ("{ span.card = \"visa\" }", &["pay"]),
        ("{ span.card != nil }", &["pay"]),
        ("{ span.db.system.name = \"postgresql\" }", &["select"]),
        ("{ duration > 50ms }", &["GET /", "pay"]),
        ("{ nestedSetParent < 0 }", &["GET /"]),
        ("{ kind = client }", &["select"]),
        ("{ rootServiceName = \"front\" && kind = client }", &["select"]),
        ("{ resource.service.name = \"front\" } >> { kind = client }", &["select"]),
        ("{ resource.service.name = \"front\" } > { kind = client }", &[]),
        ("{ kind = client } << { status = error }", &["pay"]),
        ("{ status = error } &>> { kind = client }", &["pay", "select"]),
        ("{ status = error } || { kind = client }", &["pay", "select"]),
        ("{ status = error } && { kind = client }", &["pay", "select"]),
        ("{} | count() > 2", &["GET /", "pay", "select"]),
        ("{} | count() > 3", &[]),
        ("{} | avg(duration) > 1s", &[]),
        ("{} | by(resource.service.name) | max(duration) > 90ms", &["GET /"]),
        ("{ name = \"nothing\" }", &[]),
    ] {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(found(node, query).await?, expected, "{query}");
    }
    let selected = get(node, "/api/search", &[("q", "{ name = \"pay\" } | select(span.amount)")]).await?;
    let attributes = &selected["traces"][0]["spanSets"][0]["spans"][0]["attributes"];
    assert_eq!(*attributes, json!([{"key": "amount", "value": {"intValue": "42"}}]), "{selected}");

    let tagged = get(node, "/api/search", &[("tags", "service.name=shop card=visa"), ("minDuration", "50ms")]).await?;
    assert_eq!(tagged["traces"][0]["rootTraceName"], "GET /", "{tagged}");
    assert!(tagged["traces"][0]["spanSets"].is_null(), "{tagged}");
    let long = get(node, "/api/search", &[("tags", "service.name=shop"), ("minDuration", "5s")]).await?;
    assert_eq!(long["traces"], json!([]));
    let second = checkout.start / 1_000_000_000;
    let (start, end) = ((second - 1).to_string(), (second + 5).to_string());
    let windowed = get(node, "/api/search", &[("q", of_this.as_str()), ("start", &start), ("end", &end)]).await?;
    assert_eq!(windowed["traces"].as_array().map(Vec::len), Some(1));
    let (start, end) = ((second - 500).to_string(), (second - 400).to_string());
    let before = get(node, "/api/search", &[("q", of_this.as_str()), ("start", &start), ("end", &end)]).await?;
    assert_eq!(before["traces"], json!([]));
    Ok(())
}

async fn tags(node: &Node) -> anyhow::Result<()> {
    let v1 = get(node, "/api/search/tags", &[]).await?;
    let names: Vec<&str> = v1["tagNames"].as_array().context("names")?.iter().filter_map(Value::as_str).collect();
    for name in ["service.name", "card", "amount", "db.system.name", "http.route"] {
        assert!(names.contains(&name), "{name}: {v1}");
    }
    let v2 = get(node, "/api/v2/search/tags", &[("limit", "5000")]).await?;
    let of = |scope: &str| {
        let scopes = v2["scopes"].as_array().into_iter().flatten();
        scopes.filter(|one| one["name"] == scope).map(|one| one["tags"].clone()).next().unwrap_or_default()
    };
    assert_eq!(of("resource"), json!(["service.name"]));
    assert_eq!(of("span"), json!(["amount", "card", "cart.size", "db.system.name", "http.route"]));
    assert!(of("intrinsic").as_array().is_some_and(|tags| tags.contains(&json!("duration"))), "{v2}");
    let only = get(node, "/api/v2/search/tags", &[("scope", "span"), ("q", "{ name = \"select\" }")]).await?;
    assert_eq!(only, json!({"scopes": [{"name": "span", "tags": ["db.system.name"]}]}));
    let values = |tag: &str| format!("/api/v2/search/tag/{tag}/values");
    let services = get(node, &values("resource.service.name"), &[]).await?;
    let text = |value: &str| json!({"type": "string", "value": value});
    assert_eq!(services["tagValues"], json!([text("db"), text("front"), text("shop")]));
    let failed = get(node, &values("resource.service.name"), &[("q", "{ status = error }")]).await?;
    assert_eq!(failed["tagValues"], json!([text("shop")]));
    // Somebody is typing.
    let typing = get(node, &values("resource.service.name"), &[("q", "{ status = }")]).await?;
    assert_eq!(typing, services);
    let amounts = get(node, &values("span.amount"), &[]).await?;
    assert_eq!(amounts["tagValues"], json!([{"type": "int", "value": "42"}]));
    let statuses = get(node, &values("status"), &[]).await?;
    assert_eq!(statuses["tagValues"][0], json!({"type": "keyword", "value": "error"}));
    let roots = get(node, &values("rootServiceName"), &[]).await?;
    assert_eq!(roots["tagValues"], json!([text("front")]));
    let encoded = get(node, &values("resource%252Eservice%252Ename"), &[]).await?;
    assert_eq!(encoded, services);
    let names = get(node, "/api/search/tag/name/values", &[]).await?;
    assert_eq!(names["tagValues"], json!(["GET /", "pay", "select"]));
    Ok(())
}

/// Scenario: series of acknowledged spans, over time and as single values.
/// Guarantees: every span is counted in its step, by every function; groups and ranks are right.
#[tokio::test(flavor = "multi_thread")]
async fn series_count_every_acknowledged_span() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    for _ in 0..4 {
        Checkout::new().send(&node).await?;
    }
    node.flush().await?;
    Checkout::new().send(&node).await?;
    let now = now_nanos() / 1_000_000_000;
    let (start, end) = ((now - 600).to_string(), (now + 5).to_string());
    let ask = |query: &'static str| {
        let (node, start, end) = (&node, start.clone(), end.clone());
        async move { get(node, "/api/metrics/query", &[("q", query), ("start", &start), ("end", &end)]).await }
    };
    let value = |answer: &Value| answer["series"][0]["value"].as_f64().unwrap_or(f64::NAN);
    for (query, expected) in [
        ("{} | count_over_time()", 15.0),
        ("{ status = error } | count_over_time()", 5.0),
        ("{ resource.service.name = \"front\" } >> { kind = client } | count_over_time()", 5.0),
        ("{} | count() > 2 | count_over_time()", 15.0),
        ("{ name = \"pay\" } | sum_over_time(span.amount)", 210.0),
        ("{ name = \"pay\" } | avg_over_time(span.amount)", 42.0),
        ("{} | max_over_time(duration)", 0.1),
        ("{} | min_over_time(duration)", 0.01),
        ("{} | rate()", 15.0 / 605.0),
    ] {
        let answer = ask(query).await?;
        assert!((value(&answer) - expected).abs() < 1e-9, "{query}: {answer}");
    }
    let median = ask("{} | quantile_over_time(duration, 0.5)").await?;
    assert!((value(&median) - 0.08).abs() < 0.003, "{median}");
    assert_eq!(median["series"][0]["labels"], json!([{"key": "p", "value": {"doubleValue": 0.5}}]));
    let top = ask("{} | max_over_time(duration) by(resource.service.name) | topk(1)").await?;
    let label = json!([{"key": "resource.service.name", "value": {"stringValue": "front"}}]);
    assert_eq!((top["series"].as_array().map(Vec::len), &top["series"][0]["labels"]), (Some(1), &label), "{top}");
    let buckets = ask("{} | histogram_over_time(duration)").await?;
    assert_eq!(buckets["series"].as_array().map(Vec::len), Some(2), "{buckets}");

    let compared = ask("{} | compare({ status = error }, 2)").await?;
    let of = |meta: (&str, &str), field: &str, shown: &str| {
        let label = |(key, value): (&str, &str)| json!({"key": key, "value": {"stringValue": value}});
        let labels = json!([label(meta), label((field, shown))]);
        let series = compared["series"].as_array().into_iter().flatten();
        series.filter(|one| one["labels"] == labels).map(|one| one["value"].as_f64().unwrap_or(0.0)).next()
    };
    let (baseline, selection) = (("__meta_type", "baseline"), ("__meta_type", "selection"));
    for (meta, field, shown, expected) in [
        (selection, "name", "pay", Some(5.0)),
        (baseline, "name", "GET /", Some(5.0)),
        (baseline, "name", "pay", None),
        (selection, "resource.service.name", "shop", Some(5.0)),
        (selection, "span.card", "visa", Some(5.0)),
        (baseline, "span.card", "visa", None),
        (baseline, "span.db.system.name", "postgresql", Some(5.0)),
        (("__meta_type", "baseline_total"), "name", "nil", Some(10.0)),
        (("__meta_type", "selection_total"), "kind", "nil", Some(5.0)),
        (("__meta_error", "__too_many_values__"), "name", "nil", None),
    ] {
        assert_eq!(of(meta, field, shown), expected, "{meta:?} {field}={shown}: {compared}");
    }
    let cut = ask("{} | compare({ status = error }, 1)").await?.to_string();
    assert!(cut.contains("__too_many_values__"), "{cut}");
    let late = ask("{} | compare({ rootName = \"GET /\" }, 1, 1, 2)").await?.to_string();
    assert!(late.contains("baseline") && !late.contains("\"selection\""), "nothing was selected at that time: {late}");

    let query = [("q", "{} | rate() by(name)"), ("start", start.as_str()), ("end", end.as_str()), ("step", "30s")];
    let answer = get(&node, "/api/metrics/query_range", &query).await?;
    let series = answer["series"].as_array().context("series")?;
    assert_eq!(series.len(), 3, "{answer}");
    for one in series {
        let samples = one["samples"].as_array().context("samples")?;
        let total: f64 = samples.iter().filter_map(|sample| sample["value"].as_f64()).sum();
        assert!((total * 30.0 - 5.0).abs() < 1e-9, "{one}");
        for sample in samples {
            let time: u64 = sample["timestampMs"].as_str().context("a time")?.parse()?;
            assert_eq!(time % 30_000, 0, "steps lie at multiples of their length");
        }
        assert!(one["exemplars"][0]["labels"][0]["key"] == "trace:id", "{one}");
    }
    Ok(())
}

/// Scenario: malformed, unsupported and foreign requests.
/// Guarantees: plain text that names what is wrong and where; 501 for what is not there; one tenant never sees another's
/// traces, names or values.
#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_where_they_are_wrong() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let checkout = Checkout::new();
    checkout.send(&node).await?;
    for (path, query, status, named) in [
        ("/api/search", &[("q", "{ .a = }")][..], 400, "parse error at line 1, col 8: syntax error: unexpected }"),
        ("/api/search", &[("q", "{} | rate()")], 400, "series"),
        ("/api/search", &[("q", "{}"), ("limit", "0")], 400, "invalid limit"),
        ("/api/search", &[("q", "{}"), ("start", "5"), ("end", "4")], 400, "start must be before end"),
        ("/api/search", &[("q", "{}"), ("tags", "a=b")], 400, "tags and q"),
        ("/api/search", &[("tags", "nonsense")], 400, "key=value"),
        ("/api/v2/search/tags", &[("scope", "xx")], 400, "invalid scope: xx"),
        ("/api/metrics/query_range", &[], 400, "q is missing"),
        ("/api/metrics/query_range", &[("q", "{}")], 400, "no series"),
        ("/api/metrics/query_range", &[("q", "{} | rate()"), ("step", "1ms")], 400, "longer step"),
        (
            "/api/metrics/query_range",
            &[("q", "({} | rate()) / ({} | rate())")],
            501,
            "col 7: not supported: arithmetic of series",
        ),
        ("/api/v2/traces/zz", &[], 400, "hex"),
    ] {
        let response = node.http.get(node.url(path)).query(query).send().await?;
        assert_eq!(response.status().as_u16(), status, "{path} {query:?}");
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        let text = response.text().await?;
        assert!(text.contains(named), "{path} {query:?}: {text}");
    }
    assert_eq!(node.http.get(node.url("/api/echo")).send().await?.text().await?, "echo");
    assert!(get(&node, "/tempo/api/status/buildinfo", &[]).await?["version"].is_string());
    let foreign = |path: String| node.http.get(node.url(&path)).header("x-scope-orgid", "other").send();
    assert_eq!(foreign(format!("/api/traces/{}", checkout.hex())).await?.status().as_u16(), 404);
    let traces: Value = foreign("/api/search?q=%7B%7D".to_owned()).await?.json().await?;
    assert_eq!(traces["traces"], json!([]));
    let names: Value = foreign("/api/search/tags".to_owned()).await?.json().await?;
    assert_eq!(names, json!({"tagNames": []}));
    Ok(())
}

/// Scenario: clients that POST, as forms and otherwise, and clients that ask for names without a range.
/// Guarantees: a form says the same as a URL; no body is passed over in silence; an answer that looks back by default says how
/// far, and goes no further.
#[tokio::test(flavor = "multi_thread")]
async fn forms_are_read_and_a_default_range_is_named() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    Checkout::new().send(&node).await?;
    let mut old = span("old");
    (old.start_time_unix_nano, old.end_time_unix_nano) =
        (now_nanos() - 7_200_000 * MILLI, now_nanos() - 7_199_000 * MILLI);
    old.attributes = vec![text("of.yesterday", "x")];
    let body = Bytes::from(request("front", vec![old]).encode_to_vec());
    send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body).await?;

    let post = |path: &str, kind: &'static str, body: &'static str| {
        node.http.post(node.url(path)).header("content-type", kind).body(body).send()
    };
    let form = "application/x-www-form-urlencoded";
    let found: Value =
        post("/api/search?limit=5", form, "q=%7B+name+%3D+%22pay%22+%7D").await?.error_for_status()?.json().await?;
    assert_eq!(found["traces"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found["traces"][0]["rootTraceName"], "GET /", "{found}");
    let rate = "q=%7B%7D%20%7C%20count_over_time()&since=1h";
    for path in ["/api/metrics/query", "/tempo/api/metrics/query_range"] {
        let found: Value = post(path, form, rate).await?.error_for_status()?.json().await?;
        assert_eq!(found["series"].as_array().map(Vec::len), Some(1), "{path}: {found}");
    }
    for (path, kind, body, status, named) in [
        ("/api/search", form, "q=%7B", 400, "parse error at line 1, col 2"),
        ("/api/search", form, "q=%zz", 400, "URL-encoded"),
        ("/api/search?q=%7B%7D", form, "q=%7B%7D", 400, "given twice"),
        ("/api/search", "application/json", "{\"q\": \"{}\"}", 415, "x-www-form-urlencoded"),
        ("/api/metrics/query", "text/plain", "q=%7B%7D", 415, "x-www-form-urlencoded"),
        ("/api/search/tags", form, "scope=span", 405, ""),
        ("/api/traces/abc", form, "", 405, ""),
    ] {
        let response = post(path, kind, body).await?;
        assert_eq!(response.status().as_u16(), status, "{path} {body}");
        let text = response.text().await?;
        assert!(text.contains(named), "{path} {body}: {text}");
    }

    for path in ["/api/search/tags", "/api/v2/search/tags", "/api/search/tag/span.of.yesterday/values"] {
        let asked = |start: Option<String>| {
            let start: Vec<(&str, String)> = start.map(|start| ("start", start)).into_iter().collect();
            node.http.get(node.url(path)).query(&start).send()
        };
        let recent = asked(None).await?.error_for_status()?;
        assert_eq!(recent.headers()["x-signaldb-lookback"], "1h", "{path}");
        let recent = recent.text().await?;
        let long = asked(Some((now_nanos() / 1_000_000_000 - 86_400).to_string())).await?.error_for_status()?;
        assert!(!long.headers().contains_key("x-signaldb-lookback"), "{path}");
        let long = long.text().await?;
        let known = if path.ends_with("/values") { "\"x\"" } else { "of.yesterday" };
        assert!(!recent.contains(known) && long.contains(known), "{path}: {recent}, {long}");
    }
    Ok(())
}

async fn stream<Q: Message, A: Message + Default>(
    address: String,
    method: &str,
    question: &Q,
) -> anyhow::Result<Vec<A>> {
    let mut client = Grpc::new(Endpoint::from_shared(address)?.connect().await?);
    client.ready().await?;
    let path = PathAndQuery::try_from(format!("/{}/{method}", tempo::SERVICE))?;
    let request = Request::new(Bytes::from(question.encode_to_vec()));
    let mut answers = client.server_streaming(request, path, RawCodec).await?.into_inner();
    let mut out = Vec::new();
    while let Some(answer) = answers.message().await? {
        out.push(A::decode(answer)?);
    }
    Ok(out)
}

/// What a stream ends with.
async fn last<Q: Message, A: Message + Default>(address: String, method: &str, question: &Q) -> anyhow::Result<A> {
    stream(address, method, question).await?.pop().context("an answer")
}

/// Scenario: Grafana's streaming client, on each node of a cluster, right after the acknowledgment by one.
/// Guarantees: every method answers on the port of HTTP, with the same as HTTP, through any node.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_answers_as_http_does_through_any_node() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &[]).await?;
    let checkout = Checkout::new();
    checkout.send(&cluster.nodes[0]).await?;
    let now = now_nanos();
    for node in &cluster.nodes {
        let question = tempo::SearchRequest { query: "{ status = error }".to_owned(), limit: 5, ..Default::default() };
        let found: tempo::SearchResponse = last(node.url(""), "Search", &question).await?;
        assert_eq!(found.traces[0].trace_id, checkout.hex().trim_start_matches('0'));
        assert_eq!(found.traces[0].span_sets[0].spans[0].name, "pay");
        assert_eq!(found.metrics.map(|read| (read.completed_jobs, read.total_jobs)), Some((1, 1)));
        let question = tempo::SearchTagsRequest { scope: "resource".to_owned(), ..Default::default() };
        let tags: tempo::SearchTagsV2Response = last(node.url(""), "SearchTagsV2", &question).await?;
        assert_eq!(tags.scopes[0].tags, ["service.name"]);
        let tags: tempo::SearchTagsResponse = last(node.url(""), "SearchTags", &question).await?;
        assert_eq!(tags.tag_names, ["service.name"]);
        let question =
            tempo::SearchTagValuesRequest { tag_name: "resource.service.name".to_owned(), ..Default::default() };
        let values: tempo::SearchTagValuesV2Response = last(node.url(""), "SearchTagValuesV2", &question).await?;
        let values: Vec<&str> = values.tag_values.iter().map(|value| value.value.as_str()).collect();
        assert_eq!(values, ["db", "front", "shop"]);
        let values: tempo::SearchTagValuesResponse = last(node.url(""), "SearchTagValues", &question).await?;
        assert_eq!(values.tag_values, ["db", "front", "shop"]);
        let (start, end) = (now - 600_000 * MILLI, now + 60_000 * MILLI);
        let query = "{} | count_over_time()".to_owned();
        let question = tempo::QueryInstantRequest { query: query.clone(), start, end };
        let instant: tempo::QueryInstantResponse = last(node.url(""), "MetricsQueryInstant", &question).await?;
        assert!((instant.series[0].value - 3.0).abs() < 1e-9);
        for step in [60_000 * MILLI, 0] {
            let question = tempo::QueryRangeRequest { query: query.clone(), start, end, step, exemplars: 0 };
            let range: tempo::QueryRangeResponse = last(node.url(""), "MetricsQueryRange", &question).await?;
            let total: f64 = range.series[0].samples.iter().map(|sample| sample.value).sum();
            assert!((total - 3.0).abs() < 1e-9, "{step}");
        }

        let wrong = tempo::SearchRequest { query: "{ .a = }".to_owned(), ..Default::default() };
        for (method, code) in [("Search", Code::InvalidArgument), ("Nothing", Code::Unimplemented)] {
            let refused = stream::<_, tempo::SearchResponse>(node.url(""), method, &wrong).await;
            let refused = refused.expect_err("refused").downcast::<tonic::Status>()?;
            assert_eq!(refused.code(), code, "{method}: {refused}");
        }
    }
    Ok(())
}

/// Scenario: streams over more traces than one portion has.
/// Guarantees: answers so far come before the last one and only grow; the last one is what HTTP answers.
#[tokio::test(flavor = "multi_thread")]
async fn streams_say_what_is_known_so_far_and_end_with_all_of_it() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let spans: Vec<Span> = (0..200).map(|n| span(&format!("span {n}"))).collect();
    let body = Bytes::from(request("shop", spans).encode_to_vec());
    send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body).await?;
    let protobuf = |path: &'static str, parameters: Vec<(&'static str, String)>| {
        let request = node.http.get(node.url(path)).query(&parameters).header("accept", "application/protobuf");
        async move { anyhow::Ok(request.send().await?.error_for_status()?.bytes().await?) }
    };
    let query = "{ span:childCount = 0 }".to_owned();
    let question = tempo::SearchRequest { query: query.clone(), limit: 1000, ..Default::default() };
    let found: Vec<tempo::SearchResponse> = stream(node.url(""), "Search", &question).await?;
    let whole = protobuf("/api/search", vec![("q", query), ("limit", "1000".to_owned())]).await?;
    let whole = tempo::SearchResponse::decode(whole)?;
    let counts: Vec<usize> = found.iter().map(|answer| answer.traces.len()).collect();
    assert!(counts.len() > 1 && counts.is_sorted() && counts[0] > 0 && counts[0] < 200, "{counts:?}");
    let jobs: Vec<u32> = found.iter().filter_map(|answer| Some(answer.metrics?.completed_jobs)).collect();
    assert_eq!((jobs[0], jobs.last()), (0, Some(&1)), "{jobs:?}");
    assert_eq!(found.last().map(|answer| &answer.traces), Some(&whole.traces));
    assert_eq!(whole.traces.len(), 200);

    let (start, end) = (now_nanos() - 600_000 * MILLI, now_nanos() + 60_000 * MILLI);
    let query = "{ span:childCount = 0 } | count_over_time() by (resource.service.name)".to_owned();
    let question =
        tempo::QueryRangeRequest { query: query.clone(), start, end, step: 60_000 * MILLI, ..Default::default() };
    let range: Vec<tempo::QueryRangeResponse> = stream(node.url(""), "MetricsQueryRange", &question).await?;
    let times = vec![("start", start.to_string()), ("end", end.to_string()), ("step", "60s".to_owned())];
    let whole = protobuf("/api/metrics/query_range", [vec![("q", query)], times].concat()).await?;
    let whole = tempo::QueryRangeResponse::decode(whole)?;
    let total = |answer: &tempo::QueryRangeResponse| -> f64 {
        answer.series.iter().flat_map(|one| &one.samples).map(|sample| sample.value).sum()
    };
    let totals: Vec<f64> = range.iter().map(total).collect();
    assert!(totals.len() > 1 && totals.is_sorted() && totals[0] > 0.0 && totals[0] < 200.0, "{totals:?}");
    assert_eq!(range.last().map(|answer| &answer.series), Some(&whole.series));
    assert!((total(&whole) - 200.0).abs() < 1e-9);

    let question = tempo::SearchTagsRequest { scope: "span".to_owned(), ..Default::default() };
    let tags: Vec<tempo::SearchTagsV2Response> = stream(node.url(""), "SearchTagsV2", &question).await?;
    assert!(tags.len() > 1, "{tags:?}");
    let whole = tempo::SearchTagsV2Response::decode(
        protobuf("/api/v2/search/tags", vec![("scope", "span".to_owned())]).await?,
    )?;
    assert_eq!(tags.last(), Some(&whole));
    Ok(())
}
