//! What a run did, for people: faults by kind, what clients got, and how long nobody could write.

use serde_json::{Value, json};

use crate::about::About;
use crate::checker::Findings;
use crate::checker::availability::Costs;
use crate::fault::{ALL, Fault};
use crate::history::{Kind, Operation, Outcome};
use crate::leaders::Reign;
use crate::nemesis::Strike;
use crate::store;
use crate::timeline::Timeline;
use crate::verdict::{self, LeftOut, Verdict};
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

/// Everything that a run has to say.
pub(crate) struct Report<'a> {
    pub(crate) about: &'a About,
    /// How long it took, nanoseconds.
    pub(crate) until: u64,
    pub(crate) verdicts: &'a [Verdict],
    pub(crate) left_out: &'a [LeftOut],
    pub(crate) strikes: &'a [Strike],
    pub(crate) timeline: &'a Timeline,
    pub(crate) reigns: &'a [Reign],
    pub(crate) counts: &'a Counts,
    /// What each kind of fault cost those who write.
    pub(crate) costs: &'a [Costs],
    pub(crate) findings: &'a Findings,
    /// Power losses of all nodes.
    pub(crate) blackouts: usize,
    /// How often a node ended that had a reason to.
    pub(crate) excused_deaths: u64,
    /// Accounts of nodes that were looked at.
    pub(crate) samples: u64,
    /// Faults came one at a time.
    pub(crate) one_at_a_time: bool,
}

/// A number for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Figure {
    pub(crate) value: String,
    pub(crate) what: String,
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
    pub(crate) fn valid(&self) -> Option<bool> {
        verdict::overall(self.verdicts)
    }

    /// Acknowledged writes and answered reads a second, from the beginning of the run to its last operation.
    fn rate(&self) -> f64 {
        let totals = self.timeline.totals();
        let done = f64::from(totals.acknowledged) + f64::from(totals.reads);
        done / (self.until.max(1) as f64 / 1e9)
    }

    /// Faults an hour, and how many kinds of them had an effect.
    fn faults(&self) -> (f64, usize) {
        let an_hour = self.strikes.len() as f64 * 3600.0 / (self.until.max(1) as f64 / 1e9);
        let kinds = by_kind(self.strikes).into_iter().filter(|(_, _, effective)| *effective > 0).count();
        (an_hour, kinds)
    }

    /// The longest time without an acknowledgment, where it says something: of faults that come one at a time.
    fn gap(&self) -> Option<Gap> {
        self.counts.longest_gap.filter(|_| self.one_at_a_time)
    }

    /// The run in a few numbers.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let figure = |value: String, what: &str| Figure { value, what: what.to_owned() };
        let totals = self.timeline.totals();
        let (an_hour, kinds) = self.faults();
        let milliseconds =
            |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.0} ms"));
        let mut figures = vec![
            figure(thousands(totals.acknowledged), "acknowledged writes"),
            figure(thousands(totals.reads), "reads answered"),
            figure(format!("{:.0}", self.rate()), "operations a second, under faults"),
            figure(format!("{} of {}", effective(self.strikes), self.strikes.len()), "faults had an effect"),
            figure(kinds.to_string(), "kinds of faults with effect"),
            figure(format!("{an_hour:.0}"), "faults an hour"),
            figure(milliseconds(totals.p50_ms), "median of acknowledgments"),
            figure(milliseconds(totals.p99_ms), "99th percentile"),
        ];
        if let Some(gap) = self.gap() {
            let seconds = format!("{:.1} s", length(&gap) as f64 / 1e9);
            figures.push(figure(seconds, "longest time without an acknowledgment while most nodes reached each other"));
        }
        figures
    }

    /// The run for programs, in the format of docs/consistency.md.
    pub(crate) fn json(&self) -> Value {
        let totals = self.timeline.totals();
        let (an_hour, kinds) = self.faults();
        let seconds = |at: u64| at as f64 / 1e9;
        let legal = self.findings.legal;
        let by_kind = by_kind(self.strikes)
            .into_iter()
            .map(|(fault, struck, effective)| json!({"fault": fault, "struck": struck, "effective": effective}));
        let valid = self.valid().map_or_else(|| json!("unknown"), Value::from);
        json!({
            "format": store::FORMAT,
            "valid": valid,
            "run": self.about,
            "verdicts": self.verdicts,
            "left_out": self.left_out,
            "figures": {
                "seconds": seconds(self.until),
                "operations": totals,
                "operations_a_second": self.rate(),
                "faults": self.strikes.len(),
                "faults_effective": effective(self.strikes),
                "faults_an_hour": an_hour,
                "kinds_effective": kinds,
                "longest_gap_seconds": self.gap().map(|gap| seconds(length(&gap))),
                "legally_lost": {"count": legal.lost, "oldest_seconds": seconds(legal.oldest)},
                "blackouts": self.blackouts,
                "excused_ends": self.excused_deaths,
                "samples": self.samples,
            },
            "by_kind": by_kind.collect::<Vec<_>>(),
            "costs": self.costs,
        })
    }

    pub(crate) fn print(&self) {
        println!("fault                  struck  effective");
        for (fault, struck, effective) in by_kind(self.strikes) {
            let name = format!("{fault:?}");
            println!("{name:<22}{struck:>7}{effective:>11}");
        }
        let Counts { adds, reads, finals, .. } = self.counts;
        println!(
            "adds: {} acknowledged, {} refused, {} unknown; reads: {} answered, {} refused; {finals} final; {} \
             faults with effect; {} samples of node state",
            adds[0],
            adds[1],
            adds[2],
            reads[0],
            reads[1],
            effective(self.strikes),
            self.samples
        );
        let (an_hour, kinds) = self.faults();
        println!("{:.0} operations a second; {an_hour:.0} faults an hour, {kinds} kinds with effect", self.rate());
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
        if let Some(gap) = self.gap() {
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
        println!(
            "{:<22}{:>7}{:>13}{:>13}{:>13}",
            "seconds to write again", "faults", "longest gap", "median", "longest"
        );
        self.costs.iter().for_each(|costs| println!("{}", costs.line()));
        for one in self.left_out {
            println!("left out: {}: {}", one.what, one.why);
        }
        for one in self.verdicts {
            println!("{:<22}{}: {}", one.checker, verdict::word(one.valid), one.detail);
            one.anomalies.iter().for_each(|anomaly| println!("  {anomaly}"));
        }
        println!("verdict: {}", verdict::word(self.valid()));
    }
}

