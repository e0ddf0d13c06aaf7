//! The tables: how large they are beside other stores of the same rows, what the way into them costs, how soon a commit is
//! done, how fast small files become large ones, and what many tenants make of it.

mod codec;
mod commits;
mod peers;
mod report;
mod tenants;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

pub(crate) use codec::Codec;
pub(crate) use commits::Commits;
pub(crate) use peers::Peers;
pub(crate) use report::{Row, render, table};
pub(crate) use tenants::Tenants;

use crate::load::{self, RECORDS_A_REQUEST, Signal};
use crate::node::Node;
use crate::shop::Shop;

/// Requests for compaction before it is given up; each goes on for a minute.
const ASKED_MAX: usize = 30;
const DAY_NANOS: u64 = 86_400_000_000_000;

/// Everything about the tables.
#[derive(Debug)]
pub(crate) struct MeasuredLake {
    pub(crate) codec: Vec<Codec>,
    pub(crate) sizes: Vec<Size>,
    pub(crate) compaction: Compaction,
    pub(crate) commits: Vec<Commits>,
    pub(crate) tenants: Tenants,
}

/// What to measure.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) spans: u64,
    pub(crate) logs: u64,
    /// Interpreter that has the other stores; without it there is no comparison.
    pub(crate) python: Option<&'a Path>,
    pub(crate) tenants_last: Duration,
}

/// One table and the same rows elsewhere.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) signal: Signal,
    pub(crate) records: u64,
    /// Of OTLP, a record.
    pub(crate) request_bytes: f64,
    /// Node CPU seconds a million records, flush included.
    pub(crate) cpu_a_million: f64,
    pub(crate) flushed: Files,
    pub(crate) compacted: Files,
    pub(crate) peers: Option<Peers>,
}

/// Live data files of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) paths: Vec<String>,
}

/// What the rewrites did.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    pub(crate) rewrites: u64,
    pub(crate) seconds: f64,
    pub(crate) read_bytes: f64,
    pub(crate) written_bytes: f64,
    /// CPU seconds of the node meanwhile.
    pub(crate) cpu: f64,
}

pub(crate) async fn measure(plan: &Plan<'_>) -> anyhow::Result<MeasuredLake> {
    let codec = tokio::task::spawn_blocking(codec::measure).await??;
    let (sizes, compaction) = sizes(plan).await?;
    let commits = commits::measure(plan.binary).await?;
    let tenants = tenants::measure(plan.binary, plan.tenants_last).await?;
    Ok(MeasuredLake { codec, sizes, compaction, commits, tenants })
}

/// Yesterday noon: a seeded run lies within one day, whenever it is made.
fn begin() -> u64 {
    let now = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos()).unwrap_or(0);
    (now / DAY_NANOS).saturating_sub(1) * DAY_NANOS + DAY_NANOS / 2
}

/// Sizes as loaded, compacted and in the other stores.
async fn sizes(plan: &Plan<'_>) -> anyhow::Result<(Vec<Size>, Compaction)> {
    let (node, mut sizes, compaction) = filled(plan.binary, plan.spans, plan.logs).await?;
    for size in &mut sizes {
        if let Some(python) = plan.python {
            let (python, paths) = (python.to_owned(), size.compacted.paths.clone());
            let (table, records) = (size.signal.table(), size.records);
            let asked = tokio::task::spawn_blocking(move || peers::measure(&python, table, &paths, records));
            size.peers = Some(asked.await??);
        }
    }
    node.stop(Duration::from_secs(60))?;
    Ok((sizes, compaction))
}

/// A node with seeded spans and log records, loaded without compaction and then compacted.
pub(crate) async fn filled(binary: &Path, spans: u64, logs: u64) -> anyhow::Result<(Node, Vec<Size>, Compaction)> {
    // When it is asked for, and whatever there is.
    let settings = ["compaction.enabled=false", "compaction.min_files=2"].map(str::to_owned);
    let node = Node::start_with(binary, 1, settings.into()).await?;
    let mut sizes = Vec::new();
    for (signal, records) in [(Signal::Spans, spans), (Signal::Logs, logs)] {
        sizes.push(load_one(&node, signal, records).await?);
    }
    let compaction = compact(&node).await?;
    for size in &mut sizes {
        size.compacted = files(&node, size.signal).await?;
        ensure!(size.compacted.records == size.records, "{:?}: rows were lost or doubled", size.signal);
    }
    Ok((node, sizes, compaction))
}

