//! Many writers of one table, on each database that a catalog can be in.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use signaldb_catalog::{Database, IcebergCatalog, PoolConfig};
use tokio::task::JoinSet;

use super::*;
use crate::metadata::Change;
use crate::storage::{S3Options, Store};
use crate::table::version_of;
use crate::testing::{Draw, TABLE, TestLake};
use crate::{LakeConfig, RetryConfig};

const WRITERS: usize = 8;
const COMMITS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn eight_writers_of_one_table_lose_no_commit_on_sqlite() {
    let dir = tempfile::tempdir().expect("temporary directory");
    writers_lose_no_commit(&format!("sqlite://{}/catalog.db", dir.path().display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_writers_of_one_table_lose_no_commit_on_postgres() {
    let server = signaldb_catalog::test_postgres::Server::start().expect("a private PostgreSQL starts");
    writers_lose_no_commit(&server.address()).await;
}

/// A node of its own: another pool, other caches; the same catalog and store.
async fn node(address: &str, store: &Store) -> TestLake {
    // So many that all of them want the same base take turns sooner than nodes do.
    let retry = RetryConfig {
        max_attempts: 10_000,
        initial_delay: Duration::from_millis(2),
        max_delay: Duration::from_millis(100),
        ..RetryConfig::default()
    };
    let database = Database::open(address, &PoolConfig::default()).await.expect("opens");
    let catalog = IcebergCatalog::open(database).await.expect("creates tables");
    TestLake::over(LakeConfig { retry, ..LakeConfig::default() }, catalog, store.clone())
}

/// Scenario: eight writers load, stage and swap at the same time, each 50 times one file and a mark of its own.
/// Guarantees: 400 versions; every file is in the table once; every writer's mark is its last.
async fn writers_lose_no_commit(address: &str) {
    let store = Store::open("memory://", "", &S3Options::default()).expect("opens");
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let node = node(address, &store).await;
        writers.spawn(async move {
            let (mut draw, mut written) = (Draw(writer as u64), Vec::new());
            for step in 1..=COMMITS {
                let (files, add) = node.write(&draw.rows(writer * COMMITS + step, 1, node.day_start(0))).await;
                written.extend(add.iter().map(|file| file.file_path().to_owned()));
                let change = Change {
                    add,
                    set_properties: HashMap::from([(mark(writer), step.to_string())]),
                    expire: true,
                    merge_manifests: true,
                    ..Change::default()
                };
                let committed = loop {
                    match commit(&node.lake, &node.id, TABLE, &change, Some(files)).await {
                        // SQLite's turns are not fair: who waited for too long did nothing, and comes again.
                        Err(LakeError::Catalog(CatalogError::Sql { .. })) => {}
                        committed => break committed.expect("commits"),
                    }
                };
                assert!(matches!(committed, Committed::Done { .. }), "{committed:?}");
            }
            written
        });
    }
    let written: Vec<String> = writers.join_all().await.into_iter().flatten().collect();
    let reader = node(address, &store).await;
    let current = reader.lake.current_table(&reader.id.namespace(), TABLE.name()).await.expect("answers");
    let (location, metadata) = current.expect("exists");
    assert_eq!(version_of(&location), (WRITERS * COMMITS) as i64, "each commit is a version");
    let mut found: Vec<String> = reader.files().await.iter().map(|file| file.file_path().to_owned()).collect();
    found.sort();
    let expected: BTreeSet<String> = written.into_iter().collect();
    assert_eq!(expected.len(), WRITERS * COMMITS);
    assert!(found.iter().eq(expected.iter()), "{} files are in the table", found.len());
    for writer in 0..WRITERS {
        assert_eq!(metadata.properties()[&mark(writer)], COMMITS.to_string(), "writer {writer}");
    }
}

fn mark(writer: usize) -> String {
    format!("signaldb.flush.{writer}")
}
