use std::path::Path;

use anyhow::Context;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::fixtures::{python, run_script};
use crate::node::Node;
use crate::spans::batch;

const CONFIG: &str = r#"
[auth]
enabled = true
[[auth.tenants]]
id = "acme"
default_dataset = "production"
[[auth.tenants.api_keys]]
key = "sk-acme"
[[auth.tenants]]
id = "other"
default_dataset = "main"
[[auth.tenants.api_keys]]
key = "sk-other"
"#;

/// A node with two tenants, three flushed spans of `acme` and two of `other`.
async fn start(dir: &Path) -> anyhow::Result<(Node, Vec<String>)> {
    // Read because it lies in the node's working directory.
    std::fs::write(dir.join("signaldb.toml"), CONFIG)?;
    let node = Node::start(dir, &[]).await?;
    let mut ids = Vec::new();
    for (tenant, spans) in [("acme", 3), ("other", 2)] {
        let (body, sent) = batch(spans);
        let export = signed(node.http.post(node.otlp_http("/v1/traces")), tenant);
        export.header("content-type", "application/x-protobuf").body(body).send().await?.error_for_status()?;
        signed(node.http.post(node.url("/api/v1/admin/flush")), tenant).send().await?.error_for_status()?;
        if tenant == "acme" {
            ids = sent;
        }
    }
    Ok((node, ids))
}

fn signed(request: RequestBuilder, tenant: &str) -> RequestBuilder {
    request.bearer_auth(format!("sk-{tenant}")).header("x-tenant-id", tenant)
}

/// What the catalog answers to `acme`.
async fn ask(node: &Node, method: Method, path: &str) -> anyhow::Result<(u16, Value)> {
    let request = signed(node.http.request(method, node.url(&format!("/iceberg/v1{path}"))), "acme");
    let response = request.send().await?;
    let (status, body) = (response.status().as_u16(), response.text().await?);
    let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).context(body)? };
    Ok((status, body))
}

/// Scenario: two tenants with flushed tables; one of them asks the REST catalog for everything, in pages, for what is the
/// other's, and to change things; somebody asks without or with a wrong key.
/// Guarantees: a tenant sees its namespaces and no others, and cannot tell the others' from those that do not exist; what
/// writes is refused as read-only; every error has the form that Iceberg's clients read.
#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_shows_a_tenant_its_own_and_changes_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (node, _) = start(dir.path()).await?;
    let get = async |path: &str| ask(&node, Method::GET, path).await;
    let (status, config) = get("/config?warehouse=anything").await?;
    assert_eq!((status, &config["overrides"]), (200, &json!({})), "{config}");
    assert_eq!(get("/namespaces").await?, (200, json!({"namespaces": [["acme"]]})));
    assert_eq!(get("/namespaces?parent=acme").await?, (200, json!({"namespaces": [["acme", "production"]]})));
    assert_eq!(get("/namespaces?parent=acme%1Fproduction").await?, (200, json!({"namespaces": []})));
    let (_, namespace) = get("/namespaces/acme%1Fproduction").await?;
    assert_eq!(namespace["namespace"], json!(["acme", "production"]));
    let (status, table) = get("/namespaces/acme%1Fproduction/tables/traces").await?;
    assert_eq!(status, 200, "{table}");
    assert_eq!(table["metadata"]["current-snapshot-id"], table["metadata"]["refs"]["main"]["snapshot-id"]);
    let (_, dotted) = get("/namespaces/acme.production/tables/traces?snapshots=refs").await?;
    assert_eq!(dotted["metadata-location"], table["metadata-location"]);

    let mut pages = Vec::new();
    let mut token = Some(String::new());
    while let Some(at) = token {
        let path = format!("/namespaces/acme%1Fproduction/tables?pageSize=3&pageToken={at}");
        let (status, page) = get(&path).await?;
        assert_eq!(status, 200, "{page}");
        let names = page["identifiers"].as_array().context("a list")?;
        pages.extend(names.iter().filter_map(|name| name["name"].as_str().map(str::to_owned)));
        token = page["next-page-token"].as_str().map(str::to_owned);
    }
    assert!(pages.contains(&"traces".to_owned()) && pages.is_sorted(), "{pages:?}");

    let kinds = [("other%1Fmain", "nobody%1Fmain"), ("other", "nobody")];
    for (foreign, absent) in kinds {
        for path in ["", "/tables", "/tables/traces"] {
            let (status, body) = get(&format!("/namespaces/{foreign}{path}")).await?;
            let (same_status, same) = get(&format!("/namespaces/{absent}{path}")).await?;
            assert_eq!((status, &body["error"]["type"]), (404, &json!("NoSuchNamespaceException")), "{body}");
            assert_eq!(status, same_status);
            assert_eq!(body.to_string().replace("other", "nobody"), same.to_string());
        }
    }
    assert_eq!(get("/namespaces?parent=other").await?.0, 404);
    let (status, missing) = get("/namespaces/acme%1Fproduction/tables/nope").await?;
    assert_eq!((status, &missing["error"]["type"]), (404, &json!("NoSuchTableException")));
    for (path, status) in [("/tables/traces", 204), ("/tables/nope", 404), ("", 204)] {
        let path = format!("/namespaces/acme%1Fproduction{path}");
        assert_eq!(ask(&node, Method::HEAD, &path).await?, (status, Value::Null), "{path}");
    }

    for (method, path) in [
        (Method::POST, "/namespaces"),
        (Method::DELETE, "/namespaces/acme%1Fproduction"),
        (Method::POST, "/namespaces/acme%1Fproduction/properties"),
        (Method::POST, "/namespaces/acme%1Fproduction/tables"),
        (Method::POST, "/namespaces/acme%1Fproduction/tables/traces"),
        (Method::DELETE, "/namespaces/acme%1Fproduction/tables/traces"),
        (Method::POST, "/namespaces/acme%1Fproduction/register"),
        (Method::POST, "/tables/rename"),
        (Method::POST, "/transactions/commit"),
    ] {
        let (status, body) = ask(&node, method.clone(), path).await?;
        let error = &body["error"];
        assert_eq!((status, error["code"].as_i64()), (403, Some(403)), "{method} {path}: {body}");
        assert_eq!(error["type"], "ForbiddenException");
        assert!(error["message"].as_str().is_some_and(|text| text.contains("read-only")), "{body}");
    }
    let metrics = "/namespaces/acme%1Fproduction/tables/traces/metrics";
    assert_eq!(ask(&node, Method::POST, metrics).await?, (204, Value::Null));

    for (key, expected) in [(None, (400, "BadRequestException")), (Some("sk-nobody"), (401, "NotAuthorizedException"))]
    {
        let mut request = node.http.get(node.url("/iceberg/v1/namespaces")).header("x-tenant-id", "acme");
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let body: Value = response.json().await?;
        assert_eq!((status, body["error"]["type"].as_str()), (expected.0, Some(expected.1)), "{body}");
    }
    let foreign = json!({"query": "SELECT * FROM table_at('main.traces', now())"});
    let response = signed(node.http.post(node.url("/api/v1/sql")), "acme").json(&foreign).send().await?;
    assert!(response.text().await?.contains("table 'main.traces' not found"));
    Ok(())
}

