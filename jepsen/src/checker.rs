//! Whether histories are such as SignalDB may produce. Each checker is a pure function of a history.
//!
//! | checker | looks at | what it is after |
//! |---|---|---|
//! | [`set`] (`set-full`) | spans and whole reads of `ingest` | lost, doubled, stale, foreign elements |
//! | [`positions`] | every acknowledgment | positions that are shared, change, or do not follow real time |
//! | [`entries`] | the nodes' logs, entry by entry | indexes between acknowledged ones that nobody can account for |
//! | [`log`] | requests and reads of `log` | lost, doubled, torn, reordered rows; reads behind their position |
//! | [`register`] | requests and reads of `register` | reads that are not linearizable |
//! | [`isolation`] | the same rows of several tenants and datasets | rows that another one sees, or swallows |
//! | [`flush`] (`flush-audit`) | tables through PyIceberg | rows, files and watermarks |
//! | [`crate::invariants`] (`nodes`) | what nodes say of themselves | impossible accounts |
//! | [`availability`] | acknowledgments and faults | long times without one while most nodes reach each other ([`majority`]) |
//!
//! What is said of one history is added to what is said of others ([`Checks`]), and judged together ([`judge`]). No
//! checker passes for valid on too little: that is unknown.

pub(crate) mod availability;
pub(crate) mod entries;
mod flush;
mod isolation;
mod keyed;
mod log;
pub(crate) mod majority;
mod positions;
mod register;
mod request;
mod set;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;

use crate::history::Operation;
use crate::scenario::Workload;
use crate::verdict::Verdict;

pub(crate) use set::{Findings, examine};

/// How long before a power loss of all nodes something may have been committed and still be lost, nanoseconds. Data is
/// synced every 50 ms; a group whose syncs are a second behind no longer acknowledges before them, and it looks four
/// times a second.
const FLUSH_WINDOW: u64 = 1_500_000_000;

/// What a checker must have seen, and how often.
type Needed = (&'static str, u64);

/// Checkers beside `set-full`, the workload that they need to have something to look at, and how much of it.
static NEEDED: [(&str, Option<Workload>, &[Needed]); 5] = [
    ("positions", None, &[("acknowledged", 100)]),
    ("log", Some(Workload::Log), &[("acknowledged", 100), ("strong reads", 20), ("reads of a position", 5)]),
    ("register", Some(Workload::Register), &[("acknowledged", 100), ("strong reads", 20), ("reads of a position", 5)]),
    ("isolation", Some(Workload::Isolation), &[("acknowledged", 100), ("strong reads", 20), ("trespasses", 3)]),
    ("flush-audit", None, &[("audits", 1), ("rows", 1), ("files", 1), ("flushes", 1)]),
];

/// Examples that are shown of each kind of anomaly.
const EXAMPLES: usize = 3;

/// A power loss of all nodes: from before the first of them lost it until the first was started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blackout {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

/// Invalid with any anomaly; else what the checker thinks of how much it saw.
pub(crate) fn judge(checker: &'static str, anomalies: &Anomalies, enough: Result<String, String>) -> Verdict {
    match enough {
        Ok(detail) | Err(detail) if !anomalies.is_empty() => Verdict::invalid(checker, detail, anomalies.listed()),
        Ok(detail) => Verdict::valid(checker, detail),
        Err(detail) => Verdict::unknown(checker, detail),
    }
}

/// What must not be, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Anomalies(BTreeMap<&'static str, Vec<String>>);

impl Anomalies {
    pub(crate) fn note(&mut self, kind: &'static str, what: String) {
        self.0.entry(kind).or_default().push(what);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are of some kinds.
    fn count(&self, kinds: &[&str]) -> usize {
        kinds.iter().filter_map(|kind| self.0.get(kind)).map(Vec::len).sum()
    }

    fn extend(&mut self, other: Self) {
        for (kind, found) in other.0 {
            self.0.entry(kind).or_default().extend(found);
        }
    }

    /// Each kind with its number, and the first few of it.
    fn listed(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (kind, found) in &self.0 {
            out.push(format!("{kind}: {} in all", found.len()));
            out.extend(found.iter().take(EXAMPLES).map(|what| format!("  {what}")));
        }
        out
    }

    #[cfg(test)]
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }
}

/// How often what must not be, in the three ways that everybody asks for. The same row may be missed by several checkers, and
/// in several reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Broken {
    pub(crate) lost: usize,
    pub(crate) doubled: usize,
    pub(crate) stale: usize,
}

impl Broken {
    pub(crate) fn of(findings: &Findings, checks: &Checks) -> Self {
        let all = || checks.0.values().map(|found| &found.anomalies).chain([findings.violations()]);
        let count = |kinds: &[&str]| -> usize { all().map(|anomalies| anomalies.count(kinds)).sum() };
        Self {
            lost: count(&["lost", "vanished", "hole", "torn"]),
            doubled: count(&["doubled", "twice", "file twice", "flushed twice"]),
            stale: count(&["stale", "behind", "regressed", "superseded"]),
        }
    }
}

/// What one checker found in one or more histories.
#[derive(Debug, Default)]
struct Found {
    anomalies: Anomalies,
    /// How much of what it saw.
    counts: BTreeMap<&'static str, u64>,
}

