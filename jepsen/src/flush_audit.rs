//! Whether the tables hold what the nodes show: each row once, each file once, and the log's marks never going back.
//!
//! Another reader looks, PyIceberg. Where it is not installed the rest of a run still says something, and this does not run.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::command::run;
use crate::history::{Kind, Operation, Outcome};
use crate::verdict::Verdict;
use crate::workload::Tenants;

pub(crate) const CHECKER: &str = "flush audit";
/// Violations of one kind that are written out.
const SHOWN: usize = 3;

/// Files of the current snapshot as its manifests name them, and the marks in the summaries of all snapshots, oldest first.
/// A mark says up to which index of a group's log the table holds what is there (lake/src/flush/mark.rs).
const SCRIPT: &str = "
import json
files = [task.file.file_path for task in table.scan().plan_files()]
marks = []
for snapshot in sorted(table.metadata.snapshots, key=lambda one: one.sequence_number):
    for name, value in snapshot.summary.additional_properties.items():
        if name.startswith('signaldb.flush.'):
            mark = json.loads(value)
            marks.append({'group': mark['group'], 'incarnation': mark['incarnation'], 'index': mark['index']})
print(json.dumps({'files': files, 'marks': marks}))";

/// A table as PyIceberg sees it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Table {
    files: Vec<String>,
    marks: Vec<Mark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Mark {
    group: u64,
    incarnation: u64,
    index: u64,
}

/// Asks PyIceberg for a tenant's table. Blocking.
pub(crate) fn read(python: &str, cluster: &Cluster, tenant: &str) -> anyhow::Result<Table> {
    let script = cluster.pyiceberg(tenant, "traces")? + SCRIPT;
    let said = run(Command::new(python).args(["-c", &script]))?;
    serde_json::from_str(&said).with_context(|| format!("what PyIceberg said of {tenant}"))
}

/// What was found in all tables.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    violations: BTreeMap<&'static str, Vec<String>>,
    tables: usize,
    rows: usize,
    files: usize,
    marks: usize,
}

impl Audit {
    /// Looks at a table's files and marks.
    pub(crate) fn table(&mut self, tenant: &str, table: &Table) {
        self.tables += 1;
        self.files += table.files.len();
        self.marks += table.marks.len();
        let mut seen = BTreeSet::new();
        for file in table.files.iter().filter(|file| !seen.insert(file.as_str())) {
            self.note("file twice", format!("{file} of {tenant}"));
        }
        let (mut newest, mut over): (BTreeMap<u64, Mark>, BTreeSet<(u64, u64)>) = Default::default();
        for mark in &table.marks {
            let before = newest.insert(mark.group, *mark);
            let same = before.filter(|before| before.incarnation == mark.incarnation);
            if let Some(before) = same.filter(|before| mark.index < before.index) {
                self.note("mark went back", format!("from {before:?} to {mark:?} in the table of {tenant}"));
            }
            // Ids of incarnations are random: one that others followed must not come again.
            over.extend(before.filter(|_| same.is_none()).map(|before| (before.group, before.incarnation)));
            if over.contains(&(mark.group, mark.incarnation)) {
                self.note("incarnation came back", format!("{mark:?} in the table of {tenant}"));
            }
        }
    }

    /// Compares the rows of the tables with the last reads of the nodes. Those saw what was acknowledged (or another checker
    /// says so); what they did not see may only be there if nobody knows whether it was written.
    pub(crate) fn rows(&mut self, operations: &[Operation], tenants: Tenants) {
        for tenant in tenants {
            let of_tenant = || operations.iter().filter(move |one| one.tenant == tenant && one.outcome == Outcome::Ok);
            let finals = |tables: bool| {
                of_tenant().filter(move |one| (one.node == 0) == tables).filter_map(|one| match &one.kind {
                    Kind::Final(values) => Some(values),
                    _ => None,
                })
            };
            let shown: BTreeSet<&str> = finals(false).flatten().map(String::as_str).collect();
            for stored in finals(true) {
                self.rows += stored.len();
                let mut rows = BTreeSet::new();
                for row in stored.iter().filter(|row| !rows.insert(row.as_str())) {
                    self.note("row twice", format!("{row} in the table of {tenant}"));
                }
                for row in shown.difference(&rows) {
                    self.note("row missing", format!("{row}, which nodes show, in the table of {tenant}"));
                }
                let unknown = unknown(operations);
                for row in rows.difference(&shown).filter(|row| !unknown.contains(*row)) {
                    self.note("row too many", format!("{row}, which no node shows, in the table of {tenant}"));
                }
            }
        }
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.violations.is_empty()
    }

    fn note(&mut self, kind: &'static str, what: String) {
        self.violations.entry(kind).or_default().push(what);
    }

