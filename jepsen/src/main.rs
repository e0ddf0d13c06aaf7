//! A black box around three release nodes: clients, faults, a history and a verdict.
//!
//! It knows the system from its public ports alone. The exit code is the verdict: 0 valid, 1 invalid, 2 unknown; what is
//! unknown is no pass. The method is that of Jepsen (Kingsbury): concurrent clients record what they did and saw while a
//! nemesis breaks things, and a checker looks for what must not be.

mod checker;
mod clock;
mod cluster;
mod history;
mod invariants;
mod link;
mod nemesis;
mod postgres;
mod random;
mod report;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use tokio::task::JoinSet;

use crate::checker::Verdict;
use crate::cluster::{Catalog, Cluster, NODES};
use crate::history::History;
use crate::invariants::Invariants;
use crate::nemesis::Strike;
use crate::random::Random;
use crate::workload::{TENANTS, Test};

#[derive(Debug, Parser)]
struct Args {
    /// The release binary to test.
    #[arg(long)]
    node: PathBuf,
    /// How long faults go on, seconds.
    #[arg(long, default_value_t = 100)]
    seconds: u64,
    /// What holds the Iceberg catalog and the nodes' database.
    #[arg(long, value_enum, default_value = "sqlite")]
    catalog: Catalog,
    /// Makes the choices of an earlier run again (not its timing).
    #[arg(long)]
    seed: Option<u64>,
    /// Where history and logs are kept; a temporary directory by default, kept unless the verdict is valid.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(Verdict::Valid) => ExitCode::SUCCESS,
        Ok(Verdict::Invalid(_)) => ExitCode::from(1),
        Ok(Verdict::Unknown(_)) => ExitCode::from(2),
        Err(error) => {
            // A test that could not be run proves nothing.
            eprintln!("signaldb-jepsen: {error:#}\nverdict: unknown");
            ExitCode::from(2)
        }
    }
}

async fn run(args: Args) -> anyhow::Result<Verdict> {
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |now| u64::from(now.subsec_nanos()));
    let seed = args.seed.unwrap_or(clock);
    let dir = match &args.out {
        Some(out) => std::path::absolute(out)?,
        None => tempfile::tempdir().context("make a directory")?.keep(),
    };
    std::fs::create_dir_all(&dir)?;
    println!("seed {seed}, history and logs in {}", dir.display());
    let cluster = Arc::new(Cluster::start(&args.node, &dir, args.catalog).await?);
    let test = Test {
        cluster: Arc::clone(&cluster),
        history: Arc::new(History::new()),
        random: Arc::new(Random::new(seed)),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let mut clients = JoinSet::new();
    for process in 0..6 {
        clients.spawn(workload::add(test.clone(), process));
    }
    for process in 100..103 {
        clients.spawn(workload::read(test.clone(), process));
    }
    for (n, tenant) in TENANTS.into_iter().enumerate() {
        for node in 0..NODES {
            clients.spawn(workload::probe(test.clone(), 200 + n * NODES + node, tenant, node));
        }
    }
    let watcher = watch(Arc::clone(&cluster), Arc::clone(&test.stop));
    let mut watchers = JoinSet::new();
    watchers.spawn(watcher);
    // Whatever goes wrong from here on, the history is written and judged.
    let mut troubles = Vec::new();
    let mut strikes = Vec::new();
    if let Err(error) = break_things(&test, Duration::from_secs(args.seconds), &mut strikes).await {
        troubles.push(format!("faults ended early: {error:#}"));
    }
    if let Err(error) = cluster.heal().await {
        troubles.push(format!("the cluster did not come back: {error:#}"));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    test.stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        if let Err(error) = client? {
            troubles.push(format!("a client ended early: {error:#}"));
        }
    }
    let python = std::env::var("SIGNALDB_PYTHON").ok();
    match workload::last_reads(&test, python.as_deref()).await {
        Ok(missing) => troubles.extend(missing),
        Err(error) => troubles.push(format!("{error:#}")),
    }
    let invariants = watchers.join_next().await.context("a watcher")??;
    drop(clients);
    let history = Arc::into_inner(test.history).context("clients are gone")?;
    let operations = history.into_operations();
    history::write(&dir.join("history.jsonl"), &operations)?;
    let mut verdict = checker::check(&operations, report::effective(&strikes));
    let violations: Vec<String> = invariants.violations().iter().cloned().chain(cluster.deaths()).collect();
    match &mut verdict {
        Verdict::Invalid(found) => found.extend(violations),
        verdict if !violations.is_empty() => *verdict = Verdict::Invalid(violations),
        Verdict::Valid if !troubles.is_empty() => verdict = Verdict::Unknown(troubles.join("; ")),
        _ => {}
    }
    report::print(&operations, &strikes, &invariants, &verdict);
    if verdict == Verdict::Valid && args.out.is_none() {
        drop((cluster, test.cluster));
        // Only what is valid is not worth keeping.
        let _ = std::fs::remove_dir_all(&dir);
    }
    Ok(verdict)
}

/// One fault after the other, each at least once if the time allows; notes them in `strikes`.
async fn break_things(test: &Test, how_long: Duration, strikes: &mut Vec<Strike>) -> anyhow::Result<()> {
    let until = Instant::now() + how_long;
    let faults = nemesis::possible(test.cluster.has_clocks());
    for round in 0.. {
        let fault = faults.get(round).copied().unwrap_or_else(|| faults[test.random.below(faults.len())]);
        tokio::time::sleep(Duration::from_millis(1000 + test.random.next() % 1500)).await;
        if Instant::now() > until {
            break;
        }
        let begun = test.history.now();
        let effective = nemesis::strike(&test.cluster, &test.random, fault).await?;
        strikes.push(Strike { fault, begun, ended: test.history.now(), effective });
        println!("  {:?}{}", fault, if effective { "" } else { " (without effect)" });
    }
    Ok(())
}

async fn watch(cluster: Arc<Cluster>, stop: Arc<AtomicBool>) -> Invariants {
    let mut invariants = Invariants::default();
    while !stop.load(Ordering::Relaxed) {
        for node in 0..NODES {
            if let Some(state) = cluster.state(node).await {
                invariants.sample(&state);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    invariants
}
