//! What waits to be sent to a leader, and what waits for its answer. Decides, without I/O.

use std::collections::{HashMap, VecDeque};

use signaldb_proto::peer;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Commands in one message.
const MESSAGE_COMMANDS_MAX: usize = 256;
/// Bytes of commands in one message; a larger command goes alone.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Commands that wait for the next messages; no more are taken off the queue while it is full.
const WAITING_MAX: usize = 1024;
/// Commands without an answer, below what a leader keeps track of; no more are sent while it is full.
const IN_FLIGHT_MAX: usize = 4096;

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Answered(peer::ProposeResponse),
    NotSent,
    /// It was not sent: the leader is of an older version.
    NoStream,
    /// The stream ended before the answer.
    Broken(String),
}

/// A command on its way, and who waits for it.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Its timeout is set when it is sent.
    pub(super) request: peer::ProposeRequest,
    pub(super) until: Instant,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// The commands of one leader.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Outgoing>,
    in_flight: HashMap<u64, oneshot::Sender<Outcome>>,
    /// The number of the next command that is sent; none is used twice.
    next: u64,
}

impl Outbox {
    pub(super) fn push(&mut self, outgoing: Outgoing) {
        self.waiting.push_back(outgoing);
    }

    /// Takes all of `arrived`.
    pub(super) fn extend(&mut self, arrived: &mut Vec<Outgoing>) {
        self.waiting.extend(arrived.drain(..));
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    pub(super) fn is_waiting_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn may_send(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight.len() < IN_FLIGHT_MAX
    }

    /// Commands that were sent and not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The oldest waiting commands, as many as one message holds, from now on in flight. Those that nobody waits for
    /// any more, or whose time is up, are left out for good.
    pub(super) fn next_message(&mut self, now: Instant) -> Option<peer::ProposeBatch> {
        let (mut commands, mut bytes) = (Vec::new(), 0);
        while commands.len() < MESSAGE_COMMANDS_MAX && self.in_flight.len() < IN_FLIGHT_MAX {
            let Some(len) = self.waiting.front().map(|next| next.request.command.len()) else { break };
            if !commands.is_empty() && bytes + len > MESSAGE_BYTES_MAX {
                break;
            }
            let Some(Outgoing { mut request, until, reply }) = self.waiting.pop_front() else { break };
            let left = until.saturating_duration_since(now);
            if reply.is_closed() {
                continue;
            }
            if left.is_zero() {
                let _ = reply.send(Outcome::NotSent);
                continue;
            }
            request.timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            bytes += len;
            self.in_flight.insert(self.next, reply);
            commands.push(peer::NumberedRequest { number: self.next, request });
            self.next += 1;
        }
        (!commands.is_empty()).then_some(peer::ProposeBatch { commands })
    }

    /// Passes answers on; whoever asked may be gone.
    pub(super) fn answered(&mut self, answers: peer::ProposeAnswers) {
        for answer in answers.answers {
            if let Some(reply) = self.in_flight.remove(&answer.number) {
                let _ = reply.send(Outcome::Answered(answer.response));
            }
        }
    }

    /// The stream ended: nobody knows what became of the commands in flight.
    pub(super) fn break_off(&mut self, reason: &str) {
        for (_, reply) in self.in_flight.drain() {
            let _ = reply.send(Outcome::Broken(reason.to_owned()));
        }
    }

    /// Gives up the waiting commands.
    pub(super) fn refuse(&mut self, outcome: &Outcome) {
        for outgoing in self.waiting.drain(..) {
            let _ = outgoing.reply.send(outcome.clone());
        }
    }

    /// Drops commands whose proposers have stopped waiting, and their bytes.
    pub(super) fn forget_abandoned(&mut self) {
        self.in_flight.retain(|_, reply| !reply.is_closed());
        self.waiting.retain(|outgoing| !outgoing.reply.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    const MIB: usize = 1 << 20;

    fn outgoing(len: usize, until: Instant) -> (Outgoing, oneshot::Receiver<Outcome>) {
        let (reply, answer) = oneshot::channel();
        let command = Bytes::from(vec![0; len]);
        let request = peer::ProposeRequest { group: 1, command, timeout_ms: 0, synced: false };
        (Outgoing { request, until, reply }, answer)
    }

    fn filled(lens: &[usize], now: Instant) -> (Outbox, Vec<oneshot::Receiver<Outcome>>) {
        let mut outbox = Outbox::default();
        let answers = lens.iter().map(|len| {
            let (outgoing, answer) = outgoing(*len, now + Duration::from_secs(3));
            outbox.push(outgoing);
            answer
        });
        let answers = answers.collect();
        (outbox, answers)
    }

    fn numbers(message: &peer::ProposeBatch) -> Vec<u64> {
        message.commands.iter().map(|command| command.number).collect()
    }

    #[test]
    fn commands_that_wait_share_messages_up_to_a_count_and_a_size() {
        let now = Instant::now();
        let check = |lens: &[usize], expected: &[&[usize]]| {
            let (mut outbox, _answers) = filled(lens, now);
            let mut messages = Vec::new();
            while let Some(message) = outbox.next_message(now) {
                assert!(message.commands.iter().all(|command| command.request.timeout_ms == 3000));
                messages.push(message.commands.iter().map(|c| c.request.command.len()).collect::<Vec<_>>());
            }
            assert_eq!(messages, expected, "{lens:?}");
            assert_eq!(outbox.in_flight(), lens.len());
        };
        check(&[], &[]);
        check(&[5], &[&[5]]);
        check(&[1, 2, 3], &[&[1, 2, 3]]);
        check(&[1024; 300], &[&[1024; 256], &[1024; 44]]);
        check(&[MIB / 2, MIB / 2, 1], &[&[MIB / 2, MIB / 2], &[1]]);
        // A large one goes alone, and in its turn.
        check(&[1, 3 * MIB, 1, 1], &[&[1], &[3 * MIB], &[1, 1]]);
        check(&[MIB, MIB], &[&[MIB], &[MIB]]);
    }

    #[test]
    fn commands_without_an_answer_have_a_bound() {
        let now = Instant::now();
        let (mut outbox, mut answers) = filled(&[1; IN_FLIGHT_MAX + 1], now);
        while outbox.may_send() {
            outbox.next_message(now).expect("there is room");
        }
        assert_eq!((outbox.in_flight(), outbox.is_waiting_empty()), (IN_FLIGHT_MAX, false));
        assert!(outbox.next_message(now).is_none());
        // Whoever stops waiting makes room.
        answers.truncate(answers.len() - 1);
        answers.remove(0);
        let (extra, _answer) = outgoing(1, now + Duration::from_secs(1));
        outbox.push(extra);
        outbox.forget_abandoned();
        assert_eq!(outbox.next_message(now).map(|message| message.commands.len()), Some(1));
    }

    #[test]
    fn answers_come_in_any_order_and_a_break_leaves_the_rest_unknown() {
        let now = Instant::now();
        let (mut outbox, mut answers) = filled(&[1, MIB, MIB], now);
        assert_eq!(outbox.next_message(now).as_ref().map(numbers), Some(vec![0]));
        assert_eq!(outbox.next_message(now).as_ref().map(numbers), Some(vec![1]));
        let answer = |number: u64| {
            let response = peer::ProposeResponse { index: 10 + number, ..peer::ProposeResponse::default() };
            peer::NumberedResponse { number, response }
        };
        // 99 was never asked.
        outbox.answered(peer::ProposeAnswers { answers: vec![answer(99), answer(1)] });
        assert_eq!(answers[1].try_recv(), Ok(Outcome::Answered(answer(1).response)));
        outbox.break_off("cut");
        outbox.refuse(&Outcome::NotSent);
        assert_eq!(answers[0].try_recv(), Ok(Outcome::Broken("cut".into())));
        assert_eq!(answers[2].try_recv(), Ok(Outcome::NotSent));
        assert_eq!((outbox.in_flight(), outbox.is_waiting_empty()), (0, true));
        // The next stream goes on with other numbers.
        let (later, _answer) = outgoing(1, now + Duration::from_secs(1));
        outbox.push(later);
        assert_eq!(outbox.next_message(now).as_ref().map(numbers), Some(vec![2]));
    }

    #[test]
    fn what_nobody_waits_for_is_not_sent() {
        let now = Instant::now();
        let (mut outbox, mut answers) = filled(&[1, 2, 3], now);
        drop(answers.remove(1));
        let (late, mut overdue) = outgoing(4, now);
        outbox.push(late);
        let message = outbox.next_message(now).expect("a message");
        assert_eq!(message.commands.iter().map(|c| c.request.command.len()).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(overdue.try_recv(), Ok(Outcome::NotSent));
        assert!(outbox.next_message(now).is_none());
    }
}
