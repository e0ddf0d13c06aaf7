//! What a strong read costs more than an eventual one: on one node, and on a node of three that leads nothing of it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::load::{self, Latency, Signal, Template};
use crate::node::Node;

const QUERY: &str = "SELECT count(*) FROM traces";
const ROUNDS: usize = 300;
const REQUESTS: u64 = 20;

/// The same query, in turn with each other.
#[derive(Debug)]
pub(crate) struct Reads {
    pub(crate) nodes: usize,
    pub(crate) strong: Latency,
    pub(crate) eventual: Latency,
    /// `GET /livez` at another node if there is one: what a round trip between processes takes at most.
    pub(crate) round_trip: Latency,
}

pub(crate) async fn measure(binary: &Path) -> anyhow::Result<Vec<Reads>> {
    let mut measured = Vec::new();
    for nodes in [1, 3] {
        measured.push(reads(binary, nodes).await?);
    }
    Ok(measured)
}

async fn reads(binary: &Path, nodes: usize) -> anyhow::Result<Reads> {
    let node = Node::start(binary, nodes).await?;
    let template = Template::new(Signal::Spans);
    let urls = node.otlp(Signal::Spans.path());
    load::run(&urls, &template, REQUESTS, 1, None).await?;
    node.flush().await?;
    // Rows in Iceberg, and some that are not.
    load::send(&reqwest::Client::new(), &urls[0], template.fresh(u64::MAX)).await?;
    let leader = node.leader().await?;
    let asked = (leader + 1) % nodes;
    let http = reqwest::Client::new();
    let ask = async |consistency: &str| {
        let url = node.url(asked, &format!("/api/v1/sql?consistency={consistency}"));
        timed(http.post(url).json(&json!({"query": QUERY}))).await
    };
    let (mut strong, mut eventual, mut trips) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS + 20 {
        let times = (ask("strong").await?, ask("eventual").await?, timed(http.get(node.url(leader, "/livez"))).await?);
        // Connections, code and caches.
        if round >= 20 {
            strong.push(times.0);
            eventual.push(times.1);
            trips.push(times.2);
        }
    }
    node.stop(Duration::from_secs(60))?;
    let [strong, eventual, round_trip] = [strong, eventual, trips].map(Latency::of);
    Ok(Reads { nodes, strong, eventual, round_trip })
}

/// From the request to the last byte of the answer.
pub(crate) async fn timed(request: reqwest::RequestBuilder) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    request.send().await?.error_for_status()?.bytes().await?;
    Ok(begun.elapsed())
}
