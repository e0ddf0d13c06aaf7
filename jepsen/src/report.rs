//! What a run did, for people and programs: faults by kind, what clients got, how long nobody could write, and the figures
//! ([`crate::figures`]).

use serde_json::{Value, json};

use crate::about::About;
use crate::checker::availability::{Availability, Costs};
use crate::checker::{Broken, Findings};
use crate::fault::{ALL, Fault};
use crate::figures::{self, Figure, Goal};
use crate::history::{Kind, Operation, Outcome};
use crate::leaders::Reign;
use crate::nemesis::Strike;
use crate::span::union;
use crate::store;
use crate::timeline::Timeline;
use crate::verdict::{self, LeftOut, Verdict};

/// What clients did and got, over all rounds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    adds: [usize; 3],
    reads: [usize; 2],
    finals: usize,
    /// Requests of rows whose acknowledgment came while a fault was there.
    during_faults: u64,
}

impl Counts {
    /// Takes a round to the others. `strikes` are those of the whole run.
    pub(crate) fn add(&mut self, operations: &[Operation], strikes: &[Strike]) {
        let faults = union(strikes.iter().map(Strike::span));
        let is_faulty = |at: u64| {
            let later = faults.partition_point(|span| span.begun <= at);
            later > 0 && at < faults[later - 1].ended
        };
        for one in operations {
            match (&one.kind, one.outcome) {
                (Kind::Add(_) | Kind::Write(_), Outcome::Ok) => {
                    self.adds[0] += 1;
                    self.during_faults += u64::from(is_faulty(one.ended));
                }
                (Kind::Add(_) | Kind::Write(_), Outcome::Fail) => self.adds[1] += 1,
                (Kind::Add(_) | Kind::Write(_), Outcome::Info) => self.adds[2] += 1,
                (Kind::Read(_) | Kind::Query(_), Outcome::Ok) => self.reads[0] += 1,
                (Kind::Read(_) | Kind::Query(_), _) => self.reads[1] += 1,
                (Kind::Final(_) | Kind::Audit(_), _) => self.finals += 1,
            }
        }
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
    pub(crate) availability: &'a Availability,
    pub(crate) findings: &'a Findings,
    pub(crate) broken: Broken,
    /// Power losses of all nodes.
    pub(crate) blackouts: usize,
    /// How often a node ended that had a reason to.
    pub(crate) excused_deaths: u64,
    /// Accounts of nodes that were looked at.
    pub(crate) samples: u64,
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

    /// Acknowledged requests a second, of the time in which a fault was there; `None` without any.
    pub(crate) fn rate_during_faults(&self) -> Option<f64> {
        let faults: u64 = union(self.strikes.iter().map(Strike::span)).into_iter().map(|span| span.length()).sum();
        (faults > 0).then(|| self.counts.during_faults as f64 / (faults as f64 / 1e9))
    }

    /// Of the whole time of the run, an hour of it.
    fn an_hour(&self, faults: f64) -> f64 {
        faults * 3600.0 / (self.until.max(1) as f64 / 1e9)
    }

    /// Faults that had an effect, an hour.
    pub(crate) fn effective_an_hour(&self) -> f64 {
        self.an_hour(effective(self.strikes) as f64)
    }

    /// How many kinds of faults had an effect.
    pub(crate) fn kinds(&self) -> usize {
        by_kind(self.strikes).into_iter().filter(|(_, _, effective)| *effective > 0).count()
    }

    /// The run in a few numbers.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let figure = |value: String, what: &str| Figure { value, what: what.to_owned(), target: None };
        let totals = self.timeline.totals();
        let milliseconds =
            |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.0} ms"));
        let recovery = self.availability.recovery();
        let seconds = |nanos: u64| format!("{:.1} s", nanos as f64 / 1e9);
        let goals = figures::goals(self);
        let more = [
            figure(thousands(totals.acknowledged), "acknowledged writes"),
            figure(thousands(totals.reads), "reads answered"),
            figure(format!("{} of {}", effective(self.strikes), self.strikes.len()), "faults had an effect"),
            figure(milliseconds(totals.p50_ms), "median of acknowledgments"),
            figure(milliseconds(totals.p99_ms), "99th percentile"),
            figure(seconds(recovery.median), "after a fault until every tenant wrote again, median"),
            figure(seconds(recovery.longest), "and the longest"),
        ];
        goals.iter().map(Goal::figure).chain(more).collect()
    }

    /// The run for programs, in the format of docs/consistency.md.
    pub(crate) fn json(&self) -> Value {
        let totals = self.timeline.totals();
        let seconds = |at: u64| at as f64 / 1e9;
        let (longest, recovery) = (self.availability.longest(), self.availability.recovery());
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
                "faults_an_hour": self.an_hour(self.strikes.len() as f64),
                "faults_effective_an_hour": self.effective_an_hour(),
                "kinds_effective": self.kinds(),
                "acknowledged_a_second_during_faults": self.rate_during_faults(),
                "longest_gap_seconds": longest.map(|gap| seconds(gap.span.length())),
                "longest_gap": longest.map(|gap| {
                    json!({"tenant": gap.tenant, "begun": seconds(gap.span.begun), "faults": gap.faults})
                }),
                "recovery": {
                    "median_seconds": seconds(recovery.median),
                    "longest_seconds": seconds(recovery.longest),
                    "never": recovery.never,
                },
                "lost": self.broken.lost,
                "doubled": self.broken.doubled,
                "stale": self.broken.stale,
                "legally_lost": {"count": legal.lost, "oldest_seconds": seconds(legal.oldest)},
                "blackouts": self.blackouts,
                "excused_ends": self.excused_deaths,
                "samples": self.samples,
            },
            "targets": figures::goals(self).iter().map(Goal::json).collect::<Vec<_>>(),
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
        let recovery = self.availability.recovery();
        println!(
            "seconds from the end of a fault until every tenant wrote again: median {:.2}, longest {:.2}; never after {} faults",
            recovery.median as f64 / 1e9,
            recovery.longest as f64 / 1e9,
            recovery.never
        );
        println!(
            "figures (a miss is no broken promise; an operation is one request of a client that was acknowledged):"
        );
        figures::goals(self).iter().for_each(|goal| println!("  {}", goal.line()));
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
        pub(crate) availability: Availability,
        findings: Findings,
        pub(crate) broken: Broken,
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
                network: text("relays"),
                version: text("signaldb 0.1.0"),
                commit: text("79e22c2"),
                machine: text("2 cores"),
                command: text("signaldb-jepsen"),
                again: text("make jepsen"),
            };
            let (begun, ended, detail) = (500_000_000, 1_500_000_000, String::new());
            let (fault, node, effective, left) = (Fault::KillLeader, Some(1), true, None);
            let strike = Strike { fault, node, begun, ended, effective, detail, left };
            let add = crate::timeline::testing::add(begun, 1_000_000, Outcome::Ok);
            let (mut timeline, mut counts) = (Timeline::default(), Counts::default());
            timeline.add(std::slice::from_ref(&add));
            counts.add(std::slice::from_ref(&add), std::slice::from_ref(&strike));
            let mut availability = Availability::default();
            availability.add(&[add], ["a", "b"], std::slice::from_ref(&strike), &[]);
            let verdicts = vec![Verdict::valid("ingest", "all there")];
            let (left_out, strikes, findings) = (Vec::new(), vec![strike], Findings::default());
            let broken = Broken::default();
            Self { about, verdicts, left_out, strikes, timeline, counts, availability, findings, broken }
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
                availability: &self.availability,
                findings: &self.findings,
                broken: self.broken,
                blackouts: 0,
                excused_deaths: 0,
                samples: 10,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strike(fault: Fault, begun: u64, ended: u64, effective: bool) -> Strike {
        Strike { fault, node: Some(0), begun, ended, effective, detail: String::new(), left: None }
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
    fn rounds_are_counted_together_and_what_was_acknowledged_during_faults_apart() {
        let mut counts = Counts::default();
        let read = Operation { kind: Kind::Read(Vec::new()), ..add(15, Outcome::Ok, "a") };
        let faults = [strike(Fault::Kill, 14, 20, true), strike(Fault::Pause, 18, 51, false)];
        counts.add(&[add(10, Outcome::Ok, "a"), add(14, Outcome::Ok, "a"), read], &faults);
        counts.add(&[add(50, Outcome::Ok, "b-1"), add(51, Outcome::Ok, "b-1")], &faults);
        counts.add(&[add(30, Outcome::Info, "a-2"), add(31, Outcome::Fail, "a-2")], &faults);
        assert_eq!(counts, Counts { adds: [4, 1, 1], reads: [1, 0], finals: 0, during_faults: 2 });
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
        assert_eq!(valid["figures"]["acknowledged_a_second_during_faults"], 1.0, "one in one second of faults");
        assert_eq!(valid["targets"][0]["figure"], "acknowledged_a_second_during_faults");
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
