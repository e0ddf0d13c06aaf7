//! Measures a release node from outside: what ingest costs, how soon rows are visible, how large they are.
//!
//! It starts its own node in a temporary directory, sends pre-encoded requests in which only times and ids are fresh,
//! and appends a section to the results with commit, command and machine. It bounds itself in count and time.

mod lake;
mod load;
mod log;
mod node;
mod overload;
mod postgres;
mod query;
mod report;
mod shop;
mod wal;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use crate::load::{Signal, Template};
use crate::node::Node;
use crate::report::{Measured, MeasuredCluster};

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    /// The release binary to measure.
    #[arg(long, required = true)]
    node: Option<PathBuf>,
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
    /// Pairs of runs with every node and with one follower stopped, in a cluster; on one node, rounds of the log and of
    /// plain writes.
    #[arg(long, default_value_t = 4)]
    pairs: usize,
    /// Connections.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Sections to measure; of the cluster's, those after ingest. Without it all, of overload half a minute.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Length of the overload: 600 when it is asked for with --only, else 30.
    #[arg(long)]
    overload_seconds: Option<u64>,
    /// `memory.limit` of each node in the overload.
    #[arg(long, default_value_t = 1024)]
    memory_limit_mib: u64,
    /// Interpreter with DuckDB and chdb, to compare sizes with (scripts/bench-venv.sh); else what the environment says in
    /// `SIGNALDB_BENCH_PYTHON`, and without that there is no comparison.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Length of the load of a hundred tenants; 600 is what the promise is about.
    #[arg(long, default_value_t = 60)]
    tenants_seconds: u64,
    /// Runs of each query after the first.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Length of the dashboard's load.
    #[arg(long, default_value_t = 30)]
    dashboard_seconds: u64,
    #[command(subcommand)]
    command: Option<Part>,
}

/// What can be measured apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    Ingest,
    Idle,
    Appends,
    Stopped,
    Failover,
    /// The log apart from what is built on it: on one node its engine, in a cluster with replication.
    Log,
    Overload,
    /// On one node: sizes beside other stores, OTLP to Parquet on one core, commits, compaction, many tenants.
    Lake,
    /// On one node: queries beside other engines on the same rows, strong beside eventual, and a dashboard while rows come
    /// in. In a cluster: with scans that stay on a node and with scans that spread.
    Query,
}

impl Section {
    /// What one cluster is started for.
    const OF_CLUSTER: [Self; 4] = [Self::Idle, Self::Appends, Self::Stopped, Self::Failover];
}

impl Args {
    fn wants(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }

    fn overload_lasts(&self) -> Duration {
        let by_default = if self.only.is_empty() { 30 } else { 600 };
        Duration::from_secs(self.overload_seconds.unwrap_or(by_default))
    }
}

/// Processes that a measurement starts.
#[derive(Debug, clap::Subcommand)]
enum Part {
    #[command(hide = true)]
    LogNode(log::LogNode),
}

/// How long each run of a pair is.
const PAIR_LASTS: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if let Some(Part::LogNode(node)) = args.command.take() {
        return log::run_node(node).await;
    }
    let binary = args.node.clone().context("--node")?;
    let mut text = report::head(&std::env::args().collect::<Vec<_>>().join(" "));
    if args.wants(Section::Ingest) {
        let mut measured = Vec::new();
        for (signal, records) in [(Signal::Spans, args.spans), (Signal::Logs, args.logs)] {
            measured.push(measure(&args, &binary, signal, records).await?);
        }
        text.push_str(&report::render(&measured));
    }
    let cluster = args.nodes > 1;
    if cluster && Section::OF_CLUSTER.into_iter().any(|section| args.wants(section)) {
        text.push_str(&report::render_cluster(&measure_cluster(&args, &binary).await?));
    }
    if cluster && args.wants(Section::Log) {
        text.push_str(&report::render_log(&log::measure().await?));
    } else if args.wants(Section::Log) {
        let rounds = args.pairs;
        text.push_str(&report::render_wal(&tokio::task::spawn_blocking(move || wal::measure(rounds)).await??));
    }
    let python = args.python.clone().or_else(|| std::env::var_os("SIGNALDB_BENCH_PYTHON").map(PathBuf::from));
    if !cluster && args.wants(Section::Lake) {
        let plan = lake::Plan {
            binary: &binary,
            spans: args.spans,
            logs: args.logs,
            python: python.as_deref(),
            tenants_last: Duration::from_secs(args.tenants_seconds),
        };
        text.push_str(&lake::render(&Box::pin(lake::measure(&plan)).await?));
    }
    if !cluster && args.wants(Section::Query) {
        let plan = query::Plan {
            binary: &binary,
            spans: args.spans,
            logs: args.logs,
            rounds: args.rounds.max(1),
            python: python.as_deref(),
            dashboard_lasts: Duration::from_secs(args.dashboard_seconds.max(3)),
        };
        text.push_str(&query::render(&Box::pin(query::measure(&plan)).await?));
    }
    if cluster && args.wants(Section::Query) {
        let (records, rounds) = ((args.spans, args.logs), args.rounds.max(1));
        let spread = Box::pin(query::measure_spread(&binary, args.nodes, records, rounds)).await?;
        text.push_str(&query::render_spread(&spread));
    }
    if args.wants(Section::Overload) {
        let (limit, lasts) = (args.memory_limit_mib, args.overload_lasts());
        text.push_str(&report::render_overload(&overload::measure(&binary, args.nodes, limit, lasts).await?));
    }
    print!("{text}");
    if let Some(path) = &args.results {
        report::append(path, &text)?;
    }
    Ok(())
}

/// What only a cluster has: idle cost, appends of single records, what a stopped node costs the others, and the pause
/// when a leader dies.
async fn measure_cluster(args: &Args, binary: &Path) -> anyhow::Result<MeasuredCluster> {
    let wanted = |section| args.wants(section);
    let mut measured = MeasuredCluster { nodes: args.nodes, ..MeasuredCluster::default() };
    let mut node = Node::start(binary, args.nodes).await?;
    let template = Arc::new(Template::new(Signal::Spans));
    load::run(&node.otlp("/v1/traces"), &template, 20, args.connections, None).await?;
    node.flush().await?;
    if wanted(Section::Idle) {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (idle, before) = (Duration::from_secs(20), node.cpu_seconds()?);
        tokio::time::sleep(idle).await;
        let percent = (node.cpu_seconds()? - before) / idle.as_secs_f64() / args.nodes as f64 * 100.0;
        measured.idle_percent = Some(percent);
    }
    if wanted(Section::Appends) {
        for bytes in [1 << 10, 64 << 10] {
            for proposers in [1, 16, 64] {
                let rate = load::appends(&node.otlp("/v1/logs"), bytes, proposers).await?;
                measured.appends.push((bytes, proposers, rate));
                node.flush().await?;
            }
        }
    }
    if wanted(Section::Stopped) {
        measured.pairs = load::stopped_follower(&node, &template, args.connections, args.pairs, PAIR_LASTS).await?;
        node.flush().await?;
    }
    if wanted(Section::Failover) {
        measured.gaps = load::failover_gaps(&mut node, binary, args.kills).await?;
    }
    node.stop(Duration::from_secs(15))?;
    Ok(measured)
}

/// One node, one signal: as fast as it goes, then at half that rate, then queries.
async fn measure(args: &Args, binary: &Path, signal: Signal, records: u64) -> anyhow::Result<Measured> {
    let node = Node::start(binary, args.nodes).await?;
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
    let rate = full.rate();
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
