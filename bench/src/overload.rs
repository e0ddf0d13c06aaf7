//! More than a node can take: clients that send again at once whatever they are told, over gRPC and HTTP, to nodes with
//! a small memory limit. Every answer is counted by its kind, and the resident memory is watched.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use signaldb_proto::{RawCodec, rpc};
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::load::{self, Latency, RECORDS_A_REQUEST, Signal, Template};
use crate::node::Node;

/// Connections of the overload, half of them gRPC.
pub(crate) const CONNECTIONS: usize = 64;
/// Connections of the moderate loads; the best rate of them is what a node can take.
const MODERATE: [usize; 3] = [2, 4, 8];
/// What a client of the moderate loads waits when it is refused.
const PAUSE: Duration = Duration::from_millis(100);
/// No answer within this is a lost one: longer than a node looks for a leader.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Before a lost connection is tried again: connecting to nobody overloads nobody.
const RECONNECT: Duration = Duration::from_millis(10);
/// The beginning of each load is not counted, a fifth of what is, at most this: what empty memtables absorb at first is
/// not what a node can take.
const WARM_UP_MAX: Duration = Duration::from_secs(20);
/// Longest load without a quorum.
const NO_QUORUM_MAX: Duration = Duration::from_secs(60);
/// Answers of kinds that nobody expects, by text; more are only counted.
const TEXTS_MAX: usize = 8;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// What the loads did.
#[derive(Debug)]
pub(crate) struct Overload {
    pub(crate) nodes: usize,
    /// `memory.limit` of each node, bytes.
    pub(crate) limit: u64,
    pub(crate) phases: Vec<Phase>,
    /// The largest resident set that a node had at any moment while it was not killed, bytes.
    pub(crate) peak: u64,
    /// Seconds from the restart of the killed nodes to the next acknowledgment.
    pub(crate) recovered: Option<f64>,
}

/// One load.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    pub(crate) answers: Answers,
    /// Of acknowledgments, from the attempt that was acknowledged.
    pub(crate) latency: Latency,
    /// Resident set of the largest node every second, bytes.
    pub(crate) resident: Vec<u64>,
}

/// Answers by kind.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) acknowledged: u64,
    /// 429 or RESOURCE_EXHAUSTED, with RetryInfo.
    pub(crate) throttled: u64,
    /// 503 or UNAVAILABLE, with RetryInfo.
    pub(crate) unavailable: u64,
    /// Connections that ended, or said nothing in time.
    pub(crate) lost: u64,
    /// Anything else.
    pub(crate) failed: u64,
    /// What the lost and the failed were.
    pub(crate) texts: BTreeMap<String, u64>,
    times: Vec<Duration>,
}

/// What became of one attempt.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Acknowledged,
    Throttled,
    Unavailable,
    Lost(String),
    Failed(String),
}

impl Overload {
    /// The best rate of the moderate loads, and the one in overload: the first loads but the last of them.
    pub(crate) fn goodput(&self) -> (f64, f64) {
        let (moderate, later) = self.phases.split_at(MODERATE.len().min(self.phases.len()));
        let best = moderate.iter().map(Phase::rate).fold(0.0, f64::max);
        (best, later.first().map_or(0.0, Phase::rate))
    }
}

impl Phase {
    /// Records/s that were acknowledged.
    pub(crate) fn rate(&self) -> f64 {
        (self.answers.acknowledged * RECORDS_A_REQUEST) as f64 / self.seconds
    }
}

impl Answers {
    fn note(&mut self, answer: Answer, took: Duration) {
        match answer {
            Answer::Acknowledged => {
                self.acknowledged += 1;
                self.times.push(took);
            }
            Answer::Throttled => self.throttled += 1,
            Answer::Unavailable => self.unavailable += 1,
            Answer::Lost(text) => {
                self.lost += 1;
                self.note_text(text);
            }
            Answer::Failed(text) => {
                self.failed += 1;
                self.note_text(text);
            }
        }
    }

    fn note_text(&mut self, text: String) {
        if self.texts.contains_key(&text) || self.texts.len() < TEXTS_MAX {
            *self.texts.entry(text).or_default() += 1;
        }
    }
}

