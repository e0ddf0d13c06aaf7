//! A round: clients with tenants of their own, faults, the last reads and a judgment.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;

use crate::checker::{Checks, entries, examine};
use crate::cluster::NODES;
use crate::history::{Kind, Purpose};
use crate::listing::Log;
use crate::schedule::Schedule;
use crate::workload;

use super::clients::start_clients;
use super::{Ledger, Run};

impl Run {
    /// Clients with tenants of their own, faults, the last reads and a judgment.
    pub(super) async fn round(
        &self,
        round: usize,
        how_long: Duration,
        schedule: &mut Schedule,
        ledger: &mut Ledger,
    ) -> anyhow::Result<()> {
        let test = self.test(workload::tenants(round));
        let mut clients = start_clients(&test, &self.scenario.workloads);
        // Whatever goes wrong from here on, the history is written and judged.
        let mut running = JoinSet::new();
        if let Err(error) = self.break_things(&test, (round, how_long), &mut running, schedule, ledger).await {
            ledger.troubles.push(format!("faults ended early: {error:#}"));
        }
        running.shutdown().await;
        if let Err(error) = self.cluster.heal().await {
            ledger.troubles.push(format!("the cluster did not come back: {error:#}"));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        test.stop.store(true, Ordering::Relaxed);
        while let Some(client) = clients.join_next().await {
            if let Err(error) = client? {
                ledger.troubles.push(format!("a client ended early: {error:#}"));
            }
        }
        let mut logs = Vec::new();
        // Before the rest of it is flushed and given up.
        if ledger.troubles.is_empty() {
            match Box::pin(self.list_logs()).await {
                Ok(listed) => logs = listed,
                Err(error) => ledger.troubles.push(format!("the logs of the nodes: {error:#}")),
            }
        }
        let keys = test.history.keys();
        match Box::pin(workload::last_reads(&test, &keys, self.python.as_deref())).await {
            Ok(missing) => ledger.troubles.extend(missing),
            Err(error) => ledger.troubles.push(format!("{error:#}")),
        }
        let tenants = test.tenants;
        let history = Arc::into_inner(test.history).context("clients are gone")?;
        let mut operations = history.into_operations();
        let (findings, checks) = (examine(&operations, &self.blackouts()), Checks::of(&operations, &self.blackouts()));
        ledger.counts.add(&operations, &ledger.strikes);
        ledger.timeline.add(&operations);
        let absences = self.cluster.absences(self.begun);
        ledger.availability.add(&operations, tenants, &ledger.strikes, &absences);
        if self.scenario.round_seconds.is_some() && findings.is_sound() && checks.is_sound() {
            // Thousands of whole sets, of which nothing more is to be learned.
            operations.retain(|one| !is_spent(&one.kind));
        }
        self.store.write_history(round, tenants, &operations)?;
        ledger.sent.extend(entries::sent(&operations, &self.blackouts()));
        ledger.entries.add(&mut ledger.sent, &logs, &self.blackouts());
        ledger.findings.add(findings);
        ledger.checks.add(checks);
        ledger.judged.push((tenants, operations));
        Ok(())
    }

    /// Kills all nodes, lists their logs, and starts them again: one more kill of all, with nobody there to see it.
    async fn list_logs(&self) -> anyhow::Result<Vec<Log>> {
        let cluster = Arc::clone(&self.cluster);
        let list = move || (0..NODES).map(|node| cluster.log(node)).collect::<anyhow::Result<Vec<Log>>>();
        for node in 0..NODES {
            self.cluster.kill(node);
        }
        let logs = tokio::task::spawn_blocking(list).await?;
        for node in 0..NODES {
            self.cluster.revive(node)?;
        }
        for node in 0..NODES {
            self.cluster.wait_whole(node).await?;
        }
        logs
    }
}

/// Whether an operation says nothing more once its round is judged: a read under faults.
fn is_spent(kind: &Kind) -> bool {
    match kind {
        Kind::Read(_) => true,
        Kind::Query(query) => query.purpose != Purpose::Last,
        Kind::Add(_) | Kind::Write(_) | Kind::Final(_) | Kind::Audit(_) => false,
    }
}
