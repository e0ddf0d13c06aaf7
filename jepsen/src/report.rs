//! What a run did, for people: faults by kind, what clients got, and how long nobody could write.

use crate::checker::Verdict;
use crate::history::{Kind, Operation, Outcome};
use crate::invariants::Invariants;
use crate::nemesis::{ALL, Fault, Strike};
use crate::workload::TENANTS;

/// Time between two acknowledgments that follow each other, nanoseconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    begun: u64,
    ended: u64,
}

impl Gap {
    fn meets(&self, strike: &Strike) -> bool {
        self.begun < strike.ended && strike.begun < self.ended
    }
}

/// Faults that had an effect.
pub(crate) fn effective(strikes: &[Strike]) -> u64 {
    strikes.iter().map(|strike| u64::from(strike.effective)).sum()
}

pub(crate) fn print(operations: &[Operation], strikes: &[Strike], invariants: &Invariants, verdict: &Verdict) {
    println!("fault                  struck  effective");
    for (fault, struck, effective) in by_kind(strikes) {
        let name = format!("{fault:?}");
        println!("{name:<22}{struck:>7}{effective:>11}");
    }
    let count = |kind: fn(&Kind) -> bool, outcome| {
        operations.iter().filter(|one| kind(&one.kind) && one.outcome == outcome).count()
    };
    let adds = |outcome| count(|kind| matches!(kind, Kind::Add(_)), outcome);
    let reads = |outcome| count(|kind| matches!(kind, Kind::Read(_)), outcome);
    println!(
        "adds: {} acknowledged, {} refused, {} unknown; strong reads: {} answered, {} refused; {} final; {} faults with \
         effect; {} samples of node state",
        adds(Outcome::Ok),
        adds(Outcome::Fail),
        adds(Outcome::Info),
        reads(Outcome::Ok),
        reads(Outcome::Fail),
        count(|kind| matches!(kind, Kind::Final(_)), Outcome::Ok),
        effective(strikes),
        invariants.samples()
    );
    if let Some(gap) = TENANTS.iter().filter_map(|tenant| longest_gap(operations, tenant, strikes)).max_by_key(length) {
        let during: Vec<String> =
            strikes.iter().filter(|strike| gap.meets(strike)).map(|strike| format!("{:?}", strike.fault)).collect();
        println!(
            "longest time without an acknowledgment for a tenant while most nodes reached each other: {:.2} s, {:.0} s into \
             the run, faults then: [{}]",
            length(&gap) as f64 / 1e9,
            gap.begun as f64 / 1e9,
            during.join(", ")
        );
    }
    match verdict {
        Verdict::Valid => println!("verdict: valid"),
        Verdict::Invalid(violations) => println!("{}\nverdict: invalid", violations.join("\n")),
        Verdict::Unknown(why) => println!("{why}\nverdict: unknown"),
    }
}

/// Faults that were made, how often, and how often with effect.
fn by_kind(strikes: &[Strike]) -> Vec<(Fault, usize, usize)> {
    let of = |fault: Fault| strikes.iter().filter(move |strike| strike.fault == fault);
    let counted =
        ALL.into_iter().map(|fault| (fault, of(fault).count(), of(fault).filter(|one| one.effective).count()));
    counted.filter(|(_, struck, _)| *struck > 0).collect()
}

/// The longest gap of a tenant, those left out that meet a fault which takes the majority away.
fn longest_gap(operations: &[Operation], tenant: &str, strikes: &[Strike]) -> Option<Gap> {
    let mut acknowledged: Vec<u64> = operations
        .iter()
        .filter(|one| one.tenant == tenant && one.outcome == Outcome::Ok && matches!(one.kind, Kind::Add(_)))
        .map(|one| one.ended)
        .collect();
    acknowledged.sort_unstable();
    let gaps = acknowledged.windows(2).map(|pair| Gap { begun: pair[0], ended: pair[1] });
    let outages: Vec<&Strike> = strikes.iter().filter(|strike| !strike.fault.leaves_majority()).collect();
    gaps.filter(|gap| !outages.iter().any(|outage| gap.meets(outage))).max_by_key(length)
}

fn length(gap: &Gap) -> u64 {
    gap.ended - gap.begun
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strike(fault: Fault, begun: u64, ended: u64, effective: bool) -> Strike {
        Strike { fault, begun, ended, effective }
    }

    fn add(ended: u64, outcome: Outcome, tenant: &'static str) -> Operation {
        Operation { process: 0, node: 1, tenant, invoked: ended, ended, outcome, kind: Kind::Add(Vec::new()) }
    }

    #[test]
    fn faults_are_counted_by_kind() {
        let strikes = [
            strike(Fault::Kill, 0, 1, true),
            strike(Fault::KillLeader, 2, 3, true),
            strike(Fault::Kill, 4, 5, false),
            strike(Fault::Slow, 6, 7, false),
        ];
        assert_eq!(by_kind(&strikes), [(Fault::KillLeader, 1, 1), (Fault::Kill, 2, 1), (Fault::Slow, 1, 0)]);
        assert_eq!(effective(&strikes), 2);
    }

    #[test]
    fn the_longest_gap_is_one_tenants_and_only_of_acknowledgments() {
        // Not in the order of their ends, as a history is in that of their beginnings.
        let operations = [
            add(10, Outcome::Ok, "a"),
            add(90, Outcome::Ok, "a"),
            add(30, Outcome::Ok, "a"),
            add(60, Outcome::Info, "a"),
            add(70, Outcome::Ok, "b"),
        ];
        assert_eq!(longest_gap(&operations, "a", &[]), Some(Gap { begun: 30, ended: 90 }));
        assert_eq!(longest_gap(&operations, "b", &[]), None);
    }

    #[test]
    fn gaps_without_a_majority_do_not_count() {
        let operations = [10, 30, 90, 100, 140].map(|ended| add(ended, Outcome::Ok, "a"));
        let largest = |strikes: &[Strike]| longest_gap(&operations, "a", strikes).map(|gap| (gap.begun, gap.ended));
        assert_eq!(largest(&[strike(Fault::KillLeader, 40, 50, true)]), Some((30, 90)));
        assert_eq!(largest(&[strike(Fault::KillAll, 40, 50, true)]), Some((100, 140)));
        assert_eq!(largest(&[strike(Fault::Reset, 20, 120, true)]), None, "all gaps meet it");
    }
}
