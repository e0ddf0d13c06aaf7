//! What a start found, for whoever decides what the groups start as.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Everything that a start read, before anything is changed on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// How the log ended, if not with a whole record.
    pub torn: Option<TornTail>,
    pub groups: BTreeMap<u32, FoundGroup>,
    /// What a group that is not in `groups` must be taken for: damage may have taken every trace of it. `None` while
    /// all groups that the log ever held are listed.
    pub unlisted: Option<Quarantined>,
}

/// One group, as found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundGroup {
    /// Payload of the last trust record.
    pub trust: Option<Vec<u8>>,
    /// Holds no entry and purged none.
    pub empty: bool,
    /// Damage below the flushed position took something from the group; its log ends before the first entry that is
    /// lost. Whoever accepts that ([`crate::Wal::open`]) has to get the rest from peers.
    pub quarantined: Option<Quarantined>,
    /// What [`crate::repair`] accepted as lost since the last start. The log is whole without it, and only this start
    /// is told: if the group has peers, it must be treated as `quarantined` all the same.
    pub accepted: Option<Quarantined>,
}

/// What damage below the flushed position took from a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Entries from here on are lost; nothing may be lost but this is where the group's log ends.
    pub first_lost_index: u64,
    /// The highest index that is known to have been lost; `None` when nobody can tell.
    pub last_lost_index: Option<u64>,
    /// Where the damage is.
    pub segment: u64,
    pub offset: u64,
    pub reason: String,
}

impl fmt::Display for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last_lost_index {
            Some(last) => write!(f, "from entry {} to at least {last}", self.first_lost_index),
            None => write!(f, "from entry {}", self.first_lost_index),
        }
    }
}

/// A place below the flushed position that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub segment: u64,
    pub offset: u64,
    pub bytes: u64,
    /// First batch that is lost.
    pub batch: u64,
    /// The batch that follows.
    pub next: u64,
    /// The group and kind of the record, if its header is known.
    pub record: Option<(u32, &'static str)>,
    /// Everything that was there is known from elsewhere, or was of no consequence.
    pub harmless: bool,
    /// An earlier start dealt with it.
    pub settled: bool,
    pub reason: String,
}

/// What kind of end a torn tail is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum TailKind {
    /// The last record runs past the end of the file, or into zeros: a process died while it wrote.
    CutShort,
    /// Anything else above the flushed position: bytes that were written are not there.
    Bad,
}

/// The end of the log above the flushed position that is not a sequence of whole records. Nobody was told that it was
/// on disk. It is not part of the log any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TornTail {
    pub segment: u64,
    pub offset: u64,
    pub bytes: u64,
    pub kind: TailKind,
    pub reason: String,
}

/// The decision of callers without an opinion, and of tests: every group keeps its trust record, and damage stops the
/// start.
///
/// # Errors
/// When anything below the flushed position is damaged.
pub fn keep_trust(found: &Found) -> Result<BTreeMap<u32, Bytes>, String> {
    let damaged = found.groups.values().find_map(|group| group.quarantined.as_ref()).or(found.unlisted.as_ref());
    match damaged {
        Some(_) => Err("nobody decided to go on without what is lost".to_owned()),
        None => Ok(BTreeMap::new()),
    }
}
