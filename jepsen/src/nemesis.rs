//! Faults, one after the other, each with a calm moment behind it.

use std::time::Duration;

use crate::cluster::{Cluster, NODES, pairs};
use crate::link::Mode;
use crate::random::Random;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and a start a little later.
    Kill,
    KillLeader,
    KillAll,
    /// SIGSTOP and SIGCONT.
    Pause,
    PauseLeader,
    /// One node against the two others.
    IsolateLeader,
    IsolateOne,
    /// The leader hears nobody, or nobody hears it.
    OneWay,
    /// Two nodes do not reach each other, the third reaches both: majorities that overlap in it.
    Ring,
    Slow,
    /// Connections are cut again and again.
    Reset,
}

pub(crate) const ALL: [Fault; 11] = [
    Fault::KillLeader,
    Fault::IsolateLeader,
    Fault::PauseLeader,
    Fault::OneWay,
    Fault::Kill,
    Fault::Reset,
    Fault::Ring,
    Fault::IsolateOne,
    Fault::KillAll,
    Fault::Pause,
    Fault::Slow,
];

/// Makes a fault, waits, and ends it. Returns whether it had an effect.
pub(crate) async fn strike(cluster: &Cluster, random: &Random, fault: Fault) -> anyhow::Result<bool> {
    let leader = cluster.leader().await.unwrap_or_else(|| random.below(NODES));
    let some = random.below(NODES);
    let hold = Duration::from_millis(2000 + random.next() % 3000);
    let before = cluster.links.disturbed();
    let effective = match fault {
        Fault::Kill | Fault::KillLeader => {
            let node = if fault == Fault::Kill { some } else { leader };
            let killed = cluster.kill(node);
            tokio::time::sleep(hold).await;
            cluster.revive(node)?;
            killed
        }
        Fault::KillAll => {
            let killed = (0..NODES).filter(|node| cluster.kill(*node)).count();
            tokio::time::sleep(Duration::from_millis(500)).await;
            (0..NODES).try_for_each(|node| cluster.revive(node))?;
            tokio::time::sleep(hold).await;
            killed > 0
        }
        Fault::Pause | Fault::PauseLeader => {
            let node = if fault == Fault::Pause { some } else { leader };
            let paused = cluster.signal(node, "-STOP");
            tokio::time::sleep(hold).await;
            cluster.signal(node, "-CONT");
            paused
        }
        Fault::IsolateLeader | Fault::IsolateOne => {
            let node = if fault == Fault::IsolateOne { some } else { leader };
            set(cluster, |from, to| (from == node || to == node).then_some(Mode::Hold));
            tokio::time::sleep(hold + Duration::from_secs(2)).await;
            cluster.links.disturbed() > before
        }
        Fault::OneWay => {
            let deaf = random.below(2) == 0;
            let cut = |from, to| if deaf { to == leader } else { from == leader };
            set(cluster, |from, to| cut(from, to).then_some(Mode::Hold));
            tokio::time::sleep(hold + Duration::from_secs(2)).await;
            cluster.links.disturbed() > before
        }
        Fault::Ring => {
            set(cluster, |from, to| (from != some && to != some).then_some(Mode::Hold));
            tokio::time::sleep(hold).await;
            cluster.links.disturbed() > before
        }
        Fault::Slow => {
            let delay = Duration::from_millis(20 + random.next() % 150);
            set(cluster, |from, _| (from == leader).then_some(Mode::Delay(delay)));
            tokio::time::sleep(hold).await;
            cluster.links.disturbed() > before
        }
        Fault::Reset => {
            for _ in 0..5 {
                set(cluster, |_, _| Some(Mode::Reset));
                tokio::time::sleep(Duration::from_millis(150)).await;
                cluster.links.heal();
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            cluster.links.disturbed() > before
        }
    };
    cluster.links.heal();
    Ok(effective)
}

fn set(cluster: &Cluster, mode: impl Fn(usize, usize) -> Option<Mode>) {
    for (from, to) in pairs() {
        if let Some(mode) = mode(from, to) {
            cluster.links.set(from, to, mode);
        }
    }
}
