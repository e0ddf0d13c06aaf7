//! Twenty large aggregations at a time, again and again, while rows come in: who waits for whom.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use tokio::task::JoinSet;

use super::dashboard::Ingest;
use crate::load::Latency;
use crate::node::Node;

/// Askers at a time.
pub(crate) const ASKERS: usize = 20;
/// Longer than `query.deadline` allows: nobody is left waiting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(150);
/// A group for each trace, which is as many as there can be; sorted, which needs all of them.
const LARGE: &str = "SELECT trace_id, count(*) AS n, max(duration_nano), min(name) FROM traces \
    GROUP BY trace_id ORDER BY n DESC, trace_id LIMIT 10";

/// What became of the aggregations, and of those who write.
#[derive(Debug)]
pub(crate) struct Crowd {
    pub(crate) seconds: f64,
    pub(crate) answered: usize,
    /// By a budget, a queue or a deadline, with its name.
    pub(crate) refused: usize,
    /// Of an aggregation that was answered.
    pub(crate) took: Latency,
    /// Times of acknowledgments without and with the aggregations.
    pub(crate) acks: [Latency; 2],
}

pub(crate) async fn measure(node: &Node, lasts: Duration) -> anyhow::Result<Crowd> {
    let alone = Ingest::start(node, lasts).finish().await?;
    let ingest = Ingest::start(node, lasts);
    let begun = Instant::now();
    let mut askers = JoinSet::new();
    for _ in 0..ASKERS {
        let (http, url) = (reqwest::Client::new(), node.url(0, "/api/v1/sql"));
        askers.spawn(async move {
            let (mut took, mut refused) = (Vec::new(), 0);
            while begun.elapsed() < lasts {
                let asked = Instant::now();
                match ask(&http, &url).await? {
                    true => took.push(asked.elapsed()),
                    false => refused += 1,
                }
            }
            anyhow::Ok((took, refused))
        });
    }
    let beside = ingest.finish().await?;
    let (mut took, mut refused) = (Vec::new(), 0);
    while let Some(asker) = askers.join_next().await {
        let (times, refusals) = asker??;
        took.extend(times);
        refused += refusals;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Crowd {
        seconds,
        answered: took.len(),
        refused,
        took: Latency::of(took),
        acks: [alone, beside].map(Latency::of),
    })
}

/// Whether it was answered; a refusal is an answer too, if it names what is used up.
async fn ask(http: &reqwest::Client, url: &str) -> anyhow::Result<bool> {
    let response = http.post(url).json(&json!({"query": LARGE})).timeout(ANSWER_TIMEOUT).send().await?;
    let status = response.status();
    let body = response.bytes().await.context("the answer breaks off")?;
    match status.as_u16() {
        200 => Ok(true),
        422 | 429 | 503 | 504 => Ok(false),
        _ => bail!("{status}: {}", String::from_utf8_lossy(&body)),
    }
}
