//! Clients: they add unique spans through any node, retry what is unknown byte by byte, and read whole sets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span};

use crate::checker::Blackout;
use crate::cluster::{Cluster, Consistency, NODES};
use crate::history::{History, Kind, Level, Operation, Outcome};
use crate::random::Random;
use crate::scenario::Ask;

/// Two tenants, to see that neither sees the other.
pub(crate) type Tenants = [&'static str; 2];

/// The tenants of a round, counted from 0.
pub(crate) fn tenants(round: usize) -> Tenants {
    match round {
        0 => ["alpha", "beta"],
        // They live as long as the process: two a round.
        round => ["alpha", "beta"].map(|name| &*format!("{name}-{round}").leak()),
    }
}

const ACK: &str = "x-signaldb-ack";
const POSITION: &str = "x-signaldb-position";
/// How long a client waits for one answer.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Attempts on an unknown outcome before it stays unknown.
const ATTEMPTS: usize = 6;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a probe waits for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a last read waits for one answer, and how often it is tried: nothing is wrong any more.
const LAST_TIMEOUT: Duration = Duration::from_secs(30);
const LAST_ATTEMPTS: usize = 4;

/// What every client needs.
#[derive(Clone)]
pub(crate) struct Test {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) history: Arc<History>,
    pub(crate) random: Arc<Random>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) tenants: Tenants,
    pub(crate) ask: Ask,
    /// Power losses of all nodes so far, whatever became of the fault.
    pub(crate) blackouts: Arc<Mutex<Vec<Blackout>>>,
}

impl Test {
    /// All nodes are about to lose their power: until [`Test::end_blackout`] nobody knows when that is over.
    pub(crate) fn begin_blackout(&self) {
        let blackout = Blackout { begun: self.history.now(), ended: u64::MAX };
        self.blackouts.lock().unwrap_or_else(PoisonError::into_inner).push(blackout);
    }

    /// No node was started again yet.
    pub(crate) fn end_blackout(&self) {
        if let Some(blackout) = self.blackouts.lock().unwrap_or_else(PoisonError::into_inner).last_mut() {
            blackout.ended = self.history.now();
        }
    }

    /// The level that the next add asks for.
    fn asked(&self) -> Level {
        match self.ask {
            Ask::QuorumFsync => Level::Fsync,
            Ask::Mixed if self.random.below(2) == 0 => Level::Fsync,
            Ask::Default | Ask::Mixed => Level::Quorum,
        }
    }
}

/// One attempt to add.
struct Add {
    tenant: &'static str,
    asked: Level,
    body: Bytes,
    timeout: Duration,
}

/// How one attempt ended.
enum Answer {
    Ok(Level),
    /// Certainly not written, and no reason to try again.
    Fail,
    Unknown,
}

