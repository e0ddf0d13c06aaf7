//! What can go wrong, and what each fault needs.

use serde::{Deserialize, Serialize};

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// SIGKILL, and a start a little later.
    Kill,
    KillLeader,
    KillAll,
    /// SIGSTOP and SIGCONT.
    Pause,
    PauseLeader,
    /// One node against the two others.
    IsolateLeader,
    IsolateOne,
    /// The leader hears nobody, or nobody hears it.
    OneWay,
    /// Two nodes do not reach each other, the third reaches both: majorities that overlap in it.
    Ring,
    Slow,
    /// Connections are cut again and again.
    Reset,
    /// Wall clocks of one or more nodes jump, each by itself, forwards or back, jump again and return.
    ClockJump,
    /// What clients send through one node commits but is not confirmed. Before they try again elsewhere, the clocks of
    /// the other nodes jump ahead together, beyond any dedup window that was counted in wall time.
    ClockJumpBeforeRetry,
    /// SIGTERM to one node after the other, each awaited: it must end well, and be ready again before the next one stops.
    RollingRestart,
    /// The machine of one node loses its power: what its disk was not told to keep is gone.
    PowerLoss,
    PowerLossLeader,
    /// All machines lose their power at once: what was acknowledged at `quorum` within the flush window may be gone.
    PowerLossAll,
    /// Less is free than the node's reserve: it stops ingest, and heals by itself.
    DiskNearlyFull,
    /// Not one block is free: a write fails, after which the node may have to end.
    DiskFull,
    /// The disk answers in bursts only.
    SlowDisk,
    /// One bit of one segment, of a node that does not run.
    BitFlip,
    /// A sealed segment, of a node that does not run, is shorter than it was. Not the newest one: where its end is nobody
    /// wrote down, so that a lost end looks like a write that a kill cut short.
    TruncateSegment,
    /// The catalog's database takes no commits; writes go on.
    CatalogDown,
    /// The store of the tables refuses everything; writes go on.
    StoreDown,
    /// The store does what it is told, and mostly says that it failed.
    StoreLies,
    /// The leadership of the busiest group is given away, again and again.
    TransferStorm,
    /// Nothing gets to or from one node: peers, clients, store and catalog wait for each other in vain.
    Unplug,
    UnplugLeader,
    /// The cable of one node is pulled and put back, again and again; who sends to it is told.
    Flap,
    /// Some of the packets between a node and its peers are lost.
    Lossy,
    /// Nothing gets to or from the store of the tables, which answers nobody instead of refusing; writes go on.
    StoreCut,
    /// The same for the leader alone: the others reach the store.
    StoreCutLeader,
    /// Nothing gets to or from the catalog's database.
    CatalogCut,
}

/// Every kind, as reports list them.
pub(crate) const ALL: [Fault; 33] = [
    Fault::KillLeader,
    Fault::IsolateLeader,
    Fault::PauseLeader,
    Fault::ClockJumpBeforeRetry,
    Fault::OneWay,
    Fault::Kill,
    Fault::Reset,
    Fault::ClockJump,
    Fault::Ring,
    Fault::IsolateOne,
    Fault::KillAll,
    Fault::Pause,
    Fault::Slow,
    Fault::RollingRestart,
    Fault::PowerLoss,
    Fault::PowerLossLeader,
    Fault::PowerLossAll,
    Fault::DiskNearlyFull,
    Fault::DiskFull,
    Fault::SlowDisk,
    Fault::BitFlip,
    Fault::TruncateSegment,
    Fault::CatalogDown,
    Fault::StoreDown,
    Fault::StoreLies,
    Fault::TransferStorm,
    Fault::Unplug,
    Fault::UnplugLeader,
    Fault::Flap,
    Fault::Lossy,
    Fault::StoreCut,
    Fault::StoreCutLeader,
    Fault::CatalogCut,
];

/// Where a fault is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The node that leads.
    Leader,
    /// Any one node.
    One,
    /// All of them.
    All,
}

impl Fault {
    /// As scenarios name it.
    pub(crate) fn name(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    }

