//! Commands for groups that other nodes lead: one stream to each of those nodes, for all groups.
//!
//! A call a command costs more than the command when it is small (bench/RESULTS.md). So what is proposed while the
//! stream is busy travels in one message, and the leader answers each command by its number, in any order. Nothing is
//! held back to fill a message. `outbox.rs` decides what goes and what became of it; `serve.rs` is the leader's end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use signaldb_model::{GroupId, NodeId};
use signaldb_proto::peer;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status, Streaming};

use self::outbox::{Outbox, Outcome, Outgoing};
use crate::error::{RejectReason, WriteError};
use crate::peers::{Lane, Peers};
use crate::server::proposed;
use crate::types::Applied;

mod outbox;
mod serve;

pub(crate) use serve::{Reply, serve};

/// The method that opens a stream of commands.
pub(crate) const METHOD: &str = "ProposeStream";

/// Commands that were handed over and that the stream's task has not seen; a proposer waits while it is full.
const QUEUE_MAX: usize = 256;
/// How long a leader may take to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A leader that owes answers says something every `SIGN_OF_LIFE`; one that says nothing for so long is given
/// up, and what it was sent is unknown.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a stream looks for silence, and for commands that nobody waits for any more.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after the first failure; it doubles with each further one. Commands are refused meanwhile: their proposers
/// look for the leader again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long a leader of an older version is called for each command before it is asked again.
const UNARY_INTERVAL: Duration = Duration::from_secs(30);

/// Takes commands to the nodes that lead their groups.
#[derive(Debug)]
pub struct Forwarder {
    peers: Arc<Peers>,
    routes: Mutex<HashMap<NodeId, Route>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The way to one leader.
#[derive(Debug, Clone)]
struct Route {
    commands: mpsc::Sender<Outgoing>,
    /// The leader knows no streams of commands.
    unary: Arc<AtomicBool>,
}

impl Forwarder {
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers, routes: Mutex::default(), tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// Proposes an encoded command to `group` at the node `leader`, and waits until it is applied there; returns its
    /// index. It is tried once: a node that does not lead refuses it.
    ///
    /// # Errors
    /// As for [`crate::Group::append`].
    ///
    /// Cancel safety: dropping the future stops the wait, not the command.
    pub async fn propose(
        &self,
        leader: NodeId,
        group: GroupId,
        command: Bytes,
        timeout: Duration,
    ) -> Result<u64, WriteError> {
        let request = peer::ProposeRequest { group: group.0, command, timeout_ms: 0, synced: false };
        Ok(self.forward(leader, request, timeout).await?.index)
    }

    /// The same for any level; sets the request's timeout.
    pub(crate) async fn forward(
        &self,
        leader: NodeId,
        request: peer::ProposeRequest,
        timeout: Duration,
    ) -> Result<Applied, WriteError> {
        let until = Instant::now() + timeout;
        let group = request.group;
        let route = self.route(leader);
        if !route.unary.load(Ordering::Acquire) {
            let (reply, answer) = oneshot::channel();
            let outgoing = Outgoing { request: request.clone(), until, reply };
            match tokio::time::timeout_at(until, route.commands.send(outgoing)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(WriteError::Rejected(RejectReason::Stopping)),
                Err(_) => return Err(WriteError::Rejected(RejectReason::NoLeader { group })),
            }
            let outcome = match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Outcome::Broken("its stream is gone".to_owned()),
                Err(_) => Outcome::Broken(format!("no answer within {timeout:?}")),
            };
            if let Some(written) = written(leader, group, outcome) {
                return written;
            }
        }
        self.call(leader, request, until.saturating_duration_since(Instant::now())).await
    }

    /// Proposes in a call of its own, for leaders that know nothing else.
    async fn call(
        &self,
        leader: NodeId,
        mut request: peer::ProposeRequest,
        timeout: Duration,
    ) -> Result<Applied, WriteError> {
        let group = request.group;
        request.timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let response = self.peers.call(leader, Lane::Bulk, "Propose", &request, timeout).await;
        match response {
            Ok(response) => proposed(group, &response),
            Err(status) if never_arrived(&status) => Err(WriteError::Rejected(RejectReason::NoLeader { group })),
            Err(status) => Err(WriteError::Unknown(format!("node {leader}: {}", status.message()))),
        }
    }