/// Scenario: PyIceberg opens the tables through the REST catalog as either tenant, and tries to write
/// (`cluster-tests/python/iceberg_rest.py`).
/// Guarantees: it reads every span once, refuses to write before it sends anything, and does not find the other tenant.
#[tokio::test(flavor = "multi_thread")]
async fn pyiceberg_reads_through_the_rest_catalog() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (node, ids) = start(dir.path()).await?;
    let environment = [("REST", node.url("/iceberg")), ("SPANS", ids.join(","))];
    run_script(&python, "iceberg_rest.py", &environment, "the REST catalog agrees").map(drop)
}

/// Scenario: DuckDB attaches the REST catalog, makes the view that the node generates over the table, and over a data file,
/// and reads it (`cluster-tests/python/duckdb_view.py`).
/// Guarantees: ids, attributes and promoted attributes are those of SignalDB's SQL, row by row.
#[tokio::test(flavor = "multi_thread")]
async fn duckdb_shows_the_same_logical_view() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (node, _) = start(dir.path()).await?;
    run_script(&python, "duckdb_view.py", &[("SIGNALDB", node.url(""))], "the views agree").map(drop)
}

/// Scenario: requests of every shape and with every odd value (`cluster-tests/python/columns.py`): integers at their limits,
/// NaN and -0.0, texts of 100 bytes and of zero bytes, nested lists, repeated keys, values that do not fit their promoted
/// columns, times from 1970 to 2554. They are read before and after the flush, by PyIceberg and DuckDB too.
/// Guarantees: every column of all seven tables shows the same values, row by row.
#[tokio::test(flavor = "multi_thread")]
async fn pyiceberg_and_duckdb_agree_on_every_column() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (node, _) = start(dir.path()).await?;
    let environment = [("SIGNALDB", node.url("")), ("OTLP", node.otlp_http(""))];
    run_script(&python, "columns.py", &environment, "every column agrees").map(drop)
}

/// Scenario: a data file of two row groups; the greatest texts have 100 bytes, one of them of characters after which none
/// comes, and are in one row group only (`cluster-tests/python/predicates.py`).
/// Guarantees: PyIceberg's predicates, which skip files by the manifests' bounds, and ours hide no row.
#[tokio::test(flavor = "multi_thread")]
async fn bounds_hide_no_row_from_predicates() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    // One flush, so that it is one file.
    let settings = ["flush.interval=10m", "flush.max_bytes=1GiB", "compaction.enabled=false"];
    let node = Node::start(dir.path(), &settings).await?;
    let environment = [("SIGNALDB", node.url("")), ("OTLP", node.otlp_http(""))];
    run_script(&python, "predicates.py", &environment, "every row comes").map(drop)
}
