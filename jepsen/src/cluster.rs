//! The nodes under test: release processes that reach each other only over the [`Network`] of the test.
//!
//! How they are started is in [`launch`], how they end and boot in [`process`], what they say of themselves in [`probe`], and
//! what that proves of an outage in [`progress`].

mod launch;
mod probe;
mod process;
mod progress;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::bucket::{Bucket, Mode};
use crate::clock::Clocks;
use crate::disk::{Disk, Disks};
use crate::fault::Fault;
use crate::history::Position;
use crate::namespace::Service;
use crate::network::{self, Network};
use crate::outage::Lock;
use crate::postgres::Server;
use crate::random::Random;

pub(crate) use progress::{Progress, Watched};

pub(crate) const NODES: usize = 3;

/// What holds the Iceberg catalog and the nodes' database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Catalog {
    /// Files that the nodes share.
    Sqlite,
    /// A private server.
    Postgres,
}

impl Catalog {
    /// As the command line names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// How far a read must look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    Strong,
    /// What the node knows by itself.
    Eventual,
}

/// How the power goes. Either way bytes that were not synced are gone afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The process is killed, and then its disk is shut down.
    ProcessFirst,
    /// The disk is shut down, and the process meets errors for a moment.
    DiskFirst(Duration),
}

/// Where nodes keep what they write.
pub(crate) struct Place<'a> {
    /// What they write, and what they say, is below it.
    pub(crate) dir: &'a Path,
    pub(crate) catalog: Catalog,
    /// Each node has a disk of its own, if that can be.
    pub(crate) disks: bool,
    /// The tables are in a bucket of our own.
    pub(crate) bucket: bool,
    /// Several segments, and none for long: damage is noticed, or goes with its segment.
    pub(crate) small_log: bool,
    /// Nodes reach each other through relays, even if they could have network namespaces.
    pub(crate) relays: bool,
}

/// Three nodes. Dropping it ends them.
pub(crate) struct Cluster {
    /// Absolute: nodes run in directories of their own.
    dir: PathBuf,
    binary: PathBuf,
    /// OTLP gRPC, OTLP HTTP, HTTP, Flight and peers.
    ports: [[u16; 5]; NODES],
    pub(crate) network: Network,
    /// How often each node was started.
    lives: [AtomicU64; NODES],
    /// `None` while the nemesis has a node down.
    children: Mutex<[Option<Child>; NODES]>,
    /// Processes that ended by themselves: no fault asks for that.
    deaths: Mutex<Vec<String>>,
    /// Those that had a reason to.
    excused_deaths: AtomicU64,
    /// When they were seen to have ended, and started again.
    absences: Mutex<Vec<(usize, Instant, Option<Instant>)>>,
    /// Nodes that have a reason: damaged bytes or a full disk.
    excused: Mutex<[bool; NODES]>,
    /// The group of the last acknowledgment; 0 before there is one.
    busy_group: AtomicU64,
    /// Or why nodes have no disks of their own.
    disks: Result<Disks, String>,
    small_log: bool,
    /// Or why clocks cannot be moved here.
    clocks: Result<Clocks, String>,
    /// `None` when the catalog is in SQLite.
    postgres: Option<Arc<Server>>,
    /// Somebody holds the catalog in SQLite locked.
    lock: Mutex<Option<Lock>>,
    /// `None` when tables are local files.
    bucket: Option<Bucket>,
    pub(crate) http: reqwest::Client,
}

