//! Whether histories are such as SignalDB may produce. Each checker is a pure function of a history.
//!
//! | checker | looks at | what it is after |
//! |---|---|---|
//! | [`set`] (`set-full`) | spans and whole reads of `ingest` | lost, doubled, stale, foreign elements |
//! | [`positions`] | every acknowledgment | positions that are shared, change, or do not follow real time |
//! | [`log`] | requests and reads of `log` | lost, doubled, torn, reordered rows; reads behind their position |
//! | [`register`] | requests and reads of `register` | reads that are not linearizable |
//! | [`isolation`] | the same rows of several tenants and datasets | rows that another one sees, or swallows |
//! | [`flush`] (`flush-audit`) | tables through PyIceberg | rows, files and watermarks |
//! | [`crate::invariants`] (`nodes`) | what nodes say of themselves | impossible accounts |
//! | [`availability`] | acknowledgments and faults | long times without one |
//!
//! What is said of one history is added to what is said of others ([`Checks`]), and judged together ([`Judgment`]). No
//! checker passes for valid on too little: that is unknown.

pub(crate) mod availability;
mod flush;
mod isolation;
mod keyed;
mod log;
mod positions;
mod register;
mod request;
mod set;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::history::Operation;
use crate::scenario::Workload;

pub(crate) use set::{Findings, examine};

/// How long before a power loss of all nodes something may have been committed and still be lost, nanoseconds. Data is
/// synced every 50 ms; a group whose syncs are a second behind no longer acknowledges before them, and it looks four
/// times a second.
const FLUSH_WINDOW: u64 = 1_500_000_000;

/// Checkers beside `set-full`, the workload that they need to have something to look at, and how much of it.
static NEEDED: [(&str, Option<Workload>, &[(&str, u64)]); 5] = [
    ("positions", None, &[("acknowledged", 100)]),
    ("log", Some(Workload::Log), &[("acknowledged", 100), ("strong reads", 20), ("reads of a position", 5)]),
    ("register", Some(Workload::Register), &[("acknowledged", 100), ("strong reads", 20), ("reads of a position", 5)]),
    ("isolation", Some(Workload::Isolation), &[("acknowledged", 100), ("strong reads", 20), ("trespasses", 3)]),
    ("flush-audit", None, &[("audits", 1)]),
];

/// Examples that are shown of each kind of anomaly.
const EXAMPLES: usize = 3;

/// A power loss of all nodes: from before the first of them lost it until the first was started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blackout {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

/// What a run proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Valid,
    /// Each violation, the first few of each kind.
    Invalid(Vec<String>),
    /// Too little happened.
    Unknown(String),
}

/// Whether what a checker saw is as it must be; in JSON `true`, `false` or `"unknown"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Valid {
    True,
    False,
    /// It saw too little.
    Unknown,
}

impl Serialize for Valid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::True => serializer.serialize_bool(true),
            Self::False => serializer.serialize_bool(false),
            Self::Unknown => serializer.serialize_str("unknown"),
        }
    }
}

/// What one checker says of the whole run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Judgment {
    pub(crate) checker: &'static str,
    pub(crate) valid: Valid,
    /// What it looked at, or lacks.
    pub(crate) detail: String,
    pub(crate) anomalies: Vec<Anomaly>,
}

/// All anomalies of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Anomaly {
    pub(crate) kind: &'static str,
    pub(crate) count: usize,
    /// The first few.
    pub(crate) examples: Vec<String>,
}

impl Judgment {
    /// Invalid with any anomaly; else what the checker thinks of how much it saw.
    pub(crate) fn new(checker: &'static str, anomalies: &Anomalies, enough: Result<String, String>) -> Self {
        let (valid, detail) = match enough {
            Ok(detail) => (Valid::True, detail),
            Err(detail) => (Valid::Unknown, detail),
        };
        let valid = if anomalies.is_empty() { valid } else { Valid::False };
        Self { checker, valid, detail, anomalies: anomalies.listed() }
    }

    /// As a line of a report.
    pub(crate) fn line(&self) -> String {
        let valid = match self.valid {
            Valid::True => "valid",
            Valid::False => "INVALID",
            Valid::Unknown => "unknown",
        };
        format!("{:<14}{valid:<9}{}", self.checker, self.detail)
    }
}

