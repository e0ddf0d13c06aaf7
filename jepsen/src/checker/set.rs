//! The set workload of Jepsen ("set-full"): clients add unique elements and read the whole set. An element that was
//! acknowledged must be in every strong read that begins later and in every final read, exactly once; one that certainly
//! failed, or that nobody added, must be in none; one whose outcome is unknown may be there or not, but not twice, and
//! not come and go. Two tenants share the nodes: neither may see the other's elements.
//!
//! One loss is legal, and counted: when all nodes lose their power, what was committed within the flush window before
//! and acknowledged at level `quorum`, or only seen (DESIGN section 3).

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Level, Operation, Outcome};
use crate::verdict::Verdict;

use super::{Anomalies, Blackout, FLUSH_WINDOW, judge};

/// Acknowledged adds below which a run says nothing.
const ACKNOWLEDGED_MIN: usize = 1000;

/// Answered reads in the middle below which a run says nothing of fresh reads.
const READS_MIN: usize = 20;

/// What is known of one element.
struct Element {
    tenant: &'static str,
    outcome: Outcome,
    /// When it was acknowledged.
    acknowledged: u64,
    invoked: u64,
    level: Level,
    /// The end of the first read that saw it.
    seen: Option<u64>,
    /// The last beginning of a read that saw it.
    seen_last: u64,
    /// A read missed it although it was acknowledged, as a blackout may have it: how long before that it was known.
    lost: Option<u64>,
}

impl Element {
    /// From when on it is known to be committed.
    fn known(&self) -> Option<u64> {
        let acknowledged = (self.outcome == Outcome::Ok).then_some(self.acknowledged);
        acknowledged.into_iter().chain(self.seen).min()
    }

    /// The blackout that may have taken it from a read that ended at `read`.
    fn taken(&self, blackouts: &[Blackout], read: u64) -> Option<Blackout> {
        let known = self.known()?;
        let may = |blackout: &Blackout| {
            let in_window = known <= blackout.ended && known.saturating_add(FLUSH_WINDOW) >= blackout.begun;
            // Whoever saw it afterwards saw that it is still there.
            in_window && blackout.begun <= read && self.seen_last <= blackout.ended
        };
        blackouts.iter().copied().find(may)
    }

    /// How long before that blackout it was known, if its acknowledgment allows that it is gone.
    fn legally_lost(&self, taken: Option<Blackout>) -> Option<u64> {
        let known = self.known()?;
        // An acknowledgment from afterwards is about what is there since.
        let blackout = taken.filter(|blackout| self.level == Level::Quorum && self.acknowledged <= blackout.ended)?;
        Some(blackout.begun.saturating_sub(known))
    }
}

/// Losses that the promise allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Legal {
    /// Elements.
    pub(crate) lost: usize,
    /// The longest time between an acknowledgment and the blackout that took it, nanoseconds.
    pub(crate) oldest: u64,
}

/// What was found in one or more histories.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    violations: Anomalies,
    acknowledged: usize,
    middle: usize,
    finals: usize,
    pub(crate) legal: Legal,
}

impl Findings {
    pub(crate) fn is_sound(&self) -> bool {
        self.violations.is_empty()
    }

    pub(super) fn violations(&self) -> &Anomalies {
        &self.violations
    }

    /// Takes the findings in another history to these.
    pub(crate) fn add(&mut self, other: Self) {
        self.violations.extend(other.violations);
        self.acknowledged += other.acknowledged;
        self.middle += other.middle;
        self.finals += other.finals;
        self.legal.lost += other.legal.lost;
        self.legal.oldest = self.legal.oldest.max(other.legal.oldest);
    }

    /// Takes only the violations in a history that was judged before, without its last reads.
    pub(crate) fn add_again(&mut self, other: Self) {
        self.add(Self { violations: other.violations, ..Self::default() });
    }

    /// What they say together.
    pub(crate) fn judgment(&self) -> Verdict {
        judge("set-full", &self.violations, self.enough())
    }

    /// What was seen; an error when it is too little.
    fn enough(&self) -> Result<String, String> {
        let Self { acknowledged, middle, finals, .. } = self;
        if *acknowledged < ACKNOWLEDGED_MIN {
            return Err(format!("{acknowledged} acknowledged adds, {ACKNOWLEDGED_MIN} are needed"));
        }
        if *middle < READS_MIN {
            return Err(format!("{middle} answered reads under faults, {READS_MIN} are needed"));
        }
        if *finals == 0 {
            return Err("no final read succeeded".to_owned());
        }
        Ok(format!("{acknowledged} acknowledged elements, {middle} reads, {finals} last reads"))
    }
}

