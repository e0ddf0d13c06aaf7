//! The leader whose memory a query of another node reads is lost: the query is answered all the same, whole and within its
//! deadline, or refused as one that cannot be answered now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::cluster::Cluster;
use crate::node::{DEADLINE, Node, flight_number};
use crate::spans::{request, send_until_acknowledged, span};

/// Rows stay in the log, and in the memory of the leader.
const UNFLUSHED: [&str; 2] = ["flush.interval=10m", "flush.max_interval=10m"];
const BATCHES: usize = 10;
const BATCH: usize = 200;
const SPANS: usize = BATCHES * BATCH;
/// Much more of them all than is ever on its way from the leader to a client that does not read.
const LONG_NAME_BYTES: usize = 20_000;

/// Reads a column of every row.
const COUNT: &str = "SELECT count(*) FROM traces WHERE length(span_id) = 16";
/// How long a strong query looks for a leader before it is refused: `LEADER_TIMEOUT` in `query/src/snapshot.rs`.
const LOOKED_FOR: Duration = Duration::from_secs(10);
/// What an answer may take beyond its deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Api {
    Http,
    Flight,
}

/// A client of one node.
#[derive(Debug, Clone)]
struct Asker {
    api: Api,
    http: reqwest::Client,
    address: String,
    deadline: Duration,
}

impl Asker {
    fn new(api: Api, node: &Node, deadline: Duration) -> Self {
        let address = match api {
            Api::Http => node.url("/api/v1/sql"),
            Api::Flight => node.flight(),
        };
        Self { api, http: node.http.clone(), address, deadline }
    }

    /// The number that a query comes to; `None` if it is refused as one that cannot be answered now. Anything else is an
    /// error, and so is an answer that does not come by the deadline.
    async fn ask(&self, query: &str) -> anyhow::Result<Option<i64>> {
        let answer = async {
            match self.api {
                Api::Http => self.over_http(query).await,
                Api::Flight => self.over_flight(query).await,
            }
        };
        let answer = tokio::time::timeout(self.deadline + SLACK, answer).await;
        answer.with_context(|| format!("{:?}: no answer within {:?}", self.api, self.deadline + SLACK))?
    }

    async fn over_http(&self, query: &str) -> anyhow::Result<Option<i64>> {
        let request = self.http.post(&self.address).header("x-signaldb-deadline", self.deadline_text());
        let response = request.json(&json!({"query": query})).send().await?;
        let (status, body): (_, Value) = (response.status(), response.json().await?);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            ensure!(body["error"]["code"] == "unavailable" || body["error"]["code"] == "backlog", "{status}: {body}");
            return Ok(None);
        }
        ensure!(status.is_success(), "{status}: {body}");
        Ok(Some(body["rows"][0][0].as_i64().with_context(|| format!("no number in {body}"))?))
    }

    async fn over_flight(&self, query: &str) -> anyhow::Result<Option<i64>> {
        let channel = Endpoint::from_shared(self.address.clone())?.connect().await?;
        let mut client = FlightSqlServiceClient::new(channel);
        client.set_header("x-signaldb-deadline", self.deadline_text());
        match flight_number(&mut client, query).await {
            Err(error) if is_unavailable(error.downcast_ref()) => Ok(None),
            number => Ok(Some(number?)),
        }
    }

    fn deadline_text(&self) -> String {
        format!("{}s", self.deadline.as_secs())
    }
}

fn is_unavailable(error: Option<&FlightError>) -> bool {
    matches!(error, Some(FlightError::Tonic(status)) if status.code() == Code::Unavailable)
}

/// Acknowledged spans of that name, taken by one node after the other.
async fn send_spans(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let mut urls = cluster.urls();
    for _ in 0..BATCHES {
        let spans = (0..BATCH).map(|_| span(name)).collect();
        send_until_acknowledged(&cluster.http, &urls, request("shop", spans).encode_to_vec().into()).await?;
        urls.rotate_left(1);
    }
    Ok(())
}