/// Moderate loads, the overload for `lasts`, and, in a cluster, the same while most nodes are dead.
pub(crate) async fn measure(binary: &Path, nodes: usize, limit_mib: u64, lasts: Duration) -> anyhow::Result<Overload> {
    let mut node = Node::start_with(binary, nodes, vec![format!("memory.limit={limit_mib}MiB")]).await?;
    let template = Arc::new(Template::new(Signal::Spans));
    load::run(&node.otlp(Signal::Spans.path()), &template, 20, 4, None).await?;
    node.flush().await?;
    let mut phases = Vec::new();
    for connections in MODERATE {
        let load = Load { name: "moderate", nodes, connections, pause: Some(PAUSE) };
        phases.push(load.run(&node, &template, (lasts / 4).min(Duration::from_secs(60))).await?);
    }
    let load = Load { name: "overload", nodes, connections: CONNECTIONS, pause: None };
    phases.push(load.run(&node, &template, lasts).await?);
    let (_, mut peak) = node.largest_resident();
    let mut recovered = None;
    if nodes > 1 {
        let killed: Vec<usize> = (nodes - (nodes / 2 + 1)..nodes).collect();
        for at in &killed {
            node.kill(*at)?;
        }
        let load = Load { name: "no quorum", nodes: nodes - killed.len(), connections: CONNECTIONS, pause: None };
        phases.push(load.run(&node, &template, lasts.min(NO_QUORUM_MAX)).await?);
        peak = peak.max(node.largest_resident().1);
        let begun = Instant::now();
        node.restart_all(binary, &killed).await?;
        load::run(&node.otlp(Signal::Spans.path()), &template, 1, 1, None).await?;
        recovered = Some(begun.elapsed().as_secs_f64());
    }
    node.stop(Duration::from_secs(15))?;
    Ok(Overload { nodes, limit: limit_mib << 20, phases, peak, recovered })
}

/// Clients of the first `nodes` nodes.
struct Load {
    name: &'static str,
    nodes: usize,
    connections: usize,
    /// What a client waits when it is refused; `None`: nothing.
    pause: Option<Duration>,
}

/// What the clients of one load share.
#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    next: AtomicU64,
    answers: Mutex<Answers>,
}

impl Shared {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    async fn run(&self, node: &Node, template: &Arc<Template>, lasts: Duration) -> anyhow::Result<Phase> {
        let shared = Arc::new(Shared::default());
        let mut clients = JoinSet::new();
        for connection in 0..self.connections {
            let target = self.target(node, connection)?;
            clients.spawn(client(target, Arc::clone(template), Arc::clone(&shared), self.pause));
        }
        let mut resident = watch(node, (lasts / 5).min(WARM_UP_MAX)).await;
        let begun = Instant::now();
        drop(std::mem::take(&mut *shared.answers()));
        resident.extend(watch(node, lasts).await);
        let mut answers = std::mem::take(&mut *shared.answers());
        let seconds = begun.elapsed().as_secs_f64();
        shared.stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended?;
        }
        let latency = Latency::of(std::mem::take(&mut answers.times));
        let name = format!("{}, {} connections", self.name, self.connections);
        let phase = Phase { name, seconds, answers, latency, resident };
        eprintln!("{}: {:.0} records/s, {:?}", phase.name, phase.rate(), phase.answers);
        Ok(phase)
    }

    fn target(&self, node: &Node, connection: usize) -> anyhow::Result<Target> {
        let at = connection / 2 % self.nodes;
        if connection.is_multiple_of(2) {
            let endpoint = Endpoint::from_shared(node.otlp_grpc().swap_remove(at))?.tcp_nodelay(true);
            return Ok(Target::Grpc(endpoint.connect_lazy()));
        }
        let http = reqwest::Client::builder().timeout(ANSWER_WITHIN).build().context("an HTTP client")?;
        Ok(Target::Http(http, node.otlp(Signal::Spans.path()).swap_remove(at)))
    }
}

/// The largest resident set, every second for `lasts`.
async fn watch(node: &Node, lasts: Duration) -> Vec<u64> {
    let begun = Instant::now();
    let mut resident = Vec::new();
    while begun.elapsed() < lasts {
        tokio::time::sleep(Duration::from_secs(1).min(lasts.saturating_sub(begun.elapsed()))).await;
        resident.push(node.largest_resident().0);
    }
    resident
}

/// A connection of its own.
enum Target {
    Http(reqwest::Client, String),
    Grpc(Channel),
}