/// Adds until told to stop.
pub(crate) async fn add(test: Test, process: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (body, values) = spans(&test.random, 1 + test.random.below(3));
        let (tenant, asked, mut node) = (test.tenants[process % 2], test.asked(), test.random.below(NODES));
        let add = Add { tenant, asked, body, timeout: TIMEOUT };
        let invoked = test.history.now();
        let (mut outcome, mut given) = (Outcome::Info, None);
        for attempt in 0..ATTEMPTS {
            match send(&test.cluster, node, &add).await {
                Answer::Ok(level) => {
                    (outcome, given) = (Outcome::Ok, Some(level));
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
        let (ended, node, asked, kind) = (test.history.now(), node + 1, Some(asked), Kind::Add(values));
        test.history.push(Operation { process, node, tenant, invoked, ended, outcome, asked, given, kind });
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Adds one span after the other through one node, each tried once, until told to stop. While other clients wait for a
/// node that is cut off, the time between the acknowledgments of these says how long nobody could write.
pub(crate) async fn probe(test: Test, process: usize, tenant: &'static str, node: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (body, values) = spans(&test.random, 1);
        let add = Add { tenant, asked: test.asked(), body, timeout: PROBE_TIMEOUT };
        let invoked = test.history.now();
        let (outcome, given) = match send(&test.cluster, node, &add).await {
            Answer::Ok(level) => (Outcome::Ok, Some(level)),
            Answer::Fail => (Outcome::Fail, None),
            Answer::Unknown => (Outcome::Info, None),
        };
        let (ended, node, asked, kind) = (test.history.now(), node + 1, Some(add.asked), Kind::Add(values));
        test.history.push(Operation { process, node, tenant, invoked, ended, outcome, asked, given, kind });
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

async fn send(cluster: &Cluster, node: usize, add: &Add) -> Answer {
    let request = cluster.http.post(cluster.otlp(node)).timeout(add.timeout).body(add.body.clone());
    let mut request = request.header("content-type", "application/x-protobuf").header("x-tenant-id", add.tenant);
    if add.asked == Level::Fsync {
        request = request.header(ACK, "quorum-fsync");
    }
    match request.send().await {
        Ok(response) if response.status().is_success() => {
            let header = |name: &'static str| response.headers().get(name).and_then(|value| value.to_str().ok());
            cluster.note_position(header(POSITION));
            Answer::Ok(Level::of(header(ACK)))
        }
        Ok(response) if response.status().is_client_error() && response.status().as_u16() != 429 => Answer::Fail,
        // A refusal of this attempt says nothing of the ones before it.
        _ => Answer::Unknown,
    }
}

/// Reads whole sets until told to stop.
pub(crate) async fn read(test: Test, process: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (tenant, node) = (test.tenants[test.random.below(2)], test.random.below(NODES));
        let invoked = test.history.now();
        let (outcome, values) = match set(&test.cluster, node, tenant, TIMEOUT).await {
            Ok(values) => (Outcome::Ok, values),
            Err(_) => (Outcome::Fail, Vec::new()),
        };
        let (ended, node, kind) = (test.history.now(), node + 1, Kind::Read(values));
        let (asked, given) = (None, None);
        test.history.push(Operation { process, node, tenant, invoked, ended, outcome, asked, given, kind });
        tokio::time::sleep(PAUSE * 10).await;
    }
    Ok(())
}

/// The whole set of a tenant, by a strong read.
async fn set(cluster: &Cluster, node: usize, tenant: &str, timeout: Duration) -> anyhow::Result<Vec<String>> {
    let rows = cluster.sql(node, tenant, "SELECT span_id FROM traces", Consistency::Strong, timeout).await?;
    rows.iter().map(|row| row[0].as_str().map(str::to_owned).with_context(|| format!("{row} is no id"))).collect()
}

/// Reads every node once more, now that nothing is wrong with any.
pub(crate) async fn last_reads_of_nodes(test: &Test) -> anyhow::Result<()> {
    for tenant in test.tenants {
        for node in 0..NODES {
            let mut attempt = 1;
            let (invoked, values) = loop {
                let invoked = test.history.now();
                match set(&test.cluster, node, tenant, LAST_TIMEOUT).await {
                    Ok(values) => break (invoked, values),
                    Err(error) if attempt == LAST_ATTEMPTS => {
                        return Err(error.context(format!("the last read of node {} for {tenant}", node + 1)));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                }
                attempt += 1;
            };
            push_final(test, 1000 + node, node + 1, tenant, invoked, values);
        }
    }
    Ok(())
}

fn push_final(test: &Test, process: usize, node: usize, tenant: &'static str, invoked: u64, values: Vec<String>) {
    let (ended, outcome, kind) = (test.history.now(), Outcome::Ok, Kind::Final(values));
    let (asked, given) = (None, None);
    test.history.push(Operation { process, node, tenant, invoked, ended, outcome, asked, given, kind });
}

/// The last reads: every node, and the tables through PyIceberg after a flush. Returns what could not be read.
pub(crate) async fn last_reads(test: &Test, python: Option<&str>) -> anyhow::Result<Vec<String>> {
    last_reads_of_nodes(test).await?;
    let mut missing = Vec::new();
    for tenant in test.tenants {
        let Some(python) = python else { continue };
        let flush = test.cluster.http.post(test.cluster.url(0, "/api/v1/admin/flush")).header("x-tenant-id", tenant);
        flush.timeout(Duration::from_secs(60)).send().await?.error_for_status()?;
        let invoked = test.history.now();
        let (program, cluster) = (python.to_owned(), Arc::clone(&test.cluster));
        let read = tokio::task::spawn_blocking(move || pyiceberg(&program, &cluster, tenant)).await?;
        match read {
            Ok(values) => push_final(test, 2000, 0, tenant, invoked, values),
            Err(error) => missing.push(format!("PyIceberg did not read {tenant}: {error:#}")),
        }
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
