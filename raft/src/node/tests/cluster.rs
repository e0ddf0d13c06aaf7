//! Three nodes in one process: the server's own log, groups and peer port each, on a disk in memory that loses what was
//! not synced, behind wires that can be cut.
//!
//! All of it runs on the test's thread, beside those of the logs: between two awaits of a test nothing is sent. A node
//! that dies leaves a copy of its disk to the next start. The old process goes on with the original until then, but
//! nobody hears of it: what it had written and said at that moment is all that counts.
//!
//! Nothing syncs the data group by itself: what is on disk is what had to be.

use std::net::SocketAddr;

use futures::future::{LocalBoxFuture, join_all};
use signaldb_proto::peer;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::wires::{Flow, Wire};
use super::*;
use crate::peers::Lane;
use crate::recovery::LogEnd;
use crate::server::PeerService;

pub(super) const ALL: [u64; 3] = [1, 2, 3];
/// The one data group.
const GROUP: GroupId = GroupId(1);
const POLL: Duration = Duration::from_millis(10);
/// Long enough for never.
const NEVER: Duration = Duration::from_secs(3600);
const WINDOW_BYTES: u32 = 16 << 20;

pub(super) struct Cluster {
    nodes: BTreeMap<u64, Node>,
    /// By caller and called.
    wires: BTreeMap<(u64, u64), Arc<Wire>>,
    flows: BTreeMap<(u64, u64), Flow>,
    clock: Arc<ManualClock>,
    /// Processes that died.
    gone: Vec<Running>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Node {
    disk: SimIo,
    store: Arc<MemoryStateStore>,
    /// How often the machine was started.
    boots: u32,
    address: Option<SocketAddr>,
    running: Option<Running>,
}

struct Running {
    groups: Groups,
    sink: Arc<Recorder>,
    server: AbortHandle,
}

/// Waits until `condition` holds.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// The two nodes that are not `n`.
pub(super) fn others(n: u64) -> [u64; 2] {
    [n % 3 + 1, (n + 1) % 3 + 1]
}

impl Cluster {
    /// A new cluster with a leader that all follow.
    pub(super) async fn form() -> Self {
        let mut cluster = Self {
            nodes: ALL.into_iter().map(|n| (n, Node::default())).collect(),
            wires: BTreeMap::new(),
            flows: BTreeMap::new(),
            clock: Arc::new(ManualClock::new(UnixNanos(1_000_000_000_000))),
            gone: Vec::new(),
            tasks: JoinSet::new(),
        };
        cluster.start(&ALL).await;
        cluster.leader_among(&ALL).await;
        cluster
    }

    /// Starts nodes that do not run, and waits until their groups are open.
    pub(super) async fn start(&mut self, nodes: &[u64]) {
        self.bury().await;
        let mut opening = Vec::new();
        for n in nodes {
            opening.push(self.launch(*n).await);
        }
        for (n, running) in nodes.iter().zip(join_all(opening).await) {
            self.node(*n).running = Some(running);
        }
    }

    /// Ends all that runs.
    pub(super) async fn close(mut self) {
        ALL.into_iter().for_each(|n| self.kill(n));
        self.bury().await;
    }

    async fn bury(&mut self) {
        for old in std::mem::take(&mut self.gone) {
            old.server.abort();
            old.groups.close().await;
        }
    }

