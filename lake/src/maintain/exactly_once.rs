//! Every step of compaction, retention, expiry and collection fails in every way, beside a flush or not: the next visit
//! finds out, the flush is kept, no row is lost or doubled and no file that the table needs is missing.

use std::collections::{BTreeSet, HashSet};
use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::orphans::Seen;
use crate::testing::faults::{Fault, Hold, Plan};
use crate::testing::{Draw, Row, TestLake};
use crate::{CompactionConfig, LakeConfig, LakeError, RetentionConfig};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Compact,
    Retire,
    Expire,
    Collect,
}

/// A fault and what becomes of whoever had it.
#[derive(Debug, Clone, Copy)]
struct Case {
    fault: Fault,
    hold: Hold,
    /// Goes on after it was held up; else it is gone.
    resumes: bool,
}

const CASES: [Case; 9] = [
    Case { fault: Fault::Refused, hold: Hold::Nowhere, resumes: true },
    Case { fault: Fault::CommitError, hold: Hold::Nowhere, resumes: true },
    Case { fault: Fault::LostReply, hold: Hold::Nowhere, resumes: true },
    Case { fault: Fault::Late, hold: Hold::Nowhere, resumes: true },
    Case { fault: Fault::Nothing, hold: Hold::Before, resumes: false },
    Case { fault: Fault::Nothing, hold: Hold::After, resumes: false },
    Case { fault: Fault::Nothing, hold: Hold::Before, resumes: true },
    Case { fault: Fault::LostReply, hold: Hold::After, resumes: true },
    Case { fault: Fault::Late, hold: Hold::Before, resumes: true },
];

/// A table with work to do, the rows in it, and those of them that are too old.
async fn prepared(work: Work) -> (TestLake, Vec<Row>, Vec<Row>) {
    let compaction = CompactionConfig { min_files: 4, ..CompactionConfig::default() };
    let retention = RetentionConfig { keep: Some(24 * HOUR * 10), ..RetentionConfig::default() };
    let lake = TestLake::new(LakeConfig { compaction, retention, ..LakeConfig::default() }).await;
    let (mut draw, mut rows, mut old) = (Draw(3), Vec::new(), Vec::new());
    for n in 0..3 {
        let mut flushed = draw.rows(n, 5, lake.day_start(1));
        rows.extend(flushed.iter().cloned());
        if work == Work::Retire {
            let late = draw.rows(10 + n, 5, lake.day_start(12));
            old.extend(late.iter().cloned());
            flushed.extend(late);
        }
        lake.flush(&flushed, n as u64 + 1).await;
    }
    lake.clock.advance(HOUR * 3);
    if matches!(work, Work::Expire | Work::Collect) {
        lake.clock.advance(24 * HOUR * 8);
    }
    if work == Work::Collect {
        compact(&lake).await.expect("compacts");
        lake.clock.advance(24 * HOUR * 8);
        lake.upkeep().expire().await.expect("expires").expect("commits");
    }
    (lake, rows, old)
}

async fn compact(lake: &TestLake) -> Result<(), LakeError> {
    for rewrite in lake.upkeep().rewrites().await? {
        lake.upkeep().rewrite(&rewrite, &CancellationToken::new()).await?;
    }
    Ok(())
}

async fn run(lake: &TestLake, work: Work) -> Result<(), LakeError> {
    match work {
        Work::Compact => compact(lake).await?,
        Work::Retire => drop(lake.upkeep().retire().await?),
        Work::Expire => drop(lake.upkeep().expire().await?),
        Work::Collect => {
            let mut seen = Seen::new();
            for _ in 0..4 {
                lake.upkeep().collect(&mut seen).await?;
                lake.clock.advance(HOUR);
            }
        }
    }
    Ok(())
}

/// All rows are there once; those that are too old may be, while they are not all retired.
async fn check(lake: &TestLake, rows: &[Row], old: &[Row], context: &dyn std::fmt::Debug) {
    let files = lake.files().await;
    let paths: BTreeSet<&str> = files.iter().map(|file| file.file_path()).collect();
    assert_eq!(paths.len(), files.len(), "a file is referenced twice: {context:?}");
    let found = lake.rows().await;
    let mut expected = [rows, old].concat();
    if found.len() == rows.len() {
        expected = rows.to_vec();
    }
    expected.sort();
    assert_eq!(found, expected, "{context:?}");
    let (location, metadata) = lake.upkeep().current().await.expect("reads").expect("exists");
    let listed = lake.lake.store().list(metadata.location()).await.expect("lists");
    let listed: HashSet<&str> = listed.iter().map(|file| file.location.as_str()).collect();
    for needed in lake.lake.reachable(&metadata, &location).await.expect("reads") {
        assert!(listed.contains(needed.as_str()), "{needed} is not there: {context:?}");
    }
}

/// Whether the fault had its turn.
async fn fail_once(work: Work, case: Case, at: u64) -> bool {
    let context = (work, case, at);
    let (lake, mut rows, old) = prepared(work).await;
    let (more, mut index) = (Draw(9).rows(99, 4, lake.day_start(1)), 3);
    lake.faults.arm(Plan { at, fault: case.fault, hold: case.hold });
    {
        let mut working = pin!(run(&lake, work));
        tokio::select! {
            biased;
            // Whether it got over the fault by itself, or not.
            _ = &mut working => {}
            () = lake.faults.held() => {
                // On this node it would wait for its turn.
                lake.elsewhere().flush(&more, 4).await;
                (index, rows) = (4, [rows, more].concat());
                if case.resumes {
                    lake.faults.resume();
                    let _ = working.as_mut().await;
                }
            }
        }
    }
    let had_its_turn = lake.faults.disarm();
    check(&lake, &rows, &old, &context).await;
    let again = run(&lake, work).await;
    assert!(again.is_ok(), "nothing is in the way: {again:?} {context:?}");
    check(&lake, &rows, &old, &context).await;
    lake.pointers.land_late().await;
    check(&lake, &rows, &old, &context).await;
    assert_eq!(lake.mark().await, index, "{context:?}");
    match work {
        Work::Compact => assert!(lake.upkeep().rewrites().await.expect("plans").is_empty(), "{context:?}"),
        Work::Retire => assert_eq!(lake.rows().await.len(), rows.len(), "{context:?}"),
        Work::Expire | Work::Collect => {}
    }
    had_its_turn
}

async fn every_step(work: Work, cases: &[Case], steps_min: u64) {
    for case in cases {
        for at in 1.. {
            if !Box::pin(fail_once(work, *case, at)).await {
                assert!(at > steps_min, "{work:?} takes more steps than {at}");
                break;
            }
            assert!(at < 500, "{work:?} comes to an end");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_step_of_a_compaction_loses_and_doubles_nothing() {
    every_step(Work::Compact, &CASES, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_step_of_retention_and_expiry_loses_and_doubles_nothing() {
    every_step(Work::Retire, &CASES, 5).await;
    every_step(Work::Expire, &CASES, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_step_of_collecting_orphans_takes_nothing_that_is_needed() {
    every_step(Work::Collect, &[CASES[0], CASES[2], CASES[5], CASES[6]], 20).await;
}
