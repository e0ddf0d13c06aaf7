//! The other nodes: where they are, how they are called, and who may call here.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use prost::Message;
use signaldb_model::{GroupId, NodeId};
use signaldb_proto::RawCodec;
use signaldb_proto::peer::{
    CLUSTER_KEY, FORMAT, FORMAT_KEY, FROM_DISK_KEY, FROM_NODE_KEY, FROM_STARTS_KEY, REFUSED_KEY, SERVICE, TO_DISK_KEY,
    Voter,
};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{HeaderMap, HeaderValue};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::group::Group;
use crate::known::{Known, KnownStarts};
use crate::recovery::{OwnIdentity, Refusal, StartEpoch, StartHistory};

/// Largest message between peers: a snapshot with a full dedup window.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const WINDOW_BYTES: u32 = 16 << 20;
/// Pause between two lines in the log about a peer that refuses this node.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(30);

/// Four connections a peer, so that a large append never delays a vote or a heartbeat on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Votes, heartbeats, read indexes.
    Control,
    /// Appends, snapshots, forwarded writes.
    Bulk,
    /// Rows of queries: a reader that pauses must not hold up appends.
    Rows,
    /// What nodes do for each other's queries. Many of these streams pause for clients that read slowly; together they fill
    /// the window of their connection, and must not hold up rows that nobody else has.
    Shares,
}

impl Lane {
    /// What one reader may leave unread; one that pauses leaves room for the others.
    fn stream_window_bytes(self) -> u32 {
        match self {
            Self::Control | Self::Bulk => WINDOW_BYTES,
            Self::Rows => WINDOW_BYTES / 8,
            Self::Shares => WINDOW_BYTES / 32,
        }
    }
}

/// How connections to peers are made.
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// A channel to `node` at `endpoint`, which connects at its first use and again when it breaks.
    fn channel(&self, node: NodeId, endpoint: Endpoint) -> Channel;
}

/// The network of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Dial for Tcp {
    fn channel(&self, _node: NodeId, endpoint: Endpoint) -> Channel {
        endpoint.connect_lazy()
    }
}

/// What a node knows of its peers.
#[derive(Clone)]
pub struct PeersConfig {
    pub cluster: String,
    /// Shared by all nodes of the cluster; empty on loopback.
    pub secret: String,
    pub node: NodeId,
    /// `host:port` of every first voter, this node included; empty on a single node.
    pub addresses: BTreeMap<NodeId, String>,
}

impl fmt::Debug for PeersConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeersConfig")
            .field("node", &self.node)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// The other nodes of the cluster.
#[derive(Debug)]
pub struct Peers {
    config: PeersConfig,
    dial: Arc<dyn Dial>,
    disk_id: String,
    /// The starts of this node's disk, this one included.
    starts: StartHistory,
    /// As every call and answer carries them.
    starts_text: String,
    known: KnownStarts,
    /// Why this node must not go on under its id.
    refused: OnceLock<String>,
    channels: Mutex<HashMap<(NodeId, Lane), Channel>>,
    /// First voters with their disks, once the cluster is formed.
    voters: RwLock<Vec<Voter>>,
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    /// Whether the node has read from its disk if it belongs to a cluster.
    knows_itself: AtomicBool,
    stopping: AtomicBool,
    /// When the log said last that a peer refuses this node.
    refusals: Mutex<HashMap<NodeId, Instant>>,
}

impl Peers {
    /// The peers of a tool that is no voter of theirs and has no disk: it can send commands.
    pub fn of_tool(config: PeersConfig) -> Self {
        Self::new(config, "tool".to_owned(), StartHistory::default(), KnownStarts::default())
    }

