//! A table as PyIceberg sees it: its rows, its files and the marks of its flushes.

use std::process::Command;
use std::sync::Arc;

use anyhow::Context;

use crate::cluster::Cluster;
use crate::command;
use crate::history::{Audit, Kind, Outcome, SPANS, Table};

use super::{Test, rows};

/// Everything is of one version of the table: that which was loaded. `columns` are the key and the row.
const SCRIPT: &str = "
import json
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
print(json.dumps({
    'rows': list(zip(*texts)),
    'files': [task.file.file_path for task in tasks],
    'records': sum(task.file.record_count for task in tasks),
    'flushes': flushes,
}))";

/// Notes what is in a table.
pub(crate) async fn audit(
    test: &Test,
    python: &str,
    tenant: &'static str,
    dataset: &'static str,
    table: &'static str,
) -> anyhow::Result<()> {
    let invoked = test.history.now();
    let (python, cluster) = (python.to_owned(), Arc::clone(&test.cluster));
    let found = tokio::task::spawn_blocking(move || read(&python, &cluster, tenant, dataset, table)).await??;
    let kind = Kind::Audit(Audit { dataset, table, found });
    rows::push(test, 2000, 0, tenant, invoked, Outcome::Ok, kind);
    Ok(())
}

/// Blocking.
fn read(python: &str, cluster: &Cluster, tenant: &str, dataset: &str, table: &str) -> anyhow::Result<Table> {
    let columns = if table == SPANS { "columns = (None, 'span_id')" } else { "columns = ('service_name', 'body')" };
    let script = format!("{}\n{columns}{SCRIPT}", cluster.pyiceberg(tenant, dataset, table)?);
    let said = command::run(Command::new(python).args(["-c", &script]))?;
    serde_json::from_str(&said).context("what the script says of the table")
}
