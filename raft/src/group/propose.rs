//! Writes: on this node, or through it at the leader.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use openraft::errors::{ClientWriteError, Fatal, RaftError};
use openraft::raft::WriteResult;
use signaldb_model::limits::ENTRY_BYTES_MAX;
use signaldb_model::mutation::{self, Mutation};
use signaldb_model::{AckLevel, GroupId, Position};
use signaldb_proto::peer;
use tokio::time::Instant;

use super::{Group, LEADER_POLL, Leadership, Written};
use crate::admission::Permit;
use crate::command::{Append, Command};
use crate::disk::DiskLevel;
use crate::error::{RejectReason, WriteError};
use crate::forward::Reply;
use crate::types::{Applied, EncodedCommand, TypeConfig};

impl Group {
    /// Appends and waits until the entry is committed and applied, at the group's level or at the stronger one `asked`.
    ///
    /// # Errors
    /// [`WriteError::Rejected`]: nothing was written. [`WriteError::Unknown`]: it may still commit; the same bytes again
    /// are deduplicated.
    ///
    /// Cancel safety: dropping the future stops the wait, not the append.
    pub async fn append(
        &self,
        append: Append,
        asked: Option<AckLevel>,
        timeout: Duration,
    ) -> Result<Written, WriteError> {
        let stronger = asked.is_some_and(|asked| !self.level.satisfies(asked));
        let applied = self.propose(&Command::Append(append), stronger, timeout).await?;
        let index = applied.first_copy.unwrap_or(applied.index);
        Ok(Written {
            position: Position { group: self.id, index },
            level: if stronger { AckLevel::QuorumFsync } else { self.level },
            deduplicated: applied.first_copy.is_some(),
        })
    }

    /// Proposes any command and waits until it is applied; returns its index. Same outcomes as [`Group::append`].
    pub async fn propose_index(&self, command: &Command, timeout: Duration) -> Result<u64, WriteError> {
        Ok(self.propose(command, false, timeout).await?.index)
    }

    async fn propose(&self, command: &Command, synced: bool, timeout: Duration) -> Result<Applied, WriteError> {
        let begun = Instant::now();
        let outcome = self.propose_until(command, synced, timeout).await;
        self.meters.note_proposal(outcome.as_ref().err(), begun.elapsed());
        outcome
    }

    /// Proposes here or at the leader, wherever that is, and asks again while nothing was written. After an unknown
    /// outcome only what may happen twice without harm is sent again. With `synced` it waits for a majority's disks.
    async fn propose_until(&self, command: &Command, synced: bool, timeout: Duration) -> Result<Applied, WriteError> {
        let encoded = command.encode();
        if encoded.len() > ENTRY_BYTES_MAX {
            let reason = RejectReason::TooLarge { bytes: encoded.len(), limit: ENTRY_BYTES_MAX };
            return Err(WriteError::Rejected(reason));
        }
        let repeatable = !matches!(command, Command::Append(append) if append.dedup.is_none());
        // While it looks for a leader a request waits with its bytes: they count, here and now.
        let _held = self.node_admission.admit(encoded.len()).map_err(WriteError::Rejected)?;
        let until = Instant::now() + timeout;
        let mut unknown = None;
        loop {
            let seen = self.leadership();
            let left = until.saturating_duration_since(Instant::now());
            let outcome = tokio::select! {
                outcome = self.propose_at(seen, encoded.clone(), synced, left) => outcome,
                // A leader that was replaced may never answer.
                Ok(_) = self.leadership_change(seen), if !seen.here && seen.leader.is_some() => {
                    Err(WriteError::Unknown(format!("group {} changed its leader", self.id)))
                }
            };
            let error = match outcome {
                Ok(applied) => return Ok(applied),
                Err(error) => error,
            };
            match &error {
                WriteError::Rejected(RejectReason::NoLeader { .. }) => {}
                // The leader stops; there will be another.
                WriteError::Rejected(RejectReason::Stopping) if !self.tasks.is_closed() => {}
                WriteError::Unknown(_) if repeatable => unknown = Some(error),
                // Whatever is refused now, an earlier attempt may have been written.
                WriteError::Rejected(_) => return Err(unknown.unwrap_or(error)),
                WriteError::Unknown(_) => return Err(error),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let nothing = WriteError::Rejected(RejectReason::NoLeader { group: self.id.0 });
                return Err(unknown.unwrap_or(nothing));
            }
            tokio::select! {
                () = tokio::time::sleep(LEADER_POLL.min(left)) => {}
                Ok(_) = self.leadership_change(seen) => {}
            }
        }
    }

