//! One request of a client, and what came of it: headers, paths and statuses are known here and nowhere else.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::cluster::{Cluster, Consistency, NODES};
use crate::history::{DEFAULT_DATASET, Level, Outcome, Position};

const PROTOBUF: &str = "application/x-protobuf";
const TENANT: &str = "x-tenant-id";
const DATASET: &str = "x-dataset-id";
const ACK: &str = "x-signaldb-ack";
const POSITION: &str = "x-signaldb-position";
const DEDUPLICATED: &str = "x-signaldb-deduplicated";
const IDEMPOTENCY_KEY: &str = "x-signaldb-idempotency-key";
const MIN_POSITION: &str = "x-signaldb-min-position";
/// How long a client waits for one answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(8);
/// Attempts on an unknown outcome before it stays unknown.
const ATTEMPTS: usize = 6;
/// Between two operations of a client that only waits for answers otherwise.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);
/// Before a request is tried at another node.
const BEFORE_RETRY: Duration = Duration::from_millis(100);

/// What an OTLP request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Traces,
    Logs,
}

impl Signal {
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Logs => "/v1/logs",
        }
    }
}

/// An OTLP request.
#[derive(Debug, Clone)]
pub(crate) struct Export {
    pub(crate) tenant: &'static str,
    pub(crate) dataset: &'static str,
    pub(crate) signal: Signal,
    pub(crate) asked: Level,
    /// Its idempotency key; without one its bytes are.
    pub(crate) request: Option<String>,
    pub(crate) body: Bytes,
    /// For each attempt.
    pub(crate) timeout: Duration,
}

/// An acknowledgment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) level: Level,
    pub(crate) position: Option<Position>,
    pub(crate) deduplicated: bool,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The last one that it was sent to.
    pub(crate) node: usize,
    pub(crate) outcome: Outcome,
    /// With [`Outcome::Ok`] alone.
    pub(crate) ack: Option<Ack>,
}

/// Sends a request once.
pub(crate) async fn send(cluster: &Cluster, node: usize, export: &Export) -> Sent {
    let url = format!("http://{}{}", cluster.otlp(node), export.signal.path());
    let mut request = cluster.http.post(url).timeout(export.timeout).body(export.body.clone());
    for (name, value) in headers(export) {
        request = request.header(name, value);
    }
    let (outcome, ack) = match request.send().await {
        Ok(response) if response.status().is_success() => {
            let header = |name: &'static str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let position = header(POSITION).and_then(Position::parse);
            cluster.note_position(position);
            let deduplicated = header(DEDUPLICATED) == Some("true");
            (Outcome::Ok, Some(Ack { level: Level::of(header(ACK)), position, deduplicated }))
        }
        Ok(response) if response.status().is_client_error() && response.status().as_u16() != 429 => {
            (Outcome::Fail, None)
        }
        // A refusal of this attempt says nothing of the ones before it.
        _ => (Outcome::Info, None),
    };
    Sent { node, outcome, ack }
}

fn headers(export: &Export) -> Vec<(&'static str, String)> {
    let mut headers = vec![("content-type", PROTOBUF.to_owned()), (TENANT, export.tenant.to_owned())];
    if export.dataset != DEFAULT_DATASET {
        headers.push((DATASET, export.dataset.to_owned()));
    }
    if export.asked == Level::Fsync {
        headers.push((ACK, "quorum-fsync".to_owned()));
    }
    headers.extend(export.request.iter().map(|request| (IDEMPOTENCY_KEY, request.clone())));
    headers
}

/// Sends a request, and again through other nodes while its outcome is unknown.
pub(crate) async fn persist(cluster: &Cluster, first: usize, export: &Export) -> Sent {
    let mut node = first;
    for attempt in 0..ATTEMPTS {
        let sent = send(cluster, node, export).await;
        match sent.outcome {
            Outcome::Ok => return sent,
            // An attempt before it may have been written.
            Outcome::Fail if attempt > 0 => break,
            Outcome::Fail => return sent,
            Outcome::Info => {
                node = (node + 1) % NODES;
                tokio::time::sleep(BEFORE_RETRY).await;
            }
        }
    }
    Sent { node, outcome: Outcome::Info, ack: None }
}

/// Sends the head of a request and half of its body, and hangs up: nothing of it may ever be seen.
pub(crate) async fn send_half(cluster: &Cluster, node: usize, export: &Export) -> Sent {
    let address = cluster.otlp(node);
    let work = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut head = format!("POST {} HTTP/1.1\r\nhost: {address}\r\n", export.signal.path());
        for (name, value) in headers(export) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", export.body.len()));
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&export.body[..export.body.len() / 2]).await?;
        stream.shutdown().await
    };
    // However far it came: it did not come to the end.
    let _ = tokio::time::timeout(export.timeout, work).await;
    Sent { node, outcome: Outcome::Fail, ack: None }
}

/// A query.
#[derive(Debug, Clone)]
pub(crate) struct Question<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) dataset: &'a str,
    pub(crate) sql: &'a str,
    pub(crate) consistency: Consistency,
    /// What it has to show, whatever its consistency.
    pub(crate) min: Option<Position>,
    pub(crate) timeout: Duration,
}

/// What came of a query.
#[derive(Debug)]
pub(crate) enum Reply {
    Rows(Vec<Value>),
    /// The status of an answer that was none.
    Refused(u16),
    Nothing,
}

/// Asks a node.
pub(crate) async fn ask(cluster: &Cluster, node: usize, question: &Question<'_>) -> Reply {
    let consistency = match question.consistency {
        Consistency::Strong => "strong",
        Consistency::Eventual => "eventual",
    };
    let url = cluster.url(node, &format!("/api/v1/sql?consistency={consistency}"));
    let mut request = cluster.http.post(url).timeout(question.timeout).header(TENANT, question.tenant);
    if question.dataset != DEFAULT_DATASET {
        request = request.header(DATASET, question.dataset);
    }
    if let Some(min) = question.min {
        request = request.header(MIN_POSITION, min.to_string());
    }
    let Ok(response) = request.json(&json!({"query": question.sql})).send().await else { return Reply::Nothing };
    if !response.status().is_success() {
        return Reply::Refused(response.status().as_u16());
    }
    // A node may die in the middle of its answer.
    let Ok(mut body) = response.json::<Value>().await else { return Reply::Nothing };
    match body.get_mut("rows").map(Value::take) {
        Some(Value::Array(rows)) => Reply::Rows(rows),
        _ => Reply::Nothing,
    }
}
