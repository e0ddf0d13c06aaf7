//! The concrete types that openraft is instantiated with.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// An encoded [`crate::Command`]; decoded in apply.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EncodedCommand(pub(crate) Bytes);

impl fmt::Debug for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedCommand({} bytes)", self.0.len())
    }
}

impl fmt::Display for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What apply answers to the proposer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Applied {
    pub index: u64,
    /// The index of the first copy, when the dedup window already held the command's digest.
    pub first_copy: Option<u64>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub address: String,
    pub disk_id: String,
}

openraft::declare_raft_types!(
    pub(crate) TypeConfig:
        D = EncodedCommand,
        R = Applied,
        NodeId = u64,
        Node = Peer,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = crate::runtime::GridRuntime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, crate::state_machine::StateMachine>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