    async fn launch(&mut self, n: u64) -> LocalBoxFuture<'static, Running> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let mut addresses = BTreeMap::from([(NodeId(n), address.to_string())]);
        for other in others(n) {
            // A new wire each time: the old one belongs to the process that died.
            let relay = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            addresses.insert(NodeId(other), relay.local_addr().expect("has an address").to_string());
            let flow = self.flows.get(&(n, other)).copied().unwrap_or(Flow::Open);
            let wire = Arc::new(Wire::new(flow, self.nodes[&other].address));
            self.tasks.spawn(Arc::clone(&wire).relay(relay));
            self.wires.insert((n, other), wire);
        }
        for ((_, called), wire) in &self.wires {
            if *called == n {
                wire.reach(Some(address));
            }
        }
        let node = self.node(n);
        node.address = Some(address);
        let config = GroupsConfig {
            address: address.to_string(),
            wal_dir: "/wal".into(),
            boot_id: format!("boot {}", node.boots),
            wal: WalConfig { segment_bytes_max: 1 << 30, sync_interval: NEVER, sync_bytes: u64::MAX },
            data_groups: 1,
            heartbeat_interval: Duration::from_millis(150),
            election_timeout: (Duration::from_millis(600), Duration::from_millis(900)),
            purge_lag: Duration::ZERO,
            purge_lag_bytes_max: u64::MAX,
            // Nor does an idle group return to SYNCED.
            trim_interval: NEVER,
            fsync: false,
        };
        let peers = PeersConfig { cluster: "test".into(), secret: String::new(), node: NodeId(n), addresses };
        let (disk, store) = (Arc::new(node.disk.clone()), Arc::clone(&node.store));
        let log = OpenLog::open(&config, peers, disk, store).await.expect("the log opens");
        let server = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_routes(Routes::new(PeerService::new(Arc::clone(log.peers()))));
        let server = self.tasks.spawn(async move {
            drop(server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await);
        });
        let sink = Arc::new(Recorder::default());
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
        let told: Arc<dyn ApplySink> = Arc::<Recorder>::clone(&sink);
        Box::pin(async move {
            let opening = Box::pin(Groups::open(log, config, clock, told));
            let groups = tokio::time::timeout(TIMEOUT, opening).await.expect("opens in time").expect("opens");
            Running { groups, sink, server }
        })
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self, n: u64) {
        for ((caller, called), wire) in &self.wires {
            if *caller == n {
                wire.set(Flow::Cut);
            }
            if *called == n {
                wire.reach(None);
            }
        }
        self.wires.retain(|(caller, _), _| *caller != n);
        let node = self.nodes.get_mut(&n).expect("a node");
        node.address = None;
        node.disk = node.disk.fork();
        let pairs = node.store.scan(b"").expect("scans");
        node.store = Arc::default();
        for (key, value) in &pairs {
            node.store.put(&[(key.as_slice(), value.as_slice())]).expect("puts");
        }
        self.gone.extend(node.running.take());
    }

    /// The operating system dies with everything that was not synced.
    pub(super) fn lose_power(&mut self, n: u64) {
        self.kill(n);
        let node = self.node(n);
        node.disk.lose_power(Loss::All);
        node.boots += 1;
    }

    /// SIGTERM.
    pub(super) async fn stop(&mut self, n: u64) {
        let old = self.node(n).running.take().expect("runs");
        old.groups.close().await;
        old.server.abort();
        self.kill(n);
    }

    /// Flips a bit of the newest segment of a node that does not run, at `part` of `parts` of its length.
    pub(super) fn flip(&mut self, n: u64, part: usize, parts: usize) {
        let disk = &self.node(n).disk;
        let segments = disk.paths().into_iter().filter(|path| path.extension().is_some_and(|end| end == "wal"));
        let newest = segments.max().expect("a segment");
        let len = disk.file_len(&newest).expect("exists");
        disk.flip(&newest, len * part / parts);
    }

    pub(super) fn set(&mut self, caller: u64, called: u64, flow: Flow) {
        self.flows.insert((caller, called), flow);
        if let Some(wire) = self.wires.get(&(caller, called)) {
            wire.set(flow);
        }
    }

    pub(super) fn wire(&self, caller: u64, called: u64) -> Arc<Wire> {
        Arc::clone(&self.wires[&(caller, called)])
    }

    pub(super) fn connect(&mut self, one: u64, other: u64) {
        self.set(one, other, Flow::Open);
        self.set(other, one, Flow::Open);
    }

    /// Nobody reaches the node, and it reaches nobody. To the others a paused one looks like that.
    pub(super) fn isolate(&mut self, n: u64) {
        for other in others(n) {
            self.set(n, other, Flow::Cut);
            self.set(other, n, Flow::Cut);
        }
    }

    pub(super) fn isolate_all(&mut self) {
        ALL.into_iter().for_each(|n| self.isolate(n));
    }

    pub(super) fn heal(&mut self) {
        for n in ALL {
            others(n).into_iter().for_each(|other| self.set(n, other, Flow::Open));
        }
    }

    fn node(&mut self, n: u64) -> &mut Node {
        self.nodes.get_mut(&n).expect("a node")
    }

    fn running(&self, n: u64) -> &Running {
        self.nodes[&n].running.as_ref().expect("runs")
    }

    pub(super) fn peers(&self, n: u64) -> &Arc<Peers> {
        self.running(n).groups.peers()
    }

    /// The data group on node `n`.
    pub(super) fn group(&self, n: u64) -> Arc<Group> {
        self.running(n).groups.group(GROUP).expect("a data group")
    }

    /// Why node `n` cannot acknowledge writes.
    pub(super) fn not_ready(&self, n: u64) -> Vec<String> {
        self.running(n).groups.not_ready()
    }

