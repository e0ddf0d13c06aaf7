//! The log of a node that does not run, entry by entry, as `signaldb wal inspect --entries --requests` lists it: it reads the
//! records of the segments one after the other, not what the node made of them. What a request says is read from the bytes
//! that the log holds, not by the server.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;

use crate::workload::content;

/// One node's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Log {
    /// Nothing of it is damaged; else entries may be missing from the listing.
    pub(crate) sound: bool,
    pub(crate) groups: BTreeMap<u32, Group>,
}

/// What it holds of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// As far as the log itself says it.
    pub(crate) committed: Option<u64>,
    /// Up to here entries were given up, for their rows are in the tables.
    pub(crate) purged: Option<u64>,
    /// By index.
    pub(crate) entries: BTreeMap<u64, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Rows(Rows),
    /// What no client sent, by kind.
    Own(String),
}

/// Rows of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) tenant: String,
    pub(crate) dataset: String,
    pub(crate) rows: u64,
    /// Key and row of each element; of bytes that are no request of ours, why they are none.
    pub(crate) content: Vec<(String, String)>,
    /// What repeats of the request have in common with it.
    pub(crate) request: String,
}

impl Log {
    /// Reads a listing. A field that is missing is an error: nothing may pass for empty because it has another name.
    pub(crate) fn parse(listing: &str) -> anyhow::Result<Self> {
        let (mut log, mut heads) = (Self::default(), 0);
        for line in listing.lines() {
            let line: Value = serde_json::from_str(line).context("a line of the listing")?;
            if let Some(sound) = line.get("sound") {
                log.sound = sound.as_bool().with_context(|| format!("sound in {line}"))?;
                heads += 1;
                continue;
            }
            let number = u32::try_from(number(&line, "group")?)?;
            let group = log.groups.entry(number).or_default();
            if line.get("index").is_some() {
                group.entries.insert(self::number(&line, "index")?, Entry::read(&line)?);
            } else {
                group.committed = optional(&line, "committed")?;
                group.purged = optional(&line, "purged")?;
            }
        }
        anyhow::ensure!(heads == 1, "the listing has {heads} lines about the log");
        Ok(log)
    }
}

impl Entry {
    fn read(line: &Value) -> anyhow::Result<Self> {
        let kind = text(line, "entry")?;
        if kind != "rows" {
            return Ok(Self::Own(kind));
        }
        let (tenant, dataset) = (text(line, "tenant")?, text(line, "dataset")?);
        let (rows, request) = (number(line, "rows")?, text(line, "request")?);
        let tables = line["tables"].as_array().with_context(|| format!("tables in {line}"))?;
        let sent = line.get("content").with_context(|| format!("content in {line}"))?;
        // Other bytes than were sent are what is looked for, and no trouble with the listing.
        let unreadable = |error: anyhow::Error| vec![(String::new(), format!("unreadable: {error:#}"))];
        let content = elements(tables, sent).unwrap_or_else(unreadable);
        Ok(Self::Rows(Rows { tenant, dataset, rows, content, request }))
    }
}

/// What a request says.
fn elements(tables: &[Value], sent: &Value) -> anyhow::Result<Vec<(String, String)>> {
    let [table] = tables else { anyhow::bail!("it has rows for {} tables", tables.len()) };
    content::elements(table.as_str().unwrap_or_default(), sent.as_str().context("it does not decompress")?)
}

fn number(line: &Value, name: &str) -> anyhow::Result<u64> {
    line[name].as_u64().with_context(|| format!("{name} in {line}"))
}

/// A number or null.
fn optional(line: &Value, name: &str) -> anyhow::Result<Option<u64>> {
    match line.get(name) {
        Some(Value::Null) => Ok(None),
        _ => number(line, name).map(Some),
    }
}

fn text(line: &Value, name: &str) -> anyhow::Result<String> {
    line[name].as_str().map(str::to_owned).with_context(|| format!("{name} in {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"{"sound":true}
{"group":1,"first":5,"last":6,"committed":6,"purged":4}
{"group":1,"index":5,"entry":"rows","tenant":"a","dataset":"d","tables":["logs"],"rows":2,"bytes":9,"request":"00ff","content":"0a270a150a130a0c736572766963652e6e616d6512030a016b120e12052a030a017812052a030a0179"}
{"group":1,"index":6,"entry":"cut"}
{"group":2,"first":null,"last":null,"committed":null,"purged":null}
"#;

    #[test]
    fn a_listing_is_read_as_the_node_writes_it() -> anyhow::Result<()> {
        let log = Log::parse(LISTING)?;
        let [tenant, dataset, request] = ["a", "d", "00ff"].map(str::to_owned);
        let content = ["x", "y"].map(|row| ("k".to_owned(), row.to_owned())).to_vec();
        let rows = Entry::Rows(Rows { tenant, dataset, rows: 2, content, request });
        let entries = BTreeMap::from([(5, rows), (6, Entry::Own("cut".to_owned()))]);
        let group = Group { committed: Some(6), purged: Some(4), entries };
        assert_eq!(log, Log { sound: true, groups: BTreeMap::from([(1, group), (2, Group::default())]) });
        Ok(())
    }

    #[test]
    fn a_field_that_is_missing_is_an_error_that_names_it() {
        let of_rows = ["entry", "tenant", "dataset", "tables", "rows", "request", "content"];
        for name in ["sound", "group", "index", "committed", "purged"].into_iter().chain(of_rows) {
            let renamed = LISTING.replace(&format!("\"{name}\":"), "\"other\":");
            let error = Log::parse(&renamed).map(|_| ()).expect_err(name);
            assert!(!format!("{error:#}").is_empty(), "{name}");
        }
        assert!(Log::parse("").is_err(), "nothing is no log");
    }

    #[test]
    fn bytes_that_are_no_request_of_ours_are_no_element_of_anybody() -> anyhow::Result<()> {
        for (from, to) in
            [("0a270a15", "0a280a15"), ("[\"logs\"]", "[\"logs\",\"traces\"]"), ("[\"logs\"]", "[\"other\"]")]
        {
            let log = Log::parse(&LISTING.replace(from, to))?;
            let entry = log.groups[&1].entries[&5].clone();
            let Entry::Rows(Rows { content, .. }) = entry else { anyhow::bail!("no rows") };
            assert!(matches!(&content[..], [(key, why)] if key.is_empty() && why.starts_with("unreadable: ")), "{to}");
        }
        Ok(())
    }
}