    fn route(&self, leader: NodeId) -> Route {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.get(&leader).filter(|route| !route.commands.is_closed()) {
            return route.clone();
        }
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let route = Route { commands, unary: Arc::default() };
        // Without its task the queue is closed, which says that the node stops.
        if !self.stop.is_cancelled() {
            let worker = Worker {
                peers: Arc::clone(&self.peers),
                leader,
                queue,
                unary: Arc::clone(&route.unary),
                arrived: Vec::new(),
                outbox: Outbox::default(),
            };
            self.tasks.spawn(worker.run(self.stop.clone()));
        }
        routes.insert(leader, route.clone());
        route
    }

    /// Ends the streams: what waits is not written, what is on the way is unknown.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What became of a command; `None` when the leader must be called instead.
fn written(leader: NodeId, group: u32, outcome: Outcome) -> Option<Result<Applied, WriteError>> {
    match outcome {
        Outcome::Answered(response) => Some(proposed(group, &response)),
        Outcome::NotSent => Some(Err(WriteError::Rejected(RejectReason::NoLeader { group }))),
        Outcome::Broken(reason) => Some(Err(WriteError::Unknown(format!("node {leader}: {reason}")))),
        Outcome::NoStream => None,
    }
}

/// Whether a call certainly did not reach the peer, or was turned away before anything else.
fn never_arrived(status: &Status) -> bool {
    match status.code() {
        Code::FailedPrecondition | Code::Unauthenticated | Code::Unimplemented => true,
        Code::Unavailable => status.message().contains("tcp connect error"),
        _ => false,
    }
}

/// The pause after so many failures in a row: half of it is fixed, half is random.
fn backoff(failures: u32, random: u64) -> Duration {
    let longest = (BACKOFF_MIN * 2u32.pow(failures.saturating_sub(1).min(8))).min(BACKOFF_MAX);
    let half = longest / 2;
    half + Duration::from_nanos(random % (half.as_nanos() as u64 + 1))
}

/// An open stream.
struct Open {
    /// One message waits while another is written: what is proposed meanwhile is in the next.
    messages: mpsc::Sender<Bytes>,
    answers: Streaming<Bytes>,
}

/// Why a stream ended.
struct End {
    reason: String,
    /// The leader said something before.
    heard: bool,
}

/// Owns the stream to one leader; opened when there is something to send.
struct Worker {
    peers: Arc<Peers>,
    leader: NodeId,
    queue: mpsc::Receiver<Outgoing>,
    unary: Arc<AtomicBool>,
    /// Empty but for a moment.
    arrived: Vec<Outgoing>,
    outbox: Outbox,
}

impl Worker {
    async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
        self.outbox.break_off("this node stops");
        self.outbox.refuse(&Outcome::NotSent);
        self.queue.close();
        self.take_waiting();
        self.outbox.refuse(&Outcome::NotSent);
    }

    /// Ends when nobody can propose any more.
    async fn work(&mut self) {
        let mut failures = 0;
        while !self.outbox.is_waiting_empty() || self.receive().await {
            let status = match self.open().await {
                Ok(open) => {
                    let end = self.session(open).await;
                    let (leader, in_flight) = (self.leader, self.outbox.in_flight());
                    tracing::info!(%leader, in_flight, reason = %end.reason, "a stream of commands ended");
                    self.outbox.break_off(&end.reason);
                    self.outbox.refuse(&Outcome::NotSent);
                    if end.heard {
                        failures = 0;
                        continue;
                    }
                    Status::unavailable(end.reason)
                }
                Err(status) => status,
            };
            if status.code() == Code::Unimplemented {
                tracing::info!(leader = %self.leader, "the leader is of an older version: a call a command");
                self.unary.store(true, Ordering::Release);
                self.refuse_for(UNARY_INTERVAL, &Outcome::NoStream).await;
                self.unary.store(false, Ordering::Release);
                continue;
            }
            failures += 1;
            tracing::debug!(leader = %self.leader, %status, failures, "no stream of commands");
            let pause = backoff(failures, uuid::Uuid::new_v4().as_u128() as u64);
            self.refuse_for(pause, &Outcome::NotSent).await;
        }
    }

    /// Waits for commands; false when there will be none.
    async fn receive(&mut self) -> bool {
        let received = self.queue.recv_many(&mut self.arrived, QUEUE_MAX).await > 0;
        self.outbox.extend(&mut self.arrived);
        received
    }

    /// Takes what is there, as far as there is room.
    fn take_waiting(&mut self) {
        self.outbox.extend(&mut self.arrived);
        while self.outbox.has_room() {
            let Ok(next) = self.queue.try_recv() else { return };
            self.outbox.push(next);
        }
    }

