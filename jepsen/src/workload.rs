//! Clients of `ingest`: they add unique spans through any node, retry what is unknown byte by byte, and read whole sets.
//! Those of other workloads are in files of their own; what all are asked for at the end of a round is here.

pub(crate) mod audit;
pub(crate) mod isolation;
pub(crate) mod log;
pub(crate) mod register;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span};

use crate::checker::Blackout;
use crate::client::{self, Export, PAUSE, Question, Reply, Sent, Signal, TIMEOUT};
use crate::cluster::{Cluster, Consistency, NODES};
use crate::history::{
    DEFAULT_DATASET, History, Key, Kind, LOG_RECORDS, Level, Operation, Outcome, Purpose, Query, SPANS,
};
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

/// Between two spans of a probe: how exactly a gap is measured.
const PROBE_PAUSE: Duration = Duration::from_millis(200);
/// Between two reads of a whole set, and more of it for each element that the last one had: a set that grows must not take
/// ever more of the machine.
const READ_PAUSE: Duration = Duration::from_millis(200);
const ELEMENT_PAUSE: Duration = Duration::from_micros(50);
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

    /// The node through which a client writes. Each has its own, as in Jepsen: while one is cut off, its clients wait for it,
    /// and those of the others go on. What such a client cannot get through goes on to the next node.
    pub(crate) fn node_of(process: usize) -> usize {
        process % NODES
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

/// Adds until told to stop.
pub(crate) async fn add(test: Test, process: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (body, values) = spans(&test.random, 1 + test.random.below(3));
        let export = export(&test, test.tenants[process % 2], body, TIMEOUT);
        let (node, invoked) = (Test::node_of(process), test.history.now());
        let sent = client::persist(&test.cluster, node, &export).await;
        push_add(&test, process, invoked, &export, sent, values);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Adds one span after the other through one node, each tried once, until told to stop. While other clients wait for a
/// node that is cut off, the time between the acknowledgments of these says how long nobody could write.
pub(crate) async fn probe(test: Test, process: usize, tenant: &'static str, node: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (body, values) = spans(&test.random, 1);
        let export = export(&test, tenant, body, PROBE_TIMEOUT);
        let invoked = test.history.now();
        let sent = client::send(&test.cluster, node, &export).await;
        push_add(&test, process, invoked, &export, sent, values);
        tokio::time::sleep(PROBE_PAUSE).await;
    }
    Ok(())
}

fn export(test: &Test, tenant: &'static str, body: Bytes, timeout: Duration) -> Export {
    let (dataset, signal, asked, request) = (DEFAULT_DATASET, Signal::Traces, test.asked(), None);
    Export { tenant, dataset, signal, asked, request, body, timeout }
}

fn push_add(test: &Test, process: usize, invoked: u64, export: &Export, sent: Sent, values: Vec<String>) {
    test.history.push(Operation {
        process,
        node: sent.node + 1,
        tenant: export.tenant,
        invoked,
        ended: test.history.now(),
        outcome: sent.outcome,
        asked: Some(export.asked),
        given: sent.ack.map(|ack| ack.level),
        position: sent.ack.and_then(|ack| ack.position),
        kind: Kind::Add(values),
    });
}

/// The time of rows, nanoseconds since 1970.
fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

fn spans(random: &Random, count: usize) -> (Bytes, Vec<String>) {
    let (now, mut spans, mut ids) = (now(), Vec::new(), Vec::new());
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

/// Reads whole sets until told to stop.
pub(crate) async fn read(test: Test, process: usize) -> anyhow::Result<()> {
    while !test.stop.load(Ordering::Relaxed) {
        let (tenant, node) = (test.tenants[test.random.below(2)], test.random.below(NODES));
        let invoked = test.history.now();
        let (outcome, values) = match set(&test.cluster, node, tenant, TIMEOUT).await {
            Ok(values) => (Outcome::Ok, values),
            Err(_) => (Outcome::Fail, Vec::new()),
        };
        let pause = READ_PAUSE + ELEMENT_PAUSE * u32::try_from(values.len()).unwrap_or(u32::MAX);
        rows::push(&test, process, node + 1, tenant, invoked, outcome, Kind::Read(values));
        // Not past the end of the round.
        let until = Instant::now() + pause;
        while !test.stop.load(Ordering::Relaxed) && Instant::now() < until {
            tokio::time::sleep(READ_PAUSE).await;
        }
    }
    Ok(())
}

/// The whole set of a tenant, by a strong read.
async fn set(cluster: &Cluster, node: usize, tenant: &str, timeout: Duration) -> anyhow::Result<Vec<String>> {
    let rows = cluster.sql(node, tenant, "SELECT span_id FROM traces", Consistency::Strong, timeout).await?;
    rows.iter().map(|row| row[0].as_str().map(str::to_owned).with_context(|| format!("{row} is no id"))).collect()
}

/// The key and the text of every log record of a dataset, by a strong read.
async fn log_records(
    cluster: &Cluster,
    node: usize,
    tenant: &str,
    dataset: &str,
) -> anyhow::Result<Vec<(String, String)>> {
    let sql = format!("SELECT service_name, body FROM {LOG_RECORDS}");
    let (consistency, min, timeout) = (Consistency::Strong, None, LAST_TIMEOUT);
    let rows =
        match client::ask(cluster, node, &Question { tenant, dataset, sql: &sql, consistency, min, timeout }).await {
            Reply::Rows(rows) => rows,
            Reply::Refused(status) => anyhow::bail!("status {status}"),
            Reply::Nothing => anyhow::bail!("no answer"),
        };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(|row| (text(&row[0]), text(&row[1]))).collect())
}

/// Reads every node once more, now that nothing is wrong with any: the spans of all tenants, and what was written to `keys`.
async fn last_reads_of_nodes(test: &Test, keys: &BTreeSet<Key>) -> anyhow::Result<()> {
    for node in 0..NODES {
        for tenant in test.tenants {
            let what = format!("the last read of node {} for {tenant}", node + 1);
            let read = async || set(&test.cluster, node, tenant, LAST_TIMEOUT).await;
            let (invoked, values) = patiently(test, read).await.context(what)?;
            rows::push(test, 1000 + node, node + 1, tenant, invoked, Outcome::Ok, Kind::Final(values));
        }
        for (tenant, dataset) in datasets(keys) {
            let what = format!("the last read of node {} for {tenant}/{dataset}", node + 1);
            let read = async || log_records(&test.cluster, node, tenant, dataset).await;
            let (invoked, rows) = patiently(test, read).await.context(what)?;
            for query in last_queries(keys, tenant, dataset, rows) {
                rows::push(test, 1000 + node, node + 1, tenant, invoked, Outcome::Ok, Kind::Query(query));
            }
        }
    }
    Ok(())
}

/// Tries a last read a few times; when the one began that succeeded, and what it read.
async fn patiently<T>(test: &Test, read: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<(u64, T)> {
    let mut attempt = 1;
    loop {
        let invoked = test.history.now();
        match read().await {
            Ok(found) => return Ok((invoked, found)),
            Err(error) if attempt == LAST_ATTEMPTS => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
        attempt += 1;
    }
}

fn datasets(keys: &BTreeSet<Key>) -> BTreeSet<(&'static str, &'static str)> {
    keys.iter().map(|key| (key.tenant, key.dataset)).collect()
}

/// What a read of a whole dataset says of each of its keys, those that nobody wrote to among them.
fn last_queries(keys: &BTreeSet<Key>, tenant: &str, dataset: &'static str, rows: Vec<(String, String)>) -> Vec<Query> {
    let here: Vec<&Key> = keys.iter().filter(|key| key.tenant == tenant && key.dataset == dataset).collect();
    let Some(first) = here.first() else { return Vec::new() };
    let mut by_key: BTreeMap<String, Vec<String>> = here.iter().map(|key| (key.key.clone(), Vec::new())).collect();
    for (key, row) in rows {
        by_key.entry(key).or_default().push(row);
    }
    let workload = |key: &str| here.iter().find(|one| one.key == key).unwrap_or(first).workload;
    let query = |(key, rows): (String, Vec<String>)| Query {
        workload: workload(&key),
        dataset,
        key,
        purpose: Purpose::Last,
        strong: true,
        min: None,
        refused: None,
        rows,
    };
    by_key.into_iter().map(query).collect()
}

/// The last reads, of all that was written to `keys`: every node, and the tables through PyIceberg after a flush. Returns
/// what could not be read.
pub(crate) async fn last_reads(test: &Test, keys: &BTreeSet<Key>, python: Option<&str>) -> anyhow::Result<Vec<String>> {
    last_reads_of_nodes(test, keys).await?;
    let Some(python) = python else { return Ok(Vec::new()) };
    for tenant in test.tenants {
        let flush = test.cluster.http.post(test.cluster.url(0, "/api/v1/admin/flush")).header("x-tenant-id", tenant);
        flush.timeout(Duration::from_secs(60)).send().await?.error_for_status()?;
    }
    let spans = test.tenants.into_iter().map(|tenant| (tenant, DEFAULT_DATASET, SPANS));
    let logs = datasets(keys).into_iter().map(|(tenant, dataset)| (tenant, dataset, LOG_RECORDS));
    audit::audit(test, python, spans.chain(logs).collect()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Workload;

    #[test]
    fn a_read_of_a_dataset_says_something_of_every_key_even_if_it_shows_nothing_of_it() {
        let key = |dataset: &'static str, key: &str, workload: Workload| Key {
            tenant: "a",
            dataset,
            key: key.to_owned(),
            workload,
        };
        let keys = BTreeSet::from([
            key(DEFAULT_DATASET, "log-0", Workload::Log),
            key(DEFAULT_DATASET, "register-0", Workload::Register),
            key("other", "isolation-0", Workload::Isolation),
        ]);
        let row = |key: &str, row: &str| (key.to_owned(), row.to_owned());
        let read = vec![row("log-0", "x"), row("stranger", "y"), row("log-0", "z")];
        let queries = last_queries(&keys, "a", DEFAULT_DATASET, read);
        let said: Vec<(&str, Workload, usize)> =
            queries.iter().map(|query| (query.key.as_str(), query.workload, query.rows.len())).collect();
        let expected =
            [("log-0", Workload::Log, 2), ("register-0", Workload::Register, 0), ("stranger", Workload::Log, 1)];
        assert_eq!(said, expected);
        assert_eq!(datasets(&keys).len(), 2);
    }
}
