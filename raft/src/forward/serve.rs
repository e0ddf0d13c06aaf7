//! The leader's end of a stream of commands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use signaldb_proto::peer;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::error::{RejectReason, WriteError};
use crate::peers::Peers;
use crate::server::{decode, encode, propose_response};
use crate::types::Applied;

/// Commands of one stream that are not answered; while there are more, no further message is read. Above what a
/// proposer sends, so that it is the slower one's deadline that counts.
const UNANSWERED_MAX: usize = 8192;
/// Answers in one message.
const MESSAGE_ANSWERS_MAX: usize = 1024;
/// While answers are owed, something is said so often: groups without a quorum answer nothing, and are no dead leader.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Proposes what a peer streams, and yields the answers, each as soon as it is known.
pub(crate) fn serve(peers: Arc<Peers>, requests: Streaming<Bytes>) -> BoxStream<'static, Result<Bytes, Status>> {
    // A message is read below the bound and holds no more than it: there is room for every answer.
    let (answers, answered) = mpsc::channel(2 * UNANSWERED_MAX);
    let (unanswered, spoke, ended) = (0, Instant::now(), false);
    let session = Session { peers, requests, answers, answered, unanswered, spoke, ended };
    let answers = futures::stream::unfold(session, |mut session| async move {
        let message = session.next().await?;
        Some((message, session))
    });
    answers.boxed()
}

/// Where the answer to one command goes.
#[derive(Debug)]
pub(crate) struct Reply {
    number: u64,
    answers: mpsc::Sender<peer::NumberedResponse>,
}

impl Reply {
    pub(crate) fn send(self, written: Result<Applied, WriteError>) {
        let response = propose_response(written);
        // Without a receiver the stream is gone, and whoever asked counts the command as unknown.
        let _ = self.answers.try_send(peer::NumberedResponse { number: self.number, response });
    }
}

struct Session {
    peers: Arc<Peers>,
    requests: Streaming<Bytes>,
    answers: mpsc::Sender<peer::NumberedResponse>,
    answered: mpsc::Receiver<peer::NumberedResponse>,
    unanswered: usize,
    /// When the last message was sent, or the first answer since became due.
    spoke: Instant,
    /// The peer sends nothing more.
    ended: bool,
}

impl Session {
    /// The next message to the peer. While it cannot be sent nothing is read either.
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let mut answers = Vec::new();
        while !self.ended || self.unanswered > 0 {
            tokio::select! {
                biased;
                count = self.answered.recv_many(&mut answers, MESSAGE_ANSWERS_MAX), if self.unanswered > 0 => {
                    self.unanswered = self.unanswered.saturating_sub(count);
                    self.spoke = Instant::now();
                    return Some(Ok(encode(&peer::ProposeAnswers { answers })));
                }
                request = self.requests.message(), if !self.ended && self.unanswered < UNANSWERED_MAX => {
                    let taken = match request {
                        Ok(Some(bytes)) => self.take(bytes),
                        Ok(None) => {
                            self.ended = true;
                            Ok(())
                        }
                        Err(status) => Err(status),
                    };
                    if let Err(status) = taken {
                        (self.ended, self.unanswered) = (true, 0);
                        return Some(Err(status));
                    }
                }
                () = tokio::time::sleep_until(self.spoke + SIGN_OF_LIFE), if self.unanswered > 0 => {
                    self.spoke = Instant::now();
                    return Some(Ok(encode(&peer::ProposeAnswers::default())));
                }
            }
        }
        None
    }

    /// Proposes the commands of one message; waits for none of them.
    fn take(&mut self, bytes: Bytes) -> Result<(), Status> {
        let batch: peer::ProposeBatch = decode(bytes)?;
        if batch.commands.len() > UNANSWERED_MAX {
            return Err(Status::invalid_argument(format!("{} commands in one message", batch.commands.len())));
        }
        if self.unanswered == 0 {
            self.spoke = Instant::now();
        }
        self.unanswered += batch.commands.len();
        let mut groups: BTreeMap<u32, Vec<(peer::ProposeRequest, Reply)>> = BTreeMap::new();
        for peer::NumberedRequest { number, request } in batch.commands {
            let reply = Reply { number, answers: self.answers.clone() };
            groups.entry(request.group).or_default().push((request, reply));
        }
        for (id, commands) in groups {
            match self.peers.group(id) {
                Some(group) => group.propose_all_for_peer(commands),
                None => {
                    for (_, reply) in commands {
                        reply.send(Err(WriteError::Rejected(RejectReason::NoLeader { group: id })));
                    }
                }
            }
        }
        Ok(())
    }
}
