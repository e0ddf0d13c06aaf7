//! Rows of a key: log records whose service is the key, and whose body is the row.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use serde_json::Value;
use signaldb_proto::otlp::collector::logs::v1::ExportLogsServiceRequest;
use signaldb_proto::otlp::common::v1::{AnyValue, KeyValue, any_value};
use signaldb_proto::otlp::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use signaldb_proto::otlp::resource::v1::Resource;

use crate::client::{self, Export, Question, Reply, Sent, Signal, TIMEOUT};
use crate::cluster::Consistency;
use crate::history::{DEFAULT_DATASET, Kind, LOG_RECORDS, Operation, Outcome, Position, Purpose, Query, Write};
use crate::random::Random;
use crate::scenario::Workload;

use super::{Test, now};

/// The keys of a workload and a tenant. Rows go to the newest one, which another one follows when it has enough: reads
/// of a key stay small however long a run is.
#[derive(Debug)]
pub(crate) struct Keys {
    workload: &'static str,
    requests_per_key: u64,
    requests: AtomicU64,
}

impl Keys {
    pub(crate) fn new(workload: &'static str, requests_per_key: u64) -> Self {
        Self { workload, requests_per_key, requests: AtomicU64::new(0) }
    }

    /// The key for one more request.
    pub(crate) fn next(&self) -> String {
        self.named(self.requests.fetch_add(1, Ordering::Relaxed) / self.requests_per_key)
    }

    /// The newest key, or the one before.
    pub(crate) fn recent(&self, random: &Random) -> String {
        let newest = self.requests.load(Ordering::Relaxed).saturating_sub(1) / self.requests_per_key;
        self.named(newest.saturating_sub(random.next() % 2))
    }

    fn named(&self, number: u64) -> String {
        format!("{}-{number}", self.workload)
    }
}

/// One request of rows for a key. Clones of it are the same request.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) workload: Workload,
    pub(crate) key: String,
    /// Its idempotency key.
    pub(crate) request: String,
    pub(crate) rows: Vec<String>,
    pub(crate) export: Export,
}

impl Batch {
    /// Rows for the default dataset of a tenant.
    pub(crate) fn new(test: &Test, workload: Workload, tenant: &'static str, key: String, rows: Vec<String>) -> Self {
        let (request, body) = (unique(&test.random), records(&key, &rows));
        let export = Export {
            tenant,
            dataset: DEFAULT_DATASET,
            signal: Signal::Logs,
            asked: test.asked(),
            request: Some(request.clone()),
            body,
            timeout: TIMEOUT,
        };
        Self { workload, key, request, rows, export }
    }

    /// Sends it until its outcome is known, or for long enough.
    pub(crate) async fn persist(&self, test: &Test, process: usize, node: usize) -> Sent {
        let invoked = test.history.now();
        let sent = client::persist(&test.cluster, node, &self.export).await;
        self.note(test, process, invoked, sent)
    }

    /// Sends it and crashes soon, whatever has become of it by then: the outcome is unknown, and nobody tries again.
    pub(crate) async fn abandon(&self, test: &Test, process: usize, node: usize, after: Duration) -> Sent {
        let invoked = test.history.now();
        let export = Export { timeout: after, ..self.export.clone() };
        let sent = client::send(&test.cluster, node, &export).await;
        self.note(test, process, invoked, sent)
    }

    /// Sends half of it and crashes.
    pub(crate) async fn send_half(&self, test: &Test, process: usize, node: usize) -> Sent {
        let invoked = test.history.now();
        let sent = client::send_half(&test.cluster, node, &self.export).await;
        self.note(test, process, invoked, sent)
    }

    fn note(&self, test: &Test, process: usize, invoked: u64, sent: Sent) -> Sent {
        let Export { tenant, dataset, asked, .. } = self.export;
        let write = Write {
            workload: self.workload,
            dataset,
            key: self.key.clone(),
            request: self.request.clone(),
            rows: self.rows.clone(),
            deduplicated: sent.ack.is_some_and(|ack| ack.deduplicated),
        };
        test.history.push(Operation {
            process,
            node: sent.node + 1,
            tenant,
            invoked,
            ended: test.history.now(),
            outcome: sent.outcome,
            asked: Some(asked),
            given: sent.ack.map(|ack| ack.level),
            position: sent.ack.and_then(|ack| ack.position),
            kind: Kind::Write(write),
        });
        sent
    }
}

/// An id that nothing else has.
pub(crate) fn unique(random: &Random) -> String {
    format!("{:016x}", random.next())
}

