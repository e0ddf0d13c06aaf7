use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::testing::{Draw, TestLake, read_file, trace_id};
use crate::trace_index::{Blocks, Head, TraceIndex};
use crate::{CompactionConfig, LakeConfig, names};

const LATER: Duration = Duration::from_secs(3 * 3600);

fn config(target_file_bytes: u64) -> LakeConfig {
    let compaction = CompactionConfig { target_file_bytes, min_files: 4, ..CompactionConfig::default() };
    LakeConfig { compaction, ..LakeConfig::default() }
}

/// Compacts until nothing is left to do, some hours after the last flush: the days are over.
async fn compact(lake: &TestLake) -> usize {
    lake.clock.advance(LATER);
    let mut done = 0;
    while let Some(rewrite) = lake.upkeep().rewrites().await.expect("plans").into_iter().next() {
        let committed = lake.upkeep().rewrite(&rewrite, &CancellationToken::new()).await.expect("rewrites");
        assert!(committed.is_some(), "nobody else commits");
        done += 1;
        assert!(done < 100, "it ends");
    }
    done
}

#[tokio::test]
async fn compaction_keeps_every_row_in_order_in_fewer_files() {
    let lake = TestLake::new(config(128 << 20)).await;
    let mut draw = Draw(1);
    for n in 0..10 {
        let mut rows = draw.rows(n, 30, lake.day_start(1));
        rows.extend(draw.rows(n, 20, lake.day_start(3)));
        lake.flush(&rows, n as u64 + 1).await;
    }
    // Equal rows stay as many as they are.
    let twice = draw.rows(10, 5, lake.day_start(3));
    lake.flush(&twice, 11).await;
    lake.flush(&twice, 12).await;
    let before = lake.rows().await;
    assert_eq!((before.len(), lake.files().await.len()), (510, 22));
    assert_eq!(compact(&lake).await, 2, "one a day");
    assert_eq!(lake.rows().await, before);
    assert_eq!((lake.files().await.len(), lake.mark().await), (2, 12));
    let metadata = lake.metadata().await;
    let summary = &metadata.current_snapshot().expect("has one").summary().additional_properties;
    assert_eq!((summary["total-records"].as_str(), summary["total-data-files"].as_str()), ("510", "2"));
}

#[tokio::test]
async fn files_end_at_the_target_and_do_not_overlap() {
    let target = 512 << 10;
    let lake = TestLake::new(config(target)).await;
    let mut draw = Draw(2);
    for n in 0..8 {
        lake.flush(&draw.rows(n, 6000, lake.day_start(5)), n as u64 + 1).await;
    }
    let before = lake.rows().await;
    assert!(lake.files().await.iter().all(|file| file.file_size_in_bytes() < target * 3 / 4), "flushes are small");
    assert!(compact(&lake).await >= 1);
    assert_eq!(lake.rows().await, before);
    let files = lake.files().await;
    assert!((2..8).contains(&files.len()), "{} files", files.len());
    let small = files.iter().filter(|file| file.file_size_in_bytes() < target * 3 / 4).count();
    assert!(small <= 1, "only the last one is small");
    let service = signaldb_signals::schema::of(crate::testing::TABLE).column("service_name").expect("exists").id;
    let mut ranges: Vec<_> =
        files.iter().map(|file| (&file.lower_bounds()[&service], &file.upper_bounds()[&service])).collect();
    ranges.sort_by(|a, b| a.partial_cmp(b).expect("texts compare"));
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:?}");
}

#[tokio::test]
async fn a_rewrite_that_is_told_to_stop_commits_nothing() {
    let lake = TestLake::new(config(128 << 20)).await;
    for n in 0..4 {
        lake.flush(&Draw(n).rows(n as usize, 10, lake.day_start(1)), n + 1).await;
    }
    lake.clock.advance(LATER);
    let before = lake.metadata().await;
    let stop = CancellationToken::new();
    stop.cancel();
    let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
    lake.upkeep().rewrite(&rewrite, &stop).await.expect_err("stops");
    assert_eq!(lake.metadata().await.last_sequence_number(), before.last_sequence_number());
}

/// Guarantees: each data file of a compaction is in the index of its commit, with its row groups, and the index leads to
/// each of its traces; a trace is looked for nowhere else.
#[tokio::test]
async fn the_trace_index_of_a_compaction_leads_to_each_trace() {
    let lake = TestLake::new(config(512 << 10)).await;
    let mut draw = Draw(4);
    for n in 0..8 {
        lake.flush(&draw.rows(n, 6000, lake.day_start(5)), n as u64 + 1).await;
    }
    compact(&lake).await;
    let (mut files, mut found_in) = (0, 0);
    for file in lake.files().await {
        let (index, number) = names::trace_index_of(file.file_path()).expect("was compacted");
        let content = lake.lake.store().read(&index).await.expect("is there");
        let Ok(Head::Read(index)) = TraceIndex::read(&content) else { panic!("is an index") };
        assert!(index.covers(number, file.record_count(), file.split_offsets().map(<[i64]>::len)));
        files += 1;
        for row in read_file(&lake.lake, &file).await.iter().step_by(500) {
            let (id, mut blocks) = (trace_id(row), Blocks::new());
            let leaf = index.leaf(&id).expect("is in one");
            let range = leaf.range.start as usize..leaf.range.end as usize;
            index.find(leaf, &content[range], &id, &mut blocks).expect("reads");
            assert_eq!(blocks.len(), 1, "one span, one block");
            let rows = index.rows(number, &blocks).expect("has the file");
            assert_eq!(rows.groups.iter().filter(|group| !group.ranges.is_empty()).count(), 1);
            found_in += 1;
        }
    }
    assert!(files > 1 && found_in > 50, "{found_in} traces in {files} files");
}
