//! Whether tenants and datasets keep to themselves, although they write the same rows under the same names.
//!
//! Clients write requests with the same ids, keys and idempotency keys to several datasets of several tenants, half of them
//! with the same bytes, half with rows that name their dataset; each is left out somewhere now and then. Besides
//! what holds of every read of a key ([`super::keyed`]):
//!
//! | anomaly | |
//! |---|---|
//! | `foreign` | a read shows a row that only others wrote |
//! | `unexpected` | a read shows a row that nobody wrote |
//! | `swallowed` | a read lacks what was acknowledged, and another one wrote the same: taken for a repeat of that |
//! | `trespass` | a query that names another tenant's tables shows a row |
//!
//! A row of others that has the same bytes as an own one shows as `doubled`.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Operation, Outcome, Purpose};
use crate::scenario::Workload;

use super::keyed::{Keyed, Place, Read, Shown, by_place};
use super::{Anomalies, Blackout, Found};

/// Who wrote a row of a key.
type Writers<'a> = BTreeMap<(&'a str, &'a str), BTreeSet<(&'static str, &'a str)>>;

/// Looks through a history.
pub(super) fn examine(operations: &[Operation], blackouts: &[Blackout]) -> Found {
    let mut found = Found::default();
    note_trespasses(operations, &mut found);
    let mut places = by_place(operations, Workload::Isolation);
    let writers = writers(&places);
    let datasets: BTreeSet<_> = places.keys().map(|(tenant, dataset, _)| (tenant, dataset)).collect();
    found.count("datasets", datasets.len() as u64);
    for (place, keyed) in &mut places {
        found.count("acknowledged", keyed.requests.iter().filter(|request| !request.acks.is_empty()).count() as u64);
        for read in std::mem::take(&mut keyed.reads) {
            if !read.is_answered() {
                continue;
            }
            found.count(if read.query.strong { "strong reads" } else { "eventual reads" }, 1);
            let shown = keyed.look(read, blackouts, &mut found.anomalies);
            note_strangers(*place, read, &shown, &writers, &mut found.anomalies);
            note_swallowed(*place, keyed, read, &shown, &writers, blackouts, &mut found.anomalies);
        }
    }
    found
}

/// Queries that name what belongs to another tenant.
fn note_trespasses(operations: &[Operation], found: &mut Found) {
    for operation in operations {
        let Kind::Query(query) = &operation.kind else { continue };
        if query.workload != Workload::Isolation || query.purpose != Purpose::Trespass {
            continue;
        }
        // A refusal is an answer, too: it shows nothing. No answer, or a node that is not ready, says nothing.
        let answered = operation.outcome == Outcome::Ok || query.refused.is_some_and(|status| status < 500);
        found.count("trespasses", u64::from(answered));
        if operation.outcome == Outcome::Ok && !query.rows.is_empty() {
            let read = Read { operation, query };
            found.anomalies.note("trespass", format!("{:?} in the {}", query.rows, read.name()));
        }
    }
}

fn writers<'a>(places: &BTreeMap<Place<'a>, Keyed<'a>>) -> Writers<'a> {
    let mut writers: Writers<'a> = BTreeMap::new();
    for (&(tenant, dataset, key), keyed) in places {
        for row in keyed.requests.iter().flat_map(|request| request.rows) {
            writers.entry((key, row.as_str())).or_default().insert((tenant, dataset));
        }
    }
    writers
}

fn note_strangers(
    (_, _, key): Place<'_>,
    read: Read<'_>,
    shown: &Shown<'_>,
    writers: &Writers<'_>,
    anomalies: &mut Anomalies,
) {
    for row in &shown.strangers {
        match writers.get(&(key, *row)) {
            Some(others) => anomalies.note("foreign", format!("{row} of {others:?} in the {}", read.name())),
            None => anomalies.note("unexpected", format!("{row} in the {}", read.name())),
        }
    }
}

