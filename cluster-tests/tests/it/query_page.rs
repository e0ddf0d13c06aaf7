use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::fixtures::python;
use crate::node::{Node, binary};
use crate::spans::now_nanos;
use crate::sql_shell::sql;

const PAGE: &str = include_str!("../../../docs/query.md");
/// What stands in the page for what a reader's tables have.
const SNAPSHOT: &str = "6046215231284301312";
const MOMENT: &str = "2026-01-02T03:04:05Z";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Scenario: a shop's spans, logs and metrics, part of them flushed; then every example of `docs/query.md`: each SQL statement
/// through `signaldb sql`, each shell command and each Python program.
/// Guarantees: none fails, and each answers something.
#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_the_page_about_queries_runs() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    for (path, body) in [("/v1/traces", spans()), ("/v1/logs", logs()), ("/v1/metrics", metrics())] {
        send(&node, path, &body).await?;
    }
    node.flush().await?;
    let newest = "SELECT snapshot_id, committed_at FROM system.snapshots WHERE \"table\" = 'traces'";
    let newest = node.sql_json(newest).await?["rows"][0].clone();
    let moment = newest[1].as_str().context("a time")?;
    let later = span("11111111111111111111111111111111", "2222222222222222", "", "GET /later", 1, 5, &[]);
    send(&node, "/v1/traces", &resource_spans(&[("frontend", vec![later])])).await?;

    let statements = blocks("sql").into_iter().flat_map(|block| statements(&block)).collect::<Vec<_>>();
    assert!(statements.len() > 30, "the page lost its examples: {statements:?}");
    for statement in statements {
        let statement = statement.replace(SNAPSHOT, &newest[0].to_string()).replace(MOMENT, moment);
        // Behind `--`: a comment at its head is no option.
        let said = sql(&node, &["--format", "ndjson", "--", &statement], "")?;
        ensure!(said.code == Some(0) && !said.out.trim().is_empty(), "{statement}\n{said:?}");
    }
    let tools = tempfile::tempdir()?;
    std::os::unix::fs::symlink(std::path::absolute(binary()?)?, tools.path().join("signaldb"))?;
    for block in blocks("sh") {
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &here(&node, &block)]);
        run(&node, bash, tools.path()).with_context(|| block.clone())?;
    }
    let Some(python) = python()? else { return Ok(()) };
    for block in blocks("python") {
        let mut program = Command::new(&python);
        program.args(["-c", &here(&node, &block)]);
        run(&node, program, tools.path()).with_context(|| block.clone())?;
    }
    Ok(())
}

/// The addresses of the page are those of a node on its usual ports.
fn here(node: &Node, block: &str) -> String {
    let flight = node.flight().replace("http://", "grpc://");
    block.replace("http://127.0.0.1:3000", &node.url("")).replace("grpc://127.0.0.1:50053", &flight)
}

/// Runs a program in a directory of its own; it must end well and say something that is no error.
fn run(node: &Node, mut program: Command, tools: &Path) -> anyhow::Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    program
        .current_dir(tools)
        .env("PATH", format!("{}:{path}", tools.display()))
        .env("SIGNALDB_ENDPOINT", node.url(""));
    let output = program.output().context("run a program")?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && !out.trim().is_empty() && !out.contains("{\"error\""), "{out}{error}");
    Ok(())
}

/// The blocks of the page in a language.
fn blocks(language: &str) -> Vec<String> {
    let open = format!("```{language}\n");
    PAGE.split(&open).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect()
}

/// In the page every statement ends at the end of a line, and nothing else of a block does with `;`.
fn statements(block: &str) -> Vec<String> {
    block.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
}

