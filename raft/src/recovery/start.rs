//! What a start makes of what it finds (R2). Order: [`admit`], then [`at_start`] for each group; write what it says and
//! fdatasync it; then write the new boot id and the new start epoch; then open the groups.

use std::fmt;

use super::{StartEpoch, StartHistory, Trust};

/// What the disk says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnIdentity {
    /// `None` while it is not known, as before the log is read.
    pub disk_id: Option<String>,
    /// A start that is admitted adds itself durably before it takes part in anything. One that is refused adds nothing:
    /// each attempt would bring an old copy nearer to what the cluster has seen.
    pub starts: StartHistory,
}

/// What peers know of this node's id: the disk in the membership, and the highest epoch that any of them saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMember {
    pub disk_id: String,
    /// `None` when it never told one.
    pub epoch: Option<StartEpoch>,
}

/// Why a node or a group does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The votes are lost with the log: this id could vote twice in a term.
    Wiped {
        known: String,
    },
    ForeignDisk {
        known: String,
        found: String,
    },
    /// Votes and acknowledgments of the start epoch that was seen are missing.
    OldCopy {
        /// The last start that the disk remembers.
        epoch: u64,
        highest: u64,
    },
    /// Damage below the flushed position, and no peer to refill it from.
    NoPeerToRefill,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = "put the disk back that is known; to join as a new node, under an id that was never used, needs `signaldb \
                    cluster add-node`, which this version does not have yet";
        match self {
            Self::Wiped { known } => {
                write!(
                    f,
                    "the cluster knows this node id with disk {known}, and this disk has no identity: it was wiped or \
                     replaced; {join}"
                )
            }
            Self::ForeignDisk { known, found } => {
                write!(f, "the cluster knows this node id with disk {known}, this is disk {found}; {join}")
            }
            Self::OldCopy { epoch, highest } => {
                write!(
                    f,
                    "this disk is at start epoch {epoch} and does not remember start epoch {highest}, which the cluster \
                     has seen of this node: it is a restored old copy; {join}"
                )
            }
            Self::NoPeerToRefill => f.write_str("damaged entries that were on disk, and no peer holds a copy"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Whether this disk may go on under its node id.
///
/// `known` is `None` while no peer answered or none knows the id. That proves nothing, so peers repeat the check when
/// the node connects, before they take a vote or an acknowledgment from it.
///
/// # Errors
/// The refusal says what to do.
pub fn admit(own: Option<&OwnIdentity>, known: Option<&KnownMember>) -> Result<(), Refusal> {
    let Some(known) = known else { return Ok(()) };
    let Some(own) = own else { return Err(Refusal::Wiped { known: known.disk_id.clone() }) };
    if let Some(found) = own.disk_id.as_ref().filter(|found| **found != known.disk_id) {
        return Err(Refusal::ForeignDisk { known: known.disk_id.clone(), found: found.clone() });
    }
    match known.epoch.filter(|seen| !own.starts.remembers(*seen)) {
        Some(seen) => Err(Refusal::OldCopy { epoch: own.starts.number(), highest: seen.number }),
        None => Ok(()),
    }
}

/// How the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tail {
    Whole,
    /// A last record that runs past the end of the file, or into zeros: a process died while it wrote.
    CutShort,
    /// Anything else above the flushed position: bytes that were written are not there.
    Bad,
}

/// What a start found on the disk of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeStart {
    /// The last start was under this boot id and this mount: the page cache of then is the page cache of now.
    pub same_boot: bool,
    /// A write or an fsync failed before. The mark is on this disk, elsewhere, or with a peer.
    pub poisoned: bool,
    pub tail: Tail,
}

