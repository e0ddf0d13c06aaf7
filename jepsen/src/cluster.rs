//! The nodes under test: release processes that reach each other only through the relays.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::clock::{self, Clocks};
use crate::link::{Links, Relay};
use crate::postgres::Server;
use crate::workload::TENANTS;

pub(crate) const NODES: usize = 3;

/// How long a clock that was moved may take to show it.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// What holds the Iceberg catalog and the nodes' database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Catalog {
    /// Files that the nodes share.
    Sqlite,
    /// A private server.
    Postgres,
}

/// How far a read must look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    Strong,
    /// What the node knows by itself.
    Eventual,
}

/// Three nodes. Dropping it ends them.
pub(crate) struct Cluster {
    /// Absolute: nodes run in directories of their own.
    dir: PathBuf,
    binary: PathBuf,
    /// OTLP gRPC, OTLP HTTP, HTTP, Flight and peers.
    ports: [[u16; 5]; NODES],
    /// By (from, to).
    relays: BTreeMap<(usize, usize), Relay>,
    pub(crate) links: Links,
    /// `None` while the nemesis has a node down.
    children: Mutex<[Option<Child>; NODES]>,
    /// Processes that ended by themselves: no fault asks for that.
    deaths: Mutex<Vec<String>>,
    /// `None` when clocks cannot be moved here.
    clocks: Option<Clocks>,
    /// `None` when the catalog is in SQLite.
    postgres: Option<Server>,
    pub(crate) http: reqwest::Client,
}

