//! A bucket whose server fails in every way that it can (`cluster-tests/python/faulty_s3.py`).

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use prost::Message;
use serde_json::{Value, json};

use crate::fixtures::python;
use crate::node::{DEADLINE, Node, free_ports};
use crate::object_store::Bucket;
use crate::outage::metric;
use crate::spans::{batch, compare, hex, request, send_until_acknowledged, span, text};

/// Shorter than `LATE_SECONDS` of the proxy.
const TIMEOUT: &str = "storage.adapters.local.options.timeout=2s";
/// A request and its repeats, and a flush that is tried again after them.
const FLUSH_DEADLINE: Duration = Duration::from_secs(120);
const COUNT: &str = "SELECT count(*) FROM traces";
const IN_ICEBERG: &str = "SELECT sum(added_records) FROM system.flushes WHERE \"table\" = 'traces'";

/// What goes wrong: method, part of the path, how, how often.
type Fault = (&'static str, &'static str, &'static str, u32);

/// The proxy. Dropping it kills the process.
struct Faults {
    proxy: Child,
    endpoint: String,
    http: reqwest::Client,
}

impl Faults {
    async fn start(python: &Path, bucket: &Bucket) -> anyhow::Result<Self> {
        let port = free_ports()?[0].to_string();
        let server_port = bucket.endpoint.rsplit(':').next().context("a port")?;
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/faulty_s3.py")).arg(&port).arg(server_port);
        let proxy = command.stdin(Stdio::null()).spawn().context("start the proxy")?;
        let faults = Self { proxy, endpoint: format!("http://127.0.0.1:{port}"), http: reqwest::Client::new() };
        let until = Instant::now() + DEADLINE;
        while faults.left().await.is_err() {
            ensure!(Instant::now() < until, "the proxy does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(faults)
    }

    fn url(&self) -> String {
        format!("{}/_faults", self.endpoint)
    }

    async fn set(&self, faults: &[Fault]) -> anyhow::Result<()> {
        let fault = |(method, contains, fault, times): &Fault| json!({"method": method, "contains": contains, "fault": fault, "times": times});
        let faults: Vec<Value> = faults.iter().map(fault).collect();
        self.http.put(self.url()).json(&faults).send().await?.error_for_status()?;
        Ok(())
    }

    /// What did not happen yet.
    async fn left(&self) -> anyhow::Result<Value> {
        Ok(self.http.get(self.url()).send().await?.json().await?)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// Scenario: writes and reads of data files, manifests and metadata are answered 500 and 503 SlowDown, lose their connection
/// before and after they are carried out, and are answered too late, each by itself and then all at once.
/// Guarantees: the flush gets through, every span is in Iceberg once, and queries answer without an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_fails_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let bucket = Bucket::start(&python, dir.path()).await?;
    let faults = Faults::start(&python, &bucket).await?;
    let mut settings = Bucket::settings_at(&faults.endpoint);
    settings.extend([TIMEOUT, "compaction.enabled=false"].map(str::to_owned));
    // Nothing is read from memory: every query and every flush asks the bucket.
    settings.push("writer.batch.enable_catalog_caching=false".to_owned());
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut node = Node::start(dir.path(), &settings).await?;
    let mut acknowledged = Vec::new();
    let writes: [&[Fault]; 8] = [
        &[("PUT", ".parquet", "error", 3)],
        &[("PUT", ".parquet", "slow_down", 3)],
        &[("PUT", ".parquet", "reset", 2), ("PUT", ".avro", "reset", 2)],
        &[("PUT", ".parquet", "lost", 2), ("PUT", ".avro", "lost", 2)],
        &[("PUT", ".metadata.json", "lost", 2)],
        &[("PUT", ".parquet", "late", 1), ("PUT", ".metadata.json", "late", 1)],
        // More than the client repeats: the flush fails and is tried again.
        &[("PUT", ".parquet", "slow_down", 7), ("PUT", ".metadata.json", "error", 7)],
        &[
            ("GET", ".metadata.json", "slow_down", 2),
            ("GET", ".avro", "error", 2),
            ("PUT", ".parquet", "lost", 1),
            ("PUT", ".avro", "slow_down", 1),
            ("PUT", ".metadata.json", "reset", 1),
        ],
    ];
    for faulty in writes {
        let (body, ids) = batch(20);
        send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body).await?;
        acknowledged.extend(ids);
        faults.set(faulty).await?;
        flushed(&node).await?;
        assert_eq!(faults.left().await?, json!([]), "{faulty:?}: it happened");
        assert_eq!(node.number(COUNT).await?, acknowledged.len() as i64, "{faulty:?}");
        assert_eq!(node.number(IN_ICEBERG).await?, acknowledged.len() as i64, "{faulty:?}");
    }
    for fault in ["error", "slow_down", "reset", "lost", "late"] {
        let times = if fault == "late" { 1 } else { 2 };
        let faulty = [".metadata.json", ".avro", ".parquet"].map(|file| ("GET", file, fault, times));
        faults.set(&faulty).await?;
        let found = node.span_ids().await.with_context(|| format!("{fault} is for the client to bear"))?;
        assert_eq!(compare(&acknowledged, &found), (vec![], vec![]), "{fault}");
        assert_eq!(faults.left().await?, json!([]), "{fault}: it happened");
    }
    let retries = metric(&node.http, &node.url("/metrics"), "signaldb_writer_retries_total").await?;
    assert!(retries > 0.0, "failed flushes are counted");
    node.kill()?;
    node.restart().await?;
    let found = node.span_ids().await?;
    assert_eq!(compare(&acknowledged, &found), (vec![], vec![]));
    assert_eq!(found.len(), acknowledged.len());
    Ok(())
}

/// Scenario: a data file of over 16 MiB goes to the bucket in parts; the begin, the parts and the end of the upload fail, or
/// are carried out without an answer.
/// Guarantees: it was an upload in parts; every span is in Iceberg once, with all of its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_parts_that_fails_loses_and_doubles_nothing() -> anyhow::Result<()> {
    const REQUESTS: u64 = 14;
    const SPAN_BYTES: usize = 2 << 20;
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let bucket = Bucket::start(&python, dir.path()).await?;
    let faults = Faults::start(&python, &bucket).await?;
    let mut settings = Bucket::settings_at(&faults.endpoint);
    // One file, at the flush that is asked for.
    let one = ["flush.interval=10m", "flush.max_bytes=1GiB", "memory.limit=8GiB", "compaction.enabled=false"];
    settings.extend(one.map(str::to_owned));
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let node = Node::start(dir.path(), &settings).await?;
    let mut acknowledged = Vec::new();
    for seed in 1..=REQUESTS {
        let mut large = span("large");
        large.attributes.push(text("noise", &noise(seed, SPAN_BYTES)));
        acknowledged.push(hex(&large.span_id));
        let body = request("shop", vec![large]).encode_to_vec();
        send_until_acknowledged(&node.http, &[node.otlp_http("/v1/traces")], body.into()).await?;
    }
    faults
        .set(&[
            ("POST", "uploads", "error", 2),
            ("PUT", "partNumber", "slow_down", 2),
            ("PUT", "partNumber", "reset", 1),
            ("PUT", "partNumber", "lost", 1),
            ("POST", "uploadId", "error", 1),
            // Asked again, the server knows of no such upload: another one is made.
            ("POST", "uploadId", "lost", 1),
        ])
        .await?;
    flushed(&node).await?;
    assert_eq!(faults.left().await?, json!([]), "the file went in parts, and these failed");
    assert_eq!(node.number(IN_ICEBERG).await?, acknowledged.len() as i64);
    let found = node.span_ids().await?;
    assert_eq!(compare(&acknowledged, &found), (vec![], vec![]));
    assert_eq!(found.len(), acknowledged.len());
    let bytes = node.number("SELECT sum(length(attributes['noise'])) FROM traces").await?;
    assert_eq!(bytes, (REQUESTS as usize * SPAN_BYTES) as i64);
    Ok(())
}

/// Waits until a flush that was asked for is done.
async fn flushed(node: &Node) -> anyhow::Result<()> {
    let until = Instant::now() + FLUSH_DEADLINE;
    while let Err(error) = node.flush().await {
        ensure!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Text that does not compress below three quarters; the same for the same seed.
fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + 16 + (state >> 32) as u8 % 64)
    };
    (0..bytes).map(|_| next()).collect()
}
