//! How long nobody could write: the longest time between two acknowledgments, and what each kind of fault costs.
//!
//! While most nodes run and reach each other, every tenant can write again within [`GAP_MAX`]: longer is the anomaly
//! `gap`. Faults may overlap: [`super::majority`] says when they left no majority, and that time alone is excused. What is
//! left of a gap before, between and after such outages is judged each for itself, for a new majority begins anew.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::fault::Fault;
use crate::history::{Kind, Operation, Outcome};
use crate::nemesis::Strike;
use crate::span::Span;
use crate::verdict::Verdict;
use crate::workload::Tenants;

use super::majority::{Absence, outages};
use super::{Anomalies, judge};

/// What a tenant may have to wait for its next acknowledgment, nanoseconds.
pub(crate) const GAP_MAX: u64 = 10_000_000_000;

/// The longest time that a tenant had no acknowledgment although there was a majority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Longest {
    pub(crate) tenant: &'static str,
    pub(crate) span: Span,
    /// What went on then.
    pub(crate) faults: Vec<Fault>,
}

impl Longest {
    /// Where it was, for people.
    pub(crate) fn place(&self) -> String {
        let faults: Vec<String> = self.faults.iter().map(|fault| fault.name()).collect();
        let faults = if faults.is_empty() { "no fault".to_owned() } else { faults.join(", ") };
        format!("{}, {:.1} s into the run, during {faults}", self.tenant, self.span.begun as f64 / 1e9)
    }
}

/// How long after faults every tenant wrote again, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Recovery {
    pub(crate) median: u64,
    pub(crate) longest: u64,
    /// Faults after which not every tenant wrote again.
    pub(crate) never: usize,
}

/// What one fault cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    fault: Fault,
    /// The longest gap of any tenant that meets it.
    gap: u64,
    /// From its end until every tenant had something acknowledged that was sent after it; `None` if that was never.
    recovery: Option<u64>,
}

/// What the faults of one kind cost, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Costs {
    pub(crate) fault: Fault,
    pub(crate) faults: usize,
    /// The longest time between two acknowledgments of a tenant.
    pub(crate) gap_longest: u64,
    /// From the end of a fault until every tenant wrote again.
    pub(crate) recovery_median: u64,
    pub(crate) recovery_longest: u64,
    /// Faults after which not every tenant wrote again.
    pub(crate) unrecovered: usize,
}

impl Costs {
    /// As a line of a report.
    pub(crate) fn line(&self) -> String {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        format!(
            "{:<22}{:>7}{:>13.2}{:>13.2}{:>13.2}",
            format!("{:?}", self.fault),
            self.faults,
            seconds(self.gap_longest),
            seconds(self.recovery_median),
            seconds(self.recovery_longest)
        )
    }
}

/// Over all rounds of a run.
#[derive(Debug, Default)]
pub(crate) struct Availability {
    costs: Vec<Cost>,
    acknowledged: u64,
    longest: Option<Longest>,
    anomalies: Anomalies,
}