/// Looks through a history.
pub(crate) fn examine(operations: &[Operation], blackouts: &[Blackout]) -> Findings {
    let mut elements = added(operations);
    let mut found = Findings::default();
    note_weaker(operations, &mut found.violations);
    let mut reads: Vec<&Operation> = operations.iter().filter(|one| one.outcome == Outcome::Ok).collect();
    reads.sort_by_key(|one| one.ended);
    for read in reads {
        let (values, last) = match &read.kind {
            Kind::Read(values) => (values, false),
            Kind::Final(values) => (values, true),
            Kind::Add(_) | Kind::Write(_) | Kind::Query(_) | Kind::Audit(_) => continue,
        };
        found.finals += usize::from(last);
        found.middle += usize::from(!last);
        check_read(read, values, last, blackouts, &mut elements, &mut found.violations);
    }
    found.acknowledged = elements.values().filter(|element| element.outcome == Outcome::Ok).count();
    let lost = || elements.values().filter_map(|element| element.lost);
    found.legal = Legal { lost: lost().count(), oldest: lost().max().unwrap_or(0) };
    found
}

/// Acknowledgments of less than was asked for.
fn note_weaker(operations: &[Operation], violations: &mut Anomalies) {
    for operation in operations.iter().filter(|one| one.outcome == Outcome::Ok) {
        if let (Some(asked), Kind::Add(values)) = (operation.asked, &operation.kind)
            && operation.given.unwrap_or(Level::Quorum) < asked
        {
            let (given, at) = (operation.given, operation.ended);
            violations
                .note("weaker", format!("{values:?}, asked for at {asked:?}, acknowledged at {given:?}, {at} ns"));
        }
    }
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
                // Who asked for more holds the cluster to it.
                level: operation.asked.max(operation.given).unwrap_or(Level::Quorum),
                seen: None,
                seen_last: 0,
                lost: None,
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
    blackouts: &[Blackout],
    elements: &mut BTreeMap<&str, Element>,
    violations: &mut Anomalies,
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
        if element.lost.is_some() {
            violations.note("returned", format!("{value}, gone in an earlier read, in the {}", place()));
        }
        element.seen.get_or_insert(read.ended);
        element.seen_last = element.seen_last.max(read.invoked);
    }
    for (value, element) in elements.iter_mut().filter(|(_, element)| element.tenant == read.tenant) {
        if found.contains(value) {
            continue;
        }
        let taken = element.taken(blackouts, read.ended);
        let missed = element.outcome == Outcome::Ok && (element.acknowledged < read.invoked || last);
        let legal = element.legally_lost(taken).filter(|_| missed);
        element.lost = element.lost.or(legal);
        if missed && legal.is_none() {
            let kind = if last { "lost" } else { "stale" };
            violations
                .note(kind, format!("{value}, acknowledged at {} ns, not in the {}", element.acknowledged, place()));
        }
        // Once a read has shown it, it is committed, whatever the client was told.
        if element.seen.is_some_and(|seen| seen < read.invoked) && taken.is_none() {
            violations.note("vanished", format!("{value}, seen before, not in the {}", place()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(at: u64, outcome: Outcome, kind: Kind) -> Operation {
        let (invoked, ended) = (at * 10, at * 10 + 5);
        let (asked, given, position) = (None, None, None);
        Operation { process: 0, node: 1, tenant: "a", invoked, ended, outcome, asked, given, position, kind }
    }

    fn check(operations: &[Operation]) -> Verdict {
        examine(operations, &[]).judgment()
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
        assert_eq!(check(&good()).valid, Some(true));
        let unknown_and_absent = with_final(vec![add(3, Outcome::Info, "x"), read(5, &[])], &[]);
        assert_eq!(check(&unknown_and_absent).valid, Some(true));
        let unknown_and_there = with_final(vec![add(3, Outcome::Info, "x"), read(5, &["x"]), read(7, &["x"])], &["x"]);
        assert_eq!(check(&unknown_and_there).valid, Some(true));
        let during_a_read =
            with_final(vec![add(3, Outcome::Ok, "x"), Operation { invoked: 31, ended: 60, ..read(3, &[]) }], &["x"]);
        assert_eq!(check(&during_a_read).valid, Some(true), "an add and a read that overlap may be in either order");
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
            let Verdict { valid, anomalies: violations, .. } = check(&history);
            assert_eq!(valid, Some(false), "{kind} was not found");
            assert!(violations.iter().any(|violation| violation.starts_with(kind)), "{kind}: {violations:?}");
        }
    }

    #[test]
    fn too_little_is_unknown() {
        assert_eq!(check(&good()[..500]).valid, None, "too few adds");
        let without_reads = good().into_iter().filter(|one| !matches!(one.kind, Kind::Read(_))).collect::<Vec<_>>();
        assert_eq!(check(&without_reads).valid, None, "no reads under faults");
        assert_eq!(check(&good()[..ACKNOWLEDGED_MIN + READS_MIN]).valid, None, "no final read");
    }
    const SECOND: u64 = 1_000_000_000;
    const BLACKOUT: Blackout = Blackout { begun: 100 * SECOND, ended: 102 * SECOND };

    /// An add of `x` that was acknowledged `before` nanoseconds before the blackout.
    fn before(before: u64, asked: Level) -> Operation {
        let ended = BLACKOUT.begun - before;
        let (asked, given) = (Some(asked), Some(asked));
        Operation { invoked: ended - 10, ended, asked, given, ..add(0, Outcome::Ok, "x") }
    }

    /// A read `after` nanoseconds after the blackout.
    fn after(after: u64, names: &[&str]) -> Operation {
        let invoked = BLACKOUT.ended + after;
        Operation { invoked, ended: invoked + 10, ..read(0, names) }
    }

    /// What is wrong with operations around a blackout, and the legal losses.
    fn around(operations: Vec<Operation>) -> (Vec<String>, Legal) {
        let found = examine(&operations, &[BLACKOUT]);
        (found.violations.kinds().into_iter().map(str::to_owned).collect(), found.legal)
    }

    #[test]
    fn a_power_loss_of_all_may_take_what_was_acknowledged_at_quorum_just_before_and_it_is_counted() {
        let moment = SECOND / 10;
        let lost = around(vec![before(moment, Level::Quorum), after(SECOND, &[]), after(2 * SECOND, &[])]);
        assert_eq!(lost, (vec![], Legal { lost: 1, oldest: moment }));
        let kept = around(vec![before(moment, Level::Quorum), after(SECOND, &["x"])]);
        assert_eq!(kept, (vec![], Legal::default()));
        let unknown = Operation { outcome: Outcome::Info, ..before(moment, Level::Fsync) };
        let seen = Operation { ended: BLACKOUT.begun - moment, invoked: 0, ..read(0, &["x"]) };
        assert_eq!(around(vec![unknown, seen, after(SECOND, &[])]), (vec![], Legal::default()), "seen, never promised");
    }

    #[test]
    fn it_may_take_nothing_else() {
        let moment = SECOND / 10;
        let none = Legal::default();
        let synced = around(vec![before(moment, Level::Fsync), after(SECOND, &[])]);
        assert_eq!(synced, (vec!["stale".to_owned()], none), "a majority had it on disk");
        let old = around(vec![before(FLUSH_WINDOW + 1, Level::Quorum), after(SECOND, &[])]);
        assert_eq!(old, (vec!["stale".to_owned()], none), "it was synced long before");
        let early = Operation { invoked: 0, ended: 10 * SECOND, ..read(0, &["x"]) };
        let seen = around(vec![Operation { invoked: 1, ..before(moment, Level::Quorum) }, early, after(SECOND, &[])]);
        assert_eq!(seen.0, ["stale", "vanished"], "it was seen long before it was acknowledged");
        let survived = around(vec![before(moment, Level::Quorum), after(SECOND, &["x"]), after(2 * SECOND, &[])]);
        assert_eq!(survived.0, ["stale", "vanished"], "it survived, and went later");
        let returned = around(vec![before(moment, Level::Quorum), after(SECOND, &[]), after(2 * SECOND, &["x"])]);
        assert_eq!(returned.0, ["returned"]);
        let late = Operation { ended: BLACKOUT.ended + 5, ..before(moment, Level::Quorum) };
        assert_eq!(around(vec![late, after(SECOND, &[])]).0, ["stale"], "acknowledged afterwards");
    }

    #[test]
    fn an_acknowledgment_of_less_than_was_asked_for_is_a_violation() {
        let weak = Operation { given: Some(Level::Quorum), ..before(10, Level::Fsync) };
        assert_eq!(around(vec![weak, after(SECOND, &["x"])]).0, ["weaker"]);
        let strong = Operation { asked: Some(Level::Quorum), ..before(10, Level::Fsync) };
        assert_eq!(around(vec![strong, after(SECOND, &["x"])]).0, Vec::<String>::new());
    }

    #[test]
    fn findings_of_several_histories_are_judged_together() {
        let mut all = examine(&good()[..600], &[]);
        all.add(examine(&good()[600..], &[]));
        assert!(!all.is_sound(), "an unknown element");
        let mut all = Findings::default();
        all.add(examine(&good(), &[]));
        let lost = vec![add(3, Outcome::Ok, "x"), operation(901, Outcome::Ok, Kind::Final(vec![]))];
        all.add_again(examine(&lost, &[]));
        let judged = all.judgment();
        assert!(judged.valid == Some(false) && judged.anomalies[0].starts_with("lost"), "{judged:?}");
    }
}
