use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::fixtures::{python, run_script};
use crate::node::{DEADLINE, Node, free_ports};
use crate::spans::{batch, compare, send_until_acknowledged};

const COUNT: &str = "SELECT count(*) FROM traces";
/// Longer than a request and its repeats may take before a flush reports the store as gone.
const OUTAGE_DEADLINE: Duration = Duration::from_secs(120);

/// moto: an S3 server that keeps everything in memory. Dropping it kills the process.
pub(crate) struct Bucket {
    server: Child,
    pub(crate) endpoint: String,
    http: reqwest::Client,
}

impl Bucket {
    /// Starts a server and makes the bucket `tables`.
    pub(crate) async fn start(python: &Path, dir: &Path) -> anyhow::Result<Self> {
        let port = free_ports()?[0];
        let log = File::create(dir.join("moto.log"))?;
        let mut command = Command::new(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let server = command.spawn().context("start moto")?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let mut bucket = Self { server, endpoint, http: reqwest::Client::new() };
        let until = Instant::now() + DEADLINE;
        loop {
            let made = bucket.http.put(format!("{}/tables", bucket.endpoint)).timeout(Duration::from_secs(5));
            if made.send().await.is_ok_and(|response| response.status().is_success()) {
                return Ok(bucket);
            }
            if let Some(status) = bucket.server.try_wait()? {
                let log = std::fs::read_to_string(dir.join("moto.log")).unwrap_or_default();
                anyhow::bail!("moto ended with {status}: {log}");
            }
            anyhow::ensure!(Instant::now() < until, "moto does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn settings(&self) -> Vec<String> {
        Self::settings_at(&self.endpoint)
    }

    /// Settings of a node that reaches the bucket by another way.
    pub(crate) fn settings_at(endpoint: &str) -> Vec<String> {
        let adapter = |setting: &str| format!("storage.adapters.local.{setting}");
        vec![
            adapter("type=s3"),
            adapter("url=s3://tables"),
            adapter("prefix=prod/signaldb"),
            adapter(&format!("options.endpoint={endpoint}")),
            adapter("options.allow_http=true"),
            adapter("options.region=us-east-1"),
            adapter("options.access_key_id=test"),
            adapter("options.secret_access_key=only-for-this-test"),
        ]
    }

    /// Stops the process where it is, or lets it go on: its connections stay open and get no answer meanwhile.
    fn signal(&self, name: &str) -> anyhow::Result<()> {
        let status =
            Command::new("kill").args([name, &self.server.id().to_string()]).status().context("send a signal")?;
        anyhow::ensure!(status.success(), "kill {name}: {status}");
        Ok(())
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Scenario: tables live in a bucket; a node writes, flushes, is asked, starts again and is asked again; PyIceberg reads
/// the tables from the bucket (`cluster-tests/python/tables_on_s3.py`). Then the server stops answering, under load, and
/// comes back.
/// Guarantees: every count is exact; nothing of the tables is on the node's disk; during the outage acknowledgments go on
/// and the node says that it is degraded; afterwards PyIceberg reads every span once.
#[tokio::test(flavor = "multi_thread")]
async fn tables_live_in_a_bucket_and_survive_its_outage() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let bucket = Bucket::start(&python, dir.path()).await?;
    let mut settings = bucket.settings();
    settings.extend(["flush.interval=200ms", "flush.max_interval=200ms"].map(str::to_owned));
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut node = Node::start(dir.path(), &settings).await?;
    let mut acknowledged = Vec::new();
    for spans in [1, 20, 300] {
        acknowledged.extend(export(&node, spans).await?);
        assert_eq!(node.number(COUNT).await?, acknowledged.len() as i64, "flushed or not");
    }
    node.flush().await?;
    assert_all(&node, &acknowledged).await?;
    node.kill()?;
    node.restart().await?;
    assert_all(&node, &acknowledged).await?;
    assert!(!dir.path().join("data/storage").exists(), "the tables are in the bucket");
    pyiceberg(&python, &bucket, &node, acknowledged.len())?;

    bucket.signal("-STOP")?;
    acknowledged.extend(export(&node, 5).await?);
    let reason = wait_degraded(&node, true).await?;
    assert!(reason.contains("s3://tables/prod/signaldb"), "says what does not answer: {reason}");
    assert!(!reason.contains("only-for-this-test"), "secrets are hidden: {reason}");
    acknowledged.extend(export(&node, 5).await?);
    bucket.signal("-CONT")?;
    wait_degraded(&node, false).await?;
    node.flush().await?;
    assert_all(&node, &acknowledged).await?;
    let in_iceberg = "SELECT sum(added_records) FROM system.flushes WHERE \"table\" = 'traces'";
    assert_eq!(node.number(in_iceberg).await?, acknowledged.len() as i64);
    pyiceberg(&python, &bucket, &node, acknowledged.len())
}

/// Scenario: a node starts while its bucket does not answer, writes, and the bucket comes back.
/// Guarantees: it is ready without the bucket; every row is in it once afterwards, under the cluster's identity.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_without_its_bucket() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let bucket = Bucket::start(&python, dir.path()).await?;
    bucket.signal("-STOP")?;
    let settings = bucket.settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let node = Node::start(dir.path(), &settings).await?;
    let acknowledged = export(&node, 7).await?;
    bucket.signal("-CONT")?;
    let until = Instant::now() + OUTAGE_DEADLINE;
    // Requests that hang since before may still run into their timeout.
    while let Err(error) = node.flush().await {
        anyhow::ensure!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_all(&node, &acknowledged).await?;
    pyiceberg(&python, &bucket, &node, acknowledged.len())
}

async fn export(node: &Node, spans: usize) -> anyhow::Result<Vec<String>> {
    let (body, ids) = batch(spans);
    send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body).await?;
    Ok(ids)
}

async fn assert_all(node: &Node, acknowledged: &[String]) -> anyhow::Result<()> {
    assert_eq!(node.number(COUNT).await?, acknowledged.len() as i64);
    assert_eq!(compare(acknowledged, &node.span_ids().await?), (vec![], vec![]));
    Ok(())
}

/// Waits until the node says that it is degraded, or no more; returns what it says.
async fn wait_degraded(node: &Node, wanted: bool) -> anyhow::Result<String> {
    let until = Instant::now() + OUTAGE_DEADLINE;
    loop {
        let response = node.http.get(node.url("/ready")).send().await?;
        anyhow::ensure!(response.status().is_success(), "the node can acknowledge writes");
        let body: Value = response.json().await?;
        if body["degraded"].as_array().is_some_and(|degraded| degraded.is_empty() != wanted) {
            return Ok(body["degraded"].to_string());
        }
        anyhow::ensure!(Instant::now() < until, "degraded never became {wanted}: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads the tables without the node's help.
fn pyiceberg(python: &Path, bucket: &Bucket, node: &Node, spans: usize) -> anyhow::Result<()> {
    let environment = [
        ("SIGNALDB_CATALOG", format!("sqlite:///{}", node.dir.join("data/catalog.db").display())),
        ("S3_ENDPOINT", bucket.endpoint.clone()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("SPANS", spans.to_string()),
    ];
    run_script(python, "tables_on_s3.py", &environment, "the tables agree").map(drop)
}
