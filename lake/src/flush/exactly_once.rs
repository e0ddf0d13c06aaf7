//! Every step of a flush fails in every way, and whoever comes next finds out: what was acknowledged is shown and stored
//! once, no file is referenced twice or missing, no watermark goes back (DESIGN section 6).

use std::pin::pin;
use std::sync::Arc;

use crate::testing::faults::{Fault, Hold, Plan};
use crate::testing::rig::{Leader, Rig};

/// Who goes on after the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The same leader tries again.
    Retry,
    /// The process ends, and the same node leads again.
    Restart,
    /// Another node leads; the one before is gone.
    NewLeader,
    /// Another node led and flushed while this one stood still; it does not know that when it goes on.
    Resume,
}

/// A table with rows and marks, and one that each step's flush creates.
const OLD: &str = "old";

/// What leaves a doubt comes first: whoever takes it for a yes or a no is found out soon.
const FAULTS: [Fault; 4] = [Fault::CommitError, Fault::LostReply, Fault::Late, Fault::Refused];

/// Crashes before and after a step, and its failures.
fn ends() -> impl Iterator<Item = (Fault, Hold)> {
    let crashes = [(Fault::Nothing, Hold::Before), (Fault::Nothing, Hold::After)];
    crashes.into_iter().chain(FAULTS.map(|fault| (fault, Hold::Nowhere)))
}

/// Goes through all steps of a flush; `incarnations`: each one begins with settling a new incarnation.
async fn every_step(fault: Fault, hold: Hold, next: Next, incarnations: bool) {
    let mut rig = Rig::new().await;
    for at in 1.. {
        let plan = Plan { at, fault, hold };
        // Settling looks at every table there is: with a new one each time it would never come to an end.
        let new = if incarnations { "new".to_owned() } else { format!("new{at}") };
        rig.append(OLD, 3).await;
        rig.append(&new, 2).await;
        rig.append(OLD, 2).await;
        if incarnations {
            rig.begin_incarnation(1000 + at).await;
        }
        let had_its_turn = Box::pin(fail_once(&mut rig, plan, next)).await;
        let context = (plan, next);
        // Both of them, and what is still in memory.
        if !incarnations {
            rig.check([OLD, new.as_str()], false, &context).await;
        }
        Box::pin(go_on(&mut rig, next, &context)).await;
        rig.check([OLD, new.as_str()], true, &context).await;
        rig.land_late(0).await;
        rig.append(OLD, 1).await;
        rig.flush(1).await.expect("flushes");
        rig.flush(0).await.expect("flushes");
        rig.check([OLD, new.as_str()], true, &context).await;
        if !had_its_turn {
            assert!(at > 15, "a flush of two tables takes more steps than {at}");
            break;
        }
        assert!(at < 500, "a flush comes to an end");
    }
    rig.check_files().await;
    let all = rig.ledger.datasets();
    rig.check(all.iter().map(String::as_str), true, &(fault, hold, next)).await;
    rig.process.stop().await;
}

/// Flushes by the first lake, with the fault; whether that had its turn.
async fn fail_once(rig: &mut Rig, plan: Plan, next: Next) -> bool {
    let group = Arc::clone(&rig.process.group);
    let now = rig.now();
    let [Leader { flusher, faults, .. }, second] = &mut rig.process.leaders;
    faults.arm(plan);
    {
        let mut flush = pin!(flusher.step(true));
        tokio::select! {
            biased;
            // Whether it got over the fault by itself, or not.
            _ = &mut flush => {}
            () = faults.held() => if next == Next::Resume {
                rig.ledger.append(&group, now, OLD, 1).await;
                second.flusher.step(true).await.expect("flushes");
                rig.ledger.append(&group, now, OLD, 1).await;
                faults.resume();
                let _ = flush.as_mut().await;
            },
        }
    }
    faults.disarm()
}

async fn go_on(rig: &mut Rig, next: Next, context: &(Plan, Next)) {
    let before = Arc::clone(&rig.process.leaders[0].pointers);
    let leader = match next {
        Next::Retry | Next::Resume => 0,
        Next::NewLeader => 1,
        Next::Restart => {
            rig.restart().await;
            0
        }
    };
    let flushed = rig.flush(leader).await;
    assert!(flushed.is_ok(), "nothing is in the way: {flushed:?} {context:?}");
    // A COMMIT of a process that is gone may still be on its way.
    before.land_late().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_at_any_step_and_is_tried_again_loses_and_doubles_nothing() {
    for fault in FAULTS {
        Box::pin(every_step(fault, Hold::Nowhere, Next::Retry, false)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_any_step_of_a_flush_loses_and_doubles_nothing() {
    for (fault, hold) in ends() {
        Box::pin(every_step(fault, hold, Next::Restart, false)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_after_any_step_of_a_flush_loses_and_doubles_nothing() {
    for (fault, hold) in ends() {
        Box::pin(every_step(fault, hold, Next::NewLeader, false)).await;
    }
}

/// With a lost reply after the step, this is a timeout after success: the caller hears of a failure when others have
/// long gone on from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_that_resumes_at_any_step_of_a_flush_loses_and_doubles_nothing() {
    for hold in [Hold::Before, Hold::After] {
        for fault in [Fault::Nothing, Fault::Refused, Fault::CommitError, Fault::LostReply, Fault::Late] {
            Box::pin(every_step(fault, hold, Next::Resume, false)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_step_of_settling_an_incarnation_loses_and_doubles_nothing() {
    for (fault, hold, next) in [
        (Fault::LostReply, Hold::Nowhere, Next::Retry),
        (Fault::Late, Hold::Nowhere, Next::Retry),
        (Fault::CommitError, Hold::Nowhere, Next::NewLeader),
        (Fault::Nothing, Hold::Before, Next::Restart),
        (Fault::Nothing, Hold::After, Next::Restart),
        (Fault::Nothing, Hold::Before, Next::Resume),
        (Fault::LostReply, Hold::After, Next::Resume),
    ] {
        Box::pin(every_step(fault, hold, next, true)).await;
    }
}
