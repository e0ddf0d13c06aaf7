//! Who may run now: a tenant has so many queries at a time, so has the node, and those beyond wait in a bounded line.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signaldb_model::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget::Budget;
use crate::error::{QueryError, QueryErrorKind};

/// Tenants that are remembered without a query of theirs; beyond it they are forgotten.
const IDLE_LINES_MAX: usize = 1024;

/// Queries that run, and those that wait, within these numbers.
#[derive(Debug)]
pub(crate) struct Gate {
    node: Arc<Semaphore>,
    tenant_max: usize,
    waiting_max: usize,
    lines: Mutex<HashMap<TenantId, Arc<Line>>>,
}

/// The queries of one tenant.
#[derive(Debug)]
struct Line {
    room: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A query that runs.
#[derive(Debug)]
pub(crate) struct Permit {
    _node: OwnedSemaphorePermit,
    _tenant: OwnedSemaphorePermit,
    _line: Arc<Line>,
}

/// A query that waits.
#[derive(Debug)]
struct Place<'a>(&'a Line);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Gate {
    /// `node_max` queries at a time, `tenant_max` of one tenant, of which `waiting_max` more may wait.
    pub(crate) fn new(node_max: usize, tenant_max: usize, waiting_max: usize) -> Self {
        Self { node: Arc::new(Semaphore::new(node_max)), tenant_max, waiting_max, lines: Mutex::default() }
    }

    /// Waits for the query's turn: first come, first served.
    ///
    /// # Errors
    /// At once when the line of the tenant is full.
    pub(crate) async fn enter(&self, tenant: &TenantId) -> Result<Permit, QueryError> {
        let line = self.line(tenant);
        if let (Ok(own), Ok(node)) =
            (Arc::clone(&line.room).try_acquire_owned(), Arc::clone(&self.node).try_acquire_owned())
        {
            return Ok(Permit { _node: node, _tenant: own, _line: line });
        }
        let (own, node) = {
            let _place = self.place(&line)?;
            // A query that waits for the node keeps its turn among those of its tenant.
            let own = Arc::clone(&line.room).acquire_owned().await.map_err(|_| stopping())?;
            (own, Arc::clone(&self.node).acquire_owned().await.map_err(|_| stopping())?)
        };
        Ok(Permit { _node: node, _tenant: own, _line: line })
    }

    fn line(&self, tenant: &TenantId) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= IDLE_LINES_MAX {
            lines.retain(|_, line| Arc::strong_count(line) > 1);
        }
        let line = lines.entry(tenant.clone()).or_insert_with(|| {
            Arc::new(Line { room: Arc::new(Semaphore::new(self.tenant_max)), waiting: AtomicUsize::new(0) })
        });
        Arc::clone(line)
    }

    fn place<'a>(&self, line: &'a Line) -> Result<Place<'a>, QueryError> {
        let more = |waiting: usize| (waiting < self.waiting_max).then_some(waiting + 1);
        match line.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Place(line)),
            Err(waiting) => Err(Budget::Queue.exceeded(format!(
                "{waiting} queries of the tenant wait for their turn, query.queue allows {} while \
                 query.tenant_concurrency lets {} of them run",
                self.waiting_max, self.tenant_max
            ))),
        }
    }
}

fn stopping() -> QueryError {
    QueryError::new(QueryErrorKind::Unavailable, "the node is stopping")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    #[tokio::test]
    async fn a_tenant_waits_for_its_own_queries_and_not_for_others() {
        let gate = Gate::new(8, 2, 1);
        let (acme, other) = (tenant("acme"), tenant("other"));
        let first = gate.enter(&acme).await.expect("runs");
        let _second = gate.enter(&acme).await.expect("runs");
        let mut third = Box::pin(gate.enter(&acme));
        assert!(timeout(MOMENT, &mut third).await.is_err(), "waits");
        let refused = gate.enter(&acme).await.expect_err("the line is full");
        assert_eq!((refused.kind, refused.budget), (QueryErrorKind::Busy, Some(Budget::Queue)));
        let _others = gate.enter(&other).await.expect("runs");
        drop(first);
        timeout(Duration::from_secs(30), third).await.expect("in time").expect("its turn");
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_the_line() {
        let gate = Gate::new(1, 1, 1);
        let acme = tenant("acme");
        let running = gate.enter(&acme).await.expect("runs");
        assert!(timeout(MOMENT, gate.enter(&acme)).await.is_err(), "waits");
        assert!(timeout(MOMENT, gate.enter(&acme)).await.is_err(), "waits in the same place");
        drop(running);
        gate.enter(&acme).await.expect("nobody is left");
    }

    #[tokio::test]
    async fn tenants_share_the_node() {
        let gate = Gate::new(1, 1, 1);
        let (acme, other) = (tenant("acme"), tenant("other"));
        let running = gate.enter(&acme).await.expect("runs");
        let mut other = Box::pin(gate.enter(&other));
        assert!(timeout(MOMENT, &mut other).await.is_err(), "waits for the node");
        drop(running);
        timeout(Duration::from_secs(30), other).await.expect("in time").expect("its turn");
    }
}
