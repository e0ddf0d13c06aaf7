//! How long a commit takes, with SQLite and with PostgreSQL: the move of a table's pointer alone, and a flush of a thousand
//! spans from outside, which writes a data file, a manifest, a manifest list and the metadata, each durably, before it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use signaldb_catalog::{Database, IcebergCatalog, PoolConfig, Swap, SwapOutcome};

use crate::load::{self, Latency, Signal, Template};
use crate::node::Node;
use crate::postgres::Postgres;

const SWAPS: u64 = 500;
const FLUSHES: u64 = 200;

/// One kind of catalog.
#[derive(Debug)]
pub(crate) struct Commits {
    pub(crate) catalog: &'static str,
    pub(crate) swap: Latency,
    pub(crate) flush: Latency,
}

/// PostgreSQL only where it is installed.
pub(crate) async fn measure(binary: &Path) -> anyhow::Result<Vec<Commits>> {
    let dir = tempfile::tempdir()?;
    let sqlite = |name: &str| format!("sqlite://{}", dir.path().join(name).display());
    // First the node: it looks at the tables that it finds, and the others have no metadata.
    let (flush, swap) = (flushes(binary, &sqlite("catalog.db")).await?, swaps(&sqlite("swaps.db")).await?);
    let mut measured = vec![Commits { catalog: "SQLite", swap, flush }];
    if let Some(postgres) = tokio::task::spawn_blocking(Postgres::start).await?? {
        let address = postgres.address();
        let (flush, swap) = (flushes(binary, &address).await?, swaps(&address).await?);
        measured.push(Commits { catalog: "PostgreSQL", swap, flush });
    }
    Ok(measured)
}

async fn swaps(address: &str) -> anyhow::Result<Latency> {
    let database = Database::open(address, &PoolConfig::default()).await?;
    let catalog = IcebergCatalog::open(database.clone()).await?;
    let location = |n: u64| format!("file:///bench/traces/metadata/{n:05}-bench.metadata.json");
    catalog.create("bench.swaps", "traces", &location(0)).await?;
    let mut times = Vec::new();
    for n in 0..SWAPS {
        let (namespace, table) = ("bench.swaps".to_owned(), "traces".to_owned());
        let swap = Swap { namespace, table, base: location(n), new: location(n + 1) };
        let begun = Instant::now();
        let outcome = catalog.swap(&[swap]).await?;
        times.push(begun.elapsed());
        ensure!(outcome == SwapOutcome::Moved, "nobody else moves the table");
    }
    database.close().await;
    Ok(Latency::of(times))
}

async fn flushes(binary: &Path, address: &str) -> anyhow::Result<Latency> {
    let node = Node::start_with(binary, 1, vec![format!("schema.catalog_uri={address}")]).await?;
    let (template, http) = (Template::new(Signal::Spans), reqwest::Client::new());
    let url = node.otlp(Signal::Spans.path()).swap_remove(0);
    let mut times = Vec::new();
    for n in 0..FLUSHES {
        load::send(&http, &url, template.fresh(n)).await?;
        let begun = Instant::now();
        node.flush().await?;
        times.push(begun.elapsed());
    }
    node.stop(Duration::from_secs(60))?;
    Ok(Latency::of(times))
}
