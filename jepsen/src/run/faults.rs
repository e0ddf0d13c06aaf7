//! The faults of a round, one after the other or beside each other, and the damage that they leave.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::cluster::NODES;
use crate::nemesis::{self, Strike};
use crate::report;
use crate::schedule::Schedule;
use crate::workload::Test;

use super::{Ledger, Run};

/// A fault that is over, as the schedule knows it, and what came of it.
pub(super) type Struck = (u64, anyhow::Result<Strike>);

impl Run {
    /// Makes the faults of a round for as long as there is time, and waits for the end of each; notes them in `ledger`.
    pub(super) async fn break_things(
        &self,
        test: &Test,
        (round, how_long): (usize, Duration),
        running: &mut JoinSet<Struck>,
        schedule: &mut Schedule,
        ledger: &mut Ledger,
    ) -> anyhow::Result<()> {
        let until = Instant::now() + how_long;
        loop {
            while running.len() >= self.scenario.at_once.of(round) {
                let Some(ended) = running.join_next().await else { break };
                note(ended?, schedule, ledger)?;
            }
            tokio::time::sleep(Duration::from_millis(self.random.between(self.scenario.pause_ms))).await;
            if Instant::now() > until {
                break;
            }
            while let Some(ended) = running.try_join_next() {
                note(ended?, schedule, ledger)?;
            }
            self.settle(schedule, ledger).await?;
            let leader = self.cluster.leader().await;
            let Some((id, plan)) = schedule.begin(&self.random, leader) else {
                // Something runs beside which nothing fits, or damage is left that nothing goes with: a little later.
                continue;
            };
            let hold = Duration::from_millis(self.random.between(self.scenario.hold_ms));
            let test = test.clone();
            running.spawn(async move { (id, Box::pin(nemesis::strike(&test, plan, hold)).await) });
        }
        while let Some(ended) = running.join_next().await {
            note(ended?, schedule, ledger)?;
        }
        self.settle(schedule, ledger).await
    }

    /// Looks at damage that was left: a node that noticed it, or whose segment is gone, is whole again once it is ready.
    async fn settle(&self, schedule: &mut Schedule, ledger: &mut Ledger) -> anyhow::Result<()> {
        for node in left_nodes(ledger) {
            if schedule.takes(node) {
                continue;
            }
            // It may have ended as it noticed.
            self.cluster.revive(node)?;
            let whole = self.cluster.reasons(node).await.is_some_and(|reasons| reasons.is_empty());
            ledger.left.retain(|(of, damage)| *of != node || !whole || damage.is_left());
        }
        let left = left_nodes(ledger);
        for node in (0..NODES).filter(|node| !left.contains(node) && !schedule.takes(*node)) {
            self.cluster.excuse(node, false);
        }
        schedule.set_damaged(left);
        Ok(())
    }
}

/// A fault is over.
fn note((id, strike): Struck, schedule: &mut Schedule, ledger: &mut Ledger) -> anyhow::Result<()> {
    let mut strike = strike?;
    println!("{}", report::line(&strike));
    ledger.left.extend(strike.left.take());
    schedule.end(id);
    schedule.set_damaged(left_nodes(ledger));
    ledger.strikes.push(strike);
    Ok(())
}

fn left_nodes(ledger: &Ledger) -> BTreeSet<usize> {
    ledger.left.iter().map(|(node, _)| *node).collect()
}
