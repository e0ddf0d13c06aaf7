//! Every entry of a log, one a line.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::report::{Group, Report};
use super::rows::{Entries, Entry, table_name};

/// Prints a line of the whole log, one of each group, and one of each of its entries that can be read: as JSON, or for
/// people.
pub(super) fn print(report: &Report, entries: &Entries, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines(report, entries) {
        let line = if json { line.to_string() } else { text(&line) };
        writeln!(out, "{line}")?;
    }
    out.flush()
}

fn lines<'a>(report: &'a Report, entries: &'a Entries) -> impl Iterator<Item = Value> + 'a {
    let of_group = move |group: &'a Group| {
        let Group { group: number, first, last, committed, purged, .. } = group;
        let head = json!({"group": number, "first": first, "last": last, "committed": committed, "purged": purged});
        let entries = entries.get(number).into_iter().flatten();
        std::iter::once(head).chain(entries.map(move |(index, entry)| line(*number, *index, entry)))
    };
    std::iter::once(json!({"sound": report.sound})).chain(report.groups.iter().flat_map(of_group))
}

fn line(group: u32, index: u64, entry: &Entry) -> Value {
    match entry {
        Entry::Rows(rows) => {
            let count: u64 = rows.tables.iter().map(|(_, count)| u64::from(*count)).sum();
            let tables: Vec<String> = rows.tables.iter().map(|(code, _)| table_name(*code)).collect();
            json!({
                "group": group, "index": index, "entry": "rows", "tenant": rows.tenant.to_string(),
                "dataset": rows.dataset.to_string(), "tables": tables, "rows": count, "bytes": rows.bytes,
                "request": rows.request,
            })
        }
        Entry::Flushed { table, hi } => json!({
            "group": group, "index": index, "entry": "flushed", "tenant": table.tenant.to_string(),
            "dataset": table.dataset.to_string(), "tables": [table_name(table.code)], "upto": hi,
        }),
        Entry::Cut => json!({"group": group, "index": index, "entry": "cut"}),
        Entry::Other => json!({"group": group, "index": index, "entry": "other"}),
    }
}

/// `group 1  index 5  entry rows  ...`
fn text(line: &Value) -> String {
    let value = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let order = ["sound", "group", "index", "entry", "tenant", "dataset", "tables", "rows", "bytes", "request", "upto"];
    let order = order.into_iter().chain(["first", "last", "committed", "purged"]);
    let cells = order.filter_map(|name| Some(format!("{name} {}", value(line.get(name)?))));
    cells.collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use signaldb_model::{DatasetId, TenantId};
    use signaldb_signals::SignalTable;

    use super::super::rows::Rows;
    use super::*;

    #[test]
    fn a_listing_has_the_log_its_groups_and_each_entry() {
        let rows = Entry::Rows(Rows {
            tenant: TenantId::new("acme").expect("name"),
            dataset: DatasetId::new("production").expect("name"),
            bytes: 89,
            tables: vec![(SignalTable::Traces.code(), 4)],
            request: Some("00ff".to_owned()),
        });
        let group =
            Group { group: 1, first: Some(5), last: Some(7), committed: Some(7), purged: Some(4), ..Group::default() };
        let report = Report {
            dir: String::new(),
            sound: true,
            unlisted: None,
            segments: vec![],
            groups: vec![group, Group { group: 2, ..Group::default() }],
            torn_tail: None,
            damages: vec![],
        };
        let entries = Entries::from([(1, BTreeMap::from([(5, rows), (6, Entry::Cut), (7, Entry::Other)]))]);
        let expected = [
            json!({"sound": true}),
            json!({"group": 1, "first": 5, "last": 7, "committed": 7, "purged": 4}),
            json!({
                "group": 1, "index": 5, "entry": "rows", "tenant": "acme", "dataset": "production", "tables": ["traces"],
                "rows": 4, "bytes": 89, "request": "00ff",
            }),
            json!({"group": 1, "index": 6, "entry": "cut"}),
            json!({"group": 1, "index": 7, "entry": "other"}),
            json!({"group": 2, "first": null, "last": null, "committed": null, "purged": null}),
        ];
        assert_eq!(lines(&report, &entries).collect::<Vec<_>>(), expected);
        let people = "group 1  index 5  entry rows  tenant acme  dataset production  tables traces  rows 4  bytes 89  request 00ff";
        assert_eq!(text(&expected[2]), people);
        assert_eq!(text(&expected[5]), "group 2  first -  last -  committed -  purged -");
    }
}
