//! Tables as PyIceberg sees them: their rows, their files and the marks of their flushes.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::cluster::Cluster;
use crate::command;
use crate::history::{Audit, Kind, Outcome, SPANS, Table};

use super::{Test, rows};

/// How long all tables of a round may take, seconds: a catalog that does not answer must not hold a run for ever.
const SECONDS: &str = "600";

/// Its argument is a list of tables: Python that makes `table`, and the columns that are the key and the row. Prints a line
/// for each. Everything is of one version of a table: that which was loaded.
const SCRIPT: &str = "
import json, sys
def audit(table, columns):
    tasks = list(table.scan().plan_files())
    flushes = []
    for snapshot in sorted(table.snapshots(), key=lambda snapshot: snapshot.sequence_number):
        summary = snapshot.summary.additional_properties if snapshot.summary else {}
        for name, value in summary.items():
            if name.startswith('signaldb.flush.'):
                mark = json.loads(value)
                marked = {name: mark[name] for name in ('group', 'incarnation', 'index')}
                flushes.append({'sequence': snapshot.sequence_number, **marked})
    read = table.scan(selected_fields=tuple(name for name in columns if name)).to_arrow()
    texts = [
        [value.hex() if isinstance(value, bytes) else value or '' for value in read[name].to_pylist()] if name
        else [''] * read.num_rows
        for name in columns
    ]
    return {
        'rows': list(zip(*texts)),
        'files': [task.file.file_path for task in tasks],
        'records': sum(task.file.record_count for task in tasks),
        'flushes': flushes,
    }
for one in json.loads(sys.argv[1]):
    scope = {}
    try:
        exec(one['code'], scope)
        said = {'found': audit(scope['table'], one['columns'])}
    except Exception as error:
        said = {'error': repr(error)}
    print(json.dumps(said), flush=True)
";

/// Tenant, dataset and table.
pub(crate) type Name = (&'static str, &'static str, &'static str);

/// What the script says of a table.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Found(Table),
    Error(String),
}

/// Notes what is in tables; returns what could not be read.
pub(crate) async fn audit(test: &Test, python: &str, names: Vec<Name>) -> anyhow::Result<Vec<String>> {
    let invoked = test.history.now();
    let (python, cluster, asked) = (python.to_owned(), Arc::clone(&test.cluster), names.clone());
    let all = tokio::task::spawn_blocking(move || read(&python, &cluster, &asked)).await??;
    let mut missing = Vec::new();
    for ((tenant, dataset, table), said) in names.into_iter().zip(all) {
        match said {
            Said::Found(found) => {
                let kind = Kind::Audit(Audit { dataset, table, found });
                rows::push(test, 2000, 0, tenant, invoked, Outcome::Ok, kind);
            }
            Said::Error(error) => {
                missing.push(format!("PyIceberg did not read {table} of {tenant}/{dataset}: {error}"))
            }
        }
    }
    Ok(missing)
}

/// One answer for each table. Blocking.
fn read(python: &str, cluster: &Cluster, names: &[Name]) -> anyhow::Result<Vec<Said>> {
    let mut tables = Vec::new();
    for (tenant, dataset, table) in names {
        let code = cluster.pyiceberg(tenant, dataset, table)?;
        let columns = if *table == SPANS { [None, Some("span_id")] } else { [Some("service_name"), Some("body")] };
        tables.push(json!({"code": code, "columns": columns}));
    }
    let tables = json!(tables).to_string();
    // The program of coreutils: a blocked process cannot be given up from here.
    let said = command::run(Command::new("timeout").args([SECONDS, python, "-c", SCRIPT, &tables]))
        .with_context(|| format!("read {} tables through PyIceberg", names.len()))?;
    parse(&said, names.len())
}

fn parse(said: &str, tables: usize) -> anyhow::Result<Vec<Said>> {
    let all = said.lines().map(serde_json::from_str).collect::<Result<Vec<Said>, _>>();
    let all = all.context("what the script says of a table")?;
    ensure!(all.len() == tables, "the script said {} things of {tables} tables", all.len());
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::python;

    #[test]
    fn the_script_says_a_line_of_each_table_and_goes_on_after_one_that_it_cannot_read() -> anyhow::Result<()> {
        // Tables of no library: what the script asks them for is all that they have.
        let good = "
class Column(list):
    def to_pylist(self): return self
class Read(dict):
    num_rows = 2
class Scan:
    def plan_files(self): return []
    def to_arrow(self): return Read(span_id=Column([b'\\x00\\xff', b'\\x01']))
class Table:
    def scan(self, selected_fields=None): return Scan()
    def snapshots(self): return []
table = Table()";
        let tables = json!([
            {"code": good, "columns": [null, "span_id"]},
            {"code": "raise ValueError('gone')", "columns": [null, "span_id"]},
            {"code": good, "columns": [null, "span_id"]},
        ]);
        if command::run(Command::new(python()).arg("--version")).is_err() {
            // Where there is no Python, nothing is audited.
            return Ok(());
        }
        let said = command::run(Command::new(python()).args(["-I", "-c", SCRIPT, &tables.to_string()]))?;
        let all = parse(&said, 3)?;
        let rows = |at: usize| match &all[at] {
            Said::Found(table) => table.rows.iter().map(|(_, row)| row.as_str()).collect::<Vec<_>>(),
            Said::Error(error) => vec![error.as_str()],
        };
        assert_eq!((rows(0), rows(2)), (vec!["00ff", "01"], vec!["00ff", "01"]));
        assert_eq!(rows(1), ["ValueError('gone')"]);
        assert!(parse(&said, 4).is_err(), "one is missing");
        Ok(())
    }
}
