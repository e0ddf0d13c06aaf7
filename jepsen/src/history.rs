//! What was done and what came of it: one JSON object a line, in the order of time.

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;

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
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), operations: Mutex::default() }
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

/// Writes operations as JSON lines.
pub(crate) fn write(path: &Path, operations: &[Operation]) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut out = std::io::BufWriter::new(file);
    for operation in operations {
        serde_json::to_writer(&mut out, operation)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}