/// The leader, and the two others; returned once both read the rows from its memory.
async fn roles(cluster: &Cluster) -> anyhow::Result<(usize, [usize; 2])> {
    let until = Instant::now() + DEADLINE;
    loop {
        let leader = cluster.leader().await?;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let mut plans = Vec::new();
        for other in others {
            plans.push(cluster.nodes[other].sql_json(&format!("EXPLAIN {COUNT}")).await?.to_string());
        }
        if plans.iter().all(|plan| plan.contains(&format!("memtable of node {} ", leader + 1))) {
            return Ok((leader, others));
        }
        // Leaderships are still being spread, say.
        ensure!(Instant::now() < until, "nobody reads the memory of node {}: {plans:?}", leader + 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many answers each client waits for before the leader is lost, and again after that.
const ANSWERS: usize = 20;

/// Asks for the number of rows until it is told to stop.
async fn count_again_and_again(
    asker: Asker,
    (answers, stop): (Arc<AtomicUsize>, Arc<AtomicBool>),
) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        match asker.ask(COUNT).await? {
            Some(counted) => {
                ensure!(counted == SPANS as i64, "{asker:?}: {SPANS} spans, and the answer is {counted}");
                answers.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                let tried = begun.elapsed();
                ensure!(tried >= LOOKED_FOR, "{asker:?}: refused after {tried:?}; the next leader was not waited for");
            }
        }
    }
    Ok(())
}

/// Waits until each client has got so many further answers.
async fn wait_answers(answers: &[Arc<AtomicUsize>], clients: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let counts = || answers.iter().map(|answers| answers.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (before, until) = (counts(), Instant::now() + DEADLINE);
    while counts().iter().zip(&before).any(|(now, before)| *now < before + ANSWERS) {
        // A client that gave up says why.
        if let Some(ended) = clients.try_join_next() {
            ended??;
        }
        ensure!(Instant::now() < until, "no answers any more: {before:?}, now {:?}", counts());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Scenario: clients count without a pause, over HTTP and Flight SQL, through the two nodes that do not lead, what the leader
/// has in memory and nobody has in files; the leader is killed with SIGKILL.
/// Guarantees: every answer has all acknowledged rows, or is 503 or UNAVAILABLE after a leader was looked for as long as that
/// is promised; none is late; through each of the two nodes, over each API, answers go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_lost_under_queries_makes_no_answer_short_and_none_fail_at_once() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &UNFLUSHED).await?;
    send_spans(&cluster, "short").await?;
    let (leader, others) = roles(&cluster).await?;
    let (mut answers, stop) = (Vec::new(), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for other in others {
        for api in [Api::Http, Api::Flight] {
            let answered = Arc::new(AtomicUsize::new(0));
            answers.push(Arc::clone(&answered));
            let asker = Asker::new(api, &cluster.nodes[other], DEADLINE);
            clients.spawn(count_again_and_again(asker, (answered, Arc::clone(&stop))));
        }
    }
    wait_answers(&answers, &mut clients).await?;
    cluster.nodes[leader].kill()?;
    wait_answers(&answers, &mut clients).await?;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

/// A query that has a view of the spans from its beginning and reads them when it has counted for a while: the left side of
/// this join is complete before the right side is asked for its first row.
fn slow_count(numbers: u64) -> String {
    format!(
        "SELECT count(s.n + length(t.span_id)) FROM (SELECT sum(value % 7) AS n FROM generate_series(1, {numbers})) s \
         CROSS JOIN traces t"
    )
}

/// How many numbers keep a node busy for three seconds or longer, however it was built.
async fn slow_numbers(node: &Node) -> anyhow::Result<u64> {
    let mut numbers = 1_000_000;
    loop {
        let begun = Instant::now();
        node.number(&format!("SELECT sum(value % 7) FROM generate_series(1, {numbers})")).await?;
        if begun.elapsed() >= Duration::from_secs(3) {
            return Ok(numbers);
        }
        numbers *= 2;
    }
}

/// Queries of this text that have their views, on all nodes.
async fn running(node: &Node, query: &str) -> anyhow::Result<usize> {
    let body: Value = node.http.get(node.url("/api/v1/queries")).send().await?.error_for_status()?.json().await?;
    let queries = body["queries"].as_array().context("queries")?.iter();
    Ok(queries.filter(|listed| listed["state"] == "running" && listed["query"] == query).count())
}

/// Waits until somebody else leads; returns how long that took.
async fn wait_replaced(cluster: &Cluster, dead: usize) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    while cluster.leader().await? == dead {
        ensure!(begun.elapsed() < DEADLINE, "node {} is not replaced", dead + 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(begun.elapsed())
}

/// Scenario: through each of the two nodes that do not lead a query has its view of the leader's memory, one over HTTP and one
/// over Flight SQL, and has not read a row of it yet; the leader is killed with SIGKILL.
/// Guarantees: both answers have all acknowledged rows: the queries begin anew, with the next leader's.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_view_is_lost_with_its_leader_begins_anew() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &UNFLUSHED).await?;
    send_spans(&cluster, "short").await?;
    let (leader, others) = roles(&cluster).await?;
    let query = slow_count(slow_numbers(&cluster.nodes[others[0]]).await?);
    let mut clients = JoinSet::new();
    for (other, api) in others.into_iter().zip([Api::Http, Api::Flight]) {
        // What takes seconds takes several times as long when it is done twice, and beside other tests.
        let (asker, query) = (Asker::new(api, &cluster.nodes[other], 4 * DEADLINE), query.clone());
        clients.spawn(async move { asker.ask(&query).await });
    }
    let until = Instant::now() + DEADLINE;
    while running(&cluster.nodes[others[0]], &query).await? < 2 {
        if let Some(ended) = clients.try_join_next() {
            anyhow::bail!("answered before the leader was lost: {:?}", ended??);
        }
        ensure!(Instant::now() < until, "the queries do not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.nodes[leader].kill()?;
    // Else there was nothing to begin anew, and nothing was tested.
    ensure!(clients.try_join_next().is_none(), "answered before the leader was lost");
    let replaced = wait_replaced(&cluster, leader).await?;
    while let Some(ended) = clients.join_next().await {
        match ended?? {
            Some(counted) => assert_eq!(counted, SPANS as i64),
            None => assert!(replaced >= LOOKED_FOR, "refused, though another node led after {replaced:?}"),
        }
    }
    Ok(())
}

/// Scenario: through a node that does not lead a client has read the first of many long rows that the leader has in memory, and
/// pauses; the leader is killed with SIGKILL, and the client reads on.
/// Guarantees: rows that a client has seen cannot be taken back, so the query does not begin anew: it ends with UNAVAILABLE,
/// never as if the rows so far were all. Asked again, it yields all.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_lost_on_their_way_with_the_leader_are_said_to_be_missing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &UNFLUSHED).await?;
    send_spans(&cluster, &"x".repeat(LONG_NAME_BYTES)).await?;
    let (leader, others) = roles(&cluster).await?;
    let mut client = cluster.nodes[others[0]].flight_client().await?;
    let info = client.execute("SELECT name FROM traces".to_owned(), None).await?;
    let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).context("a ticket")?;
    let mut rows = client.do_get(ticket).await?;
    let first = rows.next().await.context("rows")??;
    ensure!(first.num_rows() < SPANS, "everything came at once");
    cluster.nodes[leader].kill()?;
    let rest = tokio::time::timeout(DEADLINE + SLACK, rows.try_collect::<Vec<_>>()).await?;
    let error = rest.err().context("rows that nobody has came to an end")?;
    assert!(is_unavailable(Some(&error)), "{error}");
    let asker = Asker::new(Api::Flight, &cluster.nodes[others[0]], DEADLINE);
    let until = Instant::now() + DEADLINE;
    let counted = loop {
        match asker.ask("SELECT count(*) FROM traces WHERE length(name) > 0").await? {
            Some(counted) => break counted,
            None => ensure!(Instant::now() < until, "no answers any more"),
        }
    };
    assert_eq!(counted, SPANS as i64);
    Ok(())
}