/// Log records as an OTLP request.
pub(crate) fn records(key: &str, rows: &[String]) -> Bytes {
    let time_unix_nano = now();
    let record = |row: &String| LogRecord { time_unix_nano, body: Some(text(row)), ..LogRecord::default() };
    let log_records = rows.iter().map(record).collect();
    let service = KeyValue { key: "service.name".to_owned(), value: Some(text(key)), ..KeyValue::default() };
    let resource = Some(Resource { attributes: vec![service], ..Resource::default() });
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec().into()
}

fn text(text: &str) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) }
}

/// A read of a key under faults, or of what is not the reader's.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) workload: Workload,
    pub(crate) tenant: &'static str,
    /// What it reads.
    pub(crate) dataset: &'static str,
    /// What it says in its header.
    pub(crate) from: &'static str,
    pub(crate) key: String,
    pub(crate) purpose: Purpose,
    pub(crate) consistency: Consistency,
    pub(crate) min: Option<Position>,
    /// Rows are in the first column.
    pub(crate) sql: String,
}

impl Look {
    /// A strong read of all rows of a key of the default dataset.
    pub(crate) fn at(workload: Workload, tenant: &'static str, key: String) -> Self {
        let sql = format!("SELECT body FROM {LOG_RECORDS} WHERE service_name = '{key}'");
        let (dataset, from) = (DEFAULT_DATASET, DEFAULT_DATASET);
        let (purpose, consistency, min) = (Purpose::Middle, Consistency::Strong, None);
        Self { workload, tenant, dataset, from, key, purpose, consistency, min, sql }
    }

    /// Asks a node, and notes the answer.
    pub(crate) async fn ask(self, test: &Test, process: usize, node: usize) {
        let Self { workload, tenant, dataset, from, key, purpose, consistency, min, sql } = self;
        let question = Question { tenant, dataset: from, sql: &sql, consistency, min, timeout: TIMEOUT };
        let invoked = test.history.now();
        let (outcome, refused, rows) = match client::ask(&test.cluster, node, &question).await {
            Reply::Rows(rows) => (Outcome::Ok, None, texts(&rows)),
            Reply::Refused(status) => (Outcome::Fail, Some(status), Vec::new()),
            Reply::Nothing => (Outcome::Fail, None, Vec::new()),
        };
        let strong = consistency == Consistency::Strong;
        let query = Query { workload, dataset, key, purpose, strong, min, refused, rows };
        push(test, process, node + 1, tenant, invoked, outcome, Kind::Query(query));
    }
}

/// The texts of the first column; the newest of no versions is null, and no row.
fn texts(rows: &[Value]) -> Vec<String> {
    rows.iter().filter_map(|row| row[0].as_str().map(str::to_owned)).collect()
}

/// Notes a read that ends now.
pub(crate) fn push(
    test: &Test,
    process: usize,
    node: usize,
    tenant: &'static str,
    invoked: u64,
    outcome: Outcome,
    kind: Kind,
) {
    let (ended, asked, given, position) = (test.history.now(), None, None, None);
    test.history.push(Operation { process, node, tenant, invoked, ended, outcome, asked, given, position, kind });
}

/// Random ids, from one to as many.
pub(crate) fn ids(random: &Random, most: usize) -> Vec<String> {
    let count = 1 + random.below(most);
    let ids: BTreeSet<String> = (0..count).map(|_| unique(random)).collect();
    ids.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_followed_by_another_one_when_it_has_enough() {
        let (keys, random) = (Keys::new("log", 2), Random::new(1));
        assert_eq!(keys.recent(&random), "log-0", "before there is one");
        let used: Vec<String> = (0..5).map(|_| keys.next()).collect();
        assert_eq!(used, ["log-0", "log-0", "log-1", "log-1", "log-2"]);
        let recent: BTreeSet<String> = (0..50).map(|_| keys.recent(&random)).collect();
        assert_eq!(recent, BTreeSet::from(["log-1".to_owned(), "log-2".to_owned()]));
    }

    #[test]
    fn rows_become_records_of_the_keys_service() -> anyhow::Result<()> {
        let body = records("log-1", &["x".to_owned(), "y".to_owned()]);
        let request = ExportLogsServiceRequest::decode(body)?;
        let logs = &request.resource_logs[0];
        let service = logs.resource.as_ref().map(|resource| resource.attributes[0].clone());
        assert_eq!(service.map(|one| (one.key, one.value)), Some(("service.name".to_owned(), Some(text("log-1")))));
        let records = &logs.scope_logs[0].log_records;
        let bodies: Vec<Option<AnyValue>> = records.iter().map(|record| record.body.clone()).collect();
        assert_eq!(bodies, [Some(text("x")), Some(text("y"))]);
        Ok(())
    }
}
