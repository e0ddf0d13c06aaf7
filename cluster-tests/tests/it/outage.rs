//! A catalog that is down for long, under load: the log is the budget, not memory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use signaldb_catalog::test_postgres::Server;
use tokio::task::JoinSet;

use crate::node::{DEADLINE, Node, scale};
use crate::spans::{batch, compare, log_record, now_nanos};

/// Memtables have an eighth of this: 16 MiB.
const MEMORY: &str = "memory.limit=128MiB";
const MEMTABLES: f64 = (16 << 20) as f64;
/// In memory the rows of so much log would take several times what memtables may.
const LOG_BUDGET: usize = 6 << 20;
const CLIENTS: usize = 4;
const SPANS: usize = 100;
/// Catching up is bound by the machine.
const CATCH_UP: Duration = Duration::from_secs(300);

/// Somebody else's lock on a SQLite catalog: it can be read, and no commit gets through. Dropping it ends it.
pub(crate) struct CatalogLock {
    locker: Child,
    until: Option<ChildStdin>,
}

impl CatalogLock {
    pub(crate) fn take(catalog: &Path) -> anyhow::Result<Self> {
        const LOCK: &str = "import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
c.execute('BEGIN EXCLUSIVE')
print('locked', flush=True)
sys.stdin.read()
c.execute('ROLLBACK')";
        let mut command = Command::new("python3");
        command.args(["-c", LOCK]).arg(catalog).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut locker = command.spawn().context("start python3")?;
        let (until, said) = (locker.stdin.take(), locker.stdout.take().context("piped")?);
        let lock = Self { locker, until };
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        ensure!(line.trim() == "locked", "the catalog was not locked");
        Ok(lock)
    }

    pub(crate) fn release(mut self) -> anyhow::Result<()> {
        drop(self.until.take());
        ensure!(self.locker.wait()?.success(), "the lock was not released");
        Ok(())
    }
}

impl Drop for CatalogLock {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.locker.kill();
        let _ = self.locker.wait();
    }
}

/// Where a node's catalog is.
enum Catalog {
    Sqlite { file: PathBuf, lock: Option<CatalogLock> },
    Postgres(Server),
}

impl Catalog {
    fn sqlite(dir: &Path) -> Self {
        Self::Sqlite { file: dir.join("catalog.db"), lock: None }
    }

    fn setting(&self) -> String {
        match self {
            Self::Sqlite { file, .. } => format!("schema.catalog_uri=sqlite://{}", file.display()),
            Self::Postgres(server) => format!("schema.catalog_uri={}", server.address()),
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Sqlite { file, lock } => *lock = Some(CatalogLock::take(file)?),
            Self::Postgres(server) => server.stop()?,
        }
        Ok(())
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Sqlite { lock, .. } => lock.take().map_or(Ok(()), CatalogLock::release),
            Self::Postgres(server) => Ok(server.start_again()?),
        }
    }
}

/// Scenario: a SQLite catalog is locked by somebody else under load, until the log's budget is used, and is let go.
/// Guarantees: see [`outage_until_the_budget_is_used`].
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_catalog_costs_nothing_before_the_logs_budget_is_used() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    outage_until_the_budget_is_used(dir.path(), Catalog::sqlite(dir.path()), false).await
}

/// Scenario: PostgreSQL crashes under load, and is back after the log's budget is used; the node is killed before it has
/// caught up.
/// Guarantees: see [`outage_until_the_budget_is_used`].
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_postgres_costs_nothing_before_the_logs_budget_is_used() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    outage_until_the_budget_is_used(dir.path(), Catalog::Postgres(Server::start()?), true).await
}

