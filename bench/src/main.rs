//! Measures a release node from outside: what ingest costs, how soon rows are visible, how large they are.
//!
//! It starts its own node in a temporary directory, sends pre-encoded requests in which only times and ids are fresh,
//! and appends a section to the results with commit, command and machine. It bounds itself in count and time.

mod load;
mod node;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::load::{Signal, Template};
use crate::node::Node;
use crate::report::{Measured, MeasuredCluster};

#[derive(Debug, Parser)]
struct Args {
    /// The release binary to measure.
    #[arg(long)]
    node: PathBuf,
    /// File that a section is appended to.
    #[arg(long)]
    results: Option<PathBuf>,
    /// Spans of the throughput run.
    #[arg(long, default_value_t = 1_000_000)]
    spans: u64,
    /// Log records of the throughput run.
    #[arg(long, default_value_t = 500_000)]
    logs: u64,
    /// 1, or the nodes of a cluster: 3 or 5.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Kills of the leader, to measure how long acknowledgments pause; only in a cluster.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Connections.
    #[arg(long, default_value_t = 4)]
    connections: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut measured = Vec::new();
    for (signal, records) in [(Signal::Spans, args.spans), (Signal::Logs, args.logs)] {
        measured.push(measure(&args, signal, records).await?);
    }
    let cluster = if args.nodes > 1 { Some(measure_cluster(&args).await?) } else { None };
    let mut text = report::render(&measured, &std::env::args().collect::<Vec<_>>().join(" "));
    if let Some(cluster) = &cluster {
        text.push_str(&report::render_cluster(cluster));
    }
    print!("{text}");
    if let Some(path) = &args.results {
        report::append(path, &text)?;
    }
    Ok(())
}

/// What only a cluster has: idle cost, and the pause when a leader dies.
async fn measure_cluster(args: &Args) -> anyhow::Result<MeasuredCluster> {
    let mut node = Node::start(&args.node, args.nodes).await?;
    load::run(&node.otlp("/v1/traces"), &Template::new(Signal::Spans), 20, args.connections, None).await?;
    node.flush().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (idle, before) = (Duration::from_secs(20), node.cpu_seconds()?);
    tokio::time::sleep(idle).await;
    let idle_percent = (node.cpu_seconds()? - before) / idle.as_secs_f64() / args.nodes as f64 * 100.0;
    let mut appends = Vec::new();
    for bytes in [1 << 10, 64 << 10] {
        for proposers in [1, 16, 64] {
            let rate = load::appends(&node.otlp("/v1/logs"), bytes, proposers).await?;
            appends.push((bytes, proposers, rate));
            node.flush().await?;
        }
    }
    let gaps = load::failover_gaps(&mut node, &args.node, args.kills).await?;
    node.stop(Duration::from_secs(15))?;
    Ok(MeasuredCluster { nodes: args.nodes, idle_percent, appends, gaps })
}

/// One node, one signal: as fast as it goes, then at half that rate, then queries.
async fn measure(args: &Args, signal: Signal, records: u64) -> anyhow::Result<Measured> {
    let node = Node::start(&args.node, args.nodes).await?;
    let template = Template::new(signal);
    let urls = node.otlp(signal.path());
    // Warm up: code paths, connections, tables.
    load::run(&urls, &template, 20, args.connections, None).await?;
    node.flush().await?;
    let warm = node.cpu_seconds()?;
    let bytes_before = node.written_bytes().await?;
    let requests = records / load::RECORDS_A_REQUEST;
    let full = load::run(&urls, &template, requests, args.connections, None).await?;
    node.flush().await?;
    let cpu = node.cpu_seconds()? - warm;
    let written = node.written_bytes().await?.since(&bytes_before);
    let rate = full.records as f64 / full.seconds;
    let half = load::run(&urls, &template, requests / 4, args.connections, Some(rate / 2.0)).await?;
    let visible = load::ack_to_visible(&node, &urls, &template, signal.table(), 50).await?;
    node.flush().await?;
    let queries = load::queries(&node, signal).await?;
    let peak_memory = node.peak_memory()?;
    let measured = Measured {
        signal,
        records: full.records,
        request_bytes: template.len(),
        rate,
        full_latency: full.latency,
        half_latency: half.latency,
        cpu_a_million: cpu / full.records as f64 * 1e6,
        peak_memory,
        log_bytes_a_record: written.log as f64 / full.records as f64,
        iceberg_bytes_a_record: written.iceberg as f64 / full.records as f64,
        visible,
        queries,
    };
    node.stop(Duration::from_secs(15))?;
    Ok(measured)
}