async fn send(node: &Node, path: &str, body: &Value) -> anyhow::Result<()> {
    let sent = node.http.post(node.otlp_http(path)).json(body).send().await?;
    let status = sent.status();
    ensure!(status.is_success(), "{path}: {status}: {}", sent.text().await?);
    Ok(())
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn int(key: &str, value: i64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

fn double(key: &str, value: f64) -> Value {
    json!({"key": key, "value": {"doubleValue": value}})
}

fn resource(service: &str) -> Value {
    let id = format!("{service}-1");
    let instance = text("service.instance.id", &id);
    json!({"attributes": [text("service.name", service), instance, text("deployment.environment.name", "production")]})
}

/// Nanoseconds of some time ago.
fn ago(millis: u64) -> String {
    (now_nanos() - millis * 1_000_000).to_string()
}

/// A server span that began `begin` milliseconds ago, and lasted some.
fn span(trace: &str, id: &str, parent: &str, name: &str, begin: u64, lasted: u64, attributes: &[Value]) -> Value {
    let failed = attributes.contains(&int("http.response.status_code", 500));
    json!({
        "traceId": trace, "spanId": id, "parentSpanId": parent, "name": name, "kind": 2, "attributes": attributes,
        "startTimeUnixNano": ago(begin), "endTimeUnixNano": ago(begin.saturating_sub(lasted)),
        "status": {"code": if failed { 2 } else { 0 }},
    })
}

fn resource_spans(services: &[(&str, Vec<Value>)]) -> Value {
    let of = |(service, spans): &(&str, Vec<Value>)| json!({"resource": resource(service), "scopeSpans": [{"spans": spans}]});
    json!({"resourceSpans": services.iter().map(of).collect::<Vec<_>>()})
}

/// A payment that failed, and twenty carts.
fn spans() -> Value {
    let failed = int("http.response.status_code", 500);
    let pay = [text("http.route", "/pay"), failed.clone(), text("tenant.plan", "gold"), double("cart.total", 9.5)];
    let mut frontend = vec![span(TRACE, "00f067aa0ba902b7", "", "GET /pay", 60_000, 420, &pay)];
    for n in 0..20u32 {
        let plan = if n % 4 == 0 { "gold" } else { "free" };
        let cart = [text("http.route", "/cart"), text("tenant.plan", plan), double("cart.total", f64::from(n) * 1.5)];
        let (trace, id) = (format!("{:032x}", n + 1), format!("{:016x}", n + 100));
        frontend.push(span(&trace, &id, "", "GET /cart", 30_000 + u64::from(n), 10 + u64::from(n), &cart));
    }
    let charge = [text("http.route", "/charge"), failed];
    let mut payment = span(TRACE, "00f067aa0ba902b9", "00f067aa0ba902b7", "POST /charge", 59_900, 300, &charge);
    let attributes = [text("exception.type", "CardDeclined"), text("exception.message", "no funds")];
    payment["events"] = json!([{"timeUnixNano": ago(59_800), "name": "exception", "attributes": attributes}]);
    resource_spans(&[("frontend", frontend), ("payment", vec![payment])])
}

fn logs() -> Value {
    let record = |millis, number: u32, severity: &str, body: String| {
        json!({
            "timeUnixNano": ago(millis), "severityNumber": number, "severityText": severity,
            "body": {"stringValue": body}, "attributes": [int("order.id", 4711)],
        })
    };
    let mut declined = record(59_700, 17, "ERROR", "card of order 4711 was declined: no funds".to_owned());
    declined["traceId"] = TRACE.into();
    declined["spanId"] = "00f067aa0ba902b9".into();
    let paid = (0..10).map(|n| record(20_000 + n * 500, 9, "INFO", format!("order {n} was paid")));
    let records: Vec<Value> = paid.chain([declined]).collect();
    json!({"resourceLogs": [{"resource": resource("payment"), "scopeLogs": [{"logRecords": records}]}]})
}

fn metrics() -> Value {
    let points = |value: &dyn Fn(u64) -> Value| -> Vec<Value> {
        let point = |n: u64| {
            let mut point = value(n);
            point["timeUnixNano"] = ago(60_000 - n * 10_000).into();
            point["attributes"] = json!([text("http.route", "/charge"), text("queue", "orders")]);
            point
        };
        (0..6).map(point).collect()
    };
    let histogram = |n: u64| {
        let buckets = [60 + 5 * n, 30 + 4 * n, 10 + n].map(|count| count.to_string());
        let (count, sum) = ((100 + 10 * n).to_string(), 12.5);
        json!({"count": count, "sum": sum, "bucketCounts": buckets, "explicitBounds": [0.1, 0.5]})
    };
    let lengths = points(&|n| json!({"asInt": (5 + n).to_string()}));
    let requests = points(&|n| json!({"asInt": (1000 + 37 * n).to_string()}));
    let metrics = json!([
        {"name": "queue.length", "gauge": {"dataPoints": lengths}},
        {"name": "http.server.requests",
         "sum": {"aggregationTemporality": 2, "isMonotonic": true, "dataPoints": requests}},
        {"name": "http.server.request.duration", "unit": "s",
         "histogram": {"aggregationTemporality": 2, "dataPoints": points(&histogram)}},
    ]);
    json!({"resourceMetrics": [{"resource": resource("payment"), "scopeMetrics": [{"metrics": metrics}]}]})
}
