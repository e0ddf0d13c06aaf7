use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Rows of the house (ARCHITECTURE.md), top to bottom: a crate imports only from rows below its own.
const ROWS: &[&[&str]] = &[
    &["cluster-tests"],
    &["node"],
    &["api"],
    &["query"],
    &["lake"],
    &["raft", "catalog"],
    &["wal", "signals"],
    &["proto"],
    &["model"],
];
/// Beside the house, with what they may import: `jepsen` knows the system only from outside, `bench` measures the log, the
/// way from OTLP to Parquet and the catalog apart from the rest.
const OUTSIDE: &[(&str, &[&str])] =
    &[("jepsen", &["proto"]), ("bench", &["model", "proto", "raft", "wal", "signals", "catalog", "lake"])];

/// What must stay absent: a crate and a dependency that it may not have, even for tests.
const ABSENT: &[(&str, &str)] = &[
    ("wal", "arrow"),
    ("wal", "tokio"),
    ("raft", "arrow"),
    ("signals", "tokio"),
    ("signals", "datafusion"),
    ("signals", "iceberg"),
    ("query", "axum"),
    ("lake", "datafusion"),
    ("lake", "axum"),
    ("catalog", "iceberg"),
    ("api", "sqlx"),
    ("lake", "sqlx"),
    ("query", "sqlx"),
];

#[test]
fn crates_import_only_from_rows_below() -> anyhow::Result<()> {
    let metadata = MetadataCommand::new().no_deps().exec()?;
    let row_of: BTreeMap<&str, usize> =
        ROWS.iter().enumerate().flat_map(|(row, names)| names.iter().map(move |name| (*name, row))).collect();
    for package in &metadata.packages {
        let name = package.name.strip_prefix("signaldb-").expect("our packages are named signaldb-*");
        for dependency in &package.dependencies {
            let Some(other) = dependency.name.strip_prefix("signaldb-") else { continue };
            if other == name {
                continue;
            }
            if let Some((_, allowed)) = OUTSIDE.iter().find(|(outside, _)| *outside == name) {
                assert!(allowed.contains(&other), "{name} imports {other}");
                continue;
            }
            let test_of_own_row = dependency.kind == DependencyKind::Development && row_of[name] == row_of[other];
            assert!(row_of[name] < row_of[other] || test_of_own_row, "{name} imports {other}, which is not below it");
        }
        for (_, absent) in ABSENT.iter().filter(|(crate_name, _)| *crate_name == name) {
            let found = package.dependencies.iter().any(|dependency| dependency.name == *absent);
            assert!(!found, "{name} must not depend on {absent}");
        }
    }
    assert_eq!(metadata.packages.len(), row_of.len() + OUTSIDE.len(), "every crate has its row");
    Ok(())
}
