//! What an acknowledgment promises (DESIGN section 3).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The level at which a write was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AckLevel {
    /// A majority of voters wrote the entry to its page cache.
    Quorum,
    /// A majority of voters fdatasynced the entry.
    QuorumFsync,
    /// The only voter fdatasynced the entry.
    LocalFsync,
}

impl AckLevel {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::QuorumFsync => "quorum-fsync",
            Self::LocalFsync => "local-fsync",
        }
    }

    /// Whether an acknowledgment at this level keeps what one at `asked` would.
    ///
    /// With one voter, `local-fsync` is the strongest level that exists and satisfies every other.
    pub fn satisfies(self, asked: Self) -> bool {
        match self {
            Self::QuorumFsync | Self::LocalFsync => true,
            Self::Quorum => asked == Self::Quorum,
        }
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A level that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("acknowledgment level {0:?} is not quorum, quorum-fsync or local-fsync")]
pub struct ParseAckLevelError(String);

impl FromStr for AckLevel {
    type Err = ParseAckLevelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "quorum" => Ok(Self::Quorum),
            "quorum-fsync" => Ok(Self::QuorumFsync),
            "local-fsync" => Ok(Self::LocalFsync),
            other => Err(ParseAckLevelError(other.chars().take(80).collect())),
        }
    }
}
