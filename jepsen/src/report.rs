//! What a run did, for people: faults by kind, what clients got, and how long nobody could write.

use crate::checker::{Findings, Verdict};
use crate::fault::{ALL, Fault};
use crate::history::{Kind, Operation, Outcome};
use crate::nemesis::Strike;
use crate::workload::Tenants;

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

/// What clients did and got, over all rounds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    adds: [usize; 3],
    reads: [usize; 2],
    finals: usize,
    longest_gap: Option<Gap>,
}

impl Counts {
    /// Takes a round to the others. `strikes` are those of the whole run.
    pub(crate) fn add(&mut self, operations: &[Operation], tenants: Tenants, strikes: &[Strike]) {
        for one in operations {
            match (&one.kind, one.outcome) {
                (Kind::Add(_) | Kind::Write(_), Outcome::Ok) => self.adds[0] += 1,
                (Kind::Add(_) | Kind::Write(_), Outcome::Fail) => self.adds[1] += 1,
                (Kind::Add(_) | Kind::Write(_), Outcome::Info) => self.adds[2] += 1,
                (Kind::Read(_) | Kind::Query(_), Outcome::Ok) => self.reads[0] += 1,
                (Kind::Read(_) | Kind::Query(_), _) => self.reads[1] += 1,
                (Kind::Final(_) | Kind::Audit(_), _) => self.finals += 1,
            }
        }
        let gaps = tenants.into_iter().filter_map(|tenant| longest_gap(operations, tenant, strikes));
        self.longest_gap = gaps.chain(self.longest_gap).max_by_key(length);
    }
}

/// What a report is about.
pub(crate) struct Report<'a> {
    pub(crate) strikes: &'a [Strike],
    /// Faults that this machine cannot make.
    pub(crate) skipped: &'a [Fault],
    pub(crate) counts: &'a Counts,
    pub(crate) findings: &'a Findings,
    /// Power losses of all nodes.
    pub(crate) blackouts: usize,
    /// How often a node ended that had a reason to.
    pub(crate) excused_deaths: u64,
    /// Accounts of nodes that were looked at.
    pub(crate) samples: u64,
    /// Faults came one at a time.
    pub(crate) one_at_a_time: bool,
    pub(crate) verdict: &'a Verdict,
}

/// Faults that had an effect.
pub(crate) fn effective(strikes: &[Strike]) -> u64 {
    strikes.iter().map(|strike| u64::from(strike.effective)).sum()
}

/// One fault, as a line.
pub(crate) fn line(strike: &Strike) -> String {
    let seconds = |at: u64| at as f64 / 1e9;
    let (begun, ended) = (seconds(strike.begun), seconds(strike.ended));
    let effect = if strike.effective { "effective" } else { "no effect" };
    let fault = format!("{:?}", strike.fault);
    format!("{begun:>8.1} s {ended:>8.1} s  {effect}  {fault:<22}{}", strike.detail).trim_end().to_owned()
}

impl Report<'_> {
    pub(crate) fn print(&self) {
        println!("fault                  struck  effective");
        for (fault, struck, effective) in by_kind(self.strikes) {
            let name = format!("{fault:?}");
            println!("{name:<22}{struck:>7}{effective:>11}");
        }
        for fault in self.skipped {
            println!("{:<22}{:>18}", format!("{fault:?}"), "not possible here");
        }
        let Counts { adds, reads, finals, longest_gap } = self.counts;
        println!(
            "adds: {} acknowledged, {} refused, {} unknown; strong reads: {} answered, {} refused; {finals} final; {} \
             faults with effect; {} samples of node state",
            adds[0],
            adds[1],
            adds[2],
            reads[0],
            reads[1],
            effective(self.strikes),
            self.samples
        );
        if self.blackouts > 0 {
            let legal = self.findings.legal;
            println!(
                "lost as a power loss of all nodes may have it: {} acknowledged at quorum, the oldest {:.3} s before; \
                 of those at quorum-fsync none may be",
                legal.lost,
                legal.oldest as f64 / 1e9
            );
        }
        if self.excused_deaths > 0 {
            println!("nodes ended by themselves {} times, with damaged bytes or a full disk", self.excused_deaths);
        }
        if let Some(gap) = longest_gap.filter(|_| self.one_at_a_time) {
            let during = self.strikes.iter().filter(|strike| gap.meets(strike));
            let during: Vec<String> = during.map(|strike| format!("{:?}", strike.fault)).collect();
            println!(
                "longest time without an acknowledgment for a tenant while most nodes reached each other: {:.2} s, {:.0} s \
                 into the run, faults then: [{}]",
                length(&gap) as f64 / 1e9,
                gap.begun as f64 / 1e9,
                during.join(", ")
            );
        }
        match self.verdict {
            Verdict::Valid => println!("verdict: valid"),
            Verdict::Invalid(violations) => println!("{}\nverdict: invalid", violations.join("\n")),
            Verdict::Unknown(why) => println!("{why}\nverdict: unknown"),
        }
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
        Strike { fault, begun, ended, effective, detail: String::new(), left: None }
    }

    fn add(ended: u64, outcome: Outcome, tenant: &'static str) -> Operation {
        let (asked, given, kind) = (None, None, Kind::Add(Vec::new()));
        Operation { process: 0, node: 1, tenant, invoked: ended, ended, outcome, asked, given, position: None, kind }
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
    #[test]
    fn rounds_are_counted_together() {
        let mut counts = Counts::default();
        let read = Operation { kind: Kind::Read(Vec::new()), ..add(15, Outcome::Ok, "a") };
        counts.add(&[add(10, Outcome::Ok, "a"), add(14, Outcome::Ok, "a"), read], ["a", "b"], &[]);
        counts.add(&[add(50, Outcome::Ok, "b-1"), add(70, Outcome::Ok, "b-1")], ["a-1", "b-1"], &[]);
        counts.add(&[add(80, Outcome::Info, "a-2"), add(81, Outcome::Fail, "a-2")], ["a-2", "b-2"], &[]);
        let longest_gap = Some(Gap { begun: 50, ended: 70 });
        assert_eq!(counts, Counts { adds: [4, 1, 1], reads: [1, 0], finals: 0, longest_gap });
    }

    #[test]
    fn a_line_says_when_what_and_whether_it_did_anything() {
        let detail = "node 2".to_owned();
        let one = Strike { detail, ..strike(Fault::PowerLoss, 1_500_000_000, 12_000_000_000, false) };
        assert_eq!(line(&one), format!("     1.5 s     12.0 s  no effect  {:<22}node 2", "PowerLoss"));
    }
}
