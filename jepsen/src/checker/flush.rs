//! Whether the tables are what was acknowledged, read by PyIceberg after a last flush, and once more at the end of a run of
//! several rounds.
//!
//! | anomaly | a table |
//! |---|---|
//! | `lost` | lacks what was acknowledged |
//! | `vanished` | lacks what a last read of a node showed, or an earlier audit, although nobody was told that it is there |
//! | `doubled` | has a row twice |
//! | `aborted` | has a row of a request that was certainly refused, or never sent as a whole |
//! | `unexpected` | has a row that nobody wrote there: somebody else's, for example |
//! | `torn` | has some rows of a request |
//! | `file twice` | references a data file twice |
//! | `miscounted` | has other numbers of rows in its manifests than in its files |
//! | `went back` | has a snapshot whose watermark is below that of an earlier one, of the same group and incarnation |
//! | `flushed twice` | has two flushes with one watermark: the second had nothing to add, or added it again |

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Audit, DEFAULT_DATASET, Flush, Kind, Operation, Outcome, Purpose, SPANS, Table};
use crate::scenario::Workload;

use super::request::{Request, requests};
use super::{Anomalies, Blackout, Found};

/// A row and its key; spans have none.
type Element<'a> = (&'a str, &'a str);

/// Looks through a history.
pub(super) fn examine(operations: &[Operation], blackouts: &[Blackout]) -> Found {
    let mut found = Found::default();
    let audits = operations.iter().filter_map(|one| match &one.kind {
        Kind::Audit(audit) if one.outcome == Outcome::Ok => Some((one, audit)),
        _ => None,
    });
    let mut requests: Option<Vec<Request<'_>>> = None;
    // By table, what its audits so far said of its flushes: snapshots expire.
    let mut flushed: BTreeMap<(&str, &str, &str), Vec<Flush>> = BTreeMap::new();
    for (operation, audit) in audits {
        let requests = requests.get_or_insert_with(|| self::requests(operations));
        let spans = audit.table == SPANS;
        let here = |request: &&Request<'_>| {
            request.tenant == operation.tenant
                && request.dataset == audit.dataset
                && (request.workload == Workload::Ingest) == spans
        };
        let requests: Vec<&Request<'_>> = requests.iter().filter(here).collect();
        let seen = seen(operations, operation, audit);
        found.count("audits", 1);
        found.count("rows", audit.found.rows.len() as u64);
        found.count("files", audit.found.files.len() as u64);
        found.count("flushes", audit.found.flushes.len() as u64);
        let name = format!("{} of {}/{}", audit.table, operation.tenant, audit.dataset);
        check_rows(&name, operation, &audit.found, &requests, &seen, blackouts, &mut found.anomalies);
        check_files(&name, &audit.found, &mut found.anomalies);
        let flushes = flushed.entry((operation.tenant, audit.dataset, audit.table)).or_default();
        let newer: Vec<Flush> = audit.found.flushes.iter().filter(|one| !flushes.contains(one)).copied().collect();
        flushes.extend(newer);
        flushes.sort_by_key(|flush| flush.sequence);
        check_watermarks(&name, flushes, &mut found.anomalies);
    }
    found
}

/// What last reads of nodes, and earlier audits, showed of a table before it was looked at.
fn seen<'a>(operations: &'a [Operation], at: &Operation, audit: &Audit) -> BTreeSet<Element<'a>> {
    let spans = audit.table == SPANS;
    let reads = operations.iter().filter(|one| one.tenant == at.tenant && one.ended < at.invoked);
    let mut seen = BTreeSet::new();
    for read in reads.filter(|one| one.outcome == Outcome::Ok) {
        match &read.kind {
            Kind::Final(values) if spans && audit.dataset == DEFAULT_DATASET => {
                seen.extend(values.iter().map(|value| ("", value.as_str())));
            }
            Kind::Query(query) if !spans && query.purpose == Purpose::Last && query.dataset == audit.dataset => {
                seen.extend(query.rows.iter().map(|row| (query.key.as_str(), row.as_str())));
            }
            Kind::Audit(earlier) if (earlier.dataset, earlier.table) == (audit.dataset, audit.table) => {
                seen.extend(earlier.found.rows.iter().map(|(key, row)| (key.as_str(), row.as_str())));
            }
            _ => {}
        }
    }
    seen
}