/// Sends seeded rows through the first node, and flushes them.
pub(crate) async fn load_one(node: &Node, signal: Signal, records: u64) -> anyhow::Result<Size> {
    let mut shop = Shop::new(signal, begin());
    let (http, url) = (reqwest::Client::new(), node.otlp(signal.path()).swap_remove(0));
    let (mut sent, mut bytes) = (0, 0);
    let before = node.cpu_seconds()?;
    while sent < records {
        let request = shop.request();
        bytes += request.len();
        load::send(&http, &url, request.into()).await?;
        sent += RECORDS_A_REQUEST;
    }
    node.flush().await?;
    let cpu = node.cpu_seconds()? - before;
    let flushed = files(node, signal).await?;
    ensure!(flushed.records == sent, "{signal:?}: {} of {sent} rows are in Iceberg", flushed.records);
    Ok(Size {
        signal,
        records: sent,
        request_bytes: bytes as f64 / sent as f64,
        cpu_a_million: cpu / sent as f64 * 1e6,
        flushed,
        compacted: Files::default(),
        peers: None,
    })
}

/// Live data files of a table, as the node says.
async fn files(node: &Node, signal: Signal) -> anyhow::Result<Files> {
    let query = format!("SELECT path, records, bytes FROM system.files WHERE \"table\" = '{}'", signal.table());
    let (rows, _) = node.sql(&query).await?;
    let mut files = Files::default();
    for row in rows.as_array().context("rows")? {
        let number = |at: usize| row[at].as_u64().context("a number");
        files.records += number(1)?;
        files.bytes += number(2)?;
        let path = row[0].as_str().context("a path")?;
        files.paths.push(path.strip_prefix("file://").unwrap_or(path).to_owned());
    }
    Ok(files)
}

/// Asks for compaction until nothing is left to do.
async fn compact(node: &Node) -> anyhow::Result<Compaction> {
    let mut compaction = Compaction::default();
    let cpu = node.cpu_seconds()?;
    for _ in 0..ASKED_MAX {
        let begun = Instant::now();
        let report = node.post("/api/v1/admin/tables/compact").await?;
        compaction.seconds += begun.elapsed().as_secs_f64();
        let left = compaction.add(&report)?;
        if left == 0 {
            compaction.cpu = node.cpu_seconds()? - cpu;
            return Ok(compaction);
        }
    }
    bail!("compaction does not end")
}

impl Compaction {
    /// Adds what the node reports; returns the rewrites that are left.
    fn add(&mut self, report: &Value) -> anyhow::Result<u64> {
        let mut left = 0;
        for table in report["tables"].as_array().context("tables")? {
            ensure!(table["error"].is_null(), "compaction failed: {}", table["error"]);
            left += table["left"].as_u64().context("rewrites that are left")?;
            for rewrite in table["rewrites"].as_array().context("rewrites")? {
                self.rewrites += 1;
                self.read_bytes += rewrite["bytes"].as_f64().context("bytes")?;
                self.written_bytes += rewrite["new_bytes"].as_f64().context("new bytes")?;
            }
        }
        Ok(left)
    }
}

/// The number in a row of one column.
fn number(rows: &Value) -> u64 {
    rows[0][0].as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rewrites_are_summed_over_tables() {
        let rewrite = json!({"bytes": 30, "new_bytes": 20});
        let report =
            json!({"tables": [{"left": 0, "rewrites": [rewrite, rewrite]}, {"left": 1, "rewrites": [rewrite]}]});
        let mut compaction = Compaction::default();
        assert_eq!(compaction.add(&report).expect("a report"), 1);
        assert_eq!(compaction.rewrites, 3);
        assert!((compaction.read_bytes - 90.0).abs() < 1e-9 && (compaction.written_bytes - 60.0).abs() < 1e-9);
        assert!(compaction.add(&json!({"tables": [{"error": "no", "left": 0, "rewrites": []}]})).is_err());
    }
}
