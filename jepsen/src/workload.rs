//! Clients: they add unique spans through any node, retry what is unknown byte by byte, and read whole sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span};

use crate::cluster::{Cluster, Consistency, NODES};
use crate::history::{History, Kind, Operation, Outcome};
use crate::random::Random;

/// Two tenants, to see that neither sees the other.
pub(crate) const TENANTS: [&str; 2] = ["alpha", "beta"];
/// How long a client waits for one answer.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Attempts on an unknown outcome before it stays unknown.
const ATTEMPTS: usize = 6;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a probe waits for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// What every client needs.
#[derive(Clone)]
pub(crate) struct Test {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) history: Arc<History>,
    pub(crate) random: Arc<Random>,
    pub(crate) stop: Arc<AtomicBool>,
}

/// How one attempt ended.
enum Answer {
    Ok,
    /// Certainly not written, and no reason to try again.
    Fail,
    Unknown,
}

/// Adds until told to stop.
pub(crate) async fn add(test: Test, process: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (body, values) = spans(&test.random, 1 + test.random.below(3));
        let (tenant, mut node) = (TENANTS[process % 2], test.random.below(NODES));
        let invoked = test.history.now();
        let mut outcome = Outcome::Info;
        for attempt in 0..ATTEMPTS {
            match send(&test.cluster, node, tenant, body.clone(), TIMEOUT).await {
                Answer::Ok => {
                    outcome = Outcome::Ok;
                    break;
                }
                // An attempt before it may have been written.
                Answer::Fail if attempt > 0 => break,
                Answer::Fail => {
                    outcome = Outcome::Fail;
                    break;
                }
                Answer::Unknown => {
                    node = (node + 1) % NODES;
                    tokio::time::sleep(PAUSE * 5).await;
                }
            }
        }
        let ended = test.history.now();
        let kind = Kind::Add(values);
        test.history.push(Operation { process, node: node + 1, tenant, invoked, ended, outcome, kind });
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Adds one span after the other through one node, each tried once, until told to stop. While other clients wait for a
/// node that is cut off, the time between the acknowledgments of these says how long nobody could write.
pub(crate) async fn probe(test: Test, process: usize, tenant: &'static str, node: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (body, values) = spans(&test.random, 1);
        let invoked = test.history.now();
        let outcome = match send(&test.cluster, node, tenant, body, PROBE_TIMEOUT).await {
            Answer::Ok => Outcome::Ok,
            Answer::Fail => Outcome::Fail,
            Answer::Unknown => Outcome::Info,
        };
        let (ended, kind) = (test.history.now(), Kind::Add(values));
        test.history.push(Operation { process, node: node + 1, tenant, invoked, ended, outcome, kind });
        tokio::time::sleep(PAUSE * 10).await;
    }
    Ok(())
}

fn spans(random: &Random, count: usize) -> (Bytes, Vec<String>) {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    let (mut spans, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let id = random.next().to_be_bytes();
        ids.push(id.iter().map(|byte| format!("{byte:02x}")).collect());
        spans.push(Span {
            trace_id: [id, id].concat(),
            span_id: id.to_vec(),
            name: "jepsen".to_owned(),
            start_time_unix_nano: now,
            end_time_unix_nano: now + 1000,
            ..Span::default()
        });
    }
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    (ExportTraceServiceRequest { resource_spans }.encode_to_vec().into(), ids)
}

async fn send(cluster: &Cluster, node: usize, tenant: &str, body: Bytes, timeout: Duration) -> Answer {
    let request = cluster.http.post(cluster.otlp(node)).timeout(timeout).body(body);
    let request = request.header("content-type", "application/x-protobuf").header("x-tenant-id", tenant);
    match request.send().await {
        Ok(response) if response.status().is_success() => Answer::Ok,
        Ok(response) if response.status().is_client_error() && response.status().as_u16() != 429 => Answer::Fail,
        // A refusal of this attempt says nothing of the ones before it.
        _ => Answer::Unknown,
    }
}

/// Reads whole sets until told to stop.
pub(crate) async fn read(test: Test, process: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (tenant, node) = (TENANTS[test.random.below(2)], test.random.below(NODES));
        let invoked = test.history.now();
        let (outcome, values) = match set(&test.cluster, node, tenant).await {
            Ok(values) => (Outcome::Ok, values),
            Err(_) => (Outcome::Fail, Vec::new()),
        };
        let (ended, kind) = (test.history.now(), Kind::Read(values));
        test.history.push(Operation { process, node: node + 1, tenant, invoked, ended, outcome, kind });
        tokio::time::sleep(PAUSE * 10).await;
    }
    Ok(())
}

/// The whole set of a tenant, by a strong read.
async fn set(cluster: &Cluster, node: usize, tenant: &str) -> anyhow::Result<Vec<String>> {
    let rows = cluster.sql(node, tenant, "SELECT span_id FROM traces", Consistency::Strong, TIMEOUT).await?;
    rows.iter().map(|row| row[0].as_str().map(str::to_owned).with_context(|| format!("{row} is no id"))).collect()
}

/// The last reads: every node, and the tables through PyIceberg after a flush. Returns what could not be read.
pub(crate) async fn last_reads(test: &Test, python: Option<&str>) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    for tenant in TENANTS {
        for node in 0..NODES {
            let invoked = test.history.now();
            let values = set(&test.cluster, node, tenant).await;
            let values = values.with_context(|| format!("the last read of node {} for {tenant}", node + 1))?;
            let (ended, kind) = (test.history.now(), Kind::Final(values));
            let (process, node, outcome) = (1000 + node, node + 1, Outcome::Ok);
            test.history.push(Operation { process, node, tenant, invoked, ended, outcome, kind });
        }
        let Some(python) = python else { continue };
        let flush = test.cluster.http.post(test.cluster.url(0, "/api/v1/admin/flush")).header("x-tenant-id", tenant);
        flush.timeout(Duration::from_secs(60)).send().await?.error_for_status()?;
        let invoked = test.history.now();
        let (program, cluster) = (python.to_owned(), Arc::clone(&test.cluster));
        let read = tokio::task::spawn_blocking(move || pyiceberg(&program, &cluster, tenant)).await?;
        match read {
            Ok(values) => {
                let (ended, kind) = (test.history.now(), Kind::Final(values));
                let (process, node, outcome) = (2000, 0, Outcome::Ok);
                test.history.push(Operation { process, node, tenant, invoked, ended, outcome, kind });
            }
            Err(error) => missing.push(format!("PyIceberg did not read {tenant}: {error:#}")),
        }
    }
    if python.is_none() {
        missing.push("PyIceberg was not asked: SIGNALDB_PYTHON is not set".to_owned());
    }
    Ok(missing)
}

fn pyiceberg(python: &str, cluster: &Cluster, tenant: &str) -> anyhow::Result<Vec<String>> {
    let script = cluster.pyiceberg(tenant, "traces")?
        + "
for value in table.scan(selected_fields=('span_id',)).to_arrow()['span_id']:
    print(value.as_py().hex())";
    let output = std::process::Command::new(python).args(["-c", &script]).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}
