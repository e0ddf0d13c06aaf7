//! The same rows in DuckDB and in ClickHouse (chdb), from PyPI.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

const SCRIPT: &str = include_str!("../../python/peers.py");

/// Bytes a record elsewhere.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) duckdb: f64,
    pub(crate) duckdb_parquet: f64,
    pub(crate) clickhouse: f64,
    /// Versions of both.
    pub(crate) versions: String,
}

/// Loads the rows of our data files, at `paths`, into the other stores. Blocking.
pub(crate) fn measure(python: &Path, table: &str, paths: &[String], records: u64) -> anyhow::Result<Peers> {
    let dir = tempfile::tempdir()?;
    let asked = json!({"table": table, "paths": paths, "dir": dir.path()});
    let output = Command::new(python).args(["-c", SCRIPT]).arg(asked.to_string()).output();
    let output = output.with_context(|| format!("run {}", python.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the other stores: {said}");
    parse(&String::from_utf8_lossy(&output.stdout), records)
}

fn parse(answer: &str, records: u64) -> anyhow::Result<Peers> {
    let answer: Value = serde_json::from_str(answer.trim()).with_context(|| format!("not an answer: {answer}"))?;
    let of = |store: &str| {
        let bytes = answer[store]["bytes"].as_f64().with_context(|| format!("bytes of {store}"))?;
        let rows = answer[store]["rows"].as_u64();
        ensure!(rows == Some(records), "{store} has {rows:?} of {records} rows");
        anyhow::Ok(bytes / records as f64)
    };
    let versions = answer["versions"].as_str().unwrap_or_default().to_owned();
    let (duckdb, duckdb_parquet) = (of("duckdb")?, of("duckdb_parquet")?);
    Ok(Peers { duckdb, duckdb_parquet, clickhouse: of("clickhouse")?, versions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_missing_elsewhere_make_no_comparison() {
        let answer = r#"{"duckdb": {"rows": 2, "bytes": 150}, "duckdb_parquet": {"rows": 2, "bytes": 80},
            "clickhouse": {"rows": 2, "bytes": 100}, "versions": "x"}"#;
        let peers = parse(answer, 2).expect("parses");
        assert!((peers.duckdb - 75.0).abs() < 1e-9 && (peers.clickhouse - 50.0).abs() < 1e-9, "{peers:?}");
        assert!(parse(answer, 3).is_err());
        assert!(parse("no", 2).is_err());
    }
}
