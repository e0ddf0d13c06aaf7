//! The recovery gate: what a replica that may have lost acknowledged entries is allowed to do (DESIGN section 3).
//!
//! A group at level `quorum` acknowledges from the page cache. That is safe only while a voter whose operating system
//! crashed abstains from elections until it holds again all that its earlier acknowledgments can have helped to commit
//! (Jepsen on NATS 2.12.1; Kafka KIP-966; BookKeeper BP-46; Michael et al., DISC 2017). The rules:
//!
//! * **R1** Term and vote are fdatasynced before any message of that term leaves. Not here: see `LogStore::save_vote`.
//! * **R2** A durable [`Trust`] record per group and replica: [`Acks`] says when it must be on disk before an
//!   acknowledgment, [`at_start`] what a start makes of it.
//! * **R3** Who is RECOVERING asks a leader for its last log index and leaves when its own log reaches it: [`Gate`].
//! * **R4** No start resumes a leadership: [`Act::ResumeLeadership`].
//!
//! When a majority is RECOVERING the group halts; [`plan_unclean_recovery`] is the way out. [`SyncedReports`] is the
//! index up to which a majority has fdatasynced.
//!
//! Everything is a plain function over values: no clock, no I/O, nothing but `std` and serde's derives. The server (`group`, `server`,
//! `log_store`) and the model in `cluster-tests/tests/it/recovery_model.rs` call the same code. Membership does not
//! matter to the gate: a learner's acknowledgments may count as soon as it is promoted, so learners keep records too.

use std::fmt;

mod acks;
mod epoch;
mod gate;
mod start;
mod synced;
mod unclean;

pub use acks::{AckAfter, Acks, Before};
pub use epoch::{MalformedHistory, StartEpoch, StartHistory};
pub use gate::{Act, Flushed, Gate, LeaderVote, StaleAnswer, Target};
pub use start::{GroupStart, KnownMember, NodeStart, OwnIdentity, Refusal, StartDecision, Tail, admit, at_start};
pub use synced::{SyncedReports, quorum_synced};
pub use unclean::{Consent, LogEnd, Loss, Plan, Report, Undecided, plan_unclean_recovery, promise};

/// What a replica's durable record says about the entries that it has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trust {
    /// Each of them was fdatasynced before its acknowledgment, or is by now: a crash loses none.
    Synced,
    /// Some may be in the page cache only: they survive the death of the process, not that of the operating system.
    Unsynced,
    /// Some may be lost. Only R3, or a recovery that names the loss, ends this state.
    Recovering,
}

/// First word of the encoding; a change of format changes the digit.
const TRUST_FORMAT: &str = "trust/1";

impl Trust {
    /// The payload of a trust record and of a checkpoint: `trust/1 synced`, `trust/1 unsynced` or `trust/1 recovering`.
    pub fn encode(self) -> Vec<u8> {
        format!("{TRUST_FORMAT} {self}").into_bytes()
    }

    /// Decodes [`Trust::encode`].
    ///
    /// # Errors
    /// Names what it found: a record of a newer version must stop the start, not be guessed.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnknownTrust> {
        let unknown = || UnknownTrust(String::from_utf8_lossy(bytes).into_owned());
        let word = bytes.strip_prefix(TRUST_FORMAT.as_bytes()).and_then(|rest| rest.strip_prefix(b" "));
        match word.ok_or_else(unknown)? {
            b"synced" => Ok(Self::Synced),
            b"unsynced" => Ok(Self::Unsynced),
            b"recovering" => Ok(Self::Recovering),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Synced => "synced",
            Self::Unsynced => "unsynced",
            Self::Recovering => "recovering",
        })
    }
}

/// A trust record that this version cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownTrust(pub String);

impl fmt::Display for UnknownTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trust record {:?} is of a version that this one does not know ({TRUST_FORMAT})", self.0)
    }
}

impl std::error::Error for UnknownTrust {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_survives_and_unknown_versions_are_named() {
        for trust in [Trust::Synced, Trust::Unsynced, Trust::Recovering] {
            assert_eq!(Trust::decode(&trust.encode()), Ok(trust));
        }
        assert_eq!(Trust::Recovering.encode(), b"trust/1 recovering", "format 1 is frozen");
        for bad in ["", "trust/1", "trust/1 ", "trust/1 asleep", "trust/2 synced", "synced"] {
            let error = Trust::decode(bad.as_bytes()).expect_err(bad);
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }
}