/// What it found of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupStart {
    /// The last trust record, if there is one.
    pub trust: Option<Trust>,
    /// The group holds no entry and purged none.
    pub empty: bool,
    /// Appends wait for their sync (see [`super::Acks`]).
    pub always_syncs: bool,
    /// Entries below the flushed position are damaged and were put aside: whatever the record says, some
    /// acknowledgments are not kept.
    pub quarantined: bool,
    /// Somebody cut a damaged log and accepted the loss: the group goes on from there in a new incarnation.
    pub repaired: bool,
    /// This replica is the only voter, and no other node holds the log.
    pub alone: bool,
}

/// What the group starts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StartDecision {
    pub trust: Trust,
    /// The record on disk is another: write `trust` and fdatasync it before the new boot id is written.
    pub write: bool,
}

/// What the start of one group makes of its trust record.
///
/// Everything that remains of the log must be fdatasynced before the decision is written, as `Wal::open` does. But a
/// tail that was [`Tail::Bad`] must not be cut durably before it: after a kill in between, the next start would find a
/// whole log under the same boot.
///
/// # Errors
/// [`Refusal::NoPeerToRefill`].
pub fn at_start(node: NodeStart, group: GroupStart) -> Result<StartDecision, Refusal> {
    if group.quarantined && group.alone {
        return Err(Refusal::NoPeerToRefill);
    }
    // Logs of before the first trust record: only the level tells.
    let unrecorded = if group.empty || group.always_syncs { Trust::Synced } else { Trust::Unsynced };
    let found = group.trust.unwrap_or(unrecorded);
    let may_have_lost = !node.same_boot || node.poisoned || node.tail == Tail::Bad;
    let trust = match found {
        _ if group.quarantined || group.repaired => Trust::Recovering,
        Trust::Recovering => Trust::Recovering,
        Trust::Unsynced if may_have_lost => Trust::Recovering,
        // All that the page cache held is on disk by now, and nothing is acknowledged before its sync from here on.
        Trust::Unsynced if group.always_syncs => Trust::Synced,
        Trust::Unsynced => Trust::Unsynced,
        Trust::Synced => Trust::Synced,
    };
    Ok(StartDecision { trust, write: group.trust != Some(trust) })
}

#[cfg(test)]
mod tests {
    use super::Trust::{Recovering, Synced, Unsynced};
    use super::*;

    const KILLED: NodeStart = NodeStart { same_boot: true, poisoned: false, tail: Tail::Whole };
    const TORN: NodeStart = NodeStart { tail: Tail::CutShort, ..KILLED };
    const BAD: NodeStart = NodeStart { tail: Tail::Bad, ..KILLED };
    const POISONED: NodeStart = NodeStart { poisoned: true, ..KILLED };
    const REBOOTED: NodeStart = NodeStart { same_boot: false, ..KILLED };
    const REBOOTED_TORN: NodeStart = NodeStart { same_boot: false, ..TORN };

    fn group(trust: Option<Trust>, always_syncs: bool) -> GroupStart {
        GroupStart { trust, empty: false, always_syncs, quarantined: false, repaired: false, alone: false }
    }

    #[test]
    fn every_kind_of_start() {
        for (found, expected) in [
            //                killed    torn      bad         poisoned    rebooted    rebooted, torn
            (Some(Synced), [Synced, Synced, Synced, Synced, Synced, Synced]),
            (Some(Unsynced), [Unsynced, Unsynced, Recovering, Recovering, Recovering, Recovering]),
            (Some(Recovering), [Recovering; 6]),
            (None, [Unsynced, Unsynced, Recovering, Recovering, Recovering, Recovering]),
        ] {
            for (node, expected) in [KILLED, TORN, BAD, POISONED, REBOOTED, REBOOTED_TORN].into_iter().zip(expected) {
                let decision = StartDecision { trust: expected, write: found != Some(expected) };
                assert_eq!(at_start(node, group(found, false)), Ok(decision), "{found:?} after {node:?}");
                let quarantined = GroupStart { quarantined: true, ..group(found, false) };
                let decision = at_start(node, quarantined).map(|decision| decision.trust);
                assert_eq!(decision, Ok(Recovering), "{found:?} after {node:?} with damage");
            }
        }
    }

