//! The simulation is a program without cargo's test harness: how its faults end is tested here.

#[path = "../sim/lasting.rs"]
mod lasting;

use std::collections::BTreeSet;

use lasting::{Lasting, Lastings, Wire};

const ALL: [Lasting; 8] = [
    Lasting::Partition,
    Lasting::SlowDisk(1),
    Lasting::SlowDisk(2),
    Lasting::FailingDisk(1),
    Lasting::FailingDisk(2),
    Lasting::FullDisk(1),
    Lasting::Catalog,
    Lasting::Store,
];

/// Guarantees: the end of a fault ends neither a newer one of its kind nor one of another kind or node.
#[test]
fn a_fault_that_is_over_ends_only_itself() {
    let mut lastings = Lastings::default();
    let older = ALL.map(|lasting| (lasting, lastings.begin(lasting)));
    let newer = ALL.map(|lasting| (lasting, lastings.begin(lasting)));
    for (lasting, number) in older {
        assert!(!lastings.end(lasting, number), "{lasting:?} was begun anew");
    }
    for (lasting, number) in newer {
        assert!(lastings.end(lasting, number), "{lasting:?}");
        assert!(!lastings.end(lasting, number), "{lasting:?} is over once");
    }
}

/// Guarantees: a wire that two partitions hold is free when both are over, others when their own is.
#[test]
fn a_partition_that_is_over_frees_only_the_wires_that_no_other_holds() {
    let mut lastings = Lastings::default();
    let (first, second) = (lastings.begin(Lasting::Partition), lastings.begin(Lasting::Partition));
    lastings.hold(first, (1, 2));
    lastings.hold(first, (1, 3));
    lastings.hold(second, (1, 2));
    lastings.hold(second, (3, 2));
    assert_eq!(lastings.release(first), BTreeSet::from([(1, 3)]));
    let held = |lastings: &Lastings| [(1, 2), (1, 3), (3, 2), (2, 1)].map(|wire: Wire| lastings.is_held(wire));
    assert_eq!(held(&lastings), [true, false, true, false]);
    assert_eq!(lastings.release(first), BTreeSet::new(), "it is over once");
    assert_eq!(lastings.release(second), BTreeSet::from([(1, 2), (3, 2)]));
    assert_eq!(held(&lastings), [false; 4]);
}

/// Guarantees: once everything is healed, timers of before end nothing that begins later.
#[test]
fn what_was_healed_ends_nothing_later() {
    let mut lastings = Lastings::default();
    let (partition, disk) = (lastings.begin(Lasting::Partition), lastings.begin(Lasting::FullDisk(1)));
    lastings.hold(partition, (2, 3));
    assert_eq!(lastings.end_all(), BTreeSet::from([(2, 3)]));
    let again = lastings.begin(Lasting::Partition);
    lastings.hold(again, (2, 3));
    assert!(!lastings.end(Lasting::FullDisk(1), disk));
    assert_eq!(lastings.release(partition), BTreeSet::new());
    assert!(lastings.is_held((2, 3)));
}
