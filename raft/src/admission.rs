//! Bounds of what is proposed and not yet applied: 64 MiB a group, 256 MiB a node (DESIGN section 2).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use signaldb_model::limits::{GROUP_UNCOMMITTED_BYTES_MAX, NODE_UNCOMMITTED_BYTES_MAX};

use crate::error::RejectReason;

/// What a throttled client is asked to wait: about the time that a full group takes to drain.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Counts bytes against a bound and, optionally, against the bound of the whole node.
#[derive(Debug, Clone)]
pub struct Admission {
    used: Arc<AtomicUsize>,
    limit: usize,
    node: Option<Arc<Admission>>,
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub struct Permit {
    used: Arc<AtomicUsize>,
    bytes: usize,
    _node: Option<Box<Permit>>,
}

/// Whether this node, as a leader, takes rows from other nodes now; set once the node knows its memory and its disk.
#[derive(Clone, Default)]
pub(crate) struct Refusal(Arc<OnceLock<Box<Refuse>>>);

/// Says why rows are refused now, if they are.
pub type Refuse = dyn Fn() -> Option<RejectReason> + Send + Sync;

impl std::fmt::Debug for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refusal").finish_non_exhaustive()
    }
}

impl Refusal {
    pub(crate) fn set(&self, refuse: Box<Refuse>) {
        // The first stays.
        let _ = self.0.set(refuse);
    }

    pub(crate) fn check(&self) -> Result<(), RejectReason> {
        self.0.get().and_then(|refuse| refuse()).map_or(Ok(()), Err)
    }
}

impl Admission {
    pub fn of_node() -> Self {
        Self { used: Arc::default(), limit: NODE_UNCOMMITTED_BYTES_MAX, node: None }
    }

    pub fn of_group(node: Arc<Admission>) -> Self {
        Self { used: Arc::default(), limit: GROUP_UNCOMMITTED_BYTES_MAX, node: Some(node) }
    }

    /// Takes `bytes`, or says at once that they do not fit; a lone request always fits.
    ///
    /// # Errors
    /// [`RejectReason::Throttled`], with a hint when to come again.
    pub fn admit(&self, bytes: usize) -> Result<Permit, RejectReason> {
        let node = self.node.as_ref().map(|node| node.admit(bytes)).transpose()?;
        let before = self.used.fetch_add(bytes, Ordering::AcqRel);
        let permit = Permit { used: Arc::clone(&self.used), bytes, _node: node.map(Box::new) };
        if before > 0 && before + bytes > self.limit {
            return Err(RejectReason::Throttled { bytes: before, limit: self.limit, retry_after: RETRY_AFTER });
        }
        Ok(permit)
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_group_throttles_and_recovers() {
        let group = Admission::of_group(Arc::new(Admission::of_node()));
        let first = group.admit(GROUP_UNCOMMITTED_BYTES_MAX).expect("fits");
        assert!(matches!(group.admit(1), Err(RejectReason::Throttled { .. })));
        drop(first);
        assert_eq!(group.used(), 0);
        group.admit(1).expect("fits again");
    }

    #[test]
    fn the_node_bound_covers_all_groups() {
        let node = Arc::new(Admission::of_node());
        let groups: Vec<Admission> = (0..5).map(|_| Admission::of_group(Arc::clone(&node))).collect();
        let held: Vec<_> = groups.iter().take(4).map(|group| group.admit(GROUP_UNCOMMITTED_BYTES_MAX)).collect();
        assert!(held.iter().all(Result::is_ok));
        assert!(groups[4].admit(1).is_err());
        assert_eq!(groups[4].used(), 0, "a refused request holds nothing");
    }
}