    #[test]
    fn groups_that_always_sync_start_after_a_torn_tail() {
        for node in [KILLED, TORN, BAD, POISONED, REBOOTED, REBOOTED_TORN] {
            for found in [Some(Synced), None] {
                assert_eq!(at_start(node, group(found, true)).map(|decision| decision.trust), Ok(Synced));
            }
        }
        let was_lazy = group(Some(Unsynced), true);
        assert_eq!(at_start(KILLED, was_lazy), Ok(StartDecision { trust: Synced, write: true }));
        assert_eq!(at_start(REBOOTED, was_lazy), Ok(StartDecision { trust: Recovering, write: true }));
    }

    #[test]
    fn a_reboot_does_not_stop_a_lone_voter_and_damage_does() {
        let alone = GroupStart { alone: true, ..group(Some(Synced), true) };
        assert_eq!(at_start(REBOOTED_TORN, alone), Ok(StartDecision { trust: Synced, write: false }));
        let damaged = GroupStart { quarantined: true, ..alone };
        assert_eq!(at_start(KILLED, damaged), Err(Refusal::NoPeerToRefill));
        let repaired = GroupStart { repaired: true, ..alone };
        let decision = StartDecision { trust: Recovering, write: true };
        assert_eq!(at_start(KILLED, repaired), Ok(decision), "it goes on, but not as if nothing was lost");
        let new = GroupStart { trust: None, empty: true, ..group(None, false) };
        assert_eq!(at_start(REBOOTED, new), Ok(StartDecision { trust: Synced, write: true }));
    }

    #[test]
    fn wiped_foreign_and_old_disks_are_refused() {
        // The token of each start is its number.
        let starts = |number: u32| (1..=number).fold(StartHistory::default(), |starts, token| starts.with_start(token));
        let own = |disk: &str, epoch| OwnIdentity { disk_id: Some(disk.to_owned()), starts: starts(epoch) };
        let known = |disk: &str, epoch: u32| KnownMember {
            disk_id: disk.to_owned(),
            epoch: Some(StartEpoch { number: epoch.into(), token: epoch }),
        };
        assert_eq!(admit(None, None), Ok(()), "a new node of a new cluster");
        assert_eq!(admit(Some(&own("a", 3)), None), Ok(()), "nobody answers");
        assert_eq!(admit(Some(&own("a", 3)), Some(&known("a", 3))), Ok(()));
        assert_eq!(admit(Some(&own("a", 4)), Some(&known("a", 3))), Ok(()), "the last start reached nobody");
        let never = KnownMember { disk_id: "a".to_owned(), epoch: None };
        assert_eq!(admit(Some(&own("a", 0)), Some(&never)), Ok(()), "of before there were epochs");
        let unread = OwnIdentity { disk_id: None, starts: starts(3) };
        assert_eq!(admit(Some(&unread), Some(&known("a", 3))), Ok(()));
        assert_eq!(admit(None, Some(&known("a", 3))), Err(Refusal::Wiped { known: "a".to_owned() }));
        let foreign = Refusal::ForeignDisk { known: "a".to_owned(), found: "b".to_owned() };
        assert_eq!(admit(Some(&own("b", 9)), Some(&known("a", 3))), Err(foreign));
        let old = Refusal::OldCopy { epoch: 2, highest: 3 };
        assert_eq!(admit(Some(&own("a", 2)), Some(&known("a", 3))), Err(old.clone()));
        let raised = OwnIdentity { disk_id: Some("a".to_owned()), starts: starts(2).with_start(77) };
        let beside = Refusal::OldCopy { epoch: 3, highest: 3 };
        assert_eq!(admit(Some(&raised), Some(&known("a", 3))), Err(beside), "the same number is not the same start");
        assert!(old.to_string().contains("epoch 2") && old.to_string().contains("add-node"));
    }
}
