//! What was done and what came of it: one JSON object a line, in the order of time.

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;

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
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

/// What an operation does to the set of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "f", content = "value")]
pub(crate) enum Kind {
    Add(Vec<String>),
    /// Every element that was read, as often as it was there; empty unless it ended well.
    Read(Vec<String>),
    /// The last read of a node, or of the tables through another reader.
    Final(Vec<String>),
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