impl Found {
    fn count(&mut self, what: &'static str, more: u64) {
        *self.counts.entry(what).or_default() += more;
    }

    /// What was seen; an error when it is less than `needed`.
    fn enough(&self, needed: &[(&'static str, u64)]) -> Result<String, String> {
        let seen = |what: &str| self.counts.get(what).copied().unwrap_or(0);
        if let Some((what, least)) = needed.iter().find(|(what, least)| seen(what) < *least) {
            return Err(format!("{} {what}, {least} are needed", seen(what)));
        }
        let counts: Vec<String> = self.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        Ok(counts.join(", "))
    }
}

/// What all checkers beside `set-full` found in one or more histories.
#[derive(Debug, Default)]
pub(crate) struct Checks(BTreeMap<&'static str, Found>);

impl Checks {
    /// Looks through a history.
    pub(crate) fn of(operations: &[Operation], blackouts: &[Blackout]) -> Self {
        Self(BTreeMap::from([
            ("positions", positions::examine(operations, blackouts)),
            ("log", log::examine(operations, blackouts)),
            ("register", register::examine(operations, blackouts)),
            ("isolation", isolation::examine(operations, blackouts)),
            ("flush-audit", flush::examine(operations, blackouts)),
        ]))
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.0.values().all(|found| found.anomalies.is_empty())
    }

    /// Takes what was found in another history to this.
    pub(crate) fn add(&mut self, other: Self) {
        for (checker, found) in other.0 {
            let all = self.0.entry(checker).or_default();
            all.anomalies.extend(found.anomalies);
            found.counts.into_iter().for_each(|(what, count)| all.count(what, count));
        }
    }

    /// Takes only the anomalies of a history that was judged before, without its last reads.
    pub(crate) fn add_again(&mut self, other: Self) {
        for (checker, found) in other.0 {
            self.0.entry(checker).or_default().anomalies.extend(found.anomalies);
        }
    }

    /// What each checker says that has something to say about these workloads.
    pub(crate) fn judgments(&self, workloads: &[Workload]) -> Vec<Verdict> {
        let none = Found::default();
        let asked = NEEDED.iter().filter(|(_, workload, _)| workload.is_none_or(|one| workloads.contains(&one)));
        let judgments = asked.map(|&(checker, _, needed)| {
            let found = self.0.get(checker).unwrap_or(&none);
            judge(checker, &found.anomalies, found.enough(needed))
        });
        judgments.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anomaly_makes_a_verdict_invalid_however_little_was_seen() {
        let mut anomalies = Anomalies::default();
        let judged = |anomalies: &Anomalies, enough: Result<&str, &str>| {
            judge("log", anomalies, enough.map(str::to_owned).map_err(str::to_owned))
        };
        assert_eq!(judged(&anomalies, Ok("much")), Verdict::valid("log", "much"));
        assert_eq!(judged(&anomalies, Err("few")), Verdict::unknown("log", "few"));
        (0..5).for_each(|n| anomalies.note("lost", format!("at {n} ns")));
        let found = ["lost: 5 in all", "  at 0 ns", "  at 1 ns", "  at 2 ns"].map(str::to_owned).to_vec();
        assert_eq!(judged(&anomalies, Ok("much")), Verdict::invalid("log", "much", found.clone()));
        assert_eq!(judged(&anomalies, Err("few")), Verdict::invalid("log", "few", found));
    }

    #[test]
    fn what_is_lost_doubled_and_stale_is_counted_over_all_checkers() {
        let mut checks = Checks::default();
        for (checker, kind) in [("log", "lost"), ("flush-audit", "lost"), ("flush-audit", "file twice"), ("log", "odd")]
        {
            checks.0.entry(checker).or_default().anomalies.note(kind, "x".to_owned());
        }
        let expected = Broken { lost: 2, doubled: 1, stale: 0 };
        assert_eq!(Broken::of(&Findings::default(), &checks), expected);
    }

    #[test]
    fn checkers_without_their_workload_say_nothing_and_others_need_something_to_look_at() {
        let checkers = |workloads: &[Workload]| {
            let judgments = Checks::default().judgments(workloads);
            assert!(judgments.iter().all(|one| one.valid.is_none()), "{judgments:?}");
            judgments.into_iter().map(|one| one.checker).collect::<Vec<_>>()
        };
        assert_eq!(checkers(&[Workload::Ingest]), ["positions", "flush-audit"]);
        let all = [Workload::Ingest, Workload::Log, Workload::Register, Workload::Isolation];
        assert_eq!(checkers(&all), ["positions", "log", "register", "isolation", "flush-audit"]);
    }

    #[test]
    fn tables_in_which_nothing_was_found_are_too_little() {
        let judged = |counted: &[&'static str]| {
            let mut found = Found::default();
            counted.iter().for_each(|what| found.count(what, 1));
            let judgments = Checks(BTreeMap::from([("flush-audit", found)])).judgments(&[]);
            judgments.into_iter().find(|one| one.checker == "flush-audit").and_then(|one| one.valid)
        };
        assert_eq!(judged(&["audits", "rows", "files", "flushes"]), Some(true));
        assert_eq!(judged(&["audits", "rows", "files"]), None, "no mark of a flush was read");
        assert_eq!(judged(&["audits"]), None);
    }
}
