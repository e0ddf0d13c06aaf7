//! Memory of queries: each has a bound of its own, shared fairly by its operators, below one of the node.
//!
//! A part of the node's memory is kept for small queries: each that runs may hold `own_bytes` whatever the others hold. What
//! a query holds beyond that comes out of the rest, first come, first served. Who is refused spills if it can, and else
//! fails with an error that names the budget.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, TrackConsumersPool,
};

use crate::budget::{Budget, size};

/// Operators that an error names, those that hold most.
const CONSUMERS_NAMED: usize = 3;

/// What all queries of the node hold.
#[derive(Debug)]
pub(crate) struct NodeMemory {
    bytes_max: usize,
    /// Kept for each query that may run.
    own_bytes: usize,
    /// Of `bytes_max` without what is kept.
    shared_max: usize,
    shared: AtomicUsize,
    held: AtomicUsize,
}

impl NodeMemory {
    /// Memory of at most `queries` at a time. A quarter of it is kept for small ones.
    pub(crate) fn new(bytes_max: usize, queries: usize) -> Self {
        let own_bytes = bytes_max / 4 / queries.max(1);
        let shared_max = bytes_max - own_bytes * queries.max(1);
        Self { bytes_max, own_bytes, shared_max, shared: AtomicUsize::new(0), held: AtomicUsize::new(0) }
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes that all queries hold.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// A query, of whose memory `own` bytes are kept for it, holds `before` and wants to hold `after`, which is more.
    fn try_grow(&self, own: usize, before: usize, after: usize) -> bool {
        let more = after.saturating_sub(own) - before.saturating_sub(own);
        let taken = self.shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |shared| {
            // What is not more is always granted, however much others took without asking.
            (more == 0 || shared + more <= self.shared_max).then_some(shared + more)
        });
        if taken.is_ok() {
            self.held.fetch_add(after - before, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// The same without asking.
    fn grow(&self, own: usize, before: usize, after: usize) {
        self.shared.fetch_add(after.saturating_sub(own) - before.saturating_sub(own), Ordering::Relaxed);
        self.held.fetch_add(after - before, Ordering::Relaxed);
    }

    /// A query that held `before` holds `after`, which is less.
    fn shrink(&self, own: usize, before: usize, after: usize) {
        self.shared.fetch_sub(before.saturating_sub(own) - after.saturating_sub(own), Ordering::Relaxed);
        self.held.fetch_sub(before - after, Ordering::Relaxed);
    }
}

/// Memory of one query.
#[derive(Debug)]
pub(crate) struct QueryMemory {
    node: Arc<NodeMemory>,
    /// What the node keeps for it.
    own_bytes: usize,
    bytes_max: usize,
    /// Divides what the query may hold among its operators.
    operators: FairSpillPool,
    held: Mutex<usize>,
    /// An operator that can spill was refused.
    spills: AtomicBool,
}

/// The pool of a query; its errors name the operators that hold most.
pub(crate) type QueryPool = TrackConsumersPool<QueryMemory>;

impl QueryMemory {
    /// For a query that may hold `bytes_max`, as long as the node has them.
    pub(crate) fn pool(node: &Arc<NodeMemory>, bytes_max: usize) -> Arc<QueryPool> {
        Self::pool_with(node, node.own_bytes, bytes_max)
    }

    /// The same for a share of another node's query. Nothing is kept for it: it did not wait for its turn here.
    pub(crate) fn pool_of_guest(node: &Arc<NodeMemory>, bytes_max: usize) -> Arc<QueryPool> {
        Self::pool_with(node, 0, bytes_max)
    }

    fn pool_with(node: &Arc<NodeMemory>, own_bytes: usize, bytes_max: usize) -> Arc<QueryPool> {
        let (node, operators) = (Arc::clone(node), FairSpillPool::new(bytes_max));
        let memory =
            Self { node, own_bytes, bytes_max, operators, held: Mutex::new(0), spills: AtomicBool::new(false) };
        let named = NonZeroUsize::new(CONSUMERS_NAMED).expect("three is not zero");
        Arc::new(TrackConsumersPool::new(memory, named))
    }

    /// Whether files of the query may be on disk: DataFusion does not say whose they are.
    pub(crate) fn may_have_spilled(&self) -> bool {
        self.spills.load(Ordering::Relaxed)
    }

    fn refused(&self, budget: Budget, limit: usize, held: usize, wanted: usize) -> DataFusionError {
        let key = budget.key();
        let (limit, held, wanted) = (size(limit as u64), size(held as u64), size(wanted as u64));
        let whose = if budget == Budget::Memory { "the query holds" } else { "all queries hold" };
        DataFusionError::ResourcesExhausted(format!("{key} allows {limit}, {whose} {held} and wanted {wanted} more"))
    }

    fn note_refused(&self, reservation: &MemoryReservation) {
        if reservation.consumer().can_spill() {
            self.spills.store(true, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for QueryMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} of {})", self.name(), size(self.reserved() as u64), size(self.bytes_max as u64))
    }
}

impl MemoryPool for QueryMemory {
    fn name(&self) -> &str {
        "query"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.operators.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.operators.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.operators.grow(reservation, additional);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.node.grow(self.own_bytes, *held, *held + additional);
        *held += additional;
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.operators.shrink(reservation, shrink);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let left = held.saturating_sub(shrink);
        self.node.shrink(self.own_bytes, *held, left);
        *held = left;
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if self.operators.try_grow(reservation, additional).is_err() {
            self.note_refused(reservation);
            return Err(self.refused(Budget::Memory, self.bytes_max, *held, additional));
        }
        if !self.node.try_grow(self.own_bytes, *held, *held + additional) {
            self.operators.shrink(reservation, additional);
            self.note_refused(reservation);
            return Err(self.refused(Budget::NodeMemory, self.node.bytes_max, self.node.held(), additional));
        }
        *held += additional;
        Ok(())
    }

    fn reserved(&self) -> usize {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reservation(pool: &Arc<QueryPool>, spills: bool) -> MemoryReservation {
        let pool: Arc<dyn MemoryPool> = Arc::<QueryPool>::clone(pool);
        MemoryConsumer::new("test").with_can_spill(spills).register(&pool)
    }

    fn budget(refused: Result<()>) -> Option<Budget> {
        Budget::of_text(&refused.expect_err("is refused").to_string())
    }

    #[test]
    fn a_query_has_its_own_bound() {
        let node = Arc::new(NodeMemory::new(4000, 4));
        let pool = QueryMemory::pool(&node, 1000);
        let held = reservation(&pool, false);
        held.try_grow(1000).expect("fits");
        assert_eq!(budget(held.try_grow(1)), Some(Budget::Memory));
        assert_eq!((pool.reserved(), node.held()), (1000, 1000), "a refusal changes nothing");
        drop(held);
        assert_eq!((pool.reserved(), node.held()), (0, 0));
    }

    #[test]
    fn small_queries_have_memory_whatever_large_ones_hold() {
        // 250 bytes are kept for each of four.
        let node = Arc::new(NodeMemory::new(4000, 4));
        let pools: Vec<_> = (0..4).map(|_| QueryMemory::pool(&node, 4000)).collect();
        let large = reservation(&pools[0], false);
        large.try_grow(3250).expect("its own part and the shared one");
        let refused = large.try_grow(1);
        assert_eq!(budget(refused), Some(Budget::NodeMemory));
        for pool in &pools[1..] {
            let small = reservation(pool, false);
            small.try_grow(250).expect("is kept for it");
            assert_eq!(budget(small.try_grow(1)), Some(Budget::NodeMemory));
        }
        large.try_shrink(100).expect("holds more");
        let other = reservation(&pools[1], false);
        other.try_grow(350).expect("what was given back is there for others");
        drop((large, other));
        assert_eq!((node.held(), node.shared.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn nothing_is_kept_for_a_guest() {
        let node = Arc::new(NodeMemory::new(4000, 4));
        let (own, guest) = (QueryMemory::pool(&node, 4000), QueryMemory::pool_of_guest(&node, 4000));
        let large = reservation(&own, false);
        large.try_grow(3250).expect("its own part and the shared one");
        let share = reservation(&guest, false);
        assert_eq!(budget(share.try_grow(1)), Some(Budget::NodeMemory));
        drop(large);
        share.try_grow(3000).expect("the shared part");
        drop(share);
        assert_eq!((node.held(), node.shared.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_query_may_have_spilled_once_an_operator_that_can_was_refused() {
        let node = Arc::new(NodeMemory::new(4000, 1));
        let pool = QueryMemory::pool(&node, 1000);
        let (fixed, spilling) = (reservation(&pool, false), reservation(&pool, true));
        fixed.try_grow(2000).expect_err("is refused");
        spilling.try_grow(500).expect("fits");
        assert!(!pool.inner().may_have_spilled());
        spilling.try_grow(2000).expect_err("is refused");
        assert!(pool.inner().may_have_spilled());
    }

    #[test]
    fn operators_that_spill_share_what_the_query_may_hold() {
        let node = Arc::new(NodeMemory::new(4000, 1));
        let pool = QueryMemory::pool(&node, 1000);
        let (one, other) = (reservation(&pool, true), reservation(&pool, true));
        one.try_grow(500).expect("half");
        assert_eq!(budget(one.try_grow(1)), Some(Budget::Memory), "the other half is the other's");
        other.try_grow(500).expect("the other half");
    }
}
