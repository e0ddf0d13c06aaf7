//! What nodes say when they are asked, and waiting until they say it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::clock;
use crate::workload;

use super::{Cluster, Consistency, NODES, Progress};

/// How long a clock that was moved may take to show it.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a node may take until what it lost is refilled.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(240);
/// How long such a node must stay ready: one whose log failed a moment ago says so until it ends.
const WHOLE_FOR: Duration = Duration::from_secs(3);

impl Cluster {
    /// Waits until a node says that it can acknowledge writes.
    pub(crate) async fn wait_ready(&self, node: usize) -> anyhow::Result<()> {
        let until = Instant::now() + READY_TIMEOUT;
        loop {
            let reasons = self.reasons(node).await;
            if reasons.as_ref().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            if Instant::now() > until {
                let reasons = reasons.unwrap_or_default();
                bail!("node {} is not ready {reasons:?}; its log is below {}", node + 1, self.dir.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a node that lost something is ready and nothing of it recovers. It is started again when it ends by
    /// itself meanwhile.
    pub(crate) async fn wait_whole(&self, node: usize) -> anyhow::Result<()> {
        let until = Instant::now() + WHOLE_TIMEOUT;
        let mut since = None;
        loop {
            self.revive(node)?;
            let reasons = self.reasons(node).await;
            since = reasons.as_ref().filter(|reasons| reasons.is_empty()).and(since.or(Some(Instant::now())));
            if since.is_some_and(|since| since.elapsed() >= WHOLE_FOR) {
                return Ok(());
            }
            if Instant::now() > until {
                let reasons = reasons.unwrap_or_default();
                bail!("node {} did not recover {reasons:?}; its log is below {}", node + 1, self.dir.display());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Why a node cannot acknowledge writes, as `/ready` says: that it recovers is among them. `None` without an answer.
    pub(crate) async fn reasons(&self, node: usize) -> Option<Vec<String>> {
        let sent = self.http.get(self.url(node, "/ready")).timeout(Duration::from_secs(2)).send().await;
        let response = sent.ok()?;
        if response.status().is_success() {
            return Some(Vec::new());
        }
        let body: Value = response.json().await.ok()?;
        let reasons = body["reasons"].as_array()?.iter();
        Some(reasons.map(|reason| reason.as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Whether a node itself says, soon, that its clock is at `offset`.
    pub(crate) async fn shows_clock(&self, node: usize, offset: i64) -> bool {
        let until = Instant::now() + CLOCK_TIMEOUT;
        loop {
            // The header `date` would not do: servers keep it while their clock is behind it.
            let query = "SELECT to_unixtime(now())";
            let rows = self.sql(node, workload::tenants(0)[0], query, Consistency::Eventual, CLOCK_TIMEOUT).await;
            let shown = rows.ok().and_then(|rows| rows.first()?[0].as_i64());
            if shown.is_some_and(|shown| clock::is_at(shown, clock::now(), offset)) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How far all groups together are committed, and how far they are in the tables, as far as nodes answer.
    pub(crate) async fn progress(&self) -> Progress {
        let mut groups: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for node in 0..NODES {
            let Some(state) = self.state(node).await else { continue };
            for group in state["groups"].as_array().into_iter().flatten() {
                let number = |name: &str| group[name].as_u64();
                let said = number("group").zip(number("commit_index")).zip(number("flushed_index"));
                // What is not said is no progress, and an outage without progress had no effect.
                let Some(((group, commit), flush)) = said else { continue };
                let (committed, flushed) = groups.entry(group).or_default();
                *committed = (*committed).max(commit);
                *flushed = (*flushed).max(flush);
            }
        }
        let sum = |of: fn(&(u64, u64)) -> u64| groups.values().map(of).sum::<u64>();
        Progress { committed: sum(|(committed, _)| *committed), flushed: sum(|(_, flushed)| *flushed) }
    }

    /// Has the leader of the busiest group give it away; whether it did. `None` when nobody leads.
    pub(crate) async fn move_leader(&self) -> Option<bool> {
        let (group, leader) = self.busiest().await?;
        let url = self.url(leader, "/api/v1/admin/transfer-leader");
        let asked = self.http.post(url).timeout(Duration::from_secs(5)).json(&json!({"group": group})).send().await;
        Some(asked.is_ok_and(|answer| answer.status().is_success()))
    }

    /// The node that leads the group which acknowledged last, as the first node that answers sees it.
    pub(crate) async fn leader(&self) -> Option<usize> {
        self.busiest().await.map(|(_, leader)| leader)
    }

    /// That group, and that node.
    async fn busiest(&self) -> Option<(u64, usize)> {
        for node in 0..NODES {
            let Some(state) = self.state(node).await else { continue };
            let groups = state["groups"].as_array()?;
            let last = self.busy_group.load(Ordering::Relaxed);
            let busy = groups.iter().find(|group| last > 0 && group["group"] == last);
            let busy = busy.or_else(|| groups.iter().max_by_key(|group| group["last_log_index"].as_u64()))?;
            if let Some(leader) = busy["leader"].as_u64() {
                return Some((busy["group"].as_u64()?, usize::try_from(leader).ok()?.checked_sub(1)?));
            }
        }
        None
    }

    /// Rows of a query at one node.
    pub(crate) async fn sql(
        &self,
        node: usize,
        tenant: &str,
        query: &str,
        consistency: Consistency,
        timeout: Duration,
    ) -> anyhow::Result<Vec<Value>> {
        let path = match consistency {
            Consistency::Strong => "/api/v1/sql?consistency=strong",
            Consistency::Eventual => "/api/v1/sql?consistency=eventual",
        };
        let request = self.http.post(self.url(node, path)).timeout(timeout).header("x-tenant-id", tenant);
        let response = request.json(&json!({"query": query})).send().await?.error_for_status()?;
        let body: Value = response.json().await?;
        Ok(body["rows"].as_array().context("rows")?.clone())
    }

    /// `/api/v1/cluster` of one node.
    pub(crate) async fn state(&self, node: usize) -> Option<Value> {
        let sent = self.http.get(self.url(node, "/api/v1/cluster")).timeout(Duration::from_secs(2)).send().await;
        sent.ok()?.json().await.ok()
    }
}
