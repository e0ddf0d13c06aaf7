//! The nodes under test: release processes that reach each other only through the relays.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::bucket::{self, Bucket, Mode};
use crate::clock::{self, Clocks};
use crate::disk::{self, Disk, Disks};
use crate::fault::Fault;
use crate::history::Position;
use crate::link::{Links, Relay};
use crate::outage::Lock;
use crate::postgres::Server;
use crate::random::Random;
use crate::workload;

pub(crate) const NODES: usize = 3;

/// Both halves of the key to our bucket, which looks at none.
const KEY: &str = "jepsen";
/// How long a clock that was moved may take to show it.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a node may take until what it lost is refilled.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(240);
/// How long a node may take to end after SIGTERM: thrice what it promises, as tests share two cores.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

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

/// Sums of indexes over all groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) committed: u64,
    pub(crate) flushed: u64,
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
    /// How often each node was started.
    lives: [AtomicU64; NODES],
    /// `None` while the nemesis has a node down.
    children: Mutex<[Option<Child>; NODES]>,
    /// Processes that ended by themselves: no fault asks for that.
    deaths: Mutex<Vec<String>>,
    /// Those that had a reason to.
    excused_deaths: AtomicU64,
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
        let Place { dir, catalog, disks, bucket, small_log } = place;
        let free = free_ports(5 * NODES + 1)?;
        let ports: [[u16; 5]; NODES] = std::array::from_fn(|node| std::array::from_fn(|at| free[5 * node + at]));
        let postgres = match catalog {
            Catalog::Sqlite => None,
            Catalog::Postgres => {
                let (port, log) = (free[5 * NODES], dir.join("postgres.log"));
                Some(Arc::new(tokio::task::spawn_blocking(move || Server::start(port, &log)).await??))
            }
        };
        let clocks = Clocks::find(dir).map_err(|error| format!("{error:#}"));
        let disks = match disks {
            true => make_disks(dir).await?,
            false => Err("the scenario wants none".to_owned()),
        };
        let bucket = match bucket {
            true => Some(Bucket::start(&dir.join("shared/bucket"), random.next()).await?),
            false => None,
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
            lives: Default::default(),
            children: Mutex::default(),
            deaths: Mutex::default(),
            excused_deaths: AtomicU64::new(0),
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
        let store = match &self.bucket {
            Some(bucket) => in_bucket(&bucket.endpoint()),
            None => vec!["type=filesystem".to_owned(), format!("url=file://{}/storage", shared.display())],
        };
        let mut settings = vec![
            format!("node.id={}", node + 1),
            "cluster.name=jepsen".to_owned(),
            format!("cluster.peers=[{}]", peers.join(",")),
            format!("schema.catalog_uri={catalog}"),
            format!("database.dsn={database}"),
            "flush.interval=500ms".to_owned(),
            "flush.max_interval=500ms".to_owned(),
            "wal.disk_reserve=64MiB".to_owned(),
        ];
        settings.extend(store.into_iter().map(|setting| format!("storage.adapters.local.{setting}")));
        if self.small_log {
            settings.extend(["wal.max_segment_size=256KiB".to_owned(), "wal.keep_flushed=20s".to_owned()]);
        }
        for (name, port) in ["otlp_grpc", "otlp_http", "http", "flight", "peer"].iter().zip(self.ports[node]) {
            settings.push(format!("listen.{name}=127.0.0.1:{port}"));
        }
        let log = std::fs::File::options().create(true).append(true).open(dir.join("node.log"))?;
        let mut command = Command::new(&self.binary);
        command.current_dir(&dir).args(["server", "--data-dir", "data"]);
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command.env("SIGNALDB_BOOT_ID_PATH", self.boot_id(node));
        if let Ok(clocks) = &self.clocks {
            clocks.load_into(&mut command, &name(node));
        }
        self.lives[node].fetch_add(1, Ordering::Relaxed);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("start {}", self.binary.display()))?;
        self.children.lock().unwrap_or_else(PoisonError::into_inner)[node] = Some(child);
        Ok(())
    }

    fn sqlite(&self, file: &str) -> String {
        format!("sqlite://{}/shared/{file}.db", self.dir.display())
    }

    /// How PyIceberg opens a table of a tenant: as Python that makes `table`. Blocking.
    pub(crate) fn pyiceberg(&self, tenant: &str, dataset: &str, table: &str) -> anyhow::Result<String> {
        let namespace = format!("{tenant}.{dataset}");
        let store = self.bucket.as_ref().map_or_else(String::new, |bucket| {
            format!(
                "'s3.endpoint': '{}', 's3.region': 'us-east-1', 's3.access-key-id': '{KEY}', 's3.secret-access-key': '{KEY}'",
                bucket.endpoint()
            )
        });
        Ok(match &self.postgres {
            None => format!(
                "from pyiceberg.catalog import load_catalog
catalog = load_catalog('signaldb', type='sql', uri='sqlite:///{}/shared/catalog.db', **{{{store}}})
table = catalog.load_table(('{namespace}', '{table}'))",
                self.dir.display()
            ),
            // Its catalog would need a driver that nothing else here needs.
            Some(server) => format!(
                "from pyiceberg.table import StaticTable
table = StaticTable.from_metadata('{}', {{{store}}})",
                server.metadata_location(&namespace, table)?
            ),
        })
    }

    /// Waits until a node says that it can acknowledge writes.
    pub(crate) async fn wait_ready(&self, node: usize) -> anyhow::Result<()> {
        let until = Instant::now() + READY_TIMEOUT;
        loop {
            let reasons = self.reasons(node).await;
            if reasons.as_ref().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            if Instant::now() > until {
                let reasons = reasons.unwrap_or_default();
                bail!("node {} is not ready {reasons:?}; its log is below {}", node + 1, self.dir.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a node that lost something is ready and nothing of it recovers. It is started again when it ends by
    /// itself meanwhile.
    pub(crate) async fn wait_whole(&self, node: usize) -> anyhow::Result<()> {
        let until = Instant::now() + WHOLE_TIMEOUT;
        loop {
            self.revive(node)?;
            let reasons = self.reasons(node).await;
            if reasons.as_ref().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            if Instant::now() > until {
                let reasons = reasons.unwrap_or_default();
                bail!("node {} did not recover {reasons:?}; its log is below {}", node + 1, self.dir.display());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Why a node cannot acknowledge writes, as `/ready` says: that it recovers is among them. `None` without an answer.
    pub(crate) async fn reasons(&self, node: usize) -> Option<Vec<String>> {
        let sent = self.http.get(self.url(node, "/ready")).timeout(Duration::from_secs(2)).send().await;
        let response = sent.ok()?;
        if response.status().is_success() {
            return Some(Vec::new());
        }
        let body: Value = response.json().await.ok()?;
        let reasons = body["reasons"].as_array()?.iter();
        Some(reasons.map(|reason| reason.as_str().unwrap_or_default().to_owned()).collect())
    }

    pub(crate) fn url(&self, node: usize, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[node][2])
    }

    /// Where a node takes OTLP over HTTP.
    pub(crate) fn otlp(&self, node: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[node][1]))
    }

    /// Which life of its process a node is in: how often it was started.
    pub(crate) fn life(&self, node: usize) -> u64 {
        self.lives[node].load(Ordering::Relaxed)
    }

    /// Notes a process that ended although nobody killed it, and forgets it.
    fn look(&self, node: usize) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = &mut children[node]
            && let Ok(Some(status)) = child.try_wait()
        {
            clock::forget(child.id());
            let log = self.dir.join(name(node)).join("node.log");
            children[node] = None;
            if self.excused.lock().unwrap_or_else(PoisonError::into_inner)[node] {
                self.excused_deaths.fetch_add(1, Ordering::Relaxed);
            } else {
                self.accuse(format!("node {} ended by itself with {status}; its log is {}", node + 1, log.display()));
            }
        }
    }

    fn accuse(&self, what: String) {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// From now on a node has a reason to end by itself, or none any more.
    pub(crate) fn excuse(&self, node: usize, has_reason: bool) {
        // What happened before counts as it was then.
        self.look(node);
        self.excused.lock().unwrap_or_else(PoisonError::into_inner)[node] = has_reason;
    }

    /// How often a node ended that had a reason to.
    pub(crate) fn excused_deaths(&self) -> u64 {
        (0..NODES).for_each(|node| self.look(node));
        self.excused_deaths.load(Ordering::Relaxed)
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

    /// The process of a node, which from now on may end as it likes.
    fn take(&self, node: usize) -> Option<Child> {
        self.look(node);
        self.children.lock().unwrap_or_else(PoisonError::into_inner)[node].take()
    }

    /// `kill -9`; whether there was a process.
    pub(crate) fn kill(&self, node: usize) -> bool {
        kill_all(self.take(node).into_iter().collect()) > 0
    }

    /// SIGTERM, and waits for the end; how long that took. Anything but a good end is held against the node.
    pub(crate) async fn terminate(&self, node: usize) -> anyhow::Result<Option<Duration>> {
        let Some(mut child) = self.take(node) else { return Ok(None) };
        let begun = Instant::now();
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().context("send SIGTERM")?;
        while begun.elapsed() < STOP_TIMEOUT {
            if let Some(status) = child.try_wait()? {
                clock::forget(child.id());
                if !status.success() {
                    self.accuse(format!("node {} answered SIGTERM with {status}", node + 1));
                }
                return Ok(Some(begun.elapsed()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        kill_all(vec![child]);
        self.accuse(format!("node {} did not end within {STOP_TIMEOUT:?} of SIGTERM", node + 1));
        Ok(Some(begun.elapsed()))
    }

    /// Takes the power from nodes, which stay down; whether all of them ran.
    pub(crate) async fn cut_power(&self, nodes: &[usize], cut: Cut) -> anyhow::Result<bool> {
        let disks = nodes.iter().map(|node| self.disk(*node)).collect::<anyhow::Result<Vec<Disk>>>()?;
        let children: Vec<Child> = nodes.iter().filter_map(|node| self.take(*node)).collect();
        let ran = children.len() == nodes.len();
        let work = move || match cut {
            Cut::ProcessFirst => {
                kill_all(children);
                disk::cut_power(&disks)
            }
            Cut::DiskFirst(moment) => {
                let outcome = disk::cut_power(&disks);
                std::thread::sleep(moment);
                kill_all(children);
                outcome
            }
        };
        tokio::task::spawn_blocking(work).await??;
        Ok(ran)
    }

    /// The machines of nodes have power again, and boot; how many bytes of their logs are gone.
    pub(crate) async fn restore_power(&self, nodes: &[usize], random: &Random) -> anyhow::Result<u64> {
        let disks = nodes.iter().map(|node| self.disk(*node)).collect::<anyhow::Result<Vec<Disk>>>()?;
        let work = move || disks.iter().map(Disk::restart).sum::<anyhow::Result<u64>>();
        let gone = tokio::task::spawn_blocking(work).await??;
        nodes.iter().try_for_each(|node| self.reboot(*node, random))?;
        Ok(gone)
    }

    /// The machine of a node gets another boot id.
    fn reboot(&self, node: usize, random: &Random) -> anyhow::Result<()> {
        let path = self.boot_id(node);
        std::fs::create_dir_all(self.dir.join(name(node)))?;
        let id = format!("{:016x}{:016x}\n", random.next(), random.next());
        std::fs::write(&path, id).with_context(|| format!("write {}", path.display()))
    }

    /// Not on the node's disk: it is the machine's.
    fn boot_id(&self, node: usize) -> PathBuf {
        self.dir.join(name(node)).join("boot_id")
    }

    /// Why a fault cannot be made here, and what would change that.
    pub(crate) fn lacks(&self, fault: Fault) -> Option<String> {
        let disks =
            || Some(format!("root, loop devices and ext4 (sudo make jepsen-full): {}", self.disks.as_ref().err()?));
        let clocks = || Some(format!("clocks that can be moved: {}", self.clocks.as_ref().err()?));
        match fault {
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

    /// Starts a node that is not running.
    pub(crate) fn revive(&self, node: usize) -> anyhow::Result<()> {
        self.look(node);
        let gone = self.children.lock().unwrap_or_else(PoisonError::into_inner)[node].is_none();
        if gone { self.launch(node) } else { Ok(()) }
    }

    /// Sets a node's wall clock to `offset` seconds from the true time.
    pub(crate) fn set_clock(&self, node: usize, offset: i64) -> anyhow::Result<()> {
        let Ok(clocks) = &self.clocks else { return Ok(()) };
        clocks.set(&name(node), offset).with_context(|| format!("move the clock of node {}", node + 1))
    }

    pub(crate) fn reset_clocks(&self) -> anyhow::Result<()> {
        (0..NODES).try_for_each(|node| self.set_clock(node, 0))
    }

    /// Whether a node itself says, soon, that its clock is at `offset`.
    pub(crate) async fn shows_clock(&self, node: usize, offset: i64) -> bool {
        let until = Instant::now() + CLOCK_TIMEOUT;
        loop {
            // The header `date` would not do: servers keep it while their clock is behind it.
            let query = "SELECT to_unixtime(now())";
            let rows = self.sql(node, workload::tenants(0)[0], query, Consistency::Eventual, CLOCK_TIMEOUT).await;
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

    /// Ends every fault and waits until all nodes are ready.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        if let Ok(disks) = &self.disks {
            disks.mend();
        }
        self.links.heal();
        self.reset_clocks()?;
        self.set_store(Mode::Works);
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

    /// How far all groups together are committed, and how far they are in the tables, as far as nodes answer.
    pub(crate) async fn progress(&self) -> Progress {
        let mut groups: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for node in 0..NODES {
            let Some(state) = self.state(node).await else { continue };
            for group in state["groups"].as_array().into_iter().flatten() {
                let number = |name: &str| group[name].as_u64().unwrap_or(0);
                let (committed, flushed) = groups.entry(number("group")).or_default();
                *committed = (*committed).max(number("commit_index"));
                *flushed = (*flushed).max(number("flushed_index"));
            }
        }
        let sum = |of: fn(&(u64, u64)) -> u64| groups.values().map(of).sum::<u64>();
        Progress { committed: sum(|(committed, _)| *committed), flushed: sum(|(_, flushed)| *flushed) }
    }

    /// Has the leader of the busiest group give it away; whether it did. `None` when nobody leads.
    pub(crate) async fn move_leader(&self) -> Option<bool> {
        let (group, leader) = self.busiest().await?;
        let url = self.url(leader, "/api/v1/admin/transfer-leader");
        let asked = self.http.post(url).timeout(Duration::from_secs(5)).json(&json!({"group": group})).send().await;
        Some(asked.is_ok_and(|answer| answer.status().is_success()))
    }

    /// The node that leads the group which acknowledged last, as the first node that answers sees it.
    pub(crate) async fn leader(&self) -> Option<usize> {
        self.busiest().await.map(|(_, leader)| leader)
    }

    /// That group, and that node.
    async fn busiest(&self) -> Option<(u64, usize)> {
        for node in 0..NODES {
            let Some(state) = self.state(node).await else { continue };
            let groups = state["groups"].as_array()?;
            let last = self.busy_group.load(Ordering::Relaxed);
            let busy = groups.iter().find(|group| last > 0 && group["group"] == last);
            let busy = busy.or_else(|| groups.iter().max_by_key(|group| group["last_log_index"].as_u64()))?;
            if let Some(leader) = busy["leader"].as_u64() {
                return Some((busy["group"].as_u64()?, usize::try_from(leader).ok()?.checked_sub(1)?));
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
        if let Ok(disks) = &self.disks {
            // A process that waits for a frozen disk does not end.
            disks.mend();
        }
        for node in 0..NODES {
            self.kill(node);
        }
    }
}

/// Settings of an adapter for our bucket.
fn in_bucket(endpoint: &str) -> Vec<String> {
    let options = [
        format!("endpoint={endpoint}"),
        "allow_http=true".to_owned(),
        "region=us-east-1".to_owned(),
        format!("access_key_id={KEY}"),
        format!("secret_access_key={KEY}"),
        "timeout=10s".to_owned(),
    ];
    let store = ["type=s3".to_owned(), format!("url=s3://{}", bucket::NAME)];
    store.into_iter().chain(options.into_iter().map(|option| format!("options.{option}"))).collect()
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

/// Kills processes, all before waiting for any; how many there were.
fn kill_all(mut children: Vec<Child>) -> usize {
    let killed = children.iter_mut().filter_map(|child| child.kill().ok()).count();
    for mut child in children {
        // Reaped, so that its ports are free.
        let _ = child.wait();
        clock::forget(child.id());
    }
    killed
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