    async fn propose_at(
        &self,
        seen: Leadership,
        encoded: Bytes,
        synced: bool,
        left: Duration,
    ) -> Result<Applied, WriteError> {
        let group = self.id.0;
        match seen.leader {
            _ if seen.here => self.propose_here(encoded, synced, left).await,
            Some(leader) if leader != self.node => {
                let request = peer::ProposeRequest { group, command: encoded, timeout_ms: 0, synced };
                self.forwarder.forward(leader, request, left).await
            }
            _ => Err(WriteError::Rejected(RejectReason::NoLeader { group })),
        }
    }

    /// Proposes a command that another node sent, as the leader.
    pub(crate) async fn propose_for_peer(
        &self,
        encoded: Bytes,
        synced: bool,
        timeout: Duration,
    ) -> Result<Applied, WriteError> {
        self.check_for_peer(&encoded).map_err(WriteError::Rejected)?;
        self.propose_here(encoded, synced, timeout).await
    }

    /// Proposes what another node sent in one message, in its order, and answers each command. One task waits for all:
    /// whoever sent them may hang up, but the permit of an entry that is still in flight stays.
    pub(crate) fn propose_all_for_peer(self: &Arc<Self>, commands: Vec<(peer::ProposeRequest, Reply)>) {
        let now = Instant::now();
        let (mut entries, mut pending) = (Vec::with_capacity(commands.len()), VecDeque::with_capacity(commands.len()));
        for (request, reply) in commands {
            let admitted = self.check_for_peer(&request.command).and_then(|()| self.admit_here(request.command));
            match admitted {
                Err(reason) => reply.send(Err(WriteError::Rejected(reason))),
                Ok((entry, permit)) => {
                    let until = now + Duration::from_millis(request.timeout_ms.into());
                    entries.push(entry);
                    pending.push_back(Pending { until, synced: request.synced, reply: Some(reply), _permit: permit });
                }
            }
        }
        if !entries.is_empty() {
            self.tasks.spawn(Arc::clone(self).commit_all_here(entries, pending));
        }
    }

    /// Whether a command that another node sent may be proposed here.
    fn check_for_peer(&self, encoded: &Bytes) -> Result<(), RejectReason> {
        if encoded.len() > ENTRY_BYTES_MAX {
            return Err(RejectReason::TooLarge { bytes: encoded.len(), limit: ENTRY_BYTES_MAX });
        }
        // What apply cannot decode would stop the group on every replica, at every start.
        let command = Command::decode(encoded).map_err(|error| RejectReason::Undecodable(error.to_string()))?;
        if matches!(command, Command::Meta(_)) != (self.id == GroupId::META) {
            let reason = "a command of the meta group for a data group, or the reverse".to_owned();
            return Err(RejectReason::Undecodable(reason));
        }
        if matches!(command, Command::Append(_)) {
            if *self.disk.borrow() != DiskLevel::Normal {
                return Err(RejectReason::DiskReserve);
            }
            self.refusal.check()?;
        }
        Ok(())
    }

    /// Proposes as the leader. A repeat is waited for at its first copy.
    async fn propose_here(&self, encoded: Bytes, synced: bool, timeout: Duration) -> Result<Applied, WriteError> {
        let until = Instant::now() + timeout;
        let applied = self.commit_here(encoded, timeout).await?;
        if synced {
            self.wait_applied_synced(applied, until).await?;
        }
        Ok(applied)
    }

    async fn wait_applied_synced(&self, applied: Applied, until: Instant) -> Result<(), WriteError> {
        let left = until.saturating_duration_since(Instant::now());
        let index = applied.first_copy.unwrap_or(applied.index);
        self.wait_synced(index, left).await.map_err(|error| WriteError::Unknown(error.to_string()))
    }

    /// Takes a command in, and stamps it.
    fn admit_here(&self, encoded: Bytes) -> Result<(EncodedCommand, Permit), RejectReason> {
        if self.tasks.is_closed() {
            return Err(RejectReason::Stopping);
        }
        // It leads, but the incarnation that says so is not everybody's yet.
        if self.is_recovering() {
            return Err(RejectReason::NoLeader { group: self.id.0 });
        }
        if let Some(reason) = self.halted().filter(|_| Command::is_append(&encoded)) {
            return Err(RejectReason::Halted(reason));
        }
        let permit = self.admission.admit(encoded.len())?;
        Ok((EncodedCommand(Command::stamp(encoded, self.leader_time())), permit))
    }

