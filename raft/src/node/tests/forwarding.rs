//! Commands of nodes that do not lead, in three nodes of one process that talk over TCP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use signaldb_proto::peer::SERVICE;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::server::PeerService;

const NODES: u64 = 3;
const WRITERS: usize = 12;
const WRITES: usize = 40;

/// Stands before a node's port, so that what its peers have open there can be cut.
struct Proxy {
    address: String,
    cuts: watch::Sender<u32>,
    _task: JoinSet<()>,
}

impl Proxy {
    async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound").to_string();
        let (cuts, seen) = watch::channel(0);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((inbound, _)) = listener.accept().await {
                connections.spawn(carry(inbound, target, seen.clone()));
            }
        });
        Self { address, cuts, _task: task }
    }

    /// Breaks all connections; new ones are made at once.
    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

/// Carries bytes both ways until the next cut; what is on the way then is lost.
async fn carry(mut inbound: TcpStream, target: SocketAddr, mut cuts: watch::Receiver<u32>) {
    cuts.mark_unchanged();
    let Ok(mut outbound) = TcpStream::connect(target).await else { return };
    if inbound.set_nodelay(true).and_then(|()| outbound.set_nodelay(true)).is_err() {
        return;
    }
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut inbound, &mut outbound) => {}
        _ = cuts.changed() => {}
    }
}

/// Calls by method.
type Calls = Arc<Mutex<BTreeMap<String, usize>>>;

/// The peer port of a node that counts its calls, and that may be of a version without streams of commands.
#[derive(Clone)]
struct Counting {
    service: PeerService,
    calls: Calls,
    older: bool,
}

impl NamedService for Counting {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for Counting {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if self.older && method == crate::forward::METHOD {
            // What this version makes of a method that it does not know.
            let unknown = PathAndQuery::try_from(format!("/{SERVICE}/OfALaterVersion")).expect("a path");
            *request.uri_mut() = http::Uri::from(unknown);
        }
        *self.calls.lock().expect("lock").entry(method).or_default() += 1;
        self.service.call(request)
    }
}

struct Member {
    groups: Groups,
    sink: Arc<Recorder>,
    _server: JoinSet<()>,
}

struct Cluster {
    members: Vec<Member>,
    proxies: Vec<Proxy>,
    calls: Calls,
}

impl Cluster {
    async fn form(older: bool) -> Self {
        let mut listeners = Vec::new();
        let mut proxies = Vec::new();
        for _ in 0..NODES {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            proxies.push(Proxy::before(listener.local_addr().expect("bound")).await);
            listeners.push(listener);
        }
        let addresses: BTreeMap<NodeId, String> =
            (1..).map(NodeId).zip(proxies.iter().map(|proxy| proxy.address.clone())).collect();
        let calls = Calls::default();
        let starts = (1..).map(NodeId).zip(listeners).map(|(node, listener)| {
            let (addresses, calls) = (addresses.clone(), Arc::clone(&calls));
            start(node, listener, addresses, move |service| Counting { service, calls, older })
        });
        let members = futures::future::join_all(starts).await;
        Self { members, proxies, calls }
    }

    /// The group of the tenant at every node.
    async fn homes(&self) -> Vec<Arc<Group>> {
        let homes = self.members.iter().map(|member| async move { member.groups.home(&tenant(), TIMEOUT).await });
        futures::future::join_all(homes).await.into_iter().map(|home| home.expect("placed")).collect()
    }

    fn calls(&self, method: &str) -> usize {
        self.calls.lock().expect("lock").get(method).copied().unwrap_or(0)
    }

    /// Writes through every node at once; `each` hears how many writes are acknowledged.
    async fn write(&self, each: impl Fn(usize)) {
        let homes = self.homes().await;
        let acknowledged = AtomicUsize::new(0);
        let writers = (0..WRITERS).map(|writer| {
            let (home, acknowledged, each) = (&homes[writer % homes.len()], &acknowledged, &each);
            async move {
                let mut last = 0;
                for number in 0..WRITES {
                    let written = home.append(append(&text(writer, number)), None, TIMEOUT).await;
                    last = last.max(written.expect("commits").position.index);
                    each(acknowledged.fetch_add(1, Ordering::Relaxed) + 1);
                }
                last
            }
        });
        let last = futures::future::join_all(writers).await.into_iter().max().expect("some wrote");
        for home in &homes {
            home.wait_applied(last, TIMEOUT).await.expect("follows");
        }
    }

    /// Every write once, at every node.
    fn check(&self) {
        let mut expected: Vec<String> =
            (0..WRITERS).flat_map(|writer| (0..WRITES).map(move |number| text(writer, number))).collect();
        expected.sort();
        for member in &self.members {
            let mut found = texts(&member.sink);
            found.sort();
            assert_eq!(found, expected);
        }
    }

    async fn close(self) {
        futures::future::join_all(self.members.iter().map(|member| member.groups.close())).await;
    }
}

fn text(writer: usize, number: usize) -> String {
    format!("{writer} {number}")
}

async fn start(
    node: NodeId,
    listener: TcpListener,
    addresses: BTreeMap<NodeId, String>,
    serve: impl FnOnce(PeerService) -> Counting,
) -> Member {
    let config = GroupsConfig { wal: WalConfig::default(), ..config(&addresses[&node]) };
    let peers = PeersConfig { cluster: "test".into(), secret: String::new(), node, addresses };
    let store: Arc<dyn StateStore> = Arc::new(MemoryStateStore::default());
    let log = OpenLog::open(&config, peers, Arc::new(SimIo::new()), store).await.expect("opens");
    let service = serve(PeerService::new(Arc::clone(log.peers())));
    let mut server = JoinSet::new();
    server.spawn(async move {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let served = Server::builder().add_routes(Routes::new(service)).serve_with_incoming(incoming).await;
        served.expect("serves");
    });
    let sink = Arc::new(Recorder::default());
    let listener: Arc<dyn ApplySink> = Arc::<Recorder>::clone(&sink);
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(UnixNanos(1_000_000_000_000)));
    let groups = Groups::open(log, config, clock, listener).await.expect("opens");
    Member { groups, sink, _server: server }
}

/// Scenario: writers at all nodes, all connections between nodes cut again and again.
/// Guarantees: every write is acknowledged, and is in the log once.
#[tokio::test(flavor = "multi_thread")]
async fn a_followers_commands_come_out_once_when_their_stream_is_cut_midway() {
    let cluster = Cluster::form(false).await;
    let cut = |acknowledged: usize| {
        if acknowledged.is_multiple_of(WRITERS * WRITES / 5) {
            cluster.proxies.iter().for_each(Proxy::cut);
        }
    };
    cluster.write(cut).await;
    cluster.check();
    assert_eq!(cluster.calls("Propose"), 0);
    assert!(cluster.calls(crate::forward::METHOD) > 0);
    cluster.close().await;
}

/// Scenario: a rolling upgrade, where leaders do not know streams of commands yet.
/// Guarantees: their commands go in calls of their own.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_leader_is_called_for_each_command() {
    let cluster = Cluster::form(true).await;
    cluster.write(|_| {}).await;
    cluster.check();
    // At most one of them leads the group at a time.
    assert!(cluster.calls("Propose") > 0);
    cluster.close().await;
}
