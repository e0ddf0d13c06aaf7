//! A node asks a peer whether its disk may go on, over a real connection.

use std::path::PathBuf;

use signaldb_proto::peer::Voter;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::server::PeerService;

/// Node 2 of two, served on loopback until this is dropped.
struct Served {
    peers: Arc<Peers>,
    addresses: BTreeMap<NodeId, String>,
    _tasks: JoinSet<()>,
}

impl Served {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound").to_string();
        let addresses = BTreeMap::from([(NodeId(1), "127.0.0.1:1".to_owned()), (NodeId(2), address)]);
        let starts = StartHistory::default().with_start(1);
        let peers = Peers::new(of_node(2, &addresses), "disk-2".to_owned(), starts, KnownStarts::default());
        let peers = Arc::new(peers);
        let routes = Routes::new(PeerService::new(Arc::clone(&peers)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let server = Server::builder().add_routes(routes);
            server.serve_with_incoming(TcpIncoming::from(listener)).await.expect("serves");
        });
        Self { peers, addresses, _tasks: tasks }
    }

    /// Starts node 1 on a disk.
    async fn open(&self, io: &SimIo) -> Result<OpenLog, OpenError> {
        let store: Arc<dyn StateStore> = Arc::new(MemoryStateStore::default());
        OpenLog::open(&config("127.0.0.1:1"), of_node(1, &self.addresses), Arc::new(io.clone()), store).await
    }

    /// From now on this peer knows node 1 by its disk.
    fn form(&self, disk_id: &str) {
        let voter = |node, disk_id: &str| Voter { node, address: String::new(), disk_id: disk_id.to_owned() };
        self.peers.set_voters(vec![voter(1, disk_id), voter(2, "disk-2")]);
    }
}

fn of_node(node: u64, addresses: &BTreeMap<NodeId, String>) -> PeersConfig {
    PeersConfig { cluster: "test".into(), secret: String::new(), node: NodeId(node), addresses: addresses.clone() }
}

fn content(io: &SimIo) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    io.paths().into_iter().map(|path| (path.clone(), io.read(&path).expect("reads"))).collect()
}

/// Scenario: a disk is copied after its first start; the second one speaks to a peer, and says at its end that its log
/// is poisoned; then the copy is started, several times, and the disk itself.
/// Guarantees: the copy is refused each time, before anything on it is changed; the disk goes on, and knows about the
/// poison without a mark of its own.
#[tokio::test]
async fn a_copy_is_refused_untouched_and_the_disk_hears_that_it_was_poisoned() {
    let (peer, disk) = (Served::start().await, SimIo::new());
    let first = peer.open(&disk).await.expect("a new disk");
    peer.form(first.peers().disk_id());
    drop(first);
    let copy = disk.fork();

    let second = peer.open(&disk).await.expect("nobody has heard of it");
    assert!(second.silent.is_empty());
    admittance::tell_poison(second.peers()).await;
    let known = peer.peers.known_of(1).expect("a voter");
    assert_eq!((known.epoch.map(|epoch| epoch.number), known.poisoned), (Some(2), known.epoch));
    drop(second);

    let before = content(&copy);
    for _ in 0..3 {
        let refused = peer.open(&copy).await.expect_err("an old copy");
        let OpenError::Refused { peer: 2, source } = &refused else { panic!("{refused}") };
        assert!(source.to_string().contains("restored old copy"), "{source}");
    }
    assert_eq!(content(&copy), before);

    let third = peer.open(&disk).await.expect("it is the disk that was seen");
    assert_eq!((third.settled, third.peers().identity().starts.number()), (2, 3));
    drop(third);
    assert_eq!(peer.open(&disk).await.expect("starts").settled, 2, "once");
}

/// Scenario: a copy starts while no peer answers, and takes the number of a start that a peer has seen of the disk.
/// Guarantees: it starts, since nobody can tell; the first peer that it calls refuses it, and it stops.
#[tokio::test]
async fn a_copy_that_started_alone_is_refused_by_the_first_peer_that_it_calls() {
    let (peer, disk) = (Served::start().await, SimIo::new());
    let first = peer.open(&disk).await.expect("a new disk");
    peer.form(first.peers().disk_id());
    drop(first);
    let copy = disk.fork();
    let second = peer.open(&disk).await.expect("starts");
    admittance::tell_poison(second.peers()).await;

    let nobody = BTreeMap::from([(NodeId(1), "127.0.0.1:1".to_owned()), (NodeId(2), "127.0.0.1:1".to_owned())]);
    let store: Arc<dyn StateStore> = Arc::new(MemoryStateStore::default());
    let alone = OpenLog::open(&config("127.0.0.1:1"), of_node(1, &nobody), Arc::new(copy.clone()), store)
        .await
        .expect("starts");
    assert_eq!(alone.silent, BTreeSet::from([NodeId(2)]));
    let identity = alone.peers().identity();
    assert_eq!(identity.starts.number(), second.peers().identity().starts.number());
    drop(alone);
    let disk_id = identity.disk_id.expect("an open log");
    let met = Peers::new(of_node(1, &peer.addresses), disk_id, identity.starts, KnownStarts::default());
    admittance::tell_poison(&met).await;
    assert!(met.refused().is_some_and(|reason| reason.contains("restored old copy")), "{:?}", met.refused());
    peer.open(&copy).await.expect_err("and at its next start");
}

/// Scenario: a node was told that a start of it was poisoned, too late to decide by it, and stopped; it starts again, and
/// again nobody answers.
/// Guarantees: it decides by what it was told, and does not stop for it once more.
#[tokio::test]
async fn what_a_node_was_told_of_its_poison_counts_when_nobody_answers() {
    let nobody = BTreeMap::from([(NodeId(1), "127.0.0.1:1".to_owned()), (NodeId(2), "127.0.0.1:1".to_owned())]);
    let (disk, store) = (SimIo::new(), Arc::new(MemoryStateStore::default()));
    let open = async || {
        let store: Arc<dyn StateStore> = Arc::<MemoryStateStore>::clone(&store);
        OpenLog::open(&config("127.0.0.1:1"), of_node(1, &nobody), Arc::new(disk.clone()), store).await
    };
    let own = open().await.expect("a new disk").peers().identity();
    let epoch = own.starts.newest();
    let told = Known { disk_id: own.disk_id.expect("an open log"), epoch, poisoned: epoch };
    KnownStarts::store(store.as_ref(), Starts::from([(1, told)])).expect("stores");
    let second = open().await.expect("starts");
    assert_eq!((second.settled, second.silent.len()), (1, 1));
    drop(second);
    let third = open().await.expect("starts");
    assert_eq!((third.settled, third.peers().identity().starts.number()), (1, 3));
}
