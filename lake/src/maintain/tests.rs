use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Upkeep;
use crate::commit::{Committed, commit};
use crate::compact::execute::execute;
use crate::metadata::Change;
use crate::orphans::Seen;
use crate::promote::FileSchema;
use crate::testing::{DAY_NANOS, Draw, Row, TABLE, TestLake};
use crate::{CompactionConfig, LakeConfig, RetentionConfig};

mod hours;
mod rivals;

const HOUR: Duration = Duration::from_secs(3600);

fn config() -> LakeConfig {
    let compaction = CompactionConfig { min_files: 4, ..CompactionConfig::default() };
    let retention = RetentionConfig { keep: Some(24 * HOUR * 10), ..RetentionConfig::default() };
    LakeConfig { compaction, retention, ..LakeConfig::default() }
}

/// A table of `flushes` flushes into the same day, which is over.
async fn table(flushes: usize) -> (TestLake, Vec<Row>) {
    let lake = TestLake::new(config()).await;
    let mut draw = Draw(3);
    let mut all = Vec::new();
    for n in 0..flushes {
        let rows = draw.rows(n, 10, lake.day_start(1));
        lake.flush(&rows, n as u64 + 1).await;
        all.extend(rows);
    }
    all.sort();
    lake.clock.advance(HOUR * 3);
    (lake, all)
}

/// Collects until nothing goes any more; how many files went.
async fn collect(lake: &TestLake, seen: &mut Seen) -> usize {
    let count = async || lake.lake.store().list(lake.metadata().await.location()).await.expect("lists").len();
    let before = count().await;
    for _ in 0..6 {
        // Each commit leaves metadata behind that becomes an orphan later: by then it is too young.
        lake.upkeep().collect(seen).await.expect("collects");
        lake.clock.advance(HOUR);
    }
    before.saturating_sub(count().await)
}