fn note_swallowed(
    (tenant, dataset, key): Place<'_>,
    keyed: &Keyed<'_>,
    read: Read<'_>,
    shown: &Shown<'_>,
    writers: &Writers<'_>,
    blackouts: &[Blackout],
    anomalies: &mut Anomalies,
) {
    let (invoked, ended) = (read.operation.invoked, read.operation.ended);
    let due = |at: u64| read.query.strong && (at < invoked || read.is_last());
    let missing = keyed.requests.iter().zip(&shown.whole).filter(|(_, whole)| !**whole);
    for (request, _) in missing.filter(|(request, _)| request.acknowledged().is_some_and(due)) {
        let others = request.rows.iter().filter_map(|row| writers.get(&(key, row.as_str())));
        let elsewhere = others.flatten().any(|writer| *writer != (tenant, dataset));
        if elsewhere && !request.may_be_gone(invoked, ended, blackouts) {
            anomalies.note("swallowed", format!("{} not in the {}", request.name(), read.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::{of, operation, read, refused, unknown, with_query, write};

    fn kinds(operations: &[Operation]) -> Vec<&'static str> {
        examine(&of(Workload::Isolation, operations.to_vec()), &[]).anomalies.kinds()
    }

    fn by(tenant: &'static str, operation: Operation) -> Operation {
        Operation { tenant, ..operation }
    }

    fn in_dataset(name: &'static str, mut operation: Operation) -> Operation {
        match &mut operation.kind {
            Kind::Write(write) => write.dataset = name,
            Kind::Query(query) => query.dataset = name,
            Kind::Add(_) | Kind::Read(_) | Kind::Final(_) | Kind::Audit(_) => {}
        }
        operation
    }

    fn trespass(rows: &str) -> Operation {
        with_query(read(5, rows), |query| query.purpose = Purpose::Trespass)
    }

    #[test]
    fn the_same_rows_side_by_side_are_valid() {
        let good = [
            write(1, "r", "x", 3),
            by("b", write(2, "r", "x", 4)),
            in_dataset("other", write(1, "r", "x", 5)),
            read(4, "x"),
            by("b", read(5, "x")),
            in_dataset("other", read(6, "x")),
            // One that was left out there, and one that is unknown.
            write(7, "s", "y", 6),
            by("b", unknown(7, "t", "z")),
            read(9, "x y"),
            by("b", read(9, "x")),
            in_dataset("other", read(9, "x")),
            trespass(""),
            Operation { outcome: Outcome::Fail, ..with_query(trespass(""), |query| query.refused = Some(400)) },
            Operation { outcome: Outcome::Fail, ..with_query(trespass(""), |query| query.refused = Some(503)) },
            Operation { outcome: Outcome::Fail, ..trespass("") },
        ];
        assert_eq!(kinds(&good), Vec::<&str>::new());
        let found = examine(&of(Workload::Isolation, good.to_vec()), &[]);
        assert_eq!((found.counts["datasets"], found.counts["trespasses"]), (3, 2));
    }

    #[test]
    fn every_kind_of_bad_history_is_found() {
        let swallowed = [write(1, "r", "x", 3), by("b", write(2, "r", "x", 3)), by("b", read(5, ""))];
        for (expected, bad) in [
            (vec!["foreign"], vec![write(1, "r", "x", 3), by("b", read(5, "x"))]),
            (vec!["foreign"], vec![write(1, "r", "x", 3), in_dataset("other", read(5, "x"))]),
            (vec!["foreign"], vec![by("b", unknown(1, "r", "x")), read(5, "x")]),
            (vec!["doubled"], vec![write(1, "r", "x", 3), by("b", write(1, "r", "x", 4)), read(5, "x x")]),
            (vec!["unexpected"], vec![write(1, "r", "x", 3), read(5, "x y")]),
            (vec!["stale", "swallowed"], swallowed.to_vec()),
            (vec!["stale"], vec![write(1, "r", "x", 3), read(5, "")]),
            (vec!["trespass"], vec![write(1, "r", "x", 3), by("b", trespass("x"))]),
            (vec!["aborted"], vec![refused(1, "r", "x"), by("b", write(1, "r", "x", 3)), read(5, "x")]),
        ] {
            assert_eq!(kinds(&bad), expected, "{bad:?}");
        }
    }

    #[test]
    fn other_operations_are_not_looked_at() {
        assert_eq!(kinds(&[operation(1, Outcome::Ok, Kind::Read(vec!["x".to_owned()]))]), Vec::<&str>::new());
    }
}
