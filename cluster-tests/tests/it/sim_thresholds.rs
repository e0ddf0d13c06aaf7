//! The simulation is a program without cargo's test harness: what a run of it has to come to is tested here.

#[path = "../sim/thresholds.rs"]
mod thresholds;

use std::collections::BTreeMap;

use thresholds::{Sums, missing};

type Counts = BTreeMap<String, u64>;

fn counts(counts: &[(&str, u64)]) -> Counts {
    counts.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect()
}

/// Faults of 24 seeds as they were drawn.
fn faults() -> Counts {
    counts(&[
        ("EIO of a sync", 3),
        ("EIO of a write", 18),
        ("EIO of an open", 3),
        ("EIO of reads", 12),
        ("catalog fails", 3),
        ("clock drifts", 5),
        ("clock jumps", 10),
        ("connections break", 10),
        ("disk full", 5),
        ("kill", 14),
        ("kill all", 11),
        ("leader transfer", 12),
        ("partition", 16),
        ("power loss", 17),
        ("power loss everywhere", 5),
        ("slow disk", 12),
        ("stop", 39),
        ("store fails", 8),
    ])
}

/// What came of them, where it was counted; of the rest less than is to be expected.
fn effects() -> Counts {
    counts(&[
        ("reads", 378),
        ("commits", 100),
        ("processes ended", 106),
        ("orderly stops", 30),
        ("power failed", 25),
        ("power losses that took bytes", 10),
        ("failed syncs", 2),
        ("failed changes", 14),
        ("failed reads", 14),
        ("failed opens", 2),
        ("slow syncs", 40),
        ("disks short of room", 4),
        ("chunks held", 200),
        ("connections broken", 20),
        ("leaderships given away", 4),
        ("clocks set", 7),
        ("store fault", 36),
        ("catalog fault", 21),
    ])
}

/// What so many times 24 seeds miss.
fn missed(times: u64, faults: &Counts, effects: &Counts) -> Vec<String> {
    let more = |counts: &Counts| counts.iter().map(|(what, count)| (what.clone(), times * count)).collect::<Counts>();
    let (faults, counts) = (more(faults), more(effects));
    let (seeds, acknowledged) = (times * 24, times * 16_521);
    missing(&Sums { seeds, seconds: 12, acknowledged, faults: &faults, counts: &counts })
}

/// Guarantees: what is usual is enough, of few seeds as of many.
#[test]
fn a_usual_run_of_the_simulation_misses_nothing() {
    for times in [1, 4, 8, 16] {
        assert_eq!(missed(times, &faults(), &effects()), Vec::<String>::new(), "{times}");
    }
}

/// Guarantees: a kind of fault that is never made, or does nothing, is missed in a run of some hundred seeds; so are reads.
#[test]
fn a_fault_of_the_simulation_that_is_not_made_or_does_nothing_is_missed() {
    for kind in faults().keys() {
        let mut faults = faults();
        faults.remove(kind);
        let missed = missed(16, &faults, &effects());
        assert!(missed.iter().any(|missed| missed.starts_with(&format!("{kind}: 0, "))), "{kind}: {missed:?}");
    }
    for effect in effects().keys() {
        let mut effects = effects();
        effects.remove(effect);
        let missed = missed(16, &faults(), &effects);
        assert_eq!(missed.len(), 1, "{effect}: {missed:?}");
        assert!(missed[0].starts_with(&format!("{effect}: 0, ")), "{missed:?}");
    }
}

/// Guarantees: a run without faults, writes and reads misses all of them, and one of ten seeds may lack rare kinds.
#[test]
fn a_run_of_the_simulation_in_which_nothing_happens_misses_it() {
    let nothing = Counts::new();
    let idle = missing(&Sums { seeds: 1000, seconds: 12, acknowledged: 0, faults: &nothing, counts: &nothing });
    assert_eq!(idle.len(), 3 + faults().len(), "{idle:?}");
    let ten = counts(&[("reads", 100), ("commits", 30)]);
    let ten = missing(&Sums { seeds: 10, seconds: 12, acknowledged: 6000, faults: &nothing, counts: &ten });
    assert_eq!(ten, Vec::<String>::new());
}