impl Cluster {
    /// Starts nodes that keep what they write, and what they say, below `dir`.
    pub(crate) async fn start(binary: &Path, dir: &Path, catalog: Catalog) -> anyhow::Result<Self> {
        let free = free_ports(5 * NODES + 1)?;
        let ports: [[u16; 5]; NODES] = std::array::from_fn(|node| std::array::from_fn(|at| free[5 * node + at]));
        let postgres = match catalog {
            Catalog::Sqlite => None,
            Catalog::Postgres => {
                let (port, log) = (free[5 * NODES], dir.join("postgres.log"));
                Some(tokio::task::spawn_blocking(move || Server::start(port, &log)).await??)
            }
        };
        let clocks = match Clocks::find(dir) {
            Ok(clocks) => Some(clocks),
            Err(error) => {
                println!("clocks are not moved in this run: {error:#}");
                None
            }
        };
        let (links, mut relays) = (Links::default(), BTreeMap::new());
        for (from, to) in pairs() {
            let target = SocketAddr::from(([127, 0, 0, 1], ports[to][4]));
            relays.insert((from, to), links.relay(from, to, target).await?);
        }
        let http = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(5)).build()?;
        let cluster = Self {
            dir: dir.to_owned(),
            binary: std::path::absolute(binary)?,
            ports,
            relays,
            links,
            children: Mutex::default(),
            deaths: Mutex::default(),
            clocks,
            postgres,
            http,
        };
        cluster.reset_clocks()?;
        for node in 0..NODES {
            cluster.launch(node)?;
        }
        for node in 0..NODES {
            cluster.wait_ready(node).await?;
        }
        Ok(cluster)
    }

    fn launch(&self, node: usize) -> anyhow::Result<()> {
        let dir = self.dir.join(name(node));
        let shared = self.dir.join("shared");
        std::fs::create_dir_all(&dir)?;
        std::fs::create_dir_all(&shared)?;
        let address = |to: usize| match self.relays.get(&(node, to)) {
            Some(relay) => relay.address.to_string(),
            None => format!("127.0.0.1:{}", self.ports[to][4]),
        };
        let peers: Vec<String> = (0..NODES).map(|to| format!("\"{}={}\"", to + 1, address(to))).collect();
        let (catalog, database) = match &self.postgres {
            Some(server) => (server.address(), server.address()),
            None => (self.sqlite("catalog"), self.sqlite("signaldb")),
        };
        let mut settings = vec![
            format!("node.id={}", node + 1),
            "cluster.name=jepsen".to_owned(),
            format!("cluster.peers=[{}]", peers.join(",")),
            format!("schema.catalog_uri={catalog}"),
            format!("database.dsn={database}"),
            "storage.adapters.local.type=filesystem".to_owned(),
            format!("storage.adapters.local.url=file://{}/storage", shared.display()),
            "flush.interval=500ms".to_owned(),
            "flush.max_interval=500ms".to_owned(),
            "wal.disk_reserve=64MiB".to_owned(),
        ];
        for (name, port) in ["otlp_grpc", "otlp_http", "http", "flight", "peer"].iter().zip(self.ports[node]) {
            settings.push(format!("listen.{name}=127.0.0.1:{port}"));
        }
        let log = std::fs::File::options().create(true).append(true).open(dir.join("node.log"))?;
        let mut command = Command::new(&self.binary);
        command.current_dir(&dir).args(["server", "--data-dir", "data"]);
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        if let Some(clocks) = &self.clocks {
            clocks.load_into(&mut command, &name(node));
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("start {}", self.binary.display()))?;
        self.children.lock().unwrap_or_else(PoisonError::into_inner)[node] = Some(child);
        Ok(())
    }

    fn sqlite(&self, file: &str) -> String {
        format!("sqlite://{}/shared/{file}.db", self.dir.display())
    }

    /// How PyIceberg opens a table of a tenant: as Python that makes `table`. Blocking.
    pub(crate) fn pyiceberg(&self, tenant: &str, table: &str) -> anyhow::Result<String> {
        let namespace = format!("{tenant}.default");
        Ok(match &self.postgres {
            None => format!(
                "from pyiceberg.catalog import load_catalog
catalog = load_catalog('signaldb', type='sql', uri='sqlite:///{}/shared/catalog.db')
table = catalog.load_table(('{namespace}', '{table}'))",
                self.dir.display()
            ),
            // Its catalog would need a driver that nothing else here needs.
            Some(server) => format!(
                "from pyiceberg.table import StaticTable
table = StaticTable.from_metadata('{}')",
                server.metadata_location(&namespace, table)?
            ),
        })
    }

    async fn wait_ready(&self, node: usize) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        let url = self.url(node, "/ready");
        loop {
            let sent = self.http.get(&url).timeout(Duration::from_secs(2)).send().await;
            if sent.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("node {} is not ready; its log is below {}", node + 1, self.dir.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn url(&self, node: usize, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[node][2])
    }

    pub(crate) fn otlp(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}/v1/traces", self.ports[node][1])
    }

    /// Notes a process that ended although nobody killed it, and forgets it.
    fn look(&self, node: usize) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = &mut children[node]
            && let Ok(Some(status)) = child.try_wait()
        {
            clock::forget(child.id());
            let log = self.dir.join(name(node)).join("node.log");
            let death = format!("node {} ended by itself with {status}; its log is {}", node + 1, log.display());
            self.deaths.lock().unwrap_or_else(PoisonError::into_inner).push(death);
            children[node] = None;
        }
    }

    /// What ended by itself so far.
    pub(crate) fn deaths(&self) -> Vec<String> {
        (0..NODES).for_each(|node| self.look(node));
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a signal; whether there was a process to get it.
    pub(crate) fn signal(&self, node: usize, name: &str) -> bool {
        self.look(node);
        let children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = &children[node] else { return false };
        let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
        sent.is_ok_and(|status| status.success())
    }

    /// `kill -9`; whether there was a process.
    pub(crate) fn kill(&self, node: usize) -> bool {
        self.look(node);
        let child = self.children.lock().unwrap_or_else(PoisonError::into_inner)[node].take();
        let Some(mut child) = child else { return false };
        let killed = child.kill().is_ok();
        // Reaped, so that its ports are free.
        let _ = child.wait();
        clock::forget(child.id());
        killed
    }

    /// Starts a node that is not running.
    pub(crate) fn revive(&self, node: usize) -> anyhow::Result<()> {
        self.look(node);
        let gone = self.children.lock().unwrap_or_else(PoisonError::into_inner)[node].is_none();
        if gone { self.launch(node) } else { Ok(()) }
    }

    /// Whether clocks can be moved.
    pub(crate) fn has_clocks(&self) -> bool {
        self.clocks.is_some()
    }

    /// Sets a node's wall clock to `offset` seconds from the true time.
    pub(crate) fn set_clock(&self, node: usize, offset: i64) -> anyhow::Result<()> {
        let Some(clocks) = &self.clocks else { return Ok(()) };
        clocks.set(&name(node), offset).with_context(|| format!("move the clock of node {}", node + 1))
    }

    fn reset_clocks(&self) -> anyhow::Result<()> {
        (0..NODES).try_for_each(|node| self.set_clock(node, 0))
    }

    /// Whether a node itself says, soon, that its clock is at `offset`.
    pub(crate) async fn shows_clock(&self, node: usize, offset: i64) -> bool {
        let until = Instant::now() + CLOCK_TIMEOUT;
        loop {
            // The header `date` would not do: servers keep it while their clock is behind it.
            let query = "SELECT to_unixtime(now())";
            let rows = self.sql(node, TENANTS[0], query, Consistency::Eventual, CLOCK_TIMEOUT).await;
            let shown = rows.ok().and_then(|rows| rows.first()?[0].as_i64());
            if shown.is_some_and(|shown| clock::is_at(shown, clock::now(), offset)) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Links pass again and clocks are right: what needs no process to be started.
    pub(crate) fn calm(&self) -> anyhow::Result<()> {
        self.links.heal();
        self.reset_clocks()
    }

    /// Ends every fault and waits until all nodes are ready.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        self.calm()?;
        for node in 0..NODES {
            self.signal(node, "-CONT");
            self.revive(node)?;
        }
        for node in 0..NODES {
            self.wait_ready(node).await?;
        }
        Ok(())
    }

    /// The node that leads most groups, as the first node that answers sees it.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for node in 0..NODES {
            let Some(state) = self.state(node).await else { continue };
            let groups = state["groups"].as_array()?;
            let busy = groups.iter().max_by_key(|group| group["last_log_index"].as_u64())?;
            if let Some(leader) = busy["leader"].as_u64() {
                return usize::try_from(leader).ok()?.checked_sub(1);
            }
        }
        None
    }

    /// Rows of a query at one node.
    pub(crate) async fn sql(
        &self,
        node: usize,
        tenant: &str,
        query: &str,
        consistency: Consistency,
        timeout: Duration,
    ) -> anyhow::Result<Vec<Value>> {
        let path = match consistency {
            Consistency::Strong => "/api/v1/sql?consistency=strong",
            Consistency::Eventual => "/api/v1/sql?consistency=eventual",
        };
        let request = self.http.post(self.url(node, path)).timeout(timeout).header("x-tenant-id", tenant);
        let response = request.json(&json!({"query": query})).send().await?.error_for_status()?;
        let body: Value = response.json().await?;
        Ok(body["rows"].as_array().context("rows")?.clone())
    }

    /// `/api/v1/cluster` of one node.
    pub(crate) async fn state(&self, node: usize) -> Option<Value> {
        let sent = self.http.get(self.url(node, "/api/v1/cluster")).timeout(Duration::from_secs(2)).send().await;
        sent.ok()?.json().await.ok()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..NODES {
            self.kill(node);
        }
    }
}

pub(crate) fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..NODES).flat_map(|from| (0..NODES).filter(move |to| *to != from).map(move |to| (from, to)))
}

fn name(node: usize) -> String {
    format!("node-{}", node + 1)
}

/// Ports below those that the system gives to outgoing connections.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // All are held until the last is found, so that no two are the same.
    let mut held: Vec<TcpListener> = Vec::new();
    let mut port = 10_000 + u16::try_from(std::time::UNIX_EPOCH.elapsed()?.subsec_nanos() % 20_000)?;
    while held.len() < count {
        port = if port >= 32_000 { 10_000 } else { port + 7 };
        held.extend(TcpListener::bind(("127.0.0.1", port)).ok());
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ() -> anyhow::Result<()> {
        let mut ports = free_ports(20)?;
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
        Ok(())
    }
}