    /// For people who did not read this file.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL of a node, and a start a little later",
            Self::KillLeader => "SIGKILL of the leader, and a start a little later",
            Self::KillAll => "SIGKILL of all nodes at once, and a start",
            Self::Pause => "SIGSTOP and SIGCONT of a node",
            Self::PauseLeader => "SIGSTOP and SIGCONT of the leader",
            Self::IsolateLeader => "the leader and the two others do not reach each other",
            Self::IsolateOne => "a node and the two others do not reach each other",
            Self::OneWay => "the leader hears nobody, or nobody hears it",
            Self::Ring => "two nodes do not reach each other, the third reaches both",
            Self::Slow => "what the leader sends arrives 20 to 170 ms later, or through a narrow cable",
            Self::Reset => "all connections between nodes are cut, five times",
            Self::ClockJump => "wall clocks of one or more nodes jump by up to two hours, twice, and return",
            Self::ClockJumpBeforeRetry => {
                "writes through one node commit without an answer; before they are tried again, the others' clocks jump ahead"
            }
            Self::RollingRestart => "SIGTERM to one node after the other, each awaited",
            Self::PowerLoss => "the machine of a node loses its power: what was not synced is gone",
            Self::PowerLossLeader => "the machine of the leader loses its power: what was not synced is gone",
            Self::PowerLossAll => "all machines lose their power at once: what was not synced is gone",
            Self::DiskNearlyFull => "less is free than the node's reserve",
            Self::DiskFull => "not one block is free",
            Self::SlowDisk => "the disk answers in bursts only",
            Self::BitFlip => "one bit of one segment of a node's log is flipped",
            Self::TruncateSegment => "a sealed segment of a node's log is cut short",
            Self::CatalogDown => "the catalog's database takes no commits",
            Self::StoreDown => "the store of the tables refuses everything",
            Self::StoreLies => "the store of the tables does what it is told, and answers 500 to three of four writes",
            Self::TransferStorm => "the leadership of the busiest group is given away, again and again",
            Self::Unplug => "nothing gets to or from a node: peers, clients, store and catalog wait in vain",
            Self::UnplugLeader => "nothing gets to or from the leader: peers, clients, store and catalog wait in vain",
            Self::Flap => "the cable of a node is pulled and put back, again and again",
            Self::Lossy => "2 to 20 of a hundred packets between a node and its peers are lost",
            Self::StoreCut => "nothing gets to or from the store of the tables",
            Self::StoreCutLeader => "nothing gets from the leader to the store of the tables, or back",
            Self::CatalogCut => "nothing gets to or from the catalog's database",
        }
    }

    pub(crate) fn target(self) -> Target {
        match self {
            Self::KillLeader
            | Self::PauseLeader
            | Self::IsolateLeader
            | Self::OneWay
            | Self::Slow
            | Self::ClockJumpBeforeRetry
            | Self::PowerLossLeader
            | Self::UnplugLeader
            | Self::StoreCutLeader => Target::Leader,
            Self::KillAll
            | Self::RollingRestart
            | Self::PowerLossAll
            | Self::Reset
            | Self::CatalogDown
            | Self::StoreDown
            | Self::StoreLies
            | Self::TransferStorm
            | Self::StoreCut
            | Self::CatalogCut => Target::All,
            Self::Kill
            | Self::Pause
            | Self::IsolateOne
            | Self::Ring
            | Self::ClockJump
            | Self::PowerLoss
            | Self::DiskNearlyFull
            | Self::DiskFull
            | Self::SlowDisk
            | Self::BitFlip
            | Self::TruncateSegment
            | Self::Unplug
            | Self::Flap
            | Self::Lossy => Target::One,
        }
    }

    /// It moves wall clocks.
    pub(crate) fn moves_clocks(self) -> bool {
        matches!(self, Self::ClockJump | Self::ClockJumpBeforeRetry)
    }

    /// It disturbs what nodes say to each other, or must not be disturbed there itself.
    pub(crate) fn takes_links(self) -> bool {
        matches!(
            self,
            Self::IsolateLeader
                | Self::IsolateOne
                | Self::OneWay
                | Self::Ring
                | Self::Slow
                | Self::Reset
                | Self::ClockJumpBeforeRetry
                | Self::RollingRestart
                | Self::PowerLossAll
                | Self::Unplug
                | Self::UnplugLeader
                | Self::Flap
                | Self::Lossy
        )
    }

    /// It takes away what holds the tables.
    pub(crate) fn takes_tables(self) -> bool {
        matches!(
            self,
            Self::CatalogDown
                | Self::StoreDown
                | Self::StoreLies
                | Self::StoreCut
                | Self::StoreCutLeader
                | Self::CatalogCut
        )
    }

    /// It needs tables in a bucket of our own (see [`crate::bucket`]).
    pub(crate) fn needs_bucket(self) -> bool {
        matches!(self, Self::StoreDown | Self::StoreLies | Self::StoreCut | Self::StoreCutLeader)
    }

    /// It needs a network that loses packets (see [`crate::namespace`]); relays can do no such thing.
    pub(crate) fn needs_namespaces(self) -> bool {
        matches!(
            self,
            Self::Unplug
                | Self::UnplugLeader
                | Self::Flap
                | Self::Lossy
                | Self::StoreCut
                | Self::StoreCutLeader
                | Self::CatalogCut
        )
    }

    /// It asks nodes to give leaderships away.
    pub(crate) fn moves_leaders(self) -> bool {
        matches!(self, Self::TransferStorm)
    }

    /// It stops processes, or does something to their disks.
    pub(crate) fn takes_nodes(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::KillLeader
                | Self::KillAll
                | Self::Pause
                | Self::PauseLeader
                | Self::RollingRestart
                | Self::SlowDisk
                | Self::DiskNearlyFull
        ) || self.damages()
    }

    /// Afterwards a disk lacks what its node said it has, or its node has to act as if: it has to recover.
    pub(crate) fn damages(self) -> bool {
        matches!(
            self,
            Self::PowerLoss
                | Self::PowerLossLeader
                | Self::PowerLossAll
                | Self::DiskFull
                | Self::BitFlip
                | Self::TruncateSegment
        )
    }

    /// It needs nodes with disks of their own (see [`crate::disk`]).
    pub(crate) fn needs_disks(self) -> bool {
        matches!(
            self,
            Self::PowerLoss
                | Self::PowerLossLeader
                | Self::PowerLossAll
                | Self::DiskNearlyFull
                | Self::DiskFull
                | Self::SlowDisk
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_fault_is_listed_once_under_a_name_of_its_own() -> anyhow::Result<()> {
        let names = ALL.iter().map(serde_json::to_string).collect::<Result<BTreeSet<_>, _>>()?;
        assert_eq!(names.len(), ALL.len());
        assert!(names.contains("\"power-loss-leader\""), "{names:?}");
        Ok(())
    }

    #[test]
    fn damage_is_always_done_to_nodes_that_are_taken() {
        assert!(ALL.into_iter().filter(|fault| fault.damages()).all(Fault::takes_nodes));
    }
}