    /// Waits until one of `nodes` leads and all of them follow it.
    pub(super) async fn leader_among(&self, nodes: &[u64]) -> u64 {
        let leader = || {
            let seen = nodes.iter().map(|n| self.group(*n).leadership());
            let seen: BTreeSet<_> = seen.map(|seen| (seen.term, seen.leader)).collect();
            let mut seen = seen.into_iter();
            let (Some((_, Some(NodeId(leader)))), None) = (seen.next(), seen.next()) else { return None };
            (nodes.contains(&leader) && self.group(leader).leadership().here).then_some(leader)
        };
        until(&format!("a leader among {nodes:?}"), || leader().is_some()).await;
        leader().expect("nothing ran since")
    }

    /// Writes through node `n`; the write is acknowledged.
    pub(super) async fn write(&self, n: u64, text: &str) -> crate::Written {
        self.group(n).append(append(text), None, TIMEOUT).await.expect("commits")
    }

    /// Writes at a leader that has no majority: `count` entries stay in its log, and are never acknowledged.
    pub(super) async fn strand(&self, n: u64, count: u64) {
        let (group, end) = (self.group(n), self.end(n).await.index + count);
        let writes = (0..count).map(|at| group.append(append(&format!("stranded {at}")), None, TIMEOUT));
        tokio::select! {
            written = join_all(writes) => panic!("not without a majority: {written:?}"),
            () = self.wait_end(n, end) => {}
        }
    }

    /// Where the group's log ends on node `n`.
    pub(super) async fn end(&self, n: u64) -> LogEnd {
        self.group(n).recovery_report().await.expect("the group runs").last.unwrap_or_default()
    }

    /// The last entry that node `n` has acknowledged, or could: it was written since the start.
    pub(super) fn flushed(&self, n: u64) -> u64 {
        let progress = self.group(n).raft().watch_log_progress().get();
        progress.and_then(|point| point.last_log_id).map_or(0, |id| id.index)
    }

    /// The term that node `n` has on disk, as of its start or later.
    pub(super) async fn term(&self, n: u64) -> u64 {
        self.group(n).recovery_report().await.expect("the group runs").term
    }

    /// Waits until the log of node `n` reaches `index`.
    pub(super) async fn wait_end(&self, n: u64, index: u64) {
        let deadline = Instant::now() + TIMEOUT;
        while self.end(n).await.index < index {
            assert!(Instant::now() < deadline, "node {n} does not reach entry {index}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether `voter` would vote for `candidate` with a log that ends at `last`. Nothing changes.
    pub(super) async fn would_vote(&self, voter: u64, candidate: u64, last: LogEnd) -> bool {
        let term = 1 + self.term(voter).await.max(self.term(candidate).await);
        let request = peer::VoteRequest {
            group: GROUP.0,
            vote: peer::Vote { term, node: candidate, committed: false },
            last_log_id: Some(peer::LogId { term: last.term, index: last.index }),
            leadership_transfer: false,
        };
        let asked = self.peers(candidate).call(NodeId(voter), Lane::Control, "PreVote", &request, TIMEOUT);
        let answer: peer::VoteResponse = asked.await.expect("answers");
        answer.granted
    }

    /// The same, once `voter` believes in no leader any more.
    pub(super) async fn wait_vote(&self, voter: u64, candidate: u64, last: LogEnd) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.would_vote(voter, candidate, last).await {
            assert!(Instant::now() < deadline, "node {voter} would never vote for {candidate}");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) fn rows(&self, n: u64) -> Vec<String> {
        let mut rows = texts(&self.running(n).sink);
        rows.sort_unstable();
        rows
    }

    /// Waits until each of `nodes` has applied exactly these rows, each once, since it was started.
    pub(super) async fn wait_rows(&self, nodes: &[u64], expected: &[&str]) {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        let deadline = Instant::now() + TIMEOUT;
        for n in nodes {
            while self.rows(*n) != expected && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
            }
            assert_eq!(self.rows(*n), expected, "node {n}");
        }
    }

    /// Waits until every node has the same state and log.
    pub(super) async fn wait_same(&self) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let (mut ends, mut states) = (Vec::new(), Vec::new());
            for n in ALL {
                ends.push(self.end(n).await);
                states.push(self.group(n).with_state(GroupState::clone));
            }
            if ends.iter().all(|end| *end == ends[0]) && states.iter().all(|state| *state == states[0]) {
                return;
            }
            assert!(Instant::now() < deadline, "the nodes stay different: {ends:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until node `n` votes again.
    pub(super) async fn wait_recovered(&self, n: u64) {
        until("the node has recovered", || !self.group(n).is_recovering()).await;
    }
}
