//! What a run of many seeds must have come to, so that one in which a fault silently does nothing, or nobody reads, does not pass.
//!
//! Which faults a seed has is drawn, so only what is next to impossible is too little: of what is expected `e` times, less than
//! `e - 4 sqrt(e)`. A run of ten seeds may lack most kinds; one of a hundred has nearly all of them, or says which not. And a
//! fault that was made often must have been seen to do something.

use std::collections::BTreeMap;

/// Between two faults, in the middle, milliseconds.
const FAULT_EVERY_MILLIS: u64 = 1350;
/// How many of a thousand faults are of a kind; of some fewer than are drawn, for they have to wait until disks are whole.
const KINDS: [(&str, u64); 18] = [
    ("kill", 80),
    ("kill all", 45),
    ("stop", 60),
    ("power loss", 60),
    ("power loss everywhere", 12),
    ("EIO of a sync", 10),
    ("EIO of a write", 60),
    ("EIO of reads", 45),
    ("EIO of an open", 15),
    ("slow disk", 45),
    ("disk full", 25),
    ("partition", 80),
    ("connections break", 45),
    ("store fails", 18),
    ("catalog fails", 18),
    ("leader transfer", 45),
    ("clock drifts", 35),
    ("clock jumps", 35),
];
/// What faults of some kinds do, at least so many times for a hundred of them.
const EFFECTS: [(&[&str], &str, u64); 16] = [
    (&["kill", "kill all"], "processes ended", 50),
    (&["stop"], "orderly stops", 30),
    (&["power loss", "power loss everywhere"], "power failed", 50),
    (&["power loss", "power loss everywhere"], "power losses that took bytes", 5),
    (&["EIO of a sync"], "failed syncs", 20),
    (&["EIO of a write"], "failed changes", 20),
    (&["EIO of reads"], "failed reads", 5),
    (&["EIO of an open"], "failed opens", 20),
    (&["slow disk"], "slow syncs", 50),
    (&["disk full"], "disks short of room", 5),
    (&["partition"], "chunks held", 100),
    (&["connections break"], "connections broken", 20),
    (&["leader transfer"], "leaderships given away", 5),
    (&["clock jumps"], "clocks set", 20),
    (&["store fails"], "store fault", 50),
    (&["catalog fails"], "catalog fault", 50),
];
/// Faults of which fewer were made need not have done anything.
const FAULTS_MIN: u64 = 20;
/// Rows that all clients of a seed have acknowledged in a second: a quarter of what is usual.
const ROWS_A_SECOND: u64 = 15;
/// Reads of a seed that is over: one of files alone, and one through each node.
const LAST_READS: u64 = 4;
/// While things go wrong there is a read in so many seconds at most; half of what is usual.
const READ_EVERY_SECONDS: u64 = 3;

/// What all simulations of a run came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sums<'a> {
    pub(crate) seeds: u64,
    /// How long things went wrong in each.
    pub(crate) seconds: u64,
    pub(crate) acknowledged: u64,
    pub(crate) faults: &'a BTreeMap<String, u64>,
    pub(crate) counts: &'a BTreeMap<String, u64>,
}

/// What there was too little of, in words.
pub(crate) fn missing(sums: &Sums<'_>) -> Vec<String> {
    let Sums { seeds, seconds, acknowledged, faults, counts } = *sums;
    let of = |counts: &BTreeMap<String, u64>, what: &str| counts.get(what).copied().unwrap_or(0);
    let mut wanted = vec![
        ("rows acknowledged", acknowledged, seeds * seconds * ROWS_A_SECOND),
        ("reads", of(counts, "reads"), seeds * (LAST_READS + seconds / READ_EVERY_SECONDS)),
        // The last read follows a flush.
        ("commits", of(counts, "commits"), seeds),
    ];
    let all = seeds * seconds.saturating_sub(1) * 1000 / FAULT_EVERY_MILLIS;
    wanted.extend(KINDS.iter().map(|(kind, share)| (*kind, of(faults, kind), least(all * share / 1000))));
    for (kinds, effect, percent) in &EFFECTS {
        let made: u64 = kinds.iter().map(|kind| of(faults, kind)).sum();
        if made >= FAULTS_MIN {
            wanted.push((*effect, of(counts, effect), made * percent / 100));
        }
    }
    let short = wanted.into_iter().filter(|(_, found, least)| found < least);
    short.map(|(what, found, least)| format!("{what}: {found}, and not {least} or more")).collect()
}

/// So many there are all but certainly of what is expected so many times.
fn least(expected: u64) -> u64 {
    expected.saturating_sub(4 * expected.isqrt() + 4)
}
