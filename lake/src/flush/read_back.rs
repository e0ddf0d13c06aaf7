//! Every step of a flush fails while rows of a long outage are read back from the log (ADR 15), and so does the log: what
//! was acknowledged is in the tables once, no file is referenced twice or missing, no watermark goes back.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::exactly_once::Next;
use crate::Lake;
use crate::testing::faults::{Fault, Hold, Plan};
use crate::testing::rig::{Leader, Rig};

/// Two tables, whose rows come in turns.
const TABLES: [&str; 2] = ["left", "right"];
/// Requests of a backlog.
const BACKLOG: u64 = 3;
/// Memory has room as long as it holds nothing: each step of a cut has the rows of one request.
const MEMORY: usize = 1;
/// One such request is all that is read back at a time.
const REQUEST: usize = 1 << 20;
const CRASHES: [(Fault, Hold); 2] = [(Fault::Nothing, Hold::Before), (Fault::Nothing, Hold::After)];
const FAILURES: [(Fault, Hold); 2] = [(Fault::CommitError, Hold::Nowhere), (Fault::LostReply, Hold::Nowhere)];

/// Rows of both tables, most of which are in the log alone: the lake at 0 leads, the other one notes where they are.
async fn fall_behind(rig: &mut Rig) {
    rig.process.memtable(1).deactivate();
    for at in 0..BACKLOG {
        let table = TABLES[at as usize % TABLES.len()];
        rig.append(table, 2).await;
    }
    assert!(rig.process.memtable(0).has_backlog(), "memory is much smaller than what came");
}

/// Goes through all steps of a flush of a backlog.
async fn every_step(fault: Fault, hold: Hold, next: Next) {
    let mut rig = Rig::with_memory(MEMORY, REQUEST).await;
    for at in 1.. {
        let plan = Plan { at, fault, hold };
        fall_behind(&mut rig).await;
        let had_its_turn = Box::pin(fail_once(&mut rig, plan, next)).await;
        Box::pin(go_on(&mut rig, next, &(plan, next))).await;
        check(&mut rig, &(plan, next)).await;
        if !had_its_turn {
            assert!(at > 6 * BACKLOG, "a flush in {BACKLOG} steps asks for more than {at} things");
            break;
        }
        assert!(at < 500, "a flush comes to an end");
    }
    rig.check_files().await;
    rig.process.stop().await;
}

/// Flushes by the first lake, with the fault; whether that had its turn.
async fn fail_once(rig: &mut Rig, plan: Plan, next: Next) -> bool {
    let (group, now) = (Arc::clone(&rig.process.group), rig.now());
    let following = rig.process.memtable(1);
    let [Leader { flusher, faults, .. }, second] = &mut rig.process.leaders;
    faults.arm(plan);
    {
        let mut flush = pin!(flusher.step(true));
        tokio::select! {
            biased;
            // Whether it got over the fault by itself, or not.
            _ = &mut flush => {}
            () = faults.held() => if next == Next::Resume {
                following.activate();
                rig.ledger.append(&group, now, TABLES[0], 1).await;
                second.flusher.step(true).await.expect("flushes");
                rig.ledger.append(&group, now, TABLES[1], 1).await;
                faults.resume();
                let _ = flush.as_mut().await;
            },
        }
    }
    faults.disarm()
}

/// Whoever comes next flushes the rest.
async fn go_on(rig: &mut Rig, next: Next, context: &dyn std::fmt::Debug) {
    let leader = match next {
        Next::Retry | Next::Resume => 0,
        Next::NewLeader => {
            // It decoded nothing so far, and learns from its log where the rows are.
            rig.process.memtable(0).deactivate();
            rig.process.memtable(1).activate();
            1
        }
        Next::Restart => {
            rig.restart().await;
            0
        }
    };
    let flushed = rig.flush(leader).await;
    assert!(flushed.is_ok(), "nothing is in the way: {flushed:?} {context:?}");
}

/// All of it is in files, for whoever leads.
async fn check(rig: &mut Rig, context: &dyn std::fmt::Debug) {
    for leader in [0, 1] {
        rig.process.memtable(leader).activate();
    }
    rig.check(TABLES, true, context).await;
    for leader in [0, 1] {
        let memtable = rig.process.memtable(leader);
        assert_eq!((memtable.log_bytes(), memtable.loads().len()), (0, 0), "nothing is left to flush: {context:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_whose_flush_fails_at_any_step_and_is_tried_again_loses_and_doubles_nothing() {
    for (fault, hold) in FAILURES {
        Box::pin(every_step(fault, hold, Next::Retry)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_at_any_step_of_a_backlogs_flush_loses_and_doubles_nothing() {
    for (fault, hold) in CRASHES.into_iter().chain(FAILURES) {
        Box::pin(every_step(fault, hold, Next::Restart)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_at_any_step_of_a_backlogs_flush_loses_and_doubles_nothing() {
    for (fault, hold) in CRASHES.into_iter().chain(FAILURES) {
        Box::pin(every_step(fault, hold, Next::NewLeader)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_that_resumes_at_any_step_of_a_backlogs_flush_loses_and_doubles_nothing() {
    for (fault, hold) in [
        (Fault::Nothing, Hold::Before),
        (Fault::Nothing, Hold::After),
        (Fault::CommitError, Hold::Before),
        (Fault::LostReply, Hold::After),
    ] {
        Box::pin(every_step(fault, hold, Next::Resume)).await;
    }
}

/// Waits until the lake says that its node must end.
async fn given_up(lake: &Lake) {
    while lake.failure().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Scenario: the first, the second, ... read of the log fails while a backlog is flushed; the node is started again, or
/// another one leads.
/// Guarantees: the node with the failure says so, for it has to end rather than go on without rows; whoever comes next
/// flushes all of them, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_read_ends_the_node_and_loses_nothing() {
    for next in [Next::Restart, Next::NewLeader] {
        let mut rig = Rig::with_memory(MEMORY, REQUEST).await;
        for read in 1.. {
            rig.process.leaders[0].log.fail_at(read);
            fall_behind(&mut rig).await;
            let ended = {
                let Leader { lake, flusher, .. } = &mut rig.process.leaders[0];
                tokio::select! {
                    biased;
                    () = given_up(lake) => true,
                    flushed = flusher.step(true) => {
                        flushed.expect("every read before was answered");
                        false
                    }
                }
            };
            rig.process.leaders[0].log.fail_at(0);
            if ended {
                let failure = rig.process.leaders[0].lake.failure().expect("it gave up");
                assert!(failure.contains("injected"), "{failure}");
                if next == Next::NewLeader {
                    rig.process.memtable(1).activate();
                    rig.flush(1).await.expect("its own log can be read");
                }
                Box::pin(go_on(&mut rig, Next::Restart, &(read, next))).await;
            }
            check(&mut rig, &(read, next)).await;
            if !ended {
                assert!(read > BACKLOG, "each request was read by itself: {read}");
                break;
            }
        }
        rig.check_files().await;
        rig.process.stop().await;
    }
}
