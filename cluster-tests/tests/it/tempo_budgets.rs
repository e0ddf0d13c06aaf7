//! Requests of Tempo's API within the budgets of queries: each is one query, whatever it takes to answer it.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use signaldb_proto::otlp::trace::v1::{Span, TracesData};
use signaldb_proto::tempo;
use tokio::task::JoinSet;

use crate::node::{DEADLINE, Node};
use crate::spans::{hex, request, send_batch, send_until_acknowledged, span, text};

/// Runs until it is stopped.
const ENDLESS: &str = "SELECT sum(value % 7) FROM generate_series(1, 1000000000000000)";
const MEBI: usize = 1 << 20;

async fn listed(node: &Node) -> anyhow::Result<Vec<Value>> {
    let body: Value = node.http.get(node.url("/api/v1/queries")).send().await?.error_for_status()?.json().await?;
    Ok(body["queries"].as_array().context("queries")?.clone())
}

/// Waits until the listed queries are such; returns them.
async fn wait_listed(node: &Node, until: impl Fn(&[Value]) -> bool) -> anyhow::Result<Vec<Value>> {
    let begun = Instant::now();
    loop {
        let queries = listed(node).await?;
        if until(&queries) {
            return Ok(queries);
        }
        anyhow::ensure!(begun.elapsed() < DEADLINE, "{queries:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn kill(node: &Node, query: &Value) -> anyhow::Result<()> {
    let id = query["id"].as_str().context("an id")?;
    node.http.delete(node.url(&format!("/api/v1/queries/{id}"))).send().await?.error_for_status()?;
    Ok(())
}

fn get(node: &Node, path: &str, parameters: &[(&str, &str)]) -> reqwest::RequestBuilder {
    node.http.get(node.url(path)).query(parameters).timeout(2 * DEADLINE)
}

async fn answered(request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
    let response = request.send().await?;
    if !response.status().is_success() {
        anyhow::bail!("{}: {}", response.status(), response.text().await?);
    }
    Ok(response)
}

/// Status and text of a request that must fail.
async fn refused(request: reqwest::RequestBuilder) -> anyhow::Result<(u16, String)> {
    let response = request.send().await?;
    let (status, text) = (response.status(), response.text().await?);
    anyhow::ensure!(!status.is_success(), "was answered: {}", text.chars().take(200).collect::<String>());
    Ok((status.as_u16(), text))
}

/// Sends a trace of that many spans, each with a text of that many bytes, some at a time; returns its id.
async fn send_trace(node: &Node, spans: usize, text_bytes: usize) -> anyhow::Result<String> {
    let root = span("root");
    let filling = "x".repeat(text_bytes);
    let at_once = (4 * MEBI / (text_bytes + 200)).max(1);
    let numbers: Vec<usize> = (0..spans).collect();
    for some in numbers.chunks(at_once) {
        let make = |n: &usize| Span {
            trace_id: root.trace_id.clone(),
            attributes: vec![text("filling", &filling), text("half", if *n < spans / 2 { "a" } else { "b" })],
            ..span("part")
        };
        let body = Bytes::from(request("shop", some.iter().map(make).collect()).encode_to_vec());
        send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body).await?;
    }
    Ok(hex(&root.trace_id))
}

fn spans_of(trace: &TracesData) -> usize {
    let scopes = trace.resource_spans.iter().flat_map(|part| &part.scope_spans);
    scopes.map(|scope| scope.spans.len()).sum()
}

fn spans_in_json(resources: &Value) -> usize {
    let scopes = resources.as_array().into_iter().flatten().filter_map(|part| part["scopeSpans"].as_array()).flatten();
    scopes.filter_map(|scope| scope["spans"].as_array()).map(Vec::len).sum()
}

/// How many spans of a trace each way to ask for it shows.
async fn shown(node: &Node, id: &str) -> anyhow::Result<[usize; 4]> {
    let (v1, v2) = (format!("/api/traces/{id}"), format!("/api/v2/traces/{id}"));
    let protobuf = |path: &str| answered(get(node, path, &[]).header("accept", "application/protobuf"));
    let first: Value = answered(get(node, &v1, &[])).await?.json().await?;
    let second: Value = answered(get(node, &v2, &[])).await?.json().await?;
    let third = TracesData::decode(protobuf(&v1).await?.bytes().await?)?;
    let fourth = tempo::TraceByIdResponse::decode(protobuf(&v2).await?.bytes().await?)?;
    Ok([
        spans_in_json(&first["batches"]),
        spans_in_json(&second["trace"]["resourceSpans"]),
        spans_of(&third),
        spans_of(&fourth.trace.context("a trace")?),
    ])
}

/// Scenario: one query may run and one may wait; a statement runs, a search waits, and a third request comes.
/// Guarantees: the search is one query of the list, by its TraceQL; the third is refused by the queue's name; who kills the
/// search ends it, and its client hears so; one whose client goes away is not listed any more; its deadline holds, waiting
/// included.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_waits_is_listed_and_is_killed_as_one_query() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["query.tenant_concurrency=1", "query.queue=1"]).await?;
    send_batch(&node.http, &[node.otlp_http("/v1/traces")], 10).await?;
    let query = "{ name =~ \"span.*\" } | by(name)";
    let search = || get(&node, "/api/search", &[("q", query)]);
    let is_waiting = |one: &Value| one["state"] == "waiting" && one["query"] == query;
    let mut clients = JoinSet::new();
    let endless = node.http.post(node.url("/api/v1/sql")).json(&json!({"query": ENDLESS})).timeout(DEADLINE);
    clients.spawn(endless.send());
    wait_listed(&node, |queries| queries.iter().any(|one| one["state"] == "running")).await?;
    let mut waiting = JoinSet::new();
    waiting.spawn(refused(search()));
    let queries = wait_listed(&node, |queries| queries.iter().any(is_waiting)).await?;
    assert_eq!(queries.len(), 2, "{queries:?}");
    for (path, parameters) in [
        ("/api/search", &[("q", "{}")][..]),
        ("/api/v2/search/tags", &[]),
        ("/api/v2/search/tag/name/values", &[]),
        ("/api/metrics/query_range", &[("q", "{} | rate()")]),
        ("/api/metrics/query", &[("q", "{} | rate()")]),
        ("/api/traces/abc", &[]),
        ("/api/v2/traces/abc", &[]),
    ] {
        let (status, text) = refused(get(&node, path, parameters)).await?;
        assert_eq!(status, 429, "{path}: {text}");
        assert!(text.contains("query.queue"), "{path}: {text}");
    }
    kill(&node, queries.iter().find(|one| is_waiting(one)).context("the search")?).await?;
    let (status, text) = waiting.join_next().await.context("a client")???;
    assert_eq!(status, 499, "{text}");
    assert!(text.contains("was killed"), "{text}");

    waiting.spawn(refused(search()));
    wait_listed(&node, |queries| queries.iter().any(is_waiting)).await?;
    waiting.shutdown().await;
    wait_listed(&node, |queries| queries.len() == 1).await?;

    let (status, text) = refused(search().query(&[("deadline", "300ms")])).await?;
    assert_eq!(status, 504, "{text}");
    assert!(text.contains("query.deadline"), "{text}");
    clients.shutdown().await;
    wait_listed(&node, |queries| queries.is_empty()).await?;
    Ok(())
}

