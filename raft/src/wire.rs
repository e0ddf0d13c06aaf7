//! openraft's values as messages between peers.

use std::io;

use openraft::alias::LeaderIdOf;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use signaldb_proto::peer;

use crate::codec;
use crate::types::{LogId, TypeConfig, Vote};

pub(crate) fn vote_out(vote: &Vote) -> peer::Vote {
    peer::Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_in(vote: &peer::Vote) -> Vote {
    let leader_id = LeaderIdOf::<TypeConfig> { term: vote.term, voted_for: vote.node };
    Vote { leader_id, committed: vote.committed }
}

fn id_out(id: Option<LogId>) -> Option<peer::LogId> {
    id.map(|id| peer::LogId { term: id.leader_id.term, index: id.index })
}

pub(crate) fn id_in(id: Option<peer::LogId>) -> Option<LogId> {
    id.map(|id| LogId::new_term_index(id.term, id.index))
}

pub(crate) fn vote_request_out(group: u32, request: &VoteRequest<TypeConfig>) -> peer::VoteRequest {
    peer::VoteRequest {
        group,
        vote: vote_out(&request.vote),
        last_log_id: id_out(request.last_log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_in(request: &peer::VoteRequest) -> VoteRequest<TypeConfig> {
    let mut out = VoteRequest::new(vote_in(&request.vote), id_in(request.last_log_id));
    out.leadership_transfer = request.leadership_transfer;
    out
}

pub(crate) fn vote_response_out(response: &VoteResponse<TypeConfig>) -> peer::VoteResponse {
    peer::VoteResponse {
        vote: vote_out(&response.vote),
        granted: response.vote_granted,
        last_log_id: id_out(response.last_log_id),
    }
}

pub(crate) fn vote_response_in(response: &peer::VoteResponse) -> VoteResponse<TypeConfig> {
    VoteResponse::new(vote_in(&response.vote), id_in(response.last_log_id), response.granted)
}

pub(crate) fn append_request_out(group: u32, request: &AppendEntriesRequest<TypeConfig>) -> peer::AppendRequest {
    peer::AppendRequest {
        group,
        vote: vote_out(&request.vote),
        prev_log_id: id_out(request.prev_log_id),
        leader_commit: id_out(request.leader_commit),
        first_index: request.entries.first().map_or(0, |entry| entry.log_id.index),
        entries: request.entries.iter().map(codec::encode_entry).collect(),
    }
}

/// # Errors
/// When an entry cannot be decoded, or the entries do not follow the one before them.
pub(crate) fn append_request_in(request: &peer::AppendRequest) -> io::Result<AppendEntriesRequest<TypeConfig>> {
    let expected = request.prev_log_id.map_or(0, |id| id.index + 1);
    if !request.entries.is_empty() && request.first_index != expected {
        let reason = format!("entries begin at {} where {expected} was expected", request.first_index);
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let entries = request.entries.iter().zip(request.first_index..);
    let entries = entries.map(|(bytes, index)| codec::decode_entry(index, bytes)).collect::<io::Result<_>>()?;
    Ok(AppendEntriesRequest {
        vote: vote_in(&request.vote),
        prev_log_id: id_in(request.prev_log_id),
        entries,
        leader_commit: id_in(request.leader_commit),
    })
}

/// `synced` is the last index that is on disk here; it counts as far as the log matches the leader's, up to `matching`.
pub(crate) fn append_response_out(
    response: &AppendEntriesResponse<TypeConfig>,
    matching: Option<u64>,
    synced: u64,
) -> peer::AppendResponse {
    use peer::AppendOutcome;
    let synced = match response {
        AppendEntriesResponse::Success => matching.unwrap_or(0).min(synced),
        AppendEntriesResponse::PartialSuccess(id) => id.map_or(0, |id| id.index).min(synced),
        AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => 0,
    };
    let (outcome, matching, vote) = match response {
        AppendEntriesResponse::Success => (AppendOutcome::Success, None, None),
        AppendEntriesResponse::PartialSuccess(id) => (AppendOutcome::PartialSuccess, id_out(*id), None),
        AppendEntriesResponse::Conflict => (AppendOutcome::Conflict, None, None),
        AppendEntriesResponse::HigherVote(vote) => (AppendOutcome::HigherVote, None, Some(vote_out(vote))),
    };
    peer::AppendResponse { outcome: outcome.into(), matching, vote, synced }
}

/// The answer to one request of a stream.
pub(crate) fn stream_result_out(result: &StreamAppendResult<TypeConfig>, synced: u64) -> peer::AppendResponse {
    let response = match result {
        Ok(matching) => AppendEntriesResponse::PartialSuccess(*matching),
        Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
        Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(*vote),
    };
    append_response_out(&response, None, synced)
}

/// `None` for an outcome of a newer version.
pub(crate) fn append_response_in(response: &peer::AppendResponse) -> Option<AppendEntriesResponse<TypeConfig>> {
    use peer::AppendOutcome;
    Some(match response.outcome() {
        AppendOutcome::Success => AppendEntriesResponse::Success,
        AppendOutcome::PartialSuccess => AppendEntriesResponse::PartialSuccess(id_in(response.matching)),
        AppendOutcome::Conflict => AppendEntriesResponse::Conflict,
        AppendOutcome::HigherVote => AppendEntriesResponse::HigherVote(vote_in(response.vote.as_ref()?)),
        AppendOutcome::Unspecified => return None,
    })
}

pub(crate) fn transfer_request_out(group: u32, request: &TransferLeaderRequest<TypeConfig>) -> peer::TransferRequest {
    peer::TransferRequest {
        group,
        from_leader: vote_out(request.from_leader()),
        to: *request.to_node_id(),
        last_log_id: id_out(request.last_log_id().copied()),
    }
}

pub(crate) fn transfer_request_in(request: &peer::TransferRequest) -> TransferLeaderRequest<TypeConfig> {
    TransferLeaderRequest::new(vote_in(&request.from_leader), request.to, id_in(request.last_log_id))
}

pub(crate) fn transfer_response_out(response: &TransferLeaderResponse<TypeConfig>) -> peer::TransferResponse {
    match response {
        Ok(()) => peer::TransferResponse::default(),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            peer::TransferResponse { actual_vote: Some(vote_out(actual)), ..Default::default() }
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            peer::TransferResponse { not_flushed: true, actual_log: id_out(*actual), ..Default::default() }
        }
    }
}

pub(crate) fn transfer_response_in(
    response: &peer::TransferResponse,
    request: &TransferLeaderRequest<TypeConfig>,
) -> TransferLeaderResponse<TypeConfig> {
    if let Some(actual) = &response.actual_vote {
        return Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual: vote_in(actual) });
    }
    if response.not_flushed {
        let (expected, actual) = (request.last_log_id().copied(), id_in(response.actual_log));
        return Err(TransferLeaderError::LogNotFlushed { expected, actual });
    }
    Ok(())
}