/// Guarantees: no write is refused before the log's budget is used, although memory is long used up; afterwards
/// refusals are 429 with a hint; a strong query is 503 `backlog`, and says how much waits, instead of an answer without the
/// newest rows, an eventual one is partial and says so, and a table of the same group without such rows is answered; memory
/// stays bounded.
/// Once the catalog is back, also after `kill -9`, all that was acknowledged is in Iceberg once, nothing else is, and writes
/// are taken.
async fn outage_until_the_budget_is_used(dir: &Path, mut catalog: Catalog, kill: bool) -> anyhow::Result<()> {
    let budget = LOG_BUDGET * scale();
    let (at, limit) = (catalog.setting(), format!("wal.max_unflushed={budget}"));
    let settings =
        [MEMORY, &limit, &at, "flush.interval=500ms", "flush.max_interval=500ms", "compaction.enabled=false"];
    let mut node = Node::start(dir, &settings).await?;
    let mut acknowledged = export(&node, 1).await?;
    let logged = post(&node.http, &node.otlp_http("/v1/logs"), log_record(now_nanos())).await?;
    ensure!(logged.status().is_success(), "refused: {}", logged.status());
    node.flush().await?;
    catalog.stop()?;
    acknowledged.extend(export(&node, 1).await?);
    wait_degraded(&node).await?;

    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(export_until_refused(
            node.http.clone(),
            node.otlp_http("/v1/traces"),
            node.url("/metrics"),
            budget,
        ));
    }
    while let Some(ids) = clients.join_next().await {
        acknowledged.extend(ids??);
    }
    let backlog = metric(&node.http, &node.url("/metrics"), "signaldb_unflushed_backlog_bytes").await?;
    assert!(backlog > MEMTABLES / 2.0, "memory alone would have been enough: {backlog} more bytes");
    let held = metric(&node.http, &node.url("/metrics"), "signaldb_unflushed_bytes").await?;
    assert!(held < 2.0 * MEMTABLES, "memory is bounded: {held}");
    let ready = node.http.get(node.url("/ready")).send().await?;
    assert!(ready.status().is_success(), "the node is there");
    answers_beside_the_backlog(&node, acknowledged.len()).await?;

    catalog.go_on()?;
    if kill {
        node.kill()?;
        node.restart().await?;
    }
    caught_up(&node, acknowledged).await
}

/// What queries are told while rows wait in the log.
async fn answers_beside_the_backlog(node: &Node, acknowledged: usize) -> anyhow::Result<()> {
    let query = json!({"query": "SELECT count(*) FROM traces"});
    let strong = node.http.post(node.url("/api/v1/sql")).json(&query).send().await?;
    assert_eq!(strong.status(), 503, "no answer is better than one without the newest rows");
    assert!(strong.headers().contains_key("retry-after"), "no hint when to come again");
    let error = strong.json::<Value>().await?["error"].take();
    assert_eq!(error["code"], "backlog", "{error}");
    let (message, hint) = (error["message"].as_str().context("a message")?, error["hint"].as_str().context("a hint")?);
    let mut numbers = message.split(' ').filter_map(|word| word.parse::<f64>().ok());
    assert!(
        message.contains("wait in the log") && numbers.next().is_some_and(|bytes| bytes > MEMTABLES / 2.0),
        "{error}"
    );
    assert!(hint.contains("?consistency=eventual"), "{error}");

    let eventual = node.http.post(node.url("/api/v1/sql?consistency=eventual")).json(&query).send().await?;
    assert_eq!(eventual.status(), 200);
    assert!(eventual.headers().contains_key("x-signaldb-missing-groups"), "the answer is not whole");
    let answer: Value = eventual.json().await?;
    assert_eq!(answer["stats"]["partial"], true, "{answer}");
    let counted = answer["rows"][0][0].as_u64().context("a number")? as usize;
    assert!((1..acknowledged).contains(&counted), "{counted} of {acknowledged}: what is in Iceberg and in memory");
    assert_eq!(node.number("SELECT count(*) FROM logs").await?, 1, "nothing of this table waits");
    Ok(())
}