/// Scenario: a trace that a query has no memory for is asked for by its id; then with hardly any memory, which also
/// meets a search, series, and names.
/// Guarantees: all of the trace comes, in both versions and encodings; without memory each request fails with 422 and the
/// name of the budget, and nothing is held afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_larger_than_the_memory_of_a_query_goes_out_in_parts() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &["query.memory=48MiB"]).await?;
    // As structs they take more than 60 MiB.
    let spans = 20_000;
    let id = send_trace(&node, spans, 500).await?;
    assert_eq!(shown(&node, &id).await?, [spans; 4]);
    node.flush().await?;
    assert_eq!(shown(&node, &id).await?, [spans; 4]);

    node.set("query.memory=1MiB");
    node.kill()?;
    node.restart().await?;
    let of_half = "{ span.half = \"a\" } | count_over_time() by (span:id)";
    for (path, parameters) in [
        (format!("/api/traces/{id}"), &[][..]),
        (format!("/api/v2/traces/{id}"), &[]),
        ("/api/search".to_owned(), &[("q", "{ span.filling != nil }")]),
        ("/api/metrics/query".to_owned(), &[("q", of_half)]),
        ("/api/search/tags".to_owned(), &[]),
    ] {
        let (status, text) = refused(get(&node, &path, parameters)).await?;
        assert_eq!(status, 422, "{path}: {text}");
        assert!(text.contains("query.memory"), "{path}: {text}");
    }
    wait_listed(&node, |queries| queries.is_empty()).await?;
    let until = Instant::now() + DEADLINE;
    loop {
        let metrics = node.http.get(node.url("/metrics")).send().await?.text().await?;
        if metrics.lines().any(|line| line == "signaldb_query_memory_bytes 0") {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "memory is held still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Scenario: a trace of 56 MiB; one client reads it slowly and its query is killed, another goes away.
/// Guarantees: v2 shows 48 MiB of it and says PARTIAL, v1 shows all; it is one query of the list while it is read; a killed
/// one ends its body short, and one whose client went away is not listed any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_is_too_large_is_cut_and_says_so() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["memory.limit=2GiB"]).await?;
    let id = send_trace(&node, 56, MEBI).await?;
    let (v1, v2) = (format!("/api/traces/{id}"), format!("/api/v2/traces/{id}"));
    let all: Value = answered(get(&node, &v1, &[])).await?.json().await?;
    assert_eq!(spans_in_json(&all["batches"]), 56);
    let cut: Value = answered(get(&node, &v2, &[])).await?.json().await?;
    assert_eq!((spans_in_json(&cut["trace"]["resourceSpans"]), &cut["status"]), (47, &json!("PARTIAL")));
    assert!(cut["message"].as_str().is_some_and(|message| message.contains("larger")), "{}", cut["message"]);
    let protobuf = answered(get(&node, &v2, &[]).header("accept", "application/protobuf")).await?;
    let cut = tempo::TraceByIdResponse::decode(protobuf.bytes().await?)?;
    assert_eq!((cut.status, cut.trace.as_ref().map(spans_of)), (1, Some(47)));

    for killed in [true, false] {
        let mut response = answered(get(&node, &v1, &[])).await?;
        response.chunk().await?.context("a part")?;
        // The rest waits for its reader.
        let queries = wait_listed(&node, |queries| queries.len() == 1).await?;
        assert_eq!((&queries[0]["query"], &queries[0]["state"]), (&json!(format!("trace {id}")), &json!("running")));
        assert!(queries[0]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{queries:?}");
        if killed {
            kill(&node, &queries[0]).await?;
            let ended = loop {
                match response.chunk().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            assert!(ended.is_err(), "a part must not pass for the whole");
        } else {
            drop(response);
        }
        wait_listed(&node, |queries| queries.is_empty()).await?;
    }
    Ok(())
}

/// Scenario: searches over many traces whose spans are in files, by a node whose queries may read little.
/// Guarantees: what all portions read counts together, and the error names the budget.
#[tokio::test(flavor = "multi_thread")]
async fn all_portions_of_a_search_read_within_one_budget() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), &[]).await?;
    let urls = [node.otlp_http("/v1/traces")];
    send_batch(&node.http, &urls, 600).await?;
    node.flush().await?;
    let search = |node: &Node| {
        get(node, "/api/search", &[("q", "{ name = \"span 0\" || span:childCount >= 0 }"), ("limit", "600")])
    };
    let found: Value = answered(search(&node)).await?.json().await?;
    assert_eq!(found["traces"].as_array().map(Vec::len), Some(600));
    let scanned = scanned_bytes(&node).await?;
    answered(search(&node)).await?.bytes().await?;
    let once = scanned_bytes(&node).await? - scanned;
    // A bit less than what all of it reads, and more than any of its plans.
    node.set(&format!("query.scan={}B", once - once / 8));
    node.kill()?;
    node.restart().await?;
    let (status, text) = refused(search(&node)).await?;
    assert_eq!(status, 422, "{text}");
    assert!(text.contains("query.scan"), "{text}");
    Ok(())
}

async fn scanned_bytes(node: &Node) -> anyhow::Result<u64> {
    let metrics = node.http.get(node.url("/metrics")).send().await?.text().await?;
    let counted = metrics.lines().find_map(|line| line.strip_prefix("signaldb_query_scanned_bytes_total "));
    Ok(counted.context("is counted")?.parse()?)
}
