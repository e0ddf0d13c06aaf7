//! The nodes under test: release processes that reach each other only through the relays.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::link::{Links, Relay};

pub(crate) const NODES: usize = 3;

/// Three nodes. Dropping it ends them.
pub(crate) struct Cluster {
    dir: PathBuf,
    binary: PathBuf,
    ports: [[u16; 5]; NODES],
    /// By (from, to).
    relays: BTreeMap<(usize, usize), Relay>,
    pub(crate) links: Links,
    /// `None` while the nemesis has a node down.
    children: Mutex<[Option<Child>; NODES]>,
    /// Processes that ended by themselves: no fault asks for that.
    deaths: Mutex<Vec<String>>,
    pub(crate) http: reqwest::Client,
}

impl Cluster {
    pub(crate) async fn start(binary: &Path, dir: &Path) -> anyhow::Result<Self> {
        let ports = [free_ports()?, free_ports()?, free_ports()?];
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
            http,
        };
        for node in 0..NODES {
            cluster.launch(node)?;
        }
        for node in 0..NODES {
            cluster.wait_ready(node).await?;
        }
        Ok(cluster)
    }

    fn launch(&self, node: usize) -> anyhow::Result<()> {
        let dir = self.dir.join(format!("node-{}", node + 1));
        let shared = self.shared();
        std::fs::create_dir_all(&dir)?;
        std::fs::create_dir_all(&shared)?;
        let address = |to: usize| match self.relays.get(&(node, to)) {
            Some(relay) => relay.address.to_string(),
            None => format!("127.0.0.1:{}", self.ports[to][4]),
        };
        let peers: Vec<String> = (0..NODES).map(|to| format!("\"{}={}\"", to + 1, address(to))).collect();
        let mut settings = vec![
            format!("node.id={}", node + 1),
            "cluster.name=jepsen".to_owned(),
            format!("cluster.peers=[{}]", peers.join(",")),
            format!("schema.catalog_uri=sqlite://{}/catalog.db", shared.display()),
            format!("database.dsn=sqlite://{}/signaldb.db", shared.display()),
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
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("start {}", self.binary.display()))?;
        self.children.lock().unwrap_or_else(PoisonError::into_inner)[node] = Some(child);
        Ok(())
    }

    pub(crate) fn shared(&self) -> PathBuf {
        self.dir.join("shared")
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
        if let Some(status) = children[node].as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            let log = self.dir.join(format!("node-{}/node.log", node + 1));
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
        killed
    }

    /// Starts a node that is not running.
    pub(crate) fn revive(&self, node: usize) -> anyhow::Result<()> {
        self.look(node);
        let gone = self.children.lock().unwrap_or_else(PoisonError::into_inner)[node].is_none();
        if gone { self.launch(node) } else { Ok(()) }
    }

    /// Ends every fault and waits until all nodes are ready.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        self.links.heal();
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

/// Ports below those that the system gives to outgoing connections.
fn free_ports() -> anyhow::Result<[u16; 5]> {
    let mut held: Vec<TcpListener> = Vec::new();
    let mut port = 10_000 + u16::try_from(std::time::UNIX_EPOCH.elapsed()?.subsec_nanos() % 20_000)?;
    while held.len() < 5 {
        port = if port >= 32_000 { 10_000 } else { port + 7 };
        held.extend(TcpListener::bind(("127.0.0.1", port)).ok());
    }
    let mut ports = [0; 5];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
