//! The peer port: what other nodes may ask of the groups of this one.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use openraft::Snapshot;
use prost::Message;
use signaldb_proto::RawCodec;
use signaldb_proto::peer::{self, ProposeOutcome, SERVICE};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use crate::error::{RejectReason, WriteError};
use crate::forward;
use crate::group::{Group, Recovered};
use crate::known::{epoch_in, known_out};
use crate::peers::{MESSAGE_BYTES_MAX, Peers};
use crate::recovery::{Act, LeaderVote, Report};
use crate::state_machine::SnapshotBytes;
use crate::{codec, wire};

/// The gRPC service of the peer port.
#[derive(Debug, Clone)]
pub struct PeerService(Arc<Peers>);

impl PeerService {
    pub fn new(peers: Arc<Peers>) -> Self {
        Self(peers)
    }
}

impl NamedService for PeerService {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for PeerService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let admitted = match (self.0.refused(), method.as_str()) {
            // A vote of this disk could be the second in its term.
            (Some(reason), _) => Err(Status::unavailable(format!("the node must stop: {reason}"))),
            // A node that lost its disk must learn why it is refused.
            (None, "Identity" | "Known") => self.0.check_cluster(request.headers()),
            (None, _) => self.0.check(request.headers()),
        };
        if let Err(status) = admitted {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let (peers, signer) = (Arc::clone(&self.0), Arc::clone(&self.0));
        Box::pin(async move {
            let mut grpc = Grpc::new(RawCodec)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            let mut response = match method.as_str() {
                "AppendStream" => grpc.streaming(Duplex { peers, serve: append_stream }, request).await,
                forward::METHOD => grpc.streaming(Duplex { peers, serve: forward::serve }, request).await,
                _ => grpc.unary(Call { peers, method }, request).await,
            };
            signer.sign(response.headers_mut());
            Ok(response)
        })
    }
}

struct Call {
    peers: Arc<Peers>,
    method: String,
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (peers, method) = (Arc::clone(&self.peers), self.method.clone());
        Box::pin(async move { Ok(Response::new(answer(&peers, &method, request.into_inner()).await?)) })
    }
}

/// A call that is a stream both ways.
struct Duplex {
    peers: Arc<Peers>,
    serve: fn(Arc<Peers>, Streaming<Bytes>) -> Answers,
}

type Answers = BoxStream<'static, Result<Bytes, Status>>;

impl StreamingService<Bytes> for Duplex {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let answers = (self.serve)(Arc::clone(&self.peers), request.into_inner());
        Box::pin(std::future::ready(Ok(Response::new(answers))))
    }
}

/// Appends what a leader streams, for one group; ends at the first request that is no success.
fn append_stream(peers: Arc<Peers>, requests: Streaming<Bytes>) -> Answers {
    let answers = async move {
        let mut requests = Box::pin(requests.map(|bytes| {
            let request: peer::AppendRequest = decode(bytes?)?;
            let decoded = wire::append_request_in(&request);
            Ok::<_, Status>((request.group, decoded.map_err(|error| Status::invalid_argument(error.to_string()))?))
        }))
        .peekable();
        // The first request tells the group.
        let group = match Pin::new(&mut requests).peek().await {
            Some(Ok((id, _))) => group(&peers, *id)?,
            Some(Err(status)) => return Err(status.clone()),
            None => return Ok(futures::stream::empty().boxed()),
        };
        let (id, heard) = (group.id(), Arc::clone(&group));
        // openraft takes no errors: one ends its input and is told in its place.
        let (failure, failed) = tokio::sync::oneshot::channel();
        let accepted = futures::stream::unfold((requests, Some(failure)), move |(mut requests, mut failure)| {
            let heard = Arc::clone(&heard);
            async move {
                let status = match requests.next().await? {
                    Ok((group, request)) if group == id.0 => {
                        heard.heard();
                        match heard.check_history(&request).and_then(|()| heard.check_room(&request)) {
                            Ok(()) => return Some((request, (requests, failure))),
                            Err(status) => status,
                        }
                    }
                    Ok((group, _)) => {
                        Status::invalid_argument(format!("an append for group {group} on a stream of {id}"))
                    }
                    Err(status) => status,
                };
                if let Some(failure) = failure.take() {
                    let _ = failure.send(status);
                }
                None
            }
        });
        let results = group.raft().stream_append(accepted).map(move |result| {
            let result = result.map_err(stopped)?;
            Ok(encode(&wire::stream_result_out(&result, group.synced_index())))
        });
        let failed = futures::stream::once(failed).filter_map(|status| async move { status.ok().map(Err) });
        Ok(results.chain(failed).boxed())
    };
    futures::stream::once(answers).try_flatten().boxed()
}