#[tokio::test]
async fn a_flush_between_rewriting_and_committing_is_kept() {
    let (lake, mut expected) = table(5).await;
    let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
    let (root, stop) = (lake.metadata().await.location().to_owned(), CancellationToken::new());
    let rewritten =
        execute(&lake.lake, FileSchema::plain(TABLE), &root, &rewrite, 128 << 20, &stop).await.expect("rewrites");
    let late = Draw(9).rows(99, 7, lake.day_start(1));
    lake.flush(&late, 6).await;
    let (add, remove) = (rewritten.files.clone(), rewrite.files.clone());
    let change = Change { add, remove, ..Change::default() };
    let done = commit(&lake.lake, &lake.id, TABLE, &change, Some(rewritten.commit)).await.expect("commits");
    assert!(matches!(done, Committed::Done { .. }));
    expected.extend(late);
    expected.sort();
    assert_eq!((lake.rows().await, lake.mark().await), (expected.clone(), 6));
    // Whoever planned the same comes too late, and doubles nothing.
    let again = commit(&lake.lake, &lake.id, TABLE, &change, Some(rewritten.commit)).await.expect("answers");
    assert_eq!(again, Committed::Overtaken);
    assert_eq!(lake.rows().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn flushes_and_compactions_at_the_same_time_lose_and_double_nothing() {
    let (lake, mut expected) = table(4).await;
    let mut draw = Draw(4);
    let batches: Vec<Vec<Row>> = (0..12).map(|n| draw.rows(100 + n, 5, lake.day_start(1))).collect();
    let flushing = async {
        for (batch, index) in batches.iter().zip(5..) {
            lake.flush(batch, index).await;
        }
    };
    let compacting = async {
        let mut committed = 0;
        for _ in 0..20 {
            for rewrite in lake.upkeep().rewrites().await.expect("plans") {
                let done = lake.upkeep().rewrite(&rewrite, &CancellationToken::new()).await;
                committed += usize::from(done.expect("rewrites").is_some());
            }
            tokio::task::yield_now().await;
        }
        committed
    };
    let ((), committed) = tokio::join!(flushing, compacting);
    assert!(committed > 0);
    expected.extend(batches.concat());
    expected.sort();
    assert_eq!((lake.rows().await, lake.mark().await), (expected, 16));
}

/// A crash leaves everything as it was before the step, or as it is after it; the next visit goes on from there.
#[tokio::test]
async fn a_crash_between_any_two_steps_loses_and_doubles_nothing() {
    let (lake, expected) = table(5).await;
    let stop = CancellationToken::new();
    let root = lake.metadata().await.location().to_owned();
    let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
    // Crashed after writing data files.
    let lost =
        execute(&lake.lake, FileSchema::plain(TABLE), &root, &rewrite, 128 << 20, &stop).await.expect("rewrites");
    assert_eq!(lake.rows().await, expected);
    // Crashed after writing metadata, before the swap.
    let again =
        execute(&lake.lake, FileSchema::plain(TABLE), &root, &rewrite, 128 << 20, &stop).await.expect("rewrites");
    let (location, metadata) = lake.upkeep().current().await.expect("reads").expect("exists");
    let change = Change { add: again.files.clone(), remove: rewrite.files.clone(), ..Change::default() };
    let staged = lake.lake.stage(&metadata, &location, change).await.expect("stages");
    for (location, content) in staged.files {
        lake.lake.store().write(&location, content).await.expect("writes");
    }
    assert_eq!(lake.rows().await, expected);
    // The next visit plans the same, and gets through.
    let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
    lake.upkeep().rewrite(&rewrite, &stop).await.expect("rewrites").expect("commits");
    assert_eq!((lake.rows().await, lake.files().await.len()), (expected.clone(), 1));
    // What the crashes left behind goes after the grace, and only that.
    let mut seen = Seen::new();
    assert!(collect(&lake, &mut seen).await > 0);
    for file in lost.files.iter().chain(&again.files) {
        assert!(!lake.lake.store().exists(file.file_path()).await.expect("answers"), "{}", file.file_path());
    }
    assert_eq!(lake.rows().await, expected);
}

#[tokio::test]
async fn files_of_kept_snapshots_and_young_files_are_never_collected() {
    let (lake, expected) = table(4).await;
    let old = lake.files().await;
    let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
    lake.upkeep().rewrite(&rewrite, &CancellationToken::new()).await.expect("rewrites").expect("commits");
    let mut seen = Seen::new();
    collect(&lake, &mut seen).await;
    // A snapshot of the last week still shows the last of them.
    let last = old.iter().max_by_key(|file| crate::names::data_file_ms(file.file_path())).expect("has files");
    assert!(lake.lake.store().exists(last.file_path()).await.expect("answers"));
    // A flush that has written its file, and not committed yet.
    let written = crate::names::data_file(lake.metadata().await.location(), "1", lake.lake.new_commit(), 0, 0);
    lake.lake.store().write(&written, bytes::Bytes::from_static(b"rows")).await.expect("writes");
    for _ in 0..3 {
        lake.upkeep().collect(&mut seen).await.expect("collects");
        lake.clock.advance(HOUR / 4);
    }
    assert!(lake.lake.store().exists(&written).await.expect("answers"));
    // A week later everything but the current files may go.
    lake.clock.advance(24 * HOUR * 8);
    lake.upkeep().expire().await.expect("expires").expect("commits");
    collect(&lake, &mut seen).await;
    for file in &old {
        assert!(!lake.lake.store().exists(file.file_path()).await.expect("answers"), "{}", file.file_path());
    }
    assert!(!lake.lake.store().exists(&written).await.expect("answers"));
    assert_eq!(lake.rows().await, expected);
    assert_eq!(lake.mark().await, 4);
}

/// Guarantees: the trace index of a compaction stays while a snapshot shows a file of it, and goes like the file.
#[tokio::test]
async fn a_trace_index_lives_as_long_as_the_files_of_its_commit() {
    let (lake, mut expected) = table(4).await;
    let stop = CancellationToken::new();
    let compact = async || {
        let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
        lake.upkeep().rewrite(&rewrite, &stop).await.expect("rewrites").expect("commits");
        let file = lake.files().await.remove(0).file_path().to_owned();
        (crate::names::trace_index_of(&file).expect("was compacted").0, file)
    };
    let exists = async |file: &String| lake.lake.store().exists(file).await.expect("answers");
    let mut seen = Seen::new();
    let (first_index, first_file) = compact().await;
    lake.clock.advance(24 * HOUR * 8);
    lake.upkeep().expire().await.expect("expires").expect("commits");
    collect(&lake, &mut seen).await;
    assert!(exists(&first_index).await && exists(&first_file).await);

    let day = expected[0].2 as u64 / DAY_NANOS * DAY_NANOS;
    let late = Draw(8).rows(50, 10, day);
    lake.flush(&late, 5).await;
    lake.clock.advance(HOUR * 3);
    let (second_index, second_file) = compact().await;
    // A snapshot still shows what was before.
    collect(&lake, &mut seen).await;
    assert!(exists(&first_index).await && exists(&first_file).await);
    lake.clock.advance(24 * HOUR * 8);
    lake.upkeep().expire().await.expect("expires").expect("commits");
    collect(&lake, &mut seen).await;
    assert!(!exists(&first_index).await && !exists(&first_file).await);
    assert!(exists(&second_index).await && exists(&second_file).await);
    expected.extend(late);
    expected.sort();
    assert_eq!(lake.rows().await, expected);
}

#[tokio::test]
async fn a_flush_that_was_held_up_too_long_gives_its_files_up() {
    let (lake, expected) = table(1).await;
    let commit_id = lake.lake.new_commit();
    lake.clock.advance(HOUR / 2);
    let change = Change { add: lake.files().await, ..Change::default() };
    let outcome = commit(&lake.lake, &lake.id, TABLE, &change, Some(commit_id)).await.expect("answers");
    assert_eq!(outcome, Committed::Overtaken);
    assert_eq!(lake.rows().await, expected);
}

#[tokio::test]
async fn retention_removes_whole_files_that_are_too_old() {
    let lake = TestLake::new(config()).await;
    let mut draw = Draw(5);
    let (old, young) = (draw.rows(1, 10, lake.day_start(12)), draw.rows(2, 10, lake.day_start(8)));
    lake.flush(&[old, young.clone()].concat(), 1).await;
    let upkeep: Upkeep<'_> = lake.upkeep();
    upkeep.retire().await.expect("answers").expect("commits");
    let mut expected = young;
    expected.sort();
    assert_eq!((lake.rows().await, lake.mark().await), (expected, 1));
    let metadata = lake.metadata().await;
    assert_eq!(metadata.current_snapshot().expect("has one").summary().operation, iceberg::spec::Operation::Delete);
    assert_eq!(upkeep.retire().await.expect("answers"), None, "nothing is left to remove");
}

#[tokio::test]
async fn an_idle_table_drops_its_snapshots_and_is_then_left_alone() {
    let (lake, expected) = table(6).await;
    assert_eq!(lake.upkeep().expire().await.expect("answers"), None, "flushes do it");
    lake.clock.advance(24 * HOUR * 9);
    lake.upkeep().expire().await.expect("answers").expect("commits");
    assert_eq!(lake.metadata().await.snapshots().count(), 1);
    lake.clock.advance(24 * HOUR * 9);
    assert_eq!(lake.upkeep().expire().await.expect("answers"), None);
    assert_eq!(lake.rows().await, expected);
}
