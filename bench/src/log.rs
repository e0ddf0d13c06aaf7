//! The replicated log alone: three processes with nothing but the log and its Raft groups, written to over the peer port
//! by a fourth over a stream of commands, as a node does for its clients. What OTLP, tables and flushing cost is not in it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use signaldb_model::{Clock, DatasetId, GroupId, NodeId, SystemClock, TableCode, TableId, TenantId};
use signaldb_raft::state::{Digest, GroupState};
use signaldb_raft::state_store::MemoryStateStore;
use signaldb_raft::{
    Append, ApplySink, Command, Compression, Forwarder, Groups, GroupsConfig, OpenLog, PeerService, Peers, PeersConfig,
    TableStats,
};
use signaldb_wal::{RealIo, WalConfig};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::load::Latency;

const CLUSTER: &str = "bench-log";
const WINDOW_BYTES: u32 = 16 << 20;
/// A point ends after so long, or so many bytes: the log is never purged here.
const LASTS: Duration = Duration::from_secs(3);
const BYTES_MAX: usize = 512 << 20;
const GROUP: GroupId = GroupId(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// One voter of the log, until its standard input ends.
#[derive(Debug, clap::Args)]
pub(crate) struct LogNode {
    #[arg(long)]
    id: u64,
    /// `host:port` of all voters, by id from 1.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    fsync: bool,
}

/// Bytes of an entry, proposers, MB/s, latency.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) level: &'static str,
    pub(crate) bytes: usize,
    pub(crate) proposers: usize,
    pub(crate) rate: f64,
    pub(crate) latency: Latency,
}

/// Rows go nowhere.
struct Nowhere;

impl ApplySink for Nowhere {
    fn restored(&self, _group: GroupId, _applied: u64, _state: &GroupState) {}
    fn appended(&self, _group: GroupId, _index: u64, _append: Append) {}
    fn flushed(&self, _group: GroupId, _table: &TableId, _hi: u64, _version: i64, _location: &str) {}
    fn advanced(&self, _group: GroupId, _table: &TableId, _version: i64, _location: &str) {}
    fn meta(&self, _json: &str) {}
    fn applied(&self, _group: GroupId, _index: u64) {}
}

pub(crate) async fn run_node(args: LogNode) -> anyhow::Result<()> {
    let addresses: BTreeMap<NodeId, String> = (1..).map(NodeId).zip(args.peers).collect();
    let address = addresses.get(&NodeId(args.id)).context("--id is not in --peers")?.clone();
    let config = GroupsConfig {
        address: address.clone(),
        wal_dir: args.dir,
        boot_id: "bench".into(),
        wal: WalConfig::default(),
        data_groups: 1,
        heartbeat_interval: Duration::from_millis(500),
        election_timeout: (Duration::from_secs(1), Duration::from_millis(1500)),
        purge_lag: Duration::from_secs(600),
        purge_lag_bytes_max: u64::MAX,
        trim_interval: Duration::from_secs(1),
        fsync: args.fsync,
    };
    let peers = PeersConfig { cluster: CLUSTER.into(), secret: String::new(), node: NodeId(args.id), addresses };
    let listener = TcpListener::bind(&address).await?;
    let log = OpenLog::open(&config, peers, Arc::new(RealIo), Arc::new(MemoryStateStore::default())).await?;
    let service = PeerService::new(Arc::clone(log.peers()));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let server = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_routes(Routes::new(service));
        server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await
    });
    let groups = Groups::open(log, config, Arc::new(SystemClock), Arc::new(Nowhere)).await?;
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    groups.close().await;
    Ok(())
}

/// Three voters on loopback, ended with this.
struct Voters {
    children: Vec<Child>,
    addresses: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Voters {
    fn start(fsync: bool) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let addresses = free_addresses(3)?;
        let mut voters = Self { children: Vec::new(), addresses, _dir: dir };
        for id in 1..=3 {
            let child = voters.launch(id, fsync, voters._dir.path())?;
            voters.children.push(child);
        }
        for child in &mut voters.children {
            let mut line = String::new();
            BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
            anyhow::ensure!(line.trim() == "ready", "a voter did not start");
        }
        Ok(voters)
    }