impl Cluster {
    /// Starts nodes.
    pub(crate) async fn start(binary: &Path, place: Place<'_>, random: &Random) -> anyhow::Result<Self> {
        let Place { dir, catalog, disks, bucket, small_log, relays } = place;
        // First of all: before, not even loopback works in a namespace that was just made for this process.
        let namespaces = network::namespaces(&dir.join("network"), relays).await?;
        let free = free_ports(5 * NODES + 1)?;
        let ports: [[u16; 5]; NODES] = std::array::from_fn(|node| std::array::from_fn(|at| free[5 * node + at]));
        let network = Network::make(namespaces, ports.map(|ports| ports[4])).await?;
        let postgres = match catalog {
            Catalog::Sqlite => None,
            Catalog::Postgres => {
                let (port, log) = (free[5 * NODES], dir.join("postgres.log"));
                let address = SocketAddr::from((network.service(Service::Catalog), port));
                Some(Arc::new(tokio::task::spawn_blocking(move || Server::start(address, &log)).await??))
            }
        };
        let clocks = Clocks::find(dir).map_err(|error| format!("{error:#}"));
        let disks = match disks {
            true => make_disks(dir).await?,
            false => Err("the scenario wants none".to_owned()),
        };
        let bucket = match bucket {
            true => {
                let host = network.service(Service::Store);
                Some(Bucket::start(&dir.join("shared/bucket"), host, random.next()).await?)
            }
            false => None,
        };
        let http = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(5)).build()?;
        let cluster = Self {
            dir: dir.to_owned(),
            binary: std::path::absolute(binary)?,
            ports,
            network,
            lives: Default::default(),
            children: Mutex::default(),
            deaths: Mutex::default(),
            excused_deaths: AtomicU64::new(0),
            absences: Mutex::default(),
            excused: Mutex::default(),
            busy_group: AtomicU64::new(0),
            disks,
            small_log,
            clocks,
            postgres,
            lock: Mutex::default(),
            bucket,
            http,
        };
        cluster.reset_clocks()?;
        for node in 0..NODES {
            cluster.reboot(node, random)?;
            cluster.launch(node)?;
        }
        for node in 0..NODES {
            cluster.wait_ready(node).await?;
        }
        Ok(cluster)
    }

    pub(crate) fn url(&self, node: usize, path: &str) -> String {
        format!("http://{}:{}{path}", self.network.host(node), self.ports[node][2])
    }

    /// Where a node takes OTLP over HTTP.
    pub(crate) fn otlp(&self, node: usize) -> SocketAddr {
        SocketAddr::from((self.network.host(node), self.ports[node][1]))
    }

    /// Why a fault cannot be made here, and what would change that.
    pub(crate) fn lacks(&self, fault: Fault) -> Option<String> {
        let disks =
            || Some(format!("root, loop devices and ext4 (sudo make jepsen-full): {}", self.disks.as_ref().err()?));
        let clocks = || Some(format!("clocks that can be moved: {}", self.clocks.as_ref().err()?));
        let namespaces = || {
            let why = self.network.lacks_namespaces()?;
            Some(format!("root, network namespaces and nftables (sudo make jepsen-full): {why}"))
        };
        match fault {
            Fault::CatalogCut if self.postgres.is_none() => {
                Some("a catalog that is reached over the network (CATALOG=postgres)".to_owned())
            }
            fault if fault.needs_namespaces() => namespaces(),
            fault if fault.needs_disks() => disks(),
            fault if fault.moves_clocks() => clocks(),
            // PostgreSQL is stopped instead.
            Fault::CatalogDown if self.postgres.is_none() => {
                Lock::try_out().err().map(|error| format!("python3 with sqlite3: {error:#}"))
            }
            _ => None,
        }
    }

    /// A node's own disk.
    pub(crate) fn disk(&self, node: usize) -> anyhow::Result<Disk> {
        match &self.disks {
            Ok(disks) => Ok(disks.of(node).clone()),
            Err(why) => bail!("the nodes have no disks of their own: {why}"),
        }
    }

    /// Where a node keeps its log.
    pub(crate) fn wal(&self, node: usize) -> PathBuf {
        data(&self.dir, node).join("wal")
    }

    /// What a node said so far, bytes: where [`Cluster::said`] begins.
    pub(crate) fn said_bytes(&self, node: usize) -> u64 {
        std::fs::metadata(self.dir.join(name(node)).join("node.log")).map_or(0, |log| log.len())
    }

    /// What a node said since.
    pub(crate) fn said(&self, node: usize, from: u64) -> String {
        let said = std::fs::read(self.dir.join(name(node)).join("node.log")).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(said.len());
        String::from_utf8_lossy(&said[from..]).into_owned()
    }

    /// An acknowledgment named this position.
    pub(crate) fn note_position(&self, position: Option<Position>) {
        if let Some(Position { group, .. }) = position {
            self.busy_group.store(group.into(), Ordering::Relaxed);
        }
    }

    /// Sets a node's wall clock to `offset` seconds from the true time.
    pub(crate) fn set_clock(&self, node: usize, offset: i64) -> anyhow::Result<()> {
        let Ok(clocks) = &self.clocks else { return Ok(()) };
        clocks.set(&name(node), offset).with_context(|| format!("move the clock of node {}", node + 1))
    }

    pub(crate) fn reset_clocks(&self) -> anyhow::Result<()> {
        (0..NODES).try_for_each(|node| self.set_clock(node, 0))
    }

    /// Ends every fault and waits until all nodes are ready.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        if let Ok(disks) = &self.disks {
            disks.mend();
        }
        self.network.heal().await?;
        self.reset_clocks()?;
        self.set_store(Mode::Works);
        self.network.connect_services().await?;
        self.set_catalog(true).await?;
        for node in 0..NODES {
            self.signal(node, "-CONT");
            self.revive(node)?;
        }
        for node in 0..NODES {
            self.wait_whole(node).await?;
        }
        Ok(())
    }

    /// Has the catalog take commits, or none. Waits for its turn.
    pub(crate) async fn set_catalog(&self, works: bool) -> anyhow::Result<()> {
        if let Some(server) = self.postgres.clone() {
            let work = move || match works {
                true => server.go_on(),
                false => {
                    server.stop();
                    Ok(())
                }
            };
            return tokio::task::spawn_blocking(work).await?;
        }
        let before = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        let shared = self.dir.join("shared");
        let work = move || {
            drop(before);
            let databases = ["catalog.db", "signaldb.db"].map(|file| shared.join(file));
            let databases: Vec<&Path> = databases.iter().map(PathBuf::as_path).collect();
            (!works).then(|| Lock::take(&databases)).transpose()
        };
        let lock = tokio::task::spawn_blocking(work).await??;
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = lock;
        Ok(())
    }

    /// Whether the catalog was kept from taking commits since [`Cluster::set_catalog`] said so: whoever does it still does.
    pub(crate) async fn catalog_is_held(&self) -> anyhow::Result<bool> {
        if let Some(server) = self.postgres.clone() {
            return Ok(!tokio::task::spawn_blocking(move || server.answers()).await?);
        }
        Ok(self.lock.lock().unwrap_or_else(PoisonError::into_inner).as_mut().is_some_and(Lock::holds))
    }

    /// How the store of the tables behaves from now on; local files always work.
    pub(crate) fn set_store(&self, mode: Mode) {
        if let Some(bucket) = &self.bucket {
            bucket.set(mode);
        }
    }

    /// Requests that the store refused or lied about so far.
    pub(crate) fn store_disturbed(&self) -> u64 {
        self.bucket.as_ref().map_or(0, Bucket::disturbed)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(disks) = &self.disks {
            // A process that waits for a frozen disk does not end.
            disks.mend();
        }
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

fn data(dir: &Path, node: usize) -> PathBuf {
    dir.join(name(node)).join("data")
}

/// A disk for each node, where its data will be; or why that cannot be.
async fn make_disks(dir: &Path) -> anyhow::Result<Result<Disks, String>> {
    let mounts: Vec<PathBuf> = (0..NODES).map(|node| data(dir, node)).collect();
    let made = tokio::task::spawn_blocking(move || Disks::make(&mounts)).await?;
    Ok(made.map_err(|error| format!("{error:#}")))
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
