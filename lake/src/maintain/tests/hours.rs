//! Six hours of a busy table, by a clock that the test moves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use iceberg::spec::TableMetadata;
use tokio_util::sync::CancellationToken;

use crate::compact::plan::{CompactionPolicy, class};
use crate::maintain::REWRITES_A_VISIT;
use crate::orphans::Seen;
use crate::testing::{Draw, TestLake};
use crate::{CompactionConfig, LakeConfig};

const COMMITS: usize = 720;
const EVERY: Duration = Duration::from_secs(30);
/// How long the slowest query reads the files that it found at its start: half the grace.
const QUERY_COMMITS: usize = 60;
const METADATA_BYTES_MAX: usize = 1_000_000;

/// One round of the maintainer.
async fn visit(lake: &TestLake) {
    let rewrites = lake.upkeep().rewrites().await.expect("plans");
    for rewrite in rewrites.iter().take(REWRITES_A_VISIT) {
        lake.upkeep().rewrite(rewrite, &CancellationToken::new()).await.expect("rewrites");
    }
    lake.upkeep().expire().await.expect("answers");
}

/// Every file that a query on this version reads is there.
async fn assert_readable(lake: &TestLake, metadata: &TableMetadata) {
    let store = lake.lake.store();
    for file in lake.lake.data_files(metadata).await.expect("reads").iter().flat_map(|files| files.iter()) {
        assert!(store.exists(file.file_path()).await.expect("answers"), "{}", file.file_path());
    }
}

/// Every file that the current version reaches, by any of its snapshots, is there.
async fn assert_nothing_missing(lake: &TestLake) {
    let (location, metadata) = lake.upkeep().current().await.expect("reads").expect("exists");
    for file in lake.lake.reachable(&metadata, &location).await.expect("every manifest can be read") {
        assert!(lake.lake.store().exists(&file).await.expect("answers"), "{file}");
    }
}

/// Scenario: a flush every 30 s for six hours, a visit a minute, a look for orphans an hour; queries begin all the time and
/// take up to half an hour. At last nothing more is flushed, and the visits go on.
/// Guarantees: after each hour every row is there once, no file that a kept snapshot or a running query needs is missing,
/// `metadata.json` is below 1 MB, and the files of each size class are fewer than make a rewrite and those of one visit.
/// Orphans do go.
#[tokio::test]
async fn six_hours_of_commits_leave_few_files_and_little_metadata() {
    let compaction = CompactionConfig { target_file_bytes: 1 << 20, ..CompactionConfig::default() };
    let policy = CompactionPolicy::from(&compaction);
    let lake = TestLake::new(LakeConfig { compaction, ..LakeConfig::default() }).await;
    let (today, mut draw, mut seen) = (lake.day_start(0), Draw(11), Seen::new());
    let (mut expected, mut running): (Vec<_>, VecDeque<Arc<TableMetadata>>) = Default::default();
    let mut deleted = 0;
    for n in 0..COMMITS {
        let rows = draw.rows(n, 3, today);
        lake.flush(&rows, n as u64 + 1).await;
        expected.extend(rows);
        running.push_back(lake.metadata().await);
        lake.clock.advance(EVERY);
        if n % 2 == 1 {
            visit(&lake).await;
        }
        let ending = if running.len() > QUERY_COMMITS { running.pop_front() } else { None };
        if n % 120 != 119 {
            continue;
        }
        let before = lake.lake.store().list(lake.metadata().await.location()).await.expect("lists").len();
        lake.upkeep().collect(&mut seen).await.expect("collects");
        let after = lake.lake.store().list(lake.metadata().await.location()).await.expect("lists").len();
        deleted += before.saturating_sub(after);

        expected.sort();
        assert_eq!(lake.rows().await, expected, "after {n} commits");
        assert_eq!(lake.mark().await, n as u64 + 1);
        assert_nothing_missing(&lake).await;
        if let Some(metadata) = ending {
            assert_readable(&lake, &metadata).await;
        }
        let (location, _) = lake.upkeep().current().await.expect("reads").expect("exists");
        let bytes = lake.lake.store().read(&location).await.expect("reads").len();
        assert!(bytes < METADATA_BYTES_MAX, "metadata.json has {bytes} bytes after {n} commits");
        let files = lake.files().await.len();
        assert!(files <= 4 * policy.min_files + 2, "{files} files after {n} commits");
    }
    assert!(deleted > COMMITS / 2, "what compaction replaced and snapshots showed goes: {deleted}");
    while !lake.upkeep().rewrites().await.expect("plans").is_empty() {
        visit(&lake).await;
    }
    let mut classes: BTreeMap<u32, usize> = BTreeMap::new();
    for file in lake.files().await {
        *classes.entry(class(file.file_size_in_bytes(), &policy)).or_default() += 1;
    }
    assert!(classes.values().all(|files| *files < policy.min_files), "{classes:?}");
    assert_eq!(lake.rows().await, expected);
}
