//! Faults, one after the other, each with a calm moment behind it.

use std::time::Duration;

use crate::clock;
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
    /// Wall clocks of one or more nodes jump, each by itself, forwards or back, jump again and return.
    ClockJump,
    /// What clients send through one node commits but is not confirmed. Before they try again elsewhere, the clocks of
    /// the other nodes jump ahead together, beyond any dedup window that was counted in wall time.
    ClockJumpBeforeRetry,
}

pub(crate) const ALL: [Fault; 13] = [
    Fault::KillLeader,
    Fault::IsolateLeader,
    Fault::PauseLeader,
    Fault::ClockJumpBeforeRetry,
    Fault::OneWay,
    Fault::Kill,
    Fault::Reset,
    Fault::ClockJump,
    Fault::Ring,
    Fault::IsolateOne,
    Fault::KillAll,
    Fault::Pause,
    Fault::Slow,
];

impl Fault {
    /// Whether it can be made where clocks cannot be moved.
    fn leaves_clocks(self) -> bool {
        !matches!(self, Self::ClockJump | Self::ClockJumpBeforeRetry)
    }

    /// Whether most nodes run and reach each other, at least through one of them, all the time.
    pub(crate) fn leaves_majority(self) -> bool {
        !matches!(self, Self::KillAll | Self::Reset)
    }
}

/// A fault as it was made; times are those of the history, nanoseconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) fault: Fault,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    pub(crate) effective: bool,
}

/// The faults that can be made.
pub(crate) fn possible(clocks: bool) -> Vec<Fault> {
    ALL.into_iter().filter(|fault| clocks || fault.leaves_clocks()).collect()
}

/// Makes a fault, waits, and ends it. Returns whether it had an effect.
pub(crate) async fn strike(cluster: &Cluster, random: &Random, fault: Fault) -> anyhow::Result<bool> {
    let leader = cluster.leader().await.unwrap_or_else(|| random.below(NODES));
    let some = random.below(NODES);
    let hold = Duration::from_millis(2000 + random.next() % 3000);
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
            let cut = |from: usize, to: usize| (from == node || to == node).then_some(Mode::Hold);
            disturb(cluster, hold + Duration::from_secs(2), cut).await
        }
        Fault::OneWay => {
            let deaf = random.below(2) == 0;
            let cut = |from: usize, to: usize| if deaf { to == leader } else { from == leader };
            disturb(cluster, hold + Duration::from_secs(2), |from, to| cut(from, to).then_some(Mode::Hold)).await
        }
        Fault::Ring => disturb(cluster, hold, |from, to| (from != some && to != some).then_some(Mode::Hold)).await,
        Fault::Slow => {
            let delay = Duration::from_millis(20 + random.next() % 150);
            disturb(cluster, hold, |from, _| (from == leader).then_some(Mode::Delay(delay))).await
        }
        Fault::Reset => {
            let mut disturbed = false;
            for _ in 0..5 {
                disturbed |= disturb(cluster, Duration::from_millis(150), |_, _| Some(Mode::Reset)).await;
                cluster.links.heal();
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            disturbed
        }
        Fault::ClockJump => {
            let nodes = 1 + random.below(NODES);
            let mut shown = false;
            for _ in 0..2 {
                let jumps: Vec<(usize, i64)> = (0..nodes).map(|n| ((some + n) % NODES, clock::jump(random))).collect();
                shown |= jump(cluster, &jumps, hold / 2).await?;
            }
            shown
        }
        Fault::ClockJumpBeforeRetry => {
            let deaf = (leader + 1 + random.below(NODES - 1)) % NODES;
            let ahead = clock::jump(random).abs();
            let jumps: Vec<(usize, i64)> = (0..NODES).filter(|node| *node != deaf).map(|node| (node, ahead)).collect();
            let cut = |_: usize, to: usize| (to == deaf).then_some(Mode::Hold);
            let disturbed = disturb(cluster, Duration::from_secs(3), cut).await;
            // Longer than clients wait for an answer.
            let shown = jump(cluster, &jumps, Duration::from_secs(7)).await?;
            disturbed && shown
        }
    };
    cluster.calm()?;
    Ok(effective)
}

/// Puts links into a mode and waits; returns whether anything met it.
async fn disturb(cluster: &Cluster, hold: Duration, mode: impl Fn(usize, usize) -> Option<Mode>) -> bool {
    let before = cluster.links.disturbed();
    for (from, to) in pairs() {
        if let Some(mode) = mode(from, to) {
            cluster.links.set(from, to, mode);
        }
    }
    tokio::time::sleep(hold).await;
    cluster.links.disturbed() > before
}

/// Moves the clocks of nodes and waits; returns whether any of them shows it.
async fn jump(cluster: &Cluster, jumps: &[(usize, i64)], hold: Duration) -> anyhow::Result<bool> {
    for (node, offset) in jumps {
        cluster.set_clock(*node, *offset)?;
    }
    tokio::time::sleep(hold).await;
    let mut shown = false;
    for (node, offset) in jumps {
        shown |= cluster.shows_clock(*node, *offset).await;
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_clocks_every_other_fault_is_left() {
        assert_eq!(possible(true), ALL);
        let left = possible(false);
        assert_eq!(left.len(), ALL.len() - 2);
        assert!(left.iter().all(|fault| fault.leaves_clocks()));
    }
}
