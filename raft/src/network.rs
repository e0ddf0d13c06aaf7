//! How a group reaches its peers: openraft's calls as unary gRPC, votes and heartbeats beside the bulk of the appends.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use prost::Message;
use signaldb_model::{GroupId, NodeId};
use signaldb_proto::peer;
use tonic::{Code, Status};

use crate::codec;
use crate::peers::{Lane, Peers};
use crate::state_machine::SnapshotBytes;
use crate::types::{Peer, TypeConfig, Vote};
use crate::wire;

/// How long a follower may take to write one append of at most a few MiB.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
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
    group: GroupId,
    peers: Arc<Peers>,
    target: NodeId,
    /// For appends; votes and transfers always take the control lane.
    lane: Lane,
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
        Client { group: self.group, peers: Arc::clone(&self.peers), target: NodeId(target), lane }
    }
}

impl Client {
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
fn unreachable(status: &Status) -> Unreachable<TypeConfig> {
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
        let timeout = match self.lane {
            Lane::Control => option.hard_ttl(),
            Lane::Bulk | Lane::Rows => APPEND_TIMEOUT,
        };
        let response = self.call(self.lane, RPCTypes::AppendEntries, "Append", &message, timeout).await?;
        let decoded = wire::append_response_in(&response);
        // Without an entry before them, entries cannot conflict: the peer is confused.
        let decoded = decoded.filter(|decoded| !(decoded.is_conflict() && request.prev_log_id.is_none()));
        decoded.ok_or_else(|| unreachable(&Status::internal("an answer that makes no sense")).into())
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