    async fn commit_here(&self, encoded: Bytes, timeout: Duration) -> Result<Applied, WriteError> {
        let mutated = mutation::active(Mutation::AckBeforeQuorum) && Command::is_append(&encoded);
        let next = mutated.then(|| self.last_log_index() + 1);
        let (entry, permit) = self.admit_here(encoded).map_err(WriteError::Rejected)?;
        let raft = self.raft.clone();
        // In a task of its own: a client that hangs up must not free the permit of an entry that is still in flight.
        let write = self.tasks.spawn(async move {
            let outcome = raft.client_write(entry).await;
            drop(permit);
            outcome
        });
        if let Some(next) = next {
            return Box::pin(self.appended_here(next, timeout)).await;
        }
        let group = self.id.0;
        match tokio::time::timeout(timeout, write).await {
            Err(_) => Err(WriteError::Unknown(format!("group {group} did not answer within {timeout:?}"))),
            Ok(Err(error)) => Err(WriteError::Unknown(error.to_string())),
            Ok(Ok(Ok(response))) => Ok(response.data),
            Ok(Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))))) => {
                Err(WriteError::Rejected(RejectReason::NoLeader { group }))
            }
            Ok(Ok(Err(error))) => Err(WriteError::Unknown(error.to_string())),
        }
    }

    /// Of a mutated build: the own log has the entry, and that has to do.
    async fn appended_here(&self, index: u64, timeout: Duration) -> Result<Applied, WriteError> {
        let appended = |metrics: &openraft::RaftMetrics<TypeConfig>| metrics.last_log_index >= Some(index);
        let waited = self.raft.wait(Some(timeout)).metrics(appended, "the entry is in the log").await;
        waited.map_err(|error| WriteError::Unknown(error.to_string()))?;
        Ok(Applied { index, first_copy: None })
    }

    /// Commits `entries`; those that are not applied in time are answered as unknown, and waited for all the same.
    async fn commit_all_here(self: Arc<Self>, entries: Vec<EncodedCommand>, mut pending: VecDeque<Pending>) {
        let group = self.id.0;
        let results = async {
            match self.raft.client_write_many(entries).await {
                Ok(results) => results,
                Err(fatal) => futures::stream::once(std::future::ready(Err(fatal))).boxed(),
            }
        };
        // Whatever was applied together is answered together.
        let mut results = pin!(results.flatten_stream().ready_chunks(pending.len().max(1)));
        loop {
            let due = pending.iter().filter(|pending| pending.reply.is_some()).map(|pending| pending.until).min();
            tokio::select! {
                biased;
                chunk = results.next() => {
                    let Some(chunk) = chunk else { break };
                    for result in chunk {
                        if let Some(pending) = pending.pop_front() {
                            self.answer(pending, outcome(group, result));
                        }
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let now = Instant::now();
                    for late in pending.iter_mut().filter(|pending| pending.until <= now) {
                        if let Some(reply) = late.reply.take() {
                            reply.send(Err(WriteError::Unknown(format!("group {group} did not answer in time"))));
                        }
                    }
                }
            }
        }
        // The core stopped before it answered them.
        for pending in pending {
            self.answer(pending, Err(WriteError::Unknown(format!("group {group} stopped"))));
        }
    }

    fn answer(self: &Arc<Self>, pending: Pending, written: Result<Applied, WriteError>) {
        let Some(reply) = pending.reply else { return };
        match written {
            // Rare, and its wait for disks must not delay the others' answers.
            Ok(applied) if pending.synced => {
                let (group, until) = (Arc::clone(self), pending.until);
                self.tasks.spawn(async move {
                    let synced = group.wait_applied_synced(applied, until).await;
                    reply.send(synced.map(|()| applied));
                });
            }
            written => reply.send(written),
        }
    }
}

/// A command of another node that was proposed here.
struct Pending {
    until: Instant,
    synced: bool,
    /// Taken when the deadline passes.
    reply: Option<Reply>,
    _permit: Permit,
}

fn outcome(group: u32, result: Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>) -> Result<Applied, WriteError> {
    match result {
        Ok(Ok(response)) => Ok(response.response),
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(WriteError::Rejected(RejectReason::NoLeader { group })),
        Ok(Err(error)) => Err(WriteError::Unknown(error.to_string())),
        Err(fatal) => Err(WriteError::Unknown(fatal.to_string())),
    }
}