/// Sends until the load stops; what was not acknowledged is sent again as it was.
async fn client(target: Target, template: Arc<Template>, shared: Arc<Shared>, pause: Option<Duration>) {
    let fresh = || template.fresh(shared.next.fetch_add(1, Ordering::Relaxed));
    let mut body = fresh();
    while !shared.stopped.load(Ordering::Relaxed) {
        let called = Instant::now();
        let answer = match &target {
            Target::Http(http, url) => over_http(http, url, body.clone()).await,
            Target::Grpc(channel) => over_grpc(channel, body.clone()).await,
        };
        let (acknowledged, lost) = (answer == Answer::Acknowledged, matches!(answer, Answer::Lost(_)));
        shared.answers().note(answer, called.elapsed());
        if acknowledged {
            body = fresh();
        } else if let Some(pause) = pause.or(lost.then_some(RECONNECT)) {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn over_http(http: &reqwest::Client, url: &str, body: Bytes) -> Answer {
    let sent = http.post(url).header("content-type", "application/x-protobuf").body(body).send().await;
    let response = match sent {
        Ok(response) => response,
        Err(error) => return Answer::Lost(chain(&error.without_url())),
    };
    let (status, pause) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
    match response.bytes().await {
        Ok(body) => answer_of_http(status, pause, &body),
        Err(error) => Answer::Lost(chain(&error.without_url())),
    }
}

/// A refusal must say when to come again, in its header and in its body.
fn answer_of_http(status: u16, pause: bool, body: &[u8]) -> Answer {
    match status {
        200 => Answer::Acknowledged,
        429 if pause && asks_to_retry(body) => Answer::Throttled,
        503 if pause && asks_to_retry(body) => Answer::Unavailable,
        _ => Answer::Failed(format!("HTTP {status}")),
    }
}

async fn over_grpc(channel: &Channel, body: Bytes) -> Answer {
    match tokio::time::timeout(ANSWER_WITHIN, export(channel, body)).await {
        Ok(Ok(())) => Answer::Acknowledged,
        Ok(Err(answer)) => answer,
        Err(_) => Answer::Lost(format!("no answer within {ANSWER_WITHIN:?}")),
    }
}

async fn export(channel: &Channel, body: Bytes) -> Result<(), Answer> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Answer::Lost(chain(&error)))?;
    let sent = client.unary(Request::new(body), PathAndQuery::from_static(EXPORT), RawCodec).await;
    sent.map(drop).map_err(|status| answer_of_grpc(&status))
}

fn answer_of_grpc(status: &Status) -> Answer {
    match status.code() {
        Code::ResourceExhausted if asks_to_retry(status.details()) => Answer::Throttled,
        Code::Unavailable if asks_to_retry(status.details()) => Answer::Unavailable,
        // What the transport reports has a cause; what the server said has none.
        code if status.source().is_some() => Answer::Lost(format!("{code:?}: {}", chain(status))),
        code => Answer::Failed(format!("gRPC {code:?}: {}", status.message())),
    }
}

/// Whether a `google.rpc.Status` has RetryInfo.
fn asks_to_retry(status: &[u8]) -> bool {
    rpc::Status::decode(status).is_ok_and(|status| status.retry_after().is_some())
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, retry_after: Option<Duration>) -> Vec<u8> {
        rpc::Status::new(code as i32, "full", retry_after).encode_to_vec()
    }

    #[test]
    fn a_refusal_without_a_hint_is_a_failure() {
        let (hint, none) = (status(Code::Unavailable, Some(PAUSE)), status(Code::Unavailable, None));
        assert_eq!(answer_of_http(200, false, &[]), Answer::Acknowledged);
        assert_eq!(answer_of_http(429, true, &hint), Answer::Throttled);
        assert_eq!(answer_of_http(503, true, &hint), Answer::Unavailable);
        for (status, pause, body) in [(429, false, &hint), (503, true, &none), (500, true, &hint)] {
            assert!(matches!(answer_of_http(status, pause, body), Answer::Failed(_)), "{status}");
        }
        let grpc =
            |code, details: &[u8]| answer_of_grpc(&Status::with_details(code, "full", Bytes::copy_from_slice(details)));
        assert_eq!(grpc(Code::ResourceExhausted, &hint), Answer::Throttled);
        assert_eq!(grpc(Code::Unavailable, &hint), Answer::Unavailable);
        assert!(matches!(grpc(Code::Unavailable, &none), Answer::Failed(_)));
        assert!(matches!(grpc(Code::Internal, &hint), Answer::Failed(_)));
    }

    #[test]
    fn the_best_moderate_load_is_what_overload_is_compared_with() {
        let phase = |acknowledged| Phase {
            name: String::new(),
            seconds: 10.0,
            answers: Answers { acknowledged, ..Answers::default() },
            latency: Latency::default(),
            resident: Vec::new(),
        };
        let phases = [10, 30, 20, 27, 0].map(phase).into();
        let overload = Overload { nodes: 3, limit: 1 << 30, phases, peak: 0, recovered: None };
        let (best, in_overload) = overload.goodput();
        assert!((best - 3000.0).abs() < 1e-9 && (in_overload - 2700.0).abs() < 1e-9, "{best} {in_overload}");
    }
}
