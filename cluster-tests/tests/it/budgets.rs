//! Queries within their budgets: who goes beyond one is told which, and nobody else suffers.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::node::{DEADLINE, Node, flight_rows};
use crate::spans::{batch, send_batch, send_until_acknowledged};

/// Runs until it is stopped, and yields one row.
const ENDLESS: &str = "SELECT sum(value % 7) FROM generate_series(1, 1000000000000000)";
/// Yields rows until it is stopped.
const ENDLESS_ROWS: &str = "SELECT value FROM generate_series(1, 1000000000000000)";

/// A statement over HTTP, with headers.
fn ask(node: &Node, query: &str, headers: &[(&str, &str)]) -> reqwest::RequestBuilder {
    let request = node.http.post(node.url("/api/v1/sql")).json(&json!({"query": query})).timeout(DEADLINE);
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

/// Status and error of a statement that must fail.
async fn refused(request: reqwest::RequestBuilder) -> anyhow::Result<(u16, Value)> {
    let response = request.send().await?;
    let status = response.status();
    let body: Value = response.json().await?;
    anyhow::ensure!(!status.is_success(), "was answered: {body}");
    Ok((status.as_u16(), body["error"].clone()))
}

/// What Flight SQL says of a statement that must fail.
async fn refused_flight(node: &Node, query: &str) -> anyhow::Result<String> {
    let mut client = node.flight_client().await?;
    let failed = flight_rows(&mut client, query).await.err().context("was answered")?;
    Ok(format!("{failed:#}"))
}

/// The queries that a node lists to whoever has these headers.
async fn listed(node: &Node, headers: &[(&str, &str)]) -> anyhow::Result<Vec<Value>> {
    let request = node.http.get(node.url("/api/v1/queries"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let body: Value = request.send().await?.error_for_status()?.json().await?;
    Ok(body["queries"].as_array().context("queries")?.clone())
}

/// Waits until the listed queries are such; returns them.
async fn wait_listed(node: &Node, until: impl Fn(&[Value]) -> bool) -> anyhow::Result<Vec<Value>> {
    let begun = Instant::now();
    loop {
        let queries = listed(node, &[]).await?;
        if until(&queries) {
            return Ok(queries);
        }
        anyhow::ensure!(begun.elapsed() < DEADLINE, "{queries:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn in_state(queries: &[Value], state: &str) -> usize {
    queries.iter().filter(|query| query["state"] == state).count()
}

fn id(query: &Value) -> anyhow::Result<String> {
    Ok(query["id"].as_str().context("an id")?.to_owned())
}

async fn kill(node: &Node, id: &str, headers: &[(&str, &str)]) -> anyhow::Result<u16> {
    let request = node.http.delete(node.url(&format!("/api/v1/queries/{id}")));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    Ok(request.send().await?.status().as_u16())
}

/// Files below the spill directory.
fn spilled_files(dir: &Path) -> anyhow::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { spilled_files(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// Scenario: a client of JSON, one of NDJSON in the middle of its rows, and one of Flight in the middle of its rows go away.
/// Guarantees: each of their queries ends; none is listed any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_when_its_client_goes_away() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let mut gathering = JoinSet::new();
    gathering.spawn(ask(&node, ENDLESS, &[]).send());
    wait_listed(&node, |queries| in_state(queries, "running") == 1).await?;
    gathering.shutdown().await;
    wait_listed(&node, |queries| queries.is_empty()).await?;

    let request = node.http.post(node.url("/api/v1/sql?format=ndjson")).json(&json!({"query": ENDLESS_ROWS}));
    let mut response = request.send().await?.error_for_status()?;
    let name = response.headers().get("x-signaldb-query-id").context("a query id")?.to_str()?.to_owned();
    response.chunk().await?.context("rows")?;
    let queries = wait_listed(&node, |queries| in_state(queries, "running") == 1).await?;
    assert_eq!(id(&queries[0])?, name);
    assert!(queries[0]["rows"].as_u64().context("rows")? > 0, "{queries:?}");
    drop(response);
    wait_listed(&node, |queries| queries.is_empty()).await?;

    let mut flight = node.flight_client().await?;
    let info = flight.execute(ENDLESS_ROWS.to_owned(), None).await?;
    let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).context("a ticket")?;
    let mut rows = flight.do_get(ticket).await?;
    rows.next().await.context("rows")??;
    wait_listed(&node, |queries| in_state(queries, "running") == 1).await?;
    drop(rows);
    wait_listed(&node, |queries| queries.is_empty()).await?;
    Ok(())
}

/// Scenario: one query may run and one may wait; a third comes. Then the first is killed, and then the second.
/// Guarantees: the third is refused at once by the queue's name, with a hint when to come again; the second runs when the
/// first has ended; both clients hear that their query was killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_by_name() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["query.tenant_concurrency=1", "query.queue=1"]).await?;
    let mut clients = JoinSet::new();
    clients.spawn(refused(ask(&node, ENDLESS, &[])));
    let first = id(&wait_listed(&node, |queries| in_state(queries, "running") == 1).await?[0])?;
    clients.spawn(refused(ask(&node, ENDLESS, &[])));
    wait_listed(&node, |queries| in_state(queries, "waiting") == 1).await?;

    let response = ask(&node, "SELECT 1", &[]).send().await?;
    assert_eq!(response.status().as_u16(), 429);
    assert!(response.headers().contains_key("retry-after"));
    let error: Value = response.json().await?;
    assert_eq!((&error["error"]["code"], &error["error"]["budget"]), (&json!("throttled"), &json!("query.queue")));
    let failed = refused_flight(&node, "SELECT 1").await?;
    assert!(failed.contains("query.queue"), "{failed}");

    assert_eq!(kill(&node, &first, &[]).await?, 200);
    let left = wait_listed(&node, |queries| queries.len() == 1 && in_state(queries, "running") == 1).await?;
    let second = id(&left[0])?;
    assert_ne!(first, second);
    assert_eq!(kill(&node, &second, &[]).await?, 200);
    wait_listed(&node, |queries| queries.is_empty()).await?;
    assert_eq!(kill(&node, &second, &[]).await?, 404, "it has ended");
    assert_eq!(kill(&node, "nonsense", &[]).await?, 400);
    while let Some(client) = clients.join_next().await {
        let (status, error) = client??;
        assert_eq!((status, &error["code"]), (499, &json!("cancelled")), "{error}");
    }
    assert_eq!(node.number("SELECT 1").await?, 1);
    Ok(())
}

/// Scenario: queries that read more than they may, take longer than they may, and want more time than they may have.
/// Guarantees: each error names its budget and both numbers, over HTTP and Flight; rows that are not in data files, and
/// what statistics answer, cost nothing.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_time_are_budgets_with_names() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &["query.scan=2KiB", "query.deadline_max=60s"]).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let reading = "SELECT count(DISTINCT span_id), count(DISTINCT trace_id) FROM traces";
    send_batch(&node.http, &urls, 2000).await?;
    node.sql_json(reading).await?;
    node.flush().await?;
    assert_eq!(node.number("SELECT count(*) FROM traces").await?, 2000);
    let (status, error) = refused(ask(&node, reading, &[])).await?;
    assert_eq!((status, &error["budget"]), (422, &json!("query.scan")), "{error}");
    let message = error["message"].as_str().context("a message")?;
    assert!(message.contains("2.0 KiB") && message.matches("KiB").count() == 2, "{message}");
    let failed = refused_flight(&node, reading).await?;
    assert!(failed.contains("query.scan"), "{failed}");

    let (status, error) = refused(ask(&node, ENDLESS, &[("x-signaldb-deadline", "300ms")])).await?;
    assert_eq!((status, &error["budget"]), (504, &json!("query.deadline")), "{error}");
    assert!(error["message"].as_str().context("a message")?.contains("300ms"), "{error}");
    for (deadline, named) in [("61s", "query.deadline_max"), ("soon", "500ms")] {
        let (status, error) = refused(ask(&node, "SELECT 1", &[("x-signaldb-deadline", deadline)])).await?;
        assert_eq!(status, 400, "{error}");
        assert!(error["message"].as_str().context("a message")?.contains(named), "{error}");
    }
    wait_listed(&node, |queries| queries.is_empty()).await?;
    let metrics = node.http.get(node.url("/metrics")).send().await?.text().await?;
    for budget in ["query.scan", "query.deadline"] {
        let line = format!("signaldb_query_budget_exceeded_total{{budget=\"{budget}\"}} ");
        let counted = metrics.lines().find_map(|found| found.strip_prefix(line.as_str()));
        assert_ne!(counted.context("is counted")?, "0", "{budget}");
    }
    Ok(())
}

/// Scenario: a sort needs several times the memory that a query has; once it may spill, once it may not.
/// Guarantees: it spills, answers right and leaves no file behind; or it fails and names the budget.
#[tokio::test(flavor = "multi_thread")]
async fn what_memory_has_no_room_for_is_spilled() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let sorted = "SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY value % 1000003, value) AS n \
        FROM generate_series(1, 600000))";
    let mut node = Node::start(dir.path(), &["query.memory=6MiB"]).await?;
    assert_eq!(node.number(sorted).await?, 600_000);
    let analyzed = node.sql_json(&format!("EXPLAIN ANALYZE {sorted}")).await?.to_string();
    let counts = analyzed.split("spill_count=").skip(1);
    assert!(
        counts.clone().any(|rest| rest.starts_with(|digit: char| ('1'..='9').contains(&digit))),
        "nothing was spilled: {analyzed}"
    );
    let spill = dir.path().join("data/spill");
    let until = Instant::now() + DEADLINE;
    while spilled_files(&spill)? > 0 {
        anyhow::ensure!(Instant::now() < until, "spilled files stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What a crash leaves behind.
    node.kill()?;
    std::fs::create_dir_all(spill.join("datafusion-left"))?;
    std::fs::write(spill.join("datafusion-left/over"), "x")?;
    node.set("query.spill=64KiB");
    node.restart().await?;
    assert_eq!(spilled_files(&spill)?, 0, "files of before are gone");
    let (status, error) = refused(ask(&node, sorted, &[])).await?;
    assert_eq!((status, &error["code"]), (422, &json!("resources_exhausted")), "{error}");
    let budget = error["budget"].as_str().context("a budget")?;
    assert!(["query.spill", "query.memory"].contains(&budget), "{error}");
    assert_eq!(node.number("SELECT 1").await?, 1);
    Ok(())
}

/// Scenario: a node with little memory is asked twenty large aggregations at a time, while clients export.
/// Guarantees: it stays up; every query answers right, or is refused by an error that names a budget; exports are
/// acknowledged all the time, and every acknowledged span is there; nothing is left of the queries.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_large_aggregations_leave_a_node_up() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = ["memory.limit=256MiB", "query.tenant_concurrency=6", "query.queue=8", "query.deadline=120s"];
    let mut node = Node::start(dir.path(), &settings).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let mut acknowledged = Vec::new();
    for _ in 0..8 {
        let (body, ids) = batch(1000);
        send_until_acknowledged(&node.http, &urls, body).await?;
        acknowledged.extend(ids);
    }
    node.flush().await?;
    // Large in memory: a group for each row.
    let large = "SELECT count(*), max(c) FROM (SELECT t.trace_id, s.value, count(*) AS c \
        FROM traces t CROSS JOIN generate_series(1, 25) s GROUP BY t.trace_id, s.value)";
    let mut queries = JoinSet::new();
    for _ in 0..20 {
        queries.spawn(ask(&node, large, &[]).timeout(4 * DEADLINE).send());
    }
    let (mut answered, mut budgets) = (0, BTreeSet::new());
    while !queries.is_empty() {
        acknowledged.extend(send_batch(&node.http, &urls, 5).await?);
        let Some(response) = queries.try_join_next() else { continue };
        let response = response??;
        let status = response.status().as_u16();
        let body: Value = response.json().await?;
        match status {
            200 => {
                let groups = body["rows"][0][0].as_u64().context("a count")?;
                assert!(groups >= 25 * 8000 && groups % 25 == 0, "{body}");
                answered += 1;
            }
            422 | 429 | 504 => {
                budgets.insert(body["error"]["budget"].as_str().with_context(|| body.to_string())?.to_owned());
            }
            _ => anyhow::bail!("{status}: {body}"),
        }
    }
    println!("{answered} of 20 answered; the others ran into {budgets:?}");
    assert!(budgets.contains("query.queue"), "20 queries do not fit into 6 places and a line of 8: {budgets:?}");
    assert!(answered > 0, "nobody was answered: {budgets:?}");
    assert_eq!(node.exit_code()?, None);
    wait_listed(&node, |queries| queries.is_empty()).await?;
    assert_eq!(node.number("SELECT count(DISTINCT span_id) FROM traces").await?, i64::try_from(acknowledged.len())?);
    let gauges = ["signaldb_query_memory_bytes 0", "signaldb_query_spill_files 0", "signaldb_queries_running 0"];
    let until = Instant::now() + DEADLINE;
    loop {
        let metrics = node.http.get(node.url("/metrics")).send().await?.text().await?;
        if gauges.iter().all(|gauge| metrics.lines().any(|line| line == *gauge)) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "something is left: {metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const TENANTS: &str = r#"
[auth]
enabled = true
admin_key = "sk-admin"
[[auth.tenants]]
id = "acme"
[[auth.tenants.api_keys]]
key = "sk-acme"
[[auth.tenants]]
id = "other"
[[auth.tenants.api_keys]]
key = "sk-other"
"#;

/// Scenario: a tenant runs a query; another tenant and the administrator look for it and stop it.
/// Guarantees: to the other tenant it does not exist, in `system.queries` and the API; the administrator sees it, and
/// stops it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_and_stops_only_its_own_queries() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("signaldb.toml"), TENANTS)?;
    let node = Node::start(dir.path(), &[]).await?;
    let acme = [("authorization", "Bearer sk-acme"), ("x-tenant-id", "acme")];
    let other = [("authorization", "Bearer sk-other"), ("x-tenant-id", "other")];
    let admin = [("authorization", "Bearer sk-admin")];
    let mut client = JoinSet::new();
    client.spawn(refused(ask(&node, ENDLESS, &acme)));
    let until = Instant::now() + DEADLINE;
    let query = loop {
        if let Some(query) = listed(&node, &acme).await?.pop().filter(|query| query["state"] == "running") {
            break query;
        }
        anyhow::ensure!(Instant::now() < until, "the query does not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((&query["tenant"], &query["query"]), (&json!("acme"), &json!(ENDLESS)));
    let id = id(&query)?;
    assert_eq!(listed(&node, &other).await?, Vec::<Value>::new());
    assert_eq!(kill(&node, &id, &other).await?, 404);
    assert_eq!(listed(&node, &admin).await?.len(), 1);
    let seen = |headers: Vec<(&'static str, &'static str)>| {
        let request = ask(&node, "SELECT count(*) FROM system.queries WHERE tenant = 'acme'", &headers);
        async move {
            let body: Value = request.send().await?.error_for_status()?.json().await?;
            body["rows"][0][0].as_i64().context("a count")
        }
    };
    assert_eq!(seen(other.to_vec()).await?, 0);
    assert_eq!(seen(acme.to_vec()).await?, 2, "its own, and the one that asks");
    let all = [&other[..], &[("x-signaldb-admin-key", "sk-admin")]].concat();
    // The one that asked may still be ending.
    while seen(all.clone()).await? != 1 {
        anyhow::ensure!(Instant::now() < until, "the query that is over is listed still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let wrong = [&other[..], &[("x-signaldb-admin-key", "sk-acme")]].concat();
    assert_eq!(ask(&node, "SELECT 1", &wrong).send().await?.status().as_u16(), 403);
    assert_eq!(kill(&node, &id, &admin).await?, 200);
    let (status, error) = client.join_next().await.context("a client")???;
    assert_eq!((status, &error["code"]), (499, &json!("cancelled")), "{error}");
    Ok(())
}

/// Scenario: a query runs on one of three nodes; the others are asked for it, one stops it, and one goes away.
/// Guarantees: every node lists it with the node where it runs, stops it, and says which node does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn queries_of_all_nodes_are_listed_and_stopped_by_any() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let mut client = JoinSet::new();
    client.spawn(refused(ask(&cluster.nodes[0], ENDLESS, &[])));
    let queries = wait_listed(&cluster.nodes[1], |queries| in_state(queries, "running") == 1).await?;
    assert_eq!(queries[0]["node"], 1);
    let sql = "SELECT count(*) FROM system.queries WHERE node = 1 AND state = 'running' AND elapsed_ms > 0";
    assert_eq!(cluster.nodes[1].number(sql).await?, 1);
    assert_eq!(kill(&cluster.nodes[2], &id(&queries[0])?, &[]).await?, 200);
    let (status, error) = client.join_next().await.context("a client")???;
    assert_eq!((status, &error["code"]), (499, &json!("cancelled")), "{error}");
    for node in &cluster.nodes {
        wait_listed(node, |queries| queries.is_empty()).await?;
    }
    cluster.nodes[2].kill()?;
    let body: Value = cluster.http.get(cluster.nodes[0].url("/api/v1/queries")).send().await?.json().await?;
    assert_eq!(body["unreachable"], json!([3]), "{body}");
    let silent = "SELECT node FROM system.queries WHERE state = 'unreachable'";
    assert_eq!(cluster.nodes[0].number(silent).await?, 3);
    Ok(())
}
