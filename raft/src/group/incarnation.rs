//! A group that goes on although its log may have lost entries does so in a new incarnation: tables that know more than
//! the log must not take what is written next for what they have (DESIGN section 6).

use std::sync::PoisonError;
use std::time::Duration;

use signaldb_model::GroupId;

use super::Group;
use crate::command::Command;
use crate::error::{RejectReason, WriteError};
use crate::state::FIRST_INCARNATION;
use crate::types::EncodedCommand;

/// How long a majority may take to hold the command.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

impl Group {
    /// Serves nothing from now on, and says why, until an operator decides or the node starts again.
    pub fn halt(&self, reason: String) {
        let mut halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        if halted.as_ref() != Some(&reason) {
            tracing::error!(group = %self.id, reason, "the group halts");
        }
        *halted = Some(reason);
    }

    /// Why the group serves nothing; `None` when it does.
    pub fn halted(&self) -> Option<String> {
        self.halted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why rows of the group must not be read or flushed; `None` when they may be.
    pub fn unreadable(&self) -> Option<String> {
        let unsettled = || format!("group {} goes on in a new incarnation that its tables do not know yet", self.id);
        self.halted().or_else(|| self.with_state(|state| state.unsettled().is_some()).then(unsettled))
    }

    /// The last entry of this node's log.
    pub fn last_log_index(&self) -> u64 {
        self.log.last_index()
    }

    /// Begins a new incarnation as the leader, past the gate; returns its index.
    pub(super) async fn begin_incarnation(&self) -> Result<u64, WriteError> {
        let id = (uuid::Uuid::new_v4().as_u128() as u64 >> 16).max(FIRST_INCARNATION + 1);
        let index = self.commit_past_the_gate(&Command::BeginIncarnation { id }).await?;
        if self.id == GroupId::META {
            // It has no tables.
            self.commit_past_the_gate(&Command::IncarnationSettled { id }).await?;
        }
        tracing::warn!(group = %self.id, incarnation = id, from = index, "the group goes on in a new incarnation");
        *self.halted.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(index)
    }

    async fn commit_past_the_gate(&self, command: &Command) -> Result<u64, WriteError> {
        let write = self.raft.client_write(EncodedCommand(command.encode()));
        match tokio::time::timeout(BEGIN_TIMEOUT, write).await {
            Ok(Ok(response)) => Ok(response.data.index),
            Ok(Err(openraft::errors::RaftError::APIError(_))) => {
                Err(WriteError::Rejected(RejectReason::NoLeader { group: self.id.0 }))
            }
            Ok(Err(error)) => Err(WriteError::Unknown(error.to_string())),
            Err(_) => Err(WriteError::Unknown(format!("no majority answered within {BEGIN_TIMEOUT:?}"))),
        }
    }
}