    fn launch(&self, id: usize, fsync: bool, dir: &Path) -> anyhow::Result<Child> {
        let mut command = Process::new(std::env::current_exe()?);
        command.args(["log-node", "--id", &id.to_string(), "--peers", &self.addresses.join(",")]);
        command.arg("--dir").arg(dir.join(id.to_string()));
        if fsync {
            command.arg("--fsync");
        }
        Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.children.iter().map(|child| crate::node::cpu_seconds_of(child.id())).sum()
    }
}

impl Drop for Voters {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.stdin.take());
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_addresses(count: usize) -> anyhow::Result<Vec<String>> {
    let sockets = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    sockets.iter().map(|socket| Ok(socket.local_addr()?.to_string())).collect()
}

/// All points at both levels, and CPU seconds of the three voters a GB at 64 KiB.
pub(crate) async fn measure() -> anyhow::Result<Vec<Point>> {
    let mut points = Vec::new();
    for (level, fsync) in [("quorum", false), ("quorum-fsync", true)] {
        for bytes in [1 << 10, 64 << 10] {
            let voters = Voters::start(fsync)?;
            let forwarder = Arc::new(forwarder(&voters.addresses));
            let leader = find_leader(&forwarder).await?;
            for proposers in [1, 16, 64] {
                let before = voters.cpu_seconds()?;
                let (rate, latency) = propose(&forwarder, leader, bytes, proposers).await?;
                let cpu = voters.cpu_seconds()? - before;
                eprintln!("{level} {bytes} x {proposers}: {rate:.1} MB/s, p99 {:.2} ms, {cpu:.2} CPU s", latency.p99);
                points.push(Point { level, bytes, proposers, rate, latency });
            }
            forwarder.close().await;
        }
    }
    Ok(points)
}

/// Writes as a node that is no voter.
fn forwarder(addresses: &[String]) -> Forwarder {
    let addresses: BTreeMap<NodeId, String> = (1..).map(NodeId).zip(addresses.iter().cloned()).collect();
    let node = NodeId(addresses.len() as u64 + 1);
    let config = PeersConfig { cluster: CLUSTER.into(), secret: String::new(), node, addresses };
    Forwarder::new(Arc::new(Peers::of_tool(config)))
}

async fn find_leader(forwarder: &Forwarder) -> anyhow::Result<NodeId> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        for node in (1..=3).map(NodeId) {
            let first = command(Bytes::from_static(b"first"), 0);
            if forwarder.propose(node, GROUP, first, TIMEOUT).await.is_ok() {
                return Ok(node);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("nobody leads")
}

async fn propose(
    forwarder: &Arc<Forwarder>,
    leader: NodeId,
    bytes: usize,
    proposers: usize,
) -> anyhow::Result<(f64, Latency)> {
    // Bytes that do not compress, and a few MiB of them, so that making them is not measured.
    let random: Bytes = crate::load::random_bytes(bytes + (1 << 20)).into();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for proposer in 0..proposers {
        let (forwarder, random) = (Arc::clone(forwarder), random.clone());
        tasks.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < LASTS && times.len() * bytes * proposers < BYTES_MAX {
                let number = (times.len() * proposers + proposer) as u64;
                let at = (number as usize * 64) % (1 << 20);
                let sent = Instant::now();
                let command = command(random.slice(at..at + bytes), number ^ (bytes as u64) << 40);
                forwarder.propose(leader, GROUP, command, TIMEOUT).await?;
                times.push(sent.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(task) = tasks.join_next().await {
        times.extend(task??);
    }
    let rate = (times.len() * bytes) as f64 / begun.elapsed().as_secs_f64() / 1e6;
    Ok((rate, Latency::of(times)))
}

fn command(payload: Bytes, number: u64) -> Bytes {
    let now = SystemClock.now();
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&number.to_le_bytes());
    digest[8..].copy_from_slice(&now.0.to_le_bytes());
    let table = TableStats { table: TableCode(2), rows: 1, time_min: now, time_max: now };
    let append = Append {
        kind: 2,
        tenant: TenantId::new("default").expect("a name"),
        dataset: DatasetId::new("default").expect("a name"),
        at: now,
        dedup: Some((Digest(digest), 600)),
        tables: vec![table],
        compression: Compression::None,
        raw_len: payload.len() as u32,
        payload,
    };
    Command::Append(append).encode()
}
