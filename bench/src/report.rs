//! Results as Markdown.

use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use crate::load::{Latency, Pair, Run, Signal};
use crate::log::Point;
use crate::overload::{Overload, Phase};
use crate::wal::{Appends, MeasuredWal, Round};

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
    let ratios = cluster.pairs.iter().map(|pair| pair.stopped.rate() / pair.every.rate()).collect();
    row(
        "a stopped follower slows nobody: ratio of the rates, median (least to most), expected 0.95 or more",
        &spread(ratios),
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

pub(crate) fn render_wal(wal: &MeasuredWal) -> String {
    let rounds = wal.appends.first().map_or(0, |one| one.rounds.len());
    let mut out = format!(
        "\nThe log engine alone, one group, acknowledged when written; plain writes of the same bytes in turn with it, \
         {rounds} rounds, medians. Segmented: files of 64 MiB, each on disk before the next begins, as the log's are. \
         Latency: one append every 5 ms.\n\n"
    );
    let heads: Vec<String> = wal.appends.iter().map(|one| format!("{} KiB", one.bytes >> 10)).collect();
    let _ = writeln!(out, "| entry | {} |\n|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
    let mut row = |name: &str, value: &dyn Fn(&Appends) -> String| {
        let values: Vec<String> = wal.appends.iter().map(value).collect();
        let _ = writeln!(out, "| {name} | {} |", values.join(" | "));
    };
    let rate = |one: &Appends, of: fn(&Round) -> f64| format!("{:.0}", median(one.rounds.iter().map(of).collect()));
    let ratio = |one: &Appends, of: fn(&Round) -> f64| spread(one.rounds.iter().map(of).collect());
    let micros = |latency: &Latency| format!("{:.0} / {:.0}", latency.p50 * 1e3, latency.p99 * 1e3);
    row("log, MB/s, expected 500 or more at 64 KiB", &|one| rate(one, |round| round.log));
    row("plain file, MB/s", &|one| rate(one, |round| round.plain));
    row("segmented plain files, MB/s", &|one| rate(one, |round| round.segmented));
    row("log / plain file, median (least to most), expected 0.9 or more at 64 KiB", &|one| {
        ratio(one, |round| round.log / round.plain)
    });
    row("log / segmented plain files, median (least to most)", &|one| ratio(one, |round| round.log / round.segmented));
    row("append p50 / p99, us, expected p99 200 or less", &|one| micros(&one.latency));
    row("plain write p50 / p99, us", &|one| micros(&one.plain_latency));
    row("bytes of files a byte of payload, expected 1.02 or less at 64 KiB", &|one| {
        format!("{:.4}", one.file_amplification)
    });
    row("bytes of dirtied pages (write_bytes of /proc/self/io) a byte of payload", &|one| {
        format!("{:.4}", one.page_amplification)
    });
    out.push_str("\n| recovery of 2 GiB in entries of 64 KiB, expected 1 GB/s or more | GB/s |\n|---|---|\n");
    for recovery in &wal.recoveries {
        let cache = if recovery.cold { "page cache dropped" } else { "from the page cache" };
        for (what, rate) in [
            ("open (of sealed segments the index alone)", recovery.open),
            ("open and read every entry", recovery.replay),
            ("verify every byte", recovery.verify),
        ] {
            let _ = writeln!(out, "| {what}, {cache} | {rate:.2} |");
        }
    }
    let syncs = wal.syncs_a_second;
    let _ = writeln!(out, "\nfdatasyncs a second with 64 groups at memory level, expected 20 or fewer: {syncs:.1}");
    out
}

pub(crate) fn render_overload(overload: &Overload) -> String {
    let (nodes, limit) = (overload.nodes, overload.limit >> 20);
    let mut out = format!(
        "\nOverload, {nodes} node(s) with memory.limit {limit} MiB, requests of 1000 spans over gRPC and HTTP in turn. \
         Moderate clients pause 100 ms when refused, the others never.\n\n"
    );
    let heads: Vec<&str> = overload.phases.iter().map(|phase| phase.name.as_str()).collect();
    let _ = writeln!(out, "| | {} |\n|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
    let mut row = |name: &str, value: &dyn Fn(&Phase) -> String| {
        let values: Vec<String> = overload.phases.iter().map(value).collect();
        let _ = writeln!(out, "| {name} | {} |", values.join(" | "));
    };
    let mib = |bytes: u64| (bytes >> 20).to_string();
    row("seconds", &|phase| format!("{:.0}", phase.seconds));
    row("records/s acknowledged", &|phase| format!("{:.0}", phase.rate()));
    row("requests acknowledged", &|phase| phase.answers.acknowledged.to_string());
    row("429 / RESOURCE_EXHAUSTED with RetryInfo", &|phase| phase.answers.throttled.to_string());
    row("503 / UNAVAILABLE with RetryInfo", &|phase| phase.answers.unavailable.to_string());
    row("connections lost or silent, expected 0", &|phase| phase.answers.lost.to_string());
    row("any other answer, expected 0", &|phase| phase.answers.failed.to_string());
    row("ack p50 / p99, ms", &|phase| format!("{:.1} / {:.1}", phase.latency.p50, phase.latency.p99));
    row("resident memory of the largest node, median, MiB", &|phase| {
        mib(median(phase.resident.iter().map(|bytes| *bytes as f64).collect()) as u64)
    });
    row("the same, most of a sample a second, MiB", &|phase| mib(phase.resident.iter().copied().max().unwrap_or(0)));
    let (best, goodput) = overload.goodput();
    let peak = overload.peak as f64 / overload.limit as f64;
    let _ = writeln!(
        out,
        "\nGoodput in overload / best moderate: {:.2}, expected 0.9 or more. Largest resident set at any moment (VmHWM) / \
         limit: {peak:.2}, expected 1.1 or less.",
        goodput / best
    );
    if let Some(seconds) = overload.recovered {
        let _ = writeln!(out, "Acknowledged again {seconds:.1} s after the killed nodes were started.");
    }
    for phase in &overload.phases {
        for (text, count) in &phase.answers.texts {
            let _ = writeln!(out, "* {}: {count} x {text}", phase.name);
        }
    }
    out
}

/// Median (least to most).
fn spread(values: Vec<f64>) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({least:.2} to {most:.2})", median(values))
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
    fn the_log_is_compared_with_plain_writes_round_by_round() {
        let round = |log, plain| Round { log, plain, segmented: log };
        let rounds = vec![round(450.0, 500.0), round(950.0, 1000.0), round(990.0, 1100.0)];
        let latency = Latency { p50: 0.05, p99: 0.1501 };
        let (file_amplification, page_amplification) = (1.0012, 1.01);
        let one = Appends {
            bytes: 64 << 10,
            rounds,
            latency,
            plain_latency: latency,
            file_amplification,
            page_amplification,
        };
        let text = render_wal(&MeasuredWal { appends: vec![one], recoveries: Vec::new(), syncs_a_second: 19.8 });
        for line in ["| entry | 64 KiB |", "| 950 |", "| 0.90 (0.90 to 0.95) |", "| 50 / 150 |", "| 1.0012 |", ": 19.8"]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
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
