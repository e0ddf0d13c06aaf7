//! Many tenants with three busy tables each on one node: what the catalog has to do, and how many files there are.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::number;
use crate::load::{self, RECORDS_A_REQUEST, Signal, Template};
use crate::node::Node;

const TENANTS: u64 = 100;
const TABLES: [Signal; 3] = [Signal::Spans, Signal::Logs, Signal::Points];
/// A table gets a request so often: more than a MiB in a flush interval, so that each is flushed in each.
const TABLE_EVERY: Duration = Duration::from_secs(10);
const CONNECTIONS: u64 = 8;

/// What the node did meanwhile.
#[derive(Debug)]
pub(crate) struct Tenants {
    pub(crate) tables: u64,
    pub(crate) seconds: f64,
    pub(crate) records: u64,
    /// Seconds of a core, a second.
    pub(crate) cpu: f64,
    pub(crate) peak_memory: u64,
    /// Transactions that moved tables, of flushes and of rewrites, a second.
    pub(crate) transactions: f64,
    /// Tables that they moved, a second.
    pub(crate) commits: f64,
    pub(crate) live_files: u64,
    /// On the disk, those that are live and those that wait to be deleted.
    pub(crate) files: Disk,
}

/// Files below a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) data: u64,
    pub(crate) data_bytes: u64,
    pub(crate) metadata: u64,
    pub(crate) metadata_bytes: u64,
    /// The largest `*.metadata.json`, bytes.
    pub(crate) largest_metadata: u64,
}

pub(crate) async fn measure(binary: &Path, lasts: Duration) -> anyhow::Result<Tenants> {
    let node = Node::start(binary, 1).await?;
    let (begun, cpu) = (Instant::now(), node.cpu_seconds()?);
    let records = load(&node, lasts).await? * RECORDS_A_REQUEST;
    let seconds = begun.elapsed().as_secs_f64();
    let flushes = node.metric("signaldb_flush_duration_seconds_count").await?;
    let rewrites = node.metric("signaldb_compaction_rewrites_total").await?;
    let (cpu, peak_memory) = (node.cpu_seconds()? - cpu, node.peak_memory()?);
    let (mut live_files, mut commits) = (0, 0);
    for tenant in 0..TENANTS {
        live_files += number(&node.sql_as(&name(tenant), "SELECT count(*) FROM system.files").await?.0);
        commits += number(&node.sql_as(&name(tenant), "SELECT count(*) FROM system.snapshots").await?.0);
    }
    let mut files = Disk::default();
    files.add(&node.storage())?;
    node.stop(Duration::from_secs(120))?;
    Ok(Tenants {
        tables: TENANTS * TABLES.len() as u64,
        seconds,
        records,
        cpu: cpu / seconds,
        peak_memory,
        transactions: (flushes + rewrites) / seconds,
        commits: commits as f64 / seconds,
        live_files,
        files,
    })
}

fn name(tenant: u64) -> String {
    format!("tenant-{tenant:03}")
}

/// Sends to every table in turn for `lasts`; returns the requests. Late ones are sent at once.
async fn load(node: &Node, lasts: Duration) -> anyhow::Result<u64> {
    let templates = Arc::new(TABLES.map(Template::new));
    let urls = Arc::new(TABLES.map(|signal| node.otlp(signal.path()).swap_remove(0)));
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (templates, urls, next) = (Arc::clone(&templates), Arc::clone(&urls), Arc::clone(&next));
        tasks.spawn(async move {
            let (http, mut sent) = (reqwest::Client::new(), 0u64);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let due = TABLE_EVERY.mul_f64(number as f64 / (TENANTS * TABLES.len() as u64) as f64);
                if due >= lasts || begun.elapsed() >= lasts {
                    return anyhow::Ok(sent);
                }
                tokio::time::sleep_until((begun + due).into()).await;
                let table = (number % TABLES.len() as u64) as usize;
                let tenant = name(number / TABLES.len() as u64 % TENANTS);
                load::send_as(&http, &urls[table], &tenant, templates[table].fresh(number)).await?;
                sent += 1;
            }
        });
    }
    let mut sent = 0;
    while let Some(task) = tasks.join_next().await {
        sent += task??;
    }
    Ok(sent)
}

impl Disk {
    fn add(&mut self, dir: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            // It may have been deleted meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                self.add(&path)?;
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                self.data += 1;
                self.data_bytes += metadata.len();
            } else {
                self.metadata += 1;
                self.metadata_bytes += metadata.len();
                if path.to_string_lossy().ends_with(".metadata.json") {
                    self.largest_metadata = self.largest_metadata.max(metadata.len());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_metadata_are_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let inner = dir.path().join("t/data");
        std::fs::create_dir_all(&inner).expect("made");
        for (name, bytes) in
            [("t/data/a.parquet", 7), ("t/1.metadata.json", 5), ("t/2.metadata.json", 9), ("t/m.avro", 20)]
        {
            std::fs::write(dir.path().join(name), vec![0; bytes]).expect("written");
        }
        let mut disk = Disk::default();
        disk.add(dir.path()).expect("read");
        let expected = Disk { data: 1, data_bytes: 7, metadata: 3, metadata_bytes: 34, largest_metadata: 9 };
        assert_eq!(disk, expected);
    }
}
