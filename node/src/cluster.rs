//! `signaldb cluster dev`: several nodes as processes on this machine, to try a cluster and to break it.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Ports of the first node, in the order of [`NAMES`].
const PORTS: [u16; 6] = [4317, 4318, 3000, 50053, 50052, 50051];
const NAMES: [&str; 6] = ["otlp_grpc", "otlp_http", "http", "flight", "streams", "peer"];
/// How far the ports of one node are from those of the next.
const STEP: u16 = 100;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const WATCH_INTERVAL: Duration = Duration::from_millis(300);
/// How long nodes may take to stop before they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// Cluster commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ClusterCommand {
    /// Run a cluster on this machine: one process a node, until Ctrl-C.
    Dev(DevArgs),
    /// Show nodes and groups as one node sees them.
    Status(StatusArgs),
    /// Let groups go on that have lost a majority, or whose log is older than its tables.
    Recover(RecoverArgs),
    /// Move the leadership of a group to another node; ask the node that leads.
    TransferLeader(TransferArgs),
    /// Let rows of a table in quarantine go into Iceberg again; those that were put aside stay where they are.
    Release(ReleaseArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DevArgs {
    /// How many nodes: 3 or 5.
    #[arg(long, default_value_t = 3)]
    nodes: u16,
    /// Where they keep their data; `shared` below it holds tables and catalog.
    #[arg(long, default_value = ".data/cluster")]
    data_dir: PathBuf,
    /// First of the six ports of node 1; node i adds 100*(i-1). By default the usual ports.
    #[arg(long)]
    base_port: Option<u16>,
    /// Override one setting on every node; repeatable.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    endpoint: String,
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
    #[arg(long, env = "SIGNALDB_ADMIN_KEY", hide_env_values = true)]
    key: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RecoverArgs {
    /// The group, as `signaldb cluster status` numbers it; repeatable.
    #[arg(long, required = true)]
    group: Vec<u32>,
    /// Do it. Without this, only what would be done and lost is shown.
    #[arg(long)]
    accept_data_loss: bool,
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    endpoint: String,
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
    #[arg(long, env = "SIGNALDB_ADMIN_KEY", hide_env_values = true)]
    key: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TransferArgs {
    /// The group, as `signaldb cluster status` numbers it.
    #[arg(long)]
    group: u32,
    /// The node that is to lead; by default any that would.
    #[arg(long)]
    to: Option<u64>,
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    endpoint: String,
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
    #[arg(long, env = "SIGNALDB_ADMIN_KEY", hide_env_values = true)]
    key: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReleaseArgs {
    #[arg(long)]
    tenant: String,
    #[arg(long)]
    dataset: String,
    /// As in SQL: `traces`, `metrics_gauge`.
    #[arg(long)]
    table: String,
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    endpoint: String,
    #[arg(long, env = "SIGNALDB_ADMIN_KEY", hide_env_values = true)]
    key: Option<String>,
}

struct Node {
    id: u16,
    ports: [u16; 6],
    dir: PathBuf,
    command: Command,
    child: Option<Child>,
}

pub(crate) async fn run(command: ClusterCommand) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Dev(args) => dev(args).await,
        ClusterCommand::Status(args) => status(args).await,
        ClusterCommand::Recover(args) => recover(args).await,
        ClusterCommand::TransferLeader(args) => transfer(args).await,
        ClusterCommand::Release(args) => release(args).await,
    }
}

async fn dev(args: DevArgs) -> anyhow::Result<()> {
    if !matches!(args.nodes, 3 | 5) {
        bail!("--nodes {} is not 3 or 5: a majority of an even number is no cheaper", args.nodes);
    }
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut nodes = (1..=args.nodes).map(|id| prepare(id, &args)).collect::<anyhow::Result<Vec<_>>>()?;
    for node in &mut nodes {
        node.start()?;
    }
    let outcome = tokio::select! {
        outcome = watch(&mut nodes) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop(&mut nodes).await;
    outcome
}

fn prepare(id: u16, args: &DevArgs) -> anyhow::Result<Node> {
    let port = |first: u16, of: u16| first.checked_add((of - 1) * STEP).context("--base-port is too high");
    let firsts: [u16; 6] = match args.base_port {
        Some(base) => std::array::from_fn(|at| base.saturating_add(at as u16)),
        None => PORTS,
    };
    let mut ports = [0; 6];
    for (slot, first) in ports.iter_mut().zip(firsts) {
        *slot = port(first, id)?;
    }
    let peers = (1..=args.nodes).map(|of| Ok(format!("\"{of}=127.0.0.1:{}\"", port(firsts[5], of)?)));
    let peers = peers.collect::<anyhow::Result<Vec<_>>>()?.join(",");
    let root = std::path::absolute(&args.data_dir).context("--data-dir")?;
    let (dir, shared) = (root.join(format!("node-{id}")), root.join("shared"));
    for dir in [&dir, &shared] {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.current_dir(&dir).arg("server").arg("--data-dir").arg(dir.join("data"));
    let mut set = |assignment: String| {
        command.arg("--set").arg(assignment);
    };
    set(format!("node.id={id}"));
    set("cluster.name=dev".to_owned());
    set(format!("cluster.peers=[{peers}]"));
    for (name, port) in NAMES.iter().zip(ports) {
        set(format!("listen.{name}=127.0.0.1:{port}"));
    }
    set(format!("schema.catalog_uri=sqlite://{}", shared.join("catalog.db").display()));
    set(format!("database.dsn=sqlite://{}", shared.join("signaldb.db").display()));
    set("storage.adapters.local.type=filesystem".to_owned());
    set(format!("storage.adapters.local.url=file://{}", shared.join("storage").display()));
    args.set.iter().for_each(|assignment| set(assignment.clone()));
    Ok(Node { id, ports, dir, command, child: None })
}

impl Node {
    fn start(&mut self) -> anyhow::Result<()> {
        let log = self.log();
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        self.command.stdin(Stdio::null()).stdout(file.try_clone().context("share the log file")?).stderr(file);
        self.child = Some(self.command.spawn().context("start a node")?);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// The end of its log, on one line.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    fn describe(&self) -> String {
        let pid = self.child.as_ref().map_or(0, Child::id);
        format!(
            "  node {}   pid {pid:<8} OTLP gRPC 127.0.0.1:{:<6} OTLP HTTP :{:<6} HTTP API :{:<6} Flight SQL :{:<6} log {}",
            self.id,
            self.ports[0],
            self.ports[1],
            self.ports[2],
            self.ports[3],
            self.log().display()
        )
    }

    async fn ready(&self, http: &reqwest::Client) -> bool {
        let url = format!("http://127.0.0.1:{}/ready", self.ports[2]);
        let answer = http.get(url).timeout(Duration::from_secs(2)).send().await;
        answer.is_ok_and(|response| response.status().is_success())
    }
}

/// Waits until all are ready, then until the last has ended.
async fn watch(nodes: &mut [Node]) -> anyhow::Result<()> {
    let http = reqwest::Client::new();
    let until = Instant::now() + START_TIMEOUT;
    for node in nodes.iter_mut() {
        while !node.ready(&http).await {
            if let Some(status) = node.ended() {
                bail!("node {} ended with {status}: {}", node.id, node.last_words());
            }
            if Instant::now() > until {
                bail!("node {} is not ready; its log is {}", node.id, node.log().display());
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
    println!("\n  A cluster of {} nodes is ready; every node takes writes and answers queries.\n", nodes.len());
    for node in nodes.iter() {
        println!("{}", node.describe());
    }
    println!(
        "\n  signaldb cluster status --endpoint http://127.0.0.1:{0}\n  signaldb sql --endpoint http://127.0.0.1:{0} \
         'SELECT count(*) FROM traces'\n\n  Kill a node (kill -9 PID) and go on writing; it is started again after a \
         moment. Ctrl-C stops all.\n",
        nodes[0].ports[2]
    );
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        for node in nodes.iter_mut() {
            if let Some(status) = node.ended() {
                println!("  node {} ended with {status}; it is started again", node.id);
                node.child = None;
                tokio::time::sleep(Duration::from_secs(2)).await;
                node.start()?;
            }
        }
    }
}

/// SIGTERM for all, and the end for those that do not stop.
async fn stop(nodes: &mut [Node]) {
    println!("  stopping");
    for child in nodes.iter().filter_map(|node| node.child.as_ref()) {
        if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
            // It may be gone already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    let until = Instant::now() + STOP_TIMEOUT;
    for child in nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
        while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if matches!(child.try_wait(), Ok(None)) {
            // Nothing is lost: the next start replays the log.
            let _ = child.kill();
        }
    }
}

async fn recover(args: RecoverArgs) -> anyhow::Result<()> {
    let url = format!("{}/api/v1/admin/recover", args.endpoint);
    for group in args.group {
        let body = serde_json::json!({"group": group, "accept_data_loss": args.accept_data_loss});
        let request = reqwest::Client::new().post(&url).json(&body);
        let (body, answer) = answer(request, args.key.as_deref(), &args.endpoint).await?;
        if args.format == "json" {
            println!("{body}");
        } else {
            println!("{}", recovered(&answer));
        }
    }
    Ok(())
}

fn recovered(answer: &serde_json::Value) -> String {
    let (group, done) = (&answer["group"], answer["done"] == true);
    let ask = "nothing was done yet: the same command with --accept-data-loss does it";
    match (text(&answer["action"]), done) {
        ("elect", true) => {
            format!("group {group}: node {} was chosen to lead; {}", answer["winner"], text(&answer["loss"]))
        }
        ("elect", false) => {
            format!("group {group}: node {} would lead; {}; {ask}", answer["winner"], text(&answer["loss"]))
        }
        ("go_on", true) => {
            format!("group {group} goes on in a new incarnation. It had halted: {}", text(&answer["reason"]))
        }
        ("go_on", false) => format!("group {group} halted: {}; {ask}", text(&answer["reason"])),
        _ => format!("group {group}: nothing to do, {}", text(&answer["reason"])),
    }
}

async fn transfer(args: TransferArgs) -> anyhow::Result<()> {
    let body = serde_json::json!({"group": args.group, "to": args.to});
    let request = reqwest::Client::new().post(format!("{}/api/v1/admin/transfer-leader", args.endpoint)).json(&body);
    let (body, answer) = answer(request, args.key.as_deref(), &args.endpoint).await?;
    match args.format.as_str() {
        "json" => println!("{body}"),
        _ => println!("group {}: node {} gave the leadership to node {}", args.group, answer["from"], answer["to"]),
    }
    Ok(())
}

async fn release(args: ReleaseArgs) -> anyhow::Result<()> {
    let body = serde_json::json!({"tenant": args.tenant, "dataset": args.dataset, "table": args.table});
    let request = reqwest::Client::new().post(format!("{}/api/v1/admin/release", args.endpoint)).json(&body);
    let (_, answer) = answer(request, args.key.as_deref(), &args.endpoint).await?;
    match answer["released"] == true {
        true => println!("{} was released from quarantine in groups {}", args.table, answer["groups"]),
        false => println!("{} was not in quarantine", args.table),
    }
    Ok(())
}

/// Sends a request to a node; returns the body of its answer, also parsed.
pub(crate) async fn answer(
    request: reqwest::RequestBuilder,
    key: Option<&str>,
    endpoint: &str,
) -> anyhow::Result<(String, serde_json::Value)> {
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    let response = request.send().await.with_context(|| format!("reach a node at {endpoint}; is it running?"))?;
    let (status, body) = (response.status(), response.text().await.context("read the answer")?);
    let parsed: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    if !status.is_success() {
        bail!("{}", parsed["error"]["message"].as_str().unwrap_or(&body));
    }
    Ok((body, parsed))
}

async fn status(args: StatusArgs) -> anyhow::Result<()> {
    let request = reqwest::Client::new().get(format!("{}/api/v1/cluster", args.endpoint));
    let (body, parsed) = answer(request, args.key.as_deref(), &args.endpoint).await?;
    if args.format == "json" {
        println!("{body}");
        return Ok(());
    }
    println!("cluster {}, seen by node {}", parsed["cluster"].as_str().unwrap_or_default(), parsed["node"]);
    for node in parsed["nodes"].as_array().into_iter().flatten() {
        println!("  node {:<4} {:<22} {}", node["id"], text(&node["address"]), text(&node["state"]));
    }
    println!(
        "{:>6} {:>7} {:>6} {:>10} {:>10} {:>10} {:>10}",
        "group", "leader", "term", "last", "commit", "applied", "flushed"
    );
    for group in parsed["groups"].as_array().into_iter().flatten() {
        let column = |name: &str| group[name].to_string();
        println!(
            "{:>6} {:>7} {:>6} {:>10} {:>10} {:>10} {:>10}",
            column("group"),
            column("leader"),
            column("term"),
            column("last_log_index"),
            column("commit_index"),
            column("applied_index"),
            column("flushed_index")
        );
    }
    Ok(())
}

pub(crate) fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}