pub(crate) async fn answer(peers: &Peers, method: &str, body: Bytes) -> Result<Bytes, Status> {
    Ok(match method {
        "Identity" if !peers.knows_itself() => return Err(Status::unavailable("the node is starting")),
        "Identity" => encode(&identity(peers)),
        "Known" => {
            let request: peer::KnownRequest = decode(body)?;
            encode(&known_out(peers.known_of(request.node)))
        }
        "Poisoned" => {
            let request: peer::PoisonedRequest = decode(body)?;
            let epoch = request.epoch.ok_or_else(|| Status::invalid_argument("poisoned without an epoch"))?;
            peers.note_poisoned(request.node, epoch_in(epoch));
            encode(&peer::Done {})
        }
        "Append" => {
            let request: peer::AppendRequest = decode(body)?;
            let decoded =
                wire::append_request_in(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
            let group = group(peers, request.group)?;
            group.heard();
            group.check_history(&decoded)?;
            group.check_room(&decoded)?;
            let matching = decoded.entries.last().map(|entry| entry.log_id).or(decoded.prev_log_id);
            let response = group.raft().append_entries(decoded).await.map_err(stopped)?;
            encode(&wire::append_response_out(&response, matching.map(|id| id.index), group.synced_index()))
        }
        "Vote" => {
            let request: peer::VoteRequest = decode(body)?;
            let raft = group(peers, request.group)?;
            if !raft.may(Act::GrantVote { candidate: request.vote.node }) {
                return Ok(encode(&abstain(&raft)));
            }
            let response = raft.raft().vote(wire::vote_request_in(&request)).await.map_err(stopped)?;
            encode(&wire::vote_response_out(&response))
        }
        "PreVote" => {
            let request: peer::VoteRequest = decode(body)?;
            let raft = group(peers, request.group)?;
            if !raft.may(Act::GrantVote { candidate: request.vote.node }) {
                return Ok(encode(&abstain(&raft)));
            }
            let response = raft.raft().pre_vote(wire::vote_request_in(&request)).await.map_err(stopped)?;
            encode(&wire::vote_response_out(&response))
        }
        "Snapshot" => {
            let request: peer::SnapshotRequest = decode(body)?;
            let raft = group(peers, request.group)?;
            let (meta, state) = codec::decode_snapshot(&request.snapshot)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let snapshot = Snapshot { meta, snapshot: SnapshotBytes(state) };
            let vote = wire::vote_in(&request.vote);
            let _room = raft.room_for_snapshot(request.snapshot.len() as u64).await?;
            let response = raft.raft().install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
            encode(&peer::SnapshotResponse { vote: wire::vote_out(&response.vote) })
        }
        "TransferLeader" => {
            let request: peer::TransferRequest = decode(body)?;
            let raft = group(peers, request.group)?;
            if !raft.may(Act::Campaign) {
                return Ok(encode(&peer::TransferResponse { not_flushed: true, ..Default::default() }));
            }
            let response = raft.raft().handle_transfer_leader(wire::transfer_request_in(&request)).await;
            encode(&wire::transfer_response_out(&response.map_err(stopped)?))
        }
        "Propose" => {
            let request: peer::ProposeRequest = decode(body)?;
            let timeout = Duration::from_millis(request.timeout_ms.into());
            let group = group(peers, request.group)?;
            let written = group.propose_for_peer(request.command, request.synced, timeout).await;
            encode(&propose_response(written))
        }
        "RecoveryTarget" => {
            let request: peer::RecoveryRequest = decode(body)?;
            let target = group(peers, request.group)?.recovery_target().await;
            encode(&target.map_err(|error| Status::unavailable(error.to_string()))?)
        }
        "RecoveryReport" => {
            let request: peer::RecoveryRequest = decode(body)?;
            let report = group(peers, request.group)?.recovery_report().await;
            encode(&recovery_report(&report.map_err(|error| Status::unavailable(error.to_string()))?))
        }
        "RecoveryPromise" => {
            let request: peer::PromiseRequest = decode(body)?;
            let winner = LeaderVote { term: request.term, node: request.winner };
            let promised = group(peers, request.group)?.promise(winner, wire::id_in(request.last)).await;
            encode(&peer::PromiseResponse { promised })
        }
        "RecoveryChosen" => {
            let request: peer::ChosenRequest = decode(body)?;
            let (promised, voters) = (request.promised.into_iter().collect(), request.voters.into_iter().collect());
            group(peers, request.group)?.chosen(request.winner, &promised, &voters, &request.loss).await;
            encode(&peer::Done {})
        }
        "RecoveryGoOn" => {
            let request: peer::GoOnRequest = decode(body)?;
            let outcome = group(peers, request.group)?.go_on(request.accept).await;
            let outcome = outcome.map_err(|error| Status::unavailable(error.to_string()))?;
            encode(&match outcome {
                Recovered::Halted { reason, done } => peer::GoOnResponse { halted: Some(reason), done },
                _ => peer::GoOnResponse::default(),
            })
        }
        "Sync" => {
            let request: peer::SyncRequest = decode(body)?;
            let synced = group(peers, request.group)?.sync_for_peer(request.index, request.term).await;
            let synced = synced.map_err(|error| Status::unavailable(error.to_string()))?;
            encode(&peer::SyncResponse { synced })
        }
        "ReadIndex" => {
            let request: peer::ReadIndexRequest = decode(body)?;
            let index = group(peers, request.group)?.read_index_here().await;
            let index = index.map_err(|error| Status::unavailable(error.to_string()))?;
            encode(&peer::ReadIndexResponse { index })
        }
        other => return Err(Status::unimplemented(format!("peers do not know {other}; it is of a newer version"))),
    })
}

/// A replica that may have lost entries grants nothing, and shows its vote, so that a candidate learns of its term.
fn abstain(group: &Group) -> peer::VoteResponse {
    peer::VoteResponse { vote: wire::vote_out(&group.own_vote()), granted: false, last_log_id: None }
}

fn recovery_report(report: &Report) -> peer::RecoveryReport {
    peer::RecoveryReport {
        trust: report.trust.encode().into(),
        term: report.term,
        last: report.last.map(|end| peer::LogId { term: end.term, index: end.index }),
        committed: report.committed,
        configs: report.configs.iter().map(|ids| peer::Voters { ids: ids.iter().copied().collect() }).collect(),
    }
}

pub(crate) fn decode<M: Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(body).map_err(|error| Status::invalid_argument(error.to_string()))
}

