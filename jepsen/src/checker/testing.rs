//! Histories for tests, by hand.

use crate::history::{DEFAULT_DATASET, Kind, Operation, Outcome, Position, Purpose, Query, Write};
use crate::scenario::Workload;

pub(super) const SECOND: u64 = 1_000_000_000;

/// Anything, ten nanoseconds times `at` after the begin, five long.
pub(super) fn operation(at: u64, outcome: Outcome, kind: Kind) -> Operation {
    let (invoked, ended) = (at * 10, at * 10 + 5);
    let (asked, given, position) = (None, None, None);
    Operation { process: 0, node: 1, tenant: "a", invoked, ended, outcome, asked, given, position, kind }
}

/// A request of `log` that was acknowledged at index `index` of group 1; its rows are the words of `rows`.
pub(super) fn write(at: u64, request: &str, rows: &str, index: u64) -> Operation {
    let write = Write {
        workload: Workload::Log,
        dataset: DEFAULT_DATASET,
        key: "k".to_owned(),
        request: request.to_owned(),
        rows: words(rows),
        deduplicated: false,
    };
    let position = Some(Position { group: 1, index });
    Operation { position, ..operation(at, Outcome::Ok, Kind::Write(write)) }
}

/// The same, with an outcome that nobody knows.
pub(super) fn unknown(at: u64, request: &str, rows: &str) -> Operation {
    Operation { outcome: Outcome::Info, position: None, ..write(at, request, rows, 0) }
}

/// The same, refused.
pub(super) fn refused(at: u64, request: &str, rows: &str) -> Operation {
    Operation { outcome: Outcome::Fail, position: None, ..write(at, request, rows, 0) }
}

/// An answered strong read of `log` that shows the words of `rows`.
pub(super) fn read(at: u64, rows: &str) -> Operation {
    let query = Query {
        workload: Workload::Log,
        dataset: DEFAULT_DATASET,
        key: "k".to_owned(),
        purpose: Purpose::Middle,
        strong: true,
        min: None,
        refused: None,
        rows: words(rows),
    };
    operation(at, Outcome::Ok, Kind::Query(query))
}

/// A read with something else about it.
pub(super) fn with_query(mut operation: Operation, change: impl FnOnce(&mut Query)) -> Operation {
    if let Kind::Query(query) = &mut operation.kind {
        change(query);
    }
    operation
}

/// A read at the node that asked for it that must show position `index` of group 1, whatever else it shows.
pub(super) fn read_upto(at: u64, index: u64, rows: &str) -> Operation {
    with_query(read(at, rows), |query| {
        query.strong = false;
        query.min = Some(Position { group: 1, index });
    })
}

/// All of them for another workload.
pub(super) fn of(workload: Workload, operations: Vec<Operation>) -> Vec<Operation> {
    let moved = operations.into_iter().map(|mut operation| {
        match &mut operation.kind {
            Kind::Write(write) => write.workload = workload,
            Kind::Query(query) => query.workload = workload,
            Kind::Add(_) | Kind::Read(_) | Kind::Final(_) | Kind::Audit(_) => {}
        }
        operation
    });
    moved.collect()
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
