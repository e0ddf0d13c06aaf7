//! Writes: on this node, or through it at the leader.

use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{ClientWriteError, RaftError};
use signaldb_model::limits::ENTRY_BYTES_MAX;
use signaldb_model::{AckLevel, GroupId, Position};
use signaldb_proto::peer;

use super::{Group, LEADER_POLL, Leadership, Written};
use crate::command::{Append, Command};
use crate::disk::DiskLevel;
use crate::error::{RejectReason, WriteError};
use crate::peers::Lane;
use crate::server::proposed;
use crate::types::{Applied, EncodedCommand};

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
        let begun = tokio::time::Instant::now();
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
        let until = tokio::time::Instant::now() + timeout;
        let mut unknown = None;
        loop {
            let seen = self.leadership();
            let left = until.saturating_duration_since(tokio::time::Instant::now());
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
            let left = until.saturating_duration_since(tokio::time::Instant::now());
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
                let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                let request = peer::ProposeRequest { group, command: encoded, timeout_ms, synced };
                let response = self.peers.call(leader, Lane::Bulk, "Propose", &request, left).await;
                match response {
                    Ok(response) => proposed(group, &response),
                    Err(status) if never_arrived(&status) => {
                        Err(WriteError::Rejected(RejectReason::NoLeader { group }))
                    }
                    Err(status) => Err(WriteError::Unknown(format!("node {leader}: {}", status.message()))),
                }
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
        if encoded.len() > ENTRY_BYTES_MAX {
            let reason = RejectReason::TooLarge { bytes: encoded.len(), limit: ENTRY_BYTES_MAX };
            return Err(WriteError::Rejected(reason));
        }
        // What apply cannot decode would stop the group on every replica, at every start.
        let command = Command::decode(&encoded);
        let command = command.map_err(|error| WriteError::Rejected(RejectReason::Undecodable(error.to_string())))?;
        if matches!(command, Command::Meta(_)) != (self.id == GroupId::META) {
            let reason = "a command of the meta group for a data group, or the reverse".to_owned();
            return Err(WriteError::Rejected(RejectReason::Undecodable(reason)));
        }
        if matches!(command, Command::Append(_)) {
            if *self.disk.borrow() != DiskLevel::Normal {
                return Err(WriteError::Rejected(RejectReason::DiskReserve));
            }
            self.refusal.check().map_err(WriteError::Rejected)?;
        }
        self.propose_here(encoded, synced, timeout).await
    }

    /// Proposes as the leader. A repeat is waited for at its first copy.
    async fn propose_here(&self, encoded: Bytes, synced: bool, timeout: Duration) -> Result<Applied, WriteError> {
        let until = tokio::time::Instant::now() + timeout;
        let applied = self.commit_here(encoded, timeout).await?;
        if synced {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let index = applied.first_copy.unwrap_or(applied.index);
            self.wait_synced(index, left).await.map_err(|error| WriteError::Unknown(error.to_string()))?;
        }
        Ok(applied)
    }

    async fn commit_here(&self, encoded: Bytes, timeout: Duration) -> Result<Applied, WriteError> {
        if self.tasks.is_closed() {
            return Err(WriteError::Rejected(RejectReason::Stopping));
        }
        // It leads, but the incarnation that says so is not everybody's yet.
        if self.is_recovering() {
            return Err(WriteError::Rejected(RejectReason::NoLeader { group: self.id.0 }));
        }
        if let Some(reason) = self.halted().filter(|_| Command::is_append(&encoded)) {
            return Err(WriteError::Rejected(RejectReason::Halted(reason)));
        }
        let permit = self.admission.admit(encoded.len()).map_err(WriteError::Rejected)?;
        let encoded = Command::stamp(encoded, self.leader_time());
        let raft = self.raft.clone();
        // In a task of its own: a client that hangs up must not free the permit of an entry that is still in flight.
        let write = self.tasks.spawn(async move {
            let outcome = raft.client_write(EncodedCommand(encoded)).await;
            drop(permit);
            outcome
        });
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
}

/// Whether a call certainly did not reach the peer, or was turned away before anything else.
fn never_arrived(status: &tonic::Status) -> bool {
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::Unauthenticated | tonic::Code::Unimplemented => true,
        tonic::Code::Unavailable => status.message().contains("tcp connect error"),
        _ => false,
    }
}
