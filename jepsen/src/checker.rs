//! Whether a history is one that SignalDB may produce.
//!
//! The set workload of Jepsen ("set-full"): clients add unique elements and read the whole set. An element that was
//! acknowledged must be in every strong read that begins later and in every final read, exactly once; one that certainly
//! failed, or that nobody added, must be in none; one whose outcome is unknown may be there or not, but not twice, and
//! not come and go. Two tenants share the nodes: neither may see the other's elements.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Operation, Outcome};

/// Acknowledged adds below which a run says nothing.
const ACKNOWLEDGED_MIN: usize = 1000;

/// Answered reads in the middle below which a run says nothing of fresh reads.
const READS_MIN: usize = 20;

/// What a history proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Valid,
    /// Each violation, the first few of each kind.
    Invalid(Vec<String>),
    /// Too little happened.
    Unknown(String),
}

/// What is known of one element.
struct Element {
    tenant: &'static str,
    outcome: Outcome,
    /// When it was acknowledged.
    acknowledged: u64,
    invoked: u64,
    /// The end of the first read that saw it.
    seen: Option<u64>,
}

/// Judges a history. `faults` is how many faults had an effect.
pub(crate) fn check(operations: &[Operation], faults: u64) -> Verdict {
    let mut elements = added(operations);
    let mut violations = Violations::default();
    let (mut finals, mut middle) = (0, 0);
    let mut reads: Vec<&Operation> = operations.iter().filter(|one| one.outcome == Outcome::Ok).collect();
    reads.sort_by_key(|one| one.ended);
    for read in reads {
        let (values, last) = match &read.kind {
            Kind::Read(values) => (values, false),
            Kind::Final(values) => (values, true),
            Kind::Add(_) => continue,
        };
        finals += usize::from(last);
        middle += usize::from(!last);
        check_read(read, values, last, &mut elements, &mut violations);
    }
    let acknowledged = elements.values().filter(|element| element.outcome == Outcome::Ok).count();
    if !violations.0.is_empty() {
        return Verdict::Invalid(violations.listed());
    }
    if acknowledged < ACKNOWLEDGED_MIN {
        return Verdict::Unknown(format!("{acknowledged} acknowledged adds, {ACKNOWLEDGED_MIN} are needed"));
    }
    if faults == 0 {
        return Verdict::Unknown("no fault had an effect".to_owned());
    }
    if middle < READS_MIN {
        return Verdict::Unknown(format!("{middle} answered reads under faults, {READS_MIN} are needed"));
    }
    if finals == 0 {
        return Verdict::Unknown("no final read succeeded".to_owned());
    }
    Verdict::Valid
}

fn added(operations: &[Operation]) -> BTreeMap<&str, Element> {
    let mut elements = BTreeMap::new();
    for operation in operations {
        let Kind::Add(values) = &operation.kind else { continue };
        for value in values {
            let element = Element {
                tenant: operation.tenant,
                outcome: operation.outcome,
                acknowledged: operation.ended,
                invoked: operation.invoked,
                seen: None,
            };
            elements.insert(value.as_str(), element);
        }
    }
    elements
}

fn check_read(
    read: &Operation,
    values: &[String],
    last: bool,
    elements: &mut BTreeMap<&str, Element>,
    violations: &mut Violations,
) {
    let place = || format!("read by process {} of node {} ended at {} ns", read.process, read.node, read.ended);
    let mut found = BTreeSet::new();
    for value in values {
        if !found.insert(value.as_str()) {
            violations.note("doubled", format!("{value} twice in the {}", place()));
        }
        let Some(element) = elements.get_mut(value.as_str()) else {
            violations.note("unexpected", format!("{value}, which nobody added, in the {}", place()));
            continue;
        };
        if element.tenant != read.tenant {
            violations.note("foreign", format!("{value} of {} in the {} for {}", element.tenant, place(), read.tenant));
        }
        if element.outcome == Outcome::Fail {
            violations.note("failed", format!("{value}, whose add certainly failed, in the {}", place()));
        }
        if element.invoked > read.ended {
            violations.note("future", format!("{value} before it was added, in the {}", place()));
        }
        element.seen.get_or_insert(read.ended);
    }
    for (value, element) in elements.iter().filter(|(_, element)| element.tenant == read.tenant) {
        if found.contains(value) {
            continue;
        }
        if element.outcome == Outcome::Ok && (element.acknowledged < read.invoked || last) {
            let kind = if last { "lost" } else { "stale" };
            violations
                .note(kind, format!("{value}, acknowledged at {} ns, not in the {}", element.acknowledged, place()));
        }
        // Once a read has shown it, it is committed, whatever the client was told.
        if element.seen.is_some_and(|seen| seen < read.invoked) {
            violations.note("vanished", format!("{value}, seen before, not in the {}", place()));
        }
    }
}

