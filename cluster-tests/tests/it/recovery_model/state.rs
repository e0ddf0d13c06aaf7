//! What the model's nodes and its network know.

use signaldb_raft::recovery::{Acks, Gate, LogEnd};

pub(super) const NODES: usize = 3;
pub(super) const TERMS_MAX: usize = 4;
pub(super) const ENTRIES_MAX: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Command,
    /// Voters {0, 1} and {0, 1, 2} at once.
    Joint,
    /// Voters {0, 1, 2}.
    Promoted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) term: u8,
    pub(super) kind: Kind,
}

/// Entries at indexes 1 to `len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Log {
    pub(super) entries: [Option<Entry>; ENTRIES_MAX],
}

impl Log {
    pub(super) fn len(&self) -> u8 {
        self.entries.iter().flatten().count() as u8
    }

    pub(super) fn at(&self, index: u8) -> Option<Entry> {
        self.entries.get(index.checked_sub(1)? as usize).copied().flatten()
    }

    pub(super) fn push(&mut self, entry: Entry) {
        let at = self.len() as usize;
        self.entries[at] = Some(entry);
    }

    pub(super) fn upto(&self, len: u8) -> Self {
        let mut log = *self;
        log.entries[len as usize..].fill(None);
        log
    }

    pub(super) fn end(&self) -> Option<LogEnd> {
        let last = self.at(self.len())?;
        Some(LogEnd { term: last.term.into(), index: self.len().into() })
    }

    pub(super) fn common(&self, other: &Self) -> u8 {
        (1..=self.len()).take_while(|index| self.at(*index) == other.at(*index)).count() as u8
    }

    pub(super) fn starts_with(&self, prefix: &Self) -> bool {
        self.common(prefix) == prefix.len()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Role {
    Follower,
    Candidate,
    Leader,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) term: u8,
    /// Whom it voted for, or follows, in its term.
    pub(super) vote: Option<u8>,
    /// What a crash leaves of both; R1 makes it the same.
    pub(super) durable_vote: (u8, Option<u8>),
    pub(super) role: Role,
    /// Who granted it a vote in its term, while it is a candidate.
    pub(super) granted: [bool; NODES],
    pub(super) log: Log,
    /// Entries in the page cache. Only a leader has more in memory: it sends before it writes.
    pub(super) written: u8,
    pub(super) synced: u8,
    /// Appends that wait for the next sync, and the term and index that it acknowledges.
    pub(super) syncing: u8,
    pub(super) unacknowledged: Option<(u8, u8)>,
    /// What it took from the leader of its term; followed only with `sync`.
    pub(super) matched: u8,
    pub(super) acks: Acks,
    pub(super) gate: Gate,
}

/// Indexed by term.
pub(super) type Terms<T> = [T; TERMS_MAX];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) nodes: [Node; NODES],
    pub(super) leaders: Terms<Option<u8>>,
    /// All that the leader of the term ever sent.
    pub(super) sent: Terms<Log>,
    /// The winner of an unclean recovery needs every vote.
    pub(super) unclean: Terms<Option<u8>>,
    /// Up to where each node ever acknowledged to the leader of the term.
    pub(super) acked: Terms<[u8; NODES]>,
    /// Up to where each reported to have it synced.
    pub(super) reported: Terms<[u8; NODES]>,
    /// What clients were told, at `quorum`.
    pub(super) committed: Log,
    /// And how much of it at `quorum-fsync`.
    pub(super) committed_synced: u8,
    /// Counted only when they are bounded.
    pub(super) crashes: u8,
    pub(super) wrong: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Campaign(usize),
    Grant {
        voter: usize,
        candidate: usize,
    },
    Win(usize),
    Append(usize, Kind),
    Write(usize),
    Deliver {
        to: usize,
        term: u8,
        upto: u8,
    },
    Commit(u8),
    Sync(usize),
    Idle(usize),
    Die(usize),
    Crash {
        node: usize,
        kept: u8,
    },
    Ask {
        node: usize,
        leader: usize,
    },
    /// Only [`Weakened::MatchAsExit`].
    LeaveByMatch {
        node: usize,
        leader: usize,
    },
    Plan,
    Promise(usize),
}