    /// Tells whoever proposes that nothing was sent, for a while.
    async fn refuse_for(&mut self, pause: Duration, outcome: &Outcome) {
        self.outbox.refuse(outcome);
        let until = Instant::now() + pause;
        // Commands that never stop coming must not make the pause longer.
        while Instant::now() < until {
            match tokio::time::timeout_at(until, self.receive()).await {
                Ok(true) => self.outbox.refuse(outcome),
                Ok(false) | Err(_) => return,
            }
        }
    }

    async fn open(&self) -> Result<Open, Status> {
        let open = async {
            // A node that does not know the method says so only when it has read the request to its end.
            let nothing = futures::stream::iter([Bytes::new()]);
            let mut asked = self.peers.stream(self.leader, Lane::Bulk, METHOD, nothing).await?;
            while asked.message().await?.is_some() {}
            let (messages, queue) = mpsc::channel(1);
            let queue = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
            let answers = self.peers.stream(self.leader, Lane::Bulk, METHOD, queue).await?;
            Ok::<_, Status>(Open { messages, answers })
        };
        let opened = tokio::time::timeout(OPEN_TIMEOUT, open).await;
        opened.map_err(|_| Status::deadline_exceeded("the leader accepts no stream of commands"))?
    }

    async fn session(&mut self, mut open: Open) -> End {
        let (mut spoke, mut heard) = (Instant::now(), false);
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reason = loop {
            tokio::select! {
                biased;
                answers = open.answers.message() => {
                    let answers = match answers {
                        Ok(Some(bytes)) => peer::ProposeAnswers::decode(bytes),
                        Ok(None) => break "the leader ended the stream".to_owned(),
                        Err(status) => break status.message().to_owned(),
                    };
                    match answers {
                        Ok(answers) => self.outbox.answered(answers),
                        Err(error) => break format!("answers that make no sense: {error}"),
                    }
                    (spoke, heard) = (Instant::now(), true);
                }
                slot = open.messages.reserve(), if self.outbox.may_send() => {
                    let Ok(slot) = slot else { break "the connection broke".to_owned() };
                    if self.outbox.in_flight() == 0 {
                        spoke = Instant::now();
                    }
                    if let Some(message) = self.outbox.next_message(Instant::now()) {
                        slot.send(message.encode_to_vec().into());
                    }
                }
                count = self.queue.recv_many(&mut self.arrived, QUEUE_MAX), if self.outbox.has_room() => {
                    if count == 0 {
                        break "nobody proposes any more".to_owned();
                    }
                    // An answer wakes many proposers. Those that can run now run first, so that their next commands
                    // share a message; this waits for nothing else.
                    tokio::task::yield_now().await;
                    self.take_waiting();
                }
                _ = check.tick(), if self.outbox.in_flight() > 0 => {
                    self.outbox.forget_abandoned();
                    if self.outbox.in_flight() > 0 && spoke.elapsed() >= PROGRESS_TIMEOUT {
                        break "the leader is silent".to_owned();
                    }
                }
            }
        };
        End { reason, heard }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_on_the_way_is_unknown_and_what_was_not_sent_is_not_written() {
        let committed = peer::ProposeResponse {
            outcome: peer::ProposeOutcome::Committed.into(),
            index: 7,
            ..peer::ProposeResponse::default()
        };
        let written = |outcome| written(NodeId(2), 3, outcome);
        assert!(matches!(written(Outcome::Answered(committed)), Some(Ok(Applied { index: 7, first_copy: None }))));
        // What a newer leader may say is unknown as well.
        let newer = peer::ProposeResponse { outcome: 99, ..peer::ProposeResponse::default() };
        assert!(matches!(written(Outcome::Answered(newer)), Some(Err(WriteError::Unknown(_)))));
        let lost = written(Outcome::Broken("cut".into()));
        assert!(matches!(lost, Some(Err(WriteError::Unknown(reason))) if reason == "node 2: cut"));
        let unsent = written(Outcome::NotSent);
        assert!(matches!(unsent, Some(Err(WriteError::Rejected(RejectReason::NoLeader { group: 3 })))));
        assert!(written(Outcome::NoStream).is_none());
    }

    #[test]
    fn pauses_grow_to_a_cap_and_differ() {
        for (failures, longest) in [(1, 50), (2, 100), (3, 200), (5, 800), (6, 1000), (1000, 1000)] {
            let longest = Duration::from_millis(longest);
            assert_eq!(backoff(failures, 0), longest / 2);
            for random in [1, 12_345_678_901, u64::MAX] {
                let pause = backoff(failures, random);
                assert!(longest / 2 < pause && pause <= longest, "{failures} {random}: {pause:?}");
            }
        }
    }
}
