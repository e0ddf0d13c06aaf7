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
            &[("q", "{} | compare({ status = error })")],
            501,
            "col 6: not supported: compare()",
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
        let found: Vec<tempo::SearchResponse> = stream(node.url(""), "Search", &question).await?;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].traces[0].trace_id, checkout.hex().trim_start_matches('0'));
        assert_eq!(found[0].traces[0].span_sets[0].spans[0].name, "pay");
        let question = tempo::SearchTagsRequest { scope: "resource".to_owned(), ..Default::default() };
        let tags: Vec<tempo::SearchTagsV2Response> = stream(node.url(""), "SearchTagsV2", &question).await?;
        assert_eq!(tags[0].scopes[0].tags, ["service.name"]);
        let tags: Vec<tempo::SearchTagsResponse> = stream(node.url(""), "SearchTags", &question).await?;
        assert_eq!(tags[0].tag_names, ["service.name"]);
        let question =
            tempo::SearchTagValuesRequest { tag_name: "resource.service.name".to_owned(), ..Default::default() };
        let values: Vec<tempo::SearchTagValuesV2Response> =
            stream(node.url(""), "SearchTagValuesV2", &question).await?;
        let values: Vec<&str> = values[0].tag_values.iter().map(|value| value.value.as_str()).collect();
        assert_eq!(values, ["db", "front", "shop"]);
        let values: Vec<tempo::SearchTagValuesResponse> = stream(node.url(""), "SearchTagValues", &question).await?;
        assert_eq!(values[0].tag_values, ["db", "front", "shop"]);
        let (start, end) = (now - 600_000 * MILLI, now + 60_000 * MILLI);
        let query = "{} | count_over_time()".to_owned();
        let question = tempo::QueryInstantRequest { query: query.clone(), start, end };
        let instant: Vec<tempo::QueryInstantResponse> = stream(node.url(""), "MetricsQueryInstant", &question).await?;
        assert!((instant[0].series[0].value - 3.0).abs() < 1e-9);
        let question = tempo::QueryRangeRequest { query, start, end, step: 60_000 * MILLI, exemplars: 0 };
        let range: Vec<tempo::QueryRangeResponse> = stream(node.url(""), "MetricsQueryRange", &question).await?;
        let total: f64 = range[0].series[0].samples.iter().map(|sample| sample.value).sum();
        assert!((total - 3.0).abs() < 1e-9);

        let wrong = tempo::SearchRequest { query: "{ .a = }".to_owned(), ..Default::default() };
        for (method, code) in [("Search", Code::InvalidArgument), ("Nothing", Code::Unimplemented)] {
            let refused = stream::<_, tempo::SearchResponse>(node.url(""), method, &wrong).await;
            let refused = refused.expect_err("refused").downcast::<tonic::Status>()?;
            assert_eq!(refused.code(), code, "{method}: {refused}");
        }
    }
    Ok(())
}
