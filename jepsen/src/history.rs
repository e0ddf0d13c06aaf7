//! What was done and what came of it: one JSON object a line, in the order of time.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize, Serializer};

use crate::scenario::Workload;

/// The dataset of requests that name none.
pub(crate) const DEFAULT_DATASET: &str = "default";

/// The table of spans; everything else is written as log records.
pub(crate) const SPANS: &str = "traces";
pub(crate) const LOG_RECORDS: &str = "logs";

/// What an acknowledgment promises beyond `kill -9`, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// It survives the power loss of a minority; that of all nodes may cost what was acknowledged last.
    Quorum,
    /// It survives the power loss of all.
    Fsync,
}

impl Level {
    /// As the header `X-SignalDB-Ack` says; what it does not say is not promised.
    pub(crate) fn of(header: Option<&str>) -> Self {
        match header {
            Some("quorum-fsync" | "local-fsync") => Self::Fsync,
            _ => Self::Quorum,
        }
    }
}

/// Where the log holds what was acknowledged: `X-SignalDB-Position: <group>:<index>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) group: u32,
    pub(crate) index: u64,
}

impl Position {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (group, index) = text.split_once(':')?;
        Some(Self { group: group.parse().ok()?, index: index.parse().ok()? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.group, self.index)
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Ok,
    /// It certainly did not happen.
    Fail,
    /// Nobody knows.
    Info,
}

/// An operation with its times, nanoseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Operation {
    pub(crate) process: usize,
    pub(crate) node: usize,
    pub(crate) tenant: &'static str,
    pub(crate) invoked: u64,
    pub(crate) ended: u64,
    pub(crate) outcome: Outcome,
    /// What an add asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asked: Option<Level>,
    /// What its acknowledgment said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) given: Option<Level>,
    /// Where its acknowledgment said that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) position: Option<Position>,
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

/// What an operation does: to the set of a tenant's spans (`add`, `read`, `final`), to one key of a dataset's log records
/// (`write`, `query`), or to a table from outside (`audit`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "f", content = "value")]
pub(crate) enum Kind {
    Add(Vec<String>),
    /// Every element that was read, as often as it was there; empty unless it ended well.
    Read(Vec<String>),
    /// The last read of a node.
    Final(Vec<String>),
    Write(Write),
    Query(Query),
    Audit(Audit),
}

/// A request of one or more rows for a key, or a repeat of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Write {
    pub(crate) workload: Workload,
    pub(crate) dataset: &'static str,
    pub(crate) key: String,
    /// Its idempotency key: writes of a dataset with the same one are the same request.
    pub(crate) request: String,
    pub(crate) rows: Vec<String>,
    /// The acknowledgment says that the log held it already.
    pub(crate) deduplicated: bool,
}

/// What a query is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Purpose {
    /// A read under faults.
    Middle,
    /// The last read of a node: all rows of the key.
    Last,
    /// It names what belongs to another tenant.
    Trespass,
}

/// A read of the rows of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Query {
    pub(crate) workload: Workload,
    pub(crate) dataset: &'static str,
    pub(crate) key: String,
    pub(crate) purpose: Purpose,
    pub(crate) strong: bool,
    /// What it has to show, whatever its consistency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min: Option<Position>,
    /// The status of an answer that was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<u16>,
    /// Every row that was read, as often as it was there; of a register, under faults, only the newest.
    pub(crate) rows: Vec<String>,
}

/// A table as another reader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Audit {
    pub(crate) dataset: &'static str,
    pub(crate) table: &'static str,
    #[serde(flatten)]
    pub(crate) found: Table,
}

/// What is in a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Table {
    /// Key and row; spans have no key.
    pub(crate) rows: Vec<(String, String)>,
    /// Live data files, as often as they are referenced.
    pub(crate) files: Vec<String>,
    /// Rows of those files, as the manifests have it.
    pub(crate) records: u64,
    /// What the snapshots that are left say, in their order.
    pub(crate) flushes: Vec<Flush>,
}

/// The mark of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flush {
    /// Of the snapshot.
    pub(crate) sequence: u64,
    pub(crate) group: u32,
    pub(crate) incarnation: u64,
    /// Up to this one all rows of the group are in the table.
    pub(crate) index: u64,
}

/// A key that something was written to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) tenant: &'static str,
    pub(crate) dataset: &'static str,
    pub(crate) key: String,
    pub(crate) workload: Workload,
}

/// Every key that something was written to, or may have been.
pub(crate) fn keys(operations: &[Operation]) -> BTreeSet<Key> {
    let writes = operations.iter().filter_map(|one| match &one.kind {
        Kind::Write(write) => Some((one.tenant, write)),
        _ => None,
    });
    let key = |(tenant, write): (&'static str, &Write)| Key {
        tenant,
        dataset: write.dataset,
        key: write.key.clone(),
        workload: write.workload,
    };
    writes.map(key).collect()
}

/// Collects operations and writes them down.
#[derive(Debug)]
pub(crate) struct History {
    begun: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl History {
    /// One whose times count from `begun`.
    pub(crate) fn since(begun: Instant) -> Self {
        Self { begun, operations: Mutex::default() }
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn push(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// Every key that something was written to so far, or may have been.
    pub(crate) fn keys(&self) -> BTreeSet<Key> {
        keys(&self.operations.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn into_operations(self) -> Vec<Operation> {
        let mut operations = self.operations.into_inner().unwrap_or_else(PoisonError::into_inner);
        operations.sort_by_key(|operation| operation.invoked);
        operations
    }
}

/// Writes operations, or whatever else happened, as JSON lines.
pub(crate) fn write<T: Serialize>(path: &Path, happened: &[T]) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut out = std::io::BufWriter::new(file);
    for one in happened {
        serde_json::to_writer(&mut out, one)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        let position = Position { group: 3, index: 41 };
        assert_eq!(Position::parse(&position.to_string()), Some(position));
        for text in ["", "3", "3:", ":41", "a:1", "3:41:1"] {
            assert_eq!(Position::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_operation_is_one_flat_line_of_json() -> anyhow::Result<()> {
        let write = Write {
            workload: Workload::Log,
            dataset: "default",
            key: "log-0".to_owned(),
            request: "r".to_owned(),
            rows: vec!["x".to_owned()],
            deduplicated: false,
        };
        let operation = Operation {
            process: 1,
            node: 2,
            tenant: "a",
            invoked: 3,
            ended: 4,
            outcome: Outcome::Ok,
            asked: None,
            given: Some(Level::Quorum),
            position: Position::parse("3:41"),
            kind: Kind::Write(write),
        };
        let expected = serde_json::json!({
            "process": 1, "node": 2, "tenant": "a", "invoked": 3, "ended": 4, "outcome": "ok", "given": "quorum",
            "position": "3:41", "f": "write",
            "value": {
                "workload": "log", "dataset": "default", "key": "log-0", "request": "r", "rows": ["x"],
                "deduplicated": false,
            },
        });
        assert_eq!(serde_json::to_value(operation)?, expected);
        Ok(())
    }
}
