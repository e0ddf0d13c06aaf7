//! A black box around three release nodes: clients, faults, a history and a verdict.
//!
//! It knows the system from its public ports alone. The exit code is the verdict: 0 valid, 1 invalid, 2 unknown; what is
//! unknown is no pass. The method is that of Jepsen (Kingsbury): concurrent clients record what they did and saw while a
//! nemesis breaks things, and a checker looks for what must not be.

mod checker;
mod cluster;
mod history;
mod invariants;
mod link;
mod nemesis;
mod random;
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
use crate::cluster::{Cluster, NODES};
use crate::history::History;
use crate::invariants::Invariants;
use crate::random::Random;
use crate::workload::Test;

#[derive(Debug, Parser)]
struct Args {
    /// The release binary to test.
    #[arg(long)]
    node: PathBuf,
    /// How long faults go on, seconds.
    #[arg(long, default_value_t = 90)]
    seconds: u64,
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
    let kept = tempfile::tempdir().context("make a directory")?.keep();
    let dir = args.out.clone().unwrap_or(kept);
    std::fs::create_dir_all(&dir)?;
    println!("seed {seed}, history and logs in {}", dir.display());
    let cluster = Arc::new(Cluster::start(&args.node, &dir).await?);
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
    let watcher = watch(Arc::clone(&cluster), Arc::clone(&test.stop));
    let mut watchers = JoinSet::new();
    watchers.spawn(watcher);
    // Whatever goes wrong from here on, the history is written and judged.
    let mut troubles = Vec::new();
    let faults = match break_things(&test, Duration::from_secs(args.seconds)).await {
        Ok(faults) => faults,
        Err(error) => {
            troubles.push(format!("faults ended early: {error:#}"));
            0
        }
    };
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
    let mut verdict = checker::check(&operations, faults);
    let violations: Vec<String> = invariants.violations().iter().cloned().chain(cluster.deaths()).collect();
    match &mut verdict {
        Verdict::Invalid(found) => found.extend(violations),
        verdict if !violations.is_empty() => *verdict = Verdict::Invalid(violations),
        Verdict::Valid if !troubles.is_empty() => verdict = Verdict::Unknown(troubles.join("; ")),
        _ => {}
    }
    report(&operations, faults, &invariants, &verdict);
    if verdict == Verdict::Valid && args.out.is_none() {
        drop(cluster);
        // Only what is valid is not worth keeping.
        let _ = std::fs::remove_dir_all(&dir);
    }
    Ok(verdict)
}

/// One fault after the other, each at least once if the time allows; returns how many had an effect.
async fn break_things(test: &Test, how_long: Duration) -> anyhow::Result<u64> {
    let until = Instant::now() + how_long;
    let mut effective = 0;
    for round in 0.. {
        let fault = match nemesis::ALL.get(round) {
            Some(fault) => *fault,
            None => nemesis::ALL[test.random.below(nemesis::ALL.len())],
        };
        tokio::time::sleep(Duration::from_millis(1000 + test.random.next() % 1500)).await;
        if Instant::now() > until {
            break;
        }
        let worked = nemesis::strike(&test.cluster, &test.random, fault).await?;
        println!("  {:?}{}", fault, if worked { "" } else { " (without effect)" });
        effective += u64::from(worked);
    }
    Ok(effective)
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

fn report(operations: &[history::Operation], faults: u64, invariants: &Invariants, verdict: &Verdict) {
    use history::{Kind, Outcome};
    let count = |kind: fn(&Kind) -> bool, outcome| {
        operations.iter().filter(|one| kind(&one.kind) && one.outcome == outcome).count()
    };
    let adds = |outcome| count(|kind| matches!(kind, Kind::Add(_)), outcome);
    let reads = |outcome| count(|kind| matches!(kind, Kind::Read(_)), outcome);
    println!(
        "adds: {} acknowledged, {} refused, {} unknown; reads: {} answered, {} refused; {} final; {faults} faults with effect; \
         {} samples of node state",
        adds(Outcome::Ok),
        adds(Outcome::Fail),
        adds(Outcome::Info),
        reads(Outcome::Ok),
        reads(Outcome::Fail),
        count(|kind| matches!(kind, Kind::Final(_)), Outcome::Ok),
        invariants.samples()
    );
    match verdict {
        Verdict::Valid => println!("verdict: valid"),
        Verdict::Invalid(violations) => println!("{}\nverdict: invalid", violations.join("\n")),
        Verdict::Unknown(why) => println!("{why}\nverdict: unknown"),
    }
}
