//! Whether rows cannot be flushed because catalog or store do not answer: no reason to refuse new ones, which the log keeps.
//!
//! A full memory alone says nothing: with a catalog and a store that work, flushing does not keep up, and clients must slow
//! down. Failures are known only after their timeouts; a call that hangs counts before.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signaldb_model::GroupId;

/// A call of catalog or store that takes longer hangs: many times what one takes that is only slow.
const HANGS: Duration = Duration::from_secs(2);

/// What flushes know of catalog and store.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    state: Mutex<State>,
    /// As of the last look.
    lasts: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    calls: u64,
    /// Calls that were not answered yet, with the time of their begin.
    waiting: BTreeSet<(Duration, u64)>,
    /// Groups whose last flush failed because of them.
    failing: BTreeSet<GroupId>,
    /// Something was wrong, and the rows of that time are not all flushed.
    behind: bool,
}

/// A call on its way. Dropping it says that it ended, however.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    outage: &'a Outage,
    key: (Duration, u64),
}

impl Outage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A flush asks catalog or store for something.
    pub(crate) fn call(&self, now: Duration) -> Call<'_> {
        let mut state = self.state();
        state.calls += 1;
        let key = (now, state.calls);
        state.waiting.insert(key);
        Call { outage: self, key }
    }

    /// How a group's last flush ended.
    pub(crate) fn note(&self, group: GroupId, failed: bool) {
        let mut state = self.state();
        if failed {
            state.failing.insert(group);
        } else {
            state.failing.remove(&group);
        }
    }

    /// More rows are in the log than memory has room for, from before this node led or started.
    pub(crate) fn fall_behind(&self) {
        self.state().behind = true;
        self.lasts.store(true, Ordering::Release);
    }

    /// Looks again. An outage lasts until the rows that came meanwhile have left the log: `backlog` says whether some have
    /// not.
    pub(crate) fn look(&self, now: Duration, backlog: impl FnOnce() -> bool) -> bool {
        let mut state = self.state();
        let hangs = state.waiting.first().is_some_and(|(since, _)| now.saturating_sub(*since) >= HANGS);
        let down = hangs || !state.failing.is_empty();
        state.behind = down || (state.behind && backlog());
        self.lasts.store(state.behind, Ordering::Release);
        state.behind
    }

    /// Whether there is anything to look at.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.state();
        !state.behind && state.waiting.is_empty() && state.failing.is_empty()
    }

    /// What the last look found.
    pub(crate) fn lasts(&self) -> bool {
        self.lasts.load(Ordering::Acquire)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.outage.state().waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_call_that_hangs_is_an_outage_before_it_fails() {
        let outage = Outage::default();
        let slow = outage.call(secs(10));
        assert!(!outage.look(secs(11), || true), "slow is not gone");
        let next = outage.call(secs(12));
        assert!(outage.look(secs(12), || true) && outage.lasts());
        drop(slow);
        assert!(!outage.look(secs(13), || false), "it was answered");
        assert!(outage.look(secs(14), || false), "the other was not");
        drop(next);
        assert!(!outage.look(secs(60), || false));
    }

    #[test]
    fn an_outage_is_over_when_its_rows_have_left_the_log() {
        let outage = Outage::default();
        assert!(!outage.look(secs(1), || true), "a full memory alone is none");
        outage.note(GroupId(1), true);
        outage.note(GroupId(2), true);
        outage.note(GroupId(1), false);
        assert!(outage.look(secs(2), || false));
        outage.note(GroupId(2), false);
        assert!(outage.look(secs(3), || true), "catching up");
        assert!(!outage.look(secs(4), || false));
        assert!(!outage.look(secs(5), || true), "what waits now is of another time");
        outage.fall_behind();
        assert!(outage.lasts() && outage.look(secs(6), || true));
    }
}
