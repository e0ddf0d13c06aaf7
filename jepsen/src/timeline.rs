//! What clients did over time, in bins: an hour of operations becomes a picture of some hundred columns.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::history::{Kind, Operation, Outcome};

/// Operations are collected in bins of this length first, nanoseconds.
const FINE: u64 = 250_000_000;
/// Latencies below this are not told apart, nanoseconds.
const FASTEST: u64 = 250_000;
/// Steps of a latency in which it doubles.
const STEPS: usize = 4;
/// Classes of latency: from 250 us to 16 s.
pub(crate) const CLASSES: usize = 16 * STEPS;

/// What ended within one bin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bin {
    /// Writes: acknowledged, refused, unknown.
    pub(crate) writes: [u32; 3],
    /// Reads: answered, not answered.
    pub(crate) reads: [u32; 2],
    /// Acknowledged writes by class of their latency.
    pub(crate) latencies: [u32; CLASSES],
}

impl Default for Bin {
    fn default() -> Self {
        Self { writes: [0; 3], reads: [0; 2], latencies: [0; CLASSES] }
    }
}

impl Bin {
    fn take(&mut self, operation: &Operation) {
        let ok = operation.outcome == Outcome::Ok;
        match &operation.kind {
            Kind::Add(_) | Kind::Write(_) => {}
            Kind::Read(_) | Kind::Final(_) | Kind::Query(_) => {
                self.reads[usize::from(!ok)] += 1;
                return;
            }
            // Not by a client of the nodes.
            Kind::Audit(_) => return,
        }
        let outcome = match operation.outcome {
            Outcome::Ok => 0,
            Outcome::Fail => 1,
            Outcome::Info => 2,
        };
        self.writes[outcome] += 1;
        if ok {
            self.latencies[class(operation.ended.saturating_sub(operation.invoked))] += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        let add = |to: &mut [u32], from: &[u32]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        add(&mut self.writes, &other.writes);
        add(&mut self.reads, &other.reads);
        add(&mut self.latencies, &other.latencies);
    }

    /// The latency that this part of the acknowledged writes did not exceed, seconds; `None` without any.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let all: u64 = self.latencies.iter().map(|count| u64::from(*count)).sum();
        let rank = (part * all as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.latencies.iter().enumerate().find_map(|(class, count)| {
            seen += u64::from(*count);
            (all > 0 && seen >= rank).then(|| slowest(class))
        })
    }
}

/// The class of a latency in nanoseconds.
fn class(latency: u64) -> usize {
    let doublings = (latency.max(FASTEST) as f64 / FASTEST as f64).log2();
    ((doublings * STEPS as f64) as usize).min(CLASSES - 1)
}

/// The upper end of a class, seconds.
pub(crate) fn slowest(class: usize) -> f64 {
    FASTEST as f64 / 1e9 * 2_f64.powf((class + 1) as f64 / STEPS as f64)
}

/// All operations of a run.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// By time in units of [`FINE`].
    fine: BTreeMap<u64, Bin>,
}

/// Bins of equal length, from the beginning of the run without gaps.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    /// Of each, nanoseconds.
    pub(crate) width: u64,
    pub(crate) bins: Vec<Bin>,
}

impl Timeline {
    /// Takes operations to the others, in the bins of their ends.
    pub(crate) fn add(&mut self, operations: &[Operation]) {
        for operation in operations {
            self.fine.entry(operation.ended / FINE).or_default().take(operation);
        }
    }

    /// The first `until` nanoseconds, and whatever ended later, in at most `most` columns (one at least).
    pub(crate) fn columns(&self, until: u64, most: usize) -> Columns {
        let last = self.fine.last_key_value().map_or(0, |(at, _)| *at);
        let fine = (last + 1).max(until.div_ceil(FINE));
        let step = fine.div_ceil(most.max(1) as u64);
        let mut bins = vec![Bin::default(); fine.div_ceil(step) as usize];
        for (at, bin) in &self.fine {
            bins[(at / step) as usize].merge(bin);
        }
        Columns { width: step * FINE, bins }
    }

    /// Acknowledged writes and answered reads together, over the whole run.
    pub(crate) fn totals(&self) -> Totals {
        let mut all = Bin::default();
        self.fine.values().for_each(|bin| all.merge(bin));
        let milliseconds = |part: f64| all.quantile(part).map(|seconds| seconds * 1e3);
        Totals {
            acknowledged: all.writes[0],
            refused: all.writes[1],
            unknown: all.writes[2],
            reads: all.reads[0],
            reads_refused: all.reads[1],
            p50_ms: milliseconds(0.5),
            p99_ms: milliseconds(0.99),
        }
    }
}