/// Faults that were made, how often, and how often with effect.
pub(crate) fn by_kind(strikes: &[Strike]) -> Vec<(Fault, usize, usize)> {
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

/// With a thin space between thousands.
fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    out
}

/// A small run, for tests of what is made of one.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    #[derive(Debug)]
    pub(crate) struct Run {
        pub(crate) about: About,
        pub(crate) verdicts: Vec<Verdict>,
        pub(crate) left_out: Vec<LeftOut>,
        pub(crate) strikes: Vec<Strike>,
        timeline: Timeline,
        counts: Counts,
        findings: Findings,
    }

    impl Run {
        /// One write and one kill within two seconds.
        pub(crate) fn new() -> Self {
            let text = |text: &str| text.to_owned();
            let about = About {
                started: text("2026-01-31 12:00:00 UTC"),
                scenario: text("default"),
                what: text("kills"),
                seed: 7,
                seconds: 2,
                catalog: text("sqlite"),
                store: text("local files"),
                version: text("signaldb 0.1.0"),
                commit: text("79e22c2"),
                machine: text("2 cores"),
                command: text("signaldb-jepsen"),
                again: text("make jepsen"),
            };
            let (begun, ended, detail) = (500_000_000, 1_500_000_000, String::new());
            let strike = Strike { fault: Fault::KillLeader, begun, ended, effective: true, detail, left: None };
            let add = crate::timeline::testing::add(begun, 1_000_000, Outcome::Ok);
            let (mut timeline, mut counts) = (Timeline::default(), Counts::default());
            timeline.add(std::slice::from_ref(&add));
            counts.add(&[add], ["a", "b"], &[]);
            let verdicts = vec![Verdict::valid("ingest", "all there")];
            let (left_out, strikes, findings) = (Vec::new(), vec![strike], Findings::default());
            Self { about, verdicts, left_out, strikes, timeline, counts, findings }
        }

        pub(crate) fn report(&self) -> Report<'_> {
            Report {
                about: &self.about,
                until: 2_000_000_000,
                verdicts: &self.verdicts,
                left_out: &self.left_out,
                strikes: &self.strikes,
                timeline: &self.timeline,
                reigns: &[Reign { group: 1, term: 1, node: 2, first: 0, last: 1_000_000_000 }],
                counts: &self.counts,
                costs: &[],
                findings: &self.findings,
                blackouts: 0,
                excused_deaths: 0,
                samples: 10,
                one_at_a_time: true,
            }
        }
    }
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
    fn programs_get_the_verdict_the_figures_and_what_was_left_out() {
        let mut run = testing::Run::new();
        run.left_out = vec![LeftOut::checker("flush-audit", "no Python")];
        let valid = run.report().json();
        assert_eq!((&valid["format"], &valid["valid"]), (&json!(1), &json!(true)), "what is not run is no failure");
        assert_eq!(valid["run"]["seed"], 7);
        assert_eq!(valid["left_out"][0]["what"], "flush-audit");
        assert_eq!(valid["figures"]["operations"]["acknowledged"], 1);
        assert_eq!(valid["figures"]["faults_an_hour"], 1800.0);
        assert_eq!(valid["by_kind"], json!([{"fault": "kill-leader", "struck": 1, "effective": 1}]));
        run.verdicts.push(Verdict::unknown("log", "too little"));
        assert_eq!(run.report().json()["valid"], "unknown");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let grouped = [0, 999, 1000, 56_962, 1_234_567].map(|number| thousands(number).replace('\u{2009}', "_"));
        assert_eq!(grouped, ["0", "999", "1_000", "56_962", "1_234_567"]);
    }

    #[test]
    fn a_line_says_when_what_and_whether_it_did_anything() {
        let detail = "node 2".to_owned();
        let one = Strike { detail, ..strike(Fault::PowerLoss, 1_500_000_000, 12_000_000_000, false) };
        assert_eq!(line(&one), format!("     1.5 s     12.0 s  no effect  {:<22}node 2", "PowerLoss"));
    }
}
