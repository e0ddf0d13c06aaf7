//! How a group reaches its peers: appends as a stream, and beside them votes and heartbeats as single calls.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use openraft::alias::SnapshotOf;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use prost::Message;
use signaldb_model::{GroupId, NodeId};
use signaldb_proto::peer;
use tonic::{Code, Status};

use crate::append_stream::{self, Appends};
use crate::codec;
use crate::metrics::appends_in_flight;
use crate::peers::{Lane, Peers};
use crate::state_machine::SnapshotBytes;
use crate::types::{Peer, TypeConfig, Vote};
use crate::wire;

/// How long a peer may take to accept a stream of appends.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a follower may take to make a snapshot durable.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes the clients of one group. A lone voter has nobody to call.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) group: GroupId,
    pub(crate) peers: Arc<Peers>,
}

/// Calls one peer for one group.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) group: GroupId,
    peers: Arc<Peers>,
    target: NodeId,
    /// [`Lane::Bulk`] to replicate entries, [`Lane::Control`] for heartbeats; votes and transfers always take the latter.
    lane: Lane,
    /// Kept between the sessions of openraft, which are as short as one request.
    pub(crate) stream: Option<Appends>,
    /// Bytes on the way to the target.
    pub(crate) in_flight: metrics::Gauge,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, _node: &Peer) -> Client {
        self.client(target, Lane::Bulk)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &Peer) -> Client {
        self.client(target, Lane::Control)
    }
}

impl Network {
    fn client(&self, target: u64, lane: Lane) -> Client {
        let (group, target) = (self.group, NodeId(target));
        let in_flight = appends_in_flight(group, target);
        Client { group, peers: Arc::clone(&self.peers), target, lane, stream: None, in_flight }
    }
}

impl Client {
    /// Opens a stream of appends to the target.
    pub(crate) async fn open_appends(&self) -> Result<Appends, Status> {
        let (requests, queue) = Appends::channel();
        let queue = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let open = self.peers.stream(self.target, self.lane, "AppendStream", queue);
        let opened = tokio::time::timeout(OPEN_TIMEOUT, open).await;
        let responses = opened.map_err(|_| Status::deadline_exceeded("the peer accepts no stream of appends"))??;
        Ok(Appends::new(requests, responses))
    }

    /// Remembers that the target has, in this leader's term, synced its log up to `synced`.
    pub(crate) fn note_synced(&self, term: u64, synced: u64) {
        if let Some(group) = self.peers.group(self.group.0) {
            group.note_synced(self.target, term, synced);
        }
    }

    async fn call<A: Message, B: Message + Default>(
        &self,
        lane: Lane,
        action: RPCTypes,
        method: &'static str,
        message: &A,
        timeout: Duration,
    ) -> Result<B, RPCError<TypeConfig>> {
        self.peers.call(self.target, lane, method, message, timeout).await.map_err(|status| {
            if status.code() == Code::DeadlineExceeded {
                return Timeout { action, id: self.peers.node().0, target: self.target.0, timeout }.into();
            }
            unreachable(&status).into()
        })
    }
}

/// openraft pauses longer after it than after other failures, which a peer that is down or refuses us deserves.
pub(crate) fn unreachable(status: &Status) -> Unreachable<TypeConfig> {
    Unreachable::from_string(format!("{:?}: {}", status.code(), status.message()))
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::append_request_out(self.group.0, &request);
        let response: peer::AppendResponse =
            self.call(self.lane, RPCTypes::AppendEntries, "Append", &message, option.hard_ttl()).await?;
        self.note_synced(request.vote.leader_id.term, response.synced);
        let decoded = wire::append_response_in(&response);
        // Without an entry before them, entries cannot conflict: the peer is confused.
        let decoded = decoded.filter(|decoded| !(decoded.is_conflict() && request.prev_log_id.is_none()));
        decoded.ok_or_else(|| unreachable(&Status::internal("an answer that makes no sense")).into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        match self.lane {
            Lane::Control => stream_append_sequential(self, input, option),
            Lane::Bulk | Lane::Rows | Lane::Shares => Box::pin(async move { Ok(append_stream::run(self, input)) }),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::vote_request_out(self.group.0, &request);
        let response = self.call(Lane::Control, RPCTypes::Vote, "Vote", &message, option.hard_ttl()).await?;
        Ok(wire::vote_response_in(&response))
    }

    /// The trait's default grants without asking.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::vote_request_out(self.group.0, &request);
        let response = self.call(Lane::Control, RPCTypes::Vote, "PreVote", &message, option.hard_ttl()).await?;
        Ok(wire::vote_response_in(&response))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotBytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let message = peer::SnapshotRequest {
            group: self.group.0,
            vote: wire::vote_out(&vote),
            snapshot: codec::encode_snapshot(&snapshot.meta, &snapshot.snapshot.0),
        };
        let send = self.call(Lane::Bulk, RPCTypes::InstallSnapshot, "Snapshot", &message, SNAPSHOT_TIMEOUT);
        let response: peer::SnapshotResponse = tokio::select! {
            response = send => response?,
            closed = cancel => return Err(closed.into()),
        };
        Ok(SnapshotResponse::new(wire::vote_in(&response.vote)))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::transfer_request_out(self.group.0, &request);
        let response =
            self.call(Lane::Control, RPCTypes::TransferLeader, "TransferLeader", &message, option.hard_ttl()).await?;
        Ok(wire::transfer_response_in(&response, &request))
    }
}
