//! A black box around three release nodes: clients, faults, a history and a verdict.
//!
//! It knows the system from its public ports, its log's files and its words alone. The exit code is the verdict: 0 valid,
//! 1 invalid, 2 unknown; what is unknown is no pass. The method is that of Jepsen (Kingsbury): concurrent clients record
//! what they did and saw while a nemesis breaks things, and checkers look for what must not be.
//!
//! Start with [`run`]; [`scenario`] says what there is to choose, [`workload`] what clients do, [`checker`] what must not be,
//! and [`page`] shows what happened.

mod about;
mod bucket;
mod checker;
mod client;
mod clock;
mod cluster;
mod command;
mod damage;
mod disk;
mod fault;
mod figures;
mod history;
mod invariants;
mod leaders;
mod link;
mod listing;
mod namespace;
mod nemesis;
mod network;
mod outage;
mod page;
mod postgres;
mod random;
mod report;
mod run;
mod scenario;
mod schedule;
mod span;
mod store;
mod timeline;
mod verdict;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::Catalog;

#[derive(Debug, Parser)]
struct Args {
    /// The release binary to test.
    #[arg(long)]
    node: PathBuf,
    /// What happens: default, full, overlap, network, power-loss-all, damage, outages, or a file like those in jepsen/scenarios.
    #[arg(long, default_value = "default")]
    scenario: String,
    /// How long faults go on, seconds; the scenario says it by default.
    #[arg(long)]
    seconds: Option<u64>,
    /// What holds the Iceberg catalog and the nodes' database.
    #[arg(long, value_enum, default_value = "sqlite")]
    catalog: Catalog,
    /// Makes the choices of an earlier run again (not its timing).
    #[arg(long)]
    seed: Option<u64>,
    /// Where runs are kept, each in a directory named after its time.
    #[arg(long, default_value = "jepsen/store")]
    store: PathBuf,
    /// The directory of this run, instead.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Has nodes reach each other through relays, also where each could have a network namespace of its own.
    #[arg(long)]
    relays: bool,
    /// Keeps logs and tables of the nodes also when the verdict is valid.
    #[arg(long)]
    keep_data: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let run = Box::pin(run::run(Args::parse()));
    let outcome = tokio::select! {
        outcome = run => outcome,
        // What was started and mounted is ended and unmounted as it is dropped.
        stopped = stop_signal() => stopped.and(Err(anyhow::anyhow!("stopped by a signal"))),
    };
    match outcome {
        Ok(Some(true)) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::from(1),
        Ok(None) => ExitCode::from(2),
        Err(error) => {
            // A test that could not be run proves nothing.
            eprintln!("signaldb-jepsen: {error:#}\nverdict: unknown");
            ExitCode::from(2)
        }
    }
}

/// Waits for SIGINT or SIGTERM.
async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}
