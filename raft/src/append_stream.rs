//! Appends to one follower as a gRPC stream, several on the way at once.
//!
//! openraft hands over a stream of requests and wants their answers in order. Sending the next request before the last
//! was answered hides the follower's latency; how much may be on the way is bounded in bytes ([`CREDIT_BYTES`], DESIGN
//! section 4), so that a slow follower costs a bounded amount of memory on both sides and never delays the quorum.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::base::BoxStream;
use openraft::errors::RPCError;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use prost::Message;
use signaldb_proto::peer;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::network::{Client, unreachable};
use crate::types::{LogId, TypeConfig};
use crate::wire;

/// Bytes of appends that may be on the way to a follower; one request is at most about 4 MiB.
const CREDIT_BYTES: usize = 16 << 20;
/// Requests on the way. A few hide the latency; with more, small writes would go out one by one instead of together.
const REQUESTS_MAX: usize = 4;
/// A follower that answers nothing for so long is given up; it may take as long to write one append of a few MiB.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);

/// An open stream to a follower.
#[derive(Debug)]
pub(crate) struct Appends {
    requests: mpsc::Sender<Bytes>,
    responses: Streaming<Bytes>,
}

impl Appends {
    /// A channel for requests that never waits: the window is smaller.
    pub(crate) fn channel() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
        mpsc::channel(REQUESTS_MAX + 1)
    }

    pub(crate) fn new(requests: mpsc::Sender<Bytes>, responses: Streaming<Bytes>) -> Self {
        Self { requests, responses }
    }

    /// Whether the connection was still there when last heard of.
    fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }
}

/// A request that was sent and not answered.
struct Sent {
    term: u64,
    previous: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
}

struct Session<'s, S> {
    client: &'s mut Client,
    input: S,
    /// Taken from the client at the first request, given back at a clean end.
    stream: Option<Appends>,
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    /// When the oldest unanswered request was sent, or the last answer came.
    progress: Instant,
    input_ended: bool,
    ended: bool,
}

type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// Sends `input` to the follower of `client` and yields the answers in order; ends after the first that is no success.
pub(crate) fn run<'s, S>(client: &'s mut Client, input: S) -> BoxStream<'s, Answer>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let session = Session {
        client,
        input,
        stream: None,
        sent: VecDeque::new(),
        sent_bytes: 0,
        progress: Instant::now(),
        input_ended: false,
        ended: false,
    };
    Box::pin(futures::stream::unfold(session, |mut session| async move {
        let answer = session.next().await?;
        session.ended |= !matches!(answer, Ok(Ok(_)));
        Some((answer, session))
    }))
}

/// What a session leaves unanswered is not on the way any more.
impl<S> Drop for Session<'_, S> {
    fn drop(&mut self) {
        self.client.in_flight.decrement(self.sent_bytes as f64);
    }
}

impl<S> Session<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin,
{
    async fn next(&mut self) -> Option<Answer> {
        while !self.ended {
            if self.input_ended && self.sent.is_empty() {
                self.client.stream = self.stream.take();
                return None;
            }
            let room = self.sent.len() < REQUESTS_MAX && self.sent_bytes < CREDIT_BYTES;
            let deadline = self.progress + PROGRESS_TIMEOUT;
            tokio::select! {
                biased;
                response = receive(&mut self.stream), if !self.sent.is_empty() => {
                    return Some(self.answered(response));
                }
                request = self.input.next(), if room && !self.input_ended => match request {
                    None => self.input_ended = true,
                    Some(request) => if let Err(status) = self.send(&request).await {
                        return Some(Err(unreachable(&status).into()));
                    },
                },
                () = tokio::time::sleep_until(deadline), if !self.sent.is_empty() => {
                    let status = Status::deadline_exceeded("the follower answers no append");
                    return Some(Err(unreachable(&status).into()));
                }
            }
        }
        None
    }

    async fn send(&mut self, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), Status> {
        // Not before there is something to send: openraft opens sessions that end without a request.
        if self.stream.is_none() {
            self.stream = match self.client.stream.take().filter(Appends::is_open) {
                Some(stream) => Some(stream),
                None => Some(self.client.open_appends().await?),
            };
        }
        let message = wire::append_request_out(self.client.group.0, request).encode_to_vec();
        if self.sent.is_empty() {
            self.progress = Instant::now();
        }
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let term = request.vote.leader_id.term;
        self.sent.push_back(Sent { term, previous: request.prev_log_id, last, bytes: message.len() });
        self.sent_bytes += message.len();
        self.client.in_flight.increment(message.len() as f64);
        let stream = self.stream.as_ref().ok_or_else(|| Status::internal("no stream"))?;
        stream.requests.try_send(message.into()).map_err(|_| Status::unavailable("the connection broke"))
    }

    fn answered(&mut self, response: Result<Bytes, Status>) -> Answer {
        self.progress = Instant::now();
        let confused = || unreachable(&Status::internal("an answer that makes no sense"));
        let response = response
            .and_then(|bytes| peer::AppendResponse::decode(bytes).map_err(|error| Status::internal(error.to_string())));
        let response = response.map_err(|status| unreachable(&status))?;
        let sent = self.sent.pop_front().ok_or_else(confused)?;
        self.sent_bytes -= sent.bytes;
        self.client.in_flight.decrement(sent.bytes as f64);
        let outcome = wire::append_response_in(&response).ok_or_else(confused)?;
        // Without an entry before them, entries cannot conflict.
        if outcome.is_conflict() && sent.previous.is_none() {
            return Err(confused().into());
        }
        self.client.note_synced(sent.term, response.synced);
        let result = outcome.into_stream_result(sent.previous, sent.last);
        // Behind a request that was taken in part, the others do not fit.
        self.ended |= matches!(&result, Ok(matching) if *matching != sent.last);
        Ok(result)
    }
}

/// The next answer on the stream. Cancel safety: safe.
async fn receive(stream: &mut Option<Appends>) -> Result<Bytes, Status> {
    let broken = || Status::unavailable("the follower ended the stream");
    match stream {
        Some(stream) => stream.responses.message().await?.ok_or_else(broken),
        None => Err(broken()),
    }
}
