//! `signaldb wal`: a look into the log of a node that does not run, and the way on when it is damaged and no peer has a
//! copy.

mod engine;
mod listing;
mod report;
mod rows;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use serde_json::json;
use signaldb_model::{DatasetId, TenantId};

use crate::cli::ServerArgs;
use crate::data_dir::DataDir;
use report::Report;
use rows::{Filter, Loss};

/// Commands on the log of a stopped node.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum WalCommand {
    /// Show segments and groups, or what the log holds of a tenant.
    Inspect(InspectArgs),
    /// Read everything and name what is damaged.
    Verify(VerifyArgs),
    /// Cut a damaged log of a single node where the damage is, and name what is lost by that.
    Repair(RepairArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// List the entries with rows of this tenant.
    #[arg(long, value_parser = TenantId::new)]
    tenant: Option<TenantId>,
    #[arg(long, requires = "tenant", value_parser = DatasetId::new)]
    dataset: Option<DatasetId>,
    #[arg(long, requires = "tenant", value_parser = ["traces", "logs", "metrics"])]
    signal: Option<String>,
    /// List every entry, one a line.
    #[arg(long, conflicts_with = "tenant")]
    entries: bool,
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Do it. Without this, only what is damaged is shown.
    #[arg(long)]
    accept_data_loss: bool,
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
}

/// How a command ended, when it did not fail.
enum Verdict {
    Whole,
    Damaged,
}

/// Does what the command line says. Exit code 0: nothing is damaged (any more); 1: damage was found; 2: the log cannot
/// be read, or a node uses it.
pub(crate) fn main(command: WalCommand) -> ExitCode {
    let outcome = match command {
        WalCommand::Inspect(args) => inspect(args),
        WalCommand::Verify(args) => verify(args),
        WalCommand::Repair(args) => repair(args),
    };
    match outcome {
        Ok(Verdict::Whole) => ExitCode::SUCCESS,
        Ok(Verdict::Damaged) => ExitCode::from(1),
        Err(error) => {
            eprintln!("signaldb: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The log of a node that does not run, and does not start while this is held.
struct StoppedLog {
    dir: PathBuf,
    /// The node has peers that hold copies.
    replicated: bool,
    _held: Vec<DataDir>,
}

impl StoppedLog {
    /// `alone`: to change it.
    fn open(server: ServerArgs, alone: bool) -> anyhow::Result<Self> {
        let config = server.load().context("configuration")?;
        let dir = config.wal_dir();
        ensure!(
            dir.join("segments").is_dir(),
            "there is no log in {}; name the node's directory with --data-dir or its configuration with --config",
            dir.display()
        );
        let held = DataDir::of_stopped_node(&config, alone)?;
        Ok(Self { dir, replicated: config.cluster.is_replicated(), _held: held })
    }

    /// What to do about damage.
    fn way_on(&self) -> &'static str {
        if self.replicated {
            "This node has peers: start it. It puts the damaged part aside, votes for nobody, and is refilled from them."
        } else {
            "No other node holds this log. Either put the damaged file back from a copy of this very file, or accept \
             the loss: `signaldb wal repair --accept-data-loss` keeps the log of each group up to the damage, and \
             names what is lost."
        }
    }
}

fn inspect(args: InspectArgs) -> anyhow::Result<Verdict> {
    let log = StoppedLog::open(args.server, false)?;
    let report = engine::inspect(&log.dir)?;
    if args.entries {
        listing::print(&report, &engine::entries(&log.dir)?, args.format == "json")?;
        return Ok(verdict(&report));
    }
    let filter = args.tenant.map(|tenant| Filter { tenant: Some(tenant), dataset: args.dataset, signal: args.signal });
    let shares = match &filter {
        Some(filter) => Some(rows::by_dataset(&engine::entries(&log.dir)?, filter)),
        None => None,
    };
    if args.format == "json" {
        let mut json = serde_json::to_value(&report)?;
        if let Some(shares) = &shares {
            json["tenants"] = serde_json::to_value(shares)?;
        }
        println!("{json:#}");
    } else {
        match &shares {
            Some(shares) => println!("{}", rows::describe(shares)),
            None => println!("{report}"),
        }
    }
    Ok(verdict(&report))
}

fn verify(args: VerifyArgs) -> anyhow::Result<Verdict> {
    let log = StoppedLog::open(args.server, false)?;
    let report = engine::inspect(&log.dir)?;
    if args.format == "json" {
        let json = json!({"damaged": !report.sound, "damages": report.damages, "torn_tail": report.torn_tail});
        println!("{json:#}");
    } else {
        println!("{}", report.damage());
        if !report.sound {
            println!("{}", log.way_on());
        }
    }
    Ok(verdict(&report))
}

fn repair(args: RepairArgs) -> anyhow::Result<Verdict> {
    let log = StoppedLog::open(args.server, true)?;
    let before = engine::inspect(&log.dir)?;
    if before.sound {
        println!("{}", if args.format == "json" { "{}".to_owned() } else { before.damage() });
        return Ok(Verdict::Whole);
    }
    if log.replicated {
        bail!("{}\n{} A repair would make it forget what it has acknowledged.", before.damage(), log.way_on());
    }
    if !args.accept_data_loss {
        match args.format.as_str() {
            "json" => println!("{:#}", json!({"damages": before.damages})),
            _ => println!("{}\n{}", before.damage(), log.way_on()),
        }
        return Ok(Verdict::Damaged);
    }
    let readable = engine::entries(&log.dir)?;
    let mut ahead = Vec::new();
    for (group, first_lost) in before.lost() {
        let flushed = rows::flushed_beyond(&readable, group, first_lost);
        ahead.extend(flushed.map(|flushed| Ahead { group, first_lost, flushed }));
    }
    let copies = engine::repair(&log.dir)?;
    let after = engine::inspect(&log.dir).context("look at the repaired log")?;
    let kept = engine::entries(&log.dir).context("look at the repaired log")?;
    let loss = Loss::between((&before, &readable), (&after, &kept));
    if args.format == "json" {
        println!("{:#}", json!({"damages": before.damages, "loss": loss, "copies": copies, "tables_ahead": ahead}));
    } else {
        println!("{}\n{loss}", before.damage());
        for copy in copies {
            println!("The damaged segment is kept as {}", copy.display());
        }
        for Ahead { group, first_lost, flushed } in &ahead {
            println!(
                "Rows of group {group} up to entry {flushed} may be in the tables and stay there, although its log now \
                 ends before entry {first_lost}."
            );
        }
        println!("The next start goes on from here, in a new incarnation of each group that was cut.");
    }
    ensure!(after.sound, "the log is still damaged: {}", after.damage());
    Ok(Verdict::Whole)
}

/// A group whose tables may hold rows that its log has lost.
#[derive(Debug, serde::Serialize)]
struct Ahead {
    group: u32,
    first_lost: u64,
    flushed: u64,
}

fn verdict(report: &Report) -> Verdict {
    if report.sound { Verdict::Whole } else { Verdict::Damaged }
}

/// `1, 2 and 5`, or that nobody can tell.
fn groups_text(groups: &[u32]) -> String {
    let groups: BTreeSet<u32> = groups.iter().copied().collect();
    let texts: Vec<String> = groups.iter().map(u32::to_string).collect();
    match texts.as_slice() {
        [] => "possibly every group".to_owned(),
        [one] => format!("group {one}"),
        [first @ .., last] => format!("groups {} and {last}", first.join(", ")),
    }
}
