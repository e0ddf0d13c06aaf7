//! The log of a node that does not run, entry by entry, as `signaldb wal inspect --entries` lists it: it reads the records
//! of the segments one after the other, not what the node made of them.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;

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
        Ok(Self::Rows(Rows { tenant, dataset, rows: number(line, "rows")?, request: text(line, "request")? }))
    }
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
{"group":1,"index":5,"entry":"rows","tenant":"a","dataset":"d","tables":["logs"],"rows":2,"bytes":9,"request":"00ff"}
{"group":1,"index":6,"entry":"cut"}
{"group":2,"first":null,"last":null,"committed":null,"purged":null}
"#;

    #[test]
    fn a_listing_is_read_as_the_node_writes_it() -> anyhow::Result<()> {
        let log = Log::parse(LISTING)?;
        let [tenant, dataset, request] = ["a", "d", "00ff"].map(str::to_owned);
        let rows = Entry::Rows(Rows { tenant, dataset, rows: 2, request });
        let entries = BTreeMap::from([(5, rows), (6, Entry::Own("cut".to_owned()))]);
        let group = Group { committed: Some(6), purged: Some(4), entries };
        assert_eq!(log, Log { sound: true, groups: BTreeMap::from([(1, group), (2, Group::default())]) });
        Ok(())
    }

    #[test]
    fn a_field_that_is_missing_is_an_error_that_names_it() {
        for name in ["sound", "group", "index", "entry", "tenant", "dataset", "rows", "request", "committed", "purged"]
        {
            let renamed = LISTING.replace(&format!("\"{name}\":"), "\"other\":");
            let error = Log::parse(&renamed).map(|_| ()).expect_err(name);
            assert!(!format!("{error:#}").is_empty(), "{name}");
        }
        assert!(Log::parse("").is_err(), "nothing is no log");
    }
}