/// A run in numbers. Latencies are those of acknowledged writes, rounded up by a fifth at most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Totals {
    pub(crate) acknowledged: u32,
    pub(crate) refused: u32,
    pub(crate) unknown: u32,
    pub(crate) reads: u32,
    pub(crate) reads_refused: u32,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
}

/// Operations of which only time and outcome matter.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn operation(ended: u64, latency: u64, outcome: Outcome, kind: Kind) -> Operation {
        let (invoked, asked, given, position) = (ended.saturating_sub(latency), None, None, None);
        Operation { process: 0, node: 1, tenant: "a", invoked, ended, outcome, asked, given, position, kind }
    }

    pub(crate) fn add(ended: u64, latency: u64, outcome: Outcome) -> Operation {
        operation(ended, latency, outcome, Kind::Add(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{add, operation};
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn an_hour_becomes_few_columns_and_nothing_is_left_out() {
        let mut timeline = Timeline::default();
        let adds: Vec<Operation> = (1..=36_000).map(|n| add(n * 100 * MS, MS, Outcome::Ok)).collect();
        timeline.add(&adds[..20_000]);
        timeline.add(&adds[20_000..]);
        for most in [1, 7, 300, 1_000_000] {
            let columns = timeline.columns(0, most);
            assert!(columns.bins.len() <= most, "{most}");
            assert!(columns.bins.len() as u64 * columns.width > 3_600_000 * MS, "{most}: the last is in a column");
            assert_eq!(columns.bins.iter().map(|bin| bin.writes[0]).sum::<u32>(), 36_000, "{most}");
            assert_eq!(columns.bins.iter().flat_map(|bin| bin.latencies).sum::<u32>(), 36_000, "{most}");
        }
    }

    #[test]
    fn an_operation_counts_where_it_ended_by_what_it_was_and_how_it_ended() {
        let mut timeline = Timeline::default();
        timeline.add(&[
            add(1100 * MS, 1000 * MS, Outcome::Ok),
            add(1200 * MS, MS, Outcome::Fail),
            add(1249 * MS, MS, Outcome::Info),
            operation(1100 * MS, MS, Outcome::Ok, Kind::Read(Vec::new())),
            operation(1100 * MS, MS, Outcome::Fail, Kind::Read(Vec::new())),
        ]);
        let columns = timeline.columns(2000 * MS, 8);
        assert_eq!((columns.width, columns.bins.len()), (FINE, 8), "quiet time has columns too");
        assert_eq!((columns.bins[4].writes, columns.bins[4].reads), ([1, 1, 1], [1, 1]));
        assert!(columns.bins.iter().enumerate().all(|(at, bin)| at == 4 || *bin == Bin::default()));
        assert_eq!(columns.bins[4].latencies.iter().sum::<u32>(), 1, "of what was acknowledged");
    }

    #[test]
    fn a_run_without_operations_has_columns_of_nothing() {
        let columns = Timeline::default().columns(0, 300);
        assert_eq!(columns, Columns { width: FINE, bins: vec![Bin::default()] });
        assert_eq!(Timeline::default().totals().p99_ms, None);
    }

    #[test]
    fn quantiles_are_at_most_a_fifth_too_high() {
        let mut timeline = Timeline::default();
        let latencies = (1..=100).map(|n| add(20_000 * MS, n * MS, Outcome::Ok));
        timeline.add(&latencies.collect::<Vec<_>>());
        let columns = timeline.columns(0, 1);
        for (part, true_ms) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)] {
            let found = columns.bins[0].quantile(part).expect("there are some") * 1e3;
            assert!(found >= true_ms && found <= true_ms * 1.2, "{part}: {found} ms for {true_ms} ms");
        }
    }

    #[test]
    fn classes_of_latency_grow_and_never_end() {
        assert_eq!((class(0), class(FASTEST), class(u64::MAX)), (0, 0, CLASSES - 1));
        for latency in [1, 3, 10, 100, 5000] {
            let class = class(latency * MS);
            assert!(slowest(class) >= latency as f64 / 1e3, "{latency} ms");
            assert!(class == 0 || slowest(class - 1) <= latency as f64 / 1e3, "{latency} ms");
        }
    }
}