    pub(crate) fn new(config: PeersConfig, disk_id: String, starts: StartHistory, known: KnownStarts) -> Self {
        Self {
            stopping: AtomicBool::new(false),
            config,
            dial: Arc::new(Tcp),
            disk_id,
            starts_text: starts.to_string(),
            starts,
            known,
            refused: OnceLock::new(),
            channels: Mutex::default(),
            voters: RwLock::default(),
            groups: RwLock::default(),
            knows_itself: AtomicBool::new(false),
            refusals: Mutex::default(),
        }
    }

    /// The same over another network.
    pub(crate) fn over(self, dial: Arc<dyn Dial>) -> Self {
        Self { dial, ..self }
    }

    pub fn node(&self) -> NodeId {
        self.config.node
    }

    pub(crate) fn disk_id(&self) -> &str {
        &self.disk_id
    }

    /// This node's disk with its starts, this one included.
    pub(crate) fn identity(&self) -> OwnIdentity {
        OwnIdentity { disk_id: Some(self.disk_id.clone()), starts: self.starts.clone() }
    }

    /// What was heard of the starts of the nodes.
    pub(crate) fn known(&self) -> &KnownStarts {
        &self.known
    }

    /// What this node knows of another, for that one's start.
    pub(crate) fn known_of(&self, node: u64) -> Option<Known> {
        let voters = self.voters();
        let never_heard = || voters.iter().find(|voter| voter.node == node).map(|voter| voter.disk_id.clone());
        let known = self.known.of(node);
        known.or_else(|| never_heard().map(|disk_id| Known { disk_id, epoch: None, poisoned: None }))
    }

    /// A node says that its log is poisoned.
    pub(crate) fn note_poisoned(&self, node: u64, epoch: StartEpoch) {
        tracing::warn!(node, epoch = epoch.number, "the log of a peer is poisoned: a write or an fsync failed there");
        if let Some(known) = self.known_of(node) {
            self.known.learn(node, Known { poisoned: Some(epoch), ..known });
        }
    }

    /// Why this node must stop: its disk may not go on under its id.
    pub fn refused(&self) -> Option<&str> {
        self.refused.get().map(String::as_str)
    }

    /// From now on this node says nothing any more and must stop.
    pub(crate) fn refuse(&self, reason: String) {
        if self.refused.set(reason.clone()).is_ok() {
            tracing::error!(reason, "this node must stop");
        }
    }

    /// First voters by address; empty on a single node.
    pub fn addresses(&self) -> &BTreeMap<NodeId, String> {
        &self.config.addresses
    }

