//! A group that goes on although its log may have lost entries does so in a new incarnation: tables that know more than
//! the log must not take what is written next for what they have (DESIGN section 6).

use std::sync::PoisonError;
use std::time::Duration;

use signaldb_model::GroupId;

use super::Group;
use crate::command::Command;
use crate::error::{ReadError, RejectReason, WriteError};
use crate::state::FIRST_INCARNATION;
use crate::types::EncodedCommand;

/// How long a majority may take to hold the command.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a leader serves nothing, and when it found that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Halt {
    reason: String,
    term: u64,
    incarnation: u64,
}

impl Group {
    /// Serves nothing from now on, and says why, while this leadership lasts or until an operator decides. Whoever leads
    /// next looks for itself: another log is not older for it, and this one may catch up.
    pub fn halt(&self, reason: String) {
        let (term, incarnation) = (self.leadership().term, self.with_state(|state| state.incarnation()));
        let halt = Halt { reason, term, incarnation };
        let mut halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        if halted.as_ref() != Some(&halt) {
            tracing::error!(group = %self.id, reason = halt.reason, "the group halts");
        }
        *halted = Some(halt);
    }

    /// Why the group serves nothing; `None` when it does, or when this node is not the one to say so.
    pub fn halted(&self) -> Option<String> {
        let halt = self.halted.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (seen, incarnation) = (self.leadership(), self.with_state(|state| state.incarnation()));
        (seen.here && seen.term == halt.term && incarnation == halt.incarnation).then_some(halt.reason)
    }

    /// Whether this log is one that a leader of `term` or before can have flushed up to `index`: it holds an entry of such
    /// a term there, or held it. Another log may have come to that index since, with entries of later terms. Where the
    /// entry cannot be read the index alone has to do.
    pub fn may_have_flushed(&self, index: u64, term: u64) -> bool {
        // What is purged is in tables.
        let purged = || index <= self.log.purged_index();
        purged()
            || match self.log.term_at(index) {
                Ok(Some(found)) => found <= term,
                Ok(None) => purged(),
                Err(_) => index <= self.last_log_index(),
            }
    }

    /// The last entry up to `upto` that is not of a later term than `term`: no leader of `term` flushed what is behind it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn last_entry_until(&self, upto: u64, term: u64) -> Result<u64, ReadError> {
        let upto = upto.min(self.last_log_index());
        let failed = |error: std::io::Error| ReadError::Unavailable { group: self.id.0, reason: error.to_string() };
        // What is purged meanwhile counts as early: it is in tables.
        let is_later = |index| self.log.term_at(index).map(|found| found.is_some_and(|found| found > term));
        last_before(self.log.purged_index().min(upto), upto, is_later).map_err(failed)
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

/// The last index from `low` to `high` that is not later, when all after the first later one are. `low` is not asked for.
fn last_before<E>(low: u64, high: u64, is_later: impl Fn(u64) -> Result<bool, E>) -> Result<u64, E> {
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if is_later(middle)? {
            high = middle - 1;
        } else {
            low = middle;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::last_before;

    #[test]
    fn rows_of_a_later_leadership_are_behind_the_last_entry_that_a_leader_can_have_flushed() {
        // Terms by index; what is up to `low` is purged.
        let terms = [0, 1, 1, 1, 4, 4, 6];
        for (low, high, term, expected) in [
            (0, 6, 9, 6),
            (0, 6, 6, 6),
            (0, 6, 5, 5),
            (0, 6, 3, 3),
            (0, 6, 1, 3),
            (0, 2, 1, 2),
            (0, 6, 0, 0),
            (4, 6, 1, 4),
            (6, 6, 1, 6),
        ] {
            let is_later = |index: u64| Ok::<_, ()>(terms[usize::try_from(index).expect("small")] > term);
            assert_eq!(last_before(low, high, is_later), Ok(expected), "{low} {high} {term}");
        }
    }
}
