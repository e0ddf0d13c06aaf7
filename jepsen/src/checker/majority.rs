//! When most nodes ran and reached each other, as far as the faults decide that.
//!
//! Every group has a voter on each of the three nodes, so that one answer is true of all groups, and of whatever group is the
//! home of a tenant: there is a majority as long as any two nodes run and reach each other in both directions. What slows
//! nodes, links and disks down, or moves leaderships, takes none away. A node whose disk was damaged or lost its power
//! counts as away until it is whole again: it may not vote before. So does one that loses packets, of which nobody knows how
//! much arrives.

use crate::cluster::NODES;
use crate::fault::Fault;
use crate::nemesis::Strike;
use crate::span::{Span, union};

/// How long after its start a process may still read its log, nanoseconds.
const START: u64 = 3_000_000_000;

/// A node whose process had ended by itself, for a reason that a fault gave it, until it was started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Absence {
    pub(crate) node: usize,
    pub(crate) span: Span,
}

/// Which pairs of nodes are no pair: each is named by the node that is not in it.
pub(crate) type Parted = [bool; NODES];

/// When no two nodes ran and reached each other: in their order, and none touches the next.
pub(crate) fn outages(strikes: &[Strike], absences: &[Absence]) -> Vec<Span> {
    let faults = strikes.iter().map(|strike| (span(strike), parted(strike.fault, strike.node)));
    let ends = absences.iter().map(|absence| (with_start(absence.span), without(absence.node)));
    let taken: Vec<(Span, Parted)> = faults.chain(ends).filter(|(_, parted)| parted.contains(&true)).collect();
    let mut times: Vec<u64> = taken.iter().flat_map(|(span, _)| [span.begun, span.ended]).collect();
    times.sort_unstable();
    times.dedup();
    let moments = times.windows(2).map(|pair| Span { begun: pair[0], ended: pair[1] });
    let nobody = |moment: &Span| {
        let now = || taken.iter().filter(|(span, _)| span.meets(*moment));
        (0..NODES).all(|pair| now().any(|(_, parted)| parted[pair]))
    };
    union(moments.filter(nobody))
}

/// A node that was started counts as away for a moment.
fn with_start(span: Span) -> Span {
    Span { ended: span.ended.saturating_add(START), ..span }
}

/// How long a fault takes what it takes.
fn span(strike: &Strike) -> Span {
    match strike.fault {
        Fault::Kill | Fault::KillLeader => with_start(strike.span()),
        // The others end when their nodes are ready, or did not stop them.
        _ => strike.span(),
    }
}

/// No pair with `node` in it.
fn without(node: usize) -> Parted {
    std::array::from_fn(|third| third != node)
}

/// What a fault takes that is made at `node`.
pub(crate) fn parted(fault: Fault, node: Option<usize>) -> Parted {
    // Where it was is always known of a fault of one node; else it might be anywhere.
    let of_one = node.map_or([true; NODES], without);
    match fault {
        Fault::Kill
        | Fault::KillLeader
        | Fault::Pause
        | Fault::PauseLeader
        | Fault::IsolateLeader
        | Fault::IsolateOne
        | Fault::OneWay
        | Fault::ClockJumpBeforeRetry
        | Fault::PowerLoss
        | Fault::PowerLossLeader
        | Fault::DiskFull
        | Fault::BitFlip
        | Fault::TruncateSegment
        | Fault::Unplug
        | Fault::UnplugLeader
        | Fault::Flap
        | Fault::Lossy => of_one,
        // The two others do not reach each other.
        Fault::Ring => of_one.map(|with_it| !with_it || node.is_none()),
        Fault::KillAll | Fault::Reset | Fault::PowerLossAll => [true; NODES],
        // One node at a time, and only while all others are ready.
        Fault::RollingRestart
        | Fault::Slow
        | Fault::ClockJump
        | Fault::DiskNearlyFull
        | Fault::SlowDisk
        | Fault::CatalogDown
        | Fault::StoreDown
        | Fault::StoreLies
        | Fault::TransferStorm
        | Fault::StoreCut
        | Fault::StoreCutLeader
        | Fault::CatalogCut => [false; NODES],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn seconds(begun: u64, ended: u64) -> Span {
        Span { begun: begun * SECOND, ended: ended * SECOND }
    }

    fn strike(fault: Fault, node: usize, begun: u64, ended: u64) -> Strike {
        let Span { begun, ended } = seconds(begun, ended);
        Strike { fault, node: Some(node), begun, ended, effective: true, detail: String::new(), left: None }
    }

    #[test]
    fn one_node_or_one_link_leaves_a_majority_whatever_is_wrong_with_it() {
        for fault in crate::fault::ALL {
            let alone = outages(&[strike(fault, 1, 2, 5)], &[]);
            let takes_all = matches!(fault, Fault::KillAll | Fault::Reset | Fault::PowerLossAll);
            assert_eq!(alone, if takes_all { vec![seconds(2, 5)] } else { Vec::new() }, "{fault:?}");
        }
    }

    #[test]
    fn two_nodes_that_are_away_leave_none_for_as_long_as_both_are() {
        let cut = |node: usize, begun: u64, ended: u64| strike(Fault::IsolateOne, node, begun, ended);
        assert_eq!(outages(&[cut(0, 1, 5), cut(2, 3, 9)], &[]), [seconds(3, 5)]);
        assert!(outages(&[cut(0, 1, 5), cut(2, 5, 9)], &[]).is_empty(), "one after the other");
        let paused = strike(Fault::Pause, 1, 2, 4);
        assert_eq!(outages(&[cut(0, 1, 5), cut(2, 3, 9), paused], &[]), [seconds(2, 5)]);
        assert!(outages(&[cut(0, 1, 5), strike(Fault::SlowDisk, 1, 1, 5)], &[]).is_empty(), "it is slow, not away");
        let killed = strike(Fault::Kill, 0, 1, 5);
        assert_eq!(outages(&[killed, cut(2, 3, 20)], &[]), [seconds(3, 8)], "it takes a moment to start");
    }

    #[test]
    fn a_cut_between_two_nodes_takes_the_majority_only_with_the_third() {
        let ring = strike(Fault::Ring, 0, 1, 9);
        assert_eq!(outages(&[ring.clone(), strike(Fault::Pause, 0, 3, 5)], &[]), [seconds(3, 5)]);
        assert!(outages(&[ring, strike(Fault::Pause, 1, 3, 5)], &[]).is_empty());
    }

    #[test]
    fn a_node_that_ended_because_of_damage_is_away_until_it_is_started_again() {
        let absence = Absence { node: 1, span: seconds(2, 4) };
        assert!(outages(&[], &[absence]).is_empty());
        assert_eq!(outages(&[strike(Fault::Pause, 2, 1, 20)], &[absence]), [seconds(2, 7)]);
        let still = Absence { node: 1, span: Span { begun: 2 * SECOND, ended: u64::MAX } };
        assert_eq!(outages(&[strike(Fault::Pause, 2, 1, 20)], &[still]), [seconds(2, 20)]);
    }
}
