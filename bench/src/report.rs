//! Results as Markdown.

use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use crate::load::{Latency, Pair, Run, Signal};
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
    /// The same load with every node and with one follower stopped.
    pub(crate) pairs: Vec<Pair>,
    /// Seconds from `kill -9` of the leader to the next acknowledgment, ascending.
    pub(crate) gaps: Vec<f64>,
}

pub(crate) fn render_cluster(cluster: &MeasuredCluster) -> String {
    let nodes = cluster.nodes;
    let mut out = format!("\nOf {nodes} nodes, CPU and memory are summed, bytes in the log are those of one.\n\n");
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "| {name} | {value} |");
    };
    row(&format!("{nodes} nodes"), "");
    row("---", "---");
    if let Some(percent) = cluster.idle_percent {
        row("idle, % of a core a node", &format!("{percent:.2}"));
    }
    if !cluster.gaps.is_empty() {
        let at = |part: f64| cluster.gaps[((cluster.gaps.len() as f64 - 1.0) * part).round() as usize];
        let name = format!("pause over {} kills of the leader p50 / p99, s", cluster.gaps.len());
        row(&name, &format!("{:.2} / {:.2}", at(0.5), at(0.99)));
    }
    for (bytes, proposers, rate) in &cluster.appends {
        row(&format!("OTLP requests of one record of {} KiB x {proposers}, MB/s", bytes >> 10), &format!("{rate:.0}"));
    }
    if cluster.pairs.is_empty() {
        return out;
    }
    let medians = |of: fn(&Run) -> f64| {
        let every = median(cluster.pairs.iter().map(|pair| of(&pair.every)).collect());
        (every, median(cluster.pairs.iter().map(|pair| of(&pair.stopped)).collect()))
    };
    let (every, stopped) = medians(Run::rate);
    let pairs = cluster.pairs.len();
    row(
        &format!("spans/s with every node / with one follower stopped, median of {pairs} pairs"),
        &format!("{every:.0} / {stopped:.0}"),
    );
    let (every, stopped) = medians(|run| run.latency.p99);
    row("ack p99 with every node / with one follower stopped, ms", &format!("{every:.1} / {stopped:.1}"));
    let ratios: Vec<f64> = cluster.pairs.iter().map(|pair| pair.stopped.rate() / pair.every.rate()).collect();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    row(
        "a stopped follower slows nobody: ratio of the rates, median (least to most), expected 0.95 or more",
        &format!("{:.2} ({least:.2} to {most:.2})", median(ratios)),
    );
    out
}

pub(crate) fn render_log(points: &[Point]) -> String {
    let mut out =
        "\nThe replicated log alone, three voters, commands of a fourth process in one stream over the peer port:\n\n\
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

/// The middle value, or the mean of the two in the middle; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        Some(upper) if values.len().is_multiple_of(2) => f64::midpoint(values[middle - 1], *upper),
        Some(value) => *value,
        None => 0.0,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(records: u64, p99: f64) -> Run {
        Run { records, seconds: 2.0, latency: Latency { p50: 1.0, p99 } }
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }

    #[test]
    fn pairs_become_rows() {
        let pairs = vec![
            Pair { every: run(2000, 10.0), stopped: run(1900, 11.0) },
            Pair { every: run(1000, 20.0), stopped: run(1200, 21.0) },
            Pair { every: run(4000, 30.0), stopped: run(4000, 31.0) },
        ];
        let gaps = vec![1.0, 2.0, 3.0];
        let cluster =
            MeasuredCluster { nodes: 3, idle_percent: Some(1.25), appends: vec![(1 << 10, 16, 6.0)], pairs, gaps };
        let text = render_cluster(&cluster);
        let lines = [
            "3 pairs | 1000 / 950 |",
            "stopped, ms | 20.0 / 21.0 |",
            "| 1.00 (0.95 to 1.20) |",
            "1 KiB x 16, MB/s | 6 |",
        ];
        for line in lines {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
