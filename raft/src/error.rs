//! Outcomes of writes and reads. A write is rejected, committed or unknown; nothing is guessed.

use std::time::Duration;

use signaldb_model::NodeId;
use thiserror::Error;

/// Why a write was not acknowledged.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Nothing was written; the reason says whether it is worth a retry.
    #[error("not written: {0}")]
    Rejected(RejectReason),
    /// The write may have happened or may still happen. Retry it byte by byte: the dedup window makes it one write.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// Why nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RejectReason {
    #[error("group {group} has no leader here")]
    NoLeader { group: u32 },
    #[error("{bytes} bytes are waiting for commit, the limit is {limit}")]
    Throttled { bytes: usize, limit: usize, retry_after: Duration },
    #[error("the entry has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the node is stopping")]
    Stopping,
    /// The node that leads takes no rows now: memory.
    #[error("{0}")]
    Busy(String),
    /// The group serves nothing until an operator decides.
    #[error("the group halted: {0}")]
    Halted(String),
    /// The node that leads takes no rows, and looks for another one to lead.
    #[error("the leader's disk reserve is reached: free space on its log's disk")]
    DiskReserve,
    #[error("the command is refused: {0}")]
    Undecodable(String),
}

impl RejectReason {
    /// Every [`Self::name`].
    pub(crate) const NAMES: [&'static str; 8] =
        ["no_leader", "throttled", "too_large", "stopping", "busy", "disk_reserve", "halted", "undecodable"];

    /// The reason in metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NoLeader { .. } => "no_leader",
            Self::Throttled { .. } => "throttled",
            Self::TooLarge { .. } => "too_large",
            Self::Stopping => "stopping",
            Self::Busy(_) => "busy",
            Self::Halted(_) => "halted",
            Self::DiskReserve => "disk_reserve",
            Self::Undecodable(_) => "undecodable",
        }
    }
}

/// A strong read cannot be served.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("group {group} has no leader here")]
    NoLeader { group: u32 },
    #[error("group {group}: {reason}")]
    Unavailable { group: u32, reason: String },
}

/// A leadership was not given away.
#[derive(Debug, Error)]
pub enum TransferError {
    #[error("this node does not lead group {group}, {} does", .leader.map_or_else(|| "nobody".to_owned(), |node| format!("node {node}")))]
    NotLeader { group: u32, leader: Option<NodeId> },
    /// Nobody was asked.
    #[error("no voter of group {group} that may be meant answers, is close behind and would lead")]
    Nobody { group: u32 },
    /// It may move yet.
    #[error("node {to} did not take group {group}: {reason}")]
    NotTaken { group: u32, to: NodeId, reason: String },
}

/// Groups cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("open the log")]
    Wal(#[from] signaldb_wal::OpenError),
    #[error("open the state store")]
    State(#[from] crate::state_store::StateStoreError),
    #[error("group {group}: {reason}")]
    Group { group: u32, reason: String },
    /// What a peer knows of this node's id does not fit its disk.
    #[error("node {peer} refuses this node")]
    Refused { peer: u64, source: crate::recovery::Refusal },
}
