//! Results as Markdown.

use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use crate::load::{Latency, Signal};
use crate::log::Point;

/// Figures of one signal.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) signal: Signal,
    pub(crate) records: u64,
    pub(crate) request_bytes: usize,
    pub(crate) rate: f64,
    pub(crate) full_latency: Latency,
    pub(crate) half_latency: Latency,
    pub(crate) cpu_a_million: f64,
    pub(crate) peak_memory: u64,
    pub(crate) log_bytes_a_record: f64,
    pub(crate) iceberg_bytes_a_record: f64,
    pub(crate) visible: Latency,
    pub(crate) queries: Vec<(String, Latency)>,
}

/// Figures that only a cluster has; what was not asked for is empty.
#[derive(Debug, Default)]
pub(crate) struct MeasuredCluster {
    pub(crate) nodes: usize,
    /// Of one core, a node, without clients.
    pub(crate) idle_percent: Option<f64>,
    /// Bytes of a record, proposers, MB/s.
    pub(crate) appends: Vec<(usize, usize, f64)>,
    /// Seconds from `kill -9` of the leader to the next acknowledgment, ascending.
    pub(crate) gaps: Vec<f64>,
}

pub(crate) fn render_cluster(cluster: &MeasuredCluster) -> String {
    let mut out = format!("\n{} nodes, CPU and memory summed over them, bytes in the log of one.", cluster.nodes);
    if let Some(percent) = cluster.idle_percent {
        let _ = write!(out, " Idle: {percent:.1} % of a core a node.");
    }
    if !cluster.gaps.is_empty() {
        let at = |part: f64| cluster.gaps[((cluster.gaps.len() as f64 - 1.0) * part).round() as usize];
        let (kills, p50, p99) = (cluster.gaps.len(), at(0.5), at(0.99));
        let _ = write!(out, " Pause over {kills} kills of the leader: p50 {p50:.2} s, p99 {p99:.2} s.");
    }
    let append =
        |(bytes, proposers, rate): &(usize, usize, f64)| format!("{} KiB x {proposers}: {rate:.0}", bytes >> 10);
    let appends: Vec<String> = cluster.appends.iter().map(append).collect();
    if !appends.is_empty() {
        let _ = write!(out, " OTLP requests of one record, MB/s by record and clients: {}.", appends.join(", "));
    }
    out.push('\n');
    out
}

pub(crate) fn render_log(points: &[Point]) -> String {
    let mut out = "\nThe replicated log alone, three voters, commands of a fourth process over the peer port:\n\n\
        | level | entry | proposers | MB/s | entries/s | p50 / p99, ms |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for point in points {
        let Point { level, bytes, proposers, rate, latency } = point;
        let (kib, entries) = (bytes >> 10, rate * 1e6 / *bytes as f64);
        let (p50, p99) = (latency.p50, latency.p99);
        let _ = writeln!(out, "| {level} | {kib} KiB | {proposers} | {rate:.1} | {entries:.0} | {p50:.2} / {p99:.2} |");
    }
    out
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|value| value.parse().ok()).unwrap_or(0);
    format!("{cores} x {}, {} GiB, {}", model.unwrap_or("unknown CPU"), kib >> 20, output("uname", &["-sr"]))
}

/// When, of which commit and where.
pub(crate) fn head(command: &str) -> String {
    let commit = output("git", &["describe", "--always", "--dirty"]);
    let date = output("date", &["-u", "+%Y-%m-%d %H:%M"]);
    let machine = machine();
    format!("\n## {date} UTC, commit {commit}\n\n{machine}. The client runs on the same cores. `{command}`\n")
}

pub(crate) fn render(measured: &[Measured]) -> String {
    let mut out = "\n".to_owned();
    let heads: Vec<&str> = measured.iter().map(|one| one.signal.name()).collect();
    let _ = writeln!(out, "| | {} |\n|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
    let mut row = |name: &str, value: &dyn Fn(&Measured) -> String| {
        let values: Vec<String> = measured.iter().map(value).collect();
        let _ = writeln!(out, "| {name} | {} |", values.join(" | "));
    };
    let pair = |latency: &Latency| format!("{:.1} / {:.1}", latency.p50, latency.p99);
    row("records sent", &|one| one.records.to_string());
    row("bytes of a request of 1000", &|one| one.request_bytes.to_string());
    row("records/s", &|one| format!("{:.0}", one.rate));
    row("ack p50 / p99 at full rate, ms", &|one| pair(&one.full_latency));
    row("ack p50 / p99 at half rate, ms", &|one| pair(&one.half_latency));
    row("server CPU seconds a million, flush included", &|one| format!("{:.1}", one.cpu_a_million));
    row("peak resident memory, MiB", &|one| (one.peak_memory >> 20).to_string());
    row("bytes a record in the log", &|one| format!("{:.1}", one.log_bytes_a_record));
    row("bytes a record in Iceberg", &|one| format!("{:.1}", one.iceberg_bytes_a_record));
    row("strong count after an ack p50 / p99, ms", &|one| pair(&one.visible));
    for at in 0..measured.first().map_or(0, |one| one.queries.len()) {
        let name = format!("{} p50 / p99, ms", measured[0].queries[at].0);
        row(&name, &|one| pair(&one.queries[at].1));
    }
    out
}

pub(crate) fn append(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