/// Scenario: the catalog is down for ten minutes under a load that the node can bear; memory is small, the disk the budget.
/// Guarantees: every write is acknowledged; afterwards each is in Iceberg once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a quarter of an hour: cargo test -p signaldb-cluster-tests ten_minutes -- --ignored"]
async fn ten_minutes_without_the_catalog_under_load_refuse_and_lose_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut catalog = Catalog::Postgres(Server::start()?);
    let (at, memory) = (catalog.setting(), "memory.limit=256MiB");
    let node = Node::start(dir.path(), &[memory, &at, "flush.max_interval=30s"]).await?;
    let mut acknowledged = export(&node, SPANS).await?;
    node.flush().await?;
    catalog.stop()?;
    let until = Instant::now() + Duration::from_secs(600);
    // About 500 spans a second: many times what memory holds.
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    while Instant::now() < until {
        tick.tick().await;
        let sent = export(&node, SPANS).await;
        acknowledged.extend(sent.context("every write is acknowledged")?);
    }
    catalog.go_on()?;
    caught_up(&node, acknowledged).await
}

/// Waits until the log is flushed; then everything is there once, in Iceberg, and writes are taken.
async fn caught_up(node: &Node, mut acknowledged: Vec<String>) -> anyhow::Result<()> {
    let until = Instant::now() + CATCH_UP;
    while metric(&node.http, &node.url("/metrics"), "signaldb_unflushed_log_bytes").await? > 0.0 {
        ensure!(Instant::now() < until, "the node does not catch up: {:?}", node.log()?.lines().last());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let in_iceberg = "SELECT sum(added_records) FROM system.flushes WHERE \"table\" = 'traces'";
    assert_eq!(node.number(in_iceberg).await?, acknowledged.len() as i64, "what was refused was not written");
    acknowledged.extend(export(node, SPANS).await?);
    // Not sorted: that takes memory of its own, for each core.
    let rows = node.sql_json("SELECT span_id FROM traces").await?["rows"].take();
    let rows = rows.as_array().context("rows")?;
    let found: Vec<String> = rows.iter().filter_map(|row| row[0].as_str().map(str::to_owned)).collect();
    assert_eq!(compare(&acknowledged, &found), (vec![], vec![]));
    assert_eq!(found.len(), acknowledged.len());
    Ok(())
}

/// Exports new spans, which must be acknowledged; returns their ids.
async fn export(node: &Node, spans: usize) -> anyhow::Result<Vec<String>> {
    let (body, ids) = batch(spans);
    let response = post(&node.http, &node.otlp_http("/v1/traces"), body).await?;
    ensure!(response.status().is_success(), "refused: {}", response.status());
    Ok(ids)
}

/// Exports without pause until a request is refused; returns the ids of what was acknowledged before.
async fn export_until_refused(
    http: reqwest::Client,
    url: String,
    metrics: String,
    budget: usize,
) -> anyhow::Result<Vec<String>> {
    let mut acknowledged = Vec::new();
    let until = Instant::now() + CATCH_UP;
    while Instant::now() < until {
        let (body, ids) = batch(SPANS);
        let response = post(&http, &url, body).await?;
        if response.status().is_success() {
            acknowledged.extend(ids);
            continue;
        }
        let used = metric(&http, &metrics, "signaldb_unflushed_log_bytes").await?;
        ensure!(used >= budget as f64, "{} although only {used} of {budget} bytes are used", response.status());
        ensure!(response.status() == 429, "{} is not what a client slows down for", response.status());
        ensure!(response.headers().contains_key("retry-after"), "no hint when to come again");
        return Ok(acknowledged);
    }
    bail!("the log's budget was never used")
}

async fn post(http: &reqwest::Client, url: &str, body: bytes::Bytes) -> anyhow::Result<reqwest::Response> {
    let request = http.post(url).header("content-type", "application/x-protobuf").timeout(DEADLINE).body(body);
    request.send().await.context("export")
}

async fn wait_degraded(node: &Node) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        let body: Value = node.http.get(node.url("/ready")).send().await?.json().await?;
        if body["degraded"].as_array().is_some_and(|degraded| !degraded.is_empty()) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the node does not notice: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The sum of a metric's series.
pub(crate) async fn metric(http: &reqwest::Client, url: &str, name: &str) -> anyhow::Result<f64> {
    let text = http.get(url).send().await?.error_for_status()?.text().await?;
    let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let values = text.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    let values: Vec<f64> = values.collect();
    ensure!(!values.is_empty(), "there is no metric {name}");
    Ok(values.into_iter().sum())
}