    pub(crate) fn voters(&self) -> Vec<Voter> {
        self.voters.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on a node is known by its disk.
    pub(crate) fn set_voters(&self, voters: Vec<Voter>) {
        *self.voters.write().unwrap_or_else(PoisonError::into_inner) = voters;
    }

    pub(crate) fn knows_itself(&self) -> bool {
        self.knows_itself.load(Ordering::Acquire)
    }

    /// From now on peers are told who this is; before, an answer could make them found a second cluster.
    pub(crate) fn set_knows_itself(&self) {
        self.knows_itself.store(true, Ordering::Release);
    }

    /// Whether this node takes leaderships; unknown before the first data group is open.
    pub(crate) fn is_willing(&self) -> bool {
        let stopping = self.stopping.load(Ordering::Acquire);
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        !stopping && groups.len() > 1 && groups.values().all(|group| group.is_willing())
    }

    /// From now on nobody should give this node a leadership.
    pub(crate) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Lets peers call a group.
    pub(crate) fn register(&self, group: &Arc<Group>) {
        self.groups.write().unwrap_or_else(PoisonError::into_inner).insert(group.id(), Arc::clone(group));
    }

    pub(crate) fn group(&self, id: u32) -> Option<Arc<Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&GroupId(id)).cloned()
    }

    /// A connection to a node; made at its first use, and made again when it breaks.
    ///
    /// # Errors
    /// UNAVAILABLE for a node that is not in the configuration.
    pub fn channel(&self, node: NodeId, lane: Lane) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&(node, lane)) {
            return Ok(channel.clone());
        }
        let address = self.config.addresses.get(&node);
        let address = address.ok_or_else(|| Status::unavailable(format!("node {node} is not in cluster.peers")))?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Status::unavailable(format!("address {address:?} of node {node}: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(lane.stream_window_bytes())
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = self.dial.channel(node, endpoint);
        channels.insert((node, lane), channel.clone());
        Ok(channel)
    }

    /// Metadata that says who calls whom; every call between nodes carries it.
    pub fn metadata(&self, to: NodeId) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        let mut put = |key: &'static str, value: &str| {
            if let Ok(value) = MetadataValue::<Ascii>::try_from(value) {
                metadata.insert(key, value);
            }
        };
        put(FORMAT_KEY, &FORMAT.to_string());
        put(CLUSTER_KEY, &self.config.cluster);
        put(FROM_NODE_KEY, &self.config.node.to_string());
        put(FROM_DISK_KEY, &self.disk_id);
        put(FROM_STARTS_KEY, &self.starts_text);
        if let Some(voter) = self.voters().iter().find(|voter| voter.node == to.0) {
            put(TO_DISK_KEY, &voter.disk_id);
        }
        if !self.config.secret.is_empty() {
            put("authorization", &format!("Bearer {}", self.config.secret));
        }
        metadata
    }

    /// Says in an answer whose it is.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        for (key, value) in [(FROM_DISK_KEY, &self.disk_id), (FROM_STARTS_KEY, &self.starts_text)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(key, value);
            }
        }
    }

    /// Calls a method of a peer.
    ///
    /// # Errors
    /// UNAVAILABLE when the peer cannot be reached, or when it is an old copy of itself; DEADLINE_EXCEEDED after
    /// `timeout`; else what the peer says. After the first two the call may have had its effect.
    pub(crate) async fn call<A: Message, B: Message + Default>(
        &self,
        node: NodeId,
        lane: Lane,
        method: &'static str,
        message: &A,
        timeout: Duration,
    ) -> Result<B, Status> {
        let mut client = self.client(node, lane)?;
        let path = path(method)?;
        let mut request = Request::new(message.encode_to_vec().into());
        *request.metadata_mut() = self.metadata(node);
        let call = async {
            client.ready().await.map_err(|error| Status::unavailable(format!("node {node}: {error}")))?;
            client.unary(request, path, RawCodec).await
        };
        let response = tokio::time::timeout(timeout, call).await;
        let response =
            response.map_err(|_| Status::deadline_exceeded(format!("node {node} did not answer {method}")))?;
        let response = response.inspect_err(|status| self.note_refusal(node, status))?;
        self.check_answer(node, response.metadata())?;
        B::decode(response.into_inner()).map_err(|error| Status::internal(format!("answer of node {node}: {error}")))
    }

    /// A node that the others refuse says so in its own log, where its operator looks; where that is final, it stops.
    fn note_refusal(&self, node: NodeId, status: &Status) {
        if !matches!(status.code(), Code::Unauthenticated | Code::FailedPrecondition) {
            return;
        }
        if status.metadata().get(REFUSED_KEY).is_some() {
            self.refuse(format!("node {node} refuses this node: {}", status.message()));
        } else if self.is_news(node) {
            tracing::warn!(peer = %node, reason = status.message(), "a peer refuses this node");
        }
    }

    /// Whether the log said nothing about refusals with that peer for a while.
    fn is_news(&self, node: NodeId) -> bool {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let news = refusals.get(&node).is_none_or(|at| at.elapsed() >= REFUSAL_INTERVAL);
        if news {
            refusals.insert(node, Instant::now());
        }
        news
    }

    /// Whether an answer may be taken: a vote or an acknowledgment of an old copy must not count.
    ///
    /// # Errors
    /// UNAVAILABLE: what was asked for may have happened.
    fn check_answer(&self, node: NodeId, metadata: &MetadataMap) -> Result<(), Status> {
        let headers: &HeaderMap = metadata.as_ref();
        let disk = headers.get(FROM_DISK_KEY).and_then(|disk| disk.to_str().ok());
        let is_voter = self.voters().iter().any(|voter| voter.node == node.0 && Some(voter.disk_id.as_str()) == disk);
        self.check_starts(node.0, is_voter, headers).map_err(|status| {
            if self.is_news(node) {
                tracing::warn!(peer = %node, reason = status.message(), "the answers of a peer are not taken");
            }
            Status::unavailable(format!("the answer of node {node} is not taken: {}", status.message()))
        })
    }

    /// Whether the disk that speaks for `node` remembers what was seen of it. What a voter's disk says is remembered.
    ///
    /// # Errors
    /// FAILED_PRECONDITION says why it must not go on.
    fn check_starts(&self, node: u64, is_voter: bool, headers: &HeaderMap) -> Result<(), Status> {
        let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
        let starts = text(FROM_STARTS_KEY).map(str::parse::<StartHistory>).transpose();
        let starts = starts.map_err(|error| Status::failed_precondition(error.to_string()))?.unwrap_or_default();
        let speaker = OwnIdentity { disk_id: text(FROM_DISK_KEY).map(str::to_owned), starts };
        self.known.admit(node, &speaker).map_err(|refusal| final_refusal(&refusal))?;
        if let (true, Some(disk_id), Some(epoch)) = (is_voter, speaker.disk_id, speaker.starts.newest()) {
            self.known.learn(node, Known { disk_id, epoch: Some(epoch), poisoned: None });
        }
        Ok(())
    }

    /// Opens a stream to a peer: `requests` go there, the answers come back.
    ///
    /// # Errors
    /// UNAVAILABLE when the peer cannot be reached, else what the peer says.
    pub(crate) async fn stream(
        &self,
        node: NodeId,
        lane: Lane,
        method: &'static str,
        requests: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut client = self.client(node, lane)?;
        let mut request = Request::new(requests);
        *request.metadata_mut() = self.metadata(node);
        client.ready().await.map_err(|error| Status::unavailable(format!("node {node}: {error}")))?;
        let response = client.streaming(request, path(method)?, RawCodec).await;
        let response = response.inspect_err(|status| self.note_refusal(node, status))?;
        self.check_answer(node, response.metadata())?;
        Ok(response.into_inner())
    }

    fn client(&self, node: NodeId, lane: Lane) -> Result<Grpc<Channel>, Status> {
        if let Some(reason) = self.refused() {
            return Err(Status::unavailable(format!("this node must stop: {reason}")));
        }
        let client = Grpc::new(self.channel(node, lane)?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Whether the metadata of a call is that of a peer of this cluster which means this node.
    ///
    /// # Errors
    /// UNAUTHENTICATED without the secret; FAILED_PRECONDITION names the cluster, format or disk that does not match, or
    /// the start that an old copy of the disk does not remember.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Status> {
        self.check_cluster(headers)?;
        let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let refuse = |message: String| Err(Status::failed_precondition(message));
        if let Some(meant) = headers.get(TO_DISK_KEY).filter(|meant| meant.as_bytes() != self.disk_id.as_bytes()) {
            return refuse(format!("the call is for disk {meant:?}, this node has disk {}", self.disk_id));
        }
        let (from, disk) = (text(FROM_NODE_KEY).parse::<u64>().unwrap_or(0), text(FROM_DISK_KEY));
        match self.voters().iter().find(|voter| voter.node == from) {
            Some(voter) if voter.disk_id != disk => {
                refuse(format!("node {from} joined this cluster with disk {}, not {disk}", voter.disk_id))
            }
            voter => self.check_starts(from, voter.is_some(), headers),
        }
    }

    /// The part of it that a node without an identity can meet.
    ///
    /// # Errors
    /// As for [`Self::check`].
    pub(crate) fn check_cluster(&self, headers: &HeaderMap) -> Result<(), Status> {
        let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let secret = text("authorization").strip_prefix("Bearer ").unwrap_or_default();
        if !same(secret.as_bytes(), self.config.secret.as_bytes()) {
            return Err(Status::unauthenticated("the caller's cluster.secret is not that of the node it calls"));
        }
        let refuse = |message: String| Err(Status::failed_precondition(message));
        if text(CLUSTER_KEY) != self.config.cluster {
            return refuse(format!(
                "the peer is of cluster {:?}, this node of {:?}",
                text(CLUSTER_KEY),
                self.config.cluster
            ));
        }
        if text(FORMAT_KEY).parse::<u32>().is_ok_and(|format| format > FORMAT) {
            return refuse(format!(
                "the peer speaks format {}, this node {FORMAT}: upgrade it first",
                text(FORMAT_KEY)
            ));
        }
        Ok(())
    }
}

