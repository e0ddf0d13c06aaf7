//! The command line.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use signaldb_model::mutation;
use tracing_subscriber::EnvFilter;

use crate::config::{self, Config, Sources};
use crate::{cluster, query, run, sql, table, wal};

/// What `--version` says.
const VERSION: &str = match mutation::BUILT_IN {
    true => concat!(env!("CARGO_PKG_VERSION"), " WITH MUTATIONS: for tests only"),
    false => env!("CARGO_PKG_VERSION"),
};

#[derive(Debug, Parser)]
#[command(
    name = "signaldb",
    version = VERSION,
    about = "An observability database: OTLP in, Raft log, Iceberg out, SQL at once"
)]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node (the default).
    Server(ServerArgs),
    /// Run one query against a node.
    Sql(sql::SqlArgs),
    /// Look at the queries that run, or stop one.
    Query {
        #[command(subcommand)]
        command: query::QueryCommand,
    },
    /// Try a cluster on this machine, or look after one.
    Cluster {
        #[command(subcommand)]
        command: cluster::ClusterCommand,
    },
    /// Look at the tables of a running node or cluster, or maintain them now.
    Table {
        #[command(subcommand)]
        command: table::TableCommand,
    },
    /// Look into the log of a stopped node, or repair it.
    Wal {
        #[command(subcommand)]
        command: wal::WalCommand,
    },
    /// Look at the configuration without starting.
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Say whether the configuration is valid.
    Check(ServerArgs),
    /// Print the configuration as it would be used, secrets hidden.
    Show(ServerArgs),
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServerArgs {
    /// Configuration file; `signaldb.toml` is read when it exists.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one setting, for example `flush.interval=5s`; repeatable.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Where the node keeps its data.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl ServerArgs {
    pub(crate) fn load(self) -> Result<Config, config::ConfigError> {
        let mut set = self.set;
        if let Some(dir) = self.data_dir {
            set.push(format!("node.data_dir={}", toml::Value::String(dir.display().to_string())));
        }
        config::load(&Sources { file: self.config, set, ..Sources::default() }.with_environment())
    }
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => serve(cli.server),
        Some(Command::Server(args)) => serve(args),
        Some(Command::Sql(args)) => runtime("signaldb-sql", 1).and_then(|runtime| runtime.block_on(sql::run(args))),
        Some(Command::Query { command }) => {
            runtime("signaldb-query", 1).and_then(|runtime| runtime.block_on(query::run(command)))
        }
        Some(Command::Cluster { command }) => {
            runtime("signaldb-cluster", 1).and_then(|runtime| runtime.block_on(cluster::run(command)))
        }
        Some(Command::Table { command }) => {
            runtime("signaldb-table", 1).and_then(|runtime| runtime.block_on(table::run(command)))
        }
        Some(Command::Wal { command }) => return wal::main(command),
        Some(Command::Config { action: ConfigAction::Check(args) }) => {
            args.load().map(|_| println!("the configuration is valid")).context("configuration")
        }
        Some(Command::Config { action: ConfigAction::Show(args) }) => show(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("signaldb: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(args: ServerArgs) -> anyhow::Result<()> {
    let mut config = args.load().context("configuration")?;
    for address in
        [&mut config.schema.catalog_uri, &mut config.database.dsn, &mut config.discovery.dsn].into_iter().flatten()
    {
        *address = config::hide_password(address);
    }
    print!("{}", toml::to_string_pretty(&config)?);
    Ok(())
}

fn serve(args: ServerArgs) -> anyhow::Result<()> {
    let mutated = mutation::warning()?;
    let config = args.load().context("configuration")?;
    start_logging(&config)?;
    if let Some(warning) = mutated {
        tracing::error!("{warning}");
    }
    for note in &config.notes {
        tracing::warn!("configuration: {note}");
    }
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let main = runtime("signaldb", cores.clamp(2, 16))?;
    // Decoding, encoding and queries; at a lower priority, so that they never delay an acknowledgment.
    let cpu = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        .thread_name("signaldb-cpu")
        .on_thread_start(|| {
            // On Linux this is the thread's own; without it queries only compete more.
            let _ = rustix::process::nice(5);
        })
        .enable_all()
        .build()
        .context("start the CPU runtime")?;
    let outcome = main.block_on(run::run(config, cpu.handle().clone(), cores));
    cpu.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

fn runtime(name: &str, threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .context("start the runtime")
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(&config.log.level));
    let filter = filter.context("log.level")?.add_directive("openraft=error".parse()?);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match config.log.format.as_str() {
        "json" => builder.json().try_init(),
        _ => builder.with_target(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