    /// What there is to say; `None` when no table was looked at.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        let Self { violations, tables, rows, files, marks } = self;
        if *tables == 0 {
            return None;
        }
        let detail =
            format!("PyIceberg read {rows} rows in {files} files of {tables} tables, and {marks} marks of flushes");
        if violations.is_empty() {
            return Some(Verdict::valid(
                CHECKER,
                format!("{detail}: rows and files are there once, as the nodes show them"),
            ));
        }
        let mut anomalies = Vec::new();
        for (kind, found) in violations {
            anomalies.push(format!("{kind}: {} in all", found.len()));
            anomalies.extend(found.iter().take(SHOWN).map(|what| format!("  {what}")));
        }
        Some(Verdict::invalid(CHECKER, detail, anomalies))
    }
}

/// What was added, perhaps.
fn unknown(operations: &[Operation]) -> BTreeSet<&str> {
    let adds = operations.iter().filter(|one| one.outcome == Outcome::Info);
    let values = adds.filter_map(|one| match &one.kind {
        Kind::Add(values) => Some(values),
        _ => None,
    });
    values.flatten().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANTS: Tenants = ["a", "b"];

    fn operation(node: usize, outcome: Outcome, kind: Kind) -> Operation {
        let (asked, given) = (None, None);
        Operation { process: 0, node, tenant: "a", invoked: 1, ended: 2, outcome, asked, given, kind }
    }

    fn last(node: usize, names: &[&str]) -> Operation {
        operation(node, Outcome::Ok, Kind::Final(names.iter().map(|name| (*name).to_owned()).collect()))
    }

    fn kinds(operations: &[Operation]) -> Vec<&'static str> {
        let mut audit = Audit::default();
        audit.rows(operations, TENANTS);
        audit.violations.into_keys().collect()
    }

    #[test]
    fn tables_hold_what_nodes_show_once_and_perhaps_what_nobody_knows_of() {
        let unknown = operation(1, Outcome::Info, Kind::Add(vec!["z".to_owned()]));
        assert!(kinds(&[last(1, &["x", "y"]), last(2, &["y", "x"]), last(0, &["x", "y"])]).is_empty());
        assert!(kinds(&[unknown, last(1, &["x"]), last(0, &["x", "z"])]).is_empty(), "it came in between");
        let other = Operation { tenant: "b", ..last(0, &["q"]) };
        let of_other = Operation { tenant: "b", ..last(1, &["q"]) };
        assert!(kinds(&[last(1, &["x"]), last(0, &["x"]), other, of_other]).is_empty(), "each tenant by itself");
    }

    #[test]
    fn rows_that_are_missing_twice_there_or_too_many_are_found() {
        assert_eq!(kinds(&[last(1, &["x"]), last(0, &["x", "x"])]), ["row twice"]);
        assert_eq!(kinds(&[last(1, &["x", "y"]), last(0, &["x"])]), ["row missing"]);
        assert_eq!(kinds(&[last(1, &["x"]), last(0, &["x", "y"])]), ["row too many"]);
        let refused = operation(1, Outcome::Fail, Kind::Add(vec!["y".to_owned()]));
        assert_eq!(kinds(&[refused, last(1, &["x"]), last(0, &["x", "y"])]), ["row too many"]);
    }

    fn table(marks: &[(u64, u64, u64)], files: &[&str]) -> Option<Verdict> {
        let marks = marks.iter().map(|&(group, incarnation, index)| Mark { group, incarnation, index }).collect();
        let files = files.iter().map(|file| (*file).to_owned()).collect();
        let mut audit = Audit::default();
        audit.table("a", &Table { files, marks });
        audit.verdict()
    }

    #[test]
    fn a_file_twice_and_a_mark_that_goes_back_are_found() {
        let judged = |marks: &[_], files: &[_]| table(marks, files).and_then(|verdict| verdict.valid);
        assert_eq!(judged(&[(1, 7, 5), (2, 7, 3), (1, 7, 5), (1, 7, 9), (1, 2, 4)], &["f", "g"]), Some(true));
        assert_eq!(judged(&[(1, 7, 5), (1, 7, 4)], &[]), Some(false));
        assert_eq!(judged(&[(1, 7, 5), (1, 2, 4), (1, 7, 9)], &[]), Some(false), "an incarnation that is over");
        assert_eq!(judged(&[], &["f", "g", "f"]), Some(false));
    }

    #[test]
    fn without_another_reader_there_is_no_verdict() {
        assert_eq!(Audit::default().verdict(), None);
    }

    #[test]
    fn what_the_script_prints_is_read() -> anyhow::Result<()> {
        let said = r#"{"files": ["file:///x"], "marks": [{"group": 3, "incarnation": 1, "index": 90}]}"#;
        let table: Table = serde_json::from_str(said)?;
        assert_eq!((table.files.len(), table.marks[0]), (1, Mark { group: 3, incarnation: 1, index: 90 }));
        Ok(())
    }
}