/// Violations by kind.
#[derive(Debug, Default)]
struct Violations(BTreeMap<&'static str, Vec<String>>);

impl Violations {
    fn note(&mut self, kind: &'static str, what: String) {
        self.0.entry(kind).or_default().push(what);
    }

    fn listed(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (kind, found) in &self.0 {
            out.push(format!("{kind}: {} in all", found.len()));
            out.extend(found.iter().take(3).map(|what| format!("  {what}")));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(at: u64, outcome: Outcome, kind: Kind) -> Operation {
        Operation { process: 0, node: 1, tenant: "a", invoked: at * 10, ended: at * 10 + 5, outcome, kind }
    }

    fn values(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// A thousand acknowledged adds, all in a final read; tests append what they try.
    fn good() -> Vec<Operation> {
        let names: Vec<String> = (0..ACKNOWLEDGED_MIN).map(|n| format!("n{n}")).collect();
        let adds = names.iter().map(|name| operation(1, Outcome::Ok, Kind::Add(vec![name.clone()])));
        let mut all: Vec<Operation> = adds.collect();
        all.extend((0..READS_MIN).map(|_| operation(2, Outcome::Ok, Kind::Read(names.clone()))));
        all.push(operation(900, Outcome::Ok, Kind::Final(names)));
        all
    }

    fn with_final(mut extra: Vec<Operation>, also: &[&str]) -> Vec<Operation> {
        let mut all = good();
        if let Some(Kind::Final(names)) = all.last_mut().map(|last| &mut last.kind) {
            names.extend(values(also));
        }
        // Reads in the middle show everything that was acknowledged before.
        for one in &mut extra {
            if let Kind::Read(seen) = &mut one.kind {
                seen.extend((0..ACKNOWLEDGED_MIN).map(|n| format!("n{n}")));
            }
        }
        all.extend(extra);
        all
    }

    fn add(at: u64, outcome: Outcome, name: &str) -> Operation {
        operation(at, outcome, Kind::Add(values(&[name])))
    }

    fn read(at: u64, names: &[&str]) -> Operation {
        operation(at, Outcome::Ok, Kind::Read(values(names)))
    }

    #[test]
    fn good_histories_are_valid() {
        assert_eq!(check(&good(), 1), Verdict::Valid);
        let unknown_and_absent = with_final(vec![add(3, Outcome::Info, "x"), read(5, &[])], &[]);
        assert_eq!(check(&unknown_and_absent, 1), Verdict::Valid);
        let unknown_and_there = with_final(vec![add(3, Outcome::Info, "x"), read(5, &["x"]), read(7, &["x"])], &["x"]);
        assert_eq!(check(&unknown_and_there, 1), Verdict::Valid);
        let during_a_read =
            with_final(vec![add(3, Outcome::Ok, "x"), Operation { invoked: 31, ended: 60, ..read(3, &[]) }], &["x"]);
        assert_eq!(check(&during_a_read, 1), Verdict::Valid, "an add and a read that overlap may be in either order");
    }

    #[test]
    fn every_kind_of_bad_history_is_invalid_and_named() {
        let foreign = Operation { tenant: "b", ..add(3, Outcome::Ok, "x") };
        let foreign_final = Operation { tenant: "b", ..operation(901, Outcome::Ok, Kind::Final(values(&["x"]))) };
        let cases: Vec<(&str, Vec<Operation>)> = vec![
            ("lost", with_final(vec![add(3, Outcome::Ok, "x")], &[])),
            ("stale", with_final(vec![add(3, Outcome::Ok, "x"), read(5, &[])], &["x"])),
            ("doubled", with_final(vec![add(3, Outcome::Ok, "x"), read(5, &["x", "x"])], &["x"])),
            ("doubled", with_final(vec![add(3, Outcome::Info, "x")], &["x", "x"])),
            ("unexpected", with_final(vec![read(5, &["y"])], &[])),
            ("failed", with_final(vec![add(3, Outcome::Fail, "x")], &["x"])),
            ("vanished", with_final(vec![add(3, Outcome::Info, "x"), read(5, &["x"]), read(7, &[])], &["x"])),
            ("future", with_final(vec![add(8, Outcome::Ok, "x"), read(5, &["x"])], &["x"])),
            ("foreign", with_final(vec![foreign, foreign_final], &["x"])),
        ];
        for (kind, history) in cases {
            let Verdict::Invalid(violations) = check(&history, 1) else { panic!("{kind} was not found") };
            assert!(violations.iter().any(|violation| violation.starts_with(kind)), "{kind}: {violations:?}");
        }
    }

    #[test]
    fn too_little_is_unknown() {
        assert!(matches!(check(&good(), 0), Verdict::Unknown(_)), "no faults");
        assert!(matches!(check(&good()[..500], 1), Verdict::Unknown(_)), "too few adds");
        let without_reads = good().into_iter().filter(|one| !matches!(one.kind, Kind::Read(_))).collect::<Vec<_>>();
        assert!(matches!(check(&without_reads, 1), Verdict::Unknown(_)), "no reads under faults");
        assert!(matches!(check(&good()[..ACKNOWLEDGED_MIN + READS_MIN], 1), Verdict::Unknown(_)), "no final read");
    }
}