/// The node that is told so stops.
fn final_refusal(refusal: &Refusal) -> Status {
    let mut status = Status::failed_precondition(refusal.to_string());
    status.metadata_mut().insert(REFUSED_KEY, MetadataValue::from_static("disk"));
    status
}

fn path(method: &str) -> Result<PathAndQuery, Status> {
    PathAndQuery::try_from(format!("/{SERVICE}/{method}")).map_err(|error| Status::internal(error.to_string()))
}

/// Compares without telling where the first difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts connections.
    #[derive(Debug, Default)]
    struct Counted(AtomicUsize);

    impl Dial for Counted {
        fn channel(&self, node: NodeId, endpoint: Endpoint) -> Channel {
            self.0.fetch_add(1, Ordering::Relaxed);
            Tcp.channel(node, endpoint)
        }
    }

    #[tokio::test]
    async fn readers_that_pause_hold_up_nobody_on_another_lane() {
        let dial = Arc::new(Counted::default());
        let mut me = peers("prod", "s", 1, "d1");
        me.config.addresses.insert(NodeId(2), "127.0.0.1:1".to_owned());
        let me = me.over(Arc::<Counted>::clone(&dial));
        for _ in 0..2 {
            for lane in [Lane::Control, Lane::Bulk, Lane::Rows, Lane::Shares] {
                me.channel(NodeId(2), lane).expect("a channel");
            }
        }
        assert_eq!(dial.0.load(Ordering::Relaxed), 4, "one for each lane, whoever asks again");
        // And few of them nobody on the same.
        for (lane, readers) in [(Lane::Rows, 7), (Lane::Shares, 31)] {
            assert!(lane.stream_window_bytes() * readers < WINDOW_BYTES, "{lane:?}");
        }
    }

    fn peers(cluster: &str, secret: &str, node: u64, disk: &str) -> Peers {
        started(cluster, secret, node, disk, &[1])
    }

    /// A node whose disk was started with these tokens.
    fn started(cluster: &str, secret: &str, node: u64, disk: &str, tokens: &[u32]) -> Peers {
        let config = PeersConfig {
            cluster: cluster.to_owned(),
            secret: secret.to_owned(),
            node: NodeId(node),
            addresses: BTreeMap::new(),
        };
        let starts = tokens.iter().fold(StartHistory::default(), |starts, token| starts.with_start(*token));
        let peers = Peers::new(config, disk.to_owned(), starts, KnownStarts::default());
        let voter = |node, disk: &str| Voter { node, address: String::new(), disk_id: disk.to_owned() };
        peers.set_voters(vec![voter(1, "d1"), voter(2, "d2")]);
        peers
    }

    #[test]
    fn strangers_are_refused_by_name() {
        let me = peers("prod", "s", 1, "d1");
        let check = |peer: &Peers| {
            me.check(&peer.metadata(NodeId(1)).into_headers()).map_err(|status| status.message().to_owned())
        };
        assert_eq!(check(&peers("prod", "s", 2, "d2")), Ok(()));
        for (stranger, named) in [
            (peers("test", "s", 2, "d2"), "\"test\""),
            (peers("prod", "wrong", 2, "d2"), "cluster.secret"),
            (peers("prod", "s", 2, "wiped"), "not wiped"),
        ] {
            let error = check(&stranger).expect_err(named);
            assert!(error.contains(named), "{error}");
        }
        let wiped = peers("prod", "s", 1, "other");
        let call = peers("prod", "s", 2, "d2").metadata(NodeId(1)).into_headers();
        assert!(wiped.check(&call).expect_err("another disk").message().contains("other"));
        let mut newer = peers("prod", "s", 2, "d2").metadata(NodeId(1));
        newer.insert(FORMAT_KEY, MetadataValue::from_static("99"));
        assert!(me.check(&newer.into_headers()).expect_err("newer").message().contains("99"));
    }

    #[test]
    fn an_old_copy_is_refused_as_a_caller_and_its_answers_are_not_taken() {
        let me = peers("prod", "s", 1, "d1");
        let node = |tokens: &[u32]| started("prod", "s", 2, "d2", tokens);
        let call = |peer: &Peers| me.check(&peer.metadata(NodeId(1)).into_headers());
        let answer = |peer: &Peers| {
            let mut headers = HeaderMap::new();
            peer.sign(&mut headers);
            me.check_answer(NodeId(2), &MetadataMap::from_headers(headers))
        };
        assert!(call(&node(&[1, 2])).is_ok() && answer(&node(&[1, 2])).is_ok());
        assert!(call(&node(&[1, 2, 3, 4])).is_ok(), "starts that reached nobody");
        for old in [&[][..], &[1, 2], &[1, 2, 3], &[1, 2, 77, 78], &[1, 2, 77, 78, 79]] {
            let status = call(&node(old)).expect_err("an old copy");
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert!(status.message().contains("restored old copy"), "{status}");
            let copy = node(old);
            copy.note_refusal(NodeId(1), &status);
            assert!(copy.refused().is_some_and(|reason| reason.contains("node 1") && reason.contains("add-node")));
            assert_eq!(answer(&node(old)).expect_err("its votes do not count").code(), Code::Unavailable);
        }
        assert!(me.refused().is_none());
        assert!(answer(&node(&[1, 2, 3, 4, 5])).is_ok());
        call(&node(&[1, 2, 3, 4])).expect_err("the answer was remembered as well");
        let mut earlier_build = node(&[1]).metadata(NodeId(1));
        earlier_build.remove(FROM_STARTS_KEY);
        call_headers(&me, earlier_build).expect_err("an old copy under an earlier build");
        let mut third = started("prod", "s", 2, "d2", &[1]).metadata(NodeId(1));
        third.remove(FROM_STARTS_KEY);
        call_headers(&peers("prod", "s", 1, "d1"), third).expect("a node that never had epochs");
    }

    fn call_headers(me: &Peers, metadata: MetadataMap) -> Result<(), Status> {
        me.check(&metadata.into_headers())
    }

    #[test]
    fn a_stranger_with_a_voters_id_changes_nothing_that_is_known_of_it() {
        let me = peers("prod", "s", 1, "d1");
        let mut headers = HeaderMap::new();
        started("prod", "s", 2, "wiped", &[1, 2, 3]).sign(&mut headers);
        me.check_answer(NodeId(2), &MetadataMap::from_headers(headers)).expect("nothing is known that it denies");
        assert_eq!(me.known().of(2), None);
        me.note_poisoned(2, StartEpoch { number: 1, token: 1 });
        assert!(me.known_of(2).is_some_and(|known| known.disk_id == "d2" && known.poisoned.is_some()));
        me.note_poisoned(9, StartEpoch { number: 1, token: 1 });
        assert_eq!(me.known_of(9), None);
    }
}
