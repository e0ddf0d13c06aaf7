//! Where in the replicated log a record was committed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::GroupId;

/// Group and Raft log index of a committed command; prints as `<group>:<index>` (`X-SignalDB-Position`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub group: GroupId,
    pub index: u64,
}

/// A position that is not `<group>:<index>`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("position {0:?} is not <group>:<index>")]
pub struct ParsePositionError(String);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.group, self.index)
    }
}

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParsePositionError(text.chars().take(80).collect());
        let (group, index) = text.split_once(':').ok_or_else(bad)?;
        Ok(Self { group: GroupId(group.parse().map_err(|_| bad())?), index: index.parse().map_err(|_| bad())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        let position: Position = "3:42".parse().expect("parses");
        assert_eq!(position, Position { group: GroupId(3), index: 42 });
        assert_eq!(position.to_string(), "3:42");
        for bad in ["", "3", "3:", ":4", "a:b", "3:4:5", "-1:2"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
