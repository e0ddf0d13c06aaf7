//! Compaction of a table that others commit to all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::FutureExt;
use signaldb_catalog::{Swap, SwapOutcome};

use super::*;
use crate::maintain::Visit;
use crate::testing::faults::{BEFORE_SWAP, BeforeSwap};
use crate::testing::rig::{Rig, table_id};
use crate::{LakeError, RetryConfig};

/// So many flushes may end between a compaction's first look at the table and its commit.
const COMMITS_MAX: u64 = 3;
/// After so many flushes nobody waits for the compaction any longer.
const FLUSHES_MAX: u64 = 100;

/// A compaction and flushes, side by side.
#[derive(Default)]
struct Race {
    over: AtomicBool,
    flushes: AtomicU64,
    /// Of the compaction.
    swaps: AtomicU64,
    flushes_at_first_swap: AtomicU64,
}

/// Holds a compaction up before each swap until somebody was faster, or waits for a turn.
fn slowly(race: &Arc<Race>, rig: &Rig, id: &signaldb_model::TableId) -> BeforeSwap {
    let (race, catalog, id) = (Arc::clone(race), rig.catalog.clone(), id.clone());
    let lake = rig.process.leaders[0].lake.clone();
    Arc::new(move |swap: Swap| {
        let (race, catalog, id, lake) = (Arc::clone(&race), catalog.clone(), id.clone(), lake.clone());
        let until_late = async move {
            if race.swaps.fetch_add(1, Ordering::SeqCst) == 0 {
                race.flushes_at_first_swap.store(race.flushes.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            while !race.over.load(Ordering::SeqCst) && !lake.commit_turns().is_waited_for(&id) {
                let current = catalog.load(&swap.namespace, &swap.table).await.expect("answers");
                if current.as_ref() != Some(&swap.base) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        until_late.boxed()
    })
}

/// Scenario: a table is flushed to without pause, and a compaction takes so long from looking at the table to its swap that
/// a flush always comes between if it may.
/// Guarantees: the compaction's first swap succeeds, within a few commits; every row is there once, and every file.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_flushed_to_without_pause_is_compacted() {
    let mut rig = Rig::new().await;
    let id = table_id("busy");
    for _ in 0..8 {
        rig.append("busy", 2).await;
        rig.flush(0).await.expect("flushes");
    }
    let (lake, stop) = (rig.process.leaders[0].lake.clone(), CancellationToken::new());
    let upkeep = Upkeep { lake: &lake, id: &id, table: TABLE };
    let rewrite = upkeep.rewrites().await.expect("plans").remove(0);
    let race = Arc::new(Race::default());
    let slowly = slowly(&race, &rig, &id);
    let (group, now) = (Arc::clone(&rig.process.group), rig.now());
    let (flusher, ledger) = (&mut rig.process.leaders[0].flusher, &mut rig.ledger);
    let compacting = async {
        let compacted = BEFORE_SWAP.scope(slowly, Box::pin(upkeep.rewrite(&rewrite, &stop))).await;
        race.over.store(true, Ordering::SeqCst);
        (compacted, race.flushes.load(Ordering::SeqCst))
    };
    let flushing = async {
        while !race.over.load(Ordering::SeqCst) && race.flushes.load(Ordering::SeqCst) < FLUSHES_MAX {
            ledger.append(&group, now, "busy", 1).await;
            Box::pin(flusher.step(true)).await.expect("flushes");
            race.flushes.fetch_add(1, Ordering::SeqCst);
        }
        race.over.store(true, Ordering::SeqCst);
    };
    let ((compacted, flushes), ()) = Box::pin(async { tokio::join!(compacting, flushing) }).await;
    let compacted = compacted.expect("rewrites").expect("nobody else removed its files");
    assert_eq!((rewrite.files.len(), compacted.files), (8, 1));
    assert_eq!(race.swaps.load(Ordering::SeqCst), 1, "flushes won the others");
    let between = flushes - race.flushes_at_first_swap.load(Ordering::SeqCst);
    assert!(between <= COMMITS_MAX, "{between} flushes came between");
    rig.append("busy", 1).await;
    rig.flush(0).await.expect("flushes");
    rig.check(["busy"], true, &"after the race").await;
    rig.check_files().await;
    rig.process.stop().await;
}

/// Scenario: another node, which knows nothing of turns here, commits before each of a compaction's first swaps, more often
/// than commits without files are tried.
/// Guarantees: the compaction lands on what the last of them left, with the files that it wrote at first; nothing is lost
/// or doubled.
#[tokio::test]
async fn a_compaction_that_loses_to_another_node_does_not_write_its_files_again() {
    let retry = RetryConfig { initial_delay: Duration::from_millis(1), ..RetryConfig::default() };
    let lost = u64::from(retry.max_attempts) + 2;
    let lake = TestLake::new(LakeConfig { retry, ..config() }).await;
    let (mut draw, mut expected) = (Draw(3), Vec::new());
    for n in 1..=5 {
        let rows = draw.rows(n as usize, 10, lake.day_start(1));
        lake.flush(&rows, n).await;
        expected.extend(rows);
    }
    lake.clock.advance(HOUR * 3);
    let (upkeep, stop) = (lake.upkeep(), CancellationToken::new());
    let rewrite = upkeep.rewrites().await.expect("plans").remove(0);
    let late: Vec<Vec<Row>> = (0..lost as usize).map(|n| draw.rows(100 + n, 2, lake.day_start(1))).collect();
    expected.extend(late.concat());
    expected.sort();
    let (node, swaps) = (Arc::new(lake.elsewhere()), Arc::new(AtomicU64::new(0)));
    let before: BeforeSwap = Arc::new({
        let swaps = Arc::clone(&swaps);
        move |_: Swap| {
            let n = swaps.fetch_add(1, Ordering::SeqCst);
            let (node, rows) = (Arc::clone(&node), late.get(n as usize).cloned());
            async move {
                if let Some(rows) = rows {
                    node.flush(&rows, 6 + n).await;
                }
            }
            .boxed()
        }
    });
    let compacted = BEFORE_SWAP.scope(before, Box::pin(upkeep.rewrite(&rewrite, &stop))).await;
    let compacted = compacted.expect("rewrites").expect("lands in the end");
    assert_eq!((swaps.load(Ordering::SeqCst), compacted.files), (lost + 1, 1));
    let listed = lake.lake.store().list(lake.metadata().await.location()).await.expect("lists");
    let rewritten =
        listed.iter().filter(|file| file.location.contains("/c-") && file.location.ends_with(".parquet")).count();
    assert_eq!(rewritten, 1, "a lost swap does not make the rows be written again");
    assert_eq!((lake.rows().await, lake.mark().await), (expected, 5 + lost));
}

/// Scenario: after a visit's look at the catalog a flush commits, and its version is told first. Then somebody puts the
/// table back.
/// Guarantees: flushes do not end a visit; a table that was put back does.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_is_told_of_first_does_not_end_a_visit() {
    let mut rig = Rig::new().await;
    let id = table_id("busy");
    rig.append("busy", 2).await;
    rig.flush(0).await.expect("flushes");
    let seen = rig.catalog.load(&id.namespace(), TABLE.name()).await.expect("answers").expect("exists");
    rig.append("busy", 2).await;
    rig.flush(0).await.expect("flushes");
    let (process, lake) = (&rig.process, &rig.process.leaders[0].lake);
    let visit = Visit { lake, group: &process.group, cluster_id: &process.cluster_id, id: &id };
    visit.announce(Some(seen.clone())).await.expect("the catalog has what was told");
    let base = rig.catalog.load(&id.namespace(), TABLE.name()).await.expect("answers").expect("exists");
    let back = Swap { namespace: id.namespace(), table: TABLE.name().to_owned(), base, new: seen.clone() };
    assert_eq!(rig.catalog.swap(&[back]).await.expect("answers"), SwapOutcome::Moved);
    let refused = visit.announce(Some(seen)).await.expect_err("versions would come again");
    assert!(matches!(refused, LakeError::Stopped(_)), "{refused:?}");
    rig.process.stop().await;
}