pub(crate) fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn group(peers: &Peers, id: u32) -> Result<Arc<Group>, Status> {
    peers.group(id).ok_or_else(|| Status::unavailable(format!("group {id} is not open yet on node {}", peers.node())))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the group stopped: {error}"))
}

fn identity(peers: &Peers) -> peer::IdentityResponse {
    let (node, disk_id) = (peers.node().0, peers.disk_id().to_owned());
    peer::IdentityResponse { node, disk_id, voters: peers.voters(), willing: peers.is_willing() }
}

/// What a leader says about a forwarded command.
pub(crate) fn propose_response(written: Result<crate::types::Applied, WriteError>) -> peer::ProposeResponse {
    let mut response = peer::ProposeResponse::default();
    let outcome = match written {
        Ok(applied) => {
            (response.index, response.first_copy) = (applied.index, applied.first_copy);
            ProposeOutcome::Committed
        }
        Err(WriteError::Unknown(reason)) => {
            response.reason = reason;
            ProposeOutcome::Unknown
        }
        Err(WriteError::Rejected(reason)) => match reason {
            RejectReason::NoLeader { .. } => ProposeOutcome::NoLeader,
            RejectReason::Stopping => ProposeOutcome::Stopping,
            RejectReason::Busy(reason) => {
                response.reason = reason;
                ProposeOutcome::Busy
            }
            RejectReason::Halted(reason) => {
                response.reason = reason;
                ProposeOutcome::Halted
            }
            RejectReason::DiskReserve => ProposeOutcome::DiskReserve,
            RejectReason::Undecodable(reason) => {
                response.reason = reason;
                ProposeOutcome::Undecodable
            }
            RejectReason::TooLarge { bytes, limit } => {
                (response.bytes, response.limit) = (bytes as u64, limit as u64);
                ProposeOutcome::TooLarge
            }
            RejectReason::Throttled { bytes, limit, retry_after } => {
                (response.bytes, response.limit) = (bytes as u64, limit as u64);
                response.retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
                ProposeOutcome::Throttled
            }
        },
    };
    response.outcome = outcome.into();
    response
}

/// The same, read again.
pub(crate) fn proposed(group: u32, response: &peer::ProposeResponse) -> Result<crate::types::Applied, WriteError> {
    let (bytes, limit) = (response.bytes as usize, response.limit as usize);
    Err(WriteError::Rejected(match response.outcome() {
        ProposeOutcome::Committed => {
            return Ok(crate::types::Applied { index: response.index, first_copy: response.first_copy });
        }
        ProposeOutcome::Unknown => return Err(WriteError::Unknown(response.reason.clone())),
        ProposeOutcome::NoLeader => RejectReason::NoLeader { group },
        ProposeOutcome::Stopping => RejectReason::Stopping,
        ProposeOutcome::Busy => RejectReason::Busy(response.reason.clone()),
        ProposeOutcome::Halted => RejectReason::Halted(response.reason.clone()),
        ProposeOutcome::DiskReserve => RejectReason::DiskReserve,
        ProposeOutcome::Undecodable => RejectReason::Undecodable(response.reason.clone()),
        ProposeOutcome::TooLarge => RejectReason::TooLarge { bytes, limit },
        ProposeOutcome::Throttled => {
            let retry_after = Duration::from_millis(response.retry_after_ms.into());
            RejectReason::Throttled { bytes, limit, retry_after }
        }
    }))
}