impl Availability {
    /// Takes a round to the others. `strikes` and `absences` are those of the whole run.
    pub(crate) fn add(&mut self, operations: &[Operation], tenants: Tenants, strikes: &[Strike], absences: &[Absence]) {
        let acknowledged = tenants.map(|tenant| acknowledged(operations, tenant));
        let times = || acknowledged.iter().flatten();
        self.acknowledged += times().count() as u64;
        let gaps: Vec<(&'static str, Vec<Span>)> = tenants
            .into_iter()
            .zip(&acknowledged)
            .map(|(tenant, acknowledged)| (tenant, gaps(acknowledged, tried(operations, tenant))))
            .collect();
        let outages = outages(strikes, absences);
        for &(tenant, ref gaps) in &gaps {
            for span in gaps.iter().flat_map(|gap| gap.without(&outages)) {
                self.note_gap(tenant, span, strikes);
            }
        }
        let (Some(begun), Some(ended)) =
            (times().map(|(begun, _)| *begun).min(), times().map(|(_, ended)| *ended).max())
        else {
            return;
        };
        for strike in strikes.iter().filter(|strike| begun < strike.ended && strike.begun < ended) {
            let met = gaps.iter().flat_map(|(_, gaps)| gaps).filter(|gap| gap.meets(strike.span()));
            let gap = met.map(|gap| gap.length()).max().unwrap_or(0);
            let recoveries: Option<Vec<u64>> = acknowledged.iter().map(|one| recovery(one, strike.ended)).collect();
            let recovery = recoveries.and_then(|all| all.into_iter().max());
            self.costs.push(Cost { fault: strike.fault, gap, recovery });
        }
    }

    /// A time with a majority and without an acknowledgment.
    fn note_gap(&mut self, tenant: &'static str, span: Span, strikes: &[Strike]) {
        let is_longest = self.longest.as_ref().is_none_or(|longest| longest.span.length() < span.length());
        if !is_longest && span.length() <= GAP_MAX {
            return;
        }
        let faults = strikes.iter().filter(|strike| strike.span().meets(span)).map(|strike| strike.fault).collect();
        let gap = Longest { tenant, span, faults };
        if span.length() > GAP_MAX {
            let what =
                format!("{:.1} s for {}, {} to {} ns", seconds(span.length()), gap.place(), span.begun, span.ended);
            self.anomalies.note("gap", what);
        }
        if is_longest {
            self.longest = Some(gap);
        }
    }

    /// The longest gap, with its place.
    pub(crate) fn longest(&self) -> Option<&Longest> {
        self.longest.as_ref()
    }

    /// After all faults.
    pub(crate) fn recovery(&self) -> Recovery {
        sum_up(&self.costs)
    }

    /// What faults cost, by kind; the most expensive first.
    pub(crate) fn costs(&self) -> Vec<Costs> {
        let mut by_fault: BTreeMap<Fault, Vec<Cost>> = BTreeMap::new();
        for cost in &self.costs {
            by_fault.entry(cost.fault).or_default().push(*cost);
        }
        let mut all: Vec<Costs> = by_fault.into_iter().map(|(fault, costs)| costs_of(fault, &costs)).collect();
        all.sort_by_key(|costs| std::cmp::Reverse(costs.gap_longest));
        all
    }

    pub(crate) fn judgment(&self) -> Verdict {
        let enough = match &self.longest {
            _ if self.acknowledged == 0 => Err("nothing was acknowledged".to_owned()),
            None => Err("too little was acknowledged to say how long it took".to_owned()),
            Some(longest) => Ok(format!(
                "longest time between acknowledgments of a tenant with a majority {:.2} s, allowed are {:.0} s: {}",
                seconds(longest.span.length()),
                seconds(GAP_MAX),
                longest.place()
            )),
        };
        judge("availability", &self.anomalies, enough)
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn costs_of(fault: Fault, costs: &[Cost]) -> Costs {
    let Recovery { median, longest, never } = sum_up(costs);
    Costs {
        fault,
        faults: costs.len(),
        gap_longest: costs.iter().map(|cost| cost.gap).max().unwrap_or(0),
        recovery_median: median,
        recovery_longest: longest,
        unrecovered: never,
    }
}

fn sum_up(costs: &[Cost]) -> Recovery {
    let mut recoveries: Vec<u64> = costs.iter().filter_map(|cost| cost.recovery).collect();
    recoveries.sort_unstable();
    Recovery {
        median: recoveries.get(recoveries.len() / 2).copied().unwrap_or(0),
        longest: recoveries.last().copied().unwrap_or(0),
        never: costs.len() - recoveries.len(),
    }
}

/// Begins and ends of the adds of a tenant that were acknowledged, in the order of their ends.
fn acknowledged(operations: &[Operation], tenant: &str) -> Vec<(u64, u64)> {
    let adds = operations
        .iter()
        .filter(|one| one.tenant == tenant && one.outcome == Outcome::Ok && matches!(one.kind, Kind::Add(_)));
    let mut times: Vec<(u64, u64)> = adds.map(|one| (one.invoked, one.ended)).collect();
    times.sort_unstable_by_key(|(_, ended)| *ended);
    times
}

/// When a tenant first tried to add something, and when last, whatever came of it.
fn tried(operations: &[Operation], tenant: &str) -> Option<(u64, u64)> {
    let adds = operations.iter().filter(|one| one.tenant == tenant && matches!(one.kind, Kind::Add(_)));
    let tries: Vec<u64> = adds.map(|one| one.invoked).collect();
    Some((tries.iter().copied().min()?, tries.iter().copied().max()?))
}

/// Times between two acknowledgments of a tenant that follow each other; also from its first try to the first of them, and
/// from the last of them to its last try: whoever is never acknowledged again waits until the end.
fn gaps(acknowledged: &[(u64, u64)], tried: Option<(u64, u64)>) -> Vec<Span> {
    let Some((first, last)) = tried else { return Vec::new() };
    let mut times = vec![first];
    times.extend(acknowledged.iter().map(|(_, ended)| *ended));
    times.push(last);
    // The last try may have been acknowledged.
    let pairs = times.windows(2).filter(|pair| pair[0] < pair[1]);
    pairs.map(|pair| Span { begun: pair[0], ended: pair[1] }).collect()
}

/// From `since` until something was acknowledged that was sent after it.
fn recovery(acknowledged: &[(u64, u64)], since: u64) -> Option<u64> {
    let after = acknowledged.iter().filter(|(begun, _)| *begun >= since).map(|(_, ended)| *ended);
    Some(after.min()? - since)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const TENANTS: Tenants = ["a", "b"];

    /// Adds of both tenants that take a millisecond, acknowledged at these times, seconds.
    fn adds(at: &[u64]) -> Vec<Operation> {
        let both = at.iter().flat_map(|at| TENANTS.map(|tenant| add(tenant, at * SECOND)));
        both.collect()
    }

    fn add(tenant: &'static str, ended: u64) -> Operation {
        let (asked, given, position, kind) = (None, None, None, Kind::Add(vec!["x".to_owned()]));
        let (invoked, outcome) = (ended.saturating_sub(SECOND / 1000), Outcome::Ok);
        Operation { process: 0, node: 1, tenant, invoked, ended, outcome, asked, given, position, kind }
    }

    fn strike(fault: Fault, begun: u64, ended: u64) -> Strike {
        on(0, fault, begun, ended)
    }

    fn on(node: usize, fault: Fault, begun: u64, ended: u64) -> Strike {
        let (begun, ended) = (begun * SECOND, ended * SECOND);
        Strike { fault, node: Some(node), begun, ended, effective: true, detail: String::new(), left: None }
    }

    fn judge(operations: &[Operation], strikes: &[Strike]) -> Availability {
        let mut availability = Availability::default();
        availability.add(operations, TENANTS, strikes, &[]);
        availability
    }

    fn longest(availability: &Availability) -> Option<(u64, u64)> {
        availability.longest().map(|longest| (longest.span.begun / SECOND, longest.span.ended / SECOND))
    }

    #[test]
    fn short_gaps_and_those_without_a_majority_are_valid() {
        let operations = adds(&[1, 2, 11, 12, 29, 30]);
        let good = judge(&operations, &[strike(Fault::KillLeader, 3, 6), strike(Fault::KillAll, 13, 21)]);
        assert_eq!(good.judgment().valid, Some(true), "{good:?}");
        assert_eq!(longest(&good), Some((2, 11)));
        assert_eq!(good.longest().map(|longest| longest.faults.clone()), Some(vec![Fault::KillLeader]));
    }

    #[test]
    fn a_gap_that_meets_an_outage_is_judged_from_its_end_and_up_to_its_begin() {
        let outage = [strike(Fault::PowerLossAll, 13, 20)];
        let late = judge(&adds(&[1, 2, 12, 31]), &outage);
        assert_eq!((late.judgment().valid, longest(&late)), (Some(false), Some((20, 31))));
        let early = judge(&adds(&[1, 2, 21, 22]), &outage);
        assert_eq!((early.judgment().valid, longest(&early)), (Some(false), Some((2, 13))));
        assert_eq!(judge(&adds(&[1, 4, 12, 30]), &outage).judgment().valid, Some(true), "ten seconds, and ten before");
    }

    #[test]
    fn of_faults_that_overlap_only_the_time_without_a_majority_is_excused() {
        let pair = [on(0, Fault::Pause, 3, 14), on(1, Fault::IsolateLeader, 5, 30)];
        let good = judge(&adds(&[1, 4, 24, 25]), &pair);
        assert_eq!((good.judgment().valid, longest(&good)), (Some(true), Some((14, 24))));
        let bad = judge(&adds(&[1, 4, 25, 26]), &pair);
        assert_eq!((bad.judgment().valid, bad.anomalies.kinds()), (Some(false), vec!["gap"]));
        let still_two = [on(0, Fault::Pause, 3, 14), on(1, Fault::Slow, 3, 14), on(1, Fault::ClockJump, 3, 14)];
        let bad = judge(&adds(&[1, 2, 13, 14]), &still_two);
        assert_eq!(bad.judgment().valid, Some(false), "two nodes reached each other all the time");
        assert!(bad.judgment().anomalies[1].contains("pause, slow, clock-jump"), "{:?}", bad.judgment());
    }

    #[test]
    fn a_long_gap_with_a_majority_is_invalid_even_of_one_tenant() {
        let strikes = [strike(Fault::IsolateLeader, 3, 6)];
        let all = judge(&adds(&[1, 2, 14]), &strikes);
        assert_eq!((all.judgment().valid, all.anomalies.kinds()), (Some(false), vec!["gap"]));
        let mut operations = adds(&[1, 2]);
        operations.extend((3..14).map(|at| add("a", at * SECOND)));
        operations.push(add("b", 14 * SECOND));
        let one = judge(&operations, &strikes);
        assert_eq!(one.judgment().valid, Some(false));
        assert!(one.judgment().anomalies[1].contains("for b"), "{:?}", one.judgment());
    }

    #[test]
    fn whoever_is_never_acknowledged_again_waits_until_the_last_try() {
        let unknown = |tenant: &'static str, at: u64| Operation { outcome: Outcome::Info, ..add(tenant, at * SECOND) };
        let mut operations = adds(&[1, 2]);
        operations.extend((3..14).map(|at| add("a", at * SECOND)));
        operations.push(unknown("b", 13));
        let judged = judge(&operations, &[]).judgment();
        assert_eq!(judged.valid, Some(false));
        assert!(judged.anomalies[1].contains("for b"), "{judged:?}");
        assert_eq!(judge(&[unknown("a", 1), unknown("a", 20)], &[]).judgment().valid, Some(false), "none at all");
    }

    #[test]
    fn nothing_at_all_is_unknown() {
        assert_eq!(judge(&[], &[strike(Fault::Kill, 1, 2)]).judgment().valid, None);
    }

    #[test]
    fn what_faults_cost_is_said_by_kind_the_most_expensive_first() {
        let operations = adds(&[1, 2, 4, 8, 9, 10, 17, 18]);
        let strikes = [strike(Fault::Kill, 3, 5), strike(Fault::Pause, 10, 12), strike(Fault::Kill, 17, 17)];
        let costs = judge(&operations, &strikes).costs();
        let pause = Costs {
            fault: Fault::Pause,
            faults: 1,
            gap_longest: 7 * SECOND,
            recovery_median: 5 * SECOND,
            recovery_longest: 5 * SECOND,
            unrecovered: 0,
        };
        assert_eq!(costs[0], pause);
        assert_eq!((costs[1].fault, costs[1].faults, costs[1].gap_longest), (Fault::Kill, 2, 4 * SECOND));
        assert_eq!((costs[1].recovery_longest, costs[1].unrecovered), (3 * SECOND, 0));
    }

    #[test]
    fn recovery_is_told_of_all_faults_together() {
        let operations = adds(&[1, 2, 4, 8, 9, 10, 17, 18]);
        let strikes = [strike(Fault::Kill, 3, 5), strike(Fault::Pause, 10, 12), strike(Fault::Slow, 16, 18)];
        let expected = Recovery { median: 5 * SECOND, longest: 5 * SECOND, never: 1 };
        assert_eq!(judge(&operations, &strikes).recovery(), expected);
    }

    #[test]
    fn a_fault_after_which_nobody_wrote_again_is_counted() {
        let costs = judge(&adds(&[1, 5, 9]), &[strike(Fault::Slow, 6, 12)]).costs();
        assert_eq!((costs[0].unrecovered, costs[0].gap_longest), (1, 4 * SECOND));
    }

    #[test]
    fn faults_of_other_rounds_cost_this_one_nothing() {
        assert!(judge(&adds(&[1, 5]), &[strike(Fault::Slow, 20, 22)]).costs().is_empty());
    }
}