/// The judgment on a run: what one checker finds invalid is, and nothing passes for valid while a fault had no effect,
/// the test had troubles, or a checker saw too little.
pub(crate) fn overall(judgments: &[Judgment], faults: u64, troubles: &[String]) -> Verdict {
    let invalid: Vec<String> = judgments.iter().flat_map(violations).collect();
    if !invalid.is_empty() {
        return Verdict::Invalid(invalid);
    }
    let lacking = judgments.iter().filter(|one| one.valid == Valid::Unknown);
    let mut why: Vec<String> = lacking.map(|one| format!("{}: {}", one.checker, one.detail)).collect();
    if faults == 0 {
        why.push("no fault had an effect".to_owned());
    }
    why.extend(troubles.iter().cloned());
    if why.is_empty() { Verdict::Valid } else { Verdict::Unknown(why.join("; ")) }
}

fn violations(judgment: &Judgment) -> Vec<String> {
    let lines = judgment.anomalies.iter().flat_map(|anomaly| {
        let head = format!("{}: {} in all ({})", anomaly.kind, anomaly.count, judgment.checker);
        [head].into_iter().chain(anomaly.examples.iter().map(|example| format!("  {example}")))
    });
    lines.collect()
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

    fn extend(&mut self, other: Self) {
        for (kind, found) in other.0 {
            self.0.entry(kind).or_default().extend(found);
        }
    }

    fn listed(&self) -> Vec<Anomaly> {
        let listed = self.0.iter().map(|(&kind, found)| Anomaly {
            kind,
            count: found.len(),
            examples: found.iter().take(EXAMPLES).cloned().collect(),
        });
        listed.collect()
    }

    #[cfg(test)]
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
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
    pub(crate) fn judgments(&self, workloads: &[Workload]) -> Vec<Judgment> {
        let none = Found::default();
        let asked = NEEDED.iter().filter(|(_, workload, _)| workload.is_none_or(|one| workloads.contains(&one)));
        let judgments = asked.map(|&(checker, _, needed)| {
            let found = self.0.get(checker).unwrap_or(&none);
            Judgment::new(checker, &found.anomalies, found.enough(needed))
        });
        judgments.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judgment(kinds: &[&'static str], enough: Result<String, String>) -> Judgment {
        let mut anomalies = Anomalies::default();
        for &kind in kinds {
            anomalies.note(kind, "at 5 ns".to_owned());
        }
        Judgment::new("log", &anomalies, enough)
    }

    fn seen() -> Result<String, String> {
        Ok("much".to_owned())
    }

    #[test]
    fn one_anomaly_makes_a_run_invalid_whatever_else_is_unknown() {
        let judgments = [judgment(&[], seen()), judgment(&["lost", "lost"], Err("few".to_owned()))];
        assert_eq!(judgments[1].valid, Valid::False);
        let verdict = overall(&judgments, 0, &["trouble".to_owned()]);
        let lines = ["lost: 2 in all (log)", "  at 5 ns", "  at 5 ns"].map(str::to_owned);
        assert_eq!(verdict, Verdict::Invalid(lines.to_vec()));
    }

    #[test]
    fn what_is_unknown_is_no_pass() {
        let few = judgment(&[], Err("3 reads, 20 are needed".to_owned()));
        assert_eq!(overall(&[judgment(&[], seen())], 1, &[]), Verdict::Valid);
        assert_eq!(overall(&[few], 1, &[]), Verdict::Unknown("log: 3 reads, 20 are needed".to_owned()));
        assert_eq!(overall(&[], 0, &[]), Verdict::Unknown("no fault had an effect".to_owned()));
        let troubles = ["a client ended early".to_owned()];
        assert_eq!(overall(&[], 1, &troubles), Verdict::Unknown("a client ended early".to_owned()));
    }

    #[test]
    fn a_judgment_is_true_false_or_unknown_in_json() -> anyhow::Result<()> {
        let valid = |one: &Judgment| serde_json::to_value(one).map(|value| value["valid"].to_string());
        assert_eq!(valid(&judgment(&[], seen()))?, "true");
        assert_eq!(valid(&judgment(&["lost"], seen()))?, "false");
        assert_eq!(valid(&judgment(&[], Err(String::new())))?, "\"unknown\"");
        Ok(())
    }

    #[test]
    fn checkers_without_their_workload_say_nothing_and_others_need_something_to_look_at() {
        let checkers = |workloads: &[Workload]| {
            let judgments = Checks::default().judgments(workloads);
            assert!(judgments.iter().all(|one| one.valid == Valid::Unknown), "{judgments:?}");
            judgments.into_iter().map(|one| one.checker).collect::<Vec<_>>()
        };
        assert_eq!(checkers(&[Workload::Ingest]), ["positions", "flush-audit"]);
        let all = [Workload::Ingest, Workload::Log, Workload::Register, Workload::Isolation];
        assert_eq!(checkers(&all), ["positions", "log", "register", "isolation", "flush-audit"]);
    }
}