fn check_rows(
    name: &str,
    audit: &Operation,
    table: &Table,
    requests: &[&Request<'_>],
    seen: &BTreeSet<Element<'_>>,
    blackouts: &[Blackout],
    anomalies: &mut Anomalies,
) {
    let mut rows: BTreeSet<Element<'_>> = BTreeSet::new();
    for (key, row) in &table.rows {
        if !rows.insert((key.as_str(), row.as_str())) {
            anomalies.note("doubled", format!("{key} {row} in {name}"));
        }
    }
    let mut strangers = rows.clone();
    for request in requests {
        let key = request.key;
        let elements = || request.rows.iter().map(move |row| (key, row.as_str()));
        let count = elements().filter(|element| rows.contains(element)).count();
        elements().for_each(|element| {
            strangers.remove(&element);
        });
        let what = format!("{} in {name}", request.name());
        if count > 0 && request.outcome == Outcome::Fail {
            anomalies.note("aborted", what);
        } else if count > 0 && count < request.rows.len() {
            anomalies.note("torn", format!("{count} rows of {what}"));
        } else if count == 0 && !request.may_be_gone(audit.invoked, audit.ended, blackouts) {
            if request.outcome == Outcome::Ok {
                anomalies.note("lost", format!("not {what}"));
            } else if elements().any(|element| seen.contains(&element)) {
                anomalies.note("vanished", format!("not {what}"));
            }
        }
    }
    for (key, row) in strangers {
        anomalies.note("unexpected", format!("{key} {row} in {name}"));
    }
}

fn check_files(name: &str, table: &Table, anomalies: &mut Anomalies) {
    let mut files = BTreeSet::new();
    for file in table.files.iter().filter(|file| !files.insert(file.as_str())) {
        anomalies.note("file twice", format!("{file} in {name}"));
    }
    let (rows, records) = (table.rows.len(), table.records);
    if rows as u64 != records {
        anomalies.note("miscounted", format!("{records} rows in the manifests of {name}, {rows} in its files"));
    }
}

/// `flushes` are in the order of snapshots.
fn check_watermarks(name: &str, flushes: &[Flush], anomalies: &mut Anomalies) {
    let mut newest: BTreeMap<(u32, u64), Flush> = BTreeMap::new();
    for flush in flushes {
        let Some(before) = newest.insert((flush.group, flush.incarnation), *flush) else { continue };
        let kind = match flush.index.cmp(&before.index) {
            Ordering::Less => "went back",
            Ordering::Equal => "flushed twice",
            Ordering::Greater => continue,
        };
        anomalies.note(kind, format!("{before:?}, then {flush:?} in {name}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::{operation, read, refused, unknown, with_query, write};

    fn flush(sequence: u64, index: u64) -> Flush {
        Flush { sequence, group: 1, incarnation: 0, index }
    }

    /// An audit of the log records of `a` that found these rows of key `k`, in a file for each.
    fn audit(rows: &str) -> Operation {
        let rows: Vec<(String, String)> = rows.split_whitespace().map(|row| ("k".to_owned(), row.to_owned())).collect();
        let (records, files) = (rows.len() as u64, (0..rows.len()).map(|n| format!("file {n}")).collect());
        let found = Table { rows, files, records, flushes: vec![flush(1, 4), flush(2, 9)] };
        let audit = Audit { dataset: DEFAULT_DATASET, table: "logs", found };
        operation(90, Outcome::Ok, Kind::Audit(audit))
    }

    fn with_table(mut audit: Operation, change: impl FnOnce(&mut Table)) -> Operation {
        if let Kind::Audit(audit) = &mut audit.kind {
            change(&mut audit.found);
        }
        audit
    }

    fn last(rows: &str) -> Operation {
        with_query(read(80, rows), |query| query.purpose = Purpose::Last)
    }

    fn kinds(operations: &[Operation]) -> Vec<&'static str> {
        examine(operations, &[]).anomalies.kinds()
    }

    #[test]
    fn tables_of_what_was_acknowledged_and_some_of_the_unknown_are_valid() {
        let written = || vec![write(1, "r", "x y", 3), unknown(2, "s", "z"), refused(3, "t", "u")];
        for rows in ["x y", "y x z"] {
            let history: Vec<Operation> = written().into_iter().chain([audit(rows)]).collect();
            assert_eq!(kinds(&history), Vec::<&str>::new(), "{rows}");
        }
        let elsewhere = Operation { tenant: "b", ..write(1, "r", "v", 3) };
        assert_eq!(kinds(&[write(1, "r", "x", 3), elsewhere, last("x"), audit("x")]), Vec::<&str>::new());
    }

    #[test]
    fn spans_are_looked_for_in_their_own_table() {
        let add = operation(1, Outcome::Ok, Kind::Add(vec!["s".to_owned()]));
        let found = Table { rows: vec![(String::new(), "s".to_owned())], records: 1, ..Table::default() };
        let spans = |found: Table| {
            let audit = Audit { dataset: DEFAULT_DATASET, table: SPANS, found };
            operation(90, Outcome::Ok, Kind::Audit(audit))
        };
        assert_eq!(kinds(&[add.clone(), write(1, "r", "x", 3), spans(found), audit("x")]), Vec::<&str>::new());
        assert_eq!(kinds(&[add, spans(Table::default())]), ["lost"]);
        let unknown = operation(1, Outcome::Info, Kind::Add(vec!["s".to_owned()]));
        let shown = operation(80, Outcome::Ok, Kind::Final(vec!["s".to_owned()]));
        assert_eq!(kinds(&[unknown, shown, spans(Table::default())]), ["vanished"]);
    }

    #[test]
    fn every_kind_of_bad_table_is_found() {
        let acknowledged = || write(1, "r", "x", 3);
        let twice = |table: &mut Table| table.files = vec!["file 0".to_owned(), "file 0".to_owned()];
        let back = |table: &mut Table| table.flushes.push(flush(3, 8));
        let again = |table: &mut Table| table.flushes.push(flush(3, 9));
        for (kind, bad) in [
            ("lost", vec![acknowledged(), audit("")]),
            ("vanished", vec![unknown(1, "r", "x"), last("x"), audit("")]),
            ("doubled", vec![acknowledged(), audit("x x")]),
            ("doubled", vec![unknown(1, "r", "x"), audit("x x")]),
            ("aborted", vec![refused(1, "r", "x"), audit("x")]),
            ("unexpected", vec![acknowledged(), audit("x y")]),
            ("unexpected", vec![Operation { tenant: "b", ..acknowledged() }, audit("x")]),
            ("torn", vec![write(1, "r", "x y", 3), audit("x")]),
            ("file twice", vec![acknowledged(), with_table(audit("x"), twice)]),
            ("miscounted", vec![acknowledged(), with_table(audit("x"), |table| table.records = 2)]),
            ("went back", vec![acknowledged(), with_table(audit("x"), back)]),
            ("flushed twice", vec![acknowledged(), with_table(audit("x"), again)]),
        ] {
            assert_eq!(kinds(&bad), [kind], "{bad:?}");
        }
    }

    #[test]
    fn a_table_that_is_looked_at_again_has_all_that_it_had_and_no_lower_watermark() {
        let later = |audit: Operation| Operation { invoked: 9000, ended: 9005, ..audit };
        let history = |again: Operation| vec![write(1, "r", "x", 3), unknown(2, "s", "z"), audit("x z"), later(again)];
        let expired = |table: &mut Table| table.flushes = vec![flush(5, 12)];
        assert_eq!(kinds(&history(with_table(audit("x z"), expired))), Vec::<&str>::new());
        assert_eq!(kinds(&history(audit("x"))), ["vanished"]);
        assert_eq!(kinds(&history(audit("z"))), ["lost"]);
        assert_eq!(kinds(&history(audit("x x z"))), ["doubled"]);
        let back = |table: &mut Table| table.flushes = vec![flush(5, 8)];
        assert_eq!(kinds(&history(with_table(audit("x z"), back))), ["went back"]);
    }

    #[test]
    fn watermarks_of_other_groups_and_incarnations_are_others() {
        let others = [
            Flush { group: 2, ..flush(3, 1) },
            Flush { incarnation: 7, ..flush(4, 2) },
            Flush { incarnation: 7, ..flush(5, 3) },
            flush(6, 10),
        ];
        let audit = with_table(audit(""), |table| table.flushes.extend(others));
        assert_eq!(kinds(&[audit]), Vec::<&str>::new());
    }
}
