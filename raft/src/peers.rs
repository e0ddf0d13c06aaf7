//! The other nodes: where they are, how they are called, and who may call here.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use prost::Message;
use signaldb_model::{GroupId, NodeId};
use signaldb_proto::RawCodec;
use signaldb_proto::peer::{
    CLUSTER_KEY, FORMAT, FORMAT_KEY, FROM_DISK_KEY, FROM_NODE_KEY, SERVICE, TO_DISK_KEY, Voter,
};
use tonic::client::Grpc;
use tonic::codegen::http::HeaderMap;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::group::Group;

/// Largest message between peers: a snapshot with a full dedup window.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const WINDOW_BYTES: u32 = 16 << 20;
/// Pause between two lines in the log about a peer that refuses this node.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(30);

/// Three connections a peer, so that a large append never delays a vote or a heartbeat on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Votes, heartbeats, read indexes.
    Control,
    /// Appends, snapshots, forwarded writes.
    Bulk,
    /// Rows of queries: a reader that pauses must not hold up appends.
    Rows,
}

/// What a node knows of its peers.
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
    disk_id: String,
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
    /// The peers of the node that `config` names, which has this disk.
    pub fn new(config: PeersConfig, disk_id: String) -> Self {
        Self {
            stopping: AtomicBool::new(false),
            config,
            disk_id,
            channels: Mutex::default(),
            voters: RwLock::default(),
            groups: RwLock::default(),
            knows_itself: AtomicBool::new(false),
            refusals: Mutex::default(),
        }
    }

    pub fn node(&self) -> NodeId {
        self.config.node
    }

    pub(crate) fn disk_id(&self) -> &str {
        &self.disk_id
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
            // One reader that pauses leaves room for the others.
            .initial_stream_window_size(if lane == Lane::Rows { WINDOW_BYTES / 8 } else { WINDOW_BYTES })
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = endpoint.connect_lazy();
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
        if let Some(voter) = self.voters().iter().find(|voter| voter.node == to.0) {
            put(TO_DISK_KEY, &voter.disk_id);
        }
        if !self.config.secret.is_empty() {
            put("authorization", &format!("Bearer {}", self.config.secret));
        }
        metadata
    }

    /// Calls a method of a peer.
    ///
    /// # Errors
    /// UNAVAILABLE when the peer cannot be reached, DEADLINE_EXCEEDED after `timeout`, else what the peer says. After
    /// the first two the call may have had its effect.
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
        B::decode(response.into_inner()).map_err(|error| Status::internal(format!("answer of node {node}: {error}")))
    }

    /// A node that the others refuse says so in its own log, where its operator looks.
    fn note_refusal(&self, node: NodeId, status: &Status) {
        if !matches!(status.code(), Code::Unauthenticated | Code::FailedPrecondition) {
            return;
        }
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.get(&node).is_none_or(|at| at.elapsed() >= REFUSAL_INTERVAL) {
            refusals.insert(node, Instant::now());
            tracing::warn!(peer = %node, reason = status.message(), "a peer refuses this node");
        }
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
        Ok(response.inspect_err(|status| self.note_refusal(node, status))?.into_inner())
    }

    fn client(&self, node: NodeId, lane: Lane) -> Result<Grpc<Channel>, Status> {
        let client = Grpc::new(self.channel(node, lane)?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Whether the metadata of a call is that of a peer of this cluster which means this node.
    ///
    /// # Errors
    /// UNAUTHENTICATED without the secret; FAILED_PRECONDITION names the cluster, format or disk that does not match.
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
            _ => Ok(()),
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

fn path(method: &str) -> Result<PathAndQuery, Status> {
    PathAndQuery::try_from(format!("/{SERVICE}/{method}")).map_err(|error| Status::internal(error.to_string()))
}

/// Compares without telling where the first difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(cluster: &str, secret: &str, node: u64, disk: &str) -> Peers {
        let config = PeersConfig {
            cluster: cluster.to_owned(),
            secret: secret.to_owned(),
            node: NodeId(node),
            addresses: BTreeMap::new(),
        };
        let peers = Peers::new(config, disk.to_owned());
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
}
