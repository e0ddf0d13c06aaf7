//! Turns at committing to a table, among those who do so on this node.
//!
//! From looking at a table to its swap a flush takes moments, and a commit that replaces files takes longer: it reads and
//! writes manifests. Where flushes never pause, the longer one would lose every swap. Whoever holds the table's turn
//! meanwhile has no rival here. That is fairness and nothing else: other nodes know nothing of it, whoever has waited for too
//! long goes on without, and the swap alone decides.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signaldb_model::TableId;
use tokio::sync::OwnedMutexGuard;

/// Longer than a commit takes while catalog and store answer: one that hangs must not keep flushes from trying.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Who commits to which table next.
#[derive(Debug, Default)]
pub(crate) struct CommitTurns(Mutex<HashMap<TableId, Arc<tokio::sync::Mutex<()>>>>);

/// A turn at some tables; it is over when this is dropped.
#[derive(Debug)]
#[must_use = "the turn is over when it is dropped"]
pub(crate) struct Turn {
    _held: Vec<OwnedMutexGuard<()>>,
}

impl CommitTurns {
    /// Waits for the caller's turn at all of `tables`: first come, first served.
    ///
    /// Cancel safety: who gives up loses the place in the line, and nothing else.
    pub(crate) async fn take(&self, tables: impl IntoIterator<Item = TableId>) -> Turn {
        self.take_within(tables, WAIT_MAX).await
    }

    async fn take_within(&self, tables: impl IntoIterator<Item = TableId>, wait: Duration) -> Turn {
        // All in one order: nobody waits in a circle.
        let tables: BTreeSet<TableId> = tables.into_iter().collect();
        let mut held = Vec::with_capacity(tables.len());
        let all = async {
            for table in &tables {
                held.push(self.of(table).lock_owned().await);
            }
        };
        if tokio::time::timeout(wait, all).await.is_err() {
            tracing::warn!(tables = tables.len(), waited = ?wait, "another commit on this node hangs; going on beside it");
        }
        Turn { _held: held }
    }

    fn of(&self, table: &TableId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(table.clone()).or_default())
    }

    /// Whether somebody waits while another has the turn: each of the two holds on to it, and so does the map.
    #[cfg(test)]
    pub(crate) fn is_waited_for(&self, table: &TableId) -> bool {
        let turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.get(table).is_some_and(|turn| Arc::strong_count(turn) > 2)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;
    use signaldb_model::{DatasetId, TableCode, TenantId};

    use super::*;

    fn table(code: u8) -> TableId {
        let (tenant, dataset) = (TenantId::new("t").expect("name"), DatasetId::new("d").expect("name"));
        TableId { tenant, dataset, code: TableCode(code) }
    }

    #[tokio::test]
    async fn whoever_asks_first_is_first() {
        let turns = CommitTurns::default();
        let held = turns.take([table(1)]).await;
        assert!(turns.take([table(2)]).now_or_never().is_some(), "other tables have turns of their own");
        assert!(!turns.is_waited_for(&table(1)));
        let (mut second, mut third) = (pin!(turns.take([table(1)])), pin!(turns.take([table(1), table(2)])));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        assert!(turns.is_waited_for(&table(1)));
        drop(held);
        assert!(third.as_mut().now_or_never().is_none(), "came later");
        drop(second.await);
        drop(third.await);
    }

    #[tokio::test]
    async fn those_who_want_the_same_tables_in_another_order_do_not_block_each_other() {
        let turns = CommitTurns::default();
        let often = async |tables: [TableId; 2]| {
            for _ in 0..1000 {
                let turn = turns.take(tables.clone()).await;
                tokio::task::yield_now().await;
                drop(turn);
            }
        };
        let both = async { tokio::join!(often([table(1), table(2)]), often([table(2), table(1)])) };
        tokio::time::timeout(WAIT_MAX / 2, both).await.expect("nobody waits in a circle");
    }

    #[tokio::test]
    async fn whoever_waited_for_too_long_goes_on_without() {
        let turns = CommitTurns::default();
        let hanging = turns.take([table(1)]).await;
        let turn = turns.take_within([table(1), table(2)], Duration::from_millis(1)).await;
        drop((turn, hanging));
        assert!(turns.take([table(1), table(2)]).now_or_never().is_some(), "nothing is left behind");
    }
}
