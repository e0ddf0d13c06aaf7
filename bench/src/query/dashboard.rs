//! A dashboard that is refreshed without pause while rows come in: its ten queries at once, as a browser asks them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use super::consistency::timed;
use crate::load::{self, Latency, RECORDS_A_REQUEST, Signal, Template};
use crate::node::Node;

/// Between two requests of a thousand records, of spans and of log records alternately: 20,000 records/s.
const REQUEST_EVERY: Duration = Duration::from_millis(50);

/// Name, what is asked of which table, and what follows the range of time, the last quarter of an hour.
const PANELS: [(&str, &str, &str); 10] = [
    (
        "spans by time and service",
        "date_bin(INTERVAL '10 seconds', timestamp) AS t, service_name, count(*) FROM traces",
        "GROUP BY t, service_name ORDER BY t",
    ),
    (
        "failures by time",
        "date_bin(INTERVAL '10 seconds', timestamp) AS t, count(*) FROM traces",
        "AND http_response_status_code >= 500 GROUP BY t ORDER BY t",
    ),
    (
        "percentiles by time",
        "date_bin(INTERVAL '10 seconds', timestamp) AS t, \
            approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_nano), \
            approx_percentile_cont(0.99) WITHIN GROUP (ORDER BY duration_nano) FROM traces",
        "AND kind = 'SERVER' GROUP BY t ORDER BY t",
    ),
    ("busiest routes", "http_route, count(*) AS n FROM traces", "GROUP BY http_route ORDER BY n DESC LIMIT 10"),
    (
        "failures by service",
        "service_name, count(*) AS n FROM traces",
        "AND http_response_status_code >= 500 GROUP BY service_name ORDER BY n DESC LIMIT 10",
    ),
    (
        "slowest spans",
        "timestamp, trace_id, service_name, name, duration_nano FROM traces",
        "ORDER BY duration_nano DESC LIMIT 20",
    ),
    (
        "newest failures",
        "timestamp, trace_id, service_name, name FROM traces",
        "AND http_response_status_code >= 500 ORDER BY timestamp DESC LIMIT 20",
    ),
    (
        "logs by time and severity",
        "date_bin(INTERVAL '10 seconds', timestamp) AS t, severity_text, count(*) FROM logs",
        "GROUP BY t, severity_text ORDER BY t",
    ),
    ("newest logs", "timestamp, service_name, severity_text, body FROM logs", "ORDER BY timestamp DESC LIMIT 100"),
    (
        "busiest loggers",
        "attributes['logger.name'] AS logger, count(*) AS n FROM logs",
        "GROUP BY logger ORDER BY n DESC LIMIT 10",
    ),
];

/// What the dashboard and those who write have of each other.
#[derive(Debug)]
pub(crate) struct Dashboard {
    pub(crate) seconds: f64,
    pub(crate) refreshes: usize,
    /// Records/s acknowledged meanwhile.
    pub(crate) rate: f64,
    /// Name and times of each panel.
    pub(crate) panels: Vec<(&'static str, Latency)>,
    /// All queries.
    pub(crate) queries: Latency,
    /// From a refresh to its last answer.
    pub(crate) refresh: Latency,
    /// Acknowledgments without and with the dashboard.
    pub(crate) acks: [Latency; 2],
}

pub(crate) async fn measure(node: &Node, lasts: Duration) -> anyhow::Result<Dashboard> {
    let alone = Ingest::start(node, lasts / 3).finish().await?;
    let ingest = Ingest::start(node, lasts);
    let (begun, http) = (Instant::now(), reqwest::Client::new());
    let (mut panels, mut refreshes) = (vec![Vec::new(); PANELS.len()], Vec::new());
    while begun.elapsed() < lasts {
        let refresh = Instant::now();
        for (panel, took) in refreshed(node, &http).await? {
            panels[panel].push(took);
        }
        refreshes.push(refresh.elapsed());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let beside = ingest.finish().await?;
    Ok(Dashboard {
        seconds,
        refreshes: refreshes.len(),
        rate: beside.len() as f64 * RECORDS_A_REQUEST as f64 / lasts.as_secs_f64(),
        queries: Latency::of(panels.concat()),
        panels: PANELS.iter().zip(panels).map(|((name, ..), times)| (*name, Latency::of(times))).collect(),
        refresh: Latency::of(refreshes),
        acks: [alone, beside].map(Latency::of),
    })
}

/// All panels at once; how long each took.
async fn refreshed(node: &Node, http: &reqwest::Client) -> anyhow::Result<Vec<(usize, Duration)>> {
    let mut asked = JoinSet::new();
    for (panel, (_, what, how)) in PANELS.iter().enumerate() {
        let query = format!("SELECT {what} WHERE timestamp > now() - INTERVAL '15 minutes' {how}");
        let request = http.post(node.url(0, "/api/v1/sql")).json(&json!({"query": query}));
        asked.spawn(async move { anyhow::Ok((panel, timed(request).await?)) });
    }
    let mut answered = Vec::new();
    while let Some(answer) = asked.join_next().await {
        answered.push(answer??);
    }
    Ok(answered)
}

/// Rows that come in at a steady rate.
pub(super) struct Ingest(JoinSet<anyhow::Result<Vec<Duration>>>);

impl Ingest {
    pub(super) fn start(node: &Node, lasts: Duration) -> Self {
        let signals = [Signal::Spans, Signal::Logs];
        let urls = signals.map(|signal| node.otlp(signal.path()).swap_remove(0));
        let templates = Arc::new(signals.map(Template::new));
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        // Two, so that a slow acknowledgment holds up the other signal's requests no more than its own.
        for (at, url) in urls.into_iter().enumerate() {
            let templates = Arc::clone(&templates);
            tasks.spawn(async move {
                let (http, mut times) = (reqwest::Client::new(), Vec::new());
                for number in 0u32.. {
                    // Open loop: latency counts from when a request was due, so that a stall is not hidden.
                    let due = REQUEST_EVERY * (2 * number + at as u32);
                    if due >= lasts {
                        break;
                    }
                    tokio::time::sleep_until((begun + due).into()).await;
                    load::send(&http, &url, templates[at].fresh(u64::from(number))).await?;
                    times.push((begun + due).elapsed());
                }
                anyhow::Ok(times)
            });
        }
        Self(tasks)
    }

    /// Times of acknowledgments.
    pub(super) async fn finish(mut self) -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::new();
        while let Some(task) = self.0.join_next().await {
            times.extend(task??);
        }
        Ok(times)
    }
}
